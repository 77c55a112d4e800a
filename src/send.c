/*
 * send.c
 *		Stores messages, as part of the caller's transaction.
 *
 * COMMIT of the caller is the confirmation, and whatever undoes the insert,
 * also the rollback of a savepoint, undoes the message.  Whoever waits for it
 * is woken after the commit (wakeup.c).
 *
 * All functions of this file fill a MsgqOutgoing and hand it to
 * msgq_outgoing_send(), which tells the receivers that it is about to append
 * (the append horizon, in storage.c), takes the ids, and inserts in chunks.  All
 * arguments are checked before the first id is taken.  Each level of priority
 * has its own active segment; a chunk is of one level, and ids follow the order
 * of the input.  Messages with idempotency keys that were used before are left
 * out (dedup.c).
 *
 * publish.c, request.c and cloudevent.c fill one as well.
 *
 * src/send.c
 */
#include "msgq.h"

#include <math.h>

#include "access/detoast.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "argument.h"
#include "dedup.h"
#include "limits.h"
#include "message.h"
#include "segment.h"
#include "send.h"
#include "stats.h"
#include "table.h"
#include "testing.h"
#include "wakeup.h"

/* Rows, and bytes of bodies, that are inserted at once. */
#define CHUNK_ROWS			500
#define CHUNK_BYTES			(1024 * 1024)

/*
 * Room for n messages, in the current memory context, without anything but
 * what every message has.  The caller fills in the contents.
 */
void
msgq_outgoing_init(MsgqOutgoing *out, int n, AttrNumber content_column)
{
	out->n = n;
	out->content_column = content_column;
	out->contents = palloc(sizeof(Datum) * n);
	out->headers = palloc0(sizeof(Datum) * n);
	out->no_headers = palloc(sizeof(bool) * n);
	out->visible_at = palloc0(sizeof(TimestampTz) * n);
	out->ttl = palloc0(sizeof(Interval *) * n);
	out->priorities = palloc0(sizeof(int32) * n);
	out->expires_at = NULL;
	out->keys = NULL;
	out->duplicates = palloc0(sizeof(bool) * n);
	out->group_keys = palloc0(sizeof(text *) * n);
	memset(out->no_headers, true, sizeof(bool) * n);
	out->now = msgq_now();
}

/*
 * Some of the messages, in their order, without their idempotency keys; which
 * has their n numbers.
 */
void
msgq_outgoing_choose(MsgqOutgoing *chosen, const MsgqOutgoing *out,
					 const int *which, int n)
{
	*chosen = *out;
	chosen->keys = NULL;
	if (n == out->n)
		return;
	msgq_outgoing_init(chosen, n, out->content_column);
	chosen->now = out->now;
	if (out->expires_at)
		chosen->expires_at = palloc(sizeof(TimestampTz) * n);
	for (int i = 0; i < n; i++)
	{
		chosen->contents[i] = out->contents[which[i]];
		chosen->headers[i] = out->headers[which[i]];
		chosen->no_headers[i] = out->no_headers[which[i]];
		chosen->group_keys[i] = out->group_keys[which[i]];
		chosen->visible_at[i] = out->visible_at[which[i]];
		chosen->ttl[i] = out->ttl[which[i]];
		chosen->priorities[i] = out->priorities[which[i]];
		if (out->expires_at)
			chosen->expires_at[i] = out->expires_at[which[i]];
	}
}

/* ---------------------------------------------------------------------------
 * Storing
 * ---------------------------------------------------------------------------
 */

/* Size of a message as it counts against the queue's limit. */
static Size
message_bytes(const MsgqOutgoing *out, int i)
{
	Size		size = toast_raw_datum_size(out->contents[i]) - VARHDRSZ;

	if (!out->no_headers[i])
		size += toast_raw_datum_size(out->headers[i]) - VARHDRSZ;
	return size;
}

