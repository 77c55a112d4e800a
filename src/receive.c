/*
 * receive.c
 *		Finds messages for a consumer, and leases or removes them.
 *
 * A receive goes through the levels of priority, from the highest one down.
 * In each it first takes what is due, in the order of time (delays, retries,
 * leases that ran out), then what is ready, in the order of ids, in each case
 * from the level's oldest segment on.  It waits for no transaction, except for
 * one case in ordered queues (group.c): what an open one holds is passed by,
 * and comes back when that one aborts.
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
 * What a receive meets and must not deliver, since its time to live is over or
 * all allowed deliveries have failed, it gives up (deadletter.c) and goes on;
 * then it does not wait for anything else, so that this is committed soon.  Of
 * either kind it removes so much as not to keep its caller waiting, and leaves
 * the rest to others: what has expired to the worker, since nobody needs to
 * come by it again, and what is exhausted to whoever comes by next.
 *
 * A limit on messages in flight is kept by counting them, under a lock that
 * those who receive from such a queue hold from before they count until what
 * they take can be counted by others.  That is long before they commit, since
 * a dirty snapshot shows uncommitted claims.
 *
 * Segments that are known to be drained (ring.c) are not opened.  A sender who
 * chose his segment before it was full, and commits after it was drained, may
 * have left a message there; so a receiver that finds nothing else looks there
 * too, now and then.
 *
 * In an ordered queue it is not the order of walks that counts, but the time
 * from which on a message could be had (take_from_level).  A message that a
 * walk meets stands for its group: if the group is free, the first of its
 * messages are taken, whichever was met (group.c).  If the first one is to be
 * given up, that is something to receive for those who wait: only a receive
 * does it, and those behind it come then.  Old leases of the group are ended
 * first, and then somebody else may be faster; so here, too, a receive that has
 * changed something does not wait.
 *
 * Waiting.  receive(..., wait) and the procedure wait look, sleep, and look
 * again; wakeup.c tells who wakes them.  While they sleep no table is open or
 * locked by them.  They sleep until the earliest of: the end of the wait, the
 * next due time in the queue, msgq.poll_interval.  A receive holds the snapshot
 * of its statement meanwhile; wait holds none.
 *
 * src/receive.c
 */
#include "msgq.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "argument.h"
#include "deadletter.h"
#include "frontier.h"
#include "group.h"
#include "limits.h"
#include "message.h"
#include "poison.h"
#include "segment.h"
#include "stats.h"
#include "testing.h"
#include "wakeup.h"

/* Index entries that a waiter looks through for the next due time. */
#define DUE_LOOKAHEAD		200

/* Messages that one receive gives up for each of the two reasons. */
#define MAX_GIVEN_UP		100

/* How often a receiver that finds nothing looks into drained segments. */
#define DRAINED_INTERVAL	USECS_PER_SEC

/* One call of receive or pop, or one look of wait. */
typedef struct Receiver
{
	const char *command;		/* the caller's name, for messages */
	const char *name;			/* of the queue */
	MsgqStorage *storage;
	bool		remove;			/* pop */
	bool		only_look;		/* wait: take nothing */
	bool		drop;			/* a full queue: deliver nothing */
	Interval   *timeout;		/* receive: NULL is the queue's */
	TimestampTz now;
	TimestampTz lease_end;
	int			wanted;			/* so many more */
	int			taken;
	int			redelivered;	/* of those taken */
	int			failed;			/* failures found: leases that had run out,
								 * and pops that were rolled back */
	int			rolled_back;	/* of the latter */
	int			exhausted;		/* those given up */
	int			expired;		/* likewise */
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
	if (DatumGetInt32(msgq_row_value(row, Anum_segment_deliveries)) > 1)
		receiver->redelivered++;
	receiver->taken++;
	receiver->wanted--;
}

/*
 * Tries to give up the free message on which the walk stands.  Its failures
 * are those that its row will have had: the end of a lease is one, and so are
 * the pops that were rolled back.
 */
