# History.pm: what a chaos run has left, read into memory, for the checker.
#
#	read_history(DIR)		a reference to the hash that is described below
#	violation(CLASS, TEXT)	something that must not be
#	explained(CLASS)		something that a crash explains, and is only counted
#
# Of the history:
#
#	tx			"client.n" => { client, n, kind, invoke, outcome, ended, ... }.
#				outcome: C committed, A aborted, U unknown.  ended: the time
#				since which it is certain, for C.  sent_commit: when COMMIT was
#				sent.  maybe_lost: a crash may have undone it (see below)
#	tries		[ { tx, queue, value, n, key, undone, id } ]
#	deliveries	[ { tx, queue, value, id, receipt, count, n, md5, until, asked,
#				seen, timeout } ], times in microseconds, timeout 0 for pop
#	asks		[ { tx, queue, count, got } ]
#	settles		[ { tx, action, queue, receipt, at, done, result, until } ]
#	effects		[ { tx, value } ]
#	entries		[ { tx, group, partition, position, id, value, n, md5, receipt, seen } ]
#	moves		[ { tx, group, receipt, upto, at, result } ]
#	probes, fails, recoveries, faults, ends
#	facts		name => 1: what the run was like
#	wal_full	[ { from, to } ]: when there was no space for the write-ahead log
#	dump		kind => [ [ words ] ]
#
# Facts: replicated, the server may be another one after a recovery, a standby;
# lossy, that one may be behind; torn, pages may be on the disk in part; full, the
# disk may be; clock, the server's was set, so that its times say nothing.
#
# Outcomes.  ok and fail are the server's word.  For a transaction whose COMMIT
# was not answered, or that was prepared, there is the answer of pg_xact_status.
# "aborted" is true.  "committed" is true unless the xid was given away a second
# time: that can be if it got lost in a crash, with all that was logged under
# it.  Then the log that survived, up to where the recovery says "redo done",
# ends before the position that the client has read before COMMIT.
#
# Where a standby takes over, a confirmed commit is lost if the standby's log ends
# before it: if the standby is asynchronous ("lossy"), or if the wait for it was
# broken off ("unsynced").  Such a commit is "undone", at the time of that recovery;
# until then everybody could see what it did.  It is unknown whether it is lost if
# the end lies between the positions that the client has read before and after.
#
# Likewise for a lease whose commit does not wait for the disk
# (msgq.async_leases): the crash may have undone it if the log that survived
# ends before the position that the client has read after the commit.  Such a
# lease is "maybe_lost".

package History;

use strict;
use warnings;

use Exporter 'import';

our @EXPORT = qw(read_history violation explained);

our (%violations, %explained, %shown);

sub violation
{
	my ($class, $text) = @_;
	push @{ $shown{$class} }, $text if ++$violations{$class} <= 5;
	return;
}

sub explained
{
	my ($class) = @_;
	$explained{$class}++;
	return;
}

