--
-- Trace context: the headers traceparent and tracestate, as any other, reach
-- whoever gets the message, by whatever way it comes.
--
CREATE FUNCTION pg_temp.trace() RETURNS jsonb IMMUTABLE LANGUAGE sql AS $$
	SELECT '{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"}'::jsonb
$$;
-- Is it there, with nothing else but what the server adds?
CREATE FUNCTION pg_temp.is_kept(headers jsonb) RETURNS boolean LANGUAGE sql AS $$
	SELECT jsonb_object_agg(key, value) = pg_temp.trace() FROM jsonb_each(headers) WHERE NOT starts_with(key, 'msgq-')
$$;
-- What has come to a queue, which is then emptied: number of messages, and of those that have it.
CREATE FUNCTION pg_temp.came(queue text, OUT messages bigint, OUT kept bigint, OUT added text) LANGUAGE plpgsql AS $$
BEGIN
	SELECT count(*), count(*) FILTER (WHERE pg_temp.is_kept(headers)) INTO messages, kept FROM msgq.peek(queue, 100);
	SELECT string_agg(DISTINCT key, ' ') INTO added FROM msgq.peek(queue, 100), jsonb_object_keys(headers) key WHERE starts_with(key, 'msgq-');
	PERFORM msgq.purge(queue);
END
$$;
SELECT msgq.create_queue('grave', dead_letter_queue => '');
SELECT msgq.create_queue('work', dead_letter_queue => 'grave', max_deliveries => 2, archive_retention => '1 h');

-- Each way of sending; a message that comes again, after a failure or not.
SELECT msgq.send('work', '1', pg_temp.trace()) + msgq.send_bytes('work', '\x01', pg_temp.trace())
	+ (SELECT sum(id) FROM unnest(msgq.send_batch('work', '{1}', ARRAY[pg_temp.trace()]) || msgq.send_bytes_batch('work', '{a}', ARRAY[pg_temp.trace()])) id)
	+ (SELECT id FROM msgq.send_messages('work', jsonb_build_array(jsonb_build_object('body', 1, 'headers', pg_temp.trace()))))
	+ (SELECT id FROM msgq.send_once('work', '1', 'key', pg_temp.trace()))
	+ msgq.send_cloudevent('work', '{"specversion": "1.0", "id": "1", "source": "s", "type": "t"}' || pg_temp.trace()) > 0 AS sent;
SELECT count(*), count(*) FILTER (WHERE headers @> pg_temp.trace()) AS kept, cardinality(msgq.release_batch('work', array_agg(receipt))) AS stale FROM msgq.receive('work', 100);
SELECT count(*), count(*) FILTER (WHERE headers @> pg_temp.trace()) AS kept, cardinality(msgq.nack_batch('work', array_agg(receipt), '0', 'failed')) AS stale FROM msgq.receive('work', 100);
SELECT count(*), count(*) FILTER (WHERE headers @> pg_temp.trace() AND headers ? 'msgq-error') AS kept, cardinality(msgq.archive_batch('work', array_agg(receipt))) AS stale
FROM msgq.receive('work', 100);
SELECT count(*), count(*) FILTER (WHERE headers @> pg_temp.trace()) AS kept FROM msgq.archived('work', 100);

-- Dead letters, for each reason.
SELECT msgq.send('work', '"failed"', pg_temp.trace()) > 0 AS sent;
SELECT msgq.nack('work', receipt, '0', 'first') FROM msgq.receive('work');
SELECT msgq.nack('work', receipt, '0', 'second') FROM msgq.receive('work');
SELECT msgq.send('work', '"rejected"', pg_temp.trace()) > 0 AS sent;
SELECT msgq.reject('work', receipt, 'bad') FROM msgq.receive('work');
SELECT msgq.send('work', '"lease ran out"', pg_temp.trace()) > 0 AS sent;
SELECT msgq.expire_lease('work', id) FROM msgq.receive('work');
SELECT msgq.expire_lease('work', id) FROM msgq.receive('work');
SELECT msgq.send('work', '"expired"', pg_temp.trace(), ttl => '0') > 0 AS sent;
SELECT count(*) AS none FROM msgq.receive('work');
SELECT count(*) AS done FROM msgq.maintain();
SELECT msgq.create_queue('full', dead_letter_queue => 'grave', max_length => 1, overflow => 'dead_letter');
SELECT msgq.send('full', '"overflow"', pg_temp.trace()) > 0 AND msgq.send('full', '"last"') > 0 AS sent;
SELECT msgq.create_queue('groups', dead_letter_queue => 'grave', ordered => true, max_deliveries => 1);
SELECT msgq.send('groups', '"ordered"', pg_temp.trace(), group_key => 'g') > 0 AS sent;
SELECT msgq.nack('groups', receipt) FROM msgq.receive('groups');
SELECT body, pg_temp.is_kept(headers) AS kept, headers->'msgq-death'->0->>'reason' AS reason FROM msgq.peek('grave', 100);
-- Back where they came from, and elsewhere.
SELECT msgq.redrive('grave', filter => '$.headers."msgq-death"[0].queue == "work"');
SELECT * FROM pg_temp.came('work');
SELECT msgq.redrive('grave', 'work');
SELECT * FROM pg_temp.came('work');
-- Twice dead.
SELECT msgq.send('work', '"twice"', pg_temp.trace()) > 0 AS sent;
SELECT msgq.reject('work', receipt) FROM msgq.receive('work');
SELECT msgq.redrive('grave');
SELECT msgq.reject('work', receipt) FROM msgq.receive('work');
SELECT * FROM pg_temp.came('grave');
SELECT msgq.drop_queue('full'), msgq.drop_queue('groups');

