--
-- A pop that is rolled back is a failed delivery.  Other sessions' and aborts
-- for other reasons are the subject of an isolation test and a TAP test.
--
-- It is noted in shared memory, so there is nothing to be seen without.
--
\pset null '(null)'
\set SHOW_CONTEXT never
SET msgq.count_rollbacks = on;
SELECT detail NOT LIKE 'none%' AS shared FROM msgq.health()
WHERE check_name = 'shared_memory' \gset
\if :shared
\else
SELECT msgq.create_queue('poison', max_deliveries => 0, dead_letter_queue => '');
SELECT msgq.send('poison', '1') \gset
BEGIN;
SELECT body FROM msgq.pop('poison');
ROLLBACK;
SELECT deliveries, failures FROM msgq.receive('poison');
SELECT msgq.drop_queue('poison');
\quit
\endif

-- What a round has done to the pops.
CREATE FUNCTION pg_temp.round() RETURNS bigint
LANGUAGE sql AS $$ SELECT (msgq.maintain()->'rolled_back')::bigint $$;

SELECT msgq.create_queue('poison', max_deliveries => 0, dead_letter_queue => '',
	retry_delay => '1 h');
SELECT format('msgq.q%s', id) AS handle FROM msgq.queues WHERE name = 'poison' \gset

--
-- The next claim shows it, and writes it down
--
SELECT msgq.send('poison', '1') \gset
BEGIN;
SELECT body, deliveries, failures FROM msgq.pop('poison');
ROLLBACK;
-- the row does not tell of it
SELECT deliveries, failures FROM msgq.peek('poison');
BEGIN;
SELECT body, deliveries, failures FROM msgq.pop('poison');
ROLLBACK;
SELECT body, deliveries, failures FROM msgq.receive('poison', 1, '0');
SELECT deliveries, failures FROM msgq.peek('poison');
-- now it does, and the note is gone; the lease that has ended counts as ever
SELECT body, deliveries, failures FROM msgq.receive('poison', 1, '0');
-- a receive that is rolled back counts for nothing, and pays for nothing
BEGIN;
SELECT deliveries, failures FROM msgq.pop('poison');
ROLLBACK;
BEGIN;
SELECT deliveries, failures FROM msgq.receive('poison');
ROLLBACK;
SELECT deliveries, failures FROM msgq.receive('poison');
SELECT msgq.purge('poison');

-- removed by the next pop: nothing is left
SELECT msgq.send('poison', '2') \gset
BEGIN;
SELECT body FROM msgq.pop('poison');
ROLLBACK;
SELECT body, deliveries, failures FROM msgq.pop('poison');
SELECT pg_temp.round();

-- all of a batch have failed
SELECT msgq.send_batch('poison', '{1,2,3,4}') \gset
BEGIN;
SELECT count(*) FROM msgq.pop('poison', 3);
SELECT 1 / 0;
ROLLBACK;
SELECT body, deliveries, failures FROM msgq.pop('poison', 10);

--
-- Savepoints, and blocks with EXCEPTION
--
SELECT msgq.send_batch('poison', '{1,2,3}') \gset
BEGIN;
SELECT body, failures FROM msgq.pop('poison');
SAVEPOINT a;
SELECT body, failures FROM msgq.pop('poison');
SAVEPOINT b;
SELECT body, failures FROM msgq.pop('poison');
RELEASE b;
ROLLBACK TO a;
-- it is known at once, also to ourselves
SELECT body, failures FROM msgq.pop('poison', 2);
ROLLBACK TO a;
COMMIT;
SELECT body, deliveries, failures FROM msgq.pop('poison', 10);

-- our own transaction has paid, given back, and gets it again
SELECT msgq.send('poison', '4') \gset
BEGIN;
SELECT body FROM msgq.pop('poison');
ROLLBACK;
BEGIN;
SELECT failures, msgq.release('poison', receipt) FROM msgq.receive('poison');
SELECT failures, msgq.release('poison', receipt) FROM msgq.receive('poison');
SAVEPOINT a;
SELECT failures FROM msgq.pop('poison');
ROLLBACK TO a;
SELECT failures, msgq.release('poison', receipt) FROM msgq.receive('poison');
COMMIT;
SELECT deliveries, failures FROM msgq.pop('poison');

