/*
 * read.c
 *		Reads streams for consumer groups: read and poll.
 *
 * A call goes through the partitions, from a random one on, takes the lock of
 * the first one that nobody has and that has something for the group, and reads
 * on from the group's place.  With wait it looks again when somebody tells.
 *
 * Order across a change of partitions.  An entry's key leads to another
 * partition in segments with another number of partitions.  A group reads what
 * comes in such a segment, in any partition, when it has read all partitions up
 * to where that segment begins.
 *
 * Poison.  A lease that ran out was a delivery in vain.  What was in it is leased
 * again, and nothing newer with it.  After max_deliveries of these its entries
 * go to the stream's dead-letter queue, each as a message, in the transaction of
 * the next poll or read, which goes on behind them.  A read that is rolled back
 * leaves no trace, and is not counted.
 *
 * src/read.c
 */
#include "msgq.h"

#include "common/pg_prng.h"
#include "funcapi.h"
#include "utils/snapmgr.h"

#include "argument.h"
#include "consumer.h"
#include "deadletter.h"
#include "history.h"
#include "message.h"
#include "places.h"
#include "reader.h"
#include "stats.h"
#include "testing.h"
#include "wakeup.h"
#include "worker.h"

/* ---------------------------------------------------------------------------
 * What a group may read
 * ---------------------------------------------------------------------------
 */

/* Has the group read all partitions up to where this segment begins? */
static bool
has_reached(MsgqConsumer *consumer, const MsgqStreamSegment *segment)
{
	for (int p = 0; p < consumer->stream->npartitions; p++)
	{
		if (msgq_group_log_find(&consumer->log, consumer->group_id, p).position <
			segment->start[p])
			return false;
	}
	return true;
}

/*
 * The position before which the group has to stop in a partition, until it has
 * read the others, because keys are in other partitions from there on.
 */
static int64
stop_position(MsgqConsumer *consumer, int partition, int64 position)
{
	const MsgqStream *stream = consumer->stream;

	for (int i = 1; i < stream->nsegments; i++)
	{
		const MsgqStreamSegment *segment = &stream->segments[i];

		if (segment->partitions == stream->segments[i - 1].partitions)
			continue;
		if (position < segment->start[partition] ||
			!has_reached(consumer, segment))
			return segment->start[partition];
	}
	return PG_INT64_MAX;
}

/* ---------------------------------------------------------------------------
 * Poison
 * ---------------------------------------------------------------------------
 */

/* The entry as a message that the dead-letter queue can store. */
static void
fill_dead_letter(TupleTableSlot *message, TupleTableSlot *entry,
				 int32 deliveries)
{
	Datum	   *values = message->tts_values;
	bool	   *nulls = message->tts_isnull;

	ExecClearTuple(message);
	memset(nulls, true, sizeof(bool) * Natts_segment);
#define SET(column, value) \
	(values[(column) - 1] = (value), nulls[(column) - 1] = false)
#define COPY(to, from) \
	(values[(to) - 1] = slot_getattr(entry, (from), &nulls[(to) - 1]))
	COPY(Anum_segment_id, Anum_entry_row_id);
	SET(Anum_segment_deliveries, Int32GetDatum(deliveries));
	SET(Anum_segment_failures, Int32GetDatum(deliveries));
	SET(Anum_segment_priority, Int16GetDatum(0));
	COPY(Anum_segment_enqueued_at, Anum_entry_row_appended_at);
	COPY(Anum_segment_group_key, Anum_entry_row_key);
	COPY(Anum_segment_headers, Anum_entry_row_headers);
	COPY(Anum_segment_body, Anum_entry_row_body);
	COPY(Anum_segment_data, Anum_entry_row_data);
#undef SET
#undef COPY
	ExecStoreVirtualTuple(message);
}

