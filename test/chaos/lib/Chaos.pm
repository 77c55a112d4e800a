# Chaos.pm: a chaos run, from an empty server to the checker's verdict.
#
#	run(%params)	does one, and returns what check() does
#	check(DIR)		the verdict about what a run has left in DIR: ok, report,
#					violations (a hash: class => number)
#
# Parameters of run:
#
#	name		of the server
#	seed		all choices are drawn from it
#	scenario	what may happen (Scenarios.pm); mixed
#	seconds		of load and faults
#	faults		names of these, in place of the scenario's
#	facts		in place of the scenario's
#	options		role => [ options of the driver ]
#	prepare		called with the node, before the load
#	meanwhile	the same, again and again during the load
#	conf		more lines of the server's configuration
#	drain_seconds	so long, at most, all is read that is left (90)
#	without_probe	does not measure how soon messages come
#
# What is left in DIR, below the directory of the test's own logs: log/<client>,
# nemesis.log, server.log, dump, report.  README.md describes them.
#
# Replaying.  With the same seed, number of seconds, and home of the shared
# state, each client does the same in its transaction number n, as far as what
# it receives allows, and the nemesis does the same in the same order.  Timing
# is the machine's, so which transaction a fault hits differs.

package Chaos;

use strict;
use warnings;

use FindBin;
use IPC::Run;
use MsgqTest qw(new_node is_preloaded);
use POSIX qw(WNOHANG);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

use Faults;
use Scenarios;

my $top = "$FindBin::RealBin/../chaos";

# role => [ how many, options... ]
my %clients = (
	producer => [3],
	keys => [2],
	consumer => [3],
	ordered => [2],
	effects => [2],
	prepared => [2],
	appender => [2],
	reader => [3],
	poller => [ 2, '--group', 'p1' ]);

sub build_driver
{
	my @make = ('make', '-s', '-C', $top);
	push @make, "PG_CONFIG=$ENV{PG_CONFIG}" if defined $ENV{PG_CONFIG};
	local %ENV = %ENV;
	delete @ENV{qw(MAKEFLAGS MFLAGS MAKELEVEL)};
	system(@make) == 0 or die "could not build the driver";
	return;
}

# ---------------------------------------------------------------------------
# The server
# ---------------------------------------------------------------------------

# Commits take their time, as they would, so that outcomes are unknown now and
# then; a power failure, for which fsync matters, is not among the faults.
my @settings = (
	'fsync = on',
	'max_connections = 60',
	'max_prepared_transactions = 40',
	'restart_after_crash = on',
	"log_line_prefix = '%n %p '",
	'autovacuum_naptime = 1s',
	'checkpoint_timeout = 1h',
	'deadlock_timeout = 100ms',
	'msgq.worker_interval = 500ms',
	'msgq.segment_size = 256kB');

my $schema = q{
	SELECT msgq.create_queue('work', max_deliveries => 6, retry_delay => '50 ms',
		max_retry_delay => '300 ms', archive_retention => '1 day');
	SELECT msgq.create_queue('ordered', ordered => true, max_deliveries => 0,
		retry_delay => '50 ms', max_retry_delay => '300 ms', archive_retention => '1 day');
	SELECT msgq.create_queue('effects', max_deliveries => 0, retry_delay => '50 ms',
		max_retry_delay => '300 ms');
	SELECT msgq.create_queue('keys');
	SELECT msgq.create_queue('probe');
	SELECT msgq.create_stream('events', partitions => 3);
	SELECT msgq.create_group('events', g, 'first') FROM unnest('{g1,g2,p1}'::text[]) AS g;

	CREATE SCHEMA chaos;
	-- One row for each transaction that does more than lease.
	CREATE TABLE chaos.mark (tx text);
	-- What a consumer has done with a message, in the transaction that takes it.
	CREATE TABLE chaos.effect (tx text, value text);

	-- Cancels or terminates clients that are at work; how many it has hit.
	CREATE FUNCTION chaos.strike(what text, times int, number int) RETURNS int
	LANGUAGE plpgsql AS $$
	DECLARE
		hits int := 0;
		victim int;
	BEGIN
		FOR i IN 1 .. times LOOP
			FOR try IN 1 .. 30 LOOP
				PERFORM pg_stat_clear_snapshot();
				SELECT pid INTO victim FROM pg_stat_activity
				WHERE application_name ^@ 'chaos-' AND (state = 'active' OR what = 'terminate')
				ORDER BY md5(application_name || number + i) LIMIT 1;
				EXIT WHEN FOUND;
				PERFORM pg_sleep(0.001);
			END LOOP;
			hits := hits + CASE WHEN victim IS NULL THEN 0
				WHEN what = 'cancel' THEN pg_cancel_backend(victim)::int
				ELSE pg_terminate_backend(victim)::int END;
			PERFORM pg_sleep(0.005);
		END LOOP;
		RETURN hits;
	END $$;
};

