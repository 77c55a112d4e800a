/*
 * streamadmin.c
 *		Makes, changes and drops streams.
 *
 * As with queues (admin.c): all of it is rare and goes through SQL as the
 * storage's owner, after the caller's right was checked, and whoever changes
 * metadata locks msgq.queue first, since queues and streams share their names.
 *
 * A change of the number of partitions waits for all who have appended and not
 * committed, gives positions to what they have appended, and turns the stream
 * to a new segment.  So everything in the segments before has lower positions
 * than what is appended with the new number, which is what consumer.c goes by.
 * The lock that appenders meet is held to the end of the transaction.
 *
 * src/streamadmin.c
 */
#include "msgq.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "admin.h"
#include "argument.h"
#include "dependent.h"
#include "owner.h"
#include "places.h"
#include "retention.h"
#include "segment.h"
#include "sequencer.h"
#include "settings.h"
#include "stream.h"
#include "streamadmin.h"
#include "wakeup.h"

/* A stream that holds more than this for its groups drops what is oldest. */
#define DEFAULT_MAX_HELD_BYTES	(INT64CONST(10) * 1024 * 1024 * 1024)

#define DEFAULT_MAX_DELIVERIES	10

/* A new stream's segments. */
#define INITIAL_SEGMENTS		2

/* ---------------------------------------------------------------------------
 * Settings
 * ---------------------------------------------------------------------------
 */

/* In the order of create_stream's arguments; then those without one. */
typedef enum Setting
{
	PARTITIONS,
	RETENTION,
	RETENTION_BYTES,
	RETENTION_ENTRIES,
	HOLD_FOR_GROUPS,
	DEAD_LETTER_QUEUE,
	MAX_DELIVERIES,
	MAX_HELD_BYTES,
	NSETTINGS
} Setting;

static const struct
{
	const char *name;
	Oid			type;
	bool		nullable;
	int64		least;			/* numbers */
	int64		most;
}			settings[NSETTINGS] = {
	[PARTITIONS] = {"partitions", INT4OID, false, 1, MSGQ_MAX_PARTITIONS},
	[RETENTION] = {"retention", INTERVALOID, true, 0, 0},
	[RETENTION_BYTES] = {"retention_bytes", INT8OID, true, 1, PG_INT64_MAX},
	[RETENTION_ENTRIES] = {"retention_entries", INT8OID, true, 1, PG_INT64_MAX},
	[HOLD_FOR_GROUPS] = {"hold_for_groups", BOOLOID, false, 0, 0},
	[DEAD_LETTER_QUEUE] = {"dead_letter_queue", TEXTOID, true, 0, 0},
	[MAX_DELIVERIES] = {"max_deliveries", INT4OID, false, 0, PG_INT32_MAX},
	[MAX_HELD_BYTES] = {"max_held_bytes", INT8OID, true, 1, PG_INT64_MAX},
};

typedef struct Settings
{
	Datum		values[NSETTINGS];
	bool		nulls[NSETTINGS];
} Settings;

static void
check_number(const Settings *wanted, Setting setting)
{
	int64		number = settings[setting].type == INT4OID ?
	DatumGetInt32(wanted->values[setting]) :
	DatumGetInt64(wanted->values[setting]);

	if (number < settings[setting].least)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be at least " INT64_FORMAT,
						settings[setting].name, settings[setting].least)));
	if (number > settings[setting].most)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be at most " INT64_FORMAT,
						settings[setting].name, settings[setting].most)));
}

