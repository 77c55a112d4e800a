/*
 * stats.c
 *		What is counted for each queue, and the view msgq.queue_stats.
 *
 * Counters.  A transaction collects what it has done, by nesting level of its
 * subtransactions, and adds it to the queue's slot after its commit; what is
 * rolled back, also to a savepoint, is not counted, and neither is what a
 * prepared transaction did, since nobody is told of its commit.  The slot lives
 * as long as the server; the worker saves the sums in msgq.queue_total now
 * and then, and they go on from there after a restart.  So a crash loses what
 * was counted since the worker saved last.
 *
 * To be saved, a row is replaced only when its predecessor can be removed by
 * vacuum: however long a snapshot is held, there are two versions of it.
 *
 * Depth.  A small queue is counted, by the statement's snapshot.  For a large
 * one, the number of messages is what the worker has counted once plus what
 * came and went since; what is delayed or in flight is counted in the due
 * index if that is little, or else is what the worker has counted last.  The
 * column exact tells which it is.  (What is few is counted even then, by a
 * walk over it.)
 *
 * src/stats.c
 */
#include "msgq.h"

#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/procarray.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "message.h"
#include "owner.h"
#include "segment.h"
#include "stats.h"
#include "testing.h"

/* Pages of a queue's tables up to which it is counted when it is asked for. */
#define SMALL_PAGES			1024

/* Index entries of a large queue that are looked through at most, for each. */
#define WALK_ENTRIES		1000

/* ---------------------------------------------------------------------------
 * Counting
 * ---------------------------------------------------------------------------
 */

typedef struct Pending
{
	MsgqSlot   *slot;
	int			nest_level;
	int64		counts[MSGQ_NCOUNTERS];
} Pending;

static Pending *pending = NULL;
static int	npending = 0;
static int	pending_room = 0;

/* Among the first n: the deepest levels come last. */
static Pending *
find_pending(MsgqSlot *slot, int nest_level, int n)
{
	while (--n >= 0)
	{
		if (pending[n].slot == slot && pending[n].nest_level == nest_level)
			return &pending[n];
	}
	return NULL;
}

static Pending *
pending_of(MsgqSlot *slot)
{
	int			nest_level = GetCurrentTransactionNestLevel();
	Pending    *found = find_pending(slot, nest_level, npending);

	if (found)
		return found;
	pending = msgq_make_room(pending, npending, &pending_room,
							 sizeof(Pending));
	memset(&pending[npending], 0, sizeof(Pending));
	pending[npending].slot = slot;
	pending[npending].nest_level = nest_level;
	return &pending[npending++];
}

/* The current transaction has done this to so many messages. */
void
msgq_count(MsgqSlot *slot, MsgqCounter counter, int64 n)
{
	if (slot && n != 0)
		pending_of(slot)->counts[counter] += n;
}

static void
add_counts(int64 *sum, const int64 *counts)
{
	for (int i = 0; i < MSGQ_NCOUNTERS; i++)
		sum[i] += counts[i];
}

/* What it means for the number of messages. */
static int64
change_of_live(const int64 *counts)
{
	return counts[MSGQ_SENT] + counts[MSGQ_REDRIVEN] -
		counts[MSGQ_ACKED] - counts[MSGQ_ARCHIVED] -
		counts[MSGQ_DEAD_LETTERED] - counts[MSGQ_EXPIRED] -
		counts[MSGQ_DROPPED] - counts[MSGQ_PURGED] -
		counts[MSGQ_CANCELLED];
}

/* After the commit, or the end of it otherwise; cannot fail. */
void
msgq_stats_transaction_ended(bool committed)
{
	for (int i = 0; committed && i < npending; i++)
	{
		MsgqSlot   *slot = pending[i].slot;

		for (int counter = 0; counter < MSGQ_NCOUNTERS; counter++)
		{
			if (pending[i].counts[counter] != 0)
				pg_atomic_fetch_add_u64(&slot->counters[counter],
										pending[i].counts[counter]);
		}
		pg_atomic_fetch_add_u64(&slot->live,
								change_of_live(pending[i].counts));
	}
	npending = 0;
}

/* Nobody will tell of its commit, but the worker should look. */
void
msgq_stats_transaction_prepared(void)
{
	for (int i = 0; i < npending; i++)
		pg_atomic_fetch_add_u64(&pending[i].slot->prepared, 1);
	npending = 0;
}

/*
 * What it has done is its parent's: there is one entry for each slot and
 * level, however many subtransactions there were.
 */
