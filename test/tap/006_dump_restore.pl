# pg_dump and restore, DROP EXTENSION and a new CREATE EXTENSION.
#
# Catches: messages, leases, settings or rights that a dump leaves out; a
# restored database in which a receipt is worth nothing, ids start again or
# no queue can be created; a dump under load that is not one moment; queue
# names that a dump cannot carry; a DROP EXTENSION that takes messages along
# unasked or leaves something behind; and sessions that trip over what they
# remember of a dropped queue.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('source');
my $target = PostgreSQL::Test::Cluster->new('target');
$target->init(extra => [ '--locale=C', '--encoding=UTF8' ]);
$target->append_conf('postgresql.conf', "log_statement = none\n");
$target->start;

my $dir = PostgreSQL::Test::Utils::tempdir();

# Queue names that a dump or a comment could stumble over, as SQL literals.
my @names = (
	q{'plain'},
	q{'quo"te''d'},
	q{'100% %s %n %I'},
	q{E'back\\\\slash \\\\'},
	q{'$$dollar$1$'},
	q{'Grün ☃ 队列'},
	q{' blanks '},
	q{'SELECT'},
	q{'a;b--c/*d*/'},
	q{':colon :''x'' @at'},
	q{repeat('x', 63)},
	q{repeat('é', 31) || 'e'});

my @refused = (
	q{''}, q{E'new\\nline'},
	q{E'tab\\t'}, q{E'\\\\. \\r'},
	q{E'\\x7f'}, q{E'bell\\x07'},
	q{repeat('x', 64)}, q{repeat('é', 32)});

$node->safe_psql(
	'postgres', q{
	CREATE ROLE maker LOGIN;
	CREATE ROLE packer LOGIN;
	CREATE ROLE "Strange ""role""";
	GRANT CREATE ON SCHEMA msgq TO maker;
});
my $session = session($node);

