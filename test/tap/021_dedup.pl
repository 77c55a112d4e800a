# Idempotency keys under load: many sessions race for the same keys.
#
# Catches: a key under which two messages are stored, or none although its
# sender has committed; a sender that gets an id which is not the stored
# message's; a message that was stored and is never received; keys that get
# lost, or count twice, while their tables turn and are emptied; senders that
# deadlock or fail; and keys that a crash separates from their messages.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $sessions = 32;
my $keys = 10_000;
my $seconds = 12;

my $node = new_node(
	'dedup',
	'max_connections = 60',
	'msgq.worker = off',
	'fsync = off',
	'synchronous_commit = off');
my $admin = session($node);

# What each caller was told, in the transaction that it was told in.
$admin->safe(
	q{
	SELECT msgq.create_queue('dedup', dead_letter_queue => '');
	CREATE TABLE told (key int, id bigint, duplicate boolean);
	CREATE SEQUENCE next_key;
});

# The keys come in order, each from several sessions at about the same time:
# the sequence runs through them at half the speed of the callers, by eighths.
my $key = "(nextval('next_key') / 8 % $keys)::int";
my $end = q{
	\set r random(1, 5)
	\if :r = 1
		ROLLBACK;
	\else
		COMMIT;
	\endif
};

my $single = qq{
	SELECT $key AS k \\gset
	BEGIN;
	INSERT INTO told SELECT :k, s.* FROM msgq.send_once('dedup', to_jsonb(:k), 'key ' || :k) s;
	$end
};

my $savepoint = qq{
	SELECT $key AS k \\gset
	BEGIN;
	SAVEPOINT a;
	SELECT FROM msgq.send_once('dedup', to_jsonb(:k), 'key ' || :k);
	ROLLBACK TO SAVEPOINT a;
	INSERT INTO told SELECT :k, s.* FROM msgq.send_once('dedup', to_jsonb(:k), 'key ' || :k) s;
	$end
};

# In descending order, so that the call has to sort them.
my $batch = qq{
	SELECT $key AS k \\gset
	BEGIN;
	INSERT INTO told SELECT (:k + 4 - ordinal) % $keys, id, duplicate
	FROM msgq.send_messages('dedup', (
		SELECT jsonb_agg(jsonb_build_object('body', (:k + 3 - i) % $keys,
			'idempotency_key', 'key ' || (:k + 3 - i) % $keys) ORDER BY i)
		FROM generate_series(0, 3) i));
	$end
};

sub race
{
	my ($isolation, $clients) = @_;
	return load(
		$node,
		clients => $clients,
		seconds => $seconds,
		isolation => $isolation,
		scripts => { $single => 4, $savepoint => 1, $batch => 1 });
}

my @loads = (
	race('read committed', $sessions / 2),
	race('repeatable read', $sessions / 4),
	race('serializable', $sessions / 4));
ok(finish(@loads), "$sessions sessions sent the same keys");
foreach my $load (@loads)
{
	diag($load->{output}) if $load->{status} != 0;
	unlike($load->{output}, qr/deadlock|could not serialize/,
		'nobody has failed for another one');
}

# A race that did not happen proves nothing.
cmp_ok($admin->safe('SELECT count(*) FROM told'),
	'>', $keys, 'there were callers enough');
cmp_ok($admin->safe('SELECT count(*) FROM told WHERE duplicate'),
	'>', $keys / 10, 'many of them came second');
is( $admin->safe(
		q{SELECT count(*) FROM (SELECT key FROM told
			GROUP BY key HAVING count(DISTINCT id) <> 1
				OR count(*) FILTER (WHERE NOT duplicate) <> 1) AS wrong}),
	'0',
	'all callers of a key were told the same id, one of them that it is new');
is( $admin->safe(
		q{SELECT count(*) FROM (SELECT body::int AS key, id FROM msgq.peek('dedup', 10000, 0)) m
		FULL JOIN (SELECT DISTINCT key, id FROM told) t USING (key, id)
		WHERE m.id IS NULL OR t.id IS NULL}),
	'0',
	'that message, and no other one, is stored');
is( $admin->safe(q{SELECT sent_total FROM msgq.queue_stats WHERE queue = 'dedup'}),
	is_preloaded()
	? $admin->safe('SELECT count(DISTINCT key) FROM told')
	: '',
	'messages that were stored are counted') if is_preloaded();
