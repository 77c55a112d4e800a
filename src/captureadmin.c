/*
 * captureadmin.c
 *		Makes and drops captures of tables, and outbox tables.
 *
 * Who may.  Making a capture needs the privilege TRIGGER on the table, since it
 * makes triggers, as the caller; SELECT on the table, or on the columns that are
 * captured, since whoever reads the destination reads them; no row security that
 * would hide rows from the caller; and the right send on the destination.  All
 * of it now, and not when the table is changed.  Dropping one needs ownership of
 * the table, as DROP TRIGGER does.
 *
 * Locks.  Making triggers takes a lock on the table for which writers have to be
 * waited for.  It is taken first, and the lock on metadata after it, so that
 * nobody else waits meanwhile.
 *
 * A capture lives as long as its triggers.  When the table is dropped, or
 * somebody drops them by hand, the row of msgq.capture stays, and means nothing:
 * it is removed when another capture is made or dropped, or the destination.
 * The destination of a capture that lives cannot be dropped: the table could not
 * be changed any more.
 *
 * src/captureadmin.c
 */
#include "msgq.h"

#include "access/htup_details.h"
#include "catalog/catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/jsonpath.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

#include "admin.h"
#include "argument.h"
#include "capture.h"
#include "filter.h"
#include "owner.h"
#include "queue.h"
#include "target.h"

/* What can be captured, in the order in which the triggers are made. */
typedef enum CaptureEvent
{
	CAPTURE_INSERT,
	CAPTURE_UPDATE,
	CAPTURE_DELETE,
	CAPTURE_TRUNCATE,
	CAPTURE_NEVENTS
} CaptureEvent;

static const struct
{
	const char *name;
	const char *transition_tables;	/* NULL: no rows */
}			events[CAPTURE_NEVENTS] = {
	[CAPTURE_INSERT] = {"insert", "REFERENCING NEW TABLE AS new_rows"},
	[CAPTURE_UPDATE] = {"update", "REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows"},
	[CAPTURE_DELETE] = {"delete", "REFERENCING OLD TABLE AS old_rows"},
	[CAPTURE_TRUNCATE] = {"truncate", NULL},
};

/* One call. */
typedef struct CaptureCall
{
	Oid			relation;
	char	   *relation_name;	/* as it stands in SQL */
	bool		by_row;			/* statements can name another table */
	MsgqTarget	target;
	const char *kind;			/* changes or outbox */
	bool		has_event[CAPTURE_NEVENTS];
	List	   *columns;		/* names; NIL: all */
	char	   *key;			/* or NULL */
	JsonPath   *filter;			/* or NULL */
	int32		id;
} CaptureCall;

/* ---------------------------------------------------------------------------
 * Arguments
 * ---------------------------------------------------------------------------
 */

/* The elements of a text array, not NULL, at least one, each once. */
static List *
names_argument(FunctionCallInfo fcinfo, int n, const char *argument)
{
	ArrayType  *array = DatumGetArrayTypeP(msgq_arg(fcinfo, n, argument));
	List	   *names = NIL;
	Datum	   *elements;
	int			nelements;

	elements = msgq_array_elements(array, argument, NULL, &nelements);
	for (int i = 0; i < nelements; i++)
	{
		char	   *name = TextDatumGetCString(elements[i]);
		ListCell   *cell;

		foreach(cell, names)
		{
			if (strcmp(lfirst(cell), name) == 0)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("argument \"%s\" has an element twice", argument)));
		}
		names = lappend(names, name);
	}
	if (names == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be empty", argument)));
	return names;
}

static CaptureEvent
event_named(const char *name)
{
	for (CaptureEvent event = 0; event < CAPTURE_NEVENTS; event++)
	{
		if (strcmp(events[event].name, name) == 0)
			return event;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("argument \"%s\" must have the elements insert, update, delete and truncate only",
					"events")));
	return CAPTURE_NEVENTS;
}

