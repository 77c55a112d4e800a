/*
 * rights.sql: what PUBLIC may do.
 *
 * Every function checks the rights of its caller, and the views show only
 * what the caller has a right to, so both are open; tables and sequences are
 * not.  Creating queues needs CREATE on the schema, which nobody has yet.
 */

GRANT USAGE ON SCHEMA msgq TO PUBLIC;
GRANT SELECT ON msgq.queues, msgq.leases, msgq.queue_stats TO PUBLIC;
GRANT SELECT ON msgq.streams, msgq.stream_stats, msgq.group_lag TO PUBLIC;
GRANT SELECT ON msgq.topics, msgq.bindings TO PUBLIC;
GRANT SELECT ON msgq.captures TO PUBLIC;
GRANT SELECT ON msgq.schedules TO PUBLIC;
