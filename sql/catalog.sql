--
-- What the extension puts into the catalogs: documented, unambiguous, no one's
-- but its owner's; and what becomes of queues when the extension is dropped.
--
\pset null '(null)'

-- Everything has a comment.
SELECT p.oid::regprocedure AS function FROM pg_proc p
WHERE pronamespace = 'msgq'::regnamespace AND coalesce(obj_description(p.oid, 'pg_proc'), '') = '';
SELECT c.oid::regclass AS relation FROM pg_class c
WHERE relnamespace = 'msgq'::regnamespace AND relkind IN ('r', 'v')
	AND coalesce(obj_description(c.oid, 'pg_class'), '') = '';
SELECT t.oid::regtype AS type FROM pg_type t LEFT JOIN pg_class c ON c.oid = typrelid
WHERE typnamespace = 'msgq'::regnamespace AND typelem = 0 AND coalesce(relkind, 'c') = 'c'
	AND coalesce(obj_description(t.oid, 'pg_type'), '') = '';
SELECT obj_description('msgq'::regnamespace, 'pg_namespace') IS NOT NULL AS schema,
	obj_description(oid, 'pg_extension') IS NOT NULL AS extension
FROM pg_extension WHERE extname = 'msgq';

-- No name stands for two functions, so an untyped literal always resolves.
SELECT proname FROM pg_proc WHERE pronamespace = 'msgq'::regnamespace GROUP BY proname HAVING count(*) > 1;
-- All arguments have names.
SELECT oid::regprocedure FROM pg_proc
WHERE pronamespace = 'msgq'::regnamespace AND pronargs > 0 AND (proargnames IS NULL OR '' = ANY (proargnames));
-- All are in C: no text of theirs is looked up by somebody's search_path.
SELECT p.oid::regprocedure, lanname FROM pg_proc p JOIN pg_language l ON l.oid = prolang
WHERE pronamespace = 'msgq'::regnamespace AND lanname <> 'c';
-- None runs with the rights of somebody else, none brings settings.
SELECT oid::regprocedure FROM pg_proc
WHERE pronamespace = 'msgq'::regnamespace AND (prosecdef OR proconfig IS NOT NULL OR proleakproof);
-- Only these do not look at the messages of a queue.
SELECT oid::regprocedure, provolatile, proparallel FROM pg_proc
WHERE pronamespace = 'msgq'::regnamespace AND (provolatile <> 'v' OR proparallel <> 'u') ORDER BY oid;
-- One that is strict turns a NULL into silence.
SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'msgq'::regnamespace AND proisstrict;

-- The functions, their arguments and results.
\pset format unaligned
SELECT proname AS function, pg_get_function_arguments(oid) AS arguments, pg_get_function_result(oid) AS result
FROM pg_proc WHERE pronamespace = 'msgq'::regnamespace ORDER BY proname COLLATE "C";
\pset format aligned

-- What everybody may do.
SELECT msgq.create_queue('catalog');
SELECT nspname, privilege_type FROM pg_namespace, aclexplode(nspacl) WHERE nspname = 'msgq' AND grantee = 0;
SELECT regexp_replace(relname, '^q\d+', 'qN') AS relation, relkind, privilege_type
FROM pg_class, aclexplode(relacl) WHERE relnamespace = 'msgq'::regnamespace AND grantee = 0
ORDER BY relname COLLATE "C", privilege_type;
SELECT oid::regprocedure AS not_for_everybody FROM pg_proc
WHERE pronamespace = 'msgq'::regnamespace AND NOT has_function_privilege('public', oid, 'EXECUTE');

-- Only a superuser makes the extension, and its schema stays where it is.
SELECT DISTINCT superuser, trusted, relocatable, schema FROM pg_available_extension_versions WHERE name = 'msgq';

-- Members of the extension: no storage of any queue.
SELECT member FROM pg_depend,
	LATERAL regexp_replace(pg_describe_object(classid, objid, 0), '\(.*\)', '(...)') AS member
WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
	AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'msgq')
	-- row types and arrays are members only since PostgreSQL 17
	AND NOT (classid = 'pg_type'::regclass AND objid <> 'msgq.message'::regtype)
ORDER BY member COLLATE "C";
-- pg_dump takes the contents of these along.
SELECT unnest(extconfig)::regclass AS configuration, unnest(extcondition) AS condition
FROM pg_extension WHERE extname = 'msgq';

