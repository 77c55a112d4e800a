/*
 * sequencer.c
 *		Gives the entries of a stream their positions.
 *
 * Entries get their ids before they are committed.  A reader who went by ids
 * would pass the id of an open transaction and never see its entry; one who
 * waited for it would wait for whatever else that transaction does; and an
 * order by xid turns the entries of two transactions that waited for each other
 * around.  So entries get a second number when they have been committed: the
 * position, dense in each partition, written down once (places.c) and the same
 * for every group.
 *
 * A step of the sequencer
 *
 *	1. locks the sequence of the stream against other steps, to the end of the
 *	   transaction,
 *	2. asks for the append horizon: all ids up to it are in the index, or never
 *	   will be (storage.c),
 *	3. takes a snapshot, and
 *	4. looks at the ids above those of earlier steps, up to the horizon, and at
 *	   those that earlier steps have found open.  What the snapshot sees gets a
 *	   position, in the order of the ids; what is of an open transaction, or of
 *	   one that was when the snapshot was taken, is open and remembered; what
 *	   was undone is forgotten.
 *
 * Why that is right:
 *
 *	- Nothing is passed by: an id up to the horizon is in the index before the
 *	  snapshot is taken, so it is seen, or open, or undone.
 *	- An open transaction delays its own entries only.
 *	- The snapshot is one instant.  If a writer waited for another one (for the
 *	  row of a customer, say), and the snapshot sees his entries, it sees the
 *	  other one's as well, and these have the lower ids.  A walk that judges
 *	  each row when it comes by would see the second without the first.
 *	- For that, the snapshot must be newer than whatever earlier steps have
 *	  written: it is taken with the lock, whatever the isolation level is.
 *
 * A step is a transaction of its own, in the worker's process or by CALL
 * msgq.sequence(), never a part of a reader's: others would wait for its lock
 * until the reader commits.
 *
 * State.  The row of the last step (partition -1) says up to which id it has
 * looked, and what was found open, as the difference to the step before; now
 * and then a row has all that is open (count 1), so that not too many have to
 * be read together.  No xid is stored, since a dump would carry it to where it
 * means another transaction.  Which one has an open entry is remembered in the
 * process, so that a long one is not looked at in each step: only when it has
 * ended.  What is remembered is kept after the commit of its step only, and is
 * read again if the last row is not the one that it belongs to.
 *
 * Commit.  A position that is lost in a crash is given again, perhaps to
 * another entry.  So nobody may act on one that can be lost: what a reader
 * writes comes after it in the log, and is lost with it; who only reads makes
 * sure that the log is written (reader.c).  So steps commit asynchronously.
 *
 * Restore.  A dump has entries, places and steps, and they must fit.  While a
 * restore loads them the stream has no indexes yet, and is not touched.
 *
 * src/sequencer.c
 */
#include "msgq.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "message.h"
#include "places.h"
#include "segment.h"
#include "sequencer.h"
#include "testing.h"
#include "wakeup.h"

/* Ids at which a step looks at most, besides those that were open. */
#define MAX_STEP_IDS		50000

/* A row with all that is open is written after so many ranges of differences. */
#define MIN_LOGGED			200

/* Entries that a step has found open: ids from low to high, of one process. */
typedef struct OpenRange
{
	MsgqRange	ids;
	TransactionId xid;			/* who has them; invalid if we do not know */
} OpenRange;

/* What is remembered about a stream. */
typedef struct Sequencer
{
	Oid			sequence;		/* hash key */
	TimestampTz created_at;
	int64		turn;			/* of the segment that has the last step's row */
	int64		step;			/* its number; -1: nothing is remembered */
	TimestampTz stepped_at;
	int64		pending;		/* what step will be after the commit */
	struct Sequencer *next_pending; /* of those that have one */
	int64		high;
	int			nopen;
	int			open_room;
	OpenRange  *open;			/* rising */
	int64		logged;			/* ranges in rows since one that has all */
	int			npartitions;
	int64	   *next;			/* the position that comes next, for each */
} Sequencer;

/* An entry that can have a position. */
typedef struct Entry
{
	int64		id;
	int32		partition;
} Entry;

