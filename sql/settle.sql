--
-- Settling what was received: ack, nack, extend and release, one by one and in
-- batches, and what becomes of receipts that come too late.
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

SELECT msgq.create_queue('settle', max_deliveries => 0, retry_delay => '10 s', retry_multiplier => 2, max_retry_delay => '1 min');
SELECT format('msgq.q%s_1', id) AS segment FROM msgq.queues WHERE name = 'settle' \gset

-- Sends a message and receives it; the receipt.
CREATE FUNCTION pg_temp.deliver(body jsonb DEFAULT '1', headers jsonb DEFAULT NULL, timeout interval DEFAULT '1 h')
RETURNS uuid LANGUAGE sql AS $$
	SELECT msgq.send('settle', body, headers);
	SELECT receipt FROM msgq.receive('settle', 1, timeout);
$$;

--
-- ack
--
SELECT pg_temp.deliver() AS receipt \gset
SELECT msgq.ack('settle', :'receipt');
SELECT count(*) FROM :segment;
-- twice
SELECT msgq.ack('settle', :'receipt');
SELECT pg_temp.raised(format('SELECT msgq.ack(''settle'', %L, strict => true)', :'receipt'));
-- with strict, and in time
SELECT pg_temp.deliver() AS receipt \gset
SELECT msgq.ack('settle', :'receipt', true);
-- a rollback takes it back
SELECT pg_temp.deliver() AS receipt \gset
BEGIN;
SELECT msgq.ack('settle', :'receipt');
SELECT msgq.ack('settle', :'receipt') AS again;
ROLLBACK;
SELECT msgq.ack('settle', :'receipt');

--
-- The lease's end: the receipt still counts while nobody has taken the message.
--
SELECT pg_temp.deliver(timeout => '0') AS receipt \gset
SELECT pg_sleep(0.01) \gset
SELECT msgq.ack('settle', :'receipt');
SELECT pg_temp.deliver(timeout => '0') AS receipt \gset
SELECT receipt AS receipt2 FROM msgq.receive('settle', 1, '1 h') \gset
SELECT msgq.ack('settle', :'receipt') AS ack, msgq.nack('settle', :'receipt') AS nack,
	msgq.extend('settle', :'receipt', '1 h') AS extend, msgq.release('settle', :'receipt') AS release;
SELECT deliveries, failures, visible_at > clock_timestamp() + interval '59 min' AS untouched FROM msgq.peek('settle');
SELECT msgq.ack('settle', :'receipt2');
-- An expired lease, and a released one, make it stale at once.
SELECT pg_temp.deliver() AS receipt \gset
SELECT msgq.expire_lease('settle', id) FROM msgq.peek('settle');
SELECT msgq.ack('settle', :'receipt');
SELECT receipt FROM msgq.receive('settle') \gset
SELECT msgq.release('settle', :'receipt');
SELECT msgq.release('settle', :'receipt') AS again, msgq.ack('settle', :'receipt') AS ack;
-- The same clock reading and the same message, but another delivery.
SELECT msgq.purge('settle');
SELECT pg_temp.deliver(timeout => '0') AS receipt \gset
SELECT leased_at FROM :segment \gset
SELECT deliveries FROM msgq.receive('settle') \gset
UPDATE :segment SET leased_at = :'leased_at';
SELECT msgq.ack('settle', :'receipt');
SELECT msgq.purge('settle');

--
-- Receipts that never were
--
SELECT receipt, msgq.ack('settle', receipt) AS ack, msgq.nack('settle', receipt) AS nack,
	msgq.extend('settle', receipt, '1 h') AS extend, msgq.release('settle', receipt) AS release
FROM (VALUES ('00000000-0000-0000-0000-000000000000'::uuid), ('ffffffff-ffff-ffff-ffff-ffffffffffff'),
	('6ba7b810-9dad-11d1-80b4-00c04fd430c8'), ('80000000-0000-0000-8000-000000000000')) AS v(receipt);
-- A receipt belongs to its queue.
SELECT msgq.create_queue('other');
SELECT pg_temp.deliver() AS receipt \gset
SELECT msgq.send('other', '1') > 0 AS sent;
SELECT deliveries FROM msgq.receive('other');
SELECT msgq.ack('other', :'receipt');
SELECT msgq.ack('settle', :'receipt');
SELECT msgq.drop_queue('other');

