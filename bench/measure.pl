#!/usr/bin/perl
#
# bench/measure.pl - the cases of "make bench", against a server that runs
#
# Called by bench/run, which starts that server.  The machine may be busy with
# other things, so no figure is compared with one of another run: every ratio
# comes from rounds that alternate between the sides, and each round starts
# from freshly filled tables.

use strict;
use warnings;

use Getopt::Long;
use List::Util qw(max min sum0);
use POSIX qw(strftime);
use Time::HiRes qw(sleep time);

# What issue and README promise.  A ratio below its floor, or a figure above
# its ceiling, is reported loudly.
our %FLOOR = (
	send            => 0.95,
	send_key        => 0.6,
	consume         => 3.0,
	batch           => 2.2,
	send_batch      => 1.1,
	held_snapshot   => 0.9,
	clients         => 1.05,
	clients_many    => 0.9,
	held_queue_rate => 0.95,
);
our %CEILING = (
	latency_p50        => 1,       # ms
	latency_p99        => 5,       # ms
	wakeups            => 0,       # messages
	held_queue_p99     => 1.05,
	held_queue_disk    => 1,       # of the bound
	held_queue_release => 60,      # s
);
my @QUEUE_CASES = qw(send send_key consume batch send_batch clients held_snapshot
  latency wakeups held_queue);
my @STREAM_CASES = qw(append append_batch read append_latency groups held_stream lag);
my @TOPIC_CASES  = qw(publish request);
my @CAPTURE_CASES = qw(capture capture_bulk);
my @CASES        = (@QUEUE_CASES, @STREAM_CASES, @TOPIC_CASES, @CAPTURE_CASES);
# nothing to compare with
my @MSGQ_ONLY = qw(send_key latency wakeups held_queue append_latency groups held_stream lag
  publish request capture capture_bulk);

our $BATCH  = 100;
my $TIMEOUT = "interval '30 s'";
our $BODY   = '{"order": 1000042, "customer": "c-20391", "event": "paid", "amount": 129.95, '
  . '"currency": "EUR", "items": [{"sku": "A-4711", "n": 2}]}';

our %opt = (work => 'tmp/bench', case => [], 'poll-interval' => '1h');
GetOptions(\%opt, 'work=s', 'case=s@', 'rounds=i', 'load=i', 'poll-interval=s', 'quick', 'long',
	'profile', 'baselines')
  or exit 1;
@{ $opt{case} } = @CASES unless @{ $opt{case} };
my %GROUP = (queues => \@QUEUE_CASES, streams => \@STREAM_CASES, topics => \@TOPIC_CASES,
	captures => \@CAPTURE_CASES);
@{ $opt{case} } = map { $GROUP{$_} ? @{ $GROUP{$_} } : $_ } @{ $opt{case} };
for my $case (@{ $opt{case} })
{
	next if grep { $_ eq $case } @CASES;
	print STDERR "no such case: $case (there are @CASES)\n";
	exit 1;
}
if ($opt{baselines})
{
	my %skip = map { $_ => 1 } @MSGQ_ONLY;
	@{ $opt{case} } = grep { !$skip{$_} } @{ $opt{case} };
}

# rounds, seconds: of the short cases; consume has fewer and longer rounds,
# since a queue that walks over dead rows begins fast.  load: messages waiting
# when a round begins; drain: messages that a batch round consumes; hold: of
# the open snapshot.
#
# latency: seconds of it; race, handover: messages of wakeups.  hold_rounds:
# of held_queue; delayed: messages that wait there for next month; segment:
# msgq.segment_size, small enough that rings turn within the time, '' for
# the server's own; release: seconds that are waited for the space.
#
# stream_rounds, stream_seconds: of the cases of streams, short and many since
# their sides are close to each other; backlog: entries that are read;
# groups_load: entries that 8 groups read; stream_hold: of the open snapshot;
# lag: entries of the stream whose lag is asked for.
our %size = (
	rounds => 5, seconds => 5, long_rounds => 3, long_seconds => 25,
	load => 500_000, drain => 400_000, hold => 60, window => 10,
	latency => 20, race => 200_000, handover => 2_000,
	hold_rounds => 1, delayed => 1_000_000, segment => '4MB', release => 60,
	stream_rounds => 9, stream_seconds => 3, backlog => 500_000, read_rounds => 5,
	groups_load => 200_000, stream_hold => 60, lag => 1_000_000);
%size = (%size, seconds => 20, long_rounds => 5, hold => 600, segment => '',
	stream_rounds => 15, stream_seconds => 5, read_rounds => 9, stream_hold => 300,
	lag => 10_000_000) if $opt{long};