/* A segment whose entries a step looks at. */
typedef struct OpenSegment
{
	Relation	table;			/* NULL: not opened yet */
	Relation	by_id;
	IndexScanDesc scan;
	TupleTableSlot *row;
} OpenSegment;

/* A step under way. */
typedef struct Step
{
	const MsgqStream *stream;
	Sequencer  *sequencer;
	MsgqTable  *places;
	Snapshot	snapshot;
	TimestampTz now;
	int64		number;			/* of the last step, and then of this one */
	OpenSegment *segments;		/* one for each of the stream's */
	int			nentries;
	int			entry_room;
	Entry	   *entries;
	int			nopened;		/* found open by this step */
	int			opened_room;
	OpenRange  *opened;
	int			nclosed;		/* were open, and were looked at again */
	MsgqRange  *closed;
	int			nxids;			/* of transactions that may have ended */
	int			xid_room;
	TransactionId *xids;
	bool	   *has_ended;
} Step;

static HTAB *sequencers = NULL;

/* What this transaction's steps remember, until it has ended. */
static Sequencer *pending = NULL;

/* ---------------------------------------------------------------------------
 * Memory
 * ---------------------------------------------------------------------------
 */

static Sequencer *
recall(const MsgqStream *stream)
{
	HASHCTL		control = {
		.keysize = sizeof(Oid),
		.entrysize = sizeof(Sequencer),
	};
	Sequencer  *sequencer;
	bool		found;

	if (sequencers == NULL)
		sequencers = hash_create("msgq sequencers", 32, &control,
								 HASH_ELEM | HASH_BLOBS);
	sequencer = hash_search(sequencers, &stream->sequence, HASH_ENTER, &found);
	if (!found)
	{
		memset(sequencer, 0, sizeof(Sequencer));
		sequencer->sequence = stream->sequence;
		sequencer->step = -1;
	}
	if (sequencer->created_at != stream->created_at)
		sequencer->step = -1;
	sequencer->created_at = stream->created_at;
	if (sequencer->npartitions < stream->npartitions)
	{
		sequencer->next = sequencer->next ?
			repalloc(sequencer->next, sizeof(int64) * stream->npartitions) :
			MemoryContextAlloc(TopMemoryContext,
							   sizeof(int64) * stream->npartitions);
		sequencer->npartitions = stream->npartitions;
		sequencer->step = -1;
	}
	return sequencer;
}

/*
 * The transaction is over, or a part of it was undone: what its steps remember
 * holds only if all of it has committed.  Cannot fail.
 */
void
msgq_sequence_transaction_ended(bool committed)
{
	for (; pending; pending = pending->next_pending)
	{
		if (committed)
			pending->step = pending->pending;
	}
}

/* A step is complete: this is what its transaction has made of the stream. */
static void
remember_step(Sequencer *sequencer, int64 number)
{
	sequencer->pending = number;
	for (Sequencer *other = pending; other; other = other->next_pending)
	{
		if (other == sequencer)
			return;
	}
	sequencer->next_pending = pending;
	pending = sequencer;
}

static OpenRange *
grow_ranges(OpenRange *ranges, int n, int *room, MemoryContext context)
{
	int			more = *room > 0 ? 2 * *room : 64;

	if (n < *room)
		return ranges;
	*room = more;
	return ranges ? repalloc(ranges, sizeof(OpenRange) * more) :
		MemoryContextAlloc(context, sizeof(OpenRange) * more);
}

static void
add_open(Sequencer *sequencer, const OpenRange *range)
{
	sequencer->open = grow_ranges(sequencer->open, sequencer->nopen,
								  &sequencer->open_room, TopMemoryContext);
	sequencer->open[sequencer->nopen++] = *range;
}

static int
compare_ranges(const void *left, const void *right)
{
	const OpenRange *a = left;
	const OpenRange *b = right;

	return a->ids.low < b->ids.low ? -1 : a->ids.low > b->ids.low;
}

static void
sort_open(Sequencer *sequencer)
{
	qsort(sequencer->open, sequencer->nopen, sizeof(OpenRange), compare_ranges);
}

