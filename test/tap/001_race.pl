# Producers and consumers at full speed, at all isolation levels at once.
#
# Catches: a committed message that nobody ever gets (a frontier that moved
# past it), one that two consumers hold at the same time, one that takes
# effect twice, one that was never committed, a receipt that settles somebody
# else's delivery, a delivery that is not counted, and deadlocks.
#
# Every send writes its payload to a table, and so does every effect, each in
# the transaction that it belongs to; in the end the two tables must be equal.
# Every delivery is logged in the transaction that takes it.
#
# What one session has lost out of sight another one still gets.  So there are
# witnesses: sessions that go along all the time.  In the end only one of them
# takes anything, while messages are still sent, and claimed in vain by others;
# then the witnesses, one by one, must be able to get all that is left.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $seconds = 8;
my $last_seconds = 4;

my $node =
  new_node('race', 'max_connections = 40', 'autovacuum_naptime = 1s',
	'msgq.count_rollbacks = off');

$node->safe_psql(
	'postgres', q{
	-- Retries come back fast, so that the end can be waited for.
	SELECT msgq.create_queue('race', max_deliveries => 0, visibility_timeout => '2 s',
		retry_delay => '20 ms', max_retry_delay => '200 ms');
	CREATE SEQUENCE payload;
	CREATE TABLE sent (p bigint, level text);
	CREATE TABLE taken (p bigint, how text, level text);
	CREATE TABLE delivery (
		id bigint, deliveries int, starts timestamptz, ends timestamptz);
	CREATE TABLE given_back (id bigint, deliveries int);
	CREATE TABLE stale (id bigint, deliveries int);
});
my $id =
  $node->safe_psql('postgres',
	"SELECT id FROM msgq.queues WHERE name = 'race'");

my $level = "current_setting('transaction_isolation')";

# A new payload in :p, noted as sent.
my $new_payload = qq{
	INSERT INTO sent VALUES (nextval('payload'), $level) RETURNING p \\gset
};
my $send = q{
	SELECT msgq.send('race', jsonb_build_object('p', :p));
};
my $end = q{
	\set r random(1, 4)
	\if :r = 1
		ROLLBACK;
	\else
		COMMIT;
	\endif
};

my $single = "BEGIN; $new_payload $send COMMIT;";

my $rollback = "BEGIN; $new_payload $send $new_payload $send ROLLBACK;";

my $batch = qq{
	\\set n random(1, 20)
	BEGIN;
	WITH s AS (
		INSERT INTO sent SELECT nextval('payload'), $level
		FROM generate_series(1, :n)
		RETURNING p)
	SELECT msgq.send_batch('race', array_agg(jsonb_build_object('p', p)),
		delay => CASE WHEN :n > 15 THEN interval '30 ms' END)
	FROM s;
	$end
};

my $savepoints = qq{
	BEGIN;
	$new_payload $send
	SAVEPOINT a;
	$new_payload $send
	SAVEPOINT b;
	$new_payload $send
	ROLLBACK TO b;
	$new_payload $send
	\\set r random(1, 2)
	\\if :r = 1
		ROLLBACK TO a;
	\\else
		RELEASE a;
	\\endif
	$new_payload $send
	$end
};

# The end of a pop's "lease" is the end of the message.
my $pop_to = sub {
	my ($how) = @_;
	return qq{
		WITH m AS (
			SELECT * FROM msgq.pop('race', :n)),
		d AS (
			INSERT INTO delivery
			SELECT id, deliveries, clock_timestamp(), 'infinity' FROM m)
		INSERT INTO taken
		SELECT (body->>'p')::bigint, '$how', $level FROM m;
	};
};

my $pop = qq{
	\\set n random(1, 10)
	BEGIN;
	@{[ $pop_to->('pop') ]}
	$end
};

# What a transaction has sent it may also pop.
my $send_and_pop = qq{
	\\set n 3
	BEGIN;
	$new_payload $send
	SAVEPOINT a;
	@{[ $pop_to->('no') ]}
	ROLLBACK TO a;
	@{[ $pop_to->('own') ]}
	$end
};