void
msgq_stats_subtransaction_committed(int nest_level)
{
	int			n = 0;

	for (int i = 0; i < npending; i++)
	{
		Pending    *parent = NULL;

		if (pending[i].nest_level >= nest_level)
		{
			pending[i].nest_level = nest_level - 1;
			parent = find_pending(pending[i].slot, nest_level - 1, n);
		}
		if (parent == NULL)
			pending[n++] = pending[i];
		else
			add_counts(parent->counts, pending[i].counts);
	}
	npending = n;
}

void
msgq_stats_subtransaction_aborted(int nest_level)
{
	int			n = 0;

	for (int i = 0; i < npending; i++)
	{
		if (pending[i].nest_level < nest_level)
			pending[n++] = pending[i];
	}
	npending = n;
}

/* ---------------------------------------------------------------------------
 * Totals that survive a restart
 * ---------------------------------------------------------------------------
 */

/* What was saved for the queue; zeros if nothing was.  Within SPI. */
static bool
read_totals(int32 queue_id, int64 *totals, TransactionId *xmin)
{
	Oid			type = INT4OID;
	Datum		value = Int32GetDatum(queue_id);
	bool		is_null;
	Datum	   *elements;
	int			n;

	memset(totals, 0, sizeof(int64) * MSGQ_NCOUNTERS);
	msgq_spi_run_with("SELECT totals, xmin FROM msgq.queue_total WHERE queue_id = $1",
					  SPI_OK_SELECT, 1, &type, &value, NULL, false);
	if (SPI_processed == 0)
		return false;
	deconstruct_array(DatumGetArrayTypeP(SPI_getbinval(SPI_tuptable->vals[0],
													   SPI_tuptable->tupdesc,
													   1, &is_null)),
					  INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE,
					  &elements, NULL, &n);
	for (int i = 0; i < Min(n, MSGQ_NCOUNTERS); i++)
		totals[i] = DatumGetInt64(elements[i]);
	*xmin = DatumGetTransactionId(SPI_getbinval(SPI_tuptable->vals[0],
												SPI_tuptable->tupdesc,
												2, &is_null));
	return true;
}

/* Makes the slot's counters go on from what was saved. */
void
msgq_stats_load(MsgqSlot *slot, int32 queue_id)
{
	int64		totals[MSGQ_NCOUNTERS];
	TransactionId xmin;
	MsgqSpi		spi;

	if (pg_atomic_read_u32(&slot->has_floor))
		return;
	msgq_spi_begin(&spi, msgq_storage_owner());
	(void) read_totals(queue_id, totals, &xmin);
	msgq_spi_end(&spi);
	msgq_slot_load_floor(slot, totals);
}

static void
get_totals(const MsgqSlot *slot, int64 *totals)
{
	for (int i = 0; i < MSGQ_NCOUNTERS; i++)
		totals[i] = slot->floor[i] +
			(int64) pg_atomic_read_u64((pg_atomic_uint64 *) &slot->counters[i]);
}

/*
 * What the view shows.  On a standby nothing is counted, and what is saved
 * there comes from the primary, and goes on coming.
 */
static void
show_totals(MsgqSlot *slot, int32 queue_id, int64 *totals)
{
	TransactionId xmin;
	MsgqSpi		spi;

	if (!RecoveryInProgress())
	{
		msgq_stats_load(slot, queue_id);
		get_totals(slot, totals);
		return;
	}
	msgq_spi_begin(&spi, msgq_storage_owner());
	(void) read_totals(queue_id, totals, &xmin);
	msgq_spi_end(&spi);
}

/* Can vacuum remove what this transaction has replaced? */
static bool
is_old(TransactionId xmin)
{
	Relation	table = RelationIdGetRelation(msgq_relation_oid("queue_total"));
	TransactionId oldest = GetOldestNonRemovableTransactionId(table);

	RelationClose(table);
	return TransactionIdPrecedes(xmin, oldest);
}

/*
 * Saves the totals, unless they are as they were, or a row that cannot be
 * removed yet would be left behind.  The worker's.
 */
