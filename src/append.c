/*
 * append.c
 *		Stores entries of streams, as part of the caller's transaction.
 *
 * An entry is a row of the stream's active segment.  COMMIT of the caller is
 * the confirmation.  Its place in the stream it gets afterwards (sequencer.c),
 * for which appenders tell what ids they are about to take, as senders do
 * (storage.c).
 *
 * The partition is a hash of the key, modulo the number of partitions that the
 * segment has; entries without a key are spread by their ids.
 *
 * Keys.  With expected_id, the key is locked to the end of the transaction:
 * so of those who expect the same last entry one appends, and the others find
 * his.  An entry of an open transaction that did not lock the key is a conflict
 * as well, if it is the newest one: nobody can say yet whether it is the last.
 *
 * Idempotency keys.  An entry keeps its idempotency key, and an index on it.
 * Whoever appends with one
 *
 *	1. locks the key,
 *	2. looks for it in all segments, with a dirty snapshot,
 *	3. appends if there is none, and
 *	4. unlocks it.
 *
 * If an open transaction has it, he unlocks it, waits for that to end, and
 * begins anew.  The lock is not held to the end of the transaction, since a
 * transaction may append many; nor while he waits.  If somebody turned the ring
 * meanwhile, step 2 looks at the segments as they are then: a key may be in one
 * that we did not know of.
 *
 * What the executor would have done, see segment.c: privileges are checked on
 * the stream, everything that a user may have added to the table is refused
 * when it is opened.
 *
 * src/append.c
 */
#include "msgq.h"

#include "access/detoast.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_am.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "append.h"
#include "argument.h"
#include "message.h"
#include "owner.h"
#include "segment.h"
#include "table.h"
#include "testing.h"
#include "wakeup.h"
#include "worker.h"

/* Of a table of entries: by id, by key, and by idempotency key. */
#define NINDEXES			3

/* Rows, and bytes, that are inserted at once. */
#define CHUNK_ROWS			500
#define CHUNK_BYTES			(1024 * 1024)

/* Seed of the hash of a key; never to be changed, since it places entries. */
#define KEY_SEED			INT64CONST(0x6d7367712e6b6579)

/* A table of entries, opened, with those of its indexes that are needed. */
typedef struct EntryTable
{
	Relation	table;
	Relation	by_id;
	Relation	by_key;			/* NULL: not opened */
	Relation	by_idempotency_key; /* NULL: not opened */
	IndexInfo  *by_id_info;
	IndexInfo  *by_key_info;
	IndexInfo  *by_idempotency_key_info;
} EntryTable;

/* A stream that is open. */
struct MsgqAppender
{
	const MsgqStream *stream;
	MsgqSlot   *slot;
	EntryTable	table;
};

/* ---------------------------------------------------------------------------
 * The table
 * ---------------------------------------------------------------------------
 */

static void
refuse(Relation table, const char *feature)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table \"%s\" cannot hold entries",
					RelationGetRelationName(table)),
			 errdetail("It has %s, which msgq would not honour.", feature),
			 errhint("Make it again as those of other streams are.")));
}

static void
check_table(Relation table)
{
	const char *feature = msgq_foreign_feature(table, Natts_entry_row);

	if (feature)
		refuse(table, feature);
	for (AttrNumber n = 1; n <= Natts_entry_row; n++)
	{
		Form_pg_attribute column = TupleDescAttr(RelationGetDescr(table), n - 1);

		if (column->attisdropped || column->attgenerated ||
			(column->attnotnull && n > Anum_entry_row_appended_at))
			refuse(table, "other columns");
	}
}

/*
 * Opens one of the table's own indexes, which must have these columns.  The
 * other ones that it has need not be opened, since there are three.
 */
static Relation
open_index(Relation table, Oid index_oid, LOCKMODE lock, AttrNumber first,
		   AttrNumber second, IndexInfo **info)
{
	Relation	index;

	if (!OidIsValid(index_oid))
		refuse(table, "not all of its indexes");
	index = index_open(index_oid, lock);
	*info = BuildIndexInfo(index);
	if (index->rd_index->indrelid != RelationGetRelid(table) ||
		index->rd_rel->relam != BTREE_AM_OID || !(*info)->ii_ReadyForInserts ||
		!index->rd_index->indisvalid || (*info)->ii_Expressions != NIL ||
		(*info)->ii_NumIndexAttrs != (second == 0 ? 1 : 2) ||
		(*info)->ii_IndexAttrNumbers[0] != first ||
		(second != 0 && (*info)->ii_IndexAttrNumbers[1] != second) ||
		(*info)->ii_Unique != (first == Anum_entry_row_id))
		refuse(table, "other indexes");
	return index;
}

