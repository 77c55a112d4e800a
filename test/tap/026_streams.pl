# Streams and their surroundings: the sequencer's process, prepared
# transactions, waiting, a pinned snapshot, a dump, a standby, and dropping the
# database.
#
# Catches: entries that never get a position, because nobody told the sequencer
# or it has gone; a waiting reader whom nobody wakes; places of groups that
# pile up; positions, places and groups that a dump loses or that change; reads
# that do not work on a standby; a sequencer that is in the way of DROP
# DATABASE.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = new_node('streams', 'wal_level = replica', 'max_wal_senders = 4',
	'hot_standby = on', 'restart_after_crash = on');
my $admin = session($node);

$admin->safe(
	q{SELECT msgq.create_stream('s', partitions => 2);
	SELECT msgq.create_group('s', 'g', 'first');
	SELECT msgq.create_group('s', 'any', 'first')});

my $entries = 0;

# Waits until all entries that were appended have positions.  Without a launcher
# the sequencer is started by whoever reads.
sub all_positioned
{
	my ($name, $dbname) = @_;

	ok( $node->poll_query_until(
			$dbname // 'postgres', "SELECT (SELECT count(*) FROM msgq.read('s', 'any', 1)) >= 0
				AND (SELECT sum(entries) FROM msgq.stream_stats
					WHERE stream = 's') = $entries"),
		$name);
	return;
}

sub append
{
	my ($n, $session) = @_;

	($session // $admin)->safe(
		"SELECT count(msgq.append('s', to_jsonb(i), key => 'k' || i % 7))
		FROM generate_series(1, $n) i");
	$entries += $n;
	return;
}

my $sequencer = q{SELECT pid FROM pg_stat_activity
	WHERE backend_type = 'msgq sequencer' AND datname = current_database()};

# Its process comes by itself, and comes back.
append(10);
all_positioned('entries get positions');
my $pid = $admin->query($sequencer);
kill 'TERM', $pid if $pid ne '';
append(5);
all_positioned('after SIGTERM');
$pid = $admin->query($sequencer);
$admin->quit;
# This takes the server down, which starts again.
kill_backend($node, $pid) if $pid ne '';
$admin = session($node);
append(5);
all_positioned('after SIGKILL');

# A transaction that was prepared: nobody tells when it is committed.
$admin->safe(q{BEGIN; SELECT msgq.append('s', '"prepared"');
	PREPARE TRANSACTION 'later'});
append(3);
all_positioned('a prepared transaction delays no others');
$admin->safe(q{COMMIT PREPARED 'later'});
$entries++;
all_positioned('and its entry gets a position when it is committed');

# Who waits is told.
{
	my $reader = session($node);

	$reader->safe(
		q{SELECT count(*) FROM msgq.read('s', 'g', 1000);
		SELECT count(*) FROM msgq.read('s', 'g', 1000)});
	$reader->send(q{SELECT count(*) FROM msgq.read('s', 'g', 10, wait => '60 s')});
	$node->poll_query_until('postgres',
		"SELECT wait_event_type = 'Extension' FROM pg_stat_activity
		WHERE pid = " . $reader->pid)
	  or die 'the reader does not wait';
	my $begun = time;
	append(1);
	is($reader->wait, '1', 'a waiting reader gets what is appended');
	cmp_ok(time - $begun, '<', 10, 'soon');
	$reader->quit;
}

# Moves of a group pile up in its log only until that turns, whatever snapshot
# is held.
{
	my $holder = session($node);

	$holder->safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
	foreach my $round (1 .. 4)
	{
		$admin->safe(
			q{SELECT count(msgq.seek('s', 'g', 'first', 0))
			FROM generate_series(1, 130000)});
		$admin->safe('SELECT msgq.maintain()');
		$admin->safe('SELECT msgq.maintain()');
	}
	my $id = $admin->safe("SELECT id FROM msgq.streams WHERE name = 's'");
	cmp_ok(
		$admin->safe(
			"SELECT pg_relation_size('msgq.s${id}_g1') + pg_relation_size('msgq.s${id}_g2')"
		),
		'<',
		48 * 1024 * 1024,
		'the log of a group does not grow under a pinned snapshot');
	is( $admin->safe(
			q{SELECT "position" FROM msgq.group_lag WHERE consumer_group = 'g' AND partition = 0}
		),
		'1',
		'and tells where the group is');
	$holder->safe('COMMIT');
	$holder->quit;
}

# A dump keeps entries, positions, groups and what is leased.
{
	my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
	my @looks = (
		q{SELECT partition, "position", id, key, body FROM msgq.scan('s', 0, 1, 1000)},
		q{SELECT partition, "position", id, key, body FROM msgq.scan('s', 1, 1, 1000)},
		q{SELECT consumer_group, partition, "position", lag, leased_until, deliveries
			FROM msgq.group_lag ORDER BY 1, 2},
		q{SELECT name, settings FROM msgq.streams ORDER BY name});

	$admin->safe(
		q{SELECT msgq.create_group('s', 'leased', 'first');
		SELECT msgq.alter_stream('s', '{"partitions": 3}')});
	append(20);
	all_positioned('with three partitions');
	my $receipt = $admin->safe(
		q{SELECT DISTINCT receipt FROM msgq.poll('s', 'leased', 4, '1 h')});
	my @before = map { $admin->safe($_) } @looks;

	$node->command_ok(
		[ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('postgres') ],
		'pg_dump');
	$admin->safe('CREATE DATABASE restored');
	$node->command_ok(
		[ 'pg_restore', '-d', $node->connstr('restored'), $dump ],
		'pg_restore');

	my $restored = session($node, dbname => 'restored');
	my $all_before = $entries;
	is($restored->safe($looks[$_]), $before[$_], "restored: $looks[$_]")
	  foreach 0 .. $#looks;
	append(30, $restored);
	all_positioned('a restored stream goes on', 'restored');
	$entries = $all_before;
	foreach my $p (0 .. 2)
	{
		is( $restored->safe(
				qq{SELECT count(*) = max("position") AND min("position") = 1
				FROM msgq.scan('s', $p, 1, 1000)}),
			't',
			"positions of partition $p are dense");
	}
	is( $restored->safe("SELECT msgq.commit('s', 'leased', '$receipt')"),
		't', 'a receipt from before the dump fits');
	$restored->safe(q{SELECT msgq.create_stream('another');
		SELECT msgq.append('another', '1')});
	$restored->quit;
	$node->poll_query_until('postgres',
		"SELECT count(*) = 0 FROM pg_stat_activity
		WHERE datname = 'restored' AND backend_type = 'client backend'");
	is($admin->fails('DROP DATABASE restored'), '', 'DROP DATABASE');
}

# On a standby one can look, and no more.
{
	$node->backup('backup');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($node, 'backup', has_streaming => 1);
	$standby->start;
	append(4);
	all_positioned('on the primary');
	$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));

	my $there = session($standby);
	foreach my $sql (
		q{SELECT * FROM msgq.scan('s', 1, 1, 1000)},
		q{SELECT * FROM msgq.last_per_key('s')},
		q{SELECT stream, partition, first_position, next_position
			FROM msgq.stream_stats ORDER BY 1, 2},
		q{SELECT consumer_group, partition, "position", lag
			FROM msgq.group_lag ORDER BY 1, 2})
	{
		is($there->safe($sql), $admin->safe($sql), "on a standby: $sql");
	}
	foreach my $sql (
		q{SELECT msgq.append('s', '1')},
		q{SELECT msgq.read('s', 'g')},
		q{SELECT msgq.poll('s', 'g')},
		q{SELECT msgq.seek('s', 'g', 'first')},
		q{SELECT msgq.create_group('s', 'h', 'new')},
		q{SELECT msgq.create_stream('t')},
		q{CALL msgq.sequence('s')})
	{
		is($there->fails($sql), '25006', "on a standby: $sql");
	}
	$there->quit;

	$standby->promote;
	$there = session($standby);
	append(2, $there);
	ok( $standby->poll_query_until(
			'postgres',
			"SELECT (SELECT count(*) FROM msgq.read('s', 'any', 1)) >= 0
				AND (SELECT sum(entries) FROM msgq.stream_stats
					WHERE stream = 's') = $entries"),
		'a promoted standby gives positions');
	$entries -= 2;
	$there->quit;
	$standby->stop;
}

$admin->quit;
check_log($node);
check_indexes($node);
$node->stop;

done_testing();
