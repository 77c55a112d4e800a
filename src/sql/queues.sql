/*
 * queues.sql: making, changing and dropping queues, and rights on them.
 */

CREATE FUNCTION msgq.create_queue(
	queue text,
	visibility_timeout interval DEFAULT '30 s',
	max_deliveries int DEFAULT 10,
	dead_letter_queue text DEFAULT NULL,
	retry_delay interval DEFAULT '5 s',
	retry_multiplier float8 DEFAULT 2,
	max_retry_delay interval DEFAULT '10 min',
	message_ttl interval DEFAULT NULL,
	max_length bigint DEFAULT NULL,
	overflow text DEFAULT 'reject',
	max_message_bytes int DEFAULT 1048576,
	max_in_flight int DEFAULT NULL,
	priorities int DEFAULT 1,
	ordered boolean DEFAULT false,
	on_exhausted text DEFAULT 'skip',
	dedup_window interval DEFAULT '24 h',
	archive_retention interval DEFAULT NULL,
	if_not_exists boolean DEFAULT false)
RETURNS void
AS 'MODULE_PATHNAME', 'msgq_create_queue'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.create_queue(text, interval, int, text, interval, float8, interval, interval, bigint, text, int, int, int, boolean, text, interval, interval, boolean) IS
'makes a queue; the caller needs CREATE on schema msgq and gets all rights on it, with grant option.
queue: 1 to 63 bytes of printable text, taken as it is. visibility_timeout: how long a received message stays invisible, above 0. max_deliveries: so many failed deliveries, by nack, by the end of a lease or by the rollback of a pop, and a message is given up; 0 for no limit. dead_letter_queue: where messages go that are given up, a queue to which the caller may send; NULL for one that is made with the queue and named <queue>.dead; an empty string for none: then they are removed. retry_delay, retry_multiplier, max_retry_delay: nack without a delay waits a random time between 0 and least(max_retry_delay, retry_delay * retry_multiplier ^ (failures - 1)). message_ttl: messages expire so long after they were sent; NULL for never. max_length: messages that the queue may have, whatever their state; NULL for no limit; open transactions may overshoot it by what they send. overflow: what becomes of a message for which there is no room: reject raises MQ005; drop_oldest removes the oldest messages, those of the lowest priority first, dead_letter moves them to the dead-letter queue. max_message_bytes: limit on body plus headers, 1 to 209715200. max_in_flight: messages that may be leased at the same time; NULL for no limit. priorities: number of levels of priority, 1 to 10, not together with ordered; the dead-letter queue that is made with the queue has one, no order by group and no archive. dedup_window: how long an idempotency key is remembered, above 0, with days of 24 hours and months of 30 days. archive_retention: how long msgq.archive keeps a message, likewise; NULL for no archive. if_not_exists: an existing queue is left alone, with a warning if its settings differ.
ordered: messages with the same group_key are delivered in order, one batch at a time; not with priorities. on_exhausted: skip gives up a message of a group that has used up its deliveries, block retries it for ever, and its group waits.
Errors: 22023 bad name or setting, or dead letters that would come back, 22004 NULL, 42710 queue, stream or topic exists, 42704 no such dead-letter queue, 42501 no right.';

CREATE FUNCTION msgq.alter_queue(queue text, settings jsonb)
RETURNS void
AS 'MODULE_PATHNAME', 'msgq_alter_queue'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.alter_queue(text, jsonb) IS
'changes settings of a queue, all or nothing; needs the right admin.
settings: an object whose keys are arguments of msgq.create_queue, intervals as text; priorities and ordered cannot be changed. Takes effect for calls that begin after the commit; messages in flight keep their lease.
Errors: 22023 unknown key or bad value (22007, 22P02, 22003 where its text is no interval or number), 22004 NULL, 42704 no such queue, 42501 no right.';

CREATE FUNCTION msgq.drop_queue(queue text, if_exists boolean DEFAULT false)
RETURNS boolean
AS 'MODULE_PATHNAME', 'msgq_drop_queue'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.drop_queue(text, boolean) IS
'drops a queue with all its messages; needs the right admin. Waits for transactions that use the queue. The dead-letter queue <queue>.dead goes with it, unless it holds messages, or other queues use it, or changes of tables go there.
Result: true, or false if there was none and if_exists is true.
Errors: 42704 no such queue, 22023 name too long, 42501 no right, 22004 NULL, 2BP01 other queues'' dead letters go there, or schedules send to it.';

CREATE FUNCTION msgq.rename_queue(queue text, new_name text)
RETURNS void
AS 'MODULE_PATHNAME', 'msgq_rename_queue'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.rename_queue(text, text) IS
'gives a queue another name; messages, receipts and rights stay, and queues whose dead letters go there follow. The dead-letter queue <queue>.dead is renamed along, if <new_name>.dead can be had. Needs the right admin.
Errors: 42704 no such queue, 42710 new_name is taken, 22023 bad name, 42501 no right, 22004 NULL.';

CREATE FUNCTION msgq.purge(queue text)
RETURNS bigint
AS 'MODULE_PATHNAME', 'msgq_purge'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.purge(text) IS
'removes every message that is committed when it begins, whatever the isolation level, also those in flight, whose receipts become stale; needs the right manage. Idempotency keys and archived messages stay. Waits for transactions that hold messages; in an ordered queue, for all that use the queue.
Result: the number of messages removed.
Errors: 42704 no such queue, 22023 name too long, 42501 no right, 22004 NULL, 40001 above READ COMMITTED if another transaction changed one.';

CREATE FUNCTION msgq.pause(queue text, what text DEFAULT 'receive')
RETURNS void
AS 'MODULE_PATHNAME', 'msgq_pause'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.pause(text, text) IS
'pauses a queue, for calls that begin after the commit; needs the right manage. Messages are kept, and those in flight can be settled.
what: receive (receivers find nothing, and wait on), send (senders get the error MQ004; dead letters come in nevertheless) or all; adds to what is paused already.
Errors: 42704 no such queue, 42501 no right, 22004 NULL, 22023 bad argument.';

CREATE FUNCTION msgq.resume(queue text, what text DEFAULT 'receive')
RETURNS void
AS 'MODULE_PATHNAME', 'msgq_resume'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.resume(text, text) IS
'ends a pause; needs the right manage. what: receive, send or all. Errors: as for msgq.pause.';

CREATE FUNCTION msgq.grant(name text, role text, "right" text)
RETURNS void
AS 'MODULE_PATHNAME', 'msgq_grant'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.grant(text, text, text) IS
'gives a role a right on a queue; needs the right admin.
role: a role name as stored, or public. right: peek (look, also at the archive; statistics), send, receive (receive and settle), manage (purge, cancel, expire a lease, pause, redrive), admin (alter, drop, rename, grant); these are SELECT, INSERT, UPDATE, DELETE and TRUNCATE on the view msgq.q<id>.
Errors: 42704 no such queue or role, 22023 no such right, 42501 no right, 22004 NULL.';

CREATE FUNCTION msgq.revoke(name text, role text, "right" text)
RETURNS void
AS 'MODULE_PATHNAME', 'msgq_revoke'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.revoke(text, text, text) IS
'takes a right on a queue from a role, whoever granted it, together with what that role granted on; needs the right admin. Arguments and errors as for msgq.grant.';