static void
check_sizes(const MsgqOutgoing *out, const MsgqQueue *queue)
{
	for (int i = 0; i < out->n; i++)
	{
		if (message_bytes(out, i) > (Size) queue->max_message_bytes)
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("message is too large for queue \"%s\"",
							NameStr(queue->name)),
					 errdetail("Message %d has %zu bytes with its headers; the limit is %d.",
							   i + 1, message_bytes(out, i),
							   queue->max_message_bytes),
					 errhint("Raise the queue's max_message_bytes, or send a reference to the content.")));
	}
}

/* When does a message expire, by its own time; 0 for never. */
TimestampTz
msgq_outgoing_expires_at(const MsgqOutgoing *out, int i)
{
	if (out->expires_at)
		return out->expires_at[i];
	return out->ttl[i] ? msgq_time_after(out->now, out->ttl[i]) : 0;
}

/* When does a message expire, by its own or the queue's time; 0 for never. */
static TimestampTz
expiry(const MsgqOutgoing *out, int i, const MsgqQueue *queue)
{
	TimestampTz own = msgq_outgoing_expires_at(out, i);
	TimestampTz most =
	queue->has_ttl ? msgq_time_after(out->now, &queue->message_ttl) : 0;

	return own == 0 ? most : most == 0 ? own : Min(own, most);
}

/* Raises 22023 for a priority that the queue does not have. */
static void
check_priorities(const MsgqOutgoing *out, const MsgqQueue *queue)
{
	for (int i = 0; i < out->n; i++)
	{
		if (out->priorities[i] >= 0 && out->priorities[i] < queue->priorities)
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("priority is out of range for queue \"%s\"",
						NameStr(queue->name)),
				 queue->priorities == 1 ?
				 errdetail("Message %d has priority %d; the queue has only priority 0.",
						   i + 1, out->priorities[i]) :
				 errdetail("Message %d has priority %d; the queue has the priorities from 0 to %d.",
						   i + 1, out->priorities[i], queue->priorities - 1),
				 errhint("How many there are is set when a queue is made, by argument \"priorities\" of msgq.create_queue().")));
	}
}

/* Sets all columns of a new message. */
static void
fill_row(TupleTableSlot *row, const MsgqOutgoing *out, int i,
		 const MsgqQueue *queue, int64 id)
{
	TimestampTz expires_at = expiry(out, i, queue);
	Datum	   *values = row->tts_values;
	bool	   *nulls = row->tts_isnull;

	ExecClearTuple(row);
	memset(nulls, true, sizeof(bool) * Natts_segment);
#define SET(column, value) \
	(values[(column) - 1] = (value), nulls[(column) - 1] = false)
	SET(Anum_segment_id, Int64GetDatum(id));
	SET(Anum_segment_deliveries, Int32GetDatum(0));
	SET(Anum_segment_failures, Int32GetDatum(0));
	SET(Anum_segment_priority, Int16GetDatum(out->priorities[i]));
	SET(Anum_segment_enqueued_at, TimestampTzGetDatum(out->now));
	SET(out->content_column, out->contents[i]);
	if (out->visible_at[i] != 0)
		SET(Anum_segment_visible_at, TimestampTzGetDatum(out->visible_at[i]));
	if (expires_at != 0)
		SET(Anum_segment_expires_at, TimestampTzGetDatum(expires_at));
	if (out->group_keys[i])
		SET(Anum_segment_group_key, PointerGetDatum(out->group_keys[i]));
	if (!out->no_headers[i])
		SET(Anum_segment_headers, out->headers[i]);
#undef SET
	ExecStoreVirtualTuple(row);
}

/*
 * Inserts messages of one priority, from number first on, without duplicates;
 * returns the number of the one to go on with.
 */
static int
store_chunk(const MsgqStorage *storage, const MsgqOutgoing *out, int first,
			TupleTableSlot **rows, int64 *ids)
{
	const MsgqQueue *queue = storage->queue;
	int32		priority = out->priorities[first];
	Size		bytes = 0;
	int			n = 0;
	int			i;

	for (i = first; i < out->n && n < CHUNK_ROWS && bytes < CHUNK_BYTES &&
		 (out->duplicates[i] || out->priorities[i] == priority); i++)
	{
		if (out->duplicates[i])
			continue;
		ids[i] = nextval_internal(queue->sequence, false);
		fill_row(rows[n++], out, i, queue, ids[i]);
		bytes += message_bytes(out, i);
	}
	msgq_point(MSGQ_POINT_SEND_NUMBERED);
	if (n > 0)
		msgq_segment_insert(msgq_storage_active(storage, priority), rows, n);
	return i;
}