static void
check_settings(const Settings *wanted)
{
	for (Setting i = 0; i < NSETTINGS; i++)
	{
		if (!settings[i].nullable)
			msgq_check_not_null(wanted->nulls[i], settings[i].name);
		if (!wanted->nulls[i] &&
			(settings[i].type == INT4OID || settings[i].type == INT8OID))
			check_number(wanted, i);
	}
	if (wanted->nulls[RETENTION])
		return;
	msgq_check_interval(DatumGetIntervalP(wanted->values[RETENTION]), "retention");
	if (msgq_interval_span(DatumGetIntervalP(wanted->values[RETENTION])) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be greater than zero", "retention")));
}

/* An empty name means none, as it does for a queue; others must exist. */
static void
check_dead_letter_queue(Settings *wanted)
{
	char	   *name;

	if (wanted->nulls[DEAD_LETTER_QUEUE])
		return;
	name = TextDatumGetCString(wanted->values[DEAD_LETTER_QUEUE]);
	if (name[0] == '\0')
		wanted->nulls[DEAD_LETTER_QUEUE] = true;
	else
		(void) msgq_queue_get(name, MSGQ_RIGHT_SEND);
}

/* The settings that a stream has. */
static Settings
settings_of(const MsgqStream *stream)
{
	Settings	present = {0};

	present.values[PARTITIONS] =
		Int32GetDatum(msgq_stream_active(stream)->partitions);
	present.values[RETENTION] = IntervalPGetDatum(&stream->retention);
	present.nulls[RETENTION] = !stream->has_retention;
	present.values[RETENTION_BYTES] = Int64GetDatum(stream->retention_bytes);
	present.nulls[RETENTION_BYTES] = stream->retention_bytes == 0;
	present.values[RETENTION_ENTRIES] = Int64GetDatum(stream->retention_entries);
	present.nulls[RETENTION_ENTRIES] = stream->retention_entries == 0;
	present.values[HOLD_FOR_GROUPS] = BoolGetDatum(stream->hold_for_groups);
	present.values[DEAD_LETTER_QUEUE] =
		CStringGetTextDatum(NameStr(stream->dead_letter_queue));
	present.nulls[DEAD_LETTER_QUEUE] =
		NameStr(stream->dead_letter_queue)[0] == '\0';
	present.values[MAX_DELIVERIES] = Int32GetDatum(stream->max_deliveries);
	present.values[MAX_HELD_BYTES] = Int64GetDatum(stream->max_held_bytes);
	present.nulls[MAX_HELD_BYTES] = stream->max_held_bytes == 0;
	return present;
}

static char *
setting_text(const Settings *some, Setting setting)
{
	Oid			output;
	bool		is_varlena;

	if (some->nulls[setting])
		return "NULL";
	getTypeOutputInfo(settings[setting].type, &output, &is_varlena);
	return OidOutputFunctionCall(output, some->values[setting]);
}

/* Warns of settings that an existing stream has differently. */
static void
compare_settings(const char *name, const Settings *wanted,
				 const Settings *present)
{
	for (Setting i = 0; i < NSETTINGS; i++)
	{
		char	   *is = setting_text(present, i);
		char	   *should_be = setting_text(wanted, i);

		if (strcmp(is, should_be) != 0)
			ereport(WARNING,
					(errmsg("stream \"%s\" exists with another %s: %s, not %s",
							name, settings[i].name, is, should_be)));
	}
}

static Setting
setting_named(const char *name)
{
	Setting		i = 0;

	while (i < NSETTINGS && strcmp(settings[i].name, name) != 0)
		i++;
	if (i == NSETTINGS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a stream has no setting \"%s\"", name),
				 errhint("The settings are partitions, retention, retention_bytes, retention_entries, hold_for_groups, dead_letter_queue, max_deliveries and max_held_bytes.")));
	return i;
}

/* Changes one setting to a value of an object. */
static void
change_setting(void *target, const char *key, const JsonbValue *value)
{
	Settings   *wanted = target;
	Setting		setting = setting_named(key);
	char	   *text = msgq_setting_text(key, value);
	Oid			input;
	Oid			parameter;

	wanted->nulls[setting] = text == NULL;

	if (text == NULL)
		return;
	getTypeInputInfo(settings[setting].type, &input, &parameter);
	wanted->values[setting] = OidInputFunctionCall(input, text, parameter, -1);
}

/* ---------------------------------------------------------------------------
 * Making the storage; all within SPI, as the owner
 * ---------------------------------------------------------------------------
 */

