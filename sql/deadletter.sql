--
-- Dead letters: why, history, redrive, and the queues that take them
--
\set VERBOSITY terse
\set SHOW_CONTEXT never

-- The history, without what differs from run to run.
CREATE FUNCTION pg_temp.deaths(queue text)
RETURNS TABLE (id bigint, body jsonb, reason text, count int, of_queue text, of_id int, deliveries int, error text, headers jsonb)
LANGUAGE sql AS $$
	SELECT m.id, m.body, d.reason, d.count, d.queue, d.id, d.deliveries, d.error,
		nullif(m.headers - 'msgq-death', '{}')
	FROM msgq.peek(queue) m
	LEFT JOIN LATERAL (
		SELECT x.*, n FROM jsonb_array_elements(m.headers->'msgq-death') WITH ORDINALITY AS e(entry, n),
			jsonb_to_record(entry) AS x(reason text, count int, queue text, id int, deliveries int, error text)) d ON true
	ORDER BY m.id, d.n
$$;

-- The dead-letter queue is made with the queue.
SELECT msgq.create_queue('work', max_deliveries => 2, visibility_timeout => '10 s', retry_delay => '0');
SELECT name, settings->>'dead_letter_queue' AS dead_letter_queue, settings->>'max_deliveries' AS max_deliveries
FROM msgq.queues WHERE name LIKE 'work%' ORDER BY name;

-- The last allowed delivery fails: nack gives the message up.
SELECT msgq.send('work', '"nack"', '{"trace": 7}', ttl => '1 h');
SELECT deliveries, msgq.nack('work', receipt, error => 'first') FROM msgq.receive('work');
SELECT * FROM pg_temp.deaths('work');
SELECT deliveries, msgq.nack('work', receipt, error => 'second') FROM msgq.receive('work');
SELECT * FROM pg_temp.deaths('work');
SELECT * FROM pg_temp.deaths('work.dead');
SELECT deliveries, failures, receipt, visible_at, expires_at, clock_timestamp() - enqueued_at < '1 min' AS sent_lately
FROM msgq.peek('work.dead');
-- Without an error of its own, the last one's counts.
SELECT msgq.send('work', '"last error"');
SELECT msgq.nack('work', receipt, error => 'only the first time') FROM msgq.receive('work');
SELECT msgq.nack_batch('work', array_agg(receipt)) FROM msgq.receive('work');
SELECT * FROM pg_temp.deaths('work.dead') WHERE body = '"last error"';

-- Leases that run out count; the next claim gives the message up, and delivers the one behind it.
SELECT msgq.send('work', '"lease"');
SELECT failures FROM msgq.receive('work');
SET msgq.test_clock_offset = 11000;
SELECT failures FROM msgq.receive('work');
SELECT msgq.send('work', '"behind"');
SET msgq.test_clock_offset = 22000;
SELECT body, failures FROM msgq.receive('work', 10);
SELECT * FROM pg_temp.deaths('work.dead') WHERE body = '"lease"';
RESET msgq.test_clock_offset;
SELECT msgq.purge('work');

-- Released messages were not failed, however often.
SELECT msgq.send('work', '"release"');
DO $$
BEGIN
	FOR i IN 1 .. 5 LOOP
		PERFORM msgq.release('work', receipt) FROM msgq.receive('work');
	END LOOP;
END
$$;
SELECT deliveries, failures FROM msgq.pop('work');

-- reject
SELECT msgq.send_batch('work', ARRAY['"reject"', '"reject too"']::jsonb[]);
SELECT receipt AS one FROM msgq.receive('work') \gset
SELECT receipt AS two FROM msgq.receive('work') \gset
SELECT msgq.reject('work', :'one', 'cannot be read'), msgq.reject('work', :'one'), msgq.ack('work', :'one');
SELECT msgq.reject_batch('work', ARRAY[:'one', :'two', :'two']::uuid[], repeat('é', 600)) = ARRAY[:'one']::uuid[] AS stale;
SELECT msgq.reject('work', :'one', strict => true);
SELECT body, reason, count, octet_length(error) FROM pg_temp.deaths('work.dead') WHERE body::text LIKE '"reject%';
-- A rollback leaves all as it was.
SELECT msgq.send('work', '"rollback"');
SELECT receipt FROM msgq.receive('work') \gset
BEGIN;
SELECT msgq.reject('work', :'receipt');
SELECT count(*) FROM pg_temp.deaths('work.dead') WHERE body = '"rollback"';
ROLLBACK;
SELECT count(*) FROM pg_temp.deaths('work.dead') WHERE body = '"rollback"';
SELECT msgq.ack('work', :'receipt');

