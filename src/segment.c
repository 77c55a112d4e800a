/*
 * segment.c
 *		The only file that touches the rows and index entries of messages.
 *
 * Inserting, claiming and settling go directly to the table and index access
 * methods.  The executor, which is not asked, would have checked and done
 * more; here is what becomes of each of its duties:
 *
 *	privileges			checked by msgq_queue_get, on the queue's handle
 *	read-only, standby	msgq_storage_open (25006)
 *	row security, triggers, rules, check constraints, NOT NULL, generated
 *	columns, more columns
 *						refused when the table is opened (storage.c)
 *	defaults, identity	all columns are given
 *	indexes				all maintained, also a user's, whose expressions run
 *						as the caller and may raise errors (23505)
 *	replica identity	is the primary key; CheckCmdReplicaIdentity asks
 *	locks				RowExclusiveLock on table and indexes, kept to the end
 *						of the transaction
 *	SERIALIZABLE		heap_update and heap_delete check for conflicts with
 *						those who have read the row by SQL; dirty walks leave
 *						no predicate locks
 *	statistics			counted by the access methods
 *
 * Walks.  A walk goes through one of two indexes with a dirty snapshot, which
 * shows what is committed at this instant and, marked with their xid, the
 * uncommitted rows and deletions of others.  It hides what we have deleted
 * ourselves; so every change first enters the row's key in the frontier.
 *
 * Claims do not wait.  heap_update is called with wait = false, so a row that
 * somebody took between our reading and our writing is simply not ours; the
 * buffer's pin, held by the slot, keeps the row at its place meanwhile.
 * There is no separate row lock, and no record of it in the log.
 *
 * Settlements wait.  The usual case needs no snapshot either: the row is
 * found with a dirty one, nobody else holds it, and it is changed.  If
 * somebody does, it is looked up with a fresh MVCC snapshot, which cannot miss
 * it between two of its versions; whoever is changing it is waited for; and
 * it is looked up again.  It is not locked meanwhile: a receipt that turns out
 * to be stale leaves nothing behind.
 *
 * src/segment.c
 */
#include "msgq.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "common/int.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "group.h"
#include "message.h"
#include "segment.h"
#include "table.h"

/* ---------------------------------------------------------------------------
 * Inserting
 * ---------------------------------------------------------------------------
 */

/* An entry in one of our indexes whose only column is this one. */
static void
insert_index_entry(MsgqSegment *segment, Relation index, IndexInfo *info,
				   TupleTableSlot *row, AttrNumber column,
				   IndexUniqueCheck check)
{
	bool		is_null;
	Datum		key = slot_getattr(row, column, &is_null);

	index_insert(index, &key, &is_null, &row->tts_tid, segment->table, check,
				 false, info);
}

/* An entry in the index that ordered queues have on the group. */
static void
insert_group_entry(MsgqSegment *segment, TupleTableSlot *row)
{
	Datum		keys[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS];

	keys[0] = slot_getattr(row, Anum_segment_group_key, &nulls[0]);
	keys[1] = slot_getattr(row, Anum_segment_leased_at, &nulls[1]);
	keys[2] = slot_getattr(row, Anum_segment_id, &nulls[2]);
	index_insert(segment->by_group, keys, nulls, &row->tts_tid, segment->table,
				 UNIQUE_CHECK_NO, false, segment->by_group_info);
}

/*
 * Index entries for a row that was stored just now.
 *
 * The executor does the work where the user has made indexes.  For our own
 * alone there is a shorter way.  A new version of a row has the id of
 * the old one, which we have replaced, so there is nothing to be checked in
 * the primary key.  Nor is it said there that the key has not changed: btree
 * would answer by looking for versions to delete before it splits a page,
 * which for messages that are about to be deleted costs more than the split
 * (0.8 of the rate of receive and ack, measured).
 */
static void
insert_index_entries(MsgqSegment *segment, TupleTableSlot *row,
					 bool is_update, MsgqIndexUpdate which)
{
	if (!segment->has_own_indexes_only)
	{
		msgq_exec_insert_index_tuples(segment->result, segment->estate, row,
									  is_update, which);
		ResetPerTupleExprContext(segment->estate);
		return;
	}
	if (which != MSGQ_ALL_INDEXES)
		return;
	insert_index_entry(segment, segment->by_id, segment->by_id_info, row,
					   Anum_segment_id,
					   is_update ? UNIQUE_CHECK_NO : UNIQUE_CHECK_YES);
	if (!msgq_row_is_null(row, Anum_segment_visible_at))
		insert_index_entry(segment, segment->by_due_time,
						   segment->by_due_time_info, row,
						   Anum_segment_visible_at, UNIQUE_CHECK_NO);
	if (segment->by_group && !msgq_row_is_null(row, Anum_segment_group_key))
		insert_group_entry(segment, row);
}

