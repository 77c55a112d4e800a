--
-- Sending: one by one, in batches, as JSON; delays and due times; headers and
-- bytes; and from wherever SQL may call a function.
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

SELECT msgq.create_queue('send');

--
-- One message
--
SELECT msgq.send('send', '{"n": 1}');
SELECT msgq.send('send', '{"n": 2}', '{"kind": "test", "nested": {"a": [1, null]}}');
SELECT msgq.send(queue => 'send', body => '"named"', headers => '{}');
SELECT msgq.send('send', 'null');
SELECT msgq.send_bytes('send', '\x00ff');
SELECT msgq.send_bytes('send', '', '{"empty": true}');
SELECT id, receipt, deliveries, failures, priority, group_key, visible_at, expires_at, headers, body, data
FROM msgq.peek('send');
-- A JSON null is a body like any other.
SELECT id, jsonb_typeof(body), body IS NULL AS no_body, data IS NULL AS no_data
FROM msgq.peek('send') WHERE id IN (4, 5);
SELECT bool_and(enqueued_at BETWEEN now() - interval '1 min' AND clock_timestamp()) AS just_now
FROM msgq.peek('send');

-- What later versions will support has its place already.
SELECT arguments, pg_temp.raised(format('SELECT msgq.send(''send'', ''1'', %s)', arguments)) FROM (VALUES
	(1, 'priority => 0, group_key => NULL, ttl => NULL, idempotency_key => NULL'),
	(4, 'group_key => ''g'''),
	(5, 'group_key => ''''')
) AS v(n, arguments) ORDER BY n;
SELECT msgq.purge('send');

--
-- Delays and due times
--
SELECT msgq.send('send', '"an hour"', delay => '1 hour') \gset a_
SELECT msgq.send('send', '"tomorrow"', deliver_at => clock_timestamp() + interval '1 day') \gset b_
SELECT msgq.send_bytes('send', '\x01', delay => '100 years') \gset c_
SELECT body, data,
	visible_at - enqueued_at BETWEEN '1 hour' AND '1 hour 1 min' AS in_an_hour,
	visible_at - enqueued_at BETWEEN '23:59' AND '24:01' AS tomorrow,
	extract(year FROM visible_at) - extract(year FROM enqueued_at) IN (99, 100) AS in_a_century
FROM msgq.peek('send');
SELECT count(*) FROM msgq.receive('send');
-- At once: no delay, and a time that has passed.
SELECT msgq.send('send', '"no delay"', delay => '0') \gset d_
SELECT msgq.send('send', '"a minute ago"', deliver_at => clock_timestamp() - interval '1 min') \gset e_
SELECT msgq.send('send', '"long ago"', deliver_at => '1815-12-10') \gset f_
SELECT body FROM msgq.pop('send', 10) ORDER BY id;
-- In the order of their time, not of their ids.
SELECT clock_timestamp() + interval '0.5 s' AS due \gset
SELECT msgq.send('send', '"third"', deliver_at => timestamptz :'due' + interval '3 ms') \gset g_
SELECT msgq.send('send', '"first"', deliver_at => timestamptz :'due' + interval '1 ms') \gset g_
SELECT msgq.send('send', '"second"', deliver_at => timestamptz :'due' + interval '2 ms') \gset g_
SELECT pg_sleep(0.6) \gset g_
SELECT body FROM msgq.pop('send', 10);
\pset format unaligned
SELECT arguments, pg_temp.raised(format('SELECT msgq.send(''send'', ''1'', %s)', arguments)) FROM (VALUES
	(1, 'delay => ''1 s'', deliver_at => now()'),
	(2, 'deliver_at => ''infinity'''),
	(3, 'deliver_at => ''-infinity'''),
	(4, 'deliver_at => ''294276-12-31'''),
	(5, 'deliver_at => ''4713-01-01 BC'''),
	(6, 'delay => ''-1 us'''),
	(7, 'delay => ''101 years'''),
	(8, 'delay => ''178000000 years''')
) AS v(n, arguments) ORDER BY n;

--
-- Headers are an object; names that begin with msgq- are the server's.
--
SELECT headers, pg_temp.raised(format('SELECT msgq.send(''send'', ''1'', %L)', headers)) FROM (VALUES
	(1, '[]'),
	(2, '"text"'),
	(3, '1'),
	(4, 'null'),
	(5, '{"msgq-error": "mine"}'),
	(6, '{"a": 1, "msgq-": 2}'),
	(7, '{"msgq": 1, "MSGQ-x": 2, "x-msgq-y": 3}'),
	(8, '{"nested": {"msgq-error": "fine"}}'),
	(9, '{"": ""}')
) AS v(n, headers) ORDER BY n;
\pset format aligned
SELECT msgq.purge('send') > 0 AS purged;

