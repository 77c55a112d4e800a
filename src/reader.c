/*
 * reader.c
 *		Fetches the entries of a stream, by their places.
 *
 * A row of places (places.c) names the ids of up to 1000 entries in the order
 * of their positions, which within a row is that of the ids.  So a reader goes
 * through the primary key of a segment with them: from one wanted id to the
 * next, over those of other partitions, whose rows are not touched; over a
 * larger gap it searches anew.
 *
 * An entry is in the last segment whose first_id is not above its id, or, if
 * its writer had begun before a turn, in one before that.
 *
 * An entry that has a position is committed, so it is read with SnapshotSelf,
 * whatever the snapshot of the caller shows.  What is read is copied, and the
 * locks are given back at the end of the call.
 *
 * Positions are committed asynchronously (sequencer.c).  Whoever acts on them
 * in the database is safe by the order of the log.  scan has no such action;
 * it makes sure that the positions that it has read are on disk.
 *
 * src/reader.c
 */
#include "msgq.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xlog.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "argument.h"
#include "message.h"
#include "places.h"
#include "reader.h"
#include "table.h"

/* Over so many index entries a reader steps before it searches. */
#define MAX_STEPS		100

/* A segment that entries are fetched from. */
typedef struct Cursor
{
	Relation	table;			/* NULL: not opened */
	Relation	by_id;
	IndexScanDesc scan;
	TupleTableSlot *row;
	bool		at_end;
	int64		id;				/* on which it stands; 0: before the first */
} Cursor;

struct MsgqReader
{
	const MsgqStream *stream;
	Tuplestorestate *store;
	TupleDesc	descriptor;
	Cursor	   *cursors;		/* one for each segment */
};

/* The result goes to the store, which may be NULL if nothing is put there. */
MsgqReader *
msgq_reader_begin(const MsgqStream *stream, Tuplestorestate *store,
				  TupleDesc descriptor)
{
	MsgqReader *reader = palloc(sizeof(MsgqReader));

	reader->stream = stream;
	reader->store = store;
	reader->descriptor = descriptor;
	reader->cursors = palloc0(sizeof(Cursor) * stream->nsegments);
	return reader;
}

void
msgq_reader_end(MsgqReader *reader)
{
	for (int i = 0; i < reader->stream->nsegments; i++)
	{
		Cursor	   *cursor = &reader->cursors[i];

		if (cursor->table == NULL)
			continue;
		index_endscan(cursor->scan);
		ExecDropSingleTupleTableSlot(cursor->row);
		index_close(cursor->by_id, AccessShareLock);
		table_close(cursor->table, AccessShareLock);
	}
	pfree(reader->cursors);
	pfree(reader);
}

static Cursor *
open_cursor(MsgqReader *reader, int segment)
{
	const MsgqStreamSegment *which = &reader->stream->segments[segment];
	Cursor	   *cursor = &reader->cursors[segment];

	if (cursor->table)
		return cursor;
	cursor->table = msgq_stream_open_segment(reader->stream, which,
											 which->entries);
	cursor->by_id = msgq_open_primary_key(cursor->table);
	cursor->row = table_slot_create(cursor->table, NULL);
	cursor->scan = msgq_index_beginscan(cursor->table, cursor->by_id,
										SnapshotSelf, 1);
	cursor->scan->xs_want_itup = true;
	cursor->at_end = true;
	return cursor;
}

/* Goes to the next index entry. */
static void
advance(Cursor *cursor)
{
	bool		is_null;

	cursor->at_end = index_getnext_tid(cursor->scan, ForwardScanDirection) == NULL;
	if (!cursor->at_end)
		cursor->id = DatumGetInt64(index_getattr(cursor->scan->xs_itup, 1,
												 cursor->scan->xs_itupdesc,
												 &is_null));
}

/* Searches for this id, or the first one above. */
static void
search(Cursor *cursor, int64 id)
{
	ScanKeyData key;

	ScanKeyInit(&key, 1, BTGreaterEqualStrategyNumber, F_INT8GE,
				Int64GetDatum(id));
	index_rescan(cursor->scan, &key, 1, NULL, 0);
	advance(cursor);
}

/* Is an entry with this id in the cursor's segment?  Fills the cursor's row. */
static bool
find(Cursor *cursor, int64 id)
{
	int			steps = 0;

	/*
	 * What the cursor stands on may have been fetched already, as it can
	 * once.
	 */
	if (cursor->at_end || cursor->id >= id || id - cursor->id > MAX_STEPS)
		search(cursor, id);
	while (!cursor->at_end && cursor->id < id)
	{
		if (++steps > MAX_STEPS)
			search(cursor, id);
		else
			advance(cursor);
	}
	/* A dead row can have left an entry with the same id, after a restore. */
	while (!cursor->at_end && cursor->id == id)
	{
		if (index_fetch_heap(cursor->scan, cursor->row))
			return true;
		advance(cursor);
	}
	return false;
}

/* An entry, which there must be; the slot holds until the next call. */
TupleTableSlot *
msgq_reader_fetch(MsgqReader *reader, int64 id)
{
	const MsgqStream *stream = reader->stream;

	for (int i = stream->nsegments - 1; i >= 0; i--)
	{
		Cursor	   *cursor;

		if (stream->segments[i].first_id > id)
			continue;
		cursor = open_cursor(reader, i);
		if (find(cursor, id))
			return cursor->row;
	}
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("entry " INT64_FORMAT " of stream \"%s\" is missing", id,
					NameStr(stream->name)),
			 errdetail("It has a position, and is in none of the stream's tables.")));
	return NULL;
}

