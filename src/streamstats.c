/*
 * streamstats.c
 *		What can be asked about streams: statistics, lag, the last entries.
 *
 * src/streamstats.c
 */
#include "msgq.h"

#include "access/table.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "argument.h"
#include "grouplog.h"
#include "message.h"
#include "owner.h"
#include "places.h"
#include "reader.h"
#include "segment.h"
#include "testing.h"

/* ---------------------------------------------------------------------------
 * stream_stats
 * ---------------------------------------------------------------------------
 */

/* Up to which id has the sequencer looked? */
static int64
high_mark(const MsgqStream *stream, Snapshot snapshot)
{
	MsgqTable  *table = msgq_places_open(stream, stream->nsegments - 1);
	ScanKeyData key;
	int64		high = 0;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(MSGQ_STEP_PARTITION));
	if (msgq_table_find(table, snapshot, &key, 1, BackwardScanDirection))
		high = DatumGetInt64(msgq_row_value(table->row, Anum_place_high));
	msgq_table_close(table, AccessShareLock);
	return high;
}

static int64
total_bytes(const MsgqStream *stream)
{
	int64		bytes = 0;

	for (int i = 0; i < stream->nsegments; i++)
		bytes += msgq_table_bytes(stream->segments[i].entries) +
			msgq_table_bytes(stream->segments[i].places);
	for (int i = 0; i < MSGQ_GROUP_LOGS; i++)
		bytes += msgq_table_bytes(stream->group_logs[i]);
	return bytes;
}

static void
put_stats(const MsgqStream *stream, ReturnSetInfo *result)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	int64		unsequenced = Max(0, msgq_last_id(stream->sequence) -
								  high_mark(stream, snapshot));
	int64		bytes = total_bytes(stream);

	for (int p = 0; p < stream->npartitions; p++)
	{
		int64		end = msgq_places_end_position(stream, p, snapshot);
		Datum		values[] = {
			CStringGetTextDatum(NameStr(stream->name)), Int32GetDatum(p),
			Int64GetDatum(stream->first[p]), Int64GetDatum(end),
			Int64GetDatum(end - stream->first[p]), Int64GetDatum(unsequenced),
			Int64GetDatum(bytes), Int32GetDatum(stream->nsegments)
		};
		bool		nulls[lengthof(values)] = {false};

		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	UnregisterSnapshot(snapshot);
}

/* list_stream_stats(): the rows of the view stream_stats */
PG_FUNCTION_INFO_V1(msgq_list_stream_stats);
Datum
msgq_list_stream_stats(PG_FUNCTION_ARGS)
{
	ListCell   *cell;

	InitMaterializedSRF(fcinfo, 0);
	foreach(cell, msgq_stream_list(MSGQ_RIGHT_PEEK))
	{
		const MsgqStream *stream = msgq_stream_hold(lfirst(cell));

		if (stream == NULL)
			continue;
		put_stats(stream, (ReturnSetInfo *) fcinfo->resultinfo);
		msgq_stream_release(stream);
	}
	return (Datum) 0;
}

/* ---------------------------------------------------------------------------
 * group_lag
 * ---------------------------------------------------------------------------
 */

/* Since when has the entry at this position been there, as an interval? */
static Datum
age_of(const MsgqStream *stream, int partition, int64 position,
	   Snapshot snapshot)
{
	MsgqPlaces *places = msgq_places_begin(stream, partition, position, snapshot);
	Interval   *age = palloc0(sizeof(Interval));

	if (msgq_places_next(places))
		age->time = Max(0, msgq_now() - places->sequenced_at);
	msgq_places_end(places);
	return IntervalPGetDatum(age);
}

