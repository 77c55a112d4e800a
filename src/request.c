/*
 * request.c
 *		Messages that somebody waits for the answer to.
 *
 * A request is a message with the header msgq-reply-to, which says by what
 * number its reply is to be found, which process waits for it, and until when.
 *
 *	requester						worker
 *	---------						------
 *	send, commit
 *	wait, without a snapshot		receive
 *	...								work
 *	...								reply: remove the message, store the reply
 *	...								commit, set the requester's latch
 *	take the reply
 *
 * The reply is a row of msgq.reply_1 or _2, under a random number that only
 * those know who can receive the request; it commits with the worker's own
 * work.  The latch is a hint: a process that has taken the place of the
 * requester looks in vain, and a requester looks by itself each
 * msgq.poll_interval.
 *
 * What can happen:
 *
 *	- The deadline passes.  The message expires then, so that no worker begins
 *	  with it any more; the requester gets an error, and does not know whether
 *	  one had begun.
 *	- A worker replies after the deadline: the message is removed, as by ack; the
 *	  reply is dropped, and counted as late.
 *	- The worker dies, or gives the message back: another one gets it, within
 *	  the deadline.  Of two who think they have it only one can reply, since a
 *	  stale receipt has no effect.
 *	- The requester is cancelled, or dies: his request is worked on like any
 *	  message.  Nobody takes the reply; it is removed after the deadline, and
 *	  counted as late.
 *
 * A reply is stored in reply_1 while that is small, and else in reply_2.  The
 * table that takes none is truncated when it has none left that somebody may
 * still wait for: those that were taken are deleted, and a deadline is at most
 * MAX_TIMEOUT away.
 *
 * src/request.c
 */
#include "msgq.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "argument.h"
#include "message.h"
#include "owner.h"
#include "request.h"
#include "send.h"
#include "stats.h"
#include "table.h"
#include "testing.h"
#include "wakeup.h"

#define REPLY_TO_HEADER		"msgq-reply-to"

/* Nobody waits longer, and no reply is kept longer (microseconds). */
#define MAX_TIMEOUT			USECS_PER_HOUR

/* Of reply_1, above which replies go to reply_2. */
#define FULL_BYTES			(8 * 1024 * 1024)

/* Columns of msgq.reply_1 and _2; all are NOT NULL. */
enum
{
	Anum_reply_id = 1,
	Anum_reply_queue_id,
	Anum_reply_deadline,
	Anum_reply_body,
	Natts_reply = Anum_reply_body
};

#define REPLY_TABLES	2

static Oid
reply_table(int n)
{
	return msgq_relation_oid(psprintf("reply_%d", n));
}

/* ---------------------------------------------------------------------------
 * The header
 * ---------------------------------------------------------------------------
 */

/* {"msgq-reply-to": {"id": ..., "process": ..., "deadline": ...}} */
static Datum
make_header(const MsgqReplyTo *to)
{
	JsonbParseState *state = NULL;
	char		deadline[MAXDATELEN + 1];

	JsonEncodeDateTime(deadline, TimestampTzGetDatum(to->deadline), TIMESTAMPTZOID,
					   NULL);
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	msgq_push_text(&state, WJB_KEY, REPLY_TO_HEADER);
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	msgq_push_text(&state, WJB_KEY, "id");
	msgq_push_text(&state, WJB_VALUE,
				   DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&to->id))));
	msgq_push_number(&state, "process", to->process);
	msgq_push_text(&state, WJB_KEY, "deadline");
	msgq_push_text(&state, WJB_VALUE, deadline);
	pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	return JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state,
														   WJB_END_OBJECT, NULL)));
}

/* A field of an object as text; NULL if it has none, or one of another kind. */
static char *
field_text(JsonbContainer *object, const char *name)
{
	JsonbValue	value;

	if (getKeyJsonValueFromContainer(object, name, strlen(name), &value) == NULL)
		return NULL;
	if (value.type == jbvNumeric)
		return DatumGetCString(DirectFunctionCall1(numeric_out,
												   NumericGetDatum(value.val.numeric)));
	return value.type == jbvString ?
		pnstrdup(value.val.string.val, value.val.string.len) : NULL;
}

static void
refuse_reply(const MsgqQueue *queue, TupleTableSlot *row)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("message " INT64_FORMAT " of queue \"%s\" is not a request",
					msgq_row_id(row), NameStr(queue->name)),
			 errdetail("It has no header \"%s\".", REPLY_TO_HEADER),
			 errhint("Use msgq.ack() for a message that nobody waits for the answer to.")));
}

