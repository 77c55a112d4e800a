# ALTER EXTENSION msgq UPDATE, pg_dump and restore, and DROP EXTENSION with a new
# CREATE EXTENSION, again and again, while everybody is at work.
#
# Catches: an update that a session with the library of before does not survive,
# that blocks, or that somebody at work gets an error from; a dump under load in
# which a message is missing or there twice, or whose restored copy does not go on;
# and, where the extension is dropped and made anew, errors that are not clean,
# sessions that trip over what they remember, shared memory that fills with what is
# gone, and a worker that does not come back.
#
# The update is one to a version that does not exist, of what real ones do: all
# functions and views replaced, columns added to tables of metadata, functions
# added.  It goes back and forth.
#
#	MSGQ_LIFECYCLE_SECONDS	of load (15); by default, in one home only

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IPC::Run;
use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $seconds = $ENV{MSGQ_LIFECYCLE_SECONDS} // 15;

plan skip_all => 'one home is enough' if !is_preloaded() && !$ENV{MSGQ_LIFECYCLE_SECONDS};

# What a step may take on a busy machine.
my $most_seconds = 30;

# Fewer places for queues than are made here.
my $places = 40;

my $node = new_node(
	'lifecycle',
	"log_line_prefix = '%d,%a %e '",
	"backtrace_functions = 'relation_open, lookup_type_cache, fmgr_info_cxt_security'",
	'deadlock_timeout = 100ms',
	'msgq.worker_interval = 100ms',
	is_preloaded() ? "msgq.shared_queues = $places" : ());
my $dir = PostgreSQL::Test::Utils::tempdir();
my $started = time;

# ---------------------------------------------------------------------------
# The load of the database that stays
# ---------------------------------------------------------------------------

my $setup = q{
	SELECT msgq.create_queue('load', visibility_timeout => '1 min');
	SELECT msgq.create_queue('ordered', ordered => true);
	SELECT msgq.create_queue('keys');
	SELECT msgq.create_stream('events', partitions => 3);
	SELECT msgq.create_group('events', 'g', 'first');
	SELECT msgq.create_topic('news');
	SELECT msgq.bind('news', 'load');
	CREATE TABLE captured (id bigint);
	SELECT msgq.capture('captured', 'keys');
	SELECT msgq.schedule('often', '@every 1 s', 'keys', '0');
};
$node->safe_psql('postgres', $setup . q{
	CREATE TABLE sent (p bigint);
	CREATE TABLE taken (p bigint);
	CREATE TABLE appended (p bigint);
	CREATE TABLE read (p bigint);
	CREATE SEQUENCE payload;
});

my %scripts = (
	q{
	BEGIN;
	INSERT INTO sent VALUES (nextval('payload')) RETURNING p \gset
	SELECT msgq.send('load', :p::text::jsonb);
	COMMIT;
	} => 4,
	q{
	BEGIN;
	INSERT INTO sent VALUES (nextval('payload')) RETURNING p \gset
	SELECT msgq.publish('news', 'a', :p::text::jsonb);
	COMMIT;
	} => 2,
	q{
	BEGIN;
	INSERT INTO sent VALUES (nextval('payload')) RETURNING p \gset
	SELECT msgq.send('ordered', :p::text::jsonb, group_key => (:p % 5)::text);
	COMMIT;
	} => 2,
	q{INSERT INTO taken SELECT body::bigint FROM msgq.pop('load', 3);} => 2,
	q{INSERT INTO taken SELECT body::bigint
	FROM (SELECT body, msgq.ack('load', receipt) AS ok
		FROM msgq.receive('load', 2, wait => '20 ms')) AS r
	WHERE ok;} => 3,
	q{INSERT INTO taken SELECT body::bigint
	FROM (SELECT body, msgq.ack('ordered', receipt) AS ok
		FROM msgq.receive('ordered', 5)) AS r
	WHERE ok;} => 2,
	q{
	BEGIN;
	INSERT INTO appended VALUES (nextval('payload')) RETURNING p \gset
	SELECT msgq.append('events', :p::text::jsonb, key => (:p % 7)::text);
	COMMIT;
	} => 2,
	q{
	WITH e AS (SELECT * FROM msgq.poll('events', 'g', 20)),
		i AS (INSERT INTO read SELECT body::bigint FROM e)
	SELECT count(msgq.commit('events', 'g', receipt))
	FROM (SELECT DISTINCT receipt FROM e) AS r;
	} => 2,
	q{
	SELECT msgq.send_once('keys', '1', (random() * 100)::int::text);
	SELECT msgq.inbox_claim('c', (random() * 1000)::int::text);
	INSERT INTO captured VALUES (1);
	SELECT count(*) FROM msgq.pop('keys', 10);
	} => 1,
	q{
	SELECT count(*) FROM msgq.queue_stats;
	SELECT count(*) FROM msgq.health();
	SELECT nextval('payload') AS own \gset
	SELECT msgq.create_queue('own ' || :own, dead_letter_queue => '');
	SELECT msgq.send('own ' || :own, '1');
	SELECT msgq.drop_queue('own ' || :own);
	} => 1);

