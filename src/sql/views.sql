/*
 * views.sql: what there is and what is going on.
 *
 * The views show each caller the queues on which it has a right; they are
 * security barriers, so that a function in a WHERE clause sees no more.
 */

CREATE FUNCTION msgq.handle(queue_id int) RETURNS regclass
AS 'MODULE_PATHNAME', 'msgq_handle'
LANGUAGE C STABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION msgq.handle(int) IS
'the view msgq.q<queue_id>, which shows the messages of a queue and carries the rights on it; NULL if there is none';

CREATE VIEW msgq.queues WITH (security_barrier) AS
SELECT
	q.name,
	pg_catalog.to_jsonb(q) - '{id,name,created_at,paused}'::text[] AS settings,
	q.created_at,
	q.paused,
	q.id
FROM msgq.queue q
WHERE pg_catalog.has_table_privilege(msgq.handle(q.id),
	'SELECT, INSERT, UPDATE, DELETE, TRUNCATE');

COMMENT ON VIEW msgq.queues IS
'the queues on which the current user has any right: name, settings as jsonb, created_at, paused (what msgq.pause has paused: receive, send or all; else NULL), id (the number in the name of the view msgq.q<id>)';

CREATE FUNCTION msgq.list_leases(
	OUT queue text,
	OUT id bigint,
	OUT leased_at timestamptz,
	OUT visible_at timestamptz,
	OUT deliveries int,
	OUT failures int)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'msgq_list_leases'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.list_leases() IS
'the rows of the view msgq.leases';

CREATE VIEW msgq.leases AS SELECT * FROM msgq.list_leases();

COMMENT ON VIEW msgq.leases IS
'the messages in flight of all queues on which the current user has the right peek: queue, id, leased_at, visible_at (end of the lease), deliveries, failures';

CREATE FUNCTION msgq.list_queue_stats(
	OUT queue text,
	OUT ready bigint,
	OUT delayed bigint,
	OUT in_flight bigint,
	OUT oldest_ready_age interval,
	OUT sent_total bigint,
	OUT delivered_total bigint,
	OUT acked_total bigint,
	OUT failed_total bigint,
	OUT expired_total bigint,
	OUT dropped_total bigint,
	OUT dead_lettered_total bigint,
	OUT redelivered_total bigint,
	OUT purged_total bigint,
	OUT cancelled_total bigint,
	OUT archived_total bigint,
	OUT redriven_total bigint,
	OUT late_replies_total bigint,
	OUT size_bytes bigint,
	OUT segments int,
	OUT exact boolean)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'msgq_list_queue_stats'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.list_queue_stats() IS
'the rows of the view msgq.queue_stats';

CREATE VIEW msgq.queue_stats AS SELECT * FROM msgq.list_queue_stats();

COMMENT ON VIEW msgq.queue_stats IS
'depth, age, totals and size of the queues on which the current user has the right peek: ready (deliverable now), delayed (due later), in_flight (leased), oldest_ready_age (since it was sent), size_bytes (tables, indexes and TOAST) and segments. exact: true if the depth was counted, as the statement''s snapshot has it; false for a large queue, whose depth is reckoned from what was counted once and what came and went since, and whose age is that of the first message in each order. The totals count committed transactions (prepared ones are not counted), go on after a restart from what the worker has saved last, and are NULL without shared memory.';
