/*
 * consumer.c
 *		Consumer groups of streams: who reads for one, and where it is.
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
 * read and poll are in read.c.
 *
 * A receipt names the lease by a random number, with group and partition.  (A
 * number that is counted would come again after a rollback.)  It fits as long
 * as no other lease, read or seek has followed; not when the time has run out,
 * but when somebody else has taken the partition.
 *
 * Whoever drops a group takes all its partitions first, and sends an
 * invalidation; who has waited for one of them looks whether it has gone.
 *
 * All that is looked up is looked up with new snapshots, whatever the isolation
 * level: a position that was moved by others meanwhile is the one that counts.
 *
 * src/consumer.c
 */
#include "msgq.h"

#include "access/table.h"
#include "commands/sequence.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

#include "argument.h"
#include "consumer.h"
#include "message.h"
#include "owner.h"
#include "places.h"
#include "reader.h"
#include "testing.h"
#include "wakeup.h"

/* ---------------------------------------------------------------------------
 * Groups
 * ---------------------------------------------------------------------------
 */

/* The number of a group; 0 if there is none of this name. */
static int32
find_group(int32 stream_id, const char *name)
{
	Relation	table = msgq_open_metadata("stream_group");
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
open_stream(MsgqConsumer *consumer)
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
refuse_unknown_group(const MsgqConsumer *consumer)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("stream \"%s\" has no consumer group \"%s\"",
					NameStr(consumer->stream->name), consumer->group_name),
			 errhint("Make it with msgq.create_group().")));
}

/* The same with the group (else 42704). */
void
msgq_consumer_open(MsgqConsumer *consumer)
{
	open_stream(consumer);
	consumer->group_id = find_group(consumer->stream->id, consumer->group_name);
	if (consumer->group_id == 0)
		refuse_unknown_group(consumer);
}

/* Closes it; locks stay only where something was written. */
void
msgq_consumer_close(MsgqConsumer *consumer)
{
	LOCKMODE	unlock = consumer->has_written ? NoLock : RowExclusiveLock;

	msgq_group_log_close(&consumer->log, unlock);
	table_close(consumer->active,
				consumer->has_written ? NoLock : AccessShareLock);
	if (consumer->has_written)
		CommandCounterIncrement();
}

/* Whoever drops the group has had all its partitions, and says so. */
void
msgq_consumer_check(MsgqConsumer *consumer)
{
	if (!msgq_stream_is_current(consumer->stream) &&
		find_group(consumer->stream->id, consumer->group_name) != consumer->group_id)
		refuse_unknown_group(consumer);
}

void
msgq_consumer_lock_tag(LOCKTAG *tag, const MsgqConsumer *consumer, int partition)
{
	msgq_stream_lock_tag(tag, consumer->stream,
						 (uint32) consumer->group_id * MSGQ_MAX_PARTITIONS +
						 partition, MSGQ_PARTITION_LOCK);
}