%size = (
	%size,
	rounds => 1, seconds => 2, long_rounds => 1, long_seconds => 2,
	load => 50_000, drain => 40_000, hold => 10, window => 3,
	latency => 3, race => 5_000, handover => 200, delayed => 20_000, segment => '1MB',
	release => 10,
	stream_rounds => 1, stream_seconds => 2, backlog => 50_000, read_rounds => 1,
	groups_load => 20_000, stream_hold => 10, lag => 50_000) if $opt{quick};
@size{qw(rounds long_rounds hold_rounds stream_rounds read_rounds)} = ($opt{rounds}) x 5
  if $opt{rounds};
$size{load} = $opt{load} if $opt{load};

$ENV{PGOPTIONS} = '-c client_min_messages=warning';

my %children;    # pids of what we started and have not waited for
our @rows;       # of the table
our @remarks;    # below the table
my $failed = 0;  # cases that could not run
my $below  = 0;  # figures that miss their floor or ceiling

$SIG{INT} = $SIG{TERM} = sub { die "interrupted\n" };
END { kill 'TERM', keys %children if %children }

(my $here = __FILE__) =~ s{[^/]*$}{};
$here = './' if $here eq '';
require "${here}waiting.pl";
require "${here}streams.pl";
require "${here}topics.pl";
require "${here}capture.pl";

# ---------------------------------------------------------------------------
# The sides
#
# Each side says how to empty, fill and count itself, and what a pgbench
# client does for a case.  Consumers fetch the body, as a consumer would.
# ---------------------------------------------------------------------------

# Those that are emptied before each round.
our @EMPTIED = qw(msgq plain textbook);

# The newest queue is ours: "empty" has just created it.
my $HANDLE = q{SELECT c.oid::regclass::text FROM pg_class c
	WHERE c.relnamespace = 'msgq'::regnamespace AND c.relkind = 'v'
	  AND c.relname ~ '^q[0-9]+$'
	ORDER BY substr(c.relname, 2)::bigint DESC LIMIT 1};

our %SIDE = (
	msgq => {
		title => 'msgq',
		ours  => 1,
		empty => [
			q{SELECT msgq.drop_queue('bench', if_exists => true)},
			q{SELECT msgq.create_queue('bench', dead_letter_queue => '')},
		],
		load => q{SELECT count(*) FROM (
			SELECT msgq.send_batch('bench', array_fill(%s::jsonb, ARRAY[1000]))
			FROM generate_series(1, %d / 1000)) AS batches},
		table   => sub { return psql($HANDLE) },
		send     => q{SELECT msgq.send('bench', :body::jsonb);},
		send_key => q{
\\set key random(1, 1000000000000000)
SELECT msgq.send('bench', :body::jsonb, idempotency_key => 'order-' || :key);},
		consume => qq{
SELECT receipt, body FROM msgq.receive('bench', 1, $TIMEOUT) \\gset
SELECT msgq.ack('bench', :receipt);},
		batch => qq{
SELECT array_agg(receipt) AS receipts, string_agg(body::text, '') AS bodies
FROM msgq.receive('bench', $BATCH, $TIMEOUT) \\gset
SELECT msgq.ack_batch('bench', :receipts);},
		send_batch => q{SELECT msgq.send_batch('bench', :bodies::jsonb[]);},
		claim      => qq{
SELECT m.receipt, m.body, (m.id IS NOT NULL)::int AS have
FROM (VALUES (1)) AS one LEFT JOIN msgq.receive('bench', 1, $TIMEOUT) AS m ON true \\gset},
		ack => q{SELECT msgq.ack('bench', :receipt);},
	},
	plain => {
		title => 'plain INSERT',
		setup => 'plain.sql',
		empty => ['TRUNCATE plain.queue RESTART IDENTITY'],
		load  => q{INSERT INTO plain.queue (body) SELECT %s FROM generate_series(1, %d)},
		table => sub { return 'plain.queue' },
		send  => q{INSERT INTO plain.queue (body) VALUES (:body::jsonb);},
		send_batch =>
		  q{INSERT INTO plain.queue (body) SELECT unnest(:bodies::jsonb[]);},
	},
	textbook => {
		title => 'textbook',
		setup => 'textbook.sql',
		empty => ['TRUNCATE textbook.queue RESTART IDENTITY'],
		load  => q{INSERT INTO textbook.queue (body) SELECT %s FROM generate_series(1, %d)},
		table => sub { return 'textbook.queue' },
		send  => q{SELECT textbook.send(:body::jsonb);},
		consume => qq{
SELECT id AS receipt, body FROM textbook.receive(1, $TIMEOUT) \\gset
SELECT textbook.ack(:receipt);},
		batch => qq{
SELECT array_agg(id) AS receipts, string_agg(body::text, '') AS bodies
FROM textbook.receive($BATCH, $TIMEOUT) \\gset
SELECT textbook.ack_batch(:receipts);},
		claim => qq{
SELECT m.id AS receipt, m.body, (m.id IS NOT NULL)::int AS have
FROM (VALUES (1)) AS one LEFT JOIN textbook.receive(1, $TIMEOUT) AS m ON true \\gset},
		ack => q{SELECT textbook.ack(:receipt);},
	},
);

