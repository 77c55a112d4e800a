# Faults.pm: what the nemesis does to a server under load.
#
# Each fault is an entry of the table: how often it is chosen, whether the
# server crashes of it, and what it does.  It gets the node, and a number that
# all its choices are drawn from, and returns what it did, for the log: words
# "name=count" are added up in the report; undef: there was nothing to do it to.
#
#	plan(SEED, SECONDS, NAMES)	the faults of a run, each with its moment and
#								its number; the same for the same arguments
#	strike(NODE, FAULT)			does one
#
# A new fault is a new entry.

package Faults;

use strict;
use warnings;

use MsgqTest qw(kill_all kill_starting kill_backend start_again);
use Time::HiRes qw(usleep);

my %faults = (
	'kill backend' => { weight => 4, crashes => 1, run => \&kill_client },
	'kill worker' => { weight => 2, crashes => 1, run => \&kill_worker },
	'kill server' => { weight => 5, crashes => 1, run => \&kill_server },
	'kill server twice' => { weight => 2, crashes => 1, run => \&kill_twice },
	'immediate stop' => { weight => 2, crashes => 1, run => \&stop_immediate },
	'fast stop' => { weight => 2, run => \&stop_fast },
	'cancel' => { weight => 6, run => sub { strike_clients('cancel', 40, @_) } },
	'terminate' => { weight => 3, run => sub { strike_clients('terminate', 6, @_) } },
	'terminate worker' => { weight => 2, run => sub { signal_worker('TERM', @_) } },
	'stop worker' => { weight => 1, run => sub { signal_worker('STOP', @_) } },
	'lock tables' => { weight => 2, run => \&lock_tables },
	'checkpoint' => { weight => 2, run => \&checkpoint },
	'vacuum' => { weight => 1, run => \&vacuum });

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

sub names { return sort keys %faults; }

sub crashes { return $faults{ $_[0] }{crashes}; }

sub plan
{
	my ($seed, $seconds, @names) = @_;
	my $random = random($seed);
	my @urn = map { ($_) x $faults{$_}{weight} } sort(@names ? @names : names());
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
		$at += 0.2 + ($faults{ $plan[-1]{name} }{crashes} ? 1 : 0) +
		  $random->(1000) / 1000;
	}
	return @plan;
}

sub strike
{
	my ($node, $fault) = @_;
	return $faults{ $fault->{name} }{run}->($node, $fault->{number});
}

# Queries may fail when a client is about to fall.
sub ask
{
	my ($node, $sql) = @_;
	my ($status, $output) = $node->psql('postgres', $sql);
	return $status == 0 ? $output : '';
}

# ---------------------------------------------------------------------------
# SIGKILL
# ---------------------------------------------------------------------------

# The process that this query finds.  It may end by itself meanwhile.
sub kill_process
{
	my ($node, $from, $number) = @_;
	my $pid = ask($node, "SELECT pid FROM pg_stat_activity WHERE $from
		ORDER BY md5(application_name || $number) LIMIT 1");

	return if $pid eq '' || !kill(0, $pid);
	kill_backend($node, $pid);
	return 'kills=1' . survivors($node);
}

sub kill_client
{
	my ($node, $number) = @_;
	return kill_process($node, "application_name ^@ 'chaos-'", $number);
}

sub kill_worker
{
	my ($node, $number) = @_;
	return kill_process($node, "backend_type ^@ 'msgq'", $number);
}

# Transactions that were prepared before the crash.
sub survivors
{
	my ($node) = @_;
	my $count = ask($node, 'SELECT count(*) FROM pg_prepared_xacts');
	return $count ne '' ? " prepared-survivors=$count" : '';
}

sub kill_server
{
	my ($node) = @_;
	kill_all($node);
	start_again($node);
	return 'kills=1' . survivors($node);
}

# The second time it is in recovery, or just behind it.
sub kill_twice
{
	my ($node) = @_;
	kill_all($node);
	kill_starting($node);
	start_again($node);
	return 'kills=2' . survivors($node);
}

# ---------------------------------------------------------------------------
# Stops
# ---------------------------------------------------------------------------

sub stop_immediate
{
	my ($node) = @_;
	$node->stop('immediate');
	start_again($node);
	return 'stops=1' . survivors($node);
}

sub stop_fast
{
	my ($node) = @_;
	$node->stop('fast');
	start_again($node);
	return 'stops=1' . survivors($node);
}

# ---------------------------------------------------------------------------
# Signals to single processes
# ---------------------------------------------------------------------------

# chaos.strike: see Chaos.pm.
sub strike_clients
{
	my ($what, $most, $node, $number) = @_;
	my $times = 1 + $number % $most;
	my $hit = ask($node, "SELECT chaos.strike('$what', $times, $number)");
	return $hit ? "hits=$hit" : undef;
}

sub signal_worker
{
	my ($signal, $node, $number) = @_;
	my $pid = ask($node, "SELECT pid FROM pg_stat_activity
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
	my ($node, $number) = @_;
	my $ms = 50 + $number % 300;

	ask($node, "BEGIN; SET LOCAL lock_timeout = '1s';
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
	my ($node) = @_;
	ask($node, 'CHECKPOINT; SELECT 1') or return;
	return 'checkpoints=1';
}

sub vacuum
{
	my ($node) = @_;
	my ($status) = $node->psql('postgres', 'VACUUM');
	return $status == 0 ? 'vacuums=1' : undef;
}

1;
