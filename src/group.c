/*
 * group.c
 *		Ordered queues: of each group one batch is in flight, and in order.
 *
 * The group of a message is its group_key.  In an ordered queue a message m
 * of a group may be taken only if
 *
 *	(a) no message of the group is in flight, by a lease that is committed or
 *		is some open transaction's, and
 *	(b) m is the head, the committed message of the group with the lowest id,
 *		or follows the head without a gap in what is taken with it, and
 *	(c) the head is ready or due.
 *
 * All segments are looked through for that, drained ones too, by the index on
 * (group_key, leased_at, id), where the leased messages of a group come first
 * and then the others by id.  A message whose sender has not committed does not
 * belong to the group yet.  Messages without a group go without any of this.
 *
 * Claiming (receive.c).  A walk, in either order, meets a message m:
 *
 *	1. A look at the leased ones with a dirty snapshot.  One that is in flight,
 *	   and that nobody is changing, blocks the group.  That is most of the
 *	   cases, and costs one look into an index.
 *	2. The group's lock, which is held until the claim is made, not until it
 *	   commits: from then on the claim shows to everybody's dirty snapshot.  It
 *	   is never waited for.  So claims of one group come one after the other.
 *	   The lock's tag has a hash of the key; groups that share it disturb each
 *	   other for some microseconds.
 *	3. Has the queue changed since it was opened?  Then there may be a segment
 *	   that we do not know of, and the queue is opened anew.  Whoever can have
 *	   put something there has waited for the end of the transaction that
 *	   turned the ring (ring.c), so we have heard of it.
 *	4. The look of 1 once more: it shows claims of messages that the claimer
 *	   has sent himself and not committed.
 *	5. A look with a new MVCC snapshot.  A dirty one is not one instant, and
 *	   could miss a message between two of its versions.  Each row that is
 *	   found has to be the current version still, or all begins again at 5.
 *	6. Leases that have run out are ended, so that their receipts are stale,
 *	   but for that of the head, which is taken.  If a consumer that is late
 *	   has come first and has the message, we give up.  Only the head has
 *	   failed: those behind it are taken back as by a nack of it.
 *	7. The head is taken, and what follows it.
 *
 * If m cannot be had:
 *
 *	- Leased: m is passed by, as if it were gone.  See below why that loses
 *	  nothing.
 *	- The head is not due yet: passed by as well.  The head is met when its
 *	  time has come.
 *	- It depends on an open transaction: an exception of the frontier, under
 *	  that xid, as for a row that it holds.  Where he has leased a message and
 *	  not settled it, there is nothing to be had if he commits; where he has
 *	  settled it since, there is, and he may not have seen m.
 *	- m is our own, not committed: an exception under our xid.  Nobody else
 *	  sees m, so nobody else puts it forward.
 *	- It depends on what our own transaction has done: passed by, and m's key
 *	  becomes a range of our own, to be visited if that is undone.
 *	- The lock was taken, or the rows changed: the frontier stops there.
 *
 * Passing by.  The frontiers know nothing of groups, so a message that was
 * passed by has to be put before them again: its visible_at is set to now,
 * where walks in due order meet it.  Whoever ends a delivery, or removes a
 * message, does that with the head of the group as it is then
 * (msgq_group_settle).  It is enough to do it with some message of the group:
 * whoever meets it takes the head.  Call a message findable if a walk will
 * meet it: it is ahead of the frontier of its order, or in an exception, or
 * due later.  What has to hold is this: as long as no message of a group is
 * in flight, one of them is findable.
 *
 * Why a message m that was passed by does not get lost.  The receiver first
 * sees m, and afterwards (t1) a message r in flight, whose row nobody is
 * changing.  That r stops being in flight:
 *
 *	- Somebody settles or removes r.  He changes the row, after t1, since it
 *	  was unchanged then, and afterwards takes a new snapshot, which shows m.
 *	  So he puts m, or some other message, before the frontiers, and commits
 *	  both together.  If he aborts, r is in flight as before.
 *	- The lease runs out.  Then r is due itself, at a time that no walk has
 *	  passed; whoever meets it takes the head.
 *	- A purge removes r.  It has waited for all others and removes m as well.
 *
 * If the receiver sees that r is being changed, he enters m as an exception,
 * which is visited when the transaction ends, whatever it did.
 *
 * Two who settle messages of one group at the same time.  Each sees what the
 * other has not committed as it was before; if each left it to the other,
 * nobody would do it.  So messages that another open transaction holds do not
 * count as being in flight.  Both change their rows first and look later, so
 * the one who looks last sees that the other holds his: he does it.  (If the
 * other one aborts it was in vain, and did no harm.)  The look goes through
 * the messages of the group:
 *
 *	- One is in flight and nobody holds it: nothing is to be done.  Whoever
 *	  ends that delivery comes later than we.
 *	- Else the one with the lowest id that nobody holds is made due, or will
 *	  be by itself.
 *	- One is held that would be free if its holder aborted (he cancels it, or
 *	  is late with a receipt), and there is none that is due now and nobody
 *	  holds: it becomes an exception of the frontier under his xid, so that
 *	  somebody comes by when he has ended.  That reaches only those who share
 *	  the frontier.  Where frontiers are the backends' own we wait for him, and
 *	  look again.  Not so if he also holds one that is in flight: if he aborts,
 *	  the group is in flight as before.  So those who settle messages of one
 *	  batch at the same time, of whom one has made the next one due, do not
 *	  wait for each other.
 *
 * Taking back.  Order has to survive that message k of a batch is given back
 * (nack, release, expire_lease): messages of the group with higher ids that are
 * in flight go back with it, so that their receipts are stale.  One that
 * another transaction holds is left to it: it is being settled.  For a batch of
 * receipts this is done at its end, so that the receipts of one call do not
 * make each other stale.
 *
 * Costs.  A claim reads the leased messages of the group and as many others
 * as it takes.  Dead index entries of the group lie before them; while an old
 * snapshot keeps vacuum from removing them, they are passed again, at most
 * those of the segments in use.  Blocked groups cost nothing once passed.
 *
 * Isolation.  All looks use new snapshots, at every level.  At SERIALIZABLE
 * they leave predicate locks, so a receive or a settlement can fail with
 * 40001.
 *
 * src/group.c
 */
