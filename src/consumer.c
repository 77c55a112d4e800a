/*
 * consumer.c
 *		Reads streams for consumer groups.
 *
 * A group has a place in each partition (grouplog.c).  Whoever reads for a
 * group takes a partition that nobody else of the group has, by a lock that
 * goes with his transaction.  So groups scale by partitions; there is no
 * coordinator, and nothing to be balanced anew when a member comes or goes.
 *
 *	read	appends a row with the new position in the caller's transaction:
 *			his effects and the position are committed, or undone, together.
 *	poll	appends a row with a lease, and is committed before the work begins.
 *	commit	moves the position if the lease is still the last one.
 *	seek	moves it anywhere, and is a new lease that nobody has: what was
 *			leased is fenced.
 *
 * A receipt names the row that began the lease, by its n, with group and
 * partition.  It fits as long as no other lease, read or seek has followed; not
 * when the time has run out, but when somebody else has taken the partition.
 *
 * Order across a change of partitions.  An entry's key leads to another
 * partition in segments with another number of partitions.  A group reads what
 * comes in such a segment, in any partition, when it has read all partitions up
 * to where that segment begins.
 *
 * Poison.  A lease that ran out was a delivery in vain.  After max_deliveries of
 * the same batch its entries go to the stream's dead-letter queue, each as a
 * message, in the transaction of the next poll or read, which goes on behind
 * them.  A read that is rolled back leaves no trace, and is not counted.
 *
 * All that is looked up is looked up with new snapshots, whatever the isolation
 * level: a position that was moved by others meanwhile is the one that counts.
 *
 * src/consumer.c
 */
#include "msgq.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "common/pg_prng.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "argument.h"
#include "consumer.h"
#include "deadletter.h"
#include "message.h"
#include "history.h"
#include "owner.h"
#include "places.h"
#include "reader.h"
#include "segment.h"
#include "stats.h"
#include "testing.h"
#include "wakeup.h"
#include "worker.h"

/* A call on behalf of a group. */
typedef struct Consumer
{
	const char *command;		/* its name, for messages */
	const char *stream_name;
	const char *group_name;
	AclMode		right;
	const MsgqStream *stream;
	Relation	active;			/* locked against being dropped */
	MsgqSlot   *slot;
	int32		group_id;
	MsgqGroupLog log;
	bool		has_written;	/* to the log: its lock stays */
	/* read and poll: */
	int			max_entries;
	int			partition;		/* -1: any */
	Interval   *lease;			/* NULL: the position moves at once */
	Tuplestorestate *store;
	TupleDesc	descriptor;
	TimestampTz now;
	TimestampTz next_due;		/* when a lease that is in the way ends */
} Consumer;

/* ---------------------------------------------------------------------------
 * Groups
 * ---------------------------------------------------------------------------
 */

/* The number of a group; 0 if there is none of this name. */
static int32
find_group(int32 stream_id, const char *name)
{
	Relation	table = table_open(msgq_relation_oid("stream_group"),
								   AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	row;
	int32		id = 0;

	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(stream_id));
	ScanKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_TEXTEQ,
				CStringGetTextDatum(name));
	scan = systable_beginscan(table, msgq_relation_oid("stream_group_pkey"),
							  true, NULL, 2, keys);
	row = systable_getnext(scan);
	if (HeapTupleIsValid(row))
	{
		bool		is_null;

		id = DatumGetInt32(heap_getattr(row, 3, RelationGetDescr(table),
										&is_null));
	}
	systable_endscan(scan);
	table_close(table, AccessShareLock);
	return id;
}

/* Opens the stream, and the log for writing; not the group. */
static void
open_stream(Consumer *consumer)
{
	msgq_begin_change(consumer->command);
	for (;;)
	{
		consumer->stream = msgq_stream_open(consumer->stream_name,
											consumer->right, AccessShareLock,
											&consumer->active, &consumer->slot);
		if (msgq_group_log_open(consumer->stream, &consumer->log,
								RowExclusiveLock))
			break;
		table_close(consumer->active, AccessShareLock);
		CHECK_FOR_INTERRUPTS();
	}
	consumer->has_written = false;
}

static void
refuse_unknown_group(const Consumer *consumer)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("stream \"%s\" has no consumer group \"%s\"",
					NameStr(consumer->stream->name), consumer->group_name),
			 errhint("Make it with msgq.create_group().")));
}

/* The same with the group (else 42704). */
static void
open_consumer(Consumer *consumer)
{
	open_stream(consumer);
	consumer->group_id = find_group(consumer->stream->id, consumer->group_name);
	if (consumer->group_id == 0)
		refuse_unknown_group(consumer);
}