--
-- Batches
--
SELECT msgq.create_queue('batch');
SELECT msgq.send_batch('batch', ARRAY['1', '{"a": 2}', 'null']::jsonb[]);
SELECT msgq.send_batch('batch', '{4,5}', '{"{\"h\": 4}",NULL}');
SELECT msgq.send_bytes_batch('batch', ARRAY['\x06', '']::bytea[], ARRAY[NULL, '{"h": 7}']::jsonb[]);
SELECT msgq.send_batch('batch', '{}'), msgq.send_bytes_batch('batch', '{}', '{}');
SELECT msgq.send_batch('batch', '{8,9}', delay => '1 hour');
SELECT msgq.send_batch('batch', '{10}', deliver_at => clock_timestamp() - interval '1 hour');
SELECT msgq.send_batch('batch', '[5:6]={11,12}', '[0:1]={NULL,NULL}');
SELECT id, headers, body, data, visible_at - enqueued_at > '59 min' AS delayed FROM msgq.peek('batch', 100);
\pset format unaligned
SELECT arguments, pg_temp.raised(format('SELECT msgq.send_batch(''batch'', %s)', arguments)) FROM (VALUES
	(1, '''{1,2}'', ''{NULL}'''),
	(2, '''{1,2}'', ''{}'''),
	(3, '''{}'', ''{NULL}'''),
	(4, '''{1,2}'', ''{1,NULL}'''),
	(5, '''{1,2}'', ''{NULL,"{\"msgq-x\": 1}"}'''),
	(6, '''{1,NULL}'''),
	(7, '''{{1,2},{3,4}}'''),
	(8, '''{1}'', ''{{NULL}}'''),
	(9, '''{1,2}'', delay => ''-1 s'''),
	(10, '''{1,2}'', priority => 1'),
	(11, '''{1,2}'', group_keys => ''{NULL,NULL}'', idempotency_keys => ''{NULL,NULL}'''),
	(12, '''{1,2}'', group_keys => ''{NULL,g}'''),
	(14, '''{1,2}'', group_keys => ''{NULL}''')
) AS v(n, arguments) ORDER BY n;
\pset format aligned
-- What failed stored nothing; only the eleventh stored two.
SELECT count(*) - 12 AS stored FROM msgq.peek('batch', 100);

-- A large one, in order.
SELECT msgq.purge('batch') > 0 AS purged;
WITH sent AS (
	SELECT msgq.send_batch('batch', array_agg(to_jsonb(i) ORDER BY i)) AS ids
	FROM generate_series(1, 10000) i)
SELECT cardinality(ids), ids[10000] - ids[1] AS last_after_first,
	(SELECT bool_and(id = ids[1] + ordinal - 1) FROM unnest(ids) WITH ORDINALITY AS u(id, ordinal)) AS no_gaps
FROM sent;
SELECT count(*), bool_and(body = to_jsonb(n)) AS in_order
FROM (SELECT body, row_number() OVER (ORDER BY id) AS n FROM msgq.peek('batch', 10000)) p;
SELECT msgq.purge('batch');

--
-- As JSON, for drivers without arrays of jsonb
--
SELECT msgq.create_queue('json');
SELECT * FROM msgq.send_messages('json', '[
	{"body": 1},
	{"body": {"a": 2}, "headers": {"h": 2}},
	{"body": null, "headers": null, "delay": null, "deliver_at": null,
	 "priority": 0, "group_key": null, "ttl": null, "idempotency_key": null},
	{"body": "delayed", "delay": "1 hour"},
	{"body": "due", "deliver_at": "2001-01-01 00:00:00+00"},
	{"body": "later", "deliver_at": "2101-01-01 00:00:00+00"}]');
SELECT id, headers, body, visible_at > clock_timestamp() AS delayed FROM msgq.peek('json');
SELECT * FROM msgq.send_messages('json', '[]');
\pset format unaligned
SELECT messages, pg_temp.raised(format('SELECT msgq.send_messages(''json'', %L)', messages)) FROM (VALUES
	(1, '{}'),
	(2, '1'),
	(3, 'null'),
	(4, '[1]'),
	(5, '[null]'),
	(6, '[[]]'),
	(7, '[{}]'),
	(8, '[{"body": 1}, {"headers": {}}]'),
	(9, '[{"body": 1}, {"body": 2, "nonsense": 1}]'),
	(10, '[{"Body": 1}]'),
	(11, '[{"body": 1, "headers": [1]}]'),
	(12, '[{"body": 1, "headers": {"msgq-x": 1}}]'),
	(13, '[{"body": 1, "delay": 5}]'),
	(14, '[{"body": 1, "delay": "soon"}]'),
	(15, '[{"body": 1, "delay": "-1 s"}]'),
	(16, '[{"body": 1, "deliver_at": "never"}]'),
	(17, '[{"body": 1, "deliver_at": "infinity"}]'),
	(18, '[{"body": 1, "deliver_at": 1700000000}]'),
	(19, '[{"body": 1, "delay": "1 s", "deliver_at": "2001-01-01"}]'),
	(20, '[{"body": 1, "priority": 1}]'),
	(21, '[{"body": 1, "priority": "0"}]'),
	(22, '[{"body": 1, "priority": null}]'),
	(24, '[{"body": 1, "group_key": "g"}]'),
	(25, '[{"body": 1, "group_key": 1}]'),
	(28, '[{"body": 1, "queue": "batch"}]')
) AS v(n, messages) ORDER BY n;
\pset format aligned
SELECT msgq.purge('json');
SELECT count(*), max(ordinal), count(DISTINCT id), bool_or(duplicate) AS duplicates
FROM msgq.send_messages('json',
	(SELECT jsonb_agg(jsonb_build_object('body', i)) FROM generate_series(1, 10000) i));
SELECT msgq.purge('json');

--
-- From wherever SQL calls functions
--
-- for each row of a query
SELECT count(msgq.send('send', to_jsonb(i))) FROM generate_series(1, 3) i;
-- a prepared statement
PREPARE p (text, jsonb, interval) AS SELECT msgq.send($1, $2, delay => $3) > 0 AS sent;
EXECUTE p ('send', '"prepared"', NULL);
EXECUTE p ('send', '"prepared, later"', '1 hour');
DEALLOCATE p;
-- a trigger, as an outbox
CREATE TABLE send_orders (id int, note text);
CREATE FUNCTION send_order() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM msgq.send('send', to_jsonb(NEW));
	RETURN NEW;
END
$$;
CREATE TRIGGER send_order AFTER INSERT ON send_orders FOR EACH ROW EXECUTE FUNCTION send_order();
INSERT INTO send_orders VALUES (1, 'one'), (2, 'two');
-- a deferred one, that runs at commit
CREATE CONSTRAINT TRIGGER send_deferred AFTER UPDATE ON send_orders
	DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION send_order();
BEGIN;
UPDATE send_orders SET note = 'deferred' WHERE id = 2;
SELECT count(*) AS not_yet FROM msgq.peek('send') WHERE body->>'note' = 'deferred';
COMMIT;
-- a default, a CTE, a RETURNING list
CREATE TABLE send_log (n int, message bigint DEFAULT msgq.send('send', '"from a default"'));
INSERT INTO send_log VALUES (1);
WITH sent AS (SELECT msgq.send('send', '"from a CTE"') AS id)
INSERT INTO send_log SELECT 2, id FROM sent;
INSERT INTO send_log VALUES (3, 0) RETURNING msgq.send('send', '"from RETURNING"') > 0 AS sent;
-- PL/pgSQL, with bodies in a variable, and an exception block
DO $$
DECLARE
	bodies jsonb[] := '{}';
BEGIN
	FOR i IN 1..3 LOOP
		bodies := bodies || jsonb_build_object('element', i);
	END LOOP;
	PERFORM msgq.send_batch('send', bodies);
	BEGIN
		PERFORM msgq.send('send', '"never seen"');
		RAISE division_by_zero;
	EXCEPTION WHEN division_by_zero THEN
		PERFORM msgq.send('send', '"from the handler"');
	END;
END
$$;
SELECT body, visible_at > clock_timestamp() AS delayed FROM msgq.peek('send', 100);
DROP TABLE send_orders, send_log;
DROP FUNCTION send_order();

SELECT msgq.drop_queue(name) FROM unnest('{send,batch,json}'::text[]) AS name;
