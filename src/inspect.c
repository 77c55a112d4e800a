/*
 * inspect.c
 *		Looks at queues and changes nothing.
 *
 * All but why_empty run plain SQL on the queues' handles, as the caller, who
 * has SELECT on them; so they work on a standby, and see what the caller's
 * snapshot sees.  why_empty asks what a receive would meet, and so looks in
 * the way that a receive does.
 *
 * src/inspect.c
 */
#include "msgq.h"

#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "argument.h"
#include "deadletter.h"
#include "group.h"
#include "limits.h"
#include "message.h"
#include "owner.h"
#include "segment.h"
#include "testing.h"

/* ---------------------------------------------------------------------------
 * peek
 * ---------------------------------------------------------------------------
 */

/* peek(queue, max_messages, after_id) */
PG_FUNCTION_INFO_V1(msgq_peek);
Datum
msgq_peek(PG_FUNCTION_ARGS)
{
	char	   *name = msgq_arg_name(fcinfo, 0, "queue");
	MsgqQueue  *queue;
	int			count = msgq_arg_count(fcinfo, 1, "max_messages");
	Datum		after_id = msgq_arg(fcinfo, 2, "after_id");
	Oid			types[] = {INT8OID, INT4OID};
	Datum		values[] = {after_id, Int32GetDatum(count)};
	MsgqSpi		spi;

	do
	{
		queue = msgq_queue_get(name, MSGQ_RIGHT_PEEK);
	} while (!msgq_queue_lock_for_reading(queue));

	InitMaterializedSRF(fcinfo, 0);
	msgq_spi_begin(&spi, InvalidOid);
	msgq_spi_run_with(psprintf("SELECT id, NULL::uuid, deliveries, failures, priority, "
							   "group_key, enqueued_at, visible_at, expires_at, "
							   "headers, body, data "
							   "FROM msgq.q%d WHERE id > $1 ORDER BY id LIMIT $2",
							   queue->id),
					  SPI_OK_SELECT, lengthof(values), types, values, NULL,
					  false);
	msgq_spi_put_rows((ReturnSetInfo *) fcinfo->resultinfo, 0, NULL);
	msgq_spi_end(&spi);
	return (Datum) 0;
}

/* ---------------------------------------------------------------------------
 * why_empty
 * ---------------------------------------------------------------------------
 */

/* What a receive would not take. */
typedef struct Obstacles
{
	bool		has_free;		/* but this it would */
	bool		has_blocked;	/* free, but its group is not */
	int			in_flight;
	bool		has_delayed;
	bool		has_expired;
} Obstacles;

/* The walk stands on a free message of a group. */
static void
note_group(MsgqStorage *storage, MsgqWalk *walk, TimestampTz now,
		   Obstacles *found)
{
	Datum		key = msgq_row_group(walk->segment->row);
	MsgqGroup	group;

	switch (msgq_group_open(&group, storage, key, now, 1, true))
	{
		case MSGQ_GROUP_FREE:
			msgq_group_close(&group);
			found->has_free = true;
			break;
		case MSGQ_GROUP_DELAYED:
			found->has_delayed = true;
			break;
		default:
			found->has_blocked = true;
	}
}

/*
 * Looks at all messages of a segment in one order, until one is free.  One
 * that is exhausted counts as such: it is the next receive that gives it up.
 */
static void
find_obstacles(MsgqStorage *storage, MsgqSegment *segment, MsgqOrder order,
			   TimestampTz now, Obstacles *found)
{
	MsgqWalk   *walk = msgq_walk_begin(segment, order, PG_INT64_MIN,
									   PG_INT64_MAX);

	while (!found->has_free && msgq_walk_next(walk))
	{
		if (TransactionIdIsValid(walk->open_xid))
			found->in_flight++;
		else if (msgq_row_is_in_flight(segment->row, now))
			found->in_flight++;
		else if (msgq_is_expired(segment->row, now))
			found->has_expired = true;
		else if (order == MSGQ_READY || walk->key < now)
		{
			if (msgq_row_has_group(storage, segment->row))
				note_group(storage, walk, now, found);
			else
				found->has_free = true;
		}
		else
			found->has_delayed = true;
	}
	msgq_walk_end(walk);
}