static void
events_argument(CaptureCall *call, FunctionCallInfo fcinfo, int n)
{
	ListCell   *cell;

	foreach(cell, names_argument(fcinfo, n, "events"))
		call->has_event[event_named(lfirst(cell))] = true;
}

/* ---------------------------------------------------------------------------
 * The table
 * ---------------------------------------------------------------------------
 */

static void
refuse_relation(const char *name, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("changes of \"%s\" cannot be captured", name),
			 errdetail_internal("%s", detail)));
}

/* The name of the table; raises 42P01 if there is none. */
static char *
check_exists(Oid relation)
{
	char	   *name = get_rel_name(relation);

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("there is no table with OID %u", relation)));
	return name;
}

/* Raises 42501 unless the caller may make triggers. */
static void
check_may_make_triggers(Oid relation)
{
	char	   *name = check_exists(relation);
	AclResult	result = pg_class_aclcheck(relation, GetUserId(), ACL_TRIGGER);

	if (result != ACLCHECK_OK)
		aclcheck_error(result, OBJECT_TABLE, name);
}

/* Raises 42501 unless the caller may drop triggers. */
static void
check_may_drop_triggers(Oid relation)
{
	char	   *name = check_exists(relation);

	if (!msgq_owns_table(relation, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, name);
}

/* Locks it, and finds out what it is; it stays as it is until the end. */
static void
lock_relation(CaptureCall *call, LOCKMODE lock)
{
	Oid			oid = call->relation;
	char	   *name = check_exists(oid);
	HeapTuple	row;
	Form_pg_class class;

	LockRelationOid(oid, lock);
	row = SearchSysCache1(RELOID, ObjectIdGetDatum(oid));
	if (!HeapTupleIsValid(row))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"%s\" has been dropped", name)));
	class = (Form_pg_class) GETSTRUCT(row);
	if (class->relkind != RELKIND_RELATION &&
		class->relkind != RELKIND_PARTITIONED_TABLE)
		refuse_relation(name, "It is not a table.");
	if (IsCatalogRelationOid(oid))
		refuse_relation(name, "It is a system catalog.");
	if (class->relnamespace == msgq_schema_oid())
		refuse_relation(name, "It belongs to msgq.");
	/* A dump would name it in msgq.capture, and could not be restored. */
	if (class->relpersistence == RELPERSISTENCE_TEMP)
		refuse_relation(name, "It is temporary.");
	call->relation_name =
		quote_qualified_identifier(get_namespace_name(class->relnamespace),
								   NameStr(class->relname));
	call->by_row = class->relkind == RELKIND_PARTITIONED_TABLE ||
		class->relispartition || has_superclass(oid);
	ReleaseSysCache(row);
	if (call->by_row && call->has_event[CAPTURE_TRUNCATE])
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("\"%s\" cannot be captured with the event truncate", name),
				 errdetail("It is partitioned, or part of another table, with which it can be truncated.")));
}

/* The number of a column that can be captured; raises 42703, 0A000. */
static AttrNumber
check_column(const CaptureCall *call, const char *name)
{
	AttrNumber	number = get_attnum(call->relation, name);
	HeapTuple	row;
	bool		is_virtual;

	if (number <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table %s does not exist", name,
						call->relation_name)));
	row = SearchSysCache2(ATTNUM, ObjectIdGetDatum(call->relation),
						  Int16GetDatum(number));
	is_virtual = ((Form_pg_attribute) GETSTRUCT(row))->attgenerated ==
		ATTRIBUTE_GENERATED_VIRTUAL;
	ReleaseSysCache(row);
	if (is_virtual)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("column \"%s\" of table %s cannot be captured", name,
						call->relation_name),
				 errdetail("It is generated when it is read: triggers do not see it.")));
	return number;
}

static bool
may_read_column(const CaptureCall *call, const char *name)
{
	return pg_attribute_aclcheck(call->relation, check_column(call, name),
								 GetUserId(), ACL_SELECT) == ACLCHECK_OK;
}

