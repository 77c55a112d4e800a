# sqlsmith's random queries, as a role with rights on some queues, streams and
# topics: queries that call msgq's functions anywhere, with each other's results
# as arguments, and join its views.
#
# Catches: crashes, internal errors, and a right that some way of calling gets
# around.
#
# sqlsmith asks pg_proc what functions there are.  The role has a view of that
# name first in its path, so that most of what is called is msgq's, and that it
# calls the functions that return sets, which it leaves out else.  Arguments it
# takes from what relations have: many have names, receipts and other values that
# make sense.  It rolls back what its queries have done.
#
#	MSGQ_SQLSMITH_QUERIES	(1000)
#	MSGQ_SQLSMITH_SEED		by default another one each time

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IPC::Run;
use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

plan skip_all => 'sqlsmith is not installed'
  unless grep { -x "$_/sqlsmith" } split /:/, $ENV{PATH};

my $queries = $ENV{MSGQ_SQLSMITH_QUERIES} // 1000;
my $seed = $ENV{MSGQ_SQLSMITH_SEED} // time % 1_000_000;

diag("seed $seed; MSGQ_SQLSMITH_SEED=$seed repeats it");

my $node = new_node(
	'sqlsmith',
	'log_error_verbosity = verbose',
	'log_min_error_statement = error',
	'jit = off',
	"msgq.segment_size = '256kB'");
my $admin = session($node);