/* Closes it; locks stay only where something was written. */
static void
close_consumer(Consumer *consumer)
{
	LOCKMODE	unlock = consumer->has_written ? NoLock : RowExclusiveLock;

	msgq_group_log_close(&consumer->log, unlock);
	table_close(consumer->active,
				consumer->has_written ? NoLock : AccessShareLock);
	if (consumer->has_written)
		CommandCounterIncrement();
}

/* Whoever drops the group has had all its partitions, and says so. */
static void
check_group(Consumer *consumer)
{
	if (!msgq_stream_is_current(consumer->stream) &&
		find_group(consumer->stream->id, consumer->group_name) != consumer->group_id)
		refuse_unknown_group(consumer);
}

static void
partition_lock_tag(LOCKTAG *tag, const Consumer *consumer, int partition)
{
	msgq_stream_lock_tag(tag, consumer->stream,
						 (uint32) consumer->group_id * MSGQ_MAX_PARTITIONS +
						 partition, MSGQ_PARTITION_LOCK);
}

/* Waits for whoever has the partition, and takes it. */
static MsgqGroupPlace
take_partition(Consumer *consumer, int partition)
{
	LOCKTAG		tag;

	partition_lock_tag(&tag, consumer, partition);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	check_group(consumer);
	return msgq_group_log_find(&consumer->log, consumer->group_id, partition);
}

/* Has the number of partitions been changed, as far as that can be seen? */
static bool
has_new_mapping(const MsgqStream *stream)
{
	return stream->segments[0].partitions !=
		msgq_stream_active(stream)->partitions;
}

/*
 * Writes down where the group is.  Who waits for this partition can have it
 * when we have ended, however that is; and perhaps all others can be had, if
 * this was the last one that had to be read before.
 */
static void
move(Consumer *consumer, int partition, MsgqGroupPlace *place)
{
	msgq_group_log_add(&consumer->log, consumer->group_id, partition, place);
	consumer->has_written = true;
	msgq_wake_at_commit(consumer->slot, has_new_mapping(consumer->stream) ?
						MSGQ_MAX_BATCH : 1);
	msgq_wake_at_abort(consumer->slot, 1);
}

/* ---------------------------------------------------------------------------
 * Receipts
 * ---------------------------------------------------------------------------
 */

/* The n of the row, the group, and the partition, the highest bytes first. */
static void
encode_receipt(pg_uuid_t *uuid, int64 lease, int32 group_id, int32 partition)
{
	uint64		n = pg_hton64((uint64) lease);
	uint32		numbers[2] = {pg_hton32((uint32) group_id),
	pg_hton32((uint32) partition)};

	memcpy(uuid->data, &n, sizeof(n));
	memcpy(uuid->data + sizeof(n), numbers, sizeof(numbers));
}

static void
decode_receipt(const pg_uuid_t *uuid, int64 *lease, int32 *group_id,
			   int32 *partition)
{
	uint64		n;
	uint32		numbers[2];

	memcpy(&n, uuid->data, sizeof(n));
	memcpy(numbers, uuid->data + sizeof(n), sizeof(numbers));
	*lease = (int64) pg_ntoh64(n);
	*group_id = (int32) pg_ntoh32(numbers[0]);
	*partition = (int32) pg_ntoh32(numbers[1]);
}

/* ---------------------------------------------------------------------------
 * What a group may read
 * ---------------------------------------------------------------------------
 */

/* Has the group read all partitions up to where this segment begins? */
static bool
has_reached(Consumer *consumer, const MsgqStreamSegment *segment)
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
stop_position(Consumer *consumer, int partition, int64 position)
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
				 int32 deliveries, TimestampTz now)
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
park_entries(Consumer *consumer, int partition, const MsgqGroupPlace *place,
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
							 place->deliveries, consumer->now);
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
park_if_exhausted(Consumer *consumer, int partition, MsgqGroupPlace *place)
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
	place->lease = place->n + 1;
	move(consumer, partition, place);
}

/* ---------------------------------------------------------------------------
 * read and poll
 * ---------------------------------------------------------------------------
 */