/* Opens the queue with the segments that these messages go to. */
static MsgqStorage *
open_levels(const char *command, const char *name, const MsgqOutgoing *out)
{
	int32		lowest = out->n > 0 ? out->priorities[0] : 0;
	int32		highest = lowest;

	for (int i = 1; i < out->n; i++)
	{
		lowest = Min(lowest, out->priorities[i]);
		highest = Max(highest, out->priorities[i]);
	}
	return msgq_storage_open_levels(command, name, MSGQ_RIGHT_SEND, lowest,
									highest);
}

/* How many are to be stored? */
static int
count_new(const MsgqOutgoing *out)
{
	int			n = 0;

	for (int i = 0; i < out->n; i++)
		n += !out->duplicates[i];
	return n;
}

/* The highest id of those that were stored; 0 if there are none. */
static int64
last_id(const MsgqOutgoing *out, const int64 *ids)
{
	int			i = out->n - 1;

	while (i >= 0 && out->duplicates[i])
		i--;
	return i >= 0 ? ids[i] : 0;
}

/* Stores those that are no duplicates, and fills their ids. */
static void
append(MsgqStorage *storage, const MsgqOutgoing *out, int64 *ids)
{
	MsgqSegment *segment = storage->segments[0];
	int			nrows = Min(out->n, CHUNK_ROWS);
	TupleTableSlot **rows = nrows <= 1 ? &segment->new_row :
	msgq_table_slots(segment->table, nrows);
	MsgqAppend	before;

	msgq_point(MSGQ_POINT_SEND_LOCKED);
	before = msgq_append_begin(storage->queue->sequence, storage->slot);
	for (int next = 0; next < out->n;)
	{
		CHECK_FOR_INTERRUPTS();
		next = store_chunk(storage, out, next, rows, ids);
	}
	msgq_point(MSGQ_POINT_SEND_STORED);
	msgq_append_end(storage->queue->sequence, storage->slot, before,
					last_id(out, ids));
}

/*
 * Stores all messages or none in a queue that is open, with the active segments
 * of their priorities; fills ids, and marks those that are duplicates of
 * messages that were sent before.  Returns how many were no duplicates.  The
 * storage may be opened anew meanwhile.  Raises what send does: 22023, 54000,
 * MQ004, MQ005, MQ006.
 */
int
msgq_outgoing_store(MsgqStorage **storage, MsgqOutgoing *out, int64 *ids)
{
	int			stored;

	msgq_check_may_send((*storage)->queue);
	check_priorities(out, (*storage)->queue);
	check_sizes(out, (*storage)->queue);
	if (out->keys)
		msgq_keys_find(out->keys, (*storage)->command, storage, out->contents,
					   out->content_column, ids, out->duplicates);
	stored = count_new(out);
	msgq_make_length(*storage, stored, out->now);
	append(*storage, out, ids);
	if (out->keys)
	{
		stored -= msgq_keys_store(out->keys, *storage, ids, out->duplicates);
		msgq_keys_close(out->keys);
	}
	msgq_count((*storage)->slot, MSGQ_SENT, stored);
	msgq_wake_at_commit((*storage)->slot, stored);
	return stored;
}

/*
 * The same for a queue that is not open, to which the caller must have the
 * right "send".  command is the caller's name, for messages.  Raises 42704,
 * 42501 and 55000 as msgq_storage_open does, too.
 */
void
msgq_outgoing_send(const char *command, const char *name, MsgqOutgoing *out,
				   int64 *ids)
{
	MsgqStorage *storage = open_levels(command, name, out);

	(void) msgq_outgoing_store(&storage, out, ids);
	msgq_storage_close(storage);
}

