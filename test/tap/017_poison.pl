# Messages whose handler pops them and always fails.
#
# Catches: handlers that are terminated, or lose their connection, and leave
# no trace; cancels, timeouts, deadlocks and serialization failures that are
# held against the message; a loop of rollbacks that the worker does not slow
# down, or never writes down; counts that are lost or doubled among many
# sessions.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $node = new_node('poison', 'msgq.worker = off', 'deadlock_timeout = 100ms');
my $session = session($node);
if ($session->safe(
		"SELECT detail LIKE 'none%' FROM msgq.health()
		WHERE check_name = 'shared_memory'") eq 't')
{
	$session->quit;
	plan skip_all => 'needs shared memory';
}

my $limits = q{max_deliveries => 0, dead_letter_queue => ''};
$session->safe(qq{SELECT msgq.create_queue('q', $limits)});
$session->safe('CREATE TABLE account (id int PRIMARY KEY, n int)');
$session->safe('INSERT INTO account VALUES (1, 1), (2, 2)');

# A new message, popped by a session whose transaction is open.
sub handler
{
	my ($begin) = @_;
	my $handler = session($node);

	$session->safe(q{SELECT msgq.send('q', '1')});
	$handler->safe($begin // 'BEGIN');
	$handler->safe(q{SELECT id FROM msgq.pop('q')});
	return $handler;
}

# Takes the message, as soon as it is there, and compares its failures.
sub failed
{
	my ($name, $expected) = @_;
	my $failures = '';
	my $begun = time;

	while ($failures eq ''
		&& time - $begun < $PostgreSQL::Test::Utils::timeout_default)
	{
		$failures = $session->safe(
			q{SELECT failures FROM msgq.pop('q', 1)});
		usleep(20_000) if $failures eq '';
	}
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($failures, $expected, $name);
	return;
}

# ---------------------------------------------------------------------------
# Ends of a handler
# ---------------------------------------------------------------------------

my $handler = handler();
$handler->safe('ROLLBACK');
failed('a rollback', 1);

is($handler->fails(q{SELECT 1 / 0}), '22012', 'an error');
$handler = handler();
$handler->fails('SELECT 1 / 0');
failed('an error', 1);

$handler = handler();
$session->safe("SELECT pg_terminate_backend(@{[ $handler->pid ]}, 10000)");
failed('terminated while it is idle', 1);

$handler = handler();
$handler->send('SELECT pg_sleep(1000)');
$session->safe("SELECT pg_terminate_backend(@{[ $handler->pid ]}, 10000)");
failed('terminated at work', 1);

$handler = handler();
$handler->quit;
failed('it has left', 1);

$handler = handler();
$handler->safe('SAVEPOINT a');
$session->safe("SELECT pg_terminate_backend(@{[ $handler->pid ]}, 10000)");
failed('terminated in a subtransaction', 1);

$handler = handler();
$handler->safe(q{SET idle_in_transaction_session_timeout = '10ms'});
failed('idle for too long', 1);

# ---------------------------------------------------------------------------
# Not its message's fault
# ---------------------------------------------------------------------------

$handler = handler();
$handler->send('SELECT pg_sleep(1000)');
ok( $node->poll_query_until(
		'postgres',
		"SELECT wait_event = 'PgSleep' FROM pg_stat_activity
		WHERE pid = @{[ $handler->pid ]}"),
	'at work');
$session->safe("SELECT pg_cancel_backend(@{[ $handler->pid ]})");
failed('cancelled', 0);

$handler = handler();
$handler->safe(q{SET statement_timeout = '10ms'});
is($handler->fails('SELECT pg_sleep(1000)'), '57014', 'a timeout');
failed('a timeout', 0);

$handler = handler();
my $other = session($node);
$other->safe('BEGIN; UPDATE account SET n = 1 WHERE id = 1');
$handler->safe(q{SET lock_timeout = '10ms'});
is($handler->fails('UPDATE account SET n = 2 WHERE id = 1'),
	'55P03', 'a lock timeout');
failed('a lock timeout', 0);
$other->safe('ROLLBACK');

# The other one waits longer before it looks for deadlocks.
$other->safe(q{SET deadlock_timeout = '1 min'});
$other->safe('BEGIN; UPDATE account SET n = 1 WHERE id = 1');
$handler = handler('BEGIN; UPDATE account SET n = 1 WHERE id = 2');
$other->send('UPDATE account SET n = 1 WHERE id = 2');
wait_for_lock($node, $other->pid);
is($handler->fails('UPDATE account SET n = 1 WHERE id = 1'),
	'40P01', 'a deadlock');
failed('a deadlock', 0);
$other->wait;
$other->safe('ROLLBACK');

# This one is found at the commit.
my $serializable = 'BEGIN ISOLATION LEVEL SERIALIZABLE;
	SELECT sum(n) FROM account';
$other->safe($serializable);
$handler = handler($serializable);
$other->safe('UPDATE account SET n = 5 WHERE id = 1');
$handler->safe('UPDATE account SET n = 5 WHERE id = 2');
$other->safe('COMMIT');
is($handler->fails('COMMIT'), '40001', 'a serialization failure');
failed('a serialization failure', 0);

# What is not logged is not known.
$handler = handler(q{SET log_min_messages = fatal; BEGIN});
$handler->safe(q{SET statement_timeout = '10ms'});
$handler->fails('SELECT pg_sleep(1000)');
failed('a timeout that is not logged', 1);

# A commit that fails after its note was taken out puts it back.
$handler = handler();
$handler->safe('ROLLBACK');
$other->safe($serializable);
$handler->safe($serializable);
is($handler->safe(q{SELECT failures FROM msgq.receive('q')}), '1', 'noted');
$other->safe('UPDATE account SET n = 6 WHERE id = 1');
$handler->safe('UPDATE account SET n = 6 WHERE id = 2');
$other->safe('COMMIT');
is($handler->fails('COMMIT'), '40001', 'the commit fails');
failed('the note is there again', 1);

# ---------------------------------------------------------------------------
# Many at a time
# ---------------------------------------------------------------------------

# Each rollback and each delivery is counted once.
$session->safe(
	qq{SELECT msgq.create_queue('busy', $limits, retry_delay => '0')});
$session->safe(q{SELECT msgq.send_batch('busy', array_agg(to_jsonb(i)))
	FROM generate_series(1, 50) AS i});
$session->safe('CREATE TABLE rolled_back (n bigint)');
my $pops = text_file(q{
	DO $$
	DECLARE
		n bigint;
	BEGIN
		SELECT count(*) INTO n FROM msgq.pop('busy', 1 + (random() * 3)::int);
		ROLLBACK;
		INSERT INTO rolled_back VALUES (n);
		COMMIT;
		PERFORM msgq.release('busy', receipt) FROM msgq.receive('busy');
	END
	$$;
});
my @handlers = map {
	{
		output => '',
		run    => IPC::Run::start(
			[
				$node->installed_command('pgbench'), '-n', '-c' => 2,
				'-t' => 300, '-f' => $pops, $node->connstr('postgres')
			],
			'<', \undef, '>', '/dev/null', '2>', '/dev/null')
	}
} 1 .. 3;
for (1 .. 50)
{
	$session->safe('SELECT msgq.maintain()');
	usleep(20_000);
}
ok(finish(@handlers), 'handlers');
$session->safe('SELECT msgq.maintain()');
is( $session->safe(
		q{SELECT sum(failures) - (SELECT sum(n) FROM rolled_back)
		FROM msgq.peek('busy', 50)}),
	'0',
	'each rollback is counted once');

# ---------------------------------------------------------------------------
# With the worker
# ---------------------------------------------------------------------------

$node->append_conf('postgresql.conf',
	"msgq.worker = on\nmsgq.worker_interval = 100ms");
$node->reload;

sub handle
{
	my ($queue) = @_;
	return $session->safe(
		"SELECT 'msgq.q' || id FROM msgq.queues WHERE name = '$queue'");
}

# Pops, and fails at once, in a loop; returns the number of pops.
sub fail_for
{
	my ($queue, $seconds) = @_;
	my $begun = time;
	my $n = 0;

	while (time - $begun < $seconds)
	{
		my $popped = $handler->safe(
			"BEGIN; SELECT count(*) FROM msgq.pop('$queue'); ROLLBACK");
		$n += $popped;
		usleep(5_000);
	}
	return $n;
}

$session->safe(
	qq{SELECT msgq.create_queue('slow', $limits, retry_delay => '1 h')});
$session->safe(q{SELECT msgq.send('slow', '1')});
$handler = session($node);
my $popped = fail_for('slow', 3);
cmp_ok($popped, '<', 100, "the worker ends a loop (after $popped pops)");
is( $session->safe(q{SELECT failures, deliveries FROM msgq.peek('slow')}),
	"$popped|$popped", 'and has written down each pop');

# A handler that never commits: its message is given up nevertheless, though
# all that the handler does about it is undone.
$session->safe(
	q{SELECT msgq.create_queue('mortal', max_deliveries => 5, retry_delay => '0')});
$session->safe(q{SELECT msgq.send_batch('mortal', '{1,2,3}')});
my $begun = time;
while ($session->safe('SELECT count(*) FROM ' . handle('mortal')) > 0
	&& time - $begun < $PostgreSQL::Test::Utils::timeout_default)
{
	fail_for('mortal', 0.1);
}
is( $session->safe(
		q{SELECT body, headers->'msgq-death'->0->>'reason',
			headers->'msgq-death'->0->>'deliveries'
		FROM msgq.peek('mortal.dead') ORDER BY body}),
	join("\n", map { "$_|max_deliveries|5" } 1 .. 3),
	'what always fails ends in the dead-letter queue');

# A restart forgets what is not written down.
$session->safe(
	qq{SELECT msgq.create_queue('forgotten', $limits)});
$session->safe(q{SELECT msgq.send('forgotten', '1')});
$node->append_conf('postgresql.conf', 'msgq.worker = off');
$node->reload;
$node->poll_query_until('postgres',
	q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'msgq worker'});
fail_for('forgotten', 0.1);
$_->quit foreach $session, $handler, $other;
$node->restart;
$session = session($node);
is($session->safe(q{SELECT failures FROM msgq.receive('forgotten')}),
	'0', 'a restart forgets');
is($session->safe(q{SELECT failures FROM msgq.peek('slow')}),
	$popped, 'but not what was written down');
check_indexes($node);
$session->quit;

done_testing();