/* Raises 42501 unless the caller may read what is captured. */
static void
check_may_read(const CaptureCall *call)
{
	bool		may = pg_class_aclcheck(call->relation, GetUserId(),
										ACL_SELECT) == ACLCHECK_OK;
	ListCell   *cell;

	if (!may && call->columns != NIL)
	{
		may = call->key == NULL || may_read_column(call, call->key);
		foreach(cell, call->columns)
			may = may && may_read_column(call, lfirst(cell));
	}
	if (!may)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, get_rel_name(call->relation));
	if (check_enable_rls(call->relation, InvalidOid, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for table %s", call->relation_name),
				 errdetail("Row security may hide some of its rows from you, and all would be captured."),
				 errhint("The owner of the table can capture it.")));
}

static void
check_columns(const CaptureCall *call)
{
	ListCell   *cell;

	foreach(cell, call->columns)
		(void) check_column(call, lfirst(cell));
	if (call->key)
		(void) check_column(call, call->key);
}

/* ---------------------------------------------------------------------------
 * Captures that there are
 * ---------------------------------------------------------------------------
 */

/* Removes the rows of those that have no triggers; within SPI, as the owner. */
static void
forget_dead(void)
{
	msgq_spi_run("DELETE FROM msgq.capture c WHERE NOT " MSGQ_CAPTURE_LIVES);
}

/* The number of the table's capture to the target; 0 if there is none. */
static int32
find_capture(const CaptureCall *call)
{
	int32		id = 0;
	bool		is_null;
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	forget_dead();
	msgq_spi_run("SELECT id FROM msgq.capture WHERE relation = %u AND destination_id = %d",
				 call->relation, call->target.id);
	if (SPI_processed > 0)
		id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0],
										 SPI_tuptable->tupdesc, 1, &is_null));
	msgq_spi_end(&spi);
	return id;
}

/* ---------------------------------------------------------------------------
 * Making
 * ---------------------------------------------------------------------------
 */

/* The names of its events, as an array of text. */
static Datum
event_names(const CaptureCall *call)
{
	Datum		names[CAPTURE_NEVENTS];
	int			n = 0;

	for (CaptureEvent event = 0; event < CAPTURE_NEVENTS; event++)
	{
		if (call->has_event[event])
			names[n++] = CStringGetTextDatum(events[event].name);
	}
	return PointerGetDatum(construct_array(names, n, TEXTOID, -1, false, TYPALIGN_INT));
}

static void
insert_row(const CaptureCall *call)
{
	Oid			types[] = {
		INT4OID, REGCLASSOID, INT4OID, TEXTOID, TEXTARRAYOID, BOOLOID, BOOLOID,
		JSONPATHOID
	};
	Datum		values[] = {
		Int32GetDatum(call->id), ObjectIdGetDatum(call->relation),
		Int32GetDatum(call->target.id), CStringGetTextDatum(call->kind),
		event_names(call), BoolGetDatum(call->columns != NIL),
		BoolGetDatum(call->key != NULL), PointerGetDatum(call->filter)
	};
	bool		nulls[] = {
		false, false, false, false, false, false, false, call->filter == NULL
	};
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run_with("INSERT INTO msgq.capture (id, relation, destination_id, kind, events, "
					  "has_columns, has_key, filter, created_at) "
					  "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, clock_timestamp())",
					  SPI_OK_INSERT, lengthof(types), types, values, nulls, false);
	msgq_spi_end(&spi);
}

/* One of its triggers: what stands before and behind the table's name. */
static void
create_trigger(const CaptureCall *call, const char *suffix, const char *event,
			   const char *rest)
{
	msgq_spi_run("CREATE TRIGGER " MSGQ_CAPTURE_TRIGGER "_%s AFTER %s ON %s %s "
				 "EXECUTE FUNCTION msgq.capture_changes('%d')",
				 call->id, suffix, event, call->relation_name, rest, call->id);
}

