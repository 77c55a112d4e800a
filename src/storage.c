/*
 * storage.c
 *		Opens the tables of a queue, and knows how far they are complete.
 *
 * Whoever works on messages opens the segments that he needs, in the order of
 * MsgqQueue, with RowExclusiveLock to the end of the transaction, and looks
 * the queue up again if it has changed meanwhile (queue.c).  A table to which
 * somebody has added what direct access would not honour is refused.
 *
 * In an ordered queue whoever receives or settles opens all segments, drained
 * ones too, since a group must be seen whole (group.c).  So that these can be
 * reclaimed nevertheless, their locks are given back when the call ends, if
 * nothing was found there.
 *
 * The append horizon is the id up to which all are in the index, or never
 * will be.  With shared memory, senders publish what they are about to append
 * (shared.c).  Without it, a sender holds the append lock of its queue in
 * shared mode from before it takes its first id until the index entries of
 * its last message are in.  A receiver that gets it in exclusive mode, even
 * for an instant, knows that all ids up to the sequence's value are in.  It
 * never waits for the lock: without a new horizon its frontier stays.
 * Senders wait for receivers for that instant only.  The lock is a
 * heavyweight one, so an error releases it.
 *
 * src/storage.c
 */
#include "msgq.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_index.h"
#include "commands/sequence.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/inval.h"
#include "utils/rel.h"

#include "group.h"
#include "message.h"
#include "owner.h"
#include "segment.h"
#include "testing.h"
#include "worker.h"

/* ---------------------------------------------------------------------------
 * Opening and closing
 * ---------------------------------------------------------------------------
 */

/*
 * What a user has added to a table of so many columns that direct access
 * would not honour, or NULL.
 */
const char *
msgq_foreign_feature(Relation table, int ncolumns)
{
	TupleDesc	descriptor = RelationGetDescr(table);

	if (table->trigdesc)
		return "a trigger";
	if (table->rd_rules)
		return "a rule";
	if (table->rd_rel->relrowsecurity)
		return "row security";
	if (descriptor->natts != ncolumns)
		return "additional columns";
	if (descriptor->constr && descriptor->constr->num_check > 0)
		return "a check constraint";
	return NULL;
}

/* The same for a segment, with what is done to its columns. */
static const char *
foreign_feature(Relation table)
{
	TupleDesc	descriptor = RelationGetDescr(table);
	const char *feature = msgq_foreign_feature(table, Natts_segment);

	if (feature)
		return feature;
	for (AttrNumber n = 1; n <= Natts_segment; n++)
	{
		Form_pg_attribute column = TupleDescAttr(descriptor, n - 1);
		bool		nullable = n == Anum_segment_visible_at ||
		n == Anum_segment_leased_at || n >= Anum_segment_expires_at;

		if (column->attisdropped || column->attgenerated)
			return "other columns";
		if (column->attnotnull && nullable)
			return "a not-null constraint";
	}
	return NULL;
}

static void
refuse_foreign_features(Relation table)
{
	const char *feature = foreign_feature(table);

	if (feature)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" cannot hold messages",
						RelationGetRelationName(table)),
				 errdetail("It has %s, which msgq would not honour.", feature),
				 errhint("Remove it from the table.")));
}

/* Does the predicate say only that this column is not null? */
static bool
is_not_null_predicate(const List *predicate, AttrNumber column)
{
	NullTest   *test;

	if (list_length(predicate) != 1 || !IsA(linitial(predicate), NullTest))
		return false;
	test = linitial_node(NullTest, predicate);
	return test->nulltesttype == IS_NOT_NULL && IsA(test->arg, Var) &&
		((Var *) test->arg)->varattno == column;
}

/* Does this index hold the due times, rising, of all rows that have one? */
static bool
is_due_index(Relation index, IndexInfo *info)
{
	if (index->rd_rel->relam != BTREE_AM_OID || !info->ii_ReadyForInserts ||
		!index->rd_index->indisvalid ||
		info->ii_NumIndexKeyAttrs != 1 ||
		info->ii_IndexAttrNumbers[0] != Anum_segment_visible_at ||
		index->rd_indoption[0] != 0)
		return false;
	return info->ii_Predicate == NIL ||
		is_not_null_predicate(info->ii_Predicate, Anum_segment_visible_at);
}

