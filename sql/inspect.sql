--
-- Looking at a queue without changing it, and the few ways to interfere:
-- cancel, expire_lease and purge.
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

SELECT msgq.create_queue('inspect');
SELECT format('msgq.q%s', id) AS handle, format('msgq.q%s_1', id) AS segment
FROM msgq.queues WHERE name = 'inspect' \gset

--
-- peek: all states, in the order of the ids
--
SELECT * FROM msgq.peek('inspect');
SELECT cardinality(msgq.send_batch('inspect', '{1,2,3}', '{"{\"h\": 1}",NULL,NULL}'));
SELECT msgq.send('inspect', '"delayed"', delay => '1 h');
SELECT msgq.send_bytes('inspect', '\x05');
SELECT body FROM msgq.receive('inspect', 1, '1 h');
SELECT msgq.nack('inspect', receipt, '1 h') FROM msgq.receive('inspect');
SELECT id, receipt, deliveries, failures, visible_at > clock_timestamp() AS invisible, headers, body, data
FROM msgq.peek('inspect');
SELECT id FROM msgq.peek('inspect', 2);
SELECT id FROM msgq.peek('inspect', 2, 2);
SELECT id FROM msgq.peek('inspect', after_id => 4);
SELECT id FROM msgq.peek('inspect', after_id => 5);
SELECT count(*) FROM msgq.peek('inspect', 10000, -9223372036854775808);
SELECT count(*) FROM msgq.peek('inspect', 10000, 9223372036854775807);
-- It changed nothing.
SELECT id, deliveries, failures FROM msgq.peek('inspect');

-- The handle view shows the rows themselves, and nobody writes through it.
SELECT id, leased_at IS NOT NULL AS leased, deliveries, failures, priority, group_key, headers, body, data
FROM :handle ORDER BY id;
SELECT regexp_replace(pg_temp.raised('INSERT INTO ' || :'handle' || ' (id) VALUES (1)'), '\mq\d+', 'qN', 'g');
SELECT regexp_replace(pg_temp.raised('UPDATE ' || :'handle' || ' SET failures = 0'), '\mq\d+', 'qN', 'g');
SELECT regexp_replace(pg_temp.raised('DELETE FROM ' || :'handle'), '\mq\d+', 'qN', 'g');

--
-- Statistics and leases
--
SELECT queue, ready, delayed, in_flight, oldest_ready_age BETWEEN '0' AND '1 min' AS young,
	size_bytes > 0 AS has_size, segments
FROM msgq.queue_stats WHERE queue = 'inspect';
SELECT queue, id, leased_at BETWEEN now() - interval '1 min' AND clock_timestamp() AS just_now,
	visible_at - leased_at AS for_how_long, deliveries, failures
FROM msgq.leases WHERE queue = 'inspect';
-- A lease that has ended is none; its message is ready.
SELECT body FROM msgq.receive('inspect', 1, '0');
SELECT pg_sleep(0.01) \gset
SELECT ready, delayed, in_flight FROM msgq.queue_stats WHERE queue = 'inspect';
SELECT count(*) FROM msgq.leases WHERE queue = 'inspect';
SELECT msgq.purge('inspect');
SELECT ready, delayed, in_flight, oldest_ready_age FROM msgq.queue_stats WHERE queue = 'inspect';
-- The age is that of the oldest message that could be had now.
SELECT msgq.send('inspect', '1', delay => '20 ms') \gset
SELECT pg_sleep(0.05) \gset
SELECT msgq.send('inspect', '2') \gset
SELECT ready, oldest_ready_age > '40 ms' AS oldest_ready_age FROM msgq.queue_stats WHERE queue = 'inspect';
SELECT msgq.purge('inspect');

--
-- Why a receive returns nothing
--
SELECT msgq.why_empty('inspect');
SELECT msgq.send('inspect', '"delayed"', delay => '1 h') \gset
SELECT msgq.why_empty('inspect');
SELECT msgq.send('inspect', '1') AS id \gset
SELECT msgq.why_empty('inspect');
SELECT receipt FROM msgq.receive('inspect') \gset
SELECT msgq.why_empty('inspect');
SELECT msgq.extend('inspect', :'receipt', '0');
SELECT pg_sleep(0.01) \gset
SELECT msgq.why_empty('inspect');
SELECT msgq.nack('inspect', :'receipt', '1 h');
SELECT msgq.why_empty('inspect');
SELECT msgq.purge('inspect');
SELECT msgq.why_empty('inspect');
-- The transaction's own doings count.
BEGIN;
SELECT msgq.send('inspect', '1') \gset
SELECT msgq.why_empty('inspect');
SELECT body FROM msgq.receive('inspect');
SELECT msgq.why_empty('inspect');
ROLLBACK;
SELECT msgq.why_empty('inspect');

