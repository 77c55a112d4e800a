--
-- Sending, claiming and settling go to the table directly, past the executor.
-- This compares each of them with the SQL statement that it stands for, done
-- to a twin in another queue: the same values, stored in the same way, found
-- by the same indexes; and what the executor would have checked or called.
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
	RETURN regexp_replace(concat_ws(' / ', SQLSTATE || ' ' || SQLERRM, nullif(detail, ''), nullif(hint, '')),
		'\mq\d+', 'qN', 'g');
END
$$;

SELECT msgq.create_queue('direct', retry_delay => '0');
SELECT msgq.create_queue('twin');
SELECT format('msgq.q%s_1', (SELECT id FROM msgq.queues WHERE name = 'direct')) AS direct,
	format('msgq.q%s_1', (SELECT id FROM msgq.queues WHERE name = 'twin')) AS twin \gset
CREATE TEMP VIEW direct AS SELECT xmin, xmax, ctid, * FROM :direct;
CREATE TEMP VIEW twin AS SELECT xmin, xmax, ctid, * FROM :twin;

-- Rows of the one that the other does not have; how they are stored counts.
CREATE FUNCTION pg_temp.differences(OUT only_in text, OUT message jsonb) RETURNS SETOF record
LANGUAGE plpgsql AS $$
DECLARE
	columns text := 'to_jsonb(r) - ''{xmin,xmax,ctid}''::text[] || jsonb_build_object('
		'''sizes'', ARRAY[pg_column_size(headers), pg_column_size(body), pg_column_size(data)],'
		'''compression'', ARRAY[pg_column_compression(headers), pg_column_compression(body), pg_column_compression(data)])';
