/*
 * frontier.c
 *		How far a backend has walked through a segment, so that it never walks
 *		over the same dead rows twice.
 *
 * The problem.  A consumed message leaves dead rows and dead index entries.
 * While any old snapshot exists vacuum cannot remove them, and a receive that
 * looks for the first message from the start of the index passes all of them,
 * more with each message, until the queue stands still.
 *
 * The answer.  Each backend keeps a frontier for each segment and each of the
 * two orders in which it looks for messages (MsgqOrder).  A frontier is a
 * position, below which there is nothing to be had, plus exceptions: ranges
 * of keys in which something may still appear, with the transaction that it
 * depends on.  It is a snapshot, in the space of keys.  A receive visits the
 * exceptions whose transaction has ended, and then walks on from the
 * position.
 *
 * It is a hint in the sense that it can be thrown away at any time, at the
 * price of one long walk.  It is not a hint in the other direction: a
 * position that is too high loses a message, for this backend.  So:
 *
 * 1. Walks use a dirty snapshot (segment.c).  They see the rows that other
 *    open transactions insert and claim, and whose they are; those become
 *    exceptions, in msgq_visit_met_open.  An open insert matters when it
 *    commits, an open claim when it aborts: both when the transaction ends,
 *    so it does not matter which.  The transaction may be a subtransaction.
 *    Prepared ones are open.
 *
 * 2. A dirty snapshot hides what our own transaction has claimed or removed.
 *    If that is rolled back, it is there again.  So segment.c enters every
 *    row that it is about to change (msgq_frontier_own), with the nesting
 *    level of the subtransaction.  When a subtransaction commits its ranges
 *    become its parent's; when one aborts they become exceptions that have
 *    ended; at the commit of the whole they are forgotten; at PREPARE they
 *    become exceptions of the transaction, which is a stranger's from then
 *    on.
 *
 * 3. A row that is held by somebody who cannot be told stops the frontier,
 *    not the walk (msgq_visit_met_unknown).
 *
 * 4. A sender has its id before its row is in the index.  The frontier of the
 *    ready walk never passes the horizon, up to which no id is on its way
 *    (msgq_append_horizon in segment.c).
 *
 * 5. A visit collects what it finds in a MsgqVisit and changes nothing.  What
 *    it found takes effect at its end, in one step that cannot fail.  After a
 *    cancel or an error in between, the frontier is the older, slower one;
 *    claims that were made meanwhile are rolled back, and rule 2 covers them.
 *
 * 6. An exception goes only after all of its range was visited.  If there are
 *    too many, the position goes back to the lowest key of the one that finds
 *    no room.  Slow is allowed, lost is not.
 *
 * What a clock can do.  Ids grow; due times do not.  A new due time is the
 * writer's clock or later, but between reading the clock and entering the key
 * into the index some time passes, and clocks are set back.  So the frontier
 * of the due walk keeps DUE_MARGIN away from now, starts from the beginning
 * when the clock has gone back, and starts from the beginning anyhow at
 * intervals that are long compared with what that costs (RESCAN_*).  A
 * message that becomes due behind the frontier is late by at most such an
 * interval.
 *
 * All of this is one backend's own memory: no locks.  The callbacks at the
 * end of a transaction do not allocate and cannot fail.
 *
 * src/frontier.c
 */
#include "msgq.h"

#include "access/transam.h"
#include "access/xact.h"
#include "storage/procarray.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "frontier.h"

/* How close to now the frontier of the due walk may come. */
#define DUE_MARGIN			(10 * INT64CONST(1000))

/*
 * Time from the end of one walk over everything that is due to the next: so
 * long that at most about one part in a hundred is spent on them.
 */
#define RESCAN_INTERVAL		(1 * USECS_PER_SEC)
#define RESCAN_PER_ENTRY	100 /* microseconds */
#define RESCAN_MAX_INTERVAL	(60 * USECS_PER_SEC)

/* More segments than this, and all are forgotten, to be walked anew. */
#define MAX_SEGMENTS		1024

