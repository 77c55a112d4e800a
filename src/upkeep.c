/*
 * upkeep.c
 *		What a round of maintenance does to queues.
 *
 * It turns and empties stores (store.c), enters failed pops into their messages'
 * rows (poison.c), turns rings and empties segments (ring.c), gives up messages
 * that have expired or whose deliveries have all failed (deadletter.c), counts
 * and audits queues, and saves their totals (stats.c).  It costs little where
 * nothing happens: a queue whose counters have not changed is passed by, and
 * what needs a scan is done again only after a time that is long compared with
 * it.
 *
 * src/upkeep.c
 */
#include "msgq.h"

#include "commands/async.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "deadletter.h"
#include "owner.h"
#include "poison.h"
#include "ring.h"
#include "shared.h"
#include "stats.h"
#include "step.h"
#include "store.h"
#include "testing.h"
#include "upkeep.h"
#include "worker.h"

/* A queue is counted, saved and swept at most this often. */
#define COUNT_TIME			(60 * USECS_PER_SEC)
#define SAVE_TIME			(10 * USECS_PER_SEC)
#define SWEEP_TIME			(1 * USECS_PER_SEC)

/* Statistics tell of a queue's activity after this time at the latest. */
#define SETTLE_TIME			(5 * USECS_PER_SEC)

/* A segment that is parked is looked at at least this often. */
#define PARKED_TIME			(60 * USECS_PER_SEC)

/* ---------------------------------------------------------------------------
 * What is remembered
 * ---------------------------------------------------------------------------
 */

/*
 * What is remembered about a queue or a segment between rounds.  Times are those
 * of msgq_ticks, but for due.
 */
typedef struct Memory
{
	Oid			relation;		/* hash key: the sequence, or the table */
	int64		next;			/* when to look again: segments, current
								 * tables of stores, and queues without a slot */
	int64		interval;
	int64		looked_at;		/* segment */
	uint64		activity;		/* what the queue's counters were */
	int64		changed_at;		/* and when they were found changed */
	int64		next_count;		/* when its cost allows to count again */
	int64		next_save;
	int64		next_sweep;
	uint64		swept_activity; /* what the counters were at the last one */
	TimestampTz due;			/* when there is something to be swept, as the
								 * last sweep saw it; 0: never */
} Memory;

/* From now on m remembers what it has seen, and need not look so often. */
void
msgq_maintain_remember(MsgqMaintenance *m)
{
	HASHCTL		control = {
		.keysize = sizeof(Oid),
		.entrysize = sizeof(Memory),
	};

	m->memory = hash_create("msgq maintenance", 64, &control,
							HASH_ELEM | HASH_BLOBS);
}

static Memory *
remember(MsgqMaintenance *m, Oid relation)
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

/* ---------------------------------------------------------------------------
 * Steps
 * ---------------------------------------------------------------------------
 */

static void
turn_step(MsgqMaintenance *m, int32 queue_id, int level)
{
	MsgqRing   *ring = msgq_ring_read(queue_id);

	if (ring && msgq_ring_turn(ring, level, &m->round))
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
							   cost * MSGQ_COST_FACTOR / 5);

	if (parked)
		interval = Max(interval, Min(2 * memory->interval, PARKED_TIME));
	memory->interval = interval;
	memory->next = msgq_ticks() + interval;
}

static void
drain_step(MsgqMaintenance *m, int32 queue_id, int n)
{
	MsgqRing   *ring = msgq_ring_read(queue_id);
	const MsgqRingSegment *segment = find_segment(ring, n);
	int64		begun = msgq_ticks();
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
		set_next_look(memory, msgq_ticks() - begun, parked);
	if (memory)
		memory->looked_at = begun;
}

static void
reclaim_step(MsgqMaintenance *m, int32 queue_id, int n)
{
	MsgqRing   *ring = msgq_ring_read(queue_id);
	const MsgqRingSegment *segment = find_segment(ring, n);
	int64		begun = msgq_ticks();
	Memory	   *memory;

	if (segment == NULL || segment->state != 'D')
		return;
	m->busy = true;
	memory = m->memory ? remember(m, segment->table) : NULL;
	if (memory && begun < memory->next)
		return;
	if (!msgq_ring_reclaim(ring, segment, &m->round) && memory)
		set_next_look(memory, msgq_ticks() - begun, false);
}

