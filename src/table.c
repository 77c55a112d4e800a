/*
 * table.c
 *		What is done to tables of all kinds, directly; and small tables with
 *		one index.
 *
 * A stream writes down where its entries have their places (places.c), and
 * where its groups are (consumer.c), a topic the last messages that it has sent
 * on (retained.c), in rows that are only ever appended, and found by their
 * primary key.  All are on the hot path.  Where each key has one row, whoever
 * inserts one waits for others with the same key (dedup.c).
 *
 * What the executor would have done, see segment.c: privileges are checked on
 * the stream; triggers, rules, row security, check constraints, and other
 * columns and indexes are refused when a table is opened; all columns are
 * given; nobody updates a row.
 *
 * src/table.c
 */
#include "msgq.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_am.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "segment.h"
#include "table.h"

/* So often, a millisecond apart, a lock is tried. */
#define MAX_LOCK_TRIES		50

/* How long writers may have to wait for a turn that does not come about. */
#define TURN_LOCK_TIMEOUT	"200ms"

static void
refuse(Relation table, const char *feature)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table \"%s\" cannot serve msgq",
					RelationGetRelationName(table)),
			 errdetail("It has %s.", feature),
			 errhint("Make it again as it was made.")));
}

/* Its one index, which must be the primary key that it was made with. */
static Relation
open_index(Relation table, LOCKMODE lock)
{
	List	   *indexes = RelationGetIndexList(table);
	Relation	index;

	if (list_length(indexes) != 1)
		refuse(table, indexes == NIL ? "no primary key" : "other indexes");
	index = index_open(linitial_oid(indexes), lock);
	if (index->rd_rel->relam != BTREE_AM_OID || !index->rd_index->indisprimary ||
		!index->rd_index->indimmediate || !index->rd_index->indisvalid)
		refuse(table, "another primary key");
	list_free(indexes);
	return index;
}

/*
 * Opens a table that is locked and has so many columns; the first nrequired
 * are NOT NULL, and the others are not.
 */
MsgqTable  *
msgq_table_open(Relation table, int ncolumns, int nrequired, LOCKMODE lock)
{
	MsgqTable  *opened = palloc(sizeof(MsgqTable));
	const char *feature = msgq_foreign_feature(table, ncolumns);

	if (feature)
		refuse(table, feature);
	for (int i = 0; i < ncolumns; i++)
	{
		Form_pg_attribute column = TupleDescAttr(RelationGetDescr(table), i);

		if (column->attisdropped || column->attgenerated ||
			column->attnotnull != (i < nrequired))
			refuse(table, "other columns");
	}
	opened->table = table;
	opened->index = open_index(table, lock);
	opened->info = BuildIndexInfo(opened->index);
	opened->row = table_slot_create(table, NULL);
	return opened;
}

/* Closes it, and gives the lock back unless that is NoLock. */
void
msgq_table_close(MsgqTable *table, LOCKMODE unlock)
{
	ExecDropSingleTupleTableSlot(table->row);
	index_close(table->index, unlock);
	table_close(table->table, unlock);
}

/* Fills table->row; is_null is NULL where no column is. */
static void
fill_row(MsgqTable *table, const Datum *values, const bool *is_null)
{
	TupleTableSlot *row = table->row;
	int			ncolumns = row->tts_tupleDescriptor->natts;

	ExecClearTuple(row);
	memcpy(row->tts_values, values, sizeof(Datum) * ncolumns);
	if (is_null)
		memcpy(row->tts_isnull, is_null, sizeof(bool) * ncolumns);
	else
		memset(row->tts_isnull, false, sizeof(bool) * ncolumns);
	ExecStoreVirtualTuple(row);
}

