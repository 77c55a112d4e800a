#
# bench/waiting.pl - the cases with consumers that wait inside of receive
#
# Part of bench/measure.pl, which loads this file and whose programs, figures
# and tables it uses.

use strict;
use warnings;

use List::Util qw(max);
use POSIX qw(ceil);
use Time::HiRes qw(sleep time);

our (%SIDE, %opt, %size, @remarks, @rows, $BODY);

# ---------------------------------------------------------------------------
# bench/latency.c
# ---------------------------------------------------------------------------

sub start_probe
{
	my ($mode, @options) = @_;
	my $program = "$opt{work}/latency";
	die "there is no $program: bench/run could not compile bench/latency.c\n" unless -x $program;
	return start("latency-$mode", $program, '--body', $BODY, @options, $mode);
}

# Returns its figures by name.  The buckets of the histograms are in
# $figure->{bucket}{commit}, ...{issue}.
sub finish_probe
{
	my ($program) = @_;
	my %figure;
	for my $line (split /\n/, finish($program))
	{
		my ($name, @values) = split / /, $line;
		if ($name eq 'left')   { push @{ $figure{left} }, $line; next; }
		if ($name ne 'bucket') { $figure{$name} = $values[0];    next; }
		my $of = shift @values;
		push @{ $figure{bucket}{$of} }, \@values;
	}
	return \%figure;
}

# Consumers of a probe that has failed may wait still, for a message of ours.
sub fresh_queue
{
	psql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE application_name = 'msgq-bench-consumer'});
	prepare('msgq', 0);
	return;
}

sub probe
{
	fresh_queue();
	return finish_probe(start_probe(@_));
}

sub span_text
{
	my ($low, $high) = @_;
	for my $unit ([ 's', 1e6 ], [ 'ms', 1e3 ])
	{
		return join('-', $low / $unit->[1], $high / $unit->[1]) . " $unit->[0]"
		  if $low >= $unit->[1];
	}
	return "$low-$high us";
}

sub histogram
{
	my ($buckets) = @_;
	my $most = max(map { $_->[2] } @{$buckets});
	return map {
		sprintf('  %12s  %-40s %s', span_text(@{$_}[ 0, 1 ]),
			'#' x ceil(40 * $_->[2] / $most), thousands($_->[2]))
	} @{$buckets};
}

sub percentiles
{
	my ($figure, $name) = @_;
	return join(', ', map {
		sprintf('%s %.2f ms', $_, $figure->{"${name}_$_"} / 1000)
	} qw(p50 p90 p99 p99.9 max));
}

# One row about one figure that has a ceiling.
sub ceiling_row
{
	my ($name, $value, %row) = @_;
	push @rows, { %row, floor => limit_text($name), verdict => verdict($name, $value) };
	return;
}

# ---------------------------------------------------------------------------
# The pick-up latency
#
# Messages come evenly and do not wait for each other (an open loop), so a
# slow moment counts for all that come in it.  The server's own fallback poll
# stays as it is.
# ---------------------------------------------------------------------------

my $LATENCY_RATE = 500;

sub latency
{
	my $figure = probe('pickup', '--rate', $LATENCY_RATE, '--seconds', $size{latency},
		qw(--producers 4 --consumers 2 --wait), '5 s');
	my ($sent, $picked_up) = @{$figure}{qw(sent picked_up)};
	die "$sent messages were sent, $picked_up picked up, $figure->{twice} more than once\n"
	  if $sent != $picked_up || $figure->{twice} || $sent != $LATENCY_RATE * $size{latency};
	check_waiting('msgq', 0);
	for my $p (qw(p50 p99))
	{
		my $ms = $figure->{"commit_$p"} / 1000;
		ceiling_row("latency_$p", $ms,
			case     => "latency, $p",
			msgq     => sprintf('%.2f ms', $ms),
			baseline => 'after the commit of send',
			base     => "$LATENCY_RATE messages/s offered");
	}
	remark(
		"latency, from the commit to the pick-up: " . percentiles($figure, 'commit'),
		histogram($figure->{bucket}{commit}),
		"latency, from the call of send to the pick-up: " . percentiles($figure, 'issue'),
		histogram($figure->{bucket}{issue}),
		sprintf('latency: %s messages, all picked up once; no send was later than %.2f ms',
			thousands($sent), $figure->{late_max} / 1000));
	return;
}

