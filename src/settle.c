/*
 * settle.c
 *		Ends or prolongs a delivery: ack, archive, reply, nack, reject,
 *		extend, release; and, by the id of a message, cancel and expire_lease.
 *
 * A receipt is good for the one delivery that it was given for (message.h).
 * It has no effect once the message was settled, or given to somebody else,
 * or taken back.  That the lease has run out does not matter as long as
 * nobody else has got the message.
 *
 * Each settlement looks the message up, checks the receipt against the row,
 * and changes or removes the row.  Two cases:
 *
 *	- Nobody else has the row.  What was found is what there is: if the
 *	  receipt does not fit, it is stale.
 *
 *	- Another open transaction has it: it extends the lease, settles the same
 *	  receipt, or gives the message to somebody else.  Then we wait for it,
 *	  and check the receipt against whatever the row has become.  If it aborts,
 *	  that is the row that it was.  We do not lock the row, so if somebody else
 *	  comes first we wait again.  If the row is gone, all segments are looked
 *	  through once more, since it may have been moved to another one.
 *
 * The time of a change is read after the waiting, just before it is made.  A
 * due time must not be in the past when its index entry appears (frontier.c).
 *
 * A reject, and the nack of a message whose last delivery that was, removes the
 * message, and stores it in the dead-letter queue (deadletter.c).
 *
 * An archive is an ack that also stores the message in the archive (archive.c),
 * and a reply is one that also answers whoever has sent it (request.c).
 *
 * A batch goes through its receipts in the order of ids, so that two batches
 * with the same messages do not deadlock.
 *
 * src/settle.c
 */
#include "msgq.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "archive.h"
#include "argument.h"
#include "deadletter.h"
#include "group.h"
#include "history.h"
#include "message.h"
#include "owner.h"
#include "request.h"
#include "segment.h"
#include "stats.h"
#include "testing.h"
#include "wakeup.h"

typedef enum Action
{
	ACK,
	ARCHIVE,
	REPLY,
	NACK,
	REJECT,
	EXTEND,
	RELEASE,
	CANCEL,
	EXPIRE_LEASE
} Action;

/* What is to be done, and to which message. */
typedef struct Settlement
{
	Action		action;
	const char *command;		/* the caller's name, for messages */
	MsgqReceipt receipt;		/* only its id, for the last two actions */
	Interval   *time;			/* nack: delay or NULL; extend: timeout */
	char	   *error;			/* nack, reject: text or NULL */
	MsgqArchive *archive;		/* archive */
	Datum		reply;			/* reply: its body */
	bool		is_late;		/* reply: nobody waits for it any more */
	bool		strict;
} Settlement;

/* ---------------------------------------------------------------------------
 * What each action makes of a row
 * ---------------------------------------------------------------------------
 */

/* The row's headers with the error in them, cut at a character's end. */
static Datum
headers_with_error(TupleTableSlot *row, char *error)
{
	JsonbParseState *state = NULL;
	int			length = pg_mbcliplen(error, strlen(error), MSGQ_MAX_ERROR_BYTES);
	Datum		addition;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	msgq_push_text(&state, WJB_KEY, MSGQ_ERROR_HEADER);
	msgq_push_text(&state, WJB_VALUE, pnstrdup(error, length));
	addition = JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state,
															   WJB_END_OBJECT,
															   NULL)));
	if (msgq_row_is_null(row, Anum_segment_headers))
		return addition;
	return DirectFunctionCall2(jsonb_concat,
							   msgq_row_value(row, Anum_segment_headers),
							   addition);
}

/* May the action be done to this row: does the receipt fit? */
static bool
is_applicable(const Settlement *settlement, TupleTableSlot *row,
			  TimestampTz now)
{
	switch (settlement->action)
	{
		case CANCEL:
			return !msgq_row_is_in_flight(row, now);
		case EXPIRE_LEASE:
			return msgq_row_is_in_flight(row, now);
		default:
			return msgq_receipt_fits(&settlement->receipt, row);
	}
}

