# CheckQueues.pm: what must be so of queues.
#
# Times are those of the clients and, of leases, of the server, which go by the
# same clock.  What a client has seen happened after it asked and before it had
# the answer; "before" is claimed only if one answer came before the other
# question.

package CheckQueues;

use strict;
use warnings;

use Digest::MD5 qw(md5_hex);
use Exporter 'import';

use History;

our @EXPORT = qw(check_queues is_payload send_outcome is_phantom);

# So many failures the queue "work" allows (Chaos.pm).
my $max_deliveries = 6;

my %md5;

# Value and n determine the filler.
sub is_payload
{
	my ($value, $n, $md5) = @_;
	return ($md5{"$value $n"} //= md5_hex("$value." x $n)) eq $md5;
}

# Of a value that several may have sent: committed if one was.
sub send_outcome
{
	my (@tries) = @_;
	my %seen = map { ($_->{undone} ? 'A' : $_->{tx}{outcome}) => 1 } @tries;
	return $seen{C} ? 'C' : $seen{U} ? 'U' : 'A';
}

# Was something seen of a transaction that was rolled back?  One that a standby
# does not know could be seen until then.
sub is_phantom
{
	my ($seen, @tries) = @_;

	return if send_outcome(@tries) ne 'A';
	return !grep { $_->{tx}{undone} && !$_->{undone} && defined $seen && $seen < $_->{tx}{undone} }
	  @tries;
}

# Has a transaction committed, or may have, if only until a standby took over?
sub was_there { return $_[0]{outcome} ne 'A' || $_[0]{undone}; }

sub name_of { return "$_[0]{client}.$_[0]{n}"; }

# When a delivery was asked for, by the server's clock where that is known: a lease
# counts from then.
sub claimed
{
	my ($d) = @_;
	return $d->{timeout} > 0 ? $d->{until} - 1000 * $d->{timeout} : $d->{seen};
}

# ---------------------------------------------------------------------------
# Messages: all that is known of each
# ---------------------------------------------------------------------------

# A message that was sent before the server last started is leased durably, and
# with it all that its transaction leases.
sub excuse_no_suspects
{
	my ($h, $m) = @_;
	my @sent = map { $_->{tx}{ended} // () } grep { $_->{tx}{outcome} eq 'C' } @{ $m->{tries} };

	return if @sent != 1 || $h->{facts}{lossy};
	foreach my $d (grep { $_->{tx}{maybe_lost} } @{ $m->{deliveries} })
	{
		$d->{tx}{maybe_lost} = 0
		  if grep { $_->{at} > $sent[0] && $_->{at} < $d->{asked} } @{ $h->{recoveries} };
	}
	return;
}

# "queue value" => { queue, value, tries, deliveries, settles, removals, stored,
# archived, dead }
sub collect
{
	my ($h) = @_;
	my (%messages, %by_receipt);
	my $message = sub {
		my ($queue, $value) = @_;
		return $messages{"$queue $value"} //= { queue => $queue, value => $value,
			map { $_ => [] } qw(tries deliveries settles removals stored archived dead) };
	};

	foreach my $try (@{ $h->{tries} })
	{
		push @{ $message->($try->{queue}, $try->{value})->{tries} }, $try
		  if $try->{queue} ne 'events';
	}
	foreach my $d (@{ $h->{deliveries} })
	{
		my $m = $message->($d->{queue}, $d->{value});

		$d->{message} = $m;
		push @{ $m->{deliveries} }, $d;
		$by_receipt{"$d->{queue} $d->{receipt}"} = $d if $d->{timeout} > 0;
		push @{ $m->{removals} }, { tx => $d->{tx}, at => $d->{asked}, action => 'pop' }
		  if $d->{timeout} == 0 && was_there($d->{tx});
	}
	foreach my $s (@{ $h->{settles} })
	{
		my $d = $s->{delivery} = $by_receipt{"$s->{queue} $s->{receipt}"};

		push @{ $d->{settles} }, $s;
		push @{ $d->{message}{removals} }, $s
		  if $s->{action} =~ /^(ack|archive|reject)$/ && $s->{result} eq 't'
		  && was_there($s->{tx});
	}
	foreach my $row (@{ $h->{dump}{stored} })
	{
		my ($queue, $id, $value, $n, $md5, $key, $count, $failures, $reason) = @$row;
		my $is_dead = $queue =~ s/\.dead$//;

		push @{ $message->($queue, $value)->{ $is_dead ? 'dead' : 'stored' } },
		  { id => $id, n => $n, md5 => $md5, key => $key, reason => $reason };
	}
	foreach my $row (@{ $h->{dump}{archived} })
	{
		my ($queue, $id, $value, $n, $md5) = @$row;
		push @{ $message->($queue, $value)->{archived} }, { id => $id, n => $n, md5 => $md5 };
	}
	return \%messages;
}

# ---------------------------------------------------------------------------
# Was it sent, and is it what was sent?  (unexpected, payload, phantom)
# ---------------------------------------------------------------------------

sub check_origin
{
	my ($m) = @_;
	my @seen = map { @{ $m->{$_} } } qw(deliveries stored archived dead);
	my $name = "$m->{queue} $m->{value}";

	return if !@seen;
	if (!@{ $m->{tries} })
	{
		violation('unexpected', "$name was never sent");
		return;
	}
	foreach my $seen (@seen)
	{
		violation('phantom', "$name was rolled back, and is seen")
		  if is_phantom($seen->{seen}, @{ $m->{tries} });
		violation('payload', "$name is not what was sent")
		  if $seen->{n} != $m->{tries}[0]{n} || !is_payload($m->{value}, $seen->{n}, $seen->{md5});
	}
	return if $m->{queue} eq 'keys';
	my ($try) = @{ $m->{tries} };
	foreach my $d (@{ $m->{deliveries} })
	{
		violation('phantom', "$name was delivered before its COMMIT was sent")
		  if defined $try->{tx}{sent_commit} && $d->{seen} < $try->{tx}{sent_commit};
		violation('unexpected', "$name has id $d->{id}, and was sent with $try->{id}")
		  if defined $try->{id} && $try->{id} != $d->{id};
	}
	return;
}

# ---------------------------------------------------------------------------
# Where is it?  (lost, duplicated, resurrected, dead letters, stranded)
# ---------------------------------------------------------------------------

sub check_place
{
	my ($h, $m) = @_;
	my $name = "$m->{queue} $m->{value}";
	my @taken = grep { $_->{action} =~ /^(ack|pop)$/ && $_->{tx}{outcome} ne 'A' }
	  @{ $m->{removals} };
	my $certain = grep { $_->{tx}{outcome} eq 'C' } @taken;
	my %n = (taken => $certain, map { $_ => scalar @{ $m->{$_} } } qw(stored archived dead));
	my $places = $n{taken} + $n{stored} + $n{archived} + $n{dead};

	if ($m->{outcome} eq 'C')
	{
		violation('lost', "$name is nowhere") if $places == 0 && !@taken;
		$h->{count}{"$m->{queue}-sent"}++;
		$h->{count}{"$m->{queue}-$_"} += $n{$_} foreach keys %n;
		$h->{count}{"$m->{queue}-unknown"}++ if $places == 0 && @taken;
	}
	$h->{count}{recovered}++ if $m->{outcome} eq 'U' && $places > 0;
	if ($n{taken} > 0 && $n{stored} > 0)
	{
		violation('resurrected', "$name was acknowledged, and is stored");
	}
	elsif ($places > 1)
	{
		violation('duplicated', "$name is in $places places: "
			  . join ' ', map { "$n{$_} $_" } sort keys %n);
	}
	violation('stranded', "$name was left in its queue")
	  if $n{stored} > 0 && $n{taken} == 0 && $m->{queue} ne 'keys';
	return;
}

# Nothing is delivered after it was removed for certain.
sub check_resurrected
{
	my ($m) = @_;

	foreach my $r (grep { $_->{tx}{outcome} eq 'C' } @{ $m->{removals} })
	{
		foreach my $d (@{ $m->{deliveries} })
		{
			violation('resurrected', "$m->{queue} $m->{value} was removed by "
				  . name_of($r->{tx}) . ' and delivered to ' . name_of($d->{tx}))
			  if $d->{asked} > $r->{tx}{ended};
		}
	}
	return;
}

# Those that were given up, and those that were to be.
sub check_dead
{
	my ($m) = @_;
	my $name = "$m->{queue} $m->{value}";
	my %done = map { $_->{action} => $_->{tx}{outcome} }
	  grep { $_->{tx}{outcome} ne 'A' } @{ $m->{removals} };

	violation('dead-letter', "$name was rejected, and is no dead letter")
	  if ($done{reject} // '') eq 'C' && !@{ $m->{dead} };
	violation('lost', "$name was archived, and is not in the archive")
	  if ($done{archive} // '') eq 'C' && !@{ $m->{archived} };
	violation('unexpected', "$name is in the archive, and nobody has put it there")
	  if @{ $m->{archived} } && !$done{archive};
	foreach my $dead (@{ $m->{dead} })
	{
		my $failed = grep { $_->{tx}{outcome} ne 'A' } @{ $m->{deliveries} };

		next if $dead->{reason} eq 'rejected' && $done{reject};
		next if $dead->{reason} eq 'max_deliveries' && $m->{queue} eq 'work'
		  && $failed >= $max_deliveries;
		violation('dead-letter',
			"$name was given up ($dead->{reason}) after $failed deliveries");
	}
	return;
}

# ---------------------------------------------------------------------------
# Leases  (double-leased, stale-accepted, delivery counts)
# ---------------------------------------------------------------------------

# The end of lease d, at the least, as somebody finds it who asks at asked and
# has his answer at seen; 0 if it may have been given back by then.  Aborted
# settlements change nothing.  In an ordered queue, who gives one message back
# gives back those of the batch that are behind it.
sub lease_end
{
	my ($d, $asked, $seen, @settles) = @_;
	my $end = $d->{until};

	foreach my $s (sort { $a->{at} <=> $b->{at} } @settles)
	{
		next if $s->{at} > $seen || !was_there($s->{tx}) || $s->{result} eq 'f';
		return 0 if $s->{action} ne 'extend';
		my $is_certain = $s->{tx}{outcome} eq 'C' && $s->{tx}{ended} < $asked;
		$end = $s->{until} if defined $s->{until} && ($is_certain || $s->{until} < $end);
	}
	return $end;
}

# Deliveries are told one after the other by when they were seen: nobody can have a
# message before the transaction that had it has ended, and its client writes down
# what it got before that.  Unless the transaction does not end by its client: then
# the second delivery may have been over when the first one was made.
sub may_be_over
{
	my ($second, $first) = @_;

	return 0 if $second->{asked} >= $first->{seen};
	return 1 if $second->{tx}{outcome} ne 'C';
	return grep { $_->{action} ne 'extend' && $_->{at} < $first->{seen} }
	  @{ $second->{settles} // [] };
}

sub check_leases
{
	my ($m) = @_;
	my @leases = grep { $_->{timeout} > 0 && $_->{tx}{outcome} eq 'C' } @{ $m->{deliveries} };

	foreach my $first (@leases)
	{
		foreach my $second (grep { $_->{seen} > $first->{seen} } @{ $m->{deliveries} })
		{
			next if may_be_over($second, $first);
			next if claimed($second) >= lease_end($first, $second->{asked}, $second->{seen},
				@{ $first->{settles} }, @{ $first->{companions} });
			if ($first->{tx}{maybe_lost})
			{
				explained('double-leased');
				next;
			}
			violation('double-leased', "$m->{queue} $m->{value} was leased by "
				  . name_of($first->{tx}) . ' and given to ' . name_of($second->{tx}));
		}
	}
	return;
}

# A receipt that is accepted: has its delivery ended before?
sub check_accepted
{
	my ($s) = @_;
	my $d = $s->{delivery};
	my $name = "$d->{queue} $d->{value}";

	foreach my $other (@{ $d->{settles} })
	{
		violation('stale-accepted', "$name: $other->{action}, and then $s->{action}")
		  if $other != $s && $other->{action} ne 'extend' && $other->{result} eq 't'
		  && $other->{tx}{outcome} eq 'C' && $other->{tx}{ended} < $s->{at};
	}
	foreach my $later (@{ $d->{message}{deliveries} })
	{
		next if $later->{tx}{outcome} ne 'C' || $later->{seen} <= $d->{seen}
		  || $later->{tx}{ended} >= $s->{at};
		if ($later->{tx}{maybe_lost})
		{
			explained('stale-accepted');
			next;
		}
		violation('stale-accepted', "$name: $s->{action} by " . name_of($s->{tx})
			  . ' after a delivery to ' . name_of($later->{tx}));
	}
	return;
}

# The counter of a delivery is 1 and those before it that were not undone.
# Pops that were undone are counted as well as can be, in their queue.
sub check_counts
{
	my ($h, $m) = @_;
	my ($least, $most, $lost) = (0, 0, 0);
	my $has_pops = $m->{queue} eq 'effects';

	foreach my $d (sort { $a->{seen} <=> $b->{seen} } @{ $m->{deliveries} })
	{
		my $slack = $has_pops ? $h->{failed_pops} : 0;

		# What has been lost in a crash may be counted or not.
		if ($d->{count} < $least + 1 && $d->{count} >= $least + 1 - $lost)
		{
			explained('count');
		}
		elsif ($d->{count} < $least + 1 || $d->{count} > $most + 1 + $slack)
		{
			violation('count', "$m->{queue} $m->{value}: delivery $d->{count} to "
				  . name_of($d->{tx}) . ' is number ' . ($least + 1)
				  . ($most > $least ? ' to ' . ($most + 1) : ''));
		}
		my $outcome = $d->{tx}{outcome};
		$least++ if $outcome eq 'C';
		$lost++ if $d->{tx}{maybe_lost};
		$most++ if was_there($d->{tx}) || $has_pops;
	}
	return;
}

# ---------------------------------------------------------------------------
# Ordered groups
# ---------------------------------------------------------------------------

# What settlements of a message's batch do to the message: see lease_end.
sub join_batches
{
	my ($h) = @_;
	my %batches;

	foreach my $d (grep { $_->{queue} eq 'ordered' } @{ $h->{deliveries} })
	{
		my $key = $d->{message}{tries}[0]{key} // '';
		push @{ $batches{"$d->{tx}{client}.$d->{tx}{n} $key"} }, $d;
	}
	foreach my $batch (values %batches)
	{
		my @given_back = grep { $_->{action} !~ /^(ack|archive|extend)$/ }
		  map { @{ $_->{settles} // [] } } @$batch;
		$_->{companions} = \@given_back foreach @$batch;
	}
	return;
}

# While a batch of a group is leased no other one is given out.
sub check_group_leases
{
	my ($group, @deliveries) = @_;
	my @open;

	foreach my $d (sort { $a->{seen} <=> $b->{seen} } @deliveries)
	{
		my $at = claimed($d);

		# An extend may have made a lease longer; none is longer than this.
		@open = grep { $_->{until} + 10_000_000 > $at } @open;
		foreach my $other (@open)
		{
			next if $other->{tx} == $d->{tx} || $other->{message} == $d->{message}
			  || may_be_over($d, $other);
			next if $at >= lease_end($other, $d->{asked}, $d->{seen},
				@{ $other->{settles} // [] }, @{ $other->{companions} // [] });
			if ($other->{tx}{maybe_lost})
			{
				explained('group-lease');
				next;
			}
			violation('group-lease', "$group: $other->{value} was leased by "
				  . name_of($other->{tx}) . " when $d->{value} was given to "
				  . name_of($d->{tx}));
		}
		push @open, $d if $d->{timeout} > 0 && $d->{tx}{outcome} eq 'C';
	}
	return;
}

# When a message is given out, each that was sent before it, as is certain, has
# been taken away, or is given out with it.
sub check_group_order
{
	my ($group, $messages, @deliveries) = @_;
	my @sent = sort { $a->{id} <=> $b->{id} }
	  map { { id => $_->{tries}[0]{id}, since => $_->{tries}[0]{tx}{ended}, message => $_ } }
	  grep { $_->{outcome} eq 'C' && defined $_->{tries}[0]{id} } @$messages;
	my %with = map { ("$_->{tx}{client}.$_->{tx}{n} $_->{id}" => 1) } @deliveries;
	my $next = 0;
	my $is_gone = sub {
		my ($m, $at) = @_;
		return grep { $_->{at} <= $at } @{ $m->{removals} };
	};

	foreach my $d (sort { $a->{seen} <=> $b->{seen} } @deliveries)
	{
		$next++ while $next < @sent && $is_gone->($sent[$next]{message}, $d->{seen});
		for (my $i = $next; $i < @sent && $sent[$i]{id} < $d->{id}; $i++)
		{
			next if $sent[$i]{since} >= $d->{asked}
			  || $with{"$d->{tx}{client}.$d->{tx}{n} $sent[$i]{id}"}
			  || $is_gone->($sent[$i]{message}, $d->{seen});
			violation('group-order', "$group: $d->{value} was given to "
				  . name_of($d->{tx}) . " before $sent[$i]{message}{value}");
			last;
		}
	}
	return;
}

sub check_groups
{
	my ($h, $messages) = @_;
	my %groups;

	foreach my $m (grep { $_->{queue} eq 'ordered' && @{ $_->{tries} } } values %$messages)
	{
		push @{ $groups{ $m->{tries}[0]{key} } }, $m;
	}
	foreach my $group (sort keys %groups)
	{
		my @deliveries = map { @{ $_->{deliveries} } } @{ $groups{$group} };

		check_group_leases($group, @deliveries) if !$h->{facts}{clock};
		check_group_order($group, $groups{$group}, @deliveries);
	}
	return;
}

# ---------------------------------------------------------------------------
# Idempotency keys, effects, and all of them
# ---------------------------------------------------------------------------

sub check_key
{
	my ($m) = @_;
	my $stored = @{ $m->{stored} };
	my @ids = map { $_->{id} // () } grep { $_->{tx}{outcome} eq 'C' } @{ $m->{tries} };

	violation('idempotency', "$m->{value} is stored $stored times") if $stored > 1;
	foreach my $id (@ids)
	{
		violation('idempotency', "$m->{value} has ids $id and $m->{stored}[0]{id}")
		  if $stored && $id != $m->{stored}[0]{id};
	}
	return;
}

# Own rows of transactions are there exactly if these have committed.
sub check_effects
{
	my ($h) = @_;
	my (%rows, %values, %marks);

	$marks{ $_->[0] }++ foreach @{ $h->{dump}{mark} };
	foreach my $row (@{ $h->{dump}{effect} })
	{
		my ($tx, $value) = @$row;
		$rows{"$tx $value"}++;
		violation('effect', "$value had its effect twice") if $values{$value}++;
	}
	foreach my $effect (@{ $h->{effects} })
	{
		my $name = name_of($effect->{tx}) . " $effect->{value}";
		my $n = delete $rows{$name} // 0;

		violation('effect', "$name is missing") if $effect->{tx}{outcome} eq 'C' && $n == 0;
		violation('effect', "$name was rolled back") if $effect->{tx}{outcome} eq 'A' && $n > 0;
	}
	violation('effect', "$_ comes from nowhere") foreach sort keys %rows;
	foreach my $name (keys %{ $h->{tx} })
	{
		my $tx = $h->{tx}{$name};

		next if $tx->{kind} =~ /^(lease|look|)$/;
		violation('lost', "transaction $name is lost") if $tx->{outcome} eq 'C' && !$marks{$name};
		violation('phantom', "transaction $name was rolled back")
		  if $tx->{outcome} eq 'A' && $marks{$name};
		violation('duplicated', "transaction $name is there twice") if ($marks{$name} // 0) > 1;
	}
	return;
}

sub check_asks
{
	my ($h) = @_;

	foreach my $ask (@{ $h->{asks} })
	{
		violation('over-claim', name_of($ask->{tx}) . " got $ask->{got}, not $ask->{count}")
		  if $ask->{got} > $ask->{count};
	}
	# What was popped in vain by a statement that has failed nobody has seen.
	$h->{failed_pops} = grep { $_->{timeout} == 0 && $_->{tx}{outcome} eq 'A' && $_->{got} == 0 }
	  @{ $h->{asks} };
	return;
}

sub check_ids
{
	my ($h) = @_;
	my %seen;

	foreach my $row (@{ $h->{dump}{stored} }, @{ $h->{dump}{archived} })
	{
		my ($queue, $id, $value) = @$row;
		violation('duplicated', "queue $queue has id $id twice: $value")
		  if $seen{"$queue $id"}++;
	}
	return;
}

sub check_queues
{
	my ($h) = @_;
	my $messages = collect($h);

	check_asks($h);
	check_ids($h);
	join_batches($h);
	excuse_no_suspects($h, $_) foreach values %$messages;
	foreach my $m (values %$messages)
	{
		$m->{outcome} = send_outcome(@{ $m->{tries} });
		check_origin($m);
		next if !@{ $m->{tries} };
		check_place($h, $m);
		check_resurrected($m);
		check_dead($m);
		check_leases($m) if !$h->{facts}{clock};
		check_counts($h, $m);
		check_key($m) if $m->{queue} eq 'keys';
	}
	check_accepted($_) foreach grep { $_->{result} eq 't' && $_->{delivery}{message} } @{ $h->{settles} };
	check_groups($h, $messages);
	check_effects($h);
	return;
}

1;