/* ---------------------------------------------------------------------------
 * Headers and times
 * ---------------------------------------------------------------------------
 */

/* Gives message number i the headers of a caller, checked (22023). */
void
msgq_outgoing_set_headers(MsgqOutgoing *out, int i, Datum headers)
{
	msgq_check_headers(DatumGetJsonbP(headers));
	out->headers[i] = headers;
	out->no_headers[i] = false;
}

/* Adds the server's own headers, an object, to those of message number i. */
void
msgq_outgoing_add_headers(MsgqOutgoing *out, int i, Datum headers)
{
	out->headers[i] = out->no_headers[i] ? headers :
		DirectFunctionCall2(jsonb_concat, out->headers[i], headers);
	out->no_headers[i] = false;
}

/*
 * Gives message number i a group key, of 1 to MSGQ_MAX_GROUP_KEY_BYTES bytes
 * (22023).
 */
void
msgq_outgoing_set_group_key(MsgqOutgoing *out, int i, text *key)
{
	Size		size = VARSIZE_ANY_EXHDR(key);

	if (size < 1 || size > MSGQ_MAX_GROUP_KEY_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a group key must have from 1 to %d bytes",
						MSGQ_MAX_GROUP_KEY_BYTES),
				 errdetail("This one has %zu bytes.", size)));
	out->group_keys[i] = key;
}

/*
 * When does the message become visible: 0 for at once?  Each of the two times
 * is NULL if it is not given.
 */
static TimestampTz
visible_time(TimestampTz now, const Interval *delay,
			 const TimestampTz *deliver_at)
{
	TimestampTz visible_at = now;

	if (delay && deliver_at)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("arguments \"delay\" and \"deliver_at\" must not be given together")));
	if (delay)
	{
		msgq_check_interval(delay, "delay");
		visible_at = msgq_time_after(now, delay);
	}
	if (deliver_at)
	{
		if (TIMESTAMP_NOT_FINITE(*deliver_at))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("argument \"%s\" must be finite", "deliver_at")));
		visible_at = *deliver_at;
	}
	return visible_at > now ? visible_at : 0;
}

/* The same for all messages, from arguments number n and n + 1. */
static void
set_times(MsgqOutgoing *out, FunctionCallInfo fcinfo, int n)
{
	TimestampTz deliver_at = PG_ARGISNULL(n + 1) ? 0 : PG_GETARG_TIMESTAMPTZ(n + 1);
	TimestampTz visible_at =
	visible_time(out->now,
				 PG_ARGISNULL(n) ? NULL : PG_GETARG_INTERVAL_P(n),
				 PG_ARGISNULL(n + 1) ? NULL : &deliver_at);

	for (int i = 0; i < out->n; i++)
		out->visible_at[i] = visible_at;
}

/* A time to live, the same for all messages, from argument number n. */
static void
set_ttl(MsgqOutgoing *out, FunctionCallInfo fcinfo, int n)
{
	Interval   *ttl;

	if (PG_ARGISNULL(n))
		return;
	ttl = PG_GETARG_INTERVAL_P(n);
	msgq_check_interval(ttl, "ttl");
	for (int i = 0; i < out->n; i++)
		out->ttl[i] = ttl;
}

/* ---------------------------------------------------------------------------
 * One message: arguments queue, content, headers, delay, deliver_at,
 * priority, group_key, ttl, idempotency_key; send_once has the key third
 * ---------------------------------------------------------------------------
 */

/* The same for all messages, from argument number n. */
static void
set_priority(MsgqOutgoing *out, FunctionCallInfo fcinfo, int n)
{
	int32		priority = DatumGetInt32(msgq_arg(fcinfo, n, "priority"));

	for (int i = 0; i < out->n; i++)
		out->priorities[i] = priority;
}

/* Gives message number i an idempotency key. */
void
msgq_outgoing_set_key(MsgqOutgoing *out, int i, Datum key)
{
	if (out->keys == NULL)
		out->keys = msgq_keys_make(out->n);
	msgq_keys_add(out->keys, i, key);
}

