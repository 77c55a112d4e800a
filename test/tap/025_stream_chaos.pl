# A stream under load, while the whole server is killed again and again:
# transactions that take from a millisecond to ten seconds, rollbacks,
# savepoints, and PREPARE TRANSACTION with the outcome later, perhaps after the
# crash.  Four groups read all the time.
#
# Catches: a committed entry that a group never gets because its place was
# passed while it was open, one that it gets twice, one of an undone
# transaction, a position that is missing or given twice, groups that see
# different orders, a key in two partitions, entries in another order than that
# of transactions which waited for each other, a position that somebody has
# seen and that a crash gave to another entry, and damaged tables or indexes.
#
# Writers record each entry in the transaction that appends it, so what is
# recorded is what was committed.  Readers write down what they read in the
# transaction that reads it.  What the scanner reads is kept outside of the
# server.
#
# Keys:
#
#	f<n>	free, appended to by anybody
#	h<n>	hot: those who append lock a row of the key, for a moment
#	l<n>	the same, for up to ten seconds, or until a prepared one has ended
#
# Under the lock the key's counter is raised, and goes into the body.  So the
# counters of what was committed are dense, and in the order of the waiting.
#
# Prepared transactions: p-... is ended by the finisher after a second or so,
# in whatever round; own-... by who has prepared it, if no crash intervenes;
# stay-... at the very end.
#
# MSGQ_STREAM_SECONDS makes the load longer, with more crashes.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $seconds = $ENV{MSGQ_STREAM_SECONDS} // 60;
# Each but the last ends with a crash.
my $rounds = $seconds > 60 ? int($seconds / 20) : 3;
my $round_seconds = $seconds / $rounds;
my @groups = qw(g1 g2 g3 g4);
my $partitions = 4;
my $free_keys = 300;
my $hot_keys = 5;
my $locked_keys = 300;

my $node = new_node(
	'stream_chaos',
	'max_connections = 60',
	# Those that stay pile up, a few in each round.
	'max_prepared_transactions = ' . (100 + 10 * $rounds),
	'msgq.worker_interval = 1s',
	'autovacuum_naptime = 1s',
	# Checkpoints come on request, so that recovery has something to do.
	'checkpoint_timeout = 1h');

# The limit turns the segments, of 5000 entries each; and the group that reads
# nothing keeps them.
$node->safe_psql(
	'postgres', qq{
	SELECT msgq.create_stream('s', partitions => $partitions,
		retention_entries => 40000, hold_for_groups => true);
	SELECT msgq.create_group('s', 'keeper', 'first');
	SELECT msgq.create_group('s', 'g' || i, 'first')
	FROM generate_series(1, 4) AS i;

	CREATE TABLE control (writers boolean, readers boolean);
	CREATE TABLE keys (key text PRIMARY KEY, n bigint DEFAULT 0)
		WITH (fillfactor = 10);
	CREATE TABLE written (id bigint, key text, body jsonb);
	CREATE TABLE taken (consumer_group text, partition int, position bigint,
		id bigint, key text, body jsonb);
	CREATE TABLE seen (partition int, position bigint, id bigint);
	CREATE TABLE scanned (partition int, position bigint, id bigint, key text,
		body jsonb);

	INSERT INTO control VALUES (false, false);
	INSERT INTO keys SELECT 'h' || i FROM generate_series(1, $hot_keys) AS i;
	INSERT INTO keys
	SELECT 'l' || i FROM generate_series(1, $locked_keys) AS i;

	CREATE FUNCTION any_key(prefix text, n int) RETURNS text
	RETURN prefix || 1 + floor(random() * n)::int;
});

