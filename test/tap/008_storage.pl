# What an administrator does to a segment table: things that only the executor
# would honour, additional indexes, replication, and maintenance.
#
# Catches: triggers, rules, policies and constraints that messages pass by in
# silence; indexes without the entries of new rows; publications without the
# changes; and sessions that use what they remember of a table that has been
# rewritten.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node(
	'storage',
	# What it saves would be published, too.
	'msgq.worker = off',
	'wal_level = logical',
	'max_wal_senders = 4',
	'max_replication_slots = 4');

$node->safe_psql(
	'postgres', q{
	SELECT msgq.create_queue('q', visibility_timeout => '1 h');
	CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql
	AS $$BEGIN RETURN NEW; END$$;
	CREATE TABLE note (text text);
	CREATE TABLE reference (id bigint);
});
my $id =
  $node->safe_psql('postgres', "SELECT id FROM msgq.queues WHERE name = 'q'");
my $table = "msgq.q${id}_1";

my $session = session($node);
my $admin = session($node);

# The session has seen all of it before the table changes.
sub works
{
	my ($when) = @_;
	my $n = $session->safe(
		q{SELECT cardinality(msgq.send_batch('q', '{1,2,3,4}'));
		WITH r AS MATERIALIZED (SELECT * FROM msgq.receive('q', 4))
		SELECT count(*) FILTER (WHERE msgq.ack('q', receipt)) FROM r});
	is($n, "4\n4", "$when: messages are sent, received and settled");
	return;
}
works('at first');

# ---------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------

my @refused = (
	[
		'a trigger before insert',
		"CREATE TRIGGER t BEFORE INSERT ON $table
		FOR EACH ROW EXECUTE FUNCTION nothing()",
		"DROP TRIGGER t ON $table"
	],
	[
		'a trigger after update',
		"CREATE TRIGGER t AFTER UPDATE ON $table
		FOR EACH ROW EXECUTE FUNCTION nothing()",
		"DROP TRIGGER t ON $table"
	],
	[
		'a trigger after delete, per statement',
		"CREATE TRIGGER t AFTER DELETE ON $table
		EXECUTE FUNCTION nothing()",
		"DROP TRIGGER t ON $table"
	],
	[
		'a constraint trigger',
		"CREATE CONSTRAINT TRIGGER t AFTER INSERT ON $table
		DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION nothing()",
		"DROP TRIGGER t ON $table"
	],
	[
		'a rule on insert',
		"CREATE RULE r AS ON INSERT TO $table
		DO ALSO INSERT INTO note VALUES ('seen')",
		"DROP RULE r ON $table"
	],
	[
		'a rule on delete',
		"CREATE RULE r AS ON DELETE TO $table DO INSTEAD NOTHING",
		"DROP RULE r ON $table"
	],
	[
		'row security',
		"ALTER TABLE $table ENABLE ROW LEVEL SECURITY",
		"ALTER TABLE $table DISABLE ROW LEVEL SECURITY"
	],
	[
		'row security for its owner, too',
		"ALTER TABLE $table ENABLE ROW LEVEL SECURITY,
			FORCE ROW LEVEL SECURITY;
		CREATE POLICY p ON $table USING (false)",
		"DROP POLICY p ON $table;
		ALTER TABLE $table NO FORCE ROW LEVEL SECURITY,
			DISABLE ROW LEVEL SECURITY"
	],
	[
		'a check constraint',
		"ALTER TABLE $table ADD CONSTRAINT c CHECK (deliveries < 10)",
		"ALTER TABLE $table DROP CONSTRAINT c"
	],
	[
		'a check constraint for new rows',
		"ALTER TABLE $table ADD CONSTRAINT c CHECK (deliveries < 0) NOT VALID",
		"ALTER TABLE $table DROP CONSTRAINT c"
	],
	[
		'a foreign key to another table',
		"ALTER TABLE $table ADD CONSTRAINT f
		FOREIGN KEY (id) REFERENCES other (id) NOT VALID",
		"ALTER TABLE $table DROP CONSTRAINT f"
	],
	[
		'a foreign key from another table',
		"ALTER TABLE reference ADD CONSTRAINT f
		FOREIGN KEY (id) REFERENCES $table (id)",
		'ALTER TABLE reference DROP CONSTRAINT f'
	],
	[
		'NOT NULL on the body',
		"ALTER TABLE $table ALTER body SET NOT NULL",
		"ALTER TABLE $table ALTER body DROP NOT NULL"
	],
	[
		'one more column',
		"ALTER TABLE $table ADD extra int",
		# Dropped columns stay in the catalog; the last case.
		"ALTER TABLE $table DROP extra"
	]);