/* Reads on from the group's place; false if there is nothing. */
static bool
read_on(Consumer *consumer, int partition, MsgqGroupPlace *place)
{
	MsgqReader *reader;
	pg_uuid_t	receipt;
	int64		until;
	int64		next;

	msgq_check_kept(consumer->stream, partition, place->position);
	park_if_exhausted(consumer, partition, place);
	until = stop_position(consumer, partition, place->position);
	/* What was not in a batch that has failed is not to be given up with it. */
	if (place->leased_upto > place->position)
		until = Min(until, place->leased_upto);
	encode_receipt(&receipt, place->n + 1, consumer->group_id, partition);
	reader = msgq_reader_begin(consumer->stream, consumer->store,
							   consumer->descriptor);
	next = msgq_reader_read(reader, partition, place->position, until,
							consumer->max_entries,
							consumer->lease ? &receipt : NULL, false);
	msgq_reader_end(reader);
	if (next == place->position)
		return false;

	place->lease = place->n + 1;
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
	move(consumer, partition, place);
	return true;
}

/*
 * Reads from a partition if nobody has it and there is something; false, with
 * nothing changed, if not.
 */
static bool
visit(Consumer *consumer, int partition)
{
	LOCKTAG		tag;
	LockAcquireResult lock;
	MsgqGroupPlace place;

	partition_lock_tag(&tag, consumer, partition);
	lock = LockAcquire(&tag, ExclusiveLock, false, true);
	if (lock == LOCKACQUIRE_NOT_AVAIL)
		return false;
	check_group(consumer);
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
look(Consumer *consumer)
{
	int			n;
	int			first;
	bool		found = false;

	open_consumer(consumer);
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
look_until(Consumer *consumer, TimestampTz deadline)
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
		TimestampTz until;

		MemoryContextReset(context);
		MemoryContextSwitchTo(context);
		found = look(consumer);
		MemoryContextSwitchTo(caller);
		slot = consumer->slot;
		msgq_wait_looked(slot);
		if (!found)
			msgq_sequencer_want();
		if (found || consumer->has_written || consumer->now >= deadline)
			break;

		until = msgq_wait_poll_time(slot, consumer->now);
		msgq_wait_until_due(consumer->next_due, until);
		until = Min(Min(deadline, consumer->next_due), until);
		close_consumer(consumer);
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
	close_consumer(consumer);
	MemoryContextDelete(context);
}

static void
begin_result(Consumer *consumer, FunctionCallInfo fcinfo)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	consumer->store = result->setResult;
	consumer->descriptor = result->setDesc;
}

/* Arguments that all have: stream and consumer_group. */
static Consumer
consumer_arguments(FunctionCallInfo fcinfo, const char *command, AclMode right)
{
	Consumer	consumer = {
		.command = command,
		.stream_name = msgq_arg_name(fcinfo, 0, "stream"),
		.group_name = msgq_arg_name(fcinfo, 1, "consumer_group"),
		.right = right,
		.partition = -1
	};

	return consumer;
}

static TimestampTz
wait_argument(FunctionCallInfo fcinfo, int n)
{
	Interval   *wait = DatumGetIntervalP(msgq_arg(fcinfo, n, "wait"));

	msgq_check_interval(wait, "wait");
	return msgq_time_after(msgq_now(), wait);
}

/* read(stream, consumer_group, max_entries, partition, wait) */
PG_FUNCTION_INFO_V1(msgq_read);
Datum
msgq_read(PG_FUNCTION_ARGS)
{
	Consumer	consumer = consumer_arguments(fcinfo, "msgq.read()",
											  MSGQ_RIGHT_RECEIVE);
	TimestampTz deadline;

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
	Consumer	consumer = consumer_arguments(fcinfo, "msgq.poll()",
											  MSGQ_RIGHT_RECEIVE);
	TimestampTz deadline;

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

/* ---------------------------------------------------------------------------
 * commit
 * ---------------------------------------------------------------------------
 */

static void
refuse_fenced(const Consumer *consumer, int partition)
{
	ereport(ERROR,
			(errcode(ERRCODE_MSGQ_FENCED),
			 errmsg("the lease of consumer group \"%s\" has gone to somebody else",
					consumer->group_name),
			 errdetail("Partition %d of stream \"%s\" was read, leased or moved since.",
					   partition, NameStr(consumer->stream->name)),
			 errhint("What was done with these entries may be done again; poll once more.")));
}

/* Raises 22023 for a position that the lease never had. */
static void
check_upto(const MsgqGroupPlace *place, int64 upto)
{
	if (upto < MSGQ_FIRST_POSITION || upto >= place->leased_upto)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be a position that is leased", "upto"),
				 errdetail("It is " INT64_FORMAT "; positions from " INT64_FORMAT " to " INT64_FORMAT " are leased.",
						   upto, place->position, place->leased_upto - 1)));
}

