--
-- The inbox: a message is claimed once for each consumer, and claims take no
-- more room than those that count.
--
\pset null '(null)'
SET client_min_messages = warning;

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
	FROM jsonb_each_text(msgq.maintain())
	WHERE value <> '0' AND key IN ('rotated', 'emptied', 'moved', 'waiting', 'failed');
$$;
-- The current table, and what lies in each.
CREATE FUNCTION pg_temp.tables(OUT current int, OUT emptied bigint, OUT in_1 bigint, OUT in_2 bigint)
LANGUAGE sql AS $$
	SELECT coalesce((SELECT s.current FROM msgq.inbox_state s), 1), coalesce((SELECT s.emptied FROM msgq.inbox_state s), 0),
		(SELECT count(*) FROM msgq.inbox_1), (SELECT count(*) FROM msgq.inbox_2)
$$;
-- Claims so many ids that begin so; how many were new.
CREATE FUNCTION pg_temp.claimed(prefix text, n int, keep interval) RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FILTER (WHERE msgq.inbox_claim('many', prefix || ' ' || i, keep)) FROM generate_series(1, n) AS i
$$;

--
-- Once for each consumer and id
--
SELECT msgq.inbox_claim('mailer', 'a'), msgq.inbox_claim('mailer', 'a'), msgq.inbox_claim('mailer', 'b'),
	msgq.inbox_claim('packer', 'a'), msgq.inbox_claim('a', 'mailer');
SELECT msgq.inbox_claim('mailer', 'a'), msgq.inbox_claim('Mailer', 'a'), msgq.inbox_claim('mailer', 'A'),
	msgq.inbox_claim('mailer', 'a ');
SELECT id, msgq.inbox_claim('series', id) FROM unnest('{x,y,x,z,z,x}'::text[]) AS id;
-- Longer is not longer counted for what was claimed before.
SELECT msgq.inbox_claim('mailer', 'a', '1 year');
SELECT consumer, message_id, keep_until - claimed_at AS keep, claimed_at BETWEEN now() - interval '1 min' AND clock_timestamp() AS now
FROM msgq.inbox WHERE consumer IN ('mailer', 'packer') ORDER BY 1, 2;

--
-- In the caller's transaction
--
BEGIN;
SELECT msgq.inbox_claim('mailer', 'c');
SELECT msgq.inbox_claim('mailer', 'c');
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT msgq.inbox_claim('mailer', 'c');
ROLLBACK TO s;
SELECT msgq.inbox_claim('mailer', 'c');
SAVEPOINT t;
SELECT msgq.inbox_claim('mailer', 'c'), msgq.inbox_claim('mailer', 'd');
ROLLBACK TO s;
SELECT msgq.inbox_claim('mailer', 'd');
COMMIT;
SELECT msgq.inbox_claim('mailer', 'c'), msgq.inbox_claim('mailer', 'd');
BEGIN;
SELECT msgq.inbox_claim('mailer', 'prepared');
PREPARE TRANSACTION 'inbox';
SELECT count(*) FROM msgq.inbox WHERE message_id = 'prepared';
SET lock_timeout = '10 ms';
SELECT pg_temp.raised($$SELECT msgq.inbox_claim('mailer', 'prepared')$$);
RESET lock_timeout;
COMMIT PREPARED 'inbox';
SELECT msgq.inbox_claim('mailer', 'prepared');
BEGIN;
SELECT msgq.inbox_claim('mailer', 'prepared too');
PREPARE TRANSACTION 'inbox';
ROLLBACK PREPARED 'inbox';
SELECT msgq.inbox_claim('mailer', 'prepared too');

