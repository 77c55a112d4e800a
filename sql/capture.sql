--
-- Capture: changes of tables as messages.
--
SET client_min_messages = warning;
SELECT msgq.create_queue('changes', dead_letter_queue => '', max_message_bytes => 200000);
SELECT msgq.create_queue('other', dead_letter_queue => '');
SELECT msgq.create_stream('log');
SELECT msgq.create_topic('bus', on_unroutable => 'drop');
SELECT msgq.bind('bus', 'other', 'public.#') > 0 AS bound;

-- What has come, in order, without the time; it is taken.
CREATE FUNCTION came(queue text, OUT key text, OUT op text, OUT "table" text, OUT old text, OUT new text, OUT more text)
RETURNS SETOF record LANGUAGE sql AS $$
	SELECT group_key, body->>'op', body->>'table', body->>'old', body->>'new',
		nullif((body - '{op,table,old,new,at}'::text[])::text, '{}')
	FROM msgq.pop(queue, 1000) ORDER BY id
$$;
-- What a statement raises; nothing that it does is kept.
CREATE FUNCTION pg_temp.raised(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE statement;
	RAISE SQLSTATE 'OKAY0';
EXCEPTION
	WHEN SQLSTATE 'OKAY0' THEN RETURN 'nothing';
	WHEN OTHERS THEN RETURN SQLSTATE || ' ' || regexp_replace(SQLERRM, '(msgq_capture_|\mq)\d+', '\1N', 'g');
END $$;

-- Kinds of changes.
CREATE TABLE item (id int PRIMARY KEY, name text, price numeric, tags text[], doc jsonb);
SELECT msgq.capture('item', 'changes', key => 'id') ~ '^msgq_capture_\d+$' AS made;
INSERT INTO item VALUES (1, 'pen', 1.50, '{a,b}', '{"x": [1, {"y": null}]}'), (2, NULL, 'NaN', NULL, 'null');
UPDATE item SET price = price + 1;
DELETE FROM item WHERE id = 2;
SELECT * FROM came('changes');
-- No row, no message.
UPDATE item SET price = 0 WHERE false;
DELETE FROM item WHERE id = 2;
INSERT INTO item SELECT * FROM item WHERE false;
SELECT * FROM came('changes');
-- INSERT ON CONFLICT, MERGE, COPY, an update in a data-modifying WITH.
INSERT INTO item VALUES (1, 'pencil', 3), (3, 'ink', 4) ON CONFLICT (id) DO UPDATE SET name = excluded.name;
MERGE INTO item USING (VALUES (1), (3), (4)) AS v(id) ON v.id = item.id
	WHEN MATCHED AND item.id = 3 THEN DELETE
	WHEN MATCHED THEN UPDATE SET name = 'merged'
	WHEN NOT MATCHED THEN INSERT (id, name) VALUES (v.id, 'new');
COPY item (id, name) FROM stdin;
5	copied
6	too
\.
WITH changed AS (UPDATE item SET name = 'with' WHERE id = 5 RETURNING id)
	DELETE FROM item USING changed WHERE item.id = 6;
SELECT key, op, old::jsonb->'name' AS old, new::jsonb->'name' AS new FROM came('changes');
-- The caller's transaction, and its savepoints.
BEGIN;
INSERT INTO item (id) VALUES (10);
SAVEPOINT s;
INSERT INTO item (id) VALUES (11);
ROLLBACK TO s;
INSERT INTO item (id) VALUES (12);
COMMIT;
BEGIN;
DELETE FROM item;
ROLLBACK;
SELECT key, op FROM came('changes');
-- Cascades, and triggers that change the row.
CREATE TABLE part (item int REFERENCES item ON DELETE CASCADE ON UPDATE CASCADE, n int);
SELECT msgq.capture('part', 'changes', '{update,delete}', '{n,item}', 'item') ~ 'msgq_capture' AS made;
CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN new.name := upper(new.name); RETURN new; END $$;
CREATE TRIGGER shout BEFORE INSERT OR UPDATE ON item FOR EACH ROW EXECUTE FUNCTION shout();
INSERT INTO item (id, name) VALUES (20, 'cascade');
INSERT INTO part VALUES (20, 1), (20, 2);
UPDATE item SET id = 21 WHERE id = 20;
DELETE FROM item WHERE id = 21;
SELECT key, op, "table", old, new FROM came('changes') ORDER BY "table", op, old;
DROP TRIGGER shout ON item;

-- What to_jsonb() says, for all kinds of types.
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN positive AS int CHECK (value > 0);
CREATE DOMAIN short AS varchar(5);
CREATE TABLE kinds (b bool, i2 int2, i4 int4, i8 int8, f4 float4, f8 float8, n numeric, t text, v varchar(9), c char(5), nm name,
	by bytea, d date, ts timestamp, tz timestamptz, ti time, iv interval, u uuid, j json, jb jsonb, m mood, p pair, dp positive,
	ds short, ia int[], pa pair[], inet inet, r int4range, x xml, ch "char", g int GENERATED ALWAYS AS (i4 * 2) STORED);
SELECT msgq.capture('kinds', 'changes') ~ 'msgq_capture' AS made;
INSERT INTO kinds VALUES (true, -1, 1073741823, -9223372036854775808, 1.1, 'Infinity', 123456789012345678901234567890.123456789, E'q"\\\n\u20ac', 'vc', 'ab', 'nm',
	'\xdeadbeef', '2026-02-28', '2026-02-28 12:34:56.789', '2026-02-28 12:34:56+02', '12:00', '1 day 2 hours', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"z": 1, "a": 2}', '[1, "2", null, {}]',
	'ok', '(1,x)', 7, 'abc', '{{1,2},{3,NULL}}', '{"(1,x)","(2,y)"}', '10.0.0.1/8', '[1,5)', '<a>b</a>', 'x'),
	(false, 0, 0, 0, 'NaN', '-0', 'Infinity', '', '', '', '', '', 'infinity', '-infinity', 'infinity', '00:00', '0', NULL, 'null', '{}', 'sad', NULL, 1, '', '{}', '{}', '::1', 'empty', NULL, '');
