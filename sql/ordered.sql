--
-- Ordered queues: of each group one batch is in flight, and in order.
--
\pset null '(null)'

CREATE FUNCTION pg_temp.raised(statement text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	detail text;
BEGIN
	EXECUTE statement;
	RETURN 'nothing';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
	RETURN concat_ws(' / ', SQLSTATE || ' ' || SQLERRM, nullif(detail, ''));
END
$$;

--
-- Group keys: everywhere, and stored in any queue
--
SELECT msgq.create_queue('plain');
SELECT msgq.send('plain', '1', group_key => 'g');
SELECT msgq.send_bytes('plain', '\x02', group_key => 'g');
SELECT msgq.send_batch('plain', '{3,4}', group_keys => '{NULL,h}');
SELECT msgq.send_bytes_batch('plain', '{"\\x05"}', group_keys => '{g}');
SELECT * FROM msgq.send_messages('plain', '[{"body": 6, "group_key": "g"}, {"body": 7, "group_key": null}]');
SELECT id, group_key FROM msgq.peek('plain');
-- without any order
SELECT id, group_key FROM msgq.receive('plain');
SELECT id, group_key FROM msgq.receive('plain', 10);

SELECT key, pg_temp.raised(format('SELECT msgq.send(''plain'', ''1'', group_key => %L)', key))
FROM unnest(ARRAY['', repeat('x', 256), repeat('ä', 128)]) AS key;
SELECT msgq.send('plain', '8', group_key => repeat('x', 255)) IS NOT NULL AS sent;
SELECT pg_temp.raised($$SELECT msgq.send_batch('plain', '{1,2}', group_keys => '{a}')$$);
SELECT pg_temp.raised($$SELECT msgq.send_batch('plain', '{1,2}', group_keys => '{a,""}')$$);
SELECT pg_temp.raised($$SELECT msgq.send_messages('plain', '[{"body": 1, "group_key": 1}]')$$);
SELECT pg_temp.raised($$SELECT msgq.send_messages('plain', '[{"body": 1, "group_key": ""}]')$$);

--
-- Settings
--
SELECT pg_temp.raised($$SELECT msgq.create_queue('bad', ordered => true, priorities => 2)$$) ~ '^22023' AS refused;
SELECT pg_temp.raised($$SELECT msgq.alter_queue('plain', '{"ordered": true}')$$);
SELECT msgq.create_queue('o', ordered => true, visibility_timeout => '1 h', retry_delay => '0 s', max_deliveries => 0);
SELECT id AS queue, format('msgq.q%s_1', id) AS segment, format('msgq.q%s_1_group', id) AS index FROM msgq.queues WHERE name = 'o' \gset
SELECT indexdef ~ 'group_key COLLATE "C", leased_at, id' AS is_there, count(*)
FROM pg_indexes WHERE schemaname = 'msgq' AND tablename ~ ('^q' || :'queue' || '_') AND indexname ~ '_group$'
GROUP BY 1;

CREATE FUNCTION pg_temp.send(keys text[]) RETURNS bigint[] LANGUAGE sql AS $$
	SELECT msgq.send_batch('o', array_agg(to_jsonb(i)), group_keys => keys)
	FROM generate_series(1, cardinality(keys)) AS i
$$;
CREATE TABLE held (id bigint, receipt uuid, n serial);
CREATE FUNCTION pg_temp.receive(n int) RETURNS TABLE (id bigint, group_key text, deliveries int, failures int)
LANGUAGE sql AS $$
	WITH m AS MATERIALIZED (SELECT * FROM msgq.receive('o', n)),
	h AS (INSERT INTO held SELECT m.id, m.receipt FROM m)
	SELECT m.id, m.group_key, m.deliveries, m.failures FROM m
$$;
CREATE FUNCTION pg_temp.receipt(id bigint) RETURNS uuid LANGUAGE sql AS $$
	SELECT receipt FROM held WHERE held.id = $1 ORDER BY n DESC LIMIT 1
$$;
CREATE FUNCTION pg_temp.ack(id bigint) RETURNS boolean LANGUAGE sql AS $$
	SELECT msgq.ack('o', pg_temp.receipt(id))
$$;

--
-- A group is delivered in order, and waits for what is in flight
--
SELECT pg_temp.send('{a,a,b,a,b,NULL,a}');
SELECT * FROM pg_temp.receive(2);
SELECT * FROM pg_temp.receive(1);
SELECT * FROM pg_temp.receive(10);
SELECT * FROM pg_temp.receive(10);
SELECT msgq.why_empty('o');
SELECT pg_temp.ack(6), pg_temp.ack(3);
SELECT * FROM pg_temp.receive(10);
-- the batch has to be done
SELECT pg_temp.ack(1);
SELECT * FROM pg_temp.receive(10);
SELECT pg_temp.ack(2);
SELECT * FROM pg_temp.receive(10);
SELECT pg_temp.ack(id) FROM unnest('{5,4,7}'::bigint[]) AS id;
SELECT msgq.why_empty('o');

--
-- In one receive: groups in one piece each, and in order, whatever is met first
--
SELECT pg_temp.send('{a,b,c,c,b,a,a}');
SELECT * FROM pg_temp.receive(10);
SELECT cardinality(msgq.ack_batch('o', array_agg(pg_temp.receipt(id)))) AS stale FROM held WHERE id BETWEEN 8 AND 14;

--
-- What is given back takes with it what follows it
--
SELECT pg_temp.send('{a,a,a,a}');
SELECT * FROM pg_temp.receive(3);
SELECT msgq.nack('o', pg_temp.receipt(16), '0');
SELECT pg_temp.ack(17) AS taken_back, pg_temp.ack(15);
SELECT * FROM pg_temp.receive(2);
-- release, and expire_lease
SELECT msgq.release('o', pg_temp.receipt(16));
SELECT pg_temp.ack(17) AS taken_back;
SELECT * FROM pg_temp.receive(3);
SELECT msgq.expire_lease('o', 17);
SELECT pg_temp.ack(18) AS taken_back, pg_temp.ack(16);
SELECT pg_temp.send('{b}');
SELECT * FROM pg_temp.receive(3);
-- with a delay the group waits
SELECT msgq.nack('o', pg_temp.receipt(17), '1 h');
SELECT * FROM pg_temp.receive(3);
SELECT pg_temp.ack(19), msgq.why_empty('o');
SET msgq.test_clock_offset = '2h';
SELECT * FROM pg_temp.receive(3);
RESET msgq.test_clock_offset;
SELECT pg_temp.ack(17), pg_temp.ack(18);
-- all of a batch at once
SELECT pg_temp.send('{a,a,a}');
SELECT * FROM pg_temp.receive(3);
SELECT cardinality(msgq.nack_batch('o', ARRAY[pg_temp.receipt(22), pg_temp.receipt(20), pg_temp.receipt(21)], '0')) AS stale;
SELECT * FROM pg_temp.receive(3);
SELECT cardinality(msgq.release_batch('o', ARRAY[pg_temp.receipt(21)])) AS stale;
SELECT cardinality(msgq.ack_batch('o', ARRAY[pg_temp.receipt(20), pg_temp.receipt(22)])) AS stale;
SELECT * FROM pg_temp.receive(3);
SELECT pg_temp.ack(21), pg_temp.ack(22);

--
-- Leases that run out: of the head alone, of what follows, and a late receipt
--
SELECT pg_temp.send('{a,a,a,a}');
SELECT * FROM pg_temp.receive(3);
SET msgq.test_clock_offset = '2h';
SELECT * FROM pg_temp.receive(1);
-- The others are taken back.
SELECT pg_temp.ack(24) AS taken_back, msgq.extend('o', pg_temp.receipt(25), '1 h') AS taken_back;
SELECT pg_temp.ack(23);
SELECT * FROM pg_temp.receive(2);
SELECT msgq.extend('o', pg_temp.receipt(25), '3 h');
SET msgq.test_clock_offset = '4h';
-- 24 has run out, 25 has not.
SELECT * FROM pg_temp.receive(10);
SELECT msgq.why_empty('o');
-- In time, as nobody has got it since.
SELECT pg_temp.ack(24);
SELECT * FROM pg_temp.receive(10);
SELECT pg_temp.ack(25);
SELECT * FROM pg_temp.receive(10);
SELECT pg_temp.ack(26);
RESET msgq.test_clock_offset;
SELECT msgq.why_empty('o');

--
-- cancel, a head that is delayed, and pop
--
SELECT msgq.send('o', '1', group_key => 'a', delay => '1 h');
SELECT pg_temp.send('{a,a,a}');
SELECT * FROM pg_temp.receive(10);
SELECT msgq.why_empty('o');
SELECT msgq.cancel('o', 27);
SELECT id FROM msgq.pop('o');
SELECT id FROM msgq.pop('o', 10);
SELECT msgq.why_empty('o');

--
-- Within one transaction
--
SELECT pg_temp.send('{a,a,a,a}');
BEGIN;
SELECT * FROM pg_temp.receive(1);
SELECT * FROM pg_temp.receive(1);
SELECT pg_temp.ack(31);
SELECT * FROM pg_temp.receive(1);
SAVEPOINT s;
SELECT pg_temp.ack(32);
SELECT * FROM pg_temp.receive(1);
ROLLBACK TO s;
SELECT * FROM pg_temp.receive(1);
ROLLBACK;
SELECT * FROM pg_temp.receive(2);
-- in one statement
WITH m AS MATERIALIZED (SELECT msgq.ack('o', pg_temp.receipt(id)) FROM unnest('{31,32}'::bigint[]) AS id)
SELECT count(*) FROM m;
SELECT * FROM pg_temp.receive(2);
SELECT pg_temp.ack(33), pg_temp.ack(34);
-- own messages, that never were
BEGIN;
SELECT msgq.send('o', '1', group_key => 'own');
SELECT * FROM pg_temp.receive(1);
ROLLBACK;
SELECT msgq.why_empty('o');

--
-- purge
--
SELECT pg_temp.send('{a,a,b}');
SELECT * FROM pg_temp.receive(1);
SELECT msgq.purge('o');
SELECT pg_temp.send('{a}');
SELECT * FROM pg_temp.receive(1);
SELECT pg_temp.ack(39);

--
-- An index that is missing
--
DROP INDEX :index;
SELECT regexp_replace(pg_temp.raised($$SELECT msgq.send('o', '1', group_key => 'a')$$), 'q\d+', 'q');
SELECT regexp_replace(pg_temp.raised($$SELECT * FROM msgq.receive('o')$$), 'q\d+', 'q');
CREATE INDEX ON :segment (group_key COLLATE "C", leased_at, id) WHERE group_key IS NOT NULL;
SELECT msgq.send('o', '1', group_key => 'a') IS NOT NULL AS sent;
-- one more
CREATE INDEX ON :segment (enqueued_at);
SELECT pg_temp.send('{a,b}');
SELECT count(*) FROM pg_temp.receive(10);

--
-- Dead letters: the group goes on, or waits for ever
--
SELECT msgq.create_queue('skip', ordered => true, retry_delay => '0 s', max_deliveries => 2);
SELECT msgq.create_queue('block', ordered => true, retry_delay => '0 s', max_deliveries => 2, on_exhausted => 'block');
SELECT name, cardinality(msgq.send_batch(name, '{1,2}', group_keys => '{a,a}'))
FROM unnest('{skip,block}'::text[]) AS name;
SELECT id, failures, msgq.nack('skip', receipt, '0') FROM msgq.receive('skip');
SELECT id, failures, msgq.nack('skip', receipt, '0') FROM msgq.receive('skip');
SELECT msgq.send('skip', '3') AS id;
SELECT id, failures FROM msgq.receive('skip', 10);
SELECT id, group_key, headers->'msgq-death'->0->>'reason' AS reason FROM msgq.peek('skip.dead');
SELECT id, failures, msgq.nack('block', receipt, '0') FROM msgq.receive('block');
SELECT id, failures, msgq.nack('block', receipt, '0') FROM msgq.receive('block');
SELECT id, failures, msgq.nack('block', receipt, '0') FROM msgq.receive('block');
SELECT msgq.send('block', '3') AS id;
SELECT id, failures FROM msgq.receive('block', 10);
SELECT count(*) FROM msgq.peek('block.dead');
SELECT msgq.maintain() IS NOT NULL AS done;
SELECT count(*) FROM msgq.peek('block.dead');
SELECT msgq.alter_queue('block', '{"on_exhausted": "skip"}');
-- who waits hears of a group whose first message is to be given up
SELECT msgq.create_queue('spent', ordered => true, max_deliveries => 1, dead_letter_queue => '');
SELECT msgq.send_batch('spent', '{1,2}', group_keys => '{a,a}');
SELECT id FROM msgq.receive('spent', 1, '0');
CALL msgq.wait('{spent}', '0');
SELECT id FROM msgq.receive('spent');
CALL msgq.wait('{spent}', '0');
-- a group with a backlog does not keep others from beginning
SELECT msgq.create_queue('fair', ordered => true, dead_letter_queue => '');
SELECT msgq.send_batch('fair', '{1,2,3,4,5,6,7}', group_keys => '{a,a,a,b,NULL,b,a}');
CREATE FUNCTION pg_temp.work_off(queue text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	m msgq.message;
	done text;
BEGIN
	LOOP
		SELECT * INTO m FROM msgq.receive(queue);
		EXIT WHEN m.id IS NULL;
		ASSERT msgq.ack(queue, m.receipt);
		PERFORM pg_sleep(0.001);
		done := concat_ws(' ', done, m.id || coalesce(m.group_key, '-'));
	END LOOP;
	RETURN done;
END
$$;
SELECT pg_temp.work_off('fair');
-- what is rejected takes back what follows it
SELECT msgq.create_queue('reject', ordered => true);
SELECT msgq.send_batch('reject', '{1,2}', group_keys => '{a,a}');
SELECT array_agg(receipt ORDER BY id) AS receipts FROM msgq.receive('reject', 2) \gset
SELECT msgq.reject('reject', (:'receipts'::uuid[])[1]), msgq.ack('reject', (:'receipts'::uuid[])[2]) AS taken_back;
SELECT id AS second, receipt FROM msgq.receive('reject', 2) \gset
SELECT :second AS id;
-- and comes back as the head
SELECT msgq.redrive('reject.dead');
SELECT id FROM msgq.receive('reject', 2);
SELECT msgq.release('reject', :'receipt');
SELECT id FROM msgq.receive('reject', 2);

--
-- A full queue drops also what waits for others of its group
--
SELECT msgq.create_queue('full', ordered => true, max_length => 4, overflow => 'drop_oldest', max_deliveries => 0, dead_letter_queue => '');
SELECT msgq.send_batch('full', '{1,2,3,4}', group_keys => '{a,a,a,b}');
SELECT id, receipt FROM msgq.receive('full') \gset
SELECT id FROM msgq.receive('full');
SELECT id FROM msgq.receive('full');
SELECT msgq.send_batch('full', '{5,6}', group_keys => '{a,a}');
SELECT id FROM msgq.peek('full');
SELECT msgq.ack('full', :'receipt');
SELECT id FROM msgq.receive('full', 10);

--
-- Time to live: what has expired does not keep its group waiting
--
SELECT msgq.create_queue('ttl', ordered => true, dead_letter_queue => '');
SELECT msgq.send('ttl', '1', group_key => 'a', ttl => '1 ms');
SELECT msgq.send('ttl', '2', group_key => 'a');
SELECT pg_sleep(0.01) \gset
SELECT id FROM msgq.receive('ttl', 2);

SELECT msgq.maintain()->>'defects' AS defects;
SELECT name, msgq.drop_queue(name) FROM unnest('{plain,o,skip,skip.dead,block,spent,fair,reject,full,ttl}'::text[]) AS name;
DROP TABLE held;
