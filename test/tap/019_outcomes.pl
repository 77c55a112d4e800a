# Two actions on one message, by two sessions at the same time: every pair of
# docs/outcomes.md, as it stands there.
#
# The page is read here: what is called comes from its tables of actions, what
# is expected from its tables of pairs.  Session 1 does the first action and
# keeps its transaction open; session 2 does the second one; then session 1
# commits, or rolls back, or rolls back to a savepoint and goes on.
#
# Catches: an action that does not wait for the other one, or waits without
# need; one that answers by what the message was like before the other one
# ended; a receipt that is good after its delivery has ended, or stale too
# early; a message that is lost, doubled, or kept by what was rolled back; a
# pair that the page does not have.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;

# ---------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------

my %call;     # by action
my @pairs;    # { first, second, waits, COMMIT, ROLLBACK }, the last two as
              # "returns; the message is"
my $first = '';

foreach my $line (
	split /\n/, slurp_file("$FindBin::RealBin/../../docs/outcomes.md"))
{
	if ($line =~ /^#/)
	{
		$first = $line =~ /^### First: ([\w -]+)/ ? $1 : '';
		next;
	}
	next unless $line =~ /^\| (.*) \|$/;
	my @cells = map { s/^`(.*)`$/$1/r } split / \| /, $1;

	if ($first ne '' && @cells == 6 && $cells[0] ne 'second')
	{
		push @pairs,
		  {
			first => $first,
			second => $cells[0],
			waits => $cells[1],
			COMMIT => "$cells[2]; $cells[3]",
			ROLLBACK => "$cells[4]; $cells[5]"
		  };
	}
	elsif ($first eq '' && @cells == 3 && $cells[1] =~ /^msgq\./)
	{
		$call{ $cells[0] } = $cells[1];
	}
}

my @actions = qw(ack nack reject extend release expire dead-letter redrive
  purge drop pause);
my %has = map { ("$_->{first}, $_->{second}" => 1) } @pairs;
my @missing;

foreach my $one (@actions)
{
	push @missing, grep { !$has{$_} } map { "$one, $_" } @actions;
}
is("@missing", '', 'the page has every pair');
is(scalar(keys %has), scalar(@pairs), 'and none twice');

# ---------------------------------------------------------------------------
# One pair
# ---------------------------------------------------------------------------

# What the worker or autovacuum does at some time would be a third action.
my $node = new_node('outcomes', 'msgq.worker = off', 'autovacuum = off');
my $control = session($node);
my $one = session($node);
my $two = session($node);

$control->safe('SET client_min_messages = error');

# Where the message is, as the page says it; all places, should it be in more
# than one.
$control->safe(
	q{
	CREATE FUNCTION places(queue_name text)
	RETURNS TABLE (id bigint, deliveries int, failures int, leased boolean,
		due boolean, reason text) LANGUAGE plpgsql AS $$
	DECLARE
		queue_id int = (SELECT q.id FROM msgq.queues q WHERE name = queue_name);
	BEGIN
		IF queue_id IS NOT NULL THEN
			RETURN QUERY EXECUTE format('SELECT id, deliveries, failures,
				leased_at IS NOT NULL, visible_at <= clock_timestamp(),
				headers->''msgq-death''->0->>''reason'' FROM msgq.q%s', queue_id);
		END IF;
	END
	$$;
	CREATE FUNCTION where_is(old_id bigint) RETURNS text LANGUAGE sql AS $$
		SELECT coalesce(string_agg(place, ' and '), 'gone') FROM (
			SELECT CASE
				WHEN leased AND due AND deliveries = 1 AND failures = 0
					THEN 'unchanged'
				ELSE format('%s %s/%s', CASE WHEN leased AND NOT due
						THEN 'in flight' WHEN due THEN 'due' ELSE 'delayed' END,
					deliveries, failures) END AS place
			FROM places('q')
			UNION ALL
			SELECT 'dead letter: ' || reason FROM places('q.dead')
			WHERE (deliveries, failures) = (0, 0)
			UNION ALL
			SELECT format('home %s/%s', deliveries, failures)
				|| CASE WHEN id <> old_id THEN ', as another one' ELSE '' END
			FROM places('home')) p
	$$;
	CREATE FUNCTION state_of_q() RETURNS text LANGUAGE sql AS $$
		SELECT CASE WHEN count(*) = 0 THEN ', dropped'
			WHEN count(paused) = 1 THEN ', paused' ELSE '' END
		FROM msgq.queues WHERE name = 'q'
	$$;
	-- Queues that are there are used again: to make them takes long.
	CREATE PROCEDURE prepare_queues(max_deliveries int) LANGUAGE plpgsql AS $$
	BEGIN
		IF (SELECT count(*) FROM msgq.queues) = 3 THEN
			PERFORM msgq.purge(name), msgq.resume(name, 'all') FROM msgq.queues;
			PERFORM msgq.alter_queue('q',
				jsonb_build_object('max_deliveries', max_deliveries));
		ELSE
			PERFORM msgq.drop_queue(name, true) FROM msgq.queues
			ORDER BY name = 'q.dead';
			PERFORM msgq.create_queue('q', max_deliveries => max_deliveries);
			PERFORM msgq.create_queue('home', dead_letter_queue => '');
		END IF;
		-- Only while a message goes that way: q could not be dropped.
		PERFORM msgq.alter_queue('home', '{"dead_letter_queue": "q"}');
		PERFORM msgq.send('home', '"m"');
	END
	$$;
});

# A new dead letter of home in q, delivered once by a lease of that time.
# Returns its receipt, and the id that it had in home.
sub prepare
{
	my ($max_deliveries, $lease) = @_;
	my $row = $control->safe(
		qq{
		CALL prepare_queues($max_deliveries);
		SELECT id FROM msgq.receive('home') m
		WHERE msgq.reject('home', receipt) \\gset
		SELECT FROM msgq.alter_queue('home', '{"dead_letter_queue": ""}');
		SELECT :id, receipt FROM msgq.receive('q', 1, '$lease')
	});
	$row =~ s/^\n+//;
	return reverse split /\|/, $row;
}

sub statement
{
	my ($action, $receipt) = @_;
	my $call = $call{$action} =~ s/\breceipt\b/'$receipt'/r;

	return "SELECT CASE count(*) WHEN 1 THEN 'message' ELSE 'nothing' END
		FROM $call" if $call =~ /^msgq\.receive/;
	return "SELECT $call";
}

# What session 2 has got, as the page says it.
sub returned
{
	my $output = $two->wait;

	return $two->sqlstate if $two->sqlstate ne '';
	return { 't' => 'true', 'f' => 'false', '' => 'done' }->{$output}
	  // $output;
}

# Until session 2 has its result, or waits for session 1: does it?
sub waits
{
	my $blocked = "SELECT $one->{pid} = ANY (pg_blocking_pids($two->{pid}))";

	while (!$two->has_result)
	{
		return 'yes' if $control->safe($blocked) eq 't';
	}
	return 'no';
}

# "waits; returns; the message is"
sub outcome
{
	my ($first, $second, $end, $lease) = @_;
	$lease //= '0';
	my $is_last = grep { $_ eq 'dead-letter' } $first, $second;
	my ($receipt, $id) = prepare($is_last ? 1 : 10, $lease);

	$one->safe('BEGIN');
	$one->safe('SAVEPOINT a') if $end eq 'ROLLBACK TO a';
	$one->safe(statement($first, $receipt));
	$two->send(statement($second, $receipt));
	my $waits = waits();
	$one->safe($end);
	my $returned = returned();
	my $outcome =
	  $control->safe("SELECT where_is($id) || state_of_q()");
	$one->safe('COMMIT') if $end eq 'ROLLBACK TO a';
	return "$waits; $returned; $outcome";
}

# ---------------------------------------------------------------------------
# All pairs
# ---------------------------------------------------------------------------

foreach my $pair (@pairs)
{
	foreach my $end ('COMMIT', 'ROLLBACK', 'ROLLBACK TO a')
	{
		# A sequence that was used stays locked to the end.
		next if $end eq 'ROLLBACK TO a' && $pair->{second} =~ /^drop/;
		is( outcome($pair->{first}, $pair->{second}, $end),
			"$pair->{waits}; $pair->{$end =~ s/ TO a//r}",
			"$pair->{first} and $end, $pair->{second}");
	}
}

# The same while the lease runs, where that makes no difference.
my %passes_by = map { $_ => 1 } qw(expire dead-letter redrive);

foreach my $pair (@pairs)
{
	next if grep { $passes_by{$_} } $pair->{first}, $pair->{second};
	my $expected =
	  "$pair->{waits}; $pair->{COMMIT}" =~ s/unchanged/in flight 1\/0/r;
	is(outcome($pair->{first}, $pair->{second}, 'COMMIT', '1 h'),
		$expected, "in flight: $pair->{first} and COMMIT, $pair->{second}");
}

# Where it does.
foreach my $action (sort keys %passes_by)
{
	my $nothing = $action eq 'redrive' ? '0' : 'nothing';
	is( outcome($action, $action, 'COMMIT', '1 h'),
		"no; $nothing; in flight 1/0",
		"in flight: $action does nothing");
}

# At a higher isolation level, where those who change the message or the queue
# by SQL must not meet what was changed after their snapshot.
my %alone = map { ($_->{first} => $_->{COMMIT} =~ s/.*; |, paused//gr) }
  grep { $_->{second} eq 'pause' } @pairs;

sub cannot_serialize
{
	my ($pair) = @_;

	return $pair->{waits} eq 'yes' && $pair->{first} !~ /^drop/
	  && $pair->{second} eq 'purge';
}

$_->safe("SET default_transaction_isolation = 'repeatable read'")
  foreach $one, $two;
foreach my $pair (@pairs)
{
	my $expected = "$pair->{waits}; $pair->{COMMIT}";

	$expected = "yes; 40001; $alone{$pair->{first}}"
	  if cannot_serialize($pair);
	is(outcome($pair->{first}, $pair->{second}, 'COMMIT'),
		$expected,
		"repeatable read: $pair->{first} and COMMIT, $pair->{second}");
}

$_->quit foreach $control, $one, $two;
unlike(slurp_file($node->logfile), qr/deadlock detected/, 'no deadlock');
check_indexes($node);
$node->stop;

done_testing();