#include "msgq.h"

#include "access/sysattr.h"
#include "access/xact.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "group.h"
#include "message.h"
#include "testing.h"
#include "wakeup.h"

/* What a look at a group is for. */
typedef enum LookFor
{
	FOR_CLAIM,					/* the leased ones, and some that can be taken */
	FOR_NEXT,					/* the leased ones, and the first that nobody
								 * holds */
	FOR_LEASED					/* the leased ones */
} LookFor;

/* A group some of whose messages were settled. */
typedef struct EndedGroup
{
	Datum		key;
	bool		is_return;		/* was this one given back: */
	int64		id;
	TimestampTz visible_at;
} EndedGroup;

typedef struct MsgqEnded
{
	int			n;
	int			room;
	EndedGroup *groups;
} MsgqEnded;

/* Is it a message to which all this applies? */
bool
msgq_row_has_group(const MsgqStorage *storage, TupleTableSlot *row)
{
	return storage->queue->ordered &&
		!msgq_row_is_null(row, Anum_segment_group_key);
}

/* The row's group_key, which outlives the row. */
Datum
msgq_row_group(TupleTableSlot *row)
{
	return PointerGetDatum(DatumGetTextPCopy(msgq_row_value(row,
															Anum_segment_group_key)));
}

/* ---------------------------------------------------------------------------
 * Looking at a group
 * ---------------------------------------------------------------------------
 */

static void
start(MsgqGroup *group, MsgqStorage *storage, Datum key, TimestampTz now)
{
	memset(group, 0, sizeof(MsgqGroup));
	group->storage = storage;
	group->key = key;
	group->now = now;
}

static void
pop_snapshot(MsgqGroup *group)
{
	if (group->has_snapshot)
		PopActiveSnapshot();
	group->has_snapshot = false;
}

static bool
is_due(TupleTableSlot *row, TimestampTz now)
{
	return msgq_row_is_null(row, Anum_segment_visible_at) ||
		msgq_row_time(row, Anum_segment_visible_at) < now;
}

/* The (sub)transaction of ours that has written the row; else invalid. */
TransactionId
msgq_row_own_xid(TupleTableSlot *row)
{
	bool		is_null;
	Datum		xmin = slot_getsysattr(row, MinTransactionIdAttributeNumber,
									   &is_null);
	TransactionId xid = DatumGetTransactionId(xmin);

	return TransactionIdIsCurrentTransactionId(xid) ? xid : InvalidTransactionId;
}

