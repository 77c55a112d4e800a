/*
 * schedules.sql: messages that are sent by the clock.
 */

CREATE FUNCTION msgq.schedule(
	name text,
	spec text,
	destination text,
	body jsonb,
	headers jsonb DEFAULT NULL,
	timezone text DEFAULT 'UTC',
	catch_up text DEFAULT 'one')
RETURNS void
AS 'MODULE_PATHNAME', 'msgq_schedule'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.schedule(text, text, text, jsonb, jsonb, text, text) IS
'sends a message to a queue, a stream or a topic by the clock, from the commit on; each due time fires once. Needs the right send on the destination, now and not later. A schedule that has the name is replaced, if the caller is a member of its owner, or has the right manage on its destination; if spec and timezone are the same, it goes on as it was.
name: 1 to 63 bytes of printable text. spec: five fields, minute (0-59), hour (0-23), day of month (1-31), month (1-12, JAN-DEC) and day of week (0-7, SUN-SAT), each *, or a list of values and ranges a-b, with steps */n and a-b/n; or @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually; or "@every" and an interval of at least a second, as in "@every 30s". If neither day field begins with *, one of them must match, else both. destination: a queue, a stream (name is the key of the entries) or a topic (name is the routing key). headers: an object, without names that begin with msgq-; the message gets msgq-schedule (name) and msgq-scheduled-for (the due time, in UTC) as well. timezone: a name of pg_catalog.pg_timezone_names, for the fields. catch_up: of due times that are more than a minute late, fire none, one (the latest) or all.
Errors: 22023 bad name, spec, headers, timezone or catch_up, or a spec that is never due (22007, 22008 where what follows "@every" is no interval), 22004 NULL, 42704 no such destination, 42501 no right, 25006 read-only or standby.';

CREATE FUNCTION msgq.unschedule(name text)
RETURNS void
AS 'MODULE_PATHNAME', 'msgq_unschedule'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.unschedule(text) IS
'removes a schedule; for members of its owner, and those with the right manage on its destination. What it has sent stays where it is.
Errors: 42704 no such schedule, 42501 no right, 22004 NULL, 22023 name too long, 25006 read-only or standby.';

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

CREATE FUNCTION msgq.next_due(
	spec text,
	timezone text,
	after timestamptz,
	anchor timestamptz)
RETURNS timestamptz
AS 'MODULE_PATHNAME', 'msgq_next_due'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.next_due(text, text, timestamptz, timestamptz) IS
'the first due time later than after, for msgq.schedules: NULL if there is none, or no such time zone.
Errors: as for msgq.due_times.';

CREATE VIEW msgq.schedules WITH (security_barrier) AS
SELECT
	s.name,
	s.spec,
	coalesce(q.name, r.name, t.name) AS destination,
	s.body,
	s.headers,
	s.timezone,
	s.catch_up,
	s.owner,
	s.created_at,
	greatest(
		(SELECT pg_catalog.max(due_at) FROM msgq.fired_1 WHERE schedule_id = s.id AND NOT skipped),
		(SELECT pg_catalog.max(due_at) FROM msgq.fired_2 WHERE schedule_id = s.id AND NOT skipped)
	) AS last_at,
	msgq.next_due(s.spec, s.timezone, greatest(
		s.scheduled_at,
		(SELECT pg_catalog.max(due_at) FROM msgq.fired_1 WHERE schedule_id = s.id),
		(SELECT pg_catalog.max(due_at) FROM msgq.fired_2 WHERE schedule_id = s.id)
	), s.scheduled_at) AS next_at
FROM msgq.schedule s
LEFT JOIN msgq.queue q ON q.id = s.destination_id
LEFT JOIN msgq.stream r ON r.id = s.destination_id
LEFT JOIN msgq.topic t ON t.id = s.destination_id
WHERE EXISTS (SELECT FROM pg_catalog.pg_roles o
		WHERE o.rolname = s.owner AND pg_catalog.pg_has_role(o.oid, 'USAGE'))
	OR pg_catalog.has_table_privilege(coalesce(msgq.handle(q.id), msgq.stream_handle(r.id),
		msgq.topic_handle(t.id)), 'SELECT');

COMMENT ON VIEW msgq.schedules IS
'the schedules of roles that the current user is a member of, and those whose destination he may peek at: name, spec, destination, body, headers, timezone, catch_up, owner (whose right to send was checked), created_at, last_at (the due time that was fired last), next_at (the due time to be fired next)';
