/*
 * schedule.c
 *		Makes, replaces and removes schedules.
 *
 * A schedule is a row of msgq.schedule: what is sent where, and when.  cron.c
 * tells when it is due.  fire.c sends the messages, in rounds of maintenance,
 * and writes down what was fired.
 *
 * As with queues (admin.c), whoever changes schedules locks metadata, so that
 * the destination stays while it is looked up, and sends an invalidation, for
 * the worker keeps a list of when each one is due next.  He waits for a round
 * that is just firing the schedule, which holds a lock on its row.
 *
 * Who may do what.  The right to send to the destination is checked when the
 * schedule is made, against whoever makes it, and stays when he loses it, as
 * with bindings (topicadmin.c).  Nobody else's rights are needed when it fires.
 * A schedule is replaced and removed by members of its owner, who has made it
 * last, and by those with the right manage on its destination.  The owner is
 * kept by name, for the sake of dumps.
 *
 * scheduled_at is when the schedule began to be what it is: it is due after
 * that only, and intervals count from there.  To replace a schedule by one with
 * the same specification and time zone does not begin anew, so that a program
 * may state its schedules whenever it starts.
 *
 * src/schedule.c
 */
#include "msgq.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/timestamp.h"

#include "admin.h"
#include "argument.h"
#include "cron.h"
#include "owner.h"
#include "schedule.h"
#include "target.h"
#include "testing.h"
#include "worker.h"

/* Raised by whatever may have changed schedules. */
static uint64 generation = 1;
static Oid	schedule_table = InvalidOid;

/* Has this transaction changed any? */
static bool has_changed = false;

static void
invalidation_callback(Datum arg, Oid relation)
{
	if (relation == InvalidOid || relation == schedule_table)
		generation++;
}

/* Once per backend, from _PG_init. */
void
msgq_schedule_init(void)
{
	CacheRegisterRelcacheCallback(invalidation_callback, (Datum) 0);
}

/* Another number than before if schedules may have changed meanwhile. */
uint64
msgq_schedule_generation(void)
{
	AcceptInvalidationMessages();
	return generation;
}

/*
 * A transaction that has changed schedules is about to be committed.  Without a
 * launcher the worker is started now, since after the commit nothing may fail.
 */
void
msgq_schedule_pre_commit(void)
{
	if (has_changed)
		msgq_worker_insist();
}

/* It is over, and the worker must look.  Cannot fail. */
void
msgq_schedule_transaction_ended(bool committed)
{
	if (has_changed && committed)
		msgq_worker_remind();
	has_changed = false;
}

/* ---------------------------------------------------------------------------
 * What there is
 * ---------------------------------------------------------------------------
 */

/* When it is due next; now, if that cannot be said: firing it says why. */
static TimestampTz
next_time(const char *spec, const char *timezone, TimestampTz anchor,
		  TimestampTz after)
{
	pg_tz	   *zone = msgq_timezone_find(timezone);
	MsgqCron	cron;

	if (zone == NULL)
		return msgq_now();
	msgq_cron_parse(spec, &cron);
	return msgq_cron_next(&cron, zone, anchor, after);
}

static int
compare_entries(const void *left, const void *right)
{
	const MsgqScheduleEntry *a = left;
	const MsgqScheduleEntry *b = right;

	return a->next < b->next ? -1 : a->next > b->next ? 1 : a->id - b->id;
}

static void
read_entry(MsgqScheduleEntry *entry, HeapTuple row, TupleDesc descriptor)
{
	bool		is_null;

	entry->id = DatumGetInt32(SPI_getbinval(row, descriptor, 1, &is_null));
	namestrcpy(&entry->name, SPI_getvalue(row, descriptor, 2));
	entry->next =
		next_time(SPI_getvalue(row, descriptor, 3), SPI_getvalue(row, descriptor, 4),
				  DatumGetTimestampTz(SPI_getbinval(row, descriptor, 5, &is_null)),
				  DatumGetTimestampTz(SPI_getbinval(row, descriptor, 6, &is_null)));
}

/*
 * All schedules, those that are due first in front, allocated in this memory
 * context.
 */
MsgqScheduleEntry *
msgq_schedule_list(MemoryContext context, int *n)
{
	MsgqScheduleEntry *entries;
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	schedule_table = msgq_relation_oid("schedule");
	/* The library may be newer than what CREATE EXTENSION has made. */
	if (OidIsValid(schedule_table))
		msgq_spi_run("SELECT id, name, spec, timezone, scheduled_at, greatest(scheduled_at, "
					 "(SELECT max(due_at) FROM msgq.fired_1 WHERE schedule_id = s.id), "
					 "(SELECT max(due_at) FROM msgq.fired_2 WHERE schedule_id = s.id)) "
					 "FROM msgq.schedule AS s");
	else
		SPI_processed = 0;
	*n = SPI_processed;
	entries = MemoryContextAllocExtended(context,
										 sizeof(MsgqScheduleEntry) * Max(*n, 1),
										 MCXT_ALLOC_HUGE);
	for (int i = 0; i < *n; i++)
		read_entry(&entries[i], SPI_tuptable->vals[i], SPI_tuptable->tupdesc);
	msgq_spi_end(&spi);
	qsort(entries, *n, sizeof(MsgqScheduleEntry), compare_entries);
	return entries;
}

