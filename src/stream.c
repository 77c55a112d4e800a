/*
 * stream.c
 *		Finds streams by name, quickly, and checks rights on them.
 *
 * Reading order.  A stream is an append-only log of entries, in segment tables
 * msgq.s<id>_<n>.  append.c stores an entry in the caller's transaction and
 * gives it an id.  Ids are taken before the commit, so their order is not the
 * order in which entries can be seen; the sequencer (sequencer.c) looks for
 * entries that have been committed and gives each its position, which it
 * writes down in a table of places (places.c).  reader.c follows the places
 * and fetches the entries.  consumer.c reads for groups and remembers where
 * each of them is; retention.c drops what is old.
 *
 * Metadata.  A stream is a row of msgq.stream, its segments are rows of
 * msgq.stream_segment, its rights are privileges on its handle, the view
 * msgq.s<id>.  It is cached as a queue is (queue.c), by the same generation:
 * whoever changes one of these tables calls msgq_queue_changed.
 *
 * Locks.  Whoever appends locks the active table of entries in RowExclusive
 * mode to the end of his transaction, and looks again whether it is still the
 * active one.  Whoever reads entries or places locks their tables in
 * AccessShare mode for the call.  Then he looks whether the segment is still
 * what it was: retention needs AccessExclusive for a moment to empty one.
 *
 * src/stream.c
 */
#include "msgq.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "argument.h"
#include "owner.h"
#include "segment.h"
#include "stream.h"
#include "testing.h"
#include "worker.h"

/* A stream that was looked up, in a memory context of its own. */
typedef struct CachedStream
{
	NameData	name;			/* hash key */
	MsgqStream *stream;
	MemoryContext context;
} CachedStream;

static HTAB *cache = NULL;

/* ---------------------------------------------------------------------------
 * Reading the metadata
 * ---------------------------------------------------------------------------
 */

static Oid
storage_oid(int32 stream_id, const char *suffix)
{
	char		name[NAMEDATALEN];

	snprintf(name, sizeof(name), "s%d%s", stream_id, suffix);
	return msgq_relation_oid(name);
}

static Oid
numbered_oid(int32 stream_id, const char *letter, int n)
{
	char		suffix[NAMEDATALEN];

	snprintf(suffix, sizeof(suffix), "_%s%d", letter, n);
	return storage_oid(stream_id, suffix);
}

/* How many elements has a bigint[]? */
static int
length_of(Datum array)
{
	ArrayType  *positions = DatumGetArrayTypeP(array);

	return ArrayGetNItems(ARR_NDIM(positions), ARR_DIMS(positions));
}

/* The elements of a bigint[], as many as there are partitions. */
static int64 *
read_positions(Datum array, int npartitions)
{
	int64	   *positions = palloc(sizeof(int64) * Max(npartitions, 1));
	Datum	   *elements;
	int			n;

	deconstruct_array(DatumGetArrayTypeP(array), INT8OID, sizeof(int64),
					  FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &elements, NULL, &n);
	for (int i = 0; i < npartitions; i++)
		positions[i] = i < n ? DatumGetInt64(elements[i]) : MSGQ_FIRST_POSITION;
	return positions;
}

static int
compare_segments(const void *left, const void *right)
{
	const MsgqStreamSegment *a = left;
	const MsgqStreamSegment *b = right;

	return a->turn < b->turn ? -1 : a->turn > b->turn;
}

/* A row of msgq.stream_segment, whose arrays wait for all to be read. */
typedef struct SegmentRow
{
	MsgqStreamSegment segment;
	Datum		start;
	Datum		end;
	bool		has_end;
} SegmentRow;

