# No message is lost, and none is there twice, whatever is done to it.
#
# Clients send, receive, settle, pop, cancel, purge and redrive at random, with
# rollbacks and savepoints, at each isolation level, and some are terminated.
# Queues give messages up for each reason; rings turn; the worker sweeps.  Each
# message carries a number of its own, and each client logs what it did to
# which number in the transaction that does it.  At some moments all is quiet.
# Then for each queue
#
#	sent + redriven = there + acked + archived + dead-lettered + expired
#		+ dropped + purged + cancelled,
#
# where what is there is counted in the tables, and what clients know of is
# counted in their logs.
#
#	queue	gives up to		because of
#	-----	-----------		----------
#	a		dead			failed deliveries, reject, time to live
#	b		nowhere			the same
#	c		nowhere			max_length, purge
#	d		dead			max_length
#	dead	dead2			failed deliveries, reject
#	dead2	nowhere			(it gives nothing up)

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $rounds = 3;
my $seconds = 6;

my $node = new_node(
	'conservation', 'max_connections = 60',
	'msgq.segment_size = 64kB', 'autovacuum_naptime = 1s',
	'deadlock_timeout = 200ms');
my $admin = session($node);

$admin->safe(
	q{
	SELECT msgq.create_queue('dead2', dead_letter_queue => '', max_deliveries => 0);
	SELECT msgq.create_queue('dead', dead_letter_queue => 'dead2', max_deliveries => 2,
		retry_delay => '20 ms', max_retry_delay => '100 ms');
	SELECT msgq.create_queue('a', dead_letter_queue => 'dead', max_deliveries => 3,
		retry_delay => '20 ms', max_retry_delay => '100 ms');
	SELECT msgq.create_queue('b', dead_letter_queue => '', max_deliveries => 2,
		max_in_flight => 20, retry_delay => '20 ms', max_retry_delay => '100 ms');
	SELECT msgq.create_queue('c', dead_letter_queue => '', max_deliveries => 0,
		max_length => 200, overflow => 'drop_oldest', max_retry_delay => '100 ms');
	SELECT msgq.create_queue('d', dead_letter_queue => 'dead', max_deliveries => 0,
		max_length => 100, overflow => 'dead_letter', max_retry_delay => '100 ms');
	SELECT msgq.alter_queue(name, '{"archive_retention": "1 day"}')
	FROM unnest('{a,b,c,d,dead,dead2}'::text[]) AS name;
	CREATE SEQUENCE payload;
	CREATE TABLE sent (p bigint PRIMARY KEY, queue text);
	CREATE TABLE ended (p bigint, queue text, how text);
	CREATE TABLE rejected (p bigint, queue text);
	CREATE TABLE counted (queue text, what text, n bigint);
});
my %id = map { split /\|/ } split /\n/,
  $admin->safe('SELECT name, id FROM msgq.queues');
