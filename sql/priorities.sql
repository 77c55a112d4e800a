--
-- Levels of priority: the order of receive, what send accepts, and a ring of
-- segments for each level.
--
\pset null '(null)'

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
-- How many levels a queue can have
--
\pset format unaligned
SELECT arguments, pg_temp.raised(format('SELECT msgq.create_queue(''bounds'', %s)', arguments)),
	msgq.drop_queue('bounds', if_exists => true) AS made
FROM (VALUES
	(1, 'priorities => 0'),
	(2, 'priorities => -1'),
	(3, 'priorities => NULL'),
	(4, 'priorities => 1'),
	(5, 'priorities => 2'),
	(6, 'priorities => 10'),
	(7, 'priorities => 11'),
	(8, 'priorities => 2147483647'),
	(9, 'priorities => 2, ordered => true')
) AS v(n, arguments) ORDER BY n;
\pset format aligned

SELECT msgq.create_queue('three', priorities => 3);
SELECT id AS queue_id, format('msgq.q%s', id) AS handle FROM msgq.queues WHERE name = 'three' \gset
SELECT n, level, state FROM msgq.segment WHERE queue_id = :queue_id ORDER BY n;
SELECT segments FROM msgq.queue_stats WHERE queue = 'three';
-- It is fixed.
SELECT msgq.create_queue('three', priorities => 2, if_not_exists => true);
SELECT msgq.create_queue('three', priorities => 3, if_not_exists => true);
SELECT msgq.alter_queue('three', '{"priorities": 3, "retry_delay": "1 s"}');
SELECT msgq.alter_queue('three', '{"priorities": 4}');

--
-- Which priorities a message can have
--
SELECT msgq.create_queue('one');
\pset format unaligned
SELECT priority, pg_temp.raised(format('SELECT msgq.send(''three'', ''1'', priority => %s)', priority))
FROM (VALUES (1, '-1'), (2, '0'), (3, '1'), (4, '2'), (5, '3'), (6, '32768'), (7, '65536'),
	(8, '-2147483648'), (9, '2147483647'), (10, 'NULL')) AS v(n, priority) ORDER BY n;
SELECT priority, pg_temp.raised(format('SELECT msgq.send_bytes_batch(''three'', ''{1,2}'', priority => %s)', priority))
FROM (VALUES (1, '-1'), (2, '0'), (3, '1'), (4, '2'), (5, '3'), (6, 'NULL')) AS v(n, priority) ORDER BY n;
SELECT priority, pg_temp.raised(format('SELECT msgq.send_bytes(''one'', ''1'', priority => %s)', priority))
FROM (VALUES (1, '-1'), (2, '0'), (3, '1')) AS v(n, priority) ORDER BY n;
SELECT messages, pg_temp.raised(format('SELECT msgq.send_messages(''three'', %L)', messages)) FROM (VALUES
	(1, '[{"body": 1, "priority": 2}, {"body": 2, "priority": 3}]'),
	(2, '[{"body": 1, "priority": -1}]'),
	(3, '[{"body": 1, "priority": 1.5}]'),
	(4, '[{"body": 1, "priority": 1e300}]'),
	(5, '[{"body": 1, "priority": 1e-300}]'),
	(6, '[{"body": 1, "priority": -2147483649}]'),
	(7, '[{"body": 1, "priority": "1"}]'),
	(8, '[{"body": 1, "priority": true}]'),
	(9, '[{"body": 1, "priority": null}]'),
	(10, '[{"body": 1, "priority": [1]}]')
) AS v(n, messages) ORDER BY n;
\pset format aligned
SELECT priority, count(*) FROM msgq.peek('three', 100) GROUP BY 1 ORDER BY 1;
SELECT priority, count(*) FROM msgq.peek('one', 100) GROUP BY 1 ORDER BY 1;
SELECT msgq.purge('three'), msgq.purge('one');
-- No id was taken for what was refused.
SELECT msgq.send('three', '1') - 10 AS id, msgq.purge('three') AS purged;
-- An empty batch has no priority that could be wrong, but NULL is.
SELECT msgq.send_batch('three', '{}', priority => 7);
SELECT msgq.send_batch('three', '{}', priority => NULL);
SELECT * FROM msgq.send_messages('three', '[]');

