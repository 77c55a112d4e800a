/*
 * store.c
 *		What a queue keeps for a time: idempotency keys, and archived messages.
 *
 * A store gets rid of its rows by TRUNCATE and never by DELETE, so it needs no
 * vacuum and does not grow while an old snapshot is held.  It has three tables,
 * whose states are in msgq.store:
 *
 *	current		takes new rows
 *	kept		takes none, and is read
 *	empty		was truncated; nobody looks
 *
 *	current -> kept, empty -> current	the window has passed since it was
 *										opened: the store turns
 *	kept -> empty						the window has passed since it was
 *										closed: no row in it is young enough
 *
 * So rows live for one to two windows, and three tables are enough.  How long
 * a row counts is not told by its table: whoever reads one compares its time.
 *
 * The window is the queue's dedup_window, or its archive_retention.  Where that
 * is NULL nothing is due.
 *
 * Users.  Whoever uses a store holds a lock on one of the queue's segments;
 * then he locks the current table in RowExclusive mode, and, if he reads, those
 * kept tables that may have a row which still counts in AccessShare mode, all
 * to the end of his transaction.  If the queue has changed meanwhile he begins anew, as
 * when a queue is opened (storage.c).  So who writes, writes to the current
 * table, and what was written to a kept one is all committed: nobody can turn
 * a store under an open transaction that has written to it, a prepared one
 * included.  A row that is unique in the current table and was not found in
 * the kept ones is unique.
 *
 * Turning takes a ShareLock on the current table.  With steady traffic there
 * is always a writer, so it has to be waited for; those who come meanwhile
 * wait behind it.  The wait is short (table.c), and shorter than
 * deadlock_timeout usually is; where it was in vain because a transaction
 * stays open, the next attempt is long after that (step.h).  The time at
 * which a table is closed is read with the lock, so no row is younger.  The
 * lock on msgq.queue, which all who change metadata take (admin.c), is taken
 * after it, and only if it is free: nobody waits for one who waits here.
 *
 * Emptying takes an AccessExclusiveLock if it can be had at once.  It can in
 * spite of steady traffic, since users pass by a table whose rows do not count
 * any more.
 *
 * A table to which somebody has added what direct access would not honour is
 * refused, and is not truncated: his trigger would run as the owner.
 *
 * src/store.c
 */
#include "msgq.h"

#include "access/table.h"
#include "catalog/pg_type.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "admin.h"
#include "argument.h"
#include "owner.h"
#include "store.h"
#include "table.h"
#include "testing.h"

/* What the tables of each kind are made of. */
typedef struct Shape
{
	const char *what;			/* for comments */
	const char *columns;
	int			ncolumns;		/* of those */
	int			nrequired;		/* so many at the beginning are NOT NULL */
	bool		has_key;		/* a primary key on the first one */
	bool		reads_kept;		/* users read the kept tables as well */
} Shape;

/* The key is a varchar so that the table needs no TOAST table. */
static const Shape shapes[MSGQ_NSTORES] = {
	[MSGQ_KEYS] = {
		.what = "idempotency keys",
		.columns = "key varchar(255) COLLATE \"C\" NOT NULL, "
		"id bigint NOT NULL, "
		"fingerprint bigint NOT NULL, "
		"seen_at timestamptz NOT NULL",
		.ncolumns = 4,
		.nrequired = 4,
		.has_key = true,
		.reads_kept = true
	},
	[MSGQ_ARCHIVE] = {
		.what = "archived messages",
		.columns = "id bigint NOT NULL, "
		"deliveries int NOT NULL, "
		"failures int NOT NULL, "
		"priority smallint NOT NULL, "
		"enqueued_at timestamptz NOT NULL, "
		"archived_at timestamptz NOT NULL, "
		"group_key text, "
		"headers jsonb, "
		"body jsonb, "
		"data bytea",
		.ncolumns = 10,
		.nrequired = 6
	},
};

/* ---------------------------------------------------------------------------
 * Using a store
 * ---------------------------------------------------------------------------
 */

/*
 * How long its rows count, in microseconds.  Not for the archive of a queue
 * that has none.
 */