# writer: a session, or a prepared transaction, whose transactions follow each
# other.
$node->safe_psql(
	'postgres', qq{
	-- Entries with free keys, some without.
	CREATE FUNCTION put(writer text, n int DEFAULT 1) RETURNS void
	LANGUAGE plpgsql AS \$\$
	DECLARE
		new_keys text[];
		new_bodies jsonb[];
	BEGIN
		SELECT array_agg(
				CASE WHEN random() < 0.9 THEN any_key('f', $free_keys) END),
			array_agg(jsonb_build_object('writer', writer, 'i', i))
		INTO new_keys, new_bodies
		FROM generate_series(1, n) AS i;
		IF n = 1 THEN
			INSERT INTO written
			VALUES (msgq.append('s', new_bodies[1], new_keys[1]),
				new_keys[1], new_bodies[1]);
		ELSE
			INSERT INTO written
			SELECT id, key, body
			FROM unnest(msgq.append_batch('s', new_bodies, new_keys),
				new_keys, new_bodies) AS u (id, key, body);
		END IF;
	END \$\$;

	-- One that waits for whoever has the key.
	CREATE FUNCTION put_locked(writer text, locked text) RETURNS void
	LANGUAGE plpgsql AS \$\$
	DECLARE
		new_body jsonb;
	BEGIN
		UPDATE keys SET n = n + 1 WHERE key = locked
		RETURNING jsonb_build_object('writer', writer, 'n', n) INTO new_body;
		INSERT INTO written
		VALUES (msgq.append('s', new_body, locked), locked, new_body);
	END \$\$;

	-- More subtransactions than a process remembers in shared memory.
	CREATE FUNCTION put_nested(writer text, n int) RETURNS void
	LANGUAGE plpgsql AS \$\$
	BEGIN
		FOR i IN 1 .. n LOOP
			BEGIN
				PERFORM put(writer);
				IF i % 3 = 0 THEN
					RAISE EXCEPTION 'undone';
				END IF;
			EXCEPTION WHEN raise_exception THEN
			END;
		END LOOP;
	END \$\$;
});

# ---------------------------------------------------------------------------
# Scripts.  Each is long enough for a round, and asks whether it shall end.
# ---------------------------------------------------------------------------

sub loop
{
	my ($what, $times, @bodies) = @_;
	my $ask = "SELECT $what AS stop FROM control \\gset\n"
	  . "\\if :stop\n\\q\n\\endif\n";

	return join '',
	  map { $bodies[ $_ % @bodies ] =~ s/\{i\}/$_/gr . $ask } 1 .. $times;
}

sub pace
{
	my ($most) = @_;
	return "SELECT pg_sleep(random() * $most);\n";
}

my $short = loop(
	'writers',
	4000,
	map { $_ . pace(0.02) } (
		"SELECT put(:'run');\n",
		"BEGIN;\nSELECT put(:'run', 20);\nCOMMIT;\n",
		"BEGIN;\nSELECT put(:'run');\nSAVEPOINT a;\nSELECT put(:'run', 3);\n"
		  . "ROLLBACK TO a;\nSELECT put(:'run');\nSAVEPOINT b;\n"
		  . "SELECT put(:'run', 2);\nRELEASE b;\nSELECT put(:'run');\nCOMMIT;\n",
		"BEGIN;\nSELECT put(:'run', 5);\nROLLBACK;\n",
		"BEGIN;\nSELECT put(:'run');\n"
		  . pace(0.2)
		  . "SELECT put(:'run', 10);\nCOMMIT;\n",
		"SELECT put(:'run');\n",
		"BEGIN;\nSELECT put(:'run', 40);\nCOMMIT;\n",
		"BEGIN;\nSELECT put(:'run', 2);\nSAVEPOINT a;\nSELECT put(:'run', 2);\n"
		  . "ROLLBACK;\n",
		"SELECT put_nested(:'run', 80);\n"));

my $locking = loop(
	'writers',
	4000,
	map { $_ . pace(0.01) } (
		"SELECT put_locked(:'run', any_key('h', $hot_keys));\n",
		"BEGIN;\nSELECT any_key('l', $locked_keys) AS k \\gset\n"
		  . "SELECT FROM keys WHERE key = :'k' FOR UPDATE;\n"
		  . "SELECT put_locked(:'run', :'k');\nCOMMIT;\n",
		"BEGIN;\nSELECT put_locked(:'run', any_key('h', $hot_keys));\n"
		  . pace(0.02)
		  . "SELECT put(:'run', 2);\nCOMMIT;\n",
		# Two keys, always in the same order, so that there is no deadlock.
		"BEGIN;\nSELECT put_locked(:'run', 'h1');\n"
		  . "SELECT put_locked(:'run', 'h2');\n"
		  . "SELECT put_locked(:'run', 'h1');\nCOMMIT;\n",
		"BEGIN;\nSELECT any_key('h', $hot_keys) AS k \\gset\nSAVEPOINT a;\n"
		  . "SELECT put_locked(:'run', :'k');\nROLLBACK TO a;\n"
		  . "SELECT put_locked(:'run', :'k');\nCOMMIT;\n",
		"BEGIN;\nSELECT put_locked(:'run', any_key('h', $hot_keys));\nROLLBACK;\n",
		"BEGIN;\nSELECT any_key('h', $hot_keys) AS k \\gset\n"
		  . "SELECT FROM keys WHERE key = :'k' FOR UPDATE;\n"
		  . pace(0.01)
		  . "SELECT put_locked(:'run', :'k');\nSAVEPOINT a;\n"
		  . "SELECT put_locked(:'run', :'k');\nRELEASE a;\nCOMMIT;\n"));

