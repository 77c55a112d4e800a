/*
 * shared.c
 *		The home of the state that all backends share.
 *
 * What is shared: frontiers, so that a dead row is walked over once and not
 * once by each backend; the ids that senders are about to use; who waits for
 * messages (wakeup.c); counters (stats.c); and failed deliveries of which no
 * row tells (poison.c).  All of it is a hint: it is empty when the server
 * starts, and whatever it says, the rows are the truth.
 *
 * There is one home for the lifetime of a server:
 *
 *	- the main shared memory, if the library was preloaded,
 *	- a segment of the registry for dynamic shared memory, from 17 on,
 *	- none, before 17 without preloading: then frontiers lie in the backends,
 *	  senders take a lock (storage.c), waiting is polling, and counters are
 *	  not kept.
 *
 * Backends that disagree about the home would lose messages: one would
 * publish the ids that it is about to use where the other one does not look.
 * So the layout has a version, and a library that does not fit what it finds
 * raises an error.
 *
 * Layout.  A header, one MsgqProcess for each process, and a fixed number of
 * slots, one for each queue or stream that is used.  A queue that finds all slots taken
 * works as without shared memory, but for the ids about to be used, which
 * are published by process and not by slot: so that it does not matter who
 * has found a slot and who has not.
 *
 * Locks, in the order in which they are taken, all short:
 *
 *	shared->lock	keys of slots, floors of counters; exclusively to assign or
 *					free a slot
 *	slot->lock		frontiers and notes of one queue
 *
 * Everything else is atomic.  None of these is held when a heavyweight lock
 * is taken.  A slot is freed only when its queue is gone, that is, when
 * nobody can hold a lock on its tables.
 *
 * Ids about to be used.  A sender publishes a lower bound of the ids that he
 * will take, then takes them, stores the rows and their index entries, and
 * withdraws the bound.  The bound is one above an id that was taken before
 * (highest_id of the slot), so what he takes is not below it.  A walker who
 * wants to know how far the index is complete reads that same highest_id
 * first, and the bounds of all processes after it: the ids up to it that are
 * below all bounds are in the index, or never will be.  For, if such an id is
 * still under way, its sender published a bound not above it before he took
 * it, which was before the walker read highest_id, and has not withdrawn it.
 * Whatever is published after the walker has read highest_id is for ids
 * above.  Both sides put a full barrier between the two steps.
 *
 * src/shared.c
 */
#include "msgq.h"

#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/syscache.h"

#include "segment.h"
#include "shared.h"
#include "testing.h"

/* "msgq", and a number to be raised with every change of the layout. */
#define SHARED_MAGIC		0x6d736771
#define SHARED_LAYOUT		7

#define DEFAULT_QUEUES		256

/* A sender in a sender's index expression: any id of any queue. */
#define ANY_QUEUE			PG_UINT64_MAX

/* What one process is about to append; on a cache line of its own. */
typedef struct MsgqProcess
{
	pg_atomic_uint64 queue;		/* 0: nothing */
	pg_atomic_uint64 bound;
	char		padding[PG_CACHE_LINE_SIZE - 2 * sizeof(pg_atomic_uint64)];
} MsgqProcess;

typedef struct MsgqShared
{
	uint32		magic;
	uint32		layout;
	int			nslots;
	int			nprocesses;
	int			tranche;
	LWLock		lock;
	pg_atomic_uint64 woken;
	pg_atomic_uint64 polled;
	pg_atomic_uint64 audit_found;
	pg_atomic_uint32 launcher;	/* its process number + 1, or 0 */
	MsgqDatabase databases[MSGQ_MAX_DATABASES];
} MsgqShared;

/* How many queues can share their state: a setting if preloaded. */
int			msgq_shared_queues = DEFAULT_QUEUES;

static MsgqShared *shared = NULL;
static bool preloaded = false;
static int	append_nest_level = 0;	/* 0: nothing is published */

static shmem_request_hook_type previous_request_hook = NULL;
static shmem_startup_hook_type previous_startup_hook = NULL;

/* ---------------------------------------------------------------------------
 * Layout
 * ---------------------------------------------------------------------------
 */

