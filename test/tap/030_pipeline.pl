# A pipeline from a queue over a table of effects and a stream to a second table,
# each step exactly once, while sessions are terminated, processes are killed, and
# the server is stopped and killed.
#
#	producers -> queue -> workers -> table effect, stream -> readers -> table copy
#
# Catches: a message that is lost, or takes effect twice, whatever was interrupted
# where; one that was sent again with its idempotency key and is stored twice; an
# effect without its entry in the stream or the other way round; an effect that
# was confirmed and is undone; an entry that the group misses, has twice, or has in
# another order; and leases that are left.
#
# Producer N sends the messages N-1, N-2, ..., one after the other.  When its
# connection breaks it knows what was confirmed, and begins with the message
# after that, of which it does not know.  So what was sent is known outside of the
# server: all up to the last one of each producer.
#
# A popper takes messages, writes effects and appends entries in one transaction.
# A receiver leases messages in one transaction, and does the rest and
# acknowledges in another one, strictly; sometimes later than the lease permits,
# when somebody else has the message.  No index would keep a second effect out.
#
# MSGQ_PIPELINE_SECONDS is the time of the load, MSGQ_PIPELINE_SEED chooses what
# is done to the server, and when.  Two runs with the same seed still differ in
# what that hits.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use List::Util qw(shuffle);
use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $seconds = $ENV{MSGQ_PIPELINE_SECONDS} // 15;
my $seed = $ENV{MSGQ_PIPELINE_SEED} // int(rand(2**31));
my %number = (producer => 3, popper => 2, receiver => 2, reader => 2);

srand($seed);
diag("MSGQ_PIPELINE_SEED=$seed MSGQ_PIPELINE_SECONDS=$seconds");

my $node = new_node(
	'pipeline',
	'restart_after_crash = on',
	'msgq.worker_interval = 200ms',
	'autovacuum_naptime = 1s',
	# Checkpoints come on request, so that recovery has something to do.
	'checkpoint_timeout = 1h');

# Nothing is given up, however often its transactions are killed.
$node->safe_psql(
	'postgres', q{
	SELECT msgq.create_queue('in', visibility_timeout => '500 ms', max_deliveries => 0,
		dead_letter_queue => '', retry_delay => '50 ms', max_retry_delay => '200 ms');
	SELECT msgq.create_stream('out', partitions => 2);
	SELECT msgq.create_group('out', 'copy', 'first');
	CREATE TABLE effect (p text, how text);
	CREATE TABLE copy (n bigint GENERATED ALWAYS AS IDENTITY,
		partition int, position bigint, id bigint, p text);
});

# ---------------------------------------------------------------------------
# Scripts.  What is committed is confirmed by \qecho, into a file.
# ---------------------------------------------------------------------------

# The next messages of a producer.  Every now and then one is rolled back before
# it is sent, or sent again though it was confirmed.
sub producer_script
{
	my ($producer, $first) = @_;
	my $script = '';

	foreach my $n ($first .. $first + 999)
	{
		my $p = "$producer-$n";
		my $send = "msgq.send('in', '{\"p\": \"$p\"}', idempotency_key => '$p')";
		my $kind = rand;

		$script .= "BEGIN;\nSELECT $send \\g /dev/null\nROLLBACK;\n" if $kind < 0.1;
		$script .=
		  $kind < 0.5
		  ? "SELECT $send \\g /dev/null\n"
		  : "SELECT * FROM msgq.send_once('in', '{\"p\": \"$p\"}', '$p') \\g /dev/null\n";
		$script .= "\\qecho $p\n";
		$script .= "SELECT $send \\g /dev/null\n" if $kind > 0.8;
		$script .= "SELECT pg_sleep(random() * 0.01) \\g /dev/null\n";
	}
	return $script;
}

my $append = q{
SELECT msgq.append('out', jsonb_build_object('p', p), key => left(p, -1))
FROM unnest(:'ps'::text[]) AS p \g /dev/null
};

sub popper_script
{
	my $pop = q{
BEGIN;
WITH m AS (
	INSERT INTO effect
	SELECT body->>'p', 'pop' FROM msgq.pop('in', 3) RETURNING p)
SELECT coalesce(array_agg(p), '{}') AS ps, random() * 0.02 AS pause FROM m \gset
} . $append . q{
SELECT pg_sleep(:pause) \g /dev/null
};

	return join '',
	  map { $pop . (rand() < 0.05 ? "ROLLBACK;\n" : "COMMIT;\n\\qecho :ps\n") } 1 .. 1000;
}

# The receipt is stale if the lease has ended and somebody else has taken the
# message: then all of the transaction is undone.
sub receiver_script
{
	my $receive = q{
SELECT coalesce(array_agg(receipt), '{}') AS receipts,
	coalesce(array_agg(body->>'p'), '{}') AS ps
FROM msgq.receive('in', 3) \gset
SELECT pg_sleep({pause}) \g /dev/null
\set ON_ERROR_STOP off
BEGIN;
INSERT INTO effect SELECT p, 'receive' FROM unnest(:'ps'::text[]) AS p;
} . $append . q{
SELECT msgq.ack('in', receipt, strict => true)
FROM unnest(:'receipts'::uuid[]) AS receipt \g /dev/null
\set failed :ERROR
COMMIT;
\set ON_ERROR_STOP on
\if :failed
\else
\qecho :ps
\endif
};

	return join '', map {
		my $pause = rand() < 0.1 ? 0.6 + rand(0.3) : rand(0.03);
		$receive =~ s/\{pause\}/$pause/r;
	} 1 .. 1000;
}