foreach my $name (@refused)
{
	is($session->fails("SELECT msgq.create_queue($name, dead_letter_queue => '')"),
		'22023', "refused as a queue's name: $name");
}
foreach my $name (@names)
{
	$session->safe("SELECT msgq.create_queue($name, dead_letter_queue => '')");
	$session->safe(
		"SELECT msgq.send($name, jsonb_build_object('name', $name))");
	# The comment names the queue.
	is( $session->safe(
			"SELECT position(n in obj_description(msgq.handle(id))) > 0
			FROM msgq.queues, CAST($name AS text) n WHERE name = n"),
		't',
		"accepted as a queue's name: $name");
}

# Messages in every state, of every kind.
$session->safe(
	q{
	SELECT msgq.create_queue('full', visibility_timeout => '17 min',
		retry_delay => '3 s', retry_multiplier => 1.5,
		max_retry_delay => '1 h 2 min', max_message_bytes => 2000000);
	SELECT msgq.alter_queue('full', '{"retry_delay": "4 s"}');
	SELECT msgq.send('full', '{"first": [1, null, "Grün ☃"]}',
		headers => '{"a": {"b": 1}}');
	SELECT msgq.send('full', 'null');
	SELECT msgq.send_bytes('full', '\x00ff0a5c');
	SELECT msgq.send_bytes('full', '');
	SELECT msgq.send_bytes('full',
		decode(repeat('00ff0a5c', 200000), 'hex'));
	SELECT msgq.send('full', to_jsonb(repeat('long', 100000)));
	SELECT msgq.send('full', '"delayed"', delay => '3 h');
	SELECT msgq.send('full', '"later"', deliver_at => '2100-01-01');
	SELECT msgq.send('full', '"x"') FROM generate_series(1, 20);
	SELECT msgq.nack('full', receipt, '2 h', 'it did not work')
		FROM msgq.receive('full', 2);
	SELECT msgq.release('full', receipt) FROM msgq.receive('full');
	SELECT msgq.ack('full', receipt) FROM msgq.receive('full');
	CREATE TABLE receipts (id bigint, receipt uuid);
	INSERT INTO receipts SELECT id, receipt FROM msgq.receive('full', 3);
	SELECT msgq.create_queue('levels', priorities => 3);
	SELECT msgq.send('levels', to_jsonb(i), priority => i % 3)
		FROM generate_series(1, 6) AS i;
	SELECT msgq.create_queue('keyed', dead_letter_queue => '');
	SET msgq.test_clock_offset = '-13 h';
	SELECT msgq.send('keyed', '"first"', idempotency_key => 'a'),
		msgq.send('keyed', '"second"', idempotency_key => 'b');
	UPDATE msgq.store SET opened_at = opened_at - interval '25 h'
		WHERE state = 'current' AND queue_id = (SELECT id FROM msgq.queues WHERE name = 'keyed');
	RESET msgq.test_clock_offset;
	SELECT msgq.maintain();
	SELECT msgq.send('keyed', '"third"', idempotency_key => 'c');
	SELECT msgq.create_queue('archived', dead_letter_queue => '', archive_retention => '1 day');
	SELECT msgq.send('archived', '"kept"');
	SELECT msgq.archive('archived', receipt) FROM msgq.receive('archived');
	SELECT msgq.inbox_claim('c', 'long', '1 year'), msgq.inbox_claim('c', 'short 7', '1 ms');
	INSERT INTO msgq.inbox_state VALUES (2, 5);
	GRANT INSERT ON msgq.inbox TO packer;
	SELECT msgq.create_queue('scheduled', dead_letter_queue => '');
	BEGIN;
	SELECT msgq.schedule('yearly', '@yearly', 'scheduled', '{"n": 1}', '{"a": 1}', 'Europe/Berlin');
	UPDATE msgq.schedule SET scheduled_at = '2020-01-01';
	COMMIT;
	SELECT msgq.maintain();
	SELECT msgq.create_queue('renamed');
	SELECT msgq.rename_queue('renamed', 'new "name"');
	SELECT msgq.create_queue('dropped');
	SELECT msgq.drop_queue('dropped');
	SELECT msgq.grant('full', 'packer', 'receive');
	SELECT msgq.grant('full', 'packer', 'peek');
	SELECT msgq.grant('plain', 'public', 'send');
	SELECT msgq.grant('plain', 'Strange "role"', 'admin');
	SELECT msgq.revoke('plain', 'Strange "role"', 'admin');
	SELECT msgq.grant('100% %s %n %I', 'Strange "role"', 'manage');
	CREATE TABLE captured (gone int, id int, name text, secret text);
	ALTER TABLE captured DROP gone;
	SELECT msgq.create_topic('changes', on_unroutable => 'drop');
	SELECT msgq.create_queue('changed', dead_letter_queue => '');
	SELECT msgq.bind('changes', 'changed');
	SELECT msgq.capture('captured', 'changed', columns => '{name,id}', key => 'id',
		filter => '$.body.new.id < 10');
	ALTER TABLE captured RENAME name TO title;
	SELECT msgq.create_outbox('outbox', 'changes');
	CREATE TABLE dropped (id int);
	SELECT msgq.capture('dropped', 'changed');
	DROP TABLE dropped;
	INSERT INTO captured VALUES (1, 'before', 's'), (10, 'never', 's');
	SET ROLE maker;
	SELECT msgq.create_queue('made');
	SELECT msgq.send('made', '1');
	SELECT msgq.grant('made', 'packer', 'send');
	RESET ROLE;
});

# As after a turn: new claims go to the other table.
$node->safe_psql('postgres', "SELECT msgq.inbox_claim('c', 'new', '1 year')");

my $id = $session->safe("SELECT id FROM msgq.queues WHERE name = 'full'");

# All that is to come through, in words.
sub contents
{
	my ($where, $dbname) = @_;
	my $s = session($where, dbname => $dbname);
	my $text = $s->safe(
		q{
		SELECT * FROM msgq.queue ORDER BY id;
		SELECT * FROM msgq.segment ORDER BY queue_id, n;
		SELECT * FROM msgq.store ORDER BY queue_id, kind, n;
		SELECT * FROM msgq.inbox_state;
		SELECT 1, * FROM msgq.inbox_1 ORDER BY message_id;
		SELECT 2, * FROM msgq.inbox_2 ORDER BY message_id;
		SELECT name, settings, created_at FROM msgq.queues ORDER BY id;
		SELECT * FROM msgq.leases ORDER BY queue, id;
		SELECT * FROM msgq.schedules ORDER BY name;
		TABLE msgq.schedule;
		TABLE msgq.fired_1;
		SELECT queue, ready, delayed, in_flight, segments
			FROM msgq.queue_stats ORDER BY queue;
		SELECT nspname, pg_get_userbyid(nspowner), nspacl::text
			FROM pg_namespace WHERE nspname = 'msgq';
		SELECT relname, relkind, pg_get_userbyid(relowner), relacl::text,
			reloptions::text, relpersistence, relreplident,
			obj_description(oid, 'pg_class')
		FROM pg_class WHERE relnamespace = 'msgq'::regnamespace
		ORDER BY relname;
		SELECT c.relname, attnum, attname, format_type(atttypid, atttypmod),
			attnotnull, attstorage, attstattarget,
			pg_get_expr(adbin, adrelid)
		FROM pg_class c
			JOIN pg_attribute ON attrelid = c.oid
			LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
		WHERE c.relnamespace = 'msgq'::regnamespace AND attnum > 0
		ORDER BY 1, 2;
		SELECT indexdef FROM pg_indexes WHERE schemaname = 'msgq' ORDER BY 1;
		SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
			FROM pg_constraint WHERE connamespace = 'msgq'::regnamespace
			ORDER BY 1, 2;
		SELECT viewname, definition FROM pg_views
			WHERE schemaname = 'msgq' ORDER BY 1;
		SELECT seqrelid::regclass, pg_sequence.*
			FROM pg_sequence, pg_class c
			WHERE c.oid = seqrelid AND relnamespace = 'msgq'::regnamespace
			ORDER BY seqrelid::regclass::text;
		SELECT pg_describe_object(refclassid, refobjid, 0),
			pg_describe_object(classid, objid, 0), deptype
			FROM pg_depend
			WHERE refclassid = 'pg_extension'::regclass
				OR refobjid = 'msgq'::regnamespace
			ORDER BY 1, 2;
		SELECT format('SELECT %L, * FROM msgq.%I ORDER BY id',
				c.relname, c.relname)
			FROM pg_class c
			WHERE relnamespace = 'msgq'::regnamespace
				AND relname ~ '^q[0-9]+(_[a-z]?[0-9]+)?$'
			ORDER BY relname \gexec
		SELECT format('SELECT %L, last_value, is_called FROM msgq.%I',
				c.relname, c.relname)
			FROM pg_class c
			WHERE relnamespace = 'msgq'::regnamespace AND relkind = 'S'
			ORDER BY relname \gexec
	});
	$s->quit;
	# OIDs of sequences are not for comparison.
	$text =~ s/^(msgq\.\w+)\|\d+\|/$1|/gm;
	return $text;
}

my $contents = contents($node, 'postgres');
like(
	$contents,
	qr/^q${id}_1\|.*it did not work/m,
	'the comparison sees the messages');
like($contents, qr/packer=/, 'and the rights');
like($contents, qr/^1\|c\|long\|.*^2\|c\|new\|/ms, 'and claims in both tables of the inbox');

my $connstr = $node->connstr('postgres');
my @restored;

$node->command_ok([ 'pg_dump', '-Fc', '-f', "$dir/custom", $connstr ],
	'pg_dump -Fc');
$node->command_ok([ 'pg_dump', '-f', "$dir/plain.sql", $connstr ],
	'pg_dump, plain');
$node->command_ok(
	[ 'pg_dumpall', '--globals-only', '-f', "$dir/globals.sql" ],
	'pg_dumpall --globals-only');

# Into a new database of the same cluster, and into another cluster.
$node->safe_psql('postgres', 'CREATE DATABASE custom TEMPLATE template0');
$node->command_ok(
	[
		'pg_restore', '--exit-on-error',
		'-d', $node->connstr('custom'),
		"$dir/custom"
	],
	'pg_restore into a new database');
push @restored, [ $node, 'custom' ];

$node->safe_psql('postgres', 'CREATE DATABASE parallel TEMPLATE template0');
$node->command_ok(
	[
		'pg_restore', '-j', '2', '-d', $node->connstr('parallel'),
		"$dir/custom"
	],
	'pg_restore with two jobs');
push @restored, [ $node, 'parallel' ];

# The bootstrap superuser is there already.
$target->command_checks_all(
	[ 'psql', '-X', '-f', "$dir/globals.sql", $target->connstr('postgres') ],
	0, [], [], 'the roles in another cluster');
$target->safe_psql('postgres', 'CREATE DATABASE plain TEMPLATE template0');
$target->command_ok(
	[
		'psql', '-X', '-v', 'ON_ERROR_STOP=1', '-o', "$dir/psql.out", '-f',
		"$dir/plain.sql", $target->connstr('plain')
	],
	'the plain dump in another cluster');
push @restored, [ $target, 'plain' ];

foreach my $restored (@restored)
{
	my ($where, $dbname) = @$restored;
	my $same = contents($where, $dbname) eq $contents;
	ok($same, "$dbname: all that was dumped is there");
	if (!$same)
	{
		PostgreSQL::Test::Utils::append_to_file("$dir/before.$dbname",
			$contents);
		PostgreSQL::Test::Utils::append_to_file("$dir/after.$dbname",
			contents($where, $dbname));
		diag(`diff '$dir/before.$dbname' '$dir/after.$dbname' | head -40`);
	}

	my $s = session($where, dbname => $dbname);
	is( $s->safe(
			q{SELECT count(*), count(*) FILTER (WHERE msgq.ack('full', receipt))
			FROM receipts}),
		'3|3',
		"$dbname: leases from before the dump are settled by their receipts");
	is( $s->safe(
			q{SELECT string_agg(body#>>'{}', ' ') FROM msgq.pop('new "name"')}
		),
		'',
		"$dbname: the renamed queue is there");

	# A dump has no order; the levels have.
	is( $s->safe(
			q{SELECT msgq.send('levels', '8', priority => 2);
			SELECT string_agg(body::text, ' ') FROM msgq.pop('levels', 10)}),
		"7\n2 5 8 1 4 3 6",
		"$dbname: levels of priority are what they were");

	is( $s->safe(
			q{SELECT string_agg(format('%s %s %s', key, id, duplicate), ', '
				ORDER BY key)
			FROM (VALUES ('a', '"first"'), ('b', '"second"'), ('c', '"third"'),
					('d', '"fourth"')) AS v(key, body),
				msgq.send_once('keyed', body::jsonb, key)}),
		'a 1 t, b 2 t, c 3 t, d 4 f',
		"$dbname: idempotency keys are those of before the dump");

	is($s->safe(q{SELECT body, deliveries FROM msgq.archived('archived')}),
		'"kept"|1', "$dbname: so is what was archived");
	$s->safe(q{SELECT msgq.send('archived', '"new"');
		SELECT msgq.archive('archived', receipt) FROM msgq.receive('archived')});
	is($s->safe(q{SELECT count(*) FROM msgq.archived('archived')}),
		'2', "$dbname: more can be archived");

	is( $s->safe(
			q{UPDATE captured SET title = 'after';
			INSERT INTO outbox VALUES (DEFAULT, 'order', '7', 'Paid', '1');
			SELECT group_key, coalesce(body->'new', body) FROM msgq.pop('changed', 10)
			ORDER BY id}),
		qq{1|{"id": 1, "title": "before"}\n1|{"id": 1, "title": "after"}\n7|1},
		"$dbname: tables are captured as before, and nothing was by the restore");
	is($s->safe('SELECT string_agg(relation::text, \',\' ORDER BY id) FROM msgq.capture'),
		'captured,outbox', "$dbname: a table that was dropped is not in the dump");

	is( $s->safe(
			q{SELECT string_agg(id, ' ' ORDER BY id)
			FROM unnest('{long,new,other,short 7}'::text[]) AS id
			WHERE msgq.inbox_claim('c', id)}),
		'other short 7',
		"$dbname: what was claimed before the dump is claimed");
	# What was fired does not fire again.
	$s->safe(q{SELECT msgq.maintain()});
	is( $s->safe(
			q{SELECT headers->>'msgq-schedule', count(*) FROM msgq.peek('scheduled') GROUP BY 1;
			SELECT next_at > now() AND last_at < now() FROM msgq.schedules}),
		"yearly|1\nt",
		"$dbname: a schedule goes on where it was");
	is($s->fails(q{SELECT msgq.schedule('monthly', '@monthly', 'scheduled', '1')}),
		'', "$dbname: and another one can be made");

	# Ids go on.
	my $last = $s->safe("SELECT max(id) FROM msgq.q$id");
	cmp_ok($s->safe(q{SELECT msgq.send('full', '"after"')}),
		'>', $last, "$dbname: ids go on");
	my $most = $s->safe('SELECT max(id) FROM msgq.queues');
	$s->safe(q{SELECT msgq.create_queue('new here')});
	cmp_ok($s->safe("SELECT id FROM msgq.queues WHERE name = 'new here'"),
		'>', $most, "$dbname: a new queue has a new number");
	$s->safe(q{SELECT msgq.send('new here', '1')});
	is($s->safe(q{SELECT body FROM msgq.pop('new here')}),
		'1', "$dbname: and works");
	is($s->fails(q{SELECT msgq.create_queue('plain')}),
		'42710', "$dbname: the old ones count");

	# Every message comes.
	my $left = $s->safe(
		"SELECT count(*) FROM msgq.q$id
		WHERE visible_at IS NULL OR visible_at < now()");
	is($s->safe(q{SELECT count(*) FROM msgq.pop('full', 1000)}),
		$left, "$dbname: all that is due can be taken");
	is($s->safe("SELECT count(*) FROM msgq.q$id"),
		'4', "$dbname: and what is delayed stays");
	foreach my $name (@names)
	{
		is($s->safe("SELECT body->>'name' = $name FROM msgq.pop($name)"),
			't', "$dbname: a message of the queue $name");
	}
	$s->quit;

	my $maker = session($where, dbname => $dbname, user => 'maker');
	is($maker->fails(q{SELECT msgq.create_queue('made here')}),
		'', "$dbname: the right to create queues has come along");
	is($maker->safe(q{SELECT body FROM msgq.pop('made')}),
		'1', "$dbname: so have the rights of who made a queue");
	is($maker->fails(q{SELECT msgq.pop('full')}),
		'42501', "$dbname: and the lack of rights");
	$maker->quit;
	my $packer = session($where, dbname => $dbname, user => 'packer');
	is($packer->fails(q{SELECT msgq.pop('full')}),
		'', "$dbname: so have granted rights");
	is($packer->fails(q{SELECT msgq.inbox_claim('c', 'packed')}),
		'', "$dbname: so has the right to claim");
	is($packer->fails(q{SELECT FROM msgq.inbox}),
		'42501', "$dbname: and no right to look");
	is($packer->fails(q{SELECT msgq.send('full', '1')}),
		'42501', "$dbname: no more than those");
	is($packer->fails(q{SELECT msgq.send('plain', '1')}),
		'', "$dbname: so has what PUBLIC may");
	$packer->quit;
}
check_indexes($node, dbname => 'custom');

# ---------------------------------------------------------------------------
# A dump under load is the state of one moment
# ---------------------------------------------------------------------------

$session->safe(
	q{
	SELECT msgq.create_queue('load', visibility_timeout => '1 s');
	CREATE TABLE sent (p bigint);
	CREATE TABLE taken (p bigint);
	CREATE SEQUENCE payload;
});
my $load = load(
	$node,
	clients => 4,
	seconds => 60,
	scripts => {
		q{
		BEGIN;
		INSERT INTO sent VALUES (nextval('payload')) RETURNING p \gset
		SELECT msgq.send('load', :p::text::jsonb);
		COMMIT;
		} => 3,
		q{INSERT INTO taken SELECT body::bigint FROM msgq.pop('load', 2);} =>
		  1,
		q{INSERT INTO taken SELECT body::bigint
		FROM (SELECT body, msgq.ack('load', receipt) AS ok
			FROM msgq.receive('load')) AS r
		WHERE ok;} => 1
	});
$node->poll_query_until('postgres',
	'SELECT (SELECT count(*) > 300 FROM taken)')
  or die "no load";
$node->command_ok([ 'pg_dump', '-Fc', '-f', "$dir/load", $connstr ],
	'pg_dump under load');
my $taken = $session->safe('SELECT count(*) FROM taken');
$node->poll_query_until('postgres',
	"SELECT (SELECT count(*) > $taken FROM taken)")
  or die "the load has ended";
stop_load($load);

$node->safe_psql('postgres', 'CREATE DATABASE load TEMPLATE template0');
$node->command_ok(
	[
		'pg_restore', '--exit-on-error',
		'-d', $node->connstr('load'),
		"$dir/load"
	],
	'its restore');
my $loaded = session($node, dbname => 'load');
my $load_id = $loaded->safe("SELECT id FROM msgq.queues WHERE name = 'load'");
my $balance = qq{
	WITH b AS (
		SELECT p, 1 AS n FROM sent
		UNION ALL SELECT p, -1 FROM taken
		UNION ALL SELECT body::bigint, -1 FROM msgq.q$load_id)
	SELECT p, sum(n) FROM b GROUP BY p HAVING sum(n) <> 0 LIMIT 5
};
is($loaded->safe($balance),
	'', 'each message is either in the queue or has had its effect');
cmp_ok($loaded->safe('SELECT count(*) FROM taken'), '>', 0, 'some had');
$loaded->safe(
	q{SELECT msgq.expire_lease('load', id) FROM msgq.leases
	WHERE queue = 'load'});
$loaded->safe(
	q{INSERT INTO taken SELECT body::bigint FROM msgq.pop('load', 10000)})
  foreach 1 .. 3;
is($loaded->safe("SELECT count(*) FROM msgq.q$load_id"),
	'0', 'the rest can be taken');
is($loaded->safe($balance), '', 'once');
$loaded->quit;

# ---------------------------------------------------------------------------
# DROP EXTENSION
# ---------------------------------------------------------------------------

my $traces = q{
	SELECT 'schema', count(*) FROM pg_namespace WHERE nspname = 'msgq';
	SELECT 'class', count(*) FROM pg_class;
	SELECT 'type', count(*) FROM pg_type;
	SELECT 'function', count(*) FROM pg_proc;
	SELECT 'attribute', count(*) FROM pg_attribute;
	SELECT 'constraint', count(*) FROM pg_constraint;
	SELECT 'rule', count(*) FROM pg_rewrite;
	SELECT 'default', count(*) FROM pg_attrdef;
	SELECT 'sequence', count(*) FROM pg_sequence;
	SELECT 'comment', count(*) FROM pg_description;
	SELECT 'first right', count(*) FROM pg_init_privs;
	SELECT 'dependency', classid::regclass, refclassid::regclass, count(*)
		FROM pg_depend GROUP BY 2, 3 ORDER BY 2, 3;
	SELECT 'shared dependency', count(*) FROM pg_shdepend
		WHERE dbid = (SELECT oid FROM pg_database
			WHERE datname = current_database());
	SELECT 'orphan', count(*) FROM pg_depend
		WHERE (refclassid = 'pg_class'::regclass
				AND refobjid NOT IN (SELECT oid FROM pg_class))
			OR (classid = 'pg_class'::regclass
				AND objid NOT IN (SELECT oid FROM pg_class));
};

$node->safe_psql('postgres', 'CREATE DATABASE drops TEMPLATE template0');
my $warm = session($node, dbname => 'drops');
my $other = session($node, dbname => 'drops');
my $before = $warm->safe($traces);

foreach my $round (1, 2)
{
	$warm->safe(
		q{CREATE EXTENSION msgq;
		SELECT msgq.create_queue('q');
		SELECT msgq.create_queue('p');
		SELECT msgq.grant('q', 'packer', 'admin');
		GRANT CREATE ON SCHEMA msgq TO maker;
		SELECT msgq.send('q', '1');
		SELECT msgq.send('q', '2')});
	foreach my $s ($warm, $other)
	{
		$s->safe(q{SELECT msgq.send('q', '3')});
		is( $s->safe(
				q{SELECT count(*), max(deliveries) FROM msgq.pop('q', 2)}),
			'2|1',
			"round $round: a session works");
	}
	is($warm->fails('DROP EXTENSION msgq'),
		'2BP01', "round $round: DROP EXTENSION is refused");
	is($warm->fails('DROP SCHEMA msgq CASCADE'),
		'2BP01', "round $round: so is DROP SCHEMA, even with CASCADE");
	$warm->safe(q{SELECT msgq.send('q', '4')});
	is($other->safe(q{SELECT body FROM msgq.pop('q')}),
		'4', "round $round: the queue is unharmed");

	# A drop that is undone is none.
	$warm->safe('BEGIN; DROP EXTENSION msgq CASCADE; ROLLBACK');
	$other->safe(q{SELECT msgq.send('q', '5')});
	is($warm->safe(q{SELECT body FROM msgq.pop('q')}),
		'5', "round $round: after a rolled-back DROP");

	$warm->safe('DROP EXTENSION msgq CASCADE');
	is($warm->safe($traces), $before, "round $round: nothing is left");
	is($other->fails(q{SELECT msgq.send('q', '6')}),
		'3F000', "round $round: other sessions see that it is gone");
}

# A database without queues lets it go without CASCADE.
$warm->safe(
	q{CREATE EXTENSION msgq;
	SELECT msgq.create_queue('q');
	SELECT msgq.drop_queue('q');
	DROP EXTENSION msgq});
is($warm->safe($traces),
	$before, 'without queues it can be dropped, and nothing is left');

# Dropped and created again under load: others fail, or work, and go on.
$warm->safe('CREATE EXTENSION msgq');
foreach my $round (1 .. 10)
{
	$warm->safe(
		q{SELECT msgq.create_queue('q');
		SELECT msgq.send('q', '1') FROM generate_series(1, 3)});
	is($other->safe(q{SELECT count(*) FROM msgq.receive('q', 5)}),
		'3', "queue $round of that name: all messages come");
	$warm->safe(q{SELECT msgq.drop_queue('q')});
	is($other->fails(q{SELECT msgq.receive('q')}),
		'42704', "queue $round of that name: it is gone");
}

$_->quit foreach $session, $warm, $other;
$node->stop;
$target->stop;

done_testing();
