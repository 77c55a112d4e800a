/*
 * frontier.c
 *		How far anybody has walked through a segment, so that nobody walks
 *		over the same dead rows twice.
 *
 * The problem.  A consumed message leaves dead rows and dead index entries.
 * While any old snapshot exists vacuum cannot remove them, and a receive that
 * looks for the first message from the start of the index passes all of them,
 * more with each message, until the queue stands still.
 *
 * The answer.  There is a frontier for each segment and each of the two
 * orders in which messages are looked for (MsgqOrder).  A frontier is a
 * position, below which there is nothing to be had, plus exceptions: ranges
 * of keys in which something may still appear, with the transaction that it
 * depends on.  It is a snapshot, in the space of keys.  A receive visits the
 * exceptions whose transaction has ended, and then walks on from the
 * position.
 *
 * It lies in the queue's slot in shared memory (shared.c), or, where there is
 * none, in the backend; the code is the same.  It is a hint in the sense that
 * it can be thrown away at any time, at the price of one long walk.  It is
 * not a hint in the other direction: a position that is too high loses a
 * message until the audit finds it (ring.c).  So:
 *
 * 1. Walks use a dirty snapshot (segment.c).  They see the rows that other
 *    open transactions insert and claim, and whose they are; those become
 *    exceptions, in msgq_visit_met_open.  An open insert matters when it
 *    commits, an open claim when it aborts.  The transaction may be a
 *    subtransaction.  Prepared ones are open.
 *
 * 2. A dirty snapshot hides what our own transaction has claimed or removed.
 *    If that is rolled back, it is there again.  So segment.c enters every
 *    row that it is about to change (msgq_frontier_own), with an xid that
 *    ends when and as the subtransaction does, and whenever we move a frontier, our ranges below it
 *    become exceptions under that xid.  That covers all ends which the
 *    transaction can take: for a rollback, also to a savepoint, they are
 *    ranges whose transaction has ended; at PREPARE they are a stranger's.
 *    After a commit there is nothing to be found in them, and we take out
 *    what is ours.
 *
 * 3. A row that is held by somebody who cannot be told stops the frontier,
 *    not the walk (msgq_visit_met_unknown).
 *
 * 4. A sender has its id before its row is in the index.  The frontier of the
 *    ready walk never passes the horizon, up to which no id is on its way
 *    (msgq_append_horizon in storage.c).
 *
 * 5. A visit collects what it finds in a MsgqVisit and changes nothing.  What
 *    it found takes effect at its end, in one short section under the lock:
 *    the union of the exceptions, the maximum of the positions.  After a
 *    cancel or an error in between, the frontier is the older, slower one.
 *    Two visits to the same range do no harm: each of them enters what it
 *    has met.
 *
 * 6. An exception goes only after all of its range was visited.  If there are
 *    too many, the position goes back to the lowest key of the one that finds
 *    no room.  Slow is allowed, lost is not.
 *
 * What a clock can do.  Ids grow; due times do not.  A new due time is the
 * writer's clock or later, but between reading the clock and entering the key
 * into the index some time passes.  So the frontier of the due walk keeps
 * DUE_MARGIN away from now, and a writer who finds that he was slower than
 * half of that takes the frontier back and counts a late key; a walk that
 * finds late keys counted since it began does not move the frontier.  What is
 * left is a clock that is set back, and, with frontiers in the backend, the
 * late keys of others: so the walk starts from the beginning when the clock
 * has gone back, and anyhow at intervals that are long compared with what
 * that costs (RESCAN_*).  A message that becomes due behind the frontier is
 * late by at most such an interval.
 *
 * Locks.  A frontier in shared memory is protected by its slot's lock, which
 * is held for the copying of one frontier, and under which no other lock is
 * taken.  What happens at the end of a transaction does not allocate and
 * cannot fail.
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
#include "testing.h"

/* How close to now the frontier of the due walk may come. */
#define DUE_MARGIN			(10 * INT64CONST(1000))