/* Opens the table of a segment, which is locked, with the indexes wanted. */
static void
open_entries(EntryTable *entries, Relation table,
			 const MsgqStreamSegment *segment, LOCKMODE lock, bool by_key,
			 bool by_idempotency_key)
{
	List	   *indexes = RelationGetIndexList(table);

	memset(entries, 0, sizeof(EntryTable));
	entries->table = table;
	check_table(table);
	if (list_length(indexes) != NINDEXES)
		refuse(table, "other indexes");
	list_free(indexes);
	entries->by_id = open_index(table, table->rd_pkindex, lock,
								Anum_entry_row_id, 0, &entries->by_id_info);
	if (by_key)
		entries->by_key = open_index(table, segment->by_key, lock,
									 Anum_entry_row_key, Anum_entry_row_id,
									 &entries->by_key_info);
	if (by_idempotency_key)
		entries->by_idempotency_key =
			open_index(table, segment->by_idempotency_key, lock,
					   Anum_entry_row_idempotency_key, 0,
					   &entries->by_idempotency_key_info);
}

static void
close_entries(EntryTable *entries, LOCKMODE unlock)
{
	index_close(entries->by_id, unlock);
	if (entries->by_key)
		index_close(entries->by_key, unlock);
	if (entries->by_idempotency_key)
		index_close(entries->by_idempotency_key, unlock);
	table_close(entries->table, unlock);
}

/* ---------------------------------------------------------------------------
 * Inserting
 * ---------------------------------------------------------------------------
 */

static Size
entry_bytes(const MsgqNewEntry *entry)
{
	Size		size = 0;

	if (entry->content_column != 0)
		size += toast_raw_datum_size(entry->content) - VARHDRSZ;
	if (entry->has_headers)
		size += toast_raw_datum_size(entry->headers) - VARHDRSZ;
	return size;
}

static void
check_sizes(const MsgqStream *stream, const MsgqNewEntry *entries, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (entry_bytes(&entries[i]) > MSGQ_MAX_MESSAGE_BYTES)
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("entry is too large for stream \"%s\"",
							NameStr(stream->name)),
					 errdetail("Entry %d has %zu bytes with its headers; the limit is %d.",
							   i + 1, entry_bytes(&entries[i]),
							   MSGQ_MAX_MESSAGE_BYTES),
					 errhint("Append a reference to the content.")));
	}
}

/* A hash of the bytes of a text. */
static uint64
hash_text(const text *key)
{
	return DatumGetUInt64(hash_any_extended((const unsigned char *) VARDATA_ANY(key),
											VARSIZE_ANY_EXHDR(key), KEY_SEED));
}

static int32
partition_of(const MsgqNewEntry *entry, int64 id, int partitions)
{
	if (partitions == 1)
		return 0;
	return (entry->key ? hash_text(entry->key) : (uint64) id) % partitions;
}

/* Sets all columns of a new row. */
static void
fill_row(TupleTableSlot *row, const MsgqNewEntry *entry, int64 id,
		 int partitions, TimestampTz now)
{
	Datum	   *values = row->tts_values;
	bool	   *nulls = row->tts_isnull;

	ExecClearTuple(row);
	memset(nulls, true, sizeof(bool) * Natts_entry_row);
#define SET(column, value) \
	(values[(column) - 1] = (value), nulls[(column) - 1] = false)
	SET(Anum_entry_row_id, Int64GetDatum(id));
	SET(Anum_entry_row_partition,
		Int32GetDatum(partition_of(entry, id, partitions)));
	SET(Anum_entry_row_appended_at, TimestampTzGetDatum(now));
	if (entry->key)
		SET(Anum_entry_row_key, PointerGetDatum(entry->key));
	if (entry->idempotency_key)
		SET(Anum_entry_row_idempotency_key,
			PointerGetDatum(entry->idempotency_key));
	if (entry->has_headers)
		SET(Anum_entry_row_headers, entry->headers);
	if (entry->content_column != 0)
		SET(entry->content_column, entry->content);
#undef SET
	ExecStoreVirtualTuple(row);
}