/* Processes that can have a PGPROC and send or wait. */
static int
count_processes(void)
{
	return MaxBackends + NUM_AUXILIARY_PROCS;
}

static int
words_for(int nprocesses)
{
	return (nprocesses + 63) / 64;
}

static Size
slot_size(int nprocesses)
{
	return MAXALIGN(offsetof(MsgqSlot, waiters) +
					sizeof(pg_atomic_uint64) * words_for(nprocesses));
}

static Size
slots_offset(int nprocesses)
{
	return CACHELINEALIGN(sizeof(MsgqShared)) +
		sizeof(MsgqProcess) * nprocesses;
}

static Size
shared_size(void)
{
	return slots_offset(count_processes()) +
		slot_size(count_processes()) * msgq_shared_queues;
}

static MsgqProcess *
process(int n)
{
	return (MsgqProcess *) ((char *) shared +
							CACHELINEALIGN(sizeof(MsgqShared))) + n;
}

static MsgqSlot *
slot_number(const MsgqShared *home, int n)
{
	return (MsgqSlot *) ((char *) home + slots_offset(home->nprocesses) +
						 slot_size(home->nprocesses) * n);
}

static void
clear_slot(MsgqSlot *slot)
{
	memset(&slot->key, 0, sizeof(slot->key));
	for (int i = 0; i < MSGQ_SLOT_SEGMENTS; i++)
		slot->segments[i].segment = InvalidOid;
	pg_atomic_write_u64(&slot->highest_id, 0);
	for (int i = 0; i < MSGQ_NCOUNTERS; i++)
	{
		pg_atomic_write_u64(&slot->counters[i], 0);
		slot->floor[i] = 0;
	}
	pg_atomic_write_u32(&slot->has_floor, 0);
	pg_atomic_write_u64(&slot->live, 0);
	pg_atomic_write_u32(&slot->has_live, 0);
	pg_atomic_write_u64(&slot->counted_at, 0);
	pg_atomic_write_u32(&slot->nnotes, 0);
	pg_atomic_write_u32(&slot->appended, 0);
	pg_atomic_write_u64(&slot->notified, 0);
}

static void
init_slot(MsgqSlot *slot, int tranche, int nprocesses)
{
	LWLockInitialize(&slot->lock, tranche);
	pg_atomic_init_u64(&slot->highest_id, 0);
	for (int i = 0; i < MSGQ_NCOUNTERS; i++)
		pg_atomic_init_u64(&slot->counters[i], 0);
	pg_atomic_init_u64(&slot->prepared, 0);
	pg_atomic_init_u32(&slot->has_floor, 0);
	pg_atomic_init_u64(&slot->live, 0);
	pg_atomic_init_u64(&slot->counted_delayed, 0);
	pg_atomic_init_u64(&slot->counted_in_flight, 0);
	pg_atomic_init_u32(&slot->has_live, 0);
	pg_atomic_init_u64(&slot->counted_at, 0);
	pg_atomic_init_u64(&slot->counted_activity, 0);
	pg_atomic_init_u32(&slot->nnotes, 0);
	pg_atomic_init_u32(&slot->appended, 0);
	pg_atomic_init_u64(&slot->notified, 0);
	for (int i = 0; i < words_for(nprocesses); i++)
		pg_atomic_init_u64(&slot->waiters[i], 0);
	clear_slot(slot);
}

