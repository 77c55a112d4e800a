/*
 * retention.c
 *		Drops what is old in streams, a segment at a time.
 *
 * A segment is a table of entries and a table of places.  Its states, in
 * msgq.stream_segment:
 *
 *	active		takes new entries, and all places that are given meanwhile
 *	full		is read; complete_at tells when it had nothing left to wait for
 *	empty		was truncated, and can become active
 *
 *	active -> full, empty -> active		the active one is large or old: a turn
 *	full, then complete					all its entries have positions
 *	full -> empty						its entries are older than the retention
 *
 * Turn.  It takes the sequence lock (sequencer.c), so that the positions that
 * the new segment begins with are those of the next step.  It does not wait
 * for appenders: one who has begun to append to the old segment may go on.
 * Each of them holds RowExclusive on its table to the end of his transaction.
 *
 * Completion.  So when ShareLock on a full table can be had, nobody will append
 * to it any more, and what was appended is committed or undone.  Then one more
 * step gives positions to all of it, and the positions that come next then are
 * the segment's end: all its entries lie before.
 *
 * Dropping.  Only the oldest segment is dropped, when it is complete and one of
 * the limits allows it.  Everything before its end is dropped then, in every
 * partition, also what lies in the next segment but got its position before: so
 * what is left is a part of the log without gaps, and first_positions says
 * where it begins.  By age a segment is dropped when it was complete for so
 * long: then all that lies before its end is older.
 *
 * It is emptied by TRUNCATE, with AccessExclusive on both of its tables, if
 * these can be had at once: readers hold theirs for the call only.  An older
 * snapshot of somebody who begins to read by SQL later sees an empty table; by
 * the functions everybody reads with new snapshots, and gets an error (MQ008).
 *
 * A group that has not read the segment's entries keeps it, if the stream has
 * hold_for_groups, unless it holds more than max_held_bytes.
 *
 * Group logs take turns as well, see grouplog.c.
 *
 * src/retention.c
 */
#include "msgq.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "admin.h"
#include "argument.h"
#include "grouplog.h"
#include "message.h"
#include "owner.h"
#include "places.h"
#include "retention.h"
#include "segment.h"
#include "sequencer.h"
#include "stats.h"
#include "streamadmin.h"
#include "table.h"
#include "testing.h"

/* A limit is divided into so many segments. */
#define SEGMENTS_PER_LIMIT	8

/* A segment is not turned before it has this size, nor left much above that. */
#define MIN_SEGMENT_BYTES	(INT64CONST(1) * 1024 * 1024)
#define MAX_SEGMENT_BYTES	(INT64CONST(256) * 1024 * 1024)

/* Beyond this size, a stream's segments grow with it. */
#define MAX_SEGMENTS		32

/* A group log is turned when it has this size. */
#define GROUP_LOG_BYTES		(INT64CONST(16) * 1024 * 1024)

/* ---------------------------------------------------------------------------
 * Sizes and positions
 * ---------------------------------------------------------------------------
 */

static int64
segment_bytes(const MsgqStreamSegment *segment)
{
	return msgq_table_bytes(segment->entries) + msgq_table_bytes(segment->places);
}

static int64
stream_bytes(const MsgqStream *stream)
{
	int64		bytes = 0;

	for (int i = 0; i < stream->nsegments; i++)
		bytes += segment_bytes(&stream->segments[i]);
	return bytes;
}

/* The positions that come next, for each partition: palloc'd. */
static int64 *
end_positions(const MsgqStream *stream)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	int64	   *end = palloc(sizeof(int64) * stream->npartitions);

	for (int p = 0; p < stream->npartitions; p++)
		end[p] = msgq_places_end_position(stream, p, snapshot);
	UnregisterSnapshot(snapshot);
	return end;
}

/* Such positions as a bigint[]. */
static Datum
positions_datum(const MsgqStream *stream, const int64 *positions)
{
	return PointerGetDatum(msgq_int8_array(positions, stream->npartitions));
}

/*
 * The stream of this number, with metadata locked; NULL if it has gone, or is
 * being restored, or somebody is in the way.
 */
