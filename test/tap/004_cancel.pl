# Cancels, timeouts and terminations in the middle of big batches.
#
# Catches: a batch of which a part has happened, messages that the session
# never gets any more because its own memory of the queue ran ahead of what
# was undone, and anything that a cancelled wait leaves behind.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $batch = 10000;
my $rounds = 12;

# What was undone is to be there at once, as it was.
my $node = new_node('cancel', 'msgq.count_rollbacks = off');

$node->safe_psql(
	'postgres', qq{
	SELECT msgq.create_queue('q', visibility_timeout => '1 h');
	-- Materialized, so that the time of a batch is spent in msgq.
	CREATE TABLE bodies AS
	SELECT array_agg(to_jsonb(g)) AS bodies FROM generate_series(1, $batch) g;
});
my $id =
  $node->safe_psql('postgres', "SELECT id FROM msgq.queues WHERE name = 'q'");

my $session = session($node);
my $other = session($node);

# All that a batch may change, as one line.
sub state_of_queue
{
	return $other->safe(
		qq{SELECT count(*), count(leased_at), sum(deliveries), sum(failures),
			count(visible_at), sum(hashtext(id::text)),
			sum(hashtext(id || leased_at::text)),
			sum(hashtext(id || visible_at::text))
		FROM msgq.q$id});
}

sub count_where
{
	my ($condition) = @_;
	return $other->safe("SELECT count(*) FROM msgq.q$id WHERE $condition");
}

# What a batch does when it happens, in numbers of messages and of leases.
my %batches = (
	send => {
		sql => "SELECT cardinality(msgq.send_batch('q', bodies)) FROM bodies",
		messages => $batch,
		leases => 0
	},
	receive => {
		sql => "INSERT INTO receipts
			SELECT receipt FROM msgq.receive('q', $batch)",
		messages => 0,
		leases => $batch
	},
	pop => {
		sql => "SELECT count(*) FROM msgq.pop('q', $batch)",
		messages => -$batch,
		leases => 0
	},
	ack => {
		sql => "SELECT cardinality(msgq.ack_batch('q', receipts)) FROM held",
		messages => -$batch,
		leases => -$batch
	},
	nack => {
		sql =>
		  "SELECT cardinality(msgq.nack_batch('q', receipts, '0')) FROM held",
		messages => 0,
		leases => -$batch
	},
	extend => {
		sql =>
		  "SELECT cardinality(msgq.extend_batch('q', receipts, '2 h')) FROM held",
		messages => 0,
		leases => 0
	},
	release => {
		sql =>
		  "SELECT cardinality(msgq.release_batch('q', receipts)) FROM held",
		messages => 0,
		leases => -$batch
	});

$session->safe(
	q{
	CREATE TABLE receipts (receipt uuid);
	CREATE TABLE held (receipts uuid[]);
});

