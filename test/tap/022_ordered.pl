# An ordered queue under load: consumers that give messages back, let leases
# run out, prolong them, roll back, and are killed.
#
# Catches: a group of which two batches are in flight at a time, a message that
# is delivered before those ahead of it in its group are done, a batch that is
# out of order or has a gap, a receipt that is good though its message was
# taken back, a message that is lost, and deadlocks.
#
# Each delivery is logged in the transaction that takes it, just after it was
# taken, and each settlement in its transaction, just before it is made.  So
# what the log says was in flight was.
#
# MSGQ_ORDERED_MESSAGES and MSGQ_ORDERED_SECONDS make it larger.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $messages = $ENV{MSGQ_ORDERED_MESSAGES} // 10_000;
my $seconds = $ENV{MSGQ_ORDERED_SECONDS} // 20;
my $groups = 1000;
my $clients = 8;

my $node = new_node(
	'ordered',
	'max_connections = 60',
	'autovacuum_naptime = 1s',
	'msgq.segment_size = 1MB');

$node->safe_psql(
	'postgres', qq{
	SELECT msgq.create_queue('q', visibility_timeout => '400 ms',
		ordered => true, max_deliveries => 0, dead_letter_queue => '');
	CREATE TABLE sent (id bigint, g text, before boolean);
	CREATE TABLE delivery (batch bigint, ordinal int, id bigint, g text,
		receipt uuid, starts timestamptz, lease_end timestamptz);
	CREATE TABLE settled (receipt uuid, how text, at timestamptz,
		lease_end timestamptz);
	CREATE INDEX ON settled (receipt);
	CREATE INDEX ON delivery (batch);
	CREATE INDEX ON delivery (receipt);
	CREATE TABLE popped (batch bigint, ordinal int, id bigint, g text,
		at timestamptz);
	CREATE TABLE problem (what text);
});

$node->safe_psql(
	'postgres', q{
	-- Settles one message; false if what follows in its group is stale now.
	CREATE FUNCTION settle(m delivery) RETURNS boolean
	LANGUAGE plpgsql AS $$
	DECLARE
		r float8 := random();
		how text;
		at timestamptz := clock_timestamp();
		ends timestamptz;
	BEGIN
		IF r < 0.03 THEN
			how := CASE WHEN msgq.nack('q', m.receipt, '5 ms') THEN 'nack' END;
		ELSIF r < 0.05 THEN
			how := CASE WHEN msgq.release('q', m.receipt) THEN 'release' END;
		ELSIF r < 0.06 THEN
			how := CASE WHEN msgq.expire_lease('q', m.id) THEN 'expire' END;
		ELSIF r < 0.07 THEN
			ends := at + interval '600 ms';
			how := CASE WHEN msgq.extend('q', m.receipt, '600 ms') THEN 'extend' END;
		ELSIF r < 0.075 THEN
			PERFORM pg_sleep(0.5);
		ELSIF r > 0.08 THEN
			how := CASE WHEN msgq.ack('q', m.receipt) THEN 'ack' END;
		END IF;
		INSERT INTO settled SELECT m.receipt, how, at, ends WHERE how IS NOT NULL;
		RETURN how IS NULL OR how NOT IN ('nack', 'release', 'expire');
	END $$;

	CREATE PROCEDURE consume(n int) LANGUAGE plpgsql AS $$
	DECLARE
		b bigint := nextval('batch');
		m delivery;
		given_back text[] := '{}';
	BEGIN
		INSERT INTO delivery
		SELECT b, ordinality, id, group_key, receipt, clock_timestamp(), visible_at
		FROM msgq.receive('q', n) WITH ORDINALITY;
		IF random() < 0.05 THEN
			ROLLBACK;
			RETURN;
		END IF;
		COMMIT;
		FOR m IN SELECT * FROM delivery WHERE batch = b ORDER BY ordinal LOOP
			IF m.g = ANY (given_back) THEN
				IF random() < 0.3 AND msgq.ack('q', m.receipt) THEN
					INSERT INTO problem VALUES ('taken back, acked: ' || m.id);
				END IF;
			ELSIF NOT settle(m) THEN
				given_back := given_back || m.g;
			END IF;
			IF random() < 0.5 THEN
				COMMIT;
			END IF;
		END LOOP;
		IF random() < 0.05 THEN
			ROLLBACK;
		END IF;
	END $$;

	CREATE PROCEDURE pop(n int) LANGUAGE plpgsql AS $$
	DECLARE b bigint := nextval('batch');
	BEGIN
		INSERT INTO popped
		SELECT b, ordinality, id, group_key, clock_timestamp()
		FROM msgq.pop('q', n) WITH ORDINALITY;
		IF random() < 0.3 THEN
			ROLLBACK;
		END IF;
	END $$;

	-- Late commits, and rollbacks; keys that are rare, and one that is not.
	CREATE PROCEDURE send(n int) LANGUAGE plpgsql AS $$
	BEGIN
		FOR i IN 1 .. n LOOP
			INSERT INTO sent
			SELECT msgq.send('q', '0', group_key => g), g, false
			FROM (SELECT 'k' || (random() * random() * 1000)::int AS g) s;
		END LOOP;
		PERFORM pg_sleep(random() * 0.03);
		IF random() < 0.1 THEN
			ROLLBACK;
		END IF;
	END $$;
	CREATE SEQUENCE batch;
});

