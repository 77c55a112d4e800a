--
-- Rights: a right on a queue, a stream or a topic is a privilege on its handle
-- view, and every function checks it at every call.  Which function needs which
-- one is in sql/privileges.sql.
--
SET client_min_messages = warning;

CREATE ROLE regress_msgq_owner;
CREATE ROLE regress_msgq_none;
CREATE ROLE regress_msgq_peek;
CREATE ROLE regress_msgq_send;
CREATE ROLE regress_msgq_receive;
CREATE ROLE regress_msgq_manage;
CREATE ROLE regress_msgq_admin;
CREATE ROLE regress_msgq_all;
CREATE ROLE regress_msgq_super SUPERUSER;

-- Object names carry the number of the queue, which is not the same each time.
CREATE FUNCTION pg_temp.masked(message text) RETURNS text
LANGUAGE sql AS $$ SELECT regexp_replace(message, '\mq\d+', 'qN', 'g') $$;

-- What a statement raises when the role runs it; nothing that it does is kept.
CREATE FUNCTION pg_temp.tried(role text, statement text) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('SET LOCAL ROLE %I', role);
	EXECUTE statement;
	RAISE SQLSTATE 'OKAY0';
EXCEPTION
	WHEN SQLSTATE 'OKAY0' THEN
		RETURN 'nothing';
	WHEN OTHERS THEN
		RETURN SQLSTATE || ' ' || pg_temp.masked(SQLERRM);
END
$$;

--
-- Making queues needs CREATE on the schema, which nobody has at first.
--
SELECT pg_temp.tried('regress_msgq_owner', $$SELECT msgq.create_queue('rights')$$);
GRANT CREATE ON SCHEMA msgq TO regress_msgq_owner;
SET ROLE regress_msgq_owner;
SELECT msgq.create_queue('rights', archive_retention => '1 h');
SELECT msgq.send('rights', '1');
SELECT msgq.create_stream('rights stream');
SELECT msgq.create_group('rights stream', 'group', 'first');
SELECT msgq.create_topic('rights topic', on_unroutable => 'drop');
SELECT msgq.create_topic('rights other topic');
SELECT msgq.bind('rights topic', 'rights', 'bound') > 0 AS bound;
SELECT msgq.schedule('rights schedule', '@yearly', 'rights other topic', '1');
RESET ROLE;
SELECT format('msgq.q%s', id) AS handle, format('msgq.q%s_1', id) AS segment, id
FROM msgq.queues WHERE name = 'rights' \gset

-- Queue storage belongs to the extension's owner; who made the queue has all
-- rights on the handle, and may pass them on.
SELECT pg_temp.masked(relname) AS relation, relkind,
	relowner = (SELECT extowner FROM pg_extension WHERE extname = 'msgq') AS extension_owners
FROM pg_class WHERE relname ~ format('^q%s(_|$)', :'id') AND relkind <> 'i' ORDER BY relname COLLATE "C";
SELECT privilege_type, is_grantable
FROM pg_class, aclexplode(relacl)
WHERE oid = :'handle'::regclass AND grantee = 'regress_msgq_owner'::regrole ORDER BY 1;
SELECT pg_temp.masked(relname) AS relation, grantee::regrole
FROM pg_class, aclexplode(relacl)
WHERE relname ~ format('^q%s(_|$)', :'id') AND relname <> format('q%s', :'id') AND grantee <> relowner;

--
-- A right is given on the handle, by its owner.  What it allows is in
-- sql/privileges.sql.
--
SELECT msgq.grant(n, 'regress_msgq_' || r, r)
FROM unnest('{rights,rights stream,rights topic}'::text[]) n, unnest('{peek,send,receive,manage,admin}'::text[]) r;
SELECT msgq.grant(n, 'regress_msgq_all', r)
FROM unnest('{rights,rights stream,rights topic}'::text[]) n, unnest('{peek,send,receive,manage,admin}'::text[]) r;
SELECT grantee::regrole, privilege_type, is_grantable, grantor::regrole = relowner::regrole AS by_owner
FROM pg_class, aclexplode(relacl)
WHERE oid = :'handle'::regclass AND grantee NOT IN (relowner, 'regress_msgq_owner'::regrole)
ORDER BY grantee::regrole::text COLLATE "C", privilege_type COLLATE "C";

