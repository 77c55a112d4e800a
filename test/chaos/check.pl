# check.pl: was everything as it must be in a chaos run?
#
# usage: perl check.pl DIR
#
# Reads the logs and the dump that a run has left in DIR, and nothing else.
# README.md tells what is checked.  Prints what was counted, and what is wrong:
#
#	violations CLASS NUMBER		and up to five lines "violation CLASS: ..."
#	explained CLASS NUMBER		of leases that a crash may have undone
#	verdict pass | fail
#
# Exit code: 0 all is well, 1 something is wrong, 2 it could not be read.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use CheckQueues;
use CheckStreams;
use History;

# In the time of poll_interval and one second more, a message is picked up.
my $pickup_limit = 2_000_000;

# What may happen to a client in a run, by SQLSTATE: connections that break or
# are refused, servers that stop, cancels, timeouts, deadlocks, conflicts, and
# leases of a group that have gone to somebody else.
my $expected = qr/^(?:08\w{3}|57P0[1-5]|57014|55P03|40P01|40001|MQ002|rolled-back)$/;

sub check_errors
{
	my ($h) = @_;

	foreach my $sqlstate (sort keys %{ $h->{fails} })
	{
		next if $sqlstate =~ $expected;
		next if $sqlstate eq '53100' && $h->{facts}{full};
		violation($sqlstate =~ /^XX/ ? 'internal-error' : 'error', $sqlstate)
		  foreach 1 .. $h->{fails}{$sqlstate};
	}
	return;
}

sub check_liveness
{
	my ($h) = @_;

	violation('incomplete', 'nobody has measured how soon messages come')
	  if !@{ $h->{probes} } && $h->{clients}{probe};
	foreach my $probe (@{ $h->{probes} })
	{
		violation('liveness', sprintf '%s took %.1f s', $probe->{kind}, $probe->{us} / 1e6)
		  if $probe->{us} > $pickup_limit;
	}
	violation('incomplete', "$_->[0] is still prepared") foreach @{ $h->{dump}{prepared} };
	return;
}

sub check_storage
{
	my ($h) = @_;

	violation('amcheck', "@$_") foreach @{ $h->{dump}{amcheck} };
	violation('incomplete', 'indexes were not checked') if !$h->{dump}{checked};
	return;
}

# A run in which nothing has happened proves nothing.
sub check_load
{
	my ($h) = @_;
	my %needed = (
		producer => 'work-sent',
		keys => 'keys-sent',
		consumer => 'work-taken',
		ordered => 'ordered-taken',
		effects => 'effects-taken',
		appender => 'events-sent',
		reader => 'events-read-g1');

	foreach my $role (sort keys %needed)
	{
		violation('incomplete', "role $role has achieved nothing")
		  if $h->{clients}{$role} && !$h->{count}{ $needed{$role} };
	}
	return;
}

sub report
{
	my ($h) = @_;

	print "run $h->{run}\n";
	foreach my $name (sort keys %{ $h->{faults} })
	{
		my $fault = $h->{faults}{$name};
		print "fault $name ", join(' ', map { "$_=$fault->{$_}" } sort keys %$fault), "\n";
	}
	print 'recoveries ', scalar @{ $h->{recoveries} }, "\n";
	print "transactions $_ $h->{ends}{$_}\n" foreach sort keys %{ $h->{ends} };
	print "failed $_ $h->{fails}{$_}\n" foreach sort keys %{ $h->{fails} };
	print "count $_ $h->{count}{$_}\n" foreach sort keys %{ $h->{count} };
	print "deliveries ", scalar @{ $h->{deliveries} }, "\n";
	print "settlements ", scalar @{ $h->{settles} }, "\n";
	my @us = sort { $a <=> $b } map { $_->{us} } @{ $h->{probes} };
	printf "slowest-pickup-ms %.1f\n", $us[-1] / 1000 if @us;
	print "explained $_ $History::explained{$_}\n" foreach sort keys %History::explained;
	foreach my $class (sort keys %History::violations)
	{
		print "violations $class $History::violations{$class}\n";
		print "violation $class: $_\n" foreach @{ $History::shown{$class} };
	}
	print 'verdict ', %History::violations ? 'fail' : 'pass', "\n";
	return;
}

my $history = eval { read_history($ARGV[0]) };
if (!$history)
{
	print STDERR $@;
	exit 2;
}
check_queues($history);
check_streams($history) if $history->{clients}{appender};
check_errors($history);
check_liveness($history);
check_storage($history);
check_load($history);
report($history);
exit(%History::violations ? 1 : 0);