static const MsgqStream *
lock_stream(int32 stream_id, MsgqRound *round)
{
	const MsgqStream *stream;

	if (!msgq_try_lock_metadata())
	{
		round->waiting++;
		return NULL;
	}
	stream = msgq_stream_find_by_id(stream_id);
	return stream && msgq_stream_is_complete(stream) ? stream : NULL;
}

/* ---------------------------------------------------------------------------
 * Turning
 * ---------------------------------------------------------------------------
 */

/* The number of an empty segment, which is made if there is none; within SPI. */
static int
find_empty_segment(const MsgqStream *stream)
{
	bool		is_null;
	int			n;

	msgq_spi_run("SELECT min(n) FROM msgq.stream_segment "
				 "WHERE stream_id = %d AND state = 'empty'", stream->id);
	n = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
									1, &is_null));
	if (!is_null)
		return n;
	msgq_spi_run("INSERT INTO msgq.stream_segment (stream_id, n, state, turn, partitions, "
				 "first_id, start_positions) "
				 "SELECT %1$d, max(n) + 1, 'empty', 0, 1, 1, '{}' "
				 "FROM msgq.stream_segment WHERE stream_id = %1$d RETURNING n",
				 stream->id);
	n = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
									1, &is_null));
	msgq_use_default_tablespace();
	msgq_stream_segment_create(stream->id, n, NameStr(stream->name));
	msgq_stream_handle_create(stream->id);
	return n;
}

/*
 * Makes an empty segment active, whose entries are spread over so many
 * partitions.  The caller has locked metadata.
 */
void
msgq_stream_turn(const MsgqStream *stream, int partitions)
{
	const MsgqStreamSegment *active = msgq_stream_active(stream);
	Oid			types[] = {INT8OID, INT8ARRAYOID, TIMESTAMPTZOID};
	Datum		values[3];
	MsgqStreamSegment next = {0};
	LOCKTAG		tag;
	MsgqSpi		spi;
	int			n;

	msgq_stream_lock_tag(&tag, stream, 0, MSGQ_SEQUENCE_LOCK);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	values[0] = Int64GetDatum(msgq_last_id(stream->sequence) + 1);
	values[1] = positions_datum(stream, end_positions(stream));
	values[2] = TimestampTzGetDatum(msgq_now());

	msgq_spi_begin(&spi, msgq_storage_owner());
	n = find_empty_segment(stream);
	msgq_spi_run("UPDATE msgq.stream_segment SET state = 'full' "
				 "WHERE stream_id = %d AND n = %d", stream->id, active->n);
	msgq_spi_run_with(psprintf("UPDATE msgq.stream_segment SET state = 'active', turn = "
							   INT64_FORMAT ", partitions = %d, first_id = $1, "
							   "start_positions = $2, end_positions = NULL, "
							   "opened_at = $3, complete_at = NULL "
							   "WHERE stream_id = %d AND n = %d",
							   active->turn + 1, partitions, stream->id, n),
					  SPI_OK_UPDATE, lengthof(types), types, values, NULL, false);
	msgq_spi_end(&spi);
	CommandCounterIncrement();

	next.places = msgq_relation_oid(psprintf("s%d_p%d", stream->id, n));
	msgq_sequence_first_step(stream, &next);
	msgq_queue_changed();
	CommandCounterIncrement();
}

/* How large may the active segment become? */
static int64
segment_limit(const MsgqStream *stream)
{
	int64		limit = Max(MAX_SEGMENT_BYTES, stream_bytes(stream) / MAX_SEGMENTS);

	if (stream->retention_bytes > 0)
		limit = Min(limit, stream->retention_bytes / SEGMENTS_PER_LIMIT);
	return Max(limit, MIN_SEGMENT_BYTES);
}

/* Entries since the active segment was opened. */
static int64
active_entries(const MsgqStream *stream)
{
	int64	   *end = end_positions(stream);
	int64		entries = 0;

	for (int p = 0; p < stream->npartitions; p++)
		entries += end[p] - msgq_stream_active(stream)->start[p];
	return entries;
}

/* When has a segment that was opened then to be turned, by its age? */
static TimestampTz
turn_time(const MsgqStream *stream)
{
	if (!stream->has_retention)
		return DT_NOEND;
	return msgq_stream_active(stream)->opened_at +
		msgq_interval_span(&stream->retention) / SEGMENTS_PER_LIMIT;
}