$admin->safe('CREATE TABLE other (id bigint PRIMARY KEY)');
$session->safe(
	q{SELECT msgq.send_batch('q', '{1,2}', delay => '1 h');
	SELECT msgq.send_batch('q', '{3,4}')});
my $receipt =
  $session->safe("SELECT receipt FROM msgq.receive('q', 1, '2 h')");
my $content = "SELECT * FROM $table ORDER BY id";

foreach my $refused (@refused)
{
	my ($what, $sql, $undo) = @$refused;
	my $added = $what eq 'one more column';
	my $before = $admin->safe($content);

	$admin->safe($sql);
	foreach my $call (
		q{msgq.send('q', '1')},
		q{msgq.send_batch('q', '{1}')},
		q{msgq.receive('q')},
		q{msgq.pop('q')},
		qq{msgq.ack('q', '$receipt')},
		qq{msgq.nack('q', '$receipt')},
		qq{msgq.extend('q', '$receipt', '1 h')},
		qq{msgq.release('q', '$receipt')})
	{
		is($session->fails("SELECT $call"), '55000', "$what: $call refused");
		like($session->error, qr/^HINT:/m, 'with a hint');
		like($session->error, qr/q${id}_1/,
			'that, or the message, names the table');
	}
	is( $admin->safe($content),
		$before =~ s/$/$added ? '|' : ''/gemr,
		"$what: nothing has happened");
	is($admin->safe('SELECT count(*) FROM note'), '0', 'at all');

	# In another session the same.
	my $new = session($node);
	is($new->fails(q{SELECT msgq.send('q', '1')}),
		'55000', "$what: refused in a new session");
	$new->quit;

	# The rest of the transaction is not lost.
	$session->safe('BEGIN; INSERT INTO note VALUES (1); SAVEPOINT a');
	is($session->fails(q{SELECT msgq.send('q', '1')}),
		'55000', "$what: refused in a transaction");
	$session->safe('ROLLBACK TO a');
	$admin->send($undo);
	$session->safe('ROLLBACK');
	$admin->wait;
	is($admin->sqlstate, '', "$what: undone");

	if ($added)
	{
		# Usable again or refused as ever, but never wrong.
		my $code = $session->fails(q{SELECT msgq.send('q', '7')});
		like($code, qr/^(55000|)$/, "$what: dropped again");
		is( $admin->safe(
				"SELECT count(*) FROM $table WHERE body = '7' AND data IS NULL"
			),
			$code eq '' ? '1' : '0',
			"$what: and no harm done");
	}
	else
	{
		works("$what gone");
		$session->safe("SELECT msgq.send('q', '4')");
	}
}

# A queue of its own for each of what follows, since the last case may have
# left its mark.
my $queues = 0;

sub new_queue
{
	my $name = 'queue ' . ++$queues;
	$admin->safe(
		"SELECT msgq.create_queue('$name', visibility_timeout => '1 h')");
	my $number =
	  $admin->safe("SELECT id FROM msgq.queues WHERE name = '$name'");
	return ($name, "msgq.q${number}_1", "msgq.q$number");
}

# ---------------------------------------------------------------------------
# More indexes
# ---------------------------------------------------------------------------

