/*
 * publish.c
 *		Sends a message to a topic, as part of the caller's transaction.
 *
 * The message is stored once in each queue and stream to which the topic's
 * bindings lead (route.c), all in the caller's transaction: all of them get it,
 * or none.
 *
 *	1. Look up the routing, and find the targets.
 *	2. Lock the log of each topic that the message passes, then open, and so
 *	   lock, the targets, in the order of their numbers.
 *	3. If one of them is not what it was, or the routing has changed meanwhile,
 *	   give it all back, and go to 1.
 *	4. Store it in each target, and append it to the logs.
 *
 * From 3 on nobody can drop a target or a topic before the caller's transaction
 * ends.  A binding that is made or removed later than that is seen by the next
 * call.  So no message is routed by half of a change.
 *
 * A repeated idempotency key stores nothing in the targets that have had it.
 * Where there is one, nothing is retained either: the message was published
 * before, and later ones with its routing key may have come since.  (A topic
 * without any target knows of no repetition.)
 *
 * src/publish.c
 */
#include "msgq.h"

#include "access/table.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"

#include "argument.h"
#include "destination.h"
#include "message.h"
#include "owner.h"
#include "retained.h"
#include "route.h"
#include "testing.h"

/* One call of publish. */
typedef struct Publishing
{
	const char *command;		/* the caller's name, for messages */
	char	   *topic;
	Datum		routing_key;
	MsgqRoutable routable;
	MsgqOutgoing message;
	const Datum *idempotency_key;	/* or NULL */
	const MsgqRouting *routing;
	MsgqRoute  *route;
	MsgqDestination *destinations;	/* one for each target */
	int			nopen;			/* so many of them are open */
	Relation   *logs;			/* one for each topic that it passes */
	int			nlocked;		/* so many of them are */
} Publishing;

/* ---------------------------------------------------------------------------
 * Headers
 * ---------------------------------------------------------------------------
 */

/* Adds to the message's headers where it comes from. */
static void
add_origin(Publishing *publishing, char *routing_key)
{
	MsgqOutgoing *message = &publishing->message;
	JsonbParseState *state = NULL;
	Datum		origin;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	msgq_push_text(&state, WJB_KEY, MSGQ_TOPIC_HEADER);
	msgq_push_text(&state, WJB_VALUE, publishing->topic);
	msgq_push_text(&state, WJB_KEY, MSGQ_ROUTING_KEY_HEADER);
	msgq_push_text(&state, WJB_VALUE, routing_key);
	origin = JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state,
															 WJB_END_OBJECT, NULL)));
	message->headers[0] = message->no_headers[0] ? origin :
		DirectFunctionCall2(jsonb_concat, message->headers[0], origin);
	message->no_headers[0] = false;
}

/* ---------------------------------------------------------------------------
 * Opening
 * ---------------------------------------------------------------------------
 */

/* Gives back what is open: nothing was stored. */
static void
let_go(Publishing *publishing)
{
	while (publishing->nopen > 0)
		msgq_destination_close(&publishing->destinations[--publishing->nopen],
							   true);
	while (publishing->nlocked > 0)
		table_close(publishing->logs[--publishing->nlocked], RowExclusiveLock);
}

/* Locks the logs; false if one of them has gone. */
static bool
lock_logs(Publishing *publishing)
{
	MsgqRoute  *route = publishing->route;

	publishing->logs = palloc(sizeof(Relation) * route->ntopics);
	for (int i = 0; i < route->ntopics; i++)
	{
		Relation	log = msgq_retained_lock(route->topics[i]);

		if (log == NULL)
			return false;
		publishing->logs[publishing->nlocked++] = log;
	}
	return true;
}

/* Opens the targets; false if one of them has gone. */
static bool
open_targets(Publishing *publishing)
{
	MsgqRoute  *route = publishing->route;
	int			priority = publishing->message.priorities[0];

	publishing->destinations = palloc(sizeof(MsgqDestination) *
									   Max(route->ntargets, 1));
	for (int i = 0; i < route->ntargets; i++)
	{
		if (!msgq_destination_open(&publishing->destinations[i],
								   publishing->command, route->targets[i],
								   priority, priority))
		{
			msgq_topic_forget_all();
			return false;
		}
		publishing->nopen++;
	}
	return true;
}