/* Are as many messages in flight as the queue allows? */
static bool
is_at_limit(MsgqStorage *storage, TimestampTz now)
{
	int			limit = storage->queue->max_in_flight;

	return msgq_count_in_flight(storage, now, limit) == limit;
}

/* why_empty(queue) */
PG_FUNCTION_INFO_V1(msgq_why_empty);
Datum
msgq_why_empty(PG_FUNCTION_ARGS)
{
	char	   *name = msgq_arg_name(fcinfo, 0, "queue");
	MsgqStorage *storage = msgq_storage_open(NULL, name, MSGQ_RIGHT_PEEK,
											 MSGQ_ALL);
	TimestampTz now = msgq_now();
	const MsgqQueue *queue = storage->queue;
	Obstacles	found = {0};
	const char *why;

	for (int i = 0; i < storage->nsegments; i++)
	{
		find_obstacles(storage, storage->segments[i], MSGQ_READY, now, &found);
		find_obstacles(storage, storage->segments[i], MSGQ_DUE, now, &found);
	}
	if (queue->paused & MSGQ_PAUSED_RECEIVE)
		why = "paused";
	else if (found.has_free)
		why = queue->max_in_flight > 0 && is_at_limit(storage, now) ?
			"in_flight_limit" : NULL;
	else
		why = found.has_blocked ? "groups_leased" :
			found.in_flight > 0 ? "in_flight" :
			found.has_delayed ? "delayed" :
			found.has_expired ? "expired" : "empty";
	msgq_storage_close(storage);

	if (why == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(why));
}

/* ---------------------------------------------------------------------------
 * Views over all queues
 * ---------------------------------------------------------------------------
 */

/*
 * Runs a query for each queue that the caller may peek at, and appends its
 * rows, after the queue's name, to the result.  In the query %1$d is the
 * number of the queue, and $1 the time.
 */
static void
query_each_queue(FunctionCallInfo fcinfo, const char *query)
{
	Datum		now = TimestampTzGetDatum(msgq_now());
	Oid			type = TIMESTAMPTZOID;
	MsgqQueue **queues;
	int			n;

	InitMaterializedSRF(fcinfo, 0);
	queues = msgq_queue_list(MSGQ_RIGHT_PEEK, &n);
	for (int i = 0; i < n; i++)
	{
		Datum		name = CStringGetTextDatum(NameStr(queues[i]->name));
		MsgqSpi		spi;

		if (!msgq_queue_lock_for_reading(queues[i]))
			continue;			/* dropped meanwhile */
		msgq_spi_begin(&spi, InvalidOid);
		msgq_spi_run_with(psprintf(query, queues[i]->id), SPI_OK_SELECT,
						  1, &type, &now, NULL, false);
		msgq_spi_put_rows((ReturnSetInfo *) fcinfo->resultinfo, 1, &name);
		msgq_spi_end(&spi);
	}
}

PG_FUNCTION_INFO_V1(msgq_list_leases);
Datum
msgq_list_leases(PG_FUNCTION_ARGS)
{
	query_each_queue(fcinfo,
					 "SELECT id, leased_at, visible_at, deliveries, failures "
					 "FROM msgq.q%1$d "
					 "WHERE leased_at IS NOT NULL AND visible_at > $1 "
					 "ORDER BY visible_at, id");
	return (Datum) 0;
}

/* handle(queue_id): the view that carries the rights, or NULL */
PG_FUNCTION_INFO_V1(msgq_handle);
Datum
msgq_handle(PG_FUNCTION_ARGS)
{
	Oid			handle = msgq_relation_oid(psprintf("q%d", PG_GETARG_INT32(0)));

	if (!OidIsValid(handle))
		PG_RETURN_NULL();
	PG_RETURN_OID(handle);
}
