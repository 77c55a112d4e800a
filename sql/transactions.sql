--
-- Messages and transactions, as one session sees them: rollbacks, savepoints,
-- isolation levels, read-only and prepared transactions.  What sessions see of
-- each other is the subject of the isolation tests.
--
\pset null '(null)'

CREATE FUNCTION pg_temp.raised(statement text) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE statement;
	RETURN 'nothing';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || ' ' || SQLERRM;
END
$$;

SELECT msgq.create_queue('tx');
SELECT format('msgq.q%s_1', id) AS segment FROM msgq.queues WHERE name = 'tx' \gset

--
-- Rollbacks
--
BEGIN;
SELECT msgq.send('tx', '"rolled back"') \gset
SELECT body FROM msgq.peek('tx');
ROLLBACK;
SELECT body FROM msgq.peek('tx');
SELECT body FROM msgq.receive('tx');

SELECT cardinality(msgq.send_batch('tx', '{1,2,3}'));
BEGIN;
SELECT body FROM msgq.receive('tx', 2);
SELECT body, msgq.ack('tx', receipt) FROM msgq.receive('tx');
SELECT count(*) FROM msgq.receive('tx');
ROLLBACK;
-- as if nothing had happened
SELECT body, deliveries, failures, visible_at FROM msgq.peek('tx');
BEGIN;
SELECT body FROM msgq.pop('tx', 2);
ROLLBACK;
SELECT body, deliveries FROM msgq.receive('tx', 3);
SELECT msgq.purge('tx');

--
-- Savepoints
--
SELECT cardinality(msgq.send_batch('tx', '{1,2,3}'));
BEGIN;
SELECT body, receipt FROM msgq.receive('tx') \gset
SELECT :'body' AS body;
SAVEPOINT a;
SELECT body FROM msgq.receive('tx');
SELECT msgq.ack('tx', :'receipt');
SELECT msgq.send('tx', '"in a"') \gset
SAVEPOINT b;
SELECT body FROM msgq.pop('tx');
SELECT msgq.send('tx', '"in b"') \gset
SELECT body FROM msgq.receive('tx');
RELEASE b;
ROLLBACK TO a;
-- What happened since a is undone, and can be had again in this transaction.
SELECT body FROM msgq.receive('tx', 10);
SELECT msgq.ack('tx', :'receipt');
COMMIT;
SELECT body, deliveries FROM msgq.peek('tx');
SELECT msgq.purge('tx');
-- Claims of a savepoint that was rolled back many times over.
SELECT msgq.send('tx', '1') \gset
DO $$
BEGIN
	FOR i IN 1..100 LOOP
		BEGIN
			ASSERT (SELECT count(*) = 1 FROM msgq.receive('tx'));
			ASSERT (SELECT count(*) = 0 FROM msgq.receive('tx'));
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN
			NULL;
		END;
	END LOOP;
END
$$;
SELECT body, deliveries FROM msgq.receive('tx');
SELECT msgq.purge('tx');
-- A released savepoint's message belongs to the transaction.
BEGIN;
SAVEPOINT a;
SELECT msgq.send('tx', '"kept"') \gset
RELEASE a;
SAVEPOINT c;
SELECT msgq.send('tx', '"lost"') \gset
ROLLBACK TO c;
COMMIT;
SELECT body FROM msgq.pop('tx', 10);

--
-- Isolation levels: the same at each
--
SELECT cardinality(msgq.send_batch('tx', '{1,2,3,4}'));
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT msgq.send('tx', '5') \gset
SELECT body, receipt FROM msgq.receive('tx', 1) \gset
SELECT body FROM msgq.receive('tx', 2);
SELECT msgq.nack('tx', :'receipt', '0');
SELECT body, deliveries, failures, receipt FROM msgq.receive('tx', 1) \gset
SELECT :'body' AS body, :deliveries AS deliveries, :failures AS failures;
SELECT msgq.ack('tx', :'receipt');
SELECT body FROM msgq.pop('tx', 2);
SELECT body FROM msgq.peek('tx');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT msgq.send('tx', '6') \gset
SELECT body, receipt FROM msgq.receive('tx', 1) \gset
SELECT msgq.extend('tx', :'receipt', '1 h');
SELECT msgq.release('tx', :'receipt');
SELECT body FROM msgq.pop('tx');
COMMIT;
SELECT msgq.purge('tx');

--
-- The effect happens if and only if the message is gone.
--
CREATE TABLE tx_effect (n int PRIMARY KEY);
SELECT cardinality(msgq.send_batch('tx', '{1,2,2,3}'));
DO $$
DECLARE
	m msgq.message;