-- The storage of a queue.
SELECT format('q%s', id) AS handle FROM msgq.queues WHERE name = 'catalog' \gset
SELECT regexp_replace(relname, '^q\d+', 'qN') AS relation, relkind, relpersistence,
	regexp_replace(obj_description(oid, 'pg_class'), '\mq\d+', 'qN', 'g') AS comment
FROM pg_class WHERE relname ~ ('^' || :'handle' || '(_|$)') ORDER BY relname COLLATE "C";
SELECT attname, format_type(atttypid, atttypmod) AS type, attnotnull
FROM pg_attribute WHERE attrelid = format('msgq.%s_1', :'handle')::regclass AND attnum > 0 ORDER BY attnum;
SELECT definition, indisprimary FROM pg_index,
	LATERAL regexp_replace(pg_get_indexdef(indexrelid), '\mq\d+', 'qN', 'g') AS definition
WHERE indrelid = format('msgq.%s_1', :'handle')::regclass ORDER BY definition COLLATE "C";
SELECT seqtypid::regtype, seqstart, seqincrement, seqmin, seqmax = 9223372036854775807 AS to_the_end, seqcache, seqcycle
FROM pg_sequence WHERE seqrelid = format('msgq.%s_id', :'handle')::regclass;
SELECT n, state FROM msgq.segment WHERE queue_id = substr(:'handle', 2)::int ORDER BY n;
-- It depends on nothing of the extension but the schema.
SELECT DISTINCT pg_describe_object(d.refclassid, d.refobjid, 0) AS depends_on
FROM pg_depend d JOIN pg_depend e ON (e.classid, e.objid) = (d.refclassid, d.refobjid) AND e.deptype = 'e'
WHERE d.classid = 'pg_class'::regclass
	AND d.objid IN (SELECT oid FROM pg_class WHERE relname ~ ('^' || :'handle' || '(_|$)'));

--
-- Dropping the extension
--
SELECT msgq.send('catalog', '1');
DO $$
BEGIN
	DROP EXTENSION msgq;
EXCEPTION WHEN dependent_objects_still_exist THEN
	RAISE NOTICE '% %', SQLSTATE, SQLERRM;
END
$$;
SELECT body FROM msgq.receive('catalog', 1, '0');
SET client_min_messages = warning;
BEGIN;
DROP EXTENSION msgq CASCADE;
SELECT count(*) AS relations_left FROM pg_class WHERE relname ~ ('^' || :'handle' || '(_|$)');
SELECT count(*) AS schemas_left FROM pg_namespace WHERE nspname = 'msgq';
-- Another extension of the name, in a session that has used the first one.
CREATE EXTENSION msgq;
SELECT count(*) AS queues FROM msgq.queues;
SELECT msgq.create_queue('catalog');
SELECT msgq.send('catalog', '"in the new one"');
SELECT body FROM msgq.receive('catalog');
ROLLBACK;
SELECT body, deliveries FROM msgq.peek('catalog');
SELECT msgq.send('catalog', '2');
SELECT body, deliveries FROM msgq.receive('catalog', 10);
-- A schema of the name that somebody else made first is not taken over,
-- whatever is in it.
CREATE ROLE regress_catalog_squatter;
BEGIN;
DROP EXTENSION msgq CASCADE;
CREATE SCHEMA msgq AUTHORIZATION regress_catalog_squatter;
CREATE FUNCTION pg_temp.created_with(object text) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
	SET LOCAL ROLE regress_catalog_squatter;
	EXECUTE object;
	RESET ROLE;
	CREATE EXTENSION msgq;
	RETURN 'the extension';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || ' ' || SQLERRM;
END
$$;
SELECT object, pg_temp.created_with(object) FROM unnest(ARRAY[
	'SELECT',
	'CREATE TABLE msgq.queue (id int)',
	'CREATE VIEW msgq.queues AS SELECT 1',
	'CREATE SEQUENCE msgq.queue_id',
	'CREATE TYPE msgq.message AS (id int)',
	'CREATE FUNCTION msgq.send(text, jsonb) RETURNS bigint LANGUAGE sql AS ''SELECT 1''']) object;
ROLLBACK;
DROP ROLE regress_catalog_squatter;
RESET client_min_messages;

SELECT msgq.drop_queue('catalog');
