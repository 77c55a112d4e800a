#
# bench/capture.pl - the cases of captured tables
#
# Part of bench/measure.pl, which loads this file and whose programs, figures
# and tables it uses.  A captured table is compared with the same table under
# the trigger that people write for want of it: PL/pgSQL, for each row, one row
# into an outbox table.

use strict;
use warnings;

use Time::HiRes qw(time);

our (%SIDE, %FLOOR, %opt, %size, @EMPTIED, @rows);

# What issue and README promise.
%FLOOR = (%FLOOR, capture => 1, capture_bulk => 3);

my $ROWS = 100_000;

# ---------------------------------------------------------------------------
# The sides
# ---------------------------------------------------------------------------

sub drop_captured
{
	return (
		'DROP SCHEMA IF EXISTS captured CASCADE',
		q{SELECT msgq.drop_queue('bench_changes', if_exists => true)});
}

# A table of accounts, full; some space in its pages lets updates stay there.
sub make_captured
{
	return (
		drop_captured(),
		'CREATE SCHEMA captured',
		q{CREATE TABLE captured.account (id int PRIMARY KEY, owner text NOT NULL,
			balance numeric(12, 2) NOT NULL, note text, active boolean NOT NULL,
			changed_at timestamptz NOT NULL) WITH (fillfactor = 50)},
		"INSERT INTO captured.account SELECT i, 'customer ' || i, i, 'what is to be said of it', true, now()
			FROM generate_series(1, $ROWS) AS i");
}

# The same table under a trigger; what it writes ends with the body.
sub trigger_side
{
	my ($title, $columns, $names, $values) = @_;
	return {
		title => $title,
		ours  => 1,
		empty => [
			make_captured(),
			"CREATE TABLE captured.outbox ($columns)",
			"CREATE FUNCTION captured.write() RETURNS trigger LANGUAGE plpgsql AS \$\$
				BEGIN
					INSERT INTO captured.outbox ($names) VALUES ($values,
						jsonb_build_object(
							'op', lower(TG_OP), 'table', TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME,
							'old', CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END,
							'new', CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END,
							'at', clock_timestamp()));
					RETURN NULL;
				END \$\$",
			q{CREATE TRIGGER write AFTER INSERT OR UPDATE OR DELETE ON captured.account
				FOR EACH ROW EXECUTE FUNCTION captured.write()},
		],
		table   => sub { return 'captured.outbox' },
		capture => sprintf($main::CHANGE, $ROWS),
	};
}

our $CHANGE = q{
\set id random(1, %d)
UPDATE captured.account SET balance = balance + 1, changed_at = now() WHERE id = :id;};

sub captured_sides
{
	$SIDE{capture} = {
		title => 'msgq.capture',
		ours  => 1,
		empty => [
			make_captured(),
			q{SELECT msgq.create_queue('bench_changes', dead_letter_queue => '')},
			q{SELECT msgq.capture('captured.account', 'bench_changes', key => 'id')},
		],
		table => sub {
			return 'msgq.q' . psql(q{SELECT id FROM msgq.queues WHERE name = 'bench_changes'});
		},
		capture => sprintf($CHANGE, $ROWS),
	};
	$SIDE{trigger} = trigger_side('PL/pgSQL, plain outbox',
		q{id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
			created_at timestamptz NOT NULL DEFAULT clock_timestamp(), key text, body jsonb NOT NULL},
		'key, body', q{CASE WHEN TG_OP = 'DELETE' THEN OLD.id ELSE NEW.id END});
	$SIDE{debezium} = trigger_side("PL/pgSQL, Debezium's outbox",
		q{id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype varchar(255) NOT NULL,
			aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload jsonb},
		'aggregatetype, aggregateid, type, payload',
		q{TG_TABLE_NAME, CASE WHEN TG_OP = 'DELETE' THEN OLD.id ELSE NEW.id END, TG_OP});
	return;
}

# ---------------------------------------------------------------------------
# One row in each transaction
# ---------------------------------------------------------------------------

sub captured_round
{
	my ($case, $side, $how) = @_;
	local @EMPTIED = ($side);
	return round_of($case, $side, $how);
}

sub capture
{
	captured_sides();
	compare('capture', {
		ours => 'capture', round => \&captured_round, unit => 'commits', baselines => [ 'trigger', 'debezium' ],
		clients => 8, rounds => $size{stream_rounds}, per_transaction => 1,
		length => [ '-T', $size{stream_seconds} ], limits => { trigger => 'capture' } });
	psql(drop_captured());
	return;
}

# ---------------------------------------------------------------------------
# All rows in one statement
# ---------------------------------------------------------------------------

sub bulk_round
{
	my ($case, $side, $how) = @_;
	local @EMPTIED = ($side);
	prepare($side);
	psql('VACUUM ANALYZE captured.account');
	my $begun = time;
	psql('UPDATE captured.account SET balance = balance + 1, changed_at = now()');
	my $seconds = time - $begun;
	check_waiting($side, $ROWS);
	return $ROWS / $seconds;
}

# A server that has run for a while has touched all of its shared buffers.  One
# that has not pays for each page that it fills, on either side, a page fault of
# its memory, which is not what is to be compared.
sub touch_shared_buffers
{
	psql('CREATE TABLE captured_touch (page text)',
		'ALTER TABLE captured_touch ALTER page SET STORAGE PLAIN',
		q{INSERT INTO captured_touch SELECT repeat('x', 7000) FROM generate_series(1,
			(SELECT setting::int FROM pg_settings WHERE name = 'shared_buffers'))},
		'DROP TABLE captured_touch', 'CHECKPOINT');
	return;
}

sub capture_bulk
{
	captured_sides();
	touch_shared_buffers();
	compare('capture_bulk', {
		ours => 'capture', round => \&bulk_round, unit => 'rows', baselines => [ 'trigger', 'debezium' ],
		clients => 1, rounds => $size{read_rounds}, limits => { trigger => 'capture_bulk' } });
	psql(drop_captured());
	return;
}

sub capture_cases { return (capture => \&capture, capture_bulk => \&capture_bulk) }

1;
