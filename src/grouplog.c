/*
 * grouplog.c
 *		Where the consumer groups of a stream are: read and written.
 *
 * A group's position moves with every read, a thousand times a second perhaps.
 * Updated in place it would leave as many dead rows, which no vacuum could
 * take away while somebody holds an old snapshot.  So positions are appended,
 * and the row with the highest n of a group and partition is the one that
 * counts.  Whoever appends one holds the lock on that partition for that group
 * (consumer.c), to the end of his transaction: so the n of rows rise, and a
 * rollback leaves the one before.
 *
 * There are two tables that take turns: msgq.stream tells which one is
 * current.  The other one is kept until nobody uses it; then rows that still
 * count are copied into the current one, and it is emptied (retention.c).  A
 * copied row has the same n.  A reader locks the kept table, takes a snapshot,
 * and looks there first: so he cannot miss a row that is on its way.
 *
 * src/grouplog.c
 */
#include "msgq.h"

#include "access/table.h"
#include "storage/bufmgr.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "grouplog.h"
#include "message.h"
#include "owner.h"
#include "testing.h"

/*
 * Opens the log; lock is that on the current table.  False if the stream has
 * changed since it was looked up.
 */
bool
msgq_group_log_open(const MsgqStream *stream, MsgqGroupLog *log, LOCKMODE lock)
{
	Oid			kept_oid = stream->group_logs[1 - stream->group_log];
	Oid			current_oid = stream->group_logs[stream->group_log];
	Relation	kept = msgq_stream_open_table(stream, kept_oid, AccessShareLock);
	Relation	current = kept ?
	msgq_stream_open_table(stream, current_oid, lock) : NULL;

	if (current == NULL)
	{
		if (kept)
			table_close(kept, AccessShareLock);
		return false;
	}
	log->kept = msgq_table_open(kept, Natts_group_log, Natts_group_log, AccessShareLock);
	log->current = msgq_table_open(current, Natts_group_log, Natts_group_log, lock);
	return true;
}

/* Closes it; the lock on the current table is given back unless NoLock. */
void
msgq_group_log_close(MsgqGroupLog *log, LOCKMODE unlock)
{
	msgq_table_close(log->kept, AccessShareLock);
	msgq_table_close(log->current, unlock);
}

static Datum
column(const MsgqTable *table, AttrNumber n)
{
	return msgq_row_value(table->row, n);
}

/* Looks in one table for a row that is newer than what was found. */
static void
find_newer(MsgqTable *table, Snapshot snapshot, int32 group_id, int partition,
		   MsgqGroupPlace *place)
{
	ScanKeyData keys[2];

	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(group_id));
	ScanKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(partition));
	if (!msgq_table_find(table, snapshot, keys, 2, BackwardScanDirection) ||
		DatumGetInt64(column(table, Anum_group_log_n)) <= place->n)
		return;
	place->n = DatumGetInt64(column(table, Anum_group_log_n));
	place->position = DatumGetInt64(column(table, Anum_group_log_position));
	place->lease = DatumGetInt64(column(table, Anum_group_log_lease));
	place->leased_upto = DatumGetInt64(column(table, Anum_group_log_leased_upto));
	place->leased_until = DatumGetTimestampTz(column(table, Anum_group_log_leased_until));
	place->deliveries = DatumGetInt32(column(table, Anum_group_log_deliveries));
}

/*
 * Where a group is, by what is committed now and what we have done ourselves.
 * In a partition that was added after the group it is at the beginning.
 */
MsgqGroupPlace
msgq_group_log_find(MsgqGroupLog *log, int32 group_id, int partition)
{
	MsgqGroupPlace place = {.position = MSGQ_FIRST_POSITION};
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());

	if (RelationGetNumberOfBlocks(log->kept->table) > 0)
		find_newer(log->kept, snapshot, group_id, partition, &place);
	find_newer(log->current, snapshot, group_id, partition, &place);
	UnregisterSnapshot(snapshot);
	return place;
}

/*
 * Writes down where a group is now, after place->n, which becomes the row's
 * number.  The caller holds the partition's lock for the group.
 */
void
msgq_group_log_add(MsgqGroupLog *log, int32 group_id, int partition,
				   MsgqGroupPlace *place)
{
	Datum		values[Natts_group_log];

	place->n++;
	values[Anum_group_log_group_id - 1] = Int32GetDatum(group_id);
	values[Anum_group_log_partition - 1] = Int32GetDatum(partition);
	values[Anum_group_log_n - 1] = Int64GetDatum(place->n);
	values[Anum_group_log_position - 1] = Int64GetDatum(place->position);
	values[Anum_group_log_lease - 1] = Int64GetDatum(place->lease);
	values[Anum_group_log_leased_upto - 1] = Int64GetDatum(place->leased_upto);
	values[Anum_group_log_leased_until - 1] =
		TimestampTzGetDatum(place->leased_until);
	values[Anum_group_log_deliveries - 1] = Int32GetDatum(place->deliveries);
	values[Anum_group_log_at - 1] = TimestampTzGetDatum(msgq_now());
	msgq_table_insert(log->current, values, NULL);
}

/*
 * How many groups has a stream?  Their names and numbers, in the current memory
 * context, in the order of names.
 */
int
msgq_group_list(const MsgqStream *stream, char ***names, int32 **ids)
{
	MemoryContext caller = CurrentMemoryContext;
	MsgqSpi		spi;
	int			n;

	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run("SELECT name, id FROM msgq.stream_group WHERE stream_id = %d ORDER BY name",
				 stream->id);
	n = SPI_processed;
	*names = MemoryContextAlloc(caller, sizeof(char *) * Max(n, 1));
	*ids = MemoryContextAlloc(caller, sizeof(int32) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		bool		is_null;

		(*names)[i] = MemoryContextStrdup(caller,
										  SPI_getvalue(SPI_tuptable->vals[i],
													   SPI_tuptable->tupdesc, 1));
		(*ids)[i] = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i],
												SPI_tuptable->tupdesc, 2,
												&is_null));
	}
	msgq_spi_end(&spi);
	return n;
}