static void
put_lag(const MsgqStream *stream, const char *group, int partition,
		const MsgqGroupPlace *place, Snapshot snapshot, ReturnSetInfo *result)
{
	int64		end = msgq_places_end_position(stream, partition, snapshot);
	bool		leased = place->leased_upto > place->position;
	Datum		values[] = {
		CStringGetTextDatum(NameStr(stream->name)), CStringGetTextDatum(group),
		Int32GetDatum(partition), Int64GetDatum(place->position),
		Int64GetDatum(end - place->position),
		age_of(stream, partition, Max(place->position, stream->first[partition]),
			   snapshot),
		TimestampTzGetDatum(place->leased_until), Int32GetDatum(place->deliveries)
	};
	bool		nulls[] = {false, false, false, false, false, false, !leased, !leased};

	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/* False if the stream has changed. */
static bool
put_lags(const MsgqStream *stream, ReturnSetInfo *result)
{
	char	  **names;
	int32	   *ids;
	int			n = msgq_group_list(stream, &names, &ids);
	Snapshot	snapshot;
	MsgqGroupLog log;

	if (!msgq_group_log_open(stream, &log, AccessShareLock))
		return false;
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	for (int i = 0; i < n; i++)
	{
		for (int p = 0; p < stream->npartitions; p++)
		{
			MsgqGroupPlace place = msgq_group_log_find(&log, ids[i], p);

			put_lag(stream, names[i], p, &place, snapshot, result);
		}
	}
	UnregisterSnapshot(snapshot);
	msgq_group_log_close(&log, AccessShareLock);
	return true;
}

/* list_group_lag(): the rows of the view group_lag */
PG_FUNCTION_INFO_V1(msgq_list_group_lag);
Datum
msgq_list_group_lag(PG_FUNCTION_ARGS)
{
	ListCell   *cell;

	InitMaterializedSRF(fcinfo, 0);
	foreach(cell, msgq_stream_list(MSGQ_RIGHT_PEEK))
	{
		const MsgqStream *stream = msgq_stream_hold(lfirst(cell));

		while (stream && !put_lags(stream, (ReturnSetInfo *) fcinfo->resultinfo))
		{
			msgq_stream_release(stream);
			stream = msgq_stream_hold(stream);
		}
		if (stream)
			msgq_stream_release(stream);
	}
	return (Datum) 0;
}

/* ---------------------------------------------------------------------------
 * last_per_key
 * ---------------------------------------------------------------------------
 */

/* The last entry of a key, as far as a walk has come. */
typedef struct LastEntry
{
	char		key[MSGQ_MAX_KEY_BYTES + 1];	/* hash key */
	int64		id;
	int64		position;
	bool		is_tombstone;
} LastEntry;

static int
compare_last_entries(const void *left, const void *right)
{
	const LastEntry *a = *(LastEntry *const *) left;
	const LastEntry *b = *(LastEntry *const *) right;

	return strcmp(a->key, b->key);
}

static void
remember_last(HTAB *last, TupleTableSlot *row, int64 position)
{
	char	   *key;
	LastEntry  *entry;
	bool		found;

	if (msgq_row_is_null(row, Anum_entry_row_key))
		return;
	key = TextDatumGetCString(msgq_row_value(row, Anum_entry_row_key));
	entry = hash_search(last, key, HASH_ENTER, &found);
	if (found && entry->id > msgq_row_id(row))
		return;
	entry->id = msgq_row_id(row);
	entry->position = position;
	entry->is_tombstone = msgq_row_is_null(row, Anum_entry_row_body) &&
		msgq_row_is_null(row, Anum_entry_row_data);
	pfree(key);
}

/*
 * Walks along all partitions.  The last entry of a key is that with the highest
 * id, as expected_id of append has it; where its writers waited for each other
 * it has the highest position, too.
 */
static void
find_last_entries(const MsgqStream *stream, MsgqReader *reader, HTAB *last,
				  Snapshot snapshot)
{
	for (int p = 0; p < stream->npartitions; p++)
	{
		MsgqPlaces *places = msgq_places_begin(stream, p, stream->first[p],
											   snapshot);

		while (msgq_places_next(places))
		{
			for (int i = 0; i < places->n; i++)
			{
				int64		position = places->first_position + i;

				CHECK_FOR_INTERRUPTS();
				if (position >= stream->first[p])
					remember_last(last, msgq_reader_fetch(reader, places->ids[i]),
								  position);
			}
		}
		msgq_places_end(places);
	}
}

static void
put_last_entries(MsgqReader *reader, HTAB *last)
{
	long		n = hash_get_num_entries(last);
	LastEntry **entries = palloc_extended(sizeof(LastEntry *) * (n + 1),
										  MCXT_ALLOC_HUGE);
	HASH_SEQ_STATUS status;
	LastEntry  *entry;
	long		i = 0;

	hash_seq_init(&status, last);
	while ((entry = hash_seq_search(&status)) != NULL)
		entries[i++] = entry;
	qsort(entries, n, sizeof(LastEntry *), compare_last_entries);
	for (i = 0; i < n; i++)
	{
		if (!entries[i]->is_tombstone)
			msgq_reader_put(reader, msgq_reader_fetch(reader, entries[i]->id),
							entries[i]->position, NULL);
	}
}

/* last_per_key(stream) */
PG_FUNCTION_INFO_V1(msgq_last_per_key);
Datum
msgq_last_per_key(PG_FUNCTION_ARGS)
{
	char	   *name = msgq_arg_name(fcinfo, 0, "stream");
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	const MsgqStream *stream = msgq_stream_get(name, MSGQ_RIGHT_RECEIVE);
	HASHCTL		control = {
		.keysize = MSGQ_MAX_KEY_BYTES + 1,
		.entrysize = sizeof(LastEntry),
		.hcxt = CurrentMemoryContext
	};
	HTAB	   *last = hash_create("msgq last entries", 1024, &control,
								   HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	Snapshot	snapshot;
	MsgqReader *reader;

	InitMaterializedSRF(fcinfo, 0);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	reader = msgq_reader_begin(stream, result->setResult, result->setDesc);
	find_last_entries(stream, reader, last, snapshot);
	put_last_entries(reader, last);
	msgq_reader_end(reader);
	UnregisterSnapshot(snapshot);
	hash_destroy(last);
	return (Datum) 0;
}