# A position in the write-ahead log as a number; nothing if there is none.
sub lsn
{
	my ($text) = @_;
	return ($text // '') =~ m{^([0-9A-F]+)/([0-9A-F]+)$} ? (hex($1) << 32) + hex($2) : undef;
}

# ---------------------------------------------------------------------------
# Lines of a client's log
# ---------------------------------------------------------------------------

# Each gets the history, the state of the client, the time, the transaction,
# and the other words.
my %lines = (
	invoke => sub {
		my ($h, $c, $t, $tx, $kind) = @_;
		%$tx = (%$tx, kind => $kind, invoke => $t, async => $c->{async});
	},
	try => sub {
		my ($h, $c, $t, $tx, $queue, $value, $n, $key) = @_;
		my $try = { tx => $tx, queue => $queue, value => $value, n => $n, key => $key };
		push @{ $h->{tries} }, $try;
		$c->{tries}{$value} = $try;
	},
	undo => sub { $_[1]{tries}{ $_[4] }{undone} = 1; },
	sent => sub { $_[1]{tries}{ $_[4] }{id} = $_[5]; },
	ask => sub {
		my ($h, $c, $t, $tx, $queue, $count, $timeout) = @_;
		$c->{ask} = { tx => $tx, queue => $queue, count => $count, got => 0,
			at => $t, timeout => $timeout };
		push @{ $h->{asks} }, $c->{ask};
	},
	got => sub {
		my ($h, $c, $t, $tx, $queue, $value, $id, $receipt, $count, $n, $md5, $until) = @_;
		$c->{ask}{got}++;
		push @{ $h->{deliveries} },
		  { tx => $tx, queue => $queue, value => $value, id => $id,
			receipt => $receipt, count => $count, n => $n, md5 => $md5,
			until => $until, asked => $c->{ask}{at}, seen => $t,
			timeout => $c->{ask}{timeout} };
	},
	settle => sub {
		my ($h, $c, $t, $tx, $action, $queue, $receipt) = @_;
		my $settle = { tx => $tx, action => $action, queue => $queue,
			receipt => $receipt, at => $t, result => '-' };
		push @{ $h->{settles} }, $settle;
		$c->{settles}{"$tx->{n} $receipt"} = $settle;
	},
	settled => sub {
		my ($h, $c, $t, $tx, $action, $queue, $receipt, $result, $until) = @_;
		my $settle = $c->{settles}{"$tx->{n} $receipt"} // return;
		@$settle{qw(result until done)} = ($result, $until, $t);
	},
	effect => sub { push @{ $_[0]{effects} }, { tx => $_[3], value => $_[4] }; },
	entry => sub {
		my ($h, $c, $t, $tx, @words) = @_;
		my %entry = (tx => $tx, seen => $t);
		@entry{qw(group partition position id value n md5 receipt)} = @words;
		push @{ $h->{entries} }, \%entry;
	},
	move => sub { },
	moved => sub {
		my ($h, $c, $t, $tx, $group, $receipt, $upto, $result) = @_;
		push @{ $h->{moves} },
		  { tx => $tx, group => $group, receipt => $receipt, upto => $upto,
			result => $result, at => $tx->{invoke} };
	},
	commit => sub {
		my ($h, $c, $t, $tx, $xid, $lsn) = @_;
		@$tx{qw(xid lsn sent_commit)} = ($xid, lsn($lsn), $t);
	},
	prepare => sub {
		my ($h, $c, $t, $tx, $xid, $lsn) = @_;
		@$tx{qw(xid lsn sent_commit prepared)} = ($xid, lsn($lsn), $t, 1);
		$h->{ends}{prepared}++;
	},
	ok => sub { @{ $_[3] }{qw(said ended)} = ('ok', $_[2]); },
	fail => sub {
		my ($h, $c, $t, $tx, $sqlstate) = @_;
		@$tx{qw(said ended)} = ('fail', $t);
		$h->{fails}{$sqlstate}++;
	},
	unknown => sub { $_[3]{said} = 'unknown'; },
	lsn => sub { $_[3]{after} = lsn($_[4]); },
	unsynced => sub { $_[3]{unsynced} = 1; },
	finish => sub { },
	finished => sub { },
	status => sub {
		my ($h, $c, $t, $tx, $status) = @_;
		@$tx{qw(status answered)} = ($status, $t);
		$tx->{first_answered} //= $t;
	},
	unresolved => sub { $_[0]{ends}{unresolved}++; },
	probe => sub { push @{ $_[0]{probes} }, { us => $_[4], kind => $_[5] }; });

sub read_client
{
	my ($h, $file) = @_;
	my ($client, $ended);

	open my $log, '<', $file or die "could not open $file: $!";
	while (my $line = <$log>)
	{
		chomp $line;
		my ($t, $what, @words) = split / /, $line;

		if ($what eq 'client')
		{
			$client = { name => $words[0], async => $words[3] eq 'on' };
			$h->{clients}{ $words[1] }++;
			next;
		}
		if ($what eq 'end')
		{
			$ended = 1;
			next;
		}
		my $do = $lines{$what} // die "unknown line in $file: $line";
		my $n = shift @words;
		my $tx = $h->{tx}{"$client->{name}.$n"} //=
		  { client => $client->{name}, n => $n, kind => '', invoke => $t };
		# Only its current transaction matters to a client.
		$client->{settles} = $client->{tries} = {} if $what eq 'invoke';
		$do->($h, $client, $t, $tx, @words);
	}
	close $log;
	violation('incomplete', "$file has no end") if !$ended;
	return;
}

# ---------------------------------------------------------------------------
# The other files
# ---------------------------------------------------------------------------

sub read_nemesis
{
	my ($h, $file) = @_;

	open my $log, '<', $file or die "could not open $file: $!";
	while (my $line = <$log>)
	{
		chomp $line;
		my ($t, $what, @words) = split / /, $line;

		$h->{run} = "@words" if $what eq 'run';
		$h->{facts}{ $words[0] } = 1 if $what eq 'fact';
		if ($what =~ /^(?:fault|done)$/ && $words[0] eq 'wal-disk-full')
		{
			push @{ $h->{wal_full} }, { from => $t } if $what eq 'fault';
			$h->{wal_full}[-1]{to} = $t if $what eq 'done';
		}
		push @{ $h->{recoveries} }, { at => $t, lsn => lsn($words[0]) }
		  if $what eq 'recovery';
		next if $what ne 'done';
		my $name = shift @words;
		$h->{faults}{$name}{ $words[0] eq 'nothing' ? 'skipped' : 'done' }++;
		foreach (@words)
		{
			$h->{faults}{$name}{$1} += $2 if /^([\w-]+)=(\d+)$/;
		}
	}
	close $log;
	$h->{recoveries} = [ sort { $a->{at} <=> $b->{at} } @{ $h->{recoveries} // [] } ];
	return;
}

sub read_dump
{
	my ($h, $file) = @_;

	open my $log, '<', $file or die "could not open $file: $!";
	while (my $line = <$log>)
	{
		chomp $line;
		my ($kind, @words) = split / /, $line;
		push @{ $h->{dump}{$kind} }, \@words if defined $kind;
	}
	close $log;
	violation('incomplete', 'the dump has no end') if !$h->{dump}{end};
	return;
}

# What the server may complain about if the disk is like that.
sub is_forgiven
{
	my ($h, $at, $text) = @_;
	my $no_space = qr/No space left on device|wrote only \d+ of \d+ bytes/;

	# Maps of free space are not in the write-ahead log, and may say anything.
	return 1 if $h->{facts}{torn}
	  && $text =~ /^(?:WARNING|LOG):  invalid page in block \d+ of relation \S+_fsm"?; zeroing out page$/;
	return 0 if !$h->{facts}{full};
	return 1 if $text =~ /^WARNING:  could not maintain .*$no_space/;
	return 0 if !grep { $at >= $_->{from} && $at <= $_->{to} } @{ $h->{wal_full} };
	return $text =~ /^PANIC:  could not write .*$no_space/
	  || $text =~ / was terminated by signal 6: /;
}

sub read_server_log
{
	my ($h, $file) = @_;

	open my $log, '<', $file or die "could not open $file: $!";
	while (my $line = <$log>)
	{
		chomp $line;
		violation('server', $line) if !is_forgiven($h, split / /, $line, 2);
	}
	close $log;
	return;
}

# ---------------------------------------------------------------------------
# Outcomes
# ---------------------------------------------------------------------------

# The first recovery after that time.
sub recovery_after
{
	my ($h, $at) = @_;

	foreach my $recovery (@{ $h->{recoveries} })
	{
		return $recovery if $recovery->{at} > $at;
	}
	return;
}

# Of one that was committed, and then a standby took over.
sub outcome_after
{
	my ($h, $tx, $recovery) = @_;

	return 'U' if !defined $recovery->{lsn} || !defined $tx->{lsn};
	return 'C' if defined $tx->{after} && $tx->{after} <= $recovery->{lsn};
	$tx->{undone} = $recovery->{at};
	return 'U' if $tx->{lsn} <= $recovery->{lsn};
	$h->{ends}{undone}++;
	return 'A';
}

# Of one that was confirmed.
sub outcome_by_answer
{
	my ($h, $tx) = @_;

	return 'C' if !$h->{facts}{lossy} && !$tx->{unsynced};
	my $recovery = recovery_after($h, $tx->{sent_commit}) // return 'C';
	return outcome_after($h, $tx, $recovery);
}

# Of one that was asked for.
sub outcome_by_status
{
	my ($h, $tx) = @_;

	return 'U' if !defined $tx->{status} || $tx->{status} eq 'old';
	return 'A' if $tx->{status} eq 'aborted';
	my $recovery = recovery_after($h, $tx->{sent_commit}) // return 'C';
	if ($recovery->{at} > $tx->{answered})
	{
		return $h->{facts}{replicated} ? outcome_after($h, $tx, $recovery) : 'C';
	}
	return 'U' if !defined $recovery->{lsn} || !defined $tx->{lsn};
	if ($tx->{lsn} > $recovery->{lsn})
	{
		$h->{ends}{'xid-reused'}++;
		return 'A';
	}
	return 'C';
}

sub decide
{
	my ($h, $tx) = @_;
	my $said = $tx->{said} // '';

	if ($said eq 'fail')
	{
		$tx->{outcome} = 'A';
	}
	elsif ($said eq 'ok')
	{
		$tx->{outcome} = outcome_by_answer($h, $tx);
	}
	else
	{
		$tx->{outcome} = outcome_by_status($h, $tx);
		# Prepared ones are asked for again, in case that a standby did not know.
		$tx->{ended} = $h->{facts}{replicated} ? $tx->{answered} : $tx->{first_answered}
		  if $tx->{outcome} eq 'C';
		$h->{ends}{ $tx->{prepared} ? 'prepared' : 'unknown' . "-$tx->{outcome}" }++
		  if $said eq 'unknown';
	}
	$h->{ends}{ $tx->{outcome} }++;
	return if $tx->{kind} ne 'lease' || !$tx->{async} || $tx->{outcome} eq 'A';
	my $recovery = recovery_after($h, $tx->{sent_commit}) // return;
	$tx->{maybe_lost} = !defined $recovery->{lsn} || !defined $tx->{after}
	  || $tx->{after} > $recovery->{lsn};
	return;
}

sub read_history
{
	my ($dir) = @_;
	my $h = {
		map({ $_ => [] }
			qw(tries deliveries asks settles effects entries moves probes recoveries wal_full)),
		map({ $_ => {} } qw(tx fails faults ends facts dump clients)) };

	read_client($h, $_) foreach sort glob "$dir/log/*";
	read_nemesis($h, "$dir/nemesis.log");
	read_dump($h, "$dir/dump");
	read_server_log($h, "$dir/server.log");
	decide($h, $_) foreach values %{ $h->{tx} };
	return $h;
}

1;
