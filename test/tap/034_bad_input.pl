# Every function and procedure of the extension, with arguments that nobody
# expects: HostileCalls.pm makes them.  Half of the calls come from a role with
# some rights, some from one without any, some from a superuser.
#
# A call ends in a result, or in one of the errors that the comment of the
# function lists.  Whoever writes a new function has nothing to add here.
#
# Catches: internal errors, crashes, hangs and memory that is not given back; an
# error that is not documented, or that shows the body of a message; a call that
# changes what its caller has no right to, or what it does not name.
#
#	MSGQ_INPUT_SEED		by default another one each time
#	MSGQ_INPUT_CALLS	(20000 if preloaded, else 2000)

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use HostileCalls;
use JSON::PP;
use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $seed = $ENV{MSGQ_INPUT_SEED} // time % 1_000_000;
my $calls = $ENV{MSGQ_INPUT_CALLS} // (is_preloaded() ? 20_000 : 2_000);
# After so many calls what they have destroyed is made anew.
my $round_size = 500;

diag("seed $seed; MSGQ_INPUT_SEED=$seed repeats it");
srand($seed);

my $node = new_node(
	'input',
	'log_error_verbosity = verbose',
	'log_min_error_statement = panic',
	"msgq.segment_size = '256kB'",
	"statement_timeout = '5s'");
my $admin = session($node);

$admin->safe(
	q{SET statement_timeout = 0;
	SET client_min_messages = error;
	CREATE ROLE partly LOGIN;
	CREATE ROLE nobody LOGIN;
	GRANT CREATE ON SCHEMA msgq TO partly;
	GRANT CREATE ON SCHEMA public TO partly;
	GRANT INSERT ON msgq.inbox TO partly;
	SET ROLE partly;
	CREATE TABLE captured (id int PRIMARY KEY, payload text);
	CREATE VIEW captured_view AS SELECT * FROM captured;
	CREATE TABLE captured_parts (id int, payload text) PARTITION BY RANGE (id);
	CREATE TABLE captured_part PARTITION OF captured_parts FOR VALUES FROM (0) TO (10);
	CREATE MATERIALIZED VIEW captured_matview AS SELECT * FROM captured;
	CREATE SEQUENCE captured_sequence;
	RESET ROLE;
	CREATE FOREIGN DATA WRAPPER dummy;
	CREATE SERVER dummy FOREIGN DATA WRAPPER dummy;
	CREATE FOREIGN TABLE captured_foreign (id int, payload text) SERVER dummy;
	CREATE TABLE victim (n int);});

# What nobody has a right to, and no call names.
$admin->safe(
	q{SELECT msgq.create_queue('untouched');
	SELECT msgq.create_stream('untouched log');
	SELECT msgq.create_group('untouched log', 'untouched group', 'first');
	SELECT msgq.create_topic('untouched news');
	SELECT msgq.bind('untouched news', 'untouched');
	SELECT count(msgq.send('untouched', to_jsonb(i))) FROM generate_series(1, 50) AS i;
	SELECT count(*) FROM msgq.receive('untouched', 10, '1 day');
	SELECT count(msgq.append('untouched log', to_jsonb(i), key => 'k'))
	FROM generate_series(1, 50) AS i;
	CALL msgq.sequence('untouched log')});

sub untouched
{
	return $admin->safe(
		q{SELECT md5(string_agg(m::text, ' ' ORDER BY id)) FROM msgq.peek('untouched', 100) AS m;
		SELECT string_agg(l::text, ' ' ORDER BY id) FROM msgq.leases AS l WHERE queue = 'untouched';
		SELECT md5(string_agg(e::text, ' ')) FROM msgq.scan('untouched log', 0, 1, 100) AS e;
		SELECT stream, consumer_group, partition, position, lag FROM msgq.group_lag
		WHERE stream = 'untouched log';
		SELECT q::text FROM msgq.queues AS q WHERE name = 'untouched';
		SELECT s::text FROM msgq.streams AS s WHERE name = 'untouched log';
		SELECT t::text FROM msgq.topics AS t WHERE name = 'untouched news';
		SELECT b::text FROM msgq.bindings AS b WHERE topic = 'untouched news';
		SELECT relacl FROM pg_class WHERE relname ~ '^[qst][0-9]+$' AND relname IN
			(SELECT format('%s%s', kind, id) FROM (SELECT 'q' AS kind, id, name FROM msgq.queues
				UNION ALL SELECT 's', id, name FROM msgq.streams
				UNION ALL SELECT 't', id, name FROM msgq.topics) AS x WHERE name ~ '^untouched')
		ORDER BY relname});
}