/* Says on a relation what it is. */
static void
comment_on(const char *kind, const char *relation, const char *what)
{
	msgq_spi_run("COMMENT ON %s msgq.%s IS %s", kind, relation,
				 quote_literal_cstr(what));
}

/* Makes the tables of segment number n, not the row of metadata. */
void
msgq_stream_segment_create(int32 stream_id, int n, const char *name)
{
	msgq_spi_run("CREATE TABLE msgq.s%1$d_%2$d ("
				 "id bigint NOT NULL CONSTRAINT s%1$d_%2$d_pkey PRIMARY KEY, "
				 "partition int NOT NULL, "
				 "appended_at timestamptz NOT NULL, "
				 "key text COLLATE \"C\", "
				 "idempotency_key text COLLATE \"C\", "
				 "headers jsonb, "
				 "body jsonb, "
				 "data bytea) USING heap", stream_id, n);
	msgq_spi_run("CREATE INDEX s%1$d_%2$d_key ON msgq.s%1$d_%2$d (key, id) "
				 "WHERE key IS NOT NULL", stream_id, n);
	msgq_spi_run("CREATE INDEX s%1$d_%2$d_once ON msgq.s%1$d_%2$d (idempotency_key) "
				 "WHERE idempotency_key IS NOT NULL", stream_id, n);
	msgq_spi_run("CREATE TABLE msgq.s%1$d_p%2$d ("
				 "partition int NOT NULL, "
				 "first_position bigint NOT NULL, "
				 "count int NOT NULL, "
				 "high bigint NOT NULL, "
				 "sequenced_at timestamptz NOT NULL, "
				 "ids bytea NOT NULL, "
				 "closed bytea NOT NULL, "
				 "CONSTRAINT s%1$d_p%2$d_pkey PRIMARY KEY (partition, first_position)) USING heap",
				 stream_id, n);
	msgq_spi_run("ALTER TABLE msgq.s%d_p%d ALTER ids SET STORAGE EXTERNAL, "
				 "ALTER closed SET STORAGE EXTERNAL", stream_id, n);
	comment_on("TABLE", psprintf("s%d_%d", stream_id, n),
			   psprintf("entries of stream \"%s\", segment %d", name, n));
	comment_on("TABLE", psprintf("s%d_p%d", stream_id, n),
			   psprintf("places of entries of stream \"%s\", segment %d", name, n));
}

static void
create_group_log(int32 stream_id, int n, const char *name)
{
	msgq_spi_run("CREATE TABLE msgq.s%1$d_g%2$d ("
				 "group_id int NOT NULL, "
				 "partition int NOT NULL, "
				 "n bigint NOT NULL, "
				 "position bigint NOT NULL, "
				 "lease bigint NOT NULL, "
				 "leased_upto bigint NOT NULL, "
				 "leased_until timestamptz NOT NULL, "
				 "deliveries int NOT NULL, "
				 "at timestamptz NOT NULL, "
				 "CONSTRAINT s%1$d_g%2$d_pkey PRIMARY KEY (group_id, partition, n)) USING heap",
				 stream_id, n);
	comment_on("TABLE", psprintf("s%d_g%d", stream_id, n),
			   psprintf("places of consumer groups of stream \"%s\", %d", name, n));
}

/* Makes the view over all tables of entries, or makes it anew. */
void
msgq_stream_handle_create(int32 stream_id)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "CREATE OR REPLACE VIEW msgq.s%d AS", stream_id);
	msgq_spi_run("SELECT n FROM msgq.stream_segment WHERE stream_id = %d ORDER BY n",
				 stream_id);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		is_null;

		appendStringInfo(&sql, "%s SELECT id, partition, appended_at, key, headers, "
						 "body, data FROM msgq.s%d_%d", i == 0 ? "" : " UNION ALL",
						 stream_id,
						 DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i],
													 SPI_tuptable->tupdesc, 1,
													 &is_null)));
	}
	msgq_spi_run("%s", sql.data);
}

