#
# bench/streams.pl - the cases of streams
#
# Part of bench/measure.pl, which loads this file and whose programs, figures
# and tables it uses.  What a stream is compared with is PgQ, the log that
# PostgreSQL has had for long, and a plain INSERT into a table like that of
# a stream's entries.

use strict;
use warnings;

use List::Util qw(max min);
use Time::HiRes qw(sleep time);

our (%SIDE, %FLOOR, %CEILING, %opt, %size, @EMPTIED, @remarks, @rows, $BODY, $BATCH);

# What issue and README promise.
%FLOOR = (
	%FLOOR,
	append_plain => 0.95,
	append_pgq   => 1.0,
	append_batch => 1.3,
	read         => 1.0,
	held_stream  => 0.9,
);
%CEILING = (
	%CEILING,
	append_latency_p50 => 2,     # ms
	append_latency_p99 => 10,    # ms
	groups_storage     => 0,     # bytes
	lag                => 5,     # ms
);

# Entries of one read, and events of one batch of PgQ.
my $READ = 1000;

# PgQ's ticker is a daemon that is not in the package, and is called by hand.
my $TICK = 0.2;    # s

my $GROUPS = 8;

# Each round has a stream of a new name; those of other rounds, and of other
# runs, are dropped.
my $stream;
my $nstreams = int(time());

my $GROUP_NAMES = "(SELECT 'g' || i AS name FROM generate_series(0, @{[ $GROUPS - 1 ]}) AS i) AS g";

# ---------------------------------------------------------------------------
# The sides
# ---------------------------------------------------------------------------

sub next_stream
{
	$stream = 'bench_stream_' . ++$nstreams;
	stream_sides();
	return;
}

# One batch for each transaction, so that each has its own tick, or position.
sub in_batches
{
	my (@statements) = @_;
	return join("\n", 'DO $$', 'DECLARE', "\tone text := %s;", 'BEGIN',
		"\tSET synchronous_commit = off;",
		"\tFOR i IN 1 .. %d / $READ LOOP", (map { ("\t\t$_;", "\t\tCOMMIT;") } @statements),
		"\tEND LOOP;", 'END $$');
}

sub stream_sides
{
	$SIDE{stream} = {
		title => 'msgq',
		ours  => 1,
		empty => [
			q{SELECT msgq.drop_stream(name) FROM msgq.streams WHERE name ~ '^bench_stream'},
			qq{SELECT msgq.create_stream('$stream')},
			qq{SELECT msgq.create_group('$stream', 'g', 'first')},
		],
		load => in_batches("PERFORM msgq.append_batch('$stream', "
			  . "array_fill(one::jsonb, ARRAY[$READ]))"),
		table  => sub { return 'msgq.s' . stream_id() },
		append => qq{SELECT msgq.append('$stream', :body::jsonb);},
		append_batch => qq{SELECT msgq.append_batch('$stream', :bodies::jsonb[]);},
		read => qq{SELECT count(*) FROM msgq.read('$stream', 'g', $READ);},
	};
	$SIDE{plain_stream} = {
		title  => 'plain INSERT',
		setup  => 'plain_stream.sql',
		empty  => ['TRUNCATE plain_stream.entries RESTART IDENTITY'],
		table  => sub { return 'plain_stream.entries' },
		append => q{INSERT INTO plain_stream.entries (partition, body) VALUES (0, :body::jsonb);},
		append_batch => q{INSERT INTO plain_stream.entries (partition, body)
			SELECT 0, unnest(:bodies::jsonb[]);},
	};
	$SIDE{pgq} = {
		title => 'PgQ',
		empty => [
			q{SELECT pgq.drop_queue(queue_name, true) FROM pgq.queue WHERE queue_name = 'bench'},
			q{SELECT pgq.create_queue('bench')},
			q{SELECT pgq.register_consumer('bench', 'g')},
		],
		load => in_batches(
			"PERFORM pgq.insert_event('bench', 'order', one) FROM generate_series(1, $READ)",
			"PERFORM pgq.ticker('bench')"),
		table => sub {
			return psql(q{SELECT queue_data_pfx FROM pgq.queue WHERE queue_name = 'bench'});
		},
		append       => q{SELECT pgq.insert_event('bench', 'order', :body);},
		append_batch => qq{SELECT count(pgq.insert_event('bench', 'order', :body))
			FROM generate_series(1, $BATCH);},
		read => q{
BEGIN;
SELECT pgq.next_batch('bench', 'g') AS batch \gset
SELECT count(*) FROM pgq.get_batch_events(:batch);
SELECT pgq.finish_batch(:batch);
COMMIT;},
	};
	# Round PgQ's own function, as its Python library does it with COPY.
	$SIDE{pgq_table} = {
		%{ $SIDE{pgq} },
		title        => '(PgQ, into its table)',
		no_queue     => 1,
		append_batch => q{INSERT INTO pgq.event_%d_0 (ev_time, ev_type, ev_data)
			SELECT now(), 'order', unnest(:bodies::text[]);},
	};
	return;
}