/*
 * What stands beside the content of a single message, in arguments n (headers)
 * to n + 5 (ttl), checked (22004, 22023).
 */
void
msgq_outgoing_set_one(MsgqOutgoing *out, FunctionCallInfo fcinfo, int n)
{
	if (!PG_ARGISNULL(n))
		msgq_outgoing_set_headers(out, 0, PG_GETARG_DATUM(n));
	set_times(out, fcinfo, n + 1);
	set_priority(out, fcinfo, n + 3);
	if (!PG_ARGISNULL(n + 4))
		msgq_outgoing_set_group_key(out, 0, PG_GETARG_TEXT_PP(n + 4));
	set_ttl(out, fcinfo, n + 5);
}

static Datum
send_one(FunctionCallInfo fcinfo, const char *command, AttrNumber column,
		 const char *content)
{
	char	   *queue = msgq_arg_name(fcinfo, 0, "queue");
	MsgqOutgoing out;
	int64		id;

	msgq_outgoing_init(&out, 1, column);
	out.contents[0] = msgq_arg(fcinfo, 1, content);
	msgq_outgoing_set_one(&out, fcinfo, 2);
	if (!PG_ARGISNULL(8))
		msgq_outgoing_set_key(&out, 0, PG_GETARG_DATUM(8));
	msgq_outgoing_send(command, queue, &out, &id);
	PG_RETURN_INT64(id);
}

PG_FUNCTION_INFO_V1(msgq_send);
Datum
msgq_send(PG_FUNCTION_ARGS)
{
	return send_one(fcinfo, "msgq.send()", Anum_segment_body, "body");
}

PG_FUNCTION_INFO_V1(msgq_send_bytes);
Datum
msgq_send_bytes(PG_FUNCTION_ARGS)
{
	return send_one(fcinfo, "msgq.send_bytes()", Anum_segment_data, "data");
}

PG_FUNCTION_INFO_V1(msgq_send_once);
Datum
msgq_send_once(PG_FUNCTION_ARGS)
{
	char	   *queue = msgq_arg_name(fcinfo, 0, "queue");
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Datum		values[2];
	bool		nulls[2] = {false, false};
	MsgqOutgoing out;
	int64		id;

	msgq_outgoing_init(&out, 1, Anum_segment_body);
	out.contents[0] = msgq_arg(fcinfo, 1, "body");
	msgq_outgoing_set_key(&out, 0, msgq_arg(fcinfo, 2, "idempotency_key"));
	msgq_outgoing_set_one(&out, fcinfo, 3);
	msgq_outgoing_send("msgq.send_once()", queue, &out, &id);

	InitMaterializedSRF(fcinfo, 0);
	values[0] = Int64GetDatum(id);
	values[1] = BoolGetDatum(out.duplicates[0]);
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	return (Datum) 0;
}

/* ---------------------------------------------------------------------------
 * Several messages: arguments as above, with arrays of contents, headers,
 * group keys and idempotency keys
 * ---------------------------------------------------------------------------
 */

static void
set_headers_of_all(MsgqOutgoing *out, FunctionCallInfo fcinfo, int n)
{
	Datum	   *headers;
	bool	   *nulls;

	if (PG_ARGISNULL(n))
		return;
	headers = msgq_companion_elements(fcinfo, n, "headers", out->n,
									  "messages", &nulls);
	for (int i = 0; i < out->n; i++)
	{
		if (!nulls[i])
			msgq_outgoing_set_headers(out, i, headers[i]);
	}
}

static void
set_keys_of_all(MsgqOutgoing *out, FunctionCallInfo fcinfo, int n)
{
	Datum	   *keys;
	bool	   *nulls;

	if (PG_ARGISNULL(n))
		return;
	keys = msgq_companion_elements(fcinfo, n, "idempotency_keys", out->n,
								   "messages", &nulls);
	for (int i = 0; i < out->n; i++)
	{
		if (!nulls[i])
			msgq_outgoing_set_key(out, i, keys[i]);
	}
}

