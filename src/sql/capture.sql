/*
 * capture.sql: changes of users' tables as messages, and outbox tables.
 */

CREATE FUNCTION msgq.capture_changes() RETURNS trigger
AS 'MODULE_PATHNAME', 'msgq_capture_changes'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.capture_changes() IS
'the function of the triggers that msgq.capture and msgq.create_outbox make; does only what these were allowed to.
Errors: 55000 the trigger was not made by them, or a column that is captured was dropped, 39P01 it was not called by an AFTER trigger; and what msgq.send, msgq.append and msgq.publish raise.';

CREATE FUNCTION msgq.capture(
	relation regclass,
	destination text,
	events text[] DEFAULT '{insert,update,delete}',
	columns text[] DEFAULT NULL,
	key text DEFAULT NULL,
	filter jsonpath DEFAULT NULL)
RETURNS name
AS 'MODULE_PATHNAME', 'msgq_capture'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.capture(regclass, text, text[], text[], text, jsonpath) IS
'sends the changes of a table as messages to a queue, a stream or a topic, each in the transaction that makes it; needs TRIGGER and SELECT (on the captured columns) on the table and the right send on the destination, now and not later. Waits for transactions that are changing the table.
relation: a table, partitioned or not. events: insert, update, delete, truncate (not for partitioned tables and parts of tables). columns: those that are captured; NULL for all. key: a column whose value, as text of up to 255 bytes, is the group key (the key in a stream); NULL or empty: no key. filter: as in msgq.bind; only changes that pass are sent.
Body: {"op": insert, update, delete or truncate, "table": schema.table, "old": row or null, "new": row or null, "at": time}. An update does not repeat values that are stored out of line and did not change: "unchanged" has the names of their columns, which are in neither row. Routing key in a topic: schema.table.op.
Result: what the names of its triggers begin with.
Errors: 22004 NULL, 22023 bad events, columns or filter, 54000 too many of them, 42P01 no such table, 42703 no such column, 42809 not a table, or a temporary one, a system catalog, or one of msgq, 0A000 truncate of a partitioned table, or a virtual generated column, 42704 no such destination, 42501 no right, 42710 changes of the table go there already, 25006 read-only or standby.';

CREATE FUNCTION msgq.uncapture(relation regclass, destination text)
RETURNS boolean
AS 'MODULE_PATHNAME', 'msgq_uncapture'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.uncapture(regclass, text) IS
'ends what msgq.capture or msgq.create_outbox began: later changes of the table are not sent; only for the owner of the table. Waits for transactions that use the table.
Result: true, or false if its changes did not go there.
Errors: 22004 NULL, 22023 name too long, 42P01 no such table, 42704 no such destination, 42809 not a table, 42501 not the owner, 25006 read-only or standby.';

CREATE FUNCTION msgq.create_outbox(relation text, topic text)
RETURNS void
AS 'MODULE_PATHNAME', 'msgq_create_outbox'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.create_outbox(text, text) IS
'makes a table with the columns that the outbox event router of Debezium expects: id, aggregatetype, aggregateid, type, payload; each row that is inserted is published to the topic in the same transaction. Needs what CREATE TABLE needs, and the right send on the topic.
relation: a new table''s name, as in SQL, with a schema or without. Message: routing key aggregatetype, group key aggregateid, body payload (null for NULL), headers id, eventType (type), and one for each column that was added.
Errors: 22004 NULL, 42704 no such topic, 42501 no right, 42P07 the table exists, 42601, 42602 or 22023 bad name, 0A000 one of another database, 3F000 no such schema, 42809 a temporary table, 25006 read-only or standby.';

CREATE VIEW msgq.captures WITH (security_barrier) AS
SELECT
	c.relation,
	coalesce(q.name, s.name, u.name) AS destination,
	c.kind,
	c.events,
	(SELECT array_agg(a.attname ORDER BY l.n)
		FROM pg_catalog.pg_trigger t,
			unnest(t.tgattr::int2[]) WITH ORDINALITY AS l(attnum, n),
			pg_catalog.pg_attribute a
		WHERE c.has_columns AND t.tgrelid = c.relation
		AND t.tgname = format('msgq_capture_%s_columns', c.id)
		AND a.attrelid = c.relation AND a.attnum = l.attnum) AS columns,
	(SELECT a.attname
		FROM pg_catalog.pg_trigger t, pg_catalog.pg_attribute a
		WHERE c.has_key AND t.tgrelid = c.relation
		AND t.tgname = format('msgq_capture_%s_key', c.id)
		AND a.attrelid = c.relation AND a.attnum = t.tgattr[0]) AS key,
	c.filter,
	c.created_at,
	format('msgq_capture_%s', c.id)::name AS triggers
FROM msgq.capture c
LEFT JOIN msgq.queue q ON q.id = c.destination_id
LEFT JOIN msgq.stream s ON s.id = c.destination_id
LEFT JOIN msgq.topic u ON u.id = c.destination_id
WHERE pg_catalog.has_table_privilege(c.relation::oid, 'SELECT')
AND EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.relation
	AND t.tgname ^@ format('msgq_capture_%s_', c.id));

COMMENT ON VIEW msgq.captures IS
'the captures of tables that the current user may read: relation, destination, kind (changes or outbox), events, columns (NULL: all), key, filter, created_at, triggers (what the names of its triggers begin with)';