# What was sent and is neither taken nor stored, and what is there twice.
my $missing = q{SELECT p FROM sent EXCEPT (SELECT p FROM taken UNION ALL %s)};
my $double = q{SELECT p FROM (SELECT p FROM taken UNION ALL %s) AS t
	GROUP BY p HAVING count(*) > 1 OR p NOT IN (SELECT p FROM sent)};

# The queries for messages that are stored, in that database.
sub stored
{
	my ($dbname) = @_;
	return $node->safe_psql($dbname,
		q{SELECT string_agg(format('SELECT body::bigint AS p FROM msgq.q%s', id), ' UNION ALL ')
		FROM msgq.queues WHERE name IN ('load', 'ordered')});
}

# ---------------------------------------------------------------------------
# Update
# ---------------------------------------------------------------------------

my $version = $node->safe_psql('postgres',
	"SELECT extversion FROM pg_extension WHERE extname = 'msgq'");
my @members = (
	q{FROM pg_depend JOIN %s AS o ON objid = o.oid
	WHERE classid = '%s'::regclass AND deptype = 'e' AND refclassid = 'pg_extension'::regclass
		AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'msgq')});
my $functions = sprintf $members[0], 'pg_proc', 'pg_proc';
my $relations = sprintf $members[0], 'pg_class', 'pg_class';

