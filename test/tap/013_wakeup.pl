# Waiting for messages: what wakes a waiter, whom it wakes, and what a waiter
# leaves behind, however it ends.
#
# Catches: wake-ups that nobody sends, that get lost with a waiter that was
# cancelled, terminated or disconnected, or that go to one who has no use for
# them; waiters that hold a snapshot or a lock; and waits that never end.
#
# With shared state msgq.poll_interval is an hour, so that nothing is found by
# looking now and then.  Without, waiting is polling, every 100 ms.
#
# A wait that takes too long is tried up to three times, since the machine may
# be busy; a wrong result is never tried again.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

# Seconds within which a waiter has to return.
my $limit = 0.5;

my $node = new_node(
	'wakeup',
	"msgq.poll_interval = '1h'",
	'autovacuum = off',
	'max_connections = 50');

$node->safe_psql(
	'postgres', q{
	SELECT msgq.create_queue('q', visibility_timeout => '1 h');
	SELECT msgq.create_queue('r', visibility_timeout => '1 h');
	SELECT msgq.create_queue('s', visibility_timeout => '1 h');
	CREATE ROLE nobody LOGIN;
});
my $id =
  $node->safe_psql('postgres', "SELECT id FROM msgq.queues WHERE name = 'q'");
my $is_shared = $node->safe_psql('postgres',
	"SELECT detail NOT LIKE 'none%' FROM msgq.health()
	WHERE check_name = 'shared_memory'") eq 't';

my $admin = session($node);
my $actor = session($node);
my $waiter = session($node);

my $receive = q{SELECT body FROM msgq.receive('q', 1, '1 h', wait => '10 s')};
my $call = q{CALL msgq.wait('{q}', '10 s')};

# ---------------------------------------------------------------------------
# Waiters
# ---------------------------------------------------------------------------

# Until the backend sleeps in a wait.
sub sleeps
{
	my ($session) = @_;
	my $pid = $session->pid;

	foreach my $try (1 .. 100 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return
		  if $admin->safe(
			"SELECT wait_event_type = 'Extension' FROM pg_stat_activity
			WHERE pid = $pid") eq 't';
		usleep(10_000);
	}
	die "process $pid does not wait";
}

sub start_waiting
{
	my ($session, $sql) = @_;

	$session->send($sql);
	sleeps($session);
	return;
}

sub purge
{
	$admin->safe("SELECT msgq.purge('$_')") foreach 'q', 'r', 's';
	return;
}

# The waiter returns what is expected, between so many seconds and $limit more
# after the action.
sub is_woken
{
	my ($name, %case) = @_;
	my $after = $case{after} // 0;
	my $before = ($case{until} // $after) + $limit;
	my ($result, $took);

	foreach my $try (1 .. 3)
	{
		purge();
		$case{prepare}->() if $case{prepare};
		start_waiting($waiter, $case{waiter} // $receive);
		my $begun = time;
		$case{action}->() if $case{action};
		$result = $waiter->wait;
		$took = time - $begun;
		$case{cleanup}->() if $case{cleanup};
		last
		  if $result ne $case{result}
		  || $case{once}
		  || ($took < $before && $took >= $after * 0.9);
	}
	is($result, $case{result}, "$name: the right result");
	cmp_ok($took, '<', $before, "$name: in time");
	cmp_ok($took, '>=', $after * 0.9, "$name: not before") if $after > 0;
	return;
}

sub send_one
{
	$actor->safe(q{SELECT msgq.send('q', '1')});
	return;
}

# Another session holds a message by a lease; its receipt is in $receipt.
my $receipt;

sub send_and_lease
{
	my ($timeout) = @_;

	$receipt = $actor->safe(
		qq{SELECT msgq.send('q', '1');
		SELECT receipt FROM msgq.receive('q', 1, '$timeout')}) =~ s/.*\n//sr;
	return;
}

foreach my $sql ($receive, $call)
{
	my $is_call = $sql eq $call;
	my $what = $is_call ? 'wait' : 'receive';
	my %same = (waiter => $sql, result => $is_call ? 'q' : '1');

	is_woken("$what, a send", %same, action => \&send_one);
	is_woken(
		"$what, a send that is committed later",
		%same,
		prepare => sub {
			$actor->safe(q{BEGIN; SELECT msgq.send('q', '1')});
		},
		action => sub { $actor->safe('COMMIT') });
	is_woken(
		"$what, a batch",
		%same,
		action => sub {
			$actor->safe(q{SELECT msgq.send_batch('q', '{1}')});
		});
	is_woken(
		"$what, a nack",
		%same,
		prepare => sub { send_and_lease('1 h') },
		action =>
		  sub { $actor->safe(qq{SELECT msgq.nack('q', '$receipt', '0')}) });
	is_woken(
		"$what, a nack with a delay",
		%same,
		after => 0.3,
		prepare => sub { send_and_lease('1 h') },
		action =>
		  sub { $actor->safe(qq{SELECT msgq.nack('q', '$receipt', '300 ms')}) }
	);
	is_woken(
		"$what, a release",
		%same,
		prepare => sub { send_and_lease('1 h') },
		action =>
		  sub { $actor->safe(qq{SELECT msgq.release('q', '$receipt')}) });
	is_woken(
		"$what, expire_lease",
		%same,
		prepare => sub { send_and_lease('1 h') },
		action => sub {
			$actor->safe(q{SELECT msgq.expire_lease('q', id)
				FROM msgq.leases WHERE queue = 'q'});
		});
	foreach my $take ('receive', 'pop')
	{
		is_woken(
			"$what, a $take that is rolled back",
			%same,
			prepare => sub {
				$actor->safe(
					qq{SELECT msgq.send('q', '1');
					BEGIN; SELECT msgq.$take('q')});
			},
			action => sub { $actor->safe('ROLLBACK') });
	}
	is_woken(
		"$what, a session with a claim is terminated",
		%same,
		prepare => sub {
			$actor->safe(
				q{SELECT msgq.send('q', '1'); BEGIN; SELECT msgq.receive('q')}
			);
		},
		action => sub {
			$admin->safe('SELECT pg_terminate_backend(' . $actor->pid . ')');
		},
		cleanup => sub { $actor->quit; $actor = session($node) });
	is_woken(
		"$what, a delayed message",
		%same,
		after => 0.3,
		action => sub {
			$actor->safe(q{SELECT msgq.send('q', '1', delay => '300 ms')});
		});
	is_woken(
		"$what, a lease that ends",
		%same,
		until => 0.5,
		prepare => sub { send_and_lease('500 ms') });
	is_woken(
		"$what, a delayed message of before that falls due",
		%same,
		until => 0.5,
		prepare => sub {
			$actor->safe(q{SELECT msgq.send('q', '1', delay => '500 ms')});
		});
}

# The waiter sleeps while the receive is open, which is undone then.
foreach my $end ('COMMIT', 'ROLLBACK')
{
	{
		is_woken(
			"a receive that is undone to a savepoint, $end",
			once => 1,
			waiter => $receive =~ s/10 s/2 s/r,
			result => '1',
			prepare => sub {
				$actor->safe(
					q{SELECT msgq.send('q', '1');
					BEGIN; SAVEPOINT a; SELECT msgq.receive('q')});
			},
			action => sub { $actor->safe("ROLLBACK TO a; $end") });
	}
}

# A lease that is shortened while somebody waits, and runs out.
{
	is_woken(
		'a lease that is shortened during the wait ends',
		once => 1,
		waiter => $receive =~ s/10 s/2 s/r,
		result => '1',
		after => 0.3,
		prepare => sub { send_and_lease('1 h') },
		action => sub {
			$actor->safe(qq{SELECT msgq.extend('q', '$receipt', '300 ms')});
		});
}

# ---------------------------------------------------------------------------
# The procedure
# ---------------------------------------------------------------------------

is_woken(
	'wait for several queues',
	waiter => q{CALL msgq.wait('{r,s,q}', '10 s')},
	result => 'q',
	action => \&send_one);
is($waiter->safe(q{CALL msgq.wait('{r,q}', '0')}),
	'q', 'wait with timeout 0 tells what there is');
$actor->safe(q{SELECT msgq.send('r', '1')});
is($waiter->safe(q{CALL msgq.wait('{r,q}', '10 s')}),
	'r', 'an earlier queue comes first');
is($waiter->safe(q{CALL msgq.wait('{q,r,q}', '10 s', 'whatever')}),
	'q', 'a queue may stand twice');
purge();
my $begun = time;
is($waiter->safe(q{CALL msgq.wait('{r,q}', '300 ms')}),
	'', 'NULL after the timeout');
cmp_ok(time - $begun, '>=', 0.3, 'which has passed');

my @wrong = (
	[ q{CALL msgq.wait(NULL, '1 s')}, '22004', 'NULL for the array' ],
	[ q{CALL msgq.wait('{q,NULL}', '1 s')}, '22004', 'a NULL in it' ],
	[ q{CALL msgq.wait('{q}', NULL)}, '22004', 'NULL for the timeout' ],
	[ q{CALL msgq.wait('{q}', '-1 s')}, '22023', 'a negative timeout' ],
	[ q{CALL msgq.wait('{{q},{r}}', '1 s')}, '22023', 'two dimensions' ],
	[ q{CALL msgq.wait('{q,none}', '1 s')}, '42704', 'an unknown queue' ],
	[ q{SELECT msgq.wait('{q}', '1 s')}, '42809', 'as a function' ],
	[ q{BEGIN; CALL msgq.wait('{q}', '1 s')}, '25001', 'in a transaction' ],
	[
		q{BEGIN; DO $$BEGIN CALL msgq.wait('{q}', '1 s', NULL); END$$},
		'', 'in a DO in a transaction' ],
	[
		q{CREATE FUNCTION pg_temp.f() RETURNS text LANGUAGE plpgsql AS $$
		DECLARE r text; BEGIN CALL msgq.wait('{q}', '1 s', r); RETURN r; END$$;
		SELECT pg_temp.f()}, '25001', 'in a function' ]);
$wrong[8][1] = '25001';
$wrong[8][0] =~ s/BEGIN CALL/DECLARE r text; BEGIN CALL/;
$wrong[8][0] =~ s/NULL\)/r)/;

foreach my $case (@wrong)
{
	is($waiter->fails($case->[0]), $case->[1], "wait, $case->[2]");
	$waiter->query('ROLLBACK');
}
is( $waiter->safe(
		q{DO $$DECLARE r text; BEGIN
		CALL msgq.wait('{q}', '10 ms', r);
		PERFORM msgq.send('q', '1');
		COMMIT;
		CALL msgq.wait('{r,q}', '10 s', r);
		PERFORM set_config('a.ready', r, false); END$$;
		SHOW a.ready}),
	'q',
	'wait in a DO that is no transaction block');
purge();
{
	my $empty = $waiter->query(q{CALL msgq.wait('{}', '10 ms')});
	ok($waiter->sqlstate eq '' || $waiter->sqlstate eq '22023',
		'wait for no queue returns or is refused');
}
is($waiter->fails(q{DO $$DECLARE r text; BEGIN
		BEGIN CALL msgq.wait('{q}', '1 s', r);
		EXCEPTION WHEN division_by_zero THEN NULL; END; END$$}),
	'25001', 'wait in a block with EXCEPTION');
is($waiter->safe(q{CALL msgq.wait('{q}', '10 ms')}),
	'', 'the session goes on');
foreach my $sql ($receive, $call)
{
	my $nobody = session($node, user => 'nobody');

	is($nobody->fails($sql), '42501', "without the right: $sql");
	$nobody->quit;
}

# ---------------------------------------------------------------------------
# What a waiter holds
# ---------------------------------------------------------------------------

start_waiting($waiter, $call);
is( $admin->safe(
		'SELECT backend_xmin IS NULL, backend_xid IS NULL
		FROM pg_stat_activity WHERE pid = ' . $waiter->pid),
	't|t',
	'wait holds no snapshot and no transaction id');
is( $admin->safe(
		"SELECT count(*) FROM pg_locks WHERE locktype = 'relation'
		AND database <> 0 AND pid = " . $waiter->pid),
	'0',
	'wait holds no lock on a table');
$admin->safe(q{SELECT msgq.create_queue('other'); SELECT msgq.drop_queue('other')}
);
send_one();
is($waiter->wait, 'q', 'and it is woken');
purge();

start_waiting($waiter, $receive);
{
	is( $admin->safe(
			"SELECT string_agg(relname, ' ') FROM pg_locks
				JOIN pg_class c ON c.oid = relation
			WHERE relname ~ '^q${id}_' AND pid = " . $waiter->pid),
		'',
		'a waiting receive holds no lock on what a queue consists of');
}
send_one();
is($waiter->wait, '1', 'and it is woken');

foreach my $sql ($receive, $call, q{CALL msgq.wait('{q,gone}', '10 s')})
{
	my $gone = $sql =~ s/\bq\b(?!,gone)/gone/r =~ s/10 s/4 s/r;

	$admin->safe(q{SELECT msgq.create_queue('gone')});
	purge();
	start_waiting($waiter, $gone);
	$begun = time;
	$actor->query(q{SET statement_timeout = '2 s';
		SELECT msgq.drop_queue('gone')});
	my $state = $actor->sqlstate;
	$waiter->wait;
	{
		is($state, '', "the queue of a waiter is dropped: $gone");
		is($waiter->sqlstate, '42704', 'which ends the wait');
		cmp_ok(time - $begun, '<', 2 * $limit, 'at once');
	}
	$actor->safe(q{SET statement_timeout = 0;
		SELECT msgq.drop_queue('gone', if_exists => true)});
}

# A queue of the same name is another one.
$admin->safe(q{SELECT msgq.create_queue('gone')});
start_waiting($waiter, q{CALL msgq.wait('{gone}', '10 s')});
$admin->safe(
	q{BEGIN; SELECT msgq.drop_queue('gone');
	SELECT msgq.create_queue('gone'); COMMIT});
usleep(100_000);
$begun = time;
$admin->safe(q{SELECT msgq.send('gone', '1')});
$waiter->wait;
ok($waiter->sqlstate eq '42704' || time - $begun < 2 * $limit,
	'a queue that was dropped and made again wakes, or ends, the wait');
$admin->safe(q{SELECT msgq.drop_queue('gone')});

# ---------------------------------------------------------------------------
# Those who leave
# ---------------------------------------------------------------------------

# The two sessions, the one first that is woken first.
sub by_turn
{
	my @pair = @_;

	purge();
	start_waiting($_, $receive) foreach @pair;
	send_one();
	usleep(300_000);
	my $pid = $admin->safe(
		"SELECT pid FROM pg_stat_activity WHERE state = 'active'
		AND pid IN (" . join(', ', map { $_->pid } @pair) . ')');
	send_one();
	$_->wait foreach @pair;
	purge();
	return $pid == $pair[0]->pid ? reverse @pair : @pair;
}

# Two waiters.  One of them ends just when it is woken; the other one has to
# have the message.  Each takes each role.
sub passes_on
{
	my ($name, $end) = @_;

	foreach my $victim (0, 1)
	{
		purge();
		my @pair = by_turn(session($node), session($node));
		my ($first, $other) = @pair[ $victim, 1 - $victim ];

		start_waiting($_, $receive =~ s/10 s/5 s/r) foreach @pair;
		# Stopped, it cannot do anything with a wake-up before the signal.
		kill 'STOP', $first->pid;
		$actor->safe(q{SELECT msgq.send('q', '1')});
		my $at = time;
		$end->($first);
		kill 'CONT', $first->pid;
		my $result = $other->wait;
		my $took = time - $at;
		if ($result eq '')
		{
			# The one that was to end may have been faster.
			$result = $first->wait;
			is($result, '1', "$name, $victim: one has it");
		}
		else
		{
			is($result, '1', "$name, $victim: the other one has it");
			cmp_ok($took, '<', 2, "$name, $victim: soon");
		}
		$_->quit foreach @pair;
	}
	return;
}

passes_on('cancelled',
	sub { $admin->safe('SELECT pg_cancel_backend(' . $_[0]->pid . ')') });
passes_on('terminated',
	sub { $admin->safe('SELECT pg_terminate_backend(' . $_[0]->pid . ')') });
{
	passes_on('disconnected', sub { $_[0]{run}->kill_kill(grace => 0) });
}

# The same, with a waiter that has been woken and is about to take the message.
SKIP:
{
	skip 'there is nobody to wake', 1 unless $is_shared;
	foreach my $victim (0, 1)
	{
		purge();
		my @pair = by_turn(session($node), session($node));
		my ($first, $other) = @pair[ $victim, 1 - $victim ];

		$first->safe(q{SET msgq.test_point = 'receive-walked'});
		start_waiting($_, $receive =~ s/10 s/2500 ms/r) foreach @pair;
		$admin->safe(
			q{SELECT pg_advisory_lock(1836151920, n) FROM generate_series(1, 20) n}
		);
		send_one();
		# Either the first is woken, and stopped, or the other has it.
		foreach my $try (1 .. 50)
		{
			usleep(20_000);
			last
			  if $admin->safe(
				'SELECT wait_event_type FROM pg_stat_activity WHERE pid = '
				  . $first->pid) eq 'Lock';
		}
		my $at = time;
		$admin->safe('SELECT pg_cancel_backend(' . $first->pid . ')');
		$other->wait;
		cmp_ok(time - $at, '<', 1, "a look is cancelled, $victim: passed on");
		$admin->safe('SELECT pg_advisory_unlock_all()');
		$_->quit foreach @pair;
	}
}

# A client that goes away while it waits.
purge();
{
	my $leaver = session($node);
	my $pid = $leaver->pid;

	start_waiting($leaver, $receive);
	$begun = time;
	$leaver->{run}->kill_kill(grace => 0);
	foreach my $try (1 .. 500)
	{
		last
		  if $admin->safe("SELECT count(*) FROM pg_stat_activity
			WHERE pid = $pid") eq '0';
		usleep(10_000);
	}
	cmp_ok(time - $begun, '<', 1, 'a backend ends soon after its client');
	send_one();
	is($actor->safe(q{SELECT body FROM msgq.receive('q')}),
		'1', 'and takes no message');
}

# ---------------------------------------------------------------------------
# Whom a message wakes
# ---------------------------------------------------------------------------

# Those who found the message that was due, and those who did not know of it.
SKIP:
{
	skip 'there is nobody to wake', 1 unless $is_shared;

	foreach my $victim (0, 1)
	{
		my @pair = by_turn(session($node), session($node));
		my ($short, $long) = @pair[ $victim, 1 - $victim ];
		my $begun;

		# One is told of the due time, and leaves before it.
		purge();
		start_waiting($long, $receive =~ s/10 s/2500 ms/r);
		start_waiting($short, $receive =~ s/10 s/800 ms/r);
		$actor->safe(q{SELECT msgq.send('q', '1', delay => '1200 ms')});
		$begun = time;
		$long->wait;
		{
			cmp_ok(time - $begun, '<', 1.2 + $limit,
				"waiter $victim leaves before the message is due");
		}
		$short->wait;

		# One takes the first of two messages that fall due.
		purge();
		start_waiting($long, $receive =~ s/10 s/2500 ms/r);
		start_waiting($short, $receive =~ s/10 s/2500 ms/r);
		$actor->safe(q{SELECT msgq.send('q', '1', delay => '300 ms')});
		$actor->safe(q{SELECT msgq.send('q', '2', delay => '600 ms')});
		$begun = time;
		$_->wait foreach @pair;
		{
			cmp_ok(time - $begun, '<', 0.6 + $limit,
				'two delayed messages, two waiters');
		}

		# One takes a message by a lease that soon ends; the first one is
		# woken for it.
		if ($victim == 0)
		{
			purge();
			start_waiting($long, $receive =~ s/10 s/2500 ms/r);
			start_waiting($short,
				q{SELECT body FROM msgq.receive('q', 1, '300 ms', wait => '2500 ms')});
			send_one();
			$begun = time;
			$_->wait foreach @pair;
			cmp_ok(time - $begun, '<', 0.3 + $limit,
				"waiter $victim takes a short lease");
		}

		# One waits for two queues, the other one for the second of them.
		purge();
		start_waiting($short, q{CALL msgq.wait('{r,q}', '2500 ms')});
		start_waiting($long, $receive =~ s/10 s/2500 ms/r);
		$actor->safe(q{BEGIN; SELECT msgq.send('r', '1');
			SELECT msgq.send('q', '1'); COMMIT});
		$begun = time;
		is($short->wait, 'r', 'the first queue');
		is($long->wait, '1', 'the other queue');
		{
			cmp_ok(time - $begun, '<', $limit,
				"waiter $victim of two queues leaves the other one's message");
		}
		$_->quit foreach @pair;
	}

	# More queues in one transaction than there is room for.
	purge();
	$admin->safe(
		q{SELECT msgq.create_queue('n' || n) FROM generate_series(1, 40) n});
	start_waiting($waiter,
		q{SELECT body FROM msgq.receive('n40', wait => '2500 ms')});
	$actor->safe(
		q{BEGIN; SELECT msgq.send('n' || n, '1') FROM generate_series(1, 40) n});
	# A waiter that is woken early has looked by now.
	usleep(200_000);
	sleeps($waiter);
	$actor->safe('SELECT msgq.send(\'n\' || n, \'2\') FROM generate_series(1, 40) n');
	usleep(200_000);
	sleeps($waiter);
	$begun = time;
	$actor->safe('COMMIT');
	is($waiter->wait, '1', 'a message to many queues');
	cmp_ok(time - $begun, '<', $limit, 'a message to many queues: in time');
	start_waiting($waiter,
		q{SELECT body FROM msgq.receive('n35', wait => '2500 ms')})
	  if $admin->safe(q{SELECT msgq.purge('n35')}) ne '';
	$actor->safe(
		q{BEGIN; SELECT msgq.send('n' || n, '1') FROM generate_series(1, 40) n});
	usleep(200_000);
	sleeps($waiter);
	$begun = time;
	$actor->safe('COMMIT');
	is($waiter->wait, '1', 'one of many queues');
	{
		cmp_ok(time - $begun, '<', $limit, 'one of many queues: in time');
	}
	$admin->safe(
		q{SELECT msgq.drop_queue('n' || n) FROM generate_series(1, 40) n});

	# One message, five waiters: one is woken.
	purge();
	my @crowd = map { session($node) } 1 .. 5;
	my $counts = q{SELECT (regexp_matches(detail, '^(\d+) waits'))[1]
		FROM msgq.health() WHERE check_name = 'wakeups'};
	my $before = $admin->safe($counts);

	start_waiting($_, $receive =~ s/10 s/1 s/r) foreach @crowd;
	send_one();
	is(join('', map { $_->wait } @crowd), '1', 'one of five waiters has it');
	is($admin->safe($counts) - $before, 1, 'and health counts one wake-up');

	start_waiting($_, $receive) foreach @crowd;
	$begun = time;
	$actor->safe(q{SELECT msgq.send_batch('q', '{1,1,1,1,1}')});
	is(join('', map { $_->wait } @crowd),
		'11111', 'five messages wake five waiters');
	cmp_ok(time - $begun, '<', 2 * $limit, 'at once');
	$_->quit foreach @crowd;
}

# ---------------------------------------------------------------------------
# A race
# ---------------------------------------------------------------------------

# Waiters that come and go, some of them cancelled by a timeout, and one that
# stays: whatever the others leave behind, it gets.
purge();
$admin->safe(
	q{CREATE TABLE sent (n int);
	CREATE TABLE got (n int);
	CREATE PROCEDURE produce(first int, last int) LANGUAGE plpgsql AS $$
	BEGIN
		FOR i IN first .. last LOOP
			PERFORM msgq.send('q', to_jsonb(i));
			IF i % 50 = 0 THEN
				PERFORM pg_sleep(random() * 0.01);
			END IF;
			COMMIT;
		END LOOP;
	END$$;
	CREATE PROCEDURE consume() LANGUAGE plpgsql AS $$
	DECLARE idle int := 0; m int;
	BEGIN
		WHILE idle < 3 LOOP
			m := NULL;
			BEGIN
				PERFORM set_config('statement_timeout', '0', true);
				WITH r AS MATERIALIZED (SELECT * FROM msgq.receive('q',
					1 + floor(random() * 5)::int,
					wait => format('%s ms', floor(random() * 20))::interval)),
				a AS MATERIALIZED (SELECT body FROM r
					WHERE msgq.ack('q', receipt)),
				i AS (INSERT INTO got SELECT body::text::int FROM a RETURNING n)
				SELECT count(*) INTO m FROM i;
				IF random() < 0.05 THEN
					RAISE division_by_zero;
				END IF;
			EXCEPTION WHEN division_by_zero THEN m := 1;
			END;
			COMMIT;
			IF m > 0 THEN idle := 0; ELSIF
				(SELECT count(*) FROM got) >= 20000 THEN idle := idle + 1;
			END IF;
		END LOOP;
	END$$;});
my $total = 20_000;
my $produce = join "\n",
  map { 'CALL produce(' . ($_ * 5000 + 1) . ', ' . ($_ * 5000 + 5000) . ');' }
  0 .. 3;
my @consumers = map { session($node) } 1 .. 4;
my $steady = session($node);
my @producers = map { session($node) } 1 .. 2;

# Some waits are cancelled; what they had claimed comes back.
my $cancelled = load(
	$node,
	clients => 2,
	seconds => 600,
	scripts => {
		q{SET statement_timeout = '15 ms';
DO $$BEGIN
	WITH r AS MATERIALIZED (SELECT * FROM msgq.receive('q', 2, wait => '1 h')),
	a AS MATERIALIZED (SELECT body FROM r WHERE msgq.ack('q', receipt))
	INSERT INTO got SELECT body::text::int FROM a;
EXCEPTION WHEN query_canceled THEN NULL;
END$$;
} => 1
	});

$_->send('CALL consume()') foreach @consumers;
$producers[$_]->send(
	"CALL produce(" . ($_ * 10_000 + 1) . ', ' . ($_ + 1) * 10_000 . ')')
  foreach 0, 1;
# It sleeps much and is polled never: a wake-up that gets lost leaves messages
# to it that nobody else is awake to take.
$_->wait foreach @producers;
ok( $node->poll_query_until(
		'postgres', "SELECT count(*) >= $total FROM got"),
	'all messages are received');
stop_load($cancelled);
$_->wait foreach @consumers;
is( $admin->safe('SELECT count(*), count(DISTINCT n), min(n), max(n) FROM got'),
	"$total|$total|1|$total",
	'each of them once');
is($admin->safe(q{SELECT count(*) FROM msgq.peek('q', 1)}),
	'0', 'nothing is left');

# The same with nobody who comes by chance: as many waits as messages.
$admin->safe('TRUNCATE got');
$admin->safe(
	q{CREATE PROCEDURE consume_waiting(times int) LANGUAGE plpgsql AS $$
	BEGIN
		FOR i IN 1 .. times LOOP
			WITH r AS MATERIALIZED
				(SELECT * FROM msgq.receive('q', wait => '30 s')),
			a AS MATERIALIZED (SELECT body FROM r
				WHERE msgq.ack('q', receipt))
			INSERT INTO got SELECT body::text::int FROM a;
			COMMIT;
		END LOOP;
	END$$});
$begun = time;
$_->send('CALL consume_waiting(1000)') foreach @consumers;
$producers[$_]->send(
	'CALL produce(' . ($_ * 2000 + 1) . ', ' . ($_ + 1) * 2000 . ')')
  foreach 0, 1;
$_->wait foreach @producers, @consumers;
cmp_ok(time - $begun, '<', 25, 'no waiter hangs');
is($admin->safe('SELECT count(*), count(DISTINCT n) FROM got'),
	'4000|4000', 'each message wakes a waiter');

is( $admin->safe(
		q{SELECT status FROM msgq.health() WHERE check_name = 'audit'}),
	'ok',
	'no message was passed by');
$_->quit
  foreach $admin, $actor, $waiter, $steady, @producers, @consumers;
$node->stop;

done_testing();
