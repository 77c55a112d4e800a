/*
 * shared.h
 *		The state that all backends share, and its home.
 *
 * src/shared.h
 */
#ifndef MSGQ_SHARED_H
#define MSGQ_SHARED_H

#include "port/atomics.h"
#include "storage/lwlock.h"

#include "frontier.h"
#include "queue.h"

/* What is counted for each queue; the names are columns of queue_stats. */
typedef enum MsgqCounter
{
	MSGQ_SENT,
	MSGQ_DELIVERED,
	MSGQ_ACKED,
	MSGQ_FAILED,
	MSGQ_EXPIRED,
	MSGQ_DROPPED,
	MSGQ_DEAD_LETTERED,
	MSGQ_REDELIVERED,
	MSGQ_PURGED,
	MSGQ_CANCELLED,
	MSGQ_ARCHIVED,
	MSGQ_REDRIVEN,
	MSGQ_LATE_REPLIES,
	MSGQ_NCOUNTERS
} MsgqCounter;

/* A queue, for as long as the server runs; an OID alone can be used again. */
typedef struct MsgqQueueKey
{
	Oid			database;		/* InvalidOid: the slot is free */
	Oid			sequence;
	TimestampTz created_at;
} MsgqQueueKey;

/* Segments of a queue with shared frontiers; more than these have local ones. */
#define MSGQ_SLOT_SEGMENTS	10

typedef struct MsgqSegmentFrontiers
{
	Oid			segment;		/* InvalidOid: free */
	MsgqFrontier orders[2];		/* by MsgqOrder */
} MsgqSegmentFrontiers;

/*
 * So many failed deliveries of a message are to be entered into its row; see
 * poison.c.
 */
typedef struct MsgqNote
{
	int64		id;
	int32		failures;
} MsgqNote;

/* Messages of a queue about which there can be a note at one time. */
#define MSGQ_MAX_NOTES		128

/*
 * What is shared about one queue.  A slot stays its queue's until the queue
 * is gone; whoever uses it holds a lock on one of the queue's tables, or has
 * registered as a waiter (then what he may find is another queue's slot,
 * which costs a look in vain).
 */
typedef struct MsgqSlot
{
	MsgqQueueKey key;			/* shared->lock; constant while in use */
	LWLock		lock;			/* for the frontiers, to assign them, and for
								 * the notes */
	MsgqSegmentFrontiers segments[MSGQ_SLOT_SEGMENTS];

	pg_atomic_uint64 highest_id;	/* some id was taken that is this high, or
									 * higher */

	/* counters since the slot was made; floor is what was before */
	pg_atomic_uint64 counters[MSGQ_NCOUNTERS];
	pg_atomic_uint64 prepared;	/* transactions, of which nothing is counted */
	int64		floor[MSGQ_NCOUNTERS];	/* shared->lock */
	pg_atomic_uint32 has_floor;

	/* messages: counted at some time, and what came and went since */
	pg_atomic_uint64 live;
	pg_atomic_uint64 counted_delayed;
	pg_atomic_uint64 counted_in_flight;
	pg_atomic_uint32 has_live;
	pg_atomic_uint64 counted_at;	/* the worker's, by msgq_ticks */
	pg_atomic_uint64 counted_activity;

	/* failed deliveries that no row tells of; the number also without lock */
	pg_atomic_uint32 nnotes;
	MsgqNote	notes[MSGQ_MAX_NOTES];

	pg_atomic_uint32 appended;	/* to a stream, since its sequencer looked */

	pg_atomic_uint64 notified;	/* MSGQ_SENT when LISTENers were told last */

	pg_atomic_uint64 waiters[FLEXIBLE_ARRAY_MEMBER];	/* a bit for each
														 * process */
} MsgqSlot;

/* A database in which msgq is used. */
typedef struct MsgqDatabase
{
	pg_atomic_uint32 database;	/* InvalidOid: free */
	pg_atomic_uint32 active;	/* used since a worker looked last */
	pg_atomic_uint32 wanted;	/* the launcher was asked for a worker */
	pg_atomic_uint32 worker_pid;	/* 0: no worker runs */
	pg_atomic_uint32 sequencer_wanted;	/* the same for the sequencer */
	pg_atomic_uint32 sequencer_pid;
	pg_atomic_uint32 sequencer; /* its process number + 1, or 0 */
	pg_atomic_uint64 due_at;	/* when there is something for a worker to do
								 * though nobody uses msgq; 0: never */
} MsgqDatabase;

#define MSGQ_MAX_DATABASES	64

extern int	msgq_shared_queues;

extern void msgq_shared_init(void);
extern bool msgq_shared_available(void);
extern bool msgq_shared_preloaded(void);

extern MsgqSlot *msgq_slot_get(Oid sequence, TimestampTz created_at);
extern void msgq_slot_free_gone(void);
extern int	msgq_slot_count(int *used);
extern void msgq_slot_load_floor(MsgqSlot *slot, const int64 *floor);
extern MsgqSlot *msgq_slot_find(Oid sequence, TimestampTz created_at);
extern void msgq_slot_forget_segment(MsgqSlot *slot, Oid segment);
extern MsgqFrontierRef msgq_slot_frontier(MsgqSlot *slot, const MsgqQueue *queue,
										  Oid segment, MsgqOrder order);

extern int	msgq_waiter_words(void);

/* Ids that are about to be taken: one entry for each process. */
typedef struct MsgqAppend
{
	uint64		queue;			/* 0: none */
	int64		bound;
} MsgqAppend;

extern MsgqAppend msgq_append_publish(Oid sequence, MsgqSlot *slot);
extern void msgq_append_withdraw(MsgqAppend before);
extern void msgq_append_forget(int nest_level);
extern int64 msgq_append_lowest(Oid sequence, int64 highest_id);

/* Raises a value that only grows. */
static inline void
msgq_raise(pg_atomic_uint64 *value, uint64 to)
{
	uint64		before = pg_atomic_read_u64(value);

	while (before < to &&
		   !pg_atomic_compare_exchange_u64(value, &before, to))
		;
}

/* Databases and the worker; see worker.c. */
extern MsgqDatabase *msgq_database_find(Oid database);
extern MsgqDatabase *msgq_database_get(Oid database);
extern MsgqDatabase *msgq_database_next(int *i);
extern void msgq_database_free(MsgqDatabase *entry);
extern void msgq_launcher_register(void);
extern void msgq_launcher_wake(void);

/* Counts of waits over all queues, for health(). */
typedef struct MsgqWaitCounts
{
	uint64		woken;			/* by a commit or the clock, and found */
	uint64		polled;			/* found by looking anyhow */
} MsgqWaitCounts;

extern void msgq_wait_count(bool woken);
extern MsgqWaitCounts msgq_wait_counts(void);

/* The defects that the audit has found since the server started. */
extern void msgq_audit_count(uint64 found);
extern uint64 msgq_audit_found(void);

#endif							/* MSGQ_SHARED_H */
