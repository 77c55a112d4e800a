/*
 * operation.sql: looking after queues.
 */

CREATE FUNCTION msgq.maintain()
RETURNS jsonb
AS 'MODULE_PATHNAME', 'msgq_maintain'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.maintain() IS
'does one round of what the background worker does, for all queues, streams, topics and schedules of the database and the inbox, but that it gives no positions (see msgq.sequence); only for members of the role that owns the extension. Waits for a round of the worker, and for any other lock for a second at most: what is in use is left for the next time.
Result: an object with numbers: turned (rings and streams), added (segments), drained, reclaimed (segments that were found drained, or complete in a stream, that were emptied), moved (messages, to the active segment, and claims), refilled (drained segments in which a message was found), rotated, emptied (tables of idempotency keys, archived messages, groups'' places, retained messages, replies, claims or fires of schedules that were closed, that were emptied), audited (segments), defects (messages that receivers had passed by), waiting (segments that a lock or a snapshot keeps), given_up (messages that had expired, or whose deliveries had all failed), rolled_back (messages of which it was written down that a pop was rolled back), fired (due times of schedules), failed (queues and schedules with an error, reported as a warning).
Errors: 42501 not the owner, 25001 in a transaction block or above READ COMMITTED, 25006 read-only or standby.';

CREATE FUNCTION msgq.health(
	OUT check_name text,
	OUT status text,
	OUT detail text)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'msgq_health'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 10;

COMMENT ON FUNCTION msgq.health() IS
'says what is wrong: one row for each check, with status ok, warning or error, and what is the matter. Checks: worker, shared_memory, synchronous_commit, oldest_snapshot, segments, dead_letters, audit, wakeups, sequencer (of streams), streams (that keep much for their groups), schedules (that are overdue, or that nobody would fire). Other users'' transactions are seen only by members of pg_read_all_stats.';

CREATE FUNCTION msgq.list_drained(OUT segment regclass)
RETURNS SETOF regclass
AS 'MODULE_PATHNAME', 'msgq_list_drained'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.list_drained() IS
'the segments that were seen without a message and wait to be emptied, of the queues on which the current user has the right peek; for msgq.health';
