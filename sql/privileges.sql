--
-- Privileges, as a grid: each function and procedure, as each kind of role,
-- called for real and undone; which rows each role sees; and what it can do to
-- the tables without the functions.  What is expected is not what the code does,
-- but what docs/reference.md says; only what differs is shown as wrong.
--
-- A new function without a row in "call" makes the test fail.
--
SET client_min_messages = warning;

-- rights: what the role has.  Besides the five rights, which it has on the
-- objects that the calls name: create (CREATE on the schema), own (it owns the
-- captured table and the schedule), claim and look (INSERT and SELECT on
-- msgq.inbox).  super has everything.  The roles with public have nothing
-- themselves; public has it, for the time of the call.
CREATE TEMP TABLE role (n int GENERATED ALWAYS AS IDENTITY, name text, rights text[], public boolean DEFAULT false);
INSERT INTO role (name, rights) VALUES
	('none', '{}'),
	('other', '{}'),		-- all rights on other queues, streams and topics
	('monitor', '{}'),		-- a member of pg_monitor
	('peek', '{peek}'),
	('send', '{send}'),
	('receive', '{receive}'),
	('manage', '{manage}'),
	('admin', '{admin}'),
	('all', '{peek,send,receive,manage,admin,claim,look}'),
	('reader', '{peek,look}'),					-- a member of pg_read_all_data
	('writer', '{send,receive,manage,claim}'),	-- a member of pg_write_all_data
	('creator', '{peek,send,receive,manage,admin,create,own}'),
	('super', '{peek,send,receive,manage,admin,create,own,claim,look,super}');
INSERT INTO role (name, rights, public)
SELECT "right" || ', public', ARRAY["right"], true FROM unnest('{peek,send,receive,manage,admin}'::text[]) "right";
CREATE FUNCTION pg_temp.role_name(role role) RETURNS name
LANGUAGE sql AS $$ SELECT 'regress_privileges_' || CASE WHEN role.public THEN 'none' ELSE role.name END $$;

SELECT format('CREATE ROLE %I', pg_temp.role_name(role)) FROM role WHERE NOT public \gexec
GRANT pg_monitor TO regress_privileges_monitor;
GRANT pg_read_all_data TO regress_privileges_reader;
GRANT pg_write_all_data TO regress_privileges_writer;
ALTER ROLE regress_privileges_super SUPERUSER;

--
-- Something of everything, so that each call finds what it asks for
--
SELECT msgq.create_queue('other queue', dead_letter_queue => '');
SELECT msgq.create_stream('other stream');
SELECT msgq.create_topic('other topic');
SELECT msgq.create_group('other stream', 'other', 'first');
SELECT msgq.bind('other topic', 'other queue') > 0 AS bound;
SELECT msgq.send('other queue', '1') > 0 AS sent;
SELECT count(*) FROM msgq.receive('other queue', 1, '1 day');
SELECT msgq.schedule('other schedule', '@yearly', 'other queue', '1');

