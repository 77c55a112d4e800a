# Schedules, fired by the worker: in time, and each due time exactly once, while
# workers are killed and the server is restarted.
#
# Catches: a due time that fires twice or never; a message without its row in
# the log, or the other way round; a worker that leaves without saying when it
# should come back, or does not hear of a new schedule; one that stays in the way
# of DROP DATABASE; and schedules that nobody fires while nothing tells of it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $schedules = 200;
my $chaos_time = 20;

# How late a fire may be on a machine that is busy.
my $grace = 20;

my $node = new_node('schedules', 'restart_after_crash = on');
my $admin = session($node);
$admin->safe(q{SELECT msgq.create_queue('q', dead_letter_queue => '')});

sub worker_pids
{
	return split /\n/, $admin->safe(
		"SELECT pid FROM pg_stat_activity WHERE backend_type = 'msgq worker' AND datname = 'postgres'"
	);
}

# Polls until SQL says t; false if it does not.
sub comes_true
{
	my ($sql, $seconds) = @_;
	my $begun = time;

	while (time - $begun < ($seconds // $grace))
	{
		return 1 if $admin->safe($sql) eq 't';
		usleep(50_000);
	}
	return 0;
}

# Without a launcher, a worker that has gone comes back with the next use only.
sub poke
{
	return if is_preloaded();
	my $session = session($node);
	$session->safe(q{SELECT count(*) FROM msgq.health()});
	$session->quit;
	return;
}

sub reconnect
{
	$admin->quit;
	$admin = session($node);
	return;
}

# ---------------------------------------------------------------------------
# In time
# ---------------------------------------------------------------------------

# Nobody uses msgq but whoever makes the schedule.
ok(comes_true(
		"SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'msgq worker'"),
	'there is no worker at first');
$admin->safe(q{SELECT msgq.schedule('first', '@every 2s', 'q', '1')});
ok(comes_true(q{SELECT count(*) >= 3 FROM msgq.fired_1}),
	'a new schedule is fired, again and again');
is( $admin->safe(
		q{SELECT max(fired_at - due_at) < '3 s' FROM msgq.fired_1}),
	't',
	'and soon');
is( $admin->safe(
		q{SELECT status || ' ' || detail FROM msgq.health() WHERE check_name = 'schedules'}),
	'ok none is overdue',
	'health says so');

# A worker that runs hears of another one.
$admin->safe(q{SELECT msgq.schedule('second', '@every 1s', 'q', '2')});
ok( comes_true(
		q{SELECT count(*) > 0 FROM msgq.fired_1 JOIN msgq.schedule ON id = schedule_id WHERE name = 'second'}),
	'so is one that is made while the worker runs');
$admin->safe(q{SELECT msgq.unschedule('first'), msgq.unschedule('second'), msgq.purge('q')});

# One that is committed when the worker that was asked for has left again.
my $slow = session($node);
$slow->safe(q{BEGIN; SELECT msgq.schedule('slow', '@every 1s', 'q', '3')});
ok( comes_true(
		"SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'msgq worker'"),
	'the worker does not see what is not committed, and leaves');
$slow->safe(q{COMMIT});
ok(comes_true(q{SELECT count(*) > 0 FROM msgq.fired_1}),
	'and comes back when it is');
$slow->quit;
$admin->safe(q{SELECT msgq.unschedule('slow'), msgq.purge('q')});

# One that is due in so long a time that the worker leaves, if it can.
$admin->safe(q{SELECT msgq.schedule('seldom', '@every 16s', 'q', '4')});
if (is_preloaded())
{
	ok( comes_true(
			"SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'msgq worker'"
		),
		'the worker leaves');
}
else
{
	usleep(6_000_000);
	is(scalar(worker_pids()), 1, 'the worker stays, for nobody would start it');
}
ok(comes_true(q{SELECT count(*) = 1 FROM msgq.fired_1}, 16 + $grace), 'it fires');
is($admin->safe(q{SELECT max(fired_at - due_at) < '5 s' FROM msgq.fired_1}),
	't', 'and soon');

# A worker that is told to end is there again in time.
SKIP:
{
	skip 'there is no launcher', 2 unless is_preloaded();

	$admin->safe(q{SELECT msgq.schedule('often', '@every 3s', 'q', '5')});
	ok(comes_true(q{SELECT count(*) > 1 FROM msgq.fired_1}), 'it fires');
	kill 'TERM', worker_pids();
	# Here nobody uses msgq: pg_stat_activity and the log are looked at only.
	my $fired = $admin->safe('SELECT count(*) FROM msgq.fired_1');
	ok(comes_true("SELECT count(*) > $fired + 2 FROM msgq.fired_1"),
		'after SIGTERM the launcher starts another one');
	$admin->safe(q{SELECT msgq.unschedule('often')});
}
$admin->safe(q{SELECT msgq.unschedule('seldom'), msgq.purge('q')});

# ---------------------------------------------------------------------------
# Exactly once
# ---------------------------------------------------------------------------

# Due in the same microseconds.
$admin->safe(
	"BEGIN;
	SELECT count(msgq.schedule('s' || i, '\@every 1s', 'q', to_jsonb(i), catch_up => 'all'))
		FROM generate_series(1, $schedules) AS i;
	UPDATE msgq.schedule SET scheduled_at = date_trunc('second', now());
	COMMIT");
my $begun = $admin->safe('SELECT min(scheduled_at) FROM msgq.schedule');

my %did = (TERM => 0, KILL => 0, fast => 0, immediate => 0);
my $chaos_until = time + $chaos_time;
while (time < $chaos_until || grep { $_ == 0 } values %did)
{
	my $dice = rand(10);
	my ($pid) = worker_pids();

	if ($dice < 6 || $did{TERM} == 0)
	{
		$did{TERM} += kill('TERM', $pid) if $pid;
	}
	elsif ($dice < 8)
	{
		if ($pid)
		{
			kill_backend($node, $pid);
			$did{KILL}++;
		}
	}
	else
	{
		my $mode = $dice < 9 ? 'fast' : 'immediate';
		$node->stop($mode);
		$node->start;
		$did{$mode}++;
	}
	reconnect();
	poke();
	usleep(rand(1_500_000));
	last if time > $chaos_until + 120;
}
note(join ', ', map { "$_ $did{$_}" } sort keys %did);
ok(!(grep { $_ == 0 } values %did), 'workers and servers were killed');

# Until all of them have come as far as this.
poke();
my $end = $admin->safe('SELECT clock_timestamp()');
ok( comes_true(
		"SELECT bool_and(next_at > '$end') FROM msgq.schedules", 60),
	'all is caught up with');
# In one statement, and so with one snapshot.
$admin->safe(
	q{CREATE TABLE seen AS
	WITH message AS (
		SELECT headers->>'msgq-schedule' AS name, (headers->>'msgq-scheduled-for')::timestamptz AS due, 'message' AS kind
		FROM msgq.q} . $admin->safe(q{SELECT id FROM msgq.queues WHERE name = 'q'}) . q{
	), fired AS (
		SELECT name, due_at, 'fired' AS kind FROM msgq.schedule JOIN (
			SELECT schedule_id, due_at FROM msgq.fired_1 UNION ALL SELECT schedule_id, due_at FROM msgq.fired_2) AS log
			ON schedule_id = id
	)
	TABLE message UNION ALL TABLE fired});
is( $admin->safe(
		q{SELECT kind, name, due, count(*) FROM seen GROUP BY 1, 2, 3 HAVING count(*) > 1 LIMIT 5}),
	'',
	'no due time has fired twice');
is( $admin->safe(
		q{SELECT name, due FROM seen GROUP BY 1, 2 HAVING count(*) <> 2 LIMIT 5}),
	'',
	'each message has its row in the log, and each row its message');
is( $admin->safe(
		"SELECT name, due FROM msgq.schedules, generate_series('$begun'::timestamptz + interval '1 s', '$end', interval '1 s') AS due
		EXCEPT SELECT name, due FROM seen LIMIT 5"),
	'',
	'none is missing');
cmp_ok($admin->safe(q{SELECT count(*) FROM seen WHERE kind = 'message'}),
	'>=', $schedules * $chaos_time, 'that was much');
is($admin->safe(q{SELECT count(DISTINCT name) FROM seen}),
	$schedules, 'of all schedules');
$admin->safe(q{SELECT count(msgq.unschedule(name)) FROM msgq.schedules; SELECT msgq.purge('q')});

# ---------------------------------------------------------------------------
# Databases, and switched off
# ---------------------------------------------------------------------------

$admin->safe('CREATE DATABASE other');
my $other = session($node, dbname => 'other');
$other->safe(
	q{CREATE EXTENSION msgq; SELECT msgq.create_queue('q'), msgq.schedule('s', '@every 1s', 'q', '1')});
ok( comes_true(
		"SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'msgq worker' AND datname = 'other'"
	),
	'a worker runs in another database');
$other->quit;
comes_true("SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'other' AND backend_type = 'client backend'");
is($admin->fails('DROP DATABASE other'), '', 'which can be dropped all the same');

$admin->safe(q{ALTER SYSTEM SET msgq.worker = off});
$node->reload;
$admin->safe(q{SELECT msgq.schedule('s', '@every 1s', 'q', '1')});
ok( comes_true(
		q{SELECT status = 'warning' FROM msgq.health() WHERE check_name = 'schedules'}),
	'health warns if nobody would fire');
$admin->safe(q{ALTER SYSTEM RESET msgq.worker});
$node->reload;
poke();
$admin->safe(q{SELECT FROM msgq.health()});
ok(comes_true(q{SELECT count(*) > 2 FROM msgq.fired_1}), 'switched on again, it fires');

# One that cannot be sent does not fill the server's log.
my $log = -s $node->logfile;
$admin->safe(q{SELECT msgq.pause('q', 'send')});
usleep(6_000_000);
my @warnings = slurp_file($node->logfile, $log) =~ /could not fire schedule "s"/g;
cmp_ok(scalar(@warnings), '==', 1, 'a warning, and not each second');
$admin->safe(q{SELECT msgq.resume('q', 'send')});
my $fired = $admin->safe('SELECT count(*) FROM msgq.fired_1');
ok(comes_true("SELECT count(*) > $fired + 2 FROM msgq.fired_1"), 'resumed, it fires again');

$admin->quit;
$node->stop;
done_testing();
