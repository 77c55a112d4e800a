/*
 * poison.c
 *		Failed deliveries of which no row tells: pops that were rolled back.
 *
 * The problem.  A message whose handler always fails must end in the
 * dead-letter queue at some time.  A receive leaves its lease behind, which
 * tells of the delivery.  A pop and the work are one transaction, and when it
 * aborts, it takes with it all that it might have written about its failure.
 *
 * The answer.  The abort notes in shared memory, in the queue's slot, that the
 * message failed: its id, and how often.  A note is a debt of the message's
 * row: so many deliveries and failures are to be added to it.  It is paid
 *
 *	- by the next claim, receive or pop, that gets the message: what it
 *	  delivers, and whether the message is exhausted, includes the note;
 *	- by the worker's next round, or maintain(), which changes the row if
 *	  nobody holds it, and lets it wait as after a nack; or which gives the
 *	  message up if it is exhausted.  So a handler that fails at once does not
 *	  fail in a loop, and what it has failed at is written down even if it
 *	  never does anything but fail.
 *
 * States of a note, and who does what when:
 *
 *	abort		adds 1 for each message that was popped by what is aborted;
 *				at a rollback to a savepoint too
 *	claim		reads the note, adds it to the row, and remembers that.  The
 *				note stays: should we abort, the row does not tell of it
 *	pre-commit	takes out what was added to rows.  We hold these rows until the
 *				commit, and whoever claims a row reads the note after he has
 *				seen the row, so nobody adds it twice.  Should the commit fail
 *				after all, the abort puts it back
 *	prepare		as pre-commit, and then forgets all: nobody is told how a
 *				prepared transaction ends.  If it is rolled back, its pops are
 *				not counted, and notes that it had paid are lost
 *	round		drops notes about messages that are gone
 *
 * An abort is noted after its rows have become free.  Somebody who is very
 * quick claims such a row without the note, which is paid later then, or
 * dropped in a round if the message is gone by that time.
 *
 * Notes are best effort.  They are lost in a crash and at a restart.  There
 * are none without shared memory, or for a queue without a slot.  A queue has
 * room for MSGQ_MAX_NOTES messages, and a transaction remembers so many of
 * its pops; more are not counted.
 *
 * Why it was aborted.  A serialization failure, a cancel or a full disk say
 * nothing about the message, and are not counted.  An abort callback is not
 * told the error.  But before the server aborts because of one it reports it,
 * and a hook there shows it to us, if errors are written to the log.  What is
 * caught, by PL/pgSQL's EXCEPTION, is not reported; so it counts, as a plain
 * ROLLBACK does.  The reason holds until the transaction ends or a
 * subtransaction starts; ROLLBACK TO SAVEPOINT starts one.
 *
 * Locks.  Notes are protected by their slot's lock, which is held for one look
 * at an array; their number can be read without, and while it is 0 that is
 * all that a claim pays.  What happens at the end of a transaction, which is
 * when its locks on the tables are still held, does not allocate, does not
 * wait for anything else, and cannot fail.
 *
 * src/poison.c
 */
#include "msgq.h"

#include "access/xact.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "deadletter.h"
#include "message.h"
#include "poison.h"
#include "stats.h"
#include "testing.h"
#include "wakeup.h"

/* A transaction remembers so many of its pops. */
#define MAX_POPPED			MSGQ_MAX_NOTES

/* Do rolled back pops count?  As it is when they are rolled back. */
static bool count_rollbacks = true;

/* What the current transaction has done to a message. */
typedef struct Touched
{
	MsgqSlot   *slot;
	int64		id;
	int			nest_level;
	bool		popped;			/* its abort is a failed delivery */
	int32		entered;		/* failures of the note that the row now has */
	int32		taken_out;		/* so many of them from the note */
} Touched;

static Touched *touched = NULL;
static int	ntouched = 0;
static int	touched_room = 0;
static int	npopped = 0;		/* of those */

/* The error that aborts the current transaction, or 0. */
static int	reason = 0;

static emit_log_hook_type previous_log_hook = NULL;

/* ---------------------------------------------------------------------------
 * Reasons
 * ---------------------------------------------------------------------------
 */

/* An error that nobody has caught: what follows is the abort. */
static void
log_hook(ErrorData *error)
{
	if (error->elevel >= ERROR && IsTransactionState())
		reason = error->sqlerrcode;
	if (previous_log_hook)
		previous_log_hook(error);
}

/* Once per process, from _PG_init. */
void
msgq_poison_init(void)
{
	DefineCustomBoolVariable("msgq.count_rollbacks",
							 "Counts it as a failed delivery when a pop is rolled back.",
							 "Serialization failures, cancels and a lack of resources do not count.",
							 &count_rollbacks,
							 true,
							 PGC_USERSET,
							 0,
							 NULL,	/* check hook */
							 NULL,	/* assign hook */
							 NULL); /* show hook */
	previous_log_hook = emit_log_hook;
	emit_log_hook = log_hook;
}