# All that can be replaced, as it is.
my $replace = $node->safe_psql('postgres', qq{
	SELECT pg_get_functiondef(o.oid) || ';' $functions;
	SELECT format('CREATE OR REPLACE VIEW %s %s AS %s', o.oid::regclass,
		'WITH (' || array_to_string(reloptions, ', ') || ')', pg_get_viewdef(o.oid))
	$relations AND relkind = 'v';
});
my @tables = split /\n/, $node->safe_psql('postgres',
	"SELECT o.oid::regclass $relations AND relkind = 'r'
	AND relname !~ '_[12]\$' ORDER BY relname");

sub update_script
{
	my ($from, $to, $sql) = @_;
	my $file = $node->config_data('--sharedir') . "/extension/msgq--$from--$to.sql";

	open my $script, '>', $file or return;
	print $script "SET LOCAL search_path TO pg_catalog, pg_temp;\n$replace\n$sql\n";
	close $script;
	return $file;
}

my @files = (
	update_script($version, 'next',
		join('', map { "ALTER TABLE $_ ADD COLUMN of_next int DEFAULT 7;\n" } @tables)
		  . q{CREATE FUNCTION msgq.of_next() RETURNS int LANGUAGE sql AS 'SELECT 1';}),
	update_script('next', $version,
		join('', map { "ALTER TABLE $_ DROP COLUMN of_next;\n" } @tables)
		  . q{DROP FUNCTION msgq.of_next();}));
END { unlink grep { defined } @files; }

# What was done, how often, and how long the longest took.
my (%count, %longest);

# Does it, again if something came between that may, as a deadlock.
sub measured
{
	my ($what, $do) = @_;
	my $begun = time;

	until ($do->())
	{
		$count{"$what again"}++;
		die "$what takes too long" if time - $begun > $most_seconds;
	}
	$count{$what}++;
	$longest{$what} = time - $begun if time - $begun > ($longest{$what} // 0);
	return;
}

sub does
{
	my ($session, $sql) = @_;
	my $sqlstate = $session->fails($sql);

	return 1 if $sqlstate eq '';
	$session->query('ROLLBACK') if $sql =~ /^BEGIN/;
	return 0 if $sqlstate eq '40P01';
	die "failed: $sql\n" . $session->error;
}

sub update
{
	my ($session) = @_;

	return if !defined $files[0];
	foreach my $to ('next', $version)
	{
		measured('update', sub { does($session, "ALTER EXTENSION msgq UPDATE TO '$to'") });
		usleep(100_000);
	}
	return;
}

# ---------------------------------------------------------------------------
# Dump and restore
# ---------------------------------------------------------------------------

my %lost;

sub check_copy
{
	my $stored = stored('copy');
	my $s = session($node, dbname => 'copy');

	$lost{$_} = 1 foreach split /\n/, $s->safe(sprintf $missing, $stored);
	is($s->safe(sprintf $double, $stored), '', 'copy: no message is there twice');
	is($s->safe("SELECT * FROM msgq.health() WHERE status = 'error'"),
		'', 'copy: it is in good health');
	is($s->safe("SELECT msgq.maintain()->>'defects'"), '0', 'copy: the audit finds nothing');
	$s->safe(q{CALL msgq.sequence()});
	is( $s->safe(q{
			WITH e AS (SELECT e.* FROM generate_series(0, 2) AS p, generate_series(1, 100000, 5000) AS f,
				msgq.scan('events', p, f, 5000) AS e)
			SELECT partition, count(*), max(position) FROM e GROUP BY 1 HAVING count(*) <> max(position)
			UNION ALL SELECT body::bigint, count(*), 0 FROM e GROUP BY 1 HAVING count(*) <> 1
			UNION ALL SELECT p, 0, 0 FROM appended WHERE p::text NOT IN (SELECT body::text FROM e)}),
		'',
		'copy: the stream is complete, once and dense');

	# It goes on.
	$s->safe(q{INSERT INTO sent VALUES (0); SELECT msgq.send('load', '0')});
	foreach my $queue ('load', 'ordered')
	{
		foreach my $try (1 .. 100)
		{
			my $taken = $s->safe(qq{WITH t AS (INSERT INTO taken SELECT body::bigint
				FROM msgq.receive('$queue', 10000) WHERE msgq.ack('$queue', receipt) RETURNING 1)
				SELECT count(*) FROM t});
			last if $taken == 0;
		}
	}
	is( $s->safe(q{SELECT count(*) FROM taken WHERE p = 0;
			SELECT sum(in_flight) FROM msgq.queue_stats WHERE queue IN ('load', 'ordered');}
			  . sprintf $double, $stored),
		"1\n0",
		'copy: what was left can be taken, once');
	$s->quit;
	return;
}

sub dump_and_restore
{
	my $file = "$dir/dump" . ($count{dump} // 0);

	# pg_dump ends if a table is dropped that it was about to lock.
	measured('dump', sub {
		return system_log('pg_dump', '-Fc', '-f', $file,
			$node->connstr('postgres') . ' application_name=pg_dump') == 0;
	});
	$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE template0');
	measured('restore', sub {
		return system_log('pg_restore', '--exit-on-error', '-d', $node->connstr('copy'), $file) == 0
		  || die 'the dump cannot be restored';
	});
	check_copy();
	$node->safe_psql('postgres', 'DROP DATABASE copy');
	return;
}

# ---------------------------------------------------------------------------
# Drop
# ---------------------------------------------------------------------------

# Sessions that live on while the extension comes and goes, each in its own way.
# Which errors they get is judged by the server's log.
my %visitors = (
	prepared => q{
	PREPARE s AS SELECT msgq.send('load', '1');
	PREPARE r AS SELECT count(msgq.ack('load', receipt)) FROM msgq.receive('load', 5);
	PREPARE o AS SELECT count(msgq.nack('ordered', receipt, '10 ms')) FROM msgq.receive('ordered', 5);
	} . q{
	EXECUTE s;
	EXECUTE r;
	SELECT msgq.send('ordered', '1', group_key => 'a');
	EXECUTE o;
	SELECT pg_sleep(0.02);
	} x 3000,
	waiting => q{
	SELECT count(*) FROM msgq.receive('keys', 1, wait => '100 ms');
	SELECT count(*) FROM msgq.poll('events', 'g', 5, wait => '100 ms');
	SELECT pg_sleep(0.02);
	} x 3000,
	streams => q{
	SELECT msgq.append('events', '1');
	SELECT count(msgq.commit('events', 'g', receipt))
		FROM (SELECT DISTINCT receipt FROM msgq.poll('events', 'g')) AS r;
	CALL msgq.sequence();
	SELECT pg_sleep(0.02);
	} x 3000,
	cursors => q{
	BEGIN;
	DECLARE v CURSOR FOR SELECT * FROM msgq.queue_stats;
	FETCH v;
	DECLARE h CURSOR WITH HOLD FOR SELECT * FROM msgq.peek('load', 5);
	FETCH v;
	COMMIT;
	FETCH h;
	CLOSE h;
	BEGIN;
	SELECT msgq.send('load', '1');
	SAVEPOINT a;
	SELECT count(*) FROM msgq.pop('load');
	ROLLBACK TO a;
	SELECT count(*) FROM msgq.pop('load', 10);
	COMMIT;
	SELECT pg_sleep(0.02);
	} x 3000,
	others => q{
	INSERT INTO captured VALUES (1);
	SELECT msgq.publish('news', 'a', '1');
	SELECT msgq.send_once('keys', '1', 'a');
	SELECT msgq.inbox_claim('c', '1');
	SELECT count(*) FROM msgq.health();
	SELECT msgq.maintain();
	SELECT msgq.create_queue('own');
	SELECT msgq.drop_queue('own');
	SELECT pg_sleep(0.02);
	} x 3000);

sub visit
{
	my ($script) = @_;
	my $self = { output => '' };

	$self->{run} = IPC::Run::start(
		[ $node->installed_command('psql'), '-XAtq', '-d', $node->connstr('drops'),
			'-f', text_file($script) ],
		'<', \undef, '>', '/dev/null', '2>&1', IPC::Run::timeout(10 * $most_seconds + $seconds));
	return $self;
}

# Of a database, what a dropped extension would leave.
my $traces = join ';', map { "SELECT '$_', count(*) FROM $_" }
  qw(pg_namespace pg_class pg_type pg_proc pg_attribute pg_constraint pg_rewrite pg_trigger
  pg_attrdef pg_sequence pg_description pg_init_privs pg_depend);

$node->safe_psql('postgres', 'CREATE DATABASE drops TEMPLATE template0');
$node->safe_psql('drops', 'CREATE TABLE captured (id bigint)');
$setup =~ s/CREATE TABLE captured .*//;
my $dropper = session($node, dbname => 'drops');
my $witness = session($node, dbname => 'drops');
my $before = $dropper->safe($traces);
# In a deadlock the others are to give way.
$dropper->safe(q{SET deadlock_timeout = '300 ms'});
my @astray;

sub create
{
	measured('create', sub {
		return does($dropper,
			"BEGIN; CREATE EXTENSION msgq; $setup; SELECT msgq.create_queue('witness'); COMMIT");
	});
	return;
}

# The witness does in each extension what it has prepared in the first one.
sub drop_and_create
{
	measured('drop', sub { does($dropper, 'DROP EXTENSION msgq CASCADE') });
	my $sqlstate = $witness->fails(q{EXECUTE s('gone')});
	create();
	my $number = qq{"$count{drop}"};
	my $got = $witness->safe(qq{EXECUTE s('$number'); EXECUTE r}) =~ s/^\d+\n//r;
	push @astray, "$count{drop}: $sqlstate, $got"
	  if $sqlstate ne '3F000' || $got ne "$number|t";
	return;
}

# ---------------------------------------------------------------------------
# All of it
# ---------------------------------------------------------------------------

create();
$witness->safe(q{
	PREPARE s(text) AS SELECT msgq.send('witness', $1::jsonb);
	PREPARE r AS SELECT body, msgq.ack('witness', receipt)
		FROM msgq.receive('witness', 10, wait => '5 s')});
my @visits = map { visit($visitors{$_}) } sort keys %visitors;
my $load = load($node, clients => 4, seconds => $seconds, scripts => \%scripts);
my $updater = session($node);
my $until = time + $seconds;
my $next_dump = 0;

while (time < $until)
{
	update($updater);
	drop_and_create() foreach 1 .. 5;
	next if time < $next_dump;
	dump_and_restore();
	$next_dump = time + 4;
}
ok(finish($load), 'whoever was at work got no error');
note($load->{output});
is("@astray", '', 'a session that lives on uses the new extension');
ok($count{update}, 'updates were made') if defined $files[0];

# The database that stays.
my $stored = stored('postgres');
my $missing_now = $node->safe_psql('postgres', sprintf $missing, $stored);
is($missing_now, '', 'no message was lost');
is($node->safe_psql('postgres', sprintf $double, $stored), '', 'none is there twice');
# What a dump has not was consumed while it was made: its segment was emptied.
my $taken = $node->safe_psql('postgres', 'SELECT p FROM taken');
my %is_taken = map { $_ => 1 } split /\n/, $taken;
is(join(' ', grep { !$is_taken{$_} } sort keys %lost), '',
	'what was missing in a dump had been taken');
$node->poll_query_until('postgres', q{
	WITH e AS (SELECT * FROM msgq.poll('events', 'g', 1000)),
		i AS (INSERT INTO read SELECT body::bigint FROM e)
	SELECT count(msgq.commit('events', 'g', receipt)) = 0
	FROM (SELECT DISTINCT receipt FROM e) AS r})
  or die 'the stream has no end';
is( $node->safe_psql('postgres', q{
		SELECT p, count(r.p) FROM appended AS a LEFT JOIN read AS r USING (p)
		GROUP BY p HAVING count(r.p) <> 1}),
	'',
	'each entry of the stream was read once');
check_indexes($node);

# The database that was nothing but change.
stop_load(@visits);
my $workers = 0;
foreach my $try (1 .. 10 * $most_seconds)
{
	$workers = $witness->safe(q{
		SELECT FROM msgq.append('events', '1');
		SELECT count(*) FROM pg_stat_activity WHERE datname = 'drops'
		AND backend_type IN ('msgq worker', 'msgq sequencer')}) =~ s/^\s*//r;
	last if $workers == 2;
	usleep(100_000);
}
is($workers, 2, 'worker and sequencer come back');
$witness->quit;
measured('drop', sub { does($dropper, 'DROP EXTENSION msgq CASCADE') });
is($dropper->safe($traces), $before, 'nothing is left');
$dropper->quit;

my $used = $node->safe_psql('postgres', q{
	SELECT msgq.create_queue('new'); SELECT msgq.send('new', '1');
	SELECT substring(detail FROM '(\d+) of') FROM msgq.health() WHERE check_name = 'shared_memory'});
cmp_ok($used =~ /(\d*)\z/ ? $1 || 0 : 0, '<', $places, 'nor in shared memory') if is_preloaded();
$updater->quit;
$node->stop;

# ---------------------------------------------------------------------------
# What was complained about
# ---------------------------------------------------------------------------

# What one may get who uses msgq while it is dropped.
my %clean = (
	'3F000' => 'the schema is gone',
	'42883' => 'a function is gone',
	'42P01' => 'a view is gone',
	'42704' => 'a queue is gone',
	'55000' => 'the extension is gone',
	'40P01' => 'deadlock',
	'42710' => 'there already',
	'26000' => 'not prepared, since it was gone then',
	'34000' => 'no cursor, for the same reason',
	'3B001' => 'no savepoint',
	'25P01' => 'no transaction',
	'25P02' => 'the transaction has failed',
	'gone!' => 'see below',
	'57014' => 'told to end');
my (%errors, @unclean);

# PostgreSQL itself may find a type or a function gone that it has just found:
# then it is no call of msgq's that has failed.
my $log = slurp_file($node->logfile);
$log =~ s{^(\w+,\S+ )XX000( .*\n)(\1XX000 BACKTRACE: .*\n(?:\t.*\n)*)}
	{index($3, 'msgq.so') < 0 ? "$1gone!$2" : "$1XX000$2$3"}mge;

foreach my $line (split /\n/, $log)
{
	next if $line !~ /^(\w*),(.*?) ([\w!]{5}) (?:ERROR|FATAL|WARNING|PANIC):  /;
	my ($dbname, $program, $sqlstate) = ($1, $2, $3);

	$errors{"$dbname $sqlstate"}++;
	# Those of workers have no database, and one that waits for too long ends.
	next if $dbname ne 'postgres' && $clean{$sqlstate};
	next if $dbname eq '' && $sqlstate =~ /^(55P03|57P01)$/;
	next if $sqlstate eq '40P01' || ($program eq 'pg_dump' && $sqlstate eq '42P01');
	push @unclean, $line;
}
is(scalar @unclean, 0, 'all errors were clean');
diag($_) foreach @unclean[0 .. ($#unclean > 20 ? 20 : $#unclean)];
unlike($log, qr/TRAP|terminated by signal|invalid page|could not read block/,
	'the server did not crash, and found no damage');

diag(join ', ', map { "$count{$_} x $_" } sort keys %count);
diag(join ', ', map { sprintf '%s %.1f s', $_, $longest{$_} } sort keys %longest);
diag(join ', ', map { "$errors{$_} x $_" } sort keys %errors);
diag(sprintf '%.0f s in all', time - $started);

done_testing();
