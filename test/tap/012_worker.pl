# The background worker: when it runs, when it gets out of the way, and how it
# comes back.
#
# Catches: a worker that does not start, does not leave, or stays away after
# an accident; one that keeps a database from being dropped, copied or renamed,
# or the server from stopping; one that runs where it must not (a standby,
# binary upgrade, msgq.worker off), or runs the code of users; one that gives
# up all queues for the sake of one; and notifications that are too many, too
# few, or missing.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

# Backends ask for a worker once in 10 s, if there is no launcher; one that
# has ended by accident comes back within 5 s, or with the launcher's next
# look after 10 s.
my $comes_within = 20;

my $node = new_node('worker', 'restart_after_crash = on');
my $admin = session($node);
$admin->safe(q{SELECT msgq.create_queue('q', visibility_timeout => '1 h')});
my $id =
  $admin->safe("SELECT id FROM msgq.queues WHERE name = 'q'");
my $is_shared = $admin->safe(
	"SELECT detail NOT LIKE 'none%' FROM msgq.health()
	WHERE check_name = 'shared_memory'") eq 't';

# A new session, which knows the settings, after a restart.
sub reconnect
{
	$admin->quit;
	$admin = session($node);
	$admin->safe(q{LOAD 'msgq'});
	return;
}

# Polls until SQL says t, so many seconds at most; returns how long it took.
sub takes
{
	my ($session, $seconds, $sql) = @_;
	my $begun = time;

	while (time - $begun < $seconds)
	{
		return time - $begun if $session->safe($sql) eq 't';
		usleep(20_000);
	}
	return;
}

sub count_of
{
	my ($dbname, $type) = @_;

	return "SELECT count(*) FROM pg_stat_activity
		WHERE backend_type = 'msgq " . ($type // 'worker') . "'"
	  . (defined $dbname ? " AND datname = '$dbname'" : '');
}

sub worker_pid
{
	my ($dbname) = @_;
	return $admin->safe(
		count_of($dbname // 'postgres') =~ s/count\(\*\)/min(pid)/r);
}

# Uses msgq until a worker runs in the database.
sub comes
{
	my ($name, %params) = @_;
	my $dbname = $params{dbname} // 'postgres';
	my $session = $params{session} // session($node, dbname => $dbname);
	my $begun = time;
	my $n = 0;

	while (time - $begun < ($params{within} // $comes_within))
	{
		$session->safe(q{SELECT msgq.cancel('q', -1)});
		$n = $admin->safe(count_of($dbname));
		last if $n > 0;
		usleep(50_000);
	}
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($n, '1', "$name: a worker comes")
	  or diag('after ' . (time - $begun) . ' s');
	$session->quit unless $params{session};
	return;
}

sub leaves
{
	my ($name, %params) = @_;
	my $dbname = $params{dbname} // 'postgres';

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok( defined takes(
			$admin, $params{within} // 15,
			count_of($dbname) =~ s/count\(\*\)/count(*) = 0/r),
		"$name: the worker leaves");
	return;
}

sub log_since
{
	my ($offset) = @_;
	return slurp_file($node->logfile, $offset);
}

# ---------------------------------------------------------------------------
# Coming and going
# ---------------------------------------------------------------------------

is($admin->safe(count_of(undef, 'launcher')),
	is_preloaded() ? '1' : '0', 'a launcher, if preloaded');
comes('first use');
is($admin->safe(
		q{SELECT status, detail FROM msgq.health() WHERE check_name = 'worker'}),
	'ok|running',
	'health tells');
leaves('idle');
is( $admin->safe(
		q{SELECT status || (detail LIKE 'not running%')
		FROM msgq.health() WHERE check_name = 'worker'}),
	'oktrue',
	'health tells');
comes('next use');

# Two at a time are one too many.
$admin->safe("SELECT pg_sleep(0.2)");
is($admin->safe(count_of('postgres')), '1', 'there is one');

# ---------------------------------------------------------------------------
# Switched off
# ---------------------------------------------------------------------------

$admin->safe('ALTER SYSTEM SET msgq.worker = off');
$node->reload;
leaves('switched off');
foreach my $try (1 .. 30)
{
	my $session = session($node);
	$session->safe(q{SELECT msgq.cancel('q', -1)});
	$session->quit;
}
is($admin->safe(count_of('postgres')), '0', 'switched off: none starts');
is( $admin->safe(
		q{SELECT status FROM msgq.health() WHERE check_name = 'worker'}),
	'warning',
	'health warns');
$node->restart;
reconnect();
$admin->safe(q{SELECT msgq.cancel('q', -1)});
is($admin->safe(count_of('postgres')), '0', 'nor after a restart');
$admin->safe('ALTER SYSTEM RESET msgq.worker');
$node->reload;
comes('switched on');

# ---------------------------------------------------------------------------
# Accidents
# ---------------------------------------------------------------------------

my $pid = worker_pid();
kill 'TERM', $pid;
ok(defined takes($admin, 5, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity
	WHERE pid = $pid)"), 'SIGTERM ends the worker');
comes('after SIGTERM', within => 12);

SKIP:
{
	skip 'there is no launcher', 1 unless is_preloaded();
	my $launcher = $admin->safe(
		count_of(undef, 'launcher') =~ s/count\(\*\)/min(pid)/r);

	kill 'TERM', $launcher;
	ok( defined takes(
			$admin, 10,
			"SELECT EXISTS (SELECT FROM pg_stat_activity
			WHERE backend_type = 'msgq launcher' AND pid <> $launcher)"),
		'SIGTERM: another launcher comes');
	leaves('idle after that');
	comes('and starts a worker', within => 5);
}

# A worker that is stopped is in nobody's way, but for DROP DATABASE.
comes('before SIGSTOP');
$pid = worker_pid();
kill 'STOP', $pid;
is( $admin->safe(
		q{SELECT count(msgq.send('q', '1')) FROM generate_series(1, 10);
		WITH r AS MATERIALIZED (SELECT * FROM msgq.receive('q', 10))
		SELECT count(*) FILTER (WHERE msgq.ack('q', receipt)) FROM r}),
	"10\n10",
	'SIGSTOP: messages pass');
is($admin->safe(count_of('postgres')), '1', 'no second worker comes');
kill 'CONT', $pid;
ok( defined takes(
		$admin, 5, "SELECT query_start > now() - interval '1 s' OR
		NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)
		FROM (SELECT max(coalesce(state_change, now())) AS query_start
			FROM pg_stat_activity WHERE pid = $pid) s"),
	'SIGCONT: it goes on');

comes('before SIGKILL');
kill_backend($node, worker_pid());
reconnect();
comes('after SIGKILL and crash recovery');

# ---------------------------------------------------------------------------
# Shutdown
# ---------------------------------------------------------------------------

my $waiter = session($node);
my $caller = session($node);
$waiter->send(q{SELECT * FROM msgq.receive('q', wait => '1 h')});
$caller->send(q{CALL msgq.wait('{q}', '1 h')});
$node->poll_query_until('postgres',
	"SELECT count(*) = 2 FROM pg_stat_activity
	WHERE backend_type = 'client backend' AND wait_event_type = 'Extension'");
comes('before the shutdown');
my $begun = time;
$node->stop('fast');
cmp_ok(time - $begun, '<', 5,
	'a fast shutdown with a worker and waiters is fast');
$_->wait foreach $waiter, $caller;
ok($waiter->dead && $caller->dead, 'the waiters are told');
$_->quit foreach $waiter, $caller;

# Binary upgrade: only superusers can connect, nothing works in the background.
my $log = -s $node->logfile;
system_or_bail('pg_ctl', '-w', '-D', $node->data_dir, '-l', $node->logfile,
	'-o', '-b --cluster-name=upgrade', 'start');
reconnect();
$admin->safe(q{SELECT msgq.cancel('q', -1)});
usleep(300_000);
is( $admin->safe(
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'msgq%'"),
	'0',
	'no launcher and no worker in binary upgrade');
system_or_bail('pg_ctl', '-w', '-D', $node->data_dir, '-m', 'fast', 'stop');
$node->start;
reconnect();

# ---------------------------------------------------------------------------
# Databases
# ---------------------------------------------------------------------------

# A database in which a worker is at work.
sub make_database
{
	my ($name) = @_;

	$admin->safe("CREATE DATABASE $name");
	my $session = session($node, dbname => $name);
	$session->safe(
		q{CREATE EXTENSION msgq;
		SELECT msgq.create_queue('q', visibility_timeout => '1 h');
		SELECT count(msgq.send('q', to_jsonb(repeat('x', 100))))
			FROM generate_series(1, 5000)});
	comes("database $name", dbname => $name, session => $session);
	$session->quit;
	# Until it has ended the worker alone is there.
	takes($admin, 5, "SELECT count(*) = 0 FROM pg_stat_activity
		WHERE datname = '$name' AND backend_type = 'client backend'");
	return;
}

# Seconds that SQL takes, which may not fail; the best of up to three times.
sub in_time
{
	my ($name, $limit, $prepare, $sql) = @_;
	my $took;

	foreach my $try (1 .. 3)
	{
		$prepare->($try);
		my $begun = time;
		my $state = $admin->fails($sql->($try));
		$took = time - $begun;
		is($state, '', "$name does not fail");
		last if $took < $limit;
	}
	cmp_ok($took, '<', $limit, "$name is quick");
	return;
}

$admin->safe("ALTER SYSTEM SET msgq.worker_interval = '10ms'");
$node->reload;
in_time(
	'CREATE DATABASE ... TEMPLATE',
	3,
	sub { make_database("t$_[0]") },
	sub { "CREATE DATABASE c$_[0] TEMPLATE t$_[0]" });
comes('the copy', dbname => 'c1');
in_time(
	'ALTER DATABASE ... RENAME',
	1,
	sub { make_database("a$_[0]") },
	sub { "ALTER DATABASE a$_[0] RENAME TO b$_[0]" });
comes('the renamed one', dbname => 'b1');
in_time(
	'DROP DATABASE',
	1,
	sub { make_database("d$_[0]") },
	sub { "DROP DATABASE d$_[0]" });
in_time('DROP DATABASE of the copy', 1, sub { }, sub { 'DROP DATABASE c1' });
$admin->safe('ALTER SYSTEM RESET msgq.worker_interval');
$node->reload;

# Dropped just when it was used for the first time, and again and again: the
# worker is only being started then.
foreach my $i (1 .. 5)
{
	$admin->safe("CREATE DATABASE e$i TEMPLATE b1")
	  if $i == 1;
	$admin->safe("CREATE DATABASE e$i TEMPLATE e" . ($i - 1)) if $i > 1;
	my $session = session($node, dbname => "e$i");
	$session->safe(q{SELECT msgq.send('q', '1')});
	$session->quit;
	takes($admin, 5, "SELECT count(*) = 0 FROM pg_stat_activity
		WHERE datname = 'e$i' AND backend_type = 'client backend'");
}
foreach my $i (1 .. 5)
{
	is($admin->fails("DROP DATABASE e$i"), '', "DROP DATABASE e$i");
}

# Nobody tries to start workers in what has been dropped, later on; also if it
# was used between the worker's last round and its end.
{
	$admin->safe('CREATE DATABASE f TEMPLATE b1');
	my $session = session($node, dbname => 'f');
	comes('before the last use', dbname => 'f', session => $session);
	takes($session, 5, "SELECT count(*) = 1 FROM pg_stat_activity
		WHERE datname = 'f' AND backend_type = 'msgq worker'
			AND state = 'idle'");
	$session->safe(q{SELECT msgq.send('q', '1')});
	$session->quit;
	is($admin->fails('DROP DATABASE f'), '', 'DROP DATABASE f');
	my $offset = -s $node->logfile;

	# The launcher looks when it is told that msgq is used, and every 10 s.
	leaves('idle');
	comes('later on');
	usleep(300_000);
	{
		unlike(
			log_since($offset),
			qr/FATAL:  database \d+ does not exist/,
			'dropped databases are forgotten');
	}
}

# ---------------------------------------------------------------------------
# The extension
# ---------------------------------------------------------------------------

comes('before DROP EXTENSION', dbname => 'b1');
my $other = session($node, dbname => 'b1');
is($other->fails(q{SET statement_timeout = '10 s'; DROP EXTENSION msgq CASCADE}),
	'', 'DROP EXTENSION while the worker runs');
leaves('DROP EXTENSION', dbname => 'b1', within => 5);
is($other->fails(q{DROP SCHEMA IF EXISTS msgq CASCADE; CREATE EXTENSION msgq;
		SELECT msgq.create_queue('q')}),
	'', 'CREATE EXTENSION again');
comes('CREATE EXTENSION', dbname => 'b1', session => $other);
is($other->fails(
		q{BEGIN; DROP EXTENSION msgq CASCADE;
		DROP SCHEMA IF EXISTS msgq CASCADE; CREATE EXTENSION msgq;
		SELECT msgq.create_queue('q'); COMMIT}),
	'', 'both in one transaction');
# Without a launcher a session asks for a worker every ten seconds at most.
SKIP:
{
	skip 'there is no launcher', 2 if $is_shared && !is_preloaded();

	ok( defined takes(
			$other,
			$is_shared ? 5 : $comes_within,
			"SELECT count(msgq.send('q', '1')) = 1 AND (SELECT detail = 'running'
				FROM msgq.health() WHERE check_name = 'worker')"),
		'one transaction: a worker works for the new extension');
	ok( defined takes(
			$admin, 5, count_of('b1') =~ s/count\(\*\)/count(*) = 1/r),
		'and only one');
}
$other->quit;

# ---------------------------------------------------------------------------
# Queues that cannot be maintained
# ---------------------------------------------------------------------------

# Old segments of both queues: small, and turned.
$admin->safe("ALTER SYSTEM SET msgq.segment_size = '64kB'");
$node->reload;
$admin->safe(
	q{SELECT msgq.create_queue('broken'); SELECT msgq.create_queue('trigger')});
my %ids = map { split /\|/ }
  split /\n/, $admin->safe('SELECT name, id FROM msgq.queues');

sub work_through
{
	my ($queue) = @_;

	$admin->safe(
		qq{SELECT cardinality(msgq.send_batch('$queue', array_agg('1'::jsonb)))
			FROM generate_series(1, 2000);
		SELECT count(*) FROM msgq.pop('$queue', 2000)});
	return;
}

sub segment_states
{
	my ($queue) = @_;
	return "SELECT string_agg(state, ' ' ORDER BY n) FROM msgq.segment
		WHERE queue_id = $ids{$queue}";
}

# An ordinary user whom somebody has trusted with TRIGGER.
$admin->safe(
	qq{CREATE ROLE mallory LOGIN; CREATE SCHEMA mallory AUTHORIZATION mallory;
	GRANT TRIGGER ON msgq.q$ids{trigger}_1, msgq.queue, msgq.segment,
		msgq.queue_total TO mallory;
	GRANT USAGE ON SCHEMA msgq TO mallory;
	CREATE TABLE ran (who text, what text);
	GRANT INSERT ON ran TO PUBLIC});
work_through('trigger');
my $mallory = session($node, user => 'mallory');
$mallory->safe(
	qq{CREATE FUNCTION mallory.f() RETURNS trigger LANGUAGE plpgsql AS \$\$
	BEGIN
		INSERT INTO public.ran VALUES (current_user, TG_OP);
		RETURN coalesce(NEW, OLD);
	END\$\$;
	CREATE TRIGGER t BEFORE TRUNCATE ON msgq.q$ids{trigger}_1
		EXECUTE FUNCTION mallory.f();
	CREATE TRIGGER u BEFORE INSERT OR DELETE OR UPDATE ON msgq.q$ids{trigger}_1
		FOR EACH ROW EXECUTE FUNCTION mallory.f()});
$mallory->quit;
my $offset = -s $node->logfile;
work_through('q') foreach 1 .. 3;
$admin->safe('SELECT msgq.maintain()');
is($admin->safe('SELECT count(*) FROM ran'),
	'0', "maintain() does not run a user's triggers");
ok( defined takes(
		$admin, 30,
		"SELECT count(msgq.send('q', '1')) = 1 AND (SELECT count(*) > 1
			FROM msgq.segment WHERE queue_id = $ids{q})"),
	'the other queue turns');
is($admin->safe('SELECT count(*) FROM ran'),
	'0', "the worker does not run a user's triggers");
unlike($admin->safe(segment_states('trigger')),
	qr/^empty/, 'the segment with a trigger is left alone');
is( $admin->safe(
		"SELECT relfilenode = c.oid FROM pg_class c
		WHERE oid = 'msgq.q$ids{trigger}_1'::regclass"),
	't',
	'it has not been truncated');

# Nothing is moved into an active segment with a trigger.  By hand, so that it
# is known what happens when.
$admin->safe(
	qq{DROP TRIGGER t ON msgq.q$ids{trigger}_1;
	DROP TRIGGER u ON msgq.q$ids{trigger}_1;
	ALTER SYSTEM SET msgq.worker = off});
$node->reload;
leaves('off');
$admin->safe(
	q{SELECT msgq.create_queue('moving');
	SELECT msgq.send('moving', '"late"', delay => '30 days')});
%ids = map { split /\|/ }
  split /\n/, $admin->safe('SELECT name, id FROM msgq.queues');
my $active = "SELECT n FROM msgq.segment
	WHERE queue_id = $ids{moving} AND state = 'active'";

# The ring turns until the late message is in the active segment again.
foreach my $turn (1 .. 3)
{
	my $n = $admin->safe($active);

	$admin->safe(
		q{SELECT cardinality(msgq.send_batch('moving',
			array_agg('1'::jsonb))) FROM generate_series(1, 3000)});
	if ($turn == 3)
	{
		# Where it goes next.
		foreach my $other (
			split /\n/, $admin->safe(
				"SELECT n FROM msgq.segment
				WHERE queue_id = $ids{moving} AND state <> 'active'"))
		{
			$admin->safe("GRANT TRIGGER ON msgq.q$ids{moving}_$other TO mallory");
			$mallory = session($node, user => 'mallory');
			$mallory->safe(
				qq{CREATE TRIGGER u BEFORE INSERT ON msgq.q$ids{moving}_$other
				FOR EACH ROW EXECUTE FUNCTION mallory.f()});
			$mallory->quit;
		}
	}
	$admin->safe(q{SELECT count(*) FROM msgq.pop('moving', 3000)});
	takes($admin, 10,
		"SELECT msgq.maintain() IS NOT NULL AND ($active) <> $n");
	$admin->safe('SELECT msgq.maintain()') foreach 1 .. 3;
}
{
	is($admin->safe(q{SELECT string_agg(who, ' ') FROM ran}),
		'', "moving does not run a user's trigger");
}
is( $admin->safe(
		"SELECT count(*) FROM msgq.q$ids{moving} WHERE body = '\"late\"'"),
	'1',
	'the late message is there');
$admin->safe(
	q{DO $$DECLARE t regclass; BEGIN
		FOR t IN SELECT tgrelid FROM pg_trigger WHERE tgname = 'u' LOOP
			EXECUTE format('DROP TRIGGER u ON %s', t);
		END LOOP; END$$;
	TRUNCATE ran;
	ALTER SYSTEM RESET msgq.worker});
$node->reload;

# A queue of which a table is missing, and one of which all are.
work_through('broken');
$admin->safe("DROP TABLE msgq.q$ids{broken}_1 CASCADE");
work_through('q');
my $turn = $admin->safe("SELECT max(turn) FROM msgq.segment WHERE queue_id = $ids{q}");
ok( defined takes(
		$admin, 30,
		"SELECT count(*) > 0 FROM msgq.segment, LATERAL (
			SELECT count(*) FROM msgq.pop('q', 1000)) p,
			LATERAL (SELECT msgq.send_batch('q', array_agg('1'::jsonb))
			FROM generate_series(1, 1000)) s
		WHERE queue_id = $ids{q} AND turn > $turn"),
	'a broken queue does not stop the others');
like($admin->safe('SELECT msgq.maintain()'),
	qr/"failed": \d/, 'maintain() goes on, too');
$admin->safe(q{SELECT msgq.drop_queue('broken', if_exists => true)})
  if $admin->fails(q{SELECT msgq.purge('broken')}) eq '';
$admin->safe('ALTER SYSTEM RESET msgq.segment_size');
$node->reload;

# A queue that somebody is dropping holds nobody up.
{
	my $dropper = session($node);

	$admin->safe(q{SELECT msgq.create_queue('dropping')});
	$dropper->safe(q{BEGIN; SELECT msgq.drop_queue('dropping')});
	{
		is( $admin->fails(q{SET statement_timeout = '2 s';
				SELECT msgq.maintain()}),
			'', 'maintain() does not wait for a queue that is being dropped');
	}
	$admin->safe('RESET statement_timeout');
	$dropper->safe('ROLLBACK');
	$dropper->quit;
}

# What the owner of a database sets for it is nothing to the worker.
SKIP:
{
	skip 'nothing is counted', 1 unless $is_shared;

	$admin->safe(q{CREATE DATABASE g TEMPLATE b1;
		ALTER DATABASE g SET role = 'mallory'});
	my $offset = -s $node->logfile;
	my $session = session($node, dbname => 'g');
	$session->safe('SET role postgres')
	  if $session->fails('SET role none') ne '';
	comes('a database with SET role', dbname => 'g', session => $session);
	takes($session, 5, "SELECT count(*) = 1 FROM pg_stat_activity
		WHERE datname = 'g' AND backend_type = 'msgq worker'
			AND state = 'idle'");
	$session->quit;
	{
		unlike(log_since($offset), qr/WARNING:  could not maintain/,
			'ALTER DATABASE SET role does not concern the worker');
	}
}

# ---------------------------------------------------------------------------
# Notifications
# ---------------------------------------------------------------------------

SKIP:
{
	skip 'nobody knows what was sent', 1 unless $is_shared;

	$admin->safe(
		q{SELECT msgq.purge('q');
		ALTER SYSTEM SET msgq.notify_interval = '100ms'});
	$node->reload;
	my $listener = session($node);

	# psql shows notifications after each statement.
	$listener->safe("LISTEN msgq_$id");
	comes('before LISTEN', session => $listener);

	# How many notifications come, while this runs for so many seconds.
	my $count = sub {
		my ($seconds, $sql) = @_;
		my $begun = time;
		my $n = 0;

		while (time - $begun < $seconds)
		{
			my $output = $listener->safe($sql);
			$n++ while $output =~ /Asynchronous notification "msgq_$id"/g;
			usleep(20_000);
		}
		return $n;
	};
	$count->(1, 'SELECT 1');
	is($count->(1, 'SELECT 1'), 0, 'without sends there is no notification');
	$admin->safe(q{SELECT msgq.send('q', '1')});
	is($count->(1.5, 'SELECT 1'), 1, 'a send is told once');
	$admin->safe(q{BEGIN; SELECT msgq.send('q', '1'); ROLLBACK});
	is($count->(1, 'SELECT 1'), 0, 'one that is rolled back is not');
	my $n = $count->(2, q{SELECT msgq.send('q', '1')});
	cmp_ok($n, '<=', 24, 'at most one for each interval');
	cmp_ok($n, '>=', 5, 'and about so many');

	$admin->safe(q{ALTER SYSTEM SET msgq.notify_interval = '3s'});
	$node->reload;
	$n = $count->(6, q{SELECT msgq.send('q', '1')});
	{
		cmp_ok($n, '<=', 3, 'also if it is longer than the time of a round');
	}
	cmp_ok($n, '>=', 1, 'some come');

	# The worker has left by the time that the sender commits.
	$admin->safe(q{ALTER SYSTEM SET msgq.notify_interval = '100ms'});
	$node->reload;
	$count->(1, 'SELECT 1');
	my $sender = session($node);
	$sender->safe(q{BEGIN; SELECT msgq.send('q', '1')});
	leaves('during a transaction');
	$count->(1, 'SELECT 1');
	$sender->safe('COMMIT');
  SKIP:
	{
		# A commit can wake the launcher, and cannot start a process itself.
		skip 'there is no launcher', 1 if !is_preloaded();
		is($count->(3, 'SELECT 1'), 1, 'a commit without a worker is told');
	}
	$_->quit foreach $sender, $listener;
	$admin->safe('ALTER SYSTEM RESET msgq.notify_interval');
	$node->reload;
}
$admin->quit;
$node->stop;

# ---------------------------------------------------------------------------
# A standby
# ---------------------------------------------------------------------------

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(
	allows_streaming => 1,
	extra => [ '--locale=C', '--encoding=UTF8' ]);
$primary->append_conf('postgresql.conf',
	"log_statement = none\nmax_connections = 20\n"
	  . (is_preloaded() ? "shared_preload_libraries = 'msgq'\n" : ''));
$primary->start;
$primary->safe_psql(
	'postgres', q{
	CREATE EXTENSION msgq;
	SELECT msgq.create_queue('q', visibility_timeout => '1 h',
		dead_letter_queue => '');
	SELECT msgq.send_batch('q', '{1,2,3}');
	SELECT count(*) FROM msgq.pop('q', 1);
	SELECT msgq.maintain();
	CREATE TABLE last_write ();
});
$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('flush'));

my $reader = session($standby);
is( $reader->safe(
		q{SELECT ready, delayed, in_flight, sent_total, exact
		FROM msgq.queue_stats}),
	'2|0|0|' . ($is_shared ? '3' : '') . '|t',
	'standby: queue_stats');
is($reader->safe(q{SELECT string_agg(body::text, ' ') FROM msgq.peek('q')}),
	'2 3', 'standby: peek');
is( $reader->safe(
		q{SELECT status, detail FROM msgq.health() WHERE check_name = 'worker'}),
	'ok|a standby has none',
	'standby: health');
foreach my $sql (
	q{SELECT * FROM msgq.receive('q', wait => '10 s')},
	q{CALL msgq.wait('{q}', '10 s')},
	q{SELECT msgq.maintain()})
{
	is($reader->fails($sql), '25006', "standby: $sql");
}
is( $reader->safe(
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'msgq%'"),
	'0',
	'standby: no launcher and no worker');

# What the primary counts later is not forgotten by what the standby has read.
$primary->safe_psql(
	'postgres', q{
	SELECT cardinality(msgq.send_batch('q', array_agg(to_jsonb(g))))
	FROM generate_series(4, 100) g;
	SELECT msgq.maintain();
	DROP TABLE last_write;
});
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('flush'));
SKIP:
{
	skip 'there are no totals', 1 unless $is_shared;
	is($reader->safe('SELECT sent_total FROM msgq.queue_stats'),
		'100', 'standby: totals go on');
}
$primary->stop;
$standby->promote;
SKIP:
{
	skip 'there are no totals', 1 unless $is_shared;
	is($reader->safe('SELECT sent_total FROM msgq.queue_stats'),
		'100', 'promoted: totals go on');
}
is($reader->safe('SELECT ready FROM msgq.queue_stats'),
	'99', 'promoted: and so does the rest');
ok( defined takes(
		$reader, $comes_within,
		"SELECT count(msgq.send('q', '1')) = 1 AND EXISTS (
			SELECT FROM pg_stat_activity WHERE backend_type = 'msgq worker')"),
	'promoted: a worker comes');
is($reader->safe(q{SELECT body FROM msgq.receive('q', wait => '10 s')}),
	'2', 'promoted: receive');
$reader->quit;
$standby->stop;

done_testing();