-- Who may bind: whoever may receive from the topic and send to the target.
CREATE ROLE regress_msgq_binder;
SELECT pg_temp.tried('regress_msgq_binder', $$SELECT msgq.bind('rights topic', 'rights stream')$$);
SELECT msgq.grant('rights topic', 'regress_msgq_binder', 'receive');
SELECT pg_temp.tried('regress_msgq_binder', $$SELECT msgq.bind('rights topic', 'rights stream')$$);
SELECT msgq.grant('rights stream', 'regress_msgq_binder', 'send');
SET ROLE regress_msgq_binder;
SELECT msgq.bind('rights topic', 'rights stream') > 0 AS bound;
RESET ROLE;
-- The publisher needs no right on the target, nor does whoever has bound it now.
SELECT msgq.revoke('rights topic', 'regress_msgq_binder', 'receive');
SELECT msgq.revoke('rights stream', 'regress_msgq_binder', 'send');
SELECT msgq.revoke('rights stream', 'regress_msgq_send', 'send');
SET ROLE regress_msgq_send;
SELECT msgq.publish('rights topic', 'k', '1');
RESET ROLE;
SELECT msgq.grant('rights stream', 'regress_msgq_send', 'send');
SELECT pg_temp.tried('regress_msgq_binder', $$SELECT msgq.unbind('rights topic', 'rights stream')$$);
SELECT pg_temp.tried('regress_msgq_manage', $$SELECT msgq.unbind('rights topic', 'rights stream')$$);
SELECT msgq.unbind('rights topic', 'rights stream');
DROP ROLE regress_msgq_binder;
-- An alternate is a topic to which one may publish.
SELECT pg_temp.tried('regress_msgq_peek', $$SELECT msgq.create_topic('new', on_unroutable => 'alternate', alternate => 'rights topic')$$);
SELECT pg_temp.tried('regress_msgq_admin', $$SELECT msgq.alter_topic('rights topic', '{"on_unroutable": "alternate", "alternate": "rights other topic"}')$$);

-- Who may change a schedule, and see it: members of its owner, and those with
-- rights on its destination.
CREATE ROLE regress_msgq_scheduler;
CREATE ROLE regress_msgq_deputy IN ROLE regress_msgq_scheduler;
SET ROLE regress_msgq_owner;
SELECT msgq.create_queue('scheduled', dead_letter_queue => '');
SELECT msgq.grant('scheduled', 'regress_msgq_' || r, r) FROM unnest('{peek,send,receive,manage,admin}'::text[]) r;
SELECT msgq.grant('scheduled', 'regress_msgq_all', r) FROM unnest('{peek,send,receive,manage,admin}'::text[]) r;
SELECT msgq.grant('scheduled', 'regress_msgq_scheduler', 'send');
SET ROLE regress_msgq_scheduler;
SELECT msgq.schedule('theirs', '@yearly', 'scheduled', '"theirs"');
RESET ROLE;
CREATE FUNCTION pg_temp.sees(role text, OUT seen bigint) LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('SET LOCAL ROLE %I', 'regress_msgq_' || role);
	seen := (SELECT count(*) FROM msgq.schedules WHERE name = 'theirs');
	RESET ROLE;
END
$$;
SELECT role, pg_temp.sees(role),
	pg_temp.tried('regress_msgq_' || role, $$SELECT msgq.schedule('theirs', '@daily', 'scheduled', '2')$$) AS replace,
	pg_temp.tried('regress_msgq_' || role, $$SELECT msgq.unschedule('theirs')$$) AS unschedule
FROM unnest('{none,peek,send,receive,manage,admin,all,owner,super,scheduler,deputy}'::text[]) role;
-- It still may when nobody's rights are left: they were checked before.
SELECT msgq.revoke('scheduled', 'regress_msgq_scheduler', 'send');
SELECT pg_temp.tried('regress_msgq_scheduler', $$SELECT msgq.schedule('theirs', '@yearly', 'scheduled', '2')$$);
UPDATE msgq.schedule SET scheduled_at = '2020-01-01' WHERE name = 'theirs';
SELECT msgq.maintain()->'fired' AS fired;
SELECT body FROM msgq.peek('scheduled');
-- Nobody becomes its owner by a name.
DROP ROLE regress_msgq_deputy, regress_msgq_scheduler;
SELECT owner FROM msgq.schedules WHERE name = 'theirs';
SELECT role, pg_temp.sees(role), pg_temp.tried('regress_msgq_' || role, $$SELECT msgq.unschedule('theirs')$$) AS unschedule
FROM unnest('{none,send,manage,super}'::text[]) role;
SELECT msgq.unschedule('theirs');
SELECT msgq.drop_queue('scheduled');