/* Sends what was leased in vain to the dead-letter queue, entry by entry. */
static void
park_entries(MsgqConsumer *consumer, int partition, const MsgqGroupPlace *place,
			 MsgqStorage *target)
{
	const MsgqStream *stream = consumer->stream;
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	MsgqReader *reader = msgq_reader_begin(stream, NULL, NULL);
	MsgqPlaces *places = msgq_places_begin(stream, partition, place->position,
										   snapshot);
	TupleTableSlot *message =
	MakeSingleTupleTableSlot(RelationGetDescr(target->segments[0]->table),
							 &TTSOpsVirtual);
	int64		next = place->position;

	while (next < place->leased_upto && msgq_places_next(places))
	{
		for (; next < Min(place->leased_upto, places->first_position + places->n); next++)
		{
			int64		id = places->ids[next - places->first_position];
			MsgqCopy	how = {.set_headers = true};

			fill_dead_letter(message, msgq_reader_fetch(reader, id),
							 place->deliveries);
			how.headers = msgq_history_add(NameStr(stream->name), message,
										   "max_deliveries",
										   psprintf("consumer group \"%s\", partition %d, position " INT64_FORMAT,
													consumer->group_name,
													partition, next),
										   consumer->now);
			msgq_store_copy(target, message, &how, consumer->now);
			msgq_count(target->slot, MSGQ_SENT, 1);
		}
	}
	ExecDropSingleTupleTableSlot(message);
	msgq_places_end(places);
	msgq_reader_end(reader);
	UnregisterSnapshot(snapshot);
}

/*
 * If the batch that begins here was delivered in vain often enough, gives it up
 * and goes on behind it.  Without a dead-letter queue nothing is given up.
 */
static void
park_if_exhausted(MsgqConsumer *consumer, int partition, MsgqGroupPlace *place)
{
	const MsgqStream *stream = consumer->stream;
	MsgqStorage *target;

	if (place->leased_upto <= place->position || stream->max_deliveries == 0 ||
		place->deliveries < stream->max_deliveries ||
		NameStr(stream->dead_letter_queue)[0] == '\0')
		return;
	target = msgq_storage_try_open(consumer->command,
								   NameStr(stream->dead_letter_queue),
								   MSGQ_RIGHT_NONE, MSGQ_ACTIVE);
	if (target == NULL)
		return;
	park_entries(consumer, partition, place, target);
	msgq_storage_close(target);
	place->position = place->leased_upto;
	place->leased_upto = 0;
	place->deliveries = 0;
	place->lease = 0;
	msgq_consumer_move(consumer, partition, place);
}

/* ---------------------------------------------------------------------------
 * read and poll
 * ---------------------------------------------------------------------------
 */

/* Reads on from the group's place; false if there is nothing. */
static bool
read_on(MsgqConsumer *consumer, int partition, MsgqGroupPlace *place)
{
	MsgqReader *reader;
	pg_uuid_t	receipt;
	int64		lease = consumer->lease ? msgq_consumer_new_lease() : 0;
	int64		until;
	int64		next;

	msgq_check_kept(consumer->stream, partition, place->position);
	park_if_exhausted(consumer, partition, place);
	until = stop_position(consumer, partition, place->position);
	/* What was not in a batch that has failed is not to be given up with it. */
	if (place->leased_upto > place->position)
		until = Min(until, place->leased_upto);
	msgq_consumer_receipt(&receipt, lease, consumer->group_id, partition);
	reader = msgq_reader_begin(consumer->stream, consumer->store,
							   consumer->descriptor);
	next = msgq_reader_read(reader, partition, place->position, until,
							consumer->max_entries,
							consumer->lease ? &receipt : NULL, false);
	msgq_reader_end(reader);
	if (next == place->position)
		return false;

	place->lease = lease;
	if (consumer->lease)
	{
		place->deliveries = place->leased_upto > place->position ?
			place->deliveries + 1 : 1;
		place->leased_upto = next;
		place->leased_until = msgq_time_after(consumer->now, consumer->lease);
	}
	else
	{
		place->deliveries = 0;
		place->leased_upto = 0;
		place->position = next;
	}
	msgq_consumer_move(consumer, partition, place);
	return true;
}

/*
 * Reads from a partition if nobody has it and there is something; false, with
 * nothing changed, if not.
 */
static bool
visit(MsgqConsumer *consumer, int partition)
{
	LOCKTAG		tag;
	LockAcquireResult lock;
	MsgqGroupPlace place;

	msgq_consumer_lock_tag(&tag, consumer, partition);
	lock = LockAcquire(&tag, ExclusiveLock, false, true);
	if (lock == LOCKACQUIRE_NOT_AVAIL)
		return false;
	msgq_consumer_check(consumer);
	place = msgq_group_log_find(&consumer->log, consumer->group_id, partition);
	if (place.leased_upto > place.position && place.leased_until > consumer->now)
		consumer->next_due = Min(consumer->next_due, place.leased_until);
	else if (read_on(consumer, partition, &place))
		return true;
	/* It may be ours from before, or be needed for what was given up. */
	if (!consumer->has_written)
		(void) LockRelease(&tag, ExclusiveLock, false);
	return false;
}