GRANT CREATE ON SCHEMA msgq TO regress_privileges_creator;
CREATE SCHEMA privileges_tables;
GRANT ALL ON SCHEMA privileges_tables TO PUBLIC;
SET ROLE regress_privileges_creator;
SELECT msgq.create_queue('dead', dead_letter_queue => '');
SELECT msgq.create_queue('spare queue', dead_letter_queue => '');
SELECT msgq.create_queue('queue', dead_letter_queue => 'dead', archive_retention => '1 h');
SELECT msgq.create_stream('stream');
SELECT msgq.create_topic('topic', on_unroutable => 'drop');
SELECT msgq.create_topic('spare topic');
SELECT msgq.bind('topic', 'queue', 'bound') > 0 AS bound;
SELECT msgq.schedule('schedule', '@yearly', 'queue', '1');
-- The rights on the table are there for everybody (sql/capture.sql has those).
CREATE TABLE privileges_tables.item (id int);
GRANT SELECT, TRIGGER ON privileges_tables.item TO PUBLIC;
SELECT msgq.capture('privileges_tables.item', 'topic') IS NOT NULL AS captured;
-- archived, a dead letter, two leased messages, and two ready ones
SELECT cardinality(msgq.send_batch('queue', '{1,2,3,4,5,6}'));
SELECT msgq.archive('queue', receipt) FROM msgq.receive('queue');
SELECT msgq.reject('queue', receipt) FROM msgq.receive('queue');
SELECT id AS leased, receipt FROM msgq.receive('queue', 1, '1 day') \gset
SELECT id AS request, receipt AS request_receipt FROM msgq.receive('queue', 1, '1 day') \gset
SELECT id AS ready FROM msgq.peek('queue') WHERE body = '5' \gset
SELECT msgq.append('stream', '1', 'key') > 0 AS appended;
SELECT msgq.create_group('stream', consumer_group, 'first') FROM unnest('{read,poll,leased}'::text[]) consumer_group;
CALL msgq.sequence('stream');
SELECT receipt AS lease FROM msgq.poll('stream', 'leased', visibility_timeout => '1 day') \gset
RESET ROLE;
SELECT msgq.inbox_claim('consumer', 'claimed');
-- Nobody waits for its reply; but a call to the procedure would.
SELECT format('msgq.q%s_1', id) AS segment, format('msgq.q%s', id) AS queue_handle, id AS queue_id
FROM msgq.queues WHERE name = 'queue' \gset
UPDATE :segment SET headers = jsonb_build_object('msgq-reply-to',
	jsonb_build_object('id', :'receipt', 'process', 0, 'deadline', '2100-01-01T00:00:00Z')) WHERE id = :request;

SELECT format('SELECT msgq.grant(%L, %L, %L)', object, 'regress_privileges_' || name, "right")
FROM unnest('{queue,dead,spare queue,stream,topic,spare topic}'::text[]) object, unnest('{peek,send,receive,manage,admin}'::text[]) "right", role
WHERE name IN ("right", 'all')
UNION ALL
SELECT format('SELECT msgq.grant(%L, %L, %L)', object, 'regress_privileges_other', "right")
FROM unnest('{other queue,other stream,other topic}'::text[]) object, unnest('{peek,send,receive,manage,admin}'::text[]) "right"
\pset tuples_only
\o /dev/null
\gexec
\o
\pset tuples_only
GRANT SELECT, INSERT ON msgq.inbox TO regress_privileges_all;