int64
msgq_store_window(const MsgqQueue *queue, MsgqStoreKind kind)
{
	Assert(kind == MSGQ_KEYS || queue->has_archive);
	return msgq_interval_span(kind == MSGQ_KEYS ? &queue->dedup_window :
							  &queue->archive_retention);
}

/* What a user has added to the table that we would not honour, or NULL. */
static const char *
foreign_feature(Relation table, const Shape *shape)
{
	TupleDesc	descriptor = RelationGetDescr(table);
	const char *feature = msgq_foreign_feature(table, shape->ncolumns);
	List	   *indexes;

	if (feature)
		return feature;
	for (int i = 0; i < shape->ncolumns; i++)
	{
		Form_pg_attribute column = TupleDescAttr(descriptor, i);

		if (column->attisdropped || column->attgenerated ||
			column->attnotnull != (i < shape->nrequired))
			return "other columns";
	}
	indexes = RelationGetIndexList(table);
	if (list_length(indexes) != (shape->has_key ? 1 : 0))
		return "other indexes";
	list_free(indexes);
	return NULL;
}

static void
refuse_incomplete(const MsgqQueue *queue, MsgqStoreKind kind)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the storage of queue \"%s\" is incomplete",
					NameStr(queue->name)),
			 errdetail("Its tables of %s are named msgq.q%d_%c*.",
					   shapes[kind].what, queue->id, msgq_store_letter(kind)),
			 errhint("Restore them from a dump, or drop the queue.")));
}

static void
refuse_foreign_features(Relation table, const Shape *shape)
{
	const char *feature = foreign_feature(table, shape);

	if (feature)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" cannot hold %s",
						RelationGetRelationName(table), shape->what),
				 errdetail("It has %s, which msgq would not honour.", feature),
				 errhint("Make it again as the other ones are.")));
}

/* Closes the tables, and gives back their locks. */
static void
let_go(MsgqStore *store)
{
	for (int i = 0; i < store->ntables; i++)
		table_close(store->tables[i], i == 0 ? RowExclusiveLock : AccessShareLock);
	store->ntables = 0;
}

/* False, with none of them locked, if the queue has changed meanwhile. */
static bool
lock_tables(const MsgqStorage *storage, MsgqStore *store)
{
	const MsgqQueue *queue = storage->queue;
	const MsgqStoreTable *tables = queue->stores[store->kind];
	bool		reads_kept = shapes[store->kind].reads_kept;
	TimestampTz oldest = !reads_kept ? 0 :
	msgq_now() - msgq_store_window(queue, store->kind);

	if (queue->nstored[store->kind] == 0 || tables[0].closed_at != 0)
		refuse_incomplete(queue, store->kind);
	msgq_point(MSGQ_POINT_STORE_CHOSEN);
	for (int i = 0; i < queue->nstored[store->kind]; i++)
	{
		Relation	table;

		if (i > 0 && (!reads_kept || tables[i].closed_at <= oldest))
			break;
		if (!OidIsValid(tables[i].table))
			refuse_incomplete(queue, store->kind);
		table = try_table_open(tables[i].table,
							   i == 0 ? RowExclusiveLock : AccessShareLock);
		if (table)
			store->tables[store->ntables++] = table;
		else
			msgq_queue_forget_all();
		if (msgq_queue_generation() == storage->generation)
			continue;
		let_go(store);
		return false;
	}
	return true;
}

/*
 * Locks and opens a store of a queue that is open; if the queue has changed
 * since, it is opened anew.  command is the caller's name, for messages.
 */
MsgqStore  *
msgq_store_open(const char *command, MsgqStorage **storage, MsgqStoreKind kind)
{
	MsgqStore  *store = palloc0(sizeof(MsgqStore));

	store->kind = kind;
	while (!lock_tables(*storage, store))
	{
		MsgqStorage old = **storage;
		char	   *name = pstrdup(NameStr(old.queue->name));

		CHECK_FOR_INTERRUPTS();
		msgq_storage_close(*storage);
		*storage = old.which == MSGQ_ACTIVE ?
			msgq_storage_open_levels(command, name, old.right, old.lowest,
									 old.highest) :
			msgq_storage_open(command, name, old.right, old.which);
	}
	for (int i = 0; i < store->ntables; i++)
		refuse_foreign_features(store->tables[i], &shapes[kind]);
	return store;
}