SELECT msgq.send('poison', '5') \gset
DO $$
DECLARE
	m msgq.message;
BEGIN
	FOR i IN 1..1000 LOOP
		BEGIN
			SELECT * INTO STRICT m FROM msgq.pop('poison');
			ASSERT m.failures = i - 1 AND m.deliveries = i;
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN
			NULL;
		END;
	END LOOP;
END
$$;
SELECT deliveries, failures FROM msgq.pop('poison');

-- a procedure that ends transactions itself
SELECT msgq.send('poison', '6') \gset
DO $$
BEGIN
	PERFORM FROM msgq.pop('poison');
	ROLLBACK;
	PERFORM FROM msgq.pop('poison');
	COMMIT;
	ASSERT NOT EXISTS (SELECT FROM msgq.peek('poison'));
END
$$;

-- sent, popped and given back by the same transaction
BEGIN;
SELECT msgq.send('poison', '7') \gset
SAVEPOINT a;
SELECT body FROM msgq.pop('poison');
ROLLBACK TO a;
SELECT body, failures FROM msgq.pop('poison');
ROLLBACK TO a;
COMMIT;
SELECT body, failures FROM msgq.pop('poison');

--
-- Prepared transactions
--
SELECT msgq.send('poison', '8') \gset
BEGIN;
SELECT body FROM msgq.pop('poison');
ROLLBACK;
BEGIN;
SELECT failures FROM msgq.receive('poison', 1, '0');
PREPARE TRANSACTION 'poison';
COMMIT PREPARED 'poison';
-- one for the pop, one for the lease that has ended
SELECT failures FROM msgq.receive('poison');
SELECT msgq.purge('poison');
-- how it ends is told to nobody
SELECT msgq.send('poison', '9') \gset
BEGIN;
SELECT body FROM msgq.pop('poison');
PREPARE TRANSACTION 'poison';
ROLLBACK PREPARED 'poison';
SELECT failures FROM msgq.pop('poison');

--
-- Switched off: what counts is the time of the rollback
--
SELECT msgq.send('poison', '10') \gset
SET msgq.count_rollbacks = off;
BEGIN;
SELECT body FROM msgq.pop('poison');
ROLLBACK;
SET msgq.count_rollbacks = on;
BEGIN;
SELECT failures FROM msgq.pop('poison');
SET LOCAL msgq.count_rollbacks = off;
ROLLBACK;
BEGIN;
SET LOCAL msgq.count_rollbacks = off;
SELECT failures FROM msgq.pop('poison');
SET LOCAL msgq.count_rollbacks = on;
ROLLBACK;
SELECT failures FROM msgq.pop('poison');