# What the calls find, how it is made, and the rights of the one role.
$admin->safe(
	q{CREATE TABLE fixture (n int GENERATED ALWAYS AS IDENTITY, kind text, name text,
		arguments text, rights text);
	INSERT INTO fixture (kind, name, arguments, rights) VALUES
		('queue', 'kept', $$, archive_retention => '1 h', dead_letter_queue => ''$$,
			'peek send receive manage'),
		('queue', 'plain', $$, archive_retention => '1 h', dead_letter_queue => 'kept'$$,
			'peek send receive manage admin'),
		('queue', 'ordered', ', ordered => true', 'peek send receive'),
		('queue', 'levels', $$, priorities => 3, max_in_flight => 20, max_length => 100,
			overflow => 'drop_oldest'$$, 'receive'),
		('queue', 'small', $$, max_message_bytes => 200, max_length => 20,
			dead_letter_queue => ''$$, 'send'),
		('queue', E'it\'s a "queue" %s \\\\', '', 'peek send receive manage admin'),
		('stream', 'log', $$, partitions => 3, dead_letter_queue => 'kept'$$,
			'peek send receive manage admin'),
		('stream', 'short', ', retention_entries => 10', 'peek send receive'),
		('topic', 'news', '', 'peek send receive manage admin'),
		('topic', 'direct', $$, 'direct', 'drop'$$, 'send receive'),
		('topic', 'fan', $$, 'fanout', 'alternate', 'news'$$, 'send'),
		('topic', 'heads', $$, 'headers'$$, 'peek send receive manage');

	CREATE FUNCTION try(statement text, VARIADIC arguments text[] = '{}') RETURNS void
	LANGUAGE plpgsql AS $$
	BEGIN
		EXECUTE format(statement, VARIADIC arguments);
	EXCEPTION WHEN OTHERS THEN
		NULL;
	END $$;

	-- Makes what calls have destroyed, and each time some of the rest anew.
	CREATE FUNCTION refresh(round int, marker text) RETURNS void
	LANGUAGE plpgsql AS $$
	DECLARE
		f fixture;
	BEGIN
		-- What calls have made is in nobody's way, but slows the next ones.
		PERFORM try('SELECT msgq.unschedule(%L)', name) FROM msgq.schedules;
		PERFORM try('SELECT msgq.uncapture(%L, %L)', relation::text, destination)
		FROM msgq.captures;
		PERFORM try('SELECT msgq.drop_%s(%L)', kind, name)
		FROM (SELECT 1 AS n, 'topic' AS kind, name FROM msgq.topics
			UNION ALL SELECT 2, 'stream', name FROM msgq.streams
			UNION ALL SELECT 3, 'queue', name FROM msgq.queues ORDER BY n) AS made
		WHERE name !~ '^untouched' AND name NOT IN (SELECT name FROM fixture);

		PERFORM try('SELECT msgq.drop_%s(%L)', kind, name)
		FROM fixture WHERE n % 5 = round % 5;
		FOR f IN SELECT * FROM fixture ORDER BY n LOOP
			PERFORM try('SELECT msgq.create_%s(%L %s)', f.kind, f.name, f.arguments);
			PERFORM try('SELECT msgq.grant(%L, ''partly'', %L)', f.name, right_name)
			FROM unnest(string_to_array(f.rights, ' ')) AS right_name;
		END LOOP;
		PERFORM try('SELECT msgq.resume(%L, ''all'')', name),
			try('SELECT msgq.send(%L, jsonb_build_object(''a'', %L, ''i'', i),
				group_key => ''k'' || i %% 3) FROM generate_series(1, 8) AS i', name, marker)
		FROM fixture WHERE kind = 'queue';
		PERFORM try('SELECT msgq.create_group(%L, ''g'', ''first'')', name),
			try('SELECT msgq.create_group(%L, ''h'', ''first'')', name),
			try('SELECT msgq.append(%L, jsonb_build_object(''a'', %L), key => ''k'' || i)
				FROM generate_series(1, 10) AS i', name, marker)
		FROM fixture WHERE kind = 'stream';
		PERFORM try($b$SELECT msgq.bind('news', 'plain', 'a.#')$b$),
			try($b$SELECT msgq.bind('news', 'log', 'a.*')$b$),
			try($b$SELECT msgq.bind('direct', 'ordered', 'a')$b$),
			try($b$SELECT msgq.bind('fan', 'levels')$b$),
			try($b$SELECT msgq.bind('fan', 'direct')$b$),
			try($b$SELECT msgq.bind('heads', 'plain', header_match => '{"a": 1}')$b$);
	END $$});

sub refresh
{
	my ($round) = @_;

	$admin->safe("SELECT refresh($round, '$HostileCalls::marker')");
	$admin->query('CALL msgq.sequence()');
	return;
}

# The names of fixtures, of one kind or of all.
sub names
{
	my ($kind) = @_;
	return [ split /\n/, $admin->safe("SELECT name FROM fixture WHERE kind ~ '$kind' ORDER BY n") ];
}

# What there is, for HostileCalls.
sub known
{
	my $receipts = $admin->safe(
		q{SELECT string_agg(receipt::text, ' ')
		FROM (SELECT name FROM msgq.queues WHERE name !~ '^untouched' OFFSET 0) AS q,
			msgq.receive(name, 10, '1 h')});
	my $polled = $admin->query(
		q{SELECT string_agg(DISTINCT receipt::text, ' ')
		FROM msgq.poll('log', 'g', 3)});
	my %known = (
		version => [ $admin->safe('SHOW server_version_num') ],
		queue => names('queue'),
		dead_letter_queue => [ 'kept', '' ],
		stream => names('stream'),
		consumer_group => [ 'g', 'h' ],
		topic => names('topic'),
		alternate => ['news'],
		target => names(''),
		destination => names(''),
		name => names(''),
		role => [ 'partly', 'nobody', 'public' ],
		relation => ['captured'],
		receipt => [ split / /, $receipts || '00000000-0000-0000-0000-000000000000' ],
		'commit.receipt' => [ split / /, $polled || '00000000-0000-0000-0000-000000000000' ],
		'seek.target' => [ 'first', 'new', '2' ],
		'schedule.name' => [ 'hourly', 'daily' ],
		'unschedule.name' => [ 'hourly', 'daily' ],
		'append.key' => [ 'k1', 'k2' ],
		'append_bytes.key' => [ 'k1', 'k2' ]);

	foreach my $kind ('queue', 'stream', 'topic')
	{
		$known{"create_$kind.$kind"} = [ map { "new $_" } 1 .. 5 ];
		$known{"${kind}_id"} = [ split /\n/, $admin->safe("SELECT id FROM msgq.${kind}s ORDER BY id") ];
	}
	$known{'rename_queue.new_name'} = [ 'new 6', 'plain' ];
	$known{'create_outbox.relation'} = [ 'outbox', 'public.outbox2' ];
	return \%known;
}

# The functions, as the catalog has them.
my $functions = decode_json($admin->safe(
	q{SELECT json_agg(json_build_object('name', proname, 'kind', prokind,
			'result', prorettype::regtype, 'comment', obj_description(p.oid, 'pg_proc'),
			'arguments', (SELECT coalesce(json_agg(json_build_object(
					'name', proargnames[i], 'type', format_type(proargtypes[i - 1], NULL),
					'has_default', i > pronargs - pronargdefaults) ORDER BY i), '[]')
				FROM generate_series(1, pronargs) AS i))
		ORDER BY proname COLLATE "C", p.oid)
	FROM pg_proc AS p, pg_depend AS d
	WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
	AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'msgq')}));
