# Crashes under load: SIGKILL for single backends, an immediate shutdown, and
# SIGKILL for the whole server at once, also in the middle of recovery.
#
# Catches: a send that was confirmed and is lost, an unconfirmed one that
# comes out half (message without the caller's own row, or the other way
# round), a rolled-back one that appears, an acknowledged message that comes
# back, a settled one that takes no effect, and damaged tables or indexes.
#
# Producers and consumers write to files, outside the database, what the server
# has confirmed.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $backend_kills = 4;
my $server_kills = 4;

my $node = new_node(
	'crash',
	'restart_after_crash = on',
	'autovacuum_naptime = 1s',
	# Checkpoints come on request, so that recovery has something to do.
	'checkpoint_timeout = 1h');

$node->safe_psql(
	'postgres', q{
	SELECT msgq.create_queue('crash', visibility_timeout => '1 s');
	CREATE TABLE sent (p text);
	CREATE TABLE taken (p text, how text);
});
my $id = $node->safe_psql('postgres',
	"SELECT id FROM msgq.queues WHERE name = 'crash'");

# Transaction N of a producer: the payloads are <run>-<N><letter>; a letter
# from x on belongs to something that is rolled back.
sub produce
{
	my ($n) = @_;
	my $one = sub {
		my ($letter) = @_;
		return
			"INSERT INTO sent VALUES (:'run' || '-$n$letter'); "
		  . "SELECT msgq.send('crash', jsonb_build_object("
		  . "'p', :'run' || '-$n$letter')) \\g /dev/null\n";
	};
	my $kind = $n % 5;

	return "BEGIN;\n" . $one->('a') . "COMMIT;\n\\qecho :run-${n}a\n"
	  if $kind < 2;
	return
		"BEGIN;\n"
	  . $one->('a')
	  . "SAVEPOINT s;\n"
	  . $one->('x')
	  . "ROLLBACK TO s;\n"
	  . $one->('b')
	  . "COMMIT;\n\\qecho :run-${n}a\n\\qecho :run-${n}b\n"
	  if $kind == 2;
	return "BEGIN;\n" . $one->('x') . "ROLLBACK;\n" if $kind == 3;
	return
		"BEGIN;\nWITH s AS (INSERT INTO sent SELECT :'run' || '-$n' || l "
	  . "FROM unnest('{a,b,c,d}'::text[]) l RETURNING p) "
	  . "SELECT msgq.send_batch('crash', "
	  . "array_agg(jsonb_build_object('p', p))) FROM s \\g /dev/null\n"
	  . "COMMIT;\n"
	  . join '', map { "\\qecho :run-$n$_\n" } qw(a b c d);
}

my $pop = q{
BEGIN;
WITH m AS (
	INSERT INTO taken
	SELECT body->>'p', 'pop' FROM msgq.pop('crash', 3) RETURNING p)
SELECT string_agg(p, ' ') AS ps FROM m \gset
COMMIT;
\qecho :ps
};

my $ack = q{
SELECT coalesce(array_agg(receipt), '{}') AS receipts,
	coalesce(array_agg(body->>'p'), '{}') AS ps
FROM msgq.receive('crash', 4) \gset
BEGIN;
WITH m AS (
	INSERT INTO taken
	SELECT p, 'ack'
	FROM unnest(:'receipts'::uuid[], :'ps'::text[]) AS u(receipt, p)
	WHERE msgq.ack('crash', receipt)
	RETURNING p)
SELECT string_agg(p, ' ') AS ps FROM m \gset
COMMIT;
\qecho :ps
};

my $rollback = q{
BEGIN;
INSERT INTO taken SELECT body->>'p', 'x' FROM msgq.pop('crash', 3);
ROLLBACK;
};

my $producer = text_file(join '', map { produce($_) } 1 .. 20000);
my $consumer = text_file(join '', ($pop, $ack, $pop, $ack, $rollback) x 5000);
my $output = PostgreSQL::Test::Utils::tempdir();

my (@confirmed_sends, @confirmed_effects, @errors);
my $runs = 0;

# A checkpoint now and then, so that crashes also fall into one.
my $checkpoint =
  text_file("CHECKPOINT;\nSELECT pg_sleep(0.3) \\g /dev/null\n" x 100);