--
-- Errors that say nothing about the message
--
CREATE FUNCTION pg_temp.fail(code text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION 'failed' USING ERRCODE = code;
END
$$;
SELECT msgq.send('poison', '11') \gset
SELECT pg_temp.fail('40001') FROM msgq.pop('poison');
SELECT pg_temp.fail('40P01') FROM msgq.pop('poison');
SELECT pg_temp.fail('53100') FROM msgq.pop('poison');
SELECT pg_temp.fail('55P03') FROM msgq.pop('poison');
SELECT pg_temp.fail('57014') FROM msgq.pop('poison');
SELECT failures FROM msgq.receive('poison', 1, '0');
-- one error is that of one transaction
SELECT pg_temp.fail('40001');
BEGIN;
SELECT failures FROM msgq.pop('poison');
ROLLBACK;
-- (and the lease)
SELECT failures FROM msgq.receive('poison', 1, '0');
-- the whole is rolled back because of it
BEGIN;
SELECT failures FROM msgq.pop('poison');
SAVEPOINT a;
SELECT pg_temp.fail('40001');
SELECT 'in an aborted transaction';
ROLLBACK;
SELECT failures FROM msgq.receive('poison', 1, '0');
-- it was overcome
BEGIN;
SELECT failures FROM msgq.pop('poison');
SAVEPOINT a;
SELECT pg_temp.fail('40001');
ROLLBACK TO a;
ROLLBACK;
SELECT failures FROM msgq.receive('poison', 1, '0');
SELECT msgq.purge('poison');

--
-- A round writes it down, and lets the message wait
--
SELECT msgq.send('poison', '12') \gset
BEGIN;
SELECT body FROM msgq.pop('poison');
ROLLBACK;
BEGIN;
SELECT body FROM msgq.pop('poison');
ROLLBACK;
SELECT pg_temp.round();
SELECT pg_temp.round();
SELECT deliveries, failures, visible_at > clock_timestamp() AS later,
	visible_at < clock_timestamp() + interval '10 min' AS soon
FROM msgq.peek('poison');
SELECT failures FROM msgq.pop('poison');
SET msgq.test_clock_offset = '1 h';
SELECT deliveries, failures FROM msgq.receive('poison', 1, '10 s');
-- a message that is in flight is not touched, one whose lease has ended is
SET msgq.test_clock_offset = '2 h';
BEGIN;
SELECT failures FROM msgq.pop('poison');
ROLLBACK;
SET msgq.test_clock_offset = '3602 s';
SELECT pg_temp.round();
SET msgq.test_clock_offset = '2 h';
SELECT pg_temp.round();
SELECT deliveries, failures, leased_at FROM :handle;
RESET msgq.test_clock_offset;
SELECT msgq.purge('poison');

-- there is room for 128 messages
SELECT count(msgq.send('poison', to_jsonb(i))) FROM generate_series(1, 130) AS i;
BEGIN;
SELECT count(*) FROM msgq.pop('poison', 127);
ROLLBACK;
BEGIN;
SELECT count(*) FROM msgq.pop('poison', 130);
ROLLBACK;
SELECT failures, count(*) FROM msgq.receive('poison', 130) GROUP BY 1 ORDER BY 1;
SELECT pg_temp.round();
SELECT msgq.purge('poison');

-- a round gives back the room of messages that are gone
SELECT count(msgq.send('poison', to_jsonb(i))) FROM generate_series(1, 128) AS i;
BEGIN;
SELECT count(*) FROM msgq.pop('poison', 128);
ROLLBACK;
SELECT msgq.purge('poison');
SELECT msgq.send('poison', '13') \gset
BEGIN;
SELECT body FROM msgq.pop('poison');
ROLLBACK;
BEGIN;
SELECT failures FROM msgq.pop('poison');
ROLLBACK;
SELECT pg_temp.round();
BEGIN;
SELECT failures FROM msgq.pop('poison');
ROLLBACK;
SELECT failures FROM msgq.pop('poison');

-- Totals: they failed, so they had been delivered.
SELECT delivered_total AS delivered, failed_total AS failed, acked_total AS acked
FROM msgq.queue_stats WHERE queue = 'poison' \gset before_
SELECT msgq.send_batch('poison', '{1,2}') \gset
BEGIN;
SELECT count(*) FROM msgq.pop('poison', 2);
ROLLBACK;
SELECT body, failures FROM msgq.pop('poison');
SELECT pg_temp.round();
SELECT delivered_total - :before_delivered AS delivered,
	failed_total - :before_failed AS failed,
	acked_total - :before_acked AS acked
FROM msgq.queue_stats WHERE queue = 'poison';

--
-- The end of all deliveries
--
CREATE FUNCTION pg_temp.fails(queue text, times int) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	seen text := '';
	m msgq.message;
BEGIN
	FOR i IN 1..times LOOP
		BEGIN
			SELECT * INTO m FROM msgq.pop(queue);
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN
			seen := seen || coalesce(m.failures::text, '-');
		END;
	END LOOP;
	RETURN seen;
END
$$;
CREATE FUNCTION pg_temp.deaths(queue text)
RETURNS TABLE (body jsonb, reason text, deliveries int, failures int)
LANGUAGE sql AS $$
	SELECT body, headers->'msgq-death'->0->>'reason',
		(headers->'msgq-death'->0->>'deliveries')::int, failures
	FROM msgq.peek(queue)
$$;
-- the next claim gives the message up, and takes the one behind it
SELECT msgq.create_queue('mortal', max_deliveries => 3);
SELECT msgq.send_batch('mortal', '{1,2}') \gset
SELECT pg_temp.fails('mortal', 3);
SELECT body, failures FROM msgq.pop('mortal');
SELECT * FROM pg_temp.deaths('mortal.dead');
-- that is undone by a rollback as well, and is no failure of its own
SELECT msgq.purge('mortal.dead');
SELECT msgq.send('mortal', '3') \gset
SELECT pg_temp.fails('mortal', 5);
SELECT * FROM pg_temp.deaths('mortal.dead');
-- but not what a round does
SELECT pg_temp.round();
SELECT * FROM pg_temp.deaths('mortal');
SELECT * FROM pg_temp.deaths('mortal.dead');
SELECT dead_lettered_total, failed_total, delivered_total, acked_total
FROM msgq.queue_stats WHERE queue = 'mortal';
-- with what the row tells
SELECT msgq.purge('mortal.dead');
SELECT msgq.send('mortal', '4') \gset
SELECT msgq.nack('mortal', receipt, '0') FROM msgq.receive('mortal');
SELECT failures FROM msgq.receive('mortal', 1, '0');
SELECT pg_temp.fails('mortal', 1);
SELECT pg_temp.round();
SELECT * FROM pg_temp.deaths('mortal.dead');
-- without a dead-letter queue
SELECT msgq.create_queue('dropped', max_deliveries => 1, dead_letter_queue => '');
SELECT msgq.send_batch('dropped', '{1,2}') \gset
SELECT pg_temp.fails('dropped', 1);
SELECT pg_temp.round();
SELECT body, failures FROM msgq.peek('dropped');
SELECT dropped_total FROM msgq.queue_stats WHERE queue = 'dropped';
-- one that expires takes its note along
SELECT msgq.create_queue('expiring', message_ttl => '1 h');
SELECT msgq.send('expiring', '1') \gset
SELECT pg_temp.fails('expiring', 2);
SET msgq.test_clock_offset = '2 h';
SELECT body FROM msgq.pop('expiring');
SELECT * FROM pg_temp.deaths('expiring.dead');
RESET msgq.test_clock_offset;
SELECT pg_temp.round();
SELECT msgq.drop_queue(q) FROM unnest('{mortal,mortal.dead,dropped,expiring,expiring.dead}'::text[])
	WITH ORDINALITY AS u (q, n) ORDER BY n;

-- A queue that is made anew knows nothing of the old one.
SELECT msgq.drop_queue('poison');
SELECT msgq.create_queue('poison', max_deliveries => 0, dead_letter_queue => '');
SELECT msgq.send('poison', '1') \gset
BEGIN;
SELECT body FROM msgq.pop('poison');
ROLLBACK;
SELECT msgq.drop_queue('poison');
SELECT msgq.create_queue('poison', max_deliveries => 0, dead_letter_queue => '');
SELECT msgq.send('poison', '1') \gset
SELECT failures FROM msgq.pop('poison');
SELECT msgq.drop_queue('poison');

-- What leaves its queue for another reason comes back without what was noted.
SELECT msgq.create_queue('full', max_length => 1, overflow => 'dead_letter');
SELECT msgq.send('full', '1') \gset
BEGIN;
SELECT body FROM msgq.pop('full');
ROLLBACK;
SELECT msgq.send('full', '2') \gset
SELECT body FROM msgq.peek('full.dead');
SELECT msgq.redrive('full.dead');
SELECT body, deliveries, failures FROM msgq.receive('full', 10) ORDER BY id;
SELECT msgq.drop_queue('full');