/* Reads a row; false if the segment is empty. */
static bool
read_segment(int32 stream_id, const Datum *values, const bool *nulls,
			 SegmentRow *row)
{
	MsgqStreamSegment *segment = &row->segment;

	if (strcmp(TextDatumGetCString(values[Anum_stream_segment_state - 1]),
			   "empty") == 0)
		return false;
	memset(segment, 0, sizeof(MsgqStreamSegment));
	segment->n = DatumGetInt32(values[Anum_stream_segment_n - 1]);
	segment->turn = DatumGetInt64(values[Anum_stream_segment_turn - 1]);
	segment->entries = numbered_oid(stream_id, "", segment->n);
	segment->places = numbered_oid(stream_id, "p", segment->n);
	segment->by_key = storage_oid(stream_id, psprintf("_%d_key", segment->n));
	segment->by_idempotency_key =
		storage_oid(stream_id, psprintf("_%d_once", segment->n));
	segment->partitions =
		DatumGetInt32(values[Anum_stream_segment_partitions - 1]);
	segment->first_id = DatumGetInt64(values[Anum_stream_segment_first_id - 1]);
	segment->opened_at =
		DatumGetTimestampTz(values[Anum_stream_segment_opened_at - 1]);
	if (!nulls[Anum_stream_segment_complete_at - 1])
		segment->complete_at =
			DatumGetTimestampTz(values[Anum_stream_segment_complete_at - 1]);
	row->start = datumCopy(values[Anum_stream_segment_start_positions - 1],
						   false, -1);
	row->has_end = !nulls[Anum_stream_segment_end_positions - 1];
	if (row->has_end)
		row->end = datumCopy(values[Anum_stream_segment_end_positions - 1],
							 false, -1);
	return true;
}

/* The segments that may hold entries; the active one is the last. */
static void
read_segments(MsgqStream *stream)
{
	Relation	table = msgq_open_metadata("stream_segment");
	int			room = 8;
	SegmentRow *rows = palloc(sizeof(SegmentRow) * room);
	int			n = 0;
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	row;

	ScanKeyInit(&key, Anum_stream_segment_stream_id, BTEqualStrategyNumber,
				F_INT4EQ, Int32GetDatum(stream->id));
	scan = systable_beginscan(table, msgq_relation_oid("stream_segment_pkey"),
							  true, NULL, 1, &key);
	while (HeapTupleIsValid(row = systable_getnext(scan)))
	{
		Datum		values[Natts_stream_segment];
		bool		nulls[Natts_stream_segment];

		msgq_read_columns(row, RelationGetDescr(table), Natts_stream_segment, values, nulls);
		if (n == room)
			rows = repalloc(rows, sizeof(SegmentRow) * (room *= 2));
		if (!read_segment(stream->id, values, nulls, &rows[n]))
			continue;
		stream->npartitions = Max(stream->npartitions,
								  Max(rows[n].segment.partitions,
									  length_of(rows[n].start)));
		n++;
	}
	systable_endscan(scan);
	table_close(table, AccessShareLock);

	stream->nsegments = n;
	stream->segments = palloc0(sizeof(MsgqStreamSegment) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		stream->segments[i] = rows[i].segment;
		stream->segments[i].start = read_positions(rows[i].start,
												   stream->npartitions);
		if (rows[i].has_end)
			stream->segments[i].end = read_positions(rows[i].end,
													 stream->npartitions);
	}
	qsort(stream->segments, n, sizeof(MsgqStreamSegment), compare_segments);
}

static MsgqStream *
stream_from_row(const Datum *values, const bool *nulls)
{
	MsgqStream *stream = palloc0(sizeof(MsgqStream));

#define VALUE(column) values[(column) - 1]
#define IS_NULL(column) nulls[(column) - 1]
	stream->id = DatumGetInt32(VALUE(Anum_stream_id));
	namestrcpy(&stream->name, TextDatumGetCString(VALUE(Anum_stream_name)));
	stream->created_at = DatumGetTimestampTz(VALUE(Anum_stream_created_at));
	stream->has_retention = !IS_NULL(Anum_stream_retention);
	if (stream->has_retention)
		stream->retention = *DatumGetIntervalP(VALUE(Anum_stream_retention));
	if (!IS_NULL(Anum_stream_retention_bytes))
		stream->retention_bytes = DatumGetInt64(VALUE(Anum_stream_retention_bytes));
	if (!IS_NULL(Anum_stream_retention_entries))
		stream->retention_entries = DatumGetInt64(VALUE(Anum_stream_retention_entries));
	stream->hold_for_groups = DatumGetBool(VALUE(Anum_stream_hold_for_groups));
	if (!IS_NULL(Anum_stream_dead_letter_queue))
		namestrcpy(&stream->dead_letter_queue,
				   TextDatumGetCString(VALUE(Anum_stream_dead_letter_queue)));
	stream->max_deliveries = DatumGetInt32(VALUE(Anum_stream_max_deliveries));
	if (!IS_NULL(Anum_stream_max_held_bytes))
		stream->max_held_bytes = DatumGetInt64(VALUE(Anum_stream_max_held_bytes));
	stream->group_log = DatumGetInt32(VALUE(Anum_stream_group_log)) - 1;
	stream->handle = storage_oid(stream->id, "");
	stream->sequence = storage_oid(stream->id, "_id");
	for (int i = 0; i < MSGQ_GROUP_LOGS; i++)
		stream->group_logs[i] = numbered_oid(stream->id, "g", i + 1);
	/* A partition's positions go on where they were, whatever was dropped. */
	stream->npartitions = length_of(VALUE(Anum_stream_first_positions));
	read_segments(stream);
	stream->first = read_positions(VALUE(Anum_stream_first_positions),
								   stream->npartitions);
#undef VALUE
#undef IS_NULL
	return stream;
}