# Claims in :ids, :counts, :receipts and :ps, all in the order of ids, so that
# those who settle one by one do not deadlock.
my $claim = q{
	WITH m AS (
		SELECT * FROM msgq.receive('race', :n, :ms * interval '1 ms')),
	d AS (
		INSERT INTO delivery
		SELECT id, deliveries, visible_at - :ms * interval '1 ms', visible_at
		FROM m)
	SELECT coalesce(array_agg(id ORDER BY id), '{}') AS ids,
		coalesce(array_agg(deliveries ORDER BY id), '{}') AS counts,
		coalesce(array_agg(receipt ORDER BY id), '{}') AS receipts,
		coalesce(array_agg((body->>'p')::bigint ORDER BY id), '{}') AS ps
	FROM m \gset
};
my $claimed = q{unnest(':ids'::bigint[], ':counts'::int[],
	':receipts'::uuid[], ':ps'::bigint[]) AS u(id, deliveries, receipt, p)};

# Some leases run out before they are settled.
my $receive_and = sub {
	my ($settle) = @_;
	return qq{
		\\set n random(1, 10)
		\\set ms random(1, 400)
		\\set ms CASE WHEN :ms % 4 = 0 THEN :ms / 100 ELSE 2000 END
		BEGIN;
		$claim
		COMMIT;
		BEGIN;
		$settle
		$end
	};
};

my $ack = $receive_and->(
	qq{
	WITH a AS MATERIALIZED (
		SELECT id, deliveries, p, msgq.ack('race', receipt) AS ok
		FROM $claimed),
	s AS (
		INSERT INTO stale SELECT id, deliveries FROM a WHERE NOT ok)
	INSERT INTO taken SELECT p, 'ack', $level FROM a WHERE ok;
});

my $ack_batch = $receive_and->(
	qq{
	WITH a AS MATERIALIZED (
		SELECT msgq.ack_batch('race', ':receipts'::uuid[]) AS stale),
	s AS (
		INSERT INTO stale
		SELECT id, deliveries FROM $claimed, a WHERE receipt = ANY (stale))
	INSERT INTO taken
	SELECT p, 'batch', $level FROM $claimed, a WHERE receipt <> ALL (stale);
});

my $nack = $receive_and->(
	qq{
	INSERT INTO given_back
	SELECT id, deliveries FROM $claimed WHERE msgq.nack('race', receipt);
});

my $release = $receive_and->(
	qq{
	WITH r AS MATERIALIZED (
		SELECT msgq.release_batch('race', ':receipts'::uuid[]) AS stale)
	INSERT INTO given_back
	SELECT id, deliveries FROM $claimed, r WHERE receipt <> ALL (stale);
});

my $abandon = q{
	\set n random(1, 10)
	\set ms random(0, 20)
	BEGIN;
} . $claim . 'COMMIT;';

# Claims that are undone, in part or as a whole.
my $undo = qq{
	\\set n random(1, 10)
	\\set ms 100
	BEGIN;
	SAVEPOINT a;
	$claim
	ROLLBACK TO a;
	$claim
	SAVEPOINT b;
	$claim
	$end
};

# Long enough to be passed by everybody else.
my $slow_send = qq{
	BEGIN;
	$new_payload $send
	\\sleep 20 ms
	$new_payload $send
	$end
};

# Claims that are all undone, but not at once.
my $slow_undo = qq{
	\\set n random(1, 5)
	\\set ms 1000
	BEGIN;
	$claim
	SAVEPOINT a;
	$claim
	\\sleep 20 ms
	ROLLBACK TO a;
	SAVEPOINT b;
	$claim
	\\set n random(1, 300)
	$claim
	\\sleep 20 ms
	ROLLBACK;
};

# Row locks that msgq itself does not take.
my $lock = qq{
	\\set r random(0, 49)
	BEGIN;
	SELECT id FROM msgq.q${id}_1 WHERE id % 50 = :r FOR UPDATE SKIP LOCKED;
	\\sleep 10 ms
	ROLLBACK;
};

my %mix = (
	$single => 20,
	$batch => 10,
	$savepoints => 10,
	$rollback => 4,
	$pop => 12,
	$send_and_pop => 6,
	$ack => 12,
	$ack_batch => 12,
	$nack => 4,
	$release => 4,
	$abandon => 3,
	$undo => 6,
	$slow_send => 3,
	$slow_undo => 3);

my %last_mix = (
	$single => 4,
	$batch => 1,
	$savepoints => 2,
	$rollback => 1,
	$slow_send => 20,
	$slow_undo => 8,
	$lock => 4);

# Dead rows and index entries go away under the claims as well.
my %vacuum = ("VACUUM msgq.q${id}_1; SELECT pg_sleep(0.2);" => 1);