/* The change that the action makes; not for those that remove the row. */
static MsgqChange
change_of(const Settlement *settlement, const MsgqQueue *queue,
		  TupleTableSlot *row, TimestampTz now)
{
	MsgqChange	change = {.set_visible_at = true,.visible_at = now};
	int32		failures;

	switch (settlement->action)
	{
		case NACK:
			failures = DatumGetInt32(msgq_row_value(row, Anum_segment_failures));
			change.unlease = true;
			change.more_failures = 1;
			change.visible_at = settlement->time
				? msgq_time_after(now, settlement->time)
				: now + msgq_queue_backoff(queue, now, failures + 1);
			if (settlement->error)
			{
				change.set_headers = true;
				change.headers = headers_with_error(row, settlement->error);
			}
			break;
		case EXTEND:
			change.visible_at = msgq_time_after(now, settlement->time);
			break;
		case EXPIRE_LEASE:
			change.unlease = true;
			change.more_failures = 1;
			break;
		case RELEASE:
			change.unlease = true;
			break;
		case ACK:
		case ARCHIVE:
		case REPLY:
		case REJECT:
		case CANCEL:
			Assert(false);
			break;
	}
	return change;
}

/* Does the queue give the message up by this, and why? */
static bool
gives_up(const Settlement *settlement, const MsgqQueue *queue,
		 TupleTableSlot *row, MsgqReason *reason)
{
	*reason = MSGQ_REASON_REJECTED;
	if (settlement->action == REJECT)
		return true;
	*reason = MSGQ_REASON_MAX_DELIVERIES;
	return settlement->action == NACK && msgq_is_exhausted(queue, row, 1);
}

static MsgqOutcome
give_up(const Settlement *settlement, MsgqStorage *storage,
		MsgqSegment *segment, MsgqReason reason, bool wait)
{
	MsgqOutcome outcome = msgq_segment_remove(segment, wait);

	if (outcome != MSGQ_DONE)
		return outcome;
	msgq_dead_letter(storage, segment->row, reason, settlement->error,
					 msgq_now());
	/* What follows it in an ordered queue goes back, as with any nack. */
	msgq_group_note_return(storage, segment->row, msgq_now());
	return outcome;
}

static MsgqOutcome
archive(const Settlement *settlement, MsgqSegment *segment, bool wait)
{
	MsgqOutcome outcome = msgq_segment_remove(segment, wait);

	if (outcome == MSGQ_DONE)
		msgq_archive_add(settlement->archive, segment->row);
	return outcome;
}

static MsgqOutcome
reply(Settlement *settlement, const MsgqQueue *queue, MsgqSegment *segment,
	  bool wait)
{
	MsgqReplyTo to = msgq_reply_to(queue, segment->row);
	MsgqOutcome outcome = msgq_segment_remove(segment, wait);

	if (outcome == MSGQ_DONE)
		settlement->is_late = !msgq_reply_store(queue, &to, settlement->reply);
	return outcome;
}

/*
 * Does it to the row in segment->row.  MSGQ_DONE, or *stale is set, or
 * somebody else has the row.
 */
static MsgqOutcome
apply(Settlement *settlement, MsgqStorage *storage,
	  MsgqSegment *segment, bool wait, bool *stale)
{
	TimestampTz now = msgq_now();
	MsgqReason	reason;
	MsgqChange	change;
	MsgqOutcome outcome;

	*stale = !is_applicable(settlement, segment->row, now);
	if (*stale)
		return MSGQ_GONE;
	if (settlement->action == ACK || settlement->action == CANCEL)
		return msgq_segment_remove(segment, wait);
	if (settlement->action == ARCHIVE)
		return archive(settlement, segment, wait);
	if (settlement->action == REPLY)
		return reply(settlement, storage->queue, segment, wait);
	if (gives_up(settlement, storage->queue, segment->row, &reason))
		return give_up(settlement, storage, segment, reason, wait);
	change = change_of(settlement, storage->queue, segment->row, now);
	outcome = msgq_segment_change(segment, &change, wait);
	if (outcome == MSGQ_DONE && change.unlease)
		msgq_group_note_return(storage, segment->row, change.visible_at);
	return outcome;
}