my $slow = loop(
	'writers',
	300,
	map {
		    "BEGIN;\nSELECT put(:'run', 3);\n"
		  . "SELECT put_locked(:'run', any_key('l', $locked_keys));\n"
		  . "SELECT pg_sleep(0.3 + 9 * random() ^ 2);\n"
		  . "SAVEPOINT a;\nSELECT put(:'run', 2);\nRELEASE a;\n$_;\n"
	} qw(COMMIT COMMIT ROLLBACK));

# The name of the prepared transaction is the writer, as it has an outcome of
# its own time.
my $prepare = loop(
	'writers',
	1000,
	map { $_ . pace(0.2) } (
		"\\set gid p-:run-{i}\nBEGIN;\nSELECT put(:'gid', 3);\n"
		  . "SELECT put_locked(:'gid', any_key('l', $locked_keys));\n"
		  . "PREPARE TRANSACTION :'gid';\n",
		"\\set gid p-:run-{i}\nBEGIN;\nSELECT put(:'gid');\nSAVEPOINT a;\n"
		  . "SELECT put(:'gid');\nROLLBACK TO a;\nSAVEPOINT b;\n"
		  . "SELECT put(:'gid');\nRELEASE b;\nPREPARE TRANSACTION :'gid';\n",
		"\\set gid own-:run-{i}\nBEGIN;\nSELECT put(:'gid', 2);\n"
		  . "PREPARE TRANSACTION :'gid';\nSELECT put(:'run', 2);\n"
		  . pace(0.1)
		  . "COMMIT PREPARED :'gid';\n",
		"\\set gid own-:run-{i}\nBEGIN;\nSELECT put(:'gid', 2);\n"
		  . "PREPARE TRANSACTION :'gid';\nSELECT put(:'run', 2);\n"
		  . "ROLLBACK PREPARED :'gid';\n"));
$prepare =
	"\\set gid stay-:run\nBEGIN;\nSELECT put(:'gid', 3);\n"
  . "PREPARE TRANSACTION :'gid';\n$prepare";

# Two out of three are committed.
my $outcome = q{format(CASE WHEN hashtext(gid) & 1023 < 700 THEN 'COMMIT'
		ELSE 'ROLLBACK' END || ' PREPARED %L', gid)};

# What it finds may not be entirely prepared yet: the next time it is.
my $finisher = "\\set ON_ERROR_STOP 0\n" . loop(
	'readers', 2000,
	map {
		qq{SELECT $outcome FROM pg_prepared_xacts
		WHERE gid ^@ 'p-' AND prepared < clock_timestamp()
			- (hashtext(gid) >> 10 & 2047) * interval '1 ms' \\gexec\n}
		  . pace(0.1)
		  . $_
	} ('') x 29, "CHECKPOINT;\n");

my $take = q{INSERT INTO taken
	SELECT :'consumer_group', partition, position, id, key, body
	FROM msgq.read('s', :'consumer_group', 500, wait => '200 ms');
};
my $plain = "BEGIN;\n${take}COMMIT;\n";

my $reader = loop(
	'readers', 3000,
	$plain,
	$plain,
	"BEGIN;\n${take}ROLLBACK;\n",
	"BEGIN;\n${take}${take}COMMIT;\n",
	$plain,
	"BEGIN;\nSAVEPOINT a;\n${take}ROLLBACK TO a;\n${take}COMMIT;\n",
	"BEGIN;\n${take}" . pace(0.2) . "COMMIT;\n",
	$plain,
	"BEGIN;\n${take}" . pace(0.2) . "ROLLBACK;\n",
	$take,
	$plain,
	"\\set gid p-:run-{i}\nBEGIN;\n${take}PREPARE TRANSACTION :'gid';\n");

