/*
 * receive.c
 *		Finds messages for a consumer, and leases or removes them.
 *
 * A receive first takes what is due, in the order of time (delays, retries,
 * leases that ran out), then what is ready, in the order of ids, in each case
 * from the oldest segment on.  It never waits for anybody: what an open
 * transaction holds is passed by, and comes back when that transaction aborts.
 *
 * For each segment and order there is a frontier (frontier.c tells what it is
 * and why nothing gets lost behind it).  One pass
 *
 *	1. visits the exceptions whose transaction has ended,
 *	2. walks on from the frontier's position until it has enough, and
 *	3. moves the frontier.
 *
 * Nothing of this depends on a snapshot, so it is the same at every isolation
 * level: a REPEATABLE READ transaction receives messages that were committed
 * after its snapshot.
 *
 * src/receive.c
 */
#include "msgq.h"

#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "argument.h"
#include "frontier.h"
#include "message.h"
#include "segment.h"

/* One call of receive or pop. */
typedef struct Receiver
{
	MsgqQueue  *queue;
	bool		remove;			/* pop */
	TimestampTz now;
	TimestampTz lease_end;
	int			wanted;			/* so many more */
	TimestampTz oldest_enqueued_at; /* of those taken */
	Tuplestorestate *store;		/* they go here */
	TupleDesc	descriptor;
} Receiver;

/* ---------------------------------------------------------------------------
 * One message
 * ---------------------------------------------------------------------------
 */

static void
deliver(Receiver *receiver, TupleTableSlot *row)
{
	msgq_row_put(row, !receiver->remove, receiver->store,
				 receiver->descriptor);
	receiver->oldest_enqueued_at =
		Min(receiver->oldest_enqueued_at,
			msgq_row_time(row, Anum_segment_enqueued_at));
	receiver->wanted--;
}

/* Tries to take the free message on which the walk stands. */
static MsgqOutcome
take(Receiver *receiver, MsgqWalk *walk)
{
	MsgqSegment *segment = walk->segment;
	MsgqOutcome outcome;
	MsgqChange	change = {
		.set_visible_at = !receiver->remove,
		.visible_at = receiver->lease_end,
		.lease = !receiver->remove,
		.leased_at = receiver->now,
		.more_deliveries = 1,
		/* Leased still: nobody settled it before the lease ran out. */
		.more_failures =
		msgq_row_is_null(segment->row, Anum_segment_leased_at) ? 0 : 1,
	};

	outcome = receiver->remove ? msgq_walk_remove(walk, &change)
		: msgq_walk_claim(walk, &change);
	if (outcome == MSGQ_DONE)
		deliver(receiver, segment->new_row);
	return outcome;
}

/* ---------------------------------------------------------------------------
 * A range of keys
 * ---------------------------------------------------------------------------
 */

/* Every key below this has been visited once the walk has passed this one. */
static int64
next_key(MsgqOrder order, int64 key)
{
	/* Several messages can be due at the same time; ids are unique. */
	if (order == MSGQ_DUE || key == PG_INT64_MAX)
		return key;
	return key + 1;
}

/*
 * Takes messages with keys from low to high until there are enough.  Returns
 * the number of index entries that were met.
 */
static int64
visit_range(Receiver *receiver, MsgqSegment *segment, MsgqOrder order,
			int64 low, int64 high, MsgqVisit *visit)
{
	MsgqWalk   *walk = msgq_walk_begin(segment, order, low, high);
	bool		more = true;
	int64		entries;

	msgq_visit_begin(visit);
	visit->reached = low;
	while (receiver->wanted > 0 && (more = msgq_walk_next(walk)))
	{
		MsgqOutcome outcome = TransactionIdIsValid(walk->open_xid) ?
		MSGQ_OPEN : take(receiver, walk);

		if (outcome == MSGQ_OPEN)
			msgq_visit_met_open(visit, walk->open_xid, walk->key);
		else if (outcome == MSGQ_HELD)
			msgq_visit_met_unknown(visit, walk->key);
		visit->reached = next_key(order, walk->key);
	}
	if (!more)
		visit->reached = high == PG_INT64_MAX ? high : high + 1;
	entries = walk->entries;
	msgq_walk_end(walk);
	return entries;
}

/* ---------------------------------------------------------------------------
 * Passes
 * ---------------------------------------------------------------------------
 */

/*
 * What somebody's rollback or late commit has left behind the frontier, in
 * rising order; what cannot be resolved now is entered again, and passed by.
 */
static void
visit_exceptions(Receiver *receiver, MsgqSegment *segment, MsgqOrder order,
				 MsgqFrontier *frontier, int64 end)
{
	MsgqException ended[MSGQ_MAX_EXCEPTIONS];
	int			n = msgq_frontier_ended(frontier, ended);

	for (int i = 0; i < n && receiver->wanted > 0; i++)
	{
		MsgqVisit	visit;

		(void) visit_range(receiver, segment, order, ended[i].low,
						   Min(ended[i].high, end), &visit);
		msgq_frontier_visited(frontier, &ended[i], &visit);
	}
}

