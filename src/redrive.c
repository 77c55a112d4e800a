/*
 * redrive.c
 *		Takes dead letters back to the queues in which they died.
 *
 * Each message is removed from the dead-letter queue and stored anew in its
 * target, all in the caller's transaction.  What somebody holds, by a lease or
 * by an open transaction, is passed by; nobody is waited for.
 *
 * "Where it died" is the queue of the newest entry of its history that is not
 * of the dead-letter queue itself: a message that came back from that one's
 * own dead letters has been there as well.
 *
 * The message begins anew: no counters, the target's time to live.  Its
 * history stays, and so does the time at which it was first sent.  In the
 * dead-letter queue it counts as acknowledged, in the target as redriven.
 *
 * A message that returns to the queue in which it died gets its id back.
 * That id lies behind the frontier of the ready walk, so the row is stored as
 * due, by which walks find it (frontier.c).  The id is free if the queue is
 * still the same one: ids are never given twice, and the message is nowhere
 * else.  The history knows the queue by its name of then, which may be another
 * one's by now; if that has such an id, the message gets a new one.
 *
 * src/redrive.c
 */
#include "msgq.h"

#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/jsonb.h"
#include "utils/jsonpath.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "argument.h"
#include "deadletter.h"
#include "filter.h"
#include "history.h"
#include "limits.h"
#include "message.h"
#include "stats.h"
#include "testing.h"
#include "wakeup.h"

/* One call of redrive. */
typedef struct Redrive
{
	MsgqStorage *source;
	char	   *target_name;	/* NULL: where each came from */
	JsonPath   *filter;			/* or NULL */
	bool		dry_run;
	int64		wanted;			/* so many more */
	int64		done;
	TimestampTz now;
	List	   *targets;		/* of MsgqStorage, open */
	MemoryContext context;		/* of the call */
	MemoryContext message;		/* for what one message leaves */
} Redrive;

/* Does the filter take this message? */
static bool
passes_filter(JsonPath *filter, TupleTableSlot *row)
{
	bool		no_headers = msgq_row_is_null(row, Anum_segment_headers);
	bool		no_body = msgq_row_is_null(row, Anum_segment_body);
	Datum		headers = msgq_row_value(row, Anum_segment_headers);
	Datum		body = msgq_row_value(row, Anum_segment_body);

	return filter == NULL ||
		msgq_filter_passes(filter,
						   msgq_filter_input(no_headers ? NULL : &headers,
											 no_body ? NULL : &body));
}

/* The queue of this name, opened once for the call. */
static MsgqStorage *
open_target(Redrive *redrive, const char *name)
{
	MemoryContext caller;
	ListCell   *cell;
	MsgqStorage *target;

	foreach(cell, redrive->targets)
	{
		target = lfirst(cell);
		if (strcmp(NameStr(target->queue->name), name) == 0)
			return target;
	}
	caller = MemoryContextSwitchTo(redrive->context);
	target = msgq_storage_open("msgq.redrive()", name, MSGQ_RIGHT_SEND,
							   MSGQ_ALL);
	msgq_check_may_send(target->queue);
	redrive->targets = lappend(redrive->targets, target);
	MemoryContextSwitchTo(caller);
	return target;
}

/* Where the message is to go; with an error if nobody knows. */
static MsgqStorage *
target_of(Redrive *redrive, TupleTableSlot *row)
{
	const char *source = NameStr(redrive->source->queue->name);
	MsgqDeath	death;

	if (redrive->target_name)
		return open_target(redrive, redrive->target_name);
	if (!msgq_history_last(row, source, &death))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("message " INT64_FORMAT " of queue \"%s\" is no dead letter",
						msgq_row_id(row), source),
				 errdetail("It has no header \"msgq-death\" that says where it came from."),
				 errhint("Give a target, or a filter that leaves such messages out.")));
	if (msgq_queue_find(death.queue) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("queue \"%s\" does not exist", death.queue),
				 errdetail("Message " INT64_FORMAT " of queue \"%s\" came from there.",
						   msgq_row_id(row), source),
				 errhint("Give a target, or a filter that leaves such messages out.")));
	return open_target(redrive, death.queue);
}

/* Has the queue a message with this id? */
static bool
has_id(const MsgqStorage *storage, int64 id)
{
	bool		found = false;

	PushActiveSnapshot(GetLatestSnapshot());
	for (int i = 0; i < storage->nsegments && !found; i++)
	{
		found = msgq_segment_look_up(storage->segments[i], id);
		ExecClearTuple(storage->segments[i]->row);
	}
	PopActiveSnapshot();
	return found;
}

