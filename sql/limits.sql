--
-- Time to live, limits on length and on messages in flight, pauses
--
\set VERBOSITY terse
\set SHOW_CONTEXT never
\pset null -

--
-- Time to live
--
SELECT msgq.create_queue('ttl', message_ttl => '10 s', visibility_timeout => '30 s', dead_letter_queue => '');
SELECT msgq.send('ttl', '"queue"') AS id;
SELECT msgq.send('ttl', '"shorter"', ttl => '5 s') AS id;
SELECT msgq.send('ttl', '"longer"', ttl => '1 h') AS id;
SELECT msgq.send_bytes('ttl', 'bytes', ttl => '1 s') AS id;
SELECT msgq.send_batch('ttl', '{1,2}', ttl => '2 s') AS ids;
SELECT msgq.send_messages('ttl', '[{"body": "one", "ttl": "3 s"}, {"body": "two"}, {"body": "three", "ttl": null}]') AS sent;
SELECT body, data, expires_at - enqueued_at AS ttl FROM msgq.peek('ttl');
SELECT msgq.send('ttl', '1', ttl => '-1 s');
SELECT msgq.send_messages('ttl', '[{"body": 1, "ttl": "-1 s"}]');
SELECT msgq.send_messages('ttl', '[{"body": 1, "ttl": 1}]');
-- Now or never is never.
SELECT msgq.send('ttl', '"never"', ttl => '0') AS id;
SELECT body FROM msgq.receive('ttl', 1);
-- It expires while it is in flight: it can be settled, and is not delivered again.
SELECT receipt AS settled FROM msgq.receive('ttl', 1) \gset
SET msgq.test_clock_offset = 11000;
SELECT msgq.ack('ttl', :'settled');
SELECT body FROM msgq.receive('ttl', 100);
SELECT msgq.why_empty('ttl');
SELECT msgq.maintain()->'given_up' AS given_up;
SELECT body FROM msgq.peek('ttl');
SET msgq.test_clock_offset = 40000;
SELECT body FROM msgq.receive('ttl', 100);
SELECT count(*) FROM msgq.peek('ttl');
RESET msgq.test_clock_offset;
-- Totals are NULL without shared memory.
SELECT sent_total IS NULL OR (sent_total, acked_total, expired_total) = (10, 1, 9) AS counted
FROM msgq.queue_stats WHERE queue = 'ttl';
-- Only what has expired: it is given up by the receive that meets it, which returns nothing.
SELECT msgq.alter_queue('ttl', '{"dead_letter_queue": null, "message_ttl": null}');
SELECT msgq.send('ttl', '"dies"', ttl => '1 s') IS NOT NULL AS sent;
SELECT msgq.why_empty('ttl');
SET msgq.test_clock_offset = 2000;
SELECT msgq.why_empty('ttl');
SELECT body FROM msgq.receive('ttl', wait => '1 min');
SELECT body, headers->'msgq-death'->0->>'reason' AS reason, expires_at FROM msgq.peek('ttl.dead');
-- More than one receive removes at once; the worker does the rest.
SELECT array_length(msgq.send_batch('ttl', array_agg(to_jsonb(i)), ttl => '1 s'), 1) FROM generate_series(1, 250) i;
SELECT msgq.send('ttl', '"lives"') IS NOT NULL AS sent;
SET msgq.test_clock_offset = 4000;
SELECT body FROM msgq.receive('ttl', 1);
SELECT count(*) FROM msgq.peek('ttl', 1000);
SELECT msgq.maintain()->'given_up' AS given_up;
SELECT count(*) FROM msgq.peek('ttl', 1000);
SELECT count(*) FROM msgq.peek('ttl.dead', 1000);
SELECT (msgq.maintain()->'defects')::int AS defects;
RESET msgq.test_clock_offset;
SELECT msgq.purge('ttl.dead');
SELECT msgq.drop_queue('ttl');