# What all need, and PgQ if it is there.
sub set_up_streams
{
	next_stream();
	push @EMPTIED, qw(stream plain_stream);
	$size{pgq} = psql(q{SELECT count(*) FROM pg_available_extensions WHERE name = 'pgq'});
	return unless $size{pgq};
	psql('CREATE EXTENSION IF NOT EXISTS pgq');
	push @EMPTIED, 'pgq';
	push @remarks, 'PgQ ' . psql(q{SELECT extversion FROM pg_extension WHERE extname = 'pgq'});
	return;
}

sub need_pgq
{
	die "the extension pgq, which streams are compared with, is not installed\n"
	  unless $size{pgq};
	return;
}

sub stream_id
{
	return psql(qq{SELECT id FROM msgq.streams WHERE name = '$stream'});
}

# The size of the stream's tables of one kind: '' for entries, 'p' for places,
# 'g' for where groups are.
sub stream_bytes
{
	my ($kind) = @_;
	my $id = stream_id();
	return psql(qq{SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0) FROM pg_class c
		WHERE c.relnamespace = 'msgq'::regnamespace AND c.relkind = 'r'
		  AND c.relname ~ '^s${id}_$kind\[0-9]+\$'});
}

# Gives a position to all that was appended, and compares how many have one.
sub check_positions
{
	my ($expected) = @_;
	psql(qq{CALL msgq.sequence('$stream')});
	my $found = psql(qq{SELECT sum(entries) FROM msgq.stream_stats WHERE stream = '$stream'});
	die "$found entries have a position, expected $expected\n" unless $found == $expected;
	return;
}

# Many clients and small transactions, as streams are filled: thousands of
# steps of the sequencer have given the positions.
sub fill_stream
{
	my ($count, $batch) = @_;
	local $ENV{PGOPTIONS} = "$ENV{PGOPTIONS} -c synchronous_commit=off";
	finish_pgbench(start_pgbench('fill', [
		"SELECT msgq.append_batch('$stream', array_fill(:body::jsonb, ARRAY[$batch]));"
	], qw(-c 4 -j 1), '-t', $count / $batch / 4));
	check_positions($count);
	psql('VACUUM ANALYZE');
	return;
}

# ---------------------------------------------------------------------------
# Append and read
# ---------------------------------------------------------------------------

# Runs while PgQ is measured, and only then.
sub with_ticker
{
	my ($side, $code) = @_;
	return $code->() unless $side =~ /^pgq/;
	my $script = spill("$opt{work}/ticker.sql", "SELECT pgq.ticker() \\watch $TICK\n");
	my $ticker = start('ticker', qw(psql -XAtq -v ON_ERROR_STOP=1 -f), $script);
	my $result = eval { $code->() };
	my $why    = $@;
	kill 'TERM', $ticker->{pid};
	eval { finish($ticker) };
	die $why unless defined $result;
	return $result;
}

sub append_round
{
	my ($case, $side, $how) = @_;
	next_stream();
	local $SIDE{$side}{$case} = sprintf($SIDE{$side}{$case},
		psql(q{SELECT nextval('pgq.queue_queue_id_seq') + 1}))
	  if $SIDE{$side}{no_queue};
	my $rate = with_ticker($side, sub { return round_of($case, $side, $how) });
	check_positions(waiting('stream')) if $side eq 'stream';
	return $rate;
}