$node->safe_psql(
	'postgres', qq{
	WITH new AS (
		SELECT array_agg('k' || i % $groups ORDER BY i) AS keys,
			array_agg('0'::jsonb) AS bodies
		FROM generate_series(1, $messages) i
		GROUP BY i / 5000),
	ids AS (
		SELECT keys, msgq.send_batch('q', bodies, group_keys => keys) AS ids
		FROM new)
	INSERT INTO sent
	SELECT id, key, true FROM ids, unnest(ids, keys) AS u (id, key)
});

sub consumer
{
	return load(
		$node,
		scripts => {
			"\\set n random(1, 20)\nCALL consume(:n);" => 10,
			"\\set n random(1, 5)\nCALL pop(:n);" => 1
		},
		clients => 1,
		seconds => 3600);
}

my @consumers = map { consumer() } 1 .. $clients;
my $sender = load(
	$node,
	scripts => { "\\set n random(1, 5)\nCALL send(:n);" => 1 },
	clients => 2,
	seconds => $seconds);

my $killer = session($node);
my $end = time + $seconds;
my $killed = 0;
my @outputs;
while (time < $end)
{
	usleep(500_000);
	$killed += $killer->safe(
		q{SELECT count(pg_terminate_backend(pid)) FROM (
			SELECT pid FROM pg_stat_activity
			WHERE query ~ '^CALL (consume|pop)'
			ORDER BY random() LIMIT 1) s});
	foreach my $consumer (@consumers)
	{
		next if $consumer->{run}->pumpable;
		eval { $consumer->{run}->finish };
		push @outputs, $consumer->{output};
		$consumer = consumer();
	}
}
ok(finish($sender), 'senders end well') or diag $sender->{output};
cmp_ok($killed, '>', 0, 'some consumers were killed');
stop_load(@consumers);
push @outputs, map { $_->{output} } @consumers;
is( join('', map { /^(.*(?:deadlock|could not|found no|invisible).*)$/mg } @outputs),
	'', 'consumers see no error');

# What is left, by a session that has not been there before, and in order.
$node->safe_psql('postgres', q{SELECT pg_sleep(0.7)});
my $last = session($node);
$last->safe(q{
	DO $$
	DECLARE
		found int;
		misses int := 0;
	BEGIN
		WHILE misses < 12 LOOP
			INSERT INTO popped
			SELECT nextval('batch'), ordinality, id, group_key, clock_timestamp()
			FROM msgq.pop('q', 10000) WITH ORDINALITY;
			GET DIAGNOSTICS found = ROW_COUNT;
			misses := CASE WHEN found = 0 THEN misses + 1 ELSE 0 END;
			IF found = 0 THEN PERFORM pg_sleep(0.1); END IF;
			COMMIT;
		END LOOP;
	END $$});

