/*
 * fire.c
 *		Sends the messages of schedules that are due.
 *
 * Each fire is a row of the log: the schedule, and the due time.  It is stored in
 * the transaction that sends the message, so there is both or neither.  Nothing
 * is updated, so that a snapshot that is held for long makes no dead rows.  The
 * latest due time in the log is how far the schedule has come, and only later
 * ones are ever fired, whatever the clock says.
 *
 * Why each due time fires once.  Whoever fires a schedule
 *
 *	1. locks its row, and leaves it alone if somebody has;
 *	2. locks the table of the log that takes new rows, to the end of his
 *	   transaction, and looks whether it still is that one;
 *	3. reads how far the schedule has come, in both tables, with a snapshot
 *	   that is newer than these locks;
 *	4. stores a row, then the message.
 *
 * The row's primary key would stop a second one with the same due time, should
 * somebody have got by the first lock.  In the other table of the log it could
 * not; but before the tables take turns, all who have locked the current one are
 * waited for, so whatever they have stored is seen in step 3.
 *
 * The two tables take turns as those of retained messages do (retained.c), when
 * the current one has grown to twice what the last turn has left in it: of each
 * schedule its last rows go to the other one, and the table is truncated when no
 * snapshot shows anything in it.
 *
 * A due time that is reached MISSED_TIME late is missed.  Of those catch_up says
 * which are fired.  What is passed over is written down as well, as its latest
 * due time.
 *
 * If a message cannot be sent, the transaction fails, and nothing has happened.
 * The next round that looks at the schedule tries again.
 *
 * Rights.  All of it runs as the storage's owner.  The right to send there was
 * checked when the schedule was made (schedule.c).
 *
 * src/fire.c
 */
#include "msgq.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "cron.h"
#include "fire.h"
#include "message.h"
#include "owner.h"
#include "table.h"
#include "target.h"
#include "testing.h"

/* A due time that is reached so much later is missed. */
#define MISSED_TIME			USECS_PER_MINUTE

/* So many are fired in one transaction. */
#define MAX_FIRES			100

/* When a schedule that somebody else has locked is looked at again. */
#define LOCKED_TIME			USECS_PER_SEC

/* The log is not turned before a table has this size. */
#define MIN_TURN_BYTES		(INT64CONST(16) * 1024 * 1024)

#define SCHEDULE_HEADER		"msgq-schedule"
#define DUE_HEADER			"msgq-scheduled-for"

/* Columns of msgq.fired_1 and _2; all are NOT NULL. */
enum
{
	Anum_fired_schedule_id = 1,
	Anum_fired_due_at,
	Anum_fired_fired_at,
	Anum_fired_skipped,
	Natts_fired = Anum_fired_skipped
};

/* What becomes of due times that were missed. */
typedef enum CatchUp
{
	CATCH_UP_NONE,
	CATCH_UP_ONE,				/* the latest one is fired */
	CATCH_UP_ALL
} CatchUp;

/* A schedule that is being fired; what is on the heap is SPI's. */
typedef struct Schedule
{
	int32		id;
	char	   *name;
	char	   *spec;
	char	   *timezone;
	int32		destination_id;
	Datum		body;
	bool		no_headers;
	Datum		headers;
	CatchUp		catch_up;
	TimestampTz scheduled_at;

	MsgqCron	cron;
	pg_tz	   *zone;
	TimestampTz last;			/* how far it has come */
	MsgqTable  *log;			/* that takes new rows */
} Schedule;

/* A column of the first row that SPI has returned. */
static Datum
column(int n, bool *is_null)
{
	return SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, n, is_null);
}

static char *
text_column(int n)
{
	return SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, n);
}

/* ---------------------------------------------------------------------------
 * Steps 1 to 3
 * ---------------------------------------------------------------------------
 */

static CatchUp
catch_up_named(const char *name)
{
	if (strcmp(name, "none") == 0)
		return CATCH_UP_NONE;
	return strcmp(name, "all") == 0 ? CATCH_UP_ALL : CATCH_UP_ONE;
}

/* Locks the row, and reads it; false if it has gone, or somebody has locked it. */
static bool
lock_schedule(Schedule *schedule)
{
	bool		is_null;

	msgq_spi_run("SELECT name, spec, timezone, destination_id, body, headers, catch_up, scheduled_at "
				 "FROM msgq.schedule WHERE id = %d FOR UPDATE SKIP LOCKED",
				 schedule->id);
	if (SPI_processed == 0)
		return false;
	schedule->name = text_column(1);
	schedule->spec = text_column(2);
	schedule->timezone = text_column(3);
	schedule->destination_id = DatumGetInt32(column(4, &is_null));
	schedule->body = msgq_self_contained(column(5, &is_null));
	schedule->headers = column(6, &schedule->no_headers);
	schedule->catch_up = catch_up_named(text_column(7));
	schedule->scheduled_at = DatumGetTimestampTz(column(8, &is_null));
	return true;
}

