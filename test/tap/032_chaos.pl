# A load of all kinds of clients, a nemesis that does everything to the server
# that test/chaos/lib/Faults.pm has, and a checker that reads only what the
# clients have written down and what is there in the end.  And then the proof
# that the checker can fail: faults that are planted, one at a time, each of
# which it has to find.  test/chaos/README.md tells more.
#
# Catches: lost, duplicated and resurrected messages, effects that happen twice
# or never, receipts that are too good, groups out of order, streams with holes.
#
#	MSGQ_CHAOS_SECONDS	of load and faults in each home, parted among the scenarios
#						as these say; above 300 of one, it has several runs.  By
#						default 20 for the first one, and 8 for the others
#	MSGQ_CHAOS_SCENARIOS	names; by default all, but if it is neither preloaded nor
#						told the time, mixed
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
use Scenarios;

my $seconds = $ENV{MSGQ_CHAOS_SECONDS};
my $seed = $ENV{MSGQ_CHAOS_SEED} // time % 1_000_000;
my $canaries = $ENV{MSGQ_CHAOS_CANARIES} // is_preloaded();
my @scenarios = split ' ', $ENV{MSGQ_CHAOS_SCENARIOS} //
  (is_preloaded() || defined $seconds ? join ' ', Scenarios::names() : 'mixed');

# Of each scenario: how many runs, and how many seconds each.
sub share
{
	my ($name) = @_;
	my $all = 0;

	return (1, $name eq $scenarios[0] ? 20 : 8) if !defined $seconds;
	$all += Scenarios::scenario($_)->{share} foreach @scenarios;
	my $part = $seconds * Scenarios::scenario($name)->{share} / $all;
	my $runs = 1 + int(($part - 1) / 300);
	return ($runs, int($part / $runs) || 1);
}

sub run_scenario
{
	my ($name) = @_;
	my ($runs, $length) = share($name);

	foreach my $i (1 .. $runs)
	{
		my $verdict = Chaos::run(
			name => "$name$i",
			scenario => $name,
			seed => $seed,
			seconds => $length);

		ok($verdict->{finished}, "$name $i: the checker has come to a verdict");
		ok($verdict->{ok}, "$name $i: with seed $seed all is well");
		is($verdict->{failed_clients}, 0, "$name $i: all clients ended well");
		# Of a long run everybody wants to know, of a short one only if it failed.
		if (defined $seconds || !$verdict->{ok})
		{
			diag($verdict->{report});
		}
		else
		{
			note($verdict->{report});
		}
		diag(Chaos::keep($verdict->{dir})) if !$verdict->{ok};
		$seed++;
	}
	return;
}

diag("seed $seed; MSGQ_CHAOS_SEED=$seed repeats it");
Chaos::build_driver();

run_scenario($_) foreach @scenarios;

if ($canaries)
{
	my ($caught, $all) =
	  Canaries::release($seed, $canaries eq '1' ? '.' : $canaries);

	is($caught, $all, 'each planted fault was found');
	diag("$caught of $all canaries caught");
}

done_testing();
