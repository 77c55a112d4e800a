--
-- Arguments that are NULL, empty, misshapen, or out of range; bodies of any
-- size; and that an error leaves nothing behind.
--
CREATE TEMP TABLE relations_before AS
	SELECT oid FROM pg_class WHERE relnamespace = 'msgq'::regnamespace;

-- What a statement raises; nothing that it does is kept.
CREATE FUNCTION pg_temp.raised(statement text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	detail text;
	hint text;
BEGIN
	EXECUTE statement;
	RAISE SQLSTATE 'OKAY0';
EXCEPTION
	WHEN SQLSTATE 'OKAY0' THEN
		RETURN 'nothing';
	WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
		RETURN concat_ws(' / ', SQLSTATE || ' ' || SQLERRM, nullif(detail, ''), nullif(hint, ''));
END
$$;

SELECT msgq.create_queue('args', dead_letter_queue => '');
SELECT format('msgq.q%s_1', id) AS segment, format('msgq.q%s_id', id) AS sequence
FROM msgq.queues WHERE name = 'args' \gset
SELECT msgq.send('args', '"the only one"');
SELECT msgq.create_stream('stream');
SELECT msgq.create_group('stream', 'group', 'first');
SELECT msgq.create_topic('topic', on_unroutable => 'drop');

--
-- NULL for each argument of each function in turn
--
CREATE TEMP TABLE call (name text, arguments text[]);
INSERT INTO call VALUES
	('create_queue', ARRAY['''new''', '''30 s''', '0', '''''', '''5 s''', '2', '''10 min''', 'NULL', 'NULL', '''reject''',
		'1048576', 'NULL', '1', 'false', '''skip''', '''24 h''', 'NULL', 'false']),
	('alter_queue', ARRAY['''args''', '''{}''']),
	('rename_queue', ARRAY['''args''', '''new''']),
	('drop_queue', ARRAY['''args''', 'false']),
	('grant', ARRAY['''args''', '''public''', '''send''']),
	('revoke', ARRAY['''args''', '''public''', '''send''']),
	('purge', ARRAY['''args''']),
	('send', ARRAY['''args''', '''1''', 'NULL', 'NULL', 'NULL', '0', 'NULL', 'NULL', 'NULL']),
	('send_bytes', ARRAY['''args''', '''\x01''', 'NULL', 'NULL', 'NULL', '0', 'NULL', 'NULL', 'NULL']),
	('send_batch', ARRAY['''args''', '''{1}''', 'NULL', 'NULL', 'NULL', '0', 'NULL', 'NULL', 'NULL']),
	('send_bytes_batch', ARRAY['''args''', '''{a}''', 'NULL', 'NULL', 'NULL', '0', 'NULL', 'NULL', 'NULL']),
	('send_messages', ARRAY['''args''', '''[{"body": 1}]''']),
	('send_once', ARRAY['''args''', '''1''', '''k''', 'NULL', 'NULL', 'NULL', '0', 'NULL', 'NULL']),
	('receive', ARRAY['''args''', '1', 'NULL', '''0''']),
	('pop', ARRAY['''args''', '1']),
	('ack', ARRAY['''args''', '''6ba7b810-9dad-11d1-80b4-00c04fd430c8''', 'false']),
	('ack_batch', ARRAY['''args''', '''{}''', 'false']),
	('archive', ARRAY['''args''', '''6ba7b810-9dad-11d1-80b4-00c04fd430c8''', 'false']),
	('archive_batch', ARRAY['''args''', '''{}''', 'false']),
	('archived', ARRAY['''args''', '10', '0']),
	('nack', ARRAY['''args''', '''6ba7b810-9dad-11d1-80b4-00c04fd430c8''', 'NULL', 'NULL', 'false']),
	('nack_batch', ARRAY['''args''', '''{}''', 'NULL', 'NULL', 'false']),
	('reject', ARRAY['''args''', '''6ba7b810-9dad-11d1-80b4-00c04fd430c8''', 'NULL', 'false']),
	('reject_batch', ARRAY['''args''', '''{}''', 'NULL', 'false']),
	('redrive', ARRAY['''args''', 'NULL', 'NULL', 'NULL', 'false']),
	('pause', ARRAY['''args''', '''receive''']),
	('resume', ARRAY['''args''', '''all''']),
	('extend', ARRAY['''args''', '''6ba7b810-9dad-11d1-80b4-00c04fd430c8''', '''1 s''', 'false']),
	('extend_batch', ARRAY['''args''', '''{}''', '''1 s''', 'false']),
	('release', ARRAY['''args''', '''6ba7b810-9dad-11d1-80b4-00c04fd430c8''', 'false']),
	('release_batch', ARRAY['''args''', '''{}''', 'false']),
	('cancel', ARRAY['''args''', '1']),
	('expire_lease', ARRAY['''args''', '1']),
	('peek', ARRAY['''args''', '10', '0']),
	('why_empty', ARRAY['''args''']),
	('create_stream', ARRAY['''new''', '1', '''7 days''', 'NULL', 'NULL', 'false', 'NULL', 'false']),
	('alter_stream', ARRAY['''stream''', '''{}''']),
	('drop_stream', ARRAY['''stream''', 'false']),
	('append', ARRAY['''stream''', '''1''', 'NULL', 'NULL', 'NULL', 'NULL']),
	('append_bytes', ARRAY['''stream''', '''\x01''', 'NULL', 'NULL', 'NULL', 'NULL']),
	('append_batch', ARRAY['''stream''', '''{1}''', 'NULL', 'NULL']),
	('create_group', ARRAY['''stream''', '''new''', '''first''']),
	('drop_group', ARRAY['''stream''', '''group''']),
	('read', ARRAY['''stream''', '''group''', '1', 'NULL', '''0''']),
	('poll', ARRAY['''stream''', '''group''', '1', '''1 s''', '''0''']),
	('commit', ARRAY['''stream''', '''group''', '''6ba7b810-9dad-11d1-80b4-00c04fd430c8''', 'NULL']),
	('seek', ARRAY['''stream''', '''group''', '''first''', 'NULL']),
	('scan', ARRAY['''stream''', '0', '1', '1']),
	('last_per_key', ARRAY['''stream''']),
	('create_topic', ARRAY['''new''', '''topic''', '''error''', 'NULL']),
	('alter_topic', ARRAY['''topic''', '''{}''']),
	('drop_topic', ARRAY['''topic''', 'false']),
	('bind', ARRAY['''topic''', '''args''', '''#''', 'NULL', 'NULL', 'false']),
	('unbind', ARRAY['''topic''', '''args''', '''#''', 'NULL', 'NULL']),
	('publish', ARRAY['''topic''', '''key''', '''1''', 'NULL', 'NULL', 'NULL', '0', 'NULL', 'NULL', 'NULL']),
	('publish_bytes', ARRAY['''topic''', '''key''', '''\x01''', 'NULL', 'NULL', 'NULL', '0', 'NULL', 'NULL', 'NULL']),
	('topic_matches', ARRAY['''a''', '''a''', '''amqp''']),
	('route', ARRAY['''topic''', '''key''', 'NULL']),
	('capture', ARRAY['''args_captured''', '''args''', '''{insert}''', 'NULL', 'NULL', 'NULL']),
	('uncapture', ARRAY['''args_captured''', '''args''']),
	('create_outbox', ARRAY['''args_outbox''', '''topic''']),
	('reply', ARRAY['''args''', '''6ba7b810-9dad-11d1-80b4-00c04fd430c8''', '''1''']),
	('send_cloudevent', ARRAY['''args''', '''{"specversion": "1.0", "id": "1", "source": "s", "type": "t"}''']),
	('as_cloudevent', ARRAY['''(1,,0,0,0,,2020-01-01 00:00:00+00,,,,1,)''']),
	('inbox_claim', ARRAY['''consumer''', '''id''', '''7 days''']),
	('schedule', ARRAY['''new''', '''@daily''', '''args''', '''1''', 'NULL', '''UTC''', '''one''']),
	('unschedule', ARRAY['''nothing''']),
	('due_times', ARRAY['''@daily''', '''UTC''', 'NULL', '1', 'NULL']),
	('next_due', ARRAY['''@daily''', '''UTC''', '''2026-01-01''', '''2026-01-01''']);
CREATE TABLE args_captured (id int);
-- Each function stands here, with as many arguments as it has.
SELECT proname, pronargs FROM pg_proc LEFT JOIN call ON name = proname
WHERE pronamespace = 'msgq'::regnamespace AND pronargs IS DISTINCT FROM cardinality(arguments)
ORDER BY proname COLLATE "C";
\pset format unaligned
SELECT name, proargnames[i] AS argument,
	pg_temp.raised(format('SELECT msgq.%I(%s)', name,
		array_to_string(arguments[:i - 1] || 'NULL'::text || arguments[i + 1:], ', '))) AS raises
FROM call JOIN pg_proc ON pronamespace = 'msgq'::regnamespace AND proname = name,
	LATERAL generate_series(1, pronargs) i
ORDER BY name COLLATE "C", i;

--
-- Arrays
--
SELECT pg_temp.raised('SELECT msgq.' || statement) AS raises, statement FROM (VALUES
	(1, $$send_batch('args', '{}')$$),
	(2, $$send_batch('args', '{1,NULL}')$$),
	(3, $$send_batch('args', '{NULL}')$$),
	(4, $$send_batch('args', '{{1,2},{3,4}}')$$),
	(5, $$send_batch('args', '{{1}}')$$),
	(6, $$send_batch('args', '[3:4]={1,2}', '[-1:0]={NULL,"{}"}')$$),
	(7, $$send_bytes_batch('args', '{}')$$),
	(8, $$send_bytes_batch('args', '{a,NULL}')$$),
	(9, $$send_bytes_batch('args', '{{a},{b}}')$$),
	(10, $$send_bytes_batch('args', '[0:0]={a}')$$),
	(11, $$ack_batch('args', '{NULL}')$$),
	(12, $$ack_batch('args', '{6ba7b810-9dad-11d1-80b4-00c04fd430c8,NULL}')$$),
	(13, $$ack_batch('args', '{{6ba7b810-9dad-11d1-80b4-00c04fd430c8}}')$$),
	(14, $$ack_batch('args', '[9:9]={6ba7b810-9dad-11d1-80b4-00c04fd430c8}')$$),
	(15, $$nack_batch('args', '{NULL}')$$),
	(16, $$nack_batch('args', '{{6ba7b810-9dad-11d1-80b4-00c04fd430c8}}')$$),
	(17, $$extend_batch('args', '{NULL}', '1 s')$$),
	(18, $$extend_batch('args', '{{6ba7b810-9dad-11d1-80b4-00c04fd430c8}}', '1 s')$$),
	(19, $$release_batch('args', '{NULL}')$$),
	(20, $$release_batch('args', '{{6ba7b810-9dad-11d1-80b4-00c04fd430c8}}')$$),
	-- bad arguments beside an empty array are errors all the same
	(21, $$send_batch('args', '{}', delay => '-1 s')$$),
	(22, $$nack_batch('args', '{}', delay => '-1 s')$$),
	(23, $$extend_batch('args', '{}', '-1 s')$$),
	(24, $$ack_batch('nowhere', '{}')$$),
	(25, $$send_batch('nowhere', '{}')$$)
) AS v(n, statement) ORDER BY n;

--
-- Counts
--
SELECT pg_temp.raised('SELECT msgq.' || statement) AS raises, statement FROM (VALUES
	(1, $$receive('args', 0)$$),
	(2, $$receive('args', -1)$$),
	(3, $$receive('args', 10000)$$),
	(4, $$receive('args', 10001)$$),
	(5, $$receive('args', 2147483647)$$),
	(6, $$pop('args', 0)$$),
	(7, $$pop('args', -2147483648)$$),
	(8, $$pop('args', 10000)$$),
	(9, $$pop('args', 10001)$$),
	(10, $$peek('args', 0)$$),
	(11, $$peek('args', -1)$$),
	(12, $$peek('args', 10001)$$),
	(13, $$send_batch('args', array_fill('1'::jsonb, '{10000}'))$$),
	(14, $$send_batch('args', array_fill('1'::jsonb, '{10001}'))$$),
	(15, $$send_bytes_batch('args', array_fill('a'::bytea, '{10001}'))$$),
	(16, $$send_messages('args', (SELECT jsonb_agg('{"body": 1}'::jsonb) FROM generate_series(1, 10001)))$$),
	(17, $$ack_batch('args', array_fill(gen_random_uuid(), '{10000}'))$$),
	(18, $$ack_batch('args', array_fill(gen_random_uuid(), '{10001}'))$$),
	(19, $$nack_batch('args', array_fill(gen_random_uuid(), '{10001}'))$$),
	(20, $$extend_batch('args', array_fill(gen_random_uuid(), '{10001}'), '1 s')$$),
	(21, $$release_batch('args', array_fill(gen_random_uuid(), '{10001}'))$$)
) AS v(n, statement) ORDER BY n;

--
-- Intervals and times
--
SELECT pg_temp.raised('SELECT msgq.' || statement) AS raises, statement FROM (VALUES
	(1, $$receive('args', 1, '0')$$),
	(2, $$receive('args', 1, '-1 us')$$),
	(3, $$receive('args', 1, '100 years')$$),
	(4, $$receive('args', 1, '101 years')$$),
	(5, $$receive('args', 1, '1 mon -32 days')$$),
	(6, $$receive('args', 1, '178000000 years')$$),
	(7, $$receive('args', 1, '-178000000 years')$$),
	(8, $$receive('args', 1, '2147483647 days')$$),
	(9, $$receive('args', 1, '2562047788:00:54.775807')$$),
	(10, $$receive('args', wait => '0')$$),
	(11, $$receive('args', wait => '1 s')$$),
	(12, $$receive('args', wait => '-1 s')$$),
	(13, $$send('args', '1', delay => '0')$$),
	(14, $$send('args', '1', delay => '-1 s')$$),
	(15, $$send('args', '1', delay => '101 years')$$),
	(16, $$nack('args', gen_random_uuid(), delay => '-1 s')$$),
	(17, $$nack('args', gen_random_uuid(), delay => '101 years')$$),
	(18, $$extend('args', gen_random_uuid(), '-1 s')$$),
	(19, $$extend('args', gen_random_uuid(), '101 years')$$)
) AS v(n, statement) ORDER BY n;
-- Intervals may be infinite since PostgreSQL 17.
DO $$
DECLARE
	statement text;
	bound text;
	result text;
BEGIN
	IF current_setting('server_version_num')::int < 170000 THEN
		RETURN;
	END IF;
	FOREACH statement IN ARRAY ARRAY[
		'create_queue(''new'', visibility_timeout => %L)',
		'create_queue(''new'', retry_delay => %L)',
		'create_queue(''new'', max_retry_delay => %L)',
		'alter_queue(''args'', jsonb_build_object(''retry_delay'', %L::text))',
		'send(''args'', ''1'', delay => %L)',
		'send_bytes(''args'', ''1'', delay => %L)',
		'send_batch(''args'', ''{1}'', delay => %L)',
		'send_bytes_batch(''args'', ''{1}'', delay => %L)',
		'send_messages(''args'', jsonb_build_array(jsonb_build_object(''body'', 1, ''delay'', %L::text)))',
		'receive(''args'', visibility_timeout => %L)',
		'nack(''args'', gen_random_uuid(), delay => %L)',
		'nack_batch(''args'', ''{}'', delay => %L)',
		'extend(''args'', gen_random_uuid(), visibility_timeout => %L)',
		'extend_batch(''args'', ''{}'', visibility_timeout => %L)',
		'create_stream(''new'', retention => %L)',
		'read(''stream'', ''group'', wait => %L)',
		'poll(''stream'', ''group'', wait => %L)',
		'poll(''stream'', ''group'', visibility_timeout => %L)']
	LOOP
		FOREACH bound IN ARRAY '{infinity,-infinity}'::text[] LOOP
			result := pg_temp.raised('SELECT msgq.' || format(statement, bound));
			IF result NOT LIKE '22023 %' THEN
				RAISE WARNING '% %: %', statement, bound, result;
			END IF;
		END LOOP;
	END LOOP;
END
$$;
\pset format aligned

-- After all this there is the one message, and no relation more.
SELECT body, deliveries FROM msgq.peek('args', 10000);
SELECT count(*) AS relations_left FROM pg_class
WHERE relnamespace = 'msgq'::regnamespace AND oid NOT IN (SELECT oid FROM relations_before)
	AND relname !~ (SELECT format('^q%s(_|$)', id) FROM msgq.queues WHERE name = 'args')
	AND relname !~ (SELECT format('^s%s(_|$)', id) FROM msgq.streams WHERE name = 'stream');
SELECT msgq.purge('args');

--
-- Sizes: the limit itself is allowed, one byte more is not.
--
SELECT msgq.create_queue('small', max_message_bytes => 100);
\pset format unaligned
SELECT what, pg_temp.raised('SELECT msgq.' || statement) AS raises FROM (VALUES
	(1, 'bytes at the limit', $$send_bytes('small', decode(repeat('ab', 100), 'hex'))$$),
	(2, 'bytes over it', $$send_bytes('small', decode(repeat('ab', 101), 'hex'))$$),
	(3, 'body at the limit', $$send('small', to_jsonb(repeat('a', 92)))$$),
	(4, 'body over it', $$send('small', to_jsonb(repeat('a', 93)))$$),
	(5, 'headers count', $$send_bytes('small', decode(repeat('ab', 100), 'hex'), '{"a": 1}')$$),
	(6, 'empty headers', $$send_bytes('small', decode(repeat('ab', 96), 'hex'), '{}')$$),
	(7, 'in a batch', $$send_bytes_batch('small', ARRAY['\x01', decode(repeat('ab', 101), 'hex')])$$),
	(8, 'together more', $$send_bytes_batch('small', ARRAY[decode(repeat('ab', 60), 'hex'), decode(repeat('ab', 60), 'hex')])$$),
	(9, 'body in a batch', $$send_batch('small', ARRAY['1', to_jsonb(repeat('a', 93))])$$),
	(10, 'as JSON', $$send_messages('small', jsonb_build_array('{"body": 1}'::jsonb, jsonb_build_object('body', repeat('a', 93))))$$),
	(11, 'compressible', $$send_bytes('small', decode(repeat('00', 10000), 'hex'))$$)
) AS v(n, what, statement) ORDER BY n;
\pset format aligned
SELECT count(*) FROM msgq.peek('small');
-- Values out of a table, as they lie there: compressed, outside, with short headers.
CREATE TABLE args_values (n int, data bytea, body jsonb);
ALTER TABLE args_values ALTER data SET STORAGE EXTERNAL;
INSERT INTO args_values VALUES
	(1, decode(repeat('ab', 100), 'hex'), to_jsonb(repeat('a', 92))),
	(2, decode(repeat('ab', 101), 'hex'), to_jsonb(repeat('a', 93))),
	(3, decode(repeat('ab', 3000), 'hex'), to_jsonb(repeat('a', 3000)));
DO $$
BEGIN
	FOR i IN 1..3 LOOP
		BEGIN
			PERFORM msgq.send_bytes('small', data) FROM args_values WHERE n = i;
			RAISE NOTICE '% bytes: sent', i;
		EXCEPTION WHEN program_limit_exceeded THEN
			RAISE NOTICE '% bytes: %', i, SQLERRM;
		END;
		BEGIN
			PERFORM msgq.send('small', body) FROM args_values WHERE n = i;
			RAISE NOTICE '% body: sent', i;
		EXCEPTION WHEN program_limit_exceeded THEN
			RAISE NOTICE '% body: %', i, SQLERRM;
		END;
	END LOOP;
END
$$;
DROP TABLE args_values;
SELECT msgq.drop_queue('small');

--
-- Large bodies come out as they went in: compressible or not, in one or many
-- pieces, taken from a table that is gone by then.
--
CREATE TABLE args_source (n int, headers jsonb, body jsonb, data bytea);
INSERT INTO args_source
SELECT n,
	CASE WHEN n > 2 THEN jsonb_build_object('h', repeat('header', 1000 * n)) END,
	CASE WHEN n % 2 = 0 THEN
		CASE WHEN n < 4 THEN to_jsonb(repeat('compressible ', 20000))
			ELSE (SELECT jsonb_agg(md5(i::text)) FROM generate_series(1, 20000) i) END END,
	CASE WHEN n % 2 = 1 THEN
		CASE WHEN n < 5 THEN decode(repeat('0badf00d', 100000), 'hex')
			ELSE (SELECT string_agg(decode(md5(i::text), 'hex'), '') FROM generate_series(1, 60000) i) END END
FROM generate_series(1, 6) n;
SELECT n, msgq.send('args', body, headers) > 0 AS sent FROM args_source WHERE body IS NOT NULL ORDER BY n;
SELECT n, msgq.send_bytes('args', data, headers) > 0 AS sent FROM args_source WHERE data IS NOT NULL ORDER BY n;
SELECT cardinality(msgq.send_batch('args', array_agg(body ORDER BY n), array_agg(headers ORDER BY n)))
FROM args_source WHERE body IS NOT NULL;
SELECT cardinality(msgq.send_bytes_batch('args', array_agg(data ORDER BY n), array_agg(headers ORDER BY n)))
FROM args_source WHERE data IS NOT NULL;
CREATE TEMP TABLE args_sums AS SELECT n, md5(headers::text || '-') AS h, md5(body::text) AS b, md5(data) AS d,
	octet_length(data) AS bytes FROM args_source;
DROP TABLE args_source;
CREATE FUNCTION pg_temp.intact(m msgq.message) RETURNS boolean LANGUAGE sql AS $$
	SELECT EXISTS (SELECT FROM args_sums WHERE h IS NOT DISTINCT FROM md5((m.headers - 'msgq-error')::text || '-')
		AND b IS NOT DISTINCT FROM md5(m.body::text) AND d IS NOT DISTINCT FROM md5(m.data))
$$;
SELECT max(bytes) AS largest FROM args_sums;
SELECT count(*), bool_and(pg_temp.intact(m)) AS intact FROM msgq.peek('args', 100) m;
CREATE TEMP TABLE args_got AS SELECT m AS m, m.receipt FROM msgq.receive('args', 100) m;
SELECT count(*), bool_and(pg_temp.intact(m)) AS intact FROM args_got;
-- Given back, handed out again, and removed.
SELECT msgq.release_batch('args', array_agg(receipt)) FROM args_got;
SELECT msgq.nack_batch('args', array_agg(receipt), '0') FROM msgq.receive('args', 100);
SELECT count(*), bool_and(pg_temp.intact(m)) AS intact FROM msgq.receive('args', 6) m;
CREATE TABLE args_popped AS SELECT m AS m FROM msgq.pop('args', 100) m;
SELECT msgq.purge('args');
VACUUM :segment;
SELECT count(*), bool_and(pg_temp.intact(m)) AS intact FROM args_popped;
SELECT count(*), bool_and(pg_temp.intact(m)) AS intact FROM args_got;
DROP TABLE args_popped;

-- A megabyte is the default limit, for the content alone.
SELECT msgq.send_bytes('args', (SELECT string_agg(decode(md5(i::text), 'hex'), '') FROM generate_series(1, 65536) i)) > 0 AS sent;
SELECT octet_length(data), md5(data) = md5((SELECT string_agg(decode(md5(i::text), 'hex'), '') FROM generate_series(1, 65536) i)) AS intact
FROM msgq.receive('args');
\pset format unaligned
SELECT pg_temp.raised($$SELECT msgq.send_bytes('args', decode(repeat('00', 1048577), 'hex'))$$);
\pset format aligned
-- Larger ones when the queue allows them.
SELECT msgq.alter_queue('args', '{"max_message_bytes": 209715200}');
SELECT msgq.send_bytes('args', decode(repeat('00', 10000000), 'hex')) > 0 AS sent;
SELECT octet_length(data), md5(data) = md5(decode(repeat('00', 10000000), 'hex')) AS intact FROM msgq.pop('args');

SELECT msgq.drop_queue('args');
SELECT msgq.drop_stream('stream');
SELECT msgq.drop_topic('topic');
