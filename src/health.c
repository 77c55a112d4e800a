/*
 * health.c
 *		Says what is wrong, to people and to monitoring.
 *
 * Each check is a row: ok, or warning or error with what is the matter and
 * what to do.  Checks look at what the caller may see: pg_stat_activity shows
 * other users' transactions only to members of pg_read_all_stats.
 *
 * src/health.c
 */
#include "msgq.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "owner.h"
#include "retention.h"
#include "ring.h"
#include "shared.h"
#include "stream.h"
#include "testing.h"
#include "worker.h"

/* A snapshot that is older than so many seconds keeps much from vacuum. */
#define OLD_SNAPSHOT		300

/* So many seconds after its due time a schedule should have fired. */
#define OVERDUE				60

typedef struct Report
{
	ReturnSetInfo *result;
} Report;

static void
put(Report *report, const char *check, const char *status, const char *detail)
{
	Datum		values[] = {
		CStringGetTextDatum(check),
		CStringGetTextDatum(status),
		CStringGetTextDatum(detail)
	};
	bool		nulls[] = {false, false, false};

	tuplestore_putvalues(report->result->setResult, report->result->setDesc,
						 values, nulls);
}

/* The first column of the first row, as text; NULL for NULL or no row. */
static char *
query(const char *sql)
{
	MemoryContext caller = CurrentMemoryContext;
	char	   *answer = NULL;
	MsgqSpi		spi;

	msgq_spi_begin(&spi, InvalidOid);
	msgq_spi_run("%s", sql);
	if (SPI_processed > 0)
		answer = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	if (answer)
		answer = MemoryContextStrdup(caller, answer);
	msgq_spi_end(&spi);
	return answer;
}

static void
check_worker(Report *report)
{
	if (RecoveryInProgress())
		put(report, "worker", "ok", "a standby has none");
	else if (!msgq_worker_enabled)
		put(report, "worker", "warning",
			"turned off by msgq.worker; space is reclaimed by msgq.maintain() only");
	else if (msgq_worker_runs())
		put(report, "worker", "ok", "running");
	else if (msgq_shared_preloaded())
		put(report, "worker", "ok", "not running; the launcher starts it when msgq is used");
	else
		put(report, "worker", "ok", "not running; it starts when msgq is used");
}

static void
check_shared_state(Report *report)
{
	int			used;
	int			slots;

	if (!msgq_shared_available())
	{
		put(report, "shared_memory", "warning",
			"none, so waiting is polling, and there are no totals; add msgq to shared_preload_libraries");
		return;
	}
	slots = msgq_slot_count(&used);
	put(report, "shared_memory", used < slots ? "ok" : "warning",
		psprintf("%s; %d of %d places for queues are taken%s",
				 msgq_shared_preloaded() ? "preloaded" : "not preloaded, in dynamic shared memory",
				 used, slots,
				 used < slots ? "" : "; raise msgq.shared_queues"));
}

static void
check_synchronous_commit(Report *report)
{
	bool		off = synchronous_commit == SYNCHRONOUS_COMMIT_OFF;

	put(report, "synchronous_commit", off ? "warning" : "ok",
		off ? "off in this session: what it sends can be lost in a crash after COMMIT" :
		"on in this session");
}

static void
check_oldest_snapshot(Report *report)
{
	char	   *found = query(psprintf("SELECT format('%%s is %%s s old; vacuum can remove nothing newer', who, age) FROM ("
									   "SELECT format('the snapshot of process %%s (%%s)', pid, state) AS who, "
									   "extract(epoch FROM clock_timestamp() - xact_start)::bigint AS age "
									   "FROM pg_stat_activity WHERE backend_xmin IS NOT NULL "
									   "AND pid <> pg_backend_pid() "
									   "UNION ALL SELECT format('the prepared transaction %%L', gid), "
									   "extract(epoch FROM clock_timestamp() - prepared)::bigint "
									   "FROM pg_prepared_xacts) AS holders "
									   "WHERE age >= %d ORDER BY age DESC LIMIT 1", OLD_SNAPSHOT));

	put(report, "oldest_snapshot", found ? "warning" : "ok",
		found ? found : psprintf("none is older than %d s", OLD_SNAPSHOT));
}

static void
check_segments(Report *report)
{
	char	   *found = query("SELECT string_agg(format('%s %s', c.relname, "
							  "CASE WHEN l.pids IS NULL THEN 'waits for an old snapshot or the worker' "
							  "ELSE 'is locked by process ' || l.pids END), '; ' ORDER BY c.relname) "
							  "FROM msgq.list_drained() AS d "
							  "JOIN pg_class c ON c.oid = d.segment "
							  "LEFT JOIN LATERAL (SELECT string_agg(DISTINCT pid::text, ', ') AS pids "
							  "FROM pg_locks WHERE relation = d.segment AND granted "
							  "AND pid <> pg_backend_pid()) AS l ON true");

	/*
	 * The worker empties them a round later, if nothing is in the way: a
	 * lock, or, where they have to wait for it, an old snapshot.
	 */
	put(report, "segments",
		found && (msgq_reclaim != MSGQ_RECLAIM_EAGER || strstr(found, "locked")) ? "warning" : "ok",
		found ? psprintf("drained but not reclaimed yet: %s", found) :
		"none waits to be reclaimed");
}