static void
insert_index_entries(EntryTable *entries, TupleTableSlot *row)
{
	Datum		keys[2];
	bool		nulls[2];

	keys[0] = slot_getattr(row, Anum_entry_row_id, &nulls[0]);
	index_insert(entries->by_id, keys, nulls, &row->tts_tid, entries->table,
				 UNIQUE_CHECK_YES, false, entries->by_id_info);
	if (!msgq_row_is_null(row, Anum_entry_row_key))
	{
		keys[1] = keys[0];
		nulls[1] = false;
		keys[0] = slot_getattr(row, Anum_entry_row_key, &nulls[0]);
		index_insert(entries->by_key, keys, nulls, &row->tts_tid,
					 entries->table, UNIQUE_CHECK_NO, false,
					 entries->by_key_info);
	}
	if (!msgq_row_is_null(row, Anum_entry_row_idempotency_key))
	{
		keys[0] = slot_getattr(row, Anum_entry_row_idempotency_key, &nulls[0]);
		index_insert(entries->by_idempotency_key, keys, nulls, &row->tts_tid,
					 entries->table, UNIQUE_CHECK_NO, false,
					 entries->by_idempotency_key_info);
	}
}

/* Inserts rows whose slots are filled. */
static void
insert_rows(EntryTable *entries, TupleTableSlot **rows, int n)
{
	msgq_table_insert_rows(entries->table, rows, n);
	for (int i = 0; i < n; i++)
		insert_index_entries(entries, rows[i]);
}

/* Stores all of them, and fills their ids. */
static void
insert_all(EntryTable *table, const MsgqStream *stream, MsgqSlot *slot,
		   const MsgqNewEntry *entries, int n, int64 *ids)
{
	int			partitions = msgq_stream_active(stream)->partitions;
	TimestampTz now = msgq_now();
	TupleTableSlot **rows = msgq_table_slots(table->table, Min(n, CHUNK_ROWS));
	MsgqAppend	before;
	int			next = 0;

	msgq_point(MSGQ_POINT_SEND_LOCKED);
	before = msgq_append_begin(stream->sequence, slot);
	while (next < n)
	{
		Size		bytes = 0;
		int			count = 0;

		CHECK_FOR_INTERRUPTS();
		for (; next < n && count < CHUNK_ROWS && bytes < CHUNK_BYTES; next++)
		{
			ids[next] = nextval_internal(stream->sequence, false);
			fill_row(rows[count++], &entries[next], ids[next], partitions, now);
			bytes += entry_bytes(&entries[next]);
		}
		msgq_point(MSGQ_POINT_SEND_NUMBERED);
		insert_rows(table, rows, count);
	}
	msgq_point(MSGQ_POINT_SEND_STORED);
	msgq_append_end(stream->sequence, slot, before, n > 0 ? ids[n - 1] : 0);
}

/* ---------------------------------------------------------------------------
 * Keys
 * ---------------------------------------------------------------------------
 */

/* The segments as they are now, whatever the stream's name is by now. */
static const MsgqStream *
stream_now(const MsgqStream *stream)
{
	const MsgqStream *now = msgq_stream_is_current(stream) ? stream :
	msgq_stream_find_by_id(stream->id);

	if (now == NULL)
		elog(ERROR, "stream with number %d has gone while it was open",
			 stream->id);
	return now;
}

/*
 * Finds the last row with this text in the first column of an index, in a row
 * of the slot; *open_xid tells of an open transaction that has inserted it.
 */
static bool
find_last(Relation table, Relation index, Datum key, TupleTableSlot *row,
		  TransactionId *open_xid)
{
	SnapshotData dirty;
	ScanKeyData condition;
	IndexScanDesc scan;
	bool		found;

	InitDirtySnapshot(dirty);
	/* ScanKeyInit sets the collation to "C". */
	ScanKeyInit(&condition, 1, BTEqualStrategyNumber, F_TEXTEQ, key);
	scan = msgq_index_beginscan(table, index, &dirty, 1);
	index_rescan(scan, &condition, 1, NULL, 0);
	found = index_getnext_slot(scan, BackwardScanDirection, row);
	index_endscan(scan);
	*open_xid = found ? dirty.xmin : InvalidTransactionId;
	return found;
}

static void
raise_other_last_id(const MsgqNewEntry *entry, int64 id, bool is_open)
{
	ereport(ERROR,
			(errcode(ERRCODE_MSGQ_OTHER_LAST_ID),
			 errmsg("another entry was appended to the key"),
			 is_open ?
			 errdetail("An open transaction has appended entry " INT64_FORMAT "; expected was " INT64_FORMAT ".",
					   id, entry->expected_id) :
			 errdetail("Its last entry is " INT64_FORMAT "; expected was " INT64_FORMAT ".",
					   id, entry->expected_id),
			 errhint("Read the key's entries again, and decide anew.")));
}