-- Redrive: what it would do, filters, limits; the id comes back, counters start again, the history stays.
SELECT body, reason FROM pg_temp.deaths('work.dead');
SELECT msgq.redrive('work.dead', dry_run => true) AS all,
	msgq.redrive('work.dead', dry_run => true, max_messages => 2) AS two,
	msgq.redrive('work.dead', dry_run => true, max_messages => 0) AS none,
	msgq.redrive('work.dead', dry_run => true, filter => '$.headers.trace == 7') AS predicate,
	msgq.redrive('work.dead', dry_run => true, filter => '$.headers.trace') AS path,
	msgq.redrive('work.dead', dry_run => true, filter => '$.body ? (@ starts with "rej")') AS filtered,
	msgq.redrive('work.dead', dry_run => true, filter => '$.headers."msgq-death"[0].reason == "rejected"') AS reason,
	msgq.redrive('work.dead', dry_run => true, filter => '$.body.no.such.thing') AS nothing;
SELECT msgq.redrive('work.dead', filter => '$.headers.trace == 7');
SELECT * FROM pg_temp.deaths('work');
SELECT deliveries, failures, visible_at <= clock_timestamp() AS due FROM msgq.peek('work');
SELECT msgq.reject('work', receipt, 'still bad') FROM msgq.receive('work');
SELECT msgq.redrive('work.dead', filter => '$.headers.trace == 7');
SELECT msgq.reject('work', receipt, 'bad again') FROM msgq.receive('work');
SELECT * FROM pg_temp.deaths('work.dead') WHERE headers IS NOT NULL;
-- To another queue: a new id.
SELECT msgq.create_queue('other', dead_letter_queue => '');
SELECT msgq.redrive('work.dead', 'other', filter => '$.headers.trace == 7');
SELECT id, body, visible_at FROM msgq.peek('other');
-- What is in flight stays.
SELECT count(*) FROM msgq.receive('work.dead');
SELECT msgq.redrive('work.dead', 'other'), count(*) AS left FROM msgq.peek('work.dead');
SELECT msgq.send('work.dead', '"no dead letter"');
SELECT msgq.redrive('work.dead');
SELECT msgq.redrive('work.dead', 'work.dead');
SELECT msgq.redrive('work.dead', 'nowhere');
SELECT msgq.redrive('work.dead', max_messages => -1);
SELECT msgq.redrive('work.dead', 'other', filter => '$.body == "no dead letter"');
-- Where a queue of that name was made anew, the id is another's.
SELECT msgq.purge('work.dead'), msgq.purge('other');
SELECT msgq.send('work', '1');
SELECT msgq.reject('work', receipt) FROM msgq.receive('work');
SELECT msgq.drop_queue('work');
SELECT msgq.redrive('work.dead');
SELECT msgq.create_queue('work');
SELECT msgq.send('work', '2');
SELECT msgq.redrive('work.dead');
SELECT id, body FROM msgq.peek('work');

-- The totals, which are NULL without shared memory: what was redriven was sent back, and is settled in the dead-letter queue.
SELECT msgq.reject('work', receipt) FROM msgq.receive('work');
SELECT queue, ready, sent_total IS NULL OR
	ARRAY[sent_total, redriven_total, acked_total, dead_lettered_total] =
	CASE queue WHEN 'work' THEN '{1,1,0,1}' ELSE '{10,0,8,0}'::bigint[] END AS counted
