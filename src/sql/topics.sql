/*
 * topics.sql: messages that are sent on by routing key and content; requests
 * and their replies.
 */

CREATE FUNCTION msgq.create_topic(
	topic text,
	kind text DEFAULT 'topic',
	on_unroutable text DEFAULT 'error',
	alternate text DEFAULT NULL)
RETURNS void
AS 'MODULE_PATHNAME', 'msgq_create_topic'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.create_topic(text, text, text, text) IS
'makes a topic; the caller needs CREATE on schema msgq and gets all rights on it, with grant option.
topic: 1 to 63 bytes of printable text, taken as it is; no queue or stream may have the same name. kind: direct (the pattern of a binding is the routing key), fanout (every message goes to every binding), topic (the pattern matches the routing key) or headers (header_match matches the headers). on_unroutable: what becomes of a message that no binding takes: error (the publisher gets one), drop, or alternate (it goes to the topic alternate, to which the caller must have the right send).
Errors: 22023 bad name, kind or on_unroutable, or an alternate where on_unroutable has none, 22004 NULL, 42710 topic, queue or stream exists, 42704 no such alternate, 42501 no right.';

CREATE FUNCTION msgq.alter_topic(topic text, settings jsonb)
RETURNS void
AS 'MODULE_PATHNAME', 'msgq_alter_topic'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.alter_topic(text, jsonb) IS
'changes settings of a topic, all or nothing; needs the right admin.
settings: an object with the keys on_unroutable and alternate (as in msgq.create_topic), retain (true in a new topic: the last message of each routing key is kept for targets that are bound with retained; false forgets them) and max_retained (of how many routing keys, 100000 in a new topic; of more than that those are forgotten whose last message is the oldest).
Errors: 22023 unknown key or bad value (22P02, 22003 where its text is no number or boolean), 22004 NULL, 42704 no such topic or alternate, 42501 no right.';

CREATE FUNCTION msgq.drop_topic(topic text, if_exists boolean DEFAULT false)
RETURNS boolean
AS 'MODULE_PATHNAME', 'msgq_drop_topic'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.drop_topic(text, boolean) IS
'drops a topic with its bindings, and the bindings of other topics to it; needs the right admin. Waits for transactions that have published to it. What it has sent on stays where it is.
Result: true, or false if there was none and if_exists is true.
Errors: 42704 no such topic, 22023 name too long, 2BP01 it is the alternate of another one, or schedules send to it, 42501 no right, 22004 NULL.';

CREATE FUNCTION msgq.bind(
	topic text,
	target text,
	pattern text DEFAULT '#',
	header_match jsonb DEFAULT NULL,
	filter jsonpath DEFAULT NULL,
	retained boolean DEFAULT false)
RETURNS int
AS 'MODULE_PATHNAME', 'msgq_bind'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.bind(text, text, text, jsonb, jsonpath, boolean) IS
'lets a topic send messages to a queue, a stream or another topic, from the commit on; needs the right receive on the topic and send on the target, now and not later. The publisher needs no right on the target.
pattern: for the routing key, up to 255 bytes, in AMQP''s form: words are split by dots, * is one word, # any number of words, none too; in a direct topic the routing key itself; left out for fanout and headers. header_match: an object of headers and the values that they must have (null: any value), all of them, or any with "x-match": "any"; names that begin with x- count only with all-with-x and any-with-x. filter: a predicate, or a path that must find something, in {"headers": ..., "body": ...}, where body is null for bytes. All conditions that are given must hold. retained: the target gets the last message of each routing key that the topic has, with the header msgq-retained; waits for transactions that are publishing, and keeps others waiting until the commit.
Result: the number of the binding; that of an earlier one, which is left as it is, if that is the same but for retained.
Errors: 42704 no such topic or target, 42501 no right, 22004 NULL, 22023 bad pattern, header_match or filter, or one that does not fit the kind of the topic, or messages would come back to the topic, 55000 retained and the topic does not retain messages; and for retained what msgq.send raises.';

