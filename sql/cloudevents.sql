--
-- CloudEvents: what is taken, what it becomes, and that it comes back as it was;
-- and messages that are made events.
--
SELECT msgq.create_queue('events', dead_letter_queue => '');

-- An event with these members beside the required ones; a null takes one away.
CREATE FUNCTION pg_temp.event(members jsonb) RETURNS jsonb LANGUAGE sql AS $$
	SELECT '{"specversion": "1.0", "id": "1", "source": "/test", "type": "t"}' || members
$$;
-- What a statement raises; nothing that it does is kept.
CREATE FUNCTION pg_temp.raised(statement text, VARIADIC arguments jsonb[]) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE statement USING arguments[1];
	RAISE SQLSTATE 'OKAY0';
EXCEPTION
	WHEN SQLSTATE 'OKAY0' THEN
		RETURN 'nothing';
	WHEN OTHERS THEN
		RETURN SQLSTATE || ' ' || SQLERRM;
END
$$;
CREATE FUNCTION pg_temp.refused(event jsonb) RETURNS text LANGUAGE sql AS $$
	SELECT pg_temp.raised('SELECT msgq.send_cloudevent(''events'', $1)', event)
$$;
-- The event, sent, received as a message, and made an event again.
CREATE FUNCTION pg_temp.came_back(event jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	sent bigint := msgq.send_cloudevent('events', event);
	result jsonb;
BEGIN
	SELECT msgq.as_cloudevent(m) INTO STRICT result FROM msgq.peek('events', 1, sent - 1) AS m;
	RETURN result;
END
$$;

-- What the message becomes, but for the name of the database.
CREATE FUNCTION pg_temp.made(m msgq.message) RETURNS jsonb LANGUAGE sql AS $$
	SELECT event || jsonb_build_object('source', replace(event->>'source', 'msgq:' || current_database(), 'msgq:database'))
	FROM msgq.as_cloudevent(m) AS event
$$;

-- What becomes what.
SELECT msgq.send_cloudevent('events', '{"specversion": "1.0", "id": "A234-1234-1234", "source": "https://example.com/shop",
	"type": "com.example.order.placed", "subject": "order/7", "time": "2018-04-05T17:31:00Z",
	"datacontenttype": "application/vnd.example+json", "dataschema": "https://example.com/order.json",
	"partitionkey": "customer 17", "expirytime": "2999-12-31T23:59:59.5+01:30",
	"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "congo=t61rcWkgMzE",
	"sampledrate": 30, "urgent": true, "nothing": null, "data": {"total": 99.50, "lines": [1, {"a": null}]}}') > 0 AS sent;
\x on
SELECT jsonb_pretty(headers) AS headers, group_key, expires_at AT TIME ZONE 'UTC' AS expires_at, body, data FROM msgq.peek('events');
\x off
-- The idempotency key can be computed by others.
SELECT msgq.create_queue('same', dead_letter_queue => '');
SELECT msgq.send_cloudevent('same', pg_temp.event('{"data": 1, "id": "í", "source": "ü"}')) AS event,
	msgq.send('same', '1', idempotency_key => 'cloudevent:' || encode(sha256('\xc3bc00c3ad'), 'hex')) AS message;
SELECT msgq.drop_queue('same');

-- Duplicates: source and id name an event, and nothing else does.
SELECT msgq.purge('events');
SELECT n, msgq.send_cloudevent('events', pg_temp.event(members)) - first AS id
FROM (SELECT msgq.send_cloudevent('events', pg_temp.event('{"data": 1}')) AS first) AS f, (VALUES
	(1, '{"data": 1}'::jsonb),
	(2, '{"data": 1.0, "type": "other", "time": "2020-01-01T00:00:00Z", "extension": 5}'),
	(3, '{"data": 1, "id": "2"}'),
	(4, '{"data": 1, "source": "/tes", "id": "t\u00201"}'),
	(5, '{"data": 1, "source": "/tes", "id": "t1"}'),
	(6, '{"data": 1, "source": "/test1", "id": "1"}'),
	(7, '{"data": 1, "source": "/TEST"}')) AS v(n, members) ORDER BY n;
SELECT count(*) FROM msgq.peek('events');
-- With other data it is an error.
SELECT members, pg_temp.refused(pg_temp.event(members)) FROM (VALUES
	('{"data": 2}'::jsonb), ('{}'), ('{"data_base64": "MQ=="}')) AS v(members);
SELECT msgq.send_cloudevent('events', pg_temp.event('{"id": "none"}')) = msgq.send_cloudevent('events', pg_temp.event('{"id": "none", "data": null}')) AS same;
-- Forgotten after the window.
SELECT msgq.create_queue('short', dead_letter_queue => '', dedup_window => '1 us');
SELECT count(DISTINCT msgq.send_cloudevent('short', pg_temp.event('{"data": 1}')) + 0 * n) FROM generate_series(1, 3) n;
SELECT msgq.drop_queue('short');
SELECT msgq.purge('events') > 0 AS purged;

-- There and back again.
SELECT msgq.create_queue('trip', dead_letter_queue => '', max_message_bytes => 10000000);
CREATE TEMP TABLE trip (n int GENERATED ALWAYS AS IDENTITY, members jsonb);
INSERT INTO trip (members) VALUES
	('{}'), ('{"data": null}'), ('{"data": 0}'), ('{"data": -1.50}'), ('{"data": 1e400}'), ('{"data": true}'), ('{"data": false}'),
	('{"data": ""}'), ('{"data": "text"}'), ('{"data": []}'), ('{"data": {}}'), ('{"data": [null]}'), ('{"data": {"data": {"data_base64": 5}}}'),
	('{"data": [[[[{"a": [1, "2", null, true, {"b": {}}]}]]]]}'), ('{"data": "<a/>", "datacontenttype": "text/xml; charset=utf-8"}'),
	('{"datacontenttype": "application/json"}'),
	('{"data_base64": ""}'), ('{"data_base64": "AA=="}'), ('{"data_base64": "AP8="}'), ('{"data_base64": "AP8Q"}'), ('{"data_base64": "+/+/"}'),
	('{"data_base64": "AAAA", "datacontenttype": "image/png"}'),
	('{"a": 0, "b": -1, "c": 2147483647, "d": -2147483648, "e": true, "f": false, "g": "", "h": "5", "i": "true"}'),
	('{"0": "digit", "longerthanthetwentycharactersthatareadvised0123456789": 1}'),
	('{"contenttype": "x", "content": "y", "headers": "z", "body": 1, "queue": "q", "msgq": true, "ce": "ce"}'),
	('{"subject": "s", "dataschema": "#", "dataref": "https://example.com/1", "sequence": "0001", "correlationid": "c"}'),
	('{"time": "1985-04-12T23:20:50.52Z"}'), ('{"time": "1996-12-19T16:39:57-08:00"}'), ('{"time": "1990-12-31T23:59:60Z"}'),
	('{"time": "2000-02-29t00:00:00.123456789012345678901234567890z"}'), ('{"time": "0000-01-01T00:00:00Z"}'), ('{"time": "9999-12-31T23:59:59+23:59"}'),
	('{"partitionkey": "p", "data": 1}'), (jsonb_build_object('partitionkey', repeat('ü', 127) || 'p')),
	('{"expirytime": "2999-01-01T00:00:00.000000001Z"}'), ('{"expirytime": "9999-12-31T23:59:60Z"}'),
	('{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"}'),
	('{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": ""}'),
	('{"traceparent": "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more.of.it", "tracestate": "a=1,b=2"}'),
	('{"id": " ", "source": "../x?y#z", "type": "ü/ä 𝄞 \" \\ %s %n"}'), ('{"id": "🐘", "source": "🐘", "extension": "日本語"}'),
	(jsonb_build_object('id', repeat('i', 1000000))), (jsonb_build_object('source', repeat('ü', 300000), 'data', repeat('d', 100000))),
	(jsonb_build_object('data_base64', translate(encode(decode(repeat('00ff10', 100000), 'hex'), 'base64'), E'\n', ''))),
	((SELECT jsonb_object_agg('x' || i, i) FROM generate_series(1, 2000) i));
INSERT INTO trip (members) SELECT jsonb_build_object('data', i, 'n', i, 'flag', i % 2 = 0, 'text', md5(i::text)) FROM generate_series(1, 200) i;
UPDATE trip SET members = jsonb_build_object('id', n::text) || members;
SELECT count(DISTINCT msgq.send_cloudevent('trip', pg_temp.event(members))) = count(*) AS all_sent FROM trip;
CREATE TEMP TABLE arrived AS SELECT row_number() OVER (ORDER BY id) AS n, id, msgq.as_cloudevent(m) AS event FROM msgq.receive('trip', 1000) AS m;
SELECT count(*) > 240 AS many, bool_and(event::text = pg_temp.event(members)::text) AS all_the_same FROM trip JOIN arrived USING (n);
SELECT n, left(members::text, 200) AS members, left(event::text, 200) AS event FROM trip LEFT JOIN arrived USING (n)
WHERE event::text IS DISTINCT FROM pg_temp.event(members)::text;
-- It can be sent on: the same again.
SELECT bool_and(msgq.send_cloudevent('trip', event) = id) AS all_known FROM arrived;
SELECT msgq.drop_queue('trip');
-- A null attribute, but not null data, is as if it were not there.
SELECT pg_temp.came_back('{"specversion": "1.0", "id": "nulls", "source": "/test", "type": "t", "subject": null, "time": null, "extension": null,
	"partitionkey": null, "expirytime": null, "traceparent": null, "tracestate": null, "datacontenttype": null, "data_base64": null}');

-- What is refused.
\pset format unaligned
SELECT n, pg_temp.refused(event) AS refused, left(event::text, 80) AS event FROM (VALUES
	(1, '[]'::jsonb), (2, '1'), (3, '"{}"'), (4, 'null'), (5, '{}'), (6, '[{"specversion": "1.0", "id": "1", "source": "/test", "type": "t"}]'),
	(10, pg_temp.event('{}') - 'id'), (11, pg_temp.event('{}') - 'source'), (12, pg_temp.event('{}') - 'type'),
	(13, pg_temp.event('{}') - 'specversion'), (14, pg_temp.event('{"id": null}')), (15, pg_temp.event('{"specversion": null}'))
) AS v(n, event) ORDER BY n;
SELECT n, pg_temp.refused(pg_temp.event(members)) AS refused, left(members::text, 80) AS members FROM (VALUES
	(1, '{"specversion": "0.3"}'::jsonb), (2, '{"specversion": "1.0.2"}'), (3, '{"specversion": 1.0}'), (4, '{"specversion": ""}'),
	(10, '{"id": ""}'), (11, '{"id": 5}'), (12, '{"id": {}}'), (13, '{"id": ["x"]}'), (14, '{"id": true}'), (15, '{"source": ""}'), (16, '{"source": 1}'),
	(17, '{"type": ""}'), (18, '{"type": []}'),
	(20, '{"subject": ""}'), (21, '{"subject": 1}'), (22, '{"dataschema": ""}'), (23, '{"dataschema": {}}'), (24, '{"datacontenttype": ""}'),
	(25, '{"datacontenttype": false}'), (26, '{"partitionkey": ""}'), (27, '{"partitionkey": 5}'), (28, jsonb_build_object('partitionkey', repeat('p', 256))),
	(30, '{"Extension": 1}'), (31, '{"ext_ension": 1}'), (32, '{"ext-ension": 1}'), (33, '{"": 1}'), (34, '{"ü": 1}'), (35, '{"a b": 1}'), (36, '{"a\n": 1}'),
	(37, '{"UPPER": null}'), (38, jsonb_build_object(repeat('Ü', 100000), 1)), (39, '{"msgq-death": []}'), (40, '{"ce-id": "x"}'), (41, '{"%s%n": 1}'),
	(50, '{"ext": 1.5}'), (51, '{"ext": 1.0}'), (52, '{"ext": 2147483648}'), (53, '{"ext": -2147483649}'), (54, '{"ext": 1e1000}'),
	(55, '{"ext": 99999999999999999999}'), (56, '{"ext": {}}'), (57, '{"ext": []}'), (58, '{"ext": [1]}'), (59, '{"ext": {"a": {"b": 1}}}'),
	(60, '{"traceparent": ["00"]}'), (61, '{"tracestate": {}}'),
	(70, '{"ext": "a\nb"}'), (71, '{"ext": "\u007f"}'), (72, '{"id": "\u0085"}'), (73, '{"source": "\t"}'), (74, '{"ext": "\ufffe"}'), (75, '{"ext": "\ufdd0"}'),
	(76, '{"ext": "\ud83f\udfff"}'), (77, '{"type": "x\u0001"}'),
	(80, '{"data": 1, "data_base64": "AA=="}'), (81, '{"data": null, "data_base64": "AA=="}'), (82, '{"data": 1, "data_base64": ""}'),
	(83, '{"data_base64": 5}'), (84, '{"data_base64": {"a": "AA=="}}'), (85, '{"data_base64": []}'), (86, '{"data_base64": "A"}'), (87, '{"data_base64": "AA"}'),
	(88, '{"data_base64": "AAA"}'), (89, '{"data_base64": "AA="}'), (90, '{"data_base64": "AB=="}'), (91, '{"data_base64": "AA==AA=="}'), (92, '{"data_base64": "===="}'),
	(93, '{"data_base64": "AA\n=="}'), (94, '{"data_base64": " AAAA"}'), (95, '{"data_base64": "AA-_"}'), (96, '{"data_base64": "ÜÜÜÜ"}'), (97, '{"data_base64": "\\x00"}')
) AS v(n, members) ORDER BY n;
SELECT n, pg_temp.refused(pg_temp.event(jsonb_build_object(name, time))) AS refused, time FROM unnest('{time,expirytime}'::text[]) name,
	unnest(ARRAY['', 'now', 'infinity', '-infinity', 'epoch', '2020-01-01', '2020-01-01T00:00:00', '2020-01-01 00:00:00Z', '2020-01-01T00:00Z',
		'2020-1-01T00:00:00Z', '20-01-01T00:00:00Z', '12020-01-01T00:00:00Z', '-020-01-01T00:00:00Z', '2020-00-01T00:00:00Z', '2020-13-01T00:00:00Z',
		'2020-01-00T00:00:00Z', '2020-01-32T00:00:00Z', '2020-04-31T00:00:00Z', '2019-02-29T00:00:00Z', '1900-02-29T00:00:00Z', '2020-02-30T00:00:00Z',
		'2020-01-01T24:00:00Z', '2020-01-01T00:60:00Z', '2020-01-01T00:00:61Z', '2020-01-01T00:00:00.Z', '2020-01-01T00:00:00,5Z', '2020-01-01T00:00:00.5',
		'2020-01-01T00:00:00+24:00', '2020-01-01T00:00:00+01:60', '2020-01-01T00:00:00+01', '2020-01-01T00:00:00+0100', '2020-01-01T00:00:00 UTC',
		'2020-01-01T00:00:00ZZ', '2020-01-01T00:00:00Z ', ' 2020-01-01T00:00:00Z', '20200101T000000Z', '2020-W01-1T00:00:00Z', '２０２０-01-01T00:00:00Z'
	]) WITH ORDINALITY AS u(time, n) WHERE name = 'time' OR n = 1 ORDER BY name DESC, n;
-- Beside the form of the event, all is as with send.
SELECT pg_temp.raised('SELECT msgq.send_cloudevent(NULL, $1)', pg_temp.event('{}'));
SELECT pg_temp.raised('SELECT msgq.send_cloudevent(''events'', NULL)', NULL);
SELECT pg_temp.raised('SELECT msgq.send_cloudevent(''nowhere'', $1)', pg_temp.event('{}'));
SELECT pg_temp.refused(pg_temp.event(jsonb_build_object('id', repeat('i', 2000000))));
SELECT pg_temp.refused(pg_temp.event(jsonb_build_object('data', repeat('d', 2000000))));
SELECT msgq.pause('events', 'send');
SELECT pg_temp.refused(pg_temp.event('{}'));
SELECT msgq.resume('events', 'send');
\pset format aligned
SELECT msgq.purge('events') >= 0 AS purged;
BEGIN;
SELECT msgq.send_cloudevent('events', pg_temp.event('{"id": "undone"}')) > 0 AS sent;
ROLLBACK;
SELECT count(*) FROM msgq.peek('events');

-- A traceparent that is not valid is left out, and so is a tracestate without one.
SELECT n, pg_temp.came_back(pg_temp.event(jsonb_build_object('id', 'trace ' || n, 'tracestate', 'a=1') || trace))
	- '{id,specversion,source,type}'::text[] AS trace
FROM unnest(ARRAY['{}', '{"traceparent": null}', '{"traceparent": ""}', '{"traceparent": 5}', '{"traceparent": true}',
	'{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"}',
	'{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0"}',
	'{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-"}',
	'{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"}',
	'{"traceparent": "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"}',
	'{"traceparent": "00-00000000000000000000000000000000-00f067aa0ba902b7-01"}',
	'{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01"}',
	'{"traceparent": "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}',
	'{"traceparent": "0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}',
	'{"traceparent": "00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01"}',
	'{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01"}',
	'{"traceparent": "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01more"}',
	'{"traceparent": " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}',
	'{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": 5}',
	'{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}',
	'{"traceparent": "fe-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-"}']::jsonb[]) WITH ORDINALITY AS u(trace, n) ORDER BY n;
SELECT DISTINCT key FROM msgq.peek('events', 100), jsonb_object_keys(headers) AS key ORDER BY 1;

-- The key of a partition is a group key: events with it come in order.
SELECT msgq.create_queue('in order', dead_letter_queue => '', ordered => true);
SELECT msgq.send_cloudevent('in order', pg_temp.event(jsonb_build_object('id', n, 'partitionkey', 'k', 'data', n) || jsonb_build_object('id', n::text))) > 0 AS sent
FROM generate_series(1, 2) n;
SELECT body, group_key FROM msgq.receive('in order');
SELECT body, group_key FROM msgq.receive('in order');
SELECT msgq.drop_queue('in order');

-- Events that have expired are taken, and given up as expired ones are, whatever
-- the moment; the queue's own time to live holds as well.
SELECT msgq.create_queue('brief', message_ttl => '1 h');
SELECT msgq.send_cloudevent('brief', pg_temp.event(jsonb_build_object('id', time, 'expirytime', time))) > 0 AS sent
FROM unnest('{2000-01-01T00:00:00Z,2000-01-01T00:00:00.000001Z,1999-12-31T18:00:00-06:00,1970-01-01T00:00:00Z,0000-01-01T00:00:00Z,2999-01-01T00:00:00Z}'::text[]) time;
SELECT headers->>'ce-id' AS id, expires_at < now() AS expired, expires_at <= now() + '1 h' AS soon FROM msgq.peek('brief');
SELECT headers->>'ce-id' AS id FROM msgq.receive('brief', 10);
SELECT count(*) > 0 AS worked FROM msgq.maintain();
SELECT headers->>'ce-id' AS id, headers->'msgq-death'->0->>'reason' AS reason,
	msgq.as_cloudevent(m) = pg_temp.event(jsonb_build_object('id', headers->'ce-id', 'expirytime', headers->'ce-id')) AS same
FROM msgq.peek('brief.dead') AS m;
SELECT msgq.drop_queue('brief');
SELECT msgq.purge('brief.dead'), msgq.drop_queue('brief.dead');

--
-- Messages that were no events
--
SELECT msgq.purge('events') > 0 AS purged;
SET timezone = 'Asia/Kathmandu';
SELECT msgq.send('events', '{"a": 1}', '{"plain": "text", "number": 5, "flag": true, "fraction": 1.5, "large": 3000000000, "object": {}, "array": [1],
	"nothing": null, "Upper": 1, "with-hyphen": 1, "newline": "a\nb", "data": "d", "id": "i", "source": "s", "type": "t", "specversion": "1.0", "time": "x",
	"subject": "s", "dataschema": "d", "datacontenttype": "c", "partitionkey": "p", "expirytime": "e", "empty": ""}') > 0 AS sent;
SELECT pg_temp.made(m) - '{id,time}'::text[] AS event FROM msgq.pop('events') AS m;
-- Its own attributes, in UTC whatever the session's time zone.
SELECT msgq.send('events', '[]', group_key => 'g', ttl => '1 h') > 0 AS sent;
SELECT event->>'id' = format('%s/%s', to_char(enqueued_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), id) AS id,
	event->>'time' = to_char(enqueued_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS time,
	event->>'expirytime' = to_char(expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS expirytime,
	event - '{id,time,expirytime}'::text[] AS rest
FROM msgq.pop('events') AS m, LATERAL pg_temp.made(m) AS event;
RESET timezone;
-- Contents.
SELECT msgq.send('events', body) > 0 AS sent FROM unnest('{1,"\"text\"",null,"null","{\"data\": []}"}'::jsonb[]) body WHERE body IS NOT NULL;
SELECT msgq.send_bytes('events', data, headers) > 0 AS sent FROM (VALUES ('\x00ff'::bytea, NULL::jsonb), ('', '{"content-type": "text/plain"}'),
	('abc', '{"content-type": "", "data": "d", "ce-data": "d"}'), ('abc', '{"content-type": 5}'), (decode(repeat('61', 90), 'hex'), '{"content-type": "a/b", "ce-datacontenttype": "c/d"}')) AS v(data, headers);
SELECT msgq.send('events', '"<a/>"', '{"content-type": "text/xml"}') > 0 AS sent;
SELECT msgq.as_cloudevent(m) - '{specversion,id,time,source,type}'::text[] AS event FROM msgq.pop('events', 10) AS m;
-- Headers with the prefix go first, where they can.
SELECT msgq.send('events', '1', '{"ce-type": "com.example.t", "ce-id": "own", "ce-source": "/own", "ce-time": "2020-01-01T00:00:00+01:00", "ce-subject": "own",
	"ce-partitionkey": "own", "ce-expirytime": "2020-01-01T00:00:00Z", "ce-x": 1, "x": 2, "x2": 3, "ce-Bad": 1, "ce-": 1, "ce-data": 5, "ce-data_base64": "x"}',
	group_key => 'g', ttl => '1 h') > 0 AS sent;
SELECT msgq.send('events', '1', '{"ce-type": "", "ce-id": 5, "ce-source": [], "ce-time": "yesterday", "ce-subject": 5, "ce-partitionkey": "",
	"ce-expirytime": "soon", "ce-specversion": "0.3", "ce-x": 1.5, "x": 2}', group_key => 'g') > 0 AS sent;
-- With a version it is an event, and tells no more of itself than that needs.
SELECT msgq.send('events', '1', '{"ce-specversion": "1.0", "ce-type": "t", "ce-id": "i", "ce-source": "s", "x": 1, "ce-y": 2, "content-type": "a/b"}',
	group_key => 'g', ttl => '1 h') > 0 AS sent;
SELECT msgq.send('events', '1', '{"ce-specversion": "1.0", "x": 1, "ce-y": 2}', group_key => 'g') > 0 AS sent;
SELECT CASE WHEN event->>'id' ~ '^\d{4}-.*Z/\d+$' THEN event - 'id' || '{"id": "(made)"}' ELSE event END - CASE WHEN event->>'time' < '2021' THEN '' ELSE 'time' END AS event
FROM msgq.pop('events', 10) AS m, LATERAL pg_temp.made(m) AS event;
-- Trace context.
SELECT msgq.send('events', '1', headers) > 0 AS sent FROM (VALUES
	(1, '{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "a=1"}'::jsonb),
	(2, '{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", "tracestate": "a=1"}'),
	(3, '{"traceparent": 5, "tracestate": 5}'), (4, '{"tracestate": "a=1"}'),
	(5, '{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "ce-traceparent": "bad", "tracestate": ["a=1"]}'),
	(6, '{"traceparent": "bad", "ce-traceparent": "00-0af7651916cd43dd8448eb211c80319c-b9c7c989f97918e1-01", "tracestate": "a=1"}'),
	(7, '{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "ce-traceparent": "00-0af7651916cd43dd8448eb211c80319c-b9c7c989f97918e1-01"}')) AS v(n, headers) ORDER BY n;
SELECT msgq.as_cloudevent(m)->'traceparent' AS traceparent, msgq.as_cloudevent(m)->'tracestate' AS tracestate FROM msgq.pop('events', 10) AS m;
-- Topics: the copies of a message are one event if they have the same number.
SELECT msgq.create_queue('a', dead_letter_queue => ''), msgq.create_queue('b', dead_letter_queue => ''), msgq.create_topic('shop/Ü %', 'fanout');
SELECT msgq.bind('shop/Ü %', 'a') > 0 AND msgq.bind('shop/Ü %', 'b') > 0 AS bound;
SELECT msgq.publish('shop/Ü %', key, '1') FROM unnest(ARRAY['order.eu.paid', '', E'line\nbreak']) key;
SELECT event->>'source' = 'msgq:' || current_database() || '/shop%2F%C3%9C%20%25' AS source, event->>'subject' AS subject,
	event = other AS same
FROM msgq.peek('a') AS m JOIN msgq.peek('b') AS n USING (id), LATERAL msgq.as_cloudevent(m) AS event, LATERAL msgq.as_cloudevent(n) AS other;
SELECT msgq.drop_topic('shop/Ü %'), msgq.drop_queue('a'), msgq.drop_queue('b');
-- Every one of them is a valid event, and another one than the others.
SELECT msgq.create_queue('from', dead_letter_queue => ''), msgq.create_queue('to', dead_letter_queue => '');
SELECT cardinality(msgq.send_batch('from', array_agg('1'::jsonb))) FROM generate_series(1, 1000);
SELECT count(DISTINCT msgq.send_cloudevent('to', msgq.as_cloudevent(m))) FROM msgq.peek('from', 1000) AS m;
SELECT msgq.purge('from');
-- It stays the same event when it is delivered again, and when it was dead for a while.
SELECT msgq.create_queue('grave', dead_letter_queue => '');
SELECT msgq.alter_queue('from', '{"dead_letter_queue": "grave"}');
SELECT msgq.send('from', '"life"', '{"h": 1}') > 0 AS sent;
CREATE TEMP TABLE life AS SELECT m.receipt, msgq.as_cloudevent(m) AS event FROM msgq.receive('from') AS m;
SELECT msgq.nack('from', receipt, '0', 'failed') FROM life;
INSERT INTO life SELECT m.receipt, msgq.as_cloudevent(m) FROM msgq.receive('from') AS m;
SELECT bool_or(msgq.reject('from', receipt, 'bad')) AS rejected FROM life;
SELECT msgq.redrive('grave');
INSERT INTO life SELECT m.receipt, msgq.as_cloudevent(m) FROM msgq.receive('from') AS m;
SELECT count(*), count(DISTINCT event) FROM life;
SELECT msgq.drop_queue('from'), msgq.drop_queue('to'), msgq.drop_queue('grave');

-- NULLs, and rows that are no messages.
\set VERBOSITY terse
SELECT msgq.as_cloudevent(NULL);
SELECT msgq.as_cloudevent(ROW(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL));
SELECT msgq.as_cloudevent(ROW(1, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '1', NULL));
\set VERBOSITY default
SELECT msgq.as_cloudevent(ROW(1, NULL, 0, 0, 0::smallint, E'a\tb', time, NULL, time, headers, NULL, NULL)::msgq.message) - 'source' AS event
FROM (VALUES ('infinity'::timestamptz, '[1]'::jsonb), ('-infinity', '5'), ('0044-03-15 00:00:00+00 BC', '{}'), ('10000-01-01 00:00:00+00', NULL), ('2020-01-01 00:00:00+00', NULL)) AS v(time, headers);

-- From a stored row, with values that are compressed or lie elsewhere.
CREATE TABLE kept AS SELECT m AS message FROM (SELECT msgq.send('events', to_jsonb(repeat('x', 100000)), jsonb_build_object('h', repeat('y', 100000)))) AS s, LATERAL msgq.peek('events') AS m;
SELECT length(event->>'data') AS data, length(event->>'h') AS h FROM kept, LATERAL msgq.as_cloudevent(message) AS event;
DROP TABLE kept;
SELECT msgq.drop_queue('events');