/* A row's index entries are in: somebody may have passed its place. */
static void
wrote_row(MsgqSegment *segment, TupleTableSlot *row)
{
	if (!msgq_row_is_null(row, Anum_segment_visible_at))
		msgq_frontier_wrote_due(segment->due,
								msgq_row_time(row, Anum_segment_visible_at));
}

/*
 * Stores n rows, whose slots have all columns set, between msgq_append_begin
 * and msgq_append_end.
 */
void
msgq_segment_insert(MsgqSegment *segment, TupleTableSlot **rows, int n)
{
	msgq_table_insert_rows(segment->table, rows, n);
	for (int i = 0; i < n; i++)
	{
		insert_index_entries(segment, rows[i], false, MSGQ_ALL_INDEXES);
		wrote_row(segment, rows[i]);
	}
}

/* ---------------------------------------------------------------------------
 * Changing and removing a row
 * ---------------------------------------------------------------------------
 */

/* The row's key in the order in which walks meet it. */
static MsgqOrder
order_of(TupleTableSlot *row, int64 *key)
{
	if (msgq_row_is_null(row, Anum_segment_visible_at))
	{
		*key = msgq_row_id(row);
		return MSGQ_READY;
	}
	*key = msgq_row_time(row, Anum_segment_visible_at);
	return MSGQ_DUE;
}

/*
 * Our transaction hides what has this key from our own walks, or has made us
 * pass it by: if it is undone, the key has to be visited again.
 */
void
msgq_segment_own(MsgqSegment *segment, MsgqOrder order, int64 key)
{
	msgq_frontier_own(order == MSGQ_READY ? segment->ready : segment->due,
					  key, key);
	segment->is_touched = true;
}

/* We are about to hide this row from our own walks. */
static void
own_row(MsgqSegment *segment)
{
	int64		key;
	MsgqOrder	order = order_of(segment->row, &key);

	msgq_segment_own(segment, order, key);
}

/* We are about to hide rows, and do not know which. */
void
msgq_segment_own_all(MsgqSegment *segment)
{
	msgq_frontier_own(segment->ready, PG_INT64_MIN + 1, PG_INT64_MAX);
	msgq_frontier_own(segment->due, PG_INT64_MIN + 1, PG_INT64_MAX);
	segment->is_touched = true;
}

/* A counter that stays at its highest value. */
static Datum
add_to_counter(Datum counter, int32 more)
{
	int32		sum;

	if (pg_add_s32_overflow(DatumGetInt32(counter), more, &sum))
		sum = PG_INT32_MAX;
	return Int32GetDatum(sum);
}

/* Fills new_row with the row as the change makes it. */
static void
make_new_row(MsgqSegment *segment, const MsgqChange *change)
{
	TupleTableSlot *row = segment->row;
	TupleTableSlot *new_row = segment->new_row;
	Datum	   *values = new_row->tts_values;
	bool	   *nulls = new_row->tts_isnull;

	ExecClearTuple(new_row);
	slot_getallattrs(row);
	memcpy(values, row->tts_values, sizeof(Datum) * Natts_segment);
	memcpy(nulls, row->tts_isnull, sizeof(bool) * Natts_segment);

	if (change->set_visible_at)
	{
		values[Anum_segment_visible_at - 1] =
			TimestampTzGetDatum(change->visible_at);
		nulls[Anum_segment_visible_at - 1] = false;
	}
	if (change->lease)
	{
		values[Anum_segment_leased_at - 1] =
			TimestampTzGetDatum(change->leased_at);
		nulls[Anum_segment_leased_at - 1] = false;
	}
	if (change->unlease)
		nulls[Anum_segment_leased_at - 1] = true;
	values[Anum_segment_deliveries - 1] =
		add_to_counter(values[Anum_segment_deliveries - 1],
					   change->more_deliveries);
	values[Anum_segment_failures - 1] =
		add_to_counter(values[Anum_segment_failures - 1],
					   change->more_failures);
	if (change->set_headers)
	{
		values[Anum_segment_headers - 1] = change->headers;
		nulls[Anum_segment_headers - 1] = false;
	}
	ExecStoreVirtualTuple(new_row);
}

