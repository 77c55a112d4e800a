/*
 * admin.c
 *		Makes, changes, empties and drops queues.  Their settings are in
 *		settings.c.
 *
 * All of it is rare and goes through SQL, as the storage's owner (owner.c),
 * after the caller's right was checked.  Names of queues are parameters or
 * quoted literals there; tables are named by the queue's number.
 *
 * Whoever changes msgq.queue, msgq.segment or msgq.store, or what describes
 * streams (streamadmin.c) and topics (topicadmin.c), locks msgq.queue in SHARE
 * ROW EXCLUSIVE mode first, to the end of his transaction: so two of them never
 * meet, a name that was found free stays free, and readers go on.  A change
 * sends an invalidation (queue.c).  drop_queue then waits, in DROP TABLE, for
 * all transactions that use the queue.
 *
 * src/admin.c
 */
#include "msgq.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "admin.h"
#include "argument.h"
#include "dependent.h"
#include "owner.h"
#include "queue.h"
#include "ring.h"
#include "segment.h"
#include "settings.h"
#include "stats.h"
#include "store.h"
#include "stream.h"
#include "table.h"
#include "topic.h"
#include "wakeup.h"

/* A new queue's ring, and each of several. */
#define INITIAL_SEGMENTS	3
#define LEVEL_SEGMENTS		2

/* ---------------------------------------------------------------------------
 * Common steps
 * ---------------------------------------------------------------------------
 */

/* Nobody else changes queues or streams until this transaction ends. */
void
msgq_lock_metadata(void)
{
	LockRelationOid(msgq_relation_oid("queue"), ShareRowExclusiveLock);
}

/* The same, unless somebody does: then false. */
bool
msgq_try_lock_metadata(void)
{
	return ConditionalLockRelationOid(msgq_relation_oid("queue"),
									  ShareRowExclusiveLock);
}

/* What has this name; NULL if it is free. */
static const char *
kind_named(const char *name)
{
	return msgq_queue_find(name) ? "queue" :
		msgq_stream_find(name) ? "stream" :
		msgq_topic_find(name) ? "topic" : NULL;
}

/*
 * Raises 42710 if there is a queue, a stream or a topic of this name, since
 * they share their names; but not for one of the kind except, if that is given.
 */
void
msgq_refuse_taken_name(const char *name, const char *except)
{
	const char *kind = kind_named(name);

	if (kind && (except == NULL || strcmp(kind, except) != 0))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("%s \"%s\" already exists", kind, name),
				 errdetail("Queues, streams and topics share their names.")));
}

/*
 * Removes what leads to something that is dropped, and does not keep it from
 * that: bindings, and captures of tables that are dead; within SPI.
 */
void
msgq_bindings_drop(int32 target_id)
{
	/* The library may be newer than what CREATE EXTENSION has made. */
	if (OidIsValid(msgq_relation_oid("binding")))
	{
		msgq_target_changed(target_id);
		msgq_spi_run("DELETE FROM msgq.binding WHERE target_id = %d", target_id);
	}
	if (OidIsValid(msgq_relation_oid("capture")))
		msgq_spi_run("DELETE FROM msgq.capture WHERE destination_id = %d", target_id);
}

/* Runs a command that has the queue's number as $1 and a name as $2. */
static void
run_for_queue(const char *sql, int expected, int32 queue_id, const char *name)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(queue_id), (Datum) 0};
	bool		nulls[] = {false, name == NULL};

	if (name)
		values[1] = CStringGetTextDatum(name);
	msgq_spi_run_with(sql, expected, name ? 2 : 1, types, values, nulls, false);
}

/* Numbers of all segments of a queue; to be called within SPI. */
static int *
segment_numbers(int32 queue_id, int *n)
{
	int		   *numbers;

	run_for_queue("SELECT n FROM msgq.segment WHERE queue_id = $1 ORDER BY n",
				  SPI_OK_SELECT, queue_id, NULL);
	*n = SPI_processed;
	numbers = palloc(sizeof(int) * (*n + 1));
	for (int i = 0; i < *n; i++)
	{
		bool		is_null;

		numbers[i] = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i],
												 SPI_tuptable->tupdesc, 1,
												 &is_null));
	}
	return numbers;
}

