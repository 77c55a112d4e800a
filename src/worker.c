/*
 * worker.c
 *		The background worker, and its work by hand.
 *
 * Processes.  When the library is preloaded, a launcher runs on the shared
 * catalogs.  It starts a worker for each database in which msgq is used, when
 * it is used, and for every database once after the server's start, since
 * there may be segments to reclaim.  When it is not preloaded, backends that
 * use msgq start the worker themselves.  A worker ends when for IDLE_TIME
 * there was nothing to do; so there is one while a database is busy.  One that
 * ends by accident is started again in the same ways, within the launcher's
 * RESTART_TIME or with the next use.
 *
 * There is one worker at a time in a database: it holds WORKER_LOCK, and where
 * that is taken, another one ends at once.  ROUND_LOCK is held for one round,
 * by the worker or by maintain().  They are advisory locks, of a kind that SQL
 * cannot take, since a process that ends releases those and no others.
 *
 * DROP DATABASE, CREATE DATABASE ... TEMPLATE and ALTER DATABASE wait up to
 * five seconds until nobody is connected, holding a lock on the database.  The
 * worker tries that lock every LOOK_TIME, also while it sleeps, and between
 * the queues of a round, and ends if it is taken.  When the library is
 * preloaded, a hook tells the worker of that database to end beforehand,
 * whatever it is doing.
 *
 * There is no worker in recovery, in binary upgrade, or with msgq.worker off.
 *
 * Each step is a transaction of its own, with a lock_timeout, so that locks
 * are held for that step only, and an error in one queue does not stop the
 * others.  By hand, each step is a subtransaction of the statement, and locks
 * are held until its end.
 *
 * Rights.  The worker connects as the bootstrap superuser, as autovacuum does,
 * and becomes the storage's owner, under SECURITY_RESTRICTED_OPERATION, for
 * all that it does to tables (owner.c).
 *
 * src/worker.c
 */
#include "msgq.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "commands/async.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/ps_status.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "owner.h"
#include "ring.h"
#include "segment.h"
#include "shared.h"
#include "stats.h"
#include "testing.h"
#include "worker.h"

/* Without something to do for this long, a worker ends. */
#define IDLE_TIME			(2 * USECS_PER_SEC)

/* How often a worker looks whether its database is wanted. */
#define LOOK_TIME			100 /* milliseconds */

/* Seconds until a launcher that died is started again. */
#define RESTART_TIME		5

/* A backend asks for a worker at most this often, without a launcher. */
#define ASK_TIME			(10 * USECS_PER_SEC)

/* The launcher looks, and starts a worker in a database, at most this often. */
#define START_TIME			USECS_PER_SEC

/* After a start the launcher visits the databases at this pace. */
#define VISIT_TIME			100 /* milliseconds */

/* A queue is counted at most this often, and its totals are saved. */
#define COUNT_TIME			(60 * USECS_PER_SEC)
#define SAVE_TIME			(10 * USECS_PER_SEC)

/* What takes t is done again after COST_FACTOR * t at the earliest. */
#define COST_FACTOR			100

/* Statistics tell of a queue's activity after this time at the latest. */
#define SETTLE_TIME			(5 * USECS_PER_SEC)

/* A segment that is parked is looked at at least this often. */
#define PARKED_TIME			(60 * USECS_PER_SEC)

/* How long a step may wait for a lock, where it waits at all. */
#define LOCK_TIMEOUT_TEXT	"1s"

/* Kinds of advisory locks; SQL's are 1 and 2. */
#define WORKER_LOCK			100
#define ROUND_LOCK			101

/* Is there a worker at all? */
bool		msgq_worker_enabled = true;

/* Milliseconds between rounds, and between notifications (0: none). */
int			msgq_worker_interval = 1000;
int			msgq_notify_interval = 0;

/* Is this process the worker? */
static bool am_worker = false;

/* The entry of our database, once we have used msgq. */
static MsgqDatabase *used_database = NULL;

static ProcessUtility_hook_type previous_utility_hook = NULL;
static void utility_hook(PlannedStmt *statement, const char *query,
						 bool read_only_tree, ProcessUtilityContext context,
						 ParamListInfo params, QueryEnvironment *environment,
						 DestReceiver *receiver, QueryCompletion *completion);

PGDLLEXPORT void msgq_launcher_main(Datum arg);
PGDLLEXPORT void msgq_worker_main(Datum arg);

