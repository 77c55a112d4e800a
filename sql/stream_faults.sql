--
-- What has once gone wrong with streams.
--
SET client_min_messages = warning;
-- How many entries a group has still to read: it reads them.
CREATE FUNCTION pg_temp.drain(stream text, consumer_group text) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
	total bigint = 0;
	n bigint = 1;
BEGIN
	WHILE n > 0 LOOP
		SELECT count(*) INTO n FROM msgq.read(stream, consumer_group, 1000);
		total = total + n;
	END LOOP;
	RETURN total;
END
$$;
SELECT msgq.create_stream('faults', partitions => 2);
SELECT msgq.create_stream('other');
SELECT id AS faults FROM msgq.streams WHERE name = 'faults' \gset

-- A step that fails leaves no positions behind, whatever commits next.
SELECT count(msgq.append('faults', to_jsonb(g))) FROM generate_series(1, 10) g;
CALL msgq.sequence('faults');
\set places 'msgq.s' :faults '_p1'
INSERT INTO :places VALUES (1, 6, 1, 0, now(), '', '');
SELECT count(msgq.append('faults', to_jsonb(g))) FROM generate_series(11, 20) g;
\set VERBOSITY sqlstate
CALL msgq.sequence('faults');
\set VERBOSITY default
DELETE FROM :places WHERE partition = 1 AND first_position = 6 AND ids = '';
SELECT count(msgq.append('other', '1')) FROM generate_series(1, 3);
CALL msgq.sequence('other');
CALL msgq.sequence('faults');
SELECT p AS partition, count(*), min("position"), max("position"), count(DISTINCT id) AS ids
FROM generate_series(0, 1) p, msgq.scan('faults', p, 1, 100) GROUP BY p ORDER BY p;
-- Nor does one that is undone with its transaction.
BEGIN;
SELECT count(msgq.append('faults', to_jsonb(g))) FROM generate_series(21, 30) g;
SELECT msgq.alter_stream('faults', '{"partitions": 3}');
ROLLBACK;
SELECT count(msgq.append('faults', to_jsonb(g))) FROM generate_series(31, 40) g;
CALL msgq.sequence('other');
CALL msgq.sequence('faults');
SELECT sum(entries) FROM msgq.stream_stats WHERE stream = 'faults';
SELECT bool_and("position" = n) AS dense FROM generate_series(0, 1) p,
	LATERAL (SELECT "position", row_number() OVER (ORDER BY "position") AS n FROM msgq.scan('faults', p, 1, 100)) s;

-- Places that are missing are no reason to read on.
BEGIN;
DELETE FROM :places WHERE partition = 0 AND first_position > 1
	AND first_position = (SELECT min(first_position) FROM :places WHERE partition = 0 AND first_position > 1);
\set VERBOSITY sqlstate
SELECT count(*) FROM msgq.scan('faults', 0, 1, 100);
ROLLBACK;
\set VERBOSITY default

-- Fewer partitions, and then more again: positions go on.
SELECT msgq.create_stream('elastic', partitions => 3, retention => NULL, retention_entries => 10, hold_for_groups => true);
SELECT msgq.create_group('elastic', 'g', 'first');
SELECT count(msgq.append('elastic', to_jsonb(g))) FROM generate_series(1, 60) g;
CALL msgq.sequence('elastic');
SELECT pg_temp.drain('elastic', 'g');
SELECT msgq.alter_stream('elastic', '{"partitions": 2}');
DO $$
BEGIN
	FOR i IN 1 .. 5 LOOP
		PERFORM msgq.append('elastic', to_jsonb(g)) FROM generate_series(1, 20) g;
	END LOOP;
END
$$;
CALL msgq.sequence('elastic');
SELECT pg_temp.drain('elastic', 'g');
SELECT (msgq.maintain()->>'failed')::int AS failed;
SELECT (msgq.maintain()->>'failed')::int AS failed;
SELECT (msgq.maintain()->>'failed')::int AS failed;
SELECT min(partitions) AS smallest FROM msgq.stream_segment JOIN msgq.stream s ON s.id = stream_id
WHERE s.name = 'elastic' AND state <> 'empty';
SELECT msgq.alter_stream('elastic', '{"partitions": 3}');
SELECT count(msgq.append('elastic', to_jsonb(g))) FROM generate_series(1, 60) g;
CALL msgq.sequence('elastic');
SELECT next_position FROM msgq.stream_stats WHERE stream = 'elastic' AND partition = 2;
SELECT bool_and(lag >= 0) AS sane FROM msgq.group_lag WHERE stream = 'elastic';
SELECT pg_temp.drain('elastic', 'g');
SELECT sum(lag) FROM msgq.group_lag WHERE stream = 'elastic';