/* Locks the key, and makes sure that its last entry is the expected one. */
static void
check_expected_id(const MsgqStream *stream, const MsgqNewEntry *entry)
{
	LOCKTAG		tag;
	int64		last = 0;
	bool		is_open = false;

	msgq_stream_lock_tag(&tag, stream, (uint32) hash_text(entry->key),
						 MSGQ_KEY_LOCK);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	stream = stream_now(stream);
	for (int i = 0; i < stream->nsegments; i++)
	{
		const MsgqStreamSegment *segment = &stream->segments[i];
		Relation	kept = msgq_stream_try_open_segment(stream, segment,
														segment->entries);
		EntryTable	entries;
		TupleTableSlot *row;
		TransactionId open_xid;

		/* What has been dropped meanwhile is no entry any more. */
		if (kept == NULL)
			continue;
		open_entries(&entries, kept, segment, AccessShareLock, true, false);
		row = table_slot_create(entries.table, NULL);
		if (find_last(entries.table, entries.by_key,
					  PointerGetDatum(entry->key), row, &open_xid) &&
			msgq_row_id(row) > last)
		{
			last = msgq_row_id(row);
			is_open = TransactionIdIsValid(open_xid);
		}
		ExecDropSingleTupleTableSlot(row);
		close_entries(&entries, AccessShareLock);
	}
	if (is_open || last != entry->expected_id)
		raise_other_last_id(entry, last, is_open);
}

/* Raises MQ006 unless the row has the entry's content. */
static void
check_same_content(const MsgqNewEntry *entry, TupleTableSlot *row)
{
	AttrNumber	column = entry->content_column;
	bool		same;

	if (column == 0)
		same = msgq_row_is_null(row, Anum_entry_row_body) &&
			msgq_row_is_null(row, Anum_entry_row_data);
	else if (msgq_row_is_null(row, column))
		same = false;
	else
		same = DatumGetBool(DirectFunctionCall2(column == Anum_entry_row_body ?
												jsonb_eq : byteaeq,
												msgq_row_value(row, column),
												entry->content));
	if (!same)
		ereport(ERROR,
				(errcode(ERRCODE_MSGQ_KEY_REUSED),
				 errmsg("idempotency key was used with another body"),
				 errdetail("It belongs to entry " INT64_FORMAT " of the stream.",
						   msgq_row_id(row)),
				 errhint("Append another entry with another key, and the same entry with the same body.")));
}

/*
 * Looks for the entry's idempotency key in all segments: true if it is there,
 * and then either *id is the entry's, or *open_xid has it.
 */
static bool
find_idempotency_key(const MsgqStream *stream, const MsgqNewEntry *entry,
					 int64 *id, TransactionId *open_xid)
{
	bool		found = false;

	for (int i = stream->nsegments - 1; i >= 0 && !found; i--)
	{
		const MsgqStreamSegment *segment = &stream->segments[i];
		Relation	kept = msgq_stream_try_open_segment(stream, segment,
														segment->entries);
		EntryTable	entries;
		TupleTableSlot *row;

		/* What has been dropped meanwhile is no entry any more. */
		if (kept == NULL)
			continue;
		open_entries(&entries, kept, segment, AccessShareLock, false, true);
		row = table_slot_create(entries.table, NULL);
		found = find_last(entries.table, entries.by_idempotency_key,
						  PointerGetDatum(entry->idempotency_key), row,
						  open_xid);
		if (found && !TransactionIdIsValid(*open_xid))
		{
			check_same_content(entry, row);
			*id = msgq_row_id(row);
		}
		ExecDropSingleTupleTableSlot(row);
		close_entries(&entries, AccessShareLock);
	}
	return found;
}