static void
empty_store_step(MsgqMaintenance *m, int32 queue_id, int n)
{
	if (msgq_store_empty(queue_id, (MsgqStoreKind) n, &m->round))
		m->busy = true;
}

static void
turn_store_step(MsgqMaintenance *m, int32 queue_id, int n)
{
	MsgqStoreKind kind = (MsgqStoreKind) n;
	Memory	   *memory;

	if (m->memory)
	{
		memory = remember(m, msgq_store_current(queue_id, kind));
		if (msgq_ticks() < memory->next)
			return;
		memory->next = msgq_ticks() + MSGQ_TURN_TIME;
	}
	if (msgq_store_turn(queue_id, kind, &m->round))
		m->busy = true;
}

/* The queue of this number; NULL if it has gone, or is locked. */
static MsgqQueue *
find_queue(int32 queue_id)
{
	MsgqRing   *ring = msgq_ring_read(queue_id);
	MsgqQueue  *queue = ring ? msgq_queue_find(ring->name) : NULL;

	if (queue == NULL || !msgq_queue_is_complete(queue) ||
		!ConditionalLockRelationOid(queue->segments[0].table, AccessShareLock) ||
		!msgq_queue_lock_for_reading(queue))
		return NULL;
	return queue;
}

/*
 * Its slot, NULL if it has none or is not to be had, with what is remembered
 * of it, NULL by hand.
 */
static MsgqSlot *
find_slot(MsgqMaintenance *m, int32 queue_id, MsgqQueue **queue,
		  Memory **memory)
{
	*queue = find_queue(queue_id);
	*memory = *queue && m->memory ? remember(m, (*queue)->sequence) : NULL;
	return *queue ? msgq_slot_get((*queue)->sequence, (*queue)->created_at) : NULL;
}

static uint64
activity_of(MsgqSlot *slot)
{
	uint64		sum = pg_atomic_read_u64(&slot->prepared);

	for (int i = 0; i < MSGQ_NCOUNTERS; i++)
		sum += pg_atomic_read_u64(&slot->counters[i]);
	return sum;
}

/* Is it time to scan the queue, and is there a reason to? */
static bool
wants_count(MsgqSlot *slot, const Memory *memory, int64 now)
{
	int64		last = (int64) pg_atomic_read_u64(&slot->counted_at);

	if (memory == NULL || last == 0)
		return true;
	return now >= memory->next_count && now >= last + COUNT_TIME &&
		activity_of(slot) != pg_atomic_read_u64(&slot->counted_activity);
}

/* Counts and audits: each costs a scan of the queue. */
static void
count_step(MsgqMaintenance *m, int32 queue_id, int n)
{
	MsgqQueue  *queue;
	Memory	   *memory;
	MsgqSlot   *slot = find_slot(m, queue_id, &queue, &memory);
	int64		begun = msgq_ticks();
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
			MSGQ_COST_FACTOR * (msgq_ticks() - begun);
}

/* Gives up what nobody meets: that costs a scan of the queue. */
static void
sweep_step(MsgqMaintenance *m, int32 queue_id, int n)
{
	int64		begun = msgq_ticks();
	MsgqQueue  *queue;
	Memory	   *memory;
	MsgqSlot   *slot = find_slot(m, queue_id, &queue, &memory);
	uint64		activity = slot ? activity_of(slot) : 0;
	MsgqSpi		before;
	int			given_up;

	if (queue == NULL || (memory && begun < memory->next_sweep))
		return;
	if (!msgq_stats_can_count(queue))
	{
		if (memory)
			memory->swept_activity = activity;
		return;
	}
	msgq_become_owner(&before);
	given_up = msgq_dead_letter_sweep(queue, msgq_now());
	if (given_up == 0 && memory)
		memory->due = msgq_dead_letter_due(queue, msgq_now());
	msgq_become_caller(&before);
	m->round.given_up += given_up;
	if (given_up > 0)
		m->busy = true;
	else if (memory)
	{
		memory->swept_activity = activity;
		memory->next_sweep = begun +
			Max(SWEEP_TIME, MSGQ_COST_FACTOR * (msgq_ticks() - begun));
	}
}