$node->safe_psql(
	'postgres', q{
	CREATE TABLE done AS
	SELECT d.id, min(at) AS at FROM settled JOIN delivery d USING (receipt)
	WHERE how = 'ack' GROUP BY d.id
	UNION ALL
	SELECT id, at FROM popped;
	CREATE INDEX ON done (id);
	CREATE INDEX ON sent (g, id) WHERE before;

	-- Until when each delivery was in flight for sure.
	CREATE TABLE flight AS
	SELECT d.batch, d.ordinal, d.id, d.g, d.starts,
		least(
			(SELECT min(at) FROM settled s
			WHERE s.receipt = d.receipt AND how <> 'extend'),
			-- taken back with one before it
			(SELECT min(at) FROM settled s JOIN delivery e USING (receipt)
			WHERE e.batch = d.batch AND e.g = d.g AND e.id < d.id
				AND how IN ('nack', 'release', 'expire')),
			greatest(d.lease_end, (SELECT max(s.lease_end) FROM settled s
			WHERE s.receipt = d.receipt))) AS ends
	FROM delivery d
	WHERE d.g IS NOT NULL
	UNION ALL
	SELECT batch, ordinal, id, g, at, at FROM popped WHERE g IS NOT NULL;
	CREATE INDEX ON flight (batch, id);
	ANALYZE;
});

is($node->safe_psql('postgres', 'SELECT * FROM problem'),
	'', 'what was taken back cannot be settled');
is( $node->safe_psql(
		'postgres', q{
		SELECT id FROM sent EXCEPT SELECT id FROM done LIMIT 10}),
	'',
	'nothing is lost');
is( $node->safe_psql(
		'postgres', q{
		SELECT id FROM done GROUP BY id HAVING count(*) > 1 LIMIT 10}),
	'',
	'nothing is done twice');
is( $node->safe_psql(
		'postgres', q{
		SELECT g, batch, starts, before FROM (
			SELECT g, batch, starts, max(ends) OVER (
				PARTITION BY g ORDER BY starts
				ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
			FROM (
				SELECT g, batch, min(starts) AS starts, max(ends) AS ends
				FROM flight GROUP BY g, batch) b) w
		WHERE starts < before LIMIT 10}),
	'',
	'no group has two batches in flight');
is( $node->safe_psql(
		'postgres', q{
		SELECT g, batch, id FROM (
			SELECT g, batch, id, ordinal,
				lag(id) OVER w AS id_before, lag(ordinal) OVER w AS ordinal_before
			FROM flight WINDOW w AS (PARTITION BY g, batch ORDER BY ordinal)) f
		WHERE id <= id_before OR ordinal <> ordinal_before + 1 LIMIT 10}),
	'',
	'each batch of a group is in order, and in one piece');

# The first delivery of each, and the last end of any before it in its group
# that was there from the beginning.
is( $node->safe_psql(
		'postgres', q{
		SELECT f.g, f.id, l.id, f.starts, l.at FROM (
			SELECT DISTINCT ON (id) id, g, batch, starts
			FROM flight ORDER BY id, starts) f
		JOIN LATERAL (
			SELECT s.id, d.at FROM sent s JOIN done d USING (id)
			WHERE s.g = f.g AND s.before AND s.id < f.id
			ORDER BY d.at DESC LIMIT 1) l ON l.at > f.starts
		WHERE NOT EXISTS (
			SELECT FROM flight o
			WHERE o.batch = f.batch AND o.id = l.id)
		LIMIT 10}),
	'',
	'none is delivered before those ahead of it are done');
note $node->safe_psql(
	'postgres', q{
	SELECT 'deliveries ' || count(*) || ', done ' || (SELECT count(*) FROM done)
		|| ', at the end ' || (SELECT count(*) FROM popped WHERE batch = (SELECT max(batch) FROM popped))
	FROM delivery});
is( $node->safe_psql('postgres', q{SELECT * FROM msgq.why_empty('q')}),
	'empty', 'nothing is left');
is( $node->safe_psql('postgres', q{SELECT msgq.maintain()->>'defects'}),
	'0', 'the audit finds nothing');
check_indexes($node);
$_->quit foreach $killer, $last;
$node->stop;

done_testing();