/* Takes away the ranges that were closed, each of which was one when it was. */
static void
remove_closed(Sequencer *sequencer, const MsgqRange *closed, int n)
{
	int			kept = 0;
	int			next = 0;

	for (int i = 0; i < sequencer->nopen; i++)
	{
		int64		low = sequencer->open[i].ids.low;

		while (next < n && closed[next].high < low)
			next++;
		if (next == n || closed[next].low > low)
			sequencer->open[kept++] = sequencer->open[i];
	}
	sequencer->nopen = kept;
}

/* ---------------------------------------------------------------------------
 * Reading the state
 * ---------------------------------------------------------------------------
 */

static Datum
column(const Step *step, AttrNumber n)
{
	return msgq_row_value(step->places->row, n);
}

/* Finds the row of the last step before this number, or of any if -1. */
static bool
find_step(Step *step, int64 before)
{
	ScanKeyData keys[2];

	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(MSGQ_STEP_PARTITION));
	ScanKeyInit(&keys[1], 2, BTLessStrategyNumber, F_INT8LT,
				Int64GetDatum(before < 0 ? PG_INT64_MAX : before));
	return msgq_table_find(step->places, step->snapshot, keys, 2,
						   BackwardScanDirection);
}

/* What one row says was opened and closed. */
typedef struct StepRow
{
	MsgqRange  *opened;
	int			nopened;
	MsgqRange  *closed;
	int			nclosed;
} StepRow;

/* Reads together what is open, from the last row that has all of it on. */
static void
read_open(Step *step)
{
	Sequencer  *sequencer = step->sequencer;
	List	   *rows = NIL;
	int64		number = -1;
	bool		has_all;
	ListCell   *cell;

	sequencer->nopen = 0;
	sequencer->logged = 0;
	do
	{
		StepRow    *row = palloc(sizeof(StepRow));

		if (!find_step(step, number))
			elog(ERROR, "stream with number %d has no step with all that is open",
				 step->stream->id);
		number = DatumGetInt64(column(step, Anum_place_first_position));
		has_all = DatumGetInt32(column(step, Anum_place_count)) == 1;
		row->opened = msgq_ranges_decode(column(step, Anum_place_ids),
										 &row->nopened);
		row->closed = msgq_ranges_decode(column(step, Anum_place_closed),
										 &row->nclosed);
		rows = lcons(row, rows);
	} while (!has_all);

	foreach(cell, rows)
	{
		const StepRow *row = lfirst(cell);

		remove_closed(sequencer, row->closed, row->nclosed);
		for (int i = 0; i < row->nopened; i++)
		{
			OpenRange	range = {row->opened[i], InvalidTransactionId};

			add_open(sequencer, &range);
		}
		sort_open(sequencer);
		if (cell != list_head(rows))
			sequencer->logged += row->nopened + row->nclosed;
	}
}

/* The position that comes next in a partition. */
static int64
read_next(Step *step, int partition)
{
	ScanKeyData key;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(partition));
	if (!msgq_table_find(step->places, step->snapshot, &key, 1,
						 BackwardScanDirection))
		return msgq_stream_active(step->stream)->start[partition];
	return DatumGetInt64(column(step, Anum_place_first_position)) +
		DatumGetInt32(column(step, Anum_place_count));
}

/*
 * Makes sure that what is remembered is what the last step has left.  Until
 * the commit it counts as forgotten: an error in between leaves it so.
 */
static void
load(Step *step)
{
	Sequencer  *sequencer = step->sequencer;
	int64		turn = msgq_stream_active(step->stream)->turn;
	int64		number;
	TimestampTz stepped_at;

	if (!find_step(step, -1))
		elog(ERROR, "stream with number %d has no step", step->stream->id);
	number = DatumGetInt64(column(step, Anum_place_first_position));
	stepped_at = DatumGetTimestampTz(column(step, Anum_place_sequenced_at));
	if (sequencer->step != number || sequencer->stepped_at != stepped_at ||
		sequencer->turn != turn)
	{
		sequencer->high = DatumGetInt64(column(step, Anum_place_high));
		read_open(step);
		for (int p = 0; p < step->stream->npartitions; p++)
			sequencer->next[p] = read_next(step, p);
	}
	sequencer->turn = turn;
	sequencer->stepped_at = stepped_at;
	sequencer->step = -1;
	step->number = number;
}