# Puts the queue into the state that a batch of this kind needs, and returns
# the batch's SQL.
sub prepare
{
	my ($name) = @_;
	my $sql = $batches{$name}{sql};

	if ($name eq 'receive' || $name eq 'pop')
	{
		my $missing = $batch - count_where('leased_at IS NULL');
		$other->safe(
			"SELECT cardinality(msgq.send_batch('q', bodies[1:$missing])) FROM bodies"
		) if $missing > 0;
	}
	elsif ($sql =~ /held/)
	{
		my $missing = $batch - $other->safe('SELECT count(*) FROM receipts');
		if ($missing > 0)
		{
			$other->safe(
				"SELECT cardinality(msgq.send_batch('q', bodies[1:$missing])) FROM bodies"
			);
			# In the session under test, so that it has taken part in all.
			$session->safe(
				"INSERT INTO receipts
				SELECT receipt FROM msgq.receive('q', $missing)");
		}
		$other->safe(
			"TRUNCATE held;
			INSERT INTO held
			SELECT array_agg(receipt)
			FROM (SELECT receipt FROM receipts LIMIT $batch) AS r");
	}
	return $sql;
}

# Forgets receipts that have been used.
sub forget
{
	my ($name) = @_;
	$other->safe(
		'DELETE FROM receipts
		WHERE receipt IN (SELECT unnest(receipts) FROM held)'
	) if $name =~ /^(ack|nack|release)$/;
	return;
}

my (%times, %undone, %done);

# How long each takes, so that the cancels fall into it on any machine.
foreach my $name (sort keys %batches)
{
	my $sql = prepare($name);
	my $start = time;
	$session->safe($sql);
	$times{$name} = 1000 * (time - $start);
	forget($name);
	note(sprintf '%s of %d: %.0f ms', $name, $batch, $times{$name});
}

my @bad;

# One batch that may be cut off; it has happened, or it has not.
sub attempt
{
	my ($name, $how, $run) = @_;
	my $sql = prepare($name);
	my $before = state_of_queue();
	my ($messages, $leases) = split /\|/, $before;

	$run->($sql);
	my $code = $session->sqlstate;
	my $error = $session->error;
	# If it was the COMMIT that ran out of time, the block is still open.
	$session->query('ROLLBACK') if $code ne '' && !$session->dead;
	my $after = state_of_queue();
	my ($m, $l) = split /\|/, $after;

	push @bad, "$how: $name failed with $code: $error"
	  if $code !~ /^(57014|57P01|)$/;
	# Who is terminated does not know whether it had come to the commit.
	if ($code eq '' || ($code eq '57P01' && $after ne $before))
	{
		push @bad,
		  "$how: $name happened, but not as a whole: $before, $after"
		  if $m - $messages != $batches{$name}{messages}
		  || $l - $leases != $batches{$name}{leases};
		$done{$name}++;
		forget($name);
	}
	else
	{
		push @bad, "$how: $name happened in part: $before, $after"
		  if $after ne $before;
		$undone{$name}++;
	}
	return;
}

foreach my $round (1 .. $rounds)
{
	foreach my $name (sort keys %batches)
	{
		my $ms = 1 + int rand(1.1 * $times{$name});

		attempt(
			$name,
			"statement_timeout = $ms",
			sub {
				my ($sql) = @_;
				$session->query(
					"BEGIN; SET LOCAL statement_timeout = $ms; $sql; COMMIT");
			});

		# Every third time from outside.  The pause is the random moment.
		next if ($round % 3) != 0;
		my $seconds = rand($times{$name}) / 1000;
		my $function =
		  $round % 2 ? 'pg_cancel_backend' : 'pg_terminate_backend';
		attempt(
			$name,
			$function,
			sub {
				my ($sql) = @_;
				$session->send($sql);
				$other->safe("SELECT pg_sleep($seconds); SELECT $function("
					  . $session->pid
					  . ')');
				$session->wait;
			});
		# It may have been hit after the batch.
		$session->query('SELECT 1') if !$session->dead;
		if ($function eq 'pg_terminate_backend')
		{
			$session->quit;
			$session = session($node);
		}
	}
}
is("@bad", '', 'each batch happened as a whole or not at all');
foreach my $name (sort keys %batches)
{
	cmp_ok($undone{$name} // 0, '>', 0, "some batches of $name were cut off");
	note("$name: $undone{$name} cut off, " . ($done{$name} // 0) . ' done');
}

# The session that went through all of this, and one that did not, still get
# every message.
sub receives_everything
{
	my ($who, $what) = @_;

	$other->safe(
		"TRUNCATE receipts;
		SELECT count(msgq.expire_lease('q', id))
		FROM msgq.q$id WHERE leased_at IS NOT NULL");
	my $expected = count_where('true');
	my $all = '0';
	while (1)
	{
		my $got = $who->safe(
			"WITH r AS (
				INSERT INTO receipts
				SELECT receipt FROM msgq.receive('q', $batch) RETURNING 1)
			SELECT count(*) FROM r");
		last if $got eq '0';
		$all += $got;
	}
	is($all, $expected, "$what gets every message");
	is(count_where('leased_at IS NULL'), '0', "$what leaves none");
	return;
}

$other->safe("SELECT cardinality(msgq.send_batch('q', bodies)) FROM bodies");
receives_everything($session, 'the cancelled session');
my $fresh = session($node);
receives_everything($fresh, 'another session');
$fresh->quit;
$other->safe("TRUNCATE receipts; SELECT msgq.purge('q')");

# ---------------------------------------------------------------------------
# In a transaction that goes on
# ---------------------------------------------------------------------------

# In the last round nobody cancels.
foreach my $round (1 .. 4)
{
	$other->safe(
		"SELECT cardinality(msgq.send_batch('q', bodies)) FROM bodies");
	my $seconds = rand(0.9 * $times{receive}) / 1000;
	$session->safe(
		"BEGIN;
		INSERT INTO receipts SELECT receipt FROM msgq.receive('q', 5);
		SAVEPOINT a");
	$session->send(
		"INSERT INTO receipts SELECT receipt FROM msgq.receive('q', $batch)");
	$other->safe("SELECT pg_sleep($seconds); SELECT pg_cancel_backend("
		  . $session->pid . ')')
	  if $round < 4;
	$session->wait;
	my $code = $session->sqlstate;
	like($code, qr/^(57014)?$/, "round $round: cancelled or not");
	$session->safe(
		"ROLLBACK TO a;
		INSERT INTO receipts SELECT receipt FROM msgq.receive('q', $batch);
		COMMIT");
	is( $other->safe(
			'SELECT count(*), count(DISTINCT receipt) FROM receipts'),
		"$batch|$batch",
		'each message was received once');
	is(count_where('deliveries <> 1'), '0', 'and counted once');
	$other->safe("TRUNCATE receipts; SELECT msgq.purge('q')");
}

# What was undone comes again, also bit by bit, and in another transaction.
$other->safe("SELECT cardinality(msgq.send_batch('q', bodies)) FROM bodies");
my $claim = "INSERT INTO receipts
	SELECT receipt FROM msgq.receive('q', %d)";
foreach my $undone (
	sprintf("BEGIN; $claim; $claim; ROLLBACK", 5000, 3000),
	sprintf("BEGIN; SAVEPOINT a; $claim; ROLLBACK TO a; COMMIT", 9000),
	sprintf("BEGIN; SAVEPOINT a; $claim; RELEASE a; ROLLBACK", 9000),
	"BEGIN; SELECT msgq.purge('q'); SELECT * FROM msgq.receive('q'); ROLLBACK",
	"BEGIN; SAVEPOINT a; SELECT msgq.purge('q'); ROLLBACK TO a; COMMIT",
	"BEGIN; SELECT count(*) FROM msgq.pop('q', 9999); ROLLBACK",
	"BEGIN; SELECT msgq.cancel('q', id) FROM msgq.peek('q', 100) \\g /dev/null
	SELECT * FROM msgq.receive('q'); ROLLBACK")
{
	$session->safe($undone);
	my @received;
	foreach my $n (1, 20, 300, 1)
	{
		push @received,
		  $session->safe("SELECT count(*) FROM msgq.receive('q', $n)");
	}
	is("@received", '1 20 300 1',
		'after an undone claim messages come again');
	$other->safe(
		"SELECT count(msgq.expire_lease('q', id))
		FROM msgq.q$id WHERE leased_at IS NOT NULL");
}
is( $session->safe(sprintf $claim, $batch) . count_where('leased_at IS NULL'),
	'0',
	'in the end all of them');
$other->safe("TRUNCATE receipts; SELECT msgq.purge('q')");

# ---------------------------------------------------------------------------
# Cancelled waits
# ---------------------------------------------------------------------------

$other->safe("SELECT msgq.send('q', '1')");
my $receipt = $session->safe("SELECT receipt FROM msgq.receive('q')");

foreach my $settle (
	"msgq.ack('q', '$receipt')",
	"msgq.ack_batch('q', '{$receipt}')",
	"msgq.nack('q', '$receipt')",
	"msgq.extend('q', '$receipt', '2 h')",
	"msgq.release('q', '$receipt')")
{
	my ($name) = $settle =~ /msgq\.(\w+)/;
	my $before = state_of_queue();

	foreach my $how (
		'pg_cancel_backend', 'pg_terminate_backend',
		'lock_timeout', 'statement_timeout')
	{
		$other->safe("BEGIN; SELECT msgq.ack('q', '$receipt')");
		if ($how =~ /timeout/)
		{
			is( $session->fails(
					"BEGIN; SET LOCAL $how = '50ms'; SELECT $settle; ROLLBACK"
				),
				$how eq 'lock_timeout' ? '55P03' : '57014',
				"$name waits, until $how");
		}
		else
		{
			$session->send("SELECT $settle");
			wait_for_lock($node, $session->pid);
			$other->safe("SELECT $how(" . $session->pid . ')');
			$session->wait;
			is( $session->sqlstate,
				$how eq 'pg_cancel_backend' ? '57014' : '57P01',
				"$name waits, until $how");
			if ($how eq 'pg_terminate_backend')
			{
				$session->quit;
				$session = session($node);
			}
		}
		is( $other->safe(
				'SELECT count(*) FROM pg_locks WHERE pid = ' . $session->pid),
			'0',
			'no lock is left');
		$other->safe('ROLLBACK');
		is(state_of_queue(), $before, 'nothing has changed');
	}
}
is($session->safe("SELECT msgq.ack('q', '$receipt')"),
	't', 'then the receipt still settles');

# A table lock, as of a maintenance command; the ring may have turned.
$other->safe('BEGIN; LOCK TABLE '
	  . join(', ', map { "msgq.q${id}_$_" } 1 .. 3));
foreach my $call (
	q{msgq.send('q', '1')}, q{msgq.receive('q')},
	q{msgq.pop('q')}, q{msgq.purge('q')},
	qq{msgq.ack('q', '$receipt')})
{
	is($session->fails("SET lock_timeout = '50ms'; SELECT $call"),
		'55P03', "$call waits for a table lock, until lock_timeout");
}
$other->safe('ROLLBACK');
$session->safe('RESET lock_timeout');
$session->safe("SELECT msgq.send('q', '1')");
is($session->safe("SELECT count(*) FROM msgq.receive('q', 10)"),
	'1', 'afterwards there is what was sent afterwards');

# A round by hand, as it looks what there is to do.
foreach my $table (qw(schedule store stream topic))
{
	$other->safe("BEGIN; LOCK TABLE msgq.$table");
	$session->send('SELECT msgq.maintain()');
	wait_for_lock($node, $session->pid);
	$other->safe('SELECT pg_cancel_backend(' . $session->pid . '); ROLLBACK');
	$session->wait;
	is($session->sqlstate, '57014', "maintain waits for msgq.$table, until it is cancelled");
	is($session->fails('SELECT 1'), '', 'and no transaction is open then');
}

unlike(slurp_file($node->logfile),
	qr/PANIC|TRAP/, 'the server did not complain');
check_indexes($node);

$_->quit foreach $session, $other;
$node->stop;

done_testing();