/* Who waits for the reply to a message (22023 if it is not a request). */
MsgqReplyTo
msgq_reply_to(const MsgqQueue *queue, TupleTableSlot *row)
{
	MsgqReplyTo to;
	Jsonb	   *headers;
	JsonbValue	value;
	char	   *id = NULL;
	char	   *process = NULL;
	char	   *deadline = NULL;

	if (!msgq_row_is_null(row, Anum_segment_headers))
	{
		headers = DatumGetJsonbP(msgq_row_value(row, Anum_segment_headers));
		if (getKeyJsonValueFromContainer(&headers->root, REPLY_TO_HEADER,
										 strlen(REPLY_TO_HEADER), &value) &&
			value.type == jbvBinary && JsonContainerIsObject(value.val.binary.data))
		{
			id = field_text(value.val.binary.data, "id");
			process = field_text(value.val.binary.data, "process");
			deadline = field_text(value.val.binary.data, "deadline");
		}
	}
	if (id == NULL || process == NULL || deadline == NULL)
		refuse_reply(queue, row);
	to.id = *DatumGetUUIDP(DirectFunctionCall1(uuid_in, CStringGetDatum(id)));
	to.process = DatumGetInt32(DirectFunctionCall1(int4in, CStringGetDatum(process)));
	to.deadline =
		DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in,
												CStringGetDatum(deadline),
												ObjectIdGetDatum(InvalidOid),
												Int32GetDatum(-1)));
	return to;
}

/* ---------------------------------------------------------------------------
 * Replying
 * ---------------------------------------------------------------------------
 */

/* Locks and opens the table that takes new replies. */
static MsgqTable *
open_for_replies(void)
{
	Relation	first = msgq_open(reply_table(1), RowExclusiveLock);

	if (msgq_relation_data_bytes(first) < FULL_BYTES)
		return msgq_table_open(first, Natts_reply, Natts_reply, RowExclusiveLock);
	table_close(first, RowExclusiveLock);
	return msgq_table_open(msgq_open(reply_table(2), RowExclusiveLock),
						   Natts_reply, Natts_reply, RowExclusiveLock);
}

/*
 * Stores the reply to a message of the queue, which the caller removes, and
 * wakes whoever waits for it with the commit.  False if it comes too late: then
 * it is not stored, but counted.
 */
bool
msgq_reply_store(const MsgqQueue *queue, const MsgqReplyTo *to, Datum body)
{
	Datum		values[Natts_reply];
	MsgqTable  *table;

	if (msgq_now() >= to->deadline)
	{
		msgq_count(msgq_slot_get(queue->sequence, queue->created_at),
				   MSGQ_LATE_REPLIES, 1);
		return false;
	}
	values[Anum_reply_id - 1] = UUIDPGetDatum(&to->id);
	values[Anum_reply_queue_id - 1] = Int32GetDatum(queue->id);
	values[Anum_reply_deadline - 1] = TimestampTzGetDatum(to->deadline);
	values[Anum_reply_body - 1] = body;
	table = open_for_replies();
	msgq_table_insert(table, values, NULL);
	msgq_table_close(table, NoLock);
	msgq_wake_process_at_commit(to->process);
	return true;
}

/* ---------------------------------------------------------------------------
 * Requesting
 * ---------------------------------------------------------------------------
 */

/* One call of request. */
typedef struct Request
{
	char	   *queue;
	MsgqReplyTo to;
	int64		wait_until;		/* the same deadline, by msgq_ticks */
	int64		message_id;
	Datum		reply;			/* in the memory context of the call */
} Request;

/*
 * Sends the message, which expires at the deadline.  headers are the caller's,
 * or NULL.
 */
static void
send_request(Request *request, Datum body, const Datum *headers)
{
	MsgqOutgoing out;

	msgq_outgoing_init(&out, 1, Anum_segment_body);
	out.contents[0] = body;
	if (headers)
		msgq_outgoing_set_headers(&out, 0, *headers);
	msgq_outgoing_add_headers(&out, 0, make_header(&request->to));
	out.expires_at = &request->to.deadline;
	msgq_outgoing_send("msgq.request()", request->queue, &out,
					   &request->message_id);
}

/*
 * Removes a reply that was taken.  If the worker is just removing it, since its
 * time is over, it is gone all the same.
 */
static void
remove_reply(MsgqTable *table)
{
	TM_FailureData failure;

	(void) table_tuple_delete(table->table, &table->row->tts_tid,
							  GetCurrentCommandId(true), GetActiveSnapshot(),
							  InvalidSnapshot, false, &failure, false);
}