/* Is it the primary key that a segment is made with? */
static bool
is_id_index(Relation index, IndexInfo *info)
{
	return index->rd_index->indisprimary && info->ii_NumIndexKeyAttrs == 1 &&
		info->ii_IndexAttrNumbers[0] == Anum_segment_id;
}

/* Is it the index on the group that segments of ordered queues are made with? */
static bool
is_group_index(Relation index, IndexInfo *info)
{
	return index->rd_rel->relam == BTREE_AM_OID && info->ii_ReadyForInserts &&
		index->rd_index->indisvalid && !info->ii_Unique &&
		info->ii_NumIndexAttrs == 3 && info->ii_NumIndexKeyAttrs == 3 &&
		info->ii_IndexAttrNumbers[0] == Anum_segment_group_key &&
		info->ii_IndexAttrNumbers[1] == Anum_segment_leased_at &&
		info->ii_IndexAttrNumbers[2] == Anum_segment_id &&
		index->rd_indcollation[0] == C_COLLATION_OID &&
		index->rd_indoption[0] == 0 && index->rd_indoption[1] == 0 &&
		index->rd_indoption[2] == 0 &&
		is_not_null_predicate(info->ii_Predicate, Anum_segment_group_key);
}

/*
 * Are there just the indexes that a segment is made with, and did nobody
 * replace them by others that serve as well?
 */
static bool
has_own_indexes_only(MsgqSegment *segment)
{
	return segment->result->ri_NumIndices == (segment->by_group ? 3 : 2) &&
		segment->by_id_info->ii_NumIndexAttrs == 1 &&
		segment->by_due_time_info->ii_NumIndexAttrs == 1 &&
		segment->by_due_time_info->ii_Predicate != NIL &&
		!segment->by_due_time_info->ii_Unique;
}

static void
lacks_index(Relation table, const char *which)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table \"%s\" cannot hold messages",
					RelationGetRelationName(table)),
			 errdetail("It lacks %s.", which),
			 errhint("Restore the index, as the other segments have it.")));
}

/*
 * Sets by_id, by_due_time and, if the queue is ordered, by_group among the
 * indexes that are open.
 */
static void
find_indexes(MsgqSegment *segment, bool ordered)
{
	ResultRelInfo *result = segment->result;

	for (int i = 0; i < result->ri_NumIndices; i++)
	{
		Relation	index = result->ri_IndexRelationDescs[i];
		IndexInfo  *info = result->ri_IndexRelationInfo[i];

		if (is_id_index(index, info))
		{
			segment->by_id = index;
			segment->by_id_info = info;
		}
		else if (is_due_index(index, info))
		{
			segment->by_due_time = index;
			segment->by_due_time_info = info;
		}
		else if (ordered && is_group_index(index, info))
		{
			segment->by_group = index;
			segment->by_group_info = info;
		}
	}
	if (segment->by_id == NULL || segment->by_due_time == NULL)
		lacks_index(segment->table,
					"its primary key or the index on visible_at");
	if (ordered && segment->by_group == NULL)
		lacks_index(segment->table, "the index on group_key");
	segment->has_own_indexes_only = has_own_indexes_only(segment);
}

/* A table that is locked, with its indexes and slots. */
static MsgqSegment *
open_segment(Relation table, int level, MsgqStorage *storage)
{
	MsgqSegment *segment = palloc0(sizeof(MsgqSegment));

	refuse_foreign_features(table);
	segment->storage = storage;
	segment->table = table;
	segment->level = level;
	segment->estate = CreateExecutorState();
	segment->result = makeNode(ResultRelInfo);
	InitResultRelInfo(segment->result, table, 0, NULL, 0);
	ExecOpenIndices(segment->result, false);
	find_indexes(segment, storage->queue->ordered);
	CheckCmdReplicaIdentity(table, CMD_UPDATE);
	segment->row = table_slot_create(table, NULL);
	segment->new_row = table_slot_create(table, NULL);
	segment->ready = msgq_slot_frontier(storage->slot, storage->queue,
										RelationGetRelid(table), MSGQ_READY);
	segment->due = msgq_slot_frontier(storage->slot, storage->queue,
									  RelationGetRelid(table), MSGQ_DUE);
	return segment;
}

/*
 * Has it two indexes, and none that calls a function?  Or three, one of which
 * is that on the group.
 */