static bool
turn_is_due(const MsgqStream *stream)
{
	int64		entries = active_entries(stream);

	if (entries == 0)
		return false;
	return segment_bytes(msgq_stream_active(stream)) >= segment_limit(stream) ||
		(stream->retention_entries > 0 &&
		 entries >= Max(1, stream->retention_entries / SEGMENTS_PER_LIMIT)) ||
		turn_time(stream) <= msgq_now();
}

/* Turns a stream if its active segment is large or old; true if it did. */
bool
msgq_stream_turn_if_due(int32 stream_id, MsgqRound *round)
{
	const MsgqStream *stream = msgq_stream_find_by_id(stream_id);

	if (stream == NULL || !msgq_stream_is_complete(stream) ||
		!turn_is_due(stream))
		return false;
	stream = lock_stream(stream_id, round);
	if (stream == NULL || !turn_is_due(stream))
		return false;
	msgq_stream_turn(stream, msgq_stream_active(stream)->partitions);
	round->turned++;
	return true;
}

/* ---------------------------------------------------------------------------
 * Completing
 * ---------------------------------------------------------------------------
 */

/* The oldest full segment that is not complete; NULL if there is none. */
static const MsgqStreamSegment *
incomplete_segment(const MsgqStream *stream)
{
	for (int i = 0; i < stream->nsegments - 1; i++)
	{
		if (stream->segments[i].complete_at == 0)
			return &stream->segments[i];
	}
	return NULL;
}

/* The highest id in a segment to which nobody is appending; 0 for none. */
static int64
last_id(const MsgqStreamSegment *segment)
{
	Relation	table = table_open(segment->entries, NoLock);
	TupleTableSlot *row = table_slot_create(table, NULL);
	Relation	index;
	IndexScanDesc scan;
	int64		last = 0;

	index = msgq_open_primary_key(table);
	scan = msgq_index_beginscan(table, index, SnapshotSelf, 0);
	index_rescan(scan, NULL, 0, NULL, 0);
	while (last == 0 && index_getnext_slot(scan, BackwardScanDirection, row))
		last = msgq_row_id(row);
	index_endscan(scan);
	index_close(index, AccessShareLock);
	ExecDropSingleTupleTableSlot(row);
	table_close(table, NoLock);
	return last;
}

/*
 * Steps until all that is in a segment was looked at; false if somebody who is
 * appending to another one keeps the append horizon below that.
 */
static bool
sequence_segment(const MsgqStream *stream, const MsgqStreamSegment *segment)
{
	int64		last = last_id(segment);
	MsgqSequenceStep step;

	do
	{
		if (!msgq_sequence_step(stream->id, true, &step))
			return false;
	} while (step.has_more);
	return step.high >= last;
}

/* Writes down where the oldest full segment ends, if that is known. */
bool
msgq_stream_complete(int32 stream_id, MsgqRound *round)
{
	const MsgqStream *stream = msgq_stream_find_by_id(stream_id);
	const MsgqStreamSegment *segment;
	Oid			types[] = {INT8ARRAYOID, TIMESTAMPTZOID};
	Datum		values[2];
	MsgqSpi		spi;

	if (stream == NULL || !msgq_stream_is_complete(stream) ||
		incomplete_segment(stream) == NULL)
		return false;
	stream = lock_stream(stream_id, round);
	segment = stream ? incomplete_segment(stream) : NULL;
	if (segment == NULL)
		return false;
	if (!ConditionalLockRelationOid(segment->entries, ShareLock) ||
		!sequence_segment(stream, segment))
	{
		round->waiting++;
		return false;
	}
	values[0] = positions_datum(stream, end_positions(stream));
	values[1] = TimestampTzGetDatum(msgq_now());
	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run_with(psprintf("UPDATE msgq.stream_segment SET end_positions = $1, complete_at = $2 "
							   "WHERE stream_id = %d AND n = %d",
							   stream->id, segment->n),
					  SPI_OK_UPDATE, lengthof(types), types, values, NULL, false);
	msgq_spi_end(&spi);
	msgq_queue_changed();
	round->drained++;
	return true;
}

/* ---------------------------------------------------------------------------
 * Dropping
 * ---------------------------------------------------------------------------
 */

