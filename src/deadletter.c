/*
 * deadletter.c
 *		Gives messages up, and keeps them in a dead-letter queue.
 *
 * A queue gives a message up when
 *
 *	max_deliveries	so many deliveries of it have failed,
 *	rejected		its consumer says that it will never succeed,
 *	expired			its time to live is over before it was delivered,
 *	overflow		the queue is full, and it is the oldest one.
 *
 * Deliveries that have failed are counted by "failures": nack, the end of a
 * lease, the rollback of a pop.  A message that was released was not failed,
 * however often.  A failure that no row tells of yet, that of a lease which
 * ran out, counts when the message is next met.
 *
 * The message leaves its queue and appears in the dead-letter queue in one
 * transaction, that of whoever causes or notices it: a settlement, a receive
 * that meets the message, a send into a full queue, or the worker, which
 * sweeps what nobody meets (msgq_dead_letter_sweep).  Whoever does it first
 * removes the row, and only then stores the copy: so there is never a second
 * one.  If the transaction is rolled back the message is where it was.
 *
 * The copy is a new message of the dead-letter queue: it has an id of that
 * queue, no counters, no time to live but the dead-letter queue's own, and is
 * ready at once.  Body, headers, group key, priority and the time at which it
 * was first sent stay.  A queue that has no such priority takes the message in
 * its highest level, with its priority written in it.  The header "msgq-death"
 * tells its history (history.c).
 *
 * Limits and pauses of the dead-letter queue do not count here, and nobody
 * needs a right on it: who configured it had the right to send to it.  It
 * cannot be dropped while a queue names it (admin.c).  Without a dead-letter
 * queue the message is removed, and counted.
 *
 * Which queue that is can change until it is opened: who changes it does not
 * wait for those who use the queue.  A dead letter goes where the setting says
 * at that moment.
 *
 * Locks: RowExclusiveLock on the queue's segments and then on the active one
 * of the dead-letter queue.  Queues cannot form a cycle by their dead-letter
 * queues, so neither do these locks.
 *
 * src/deadletter.c
 */
#include "msgq.h"

#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "utils/timestamp.h"

#include "argument.h"
#include "deadletter.h"
#include "history.h"
#include "message.h"
#include "owner.h"
#include "poison.h"
#include "stats.h"
#include "wakeup.h"

/* Messages that one sweep gives up. */
#define SWEEP_ROWS			1000

static const char *const reasons[] = {
	[MSGQ_REASON_MAX_DELIVERIES] = "max_deliveries",
	[MSGQ_REASON_REJECTED] = "rejected",
	[MSGQ_REASON_EXPIRED] = "expired",
	[MSGQ_REASON_OVERFLOW] = "overflow",
};

/* ---------------------------------------------------------------------------
 * When
 * ---------------------------------------------------------------------------
 */

/* Is its time to live over?  What is in flight then may still be settled. */
bool
msgq_is_expired(TupleTableSlot *row, TimestampTz now)
{
	return !msgq_row_is_null(row, Anum_segment_expires_at) &&
		msgq_row_time(row, Anum_segment_expires_at) <= now;
}

/*
 * Failures of a free message that its counter does not tell of: it is leased
 * still, so nobody has settled it before the lease ran out.
 */
int32
msgq_expired_leases(TupleTableSlot *row)
{
	return msgq_row_is_null(row, Anum_segment_leased_at) ? 0 : 1;
}

/*
 * May the message fail for ever, so that its group waits for it?  That is what
 * on_exhausted => 'block' means.
 */
static bool
blocks_its_group(const MsgqQueue *queue, TupleTableSlot *row)
{
	return queue->ordered && queue->block_exhausted &&
		!msgq_row_is_null(row, Anum_segment_group_key);
}

/* Have all deliveries that the queue allows failed, these included? */
bool
msgq_is_exhausted(const MsgqQueue *queue, TupleTableSlot *row,
				  int32 more_failures)
{
	int32		failures =
	DatumGetInt32(msgq_row_value(row, Anum_segment_failures));

	return queue->max_deliveries > 0 &&
		failures >= queue->max_deliveries - more_failures &&
		!blocks_its_group(queue, row);
}

/* ---------------------------------------------------------------------------
 * Storing a copy in another queue
 * ---------------------------------------------------------------------------
 */

static void
set_column(TupleTableSlot *row, AttrNumber column, bool is_null, Datum value)
{
	row->tts_isnull[column - 1] = is_null;
	row->tts_values[column - 1] = value;
}

