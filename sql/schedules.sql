-- Schedules: what is fired when, and what becomes of it.
SET client_min_messages = warning;
SET timezone = 'UTC';
SET datestyle = 'ISO, DMY';

-- Sets the clock; it goes on from there.
CREATE FUNCTION clock(at timestamptz) RETURNS void LANGUAGE sql AS $$
	SELECT set_config('msgq.test_clock_offset', (extract(epoch FROM at - clock_timestamp()) * 1000)::text, false);
	SELECT
$$;
-- A round at this time.
CREATE FUNCTION round_at(at timestamptz, OUT fired int, OUT failed int) LANGUAGE plpgsql AS $$
DECLARE
	did jsonb;
BEGIN
	PERFORM clock(at);
	did = msgq.maintain();
	fired = did->>'fired';
	failed = did->>'failed';
END
$$;
CREATE FUNCTION came(queue text, OUT body jsonb, OUT due text) RETURNS SETOF record LANGUAGE sql AS $$
	SELECT body, headers->>'msgq-scheduled-for' FROM msgq.peek(queue, 5000)
$$;
CREATE FUNCTION tried(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	detail text;
	hint text;
BEGIN
	EXECUTE statement;
	RETURN 'nothing';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN concat_ws(' / ', SQLSTATE || ' ' || SQLERRM, nullif(detail, ''), nullif(hint, ''));
END
$$;
CREATE VIEW known AS
	SELECT name, spec, destination, body, headers, timezone, catch_up, owner = current_user AS mine, last_at, next_at FROM msgq.schedules;

SELECT msgq.create_queue('jobs', dead_letter_queue => '');
SELECT clock('2026-01-01 00:00:10Z');
SELECT status, detail FROM msgq.health() WHERE check_name = 'schedules';

--
-- One that is due each minute.
--
SELECT msgq.schedule('tick', '* * * * *', 'jobs', '{"n": 1}', '{"a": 1}');
SELECT * FROM known;
SELECT * FROM round_at('2026-01-01 00:00:50Z');
SELECT * FROM round_at('2026-01-01 00:01:05Z');
SELECT * FROM round_at('2026-01-01 00:01:50Z');
SELECT body, headers FROM msgq.peek('jobs');
SELECT last_at, next_at FROM known;
-- What is not missed fires, each.
SELECT * FROM round_at('2026-01-01 00:02:58Z');
SELECT * FROM came('jobs');
SELECT msgq.unschedule('tick');
SELECT * FROM known;
SELECT * FROM round_at('2026-01-01 00:09:00Z');
SELECT count(*) FROM msgq.fired_1;
SELECT tried($$SELECT msgq.unschedule('tick')$$);

-- All or nothing, as everything.
BEGIN;
SELECT msgq.schedule('undone', '* * * * *', 'jobs', '1');
ROLLBACK;
SELECT * FROM known;
-- Also a body that is JSON's null.
SELECT msgq.purge('jobs');
SELECT clock('2026-01-01 00:10:00Z');
SELECT msgq.schedule('null', '@every 20s', 'jobs', 'null');
SELECT * FROM round_at('2026-01-01 00:10:50Z');
SELECT * FROM round_at('2026-01-01 00:10:50Z');
SELECT body, count(*) FROM came('jobs') GROUP BY body;
SELECT msgq.unschedule('null');

--
-- Wrong arguments
--
SELECT tried(format('SELECT msgq.schedule(%s)', arguments)) FROM unnest(ARRAY[
	$$'', '@daily', 'jobs', '1'$$, $$E'a\nb', '@daily', 'jobs', '1'$$, $$repeat('x', 64), '@daily', 'jobs', '1'$$,
	$$'s', '61 * * * *', 'jobs', '1'$$, $$'s', '@daily', 'nowhere', '1'$$, $$'s', '@daily', repeat('x', 64), '1'$$,
	$$'s', '@daily', 'jobs', '1', '[]'$$, $$'s', '@daily', 'jobs', '1', '{"msgq-x": 1}'$$,
	$$'s', '@daily', 'jobs', '1', timezone => 'CEST'$$, $$'s', '@daily', 'jobs', '1', timezone => 'XYZ3'$$,
	$$'s', '@daily', 'jobs', '1', catch_up => 'some'$$, $$'s', '@every 1 month', 'jobs', '1'$$]) AS arguments;
BEGIN READ ONLY;
SELECT msgq.schedule('s', '@daily', 'jobs', '1');
ROLLBACK;
BEGIN READ ONLY;
SELECT msgq.unschedule('s');
ROLLBACK;

--
-- Missed: ten minutes nobody was there.
--
SELECT msgq.purge('jobs');
SELECT clock('2026-01-02 00:00:10Z');
SELECT msgq.schedule('none', '* * * * *', 'jobs', '"none"', catch_up => 'none');
SELECT msgq.schedule('one', '* * * * *', 'jobs', '"one"', catch_up => 'one');
SELECT msgq.schedule('all', '* * * * *', 'jobs', '"all"', catch_up => 'all');
SELECT msgq.schedule('default', '*/4 * * * *', 'jobs', '"default"');
-- 8 minutes is missed, 9 and 10 are not.
SELECT clock('2026-01-02 00:09:50Z');
SELECT status, detail FROM msgq.health() WHERE check_name = 'schedules';
SELECT name FROM msgq.schedules WHERE next_at < '2026-01-02 00:08:50Z' ORDER BY name;
SELECT * FROM round_at('2026-01-02 00:09:50Z');
SELECT body, array_agg(substr(due, 12, 5) ORDER BY due) AS due FROM came('jobs') GROUP BY body;
SELECT name, last_at, next_at FROM known ORDER BY name;
SELECT * FROM round_at('2026-01-02 00:09:50Z');
-- What was passed over is written down, and is not what was fired last.
SELECT * FROM round_at('2026-01-02 00:20:30Z');
SELECT name, last_at, next_at FROM known ORDER BY name;
SELECT due_at, skipped FROM msgq.fired_1 JOIN msgq.schedule ON id = schedule_id WHERE name = 'none' ORDER BY due_at;
SELECT * FROM round_at('2026-01-02 00:30:30Z');
-- Missed while nothing else is due.
SELECT msgq.purge('jobs');
SELECT msgq.unschedule(name) FROM msgq.schedules WHERE name <> 'all' ORDER BY name;
SELECT msgq.schedule('none', '30 0 * * *', 'jobs', '"none"', catch_up => 'none');
SELECT * FROM round_at('2026-01-03 00:20:30Z');
SELECT * FROM round_at('2026-01-03 00:30:30Z');
SELECT * FROM round_at('2026-01-04 01:30:30Z');
SELECT last_at, next_at FROM known WHERE name = 'none';
-- A whole day of minutes, in pieces: none is left out, none comes twice.
SELECT min(due), max(due), count(*), count(DISTINCT due) FROM came('jobs') WHERE body = '"all"';
SELECT * FROM round_at('2026-01-04 01:30:30Z');
SELECT min(due), max(due), count(*), count(DISTINCT due) FROM came('jobs') WHERE body = '"all"';
SELECT msgq.purge('jobs') > 0 AS purged, msgq.unschedule('all') IS NOT NULL, msgq.unschedule('none') IS NOT NULL;

--
-- The clock jumps.
--
SELECT clock('2026-02-01 00:00:10Z');
SELECT msgq.schedule('clock', '* * * * *', 'jobs', '1');
SELECT * FROM round_at('2026-02-01 00:01:10Z');
SELECT * FROM round_at('2026-02-01 00:02:10Z');
-- Back: what was fired does not fire again.
SELECT * FROM round_at('2026-02-01 00:01:10Z');
SELECT * FROM round_at('2026-01-31 23:55:10Z');
SELECT last_at, next_at FROM known;
SELECT * FROM round_at('2026-02-01 00:02:10Z');
SELECT * FROM round_at('2026-02-01 00:03:10Z');
-- Forward: a year was missed.
SELECT * FROM round_at('2027-02-01 00:03:10Z');
SELECT due FROM came('jobs');
SELECT msgq.purge('jobs');
SELECT msgq.unschedule('clock');

--
-- Time zones: 2:30 was turned past in Berlin.
--
SELECT clock('2026-03-28 12:00:00Z');
SELECT msgq.schedule('berlin', '30 2 * * *', 'jobs', '1', timezone => 'europe/berlin');
SELECT timezone, next_at FROM known;
SELECT * FROM round_at('2026-03-29 00:59:50Z');
SELECT * FROM round_at('2026-03-29 01:00:10Z');
SELECT * FROM round_at('2026-03-29 01:30:10Z');
SELECT due FROM came('jobs');
SELECT next_at FROM known;
SELECT msgq.purge('jobs');
SELECT msgq.unschedule('berlin');

--
-- Replacing
--
SELECT clock('2026-04-01 00:00:00Z');
SELECT msgq.schedule('again', '@every 1h', 'jobs', '1');
SELECT clock('2026-04-01 00:50:00Z');
SELECT msgq.create_queue('other', dead_letter_queue => '');
-- Another message, the same times.
SELECT msgq.schedule('again', '@every 1h', 'other', '2', '{"b": 2}', catch_up => 'all');
SELECT spec, destination, body, headers, catch_up, next_at <= '2026-04-01 01:00:25Z' AS same FROM known;
SELECT xmin AS before FROM msgq.schedule \gset
SELECT msgq.schedule('again', '@every 1h', 'other', '2', '{"b": 2}', catch_up => 'all');
SELECT xmin = :'before' AS untouched FROM msgq.schedule;
SELECT * FROM round_at('2026-04-01 01:00:30Z');
SELECT body FROM came('other');
-- Other times begin now.
SELECT clock('2026-04-01 02:30:00Z');
SELECT msgq.schedule('again', '@every 30m', 'other', '3');
SELECT next_at >= '2026-04-01 03:00:00Z' AS anew, last_at IS NOT NULL AS has_fired FROM known;
SELECT * FROM round_at('2026-04-01 02:40:00Z');
SELECT msgq.schedule('again', '0 12 * * *', 'other', '3');
SELECT msgq.schedule('again', '0 12 * * *', 'other', '3', timezone => 'Asia/Tokyo');
SELECT timezone, next_at FROM known;
SELECT count(*) FROM msgq.schedule;

--
-- The destination: renamed, dropped, a stream, a topic.
--
SELECT msgq.rename_queue('other', 'renamed');
SELECT destination FROM known;
SELECT * FROM round_at('2026-04-01 03:00:30Z');
SELECT count(*) FROM came('renamed');
SELECT tried($$SELECT msgq.drop_queue('renamed')$$);
SELECT msgq.unschedule('again');
SELECT msgq.drop_queue('renamed');
-- A dead-letter queue stays, too, when its queue goes.
SELECT msgq.create_queue('work');
SELECT msgq.schedule('dead', '@daily', 'work.dead', '1');
SELECT msgq.drop_queue('work');
SELECT destination FROM known;
SELECT msgq.unschedule('dead');
SELECT msgq.drop_queue('work.dead');

SELECT clock('2026-05-01 00:00:10Z');
SELECT msgq.create_stream('log', partitions => 3);
SELECT msgq.create_topic('news');
SELECT msgq.create_topic('addressed', 'direct');
SELECT msgq.bind('news', 'jobs', 'to.*', filter => '$.headers."msgq-schedule" == "to.topic"') > 0 AS bound;
SELECT msgq.bind('news', 'log') > 0 AS bound;
SELECT msgq.bind('addressed', 'jobs', 'to.nobody') > 0 AS bound;
SELECT msgq.schedule('to.stream', '* * * * *', 'log', '"stream"');
SELECT msgq.schedule('to.topic', '* * * * *', 'news', '"topic"', '{"a": 1}');
SELECT * FROM round_at('2026-05-01 00:01:10Z');
CALL msgq.sequence('log');
SELECT key, headers, body FROM generate_series(0, 2) AS p, msgq.scan('log', p, 1, 10) ORDER BY body;
SELECT headers, body FROM msgq.peek('jobs');
SELECT tried($$SELECT msgq.drop_stream('log')$$);
SELECT tried($$SELECT msgq.drop_topic('news')$$);

--
-- What cannot be sent: the others go on, and it is tried again.
--
SELECT msgq.schedule('unroutable', '* * * * *', 'addressed', '"secret"');
SELECT * FROM round_at('2026-05-01 00:02:10Z');
SELECT msgq.bind('addressed', 'jobs', 'unroutable') > 0 AS bound;
SELECT * FROM round_at('2026-05-01 00:02:30Z');
SELECT msgq.unschedule(name) FROM msgq.schedules ORDER BY name;
SELECT tried($$SELECT msgq.drop_topic('addressed'), msgq.drop_topic('news'), msgq.drop_stream('log')$$);
SELECT msgq.purge('jobs') > 0 AS purged;
SELECT msgq.schedule('a paused', '* * * * *', 'jobs', '"secret"');
SELECT msgq.schedule('a paused none', '* * * * *', 'jobs', '"none"', catch_up => 'none');
SELECT msgq.create_queue('elsewhere', max_length => 1, dead_letter_queue => '');
SELECT msgq.schedule('elsewhere', '* * * * *', 'elsewhere', '1');
SELECT msgq.pause('jobs', 'send');
SELECT * FROM round_at('2026-05-01 00:03:10Z');
SELECT status, detail FROM msgq.health() WHERE check_name = 'schedules';
-- Now the other one is full.
SELECT * FROM round_at('2026-05-01 00:04:10Z');
SELECT status, detail FROM msgq.health() WHERE check_name = 'schedules';
SELECT count(*) FROM msgq.peek('jobs');
SELECT msgq.resume('jobs', 'send');
SELECT msgq.purge('elsewhere');
SELECT * FROM round_at('2026-05-01 00:08:10Z');
SELECT body, array_agg(due ORDER BY due) FROM came('jobs') GROUP BY body;
SELECT msgq.unschedule(name) FROM msgq.schedules ORDER BY name;
SELECT msgq.purge('jobs') > 0 AS purged;

-- A time zone that the server's list does not have any more.
SELECT clock('2026-05-02 00:00:10Z');
SELECT msgq.schedule('zone', '* * * * *', 'jobs', '1', timezone => 'Europe/Berlin');
SELECT msgq.schedule('zone too', '* * * * *', 'jobs', '1', timezone => 'Europe/Berlin');
UPDATE msgq.schedule SET timezone = 'Atlantis/Poseidonis' WHERE name = 'zone';
SELECT * FROM round_at('2026-05-02 00:01:10Z');
SELECT name, next_at FROM known ORDER BY name;
SELECT msgq.unschedule(name) FROM msgq.schedules ORDER BY name;
SELECT msgq.purge('jobs') > 0 AS purged;
SELECT (SELECT count(*) FROM msgq.fired_1) AS first, (SELECT count(*) FROM msgq.fired_2) AS second;

--
-- The log's two tables take turns.
--
SELECT clock('2026-06-01 00:00:10Z');
SELECT msgq.schedule('turn', '@every 10s', 'jobs', '1');
SELECT msgq.schedule('turn too', '* * * * *', 'jobs', '2', catch_up => 'none');
SELECT * FROM round_at('2026-06-01 00:01:05Z');
SELECT * FROM round_at('2026-06-01 00:10:45Z');
SELECT name, last_at >= '2026-06-01 00:10:30Z' AS late, next_at >= '2026-06-01 00:10:30Z' AS later FROM known ORDER BY name;
CREATE TEMP TABLE before AS SELECT name, last_at, next_at FROM msgq.schedules;
INSERT INTO msgq.fired_1 SELECT s.id, '2025-01-01 00:00Z'::timestamptz + n * interval '1 s', now(), n % 2 = 0
FROM msgq.schedule AS s, generate_series(1, 100000) AS n;
SELECT did->'rotated' AS rotated, did->'emptied' AS emptied FROM msgq.maintain() AS did;
SELECT * FROM msgq.fire_log;
SELECT * FROM round_at('2026-06-01 00:10:45Z');
SELECT count(*) FROM msgq.fired_1;
-- The rows that count, and what is fired from now on.
SELECT name, skipped, due_at >= '2026-06-01 00:00Z' AS last FROM msgq.fired_2 JOIN msgq.schedule ON id = schedule_id ORDER BY name, due_at;
SELECT did->'rotated' AS rotated, did->'emptied' AS emptied FROM msgq.maintain() AS did;
SELECT pg_relation_size('msgq.fired_1') AS first_bytes;
(SELECT name, last_at, next_at FROM msgq.schedules) EXCEPT TABLE before;
SELECT * FROM round_at('2026-06-01 00:10:55Z');
SELECT * FROM round_at('2026-06-01 00:11:05Z');
SELECT count(*) FROM msgq.fired_1;
SELECT body, count(*) = count(DISTINCT due) AS once FROM came('jobs') GROUP BY body;
-- Every message has its row, and it is the other way round where nothing was thrown away.
SELECT count(*) FROM msgq.fired_2 WHERE NOT skipped
	AND NOT EXISTS (SELECT FROM came('jobs') WHERE due::timestamptz = due_at);
-- It turns back, with what it has been given.
INSERT INTO msgq.fired_2 SELECT s.id, '2024-01-01 00:00Z'::timestamptz + n * interval '1 s', now(), false
FROM msgq.schedule AS s, generate_series(1, 100000) AS n;
SELECT did->'rotated' AS rotated FROM msgq.maintain() AS did;
SELECT log FROM msgq.fire_log;
SELECT * FROM round_at('2026-06-01 00:11:25Z');
SELECT did->'emptied' AS emptied FROM msgq.maintain() AS did;
SELECT count(*) = count(DISTINCT (schedule_id, due_at)) AS once, min(due_at) >= '2026-06-01 00:00Z' AS none_old FROM msgq.fired_1;
SELECT count(*) FROM msgq.fired_2;

-- A log that somebody has changed is not written to.
CREATE FUNCTION spy() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER spy BEFORE INSERT ON msgq.fired_1 FOR EACH ROW EXECUTE FUNCTION spy();
SELECT * FROM round_at('2026-06-01 00:11:35Z');
DROP FUNCTION spy CASCADE;
SELECT * FROM round_at('2026-06-01 00:11:35Z');

SELECT msgq.unschedule('turn');
SELECT msgq.unschedule('turn too');
RESET msgq.test_clock_offset;
SELECT msgq.drop_queue('jobs'), msgq.drop_queue('elsewhere');
DROP VIEW known;
DROP FUNCTION clock, round_at, came, tried;
