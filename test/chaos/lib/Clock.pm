# Clock.pm: the server's clock, which is set.
#
#	environment()		of the server's processes, so that their clock can be set
#	reset()				it is the machine's, and can be set from now on
#	set(SECONDS)		so far ahead of the machine's, or behind it
#	step(RUN, NUMBER)	sets it, forward or back, by seconds or up to an hour
#	settle(RUN)			sets it to the latest time that it has shown
#
# clock.c tells how.

package Clock;

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename;
use File::Temp;

my $top = abs_path(dirname(__FILE__) . '/..');
my $file = File::Temp::tempdir(TMPDIR => 1, CLEANUP => 1) . '/ahead';

# How far ahead it is, and was at most.
my ($ahead, $most) = (0, 0);

sub environment
{
	return { LD_PRELOAD => "$top/clock.so", CHAOS_CLOCK => $file };
}

sub set
{
	my ($seconds) = @_;

	open my $clock, '+<', $file or die "could not open $file: $!";
	syswrite($clock, pack('q', $seconds * 1e6)) == 8 or die "could not write $file: $!";
	close $clock;
	$ahead = $seconds;
	$most = $seconds if $seconds > $most;
	return;
}

sub reset
{
	local %ENV = %ENV;
	delete @ENV{qw(MAKEFLAGS MFLAGS MAKELEVEL)};
	system('make', '-s', '-C', $top, 'clock.so') == 0 or die 'could not build clock.so';
	open my $clock, '>>', $file or die "could not open $file: $!";
	close $clock;
	set(0);
	$most = 0;
	return;
}

sub step
{
	my ($run, $number) = @_;
	my $size = (1, 3, 10, 60, 600, 3600)[ $number % 6 ];
	my $is_back = int($number / 6) % 2;

	# Never more than an hour from the machine's.
	$is_back = $ahead > 0 if abs($ahead + ($is_back ? -$size : $size)) > 3600;
	set($is_back ? $ahead - $size : $ahead + $size);
	return $is_back ? "back=1 back-seconds=$size" : "forward=1 forward-seconds=$size";
}

# That the server has it proves that it had the others.
sub settle
{
	my ($run) = @_;

	set($most);
	my $seen = $run->{node}->safe_psql('postgres',
		'SELECT extract(epoch FROM clock_timestamp())::bigint') - time;
	die "the server's clock is $seen seconds ahead, and not $most" if abs($seen - $most) > 60;
	return;
}

1;