-- A claim, and what comes of it
CREATE TABLE effect (id text);
CREATE FUNCTION deal_with(id text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF msgq.inbox_claim('dealer', id) THEN
		INSERT INTO effect VALUES (id);
	END IF;
END
$$;
SELECT deal_with(id) FROM unnest('{1,2,2,3,1}'::text[]) AS id;
SELECT deal_with('3');
SELECT * FROM effect ORDER BY id;
DROP FUNCTION deal_with;
DROP TABLE effect;

-- In a function that has an exception block, and in one that looks with an old snapshot
DO $$
BEGIN
	BEGIN
		PERFORM msgq.inbox_claim('mailer', 'e');
		RAISE division_by_zero;
	EXCEPTION WHEN division_by_zero THEN
		NULL;
	END;
	ASSERT msgq.inbox_claim('mailer', 'e');
END
$$;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT msgq.inbox_claim('mailer', 'e'), msgq.inbox_claim('mailer', 'f');
COMMIT;

--
-- How long it counts
--
SELECT msgq.inbox_claim('mailer', 'short', '1 h');
SET msgq.test_clock_offset = '59 min';
SELECT msgq.inbox_claim('mailer', 'short', '1 h');
SET msgq.test_clock_offset = '61 min';
SELECT msgq.inbox_claim('mailer', 'short', '1 h');
SELECT msgq.inbox_claim('mailer', 'short', '1 h');
BEGIN;
SET LOCAL msgq.test_clock_offset = '122 min';
SELECT msgq.inbox_claim('mailer', 'short', '1 h');
ROLLBACK;
SELECT msgq.inbox_claim('mailer', 'short', '1 h');
RESET msgq.test_clock_offset;
-- The view shows what counts.
SET msgq.test_clock_offset = '-2 h';
SELECT msgq.inbox_claim('mailer', 'over', '1 h');
RESET msgq.test_clock_offset;
SELECT count(*) FROM msgq.inbox WHERE message_id = 'over';
-- Again in the same statement
SELECT msgq.inbox_claim('mailer', 'instant', '1 ms'), pg_sleep(0.002) IS NULL,
	msgq.inbox_claim('mailer', 'instant', '1 h'), msgq.inbox_claim('mailer', 'instant', '1 ms');

--
-- Arguments
--
SELECT pg_temp.raised('SELECT msgq.inbox_claim(' || arguments || ')') AS raises, arguments FROM (VALUES
	(1, $$'', 'a'$$),
	(2, $$'a', ''$$),
	(3, $$repeat('x', 255), repeat('x', 255)$$),
	(4, $$repeat('x', 256), 'a'$$),
	(5, $$'a', repeat('é', 128)$$),
	(6, $$'a', repeat('x', 1000000)$$),
	(7, $$'a', 'b', '0'$$),
	(8, $$'a', 'b', '-1 s'$$),
	(9, $$'a', 'b', '1 day -24 hours'$$),
	(10, $$'a', 'b', '101 years'$$),
	(11, $$'a', 'b', '100 years'$$)
) AS v(n, arguments) ORDER BY n;
BEGIN READ ONLY;
SELECT msgq.inbox_claim('a', 'c');
ROLLBACK;

--
-- Rights
--
CREATE ROLE regress_msgq_claimer;
SET ROLE regress_msgq_claimer;
SELECT pg_temp.raised($$SELECT msgq.inbox_claim('mailer', 'g')$$);
SELECT pg_temp.raised($$SELECT FROM msgq.inbox$$);
RESET ROLE;
GRANT INSERT ON msgq.inbox TO regress_msgq_claimer;
SET ROLE regress_msgq_claimer;
SELECT msgq.inbox_claim('mailer', 'g'), msgq.inbox_claim('mailer', 'g'), msgq.inbox_claim('mailer', 'short');
SELECT pg_temp.raised(statement), statement FROM unnest('{
	"SELECT FROM msgq.inbox",
	"SELECT FROM msgq.inbox_1",
	"DELETE FROM msgq.inbox_1",
	"INSERT INTO msgq.inbox_2 VALUES (''a'', ''b'', now(), now())",
	"INSERT INTO msgq.inbox VALUES (''a'', ''b'', now(), now())",
	"UPDATE msgq.inbox_state SET current = 2",
	"TRUNCATE msgq.inbox_1"}'::text[]) AS statement;
RESET ROLE;
GRANT SELECT ON msgq.inbox TO regress_msgq_claimer;
REVOKE INSERT ON msgq.inbox FROM regress_msgq_claimer;
SET ROLE regress_msgq_claimer;
SELECT count(*) FROM msgq.inbox WHERE message_id = 'g';
SELECT pg_temp.raised($$SELECT msgq.inbox_claim('mailer', 'h')$$);
RESET ROLE;
REVOKE SELECT ON msgq.inbox FROM regress_msgq_claimer;
DROP ROLE regress_msgq_claimer;

--
-- The tables take turns.
--
DELETE FROM msgq.inbox_1;
VACUUM msgq.inbox_1;
SELECT pg_temp.maintain();
SELECT pg_temp.claimed('short', 1000, '1 h');
SELECT pg_temp.claimed('long', 100, '1 year');
SELECT pg_temp.claimed('longer', 700, '2 h');
-- Not while most of it counts
SELECT pg_temp.maintain(), (pg_temp.tables()).*;
SET msgq.test_clock_offset = '61 min';
SELECT pg_temp.maintain(), (pg_temp.tables()).*;
-- What counts stays where it is, and is found there; new claims go to the other table.
SELECT pg_temp.maintain(), (pg_temp.tables()).*;
SELECT pg_temp.claimed('long', 101, '1 year'), pg_temp.claimed('longer', 700, '2 h'), pg_temp.claimed('short', 10, '1 h');
SELECT (pg_temp.tables()).*;
SELECT count(*) FROM msgq.inbox WHERE message_id LIKE 'long%';
-- Few are left: they move.
SET msgq.test_clock_offset = '121 min';
SELECT pg_temp.maintain(), (pg_temp.tables()).*;
SELECT pg_temp.claimed('long', 102, '1 year'), pg_temp.claimed('short', 10, '1 h');
SELECT pg_relation_size('msgq.inbox_1');

-- Many are left, but the current one should turn.
SELECT pg_temp.claimed('stay', 800, '1 day'), pg_temp.claimed('filler', 1200, '1 min');
SET msgq.test_clock_offset = '130 min';
SELECT pg_temp.maintain(), (pg_temp.tables()).*;
SELECT pg_temp.maintain(), (pg_temp.tables()).*;
SELECT pg_temp.claimed('half', 500, '1 day'), pg_temp.claimed('filler', 1000, '1 min');
SELECT pg_temp.maintain(), (pg_temp.tables()).*;
SET msgq.test_clock_offset = '140 min';
SELECT pg_temp.maintain(), (pg_temp.tables()).*;
SELECT pg_temp.claimed('stay', 800, '1 day'), pg_temp.claimed('half', 501, '1 day'), pg_temp.claimed('long', 102, '1 year');

-- A claim that was made again, when the one in the kept table had expired, is not undone by moving that, by another clock.
RESET msgq.test_clock_offset;
TRUNCATE msgq.inbox_1, msgq.inbox_2, msgq.inbox_state;
SELECT pg_temp.claimed('gone', 1000, '1 min'), pg_temp.claimed('again', 20, '2 min'), pg_temp.claimed('moved', 50, '1 day');
SET msgq.test_clock_offset = '90 s';
SELECT pg_temp.maintain();
SET msgq.test_clock_offset = '150 s';
SELECT pg_temp.claimed('again', 10, '1 day');
SET msgq.test_clock_offset = '100 s';
SELECT pg_temp.maintain(), (pg_temp.tables()).*;
SET msgq.test_clock_offset = '150 s';
SELECT pg_temp.claimed('again', 11, '1 day'), pg_temp.claimed('moved', 51, '1 day');
RESET msgq.test_clock_offset;

-- A transaction that has claimed stays open.
SELECT pg_temp.claimed('filler', 1000, '1 min');
BEGIN;
SELECT msgq.inbox_claim('many', 'open');
PREPARE TRANSACTION 'inbox';
SET msgq.test_clock_offset = '4 min';
SELECT pg_temp.maintain(), (pg_temp.tables()).current;
COMMIT PREPARED 'inbox';
SELECT pg_temp.maintain(), (pg_temp.tables()).current;

--
-- While a snapshot is held, nothing grows: neither where all claims expire after
-- the same time, nor where a few are kept for long. Without turns, 30 rounds take
-- some 2.5 MB.
--
RESET msgq.test_clock_offset;
TRUNCATE msgq.inbox_1, msgq.inbox_2, msgq.inbox_state;
BEGIN;
CREATE TABLE holds_a_snapshot ();
PREPARE TRANSACTION 'snapshot';
CREATE TEMP TABLE largest (bytes bigint);
CREATE FUNCTION pg_temp.bytes() RETURNS bigint LANGUAGE sql AS $$
	SELECT pg_total_relation_size('msgq.inbox_1') + pg_total_relation_size('msgq.inbox_2')
$$;
\set ECHO none
SELECT format('SET msgq.test_clock_offset = ''%s min''', i),
	format('SELECT pg_temp.claimed(''short %s'', 600, ''1 min'')', i),
	format('SELECT pg_temp.claimed(''long %s'', 2, ''1 year'')', i),
	'SELECT pg_temp.maintain()',
	'INSERT INTO largest SELECT pg_temp.bytes()'
FROM generate_series(2, 60, 2) AS i
\o /dev/null
\gexec
\o
\set ECHO all
SELECT max(bytes) < 500 * 1024 AS bounded, (pg_temp.tables()).emptied > 5 AS emptied FROM largest;
SELECT sum(pg_temp.claimed('long ' || 2 * i, 2, '1 year')) AS claimed_again FROM generate_series(1, 30) AS i;
ROLLBACK PREPARED 'snapshot';

RESET msgq.test_clock_offset;

--
-- What somebody has added to the tables
--
TRUNCATE msgq.inbox_1, msgq.inbox_2, msgq.inbox_state;
SELECT pg_temp.claimed('short', 1000, '1 h');
SET msgq.test_clock_offset = '61 min';
CREATE FUNCTION foreign_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE WARNING 'a trigger was run';
	RETURN NULL;
END
$$;
SET client_min_messages = error;
CREATE TRIGGER added BEFORE INSERT OR DELETE ON msgq.inbox_2 FOR EACH ROW EXECUTE FUNCTION foreign_trigger();
SELECT pg_temp.raised($$SELECT msgq.inbox_claim('mailer', 'added')$$);
SELECT pg_temp.maintain(), (pg_temp.tables()).current;
DROP TRIGGER added ON msgq.inbox_2;
ALTER TABLE msgq.inbox_1 ENABLE ROW LEVEL SECURITY;
SELECT pg_temp.raised($$SELECT msgq.inbox_claim('mailer', 'added')$$);
SELECT pg_temp.maintain(), (pg_temp.tables()).current;
ALTER TABLE msgq.inbox_1 DISABLE ROW LEVEL SECURITY;
SET client_min_messages = warning;
SELECT pg_temp.maintain(), (pg_temp.tables()).current;
CREATE TRIGGER added BEFORE TRUNCATE ON msgq.inbox_1 FOR EACH STATEMENT EXECUTE FUNCTION foreign_trigger();
SET client_min_messages = error;
SELECT pg_temp.maintain(), (pg_temp.tables()).emptied;
SET client_min_messages = warning;
DROP TRIGGER added ON msgq.inbox_1;
SELECT pg_temp.maintain(), (pg_temp.tables()).emptied;
DROP FUNCTION foreign_trigger;

RESET msgq.test_clock_offset;
TRUNCATE msgq.inbox_1, msgq.inbox_2, msgq.inbox_state;