/* ---------------------------------------------------------------------------
 * Changes
 * ---------------------------------------------------------------------------
 */

/* Parameters of the SQL that makes and replaces schedules. */
enum
{
	PARAM_NAME,
	PARAM_OWNER,
	PARAM_SPEC,
	PARAM_TIMEZONE,
	PARAM_DESTINATION_ID,
	PARAM_BODY,
	PARAM_HEADERS,
	PARAM_CATCH_UP,
	PARAM_NOW,
	PARAM_ID,
	NPARAMS
};

static const Oid param_types[NPARAMS] = {
	TEXTOID, TEXTOID, TEXTOID, TEXTOID, INT4OID, JSONBOID, JSONBOID, TEXTOID,
	TIMESTAMPTZOID, INT4OID
};

/* A schedule that is there. */
typedef struct Existing
{
	int32		id;				/* 0: there is none */
	int32		destination_id;
	char	   *owner;
} Existing;

static Existing
find_existing(const char *name)
{
	MemoryContext caller = CurrentMemoryContext;
	Existing	existing = {0};
	Oid			type = TEXTOID;
	Datum		value = CStringGetTextDatum(name);
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run_with("SELECT id, destination_id, owner FROM msgq.schedule WHERE name = $1",
					  SPI_OK_SELECT, 1, &type, &value, NULL, false);
	if (SPI_processed > 0)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		TupleDesc	descriptor = SPI_tuptable->tupdesc;
		bool		is_null;

		existing.id = DatumGetInt32(SPI_getbinval(row, descriptor, 1, &is_null));
		existing.destination_id = DatumGetInt32(SPI_getbinval(row, descriptor, 2, &is_null));
		existing.owner = MemoryContextStrdup(caller, SPI_getvalue(row, descriptor, 3));
	}
	msgq_spi_end(&spi);
	return existing;
}

/* Raises 42501 unless the caller may replace or remove the schedule. */
static void
check_may_change(const char *name, const Existing *existing)
{
	Oid			owner = get_role_oid(existing->owner, true);
	MsgqTarget	target;
	bool		is_missing;

	if (has_privs_of_role(GetUserId(), msgq_storage_owner()) ||
		(OidIsValid(owner) && has_privs_of_role(GetUserId(), owner)))
		return;
	if (msgq_target_find(existing->destination_id, &target) &&
		msgq_has_right(msgq_target_handle(&target), MSGQ_RIGHT_MANAGE, &is_missing))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for schedule \"%s\"", name),
			 errdetail("It belongs to role \"%s\".", existing->owner),
			 errhint("Members of that role may change it, and those with the right manage on its destination.")));
}

/* Tells the worker, there and elsewhere; within SPI, after a change. */
static void
announce_change(void)
{
	CacheInvalidateRelcacheByRelid(msgq_relation_oid("schedule"));
	msgq_worker_want();
	has_changed = true;
}

static void
insert_schedule(Datum *values, bool *nulls)
{
	MsgqSpi		spi;

	values[PARAM_ID] = Int32GetDatum((int32) nextval_internal(msgq_relation_oid("schedule_id"), false));
	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run_with("INSERT INTO msgq.schedule (id, name, owner, spec, timezone, destination_id, "
					  "body, headers, catch_up, created_at, scheduled_at) "
					  "VALUES ($10, $1, $2, $3, $4, $5, $6, $7, $8, $9, $9)",
					  SPI_OK_INSERT, NPARAMS, param_types, values, nulls, false);
	announce_change();
	msgq_spi_end(&spi);
}

/* Nothing happens if it is the same already. */
static void
update_schedule(Datum *values, bool *nulls)
{
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run_with("UPDATE msgq.schedule SET owner = $2, spec = $3, timezone = $4, "
					  "destination_id = $5, body = $6, headers = $7, catch_up = $8, "
					  "scheduled_at = CASE WHEN spec = $3 AND timezone = $4 THEN scheduled_at ELSE $9 END "
					  "WHERE id = $10 AND (owner, spec, timezone, destination_id, body, headers, catch_up) "
					  "IS DISTINCT FROM ($2, $3, $4, $5, $6, $7, $8)",
					  SPI_OK_UPDATE, NPARAMS, param_types, values, nulls, false);
	if (SPI_processed > 0)
		announce_change();
	msgq_spi_end(&spi);
}