my @queues = sort keys %id;
my $is_shared = $admin->safe(
	"SELECT detail NOT LIKE 'none%' FROM msgq.health()
	WHERE check_name = 'shared_memory'") eq 't';

# ---------------------------------------------------------------------------
# What clients do
# ---------------------------------------------------------------------------

my $end = q{
	\set r random(1, 5)
	\if :r = 1
		ROLLBACK;
	\else
		COMMIT;
	\endif
};

# One body in eight is stored out of line.
my $new = q{
	WITH s AS (
		INSERT INTO sent SELECT nextval('payload'), 'Q'
		FROM generate_series(1, :n) RETURNING p)
	SELECT msgq.send_batch('Q',
		array_agg(jsonb_build_object('p', p, 'pad', repeat('x', 300), 'large',
			CASE WHEN p % 8 = 0 THEN (SELECT jsonb_agg(md5((p + i)::text))
				FROM generate_series(1, 200) AS i) END)),
		delay => CASE WHEN :n = 5 THEN interval '100 ms' END,
		ttl => CASE WHEN :n = 6 THEN interval '500 ms' END)
	FROM s;
};

my $send = qq{
	\\set n random(1, 8)
	BEGIN;
	$new
	$end
};

my $send_savepoints = qq{
	\\set n random(1, 8)
	BEGIN;
	SAVEPOINT a;
	$new
	SAVEPOINT b;
	$new
	\\set r random(1, 2)
	\\if :r = 1
		ROLLBACK TO b;
	\\else
		ROLLBACK TO a;
	\\endif
	$new
	$end
};

# What m has was delivered.
my $delivered = q{
	INSERT INTO counted SELECT 'Q', 'delivered', count(*) FROM m
	HAVING count(*) > 0
};

# Claims in :receipts and :ps, in the order of ids.  Some leases run out.
my $claim = qq{
	\\set n random(1, 5)
	\\set ms random(1, 300)
	\\set ms CASE WHEN :ms % 4 = 0 THEN :ms ELSE 2000 END
	WITH m AS (
		SELECT * FROM msgq.receive('Q', :n, :ms * interval '1 ms')),
	d AS ($delivered)
	SELECT coalesce(array_agg(receipt ORDER BY id), '{}') AS receipts,
		coalesce(array_agg((body->>'p')::bigint ORDER BY id), '{}') AS ps
	FROM m \\gset
};
my $claimed = q{unnest(':receipts'::uuid[], ':ps'::bigint[]) AS u(receipt, p)};

my %settle = (
	ack => qq{
		WITH s AS MATERIALIZED (
			SELECT p, msgq.ack('Q', receipt) AS ok FROM $claimed)
		INSERT INTO ended SELECT p, 'Q', 'ack' FROM s WHERE ok;
	},
	ack_batch => qq{
		WITH s AS MATERIALIZED (
			SELECT msgq.ack_batch('Q', ':receipts'::uuid[]) AS stale)
		INSERT INTO ended SELECT p, 'Q', 'ack' FROM $claimed, s
		WHERE receipt <> ALL (stale);
	},
	archive => qq{
		WITH s AS MATERIALIZED (
			SELECT p, msgq.archive('Q', receipt) AS ok FROM $claimed)
		INSERT INTO ended SELECT p, 'Q', 'archive' FROM s WHERE ok;
	},
	reject => qq{
		WITH s AS MATERIALIZED (
			SELECT p, msgq.reject('Q', receipt, 'no') AS ok FROM $claimed)
		INSERT INTO rejected SELECT p, 'Q' FROM s WHERE ok;
	},
	nack => qq{
		SELECT count(msgq.nack('Q', receipt, error => 'x')) FROM $claimed;
	},
	nack_batch => q{
		SELECT msgq.nack_batch('Q', ':receipts'::uuid[], '0');
	},
	release => q{
		SELECT msgq.release_batch('Q', ':receipts'::uuid[]);
	},
	extend => qq{
		SELECT count(msgq.extend('Q', receipt, :ms * interval '1 ms'))
		FROM $claimed;
	},
	abandon => ';');

sub settle_script
{
	my ($how) = @_;

	return qq{
		BEGIN;
		$claim
		COMMIT;
		BEGIN;
		$settle{$how}
		$end
	};
}

# In one transaction, and once in vain.
my $all_in_one = qq{
	BEGIN;
	$claim
	SAVEPOINT a;
	$settle{reject}
	ROLLBACK TO a;
	$settle{ack}
	$end
};

my $undo = qq{
	BEGIN;
	SAVEPOINT a;
	$claim
	$settle{nack_batch}
	ROLLBACK TO a;
	$claim
	$settle{nack}
	$end
};

my $pop = qq{
	\\set n random(1, 5)
	BEGIN;
	WITH m AS (SELECT * FROM msgq.pop('Q', :n)),
	d AS ($delivered)
	INSERT INTO ended SELECT (body->>'p')::bigint, 'Q', 'pop' FROM m;
	$end
};

my $cancel = qq{
	BEGIN;
	WITH c AS MATERIALIZED (
		SELECT (body->>'p')::bigint AS p, msgq.cancel('Q', id) AS ok
		FROM msgq.peek('Q', 2))
	INSERT INTO ended SELECT p, 'Q', 'cancel' FROM c WHERE ok;
	$end
};

my $expire = q{
	SELECT count(msgq.expire_lease('Q', id)) FROM (
		SELECT id FROM msgq.leases WHERE queue = 'Q' ORDER BY id LIMIT 3) AS l;
};

my $purge = qq{
	BEGIN;
	INSERT INTO counted SELECT 'Q', 'purged', msgq.purge('Q');
	$end
};

my $redrive = qq{
	\\set n random(1, 30)
	BEGIN;
	SAVEPOINT a;
	SELECT msgq.redrive('Q', max_messages => :n);
	ROLLBACK TO a;
	INSERT INTO counted
	SELECT 'Q', 'redriven', msgq.redrive('Q', max_messages => :n);
	$end
};

# Scripts and weights; Q becomes the queue.
sub mix
{
	my %common = (
		$all_in_one => 3,
		$undo => 2,
		$pop => 2,
		$cancel => 1,
		$expire => 1,
		map { settle_script($_) => $_ =~ /ack|reject/ ? 3 : 1 } keys %settle);
	my %mix;

	foreach my $queue (qw(a b c d dead))
	{
		my %own = %common;

		@own{ $send, $send_savepoints } = (12, 4) if $queue ne 'dead';
		$own{$purge} = 1 if $queue =~ /^[bc]$/;
		$own{$redrive} = 6 if $queue eq 'dead';
		$mix{ s/'Q'/'$queue'/gr } = $own{$_} foreach keys %own;
	}
	$mix{ s/'Q'/'dead2'/gr } = 3 foreach $redrive, $pop;
	return %mix;
}

my %mix = mix();

# Clients that are terminated now and then, and their successors.
sub victims
{
	local $ENV{PGAPPNAME} = 'victim';

	return load(
		$node,
		scripts => \%mix,
		clients => 3,
		seconds => 60);
}

# All do what they do for some seconds.
sub disturb
{
	my @runs = map {
		load(
			$node,
			scripts => \%mix,
			clients => $_ eq 'read committed' ? 6 : 2,
			seconds => $seconds,
			isolation => $_)
	} 'read committed', 'repeatable read', 'serializable';
	my $until = time + $seconds;
	my $killed = 0;
	my $settings = 0;

	while (time < $until)
	{
		my $victims = victims();

		usleep(300_000 + rand(500_000));
		$killed += $admin->safe(
			q{SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
			WHERE application_name = 'victim'});
		finish($victims);
		$admin->safe(
			sprintf q{SELECT msgq.alter_queue('a', '{"max_deliveries": %d}'), msgq.%s('d', 'receive')},
			1 + $settings % 3, $settings % 2 ? 'resume' : 'pause');
		$settings++;
	}
	$admin->safe(q{SELECT msgq.resume('d', 'receive')});
	foreach my $run (@runs)
	{
		ok(finish($run), 'no unexpected error') or diag($run->{output});
		note("$1 transactions")
		  if $run->{output} =~ /actually processed: (\d+)/;
	}
	cmp_ok($killed, '>', 0, "$killed clients were terminated");
	return;
}

# ---------------------------------------------------------------------------
# What must be so when all is quiet
# ---------------------------------------------------------------------------

my $there = join ' UNION ALL ',
  map { "SELECT '$_' AS queue, id, failures, headers, body FROM msgq.q$id{$_}" } @queues;
my $there_p = "(SELECT queue, id, headers, (body->>'p')::bigint AS p FROM ($there) AS t)";

my %checks = (
	'no message is there twice' =>
	  "SELECT p, array_agg(queue || ' ' || id) FROM $there_p AS t
	  GROUP BY p HAVING count(*) > 1",
	'no id is given twice' =>
	  "SELECT queue, id FROM $there_p AS t
	  GROUP BY queue, id HAVING count(*) > 1",
	'no message ends twice' =>
	  'SELECT p, array_agg(how) FROM ended GROUP BY p HAVING count(*) > 1',
	'what has ended is not there' =>
	  "SELECT p, t.queue, how FROM $there_p AS t JOIN ended USING (p)",
	'what is there was sent' =>
	  "SELECT p FROM $there_p AS t EXCEPT SELECT p FROM sent",
	'what was archived is in the archive' =>
	  "SELECT * FROM (SELECT p, queue FROM ended WHERE how = 'archive') AS e
	  FULL JOIN (SELECT (body->>'p')::bigint AS p, q.queue
		FROM unnest('{" . join(',', @queues) . "}'::text[]) AS q(queue), msgq.archived(q.queue, 10000)) AS k USING (p, queue)
	  WHERE e.p IS NULL OR k.p IS NULL",
	'what was sent to where nothing is removed is there, or has ended' =>
	  "SELECT p FROM sent WHERE queue IN ('a', 'd')
	  EXCEPT SELECT p FROM $there_p AS t EXCEPT SELECT p FROM ended",
	'what has no dead-letter queue stays where it was sent' =>
	  "SELECT p, t.queue, s.queue FROM $there_p AS t JOIN sent s USING (p)
	  WHERE s.queue IN ('b', 'c') AND t.queue <> s.queue",
	'histories tell of each reject' =>
	  "SELECT * FROM (
		SELECT p, d.queue, d.count AS n
		FROM $there_p AS t, jsonb_to_recordset(t.headers->'msgq-death')
			AS d(queue text, reason text, count bigint)
		WHERE d.reason = 'rejected') AS h
	  FULL JOIN (
		SELECT p, r.queue, count(*) AS n FROM rejected r
		WHERE p IN (SELECT p FROM $there_p AS t) AND r.queue NOT IN ('b', 'c')
		GROUP BY 1, 2) AS r USING (p, queue)
	  WHERE h.n IS DISTINCT FROM r.n");

# What clients have logged, and what is there, against the totals.
my $log = q{
	SELECT queue, 'sent' AS what, count(*) AS n FROM sent GROUP BY 1
	UNION ALL SELECT queue, CASE how WHEN 'cancel' THEN 'cancelled' WHEN 'archive' THEN 'archived'
		ELSE 'acked' END, count(*)
	FROM ended GROUP BY 1, 2
	UNION ALL SELECT queue, CASE what WHEN 'redriven' THEN 'acked' ELSE what END, n FROM counted
};
my $totals = q{
	SELECT queue, t.* FROM msgq.queue_stats, LATERAL (VALUES
		('sent', sent_total), ('acked', acked_total), ('purged', purged_total),
		('archived', archived_total),
		('cancelled', cancelled_total)) AS t(what, n)
};

my %total_checks = (
	'each queue is balanced' =>
	  "SELECT s.*, n FROM msgq.queue_stats s
		LEFT JOIN (SELECT queue, count(*) FROM ($there) AS t GROUP BY 1) AS t (queue, n) USING (queue)
	  WHERE sent_total + redriven_total <> coalesce(n, 0) + acked_total + archived_total
		+ dead_lettered_total + expired_total + dropped_total + purged_total + cancelled_total",
	'the totals are what clients did' =>
	  "SELECT queue, what, t.n, l.n FROM ($totals) AS t
		FULL JOIN (SELECT queue, what, sum(n) AS n FROM ($log) AS l
			WHERE what <> 'delivered' GROUP BY 1, 2) AS l USING (queue, what)
	  WHERE coalesce(t.n, 0) <> coalesce(l.n, 0) AND NOT (queue IN ('dead', 'dead2') AND what = 'sent')",
	# A pop that is rolled back counts as a delivery.
	'each delivery is counted' =>
	  "SELECT queue, delivered_total, n FROM msgq.queue_stats
		JOIN (SELECT queue, sum(n) AS n FROM counted WHERE what = 'delivered'
			GROUP BY 1) AS l USING (queue)
	  WHERE delivered_total < n",
	'what is redriven arrives' =>
	  "SELECT * FROM (SELECT sum(redriven_total) AS n FROM msgq.queue_stats) AS t,
		(SELECT coalesce(sum(n), 0) AS n FROM counted WHERE what = 'redriven') AS l
	  WHERE t.n <> l.n",
	'what dies arrives' =>
	  q{SELECT * FROM (SELECT
		sum(sent_total) FILTER (WHERE queue = 'dead') AS to_dead,
		sum(dead_lettered_total) FILTER (WHERE queue IN ('a', 'd')) AS of_queues,
		sum(sent_total) FILTER (WHERE queue = 'dead2') AS to_dead2,
		sum(dead_lettered_total) FILTER (WHERE queue = 'dead') AS of_dead
		FROM msgq.queue_stats) AS t
	  WHERE to_dead <> of_queues OR to_dead2 <> of_dead},
	'what vanishes was expired, dropped or purged' =>
	  "SELECT * FROM (SELECT queue, count(*) AS n FROM sent
		WHERE p NOT IN (SELECT p FROM $there_p AS t) AND p NOT IN (SELECT p FROM ended)
		GROUP BY 1) AS v
		FULL JOIN (SELECT queue, expired_total + dropped_total + purged_total AS n
		FROM msgq.queue_stats) AS t USING (queue)
	  WHERE coalesce(v.n, 0) <> coalesce(t.n, 0)");

# The worker may be at it for a moment longer; then there is one more look.
sub check
{
	my ($what, $sql) = @_;
	my $until = time + 10;
	my $found;

	do
	{
		$found = $admin->safe("SELECT * FROM ($sql) AS bad LIMIT 5");
		usleep(200_000) if $found ne '';
	} while ($found ne '' && time < $until);
	is($found, '', $what);
	return;
}

sub check_quiet
{
	my ($round) = @_;

	check("round $round: $_", $checks{$_}) foreach sort keys %checks;
	if ($is_shared)
	{
		check("round $round: $_", $total_checks{$_})
		  foreach sort keys %total_checks;
	}
	# By hand: the worker audits a queue once a minute.
	like($admin->safe('SELECT msgq.maintain()'),
		qr/"defects": 0/, "round $round: the audit finds nothing");
	is( $admin->safe(
			"SELECT detail FROM msgq.health() WHERE check_name = 'audit'
			AND status <> 'ok'"), '', "round $round: nor has it before");
	is( $admin->safe(
			"SELECT queue, id FROM ($there) AS t
			WHERE queue IN ('a', 'b', 'dead') AND failures > 3"), '',
		"round $round: nothing fails more often than it may");
	return;
}

foreach my $round (1 .. $rounds)
{
	disturb();
	check_quiet($round);
}

# ---------------------------------------------------------------------------
# The end: all can be taken out
# ---------------------------------------------------------------------------

foreach my $queue (@queues)
{
	my $until = time + 10;
	my $left;

	do
	{
		$admin->safe($pop =~ s/'Q'/'$queue'/gr =~ s/^\s*\\set.*//mr
			  =~ s/:n/1000/r =~ s/\\set r random.*/COMMIT;/sr);
		$left =
		  $admin->safe("SELECT count(*) FROM msgq.q$id{$queue}");
	} while ($left > 0 && time < $until);
	is($left, 0, "queue $queue can be emptied")
	  or diag($admin->safe(
			"SELECT id, visible_at - clock_timestamp(), leased_at, deliveries,
			failures, expires_at FROM msgq.q$id{$queue} LIMIT 5"));
}
check_quiet('at the end');

# The run must have seen what it is about.
foreach my $how (qw(ack archive pop cancel))
{
	cmp_ok($admin->safe("SELECT count(*) FROM ended WHERE how = '$how'"),
		'>', 0, "messages ended by $how");
}
cmp_ok($admin->safe("SELECT sum(n) FROM counted WHERE what = '$_'"),
	'>', 0, "messages were $_")
  foreach qw(delivered purged redriven);
note($admin->safe(
	q{SELECT queue, sent_total, acked_total, dead_lettered_total, expired_total,
	dropped_total, purged_total, cancelled_total, redriven_total, segments
	FROM msgq.queue_stats ORDER BY 1}));
if ($is_shared)
{
	is( $admin->safe(
			q{SELECT string_agg(queue, ' ' ORDER BY queue) FROM msgq.queue_stats
			WHERE dead_lettered_total > 0}), 'a d dead',
		'messages died in each queue that has a place for them');
	cmp_ok(
		$admin->safe(
			"SELECT least(max(expired_total), max(dropped_total)) FROM msgq.queue_stats"),
		'>', 0, 'and expired, and were dropped, in others');
}
unlike(
	slurp_file($node->logfile),
	qr/could not maintain|passed by/,
	'the worker had no trouble');
my $deadlocks = () = slurp_file($node->logfile) =~ /deadlock detected/g;
note("$deadlocks deadlocks");
$admin->quit;

check_indexes($node);
$node->stop;

done_testing();