/* ---------------------------------------------------------------------------
 * One message
 * ---------------------------------------------------------------------------
 */

/* Raises the error of a strict call, if it is one. */
static bool
report_stale(const Settlement *settlement, const MsgqQueue *queue,
			 bool is_there)
{
	if (settlement->strict)
		ereport(ERROR,
				(errcode(ERRCODE_MSGQ_STALE_RECEIPT),
				 errmsg("receipt is stale"),
				 is_there ?
				 errdetail("Message " INT64_FORMAT " of queue \"%s\" has been given back or delivered again since.",
						   settlement->receipt.id, NameStr(queue->name)) :
				 errdetail("Queue \"%s\" has no message " INT64_FORMAT " any more.",
						   NameStr(queue->name), settlement->receipt.id),
				 errhint("Whoever holds the message now will settle it; undo what was done for this delivery.")));
	return false;
}

/* The segment that has the committed version of the message, or NULL. */
static MsgqSegment *
look_up(MsgqStorage *storage, int64 id)
{
	MsgqSegment *found = NULL;

	/* What an earlier receipt of a batch has removed is not there. */
	CommandCounterIncrement();
	PushActiveSnapshot(GetLatestSnapshot());
	for (int i = 0; i < storage->nsegments && found == NULL; i++)
	{
		if (msgq_segment_look_up(storage->segments[i], id))
			found = storage->segments[i];
	}
	PopActiveSnapshot();
	return found;
}

/* What became of a settlement. */
typedef enum SettleResult
{
	SETTLED,
	STALE,						/* the message is there, but not for this
								 * receipt */
	MISSING
} SettleResult;

/*
 * The row is somebody else's, or was: wait, and look at what there is then.
 * Each time around, somebody else's change has ended.
 */
static SettleResult
settle_contended(Settlement *settlement, MsgqStorage *storage)
{
	int			misses = 0;

	while (misses < 2)
	{
		MsgqSegment *segment = look_up(storage, settlement->receipt.id);
		bool		stale;

		CHECK_FOR_INTERRUPTS();
		if (segment == NULL)
		{
			misses++;
			continue;
		}
		if (msgq_segment_wait(segment))
			continue;
		if (apply(settlement, storage, segment, true, &stale) == MSGQ_DONE)
			return SETTLED;
		if (stale)
			return STALE;
	}
	return MISSING;
}

/* In the segments that are open. */
static SettleResult
settle_in_open(Settlement *settlement, MsgqStorage *storage)
{
	for (int i = 0; i < storage->nsegments; i++)
	{
		MsgqSegment *segment = storage->segments[i];
		bool		stale;

		CHECK_FOR_INTERRUPTS();
		if (!msgq_segment_find(segment, settlement->receipt.id))
			continue;
		if (apply(settlement, storage, segment, false, &stale) == MSGQ_DONE)
			return SETTLED;
		if (stale)
			return STALE;
	}
	return settle_contended(settlement, storage);
}

/* What it means for others: counters, and wake-ups after the commit. */
static void
report_settled(const Settlement *settlement, const MsgqStorage *storage)
{
	MsgqSlot   *slot = storage->slot;
	TimestampTz now;

	switch (settlement->action)
	{
		case ACK:
		case REPLY:
			msgq_count(slot, MSGQ_ACKED, 1);
			break;
		case ARCHIVE:
			msgq_count(slot, MSGQ_ARCHIVED, 1);
			break;
		case CANCEL:
			msgq_count(slot, MSGQ_CANCELLED, 1);
			msgq_wake_at_abort(slot, 1);
			break;
		case NACK:
		case EXPIRE_LEASE:
			msgq_count(slot, MSGQ_FAILED, 1);
			msgq_wake_at_commit(slot, 1);
			break;
		case RELEASE:
			msgq_wake_at_commit(slot, 1);
			break;
		case EXTEND:
			now = msgq_now();
			msgq_wake_for_due_time(slot, msgq_time_after(now, settlement->time),
								   now);
			break;
		case REJECT:
			break;				/* counted where it went */
	}
	/* What has left flight for good makes room for another message. */
	if (storage->queue->max_in_flight > 0 &&
		(settlement->action == ACK || settlement->action == ARCHIVE ||
		 settlement->action == REPLY || settlement->action == REJECT))
		msgq_wake_at_commit(slot, 1);
}