/* Enters the pops that were rolled back. */
static void
poison_step(MsgqMaintenance *m, int32 queue_id, int n)
{
	MsgqQueue  *queue;
	Memory	   *memory;
	MsgqSlot   *slot = find_slot(m, queue_id, &queue, &memory);
	MsgqStorage *storage;
	MsgqSpi		before;

	if (!msgq_poison_has_notes(slot) || !msgq_stats_can_count(queue))
		return;
	/* What somebody holds now is for the next round. */
	m->busy = true;
	msgq_become_owner(&before);
	storage = msgq_storage_open("msgq.maintain()", NameStr(queue->name),
								MSGQ_RIGHT_NONE, MSGQ_ALL);
	m->round.rolled_back += msgq_poison_apply(storage);
	msgq_storage_close(storage);
	msgq_become_caller(&before);
}

/* Saves the totals, now and then. */
static void
save_step(MsgqMaintenance *m, int32 queue_id, int n)
{
	MsgqQueue  *queue;
	Memory	   *memory;
	MsgqSlot   *slot = find_slot(m, queue_id, &queue, &memory);
	int64		now = msgq_ticks();

	if (slot == NULL || (memory && !m->leaving && now < memory->next_save))
		return;
	msgq_stats_save(slot, queue_id);
	if (memory)
		memory->next_save = now + SAVE_TIME;
}

static void
notify_step(MsgqMaintenance *m, int32 queue_id, int n)
{
	Async_Notify(psprintf("msgq_%d", queue_id), "");
}

/* Something to be looked at: a queue, or one of its segments. */
typedef struct Work
{
	int32		queue_id;
	int			n;				/* 0: the queue itself; then also: */
	int			levels;
	Oid			sequence;
	TimestampTz created_at;
} Work;

/* All queues, and all segments that may be reclaimed, as a palloc'd array. */
static Work *
list_work(MsgqMaintenance *m, int *nwork)
{
	MemoryContext context = CurrentMemoryContext;
	Work	   *work;
	MsgqSpi		spi;
	bool		is_null;

	msgq_look_begin(m);
	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run("SELECT id, 0, to_regclass(format('msgq.q%%s_id', id))::oid, created_at, priorities "
				 "FROM msgq.queue UNION ALL "
				 "SELECT queue_id, n, 0, '-infinity', 0 FROM msgq.segment "
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
		work[i].levels = DatumGetInt32(SPI_getbinval(row, descriptor, 5, &is_null));
	}
	msgq_spi_end(&spi);
	msgq_look_end(m, context);
	return work;
}

/*
 * Has something happened to the queue since the last round?  Where nobody
 * counts, it may have.
 */
static bool
is_active(MsgqMaintenance *m, const Work *work)
{
	MsgqSlot   *slot = msgq_slot_find(work->sequence, work->created_at);
	Memory	   *memory;
	uint64		activity;

	if (m->memory == NULL)
		return true;
	memory = remember(m, work->sequence);
	if (slot == NULL)
		return msgq_ticks() >= memory->next;
	if (msgq_poison_has_notes(slot))
		return true;
	activity = activity_of(slot);
	if (activity != memory->activity)
		memory->changed_at = msgq_ticks();
	memory->activity = activity;
	return msgq_ticks() - memory->changed_at < SETTLE_TIME;
}

/* Is there something to be given up, though nothing has happened? */
static bool
is_due(MsgqMaintenance *m, const Work *work)
{
	Memory	   *memory = remember(m, work->sequence);

	return memory->due != 0 && memory->due <= msgq_now();
}

