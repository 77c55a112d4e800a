# Topics under load: crashes, turns of the log, bindings that come and go; and a
# dump.
#
# Who publishes raises a counter of the routing key in the same transaction, and
# sends its value.  So what the last message of each routing key is, and how many
# there were, stands in a table.
#
# Catches: a message that one target has and another one has not; retained
# messages that a turn or a crash loses or takes back; a target that was bound
# with retained and misses a message in between, or has it twice; a log that
# grows though it is turned; and what a dump leaves out.
#
# Each round ends with a crash.  bound is the queue that is bound with retained
# again and again while others publish.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $keys = 40;
my $rounds = 3;
my $seconds = 6;

my $node = new_node(
	'topics',
	'msgq.worker_interval = 200ms',
	'autovacuum_naptime = 1s',
	'max_connections = 60');

$node->safe_psql(
	'postgres', qq{
	SELECT msgq.create_topic('t');
	SELECT msgq.create_topic('behind');
	SELECT msgq.create_queue('q1', dead_letter_queue => '');
	SELECT msgq.create_queue('q2', dead_letter_queue => '');
	SELECT msgq.create_stream('s');
	SELECT msgq.bind('t', 'q1'), msgq.bind('t', 'behind'),
		msgq.bind('behind', 'q2', 'key.#'), msgq.bind('behind', 's', '*.*');
	CREATE TABLE counter (key text PRIMARY KEY, n bigint) WITH (fillfactor = 10);
	INSERT INTO counter SELECT 'key.' || i, 0 FROM generate_series(1, $keys) AS i;
	CREATE TABLE padding AS
		SELECT string_agg(md5(i::text), '') AS text FROM generate_series(1, 40) AS i;

	CREATE FUNCTION publish() RETURNS int LANGUAGE plpgsql AS \$\$
	DECLARE
		which text := 'key.' || 1 + floor(random() * $keys)::int;
		number bigint;
	BEGIN
		UPDATE counter SET n = n + 1 WHERE key = which RETURNING n INTO number;
		RETURN msgq.publish('t', which, jsonb_build_object('n', number),
			jsonb_build_object('padding', (SELECT text FROM padding)));
	END \$\$;
});
my $id = $node->safe_psql('postgres', "SELECT id FROM msgq.topics WHERE name = 't'");

# ---------------------------------------------------------------------------
# Crashes
# ---------------------------------------------------------------------------

# Some are rolled back, some to a savepoint.
my %scripts = (
	"SELECT publish();\n" => 6,
	"BEGIN;\nSELECT publish();\nROLLBACK;\n" => 1,
	"BEGIN;\nSAVEPOINT a;\nSELECT publish();\nROLLBACK TO a;\nSELECT publish();\nCOMMIT;\n" => 1,
	# A binding that leads to a target that is there already.
	"SELECT msgq.bind('t', 'q1', 'key.1');\nSELECT msgq.unbind('t', 'q1', 'key.1');\n" => 1);
my $turns = 0;
my $log = $node->safe_psql('postgres', "SELECT log FROM msgq.topic WHERE id = $id");

foreach my $round (1 .. $rounds)
{
	my $load = load(
		$node,
		clients => 6,
		seconds => 600,
		scripts => \%scripts);
	my $until = time + $seconds;

	# On a slow machine a turn takes its time.
	while (time < $until
		|| $round == $rounds && $turns == 0 && time < $until + 120)
	{
		my $now = $node->safe_psql('postgres', "SELECT log FROM msgq.topic WHERE id = $id");
		$turns++ if $now ne $log;
		$log = $now;
		usleep(100_000);
	}
	kill_all($node);
	eval { $load->{run}->finish };
	start_again($node);
}
cmp_ok($turns, '>', 0, 'the log was turned');

my $published = $node->safe_psql('postgres', 'SELECT sum(n) FROM counter');
cmp_ok($published, '>', 1000, 'there was some load');
$node->safe_psql('postgres', q{CALL msgq.sequence('s')});
foreach my $target (qw(q1 q2))
{
	is( $node->safe_psql(
			'postgres', qq{
			SELECT count(*), count(DISTINCT (headers->>'msgq-routing-key', body))
			FROM msgq.q} . $node->safe_psql('postgres',
				"SELECT id FROM msgq.queues WHERE name = '$target'")),
		"$published|$published",
		"all that was published is in $target, once");
}
is( $node->safe_psql(
		'postgres', q{
		SELECT count(*), count(DISTINCT (key, body)) FROM msgq.s}
		  . $node->safe_psql('postgres', q{SELECT id FROM msgq.streams WHERE name = 's'})),
	"$published|$published",
	'and in the stream');