FROM msgq.queue_stats WHERE queue IN ('work', 'work.dead') ORDER BY queue;

-- Without a dead-letter queue the message is dropped, and counted.
SELECT msgq.create_queue('none', dead_letter_queue => '', max_deliveries => 1);
SELECT msgq.send_batch('none', '{1,2}');
SELECT msgq.nack('none', receipt) FROM msgq.receive('none');
SELECT msgq.reject('none', receipt) FROM msgq.receive('none');
SELECT ready, dropped_total IS NULL OR (dropped_total, dead_lettered_total) = (2, 0) AS counted
FROM msgq.queue_stats WHERE queue = 'none';
SELECT count(*) FROM msgq.peek('none');

-- health() tells.
SELECT status, detail FROM msgq.health() WHERE check_name = 'dead_letters';

-- The worker gives up what nobody meets.
SELECT msgq.create_queue('swept', max_deliveries => 1, visibility_timeout => '1 s');
SELECT msgq.send_batch('swept', '{1,2,3}');
SELECT count(*) FROM msgq.receive('swept');
SELECT count(*) FROM msgq.receive('swept', visibility_timeout => '1 h');
SET msgq.test_clock_offset = 2000;
SELECT msgq.maintain()->'given_up' AS given_up;
SELECT body, reason FROM pg_temp.deaths('swept.dead');
RESET msgq.test_clock_offset;

