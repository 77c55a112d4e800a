/*
 * maintain.c
 *		Rounds of maintenance over all queues, streams and topics of a
 *		database, and its inbox, by the worker or by hand.
 *
 * A round turns and empties stores (store.c), turns streams and drops what is
 * old in them (retention.c), turns the logs of topics (retained.c) and empties
 * that of replies (request.c), turns and empties the inbox (inbox.c), fires
 * schedules (fire.c), enters failed pops into their messages' rows
 * (poison.c), turns rings and empties segments (ring.c), gives up messages that
 * have expired or whose deliveries have all failed (deadletter.c), counts and
 * audits queues, and saves their totals (stats.c).  It costs little where
 * nothing happens: a queue whose counters have not changed is passed by, and
 * what needs a scan is done again only after a time that is long compared with
 * it.
 *
 * Each step is a transaction of its own, with a lock_timeout, so that locks
 * are held for that step only, and an error in one queue does not stop the
 * others.  By hand, each step is a subtransaction of the statement, and locks
 * are held until its end.
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
#include "commands/async.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "deadletter.h"
#include "fire.h"
#include "inbox.h"
#include "maintain.h"
#include "message.h"
#include "owner.h"
#include "poison.h"
#include "request.h"
#include "retained.h"
#include "retention.h"
#include "ring.h"
#include "schedule.h"
#include "shared.h"
#include "stats.h"
#include "store.h"
#include "stream.h"
#include "testing.h"
#include "worker.h"

/* A queue is counted, saved and swept at most this often. */
#define COUNT_TIME			(60 * USECS_PER_SEC)
#define SAVE_TIME			(10 * USECS_PER_SEC)
#define SWEEP_TIME			(1 * USECS_PER_SEC)

/* What takes t is done again after COST_FACTOR * t at the earliest. */
#define COST_FACTOR			100

/* Statistics tell of a queue's activity after this time at the latest. */
#define SETTLE_TIME			(5 * USECS_PER_SEC)

/*
 * A store that could not be turned, since a transaction that uses it stays
 * open, is tried again after this: each attempt makes others wait.
 */
#define TURN_TIME			(20 * USECS_PER_SEC)

/* A schedule that could not be fired is tried again after this. */
#define REFIRE_TIME			(10 * USECS_PER_SEC)
#define REFIRE_LOCKED_TIME	(1 * USECS_PER_SEC)

/* So often a schedule that has much to catch up with is fired in a round. */
#define MAX_FIRE_STEPS		10

/* A segment that is parked is looked at at least this often. */
#define PARKED_TIME			(60 * USECS_PER_SEC)

/* ---------------------------------------------------------------------------
 * Rounds
 * ---------------------------------------------------------------------------
 */

/* What is remembered about a queue or a segment between rounds. */
typedef struct Memory
{
	Oid			relation;		/* hash key: the sequence, or the table */
	TimestampTz next;			/* when to look again: segments, current
								 * tables of stores, and queues without a slot */
	int64		interval;
	TimestampTz looked_at;		/* segment */
	uint64		activity;		/* what the queue's counters were */
	TimestampTz changed_at;		/* and when they were found changed */
	TimestampTz next_count;		/* when its cost allows to count again */
	TimestampTz next_save;
	TimestampTz next_sweep;
	uint64		swept_activity; /* what the counters were at the last one */
	TimestampTz due;			/* when there is something to be swept, as the
								 * last sweep saw it; 0: never */
} Memory;

/*
 * A step: something that is done to a queue, a level or a segment of it, or
 * one of its stores; n says which.
 */
typedef void (*Step) (MsgqMaintenance *m, int32 queue_id, int n);

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

static void
begin_step(MsgqMaintenance *m)
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
end_step(MsgqMaintenance *m, MemoryContext context, ResourceOwner owner)
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
fail_step(MsgqMaintenance *m, int32 queue_id, MemoryContext context,
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
	if (error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE)
	{
		/* Somebody is in the way, for longer than we wait. */
		m->round.waiting++;
		FreeErrorData(error);
		return;
	}
	m->round.failed++;
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 m->subject ?
			 errmsg("could not %s: %s", m->subject, error->message) :
			 errmsg("could not maintain the queue, stream or topic with number %d: %s",
					queue_id, error->message)));
	FreeErrorData(error);
}