/* Takes the reply from one of the tables; false if it is not there. */
static bool
take_from(Request *request, int n, MemoryContext caller)
{
	Relation	relation = msgq_open(reply_table(n), RowExclusiveLock);
	MsgqTable  *table = msgq_table_open(relation, Natts_reply, Natts_reply,
										RowExclusiveLock);
	ScanKeyData key;
	bool		found;

	ScanKeyInit(&key, Anum_reply_id, BTEqualStrategyNumber, F_UUID_EQ,
				UUIDPGetDatum(&request->to.id));
	found = msgq_table_find(table, GetActiveSnapshot(), &key, 1,
							ForwardScanDirection);
	if (found)
	{
		MemoryContext before = MemoryContextSwitchTo(caller);

		request->reply = msgq_self_contained(msgq_row_value(table->row,
															Anum_reply_body));
		MemoryContextSwitchTo(before);
		remove_reply(table);
	}
	msgq_table_close(table, NoLock);
	return found;
}

/*
 * Takes the reply, if it is there, and commits that: what the caller does next
 * is his own.  Losing the removal in a crash does no harm.
 */
static bool
take_reply(Request *request, MemoryContext caller)
{
	bool		found = false;

	PushActiveSnapshot(GetLatestSnapshot());
	for (int n = 1; n <= REPLY_TABLES && !found; n++)
		found = take_from(request, n, caller);
	PopActiveSnapshot();
	if (found)
	{
		msgq_commit_asynchronously();
		SPI_commit();
	}
	return found;
}

static void
raise_timed_out(const Request *request)
{
	ereport(ERROR,
			(errcode(ERRCODE_MSGQ_TIMED_OUT),
			 errmsg("request timed out"),
			 errdetail("Nobody has replied to message " INT64_FORMAT " of queue \"%s\" in time; whether a worker has begun with it is unknown.",
					   request->message_id, request->queue),
			 errhint("No worker will begin with it now. Find out what was done before you repeat the request, or make it safe to repeat.")));
}

/*
 * Looks and sleeps.  Each look is a transaction of its own; there is no
 * snapshot while we sleep.  The latch is reset before the look, so that a
 * reply that comes after it is not missed.
 */
static void
wait_for_reply(Request *request, MemoryContext caller)
{
	MemoryContext context = AllocSetContextCreate(caller, "msgq look for a reply",
												  ALLOCSET_SMALL_SIZES);

	for (;;)
	{
		MemoryContext before = MemoryContextSwitchTo(context);
		TimestampTz now = msgq_now();
		TimestampTz end;
		bool		found = take_reply(request, caller);

		MemoryContextSwitchTo(before);
		MemoryContextReset(context);
		if (found)
			return;
		if (msgq_ticks() >= request->wait_until)
			raise_timed_out(request);
		SPI_commit();
		end = msgq_wait_deadline_time(request->wait_until, now);
		(void) msgq_wait_sleep(Min(end, TimestampTzPlusMilliseconds(now, (int64) msgq_poll_interval)));
	}
}

static Interval *
timeout_argument(FunctionCallInfo fcinfo, int n)
{
	Interval   *timeout = DatumGetIntervalP(msgq_arg(fcinfo, n, "timeout"));

	msgq_check_interval(timeout, "timeout");
	if (msgq_interval_span(timeout) > MAX_TIMEOUT)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be longer than %d hour",
						"timeout", 1),
				 errhint("For an answer that takes longer, send a message and receive another one.")));
	return timeout;
}

/* The value of the procedure's one output argument. */
static Datum
call_result(FunctionCallInfo fcinfo, Datum value)
{
	TupleDesc	descriptor;
	bool		is_null = false;

	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return HeapTupleGetDatum(heap_form_tuple(descriptor, &value, &is_null));
}