-- Large bodies go along.
SELECT msgq.send('swept', to_jsonb(string_agg(md5(i::text), ''))) FROM generate_series(1, 3000) i;
SELECT msgq.purge('swept.dead');
SELECT msgq.reject('swept', receipt) FROM msgq.receive('swept', 10);
SELECT id, length(body::text), md5(body #>> '{}') = (SELECT md5(string_agg(md5(i::text), '')) FROM generate_series(1, 3000) i) AS whole
FROM msgq.peek('swept.dead');

-- Chains are allowed, cycles are not.
SELECT msgq.create_queue('first', dead_letter_queue => 'nowhere');
SELECT msgq.create_queue('last', dead_letter_queue => '');
SELECT msgq.create_queue('middle', dead_letter_queue => 'last', max_deliveries => 1);
SELECT msgq.create_queue('first', dead_letter_queue => 'middle', max_deliveries => 1);
SELECT msgq.alter_queue('last', '{"dead_letter_queue": "first"}');
SELECT msgq.alter_queue('last', '{"dead_letter_queue": "last"}');
SELECT msgq.send('first', '"down the chain"');
SELECT msgq.reject('first', receipt, 'one') FROM msgq.receive('first');
SELECT msgq.reject('middle', receipt, 'two') FROM msgq.receive('middle');
SELECT * FROM pg_temp.deaths('last');
SELECT msgq.redrive('last');
SELECT * FROM pg_temp.deaths('middle');
-- From there it goes to where it came from first.
SELECT msgq.redrive('middle');
SELECT msgq.redrive('middle');
SELECT id, body FROM msgq.peek('first');
-- A queue that takes dead letters cannot be dropped; those who name it follow its name.
SELECT msgq.drop_queue('middle');
SELECT msgq.rename_queue('middle', 'mezzanine');
SELECT settings->>'dead_letter_queue' FROM msgq.queues WHERE name = 'first';
SELECT msgq.alter_queue('first', '{"dead_letter_queue": null}');
SELECT msgq.drop_queue('mezzanine');
SELECT name FROM msgq.queues WHERE name LIKE 'first%' ORDER BY name;
-- One that is there is used, if one may send to it.
SELECT msgq.create_queue('taken.dead', dead_letter_queue => '');
SELECT msgq.create_queue('taken');
SELECT msgq.create_queue('taken', if_not_exists => true);
SELECT msgq.create_queue('taken', dead_letter_queue => '', if_not_exists => true);
CREATE ROLE regress_msgq_maker;
GRANT CREATE ON SCHEMA msgq TO regress_msgq_maker;
SET ROLE regress_msgq_maker;
SELECT msgq.create_queue('mine', dead_letter_queue => 'taken.dead');
RESET ROLE;
SELECT msgq.grant('taken.dead', 'regress_msgq_maker', 'send');
SELECT msgq.grant('taken', 'regress_msgq_maker', 'receive');
SET ROLE regress_msgq_maker;
SELECT msgq.create_queue('mine', dead_letter_queue => 'taken.dead');
-- Nobody needs a right on it for a message to go there, but for taking it out.
RESET ROLE;
SELECT msgq.revoke('taken.dead', 'regress_msgq_maker', 'send');
SELECT msgq.send('taken', '1');
SET ROLE regress_msgq_maker;
SELECT msgq.reject('taken', receipt) FROM msgq.receive('taken');
SELECT msgq.redrive('taken.dead');
SELECT msgq.alter_queue('mine', '{"retry_delay": "1 s"}');
SELECT msgq.drop_queue('mine');
RESET ROLE;
SELECT msgq.grant('taken.dead', 'regress_msgq_maker', 'manage');
SET ROLE regress_msgq_maker;
SELECT msgq.redrive('taken.dead');
RESET ROLE;
SELECT count(*) FROM msgq.peek('taken.dead');

-- A queue that has got the name of another one may have the same id.
SELECT msgq.create_queue('name', dead_letter_queue => 'taken.dead');
SELECT msgq.create_queue('namesake', dead_letter_queue => '');
SELECT msgq.send('namesake', '"namesake"');
SELECT msgq.send('name', '"name"');
SELECT msgq.reject('name', receipt) FROM msgq.receive('name');
SELECT msgq.rename_queue('name', 'old name'), msgq.rename_queue('namesake', 'name');
SELECT msgq.redrive('taken.dead', filter => '$.body == "name"');
SELECT id, body FROM msgq.peek('name');
-- A comparison of what cannot be compared is not true; what is found may be.
SELECT msgq.redrive('taken.dead', filter => '$.body > "a"', dry_run => true), msgq.redrive('taken.dead', filter => '$.body', dry_run => true);

-- A paused queue takes nothing back.
SELECT msgq.send('old name', '"paused"');
SELECT msgq.reject('old name', receipt) FROM msgq.receive('old name');
SELECT msgq.pause('old name', 'send');
SELECT msgq.redrive('taken.dead', filter => '$.body == "paused"');
SELECT msgq.resume('old name', 'send');
SELECT msgq.redrive('taken.dead', filter => '$.body == "paused"');

-- One receive gives up 100 at most, and delivers what is behind them.
SELECT msgq.create_queue('many', max_deliveries => 1, visibility_timeout => '10 s');
SELECT count(*) FROM unnest(msgq.send_batch('many', array_fill('1'::jsonb, ARRAY[250])));
SELECT count(*) FROM msgq.receive('many', 250);
SET msgq.test_clock_offset = 11000;
SELECT msgq.send('many', '"behind"');
SELECT body FROM msgq.receive('many');
SELECT count(*) FROM msgq.peek('many.dead', 1000);
SELECT body FROM msgq.receive('many');
SELECT body FROM msgq.receive('many');
SELECT count(*) FROM msgq.peek('many.dead', 1000);
SELECT body FROM msgq.peek('many', 1000);
RESET msgq.test_clock_offset;

-- Names: 58 bytes and ".dead" make 63.
SELECT msgq.create_queue(repeat('n', 59));
SELECT msgq.create_queue(repeat('n', 58));
SELECT msgq.drop_queue(repeat('n', 58));

SELECT msgq.drop_queue(name) FROM unnest('{work,other,none,swept,first,last,taken,name,old name,many}'::text[]) WITH ORDINALITY AS q(name, n) ORDER BY n;
SELECT msgq.drop_queue(name) FROM unnest('{work.dead,swept.dead,taken.dead,many.dead}'::text[]) WITH ORDINALITY AS q(name, n) ORDER BY n;
REVOKE CREATE ON SCHEMA msgq FROM regress_msgq_maker;
DROP ROLE regress_msgq_maker;
