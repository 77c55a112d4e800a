/*
 * topicadmin.c
 *		Makes, changes and drops topics, and their bindings.
 *
 * As with queues (admin.c): all of it is rare and goes through SQL as the
 * storage's owner, after the caller's right was checked, and whoever changes
 * metadata locks msgq.queue first.
 *
 * Who may bind.  Whoever publishes needs a right on the topic only, and no right
 * on what is bound to it: the right to send there is checked when the binding
 * is made, against whoever makes it, and he needs the right receive on the
 * topic, since he gets its messages.  It stays when he loses his rights.  So
 * does the alternate of a topic.
 *
 * Bindings and alternates are the edges of a graph, which has no cycles: one
 * that would close one is refused.  Changes of it are made one after the other,
 * under the lock on metadata.
 *
 * src/topicadmin.c
 */
#include "msgq.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/jsonpath.h"
#include "utils/timestamp.h"

#include "admin.h"
#include "argument.h"
#include "dependent.h"
#include "owner.h"
#include "retained.h"
#include "route.h"
#include "settings.h"
#include "target.h"
#include "topic.h"

/* How many messages a topic retains, unless msgq.alter_topic() says otherwise. */
#define DEFAULT_MAX_RETAINED	100000

/* Matches every routing key. */
#define EVERY_KEY				"#"

/* ---------------------------------------------------------------------------
 * Settings
 * ---------------------------------------------------------------------------
 */

typedef struct TopicSettings
{
	const char *on_unroutable;
	int32		alternate_id;	/* 0: none */
	bool		retain;
	int64		max_retained;
} TopicSettings;

static void
check_on_unroutable(const char *value)
{
	if (strcmp(value, "error") != 0 && strcmp(value, "drop") != 0 &&
		strcmp(value, "alternate") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be error, drop or alternate",
						"on_unroutable")));
}

static void
check_kind(const char *value)
{
	for (MsgqTopicKind kind = MSGQ_TOPIC_DIRECT; kind <= MSGQ_TOPIC_HEADERS; kind++)
	{
		if (strcmp(value, msgq_topic_kind_name(kind)) == 0)
			return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("argument \"%s\" must be direct, fanout, topic or headers",
					"kind")));
}

/* One needs the other. */
static void
check_alternate(const TopicSettings *settings)
{
	bool		wanted = strcmp(settings->on_unroutable, "alternate") == 0;

	if (wanted && settings->alternate_id == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must name a topic", "alternate"),
				 errdetail("Argument \"on_unroutable\" is \"alternate\".")));
	if (!wanted && settings->alternate_id != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be null", "alternate"),
				 errdetail("Argument \"on_unroutable\" is \"%s\".",
						   settings->on_unroutable),
				 errhint("Use on_unroutable => 'alternate'.")));
}

/*
 * Waits for all who are publishing to the topic, keeps others waiting, and only
 * then locks metadata: so nobody else waits meanwhile.  Raises 42704 if it has
 * been dropped before that.
 */
static void
lock_quiet_topic(const MsgqTopic *topic, LOCKMODE mode)
{
	const MsgqTopic *now;

	msgq_retained_lock_all(topic, mode);
	msgq_lock_metadata();
	now = msgq_topic_find(NameStr(topic->name));
	if (now == NULL || now->id != topic->id)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("topic \"%s\" does not exist", NameStr(topic->name)),
				 errdetail("It was dropped meanwhile.")));
}

/* The number of a topic to which the caller may publish. */
static int32
alternate_named(const char *name)
{
	return msgq_topic_get(name, MSGQ_RIGHT_SEND)->id;
}