/*
 * True if it was done, false if the receipt is stale (or the error of that).
 *
 * A message that is in none of the open segments may be in one that is marked
 * drained, or have been moved to one that became active meanwhile: then all
 * are opened, and again if the ring has turned before that was done.
 */
static bool
settle(Settlement *settlement, MsgqStorage **storage)
{
	SettleResult result = settle_in_open(settlement, *storage);

	while (result == MISSING && msgq_storage_is_partial(*storage))
	{
		MsgqStorage *partial = *storage;

		*storage = msgq_storage_open_again(partial, settlement->command,
										   MSGQ_ALL);
		(*storage)->ended = partial->ended;
		partial->ended = NULL;
		msgq_storage_close(partial);
		result = settle_in_open(settlement, *storage);
	}
	if (result == SETTLED)
	{
		report_settled(settlement, *storage);
		return true;
	}
	return report_stale(settlement, (*storage)->queue, result == STALE);
}

/* Opens the queue, and what the settlement needs besides. */
static MsgqStorage *
open_for(Settlement *settlement, const char *queue)
{
	MsgqStorage *storage = msgq_storage_open(settlement->command, queue,
											 MSGQ_RIGHT_RECEIVE, MSGQ_IN_USE);

	if (settlement->action == ARCHIVE)
		settlement->archive = msgq_archive_open(settlement->command, &storage);
	return storage;
}

static void
close_for(Settlement *settlement, MsgqStorage *storage)
{
	if (settlement->archive)
		msgq_archive_close(settlement->archive);
	msgq_storage_close(storage);
}

/* Arguments queue and receipt; the caller has filled in the rest. */
static Datum
settle_one(FunctionCallInfo fcinfo, Settlement *settlement)
{
	char	   *queue = msgq_arg_name(fcinfo, 0, "queue");
	pg_uuid_t  *receipt = DatumGetUUIDP(msgq_arg(fcinfo, 1, "receipt"));
	MsgqStorage *storage;
	bool		done;

	settlement->receipt = msgq_receipt_decode(receipt);
	storage = open_for(settlement, queue);
	done = settle(settlement, &storage);
	close_for(settlement, storage);
	PG_RETURN_BOOL(done);
}

/* Arguments queue and id. */
static Datum
settle_by_id(FunctionCallInfo fcinfo, Settlement *settlement)
{
	char	   *queue = msgq_arg_name(fcinfo, 0, "queue");
	MsgqStorage *storage;
	bool		done;

	settlement->receipt.id = DatumGetInt64(msgq_arg(fcinfo, 1, "id"));
	storage = msgq_storage_open(settlement->command, queue,
								MSGQ_RIGHT_MANAGE, MSGQ_IN_USE);
	done = settle(settlement, &storage);
	msgq_storage_close(storage);
	PG_RETURN_BOOL(done);
}

/* ---------------------------------------------------------------------------
 * Batches
 * ---------------------------------------------------------------------------
 */

typedef struct BatchItem
{
	pg_uuid_t  *receipt;
	int			position;		/* in the input */
} BatchItem;

/* By receipt, which is by id, then by place in the input. */
static int
compare_items(const void *left, const void *right)
{
	const BatchItem *a = left;
	const BatchItem *b = right;
	int			order = memcmp(a->receipt, b->receipt, UUID_LEN);

	return order != 0 ? order : a->position - b->position;
}

/* Settles each receipt once; marks the stale ones by their places. */
static void
settle_items(Settlement *settlement, MsgqStorage **storage, BatchItem *items,
			 int n, bool *stale)
{
	qsort(items, n, sizeof(BatchItem), compare_items);
	for (int i = 0; i < n; i++)
	{
		if (i > 0 &&
			memcmp(items[i].receipt, items[i - 1].receipt, UUID_LEN) == 0)
			continue;
		settlement->receipt = msgq_receipt_decode(items[i].receipt);
		stale[items[i].position] = !settle(settlement, storage);
	}
}