sub remark
{
	push @remarks, @_;
	progress($_) for @_;
	return;
}

# ---------------------------------------------------------------------------
# No lost wake-ups
#
# The fallback poll would hide them, so these sessions set it to an hour.
# What is left over after the race was missed altogether; what a single
# message has to wait for shows whether its commit has woken anybody.
# ---------------------------------------------------------------------------

sub wakeups
{
	my @poll = ('--poll-interval', $opt{'poll-interval'});
	my $race = probe('race', '--messages', $size{race}, qw(--producers 4 --consumers 8), @poll);
	my $lost = $size{race} - $race->{picked_up};
	progress(sprintf('wakeups, race: %d missing, %d twice', $lost, $race->{twice}));
	ceiling_row('wakeups', $lost + $race->{twice} + $race->{stale},
		case     => 'wakeups, race',
		msgq     => "$lost lost, $race->{twice} twice",
		baseline => 'waits begin and end all the time',
		base     => thousands($race->{sent}) . ' messages');
	my $handover = probe('handover', '--messages', $size{handover},
		qw(--producers 1 --consumers 4 --wait), '60 s', @poll);
	ceiling_row('wakeups', $handover->{lost} + $handover->{twice} + $handover->{stale},
		case     => 'wakeups, one by one',
		msgq     => "$handover->{lost} late, $handover->{twice} twice",
		baseline => 'one sent when one waits',
		base     => thousands($handover->{sent}) . ' messages');
	wakeup_remarks($race, $handover);
	return;
}

sub wakeup_remarks
{
	my ($race, $handover) = @_;
	remark(sprintf('wakeups, race: %s waits ended without a message, %s were cancelled, '
			  . '%s consumers disconnected',
			map { thousands($_) } @{$race}{qw(empty cancelled disconnected)}));
	remark(sprintf('wakeups, race: all was picked up %.0f ms after the last commit',
			max(0, $race->{drained_after}) / 1000))
	  if defined $race->{drained_after};
	remark("wakeups, race: it was given up, since nothing was picked up for 5 s; seed $race->{seed}",
		map { "wakeups, race: $_" } @{ $race->{left} || [] })
	  if $race->{gave_up};
	remark('wakeups, race, from the commit to the pick-up: ' . percentiles($race, 'commit'));
	remark('wakeups, one by one: it was given up') if $handover->{gave_up};
	remark('wakeups, one by one, from the commit to the pick-up: '
		  . percentiles($handover, 'commit'));
	remark("wakeups: the server does not know msgq.poll_interval")
	  unless $race->{poll_interval_set};
	return;
}

# ---------------------------------------------------------------------------
# A queue under a held snapshot
#
# Consumers that keep up with 2,000 messages a second, with and without
# a session that keeps a snapshot open.  Nothing that is consumed meanwhile can
# be vacuumed, but a segment that has been drained can be truncated, unless
# the holder has a lock on it.
#
# Most of the time that a receive takes is spent waiting for a message, which
# would hide what it costs, and depends on who is woken up how often.  So there
# are two times: of the whole receive, which is only shown, and of the claim,
# which begins when both the receive was called and the message committed.
#
#	a	the holder has never looked at the queue
#	b	it has read the queue's view, so nothing can be truncated until it
#		is gone
#	c	as a, and many messages are in the queue that are due next month
# ---------------------------------------------------------------------------

my $QUEUE_RATE = 2000;
my $CALIBRATE  = 10_000;    # messages that tell how large one is

my %QUEUE_RUN = (
	free   => {},
	a      => { holder => sub { return 'SELECT 1 FROM pg_class LIMIT 1' } },
	b      => { holder => sub { return "SELECT count(*) FROM $_[0]" }, release => 1 },
	free_c => { delayed => 1 },
	c      => { holder => sub { return 'SELECT 1 FROM pg_class LIMIT 1' }, delayed => 1 },
);
my %QUEUE_FREE = (a => 'free', b => 'free', c => 'free_c');