CREATE FUNCTION msgq.unbind(
	topic text,
	target text,
	pattern text DEFAULT '#',
	header_match jsonb DEFAULT NULL,
	filter jsonpath DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME', 'msgq_unbind'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.unbind(text, text, text, jsonb, jsonpath) IS
'removes a binding, that which msgq.bind has made with the same arguments; needs the right manage on the topic, or the rights to bind. What was sent to the target stays there.
Result: true, or false if there is no such binding.
Errors: 42704 no such topic or target, 42501 no right, 22004 NULL, 22023 pattern too long.';

CREATE FUNCTION msgq.publish(
	topic text,
	routing_key text,
	body jsonb,
	headers jsonb DEFAULT NULL,
	delay interval DEFAULT NULL,
	deliver_at timestamptz DEFAULT NULL,
	priority int DEFAULT 0,
	group_key text DEFAULT NULL,
	ttl interval DEFAULT NULL,
	idempotency_key text DEFAULT NULL)
RETURNS int
AS 'MODULE_PATHNAME', 'msgq_publish'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.publish(text, text, jsonb, jsonb, interval, timestamptz, int, text, interval, text) IS
'sends a message to a topic, which stores it in each queue and stream that its bindings lead to, in the caller''s transaction; needs the right send on the topic.
routing_key: up to 255 bytes, may be empty. body: the JSON value null makes the topic forget the last message of the routing key. headers: an object, without names that begin with msgq-; the message gets msgq-topic and msgq-routing-key as well. delay, deliver_at, priority, group_key, ttl, idempotency_key: as in msgq.send; a queue that lacks the priority takes it as its highest one; an entry of a stream has group_key, or else the routing key, as its key, and no priority or ttl.
Result: the number of queues and streams; each has the message once, however many bindings lead there. A repeated idempotency key counts, and stores nothing where it is known.
Errors: 42704 no such topic, 42501 no right, 22004 NULL, 22023 bad routing key, headers or time, or a delay and a stream, MQ010 no binding takes it and on_unroutable is error; and what msgq.send and msgq.append raise, 54000, MQ004, MQ005 and MQ006 among it: then no target has it.';

CREATE FUNCTION msgq.publish_bytes(
	topic text,
	routing_key text,
	data bytea,
	headers jsonb DEFAULT NULL,
	delay interval DEFAULT NULL,
	deliver_at timestamptz DEFAULT NULL,
	priority int DEFAULT 0,
	group_key text DEFAULT NULL,
	ttl interval DEFAULT NULL,
	idempotency_key text DEFAULT NULL)
RETURNS int
AS 'MODULE_PATHNAME', 'msgq_publish_bytes'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.publish_bytes(text, text, bytea, jsonb, interval, timestamptz, int, text, interval, text) IS
'sends a message whose content is bytes to a topic; otherwise as msgq.publish. No bytes make the topic forget the last message of the routing key.';

CREATE FUNCTION msgq.topic_matches(
	pattern text,
	routing_key text,
	syntax text DEFAULT 'amqp')
RETURNS boolean
AS 'MODULE_PATHNAME', 'msgq_topic_matches'
LANGUAGE C IMMUTABLE PARALLEL SAFE;

COMMENT ON FUNCTION msgq.topic_matches(text, text, text) IS
'does the pattern match the routing key?
syntax: amqp (words split by dots; * one word, # any number, none too, anywhere), mqtt (levels split by /; + one level, # the rest, none too, at the end; a filter that begins with a wildcard does not match a name that begins with $) or nats (tokens split by dots; * one token, > one or more, at the end).
Result: false also for a routing key that is not valid in the syntax.
Errors: 22023 bad pattern (a shared subscription of MQTT too) or syntax, 22004 NULL.';

CREATE FUNCTION msgq.route(
	topic text,
	routing_key text,
	headers jsonb DEFAULT NULL,
	OUT target text,
	OUT binding int,
	OUT pattern text,
	OUT via text,
	OUT header_match jsonb,
	OUT filter jsonpath)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'msgq_route_of'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 10;

COMMENT ON FUNCTION msgq.route(text, text, jsonb) IS
'the bindings that would take a message with this routing key and these headers, and why; stores nothing; needs the right peek on the topic.
Result: one row for each binding of the topic, and of the topics that it leads to: target, binding (its number), pattern, via (the topic whose binding it is), header_match, filter. A filter is taken as passed, since it depends on the body.
Errors: 42704 no such topic, 42501 no right, 22004 NULL, 22023 bad routing key or headers.';

CREATE FUNCTION msgq.topic_handle(topic_id int) RETURNS regclass
AS 'MODULE_PATHNAME', 'msgq_topic_handle'
LANGUAGE C STABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION msgq.topic_handle(int) IS
'the view msgq.t<topic_id>, which shows the bindings of a topic and carries the rights on it; NULL if there is none';

CREATE VIEW msgq.topics WITH (security_barrier) AS
SELECT
	t.name,
	t.kind,
	t.on_unroutable,
	a.name AS alternate,
	t.retain,
	t.max_retained,
	t.created_at,
	t.id
FROM msgq.topic t
LEFT JOIN msgq.topic a ON a.id = t.alternate
WHERE pg_catalog.has_table_privilege(msgq.topic_handle(t.id),
	'SELECT, INSERT, UPDATE, DELETE, TRUNCATE');

COMMENT ON VIEW msgq.topics IS
'the topics on which the current user has any right: name, kind, on_unroutable, alternate (the name of a topic), retain, max_retained, created_at, id (the number in the name of the view msgq.t<id>)';

CREATE VIEW msgq.bindings WITH (security_barrier) AS
SELECT
	t.name AS topic,
	coalesce(q.name, s.name, u.name) AS target,
	CASE WHEN q.id IS NOT NULL THEN 'queue'
		WHEN s.id IS NOT NULL THEN 'stream'
		WHEN u.id IS NOT NULL THEN 'topic' END AS target_kind,
	b.pattern,
	b.header_match,
	b.filter,
	b.retained,
	b.created_at,
	b.id AS binding
FROM msgq.binding b
JOIN msgq.topic t ON t.id = b.topic_id
LEFT JOIN msgq.queue q ON q.id = b.target_id
LEFT JOIN msgq.stream s ON s.id = b.target_id
LEFT JOIN msgq.topic u ON u.id = b.target_id
WHERE pg_catalog.has_table_privilege(msgq.topic_handle(t.id), 'SELECT');

COMMENT ON VIEW msgq.bindings IS
'the bindings of the topics on which the current user has the right peek: topic, target and target_kind, the conditions pattern, header_match and filter, retained (whether the target got the last messages when it was bound), created_at, binding (its number)';

CREATE PROCEDURE msgq.request(
	queue text,
	body jsonb,
	timeout interval,
	INOUT reply jsonb DEFAULT NULL,
	headers jsonb DEFAULT NULL)
AS 'MODULE_PATHNAME', 'msgq_request'
LANGUAGE C;

COMMENT ON PROCEDURE msgq.request(text, jsonb, interval, jsonb, jsonb) IS
'sends a message, commits it, waits for the reply without a snapshot, and returns it; needs the right send. The message expires when the time is over, so that no worker begins with it then.
timeout: 0 to 1 hour. reply: the body that msgq.reply was given; what it is called with does not matter. headers: a JSON object beside the body, as in msgq.send.
Errors: MQ009 nobody has replied in time, and whether a worker has begun is unknown, 25001 in a transaction block, 22004 NULL, 22023 bad timeout or headers; and what msgq.send raises.';

CREATE FUNCTION msgq.reply(queue text, receipt uuid, body jsonb)
RETURNS boolean
AS 'MODULE_PATHNAME', 'msgq_reply'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.reply(text, uuid, jsonb) IS
'answers a request and removes it, as msgq.ack does, in the caller''s transaction; needs the right receive.
receipt: from msgq.receive.
Result: true; false without any effect if the receipt is stale; false too if the request''s time is over: then it is removed, and the reply is dropped and counted (late_replies_total of msgq.queue_stats).
Errors: 22023 the message is not a request, 42704 no such queue, 42501 no right, 22004 NULL, 25006 read-only or standby.';