/* Fills the slot with the row as it begins anew. */
static void
fill_copy(TupleTableSlot *copy, TupleTableSlot *row, const MsgqCopy *how,
		  int64 id, TimestampTz expires_at)
{
	ExecClearTuple(copy);
	slot_getallattrs(row);
	memcpy(copy->tts_values, row->tts_values, sizeof(Datum) * Natts_segment);
	memcpy(copy->tts_isnull, row->tts_isnull, sizeof(bool) * Natts_segment);
	set_column(copy, Anum_segment_id, false, Int64GetDatum(id));
	set_column(copy, Anum_segment_visible_at, how->visible_at == 0,
			   TimestampTzGetDatum(how->visible_at));
	set_column(copy, Anum_segment_leased_at, true, (Datum) 0);
	set_column(copy, Anum_segment_deliveries, false, Int32GetDatum(0));
	set_column(copy, Anum_segment_failures, false, Int32GetDatum(0));
	set_column(copy, Anum_segment_expires_at, expires_at == 0,
			   TimestampTzGetDatum(expires_at));
	if (how->set_headers)
		set_column(copy, Anum_segment_headers, false, how->headers);
	ExecStoreVirtualTuple(copy);
}

/*
 * Stores a copy of the row in the open queue: a message that begins anew, with
 * that queue's time to live.  With an id that it had there, it is to have a
 * due time as well: its place is behind the frontiers, and needs no horizon.
 */
void
msgq_store_copy(MsgqStorage *target, TupleTableSlot *row, const MsgqCopy *how,
				TimestampTz now)
{
	const MsgqQueue *queue = target->queue;
	int			priority = DatumGetInt16(msgq_row_value(row, Anum_segment_priority));
	MsgqSegment *segment =
	msgq_storage_active(target, Min(priority, queue->priorities - 1));
	TimestampTz expires_at =
	queue->has_ttl ? msgq_time_after(now, &queue->message_ttl) : 0;
	int64		id = how->id;
	MsgqAppend	before = {0, 0};

	if (how->id == 0)
	{
		before = msgq_append_begin(queue->sequence, target->slot);
		id = nextval_internal(queue->sequence, false);
	}
	fill_copy(segment->new_row, row, how, id, expires_at);
	msgq_segment_insert(segment, &segment->new_row, 1);
	if (how->id == 0)
		msgq_append_end(queue->sequence, target->slot, before, id);
	msgq_wake_at_commit(target->slot, 1);
}

/*
 * The name of the dead-letter queue of an open queue; empty if it has none.
 * Neither a change of that setting nor a new name has to wait for those who
 * have opened the queue; so it is looked up again if anything has changed.
 */
static const char *
dead_letter_name(const MsgqStorage *storage)
{
	const MsgqQueue *queue = msgq_storage_queue_now(storage);

	return queue ? NameStr(queue->dead_letter_queue) : "";
}

/*
 * The dead-letter queue of an open queue, opened if it is not; NULL if it has
 * none.
 */
MsgqStorage *
msgq_dead_letter_open(MsgqStorage *storage)
{
	while (storage->dead_letters == NULL)
	{
		const char *name = dead_letter_name(storage);

		if (name[0] == '\0')
			break;
		storage->dead_letters = msgq_storage_try_open(storage->command, name,
													  MSGQ_RIGHT_NONE,
													  MSGQ_ACTIVE);
	}
	return storage->dead_letters;
}

/*
 * Gives up a message that the caller has just removed from the open queue:
 * row is what it was.  error is what its consumer says, or NULL.
 */
void
msgq_dead_letter(MsgqStorage *storage, TupleTableSlot *row, MsgqReason reason,
				 const char *error, TimestampTz now)
{
	MsgqStorage *target = msgq_dead_letter_open(storage);
	MsgqCopy	how = {.set_headers = true};
	int64		id = msgq_row_id(row);

	/* What is noted of it ends here: it may come back with this id. */
	msgq_poison_entered(storage->slot, id,
						msgq_poison_failures(storage->slot, id));
	if (target == NULL)
	{
		msgq_count(storage->slot, reason == MSGQ_REASON_EXPIRED ?
				   MSGQ_EXPIRED : MSGQ_DROPPED, 1);
		return;
	}
	how.headers = msgq_history_add(NameStr(storage->queue->name), row, reasons[reason], error,
								   now);
	msgq_store_copy(target, row, &how, now);
	msgq_count(target->slot, MSGQ_SENT, 1);
	msgq_count(storage->slot, MSGQ_DEAD_LETTERED, 1);
}

/* ---------------------------------------------------------------------------
 * The sweep
 * ---------------------------------------------------------------------------
 */

/*
 * Likewise for a message that nobody has met.  In an ordered queue only the
 * first one of a group has failed when leases run out, and whoever meets it
 * knows which that is (group.c).
 */
static int32
expired_leases_unmet(const MsgqQueue *queue, TupleTableSlot *row)
{
	if (queue->ordered && !msgq_row_is_null(row, Anum_segment_group_key))
		return 0;
	return msgq_expired_leases(row);
}