/* Says on a table whose it is; within SPI. */
void
msgq_segment_comment(int32 queue_id, int n, const char *name)
{
	msgq_spi_run("COMMENT ON TABLE msgq.q%d_%d IS %s", queue_id, n,
				 quote_literal_cstr(psprintf("segment %d of queue \"%s\"",
											 n, name)));
}

/* Says it on the view and on each table. */
static void
comment_on_storage(int32 queue_id, const char *name)
{
	char	   *view = quote_literal_cstr(psprintf("queue \"%s\": its messages, and the rights on it",
												   name));
	int			n;
	int		   *numbers = segment_numbers(queue_id, &n);

	msgq_spi_run("COMMENT ON VIEW msgq.q%d IS %s", queue_id, view);
	for (int i = 0; i < n; i++)
		msgq_segment_comment(queue_id, numbers[i], name);
	msgq_store_comment(queue_id, name);
}

/* ---------------------------------------------------------------------------
 * Making the storage
 * ---------------------------------------------------------------------------
 */

/*
 * Makes table number n of a queue, with an index on the group if the queue is
 * ordered; to be called within SPI.
 */
void
msgq_segment_create(int32 queue_id, int n, int level, bool ordered,
					const char *state)
{
	msgq_spi_run("CREATE TABLE msgq.q%1$d_%2$d ("
				 "id bigint NOT NULL CONSTRAINT q%1$d_%2$d_pkey PRIMARY KEY, "
				 "visible_at timestamptz, "
				 "leased_at timestamptz, "
				 "deliveries int NOT NULL, "
				 "failures int NOT NULL, "
				 "priority smallint NOT NULL, "
				 "enqueued_at timestamptz NOT NULL, "
				 "expires_at timestamptz, "
				 "group_key text, "
				 "headers jsonb, "
				 "body jsonb, "
				 "data bytea) USING heap", queue_id, n);
	msgq_spi_run("CREATE INDEX q%1$d_%2$d_due ON msgq.q%1$d_%2$d (visible_at) "
				 "WHERE visible_at IS NOT NULL", queue_id, n);
	if (ordered)
		msgq_spi_run("CREATE INDEX q%1$d_%2$d_group ON msgq.q%1$d_%2$d "
					 "(group_key COLLATE \"C\", leased_at, id) "
					 "WHERE group_key IS NOT NULL", queue_id, n);
	msgq_spi_run("INSERT INTO msgq.segment (queue_id, n, state, turn, moved, level) "
				 "VALUES (%d, %d, '%s', 0, false, %d)",
				 queue_id, n, state, level);
}

/* Makes a new queue's rings, one for each level; returns how many tables. */
static int
create_rings(int32 queue_id, const MsgqQueueRow *row)
{
	int			levels = msgq_setting_int(row, Anum_queue_priorities);
	bool		ordered = DatumGetBool(row->values[Anum_queue_ordered - 1]);
	int			segments = levels == 1 ? INITIAL_SEGMENTS : LEVEL_SEGMENTS;

	for (int i = 0; i < levels * segments; i++)
		msgq_segment_create(queue_id, i + 1, i / segments, ordered,
							i % segments == 0 ? "active" : "empty");
	return levels * segments;
}

/* Makes the view over tables 1 to nsegments, or makes it anew. */
void
msgq_handle_create(int32 queue_id, int nsegments)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "CREATE OR REPLACE VIEW msgq.q%d AS", queue_id);
	for (int n = 1; n <= nsegments; n++)
		appendStringInfo(&sql, "%s SELECT id, visible_at, leased_at, deliveries, "
						 "failures, priority, enqueued_at, expires_at, group_key, "
						 "headers, body, data FROM msgq.q%d_%d",
						 n == 1 ? "" : " UNION ALL", queue_id, n);
	msgq_spi_run("%s", sql.data);
}

/* All rights, with the right to pass them on. */
static void
grant_all(int32 queue_id, Oid role)
{
	msgq_spi_run("GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON msgq.q%d TO %s WITH GRANT OPTION",
				 queue_id, quote_identifier(GetUserNameFromId(role, false)));
}

