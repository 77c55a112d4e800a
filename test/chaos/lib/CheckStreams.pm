# CheckStreams.pm: what must be so of the stream "events" and its groups.

package CheckStreams;

use strict;
use warnings;

use Exporter 'import';

use CheckQueues;
use History;

our @EXPORT = qw(check_streams);

# ---------------------------------------------------------------------------
# The stream itself
# ---------------------------------------------------------------------------

# What was appended is there once, and nothing else.
sub check_entries
{
	my ($h, $tries) = @_;
	my (%values, %ids);

	foreach my $row (@{ $h->{dump}{entry} })
	{
		my ($partition, $position, $id, $value, $n, $md5) = @$row;
		my $try = $tries->{$value};

		violation('stream-duplicated', "$value is there twice") if $values{$value}++;
		violation('stream-duplicated', "id $id is there twice") if $ids{$id}++;
		if (!$try)
		{
			violation('unexpected', "$value was never appended");
			next;
		}
		violation('phantom', "$value was rolled back") if send_outcome($try) eq 'A';
		violation('payload', "$value is not what was appended")
		  if $n != $try->{n} || !is_payload($value, $n, $md5);
		violation('unexpected', "$value has id $id, and was appended with $try->{id}")
		  if defined $try->{id} && $try->{id} != $id;
	}
	foreach my $try (values %$tries)
	{
		next if send_outcome($try) ne 'C';
		violation('lost', "$try->{value} is not in the stream") if !$values{ $try->{value} };
		$h->{count}{'events-sent'}++;
	}
	$h->{count}{'events-stored'} = keys %values;
	return;
}

