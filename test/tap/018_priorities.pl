# Priorities with many messages: a large backlog, a held snapshot, a load with
# more segments than have shared frontiers, and a crash.
#
# Catches: a receive that walks over the lower levels, or over the dead rows of
# its own, before it finds a high one; messages that get lost or come twice
# when several rings of one queue turn; and an order that does not survive a
# restart.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $low = 100_000;
my $rounds = 200;
my $levels = 10;

my $node = new_node(
	'priorities',
	"msgq.segment_size = '256kB'",
	'autovacuum_naptime = 1s');
my $session = session($node);
my $other = session($node);

# Sends a high one and receives one, so many times; milliseconds for each.
sub high_ones
{
	my ($queue) = @_;
	my $begun = time;
	$session->safe(
		"DO \$\$ DECLARE n int := 0; BEGIN
			FOR i IN 1 .. $rounds LOOP
				PERFORM msgq.send('$queue', to_jsonb(i), priority => 2);
				COMMIT;
				n := n + (SELECT count(*) FROM msgq.pop('$queue') WHERE priority = 2 AND body = to_jsonb(i));
				COMMIT;
			END LOOP;
			PERFORM set_config('test.n', n::text, false);
		END \$\$");
	my $got = $session->safe("SELECT current_setting('test.n')");
	my $each = (time - $begun) * 1000 / $rounds;

	is($got, $rounds, "$queue: the high one is the next one");
	return $each;
}

# ---------------------------------------------------------------------------
# A backlog of low ones
# ---------------------------------------------------------------------------

$session->safe(
	"SELECT msgq.create_queue('backlog', priorities => 3, visibility_timeout => '1 h')");
my $empty = high_ones('backlog');
$session->safe(
	"SELECT count(msgq.send_batch('backlog', array_fill('0'::jsonb, ARRAY[10000])))
	FROM generate_series(1, $low / 10000)");
my $full = high_ones('backlog');
note(sprintf '%.2f ms with nothing else, %.2f ms with %d low ones', $empty, $full, $low);
cmp_ok($full, '<', 5 * $empty + 1, 'a backlog does not slow it down');

# Dead rows that nobody can remove, and those who look are at the low ones.
$other->safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_am');
high_ones('backlog') foreach 1 .. 10;
my $held = high_ones('backlog');
note(sprintf '%.2f ms with a held snapshot', $held);
cmp_ok($held, '<', 5 * $empty + 1, 'nor do dead rows');
is( $session->safe(
		"SELECT priority, count(*), min(id) - (SELECT min(id) FROM msgq.peek('backlog'))
		FROM msgq.receive('backlog', 10) GROUP BY 1"),
	'0|10|0',
	'then the low ones come');
$other->safe('COMMIT');

# Who waits is woken by a message of any level.
$session->safe("SELECT msgq.create_queue('waiting', priorities => 2)");
foreach my $level (0, 1)
{
	$other->send(
		"SELECT priority FROM msgq.receive('waiting', wait => '30 s')");
	usleep(300_000);
	$session->safe("SELECT msgq.send('waiting', '1', priority => $level)");
	is($other->wait, $level, "level $level: the waiter gets it");
}

# ---------------------------------------------------------------------------
# All rings of a queue turn under load
# ---------------------------------------------------------------------------

$session->safe(
	"SELECT msgq.create_queue('load', priorities => $levels, visibility_timeout => '1 h');
	CREATE TABLE sent (id bigint);
	CREATE TABLE got (id bigint, priority int, as_sent boolean);");
my $id = $session->safe("SELECT id FROM msgq.queues WHERE name = 'load'");
my $turned = "SELECT count(*) FROM (SELECT level FROM msgq.segment WHERE queue_id = $id
	GROUP BY level HAVING max(turn) > 0 AND count(*) FILTER (WHERE state = 'active') = 1) AS s";
my %load = (
	clients => 4,
	seconds => 15,
	scripts => {
		qq{
\\set level random(0, $levels - 1)
\\set first random(0, $levels - 1)
INSERT INTO sent SELECT id FROM msgq.send_messages('load', (SELECT jsonb_agg(
	jsonb_build_object('body', jsonb_build_object('p', p, 'x', repeat('x', 100)),
		'priority', p)) FROM generate_series(0, $levels - 1) p, generate_series(1, 3)));
BEGIN;
SELECT msgq.send('load', jsonb_build_object('p', :level), priority => :level);
SELECT count(*) FROM msgq.receive('load', 3);
ROLLBACK;
WITH r AS MATERIALIZED (SELECT * FROM msgq.receive('load', 40)),
	a AS MATERIALIZED (SELECT cardinality(msgq.ack_batch('load', array_agg(receipt))) AS stale FROM r)
INSERT INTO got SELECT id, priority, (body->>'p')::int = priority FROM r, a WHERE stale = 0;
} => 1
	});
# A busy machine sends less than fills a segment of each level.
foreach my $try (1 .. 4)
{
	finish(load($node, %load));
	last if $session->safe($turned) == $levels;
}
$session->safe(
	"WITH r AS MATERIALIZED (SELECT * FROM msgq.receive('load', 10000)),
		a AS MATERIALIZED (SELECT msgq.ack_batch('load', array_agg(receipt)) FROM r)
	INSERT INTO got SELECT id, priority, (body->>'p')::int = priority FROM r, a");
note($session->safe(
		"SELECT string_agg(level || ': ' || turn || ' ' || n, ', ' ORDER BY level)
		FROM (SELECT level, max(turn) AS turn, count(*) AS n FROM msgq.segment
			WHERE queue_id = $id GROUP BY level) AS s"));
is($session->safe($turned),
	$levels, 'each level has turned, and has one active segment');
is( $session->safe('SELECT id FROM sent EXCEPT ALL SELECT id FROM got'),
	'', 'nothing got lost');
is( $session->safe('SELECT id FROM got EXCEPT ALL SELECT id FROM sent'),
	'', 'nothing came twice');
is($session->safe('SELECT count(*) FROM got WHERE as_sent IS NOT TRUE'),
	0, 'everything with its priority');
is( $session->safe(
		"SELECT status FROM msgq.health() WHERE check_name = 'audit'"),
	'ok', 'the audit has found nothing');

# ---------------------------------------------------------------------------
# A crash
# ---------------------------------------------------------------------------

$session->safe(
	"SELECT msgq.create_queue('crash', priorities => 3);
	SELECT msgq.send('crash', to_jsonb(i), priority => i % 3) FROM generate_series(1, 6) AS i;
	SELECT count(*) FROM msgq.receive('crash', 2, '1 us')");
$_->quit foreach $session, $other;
$node->stop('immediate');
$node->start;
$session = session($node);
is( $session->safe("SELECT string_agg(body::text, ' ') FROM msgq.receive('crash', 10)"),
	'2 5 1 4 3 6',
	'the order is the same after a crash');

# A level without a segment that takes new messages: nothing is guessed.
$session->safe(
	"UPDATE msgq.segment SET state = 'draining'
	WHERE state = 'active' AND level = 1
		AND queue_id = (SELECT id FROM msgq.queues WHERE name = 'crash')");
$other = session($node);
is($other->fails("SELECT msgq.send('crash', '1')"),
	'55000', 'a queue that lacks an active segment is refused');

$_->quit foreach $session, $other;
$node->stop;

done_testing();
