/*
 * maintain.c
 *		Rounds of maintenance over all queues, streams and topics of a
 *		database, and its inbox, by the worker or by hand.
 *
 * A round fires schedules (fire.c), looks after queues (upkeep.c), turns and
 * empties the inbox (inbox.c), turns streams and drops what is old in them
 * (retention.c), turns the logs of topics (retained.c), and empties that of
 * replies (request.c), in steps (step.c).
 *
 * One round is done at a time in a database: it holds MSGQ_ROUND_LOCK.  That
 * and the worker's own lock are advisory locks, of a kind that SQL cannot take,
 * since a process that ends releases those and no others.
 *
 * src/maintain.c
 */
#include "msgq.h"

#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "fire.h"
#include "maintain.h"
#include "message.h"
#include "owner.h"
#include "queue.h"
#include "request.h"
#include "retained.h"
#include "retention.h"
#include "schedule.h"
#include "step.h"
#include "stream.h"
#include "testing.h"
#include "upkeep.h"

/* A schedule that could not be fired is tried again after this. */
#define REFIRE_TIME			(10 * USECS_PER_SEC)
#define REFIRE_LOCKED_TIME	(1 * USECS_PER_SEC)

/* So often a schedule that has much to catch up with is fired in a round. */
#define MAX_FIRE_STEPS		10

/*
 * Is somebody about to drop the database, or to copy it, and waits until
 * nobody is connected?  May be called outside of transactions.
 */
bool
msgq_database_is_wanted(Oid database)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, database, 0);
	if (LockAcquire(&tag, RowExclusiveLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
		return true;
	(void) LockRelease(&tag, RowExclusiveLock, true);
	return false;
}

/* ---------------------------------------------------------------------------
 * The inbox
 * ---------------------------------------------------------------------------
 */

static void
look_at_inbox_step(MsgqMaintenance *m, int32 unused, int n)
{
	msgq_inbox_look(&m->inbox);
}

static void
turn_inbox_step(MsgqMaintenance *m, int32 unused, int n)
{
	msgq_inbox_turn(&m->round);
	m->inbox.done = true;
}

static void
move_claims_step(MsgqMaintenance *m, int32 unused, int part)
{
	msgq_inbox_move(part, &m->round);
}

static void
empty_inbox_step(MsgqMaintenance *m, int32 unused, int n)
{
	m->inbox.done = msgq_inbox_empty(&m->round);
}

/* Does what is due in the inbox. */
static void
do_inbox_work(MsgqMaintenance *m)
{
	if (m->inbox.turn)
		msgq_run_step(m, turn_inbox_step, 0, 0);
	for (int part = 0; part < m->inbox.parts; part++)
	{
		if (!m->by_hand && msgq_database_is_wanted(MyDatabaseId))
			return;
		msgq_run_step(m, move_claims_step, 0, part);
	}
	if (m->inbox.empty)
		msgq_run_step(m, empty_inbox_step, 0, 0);
}

/*
 * Turns the inbox, or empties the table that takes no new claims.  To see whether
 * that is due costs a scan.
 */
static void
maintain_inbox(MsgqMaintenance *m)
{
	int64		begun = msgq_ticks();

	if (begun < m->inbox_next)
		return;
	memset(&m->inbox, 0, sizeof(m->inbox));
	m->subject = "maintain the inbox";
	msgq_run_step(m, look_at_inbox_step, 0, 0);
	do_inbox_work(m);
	m->subject = NULL;
	m->busy |= m->inbox.done;
	if (!m->inbox.done)
		m->inbox_next = msgq_ticks() +
			(m->inbox.turn ? MSGQ_TURN_TIME :
			 MSGQ_COST_FACTOR * (msgq_ticks() - begun));
}

/* ---------------------------------------------------------------------------
 * Streams, topics and replies
 * ---------------------------------------------------------------------------
 */

/* Is somebody changing or dropping the stream, or restoring it?  Else locks it. */
static bool
is_stream_free(MsgqMaintenance *m, int32 stream_id)
{
	const MsgqStream *stream = msgq_stream_find_by_id(stream_id);

	if (stream && msgq_stream_is_complete(stream) &&
		ConditionalLockRelationOid(msgq_stream_active(stream)->entries,
								   AccessShareLock))
		return true;
	m->round.waiting++;
	return false;
}

/* When is something to be done, if nothing happens until then? */
static void
stream_due_step(MsgqMaintenance *m, int32 stream_id, int n)
{
	TimestampTz due;

	if (!is_stream_free(m, stream_id))
		return;
	due = msgq_stream_due(msgq_stream_find_by_id(stream_id));
	if (due != 0 && (m->stream_due == 0 || due < m->stream_due))
		m->stream_due = due;
}

static void
turn_stream_step(MsgqMaintenance *m, int32 stream_id, int n)
{
	if (!is_stream_free(m, stream_id))
		return;
	m->busy |= msgq_stream_turn_if_due(stream_id, &m->round);
}

static void
complete_stream_step(MsgqMaintenance *m, int32 stream_id, int n)
{
	if (!is_stream_free(m, stream_id))
		return;
	m->busy |= msgq_stream_complete(stream_id, &m->round);
}

static void
drop_stream_step(MsgqMaintenance *m, int32 stream_id, int n)
{
	if (!is_stream_free(m, stream_id))
		return;
	m->busy |= msgq_stream_drop_oldest(stream_id, &m->round);
}

static void
group_log_step(MsgqMaintenance *m, int32 stream_id, int n)
{
	if (!is_stream_free(m, stream_id))
		return;
	m->busy |= msgq_group_log_turn(stream_id, &m->round);
}

/* The numbers of all streams, in the current memory context. */
static List *
list_streams(MsgqMaintenance *m)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *ids = NIL;
	ListCell   *cell;

	msgq_look_begin(m);
	foreach(cell, msgq_stream_list(MSGQ_RIGHT_NONE))
	{
		MemoryContext before = MemoryContextSwitchTo(context);

		ids = lappend_int(ids, ((const MsgqStream *) lfirst(cell))->id);
		MemoryContextSwitchTo(before);
	}
	msgq_look_end(m, context);
	return ids;
}