static MsgqOutcome
give_up(Receiver *receiver, MsgqWalk *walk, int32 rolled_back,
		MsgqReason reason)
{
	MsgqSegment *segment = walk->segment;
	MsgqSlot   *slot = receiver->storage->slot;
	MsgqChange	change = {
		.more_deliveries = rolled_back,
		.more_failures = msgq_expired_leases(segment->row) + rolled_back,
	};
	MsgqOutcome outcome = msgq_walk_remove(walk, &change);

	if (outcome != MSGQ_DONE)
		return outcome;
	msgq_poison_entered(slot, msgq_row_id(segment->new_row), rolled_back);
	receiver->rolled_back += rolled_back;
	msgq_wake_at_abort(slot, 1);
	msgq_dead_letter(receiver->storage, segment->new_row, reason, NULL,
					 receiver->now);
	receiver->failed += change.more_failures;
	return outcome;
}

/*
 * The same for a message that is exhausted.  One that is left to others must
 * stay where they come by.
 */
static MsgqOutcome
give_up_exhausted(Receiver *receiver, MsgqWalk *walk, int32 rolled_back)
{
	MsgqOutcome outcome;

	if (receiver->only_look || receiver->exhausted == MAX_GIVEN_UP)
		return MSGQ_HELD;
	outcome = give_up(receiver, walk, rolled_back, MSGQ_REASON_MAX_DELIVERIES);
	receiver->exhausted += outcome == MSGQ_DONE;
	return outcome;
}

/* And for one that has expired: nobody wants it any more. */
static MsgqOutcome
give_up_expired(Receiver *receiver, MsgqWalk *walk, int32 rolled_back)
{
	MsgqOutcome outcome;

	if (receiver->only_look || receiver->expired == MAX_GIVEN_UP)
		return MSGQ_GONE;
	outcome = give_up(receiver, walk, rolled_back, MSGQ_REASON_EXPIRED);
	receiver->expired += outcome == MSGQ_DONE;
	return outcome;
}

/* Tries to lease or remove the free message on which the walk stands. */
static MsgqOutcome
claim(Receiver *receiver, MsgqWalk *walk, int32 rolled_back)
{
	MsgqSegment *segment = walk->segment;
	MsgqSlot   *slot = receiver->storage->slot;
	int64		id = msgq_row_id(segment->row);
	MsgqOutcome outcome;
	MsgqChange	change = {
		.set_visible_at = !receiver->remove,
		.visible_at = receiver->lease_end,
		.lease = !receiver->remove,
		.leased_at = receiver->now,
		.more_deliveries = 1 + rolled_back,
		.more_failures = msgq_expired_leases(segment->row) + rolled_back,
	};

	outcome = receiver->remove ? msgq_walk_remove(walk, &change)
		: msgq_walk_claim(walk, &change);
	if (outcome == MSGQ_DONE)
	{
		if (receiver->remove)
			msgq_poison_popped(slot, id, rolled_back);
		else
			msgq_poison_entered(slot, id, rolled_back);
		receiver->failed += change.more_failures;
		receiver->rolled_back += rolled_back;
		msgq_wake_at_abort(slot, 1);
		deliver(receiver, segment->new_row);
	}
	return outcome;
}

/* Tries to remove it from a full queue. */
static MsgqOutcome
drop(Receiver *receiver, MsgqWalk *walk)
{
	MsgqOutcome outcome = msgq_drop_message(receiver->storage, walk,
											receiver->now);

	if (outcome == MSGQ_DONE)
	{
		receiver->taken++;
		receiver->wanted--;
	}
	return outcome;
}

/* There is something for a receive to do: enough for who only looks. */
static MsgqOutcome
found_one(Receiver *receiver)
{
	receiver->wanted = 0;
	return MSGQ_HELD;
}

/* What becomes of the free message on which the walk stands? */
static MsgqOutcome
take(Receiver *receiver, MsgqWalk *walk)
{
	TupleTableSlot *row = walk->segment->row;
	int32		rolled_back;

	if (receiver->drop)
		return drop(receiver, walk);
	/* Others of its group may wait behind a message that is to be given up. */
	if (receiver->only_look && msgq_row_has_group(receiver->storage, row))
		return found_one(receiver);
	rolled_back = msgq_poison_failures(receiver->storage->slot,
									   msgq_row_id(row));
	if (msgq_is_expired(row, receiver->now))
		return give_up_expired(receiver, walk, rolled_back);
	if (msgq_is_exhausted(receiver->storage->queue, row,
						  msgq_expired_leases(row) + rolled_back))
		return give_up_exhausted(receiver, walk, rolled_back);
	if (receiver->only_look)
		return found_one(receiver);
	return claim(receiver, walk, rolled_back);
}