/* Would what leads from one to the other lead back?  Raises 22023. */
static void
refuse_cycle(int32 from, int32 to)
{
	MsgqSpi		spi;
	bool		found;

	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run("WITH RECURSIVE reached (id) AS (SELECT %d UNION "
				 "SELECT edge.target FROM reached JOIN ("
				 "SELECT topic_id, target_id FROM msgq.binding UNION ALL "
				 "SELECT id, alternate FROM msgq.topic WHERE alternate IS NOT NULL"
				 ") AS edge (topic, target) ON edge.topic = reached.id) "
				 "SELECT FROM reached WHERE id = %d", to, from);
	found = SPI_processed > 0;
	msgq_spi_end(&spi);
	if (found)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("messages of the topic would come back to it"),
				 errhint("Bindings and alternates of topics must not lead in a circle.")));
}

/* Writes the settings; the row is there. */
static void
write_settings(int32 topic_id, const TopicSettings *settings)
{
	Oid			types[] = {INT4OID, TEXTOID, INT4OID, BOOLOID, INT8OID};
	Datum		values[] = {
		Int32GetDatum(topic_id), CStringGetTextDatum(settings->on_unroutable),
		Int32GetDatum(settings->alternate_id), BoolGetDatum(settings->retain),
		Int64GetDatum(settings->max_retained)
	};
	bool		nulls[] = {false, false, settings->alternate_id == 0, false, false};

	msgq_spi_run_with("UPDATE msgq.topic SET on_unroutable = $2, alternate = $3, "
					  "retain = $4, max_retained = $5 WHERE id = $1",
					  SPI_OK_UPDATE, lengthof(values), types, values, nulls, false);
}

/* ---------------------------------------------------------------------------
 * create_topic
 * ---------------------------------------------------------------------------
 */

static void
insert_metadata(int32 topic_id, const char *name, const char *kind,
				const TopicSettings *settings)
{
	Oid			types[] = {INT4OID, TEXTOID, TIMESTAMPTZOID, TEXTOID};
	Datum		values[] = {
		Int32GetDatum(topic_id), CStringGetTextDatum(name),
		TimestampTzGetDatum(GetCurrentTimestamp()), CStringGetTextDatum(kind)
	};

	msgq_spi_run_with("INSERT INTO msgq.topic (id, name, created_at, kind, on_unroutable, "
					  "retain, max_retained, log, log_bytes, version) "
					  "VALUES ($1, $2, $3, $4, 'error', true, 1, 1, 0, 0)",
					  SPI_OK_INSERT, lengthof(values), types, values, NULL, false);
	write_settings(topic_id, settings);
}

/* Says on its relations what they are; within SPI. */
static void
comment_on_storage(int32 topic_id, const char *name)
{
	msgq_spi_run("COMMENT ON VIEW msgq.t%d IS %s", topic_id,
				 quote_literal_cstr(psprintf("topic \"%s\": its bindings, and the rights on it",
											 name)));
	for (int n = 1; n <= MSGQ_RETAINED_LOGS; n++)
		msgq_spi_run("COMMENT ON TABLE msgq.t%d_%d IS %s", topic_id, n,
					 quote_literal_cstr(psprintf("the last messages of topic \"%s\", %d",
												 name, n)));
}

/* The caller holds the lock on metadata, and the name is free. */
static void
create(const char *name, const char *kind, const TopicSettings *settings)
{
	Oid			creator = GetUserId();
	int32		id = (int32) nextval_internal(msgq_relation_oid("queue_id"), false);
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_use_default_tablespace();
	insert_metadata(id, name, kind, settings);
	msgq_spi_run("CREATE SEQUENCE msgq.t%d_id AS bigint CACHE 1", id);
	for (int n = 1; n <= MSGQ_RETAINED_LOGS; n++)
		msgq_retained_create_log(id, n);

	/*
	 * It shows no others' bindings to functions, and cannot be written
	 * through.
	 */
	msgq_spi_run("CREATE VIEW msgq.t%d WITH (security_barrier) AS "
				 "SELECT id AS binding, target_id, pattern, "
				 "header_match, filter, retained, created_at "
				 "FROM msgq.binding WHERE topic_id = %d OFFSET 0", id, id);
	comment_on_storage(id, name);
	msgq_spi_run("GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON msgq.t%d TO %s WITH GRANT OPTION",
				 id, quote_identifier(GetUserNameFromId(creator, false)));
	msgq_spi_end(&spi);
	/* Nobody has cached it, nor anything that leads to it. */
	CommandCounterIncrement();
}