BEGIN
	FOR i IN 1..6 LOOP
		BEGIN
			SELECT * INTO m FROM msgq.pop('tx');
			EXIT WHEN m.id IS NULL;
			INSERT INTO tx_effect VALUES (m.body::int);
		EXCEPTION WHEN unique_violation THEN
			RAISE NOTICE 'failed: %', m.body;
			PERFORM msgq.nack('tx', receipt, '1 h', 'twice') FROM msgq.receive('tx');
		END;
	END LOOP;
END
$$;
SELECT n FROM tx_effect;
SELECT body, headers, failures FROM msgq.peek('tx');
SELECT msgq.purge('tx');
DROP TABLE tx_effect;

--
-- Read-only transactions
--
SELECT msgq.send('tx', '1') \gset
\pset format unaligned
BEGIN READ ONLY;
SELECT statement, pg_temp.raised('SELECT msgq.' || statement) FROM (VALUES
	(1, $$send('tx', '1')$$),
	(2, $$send_bytes('tx', '\x01')$$),
	(3, $$send_batch('tx', '{1}')$$),
	(4, $$send_bytes_batch('tx', '{\\x01}')$$),
	(5, $$send_messages('tx', '[{"body": 1}]')$$),
	(6, $$receive('tx')$$),
	(7, $$pop('tx')$$),
	(8, $$ack('tx', '6ba7b810-9dad-11d1-80b4-00c04fd430c8')$$),
	(9, $$ack_batch('tx', '{6ba7b810-9dad-11d1-80b4-00c04fd430c8}')$$),
	(10, $$nack('tx', '6ba7b810-9dad-11d1-80b4-00c04fd430c8')$$),
	(11, $$nack_batch('tx', '{6ba7b810-9dad-11d1-80b4-00c04fd430c8}')$$),
	(12, $$extend('tx', '6ba7b810-9dad-11d1-80b4-00c04fd430c8', '1 s')$$),
	(13, $$extend_batch('tx', '{6ba7b810-9dad-11d1-80b4-00c04fd430c8}', '1 s')$$),
	(14, $$release('tx', '6ba7b810-9dad-11d1-80b4-00c04fd430c8')$$),
	(15, $$release_batch('tx', '{6ba7b810-9dad-11d1-80b4-00c04fd430c8}')$$)
) AS v(n, statement) ORDER BY n;
COMMIT;
\pset format aligned
SELECT msgq.purge('tx');

--
-- Prepared transactions: a send, a receive and an ack survive PREPARE.
--
SELECT cardinality(msgq.send_batch('tx', '{1,2,3}'));
SELECT body, receipt FROM msgq.receive('tx', 1, '1 h') \gset
BEGIN;
SELECT msgq.ack('tx', :'receipt');
SELECT body FROM msgq.receive('tx', 1, '1 h');
SELECT msgq.send('tx', '4') \gset
PREPARE TRANSACTION 'regress_msgq_1';
-- Until then they are neither there nor gone.
SELECT body FROM msgq.pop('tx', 10);
SELECT body, deliveries FROM msgq.peek('tx');
COMMIT PREPARED 'regress_msgq_1';
SELECT body, deliveries FROM msgq.peek('tx');
SELECT body FROM msgq.pop('tx', 10);
BEGIN;
SELECT msgq.send('tx', '5') \gset
SELECT body FROM msgq.receive('tx', 1, '1 h');
PREPARE TRANSACTION 'regress_msgq_2';
SELECT body FROM msgq.receive('tx');
ROLLBACK PREPARED 'regress_msgq_2';
SELECT body FROM msgq.receive('tx');
SELECT msgq.purge('tx');
-- A message taken by a prepared transaction that is rolled back comes back.
SELECT msgq.send('tx', '6') \gset
BEGIN;
SELECT body FROM msgq.pop('tx');
PREPARE TRANSACTION 'regress_msgq_3';
SELECT body FROM msgq.pop('tx');
SELECT msgq.why_empty('tx');
ROLLBACK PREPARED 'regress_msgq_3';
SELECT body FROM msgq.pop('tx');

--
-- Asynchronous leases are a matter of the commit only.
--
SHOW msgq.async_leases;
SELECT current_setting('synchronous_commit') AS synchronous_commit \gset
SELECT msgq.send('tx', '7') \gset
SET msgq.async_leases = off;
SELECT body FROM msgq.receive('tx', 1, '0');
SET msgq.async_leases = on;
SELECT body, msgq.ack('tx', receipt) FROM msgq.receive('tx');
SELECT current_setting('synchronous_commit') = :'synchronous_commit' AS as_before;
SET msgq.async_leases = maybe;

SELECT msgq.drop_queue('tx');
