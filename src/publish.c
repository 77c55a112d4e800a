/*
 * publish.c
 *		Sends messages to a topic, as part of the caller's transaction.
 *
 * A message is stored once in each queue and stream to which the topic's
 * bindings lead (route.c), all in the caller's transaction: all of them get it,
 * or none.
 *
 *	1. Look up the routing, and find the targets of each message.
 *	2. Lock the log of each topic that a message passes, then open, and so lock,
 *	   the targets, in the order of their numbers.
 *	3. If one of them is not what it was, or the routing has changed meanwhile,
 *	   give it all back, and go to 1.
 *	4. Store in each target what goes there, and append the messages to the logs.
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
#include "utils/jsonb.h"

#include "argument.h"
#include "destination.h"
#include "message.h"
#include "owner.h"
#include "publish.h"
#include "retained.h"
#include "route.h"
#include "table.h"
#include "testing.h"

/* One call. */
typedef struct Publishing
{
	const char *command;		/* the caller's name, for messages */
	const char *topic;
	int32		topic_id;		/* 0: whichever has that name */
	AclMode		right;			/* that the caller must have on it */
	MsgqOutgoing *messages;
	const Datum *routing_keys;	/* of each message */
	MsgqRoutable *routables;
	const Datum *idempotency_key;	/* of the only message, or NULL */
	const MsgqRouting *routing;
	MsgqRoute **routes;			/* of each message */
	MsgqRoute  *all;			/* all of them together */
	MsgqDestination *destinations;	/* one for each of its targets */
	int			nopen;			/* so many of them are open */
	Relation   *logs;			/* one for each of its topics */
	int			nlocked;		/* so many of them are */
} Publishing;

/* ---------------------------------------------------------------------------
 * What bindings see, and what receivers see
 * ---------------------------------------------------------------------------
 */

/* What bindings see of a message: the headers that the publisher gave. */
static MsgqRoutable
routable_of(const Publishing *publishing, int i)
{
	MsgqOutgoing *messages = publishing->messages;
	MsgqRoutable routable = {
		.routing_key = TextDatumGetCString(publishing->routing_keys[i])
	};

	if (messages->content_column == Anum_segment_body)
		routable.body = &messages->contents[i];
	if (!messages->no_headers[i])
	{
		Datum	   *headers = palloc(sizeof(Datum));

		*headers = messages->headers[i];
		routable.headers = headers;
	}
	return routable;
}

/* Adds to a message's headers where it comes from. */
static void
add_origin(const Publishing *publishing, int i)
{
	JsonbParseState *state = NULL;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	msgq_push_text(&state, WJB_KEY, MSGQ_TOPIC_HEADER);
	msgq_push_text(&state, WJB_VALUE, publishing->topic);
	msgq_push_text(&state, WJB_KEY, MSGQ_ROUTING_KEY_HEADER);
	msgq_push_text(&state, WJB_VALUE, publishing->routables[i].routing_key);
	msgq_outgoing_add_headers(publishing->messages, i,
							  JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state,
																			  WJB_END_OBJECT, NULL))));
}

static void
prepare(Publishing *publishing)
{
	int			n = publishing->messages->n;

	publishing->routables = palloc(sizeof(MsgqRoutable) * n);
	publishing->routes = palloc(sizeof(MsgqRoute *) * n);
	for (int i = 0; i < n; i++)
	{
		publishing->routables[i] = routable_of(publishing, i);
		add_origin(publishing, i);
	}
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
	MsgqRoute  *all = publishing->all;

	publishing->logs = palloc(sizeof(Relation) * all->ntopics);
	for (int i = 0; i < all->ntopics; i++)
	{
		Relation	log = msgq_retained_lock(all->topics[i]);

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
	MsgqRoute  *all = publishing->all;
	MsgqOutgoing *messages = publishing->messages;
	int			lowest = messages->priorities[0];
	int			highest = lowest;

	for (int i = 1; i < messages->n; i++)
	{
		lowest = Min(lowest, messages->priorities[i]);
		highest = Max(highest, messages->priorities[i]);
	}
	publishing->destinations = palloc(sizeof(MsgqDestination) *
									  Max(all->ntargets, 1));
	for (int i = 0; i < all->ntargets; i++)
	{
		if (!msgq_destination_open(&publishing->destinations[i],
								   publishing->command, all->targets[i],
								   lowest, highest))
		{
			msgq_topic_forget_all();
			return false;
		}
		publishing->nopen++;
	}
	return true;
}

/* Finds where the messages go; false if the topic is not that one any more. */
static bool
find_routes(Publishing *publishing)
{
	publishing->routing = msgq_routing_get(publishing->topic, publishing->right);
	if (publishing->topic_id != 0 &&
		publishing->routing->topics[0].id != publishing->topic_id)
		return false;
	for (int i = 0; i < publishing->messages->n; i++)
		publishing->routes[i] = msgq_route(publishing->routing,
										   &publishing->routables[i]);
	publishing->all = msgq_route_union(publishing->routes, publishing->messages->n);
	return true;
}

/*
 * Finds where the messages go, and opens all that; see above.  False if the
 * topic is not that one any more.
 */
static bool
open_routes(Publishing *publishing)
{
	while (find_routes(publishing))
	{
		msgq_point(MSGQ_POINT_PUBLISH_ROUTED);
		if (lock_logs(publishing) && open_targets(publishing) &&
			msgq_routing_is_current(publishing->routing))
			return true;
		let_go(publishing);
		CHECK_FOR_INTERRUPTS();
	}
	return false;
}

/* ---------------------------------------------------------------------------
 * Publishing
 * ---------------------------------------------------------------------------
 */

/* No binding takes the message: an error, unless it may be dropped. */
static void
check_may_drop(const Publishing *publishing, int i)
{
	const MsgqTopic *last = msgq_route_last_resort(publishing->routing);

	if (last->on_unroutable == MSGQ_UNROUTABLE_DROP)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_MSGQ_UNROUTABLE),
			 errmsg("message is unroutable in topic \"%s\"", publishing->topic),
			 errdetail("No binding takes a message with routing key \"%s\" and these headers and this body.",
					   publishing->routables[i].routing_key),
			 errhint("See msgq.route() for what the bindings take. A topic with on_unroutable => 'drop' or 'alternate' takes such messages.")));
}