static void
take_due(Receiver *receiver, MsgqSegment *segment)
{
	MsgqFrontier *frontier = segment->due;
	int64		end = receiver->now - 1;
	int64		limit = msgq_frontier_begin_due(frontier, receiver->now);
	int64		entries;
	MsgqVisit	visit;

	visit_exceptions(receiver, segment, MSGQ_DUE, frontier, end);
	if (receiver->wanted == 0)
		return;
	entries = visit_range(receiver, segment, MSGQ_DUE, frontier->position, end,
						  &visit);
	msgq_frontier_advance(frontier, &visit, limit);
	msgq_frontier_end_due(frontier, receiver->now, entries,
						  visit.reached > end);
}

static void
take_ready(Receiver *receiver, MsgqSegment *segment)
{
	MsgqFrontier *frontier = segment->ready;
	MsgqVisit	visit;

	visit_exceptions(receiver, segment, MSGQ_READY, frontier, PG_INT64_MAX);
	if (receiver->wanted == 0)
		return;

	/* A horizon holds for ever; a new one is wanted to get there, or on. */
	if (frontier->position >= frontier->horizon)
		msgq_append_horizon(receiver->queue, &frontier->horizon);
	(void) visit_range(receiver, segment, MSGQ_READY, frontier->position,
					   PG_INT64_MAX, &visit);
	msgq_frontier_advance(frontier, &visit,
						  next_key(MSGQ_READY, frontier->horizon));
}

static void
take_messages(Receiver *receiver, MsgqStorage *storage)
{
	for (int i = 0; i < storage->nsegments && receiver->wanted > 0; i++)
		take_due(receiver, storage->segments[i]);
	for (int i = 0; i < storage->nsegments && receiver->wanted > 0; i++)
		take_ready(receiver, storage->segments[i]);
}

/* ---------------------------------------------------------------------------
 * SQL functions
 * ---------------------------------------------------------------------------
 */

static void
begin_result(Receiver *receiver, FunctionCallInfo fcinfo)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	receiver->store = result->setResult;
	receiver->descriptor = result->setDesc;
}

/*
 * receive(queue, max_messages, visibility_timeout, wait)
 *
 * The transaction may commit asynchronously if it does nothing else; see
 * lease.c.
 */
PG_FUNCTION_INFO_V1(msgq_receive);
Datum
msgq_receive(PG_FUNCTION_ARGS)
{
	char	   *name = msgq_arg_name(fcinfo, 0, "queue");
	Receiver	receiver = {.oldest_enqueued_at = DT_NOEND};
	Interval	timeout;
	Interval   *wait;
	MsgqStorage *storage;

	receiver.wanted = msgq_arg_count(fcinfo, 1, "max_messages");
	if (!PG_ARGISNULL(2))
	{
		timeout = *PG_GETARG_INTERVAL_P(2);
		msgq_check_interval(&timeout, "visibility_timeout");
	}
	wait = DatumGetIntervalP(msgq_arg(fcinfo, 3, "wait"));
	msgq_check_interval(wait, "wait");
	if (wait->time != 0 || wait->day != 0 || wait->month != 0)
		msgq_refuse_unsupported("waiting in msgq.receive()");

	begin_result(&receiver, fcinfo);
	storage = msgq_storage_open("msgq.receive()", name, MSGQ_RIGHT_RECEIVE,
								false);
	receiver.queue = storage->queue;
	if (PG_ARGISNULL(2))
		timeout = storage->queue->visibility_timeout;
	receiver.now = GetCurrentTimestamp();
	receiver.lease_end = msgq_time_after(receiver.now, &timeout);

	msgq_lease_begin();
	take_messages(&receiver, storage);
	msgq_lease_end(receiver.oldest_enqueued_at);
	msgq_storage_close(storage);
	return (Datum) 0;
}

/* pop(queue, max_messages) */
PG_FUNCTION_INFO_V1(msgq_pop);
Datum
msgq_pop(PG_FUNCTION_ARGS)
{
	char	   *name = msgq_arg_name(fcinfo, 0, "queue");
	Receiver	receiver = {.remove = true};
	MsgqStorage *storage;

	receiver.wanted = msgq_arg_count(fcinfo, 1, "max_messages");
	begin_result(&receiver, fcinfo);
	storage = msgq_storage_open("msgq.pop()", name, MSGQ_RIGHT_RECEIVE, false);
	receiver.queue = storage->queue;
	receiver.now = GetCurrentTimestamp();
	take_messages(&receiver, storage);
	msgq_storage_close(storage);
	return (Datum) 0;
}