/* Waits for whoever has the partition, and takes it. */
static MsgqGroupPlace
take_partition(MsgqConsumer *consumer, int partition)
{
	LOCKTAG		tag;

	msgq_consumer_lock_tag(&tag, consumer, partition);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	msgq_consumer_check(consumer);
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
void
msgq_consumer_move(MsgqConsumer *consumer, int partition, MsgqGroupPlace *place)
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

/* A number that no other lease has. */
int64
msgq_consumer_new_lease(void)
{
	int64		lease = 0;

	while (lease == 0)
	{
		if (!pg_strong_random(&lease, sizeof(lease)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not generate random values")));
	}
	return lease;
}

/* The lease, the group, and the partition, the highest bytes first. */
void
msgq_consumer_receipt(pg_uuid_t *uuid, int64 lease, int32 group_id, int32 partition)
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

/* Arguments that all have: stream and consumer_group. */
MsgqConsumer
msgq_consumer_arguments(FunctionCallInfo fcinfo, const char *command, AclMode right)
{
	MsgqConsumer consumer = {
		.command = command,
		.stream_name = msgq_arg_name(fcinfo, 0, "stream"),
		.group_name = msgq_arg_name(fcinfo, 1, "consumer_group"),
		.right = right,
		.partition = -1
	};

	return consumer;
}

/* ---------------------------------------------------------------------------
 * commit
 * ---------------------------------------------------------------------------
 */

static void
refuse_fenced(const MsgqConsumer *consumer, int partition)
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
	MsgqConsumer consumer = msgq_consumer_arguments(fcinfo, "msgq.commit()",
													MSGQ_RIGHT_RECEIVE);
	pg_uuid_t  *receipt = DatumGetUUIDP(msgq_arg(fcinfo, 2, "receipt"));
	MsgqGroupPlace place;
	int64		lease;
	int32		group_id;
	int32		partition;
	int64		upto;
	bool		moves;

	decode_receipt(receipt, &lease, &group_id, &partition);
	msgq_consumer_open(&consumer);
	if (group_id != consumer.group_id || partition < 0 ||
		partition >= consumer.stream->npartitions)
		ereport(ERROR,
				(errcode(ERRCODE_MSGQ_FENCED),
				 errmsg("the receipt is not one of consumer group \"%s\" of stream \"%s\"",
						consumer.group_name, consumer.stream_name),
				 errhint("Commit with the receipt of entries that msgq.poll() has returned for this group.")));
	place = take_partition(&consumer, partition);
	if (lease == 0 || place.lease != lease)
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
		msgq_consumer_move(&consumer, partition, &place);
	}
	else if (!PG_ARGISNULL(3) &&
			 (upto >= place.position || upto < MSGQ_FIRST_POSITION))
		check_upto(&place, upto);
	msgq_consumer_close(&consumer);
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
move_to_target(MsgqConsumer *consumer, int partition, const char *target)
{
	MsgqGroupPlace place = take_partition(consumer, partition);

	place.position = resolve_target(consumer->stream, partition, target);
	place.lease = 0;
	place.leased_upto = 0;
	place.leased_until = DT_NOBEGIN;
	place.deliveries = 0;
	msgq_consumer_move(consumer, partition, &place);
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
	MsgqConsumer consumer = msgq_consumer_arguments(fcinfo, "msgq.seek()",
													MSGQ_RIGHT_RECEIVE);
	char	   *target = msgq_arg_text(fcinfo, 2, "target");

	msgq_consumer_open(&consumer);
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
	msgq_consumer_close(&consumer);
	PG_RETURN_VOID();
}

/* Adds the group to the metadata; its name is free, or somebody adds it too. */
static void
insert_group(MsgqConsumer *consumer)
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
	MsgqConsumer consumer = msgq_consumer_arguments(fcinfo, "msgq.create_group()",
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
	msgq_consumer_close(&consumer);
	PG_RETURN_VOID();
}

/* drop_group(stream, consumer_group) */
PG_FUNCTION_INFO_V1(msgq_drop_group);
Datum
msgq_drop_group(PG_FUNCTION_ARGS)
{
	MsgqConsumer consumer = msgq_consumer_arguments(fcinfo, "msgq.drop_group()",
													MSGQ_RIGHT_MANAGE);
	Oid			type = INT4OID;
	Datum		value;
	MsgqSpi		spi;

	msgq_consumer_open(&consumer);
	value = Int32GetDatum(consumer.group_id);
	/* Nobody is reading for it, and who does later finds that it has gone. */
	for (int p = 0; p < consumer.stream->npartitions; p++)
		(void) take_partition(&consumer, p);
	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run_with("DELETE FROM msgq.stream_group WHERE id = $1",
					  SPI_OK_DELETE, 1, &type, &value, NULL, false);
	msgq_spi_end(&spi);
	msgq_queue_changed();
	msgq_consumer_close(&consumer);
	CommandCounterIncrement();
	PG_RETURN_VOID();
}
