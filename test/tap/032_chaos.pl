# A load of all kinds of clients, a nemesis that does everything to the server
# that test/chaos/lib/Faults.pm has, and a checker that reads only what the
# clients have written down and what is there in the end.  And then the proof
# that the checker can fail: faults that are planted, one at a time, each of
# which it has to find.  test/chaos/README.md tells more.
#
# Catches: lost, duplicated and resurrected messages, effects that happen twice
# or never, receipts that are too good, groups out of order, streams with holes.
#
#	MSGQ_CHAOS_SECONDS	of load and faults in each home (20); above 300, several
#						runs
#	MSGQ_CHAOS_SEED		of the first run, the others have the next ones; by
#						default another one each time
#	MSGQ_CHAOS_CANARIES	0: none, 1: all, or a pattern for their names; by default
#						all, if preloaded

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib", "$FindBin::RealBin/../chaos/lib";

use MsgqTest;
use Test::More;

use Canaries;
use Chaos;

my $seconds = $ENV{MSGQ_CHAOS_SECONDS} // 20;
my $seed = $ENV{MSGQ_CHAOS_SEED} // time % 1_000_000;
my $canaries = $ENV{MSGQ_CHAOS_CANARIES} // is_preloaded();
my $runs = $seconds > 300 ? int(($seconds + 299) / 300) : 1;
my $is_long = defined $ENV{MSGQ_CHAOS_SECONDS};

diag("seed $seed; MSGQ_CHAOS_SEED=$seed repeats it");
Chaos::build_driver();

foreach my $i (0 .. $runs - 1)
{
	my $verdict = Chaos::run(
		name => "chaos$i",
		seed => $seed + $i,
		seconds => int($seconds / $runs));

	ok($verdict->{finished}, "run $i: the checker has come to a verdict");
	ok($verdict->{ok}, "run $i: with seed " . ($seed + $i) . ' all is well');
	is($verdict->{failed_clients}, 0, "run $i: all clients ended well");
	# Of a long run everybody wants to know, of a short one only if it failed.
	if ($is_long || !$verdict->{ok})
	{
		diag($verdict->{report});
	}
	else
	{
		note($verdict->{report});
	}
	diag(Chaos::keep($verdict->{dir})) if !$verdict->{ok};
}

if ($canaries)
{
	my ($caught, $all) =
	  Canaries::release($seed, $canaries eq '1' ? '.' : $canaries);

	is($caught, $all, 'each planted fault was found');
	diag("$caught of $all canaries caught");
}

done_testing();