/* Which table of the log takes new rows: 1 or 2. */
static int
current_log(void)
{
	bool		is_null;

	msgq_spi_run("SELECT log FROM msgq.fire_log");
	/* There is no row before the first turn. */
	return SPI_processed == 0 ? 1 : DatumGetInt32(column(1, &is_null));
}

static Oid
log_table(int n)
{
	return msgq_relation_oid(psprintf("fired_%d", n));
}

/* Opens the table that takes new rows, locked to the end of the transaction. */
static MsgqTable *
open_log(void)
{
	for (;;)
	{
		int			n = current_log();
		Relation	table = msgq_open(log_table(n), RowExclusiveLock);

		if (current_log() == n)
			return msgq_table_open(table, Natts_fired, Natts_fired, RowExclusiveLock);
		table_close(table, RowExclusiveLock);
	}
}

/* How far the schedule has come. */
static TimestampTz
last_due(const Schedule *schedule)
{
	bool		is_null;
	TimestampTz last;

	msgq_spi_run("SELECT greatest("
				 "(SELECT max(due_at) FROM msgq.fired_1 WHERE schedule_id = %1$d), "
				 "(SELECT max(due_at) FROM msgq.fired_2 WHERE schedule_id = %1$d))",
				 schedule->id);
	last = DatumGetTimestampTz(column(1, &is_null));
	return is_null ? schedule->scheduled_at : Max(last, schedule->scheduled_at);
}

/* ---------------------------------------------------------------------------
 * Step 4
 * ---------------------------------------------------------------------------
 */

/* Adds to the message's headers which due time of which schedule this is. */
static void
add_origin(const Schedule *schedule, TimestampTz due, MsgqOutgoing *message)
{
	JsonbParseState *state = NULL;
	char	   *due_text;
	int			utc = 0;

	due_text = JsonEncodeDateTime(NULL, TimestampTzGetDatum(due), TIMESTAMPTZOID,
								  &utc);
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	msgq_push_text(&state, WJB_KEY, SCHEDULE_HEADER);
	msgq_push_text(&state, WJB_VALUE, schedule->name);
	msgq_push_text(&state, WJB_KEY, DUE_HEADER);
	msgq_push_text(&state, WJB_VALUE, due_text);
	msgq_outgoing_add_headers(message, 0,
							  JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state,
																			  WJB_END_OBJECT, NULL))));
}

/* Sends a message to where the schedule leads. */
static void
send_message(const Schedule *schedule, MsgqOutgoing *message)
{
	Datum		routing_key = CStringGetTextDatum(schedule->name);
	MsgqTarget	target;

	if (!msgq_target_find(schedule->destination_id, &target) ||
		!msgq_target_send("msgq.maintain()", &target, message, &routing_key))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the destination, which has number %d, does not exist",
						schedule->destination_id)));
}

/* Writes down that this due time is done. */
static void
log_due(const Schedule *schedule, TimestampTz due, bool skipped)
{
	Datum		values[Natts_fired] = {
		[Anum_fired_schedule_id - 1] = Int32GetDatum(schedule->id),
		[Anum_fired_due_at - 1] = TimestampTzGetDatum(due),
		[Anum_fired_fired_at - 1] = TimestampTzGetDatum(msgq_now()),
		[Anum_fired_skipped - 1] = BoolGetDatum(skipped)
	};

	msgq_table_insert(schedule->log, values, NULL);
}

static void
fire_due(Schedule *schedule, TimestampTz due, MsgqRound *round)
{
	MsgqOutgoing message;

	log_due(schedule, due, false);
	msgq_outgoing_init(&message, 1, Anum_segment_body);
	message.contents[0] = schedule->body;
	message.headers[0] = schedule->headers;
	message.no_headers[0] = schedule->no_headers;
	add_origin(schedule, due, &message);
	send_message(schedule, &message);
	CommandCounterIncrement();
	schedule->last = due;
	round->fired++;
}

/* Of the due times that were missed, all but the latest one are passed over. */
static void
catch_up(Schedule *schedule, TimestampTz now, MsgqRound *round)
{
	TimestampTz latest = msgq_cron_latest(&schedule->cron, schedule->zone,
										  schedule->scheduled_at, schedule->last,
										  now - MISSED_TIME - 1);

	if (TIMESTAMP_NOT_FINITE(latest))
		return;
	if (schedule->catch_up == CATCH_UP_ONE)
	{
		fire_due(schedule, latest, round);
		return;
	}
	log_due(schedule, latest, true);
	schedule->last = latest;
}

/* Fires what is due; returns when it is due next. */
static TimestampTz
fire_all_due(Schedule *schedule, MsgqRound *round)
{
	TimestampTz now = msgq_now();
	TimestampTz due;

	if (schedule->catch_up != CATCH_UP_ALL)
		catch_up(schedule, now, round);
	for (int n = 0;; n++)
	{
		due = msgq_cron_next(&schedule->cron, schedule->zone,
							 schedule->scheduled_at, schedule->last);
		if (due > now || n == MAX_FIRES)
			return due;
		fire_due(schedule, due, round);
	}
}

