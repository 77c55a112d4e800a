--
-- Making, changing, renaming and dropping queues; the bounds of each setting;
-- and that a rollback undoes all of it, also for a session that has used the
-- queue before and so has it in its caches.
--
\pset null '(null)'
SET intervalstyle = 'postgres';

-- What a statement raises.  What it does is kept if it raises nothing.
CREATE FUNCTION pg_temp.raised(statement text) RETURNS text
LANGUAGE plpgsql AS $$
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

--
-- Making a queue
--
SELECT msgq.create_queue('admin');
SELECT key, value
FROM msgq.queues, jsonb_each(settings)
WHERE name = 'admin' ORDER BY key;
SELECT created_at BETWEEN now() - interval '1 min' AND clock_timestamp() AS just_now,
	paused, id > 0 AS has_id
FROM msgq.queues WHERE name = 'admin';

SELECT pg_temp.raised($$SELECT msgq.create_queue('admin')$$);

-- if_not_exists leaves an existing queue alone, and says where it differs.
SELECT msgq.create_queue('admin', if_not_exists => true);
SELECT msgq.create_queue('admin', visibility_timeout => '30000 ms', if_not_exists => true);
SELECT msgq.create_queue('admin', visibility_timeout => '1 min', retry_delay => '1 s',
	if_not_exists => true);
SELECT msgq.create_queue('admin', dead_letter_queue => '', message_ttl => '1 h', if_not_exists => true);
SELECT settings->>'visibility_timeout' AS visibility_timeout,
	settings->>'retry_delay' AS retry_delay
FROM msgq.queues WHERE name = 'admin';
-- ... but a bad setting is an error in any case.
SELECT pg_temp.raised($$SELECT msgq.create_queue('admin', visibility_timeout => '-1 s', if_not_exists => true)$$);

--
-- The bounds of each setting, in create_queue and in alter_queue.  A value
-- that is accepted is followed by the setting as the queue has it then.
--
CREATE FUNCTION pg_temp.bound(key text, value jsonb) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	create_result text;
	alter_result text;