/* Of memory of shared_size() bytes that nobody else sees yet. */
static void
init_shared(void *memory)
{
	MsgqShared *home = memory;

	memset(home, 0, sizeof(MsgqShared));
	home->magic = SHARED_MAGIC;
	home->layout = SHARED_LAYOUT;
	home->nslots = msgq_shared_queues;
	home->nprocesses = count_processes();
	home->tranche = LWLockNewTrancheId();
	LWLockInitialize(&home->lock, home->tranche);
	pg_atomic_init_u64(&home->woken, 0);
	pg_atomic_init_u64(&home->polled, 0);
	pg_atomic_init_u64(&home->audit_found, 0);
	pg_atomic_init_u32(&home->launcher, 0);
	for (int i = 0; i < MSGQ_MAX_DATABASES; i++)
	{
		pg_atomic_init_u32(&home->databases[i].database, InvalidOid);
		pg_atomic_init_u32(&home->databases[i].active, 0);
		pg_atomic_init_u32(&home->databases[i].wanted, 0);
		pg_atomic_init_u32(&home->databases[i].worker_pid, 0);
		pg_atomic_init_u32(&home->databases[i].sequencer_wanted, 0);
		pg_atomic_init_u32(&home->databases[i].sequencer_pid, 0);
		pg_atomic_init_u32(&home->databases[i].sequencer, 0);
		pg_atomic_init_u64(&home->databases[i].due_at, 0);
	}
	for (int i = 0; i < home->nprocesses; i++)
	{
		MsgqProcess *entry = (MsgqProcess *)
		((char *) home + CACHELINEALIGN(sizeof(MsgqShared))) + i;

		pg_atomic_init_u64(&entry->queue, 0);
		pg_atomic_init_u64(&entry->bound, 0);
	}
	for (int i = 0; i < home->nslots; i++)
		init_slot(slot_number(home, i), home->tranche, home->nprocesses);
}

/* ---------------------------------------------------------------------------
 * Getting there
 * ---------------------------------------------------------------------------
 */

static void
request_hook(void)
{
	if (previous_request_hook)
		previous_request_hook();
	RequestAddinShmemSpace(shared_size());
}

static void
startup_hook(void)
{
	bool		found;

	if (previous_startup_hook)
		previous_startup_hook();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("msgq", shared_size(), &found);
	if (!found)
		init_shared(shared);
	LWLockRelease(AddinShmemInitLock);
	LWLockRegisterTranche(shared->tranche, "msgq");
}

/* Once per process, from _PG_init. */
void
msgq_shared_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		return;
	preloaded = true;
	DefineCustomIntVariable("msgq.shared_queues",
							"Number of queues and streams whose state is shared by all backends.",
							"One that finds no place works, but more slowly, and is polled.",
							&msgq_shared_queues,
							DEFAULT_QUEUES,
							1,
							100000,
							PGC_POSTMASTER,
							0,
							NULL,	/* check hook */
							NULL,	/* assign hook */
							NULL);	/* show hook */
	previous_request_hook = shmem_request_hook;
	shmem_request_hook = request_hook;
	previous_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup_hook;
}

#if MSGQ_HAVE_DSM_REGISTRY
static void
check_layout(void)
{
	if (shared->magic == SHARED_MAGIC && shared->layout == SHARED_LAYOUT)
		return;
	shared = NULL;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the shared state of msgq belongs to another version of the library"),
			 errhint("Restart the server.")));
}
#endif

/*
 * Is there a home for shared state?  Attaches to it, and makes it, when it is
 * asked for the first time; raises an error if it does not fit.
 */
bool
msgq_shared_available(void)
{
	if (shared)
		return true;
#if MSGQ_HAVE_DSM_REGISTRY
	if (!preloaded)
	{
		bool		found;

		shared = GetNamedDSMSegment("msgq", shared_size(), init_shared, &found);
		check_layout();
		LWLockRegisterTranche(shared->tranche, "msgq");
		return true;
	}
#endif
	return false;
}

/* Is the library preloaded, so that there is a launcher? */
bool
msgq_shared_preloaded(void)
{
	return preloaded;
}

/* Of the bits of a slot's waiters. */
int
msgq_waiter_words(void)
{
	return words_for(shared->nprocesses);
}

/* ---------------------------------------------------------------------------
 * Slots
 * ---------------------------------------------------------------------------
 */

static bool
has_key(const MsgqSlot *slot, const MsgqQueueKey *key)
{
	return slot->key.database == key->database &&
		slot->key.sequence == key->sequence &&
		slot->key.created_at == key->created_at;
}

/* The caller holds shared->lock. */
static MsgqSlot *
find_slot(const MsgqQueueKey *key)
{
	for (int i = 0; i < shared->nslots; i++)
	{
		MsgqSlot   *slot = slot_number(shared, i);

		if (has_key(slot, key))
			return slot;
	}
	return NULL;
}