sub held_queue
{
	my @order = qw(free a b free_c c);
	my (%runs, $segment);
	with_segment_size(sub {
		$segment = psql(q{SELECT pg_size_bytes(current_setting('msgq.segment_size'))});
		my $bytes = message_bytes();
		for my $round (1 .. $size{hold_rounds})
		{
			for my $name ($round % 2 ? @order : reverse @order)
			{
				push @{ $runs{$name} }, queue_round($name, $segment, $bytes);
			}
		}
	});
	queue_rows($_, $runs{$_}, $runs{ $QUEUE_FREE{$_} }) for sort keys %QUEUE_FREE;
	push @remarks, sprintf('held_queue: segments of %s, snapshot held for %d s',
		megabytes($segment), $size{hold});
	push @remarks, map { @{ $_->{remarks} } } map { @{ $runs{$_} } } @order;
	return;
}

# Small segments, so that rings turn within a minute; the setting goes back
# whatever happens.
sub with_segment_size
{
	my ($code) = @_;
	return $code->() unless $size{segment};
	psql("ALTER SYSTEM SET msgq.segment_size = '$size{segment}'", 'SELECT pg_reload_conf()');
	my $done = eval {
		for (1 .. 50)
		{
			last if psql('SHOW msgq.segment_size') eq $size{segment};
			sleep 0.1;
		}
		$code->();
		1;
	};
	my $why = $@;
	psql('ALTER SYSTEM RESET msgq.segment_size', 'SELECT pg_reload_conf()');
	die $why unless $done;
	return;
}

# The size of all segments of the queue with this handle, in bytes.
sub disk
{
	my ($handle) = @_;
	(my $name = $handle) =~ s/.*\.//;
	return psql(qq{SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0) FROM pg_class c
		WHERE c.relnamespace = 'msgq'::regnamespace AND c.relkind = 'r'
		  AND c.relname ~ '^${name}_[0-9]+\$'});
}

# In many transactions, so that segments can turn meanwhile.
sub load_delayed
{
	my ($count) = @_;
	psql(sprintf(q{DO $$
BEGIN
	FOR i IN 1 .. %d / 1000 LOOP
		PERFORM msgq.send_batch('bench', array_fill(%s::jsonb, ARRAY[1000]),
			delay => '30 days');
		COMMIT;
	END LOOP;
END $$}, $count, quoted($BODY)), 'VACUUM ANALYZE');
	return;
}

# What a message takes on the disk, with its index entries.
sub message_bytes
{
	prepare('msgq', 0);
	my $handle = $SIDE{msgq}{table}->();
	my $before = disk($handle);
	load_delayed($CALIBRATE);
	return (disk($handle) - $before) / $CALIBRATE;
}

# Tables of msgq that are no segments, and their dead rows.
sub dead_rows
{
	sleep 1.5;    # until everybody has reported
	return psql(q{SELECT string_agg(relname || ' ' || n_dead_tup, ', ' ORDER BY relname)
		FROM pg_stat_all_tables
		WHERE schemaname = 'msgq' AND relname !~ '^q[0-9]+_[0-9]+$'});
}

# One run: rates, durations and sizes.
sub queue_round
{
	my ($name, $segment, $bytes) = @_;
	my $how = $QUEUE_RUN{$name};
	fresh_queue();
	psql('VACUUM');
	my $delayed = $how->{delayed} ? $size{delayed} : 0;
	load_delayed($delayed) if $delayed;
	my $handle = $SIDE{msgq}{table}->();
	my %run    = (name => $name, live => disk($handle), release => 9**9**9);

	my $holder = $how->{holder} ? hold_snapshot($how->{holder}->($handle)) : undef;
	my $length = $size{hold} + 4 + ($how->{release} ? $size{release} : 0);
	my $probe  = start_probe('pickup', '--rate', $QUEUE_RATE, '--seconds', $length,
		'--measure', $size{hold}, qw(--producers 8 --consumers 4 --wait), '1 s');
	sleep 1;    # until it has begun
	my $since = time();
	my @cpu   = (consumer_cpu());
	for my $second (1 .. $size{hold})
	{
		sleep max(0, $since + $second - time());
		push @{ $run{disk} }, disk($handle);
	}
	push @cpu, consumer_cpu();
	$run{backlog} = waiting('msgq') - $delayed;
	$run{dead} = dead_rows();
	my $bound = sub { return 3 * $segment + 2 * ($run{live} + $_[0] * $bytes) };
	$run{bound} = $bound->($run{backlog});
	release_snapshot($holder) if $holder;
	wait_for_space(\%run, $handle) if $how->{release};

	my $figure = finish_probe($probe);
	die "held_queue $name: $figure->{sent} messages were sent, $figure->{picked_up} picked up, "
	  . "$figure->{twice} more than once\n"
	  if $figure->{sent} != $figure->{picked_up} || $figure->{twice};
	check_waiting('msgq', $delayed);
	$run{most}  = $figure->{waiting_max};
	$run{bound} = $bound->($run{most}) unless $how->{release};
	$run{final} = disk($handle);
	$run{rate}  = $figure->{rate};
	$run{$_}    = $figure->{$_} / 1000
	  for map { ("${_}_p50", "${_}_p99") } qw(receive claim commit);
	$run{cpu} = 1e6 * ($cpu[1] - $cpu[0]) / $size{hold} / max(1, $run{rate});
	queue_remarks(\%run);
	return \%run;
}