/* Entries that would be left if all before these positions were dropped. */
static int64
entries_after(const MsgqStream *stream, const int64 *positions)
{
	int64	   *end = end_positions(stream);
	int64		entries = 0;

	for (int p = 0; p < stream->npartitions; p++)
		entries += end[p] - positions[p];
	return entries;
}

/* Is there a group that has not read all before these positions? */
static bool
is_wanted(const MsgqStream *stream, const int64 *positions)
{
	MsgqGroupLog log;
	bool		wanted = false;
	char	  **names;
	int32	   *ids;
	int			n = msgq_group_list(stream, &names, &ids);

	if (!msgq_group_log_open(stream, &log, AccessShareLock))
		return true;
	for (int i = 0; i < n; i++)
	{
		for (int p = 0; p < stream->npartitions && !wanted; p++)
			wanted = msgq_group_log_find(&log, ids[i], p).position < positions[p];
	}
	msgq_group_log_close(&log, AccessShareLock);
	return wanted;
}

/* Is the oldest segment kept for groups though its time has come? */
static bool
is_held(const MsgqStream *stream)
{
	return stream->hold_for_groups &&
		(stream->max_held_bytes == 0 ||
		 stream_bytes(stream) <= stream->max_held_bytes) &&
		is_wanted(stream, stream->segments[0].end);
}

/* Where a segment's positions end: where the next one's begin, or at the end. */
static const int64 *
positions_end(const MsgqStream *stream, int i, const int64 *end)
{
	return i < stream->nsegments - 1 ? stream->segments[i + 1].start : end;
}

/*
 * Bytes that would be left if the oldest segment, and all before its end, were
 * dropped.  Of a segment that lies partly before that, the same part counts.
 */
static int64
bytes_after_oldest(const MsgqStream *stream)
{
	const int64 *dropped = stream->segments[0].end;
	int64	   *end = end_positions(stream);
	double		bytes = 0;

	for (int i = 1; i < stream->nsegments; i++)
	{
		const MsgqStreamSegment *segment = &stream->segments[i];
		const int64 *segment_end = positions_end(stream, i, end);
		double		all = 0;
		double		left = 0;

		for (int p = 0; p < stream->npartitions; p++)
		{
			all += segment_end[p] - segment->start[p];
			left += Max(0, segment_end[p] - Max(segment->start[p], dropped[p]));
		}
		if (all > 0)
			bytes += segment_bytes(segment) * (left / all);
	}
	return (int64) bytes;
}

/* Does one of the limits allow the oldest segment to be dropped? */
static bool
is_over_limit(const MsgqStream *stream)
{
	const MsgqStreamSegment *oldest = &stream->segments[0];

	return (stream->has_retention && oldest->complete_at +
			msgq_interval_span(&stream->retention) <= msgq_now()) ||
		(stream->retention_entries > 0 &&
		 entries_after(stream, oldest->end) >= stream->retention_entries) ||
		(stream->retention_bytes > 0 &&
		 bytes_after_oldest(stream) >= stream->retention_bytes);
}

static bool
drop_is_due(const MsgqStream *stream)
{
	return stream->nsegments > 1 && stream->segments[0].complete_at != 0 &&
		is_over_limit(stream) && !is_held(stream);
}

/* Does a stream keep so much for its groups that it will soon drop some? */
bool
msgq_stream_holds_too_much(const MsgqStream *stream)
{
	return stream->hold_for_groups && stream->max_held_bytes > 0 &&
		stream->nsegments > 1 && stream->segments[0].complete_at != 0 &&
		is_over_limit(stream) &&
		stream_bytes(stream) > stream->max_held_bytes / 2 &&
		is_wanted(stream, stream->segments[0].end);
}