/* Might the message be to blame for the abort that goes on? */
static bool
abort_counts(void)
{
	int			category = ERRCODE_TO_CATEGORY(reason);

	return count_rollbacks &&
		category != ERRCODE_TRANSACTION_ROLLBACK &&
		category != ERRCODE_INSUFFICIENT_RESOURCES &&
		reason != ERRCODE_QUERY_CANCELED &&
		reason != ERRCODE_LOCK_NOT_AVAILABLE;
}

/* ---------------------------------------------------------------------------
 * Notes
 * ---------------------------------------------------------------------------
 */

/* The caller holds the slot's lock. */
static MsgqNote *
find_note(MsgqSlot *slot, int64 id)
{
	int			n = pg_atomic_read_u32(&slot->nnotes);

	for (int i = 0; i < n; i++)
	{
		if (slot->notes[i].id == id)
			return &slot->notes[i];
	}
	return NULL;
}

/* So many more failures of this message are to be entered into its row. */
static void
add_to_note(MsgqSlot *slot, int64 id, int32 failures)
{
	MsgqNote   *note;
	int			n;

	LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	note = find_note(slot, id);
	n = pg_atomic_read_u32(&slot->nnotes);
	if (note)
		note->failures += failures;
	else if (n < MSGQ_MAX_NOTES)
	{
		slot->notes[n].id = id;
		slot->notes[n].failures = failures;
		pg_atomic_write_u32(&slot->nnotes, n + 1);
	}
	LWLockRelease(&slot->lock);
}

/* So many less.  Returns how many the note had of them. */
static int32
take_from_note(MsgqSlot *slot, int64 id, int32 failures)
{
	MsgqNote   *note;
	int			n;

	LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	note = find_note(slot, id);
	failures = note ? Min(note->failures, failures) : 0;
	if (note && (note->failures -= failures) == 0)
	{
		n = pg_atomic_read_u32(&slot->nnotes) - 1;
		*note = slot->notes[n];
		pg_atomic_write_u32(&slot->nnotes, n);
	}
	LWLockRelease(&slot->lock);
	return failures;
}

static int
copy_notes(MsgqSlot *slot, MsgqNote *notes)
{
	int			n;

	LWLockAcquire(&slot->lock, LW_SHARED);
	n = pg_atomic_read_u32(&slot->nnotes);
	memcpy(notes, slot->notes, sizeof(MsgqNote) * n);
	LWLockRelease(&slot->lock);
	return n;
}

/*
 * Failures of a message that its row does not have yet, as our transaction
 * sees the row: it may have entered some.
 */
int32
msgq_poison_failures(MsgqSlot *slot, int64 id)
{
	MsgqNote   *note;
	int32		failures;

	if (!msgq_poison_has_notes(slot))
		return 0;
	LWLockAcquire(&slot->lock, LW_SHARED);
	note = find_note(slot, id);
	failures = note ? note->failures : 0;
	LWLockRelease(&slot->lock);
	for (int i = 0; failures > 0 && i < ntouched; i++)
	{
		if (touched[i].slot == slot && touched[i].id == id)
			failures -= touched[i].entered;
	}
	return Max(failures, 0);
}

/* ---------------------------------------------------------------------------
 * Our own transaction
 * ---------------------------------------------------------------------------
 */

static void
touch(MsgqSlot *slot, int64 id, int32 failures, bool popped)
{
	touched = msgq_make_room(touched, ntouched, &touched_room,
							 sizeof(Touched));
	touched[ntouched].slot = slot;
	touched[ntouched].id = id;
	touched[ntouched].nest_level = GetCurrentTransactionNestLevel();
	touched[ntouched].popped = popped;
	touched[ntouched].entered = failures;
	touched[ntouched].taken_out = 0;
	ntouched++;
	npopped += popped;
}

/*
 * The current transaction has added to the message's row so many failures of
 * its note, or removed the row with them.
 */
void
msgq_poison_entered(MsgqSlot *slot, int64 id, int32 failures)
{
	if (failures > 0)
		touch(slot, id, failures, false);
}

/* It has popped the message, and has shown so many failures of its note. */
void
msgq_poison_popped(MsgqSlot *slot, int64 id, int32 failures)
{
	if (slot && (failures > 0 || npopped < MAX_POPPED))
		touch(slot, id, failures, true);
}

/* It is about to commit or to be prepared: its rows tell from then on. */
void
msgq_poison_pre_commit(void)
{
	for (int i = 0; i < ntouched; i++)
	{
		if (touched[i].entered > 0)
			touched[i].taken_out = take_from_note(touched[i].slot,
												  touched[i].id,
												  touched[i].entered);
	}
}

/* What was done to a message is undone. */
static void
undo(const Touched *message, bool counts)
{
	int32		failures = message->taken_out +
	(message->popped && counts ? 1 : 0);

	if (failures > 0)
		add_to_note(message->slot, message->id, failures);
}