static bool
has_plain_indexes(Relation table)
{
	List	   *indexes = RelationGetIndexList(table);
	int			expected = 2;
	bool		are_plain = true;
	ListCell   *cell;

	foreach(cell, indexes)
	{
		Relation	index = index_open(lfirst_oid(cell), AccessShareLock);

		if (is_group_index(index, BuildIndexInfo(index)))
			expected = 3;
		are_plain &= heap_attisnull(index->rd_indextuple,
									Anum_pg_index_indexprs, NULL);
		index_close(index, AccessShareLock);
	}
	are_plain &= list_length(indexes) == expected;
	list_free(indexes);
	return are_plain;
}

/*
 * Is the table as it was made, so that SQL on it runs nobody's code?  The
 * caller holds a lock.
 */
bool
msgq_segment_is_plain(Oid table_oid)
{
	Relation	table = try_table_open(table_oid, AccessShareLock);
	bool		is_plain;

	if (table == NULL)
		return false;
	is_plain = foreign_feature(table) == NULL && has_plain_indexes(table);
	table_close(table, AccessShareLock);
	return is_plain;
}

/*
 * The queue's segments that the storage shall have open are those from number
 * *first on; returns how many.  The queue may have fewer levels than the
 * caller thinks: he gets the nearest ones, and sees it then.
 */
static int
choose_segments(const MsgqStorage *storage, int *first)
{
	const MsgqQueue *queue = storage->queue;
	int			top = queue->priorities - 1;
	int			lowest = Max(0, Min(storage->lowest, top));
	int			highest = Max(0, Min(storage->highest, top));

	if (storage->which == MSGQ_ACTIVE)
	{
		*first = queue->nsegments - queue->priorities + lowest;
		return highest - lowest + 1;
	}
	*first = storage->which == MSGQ_IN_USE ? queue->ndrained : 0;
	return queue->nsegments - *first;
}

/*
 * Locks n tables of the queue, from its segment number first on.  False, with
 * none of them open, if the queue has changed since it was looked up, or its
 * tables have.
 */
static bool
lock_tables(const MsgqStorage *storage, int first, int n, Relation *tables)
{
	for (int i = 0; i < n; i++)
	{
		tables[i] = try_table_open(storage->queue->segments[first + i].table,
								   RowExclusiveLock);
		if (tables[i] == NULL)
			msgq_queue_forget_all();
		if (msgq_queue_generation() == storage->generation)
			continue;
		for (; i >= 0; i--)
		{
			if (tables[i])
				table_close(tables[i], RowExclusiveLock);
		}
		return false;
	}
	return true;
}

/*
 * Opens the segments that which, lowest and highest tell.  NULL if there is no
 * such queue and missing_ok says that this is no error.
 */
static MsgqStorage *
open_storage(MsgqStorage *storage, const char *command, const char *name,
			 bool missing_ok)
{
	Relation   *tables;
	int			first;
	int			n;

	storage->command = command;
	if (command)
		msgq_begin_change(command);
	do
	{
		storage->generation = msgq_queue_generation();
		storage->queue = missing_ok ?
			msgq_queue_try_get(name, storage->right) :
			msgq_queue_get(name, storage->right);
		if (storage->queue == NULL)
			return NULL;
		if (storage->queue->ordered && storage->which == MSGQ_IN_USE)
			storage->which = MSGQ_ALL;
		msgq_point(MSGQ_POINT_SEND_CHOSEN);
		n = choose_segments(storage, &first);
		tables = palloc(sizeof(Relation) * n);
	} while (!lock_tables(storage, first, n, tables));

	storage->slot = msgq_slot_get(storage->queue->sequence,
								  storage->queue->created_at);
	if (command)
		msgq_worker_want();
	storage->segments = palloc(sizeof(MsgqSegment *) * n);
	for (int i = 0; i < n; i++)
		storage->segments[i] =
			open_segment(tables[i], storage->queue->segments[first + i].level,
						 storage);
	storage->nsegments = n;
	return storage;
}

/* What open_storage needs to know: all levels. */
static MsgqStorage *
all_levels(AclMode right, MsgqWhich which)
{
	MsgqStorage *storage = palloc0(sizeof(MsgqStorage));

	storage->right = right;
	storage->which = which;
	storage->lowest = 0;
	storage->highest = MSGQ_MAX_PRIORITIES - 1;
	return storage;
}

