--
-- Reading streams: groups, leases and their receipts, seeking, scanning, and
-- the last entries.  Positions are given by hand, so that they are there.
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

SELECT msgq.create_stream('r');
SELECT msgq.create_group('r', 'first', 'first');
SELECT msgq.append_batch('r', ARRAY['1', '2', '3']::jsonb[]);
CALL msgq.sequence('r');
SELECT msgq.create_group('r', 'new', 'new');
SELECT msgq.append('r', '4', key => 'k', headers => '{"h": 1}');
SELECT msgq.append_bytes('r', '\x05');
CALL msgq.sequence();

-- Groups read the same, each at its place.
SELECT partition, "position", id, receipt, key, headers, body, data FROM msgq.read('r', 'first', 2);
SELECT "position", body, data FROM msgq.read('r', 'first', 10);
SELECT "position", body FROM msgq.read('r', 'first', 10);
SELECT "position", key, headers, body FROM msgq.read('r', 'new', 1);
SELECT consumer_group, partition, "position", lag, time_lag >= '0' AS has_time_lag, leased_until, deliveries
FROM msgq.group_lag WHERE stream = 'r' ORDER BY 1;

-- A rolled-back read has not moved; nor has one in a savepoint.
SELECT msgq.seek('r', 'first', 'first');
BEGIN;
SELECT "position" FROM msgq.read('r', 'first', 2);
SAVEPOINT s;
SELECT "position" FROM msgq.read('r', 'first', 2);
ROLLBACK TO s;
SELECT "position" FROM msgq.read('r', 'first', 1);
ROLLBACK;
SELECT "position" FROM msgq.read('r', 'first', 1);
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT "position" FROM msgq.read('r', 'first', 1);
SELECT "position" FROM msgq.read('r', 'first', 1);
COMMIT;
SELECT "position" FROM msgq.read('r', 'first', 1);

-- seek: by position, and by time.
SELECT msgq.seek('r', 'first', '2');
SELECT "position" FROM msgq.read('r', 'first', 1);
SELECT msgq.seek('r', 'first', 'new');
SELECT "position" FROM msgq.read('r', 'first', 1);
SELECT msgq.seek('r', 'first', '2000-01-01');
SELECT "position" FROM msgq.read('r', 'first', 1);
SELECT msgq.seek('r', 'first', (SELECT appended_at::text FROM msgq.scan('r', 0, 4, 1)));
SELECT "position" FROM msgq.read('r', 'first', 1);
SELECT msgq.seek('r', 'first', '2100-01-01');
SELECT "position" FROM msgq.read('r', 'first', 1);
SELECT msgq.create_group('r', 'third', '3');
SELECT "position" FROM msgq.read('r', 'third', 1);

-- Leases: part by part, twice, and a receipt of something else.
SELECT msgq.seek('r', 'first', 'first');
SELECT DISTINCT receipt AS lease FROM msgq.poll('r', 'first', 3) \gset
SELECT "position" FROM msgq.poll('r', 'first', 3);
SELECT "position" FROM msgq.read('r', 'first', 3);
SELECT msgq.commit('r', 'first', :'lease', 1);
SELECT "position", lag, deliveries, leased_until IS NOT NULL AS leased FROM msgq.group_lag WHERE consumer_group = 'first';
SELECT msgq.commit('r', 'first', :'lease', 1) AS again;
\pset format unaligned
SELECT pg_temp.raised(format('SELECT msgq.commit(''r'', ''first'', %L, %s)', :'lease', upto)) FROM unnest('{0,4,-1}'::int[]) upto;
\pset format aligned
SELECT msgq.commit('r', 'first', :'lease');
SELECT msgq.commit('r', 'first', :'lease') AS again;
SELECT "position" FROM msgq.poll('r', 'first', 1);
\pset format unaligned
SELECT pg_temp.raised(format('SELECT msgq.commit(''r'', ''first'', %L)', :'lease'));
SELECT pg_temp.raised(format('SELECT msgq.commit(''r'', ''new'', %L)', :'lease'));
\pset format aligned
-- A lease that ran out is given again; it is fenced only then.
SELECT msgq.seek('r', 'first', 'first');
SELECT receipt AS lease FROM msgq.poll('r', 'first', 1, '1 min') \gset
SET msgq.test_clock_offset = '2 min';
SELECT "position", deliveries FROM msgq.group_lag WHERE consumer_group = 'first';
SELECT msgq.commit('r', 'first', :'lease') AS late;
SELECT receipt AS lease FROM msgq.poll('r', 'first', 1, '1 min') \gset
SET msgq.test_clock_offset = '4 min';
SELECT "position" FROM msgq.poll('r', 'first', 2, '1 min');
SELECT "position", deliveries FROM msgq.group_lag WHERE consumer_group = 'first';
\pset format unaligned
SELECT pg_temp.raised(format('SELECT msgq.commit(''r'', ''first'', %L)', :'lease'));
\pset format aligned
RESET msgq.test_clock_offset;