static void
create_event_triggers(const CaptureCall *call)
{
	bool		is_guarded = call->by_row;

	for (CaptureEvent event = 0; event < CAPTURE_NEVENTS; event++)
	{
		const char *name = events[event].name;
		const char *tables = events[event].transition_tables;

		if (!call->has_event[event])
			continue;
		create_trigger(call, name, name, call->by_row ? "FOR EACH ROW" :
					   psprintf("%s FOR EACH STATEMENT", tables ? tables : ""));
		if (is_guarded || tables == NULL)
			continue;
		create_trigger(call, MSGQ_CAPTURE_GUARD, name,
					   psprintf("%s FOR EACH ROW WHEN (false)", tables));
		is_guarded = true;
	}
}

/* One whose column list says something. */
static void
create_list_trigger(const CaptureCall *call, const char *suffix, List *columns)
{
	StringInfoData event;
	ListCell   *cell;

	initStringInfo(&event);
	foreach(cell, columns)
		appendStringInfo(&event, "%s%s", event.len == 0 ? "UPDATE OF " : ", ",
						 quote_identifier(lfirst(cell)));
	create_trigger(call, suffix, event.data, "FOR EACH ROW WHEN (false)");
}

/* Makes the triggers, as the caller, and the row that they mean. */
static void
create_capture(CaptureCall *call)
{
	MsgqSpi		spi;

	call->id = (int32) nextval_internal(msgq_relation_oid("capture_id"), false);
	insert_row(call);
	msgq_spi_begin(&spi, InvalidOid);
	create_event_triggers(call);
	if (call->columns != NIL)
		create_list_trigger(call, MSGQ_CAPTURE_COLUMNS, call->columns);
	if (call->key)
		create_list_trigger(call, MSGQ_CAPTURE_KEY, list_make1(call->key));
	msgq_spi_end(&spi);
	CacheInvalidateRelcacheByRelid(msgq_relation_oid("capture"));
	CommandCounterIncrement();
}

static void
refuse_duplicate(const CaptureCall *call)
{
	if (find_capture(call) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("changes of table %s go to \"%s\" already",
						call->relation_name, NameStr(call->target.name)),
				 errhint("Call msgq.uncapture() first, to change how.")));
}

/* capture(relation, destination, events, columns, key, filter) */
PG_FUNCTION_INFO_V1(msgq_capture);
Datum
msgq_capture(PG_FUNCTION_ARGS)
{
	CaptureCall call = {.kind = "changes"};
	char	   *destination;
	Name		name = palloc0(NAMEDATALEN);

	call.relation = DatumGetObjectId(msgq_arg(fcinfo, 0, "relation"));
	destination = msgq_arg_name(fcinfo, 1, "destination");
	events_argument(&call, fcinfo, 2);
	if (!PG_ARGISNULL(3))
		call.columns = names_argument(fcinfo, 3, "columns");
	if (!PG_ARGISNULL(4))
		call.key = msgq_arg_text(fcinfo, 4, "key");
	if (!PG_ARGISNULL(5))
	{
		call.filter = PG_GETARG_JSONPATH_P(5);
		msgq_filter_check(call.filter);
	}
	msgq_begin_change("msgq.capture()");
	check_may_make_triggers(call.relation);
	lock_relation(&call, ShareRowExclusiveLock);
	check_columns(&call);
	check_may_read(&call);
	msgq_lock_metadata();
	msgq_target_get(destination, MSGQ_RIGHT_SEND, &call.target);
	refuse_duplicate(&call);
	create_capture(&call);
	snprintf(NameStr(*name), NAMEDATALEN, MSGQ_CAPTURE_TRIGGER, call.id);
	PG_RETURN_NAME(name);
}

/* ---------------------------------------------------------------------------
 * Outbox tables
 * ---------------------------------------------------------------------------
 */