static bool
is_written_by_us(TupleTableSlot *row)
{
	return TransactionIdIsValid(msgq_row_own_xid(row));
}

static MsgqMember *
add_member(MsgqGroup *group, const MsgqGroupScan *scan)
{
	TupleTableSlot *row = scan->segment->row;
	MsgqMember *member;

	if (group->nmembers == group->room)
	{
		group->room = Max(16, group->room * 2);
		group->members = group->members ?
			repalloc(group->members, sizeof(MsgqMember) * group->room) :
			palloc(sizeof(MsgqMember) * group->room);
	}
	member = &group->members[group->nmembers++];
	member->segment = scan->segment;
	member->tid = row->tts_tid;
	member->id = msgq_row_id(row);
	member->is_leased = !msgq_row_is_null(row, Anum_segment_leased_at);
	member->is_due = is_due(row, group->now);
	member->is_ours = is_written_by_us(row);
	member->holder = scan->holder;
	return member;
}

static bool
is_in_flight(const MsgqMember *member)
{
	return member->is_leased && !member->is_due;
}

static bool
is_held(const MsgqMember *member)
{
	return TransactionIdIsValid(member->holder);
}

/* After this member, which is not leased, do we want more of the segment? */
static bool
wants_more(const MsgqMember *member, LookFor purpose, int *wanted)
{
	if (purpose == FOR_NEXT)
		return is_held(member);
	return member->is_due && !is_held(member) && --(*wanted) > 0;
}

/* False if a row has changed since the snapshot. */
static bool
read_segment(MsgqGroup *group, MsgqSegment *segment, LookFor purpose,
			 int wanted)
{
	MsgqGroupScan *scan = msgq_group_scan_begin(segment, group->key,
												GetActiveSnapshot(),
												purpose == FOR_LEASED);
	bool		more = true;
	bool		is_current = true;

	while (more && msgq_group_scan_next(scan))
	{
		MsgqMember *member;

		is_current = scan->is_current;
		if (!is_current)
			break;
		member = add_member(group, scan);
		if (!member->is_leased)
			more = wants_more(member, purpose, &wanted);
		else if (purpose != FOR_LEASED && is_in_flight(member) &&
				 !is_held(member))
		{
			group->is_in_flight = true;
			group->is_ours = member->is_ours;
			more = false;
		}
	}
	msgq_group_scan_end(scan);
	return is_current;
}

static int
compare_members(const void *left, const void *right)
{
	int64		a = ((const MsgqMember *) left)->id;
	int64		b = ((const MsgqMember *) right)->id;

	return a < b ? -1 : a > b;
}

/*
 * Reads the group, by a new snapshot that shows what we have done ourselves
 * and stays active.  False, without a snapshot, if a row has changed meanwhile.
 */
static bool
try_read_group(MsgqGroup *group, LookFor purpose, int wanted)
{
	group->nmembers = 0;
	group->is_in_flight = false;
	CommandCounterIncrement();
	PushActiveSnapshot(GetLatestSnapshot());
	group->has_snapshot = true;
	for (int i = 0; i < group->storage->nsegments && !group->is_in_flight; i++)
	{
		if (!read_segment(group, group->storage->segments[i], purpose, wanted))
		{
			pop_snapshot(group);
			return false;
		}
	}
	qsort(group->members, group->nmembers, sizeof(MsgqMember), compare_members);
	return true;
}

/* The same until it is done: each time around, somebody else has committed. */
static void
read_group(MsgqGroup *group, LookFor purpose, int wanted)
{
	while (!try_read_group(group, purpose, wanted))
		CHECK_FOR_INTERRUPTS();
}

/* ---------------------------------------------------------------------------
 * Claiming
 * ---------------------------------------------------------------------------
 */

static MsgqGroupState
depends_on(MsgqGroup *group, TransactionId xid, bool is_claim)
{
	group->open_xid = xid;
	group->is_claim = is_claim;
	return MSGQ_GROUP_OPEN;
}

/*
 * Has whoever wrote this version, and is open still, changed or removed it
 * again?  A dirty snapshot shows the version and does not say.
 */
