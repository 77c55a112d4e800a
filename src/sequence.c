/*
 * sequence.c
 *		When steps of the sequencer are made: by its process, and by hand.
 *
 * The process (worker.c) makes rounds over the streams of its database.  An
 * appender says in the stream's slot that there is something to do, and wakes
 * it; what is said stays until the next step, so that many commits cost one
 * wake-up.  Between two steps of a stream there is a pause, for entries to
 * gather: shorter where somebody waits for them.
 *
 * Nobody says that a prepared transaction was committed, so a stream with open
 * entries is looked at from time to time; and where there is no shared memory
 * nobody says anything, and streams are looked at all the time, until nothing
 * has come for a while.
 *
 * A step that fails, or that finds somebody changing the stream, holds up no
 * other stream.
 *
 * src/sequence.c
 */
#include "msgq.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "argument.h"
#include "owner.h"
#include "segment.h"
#include "sequencer.h"
#include "testing.h"
#include "wakeup.h"

/* So many milliseconds msgq.sequence waits for the horizon. */
#define MAX_HORIZON_WAITS	500

/* ---------------------------------------------------------------------------
 * Rounds of the worker's process
 * ---------------------------------------------------------------------------
 */

/*
 * Between two steps of a stream, in microseconds: where somebody waits for
 * entries, and where nobody does.  Without shared memory nobody tells of either.
 */
#define WAITED_INTERVAL		1000
#define INTERVAL			5000

/* Open entries are looked at so often: COMMIT PREPARED does not tell. */
#define OPEN_INTERVAL		100000

/* Somebody is changing or dropping the stream, or restores it. */
#define BUSY_INTERVAL		50000

/* A stream whose step has failed rests for so long. */
#define FAILED_INTERVAL		(5 * USECS_PER_SEC)

/* A stream to be sequenced, as the process knows it. */
typedef struct Sequenced
{
	int32		id;
	Oid			sequence;
	TimestampTz created_at;
	bool		is_new;			/* it has not been looked at */
	bool		is_pending;		/* there may be something to do */
	bool		has_open;
	int64		last_given;		/* when it was given positions, by msgq_ticks */
	int64		next;			/* no step before that */
} Sequenced;

static Sequenced *sequenced = NULL;
static int	nsequenced = 0;
static uint64 sequenced_generation = 0;

/* What was known of a stream before the list was read anew. */
static void
carry_over(Sequenced *stream, const Sequenced *before, int n)
{
	stream->is_new = true;
	for (int i = 0; i < n; i++)
	{
		if (before[i].sequence == stream->sequence &&
			before[i].created_at == stream->created_at)
			*stream = before[i];
	}
}

/* Reads the list of streams again if it may have changed. */
static void
refresh_streams(void)
{
	Sequenced  *before = sequenced;
	int			nbefore = nsequenced;
	uint64		generation;
	List	   *streams;
	ListCell   *cell;

	AcceptInvalidationMessages();
	generation = msgq_queue_generation();
	if (sequenced && sequenced_generation == generation)
		return;
	streams = msgq_stream_list(MSGQ_RIGHT_NONE);
	sequenced = MemoryContextAllocZero(TopMemoryContext, sizeof(Sequenced) *
									   (list_length(streams) + 1));
	nsequenced = 0;
	foreach(cell, streams)
	{
		const MsgqStream *stream = lfirst(cell);
		Sequenced  *entry = &sequenced[nsequenced++];

		entry->id = stream->id;
		entry->sequence = stream->sequence;
		entry->created_at = stream->created_at;
		carry_over(entry, before, nbefore);
	}
	sequenced_generation = generation;
	if (before)
		pfree(before);
}

/* Makes a step in a transaction of its own. */
static void
step_alone(Sequenced *stream, MsgqSlot *slot)
{
	MemoryContext context = CurrentMemoryContext;
	MsgqSequenceStep step;
	int64		begun = msgq_ticks();
	bool		done;

	if (slot)
		(void) pg_atomic_exchange_u32(&slot->appended, 0);
	PG_TRY();
	{
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		done = msgq_sequence_step(stream->id, false, &step);
		PopActiveSnapshot();
		msgq_commit_asynchronously();
		CommitTransactionCommand();
		MemoryContextSwitchTo(context);
		stream->is_pending = !done || !step.caught_up;
		stream->has_open = step.has_open;
		stream->next = begun + (!done ? BUSY_INTERVAL : step.has_more ? 0 :
								step.has_waiters ? WAITED_INTERVAL : INTERVAL);
		if (step.given > 0)
			stream->last_given = begun;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		HOLD_INTERRUPTS();
		AbortCurrentTransaction();
		RESUME_INTERRUPTS();
		MemoryContextSwitchTo(context);
		ereport(WARNING,
				(errcode(error->sqlerrcode),
				 errmsg("could not give positions in the stream with number %d: %s",
						stream->id, error->message)));
		FreeErrorData(error);
		stream->is_pending = true;
		stream->next = begun + FAILED_INTERVAL;
	}
	PG_END_TRY();
}