\pset format unaligned
SELECT statement, pg_temp.raised('SELECT msgq.' || statement) FROM (VALUES
	(1, $$ack('settle', '6ba7b810-9dad-11d1-80b4-00c04fd430c8', strict => true)$$),
	(2, $$nack('settle', '6ba7b810-9dad-11d1-80b4-00c04fd430c8', strict => true)$$),
	(3, $$extend('settle', '6ba7b810-9dad-11d1-80b4-00c04fd430c8', '1 h', strict => true)$$),
	(4, $$release('settle', '6ba7b810-9dad-11d1-80b4-00c04fd430c8', strict => true)$$),
	(5, $$ack_batch('settle', '{6ba7b810-9dad-11d1-80b4-00c04fd430c8}', strict => true)$$),
	(6, $$nack_batch('settle', '{6ba7b810-9dad-11d1-80b4-00c04fd430c8}', strict => true)$$),
	(7, $$extend_batch('settle', '{6ba7b810-9dad-11d1-80b4-00c04fd430c8}', '1 h', strict => true)$$),
	(8, $$release_batch('settle', '{6ba7b810-9dad-11d1-80b4-00c04fd430c8}', strict => true)$$),
	(9, $$ack('nowhere', '6ba7b810-9dad-11d1-80b4-00c04fd430c8')$$),
	(10, $$nack('settle', '6ba7b810-9dad-11d1-80b4-00c04fd430c8', delay => '-1 s')$$),
	(11, $$nack('settle', '6ba7b810-9dad-11d1-80b4-00c04fd430c8', delay => '101 years')$$),
	(12, $$extend('settle', '6ba7b810-9dad-11d1-80b4-00c04fd430c8', '-1 s')$$),
	(13, $$extend('settle', '6ba7b810-9dad-11d1-80b4-00c04fd430c8', '101 years')$$)
) AS v(n, statement) ORDER BY n;
\pset format aligned

--
-- nack: a failure, and a delay
--
SELECT pg_temp.deliver() AS receipt \gset
SELECT msgq.nack('settle', :'receipt', '1 h', 'broken');
SELECT deliveries, failures, headers, body,
	visible_at - clock_timestamp() BETWEEN '59 min' AND '1 h' AS for_an_hour
FROM msgq.peek('settle');
SELECT leased_at FROM :segment;
SELECT msgq.nack('settle', :'receipt', '0', 'again');
SELECT count(*) FROM msgq.receive('settle');
SELECT msgq.purge('settle');

-- The error stands beside the sender's headers; the newest one counts, and
-- none leaves the one before.
SELECT pg_temp.deliver('1', '{"a": 1}') AS receipt \gset
SELECT msgq.nack('settle', :'receipt', '0', 'first');
SELECT headers, receipt FROM msgq.receive('settle') \gset
SELECT :'headers' AS headers;
SELECT msgq.nack('settle', :'receipt', '0', 'second "quoted" \ %s');
SELECT headers, receipt FROM msgq.receive('settle') \gset
SELECT :'headers' AS headers;
SELECT msgq.nack('settle', :'receipt', '0');
SELECT headers, receipt FROM msgq.receive('settle') \gset
SELECT :'headers' AS headers;
SELECT msgq.nack('settle', :'receipt', '0', '');
SELECT failures, headers FROM msgq.pop('settle');
-- Without an error nothing is added.
SELECT msgq.nack('settle', pg_temp.deliver(), '0');
SELECT headers FROM msgq.pop('settle');

-- It is cut after 1024 bytes, where a character ends.
SELECT what, msgq.nack('settle', pg_temp.deliver(to_jsonb(what)), '1 h', error)
FROM (VALUES
	(1, '1024 bytes', repeat('a', 1024)),
	(2, '1025 bytes', repeat('a', 1025)),
	(3, '1023 and two', repeat('a', 1023) || 'é'),
	(4, '1022 and two', repeat('a', 1022) || 'é'),
	(5, 'two each', repeat('é', 600)),
	(6, 'three each', repeat('日', 1000)),
	(7, 'a megabyte', repeat('x', 1048576))
) AS v(n, what, error) ORDER BY n;
SELECT body, octet_length(headers->>'msgq-error') AS bytes, length(headers->>'msgq-error') AS characters
FROM msgq.peek('settle');
SELECT msgq.purge('settle');