static MsgqOutcome
outcome_of(TM_Result result)
{
	switch (result)
	{
		case TM_Ok:
			return MSGQ_DONE;
		case TM_BeingModified:
		case TM_WouldBlock:
			return MSGQ_HELD;
		default:
			return MSGQ_GONE;
	}
}

/*
 * Is the row in segment->row still the current version?  Then stores who is
 * changing it: invalid if nobody is, though it may be locked.
 */
static bool
is_current(MsgqSegment *segment, TransactionId *open_xid)
{
	SnapshotData dirty;

	InitDirtySnapshot(dirty);
	if (!table_tuple_satisfies_snapshot(segment->table, segment->row, &dirty))
		return false;
	*open_xid = dirty.xmax;
	return true;
}

/* Replaces the row that was found by its changed version, in new_row. */
static MsgqOutcome
change_row(MsgqSegment *segment, const MsgqChange *change, bool wait)
{
	MsgqIndexUpdate indexes;
	TM_FailureData failure;
	LockTupleMode lock_mode;
	TM_Result	result;

	own_row(segment);
	make_new_row(segment, change);
	result = table_tuple_update(segment->table, &segment->row->tts_tid,
								segment->new_row, GetCurrentCommandId(true),
								InvalidSnapshot, InvalidSnapshot, wait,
								&failure, &lock_mode, &indexes);
	if (result != TM_Ok)
		return outcome_of(result);
	segment->storage->is_changed = true;
	if (MSGQ_SOME_INDEX(indexes))
		insert_index_entries(segment, segment->new_row, true, indexes);
	if (change->set_visible_at)
		wrote_row(segment, segment->new_row);
	return MSGQ_DONE;
}

/* Removes it; whoever waits behind it in its group is told (group.c). */
static MsgqOutcome
remove_row(MsgqSegment *segment, bool wait)
{
	TM_FailureData failure;
	MsgqOutcome outcome;

	own_row(segment);
	outcome = outcome_of(table_tuple_delete(segment->table,
											&segment->row->tts_tid,
											GetCurrentCommandId(true),
											InvalidSnapshot, InvalidSnapshot,
											wait, &failure, false));
	if (outcome == MSGQ_DONE)
	{
		segment->storage->is_changed = true;
		msgq_group_note_end(segment->storage, segment->row);
	}
	return outcome;
}

/* ---------------------------------------------------------------------------
 * Walks
 * ---------------------------------------------------------------------------
 */

/*
 * Begins a walk over the keys from low to high, both included.  The caller
 * ends it before it begins another one in the same segment.
 */
MsgqWalk   *
msgq_walk_begin(MsgqSegment *segment, MsgqOrder order, int64 low, int64 high)
{
	MsgqWalk   *walk = palloc0(sizeof(MsgqWalk));
	Relation	index = order == MSGQ_READY ? segment->by_id : segment->by_due_time;
	RegProcedure at_least = order == MSGQ_READY ? F_INT8GE : F_TIMESTAMPTZ_GE;
	RegProcedure at_most = order == MSGQ_READY ? F_INT8LE : F_TIMESTAMPTZ_LE;
	ScanKeyData keys[2];

	walk->segment = segment;
	walk->order = order;
	walk->max_entries = PG_INT64_MAX;
	InitDirtySnapshot(walk->dirty);
	ScanKeyInit(&keys[0], 1, BTGreaterEqualStrategyNumber, at_least,
				Int64GetDatum(low));
	ScanKeyInit(&keys[1], 1, BTLessEqualStrategyNumber, at_most,
				Int64GetDatum(high));
	walk->scan = msgq_index_beginscan(segment->table, index, &walk->dirty, 2);
	index_rescan(walk->scan, keys, 2, NULL, 0);
	return walk;
}

/* Is the row that the walk has met one of those that it looks for? */
static bool
is_in_order(MsgqWalk *walk)
{
	return order_of(walk->segment->row, &walk->key) == walk->order;
}

/*
 * The next index entry, or the rest of the same one's chain of versions, as
 * index_getnext_slot has it, but for the counting of the dead.  False at the
 * end of the range, or of the walk's patience; else *visible tells whether
 * there is a row in segment->row.
 */