$admin->safe(
	q{CREATE ROLE smith LOGIN;
	GRANT CREATE ON SCHEMA msgq TO smith;
	SELECT msgq.create_queue('plain', archive_retention => '1 h');
	SELECT msgq.create_queue('ordered', ordered => true);
	SELECT msgq.create_queue('forbidden');
	SELECT msgq.create_stream('log', partitions => 2);
	SELECT msgq.create_stream('forbidden log');
	SELECT msgq.create_topic('news');
	SELECT msgq.create_topic('forbidden news');
	SELECT msgq.bind('news', name) FROM unnest('{plain,ordered,log}'::text[]) AS name;
	SELECT msgq.bind('forbidden news', 'forbidden');
	SELECT msgq.create_group(name, 'g', 'first') FROM unnest('{log,forbidden log}'::text[]) AS name;
	SELECT count(msgq.send(name, jsonb_build_object('i', i), group_key => 'k' || i % 3))
	FROM generate_series(1, 200) AS i, unnest('{plain,ordered,forbidden}'::text[]) AS name;
	SELECT count(msgq.append(name, jsonb_build_object('i', i), key => 'k' || i % 3))
	FROM generate_series(1, 200) AS i, unnest('{log,forbidden log}'::text[]) AS name;
	CALL msgq.sequence();
	SELECT msgq.grant(name, 'smith', right_name)
	FROM unnest('{plain,ordered,log,news}'::text[]) AS name,
		unnest('{peek,send,receive,manage}'::text[]) AS right_name;
	GRANT INSERT, SELECT ON msgq.inbox TO smith;

	CREATE SCHEMA smith;
	CREATE FUNCTION smith.run(statements text) RETURNS void LANGUAGE plpgsql AS
	'BEGIN EXECUTE statements; END';
	CREATE TABLE smith.captured (id int PRIMARY KEY, payload text);
	CREATE TABLE smith.material AS
	SELECT names[i] AS name, names[1 + i % 9] AS other_name, names[1 + i / 9 % 9] AS any_name,
		(ARRAY['smith', 'public'])[1 + i % 2] AS role,
		(ARRAY['peek', 'send', 'admin', 'first', '@daily', '#'])[1 + i % 6] AS word,
		receipt, i::int AS int_value, i AS id, i::smallint AS small, i::float8 AS float_value,
		i % 2 = 0 AS yes, jsonb_build_object('i', i) AS body, 'bytes'::bytea AS data,
		ARRAY[jsonb_build_object('i', i)] AS bodies, ARRAY['bytes'::bytea] AS datas,
		ARRAY[receipt] AS receipts, '{k}'::text[] AS keys, '1 s'::interval AS delay,
		now() AS at, '$.body'::jsonpath AS filter, 'smith.captured'::regclass AS relation
	FROM (SELECT row_number() OVER () AS i, receipt FROM (
			SELECT receipt FROM msgq.receive('plain', 3, '1 h')
			UNION ALL SELECT receipt FROM msgq.receive('ordered', 3, '1 h')
			UNION ALL SELECT receipt FROM msgq.receive('forbidden', 3, '1 h')) AS r) AS receipts,
		(SELECT '{plain,ordered,forbidden,log,forbidden log,news,forbidden news,g,new}'::text[] AS names)
			AS n;
	-- More often than the tables without anything that makes sense.
	SELECT FROM generate_series(1, 30) AS i, LATERAL smith.run(
		format('CREATE VIEW smith.material_%s AS TABLE smith.material;
			GRANT SELECT ON smith.material_%s TO smith', i, i));
	CREATE VIEW smith.pg_proc AS
	SELECT oid, proname, pronamespace, prorettype, proargtypes, prokind, provolatile,
		proretset AND pronamespace <> 'msgq'::regnamespace AS proretset
	FROM pg_catalog.pg_proc
	WHERE pronamespace = 'msgq'::regnamespace AND prokind = 'f'
	OR pronamespace = 'pg_catalog'::regnamespace AND proname IN ('count', 'min', 'max', 'jsonb_agg',
		'lower', 'repeat', 'md5', 'to_jsonb', 'jsonb_build_array', 'now', 'gen_random_uuid');
	-- With operators of these, half of the queries would not be analyzed.
	SET allow_system_table_mods = on;
	DELETE FROM pg_operator USING pg_type AS t
	WHERE t.oid IN (oprleft, oprright)
	AND (typcategory IN ('E', 'G', 'R') OR typname ~ '^any(enum|range|multirange)$');
	GRANT USAGE ON SCHEMA smith TO smith;
	GRANT SELECT ON smith.pg_proc TO smith;
	ALTER TABLE smith.captured OWNER TO smith;
	ALTER ROLE smith SET search_path = smith, pg_catalog;
	ALTER ROLE smith SET lock_timeout = '500ms'});

# All that the role may not touch.  What was written is counted, and ids stay
# taken, also after a rollback.
sub forbidden
{
	return $admin->safe(
		q{SELECT pg_stat_force_next_flush();
		SELECT md5(string_agg(m::text, ' ' ORDER BY id)) FROM msgq.peek('forbidden', 1000) AS m;
		SELECT string_agg(l::text, ' ' ORDER BY id) FROM msgq.leases AS l WHERE queue = 'forbidden';
		SELECT md5(string_agg(e::text, ' ')) FROM msgq.scan('forbidden log', 0, 1, 1000) AS e;
		SELECT partition, position, lag FROM msgq.group_lag WHERE stream = 'forbidden log';
		SELECT q::text FROM msgq.queues AS q WHERE name = 'forbidden';
		SELECT s::text FROM msgq.streams AS s WHERE name = 'forbidden log';
		SELECT t::text FROM msgq.topics AS t WHERE name = 'forbidden news';
		SELECT b::text FROM msgq.bindings AS b WHERE topic = 'forbidden news' OR target ~ 'forbidden';
		SELECT relname, n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_all_tables,
			(SELECT id FROM msgq.queues WHERE name = 'forbidden'
			UNION ALL SELECT id FROM msgq.streams WHERE name = 'forbidden log') AS f
		WHERE schemaname = 'msgq' AND relname ~ format('^[qs]%s_[0-9]', id) ORDER BY relname;
		SELECT sequencename, last_value FROM pg_sequences,
			(SELECT id FROM msgq.queues WHERE name = 'forbidden'
			UNION ALL SELECT id FROM msgq.streams WHERE name = 'forbidden log') AS f
		WHERE schemaname = 'msgq' AND sequencename ~ format('^[qs]%s_id$', id) ORDER BY 1});
}

my $before = forbidden();
my ($output, $start) = ('', time);
my $run = IPC::Run::start(
	[
		'sqlsmith', '--exclude-catalog', "--seed=$seed", "--max-queries=$queries",
		'--target=' . $node->connstr('postgres') . ' user=smith'
	],
	'<', \undef, '>&', \$output,
	IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default + $queries / 10));

ok($run->finish, "sqlsmith made its queries") or diag(substr $output, -2000);
my $log = slurp_file($node->logfile);
my %states;
$states{$1}++ while $log =~ /ERROR:  ([0-9A-Z]{5}): /g;
note(sprintf '%d queries in %.0f s; errors: %s', $queries, time - $start,
	join(', ', map { "$_ $states{$_}" } sort { $states{$b} <=> $states{$a} } keys %states));
cmp_ok(($states{42704} // 0) + ($states{42501} // 0),
	'>', 0, 'functions were called');

# An error with its location and its statement.
my @internal = $log =~ /^([^\n]*ERROR:  XX00\d: .*?)(?=^\d{4}-[^\n]* (?:ERROR|LOG|FATAL): )/msg;
is(scalar(@internal), 0, 'there was no internal error');
diag(join "\n", @internal[ 0 .. ($#internal < 5 ? $#internal : 5) ]) if @internal;
is(forbidden(), $before, 'what the role has no right to is unchanged');
check_log($node);
is($admin->safe(q{SELECT msgq.maintain() -> 'defects'}), '0', 'the audit finds nothing');
$admin->quit;
check_indexes($node);
$node->stop;

done_testing();