/* Enters table->row, which was stored, into the index. */
static bool
insert_key(MsgqTable *table, const Datum *values, IndexUniqueCheck check)
{
	Datum		key[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS] = {false};

	for (int i = 0; i < table->info->ii_NumIndexKeyAttrs; i++)
		key[i] = values[table->info->ii_IndexAttrNumbers[i] - 1];
	return index_insert(table->index, key, nulls, &table->row->tts_tid,
						table->table, check, false, table->info);
}

/*
 * Appends a row; is_null is NULL where no column is.  Raises 23505 if somebody
 * else has done so.
 */
void
msgq_table_insert(MsgqTable *table, const Datum *values, const bool *is_null)
{
	fill_row(table, values, is_null);
	table_tuple_insert(table->table, table->row, GetCurrentCommandId(true), 0,
					   NULL);
	(void) insert_key(table, values, UNIQUE_CHECK_YES);
}

/* The first row of a scan in this direction, in table->row. */
bool
msgq_table_find(MsgqTable *table, Snapshot snapshot, ScanKey keys, int nkeys,
				ScanDirection direction)
{
	IndexScanDesc scan = msgq_index_beginscan(table->table, table->index,
											  snapshot, nkeys);
	bool		found;

	index_rescan(scan, keys, nkeys, NULL, 0);
	found = index_getnext_slot(scan, direction, table->row);
	/* The slot has a pin of its own. */
	index_endscan(scan);
	return found;
}

/* ---------------------------------------------------------------------------
 * Rows of which each key has one
 * ---------------------------------------------------------------------------
 */

/*
 * Looks for a row with a dirty snapshot, into table->row.  *dirty tells of an
 * open transaction that has inserted or removed what was found.
 */
bool
msgq_table_find_any(MsgqTable *table, ScanKey keys, int nkeys,
					SnapshotData *dirty)
{
	InitDirtySnapshot(*dirty);
	return msgq_table_find(table, dirty, keys, nkeys, ForwardScanDirection);
}

/*
 * Finds the row of a key that is committed, or our own; first waits for those
 * who are about to insert or remove one.
 */
bool
msgq_table_find_settled(MsgqTable *table, ScanKey keys, int nkeys)
{
	SnapshotData dirty;

	while (msgq_table_find_any(table, keys, nkeys, &dirty))
	{
		ItemPointerData tid = table->row->tts_tid;
		TransactionId open_xid = TransactionIdIsValid(dirty.xmin) ?
		dirty.xmin : dirty.xmax;

		CHECK_FOR_INTERRUPTS();
		if (!TransactionIdIsValid(open_xid))
			return true;
		ExecClearTuple(table->row);
		if (TransactionIdIsValid(dirty.xmin) && dirty.speculativeToken != 0)
			SpeculativeInsertionWait(dirty.xmin, dirty.speculativeToken);
		else
			XactLockTableWait(open_xid, table->table, &tid,
							  XLTW_InsertIndexUnique);
	}
	return false;
}

/*
 * Inserts a row without nulls, as INSERT ON CONFLICT DO NOTHING does:
 * speculatively.  False, with nothing inserted, if somebody else has the key, or
 * is about to.
 */
bool
msgq_table_insert_unless_there(MsgqTable *table, const Datum *values)
{
	TransactionId xid = GetCurrentTransactionId();
	uint32		token = SpeculativeInsertionLockAcquire(xid);
	bool		is_unique;

	fill_row(table, values, NULL);
	table_tuple_insert_speculative(table->table, table->row,
								   GetCurrentCommandId(true), 0, NULL, token);
	is_unique = insert_key(table, values, UNIQUE_CHECK_PARTIAL);
	table_tuple_complete_speculative(table->table, table->row, token, is_unique);
	SpeculativeInsertionLockRelease(xid);
	return is_unique;
}

/* Removes the row that was found; false if somebody else has changed it. */
bool
msgq_table_remove(MsgqTable *table)
{
	TM_FailureData failure;

	return table_tuple_delete(table->table, &table->row->tts_tid,
							  GetCurrentCommandId(true), InvalidSnapshot,
							  InvalidSnapshot, false, &failure,
							  false) == TM_Ok;
}