# From what is the end when it begins; one that only reads.
my $scanner = "SELECT "
  . join(', ',
	map { "max(next_position) FILTER (WHERE partition = $_) AS from$_" }
	  0 .. $partitions - 1)
  . " FROM msgq.stream_stats WHERE stream = 's' \\gset\n"
  . loop(
	'readers', 10000,
	map {
		qq{SELECT coalesce(max(position) + 1, :from$_) AS from$_,
			coalesce(string_agg(format('%s,%s,%s', partition, position, id), ' '),
				'') AS entries
		FROM msgq.scan('s', $_, :from$_, 1000) \\gset
		\\qecho :entries
		SELECT pg_sleep(0.005) \\g /dev/null\n}
	} 0 .. $partitions - 1);

my %file = (
	short => text_file($short),
	lazy => text_file("SET synchronous_commit = off;\n$short"),
	locking => text_file($locking),
	slow => text_file($slow),
	prepare => text_file($prepare),
	finisher => text_file($finisher),
	reader => text_file($reader),
	lazy_reader => text_file("SET synchronous_commit = off;\n$reader"),
	repeatable_reader => text_file(
		"SET default_transaction_isolation = 'repeatable read';\n$reader"),
	scanner => text_file($scanner));

# ---------------------------------------------------------------------------
# Rounds
# ---------------------------------------------------------------------------

my $output = PostgreSQL::Test::Utils::tempdir();
my $scans = 0;
my @errors;

sub start
{
	my ($round, $kind, %variables) = @_;
	my $run = join '-', $round, $kind, $variables{number} // '1';

	return run_psql(
		$node,
		file => $file{$kind},
		output => $kind eq 'scanner' ? "$output/scan." . ++$scans : '/dev/null',
		variables => { run => $run, %variables });
}

sub start_writers
{
	my ($round) = @_;

	my %number =
	  (short => 2, lazy => 1, locking => 3, slow => 2, prepare => 2);

	return map {
		my $kind = $_;
		map { start($round, $kind, number => $_) } 1 .. $number{$kind}
	} sort keys %number;
}

sub start_readers
{
	my ($round) = @_;

	return (
		start($round, 'finisher'),
		start($round, 'scanner'),
		start($round, 'reader', number => 1, consumer_group => 'g1'),
		start($round, 'reader', number => 2, consumer_group => 'g1'),
		start($round, 'reader', number => 3, consumer_group => 'g2'),
		start($round, 'reader', number => 4, consumer_group => 'g2'),
		# In the end all catch up.
		start($round, $round eq 'end' ? 'reader' : 'lazy_reader',
			number => 5,
			consumer_group => 'g3'),
		start($round, $round eq 'end' ? 'reader' : 'repeatable_reader',
			number => 6,
			consumer_group => 'g4'));
}

# All that run end, each with its transaction.
sub stop_all
{
	my ($what, @handles) = @_;

	$node->safe_psql('postgres', "UPDATE control SET $what = true");
	ok(finish(@handles), "$what end well");
	note_errors(@handles);
	return;
}

sub note_errors
{
	push @errors,
	  grep { !/ is busy/ } map { $_->{output} =~ /^(.*(?:ERROR|WARNING|PANIC):.*)$/mg } @_;
	return;
}

# How far the groups have read, together.
sub places
{
	return $node->safe_psql('postgres',
		q{SELECT string_agg(format('(%L, %s)', consumer_group, n), ', ')
		FROM (SELECT consumer_group, sum(position) AS n FROM msgq.group_lag
			WHERE consumer_group <> 'keeper' GROUP BY 1) AS g});
}

# A moment at which all groups have read something in this round, which began
# with these places, a transaction has been open for a while, and others are
# prepared.
sub wait_for_load
{
	my ($round, $places, @handles) = @_;

	$node->poll_query_until(
		'postgres', qq{
		SELECT (SELECT count(*) FROM pg_prepared_xacts WHERE gid ^@ 'p-$round-') > 0
			AND EXISTS (SELECT FROM pg_stat_activity
				WHERE query ~ 'pg_sleep.0.3' AND backend_xid IS NOT NULL
					AND xact_start < now() - interval '1 s')
			AND NOT EXISTS (SELECT FROM (VALUES $places) AS begun (name, n)
				WHERE n >= (SELECT sum(position) FROM msgq.group_lag
					WHERE consumer_group = name))
	}) and return;
	diag $node->safe_psql(
		'postgres', q{
		SELECT pid, backend_type, state, wait_event, now() - xact_start, left(query, 70)
		FROM pg_stat_activity;
		TABLE msgq.group_lag});
	diag map { eval { $_->{run}->pump_nb }; $_->{output} } @handles;
	die "no load";
}

my $survivors = 0;
my $begun = time;