/*
 * Within msgq_spi_begin and _end: the owner may use any tablespace, and the
 * caller may not choose it.
 */
void
msgq_use_default_tablespace(void)
{
	(void) set_config_option("default_tablespace", "",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
}

/*
 * Makes the queue.  The caller holds the lock on msgq.queue, and the name is
 * free.
 */
static void
create(const char *name, MsgqQueueRow *row)
{
	Oid			creator = GetUserId();
	int32		id;
	MsgqSpi		spi;

	id = (int32) nextval_internal(msgq_relation_oid("queue_id"), false);
	row->values[Anum_queue_id - 1] = Int32GetDatum(id);
	row->values[Anum_queue_name - 1] = CStringGetTextDatum(name);
	row->values[Anum_queue_created_at - 1] =
		TimestampTzGetDatum(GetCurrentTimestamp());
	row->nulls[Anum_queue_id - 1] = false;
	row->nulls[Anum_queue_name - 1] = false;
	row->nulls[Anum_queue_created_at - 1] = false;

	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_use_default_tablespace();
	msgq_settings_insert(row);
	msgq_spi_run("CREATE SEQUENCE msgq.q%d_id AS bigint CACHE 1", id);
	msgq_handle_create(id, create_rings(id, row));
	msgq_store_create(id, MSGQ_KEYS);
	if (!row->nulls[Anum_queue_archive_retention - 1])
		msgq_store_create(id, MSGQ_ARCHIVE);
	comment_on_storage(id, name);
	grant_all(id, creator);
	msgq_spi_end(&spi);
}

/* ---------------------------------------------------------------------------
 * Dead-letter queues
 * ---------------------------------------------------------------------------
 */

/* What is added to a queue's name for the one that is made with it. */
#define DEAD_LETTER_SUFFIX	".dead"

static char *
partner_name(const char *name)
{
	if (strlen(name) + strlen(DEAD_LETTER_SUFFIX) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("name \"%s\" is too long for a queue with a dead-letter queue of its own",
						name),
				 errdetail("That would be \"%s%s\"; names have at most %d bytes.",
						   name, DEAD_LETTER_SUFFIX, NAMEDATALEN - 1),
				 errhint("Choose a shorter name, or a dead_letter_queue.")));
	return psprintf("%s%s", name, DEAD_LETTER_SUFFIX);
}

/*
 * Makes the dead-letter queue that goes with a queue.  It keeps what comes,
 * until somebody takes it out.
 */
static void
create_partner(const char *name, const MsgqQueueRow *row)
{
	MsgqQueueRow partner = *row;

	set_value(&partner, Anum_queue_max_deliveries, Int32GetDatum(0));
	set_value(&partner, Anum_queue_dead_letter_queue, CStringGetTextDatum(""));
	set_null(&partner, Anum_queue_message_ttl);
	set_null(&partner, Anum_queue_max_length);
	set_value(&partner, Anum_queue_overflow, CStringGetTextDatum("reject"));
	set_null(&partner, Anum_queue_max_in_flight);
	set_value(&partner, Anum_queue_priorities, Int32GetDatum(1));
	set_value(&partner, Anum_queue_ordered, BoolGetDatum(false));
	set_value(&partner, Anum_queue_on_exhausted, CStringGetTextDatum("skip"));
	set_null(&partner, Anum_queue_archive_retention);
	create(name, &partner);
}

/* Raises 22023 if dead letters of this queue would come back to it. */
static void
refuse_cycle(const char *name, const MsgqQueue *target)
{
	while (target)
	{
		if (strcmp(NameStr(target->name), name) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("dead letters of queue \"%s\" would come back to it",
							name),
					 errhint("Choose a dead-letter queue whose own dead letters go elsewhere.")));
		target = msgq_queue_find(NameStr(target->dead_letter_queue));
	}
}

/*
 * Puts the name of the dead-letter queue into the row where it is NULL, and
 * makes that queue if there is none.  One that exists must be one to which the
 * caller may send.
 */