void
msgq_stats_save(MsgqSlot *slot, int32 queue_id)
{
	Oid			types[] = {INT4OID, INT8ARRAYOID};
	Datum		values[2];
	int64		saved[MSGQ_NCOUNTERS];
	int64		totals[MSGQ_NCOUNTERS];
	Datum		elements[MSGQ_NCOUNTERS];
	TransactionId xmin;
	MsgqSpi		spi;
	bool		found;

	msgq_stats_load(slot, queue_id);
	msgq_spi_begin(&spi, msgq_storage_owner());
	found = read_totals(queue_id, saved, &xmin);
	get_totals(slot, totals);
	if (memcmp(saved, totals, sizeof(totals)) != 0 && (!found || is_old(xmin)))
	{
		for (int i = 0; i < MSGQ_NCOUNTERS; i++)
			elements[i] = Int64GetDatum(totals[i]);
		values[0] = Int32GetDatum(queue_id);
		values[1] = PointerGetDatum(construct_array(elements, MSGQ_NCOUNTERS,
													INT8OID, sizeof(int64),
													FLOAT8PASSBYVAL,
													TYPALIGN_DOUBLE));
		msgq_spi_run_with("INSERT INTO msgq.queue_total VALUES ($1, $2) "
						  "ON CONFLICT (queue_id) DO UPDATE SET totals = $2",
						  SPI_OK_INSERT, 2, types, values, NULL, false);
	}
	msgq_spi_end(&spi);
}

/* ---------------------------------------------------------------------------
 * Depth
 * ---------------------------------------------------------------------------
 */

typedef struct Depth
{
	int64		ready;
	int64		delayed;
	int64		in_flight;
	TimestampTz oldest;			/* 0: none */
} Depth;

/* Reads every message, as the active snapshot has them. */
static void
count_messages(const MsgqQueue *queue, TimestampTz now, Depth *depth)
{
	Oid			type = TIMESTAMPTZOID;
	Datum		value = TimestampTzGetDatum(now);
	Datum		columns[4];
	bool		is_null;
	MsgqSpi		spi;

	msgq_spi_begin(&spi, InvalidOid);
	msgq_spi_run_with(psprintf("SELECT "
							   "count(*) FILTER (WHERE visible_at IS NULL OR visible_at <= $1), "
							   "count(*) FILTER (WHERE visible_at > $1 AND leased_at IS NULL), "
							   "count(*) FILTER (WHERE visible_at > $1 AND leased_at IS NOT NULL), "
							   "min(enqueued_at) FILTER (WHERE visible_at IS NULL OR visible_at <= $1) "
							   "FROM msgq.q%d", queue->id),
					  SPI_OK_SELECT, 1, &type, &value, NULL, true);
	for (int i = 0; i < 4; i++)
		columns[i] = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
								   i + 1, &is_null);
	depth->ready = DatumGetInt64(columns[0]);
	depth->delayed = DatumGetInt64(columns[1]);
	depth->in_flight = DatumGetInt64(columns[2]);
	depth->oldest = is_null ? 0 : DatumGetTimestampTz(columns[3]);
	msgq_spi_end(&spi);
}

/*
 * Adds what can be had from the frontier on to depth->ready, and looks for the
 * oldest; false if that is too much, or may not be all.
 */
static bool
count_waiting(MsgqSegment *segment, MsgqFrontierRef ref, int64 high,
			  Depth *depth)
{
	MsgqFrontier frontier;
	MsgqWalk   *walk;
	bool		complete;

	msgq_frontier_copy(ref, &frontier);
	walk = msgq_walk_begin(segment, ref.order, frontier.position, high);
	walk->max_entries = WALK_ENTRIES;
	while (msgq_walk_next(walk))
	{
		TimestampTz sent = msgq_row_time(segment->row, Anum_segment_enqueued_at);

		if (TransactionIdIsValid(walk->open_xid))
			continue;
		depth->ready++;
		if (depth->oldest == 0 || sent < depth->oldest)
			depth->oldest = sent;
	}
	complete = walk->entries < WALK_ENTRIES && frontier.nexceptions == 0;
	msgq_walk_end(walk);
	return complete;
}

/* Adds what is delayed or in flight in a segment; false if that is too much. */
static bool
count_future(MsgqSegment *segment, TimestampTz now, Depth *depth)
{
	MsgqWalk   *walk = msgq_walk_begin(segment, MSGQ_DUE, now + 1, PG_INT64_MAX);
	bool		complete;

	walk->max_entries = WALK_ENTRIES;
	while (msgq_walk_next(walk))
	{
		if (msgq_row_is_null(segment->row, Anum_segment_leased_at))
			depth->delayed++;
		else
			depth->in_flight++;
	}
	complete = walk->entries < WALK_ENTRIES;
	msgq_walk_end(walk);
	return complete;
}