/*
 * Is there a reason to look at the stream?  That somebody has appended stays
 * said until the next step, or each commit before that would wake us.
 */
static void
ask(Sequenced *stream, MsgqSlot *slot, int64 now)
{
	if (slot == NULL || stream->is_new ||
		pg_atomic_read_u32(&slot->appended) != 0 ||
		(stream->has_open && now >= stream->next + OPEN_INTERVAL))
		stream->is_pending = true;
	stream->is_new = false;
}

/*
 * Makes a step in each stream that may need one.  Returns when to come again,
 * by msgq_ticks, if nobody wakes us until then; 0 if there is no reason to.
 */
int64
msgq_sequence_round(void)
{
	MemoryContext caller = CurrentMemoryContext;
	int64		next = 0;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	refresh_streams();
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(caller);
	for (int i = 0; i < nsequenced; i++)
	{
		Sequenced  *stream = &sequenced[i];
		MsgqSlot   *slot = msgq_slot_find(stream->sequence, stream->created_at);
		int64		now = msgq_ticks();
		int64		again;

		ask(stream, slot, now);
		if (stream->is_pending && now >= stream->next)
			step_alone(stream, slot);
		if (stream->is_pending)
			again = Max(stream->next, now);
		else if (stream->has_open || msgq_has_waiters(slot))
			again = stream->next + OPEN_INTERVAL;
		else if (slot == NULL && now - stream->last_given < USECS_PER_SEC)
			again = stream->next;
		else
			continue;
		if (next == 0 || again < next)
			next = again;
	}
	return next;
}

/* ---------------------------------------------------------------------------
 * The procedure sequence
 * ---------------------------------------------------------------------------
 */

/* The numbers of the streams, as an integer list. */
static List *
chosen_streams(const char *name)
{
	List	   *ids = NIL;
	ListCell   *cell;

	if (name)
		return list_make1_int(msgq_stream_get(name, MSGQ_RIGHT_RECEIVE)->id);
	foreach(cell, msgq_stream_list(MSGQ_RIGHT_RECEIVE))
		ids = lappend_int(ids, ((const MsgqStream *) lfirst(cell))->id);
	return ids;
}

/*
 * The highest id that was taken by now, with the stream's sequence; 0 if it has
 * gone.
 */
static int64
last_id(int32 stream_id, Oid *sequence)
{
	const MsgqStream *stream = msgq_stream_find_by_id(stream_id);

	*sequence = stream ? stream->sequence : InvalidOid;
	return stream && msgq_stream_is_complete(stream) ?
		msgq_last_id(stream->sequence) : 0;
}

/* Is somebody between taking an id and having stored its entry? */
static bool
somebody_appends(Oid sequence)
{
	return msgq_shared_available() &&
		msgq_append_lowest(sequence, PG_INT64_MAX - 1) != PG_INT64_MAX;
}

/*
 * Steps until all ids that were taken when we began have been looked at, each
 * in a transaction of its own.  Somebody who is about to append may keep the
 * append horizon below that for an instant, for which we wait; not for one who
 * is stuck there.
 */
static void
sequence_stream(int32 stream_id)
{
	MsgqSequenceStep step;
	Oid			sequence;
	int64		target;
	int			waits = 0;
	bool		done;

	PushActiveSnapshot(GetTransactionSnapshot());
	target = last_id(stream_id, &sequence);
	PopActiveSnapshot();

	do
	{
		CHECK_FOR_INTERRUPTS();
		PushActiveSnapshot(GetTransactionSnapshot());
		done = !msgq_sequence_step(stream_id, true, &step);
		PopActiveSnapshot();
		msgq_commit_asynchronously();
		SPI_commit();
		if (!done && step.high < target && !step.has_more)
		{
			done = !somebody_appends(sequence) || ++waits == MAX_HORIZON_WAITS;
			if (!done)
				pg_usleep(1000);
		}
	} while (!done && step.high < target);
}

/* sequence(stream) */
PG_FUNCTION_INFO_V1(msgq_sequence);
Datum
msgq_sequence(PG_FUNCTION_ARGS)
{
	char	   *name = PG_ARGISNULL(0) ? NULL : msgq_arg_name(fcinfo, 0, "stream");
	MemoryContext caller = CurrentMemoryContext;
	List	   *ids;
	ListCell   *cell;

	msgq_refuse_transaction_block(fcinfo, "msgq.sequence()",
								  "It gives positions in transactions of its own.",
								  "Call it outside of a transaction.");
	msgq_begin_change("msgq.sequence()");
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	MemoryContextSwitchTo(caller);
	ids = chosen_streams(name);
	foreach(cell, ids)
		sequence_stream(lfirst_int(cell));
	SPI_finish();
	PG_RETURN_VOID();
}