static void
resolve_dead_letter_queue(const char *name, MsgqQueueRow *row)
{
	int			i = Anum_queue_dead_letter_queue - 1;
	bool		is_partner = row->nulls[i];
	char	   *target = is_partner ? partner_name(name) :
	TextDatumGetCString(row->values[i]);

	set_value(row, Anum_queue_dead_letter_queue, CStringGetTextDatum(target));
	if (target[0] == '\0')
		return;
	if (is_partner && msgq_queue_find(target) == NULL)
	{
		msgq_refuse_taken_name(target, NULL);
		create_partner(target, row);
		msgq_queue_changed();
		CommandCounterIncrement();
		return;
	}
	refuse_cycle(name, msgq_queue_get(target, MSGQ_RIGHT_SEND));
}

/* The dead-letter queue that was made with a queue; NULL if it has another one. */
static MsgqQueue *
find_partner(const MsgqQueue *queue)
{
	const char *name = NameStr(queue->dead_letter_queue);
	MsgqQueue  *partner;

	if (strcmp(name, psprintf("%s%s", NameStr(queue->name), DEAD_LETTER_SUFFIX)) != 0)
		return NULL;
	partner = msgq_queue_find(name);
	return partner && msgq_queue_is_complete(partner) ? partner : NULL;
}

/* Names of the queues and streams whose dead letters go to this one; or NULL. */
static char *
users_of(const char *dead_letter_queue)
{
	StringInfoData names;
	int			n;
	MsgqQueue **queues = msgq_queue_list(MSGQ_RIGHT_NONE, &n);
	ListCell   *cell;

	initStringInfo(&names);
	for (int i = 0; i < n; i++)
	{
		if (strcmp(NameStr(queues[i]->dead_letter_queue), dead_letter_queue) == 0)
			appendStringInfo(&names, "%s\"%s\"", names.len > 0 ? ", " : "",
							 NameStr(queues[i]->name));
	}
	foreach(cell, msgq_stream_list(MSGQ_RIGHT_NONE))
	{
		const MsgqStream *stream = lfirst(cell);

		if (strcmp(NameStr(stream->dead_letter_queue), dead_letter_queue) == 0)
			appendStringInfo(&names, "%s\"%s\"", names.len > 0 ? ", " : "",
							 NameStr(stream->name));
	}
	return names.len > 0 ? names.data : NULL;
}

/* ---------------------------------------------------------------------------
 * create_queue
 * ---------------------------------------------------------------------------
 */

/* create_queue(queue, settings..., if_not_exists) */
PG_FUNCTION_INFO_V1(msgq_create_queue);
Datum
msgq_create_queue(PG_FUNCTION_ARGS)
{
	char	   *name = msgq_arg_text(fcinfo, 0, "queue");
	bool		if_not_exists = msgq_arg_bool(fcinfo, 17, "if_not_exists");
	MsgqQueueRow row;
	MsgqQueueRow present;
	MsgqQueue  *queue;

	msgq_begin_change("msgq.create_queue()");
	msgq_check_new_name(name, "queue");
	for (AttrNumber column = MSGQ_FIRST_SETTING; column <= MSGQ_LAST_SETTING; column++)
	{
		int			n = column - MSGQ_FIRST_SETTING + 1;

		row.nulls[column - 1] = PG_ARGISNULL(n);
		row.values[column - 1] = PG_ARGISNULL(n) ? (Datum) 0 : PG_GETARG_DATUM(n);
	}
	msgq_settings_check(&row);
	if (msgq_schema_aclcheck(msgq_schema_oid(), GetUserId(), ACL_CREATE) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to create a queue"),
				 errhint("Creating queues needs the privilege CREATE on schema msgq.")));

	msgq_lock_metadata();
	msgq_refuse_taken_name(name, if_not_exists ? "queue" : NULL);
	queue = msgq_queue_find(name);
	if (queue == NULL)
	{
		resolve_dead_letter_queue(name, &row);
		create(name, &row);
		msgq_queue_changed();
		CommandCounterIncrement();
		PG_RETURN_VOID();
	}
	msgq_settings_read(queue->id, &present);
	if (row.nulls[Anum_queue_dead_letter_queue - 1])
		set_value(&row, Anum_queue_dead_letter_queue,
				  CStringGetTextDatum(partner_name(name)));
	msgq_settings_compare(name, &row, &present);
	PG_RETURN_VOID();
}