/* The locks stay. */
void
msgq_store_close(MsgqStore *store)
{
	for (int i = 0; i < store->ntables; i++)
		table_close(store->tables[i], NoLock);
}

/* ---------------------------------------------------------------------------
 * Making and dropping; all but msgq_store_lock within SPI, as the owner
 * ---------------------------------------------------------------------------
 */

/* Makes the tables of a store that has none. */
void
msgq_store_create(int32 queue_id, MsgqStoreKind kind)
{
	const Shape *shape = &shapes[kind];
	char		letter = msgq_store_letter(kind);
	Oid			type = TIMESTAMPTZOID;
	Datum		now = TimestampTzGetDatum(msgq_now());

	for (int n = 1; n <= MSGQ_STORE_TABLES; n++)
	{
		char	   *name = psprintf("q%d_%c%d", queue_id, letter, n);

		msgq_spi_run("CREATE TABLE msgq.%s (%s%s) USING heap",
					 name, shape->columns, !shape->has_key ? "" :
					 psprintf(", CONSTRAINT %s_pkey PRIMARY KEY (key)", name));
	}
	msgq_spi_run_with(psprintf("INSERT INTO msgq.store (queue_id, kind, n, state, opened_at) "
							   "SELECT %d, '%c', n, CASE n WHEN 1 THEN 'current' ELSE 'empty' END, "
							   "CASE n WHEN 1 THEN $1 END FROM generate_series(1, %d) AS n",
							   queue_id, letter, MSGQ_STORE_TABLES),
					  SPI_OK_INSERT, 1, &type, &now, NULL, false);
}

static Datum
column(int row, int n)
{
	bool		is_null;

	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, n,
						 &is_null);
}

static MsgqStoreKind
kind_of_letter(char letter)
{
	MsgqStoreKind kind = 0;

	while (msgq_store_letter(kind) != letter)
		kind++;
	return kind;
}

/* A row of msgq.store. */
typedef struct StoreRow
{
	int32		queue_id;
	MsgqStoreKind kind;
	int			n;
	char		state;			/* its first letter */
	TimestampTz changes_at;		/* when it is due to be closed or emptied */
} StoreRow;

/* When is it due, by columns 5 (since) and 6 (the window)? */
static TimestampTz
change_time(int row)
{
	bool		is_null;
	TimestampTz since = DatumGetTimestampTz(column(row, 5));
	Datum		window = SPI_getbinval(SPI_tuptable->vals[row],
									   SPI_tuptable->tupdesc, 6, &is_null);

	if (is_null)
		return DT_NOEND;
	if (TIMESTAMP_NOT_FINITE(since))
		return since;
	return since + msgq_interval_span(DatumGetIntervalP(window));
}

/*
 * The rows that match, in the current memory context; condition is made of
 * our own words.
 */
static StoreRow *
read_rows(const char *condition, int *n)
{
	StoreRow   *rows;

	msgq_spi_run("SELECT s.queue_id, s.kind, s.n, s.state, "
				 "coalesce(CASE s.state WHEN 'kept' THEN s.closed_at "
				 "ELSE s.opened_at END, '-infinity'), "
				 "CASE s.kind WHEN 'k' THEN q.dedup_window "
				 "ELSE q.archive_retention END "
				 "FROM msgq.store s JOIN msgq.queue q ON q.id = s.queue_id "
				 "WHERE %s ORDER BY 1, 2, 3", condition);
	*n = SPI_processed;
	rows = palloc(sizeof(StoreRow) * (*n + 1));
	for (int i = 0; i < *n; i++)
	{
		rows[i].queue_id = DatumGetInt32(column(i, 1));
		rows[i].kind = kind_of_letter(DatumGetChar(column(i, 2)));
		rows[i].n = DatumGetInt32(column(i, 3));
		rows[i].state = TextDatumGetCString(column(i, 4))[0];
		rows[i].changes_at = change_time(i);
	}
	return rows;
}