-- Without a delay: between 0 and retry_delay * retry_multiplier ^ (failures - 1),
-- but at most max_retry_delay, evenly spread.
CREATE TEMP TABLE backoff (failures int, before timestamptz, visible_at timestamptz, after timestamptz);
DO $$
DECLARE
	receipts uuid[];
	segment text := (SELECT format('msgq.q%s_1', id) FROM msgq.queues WHERE name = 'settle');
	before timestamptz;
BEGIN
	FOR already IN 0..4 LOOP
		PERFORM msgq.send_batch('settle', array_agg('1'::jsonb)) FROM generate_series(1, 300);
		SELECT array_agg(receipt) INTO receipts FROM msgq.receive('settle', 300, '1 h');
		EXECUTE format('UPDATE %s SET failures = %s', segment, already);
		before := clock_timestamp();
		ASSERT msgq.nack_batch('settle', receipts) = '{}';
		EXECUTE format('INSERT INTO backoff SELECT failures, %L, visible_at, clock_timestamp() FROM %s',
			before, segment);
		PERFORM msgq.purge('settle');
	END LOOP;
END
$$;
SELECT failures, count(*), bound,
	bool_and(visible_at BETWEEN before AND after + bound) AS within,
	min(visible_at - before) < bound * 0.2 AS from_the_low_end,
	max(visible_at - before) > bound * 0.8 AS to_the_high_end,
	avg(extract(epoch FROM visible_at - before)) BETWEEN 0.35 * extract(epoch FROM bound)
		AND 0.65 * extract(epoch FROM bound) AS mean_in_the_middle,
	count(DISTINCT visible_at - before) > 250 AS all_different
FROM backoff, LATERAL (SELECT least(interval '1 min', interval '10 s' * 2 ^ (failures - 1)) AS bound) b
GROUP BY failures, bound ORDER BY failures;
-- Single ones take the same way.
TRUNCATE backoff;
DO $$
DECLARE
	before timestamptz;
	after timestamptz;
	receipt uuid;
BEGIN
	FOR i IN 1..100 LOOP
		receipt := pg_temp.deliver();
		before := clock_timestamp();
		PERFORM msgq.nack('settle', receipt);
		after := clock_timestamp();
		INSERT INTO backoff SELECT failures, before, visible_at, after FROM msgq.peek('settle');
		PERFORM msgq.purge('settle');
	END LOOP;
END
$$;
SELECT failures, count(*), bool_and(visible_at BETWEEN before AND after + interval '10 s') AS within,
	max(visible_at - before) > '5 s' AS to_the_high_end
FROM backoff GROUP BY failures;
-- However often it has failed.
SELECT pg_temp.deliver() AS receipt \gset
UPDATE :segment SET failures = 2000000000;
SELECT msgq.nack('settle', :'receipt');
SELECT failures, visible_at <= clock_timestamp() + interval '1 min' AS within FROM msgq.peek('settle');
SELECT msgq.purge('settle');
-- No delay between retries, however often it has failed.
SELECT msgq.alter_queue('settle', '{"retry_delay": "0"}');
SELECT msgq.nack('settle', pg_temp.deliver());
SELECT receipt FROM msgq.receive('settle') \gset
UPDATE :segment SET failures = 5000;
SELECT msgq.nack('settle', :'receipt');
SELECT failures FROM msgq.pop('settle');
SELECT msgq.alter_queue('settle', '{"retry_delay": "10 s"}');

--
-- extend: another end of the lease; the receipt stays
--
SELECT pg_temp.deliver(timeout => '1 min') AS receipt \gset
SELECT deliveries, failures, leased_at AS leased_at FROM :segment \gset
SELECT msgq.extend('settle', :'receipt', '5 h');
SELECT visible_at - clock_timestamp() BETWEEN '4:59' AND '5:00' AS for_five_hours, deliveries, failures
FROM msgq.peek('settle');
SELECT leased_at = :'leased_at' AS same_lease FROM :segment;
SELECT msgq.extend('settle', :'receipt', '1 s');
SELECT visible_at - clock_timestamp() <= '1 s' AS shorter FROM msgq.peek('settle');
SELECT msgq.extend('settle', :'receipt', '0');
SELECT pg_sleep(0.01) \gset
-- It has ended, but nobody has taken the message: it may go on.
SELECT msgq.extend('settle', :'receipt', '1 h');
SELECT count(*) FROM msgq.receive('settle');
SELECT msgq.ack('settle', :'receipt');
SELECT msgq.extend('settle', :'receipt', '1 h');

