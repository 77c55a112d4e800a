# Claims while an old snapshot keeps VACUUM from removing anything.
#
# Catches: claims whose cost grows with what lies dead in the table: a walk
# over the rows that have been dealt with, or over the index entries of leases
# that have ended.
#
# The measure is the number of pages that one receive touches, in a session
# that has been receiving all the time.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;

# This leaves some 400 to 2,000 pages in each queue.
my $rounds = 30;
my $per_round = 1000;
my $most = 100;

my $node = new_node('snapshot', 'shared_buffers = 128MB');
$node->safe_psql(
	'postgres', q{
	SELECT msgq.create_queue('ready', visibility_timeout => '1 h');
	SELECT msgq.create_queue('due', max_deliveries => 0,
		visibility_timeout => '1 h');
	SELECT msgq.create_queue('later', visibility_timeout => '1 h');
	SELECT msgq.create_queue('pop', visibility_timeout => '1 h');
	CREATE TABLE bystander AS SELECT 1 AS i;
});

my $holder = session($node);
$holder->safe(
	'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT * FROM bystander');

my $session = session($node);

# Besides, an open transaction has sent a message and holds another.
$session->safe(
	q{SELECT msgq.send('ready', '"held"');
	SELECT msgq.send('pop', '"held"')});
my $open = session($node);
$open->safe(
	q{BEGIN;
	SELECT msgq.receive('ready');
	SELECT msgq.pop('pop');
	SELECT msgq.send('ready', '"open"');
	SELECT msgq.send('pop', '"open"')});

# queue => how many messages touched() has taken from it
my %taken;

# How many pages one call touches, which has to bring one message.
sub touched
{
	my ($who, $call) = @_;
	my $plan =
	  $who->safe("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM $call");
	my $pages = 0;

	# The first of each belongs to the top node.
	foreach my $kind ('Hit', 'Read')
	{
		$plan =~ /"Shared $kind Blocks": (\d+)/
		  or die "no buffers in $plan";
		$pages += $1;
	}
	my ($rows) = $plan =~ /"Actual Rows": (\d+)/;
	die "$call: nothing came" if $rows != 1;
	$taken{$1}++ if $call =~ /^msgq\.\w+\('(\w+)'/;
	return $pages;
}

# The least of several, each followed by SQL, until it is few.  The first one after
# a pause may have to look again at what has changed; and on a busy machine there
# is a pause before most of them.
sub pages
{
	my ($call, $sql) = @_;
	my $least;

	foreach my $try (1 .. 20)
	{
		my $pages = touched($session, $call);

		$least = $pages if !defined $least || $pages < $least;
		$session->safe($sql) if defined $sql;
		last if $least <= $most;
	}
	return $least;
}

sub bounded
{
	my ($what, $queue, $call, $sql) = @_;
	my $pages = pages($call, $sql);
	my $id =
	  $session->safe("SELECT id FROM msgq.queues WHERE name = '$queue'");
	my $size = $session->safe(
		"SELECT (pg_relation_size('msgq.q${id}_1')
			+ pg_indexes_size('msgq.q${id}_1')) / 8192");

	cmp_ok($pages, '<=', $most, "$what: the pages that a receive touches");
	note("$what: $pages of $size pages");
	cmp_ok($size, '>', 4 * $most, "$what: there is more than that");
	return;
}

my $batch = "SELECT cardinality(msgq.send_batch('%s', array_agg(to_jsonb(g))))
	FROM generate_series(1, $per_round) g";

# Sent, received, settled: dead rows before the first ready message.
foreach my $round (1 .. $rounds)
{
	$session->safe(sprintf($batch, 'ready'));
	is( $session->safe(
			"SELECT cardinality(msgq.ack_batch('ready', array_agg(receipt)))
			FROM msgq.receive('ready', $per_round)"),
		'0',
		"round $round: received and settled");
}
$session->safe(sprintf($batch, 'ready'));
bounded('dead rows', 'ready', "msgq.receive('ready')");

# A new session has to walk over them, but once.
my $new = session($node);
cmp_ok(touched($new, "msgq.receive('ready')"),
	'>', $most, 'dead rows: what the first receive of a session touches');
cmp_ok(touched($new, "msgq.receive('ready')"),
	'<=', $most, 'dead rows: what the second one touches');
$new->quit;

# The same with pop.
foreach my $round (1 .. $rounds)
{
	$session->safe(sprintf($batch, 'pop'));
	$session->safe("SELECT count(*) FROM msgq.pop('pop', $per_round)");
}
$session->safe(sprintf($batch, 'pop'));
bounded('popped rows', 'pop', "msgq.pop('pop')");

# Leases that end at once: each leaves a dead entry among the due ones.
$session->safe(sprintf($batch, 'due'));
foreach my $round (1 .. $rounds)
{
	is( $session->safe(
			"SELECT count(*) FROM msgq.receive('due', $per_round, '1 ms')"),
		$per_round,
		"round $round: due again");
	$session->safe('SELECT pg_sleep(0.002)');
}
bounded(
	'ended leases',
	'due',
	"msgq.receive('due', 1, '1 ms')",
	'SELECT pg_sleep(0.002)');

# Retries that were delayed and then settled: dead entries before the first
# due one.
foreach my $round (1 .. $rounds)
{
	$session->safe(sprintf($batch, 'later'));
	$session->safe(
		"SELECT cardinality(msgq.nack_batch('later', array_agg(receipt), '1 ms'))
		FROM msgq.receive('later', $per_round)");
	$session->safe('SELECT pg_sleep(0.002)');
	is( $session->safe(
			"SELECT cardinality(msgq.ack_batch('later', array_agg(receipt)))
			FROM msgq.receive('later', $per_round)"),
		'0',
		"round $round: came again and settled");
}
$session->safe(
	"SELECT cardinality(msgq.send_batch('later', array_agg(to_jsonb(g)),
		delay => '1 ms'))
	FROM generate_series(1, $per_round) g;
	SELECT pg_sleep(0.002)");
bounded('settled retries', 'later', "msgq.receive('later')");

# The snapshot was there all the time.
is($holder->safe('SELECT * FROM bystander'), '1', 'the snapshot is held');
is( $session->safe(
		"SELECT age(backend_xmin) > 100 FROM pg_stat_activity
		WHERE pid = " . $holder->pid),
	't',
	'and was old');
$holder->safe('COMMIT');

# Nothing has been passed over.
foreach my $queue ('pop', 'ready')
{
	is( $session->safe("SELECT count(*) FROM msgq.pop('$queue', 10000)"),
		$per_round - $taken{$queue},
		"$queue: all the rest comes");
}
$open->safe('COMMIT');
foreach my $queue ('ready', 'pop')
{
	is($session->safe("SELECT body FROM msgq.pop('$queue', 10)"),
		'"open"', "$queue: so does what was still open");
}
$_->quit foreach $session, $holder, $open;
$node->stop;

done_testing();