/* Runs a step so that its failure is its own. */
static void
run_step(MsgqMaintenance *m, Step step, int32 queue_id, int n)
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
							   cost * COST_FACTOR / 5);

	if (parked)
		interval = Max(interval, Min(2 * memory->interval, PARKED_TIME));
	memory->interval = interval;
	memory->next = GetCurrentTimestamp() + interval;
}

static void
drain_step(MsgqMaintenance *m, int32 queue_id, int n)
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
reclaim_step(MsgqMaintenance *m, int32 queue_id, int n)
{
	MsgqRing   *ring = msgq_ring_read(queue_id);
	const MsgqRingSegment *segment = find_segment(ring, n);
	TimestampTz begun = GetCurrentTimestamp();
	Memory	   *memory;

	if (segment == NULL || segment->state != 'D')
		return;
	m->busy = true;
	memory = m->memory ? remember(m, segment->table) : NULL;
	if (memory && begun < memory->next)
		return;
	if (!msgq_ring_reclaim(ring, segment, &m->round) && memory)
		set_next_look(memory, GetCurrentTimestamp() - begun, false);
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
		if (GetCurrentTimestamp() < memory->next)
			return;
		memory->next = GetCurrentTimestamp() + TURN_TIME;
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
wants_count(MsgqSlot *slot, const Memory *memory, TimestampTz now)
{
	TimestampTz last = (TimestampTz) pg_atomic_read_u64(&slot->counted_at);

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

/* Gives up what nobody meets: that costs a scan of the queue. */
static void
sweep_step(MsgqMaintenance *m, int32 queue_id, int n)
{
	TimestampTz begun = GetCurrentTimestamp();
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
			Max(SWEEP_TIME, COST_FACTOR * (GetCurrentTimestamp() - begun));
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
	TimestampTz now = GetCurrentTimestamp();

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
	ResourceOwner owner = CurrentResourceOwner;
	Work	   *work;
	MsgqSpi		spi;
	bool		is_null;

	begin_step(m);
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
	end_step(m, context, owner);
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
		return GetCurrentTimestamp() >= memory->next;
	if (msgq_poison_has_notes(slot))
		return true;
	activity = activity_of(slot);
	if (activity != memory->activity)
		memory->changed_at = GetCurrentTimestamp();
	memory->activity = activity;
	return GetCurrentTimestamp() - memory->changed_at < SETTLE_TIME;
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
	TimestampTz begun = GetCurrentTimestamp();
	int64		waiting = m->round.waiting;
	Memory	   *memory;

	if (!is_active(m, work) && !is_due(m, work))
		return;
	run_step(m, poison_step, work->queue_id, 0);
	for (int level = 0; level < work->levels; level++)
		run_step(m, turn_step, work->queue_id, level);
	waiting = m->round.waiting - waiting;
	run_step(m, sweep_step, work->queue_id, 0);
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

/*
 * Turns and empties stores.  First of all in a round: by hand, the round keeps
 * the locks of its steps, and to turn a store it waits for a lock.
 */
static void
maintain_stores(MsgqMaintenance *m)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	MsgqStoreWork *work;
	int			n;

	begin_step(m);
	work = msgq_store_list_due(context, &n);
	end_step(m, context, owner);
	for (int i = 0; i < n; i++)
	{
		if (!m->by_hand && msgq_database_is_wanted(MyDatabaseId))
			break;
		run_step(m, empty_store_step, work[i].queue_id, work[i].kind);
		run_step(m, turn_store_step, work[i].queue_id, work[i].kind);
	}
	pfree(work);
}

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
		run_step(m, turn_inbox_step, 0, 0);
	for (int part = 0; part < m->inbox.parts; part++)
	{
		if (!m->by_hand && msgq_database_is_wanted(MyDatabaseId))
			return;
		run_step(m, move_claims_step, 0, part);
	}
	if (m->inbox.empty)
		run_step(m, empty_inbox_step, 0, 0);
}

/*
 * Turns the inbox, or empties the table that takes no new claims.  To see whether
 * that is due costs a scan.
 */
static void
maintain_inbox(MsgqMaintenance *m)
{
	TimestampTz begun = GetCurrentTimestamp();

	if (begun < m->inbox_next)
		return;
	memset(&m->inbox, 0, sizeof(m->inbox));
	m->subject = "maintain the inbox";
	run_step(m, look_at_inbox_step, 0, 0);
	do_inbox_work(m);
	m->subject = NULL;
	m->busy |= m->inbox.done;
	if (!m->inbox.done)
		m->inbox_next = GetCurrentTimestamp() +
			(m->inbox.turn ? TURN_TIME :
			 COST_FACTOR * (GetCurrentTimestamp() - begun));
}

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
	ResourceOwner owner = CurrentResourceOwner;
	List	   *ids = NIL;
	ListCell   *cell;

	begin_step(m);
	foreach(cell, msgq_stream_list(MSGQ_RIGHT_NONE))
	{
		MemoryContext before = MemoryContextSwitchTo(context);

		ids = lappend_int(ids, ((const MsgqStream *) lfirst(cell))->id);
		MemoryContextSwitchTo(before);
	}
	end_step(m, context, owner);
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
		run_step(m, turn_stream_step, id, 0);
		run_step(m, complete_stream_step, id, 0);
		run_step(m, drop_stream_step, id, 0);
		run_step(m, group_log_step, id, 0);
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
	ResourceOwner owner = CurrentResourceOwner;
	List	   *ids = NIL;
	MsgqSpi		spi;

	begin_step(m);
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
	end_step(m, context, owner);
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
		run_step(m, retained_step, lfirst_int(cell), 0);
	}
	list_free(ids);
	m->subject = "maintain replies";
	run_step(m, replies_step, 0, 0);
	m->subject = NULL;
}