/* Turns and drops segments of streams, and their group logs. */
static void
maintain_streams(MsgqMaintenance *m)
{
	List	   *ids = list_streams(m);
	ListCell   *cell;

	foreach(cell, ids)
	{
		int32		id = lfirst_int(cell);

		if (!m->by_hand && msgq_database_is_wanted(MyDatabaseId))
			break;
		msgq_run_step(m, turn_stream_step, id, 0);
		msgq_run_step(m, complete_stream_step, id, 0);
		msgq_run_step(m, drop_stream_step, id, 0);
		msgq_run_step(m, group_log_step, id, 0);
	}
	list_free(ids);
}

static void
retained_step(MsgqMaintenance *m, int32 topic_id, int n)
{
	m->busy |= msgq_retained_turn(topic_id, &m->round);
}

static void
replies_step(MsgqMaintenance *m, int32 unused, int n)
{
	m->busy |= msgq_replies_empty(&m->round);
}

/* The numbers of all topics, in the current memory context. */
static List *
list_topics(MsgqMaintenance *m)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *ids = NIL;
	MsgqSpi		spi;

	msgq_look_begin(m);
	msgq_spi_begin(&spi, msgq_storage_owner());
	/* The library may be newer than what CREATE EXTENSION has made. */
	if (OidIsValid(msgq_relation_oid("topic")))
		msgq_spi_run("SELECT id FROM msgq.topic ORDER BY id");
	else
		SPI_processed = 0;
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		is_null;
		int32		id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i],
													 SPI_tuptable->tupdesc, 1,
													 &is_null));
		MemoryContext before = MemoryContextSwitchTo(context);

		ids = lappend_int(ids, id);
		MemoryContextSwitchTo(before);
	}
	msgq_spi_end(&spi);
	msgq_look_end(m, context);
	return ids;
}