/* ---------------------------------------------------------------------------
 * Rounds
 * ---------------------------------------------------------------------------
 */

/* What is remembered about a queue or a segment between rounds. */
typedef struct Memory
{
	Oid			relation;		/* hash key: the sequence, or the table */
	TimestampTz next;			/* when to look again: segments, and queues
								 * without a slot */
	int64		interval;
	TimestampTz looked_at;		/* segment */
	uint64		activity;		/* what the queue's counters were */
	TimestampTz changed_at;		/* and when they were found changed */
	TimestampTz next_count;		/* when its cost allows to count again */
	TimestampTz next_save;
} Memory;

typedef struct Maintenance
{
	bool		by_hand;
	HTAB	   *memory;			/* NULL by hand: everything is looked at */
	MsgqRound	round;
	TimestampTz last_active;	/* when the database was last found so */
	bool		busy;			/* something was done, or is to be done soon */
	bool		leaving;		/* for the last time */
} Maintenance;

/* A step: something that is done to a queue, or to one of its segments. */
typedef void (*Step) (Maintenance *m, int32 queue_id, int n);

static Memory *
remember(Maintenance *m, Oid relation)
{
	Memory	   *memory;
	bool		found;

	memory = hash_search(m->memory, &relation, HASH_ENTER, &found);
	if (!found)
	{
		memset(memory, 0, sizeof(Memory));
		memory->relation = relation;
	}
	return memory;
}

static void
begin_step(Maintenance *m)
{
	if (m->by_hand)
	{
		BeginInternalSubTransaction(NULL);
		return;
	}
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
}

static void
end_step(Maintenance *m, MemoryContext context, ResourceOwner owner)
{
	if (m->by_hand)
	{
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		return;
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
}

/* Reports the error as a warning, and undoes the step. */
static void
fail_step(Maintenance *m, int32 queue_id, MemoryContext context,
		  ResourceOwner owner)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	FlushErrorState();
	if (m->by_hand)
	{
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		/* A cancel is meant for the statement. */
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
			ReThrowError(error);
	}
	else
	{
		HOLD_INTERRUPTS();
		AbortCurrentTransaction();
		RESUME_INTERRUPTS();
		MemoryContextSwitchTo(context);
	}
	m->round.failed++;
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("could not maintain the queue with number %d: %s",
					queue_id, error->message)));
	FreeErrorData(error);
}

/* Runs a step so that its failure is its own. */
static void
run_step(Maintenance *m, Step step, int32 queue_id, int n)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	CHECK_FOR_INTERRUPTS();
	PG_TRY();
	{
		begin_step(m);
		step(m, queue_id, n);
		end_step(m, context, owner);
	}
	PG_CATCH();
	{
		fail_step(m, queue_id, context, owner);
	}
	PG_END_TRY();
}

static void
turn_step(Maintenance *m, int32 queue_id, int n)
{
	MsgqRing   *ring = msgq_ring_read(queue_id);

	if (ring && msgq_ring_turn(ring, &m->round))
		m->busy = true;
}

static const MsgqRingSegment *
find_segment(const MsgqRing *ring, int n)
{
	for (int i = 0; ring && i < ring->nsegments; i++)
	{
		if (ring->segments[i].n == n)
			return &ring->segments[i];
	}
	return NULL;
}

/*
 * One look costs a scan of the segment.  So it is taken again after a time
 * that is long compared with that, and parked segments rest.
 */
static void
set_next_look(Memory *memory, int64 cost, bool parked)
{
	int64		interval = Max(msgq_worker_interval * INT64CONST(1000),
							   cost * COST_FACTOR / 5);

	if (parked)
		interval = Max(interval, Min(2 * memory->interval, PARKED_TIME));
	memory->interval = interval;
	memory->next = GetCurrentTimestamp() + interval;
}

static void
drain_step(Maintenance *m, int32 queue_id, int n)
{
	MsgqRing   *ring = msgq_ring_read(queue_id);
	const MsgqRingSegment *segment = find_segment(ring, n);
	TimestampTz begun = GetCurrentTimestamp();
	Memory	   *memory;
	int64		waiting;
	bool		parked;

	if (segment == NULL || segment->state != 'd')
		return;
	memory = m->memory ? remember(m, segment->table) : NULL;
	if (memory && begun < memory->next)
	{
		/* What is in it is for consumers to take; then it owes a look. */
		m->busy |= memory->looked_at < m->last_active;
		return;
	}
	waiting = m->round.waiting;
	if (msgq_ring_drain(ring, segment, &m->round, &parked) ||
		m->round.waiting > waiting)
		m->busy = true;
	else if (memory)
		set_next_look(memory, GetCurrentTimestamp() - begun, parked);
	if (memory)
		memory->looked_at = begun;
}

