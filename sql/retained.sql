-- The last message of each routing key, for targets that are bound later.
SET client_min_messages = warning;
SELECT msgq.create_topic('news', on_unroutable => 'drop');
SELECT id, format('msgq.t%s_1', id) AS log1, format('msgq.t%s_2', id) AS log2
FROM msgq.topics WHERE name = 'news' \gset
SELECT msgq.create_queue('all', dead_letter_queue => '', priorities => 3);
SELECT msgq.create_queue('some', dead_letter_queue => '');
SELECT msgq.create_stream('log');
CREATE FUNCTION came(queue text) RETURNS TABLE (routing_key text, retained boolean, headers jsonb, body jsonb, data bytea)
LANGUAGE sql AS $$
	SELECT headers->>'msgq-routing-key', headers ? 'msgq-retained',
		headers - '{msgq-topic,msgq-routing-key,msgq-retained}'::text[], body, data
	FROM msgq.peek(queue, 1000)
$$;

-- Nobody is bound, and yet it is kept.
SELECT msgq.publish('news', 'eu.de', '1'), msgq.publish('news', 'eu.de', '2', '{"h": 1}'),
	msgq.publish('news', 'eu.fr', '{"n": 3}'), msgq.publish('news', 'us.ny', '4'),
	msgq.publish_bytes('news', 'us.la', '\x05'), msgq.publish('news', '', '6');
SELECT msgq.bind('news', 'all', retained => true) > 0 AS bound;
SELECT * FROM came('all');
-- The same binding again gets nothing again.
SELECT msgq.purge('all');
SELECT msgq.bind('news', 'all', retained => true) > 0 AS bound;
SELECT * FROM came('all');
SELECT topic, target, retained FROM msgq.bindings;
-- A binding gets what it takes.
SELECT msgq.bind('news', 'some', 'eu.#', '{"h": 1}', retained => true) > 0 AS bound;
SELECT * FROM came('some');
SELECT msgq.bind('news', 'some', 'eu.*', filter => '$.body.n == 3', retained => true) > 0 AS bound;
SELECT * FROM came('some');
SELECT msgq.bind('news', 'some', 'none', retained => true) > 0 AS bound;
SELECT msgq.bind('news', 'log', 'us.*', retained => true) > 0 AS bound;
CALL msgq.sequence('log');
SELECT key, headers ? 'msgq-retained' AS retained, body, data FROM msgq.scan('log', 0, 1, 10);
-- Without retained it gets nothing.
SELECT msgq.purge('all'), msgq.purge('some');
SELECT msgq.unbind('news', 'all');
SELECT msgq.bind('news', 'all') > 0 AS bound;
SELECT count(*) FROM came('all');

-- What clears it: the JSON value null, and no bytes.
SELECT msgq.publish('news', 'eu.de', 'null'), msgq.publish_bytes('news', 'us.la', '');
SELECT msgq.purge('all');
SELECT msgq.unbind('news', 'all');
SELECT msgq.bind('news', 'all', retained => true) > 0 AS bound;
SELECT * FROM came('all');

-- Undone is not published.
SELECT msgq.purge('all');
SELECT msgq.unbind('news', 'all');
BEGIN;
SELECT msgq.publish('news', 'us.ny', '"undone"');
ROLLBACK;
BEGIN;
SELECT msgq.publish('news', 'eu.fr', '7');
SAVEPOINT a;
SELECT msgq.publish('news', 'eu.fr', '"undone"');
ROLLBACK TO a;
-- In the same transaction, too.
SELECT msgq.bind('news', 'all', retained => true) > 0 AS bound;
SELECT * FROM came('all');
ROLLBACK;
SELECT count(*) FROM msgq.bindings WHERE target = 'all';

-- What a message carries: priority, group, its time to live and its delay.
SELECT msgq.publish('news', 'carries', '8', priority => 2, group_key => 'g', delay => '1 h', ttl => '2 h');
SELECT msgq.bind('news', 'all', 'carries', retained => true) > 0 AS bound;
SELECT priority, group_key, visible_at > now() + '59 min' AS delayed,
	expires_at BETWEEN now() + '119 min' AND now() + '120 min' AS expires, body FROM msgq.peek('all');
SELECT msgq.purge('all');
-- A stream can hold nothing back.
SELECT msgq.bind('news', 'log', 'carries', retained => true) > 0 AS bound;
CALL msgq.sequence('log');
SELECT count(*) FROM msgq.scan('log', 0, 1, 10) WHERE key = 'carries';
-- What has expired is not delivered.
SELECT msgq.publish('news', 'expired', '9', ttl => '0');
SELECT msgq.bind('news', 'all', 'expired', retained => true) > 0 AS bound;
SELECT count(*) FROM msgq.peek('all');

-- A repeated message does not take the place of a later one.
SELECT msgq.create_queue('dedup', dead_letter_queue => '');
SELECT msgq.bind('news', 'dedup', 'd') > 0 AS bound;
SELECT msgq.publish('news', 'd', '"first"', idempotency_key => 'k');
SELECT msgq.publish('news', 'd', '"second"');
SELECT msgq.publish('news', 'd', '"first"', idempotency_key => 'k');
SELECT msgq.bind('news', 'all', 'd', retained => true) > 0 AS bound;
SELECT body FROM msgq.peek('all');
SELECT msgq.purge('all');