/* Finds where the message goes, and opens all that; see above. */
static void
open_route(Publishing *publishing)
{
	for (;;)
	{
		publishing->routing = msgq_routing_get(publishing->topic,
												MSGQ_RIGHT_SEND);
		publishing->route = msgq_route(publishing->routing,
										&publishing->routable);
		msgq_point(MSGQ_POINT_PUBLISH_ROUTED);
		if (lock_logs(publishing) && open_targets(publishing) &&
			msgq_routing_is_current(publishing->routing))
			return;
		let_go(publishing);
		CHECK_FOR_INTERRUPTS();
	}
}

/* ---------------------------------------------------------------------------
 * Publishing
 * ---------------------------------------------------------------------------
 */

/* No binding takes the message: an error, unless it may be dropped. */
static void
check_may_drop(const Publishing *publishing)
{
	const MsgqTopic *last = msgq_route_last_resort(publishing->routing);

	if (last->on_unroutable == MSGQ_UNROUTABLE_DROP)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_MSGQ_UNROUTABLE),
			 errmsg("message is unroutable in topic \"%s\"", publishing->topic),
			 errdetail("No binding takes a message with routing key \"%s\" and these headers and this body.",
					   publishing->routable.routing_key),
			 errhint("See msgq.route() for what the bindings take. A topic with on_unroutable => 'drop' or 'alternate' takes such messages.")));
}

/* Stores the message in all targets; returns in how many it was not before. */
static int
store_in_targets(Publishing *publishing)
{
	int			stored = 0;

	for (int i = 0; i < publishing->nopen; i++)
	{
		MsgqDestination *destination = &publishing->destinations[i];

		stored += msgq_destination_store(destination, &publishing->message,
										 &publishing->routing_key,
										 publishing->idempotency_key);
		msgq_destination_close(destination, false);
	}
	return stored;
}

static void
retain(Publishing *publishing, bool is_repeated)
{
	for (int i = 0; i < publishing->nlocked; i++)
	{
		if (is_repeated)
			table_close(publishing->logs[i], NoLock);
		else
			msgq_retained_add(publishing->logs[i], publishing->route->topics[i],
							  publishing->routing_key, &publishing->message,
							  publishing->routable.headers != NULL);
	}
}

/* Returns the number of targets. */
static int
publish(Publishing *publishing)
{
	int			ntargets;
	int			stored;

	msgq_begin_change(publishing->command);
	open_route(publishing);
	ntargets = publishing->route->ntargets;
	if (ntargets == 0)
		check_may_drop(publishing);
	stored = store_in_targets(publishing);
	retain(publishing, stored < ntargets);
	CommandCounterIncrement();
	return ntargets;
}

/*
 * Arguments topic, routing_key, content, headers, delay, deliver_at, priority,
 * group_key, ttl, idempotency_key.
 */
static Datum
publish_content(FunctionCallInfo fcinfo, const char *command, AttrNumber column,
				const char *content)
{
	Publishing publishing = {.command = command};
	MsgqOutgoing *message = &publishing.message;
	char	   *routing_key = msgq_arg_text(fcinfo, 1, "routing_key");
	Datum		headers;
	Datum		idempotency_key;

	publishing.topic = msgq_arg_name(fcinfo, 0, "topic");
	publishing.routing_key = PG_GETARG_DATUM(1);
	msgq_check_routing_key(routing_key, "routing_key");
	publishing.routable.routing_key = routing_key;
	msgq_outgoing_init(message, 1, column);
	message->contents[0] = msgq_arg(fcinfo, 2, content);
	msgq_outgoing_set_one(message, fcinfo, 3);
	if (message->priorities[0] < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be negative", "priority")));
	message->priorities[0] = Min(message->priorities[0], MSGQ_MAX_PRIORITIES - 1);
	if (column == Anum_segment_body)
		publishing.routable.body = &message->contents[0];
	/* Bindings see the headers that the publisher gave. */
	headers = message->headers[0];
	if (!message->no_headers[0])
		publishing.routable.headers = &headers;
	if (!PG_ARGISNULL(9))
	{
		idempotency_key = PG_GETARG_DATUM(9);
		publishing.idempotency_key = &idempotency_key;
	}
	add_origin(&publishing, routing_key);
	PG_RETURN_INT32(publish(&publishing));
}

PG_FUNCTION_INFO_V1(msgq_publish);
Datum
msgq_publish(PG_FUNCTION_ARGS)
{
	return publish_content(fcinfo, "msgq.publish()", Anum_segment_body, "body");
}

PG_FUNCTION_INFO_V1(msgq_publish_bytes);
Datum
msgq_publish_bytes(PG_FUNCTION_ARGS)
{
	return publish_content(fcinfo, "msgq.publish_bytes()", Anum_segment_data,
						   "data");
}