/*
 * Takes the first messages of a free group; the message on which the walk
 * stands is one of it.
 */
static MsgqOutcome
take_members(Receiver *receiver, MsgqWalk *walk, MsgqGroup *group)
{
	MsgqOutcome outcome = MSGQ_DONE;

	for (int i = 0; i < group->nfree && receiver->wanted > 0 &&
		 outcome == MSGQ_DONE; i++)
	{
		MsgqWalk	member = {.segment = msgq_group_fetch(group, i)};

		outcome = take(receiver, &member);
		walk->open_xid = member.open_xid;
		walk->is_claim = member.is_claim;
		if (outcome != MSGQ_DONE && i > 0)
			outcome = MSGQ_GONE;
		else if (outcome == MSGQ_GONE)
			outcome = MSGQ_HELD;
	}
	return outcome;
}

/*
 * The same for the group with this key, if it is free.  own_xid has written
 * the message on which the walk stands, if it is ours and not committed.
 */
static MsgqOutcome
take_if_free(Receiver *receiver, MsgqWalk *walk, Datum key,
			 TransactionId own_xid)
{
	MsgqGroup	group;
	MsgqGroupState state = msgq_group_open(&group, receiver->storage, key,
										   receiver->now, receiver->wanted,
										   receiver->only_look);
	MsgqOutcome outcome;

	walk->open_xid = group.open_xid;
	walk->is_claim = group.is_claim;
	if (state == MSGQ_GROUP_OPEN)
		return MSGQ_OPEN;
	if (state == MSGQ_GROUP_UNKNOWN)
		return MSGQ_HELD;
	if (!receiver->only_look && (state == MSGQ_GROUP_FREE || group.is_ours))
		msgq_segment_own(walk->segment, walk->order, walk->key);
	if (state != MSGQ_GROUP_FREE)
	{
		walk->open_xid = own_xid;
		walk->is_claim = false;
		return TransactionIdIsValid(own_xid) ? MSGQ_OPEN : MSGQ_GONE;
	}

	outcome = take_members(receiver, walk, &group);
	msgq_group_close(&group);
	return outcome;
}

/*
 * Tries to take the first messages of the group to which the free message
 * belongs on which the walk stands.  Where some were given up it is the turn
 * of those behind them.
 */