static char *
table_name(const StoreRow *row)
{
	return psprintf("q%d_%c%d", row->queue_id, msgq_store_letter(row->kind),
					row->n);
}

static StoreRow *
read_queue(int32 queue_id, int *n)
{
	return read_rows(psprintf("s.queue_id = %d", queue_id), n);
}

/* Says on each table of a queue's stores whose it is. */
void
msgq_store_comment(int32 queue_id, const char *name)
{
	int			n;
	StoreRow   *rows = read_queue(queue_id, &n);

	for (int i = 0; i < n; i++)
		msgq_spi_run("COMMENT ON TABLE msgq.%s IS %s", table_name(&rows[i]),
					 quote_literal_cstr(psprintf("%s %d of queue \"%s\"",
												 shapes[rows[i].kind].what,
												 rows[i].n, name)));
}

/* Waits for those who use the stores, in the order in which they lock them. */
void
msgq_store_lock(const MsgqQueue *queue)
{
	for (MsgqStoreKind kind = 0; kind < MSGQ_NSTORES; kind++)
	{
		for (int i = 0; i < queue->nstored[kind]; i++)
		{
			if (OidIsValid(queue->stores[kind][i].table))
				LockRelationOid(queue->stores[kind][i].table,
								AccessExclusiveLock);
		}
	}
}

/* Drops the stores of a queue, as far as they are there. */
void
msgq_store_drop(int32 queue_id)
{
	int			n;
	StoreRow   *rows = read_queue(queue_id, &n);

	for (int i = 0; i < n; i++)
	{
		if (OidIsValid(msgq_relation_oid(table_name(&rows[i]))))
			msgq_spi_run("DROP TABLE msgq.%s", table_name(&rows[i]));
	}
	msgq_spi_run("DELETE FROM msgq.store WHERE queue_id = %d", queue_id);
}

/* ---------------------------------------------------------------------------
 * Turning and emptying
 * ---------------------------------------------------------------------------
 */

/* The stores of all queues of which a table is due, in the given context. */
MsgqStoreWork *
msgq_store_list_due(MemoryContext context, int *n)
{
	TimestampTz now = msgq_now();
	MsgqStoreWork *work;
	StoreRow   *rows;
	int			nrows;
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	rows = read_rows("s.state <> 'empty'", &nrows);
	work = MemoryContextAlloc(context, sizeof(MsgqStoreWork) * (nrows + 1));
	*n = 0;
	for (int i = 0; i < nrows; i++)
	{
		if (rows[i].changes_at > now ||
			(*n > 0 && work[*n - 1].queue_id == rows[i].queue_id &&
			 work[*n - 1].kind == rows[i].kind))
			continue;
		work[*n].queue_id = rows[i].queue_id;
		work[(*n)++].kind = rows[i].kind;
	}
	msgq_spi_end(&spi);
	return work;
}

/* Finds the oldest table of a store in a state; false if there is none. */
static bool
find_row(int32 queue_id, MsgqStoreKind kind, char state, StoreRow *found)
{
	StoreRow   *rows;
	int			n;
	bool		any = false;
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	rows = read_queue(queue_id, &n);
	for (int i = 0; i < n; i++)
	{
		if (rows[i].kind != kind || rows[i].state != state ||
			(any && rows[i].changes_at >= found->changes_at))
			continue;
		*found = rows[i];
		any = true;
	}
	msgq_spi_end(&spi);
	return any;
}

/* Is a table that was found as it was?  After msgq_try_lock_metadata. */
static bool
still_is(const StoreRow *row)
{
	StoreRow	now;

	return find_row(row->queue_id, row->kind, row->state, &now) &&
		now.n == row->n && now.changes_at == row->changes_at;
}

/* The table that takes new rows; InvalidOid if there is none. */
Oid
msgq_store_current(int32 queue_id, MsgqStoreKind kind)
{
	StoreRow	row;

	return find_row(queue_id, kind, 'c', &row) ?
		msgq_relation_oid(table_name(&row)) : InvalidOid;
}