/* Writes the settings, all but partitions; the row is there. */
static void
write_settings(int32 stream_id, const Settings *wanted)
{
	Oid			types[NSETTINGS] = {INT4OID};
	Datum		values[NSETTINGS] = {Int32GetDatum(stream_id)};
	bool		nulls[NSETTINGS] = {false};

	for (Setting i = PARTITIONS + 1; i < NSETTINGS; i++)
	{
		types[i] = settings[i].type;
		values[i] = wanted->values[i];
		nulls[i] = wanted->nulls[i];
	}
	msgq_spi_run_with("UPDATE msgq.stream SET retention = $2, retention_bytes = $3, "
					  "retention_entries = $4, hold_for_groups = $5, "
					  "dead_letter_queue = $6, max_deliveries = $7, "
					  "max_held_bytes = $8 WHERE id = $1",
					  SPI_OK_UPDATE, NSETTINGS, types, values, nulls, false);
}

/* The rows of metadata of a new stream. */
static void
insert_metadata(int32 stream_id, const char *name, const Settings *wanted)
{
	int			partitions = DatumGetInt32(wanted->values[PARTITIONS]);
	Oid			types[] = {INT4OID, TEXTOID, TIMESTAMPTZOID, INT4OID};
	Datum		values[] = {
		Int32GetDatum(stream_id), CStringGetTextDatum(name),
		TimestampTzGetDatum(GetCurrentTimestamp()), Int32GetDatum(partitions)
	};

	msgq_spi_run_with("INSERT INTO msgq.stream (id, name, created_at, hold_for_groups, "
					  "max_deliveries, group_log, first_positions) "
					  "VALUES ($1, $2, $3, false, 0, 1, '{}')",
					  SPI_OK_INSERT, 3, types, values, NULL, false);
	write_settings(stream_id, wanted);
	msgq_spi_run_with(psprintf("INSERT INTO msgq.stream_segment (stream_id, n, state, turn, "
							   "partitions, first_id, start_positions, opened_at) "
							   "SELECT $1, n, CASE n WHEN 1 THEN 'active' ELSE 'empty' END, "
							   "CASE n WHEN 1 THEN 1 ELSE 0 END, $4, 1, '{}', $3 "
							   "FROM generate_series(1, %d) AS n", INITIAL_SEGMENTS),
					  SPI_OK_INSERT, lengthof(types), types, values, NULL, false);
}

/* The caller holds the lock on metadata, and the name is free. */
static void
create(const char *name, const Settings *wanted)
{
	Oid			creator = GetUserId();
	int32		id = (int32) nextval_internal(msgq_relation_oid("queue_id"), false);
	MsgqStream	none = {.id = id};
	MsgqStreamSegment first = {.n = 1};
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_use_default_tablespace();
	insert_metadata(id, name, wanted);
	msgq_spi_run("CREATE SEQUENCE msgq.s%d_id AS bigint CACHE 1", id);
	for (int n = 1; n <= INITIAL_SEGMENTS; n++)
		msgq_stream_segment_create(id, n, name);
	for (int n = 1; n <= MSGQ_GROUP_LOGS; n++)
		create_group_log(id, n, name);
	msgq_stream_handle_create(id);
	comment_on("VIEW", psprintf("s%d", id),
			   psprintf("stream \"%s\": its entries, and the rights on it", name));
	msgq_spi_run("GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON msgq.s%d TO %s WITH GRANT OPTION",
				 id, quote_identifier(GetUserNameFromId(creator, false)));
	msgq_spi_end(&spi);

	CommandCounterIncrement();
	none.sequence = msgq_relation_oid(psprintf("s%d_id", id));
	first.places = msgq_relation_oid(psprintf("s%d_p1", id));
	msgq_sequence_first_step(&none, &first);
}

/* ---------------------------------------------------------------------------
 * create_stream
 * ---------------------------------------------------------------------------
 */