SELECT body->'new' = to_jsonb(k) AS same FROM msgq.pop('changes', 10) m JOIN kinds k ON k.b = (m.body->'new'->>'b')::bool;
SELECT count(*) FROM msgq.pop('changes', 10);
SELECT msgq.uncapture('kinds', 'changes');

-- Values out of line that did not change are not repeated, but named.
CREATE TABLE doc (id int PRIMARY KEY, title text, long text, long2 text);
ALTER TABLE doc ALTER long SET STORAGE EXTERNAL, ALTER long2 SET STORAGE EXTERNAL;
SELECT msgq.capture('doc', 'changes') ~ 'msgq_capture' AS made;
INSERT INTO doc VALUES (1, 'a', repeat('x', 10000), repeat('y', 10000));
UPDATE doc SET title = 'b';
UPDATE doc SET long = repeat('z', 9000);
UPDATE doc SET long = long || '!';
UPDATE doc SET long2 = NULL;
DELETE FROM doc;
SELECT op, length(old) AS old, length(new) AS new, more FROM came('changes');
SELECT msgq.uncapture('doc', 'changes');

-- Columns, key and filter.
CREATE TABLE acct (id int PRIMARY KEY, owner text, secret text, balance int);
SELECT msgq.capture('acct', 'changes', '{insert,update}', '{balance,owner}', 'owner', '$.body.new.balance >= 100') ~ 'msgq_capture' AS made;
INSERT INTO acct VALUES (1, 'ann', 's1', 50), (2, 'bob', 's2', 100), (3, '', 's3', 200), (4, NULL, 's4', 300);
UPDATE acct SET balance = balance + 50;
DELETE FROM acct WHERE id = 4;
SELECT * FROM came('changes');
SELECT relation, destination, kind, events, columns, key, filter FROM msgq.captures WHERE relation = 'acct'::regclass;
-- It survives ALTER TABLE.
ALTER TABLE acct RENAME owner TO holder;
ALTER TABLE acct ADD extra int DEFAULT 7;
ALTER TABLE acct DROP secret;
ALTER TABLE acct RENAME TO account;
ALTER TABLE account ALTER id TYPE bigint;
CREATE SCHEMA bank;
ALTER TABLE account SET SCHEMA bank;
UPDATE bank.account SET balance = 1000 WHERE id = 1;
SELECT * FROM came('changes');
SELECT relation, columns, key FROM msgq.captures WHERE relation = 'bank.account'::regclass;
-- A column that was chosen changes its type, or goes, only without the capture.
SELECT pg_temp.raised('ALTER TABLE bank.account ALTER balance TYPE bigint');
BEGIN;
SELECT msgq.uncapture('bank.account', 'changes');
ALTER TABLE bank.account ALTER balance TYPE bigint;
SELECT msgq.capture('bank.account', 'changes', '{insert,update}', '{balance,holder}', 'holder') ~ 'msgq_capture' AS made;
COMMIT;
UPDATE bank.account SET balance = 5000000000 WHERE id = 1;
SELECT * FROM came('changes');
SELECT pg_temp.raised('ALTER TABLE bank.account DROP holder');
BEGIN;
ALTER TABLE bank.account DROP holder CASCADE;
SELECT pg_temp.raised('UPDATE bank.account SET balance = 1 WHERE false');
ROLLBACK;
-- Of all columns, each that there is.
ALTER TABLE item DROP tags, ADD added text DEFAULT 'here';
ALTER TABLE item RENAME price TO cost;
UPDATE item SET cost = 9 WHERE id = 1;
SELECT key, op, old, new FROM came('changes');