static MsgqOutcome
take_group(Receiver *receiver, MsgqWalk *walk)
{
	TupleTableSlot *row = walk->segment->row;
	TransactionId own_xid = msgq_row_own_xid(row);
	Datum		key = msgq_row_group(row);
	MsgqOutcome outcome;
	int			before;

	do
	{
		before = receiver->exhausted + receiver->expired;
		outcome = take_if_free(receiver, walk, key, own_xid);
	} while (outcome == MSGQ_DONE && receiver->wanted > 0 &&
			 receiver->exhausted + receiver->expired > before);
	pfree(DatumGetPointer(key));
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

	msgq_visit_begin(visit, low);
	while (receiver->wanted > 0 && (more = msgq_walk_next(walk)))
	{
		MsgqOutcome outcome = MSGQ_OPEN;

		if (!TransactionIdIsValid(walk->open_xid))
			outcome = msgq_row_has_group(receiver->storage, segment->row) ?
				take_group(receiver, walk) : take(receiver, walk);
		if (outcome == MSGQ_OPEN)
			msgq_visit_met_open(visit, walk->open_xid, walk->key,
								walk->is_claim);
		else if (outcome == MSGQ_HELD)
			msgq_visit_met_unknown(visit, walk->key);
		visit->reached = next_key(order, walk->key);
	}
	if (!more)
		visit->reached = high == PG_INT64_MAX ? high : high + 1;
	entries = walk->entries;
	msgq_walk_end(walk);
	msgq_point(MSGQ_POINT_RECEIVE_WALKED);
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
visit_exceptions(Receiver *receiver, MsgqSegment *segment,
				 MsgqFrontierRef frontier, const MsgqView *view, int64 end)
{
	for (int i = 0; i < view->nended && receiver->wanted > 0; i++)
	{
		const MsgqException *ended = &view->ended[i];
		MsgqVisit	visit;

		(void) visit_range(receiver, segment, frontier.order, ended->low,
						   Min(ended->high, end), &visit);
		msgq_frontier_visited(frontier, ended, &visit);
	}
}

/* What was due before this time, which is now or earlier. */
static void
take_due(Receiver *receiver, MsgqSegment *segment, TimestampTz before)
{
	int64		end = before - 1;
	int64		entries;
	MsgqView	view;
	MsgqVisit	visit;

	msgq_frontier_view_due(segment->due, receiver->now, &view);
	visit_exceptions(receiver, segment, segment->due, &view, end);
	if (receiver->wanted == 0)
		return;
	entries = visit_range(receiver, segment, MSGQ_DUE, view.position, end,
						  &visit);
	msgq_frontier_advance(segment->due, &view, &visit,
						  msgq_frontier_due_limit(receiver->now));
	msgq_frontier_end_due(segment->due, receiver->now, entries,
						  before == receiver->now && visit.reached > end);
}

static void
take_ready(Receiver *receiver, MsgqSegment *segment)
{
	MsgqView	view;
	MsgqVisit	visit;

	msgq_frontier_view(segment->ready, &view);
	visit_exceptions(receiver, segment, segment->ready, &view, PG_INT64_MAX);
	if (receiver->wanted == 0)
		return;

	/* A horizon holds for ever; a new one is wanted to get there, or on. */
	if (view.position >= view.horizon)
		view.horizon = Max(view.horizon,
						   msgq_append_horizon(receiver->storage->queue->sequence,
											   receiver->storage->slot,
											   false));
	(void) visit_range(receiver, segment, MSGQ_READY, view.position,
					   PG_INT64_MAX, &visit);
	msgq_frontier_advance(segment->ready, &view, &visit,
						  next_key(MSGQ_READY, view.horizon));
}

static bool
has_given_up(const Receiver *receiver)
{
	return receiver->exhausted > 0 || receiver->expired > 0;
}

/* Counts what was taken. */
static void
report(Receiver *receiver)
{
	MsgqSlot   *slot = receiver->storage->slot;

	msgq_count(slot, MSGQ_DELIVERED, receiver->taken + receiver->rolled_back);
	msgq_count(slot, MSGQ_FAILED, receiver->failed);
	if (has_given_up(receiver))
		receiver->oldest_enqueued_at = DT_NOBEGIN;	/* that is no mere lease */
	if (receiver->taken == 0)
		return;
	msgq_count(slot, MSGQ_REDELIVERED, receiver->redelivered);
	if (receiver->remove)
		msgq_count(slot, MSGQ_ACKED, receiver->taken);
	else
		msgq_wake_for_due_time(slot, receiver->lease_end, receiver->now);
}

static void
take_due_from_level(Receiver *receiver, int level, TimestampTz before)
{
	MsgqStorage *storage = receiver->storage;

	for (int i = 0; i < storage->nsegments && receiver->wanted > 0; i++)
	{
		if (storage->segments[i]->level == level)
			take_due(receiver, storage->segments[i], before);
	}
}

/*
 * When the first message that is ready in an ordered queue was sent; now if
 * none is.
 */
static TimestampTz
first_ready_time(const Receiver *receiver)
{
	TimestampTz first = receiver->now;

	for (int i = 0; i < receiver->storage->nsegments; i++)
	{
		MsgqSegment *segment = receiver->storage->segments[i];
		MsgqView	view;
		MsgqWalk   *walk;
		bool		found;

		msgq_frontier_view(segment->ready, &view);
		walk = msgq_walk_begin(segment, MSGQ_READY, view.position, PG_INT64_MAX);
		while ((found = msgq_walk_next(walk)) &&
			   TransactionIdIsValid(walk->open_xid))
			;
		if (found)
			first = Min(first, msgq_row_time(segment->row,
											 Anum_segment_enqueued_at));
		msgq_walk_end(walk);
	}
	return first;
}

/*
 * First what is due, then what is ready.
 *
 * In an ordered queue a message becomes due when it is its turn in its group
 * (group.c).  If all that is due came first, groups that go on would keep
 * others from beginning.  So there it is the time from which on a message
 * could be had that counts.
 */
static void
take_from_level(Receiver *receiver, int level)
{
	MsgqStorage *storage = receiver->storage;
	TimestampTz before = receiver->now;

	if (storage->queue->ordered)
		before = first_ready_time(receiver);
	take_due_from_level(receiver, level, before);
	for (int i = 0; i < storage->nsegments && receiver->wanted > 0; i++)
	{
		if (storage->segments[i]->level == level)
			take_ready(receiver, storage->segments[i]);
	}
	if (before < receiver->now)
		take_due_from_level(receiver, level, receiver->now);
}

/* Looks through the open queue. */
static void
look_through(Receiver *receiver)
{
	MsgqStorage *storage = receiver->storage;

	if (!receiver->remove && !receiver->only_look)
		receiver->lease_end =
			msgq_time_after(receiver->now, receiver->timeout ?
							receiver->timeout :
							&storage->queue->visibility_timeout);
	for (int level = storage->queue->priorities - 1;
		 level >= 0 && receiver->wanted > 0; level--)
		take_from_level(receiver, level);
	report(receiver);
}

/*
 * Drops messages of one level of an open queue that are ready, the oldest ones
 * first; returns how many.
 */
int
msgq_drop_ready(MsgqStorage *storage, int level, int64 wanted,
				TimestampTz now)
{
	Receiver	receiver = {
		.storage = storage,
		.drop = true,
		.now = now,
		.wanted = Min(wanted, PG_INT32_MAX)
	};

	for (int i = 0; i < storage->nsegments && receiver.wanted > 0; i++)
	{
		if (storage->segments[i]->level == level)
			take_ready(&receiver, storage->segments[i]);
	}
	return receiver.taken;
}

/*
 * As many as the queue's limit on messages in flight allows.  A pop leaves
 * nothing in flight.
 */
static void
look_within_limit(Receiver *receiver)
{
	int			wanted = receiver->wanted;
	int			limit = receiver->storage->queue->max_in_flight;
	LOCKTAG		tag;
	int			room;

	/* Whoever is in the way there shall not be in the way of all others. */
	if (!receiver->only_look)
		(void) msgq_dead_letter_open(receiver->storage);
	msgq_queue_lock_tag(&tag, receiver->storage->queue->sequence,
						MSGQ_LOCK_IN_FLIGHT);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	receiver->now = msgq_now(); /* that may have taken its time */
	room = limit - msgq_count_in_flight(receiver->storage, receiver->now, limit);
	msgq_point(MSGQ_POINT_RECEIVE_COUNTED);
	receiver->wanted = Min(wanted, room);
	if (room > 0)
		look_through(receiver);
	receiver->wanted += Max(wanted - room, 0);
	(void) LockRelease(&tag, ExclusiveLock, false);
}

/* One look at the open queue, at the time of now. */
static void
take_messages(Receiver *receiver)
{
	const MsgqQueue *queue = receiver->storage->queue;

	receiver->now = msgq_now();
	if (queue->paused & MSGQ_PAUSED_RECEIVE)
		return;
	if (queue->max_in_flight > 0 && !receiver->remove)
		look_within_limit(receiver);
	else
		look_through(receiver);
}

/*
 * Is it time to look into drained segments?  The time is this backend's, for
 * each queue.
 */
static bool
wants_drained(const MsgqQueue *queue)
{
	typedef struct Looked
	{
		int32		queue_id;
		int64		at;			/* by msgq_ticks */
	} Looked;
	static HTAB *table = NULL;
	Looked	   *looked;
	int64		now;
	bool		found;

	if (queue->ndrained == 0)
		return false;
	now = msgq_ticks();
	if (table == NULL)
	{
		HASHCTL		control = {.keysize = sizeof(int32),.entrysize = sizeof(Looked)};

		table = hash_create("msgq drained", 16, &control, HASH_ELEM | HASH_BLOBS);
	}
	looked = hash_search(table, &queue->id, HASH_ENTER, &found);
	if (found && now - looked->at < DRAINED_INTERVAL)
		return false;
	looked->at = now;
	return true;
}

static void
open_storage(Receiver *receiver, MsgqWhich which)
{
	receiver->storage = msgq_storage_open(receiver->command, receiver->name,
										  MSGQ_RIGHT_RECEIVE, which);
	msgq_point(MSGQ_POINT_RECEIVE_OPENED);
}

/* Opens the queue and looks: leaves it open. */
static void
look(Receiver *receiver)
{
	int			wanted = receiver->wanted;

	open_storage(receiver, MSGQ_IN_USE);
	take_messages(receiver);
	while (receiver->storage->is_stale && receiver->wanted == wanted &&
		   !receiver->storage->is_changed)
	{
		msgq_storage_let_go(receiver->storage);
		open_storage(receiver, MSGQ_IN_USE);
		take_messages(receiver);
	}
	if (receiver->wanted < wanted || receiver->storage->is_changed ||
		!wants_drained(receiver->storage->queue))
		return;
	msgq_storage_let_go(receiver->storage);
	open_storage(receiver, MSGQ_ALL);
	take_messages(receiver);
}

/* ---------------------------------------------------------------------------
 * Waiting
 * ---------------------------------------------------------------------------
 */

/* For what one look leaves, so that a long wait does not pile it up. */
static MemoryContext
look_context(void)
{
	return AllocSetContextCreate(CurrentMemoryContext, "msgq look",
								 ALLOCSET_DEFAULT_SIZES);
}

/*
 * The earliest due time after the receiver's look, or a time before which
 * there is none: where much is dead, it does not look far.
 */
static TimestampTz
next_due_time(const Receiver *receiver)
{
	const MsgqStorage *storage = receiver->storage;
	TimestampTz earliest = DT_NOEND - 1;

	for (int i = 0; i < storage->nsegments; i++)
		earliest = Min(earliest,
					   msgq_segment_next_due(storage->segments[i],
											 receiver->now, DUE_LOOKAHEAD));
	/* What is due at a time can be had just after it. */
	return earliest + 1;
}

/*
 * Looks until something was found or the deadline has passed, and leaves the
 * queue open.
 */
static void
look_until(Receiver *receiver, int64 deadline)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = look_context();
	int			wanted = receiver->wanted;
	bool		slept = false;
	bool		told = false;

	for (;;)
	{
		MsgqSlot   *slot;
		TimestampTz now;
		TimestampTz due;
		TimestampTz end;
		TimestampTz until;

		MemoryContextReset(context);
		MemoryContextSwitchTo(context);
		look(receiver);
		MemoryContextSwitchTo(caller);
		slot = receiver->storage->slot;
		msgq_wait_looked(slot);
		if (receiver->wanted < wanted || receiver->storage->is_changed ||
			msgq_ticks() >= deadline)
			break;

		due = next_due_time(receiver);
		until = msgq_wait_poll_time(slot, receiver->now);
		msgq_wait_until_due(due, until);
		end = msgq_wait_deadline_time(deadline, receiver->now);
		until = Min(Min(end, due), until);
		/* A message may come late into a drained segment. */
		if (receiver->storage->queue->ndrained > 0)
			until = Min(until, receiver->now + DRAINED_INTERVAL);
		msgq_storage_let_go(receiver->storage);
		if (msgq_wait_register(slot))
		{
			/* Others know of us from now on: look once more. */
			msgq_point(MSGQ_POINT_WAIT_REGISTERED);
			continue;
		}
		msgq_point(MSGQ_POINT_WAIT_LOOKED);
		told = msgq_wait_sleep(until);
		now = msgq_now();
		told = told || now >= due || now < until;
		slept = true;
		msgq_wait_arm();
	}
	if (slept && receiver->wanted < wanted)
		msgq_wait_count(told);
	msgq_wait_end();
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
	Receiver	receiver = {
		.command = "msgq.receive()",
		.name = msgq_arg_name(fcinfo, 0, "queue"),
		.oldest_enqueued_at = DT_NOEND
	};
	Interval   *wait;

	receiver.wanted = msgq_arg_count(fcinfo, 1, "max_messages");
	if (!PG_ARGISNULL(2))
	{
		receiver.timeout = PG_GETARG_INTERVAL_P(2);
		msgq_check_interval(receiver.timeout, "visibility_timeout");
	}
	wait = DatumGetIntervalP(msgq_arg(fcinfo, 3, "wait"));
	msgq_check_interval(wait, "wait");

	begin_result(&receiver, fcinfo);
	msgq_lease_begin();
	look_until(&receiver, msgq_wait_deadline(wait));
	msgq_lease_end(receiver.oldest_enqueued_at);
	msgq_storage_close(receiver.storage);
	return (Datum) 0;
}