static bool
is_changed_again(TupleTableSlot *row)
{
	bool		is_null;
	Datum		xmax = slot_getsysattr(row, MaxTransactionIdAttributeNumber,
									   &is_null);

	return TransactionIdIsValid(DatumGetTransactionId(xmax));
}

/* What the version of a leased message, committed or not, says of its group. */
static MsgqGroupState
state_by_leased(MsgqGroup *group, const MsgqGroupScan *scan)
{
	TupleTableSlot *row = scan->segment->row;
	bool		in_flight = !is_due(row, group->now);

	if (TransactionIdIsValid(scan->inserter))
		return depends_on(group, scan->inserter,
						  in_flight && !is_changed_again(row));
	if (TransactionIdIsValid(scan->holder))
		return depends_on(group, scan->holder, false);
	if (!in_flight)
		return MSGQ_GROUP_FREE;
	group->is_ours = is_written_by_us(row);
	return MSGQ_GROUP_LEASED;
}

/*
 * A look at the leased ones with a dirty snapshot.  Free only means that this
 * look has not found anything else.
 */
static MsgqGroupState
probe(MsgqGroup *group)
{
	MsgqGroupState state = MSGQ_GROUP_FREE;

	for (int i = 0; i < group->storage->nsegments && state == MSGQ_GROUP_FREE; i++)
	{
		MsgqGroupScan *scan = msgq_group_scan_begin(group->storage->segments[i],
													group->key, NULL, true);

		while (state == MSGQ_GROUP_FREE && msgq_group_scan_next(scan))
			state = state_by_leased(group, scan);
		msgq_group_scan_end(scan);
	}
	return state;
}

/* The members at the start that can be taken, and what keeps the first. */
static MsgqGroupState
judge_head(MsgqGroup *group, int wanted)
{
	MsgqMember *head = group->members;

	if (group->nmembers == 0)
		return MSGQ_GROUP_UNKNOWN;
	if (is_held(head))
		return depends_on(group, head->holder, false);
	if (!head->is_due)
	{
		group->is_ours = head->is_ours;
		return MSGQ_GROUP_DELAYED;
	}
	while (group->nfree < Min(group->nmembers, wanted) &&
		   head[group->nfree].is_due && !is_held(&head[group->nfree]))
		group->nfree++;
	return MSGQ_GROUP_FREE;
}

/* A look at the group with a snapshot, which stays if it is free. */
static MsgqGroupState
examine(MsgqGroup *group, int wanted)
{
	read_group(group, FOR_CLAIM, wanted);
	if (group->is_in_flight)
		return MSGQ_GROUP_LEASED;
	for (int i = 0; i < group->nmembers; i++)
	{
		if (group->members[i].is_leased && is_held(&group->members[i]))
			return depends_on(group, group->members[i].holder, false);
	}
	return judge_head(group, wanted);
}

/*
 * The class of the lock is the sequence, which is no catalog, so nobody else
 * has such a tag.
 */
static bool
lock_group(MsgqGroup *group)
{
	text	   *key = DatumGetTextPP(group->key);
	uint32		hash = hash_bytes((unsigned char *) VARDATA_ANY(key),
								  VARSIZE_ANY_EXHDR(key));

	SET_LOCKTAG_OBJECT(group->tag, MyDatabaseId,
					   group->storage->queue->sequence, hash, 0);
	group->is_locked = LockAcquire(&group->tag, ExclusiveLock, false,
								   true) != LOCKACQUIRE_NOT_AVAIL;
	return group->is_locked;
}

/*
 * Ends the leases that have run out, but for the head's, so that nobody can
 * come back to them when the group is somebody else's.
 */
static MsgqGroupState
end_old_leases(MsgqGroup *group)
{
	MsgqChange	change = {.set_visible_at = true,.unlease = true};
	bool		changed = false;

	for (int i = 1; i < group->nmembers; i++)
	{
		MsgqMember *member = &group->members[i];
		MsgqSegment *segment;

		if (!member->is_leased)
			continue;
		segment = msgq_group_fetch(group, i);
		change.visible_at = msgq_now();
		if (msgq_segment_change(segment, &change, false) != MSGQ_DONE)
			return MSGQ_GROUP_UNKNOWN;
		member->tid = segment->new_row->tts_tid;
		changed = true;
	}
	if (changed)
		CommandCounterIncrement();
	return MSGQ_GROUP_FREE;
}

