# Requests and their replies, with real waiting; and what they leave behind.
#
# Catches: a caller that sleeps though his reply was committed; replies that get
# mixed up between many callers; a snapshot held while waiting; and each of the
# ends that a request can have being another than docs/topics.md says: caller
# cancelled, caller killed, worker killed, reply late, queue dropped.  And
# replies that pile up.
#
# With a msgq.poll_interval of an hour, nothing is found by looking now and then.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $node = new_node(
	'requests',
	"msgq.poll_interval = '1h'",
	'max_connections = 100',
	'max_prepared_transactions = 5');

$node->safe_psql(
	'postgres', q{
	SELECT msgq.create_queue('q', visibility_timeout => '1 h');
	SELECT msgq.create_queue('short', visibility_timeout => '1 s');
	CREATE TABLE control (stop boolean);
	INSERT INTO control VALUES (false);
	CREATE TABLE answered (caller int, n int, reply jsonb);
});
my $is_shared = $node->safe_psql('postgres',
	"SELECT detail NOT LIKE 'none%' FROM msgq.health()
	WHERE check_name = 'shared_memory'") eq 't';
my $caller = session($node);
my $worker = session($node);
my $other = session($node);

sub late_replies
{
	my ($queue) = @_;
	return $node->safe_psql('postgres',
		"SELECT late_replies_total FROM msgq.queue_stats WHERE queue = '$queue'");
}

sub replies
{
	return $node->safe_psql('postgres',
		'SELECT (SELECT count(*) FROM msgq.reply_1) + (SELECT count(*) FROM msgq.reply_2)');
}

# Until the caller sleeps.
sub sleeps
{
	my ($session) = @_;
	my $pid = $session->pid;

	$node->poll_query_until('postgres',
		"SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $pid")
	  or die "process $pid does not wait";
	return;
}

sub receipt
{
	my ($session, $queue) = @_;
	return $session->safe("SELECT receipt FROM msgq.receive('$queue')");
}

# ---------------------------------------------------------------------------
# One caller
# ---------------------------------------------------------------------------

$caller->send(q{CALL msgq.request('q', '{"question": 1}', '60 s')});
sleeps($caller);
is( $node->safe_psql(
		'postgres',
		'SELECT backend_xmin IS NULL AND backend_xid IS NULL FROM pg_stat_activity WHERE pid = '
		  . $caller->pid),
	't',
	'a caller that waits holds no snapshot');
is( $worker->safe(
		q{SELECT expires_at > now() + '50 s' AND expires_at < now() + '61 s',
			headers->'msgq-reply-to'->>'deadline' IS NOT NULL FROM msgq.peek('q')}),
	't|t',
	'the request expires at the deadline');
my $receipt = receipt($worker, 'q');
my $begun = time;
$worker->safe(qq{BEGIN; SELECT msgq.reply('q', '$receipt', '"undone"'); ROLLBACK});
ok(!$caller->has_result, 'a reply that is rolled back does not arrive');
is($worker->safe(qq{SELECT msgq.reply('q', '$receipt', '{"answer": 1}')}),
	't', 'a reply');
is($caller->wait, '{"answer": 1}', 'it arrives');
cmp_ok(time - $begun, '<', 20, 'soon');
is($worker->safe(qq{SELECT msgq.reply('q', '$receipt', '2')}),
	'f', 'a second one has no effect');
is(replies(), 0, 'it is taken');

# A prepared reply: its commit tells nobody, so the caller looks by himself.
$caller->safe("SET msgq.poll_interval = '100ms'");
$caller->send(q{CALL msgq.request('q', '2', '60 s')});
sleeps($caller);
$receipt = receipt($worker, 'q');
$worker->safe(
	qq{BEGIN; SELECT msgq.reply('q', '$receipt', '"prepared"'); PREPARE TRANSACTION 'reply'});
usleep(300_000);
ok(!$caller->has_result, 'a prepared reply has not come yet');
$worker->safe("COMMIT PREPARED 'reply'");
is($caller->wait, '"prepared"', 'it comes when it is committed');
$caller->safe('RESET msgq.poll_interval');

# What the caller does afterwards is his own: it waits for the disk, and undoes
# no reply.
$caller->safe(
	q{CREATE PROCEDURE ask(INOUT answer text) LANGUAGE plpgsql AS $$
	DECLARE
		reply jsonb;
	BEGIN
		CALL msgq.request('q', '"procedure"', '60 s', reply);
		answer := reply::text || current_setting('synchronous_commit');
		ROLLBACK;
	END $$});
$caller->send('CALL ask(NULL)');
sleeps($caller);
$receipt = receipt($worker, 'q');
$worker->safe(qq{SELECT msgq.reply('q', '$receipt', '1')});
is($caller->wait, '1on', 'a procedure that asks commits as it is set to');
is(replies(), 0, 'and the reply is taken though it is rolled back');

# ---------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------

sub raises
{
	my ($session, $sql, $state, $name) = @_;
	is($session->fails($sql), $state, $name);
	return;
}

raises($caller, q{BEGIN; CALL msgq.request('q', '1', '1 s')}, '25001',
	'not in a transaction block');
$caller->safe('ROLLBACK');
raises($caller, q{CALL msgq.request('none', '1', '1 s')}, '42704', 'no such queue');
raises($caller, q{CALL msgq.request(NULL, '1', '1 s')}, '22004', 'no queue');
raises($caller, q{CALL msgq.request('q', NULL, '1 s')}, '22004', 'no body');
raises($caller, q{CALL msgq.request('q', '1', NULL)}, '22004', 'no timeout');
raises($caller, q{CALL msgq.request('q', '1', '-1 s')}, '22023', 'a negative timeout');
raises($caller, q{CALL msgq.request('q', '1', '61 min')}, '22023', 'a long timeout');
$worker->safe(q{SELECT msgq.send('q', '"no request"')});
$receipt = receipt($worker, 'q');
raises($worker, qq{SELECT msgq.reply('q', '$receipt', '1')}, '22023',
	'a reply to what is no request');
is($worker->safe(qq{SELECT msgq.ack('q', '$receipt')}), 't', 'which is still there');
is($node->safe_psql('postgres', q{SELECT count(*) FROM msgq.peek('q')}),
	0, 'nothing was left');

# ---------------------------------------------------------------------------
# How it can end
# ---------------------------------------------------------------------------

# Nobody replies.
$begun = time;
raises($caller, q{CALL msgq.request('q', '3', '0.5 s')}, 'MQ009', 'a timeout');
cmp_ok(time - $begun, '>=', 0.5, 'not before its time');
is($worker->safe(q{SELECT count(*) FROM msgq.receive('q')}),
	0, 'no worker gets the request then');

# A worker replies too late, by his clock.
my $late = late_replies('q');
$caller->send(q{CALL msgq.request('q', '4', '60 s')});
sleeps($caller);
$receipt = receipt($worker, 'q');
$worker->safe(q{SET msgq.test_clock_offset = '2 min'});
is($worker->safe(qq{SELECT msgq.reply('q', '$receipt', '"late"')}),
	'f', 'a late reply');
$worker->safe('RESET msgq.test_clock_offset');
is($worker->safe(q{SELECT count(*) FROM msgq.peek('q')}), 0, 'removes the message');
is(replies(), 0, 'and is not stored');
is(late_replies('q'), $late + 1, 'it is counted') if $is_shared;

# The caller is cancelled.
sub cancel
{
	my ($session) = @_;
	$node->safe_psql('postgres', 'SELECT pg_cancel_backend(' . $session->pid . ')');
	$session->wait;
	is($session->sqlstate, '57014', 'a caller is cancelled');
	return;
}
cancel($caller);
$caller->send(q{CALL msgq.request('q', '5', '60 s')});
sleeps($caller);
cancel($caller);
$receipt = receipt($worker, 'q');
is($worker->safe(qq{SELECT msgq.reply('q', '$receipt', '"for nobody"')}),
	't', 'a worker replies to one who was cancelled');
is($node->safe_psql('postgres', q{SELECT msgq.maintain()->'failed'}), 0, 'maintenance');
is(replies(), 1, 'his reply waits for him');
$worker->safe(q{SET msgq.test_clock_offset = '2 min'});
is($worker->safe(q{SELECT msgq.maintain()->'failed'}), 0, 'maintenance later');
$worker->safe('RESET msgq.test_clock_offset');
is(replies(), 0, 'until the deadline');
is(late_replies('q'), $late + 2, 'and counts as late') if $is_shared;

# The worker is terminated: another one gets the request, in time.
$caller->send(q{CALL msgq.request('short', '6', '60 s')});
sleeps($caller);
my $victim = session($node);
$receipt = receipt($victim, 'short');
$victim->safe(qq{BEGIN; SELECT msgq.reply('short', '$receipt', '"of the dead"')});
$node->safe_psql('postgres', 'SELECT pg_terminate_backend(' . $victim->pid . ')');
$receipt = $worker->safe(q{SELECT receipt FROM msgq.receive('short', wait => '30 s')});
is($worker->safe(qq{SELECT msgq.reply('short', '$receipt', '"of the living"')}),
	't', 'another worker replies');
is($caller->wait, '"of the living"', 'to the same caller');

# The queue is dropped meanwhile.
$caller->send(q{CALL msgq.request('short', '7', '4 s')});
sleeps($caller);
$node->safe_psql('postgres', q{SELECT msgq.drop_queue('short')});
$caller->wait;
is($caller->sqlstate, 'MQ009', 'a timeout, whatever became of the queue');

# ---------------------------------------------------------------------------
# Many callers
# ---------------------------------------------------------------------------

my $callers = 50;
my $requests = 20;
my $call_file = text_file(
	join '',
	map {
		    "CALL msgq.request('q', jsonb_build_object('caller', :caller, 'n', $_), '120 s') \\gset\n"
		  . "INSERT INTO answered VALUES (:caller, $_, :'reply');\n"
	} 1 .. $requests);
my $work_file = text_file(
	join '',
	map {
		qq{SELECT msgq.reply('q', receipt, body || '{"answer": true}')
		FROM msgq.receive('q', 10, wait => '1 s');
		SELECT stop FROM control \\gset
		\\if :stop
		\\q
		\\endif
		}
	} 1 .. 2000);
my @workers = map {
	run_psql($node, file => $work_file, output => '/dev/null', variables => {})
} 1 .. 4;
my @callers = map {
	run_psql(
		$node,
		file => $call_file,
		output => '/dev/null',
		variables => { caller => $_ })
} 1 .. $callers;
ok(finish(@callers), "$callers callers end well");
$node->safe_psql('postgres', 'UPDATE control SET stop = true');
ok(finish(@workers), 'the workers end well');
is( $node->safe_psql(
		'postgres', q{
		SELECT count(*), count(DISTINCT (caller, n)), bool_and(
			reply = jsonb_build_object('caller', caller, 'n', n, 'answer', true))
		FROM answered}),
	"@{[ $callers * $requests ]}|@{[ $callers * $requests ]}|t",
	'each got the replies to his own requests');
is(replies(), 0, 'no reply is left');

# ---------------------------------------------------------------------------
# The tables take turns
# ---------------------------------------------------------------------------

# A reply goes to reply_2, and arrives.
sub is_in_second_table
{
	my ($body, $name) = @_;
	$caller->send(qq{CALL msgq.request('q', '$body', '60 s')});
	sleeps($caller);
	my $held = receipt($worker, 'q');
	$worker->safe(qq{BEGIN; SELECT msgq.reply('q', '$held', '$body')});
	is($worker->safe('SELECT count(*) FROM msgq.reply_2'), 1, $name);
	$worker->safe('COMMIT');
	is($caller->wait, $body, 'and is found there');
	return;
}

# Large replies are elsewhere, and count.
$node->safe_psql(
	'postgres', q{
	INSERT INTO msgq.reply_1 SELECT gen_random_uuid(), 0, clock_timestamp() + '1 h',
		(SELECT jsonb_agg(gen_random_uuid()) FROM generate_series(1, 30000 + 0 * i))
	FROM generate_series(1, 10) AS i});
is_in_second_table('7', 'when large replies fill one table, one goes to the other');

# One that somebody is just taking is in nobody's way.  (By the clock of this
# session they are old, and not by the worker's.)
$other->safe('BEGIN; SELECT FROM msgq.reply_1 LIMIT 1 FOR UPDATE');
$worker->safe(q{SET msgq.test_clock_offset = '2 h'});
is($worker->safe(q{SELECT msgq.maintain()->'failed'}), 0, 'maintenance');
is($node->safe_psql('postgres', 'SELECT count(*) FROM msgq.reply_1'), 1,
	'removes what is old, but what is held');
$other->safe('COMMIT');
is($worker->safe(q{SELECT msgq.maintain()->'failed'}), 0, 'maintenance again');
is(replies(), 0, 'removes the rest');
$worker->safe('RESET msgq.test_clock_offset');
$node->poll_query_until('postgres',
	q{SELECT msgq.maintain() IS NOT NULL AND pg_relation_size('msgq.reply_1')
		+ pg_relation_size('msgq.reply_2') = 0})
  or die 'replies are not removed';

$node->safe_psql(
	'postgres', q{
	INSERT INTO msgq.reply_1 SELECT gen_random_uuid(), 0, clock_timestamp() + '1 h',
		(SELECT jsonb_agg(gen_random_uuid()) FROM generate_series(1, 30 + 0 * i))
	FROM generate_series(1, 8000) AS i});
is_in_second_table('8', 'when many fill it, one goes to the other');
$node->safe_psql('postgres', 'SELECT msgq.maintain()');
is($node->safe_psql('postgres', 'SELECT count(*) FROM msgq.reply_1'),
	8000, 'what somebody may wait for is kept');
$node->safe_psql('postgres',
	"UPDATE msgq.reply_1 SET deadline = clock_timestamp() - interval '1 s'");
$node->poll_query_until('postgres',
	q{SELECT msgq.maintain() IS NOT NULL AND pg_relation_size('msgq.reply_1') = 0});
is( $node->safe_psql(
		'postgres', q{SELECT pg_relation_size('msgq.reply_1')}),
	0,
	'and the table is emptied when its time is over');
$node->poll_query_until('postgres',
	q{SELECT msgq.maintain() IS NOT NULL AND pg_relation_size('msgq.reply_2') = 0});
is( $node->safe_psql(
		'postgres', q{SELECT pg_relation_size('msgq.reply_2')}),
	0,
	'then the other one, which takes no more');

$node->stop;
done_testing();