/*
 * Opens a queue for writing, after checking that the current user has the
 * right on it.  The locks stay until the end of the transaction.  command is
 * the caller's name, for messages, or NULL if it will only look.
 *
 * Raises 42704, 42501 and 55000 as msgq_queue_get does, 25006 where nothing
 * can be written, 55000 for tables with features that msgq would not honour.
 */
MsgqStorage *
msgq_storage_open(const char *command, const char *name, AclMode right,
				  MsgqWhich which)
{
	return open_storage(all_levels(right, which), command, name, false);
}

/* The same for a queue that may have gone: then it returns NULL. */
MsgqStorage *
msgq_storage_try_open(const char *command, const char *name, AclMode right,
					  MsgqWhich which)
{
	return open_storage(all_levels(right, which), command, name, true);
}

/* What open_storage needs to know: the active segments of these levels. */
static MsgqStorage *
some_levels(AclMode right, int lowest, int highest)
{
	MsgqStorage *storage = palloc0(sizeof(MsgqStorage));

	storage->right = right;
	storage->which = MSGQ_ACTIVE;
	storage->lowest = lowest;
	storage->highest = highest;
	return storage;
}

/*
 * Opens the active segments of some levels only, for whoever stores messages
 * of priorities from lowest to highest.  Those that the queue does not have
 * are for the caller to refuse.  Otherwise as msgq_storage_open.
 */
MsgqStorage *
msgq_storage_open_levels(const char *command, const char *name, AclMode right,
						 int lowest, int highest)
{
	return open_storage(some_levels(right, lowest, highest), command, name, false);
}

/* The same for a queue that may have gone: then it returns NULL. */
MsgqStorage *
msgq_storage_try_open_levels(const char *command, const char *name,
							 AclMode right, int lowest, int highest)
{
	return open_storage(some_levels(right, lowest, highest), command, name, true);
}

/*
 * The open queue as it is by now, whatever it is called; NULL if it has gone,
 * which those who have locked its tables need not fear.
 */
const MsgqQueue *
msgq_storage_queue_now(const MsgqStorage *storage)
{
	AcceptInvalidationMessages();
	if (storage->generation == msgq_queue_generation())
		return storage->queue;
	return msgq_queue_find_by_id(storage->queue->id);
}

/*
 * Opens a queue that is open once more: the same one, whatever its name is by
 * now.  Whoever renames it does not wait for those who have opened it, and
 * its old name may be another one's.
 */
MsgqStorage *
msgq_storage_open_again(const MsgqStorage *storage, const char *command,
						MsgqWhich which)
{
	const MsgqQueue *queue;

	while ((queue = msgq_storage_queue_now(storage)) != NULL)
	{
		MsgqStorage *again = msgq_storage_try_open(command,
												   NameStr(queue->name),
												   storage->right, which);

		if (again && again->queue->id == storage->queue->id)
			return again;
		if (again)
			msgq_storage_let_go(again);
		CHECK_FOR_INTERRUPTS();
	}
	elog(ERROR, "queue with number %d has gone while it was open",
		 storage->queue->id);
	return NULL;
}

/* The open segment that takes new messages of this level. */
MsgqSegment *
msgq_storage_active(const MsgqStorage *storage, int level)
{
	/* Active ones are the last, whatever else is open. */
	for (int i = storage->nsegments - 1; i >= 0; i--)
	{
		if (storage->segments[i]->level == level)
			return storage->segments[i];
	}
	elog(ERROR, "no segment of level %d is open", level);
	return NULL;
}

/*
 * May the lock on the segment be given back before the end of the transaction,
 * so that it can be reclaimed?
 */
static bool
is_unused(const MsgqStorage *storage, int i)
{
	return storage->queue->ordered && storage->which == MSGQ_ALL &&
		i < storage->queue->ndrained && !storage->segments[i]->is_touched;
}

/* Closes the tables, and gives back the locks, or those that are not needed. */
static void
close_tables(MsgqStorage *storage, bool unlock)
{
	for (int i = 0; i < storage->nsegments; i++)
	{
		MsgqSegment *segment = storage->segments[i];
		LOCKMODE	mode = unlock || is_unused(storage, i) ?
		RowExclusiveLock : NoLock;

		ExecDropSingleTupleTableSlot(segment->row);
		ExecDropSingleTupleTableSlot(segment->new_row);
		ExecCloseIndices(segment->result);
		FreeExecutorState(segment->estate);
		table_close(segment->table, mode);
	}
}

/*
 * Closes it, after looking after the groups whose messages were settled, and
 * makes what was done visible to the next command.
 */
