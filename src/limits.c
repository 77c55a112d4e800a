/*
 * limits.c
 *		What a queue takes and gives: pauses, and limits on its length and on
 *		the messages in flight.
 *
 * A paused queue keeps its messages, and they can be settled.  Where sending
 * is paused, send raises MQ004; where receiving is, receive finds nothing
 * (receive.c) and waits on.  A pause takes effect for calls that begin after
 * its commit.
 *
 * The length of a queue is the number of its messages, whatever their state.
 * An exact limit would let senders wait for each other until they commit; so
 * the length is what was counted once, and what committed transactions have
 * added and taken since (stats.c), and what the own transaction has.  What
 * other open transactions have sent is not in it: so a queue may overshoot
 * its limit by that much, and no more.
 *
 * A sender for whose messages there is no room
 *
 *	reject			raises MQ005, and stores nothing;
 *	drop_oldest		removes so many of the oldest messages,
 *	dead_letter		or moves them to the dead-letter queue.
 *
 * The oldest ones are, of each priority from the lowest on, those that were
 * ready first, then those that are due or delayed, soonest first.  What is in
 * flight, or held by another transaction, stays; if nothing else is left the
 * queue overshoots by what is in flight.
 *
 * Messages in flight are counted one by one from now on in the order of due
 * times, each time that somebody receives from a queue with a limit on them;
 * receive.c tells why no two receivers exceed it.
 *
 * Not counted is a lease in a segment that is marked drained: that of a
 * message which came late (ring.c), until maintenance has found it there.
 *
 * src/limits.c
 */
#include "msgq.h"

#include "catalog/pg_type.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"

#include "admin.h"
#include "argument.h"
#include "deadletter.h"
#include "limits.h"
#include "message.h"
#include "owner.h"
#include "stats.h"
#include "wakeup.h"

/* ---------------------------------------------------------------------------
 * Messages in flight
 * ---------------------------------------------------------------------------
 */

/*
 * Messages in flight in the open segments, or most if there are more; claims
 * of open transactions count.
 */
int
msgq_count_in_flight(const MsgqStorage *storage, TimestampTz now, int most)
{
	int			n = 0;

	for (int i = 0; i < storage->nsegments; i++)
	{
		MsgqSegment *segment = storage->segments[i];
		MsgqWalk   *walk = msgq_walk_begin(segment, MSGQ_DUE, now + 1,
										   PG_INT64_MAX);

		while (n < most && msgq_walk_next(walk))
			n += !msgq_row_is_null(segment->row, Anum_segment_leased_at);
		msgq_walk_end(walk);
	}
	return n;
}

/* ---------------------------------------------------------------------------
 * Length
 * ---------------------------------------------------------------------------
 */

/* Raises MQ004 if sending to the queue is paused. */
void
msgq_check_may_send(const MsgqQueue *queue)
{
	if (queue->paused & MSGQ_PAUSED_SEND)
		ereport(ERROR,
				(errcode(ERRCODE_MSGQ_PAUSED),
				 errmsg("queue \"%s\" is paused", NameStr(queue->name)),
				 errdetail("It takes no messages until msgq.resume() is called."),
				 errhint("Send again later.")));
}

static void
refuse(const MsgqQueue *queue, int64 length, int more)
{
	ereport(ERROR,
			(errcode(ERRCODE_MSGQ_QUEUE_FULL),
			 errmsg("queue \"%s\" is full", NameStr(queue->name)),
			 errdetail("Its length is " INT64_FORMAT ", %d would be added, and max_length is " INT64_FORMAT ".",
					   length, more, queue->max_length),
			 errhint("Send again when consumers have caught up, or raise max_length.")));
}

/*
 * Removes the free message on which the walk stands, as the policy says: drops
 * it, or moves it to the dead-letter queue.
 */
MsgqOutcome
msgq_drop_message(MsgqStorage *storage, MsgqWalk *walk, TimestampTz now)
{
	MsgqChange	no_change = {0};
	MsgqOutcome outcome = msgq_walk_remove(walk, &no_change);

	if (outcome != MSGQ_DONE)
		return outcome;
	msgq_wake_at_abort(storage->slot, 1);
	if (storage->queue->overflow == MSGQ_OVERFLOW_DEAD_LETTER)
		msgq_dead_letter(storage, walk->segment->new_row,
						 MSGQ_REASON_OVERFLOW, NULL, now);
	else
		msgq_count(storage->slot, MSGQ_DROPPED, 1);
	return outcome;
}

/* Those of a segment in one order, as many as are wanted, from the start on. */
static int64
drop_in_order(MsgqStorage *storage, MsgqSegment *segment, MsgqOrder order,
			  int64 wanted, TimestampTz now)
{
	MsgqWalk   *walk = msgq_walk_begin(segment, order, PG_INT64_MIN + 1,
									   PG_INT64_MAX);
	int64		dropped = 0;

	while (dropped < wanted && msgq_walk_next(walk))
	{
		if (!TransactionIdIsValid(walk->open_xid) &&
			!msgq_row_is_in_flight(segment->row, now) &&
			msgq_drop_message(storage, walk, now) == MSGQ_DONE)
			dropped++;
	}
	msgq_walk_end(walk);
	return dropped;
}