/* Turns the logs of topics, and empties that of replies. */
static void
maintain_topics(MsgqMaintenance *m)
{
	List	   *ids = list_topics(m);
	ListCell   *cell;

	foreach(cell, ids)
	{
		if (!m->by_hand && msgq_database_is_wanted(MyDatabaseId))
			break;
		msgq_run_step(m, retained_step, lfirst_int(cell), 0);
	}
	list_free(ids);
	m->subject = "maintain replies";
	msgq_run_step(m, replies_step, 0, 0);
	m->subject = NULL;
}

/* ---------------------------------------------------------------------------
 * Schedules
 * ---------------------------------------------------------------------------
 */

/*
 * The schedules, from when they are remembered on, as long as none has changed.
 * By hand, nothing is.
 */
static void
read_schedules(MsgqMaintenance *m)
{
	MemoryContext context = CurrentMemoryContext;
	uint64		generation;

	msgq_look_begin(m);
	generation = msgq_schedule_generation();
	if (m->schedules == NULL || m->schedules_generation != generation)
	{
		if (m->schedules)
			pfree(m->schedules);
		m->schedules = NULL;
		m->schedules = msgq_schedule_list(m->memory ? TopMemoryContext : context,
										  &m->nschedules);
		m->schedules_generation = generation;
	}
	msgq_look_end(m, context);
}

static void
fire_step(MsgqMaintenance *m, int32 unused, int n)
{
	MsgqRound	before = m->round;
	MsgqScheduleEntry *entry = &m->schedules[n];

	PG_TRY();
	{
		entry->next = msgq_fire(entry->id, &m->round);
	}
	PG_CATCH();
	{
		/* What was counted has not happened. */
		m->round = before;
		if (geterrcode() == ERRCODE_LOCK_NOT_AVAILABLE)
			entry->next = msgq_now() + REFIRE_LOCKED_TIME;
		PG_RE_THROW();
	}
	PG_END_TRY();
	m->busy = true;
}

static void
fire_log_step(MsgqMaintenance *m, int32 unused, int n)
{
	m->busy |= msgq_fire_log_turn(&m->round);
}

/* Fires a schedule that is due; if that fails, it is tried again later. */
static void
fire_schedule(MsgqMaintenance *m, int n)
{
	MsgqScheduleEntry *entry = &m->schedules[n];

	m->subject = psprintf("fire schedule \"%s\"", NameStr(entry->name));
	for (int i = 0; i < MAX_FIRE_STEPS && entry->next <= msgq_now(); i++)
	{
		entry->next = msgq_now() + REFIRE_TIME;
		msgq_run_step(m, fire_step, 0, n);
	}
}

/* Fires what is due, and turns the log of that. */
static void
maintain_schedules(MsgqMaintenance *m)
{
	for (int i = 0; i < m->nschedules; i++)
	{
		if (!m->by_hand && msgq_database_is_wanted(MyDatabaseId))
			break;
		if (m->schedules[i].next <= msgq_now())
			fire_schedule(m, i);
	}
	m->subject = "maintain the log of schedules";
	msgq_run_step(m, fire_log_step, 0, 0);
	m->subject = NULL;
}

/* When a schedule is due next, as was seen last; 0 for never. */
TimestampTz
msgq_maintain_next_fire(const MsgqMaintenance *m)
{
	TimestampTz next = DT_NOEND;

	for (int i = 0; i < m->nschedules; i++)
		next = Min(next, m->schedules[i].next);
	return TIMESTAMP_NOT_FINITE(next) ? 0 : next;
}

/* ---------------------------------------------------------------------------
 * Rounds
 * ---------------------------------------------------------------------------
 */

/* One round over all queues, streams, topics and schedules of the database. */
static void
maintain(MsgqMaintenance *m)
{
	maintain_schedules(m);
	msgq_upkeep_stores(m);
	maintain_inbox(m);
	maintain_streams(m);
	maintain_topics(m);
	msgq_upkeep_queues(m);
}