static void
set_group_keys_of_all(MsgqOutgoing *out, FunctionCallInfo fcinfo, int n)
{
	Datum	   *keys;
	bool	   *nulls;

	if (PG_ARGISNULL(n))
		return;
	keys = msgq_companion_elements(fcinfo, n, "group_keys", out->n,
								   "messages", &nulls);
	for (int i = 0; i < out->n; i++)
	{
		if (!nulls[i])
			msgq_outgoing_set_group_key(out, i, DatumGetTextPP(keys[i]));
	}
}

static Datum
send_several(FunctionCallInfo fcinfo, const char *command, AttrNumber column,
			 const char *content)
{
	char	   *queue = msgq_arg_name(fcinfo, 0, "queue");
	ArrayType  *array = DatumGetArrayTypeP(msgq_arg(fcinfo, 1, content));
	MsgqOutgoing out;
	Datum	   *contents;
	int64	   *ids;
	int			n;

	contents = msgq_array_elements(array, content, NULL, &n);
	msgq_outgoing_init(&out, n, column);
	out.contents = contents;
	set_headers_of_all(&out, fcinfo, 2);
	set_times(&out, fcinfo, 3);
	set_priority(&out, fcinfo, 5);
	set_group_keys_of_all(&out, fcinfo, 6);
	set_ttl(&out, fcinfo, 7);
	set_keys_of_all(&out, fcinfo, 8);

	ids = palloc(sizeof(int64) * n);
	msgq_outgoing_send(command, queue, &out, ids);
	PG_RETURN_ARRAYTYPE_P(msgq_int8_array(ids, n));
}

PG_FUNCTION_INFO_V1(msgq_send_batch);
Datum
msgq_send_batch(PG_FUNCTION_ARGS)
{
	return send_several(fcinfo, "msgq.send_batch()", Anum_segment_body,
						"bodies");
}

PG_FUNCTION_INFO_V1(msgq_send_bytes_batch);
Datum
msgq_send_bytes_batch(PG_FUNCTION_ARGS)
{
	return send_several(fcinfo, "msgq.send_bytes_batch()", Anum_segment_data,
						"datas");
}

/* ---------------------------------------------------------------------------
 * Several messages as a JSON array of objects
 * ---------------------------------------------------------------------------
 */

static void
bad_message(const char *problem)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("an element of argument \"messages\" %s", problem)));
}

/* A key whose value is text, like a time: palloc'd. */
static char *
text_value(const char *key, const JsonbValue *value)
{
	if (value->type != jbvString)
		bad_message(psprintf("must have a string as \"%s\"", key));
	return pnstrdup(value->val.string.val, value->val.string.len);
}

static Interval *
interval_value(const char *key, const JsonbValue *value)
{
	return DatumGetIntervalP(DirectFunctionCall3(interval_in,
												 CStringGetDatum(text_value(key, value)),
												 ObjectIdGetDatum(InvalidOid),
												 Int32GetDatum(-1)));
}

/* A priority, which must be an integer; the queue tells which it has. */
static int32
priority_value(const JsonbValue *value)
{
	double		number;

	msgq_check_not_null(value->type == jbvNull, "priority");
	if (value->type != jbvNumeric)
		bad_message("must have a number as \"priority\"");
	number = DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow,
												NumericGetDatum(value->val.numeric)));
	if (number != rint(number) || number < PG_INT32_MIN || number > PG_INT32_MAX)
		bad_message("must have an integer as \"priority\"");
	return (int32) number;
}

/* Raises an error for a key that send does not know. */
static void
refuse_key(const char *key)
{
	bad_message(psprintf("has an unknown key, \"%s\"", key));
}