static bool
next_entry(MsgqWalk *walk, bool *visible)
{
	if (!walk->scan->xs_heap_continue)
	{
		if (walk->entries == walk->max_entries ||
			index_getnext_tid(walk->scan, ForwardScanDirection) == NULL)
			return false;
		walk->entries++;
	}
	*visible = index_fetch_heap(walk->scan, walk->segment->row);
	return true;
}

/*
 * The next row, in segment->row, with its key and with whoever holds it.
 * False at the end of the range, or after max_entries.
 */
bool
msgq_walk_next(MsgqWalk *walk)
{
	bool		visible;

	while (next_entry(walk, &visible))
	{
		CHECK_FOR_INTERRUPTS();
		if (!visible || !is_in_order(walk))
			continue;
		walk->is_claim = !TransactionIdIsValid(walk->dirty.xmin);
		walk->open_xid = walk->is_claim ? walk->dirty.xmax : walk->dirty.xmin;
		return true;
	}
	return false;
}

void
msgq_walk_end(MsgqWalk *walk)
{
	index_endscan(walk->scan);
	ExecClearTuple(walk->segment->row);
	pfree(walk);
}

/*
 * The earliest due time not before this one, of a row that anybody may see,
 * or, after so many index entries in vain, a time before which there is none.
 * DT_NOEND - 1 if there is none at all.
 */
TimestampTz
msgq_segment_next_due(MsgqSegment *segment, TimestampTz from, int max_entries)
{
	TimestampTz due = DT_NOEND - 1;
	bool		found = false;
	SnapshotData dirty;
	ScanKeyData key;
	IndexScanDesc scan;

	InitDirtySnapshot(dirty);
	ScanKeyInit(&key, 1, BTGreaterEqualStrategyNumber, F_TIMESTAMPTZ_GE,
				TimestampTzGetDatum(from));
	scan = msgq_index_beginscan(segment->table, segment->by_due_time, &dirty, 1);
	scan->xs_want_itup = true;	/* the key of a dead row is wanted as well */
	index_rescan(scan, &key, 1, NULL, 0);
	while (!found && index_getnext_tid(scan, ForwardScanDirection))
	{
		bool		is_null;

		CHECK_FOR_INTERRUPTS();
		found = index_fetch_heap(scan, segment->row) || --max_entries == 0;
		if (found)
			due = DatumGetTimestampTz(index_getattr(scan->xs_itup, 1,
													scan->xs_itupdesc, &is_null));
	}
	index_endscan(scan);
	ExecClearTuple(segment->row);
	return due;
}

/*
 * We met the row when it was free and did not get it: who has it?  A look at
 * the row as it is now tells, unless it is only locked.
 */
static MsgqOutcome
who_holds(MsgqWalk *walk)
{
	if (!is_current(walk->segment, &walk->open_xid))
		return MSGQ_GONE;
	walk->is_claim = true;
	return TransactionIdIsValid(walk->open_xid) ? MSGQ_OPEN : MSGQ_HELD;
}

/*
 * Changes the row that the walk stands on, without waiting.  Done: the new
 * version is in segment->new_row.  Open: walk->open_xid has it.
 */
MsgqOutcome
msgq_walk_claim(MsgqWalk *walk, const MsgqChange *change)
{
	MsgqOutcome outcome = change_row(walk->segment, change, false);

	return outcome == MSGQ_HELD ? who_holds(walk) : outcome;
}

/*
 * Removes the row that the walk stands on, likewise; segment->new_row is then
 * what the change would have made of it.
 */
MsgqOutcome
msgq_walk_remove(MsgqWalk *walk, const MsgqChange *change)
{
	MsgqOutcome outcome = msgq_segment_remove_changed(walk->segment, change);

	return outcome == MSGQ_HELD ? who_holds(walk) : outcome;
}

/* ---------------------------------------------------------------------------
 * Single rows, by id
 * ---------------------------------------------------------------------------
 */

static IndexScanDesc
begin_look_up(MsgqSegment *segment, Snapshot snapshot, int64 id)
{
	ScanKeyData key;
	IndexScanDesc scan;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(id));
	scan = msgq_index_beginscan(segment->table, segment->by_id, snapshot, 1);
	index_rescan(scan, &key, 1, NULL, 0);
	return scan;
}

/*
 * Finds the message, in segment->row, if it is there and no other transaction
 * is changing it.  False means nothing: ask msgq_segment_look_up.
 */