my %runs = (
	'read committed' => load(
		$node,
		scripts => \%mix,
		clients => 8,
		seconds => $seconds),
	'repeatable read' => load(
		$node,
		scripts => \%mix,
		clients => 3,
		seconds => $seconds,
		isolation => 'repeatable read'),
	'serializable' => load(
		$node,
		scripts => \%mix,
		clients => 3,
		seconds => $seconds,
		isolation => 'serializable'),
	'vacuum' => load(
		$node,
		scripts => \%vacuum,
		clients => 1,
		seconds => $seconds));

# The witnesses' deliveries are logged like all others.
my @witnesses;

foreach my $isolation (
	'READ COMMITTED',
	'READ COMMITTED',
	'REPEATABLE READ',
	'SERIALIZABLE')
{
	push @witnesses,
	  {
		session => session($node),
		begin => "BEGIN ISOLATION LEVEL $isolation",
		greedy => @witnesses == 0,
		turns => 0
	  };
}

sub witness_receive
{
	my ($most) = @_;
	my $n = 1 + int rand($most);
	my $ms = (0, 5, 500)[ rand 3 ];
	return "INSERT INTO delivery
		SELECT id, deliveries, visible_at - $ms * interval '1 ms', visible_at
		FROM msgq.receive('race', $n, $ms * interval '1 ms')";
}

my @errors;

# What a witness does: it claims up to so many messages at once, and keeps the
# leases or not.
sub turn
{
	my ($most, $keeps) = @_;
	my $sql = '';

	if (rand(2) < 1)
	{
		$sql .= 'SAVEPOINT a; ' . witness_receive($most) . ';';
		$sql .= 'ROLLBACK TO a;' if rand(2) < 1;
	}
	$sql .= witness_receive($most) . ';';
	$sql .= $keeps && rand(3) < 1 ? 'COMMIT' : 'ROLLBACK';
	return $sql;
}

# In the end, the greedy one removes what it gets, so it passes for good what
# the others hold; and then it stops, to leave something.
sub greedy_turn
{
	my $n = 1 + int rand(100);
	return $pop_to->('greedy') =~ s/:n/$n/r . ' COMMIT';
}

# All witnesses take their turns, for some seconds.
sub witness
{
	my ($seconds, $at_the_end) = @_;
	my $until = time + $seconds;

	while (time < $until)
	{
		foreach my $witness (@witnesses)
		{
			next
			  if $at_the_end
			  && $witness->{greedy}
			  && time > $until - $seconds / 2;
			my $sql = turn(30, 1);
			if ($at_the_end)
			{
				$sql = $witness->{greedy} ? greedy_turn() : turn(3000, 0);
			}
			my $code = $witness->{session}->fails("$witness->{begin}; $sql");
			push @errors, $witness->{session}->error
			  if $code !~ /^(40001|)$/;
			$witness->{turns}++;
		}
	}
	return;
}

sub check_runs
{
	my (%runs) = @_;

	foreach my $name (sort keys %runs)
	{
		ok(finish($runs{$name}), "$name: no unexpected error")
		  or diag($runs{$name}{output});
		note("$name: $1 transactions")
		  if $runs{$name}{output} =~ /actually processed: (\d+)/;
		note("$name: $1 retries")
		  if $runs{$name}{output} =~ /total number of retries: (\d+)/;
	}
	is("@errors", '', 'witnesses: no unexpected error');
	note("turns of a witness: $witnesses[0]{turns}");
	return;
}

witness($seconds, 0);
check_runs(%runs);

%runs = (
	'the end' => load(
		$node,
		scripts => \%last_mix,
		clients => 8,
		seconds => $last_seconds));
witness($last_seconds, 1);
check_runs(%runs);

# What is leased comes back within the longest lease.
$node->poll_query_until(
	'postgres',
	q{SELECT delayed = 0 AND in_flight = 0 FROM msgq.queue_stats
	WHERE queue = 'race'}) or die 'the leases do not end';
$node->safe_psql('postgres',
	"CREATE TABLE is_left AS SELECT id, visible_at FROM msgq.q$id");
my ($left, $ready) = split /\|/,
  $node->safe_psql('postgres',
	'SELECT count(*), count(*) FILTER (WHERE visible_at IS NULL) FROM is_left'
  );
note("left for the witnesses: $left, of these ready: $ready");