-- Topics: to queues and streams, through a second topic, by an alternate, and retained.
SELECT msgq.create_queue('first'), msgq.create_queue('second'), msgq.create_queue('others'), msgq.create_queue('late'),
	msgq.create_stream('log', dead_letter_queue => 'grave');
SELECT msgq.create_topic('rest', 'fanout');
SELECT msgq.create_topic('near', on_unroutable => 'alternate', alternate => 'rest'), msgq.create_topic('far', 'headers');
SELECT msgq.bind('near', 'first', 'a') > 0 AND msgq.bind('near', 'far', 'a') > 0 AND msgq.bind('near', 'log', 'a') > 0
	AND msgq.bind('far', 'second', header_match => '{"traceparent": null}') > 0 AND msgq.bind('rest', 'others') > 0 AS bound;
SELECT msgq.publish('near', 'a', '1', pg_temp.trace()), msgq.publish_bytes('near', 'a', '\x01', pg_temp.trace()), msgq.publish('near', 'b', '1', pg_temp.trace());
SELECT msgq.bind('near', 'late', '#', retained => true) > 0 AS bound;
SELECT queue, came.* FROM unnest('{first,second,others,late}'::text[]) queue, LATERAL pg_temp.came(queue);

-- Streams: each way of reading, and dead letters.
SELECT msgq.append('log', '1', 'key', pg_temp.trace()) > 0 AND msgq.append_bytes('log', '\x01', 'bytes', pg_temp.trace()) > 0
	AND cardinality(msgq.append_batch('log', '{1}', '{batch}', ARRAY[pg_temp.trace()])) > 0 AS appended;
CALL msgq.sequence('log');
SELECT msgq.create_group('log', 'readers', 'first'), msgq.create_group('log', 'pollers', 'first');
SELECT 'scan' AS by, count(*), bool_and(pg_temp.is_kept(headers)) AS kept FROM msgq.scan('log', 0, 1, 100)
UNION ALL SELECT 'read', count(*), bool_and(pg_temp.is_kept(headers)) FROM msgq.read('log', 'readers')
UNION ALL SELECT 'poll', count(*), bool_and(pg_temp.is_kept(headers)) FROM msgq.poll('log', 'pollers')
UNION ALL SELECT 'last_per_key', count(*), bool_and(pg_temp.is_kept(headers)) FROM msgq.last_per_key('log');
SELECT msgq.alter_stream('log', '{"max_deliveries": 1}');
SELECT msgq.seek('log', 'pollers', 'first');
SELECT count(*) FROM msgq.poll('log', 'pollers', 5, '1 min');
SET msgq.test_clock_offset = '2 min';
SELECT count(*) FROM msgq.poll('log', 'pollers', 5, '1 min');
RESET msgq.test_clock_offset;
SELECT msgq.redrive('grave', 'work', 2);
SELECT * FROM pg_temp.came('work');
SELECT * FROM pg_temp.came('grave');

-- Requests: the worker gets it, and so does the dead-letter queue.
\set VERBOSITY terse
CALL msgq.request('work', '"request"', '0', headers => pg_temp.trace());
SELECT body, pg_temp.is_kept(headers) AS kept, headers ? 'msgq-reply-to' AS is_request FROM msgq.peek('work');
SELECT count(*) AS none FROM msgq.receive('work');
SELECT count(*) AS done FROM msgq.maintain();
SELECT * FROM pg_temp.came('work');
SELECT * FROM pg_temp.came('grave');
CALL msgq.request('work', '1', '1 s', headers => '{"msgq-reply-to": {}}');
CALL msgq.request('work', '1', '1 s', NULL, '{"msgq-x": 1}');
CALL msgq.request('work', '1', '1 s', headers => '[]');
CALL msgq.request('work', '1', '0', headers => '{}');
CALL msgq.request('work', '1', '0', NULL, NULL);
\set VERBOSITY default
SELECT (SELECT array_agg(key) FROM jsonb_object_keys(headers) key) AS headers FROM msgq.peek('work');

SELECT msgq.drop_topic('near'), msgq.drop_topic('far'), msgq.drop_topic('rest'), msgq.drop_stream('log');
SELECT msgq.drop_queue(queue) FROM unnest('{work,first,second,others,late}'::text[]) queue;
SELECT msgq.purge('grave') >= 0 AS purged, msgq.drop_queue('grave');