foreach my $round (1 .. $rounds)
{
	my $until = time + $round_seconds;
	my $places = places();
	my @writers = start_writers($round);
	my @readers = start_readers($round);

	while (time < $until)
	{
		usleep(200_000);
	}
	wait_for_load($round, $places, @writers, @readers);
	if ($round < $rounds)
	{
		kill_all($node);
		kill_starting($node) if $round % 2 == 0;
		start_again($node);
		finish(@writers, @readers);
		note_errors(@writers, @readers);
		my $prepared = $node->safe_psql('postgres',
			'SELECT count(*) FROM pg_prepared_xacts');
		$survivors += $prepared;
		note "round $round: $prepared prepared transactions survive; "
		  . $node->safe_psql('postgres', 'SELECT count(*) FROM written')
		  . ' entries are committed';
	}
	else
	{
		stop_all('writers', @writers);
		stop_all('readers', @readers);
	}
}
note sprintf '%d s of load', time - $begun;
cmp_ok($survivors, '>', $rounds - 1, 'prepared transactions survived');

# ---------------------------------------------------------------------------
# The rest
# ---------------------------------------------------------------------------

my $session = session($node);

sub finish_prepared
{
	$session->safe("SELECT $outcome FROM pg_prepared_xacts \\gexec\n");
	return;
}