/* Drops the oldest segment if that is due; true if it did. */
bool
msgq_stream_drop_oldest(int32 stream_id, MsgqRound *round)
{
	const MsgqStream *stream = msgq_stream_find_by_id(stream_id);
	const MsgqStreamSegment *oldest;
	Oid			type = INT8ARRAYOID;
	Datum		first;
	MsgqSpi		spi;

	if (stream == NULL || !msgq_stream_is_complete(stream) ||
		!drop_is_due(stream))
		return false;
	stream = lock_stream(stream_id, round);
	if (stream == NULL || !drop_is_due(stream))
		return false;
	oldest = &stream->segments[0];
	if (!msgq_try_lock_table(oldest->entries) || !msgq_try_lock_table(oldest->places))
	{
		round->waiting++;
		return false;
	}
	first = positions_datum(stream, oldest->end);
	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run_with(psprintf("UPDATE msgq.stream SET first_positions = $1 WHERE id = %d",
							   stream->id),
					  SPI_OK_UPDATE, 1, &type, &first, NULL, false);
	msgq_spi_run("UPDATE msgq.stream_segment SET state = 'empty', end_positions = NULL, "
				 "complete_at = NULL WHERE stream_id = %d AND n = %d",
				 stream->id, oldest->n);
	msgq_spi_run("TRUNCATE ONLY msgq.s%1$d_%2$d, ONLY msgq.s%1$d_p%2$d",
				 stream->id, oldest->n);
	msgq_spi_end(&spi);
	msgq_queue_changed();
	round->reclaimed++;
	return true;
}

/*
 * When something is to be done, if nothing happens until then; 0 for never.
 * What could not be done because somebody was in the way is tried soon.
 */
TimestampTz
msgq_stream_due(const MsgqStream *stream)
{
	TimestampTz soon = msgq_now() + 5 * USECS_PER_SEC;
	TimestampTz due = DT_NOEND;

	if (incomplete_segment(stream))
		due = soon;
	else if (stream->nsegments > 1 && stream->has_retention)
		due = stream->segments[0].complete_at +
			msgq_interval_span(&stream->retention);
	if (active_entries(stream) > 0)
		due = Min(due, turn_time(stream));
	if (due == DT_NOEND)
		return 0;
	/* A held segment is looked at now and then. */
	return Max(due, soon);
}

/* ---------------------------------------------------------------------------
 * Group logs
 * ---------------------------------------------------------------------------
 */

/*
 * Rows of the kept table that still count go into the current one; false if
 * the stream has changed.
 */
static bool
empty_kept_log(const MsgqStream *stream)
{
	int			current = stream->group_log + 1;
	int			kept = 2 - stream->group_log;
	MsgqGroupLog log;
	MsgqSpi		spi;

	/* Nobody's trigger or rule may run as the owner: this refuses them. */
	if (!msgq_group_log_open(stream, &log, RowExclusiveLock))
		return false;
	msgq_group_log_close(&log, NoLock);
	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run("INSERT INTO msgq.s%1$d_g%2$d "
				 "SELECT DISTINCT ON (k.group_id, k.partition) k.* "
				 "FROM msgq.s%1$d_g%3$d k JOIN msgq.stream_group g ON g.id = k.group_id "
				 "WHERE NOT EXISTS (SELECT FROM msgq.s%1$d_g%2$d c "
				 "WHERE c.group_id = k.group_id AND c.partition = k.partition AND c.n >= k.n) "
				 "ORDER BY k.group_id, k.partition, k.n DESC",
				 stream->id, current, kept);
	msgq_spi_run("TRUNCATE ONLY msgq.s%d_g%d", stream->id, kept);
	msgq_spi_end(&spi);
	return true;
}

/*
 * Empties the kept group log, if nobody uses it, and then, if the current one
 * is large, lets the other one take new rows.  True if it did something.
 */
bool
msgq_group_log_turn(int32 stream_id, MsgqRound *round)
{
	const MsgqStream *stream = msgq_stream_find_by_id(stream_id);
	Oid			kept;
	MsgqSpi		spi;

	if (stream == NULL || !msgq_stream_is_complete(stream))
		return false;
	kept = stream->group_logs[1 - stream->group_log];
	if (msgq_table_main_bytes(kept) > 0)
	{
		if (!msgq_lock_table_between_calls(kept) || !empty_kept_log(stream))
		{
			round->waiting++;
			return false;
		}
		round->emptied++;
		return true;
	}
	if (msgq_table_main_bytes(stream->group_logs[stream->group_log]) < GROUP_LOG_BYTES ||
		lock_stream(stream_id, round) == NULL || !msgq_stream_is_current(stream))
		return false;
	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run("UPDATE msgq.stream SET group_log = %d WHERE id = %d",
				 2 - stream->group_log, stream_id);
	msgq_spi_end(&spi);
	msgq_queue_changed();
	round->rotated++;
	return true;
}