/* ---------------------------------------------------------------------------
 * Looking at entries
 * ---------------------------------------------------------------------------
 */

static void
add_entry(Step *step, int64 id, int32 partition)
{
	if (step->nentries == step->entry_room)
	{
		step->entry_room = Max(1024, 2 * step->entry_room);
		step->entries = step->entries ?
			repalloc_huge(step->entries, sizeof(Entry) * step->entry_room) :
			palloc(sizeof(Entry) * step->entry_room);
	}
	step->entries[step->nentries].id = id;
	step->entries[step->nentries++].partition = partition;
}

/*
 * Found open.  A range has only ids that were found so: what lies between two
 * of them may be another's, and have its position.
 */
static void
add_opened(Step *step, int64 id, TransactionId xid)
{
	OpenRange	range = {{id, id}, xid};
	OpenRange  *last = step->nopened > 0 ?
	&step->opened[step->nopened - 1] : NULL;

	if (last && last->ids.high == id - 1 && TransactionIdEquals(last->xid, xid))
	{
		last->ids.high = id;
		return;
	}
	step->opened = grow_ranges(step->opened, step->nopened, &step->opened_room,
							   CurrentMemoryContext);
	step->opened[step->nopened++] = range;
}

/* Judges the row in the slot. */
static void
look_at(Step *step, Relation table, TupleTableSlot *row)
{
	SnapshotData dirty;
	int64		id = msgq_row_id(row);

	if (table_tuple_satisfies_snapshot(table, row, step->snapshot))
	{
		add_entry(step, id,
				  DatumGetInt32(msgq_row_value(row, Anum_entry_row_partition)));
		return;
	}
	InitDirtySnapshot(dirty);
	if (table_tuple_satisfies_snapshot(table, row, &dirty))
		add_opened(step, id, dirty.xmin);
}

/* Opens a segment for the rest of the step, in which many ranges can be. */
static OpenSegment *
open_segment(Step *step, int i)
{
	const MsgqStreamSegment *segment = &step->stream->segments[i];
	OpenSegment *opened = &step->segments[i];

	if (opened->table)
		return opened;
	opened->table = msgq_stream_open_segment(step->stream, segment,
											 segment->entries);
	opened->by_id = msgq_open_primary_key(opened->table);
	opened->row = table_slot_create(opened->table, NULL);
	opened->scan = msgq_index_beginscan(opened->table, opened->by_id,
										SnapshotAny, 2);
	return opened;
}

static void
close_segments(Step *step)
{
	for (int i = 0; i < step->stream->nsegments; i++)
	{
		OpenSegment *opened = &step->segments[i];

		if (opened->table == NULL)
			continue;
		index_endscan(opened->scan);
		ExecDropSingleTupleTableSlot(opened->row);
		index_close(opened->by_id, AccessShareLock);
		table_close(opened->table, AccessShareLock);
	}
}

/* Looks at the entries of a segment from low to high. */
static void
walk_segment(Step *step, int i, int64 low, int64 high)
{
	OpenSegment *segment = open_segment(step, i);
	ScanKeyData keys[2];

	ScanKeyInit(&keys[0], 1, BTGreaterEqualStrategyNumber, F_INT8GE,
				Int64GetDatum(low));
	ScanKeyInit(&keys[1], 1, BTLessEqualStrategyNumber, F_INT8LE,
				Int64GetDatum(high));
	index_rescan(segment->scan, keys, 2, NULL, 0);
	while (index_getnext_slot(segment->scan, ForwardScanDirection, segment->row))
	{
		CHECK_FOR_INTERRUPTS();
		look_at(step, segment->table, segment->row);
	}
	ExecClearTuple(segment->row);
}

/*
 * Looks at the ids from low to high.  They can be in several segments, since
 * who has begun to append to one goes on there when it has been turned; but
 * not in one that is complete.
 */