# Those that stay hold up nobody else: so the groups are through before them.
# In vain it ends before the readers run out of time.
sub drain
{
	my ($name) = @_;
	my $until = time + $PostgreSQL::Test::Utils::timeout_default / 3;
	my $done;

	do
	{
		usleep(100_000);
		$done = $session->safe(
			"SELECT (SELECT count(*) FROM taken) >=
				@{[ scalar @groups ]} * (SELECT count(*) FROM written)");
	} until ($done eq 't' || time > $until);
	is($done, 't', $name);
	return;
}

$session->safe('UPDATE control SET readers = false');
my @readers = start_readers('end');
drain('the groups read all but what is open');
finish_prepared();
drain('the groups read all');
stop_all('readers', @readers);
finish_prepared();

is("@errors", '', 'no statement failed but for the crashes');

foreach my $scan (1 .. $scans)
{
	# An empty result is an empty line; where the server was killed, psql may
	# not have had any.
	my @entries = grep { /^\d/ } split ' ', slurp_file("$output/scan.$scan");

	while (my @some = splice @entries, 0, 10000)
	{
		$session->safe("INSERT INTO seen SELECT a[1], a[2], a[3] FROM unnest('{"
			  . join(',', map { "\"$_\"" } @some)
			  . "}'::text[]) AS u (entry), "
			  . "LATERAL (SELECT string_to_array(entry, ',')::bigint[] AS a) AS s");
	}
}

$session->safe(
	qq{DO \$\$
	DECLARE
		next_position bigint;
	BEGIN
		FOR p IN 0 .. $partitions - 1 LOOP
			next_position := 1;
			LOOP
				INSERT INTO scanned
				SELECT partition, position, id, key, body
				FROM msgq.scan('s', p, next_position, 3000);
				EXIT WHEN NOT FOUND;
				SELECT max(position) + 1 INTO next_position
				FROM scanned WHERE partition = p;
			END LOOP;
		END LOOP;
	END \$\$});
$session->safe('CREATE VIEW groups AS SELECT unnest(\'{'
	  . join(',', @groups)
	  . '}\'::text[]) AS consumer_group');
$session->safe('ANALYZE');

# ---------------------------------------------------------------------------
# What must hold
# ---------------------------------------------------------------------------

sub nothing
{
	my ($sql, $name) = @_;
	is($session->safe("SELECT * FROM ($sql) AS bad LIMIT 5"), '', $name);
	return;
}

sub is_enough
{
	my ($sql, $least, $name) = @_;
	cmp_ok($session->safe($sql), '>', $least, $name);
	return;
}

note $session->safe(
	q{SELECT format('%s entries committed, %s ids, %s taken, %s seen by scans, %s with a counter, %s segments',
		(SELECT count(*) FROM written), (SELECT max(id) FROM written),
		(SELECT count(*) FROM taken), (SELECT count(*) FROM seen),
		(SELECT count(*) FROM written WHERE body ? 'n'),
		(SELECT max(segments) FROM msgq.stream_stats WHERE stream = 's'))});

nothing(
	q{SELECT consumer_group, id FROM groups, written
	EXCEPT SELECT consumer_group, id FROM taken},
	'each group got all that was committed');
nothing(
	q{SELECT consumer_group, id, array_agg(position) FROM taken
	GROUP BY consumer_group, id HAVING count(*) > 1},
	'no group got any twice');
nothing(
	q{SELECT consumer_group, id, key, body FROM taken
	EXCEPT SELECT consumer_group, id, key, body FROM groups, written},
	'no group got anything else');
nothing(
	q{SELECT consumer_group, partition, min(position), max(position),
		count(DISTINCT position) AS n
	FROM taken GROUP BY consumer_group, partition
	HAVING min(position) <> 1 OR max(position) <> count(DISTINCT position)},
	'positions are dense');
nothing(
	qq{SELECT partition, position, array_agg(id) FROM taken
	GROUP BY partition, position
	HAVING count(DISTINCT id) > 1 OR count(*) <> @{[ scalar @groups ]}},
	'all groups saw the same');
nothing(
	q{SELECT key, array_agg(DISTINCT partition) FROM taken WHERE key IS NOT NULL
	GROUP BY key HAVING count(DISTINCT partition) > 1},
	'a key is in one partition');
is( $session->safe('SELECT count(DISTINCT partition) FROM taken'),
	$partitions, 'all partitions were used');

nothing(
	q{SELECT key, position, n, expected FROM (
		SELECT key, position, (body->>'n')::bigint AS n,
			row_number() OVER (PARTITION BY key ORDER BY position) AS expected
		FROM taken WHERE consumer_group = 'g1' AND body ? 'n') AS s
	WHERE n <> expected},
	'entries of a key are in the order in which their writers waited');
nothing(
	q{SELECT key, n, entries FROM keys
		LEFT JOIN (SELECT key, count(*) AS entries FROM taken
			WHERE consumer_group = 'g1' GROUP BY key) AS s USING (key)
	WHERE n <> coalesce(entries, 0)},
	'as many entries have a key as its counter says');
nothing(
	q{SELECT writer, partition, position, id, before FROM (
		SELECT body->>'writer' AS writer, partition, position, id,
			lag(id) OVER (PARTITION BY body->>'writer', partition
				ORDER BY position) AS before
		FROM taken WHERE consumer_group = 'g1') AS s
	WHERE id < before},
	'what a session wrote one after the other is in that order');

nothing(
	q{(TABLE scanned EXCEPT ALL SELECT partition, position, id, key, body
		FROM taken WHERE consumer_group = 'g1')
	UNION ALL
	(SELECT partition, position, id, key, body
		FROM taken WHERE consumer_group = 'g1' EXCEPT ALL TABLE scanned)},
	'scan has the same');
nothing(
	q{TABLE seen EXCEPT SELECT partition, position, id FROM scanned},
	'what a scan has seen is what is there after crashes');

nothing(
	q{SELECT consumer_group, partition, lag FROM msgq.group_lag
	WHERE stream = 's' AND lag <> CASE WHEN consumer_group = 'keeper'
		THEN (SELECT count(*) FROM scanned s
			WHERE s.partition = group_lag.partition) ELSE 0 END},
	'no group lags behind, but for the one that does not read');
is( $session->safe(
		q{SELECT count(*) FROM msgq.group_lag WHERE stream = 's'}),
	(@groups + 1) * $partitions,
	'all groups are there');
is( $session->safe(
		q{SELECT sum(entries) = (SELECT count(*) FROM written)
		FROM msgq.stream_stats WHERE stream = 's'}),
	't',
	'the statistics count the entries');

# Was there what the test is about?
is_enough('SELECT count(*) FROM written', 2000, 'there was some load');
is_enough(
	q{SELECT count(*) FROM (
		SELECT id, lag(id) OVER (PARTITION BY partition ORDER BY position)
			AS before
		FROM scanned) AS s
	WHERE id < before},
	100,
	'entries were committed in another order than appended');
is_enough(q{SELECT count(*) FROM seen}, 1000, 'scans saw entries');
is_enough(
	q{SELECT count(DISTINCT split_part(body->>'writer', '-', 1)) FROM written
	WHERE body->>'writer' ~ '^[0-9]'},
	$rounds - 1,
	'each round wrote');
is_enough(
	q{SELECT count(*) FROM written WHERE body->>'writer' ^@ 'stay-'},
	0, 'entries were open all the time');
is_enough(
	q{SELECT max(segments) FROM msgq.stream_stats WHERE stream = 's'},
	1, 'segments were turned');
$session->quit;

check_log($node);
check_indexes($node);
$node->stop;

done_testing();