BEGIN
	FOR only_in, message IN EXECUTE format('WITH d AS (SELECT %1$s AS m FROM direct r), t AS (SELECT %1$s AS m FROM twin r)
		SELECT ''direct'', m FROM (TABLE d EXCEPT ALL TABLE t) a
		UNION ALL SELECT ''twin'', m FROM (TABLE t EXCEPT ALL TABLE d) b', columns)
	LOOP
		RETURN NEXT;
	END LOOP;
END
$$;

-- Each row that a sequential scan finds must be found through either index,
-- and no other.
CREATE FUNCTION pg_temp.by_index(relation text, OUT rows bigint, OUT by_pkey bigint, OUT due bigint, OUT by_due bigint,
	OUT plans text)
LANGUAGE plpgsql AS $$
DECLARE
	line text;
BEGIN
	SET LOCAL enable_seqscan = on;
	SET LOCAL enable_indexscan = off;
	SET LOCAL enable_indexonlyscan = off;
	SET LOCAL enable_bitmapscan = off;
	EXECUTE format('SELECT count(*), count(visible_at) FROM %s', relation) INTO rows, due;
	SET LOCAL enable_seqscan = off;
	SET LOCAL enable_indexscan = on;
	EXECUTE format('SELECT count(*) FROM (SELECT id, body FROM %s WHERE id > 0 ORDER BY id) s', relation) INTO by_pkey;
	EXECUTE format('SELECT count(*) FROM (SELECT id, body FROM %s WHERE visible_at > ''2000-01-01'' ORDER BY visible_at) s',
		relation) INTO by_due;
	FOR line IN EXECUTE format('EXPLAIN (COSTS OFF) SELECT id, body FROM %s WHERE id > 0 ORDER BY id', relation) LOOP
		plans := concat_ws(', ', plans, substring(line FROM 'using q\d+_\d_(\w+)'));
	END LOOP;
	FOR line IN EXECUTE format('EXPLAIN (COSTS OFF) SELECT id, body FROM %s WHERE visible_at > ''2000-01-01'' ORDER BY visible_at',
		relation) LOOP
		plans := concat_ws(', ', plans, substring(line FROM 'using q\d+_\d_(\w+)'));
	END LOOP;
	RESET enable_seqscan;
	RESET enable_indexscan;
	RESET enable_indexonlyscan;
	RESET enable_bitmapscan;
END
$$;

-- Chunks outside the row that a snapshot sees.
CREATE FUNCTION pg_temp.chunks(relation text) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
	n bigint;
BEGIN
	EXECUTE format('SELECT count(*) FROM %s',
		(SELECT reltoastrelid::regclass FROM pg_class WHERE oid = relation::regclass)) INTO n;
	RETURN n;
END
$$;

--
-- insert: send, in all its forms
--
SELECT count(*) FROM (SELECT msgq.send('direct', to_jsonb(i), jsonb_build_object('h', i)) FROM generate_series(1, 3) i) s;
SELECT msgq.send('direct', 'null');
SELECT msgq.send('direct', '"delayed"', delay => '1 h');
SELECT msgq.send_bytes('direct', '\x00ff');
SELECT msgq.send('direct', to_jsonb(repeat('compressed ', 1000)));
SELECT msgq.send('direct', (SELECT jsonb_agg(md5(i::text)) FROM generate_series(1, 2000) i));
SELECT msgq.send_bytes('direct', (SELECT string_agg(decode(md5(i::text), 'hex'), '') FROM generate_series(1, 10000) i), '{"a": 1}');
SELECT msgq.send_batch('direct', ARRAY['1', to_jsonb(repeat('in a batch ', 1000))], '{"{\"h\": 1}",NULL}', delay => '2 h');
INSERT INTO :twin (id, visible_at, leased_at, deliveries, failures, priority, enqueued_at, headers, body, data)
SELECT id, visible_at, NULL, 0, 0, 0, enqueued_at, headers,
	CASE WHEN body IS NOT NULL THEN body::text::jsonb END, data || '' FROM :direct ORDER BY id;
SELECT * FROM pg_temp.differences();
SELECT * FROM pg_temp.by_index(:'direct');
SELECT * FROM pg_temp.by_index(:'twin');
SELECT pg_temp.chunks(:'direct') = pg_temp.chunks(:'twin') AS same_chunks, pg_temp.chunks(:'direct') > 0 AS some;
-- The rows belong to the transaction that sent them, and its subtransactions.
BEGIN;
SELECT msgq.send('direct', '"mine"') AS id \gset
SELECT xmin = pg_current_xact_id()::xid AS own, xmax FROM direct WHERE id = :id;
SAVEPOINT a;
SELECT msgq.send('direct', '"of the subtransaction"') AS id \gset
SELECT xmin <> pg_current_xact_id()::xid AS sub, xmax FROM direct WHERE id = :id;
ROLLBACK;

--
-- update: receive
--
SELECT body FROM msgq.receive('direct', 3, '1 h');
UPDATE :twin t SET leased_at = d.leased_at, visible_at = d.visible_at, deliveries = t.deliveries + 1
FROM :direct d WHERE d.id = t.id AND d.leased_at IS NOT NULL;
SELECT * FROM pg_temp.differences();
SELECT * FROM pg_temp.by_index(:'direct');
SELECT leased_at + '1 h' = visible_at AS exact FROM :direct WHERE leased_at IS NOT NULL;
BEGIN;
SELECT id FROM msgq.receive('direct', 1, '1 h') \gset
SELECT xmin = pg_current_xact_id()::xid AS own, xmax FROM direct WHERE id = :id;
ROLLBACK;
-- the large ones; what lies outside the row stays where it is
SELECT pg_temp.chunks(:'direct') AS chunks \gset
CREATE TEMP TABLE got AS SELECT id, receipt FROM msgq.receive('direct', 100, '1 h');
UPDATE :twin t SET leased_at = d.leased_at, visible_at = d.visible_at, deliveries = t.deliveries + 1
FROM :direct d WHERE d.id = t.id AND d.leased_at IS DISTINCT FROM t.leased_at;
SELECT * FROM pg_temp.differences();
SELECT * FROM pg_temp.by_index(:'direct');
SELECT pg_temp.chunks(:'direct') = :chunks AS same_chunks;

--
-- update: extend, nack, release
--
SELECT count(msgq.extend('direct', receipt, '5 h')) FROM got;
UPDATE :twin t SET visible_at = d.visible_at FROM :direct d WHERE d.id = t.id;
SELECT * FROM pg_temp.differences();
SELECT * FROM pg_temp.by_index(:'direct');
SELECT msgq.nack_batch('direct', array_agg(receipt), '3 h', 'an error') FROM got;
UPDATE :twin t SET visible_at = d.visible_at, leased_at = NULL, failures = t.failures + 1,
	headers = coalesce(t.headers, '{}') || '{"msgq-error": "an error"}'
FROM :direct d WHERE d.id = t.id AND t.id IN (SELECT id FROM got);
SELECT * FROM pg_temp.differences();
SELECT * FROM pg_temp.by_index(:'direct');
SELECT pg_temp.chunks(:'direct') = :chunks AS same_chunks;
SELECT count(msgq.release('direct', receipt)) FROM msgq.receive('direct', 100);
SELECT count(*) FROM msgq.leases WHERE queue = 'direct';

--
-- delete: ack, pop, cancel
--
SELECT msgq.purge('direct') > 0 AS purged;
TRUNCATE :twin;
SELECT cardinality(msgq.send_batch('direct', array_agg(jsonb_build_array(i,
	(SELECT jsonb_agg(md5(j::text)) FROM generate_series(1, 500) j)) ORDER BY i)))
FROM generate_series(1, 6) i;
INSERT INTO :twin SELECT * FROM :direct;
BEGIN;
SELECT body->0 AS body, msgq.ack('direct', receipt) FROM msgq.receive('direct');
SELECT body->0 AS body FROM msgq.pop('direct');
SELECT msgq.cancel('direct', (SELECT id FROM direct WHERE body->0 = '6'));
SELECT body->0 AS body FROM direct ORDER BY id;
ROLLBACK;
SELECT * FROM pg_temp.differences();
SELECT body->0 AS body, msgq.ack('direct', receipt) FROM msgq.receive('direct');
SELECT body->0 AS body FROM msgq.pop('direct');
SELECT msgq.cancel('direct', (SELECT id FROM direct WHERE body->0 = '6'));
DELETE FROM :twin WHERE body->0 IN ('1', '2', '6');
SELECT * FROM pg_temp.differences();
SELECT * FROM pg_temp.by_index(:'direct');
SELECT pg_temp.chunks(:'direct') = pg_temp.chunks(:'twin') AS same_chunks;
VACUUM :direct;
SELECT * FROM pg_temp.by_index(:'direct');
REINDEX TABLE :direct;
SELECT * FROM pg_temp.by_index(:'direct');
SELECT body->0 AS body FROM msgq.receive('direct', 10, '0');

--
-- The statistics count the same rows.
--
CREATE FUNCTION pg_temp.counted(relation text) RETURNS bigint[]
LANGUAGE sql AS $$
	SELECT ARRAY[pg_stat_get_xact_tuples_inserted(relation::regclass), pg_stat_get_xact_tuples_updated(relation::regclass),
		pg_stat_get_xact_tuples_deleted(relation::regclass)]
$$;
BEGIN;
CREATE TEMP TABLE before AS SELECT pg_temp.counted(:'direct') AS direct, pg_temp.counted(:'twin') AS twin;
SELECT cardinality(msgq.send_batch('direct', '{1,2,3}'));
SELECT count(msgq.ack('direct', receipt)) FROM msgq.receive('direct', 2, '1 h');
INSERT INTO :twin (id, deliveries, failures, priority, enqueued_at, body) SELECT -i, 0, 0, 0, now(), '1' FROM generate_series(1, 3) i;
UPDATE :twin SET deliveries = 1 WHERE id IN (-1, -2);
DELETE FROM :twin WHERE id IN (-1, -2);
SELECT d.i, d.n - direct[d.i] AS direct, t.n - twin[d.i] AS twin
FROM before, unnest(pg_temp.counted(:'direct')) WITH ORDINALITY d(n, i)
	JOIN unnest(pg_temp.counted(:'twin')) WITH ORDINALITY t(n, i) USING (i);
ROLLBACK;

--
-- What the executor would have called or checked: more indexes are kept up,
-- all else is refused, whatever the operation.
--
SELECT msgq.purge('direct') > 0 AS purged;
CREATE INDEX direct_gin ON :direct USING gin (body);
CREATE INDEX direct_partial ON :direct ((body->>'k')) WHERE body ? 'k';
SELECT cardinality(msgq.send_batch('direct', '{"{\"k\": \"a\"}","{\"k\": \"b\"}","{\"l\": 1}"}'));
SELECT body, msgq.release('direct', receipt) FROM msgq.receive('direct', 2);
SET enable_seqscan = off;
SELECT body, deliveries FROM :direct WHERE body @> '{"k": "b"}';
SELECT body, deliveries FROM :direct WHERE body->>'k' = 'a' AND body ? 'k';
RESET enable_seqscan;
SELECT msgq.purge('direct');
DROP INDEX msgq.direct_gin, msgq.direct_partial;
-- Another index on the due times, the other way round, does not lead a receive astray.
CREATE INDEX direct_backwards ON :direct (visible_at DESC);
SELECT cardinality(msgq.send_batch('direct', '{1,2,3,4,5}'));
SELECT count(msgq.release('direct', receipt)) FROM msgq.receive('direct', 5);
SELECT pg_sleep(0.02) \gset
SELECT body FROM msgq.receive('direct', 2);
SELECT body FROM msgq.receive('direct', 2);
SELECT body FROM msgq.receive('direct', 2);
SELECT msgq.purge('direct');
DROP INDEX msgq.direct_backwards;
CREATE UNIQUE INDEX direct_unique ON :direct ((body->>'k'));
SELECT msgq.send('direct', '{"k": "a"}') > 0 AS sent;
SELECT pg_temp.raised($$SELECT msgq.send('direct', '{"k": "a"}')$$);
SELECT pg_temp.raised($$SELECT msgq.send_batch('direct', '{"{\"k\": \"b\"}","{\"k\": \"a\"}"}')$$);
SELECT body, msgq.ack('direct', receipt) FROM msgq.receive('direct', 10);
SELECT msgq.send('direct', '{"k": "a"}') > 0 AS sent;
DROP INDEX msgq.direct_unique;

-- An index of the user's may take the place of one of ours.  It is kept up like
-- any other, or the table is refused.
CREATE FUNCTION pg_temp.count_by(segment text, condition text, seqscan boolean) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
	n bigint;
BEGIN
	PERFORM set_config('enable_seqscan', seqscan::text, true),
		set_config('enable_indexscan', (NOT seqscan)::text, true),
		set_config('enable_indexonlyscan', (NOT seqscan)::text, true),
		set_config('enable_bitmapscan', 'off', true);
	EXECUTE format('SELECT count(*) FROM (SELECT visible_at, body FROM %s WHERE %s OFFSET 0) s WHERE body IS NOT NULL',
		segment, condition) INTO n;
	RETURN n;
END
$$;
CREATE FUNCTION pg_temp.with_own_index(segment text, removal text, definition text,
	OUT sent text, OUT ready bigint, OUT ready_by_index bigint, OUT due bigint, OUT due_by_index bigint)
LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format(removal, segment);
	EXECUTE format(definition, segment);
	sent := split_part(pg_temp.raised($q$SELECT msgq.send_batch('direct', '{1,2}', delay => '1 h')$q$), ' / ', 1);
	IF sent = 'nothing' THEN
		PERFORM msgq.send_batch('direct', '{3,4,5}');
		PERFORM msgq.receive('direct', 1, '1 h');
	END IF;
	ready := pg_temp.count_by(segment, 'visible_at IS NULL', true);
	ready_by_index := pg_temp.count_by(segment, 'visible_at IS NULL', false);
	due := pg_temp.count_by(segment, 'visible_at > ''2000-01-01''', true);
	due_by_index := pg_temp.count_by(segment, 'visible_at > ''2000-01-01''', false);
	RAISE SQLSTATE 'UNDO0';
EXCEPTION WHEN SQLSTATE 'UNDO0' THEN
	RETURN;
END
$$;
SELECT msgq.purge('direct');
\pset format unaligned
SELECT what, i.*
FROM (VALUES
	(1, 'all rows', 'DROP INDEX %s_due', 'CREATE INDEX ON %s (visible_at)'),
	(2, 'unique', 'DROP INDEX %s_due', 'CREATE UNIQUE INDEX direct_own ON %s (visible_at) WHERE visible_at IS NOT NULL'),
	(3, 'more columns', 'DROP INDEX %s_due', 'CREATE INDEX ON %s (visible_at) INCLUDE (body, headers) WHERE visible_at IS NOT NULL'),
	(4, 'other rows', 'DROP INDEX %s_due', 'CREATE INDEX ON %s (visible_at) WHERE deliveries > 0'),
	(5, 'no index', 'DROP INDEX %s_due', 'ANALYZE %s'),
	(6, 'more columns in the key', 'ALTER TABLE %s DROP CONSTRAINT ' || replace(:'direct', 'msgq.', '') || '_pkey',
		'ALTER TABLE %s ADD PRIMARY KEY (id) INCLUDE (body)'),
	(7, 'another key', 'ALTER TABLE %s DROP CONSTRAINT ' || replace(:'direct', 'msgq.', '') || '_pkey',
		'ALTER TABLE %s ADD PRIMARY KEY (enqueued_at, id)')
) AS v(n, what, removal, definition), LATERAL pg_temp.with_own_index(:'direct', removal, definition) i ORDER BY n;
\pset format aligned
SELECT msgq.send('direct', '{"k": "a"}') > 0 AS sent;

SELECT receipt FROM msgq.receive('direct', 1, '1 h') \gset
SELECT msgq.send('direct', '1') AS id \gset
CREATE FUNCTION direct_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION 'a trigger was called';
END
$$;
-- Does something to the segment, tries, and undoes it.
CREATE FUNCTION pg_temp.with_change(change text, receipt uuid, id bigint, OUT operation text, OUT result text)
RETURNS SETOF record LANGUAGE plpgsql AS $$
BEGIN
	FOR operation IN SELECT * FROM unnest(ARRAY[
		'send(''direct'', ''1'')',
		'send_batch(''direct'', ''{1}'')',
		'receive(''direct'')',
		'pop(''direct'')',
		format('ack(''direct'', %L)', receipt),
		format('nack(''direct'', %L)', receipt),
		format('extend(''direct'', %L, ''1 s'')', receipt),
		format('release(''direct'', %L)', receipt),
		format('ack_batch(''direct'', ARRAY[%L::uuid])', receipt),
		format('cancel(''direct'', %s)', id),
		'expire_lease(''direct'', 1)',
		'peek(''direct'')'])
	LOOP
		BEGIN
			EXECUTE change;
			result := pg_temp.raised('SELECT msgq.' || operation);
			RAISE SQLSTATE 'UNDO0';
		EXCEPTION WHEN SQLSTATE 'UNDO0' THEN
			operation := split_part(operation, '(', 1);
			RETURN NEXT;
		END;
	END LOOP;
END
$$;
\pset format unaligned
SELECT what, string_agg(operation, ', ') AS operations, result
FROM (VALUES
	(1, 'trigger', 'CREATE TRIGGER t BEFORE INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION direct_trigger()'),
	(2, 'statement trigger', 'CREATE TRIGGER t AFTER INSERT ON %s EXECUTE FUNCTION direct_trigger()'),
	(3, 'rule', 'CREATE RULE r AS ON DELETE TO %s DO INSTEAD NOTHING'),
	(4, 'row security', 'ALTER TABLE %s ENABLE ROW LEVEL SECURITY'),
	(5, 'check', 'ALTER TABLE %s ADD CHECK (failures < 100)'),
	(6, 'column', 'ALTER TABLE %s ADD COLUMN extra int'),
	(7, 'not null', 'ALTER TABLE %s ALTER COLUMN body SET NOT NULL'),
	(8, 'reference', 'CREATE TABLE direct_reference (id bigint REFERENCES %s (id))'),
	(9, 'index', 'CREATE INDEX ON %s (enqueued_at)'),
	(10, 'storage parameter', 'ALTER TABLE %s SET (fillfactor = 50)')
) AS v(n, what, change), LATERAL pg_temp.with_change(format(change, :'direct'), :'receipt', :id)
GROUP BY n, what, result ORDER BY n, result COLLATE "C";
\pset format aligned
-- It is undone, so they work again.
SELECT msgq.ack('direct', :'receipt');
SELECT body FROM msgq.pop('direct', 10);

DROP FUNCTION direct_trigger();
DROP VIEW direct, twin;
SELECT msgq.drop_queue(name) FROM unnest('{direct,twin}'::text[]) AS name;