# Positions are 1, 2, 3 and so on.
sub check_positions
{
	my ($h) = @_;
	my %last;

	foreach my $row (sort { $a->[0] <=> $b->[0] || $a->[1] <=> $b->[1] } @{ $h->{dump}{entry} })
	{
		my ($partition, $position) = @$row;
		my $expected = ($last{$partition} // 0) + 1;

		violation('stream-density', "partition $partition has $position, not $expected")
		  if $position != $expected;
		$last{$partition} = $position;
	}
	return;
}

# What a client has appended in one transaction after the other is in that
# order, in each partition; and a key is in one partition.
sub check_order
{
	my ($h, $tries) = @_;
	my (%last, %home);

	foreach my $row (sort { $a->[1] <=> $b->[1] } @{ $h->{dump}{entry} })
	{
		my ($partition, $position, $id, $value, $n, $md5, $key) = @$row;
		my ($client, $tx, $i) = $value =~ /^(.*)\.(\d+)\.(\d+)$/ or next;

		violation('stream-order', "key $key is in partitions $partition and $home{$key}")
		  if $key ne '-' && ($home{$key} //= $partition) != $partition;
		next if !$tries->{$value} || $tries->{$value}{tx}{prepared};
		my $before = $last{"$client $partition"};
		violation('stream-order', "$value is behind $client.$before->[0].$before->[1]")
		  if $before && ($tx < $before->[0] || ($tx == $before->[0] && $i < $before->[1]));
		$last{"$client $partition"} = [ $tx, $i ];
	}
	return;
}

# ---------------------------------------------------------------------------
# Groups
# ---------------------------------------------------------------------------

# Entries that a group was given: what is there, not what was undone.
sub check_given
{
	my ($h, $tries) = @_;
	my %there = map { ("$_->[0] $_->[1]" => $_->[3]) } @{ $h->{dump}{entry} };

	foreach my $e (@{ $h->{entries} })
	{
		my $try = $tries->{ $e->{value} };

		if (!$try)
		{
			violation('unexpected', "$e->{value} was never appended");
			next;
		}
		violation('phantom', "$e->{value} was rolled back, and read by $e->{group}")
		  if is_phantom($e->{seen}, $try);
		violation('phantom', "$e->{value} was read before its COMMIT was sent")
		  if defined $try->{tx}{sent_commit} && $e->{seen} < $try->{tx}{sent_commit};
		violation('payload', "$e->{value} is not what was appended")
		  if !is_payload($e->{value}, $e->{n}, $e->{md5}) || $e->{n} != $try->{n};
		# Positions that nobody has acted upon may be given anew after a crash.
		violation('stream-offset',
			"$e->{group} has read $e->{value} at $e->{partition}/$e->{position}")
		  if $e->{tx}{outcome} eq 'C'
		  && ($there{"$e->{partition} $e->{position}"} // '-') ne $e->{value};
	}
	return;
}

# Each group got each entry; one that reads in transactions, once.
sub check_coverage
{
	my ($h, $tries) = @_;
	my (%certain, %possible);

	foreach my $e (@{ $h->{entries} })
	{
		$certain{ $e->{group} }{ $e->{value} }++ if $e->{tx}{outcome} eq 'C';
		$possible{ $e->{group} }{ $e->{value} }++ if $e->{tx}{outcome} ne 'A';
	}
	foreach my $group (sort { $a cmp $b } qw(g1 g2 p1))
	{
		foreach my $row (@{ $h->{dump}{entry} })
		{
			my $value = $row->[3];

			violation('stream-skip', "$group has not got $value")
			  if !$possible{$group}{$value};
			violation('stream-duplicated', "$group has got $value $certain{$group}{$value} times")
			  if $group ne 'p1' && ($certain{$group}{$value} // 0) > 1;
		}
		$h->{count}{"events-read-$group"} = keys %{ $certain{$group} // {} };
	}
	foreach my $row (@{ $h->{dump}{group} })
	{
		my ($group, $partition, $position, $lag) = @$row;
		violation('stranded', "$group lags behind by $lag in partition $partition") if $lag > 0;
	}
	return;
}

# Within a call, and from one to those that begin after it, positions rise.
sub check_rise
{
	my ($h) = @_;
	my (%calls, %last);

	foreach my $e (@{ $h->{entries} })
	{
		my $call = "$e->{tx}{client}.$e->{tx}{n} $e->{group} $e->{partition}";

		violation('stream-order', "$call: $e->{position} after $last{$call}")
		  if defined $last{$call} && $e->{position} != $last{$call} + 1;
		$last{$call} = $e->{position};
		next if $e->{tx}{outcome} ne 'C' || $e->{group} eq 'p1';
		$calls{"$e->{group} $e->{partition}"}{$call} //=
		  { first => $e->{position}, tx => $e->{tx} };
	}
	foreach my $place (sort keys %calls)
	{
		my $before;

		foreach my $call (sort { $a->{first} <=> $b->{first} } values %{ $calls{$place} })
		{
			violation('stream-order', "$place: $call->{first} was read before $before->{first}")
			  if $before && $call->{tx}{ended} < $before->{tx}{invoke};
			$before = $call;
		}
	}
	return;
}

# A lease of a group: what is committed does not come back, and a receipt that
# somebody else has followed commits nothing.
sub check_moves
{
	my ($h) = @_;
	my (%polls, %by_partition);

	foreach my $e (grep { $_->{receipt} ne '-' && $_->{tx}{outcome} ne 'A' } @{ $h->{entries} })
	{
		my $poll = $polls{ $e->{receipt} } //= { tx => $e->{tx}, first => $e->{position},
			partition => $e->{partition}, seen => $e->{seen}, receipt => $e->{receipt} };
		$poll->{last} = $e->{position};
	}
	push @{ $by_partition{ $_->{partition} } }, $_ foreach values %polls;
	foreach my $move (@{ $h->{moves} })
	{
		my $poll = $polls{ $move->{receipt} };

		next if !$poll || $move->{result} ne 't' || $move->{tx}{outcome} ne 'C';
		my $upto = $move->{upto} eq '-' ? $poll->{last} : $move->{upto};
		foreach my $other (@{ $by_partition{ $poll->{partition} } })
		{
			next if $other == $poll;
			violation('resurrected', "p1 has got $other->{first}, and committed $upto before")
			  if $other->{tx}{invoke} > $move->{tx}{ended} && $other->{first} <= $upto;
			violation('stale-accepted', "p1 has committed $upto after another poll")
			  if $other->{tx}{outcome} eq 'C' && $other->{tx}{invoke} > $poll->{tx}{ended}
			  && $other->{tx}{ended} < $move->{at};
		}
	}
	return;
}

sub check_streams
{
	my ($h) = @_;
	my %tries = map { ($_->{value} => $_) } grep { $_->{queue} eq 'events' } @{ $h->{tries} };

	check_entries($h, \%tries);
	check_positions($h);
	check_order($h, \%tries);
	check_given($h, \%tries);
	check_coverage($h, \%tries);
	check_rise($h);
	check_moves($h);
	return;
}

1;