my $received = 0;
while ((my $n = $admin->safe(q{SELECT count(*) FROM msgq.receive('dedup', 1000)})) > 0)
{
	$received += $n;
}
is($received, $admin->safe('SELECT count(DISTINCT key) FROM told'),
	'all of them are received');
check_indexes($node);

# The tables turn all the time: with a window that is longer than the test a
# key is not free again, and a short one lets keys be used again and again.
$admin->safe(
	q{
	SELECT msgq.drop_queue('dedup');
	SELECT msgq.create_queue('dedup', dead_letter_queue => '', dedup_window => '1 h');
	SELECT msgq.create_queue('short', dead_letter_queue => '', dedup_window => '200 ms');
	TRUNCATE told;
	CREATE TABLE told_short (key int, id bigint, duplicate boolean, sent_at timestamptz);
	CREATE SEQUENCE next_short;
});
my $turning = load(
	$node,
	clients => 8,
	seconds => 13,
	scripts => {
		$single => 1,
		q{
			INSERT INTO told_short SELECT k, s.*, clock_timestamp()
			FROM (SELECT (random() * 100)::int) r(k),
				msgq.send_once('short', to_jsonb(k), 'key ' || k) s;
		} => 1
	});
my %did = (rotated => 0, emptied => 0, failed => 0);
my $until = time() + 12;
while (time() < $until)
{
	# To turn a table that is not old enough, it is made so.
	$admin->safe(
		q{UPDATE msgq.store SET opened_at = opened_at - interval '2 h'
		WHERE state = 'current'
			AND queue_id = (SELECT id FROM msgq.queues WHERE name = 'dedup')
			AND EXISTS (SELECT FROM msgq.store e
				WHERE e.queue_id = store.queue_id AND e.state = 'empty')});
	foreach my $what (sort keys %did)
	{
		$did{$what} += $admin->safe("SELECT msgq.maintain()->>'$what'");
	}
}
ok(finish($turning), 'senders went on while tables turned');
diag($turning->{output}) if $turning->{status} != 0;
cmp_ok($did{rotated}, '>', 5, "tables turned ($did{rotated})");
cmp_ok($did{emptied}, '>', 3, "and were emptied ($did{emptied})");
is($did{failed}, 0, 'without errors');
is( $admin->safe(
		q{SELECT count(*) FROM (SELECT key FROM told
			GROUP BY key HAVING count(DISTINCT id) <> 1
				OR count(*) FILTER (WHERE NOT duplicate) <> 1) AS wrong}),
	'0',
	'each key has one message all the same');
is( $admin->safe(
		q{SELECT count(*) FROM told_short t JOIN msgq.peek('short', 10000, 0) m ON m.id = t.id
		WHERE t.duplicate AND t.sent_at - m.enqueued_at > '5 s'}),
	'0',
	'keys that are too old are free');
cmp_ok(
	$admin->safe(
		q{SELECT count(*) FROM told_short a JOIN told_short b USING (key)
		WHERE NOT a.duplicate AND NOT b.duplicate AND a.id < b.id
			AND b.sent_at - a.sent_at < '150 ms'}),
	'==', 0,
	'and others are not');
cmp_ok($admin->safe('SELECT count(*) FROM told_short WHERE NOT duplicate'),
	'>', 200, 'keys were used again and again');

# A crash: what was confirmed is a duplicate, what was not is stored or not,
# but never without its key.
$admin->safe(
	q{SELECT msgq.create_queue('crash', dead_letter_queue => '');
	ALTER SYSTEM SET synchronous_commit = on; SELECT pg_reload_conf()});
$admin->safe(q{BEGIN; SELECT msgq.send('crash', '0', idempotency_key => 'open')});
my $other = session($node);
$other->safe(
	q{SELECT msgq.send('crash', to_jsonb(i), idempotency_key => i::text)
	FROM generate_series(1, 100) i});
kill_all($node);
start_again($node);
$admin = session($node);
is( $admin->safe(
		q{SELECT bool_and(duplicate), count(DISTINCT s.id)
		FROM generate_series(1, 100) i, msgq.send_once('crash', to_jsonb(i), i::text) s}),
	't|100',
	'after a crash, keys that were confirmed are known');
is($admin->safe(q{SELECT duplicate FROM msgq.send_once('crash', '0', 'open')}),
	'f', 'and one of an open transaction is free');
is($admin->safe(q{SELECT count(*) FROM msgq.peek('crash', 1000)}),
	'101', 'each has its message');
check_indexes($node);

done_testing();
