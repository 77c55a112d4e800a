--
-- Making, changing and dropping streams, and appending to them.
--
SET client_min_messages = warning;

-- What a statement raises; nothing that it does is kept.
CREATE FUNCTION pg_temp.raised(statement text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	detail text;
BEGIN
	EXECUTE statement;
	RAISE SQLSTATE 'OKAY0';
EXCEPTION
	WHEN SQLSTATE 'OKAY0' THEN
		RETURN 'nothing';
	WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
		RETURN concat_ws(' / ', SQLSTATE || ' ' || SQLERRM, nullif(detail, ''));
END
$$;
CREATE TEMP TABLE relations_before AS
	SELECT oid FROM pg_class WHERE relnamespace = 'msgq'::regnamespace;

SELECT msgq.create_stream('events');
SELECT settings FROM msgq.streams WHERE name = 'events';
-- Queues and streams share their names.
\pset format unaligned
SELECT n, pg_temp.raised('SELECT msgq.' || statement) FROM (VALUES
	(1, $$create_stream('events')$$),
	(2, $$create_queue('events')$$),
	(3, $$create_queue('x'), msgq.create_stream('x')$$),
	(4, $$create_queue('x'), msgq.create_stream('x.dead')$$),
	(5, $$create_stream('x.dead'), msgq.create_queue('x')$$),
	(6, $$create_queue('x'), msgq.rename_queue('x', 'events')$$),
	(7, $$create_stream('')$$),
	(8, $$create_stream(repeat('x', 64))$$),
	(9, $$create_stream(E'a\nb')$$),
	(10, $$create_stream('x', partitions => 0)$$),
	(11, $$create_stream('x', partitions => 1001)$$),
	(12, $$create_stream('x', retention => '0')$$),
	(13, $$create_stream('x', retention => '-1 s')$$),
	(14, $$create_stream('x', retention_bytes => 0)$$),
	(15, $$create_stream('x', retention_entries => -1)$$),
	(16, $$create_stream('x', dead_letter_queue => 'nowhere')$$),
	(17, $$create_stream('x', dead_letter_queue => '')$$),
	(18, $$alter_stream('events', '[]')$$),
	(19, $$alter_stream('events', '{"nothing": 1}')$$),
	(20, $$alter_stream('events', '{"partitions": "many"}')$$),
	(21, $$alter_stream('events', '{"partitions": null}')$$),
	(22, $$alter_stream('events', '{"retention": "soon"}')$$),
	(23, $$alter_stream('events', '{"retention": {}}')$$),
	(24, $$alter_stream('events', '{"hold_for_groups": "perhaps"}')$$),
	(25, $$alter_stream('events', '{"max_deliveries": -1}')$$),
	(26, $$alter_stream('events', '{"dead_letter_queue": "nowhere"}')$$),
	(27, $$alter_stream('nowhere', '{}')$$),
	(28, $$drop_stream('nowhere')$$),
	(29, $$append('nowhere', '1')$$),
	(30, $$send('events', '1')$$),
	(31, $$append('events', '1', key => '')$$),
	(32, $$append('events', '1', key => repeat('k', 256))$$),
	(33, $$append('events', '1', key => repeat('k', 255))$$),
	(34, $$append('events', '1', idempotency_key => '')$$),
	(35, $$append('events', '1', headers => '[]')$$),
	(36, $$append('events', '1', headers => '{"msgq-x": 1}')$$),
	(37, $$append('events', '1', expected_id => 0)$$),
	(38, $$append('events', '1', key => 'k', expected_id => -1)$$),
	(39, $$append_batch('events', '{1,NULL}')$$),
	(40, $$append_batch('events', '{1,NULL}', '{a,b}')$$),
	(41, $$append_batch('events', '{1,2}', '{a}')$$),
	(42, $$append_batch('events', '{1,2}', '{a,NULL}', '{NULL,"{}"}')$$),
	(43, $$append_batch('events', '{{1},{2}}')$$),
	(44, $$append_batch('events', '{}')$$),
	(45, $$append_batch('events', array_fill('1'::jsonb, '{10001}'))$$),
	(46, $$create_group('events', '', 'first')$$),
	(47, $$create_group('events', repeat('g', 64), 'first')$$),
	(48, $$create_group('events', 'g', 'somewhere')$$),
	(49, $$create_group('events', 'g', '2')$$),
	(50, $$create_group('events', 'g', '0')$$),
	(51, $$create_group('events', 'g', '99999999999999999999')$$),
	(52, $$create_group('events', 'g', 'first'), msgq.create_group('events', 'g', 'new')$$),
	(53, $$create_group('nowhere', 'g', 'first')$$),
	(54, $$drop_group('events', 'nobody')$$),
	(55, $$read('events', 'nobody')$$),
	(56, $$seek('events', 'nobody', 'first')$$),
	(57, $$scan('events', 1, 1, 1)$$),
	(58, $$scan('events', -1, 1, 1)$$),
	(59, $$scan('events', 0, 0, 1)$$),
	(60, $$scan('events', 0, 1, 0)$$),
	(61, $$scan('events', 0, 1, 10001)$$)
) AS v(n, statement) ORDER BY n;
BEGIN;
CALL msgq.sequence('events');
ROLLBACK;
CALL msgq.sequence('nowhere');
BEGIN READ ONLY;
SELECT msgq.append('events', '1');
ROLLBACK;
\pset format aligned
SELECT msgq.create_stream('events', if_not_exists => true);
SET client_min_messages = notice;
SELECT msgq.create_stream('events', partitions => 2, retention => '1 day', if_not_exists => true);
SELECT msgq.drop_stream('nowhere', if_exists => true);
SET client_min_messages = warning;

-- Settings, all or nothing.
SELECT msgq.alter_stream('events', '{"partitions": 4, "retention": "1 day", "hold_for_groups": true, "max_held_bytes": null}');
SELECT settings FROM msgq.streams WHERE name = 'events';
SELECT pg_temp.raised($$SELECT msgq.alter_stream('events', '{"retention": "2 days", "partitions": 0}')$$);
SELECT settings->'retention' AS retention FROM msgq.streams WHERE name = 'events';

-- Entries without a key are spread.
DO $$ BEGIN PERFORM msgq.append('events', to_jsonb(g)) FROM generate_series(1, 40) g; END $$;
CALL msgq.sequence('events');
SELECT count(*) FILTER (WHERE entries >= 10) AS partitions, sum(entries) AS entries FROM msgq.stream_stats WHERE stream = 'events';

-- Idempotency keys.
SELECT msgq.append('events', '{"a": 1}', idempotency_key => 'once') AS first_id \gset
SELECT msgq.append('events', '{"a":1}', idempotency_key => 'once') = :first_id AS same;
SELECT msgq.append_bytes('events', '\x01', idempotency_key => 'bytes') AS bytes_id \gset
SELECT msgq.append_bytes('events', '\x01', idempotency_key => 'bytes') = :bytes_id AS same;
\pset format unaligned
SELECT regexp_replace(pg_temp.raised('SELECT msgq.' || statement), '\d+ of', 'N of') FROM (VALUES
	(1, $$append('events', '{"a": 2}', idempotency_key => 'once')$$),
	(2, $$append_bytes('events', '\x01', idempotency_key => 'once')$$),
	(3, $$append('events', '1', idempotency_key => 'bytes')$$)
) AS v(n, statement) ORDER BY n;
\pset format aligned
-- Known in the segments before, too, and forgotten with what was undone.
SELECT msgq.alter_stream('events', '{"partitions": 2}');
SELECT msgq.append('events', '{"a": 1}', idempotency_key => 'once') = :first_id AS same;
BEGIN;
SELECT msgq.append('events', '1', idempotency_key => 'undone') AS undone \gset
SELECT msgq.append('events', '1', idempotency_key => 'undone') = :undone AS same;
ROLLBACK;
SELECT msgq.append('events', '2', idempotency_key => 'undone') > :undone AS another;

-- Optimistic append.
SELECT msgq.append('events', '1', key => 'a', expected_id => 0) AS a \gset
SELECT msgq.append('events', '2', key => 'a', expected_id => :a) AS b \gset
SELECT :b > :a AS appended;
SELECT regexp_replace(pg_temp.raised(format($$SELECT msgq.append('events', '3', key => 'a', expected_id => %s)$$, e)), '\d{2,}', 'N', 'g')
FROM unnest(ARRAY[0, :a]) e;
BEGIN;
SELECT msgq.append('events', '3', key => 'a', expected_id => :b) AS c \gset
SELECT msgq.append('events', '4', key => 'a', expected_id => :c) > :c AS appended;
COMMIT;

-- In one transaction a stream is made, used and dropped.
BEGIN;
SELECT msgq.create_stream('brief', partitions => 2);
SELECT msgq.create_group('brief', 'g', 'first');
SELECT msgq.append('brief', '1') > 0 AS appended;
SELECT msgq.alter_stream('brief', '{"partitions": 3}');
SELECT count(*) FROM msgq.scan('brief', 0, 1, 10) UNION ALL SELECT count(*) FROM msgq.scan('brief', 1, 1, 10) ORDER BY 1;
SELECT msgq.drop_stream('brief');
COMMIT;

-- What a user adds is refused, and not passed by.
SELECT format('msgq.s%s_%s', stream_id, n) AS entries, format('msgq.s%s_p%s', stream_id, n) AS places,
	format('msgq.s%s_g1', stream_id) AS log
FROM msgq.stream_segment JOIN msgq.stream s ON s.id = stream_id WHERE s.name = 'events' AND state = 'active' \gset
CREATE FUNCTION pg_temp.appends() RETURNS text
LANGUAGE sql AS $$
	SELECT regexp_replace(pg_temp.raised($q$SELECT msgq.append('events', '1')$q$), '"s\d+_\d+"', '"sN_n"')
$$;
\pset format unaligned
CREATE INDEX added ON :entries (appended_at);
SELECT pg_temp.appends();
DROP INDEX msgq.added;
CREATE TRIGGER added BEFORE INSERT ON :entries FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
SELECT pg_temp.appends();
DROP TRIGGER added ON :entries;
SELECT pg_temp.appends();
ALTER TABLE :entries ADD more int;
SELECT pg_temp.appends();
\pset format aligned

SELECT msgq.drop_stream('events');
SELECT count(*) AS relations_left FROM pg_class
WHERE relnamespace = 'msgq'::regnamespace AND oid NOT IN (SELECT oid FROM relations_before);
SELECT count(*) AS rows_left FROM msgq.stream s FULL JOIN msgq.stream_segment ON stream_id = s.id
	FULL JOIN msgq.stream_group g ON g.stream_id = s.id;