my %function = map { $_->{name} => $_ } @$functions;

# The SQLSTATEs that a function's comment lists; it may refer to another one.
sub listed
{
	my ($name, $seen) = @_;
	my $comment = $function{$name}{comment} // '';
	my ($errors) = $comment =~ /((?:[Ee]rrors|otherwise) *(?::|as).*)/s;

	return () if $seen->{$name}++ || !defined $errors;
	return ($errors =~ /\b(?=[A-Z]*[0-9])([0-9A-Z]{5})\b/g,
		map { listed($_, $seen) } $errors =~ /msgq\.(\w+)/g);
}

# What the arguments themselves raise, and the transaction that a call is in.
my @always = qw(22021 25006 40001);
# What stands between a trigger and its function.
my @trigger_errors = qw(0A000 42501 42710 42809);
my %listed;
foreach my $name (keys %function)
{
	$listed{$name}{$_} = 1
	  foreach @always, listed($name, {}),
	  $function{$name}{result} eq 'trigger' ? @trigger_errors : ();
}

my %session = (
	partly => session($node, user => 'partly'),
	nobody => session($node, user => 'nobody'),
	superuser => session($node));
foreach my $session (values %session)
{
	$session->safe("SET client_min_messages = error");
	$session->safe("CREATE TEMP TABLE captured_temp (id int, payload text)");
	$session->query("\\o /dev/null\n");
}

