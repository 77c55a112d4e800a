--
-- Receiving: which messages, in which order, for how long; what is counted;
-- pop; and receiving from wherever SQL may call a function.
--
\pset null '(null)'

SELECT msgq.create_queue('receive');
SELECT format('msgq.q%s', id) AS handle, format('msgq.q%s_1', id) AS segment
FROM msgq.queues WHERE name = 'receive' \gset

-- An empty queue gives no rows, and no error.
SELECT * FROM msgq.receive('receive');
SELECT * FROM msgq.pop('receive', 100);

--
-- One message, and all that comes with it
--
SELECT msgq.send('receive', '{"a": 1}', '{"h": 2}');
SELECT id, receipt IS NOT NULL AS has_receipt, deliveries, failures, priority, group_key,
	enqueued_at BETWEEN now() - interval '1 min' AND clock_timestamp() AS just_sent,
	visible_at - clock_timestamp() BETWEEN '29 s' AND '30 s' AS for_thirty_seconds,
	expires_at, headers, body, data
FROM msgq.receive('receive');
-- Nobody gets it now.
SELECT count(*) FROM msgq.receive('receive', 10);
SELECT msgq.send_bytes('receive', '\x0102');
SELECT body, data FROM msgq.receive('receive');
SELECT msgq.purge('receive');

--
-- How many, and in which order
--
SELECT cardinality(msgq.send_batch('receive', '{1,2,3,4,5,6,7,8,9,10}'));
SELECT body FROM msgq.receive('receive');
SELECT body FROM msgq.receive('receive', 3);
SELECT body FROM msgq.receive('receive', 2, '0 s');
-- The last two were due again at once: due before ready, in the order of their time.
SELECT body, deliveries, failures FROM msgq.receive('receive', max_messages => 4);
SELECT body FROM msgq.receive('receive', 10000);
SELECT body FROM msgq.receive('receive', 10000);
SELECT msgq.purge('receive');

SELECT cardinality(msgq.send_batch('receive', '{1,2,3,4,5,6}'));
CREATE TEMP TABLE got AS SELECT * FROM msgq.receive('receive', 5);
SELECT msgq.release('receive', receipt) FROM got WHERE body = '4';
SELECT msgq.nack('receive', receipt, delay => '0') FROM got WHERE body = '2';
SELECT msgq.extend('receive', receipt, '0') FROM got WHERE body = '5';
SELECT msgq.expire_lease('receive', id) FROM got WHERE body = '1';
SELECT body, deliveries, failures FROM msgq.receive('receive', 10);
SELECT msgq.purge('receive');
DROP TABLE got;

--
-- The visibility timeout
--
SELECT msgq.create_queue('short', visibility_timeout => '1 ms');
SELECT msgq.send('short', '1');
SELECT deliveries, failures FROM msgq.receive('short');
SELECT pg_sleep(0.02);
-- It has run out: the next delivery, and a failure.
SELECT deliveries, failures FROM msgq.receive('short');
SELECT pg_sleep(0.02);
SELECT deliveries, failures FROM msgq.receive('short', visibility_timeout => '1 h');
SELECT pg_sleep(0.02);
SELECT deliveries, failures FROM msgq.receive('short');
SELECT visible_at - clock_timestamp() BETWEEN '59 min' AND '1 h' AS for_an_hour FROM msgq.peek('short');
-- From the clock of the call, not from the start of the transaction.
SELECT msgq.purge('short');
BEGIN;
SELECT msgq.send('short', '1');
SELECT pg_sleep(0.05);
SELECT visible_at > now() + interval '10 s 40 ms' AS from_the_call,
	enqueued_at >= now() AS sent
FROM msgq.receive('short', 1, '10 s');
COMMIT;
SELECT msgq.drop_queue('short');

--
-- pop removes what it returns
--
SELECT msgq.send_batch('receive', '{1,2,3}', '{"{\"h\": 1}",NULL,NULL}') IS NOT NULL AS sent;
SELECT receipt, deliveries, failures, visible_at, headers, body FROM msgq.pop('receive', 2);
SELECT body FROM msgq.peek('receive');
SELECT body, msgq.release('receive', receipt) FROM msgq.receive('receive');
SELECT deliveries, failures, body FROM msgq.pop('receive');
SELECT count(*) FROM :segment;

--
-- One statement that receives and settles
--
SELECT cardinality(msgq.send_batch('receive', '{1,2,3,4,5}'));
SELECT body, msgq.ack('receive', receipt) FROM msgq.receive('receive', 2);
SELECT msgq.ack_batch('receive', array_agg(receipt)) FROM msgq.receive('receive', 2);
WITH m AS MATERIALIZED (SELECT * FROM msgq.receive('receive'))
SELECT body, msgq.nack('receive', receipt, '1 h', 'not today') FROM m;
SELECT body, headers, failures FROM msgq.peek('receive');
SELECT msgq.purge('receive');
-- Receives in turn see what the one before took.
SELECT cardinality(msgq.send_batch('receive', '{1,2,3,4}'));
SELECT a.body, b.body FROM msgq.receive('receive', 2) a, LATERAL (SELECT body FROM msgq.receive('receive')) b;
SELECT msgq.purge('receive');
-- Send and receive in one statement.
SELECT body FROM msgq.send('receive', '"self"') AS id, LATERAL (SELECT * FROM msgq.pop('receive') WHERE id > 0) m;
SELECT count(*) FROM msgq.peek('receive');