/* Should the queue give this free message up, and why? */
static bool
is_to_be_given_up(const MsgqQueue *queue, TupleTableSlot *row, TimestampTz now,
				  MsgqReason *reason)
{
	if (msgq_row_is_in_flight(row, now))
		return false;
	*reason = MSGQ_REASON_EXPIRED;
	if (msgq_is_expired(row, now))
		return true;
	*reason = MSGQ_REASON_MAX_DELIVERIES;
	return msgq_is_exhausted(queue, row, expired_leases_unmet(queue, row));
}

/* The ids of messages that look as if they should be given up. */
static int64 *
find_given_up(const MsgqQueue *queue, TimestampTz now, int *n)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			types[] = {TIMESTAMPTZOID, INT4OID, BOOLOID, BOOLOID};
	Datum		values[] = {TimestampTzGetDatum(now),
		Int32GetDatum(queue->max_deliveries > 0 ? queue->max_deliveries : PG_INT32_MAX),
		BoolGetDatum(queue->ordered && queue->block_exhausted),
	BoolGetDatum(queue->ordered)};
	int64	   *ids;
	MsgqSpi		spi;
	bool		is_null;

	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run_with(psprintf("SELECT id FROM msgq.q%d "
							   "WHERE (leased_at IS NULL OR visible_at <= $1) "
							   "AND (expires_at <= $1 OR failures + "
							   "CASE WHEN leased_at IS NULL OR ($4 AND group_key IS NOT NULL) THEN 0 ELSE 1 END >= $2 "
							   "AND NOT ($3 AND group_key IS NOT NULL)) "
							   "LIMIT %d", queue->id, SWEEP_ROWS),
					  SPI_OK_SELECT, lengthof(values), types, values, NULL,
					  false);
	*n = SPI_processed;
	ids = MemoryContextAlloc(caller, sizeof(int64) * (*n + 1));
	for (int i = 0; i < *n; i++)
		ids[i] = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
											 SPI_tuptable->tupdesc, 1,
											 &is_null));
	msgq_spi_end(&spi);
	return ids;
}

/* Gives it up, if it is still to be, and nobody holds it. */
static bool
sweep_one(MsgqStorage *storage, int64 id, TimestampTz now)
{
	for (int i = 0; i < storage->nsegments; i++)
	{
		MsgqSegment *segment = storage->segments[i];
		MsgqReason	reason;

		if (!msgq_segment_find(segment, id) ||
			!is_to_be_given_up(storage->queue, segment->row, now, &reason) ||
			msgq_segment_remove(segment, false) != MSGQ_DONE)
			continue;
		msgq_dead_letter(storage, segment->row, reason, NULL, now);
		msgq_count(storage->slot, MSGQ_FAILED,
				   msgq_expired_leases(segment->row));
		return true;
	}
	return false;
}

/*
 * When will there be something to give up, if nothing happens until then: the
 * end of a time to live, or of a last lease; 0 for never.  Costs a scan of the
 * queue.
 */
TimestampTz
msgq_dead_letter_due(const MsgqQueue *queue, TimestampTz now)
{
	Oid			types[] = {TIMESTAMPTZOID, INT4OID};
	Datum		values[] = {TimestampTzGetDatum(now),
	Int32GetDatum(queue->max_deliveries > 0 ? queue->max_deliveries : PG_INT32_MAX)};
	Datum		due;
	bool		is_null;
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run_with(psprintf("SELECT min(CASE "
							   "WHEN leased_at IS NULL OR visible_at <= $1 THEN expires_at "
							   "WHEN failures >= $2 - 1 THEN visible_at "
							   "WHEN expires_at IS NOT NULL THEN greatest(expires_at, visible_at) "
							   "END) FROM msgq.q%d", queue->id),
					  SPI_OK_SELECT, lengthof(values), types, values, NULL,
					  false);
	due = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
						&is_null);
	msgq_spi_end(&spi);
	return is_null ? 0 : DatumGetTimestampTz(due);
}

/*
 * Gives up what has expired or is exhausted, and nobody has met; returns how
 * many messages that were.  Costs a scan of the queue.  For the worker, as the
 * storage's owner.
 */
int
msgq_dead_letter_sweep(const MsgqQueue *queue, TimestampTz now)
{
	int			n;
	int64	   *ids = find_given_up(queue, now, &n);
	MsgqStorage *storage;
	int			swept = 0;

	if (n == 0)
		return 0;
	storage = msgq_storage_open("msgq.maintain()", NameStr(queue->name),
								MSGQ_RIGHT_NONE, MSGQ_ALL);
	for (int i = 0; i < n; i++)
		swept += sweep_one(storage, ids[i], now);
	msgq_storage_close(storage);
	return swept;
}