# What comes to a witness, which gives it back.
sub all_that_comes
{
	my ($session) = @_;
	my ($all, $of_these_ready) = (0, 0);

	$session->safe('BEGIN');
	while (1)
	{
		my ($n, $r) = split /\|/, $session->safe(
			q{SELECT count(*), count(*) FILTER (WHERE l.visible_at IS NULL)
			FROM msgq.receive('race', 10000) JOIN is_left l USING (id)});
		last if $n == 0;
		$all += $n;
		$of_these_ready += $r;
	}
	$session->safe('ROLLBACK');
	return ($all, $of_these_ready);
}

# What is ready comes at the first attempt: giving it back makes the session
# look at it again.  What is due may have to wait for the session's next walk
# over all that is due.
foreach my $witness (@witnesses)
{
	my $session = $witness->{session};
	my ($all, $of_these_ready) = all_that_comes($session);

	is($of_these_ready, $ready,
		"a witness gets all that is ready ($witness->{begin})");
	foreach my $try (1 .. 100)
	{
		last if $all == $left;
		$session->safe('SELECT pg_sleep(0.1)');
		($all) = all_that_comes($session);
	}
	is($all, $left, "a witness gets all that is left ($witness->{begin})");
}

# Then one of them takes it.
my $drain = $witnesses[0]{session};
foreach my $try (1 .. 300)
{
	$drain->safe($pop_to->('drain') =~ s/:n/1000/r);
	last if $drain->safe("SELECT msgq.why_empty('race')") eq 'empty';
	$drain->safe('SELECT pg_sleep(0.05)');
}
is($drain->safe("SELECT msgq.why_empty('race')"),
	'empty', 'the queue can be emptied');
is($drain->safe("SELECT count(*) FROM msgq.q$id"), '0', 'and is');
is( $drain->safe(
		q{SELECT ready, delayed, in_flight FROM msgq.queue_stats
		WHERE queue = 'race'}),
	'0|0|0',
	'so say the statistics');

sub nothing
{
	my ($sql, $what) = @_;
	my $rows = $drain->safe("SELECT * FROM ($sql) AS bad LIMIT 5");
	is($rows, '', $what);
	return;
}

nothing('SELECT p FROM sent EXCEPT SELECT p FROM taken',
	'no message is lost');
nothing('SELECT p FROM taken EXCEPT SELECT p FROM sent',
	'no message is a phantom');
nothing(
	'SELECT p, count(*), array_agg(how) FROM taken GROUP BY p HAVING count(*) > 1',
	'no message takes effect twice');
nothing("SELECT * FROM taken WHERE how = 'no'", 'what was undone is undone');

# deliveries counts each delivery, from 1, without gap.
nothing(
	'SELECT id, deliveries, count(*) FROM delivery
	GROUP BY id, deliveries HAVING count(*) > 1',
	'no two deliveries of a message have the same number');
nothing(
	'SELECT id, count(*), max(deliveries) FROM delivery
	GROUP BY id HAVING count(*) <> max(deliveries)',
	'no delivery goes uncounted');
nothing(
	'SELECT a.id, a.deliveries, a.starts, a.ends, b.starts
	FROM delivery a JOIN delivery b
		ON b.id = a.id AND b.deliveries = a.deliveries + 1
	WHERE b.starts < a.ends
		AND NOT EXISTS (SELECT FROM given_back g
			WHERE g.id = a.id AND g.deliveries = a.deliveries)',
	'nobody gets a message while another holds it');
nothing(
	'SELECT * FROM stale s
	WHERE NOT EXISTS (SELECT FROM delivery d
		WHERE d.id = s.id AND d.deliveries > s.deliveries)',
	'a receipt is stale only if somebody else got the message');

unlike(slurp_file($node->logfile), qr/deadlock detected/, 'no deadlock');

# The run must have seen what it is about.
foreach my $how (qw(pop own ack batch))
{
	cmp_ok(
		$drain->safe(
			"SELECT count(DISTINCT level) FROM taken WHERE how = '$how'"),
		'==', 3,
		"messages were taken by $how at each level");
}
cmp_ok($drain->safe('SELECT count(*) FROM sent'),
	'>', 1000, 'enough was sent');
cmp_ok($drain->safe('SELECT count(*) FROM stale'),
	'>', 0, 'some receipts were stale');
cmp_ok($drain->safe('SELECT count(*) FROM given_back'),
	'>', 0, 'some messages were given back');
note('sent ' . $drain->safe('SELECT count(*) FROM sent'));
note('delivered ' . $drain->safe('SELECT count(*) FROM delivery'));
$_->{session}->quit foreach @witnesses;

check_indexes($node);
$node->stop;

done_testing();