/* Of the queues at which the caller may look. */
static void
check_dead_letters(Report *report)
{
	char	   *found = query("SELECT string_agg(format('%s in \"%s\"', n, queue), ', ' ORDER BY queue) "
							  "FROM (SELECT queue, ready + delayed + in_flight AS n "
							  "FROM msgq.queue_stats) AS depth "
							  "WHERE n > 0 AND queue IN ("
							  "SELECT settings->>'dead_letter_queue' FROM msgq.queues)");

	put(report, "dead_letters", found ? "warning" : "ok",
		found ? psprintf("messages were given up: %s; look at them with msgq.peek(), take them back with msgq.redrive()",
						 found) : "there are none");
}

static void
check_audit(Report *report)
{
	uint64		found = msgq_audit_found();

	put(report, "audit", found == 0 ? "ok" : "error",
		found == 0 ? "no message was passed by" :
		psprintf(UINT64_FORMAT " messages had been passed by since the server started, and were delivered then; see the server's log",
				 found));
}

static void
check_wakeups(Report *report)
{
	MsgqWaitCounts counts = msgq_wait_counts();

	put(report, "wakeups", "ok",
		psprintf(UINT64_FORMAT " waits ended by a wake-up, " UINT64_FORMAT " by looking after msgq.poll_interval",
				 counts.woken, counts.polled));
}

/* Of the streams at which the caller may look. */
static void
check_streams(Report *report)
{
	List	   *streams = msgq_stream_list(MSGQ_RIGHT_PEEK);
	StringInfoData names;
	ListCell   *cell;

	if (streams && !msgq_worker_enabled && !RecoveryInProgress())
		put(report, "sequencer", "warning",
			"turned off by msgq.worker; entries of streams can be read after msgq.sequence() only");
	else
		put(report, "sequencer", "ok",
			RecoveryInProgress() ? "a standby has none" :
			streams == NIL ? "there are no streams" :
			msgq_sequencer_runs() ? "running" :
			"not running; it starts when a stream is used");

	initStringInfo(&names);
	foreach(cell, streams)
	{
		const MsgqStream *stream = msgq_stream_hold(lfirst(cell));

		if (stream == NULL)
			continue;
		if (msgq_stream_holds_too_much(stream))
			appendStringInfo(&names, "%s\"%s\"", names.len > 0 ? ", " : "",
							 NameStr(stream->name));
		msgq_stream_release(stream);
	}
	put(report, "streams", names.len > 0 ? "warning" : "ok",
		names.len > 0 ?
		psprintf("a group is so far behind that more than half of max_held_bytes is kept for it: %s; see msgq.group_lag",
				 names.data) : "none holds too much for its groups");
}

/* The schedules that are overdue, and at which the caller may look; or NULL. */
static char *
overdue_schedules(void)
{
	Datum		missed = TimestampTzGetDatum(msgq_now() - OVERDUE * USECS_PER_SEC);

	return query(psprintf("SELECT string_agg(format('\"%%s\"', name), ', ' ORDER BY next_at, name) FROM ("
						  "SELECT name, next_at FROM msgq.schedules WHERE next_at < '%s'::timestamptz "
						  "ORDER BY next_at LIMIT 10) AS overdue",
						  DatumGetCString(DirectFunctionCall1(timestamptz_out, missed))));
}

/* Of the schedules at which the caller may look. */
static void
check_schedules(Report *report)
{
	char	   *overdue;

	if (query("SELECT name FROM msgq.schedules LIMIT 1") == NULL)
		put(report, "schedules", "ok", "there are no schedules");
	else if (RecoveryInProgress())
		put(report, "schedules", "ok", "a standby fires none");
	else if (!msgq_worker_enabled)
		put(report, "schedules", "warning",
			"the worker is turned off by msgq.worker; schedules are fired by msgq.maintain() only");
	else if (!msgq_shared_preloaded() && !msgq_worker_runs())
	{
		msgq_worker_insist();
		put(report, "schedules", "warning",
			"no worker was there to fire them, and one was asked for just now; with msgq in shared_preload_libraries there is always one in time");
	}
	else
	{
		msgq_worker_want();
		overdue = overdue_schedules();
		put(report, "schedules", overdue ? "warning" : "ok",
			overdue ?
			psprintf("overdue by more than a minute: %s; see the server's log", overdue) :
			"none is overdue");
	}
}

/* health() */
PG_FUNCTION_INFO_V1(msgq_health);
Datum
msgq_health(PG_FUNCTION_ARGS)
{
	Report		report = {(ReturnSetInfo *) fcinfo->resultinfo};

	InitMaterializedSRF(fcinfo, 0);
	check_worker(&report);
	check_shared_state(&report);
	check_synchronous_commit(&report);
	check_oldest_snapshot(&report);
	check_segments(&report);
	check_dead_letters(&report);
	check_audit(&report);
	check_wakeups(&report);
	check_streams(&report);
	check_schedules(&report);
	return (Datum) 0;
}

/* list_drained(): the segments that wait to be reclaimed */
PG_FUNCTION_INFO_V1(msgq_list_drained);
Datum
msgq_list_drained(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	MsgqQueue **queues;
	int			n;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	queues = msgq_queue_list(MSGQ_RIGHT_PEEK, &n);
	for (int i = 0; i < n; i++)
	{
		for (int k = 0; k < queues[i]->ndrained; k++)
		{
			Datum		value = ObjectIdGetDatum(queues[i]->segments[k].table);
			bool		is_null = false;

			tuplestore_putvalues(result->setResult, result->setDesc, &value,
								 &is_null);
		}
	}
	return (Datum) 0;
}