/* ---------------------------------------------------------------------------
 * alter_queue, rename_queue, drop_queue
 * ---------------------------------------------------------------------------
 */

/* The tables of an archive are made when it is first wanted, and then stay. */
static void
add_archive(const MsgqQueue *queue, const MsgqQueueRow *row)
{
	MsgqSpi		spi;

	if (row->nulls[Anum_queue_archive_retention - 1] ||
		queue->nstored[MSGQ_ARCHIVE] > 0)
		return;
	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_use_default_tablespace();
	msgq_store_create(queue->id, MSGQ_ARCHIVE);
	msgq_store_comment(queue->id, NameStr(queue->name));
	msgq_spi_end(&spi);
}

/* alter_queue(queue, settings) */
PG_FUNCTION_INFO_V1(msgq_alter_queue);
Datum
msgq_alter_queue(PG_FUNCTION_ARGS)
{
	char	   *name = msgq_arg_name(fcinfo, 0, "queue");
	Jsonb	   *changes = DatumGetJsonbP(msgq_arg(fcinfo, 1, "settings"));
	MsgqQueue  *queue;
	MsgqQueueRow row;
	char	   *before;

	msgq_begin_change("msgq.alter_queue()");
	msgq_lock_metadata();
	queue = msgq_queue_get(name, MSGQ_RIGHT_ADMIN);
	msgq_settings_read(queue->id, &row);
	before = msgq_setting_as_text(&row, Anum_queue_dead_letter_queue);
	msgq_settings_set(&row, changes);
	msgq_settings_check(&row);
	if (strcmp(before, msgq_setting_as_text(&row, Anum_queue_dead_letter_queue)) != 0)
		resolve_dead_letter_queue(name, &row);
	msgq_settings_update(&row);
	add_archive(queue, &row);
	msgq_queue_changed();
	/* What was not to be had before may be now. */
	if (msgq_queue_lock_for_reading(queue))
		msgq_wake_at_commit(msgq_slot_get(queue->sequence, queue->created_at), MSGQ_MAX_BATCH);
	CommandCounterIncrement();
	PG_RETURN_VOID();
}

/* Those whose dead letters go there name it; within SPI. */
static void
rename_dead_letter_queue(const char *name, const char *new_name)
{
	Oid			types[] = {TEXTOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name), CStringGetTextDatum(new_name)};

	msgq_spi_run_with("UPDATE msgq.queue SET dead_letter_queue = $2 "
					  "WHERE dead_letter_queue = $1",
					  SPI_OK_UPDATE, lengthof(values), types, values, NULL,
					  false);
	msgq_spi_run_with("UPDATE msgq.stream SET dead_letter_queue = $2 "
					  "WHERE dead_letter_queue = $1",
					  SPI_OK_UPDATE, lengthof(values), types, values, NULL,
					  false);
}

static void
rename_queue(const MsgqQueue *queue, const char *new_name)
{
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	run_for_queue("UPDATE msgq.queue SET name = $2 WHERE id = $1",
				  SPI_OK_UPDATE, queue->id, new_name);
	comment_on_storage(queue->id, new_name);
	rename_dead_letter_queue(NameStr(queue->name), new_name);
	msgq_target_changed(queue->id);
	msgq_spi_end(&spi);
	msgq_queue_changed();
	CommandCounterIncrement();
}

/*
 * The dead-letter queue that was made with a queue gets its new name, unless
 * that is taken or too long, or it is not the caller's to rename.
 */
static void
rename_partner(const MsgqQueue *renamed, const char *new_name)
{
	MsgqQueue  *partner = find_partner(renamed);
	char	   *name = psprintf("%s%s", new_name, DEAD_LETTER_SUFFIX);

	if (partner && strlen(name) < NAMEDATALEN && kind_named(name) == NULL &&
		msgq_queue_has_right(partner, MSGQ_RIGHT_ADMIN))
		rename_queue(partner, name);
}

