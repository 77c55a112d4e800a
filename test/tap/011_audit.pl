# The audit: messages that receivers have passed by.
#
# Catches: an audit that does not find them, does not say so, or does not have
# them delivered; and one that takes for lost what is held by an open
# transaction or has been given back by one that has ended.
#
# Rows get behind a frontier only around msgq's functions: here a superuser
# inserts them.  Without shared memory a frontier is its backend's own, and
# there is nothing to audit.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('audit', 'msgq.worker = off');
my $is_shared = is_preloaded()
  || $node->safe_psql('postgres',
	"SELECT current_setting('server_version_num')::int >= 170000") eq 't';
$node->safe_psql('postgres',
	"SELECT msgq.create_queue('q', visibility_timeout => '1 h')");
my $id =
  $node->safe_psql('postgres', "SELECT id FROM msgq.queues WHERE name = 'q'");

my ($receiver, $other, $maintainer) = map { session($node) } 1 .. 3;

sub received
{
	my ($session) = @_;
	return $session->safe(
		"SELECT string_agg(body #>> '{}', ' ' ORDER BY id)
		FROM msgq.receive('q', 1000)");
}

# The audit's findings, without the rest of the round.
sub defects
{
	return $maintainer->safe("SELECT msgq.maintain()->>'defects'");
}

sub health
{
	return $maintainer->safe(
		"SELECT status FROM msgq.health() WHERE check_name = 'audit'");
}

# Into the place of a message that was sent and is gone.
sub insert
{
	my ($key, $visible_at) = @_;
	$node->safe_psql('postgres',
		"INSERT INTO msgq.q${id}_1 (id, deliveries, failures, priority,
			enqueued_at, visible_at, body)
		VALUES ($key, 0, 0, 0, now(), $visible_at, '\"around $key\"')");
	return;
}

# Both frontiers are moved beyond what there was.
sub walk_past
{
	$receiver->safe(
		"SELECT count(msgq.send('q', to_jsonb(i)))
		FROM generate_series(1, 10) AS i");
	$receiver->safe("SELECT count(*) FROM msgq.pop('q', 100)");
	received($receiver) foreach 1 .. 2;
	return;
}

# There is nothing to be found.
walk_past();
is(defects(), '0', 'nothing was passed by');
is(health(), 'ok', 'health says so');

# What is held, or has just been given back, was not passed by.
foreach my $end ('ROLLBACK', 'COMMIT')
{
	foreach my $action ("msgq.send('q', '\"sent\"')",
		"count(*) FROM msgq.receive('q')", "count(*) FROM msgq.pop('q')")
	{
		my $name = "$action, $end";

		$node->safe_psql('postgres', "SELECT msgq.send('q', '\"there\"')");
		$other->safe("BEGIN; SAVEPOINT a; SELECT $action; RELEASE a");
		$node->safe_psql('postgres', "SELECT msgq.send('q', '\"next\"')");
		received($receiver) foreach 1 .. 2;
		is(defects(), '0', "$name: open");
		$other->safe($end);
		is(defects(), '0', "$name: ended");
		$maintainer->safe("SELECT msgq.purge('q')");
	}
}

# More of them than a frontier has exceptions.
$node->safe_psql('postgres',
	"SELECT count(msgq.send('q', to_jsonb(i))) FROM generate_series(1, 100) AS i");
$other->safe('BEGIN');
$other->safe("SAVEPOINT a; SELECT count(*) FROM msgq.receive('q'); RELEASE a")
  foreach 1 .. 80;
is(scalar(split / /, received($receiver)), 20, 'the rest is received');
is(defects(), '0', 'many claims, open');
$other->safe('ROLLBACK');
is(defects(), '0', 'many claims, undone');
is(scalar(split / /, received($receiver)), 80, 'they are received');
$maintainer->safe("SELECT msgq.purge('q')");

# Something is due, and nobody has looked.
$node->safe_psql('postgres',
	"SELECT msgq.send('q', '\"due\"', delay => '20 ms'), pg_sleep(0.1)");
is(defects(), '0', 'what fell due just now was not passed by');
is(received($receiver), 'due', 'it is received');
$maintainer->safe("SELECT msgq.purge('q')");

# A row that came around the functions.
walk_past();
insert(5, 'NULL');
is(received($receiver), '', 'a row behind the frontier is not found');

SKIP:
{
	skip 'frontiers are not shared', 12 unless $is_shared;

	is(received($other), '', 'nor is it by another session');
	is(defects(), '1', 'the audit finds it');
	like(
		$maintainer->error,
		qr/WARNING: .*found 1 messages of table "q${id}_1" that receivers had passed by/,
		'and warns');
	is(health(), 'error', 'health tells');
	is(received($receiver), 'around 5', 'it is delivered');
	is(received($other), '', 'once');
	is(defects(), '0', 'nothing is left');
	is($maintainer->error, '', 'and there is no warning');
	is(health(), 'error', 'health remembers');

	# Several; one of them is received meanwhile, by a new look.
	insert($_, 'NULL') foreach 2, 3, 7;
	is(defects(), '3', 'several are found');
	is(received($other), 'around 2 around 3 around 7', 'and delivered');
	is( $maintainer->safe(
			"SELECT detail ~ '^4 messages' FROM msgq.health() WHERE check_name = 'audit'"
		),
		't',
		'health counts them');
}
SKIP:
{
	skip 'frontiers are shared', 2 if $is_shared;
	my $new = session($node);

	is(defects(), '0', 'there is no audit');
	is(received($new), 'around 5', 'a new session finds it');
	$new->quit;
}

# A due time behind the frontier is found without an audit, if it is later.
insert(6, "now() - interval '1 hour'");
is( $receiver->safe(
		"SELECT body #>> '{}' FROM msgq.receive('q', wait => '10 s')"),
	'around 6',
	'a due row behind the frontier is found by and by');

$_->quit foreach $receiver, $other, $maintainer;
$node->stop;

done_testing();