/*
 * Looks at the group of a message that a walk has met.  If it is free, the
 * first group->nfree members can be taken, up to wanted, until
 * msgq_group_close: nobody else takes any.  Whoever will only look takes
 * none.
 */
MsgqGroupState
msgq_group_open(MsgqGroup *group, MsgqStorage *storage, Datum key,
				TimestampTz now, int wanted, bool only_look)
{
	MsgqGroupState state;

	start(group, storage, key, now);
	state = probe(group);
	if (state == MSGQ_GROUP_FREE && !only_look)
	{
		if (!lock_group(group))
			return MSGQ_GROUP_UNKNOWN;
		AcceptInvalidationMessages();
		storage->is_stale |= storage->generation != msgq_queue_generation();
		state = storage->is_stale ? MSGQ_GROUP_UNKNOWN : probe(group);
	}
	if (state == MSGQ_GROUP_FREE)
		state = examine(group, wanted);
	msgq_point(MSGQ_POINT_GROUP_EXAMINED);
	if (state == MSGQ_GROUP_FREE && !only_look)
		state = end_old_leases(group);
	if (state != MSGQ_GROUP_FREE)
		msgq_group_close(group);
	return state;
}

/* Puts member number i into its segment's row. */
MsgqSegment *
msgq_group_fetch(MsgqGroup *group, int i)
{
	MsgqMember *member = &group->members[i];

	if (!msgq_segment_fetch(member->segment, &member->tid))
		elog(ERROR, "found no row of message " INT64_FORMAT, member->id);
	return member->segment;
}

void
msgq_group_close(MsgqGroup *group)
{
	pop_snapshot(group);
	if (group->is_locked)
		(void) LockRelease(&group->tag, ExclusiveLock, false);
	group->is_locked = false;
	if (group->members)
		pfree(group->members);
	group->members = NULL;
}

/* ---------------------------------------------------------------------------
 * Settling
 * ---------------------------------------------------------------------------
 */

/* Remembers the group of the row until msgq_group_settle. */
static EndedGroup *
note(MsgqStorage *storage, TupleTableSlot *row)
{
	MemoryContext caller = MemoryContextSwitchTo(GetMemoryChunkContext(storage));
	MsgqEnded  *ended = storage->ended;
	EndedGroup *group;

	if (ended == NULL)
		ended = storage->ended = palloc0(sizeof(MsgqEnded));
	if (ended->n == ended->room)
	{
		ended->room = Max(8, ended->room * 2);
		ended->groups = ended->groups ?
			repalloc(ended->groups, sizeof(EndedGroup) * ended->room) :
			palloc(sizeof(EndedGroup) * ended->room);
	}
	group = &ended->groups[ended->n++];
	memset(group, 0, sizeof(EndedGroup));
	group->key = msgq_row_group(row);
	MemoryContextSwitchTo(caller);
	return group;
}

/* This row was removed. */
void
msgq_group_note_end(MsgqStorage *storage, TupleTableSlot *row)
{
	if (msgq_row_has_group(storage, row))
		(void) note(storage, row);
}

/* It was given back before it was done, and is visible again at this time. */
void
msgq_group_note_return(MsgqStorage *storage, TupleTableSlot *row,
					   TimestampTz visible_at)
{
	EndedGroup *group;

	if (!msgq_row_has_group(storage, row))
		return;
	group = note(storage, row);
	group->is_return = true;
	group->id = msgq_row_id(row);
	group->visible_at = visible_at;
}

/* By group, and then what was given back first, by id. */
static int
compare_ended(const void *left, const void *right)
{
	const EndedGroup *a = left;
	const EndedGroup *b = right;
	int			order = msgq_compare_texts(a->key, b->key);

	if (order != 0)
		return order;
	if (a->is_return != b->is_return)
		return a->is_return ? -1 : 1;
	return a->id < b->id ? -1 : a->id > b->id;
}

/* False if it has to be done again, since somebody else was faster. */
static bool
try_take_back(MsgqStorage *storage, const EndedGroup *ended)
{
	MsgqChange	change = {.set_visible_at = true,.unlease = true};
	bool		done = true;
	MsgqGroup	group;

	start(&group, storage, ended->key, msgq_now());
	read_group(&group, FOR_LEASED, 0);
	for (int i = 0; i < group.nmembers; i++)
	{
		MsgqMember *member = &group.members[i];

		if (!member->is_leased || member->id <= ended->id || is_held(member))
			continue;
		change.visible_at = Max(ended->visible_at, msgq_now());
		done &= msgq_segment_change(msgq_group_fetch(&group, i), &change,
									false) != MSGQ_GONE;
		/* That leaves flight, too. */
		if (storage->queue->max_in_flight > 0)
			msgq_wake_at_commit(storage->slot, 1);
	}
	msgq_group_close(&group);
	return done;
}

