#
# bench/topics.pl - the cases of topics, and of requests with replies
#
# Part of bench/measure.pl, which loads this file and whose programs, figures
# and tables it uses.  A publish is compared with what it stands for: sends to
# the same queues, in one transaction.

use strict;
use warnings;

use List::Util qw(max);

our (%SIDE, %FLOOR, %CEILING, %opt, %size, @EMPTIED, @remarks, @rows, $BODY);

# What issue and README promise.
%FLOOR = (%FLOOR, publish => 0.5);
%CEILING = (%CEILING, request_p50 => 3);    # ms

my $BINDINGS = 1000;
my $TARGETS  = 3;
my @QUEUES   = map { "bench_target_$_" } 1 .. $TARGETS;

# ---------------------------------------------------------------------------
# The sides
# ---------------------------------------------------------------------------

sub drop_targets
{
	return (
		q{SELECT msgq.drop_topic(name) FROM msgq.topics WHERE name = 'bench_topic'},
		q{SELECT msgq.drop_queue(name) FROM msgq.queues WHERE name ~ '^bench_target'});
}

sub make_queues
{
	return map { "SELECT msgq.create_queue('$_', dead_letter_queue => '')" } @QUEUES;
}

# Of so many bindings three match, each to another queue; the others look like
# those of a program that binds by what it works on.
sub topic_sides
{
	my $others = $BINDINGS - $TARGETS;

	$SIDE{topic} = {
		title => "msgq, $BINDINGS bindings",
		ours  => 1,
		empty => [
			drop_targets(), make_queues(),
			q{SELECT msgq.create_topic('bench_topic')},
			(map { "SELECT msgq.bind('bench_topic', '$_', 'order.*.paid')" } @QUEUES),
			"SELECT count(msgq.bind('bench_topic', 'bench_target_' || 1 + i % $TARGETS,
				(ARRAY['order.*.', '#.', 'customer.'])[1 + i % 3] || 'n' || i || (ARRAY['.#', '', '.paid'])[1 + i % 3]))
				FROM generate_series(1, $others) AS i",
		],
		table   => \&targets_union,
		publish => q{SELECT msgq.publish('bench_topic', 'order.eu.paid', :body::jsonb);},
	};
	$SIDE{direct} = {
		title   => "$TARGETS sends",
		ours    => 1,
		empty   => [ drop_targets(), make_queues() ],
		table   => \&targets_union,
		publish => 'SELECT '
		  . join(', ', map { "msgq.send('$_', :body::jsonb)" } @QUEUES) . ';',
	};
	return;
}

# All that was sent, as one table.
sub targets_union
{
	return '(' . psql(q{SELECT string_agg('SELECT FROM msgq.q' || id, ' UNION ALL ')
		FROM msgq.queues WHERE name ~ '^bench_target'}) . ') AS t';
}

# ---------------------------------------------------------------------------
# Publish
#
# Without waiting for the disk, which would hide what routing costs.
# ---------------------------------------------------------------------------

sub publish_round
{
	my ($case, $side, $how) = @_;
	local @EMPTIED = ($side);
	local $ENV{PGOPTIONS} = "$ENV{PGOPTIONS} -c synchronous_commit=off";
	return round_of($case, $side, { %{$how}, per_transaction => $TARGETS }) / $TARGETS;
}

sub publish
{
	topic_sides();
	compare('publish', {
		ours => 'topic', round => \&publish_round, unit => 'messages', baselines => ['direct'],
		clients => 1, rounds => $size{stream_rounds}, length => [ '-T', $size{stream_seconds} ],
		limits => { direct => 'publish' } });
	psql(drop_targets());
	return;
}

# ---------------------------------------------------------------------------
# Requests
#
# From the CALL to its end, with workers that wait for requests.
# ---------------------------------------------------------------------------

# Milliseconds of the transactions in pgbench's logs, sorted.
sub logged_latencies
{
	my ($prefix) = @_;
	my @latencies = map { (split ' ', $_)[2] / 1000 }
	  map { split /\n/, slurp($_) } glob("$prefix.*");
	return [ sort { $a <=> $b } @latencies ];
}

sub request_round
{
	my ($callers, $workers) = @_;
	my $prefix = "$opt{work}/requests";
	unlink glob("$prefix.*");
	psql(drop_targets(), q{SELECT msgq.create_queue('bench_target_1', dead_letter_queue => '')});
	my $work = start_pgbench("request-workers-$callers", [
		q{SELECT count(msgq.reply('bench_target_1', receipt, body))
			FROM msgq.receive('bench_target_1', 1, wait => '1 s');}
	], '-c', $workers, qw(-j 1), '-T', $size{latency} + 2);
	sleep 1;
	my $calls = start_pgbench("request-callers-$callers", [
		q{CALL msgq.request('bench_target_1', :body::jsonb, '10 s');}
	], '-c', $callers, qw(-j 2), '-T', $size{latency}, '-l', "--log-prefix=$prefix");
	profile("request-$callers", $size{latency} / 2) if $opt{profile};
	my ($rate, $count) = finish_pgbench($calls);
	finish_pgbench($work);
	my $latencies = logged_latencies($prefix);
	die "$count requests, but " . @{$latencies} . " in the log\n" if @{$latencies} != $count;
	my $left = psql('SELECT (SELECT count(*) FROM msgq.reply_1) + (SELECT count(*) FROM msgq.reply_2)');
	die "$left replies were not taken\n" if $left;
	return ($rate, $latencies);
}

sub request
{
	my ($rate, $latencies) = request_round(1, 1);
	my $p50 = percentile($latencies, 50);
	ceiling_row('request_p50', $p50,
		case     => 'request, p50',
		msgq     => sprintf('%.2f ms', $p50),
		baseline => 'from the CALL to its reply',
		base     => '1 caller, 1 worker');
	push @rows, {
		case => 'request, p99',
		msgq => sprintf('%.2f ms', percentile($latencies, 99)),
	};
	($rate, $latencies) = request_round(50, 4);
	push @rows, {
		case     => 'request, 50 callers',
		msgq     => thousands($rate),
		baseline => '4 workers; p50, p99',
		base     => sprintf('%.2f ms, %.2f ms', map { percentile($latencies, $_) } 50, 99),
	};
	psql(drop_targets());
	return;
}

sub topic_cases { return (publish => \&publish, request => \&request) }

1;