/* ---------------------------------------------------------------------------
 * Any table
 * ---------------------------------------------------------------------------
 */

/*
 * Slots for rows that are about to be inserted.  They hold neither a buffer nor
 * the descriptor, and so go with the current memory context: to release each of
 * them would cost much of what it costs to insert its row.
 */
TupleTableSlot **
msgq_table_slots(Relation table, int n)
{
	TupleDesc	descriptor = CreateTupleDescCopy(RelationGetDescr(table));
	const TupleTableSlotOps *callbacks = table_slot_callbacks(table);
	TupleTableSlot **slots = palloc(sizeof(TupleTableSlot *) * n);

	for (int i = 0; i < n; i++)
		slots[i] = MakeSingleTupleTableSlot(descriptor, callbacks);
	return slots;
}

/* Stores n rows, whose slots have all columns set; not their index entries. */
void
msgq_table_insert_rows(Relation table, TupleTableSlot **rows, int n)
{
	CommandId	command = GetCurrentCommandId(true);
	MemoryContext batch;
	MemoryContext caller;

	if (n == 1)
	{
		table_tuple_insert(table, rows[0], command, 0, NULL);
		return;
	}
	/* table_multi_insert may leak. */
	batch = AllocSetContextCreate(CurrentMemoryContext, "msgq batch",
								  ALLOCSET_DEFAULT_SIZES);
	caller = MemoryContextSwitchTo(batch);
	table_multi_insert(table, rows, n, command, 0, NULL);
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(batch);
}

/* Opens the table's primary key for reading; there must be one. */
Relation
msgq_open_primary_key(Relation table)
{
	list_free(RelationGetIndexList(table));
	return index_open(table->rd_pkindex, AccessShareLock);
}

/* TRUNCATE would wait for the TOAST table, and autovacuum may have it. */
bool
msgq_try_lock_toast(Relation table)
{
	Oid			toast = table->rd_rel->reltoastrelid;

	return !OidIsValid(toast) ||
		ConditionalLockRelationOid(toast, AccessExclusiveLock);
}

/* Bytes of a table with its indexes and TOAST; 0 if it has gone. */
int64
msgq_table_bytes(Oid table)
{
	LOCAL_FCINFO(call, 1);
	FmgrInfo	function;
	Datum		bytes;

	fmgr_info(F_PG_TOTAL_RELATION_SIZE, &function);
	InitFunctionCallInfoData(*call, &function, 1, InvalidOid, NULL, NULL);
	call->args[0].value = ObjectIdGetDatum(table);
	call->args[0].isnull = false;
	bytes = FunctionCallInvoke(call);
	return call->isnull ? 0 : DatumGetInt64(bytes);
}

/* Bytes of a table with its TOAST table, without indexes. */
int64
msgq_relation_data_bytes(Relation table)
{
	int64		blocks = RelationGetNumberOfBlocks(table);
	Relation	toast = OidIsValid(table->rd_rel->reltoastrelid) ?
	table_open(table->rd_rel->reltoastrelid, AccessShareLock) : NULL;

	if (toast)
	{
		blocks += RelationGetNumberOfBlocks(toast);
		table_close(toast, AccessShareLock);
	}
	return blocks * BLCKSZ;
}

/* The same of one that is not open. */
int64
msgq_table_data_bytes(Oid table_oid)
{
	Relation	table = msgq_open(table_oid, AccessShareLock);
	int64		bytes = msgq_relation_data_bytes(table);

	table_close(table, AccessShareLock);
	return bytes;
}

/*
 * Refuses (55000) a table to which somebody has added what SQL on it would run
 * as the storage's owner; see msgq_table_open.
 */
void
msgq_table_check(Oid table_oid, int ncolumns, int nrequired)
{
	Relation	table = msgq_open(table_oid, AccessShareLock);

	msgq_table_close(msgq_table_open(table, ncolumns, nrequired, AccessShareLock),
					 NoLock);
}