--
-- Length
--
SELECT msgq.create_queue('full', max_length => 3);
SELECT msgq.send_batch('full', '{1,2}');
SELECT msgq.send('full', '3');
\set VERBOSITY default
SELECT msgq.send('full', '4');
SELECT msgq.send_batch('full', '{4,5}');
\set VERBOSITY terse
-- What is in flight counts; what is gone does not.
SELECT msgq.ack('full', receipt) FROM msgq.receive('full');
SELECT count(*) FROM msgq.receive('full');
SELECT msgq.send('full', '4') IS NOT NULL AS sent;
SELECT msgq.send('full', '5');
-- Within a transaction.
BEGIN;
SELECT msgq.purge('full');
SELECT msgq.send_batch('full', '{6,7,8}') IS NOT NULL AS sent;
SAVEPOINT before;
SELECT msgq.send('full', '9');
ROLLBACK TO before;
SELECT msgq.ack('full', receipt) FROM msgq.receive('full');
SELECT msgq.send('full', '9') IS NOT NULL AS sent;
COMMIT;
SELECT body FROM msgq.peek('full');
-- The oldest ones go: ready, then due or delayed; not what is in flight.
SELECT msgq.alter_queue('full', '{"overflow": "drop_oldest"}');
SELECT count(*) FROM msgq.receive('full');
SELECT msgq.send('full', '"delayed"', delay => '1 h') IS NOT NULL AS sent;
SELECT body, leased_at IS NOT NULL AS leased FROM msgq.peek('full') LEFT JOIN msgq.leases USING (id) ORDER BY id;
SELECT msgq.send_batch('full', '{10,11}') IS NOT NULL AS sent;
SELECT body FROM msgq.peek('full');
SELECT count(*) FROM msgq.receive('full', 10);
SELECT msgq.send('full', '12') IS NOT NULL AS overshoots;
SELECT body FROM msgq.peek('full');
SELECT dropped_total IS NULL OR dropped_total = 3 AS counted FROM msgq.queue_stats WHERE queue = 'full';
-- To the dead-letter queue.
SELECT msgq.purge('full');
SELECT msgq.alter_queue('full', '{"overflow": "dead_letter"}');
SELECT msgq.send_batch('full', '{20,21,22}') IS NOT NULL AS sent;
SELECT msgq.send_batch('full', '{23,24}') IS NOT NULL AS sent;
SELECT body FROM msgq.peek('full');
SELECT body, headers->'msgq-death'->0->>'reason' AS reason FROM msgq.peek('full.dead');
-- Dead letters ignore the limits and the pause of their queue.
SELECT msgq.alter_queue('full.dead', '{"max_length": 1, "max_message_bytes": 1}');
SELECT msgq.pause('full.dead', 'all');
SELECT msgq.send('full', '25') IS NOT NULL AS sent;
SELECT count(*) FROM msgq.peek('full.dead');
SELECT msgq.resume('full.dead', 'all');
-- A redrive ignores the limits of its target, but not a pause.
SELECT msgq.pause('full', 'send');
SELECT msgq.redrive('full.dead', max_messages => 1);
SELECT msgq.redrive('full.dead', 'full', max_messages => 1);
SELECT msgq.resume('full', 'send');
SELECT msgq.redrive('full.dead', max_messages => 1);
SELECT msgq.purge('full.dead');
SELECT msgq.drop_queue('full');

--
-- In flight
--
SELECT msgq.create_queue('flight', max_in_flight => 2, visibility_timeout => '10 s');
SELECT msgq.send_batch('flight', '{1,2,3,4,5}');
BEGIN;
SELECT body FROM msgq.receive('flight', 1);
SELECT body FROM msgq.receive('flight', 10);
SELECT body FROM msgq.receive('flight', 10);
ROLLBACK;
SELECT receipt FROM msgq.receive('flight') \gset
SELECT body FROM msgq.receive('flight', 10);
SELECT msgq.why_empty('flight');
SELECT count(*) FROM msgq.receive('flight');
SELECT msgq.ack('flight', :'receipt');
SELECT body FROM msgq.receive('flight', 10);
SELECT body FROM msgq.pop('flight');
SET msgq.test_clock_offset = 11000;
SELECT body FROM msgq.receive('flight', 10);
RESET msgq.test_clock_offset;
SELECT msgq.alter_queue('flight', '{"max_in_flight": null}');
SELECT body FROM msgq.receive('flight', 10);
SELECT msgq.drop_queue('flight');

--
-- Pauses
--
SELECT msgq.create_queue('paused');
SELECT msgq.send('paused', '1');
SELECT receipt FROM msgq.receive('paused') \gset
SELECT msgq.send('paused', '2');
SELECT msgq.pause('paused');
SELECT paused, settings ? 'paused' AS is_setting FROM msgq.queues WHERE name = 'paused';
SELECT body FROM msgq.receive('paused');
SELECT body FROM msgq.pop('paused');
SELECT msgq.why_empty('paused');
SELECT msgq.send('paused', '3');
SELECT msgq.nack('paused', :'receipt', '0 s');
SELECT msgq.pause('paused', 'send');
SELECT paused FROM msgq.queues WHERE name = 'paused';
\set VERBOSITY default
SELECT msgq.send('paused', '4');
\set VERBOSITY terse
SELECT msgq.send_batch('paused', '{4}');
SELECT msgq.send_messages('paused', '[{"body": 4}]');
SELECT msgq.resume('paused');
SELECT paused FROM msgq.queues WHERE name = 'paused';
SELECT body FROM msgq.receive('paused', 10);
SELECT msgq.resume('paused', 'all');
SELECT paused FROM msgq.queues WHERE name = 'paused';
SELECT msgq.send('paused', '5') IS NOT NULL AS sent;
SELECT msgq.pause('paused', 'nothing');
SELECT msgq.pause('nowhere');
SELECT msgq.alter_queue('paused', '{"paused": "all"}');
BEGIN;
SELECT msgq.pause('paused', 'all');
SELECT body FROM msgq.receive('paused');
ROLLBACK;
SELECT body FROM msgq.receive('paused');
SELECT msgq.drop_queue('paused');
