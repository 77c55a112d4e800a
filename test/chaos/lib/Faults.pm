# Faults.pm: what the nemesis does to a server under load.
#
# Each fault is an entry of the table: whether the server crashes of it, and what
# it does.  It gets the run (Chaos.pm), whose node is the server, and a number
# that all its choices are drawn from, and returns what it did, for the log: words
# "name=count" are added up in the report; undef: there was nothing to do it to.
#
#	plan(SEED, SECONDS, PACE, WEIGHTS)
#									the faults of a run, each with its moment and
#									its number; the same for the same arguments.
#									PACE: how long pauses are, 1 is usual.
#									WEIGHTS: name => how often it is chosen
#	strike(RUN, FAULT)				does one
#
# A new fault is a new entry, and a part of some scenario (Scenarios.pm).

package Faults;

use strict;
use warnings;

use Clock;
use Disk;
use MsgqTest qw(kill_all kill_starting kill_backend start_again);
use Standby;
use Time::HiRes qw(usleep);

my %faults = (
	'kill backend' => { crashes => 1, run => \&kill_client },
	'kill worker' => { crashes => 1, run => \&kill_worker },
	'kill server' => { crashes => 1, run => \&kill_server },
	'kill server twice' => { crashes => 1, run => \&kill_twice },
	'immediate stop' => { crashes => 1, run => \&stop_immediate },
	'fast stop' => { run => \&stop_fast },
	'power failure' => { crashes => 1, run => \&Disk::fail_power },
	'total power failure' => { crashes => 1, run => \&Disk::fail_power_totally },
	'data disk full' => { run => \&Disk::fill_data },
	'wal disk full' => { crashes => 1, run => \&Disk::fill_wal },
	'promote' => { crashes => 1, run => \&Standby::promote },
	'switch over' => { crashes => 1, run => \&Standby::switch_over },
	'cancel' => { run => sub { strike_clients('cancel', 40, @_) } },
	'cancel many' => { run => sub { strike_clients('cancel', 400, @_) } },
	'terminate' => { run => sub { strike_clients('terminate', 6, @_) } },
	'terminate worker' => { run => sub { signal_worker('TERM', @_) } },
	'stop worker' => { run => sub { signal_worker('STOP', @_) } },
	'lock tables' => { run => \&lock_tables },
	'checkpoint' => { run => \&checkpoint },
	'vacuum' => { run => \&vacuum },
	'set clock' => { run => \&Clock::step });

# A generator of its own: nobody else draws from it.
sub random
{
	my ($seed) = @_;
	my $state = ($seed * 2654435761 + 12345) & 0xffffffff;

	return sub {
		my ($n) = @_;
		$state = ($state * 1103515245 + 12345) & 0x7fffffff;
		return int(($state >> 8) % $n);
	};
}

sub plan
{
	my ($seed, $seconds, $pace, $weights) = @_;
	my $random = random($seed);
	my @urn = map { ($_) x $weights->{$_} } sort keys %$weights;
	my @plan;
	my $at = 1.5;

	while ($at < $seconds)
	{
		push @plan,
		  {
			at => $at,
			name => $urn[ $random->(scalar @urn) ],
			number => $random->(1 << 20)
		  };
		# After a crash the load needs some time to come up again.
		$at += $pace * (0.2 + ($faults{ $plan[-1]{name} }{crashes} ? 1 : 0) +
			  $random->(1000) / 1000);
	}
	return @plan;
}

sub strike
{
	my ($run, $fault) = @_;
	return $faults{ $fault->{name} }{run}->($run, $fault->{number});
}

# Queries may fail when a server is about to fall.
sub ask
{
	my ($run, $sql) = @_;
	my ($status, $output) = $run->{node}->psql('postgres', $sql);
	return $status == 0 ? $output : '';
}

# ---------------------------------------------------------------------------
# SIGKILL
# ---------------------------------------------------------------------------