/*
 * The id that the message had in this queue; 0 if that was another queue, or
 * a namesake that was dropped, or renamed so that its name was free.
 */
static int64
id_in(const Redrive *redrive, const MsgqStorage *target, TupleTableSlot *row)
{
	const MsgqQueue *queue = target->queue;
	MsgqDeath	death;

	if (!msgq_history_last(row, NameStr(redrive->source->queue->name), &death) ||
		strcmp(death.queue, NameStr(queue->name)) != 0 ||
		death.died_at < queue->created_at || death.id > msgq_last_id(queue->sequence) ||
		has_id(target, death.id))
		return 0;
	return death.id;
}

/* Stores the message, which was removed, in its target. */
static void
send_back(Redrive *redrive, TupleTableSlot *row)
{
	MsgqStorage *target = target_of(redrive, row);
	MsgqCopy	how = {.id = id_in(redrive, target, row)};

	if (how.id != 0)
		how.visible_at = msgq_now();
	msgq_store_copy(target, row, &how, redrive->now);
	msgq_count(target->slot, MSGQ_REDRIVEN, 1);
	msgq_count(redrive->source->slot, MSGQ_ACKED, 1);
}

/* The message on which the walk stands, if nobody holds it and it is wanted. */
static bool
redrive_one(Redrive *redrive, MsgqWalk *walk)
{
	TupleTableSlot *row = walk->segment->row;
	MsgqChange	no_change = {0};

	if (TransactionIdIsValid(walk->open_xid) ||
		msgq_row_is_in_flight(row, redrive->now) ||
		msgq_is_expired(row, redrive->now) ||
		!passes_filter(redrive->filter, row))
		return false;
	if (redrive->dry_run)
	{
		(void) target_of(redrive, row);
		return true;
	}
	if (msgq_walk_remove(walk, &no_change) != MSGQ_DONE)
		return false;
	msgq_wake_at_abort(redrive->source->slot, 1);
	send_back(redrive, walk->segment->new_row);
	return true;
}

/* All messages of a segment in one order. */
static void
redrive_segment(Redrive *redrive, MsgqSegment *segment, MsgqOrder order)
{
	MsgqWalk   *walk = msgq_walk_begin(segment, order, PG_INT64_MIN + 1,
									   PG_INT64_MAX);

	while (redrive->wanted > 0 && msgq_walk_next(walk))
	{
		bool		done;

		MemoryContextSwitchTo(redrive->message);
		done = redrive_one(redrive, walk);
		MemoryContextSwitchTo(redrive->context);
		MemoryContextReset(redrive->message);
		redrive->wanted -= done;
		redrive->done += done;
	}
	msgq_walk_end(walk);
}

/* redrive(dead_letter_queue, target, max_messages, filter, dry_run) */
PG_FUNCTION_INFO_V1(msgq_redrive);
Datum
msgq_redrive(PG_FUNCTION_ARGS)
{
	char	   *name = msgq_arg_name(fcinfo, 0, "dead_letter_queue");
	Redrive		redrive = {
		.wanted = PG_INT64_MAX,
		.context = CurrentMemoryContext,
		.message = AllocSetContextCreate(CurrentMemoryContext, "msgq redrive",
										 ALLOCSET_DEFAULT_SIZES)
	};
	ListCell   *cell;

	if (!PG_ARGISNULL(1))
		redrive.target_name = msgq_arg_name(fcinfo, 1, "target");
	if (!PG_ARGISNULL(2))
	{
		redrive.wanted = PG_GETARG_INT32(2);
		if (redrive.wanted < 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("argument \"%s\" must not be negative",
							"max_messages")));
	}
	if (!PG_ARGISNULL(3))
		redrive.filter = PG_GETARG_JSONPATH_P(3);
	redrive.dry_run = msgq_arg_bool(fcinfo, 4, "dry_run");
	if (redrive.target_name && strcmp(redrive.target_name, name) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the target of a redrive must be another queue")));

	redrive.source = msgq_storage_open("msgq.redrive()", name,
									   MSGQ_RIGHT_MANAGE, MSGQ_ALL);
	redrive.now = msgq_now();
	if (redrive.target_name)
		(void) open_target(&redrive, redrive.target_name);
	for (int i = 0; i < redrive.source->nsegments; i++)
	{
		redrive_segment(&redrive, redrive.source->segments[i], MSGQ_DUE);
		redrive_segment(&redrive, redrive.source->segments[i], MSGQ_READY);
	}
	foreach(cell, redrive.targets)
		msgq_storage_close(lfirst(cell));
	msgq_storage_close(redrive.source);
	PG_RETURN_INT64(redrive.done);
}