--
-- release: back at once, and no failure
--
SELECT msgq.release('settle', pg_temp.deliver('1', '{"a": 1}'));
SELECT deliveries, failures, headers FROM msgq.peek('settle');
SELECT deliveries, failures, msgq.ack('settle', receipt) FROM msgq.receive('settle');

--
-- Batches: the stale receipts come back in the order of the input.
--
SELECT cardinality(msgq.send_batch('settle', '{1,2,3,4,5,6}'));
CREATE TEMP TABLE got AS SELECT row_number() OVER () AS n, * FROM msgq.receive('settle', 6, '1 h');
CREATE FUNCTION pg_temp.receipts(bodies jsonb[]) RETURNS uuid[] LANGUAGE sql AS $$
	SELECT array_agg(coalesce((SELECT receipt FROM got WHERE body = b),
		('00000000-0000-0000-0000-' || lpad(b::text, 12, '0'))::uuid) ORDER BY ordinal)
	FROM unnest(bodies) WITH ORDINALITY AS u(b, ordinal)
$$;
CREATE FUNCTION pg_temp.bodies(receipts uuid[]) RETURNS jsonb[] LANGUAGE sql AS $$
	SELECT coalesce(array_agg(coalesce((SELECT body FROM got WHERE receipt = r),
		to_jsonb(right(r::text, 12)::int)) ORDER BY ordinal), '{}')
	FROM unnest(receipts) WITH ORDINALITY AS u(r, ordinal)
$$;
SELECT pg_temp.bodies(msgq.ack_batch('settle', pg_temp.receipts('{2,92,1,91,93}')));
-- what is gone, what never was, and what stands twice
SELECT pg_temp.bodies(msgq.ack_batch('settle', pg_temp.receipts('{99,1,3,98,3,2,99}')));
SELECT pg_temp.bodies(msgq.nack_batch('settle', pg_temp.receipts('{4,3,4,97}'), '1 h', 'in a batch'));
SELECT pg_temp.bodies(msgq.extend_batch('settle', pg_temp.receipts('{4,5,5,96}'), '2 h'));
SELECT pg_temp.bodies(msgq.release_batch('settle', pg_temp.receipts('{95,6,5,6}')));
SELECT body, deliveries, failures, headers, visible_at - clock_timestamp() > '59 min' AS delayed
FROM msgq.peek('settle');
SELECT msgq.ack_batch('settle', '{}'), msgq.nack_batch('settle', NULL), msgq.extend_batch('settle', '{}', '1 s'),
	msgq.release_batch('settle', NULL);
SELECT array_dims(msgq.ack_batch('settle', '[7:8]={00000000-0000-0000-0000-000000000001,00000000-0000-0000-0000-000000000002}'));
SELECT msgq.purge('settle');
DROP TABLE got;

-- With strict a batch is all or nothing.
SELECT cardinality(msgq.send_batch('settle', '{1,2}'));
CREATE TEMP TABLE got AS SELECT row_number() OVER () AS n, * FROM msgq.receive('settle', 6, '1 h');
SELECT pg_temp.raised(format('SELECT msgq.ack_batch(''settle'', %L, true)',
	pg_temp.receipts('{1,2}') || '00000000-0000-0000-0000-000000000001'::uuid));
SELECT count(*) FROM msgq.peek('settle');
SELECT msgq.ack_batch('settle', pg_temp.receipts('{1,2,1}'), true);
SELECT count(*) FROM msgq.peek('settle');

-- As many as one call takes.
SELECT cardinality(msgq.send_batch('settle', array_agg(to_jsonb(i)))) FROM generate_series(1, 10000) i;
SELECT msgq.ack_batch('settle', (SELECT array_agg(receipt) FROM msgq.receive('settle', 10000)));
SELECT count(*) FROM :segment;

SELECT msgq.drop_queue('settle');