/* create_topic(topic, kind, on_unroutable, alternate) */
PG_FUNCTION_INFO_V1(msgq_create_topic);
Datum
msgq_create_topic(PG_FUNCTION_ARGS)
{
	char	   *name = msgq_arg_text(fcinfo, 0, "topic");
	char	   *kind = msgq_arg_text(fcinfo, 1, "kind");
	TopicSettings settings = {
		.on_unroutable = msgq_arg_text(fcinfo, 2, "on_unroutable"),
		.retain = true,
		.max_retained = DEFAULT_MAX_RETAINED
	};

	msgq_begin_change("msgq.create_topic()");
	msgq_check_new_name(name, "topic");
	check_kind(kind);
	check_on_unroutable(settings.on_unroutable);
	if (msgq_schema_aclcheck(msgq_schema_oid(), GetUserId(), ACL_CREATE) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to create a topic"),
				 errhint("Creating topics needs the privilege CREATE on schema msgq.")));
	msgq_lock_metadata();
	msgq_refuse_taken_name(name, NULL);
	if (!PG_ARGISNULL(3))
		settings.alternate_id = alternate_named(msgq_arg_name(fcinfo, 3, "alternate"));
	check_alternate(&settings);
	create(name, kind, &settings);
	PG_RETURN_VOID();
}

/* ---------------------------------------------------------------------------
 * alter_topic
 * ---------------------------------------------------------------------------
 */

static void
set_alternate(TopicSettings *settings, const char *text)
{
	if (text == NULL)
	{
		settings->alternate_id = 0;
		return;
	}
	msgq_check_name(text, "alternate");
	settings->alternate_id = alternate_named(text);
}

static void
set_max_retained(TopicSettings *settings, const char *text)
{
	settings->max_retained = DatumGetInt64(DirectFunctionCall1(int8in,
															   CStringGetDatum(text)));
	if (settings->max_retained < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be greater than zero", "max_retained")));
}

static void
change_setting(void *target, const char *key, const JsonbValue *value)
{
	TopicSettings *settings = target;
	char	   *text = msgq_setting_text(key, value);

	if (strcmp(key, "alternate") == 0)
	{
		set_alternate(settings, text);
		return;
	}
	msgq_check_not_null(text == NULL, key);
	if (strcmp(key, "on_unroutable") == 0)
	{
		check_on_unroutable(text);
		settings->on_unroutable = text;
	}
	else if (strcmp(key, "retain") == 0)
		settings->retain = DatumGetBool(DirectFunctionCall1(boolin, CStringGetDatum(text)));
	else if (strcmp(key, "max_retained") == 0)
		set_max_retained(settings, text);
	else
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there is no setting \"%s\"", key),
				 errhint("The settings are on_unroutable, alternate, retain and max_retained.")));
}

/* The topic's settings, with these changes, checked. */
static TopicSettings
changed_settings(const MsgqTopic *topic, Jsonb *changes)
{
	TopicSettings settings = {
		.alternate_id = topic->alternate_id,
		.retain = topic->retain
	};
	MemoryContext caller = CurrentMemoryContext;
	bool		is_null;
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run("SELECT max_retained, on_unroutable FROM msgq.topic WHERE id = %d",
				 topic->id);
	settings.max_retained = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
														SPI_tuptable->tupdesc, 1,
														&is_null));
	settings.on_unroutable = MemoryContextStrdup(caller,
												 SPI_getvalue(SPI_tuptable->vals[0],
															  SPI_tuptable->tupdesc, 2));
	msgq_spi_end(&spi);
	msgq_settings_each(changes, change_setting, &settings);
	check_alternate(&settings);
	return settings;
}