static void
walk(Step *step, int64 low, int64 high)
{
	const MsgqStream *stream = step->stream;

	for (int i = 0; i < stream->nsegments; i++)
	{
		const MsgqStreamSegment *segment = &stream->segments[i];

		if (segment->complete_at == 0 && segment->first_id <= high)
			walk_segment(step, i, low, high);
	}
}

/* Has this transaction ended?  All ranges of one get the same answer. */
static bool
has_ended(Step *step, TransactionId xid)
{
	if (!TransactionIdIsValid(xid))
		return true;
	for (int i = step->nxids - 1; i >= 0; i--)
	{
		if (TransactionIdEquals(step->xids[i], xid))
			return step->has_ended[i];
	}
	if (step->nxids == step->xid_room)
	{
		step->xid_room = Max(64, 2 * step->xid_room);
		step->xids = step->xids ?
			repalloc(step->xids, sizeof(TransactionId) * step->xid_room) :
			palloc(sizeof(TransactionId) * step->xid_room);
		step->has_ended = step->has_ended ?
			repalloc(step->has_ended, sizeof(bool) * step->xid_room) :
			palloc(sizeof(bool) * step->xid_room);
	}
	step->xids[step->nxids] = xid;
	step->has_ended[step->nxids] = !TransactionIdIsInProgress(xid);
	return step->has_ended[step->nxids++];
}

/* Looks again at what was open, where its transaction has ended. */
static void
walk_open(Step *step)
{
	Sequencer  *sequencer = step->sequencer;

	step->closed = palloc(sizeof(MsgqRange) * Max(sequencer->nopen, 1));
	for (int i = 0; i < sequencer->nopen; i++)
	{
		const OpenRange *range = &sequencer->open[i];

		if (!has_ended(step, range->xid))
			continue;
		walk(step, range->ids.low, range->ids.high);
		step->closed[step->nclosed++] = range->ids;
	}
}

/* ---------------------------------------------------------------------------
 * Giving positions
 * ---------------------------------------------------------------------------
 */

static int
compare_entries(const void *left, const void *right)
{
	const Entry *a = left;
	const Entry *b = right;

	return a->id < b->id ? -1 : a->id > b->id;
}

static void
insert_row(Step *step, int partition, int64 first_position, int count,
		   int64 high, bytea *ids, bytea *closed)
{
	Datum		values[Natts_place];

	values[Anum_place_partition - 1] = Int32GetDatum(partition);
	values[Anum_place_first_position - 1] = Int64GetDatum(first_position);
	values[Anum_place_count - 1] = Int32GetDatum(count);
	values[Anum_place_high - 1] = Int64GetDatum(high);
	values[Anum_place_sequenced_at - 1] = TimestampTzGetDatum(step->now);
	values[Anum_place_ids - 1] = PointerGetDatum(ids);
	values[Anum_place_closed - 1] = PointerGetDatum(closed);
	msgq_table_insert(step->places, values, NULL);
	pfree(ids);
	pfree(closed);
}

/* Gives the next positions of a partition to these ids. */
static void
give_positions(Step *step, int partition, const int64 *ids, int n)
{
	int64	   *next = &step->sequencer->next[partition];

	while (n > 0)
	{
		int			count = Min(n, MSGQ_MAX_PLACES);

		insert_row(step, partition, *next, count, 0,
				   msgq_ids_encode(ids, count), msgq_ids_encode(NULL, 0));
		*next += count;
		ids += count;
		n -= count;
	}
}

/* Gives positions to all entries that were found, in the order of their ids. */
static void
give_all_positions(Step *step)
{
	int			npartitions = step->stream->npartitions;
	int		   *begin = palloc0(sizeof(int) * (npartitions + 1));
	int		   *end = palloc(sizeof(int) * npartitions);
	int64	   *ids = palloc_extended(sizeof(int64) * Max(step->nentries, 1),
									  MCXT_ALLOC_HUGE);

	qsort(step->entries, step->nentries, sizeof(Entry), compare_entries);
	for (int i = 0; i < step->nentries; i++)
	{
		if (step->entries[i].partition < 0 ||
			step->entries[i].partition >= npartitions)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("entry " INT64_FORMAT " of stream \"%s\" is in partition %d, which there is not",
							step->entries[i].id, NameStr(step->stream->name),
							step->entries[i].partition)));
		begin[step->entries[i].partition + 1]++;
	}
	for (int p = 0; p < npartitions; p++)
	{
		begin[p + 1] += begin[p];
		end[p] = begin[p];
	}
	for (int i = 0; i < step->nentries; i++)
		ids[end[step->entries[i].partition]++] = step->entries[i].id;
	for (int p = 0; p < npartitions; p++)
		give_positions(step, p, ids + begin[p], end[p] - begin[p]);
}