--
-- From wherever SQL calls functions
--
-- the select list: all rows, as composites and as columns
SELECT cardinality(msgq.send_batch('receive', '{1,2,3,4,5,6,7,8}'));
SELECT (m).body, (m).deliveries FROM (SELECT msgq.receive('receive', 2) AS m OFFSET 0) s;
SELECT n, (m).body FROM (SELECT n, msgq.pop('receive', 2) AS m FROM generate_series(1, 2) n OFFSET 0) s;
-- a scalar subquery, EXISTS
SELECT (SELECT body FROM msgq.pop('receive'));
SELECT EXISTS (SELECT FROM msgq.pop('receive'));
SELECT count(*) FROM msgq.peek('receive');
-- LIMIT comes too late: the call has leased both.
SELECT msgq.purge('receive');
SELECT cardinality(msgq.send_batch('receive', '{1,2}'));
SELECT body FROM msgq.receive('receive', 10) LIMIT 1;
SELECT body, deliveries FROM msgq.peek('receive');
SELECT msgq.purge('receive');

-- a prepared statement, planned afresh and with a generic plan
SELECT cardinality(msgq.send_batch('receive', '{1,2,3,4,5,6,7}'));
PREPARE p (int) AS SELECT body FROM msgq.receive('receive', $1);
EXECUTE p (1);
SET plan_cache_mode = force_generic_plan;
EXECUTE p (2);
RESET plan_cache_mode;
DEALLOCATE p;
-- cursors
BEGIN;
DECLARE c CURSOR FOR SELECT body, msgq.ack('receive', receipt) AS acked FROM msgq.receive('receive', 2);
FETCH 1 FROM c;
SELECT count(*) FROM msgq.receive('receive', 10) \gset between_
FETCH ALL FROM c;
CLOSE c;
COMMIT;
SELECT :between_count AS received_between_fetches;
SELECT body, deliveries FROM msgq.peek('receive');
SELECT msgq.purge('receive');
SELECT cardinality(msgq.send_batch('receive', '{1,2,3}'));
BEGIN;
DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT body FROM msgq.receive('receive', 2);
COMMIT;
FETCH ALL FROM c;
FETCH BACKWARD 1 FROM c;
CLOSE c;
SELECT msgq.purge('receive');

-- an SQL function
CREATE FUNCTION receive_sql(n int) RETURNS SETOF msgq.message
LANGUAGE sql AS $$ SELECT * FROM msgq.receive('receive', n) $$;
CREATE FUNCTION receive_body() RETURNS jsonb
LANGUAGE sql AS $$ SELECT body FROM msgq.pop('receive') $$;
SELECT cardinality(msgq.send_batch('receive', '{1,2,3,4,5,6,7,8}'));
SELECT body, deliveries FROM receive_sql(2);
SELECT receive_body();
-- PL/pgSQL
CREATE FUNCTION receive_plpgsql() RETURNS SETOF msgq.message
LANGUAGE plpgsql AS $$
DECLARE
	m msgq.message;
BEGIN
	FOR m IN SELECT * FROM msgq.receive('receive', 2) LOOP
		ASSERT msgq.ack('receive', m.receipt, strict => true);
		m.body := to_jsonb('acked ' || m.body::text);
		RETURN NEXT m;
	END LOOP;
	RETURN QUERY SELECT * FROM msgq.receive('receive');
END
$$;
SELECT body FROM receive_plpgsql();
-- a DO block that commits between its messages
DO $$
DECLARE
	m msgq.message;
BEGIN
	LOOP
		SELECT * INTO m FROM msgq.receive('receive');
		EXIT WHEN m.id IS NULL;
		COMMIT;
		RAISE NOTICE 'received %', m.body;
		PERFORM msgq.ack('receive', m.receipt);
		COMMIT;
	END LOOP;
END
$$;
SELECT body FROM msgq.peek('receive');
DROP FUNCTION receive_sql(int), receive_body(), receive_plpgsql();
SELECT msgq.purge('receive');

-- What is received may be stored and read when the message has gone.
SELECT msgq.send('receive', to_jsonb(repeat('x', 100000)), '{"h": 1}');
CREATE TABLE receive_kept AS SELECT * FROM msgq.pop('receive');
VACUUM :segment;
SELECT length(body #>> '{}'), headers FROM receive_kept;
DROP TABLE receive_kept;

SELECT msgq.drop_queue('receive');