/* Within SPI. */
static void
set_state(const StoreRow *row, const char *state, const char *time)
{
	Oid			type = TIMESTAMPTZOID;
	Datum		now = TimestampTzGetDatum(msgq_now());

	msgq_spi_run_with(psprintf("UPDATE msgq.store SET state = '%s', %s = $1 "
							   "WHERE queue_id = %d AND kind = '%c' AND n = %d",
							   state, time, row->queue_id,
							   msgq_store_letter(row->kind), row->n),
					  SPI_OK_UPDATE, 1, &type, &now, NULL, false);
	msgq_queue_changed();
}

/* Is the table there, and as it was made?  The caller may hold any lock. */
static bool
is_plain(Oid table_oid, MsgqStoreKind kind, bool *is_empty)
{
	Relation	table = try_table_open(table_oid, AccessShareLock);
	bool		plain;

	if (table == NULL)
		return false;
	plain = foreign_feature(table, &shapes[kind]) == NULL;
	*is_empty = RelationGetNumberOfBlocks(table) == 0;
	table_close(table, AccessShareLock);
	return plain;
}

/* Would users not refuse it? */
static bool
can_become_current(const StoreRow *empty)
{
	Oid			table = msgq_relation_oid(table_name(empty));
	bool		is_empty;

	return OidIsValid(table) &&
		ConditionalLockRelationOid(table, AccessShareLock) &&
		is_plain(table, empty->kind, &is_empty) && is_empty;
}

/*
 * Turns a store if its current table is due; true if it did.  Raises 55P03 if
 * a transaction that has written to the table stays open.
 */
bool
msgq_store_turn(int32 queue_id, MsgqStoreKind kind, MsgqRound *round)
{
	StoreRow	current;
	StoreRow	empty;
	Oid			table;
	bool		is_empty;
	MsgqSpi		spi;

	if (!find_row(queue_id, kind, 'c', &current) ||
		current.changes_at > msgq_now() ||
		!find_row(queue_id, kind, 'e', &empty))
		return false;
	table = msgq_relation_oid(table_name(&current));
	if (!OidIsValid(table))
		return false;
	msgq_lock_against_writers(table);
	if (!msgq_try_lock_metadata() || !still_is(&current) || !still_is(&empty) ||
		!can_become_current(&empty) || !is_plain(table, kind, &is_empty))
	{
		round->waiting++;
		return false;
	}
	msgq_spi_begin(&spi, msgq_storage_owner());
	if (!is_empty)
	{
		set_state(&current, "kept", "closed_at");
		set_state(&empty, "current", "opened_at");
		round->rotated++;
	}
	else
		set_state(&current, "current", "opened_at");
	msgq_spi_end(&spi);
	return !is_empty;
}

/* The TOAST table of a table that is locked. */
static bool
lock_toast(Oid table_oid)
{
	Relation	table = table_open(table_oid, NoLock);
	bool		locked = msgq_try_lock_toast(table);

	table_close(table, NoLock);
	return locked;
}

/* Empties a kept table, if nobody uses it. */
static bool
empty_table(const StoreRow *kept, MsgqRound *round)
{
	Oid			table = msgq_relation_oid(table_name(kept));
	bool		is_empty;
	MsgqSpi		spi;

	if (!OidIsValid(table))
		return false;
	if (!msgq_try_lock_metadata() || !still_is(kept) ||
		!ConditionalLockRelationOid(table, AccessExclusiveLock) ||
		!is_plain(table, kept->kind, &is_empty) || !lock_toast(table))
	{
		round->waiting++;
		return false;
	}
	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run("TRUNCATE ONLY msgq.%s", table_name(kept));
	set_state(kept, "empty", "closed_at");
	msgq_spi_end(&spi);
	round->emptied++;
	return true;
}

/* Empties a kept table of a store if one is due; true if it did. */
bool
msgq_store_empty(int32 queue_id, MsgqStoreKind kind, MsgqRound *round)
{
	StoreRow	kept;

	return find_row(queue_id, kind, 'k', &kept) &&
		kept.changes_at <= msgq_now() && empty_table(&kept, round);
}