{
	my ($queue, $segment) = new_queue();

	$session->safe(
		"SELECT msgq.send_batch('$queue', array_agg(jsonb_build_object(
			'k', g, 'tags', jsonb_build_array('t' || g % 7))))
		FROM generate_series(1, 50) g");
	$session->safe("SELECT msgq.receive('$queue', 5)");
	$admin->safe(
		"CREATE UNIQUE INDEX i_unique ON $segment ((body->>'k'));
		CREATE INDEX i_deliveries ON $segment (deliveries) INCLUDE (failures);
		CREATE INDEX i_partial ON $segment (leased_at)
			WHERE leased_at IS NOT NULL;
		CREATE INDEX i_gin ON $segment USING gin (body);
		CREATE INDEX i_hash ON $segment USING hash (enqueued_at);
		CREATE INDEX i_brin ON $segment USING brin (visible_at);
		CREATE INDEX i_headers ON $segment ((headers->>'msgq-error'))");
	$session->safe(
		"SELECT msgq.send_batch('$queue', array_agg(jsonb_build_object(
			'k', g, 'tags', jsonb_build_array('t' || g % 7))))
		FROM generate_series(51, 100) g;
		SELECT msgq.receive('$queue', 7);
		SELECT msgq.ack('$queue', receipt) FROM msgq.receive('$queue', 6);
		SELECT msgq.nack('$queue', receipt, '1 h', 'so it was')
			FROM msgq.receive('$queue', 5);
		SELECT msgq.release('$queue', receipt)
			FROM msgq.receive('$queue', 4);
		SELECT msgq.extend('$queue', receipt, '2 h')
			FROM msgq.receive('$queue', 3);
		SELECT msgq.pop('$queue', 2);
		BEGIN; SELECT msgq.receive('$queue', 10); ROLLBACK");

	# Each index gives what a scan of the table gives.
	my @conditions = (
		[ i_unique => "body->>'k' > ''" ],
		[ i_unique => "body->>'k' = '77'" ],
		[ i_deliveries => 'deliveries = 1' ],
		[ i_deliveries => 'deliveries = 2' ],
		[ i_deliveries => 'deliveries >= 0' ],
		[ i_partial => 'leased_at IS NOT NULL' ],
		[ i_gin => q(body @> '{"tags": ["t3"]}') ],
		[ i_brin => 'visible_at > now()' ],
		[
			i_hash => "enqueued_at = (SELECT max(enqueued_at) FROM $segment)"
		],
		[ i_headers => q(headers->>'msgq-error' = 'so it was') ]);
	foreach my $condition (@conditions)
	{
		my ($index, $where) = @$condition;
		my $rows = "SELECT string_agg(id::text, ' ' ORDER BY id)
			FROM $segment WHERE $where";

		# No plain index scan, or 17 takes the primary key for the order.
		my $with = "SET enable_seqscan = off;
			SET enable_indexscan = off; SET enable_bitmapscan = on;";
		like($admin->safe("$with EXPLAIN $rows"),
			qr/$index|q\d+_1_due/, "$index is used for: $where");
		my $by_index = $admin->safe("$with $rows");
		my $by_scan = $admin->safe(
			"SET enable_seqscan = on;
			SET enable_indexscan = off; SET enable_bitmapscan = off;
			SET enable_indexonlyscan = off; $rows;
			RESET enable_indexonlyscan; RESET enable_indexscan;
			RESET enable_bitmapscan");
		is($by_index, $by_scan, "and gives the same rows");
		isnt($by_scan, '', 'which are some');
	}

	my $content = "SELECT * FROM $segment ORDER BY id";
	my $before = $admin->safe($content);
	is( $session->fails(
			qq{SELECT msgq.send_batch('$queue', '{"{\\"k\\": 500}", "{\\"k\\": 77}"}')}
		),
		'23505',
		'a duplicate is refused');
	is($admin->safe($content), $before, 'and nothing has been sent');
	$session->safe(qq{SELECT msgq.send('$queue', '{"k": 77000}')});
	is( $session->safe(
			"SELECT count(*) = count(DISTINCT id) AND count(*) > 50
			FROM msgq.receive('$queue', 1000)"),
		't',
		'a unique index does not disturb receiving');
	check_indexes($node);

	# More indexes on the columns in whose order messages are found, in other
	# orders.  What is due must come in the order of time, one by one.
	foreach my $columns (
		'visible_at DESC',
		'visible_at NULLS FIRST',
		'visible_at, id',
		'id DESC', 'visible_at) WHERE (visible_at IS NOT NULL')
	{
		$admin->safe(
			"SELECT msgq.purge('$queue');
			CREATE INDEX i_other ON $segment ($columns)");
		$session->safe(
			qq{BEGIN;
			SELECT msgq.send('$queue', '{"k": 1}',
				deliver_at => now() + interval '300 ms');
			SELECT msgq.send('$queue', '{"k": 2}',
				deliver_at => now() + interval '200 ms');
			SELECT msgq.send('$queue', '{"k": 3}',
				deliver_at => now() + interval '100 ms');
			COMMIT;
			SELECT msgq.send('$queue', '{"k": 4}');
			SELECT msgq.send('$queue', '{"k": 5}');
			SELECT pg_sleep(0.35)});
		my @came;
		foreach my $n (1 .. 6)
		{
			push @came,
			  $session->safe("SELECT body->'k' FROM msgq.receive('$queue')");
		}
		is("@came", '3 2 1 4 5 ', "an index on ($columns) changes no order");
		$admin->safe('DROP INDEX msgq.i_other');
	}

	# Without its own indexes a queue does not work, and says so.
	my $due = "${segment}_due";
	my $definition = $admin->safe("SELECT pg_get_indexdef('$due'::regclass)");
	$session->safe(qq{SELECT msgq.send('$queue', '{"k": 6}')});
	$admin->safe("DROP INDEX $due");
	is($session->fails("SELECT msgq.receive('$queue')"),
		'55000', 'without the index of due times: receive refused');
	like($session->error, qr/^HINT:/m, 'with a hint');
	$admin->safe($definition);
	is($session->safe("SELECT body FROM msgq.receive('$queue')"),
		'{"k": 6}', 'with it again: the message comes');

	# An exclusion constraint and a deferred unique one need more than an
	# entry: they work, or they are refused.
	$admin->safe(
		"DROP INDEX msgq.i_unique;
		SELECT msgq.purge('$queue');
		ALTER TABLE $segment ADD CONSTRAINT x
			EXCLUDE ((body->>'x') WITH =)");
	my $code = $session->fails(
		qq{SELECT msgq.send('$queue', '{"x": 1}');
		SELECT msgq.send('$queue', '{"x": 1}')});
	like($code, qr/^(55000|23P01)$/,
		'an exclusion constraint is not passed by');
	cmp_ok($admin->safe("SELECT count(*) FROM $segment"),
		'<', 2, 'and holds');
	$admin->safe(
		"ALTER TABLE $segment DROP CONSTRAINT x;
		SELECT msgq.purge('$queue');
		ALTER TABLE $segment ADD CONSTRAINT x
			UNIQUE (group_key, failures) DEFERRABLE INITIALLY DEFERRED;
		ALTER TABLE $segment DROP CONSTRAINT x;
		ALTER TABLE $segment ADD CONSTRAINT x
			UNIQUE (expires_at, priority, failures) DEFERRABLE;");
	$code = $session->fails("SELECT msgq.send('$queue', '1')");
	like($code, qr/^(55000|)$/,
		'a deferrable constraint is refused or works');
	$admin->safe("ALTER TABLE $segment DROP CONSTRAINT x");
	$session->safe("SELECT msgq.send('$queue', '1')");
}

# ---------------------------------------------------------------------------
# Logical replication
# ---------------------------------------------------------------------------

{
	my ($queue, $segment) = new_queue();

	$admin->safe('CREATE PUBLICATION everything FOR ALL TABLES');
	$admin->safe(
		"SELECT pg_create_logical_replication_slot('slot', 'pgoutput')");
	my ($first) = split /\n/,
	  $session->safe("SELECT msgq.send('$queue', '\"published\"')");
	my $second = $session->safe("SELECT msgq.send('$queue', '2')");
	$session->safe(
		"SELECT msgq.nack('$queue', receipt, '1 h')
			FROM msgq.receive('$queue');
		SELECT msgq.ack('$queue', receipt) FROM msgq.receive('$queue')");

	# pgoutput: the kind of message, the relation, and for a delete the kind of
	# tuple (K: replica identity), the number of columns, and the first one's
	# kind, length and text.
	my $changes = $admin->safe(
		q{SELECT chr(get_byte(data, 0)),
			CASE WHEN get_byte(data, 0) = ascii('D') THEN
				chr(get_byte(data, 5)) || ' ' ||
				convert_from(substring(data FROM 14 FOR get_byte(data, 12)),
					'UTF8')
			END,
			position('published'::bytea IN data) > 0
		FROM pg_logical_slot_get_binary_changes('slot', NULL, NULL,
			'proto_version', '1', 'publication_names', 'everything')
		WHERE get_byte(data, 0) IN (ascii('I'), ascii('U'), ascii('D'))});
	is( $changes,
		"I||t\nI||f\nU||t\nU||t\nU||f\nD|K $second|f",
		'inserts, updates and deletes are published');
	is( $admin->safe(
			"SELECT relreplident FROM pg_class WHERE oid = '$segment'::regclass"
		),
		'd',
		'the replica identity is the primary key');

	# What was rolled back is not.
	$session->safe(
		"BEGIN; SELECT msgq.send('$queue', '3');
		SELECT msgq.receive('$queue'); ROLLBACK;
		BEGIN; SAVEPOINT a; SELECT msgq.send('$queue', '4');
		ROLLBACK TO a; SELECT msgq.send('$queue', '5'); COMMIT");
	is( $admin->safe(
			q{SELECT string_agg(chr(get_byte(data, 0)), '')
			FROM pg_logical_slot_get_binary_changes('slot', NULL, NULL,
				'proto_version', '1', 'publication_names', 'everything')
			WHERE get_byte(data, 0) IN (ascii('I'), ascii('U'), ascii('D'))}
		),
		'I',
		'what was rolled back is not published');
	$admin->safe(
		"SELECT pg_drop_replication_slot('slot');
		DROP PUBLICATION everything");
}

# ---------------------------------------------------------------------------
# Maintenance between the calls of a session
# ---------------------------------------------------------------------------

{
	my ($queue, $segment, $handle) = new_queue();
	my $pkey = "${segment}_pkey" =~ s/^msgq\.//r;
	my @maintenance = (
		"VACUUM $segment",
		"VACUUM (FREEZE, INDEX_CLEANUP ON) $segment",
		"VACUUM FULL $segment",
		"CLUSTER $segment USING $pkey",
		"REINDEX TABLE $segment",
		"REINDEX TABLE CONCURRENTLY $segment",
		"REINDEX INDEX CONCURRENTLY msgq.$pkey",
		"ANALYZE $segment",
		"ALTER TABLE $segment SET (fillfactor = 70)",
		"ALTER TABLE $segment SET UNLOGGED; ALTER TABLE $segment SET LOGGED",
		"ALTER TABLE $segment ALTER body SET STORAGE EXTERNAL",
		"ALTER TABLE $segment SET (autovacuum_enabled = off)",
		"CREATE INDEX CONCURRENTLY extra ON $segment (deliveries)",
		'DROP INDEX CONCURRENTLY msgq.extra',
		"CHECKPOINT; VACUUM FULL pg_class, pg_index, pg_attribute");

	# Too long to be stored in the row, and too random to be compressed.
	$admin->safe(
		"CREATE TABLE big AS
		SELECT decode(string_agg(md5(g::text), ''), 'hex') AS bytes
		FROM generate_series(1, 5000) g");
	foreach my $maintenance (@maintenance)
	{
		# Ready, due, leased, delayed, and some of each gone.
		my $receipts = $session->safe(
			"SELECT msgq.send_batch('$queue', array_agg(to_jsonb(g)))
				FROM generate_series(1, 40) g \\g /dev/null
			SELECT msgq.send_batch('$queue', '{41,42}', delay => '1 ms') \\g /dev/null
			SELECT msgq.send_bytes('$queue', bytes) FROM big \\g /dev/null
			SELECT msgq.ack('$queue', receipt)
				FROM msgq.receive('$queue', 5) \\g /dev/null
			SELECT msgq.receive('$queue', 5, '0') \\g /dev/null
			SELECT array_agg(receipt)
			FROM (SELECT * FROM msgq.receive('$queue', 10)) r");
		my $left = $session->safe("SELECT count(*) FROM $handle");

		$admin->safe($maintenance);
		my $acked = $session->safe(
			"SELECT 10 - cardinality(msgq.ack_batch('$queue', '$receipts'))");
		is($acked, '10', "$maintenance: receipts are settled");
		$session->safe("SELECT msgq.send('$queue', '43')");
		$admin->safe($maintenance)
		  if $maintenance !~ /INDEX CONC.* extra|DROP/;
		my $came = $session->safe(
			"SELECT count(*), count(*) FILTER (WHERE data = big.bytes)
			FROM (SELECT data, msgq.ack('$queue', receipt) AS ok
				FROM msgq.receive('$queue', 100)) r, big
			WHERE ok");
		is( $came,
			$left - 10 + 1 . '|1',
			"$maintenance: all messages come, whole");
		is($session->safe("SELECT count(*) FROM $handle"),
			'0', "$maintenance: and then the queue is empty");
	}
	check_indexes($node);
}

$_->quit foreach $session, $admin;
unlike(slurp_file($node->logfile),
	qr/PANIC|TRAP/, 'the server did not complain');
$node->stop;

done_testing();