sub append
{
	need_pgq();
	my %how = (ours => 'stream', round => \&append_round, unit => 'entries',
		rounds => $size{stream_rounds}, length => [ '-T', $size{stream_seconds} ]);
	compare('append', {
		%how, baselines => [qw(plain_stream pgq)], clients => 8, per_transaction => 1,
		limits => { plain_stream => 'append_plain', pgq => 'append_pgq' } });
	return;
}

sub append_batch
{
	need_pgq();
	compare('append_batch', {
		ours => 'stream', round => \&append_round, unit => 'entries',
		baselines => [qw(pgq pgq_table plain_stream)], clients => 2, per_transaction => $BATCH,
		rounds => $size{stream_rounds}, length => [ '-T', $size{stream_seconds} ],
		limits => { pgq => 'append_batch' } });
	return;
}

# By number and not by time: all that is there, and nothing else, is read.
sub read_round
{
	my ($case, $side, $how) = @_;
	next_stream();
	prepare($side, $how->{load});
	check_positions($how->{load}) if $side eq 'stream';
	my $bench = start_pgbench("$case-$side", [ $SIDE{$side}{$case} ],
		qw(-c 1 -j 1), '-t', $how->{load} / $READ);
	profile("$case-$side", 1) if $opt{profile};
	my ($tps) = finish_pgbench($bench);
	check_read($side, $how->{load});
	return $tps * $READ;
}

# Has the reader had it all?
sub check_read
{
	my ($side, $expected) = @_;
	if ($side eq 'stream')
	{
		my $read = psql(qq{SELECT sum(position - 1) FROM msgq.group_lag
			WHERE stream = '$stream' AND consumer_group = 'g'});
		die "msgq: $read entries were read, expected $expected\n" unless $read == $expected;
		return;
	}
	my ($pending, $batches) = split /\|/, psql(q{SELECT pending_events, last_tick
		FROM pgq.get_consumer_info('bench', 'g')});
	die "PgQ: $pending events were not read\n" if $pending;
	push @remarks, "PgQ: read until tick $batches of " . ($expected / $READ + 1)
	  if $batches != $expected / $READ + 1;
	return;
}

sub read_backlog
{
	need_pgq();
	compare('read', {
		ours => 'stream', round => \&read_round, unit => 'entries', baselines => ['pgq'],
		clients => 1, rounds => $size{read_rounds}, load => $size{backlog} });
	return;
}

# ---------------------------------------------------------------------------
# From the commit of an append to the return of a read that waits
# ---------------------------------------------------------------------------

my $APPEND_RATE = 200;

sub append_latency
{
	next_stream();
	prepare('stream', 0);
	my $figure = finish_probe(start_probe('pickup', '--stream', $stream, '--rate', $APPEND_RATE,
			'--seconds', $size{latency}, qw(--producers 2 --consumers 1 --wait), '5 s'));
	my ($sent, $read) = @{$figure}{qw(sent picked_up)};
	die "$sent entries were appended, $read read, $figure->{twice} more than once\n"
	  if $sent != $read || $figure->{twice} || $sent != $APPEND_RATE * $size{latency};
	for my $p (qw(p50 p99))
	{
		my $ms = $figure->{"commit_$p"} / 1000;
		ceiling_row("append_latency_$p", $ms,
			case     => "append_latency, $p",
			msgq     => sprintf('%.2f ms', $ms),
			baseline => 'after the commit of append',
			base     => "$APPEND_RATE entries/s offered");
	}
	remark(
		'append_latency, from the commit to the read: ' . percentiles($figure, 'commit'),
		histogram($figure->{bucket}{commit}),
		'append_latency, from the call of append to the read: ' . percentiles($figure, 'issue'),
		histogram($figure->{bucket}{issue}),
		sprintf('append_latency: %s entries, all read once; no append was later than %.2f ms',
			thousands($sent), $figure->{late_max} / 1000));
	return;
}

# ---------------------------------------------------------------------------
# Many groups
#
# Each one reads all; what is stored of an entry is stored once.
# ---------------------------------------------------------------------------