/*
 * The schedules, from when they are remembered on, as long as none has changed.
 * By hand, nothing is.
 */
static void
read_schedules(MsgqMaintenance *m)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	uint64		generation;

	begin_step(m);
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
	end_step(m, context, owner);
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
		run_step(m, fire_step, 0, n);
	}
}

/* Fires what is due, and turns the log of that. */
static void
maintain_schedules(MsgqMaintenance *m)
{
	read_schedules(m);
	for (int i = 0; i < m->nschedules; i++)
	{
		if (!m->by_hand && msgq_database_is_wanted(MyDatabaseId))
			break;
		if (m->schedules[i].next <= msgq_now())
			fire_schedule(m, i);
	}
	m->subject = "maintain the log of schedules";
	run_step(m, fire_log_step, 0, 0);
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

/* One round over all queues, streams, topics and schedules of the database. */
static void
maintain(MsgqMaintenance *m)
{
	int			n;
	Work	   *work;

	maintain_schedules(m);
	maintain_stores(m);
	maintain_inbox(m);
	maintain_streams(m);
	maintain_topics(m);
	work = list_work(m, &n);
	for (int i = 0; i < n; i++)
	{
		if (!m->by_hand && msgq_database_is_wanted(MyDatabaseId))
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
			run_step(m, save_step, work[i].queue_id, 0);
	}
	pfree(work);
}

/*
 * When somebody should look again, if nothing happens until then; 0 for never.
 * A queue that was too large to be swept after its last use is due as soon as
 * its cost allows, and what could not be given up, because somebody holds it,
 * is tried again later.
 */
TimestampTz
msgq_maintain_due(MsgqMaintenance *m)
{
	int			n;
	Work	   *work = list_work(m, &n);
	TimestampTz earliest;
	List	   *streams = list_streams(m);
	ListCell   *cell;

	m->stream_due = 0;
	foreach(cell, streams)
		run_step(m, stream_due_step, lfirst_int(cell), 0);
	list_free(streams);
	earliest = msgq_maintain_next_fire(m);
	if (m->stream_due != 0 && (earliest == 0 || m->stream_due < earliest))
		earliest = m->stream_due;
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
		run_step(m, notify_step, work[i].queue_id, 0);
		told = true;
	}
	pfree(work);
	return told;
}

/* An advisory lock of this kind, for our database. */
void
msgq_worker_lock_tag(LOCKTAG *tag, int kind)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, msgq_relation_oid("queue"), 0,
						 kind);
}

/* A round, unless somebody does one by hand. */
void
msgq_maintain_round(MsgqMaintenance *m)
{
	LOCKTAG		tag;
	bool		alone;

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
	maintain(&m);
	AtEOXact_GUC(false, guc_level);
	PG_RETURN_JSONB_P(round_as_jsonb(&m.round));
}