/* Appends an entry with an idempotency key; false if it was there. */
static bool
insert_once(EntryTable *table, const MsgqStream *stream, MsgqSlot *slot,
			const MsgqNewEntry *entry, int64 *id)
{
	LOCKTAG		tag;

	msgq_stream_lock_tag(&tag, stream,
						 (uint32) hash_text(entry->idempotency_key),
						 MSGQ_IDEMPOTENCY_LOCK);
	for (;;)
	{
		TransactionId open_xid;
		bool		found;

		CHECK_FOR_INTERRUPTS();
		(void) LockAcquire(&tag, ExclusiveLock, false, false);
		found = find_idempotency_key(stream_now(stream), entry, id, &open_xid);
		if (!found)
			insert_all(table, stream, slot, entry, 1, id);
		(void) LockRelease(&tag, ExclusiveLock, false);
		if (!found || !TransactionIdIsValid(open_xid))
			return !found;
		XactLockTableWait(open_xid, NULL, NULL, XLTW_None);
	}
}

/* ---------------------------------------------------------------------------
 * Appending
 * ---------------------------------------------------------------------------
 */

static bool
has_keys(const MsgqNewEntry *entries, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (entries[i].key)
			return true;
	}
	return false;
}

/* Opens the table of a stream that is locked. */
static MsgqAppender *
make_appender(const MsgqStream *stream, Relation active, MsgqSlot *slot,
			  bool by_key, bool by_idempotency_key)
{
	MsgqAppender *appender = palloc(sizeof(MsgqAppender));

	msgq_sequencer_want();
	appender->stream = stream;
	appender->slot = slot;
	open_entries(&appender->table, active, msgq_stream_active(stream),
				 RowExclusiveLock, by_key, by_idempotency_key);
	return appender;
}

/*
 * Opens the stream of this number, whose user's right was checked, for entries
 * with keys and with idempotency keys, and locks it to the end of the
 * transaction; NULL if it has gone.  Raises 25006 where nothing can be written,
 * 55000 if its storage is incomplete.
 */
MsgqAppender *
msgq_append_open(const char *command, int32 stream_id)
{
	const MsgqStream *stream;
	Relation	active;
	MsgqSlot   *slot;

	msgq_begin_change(command);
	stream = msgq_stream_open_id(stream_id, RowExclusiveLock, &active, &slot);
	if (stream)
		return make_appender(stream, active, slot, true, true);
	stream = msgq_stream_find_by_id(stream_id);
	if (stream)
		(void) msgq_stream_get(NameStr(stream->name), MSGQ_RIGHT_NONE);
	return NULL;
}

/*
 * Appends n entries, all or none, to a stream that is open, and fills their
 * ids; false if the one entry had been appended before.  Only a single one may
 * have an idempotency key or an expected id.  Keys and headers were checked.
 * Raises 54000 for what is too large, MQ003 and MQ006.
 */
bool
msgq_append_store(MsgqAppender *appender, const MsgqNewEntry *entries, int n,
				  int64 *ids)
{
	const MsgqStream *stream = appender->stream;
	bool		stored = n > 0;

	check_sizes(stream, entries, n);
	if (n == 1 && entries[0].has_expected_id)
		check_expected_id(stream, &entries[0]);
	if (n == 1 && entries[0].idempotency_key)
		stored = insert_once(&appender->table, stream, appender->slot,
							 &entries[0], &ids[0]);
	else
		insert_all(&appender->table, stream, appender->slot, entries, n, ids);
	if (stored)
		msgq_wake_sequencer_at_commit(appender->slot);
	return stored;
}

/*
 * Closes the stream, and makes what was appended visible to the next command.
 * With unlock, nothing was appended, and nobody has to wait for us.
 */
void
msgq_append_close(MsgqAppender *appender, bool unlock)
{
	close_entries(&appender->table, unlock ? RowExclusiveLock : NoLock);
	if (!unlock)
		CommandCounterIncrement();
}

/*
 * Appends n entries to the stream of this name, as msgq_append_store.  command
 * is the caller's name, for messages.  Checks the right "send".  Raises 42704,
 * 42501, 55000 as msgq_stream_get does, 25006 where nothing can be written.
 */
static void
append_entries(const char *command, const char *name,
			   const MsgqNewEntry *entries, int n, int64 *ids)
{
	const MsgqStream *stream;
	MsgqAppender *appender;
	Relation	active;
	MsgqSlot   *slot;

	msgq_begin_change(command);
	stream = msgq_stream_open(name, MSGQ_RIGHT_SEND, RowExclusiveLock, &active,
							  &slot);
	appender = make_appender(stream, active, slot, has_keys(entries, n),
							 n == 1 && entries[0].idempotency_key);
	(void) msgq_append_store(appender, entries, n, ids);
	msgq_append_close(appender, false);
}