/* pop(queue, max_messages) */
PG_FUNCTION_INFO_V1(msgq_pop);
Datum
msgq_pop(PG_FUNCTION_ARGS)
{
	Receiver	receiver = {
		.command = "msgq.pop()",
		.name = msgq_arg_name(fcinfo, 0, "queue"),
		.remove = true
	};

	receiver.wanted = msgq_arg_count(fcinfo, 1, "max_messages");
	begin_result(&receiver, fcinfo);
	look(&receiver);
	msgq_storage_close(receiver.storage);
	return (Datum) 0;
}

/* ---------------------------------------------------------------------------
 * The procedure wait
 * ---------------------------------------------------------------------------
 */

/* One look at all queues of wait. */
typedef struct Watch
{
	int			n;
	char	  **names;
	int64		deadline;
	TimestampTz until;			/* when to look again */
	bool		armed;			/* all were registered before the look */
} Watch;

/* Looks at one queue; true if something can be had. */
static bool
watch_one(Watch *watch, const char *name)
{
	Receiver	receiver = {
		.command = "msgq.wait()",
		.name = name,
		.only_look = true,
		.wanted = 1
	};
	MsgqSlot   *slot;
	TimestampTz due;
	TimestampTz until;

	look(&receiver);
	slot = receiver.storage->slot;
	msgq_wait_looked(slot);
	due = next_due_time(&receiver);
	until = msgq_wait_poll_time(slot, receiver.now);
	msgq_wait_until_due(due, until);
	watch->until = Min(watch->until, Min(due, until));
	if (receiver.storage->queue->ndrained > 0)
		watch->until = Min(watch->until, receiver.now + DRAINED_INTERVAL);
	msgq_storage_let_go(receiver.storage);
	if (msgq_wait_register(slot))
		watch->armed = false;
	return receiver.wanted == 0;
}