-- Several destinations; a stream, a topic.
SELECT msgq.capture('item', 'log') ~ 'msgq_capture' AS made;
SELECT msgq.capture('item', 'bus', key => 'name') ~ 'msgq_capture' AS made;
INSERT INTO item (id, name) VALUES (30, 'many'), (31, NULL);
SELECT key, op FROM came('changes');
CALL msgq.sequence('log');
SELECT key, body->>'op' AS op, body->'new'->'id' AS id FROM msgq.scan('log', 0, 1, 10);
SELECT group_key, headers, body->'new'->'id' AS id FROM msgq.pop('other', 10) ORDER BY id;
-- Names can change, things that take changes cannot go.
SELECT msgq.rename_queue('changes', 'renamed');
INSERT INTO item (id) VALUES (32);
SELECT key, op FROM came('renamed');
SELECT pg_temp.raised($$SELECT msgq.drop_queue('renamed')$$);
SELECT pg_temp.raised($$SELECT msgq.drop_stream('log')$$);
SELECT pg_temp.raised($$SELECT msgq.drop_topic('bus')$$);
SELECT msgq.drop_stream('log');
SELECT msgq.rename_queue('renamed', 'changes');
SELECT msgq.uncapture('item', 'log');
SELECT msgq.uncapture('item', 'log');
SELECT msgq.drop_stream('log');

-- Nor with another queue.
SELECT msgq.create_queue('pair');
CREATE TABLE failed (id int);
SELECT msgq.capture('failed', 'pair.dead') ~ 'msgq_capture' AS made;
SELECT msgq.drop_queue('pair');
INSERT INTO failed VALUES (1);
SELECT op, new FROM came('pair.dead');
DROP TABLE failed;
SELECT msgq.drop_queue('pair.dead');

-- More rows than go out at once.
INSERT INTO item (id, name) SELECT i, i FROM generate_series(1001, 2777) i;
SELECT count(*), count(DISTINCT group_key), min(body->'new'->>'id') AS first, bool_and(body->'new'->>'id' = group_key) AS right_key FROM msgq.peek('changes', 10000);
SELECT count(*), count(DISTINCT headers->>'msgq-routing-key') AS routing_keys FROM msgq.peek('other', 10000);
SELECT msgq.purge('changes'), msgq.purge('other');
UPDATE item SET name = name || '!' WHERE id > 1000;
SELECT count(*), bool_and(body->'new'->>'name' = (body->'old'->>'name') || '!' AND body->'old'->'id' = body->'new'->'id') AS pairs FROM msgq.peek('changes', 10000);
SELECT count(*) FROM msgq.peek('other', 10000);
SELECT msgq.purge('changes'), msgq.purge('other');
SELECT msgq.uncapture('item', 'bus');

