/*
 * worker.c
 *		The background worker: its processes.  What it does is in maintain.c.
 *
 * Processes.  When the library is preloaded, a launcher runs on the shared
 * catalogs.  It starts a worker for each database in which msgq is used, when
 * it is used, and for every database once after the server's start, since
 * there may be segments to reclaim.  When it is not preloaded, backends that
 * use msgq start the worker themselves.  A worker ends when for IDLE_TIME
 * there was nothing to do; so there is one while a database is busy.  As it
 * leaves it says when a schedule is due next, the next message expires, or is to
 * be given up after its last lease, and the launcher starts one then.  One that
 * ends by accident is started again in the same ways, within the launcher's
 * RESTART_TIME or with the next use; it has said before when a schedule is due.
 * Without a launcher nobody would start one for a schedule, so it stays as long as
 * there are any.
 *
 * There is one worker at a time in a database: it holds MSGQ_WORKER_LOCK, and
 * where that is taken, another one ends at once.
 *
 * DROP DATABASE, CREATE DATABASE ... TEMPLATE and ALTER DATABASE wait up to
 * five seconds until nobody is connected, holding a lock on the database.  The
 * worker tries that lock every LOOK_TIME, also while it sleeps, and between
 * the queues of a round, and ends if it is taken.  When the library is
 * preloaded, a hook tells the worker of that database to end beforehand,
 * whatever it is doing.
 *
 * A second worker of each database, the sequencer, gives positions in streams
 * (sequencer.c).  It is a process of its own since entries wait for it, and a
 * round of the other one can take long.  It is started and ended in the same
 * ways.  Who appends wakes it by its latch.
 *
 * There is no worker in recovery, in binary upgrade, or with msgq.worker off.
 *
 * Rights.  The worker connects as the bootstrap superuser, as autovacuum does,
 * and becomes the storage's owner, under SECURITY_RESTRICTED_OPERATION, for
 * all that it does to tables (owner.c).
 *
 * src/worker.c
 */
#include "msgq.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
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
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "maintain.h"
#include "queue.h"
#include "sequencer.h"
#include "shared.h"
#include "testing.h"
#include "worker.h"

/* Without something to do for this long, a worker ends. */
#define IDLE_TIME			(2 * USECS_PER_SEC)

/* It does not end if a schedule is due within this time. */
#define STAY_TIME			(10 * USECS_PER_SEC)

/* How often a worker looks whether its database is wanted. */
#define LOOK_TIME			100 /* milliseconds */

/* Seconds until a launcher that died is started again. */
#define RESTART_TIME		5

/* A backend asks for a worker at most this often, without a launcher. */
#define ASK_TIME			(10 * USECS_PER_SEC)
#define SEQUENCER_ASK_TIME	(USECS_PER_SEC / 5)

/* The same for a sequencer that is told when somebody wants the database. */
#define SEQUENCER_IDLE_TIME	(60 * USECS_PER_SEC)

/* The launcher looks, and starts a worker in a database, at most this often. */
#define START_TIME			USECS_PER_SEC

/* After a start the launcher visits the databases at this pace. */
#define VISIT_TIME			100 /* milliseconds */

/* Is there a worker at all? */
bool		msgq_worker_enabled = true;

/* Milliseconds between rounds, and between notifications (0: none). */
int			msgq_worker_interval = 1000;
int			msgq_notify_interval = 0;

/* Is this process the worker? */
static bool am_worker = false;

/* The entry of our database, once we have used msgq. */
static MsgqDatabase *used_database = NULL;

/* When this backend has asked for a worker, without a launcher. */
static int64 worker_asked_at = 0;

static ProcessUtility_hook_type previous_utility_hook = NULL;
static void utility_hook(PlannedStmt *statement, const char *query,
						 bool read_only_tree, ProcessUtilityContext context,
						 ParamListInfo params, QueryEnvironment *environment,
						 DestReceiver *receiver, QueryCompletion *completion);

PGDLLEXPORT void msgq_launcher_main(Datum arg);
PGDLLEXPORT void msgq_worker_main(Datum arg);
PGDLLEXPORT void msgq_sequencer_main(Datum arg);

/* ---------------------------------------------------------------------------
 * One worker at a time
 * ---------------------------------------------------------------------------
 */

/* For as long as the process lives; kind says which worker it is. */
static bool
lock_worker(int kind)
{
	LOCKTAG		tag;

	msgq_worker_lock_tag(&tag, kind);
	return LockAcquire(&tag, ExclusiveLock, true, true) !=
		LOCKACQUIRE_NOT_AVAIL;
}