/* Arguments queue and receipts: returns the stale ones. */
static Datum
settle_batch(FunctionCallInfo fcinfo, Settlement *settlement)
{
	char	   *queue = msgq_arg_name(fcinfo, 0, "queue");
	Datum	   *receipts = NULL;
	BatchItem  *items;
	bool	   *stale;
	int			n = 0;
	int			n_stale = 0;

	if (!PG_ARGISNULL(1))
		receipts = msgq_array_elements(PG_GETARG_ARRAYTYPE_P(1), "receipts",
									   NULL, &n);
	items = palloc(sizeof(BatchItem) * n);
	stale = palloc0(sizeof(bool) * n);
	for (int i = 0; i < n; i++)
	{
		items[i].receipt = DatumGetUUIDP(receipts[i]);
		items[i].position = i;
	}

	if (n == 0)
	{
		MsgqQueue  *found;

		msgq_begin_change(settlement->command);
		found = msgq_queue_get(queue, MSGQ_RIGHT_RECEIVE);
		if (settlement->action == ARCHIVE)
			msgq_archive_check(found);
	}
	else
	{
		MsgqStorage *storage = open_for(settlement, queue);

		settle_items(settlement, &storage, items, n, stale);
		close_for(settlement, storage);
	}

	for (int i = 0; i < n; i++)
	{
		if (stale[i])
			receipts[n_stale++] = receipts[i];
	}
	PG_RETURN_ARRAYTYPE_P(construct_array(receipts, n_stale, UUIDOID,
										  UUID_LEN, false, TYPALIGN_CHAR));
}

/* ---------------------------------------------------------------------------
 * SQL functions
 * ---------------------------------------------------------------------------
 */

/* nack's arguments from number 2 on: delay, error, strict. */
static Settlement
nack_arguments(FunctionCallInfo fcinfo, const char *command)
{
	Settlement	settlement = {.action = NACK,.command = command};

	if (!PG_ARGISNULL(2))
	{
		settlement.time = PG_GETARG_INTERVAL_P(2);
		msgq_check_interval(settlement.time, "delay");
	}
	if (!PG_ARGISNULL(3))
		settlement.error = msgq_arg_text(fcinfo, 3, "error");
	settlement.strict = msgq_arg_bool(fcinfo, 4, "strict");
	return settlement;
}

/* reject's: reason, strict. */
static Settlement
reject_arguments(FunctionCallInfo fcinfo, const char *command)
{
	Settlement	settlement = {.action = REJECT,.command = command};

	if (!PG_ARGISNULL(2))
		settlement.error = msgq_arg_text(fcinfo, 2, "reason");
	settlement.strict = msgq_arg_bool(fcinfo, 3, "strict");
	return settlement;
}

/* extend's: visibility_timeout, strict. */
static Settlement
extend_arguments(FunctionCallInfo fcinfo, const char *command)
{
	Settlement	settlement = {.action = EXTEND,.command = command};

	settlement.time = DatumGetIntervalP(msgq_arg(fcinfo, 2,
												 "visibility_timeout"));
	msgq_check_interval(settlement.time, "visibility_timeout");
	settlement.strict = msgq_arg_bool(fcinfo, 3, "strict");
	return settlement;
}

/* The others': strict. */
static Settlement
plain_arguments(FunctionCallInfo fcinfo, Action action, const char *command)
{
	Settlement	settlement = {.action = action,.command = command};

	settlement.strict = msgq_arg_bool(fcinfo, 2, "strict");
	return settlement;
}

PG_FUNCTION_INFO_V1(msgq_ack);
Datum
msgq_ack(PG_FUNCTION_ARGS)
{
	Settlement	settlement = plain_arguments(fcinfo, ACK, "msgq.ack()");

	return settle_one(fcinfo, &settlement);
}

PG_FUNCTION_INFO_V1(msgq_ack_batch);
Datum
msgq_ack_batch(PG_FUNCTION_ARGS)
{
	Settlement	settlement = plain_arguments(fcinfo, ACK, "msgq.ack_batch()");

	return settle_batch(fcinfo, &settlement);
}