-- New entries are not given up with an old batch.
SELECT msgq.create_queue('parked', dead_letter_queue => '');
SELECT msgq.create_stream('poison', dead_letter_queue => 'parked');
SELECT msgq.alter_stream('poison', '{"max_deliveries": 2}');
SELECT msgq.create_group('poison', 'g', 'first');
SELECT msgq.append('poison', '1');
CALL msgq.sequence('poison');
SELECT "position" FROM msgq.poll('poison', 'g', 10, '1 min');
SELECT msgq.append('poison', '2');
CALL msgq.sequence('poison');
SET msgq.test_clock_offset = '2 min';
SELECT "position" FROM msgq.poll('poison', 'g', 10, '1 min');
SET msgq.test_clock_offset = '4 min';
SELECT "position" FROM msgq.poll('poison', 'g', 10, '1 min');
RESET msgq.test_clock_offset;
SELECT body FROM msgq.peek('parked');

-- Two writers of a key that did not wait for each other: what is last is the
-- same for all.
BEGIN;
SELECT msgq.append('other', '"early"', key => 'k') AS early \gset
SELECT msgq.append('other', '"late"', key => 'k') AS late \gset
COMMIT;
CALL msgq.sequence('other');
SELECT id = :late AS is_late, body FROM msgq.last_per_key('other');
SELECT msgq.append('other', '"next"', key => 'k', expected_id => :late) > :late AS appended;

-- A stream of an old name can be made again.
SELECT msgq.drop_stream('other');
SELECT msgq.create_stream('other');
SELECT msgq.drop_stream(name) FROM msgq.streams WHERE name IN ('faults', 'other', 'elastic', 'poison') ORDER BY name;
SELECT msgq.drop_queue('parked');

-- Ids that were lost with an error keep nothing back.
SELECT msgq.create_stream('lost', retention => NULL, retention_entries => 1);
SELECT msgq.append('lost', '1');
SELECT count(nextval(format('msgq.s%s_id', id))) FROM msgq.streams, generate_series(1, 100) WHERE name = 'lost';
SELECT msgq.alter_stream('lost', '{"partitions": 2}');
SELECT unsequenced FROM msgq.stream_stats WHERE stream = 'lost' AND partition = 0;
SELECT msgq.drop_stream('lost');

-- The receipt of a poll that was rolled back is nobody's.
SELECT msgq.create_stream('undone');
SELECT msgq.create_group('undone', 'g', 'first');
SELECT count(msgq.append('undone', to_jsonb(i))) FROM generate_series(1, 6) i;
CALL msgq.sequence('undone');
BEGIN;
SELECT DISTINCT receipt AS undone FROM msgq.poll('undone', 'g', 1) \gset
ROLLBACK;
SELECT DISTINCT receipt AS theirs FROM msgq.poll('undone', 'g', 5) \gset
\set VERBOSITY sqlstate
SELECT msgq.commit('undone', 'g', :'undone');
SELECT msgq.commit('undone', 'g', :'theirs', 0);
\set VERBOSITY default
SELECT msgq.commit('undone', 'g', :'theirs');

-- A stream's dead-letter queue may be renamed, and not dropped.
SELECT msgq.create_queue('letters', dead_letter_queue => '');
SELECT msgq.alter_stream('undone', '{"dead_letter_queue": "letters"}');
SELECT msgq.rename_queue('letters', 'more letters');
SELECT settings->'dead_letter_queue' AS dead_letter_queue FROM msgq.streams WHERE name = 'undone';
SELECT msgq.drop_queue('more letters');
SELECT msgq.drop_stream('undone');
SELECT msgq.drop_queue('more letters');

-- Entries and places that were frozen can be read as before.
SELECT msgq.create_stream('frozen', partitions => 2);
SELECT msgq.create_group('frozen', 'g', 'first');
SELECT format('msgq.s%s_1', id) AS entries, format('msgq.s%s_p1', id) AS places
FROM msgq.streams WHERE name = 'frozen' \gset
SELECT count(msgq.append('frozen', to_jsonb(i), key => 'k' || i)) FROM generate_series(1, 6) AS i;
CALL msgq.sequence('frozen');
VACUUM (FREEZE) :entries, :places;
SELECT partition, "position", body FROM generate_series(0, 1) AS p, msgq.scan('frozen', p, 1, 10) ORDER BY body;
SELECT count(*) FROM msgq.read('frozen', 'g');
SELECT count(*) FROM msgq.read('frozen', 'g');
SELECT count(msgq.append('frozen', to_jsonb(i), key => 'k' || i)) FROM generate_series(7, 8) AS i;
CALL msgq.sequence('frozen');
SELECT partition, "position", body FROM generate_series(0, 1) AS p, msgq.scan('frozen', p, 1, 10) ORDER BY body;
SELECT msgq.drop_stream('frozen');