--
-- The order
--
SELECT count(msgq.send('three', to_jsonb(i), priority => i % 3)) FROM generate_series(1, 9) i;
SELECT id - 10 AS id, priority, body FROM msgq.peek('three');
SELECT body, priority FROM msgq.receive('three');
SELECT body, priority FROM msgq.receive('three', 3);
-- What comes later goes first.
SELECT msgq.send('three', '10', priority => 2) > 0 AS sent;
SELECT body, priority FROM msgq.receive('three', 2);
SELECT body, priority FROM msgq.pop('three', 10);
SELECT msgq.purge('three');

-- Due before ready, but only within a level.
SELECT count(msgq.send('three', to_jsonb(i), priority => i % 2)) FROM generate_series(1, 8) i;
SELECT count(*) FROM msgq.receive('three', 6, '0 s');
SELECT msgq.send('three', '"delayed"', delay => '1 us', priority => 2) > 0 AS sent;
SELECT msgq.send('three', '"ready"', priority => 2) > 0 AS sent;
SELECT body, priority, deliveries FROM msgq.receive('three', 20);
SELECT msgq.purge('three');

-- What comes back has the priority that it had.
CREATE TEMP TABLE got (receipt uuid, body jsonb);
SELECT cardinality(msgq.send_batch('three', '{1,2,3,4,5}', priority => 2));
SELECT cardinality(msgq.send_batch('three', '{6,7,8}'));
INSERT INTO got SELECT receipt, body FROM msgq.receive('three', 5);
SELECT msgq.nack('three', receipt, '0') FROM got WHERE body = '2';
SELECT msgq.release('three', receipt) FROM got WHERE body = '3';
SELECT msgq.extend('three', receipt, '0') FROM got WHERE body = '4';
SELECT msgq.ack('three', receipt) FROM got WHERE body = '5';
SELECT msgq.expire_lease('three', id) FROM msgq.peek('three') WHERE body = '1';
SELECT body, priority, deliveries FROM msgq.receive('three', 20);
SELECT msgq.why_empty('three');
SELECT msgq.cancel('three', id) FROM msgq.peek('three') WHERE body = '6';
SELECT priority, count(*) FROM msgq.leases JOIN msgq.peek('three', 100) USING (id)
WHERE queue = 'three' GROUP BY 1 ORDER BY 1;
SELECT msgq.purge('three');

-- A rolled-back receive leaves everything as it was.
SELECT count(msgq.send('three', to_jsonb(i), priority => i % 3)) FROM generate_series(1, 6) i;
BEGIN;
SELECT body, priority FROM msgq.receive('three', 3);
SAVEPOINT a;
SELECT body, priority FROM msgq.pop('three', 2);
ROLLBACK TO a;
SELECT body, priority FROM msgq.receive('three');
ROLLBACK;
SELECT body, priority, deliveries FROM msgq.receive('three', 20);
SELECT msgq.purge('three');

--
-- Priorities in one call
--
SELECT ordinal, id - min(id) OVER () AS id, duplicate FROM msgq.send_messages('three', '[
	{"body": 1},
	{"body": 2, "priority": 2},
	{"body": 3, "priority": 2},
	{"body": 4, "priority": 0, "delay": "1 hour"},
	{"body": 5, "priority": 1.0},
	{"body": 6, "priority": 2}]');
SELECT body, priority FROM msgq.peek('three');
SELECT body, priority FROM msgq.receive('three', 10);
SELECT msgq.purge('three');
-- Many, in an order that fits no level.
SELECT count(*), max(ordinal), count(DISTINCT id), bool_and(id - first = ordinal - 1) AS in_order
FROM (SELECT *, min(id) OVER () AS first FROM msgq.send_messages('three',
	(SELECT jsonb_agg(jsonb_build_object('body', i, 'priority', i / 7 % 3)) FROM generate_series(1, 2000) i))) AS s;
WITH got AS MATERIALIZED (SELECT row_number() OVER () AS n, id, priority, body FROM msgq.receive('three', 2000))
SELECT count(*), bool_and(priority = body::int / 7 % 3) AS as_sent,
	bool_and((-priority, id) > before) AS in_order