-- The message names the queue, stream or topic.
SELECT call, pg_temp.tried('regress_msgq_none', format('SELECT msgq.%s', call)) FROM unnest(ARRAY[
	$$send('rights', '1')$$,
	$$peek('rights')$$,
	$$append('rights stream', '1')$$,
	$$publish('rights topic', 'k', '1')$$,
	$$create_queue('new')$$,
	$$unschedule('rights schedule')$$,
	$$inbox_claim('consumer', 'id')$$]) call;
-- An unknown queue is unknown to everybody.
SELECT pg_temp.tried('regress_msgq_none', $$SELECT msgq.send('nowhere', '1')$$);

-- A function of the caller's in the condition of a view sees no more.
CREATE FUNCTION rights_leak(name text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$
BEGIN
	IF name = 'rights' THEN
		RAISE WARNING 'leaked %', name;
	END IF;
	RETURN true;
END
$$;
SET ROLE regress_msgq_none;
SELECT name FROM msgq.queues WHERE rights_leak(name) AND name = 'rights';
RESET ROLE;
DROP FUNCTION rights_leak(text);

--
-- Around the functions: the handle may be read with peek, and that is all.
--
SELECT role, statement, pg_temp.tried('regress_msgq_' || role, format(statement, object))
FROM (VALUES
	(1, 'peek', 'SELECT FROM %s', :'handle'),
	(2, 'none', 'SELECT FROM %s', :'handle'),
	(3, 'send', 'SELECT FROM %s', :'handle'),
	(4, 'all', 'SELECT FROM %s', :'handle'),
	(5, 'all', 'INSERT INTO %s (id) VALUES (1)', :'handle'),
	(6, 'all', 'UPDATE %s SET failures = 1', :'handle'),
	(7, 'all', 'DELETE FROM %s', :'handle'),
	(8, 'all', 'TRUNCATE %s', :'handle'),
	(9, 'owner', 'INSERT INTO %s (id) VALUES (1)', :'handle'),
	(10, 'all', 'SELECT FROM %s', :'segment'),
	(11, 'all', 'INSERT INTO %s (id) VALUES (1)', :'segment'),
	(12, 'all', 'UPDATE %s SET failures = 1', :'segment'),
	(13, 'all', 'DELETE FROM %s', :'segment'),
	(14, 'all', 'TRUNCATE %s', :'segment'),
	(15, 'owner', 'DELETE FROM %s', :'segment'),
	(16, 'owner', 'DROP TABLE %s', :'segment'),
	(17, 'owner', 'ALTER TABLE %s ADD x int', :'segment'),
	(18, 'owner', 'CREATE INDEX ON %s (id)', :'segment'),
	(19, 'all', 'CREATE RULE r AS ON INSERT TO %s DO INSTEAD NOTHING', :'handle'),
	(20, 'all', 'SELECT FROM %s', 'msgq.queue'),
	(21, 'all', 'DELETE FROM %s', 'msgq.queue'),
	(22, 'all', 'SELECT FROM %s', 'msgq.segment'),
	(23, 'owner', 'UPDATE %s SET state = state', 'msgq.segment'),
	(24, 'owner', 'SELECT nextval(''%s'')', 'msgq.queue_id'),
	(25, 'owner', 'SELECT nextval(''%s_id'')', :'handle'),
	(26, 'owner', 'SELECT setval(''%s_id'', 1)', :'handle'),
	(27, 'owner', 'SELECT last_value FROM %s_id', :'handle'),
	(28, 'owner', 'DROP VIEW %s', :'handle'),
	(29, 'owner', 'DELETE FROM %s', 'msgq.queues'),
	(30, 'all', 'SELECT FROM %s', 'msgq.stream'),
	(31, 'all', 'SELECT FROM %s', 'msgq.stream_segment'),
	(32, 'owner', 'UPDATE %s SET id = id', 'msgq.stream_group'),
	(33, 'all', 'SELECT FROM %s', 'msgq.inbox'),
	(34, 'all', 'SELECT FROM %s', 'msgq.inbox_1'),
	(35, 'owner', 'INSERT INTO %s SELECT ''a'', ''b'', now(), now()', 'msgq.inbox_2'),
	(36, 'owner', 'UPDATE %s SET current = 2', 'msgq.inbox_state'),
	(37, 'owner', 'SELECT FROM %s', 'msgq.schedule'),
	(38, 'all', 'INSERT INTO %s VALUES (1, now(), now(), true)', 'msgq.fired_1'),
	(39, 'owner', 'DELETE FROM %s', 'msgq.schedules')
) AS v(n, role, statement, object) ORDER BY n;

--
-- Granting and revoking
--
SELECT pg_temp.tried('regress_msgq_owner', format('SELECT msgq.%s', statement)) FROM (VALUES
	(1, $$grant('rights', 'regress_msgq_nobody', 'send')$$),
	(2, $$grant('rights', 'regress_msgq_none', 'sing')$$),
	(3, $$grant('rights', 'regress_msgq_none', 'SEND')$$),
	(4, $$grant('rights', 'regress_msgq_none', '')$$),
	(5, $$grant('rights', 'regress_msgq_none', 'select')$$),
	(6, $$grant('nowhere', 'regress_msgq_none', 'send')$$),
	(7, $$revoke('rights', 'regress_msgq_nobody', 'send')$$),
	(8, $$revoke('rights', 'regress_msgq_none', 'sing')$$),
	(9, $$revoke('nowhere', 'regress_msgq_none', 'send')$$),
	(10, $$grant('rights', 'regress_msgq_none', 'send')$$),
	(11, $$revoke('rights', 'regress_msgq_none', 'send')$$)
) AS v(n, statement) ORDER BY n;

-- Twice is once; revoking what was not given does nothing.
SELECT msgq.grant('rights', 'regress_msgq_none', 'send');
SELECT msgq.grant('rights', 'regress_msgq_none', 'send');
SELECT pg_temp.tried('regress_msgq_none', $$SELECT msgq.send('rights', '1')$$);
SELECT msgq.revoke('rights', 'regress_msgq_none', 'send');
SELECT pg_temp.tried('regress_msgq_none', $$SELECT msgq.send('rights', '1')$$);
SELECT msgq.revoke('rights', 'regress_msgq_none', 'send');

-- By membership, with and without inheriting it.
CREATE ROLE regress_msgq_group;
CREATE ROLE regress_msgq_member IN ROLE regress_msgq_group;
CREATE ROLE regress_msgq_guest NOINHERIT IN ROLE regress_msgq_group;
SELECT msgq.grant('rights', 'regress_msgq_group', 'send');
SELECT role, pg_temp.tried(role, $$SELECT msgq.send('rights', '1')$$)
FROM unnest('{regress_msgq_group,regress_msgq_member,regress_msgq_guest}'::text[]) role;
REVOKE regress_msgq_group FROM regress_msgq_member;
SELECT pg_temp.tried('regress_msgq_member', $$SELECT msgq.send('rights', '1')$$);
SELECT msgq.grant('rights', 'regress_msgq_group', 'admin');
GRANT regress_msgq_group TO regress_msgq_member;
SELECT pg_temp.tried('regress_msgq_member', $$SELECT msgq.alter_queue('rights', '{"retry_delay": "1 s"}')$$);

-- Who has admin may grant, to himself as well; and revoke what others granted.
SET ROLE regress_msgq_admin;
SELECT msgq.grant('rights', 'regress_msgq_admin', 'send');
SELECT msgq.send('rights', '1') > 0 AS sent;
SELECT msgq.grant('rights', 'regress_msgq_none', 'peek');
RESET ROLE;
SET ROLE regress_msgq_owner;
SELECT msgq.revoke('rights', 'regress_msgq_none', 'peek');
RESET ROLE;
SELECT pg_temp.tried('regress_msgq_none', $$SELECT msgq.peek('rights')$$);
-- A plain GRANT by the creator is as good, and revoke undoes that too, with
-- what was passed on from it.
SET ROLE regress_msgq_owner;
GRANT SELECT ON :handle TO regress_msgq_none WITH GRANT OPTION;
SET ROLE regress_msgq_none;
GRANT SELECT ON :handle TO regress_msgq_guest;
RESET ROLE;
SELECT role, pg_temp.tried(role, $$SELECT msgq.peek('rights')$$)
FROM unnest('{regress_msgq_none,regress_msgq_guest}'::text[]) role;
SET ROLE regress_msgq_admin;
SELECT msgq.revoke('rights', 'regress_msgq_none', 'peek');
RESET ROLE;
SELECT role, pg_temp.tried(role, $$SELECT msgq.peek('rights')$$)
FROM unnest('{regress_msgq_none,regress_msgq_guest}'::text[]) role;
-- The creator's own rights can go as well.
SET ROLE regress_msgq_admin;
SELECT msgq.revoke('rights', 'regress_msgq_owner', 'admin');
RESET ROLE;
SELECT pg_temp.tried('regress_msgq_owner', $$SELECT msgq.drop_queue('rights')$$);
SELECT pg_temp.tried('regress_msgq_owner', $$SELECT msgq.send('rights', '1')$$);

-- A rollback takes a grant back, in the session that made it too.
BEGIN;
SELECT msgq.grant('rights', 'regress_msgq_none', 'send');
SELECT pg_temp.tried('regress_msgq_none', $$SELECT msgq.send('rights', '1')$$);
ROLLBACK;
SELECT pg_temp.tried('regress_msgq_none', $$SELECT msgq.send('rights', '1')$$);
-- Rights outlive a rename.
SELECT msgq.rename_queue('rights', 'right');
SELECT pg_temp.tried('regress_msgq_send', $$SELECT msgq.send('right', '1')$$);
SELECT msgq.rename_queue('right', 'rights');

--
-- Nobody's search_path, operators or tables in between matter.
--
CREATE SCHEMA rights_evil;
CREATE FUNCTION rights_evil.boom(text, text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION 'a function of the caller was called as %', current_user;
END
$$;
CREATE OPERATOR rights_evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = rights_evil.boom);
CREATE TABLE rights_evil.queue (id int, name text);
GRANT USAGE ON SCHEMA rights_evil TO PUBLIC;
GRANT CREATE ON SCHEMA msgq TO regress_msgq_none;
SET ROLE regress_msgq_none;
SET search_path = rights_evil, pg_catalog;
SELECT msgq.create_queue('evil', dead_letter_queue => '');
SELECT msgq.alter_queue('evil', '{"retry_delay": "1 s"}');
SELECT msgq.rename_queue('evil', 'less evil');
SELECT msgq.grant('less evil', 'regress_msgq_send', 'send');
SELECT msgq.revoke('less evil', 'regress_msgq_send', 'send');
SELECT msgq.purge('less evil');
SELECT count(*) FROM msgq.queue_stats;
SELECT msgq.drop_queue('less evil');
RESET search_path;
RESET ROLE;
DROP SCHEMA rights_evil CASCADE;

-- Who may make queues may put a table where the next queue's would lie; it is
-- never taken for the queue's.
SELECT format('msgq.q%s_1', last_value + 1) AS squat FROM msgq.queue_id \gset
SET ROLE regress_msgq_none;
CREATE TABLE :squat (id bigint);
RESET ROLE;
SELECT pg_temp.tried('regress_msgq_owner', $$SELECT msgq.create_queue('squatted')$$);
DROP TABLE :squat;

-- Dropping queue, stream and topics drops what was granted on them, so the roles can go.
SELECT msgq.drop_queue('rights');
SELECT msgq.drop_stream('rights stream');
SELECT msgq.unschedule('rights schedule');
SELECT msgq.drop_topic('rights topic'), msgq.drop_topic('rights other topic');
REVOKE CREATE ON SCHEMA msgq FROM regress_msgq_owner, regress_msgq_none;
DROP ROLE regress_msgq_owner, regress_msgq_none, regress_msgq_peek, regress_msgq_send, regress_msgq_receive,
	regress_msgq_manage, regress_msgq_admin, regress_msgq_all, regress_msgq_super, regress_msgq_group,
	regress_msgq_member, regress_msgq_guest;