/* commit(stream, consumer_group, receipt, upto) */
PG_FUNCTION_INFO_V1(msgq_commit);
Datum
msgq_commit(PG_FUNCTION_ARGS)
{
	Consumer	consumer = consumer_arguments(fcinfo, "msgq.commit()",
											  MSGQ_RIGHT_RECEIVE);
	pg_uuid_t  *receipt = DatumGetUUIDP(msgq_arg(fcinfo, 2, "receipt"));
	MsgqGroupPlace place;
	int64		lease;
	int32		group_id;
	int32		partition;
	int64		upto;
	bool		moves;

	decode_receipt(receipt, &lease, &group_id, &partition);
	open_consumer(&consumer);
	if (group_id != consumer.group_id || partition < 0 ||
		partition >= consumer.stream->npartitions)
		ereport(ERROR,
				(errcode(ERRCODE_MSGQ_FENCED),
				 errmsg("the receipt is not one of consumer group \"%s\" of stream \"%s\"",
						consumer.group_name, consumer.stream_name),
				 errhint("Commit with the receipt of entries that msgq.poll() has returned for this group.")));
	place = take_partition(&consumer, partition);
	if (place.lease != lease)
		refuse_fenced(&consumer, partition);

	upto = PG_ARGISNULL(3) ? place.leased_upto - 1 : PG_GETARG_INT64(3);
	moves = place.leased_upto > place.position && upto >= place.position;
	if (moves)
	{
		check_upto(&place, upto);
		place.position = upto + 1;
		place.deliveries = 1;
		if (place.position == place.leased_upto)
			place.leased_upto = place.deliveries = 0;
		move(&consumer, partition, &place);
	}
	else if (!PG_ARGISNULL(3) && upto >= place.position)
		check_upto(&place, upto);
	close_consumer(&consumer);
	PG_RETURN_BOOL(moves);
}

/* ---------------------------------------------------------------------------
 * create_group, drop_group, seek
 * ---------------------------------------------------------------------------
 */

/* Raises 22023 for a position that there is not yet. */
static void
check_not_beyond(const MsgqStream *stream, int partition, int64 position,
				 int64 end)
{
	if (position > end)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("position " INT64_FORMAT " of stream \"%s\" is behind its end",
						position, NameStr(stream->name)),
				 errdetail("The next entry of partition %d will have position " INT64_FORMAT ".",
						   partition, end)));
}

/*
 * The first position whose entry was appended at this time or later.  Positions
 * that were given before belong to entries that were appended before.
 */
static int64
position_at_time(const MsgqStream *stream, int partition, TimestampTz time,
				 Snapshot snapshot)
{
	int64		position = msgq_places_at_time(stream, partition, time, snapshot);
	MsgqPlaces *places;
	MsgqReader *reader;
	bool		found = false;

	position = Max(position, stream->first[partition]);
	places = msgq_places_begin(stream, partition, position, snapshot);
	reader = msgq_reader_begin(stream, NULL, NULL);
	while (!found && msgq_places_next(places))
	{
		int64		end = places->first_position + places->n;

		for (; position < end && !found; position++)
		{
			TupleTableSlot *row = msgq_reader_fetch(reader, places->ids[position - places->first_position]);

			found = msgq_row_time(row, Anum_entry_row_appended_at) >= time;
			if (found)
				break;
		}
	}
	msgq_reader_end(reader);
	msgq_places_end(places);
	return position;
}

/* A target that is a number, perhaps negative. */
static bool
is_number(const char *target)
{
	return target[0] != '\0' && strspn(target, "+-0123456789") == strlen(target) &&
		strspn(target + 1, "0123456789") == strlen(target) - 1;
}

/* The position that first, new, a number or a time stands for. */
static int64
resolve_target(const MsgqStream *stream, int partition, const char *target)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	int64		end = msgq_places_end_position(stream, partition, snapshot);
	int64		position;

	if (strcmp(target, "first") == 0)
		position = stream->first[partition];
	else if (strcmp(target, "new") == 0)
		position = end;
	else if (is_number(target))
	{
		position = DatumGetInt64(DirectFunctionCall1(int8in, CStringGetDatum(target)));
		msgq_check_kept(stream, partition, position);
		check_not_beyond(stream, partition, position, end);
	}
	else
	{
		TimestampTz time =
		DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in,
												CStringGetDatum(target),
												ObjectIdGetDatum(InvalidOid),
												Int32GetDatum(-1)));

		position = position_at_time(stream, partition, time, snapshot);
	}
	UnregisterSnapshot(snapshot);
	return position;
}

/* Moves the group in a partition, and fences whoever has leased it. */
static void
move_to_target(Consumer *consumer, int partition, const char *target)
{
	MsgqGroupPlace place = take_partition(consumer, partition);

	place.position = resolve_target(consumer->stream, partition, target);
	place.lease = place.n + 1;
	place.leased_upto = 0;
	place.leased_until = DT_NOBEGIN;
	place.deliveries = 0;
	move(consumer, partition, &place);
}