/* It is over: aborted, or else committed or prepared. */
void
msgq_poison_transaction_ended(bool aborted)
{
	if (aborted && ntouched > 0)
	{
		bool		counts = abort_counts();

		for (int i = 0; i < ntouched; i++)
			undo(&touched[i], counts);
	}
	ntouched = 0;
	npopped = 0;
	reason = 0;
}

/* Whatever was aborted before, the transaction goes on. */
void
msgq_poison_subtransaction_started(void)
{
	reason = 0;
}

void
msgq_poison_subtransaction_committed(int nest_level)
{
	for (int i = ntouched; --i >= 0 && touched[i].nest_level >= nest_level;)
		touched[i].nest_level = nest_level - 1;
}

/* The deepest levels come last. */
void
msgq_poison_subtransaction_aborted(int nest_level)
{
	bool		counts = abort_counts();

	while (ntouched > 0 && touched[ntouched - 1].nest_level >= nest_level)
	{
		Touched    *message = &touched[--ntouched];

		npopped -= message->popped;
		undo(message, counts);
	}
}

/* ---------------------------------------------------------------------------
 * Rounds
 * ---------------------------------------------------------------------------
 */

/* When a message that has failed so often is due again. */
static TimestampTz
retry_time(const MsgqQueue *queue, TupleTableSlot *row, int32 failures,
		   TimestampTz now)
{
	TimestampTz retry = now + msgq_queue_backoff(queue, now, failures);

	if (msgq_row_is_null(row, Anum_segment_visible_at))
		return retry;
	return Max(retry, msgq_row_time(row, Anum_segment_visible_at));
}

/*
 * Makes the change to the row in segment->row, or gives the message up if all
 * its deliveries have failed.
 */
static bool
change_or_give_up(MsgqStorage *storage, MsgqSegment *segment,
				  const MsgqChange *change, TimestampTz now)
{
	if (!msgq_is_exhausted(storage->queue, segment->row, change->more_failures))
		return msgq_segment_change(segment, change, false) == MSGQ_DONE;
	if (msgq_segment_remove_changed(segment, change) != MSGQ_DONE)
		return false;
	msgq_dead_letter(storage, segment->new_row, MSGQ_REASON_MAX_DELIVERIES,
					 NULL, now);
	return true;
}

/* Enters the failures into the row in segment->row; true if that was done. */
static bool
enter(MsgqStorage *storage, MsgqSegment *segment, int64 id, int32 failures,
	  TimestampTz now)
{
	TupleTableSlot *row = segment->row;
	int32		before = DatumGetInt32(msgq_row_value(row, Anum_segment_failures));
	MsgqChange	change = {
		.set_visible_at = true,
		.unlease = true,
		.more_deliveries = failures,
		/* A lease that ran out is given up with it, and is a failure too. */
		.more_failures = failures + msgq_expired_leases(row),
	};

	change.visible_at = retry_time(storage->queue, row,
								   before + change.more_failures, now);
	if (!change_or_give_up(storage, segment, &change, now))
		return false;
	msgq_poison_entered(storage->slot, id, failures);
	msgq_count(storage->slot, MSGQ_DELIVERED, failures);
	msgq_count(storage->slot, MSGQ_FAILED, change.more_failures);
	msgq_wake_for_due_time(storage->slot, change.visible_at, now);
	return true;
}

/* Has the queue this message, whoever holds it? */
static bool
exists(MsgqStorage *storage, int64 id)
{
	bool		found = false;

	PushActiveSnapshot(GetLatestSnapshot());
	for (int i = 0; i < storage->nsegments && !found; i++)
		found = msgq_segment_look_up(storage->segments[i], id);
	PopActiveSnapshot();
	return found;
}

/*
 * Pays the note about a message, if nobody holds it.  The note is read after
 * the row was found free: had somebody else paid it meanwhile, this would not
 * be the row any more.  A message that is gone owes nothing.
 */
static bool
apply_note(MsgqStorage *storage, const MsgqNote *note)
{
	TimestampTz now = msgq_now();

	for (int i = 0; i < storage->nsegments; i++)
	{
		MsgqSegment *segment = storage->segments[i];
		int32		failures;

		if (!msgq_segment_find(segment, note->id))
			continue;
		failures = msgq_poison_failures(storage->slot, note->id);
		return failures > 0 && !msgq_row_is_in_flight(segment->row, now) &&
			enter(storage, segment, note->id, failures, now);
	}
	if (!exists(storage, note->id))
		(void) take_from_note(storage->slot, note->id, note->failures);
	return false;
}

/*
 * Enters the notes of a queue into its rows; all segments are open, and
 * nobody moves rows between them.  Returns the number of messages.
 */
int64
msgq_poison_apply(MsgqStorage *storage)
{
	MsgqNote	notes[MSGQ_MAX_NOTES];
	int			n = copy_notes(storage->slot, notes);
	int64		applied = 0;

	for (int i = 0; i < n; i++)
		applied += apply_note(storage, &notes[i]);
	return applied;
}