/* alter_topic(topic, settings) */
PG_FUNCTION_INFO_V1(msgq_alter_topic);
Datum
msgq_alter_topic(PG_FUNCTION_ARGS)
{
	char	   *name = msgq_arg_name(fcinfo, 0, "topic");
	Jsonb	   *changes = DatumGetJsonbP(msgq_arg(fcinfo, 1, "settings"));
	const MsgqTopic *topic;
	TopicSettings settings;
	bool		forget;
	MsgqSpi		spi;

	msgq_begin_change("msgq.alter_topic()");
	topic = msgq_topic_get(name, MSGQ_RIGHT_ADMIN);
	/* What to lock depends on the change; what it is made to, on the lock. */
	forget = topic->retain && !changed_settings(topic, changes).retain;
	if (forget)
		lock_quiet_topic(topic, AccessExclusiveLock);
	else
		msgq_lock_metadata();
	topic = msgq_topic_get(name, MSGQ_RIGHT_ADMIN);
	settings = changed_settings(topic, changes);
	if (settings.alternate_id != 0 && settings.alternate_id != topic->alternate_id)
		refuse_cycle(topic->id, settings.alternate_id);
	if (forget)
		msgq_retained_drop_all(topic);
	msgq_spi_begin(&spi, msgq_storage_owner());
	write_settings(topic->id, &settings);
	msgq_topic_changed(topic->id);
	msgq_spi_end(&spi);
	CommandCounterIncrement();
	PG_RETURN_VOID();
}

/* ---------------------------------------------------------------------------
 * drop_topic
 * ---------------------------------------------------------------------------
 */

static void
drop_storage(const MsgqTopic *topic)
{
	int32		id = topic->id;
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	if (OidIsValid(topic->handle))
		msgq_spi_run("DROP VIEW msgq.t%d", id);
	for (int i = 0; i < MSGQ_RETAINED_LOGS; i++)
	{
		if (OidIsValid(topic->logs[i]))
			msgq_spi_run("DROP TABLE msgq.t%d_%d", id, i + 1);
	}
	if (OidIsValid(topic->sequence))
		msgq_spi_run("DROP SEQUENCE msgq.t%d_id", id);
	msgq_bindings_drop(id);
	msgq_spi_run("DELETE FROM msgq.binding WHERE topic_id = %d", id);
	msgq_topic_changed(id);
	msgq_spi_run("DELETE FROM msgq.topic WHERE id = %d", id);
	msgq_spi_end(&spi);
	CommandCounterIncrement();
}

/* drop_topic(topic, if_exists) */
PG_FUNCTION_INFO_V1(msgq_drop_topic);
Datum
msgq_drop_topic(PG_FUNCTION_ARGS)
{
	char	   *name = msgq_arg_name(fcinfo, 0, "topic");
	bool		if_exists = msgq_arg_bool(fcinfo, 1, "if_exists");
	MsgqTopic  *topic;

	msgq_begin_change("msgq.drop_topic()");
	topic = msgq_topic_find(name);
	if (topic == NULL && if_exists)
	{
		ereport(NOTICE,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("topic \"%s\" does not exist, skipping", name)));
		PG_RETURN_BOOL(false);
	}
	/* Without the handle nobody has rights, but the owner can clean up. */
	if (topic == NULL ||
		!has_privs_of_role(GetUserId(), msgq_storage_owner()))
		topic = msgq_topic_get(name, MSGQ_RIGHT_ADMIN);
	lock_quiet_topic(topic, AccessExclusiveLock);
	msgq_refuse_dependents("topic", name, topic->id);
	drop_storage(topic);
	PG_RETURN_BOOL(true);
}

/* ---------------------------------------------------------------------------
 * bind and unbind
 * ---------------------------------------------------------------------------
 */

/* One call: arguments topic, target, pattern, header_match, filter. */
typedef struct BindCall
{
	char	   *topic_name;
	char	   *target_name;
	const MsgqTopic *topic;
	MsgqTarget	target;
	Datum		values[7];		/* $1 to $5 identify the binding, which has */
	bool		nulls[7];		/* the number $6; $7 is retained */
} BindCall;

