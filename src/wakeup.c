/*
 * wakeup.c
 *		Waiting for messages, and waking those who wait.
 *
 * NOTIFY would do it, but it serialises all commits of the server by one
 * lock.  Here a waiter has a bit in the slot of each queue that it waits for,
 * and whoever may have made a message available looks at the bits after the
 * end of his transaction, and sets a latch.
 *
 *	waiter						sender
 *	------						------
 *	set the bit, barrier		...
 *	look for a message			commit: the message can be seen
 *	sleep						barrier, look at the bits
 *								clear one bit, set that process's latch
 *
 * Whichever comes first, one of the two sees the other.
 *
 * One message wakes one waiter.  Whoever clears a bit has handed over the
 * message, so to speak, and the process whose bit it was owes a look: it looks
 * (after setting the bit again), or it passes the wake-up on when it leaves,
 * for whatever reason (msgq_wait_end).  A latch can be reset by somebody else
 * in the same process, as in a wait for a lock; so it is the bit that tells,
 * and a waiter whose bit is cleared does not go to sleep.
 *
 * Wake-ups come after a commit of: send (of delayed messages too, so that the
 * waiter reckons with the new due time), nack, release, expire_lease, and in
 * an ordered queue whatever leaves nothing of a group in flight; and after a
 * rollback of a receive or a cancel, which gives its messages back.  Undoing a
 * savepoint wakes at the end of the transaction.  A waiter wakes by itself
 * when the next message falls due (receive.c).
 *
 * Whoever waits for the reply to a request (request.c) is told by his latch
 * alone, since the request says which process he is.
 *
 * In a stream, waiters are told of positions by the commit of a step of the
 * sequencer, and of partitions that have become free by the end of whoever had
 * them; and the sequencer is woken by the commit, or the preparing, of whoever
 * has appended.
 *
 * Dropping a queue wakes all its waiters, so that they notice.  Whoever takes
 * a lease that ends before others look by themselves wakes one of them, who
 * then knows of it.
 *
 * Nobody wakes after COMMIT PREPARED, which does not run in the process that
 * sent; nor for rows that came by COPY or by restoring a dump.  So a waiter
 * also looks at least each msgq.poll_interval.  Without shared memory there
 * is only that.
 *
 * What happens at the end of a transaction does not allocate, does not take
 * locks and cannot fail.
 *
 * src/wakeup.c
 */
#include "msgq.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "argument.h"
#include "testing.h"
#include "wakeup.h"
#include "worker.h"

/* Without shared memory, waiters look at least this often (milliseconds). */
#define BLIND_POLL_INTERVAL 100

/* How often a waiter looks though nobody has woken it, in milliseconds. */
int			msgq_poll_interval = 1000;

/* What the end of the current transaction makes available. */
typedef struct Mark
{
	MsgqSlot   *slot;
	int			at_commit;		/* messages */
	int			at_abort;
	bool		appended;		/* entries, to a stream */
} Mark;

/* Processes that wait for the current transaction's replies. */
static int *processes = NULL;
static int	nprocesses = 0;
static int	processes_room = 0;

static Mark *marks = NULL;
static int	nmarks = 0;
static int	marks_room = 0;

/* A queue that we wait for: we have a bit in its slot. */
typedef struct Waiting
{
	MsgqSlot   *slot;
	bool		owes_look;		/* we were woken, and have not looked since */
} Waiting;

static Waiting *waiting = NULL;
static int	nwaiting = 0;
static int	waiting_room = 0;

/* We would have looked at a due time that others may not know of. */
static bool knows_due_time = false;

/* Once per backend, from _PG_init. */
void
msgq_wakeup_init(void)
{
	DefineCustomIntVariable("msgq.poll_interval",
							"Time after which a waiting receive looks for messages without having been woken.",
							"Wake-ups do not tell of prepared transactions and of rows that were copied in. "
							"Without shared memory, the interval is 100 ms at most.",
							&msgq_poll_interval,
							1000,
							10,
							INT_MAX,
							PGC_USERSET,
							GUC_UNIT_MS,
							NULL,	/* check hook */
							NULL,	/* assign hook */
							NULL);	/* show hook */
}

/* ---------------------------------------------------------------------------
 * Waking
 * ---------------------------------------------------------------------------
 */

/* Clears the bit of one waiter and sets its latch; false if there is none. */
static bool
wake_one(MsgqSlot *slot)
{
	for (int word = 0; word < msgq_waiter_words(); word++)
	{
		uint64		bits = pg_atomic_read_u64(&slot->waiters[word]);

		while (bits != 0)
		{
			int			n = pg_rightmost_one_pos64(bits);
			uint64		bit = UINT64CONST(1) << n;

			bits = pg_atomic_fetch_and_u64(&slot->waiters[word], ~bit);
			if (bits & bit)
			{
				SetLatch(&ProcGlobal->allProcs[word * 64 + n].procLatch);
				return true;
			}
		}
	}
	return false;
}