/* The ids of open ranges alone. */
static bytea *
encode_open(const OpenRange *ranges, int n)
{
	MsgqRange  *ids = palloc(sizeof(MsgqRange) * Max(n, 1));
	bytea	   *encoded;

	for (int i = 0; i < n; i++)
		ids[i] = ranges[i].ids;
	encoded = msgq_ranges_encode(ids, n);
	pfree(ids);
	return encoded;
}

/* Writes down what this step leaves. */
static void
write_state(Step *step, int64 high)
{
	Sequencer  *sequencer = step->sequencer;
	bool		has_all;

	/* Ranges of several segments, and of old and new ids, are mixed. */
	qsort(step->opened, step->nopened, sizeof(OpenRange), compare_ranges);
	remove_closed(sequencer, step->closed, step->nclosed);
	for (int i = 0; i < step->nopened; i++)
		add_open(sequencer, &step->opened[i]);
	sort_open(sequencer);
	sequencer->high = high;
	if (step->nentries == 0 && step->nopened == 0 && step->nclosed == 0)
		return;

	sequencer->logged += step->nopened + step->nclosed;
	has_all = sequencer->logged > MIN_LOGGED + sequencer->nopen;
	if (has_all)
		sequencer->logged = 0;
	sequencer->stepped_at = step->now;
	insert_row(step, MSGQ_STEP_PARTITION, ++step->number, has_all ? 1 : 0,
			   high,
			   has_all ? encode_open(sequencer->open, sequencer->nopen) :
			   encode_open(step->opened, step->nopened),
			   msgq_ranges_encode(step->closed, has_all ? 0 : step->nclosed));
}

/*
 * Writes a first row into a segment that is about to become active: with all
 * that is open, and the number of the last step.  Within a transaction that
 * has the lock and is not about to make a step.
 */
void
msgq_sequence_first_step(const MsgqStream *stream,
						 const MsgqStreamSegment *segment)
{
	Step		step = {.stream = stream,.now = msgq_now()};
	Relation	table;

	step.sequencer = recall(stream);
	if (stream->nsegments > 0)
	{
		step.places = msgq_places_open(stream, stream->nsegments - 1);
		step.snapshot = RegisterSnapshot(GetLatestSnapshot());
		load(&step);
		UnregisterSnapshot(step.snapshot);
		msgq_table_close(step.places, AccessShareLock);
	}
	else
		step.sequencer->high = step.sequencer->nopen = 0;
	table = msgq_open(segment->places, RowExclusiveLock);
	step.places = msgq_table_open(table, Natts_place, Natts_place, RowExclusiveLock);
	insert_row(&step, MSGQ_STEP_PARTITION, step.number, 1,
			   step.sequencer->high,
			   encode_open(step.sequencer->open, step.sequencer->nopen),
			   msgq_ids_encode(NULL, 0));
	msgq_table_close(step.places, NoLock);
	step.sequencer->step = -1;
	CommandCounterIncrement();
}

/* ---------------------------------------------------------------------------
 * Steps
 * ---------------------------------------------------------------------------
 */

/* Locks the active table as its opening will, if that is possible at once. */
static bool
try_lock_stream(int32 stream_id)
{
	const MsgqStream *stream = msgq_stream_find_by_id(stream_id);

	return stream && msgq_stream_is_complete(stream) &&
		ConditionalLockRelationOid(msgq_stream_active(stream)->entries,
								   AccessShareLock);
}

/*
 * Locks the sequence, and the stream as it is then; NULL if it has gone, or if
 * somebody is making a step, or dropping it, and we shall not wait.
 */