bool
msgq_segment_find(MsgqSegment *segment, int64 id)
{
	SnapshotData dirty;
	IndexScanDesc scan;
	bool		found = false;

	InitDirtySnapshot(dirty);
	scan = begin_look_up(segment, &dirty, id);
	while (!found && index_getnext_slot(scan, ForwardScanDirection, segment->row))
		found = !TransactionIdIsValid(dirty.xmin) &&
			!TransactionIdIsValid(dirty.xmax);
	index_endscan(scan);
	return found;
}

/*
 * Finds the message, in segment->row, as the active snapshot shows it: if that
 * is a fresh one, the version that is committed, whoever is changing it.
 */
bool
msgq_segment_look_up(MsgqSegment *segment, int64 id)
{
	IndexScanDesc scan = begin_look_up(segment, GetActiveSnapshot(), id);
	bool		found = index_getnext_slot(scan, ForwardScanDirection,
										   segment->row);

	index_endscan(scan);
	return found;
}

/*
 * Waits until no other open transaction is changing the row that was found.
 * True if it had to, or if the row was changed before: look it up again.
 */
bool
msgq_segment_wait(MsgqSegment *segment)
{
	TransactionId open_xid;

	if (!is_current(segment, &open_xid))
		return true;
	if (!TransactionIdIsValid(open_xid))
		return false;
	XactLockTableWait(open_xid, segment->table, &segment->row->tts_tid,
					  XLTW_Update);
	return true;
}

/*
 * Changes the row that was found.  Whoever asks not to wait can be sure that
 * the times in the change are still true when it is made.
 */
MsgqOutcome
msgq_segment_change(MsgqSegment *segment, const MsgqChange *change, bool wait)
{
	return change_row(segment, change, wait);
}

/* Removes it. */
MsgqOutcome
msgq_segment_remove(MsgqSegment *segment, bool wait)
{
	return remove_row(segment, wait);
}

/*
 * Removes it, without waiting; segment->new_row is then what the change would
 * have made of it.
 */
MsgqOutcome
msgq_segment_remove_changed(MsgqSegment *segment, const MsgqChange *change)
{
	MsgqOutcome outcome = remove_row(segment, false);

	if (outcome == MSGQ_DONE)
		make_new_row(segment, change);
	return outcome;
}

/* ---------------------------------------------------------------------------
 * The messages of a group
 * ---------------------------------------------------------------------------
 */

/*
 * Begins a scan of a group's messages in one segment of an ordered queue: the
 * leased ones first, then, unless only those are wanted, the others, by id.
 * Shows what the snapshot shows, or else, if it is NULL, what there is, with
 * what others have not committed.
 */
MsgqGroupScan *
msgq_group_scan_begin(MsgqSegment *segment, Datum key, Snapshot snapshot,
					  bool only_leased)
{
	MsgqGroupScan *scan = palloc0(sizeof(MsgqGroupScan));
	ScanKeyData keys[2];
	int			nkeys = only_leased ? 2 : 1;

	scan->segment = segment;
	scan->is_dirty = snapshot == NULL;
	InitDirtySnapshot(scan->dirty);
	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_TEXTEQ, key);
	ScanKeyEntryInitialize(&keys[1], SK_ISNULL | SK_SEARCHNOTNULL, 2,
						   InvalidStrategy, InvalidOid, InvalidOid,
						   InvalidOid, (Datum) 0);
	scan->scan = msgq_index_beginscan(segment->table, segment->by_group,
									  snapshot ? snapshot : &scan->dirty,
									  nkeys);
	index_rescan(scan->scan, keys, nkeys, NULL, 0);
	return scan;
}

/* The next one, in segment->row, and who is at it. */
bool
msgq_group_scan_next(MsgqGroupScan *scan)
{
	CHECK_FOR_INTERRUPTS();
	if (!index_getnext_slot(scan->scan, ForwardScanDirection,
							scan->segment->row))
		return false;
	if (scan->is_dirty)
	{
		scan->inserter = scan->dirty.xmin;
		scan->holder = scan->dirty.xmax;
	}
	else
		scan->is_current = is_current(scan->segment, &scan->holder);
	return true;
}

void
msgq_group_scan_end(MsgqGroupScan *scan)
{
	index_endscan(scan->scan);
	ExecClearTuple(scan->segment->row);
	pfree(scan);
}

/*
 * Fetches this version of a row into segment->row.  The caller has a snapshot
 * that shows it, or has written it himself, so it is there.
 */
bool
msgq_segment_fetch(MsgqSegment *segment, ItemPointer tid)
{
	return table_tuple_fetch_row_version(segment->table, tid, SnapshotAny,
										 segment->row);
}