/* rename_queue(queue, new_name) */
PG_FUNCTION_INFO_V1(msgq_rename_queue);
Datum
msgq_rename_queue(PG_FUNCTION_ARGS)
{
	char	   *name = msgq_arg_name(fcinfo, 0, "queue");
	char	   *new_name = msgq_arg_text(fcinfo, 1, "new_name");
	MsgqQueue  *queue;

	msgq_begin_change("msgq.rename_queue()");
	msgq_check_new_name(new_name, "queue");
	msgq_lock_metadata();
	queue = msgq_queue_get(name, MSGQ_RIGHT_ADMIN);
	msgq_refuse_taken_name(new_name, NULL);
	rename_queue(queue, new_name);
	rename_partner(queue, new_name);
	PG_RETURN_VOID();
}

/*
 * Removes the queue's storage, as far as it is there, and its metadata.  The
 * tables that are in use are locked first, and all in the order in which
 * senders and receivers lock them.
 */
static void
drop_storage(const MsgqQueue *queue)
{
	int32		queue_id = queue->id;
	MsgqSpi		spi;
	int		   *numbers;
	int			n;

	msgq_spi_begin(&spi, msgq_storage_owner());
	for (int i = 0; i < queue->nsegments; i++)
	{
		if (OidIsValid(queue->segments[i].table))
			LockRelationOid(queue->segments[i].table, AccessExclusiveLock);
	}
	msgq_store_lock(queue);
	numbers = segment_numbers(queue_id, &n);
	if (OidIsValid(msgq_relation_oid(psprintf("q%d", queue_id))))
		msgq_spi_run("DROP VIEW msgq.q%d", queue_id);
	for (int i = 0; i < n; i++)
	{
		if (OidIsValid(msgq_relation_oid(psprintf("q%d_%d", queue_id, numbers[i]))))
			msgq_spi_run("DROP TABLE msgq.q%d_%d", queue_id, numbers[i]);
	}
	msgq_store_drop(queue_id);
	if (OidIsValid(msgq_relation_oid(psprintf("q%d_id", queue_id))))
		msgq_spi_run("DROP SEQUENCE msgq.q%d_id", queue_id);
	run_for_queue("DELETE FROM msgq.segment WHERE queue_id = $1",
				  SPI_OK_DELETE, queue_id, NULL);
	msgq_bindings_drop(queue_id);
	run_for_queue("DELETE FROM msgq.queue_total WHERE queue_id = $1",
				  SPI_OK_DELETE, queue_id, NULL);
	run_for_queue("DELETE FROM msgq.queue WHERE id = $1",
				  SPI_OK_DELETE, queue_id, NULL);
	msgq_spi_end(&spi);
}

/* Drops a queue.  Those who wait for a message there wait in vain. */
static void
drop(const MsgqQueue *queue)
{
	if (OidIsValid(queue->sequence))
		msgq_wake_at_commit(msgq_slot_get(queue->sequence, queue->created_at), MSGQ_MAX_BATCH);
	drop_storage(queue);
	msgq_queue_changed();
	CommandCounterIncrement();
}

/* Raises 2BP01 if dead letters of other queues go to this one. */
static void
refuse_used_dead_letter_queue(const char *name)
{
	char	   *users = users_of(name);

	if (users)
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("queue \"%s\" cannot be dropped, because it takes dead letters",
						name),
				 errdetail("It is the dead-letter queue of: %s.", users),
				 errhint("Drop those first, or give them another dead_letter_queue with msgq.alter_queue().")));
}

/* Is there a message in one of its segments, which are locked? */
static bool
has_messages(const MsgqQueue *queue)
{
	for (int i = 0; i < queue->nsegments; i++)
	{
		Relation	table = table_open(queue->segments[i].table, NoLock);
		bool		found = msgq_table_has_row(table);

		table_close(table, NoLock);
		if (found)
			return true;
	}
	return false;
}

/*
 * The dead-letter queue that was made with a queue goes with it, unless it
 * holds messages, or somebody else uses it, or changes of tables go there, or it
 * is not the caller's to drop.
 */
