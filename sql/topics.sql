-- Topics: making them, bindings, publishing, routes.
SET client_min_messages = warning;
SELECT msgq.create_topic('orders');
SELECT msgq.create_queue('all', dead_letter_queue => '');
SELECT msgq.create_queue('eu', dead_letter_queue => '');
SELECT msgq.create_queue('created', dead_letter_queue => '', priorities => 3);
SELECT msgq.create_stream('log');

SELECT name, kind, on_unroutable, alternate, retain, max_retained FROM msgq.topics;

-- What came, without what differs from run to run.
CREATE VIEW came AS
	SELECT 'all' AS target, headers->>'msgq-topic' AS topic,
		headers->>'msgq-routing-key' AS routing_key,
		headers - '{msgq-topic,msgq-routing-key}'::text[] AS headers, body, data
	FROM msgq.peek('all', 100)
	UNION ALL SELECT 'eu', headers->>'msgq-topic', headers->>'msgq-routing-key',
		headers - '{msgq-topic,msgq-routing-key}'::text[], body, data
	FROM msgq.peek('eu', 100)
	UNION ALL SELECT 'created', headers->>'msgq-topic', headers->>'msgq-routing-key',
		headers - '{msgq-topic,msgq-routing-key}'::text[], body, data
	FROM msgq.peek('created', 100);
CREATE FUNCTION clear() RETURNS void LANGUAGE sql AS $$
	SELECT msgq.purge('all'); SELECT msgq.purge('eu'); SELECT msgq.purge('created');
	SELECT
$$;

-- Without a binding nothing can be published, unless it may be dropped.
SELECT msgq.publish('orders', 'eu.created', '1');
SELECT msgq.alter_topic('orders', '{"on_unroutable": "drop"}');
SELECT msgq.publish('orders', 'eu.created', '1');
SELECT msgq.alter_topic('orders', '{"on_unroutable": "error"}');

-- Bindings.
SELECT msgq.bind('orders', 'all') > 0 AS bound;
SELECT msgq.bind('orders', 'eu', 'eu.#') > 0 AS bound;
SELECT msgq.bind('orders', 'eu', '*.paid') > 0 AS bound;
SELECT msgq.bind('orders', 'created', '*.created', filter => '$.body.total > 100') > 0 AS bound;
SELECT msgq.bind('orders', 'log', '#') > 0 AS bound;
-- The same one again is the same one.
SELECT msgq.bind('orders', 'eu', 'eu.#') = (SELECT binding FROM msgq.bindings WHERE pattern = 'eu.#') AS same;
SELECT topic, target, target_kind, pattern, header_match, filter, retained FROM msgq.bindings ORDER BY binding;

-- Each target once, however many of its bindings match.
SELECT msgq.publish('orders', 'eu.paid', '{"n": 1}', '{"a": 1}');
SELECT msgq.publish('orders', 'us.created', '{"n": 2, "total": 99}');
SELECT msgq.publish('orders', 'us.created', '{"n": 3, "total": 101}');
SELECT msgq.publish('orders', '', '{"n": 4}');
SELECT msgq.publish_bytes('orders', 'eu.x', '\x00ff', '{"a": 2}');
SELECT * FROM came ORDER BY target, body, data;
CALL msgq.sequence('log');
SELECT key, headers->>'msgq-routing-key' AS routing_key, body, data FROM msgq.scan('log', 0, 1, 100);

-- Why.
SELECT target, pattern, via, header_match, filter FROM msgq.route('orders', 'eu.paid') ORDER BY target, pattern;
SELECT target, pattern, filter FROM msgq.route('orders', 'us.created') ORDER BY target, pattern;
SELECT r.binding = b.binding AS same FROM msgq.route('orders', 'us.created') AS r JOIN msgq.bindings AS b USING (binding);

-- All of it or nothing.
SELECT clear();
BEGIN;
SELECT msgq.publish('orders', 'eu.paid', '1');
SAVEPOINT a;
SELECT msgq.publish('orders', 'eu.paid', '2');
ROLLBACK TO a;
COMMIT;
SELECT target, body FROM came ORDER BY 1, 2;
SELECT msgq.pause('eu', 'send');
SELECT msgq.publish('orders', 'eu.paid', '3');
SELECT msgq.resume('eu', 'send');
SELECT target, body FROM came ORDER BY 1, 2;

-- What a message carries.
SELECT clear();
SELECT msgq.unbind('orders', 'log', '#');
SELECT msgq.publish('orders', 'eu.created', '{"total": 1000}', delay => '1 h', priority => 2,
	group_key => 'g', ttl => '2 h', idempotency_key => 'k');