/* Does a worker of this kind run in this database? */
static bool
runs(int kind)
{
	LOCKTAG		tag;

	msgq_worker_lock_tag(&tag, kind);
	if (LockAcquire(&tag, ShareLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return true;
	(void) LockRelease(&tag, ShareLock, false);
	return false;
}

/* Does the worker run in this database? */
bool
msgq_worker_runs(void)
{
	return runs(MSGQ_WORKER_LOCK);
}

/* Does the sequencer? */
bool
msgq_sequencer_runs(void)
{
	return runs(MSGQ_SEQUENCER_LOCK);
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
start_worker(Oid database, int kind)
{
	BackgroundWorker worker;

	if (kind == MSGQ_WORKER_LOCK)
		describe_worker(&worker, "msgq worker", "msgq_worker_main");
	else
		describe_worker(&worker, "msgq sequencer", "msgq_sequencer_main");
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

/* Starts a worker of this kind without a launcher, unless we just asked. */
static void
ask_for(int kind, int64 interval, int64 *asked_at)
{
	int64		now = msgq_ticks();

	if (*asked_at != 0 && now < *asked_at + interval)
		return;
	*asked_at = now;
	if (!RecoveryInProgress() && !runs(kind))
		(void) start_worker(MyDatabaseId, kind);
}

/*
 * This backend uses msgq: there should be a worker.  Cheap enough for every
 * call, and never raises an error.
 */
void
msgq_worker_want(void)
{
	MsgqDatabase *entry;

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
	ask_for(MSGQ_WORKER_LOCK, ASK_TIME, &worker_asked_at);
}

/* The same, also if one was asked for just now, which may have left again. */
void
msgq_worker_insist(void)
{
	worker_asked_at = 0;
	msgq_worker_want();
}

/*
 * This backend uses a stream: there should be a sequencer.  As cheap, and never
 * raises an error either.
 */
void
msgq_sequencer_want(void)
{
	static int64 asked_at = 0;
	MsgqDatabase *entry;

	if (!msgq_worker_enabled || IsBinaryUpgrade || am_worker)
		return;
	entry = used_database = msgq_database_get(MyDatabaseId);
	if (entry && pg_atomic_read_u32(&entry->sequencer) != 0)
		return;
	if (entry && msgq_shared_preloaded())
	{
		if (pg_atomic_exchange_u32(&entry->sequencer_wanted, 1) == 0)
			msgq_launcher_wake();
		return;
	}
	ask_for(MSGQ_SEQUENCER_LOCK, SEQUENCER_ASK_TIME, &asked_at);
}

/* There are entries without positions.  After a commit: cannot fail. */
void
msgq_sequencer_wake(void)
{
	uint32		sequencer;

	if (!used_database)
		return;
	pg_memory_barrier();
	sequencer = pg_atomic_read_u32(&used_database->sequencer);
	if (sequencer != 0)
		SetLatch(&ProcGlobal->allProcs[sequencer - 1].procLatch);
	else if (msgq_shared_preloaded() &&
			 pg_atomic_exchange_u32(&used_database->sequencer_wanted, 1) == 0)
		msgq_launcher_wake();
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

/*
 * Starts a worker, unless the database has gone or may be about to.  False if
 * there is no room for one.
 */
static bool
start_if_there(Oid database, MsgqDatabase *entry, int kind)
{
	bool		done = true;

	StartTransactionCommand();
	if (!SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(database)))
	{
		if (entry)
			msgq_database_free(entry);
	}
	else if (!msgq_database_is_wanted(database))
		done = start_worker(database, kind);
	CommitTransactionCommand();
	return done;
}

/* Is there a reason for a worker to run there, and none that does? */
static bool
wants_worker(MsgqDatabase *entry)
{
	uint64		due_at = pg_atomic_read_u64(&entry->due_at);

	return pg_atomic_read_u32(&entry->worker_pid) == 0 &&
		(pg_atomic_read_u32(&entry->wanted) != 0 ||
		 pg_atomic_read_u32(&entry->active) != 0 ||
		 (due_at != 0 && (TimestampTz) due_at <= msgq_now()));
}

/* The same for a sequencer. */
static bool
wants_sequencer(MsgqDatabase *entry)
{
	return pg_atomic_read_u32(&entry->sequencer) == 0 &&
		pg_atomic_read_u32(&entry->sequencer_wanted) != 0;
}

/*
 * Starts a worker of this kind, if it was not done just now.  One that was
 * started takes a moment until it says so; meanwhile all ask for it.
 */
static void
start_if_wanted(MsgqDatabase *entry, int kind, pg_atomic_uint32 *wanted,
				int64 *started_at)
{
	int64		now = msgq_ticks();

	if (*started_at != 0 && now < *started_at + START_TIME)
		return;
	pg_atomic_write_u32(wanted, 0);
	*started_at = now;
	(void) start_if_there(pg_atomic_read_u32(&entry->database), entry, kind);
}

/* Starts workers and sequencers where they are wanted and none runs. */
static void
start_where_wanted(void)
{
	static int64 workers_started_at[MSGQ_MAX_DATABASES];
	static int64 sequencers_started_at[MSGQ_MAX_DATABASES];
	MsgqDatabase *entry;
	int			i = 0;

	while ((entry = msgq_database_next(&i)) != NULL)
	{
		if (wants_worker(entry))
			start_if_wanted(entry, MSGQ_WORKER_LOCK, &entry->wanted,
							&workers_started_at[i - 1]);
		if (wants_sequencer(entry))
			start_if_wanted(entry, MSGQ_SEQUENCER_LOCK,
							&entry->sequencer_wanted,
							&sequencers_started_at[i - 1]);
	}
}

/* There may be segments to be reclaimed, and entries without positions. */
static bool
visit(Oid database)
{
	return start_if_there(database, NULL, MSGQ_WORKER_LOCK) &&
		start_if_there(database, NULL, MSGQ_SEQUENCER_LOCK);
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

/*
 * Tells the worker of such a database to end.  Should the command fail, for
 * want of rights perhaps, it is started again.
 */
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
	uint32		sequencer = entry ? pg_atomic_read_u32(&entry->sequencer_pid) : 0;

	if (worker != 0)
		(void) kill((pid_t) worker, SIGTERM);
	if (sequencer != 0)
		(void) kill((pid_t) sequencer, SIGTERM);
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
			if (unvisited != NIL && visit(linitial_oid(unvisited)))
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
	bool		has_msgq;
	bool		entered;

	StartTransactionCommand();
	has_msgq = OidIsValid(get_extension_oid("msgq", true)) &&
		OidIsValid(msgq_relation_oid("queue"));
	entered = has_msgq && lock_worker(MSGQ_WORKER_LOCK);
	CommitTransactionCommand();
	entry = entered ? msgq_database_get(MyDatabaseId) :
		msgq_database_find(MyDatabaseId);
	if (!entered)
	{
		if (entry && pg_atomic_read_u32(&entry->worker_pid) == 0)
			pg_atomic_write_u32(&entry->active, 0);
		if (entry && !has_msgq)
			pg_atomic_write_u64(&entry->due_at, 0);
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
sleep_until(int64 until)
{
	for (;;)
	{
		int64		now = msgq_ticks();

		if (!msgq_worker_enabled || msgq_database_is_wanted(MyDatabaseId))
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

/* Sleeps until then, or until somebody wakes us; false if it is time to leave. */
static bool
sleep_until_woken(int64 until)
{
	int64		now = msgq_ticks();

	if (!msgq_worker_enabled || msgq_database_is_wanted(MyDatabaseId))
		return false;
	if (until > now)
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Min(LOOK_TIME, TimestampDifferenceMilliseconds(now, until)),
						 msgq_wait_event());
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	reload_if_told();
	return true;
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
	SetConfigOption("lock_timeout", MSGQ_STEP_LOCK_TIMEOUT, PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("search_path", "pg_catalog", PGC_SUSET, PGC_S_OVERRIDE);
}

/* Somebody should come back then, when we have left, if that is not 0. */
static void
tell_when_due(TimestampTz due)
{
	MsgqDatabase *entry = msgq_database_get(MyDatabaseId);

	if (entry)
		pg_atomic_write_u64(&entry->due_at, (uint64) due);
}

/* Is it better to stay, for the sake of schedules? */
static bool
should_stay(const MsgqMaintenance *m)
{
	TimestampTz next = msgq_maintain_next_fire(m);

	return m->nschedules > 0 &&
		(!msgq_shared_preloaded() ||
		 msgq_database_find(MyDatabaseId) == NULL || (next != 0 && next <= msgq_now() + STAY_TIME));
}

/*
 * When to do the next round, after one that began then: earlier than usual if
 * a schedule is due before that.
 */
static int64
next_round_after(const MsgqMaintenance *m, int64 begun)
{
	int64		usual = begun + msgq_worker_interval * INT64CONST(1000);
	TimestampTz fire = msgq_maintain_next_fire(m);
	int64		now = msgq_ticks();

	if (fire == 0)
		return usual;
	/* Schedules go by the clock on the wall. */
	return Min(usual, now + Max(LOOK_TIME * INT64CONST(1000), fire - msgq_now()));
}

/*
 * Rounds until there is nothing to do, or somebody wants us to leave.  Ends
 * of transactions leave the current memory context elsewhere.
 */
static void
work(MsgqMaintenance *m)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "msgq round",
												  ALLOCSET_DEFAULT_SIZES);
	Oid			table = extension_table();
	int64		last_busy = msgq_ticks();
	int64		next_round = 0;
	int64		next_notification = 0;

	for (;;)
	{
		int64		now = msgq_ticks();
		int64		next;

		MemoryContextReset(context);
		MemoryContextSwitchTo(context);
		if (now >= next_round)
		{
			m->busy = was_active();
			if (m->busy)
				m->last_active = now;
			pgstat_report_activity(STATE_RUNNING, "maintaining queues");
			msgq_maintain_round(m);
			if (m->busy)
				last_busy = msgq_ticks();
			/* Should we be killed, this is what the launcher goes by. */
			tell_when_due(msgq_maintain_next_fire(m));
			next_round = next_round_after(m, now);
		}
		if (msgq_notify_interval > 0 && msgq_ticks() >= next_notification)
		{
			next_notification = msgq_ticks();
			if (msgq_maintain_notify(m))
				next_notification += msgq_notify_interval * INT64CONST(1000);
		}
		pgstat_report_stat(true);
		pgstat_report_activity(STATE_IDLE, NULL);

		now = msgq_ticks();
		/* Dropped, or made anew. */
		if (extension_table() != table)
			return;
		if (next_notification <= now && !should_stay(m) &&
			now - last_busy > IDLE_TIME + msgq_worker_interval * INT64CONST(1000))
		{
			msgq_maintain_save(m);
			tell_when_due(msgq_maintain_due(m));
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
	MsgqMaintenance m = {0};

	am_worker = true;
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(arg), InvalidOid, 0);
	pgstat_report_appname("msgq worker");
	pin_settings();
	if (!enter_database())
		return;

	msgq_maintain_remember(&m);
	work(&m);
}

/* ---------------------------------------------------------------------------
 * The sequencer
 * ---------------------------------------------------------------------------
 */

static void
leave_sequencer(MsgqDatabase *entry)
{
	pg_atomic_write_u32(&entry->sequencer, 0);
	pg_atomic_write_u32(&entry->sequencer_pid, 0);
	pg_memory_barrier();
}

/*
 * The process ends, and somebody may have relied on it: the launcher starts
 * another one, unless it was told to end because of the database.
 */
static void
sequencer_exit(int code, Datum entry)
{
	MsgqDatabase *database = (MsgqDatabase *) DatumGetPointer(entry);

	if (pg_atomic_read_u32(&database->sequencer) == 0)
		return;
	leave_sequencer(database);
	pg_atomic_write_u32(&database->sequencer_wanted, 1);
	msgq_launcher_wake();
}

/* We are the sequencer: who appends wakes us from now on. */
static void
enter_sequencer(MsgqDatabase *entry)
{
	if (entry == NULL)
		return;
	pg_atomic_write_u32(&entry->sequencer_pid, MyProcPid);
	pg_atomic_write_u32(&entry->sequencer, msgq_my_process_number() + 1);
	pg_memory_barrier();
}

/* Is this the one sequencer of a database that has msgq? */
static bool
may_sequence(void)
{
	bool		may;

	StartTransactionCommand();
	may = OidIsValid(get_extension_oid("msgq", true)) &&
		OidIsValid(msgq_relation_oid("stream")) &&
		lock_worker(MSGQ_SEQUENCER_LOCK);
	CommitTransactionCommand();
	return may;
}

/*
 * Gives positions until there was nothing to do for a time.  Who appends as we
 * leave may have seen us still, and asked nobody else: so after we have left we
 * look once more.
 */
static void
sequence_until_idle(MsgqDatabase *entry)
{
	int64		idle_time = msgq_shared_preloaded() ?
	SEQUENCER_IDLE_TIME : IDLE_TIME;
	int64		last_busy = msgq_ticks();
	Oid			table = extension_table();

	enter_sequencer(entry);
	while (extension_table() == table)
	{
		int64		next;

		pgstat_report_activity(STATE_RUNNING, "giving positions");
		next = msgq_sequence_round();
		pgstat_report_stat(false);
		pgstat_report_activity(STATE_IDLE, NULL);
		if (next != 0)
			last_busy = msgq_ticks();
		else if (msgq_ticks() - last_busy > idle_time)
		{
			if (entry)
				leave_sequencer(entry);
			if (msgq_sequence_round() == 0)
				return;
			enter_sequencer(entry);
		}
		if (!sleep_until_woken(next != 0 ? next : msgq_ticks() +
							   LOOK_TIME * INT64CONST(1000)))
			return;
	}
}

void
msgq_sequencer_main(Datum arg)
{
	MsgqDatabase *entry;

	am_worker = true;
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(arg), InvalidOid, 0);
	pgstat_report_appname("msgq sequencer");
	pin_settings();
	SetConfigOption("lock_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	if (!may_sequence())
		return;
	entry = msgq_database_get(MyDatabaseId);
	if (entry)
		before_shmem_exit(sequencer_exit, PointerGetDatum(entry));
	sequence_until_idle(entry);
}