/* The stream of this name, or all if that is NULL, in the order of names. */
static List *
read_streams(const char *name)
{
	Oid			oid = msgq_relation_oid("stream");
	List	   *streams = NIL;
	uint64		read_at;
	Relation	table;
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	row;

	/* The library may be newer than what CREATE EXTENSION has made. */
	if (!OidIsValid(oid))
		return NIL;
	msgq_queue_watch();
	read_at = msgq_queue_generation();
	table = msgq_open(oid, AccessShareLock);
	ScanKeyInit(&key, Anum_stream_name, BTEqualStrategyNumber, F_TEXTEQ,
				CStringGetTextDatum(name ? name : ""));
	scan = systable_beginscan(table, msgq_relation_oid("stream_name_key"), true,
							  NULL, name ? 1 : 0, &key);
	while (HeapTupleIsValid(row = systable_getnext(scan)))
	{
		Datum		values[Natts_stream];
		bool		nulls[Natts_stream];
		MsgqStream *stream;

		msgq_read_columns(row, RelationGetDescr(table), Natts_stream, values, nulls);
		stream = stream_from_row(values, nulls);
		stream->generation = read_at;
		streams = lappend(streams, stream);
	}
	systable_endscan(scan);
	table_close(table, AccessShareLock);
	return streams;
}

/* ---------------------------------------------------------------------------
 * The cache
 * ---------------------------------------------------------------------------
 */

/* What is cached under this name is old: but somebody may be using it. */
static void
retire(CachedStream *entry)
{
	MemoryContextSetParent(entry->context, TopTransactionContext);
	(void) hash_search(cache, &entry->name, HASH_REMOVE, NULL);
}

/* The stream; NULL if there is none of this name.  Within a transaction. */
const MsgqStream *
msgq_stream_find(const char *name)
{
	NameData	key;
	CachedStream *entry;
	MemoryContext context;
	MemoryContext caller;
	List	   *streams;
	bool		found;

	AcceptInvalidationMessages();
	if (cache == NULL)
		cache = msgq_cache_create("msgq streams", sizeof(NameData),
								  sizeof(CachedStream));
	namestrcpy(&key, name);
	entry = hash_search(cache, &key, HASH_FIND, NULL);
	if (entry && entry->stream->generation == msgq_queue_generation())
		return entry->stream;
	if (entry)
		retire(entry);

	context = AllocSetContextCreate(TopTransactionContext, "msgq stream",
									ALLOCSET_SMALL_SIZES);
	caller = MemoryContextSwitchTo(context);
	streams = read_streams(name);
	MemoryContextSwitchTo(caller);
	if (streams == NIL)
		return NULL;
	entry = hash_search(cache, &key, HASH_ENTER, &found);
	entry->stream = linitial(streams);
	entry->context = context;
	MemoryContextSetParent(context, CacheMemoryContext);
	return entry->stream;
}

/* Is it what one would find now? */
bool
msgq_stream_is_current(const MsgqStream *stream)
{
	AcceptInvalidationMessages();
	return stream->generation == msgq_queue_generation();
}

/* The same among those that are cached, by number. */
static const MsgqStream *
find_cached(int32 id)
{
	const MsgqStream *found = NULL;
	HASH_SEQ_STATUS status;
	CachedStream *entry;

	AcceptInvalidationMessages();
	if (cache == NULL)
		return NULL;
	hash_seq_init(&status, cache);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		if (entry->stream->id == id &&
			entry->stream->generation == msgq_queue_generation())
			found = entry->stream;
	}
	return found;
}

