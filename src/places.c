/*
 * places.c
 *		Where the entries of a stream have their places.
 *
 * A row of a table of places, msgq.s<id>_p<n>, says which entries have the
 * positions from first_position on in a partition: the sequencer has given
 * them in one step, at sequenced_at, in the order of the ids.  It appends rows
 * while segment n is active and changes none, so positions are dense, and the
 * same for everybody, for ever.
 *
 * The sequencer's own state is in the same table, as rows of partition -1: one
 * for each step, with the number of the step as its position; see sequencer.c.
 *
 *	column			a partition's row			a step's row (partition -1)
 *	--------------	--------------------------	----------------------------
 *	first_position	position of the first id	number of the step
 *	count			how many ids				1: ids is all that is open
 *	high			0							ids up to here were looked at
 *	sequenced_at	when
 *	ids				the ids						open ids that were found
 *	closed			(empty)						open ids that are no longer
 *
 * Ids are written as ranges of consecutive ones: for each the gap to the one
 * before, and its length, as numbers of 7 bits a byte, the lowest first (LEB128,
 * see the DWARF standard).  The ids of a stream with one partition take a few
 * bytes a step, others two bytes an entry.
 *
 * src/places.c
 */
#include "msgq.h"

#include "access/table.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "message.h"
#include "places.h"

/* ---------------------------------------------------------------------------
 * Encoding
 * ---------------------------------------------------------------------------
 */

/* Bytes of the longest number. */
#define MAX_NUMBER_BYTES	10

static uint8 *
put_number(uint8 *to, uint64 number)
{
	while (number >= 0x80)
	{
		*to++ = (uint8) (number | 0x80);
		number >>= 7;
	}
	*to++ = (uint8) number;
	return to;
}

static const uint8 *
get_number(const uint8 *from, const uint8 *end, uint64 *number)
{
	int			shift = 0;

	*number = 0;
	while (from < end && shift < 64)
	{
		*number |= (uint64) (*from & 0x7f) << shift;
		if ((*from++ & 0x80) == 0)
			return from;
		shift += 7;
	}
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("the places of a stream are damaged")));
	return NULL;
}

/* Ranges that rise and do not overlap. */
bytea	   *
msgq_ranges_encode(const MsgqRange *ranges, int n)
{
	bytea	   *encoded = palloc(VARHDRSZ + (Size) n * 2 * MAX_NUMBER_BYTES);
	uint8	   *to = (uint8 *) VARDATA(encoded);
	int64		last = 0;

	for (int i = 0; i < n; i++)
	{
		to = put_number(to, ranges[i].low - last);
		to = put_number(to, ranges[i].high - ranges[i].low);
		last = ranges[i].high;
	}
	SET_VARSIZE(encoded, (char *) to - (char *) encoded);
	return encoded;
}

MsgqRange  *
msgq_ranges_decode(Datum encoded, int *n)
{
	bytea	   *bytes = DatumGetByteaPP(encoded);
	const uint8 *from = (const uint8 *) VARDATA_ANY(bytes);
	const uint8 *end = from + VARSIZE_ANY_EXHDR(bytes);

	/* A range takes two bytes at least. */
	MsgqRange  *ranges = palloc(sizeof(MsgqRange) * ((end - from) / 2 + 1));
	int64		last = 0;

	for (*n = 0; from < end; (*n)++)
	{
		uint64		gap;
		uint64		length;

		from = get_number(from, end, &gap);
		from = get_number(from, end, &length);
		ranges[*n].low = last + (int64) gap;
		ranges[*n].high = last = ranges[*n].low + (int64) length;
	}
	return ranges;
}

/* Ids that rise. */
bytea	   *
msgq_ids_encode(const int64 *ids, int n)
{
	MsgqRange  *ranges = palloc(sizeof(MsgqRange) * Max(n, 1));
	int			nranges = 0;
	bytea	   *encoded;

	for (int i = 0; i < n; i++)
	{
		if (nranges > 0 && ids[i] == ranges[nranges - 1].high + 1)
			ranges[nranges - 1].high = ids[i];
		else
			ranges[nranges++] = (MsgqRange)
		{
			ids[i], ids[i]
		};
	}
	encoded = msgq_ranges_encode(ranges, nranges);
	pfree(ranges);
	return encoded;
}

/* The ids of a row, as many as it says. */
static void
decode_ids(MsgqPlaces *places, Datum encoded)
{
	int			nranges;
	MsgqRange  *ranges = msgq_ranges_decode(encoded, &nranges);
	int			n = 0;

	for (int i = 0; i < nranges; i++)
	{
		for (int64 id = ranges[i].low; id <= ranges[i].high && n < MSGQ_MAX_PLACES; id++)
			places->ids[n++] = id;
	}
	pfree(ranges);
	if (n != places->n)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the places of stream \"%s\" are damaged",
						NameStr(places->stream->name)),
				 errdetail("In partition %d there are %d entries from position " INT64_FORMAT " on, and not %d.",
						   places->partition, n, places->first_position,
						   places->n)));
}

/* ---------------------------------------------------------------------------
 * Looking up
 * ---------------------------------------------------------------------------
 */

/* Opens the places of a segment for reading; closed with AccessShareLock. */
MsgqTable  *
msgq_places_open(const MsgqStream *stream, int segment)
{
	const MsgqStreamSegment *which = &stream->segments[segment];

	return msgq_table_open(msgq_stream_open_segment(stream, which, which->places),
						   Natts_place, Natts_place, AccessShareLock);
}

/* Finds the last row of a partition that begins at a position or before. */
static bool
find_before(MsgqTable *table, Snapshot snapshot, int partition, int64 position)
{
	ScanKeyData keys[2];

	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(partition));
	ScanKeyInit(&keys[1], 2, BTLessEqualStrategyNumber, F_INT8LE,
				Int64GetDatum(position));
	return msgq_table_find(table, snapshot, keys, 2, BackwardScanDirection);
}