/* Looks at all, in the order of the argument; the first one that has some. */
static char *
watch_all(Watch *watch)
{
	watch->until = msgq_wait_deadline_time(watch->deadline, msgq_now());
	watch->armed = true;
	for (int i = 0; i < watch->n; i++)
	{
		if (watch_one(watch, watch->names[i]))
			return watch->names[i];
	}
	return NULL;
}

/*
 * Looks and sleeps.  Each look is a transaction of its own; there is no
 * snapshot while we sleep.
 */
static char *
watch_until(Watch *watch)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = look_context();

	for (;;)
	{
		char	   *ready;

		PushActiveSnapshot(GetTransactionSnapshot());
		MemoryContextReset(context);
		MemoryContextSwitchTo(context);
		ready = watch_all(watch);
		MemoryContextSwitchTo(caller);
		PopActiveSnapshot();
		if (ready || msgq_ticks() >= watch->deadline)
			return ready;
		if (!watch->armed)
			continue;
		SPI_commit();
		(void) msgq_wait_sleep(watch->until);
		msgq_wait_arm();
	}
}

/* wait(queues, timeout, INOUT ready) */
PG_FUNCTION_INFO_V1(msgq_wait);
Datum
msgq_wait(PG_FUNCTION_ARGS)
{
	Watch		watch = {0};
	Datum	   *elements;
	Interval   *timeout;
	char	   *ready;
	TupleDesc	descriptor;
	Datum		value = (Datum) 0;
	bool		is_null;

	msgq_refuse_transaction_block(fcinfo, "msgq.wait()",
								  "It ends transactions while it waits, so that it holds no snapshot.",
								  "Call it outside of a transaction, or use msgq.receive() with wait.");
	elements = msgq_array_elements(DatumGetArrayTypeP(msgq_arg(fcinfo, 0, "queues")),
								   "queues", NULL, &watch.n);
	watch.names = palloc(sizeof(char *) * Max(watch.n, 1));
	for (int i = 0; i < watch.n; i++)
	{
		watch.names[i] = TextDatumGetCString(elements[i]);
		msgq_check_name(watch.names[i], "queues");
	}
	timeout = DatumGetIntervalP(msgq_arg(fcinfo, 1, "timeout"));
	msgq_check_interval(timeout, "timeout");
	watch.deadline = msgq_wait_deadline(timeout);

	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	ready = watch_until(&watch);
	msgq_wait_end();
	SPI_finish();

	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	is_null = ready == NULL;
	if (ready)
		value = CStringGetTextDatum(ready);
	return HeapTupleGetDatum(heap_form_tuple(descriptor, &value, &is_null));
}