static void
reclaim_step(Maintenance *m, int32 queue_id, int n)
{
	MsgqRing   *ring = msgq_ring_read(queue_id);
	const MsgqRingSegment *segment = find_segment(ring, n);
	TimestampTz begun = GetCurrentTimestamp();
	Memory	   *memory;

	if (segment == NULL || segment->state != 'D')
		return;
	m->busy = true;
	memory = m->memory ? remember(m, segment->table) : NULL;
	if (memory && segment->moved && begun < memory->next)
		return;
	if (!msgq_ring_reclaim(ring, segment, &m->round) && memory)
		set_next_look(memory, GetCurrentTimestamp() - begun, false);
}

static bool
is_complete(const MsgqQueue *queue)
{
	for (int i = 0; i < queue->nsegments; i++)
	{
		if (!OidIsValid(queue->segments[i]))
			return false;
	}
	return OidIsValid(queue->sequence) && OidIsValid(queue->handle);
}

/* The queue of this number; NULL if it has gone, or is locked. */
static MsgqQueue *
find_queue(int32 queue_id)
{
	MsgqRing   *ring = msgq_ring_read(queue_id);
	MsgqQueue  *queue = ring ? msgq_queue_find(ring->name) : NULL;

	if (queue == NULL || !is_complete(queue) ||
		!ConditionalLockRelationOid(queue->segments[0], AccessShareLock) ||
		!msgq_queue_lock_for_reading(queue))
		return NULL;
	return queue;
}

static uint64
activity_of(const MsgqSlot *slot)
{
	uint64		sum = 0;

	for (int i = 0; i < MSGQ_NCOUNTERS; i++)
		sum += pg_atomic_read_u64((pg_atomic_uint64 *) &slot->counters[i]);
	return sum + pg_atomic_read_u64((pg_atomic_uint64 *) &slot->prepared);
}

/* Is it time to scan the queue, and is there a reason to? */
static bool
wants_count(const MsgqSlot *slot, const Memory *memory, TimestampTz now)
{
	MsgqSlot   *counted = (MsgqSlot *) slot;
	TimestampTz last = (TimestampTz) pg_atomic_read_u64(&counted->counted_at);

	if (memory == NULL || last == 0)
		return true;
	return now >= memory->next_count && now >= last + COUNT_TIME &&
		activity_of(slot) != pg_atomic_read_u64(&counted->counted_activity);
}

/* Counts and audits: each costs a scan of the queue. */
static void
count_step(Maintenance *m, int32 queue_id, int n)
{
	MsgqQueue  *queue = find_queue(queue_id);
	MsgqSlot   *slot = queue ? msgq_slot_get(queue) : NULL;
	Memory	   *memory = queue && m->memory ? remember(m, queue->sequence) : NULL;
	TimestampTz begun = GetCurrentTimestamp();
	MsgqSpi		before;

	if (slot == NULL || !wants_count(slot, memory, begun) ||
		!msgq_stats_can_count(queue))
		return;
	pg_atomic_write_u64(&slot->counted_activity, activity_of(slot));
	msgq_become_owner(&before);
	msgq_stats_recount(queue, slot);
	msgq_ring_audit(queue, &m->round);
	msgq_become_caller(&before);
	pg_atomic_write_u64(&slot->counted_at, begun);
	if (memory)
		memory->next_count = begun +
			COST_FACTOR * (GetCurrentTimestamp() - begun);
}

/* Saves the totals, now and then. */
static void
save_step(Maintenance *m, int32 queue_id, int n)
{
	MsgqQueue  *queue = find_queue(queue_id);
	MsgqSlot   *slot = queue ? msgq_slot_get(queue) : NULL;
	Memory	   *memory = queue && m->memory ? remember(m, queue->sequence) : NULL;
	TimestampTz now = GetCurrentTimestamp();

	if (slot == NULL || (memory && !m->leaving && now < memory->next_save))
		return;
	msgq_stats_save(slot, queue_id);
	if (memory)
		memory->next_save = now + SAVE_TIME;
}

static void
notify_step(Maintenance *m, int32 queue_id, int n)
{
	Async_Notify(psprintf("msgq_%d", queue_id), "");
}