/* The stream of this number, whatever its name is; NULL if it has gone. */
const MsgqStream *
msgq_stream_find_by_id(int32 id)
{
	const MsgqStream *cached = find_cached(id);
	ListCell   *cell;

	if (cached)
		return cached;

	foreach(cell, read_streams(NULL))
	{
		const MsgqStream *stream = lfirst(cell);

		if (stream->id == id)
			return msgq_stream_find(NameStr(stream->name));
	}
	return NULL;
}

/* ---------------------------------------------------------------------------
 * Rights
 * ---------------------------------------------------------------------------
 */

/* Were all of its relations there when it was looked up? */
bool
msgq_stream_is_complete(const MsgqStream *stream)
{
	for (int i = 0; i < stream->nsegments; i++)
	{
		if (!OidIsValid(stream->segments[i].entries) ||
			!OidIsValid(stream->segments[i].places))
			return false;
	}
	return stream->nsegments > 0 && OidIsValid(stream->handle) &&
		OidIsValid(stream->sequence) && OidIsValid(stream->group_logs[0]) &&
		OidIsValid(stream->group_logs[1]);
}

/*
 * The stream, if the current user has the right on it.  Raises 42704 if there
 * is none, 42501 without the right, 55000 if its storage is missing.
 */
const MsgqStream *
msgq_stream_get(const char *name, AclMode right)
{
	const MsgqStream *stream;
	bool		may;
	bool		is_missing;

	do
	{
		stream = msgq_stream_find(name);
		if (stream == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("stream \"%s\" does not exist", name)));
		if (!msgq_stream_is_complete(stream))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the storage of stream \"%s\" is incomplete", name),
					 errdetail("Its relations are named msgq.s%d and msgq.s%d_*.",
							   stream->id, stream->id),
					 errhint("Restore them from a dump, or drop the stream.")));
		may = msgq_has_right(stream->handle, right, &is_missing);
		if (is_missing)
			msgq_queue_forget_all();
	} while (is_missing);

	if (!may)
		msgq_refuse_without_right("stream", name, right);
	return stream;
}

/* All streams on which the current user has the right, by name. */
List	   *
msgq_stream_list(AclMode right)
{
	List	   *streams = NIL;
	ListCell   *cell;

	foreach(cell, read_streams(NULL))
	{
		MsgqStream *stream = lfirst(cell);
		bool		is_missing;

		if (msgq_stream_is_complete(stream) &&
			msgq_has_right(stream->handle, right, &is_missing))
			streams = lappend(streams, stream);
	}
	return streams;
}

/* ---------------------------------------------------------------------------
 * Opening
 * ---------------------------------------------------------------------------
 */

/* Locks the active table of entries; NULL if the stream has changed. */
static Relation
open_active(const MsgqStream *stream, LOCKMODE lock, MsgqSlot **slot)
{
	Relation	table;

	msgq_point(MSGQ_POINT_SEND_CHOSEN);
	table = try_table_open(msgq_stream_active(stream)->entries, lock);
	if (table == NULL)
		msgq_queue_forget_all();
	else if (msgq_stream_is_current(stream))
	{
		*slot = msgq_slot_get(stream->sequence, stream->created_at);
		msgq_worker_want();
		return table;
	}
	if (table)
		table_close(table, lock);
	return NULL;
}

/*
 * The stream, with its active table of entries locked: so it is not dropped,
 * and as long as the lock conflicts with that of a turn, which RowExclusive
 * does not, it does not turn.  slot may become NULL.  Errors as
 * msgq_stream_get.
 */
const MsgqStream *
msgq_stream_open(const char *name, AclMode right, LOCKMODE lock,
				 Relation *entries, MsgqSlot **slot)
{
	const MsgqStream *stream;

	do
	{
		stream = msgq_stream_get(name, right);
		*entries = open_active(stream, lock, slot);
	} while (*entries == NULL);
	return stream;
}

/* The same by number, without a right; NULL if it has gone or is incomplete. */
const MsgqStream *
msgq_stream_open_id(int32 id, LOCKMODE lock, Relation *entries, MsgqSlot **slot)
{
	const MsgqStream *stream;

	do
	{
		stream = msgq_stream_find_by_id(id);
		if (stream == NULL || !msgq_stream_is_complete(stream))
			return NULL;
		*entries = open_active(stream, lock, slot);
	} while (*entries == NULL);
	return stream;
}

/*
 * Locks another of its tables.  NULL if the stream has changed since it was
 * looked up: whoever depends on what he has seen begins anew.
 */