# Anonymous memory of a process in megabytes.
sub memory
{
	my ($session) = @_;
	my $status = slurp_file('/proc/' . $session->pid . '/status');

	return $status =~ /^RssAnon:\s+(\d+) kB/m ? $1 / 1024 : 0;
}

my $before = untouched();
my (%memory, %outcomes, %called, %succeeded, %bad);
my $start = time;

# Runs statements in a session.  Returns, for each that failed, what was said: by
# the line, which is how psql names it.
sub run
{
	my ($session, @statements) = @_;
	my $file = text_file(join '', map { "$_;\n" } @statements);
	my @errors;

	$session->query("\\i $file\n;");
	foreach my $part (split /^(?=psql:\Q$file\E:)/m, $session->error)
	{
		push @{ $errors[ $1 - 1 ] }, $part if $part =~ /^psql:\Q$file\E:(\d+): /;
	}
	unlink $file;
	return @errors;
}

for (my ($round, $done) = (0, 0); $done < $calls; $round++)
{
	refresh($round);
	my $generator = HostileCalls->new($functions, known());

	foreach my $share ([ partly => 0.5 ], [ nobody => 0.2 ], [ superuser => 0.3 ])
	{
		my ($role, $part) = @$share;
		my $session = $session{$role};
		my @made = map { [ $generator->next ] } 1 .. $part * $round_size;
		my @errors = run($session, map { $_->[0] } @made);

		die "the connection of $role was lost: " . $session->error if $session->dead;
		foreach my $i (0 .. $#made)
		{
			my ($statement, $name) = @{ $made[$i] };
			my $error = join '', @{ $errors[$i] // [] };
			my ($state) = $error =~ /(?:ERROR|FATAL|PANIC):  ([0-9A-Z]{5}):/;

			$called{$name}++;
			$outcomes{ $state // 'result' }++;
			$succeeded{$name}++ unless defined $state;
			push @{ $bad{"$name " . ($state // '')} }, "$role: $statement\n$error"
			  if defined $state && !$listed{$name}{$state}
			  || $error =~ /\Q$HostileCalls::marker\E/;
		}
		$memory{$role} //= memory($session);
	}
	$done += $round_size;
}
note(sprintf '%d calls in %.0f s: %s', $calls, time - $start,
	join(', ', map { "$_ $outcomes{$_}" } sort { $outcomes{$b} <=> $outcomes{$a} } keys %outcomes));
is(scalar(grep { !$called{$_} } keys %function), 0, 'every function was called');
note('without a result: ' . join ' ', sort grep { !$succeeded{$_} } keys %function);
is(join(', ', map { "$_ (" . @{ $bad{$_} } . ')' } sort keys %bad),
	'', 'each call ended in a result or in a listed error');
diag(substr $bad{$_}[0], 0, 3000) foreach sort keys %bad;
is(untouched(), $before, 'what nobody has named is unchanged');
foreach my $role (sort keys %session)
{
	my $growth = memory($session{$role}) - $memory{$role};

	cmp_ok($growth, '<', 100, sprintf "memory of %s grew by %.1f MB", $role, $growth);
	$session{$role}->quit;
}
is($admin->safe('SELECT count(*) FROM victim'), '0', 'nothing was injected');
is( $admin->safe(q{SELECT msgq.maintain() -> 'defects'}),
	'0', 'the audit finds nothing');
is( $admin->safe(
		q{SELECT check_name, detail FROM msgq.health()
		WHERE status = 'error'}),
	'',
	'health shows no damage');
my @lines = split /\n/, slurp_file($node->logfile);
is(join("\n", grep { /\Q$HostileCalls::marker\E/ } @lines), '', 'the log shows no body');
is(join("\n", grep { / XX00\d|leak|still referenced|was not closed/ } @lines),
	'', 'the server has had no internal error, and nothing leaked');
check_log($node);
$admin->quit;
check_indexes($node);
$node->stop;

done_testing();
