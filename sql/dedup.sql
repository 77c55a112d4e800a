--
-- Idempotency keys: what is a duplicate, for how long, and what it leaves
-- behind.
--
\pset null '(null)'

CREATE FUNCTION pg_temp.raised(statement text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	detail text;
	hint text;
BEGIN
	EXECUTE statement;
	RETURN 'nothing';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN concat_ws(' / ', SQLSTATE || ' ' || SQLERRM, nullif(detail, ''), nullif(hint, ''));
END
$$;

SELECT msgq.create_queue('dedup', dead_letter_queue => '', dedup_window => '1 h');

-- The states of the tables, and how many keys each holds.
SELECT id FROM msgq.queues WHERE name = 'dedup' \gset
CREATE FUNCTION pg_temp.store() RETURNS TABLE (n int, state text, keys bigint)
LANGUAGE plpgsql AS $$
BEGIN
	FOR n, state IN SELECT s.n, s.state FROM msgq.store s JOIN msgq.queue q ON q.id = s.queue_id
		WHERE q.name = 'dedup' AND s.kind = 'k' ORDER BY s.n
	LOOP
		EXECUTE format('SELECT count(*) FROM msgq.q%s_k%s', (SELECT id FROM msgq.queue WHERE name = 'dedup'), n)
			INTO keys;
		RETURN NEXT;
	END LOOP;
END
$$;
CREATE FUNCTION pg_temp.maintain() RETURNS text LANGUAGE sql AS $$
	SELECT coalesce(string_agg(key || ' ' || value, ', ' ORDER BY key), 'nothing')
	FROM jsonb_each_text(msgq.maintain()) WHERE value <> '0' AND key IN ('rotated', 'emptied');
$$;

--
-- The same key, the same body: the first id, and nothing stored
--
SELECT msgq.send('dedup', '{"a": 1, "b": [1, 2]}', idempotency_key => 'one');
SELECT msgq.send('dedup', '{"a": 1, "b": [1, 2]}', idempotency_key => 'one');
-- Values that are equal, however they are written; the rest does not matter.
SELECT msgq.send('dedup', '{"b": [1, 2.0], "a": 1.00}', '{"h": 1}', '1 h', idempotency_key => 'one');
SELECT msgq.send('dedup', '{"a": 1, "b": [1, 2]}', idempotency_key => 'two');
SELECT * FROM msgq.send_once('dedup', '"once"', 'three');
SELECT * FROM msgq.send_once('dedup', '"once"', 'three', '{"h": 1}', '1 h');
SELECT * FROM msgq.send_once('dedup', '"once, more"', idempotency_key => 'four', headers => '{"h": 1}', delay => '0');
SELECT msgq.send_bytes('dedup', '\x0102', idempotency_key => 'five');
SELECT msgq.send_bytes('dedup', '\x0102', idempotency_key => 'five');
SELECT msgq.send_bytes('dedup', '', idempotency_key => 'six');
SELECT msgq.send_bytes('dedup', '', idempotency_key => 'six');
-- No key: each is stored.
SELECT msgq.send('dedup', '"keyless"'), msgq.send('dedup', '"keyless"', idempotency_key => NULL);
SELECT id, headers, body, data FROM msgq.peek('dedup');

--
-- With another body
--
SELECT statement, pg_temp.raised('SELECT msgq.' || statement) FROM (VALUES
	(1, $$send('dedup', '{"a": 2}', idempotency_key => 'one')$$),
	(2, $$send_once('dedup', '"other"', 'three')$$),
	(3, $$send_bytes('dedup', '\x0103', idempotency_key => 'five')$$),
	(4, $$send_bytes('dedup', '\x0102', idempotency_key => 'one')$$),
	(5, $$send('dedup', '"\\x0102"', idempotency_key => 'five')$$),
	(6, $$send_batch('dedup', '{1,2}', idempotency_keys => '{new,one}')$$),
	(7, $$send_batch('dedup', '{1,2,3}', idempotency_keys => '{same,NULL,same}')$$),
	(8, $$send_messages('dedup', '[{"body": 1, "idempotency_key": "one"}]')$$)
) AS v(n, statement) ORDER BY n;

--
-- Keys that are none
--
SELECT statement, pg_temp.raised('SELECT msgq.' || statement) FROM (VALUES
	(1, $$send('dedup', '1', idempotency_key => '')$$),
	(2, $$send('dedup', '1', idempotency_key => repeat('x', 256))$$),
	(3, $$send('dedup', '1', idempotency_key => repeat('é', 128))$$),
	(4, $$send('dedup', '1', idempotency_key => repeat('é', 127) || 'e')$$),
	(5, $$send_once('dedup', '1', NULL)$$),
	(6, $$send_once('dedup', '1', '')$$),
	(7, $$send_batch('dedup', '{1,2}', idempotency_keys => '{a,""}')$$),
	(8, $$send_batch('dedup', '{1,2}', idempotency_keys => '{a}')$$),
	(9, $$send_batch('dedup', '{1,2}', idempotency_keys => '{{a},{b}}')$$),
	(10, $$send_messages('dedup', '[{"body": 1, "idempotency_key": 5}]')$$),
	(11, $$send_messages('dedup', '[{"body": 1, "idempotency_key": ""}]')$$),
	(12, $$send('nowhere', '1', idempotency_key => 'a')$$)
) AS v(n, statement) ORDER BY n;
-- Blanks, case and form matter; long keys that begin alike differ.
SELECT count(DISTINCT id) FROM unnest('{k,K," k","k ",é}'::text[] || ARRAY[repeat('x', 254) || 'y', repeat('x', 255), U&'e\0301']) key,
	msgq.send_once('dedup', '1', key);
SELECT count(DISTINCT id), bool_and(duplicate)
FROM unnest('{k,K," k","k ",é}'::text[] || ARRAY[repeat('x', 254) || 'y', repeat('x', 255), U&'e\0301']) key,
	msgq.send_once('dedup', '1', key);

--
-- Batches
--
SELECT msgq.purge('dedup') > 0 AS purged;
SELECT msgq.send('dedup', '"mark"') AS mark \gset
CREATE FUNCTION pg_temp.from_mark(ids bigint[], mark bigint) RETURNS bigint[] LANGUAGE sql
AS $$ SELECT array_agg(CASE WHEN id > mark THEN id - mark ELSE -1 END ORDER BY n) FROM unnest(ids) WITH ORDINALITY u(id, n) $$;
-- Unsorted, with gaps, and keys that stand twice.
SELECT pg_temp.from_mark(msgq.send_batch('dedup', '{1,2,3,1,4}', idempotency_keys => '{z,y,NULL,z,a}'), :mark);
SELECT pg_temp.from_mark(msgq.send_batch('dedup', '{1,2,3,1,4}', idempotency_keys => '{z,y,NULL,z,a}'), :mark);
SELECT pg_temp.from_mark(msgq.send_batch('dedup', '{4,5,1}', idempotency_keys => '{a,b,z}'), :mark);
SELECT pg_temp.from_mark(msgq.send_batch('dedup', '{4,2}', idempotency_keys => '{a,y}'), :mark);
SELECT msgq.send_batch('dedup', '{}', idempotency_keys => '{}');
SELECT pg_temp.from_mark(msgq.send_bytes_batch('dedup', '{"\\x01","\\x02","\\x01"}', idempotency_keys => '{b1,b2,b1}'), :mark);
SELECT ordinal, CASE WHEN id > :mark THEN id - :mark END AS id, duplicate FROM msgq.send_messages('dedup',
	'[{"body": 1, "idempotency_key": "z"}, {"idempotency_key": "m", "body": 2},
	{"body": 2, "idempotency_key": "m"}, {"body": 3, "idempotency_key": null}]');
SELECT id - :mark AS id, body, data FROM msgq.peek('dedup', 100, :mark);
-- More than are inserted at once, all of them duplicates but the last.
SELECT array_agg(to_jsonb(i)) AS bodies, array_agg('large ' || i) AS keys FROM generate_series(1, 1999) i \gset
SELECT msgq.send_batch('dedup', :'bodies', idempotency_keys => :'keys') AS first_ids \gset
SELECT msgq.send_batch('dedup', :'bodies'::jsonb[] || '2000'::jsonb, idempotency_keys => :'keys'::text[] || 'large 2000'::text) AS ids \gset
SELECT cardinality(:'ids'::bigint[]), (:'ids'::bigint[])[:1999] = :'first_ids'::bigint[] AS same_ids,
	(SELECT count(DISTINCT id) FROM unnest(:'ids'::bigint[]) id) AS distinct_ids;
SELECT count(*) FROM msgq.peek('dedup', 10000, :mark);

-- Of different priorities: duplicates are left out, wherever they stand.
SELECT msgq.create_queue('dedup, levels', dead_letter_queue => '', priorities => 3);
SELECT msgq.send('dedup, levels', '1', idempotency_key => 'a');
SELECT * FROM msgq.send_messages('dedup, levels', '[
	{"body": 1, "priority": 2, "idempotency_key": "a"},
	{"body": 2, "priority": 1, "idempotency_key": "b"},
	{"body": 1, "priority": 0, "idempotency_key": "a"},
	{"body": 3, "priority": 1},
	{"body": 2, "priority": 2, "idempotency_key": "b"},
	{"body": 4, "priority": 2, "idempotency_key": "c"}]');
SELECT id, priority, body FROM msgq.pop('dedup, levels', 10);
SELECT msgq.drop_queue('dedup, levels');

--
-- Messages go, their keys stay
--
SELECT msgq.purge('dedup') > 0 AS purged;
SELECT duplicate FROM msgq.send_once('dedup', '1', 'z');
SELECT duplicate FROM msgq.send_once('dedup', '"acked"', 'acked');
SELECT msgq.ack('dedup', receipt) FROM msgq.receive('dedup');
SELECT duplicate FROM msgq.send_once('dedup', '"acked"', 'acked');
SELECT count(*) FROM msgq.peek('dedup');
-- Another queue has its own.
SELECT msgq.create_queue('dedup, other', dead_letter_queue => '');
SELECT id, duplicate FROM msgq.send_once('dedup, other', '"other"', 'acked');
SELECT msgq.drop_queue('dedup, other');
SELECT msgq.create_queue('dedup, other', dead_letter_queue => '');
SELECT id, duplicate FROM msgq.send_once('dedup, other', '"new"', 'acked');
SELECT msgq.drop_queue('dedup, other');
SELECT count(*) FROM pg_class WHERE relnamespace = 'msgq'::regnamespace
	AND relname ~ '^q\d+_k' AND relname !~ ('^q' || :'id' || '_');
SELECT count(*) FROM msgq.store WHERE queue_id <> :id;

--
-- Transactions
--
BEGIN;
SELECT duplicate FROM msgq.send_once('dedup', '1', 'undone');
SELECT duplicate FROM msgq.send_once('dedup', '1', 'undone');
ROLLBACK;
SELECT count(*) FROM msgq.peek('dedup');
BEGIN;
SELECT duplicate FROM msgq.send_once('dedup', '1', 'kept');
SAVEPOINT s;
SELECT duplicate FROM msgq.send_once('dedup', '2', 'undone');
SELECT duplicate FROM msgq.send_once('dedup', '1', 'kept');
ROLLBACK TO s;
SELECT duplicate FROM msgq.send_once('dedup', '3', 'undone');
SELECT duplicate FROM msgq.send_once('dedup', '1', 'kept');
SAVEPOINT s2;
SELECT duplicate FROM msgq.send_once('dedup', '4', 'released');
RELEASE s2;
COMMIT;
SELECT key, duplicate FROM unnest('{undone,kept,released}'::text[], '{3,1,4}'::jsonb[]) AS u(key, body), msgq.send_once('dedup', body, key);
-- An error with another body takes back what came before it.
SELECT pg_temp.raised($$SELECT msgq.send_batch('dedup', '{1,2}', idempotency_keys => '{"never","kept"}')$$);
SELECT duplicate FROM msgq.send_once('dedup', '5', 'never');
SELECT body FROM msgq.peek('dedup', 100);
-- In one statement, at each isolation level.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(DISTINCT id), count(*) FILTER (WHERE NOT duplicate) FROM generate_series(1, 5) i, msgq.send_once('dedup', '6', left('rr' || i, 2));
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT count(DISTINCT id), count(*) FILTER (WHERE NOT duplicate) FROM generate_series(1, 5) i, msgq.send_once('dedup', '6', left('rr' || i, 2));
COMMIT;
BEGIN READ ONLY;
SELECT msgq.send_once('dedup', '6', 'rr');
ROLLBACK;

--
-- A prepared transaction holds its keys, and the tables do not turn under it
--
BEGIN;
SELECT duplicate FROM msgq.send_once('dedup', '7', 'prepared');
PREPARE TRANSACTION 'dedup';
SET lock_timeout = '10ms';
\set VERBOSITY terse
SELECT msgq.send_once('dedup', '7', 'prepared');
\set VERBOSITY default
RESET lock_timeout;
SET msgq.test_clock_offset = '61min';
SELECT pg_temp.maintain();
RESET msgq.test_clock_offset;
SELECT state, keys > 0 AS has_keys FROM pg_temp.store();
COMMIT PREPARED 'dedup';
SELECT duplicate FROM msgq.send_once('dedup', '7', 'prepared');
SET msgq.test_clock_offset = '61min';
SELECT pg_temp.maintain();
RESET msgq.test_clock_offset;
SELECT state, keys > 0 AS has_keys FROM pg_temp.store();
SELECT duplicate FROM msgq.send_once('dedup', '7', 'prepared');

--
-- The window
--
SELECT msgq.drop_queue('dedup');
SELECT msgq.create_queue('dedup', dead_letter_queue => '', dedup_window => '1 h');
SELECT pg_temp.maintain();
SELECT * FROM msgq.send_once('dedup', '1', 'a');
SET msgq.test_clock_offset = '59min';
SELECT * FROM msgq.send_once('dedup', '1', 'a');
SELECT * FROM msgq.send_once('dedup', '2', 'b');
SELECT pg_temp.maintain();
-- Free again, with whatever body, before any table has turned.
SET msgq.test_clock_offset = '61min';
SELECT * FROM msgq.send_once('dedup', '3', 'a');
SELECT * FROM msgq.send_once('dedup', '3', 'a');
SELECT * FROM msgq.send_once('dedup', '2', 'b');
SELECT * FROM pg_temp.store();
-- The same after a rollback.
SET msgq.test_clock_offset = '122min';
BEGIN;
SELECT * FROM msgq.send_once('dedup', '4', 'a');
ROLLBACK;
SELECT duplicate FROM msgq.send_once('dedup', '5', 'a');
SELECT duplicate FROM msgq.send_once('dedup', '5', 'a');
-- The table turns; its keys are still good.
SELECT pg_temp.maintain();
SELECT pg_temp.maintain();
SELECT * FROM pg_temp.store();
SELECT duplicate FROM msgq.send_once('dedup', '5', 'a');
SELECT pg_temp.raised($$SELECT msgq.send('dedup', '6', idempotency_key => 'a')$$);
SELECT duplicate FROM msgq.send_once('dedup', '7', 'c');
SELECT * FROM pg_temp.store();
-- Too old in the kept table: a new one beside it counts.
SET msgq.test_clock_offset = '183min';
SELECT duplicate FROM msgq.send_once('dedup', '8', 'a');
SELECT duplicate FROM msgq.send_once('dedup', '8', 'a');
-- Emptied, and turned again, in one round.
SELECT pg_temp.maintain();
SELECT * FROM pg_temp.store();
SELECT duplicate FROM msgq.send_once('dedup', '8', 'a');
SELECT duplicate FROM msgq.send_once('dedup', '9', 'd');
-- A longer window brings back what is still there.
SET msgq.test_clock_offset = '250min';
SELECT msgq.alter_queue('dedup', '{"dedup_window": "1 day"}');
SELECT duplicate FROM msgq.send_once('dedup', '9', 'd');
SELECT duplicate FROM msgq.send_once('dedup', '8', 'a');
SELECT msgq.alter_queue('dedup', '{"dedup_window": "1 s"}');
SELECT duplicate FROM msgq.send_once('dedup', '10', 'd');
SELECT pg_temp.maintain();
SELECT * FROM pg_temp.store();
-- A long time later all goes; where nothing is kept, nothing turns.
SET msgq.test_clock_offset = '1000h';
SELECT pg_temp.maintain();
SELECT * FROM pg_temp.store();
SET msgq.test_clock_offset = '2000h';
SELECT pg_temp.maintain();
SELECT * FROM pg_temp.store();
SET msgq.test_clock_offset = '3000h';
SELECT pg_temp.maintain();
RESET msgq.test_clock_offset;

--
-- What direct access would not honour
--
SELECT msgq.rename_queue('dedup', 'dedup, renamed');
SELECT id AS new_id FROM msgq.queues WHERE name = 'dedup, renamed' \gset
SELECT obj_description(format('msgq.q%s_k1', :new_id)::regclass, 'pg_class');
SELECT n FROM msgq.store WHERE queue_id = :new_id AND state = 'current' \gset
SELECT format('msgq.q%s_k%s', :new_id, :n) AS keys \gset
CREATE FUNCTION pg_temp.refused(feature text, add text, remove text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	raised text;
BEGIN
	EXECUTE add;
	raised := pg_temp.raised(format('SELECT msgq.send(%L, ''1'', idempotency_key => ''x'')',
		(SELECT name FROM msgq.queues WHERE name LIKE 'dedup%')));
	EXECUTE remove;
	RETURN feature || ': ' || regexp_replace(raised, 'q\d+_k\d', 'qN_kN');
END
$$;
CREATE FUNCTION pg_temp.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
SELECT pg_temp.refused('trigger', 'CREATE TRIGGER t BEFORE INSERT ON ' || :'keys' || ' EXECUTE FUNCTION pg_temp.nothing()',
	'DROP TRIGGER t ON ' || :'keys');
SELECT pg_temp.refused('index', 'CREATE INDEX regress_extra ON ' || :'keys' || ' (id)', 'DROP INDEX msgq.regress_extra');
SELECT pg_temp.refused('column', 'ALTER TABLE ' || :'keys' || ' ADD extra int', 'ALTER TABLE ' || :'keys' || ' DROP extra');
SELECT msgq.drop_queue('dedup, renamed');
SELECT msgq.create_queue('dedup', dead_letter_queue => '');
SELECT id AS new_id FROM msgq.queues WHERE name = 'dedup' \gset
SELECT format('msgq.q%s_k1', :new_id) AS keys, format('q%s_k1_pkey', :new_id) AS pkey \gset
SELECT pg_temp.refused('check', 'ALTER TABLE ' || :'keys' || ' ADD CONSTRAINT c CHECK (id > 0)', 'ALTER TABLE ' || :'keys' || ' DROP CONSTRAINT c');
ALTER TABLE :keys DROP CONSTRAINT :"pkey", ADD CONSTRAINT :"pkey" PRIMARY KEY (key) DEFERRABLE;
SELECT regexp_replace(pg_temp.raised($$SELECT msgq.send('dedup', '1', idempotency_key => 'x')$$), 'q\d+_k\d', 'qN_kN');
ALTER TABLE :keys DROP CONSTRAINT :"pkey";
SELECT regexp_replace(pg_temp.raised($$SELECT msgq.send('dedup', '1', idempotency_key => 'x')$$), 'q\d+_k\d', 'qN_kN');
DROP TABLE :keys;
SELECT regexp_replace(pg_temp.raised($$SELECT msgq.send('dedup', '1', idempotency_key => 'x')$$), 'q\d+_k', 'qN_k');
-- Without a key nobody misses it.
SELECT msgq.send('dedup', '1');
SELECT msgq.drop_queue('dedup');
SELECT count(*) FROM msgq.store;