Relation
msgq_stream_open_table(const MsgqStream *stream, Oid table_oid, LOCKMODE lock)
{
	Relation	table = try_table_open(table_oid, lock);

	if (table && msgq_stream_is_current(stream))
		return table;
	if (table)
		table_close(table, lock);
	else
		msgq_queue_forget_all();
	return NULL;
}

/* Is this segment of the stream still what it was? */
static bool
is_kept(const MsgqStream *stream, const MsgqStreamSegment *segment)
{
	const MsgqStream *now;

	if (msgq_stream_is_current(stream))
		return true;
	now = msgq_stream_find_by_id(stream->id);
	for (int i = 0; now && i < now->nsegments; i++)
	{
		if (now->segments[i].n == segment->n &&
			now->segments[i].turn == segment->turn)
			return true;
	}
	return false;
}

/*
 * Locks a table of a segment for reading; NULL if retention has dropped the
 * segment meanwhile.
 */
Relation
msgq_stream_try_open_segment(const MsgqStream *stream,
							 const MsgqStreamSegment *segment, Oid table_oid)
{
	Relation	table = try_table_open(table_oid, AccessShareLock);

	if (table == NULL)
		msgq_queue_forget_all();
	else if (is_kept(stream, segment))
		return table;
	else
		table_close(table, AccessShareLock);
	return NULL;
}

/* The same, but raises MQ008. */
Relation
msgq_stream_open_segment(const MsgqStream *stream,
						 const MsgqStreamSegment *segment, Oid table_oid)
{
	Relation	table = msgq_stream_try_open_segment(stream, segment, table_oid);

	if (table)
		return table;
	ereport(ERROR,
			(errcode(ERRCODE_MSGQ_POSITION_DROPPED),
			 errmsg("entries of stream \"%s\" were dropped while they were being read",
					NameStr(stream->name)),
			 errhint("Read again, which tells the first position that is left.")));
	return NULL;
}

/* Locks the entries of all segments; false if the stream has changed. */
static bool
hold_segments(const MsgqStream *stream)
{
	/* The newest first, as drop_stream does. */
	for (int i = stream->nsegments - 1; i >= 0; i--)
	{
		Relation	entries = msgq_stream_open_table(stream,
													 stream->segments[i].entries,
													 AccessShareLock);

		if (entries == NULL)
		{
			while (++i < stream->nsegments)
				UnlockRelationOid(stream->segments[i].entries, AccessShareLock);
			return false;
		}
		table_close(entries, NoLock);
	}
	return true;
}

/*
 * The stream as it is now, with none of its segments going away until it is
 * released: for who tells about many streams, and must not fail because one of
 * them changes.  NULL if it has gone.
 */
const MsgqStream *
msgq_stream_hold(const MsgqStream *stream)
{
	CHECK_FOR_INTERRUPTS();
	msgq_point(MSGQ_POINT_SEND_CHOSEN);
	while (!hold_segments(stream))
	{
		CHECK_FOR_INTERRUPTS();
		stream = msgq_stream_find_by_id(stream->id);
		if (stream == NULL || !msgq_stream_is_complete(stream))
			return NULL;
	}
	return stream;
}

void
msgq_stream_release(const MsgqStream *stream)
{
	for (int i = 0; i < stream->nsegments; i++)
		UnlockRelationOid(stream->segments[i].entries, AccessShareLock);
}

/* Raises 22023 for a partition that the stream does not have. */
void
msgq_check_partition(const MsgqStream *stream, int32 partition)
{
	if (partition < 0 || partition >= stream->npartitions)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("stream \"%s\" has no partition %d",
						NameStr(stream->name), partition),
				 errdetail("Its partitions are numbered from 0 to %d.",
						   stream->npartitions - 1)));
}

/* A lock on something of a stream; SQL cannot take it. */
void
msgq_stream_lock_tag(LOCKTAG *tag, const MsgqStream *stream, uint32 what,
					 int kind)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, stream->sequence, what, kind);
}

/* stream_handle(stream_id) */
PG_FUNCTION_INFO_V1(msgq_stream_handle);
Datum
msgq_stream_handle(PG_FUNCTION_ARGS)
{
	Oid			handle = storage_oid(PG_GETARG_INT32(0), "");

	if (!OidIsValid(handle))
		PG_RETURN_NULL();
	PG_RETURN_OID(handle);
}