void
msgq_storage_close(MsgqStorage *storage)
{
	msgq_group_settle(storage);
	if (storage->dead_letters)
		close_tables(storage->dead_letters, false);
	close_tables(storage, false);
	CommandCounterIncrement();
}

/*
 * May a message of the queue be in a segment that is not open?  A segment
 * that is open cannot be moved to another one, but a ring can turn meanwhile,
 * and what was not open be moved to its new active segment.
 */
bool
msgq_storage_is_partial(const MsgqStorage *storage)
{
	AcceptInvalidationMessages();
	return (storage->which != MSGQ_ALL && storage->queue->ndrained > 0) ||
		storage->generation != msgq_queue_generation();
}

/*
 * Closes it and, if nothing was changed, gives back its locks, so that nobody
 * has to wait for one who only waits.
 */
void
msgq_storage_let_go(MsgqStorage *storage)
{
	if (storage->is_changed)
	{
		msgq_storage_close(storage);
		return;
	}
	if (storage->dead_letters)
		close_tables(storage->dead_letters, true);
	close_tables(storage, true);
}

/* ---------------------------------------------------------------------------
 * The append horizon
 * ---------------------------------------------------------------------------
 */

/* Before the first id of a call is taken. */
MsgqAppend
msgq_append_begin(Oid sequence, MsgqSlot *slot)
{
	MsgqAppend	nothing = {0, 0};
	LOCKTAG		tag;

	if (msgq_shared_available())
		return msgq_append_publish(sequence, slot);
	msgq_queue_lock_tag(&tag, sequence, MSGQ_LOCK_APPEND);
	(void) LockAcquire(&tag, ShareLock, false, false);
	return nothing;
}

/*
 * After the index entries of its last message are in, with what
 * msgq_append_begin has returned; ids up to this one.
 */
void
msgq_append_end(Oid sequence, MsgqSlot *slot, MsgqAppend append, int64 last)
{
	LOCKTAG		tag;

	if (msgq_shared_available())
	{
		msgq_append_withdraw(append);
		if (slot)
			msgq_raise(&slot->highest_id, last);
		return;
	}
	msgq_queue_lock_tag(&tag, sequence, MSGQ_LOCK_APPEND);
	(void) LockRelease(&tag, ShareLock, false);
}

/* The highest id that was taken, by a look at the sequence. */
int64
msgq_last_id(Oid sequence_oid)
{
	Relation	sequence = msgq_open(sequence_oid, AccessShareLock);
	Buffer		buffer = ReadBuffer(sequence, 0);
	Page		page;
	HeapTupleData tuple;
	Form_pg_sequence_data data;
	int64		last;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	tuple.t_data = (HeapTupleHeader)
		PageGetItem(page, PageGetItemId(page, FirstOffsetNumber));
	data = (Form_pg_sequence_data) GETSTRUCT(&tuple);
	last = data->is_called ? data->last_value : data->last_value - 1;
	UnlockReleaseBuffer(buffer);
	/* A waiter must not keep it: whoever drops the queue would wait for him. */
	relation_close(sequence, AccessShareLock);
	return last;
}

/*
 * The horizon of this instant; PG_INT64_MIN if it cannot be told now.  A
 * horizon holds for ever.  Without shared memory it can be told when nobody
 * is appending: wait says whether to wait for that.  Where it does, the sequence
 * is asked for the highest id, which costs a look at its page; the slot's may be
 * too low, after an error or while a dump is being restored.
 */
int64
msgq_append_horizon(Oid sequence, MsgqSlot *slot, bool wait)
{
	LOCKTAG		tag;
	int64		horizon;

	if (msgq_shared_available())
	{
		horizon = slot && !wait ?
			(int64) pg_atomic_read_u64(&slot->highest_id) :
			msgq_last_id(sequence);
		horizon = msgq_append_lowest(sequence, horizon);
		return horizon == PG_INT64_MIN ? horizon : horizon - 1;
	}
	msgq_queue_lock_tag(&tag, sequence, MSGQ_LOCK_APPEND);
	if (LockAcquire(&tag, ExclusiveLock, false, !wait) == LOCKACQUIRE_NOT_AVAIL)
		return PG_INT64_MIN;
	horizon = msgq_last_id(sequence);
	(void) LockRelease(&tag, ExclusiveLock, false);
	return horizon;
}