/*
 * An OID can be used again after its table was dropped; the time at which
 * its queue was made cannot.
 */
typedef struct FrontierKey
{
	Oid			segment;
	MsgqOrder	order;
	TimestampTz created_at;
} FrontierKey;

typedef struct FrontierEntry
{
	FrontierKey key;
	MsgqFrontier *frontier;
} FrontierEntry;

static HTAB *frontiers = NULL;

/* Frontiers in which the current transaction has ranges of its own. */
static slist_head owned = SLIST_STATIC_INIT(owned);

static void
create_table(void)
{
	HASHCTL		control = {
		.keysize = sizeof(FrontierKey),
		.entrysize = sizeof(FrontierEntry),
		.hcxt = TopMemoryContext,
	};

	control.hcxt = AllocSetContextCreate(TopMemoryContext, "msgq frontiers",
										 ALLOCSET_DEFAULT_SIZES);
	frontiers = hash_create("msgq frontiers", 64, &control,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* Forgets all frontiers but those that the current transaction depends on. */
static void
forget_some(void)
{
	HASH_SEQ_STATUS status;
	FrontierEntry *entry;

	hash_seq_init(&status, frontiers);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		if (entry->frontier->nown > 0)
			continue;
		if (entry->frontier->own)
			pfree(entry->frontier->own);
		pfree(entry->frontier);
		(void) hash_search(frontiers, &entry->key, HASH_REMOVE, NULL);
	}
}

/*
 * The frontier of a segment in one order; a new one begins at the start.
 * Valid until the end of the current call.
 */
MsgqFrontier *
msgq_frontier_get(Oid segment, TimestampTz created_at, MsgqOrder order)
{
	FrontierKey key;
	FrontierEntry *entry;
	MsgqFrontier *frontier;

	memset(&key, 0, sizeof(key));
	key.segment = segment;
	key.order = order;
	key.created_at = created_at;

	if (frontiers == NULL)
		create_table();
	entry = hash_search(frontiers, &key, HASH_FIND, NULL);
	if (entry)
		return entry->frontier;

	frontier = MemoryContextAllocZero(TopMemoryContext, sizeof(MsgqFrontier));
	frontier->position = PG_INT64_MIN;
	frontier->horizon = PG_INT64_MIN;
	entry = hash_search(frontiers, &key, HASH_ENTER, NULL);
	entry->frontier = frontier;
	return frontier;
}

/* ---------------------------------------------------------------------------
 * Exceptions
 * ---------------------------------------------------------------------------
 */

static bool
has_ended(const MsgqException *exception)
{
	return !TransactionIdIsValid(exception->xid) ||
		!TransactionIdIsInProgress(exception->xid);
}

/*
 * Adds a range to exceptions of which there are *n, to that of the same
 * transaction if there is one.  False if there is no room.
 */
static bool
add_exception(MsgqException *exceptions, int *n, TransactionId xid,
			  int64 low, int64 high)
{
	MsgqException *exception;

	for (int i = 0; i < *n; i++)
	{
		exception = &exceptions[i];
		if (exception->xid == xid)
		{
			exception->low = Min(exception->low, low);
			exception->high = Max(exception->high, high);
			return true;
		}
	}
	if (*n == MSGQ_MAX_EXCEPTIONS)
		return false;
	exception = &exceptions[(*n)++];
	exception->xid = xid;
	exception->low = low;
	exception->high = high;
	return true;
}

/* Enters a range; where there is no room, the frontier goes back before it. */
static void
except(MsgqFrontier *frontier, TransactionId xid, int64 low, int64 high)
{
	if (low >= frontier->position)
		return;					/* the walk will come by anyhow */
	if (!add_exception(frontier->exceptions, &frontier->nexceptions,
					   xid, low, high))
		frontier->position = low;
}

void
msgq_visit_begin(MsgqVisit *visit)
{
	visit->reached = PG_INT64_MIN;
	visit->stop = PG_INT64_MAX;
	visit->nexceptions = 0;
}

/* The visit has passed a row that depends on an open transaction. */
void
msgq_visit_met_open(MsgqVisit *visit, TransactionId xid, int64 key)
{
	if (!add_exception(visit->exceptions, &visit->nexceptions, xid, key, key))
		msgq_visit_met_unknown(visit, key);
}

/* The visit has passed a row, and nobody knows when to look again. */
void
msgq_visit_met_unknown(MsgqVisit *visit, int64 key)
{
	visit->stop = Min(visit->stop, key);
}

static int
compare_exceptions(const void *left, const void *right)
{
	const MsgqException *a = left;
	const MsgqException *b = right;

	return a->low < b->low ? -1 : a->low > b->low;
}

/*
 * Copies the exceptions whose transaction has ended, in rising order, to an
 * array of MSGQ_MAX_EXCEPTIONS.  Returns their number.
 */
int
msgq_frontier_ended(const MsgqFrontier *frontier, MsgqException *ended)
{
	int			n = 0;

	for (int i = 0; i < frontier->nexceptions; i++)
	{
		if (has_ended(&frontier->exceptions[i]))
			ended[n++] = frontier->exceptions[i];
	}
	qsort(ended, n, sizeof(MsgqException), compare_exceptions);
	return n;
}

/*
 * One of them was visited up to visit->reached.  What remains of it is entered
 * again, as ended.
 */
void
msgq_frontier_visited(MsgqFrontier *frontier, const MsgqException *visited,
					  const MsgqVisit *visit)
{
	int64		rest = Min(visit->reached, visit->stop);

	for (int i = 0; i < frontier->nexceptions; i++)
	{
		MsgqException *exception = &frontier->exceptions[i];

		/* If what remains of another one has joined it, it stays. */
		if (exception->xid == visited->xid &&
			exception->low == visited->low && exception->high == visited->high)
		{
			*exception = frontier->exceptions[--frontier->nexceptions];
			break;
		}
	}
	for (int i = 0; i < visit->nexceptions; i++)
		except(frontier, visit->exceptions[i].xid, visit->exceptions[i].low,
			   visit->exceptions[i].high);
	if (rest <= visited->high)
		except(frontier, InvalidTransactionId, rest, visited->high);
}

/*
 * The visit began at the position: moves it to where the visit got, but not
 * above limit or the visit's stop, and enters what it found below.
 */
void
msgq_frontier_advance(MsgqFrontier *frontier, const MsgqVisit *visit,
					  int64 limit)
{
	int64		position = Min(Min(visit->reached, visit->stop), limit);

	if (position <= frontier->position)
		return;
	frontier->position = position;
	for (int i = 0; i < visit->nexceptions; i++)
		except(frontier, visit->exceptions[i].xid, visit->exceptions[i].low,
			   visit->exceptions[i].high);
}

/* ---------------------------------------------------------------------------
 * The due walk and the clock
 * ---------------------------------------------------------------------------
 */

/*
 * Before a due walk at this time: starts from the beginning if it is time
 * to.  Returns the limit for msgq_frontier_advance.
 */
int64
msgq_frontier_begin_due(MsgqFrontier *frontier, TimestampTz now)
{
	if (now < frontier->last_walk ||
		(!frontier->rescanning && now >= frontier->rescan_at))
	{
		/* Exceptions are below any position, so the walk covers them. */
		frontier->position = PG_INT64_MIN;
		frontier->nexceptions = 0;
		frontier->rescanning = true;
		frontier->rescan_entries = 0;
	}
	frontier->last_walk = now;
	return now - DUE_MARGIN;
}

/*
 * After it: it has met so many index entries and, if complete, has come to
 * the end of what is due.
 */
void
msgq_frontier_end_due(MsgqFrontier *frontier, TimestampTz now, int64 entries,
					  bool complete)
{
	if (!frontier->rescanning)
		return;
	frontier->rescan_entries += entries;
	if (!complete)
		return;
	frontier->rescanning = false;
	frontier->rescan_at = now +
		Min(RESCAN_INTERVAL + RESCAN_PER_ENTRY * frontier->rescan_entries,
			RESCAN_MAX_INTERVAL);
}

/* ---------------------------------------------------------------------------
 * Our own transaction
 * ---------------------------------------------------------------------------
 */

static void
make_room_for_own(MsgqFrontier *frontier)
{
	int			room = frontier->own_room ? 2 * frontier->own_room : 4;

	if (frontier->nown < frontier->own_room)
		return;
	if (frontier->own)
		frontier->own = repalloc(frontier->own, sizeof(MsgqOwnRange) * room);
	else
		frontier->own = MemoryContextAlloc(TopMemoryContext,
										   sizeof(MsgqOwnRange) * room);
	frontier->own_room = room;
}

/*
 * The current subtransaction is about to claim or remove rows with keys of
 * this range.  Comes first, and may fail for want of memory; a range that was
 * entered in vain costs a visit at worst.
 */
void
msgq_frontier_own(MsgqFrontier *frontier, int64 low, int64 high)
{
	int			nest_level = GetCurrentTransactionNestLevel();
	MsgqOwnRange *last;

	if (frontier->nown > 0)
	{
		last = &frontier->own[frontier->nown - 1];
		if (last->nest_level == nest_level)
		{
			last->low = Min(last->low, low);
			last->high = Max(last->high, high);
			return;
		}
	}
	make_room_for_own(frontier);
	if (frontier->nown == 0)
		slist_push_head(&owned, &frontier->link);
	last = &frontier->own[frontier->nown++];
	last->nest_level = nest_level;
	last->low = low;
	last->high = high;
}

/* Forgets our ranges, after making them exceptions of xid if so wished. */
static void
disown_all(bool as_exceptions, TransactionId xid)
{
	while (!slist_is_empty(&owned))
	{
		MsgqFrontier *frontier = slist_container(MsgqFrontier, link,
												 slist_pop_head_node(&owned));

		for (int i = 0; as_exceptions && i < frontier->nown; i++)
			except(frontier, xid, frontier->own[i].low, frontier->own[i].high);
		frontier->nown = 0;
	}
}

/* Committed: what we claimed or removed is so. */
void
msgq_frontier_transaction_committed(void)
{
	disown_all(false, InvalidTransactionId);
	if (frontiers && hash_get_num_entries(frontiers) > MAX_SEGMENTS)
		forget_some();
}

/* Aborted: all of it is as it was. */
void
msgq_frontier_transaction_aborted(void)
{
	disown_all(true, InvalidTransactionId);
}

/*
 * About to be prepared: from then on it is not ours.  If preparing fails, the
 * transaction aborts, and the exceptions have ended.
 */
void
msgq_frontier_transaction_prepared(void)
{
	disown_all(true, GetTopTransactionIdIfAny());
}

/* Committed into its parent: its ranges are the parent's. */
void
msgq_frontier_subtransaction_committed(int nest_level)
{
	slist_iter	iter;

	slist_foreach(iter, &owned)
	{
		MsgqFrontier *frontier = slist_container(MsgqFrontier, link, iter.cur);
		MsgqOwnRange *last = &frontier->own[frontier->nown - 1];
		MsgqOwnRange *before = last - 1;

		if (last->nest_level != nest_level)
			continue;
		last->nest_level = nest_level - 1;
		if (frontier->nown > 1 && before->nest_level == nest_level - 1)
		{
			before->low = Min(before->low, last->low);
			before->high = Max(before->high, last->high);
			frontier->nown--;
		}
	}
}

/* Aborted: what it claimed or removed is as it was. */
void
msgq_frontier_subtransaction_aborted(int nest_level)
{
	slist_mutable_iter iter;

	slist_foreach_modify(iter, &owned)
	{
		MsgqFrontier *frontier = slist_container(MsgqFrontier, link, iter.cur);

		while (frontier->nown > 0 &&
			   frontier->own[frontier->nown - 1].nest_level >= nest_level)
		{
			MsgqOwnRange *last = &frontier->own[--frontier->nown];

			except(frontier, InvalidTransactionId, last->low, last->high);
		}
		if (frontier->nown == 0)
			slist_delete_current(&iter);
	}
}