sub groups
{
	next_stream();
	prepare('stream', 0);
	psql("SELECT msgq.create_group('$stream', name, 'first') FROM $GROUP_NAMES");
	fill_stream($size{groups_load}, 10);
	my @before = map { stream_bytes($_) } '', 'p', 'g';
	my @reads  = ('-t', $size{groups_load} / $READ);
	my $one    = start_pgbench('groups-1', [ $SIDE{stream}{read} ], qw(-c 1 -j 1), @reads);
	my ($alone) = finish_pgbench($one);
	my $all = start_pgbench('groups-8', [
		"SELECT count(*) FROM msgq.read('$stream', 'g' || :client_id, $READ);"
	], '-c', $GROUPS, qw(-j 2), @reads);
	profile('groups', 1) if $opt{profile};
	my ($together) = finish_pgbench($all);
	my @after = map { stream_bytes($_) } '', 'p', 'g';
	my $lag = psql(qq{SELECT sum(lag) FROM msgq.group_lag WHERE stream = '$stream'});
	die "$lag entries were not read by all groups\n" if $lag;
	push @rows, {
		case     => "groups, $GROUPS groups",
		msgq     => thousands($together * $READ),
		baseline => 'one group alone',
		base     => thousands($alone * $READ),
		ratio    => ratio_text($together / $alone),
	};
	ceiling_row('groups_storage', max(0, $after[0] - $before[0]),
		case     => 'groups, storage',
		msgq     => megabytes($after[0]),
		baseline => 'entries, before any read',
		base     => megabytes($before[0]),
		ratio    => ($after[0] - $before[0]) . ' bytes more');
	remark(sprintf('groups: places took %s before, and %s after the reads; positions of groups %s, '
			  . 'and %s', map { megabytes($_) } $before[1], $after[1], $before[2], $after[2]));
	return;
}

# ---------------------------------------------------------------------------
# The held snapshot
#
# A group's position moves with each read, and nothing that this leaves
# behind can be vacuumed meanwhile.  The reads have a backlog, so that each one
# finds something, and appends go on beside them.
# ---------------------------------------------------------------------------

my $READ_RATE = 1000;
my $READ_MOST = 10;

sub held_stream
{
	my $seconds = $size{stream_hold} + 8;
	my $backlog = int($READ_RATE * ($READ_MOST + 1) / 2 * $seconds * 1.05 / 40) * 40;
	next_stream();
	prepare('stream', 0);
	fill_stream($backlog, 10);
	my $prefix = "$opt{work}/reads";
	unlink glob("$prefix.*");
	my $reader = do
	{
		local $ENV{PGAPPNAME} = 'msgq-bench-consumer';
		start_pgbench('held_stream-reads', [
			"\\set most random(1, $READ_MOST)\n"
			  . "SELECT count(body) FROM msgq.read('$stream', 'g', :most);"
		], qw(-c 1 -j 1), '-T', $seconds, '-R', $READ_RATE, '-l', "--log-prefix=$prefix");
	};
	my $appender = start_pgbench('held_stream-appends', [ $SIDE{stream}{append} ],
		qw(-c 2 -j 1), '-T', $seconds, '-R', $READ_RATE);
	sleep 3;
	my $holder = hold_snapshot();
	profile('held_stream', min(10, $size{stream_hold} / 2)) if $opt{profile};
	my $cpu = do { local $size{hold} = $size{stream_hold}; hold($holder->{since}) };
	my $log = stream_bytes('g');
	release_snapshot($holder);
	my ($appended) = finish_pgbench($appender);
	finish_pgbench($reader);
	my $left = psql(qq{SELECT sum(lag) FROM msgq.group_lag WHERE stream = '$stream'});
	my $windows = read_windows($prefix, $holder->{since});
	my ($first, $last) = @{$windows}[ 0, -1 ];
	die "no reads at first\n" unless @{$first};
	my $ratio = @{$last} / @{$first};
	push @rows, {
		case     => 'held_stream, reads',
		msgq     => thousands(@{$last} / $size{window}),
		baseline => "msgq, first $size{window} s",
		base     => thousands(@{$first} / $size{window}),
		ratio    => ratio_text($ratio),
		floor    => limit_text('held_stream'),
		verdict  => verdict('held_stream', $ratio),
	};
	for my $p (50, 99)
	{
		my ($then, $now) = map { percentile($_, $p) / 1000 } $first, $last;
		push @rows, {
			case     => "held_stream, p$p",
			msgq     => milliseconds($now),
			baseline => "msgq, first $size{window} s",
			base     => milliseconds($then),
			ratio    => ratio_text($now / $then),
		};
	}
	remark(
		sprintf('held_stream: snapshot held for %d s; %s appends/s; reads/s in windows of %d s: %s',
			$size{stream_hold}, thousands($appended), $size{window},
			join(' ', map { thousands(@{$_} / $size{window}) } @{$windows})),
		'held_stream: p99 of a read in these windows, in ms: '
		  . join(' ', map { sprintf('%.2f', percentile($_, 99) / 1000) } @{$windows}),
		sprintf('held_stream: processor time for each read: first %.0f us, last %.0f us',
			map { 1e6 * $cpu->[$_] / max(1, scalar @{ $windows->[$_] }) } 0, -1),
		sprintf('held_stream: positions of groups took %s at the end of the hold; '
			  . '%s of %s entries of the backlog, and what was appended, were left',
			megabytes($log), thousands($left), thousands($backlog)));
	push @remarks, 'held_stream: the backlog was read up, so the last windows mean nothing'
	  unless $left;
	return;
}