/* Something to be looked at: a queue, or one of its segments. */
typedef struct Work
{
	int32		queue_id;
	int			n;				/* 0: the queue itself; then also: */
	Oid			sequence;
	TimestampTz created_at;
} Work;

/* All queues, and all segments that may be reclaimed, as a palloc'd array. */
static Work *
list_work(Maintenance *m, int *nwork)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	Work	   *work;
	MsgqSpi		spi;
	bool		is_null;

	begin_step(m);
	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run("SELECT id, 0, to_regclass(format('msgq.q%%s_id', id))::oid, created_at "
				 "FROM msgq.queue UNION ALL "
				 "SELECT queue_id, n, 0, '-infinity' FROM msgq.segment "
				 "WHERE state IN ('draining', 'drained') ORDER BY 1, 2");
	*nwork = SPI_processed;
	work = MemoryContextAlloc(context, sizeof(Work) * (*nwork + 1));
	for (int i = 0; i < *nwork; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	descriptor = SPI_tuptable->tupdesc;

		work[i].queue_id = DatumGetInt32(SPI_getbinval(row, descriptor, 1, &is_null));
		work[i].n = DatumGetInt32(SPI_getbinval(row, descriptor, 2, &is_null));
		work[i].sequence = DatumGetObjectId(SPI_getbinval(row, descriptor, 3, &is_null));
		work[i].created_at = DatumGetTimestampTz(SPI_getbinval(row, descriptor, 4, &is_null));
	}
	msgq_spi_end(&spi);
	end_step(m, context, owner);
	return work;
}

/*
 * Has something happened to the queue since the last round?  Where nobody
 * counts, it may have.
 */
static bool
is_active(Maintenance *m, const Work *work)
{
	MsgqSlot   *slot = msgq_slot_find(work->sequence, work->created_at);
	Memory	   *memory;
	uint64		activity;

	if (m->memory == NULL)
		return true;
	memory = remember(m, work->sequence);
	if (slot == NULL)
		return GetCurrentTimestamp() >= memory->next;
	activity = activity_of(slot);
	if (activity != memory->activity)
		memory->changed_at = GetCurrentTimestamp();
	memory->activity = activity;
	return GetCurrentTimestamp() - memory->changed_at < SETTLE_TIME;
}

static void
maintain_queue(Maintenance *m, const Work *work)
{
	TimestampTz begun = GetCurrentTimestamp();
	int64		waiting = m->round.waiting;
	Memory	   *memory;

	if (!is_active(m, work))
		return;
	run_step(m, turn_step, work->queue_id, 0);
	waiting = m->round.waiting - waiting;
	run_step(m, count_step, work->queue_id, 0);
	run_step(m, save_step, work->queue_id, 0);
	if (m->memory == NULL)
		return;
	memory = remember(m, work->sequence);
	memory->next = begun + COST_FACTOR * (GetCurrentTimestamp() - begun);
	if (waiting > 0)
	{
		/* It should turn and could not: that is to be tried again. */
		memory->changed_at = GetCurrentTimestamp();
		m->busy = true;
	}
}

/* Does somebody wait until we are gone, to drop or to copy the database? */
static bool
database_is_wanted(void)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, MyDatabaseId, 0);
	if (LockAcquire(&tag, RowExclusiveLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
		return true;
	(void) LockRelease(&tag, RowExclusiveLock, true);
	return false;
}

/* One round over all queues of the database. */
static void
maintain(Maintenance *m)
{
	int			n;
	Work	   *work = list_work(m, &n);

	for (int i = 0; i < n; i++)
	{
		if (!m->by_hand && database_is_wanted())
			break;
		if (work[i].n == 0)
			maintain_queue(m, &work[i]);
		else
		{
			run_step(m, drain_step, work[i].queue_id, work[i].n);
			run_step(m, reclaim_step, work[i].queue_id, work[i].n);
		}
	}
	pfree(work);
}

/* Before the worker leaves. */
static void
save_all(Maintenance *m)
{
	int			n;
	Work	   *work = list_work(m, &n);

	m->leaving = true;
	for (int i = 0; i < n; i++)
	{
		if (work[i].n == 0 &&
			msgq_slot_find(work[i].sequence, work[i].created_at))
			run_step(m, save_step, work[i].queue_id, 0);
	}
	pfree(work);
}

/*
 * Tells those who LISTEN that something was sent since they were told last;
 * false if nothing was.
 */
static bool
notify(Maintenance *m)
{
	int			n;
	Work	   *work = list_work(m, &n);
	bool		told = false;

	for (int i = 0; i < n; i++)
	{
		MsgqSlot   *slot = work[i].n != 0 ? NULL :
		msgq_slot_find(work[i].sequence, work[i].created_at);
		uint64		sent;

		if (slot == NULL)
			continue;
		sent = pg_atomic_read_u64(&slot->counters[MSGQ_SENT]);
		if (sent == pg_atomic_exchange_u64(&slot->notified, sent))
			continue;
		run_step(m, notify_step, work[i].queue_id, 0);
		told = true;
	}
	pfree(work);
	return told;
}

/* ---------------------------------------------------------------------------
 * One at a time
 * ---------------------------------------------------------------------------
 */

static void
worker_lock_tag(LOCKTAG *tag, int kind)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, msgq_relation_oid("queue"), 0,
						 kind);
}

