/*
 * archive.c
 *		Messages that are kept after they were dealt with.
 *
 * archive is an ack (settle.c) that also stores the message in the queue's
 * archive, in the same transaction.  The archive is a store (store.c) with the
 * window archive_retention.  Its tables are made when a queue first has an
 * archive_retention, and go with the queue.  Where it was set to NULL again
 * nothing more is archived, and what is there stays: the clock stands still.
 *
 * Adding.  Whoever archives holds a lock on the current table, so it cannot
 * turn under him, and the time of archiving is before that of its closing.
 * The executor's duties: privileges are checked on the queue; store.c refuses
 * triggers, rules, row security, constraints, other columns and any index;
 * the AM stores long values anew, in the archive's own TOAST table.
 *
 * Reading is plain SQL with the caller's snapshot, as the storage's owner,
 * after the right peek was checked.  All tables are read, whatever their state, so that it does not
 * matter whether the store turns meanwhile; and an age that has passed is
 * seen by the message's own time.  It works on a standby.
 *
 * src/archive.c
 */
#include "msgq.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "funcapi.h"
#include "utils/timestamp.h"

#include "archive.h"
#include "argument.h"
#include "message.h"
#include "owner.h"
#include "store.h"
#include "testing.h"

/* Columns of a table of the archive; those after the sixth may be NULL. */
enum
{
	Anum_archive_id = 1,
	Anum_archive_deliveries,
	Anum_archive_failures,
	Anum_archive_priority,
	Anum_archive_enqueued_at,
	Anum_archive_archived_at,
	Anum_archive_group_key,
	Anum_archive_headers,
	Anum_archive_body,
	Anum_archive_data,
	Natts_archive = Anum_archive_data
};

struct MsgqArchive
{
	MsgqStore  *store;
	Relation	table;			/* the current one */
	TupleTableSlot *row;
};

/* ---------------------------------------------------------------------------
 * Adding
 * ---------------------------------------------------------------------------
 */

/* Raises 55000 if the queue archives nothing. */
void
msgq_archive_check(const MsgqQueue *queue)
{
	if (!queue->has_archive)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("queue \"%s\" has no archive", NameStr(queue->name)),
				 errhint("Set its archive_retention with msgq.alter_queue(), or use msgq.ack().")));
}

/* Opens the archive of a queue that is open, which may be opened anew. */
MsgqArchive *
msgq_archive_open(const char *command, MsgqStorage **storage)
{
	MsgqArchive *archive = palloc(sizeof(MsgqArchive));

	msgq_archive_check((*storage)->queue);
	archive->store = msgq_store_open(command, storage, MSGQ_ARCHIVE);
	msgq_archive_check((*storage)->queue);
	archive->table = archive->store->tables[0];
	archive->row = table_slot_create(archive->table, NULL);
	return archive;
}

/* Keeps a message that the caller has just removed: row is what it was. */
void
msgq_archive_add(MsgqArchive *archive, TupleTableSlot *row)
{
	static const AttrNumber column_of[Natts_archive] = {
		[Anum_archive_id - 1] = Anum_segment_id,
		[Anum_archive_deliveries - 1] = Anum_segment_deliveries,
		[Anum_archive_failures - 1] = Anum_segment_failures,
		[Anum_archive_priority - 1] = Anum_segment_priority,
		[Anum_archive_enqueued_at - 1] = Anum_segment_enqueued_at,
		[Anum_archive_group_key - 1] = Anum_segment_group_key,
		[Anum_archive_headers - 1] = Anum_segment_headers,
		[Anum_archive_body - 1] = Anum_segment_body,
		[Anum_archive_data - 1] = Anum_segment_data,
	};
	Datum	   *values = archive->row->tts_values;
	bool	   *nulls = archive->row->tts_isnull;

	slot_getallattrs(row);
	ExecClearTuple(archive->row);
	for (int i = 0; i < Natts_archive; i++)
	{
		if (column_of[i] == 0)
			continue;
		values[i] = row->tts_values[column_of[i] - 1];
		nulls[i] = row->tts_isnull[column_of[i] - 1];
	}
	values[Anum_archive_archived_at - 1] = TimestampTzGetDatum(msgq_now());
	nulls[Anum_archive_archived_at - 1] = false;
	ExecStoreVirtualTuple(archive->row);
	table_tuple_insert(archive->table, archive->row, GetCurrentCommandId(true),
					   0, NULL);
}

/* The locks stay to the end of the transaction. */
void
msgq_archive_close(MsgqArchive *archive)
{
	ExecDropSingleTupleTableSlot(archive->row);
	msgq_store_close(archive->store);
}

/* ---------------------------------------------------------------------------
 * Reading
 * ---------------------------------------------------------------------------
 */

/* The query, over all tables of the archive. */
static char *
archive_query(int32 queue_id)
{
	StringInfoData sql;

	initStringInfo(&sql);
	for (int n = 1; n <= MSGQ_STORE_TABLES; n++)
		appendStringInfo(&sql, "%sSELECT id, deliveries, failures, priority, group_key, "
						 "enqueued_at, archived_at, headers, body, data "
						 "FROM msgq.q%d_%c%d WHERE archived_at > $1 AND id > $2",
						 n == 1 ? "" : " UNION ALL ", queue_id,
						 msgq_store_letter(MSGQ_ARCHIVE), n);
	appendStringInfoString(&sql, " ORDER BY id LIMIT $3");
	return sql.data;
}

/* What was archived before this time does not count any more. */
static TimestampTz
oldest_time(const MsgqQueue *queue)
{
	return queue->has_archive ?
		msgq_now() - msgq_store_window(queue, MSGQ_ARCHIVE) : DT_NOBEGIN;
}

/* archived(queue, max_messages, after_id) */
PG_FUNCTION_INFO_V1(msgq_archived);
Datum
msgq_archived(PG_FUNCTION_ARGS)
{
	char	   *name = msgq_arg_name(fcinfo, 0, "queue");
	int			count = msgq_arg_count(fcinfo, 1, "max_messages");
	Datum		after_id = msgq_arg(fcinfo, 2, "after_id");
	Oid			types[] = {TIMESTAMPTZOID, INT8OID, INT4OID};
	Datum		values[] = {(Datum) 0, after_id, Int32GetDatum(count)};
	MsgqQueue  *queue;
	MsgqSpi		before;
	MsgqSpi		spi;

	do
	{
		queue = msgq_queue_get(name, MSGQ_RIGHT_PEEK);
	} while (!msgq_queue_lock_for_reading(queue));

	InitMaterializedSRF(fcinfo, 0);
	if (queue->nstored[MSGQ_ARCHIVE] == 0)
		return (Datum) 0;
	values[0] = TimestampTzGetDatum(oldest_time(queue));
	/* As the owner, but with the caller's snapshot. */
	msgq_become_owner(&before);
	msgq_spi_begin(&spi, InvalidOid);
	msgq_spi_run_with(archive_query(queue->id), SPI_OK_SELECT, lengthof(values),
					  types, values, NULL, false);
	msgq_spi_put_rows((ReturnSetInfo *) fcinfo->resultinfo, 0, NULL);
	msgq_spi_end(&spi);
	msgq_become_caller(&before);
	return (Datum) 0;
}