# The durations of the reads in each window, sorted: without the time that
# pgbench was late itself.
sub read_windows
{
	my ($prefix, $since) = @_;
	my @windows = map { [] } 1 .. int($size{stream_hold} / $size{window});
	for my $path (glob("$prefix.*"))
	{
		open(my $in, '<', $path) or die "cannot read $path: $!\n";
		while (<$in>)
		{
			my (undef, undef, $us, undef, $epoch, $epoch_us, $late) = split / /;
			my $at = $epoch + $epoch_us / 1e6 - $since;
			next if $at < 0 || $at >= @windows * $size{window};
			push @{ $windows[ int($at / $size{window}) ] }, $us - $late;
		}
		close($in);
		unlink $path;
	}
	return [ map { [ sort { $a <=> $b } @{$_} ] } @windows ];
}

# ---------------------------------------------------------------------------
# Lag
#
# What a monitor asks for every few seconds must not depend on how much is
# in the stream, or on where the groups are.
# ---------------------------------------------------------------------------

my $ASKED = 200;

sub lag
{
	next_stream();
	prepare('stream', 0);
	psql("SELECT msgq.create_group('$stream', name, 'first') FROM $GROUP_NAMES");
	fill_stream($size{lag}, 10);
	psql("SELECT msgq.seek('$stream', name, (1 + $size{lag}::bigint * substr(name, 2)::int"
		  . " / $GROUPS)::text) FROM $GROUP_NAMES");
	for my $view (qw(group_lag stream_stats))
	{
		my $prefix = "$opt{work}/lag";
		unlink glob("$prefix.*");
		my $bench = start_pgbench("lag-$view", ["SELECT * FROM msgq.$view;"],
			qw(-c 1 -j 1), '-t', $ASKED, '-l', "--log-prefix=$prefix");
		finish_pgbench($bench);
		my @us = sort { $a <=> $b }
		  map { (split / /)[2] } map { split /\n/, slurp($_) } glob("$prefix.*");
		unlink glob("$prefix.*");
		my ($p50, $p99) = map { percentile(\@us, $_) / 1000 } 50, 99;
		ceiling_row('lag', $p50,
			case     => "lag, $view",
			msgq     => sprintf('%.2f ms', $p50),
			baseline => thousands($size{lag}) . ' entries',
			base     => ($GROUPS + 1) . ' groups',
			ratio    => sprintf('p99 %.2f ms', $p99));
	}
	remark('lag: ' . psql(qq{SELECT string_agg(consumer_group || ' ' || lag, ', '
		ORDER BY consumer_group) FROM msgq.group_lag WHERE stream = '$stream'}));
	return;
}

sub stream_cases
{
	return (
		append         => \&append,
		append_batch   => \&append_batch,
		read           => \&read_backlog,
		append_latency => \&append_latency,
		groups         => \&groups,
		held_stream    => \&held_stream,
		lag            => \&lag,
	);
}

1;