static void
drop_partner(const MsgqQueue *dropped)
{
	MsgqQueue  *partner = find_partner(dropped);

	if (partner == NULL || users_of(NameStr(partner->name)) ||
		msgq_has_dependents(partner->id) ||
		!msgq_queue_has_right(partner, MSGQ_RIGHT_ADMIN))
		return;
	for (int i = 0; i < partner->nsegments; i++)
		LockRelationOid(partner->segments[i].table, AccessExclusiveLock);
	if (has_messages(partner))
		ereport(NOTICE,
				(errmsg("queue \"%s\" is kept, because it holds dead letters",
						NameStr(partner->name))));
	else
		drop(partner);
}

/* drop_queue(queue, if_exists) */
PG_FUNCTION_INFO_V1(msgq_drop_queue);
Datum
msgq_drop_queue(PG_FUNCTION_ARGS)
{
	char	   *name = msgq_arg_name(fcinfo, 0, "queue");
	bool		if_exists = msgq_arg_bool(fcinfo, 1, "if_exists");
	MsgqQueue  *queue;

	msgq_begin_change("msgq.drop_queue()");
	msgq_lock_metadata();
	queue = msgq_queue_find(name);
	if (queue == NULL && if_exists)
	{
		ereport(NOTICE,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("queue \"%s\" does not exist, skipping", name)));
		PG_RETURN_BOOL(false);
	}

	/* Without the handle nobody has rights, but the owner can clean up. */
	if (queue == NULL ||
		!has_privs_of_role(GetUserId(), msgq_storage_owner()))
		queue = msgq_queue_get(name, MSGQ_RIGHT_ADMIN);
	refuse_used_dead_letter_queue(name);
	msgq_refuse_dependents("queue", name, queue->id);
	drop(queue);
	drop_partner(queue);
	PG_RETURN_BOOL(true);
}

/* ---------------------------------------------------------------------------
 * purge
 * ---------------------------------------------------------------------------
 */

/*
 * In an ordered queue no message may stay that receivers have passed by because
 * of one that is removed (group.c).  So there all who use it are waited for,
 * and what they have left is removed.  The locks are taken before any weaker
 * ones, lest two who purge wait for each other.
 */
static MsgqStorage *
open_to_purge(const char *name)
{
	msgq_begin_change("msgq.purge()");
	for (;;)
	{
		uint64		generation = msgq_queue_generation();
		MsgqQueue  *queue = msgq_queue_get(name, MSGQ_RIGHT_MANAGE);
		MsgqStorage *storage;

		for (int i = 0; queue->ordered && i < queue->nsegments; i++)
			LockRelationOid(queue->segments[i].table, ShareRowExclusiveLock);
		storage = msgq_storage_open("msgq.purge()", name, MSGQ_RIGHT_MANAGE,
									MSGQ_ALL);
		if (!storage->queue->ordered || storage->generation == generation)
			return storage;
		msgq_storage_let_go(storage);
	}
}

/* purge(queue) */
PG_FUNCTION_INFO_V1(msgq_purge);
Datum
msgq_purge(PG_FUNCTION_ARGS)
{
	char	   *name = msgq_arg_name(fcinfo, 0, "queue");
	MsgqStorage *storage = open_to_purge(name);
	MsgqSlot   *slot = storage->slot;
	int			n = storage->nsegments;
	char	  **tables = palloc(sizeof(char *) * n);
	int64		removed = 0;
	MsgqSpi		spi;

	for (int i = 0; i < n; i++)
	{
		msgq_segment_own_all(storage->segments[i]);
		tables[i] = pstrdup(RelationGetRelationName(storage->segments[i]->table));
	}
	msgq_storage_close(storage);

	msgq_spi_begin(&spi, msgq_storage_owner());
	for (int i = 0; i < n; i++)
	{
		msgq_spi_run("DELETE FROM msgq.%s", tables[i]);
		removed += SPI_processed;
	}
	msgq_spi_end(&spi);
	CommandCounterIncrement();
	msgq_count(slot, MSGQ_PURGED, removed);
	PG_RETURN_INT64(removed);
}