static int64
row_position(const MsgqTable *table)
{
	return DatumGetInt64(msgq_row_value(table->row, Anum_place_first_position));
}

static int
row_count(const MsgqTable *table)
{
	return DatumGetInt32(msgq_row_value(table->row, Anum_place_count));
}

/* The position that the partition's next entry will have. */
int64
msgq_places_end_position(const MsgqStream *stream, int partition,
						 Snapshot snapshot)
{
	MsgqTable  *table = msgq_places_open(stream, stream->nsegments - 1);
	int64		end = msgq_stream_active(stream)->start[partition];

	if (find_before(table, snapshot, partition, PG_INT64_MAX))
		end = row_position(table) + row_count(table);
	msgq_table_close(table, AccessShareLock);
	return end;
}

/* The last segment whose positions begin at this one or before. */
static int
segment_of(const MsgqStream *stream, int partition, int64 position)
{
	int			i = stream->nsegments - 1;

	while (i > 0 && stream->segments[i].start[partition] > position)
		i--;
	return i;
}

/* ---------------------------------------------------------------------------
 * Walking
 * ---------------------------------------------------------------------------
 */

/*
 * Begins a walk; the snapshot must be one that shows what is committed now,
 * and stay registered or active until the walk ends.
 */
MsgqPlaces *
msgq_places_begin(const MsgqStream *stream, int partition, int64 from,
				  Snapshot snapshot)
{
	MsgqPlaces *places = palloc(sizeof(MsgqPlaces));

	places->stream = stream;
	places->partition = partition;
	places->from = places->expected = from;
	places->snapshot = snapshot;
	places->segment = segment_of(stream, partition, from) - 1;
	places->table = NULL;
	places->n = 0;
	return places;
}

static void
close_segment(MsgqPlaces *places)
{
	if (places->table == NULL)
		return;
	index_endscan(places->scan);
	msgq_table_close(places->table, AccessShareLock);
	places->table = NULL;
}

/* Opens the next segment, at the row in which the wanted position is. */
static void
open_segment(MsgqPlaces *places)
{
	ScanKeyData keys[2];
	int64		begin = 0;
	MsgqTable  *table = msgq_places_open(places->stream, ++places->segment);

	if (find_before(table, places->snapshot, places->partition, places->from))
		begin = row_position(table);
	ExecClearTuple(table->row);
	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(places->partition));
	ScanKeyInit(&keys[1], 2, BTGreaterEqualStrategyNumber, F_INT8GE,
				Int64GetDatum(begin));
	places->scan = msgq_index_beginscan(table->table, table->index,
										places->snapshot, 2);
	index_rescan(places->scan, keys, 2, NULL, 0);
	places->table = table;
}

/* Fills the row; false if all of it is before what is wanted. */
static bool
fill_row(MsgqPlaces *places)
{
	MsgqTable  *table = places->table;

	places->first_position = row_position(table);
	places->n = row_count(table);
	if (places->first_position + places->n <= places->from)
		return false;
	if (places->first_position > places->expected)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("places of stream \"%s\" are missing",
						NameStr(places->stream->name)),
				 errdetail("In partition %d there is nothing at position " INT64_FORMAT ", but at " INT64_FORMAT ".",
						   places->partition, places->expected,
						   places->first_position)));
	places->expected = places->first_position + places->n;
	places->sequenced_at =
		DatumGetTimestampTz(msgq_row_value(table->row, Anum_place_sequenced_at));
	decode_ids(places, msgq_row_value(table->row, Anum_place_ids));
	return true;
}

/* The next row that has wanted positions; false at the end of the partition. */
bool
msgq_places_next(MsgqPlaces *places)
{
	for (;;)
	{
		if (places->table == NULL)
		{
			if (places->segment == places->stream->nsegments - 1)
				return false;
			open_segment(places);
		}
		while (index_getnext_slot(places->scan, ForwardScanDirection,
								  places->table->row))
		{
			if (fill_row(places))
				return true;
		}
		close_segment(places);
	}
}

void
msgq_places_end(MsgqPlaces *places)
{
	close_segment(places);
	pfree(places);
}

/* ---------------------------------------------------------------------------
 * By time
 * ---------------------------------------------------------------------------
 */

/* When were the positions of the row before this one given? */
static bool
is_before(MsgqTable *table, Snapshot snapshot, int partition, int64 position,
		  TimestampTz time)
{
	return find_before(table, snapshot, partition, position) &&
		DatumGetTimestampTz(msgq_row_value(table->row,
										   Anum_place_sequenced_at)) < time;
}

/*
 * The first position that was given at this time or later; the partition's
 * end if none was.  Times of steps rise, so this is a search by halves, first
 * for the segment.
 */
int64
msgq_places_at_time(const MsgqStream *stream, int partition, TimestampTz time,
					Snapshot snapshot)
{
	int			i = stream->nsegments - 1;
	int64		low;
	int64		high;
	MsgqTable  *table;

	while (i > 0 && stream->segments[i].opened_at >= time)
		i--;
	low = stream->segments[i].start[partition];
	high = i < stream->nsegments - 1 ? stream->segments[i + 1].start[partition] :
		msgq_places_end_position(stream, partition, snapshot);
	table = msgq_places_open(stream, i);
	while (low < high)
	{
		int64		middle = low + (high - low) / 2;

		if (is_before(table, snapshot, partition, middle, time))
			low = row_position(table) + row_count(table);
		else
			high = middle;
	}
	msgq_table_close(table, AccessShareLock);
	return low;
}