# What an idempotency key costs.
$SIDE{keyless} = {
	%{ $SIDE{msgq} },
	title    => 'msgq, without keys',
	send_key => $SIDE{msgq}{send},
};

# The same queue, whose claims commit asynchronously.
$SIDE{textbook_async} = { %{ $SIDE{textbook} }, title => 'textbook, async claims' };
delete $SIDE{textbook_async}{setup};
s/textbook\.receive\(/textbook.receive_async(/
  for @{ $SIDE{textbook_async} }{qw(consume batch claim)};

# What no queue that acknowledges single messages can beat: two round trips
# and one durable DELETE, by clients that know beforehand which rows are
# theirs.  It shows how far a ratio can go at all on this machine.
$SIDE{bound} = {
	%{ $SIDE{plain} },
	title   => '(bound: read, DELETE by id)',
	consume => q{
\\set n :n + 1
\\set own :n * 8 - :client_id
SELECT id AS receipt, body FROM plain.queue WHERE id = :own \\gset
DELETE FROM plain.queue WHERE id = :receipt;},
	batch => q{
\\set n :n + 1
\\set last (:n * 2 - :client_id) * 100
SELECT array_agg(id) AS receipts, string_agg(body::text, '') AS bodies
FROM plain.queue WHERE id > :last::bigint - 100 AND id <= :last \\gset
DELETE FROM plain.queue WHERE id = ANY (:receipts);},
};
delete $SIDE{bound}{setup};

# ---------------------------------------------------------------------------
# Programs
# ---------------------------------------------------------------------------

sub slurp
{
	my ($path) = @_;
	open(my $in, '<', $path) or die "cannot read $path: $!\n";
	local $/;
	my $text = <$in>;
	return defined $text ? $text : '';
}

sub spill
{
	my ($path, $text) = @_;
	open(my $out, '>', $path) or die "cannot write $path: $!\n";
	print $out $text;
	close($out) or die "cannot write $path: $!\n";
	return $path;
}

# Starts a program with its output in files; returns what finish() needs.
sub start
{
	my ($name, @command) = @_;
	my $base = "$opt{work}/$name";
	my $pid  = fork();
	die "cannot fork: $!\n" unless defined $pid;
	if ($pid == 0)
	{
		%children = ();
		open(STDIN,  '<', '/dev/null') or POSIX::_exit(127);
		open(STDOUT, '>', "$base.out") or POSIX::_exit(127);
		open(STDERR, '>', "$base.err") or POSIX::_exit(127);
		exec(@command) or POSIX::_exit(127);
	}
	$children{$pid} = 1;
	return { pid => $pid, base => $base, name => "$command[0] ($name)" };
}

# Waits for a program and returns its output; dies if it failed.
sub finish
{
	my ($program) = @_;
	waitpid($program->{pid}, 0);
	my $status = $?;
	delete $children{ $program->{pid} };
	return slurp("$program->{base}.out") if $status == 0;
	my @why = split /\n/, slurp("$program->{base}.err");
	@why = grep { /error|fatal|abort|not found|unexpected|expected/i } @why if @why > 5;
	die join("\n    ", "$program->{name} failed:", @why[ 0 .. min($#why, 5) ]) . "\n";
}

# Each statement on its own, so that VACUUM is allowed; returns the output.
sub psql
{
	my (@statements) = @_;
	my @command = qw(psql -XAtq -v ON_ERROR_STOP=1);
	my $out = finish(start('psql', @command, map { ('-c', $_) } @statements));
	chomp $out;
	return $out;
}

sub quoted
{
	my ($text) = @_;
	$text =~ s/'/''/g;
	return "'$text'";
}

# A text array literal of as many bodies as a batch has.
sub bodies
{
	(my $body = $BODY) =~ s/(["\\])/\\$1/g;
	return '{' . join(',', ("\"$body\"") x $BATCH) . '}';
}

# The same protocol for every side; the body is a parameter, so that no side
# profits from a constant.
sub start_pgbench
{
	my ($name, $scripts, @options) = @_;
	my @files;
	for my $i (0 .. $#{$scripts})
	{
		my $path = spill("$opt{work}/$name.$i.sql", "$scripts->[$i]\n");
		push @files, '-f', @{$scripts} > 1 ? "$path\@1" : $path;
	}
	return start(
		$name,
		qw(pgbench -n -M prepared), '-D', "body=$BODY", '-D', 'bodies=' . bodies(),
		'-D', 'have=0', '-D', 'n=0', @files, @options);
}

sub finish_pgbench
{
	my ($program) = @_;
	my $out = finish($program);
	my ($count) = $out =~ /transactions actually processed: (\d+)/;
	my ($tps)   = $out =~ /^tps = ([\d.]+)/m;
	die "cannot read the output of $program->{name}\n" unless defined $tps;
	return ($tps, $count);
}

# ---------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------

sub median
{
	my @sorted = sort { $a <=> $b } @_;
	my $middle = int(@sorted / 2);
	return $sorted[$middle] if @sorted % 2;
	return ($sorted[ $middle - 1 ] + $sorted[$middle]) / 2;
}

sub percentile
{
	my ($sorted, $p) = @_;
	return 0 unless @{$sorted};
	return $sorted->[ min($#{$sorted}, int($p / 100 * @{$sorted})) ];
}

sub thousands
{
	my $text = sprintf('%.0f', $_[0]);
	1 while $text =~ s/^(\d+)(\d{3})/$1,$2/;
	return $text;
}

sub spread
{
	my ($format, @values) = @_;
	my $text = $format->(median(@values));
	return $text if @values == 1;
	return sprintf('%s (%s..%s)', $text, $format->(min(@values)), $format->(max(@values)));
}

sub ratio_text { return sprintf('%.2f', $_[0]) }

sub progress
{
	my ($text) = @_;
	print STDERR strftime('%H:%M:%S ', localtime), $text, "\n";
	return;
}

# Compares with the floor or the ceiling and says so; counts what misses it.
sub verdict
{
	my ($name, $value) = @_;
	my ($pass, $miss) = exists $CEILING{$name}
	  ? ($value <= $CEILING{$name}, 'ABOVE THE CEILING')
	  : ($value >= $FLOOR{$name},   'BELOW THE FLOOR');
	return 'pass' if $pass;
	$below++;
	return $miss;
}

sub limit_text
{
	my ($name) = @_;
	return sprintf('<= %g', $CEILING{$name}) if exists $CEILING{$name};
	return ratio_text($FLOOR{$name});
}

# ---------------------------------------------------------------------------
# Rounds
# ---------------------------------------------------------------------------

sub sides
{
	return grep { !($opt{baselines} && $SIDE{$_}{ours}) } @_;
}

# Everybody is emptied, so that nobody's vacuum runs in another's round; the
# checkpoint comes before the load, so that none falls into the round.
sub prepare
{
	my ($side, $load) = @_;
	psql(map { @{ $SIDE{$_}{empty} } } sides(@EMPTIED));
	psql('CHECKPOINT');
	return unless $load;
	psql(sprintf($SIDE{$side}{load}, quoted($BODY), $load), 'VACUUM ANALYZE');
	return;
}

sub waiting
{
	my ($side) = @_;
	return psql('SELECT count(*) FROM ' . $SIDE{$side}{table}->());
}

# What was loaded and not consumed must still be there.  It costs little to
# look, and a queue that loses messages would be a fast one.
sub check_waiting
{
	my ($side, $expected) = @_;
	my $found = waiting($side);
	die "$SIDE{$side}{title}: $found messages are left, expected $expected\n"
	  unless $found == $expected;
	return;
}

# Samples the backends of the running pgbench; needs perf and the right to it.
# Writes what each function costs itself, then with all that it calls.  The
# latter is true only of a server that was compiled with frame pointers.
sub profile
{
	my ($name, $seconds) = @_;
	mkdir "$opt{work}/profile";
	my $base = "$opt{work}/profile/$name";
	sleep 0.5;
	my $pids = psql(q{SELECT string_agg(pid::text, ',') FROM pg_stat_activity
		WHERE application_name IN ('pgbench', 'msgq-bench-consumer')});
	finish(start("perf-$name", qw(perf record -q -e cpu-clock -F 997 -g -o),
			"$base.data", '-p', $pids, '--', 'sleep', $seconds));
	my $text = join '', map {
		finish(start("perf-$name", qw(perf report --stdio -g none -w), '10,22,60',
				@{$_}, '-i', "$base.data"))
	} [ '--no-children', '-F', 'overhead,dso,sym', '--percent-limit', 0.4 ],
	  [ '--children', '-F', 'overhead_children,overhead,sym', '--percent-limit', 1.5 ];
	$text =~ s/^#.*\n|^\s*\n//mg;
	spill("$base.txt", $text);
	return;
}

# One round of one side: messages per second.
sub round_of
{
	my ($case, $side, $how) = @_;
	prepare($side, $how->{load});
	my @length = $side eq 'bound' ? @{ $how->{bound_length} } : @{ $how->{length} };
	my $script = $SIDE{$side}{ $how->{script} || $case };
	my $bench  = start_pgbench("$case-$side", [$script],
		'-c', $how->{clients}, '-j', 2, @length);
	profile("$case-$side", $length[0] eq '-T' ? $length[1] / 2 : 2) if $opt{profile};
	my ($tps, $transactions) = finish_pgbench($bench);
	my $messages = $transactions * $how->{per_transaction};
	check_waiting($side, $how->{load} ? $how->{load} - $messages : $messages);
	return $tps * $how->{per_transaction};
}

# Alternating rounds.  Every other one runs backwards, so that a machine which
# slows down meanwhile does not favour who comes first.
sub compare
{
	my ($case, $how) = @_;
	my @sides = sides($how->{ours} || 'msgq', @{ $how->{baselines} });
	my $one   = $how->{round} || \&round_of;
	my %rates;
	for my $round (1 .. $how->{rounds})
	{
		for my $side ($round % 2 ? @sides : reverse @sides)
		{
			push @{ $rates{$side} }, $one->($case, $side, $how);
			progress(sprintf('%-12s round %d  %-24s %10s %s/s',
					$case, $round, $SIDE{$side}{title}, thousands($rates{$side}[-1]),
					$how->{unit} || 'messages'));
		}
	}
	add_rows($case, $how, \%rates);
	return;
}

# One row for each baseline.  The fastest queue is held against the floor, or
# each one against its own, if $how->{limits} names them.
sub add_rows
{
	my ($case, $how, $rates) = @_;
	my @baselines = @{ $how->{baselines} };
	my ($fastest) = sort { median(@{ $rates->{$b} }) <=> median(@{ $rates->{$a} }) }
	  grep { $_ ne 'bound' } @baselines;
	my $ours   = $rates->{ $how->{ours} || 'msgq' };
	my $limits = $how->{limits} || { $fastest => $case };
	my $first  = 1;
	for my $side (@baselines)
	{
		my %row = (
			case     => $first ? "$case, $how->{clients} clients" : '',
			baseline => "$SIDE{$side}{title}",
			base     => spread(\&thousands, @{ $rates->{$side} }),
		);
		add_ratio(\%row, $limits->{$side}, $ours, $rates->{$side}) if $ours;
		$row{msgq} = '' unless $first;
		$first = 0;
		push @rows, \%row;
	}
	return;
}

sub add_ratio
{
	my ($row, $limit, $ours, $theirs) = @_;
	my @ratios = map { $ours->[$_] / $theirs->[$_] } 0 .. $#{$ours};
	$row->{msgq}  = spread(\&thousands, @{$ours});
	$row->{ratio} = spread(\&ratio_text, @ratios);
	return unless $limit;
	$row->{floor}   = limit_text($limit);
	$row->{verdict} = verdict($limit, median(@ratios));
	return;
}

# ---------------------------------------------------------------------------
# Many clients
#
# Senders to one queue: what they share (the id sequence, the append horizon,
# the pages at the table's end) must not stand in their way.  The rates are
# compared with those of few clients, and at 32 with a plain INSERT.
# ---------------------------------------------------------------------------

sub clients
{
	my $fewest = 16;
	my $most   = 256;
	my @counts = $opt{baselines} ? () : ($fewest, 64, $most);
	my %how    = (script => 'send', per_transaction => 1, length => [ '-T', $size{seconds} ]);
	my %rates;
	for my $round (1 .. $size{rounds})
	{
		for my $count ($round % 2 ? @counts : reverse @counts)
		{
			for my $side ($round % 2 ? qw(msgq plain) : qw(plain msgq))
			{
				my $rate = round_of('clients', $side, { %how, clients => $count });
				push @{ $rates{$side}{$count} }, $rate;
				progress(sprintf('%-12s round %d  %-24s %10s messages/s',
						'clients', $round, "$side, $count clients", thousands($rate)));
			}
		}
	}
	for my $count (grep { $_ != $fewest } @counts)
	{
		for my $side (qw(msgq plain))
		{
			my %row = (
				case     => $side eq 'msgq' ? "clients, $count clients" : '',
				baseline => "$side, $fewest clients",
				base     => spread(\&thousands, @{ $rates{$side}{$fewest} }),
			);
			add_ratio(\%row, $count == $most && $side eq 'msgq' ? 'clients_many' : undef,
				$rates{$side}{$count}, $rates{$side}{$fewest});
			push @rows, \%row;
		}
	}
	compare('clients', { %how, baselines => ['plain'], clients => 32, rounds => $size{rounds} });
	return;
}

# ---------------------------------------------------------------------------
# The held snapshot
#
# Consumers poll as fast as they can while 1,500 messages per second come in
# and one session keeps a snapshot open.  Vacuum can remove nothing that dies
# meanwhile; a queue that walks over it gets slower by the second.
#
# pgbench logs the duration of a whole transaction, and here only the claim
# is of interest.  So claim and ack are two scripts that pgbench picks from
# at random: whichever it is not the turn of does nothing.  Such an empty
# transaction never leaves pgbench and takes a few microseconds; anything
# that went to the server and back takes longer than EMPTY_US.
# ---------------------------------------------------------------------------

my $EMPTY_US  = 15;
my $SEND_RATE = 1500;

sub claim_scripts
{
	my ($side) = @_;
	return [
		"\\if :have\n\\else$SIDE{$side}{claim}\n\\endif",
		"\\if :have\n$SIDE{$side}{ack}\n\\set have 0\n\\endif",
	];
}

# A session that has taken a snapshot, by a query of its own or by the given
# one, and keeps it until the handle is closed.
sub hold_snapshot
{
	my ($query) = @_;
	$query = 'SELECT 1 FROM pg_class LIMIT 1' unless defined $query;
	my $pid = open(my $psql, '|-', "psql -XAtq -v ON_ERROR_STOP=1 >/dev/null")
	  or die "cannot start psql: $!\n";
	$children{$pid} = 1;
	$psql->autoflush(1);
	print $psql "SET application_name = 'msgq-bench-holder';\n",
	  "BEGIN ISOLATION LEVEL REPEATABLE READ;\n$query;\n";
	for (1 .. 50)
	{
		my $held = psql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_xmin IS NOT NULL
			AND application_name = 'msgq-bench-holder' AND state = 'idle in transaction'});
		return { pid => $pid, psql => $psql, since => time() } if $held;
		sleep 0.1;
	}
	die "could not hold a snapshot\n";
}

# Processor time that the consumers' backends have used, in seconds.  Other
# work on the machine changes how many claims a second has, but not what one
# claim costs.
sub consumer_cpu
{
	my $ticks = POSIX::sysconf(POSIX::_SC_CLK_TCK());
	my @pids  = split /\n/, psql(q{SELECT pid FROM pg_stat_activity
		WHERE application_name = 'msgq-bench-consumer'});
	return sum0(map { sum0((split / /, slurp("/proc/$_/stat"))[ 13, 14 ]) } @pids) / $ticks;
}

# Sleeps through the hold; returns the processor time of its first and of its
# last window.
sub hold
{
	my ($since) = @_;
	my @cpu = (consumer_cpu());
	for my $until ($size{window}, $size{hold} - $size{window}, $size{hold})
	{
		sleep max(0, $since + $until - time());
		push @cpu, consumer_cpu();
	}
	return [ $cpu[1] - $cpu[0], $cpu[3] - $cpu[2] ];
}

sub release_snapshot
{
	my ($holder) = @_;
	close($holder->{psql});
	delete $children{ $holder->{pid} };
	return;
}

# Reads pgbench's transaction logs: claims and acks for each window of time,
# and the durations of the claims in the first and the last one.
sub read_logs
{
	my ($prefix, $since) = @_;
	my $windows = int($size{hold} / $size{window});
	my @window  = map { { claims => 0, acks => 0, us => [] } } 1 .. $windows;
	for my $path (glob("$prefix.*"))
	{
		open(my $log, '<', $path) or die "cannot read $path: $!\n";
		while (<$log>)
		{
			my (undef, undef, $us, $script, $epoch, $epoch_us) = split / /;
			next if $us <= $EMPTY_US;
			my $n = int(($epoch + $epoch_us / 1e6 - $since) / $size{window});
			next if $n < 0 || $n >= $windows || $epoch < $since - 1;
			if ($script == 1) { $window[$n]{acks}++; next; }
			$window[$n]{claims}++;
			push @{ $window[$n]{us} }, $us if $n == 0 || $n == $windows - 1;
		}
		close($log);
		unlink $path;
	}
	return \@window;
}

# Logging every transaction of ten minutes would fill the disk.
sub sampling { return $size{hold} > 120 ? 0.1 : 1 }

sub held_round
{
	my ($side) = @_;
	prepare($side, 0);
	my $prefix = "$opt{work}/claims-$side";
	unlink glob("$prefix.*");
	my @length   = ('-T', $size{hold} + 6);
	my $consumer = do
	{
		local $ENV{PGAPPNAME} = 'msgq-bench-consumer';
		start_pgbench("claims-$side-run", claim_scripts($side),
			qw(-c 8 -j 2), @length, '-l', "--log-prefix=$prefix", '--sampling-rate=' . sampling());
	};
	my $producer = start_pgbench("sends-$side", [ $SIDE{$side}{send} ],
		qw(-c 8 -j 1), @length, "--rate=$SEND_RATE");
	sleep 3;
	my $holder = hold_snapshot();
	profile("held_snapshot-$side", min(10, $size{hold} / 2)) if $opt{profile};
	my $cpu = hold($holder->{since});
	release_snapshot($holder);
	my ($sent) = finish_pgbench($producer);
	finish_pgbench($consumer);
	return { sent => $sent, cpu => $cpu, windows => read_logs($prefix, $holder->{since}) };
}

sub held_snapshot
{
	for my $side (sides('msgq', 'textbook_async'))
	{
		my $run   = held_round($side);
		my ($first, $last) = @{ $run->{windows} }[ 0, -1 ];
		die "$SIDE{$side}{title}: no claims at first\n" unless $first->{claims};
		my $ratio = $last->{claims} / $first->{claims};
		my $scale = sampling() * $size{window};
		push @rows, {
			case     => $side eq 'msgq' || $opt{baselines} ? 'held_snapshot, 8 clients' : '',
			msgq     => $side eq 'msgq' ? thousands($last->{claims} / $scale) : '',
			baseline => "$SIDE{$side}{title}, first $size{window} s",
			base     => thousands($first->{claims} / $scale),
			ratio    => ratio_text($ratio),
			$side eq 'msgq'
			? (floor => limit_text('held_snapshot'), verdict => verdict('held_snapshot', $ratio))
			: (),
		};
		$rows[-1]{msgq} = '(' . thousands($last->{claims} / $scale) . ')' unless $side eq 'msgq';
		held_remarks($side, $run, $scale);
	}
	return;
}

sub held_remarks
{
	my ($side, $run, $scale) = @_;
	my @windows = @{ $run->{windows} };
	my $title   = "held_snapshot, $SIDE{$side}{title}";
	push @remarks, sprintf('%s: %s sends/s; claims/s in windows of %d s: %s', $title,
		thousands($run->{sent}), $size{window},
		join(' ', map { thousands($_->{claims} / $scale) } @windows));
	push @remarks, sprintf('%s: consumed/s in the first and the last window: %s and %s', $title,
		map { thousands($_->{acks} / $scale) } @windows[ 0, -1 ]);
	push @remarks, sprintf('%s: duration of a claim, p50 and p99: first %s, last %s', $title,
		map { durations($_->{us}) } @windows[ 0, -1 ]);
	push @remarks, sprintf('%s: processor time for each claim, with its acks: first %.0f us, last %.0f us',
		$title, map { 1e6 * $run->{cpu}[$_] * sampling() / max(1, $windows[$_]{claims}) } 0, -1);
	progress($_) for @remarks[ -4 .. -1 ];
	return;
}

sub durations
{
	my @sorted = sort { $a <=> $b } @{ $_[0] };
	return join ' and ',
	  map { sprintf('%.2f ms', percentile(\@sorted, $_) / 1000) } 50, 99;
}

# ---------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------

my @timed      = ('-T', $size{seconds});
my @long_timed = ('-T', $size{long_seconds});
my @drain      = ('-t', $size{drain} / $BATCH / 2);
my @consumed   = (baselines => [qw(textbook textbook_async bound)], load => $size{load});

my %CASE = (
	send => sub {
		compare('send', {
			baselines => ['plain'], clients => 8, per_transaction => 1,
			rounds => $size{rounds}, length => \@timed });
	},
	send_key => sub {
		compare('send_key', {
			baselines => ['keyless'], clients => 8, per_transaction => 1,
			rounds => $size{rounds}, length => \@timed });
	},
	# The bound has no reason to slow down, and might run out of messages.
	consume => sub {
		compare('consume', {
			@consumed, clients => 8, per_transaction => 1, rounds => $size{long_rounds},
			length => \@long_timed, bound_length => \@timed });
	},
	# By number and not by time: a fast machine would run out of messages.
	batch => sub {
		compare('batch', {
			@consumed, clients => 2, per_transaction => $BATCH,
			rounds => $size{long_rounds}, length => \@drain, bound_length => \@drain });
	},
	send_batch => sub {
		compare('send_batch', {
			baselines => ['plain'], clients => 2, per_transaction => $BATCH,
			rounds => $size{rounds}, length => \@timed });
	},
	clients       => \&clients,
	held_snapshot => \&held_snapshot,
	latency       => \&latency,
	wakeups       => \&wakeups,
	held_queue    => \&held_queue,
	stream_cases(),
	topic_cases(),
	capture_cases(),
);

# ---------------------------------------------------------------------------
# Report
# ---------------------------------------------------------------------------

sub environment
{
	my $version = psql(q{SELECT 'PostgreSQL ' || current_setting('server_version')});
	my $cores   = () = slurp('/proc/cpuinfo') =~ /^processor/mg;
	my ($load)  = split / /, slurp('/proc/loadavg');
	my @settings = map { "$_ = " . psql("SHOW $_") } qw(fsync synchronous_commit
	  full_page_writes autovacuum shared_buffers max_wal_size checkpoint_timeout
	  shared_preload_libraries);
	my $rounds = sprintf("%d rounds of %d s, consumers %d of %d s with %s messages waiting,\n"
		  . 'batch consumers until %s are gone; snapshot held for %d s',
		@size{qw(rounds seconds long_rounds long_seconds)}, thousands($size{load}),
		thousands($size{drain}), $size{hold});
	return "$version, $cores cores, load average $load before the run\n"
	  . join(', ', @settings[ 0 .. 3 ]) . "\n"
	  . join(', ', @settings[ 4 .. $#settings ]) . "\n"
	  . "pgbench -M prepared; body of " . psql('SELECT pg_column_size(' . quoted($BODY) . '::jsonb)')
	  . " bytes; $rounds\n";
}

# A segment that gains a column must not be compared with a table without it.
sub check_plain
{
	return if $opt{baselines};
	psql(@{ $SIDE{msgq}{empty} });
	my $columns = q{SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', '
		ORDER BY attname) FROM pg_attribute
		WHERE attrelid = '%s'::regclass AND attnum > 0 AND NOT attisdropped};
	my ($plain, $msgq) = map { psql(sprintf($columns, $SIDE{$_}{table}->())) } qw(plain msgq);
	push @remarks, "the plain table differs from a segment: ($plain) and ($msgq)"
	  unless $plain eq $msgq;
	return;
}

sub report
{
	my ($environment) = @_;
	my $format = "%-26s %-25s %-33s %-25s %-20s %-7s %s\n";
	my $text   = "\nmsgq benchmark\n$environment\n";
	$text .= sprintf($format, 'case', 'msgq', 'baseline', '', 'ratio', 'floor', '');
	$text .= "-" x 149 . "\n";
	for my $row (@rows)
	{
		$text .= sprintf($format, map { defined $_ ? $_ : '' }
			  @{$row}{qw(case msgq baseline base ratio floor verdict)});
	}
	$text =~ s/ +$//mg;
	$text .= "\nMessages or entries per second (held_snapshot: claims per second) where no unit is given;\n"
	  . "medians, with the lowest and highest round. Of several baselines the fastest one counts.\n"
	  . "A floor with <= is a ceiling.\n\n";
	$text .= "note: profiled, so the ratios are distorted\n" if $opt{profile};
	$text .= join('', map { "$_\n" } @remarks);
	return $text;
}

sub run_case
{
	my ($case) = @_;
	return if eval { $CASE{$case}->(); 1 };
	die $@ if $@ eq "interrupted\n";
	$failed++;
	chomp(my $why = $@);
	progress("$case could not run: $why");
	push @rows, { case => $case, verdict => 'COULD NOT RUN' };
	push @remarks, "$case could not run: $why";
	return;
}

psql('CREATE EXTENSION IF NOT EXISTS msgq') unless $opt{baselines};
my %wanted = map { $_ => 1 } @{ $opt{case} };
set_up_streams() if grep { $wanted{$_} } @STREAM_CASES;
for my $file (grep { defined } map { $SIDE{$_}{setup} } sort keys %SIDE)
{
	finish(start('psql', qw(psql -XAtq -v ON_ERROR_STOP=1 -f), "$here$file"));
}
my $environment = environment();
check_plain();
run_case($_) for @{ $opt{case} };
my $text = report($environment);
spill("$opt{work}/report.txt", $text);
print $text;
print "\n$below figure(s) BELOW THE FLOOR or above the ceiling\n" if $below;
print "\n$failed case(s) COULD NOT RUN\n"   if $failed;
exit($failed ? 1 : $below ? 2 : 0);