SELECT msgq.publish('orders', 'eu.created', '{"total": 1000}', delay => '1 h', priority => 2,
	group_key => 'g', ttl => '2 h', idempotency_key => 'k');
SELECT 'all' AS target, priority, group_key, visible_at > now() + '59 min' AS delayed,
	expires_at BETWEEN now() + '119 min' AND now() + '120 min' AS expires FROM msgq.peek('all')
UNION ALL SELECT 'created', priority, group_key, visible_at > now() + '59 min',
	expires_at BETWEEN now() + '119 min' AND now() + '120 min' FROM msgq.peek('created');
SELECT msgq.publish('orders', 'eu.created', '{"total": 1}', idempotency_key => 'k');
SELECT msgq.publish('orders', 'eu.created', '{"total": 1000}', priority => 99);
SELECT max(priority) FROM msgq.peek('created');
SELECT msgq.publish('orders', 'eu.created', '1', priority => -1);
SELECT msgq.publish('orders', 'eu.created', '1', delay => '1 s', deliver_at => now());
SELECT msgq.publish('orders', 'eu.created', '1', '{"msgq-topic": "x"}');
SELECT msgq.publish('orders', repeat('a', 256), '1');
SELECT msgq.publish('orders', NULL, '1');
SELECT msgq.publish('orders', 'a', NULL);
SELECT msgq.publish(NULL, 'a', '1');
SELECT msgq.publish('orders', 'a', '1', priority => NULL);
SELECT msgq.publish('none', 'a', '1');
SELECT msgq.publish('all', 'a', '1');

-- A stream: the group key is the key, no delay, and an idempotency key counts.
SELECT clear();
SELECT msgq.create_topic('to_stream', 'fanout');
SELECT msgq.bind('to_stream', 'log') > 0 AS bound;
SELECT msgq.publish('to_stream', 'rk', '"with group"', group_key => 'g', priority => 5, ttl => '1 h');
SELECT msgq.publish('to_stream', 'rk', '"once"', idempotency_key => 'k');
SELECT msgq.publish('to_stream', 'rk', '"once"', idempotency_key => 'k');
SELECT msgq.publish('to_stream', 'rk', '1', delay => '1 h');
CALL msgq.sequence('log');
SELECT key, body FROM msgq.scan('log', 0, 6, 100);

-- Kinds.
SELECT msgq.create_topic('d', 'direct');
SELECT msgq.bind('d', 'all');
SELECT msgq.bind('d', 'all', 'a.*') > 0 AS bound;
SELECT msgq.publish('d', 'a.*', '"exact"');
SELECT msgq.publish('d', 'a.b', '"not"');
SELECT msgq.create_topic('f', 'fanout');
SELECT msgq.bind('f', 'all', 'a');
SELECT msgq.bind('f', 'all') > 0 AS bound, msgq.bind('f', 'eu', filter => 'exists($.headers.a)') > 0 AS bound;
SELECT msgq.publish('f', 'whatever', '"fanout"');
SELECT msgq.publish('f', 'whatever', '"fanout"', '{"a": null}');
SELECT msgq.create_topic('h', 'headers', on_unroutable => 'drop');
SELECT msgq.bind('h', 'all');
SELECT msgq.bind('h', 'all', 'a', '{}');
SELECT msgq.bind('h', 'all', header_match => '[]');
SELECT msgq.bind('h', 'all', header_match => '{"x-match": "some"}');
SELECT msgq.bind('h', 'all', header_match => '{"format": "pdf", "pages": 2, "x-ignored": 1}') > 0 AS bound;
SELECT msgq.bind('h', 'eu', header_match => '{"x-match": "any", "format": "pdf", "urgent": null}') > 0 AS bound;
SELECT msgq.bind('h', 'created', header_match => '{"x-match": "all-with-x", "x-ignored": [1, 2]}') > 0 AS bound;
SELECT h, ARRAY(SELECT target FROM msgq.route('h', '', h) ORDER BY 1) AS targets,
	msgq.publish('h', '', to_jsonb('headers'::text), h)
FROM unnest('{"{}", "{\"format\": \"pdf\"}", "{\"format\": \"pdf\", \"pages\": 2.0}",
	"{\"format\": \"PDF\", \"pages\": 2}", "{\"urgent\": false}", "{\"x-ignored\": [1, 2]}",
	"{\"x-ignored\": [2, 1]}"}'::jsonb[]) AS h;