/*
 * Fires what is due of the schedule with this number, up to MAX_FIRES due times,
 * and returns when to look at it again: at once, if there are more; infinity, if
 * it has gone, or will never be due.  In a transaction of its own, which should
 * end at once.  Raises what sending to its destination does.
 */
TimestampTz
msgq_fire(int32 schedule_id, MsgqRound *round)
{
	Schedule	schedule = {.id = schedule_id};
	TimestampTz next = msgq_now() + LOCKED_TIME;
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	if (lock_schedule(&schedule))
	{
		schedule.zone = msgq_timezone_get(schedule.timezone, "timezone");
		msgq_cron_parse(schedule.spec, &schedule.cron);
		schedule.log = open_log();
		schedule.last = last_due(&schedule);
		msgq_point(MSGQ_POINT_FIRE_READ);
		next = fire_all_due(&schedule, round);
		msgq_point(MSGQ_POINT_FIRE_STORED);
		msgq_table_close(schedule.log, NoLock);
	}
	msgq_spi_end(&spi);
	return next;
}

/* ---------------------------------------------------------------------------
 * The log
 * ---------------------------------------------------------------------------
 */

/* What the table has taken over is not to be counted against its next turn. */
static void
remember_size(int current)
{
	msgq_spi_run("UPDATE msgq.fire_log SET log_bytes = pg_total_relation_size('msgq.fired_%d')",
				 current);
}

/*
 * Moves what counts from the kept table, which is locked: of each schedule the
 * last row, and the last one that was not passed over.  Rows of
 * schedules that are not there are kept as well: they may be about to be
 * restored from a dump.
 */
static void
move_rows(int kept, int current)
{
	msgq_spi_run("WITH gone AS (DELETE FROM ONLY msgq.fired_%1$d RETURNING *), "
				 "last AS (SELECT DISTINCT ON (schedule_id, skipped) * FROM gone "
				 "ORDER BY schedule_id, skipped, due_at DESC) "
				 "INSERT INTO msgq.fired_%2$d SELECT * FROM last "
				 "WHERE NOT EXISTS (SELECT FROM msgq.fired_%2$d AS later "
				 "WHERE later.schedule_id = last.schedule_id "
				 "AND later.due_at > last.due_at AND (last.skipped OR NOT later.skipped)) "
				 "AND NOT EXISTS (SELECT FROM last AS later "
				 "WHERE later.schedule_id = last.schedule_id "
				 "AND later.due_at > last.due_at AND NOT later.skipped)",
				 kept, current);
	remember_size(current);
}

/* Empties the kept table, in one of the two steps. */
static void
empty_kept(int kept, int current, MsgqRound *round)
{
	for (int n = 1; n <= 2; n++)
		msgq_table_check(log_table(n), Natts_fired, Natts_fired);
	switch (msgq_table_lock_kept(log_table(kept)))
	{
		case MSGQ_KEPT_EMPTY:
			msgq_spi_run("TRUNCATE ONLY msgq.fired_%d", kept);
			round->emptied++;
			break;
		case MSGQ_KEPT_HAS_ROWS:
			move_rows(kept, current);
			break;
		case MSGQ_KEPT_IN_USE:
			round->waiting++;
			break;
	}
}

/* Lets the other table take new rows, when nobody writes to the current one. */
static void
turn(int kept, int current, MsgqRound *round)
{
	msgq_lock_against_writers(log_table(current));
	msgq_spi_run("UPDATE msgq.fire_log SET log = %d", kept);
	if (SPI_processed == 0)
		msgq_spi_run("INSERT INTO msgq.fire_log (log, log_bytes) VALUES (%d, 0)", kept);
	round->rotated++;
}

/* Above which size the current table makes room. */
static int64
turn_bytes(void)
{
	bool		is_null;

	msgq_spi_run("SELECT log_bytes FROM msgq.fire_log");
	return SPI_processed == 0 ? MIN_TURN_BYTES :
		Max(MIN_TURN_BYTES, 2 * DatumGetInt64(column(1, &is_null)));
}

/*
 * One step of a turn of the log, if one is due; true if it did something, or
 * has to try again.  In a transaction of its own, which should end at once.
 */
bool
msgq_fire_log_turn(MsgqRound *round)
{
	bool		done = true;
	int			current;
	MsgqSpi		spi;

	/* The library may be newer than what CREATE EXTENSION has made. */
	if (!OidIsValid(log_table(1)))
		return false;
	msgq_spi_begin(&spi, msgq_storage_owner());
	current = current_log();
	if (msgq_table_main_bytes(log_table(3 - current)) > 0)
		empty_kept(3 - current, current, round);
	else if (msgq_table_main_bytes(log_table(current)) > 0 &&
			 msgq_table_bytes(log_table(current)) >= turn_bytes())
		turn(3 - current, current, round);
	else
		done = false;
	msgq_spi_end(&spi);
	return done;
}