# The process that this query finds.  It may end by itself meanwhile.
sub kill_process
{
	my ($run, $from, $number) = @_;
	my $pid = ask($run, "SELECT pid FROM pg_stat_activity WHERE $from
		ORDER BY md5(application_name || $number) LIMIT 1");

	return if $pid eq '' || !kill(0, $pid);
	kill_backend($run->{node}, $pid);
	return 'kills=1' . survivors($run);
}

sub kill_client
{
	my ($run, $number) = @_;
	return kill_process($run, "application_name ^@ 'chaos-'", $number);
}

sub kill_worker
{
	my ($run, $number) = @_;
	return kill_process($run, "backend_type ^@ 'msgq'", $number);
}

# Transactions that were prepared before the crash.
sub survivors
{
	my ($run) = @_;
	my $count = ask($run, 'SELECT count(*) FROM pg_prepared_xacts');
	return $count ne '' ? " prepared-survivors=$count" : '';
}

sub kill_server
{
	my ($run) = @_;
	kill_all($run->{node});
	start_again($run->{node});
	return 'kills=1' . survivors($run);
}

# The second time it is in recovery, or just behind it.
sub kill_twice
{
	my ($run) = @_;
	kill_all($run->{node});
	kill_starting($run->{node});
	start_again($run->{node});
	return 'kills=2' . survivors($run);
}

# ---------------------------------------------------------------------------
# Stops
# ---------------------------------------------------------------------------

sub stop_immediate
{
	my ($run) = @_;
	$run->{node}->stop('immediate');
	start_again($run->{node});
	return 'stops=1' . survivors($run);
}

sub stop_fast
{
	my ($run) = @_;
	$run->{node}->stop('fast');
	start_again($run->{node});
	return 'stops=1' . survivors($run);
}

# ---------------------------------------------------------------------------
# Signals to single processes
# ---------------------------------------------------------------------------

# chaos.strike: see Chaos.pm.
sub strike_clients
{
	my ($what, $most, $run, $number) = @_;
	my $times = 1 + $number % $most;
	my $hit = ask($run, "SELECT chaos.strike('$what', $times, $number)");
	return $hit ? "hits=$hit" : undef;
}

sub signal_worker
{
	my ($signal, $run, $number) = @_;
	my $pid = ask($run, "SELECT pid FROM pg_stat_activity
		WHERE backend_type ^@ 'msgq' ORDER BY md5(pid::text || $number) LIMIT 1");

	return if $pid eq '' || !kill($signal, $pid);
	if ($signal eq 'STOP')
	{
		usleep(1000 * (200 + $number % 1000));
		kill 'CONT', $pid;
	}
	return 'signals=1';
}

# ---------------------------------------------------------------------------
# Others at work
# ---------------------------------------------------------------------------

# Whoever has a lock_timeout may run into it.
sub lock_tables
{
	my ($run, $number) = @_;
	my $ms = 50 + $number % 300;

	ask($run, "BEGIN; SET LOCAL lock_timeout = '1s';
		DO \$\$ DECLARE t regclass; BEGIN
			FOR t IN SELECT oid FROM pg_class WHERE relnamespace = 'msgq'::regnamespace
				AND relkind = 'r' AND relname ~ '^q\\d+_\\d+\$'
				ORDER BY md5(relname || $number) LIMIT 2
			LOOP
				EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', t);
			END LOOP;
		END \$\$;
		SELECT pg_sleep($ms / 1000.0); SELECT 'done'; COMMIT") =~ /done/ or return;
	return 'locks=1';
}

sub checkpoint
{
	my ($run) = @_;
	ask($run, 'CHECKPOINT; SELECT 1') or return;
	return 'checkpoints=1';
}

sub vacuum
{
	my ($run) = @_;
	my ($status) = $run->{node}->psql('postgres', 'VACUUM');
	return $status == 0 ? 'vacuums=1' : undef;
}

1;