static void
wake(MsgqSlot *slot, int messages)
{
	while (messages-- > 0 && wake_one(slot))
		;
}

/* What is to be done for this slot at the end of the transaction. */
static Mark *
mark_of(MsgqSlot *slot)
{
	int			i;

	for (i = 0; i < nmarks && marks[i].slot != slot; i++)
		;
	if (i == nmarks)
	{
		marks = msgq_make_room(marks, nmarks, &marks_room, sizeof(Mark));
		marks[i].slot = slot;
		marks[i].at_commit = marks[i].at_abort = 0;
		marks[i].appended = false;
		nmarks++;
	}
	return &marks[i];
}

static void
mark(MsgqSlot *slot, int at_commit, int at_abort)
{
	Mark	   *which;

	if (slot == NULL)
		return;
	which = mark_of(slot);
	which->at_commit = Min(which->at_commit + at_commit, MSGQ_MAX_BATCH);
	which->at_abort = Min(which->at_abort + at_abort, MSGQ_MAX_BATCH);
}

/* So many messages become available if the transaction commits. */
void
msgq_wake_at_commit(MsgqSlot *slot, int messages)
{
	mark(slot, messages, 0);
}

/* So many messages come back if it, or a part of it, is undone. */
void
msgq_wake_at_abort(MsgqSlot *slot, int messages)
{
	mark(slot, 0, messages);
}

/* Entries can get their positions if the transaction commits. */
void
msgq_wake_sequencer_at_commit(MsgqSlot *slot)
{
	if (slot)
		mark_of(slot)->appended = true;
}

/*
 * This process, or one that has taken its place, has something to look at if
 * the transaction commits; or looks in vain, if it was undone to a savepoint.
 */
void
msgq_wake_process_at_commit(int process)
{
	if (process < 0 || process >= (int) ProcGlobal->allProcCount)
		return;
	processes = msgq_make_room(processes, nprocesses, &processes_room, sizeof(int));
	processes[nprocesses++] = process;
}

static void
wake_processes(bool committed)
{
	for (int i = 0; committed && i < nprocesses; i++)
		SetLatch(&ProcGlobal->allProcs[processes[i]].procLatch);
	nprocesses = 0;
}

/* There is something for the sequencer to look at.  Cannot fail. */
static void
wake_sequencer(void)
{
	bool		appended = false;

	for (int i = 0; i < nmarks; i++)
	{
		if (marks[i].appended &&
			pg_atomic_exchange_u32(&marks[i].slot->appended, 1) == 0)
			appended = true;
	}
	if (appended)
		msgq_sequencer_wake();
}

/*
 * The transaction is over, and what it did can be seen.  The slots are still
 * those of the queues: their tables are locked, or the wake-up is in vain.
 */
void
msgq_wakeup_transaction_ended(bool committed)
{
	wake_processes(committed);
	if (nmarks == 0)
		return;
	pg_memory_barrier();
	for (int i = 0; i < nmarks; i++)
		wake(marks[i].slot, committed ? marks[i].at_commit : marks[i].at_abort);
	if (committed)
		wake_sequencer();
	nmarks = 0;
	msgq_worker_remind();
}

/* A part of it was undone: what it had taken comes back at the end. */
void
msgq_wakeup_subtransaction_aborted(void)
{
	for (int i = 0; i < nmarks; i++)
		marks[i].at_commit = Min(marks[i].at_commit + marks[i].at_abort,
								 MSGQ_MAX_BATCH);
}

/*
 * It is prepared: others will end it, and nobody will tell.  So the sequencer
 * looks at its entries now, and then waits for its end.
 */
void
msgq_wakeup_forget(void)
{
	pg_memory_barrier();
	wake_sequencer();
	nmarks = 0;
	nprocesses = 0;
}

/* ---------------------------------------------------------------------------
 * Waiting
 * ---------------------------------------------------------------------------
 */

static pg_atomic_uint64 *
my_word(MsgqSlot *slot)
{
	return &slot->waiters[msgq_my_process_number() / 64];
}

static uint64
my_bit(void)
{
	return UINT64CONST(1) << (msgq_my_process_number() % 64);
}

/* Does anybody wait?  The slot may be NULL. */
bool
msgq_has_waiters(const MsgqSlot *slot)
{
	for (int i = 0; slot && i < msgq_waiter_words(); i++)
	{
		if (pg_atomic_read_u64((pg_atomic_uint64 *) &slot->waiters[i]) != 0)
			return true;
	}
	return false;
}

/*
 * We wait for this queue, too, until msgq_wait_end.  True if that is new, so
 * that we have to look once more; without shared state there is nothing to be
 * registered.
 */
bool
msgq_wait_register(MsgqSlot *slot)
{
	if (slot == NULL)
		return false;
	for (int i = 0; i < nwaiting; i++)
	{
		if (waiting[i].slot == slot)
			return false;
	}
	waiting = msgq_make_room(waiting, nwaiting, &waiting_room,
							 sizeof(Waiting));
	waiting[nwaiting].slot = slot;
	waiting[nwaiting].owes_look = false;
	nwaiting++;
	(void) pg_atomic_fetch_or_u64(my_word(slot), my_bit());
	return true;
}