# The last messages of the routing keys, as a new target gets them.
sub retained_differ
{
	my ($connection, $topic) = @_;
	$connection->('SELECT msgq.create_queue(\'new\', dead_letter_queue => \'\')');
	$connection->("SELECT msgq.bind('$topic', 'new', retained => true)");
	my $differences = $connection->(
		q{WITH last AS (
			SELECT headers->>'msgq-routing-key' AS key, (body->>'n')::bigint AS n
			FROM msgq.peek('new', 10000) WHERE headers ? 'msgq-retained')
		SELECT count(*) FILTER (WHERE l.n IS DISTINCT FROM c.n), count(*) FROM counter AS c
		FULL JOIN last AS l USING (key)});
	$connection->(q{SELECT msgq.drop_queue('new')});
	return $differences;
}

my $query = sub { return $node->safe_psql('postgres', $_[0]) };
is(retained_differ($query, $_), "0|$keys", "$_ has the last message of each routing key")
  foreach qw(t behind);

# ---------------------------------------------------------------------------
# Bound while others publish
# ---------------------------------------------------------------------------

my $load = load(
	$node,
	clients => 4,
	seconds => 600,
	scripts => { "SELECT publish();\n" => 1 });
my $gaps = 0;

foreach my $time (1 .. 15)
{
	$node->safe_psql('postgres',
		q{SELECT msgq.create_queue('bound', dead_letter_queue => '')});
	$node->safe_psql('postgres', q{SELECT msgq.bind('t', 'bound', retained => true)});
	usleep(100_000);
	# From the retained one on, the numbers of each key have no gap.
	$gaps += $node->safe_psql(
		'postgres', q{
		WITH came AS (
			SELECT headers->>'msgq-routing-key' AS key, (body->>'n')::bigint AS n
			FROM msgq.peek('bound', 10000))
		SELECT count(*) FROM (
			SELECT key FROM came GROUP BY key
			HAVING max(n) - min(n) + 1 <> count(*) OR count(*) <> count(DISTINCT n)) AS bad});
	$node->safe_psql('postgres', q{SELECT msgq.drop_queue('bound')});
}
is($gaps, 0, 'a target that is bound with retained misses nothing and has nothing twice');
stop_load($load);

# ---------------------------------------------------------------------------
# Cancelled in the middle
# ---------------------------------------------------------------------------

# One session does it all, so that what it remembers has seen every cancel.
my $cancelled = session($node);
my ($done, $undone) = (0, 0);
my $handles = $node->safe_psql('postgres', q{
	SELECT string_agg(format('(SELECT count(*) FROM msgq.%s%s)', letter, id), ', ' ORDER BY letter, name)
	FROM (SELECT 'q' AS letter, id, name FROM msgq.queues WHERE name IN ('q1', 'q2')
		UNION ALL SELECT 's', id, name FROM msgq.streams WHERE name = 's') AS targets});
my @jobs = (
	'SELECT count(publish()) FROM generate_series(1, 200)',
	q{BEGIN; SELECT msgq.bind('t', 'new', retained => true); SELECT publish();
		SELECT msgq.unbind('t', 'new'); COMMIT},
	q{SELECT msgq.create_topic('u'); SELECT msgq.bind('u', 'q1'); SELECT msgq.drop_topic('u')});