static void
maintain_queue(MsgqMaintenance *m, const Work *work)
{
	int64		begun = msgq_ticks();
	int64		waiting = m->round.waiting;
	Memory	   *memory;

	if (!is_active(m, work) && !is_due(m, work))
		return;
	msgq_run_step(m, poison_step, work->queue_id, 0);
	for (int level = 0; level < work->levels; level++)
		msgq_run_step(m, turn_step, work->queue_id, level);
	waiting = m->round.waiting - waiting;
	msgq_run_step(m, sweep_step, work->queue_id, 0);
	msgq_run_step(m, count_step, work->queue_id, 0);
	msgq_run_step(m, save_step, work->queue_id, 0);
	if (m->memory == NULL)
		return;
	memory = remember(m, work->sequence);
	memory->next = begun + MSGQ_COST_FACTOR * (msgq_ticks() - begun);
	if (waiting > 0)
	{
		/* It should turn and could not: that is to be tried again. */
		memory->changed_at = msgq_ticks();
		m->busy = true;
	}
}

/*
 * Turns and empties stores.  Early in a round: by hand, the round keeps the locks
 * of its steps, and to turn a store it waits for a lock.  Only schedules, which
 * should be in time, come before; their locks are those of a sender.
 */
void
msgq_upkeep_stores(MsgqMaintenance *m)
{
	MemoryContext context = CurrentMemoryContext;
	MsgqStoreWork *work;
	int			n;

	msgq_look_begin(m);
	work = msgq_store_list_due(context, &n);
	msgq_look_end(m, context);
	for (int i = 0; i < n; i++)
	{
		if (!m->by_hand && msgq_database_is_wanted(MyDatabaseId))
			break;
		msgq_run_step(m, empty_store_step, work[i].queue_id, work[i].kind);
		msgq_run_step(m, turn_store_step, work[i].queue_id, work[i].kind);
	}
	pfree(work);
}

/* Looks after all queues, and reclaims their segments. */
void
msgq_upkeep_queues(MsgqMaintenance *m)
{
	int			n;
	Work	   *work = list_work(m, &n);

	for (int i = 0; i < n; i++)
	{
		if (!m->by_hand && msgq_database_is_wanted(MyDatabaseId))
			break;
		if (work[i].n == 0)
			maintain_queue(m, &work[i]);
		else
		{
			msgq_run_step(m, drain_step, work[i].queue_id, work[i].n);
			msgq_run_step(m, reclaim_step, work[i].queue_id, work[i].n);
		}
	}
	pfree(work);
}

/* Before the worker leaves. */
void
msgq_maintain_save(MsgqMaintenance *m)
{
	int			n;
	Work	   *work = list_work(m, &n);

	m->leaving = true;
	for (int i = 0; i < n; i++)
	{
		if (work[i].n == 0 &&
			msgq_slot_find(work[i].sequence, work[i].created_at))
			msgq_run_step(m, save_step, work[i].queue_id, 0);
	}
	pfree(work);
}

/*
 * The earliest of a time, 0 for never, and when a queue is to be looked at, if
 * nothing happens until then.  A queue that was too large to be swept after its
 * last use is due as soon as its cost allows, and what could not be given up,
 * because somebody holds it, is tried again later.
 */
TimestampTz
msgq_upkeep_due(MsgqMaintenance *m, TimestampTz earliest)
{
	int			n;
	Work	   *work = list_work(m, &n);

	for (int i = 0; i < n; i++)
	{
		MsgqSlot   *slot = work[i].n != 0 ? NULL :
		msgq_slot_find(work[i].sequence, work[i].created_at);
		Memory	   *memory;
		TimestampTz due;

		if (slot == NULL)
			continue;
		memory = remember(m, work[i].sequence);
		if (memory->due == 0 && memory->swept_activity == activity_of(slot))
			continue;
		due = Max(memory->due, memory->next_sweep);
		if (due <= msgq_now())
			due = msgq_now() + SETTLE_TIME;
		if (earliest == 0 || due < earliest)
			earliest = due;
	}
	pfree(work);
	return earliest;
}

/*
 * Tells those who LISTEN that something was sent since they were told last;
 * false if nothing was.
 */
bool
msgq_maintain_notify(MsgqMaintenance *m)
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
		msgq_run_step(m, notify_step, work[i].queue_id, 0);
		told = true;
	}
	pfree(work);
	return told;
}