/* One look at the partitions, from a random one on; true if that found some. */
static bool
look(MsgqConsumer *consumer)
{
	int			n;
	int			first;
	bool		found = false;

	msgq_consumer_open(consumer);
	consumer->now = msgq_now();
	consumer->next_due = DT_NOEND;
	if (consumer->partition >= 0)
	{
		msgq_check_partition(consumer->stream, consumer->partition);
		return visit(consumer, consumer->partition);
	}
	n = consumer->stream->npartitions;
	first = n == 1 ? 0 : (int) (pg_prng_uint32(&pg_global_prng_state) % n);
	for (int i = 0; i < n && !found; i++)
		found = visit(consumer, (first + i) % n);
	return found;
}

/*
 * Looks until there is something, or until the time given.  Registered before
 * the last look, as receive does it: whoever makes something available after
 * that tells us (wakeup.c).
 */
static void
look_until(MsgqConsumer *consumer, int64 deadline)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(caller, "msgq look",
												  ALLOCSET_DEFAULT_SIZES);
	bool		slept = false;
	bool		told = false;
	bool		found;

	for (;;)
	{
		MsgqSlot   *slot;
		TimestampTz end;
		TimestampTz until;

		MemoryContextReset(context);
		MemoryContextSwitchTo(context);
		found = look(consumer);
		MemoryContextSwitchTo(caller);
		slot = consumer->slot;
		msgq_wait_looked(slot);
		if (!found)
			msgq_sequencer_want();
		if (found || consumer->has_written || msgq_ticks() >= deadline)
			break;

		until = msgq_wait_poll_time(slot, consumer->now);
		msgq_wait_until_due(consumer->next_due, until);
		end = msgq_wait_deadline_time(deadline, consumer->now);
		until = Min(Min(end, consumer->next_due), until);
		msgq_consumer_close(consumer);
		if (msgq_wait_register(slot))
		{
			msgq_point(MSGQ_POINT_WAIT_REGISTERED);
			continue;
		}
		msgq_point(MSGQ_POINT_WAIT_LOOKED);
		told = msgq_wait_sleep(until) || msgq_now() >= consumer->next_due;
		slept = true;
		msgq_wait_arm();
	}
	if (slept && found)
		msgq_wait_count(told);
	msgq_wait_end();
	msgq_consumer_close(consumer);
	MemoryContextDelete(context);
}

static void
begin_result(MsgqConsumer *consumer, FunctionCallInfo fcinfo)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	consumer->store = result->setResult;
	consumer->descriptor = result->setDesc;
}

static int64
wait_argument(FunctionCallInfo fcinfo, int n)
{
	Interval   *wait = DatumGetIntervalP(msgq_arg(fcinfo, n, "wait"));

	msgq_check_interval(wait, "wait");
	return msgq_wait_deadline(wait);
}

/* read(stream, consumer_group, max_entries, partition, wait) */
PG_FUNCTION_INFO_V1(msgq_read);
Datum
msgq_read(PG_FUNCTION_ARGS)
{
	MsgqConsumer consumer = msgq_consumer_arguments(fcinfo, "msgq.read()",
													MSGQ_RIGHT_RECEIVE);
	int64		deadline;

	consumer.max_entries = msgq_arg_count(fcinfo, 2, "max_entries");
	if (!PG_ARGISNULL(3))
	{
		consumer.partition = PG_GETARG_INT32(3);
		if (consumer.partition < 0)
			msgq_check_partition(msgq_stream_get(consumer.stream_name,
												 consumer.right),
								 consumer.partition);
	}
	deadline = wait_argument(fcinfo, 4);
	begin_result(&consumer, fcinfo);
	look_until(&consumer, deadline);
	return (Datum) 0;
}

/* poll(stream, consumer_group, max_entries, visibility_timeout, wait) */
PG_FUNCTION_INFO_V1(msgq_poll);
Datum
msgq_poll(PG_FUNCTION_ARGS)
{
	MsgqConsumer consumer = msgq_consumer_arguments(fcinfo, "msgq.poll()",
													MSGQ_RIGHT_RECEIVE);
	int64		deadline;

	consumer.max_entries = msgq_arg_count(fcinfo, 2, "max_entries");
	consumer.lease = DatumGetIntervalP(msgq_arg(fcinfo, 3, "visibility_timeout"));
	msgq_check_interval(consumer.lease, "visibility_timeout");
	if (msgq_time_after(0, consumer.lease) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be greater than zero",
						"visibility_timeout")));
	deadline = wait_argument(fcinfo, 4);
	begin_result(&consumer, fcinfo);
	look_until(&consumer, deadline);
	return (Datum) 0;
}