--
-- The calls, and what each needs: nothing, one of several rights (or), several
-- of them (and); or the SQLSTATE that it raises for everybody.
--
CREATE TEMP TABLE call (n int GENERATED ALWAYS AS IDENTITY, name text, needs text, arguments text);
INSERT INTO call (name, needs, arguments) VALUES
	('create_queue', 'create', $$'new'$$),
	('alter_queue', 'admin', $$'queue', '{"retry_delay": "1 s"}'$$),
	('drop_queue', 'admin', $$'spare queue'$$),
	('rename_queue', 'admin', $$'queue', 'renamed'$$),
	('purge', 'manage', $$'queue'$$),
	('pause', 'manage', $$'queue'$$),
	('resume', 'manage', $$'queue'$$),
	('grant', 'admin', $$'queue', 'regress_privileges_none', 'peek'$$),
	('grant', 'admin', $$'stream', 'regress_privileges_none', 'peek'$$),
	('grant', 'admin', $$'topic', 'regress_privileges_none', 'peek'$$),
	('revoke', 'admin', $$'queue', 'regress_privileges_peek', 'peek'$$),
	('revoke', 'admin', $$'stream', 'regress_privileges_peek', 'peek'$$),
	('revoke', 'admin', $$'topic', 'regress_privileges_peek', 'peek'$$),
	('send', 'send', $$'queue', '1'$$),
	('send_bytes', 'send', $$'queue', '\x01'$$),
	('send_batch', 'send', $$'queue', '{1}'$$),
	('send_bytes_batch', 'send', $$'queue', '{"\\x01"}'$$),
	('send_messages', 'send', $$'queue', '[{"body": 1}]'$$),
	('send_once', 'send', $$'queue', '1', 'key'$$),
	('send_cloudevent', 'send', $$'queue', '{"specversion": "1.0", "id": "1", "source": "s", "type": "t"}'$$),
	('receive', 'receive', $$'queue'$$),
	('pop', 'receive', $$'queue'$$),
	('ack', 'receive', $$'queue', RECEIPT, true$$),
	('ack_batch', 'receive', $$'queue', ARRAY[RECEIPT], true$$),
	('archive', 'receive', $$'queue', RECEIPT, true$$),
	('archive_batch', 'receive', $$'queue', ARRAY[RECEIPT], true$$),
	('nack', 'receive', $$'queue', RECEIPT, strict => true$$),
	('nack_batch', 'receive', $$'queue', ARRAY[RECEIPT], strict => true$$),
	('reject', 'receive', $$'queue', RECEIPT, strict => true$$),
	('reject_batch', 'receive', $$'queue', ARRAY[RECEIPT], strict => true$$),
	('extend', 'receive', $$'queue', RECEIPT, '1 s', true$$),
	('extend_batch', 'receive', $$'queue', ARRAY[RECEIPT], '1 s', true$$),
	('release', 'receive', $$'queue', RECEIPT, true$$),
	('release_batch', 'receive', $$'queue', ARRAY[RECEIPT], true$$),
	('reply', 'receive', $$'queue', REQUEST_RECEIPT, '1'$$),
	('cancel', 'manage', $$'queue', READY$$),
	('expire_lease', 'manage', $$'queue', LEASED$$),
	('peek', 'peek', $$'queue'$$),
	('archived', 'peek', $$'queue'$$),
	('why_empty', 'peek', $$'queue'$$),
	('redrive', 'manage and send', $$'dead'$$),
	('redrive', 'manage and send', $$'dead', 'queue'$$),
	('create_stream', 'create', $$'new'$$),
	('alter_stream', 'admin', $$'stream', '{"retention": "1 s"}'$$),
	('drop_stream', 'admin', $$'stream'$$),
	('append', 'send', $$'stream', '1'$$),
	('append_bytes', 'send', $$'stream', '\x01'$$),
	('append_batch', 'send', $$'stream', '{1}'$$),
	('create_group', 'receive', $$'stream', 'new', 'first'$$),
	('drop_group', 'manage', $$'stream', 'read'$$),
	('read', 'receive', $$'stream', 'read'$$),
	('poll', 'receive', $$'stream', 'poll'$$),
	('commit', 'receive', $$'stream', 'leased', LEASE$$),
	('seek', 'receive', $$'stream', 'read', 'first'$$),
	('scan', 'receive', $$'stream', 0, 1, 1$$),
	('last_per_key', 'receive', $$'stream'$$),
	('create_topic', 'create', $$'new'$$),
	('alter_topic', 'admin', $$'topic', '{"retain": "false"}'$$),
	('drop_topic', 'admin', $$'spare topic'$$),
	('bind', 'receive and send', $$'topic', 'queue', 'new'$$),
	('bind', 'receive and send', $$'topic', 'stream', 'new'$$),
	('unbind', 'manage or receive and send', $$'topic', 'queue', 'bound'$$),
	('publish', 'send', $$'topic', 'bound', '1'$$),
	('publish_bytes', 'send', $$'topic', 'bound', '\x01'$$),
	('route', 'peek', $$'topic', 'bound'$$),
	('topic_matches', 'nothing', $$'a.*', 'a.b'$$),
	('capture', 'send', $$'privileges_tables.item', 'queue'$$),
	('capture', 'send', $$'privileges_tables.item', 'stream'$$),
	('uncapture', 'own', $$'privileges_tables.item', 'topic'$$),
	('create_outbox', 'send', $$'privileges_tables.outbox', 'topic'$$),
	('capture_changes', '39P01', ''),		-- it is for triggers
	('as_cloudevent', 'nothing', $$(1, NULL, 1, 0, 0, NULL, now(), NULL, NULL, NULL, '1', NULL)::msgq.message$$),
	('inbox_claim', 'claim', $$'consumer', 'new'$$),
	('inbox_is_whole', 'nothing', ''),
	('schedule', 'send', $$'new', '@yearly', 'queue', '1'$$),
	('schedule', 'send', $$'new', '@yearly', 'stream', '1'$$),
	('schedule', 'send', $$'new', '@yearly', 'topic', '1'$$),
	('schedule', 'own and send or manage and send', $$'schedule', '@daily', 'queue', '1'$$),
	('unschedule', 'own or manage', $$'schedule'$$),
	('due_times', 'nothing', $$'@yearly'$$),
	('next_due', 'nothing', $$'@yearly', 'UTC', now(), now()$$),
	('health', 'nothing', ''),
	('list_drained', 'nothing', ''),
	('list_leases', 'nothing', ''),
	('list_queue_stats', 'nothing', ''),
	('list_stream_stats', 'nothing', ''),
	('list_group_lag', 'nothing', ''),
	('handle', 'nothing', 'QUEUE_ID'),
	('stream_handle', 'nothing', '(SELECT max(id) FROM msgq.streams)'),
	('topic_handle', 'nothing', '(SELECT max(id) FROM msgq.topics)');