PG_FUNCTION_INFO_V1(msgq_archive);
Datum
msgq_archive(PG_FUNCTION_ARGS)
{
	Settlement	settlement = plain_arguments(fcinfo, ARCHIVE, "msgq.archive()");

	return settle_one(fcinfo, &settlement);
}

PG_FUNCTION_INFO_V1(msgq_archive_batch);
Datum
msgq_archive_batch(PG_FUNCTION_ARGS)
{
	Settlement	settlement = plain_arguments(fcinfo, ARCHIVE,
											 "msgq.archive_batch()");

	return settle_batch(fcinfo, &settlement);
}

/* reply(queue, receipt, body) */
PG_FUNCTION_INFO_V1(msgq_reply);
Datum
msgq_reply(PG_FUNCTION_ARGS)
{
	Settlement	settlement = {
		.action = REPLY,
		.command = "msgq.reply()",
		.reply = msgq_arg(fcinfo, 2, "body")
	};
	bool		done = DatumGetBool(settle_one(fcinfo, &settlement));

	PG_RETURN_BOOL(done && !settlement.is_late);
}

PG_FUNCTION_INFO_V1(msgq_nack);
Datum
msgq_nack(PG_FUNCTION_ARGS)
{
	Settlement	settlement = nack_arguments(fcinfo, "msgq.nack()");

	return settle_one(fcinfo, &settlement);
}

PG_FUNCTION_INFO_V1(msgq_nack_batch);
Datum
msgq_nack_batch(PG_FUNCTION_ARGS)
{
	Settlement	settlement = nack_arguments(fcinfo, "msgq.nack_batch()");

	return settle_batch(fcinfo, &settlement);
}

PG_FUNCTION_INFO_V1(msgq_reject);
Datum
msgq_reject(PG_FUNCTION_ARGS)
{
	Settlement	settlement = reject_arguments(fcinfo, "msgq.reject()");

	return settle_one(fcinfo, &settlement);
}

PG_FUNCTION_INFO_V1(msgq_reject_batch);
Datum
msgq_reject_batch(PG_FUNCTION_ARGS)
{
	Settlement	settlement = reject_arguments(fcinfo, "msgq.reject_batch()");

	return settle_batch(fcinfo, &settlement);
}

PG_FUNCTION_INFO_V1(msgq_extend);
Datum
msgq_extend(PG_FUNCTION_ARGS)
{
	Settlement	settlement = extend_arguments(fcinfo, "msgq.extend()");

	return settle_one(fcinfo, &settlement);
}

PG_FUNCTION_INFO_V1(msgq_extend_batch);
Datum
msgq_extend_batch(PG_FUNCTION_ARGS)
{
	Settlement	settlement = extend_arguments(fcinfo, "msgq.extend_batch()");

	return settle_batch(fcinfo, &settlement);
}

PG_FUNCTION_INFO_V1(msgq_release);
Datum
msgq_release(PG_FUNCTION_ARGS)
{
	Settlement	settlement = plain_arguments(fcinfo, RELEASE, "msgq.release()");

	return settle_one(fcinfo, &settlement);
}

PG_FUNCTION_INFO_V1(msgq_release_batch);
Datum
msgq_release_batch(PG_FUNCTION_ARGS)
{
	Settlement	settlement = plain_arguments(fcinfo, RELEASE,
											 "msgq.release_batch()");

	return settle_batch(fcinfo, &settlement);
}

PG_FUNCTION_INFO_V1(msgq_cancel);
Datum
msgq_cancel(PG_FUNCTION_ARGS)
{
	Settlement	settlement = {.action = CANCEL,.command = "msgq.cancel()"};

	return settle_by_id(fcinfo, &settlement);
}

PG_FUNCTION_INFO_V1(msgq_expire_lease);
Datum
msgq_expire_lease(PG_FUNCTION_ARGS)
{
	Settlement	settlement = {
		.action = EXPIRE_LEASE,
		.command = "msgq.expire_lease()"
	};

	return settle_by_id(fcinfo, &settlement);
}