/* For as long as the process lives. */
static bool
lock_worker(void)
{
	LOCKTAG		tag;

	worker_lock_tag(&tag, WORKER_LOCK);
	return LockAcquire(&tag, ExclusiveLock, true, true) !=
		LOCKACQUIRE_NOT_AVAIL;
}

/* Does a worker run in this database? */
bool
msgq_worker_runs(void)
{
	LOCKTAG		tag;

	worker_lock_tag(&tag, WORKER_LOCK);
	if (LockAcquire(&tag, ShareLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return true;
	(void) LockRelease(&tag, ShareLock, false);
	return false;
}

/* ---------------------------------------------------------------------------
 * By hand
 * ---------------------------------------------------------------------------
 */

static void
push_number(JsonbParseState **state, const char *key, int64 number)
{
	JsonbValue	value;

	value.type = jbvString;
	value.val.string.val = (char *) key;
	value.val.string.len = strlen(key);
	pushJsonbValue(state, WJB_KEY, &value);
	value.type = jbvNumeric;
	value.val.numeric = int64_to_numeric(number);
	pushJsonbValue(state, WJB_VALUE, &value);
}

static Jsonb *
round_as_jsonb(const MsgqRound *round)
{
	JsonbParseState *state = NULL;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	push_number(&state, "turned", round->turned);
	push_number(&state, "added", round->added);
	push_number(&state, "drained", round->drained);
	push_number(&state, "reclaimed", round->reclaimed);
	push_number(&state, "moved", round->moved);
	push_number(&state, "refilled", round->refilled);
	push_number(&state, "audited", round->audited);
	push_number(&state, "defects", round->defects);
	push_number(&state, "waiting", round->waiting);
	push_number(&state, "failed", round->failed);
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
	Maintenance m = {.by_hand = true};
	LOCKTAG		tag;
	int			guc_level;

	msgq_begin_change("msgq.maintain()");
	check_may_maintain();
	worker_lock_tag(&tag, ROUND_LOCK);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	guc_level = NewGUCNestLevel();
	(void) set_config_option("lock_timeout", LOCK_TIMEOUT_TEXT, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	maintain(&m);
	AtEOXact_GUC(false, guc_level);
	PG_RETURN_JSONB_P(round_as_jsonb(&m.round));
}

/* ---------------------------------------------------------------------------
 * Processes
 * ---------------------------------------------------------------------------
 */

static void
describe_worker(BackgroundWorker *worker, const char *name,
				const char *function)
{
	memset(worker, 0, sizeof(BackgroundWorker));
	worker->bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker->bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker->bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker->bgw_library_name, "msgq", sizeof(worker->bgw_library_name));
	strlcpy(worker->bgw_function_name, function,
			sizeof(worker->bgw_function_name));
	strlcpy(worker->bgw_name, name, sizeof(worker->bgw_name));
	strlcpy(worker->bgw_type, name, sizeof(worker->bgw_type));
}

/* Asks the postmaster for a worker; false if it has no room for one. */
static bool
start_worker(Oid database)
{
	BackgroundWorker worker;

	describe_worker(&worker, "msgq worker", "msgq_worker_main");
	worker.bgw_main_arg = ObjectIdGetDatum(database);
	return RegisterDynamicBackgroundWorker(&worker, NULL);
}

/* Once per process, from _PG_init. */
void
msgq_worker_init(void)
{
	BackgroundWorker worker;

	DefineCustomBoolVariable("msgq.worker",
							 "Runs a background worker where msgq is used.",
							 NULL,
							 &msgq_worker_enabled,
							 true,
							 PGC_SIGHUP,
							 0,
							 NULL,	/* check hook */
							 NULL,	/* assign hook */
							 NULL); /* show hook */
	DefineCustomIntVariable("msgq.worker_interval",
							"Time between two rounds of the background worker.",
							NULL,
							&msgq_worker_interval,
							1000,
							10,
							3600 * 1000,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL,	/* check hook */
							NULL,	/* assign hook */
							NULL);	/* show hook */
	DefineCustomIntVariable("msgq.notify_interval",
							"Shortest time between two notifications of a queue's channel.",
							"The background worker notifies channel msgq_<id> of each queue to which messages were sent. Zero turns this off.",
							&msgq_notify_interval,
							0,
							0,
							3600 * 1000,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL,	/* check hook */
							NULL,	/* assign hook */
							NULL);	/* show hook */
	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;
	previous_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = utility_hook;
	describe_worker(&worker, "msgq launcher", "msgq_launcher_main");
	worker.bgw_restart_time = RESTART_TIME;
	RegisterBackgroundWorker(&worker);
}

/* May be called after a commit: cannot fail. */
static void
tell_launcher(MsgqDatabase *entry)
{
	if (pg_atomic_read_u32(&entry->active) == 0)
		pg_atomic_write_u32(&entry->active, 1);
	if (pg_atomic_read_u32(&entry->worker_pid) == 0 &&
		pg_atomic_exchange_u32(&entry->wanted, 1) == 0)
		msgq_launcher_wake();
}

/*
 * A transaction that used msgq is over: what it did is for the worker to see.
 * It may have been open for longer than a worker waits.  Cannot fail.
 */
void
msgq_worker_remind(void)
{
	if (!used_database || am_worker)
		return;
	if (msgq_shared_preloaded())
		tell_launcher(used_database);
	else if (pg_atomic_read_u32(&used_database->active) == 0)
		pg_atomic_write_u32(&used_database->active, 1);
}

/*
 * This backend uses msgq: there should be a worker.  Cheap enough for every
 * call, and never raises an error.
 */
void
msgq_worker_want(void)
{
	static TimestampTz asked_at = 0;
	MsgqDatabase *entry;
	TimestampTz now;

	if (!msgq_worker_enabled || IsBinaryUpgrade || am_worker)
		return;
	entry = used_database = msgq_database_get(MyDatabaseId);
	if (entry && msgq_shared_preloaded())
	{
		tell_launcher(entry);
		return;
	}
	if (entry)
	{
		if (pg_atomic_read_u32(&entry->active) == 0)
			pg_atomic_write_u32(&entry->active, 1);
		if (pg_atomic_read_u32(&entry->worker_pid) != 0)
			return;
	}
	now = GetCurrentTimestamp();
	if (asked_at <= now && now < asked_at + ASK_TIME)
		return;
	asked_at = now;
	if (!RecoveryInProgress() && !msgq_worker_runs())
		(void) start_worker(MyDatabaseId);
}

/* ---------------------------------------------------------------------------
 * The launcher
 * ---------------------------------------------------------------------------
 */

/* The databases that one can connect to, in the current memory context. */
static List *
list_databases(void)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *databases = NIL;
	Relation	table;
	TableScanDesc scan;
	HeapTuple	row;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	table = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(table, 0, NULL);
	MemoryContextSwitchTo(context);
	while (HeapTupleIsValid(row = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(row);

		if (database->datallowconn && !database->datistemplate)
			databases = lappend_oid(databases, database->oid);
	}
	table_endscan(scan);
	table_close(table, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return databases;
}

/* Is somebody about to drop the database, or to copy it? */
static bool
is_locked(Oid database)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, database, 0);
	if (LockAcquire(&tag, RowExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return true;
	(void) LockRelease(&tag, RowExclusiveLock, false);
	return false;
}

/*
 * Starts a worker, unless the database has gone or may be about to.  False if
 * there is no room for one.
 */
static bool
start_if_there(Oid database, MsgqDatabase *entry)
{
	bool		done = true;

	StartTransactionCommand();
	if (!SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(database)))
	{
		if (entry)
			msgq_database_free(entry);
	}
	else if (!is_locked(database))
		done = start_worker(database);
	CommitTransactionCommand();
	return done;
}

/*
 * Starts workers where they are wanted and none runs.  One that was started
 * takes a moment until it says so; meanwhile all ask for it.
 */
static void
start_where_wanted(void)
{
	static TimestampTz started_at[MSGQ_MAX_DATABASES];
	TimestampTz now = GetCurrentTimestamp();
	MsgqDatabase *entry;
	int			i = 0;

	while ((entry = msgq_database_next(&i)) != NULL)
	{
		TimestampTz *started = &started_at[i - 1];

		if (pg_atomic_read_u32(&entry->worker_pid) != 0 ||
			(pg_atomic_read_u32(&entry->wanted) == 0 &&
			 pg_atomic_read_u32(&entry->active) == 0) ||
			(*started <= now && now - *started < START_TIME))
			continue;
		pg_atomic_write_u32(&entry->wanted, 0);
		*started = now;
		(void) start_if_there(pg_atomic_read_u32(&entry->database), entry);
	}
}

/* The database that a command needs for itself alone, or NULL. */
static const char *
wanted_database(Node *command)
{
	ListCell   *cell;

	switch (nodeTag(command))
	{
		case T_DropdbStmt:
			return ((DropdbStmt *) command)->dbname;
		case T_AlterDatabaseStmt:
			return ((AlterDatabaseStmt *) command)->dbname;
		case T_RenameStmt:
			if (((RenameStmt *) command)->renameType == OBJECT_DATABASE)
				return ((RenameStmt *) command)->subname;
			return NULL;
		case T_CreatedbStmt:
			foreach(cell, ((CreatedbStmt *) command)->options)
			{
				DefElem    *option = lfirst_node(DefElem, cell);

				if (strcmp(option->defname, "template") == 0 && option->arg)
					return defGetString(option);
			}
			return NULL;
		default:
			return NULL;
	}
}

/* Tells the worker of such a database to end. */
static void
utility_hook(PlannedStmt *statement, const char *query, bool read_only_tree,
			 ProcessUtilityContext context, ParamListInfo params,
			 QueryEnvironment *environment, DestReceiver *receiver,
			 QueryCompletion *completion)
{
	const char *name = wanted_database(statement->utilityStmt);
	Oid			database = name ? get_database_oid(name, true) : InvalidOid;
	MsgqDatabase *entry = OidIsValid(database) ?
	msgq_database_find(database) : NULL;
	uint32		worker = entry ? pg_atomic_read_u32(&entry->worker_pid) : 0;

	if (worker != 0)
		(void) kill((pid_t) worker, SIGTERM);
	if (previous_utility_hook)
		previous_utility_hook(statement, query, read_only_tree, context, params,
							  environment, receiver, completion);
	else
		standard_ProcessUtility(statement, query, read_only_tree, context,
								params, environment, receiver, completion);
}

static void
reload_if_told(void)
{
	if (!ConfigReloadPending)
		return;
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
}

void
msgq_launcher_main(Datum arg)
{
	List	   *unvisited;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	pgstat_report_appname("msgq launcher");
	msgq_launcher_register();

	MemoryContextSwitchTo(TopMemoryContext);
	unvisited = list_databases();
	for (;;)
	{
		if (msgq_worker_enabled)
		{
			start_where_wanted();
			/* One at a time: others want processes, too. */
			if (unvisited != NIL && start_if_there(linitial_oid(unvisited), NULL))
				unvisited = list_delete_first(unvisited);
		}
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 unvisited != NIL ? VISIT_TIME : START_TIME / 1000,
						 msgq_wait_event());
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		reload_if_told();
		MemoryContextSwitchTo(TopMemoryContext);
	}
}

/* ---------------------------------------------------------------------------
 * The worker
 * ---------------------------------------------------------------------------
 */

static void
leave_database(int code, Datum entry)
{
	pg_atomic_write_u32(&((MsgqDatabase *) DatumGetPointer(entry))->worker_pid, 0);
}

/* Is this the one worker of a database that has msgq? */
static bool
enter_database(void)
{
	MsgqDatabase *entry;
	bool		entered;

	StartTransactionCommand();
	entered = OidIsValid(get_extension_oid("msgq", true)) &&
		OidIsValid(msgq_relation_oid("queue")) && lock_worker();
	CommitTransactionCommand();
	entry = entered ? msgq_database_get(MyDatabaseId) :
		msgq_database_find(MyDatabaseId);
	if (!entered)
	{
		if (entry && pg_atomic_read_u32(&entry->worker_pid) == 0)
			pg_atomic_write_u32(&entry->active, 0);
		return false;
	}
	if (entry)
	{
		pg_atomic_write_u32(&entry->worker_pid, MyProcPid);
		before_shmem_exit(leave_database, PointerGetDatum(entry));
	}
	return true;
}

/* Was msgq used here since we asked last? */
static bool
was_active(void)
{
	MsgqDatabase *entry = msgq_database_get(MyDatabaseId);

	return entry && pg_atomic_exchange_u32(&entry->active, 0) != 0;
}

/* msgq.queue of the extension that there is; InvalidOid if there is none. */
static Oid
extension_table(void)
{
	Oid			table = InvalidOid;

	StartTransactionCommand();
	if (OidIsValid(get_extension_oid("msgq", true)))
		table = msgq_relation_oid("queue");
	CommitTransactionCommand();
	return table;
}

/* Sleeps until then; false if it is time to leave. */
static bool
sleep_until(TimestampTz until)
{
	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();

		if (!msgq_worker_enabled || database_is_wanted())
			return false;
		if (now >= until)
			return true;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Min(LOOK_TIME, TimestampDifferenceMilliseconds(now, until)),
						 msgq_wait_event());
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		reload_if_told();
	}
}

