--
-- Any printable text of 1 to 63 bytes is a name, and is only ever a name: no
-- character of it has a meaning to SQL, to format strings or to the server.
--
SET client_encoding = 'UTF8';
SET client_min_messages = warning;

CREATE FUNCTION pg_temp.raised(statement text) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE statement;
	RETURN 'nothing';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || ' ' || SQLERRM;
END
$$;

CREATE TABLE names_victim (n int);
CREATE TEMP TABLE good (n int GENERATED ALWAYS AS IDENTITY, name text);
INSERT INTO good (name) VALUES
	('q'), ('1'), ('Orders'), ('orders'), ('two words'), (' blanks '), ('select'), ('msgq.queue'),
	('q1_1'), ('public'), ('"'), ('""'), (''''), (''''''), ('"quoted"'), ('it''s'), ('%'),
	('%s %I %L %1$s %n'), ('$1'), ('$$'), ('$q$ $q$'), ('\'), ('\\'), ('\'''), ('a\nb'), ('{}'),
	('a,b'), ('/*'), ('--'), (';'), ('null'), ('NULL'),
	('x"; DROP TABLE names_victim; --'),
	('x''; DROP TABLE names_victim; --'),
	('x\''; DROP TABLE names_victim; --'),
	('x$$; DROP TABLE names_victim; --'),
	('x); DROP TABLE names_victim; --'),
	('été'), (U&'e\0301te\0301'), ('日本語の行列'), ('очередь'), (U&'\+01F600'),
	(repeat('a', 63)),
	(repeat('é', 31) || 'a'),
	(repeat('日', 21)),
	(repeat(U&'\+01F600', 15) || 'abc');

-- Every operation, on each of them.
CREATE FUNCTION pg_temp.use_queue(name text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	m msgq.message;
	other text := left(name, -1) || '~';
BEGIN
	PERFORM msgq.create_queue(name, dead_letter_queue => '');
	PERFORM msgq.create_queue(name, dead_letter_queue => '', if_not_exists => true);
	PERFORM msgq.alter_queue(name, '{"retry_delay": "1 s"}');
	PERFORM msgq.send(name, '1');
	ASSERT (SELECT count(*) = 1 FROM msgq.queues q WHERE q.name = use_queue.name), 'queues';
	ASSERT (SELECT ready = 1 FROM msgq.queue_stats q WHERE q.queue = use_queue.name), 'queue_stats';
	SELECT * INTO STRICT m FROM msgq.receive(name);
	ASSERT (SELECT l.id = m.id FROM msgq.leases l WHERE l.queue = name), 'leases';
	ASSERT obj_description(format('msgq.q%s', (SELECT id FROM msgq.queues q WHERE q.name = use_queue.name))::regclass)
		LIKE '%' || replace(replace(replace(name, '\', '\\'), '%', '\%'), '_', '\_') || '%', 'comment';
	PERFORM msgq.rename_queue(name, other);
	ASSERT msgq.nack(other, m.receipt, '1 h', name), 'nack';
	PERFORM msgq.rename_queue(other, name);
	ASSERT (SELECT headers->>'msgq-error' = name FROM msgq.peek(name)), 'error header';
	PERFORM msgq.grant(name, 'public', 'peek');
	PERFORM msgq.revoke(name, 'public', 'peek');
	ASSERT msgq.why_empty(name) = 'delayed', 'why_empty';
	ASSERT msgq.purge(name) = 1, 'purge';
	RETURN 'works';
END
$$;
SELECT name, pg_temp.use_queue(name) FROM good ORDER BY n;

-- No two of them are the same queue.
SELECT count(*) = (SELECT count(*) FROM good) AS all_distinct
FROM msgq.queues WHERE name IN (SELECT name FROM good);
SELECT count(*) AS victim_is_alive FROM pg_class WHERE relname = 'names_victim';

-- The name in a message is the name as given.
SELECT name, raised FROM good, LATERAL pg_temp.raised(format('SELECT msgq.create_queue(%L)', name)) raised
WHERE raised <> '42710 queue "' || name || '" already exists';
SELECT count(msgq.drop_queue(name)) = (SELECT count(*) FROM good) AS all_dropped FROM good;
SELECT name, raised FROM good, LATERAL pg_temp.raised(format('SELECT msgq.drop_queue(%L)', name)) raised
WHERE raised <> '42704 queue "' || name || '" does not exist';

-- With the old rules for backslashes in string literals.
SET escape_string_warning = off;
SET standard_conforming_strings = off;
SELECT pg_temp.use_queue(name), msgq.drop_queue(name) FROM good WHERE name LIKE '%\\\\%' ORDER BY n;
RESET standard_conforming_strings;
RESET escape_string_warning;
SELECT count(*) AS victim_is_alive FROM pg_class WHERE relname = 'names_victim';

-- Names that are refused.
CREATE TEMP TABLE bad (n int GENERATED ALWAYS AS IDENTITY, what text, name text);
INSERT INTO bad (what, name) VALUES
	('empty', ''),
	('newline', E'a\nb'),
	('carriage return', E'a\r'),
	('tab', E'\ta'),
	('escape', E'a\x1b[31m'),
	('delete', E'a\x7f'),
	('C1 control', U&'a\0085b'),
	('64 bytes', repeat('a', 64)),
	('64 bytes, 32 characters', repeat('é', 32)),
	('64 bytes, 16 characters', repeat(U&'\+01F600', 16)),
	('a megabyte', repeat('a', 1048576));
\pset format unaligned
SELECT what, pg_temp.raised(format('SELECT msgq.create_queue(%L)', name)) AS result FROM bad ORDER BY n;
SELECT msgq.create_queue('names');
SELECT what, pg_temp.raised(format('SELECT msgq.rename_queue(''names'', %L)', name)) AS result FROM bad ORDER BY n;
-- Looked for, they are just not there, or too long to be a name.
SELECT what, left(pg_temp.raised(format('SELECT msgq.send(%L, ''1'')', name)), 5) AS result FROM bad ORDER BY n;

-- Role names are taken as they are as well.
CREATE ROLE "regress_msgq_""x'; DROP TABLE names_victim; --";
CREATE ROLE "regress_msgq_UPPER";
SELECT pg_temp.raised(format('SELECT msgq.grant(''names'', %L, ''send'')', role)) FROM (VALUES
	(1, 'regress_msgq_"x''; DROP TABLE names_victim; --'),
	(2, 'regress_msgq_UPPER'),
	(3, 'regress_msgq_upper'),
	(4, '"regress_msgq_UPPER"'),
	(5, ''),
	(6, repeat('r', 64)),
	(7, 'public'),
	(8, 'PUBLIC'),
	(9, 'current_user'),
	(10, 'none')
) AS v(n, role) ORDER BY n;
SELECT grantee::regrole FROM pg_class c, aclexplode(relacl) a
WHERE oid = (SELECT format('msgq.q%s', id)::regclass FROM msgq.queues WHERE name = 'names')
	AND privilege_type = 'INSERT' AND grantee <> relowner ORDER BY grantee::regrole::text COLLATE "C";
SELECT msgq.drop_queue('names');
DROP ROLE "regress_msgq_""x'; DROP TABLE names_victim; --";
DROP ROLE "regress_msgq_UPPER";
SELECT count(*) AS victim_is_alive FROM pg_class WHERE relname = 'names_victim';
DROP TABLE names_victim;