sub start_server
{
	my ($run) = @_;
	my $scenario = $run->{scenario};
	my $node = new_node(
		$run->{name},
		{
			%{ $scenario->{init} // {} },
			environment => $scenario->{environment},
			initialize => $scenario->{initialize}
		},
		@settings,
		@{ $scenario->{conf} // [] },
		@{ $run->{conf} // [] });

	$run->{node} = $node;
	$run->{nodes} = [$node];
	$node->safe_psql('postgres', $schema);
	$run->{prepare}->($node) if $run->{prepare};
	$scenario->{start}->($run) if $scenario->{start};
	$scenario->{ready}->($run) if $scenario->{ready};
	return;
}

# ---------------------------------------------------------------------------
# Clients
# ---------------------------------------------------------------------------

sub start_client
{
	my ($run, $role, $name, @options) = @_;
	my $seed = $run->{seed} * 1000 + ++$run->{client_count};
	# Every other client has durable leases.
	my $async = $run->{client_count} % 2 ? 'on' : 'off';
	my @command = (
		"$top/driver", $role, $name, $seed, "$run->{dir}/log/$name",
		'--async', $async, @options, @{ $run->{scenario}{options} // [] },
		@{ $run->{options}{$role} // [] });
	my $pid = fork // die "could not fork: $!";

	if ($pid == 0)
	{
		open STDOUT, '>>', "$run->{dir}/driver.out" or die $!;
		open STDERR, '>&', \*STDOUT or die $!;
		$ENV{PGHOST} = join ',', map { $_->host } @{ $run->{nodes} };
		$ENV{PGPORT} = join ',', map { $_->port } @{ $run->{nodes} };
		$ENV{PGTARGETSESSIONATTRS} = 'read-write' if @{ $run->{nodes} } > 1;
		exec @command or die "could not start @command: $!";
	}
	$run->{pids}{$pid} = $name;
	return;
}

sub start_load
{
	my ($run) = @_;

	foreach my $role (sort keys %clients)
	{
		my ($count, @all) = @{ $clients{$role} };

		foreach my $i (1 .. $count)
		{
			my @options = @all;
			push @options, '--group', $i == 3 ? 'g2' : 'g1' if $role eq 'reader';
			start_client($run, $role, "$role$i",
				@options);
		}
	}
	return;
}

# Until all clients have ended, but for so many seconds only; those that have
# not then are told to, and then made to.
sub wait_for_clients
{
	my ($run, $seconds) = @_;
	my $until = time + $seconds;

	while (my @pids = keys %{ $run->{pids} })
	{
		foreach my $pid (@pids)
		{
			next if waitpid($pid, WNOHANG) != $pid;
			note("client $run->{pids}{$pid} ended with $?") if $? != 0;
			$run->{failed_clients}++ if $? != 0;
			delete $run->{pids}{$pid};
		}
		usleep(20_000);
		kill 'TERM', keys %{ $run->{pids} } if time > $until;
		kill 'KILL', keys %{ $run->{pids} } if time > $until + 140;
	}
	return;
}

sub stop_load
{
	my ($run) = @_;
	kill 'TERM', keys %{ $run->{pids} };
	wait_for_clients($run, 140);
	return;
}

# ---------------------------------------------------------------------------
# The nemesis
# ---------------------------------------------------------------------------

sub nemesis_log
{
	my ($run, $line) = @_;
	append_to_file("$run->{dir}/nemesis.log",
		sprintf("%d %s\n", time * 1e6, $line));
	return;
}

sub disturb
{
	my ($run) = @_;
	my $begun = time;
	my $weights = $run->{scenario}{faults};

	$weights = { map { $_ => 1 } @{ $run->{faults} } } if $run->{faults};
	foreach my $fault (Faults::plan($run->{seed}, $run->{seconds},
			$run->{scenario}{pace} // 1, $weights))
	{
		while (time < $begun + $fault->{at})
		{
			usleep(20_000);
			$run->{meanwhile}->($run->{node}) if $run->{meanwhile};
		}
		last if time > $begun + $run->{seconds};
		(my $name = $fault->{name}) =~ s/ /-/g;
		nemesis_log($run, "fault $name $fault->{number}");
		my $done = Faults::strike($run, $fault);
		nemesis_log($run, "done $name " . ($done // 'nothing'));
		# Faults that take long push the others back.
		my $late = time - $begun - $fault->{at};
		$begun += $late if $late > 0;
		$run->{seconds} -= $late if $late > 0;
	}
	usleep(20_000) while time < $begun + $run->{seconds};
	return;
}

# ---------------------------------------------------------------------------
# The end of a run
# ---------------------------------------------------------------------------

sub drain
{
	my ($run) = @_;

	nemesis_log($run, 'phase probe');
	if (!$run->{without_probe})
	{
		start_client($run, 'probe', 'probe');
		wait_for_clients($run, 100);
	}
	nemesis_log($run, 'phase drain');
	start_client($run, 'drain', "drain$_", '--queue', $_) foreach qw(work ordered effects);
	start_client($run, 'catchup', "catchup$_", '--group', $_) foreach qw(g1 g2 p1);
	wait_for_clients($run, $run->{drain_seconds} // 90);
	return;
}

# Each line of the dump begins with what it is.  Queues are read by their
# views, archives by their tables, the stream by its partitions.
my $dump = q{
	\pset null -
	SELECT format($f$SELECT 'stored', %L, id, coalesce(body->>'v', '-'), coalesce(body->>'n', '0'),
		md5(coalesce(body->>'p', '')), coalesce(group_key, '-'), deliveries, failures,
		coalesce(headers->'msgq-death'->0->>'reason', '-') FROM msgq.q%s$f$, name, id)
	FROM msgq.queues WHERE name <> 'probe' ORDER BY id \gexec
	SELECT format($f$SELECT 'archived', %L, id, coalesce(body->>'v', '-'), coalesce(body->>'n', '0'),
		md5(coalesce(body->>'p', '')) FROM msgq.%I$f$, q.name, c.relname)
	FROM msgq.queues q JOIN pg_class c ON c.relnamespace = 'msgq'::regnamespace
		AND c.relkind = 'r' AND c.relname ~ format('^q%s_a\d+$', q.id) \gexec
	SELECT 'entry', partition, position, id, coalesce(body->>'v', '-'), coalesce(body->>'n', '0'),
		md5(coalesce(body->>'p', '')), coalesce(key, '-')
	FROM generate_series(0, 2) AS p,
		generate_series(1, (SELECT max(next_position) FROM msgq.stream_stats
			WHERE stream = 'events'), 5000) AS f,
		msgq.scan('events', p, f, 5000);
	SELECT 'group', consumer_group, partition, position, lag FROM msgq.group_lag;
	SELECT 'mark', tx FROM chaos.mark;
	SELECT 'effect', tx, value FROM chaos.effect;
	SELECT 'prepared', gid FROM pg_prepared_xacts;
};

my $amcheck = q{
	SET lock_timeout = '10s';
	CREATE EXTENSION IF NOT EXISTS amcheck;
	SELECT 'amcheck', 'heap', c.relname, v.msg
	FROM pg_class c, verify_heapam(c.oid) v
	WHERE c.relnamespace = 'msgq'::regnamespace AND c.relkind = 'r';
	SELECT 'checked', count(*) FROM (
		SELECT bt_index_parent_check(indexrelid, true, true)
		FROM pg_index i JOIN pg_class c ON c.oid = indexrelid JOIN pg_am a ON a.oid = relam
		WHERE relnamespace = 'msgq'::regnamespace AND amname = 'btree' AND indisvalid) AS i;
};

sub dump_all
{
	my ($run) = @_;
	my $node = $run->{node};

	foreach my $sql ($dump, $amcheck)
	{
		my ($status, $output, $error) =
		  $node->psql('postgres', $sql, extra_params => [ '-F', ' ' ]);
		$output =~ s/^amcheck.*\K\s/_/gm;
		append_to_file("$run->{dir}/dump", "$output\n");
		append_to_file("$run->{dir}/dump", "amcheck failed " . $error =~ s/\s+/_/gr . "\n")
		  if $error =~ /ERROR|FATAL/;
	}
	append_to_file("$run->{dir}/dump", "end\n");
	return;
}

# How far recoveries got, and what the server complained about.
sub read_server_log
{
	my ($run, $node) = @_;

	open my $log, '<', $node->logfile or die "no server log: $!";
	while (my $line = <$log>)
	{
		next if $line !~ /^(\d+)\.(\d\d\d) \d+ (.*)/;
		my ($us, $text) = ("$1$2" . '000', $3);

		append_to_file("$run->{dir}/nemesis.log",
			"$us recovery " . ($text =~ m{redo done at ([0-9A-F]+/[0-9A-F]+)} ? $1 : '-') . "\n")
		  if $text =~ /redo done at|redo is not required/;
		append_to_file("$run->{dir}/server.log", "$us $text\n")
		  if $text !~ /^HINT:/ && $text =~ /PANIC|TRAP|invalid page|could not read block|leak|could not maintain|internal error|terminated by signal (?!9\b)|corrupt/;
	}
	close $log;
	append_to_file("$run->{dir}/server.log", '');
	return;
}

# ---------------------------------------------------------------------------
# All of it
# ---------------------------------------------------------------------------

sub commit_of_source
{
	return $ENV{MSGQ_CHAOS_COMMIT} // 'unknown';
}

sub run
{
	my (%params) = @_;
	my $scenario = $params{scenario} // 'mixed';
	my $run = { %params, scenario => Scenarios::scenario($scenario) };

	$run->{dir} = PostgreSQL::Test::Utils::tempdir('chaos_');
	mkdir "$run->{dir}/log" or die $!;
	nemesis_log($run,
		sprintf 'run scenario=%s seed=%d seconds=%d home=%s commit=%s',
		$scenario, $run->{seed}, $run->{seconds},
		is_preloaded() ? 'preloaded' : 'plain', commit_of_source());
	nemesis_log($run, "fact $_") foreach @{ $run->{facts} // $run->{scenario}{facts} // [] };
	start_server($run);
	nemesis_log($run, 'phase load');
	start_load($run);
	disturb($run);
	nemesis_log($run, 'phase stop');
	stop_load($run);
	$run->{scenario}{calm}->($run) if $run->{scenario}{calm};
	drain($run);
	nemesis_log($run, 'phase dump');
	dump_all($run);
	$run->{scenario}{finish}->($run) if $run->{scenario}{finish};
	$_->stop('fast', fail_ok => 1) foreach @{ $run->{nodes} };
	read_server_log($run, $_) foreach @{ $run->{nodes} };
	my $verdict = check($run->{dir});
	$verdict->{failed_clients} = $run->{failed_clients} // 0;
	return $verdict;
}

# Puts what a run has left among the test's logs, which stay if it fails; says
# under which name.
sub keep
{
	my ($dir) = @_;
	my $name = $dir =~ s{.*/}{}r;

	system('cp', '-r', $dir, "$PostgreSQL::Test::Utils::log_path/$name") == 0
	  or return "could not keep $dir";
	return "logs and dump are in $name, among the logs of the test";
}

sub check
{
	my ($dir) = @_;
	my ($output, $error) = ('', '');
	my $ok = IPC::Run::run([ $^X, "$top/check.pl", $dir ], '>', \$output, '2>', \$error);
	my %violations = $output =~ /^violations ([\w-]+) (\d+)$/mg;

	return {
		dir => $dir,
		ok => $ok ? 1 : 0,
		report => $output . $error,
		violations => \%violations,
		finished => $output =~ /^verdict /m ? 1 : 0
	};
}

1;