/* A clock that has gone back by more than this was set. */
#define CLOCK_TOLERANCE		USECS_PER_SEC

/*
 * Time from the end of one walk over everything that is due to the next: so
 * long that at most about one part in a hundred is spent on them.
 */
#define RESCAN_INTERVAL		(1 * USECS_PER_SEC)
#define RESCAN_PER_ENTRY	100 /* microseconds */
#define RESCAN_MAX_INTERVAL	(60 * USECS_PER_SEC)

/* More segments than this, and all are forgotten, to be walked anew. */
#define MAX_LOCAL_SEGMENTS	1024

/* A transaction that began so many xids ago has ended. */
#define LONG_AGO			(UINT64CONST(1) << 30)

/*
 * An OID can be used again after its table was dropped; the time at which
 * its queue was made cannot.
 */
typedef struct LocalKey
{
	Oid			segment;
	MsgqOrder	order;
	TimestampTz created_at;
} LocalKey;

typedef struct LocalEntry
{
	LocalKey	key;
	MsgqFrontier *frontier;
} LocalEntry;

static HTAB *local_frontiers = NULL;

/* What the current transaction has claimed or removed. */
typedef struct OwnRange
{
	MsgqFrontierRef ref;
	FullTransactionId xid;
	int			nest_level;		/* of the subtransaction, or what it is in */
	bool		entered;		/* as an exception */
	int64		low;
	int64		high;
} OwnRange;

static OwnRange *own = NULL;
static int	nown = 0;
static int	own_room = 0;

/* ---------------------------------------------------------------------------
 * Frontiers in the backend
 * ---------------------------------------------------------------------------
 */

/* Makes a frontier one of which nothing is known. */
void
msgq_frontier_start(MsgqFrontier *frontier)
{
	memset(frontier, 0, sizeof(MsgqFrontier));
	frontier->position = PG_INT64_MIN;
	frontier->horizon = PG_INT64_MIN;
}