-- Rows that the filter declines do not keep their memory.  (A cast of the user's is called for each row.)
CREATE TYPE place AS ENUM ('inner', 'last');
CREATE FUNCTION weigh(p place) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
	IF p = 'last' THEN
		PERFORM set_config('regress.bytes', (SELECT sum(total_bytes) FROM pg_backend_memory_contexts WHERE name = 'msgq capture')::text, false);
	END IF;
	RETURN to_json(p::text);
END $$;
CREATE CAST (place AS json) WITH FUNCTION weigh(place);
CREATE TABLE heavy (p place, name text);
SELECT msgq.capture('heavy', 'changes', filter => '$.body.new.p == "last"') ~ 'msgq_capture' AS made;
INSERT INTO heavy SELECT CASE i WHEN 20000 THEN 'last' ELSE 'inner' END::place, repeat('x', 1000) FROM generate_series(1, 20000) i;
SELECT current_setting('regress.bytes')::int < 16000000 AS little;
SELECT body->'new'->'p' AS p FROM msgq.pop('changes', 10);
DROP TABLE heavy;
DROP TYPE place CASCADE;

-- Partitions: whatever table a statement names.
CREATE TABLE sale (id int, region text, amount int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE sale_eu PARTITION OF sale FOR VALUES IN ('eu');
CREATE TABLE sale_us (amount int, gone int, region text NOT NULL, id int NOT NULL);
ALTER TABLE sale_us DROP gone;
ALTER TABLE sale ATTACH PARTITION sale_us FOR VALUES IN ('us');
SELECT msgq.capture('sale', 'changes', columns => '{id,region}', key => 'id') ~ 'msgq_capture' AS made;
INSERT INTO sale VALUES (1, 'eu', 10), (2, 'us', 20);
INSERT INTO sale_us (id, region, amount) VALUES (3, 'us', 30);
CREATE TABLE sale_as PARTITION OF sale FOR VALUES IN ('as');
INSERT INTO sale_as VALUES (4, 'as', 40);
UPDATE sale SET amount = 0 WHERE id = 1;
UPDATE sale SET region = 'us' WHERE id = 1;
DELETE FROM sale_us WHERE id = 3;
SELECT * FROM came('changes');
SELECT pg_temp.raised($$SELECT msgq.capture('sale_eu', 'other', '{truncate}')$$);
SELECT msgq.uncapture('sale', 'changes');
INSERT INTO sale VALUES (5, 'eu', 10);
SELECT count(*) FROM came('changes');
-- A part alone.
SELECT msgq.capture('sale_eu', 'changes', key => 'id') ~ 'msgq_capture' AS made;
INSERT INTO sale VALUES (6, 'eu', 10), (7, 'us', 10);
UPDATE sale SET amount = 1;
SELECT key, op, "table" FROM came('changes');
-- A captured table cannot become a part: statements that name the whole would be missed.
CREATE TABLE sale_af (LIKE sale INCLUDING ALL);
SELECT msgq.capture('sale_af', 'changes', '{delete}') ~ 'msgq_capture' AS made;
SELECT pg_temp.raised($$ALTER TABLE sale ATTACH PARTITION sale_af FOR VALUES IN ('af')$$);
CREATE TABLE whole (id int NOT NULL, region text NOT NULL, amount int);
SELECT pg_temp.raised('ALTER TABLE sale_af INHERIT whole');
-- A whole with children.
CREATE TABLE child (more int) INHERITS (whole);
SELECT msgq.capture('whole', 'changes', '{insert,update}', key => 'id') ~ 'msgq_capture' AS made;
INSERT INTO child VALUES (1, 'x', 2, 3);
UPDATE whole SET amount = 9;
SELECT * FROM came('changes');
-- TRUNCATE.
SELECT msgq.capture('doc', 'changes', '{truncate}') ~ 'msgq_capture' AS made;
INSERT INTO doc VALUES (1);
TRUNCATE doc;
SELECT * FROM came('changes');

-- What is refused.
CREATE TEMPORARY TABLE temporary (id int);
SELECT pg_temp.raised(s) FROM unnest(ARRAY[
	$$SELECT msgq.capture(NULL, 'changes')$$,
	$$SELECT msgq.capture('item', NULL)$$,
	$$SELECT msgq.capture('item', 'nowhere')$$,
	$$SELECT msgq.capture('item', repeat('x', 64))$$,
	$$SELECT msgq.capture('nothing', 'changes')$$,
	$$SELECT msgq.capture(1, 'changes')$$,
	$$SELECT msgq.capture('item', 'changes')$$,
	$$SELECT msgq.capture('item', 'other', NULL)$$,
	$$SELECT msgq.capture('item', 'other', '{}')$$,
	$$SELECT msgq.capture('item', 'other', '{insert,NULL}')$$,
	$$SELECT msgq.capture('item', 'other', '{insert,insert}')$$,
	$$SELECT msgq.capture('item', 'other', '{{insert},{update}}')$$,
	$$SELECT msgq.capture('item', 'other', '{select}')$$,
	$$SELECT msgq.capture('item', 'other', columns => '{}')$$,
	$$SELECT msgq.capture('item', 'other', columns => '{id,none}')$$,
	$$SELECT msgq.capture('item', 'other', columns => '{id,id}')$$,
	$$SELECT msgq.capture('item', 'other', columns => '{ctid}')$$,
	$$SELECT msgq.capture('item', 'other', key => 'none')$$,
	$$SELECT msgq.capture('item', 'other', key => '')$$,
	$$SELECT msgq.capture('item_pkey', 'other')$$,
	$$SELECT msgq.capture('pg_stats', 'other')$$,
	$$SELECT msgq.capture('pg_class', 'other')$$,
	$$SELECT msgq.capture('pg_temp.temporary', 'other')$$,
	$$SELECT msgq.capture('msgq.queue', 'other')$$,
	$$SELECT msgq.capture(format('msgq.q%s_1', (SELECT id FROM msgq.queues WHERE name = 'other'))::regclass, 'other')$$,
	$$SELECT msgq.uncapture(NULL, 'changes')$$,
	$$SELECT msgq.uncapture('item', NULL)$$,
	$$SELECT msgq.uncapture('item', 'nowhere')$$,
	$$SELECT msgq.capture_changes()$$]) AS s;
-- What sending refuses, the change refuses.
SELECT pg_temp.raised($$INSERT INTO item (id, name) VALUES (40, repeat('x', 300000))$$);
SELECT msgq.pause('changes', 'send');
SELECT pg_temp.raised($$DELETE FROM item$$);
\set SHOW_CONTEXT always
DELETE FROM item;
\set SHOW_CONTEXT errors
SELECT msgq.resume('changes', 'send');
SELECT msgq.uncapture('item', 'changes');
SELECT msgq.capture('item', 'changes', key => 'name') ~ 'msgq_capture' AS made;
SELECT pg_temp.raised($$INSERT INTO item (id, name) VALUES (40, repeat('x', 300))$$);

-- A trigger that is made by hand does nothing that was not allowed.
CREATE TABLE mine (id int);
SELECT regexp_replace(triggers::text, '\D', '', 'g') AS number FROM msgq.captures WHERE relation = 'item'::regclass \gset
CREATE TRIGGER sneak AFTER INSERT ON mine REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION msgq.capture_changes(:'number');
SELECT pg_temp.raised('INSERT INTO mine VALUES (1)');
DROP TRIGGER sneak ON mine;
CREATE TRIGGER sneak AFTER INSERT ON mine EXECUTE FUNCTION msgq.capture_changes();
SELECT pg_temp.raised('INSERT INTO mine VALUES (1)');
DROP TRIGGER sneak ON mine;
CREATE TRIGGER sneak AFTER INSERT ON mine EXECUTE FUNCTION msgq.capture_changes('no number');
SELECT pg_temp.raised('INSERT INTO mine VALUES (1)');
DROP TRIGGER sneak ON mine;
CREATE TRIGGER sneak AFTER INSERT ON mine EXECUTE FUNCTION msgq.capture_changes('99999999999');
SELECT pg_temp.raised('INSERT INTO mine VALUES (1)');
DROP TRIGGER sneak ON mine;
CREATE TRIGGER sneak BEFORE INSERT ON mine EXECUTE FUNCTION msgq.capture_changes('1');
SELECT pg_temp.raised('INSERT INTO mine VALUES (1)');
DROP TRIGGER sneak ON mine;
-- Nor does one of that very table, for other events, or without the rows.
CREATE TABLE own (id int);
SELECT msgq.create_queue('own', dead_letter_queue => '');
SELECT msgq.capture('own', 'own', '{insert,update}') AS own \gset
SELECT regexp_replace(:'own', '\D', '', 'g') AS number, :'own' || '_update' AS update_name, :'own' || '_delete' AS delete_name \gset
INSERT INTO own VALUES (1);
CREATE TRIGGER sneak AFTER INSERT ON own FOR EACH ROW EXECUTE FUNCTION msgq.capture_changes(:number);
SELECT pg_temp.raised('INSERT INTO own VALUES (2)');
DROP TRIGGER sneak ON own;
CREATE TRIGGER :"delete_name" AFTER DELETE ON own REFERENCING OLD TABLE AS o FOR EACH STATEMENT EXECUTE FUNCTION msgq.capture_changes(:number);
SELECT pg_temp.raised('DELETE FROM own');
DROP TRIGGER :"update_name" ON own;
CREATE TRIGGER :"update_name" AFTER UPDATE ON own REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION msgq.capture_changes(:number);
SELECT pg_temp.raised('UPDATE own SET id = 2');
DROP TRIGGER :"update_name" ON own;
CREATE TRIGGER :"update_name" AFTER UPDATE ON own FOR EACH STATEMENT EXECUTE FUNCTION msgq.capture_changes(:number);
SELECT pg_temp.raised('UPDATE own SET id = 2');
SELECT op, new FROM came('own');
-- Its end takes them with it, and those that were renamed.
SELECT :'own' || '_insert' AS insert_name \gset
ALTER TRIGGER :"insert_name" ON own RENAME TO renamed;
SELECT pg_temp.raised('INSERT INTO own VALUES (2)');
SELECT msgq.uncapture('own', 'own');
SELECT count(*) FROM pg_trigger WHERE tgrelid = 'own'::regclass;
DROP TABLE own;
SELECT msgq.drop_queue('own');
SELECT msgq.create_outbox('own', 'bus');
SELECT regexp_replace(triggers::text, '\D', '', 'g') AS number, triggers || '_truncate' AS truncate_name, triggers || '_delete' AS delete_name FROM msgq.captures WHERE relation = 'own'::regclass \gset
CREATE TRIGGER :"truncate_name" AFTER TRUNCATE ON own EXECUTE FUNCTION msgq.capture_changes(:number);
SELECT pg_temp.raised('TRUNCATE own');
CREATE TRIGGER :"delete_name" AFTER DELETE ON own FOR EACH ROW EXECUTE FUNCTION msgq.capture_changes(:number);
INSERT INTO own VALUES (DEFAULT, 'order', '1', 't');
SELECT pg_temp.raised('DELETE FROM own');
DROP TABLE own;

-- Rights: the table's triggers and content, and the right to send.
CREATE ROLE regress_capture;
CREATE ROLE regress_changer;
GRANT SELECT, INSERT ON mine TO regress_capture;
GRANT INSERT, UPDATE (id) ON mine TO regress_changer;
CREATE FUNCTION pg_temp.tried(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	SET LOCAL ROLE regress_capture;
	RETURN pg_temp.raised(statement);
END $$;
GRANT USAGE ON SCHEMA public TO regress_capture, regress_changer;
SELECT pg_temp.tried($$SELECT msgq.capture('mine', 'changes')$$);
GRANT TRIGGER ON mine TO regress_capture;
SELECT pg_temp.tried($$SELECT msgq.capture('mine', 'changes')$$);
SELECT msgq.grant('changes', 'regress_capture', 'send');
REVOKE SELECT ON mine FROM regress_capture;
SELECT pg_temp.tried($$SELECT msgq.capture('mine', 'changes')$$);
GRANT SELECT (id) ON mine TO regress_capture;
SELECT pg_temp.tried($$SELECT msgq.capture('mine', 'changes')$$);
SELECT pg_temp.tried($$SELECT msgq.capture('mine', 'changes', columns => '{id}')$$);
ALTER TABLE mine ENABLE ROW LEVEL SECURITY;
SELECT pg_temp.tried($$SELECT msgq.capture('mine', 'changes', columns => '{id}')$$);
ALTER TABLE mine DISABLE ROW LEVEL SECURITY;
SET ROLE regress_capture;
SELECT msgq.capture('mine', 'changes', columns => '{id}') ~ 'msgq_capture' AS made;
RESET ROLE;
SELECT msgq.revoke('changes', 'regress_capture', 'send');
-- Whoever changes the table needs no right on the queue.
SET ROLE regress_changer;
INSERT INTO mine VALUES (1);
SELECT count(*) FROM msgq.captures;
SELECT pg_temp.raised($$SELECT msgq.uncapture('mine', 'changes')$$);
RESET ROLE;
SELECT op, new FROM came('changes');
SELECT pg_temp.tried($$SELECT msgq.uncapture('mine', 'changes')$$);
-- The owner can end it, whatever he has revoked from himself.
GRANT CREATE ON SCHEMA public TO regress_capture;
SET ROLE regress_capture;
CREATE TABLE bare (id int);
RESET ROLE;
SELECT msgq.capture('bare', 'changes') ~ 'msgq_capture' AS made;
SET ROLE regress_capture;
REVOKE ALL ON bare FROM regress_capture;
SELECT msgq.uncapture('bare', 'changes');
DROP TABLE bare;
RESET ROLE;
REVOKE CREATE ON SCHEMA public FROM regress_capture;

-- An outbox as Debezium's event router expects it.
SELECT msgq.create_outbox('bank.outbox', 'bus');
SELECT column_name, data_type, character_maximum_length, is_nullable FROM information_schema.columns
WHERE table_schema = 'bank' AND table_name = 'outbox' ORDER BY ordinal_position;
SELECT msgq.bind('bus', 'other', 'order') > 0 AS bound;
INSERT INTO bank.outbox VALUES ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'order', '42', 'OrderCreated', '{"total": 1}'),
	('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a12', 'customer', '7', 'CustomerMoved', '{}'),
	('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a13', 'order', '42', 'OrderDeleted', NULL);
DELETE FROM bank.outbox;
SELECT group_key, headers, body FROM msgq.pop('other', 10) ORDER BY id;
-- Other columns are headers.
ALTER TABLE bank.outbox ADD traceparent text, ADD version int;
INSERT INTO bank.outbox VALUES ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a14', 'order', '42', 'OrderPaid', '1', '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', 3),
	('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a15', 'order', '', 'OrderLost', '2', NULL, NULL);
SELECT group_key, headers, body FROM msgq.pop('other', 10) ORDER BY id;
SELECT pg_temp.raised($$INSERT INTO bank.outbox VALUES (DEFAULT, repeat('x', 256), '1', 't')$$);
ALTER TABLE bank.outbox RENAME payload TO content;
SELECT pg_temp.raised($$INSERT INTO bank.outbox VALUES (DEFAULT, 'order', '1', 't')$$);
SELECT pg_temp.raised($$SELECT msgq.drop_topic('bus')$$);
SELECT relation, destination, kind, events, columns, key, filter FROM msgq.captures WHERE kind = 'outbox';
SELECT pg_temp.raised(s) FROM unnest(ARRAY[
	$$SELECT msgq.create_outbox(NULL, 'bus')$$,
	$$SELECT msgq.create_outbox('o', NULL)$$,
	$$SELECT msgq.create_outbox('o', 'changes')$$,
	$$SELECT msgq.create_outbox('a.b.c.d', 'bus')$$,
	$$SELECT msgq.create_outbox('nowhere.o', 'bus')$$,
	$$SELECT msgq.create_outbox('', 'bus')$$,
	$$SELECT msgq.create_outbox('pg_temp.o', 'bus')$$,
	$$SELECT msgq.create_outbox('bank.outbox', 'bus')$$]) AS s;
SELECT pg_temp.tried($$SELECT msgq.create_outbox('bank.mine', 'bus')$$);

-- What the table's end leaves behind does not hold the queue.
DROP TABLE bank.outbox;
SELECT msgq.drop_topic('bus');
DROP TABLE item CASCADE;
DROP TABLE part, doc, sale, sale_af, whole, child, mine, kinds, bank.account;
SELECT count(*) FROM msgq.captures;
SELECT msgq.drop_queue('changes'), msgq.drop_queue('other');
SELECT count(*) FROM msgq.capture;
DROP TYPE mood, pair;
DROP DOMAIN positive, short;
DROP SCHEMA bank;
DROP FUNCTION came, shout;
DROP OWNED BY regress_capture, regress_changer;
DROP ROLE regress_capture, regress_changer;