/*
 * When somebody should look again, if nothing happens until then; 0 for never.
 */
TimestampTz
msgq_maintain_due(MsgqMaintenance *m)
{
	TimestampTz earliest = msgq_maintain_next_fire(m);
	List	   *streams = list_streams(m);
	ListCell   *cell;

	m->stream_due = 0;
	foreach(cell, streams)
		msgq_run_step(m, stream_due_step, lfirst_int(cell), 0);
	list_free(streams);
	if (m->stream_due != 0 && (earliest == 0 || m->stream_due < earliest))
		earliest = m->stream_due;
	return msgq_upkeep_due(m, earliest);
}

/* An advisory lock of this kind, for our database. */
void
msgq_worker_lock_tag(LOCKTAG *tag, int kind)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, msgq_relation_oid("queue"), 0,
						 kind);
}

/*
 * A round, unless somebody does one by hand; when schedules are due is known
 * afterwards in either case.
 */
void
msgq_maintain_round(MsgqMaintenance *m)
{
	LOCKTAG		tag;
	bool		alone;

	read_schedules(m);
	StartTransactionCommand();
	msgq_worker_lock_tag(&tag, MSGQ_ROUND_LOCK);
	alone = LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL;
	CommitTransactionCommand();
	if (!alone)
		return;
	maintain(m);
	(void) LockRelease(&tag, ExclusiveLock, true);
}

/* ---------------------------------------------------------------------------
 * By hand
 * ---------------------------------------------------------------------------
 */

static Jsonb *
round_as_jsonb(const MsgqRound *round)
{
	JsonbParseState *state = NULL;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	msgq_push_number(&state, "turned", round->turned);
	msgq_push_number(&state, "added", round->added);
	msgq_push_number(&state, "drained", round->drained);
	msgq_push_number(&state, "reclaimed", round->reclaimed);
	msgq_push_number(&state, "moved", round->moved);
	msgq_push_number(&state, "refilled", round->refilled);
	msgq_push_number(&state, "rotated", round->rotated);
	msgq_push_number(&state, "emptied", round->emptied);
	msgq_push_number(&state, "audited", round->audited);
	msgq_push_number(&state, "defects", round->defects);
	msgq_push_number(&state, "waiting", round->waiting);
	msgq_push_number(&state, "given_up", round->given_up);
	msgq_push_number(&state, "rolled_back", round->rolled_back);
	msgq_push_number(&state, "fired", round->fired);
	msgq_push_number(&state, "failed", round->failed);
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

static void
check_may_maintain(void)
{
	if (!has_privs_of_role(GetUserId(), msgq_storage_owner()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to maintain queues"),
				 errdetail("Only members of the role that owns the extension may."),
				 errhint("The background worker does the same by itself.")));
	if (IsTransactionBlock() || IsSubTransaction())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("msgq.maintain() cannot run inside a transaction block"),
				 errdetail("It would hold its locks until the end of the transaction."),
				 errhint("Call it in a statement of its own.")));
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("msgq.maintain() needs the isolation level READ COMMITTED"),
				 errhint("SET default_transaction_isolation TO 'read committed'.")));
}

/* maintain() */
PG_FUNCTION_INFO_V1(msgq_maintain);
Datum
msgq_maintain(PG_FUNCTION_ARGS)
{
	MsgqMaintenance m = {.by_hand = true};
	LOCKTAG		tag;
	int			guc_level;

	msgq_begin_change("msgq.maintain()");
	check_may_maintain();
	msgq_worker_lock_tag(&tag, MSGQ_ROUND_LOCK);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	guc_level = NewGUCNestLevel();
	(void) set_config_option("lock_timeout", MSGQ_STEP_LOCK_TIMEOUT, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	read_schedules(&m);
	maintain(&m);
	AtEOXact_GUC(false, guc_level);
	PG_RETURN_JSONB_P(round_as_jsonb(&m.round));
}
