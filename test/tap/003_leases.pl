# Which transactions commit asynchronously because all they did was to take
# leases (setting msgq.async_leases), and which do not.
#
# Catches: an application's own write, or a settled message, that is lost in a
# crash because the transaction also received; a synchronous_commit that stays
# lowered after the transaction; and a message that crashes the server without
# its deliveries ever being counted.
#
# The WAL writer sleeps and nothing else writes, so what a commit has flushed
# can be seen: right after an asynchronous one, the end of the WAL is ahead of
# what is flushed.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node(
	'leases',
	'restart_after_crash = on',
	# What it prunes is logged, and not flushed.
	'msgq.worker = off',
	'wal_writer_delay = 10s',
	'autovacuum = off',
	'checkpoint_timeout = 1h',
	'max_wal_size = 10GB');

$node->safe_psql(
	'postgres', q{
	SELECT msgq.create_queue('q');
	CREATE TABLE work (i int);
	CREATE SEQUENCE counter;
});

my $session = session($node);
my $quietly = "\\g /dev/null\n";

# Has the last commit left something unflushed?  When the WAL ends with a page,
# the insert position is already behind the next page's header.
my $unflushed =
  'SELECT pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn() - 40';

# Runs SQL five times and returns how often its commit was not flushed, as a
# word.  {receipts} stands for the receipts of three leased messages.  The WAL
# writer may wake up in between, so one of five may be out of line.
sub commits
{
	my ($sql, %params) = @_;
	my $ahead = 0;

	foreach my $try (1 .. 5)
	{
		my $receipts = $session->safe(
			"SET synchronous_commit = on;
			SELECT msgq.send('q', '1') FROM generate_series(1, 6) $quietly
			BEGIN;
			INSERT INTO work VALUES (0);
			SELECT array_agg(receipt) FROM msgq.receive('q', 3);
			COMMIT");
		$session->safe($params{before}) if defined $params{before};
		$session->safe($sql =~ s/\{receipts\}/('$receipts'::uuid[])/gr);
		$ahead++ if $session->safe($unflushed) eq 't';
		$session->safe($params{after}) if defined $params{after};
		# Flushes, and leaves nothing for the next try.
		$session->safe(
			"SET synchronous_commit = on;
			RESET msgq.async_leases;
			SELECT msgq.purge('q') $quietly
			INSERT INTO work VALUES (0)");
	}
	return
		$ahead >= 4 ? 'asynchronously'
	  : $ahead <= 1 ? 'synchronously'
	  : "$ahead of 5 asynchronously";
}

sub asynchronous
{
	my ($what, $sql, %params) = @_;
	is(commits($sql, %params), 'asynchronously', "asynchronous: $what");
	return;
}

sub synchronous
{
	my ($what, $sql, %params) = @_;
	is(commits($sql, %params), 'synchronously', "synchronous: $what");
	return;
}

my $receive = "SELECT msgq.receive('q') $quietly";
my $send = "SELECT msgq.send('q', '1') $quietly";
my $pop = "SELECT msgq.pop('q') $quietly";
my $write = 'INSERT INTO work VALUES (1);';

# That the method works at all:
synchronous('an insert', $write);
asynchronous(
	'an insert with synchronous_commit = off',
	"SET synchronous_commit = off; $write");

asynchronous('receive', $receive);
asynchronous('receive in a block', "BEGIN; $receive COMMIT;");
asynchronous('two receives', "BEGIN; $receive $receive COMMIT;");
asynchronous('receive of several', "SELECT msgq.receive('q', 5) $quietly");
asynchronous('receive in a savepoint',
	"BEGIN; SAVEPOINT a; $receive RELEASE a; COMMIT;");
asynchronous(
	'receives in and after savepoints',
	"BEGIN; $receive SAVEPOINT a; $receive SAVEPOINT b; $receive "
	  . "RELEASE b; RELEASE a; $receive COMMIT;");
asynchronous(
	'receive and a read',
	"BEGIN; SELECT FROM work LIMIT 1; $receive SELECT FROM work LIMIT 1; COMMIT;"
);
asynchronous('receive at REPEATABLE READ',
	"BEGIN ISOLATION LEVEL REPEATABLE READ; $receive $receive COMMIT;");
asynchronous('receive in a DO block',
	q{DO $$BEGIN PERFORM msgq.receive('q'); END$$;});

synchronous('receive with async_leases = off',
	$receive, before => 'SET msgq.async_leases = off');
synchronous('two receives with async_leases = off',
	"BEGIN; SET LOCAL msgq.async_leases = off; $receive $receive COMMIT;");

synchronous('insert, receive', "BEGIN; $write $receive COMMIT;");
synchronous('receive, insert', "BEGIN; $receive $write COMMIT;");
synchronous('receive, insert, receive',
	"BEGIN; $receive $write $receive COMMIT;");
synchronous('insert, receive, receive',
	"BEGIN; $write $receive $receive COMMIT;");
synchronous('insert and receive in one statement',
	q{INSERT INTO work SELECT deliveries FROM msgq.receive('q');});
synchronous('receive, insert in a savepoint',
	"BEGIN; $receive SAVEPOINT a; $write RELEASE a; COMMIT;");
synchronous('insert in a savepoint, receive',
	"BEGIN; SAVEPOINT a; $write RELEASE a; $receive COMMIT;");
synchronous(
	'receive, insert, receive in a savepoint that is undone',
	"BEGIN; $receive $write SAVEPOINT a; $receive ROLLBACK TO a; COMMIT;");
synchronous(
	'receive, insert in a savepoint, receive',
	"BEGIN; $receive SAVEPOINT a; $write $receive RELEASE a; $receive COMMIT;"
);
synchronous(
	'update, receive',
	"BEGIN; UPDATE work SET i = 2 WHERE ctid = '(0,1)'; $receive COMMIT;",
	before => 'TRUNCATE work; INSERT INTO work VALUES (0)');
synchronous('receive, a new table',
	'BEGIN; ' . $receive . ' CREATE TABLE t (); DROP TABLE t; COMMIT;');
synchronous('receive, setval',
	"BEGIN; $receive SELECT setval('counter', 5) $quietly COMMIT;");
synchronous(
	'receive, a transactional message',
	"BEGIN; $receive SELECT pg_logical_emit_message(true, 'a', 'b') $quietly COMMIT;"
);
synchronous(
	'an insert in a DO block around receives',
	q{DO $$BEGIN
		PERFORM msgq.receive('q');
		BEGIN
			INSERT INTO work VALUES (1);
		EXCEPTION WHEN division_by_zero THEN
			NULL;
		END;
		PERFORM msgq.receive('q');
	END$$;});
synchronous('an insert in the chained transaction',
	"BEGIN; $receive COMMIT AND CHAIN; $write COMMIT;");
synchronous(
	'an insert in the next transaction of a procedure',
	q{DO $$BEGIN
		PERFORM msgq.receive('q');
		COMMIT;
		INSERT INTO work VALUES (1);
	END$$;});
synchronous('an insert after a receive that was rolled back',
	"BEGIN; $receive ROLLBACK; $write");
synchronous(
	'an insert after a receive that was prepared',
	"BEGIN; $receive PREPARE TRANSACTION 'p'; $write",
	after => "ROLLBACK PREPARED 'p'");
synchronous('receive, send', "BEGIN; $receive $send COMMIT;");
synchronous('send, receive', "BEGIN; $send $receive COMMIT;");
synchronous('send', $send);

synchronous('receive and ack in one statement',
	"SELECT msgq.ack('q', receipt) FROM msgq.receive('q') $quietly");
synchronous('pop', $pop);
synchronous('receive, pop', "BEGIN; $receive $pop COMMIT;");
synchronous('pop, receive', "BEGIN; $pop $receive COMMIT;");
foreach my $settle (
	q{msgq.ack('q', {receipts}[1])},
	q{msgq.ack_batch('q', {receipts})},
	q{msgq.nack('q', {receipts}[1], '1 h')},
	q{msgq.release('q', {receipts}[1])},
	q{msgq.extend('q', {receipts}[1], '1 h')})
{
	my ($name) = $settle =~ /msgq\.(\w+)/;
	my $call = "SELECT $settle $quietly";
	synchronous("$name", $call);
	synchronous("receive, $name", "BEGIN; $receive $call COMMIT;");
	synchronous("$name, receive", "BEGIN; $call $receive COMMIT;");
	synchronous("receive, $name in a savepoint, receive",
		"BEGIN; $receive SAVEPOINT a; $call RELEASE a; $receive COMMIT;");
}

# The next transaction does not inherit it.
foreach my $value (qw(on local remote_apply))
{
	is( $session->safe(
			"SET synchronous_commit = $value;
			$send
			$send
			$receive
			SHOW synchronous_commit;
			BEGIN;
			$receive
			SHOW synchronous_commit;
			COMMIT;
			SHOW synchronous_commit"),
		"$value\n$value\n$value",
		"synchronous_commit stays $value");
}
is( $session->safe(
		"SET synchronous_commit = on;
		BEGIN;
		SET synchronous_commit = local;
		$send
		COMMIT;
		BEGIN;
		$receive
		SET synchronous_commit = remote_write;
		COMMIT;
		SHOW synchronous_commit"),
	'remote_write',
	'a SET in the transaction stays');
is( $session->safe(
		"SET synchronous_commit = on;
		BEGIN;
		SET LOCAL synchronous_commit = off;
		$receive
		COMMIT;
		SHOW synchronous_commit"),
	'on',
	'a SET LOCAL does not');
synchronous('an insert after a receive', "$receive $write");
$session->safe("RESET synchronous_commit; SELECT msgq.purge('q')");

# ---------------------------------------------------------------------------
# What a crash does to leases
# ---------------------------------------------------------------------------

sub state_of
{
	my ($body) = @_;
	return $session->safe(
		"SELECT deliveries FROM msgq.peek('q', 100) WHERE body = '$body'");
}

# A lease that is lost: its receipt is worth nothing, whoever holds it.  (If
# the lease should have survived for once, there is nothing to see.)
$session->safe("SELECT msgq.send('q', '\"lost\"')");
my $receipt = $session->safe(
	"SELECT receipt FROM msgq.receive('q', visibility_timeout => '1 h')");
kill_all($node);
$session->quit;
start_again($node);
$session = session($node);
my $deliveries = state_of('"lost"');
note("deliveries of the lost lease: $deliveries");
SKIP:
{
	skip 'the lease survived', 4 if $deliveries ne '0';
	is($session->safe("SELECT msgq.ack('q', '$receipt')"),
		'f', 'the receipt of a lost lease is stale');
	my ($again, $count) = split /\|/,
	  $session->safe(
		"SELECT receipt, deliveries FROM msgq.receive('q', visibility_timeout => '1 h')"
	  );
	is($count, '1', 'the message comes again');
	is($session->safe("SELECT msgq.ack('q', '$receipt')"),
		'f', 'the old receipt does not settle the new lease');
	is($session->safe("SELECT msgq.ack('q', '$again')"),
		't', 'the new one does');
}
$session->safe("SELECT msgq.purge('q')");

# A queue and its first messages in one transaction (which may skip the log,
# as wal_level is minimal).
$session->safe(
	q{BEGIN;
	SELECT msgq.create_queue('new');
	SELECT msgq.send_batch('new', '{1,2,3}');
	SELECT msgq.pop('new');
	COMMIT});
kill_all($node);
$session->quit;
start_again($node);
$session = session($node);
is( $session->safe(
		q{SELECT string_agg(body::text, ' ') FROM msgq.receive('new', 10)}),
	'2 3',
	'a queue that was made just before a crash');

# A message that kills whoever gets it has to be counted: first the server is
# killed, then a backend, and the postmaster goes on.
foreach my $kill (qw(server backend))
{
	my $counted = 0;

	$session->safe(qq{SELECT msgq.send('q', '"$kill"')});
	foreach my $round (1 .. 4)
	{
		my $victim = session($node);
		# The first time, the message is younger than the server.
		my $received =
		  $victim->safe("SELECT deliveries FROM msgq.receive('q', 10, '0')");
		is($received, $counted + 1, "$kill killed, round $round: received");
		if ($kill eq 'server')
		{
			kill_all($node);
			start_again($node);
		}
		else
		{
			kill_backend($node, $victim->pid);
		}
		$victim->quit;
		$session->quit;
		$session = session($node);
		my $now = state_of(qq{"$kill"});
		if ($round == 1)
		{
			note("the first delivery counted: $now");
		}
		else
		{
			is( $now,
				$counted + 1,
				"$kill killed, round $round: delivery counted");
		}
		$counted = $now;
	}
	$session->safe("SELECT msgq.purge('q')");
}

# One that takes the whole server down each time runs out of deliveries, of which
# a crash may forget the first.
$session->safe(
	q{SELECT msgq.create_queue('killer', max_deliveries => 3);
	SELECT msgq.send('killer', '"killer"')});
my $crashes = 0;
while (1)
{
	my $victim = session($node);
	my $body =
	  $victim->safe(q{SELECT body FROM msgq.receive('killer', 1, '0')});
	last if $body eq '' || $crashes == 10;
	kill_all($node);
	$victim->quit;
	start_again($node);
	$crashes++;
}
ok($crashes == 3 || $crashes == 4, "a message took the server down $crashes times");
$session->quit;
$session = session($node);
is( $session->safe(
		q{SELECT body, headers->'msgq-death'->0->>'reason'
		FROM msgq.peek('killer.dead')}),
	'"killer"|max_deliveries',
	'and is a dead letter now');

# The same seen from the WAL: old messages, alone or with a young one.
foreach my $how (qw(restart crash))
{
	$session->safe(
		"SELECT msgq.send('q', '\"old\"') FROM generate_series(1, 12)");
	if ($how eq 'restart')
	{
		$session->quit;
		$node->restart;
	}
	else
	{
		my $victim = session($node);
		kill_backend($node, $victim->pid);
		$victim->quit;
		$session->quit;
	}
	$session = session($node);

	my $alone = 0;
	foreach my $try (1 .. 5)
	{
		$session->safe("SELECT msgq.receive('q', 1, '1 h')");
		$alone++ if $session->safe($unflushed) eq 't';
	}
	cmp_ok($alone, '<=', 1,
		"after a $how, messages from before it are leased synchronously");
	$session->safe(
		"SELECT msgq.send('q', '\"new\"') FROM generate_series(1, 3)");
	# 12 were old; the last of them comes with new ones.
	$session->safe("SELECT msgq.receive('q', 6, '1 h')");
	is( $session->safe(
			"BEGIN;
			SELECT count(*) FILTER (WHERE body = '\"old\"'),
				count(*) FILTER (WHERE body = '\"new\"')
			FROM msgq.receive('q', 3, '1 h');
			COMMIT"),
		'1|2',
		'one old message and two new ones');
	is($session->safe($unflushed), 'f', 'are leased synchronously');
	$session->safe("SELECT msgq.purge('q')");
}

$session->quit;
$node->stop;

done_testing();