/* Stores in a target what goes there; returns how many were not there before. */
static int
store_in_target(Publishing *publishing, MsgqDestination *destination)
{
	MsgqOutgoing *messages = publishing->messages;
	int		   *which = palloc(sizeof(int) * messages->n);
	Datum	   *keys = palloc(sizeof(Datum) * messages->n);
	MsgqOutgoing chosen;
	int			n = 0;

	for (int i = 0; i < messages->n; i++)
	{
		if (!msgq_route_has_target(publishing->routes[i], destination->target->id))
			continue;
		keys[n] = publishing->routing_keys[i];
		which[n++] = i;
	}
	msgq_outgoing_choose(&chosen, messages, which, n);
	return msgq_destination_store(destination, &chosen, keys,
								  publishing->idempotency_key);
}

/* Stores the messages in all targets; returns in how many places they were not. */
static int
store_in_targets(Publishing *publishing)
{
	int			stored = 0;

	for (int i = 0; i < publishing->nopen; i++)
	{
		stored += store_in_target(publishing, &publishing->destinations[i]);
		msgq_destination_close(&publishing->destinations[i], false);
	}
	return stored;
}

/* Appends to the log of a topic the messages that pass it. */
static void
retain_in_topic(Publishing *publishing, const MsgqTopic *topic, Relation log)
{
	MsgqTable  *table = msgq_retained_open(log);

	for (int i = 0; i < publishing->messages->n; i++)
	{
		if (msgq_route_passes(publishing->routes[i], topic))
			msgq_retained_add(table, topic, publishing->routing_keys[i],
							  publishing->messages, i,
							  publishing->routables[i].headers != NULL);
	}
	msgq_table_close(table, NoLock);
}

static void
retain(Publishing *publishing, bool is_repeated)
{
	for (int i = 0; i < publishing->nlocked; i++)
	{
		const MsgqTopic *topic = publishing->all->topics[i];

		if (is_repeated || !topic->retain)
			table_close(publishing->logs[i], NoLock);
		else
			retain_in_topic(publishing, topic, publishing->logs[i]);
	}
}

/* Returns the number of targets of all messages; -1 without the topic. */
static int
publish(Publishing *publishing)
{
	int			ntargets = 0;
	int			stored;

	prepare(publishing);
	if (!open_routes(publishing))
		return -1;
	for (int i = 0; i < publishing->messages->n; i++)
	{
		if (publishing->routes[i]->ntargets == 0)
			check_may_drop(publishing, i);
		ntargets += publishing->routes[i]->ntargets;
	}
	stored = store_in_targets(publishing);
	retain(publishing, stored < ntargets);
	return ntargets;
}

/*
 * Publishes messages, at least one, with their routing keys to the topic that
 * has this name and this number, all or none, whoever the caller is; false if
 * the topic has another name now.  Adds to their headers.  command is the
 * caller's name, for messages.  Raises what msgq.publish() does.
 */
bool
msgq_publish_to(const char *command, const MsgqTarget *topic,
				MsgqOutgoing *messages, const Datum *routing_keys)
{
	Publishing	publishing = {
		.command = command,
		.topic = NameStr(topic->name),
		.topic_id = topic->id,
		.right = MSGQ_RIGHT_NONE,
		.messages = messages,
		.routing_keys = routing_keys
	};

	return publish(&publishing) >= 0;
}

/* ---------------------------------------------------------------------------
 * By SQL
 * ---------------------------------------------------------------------------
 */

/*
 * Arguments topic, routing_key, content, headers, delay, deliver_at, priority,
 * group_key, ttl, idempotency_key.
 */
static Datum
publish_content(FunctionCallInfo fcinfo, const char *command, AttrNumber column,
				const char *content)
{
	MsgqOutgoing message;
	Datum		routing_key = PG_GETARG_DATUM(1);
	Datum		idempotency_key;
	Publishing	publishing = {
		.command = command,
		.topic = msgq_arg_name(fcinfo, 0, "topic"),
		.right = MSGQ_RIGHT_SEND,
		.messages = &message,
		.routing_keys = &routing_key
	};
	int			ntargets;

	msgq_check_routing_key(msgq_arg_text(fcinfo, 1, "routing_key"), "routing_key");
	msgq_outgoing_init(&message, 1, column);
	message.contents[0] = msgq_arg(fcinfo, 2, content);
	msgq_outgoing_set_one(&message, fcinfo, 3);
	if (message.priorities[0] < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be negative", "priority")));
	message.priorities[0] = Min(message.priorities[0], MSGQ_MAX_PRIORITIES - 1);
	if (!PG_ARGISNULL(9))
	{
		idempotency_key = PG_GETARG_DATUM(9);
		publishing.idempotency_key = &idempotency_key;
	}
	msgq_begin_change(command);
	ntargets = publish(&publishing);
	CommandCounterIncrement();
	PG_RETURN_INT32(ntargets);
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