-- Poison: after max_deliveries each entry of the batch becomes a message.
SELECT msgq.create_queue('r.parked', dead_letter_queue => '');
SELECT msgq.alter_stream('r', '{"dead_letter_queue": "r.parked", "max_deliveries": 2}');
SELECT msgq.seek('r', 'first', '3');
SELECT "position" FROM msgq.poll('r', 'first', 2, '1 min');
SET msgq.test_clock_offset = '2 min';
SELECT "position" FROM msgq.poll('r', 'first', 2, '1 min');
SET msgq.test_clock_offset = '4 min';
SELECT "position" FROM msgq.poll('r', 'first', 2, '1 min');
RESET msgq.test_clock_offset;
SELECT group_key, body, headers->'h' AS h, headers->'msgq-death'->0->>'queue' AS stream,
	headers->'msgq-death'->0->>'reason' AS reason, headers->'msgq-death'->0->>'deliveries' AS deliveries,
	headers->'msgq-death'->0->>'error' AS error
FROM msgq.peek('r.parked');

-- scan changes nothing.
SELECT "position", id FROM msgq.scan('r', 0, 2, 2);
SELECT "position", id FROM msgq.scan('r', 0, 6, 10);

-- The last entry of each key, by position.
SELECT msgq.create_stream('keyed', partitions => 3);
SELECT msgq.append_batch('keyed', ARRAY['1', '2', '3', '4', NULL, '6']::jsonb[], ARRAY['a', 'b', 'a', 'c', 'b', NULL]);
CALL msgq.sequence('keyed');
SELECT key, id, body FROM msgq.last_per_key('keyed');
SELECT msgq.alter_stream('keyed', '{"partitions": 5}');
SELECT msgq.append('keyed', '7', key => 'c');
CALL msgq.sequence('keyed');
SELECT key, id, body FROM msgq.last_per_key('keyed');
-- Across the change a group has the order of each key.
SELECT msgq.create_group('keyed', 'g', 'first');
CREATE TABLE stream_read_taken (n int GENERATED ALWAYS AS IDENTITY, id bigint, key text);
DO $$
BEGIN
	FOR i IN 1 .. 20 LOOP
		INSERT INTO stream_read_taken (id, key) SELECT id, key FROM msgq.read('keyed', 'g', 1);
	END LOOP;
END
$$;
SELECT key, array_agg(id ORDER BY n) AS ids FROM stream_read_taken GROUP BY key ORDER BY key;
DROP TABLE stream_read_taken;

-- Retention drops whole segments; what is left is told.
SELECT msgq.create_stream('short', retention => NULL, retention_entries => 100);
SELECT msgq.create_group('short', 'slow', 'first');
DO $$
BEGIN
	FOR i IN 1 .. 12 LOOP
		PERFORM msgq.append_batch('short', array_agg(to_jsonb(g))) FROM generate_series(1, 25) g;
	END LOOP;
