/*
 * schedules.sql: messages that are sent by the clock.
 */

CREATE FUNCTION msgq.due_times(
	spec text,
	timezone text DEFAULT 'UTC',
	after timestamptz DEFAULT NULL,
	max_times int DEFAULT 1,
	anchor timestamptz DEFAULT NULL)
RETURNS SETOF timestamptz
AS 'MODULE_PATHNAME', 'msgq_due_times'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 10;

COMMENT ON FUNCTION msgq.due_times(text, text, timestamptz, int, timestamptz) IS
'the next times at which a schedule would be due; needs no right.
spec, timezone: as in msgq.schedule. after: only later times; NULL: now. max_times: 1 to 10000. anchor: from when "@every" counts; NULL: after.
Result: at most max_times rows, in ascending order.
Errors: 22023 bad spec, timezone, time or number (22007, 22008 where what follows "@every" is no interval), 22004 NULL, 54000 max_times is too large.';