static void
check_catch_up(const char *value)
{
	if (strcmp(value, "none") != 0 && strcmp(value, "one") != 0 &&
		strcmp(value, "all") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be none, one or all", "catch_up")));
}

/* The parameters that are arguments, checked; all but those set by the caller. */
static void
read_arguments(FunctionCallInfo fcinfo, const char *name, Datum *values, bool *nulls)
{
	char	   *spec = msgq_arg_text(fcinfo, 1, "spec");
	char	   *catch_up = msgq_arg_text(fcinfo, 6, "catch_up");
	pg_tz	   *zone;
	MsgqCron	cron;

	values[PARAM_BODY] = msgq_arg(fcinfo, 3, "body");
	nulls[PARAM_HEADERS] = PG_ARGISNULL(4);
	if (!PG_ARGISNULL(4))
	{
		values[PARAM_HEADERS] = PG_GETARG_DATUM(4);
		msgq_check_headers(DatumGetJsonbP(values[PARAM_HEADERS]));
	}
	zone = msgq_timezone_get(msgq_arg_text(fcinfo, 5, "timezone"), "timezone");
	msgq_cron_parse(spec, &cron);
	check_catch_up(catch_up);
	values[PARAM_NAME] = CStringGetTextDatum(name);
	values[PARAM_OWNER] = CStringGetTextDatum(GetUserNameFromId(GetUserId(), false));
	values[PARAM_SPEC] = CStringGetTextDatum(spec);
	values[PARAM_TIMEZONE] = CStringGetTextDatum(pg_get_timezone_name(zone));
	values[PARAM_CATCH_UP] = CStringGetTextDatum(catch_up);
	values[PARAM_NOW] = TimestampTzGetDatum(msgq_now());
}

/* schedule(name, spec, destination, body, headers, timezone, catch_up) */
PG_FUNCTION_INFO_V1(msgq_schedule);
Datum
msgq_schedule(PG_FUNCTION_ARGS)
{
	char	   *name = msgq_arg_text(fcinfo, 0, "name");
	char	   *destination = msgq_arg_name(fcinfo, 2, "destination");
	Datum		values[NPARAMS] = {0};
	bool		nulls[NPARAMS] = {false};
	MsgqTarget	target;
	Existing	existing;

	msgq_begin_change("msgq.schedule()");
	msgq_check_new_name(name, "schedule");
	read_arguments(fcinfo, name, values, nulls);
	msgq_lock_metadata();
	msgq_target_get(destination, MSGQ_RIGHT_SEND, &target);
	values[PARAM_DESTINATION_ID] = Int32GetDatum(target.id);
	existing = find_existing(name);
	values[PARAM_ID] = Int32GetDatum(existing.id);
	if (existing.id == 0)
		insert_schedule(values, nulls);
	else
	{
		check_may_change(name, &existing);
		update_schedule(values, nulls);
	}
	CommandCounterIncrement();
	PG_RETURN_VOID();
}

/* unschedule(name) */
PG_FUNCTION_INFO_V1(msgq_unschedule);
Datum
msgq_unschedule(PG_FUNCTION_ARGS)
{
	char	   *name = msgq_arg_name(fcinfo, 0, "name");
	Existing	existing;
	MsgqSpi		spi;

	msgq_begin_change("msgq.unschedule()");
	msgq_lock_metadata();
	existing = find_existing(name);
	if (existing.id == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("schedule \"%s\" does not exist", name)));
	check_may_change(name, &existing);
	msgq_spi_begin(&spi, msgq_storage_owner());
	/* The row comes first: who fires it has locked that. */
	msgq_spi_run("DELETE FROM msgq.schedule WHERE id = %d", existing.id);
	msgq_spi_run("DELETE FROM msgq.fired_1 WHERE schedule_id = %d", existing.id);
	msgq_spi_run("DELETE FROM msgq.fired_2 WHERE schedule_id = %d", existing.id);
	announce_change();
	msgq_spi_end(&spi);
	CommandCounterIncrement();
	PG_RETURN_VOID();
}

/* ---------------------------------------------------------------------------
 * The view
 * ---------------------------------------------------------------------------
 */

/* next_due(spec, timezone, after, anchor) */
PG_FUNCTION_INFO_V1(msgq_next_due);
Datum
msgq_next_due(PG_FUNCTION_ARGS)
{
	char	   *spec = msgq_arg_text(fcinfo, 0, "spec");
	pg_tz	   *zone = msgq_timezone_find(msgq_arg_text(fcinfo, 1, "timezone"));
	TimestampTz after = DatumGetTimestampTz(msgq_arg(fcinfo, 2, "after"));
	TimestampTz anchor = DatumGetTimestampTz(msgq_arg(fcinfo, 3, "anchor"));
	MsgqCron	cron;

	/* The server's list of time zones may have changed. */
	if (zone == NULL || TIMESTAMP_NOT_FINITE(after) || TIMESTAMP_NOT_FINITE(anchor))
		PG_RETURN_NULL();
	msgq_cron_parse(spec, &cron);
	after = msgq_cron_next(&cron, zone, anchor, after);
	if (TIMESTAMP_NOT_FINITE(after))
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(after);
}