sub reader_script
{
	return q{
BEGIN;
INSERT INTO copy (partition, position, id, p)
SELECT partition, position, id, body->>'p'
FROM msgq.read('out', 'copy', 20, wait => '100 ms');
SELECT pg_sleep(random() * 0.02) \g /dev/null
COMMIT;
} x 1000;
}

my %script = (
	popper => \&popper_script,
	receiver => \&receiver_script,
	reader => \&reader_script);

# ---------------------------------------------------------------------------
# Processes: whoever has lost his connection begins again.
# ---------------------------------------------------------------------------

my $output = PostgreSQL::Test::Utils::tempdir();
my (@running, @confirmed_effects, @errors);
my %sent;
my $runs = 0;
my $stale = 0;

sub start
{
	my ($kind, $number) = @_;
	my $file = "$output/" . ++$runs;
	my $script =
	    $kind eq 'producer'
	  ? producer_script($number, ($sent{$number} // 0) + 1)
	  : $script{$kind}->();

	local $ENV{PGAPPNAME} = $kind;
	push @running,
	  {
		handle => run_psql($node, file => text_file($script), output => $file),
		kind => $kind,
		number => $number,
		file => $file
	  };
	return;
}

sub has_ended
{
	my ($process) = @_;

	eval { $process->{handle}{run}->pump_nb };
	return !$process->{handle}{run}->pumpable;
}

# What an ended process has to tell.
sub collect
{
	my ($process) = @_;

	eval { $process->{handle}{run}->finish };
	my @lines = -e $process->{file} ? split /\n/, slurp_file($process->{file}) : ();
	if ($process->{kind} eq 'producer')
	{
		$sent{ $process->{number} } = $1 if @lines && $lines[-1] =~ /-(\d+)$/;
	}
	else
	{
		push @confirmed_effects, map { /^\{(.+)\}$/ ? split /,/, $1 : () } @lines;
	}

	my @messages = $process->{handle}{output} =~ /^.*((?:ERROR|PANIC):.*)$/mg;
	$stale += grep { /receipt is stale/ } @messages;
	push @errors,
	  grep { !/receipt is stale|current transaction is aborted/ } @messages;
	return;
}

sub keep_running
{
	my @ended = grep { has_ended($_) } @running;

	@running = grep { my $one = $_; !grep { $_ == $one } @ended } @running;
	foreach my $process (@ended)
	{
		collect($process);
		start($process->{kind}, $process->{number});
	}
	return;
}

# Ends those of a kind, as others are ended by chance.
sub end_all
{
	my (@kinds) = @_;

	foreach my $kind (@kinds)
	{
		my @these = grep { $_->{kind} eq $kind } @running;
		@running = grep { $_->{kind} ne $kind } @running;
		until (!grep { !has_ended($_) } @these)
		{
			$node->safe_psql('postgres',
				"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '$kind'"
			);
			usleep(50_000);
		}
		collect($_) foreach @these;
	}
	return;
}

# ---------------------------------------------------------------------------
# What is done to the server
# ---------------------------------------------------------------------------

# One of the pipeline's sessions, or of msgq's own processes; in the middle of a
# transaction if there is one.
sub victim
{
	return $node->safe_psql(
		'postgres', q{
		SELECT pid FROM pg_stat_activity
		WHERE application_name IN ('producer', 'popper', 'receiver', 'reader')
			OR backend_type ~ '^msgq'
		ORDER BY backend_xid IS NULL AND random() < 0.5, random() LIMIT 1});
}

my %deed = (
	terminate => sub {
		my $pid = victim();
		$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)") if $pid ne '';
	},
	'kill -9' => sub {
		my $pid = victim();
		kill_backend($node, $pid) if $pid ne '' && kill(0, $pid);
	},
	'stop immediately' => sub {
		$node->stop('immediate');
		start_again($node);
	},
	'kill all' => sub {
		kill_all($node);
		start_again($node);
	},
	'kill all, also in recovery' => sub {
		kill_all($node);
		kill_starting($node);
		start_again($node);
	},
	checkpoint => sub { $node->safe_psql('postgres', 'CHECKPOINT') });

# All kinds in the first round, terminations more often than the rest.
my @deeds = (('terminate') x 5, ('kill -9') x 2, sort keys %deed);
my (@to_do, %done);

sub one_deed
{
	@to_do = shuffle(@deeds) if !@to_do;
	my $what = shift @to_do;
	$deed{$what}->();
	$done{$what}++;
	return;
}

foreach my $kind (sort keys %number)
{
	start($kind, $_) foreach 1 .. $number{$kind};
}
$node->poll_query_until('postgres', 'SELECT count(*) > 100 FROM copy')
  or die 'no load';

my $until = time + $seconds;
# On a slow machine what the test is about takes its time.
while (time < $until
	|| (keys %done < keys %deed || $stale == 0)
	&& time < $until + $PostgreSQL::Test::Utils::timeout_default)
{
	usleep(100_000 + rand(900_000));
	one_deed();
	keep_running();
}
note("done: " . join ', ', map { "$done{$_} times $_" } sort keys %done);
is(keys %done, keys %deed, 'all that was to be done was done');

# ---------------------------------------------------------------------------
# The rest
# ---------------------------------------------------------------------------

# Each producer ends with one message of which it does not know; it sends that
# again.
end_all('producer');
foreach my $producer (1 .. $number{producer})
{
	my $p = "$producer-" . ++$sent{$producer};
	$node->safe_psql('postgres',
		"SELECT msgq.send('in', '{\"p\": \"$p\"}', idempotency_key => '$p')");
}

# Until all has gone through.
my $id = $node->safe_psql('postgres', q{SELECT id FROM msgq.streams WHERE name = 'out'});
my $through = '';
my $patience = time + $PostgreSQL::Test::Utils::timeout_default;
until ($through eq 't' || time > $patience)
{
	usleep(100_000);
	keep_running();
	$through = $node->safe_psql(
		'postgres', qq{
		SELECT msgq.why_empty('in') = 'empty'
			AND (SELECT count(*) FROM copy) >= (SELECT count(*) FROM msgq.s$id)});
}
is($through, 't', 'all has gone through');
end_all('popper', 'receiver', 'reader');

my $session = session($node);

sub nothing
{
	my ($sql, $name) = @_;
	is($session->safe("SELECT * FROM ($sql) AS bad LIMIT 5"), '', $name);
	return;
}

$session->safe(
	q{CREATE TABLE sent AS SELECT producer || '-' || n AS p
	FROM (VALUES } . join(', ', map { "($_, $sent{$_})" } sort keys %sent) . q{)
		AS producers (producer, last), generate_series(1, last) AS n;
	CREATE TABLE entry AS
	SELECT partition, position, id, body->>'p' AS p
	FROM generate_series(0, 1) AS which, msgq.scan('out', which, 1, 10000) WITH NO DATA;
	DO $$
	DECLARE
		from_position bigint;
	BEGIN
		FOR which IN 0 .. 1 LOOP
			from_position := 1;
			LOOP
				INSERT INTO entry SELECT partition, position, id, body->>'p'
				FROM msgq.scan('out', which, from_position, 5000);
				EXIT WHEN NOT FOUND;
				SELECT max(position) + 1 INTO from_position
				FROM entry WHERE partition = which;
			END LOOP;
		END LOOP;
	END $$});

# ---------------------------------------------------------------------------
# What must hold
# ---------------------------------------------------------------------------

my %count = map { $_ => $session->safe("SELECT count(*) FROM $_") } qw(sent effect entry copy);
note(join ', ', (map { "$_: $count{$_}" } sort keys %count),
	"confirmed effects: " . @confirmed_effects, "stale receipts: $stale", "processes: $runs");

is("@errors", '', 'no statement failed but for the kills');
nothing('TABLE sent EXCEPT SELECT p FROM effect', 'no message is lost');
nothing('SELECT p FROM effect EXCEPT TABLE sent', 'no effect is a phantom');
nothing('SELECT p, array_agg(how) FROM effect GROUP BY p HAVING count(*) > 1',
	'no message takes effect twice');
nothing(
	q{(SELECT p FROM effect EXCEPT ALL SELECT p FROM entry)
	UNION ALL (SELECT p FROM entry EXCEPT ALL SELECT p FROM effect)},
	'the stream has the effects, each once');
nothing(
	"SELECT p FROM unnest('{"
	  . join(',', @confirmed_effects)
	  . "}'::text[]) AS p GROUP BY p HAVING count(*) > 1",
	'what was confirmed was not undone and done again');
nothing(
	q{(TABLE entry EXCEPT ALL SELECT partition, position, id, p FROM copy)
	UNION ALL (SELECT partition, position, id, p FROM copy EXCEPT ALL TABLE entry)},
	'the copy has the entries, each once');
nothing(
	q{SELECT * FROM (SELECT partition, position,
			row_number() OVER (PARTITION BY partition ORDER BY n) AS expected FROM copy) AS s
	WHERE position <> expected},
	'in their order');
is( $session->safe(
		q{SELECT (SELECT count(*) FROM msgq.leases), (SELECT count(*) FROM msgq.peek('in')),
			(SELECT sum(lag) FROM msgq.group_lag)}),
	'0|0|0',
	'no lease, no message and no lag is left');

# Was there what the test is about?
foreach my $how (qw(pop receive))
{
	cmp_ok($session->safe("SELECT count(*) FROM effect WHERE how = '$how'"),
		'>', 100, "effects came by $how");
}
cmp_ok($stale, '>', 0, 'receipts were stale');
cmp_ok($runs, '>', 2 * keys %number, 'processes have lost their connections');
$session->quit;

check_log($node);
check_indexes($node);
$node->stop;

done_testing();