SELECT msgq.publish('news', 'd', '"third"', idempotency_key => 'l'), msgq.publish('news', 'd', '"fourth"');
SELECT msgq.bind('news', 'some', 'd') > 0 AS bound;
SELECT msgq.publish('news', 'd', '"third"', idempotency_key => 'l');
SELECT msgq.unbind('news', 'all', 'd');
SELECT msgq.purge('all'), msgq.purge('some');
SELECT msgq.bind('news', 'all', 'd', retained => true) > 0 AS bound;
SELECT body FROM msgq.peek('all');
SELECT msgq.purge('all');

-- Its conditions are those that it had when it was published.
SELECT msgq.publish('news', 'plain', '1'), msgq.publish('news', 'empty', '2', '{}'), msgq.publish('news', 'full', '3', '{"a": 1}');
SELECT msgq.bind('news', 'all', filter => '$.headers == null', retained => true) > 0 AS bound;
SELECT routing_key FROM came('all');
SELECT msgq.purge('all');
SELECT msgq.bind('news', 'all', filter => 'exists($.headers."msgq-topic")', retained => true) > 0 AS bound;
SELECT routing_key FROM came('all');
SELECT msgq.bind('news', 'all', header_match => '{"msgq-topic": null}', retained => true) > 0 AS bound;
SELECT routing_key FROM came('all');
SELECT msgq.bind('news', 'all', header_match => '{"a": 1}', retained => true) > 0 AS bound;
SELECT routing_key FROM came('all');
SELECT msgq.purge('all');
SELECT msgq.unbind('news', 'all', filter => '$.headers == null'), msgq.unbind('news', 'all', header_match => '{"a": 1}');

-- Topics behind the topic keep it as well.
SELECT msgq.create_topic('behind');
SELECT msgq.bind('news', 'behind', 'b.#') > 0 AS bound;
SELECT msgq.publish('news', 'b.1', '10');
SELECT msgq.alter_topic('behind', '{"on_unroutable": "drop"}');
SELECT msgq.publish('news', 'b.1', '10'), msgq.publish('news', 'c.1', '11');
SELECT msgq.bind('behind', 'all', retained => true) > 0 AS bound;
SELECT body FROM msgq.peek('all');
SELECT msgq.bind('news', 'behind', retained => true);
SELECT msgq.purge('all');

-- The target's limits hold, and nothing is done then.
SELECT msgq.alter_queue('some', '{"max_length": 1}');
SELECT msgq.bind('news', 'some', '#', retained => true);
SELECT count(*) FROM msgq.bindings WHERE target = 'some' AND pattern = '#';
SELECT count(*) FROM msgq.peek('some');

-- A topic that does not retain messages.
SELECT msgq.alter_topic('behind', '{"retain": false}');
SELECT msgq.unbind('behind', 'all');
SELECT msgq.bind('behind', 'all', retained => true);
SELECT msgq.publish('behind', 'b.2', '12');
SELECT msgq.alter_topic('behind', '{"retain": true}');
SELECT msgq.bind('behind', 'all', retained => true) > 0 AS bound;
SELECT count(*) FROM msgq.peek('all');

-- The log turns when it has grown, and the last messages stay.  A clearing
-- message that has nothing to clear goes.
SELECT msgq.purge('all');
SELECT msgq.unbind('behind', 'all'), msgq.drop_topic('behind');
SELECT msgq.alter_topic('news', '{"max_retained": 5}');
SELECT count(*) FROM generate_series(1, 9000) AS i,
	LATERAL (SELECT msgq.publish('news', 'k.' || i % 10, to_jsonb(i || repeat('x', 1800)))) AS p;
SELECT msgq.publish('news', 'k.' || i, 'null') FROM generate_series(8, 9) AS i;
SELECT pg_relation_size(:'log1') > 16 * 1024 * 1024 AS large;
SELECT msgq.maintain()->'rotated' AS rotated;
SELECT log FROM msgq.topic WHERE id = :id;
-- Still to be had, before the old table is emptied and after.
SELECT msgq.bind('news', 'all', 'k.#', retained => true) > 0 AS bound;
SELECT headers->>'msgq-routing-key' AS routing_key, left(body #>> '{}', 4) AS body FROM msgq.peek('all', 100);
SELECT msgq.purge('all');
SELECT msgq.unbind('news', 'all', 'k.#');
SELECT msgq.publish('news', 'k.1', '"later"');
-- Who has locked the old table before the turn may take his number after it.
-- So a message there can be the last one, though the new table has another one.
INSERT INTO :log2 (routing_key, id, published_at, priority, has_headers, body) VALUES ('k.race', 1, now(), 0, false, '"cleared"');
INSERT INTO :log1 (routing_key, id, published_at, priority, has_headers, body) VALUES ('k.race', 2, now(), 0, false, 'null');
SELECT msgq.maintain()->'failed' AS failed;
SELECT count(*) FROM :log1;
-- The rows are gone; the table is emptied when nobody can see them any more.
SELECT msgq.maintain()->'failed' AS failed;
SELECT routing_key, left(body #>> '{}', 4) AS body FROM :log2 WHERE routing_key ^@ 'k.' ORDER BY id;
SELECT pg_relation_size(:'log1') AS bytes, log_bytes > 0 AS has_size FROM msgq.topic WHERE id = :id;
SELECT msgq.bind('news', 'all', 'k.#', retained => true) > 0 AS bound;
SELECT headers->>'msgq-routing-key' AS routing_key, left(body #>> '{}', 5) AS body FROM msgq.peek('all', 100);

SELECT msgq.drop_topic('news');
SELECT msgq.drop_queue(name) FROM msgq.queues WHERE name IN ('all', 'some', 'dedup');
SELECT msgq.drop_stream('log');
DROP FUNCTION came;
