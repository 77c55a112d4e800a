/*
 * messages.sql: sending, receiving and settling messages.
 *
 * All of these are VOLATILE and PARALLEL UNSAFE, and each that writes ends
 * with a command counter increment, so that one statement may receive and
 * settle.
 */

CREATE FUNCTION msgq.send(
	queue text,
	body jsonb,
	headers jsonb DEFAULT NULL,
	delay interval DEFAULT NULL,
	deliver_at timestamptz DEFAULT NULL,
	priority int DEFAULT 0,
	group_key text DEFAULT NULL,
	ttl interval DEFAULT NULL,
	idempotency_key text DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME', 'msgq_send'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.send(text, jsonb, jsonb, interval, timestamptz, int, text, interval, text) IS
'stores one message as part of the caller''s transaction, whose COMMIT is the confirmation; needs the right send.
body: the content (a JSON null is one). headers: a JSON object beside it; names that begin with msgq- are the server''s. delay or deliver_at, not both: not before that time; a time that has passed means at once. ttl: the message expires so long after it was sent, if that is before the queue''s message_ttl; 0 or more. priority: from 0 to one less than the queue''s priorities; higher ones are delivered first. idempotency_key: 1 to 255 bytes; NULL means none; with a key that was used within the queue''s dedup_window nothing is stored; waits for an open transaction that uses the same key. group_key: 1 to 255 bytes, or NULL; in an ordered queue, messages with the same one are delivered in order.
Result: the id of the message, unique in its queue, provisional until the commit; of the first message with the key, if it was used before.
Errors: 42704 no such queue, 42501 no right send, 22004 NULL, 22023 bad argument, 54000 message too large, MQ004 paused, MQ005 queue full, MQ006 idempotency key was used with another body, 25006 read-only or standby.';

CREATE FUNCTION msgq.send_bytes(
	queue text,
	data bytea,
	headers jsonb DEFAULT NULL,
	delay interval DEFAULT NULL,
	deliver_at timestamptz DEFAULT NULL,
	priority int DEFAULT 0,
	group_key text DEFAULT NULL,
	ttl interval DEFAULT NULL,
	idempotency_key text DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME', 'msgq_send_bytes'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.send_bytes(text, bytea, jsonb, interval, timestamptz, int, text, interval, text) IS
'stores one message as part of the caller''s transaction, whose COMMIT is the confirmation; needs the right send.
data: the content, also of no bytes. headers: a JSON object beside it; names that begin with msgq- are the server''s. delay or deliver_at, not both: not before that time; a time that has passed means at once. ttl: the message expires so long after it was sent, if that is before the queue''s message_ttl; 0 or more. priority: from 0 to one less than the queue''s priorities; higher ones are delivered first. idempotency_key: 1 to 255 bytes; NULL means none; with a key that was used within the queue''s dedup_window nothing is stored; waits for an open transaction that uses the same key. group_key: 1 to 255 bytes, or NULL; in an ordered queue, messages with the same one are delivered in order.
Result: the id of the message, unique in its queue, provisional until the commit; of the first message with the key, if it was used before.
Errors: 42704 no such queue, 42501 no right send, 22004 NULL, 22023 bad argument, 54000 message too large, MQ004 paused, MQ005 queue full, MQ006 idempotency key was used with another body, 25006 read-only or standby.';

CREATE FUNCTION msgq.send_batch(
	queue text,
	bodies jsonb[],
	headers jsonb[] DEFAULT NULL,
	delay interval DEFAULT NULL,
	deliver_at timestamptz DEFAULT NULL,
	priority int DEFAULT 0,
	group_keys text[] DEFAULT NULL,
	ttl interval DEFAULT NULL,
	idempotency_keys text[] DEFAULT NULL)
RETURNS bigint[]
AS 'MODULE_PATHNAME', 'msgq_send_batch'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.send_batch(text, jsonb[], jsonb[], interval, timestamptz, int, text[], interval, text[]) IS
'stores up to 10000 messages, all or none; needs the right send.
bodies: one-dimensional, no NULLs; an empty array stores nothing. headers, group_keys, idempotency_keys: NULL, or one element for each message, NULL for none. Of messages with the same key in one call the first is stored. The rest as for msgq.send.
Result: the ids in the order of the input.
Errors: 42704 no such queue, 42501 no right send, 22004 NULL, 22023 bad argument, 54000 message too large, MQ004 paused, MQ005 queue full, MQ006 idempotency key was used with another body, 25006 read-only or standby.';

CREATE FUNCTION msgq.send_bytes_batch(
	queue text,
	datas bytea[],
	headers jsonb[] DEFAULT NULL,
	delay interval DEFAULT NULL,
	deliver_at timestamptz DEFAULT NULL,
	priority int DEFAULT 0,
	group_keys text[] DEFAULT NULL,
	ttl interval DEFAULT NULL,
	idempotency_keys text[] DEFAULT NULL)
RETURNS bigint[]
AS 'MODULE_PATHNAME', 'msgq_send_bytes_batch'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.send_bytes_batch(text, bytea[], jsonb[], interval, timestamptz, int, text[], interval, text[]) IS
'stores up to 10000 messages, all or none; needs the right send.
datas: one-dimensional, no NULLs; an empty array stores nothing. headers, group_keys, idempotency_keys: NULL, or one element for each message, NULL for none. Of messages with the same key in one call the first is stored. The rest as for msgq.send.
Result: the ids in the order of the input.
Errors: 42704 no such queue, 42501 no right send, 22004 NULL, 22023 bad argument, 54000 message too large, MQ004 paused, MQ005 queue full, MQ006 idempotency key was used with another body, 25006 read-only or standby.';

CREATE FUNCTION msgq.send_messages(queue text, messages jsonb)
RETURNS TABLE (ordinal int, id bigint, duplicate boolean)
AS 'MODULE_PATHNAME', 'msgq_send_messages'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 100;

COMMENT ON FUNCTION msgq.send_messages(text, jsonb) IS
'stores up to 10000 messages, all or none, for drivers without arrays of jsonb; needs the right send.
messages: a JSON array of objects with the arguments of msgq.send as keys (body is required; delay, deliver_at and ttl as text).
Result: a row for each message in the order of the input: ordinal from 1, id, duplicate: nothing was stored, since the idempotency key was used before, and the id is that of the first message with it.
Errors: 42704 no such queue, 42501 no right send, 22004 NULL, 22023 bad argument (22007 for a time that is none), 54000 message too large, MQ004 paused, MQ005 queue full, MQ006 idempotency key was used with another body, 25006 read-only or standby.';

CREATE FUNCTION msgq.send_once(
	queue text,
	body jsonb,
	idempotency_key text,
	headers jsonb DEFAULT NULL,
	delay interval DEFAULT NULL,
	deliver_at timestamptz DEFAULT NULL,
	priority int DEFAULT 0,
	group_key text DEFAULT NULL,
	ttl interval DEFAULT NULL)
RETURNS TABLE (id bigint, duplicate boolean)
AS 'MODULE_PATHNAME', 'msgq_send_once'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 1;

COMMENT ON FUNCTION msgq.send_once(text, jsonb, text, jsonb, interval, timestamptz, int, text, interval) IS
'msgq.send with an idempotency key, which also tells whether the message was sent before; needs the right send.
idempotency_key: 1 to 255 bytes, not NULL. The rest as for msgq.send.
Result: one row: the id of the message, and duplicate: nothing was stored, since the key was used within the queue''s dedup_window, and the id is that of the first message with it.
Errors: as for msgq.send.';

CREATE FUNCTION msgq.receive(
	queue text,
	max_messages int DEFAULT 1,
	visibility_timeout interval DEFAULT NULL,
	wait interval DEFAULT '0')
RETURNS SETOF msgq.message
AS 'MODULE_PATHNAME', 'msgq_receive'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 10;

COMMENT ON FUNCTION msgq.receive(text, int, interval, interval) IS
'leases messages: nobody else gets them until the visibility timeout has passed, counted from this call; needs the right receive. Messages of a higher priority come first; within a priority, due messages (retries, ended leases, delays) in the order of their time, then ready ones in the order of their ids, and in an ordered queue all of them in the order of the time from which they could be had; what another transaction holds is skipped. A rolled-back receive leaves the messages as they were. The same at every isolation level. In an ordered queue, messages with a group_key come only if none of their group is in flight, in order and in one piece.
max_messages: 1 to 10000. visibility_timeout: 0 or more; NULL means the queue''s. wait: if there is nothing, how long to wait for the first message, 0 or more; woken by commits, and by the clock when a message falls due. The statement keeps its snapshot while it waits; msgq.wait does not.
Result: the messages, each with the receipt of this delivery.
Errors: 42704 no such queue, 42501 no right, 22004 NULL, 22023 bad argument, 54000 max_messages too large, 25006 read-only or standby.';

CREATE PROCEDURE msgq.wait(
	queues text[],
	timeout interval,
	INOUT ready text DEFAULT NULL)
AS 'MODULE_PATHNAME', 'msgq_wait'
LANGUAGE C;

COMMENT ON PROCEDURE msgq.wait(text[], interval, text) IS
'waits until one of the queues has something to receive; needs the right receive on each. Ends the transaction before it sleeps, so it holds no snapshot and no lock meanwhile, and cannot run inside a transaction block. What it has found may be gone when the caller receives.
queues: names, at most 10000; an earlier one comes first. timeout: 0 or more. ready: the first queue that has something, or NULL after the timeout; what is passed in does not matter.
Errors: 42704 no such queue, 42501 no right, 22004 NULL, 22023 bad argument, 54000 too many names, 25001 in a transaction block, 25006 read-only or standby.';

CREATE FUNCTION msgq.pop(queue text, max_messages int DEFAULT 1)
RETURNS SETOF msgq.message
AS 'MODULE_PATHNAME', 'msgq_pop'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 10;

COMMENT ON FUNCTION msgq.pop(text, int) IS
'receives messages and removes them, in the caller''s transaction: with the caller''s own writes in it each message has its effect exactly once, in a transaction of its own it is delivered at most once; needs the right receive. A rollback gives the messages back, and counts as a failed delivery (msgq.count_rollbacks).
max_messages: 1 to 10000. Result: the messages, their counters with this delivery; receipt is NULL.
Errors: as for msgq.receive.';

CREATE FUNCTION msgq.ack(queue text, receipt uuid, strict boolean DEFAULT false)
RETURNS boolean
AS 'MODULE_PATHNAME', 'msgq_ack'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.ack(text, uuid, boolean) IS
'removes the message: it has been dealt with; needs the right receive. Waits if another transaction is changing the message.
strict: raise an error instead of returning false.
Result: true, or false if the receipt is stale: the message is gone or was given to somebody else; then nothing has changed.
Errors: 42704 no such queue, 42501 no right receive, 22004 NULL, 22023 bad argument, MQ001 stale receipt with strict, 25006 read-only or standby.';

CREATE FUNCTION msgq.ack_batch(queue text, receipts uuid[], strict boolean DEFAULT false)
RETURNS uuid[]
AS 'MODULE_PATHNAME', 'msgq_ack_batch'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.ack_batch(text, uuid[], boolean) IS
'msgq.ack for up to 10000 receipts. A receipt that stands twice counts once.
Result: the stale receipts, in the order of the input; NULL or empty in, empty out.
Errors: as for msgq.ack; 54000 too many receipts.';

CREATE FUNCTION msgq.archive(queue text, receipt uuid, strict boolean DEFAULT false)
RETURNS boolean
AS 'MODULE_PATHNAME', 'msgq_archive'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.archive(text, uuid, boolean) IS
'msgq.ack, and keeps the message for the queue''s archive_retention, where msgq.archived finds it; needs the right receive.
strict: raise an error instead of returning false.
Result: true, or false if the receipt is stale: the message is gone or was given to somebody else; then nothing has changed.
Errors: 42704 no such queue, 42501 no right receive, 22004 NULL, 22023 bad argument, 55000 the queue has no archive, MQ001 stale receipt with strict, 25006 read-only or standby.';

CREATE FUNCTION msgq.archive_batch(queue text, receipts uuid[], strict boolean DEFAULT false)
RETURNS uuid[]
AS 'MODULE_PATHNAME', 'msgq_archive_batch'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.archive_batch(text, uuid[], boolean) IS
'msgq.archive for up to 10000 receipts. A receipt that stands twice counts once.
Result: the stale receipts, in the order of the input; NULL or empty in, empty out.
Errors: as for msgq.archive; 54000 too many receipts.';

CREATE FUNCTION msgq.archived(
	queue text,
	max_messages int DEFAULT 100,
	after_id bigint DEFAULT 0)
RETURNS TABLE (
	id bigint,
	deliveries int,
	failures int,
	priority smallint,
	group_key text,
	enqueued_at timestamptz,
	archived_at timestamptz,
	headers jsonb,
	body jsonb,
	data bytea)
AS 'MODULE_PATHNAME', 'msgq_archived'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 100;

COMMENT ON FUNCTION msgq.archived(text, int, bigint) IS
'messages that msgq.archive has kept, in the order of their ids, as long as archive_retention has not passed since; needs the right peek. Reads the whole archive. Of a queue whose archive_retention was set to NULL, what is in the archive stays.
max_messages: 1 to 10000. after_id: only messages with a higher id. Result: what the message was when it was archived; no rows if the queue has no archive.
Errors: 42704 no such queue, 42501 no right peek, 22004 NULL, 22023 bad argument, 54000 max_messages too large.';

CREATE FUNCTION msgq.nack(
	queue text,
	receipt uuid,
	delay interval DEFAULT NULL,
	error text DEFAULT NULL,
	strict boolean DEFAULT false)
RETURNS boolean
AS 'MODULE_PATHNAME', 'msgq_nack'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.nack(text, uuid, interval, text, boolean) IS
'gives the message back as failed; if that was the last delivery that the queue allows, gives it up (msgq.reject). In an ordered queue the messages in flight behind it in its group go back with it, and their receipts are stale. Needs the right receive. Waits if another transaction is changing the message.
delay: how long it stays invisible; NULL means exponential backoff with full jitter (see msgq.create_queue). error: kept in the header msgq-error, cut after 1024 bytes. strict: raise an error instead of returning false.
Result: true, or false if the receipt is stale: the message is gone or was given to somebody else; then nothing has changed.
Errors: 42704 no such queue, 42501 no right receive, 22004 NULL, 22023 bad argument, MQ001 stale receipt with strict, 25006 read-only or standby.';

CREATE FUNCTION msgq.nack_batch(
	queue text,
	receipts uuid[],
	delay interval DEFAULT NULL,
	error text DEFAULT NULL,
	strict boolean DEFAULT false)
RETURNS uuid[]
AS 'MODULE_PATHNAME', 'msgq_nack_batch'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.nack_batch(text, uuid[], interval, text, boolean) IS
'msgq.nack for up to 10000 receipts. A receipt that stands twice counts once.
Result: the stale receipts, in the order of the input; NULL or empty in, empty out.
Errors: as for msgq.nack; 54000 too many receipts.';

CREATE FUNCTION msgq.reject(
	queue text,
	receipt uuid,
	reason text DEFAULT NULL,
	strict boolean DEFAULT false)
RETURNS boolean
AS 'MODULE_PATHNAME', 'msgq_reject'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.reject(text, uuid, text, boolean) IS
'gives the message up at once, whatever deliveries are left: it goes to the dead-letter queue, or is removed if there is none; in an ordered queue the messages in flight behind it in its group are given back; needs the right receive. Waits if another transaction is changing the message.
reason: kept as "error" in the message''s history, cut after 1024 bytes. strict: raise an error instead of returning false.
Result: true, or false if the receipt is stale: the message is gone or was given to somebody else; then nothing has changed.
Errors: 42704 no such queue, 22023 name too long, 42501 no right receive, 22004 NULL, MQ001 stale receipt with strict, 25006 read-only or standby.';

CREATE FUNCTION msgq.reject_batch(
	queue text,
	receipts uuid[],
	reason text DEFAULT NULL,
	strict boolean DEFAULT false)
RETURNS uuid[]
AS 'MODULE_PATHNAME', 'msgq_reject_batch'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.reject_batch(text, uuid[], text, boolean) IS
'msgq.reject for up to 10000 receipts. A receipt that stands twice counts once.
Result: the stale receipts, in the order of the input; NULL or empty in, empty out.
Errors: as for msgq.reject; 54000 too many receipts.';

CREATE FUNCTION msgq.extend(
	queue text,
	receipt uuid,
	visibility_timeout interval,
	strict boolean DEFAULT false)
RETURNS boolean
AS 'MODULE_PATHNAME', 'msgq_extend'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.extend(text, uuid, interval, boolean) IS
'moves the end of the lease to this long from now; the receipt stays valid; needs the right receive. Waits if another transaction is changing the message.
visibility_timeout: 0 or more. strict: raise an error instead of returning false.
Result: true, or false if the receipt is stale: the message is gone or was given to somebody else; then nothing has changed.
Errors: 42704 no such queue, 42501 no right receive, 22004 NULL, 22023 bad argument, MQ001 stale receipt with strict, 25006 read-only or standby.';

CREATE FUNCTION msgq.extend_batch(
	queue text,
	receipts uuid[],
	visibility_timeout interval,
	strict boolean DEFAULT false)
RETURNS uuid[]
AS 'MODULE_PATHNAME', 'msgq_extend_batch'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.extend_batch(text, uuid[], interval, boolean) IS
'msgq.extend for up to 10000 receipts. A receipt that stands twice counts once.
Result: the stale receipts, in the order of the input; NULL or empty in, empty out.
Errors: as for msgq.extend; 54000 too many receipts.';

CREATE FUNCTION msgq.release(queue text, receipt uuid, strict boolean DEFAULT false)
RETURNS boolean
AS 'MODULE_PATHNAME', 'msgq_release'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.release(text, uuid, boolean) IS
'gives the message back, due now and not counted as a failure, and in an ordered queue those in flight behind it in its group as well; needs the right receive. Waits if another transaction is changing the message.
strict: raise an error instead of returning false.
Result: true, or false if the receipt is stale: the message is gone or was given to somebody else; then nothing has changed.
Errors: 42704 no such queue, 42501 no right receive, 22004 NULL, 22023 bad argument, MQ001 stale receipt with strict, 25006 read-only or standby.';

CREATE FUNCTION msgq.release_batch(queue text, receipts uuid[], strict boolean DEFAULT false)
RETURNS uuid[]
AS 'MODULE_PATHNAME', 'msgq_release_batch'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.release_batch(text, uuid[], boolean) IS
'msgq.release for up to 10000 receipts. A receipt that stands twice counts once.
Result: the stale receipts, in the order of the input; NULL or empty in, empty out.
Errors: as for msgq.release; 54000 too many receipts.';

CREATE FUNCTION msgq.cancel(queue text, id bigint)
RETURNS boolean
AS 'MODULE_PATHNAME', 'msgq_cancel'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.cancel(text, bigint) IS
'removes a message that is not in flight; needs the right manage. Waits if another transaction is changing the message.
Result: true, or false if there is no such message or it is in flight.
Errors: 42704 no such queue, 22023 name too long, 42501 no right, 22004 NULL, 25006 read-only or standby.';

CREATE FUNCTION msgq.expire_lease(queue text, id bigint)
RETURNS boolean
AS 'MODULE_PATHNAME', 'msgq_expire_lease'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.expire_lease(text, bigint) IS
'ends the lease of a message now: its receipt becomes stale, it is due at once, and the delivery counts as failed; in an ordered queue the messages in flight behind it in its group are given back; needs the right manage. Waits if another transaction is changing the message.
Result: true, or false if the message is not in flight.
Errors: 42704 no such queue, 22023 name too long, 42501 no right, 22004 NULL, 25006 read-only or standby.';

CREATE FUNCTION msgq.peek(
	queue text,
	max_messages int DEFAULT 10,
	after_id bigint DEFAULT 0)
RETURNS SETOF msgq.message
AS 'MODULE_PATHNAME', 'msgq_peek'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 10;

COMMENT ON FUNCTION msgq.peek(text, int, bigint) IS
'shows messages in the order of their ids, whatever their state, and changes nothing; needs the right peek. Works on a standby.
max_messages: 1 to 10000. after_id: only ids above it. Result: the messages; receipt is NULL.
Errors: 42704 no such queue, 42501 no right, 22004 NULL, 22023 bad argument, 54000 max_messages too large.';

CREATE FUNCTION msgq.why_empty(queue text)
RETURNS text
AS 'MODULE_PATHNAME', 'msgq_why_empty'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.why_empty(text) IS
'says why a receive would return nothing; needs the right peek. Looks at every message, so it is for people, not for polling.
Result: NULL if there is something to receive, else the first of these that is true: paused, in_flight_limit (there would be, but for max_in_flight), groups_leased (messages wait for others of their group), in_flight (leased, or held by an open transaction), delayed, expired (only such), or empty.
Errors: 42704 no such queue, 22023 name too long, 42501 no right, 22004 NULL.';

CREATE FUNCTION msgq.redrive(
	dead_letter_queue text,
	target text DEFAULT NULL,
	max_messages int DEFAULT NULL,
	filter jsonpath DEFAULT NULL,
	dry_run boolean DEFAULT false)
RETURNS bigint
AS 'MODULE_PATHNAME', 'msgq_redrive'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.redrive(text, text, int, jsonpath, boolean) IS
'takes dead letters back: removes them from their queue and stores them in another one; needs the right manage on the first and send on the second. What is in flight, or held by an open transaction, is passed by. Counters start again; history and time of sending stay, and the id where a message returns to its own queue. Limits on the target''s length do not count.
target: NULL for the queue in which each died last, but for this one, by its name of then. max_messages: at most so many; NULL for all. filter: a jsonpath on {"headers": ..., "body": ...}; a predicate must be true, any other path must find something. dry_run: only count.
Result: how many messages were taken back, or would be.
Errors: 42704 no such queue, 42501 no right, 22004 NULL, 22023 bad argument, or a message that is no dead letter and no target, MQ004 target is paused, 25006 read-only or standby.';