/* request(queue, body, timeout, INOUT reply, headers) */
PG_FUNCTION_INFO_V1(msgq_request);
Datum
msgq_request(PG_FUNCTION_ARGS)
{
	MemoryContext caller = CurrentMemoryContext;
	Request		request = {0};
	Datum		body;
	Datum		headers = PG_ARGISNULL(4) ? (Datum) 0 : PG_GETARG_DATUM(4);
	Interval   *timeout;

	msgq_refuse_transaction_block(fcinfo, "msgq.request()",
								  "It commits the request before it waits for the reply.",
								  "Call it outside of a transaction.");
	request.queue = msgq_arg_name(fcinfo, 0, "queue");
	body = msgq_arg(fcinfo, 1, "body");
	timeout = timeout_argument(fcinfo, 2);
	request.to.deadline = msgq_time_after(msgq_now(), timeout);
	request.wait_until = msgq_wait_deadline(timeout);
	request.to.id = *DatumGetUUIDP(DirectFunctionCall1(gen_random_uuid, (Datum) 0));
	request.to.process = msgq_my_process_number();

	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	PushActiveSnapshot(GetTransactionSnapshot());
	send_request(&request, body, PG_ARGISNULL(4) ? NULL : &headers);
	PopActiveSnapshot();
	SPI_commit();
	msgq_point(MSGQ_POINT_REQUEST_SENT);
	wait_for_reply(&request, caller);
	SPI_finish();
	return call_result(fcinfo, request.reply);
}

/* ---------------------------------------------------------------------------
 * Maintenance
 * ---------------------------------------------------------------------------
 */

/* Counts replies that nobody has taken, from rows of queue_id and count. */
static void
count_unseen(int32 queue_id, int64 n)
{
	const MsgqQueue *queue = msgq_queue_find_by_id(queue_id);

	/* Who drops it waits for us; the slot of one that has gone is not ours. */
	if (queue && msgq_queue_lock_for_reading(queue))
		msgq_count(msgq_slot_find(queue->sequence, queue->created_at),
				   MSGQ_LATE_REPLIES, n);
}

/* Removes the replies whose deadline has passed; true if there were some. */
static bool
remove_unseen(int n)
{
	Oid			type = TIMESTAMPTZOID;
	Datum		now = TimestampTzGetDatum(msgq_now());
	uint64		queues;

	/* Somebody may be taking one of them this very moment. */
	msgq_spi_run_with(psprintf("WITH old AS (SELECT id FROM ONLY msgq.reply_%1$d "
							   "WHERE deadline < $1 FOR UPDATE SKIP LOCKED), "
							   "gone AS (DELETE FROM ONLY msgq.reply_%1$d AS r USING old "
							   "WHERE r.id = old.id RETURNING queue_id) "
							   "SELECT queue_id, count(*) FROM gone GROUP BY queue_id", n),
					  SPI_OK_SELECT, 1, &type, &now, NULL, false);
	queues = SPI_processed;
	for (uint64 i = 0; i < queues; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		bool		is_null;

		count_unseen(DatumGetInt32(SPI_getbinval(row, SPI_tuptable->tupdesc, 1, &is_null)),
					 DatumGetInt64(SPI_getbinval(row, SPI_tuptable->tupdesc, 2, &is_null)));
	}
	return queues > 0;
}

/* Truncates a table that takes no new replies, if it holds none; true if so. */
static bool
truncate_table(int n, MsgqRound *round)
{
	Relation	table;
	bool		is_empty;

	table = msgq_open(reply_table(n), AccessShareLock);
	is_empty = !msgq_table_has_row(table);
	table_close(table, AccessShareLock);
	if (!is_empty)
		return false;
	if (!msgq_lock_table_between_calls(reply_table(n)))
	{
		round->waiting++;
		return false;
	}
	/* Somebody may have stored one in between. */
	table = table_open(reply_table(n), NoLock);
	is_empty = !msgq_table_has_row(table);
	table_close(table, NoLock);
	if (is_empty)
		msgq_spi_run("TRUNCATE ONLY msgq.reply_%d", n);
	return is_empty;
}

/*
 * Removes replies that nobody waits for any more, and empties the table that
 * takes no new ones; true if it did something.  In a transaction of its own.
 */
bool
msgq_replies_empty(MsgqRound *round)
{
	bool		done = false;
	int			idle;
	MsgqSpi		spi;

	/* The library may be newer than what CREATE EXTENSION has made. */
	if (!OidIsValid(reply_table(1)))
		return false;
	msgq_spi_begin(&spi, msgq_storage_owner());
	for (int n = 1; n <= REPLY_TABLES; n++)
	{
		if (msgq_table_data_bytes(reply_table(n)) == 0)
			continue;
		msgq_table_check(reply_table(n), Natts_reply, Natts_reply);
		done |= remove_unseen(n);
	}
	idle = msgq_table_data_bytes(reply_table(1)) < FULL_BYTES ? 2 : 1;
	if (msgq_table_data_bytes(reply_table(idle)) > 0 &&
		truncate_table(idle, round))
	{
		round->emptied++;
		done = true;
	}
	msgq_spi_end(&spi);
	return done;
}