/* The same for all segments of a level. */
static int64
drop_from_segments(MsgqStorage *storage, int level, MsgqOrder order,
				   int64 wanted, TimestampTz now)
{
	int64		dropped = 0;

	for (int i = 0; i < storage->nsegments && dropped < wanted; i++)
	{
		if (storage->segments[i]->level == level)
			dropped += drop_in_order(storage, storage->segments[i], order,
									 wanted - dropped, now);
	}
	return dropped;
}

/*
 * The oldest ones of a level, likewise.  What is ready is found as a receive
 * finds it, from the frontier on: this is done for each message that is sent
 * to a full queue.  In an ordered queue the frontier has passed messages that
 * wait for others of their group (group.c), so there it begins at the start.
 */
static int64
drop_from_level(MsgqStorage *storage, int level, int64 wanted, TimestampTz now)
{
	int64		dropped = storage->queue->ordered ?
	drop_from_segments(storage, level, MSGQ_READY, wanted, now) :
	msgq_drop_ready(storage, level, wanted, now);

	return dropped + drop_from_segments(storage, level, MSGQ_DUE,
										wanted - dropped, now);
}

/* From the lowest level on. */
static void
drop_oldest(const MsgqStorage *sender, int64 wanted, TimestampTz now)
{
	MsgqStorage *storage = msgq_storage_open_again(sender, sender->command,
												   MSGQ_IN_USE);

	for (int level = 0; level < storage->queue->priorities && wanted > 0; level++)
		wanted -= drop_from_level(storage, level, wanted, now);
	msgq_storage_close(storage);
}

/*
 * Makes room for so many more messages in an open queue, as its policy says;
 * raises MQ005 if that is to refuse them.
 */
void
msgq_make_length(MsgqStorage *storage, int more, TimestampTz now)
{
	const MsgqQueue *queue = storage->queue;
	int64		length;

	if (queue->max_length == 0 || more == 0)
		return;
	length = msgq_stats_length(queue, storage->slot);
	if (length + more <= queue->max_length)
		return;
	if (queue->overflow == MSGQ_OVERFLOW_REJECT)
		refuse(queue, length, more);
	drop_oldest(storage, Min(length, length + more - queue->max_length), now);
}

/* ---------------------------------------------------------------------------
 * pause and resume
 * ---------------------------------------------------------------------------
 */

/* The argument "what" of pause and resume, as bits (else 22023). */
static int
what_argument(FunctionCallInfo fcinfo)
{
	char	   *what = msgq_arg_text(fcinfo, 1, "what");

	if (strcmp(what, "receive") == 0)
		return MSGQ_PAUSED_RECEIVE;
	if (strcmp(what, "send") == 0)
		return MSGQ_PAUSED_SEND;
	if (strcmp(what, "all") == 0)
		return MSGQ_PAUSED_RECEIVE | MSGQ_PAUSED_SEND;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("argument \"%s\" must be \"receive\", \"send\" or \"all\"",
					"what")));
	return 0;
}

/* What stands in the column "paused". */
static const char *
paused_word(int paused)
{
	static const char *const words[] = {
		NULL,
		[MSGQ_PAUSED_RECEIVE] = "receive",
		[MSGQ_PAUSED_SEND] = "send",
		[MSGQ_PAUSED_RECEIVE | MSGQ_PAUSED_SEND] = "all"
	};

	return words[paused];
}

/* Pauses what is in on, and resumes what is in off. */
static Datum
change_pause(FunctionCallInfo fcinfo, const char *command, int on, int off)
{
	char	   *name = msgq_arg_name(fcinfo, 0, "queue");
	MsgqQueue  *queue;
	const char *word;
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[2];
	bool		nulls[2] = {false, false};
	MsgqSpi		spi;

	msgq_begin_change(command);
	LockRelationOid(msgq_relation_oid("queue"), ShareRowExclusiveLock);
	queue = msgq_queue_get(name, MSGQ_RIGHT_MANAGE);
	word = paused_word((queue->paused | on) & ~off);
	values[0] = Int32GetDatum(queue->id);
	values[1] = word ? CStringGetTextDatum(word) : (Datum) 0;
	nulls[1] = word == NULL;
	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run_with("UPDATE msgq.queue SET paused = $2 WHERE id = $1",
					  SPI_OK_UPDATE, lengthof(values), types, values, nulls,
					  false);
	msgq_spi_end(&spi);
	msgq_queue_changed();
	/* Those who wait have looked in vain so far. */
	if (off & MSGQ_PAUSED_RECEIVE && msgq_queue_lock_for_reading(queue))
		msgq_wake_at_commit(msgq_slot_get(queue->sequence, queue->created_at), MSGQ_MAX_BATCH);
	CommandCounterIncrement();
	PG_RETURN_VOID();
}

/* pause(queue, what) */
PG_FUNCTION_INFO_V1(msgq_pause);
Datum
msgq_pause(PG_FUNCTION_ARGS)
{
	return change_pause(fcinfo, "msgq.pause()", what_argument(fcinfo), 0);
}

/* resume(queue, what) */
PG_FUNCTION_INFO_V1(msgq_resume);
Datum
msgq_resume(PG_FUNCTION_ARGS)
{
	return change_pause(fcinfo, "msgq.resume()", 0, what_argument(fcinfo));
}