/* A position is one of a certain partition. */
static void
refuse_number_for_all(const MsgqStream *stream, const char *target)
{
	if (is_number(target) && stream->npartitions > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a position is one of a single partition"),
				 errdetail("Stream \"%s\" has %d partitions.",
						   NameStr(stream->name), stream->npartitions),
				 errhint("Use msgq.seek() with argument \"partition\".")));
}

/* seek(stream, consumer_group, target, partition) */
PG_FUNCTION_INFO_V1(msgq_seek);
Datum
msgq_seek(PG_FUNCTION_ARGS)
{
	Consumer	consumer = consumer_arguments(fcinfo, "msgq.seek()",
											  MSGQ_RIGHT_RECEIVE);
	char	   *target = msgq_arg_text(fcinfo, 2, "target");

	open_consumer(&consumer);
	if (!PG_ARGISNULL(3))
	{
		msgq_check_partition(consumer.stream, PG_GETARG_INT32(3));
		move_to_target(&consumer, PG_GETARG_INT32(3), target);
	}
	else
	{
		refuse_number_for_all(consumer.stream, target);
		for (int p = 0; p < consumer.stream->npartitions; p++)
			move_to_target(&consumer, p, target);
	}
	close_consumer(&consumer);
	PG_RETURN_VOID();
}

/* Adds the group to the metadata; its name is free, or somebody adds it too. */
static void
insert_group(Consumer *consumer)
{
	Oid			types[] = {INT4OID, TEXTOID, INT4OID, TIMESTAMPTZOID};
	Datum		values[4];
	MsgqSpi		spi;

	consumer->group_id =
		(int32) nextval_internal(msgq_relation_oid("stream_group_id"), false);
	values[0] = Int32GetDatum(consumer->stream->id);
	values[1] = CStringGetTextDatum(consumer->group_name);
	values[2] = Int32GetDatum(consumer->group_id);
	values[3] = TimestampTzGetDatum(msgq_now());
	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run_with("INSERT INTO msgq.stream_group (stream_id, name, id, created_at) "
					  "VALUES ($1, $2, $3, $4) ON CONFLICT (stream_id, name) DO NOTHING",
					  SPI_OK_INSERT, lengthof(values), types, values, NULL, false);
	if (SPI_processed == 0)
		consumer->group_id = 0;
	msgq_spi_end(&spi);
}

/* create_group(stream, consumer_group, start_from) */
PG_FUNCTION_INFO_V1(msgq_create_group);
Datum
msgq_create_group(PG_FUNCTION_ARGS)
{
	Consumer	consumer = consumer_arguments(fcinfo, "msgq.create_group()",
											  MSGQ_RIGHT_RECEIVE);
	char	   *start_from = msgq_arg_text(fcinfo, 2, "start_from");

	msgq_check_new_name(consumer.group_name, "consumer group");
	open_stream(&consumer);
	refuse_number_for_all(consumer.stream, start_from);
	if (find_group(consumer.stream->id, consumer.group_name) == 0)
		insert_group(&consumer);
	if (consumer.group_id == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("stream \"%s\" already has a consumer group \"%s\"",
						NameStr(consumer.stream->name), consumer.group_name)));
	for (int p = 0; p < consumer.stream->npartitions; p++)
		move_to_target(&consumer, p, start_from);
	close_consumer(&consumer);
	PG_RETURN_VOID();
}

/* drop_group(stream, consumer_group) */
PG_FUNCTION_INFO_V1(msgq_drop_group);
Datum
msgq_drop_group(PG_FUNCTION_ARGS)
{
	Consumer	consumer = consumer_arguments(fcinfo, "msgq.drop_group()",
											  MSGQ_RIGHT_MANAGE);
	Oid			type = INT4OID;
	Datum		value;
	MsgqSpi		spi;

	open_consumer(&consumer);
	value = Int32GetDatum(consumer.group_id);
	/* Nobody is reading for it, and who does later finds that it has gone. */
	for (int p = 0; p < consumer.stream->npartitions; p++)
		(void) take_partition(&consumer, p);
	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run_with("DELETE FROM msgq.stream_group WHERE id = $1",
					  SPI_OK_DELETE, 1, &type, &value, NULL, false);
	msgq_spi_end(&spi);
	msgq_queue_changed();
	close_consumer(&consumer);
	CommandCounterIncrement();
	PG_RETURN_VOID();
}