/* Messages in the queue, as the slot has them. */
static int64
live_messages(MsgqSlot *slot)
{
	return Max(0, (int64) pg_atomic_read_u64(&slot->live));
}

/*
 * Reckons: walks a bit from the frontiers on, and where that does not show
 * all, goes by the slot's numbers.  False if it has none.
 */
static bool
reckon_depth(const MsgqQueue *queue, TimestampTz now, Depth *depth)
{
	MsgqStorage *storage = msgq_storage_open(NULL, NameStr(queue->name),
											 MSGQ_RIGHT_PEEK, MSGQ_ALL);
	MsgqSlot   *slot = storage->slot;
	bool		future_is_complete = true;
	bool		ready_is_complete = true;

	memset(depth, 0, sizeof(Depth));
	if (slot == NULL || !pg_atomic_read_u32(&slot->has_live))
	{
		msgq_storage_let_go(storage);
		return false;
	}
	for (int i = 0; i < storage->nsegments; i++)
	{
		MsgqSegment *segment = storage->segments[i];

		future_is_complete &= count_future(segment, now, depth);
		ready_is_complete &= count_waiting(segment, segment->ready,
										   PG_INT64_MAX, depth);
		ready_is_complete &= count_waiting(segment, segment->due, now, depth);
	}
	if (!future_is_complete)
	{
		int64		live = live_messages(slot);

		depth->in_flight = Min(live, (int64) pg_atomic_read_u64(&slot->counted_in_flight));
		depth->delayed = Min(live - depth->in_flight,
							 (int64) pg_atomic_read_u64(&slot->counted_delayed));
	}
	if (!ready_is_complete)
		depth->ready = Max(depth->ready, live_messages(slot) -
						   depth->delayed - depth->in_flight);
	msgq_storage_let_go(storage);
	return true;
}

/*
 * Counts a queue for the slot, one process at a time.  A transaction that
 * commits just now may be counted twice, or not at all, until the next time.
 */
void
msgq_stats_recount(const MsgqQueue *queue, MsgqSlot *slot)
{
	LOCKTAG		tag;
	uint64		before;
	Depth		depth;
	int64		counted;

	msgq_queue_lock_tag(&tag, queue->sequence, MSGQ_LOCK_COUNT);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	before = pg_atomic_read_u64(&slot->live);
	/* A transaction's own snapshot would be older than that. */
	PushActiveSnapshot(GetLatestSnapshot());
	count_messages(queue, msgq_now(), &depth);
	PopActiveSnapshot();
	counted = depth.ready + depth.delayed + depth.in_flight;
	pg_atomic_fetch_add_u64(&slot->live, (uint64) counted - before);
	pg_atomic_write_u64(&slot->counted_delayed, depth.delayed);
	pg_atomic_write_u64(&slot->counted_in_flight, depth.in_flight);
	pg_write_barrier();
	pg_atomic_write_u32(&slot->has_live, 1);
	(void) LockRelease(&tag, ExclusiveLock, false);
}

/* What the current transaction has done to the number of messages so far. */
static int64
own_change(MsgqSlot *slot)
{
	int64		change = 0;

	for (int i = 0; i < npending; i++)
	{
		if (pending[i].slot == slot)
			change += change_of_live(pending[i].counts);
	}
	return change;
}

/*
 * The first count of a queue that nobody has counted yet.  It has what this
 * transaction has done so far, which is added when it commits.
 */
static void
count_first(const MsgqQueue *queue, MsgqSlot *slot)
{
	LOCKTAG		tag;
	MsgqSpi		before;

	msgq_queue_lock_tag(&tag, queue->sequence, MSGQ_LOCK_COUNT);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	if (!pg_atomic_read_u32(&slot->has_live))
	{
		msgq_become_owner(&before);
		msgq_stats_recount(queue, slot);
		msgq_become_caller(&before);
		pg_atomic_fetch_sub_u64(&slot->live, own_change(slot));
	}
	(void) LockRelease(&tag, ExclusiveLock, false);
}

/* By reading the queue: as many as it has, and one more than its limit at most. */
static int64
read_length(const MsgqQueue *queue)
{
	bool		is_null;
	int64		length;
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run_with(psprintf("SELECT count(*) FROM (SELECT FROM msgq.q%d LIMIT " INT64_FORMAT ") AS messages",
							   queue->id, queue->max_length + 1),
					  SPI_OK_SELECT, 0, NULL, NULL, NULL, true);
	length = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
										 SPI_tuptable->tupdesc, 1, &is_null));
	msgq_spi_end(&spi);
	return length;
}