/* Before each look: whoever makes a message available from now on tells us. */
void
msgq_wait_arm(void)
{
	for (int i = 0; i < nwaiting; i++)
	{
		uint64		before = pg_atomic_fetch_or_u64(my_word(waiting[i].slot),
													my_bit());

		if ((before & my_bit()) == 0)
			waiting[i].owes_look = true;
	}
	pg_memory_barrier();
}

/*
 * We have seen when the next message of one of the queues falls due, and will
 * look then if that is before others do.
 */
void
msgq_wait_until_due(TimestampTz due, TimestampTz poll_time)
{
	knows_due_time |= due < poll_time;
}

/* After a look at this queue, whatever it has found. */
void
msgq_wait_looked(MsgqSlot *slot)
{
	for (int i = 0; i < nwaiting; i++)
	{
		if (waiting[i].slot == slot)
			waiting[i].owes_look = false;
	}
}

/* Has somebody told us since we were armed? */
bool
msgq_wait_is_woken(void)
{
	for (int i = 0; i < nwaiting; i++)
	{
		if ((pg_atomic_read_u64(my_word(waiting[i].slot)) & my_bit()) == 0)
			return true;
	}
	return false;
}

/*
 * Waits for the latch, the client's end, or the time.  A client that goes
 * away would leave us waiting, to take a message that nobody gets; so where
 * the system tells, we go as well.
 */
static void
wait_for_latch(long timeout)
{
	WaitEvent	events[3];
	int			n;

	if (FeBeWaitSet == NULL || !WaitEventSetCanReportClosed())
	{
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 timeout, msgq_wait_event());
		return;
	}
	/* Whoever uses the set next sets the events that he wants. */
	ModifyWaitEvent(FeBeWaitSet, MSGQ_CLIENT_SOCKET_POSITION, WL_SOCKET_CLOSED,
					NULL);
	for (;;)
	{
		n = WaitEventSetWait(FeBeWaitSet, timeout, events, lengthof(events),
							 msgq_wait_event());
		for (int i = 0; i < n; i++)
		{
			if (events[i].events & WL_POSTMASTER_DEATH)
				ereport(FATAL,
						(errcode(ERRCODE_ADMIN_SHUTDOWN),
						 errmsg("terminating connection due to unexpected postmaster exit")));
			if (events[i].events & WL_SOCKET_CLOSED)
			{
				ClientConnectionLost = true;
				InterruptPending = true;
			}
		}
		/* A latch that is set hides what became of the client. */
		if (n == 0 || timeout == 0 || !(events[0].events & WL_LATCH_SET))
			return;
		ResetLatch(MyLatch);
		timeout = 0;
	}
}

/*
 * When a wait that begins now is over, by msgq_ticks: the clock may be set
 * meanwhile.
 */
int64
msgq_wait_deadline(const Interval *wait)
{
	TimestampTz now = msgq_now();

	return msgq_ticks() + (msgq_time_after(now, wait) - now);
}

/* The same by the clock, which shows this time now. */
TimestampTz
msgq_wait_deadline_time(int64 deadline, TimestampTz now)
{
	return now + (deadline - msgq_ticks());
}

/*
 * Sleeps until somebody wakes us, or until this time.  Returns whether
 * somebody has; or perhaps it was something else.
 */
bool
msgq_wait_sleep(TimestampTz until)
{
	if (msgq_wait_is_woken())
		return true;
	wait_for_latch(TimestampDifferenceMilliseconds(msgq_now(), until));
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	return msgq_wait_is_woken();
}

/*
 * We do not wait any more.  A wake-up after which we have not looked is passed
 * on, and so is what we know of due times.  May be called at the end of a
 * transaction, and when nothing is waited for.
 */
void
msgq_wait_end(void)
{
	for (int i = 0; i < nwaiting; i++)
	{
		uint64		before = pg_atomic_fetch_and_u64(my_word(waiting[i].slot),
													 ~my_bit());

		if ((before & my_bit()) == 0 || waiting[i].owes_look || knows_due_time)
			(void) wake_one(waiting[i].slot);
	}
	nwaiting = 0;
	knows_due_time = false;
}

/*
 * A message becomes due, by what this transaction does, sooner than others
 * look by themselves: one of them should know.
 */
void
msgq_wake_for_due_time(MsgqSlot *slot, TimestampTz due, TimestampTz now)
{
	if (due < msgq_wait_poll_time(slot, now))
		msgq_wake_at_commit(slot, 1);
}

/* When to look again in any case; the slot may be NULL. */
TimestampTz
msgq_wait_poll_time(const MsgqSlot *slot, TimestampTz now)
{
	int			interval = slot ? msgq_poll_interval :
	Min(msgq_poll_interval, BLIND_POLL_INTERVAL);

	return TimestampTzPlusMilliseconds(now, (int64) interval);
}