/* Bytes of the table alone. */
int64
msgq_table_main_bytes(Oid table_oid)
{
	Relation	table = msgq_open(table_oid, AccessShareLock);
	int64		bytes = (int64) RelationGetNumberOfBlocks(table) * BLCKSZ;

	table_close(table, AccessShareLock);
	return bytes;
}

/* Is there a row that this snapshot shows? */
static bool
has_row(Relation table, Snapshot snapshot)
{
	TupleTableSlot *slot = table_slot_create(table, NULL);
	TableScanDesc scan = table_beginscan(table, snapshot, 0, NULL);
	bool		found = table_scan_getnextslot(scan, ForwardScanDirection, slot);

	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	return found;
}

/* Is there a row that some snapshot may still show? */
bool
msgq_table_has_row_for_somebody(Relation table)
{
	SnapshotData snapshot;

	/* The horizon that this backend remembers may be that of long ago. */
	(void) GetOldestNonRemovableTransactionId(table);
	InitNonVacuumableSnapshot(snapshot, GlobalVisTestFor(table));
	return has_row(table, &snapshot);
}

/*
 * Is there a row?  By a snapshot that is newer than the caller's lock, if that
 * keeps others from writing.
 */
bool
msgq_table_has_row(Relation table)
{
	bool		found;

	PushActiveSnapshot(GetLatestSnapshot());
	found = has_row(table, GetActiveSnapshot());
	PopActiveSnapshot();
	return found;
}

/* Locks a table and its TOAST table, if that is possible at once. */
bool
msgq_try_lock_table(Oid table_oid)
{
	Relation	table;
	bool		locked;

	if (!ConditionalLockRelationOid(table_oid, AccessExclusiveLock))
		return false;
	table = msgq_open(table_oid, NoLock);
	if (table->trigdesc)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has a trigger",
						RelationGetRelationName(table)),
				 errhint("Drop the trigger: the table cannot be emptied.")));
	locked = msgq_try_lock_toast(table);
	table_close(table, NoLock);
	return locked;
}

/*
 * The same for a table that many use for an instant each: between two of them
 * it can be had.  Nobody waits behind us meanwhile, as they would behind one
 * who waits for the lock.
 */
bool
msgq_lock_table_between_calls(Oid table_oid)
{
	for (int i = 0; i < MAX_LOCK_TRIES; i++)
	{
		if (msgq_try_lock_table(table_oid))
			return true;
		CHECK_FOR_INTERRUPTS();
		pg_usleep(1000);
	}
	return false;
}

/*
 * Locks a table that takes no new rows, unless it is in use, and says what is
 * to be done with it.  A snapshot that shows rows which were moved would not
 * show them where they are now, and so keeps it.
 */
MsgqKept
msgq_table_lock_kept(Oid table_oid)
{
	Relation	table;
	MsgqKept	kept = MSGQ_KEPT_EMPTY;

	if (!msgq_lock_table_between_calls(table_oid))
		return MSGQ_KEPT_IN_USE;
	table = table_open(table_oid, NoLock);
	if (msgq_table_has_row(table))
		kept = MSGQ_KEPT_HAS_ROWS;
	else if (msgq_table_has_row_for_somebody(table))
		kept = MSGQ_KEPT_IN_USE;
	table_close(table, NoLock);
	return kept;
}

/*
 * Waits for those who write to a table, and keeps others from it.  Raises 55P03
 * after a time that is short, since others wait behind us meanwhile.
 */
void
msgq_lock_against_writers(Oid table_oid)
{
	int			guc_level = NewGUCNestLevel();

	(void) set_config_option("lock_timeout", TURN_LOCK_TIMEOUT, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	LockRelationOid(table_oid, ShareLock);
	AtEOXact_GUC(false, guc_level);
}