$node->safe_psql('postgres', q{SELECT msgq.create_queue('new', dead_letter_queue => '')});
foreach my $round (1 .. 90)
{
	my $job = $jobs[ $round % @jobs ];
	my $most = $round % @jobs == 0 ? 80 : 15;

	$cancelled->safe("SET statement_timeout = '@{[ 1 + int(rand($most)) ]}ms'");
	$cancelled->query($job);
	my $state = $cancelled->sqlstate;
	$cancelled->query('ROLLBACK');
	$state eq '57014' ? $undone++ : $done++;
	die $cancelled->error if $state ne '' && $state !~ /^(57014|25P02|42704|42710)$/;
	$cancelled->safe(
		q{SET statement_timeout = 0; SELECT msgq.drop_topic('u', if_exists => true);
		SELECT publish()});
}
cmp_ok($undone, '>', 0, "$undone times something was cancelled");
cmp_ok($done, '>', 0, "$done times it was not");
my @counts = split /\|/, $node->safe_psql('postgres', "SELECT $handles");
is_deeply(
	\@counts,
	[ ($node->safe_psql('postgres', 'SELECT sum(n) FROM counter')) x 3 ],
	'all targets have all that was published, and nothing else');
$cancelled->quit;
$node->safe_psql('postgres', q{SELECT msgq.drop_queue('new')});
is(retained_differ($query, 't'), "0|$keys", 'the last messages are those that were published');

# ---------------------------------------------------------------------------
# The log stays small
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', q{SELECT publish() FROM generate_series(1, 100)});
$node->poll_query_until('postgres',
	"SELECT least(pg_relation_size('msgq.t${id}_1'), pg_relation_size('msgq.t${id}_2')) = 0")
  or die 'the log is not emptied';
cmp_ok(
	$node->safe_psql('postgres',
		"SELECT pg_total_relation_size('msgq.t${id}_1') + pg_total_relation_size('msgq.t${id}_2')"),
	'<',
	64 * 1024 * 1024,
	'the log is bounded');

# ---------------------------------------------------------------------------
# Dump and restore
# ---------------------------------------------------------------------------

my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
$node->safe_psql('postgres', q{
	CREATE ROLE publisher;
	SELECT msgq.grant('t', 'publisher', 'send');
	SELECT msgq.create_topic('h', 'headers', 'alternate', 't');
	SELECT msgq.bind('h', 'q1', header_match => '{"x-match": "any", "a": [1, {"b": null}]}',
		filter => '$.body.x like_regex "a$"')});
my $bindings = q{SELECT topic, target, target_kind, pattern, header_match, filter, retained, binding
	FROM msgq.bindings ORDER BY binding};
my $topics = q{SELECT name, kind, on_unroutable, alternate, retain, max_retained FROM msgq.topics ORDER BY name};
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('postgres') ], 'dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('restored'), $dump ],
	'restore');
is($node->safe_psql('restored', $topics), $node->safe_psql('postgres', $topics), 'topics');
is($node->safe_psql('restored', $bindings), $node->safe_psql('postgres', $bindings), 'bindings');
is(retained_differ(sub { return $node->safe_psql('restored', $_[0]) }, 't'),
	"0|$keys", 'retained messages');
is($node->safe_psql('restored', q{SET ROLE publisher; SELECT msgq.publish('t', 'key.1', '{}')}),
	'3', 'rights, and bindings that work');
is($node->safe_psql('restored', q{SELECT msgq.publish('h', 'key.1', '{"x": "ba"}', '{"a": [1, {"b": null}]}')}),
	'1', 'header matches and filters');
is($node->safe_psql('restored', q{SELECT msgq.publish('h', 'key.1', '{"x": "b"}', '{"a": [1, {"b": null}]}')}),
	'3', 'the alternate');
$node->safe_psql('restored', q{SELECT msgq.create_topic('new')});
is($node->safe_psql('restored', q{SELECT msgq.bind('new', 'q1') > (SELECT max(binding) FROM msgq.bindings WHERE topic <> 'new')}),
	't', 'numbers go on');

# What a session remembers of a topic is not another one's, of the same number.
$node->safe_psql('postgres', 'CREATE DATABASE again');
my $again = session($node, dbname => 'again');
foreach my $queue (qw(first second))
{
	$again->safe(qq{
		DROP EXTENSION IF EXISTS msgq CASCADE;
		CREATE EXTENSION msgq;
		SELECT msgq.create_topic('t'), msgq.create_queue('$queue', dead_letter_queue => '');
		SELECT msgq.bind('t', '$queue');
		SELECT msgq.publish('t', 'k', '1')});
	is($again->safe(qq{SELECT count(*) FROM msgq.peek('$queue')}),
		1, "$queue extension: a message arrives");
}
$again->quit;

check_indexes($node);
$node->stop;
done_testing();