SELECT msgq.publish('h', '', '"none"');
SELECT target, topic, routing_key, body FROM came ORDER BY 1, 2, 3, 4;

-- Topics behind topics: the conditions of both count, and each target gets it once.
SELECT clear();
SELECT msgq.create_topic('t1'), msgq.create_topic('t2'), msgq.create_topic('t3');
SELECT msgq.bind('t1', 't2', 'a.#') > 0 AS bound, msgq.bind('t1', 't3', '#.z') > 0 AS bound,
	msgq.bind('t2', 'all', '#') > 0 AS bound, msgq.bind('t3', 'all', 'a.#') > 0 AS bound,
	msgq.bind('t3', 'eu', '#') > 0 AS bound;
SELECT msgq.publish('t1', 'a.z', '1'), msgq.publish('t1', 'a.b', '2'), msgq.publish('t1', 'b.z', '3');
SELECT target, topic, routing_key, body FROM came ORDER BY 1, 2, 3, 4;
SELECT via, target, pattern FROM msgq.route('t1', 'a.z') ORDER BY 1, 2, 3;
SELECT msgq.publish('t1', 'b', '4');
-- Not in a circle.
SELECT msgq.bind('t3', 't1');
SELECT msgq.bind('t1', 't1');
SELECT msgq.bind('t2', 't3') > 0 AS bound;
SELECT msgq.bind('t3', 't2');
SELECT msgq.alter_topic('t3', '{"on_unroutable": "alternate", "alternate": "t2"}');

-- Alternates.
SELECT clear();
SELECT msgq.create_topic('rest', 'fanout');
SELECT msgq.bind('rest', 'created') > 0 AS bound;
SELECT msgq.create_topic('a1', on_unroutable => 'alternate');
SELECT msgq.create_topic('a1', alternate => 'rest');
SELECT msgq.create_topic('a1', on_unroutable => 'alternate', alternate => 'none');
SELECT msgq.create_topic('a1', on_unroutable => 'alternate', alternate => 'rest');
SELECT msgq.bind('a1', 'all', 'known') > 0 AS bound;
SELECT msgq.publish('a1', 'known', '1'), msgq.publish('a1', 'unknown', '2');
SELECT target, topic, routing_key, body FROM came ORDER BY 1, 2, 3, 4;
SELECT via, target FROM msgq.route('a1', 'unknown');
-- The last topic decides.
SELECT msgq.unbind('rest', 'created');
SELECT msgq.publish('a1', 'unknown', '3');
SELECT msgq.alter_topic('rest', '{"on_unroutable": "drop"}');
SELECT msgq.publish('a1', 'unknown', '3');
SELECT msgq.bind('rest', 'a1');
SELECT msgq.drop_topic('rest');
SELECT name, on_unroutable, alternate FROM msgq.topics WHERE name IN ('a1', 'rest') ORDER BY 1;
SELECT msgq.alter_topic('a1', '{"alternate": null}');
SELECT msgq.alter_topic('a1', '{"alternate": null, "on_unroutable": "error"}');
SELECT msgq.drop_topic('rest');

-- A topic behind the topic that leads nowhere is no target.
SELECT msgq.create_topic('catch', 'fanout'), msgq.create_topic('nowhere', on_unroutable => 'drop');
SELECT msgq.bind('catch', 'created') > 0 AS bound;
SELECT msgq.alter_topic('a1', '{"on_unroutable": "alternate", "alternate": "catch"}');
SELECT msgq.bind('a1', 'nowhere', 'unknown') > 0 AS bound;
SELECT msgq.publish('a1', 'unknown', '4');
SELECT via, target FROM msgq.route('a1', 'unknown') ORDER BY 1, 2;
SELECT msgq.alter_topic('a1', '{"on_unroutable": "error", "alternate": null}');
SELECT msgq.publish('a1', 'unknown', '4');
SELECT msgq.drop_topic('catch'), msgq.drop_topic('nowhere');

-- Settings.
SELECT msgq.alter_topic('a1', '{"retain": false, "max_retained": 10}');
SELECT name, on_unroutable, retain, max_retained FROM msgq.topics WHERE name = 'a1';
SELECT msgq.alter_topic('a1', '{"max_retained": 0}');
SELECT msgq.alter_topic('a1', '{"max_retained": "x"}');
SELECT msgq.alter_topic('a1', '{"kind": "direct"}');
SELECT msgq.alter_topic('a1', '{"retain": null}');
SELECT msgq.alter_topic('a1', '{"retain": []}');
SELECT msgq.alter_topic('a1', '[]');
SELECT msgq.alter_topic('a1', NULL);
SELECT msgq.alter_topic('none', '{}');