--
-- cancel: what is not in flight
--
SELECT msgq.send('inspect', '"ready"') AS ready \gset
SELECT msgq.send('inspect', '"delayed"', delay => '1 h') AS delayed \gset
SELECT msgq.send('inspect', '"leased"') AS leased \gset
SELECT msgq.send('inspect', '"nacked"') AS nacked \gset
SELECT msgq.send('inspect', '"ended"') AS ended \gset
SELECT msgq.send('inspect', '"stays"') AS stays \gset
CREATE TEMP TABLE got AS SELECT * FROM msgq.receive('inspect', 5, '1 h');
SELECT msgq.nack('inspect', receipt, '1 h') FROM got WHERE id = :nacked;
SELECT msgq.extend('inspect', receipt, '0') FROM got WHERE id = :ended;
SELECT msgq.release('inspect', receipt) FROM got WHERE id = :ready;
SELECT msgq.release('inspect', receipt) FROM got WHERE id = :stays;
SELECT pg_sleep(0.01) \gset
SELECT msgq.cancel('inspect', :ready) AS ready, msgq.cancel('inspect', :delayed) AS delayed,
	msgq.cancel('inspect', :leased) AS leased, msgq.cancel('inspect', :nacked) AS nacked,
	msgq.cancel('inspect', :ended) AS ended;
SELECT msgq.cancel('inspect', :ready) AS twice, msgq.cancel('inspect', 0) AS zero,
	msgq.cancel('inspect', -1) AS negative, msgq.cancel('inspect', 9223372036854775807) AS huge;
SELECT body FROM msgq.peek('inspect');
-- The receipt of a message whose lease had ended is stale now.
SELECT msgq.ack('inspect', receipt) FROM got WHERE id = :ended;
BEGIN;
SELECT msgq.cancel('inspect', :stays);
SELECT msgq.cancel('inspect', :stays) AS again;
ROLLBACK;
SELECT msgq.cancel('inspect', :stays);

--
-- expire_lease: what is in flight
--
SELECT msgq.expire_lease('inspect', :leased);
SELECT msgq.expire_lease('inspect', :leased) AS again;
SELECT msgq.ack('inspect', receipt) FROM got WHERE id = :leased;
SELECT deliveries, failures FROM msgq.peek('inspect');
SELECT msgq.why_empty('inspect');
SELECT deliveries, failures, body FROM msgq.receive('inspect', 1, '0');
SELECT pg_sleep(0.01) \gset
SELECT msgq.expire_lease('inspect', :leased) AS lease_has_ended,
	msgq.expire_lease('inspect', :ready) AS gone, msgq.expire_lease('inspect', -1) AS negative;
SELECT deliveries, failures FROM msgq.receive('inspect');
SELECT msgq.send('inspect', '1') AS id \gset
SELECT msgq.expire_lease('inspect', :id) AS never_leased;
DROP TABLE got;

--
-- purge: everything
--
SELECT msgq.send('inspect', '"delayed"', delay => '1 h') \gset
SELECT receipt FROM msgq.receive('inspect') \gset
SELECT count(*) FROM msgq.peek('inspect');
SELECT msgq.purge('inspect');
SELECT msgq.ack('inspect', :'receipt');
SELECT count(*) FROM :segment;
SELECT msgq.purge('inspect');
-- The queue goes on as before, with new ids.
SELECT msgq.send('inspect', '"after"') > :id AS new_id;
SELECT body FROM msgq.receive('inspect');

-- Looking works in a read-only transaction, the rest does not.
BEGIN READ ONLY;
SELECT body FROM msgq.peek('inspect');
SELECT msgq.why_empty('inspect');
SELECT in_flight FROM msgq.queue_stats WHERE queue = 'inspect';
SELECT count(*) FROM msgq.leases WHERE queue = 'inspect';
SELECT count(*) FROM :handle;
\pset format unaligned
SELECT statement, pg_temp.raised('SELECT msgq.' || statement) FROM (VALUES
	(1, $$cancel('inspect', 1)$$),
	(2, $$expire_lease('inspect', 1)$$),
	(3, $$purge('inspect')$$)
) AS v(n, statement) ORDER BY n;
COMMIT;

SELECT statement, pg_temp.raised('SELECT msgq.' || statement) FROM (VALUES
	(1, $$peek('nowhere')$$),
	(2, $$why_empty('nowhere')$$),
	(3, $$cancel('nowhere', 1)$$),
	(4, $$expire_lease('nowhere', 1)$$),
	(5, $$purge('nowhere')$$)
) AS v(n, statement) ORDER BY n;

SELECT msgq.drop_queue('inspect');