/* Makes the member due now; false if somebody else was faster. */
static bool
make_due(MsgqGroup *group, int i)
{
	MsgqChange	change = {.set_visible_at = true,.visible_at = msgq_now()};

	return msgq_segment_change(msgq_group_fetch(group, i), &change,
							   false) == MSGQ_DONE;
}

/*
 * The member is held.  Would it be free, with nothing of the group in flight, if
 * its holder aborted?
 */
static bool
is_doubtful(const MsgqGroup *group, const MsgqMember *member)
{
	for (int i = 0; i < group->nmembers; i++)
	{
		if (group->members[i].holder == member->holder &&
			is_in_flight(&group->members[i]))
			return false;
	}
	return member->is_due;
}

/*
 * Sees to it that the member is found if its holder aborts; false if we had to
 * wait for him, and have to look again.
 */
static bool
expect_holder(MsgqGroup *group, int i)
{
	MsgqMember *member = &group->members[i];
	MsgqSegment *segment = msgq_group_fetch(group, i);
	TupleTableSlot *row = segment->row;

	if (segment->ready.lock == NULL)
	{
		pop_snapshot(group);
		(void) msgq_segment_wait(segment);
		return false;
	}
	if (msgq_row_is_null(row, Anum_segment_visible_at))
		msgq_frontier_expect(segment->ready, member->holder, member->id);
	else
		msgq_frontier_expect(segment->due, member->holder,
							 msgq_row_time(row, Anum_segment_visible_at));
	return true;
}

/*
 * Sees to it that one of the group can be found; false if that has to be done
 * again.
 */
static bool
try_put_forward(MsgqStorage *storage, Datum key)
{
	MsgqGroup	group;
	int			first = -1;		/* that nobody holds */
	int			doubtful = -1;
	bool		done = true;

	start(&group, storage, key, msgq_now());
	read_group(&group, FOR_NEXT, 0);
	for (int i = group.nmembers - 1; i >= 0 && !group.is_in_flight; i--)
	{
		if (!is_held(&group.members[i]))
			first = i;
		else if (is_doubtful(&group, &group.members[i]))
			doubtful = i;
	}
	if (first >= 0 && group.members[first].is_due)
		done = make_due(&group, first);
	else if (doubtful >= 0)
		done = expect_holder(&group, doubtful);
	/* Also for what is sent from now on: while we are open, it has to wait. */
	if (done && !group.is_in_flight)
		msgq_wake_at_commit(storage->slot, 1);
	msgq_group_close(&group);
	return done;
}

static void
settle_group(MsgqStorage *storage, const EndedGroup *ended)
{
	while (ended->is_return && !try_take_back(storage, ended))
		CHECK_FOR_INTERRUPTS();
	while (!try_put_forward(storage, ended->key))
		CHECK_FOR_INTERRUPTS();
}

/*
 * Looks after the groups of the messages that were settled by means of this
 * storage.  It may be open only in part, or have changed since.
 */
void
msgq_group_settle(MsgqStorage *storage)
{
	MsgqEnded  *ended = storage->ended;
	MsgqStorage *whole = storage;

	if (ended == NULL)
		return;
	storage->ended = NULL;
	msgq_point(MSGQ_POINT_SETTLE_CHANGED);
	AcceptInvalidationMessages();
	if (storage->which != MSGQ_ALL ||
		storage->generation != msgq_queue_generation())
		whole = msgq_storage_open_again(storage, NULL, MSGQ_ALL);
	qsort(ended->groups, ended->n, sizeof(EndedGroup), compare_ended);
	for (int i = 0; i < ended->n; i++)
	{
		if (i == 0 ||
			msgq_compare_texts(ended->groups[i].key, ended->groups[i - 1].key) != 0)
			settle_group(whole, &ended->groups[i]);
	}
	if (whole != storage)
		msgq_storage_close(whole);
}
