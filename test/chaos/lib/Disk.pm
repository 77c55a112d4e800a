# Disk.pm: the disk of a server: power failures, and no space left.
#
#	attach(NODE)				before its first start: it gets such a disk (disk.c)
#	fail_power(RUN, NUMBER)		all processes end, what was not synced is lost, or
#								some of it (power.c), and the server starts again
#	fail_power_totally(...)		the same, and all of it is lost
#	fill_data(RUN, NUMBER)		no space is left for data, for a while
#	fill_wal(RUN, NUMBER)		the same for the write-ahead log, of which the
#								server panics; it starts again when there is space
#
# The last two begin with some bytes left, so that the first write that fails is
# done in part.  While data do not fit, the server has to stay up; the checker
# forgives a PANIC only in the time of fill_wal.

package Disk;

use strict;
use warnings;

use Cwd qw(realpath);
use FindBin;
use IPC::Run;
use MsgqTest qw(kill_all kill_starting start_again run_psql text_file finish);
use PostgreSQL::Test::Utils;
use Time::HiRes qw(time usleep);

my $top = realpath("$FindBin::RealBin/../chaos");

# Of disk.h's Control; for both there is as much as anybody wants.
my $unlimited = -1;
my @spaces = qw(data wal);

sub write_control
{
	my ($node, %left) = @_;

	# Written in place: the server's processes have it mapped.
	open my $control, '+<', "$node->{disk}/control" or die "no control of the disk: $!";
	syswrite $control, pack('q2', map { $left{$_} // $unlimited } @spaces);
	close $control;
	return;
}

# How often there was no space, since the disk is there.
sub refusals
{
	my ($node) = @_;
	my ($data, $wal) = (unpack 'q4', slurp_file("$node->{disk}/control"))[ 2, 3 ];

	return (data => $data, wal => $wal);
}

sub attach
{
	my ($node) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir('disk_');

	mkdir "$dir/undo" or die $!;
	append_to_file("$dir/control", pack('q4', $unlimited, $unlimited, 0, 0));
	$node->{disk} = realpath($dir);
	$node->{environment} = {
		LD_PRELOAD => "$top/disk.so",
		MSGQ_DISK => $node->{disk},
		MSGQ_DISK_DATA => realpath($node->data_dir)
	};
	return;
}

# Of a server that was killed.
sub lose
{
	my ($node, $number) = @_;
	my ($output, $error) = ('', '');

	IPC::Run::run(
		[ "$top/power", realpath($node->data_dir), $node->{disk}, $number ],
		'>', \$output, '2>', \$error) or die "power: $error";
	chomp $output;
	return "failures=1 $output";
}

# Sometimes during a checkpoint; sometimes again in the recovery.
sub fail_power
{
	my ($run, $number) = @_;
	my $node = $run->{node};
	my $checkpoint;
	my @lost;

	if (($number >> 2) % 3 == 0)
	{
		$checkpoint = run_psql($node, file => text_file('CHECKPOINT'), output => '/dev/null');
		usleep(1000 * ($number % 200));
	}
	kill_all($node);
	eval { finish($checkpoint) } if $checkpoint;
	push @lost, lose($node, $number);
	if (($number >> 4) % 4 == 0)
	{
		kill_starting($node);
		push @lost, lose($node, $number + 4);
	}
	start_again($node);
	return "@lost";
}

sub fail_power_totally
{
	my ($run, $number) = @_;
	return fail_power($run, $number & ~3);
}

# So long there is not more space for it than that; how often it was missed.
sub fill
{
	my ($node, $space, $bytes, $ms) = @_;
	my %before = refusals($node);

	write_control($node, $space => $bytes);
	usleep(1000 * $ms);
	write_control($node);
	my %after = refusals($node);
	return $after{$space} - $before{$space};
}

sub fill_data
{
	my ($run, $number) = @_;
	my $refusals = fill($run->{node}, 'data', $number % 100_000, 500 + $number % 1500);

	return $refusals ? "episodes=1 refusals=$refusals" : undef;
}

# The server restarts by itself until a recovery finds no space.
sub fill_wal
{
	my ($run, $number) = @_;
	my $node = $run->{node};
	my $refusals = fill($node, 'wal', $number % 30_000, 50 + $number % 1500);
	my $restarts = 0;
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;

	while ($node->psql('postgres', 'SELECT 1') != 0)
	{
		die 'the server does not come back' if time > $until;
		if (!-e $node->data_dir . '/postmaster.pid')
		{
			$node->stop('fast', fail_ok => 1);
			start_again($node);
			$restarts++;
		}
		usleep(50_000);
	}
	return $refusals ? "episodes=1 refusals=$refusals restarts=$restarts" : undef;
}

1;
