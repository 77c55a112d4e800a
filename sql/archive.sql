--
-- Archiving: what is kept, for how long, and what an archive leaves behind.
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
CREATE FUNCTION pg_temp.maintain() RETURNS text LANGUAGE sql AS $$
	SELECT coalesce(string_agg(key || ' ' || value, ', ' ORDER BY key), 'nothing')
	FROM jsonb_each_text(msgq.maintain()) WHERE value <> '0' AND key IN ('rotated', 'emptied', 'failed');
$$;
CREATE FUNCTION pg_temp.store() RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(state, ' ' ORDER BY n) FROM msgq.store JOIN msgq.queue ON id = queue_id
	WHERE name = 'archive' AND kind = 'a';
$$;

--
-- A queue without an archive
--
SELECT msgq.create_queue('archive', dead_letter_queue => '');
SELECT pg_temp.store();
SELECT msgq.send('archive', '"early"');
SELECT receipt FROM msgq.receive('archive') \gset
SELECT pg_temp.raised(format('SELECT msgq.archive(%L, %L)', 'archive', :'receipt'));
SELECT pg_temp.raised($$SELECT msgq.archive_batch('archive', '{}')$$);
SELECT pg_temp.raised($$SELECT msgq.archive_batch('archive', NULL)$$);
SELECT count(*) FROM msgq.archived('archive');
SELECT count(*) FROM msgq.archived('nowhere');

--
-- The same queue, with one
--
SELECT msgq.alter_queue('archive', '{"archive_retention": "1 h"}');
SELECT pg_temp.store();
SELECT obj_description(format('msgq.q%s_a2', id)::regclass, 'pg_class') FROM msgq.queues WHERE name = 'archive';
SELECT msgq.archive('archive', :'receipt');
SELECT msgq.archive('archive', :'receipt');
SELECT pg_temp.raised(format('SELECT msgq.archive(%L, %L, strict => true)', 'archive', :'receipt'));
SELECT count(*) FROM msgq.peek('archive');
SELECT id, deliveries, failures, priority, group_key, headers, body, data,
	archived_at > enqueued_at AND archived_at BETWEEN now() - interval '1 min' AND clock_timestamp() AS just_now
FROM msgq.archived('archive');

-- What it was: counters, headers, bytes; in the order of ids.
SELECT msgq.send('archive', '"body"', '{"h": 1}') AS a, msgq.send_bytes('archive', '\x0102') AS b, msgq.send('archive', 'null') AS c;
SELECT msgq.nack('archive', receipt, '0', 'why') FROM msgq.receive('archive', 1);
SELECT msgq.archive_batch('archive', array_agg(receipt ORDER BY id DESC)) FROM msgq.receive('archive', 10);
SELECT id, deliveries, failures, headers, body, data FROM msgq.archived('archive');
SELECT id FROM msgq.archived('archive', 2);
SELECT id FROM msgq.archived('archive', 2, 2);
SELECT id FROM msgq.archived('archive', after_id => 4);
SELECT pg_temp.raised($$SELECT msgq.archived('archive', 0)$$);

-- Values of any size, stored in the archive and not in the segment.
SELECT msgq.send('archive', to_jsonb(repeat('a', 100000))) AS long_one,
	msgq.send('archive', to_jsonb(string_agg(md5(i::text), ''))) AS long_two FROM generate_series(1, 5000) i \gset
SELECT msgq.archive_batch('archive', array_agg(receipt)) FROM msgq.receive('archive', 10);
SELECT format('msgq.q%s_1', id) AS segment FROM msgq.queues WHERE name = 'archive' \gset
VACUUM :segment;
SELECT length(body#>>'{}'), body#>>'{}' = CASE id WHEN :long_one THEN repeat('a', 100000)
	ELSE (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 5000) i) END AS same
FROM msgq.archived('archive') WHERE id >= :long_one;

-- A batch: the stale ones are returned, and one that stands twice counts once.
SELECT msgq.send_batch('archive', '{1,2,3}');
SELECT array_agg(receipt) AS receipts FROM msgq.receive('archive', 3) \gset
SELECT msgq.ack('archive', (:'receipts'::uuid[])[2]);
SELECT msgq.archive_batch('archive', :'receipts'::uuid[] || :'receipts'::uuid[]) = (:'receipts'::uuid[])[2:2] AS second_is_stale;
SELECT msgq.archive_batch('archive', '{}'), msgq.archive_batch('archive', NULL);
SELECT count(*) FROM msgq.archived('archive');

-- Rolled back, the message is in its queue again, and not in the archive.
SELECT msgq.send('archive', '"undone"');
SELECT receipt FROM msgq.receive('archive') \gset
BEGIN;
SELECT msgq.archive('archive', :'receipt');
SELECT count(*) FROM msgq.archived('archive') WHERE body = '"undone"';
ROLLBACK;
SELECT count(*) FROM msgq.archived('archive') WHERE body = '"undone"';
BEGIN;
SAVEPOINT s;
SELECT msgq.archive('archive', :'receipt');
ROLLBACK TO s;
SELECT msgq.ack('archive', :'receipt');
COMMIT;
SELECT count(*) FROM msgq.archived('archive') WHERE body = '"undone"';
-- In the statement that receives.
SELECT msgq.send('archive', '"one statement"');
SELECT msgq.archive('archive', receipt) FROM msgq.receive('archive');
SELECT count(*) FROM msgq.archived('archive') WHERE body = '"one statement"';
-- At each isolation level, and where nothing can be written.
SELECT msgq.send('archive', '"rr"');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM msgq.archived('archive');
SELECT msgq.archive('archive', receipt) FROM msgq.receive('archive');
SELECT count(*) FROM msgq.archived('archive');
COMMIT;
BEGIN READ ONLY;
SELECT count(*) FROM msgq.archived('archive');
SELECT msgq.archive('archive', :'receipt');
ROLLBACK;