/* Where a table of that name would be made: its name as it stands in SQL. */
static char *
new_relation_name(const char *relation)
{
	RangeVar   *name =
	makeRangeVarFromNameList(textToQualifiedNameList(cstring_to_text(relation)));
	Oid			schema = RangeVarGetCreationNamespace(name);

	return quote_qualified_identifier(get_namespace_name(schema), name->relname);
}

/* create_outbox(relation, topic) */
PG_FUNCTION_INFO_V1(msgq_create_outbox);
Datum
msgq_create_outbox(PG_FUNCTION_ARGS)
{
	CaptureCall call = {.kind = "outbox",.has_event[CAPTURE_INSERT] = true};
	char	   *relation = msgq_arg_text(fcinfo, 0, "relation");
	char	   *topic = msgq_arg_name(fcinfo, 1, "topic");
	char	   *name;
	MsgqSpi		spi;

	msgq_begin_change("msgq.create_outbox()");
	(void) msgq_topic_get(topic, MSGQ_RIGHT_SEND);
	name = new_relation_name(relation);
	msgq_spi_begin(&spi, InvalidOid);
	msgq_spi_run("CREATE TABLE %s (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), "
				 "aggregatetype varchar(255) NOT NULL, "
				 "aggregateid varchar(255) NOT NULL, "
				 "type varchar(255) NOT NULL, "
				 "payload jsonb)", name);
	msgq_spi_end(&spi);
	call.relation = DatumGetObjectId(DirectFunctionCall1(regclassin,
														 CStringGetDatum(name)));
	lock_relation(&call, ShareRowExclusiveLock);
	msgq_lock_metadata();
	msgq_target_get(topic, MSGQ_RIGHT_SEND, &call.target);
	create_capture(&call);
	PG_RETURN_VOID();
}

/* ---------------------------------------------------------------------------
 * Dropping
 * ---------------------------------------------------------------------------
 */

/*
 * Drops the triggers of a capture, as the caller; also those that were renamed
 * or made by hand, with which the table could not be changed.
 */
static void
drop_triggers(const CaptureCall *call)
{
	MsgqSpi		spi;

	msgq_spi_begin(&spi, InvalidOid);
	msgq_spi_run("SELECT quote_ident(tgname) FROM pg_trigger "
				 "WHERE tgrelid = %u AND tgparentid = 0 "
				 "AND tgfoid = 'msgq.capture_changes()'::regprocedure "
				 "AND encode(tgargs, 'hex') = encode('%d', 'hex') || '00'",
				 call->relation, call->id);
	for (uint64 i = 0, n = SPI_processed; i < n; i++)
	{
		SPITupleTable *found = SPI_tuptable;

		msgq_spi_run("DROP TRIGGER %s ON %s",
					 SPI_getvalue(found->vals[i], found->tupdesc, 1),
					 call->relation_name);
		SPI_tuptable = found;
	}
	msgq_spi_end(&spi);
}

static void
delete_row(int32 id)
{
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run("DELETE FROM msgq.capture WHERE id = %d", id);
	msgq_spi_end(&spi);
	CacheInvalidateRelcacheByRelid(msgq_relation_oid("capture"));
	CommandCounterIncrement();
}

/* uncapture(relation, destination) */
PG_FUNCTION_INFO_V1(msgq_uncapture);
Datum
msgq_uncapture(PG_FUNCTION_ARGS)
{
	CaptureCall call = {0};
	char	   *destination;

	call.relation = DatumGetObjectId(msgq_arg(fcinfo, 0, "relation"));
	destination = msgq_arg_name(fcinfo, 1, "destination");
	msgq_begin_change("msgq.uncapture()");
	check_may_drop_triggers(call.relation);
	lock_relation(&call, AccessExclusiveLock);
	msgq_lock_metadata();
	msgq_target_get(destination, MSGQ_RIGHT_NONE, &call.target);
	call.id = find_capture(&call);
	if (call.id == 0)
		PG_RETURN_BOOL(false);
	drop_triggers(&call);
	delete_row(call.id);
	PG_RETURN_BOOL(true);
}