static const Oid bind_types[] = {
	INT4OID, INT4OID, TEXTOID, JSONBOID, JSONPATHOID, INT4OID, BOOLOID
};

/* Finds the binding. */
#define SAME_BINDING \
	"topic_id = $1 AND target_id = $2 AND pattern = $3 " \
	"AND header_match IS NOT DISTINCT FROM $4 " \
	"AND filter::text IS NOT DISTINCT FROM $5::text "

static BindCall
bind_arguments(FunctionCallInfo fcinfo)
{
	BindCall	call = {0};
	char	   *pattern = msgq_arg_text(fcinfo, 2, "pattern");

	call.topic_name = msgq_arg_name(fcinfo, 0, "topic");
	call.target_name = msgq_arg_name(fcinfo, 1, "target");
	msgq_check_routing_key(pattern, "pattern");
	for (int i = 2; i <= 4; i++)
	{
		call.nulls[i] = PG_ARGISNULL(i);
		call.values[i] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
	}
	return call;
}

static void
fill_ids(BindCall *call)
{
	call->values[0] = Int32GetDatum(call->topic->id);
	call->values[1] = Int32GetDatum(call->target.id);
}

/* The number of the binding; 0 if there is none like it. */
static int32
find_binding(const BindCall *call)
{
	int32		id = 0;
	bool		is_null;
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run_with("SELECT id FROM msgq.binding WHERE " SAME_BINDING,
					  SPI_OK_SELECT, 5, bind_types, call->values, call->nulls, false);
	if (SPI_processed > 0)
		id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0],
										 SPI_tuptable->tupdesc, 1, &is_null));
	msgq_spi_end(&spi);
	return id;
}

static void
refuse_binding(const MsgqTopic *topic, const char *problem)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("binding does not fit topic \"%s\"", NameStr(topic->name)),
			 errdetail("It is of kind \"%s\": %s",
					   msgq_topic_kind_name(topic->kind), problem)));
}

/* Does the pattern, or the header match, make sense in a topic of this kind? */
static void
check_for_kind(const BindCall *call)
{
	bool		every_key = strcmp(TextDatumGetCString(call->values[2]), EVERY_KEY) == 0;

	switch (call->topic->kind)
	{
		case MSGQ_TOPIC_DIRECT:
			if (every_key)
				refuse_binding(call->topic, "the pattern must be a routing key.");
			break;
		case MSGQ_TOPIC_FANOUT:
			if (!every_key)
				refuse_binding(call->topic, "the pattern must be left out.");
			break;
		case MSGQ_TOPIC_HEADERS:
			if (!every_key)
				refuse_binding(call->topic, "the pattern must be left out.");
			if (call->nulls[3])
				refuse_binding(call->topic, "it needs a header_match.");
			break;
		case MSGQ_TOPIC_TOPIC:
			break;
	}
}

static void
check_conditions(const BindCall *call)
{
	if (!call->nulls[3])
		(void) msgq_header_match_compile(DatumGetJsonbP(call->values[3]));
	if (!call->nulls[4])
		msgq_filter_check(DatumGetJsonPathP(call->values[4]));
}

static void
check_retained(const BindCall *call)
{
	if (call->target.kind == MSGQ_TARGET_TOPIC)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("retained messages cannot go to topic \"%s\"",
						call->target_name),
				 errhint("Bind a queue or a stream.")));
	if (!call->topic->retain)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("topic \"%s\" does not retain messages", call->topic_name),
				 errhint("Let it do so with msgq.alter_topic(), before they are published.")));
}