/* A free one becomes this queue's.  The highest id was read before. */
static MsgqSlot *
assign_slot(const MsgqQueueKey *key, int64 highest_id)
{
	MsgqQueueKey none = {InvalidOid, InvalidOid, 0};
	MsgqSlot   *slot;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	slot = find_slot(key);
	if (slot == NULL)
	{
		slot = find_slot(&none);
		if (slot)
		{
			clear_slot(slot);
			pg_atomic_write_u64(&slot->highest_id, highest_id);
			slot->key = *key;
		}
	}
	LWLockRelease(&shared->lock);
	return slot;
}

/*
 * Has the queue of this slot gone?  Those of another database are taken to be
 * there as long as it is.
 */
static bool
is_gone(const MsgqQueueKey *key)
{
	LOCKTAG		tag;

	AcceptInvalidationMessages();
	if (key->database != MyDatabaseId)
		return !SearchSysCacheExists1(DATABASEOID,
									  ObjectIdGetDatum(key->database));

	/* One that was made by an open transaction is locked, and not seen. */
	SET_LOCKTAG_RELATION(tag, MyDatabaseId, key->sequence);
	if (LockAcquire(&tag, AccessShareLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return false;
	(void) LockRelease(&tag, AccessShareLock, false);
	AcceptInvalidationMessages();
	return !SearchSysCacheExists1(RELOID, ObjectIdGetDatum(key->sequence));
}

/* Frees the slots of queues that are gone. */
void
msgq_slot_free_gone(void)
{
	for (int i = 0; i < shared->nslots; i++)
	{
		MsgqSlot   *slot = slot_number(shared, i);
		MsgqQueueKey key;

		LWLockAcquire(&shared->lock, LW_SHARED);
		key = slot->key;
		LWLockRelease(&shared->lock);
		if (!OidIsValid(key.database) || !is_gone(&key))
			continue;
		LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
		if (has_key(slot, &key))
			memset(&slot->key, 0, sizeof(slot->key));
		LWLockRelease(&shared->lock);
	}
}

/* Number of slots; stores how many are in use. */
int
msgq_slot_count(int *used)
{
	*used = 0;
	for (int i = 0; i < shared->nslots; i++)
	{
		if (OidIsValid(slot_number(shared, i)->key.database))
			(*used)++;
	}
	return shared->nslots;
}

/* The slot of a queue of this database, if it has one. */
MsgqSlot   *
msgq_slot_find(Oid sequence, TimestampTz created_at)
{
	MsgqQueueKey key = {MyDatabaseId, sequence, created_at};
	MsgqSlot   *slot;

	if (!msgq_shared_available())
		return NULL;
	LWLockAcquire(&shared->lock, LW_SHARED);
	slot = find_slot(&key);
	LWLockRelease(&shared->lock);
	return slot;
}

/*
 * The slot of a queue, told by its sequence and when it was made, of which the
 * caller has locked a table; NULL if there is no shared state, or no slot is
 * free.
 */
MsgqSlot   *
msgq_slot_get(Oid sequence, TimestampTz created_at)
{
	static MsgqSlot *last = NULL;
	static int64 looked_in_vain = 0;
	MsgqQueueKey key = {MyDatabaseId, sequence, created_at};
	MsgqSlot   *slot;

	if (!msgq_shared_available())
		return NULL;

	/* The key of a slot in use does not change, and we use it. */
	if (last && has_key(last, &key))
		return last;
	LWLockAcquire(&shared->lock, LW_SHARED);
	slot = find_slot(&key);
	LWLockRelease(&shared->lock);
	if (slot == NULL)
	{
		int64		highest_id = msgq_last_id(sequence);

		slot = assign_slot(&key, highest_id);
		if (slot == NULL &&
			msgq_ticks() - looked_in_vain > 10 * USECS_PER_SEC)
		{
			looked_in_vain = msgq_ticks();
			msgq_slot_free_gone();
			slot = assign_slot(&key, highest_id);
		}
	}
	last = slot;
	return slot;
}

/* The totals of before the slot was made, from the first who has read them. */
void
msgq_slot_load_floor(MsgqSlot *slot, const int64 *floor)
{
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (!pg_atomic_read_u32(&slot->has_floor))
	{
		memcpy(slot->floor, floor, sizeof(slot->floor));
		pg_write_barrier();
		pg_atomic_write_u32(&slot->has_floor, 1);
	}
	LWLockRelease(&shared->lock);
}

/*
 * Without a lock: a place is given away after its frontiers were made ready,
 * and taken back when nobody can have a lock on the segment.
 */
static MsgqSegmentFrontiers *
find_segment(MsgqSlot *slot, Oid segment)
{
	for (int i = 0; i < MSGQ_SLOT_SEGMENTS; i++)
	{
		if (slot->segments[i].segment == segment)
			return &slot->segments[i];
	}
	return NULL;
}

/* The frontiers of a segment, taking a place for them if one is free. */
static MsgqSegmentFrontiers *
segment_frontiers(MsgqSlot *slot, Oid segment)
{
	MsgqSegmentFrontiers *found = find_segment(slot, segment);

	pg_read_barrier();
	if (found)
		return found;
	LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	found = find_segment(slot, segment);
	if (found == NULL && (found = find_segment(slot, InvalidOid)) != NULL)
	{
		msgq_frontier_start(&found->orders[MSGQ_READY]);
		msgq_frontier_start(&found->orders[MSGQ_DUE]);
		pg_write_barrier();
		found->segment = segment;
	}
	LWLockRelease(&slot->lock);
	return found;
}

/* The segment was emptied: the caller has locked it against everybody. */
void
msgq_slot_forget_segment(MsgqSlot *slot, Oid segment)
{
	MsgqSegmentFrontiers *found;

	LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	found = find_segment(slot, segment);
	if (found)
		found->segment = InvalidOid;
	LWLockRelease(&slot->lock);
}

/* The shared frontier of a segment, or, where there is none, our own. */
MsgqFrontierRef
msgq_slot_frontier(MsgqSlot *slot, const MsgqQueue *queue, Oid segment,
				   MsgqOrder order)
{
	MsgqFrontierRef ref = {.segment = segment,.order = order};
	MsgqSegmentFrontiers *frontiers = slot ? segment_frontiers(slot, segment) : NULL;

	if (frontiers == NULL)
		return msgq_frontier_local(segment, queue->created_at, order);
	ref.frontier = &frontiers->orders[order];
	ref.lock = &slot->lock;
	return ref;
}

/* ---------------------------------------------------------------------------
 * Ids about to be used
 * ---------------------------------------------------------------------------
 */

static uint64
append_key(Oid sequence)
{
	return (uint64) MyDatabaseId << 32 | sequence;
}

/*
 * We are about to take ids of this queue.  Returns what was published before,
 * which is nothing unless an index expression sends, for msgq_append_withdraw.
 */
MsgqAppend
msgq_append_publish(Oid sequence, MsgqSlot *slot)
{
	MsgqProcess *mine = process(msgq_my_process_number());
	MsgqAppend	before;

	before.queue = pg_atomic_read_u64(&mine->queue);
	before.bound = (int64) pg_atomic_read_u64(&mine->bound);
	if (before.queue != 0)
	{
		pg_atomic_write_u64(&mine->queue, ANY_QUEUE);
		pg_memory_barrier();
		return before;
	}
	pg_atomic_write_u64(&mine->bound, 1 +
						(slot ? pg_atomic_read_u64(&slot->highest_id)
						 : (uint64) msgq_last_id(sequence)));
	pg_write_barrier();
	pg_atomic_write_u64(&mine->queue, append_key(sequence));
	append_nest_level = GetCurrentTransactionNestLevel();
	pg_memory_barrier();
	return before;
}

/* The index entries of the last one are in. */
void
msgq_append_withdraw(MsgqAppend before)
{
	MsgqProcess *mine = process(msgq_my_process_number());

	pg_memory_barrier();
	pg_atomic_write_u64(&mine->queue, before.queue);
	if (before.queue == 0)
		append_nest_level = 0;
}

/* A transaction of this level, or the whole one (1), was aborted. */
void
msgq_append_forget(int nest_level)
{
	MsgqAppend	nothing = {0, 0};

	if (append_nest_level != 0 && append_nest_level >= nest_level)
		msgq_append_withdraw(nothing);
}

/*
 * The lowest id of this queue that may still be under way, among those up to
 * the given one, which the caller has read before; else the one above it.
 */
int64
msgq_append_lowest(Oid sequence, int64 highest_id)
{
	uint64		key = append_key(sequence);
	int64		lowest = highest_id + 1;

	pg_memory_barrier();
	for (int i = 0; i < shared->nprocesses; i++)
	{
		uint64		other = pg_atomic_read_u64(&process(i)->queue);

		if (other == ANY_QUEUE)
			return PG_INT64_MIN;
		if (other != key)
			continue;
		pg_read_barrier();
		lowest = Min(lowest, (int64) pg_atomic_read_u64(&process(i)->bound));
	}
	return lowest;
}

/* ---------------------------------------------------------------------------
 * Databases
 * ---------------------------------------------------------------------------
 */

/* The entry of a database; NULL if there is none, or no shared state. */
MsgqDatabase *
msgq_database_find(Oid database)
{
	if (!msgq_shared_available())
		return NULL;
	for (int i = 0; i < MSGQ_MAX_DATABASES; i++)
	{
		if (pg_atomic_read_u32(&shared->databases[i].database) == database)
			return &shared->databases[i];
	}
	return NULL;
}

/*
 * The entry of a database, made if there is none; NULL if there is no room or
 * no shared state.
 */
MsgqDatabase *
msgq_database_get(Oid database)
{
	static MsgqDatabase *last = NULL;

	if (last && pg_atomic_read_u32(&last->database) == database)
		return last;
	last = msgq_database_find(database);
	if (last || !shared)
		return last;
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	last = msgq_database_find(database);
	if (last == NULL && (last = msgq_database_find(InvalidOid)) != NULL)
		pg_atomic_write_u32(&last->database, database);
	LWLockRelease(&shared->lock);
	return last;
}

/* Entry number *i or the next one in use, for a loop; NULL at the end. */
MsgqDatabase *
msgq_database_next(int *i)
{
	while (*i < MSGQ_MAX_DATABASES)
	{
		MsgqDatabase *entry = &shared->databases[(*i)++];

		if (OidIsValid(pg_atomic_read_u32(&entry->database)))
			return entry;
	}
	return NULL;
}

/* The database has gone. */
void
msgq_database_free(MsgqDatabase *entry)
{
	pg_atomic_write_u32(&entry->active, 0);
	pg_atomic_write_u32(&entry->wanted, 0);
	pg_atomic_write_u32(&entry->sequencer_wanted, 0);
	pg_atomic_write_u64(&entry->due_at, 0);
	pg_atomic_write_u32(&entry->database, InvalidOid);
}

/* This process is the launcher. */
void
msgq_launcher_register(void)
{
	pg_atomic_write_u32(&shared->launcher, msgq_my_process_number() + 1);
}

/* May be called after a commit: cannot fail. */
void
msgq_launcher_wake(void)
{
	uint32		launcher = pg_atomic_read_u32(&shared->launcher);

	if (launcher != 0)
		SetLatch(&ProcGlobal->allProcs[launcher - 1].procLatch);
}

/* ---------------------------------------------------------------------------
 * Counts over all queues
 * ---------------------------------------------------------------------------
 */

/* A wait has found something: told by somebody, or by looking anyhow. */
void
msgq_wait_count(bool woken)
{
	if (shared)
		pg_atomic_fetch_add_u64(woken ? &shared->woken : &shared->polled, 1);
}

MsgqWaitCounts
msgq_wait_counts(void)
{
	MsgqWaitCounts counts = {0, 0};

	if (msgq_shared_available())
	{
		counts.woken = pg_atomic_read_u64(&shared->woken);
		counts.polled = pg_atomic_read_u64(&shared->polled);
	}
	return counts;
}

void
msgq_audit_count(uint64 found)
{
	if (shared)
		pg_atomic_fetch_add_u64(&shared->audit_found, found);
}

uint64
msgq_audit_found(void)
{
	return msgq_shared_available() ?
		pg_atomic_read_u64(&shared->audit_found) : 0;
}