# How long after the release the space is back, while the load goes on.
sub wait_for_space
{
	my ($run, $handle) = @_;
	my $released = time();
	while (time() < $released + $size{release})
	{
		if (disk($handle) <= $run->{bound})
		{
			$run->{release} = time() - $released;
			return;
		}
		sleep 0.5;
	}
	return;
}

sub megabytes    { return sprintf('%.1f MB', $_[0] / 1024 / 1024) }
sub milliseconds { return sprintf('%.2f ms', $_[0]) }

sub queue_remarks
{
	my ($run) = @_;
	my $title = "held_queue, $run->{name}";
	$run->{remarks} = [
		sprintf('%s: %s consumed/s; p50 and p99 of receive %.2f and %.2f ms, of the claim %.2f and '
			  . '%.2f ms, from commit to pick-up %.2f and %.2f ms; '
			  . 'processor time of consumers for each message %.0f us',
			$title, thousands($run->{rate}),
			@{$run}{qw(receive_p50 receive_p99 claim_p50 claim_p99 commit_p50 commit_p99 cpu)}),
		sprintf('%s: disk at first %s, at most %s, at the end of the hold %s, after it %s; '
			  . 'bound %s; at most %s messages waiting, %s at the end',
			$title, map({ megabytes($_) } $run->{live}, max(@{ $run->{disk} }), $run->{disk}[-1],
				$run->{final}, $run->{bound}),
			map({ thousands($_) } @{$run}{qw(most backlog)})),
		"$title: dead rows at the end of the hold: $run->{dead}",
	];
	progress($_) for @{ $run->{remarks} };
	return;
}

# The rows of one variant: rate, duration of a claim, disk.
sub queue_rows
{
	my ($name, $held, $free) = @_;
	my @compared = (
		[ 'consumed',    'held_queue_rate', \&thousands,    'rate' ],
		[ 'receive p99', undef,             \&milliseconds, 'receive_p99' ],
		[ 'claim p99',   'held_queue_p99',  \&milliseconds, 'claim_p99' ],
	);
	for my $row (@compared)
	{
		my ($title, $limit, $format, $key) = @{$row};
		my @ratios = map { $held->[$_]{$key} / $free->[$_]{$key} } 0 .. $#{$held};
		push @rows, {
			case     => "held_queue $name, $title",
			msgq     => spread($format, map { $_->{$key} } @{$held}),
			baseline => 'no snapshot held',
			base     => spread($format, map { $_->{$key} } @{$free}),
			ratio    => spread(\&ratio_text, @ratios),
			$limit ? (floor => limit_text($limit), verdict => verdict($limit, median(@ratios))) : (),
		};
	}
	my @most  = map { max(@{ $_->{disk} }) } @{$held};
	my @bound = map { $_->{bound} } @{$held};
	my %row   = (
		case     => "held_queue $name, disk",
		msgq     => spread(\&megabytes, @most),
		baseline => '3 segments and 2 x live',
		base     => spread(\&megabytes, @bound));
	my $worst = max(map { $most[$_] / $bound[$_] } 0 .. $#most);
	if ($QUEUE_RUN{$name}{release})
	{
		my $slowest = max(map { $_->{release} } @{$held});
		$row{ratio} = $slowest > $size{release}
		  ? "not in $size{release} s"
		  : sprintf('%.1f s after release', $slowest);
		ceiling_row('held_queue_release', $slowest, %row);
		return;
	}
	ceiling_row('held_queue_disk', $worst, %row, ratio => ratio_text($worst));
	return;
}

1;