static void
create_local_table(void)
{
	HASHCTL		control = {
		.keysize = sizeof(LocalKey),
		.entrysize = sizeof(LocalEntry),
		.hcxt = TopMemoryContext,
	};

	control.hcxt = AllocSetContextCreate(TopMemoryContext, "msgq frontiers",
										 ALLOCSET_DEFAULT_SIZES);
	local_frontiers = hash_create("msgq frontiers", 64, &control,
								  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* Between transactions nobody points at them. */
static void
forget_local_frontiers(void)
{
	HASH_SEQ_STATUS status;
	LocalEntry *entry;

	hash_seq_init(&status, local_frontiers);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		pfree(entry->frontier);
		(void) hash_search(local_frontiers, &entry->key, HASH_REMOVE, NULL);
	}
}

/*
 * The backend's own frontier of a segment in one order; a new one begins at
 * the start.  Valid until the end of the transaction.
 */
MsgqFrontierRef
msgq_frontier_local(Oid segment, TimestampTz created_at, MsgqOrder order)
{
	MsgqFrontierRef ref = {.segment = segment,.order = order};
	LocalKey	key;
	LocalEntry *entry;

	memset(&key, 0, sizeof(key));
	key.segment = segment;
	key.order = order;
	key.created_at = created_at;

	if (local_frontiers == NULL)
		create_local_table();
	entry = hash_search(local_frontiers, &key, HASH_FIND, NULL);
	if (entry == NULL)
	{
		MsgqFrontier *frontier = MemoryContextAlloc(TopMemoryContext,
													sizeof(MsgqFrontier));

		msgq_frontier_start(frontier);
		entry = hash_search(local_frontiers, &key, HASH_ENTER, NULL);
		entry->frontier = frontier;
	}
	ref.frontier = entry->frontier;
	return ref;
}

/* ---------------------------------------------------------------------------
 * Locking
 * ---------------------------------------------------------------------------
 */

static void
lock_frontier(MsgqFrontierRef ref, LWLockMode mode)
{
	if (ref.lock)
		LWLockAcquire(ref.lock, mode);
}

static void
unlock_frontier(MsgqFrontierRef ref)
{
	if (ref.lock)
		LWLockRelease(ref.lock);
}

/* ---------------------------------------------------------------------------
 * Exceptions
 * ---------------------------------------------------------------------------
 */

/*
 * Xids in shared memory outlive the 32 bits that rows have.  One that was
 * met in progress, or is ours, is not far behind the next one.
 */
static FullTransactionId
widen(TransactionId xid, FullTransactionId next)
{
	uint32		epoch = EpochFromFullTransactionId(next);

	if (xid > XidFromFullTransactionId(next))
		epoch--;
	return FullTransactionIdFromEpochAndXid(epoch, xid);
}

static bool
has_ended(const MsgqException *exception, FullTransactionId next)
{
	FullTransactionId xid = exception->xid;

	return !FullTransactionIdIsValid(xid) ||
		U64FromFullTransactionId(next) - U64FromFullTransactionId(xid) > LONG_AGO ||
		!TransactionIdIsInProgress(XidFromFullTransactionId(xid));
}

static bool
is_our_insert(const MsgqException *exception)
{
	return !exception->only_claims &&
		TransactionIdIsCurrentTransactionId(XidFromFullTransactionId(exception->xid));
}

/*
 * Enters a range below the position, into that of the same transaction if
 * there is one; where there is no room, the frontier goes back before it.
 * The caller holds the lock.
 */
static void
except(MsgqFrontier *frontier, FullTransactionId xid, int64 low, int64 high,
	   bool only_claims)
{
	MsgqException *exception;

	if (low >= frontier->position)
		return;					/* the walk will come by anyhow */
	for (int i = 0; i < frontier->nexceptions; i++)
	{
		exception = &frontier->exceptions[i];
		if (FullTransactionIdEquals(exception->xid, xid))
		{
			exception->low = Min(exception->low, low);
			exception->high = Max(exception->high, high);
			exception->only_claims &= only_claims;
			return;
		}
	}
	if (frontier->nexceptions == MSGQ_MAX_EXCEPTIONS)
	{
		frontier->position = low;
		return;
	}
	exception = &frontier->exceptions[frontier->nexceptions++];
	exception->xid = xid;
	exception->low = low;
	exception->high = high;
	exception->only_claims = only_claims;
}

void
msgq_visit_begin(MsgqVisit *visit, int64 low)
{
	visit->reached = low;
	visit->stop = PG_INT64_MAX;
	visit->nopen = 0;
}

/*
 * The visit has passed a row that an open transaction has claimed or removed,
 * or else has inserted.
 */
void
msgq_visit_met_open(MsgqVisit *visit, TransactionId xid, int64 key,
					bool is_claim)
{
	int			i;

	for (i = 0; i < visit->nopen; i++)
	{
		if (visit->open[i].xid == xid)
		{
			visit->open[i].low = Min(visit->open[i].low, key);
			visit->open[i].high = Max(visit->open[i].high, key);
			visit->open[i].only_claims &= is_claim;
			return;
		}
	}
	if (i == MSGQ_MAX_EXCEPTIONS)
	{
		msgq_visit_met_unknown(visit, key);
		return;
	}
	visit->open[i].xid = xid;
	visit->open[i].low = key;
	visit->open[i].high = key;
	visit->open[i].only_claims = is_claim;
	visit->nopen++;
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
 * Keeps of a view's exceptions those whose transaction has ended, and those
 * in which others have met what our own transaction has inserted: to us, it
 * is there.
 */
static void
keep_ended(MsgqView *view)
{
	FullTransactionId next;
	int			n = 0;

	if (view->nended == 0)
		return;
	next = ReadNextFullTransactionId();
	for (int i = 0; i < view->nended; i++)
	{
		if (has_ended(&view->ended[i], next) || is_our_insert(&view->ended[i]))
			view->ended[n++] = view->ended[i];
	}
	view->nended = n;
	qsort(view->ended, n, sizeof(MsgqException), compare_exceptions);
}

static void
copy_to_view(const MsgqFrontier *frontier, MsgqView *view)
{
	view->position = frontier->position;
	view->horizon = frontier->horizon;
	view->late_keys = frontier->late_keys;
	view->nended = frontier->nexceptions;
	memcpy(view->ended, frontier->exceptions,
		   sizeof(MsgqException) * frontier->nexceptions);
}

/* The frontier as it is now. */
void
msgq_frontier_view(MsgqFrontierRef ref, MsgqView *view)
{
	lock_frontier(ref, LW_SHARED);
	copy_to_view(ref.frontier, view);
	unlock_frontier(ref);
	keep_ended(view);
}

/*
 * Enters what a visit has met, and what our own transaction hides from it.
 * The caller holds the lock.
 */
static void
enter_open(MsgqFrontierRef ref, const MsgqVisit *visit, FullTransactionId next)
{
	for (int i = 0; i < visit->nopen; i++)
		except(ref.frontier, widen(visit->open[i].xid, next),
			   visit->open[i].low, visit->open[i].high,
			   visit->open[i].only_claims);
	for (int i = 0; i < nown; i++)
	{
		if (own[i].ref.segment != ref.segment ||
			own[i].ref.order != ref.order ||
			own[i].low >= ref.frontier->position)
			continue;
		except(ref.frontier, own[i].xid, own[i].low, own[i].high, true);
		own[i].entered = true;
	}
}

/*
 * An exception of a view was visited up to visit->reached.  What remains of
 * it is entered again, as ended.
 */
void
msgq_frontier_visited(MsgqFrontierRef ref, const MsgqException *visited,
					  const MsgqVisit *visit)
{
	MsgqFrontier *frontier = ref.frontier;
	FullTransactionId next = ReadNextFullTransactionId();
	int64		rest = Min(visit->reached, visit->stop);

	lock_frontier(ref, LW_EXCLUSIVE);
	for (int i = 0; i < frontier->nexceptions; i++)
	{
		MsgqException *exception = &frontier->exceptions[i];

		/* If what remains of another one has joined it, it stays. */
		if (FullTransactionIdEquals(exception->xid, visited->xid) &&
			exception->low == visited->low && exception->high == visited->high)
		{
			*exception = frontier->exceptions[--frontier->nexceptions];
			break;
		}
	}
	enter_open(ref, visit, next);
	if (rest <= visited->high)
		except(frontier, InvalidFullTransactionId, rest, visited->high, false);
	unlock_frontier(ref);
}

/*
 * The visit began at the view's position: moves the frontier to where the
 * visit got, but not above limit or the visit's stop, and enters what it
 * found below.
 *
 * If the frontier is ahead of the visit, others were faster.  If it has gone
 * back since, the visit says nothing about what lies between.
 */
void
msgq_frontier_advance(MsgqFrontierRef ref, const MsgqView *view,
					  const MsgqVisit *visit, int64 limit)
{
	MsgqFrontier *frontier = ref.frontier;
	FullTransactionId next;
	int64		position = Min(Min(visit->reached, visit->stop), limit);

	/* A poll that finds nothing has nothing to say. */
	if (position <= view->position && visit->nopen == 0 && nown == 0)
		return;
	next = ReadNextFullTransactionId();
	lock_frontier(ref, LW_EXCLUSIVE);
	frontier->horizon = Max(frontier->horizon, view->horizon);
	if (position > frontier->position &&
		frontier->position >= view->position &&
		frontier->late_keys == view->late_keys)
		frontier->position = position;
	enter_open(ref, visit, next);
	unlock_frontier(ref);
}

/*
 * A message with this key may be to be had when a transaction has ended that
 * nobody has met in a walk.
 */
void
msgq_frontier_expect(MsgqFrontierRef ref, TransactionId xid, int64 key)
{
	FullTransactionId next = ReadNextFullTransactionId();

	lock_frontier(ref, LW_EXCLUSIVE);
	except(ref.frontier, widen(xid, next), key, key, false);
	unlock_frontier(ref);
}

/* A copy of all of it, for the audit. */
void
msgq_frontier_copy(MsgqFrontierRef ref, MsgqFrontier *copy)
{
	lock_frontier(ref, LW_SHARED);
	*copy = *ref.frontier;
	unlock_frontier(ref);
}

/* Have keys been written behind the frontier since it was copied? */
bool
msgq_frontier_has_late_keys(MsgqFrontierRef ref, const MsgqFrontier *copy)
{
	MsgqFrontier now;

	msgq_frontier_copy(ref, &now);
	return now.late_keys != copy->late_keys;
}

/* Nothing is known any more: the next walk begins at the start. */
void
msgq_frontier_restart(MsgqFrontierRef ref)
{
	lock_frontier(ref, LW_EXCLUSIVE);
	ref.frontier->position = PG_INT64_MIN;
	ref.frontier->nexceptions = 0;
	unlock_frontier(ref);
}

/* ---------------------------------------------------------------------------
 * The due walk and the clock
 * ---------------------------------------------------------------------------
 */

static bool
wants_rescan(const MsgqFrontier *frontier, TimestampTz now)
{
	return now < frontier->last_walk - CLOCK_TOLERANCE ||
		(!frontier->rescanning && now >= frontier->rescan_at);
}

/* The frontier for a due walk at this time, from the start if need be. */
void
msgq_frontier_view_due(MsgqFrontierRef ref, TimestampTz now, MsgqView *view)
{
	MsgqFrontier *frontier = ref.frontier;
	bool		rescan;

	lock_frontier(ref, LW_SHARED);
	copy_to_view(frontier, view);
	rescan = wants_rescan(frontier, now);
	unlock_frontier(ref);

	if (rescan)
	{
		lock_frontier(ref, LW_EXCLUSIVE);
		if (wants_rescan(frontier, now))
		{
			/* Exceptions are below any position, so the walk covers them. */
			frontier->position = PG_INT64_MIN;
			frontier->nexceptions = 0;
			frontier->rescanning = true;
			frontier->rescan_entries = 0;
			frontier->last_walk = now;
		}
		copy_to_view(frontier, view);
		unlock_frontier(ref);
	}
	keep_ended(view);
}

/* The limit for msgq_frontier_advance after such a walk. */
int64
msgq_frontier_due_limit(TimestampTz now)
{
	return now - DUE_MARGIN;
}

/*
 * After it: it has met so many index entries and, if complete, has come to
 * the end of what is due.
 */
void
msgq_frontier_end_due(MsgqFrontierRef ref, TimestampTz now, int64 entries,
					  bool complete)
{
	MsgqFrontier *frontier = ref.frontier;

	/*
	 * Mostly there is nothing to be noted, which needs no lock: what is read
	 * here may be old, and then the next walk notes it.
	 */
	if (!frontier->rescanning &&
		now - frontier->last_walk < CLOCK_TOLERANCE / 10)
		return;
	lock_frontier(ref, LW_EXCLUSIVE);
	frontier->last_walk = Max(frontier->last_walk, now);
	if (frontier->rescanning)
	{
		frontier->rescan_entries += entries;
		if (complete)
		{
			frontier->rescanning = false;
			frontier->rescan_at = now +
				Min(RESCAN_INTERVAL + RESCAN_PER_ENTRY * frontier->rescan_entries,
					RESCAN_MAX_INTERVAL);
		}
	}
	unlock_frontier(ref);
}

/*
 * The index entry of a due time is in.  If that took long, walks may have
 * passed its place.
 */
void
msgq_frontier_wrote_due(MsgqFrontierRef ref, int64 key)
{
	if (key >= msgq_now() - DUE_MARGIN / 2)
		return;
	lock_frontier(ref, LW_EXCLUSIVE);
	ref.frontier->late_keys++;
	ref.frontier->position = Min(ref.frontier->position, key);
	unlock_frontier(ref);
}

/* ---------------------------------------------------------------------------
 * Our own transaction
 * ---------------------------------------------------------------------------
 */

/* Among the first n: the deepest levels come last. */
static OwnRange *
find_own(MsgqFrontierRef ref, int nest_level, int n)
{
	while (--n >= 0)
	{
		if (own[n].ref.segment == ref.segment &&
			own[n].ref.order == ref.order && own[n].nest_level == nest_level)
			return &own[n];
	}
	return NULL;
}

static void
widen_own(OwnRange *range, int64 low, int64 high)
{
	range->low = Min(range->low, low);
	range->high = Max(range->high, high);
}

/*
 * The current subtransaction is about to claim or remove rows with keys of
 * this range.  Comes first, and may fail for want of memory; a range that was
 * entered in vain costs a visit at worst.
 *
 * A range of this level may be under the xid of a subtransaction that has
 * committed into it: that xid ends when and as this one does.
 */
void
msgq_frontier_own(MsgqFrontierRef ref, int64 low, int64 high)
{
	int			nest_level = GetCurrentTransactionNestLevel();
	OwnRange   *range = find_own(ref, nest_level, nown);

	if (range)
	{
		widen_own(range, low, high);
		return;
	}
	own = msgq_make_room(own, nown, &own_room, sizeof(OwnRange));
	own[nown].ref = ref;
	own[nown].xid = GetCurrentFullTransactionId();
	own[nown].nest_level = nest_level;
	own[nown].entered = false;
	own[nown].low = low;
	own[nown].high = high;
	nown++;
}

/* What we have claimed is ours: nothing is to be found there. */
static void
take_out_own(const OwnRange *range)
{
	MsgqFrontier *frontier = range->ref.frontier;

	lock_frontier(range->ref, LW_EXCLUSIVE);
	for (int i = 0; i < frontier->nexceptions; i++)
	{
		MsgqException *exception = &frontier->exceptions[i];

		if (FullTransactionIdEquals(exception->xid, range->xid) &&
			exception->only_claims)
		{
			*exception = frontier->exceptions[--frontier->nexceptions];
			break;
		}
	}
	unlock_frontier(range->ref);
}

/*
 * Committed, or not: aborted or prepared.  The locks on the tables are still
 * held, so the frontiers are where they were.
 */
void
msgq_frontier_transaction_ended(bool committed)
{
	for (int i = 0; committed && i < nown; i++)
	{
		if (own[i].entered)
			take_out_own(&own[i]);
	}
	nown = 0;
	if (local_frontiers &&
		hash_get_num_entries(local_frontiers) > MAX_LOCAL_SEGMENTS)
		forget_local_frontiers();
}

/*
 * Committed into its parent: its ranges are the parent's, one for each
 * frontier and level, however many subtransactions there were.  What was
 * entered under its own xid stays, to be visited.
 */
void
msgq_frontier_subtransaction_committed(int nest_level)
{
	int			n = 0;

	for (int i = 0; i < nown; i++)
	{
		OwnRange   *parent = NULL;

		if (own[i].nest_level >= nest_level)
		{
			own[i].nest_level = nest_level - 1;
			parent = find_own(own[i].ref, nest_level - 1, n);
		}
		if (parent)
			widen_own(parent, own[i].low, own[i].high);
		else
			own[n++] = own[i];
	}
	nown = n;
}

/*
 * Aborted: what it claimed or removed is as it was.  Its exceptions stay, to
 * be visited.
 */
void
msgq_frontier_subtransaction_aborted(int nest_level)
{
	int			n = 0;

	for (int i = 0; i < nown; i++)
	{
		if (own[i].nest_level < nest_level)
			own[n++] = own[i];
	}
	nown = n;
}
