# Disk use under load: with a snapshot that is held, with one that has read the
# queue, with messages that are due in a month, and with snapshot_safe.
#
# Catches: segments that are not emptied, or not turned; tables of the extension
# that grow by dead rows; and messages that get lost with a segment.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

# There are three segments of 1 MB at most: the active one, one that drains,
# and one that is about to be emptied.  A ring turns when the worker comes by,
# once in a second, and sees by the cumulative statistics, which are another
# second late, that half of the active segment is dead.  2,000 messages in a
# second, each stored, leased and removed, write about 0.5 MB.
my $segment = 1024 * 1024;
my $rate = 0.75 * $segment;
my $limit = 3 * $segment + 2 * $rate;

# Without shared state nobody tells the worker that there is a load.  It goes
# when it has seen nothing to do for 3 s, and is called again 10 s later.
$limit += 10 * $rate unless is_preloaded();

my $node = new_node(
	'no_bloat',
	"msgq.segment_size = '1MB'",
	'autovacuum_naptime = 1s');
my $session = session($node);
$session->safe(q{SELECT msgq.create_queue('q', visibility_timeout => '1 h', dead_letter_queue => '')});
my $id = $session->safe("SELECT id FROM msgq.queues WHERE name = 'q'");
my $is_shared = $session->safe(
	"SELECT detail NOT LIKE 'none%' FROM msgq.health()
	WHERE check_name = 'shared_memory'") eq 't';

sub disk_size
{
	return $session->safe(
		"SELECT sum(pg_total_relation_size(oid)) FROM pg_class
		WHERE relnamespace = 'msgq'::regnamespace AND relkind = 'r'
			AND relname ~ '^q${id}_[0-9]+\$'");
}

sub states
{
	return $session->safe(
		"SELECT string_agg(state, ' ' ORDER BY n) FROM msgq.segment
		WHERE queue_id = $id");
}

# About 2,000 messages in a second, sent and received at once.
sub start_load
{
	return load(
		$node,
		clients => 2,
		seconds => 600,
		scripts => {
			q{
SELECT msgq.send_batch('q', (SELECT array_agg(to_jsonb(repeat('x', 20) || n))
	FROM generate_series(1, 20) n));
WITH r AS MATERIALIZED (SELECT * FROM msgq.receive('q', 40))
SELECT msgq.ack_batch('q', array_agg(receipt)) FROM r;
\sleep 18 ms
} => 1
		});
}

# The largest size that was seen in so many seconds.
sub largest
{
	my ($seconds) = @_;
	my $begun = time;
	my $largest = 0;

	while (time - $begun < $seconds)
	{
		my $size = disk_size();
		$largest = $size if $size > $largest;
		usleep(100_000);
	}
	return $largest;
}

sub is_below
{
	my ($size, $bound, $name) = @_;

	note(sprintf '%s: %.1f MB', $name, $size / 1024 / 1024);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	cmp_ok($size, '<', $bound, $name);
	return;
}

# Seconds until the queue is below the limit again, at most so many.
sub shrinks
{
	my ($seconds, $bound) = @_;
	my $begun = time;

	while (time - $begun < $seconds)
	{
		return time - $begun if disk_size() < $bound;
		usleep(100_000);
	}
	return;
}

# ---------------------------------------------------------------------------
# A snapshot that has not read the queue
# ---------------------------------------------------------------------------

my $holder = session($node);
$holder->safe(
	'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_am');
my $load = start_load();
is_below(largest(10), $limit, 'with a held snapshot');
my $turns = $session->safe(
	"SELECT max(turn) FROM msgq.segment WHERE queue_id = $id");
cmp_ok($turns, '>=', is_preloaded() ? 3 : 1, 'the ring has turned');
note("turns: $turns, segments: " . states());

# Until the statistics have it.
usleep(1_200_000);
$turns = $session->safe(
	"SELECT max(turn) FROM msgq.segment WHERE queue_id = $id");
my %dead = map { split /\|/ }
  split /\n/, $session->safe(
	"SELECT relname, n_dead_tup FROM pg_stat_user_tables
	WHERE schemaname = 'msgq' AND relname IN ('queue', 'segment', 'queue_total')"
  );
note(join ', ', map { "$_: $dead{$_}" } sort keys %dead);
cmp_ok($dead{queue}, '<=', 0, 'no dead rows in msgq.queue');
cmp_ok($dead{segment}, '<=', 4 * ($turns + 1),
	'a few dead rows in msgq.segment for each turn');
cmp_ok($dead{queue_total}, '<=', 2, 'few dead rows in msgq.queue_total');
$holder->safe('COMMIT');

# ---------------------------------------------------------------------------
# A snapshot that has read the queue
# ---------------------------------------------------------------------------

# It has a right to what it has seen, so nothing is emptied under it.
$holder->safe(
	"BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM msgq.q$id");
my $before = disk_size();
my $grown = largest(6);
note(sprintf 'grown from %.1f to %.1f MB',
	$before / 1024 / 1024, $grown / 1024 / 1024);
cmp_ok($grown, '>', $before, 'with a snapshot that has read it, it grows');
my $seen = $holder->safe("SELECT count(*) FROM msgq.q$id");
$holder->safe('COMMIT');
my $took = shrinks(60, $limit);
ok(defined $took, 'and shrinks when that has ended');
note("after $took s") if defined $took;

# ---------------------------------------------------------------------------
# All is accounted for
# ---------------------------------------------------------------------------

sub adds_up
{
	my ($name) = @_;

	stop_load($load);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	unlike($load->{output}, qr/ERROR|FATAL|PANIC/, "$name: no errors");
	if ($is_shared)
	{
		is( $session->safe(
				q{SELECT sent_total - acked_total - purged_total
					- ready - delayed - in_flight FROM msgq.queue_stats}),
			'0',
			"$name: sent = acked + left");
	}
	is( $session->safe(
			q{SELECT status FROM msgq.health() WHERE check_name = 'audit'}),
		'ok',
		"$name: no message was passed by");
	like($session->safe('SELECT msgq.maintain()'),
		qr/"defects": 0/, "$name: nor is one now");
	return;
}
adds_up('snapshots');
$session->safe(q{SELECT msgq.purge('q')});

# ---------------------------------------------------------------------------
# Messages that are due much later
# ---------------------------------------------------------------------------

# What 20,000 of them take, alone.
$session->safe(
	q{SELECT msgq.create_queue('alone');
	SELECT sum(cardinality(msgq.send_batch(q, (SELECT array_agg(to_jsonb(n))
		FROM generate_series(1, 10000) n), delay => '30 days')))
	FROM unnest('{q,alone}'::text[]) q, generate_series(1, 2)});
my $live = $session->safe(
	q{SELECT size_bytes FROM msgq.queue_stats WHERE queue = 'alone'});
$session->safe(q{SELECT msgq.drop_queue('alone')});
note(sprintf 'live: %.1f MB', $live / 1024 / 1024);
$load = start_load();
# They may be moved once or twice before all lie together.
is_below(largest(10), 2 * $live + $limit, 'with 20,000 messages for later');
note('segments: ' . states());
adds_up('later');
is( $session->safe(
		"SELECT count(*), count(DISTINCT id), bool_and(visible_at
			> now() + interval '29 days') FROM msgq.q$id
		WHERE visible_at IS NOT NULL AND leased_at IS NULL"),
	'20000|20000|t',
	'they are all there');
$session->safe(q{SELECT msgq.purge('q')});

# ---------------------------------------------------------------------------
# The past is kept
# ---------------------------------------------------------------------------

$session->safe(q{ALTER SYSTEM SET msgq.reclaim = 'snapshot_safe'});
$node->reload;
$session->safe('SELECT msgq.maintain()');
$holder->safe(
	'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_am');
$session->safe(q{SELECT msgq.send_batch('q', '{1,2,3}')});
$load = start_load();
my $drained;
my $begun = time;
while (time - $begun < 30)
{
	$drained = states() =~ /drained/ ? 1 : 0;
	last if $drained;
	usleep(100_000);
}
is($drained, 1, 'snapshot_safe: a segment drains');
my $size = disk_size();
usleep(2_500_000);
like(states(), qr/drained/, 'snapshot_safe: and waits for the snapshot');
cmp_ok(disk_size(), '>', $size, 'snapshot_safe: the queue grows');
adds_up('snapshot_safe');
is( $session->safe(
		q{SELECT status FROM msgq.health() WHERE check_name = 'segments'}),
	'warning',
	'snapshot_safe: health tells');
$holder->safe('COMMIT');
ok( $node->poll_query_until(
		'postgres',
		"SELECT msgq.maintain() IS NOT NULL AND count(*) = 0 FROM msgq.segment
		WHERE queue_id = $id AND state = 'drained'"),
	'snapshot_safe: then it is emptied');
is( $session->safe(
		q{SELECT status FROM msgq.health() WHERE check_name = 'segments'}),
	'ok',
	'snapshot_safe: health is content');

check_indexes($node);
$_->quit foreach $session, $holder;
$node->stop;

done_testing();