/* What happens in a database must not depend on its settings. */
static void
pin_settings(void)
{
	SetConfigOption("role", "none", PGC_SUSET, PGC_S_OVERRIDE);
	if (GetConfigOption("transaction_timeout", true, false))
		SetConfigOption("transaction_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_isolation", "read committed",
					PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("default_transaction_read_only", "off",
					PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("synchronous_commit", "on", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("statement_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("lock_timeout", LOCK_TIMEOUT_TEXT, PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("search_path", "pg_catalog", PGC_SUSET, PGC_S_OVERRIDE);
}

/* A round, unless somebody does one by hand. */
static void
maintain_alone(Maintenance *m)
{
	LOCKTAG		tag;
	bool		alone;

	StartTransactionCommand();
	worker_lock_tag(&tag, ROUND_LOCK);
	alone = LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL;
	CommitTransactionCommand();
	if (!alone)
		return;
	maintain(m);
	(void) LockRelease(&tag, ExclusiveLock, true);
}

/*
 * Rounds until there is nothing to do, or somebody wants us to leave.  Ends
 * of transactions leave the current memory context elsewhere.
 */
static void
work(Maintenance *m)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "msgq round",
												  ALLOCSET_DEFAULT_SIZES);
	Oid			table = extension_table();
	TimestampTz last_busy = GetCurrentTimestamp();
	TimestampTz next_round = 0;
	TimestampTz next_notification = 0;

	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();
		TimestampTz next;

		MemoryContextReset(context);
		MemoryContextSwitchTo(context);
		if (now >= next_round)
		{
			m->busy = was_active();
			if (m->busy)
				m->last_active = now;
			pgstat_report_activity(STATE_RUNNING, "maintaining queues");
			maintain_alone(m);
			if (m->busy)
				last_busy = GetCurrentTimestamp();
			next_round = now + msgq_worker_interval * INT64CONST(1000);
		}
		if (msgq_notify_interval > 0 && GetCurrentTimestamp() >= next_notification)
		{
			next_notification = GetCurrentTimestamp();
			if (notify(m))
				next_notification += msgq_notify_interval * INT64CONST(1000);
		}
		pgstat_report_stat(true);
		pgstat_report_activity(STATE_IDLE, NULL);

		now = GetCurrentTimestamp();
		/* Dropped, or made anew. */
		if (extension_table() != table)
			return;
		if (next_notification <= now && now - last_busy > IDLE_TIME + msgq_worker_interval * INT64CONST(1000))
		{
			save_all(m);
			return;
		}
		next = next_round;
		if (msgq_notify_interval > 0)
			next = Min(next, Max(now + LOOK_TIME * INT64CONST(1000) / 2,
								 next_notification));
		if (!sleep_until(next))
			return;
	}
}

void
msgq_worker_main(Datum arg)
{
	HASHCTL		control = {
		.keysize = sizeof(Oid),
		.entrysize = sizeof(Memory),
	};
	Maintenance m = {0};

	am_worker = true;
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(arg), InvalidOid, 0);
	pgstat_report_appname("msgq worker");
	pin_settings();
	if (!enter_database())
		return;

	m.memory = hash_create("msgq worker", 64, &control, HASH_ELEM | HASH_BLOBS);
	work(&m);
}