END
$$;
CALL msgq.sequence('short');
-- Each round may turn, complete and drop one segment; all was in one.
DO $$ BEGIN PERFORM msgq.append('short', '0'); END $$;
CALL msgq.sequence('short');
SELECT bool_and((msgq.maintain()->>'failed')::int = 0) AS fine FROM generate_series(1, 1);
SELECT bool_and((msgq.maintain()->>'failed')::int = 0) AS fine FROM generate_series(1, 1);
SELECT first_position, entries FROM msgq.stream_stats WHERE stream = 'short';
DO $$
BEGIN
	PERFORM msgq.append_batch('short', array_agg(to_jsonb(g))) FROM generate_series(1, 200) g;
END
$$;
CALL msgq.sequence('short');
SELECT (msgq.maintain()->>'failed')::int AS failed;
SELECT (msgq.maintain()->>'failed')::int AS failed;
SELECT first_position > 100 AS dropped, entries BETWEEN 100 AND 300 AS kept FROM msgq.stream_stats WHERE stream = 'short';
\pset format unaligned
SELECT regexp_replace(pg_temp.raised(statement), 'is \d+\.', 'is N.') FROM (VALUES
	(1, $$SELECT msgq.read('short', 'slow')$$),
	(2, $$SELECT msgq.scan('short', 0, 1, 1)$$),
	(3, $$SELECT msgq.seek('short', 'slow', '1')$$),
	(4, $$SELECT msgq.create_group('short', 'other', '1')$$)
) AS v(n, statement) ORDER BY n;
\pset format aligned
SELECT msgq.seek('short', 'slow', 'first');
SELECT count(*) FROM msgq.read('short', 'slow', 1);

-- A group that has not read holds it, up to a limit.
SELECT msgq.create_stream('held', retention => '1 h', hold_for_groups => true);
SELECT msgq.create_group('held', 'g', 'first');
SELECT msgq.append('held', '1');
CALL msgq.sequence('held');
SET msgq.test_clock_offset = '30 min';
SELECT (msgq.maintain()->>'failed')::int AS failed;
SELECT (msgq.maintain()->>'failed')::int AS failed;
SET msgq.test_clock_offset = '3 h';
SELECT (msgq.maintain()->>'failed')::int AS failed;
SELECT first_position, next_position FROM msgq.stream_stats WHERE stream = 'held';
SELECT status FROM msgq.health() WHERE check_name = 'streams';
SELECT body FROM msgq.read('held', 'g');
SELECT (msgq.maintain()->>'failed')::int AS failed;
SELECT first_position, next_position FROM msgq.stream_stats WHERE stream = 'held';
SELECT msgq.append('held', '2');
CALL msgq.sequence('held');
SELECT msgq.alter_stream('held', '{"max_held_bytes": 1}');
SET msgq.test_clock_offset = '6 h';
SELECT (msgq.maintain()->>'failed')::int AS failed;
SELECT (msgq.maintain()->>'failed')::int AS failed;
SET msgq.test_clock_offset = '9 h';
SELECT status FROM msgq.health() WHERE check_name = 'streams';
SELECT (msgq.maintain()->>'failed')::int AS failed;
SELECT first_position, next_position FROM msgq.stream_stats WHERE stream = 'held';
RESET msgq.test_clock_offset;
\pset format unaligned
SELECT pg_temp.raised($$SELECT msgq.read('held', 'g')$$);
\pset format aligned

SELECT msgq.drop_group('r', 'new');
\pset format unaligned
SELECT pg_temp.raised($$SELECT msgq.read('r', 'new')$$);
\pset format aligned
SELECT msgq.drop_stream(name) FROM msgq.streams WHERE name IN ('r', 'keyed', 'short', 'held');
SELECT msgq.drop_queue('r.parked');