BEGIN
	create_result := pg_temp.raised(format('SELECT msgq.create_queue(''bound'', %I => %L)',
		key, value #>> '{}'));
	IF create_result = 'nothing' THEN
		SELECT 'is ' || coalesce(settings->>key, 'null') INTO create_result
		FROM msgq.queues WHERE name = 'bound';
		PERFORM msgq.drop_queue('bound');
	END IF;

	PERFORM msgq.create_queue('bound');
	alter_result := pg_temp.raised(format('SELECT msgq.alter_queue(''bound'', %L)',
		jsonb_build_object(key, value)));
	IF alter_result = 'nothing' THEN
		SELECT 'is ' || coalesce(settings->>key, 'null') INTO alter_result
		FROM msgq.queues WHERE name = 'bound';
	END IF;
	PERFORM msgq.drop_queue('bound');

	IF create_result = alter_result THEN
		RETURN create_result;
	END IF;
	RETURN format('create: %s; alter: %s', create_result, alter_result);
END
$$;
\pset format unaligned
SELECT key, value, pg_temp.bound(key, value) FROM (VALUES
	(1, 'visibility_timeout', '"0"'::jsonb),
	(2, 'visibility_timeout', '"1 us"'),
	(3, 'visibility_timeout', '"-1 us"'),
	(4, 'visibility_timeout', '"100 years"'),
	(5, 'visibility_timeout', '"101 years"'),
	(6, 'visibility_timeout', '"1 day -25:00:00"'),
	(7, 'visibility_timeout', '"1 mon"'),
	(8, 'visibility_timeout', '"soon"'),
	(9, 'visibility_timeout', 'null'),
	(10, 'retry_delay', '"0"'),
	(11, 'retry_delay', '"-1 s"'),
	(12, 'retry_delay', '"101 years"'),
	(13, 'retry_delay', 'null'),
	(14, 'retry_multiplier', '0'),
	(15, 'retry_multiplier', '0.999'),
	(16, 'retry_multiplier', '1'),
	(17, 'retry_multiplier', '1.5'),
	(18, 'retry_multiplier', '-2'),
	(19, 'retry_multiplier', '"NaN"'),
	(20, 'retry_multiplier', '"Infinity"'),
	(21, 'retry_multiplier', '1000000'),
	(22, 'retry_multiplier', 'null'),
	(23, 'max_retry_delay', '"0"'),
	(24, 'max_retry_delay', '"1 s"'),
	(25, 'max_retry_delay', '"-1 s"'),
	(26, 'max_retry_delay', '"1000 years"'),
	(27, 'max_retry_delay', 'null'),
	(28, 'max_message_bytes', '0'),
	(29, 'max_message_bytes', '1'),
	(30, 'max_message_bytes', '-1'),
	(31, 'max_message_bytes', '209715200'),
	(32, 'max_message_bytes', '209715201'),
	(33, 'max_message_bytes', '3000000000'),
	(34, 'max_message_bytes', '1.5'),
	(35, 'max_message_bytes', 'null')
) AS v(n, key, value) ORDER BY n;

-- Settings that this version knows but does not support: their default is
-- accepted, anything else is refused.
SELECT key, value, pg_temp.bound(key, value) FROM (VALUES
	(1, 'max_deliveries', '0'::jsonb),
	(2, 'max_deliveries', '5'),
	(3, 'max_deliveries', '-1'),
	(4, 'dead_letter_queue', '""'),
	(5, 'dead_letter_queue', '"dead"'),
	(6, 'dead_letter_queue', 'null'),
	(7, 'message_ttl', 'null'),
	(8, 'message_ttl', '"1 day"'),
	(9, 'max_length', 'null'),
	(10, 'max_length', '1000'),
	(11, 'overflow', '"reject"'),
	(12, 'overflow', '"drop_oldest"'),
	(13, 'overflow', 'null'),
	(14, 'max_in_flight', 'null'),
	(15, 'max_in_flight', '10'),
	(18, 'ordered', 'true'),
	(19, 'ordered', 'null'),
	(20, 'on_exhausted', '"skip"'),
	(21, 'on_exhausted', '"block"'),
	(22, 'dedup_window', '"24 h"'),
	(23, 'dedup_window', '"1 h"'),
	(24, 'dedup_window', 'null'),
	(25, 'dedup_window', '"0"'),
	(26, 'dedup_window', '"-1 s"'),
	(27, 'dedup_window', '"100 years"'),
	(28, 'archive_retention', 'null'),
	(29, 'archive_retention', '"7 days"'),
	(30, 'archive_retention', '"0"'),
	(31, 'archive_retention', '"-1 s"')
) AS v(n, key, value) ORDER BY n;

--
-- Changing a queue
--
SELECT settings, pg_temp.raised(format('SELECT msgq.alter_queue(''admin'', %L)', settings))
FROM (VALUES
	(1, '{}'),
	(2, '{"retry_delay": "2 s", "retry_multiplier": 3, "max_message_bytes": 4096}'),
	(3, '{"retry_delay": "7 s", "nonsense": 1}'),
	(4, '{"retry_delay": "7 s", "visibility_timeout": "-1 s"}'),
	(5, '{"retry_delay": "7 s", "max_deliveries": -3}'),
	(6, '{"retry_delay": "7 s", "priorities": 2}'),
	(7, '{"retry_delay": "7 s", "ordered": true}'),
	(8, '{"Retry_delay": "7 s"}'),
	(9, '{"queue": "other"}'),
	(10, '{"if_not_exists": true}'),
	(11, '{"retry_delay": 7}'),
	(12, '{"retry_delay": ["7 s"]}'),
	(13, '{"retry_delay": {}}'),
	(14, '{"max_message_bytes": true}'),
	(15, '{"max_message_bytes": "many"}'),
	(16, '[]'),
	(17, '1'),
	(18, 'null')
) AS v(n, settings) ORDER BY n;
-- Only the second changed anything.
SELECT settings->>'retry_delay' AS retry_delay,
	settings->>'retry_multiplier' AS retry_multiplier,
	settings->>'max_message_bytes' AS max_message_bytes,
	settings->>'visibility_timeout' AS visibility_timeout
FROM msgq.queues WHERE name = 'admin';
SELECT pg_temp.raised($$SELECT msgq.alter_queue('nowhere', '{}')$$);
\pset format aligned

-- A change counts for what comes after; messages in flight keep their lease.
SELECT msgq.alter_queue('admin', '{"visibility_timeout": "1 h"}');
SELECT cardinality(msgq.send_batch('admin', '{1,2}'));
SELECT body, visible_at - clock_timestamp() BETWEEN '59 min' AND '1 h' AS leased_for_an_hour
FROM msgq.receive('admin');
SELECT msgq.alter_queue('admin', '{"visibility_timeout": "2 h"}');
SELECT body, visible_at - clock_timestamp() BETWEEN '119 min' AND '2 h' AS leased_for_two
FROM msgq.receive('admin');
SELECT body, visible_at - clock_timestamp() < '1 h' AS within_the_hour FROM msgq.peek('admin');

--
-- Renaming
--
SELECT msgq.send('admin', '3');
SELECT receipt FROM msgq.receive('admin') \gset
SELECT msgq.rename_queue('admin', 'renamed');
SELECT count(*) FROM msgq.queues WHERE name = 'admin';
SELECT body FROM msgq.peek('renamed');
SELECT msgq.ack('renamed', :'receipt');
SELECT obj_description(format('msgq.q%s', id)::regclass) LIKE '%"renamed"%' AS comment_follows
FROM msgq.queues WHERE name = 'renamed';
SELECT msgq.create_queue('taken');
SELECT pg_temp.raised($$SELECT msgq.rename_queue('renamed', 'taken')$$);
SELECT pg_temp.raised($$SELECT msgq.rename_queue('admin', 'other')$$);
SELECT pg_temp.raised($$SELECT msgq.rename_queue('renamed', '')$$);
-- to its own name: nothing to do, or a name that is taken
SELECT pg_temp.raised($$SELECT msgq.rename_queue('renamed', 'renamed')$$);

-- Two queues may swap names.
SELECT msgq.send('taken', '"was in taken"');
BEGIN;
SELECT msgq.rename_queue('taken', 'between');
SELECT msgq.rename_queue('renamed', 'taken');
SELECT msgq.rename_queue('between', 'renamed');
COMMIT;
SELECT body FROM msgq.peek('renamed');
SELECT body FROM msgq.peek('taken');

--
-- Dropping
--
SELECT id AS old_id FROM msgq.queues WHERE name = 'renamed' \gset
SELECT msgq.drop_queue('renamed');
SELECT count(*) AS relations_left FROM pg_class WHERE relname ~ format('^q%s(_|$)', :old_id);
SELECT (SELECT count(*) FROM msgq.queue WHERE id = :old_id) AS queue_rows_left,
	(SELECT count(*) FROM msgq.segment WHERE queue_id = :old_id) AS segment_rows_left;
SELECT pg_temp.raised($$SELECT msgq.drop_queue('renamed')$$);
SELECT msgq.drop_queue('renamed', if_exists => true);
SELECT msgq.create_queue('renamed');
SELECT id > :old_id AS new_id FROM msgq.queues WHERE name = 'renamed';
SELECT count(*) AS messages FROM msgq.peek('renamed');

-- What others built on the handle view keeps the queue from being dropped.
SELECT id FROM msgq.queues WHERE name = 'renamed' \gset
CREATE VIEW admin_view AS SELECT count(*) AS n FROM msgq.q:id;
\pset format unaligned
SELECT regexp_replace(pg_temp.raised($$SELECT msgq.drop_queue('renamed')$$), '\mq\d+', 'qN', 'g') AS raised;
\pset format aligned
DROP VIEW admin_view;
SELECT msgq.drop_queue('renamed', true);
SELECT msgq.drop_queue('taken');

--
-- Rollbacks, in a session that knows the queue
--
SELECT msgq.create_queue('rollback');
SELECT msgq.send('rollback', '1');

BEGIN;
SELECT msgq.rename_queue('rollback', 'rolled');
SELECT msgq.send('rolled', '2');
SELECT pg_temp.raised($$SELECT msgq.send('rollback', '2')$$);
ROLLBACK;
SELECT pg_temp.raised($$SELECT msgq.send('rolled', '2')$$);
SELECT body FROM msgq.peek('rollback');

BEGIN;
SELECT msgq.alter_queue('rollback', '{"max_message_bytes": 20}');
\pset format unaligned
SELECT pg_temp.raised($$SELECT msgq.send('rollback', '"more than twenty bytes of text"')$$);
\pset format aligned
ROLLBACK;
SELECT pg_temp.raised($$SELECT msgq.send('rollback', '"more than twenty bytes of text"')$$);

BEGIN;
SELECT msgq.drop_queue('rollback');
SELECT pg_temp.raised($$SELECT msgq.send('rollback', '3')$$);
SELECT pg_temp.raised($$SELECT msgq.receive('rollback')$$);
-- a new one under the old name is another queue
SELECT msgq.create_queue('rollback');
SELECT msgq.send('rollback', '"in the new one"');
SELECT body FROM msgq.receive('rollback', 10);
ROLLBACK;
SELECT msgq.send('rollback', '4');
SELECT body FROM msgq.peek('rollback');

BEGIN;
SAVEPOINT a;
SELECT msgq.create_queue('brief');
SELECT msgq.send('brief', '1');
ROLLBACK TO a;
SELECT pg_temp.raised($$SELECT msgq.send('brief', '1')$$);
SELECT msgq.create_queue('brief');
SELECT msgq.send('brief', '2');
SELECT body FROM msgq.receive('brief');
SAVEPOINT b;
SELECT msgq.drop_queue('brief');
SELECT pg_temp.raised($$SELECT msgq.peek('brief')$$);
ROLLBACK TO b;
SAVEPOINT c;
SELECT msgq.alter_queue('brief', '{"visibility_timeout": "5 h"}');
SELECT msgq.rename_queue('brief', 'long');
ROLLBACK TO c;
SELECT msgq.send('brief', '3');
COMMIT;
SELECT body FROM msgq.peek('brief');
SELECT settings->>'visibility_timeout' AS visibility_timeout FROM msgq.queues WHERE name = 'brief';

-- A purge as well.
BEGIN;
SELECT msgq.purge('brief');
SELECT msgq.send('brief', '4');
SELECT body FROM msgq.peek('brief');
ROLLBACK;
SELECT body FROM msgq.peek('brief');

-- Created, used and dropped in one transaction.
BEGIN;
SELECT msgq.create_queue('fleeting');
SELECT msgq.send('fleeting', '1');
SELECT body FROM msgq.pop('fleeting');
SELECT msgq.drop_queue('fleeting');
SELECT msgq.create_queue('fleeting', visibility_timeout => '3 s');
COMMIT;
SELECT count(*) AS messages FROM msgq.peek('fleeting');

--
-- The session's settings do not change what is made.
--
SET search_path = '';
SET default_transaction_isolation = 'serializable';
SET quote_all_identifiers = on;
SET check_function_bodies = off;
SET row_security = off;
SET intervalstyle = 'iso_8601';
SET datestyle = 'SQL, DMY';
SELECT msgq.create_queue('settings', visibility_timeout => '1 day');
SELECT msgq.alter_queue('settings', settings - '{priorities,ordered}'::text[]) FROM msgq.queues WHERE name = 'settings';
SELECT settings->>'visibility_timeout' AS visibility_timeout FROM msgq.queues WHERE name = 'settings';
SELECT msgq.send('settings', '1');
SELECT body FROM msgq.receive('settings');
SELECT msgq.rename_queue('settings', 'settings too');
SELECT msgq.drop_queue('settings too');
RESET ALL;

-- Nothing of this can be done in a read-only transaction.
\pset format unaligned
BEGIN READ ONLY;
SELECT statement, pg_temp.raised('SELECT msgq.' || statement) FROM (VALUES
	($$create_queue('new')$$),
	($$create_queue('brief', if_not_exists => true)$$),
	($$alter_queue('brief', '{"retry_delay": "1 s"}')$$),
	($$rename_queue('brief', 'new')$$),
	($$drop_queue('brief')$$),
	($$purge('brief')$$),
	($$grant('brief', 'public', 'send')$$),
	($$revoke('brief', 'public', 'send')$$)
) AS v(statement);
COMMIT;

SELECT msgq.drop_queue(name) FROM unnest('{rollback,brief,fleeting}'::text[]) AS name;