/* Appends an entry to the result; receipt may be NULL. */
void
msgq_reader_put(MsgqReader *reader, TupleTableSlot *row, int64 position,
				const pg_uuid_t *receipt)
{
	static const AttrNumber column_of[Natts_entry] = {
		[Anum_entry_partition - 1] = Anum_entry_row_partition,
		[Anum_entry_id - 1] = Anum_entry_row_id,
		[Anum_entry_key - 1] = Anum_entry_row_key,
		[Anum_entry_appended_at - 1] = Anum_entry_row_appended_at,
		[Anum_entry_headers - 1] = Anum_entry_row_headers,
		[Anum_entry_body - 1] = Anum_entry_row_body,
		[Anum_entry_data - 1] = Anum_entry_row_data,
	};
	Datum		values[Natts_entry];
	bool		nulls[Natts_entry];

	slot_getallattrs(row);
	for (int i = 0; i < Natts_entry; i++)
	{
		AttrNumber	column = column_of[i];

		nulls[i] = column == 0 || row->tts_isnull[column - 1];
		values[i] = nulls[i] ? (Datum) 0 : row->tts_values[column - 1];
		if (!nulls[i] && i >= Anum_entry_headers - 1)
			values[i] = msgq_self_contained(values[i]);
	}
	values[Anum_entry_position - 1] = Int64GetDatum(position);
	nulls[Anum_entry_position - 1] = false;
	if (receipt)
	{
		values[Anum_entry_receipt - 1] = UUIDPGetDatum(receipt);
		nulls[Anum_entry_receipt - 1] = false;
	}
	tuplestore_putvalues(reader->store, reader->descriptor, values, nulls);
	/* The store has a copy: large bodies must not pile up. */
	for (int i = Anum_entry_headers - 1; i < Natts_entry; i++)
	{
		if (!nulls[i] && values[i] != row->tts_values[column_of[i] - 1])
			pfree(DatumGetPointer(values[i]));
	}
}

/* Makes sure that the positions of the row of places are on disk. */
static void
flush_places(const MsgqPlaces *places)
{
	HeapTuple	row;
	TransactionId xid;

	if (RecoveryInProgress())
		return;
	/* The commit log may know nothing of one that is frozen. */
	row = ExecFetchSlotHeapTuple(places->table->row, false, NULL);
	xid = HeapTupleHeaderGetXmin(row->t_data);
	if (TransactionIdIsNormal(xid))
		XLogFlush(TransactionIdGetCommitLSN(xid));
}

/*
 * Puts up to max_entries entries of a partition into the result, from one
 * position on and before another one; flush says whether the caller may act on
 * what he gets without writing anything.  Returns the position to go on with.
 */
int64
msgq_reader_read(MsgqReader *reader, int partition, int64 from, int64 until,
				 int max_entries, const pg_uuid_t *receipt, bool flush)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	MsgqPlaces *places = msgq_places_begin(reader->stream, partition, from,
										   snapshot);
	int64		next = from;
	int64		end = Min(until, from + max_entries);

	while (next < end && msgq_places_next(places))
	{
		int64		last = Min(end, places->first_position + places->n);

		CHECK_FOR_INTERRUPTS();
		if (flush)
			flush_places(places);
		for (; next < last; next++)
		{
			int64		id = places->ids[next - places->first_position];

			msgq_reader_put(reader, msgq_reader_fetch(reader, id), next,
							receipt);
		}
	}
	msgq_places_end(places);
	UnregisterSnapshot(snapshot);
	return next;
}

/* Raises MQ008 if retention has dropped this position. */
void
msgq_check_kept(const MsgqStream *stream, int partition, int64 position)
{
	if (position < stream->first[partition])
		ereport(ERROR,
				(errcode(ERRCODE_MSGQ_POSITION_DROPPED),
				 errmsg("position " INT64_FORMAT " of stream \"%s\" has been dropped by its retention",
						position, NameStr(stream->name)),
				 errdetail("The first position that is left in partition %d is " INT64_FORMAT ".",
						   partition, stream->first[partition]),
				 errhint("Read from there, or move a group there with msgq.seek().")));
}

/* scan(stream, partition, from_position, max_entries) */
PG_FUNCTION_INFO_V1(msgq_scan);
Datum
msgq_scan(PG_FUNCTION_ARGS)
{
	char	   *name = msgq_arg_name(fcinfo, 0, "stream");
	int32		partition = DatumGetInt32(msgq_arg(fcinfo, 1, "partition"));
	int64		from = DatumGetInt64(msgq_arg(fcinfo, 2, "from_position"));
	int			max_entries = msgq_arg_count(fcinfo, 3, "max_entries");
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	const MsgqStream *stream = msgq_stream_get(name, MSGQ_RIGHT_RECEIVE);
	MsgqReader *reader;

	msgq_check_partition(stream, partition);
	if (from < MSGQ_FIRST_POSITION)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be greater than zero",
						"from_position")));
	msgq_check_kept(stream, partition, from);
	InitMaterializedSRF(fcinfo, 0);
	reader = msgq_reader_begin(stream, result->setResult, result->setDesc);
	(void) msgq_reader_read(reader, partition, from, PG_INT64_MAX, max_entries,
							NULL, true);
	msgq_reader_end(reader);
	return (Datum) 0;
}