/* A key has 1 to MSGQ_MAX_KEY_BYTES bytes (22023). */
static text *
check_key(Datum key, const char *argument)
{
	text	   *checked = DatumGetTextPP(key);
	Size		size = VARSIZE_ANY_EXHDR(checked);

	if (size < 1 || size > MSGQ_MAX_KEY_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a value of argument \"%s\" must have from 1 to %d bytes",
						argument, MSGQ_MAX_KEY_BYTES),
				 errdetail("This one has %zu bytes.", size)));
	return checked;
}

/* Nothing is a message only with a key, which it deletes. */
static void
check_tombstone(const MsgqNewEntry *entry, const char *argument)
{
	if (entry->content_column != 0 || entry->key)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
			 errmsg("argument \"%s\" must not be null without a key", argument),
			 errhint("With a key, null makes a tombstone, which deletes it.")));
}

/* append(stream, content, key, headers, idempotency_key, expected_id) */
static Datum
append_one(FunctionCallInfo fcinfo, const char *command, AttrNumber column,
		   const char *content)
{
	char	   *stream = msgq_arg_name(fcinfo, 0, "stream");
	MsgqNewEntry entry = {0};
	int64		id;

	if (!PG_ARGISNULL(1))
	{
		entry.content_column = column;
		entry.content = PG_GETARG_DATUM(1);
	}
	if (!PG_ARGISNULL(2))
		entry.key = check_key(PG_GETARG_DATUM(2), "key");
	check_tombstone(&entry, content);
	if (!PG_ARGISNULL(3))
	{
		entry.has_headers = true;
		entry.headers = PG_GETARG_DATUM(3);
		msgq_check_headers(DatumGetJsonbP(entry.headers));
	}
	if (!PG_ARGISNULL(4))
		entry.idempotency_key = check_key(PG_GETARG_DATUM(4), "idempotency_key");
	if (!PG_ARGISNULL(5))
	{
		entry.has_expected_id = true;
		entry.expected_id = PG_GETARG_INT64(5);
		if (entry.expected_id < 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("argument \"%s\" must not be negative", "expected_id")));
		msgq_check_not_null(entry.key == NULL, "key");
	}
	append_entries(command, stream, &entry, 1, &id);
	PG_RETURN_INT64(id);
}

PG_FUNCTION_INFO_V1(msgq_append);
Datum
msgq_append(PG_FUNCTION_ARGS)
{
	return append_one(fcinfo, "msgq.append()", Anum_entry_row_body, "body");
}

PG_FUNCTION_INFO_V1(msgq_append_bytes);
Datum
msgq_append_bytes(PG_FUNCTION_ARGS)
{
	return append_one(fcinfo, "msgq.append_bytes()", Anum_entry_row_data, "data");
}

/* append_batch(stream, bodies, keys, headers) */
PG_FUNCTION_INFO_V1(msgq_append_batch);
Datum
msgq_append_batch(PG_FUNCTION_ARGS)
{
	char	   *stream = msgq_arg_name(fcinfo, 0, "stream");
	ArrayType  *array = DatumGetArrayTypeP(msgq_arg(fcinfo, 1, "bodies"));
	bool	   *no_body;
	bool	   *no_key;
	bool	   *no_headers;
	int			n;
	Datum	   *bodies = msgq_array_elements(array, "bodies", &no_body, &n);
	Datum	   *keys = PG_ARGISNULL(2) ? NULL :
	msgq_companion_elements(fcinfo, 2, "keys", n, "bodies", &no_key);
	Datum	   *headers = PG_ARGISNULL(3) ? NULL :
	msgq_companion_elements(fcinfo, 3, "headers", n, "bodies", &no_headers);
	MsgqNewEntry *entries = palloc0(sizeof(MsgqNewEntry) * Max(n, 1));
	int64	   *ids = palloc(sizeof(int64) * Max(n, 1));

	for (int i = 0; i < n; i++)
	{
		if (!no_body[i])
		{
			entries[i].content_column = Anum_entry_row_body;
			entries[i].content = bodies[i];
		}
		if (keys && !no_key[i])
			entries[i].key = check_key(keys[i], "keys");
		check_tombstone(&entries[i], "bodies");
		entries[i].has_headers = headers && !no_headers[i];
		if (!entries[i].has_headers)
			continue;
		entries[i].headers = headers[i];
		msgq_check_headers(DatumGetJsonbP(headers[i]));
	}
	append_entries("msgq.append_batch()", stream, entries, n, ids);
	PG_RETURN_ARRAYTYPE_P(msgq_int8_array(ids, n));
}