/* Makes the binding, and returns its number. */
static int32
insert_binding(BindCall *call, bool retained)
{
	int32		id = (int32) nextval_internal(msgq_relation_oid("binding_id"), false);
	MsgqSpi		spi;

	call->values[5] = Int32GetDatum(id);
	call->values[6] = BoolGetDatum(retained);
	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run_with("INSERT INTO msgq.binding (id, topic_id, target_id, pattern, "
					  "header_match, filter, retained, created_at) "
					  "VALUES ($6, $1, $2, $3, $4, $5, $7, clock_timestamp())",
					  SPI_OK_INSERT, 7, bind_types, call->values, call->nulls, false);
	msgq_topic_changed(call->topic->id);
	msgq_spi_end(&spi);
	CommandCounterIncrement();
	return id;
}

/* Sends what the topic retains to the target of a new binding. */
static void
deliver_retained(const BindCall *call)
{
	MsgqBinding binding = {
		.target = call->target,
		.pattern = TextDatumGetCString(call->values[2])
	};

	if (!call->nulls[3])
		binding.headers = msgq_header_match_compile(DatumGetJsonbP(call->values[3]));
	if (!call->nulls[4])
		binding.filter = DatumGetJsonPathP(call->values[4]);
	msgq_retained_deliver("msgq.bind()", call->topic, &binding);
}

/* Looks up the topic, and locks metadata. */
static void
lock_for_binding(BindCall *call, bool retained)
{
	if (retained)
		lock_quiet_topic(msgq_topic_get(call->topic_name, MSGQ_RIGHT_RECEIVE),
						 ShareRowExclusiveLock);
	else
		msgq_lock_metadata();
	call->topic = msgq_topic_get(call->topic_name, MSGQ_RIGHT_RECEIVE);
	msgq_target_get(call->target_name, MSGQ_RIGHT_SEND, &call->target);
}

/* bind(topic, target, pattern, header_match, filter, retained) */
PG_FUNCTION_INFO_V1(msgq_bind);
Datum
msgq_bind(PG_FUNCTION_ARGS)
{
	BindCall	call = bind_arguments(fcinfo);
	bool		retained = msgq_arg_bool(fcinfo, 5, "retained");
	int32		id;

	msgq_begin_change("msgq.bind()");
	check_conditions(&call);
	lock_for_binding(&call, retained);
	check_for_kind(&call);
	if (retained)
		check_retained(&call);
	if (call.target.kind == MSGQ_TARGET_TOPIC)
		refuse_cycle(call.topic->id, call.target.id);
	fill_ids(&call);
	id = find_binding(&call);
	if (id != 0)
		PG_RETURN_INT32(id);
	id = insert_binding(&call, retained);
	if (retained)
		deliver_retained(&call);
	PG_RETURN_INT32(id);
}

/* Whoever may bind may unbind, and so may those who manage the topic. */
static void
check_may_unbind(BindCall *call)
{
	bool		is_missing;

	call->topic = msgq_topic_get(call->topic_name, MSGQ_RIGHT_NONE);
	if (msgq_has_right(call->topic->handle, MSGQ_RIGHT_MANAGE, &is_missing))
	{
		msgq_target_get(call->target_name, MSGQ_RIGHT_NONE, &call->target);
		return;
	}
	call->topic = msgq_topic_get(call->topic_name, MSGQ_RIGHT_RECEIVE);
	msgq_target_get(call->target_name, MSGQ_RIGHT_SEND, &call->target);
}

/* unbind(topic, target, pattern, header_match, filter) */
PG_FUNCTION_INFO_V1(msgq_unbind);
Datum
msgq_unbind(PG_FUNCTION_ARGS)
{
	BindCall	call = bind_arguments(fcinfo);
	bool		found;
	MsgqSpi		spi;

	msgq_begin_change("msgq.unbind()");
	msgq_lock_metadata();
	check_may_unbind(&call);
	fill_ids(&call);
	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run_with("DELETE FROM msgq.binding WHERE " SAME_BINDING,
					  SPI_OK_DELETE, 5, bind_types, call.values, call.nulls, false);
	found = SPI_processed > 0;
	if (found)
		msgq_topic_changed(call.topic->id);
	msgq_spi_end(&spi);
	CommandCounterIncrement();
	PG_RETURN_BOOL(found);
}