/* create_stream(stream, settings..., if_not_exists) */
PG_FUNCTION_INFO_V1(msgq_create_stream);
Datum
msgq_create_stream(PG_FUNCTION_ARGS)
{
	char	   *name = msgq_arg_text(fcinfo, 0, "stream");
	bool		if_not_exists = msgq_arg_bool(fcinfo, 7, "if_not_exists");
	Settings	wanted = {0};
	const MsgqStream *stream;

	msgq_begin_change("msgq.create_stream()");
	msgq_check_new_name(name, "stream");
	for (Setting i = PARTITIONS; i <= DEAD_LETTER_QUEUE; i++)
	{
		wanted.nulls[i] = PG_ARGISNULL(i + 1);
		wanted.values[i] = PG_ARGISNULL(i + 1) ? (Datum) 0 : PG_GETARG_DATUM(i + 1);
	}
	wanted.values[MAX_DELIVERIES] = Int32GetDatum(DEFAULT_MAX_DELIVERIES);
	wanted.values[MAX_HELD_BYTES] = Int64GetDatum(DEFAULT_MAX_HELD_BYTES);
	check_settings(&wanted);
	if (msgq_schema_aclcheck(msgq_schema_oid(), GetUserId(), ACL_CREATE) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to create a stream"),
				 errhint("Creating streams needs the privilege CREATE on schema msgq.")));

	msgq_lock_metadata();
	msgq_refuse_taken_name(name, if_not_exists ? "stream" : NULL);
	stream = msgq_stream_find(name);
	if (stream)
	{
		Settings	present = settings_of(stream);

		/* What has no argument was not asked for. */
		for (Setting i = MAX_DELIVERIES; i < NSETTINGS; i++)
		{
			wanted.values[i] = present.values[i];
			wanted.nulls[i] = present.nulls[i];
		}
		compare_settings(name, &wanted, &present);
		PG_RETURN_VOID();
	}
	check_dead_letter_queue(&wanted);
	create(name, &wanted);
	msgq_queue_changed();
	CommandCounterIncrement();
	PG_RETURN_VOID();
}

/* ---------------------------------------------------------------------------
 * alter_stream
 * ---------------------------------------------------------------------------
 */

/* Waits for all who append, and keeps others from it. */
static void
lock_against_appenders(const MsgqStream *stream)
{
	for (int i = 0; i < stream->nsegments; i++)
	{
		if (stream->segments[i].complete_at == 0)
			LockRelationOid(stream->segments[i].entries, ShareRowExclusiveLock);
	}
}

/* Gives positions to all that was appended: nobody is appending. */
static void
sequence_all(const MsgqStream *stream)
{
	MsgqSequenceStep step;

	do
	{
		CHECK_FOR_INTERRUPTS();
		if (!msgq_sequence_step(stream->id, true, &step))
			elog(ERROR, "could not give positions in stream number %d",
				 stream->id);
	} while (!step.caught_up || step.has_open);
}

static void
change_partitions(const char *name, int partitions)
{
	const MsgqStream *stream = msgq_stream_get(name, MSGQ_RIGHT_ADMIN);

	lock_against_appenders(stream);
	/* No turn came in between: we hold the lock on metadata. */
	sequence_all(stream);
	msgq_stream_turn(stream, partitions);
}

/* alter_stream(stream, settings) */
PG_FUNCTION_INFO_V1(msgq_alter_stream);
Datum
msgq_alter_stream(PG_FUNCTION_ARGS)
{
	char	   *name = msgq_arg_name(fcinfo, 0, "stream");
	Jsonb	   *changes = DatumGetJsonbP(msgq_arg(fcinfo, 1, "settings"));
	const MsgqStream *stream;
	Settings	wanted;
	int			partitions;
	MsgqSpi		spi;

	msgq_begin_change("msgq.alter_stream()");
	msgq_lock_metadata();
	stream = msgq_stream_get(name, MSGQ_RIGHT_ADMIN);
	wanted = settings_of(stream);
	msgq_settings_each(changes, change_setting, &wanted);
	check_settings(&wanted);
	if (strcmp(setting_text(&wanted, DEAD_LETTER_QUEUE),
			   NameStr(stream->dead_letter_queue)) != 0)
		check_dead_letter_queue(&wanted);
	partitions = DatumGetInt32(wanted.values[PARTITIONS]);
	if (partitions != msgq_stream_active(stream)->partitions)
		change_partitions(name, partitions);

	msgq_spi_begin(&spi, msgq_storage_owner());
	write_settings(stream->id, &wanted);
	msgq_spi_end(&spi);
	msgq_queue_changed();
	CommandCounterIncrement();
	PG_RETURN_VOID();
}