# Starts a load, waits until it runs, does DEED at some moment, and collects
# what was confirmed.  In every other cycle the consumers keep up.
sub under_load
{
	my ($cycle, $deed) = @_;
	my (@producers, @consumers, @others);

	foreach my $n (1 .. 3)
	{
		my $run = ++$runs;
		push @producers,
		  run_psql(
			$node,
			file => $producer,
			output => "$output/sent.$run",
			variables => { run => "r$run" });
		push @consumers,
		  run_psql(
			$node,
			file => $consumer,
			output => "$output/taken.$run") if $n == 1 || $cycle % 2 == 0;
	}
	push @others,
	  run_psql($node, file => $checkpoint, output => "$output/checkpoint")
	  if $cycle % 3 != 0;
	$node->poll_query_until('postgres',
		"SELECT count(*) > 0 FROM sent WHERE p LIKE 'r$runs-%'")
	  or die "no load";
	usleep(300_000 + rand(700_000));
	$deed->();
	finish(@producers, @consumers, @others);
	push @errors,
	  grep { /ERROR:/ } map { $_->{output} } @producers, @consumers, @others;

	foreach my $run ($runs - 2 .. $runs)
	{
		push @confirmed_sends, split ' ', slurp_file("$output/sent.$run");
		push @confirmed_effects,
		  grep { $_ ne ':ps' } split ' ', slurp_file("$output/taken.$run")
		  if -e "$output/taken.$run";
	}
	return;
}

foreach my $cycle (1 .. $backend_kills)
{
	under_load(
		$cycle,
		sub {
			my $pid = $node->safe_psql(
				'postgres', q{
				SELECT pid FROM pg_stat_activity
				WHERE backend_type = 'client backend'
					AND pid <> pg_backend_pid()
					AND query !~ 'CHECKPOINT|pg_sleep'
				ORDER BY random() LIMIT 1});
			die "no backend to kill" if $pid eq '';
			kill_backend($node, $pid);
		});
}
ok(@confirmed_sends > 100, 'sends were confirmed before the kills');
note(
		scalar(@confirmed_sends)
	  . ' sends confirmed, '
	  . scalar(@confirmed_effects)
	  . ' effects');

foreach my $cycle (1 .. $server_kills)
{
	under_load(
		$cycle,
		sub {
			if ($cycle == 1)
			{
				$node->stop('immediate');
				$node->start;
				return;
			}
			kill_all($node);
			kill_starting($node) if $cycle % 2 == 0;
			start_again($node);
		});
}
note(
		scalar(@confirmed_sends)
	  . ' sends confirmed, '
	  . scalar(@confirmed_effects)
	  . ' effects');

is("@errors", '', 'no statement failed but for the kills');

my $session = session($node);

# Before the rest is taken: what is there and what has taken effect.
is( $session->safe(
		"SELECT p FROM taken JOIN msgq.q$id ON body->>'p' = p LIMIT 5"),
	'',
	'nothing that has taken effect is still in the queue');

foreach my $try (1 .. 300)
{
	$session->safe(
		q{INSERT INTO taken SELECT body->>'p', 'end'
		FROM msgq.pop('crash', 10000)});
	last if $session->safe("SELECT msgq.why_empty('crash')") eq 'empty';
	$session->safe('SELECT pg_sleep(0.05)');
}
is($session->safe("SELECT count(*) FROM msgq.q$id"),
	'0', 'the queue can be emptied');

$session->safe('CREATE TABLE confirmed (p text, what text)');
my %lists = (send => \@confirmed_sends, effect => \@confirmed_effects);
foreach my $what (sort keys %lists)
{
	$session->safe("INSERT INTO confirmed SELECT unnest('{"
		  . join(',', @{ $lists{$what} })
		  . "}'::text[]), '$what'");
}

sub nothing
{
	my ($sql, $name) = @_;
	is($session->safe("SELECT * FROM ($sql) AS bad LIMIT 5"), '', $name);
	return;
}

nothing(
	"SELECT p FROM confirmed WHERE what = 'send' EXCEPT SELECT p FROM sent",
	'no confirmed transaction is lost');
nothing('SELECT p FROM sent EXCEPT SELECT p FROM taken',
	'no message is lost');
nothing('SELECT p FROM taken EXCEPT SELECT p FROM sent',
	'no message is a phantom');
nothing("SELECT p FROM taken WHERE p ~ 'x\$' OR how = 'x'",
	'what was rolled back has not happened');
nothing('SELECT p, array_agg(how) FROM taken GROUP BY p HAVING count(*) > 1',
	'no message takes effect twice');
nothing(
	"SELECT p FROM confirmed WHERE what = 'effect' EXCEPT SELECT p FROM taken WHERE how <> 'end'",
	'no confirmed effect is lost, and none of these messages came back');
foreach my $how (qw(pop ack))
{
	cmp_ok($session->safe("SELECT count(*) FROM taken WHERE how = '$how'"),
		'>', 50, "messages were taken by $how");
}
$session->quit;

check_log($node);
check_indexes($node);
$node->stop;

done_testing();