UPDATE call SET arguments = replace(arguments, placeholder, value)
FROM (VALUES ('ARRAY[RECEIPT]', format('ARRAY[%L::uuid]', :'receipt')), ('REQUEST_RECEIPT', quote_literal(:'request_receipt')),
	(' RECEIPT', ' ' || quote_literal(:'receipt')), ('READY', :'ready'), ('LEASED', :'leased'),
	('LEASE', quote_literal(:'lease')), ('QUEUE_ID', :'queue_id')) AS v(placeholder, value)
WHERE arguments LIKE '%' || placeholder || '%' AND (placeholder <> 'LEASE' OR arguments NOT LIKE '%LEASED%');

-- What these do to transactions cannot be undone; they come last.
CREATE TEMP TABLE top_level (n int, name text, needs text);
INSERT INTO top_level VALUES (1, 'wait', 'receive'), (2, 'request', 'send'), (3, 'sequence', 'receive'), (4, 'maintain', 'super');

-- Functions without a row, and rows without a function.
SELECT proname AS not_in_the_grid
FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
	JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND e.extname = 'msgq'
WHERE proname NOT IN (SELECT name FROM call UNION SELECT name FROM top_level) ORDER BY proname COLLATE "C";
SELECT name FROM (SELECT name FROM call UNION SELECT name FROM top_level) c
WHERE name NOT IN (SELECT proname FROM pg_proc WHERE pronamespace = 'msgq'::regnamespace);
-- The comments of the functions say the same, where they name a right.
SELECT DISTINCT name, needs, said[1] FROM (TABLE call UNION ALL SELECT n, name, needs, '' FROM top_level) c
	JOIN pg_proc ON proname = name AND pronamespace = 'msgq'::regnamespace,
	regexp_matches(obj_description(oid, 'pg_proc'), '[Nn]eeds (?:the right )?(peek|send|receive|manage|admin|CREATE)\M', 'g') said
WHERE needs !~ lower(said[1]) AND name <> 'create_outbox';

CREATE FUNCTION pg_temp.expected(role role, needs text) RETURNS text
LANGUAGE sql AS $$
	SELECT CASE WHEN needs ~ '^\d' THEN needs
		WHEN needs = 'nothing' OR EXISTS (SELECT FROM regexp_split_to_table(needs, ' or ') alternative
			WHERE string_to_array(alternative, ' and ') <@ role.rights) THEN 'yes'
		ELSE '-' END
$$;