/* One object: message number i. */
static void
set_message(MsgqOutgoing *out, int i, JsonbContainer *object)
{
	JsonbIterator *iterator = JsonbIteratorInit(object);
	JsonbIteratorToken token;
	JsonbValue	value;
	char	   *key = NULL;
	bool		has_body = false;
	Interval   *delay = NULL;
	TimestampTz deliver_at;
	bool		has_deliver_at = false;

	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			key = pnstrdup(value.val.string.val, value.val.string.len);
		if (token != WJB_VALUE)
			continue;
		if (strcmp(key, "body") == 0)
		{
			out->contents[i] = JsonbPGetDatum(JsonbValueToJsonb(&value));
			has_body = true;
		}
		else if (strcmp(key, "priority") == 0)
			out->priorities[i] = priority_value(&value);
		else if (value.type == jbvNull)
		{
			/* As if it were not there, but it has to be a name we know. */
			if (strcmp(key, "headers") != 0 && strcmp(key, "delay") != 0 &&
				strcmp(key, "deliver_at") != 0 && strcmp(key, "group_key") != 0 &&
				strcmp(key, "ttl") != 0 && strcmp(key, "idempotency_key") != 0)
				refuse_key(key);
		}
		else if (strcmp(key, "headers") == 0)
			msgq_outgoing_set_headers(out, i, JsonbPGetDatum(JsonbValueToJsonb(&value)));
		else if (strcmp(key, "group_key") == 0)
			msgq_outgoing_set_group_key(out, i, cstring_to_text(text_value(key, &value)));
		else if (strcmp(key, "delay") == 0)
			delay = interval_value(key, &value);
		else if (strcmp(key, "ttl") == 0)
		{
			out->ttl[i] = interval_value(key, &value);
			msgq_check_interval(out->ttl[i], key);
		}
		else if (strcmp(key, "deliver_at") == 0)
		{
			deliver_at = DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in,
																 CStringGetDatum(text_value(key, &value)),
																 ObjectIdGetDatum(InvalidOid),
																 Int32GetDatum(-1)));
			has_deliver_at = true;
		}
		else if (strcmp(key, "idempotency_key") == 0)
			msgq_outgoing_set_key(out, i, CStringGetTextDatum(text_value(key, &value)));
		else
			refuse_key(key);
	}
	if (!has_body)
		bad_message("has no \"body\"");
	out->visible_at[i] = visible_time(out->now, delay,
									  has_deliver_at ? &deliver_at : NULL);
}

/* Tells in which element an error was found. */
static void
element_context(void *arg)
{
	errcontext("element %d of argument \"messages\"", *(int *) arg + 1);
}

static void
set_messages(MsgqOutgoing *out, Jsonb *messages)
{
	int			n;
	int			i;
	ErrorContextCallback context = {
		.previous = error_context_stack,
		.callback = element_context,
		.arg = &i
	};

	if (!JB_ROOT_IS_ARRAY(messages) || JB_ROOT_IS_SCALAR(messages))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be a JSON array", "messages")));
	n = JB_ROOT_COUNT(messages);
	if (n > MSGQ_MAX_BATCH)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("argument \"%s\" must not have more than %d elements",
						"messages", MSGQ_MAX_BATCH)));
	msgq_outgoing_init(out, n, Anum_segment_body);
	error_context_stack = &context;
	for (i = 0; i < n; i++)
	{
		JsonbValue *element = getIthJsonbValueFromContainer(&messages->root, i);

		if (element->type != jbvBinary ||
			!JsonContainerIsObject(element->val.binary.data))
			bad_message("must be a JSON object");
		set_message(out, i, element->val.binary.data);
	}
	error_context_stack = context.previous;
}

PG_FUNCTION_INFO_V1(msgq_send_messages);
Datum
msgq_send_messages(PG_FUNCTION_ARGS)
{
	char	   *queue = msgq_arg_name(fcinfo, 0, "queue");
	Jsonb	   *messages = DatumGetJsonbP(msgq_arg(fcinfo, 1, "messages"));
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	MsgqOutgoing out;
	int64	   *ids;

	set_messages(&out, messages);
	ids = palloc(sizeof(int64) * out.n);
	msgq_outgoing_send("msgq.send_messages()", queue, &out, ids);

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < out.n; i++)
	{
		Datum		values[] = {Int32GetDatum(i + 1), Int64GetDatum(ids[i]),
		BoolGetDatum(out.duplicates[i])};
		bool		nulls[] = {false, false, false};

		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}