static const MsgqStream *
lock_sequence(int32 stream_id, bool wait, Relation *entries, MsgqSlot **slot)
{
	for (;;)
	{
		const MsgqStream *stream;
		LOCKTAG		tag;

		if (!wait && !try_lock_stream(stream_id))
			return NULL;
		stream = msgq_stream_open_id(stream_id, AccessShareLock, entries, slot);
		if (stream == NULL)
			return NULL;
		msgq_stream_lock_tag(&tag, stream, 0, MSGQ_SEQUENCE_LOCK);
		if (LockAcquire(&tag, ExclusiveLock, false, !wait) ==
			LOCKACQUIRE_NOT_AVAIL)
		{
			table_close(*entries, AccessShareLock);
			return NULL;
		}
		if (msgq_stream_is_current(stream))
			return stream;
		(void) LockRelease(&tag, ExclusiveLock, false);
		table_close(*entries, AccessShareLock);
		CHECK_FOR_INTERRUPTS();
	}
}

/* The stream's indexes are not there while a dump is being restored. */
static bool
is_being_restored(Relation entries, const MsgqStream *stream)
{
	Relation	places = msgq_open(msgq_stream_active(stream)->places,
								   RowExclusiveLock);
	bool		restored;

	list_free(RelationGetIndexList(entries));
	list_free(RelationGetIndexList(places));
	restored = !OidIsValid(entries->rd_pkindex) ||
		!OidIsValid(places->rd_pkindex);
	table_close(places, NoLock);
	return restored;
}

static void
make_step(Step *step, MsgqSlot *slot, MsgqSequenceStep *result)
{
	Sequencer  *sequencer = recall(step->stream);
	int64		horizon = msgq_append_horizon(step->stream->sequence, slot, true);
	int64		high;
	Relation	table = table_open(msgq_stream_active(step->stream)->places,
								   NoLock);

	msgq_point(MSGQ_POINT_SEQUENCE_HORIZON);
	step->sequencer = sequencer;
	step->segments = palloc0(sizeof(OpenSegment) * step->stream->nsegments);
	step->places = msgq_table_open(table, Natts_place, Natts_place, RowExclusiveLock);
	step->snapshot = RegisterSnapshot(GetLatestSnapshot());
	msgq_point(MSGQ_POINT_SEQUENCE_SNAPSHOT);
	load(step);
	/* Times rise with the steps, whatever the clock does. */
	step->now = Max(msgq_now(), sequencer->stepped_at + 1);
	high = Max(sequencer->high, Min(horizon, sequencer->high + MAX_STEP_IDS));

	walk_open(step);
	if (high > sequencer->high)
		walk(step, sequencer->high + 1, high);
	give_all_positions(step);
	write_state(step, high);
	close_segments(step);
	remember_step(sequencer, step->number);
	UnregisterSnapshot(step->snapshot);
	msgq_table_close(step->places, NoLock);

	result->given = step->nentries;
	result->high = high;
	result->has_more = high < horizon;
	result->caught_up = horizon != PG_INT64_MIN && high >= horizon;
	result->has_open = sequencer->nopen > 0;
	result->has_waiters = msgq_has_waiters(slot);
	if (step->nentries > 0)
		msgq_wake_at_commit(slot, MSGQ_MAX_BATCH);
}

/*
 * Makes a step, in the current transaction, which should be committed soon and
 * not be rolled back in parts.  False if the stream has gone or cannot
 * be used, or if wait is false and somebody else is making a step.
 */
bool
msgq_sequence_step(int32 stream_id, bool wait, MsgqSequenceStep *result)
{
	Step		step = {0};
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "msgq step",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext caller = MemoryContextSwitchTo(context);
	Relation	entries;
	MsgqSlot   *slot;
	bool		done = false;

	memset(result, 0, sizeof(MsgqSequenceStep));
	step.stream = lock_sequence(stream_id, wait, &entries, &slot);
	if (step.stream)
	{
		if (!is_being_restored(entries, step.stream))
		{
			make_step(&step, slot, result);
			done = true;
		}
		table_close(entries, NoLock);
		CommandCounterIncrement();
	}
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);
	return done;
}