-- yes, - (42501), or another SQLSTATE.  empty is yes, but there was no row, or
-- it was false.
CREATE FUNCTION pg_temp.tried(role role, call text, prepare text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	found bigint;
	failed bigint;
BEGIN
	EXECUTE coalesce(prepare, 'SELECT');
	IF role.public THEN
		PERFORM msgq.grant(object, 'public', role.rights[1]) FROM unnest('{queue,dead,spare queue,stream,topic,spare topic}'::text[]) object;
	END IF;
	EXECUTE format('SET LOCAL ROLE %I', pg_temp.role_name(role));
	EXECUTE format('SELECT count(*), count(*) FILTER (WHERE format(''%%s'', r) = ''f'') FROM (SELECT msgq.%s) AS v(r)', call)
		INTO found, failed;
	RAISE SQLSTATE 'UNDO0';
EXCEPTION
	WHEN SQLSTATE 'UNDO0' THEN
		RETURN CASE WHEN found = 0 OR failed > 0 THEN 'empty' ELSE 'yes' END;
	WHEN insufficient_privilege THEN
		RETURN '-';
	WHEN OTHERS THEN
		RETURN SQLSTATE;
END
$$;

CREATE TEMP TABLE outcome (what text, call int, name text, needs text, role text, expected text, outcome text);
GRANT INSERT ON outcome TO PUBLIC;
INSERT INTO outcome
SELECT 'functions', call.n, call.name, needs, role.name, pg_temp.expected(role, needs),
	pg_temp.tried(role, format('%I(%s)', call.name, arguments))
FROM call, role;
-- For the creator each call does something, so it is a real one; but for this.
SELECT name, outcome FROM outcome WHERE role = 'creator' AND outcome = 'empty';
UPDATE outcome SET outcome = 'yes' WHERE outcome = 'empty';

--
-- Calls that need a right on each of two objects: every pair of rights, none
-- among them, for a role that has nothing else.
--
CREATE TEMP TABLE pair (n int, name text, first text, first_right text, second text, second_right text, arguments text);
INSERT INTO pair VALUES
	(1, 'redrive', 'dead', 'manage', 'other queue', 'send', $$'dead', 'other queue'$$),
	(2, 'bind', 'topic', 'receive', 'other queue', 'send', $$'topic', 'other queue'$$),
	(3, 'bind', 'topic', 'receive', 'other stream', 'send', $$'topic', 'other stream'$$),
	(4, 'bind', 'topic', 'receive', 'other topic', 'send', $$'topic', 'other topic'$$),
	(5, 'unbind', 'topic', 'receive', 'queue', 'send', $$'topic', 'queue', 'bound'$$),
	(6, 'alter_queue', 'queue', 'admin', 'other queue', 'send', $$'queue', '{"dead_letter_queue": "other queue"}'$$),
	(7, 'alter_stream', 'stream', 'admin', 'other queue', 'send', $$'stream', '{"dead_letter_queue": "other queue"}'$$),
	(8, 'alter_topic', 'topic', 'admin', 'other topic', 'send', $$'topic', '{"on_unroutable": "alternate", "alternate": "other topic"}'$$),
	(9, 'schedule', 'queue', 'manage', 'other queue', 'send', $$'schedule', '@daily', 'other queue', '1'$$);
INSERT INTO outcome
SELECT 'pairs', pair.n, pair.name, format('%s on %s, %s on %s', first_right, first, second_right, second),
	format('%s, %s', coalesce(f, '-'), coalesce(s, '-')),
	-- to unbind, manage on the topic is enough as well
	CASE WHEN f = first_right AND s = second_right OR pair.name = 'unbind' AND f = 'manage' THEN 'yes' ELSE '-' END,
	pg_temp.tried(role, format('%I(%s)', pair.name, arguments), concat_ws(', ', 'SELECT 1',
		CASE WHEN f IS NOT NULL THEN format('msgq.grant(%L, ''regress_privileges_none'', %L)', first, f) END,
		CASE WHEN s IS NOT NULL THEN format('msgq.grant(%L, ''regress_privileges_none'', %L)', second, s) END))
FROM role, pair, unnest('{NULL,peek,send,receive,manage,admin}'::text[]) f, unnest('{NULL,peek,send,receive,manage,admin}'::text[]) s
WHERE role.name = 'none';

--
-- Which of the objects the views show to whom: those of the calls (own), or the
-- others.  needs: any of the five rights on what is shown, one of them, or as
-- above.
--
CREATE TEMP TABLE shown (n int, name text, needs text, query text, own text[], others text[]);
INSERT INTO shown VALUES
	(1, 'queues', 'any', 'SELECT name FROM msgq.queues', '{dead,queue,"spare queue"}', '{other queue}'),
	(2, 'leases', 'peek', 'SELECT queue FROM msgq.leases', '{queue}', '{other queue}'),
	(3, 'queue_stats', 'peek', 'SELECT queue FROM msgq.queue_stats', '{dead,queue,"spare queue"}', '{other queue}'),
	(4, 'streams', 'any', 'SELECT name FROM msgq.streams', '{stream}', '{other stream}'),
	(5, 'stream_stats', 'peek', 'SELECT stream FROM msgq.stream_stats', '{stream}', '{other stream}'),
	(6, 'group_lag', 'peek', 'SELECT stream FROM msgq.group_lag', '{stream}', '{other stream}'),
	(7, 'topics', 'any', 'SELECT name FROM msgq.topics', '{"spare topic",topic}', '{other topic}'),
	(8, 'bindings', 'peek', 'SELECT topic FROM msgq.bindings', '{topic}', '{other topic}'),
	(9, 'schedules', 'own or peek', 'SELECT name FROM msgq.schedules', '{schedule}', '{other schedule}'),
	(10, 'captures', 'nothing', 'SELECT relation FROM msgq.captures', '{privileges_tables.item}', '{}'),
	(11, 'inbox', 'look', 'SELECT message_id FROM msgq.inbox', '{claimed}', '{}'),
	(12, 'list_leases()', 'peek', 'SELECT queue FROM msgq.list_leases()', '{queue}', '{other queue}'),
	(13, 'list_queue_stats()', 'peek', 'SELECT queue FROM msgq.list_queue_stats()', '{dead,queue,"spare queue"}', '{other queue}'),
	(14, 'list_stream_stats()', 'peek', 'SELECT stream FROM msgq.list_stream_stats()', '{stream}', '{other stream}'),
	(15, 'list_group_lag()', 'peek', 'SELECT stream FROM msgq.list_group_lag()', '{stream}', '{other stream}');
INSERT INTO shown
SELECT 16, 'the handle of the ' || name, 'peek', format('SELECT %L::text FROM msgq.%s%s', name, left(name, 1), id), ARRAY[name], '{}'
FROM (SELECT name, id FROM msgq.queues UNION ALL SELECT name, id FROM msgq.streams UNION ALL SELECT name, id FROM msgq.topics) o
WHERE name IN ('queue', 'stream', 'topic');
-- Views without a row.
SELECT relname AS not_in_the_grid FROM pg_class
WHERE relnamespace = 'msgq'::regnamespace AND relkind = 'v' AND relname !~ '^[qst]\d+$'
	AND relname NOT IN (SELECT name FROM shown) ORDER BY relname COLLATE "C";

-- What a role sees: own, others, both or - (nothing, or 42501).
CREATE FUNCTION pg_temp.seen(role role, shown shown) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	seen text[];
BEGIN
	IF role.public THEN
		PERFORM msgq.grant(object, 'public', role.rights[1]) FROM unnest('{queue,dead,spare queue,stream,topic,spare topic}'::text[]) object;
	END IF;
	EXECUTE format('SET LOCAL ROLE %I', pg_temp.role_name(role));
	EXECUTE format('SELECT array_agg(DISTINCT o::text COLLATE "C") FROM (%s) AS v(o) WHERE o::text = ANY (%L)',
		shown.query, shown.own || shown.others) INTO seen;
	RAISE SQLSTATE 'UNDO0';
EXCEPTION
	WHEN SQLSTATE 'UNDO0' THEN
		RETURN CASE WHEN seen IS NULL THEN '-'
			WHEN seen = shown.own THEN 'own'
			WHEN seen = shown.others THEN 'others'
			WHEN seen @> shown.own AND seen @> shown.others THEN 'both'
			ELSE seen::text END;
	WHEN insufficient_privilege THEN
		RETURN '-';
	WHEN OTHERS THEN
		RETURN SQLSTATE;
END
$$;
-- reader, writer and super have their rights on everything.
CREATE FUNCTION pg_temp.expected_to_see(role role, shown shown) RETURNS text
LANGUAGE sql AS $$
	SELECT CASE
		WHEN role.name = 'other' AND cardinality(shown.others) > 0 THEN 'others'
		WHEN shown.needs = 'any' AND role.rights && '{peek,send,receive,manage,admin}'
			OR pg_temp.expected(role, shown.needs) = 'yes'
		THEN CASE WHEN role.name IN ('reader', 'writer', 'super') AND cardinality(shown.others) > 0 THEN 'both' ELSE 'own' END
		ELSE '-' END
$$;
INSERT INTO outcome
SELECT 'views', shown.n, shown.name, shown.needs, role.name, pg_temp.expected_to_see(role, shown), pg_temp.seen(role, shown)
FROM shown, role;

--
-- Past the functions: each statement on every table, sequence and view.
--
-- Of a table, what fails for another reason than the privilege (a NULL) was
-- let through.  Views cannot be written, which is found out before.
CREATE FUNCTION pg_temp.reached(role role, kind "char", statement text) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('SET LOCAL ROLE %I', pg_temp.role_name(role));
	EXECUTE statement;
	RAISE SQLSTATE 'UNDO0';
EXCEPTION
	WHEN insufficient_privilege THEN
		RETURN '-';
	WHEN OTHERS THEN
		RETURN CASE WHEN kind = 'v' AND SQLSTATE IN ('55000', '42809', '0A000') THEN '-' ELSE 'yes' END;
END
$$;
INSERT INTO outcome
SELECT 'tables', r.n, CASE relkind WHEN 'r' THEN 'table' WHEN 'S' THEN 'sequence' ELSE 'view' END, command, role.name,
	CASE WHEN role.name = 'super'
			OR role.name = 'reader' AND command IN ('SELECT', 'last_value')
			OR role.name = 'writer' AND command IN ('INSERT', 'UPDATE', 'DELETE', 'nextval', 'setval')
		THEN 'yes' ELSE '-' END,
	pg_temp.reached(role, relkind, format(statement, relation, attname))
FROM (
	SELECT row_number() OVER (ORDER BY c.oid) AS n, relkind, format('msgq.%I', relname) AS relation, attname
	FROM pg_class c LEFT JOIN pg_attribute ON attrelid = c.oid AND attnum = 1
	WHERE relnamespace = 'msgq'::regnamespace
) r JOIN (VALUES
	('{r}'::"char"[], 'SELECT', 'SELECT FROM %1$s'),
	('{r,v}', 'INSERT', 'INSERT INTO %1$s DEFAULT VALUES'),
	('{r,v}', 'UPDATE', 'UPDATE %1$s SET %2$I = NULL'),
	('{r,v}', 'DELETE', 'DELETE FROM %1$s'),
	('{r,v}', 'TRUNCATE', 'TRUNCATE %1$s'),
	('{r}', 'CREATE TRIGGER', 'CREATE TRIGGER t BEFORE INSERT ON %1$s FOR EACH ROW EXECUTE FUNCTION msgq.capture_changes()'),
	('{r,v}', 'ALTER', 'ALTER TABLE %1$s ALTER %2$I DROP DEFAULT'),
	('{r,v}', 'CREATE RULE', 'CREATE RULE r AS ON INSERT TO %1$s DO INSTEAD NOTHING'),
	('{S}', 'last_value', 'SELECT last_value FROM %1$s'),
	('{S}', 'nextval', 'SELECT nextval(%1$L)'),
	-- which is out of bounds: what a sequence was set to is not undone
	('{S}', 'setval', 'SELECT setval(%1$L, 0)')
) AS s(kinds, command, statement) ON relkind = ANY (kinds), role
WHERE NOT role.public AND (relkind <> 'v' OR role.name NOT IN ('writer', 'super'));

--
-- What cannot be undone: each as each role, at the top level.
--
\set VERBOSITY sqlstate
\pset tuples_only
\set record 'INSERT INTO outcome SELECT ''procedures'', n, name, needs, :''role'', NULL, :''SQLSTATE'' FROM top_level WHERE n ='
\set try 'SET ROLE regress_privileges_:role; CALL msgq.wait(''{queue}'', ''0''); :record 1; CALL msgq.request(''queue'', ''1'', ''0''); :record 2; CALL msgq.sequence(''stream''); :record 3; SELECT count(msgq.maintain()); :record 4; RESET ROLE;'
GRANT SELECT ON top_level TO PUBLIC;
\set role none
:try
\set role other
:try
\set role monitor
:try
\set role peek
:try
\set role send
:try
\set role receive
:try
\set role manage
:try
\set role admin
:try
\set role all
:try
\set role reader
:try
\set role writer
:try
\set role creator
:try
\set role super
:try
\pset tuples_only
\set VERBOSITY default
UPDATE outcome o SET expected = pg_temp.expected(r, o.needs),
	-- nobody replies to the request
	outcome = CASE outcome WHEN '42501' THEN '-' WHEN '00000' THEN 'yes' WHEN 'MQ009' THEN 'yes' ELSE outcome END
FROM role r WHERE what = 'procedures' AND r.name = o.role;

--
-- The grid
--
CREATE FUNCTION pg_temp.mark(outcome) RETURNS text
LANGUAGE sql AS $$ SELECT CASE WHEN $1.outcome = $1.expected THEN $1.outcome ELSE format('%s, not %s', $1.outcome, $1.expected) END $$;
CREATE TEMP VIEW grid AS
SELECT what, call, name, needs,
	max(pg_temp.mark(o)) FILTER (WHERE role = 'none') AS none,
	max(pg_temp.mark(o)) FILTER (WHERE role = 'other') AS other,
	max(pg_temp.mark(o)) FILTER (WHERE role = 'monitor') AS monitor,
	max(pg_temp.mark(o)) FILTER (WHERE role = 'peek') AS peek,
	max(pg_temp.mark(o)) FILTER (WHERE role = 'send') AS send,
	max(pg_temp.mark(o)) FILTER (WHERE role = 'receive') AS receive,
	max(pg_temp.mark(o)) FILTER (WHERE role = 'manage') AS manage,
	max(pg_temp.mark(o)) FILTER (WHERE role = 'admin') AS admin,
	max(pg_temp.mark(o)) FILTER (WHERE role = 'all') AS "all",
	max(pg_temp.mark(o)) FILTER (WHERE role = 'reader') AS reader,
	max(pg_temp.mark(o)) FILTER (WHERE role = 'writer') AS writer,
	max(pg_temp.mark(o)) FILTER (WHERE role = 'creator') AS creator,
	max(pg_temp.mark(o)) FILTER (WHERE role = 'super') AS super
FROM outcome o GROUP BY what, call, name, needs;
\pset format unaligned
SELECT name, needs, none, other, monitor, peek, send, receive, manage, admin, "all", reader, writer, creator, super
FROM grid WHERE what IN ('functions', 'procedures') ORDER BY what, call;
SELECT name, needs, none, other, monitor, peek, send, receive, manage, admin, "all", reader, writer, creator, super
FROM grid WHERE what = 'views' ORDER BY call, name COLLATE "C";
\pset format aligned
SELECT name, needs, string_agg(role, '; ' ORDER BY role COLLATE "C") AS "with"
FROM outcome WHERE what = 'pairs' AND outcome = 'yes' GROUP BY call, name, needs ORDER BY call;
SELECT name AS relation, needs AS command, string_agg(DISTINCT role COLLATE "C", ', ') AS allowed_to
FROM outcome WHERE what = 'tables' AND outcome <> '-' GROUP BY name, needs ORDER BY name COLLATE "C", needs COLLATE "C";

-- Where the code does not do what the documentation says: nowhere.
SELECT what, name, needs, role, expected, outcome, count(*)
FROM outcome WHERE outcome IS DISTINCT FROM expected GROUP BY what, name, needs, role, expected, outcome
ORDER BY what COLLATE "C", name COLLATE "C", role COLLATE "C";
SELECT coalesce(what, 'all') AS what, count(*) AS cells, count(*) FILTER (WHERE outcome <> '-') AS allowed,
	count(*) FILTER (WHERE outcome = '-') AS denied, count(*) FILTER (WHERE outcome IS DISTINCT FROM expected) AS wrong
FROM outcome GROUP BY ROLLUP (what) ORDER BY what COLLATE "C" NULLS LAST;

SELECT count(msgq.unschedule(name)) FROM unnest('{schedule,other schedule}'::text[]) name;
DROP SCHEMA privileges_tables CASCADE;
SELECT count(msgq.drop_topic(name)) FROM unnest('{topic,spare topic,other topic}'::text[]) name;
SELECT count(msgq.drop_stream(name)) FROM unnest('{stream,other stream}'::text[]) name;
SELECT count(msgq.drop_queue(name)) FROM unnest('{queue,dead,spare queue,other queue}'::text[]) name;
TRUNCATE msgq.inbox_1, msgq.inbox_2, msgq.inbox_state;
REVOKE ALL ON msgq.inbox FROM regress_privileges_all;
REVOKE CREATE ON SCHEMA msgq FROM regress_privileges_creator;
SELECT format('DROP ROLE %I', pg_temp.role_name(role)) FROM role WHERE NOT public \gexec
RESET client_min_messages;