FROM (SELECT *, lag((-priority, id)) OVER (ORDER BY n) AS before FROM got) AS g;
SELECT msgq.purge('three');

--
-- Dead letters keep their priority, and go back to their level.
--
SELECT msgq.alter_queue('three', '{"max_deliveries": 1}');
SELECT count(msgq.send('three', to_jsonb(i), priority => i % 3)) FROM generate_series(1, 6) i;
SELECT msgq.nack('three', receipt), msgq.why_empty('three') IS NULL AS more FROM msgq.receive('three');
SELECT msgq.reject('three', receipt), body FROM msgq.receive('three', 3);
SELECT settings->'priorities' AS priorities FROM msgq.queues WHERE name = 'three.dead';
SELECT body, priority FROM msgq.peek('three.dead');
SELECT msgq.redrive('three.dead', max_messages => 3);
-- To a queue that has no such priority.
SELECT msgq.redrive('three.dead', target => 'one');
SELECT body, priority FROM msgq.pop('one');
SELECT body, priority FROM msgq.receive('three', 10);
SELECT msgq.purge('three');

-- A full queue drops from its lowest level.
SELECT msgq.alter_queue('three', '{"max_length": 4, "overflow": "drop_oldest"}');
SELECT count(msgq.send('three', to_jsonb(i), priority => i % 3)) FROM generate_series(1, 4) i;
SELECT cardinality(msgq.send_batch('three', '{5,6}', priority => 1));
SELECT body, priority FROM msgq.receive('three', 10);
SELECT msgq.purge('three');

--
-- Each level has a ring that turns by itself
--
SELECT msgq.create_queue('rings', priorities => 2, visibility_timeout => '1 h');
SELECT id AS queue_id FROM msgq.queues WHERE name = 'rings' \gset
PREPARE ring AS
SELECT level, string_agg(concat_ws(' ', n, state, CASE WHEN moved THEN 'moved' END), ', ' ORDER BY n) AS ring
FROM msgq.segment WHERE queue_id = :queue_id GROUP BY level ORDER BY level;
EXECUTE ring;

-- Only level 1 grows, around a message for much later, and another one.
SELECT msgq.send('rings', '"later"', delay => '30 days', priority => 1);
SELECT cardinality(msgq.send_batch('rings', array_fill(to_jsonb(repeat('x', 1900)), ARRAY[100]), priority => 1));
SELECT msgq.send('rings', '"high"', priority => 1);
SELECT msgq.send('rings', '"low"');
SELECT count(*) FROM msgq.pop('rings', 100);
SELECT pg_stat_force_next_flush();
SELECT msgq.maintain() IS NOT NULL AS maintained;
EXECUTE ring;

-- It has no other segment to turn to: one is made.
SELECT cardinality(msgq.send_batch('rings', array_fill(to_jsonb(repeat('x', 1900)), ARRAY[100]), priority => 1));
CREATE TEMP TABLE of_high AS SELECT receipt FROM msgq.receive('rings');
SELECT count(*) FROM msgq.pop('rings', 100);
SELECT msgq.release('rings', receipt) FROM of_high;
SELECT pg_stat_force_next_flush();
SELECT msgq.maintain() IS NOT NULL AS maintained;
EXECUTE ring;
SELECT segments FROM msgq.queue_stats WHERE queue = 'rings';

-- A segment that drains comes before the active one, and before lower levels.
SELECT msgq.maintain() IS NOT NULL AS maintained;
EXECUTE ring;
SELECT msgq.send('rings', '"high, later"', priority => 1);
SELECT body, priority FROM msgq.pop('rings', 2);

-- What is left is moved to the active segment of the same level.
SELECT msgq.maintain() IS NOT NULL AS maintained;
EXECUTE ring;
SELECT format('msgq.q%s_5', :queue_id) AS active \gset
SELECT body, priority FROM :active;
SELECT msgq.maintain() IS NOT NULL AS maintained;
EXECUTE ring;
SELECT body, priority FROM msgq.peek('rings');
SELECT body, priority FROM msgq.receive('rings', 10);
SELECT msgq.purge('rings');

SELECT msgq.rename_queue('rings', 'renamed');
SELECT msgq.drop_queue('renamed'), msgq.drop_queue('three'), msgq.drop_queue('one');