/* ---------------------------------------------------------------------------
 * drop_stream
 * ---------------------------------------------------------------------------
 */

static void
drop_if_there(const char *kind, const char *relation)
{
	if (OidIsValid(msgq_relation_oid(relation)))
		msgq_spi_run("DROP %s msgq.%s", kind, relation);
}

/* All tables that its numbered segments can have, as far as they are there. */
static void
drop_segments(int32 stream_id)
{
	int			n;
	int		   *numbers;

	msgq_spi_run("SELECT n FROM msgq.stream_segment WHERE stream_id = %d", stream_id);
	n = SPI_processed;
	numbers = palloc(sizeof(int) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		bool		is_null;

		numbers[i] = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i],
												 SPI_tuptable->tupdesc, 1,
												 &is_null));
	}
	for (int i = 0; i < n; i++)
	{
		drop_if_there("TABLE", psprintf("s%d_%d", stream_id, numbers[i]));
		drop_if_there("TABLE", psprintf("s%d_p%d", stream_id, numbers[i]));
	}
}

/* Waits for those who use it: appenders lock the active table first. */
static void
drop_storage(const MsgqStream *stream)
{
	int32		id = stream->id;
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	for (int i = stream->nsegments - 1; i >= 0; i--)
	{
		if (OidIsValid(stream->segments[i].entries))
			LockRelationOid(stream->segments[i].entries, AccessExclusiveLock);
	}
	drop_if_there("VIEW", psprintf("s%d", id));
	drop_segments(id);
	for (int n = 1; n <= MSGQ_GROUP_LOGS; n++)
		drop_if_there("TABLE", psprintf("s%d_g%d", id, n));
	drop_if_there("SEQUENCE", psprintf("s%d_id", id));
	msgq_bindings_drop(id);
	msgq_spi_run("DELETE FROM msgq.stream_group WHERE stream_id = %d", id);
	msgq_spi_run("DELETE FROM msgq.stream_segment WHERE stream_id = %d", id);
	msgq_spi_run("DELETE FROM msgq.stream WHERE id = %d", id);
	msgq_spi_end(&spi);
}

/* drop_stream(stream, if_exists) */
PG_FUNCTION_INFO_V1(msgq_drop_stream);
Datum
msgq_drop_stream(PG_FUNCTION_ARGS)
{
	char	   *name = msgq_arg_name(fcinfo, 0, "stream");
	bool		if_exists = msgq_arg_bool(fcinfo, 1, "if_exists");
	const MsgqStream *stream;

	msgq_begin_change("msgq.drop_stream()");
	msgq_lock_metadata();
	stream = msgq_stream_find(name);
	if (stream == NULL && if_exists)
	{
		ereport(NOTICE,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("stream \"%s\" does not exist, skipping", name)));
		PG_RETURN_BOOL(false);
	}
	/* Without the handle nobody has rights, but the owner can clean up. */
	if (stream == NULL ||
		!has_privs_of_role(GetUserId(), msgq_storage_owner()))
		stream = msgq_stream_get(name, MSGQ_RIGHT_ADMIN);
	msgq_refuse_dependents("stream", name, stream->id);
	/* Those who wait for an entry there wait in vain. */
	if (OidIsValid(stream->sequence))
		msgq_wake_at_commit(msgq_slot_get(stream->sequence, stream->created_at),
							MSGQ_MAX_BATCH);
	drop_storage(stream);
	msgq_queue_changed();
	CommandCounterIncrement();
	PG_RETURN_BOOL(true);
}