--
-- Retention
--
SELECT msgq.purge('archive');
SELECT msgq.drop_queue('archive');
SELECT count(*) FROM msgq.store;
SELECT msgq.create_queue('archive', dead_letter_queue => '', archive_retention => '1 h');
SELECT pg_temp.store();
CREATE FUNCTION pg_temp.archive(body jsonb) RETURNS boolean LANGUAGE sql AS $$
	SELECT msgq.send('archive', body);
	SELECT msgq.archive('archive', receipt) FROM msgq.receive('archive');
$$;
SELECT pg_temp.maintain();
SELECT pg_temp.archive('"one"');
SET msgq.test_clock_offset = '59min';
SELECT pg_temp.archive('"two"');
SELECT string_agg(body#>>'{}', ' ') FROM msgq.archived('archive');
SELECT pg_temp.maintain();
SET msgq.test_clock_offset = '61min';
SELECT string_agg(body#>>'{}', ' ') FROM msgq.archived('archive');
SELECT pg_temp.maintain();
SELECT pg_temp.store();
SELECT pg_temp.archive('"three"');
SELECT string_agg(body#>>'{}', ' ') FROM msgq.archived('archive');
SET msgq.test_clock_offset = '122min';
SELECT string_agg(body#>>'{}', ' ') FROM msgq.archived('archive');
SELECT pg_temp.archive('"four"');
SELECT pg_temp.maintain();
SELECT pg_temp.store();
SELECT string_agg(body#>>'{}', ' ') FROM msgq.archived('archive');
SET msgq.test_clock_offset = '185min';
SELECT string_agg(body#>>'{}', ' ') FROM msgq.archived('archive');
-- A longer retention brings back what is still there.
SELECT msgq.alter_queue('archive', '{"archive_retention": "1 day"}');
SELECT string_agg(body#>>'{}', ' ') FROM msgq.archived('archive');
-- None: nothing more is archived, and what there is stays.
SELECT msgq.alter_queue('archive', '{"archive_retention": null}');
SET msgq.test_clock_offset = '10000h';
SELECT pg_temp.maintain();
SELECT string_agg(body#>>'{}', ' ') FROM msgq.archived('archive');
SELECT pg_temp.raised($$SELECT pg_temp.archive('"five"')$$);
-- Again: the clock has gone on meanwhile.
SELECT msgq.alter_queue('archive', '{"archive_retention": "1 h"}');
SELECT string_agg(body#>>'{}', ' ') FROM msgq.archived('archive');
SELECT pg_temp.archive('"six"');
SELECT pg_temp.maintain();
SELECT pg_temp.store();
SELECT string_agg(body#>>'{}', ' ') FROM msgq.archived('archive');
RESET msgq.test_clock_offset;

--
-- Renamed, and with what direct access would not honour
--
SELECT msgq.rename_queue('archive', 'archive, renamed');
SELECT obj_description(format('msgq.q%s_a1', id)::regclass, 'pg_class') FROM msgq.queues WHERE name = 'archive, renamed';
SELECT string_agg(body#>>'{}', ' ') FROM msgq.archived('archive, renamed');
SELECT msgq.rename_queue('archive, renamed', 'archive');
SELECT format('msgq.q%s_a%s', queue_id, n) AS current FROM msgq.store WHERE state = 'current' AND kind = 'a' \gset
CREATE FUNCTION pg_temp.refused(feature text, add text, remove text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	raised text;
BEGIN
	EXECUTE add;
	raised := pg_temp.raised($q$SELECT msgq.archive('archive', '6ba7b810-9dad-11d1-80b4-00c04fd430c8')$q$);
	EXECUTE remove;
	RETURN feature || ': ' || regexp_replace(raised, 'q\d+_a\d', 'qN_aN');
END
$$;
SELECT pg_temp.refused('index', 'CREATE INDEX regress_extra ON ' || :'current' || ' (id)', 'DROP INDEX msgq.regress_extra');
SELECT pg_temp.refused('not null', 'ALTER TABLE ' || :'current' || ' ALTER group_key SET NOT NULL',
	'ALTER TABLE ' || :'current' || ' ALTER group_key DROP NOT NULL');
SELECT pg_temp.refused('row security', 'ALTER TABLE ' || :'current' || ' ENABLE ROW LEVEL SECURITY',
	'ALTER TABLE ' || :'current' || ' DISABLE ROW LEVEL SECURITY');
SELECT msgq.drop_queue('archive');
SELECT count(*) FROM msgq.store;
SELECT count(*) FROM pg_class WHERE relnamespace = 'msgq'::regnamespace AND relname ~ '^q\d+_a';