/*
 * The number of messages of a queue with a limit on it: what is committed, and
 * what the current transaction has added.
 */
int64
msgq_stats_length(const MsgqQueue *queue, MsgqSlot *slot)
{
	int64		length;

	if (slot == NULL)
		return read_length(queue);
	if (!pg_atomic_read_u32(&slot->has_live))
		count_first(queue, slot);
	length = (int64) pg_atomic_read_u64(&slot->live) + own_change(slot);
	return Max(length, 0);
}

/* ---------------------------------------------------------------------------
 * The view
 * ---------------------------------------------------------------------------
 */

static int64
pages_of(const MsgqQueue *queue)
{
	int64		pages = 0;

	for (int i = 0; i < queue->nsegments; i++)
	{
		Relation	table = RelationIdGetRelation(queue->segments[i].table);

		if (table == NULL)
			continue;
		pages += RelationGetNumberOfBlocks(table);
		RelationClose(table);
	}
	return pages;
}

/* Are its segments such that receivers would not refuse them? */
bool
msgq_stats_can_count(const MsgqQueue *queue)
{
	for (int i = 0; i < queue->nsegments; i++)
	{
		if (!msgq_segment_is_plain(queue->segments[i].table))
			return false;
	}
	return true;
}

/* Bytes and number of all its segments, the empty ones too. */
static void
get_size(const MsgqQueue *queue, int64 *bytes, int32 *segments)
{
	*bytes = 0;
	for (*segments = 0;; (*segments)++)
	{
		Oid			table = msgq_relation_oid(psprintf("q%d_%d", queue->id,
													   *segments + 1));

		if (!OidIsValid(table))
			break;
		*bytes += DatumGetInt64(DirectFunctionCall1(pg_total_relation_size,
													ObjectIdGetDatum(table)));
	}
}

static void
put_row(ReturnSetInfo *result, const MsgqQueue *queue, TimestampTz now)
{
	enum
	{
		QUEUE, READY, DELAYED, IN_FLIGHT, AGE, TOTALS,
		SIZE = TOTALS + MSGQ_NCOUNTERS, SEGMENTS, EXACT, NCOLUMNS
	};
	Datum		values[NCOLUMNS];
	bool		nulls[NCOLUMNS] = {false};
	MsgqSlot   *slot = msgq_slot_get(queue->sequence, queue->created_at);
	Depth		depth;
	bool		reckoned;
	int64		bytes;
	int32		segments;

	reckoned = pages_of(queue) > SMALL_PAGES && !RecoveryInProgress() &&
		msgq_stats_can_count(queue) && reckon_depth(queue, now, &depth);
	if (!reckoned)
		count_messages(queue, now, &depth);
	values[QUEUE] = CStringGetTextDatum(NameStr(queue->name));
	values[READY] = Int64GetDatum(depth.ready);
	values[DELAYED] = Int64GetDatum(depth.delayed);
	values[IN_FLIGHT] = Int64GetDatum(depth.in_flight);
	nulls[AGE] = depth.oldest == 0;
	values[AGE] = DirectFunctionCall2(timestamp_mi, TimestampTzGetDatum(now),
									  TimestampTzGetDatum(depth.oldest));
	for (int i = 0; i < MSGQ_NCOUNTERS; i++)
		nulls[TOTALS + i] = slot == NULL;
	if (slot)
	{
		int64		totals[MSGQ_NCOUNTERS];

		show_totals(slot, queue->id, totals);
		for (int i = 0; i < MSGQ_NCOUNTERS; i++)
			values[TOTALS + i] = Int64GetDatum(totals[i]);
	}
	get_size(queue, &bytes, &segments);
	values[SIZE] = Int64GetDatum(bytes);
	values[SEGMENTS] = Int32GetDatum(segments);
	values[EXACT] = BoolGetDatum(!reckoned);
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

PG_FUNCTION_INFO_V1(msgq_list_queue_stats);
Datum
msgq_list_queue_stats(PG_FUNCTION_ARGS)
{
	TimestampTz now = msgq_now();
	MsgqQueue **queues;
	int			n;

	InitMaterializedSRF(fcinfo, 0);
	queues = msgq_queue_list(MSGQ_RIGHT_PEEK, &n);
	for (int i = 0; i < n; i++)
	{
		if (msgq_queue_lock_for_reading(queues[i]))
			put_row((ReturnSetInfo *) fcinfo->resultinfo, queues[i], now);
	}
	return (Datum) 0;
}