-- Names.
SELECT msgq.create_topic('all');
SELECT msgq.create_topic('log');
SELECT msgq.create_topic('orders');
SELECT msgq.create_queue('orders');
SELECT msgq.create_queue('orders', if_not_exists => true);
SELECT msgq.create_stream('orders');
SELECT msgq.rename_queue('all', 'orders');
SELECT msgq.create_topic('');
SELECT msgq.create_topic(repeat('x', 64));
SELECT msgq.create_topic('x', 'regex');
SELECT msgq.create_topic('x', on_unroutable => 'ignore');
SELECT msgq.create_topic('x', kind => NULL);
SELECT msgq.bind('orders', 'none');
SELECT msgq.bind('none', 'all');
SELECT msgq.bind('orders', 'all', repeat('x', 256));
SELECT msgq.bind('orders', 'all', filter => '$.body.total > $x');
SELECT msgq.bind('orders', 'all', 'dollar', filter => '$.body.name like_regex "x$" || $.body."$x" == "\"$"') > 0 AS bound;
SELECT msgq.unbind('orders', 'all', 'dollar', filter => '$.body.name like_regex "x$" || $.body."$x" == "\"$"');
SELECT msgq.unbind('orders', 'all', 'not there');
SELECT msgq.unbind('orders', 'none');
SELECT msgq.drop_topic('none');
SELECT msgq.drop_topic('none', if_exists => true);

-- Nobody writes through a handle, and its rows are not for others' functions.
SELECT c.relname ~ '^[qst]', pg_relation_is_updatable(c.oid, true), count(*) > 2 AS some
FROM pg_class AS c WHERE relnamespace = 'msgq'::regnamespace AND relkind = 'v' AND relname ~ '^[qst]\d+$'
GROUP BY 1, 2;
SELECT DISTINCT reloptions FROM pg_class
WHERE relnamespace = 'msgq'::regnamespace AND relkind = 'v' AND relname ~ '^t\d+$';

-- Many changes in one transaction take no more memory than one.
BEGIN;
DO $$
BEGIN
	FOR i IN 1 .. 500 LOOP
		PERFORM msgq.bind('orders', 'all', 'many.' || i);
		PERFORM msgq.publish('orders', 'many.' || i, 'true');
		PERFORM msgq.unbind('orders', 'all', 'many.' || i);
	END LOOP;
END $$;
SELECT count(*) < 20 AS few FROM pg_backend_memory_contexts WHERE name = 'msgq topic';
COMMIT;

-- A queue keeps its bindings when it is renamed, and loses them when it is dropped.
SELECT msgq.rename_queue('eu', 'europe');
SELECT msgq.publish('orders', 'eu.paid', '1');
SELECT count(*) FROM msgq.bindings WHERE target = 'europe';
SELECT msgq.rename_queue('europe', 'eu');
SELECT msgq.drop_queue('eu');
SELECT msgq.publish('orders', 'eu.paid', '1');
SELECT count(*) FROM msgq.bindings WHERE target IS NULL OR target = 'eu';
SELECT msgq.drop_stream('log');
SELECT msgq.publish('to_stream', 'rk', '1');
SELECT msgq.drop_topic('t2'), msgq.drop_topic('t3');
SELECT msgq.publish('t1', 'a.z', '1');

-- A topic whose handle somebody has dropped, while we know it, can be dropped.
SELECT msgq.create_topic('broken', on_unroutable => 'drop');
SELECT msgq.publish('broken', 'a', '1');
SELECT format('msgq.t%s', id) AS handle FROM msgq.topics WHERE name = 'broken' \gset
DROP VIEW :handle;
\set VERBOSITY terse
SELECT msgq.publish('broken', 'a', '1');
SELECT msgq.bind('broken', 'all');
\set VERBOSITY default
SELECT msgq.drop_topic('broken');
SELECT msgq.publish('broken', 'a', '1');

-- All that is left goes with the topics.
SELECT msgq.drop_topic(name) FROM msgq.topics;
SELECT count(*) FROM msgq.binding;
SELECT count(*) FROM pg_class WHERE relnamespace = 'msgq'::regnamespace AND relname ~ '^t\d';
DROP VIEW came;
DROP FUNCTION clear;
SELECT msgq.drop_queue('all'), msgq.drop_queue('created');
