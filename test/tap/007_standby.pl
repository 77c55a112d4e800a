# A streaming standby, and its promotion.
#
# Catches: reading functions that write, writing functions that fail on a
# standby with anything but 25006, or do something there, and messages, leases
# or counts that a promotion loses; also for a session that was connected to
# the standby all the time.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(
	allows_streaming => 1,
	extra => [ '--locale=C', '--encoding=UTF8' ]);
$primary->append_conf('postgresql.conf',
	"log_statement = none\nmax_connections = 20\n");
$primary->start;
$primary->safe_psql(
	'postgres', q{
	CREATE EXTENSION msgq;
	CREATE ROLE worker LOGIN;
	SELECT msgq.create_queue('q', visibility_timeout => '1 h');
	SELECT msgq.create_queue('nothing');
	SELECT msgq.grant('q', 'worker', 'receive');
	SELECT msgq.grant('q', 'worker', 'peek');
	CREATE TABLE receipts (id bigint, receipt uuid);
});
$primary->backup('backup');

my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;

# 20 messages: one acked, three leased, one delayed, one whose lease has
# ended.  The leases are asynchronous, unless something is written with them.
$primary->safe_psql(
	'postgres', q{
	SELECT msgq.send('q', to_jsonb(g)) FROM generate_series(1, 18) g;
	SELECT msgq.send_bytes('q', 'bytes');
	SELECT msgq.send('q', '"delayed"', delay => '5 h');
	SELECT msgq.ack('q', receipt) FROM msgq.receive('q');
	INSERT INTO receipts SELECT id, receipt FROM msgq.receive('q', 3);
	SELECT msgq.receive('q', 1, '0');
	SELECT msgq.create_topic('t');
	SELECT msgq.bind('t', 'q', 'a.#');
	SELECT msgq.inbox_claim('c', 'claimed');
	CREATE TABLE last_write ();
});
my $id = $primary->safe_psql('postgres',
	"SELECT id FROM msgq.queues WHERE name = 'q'");
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));

my @reads = (
	q{SELECT * FROM msgq.peek('q', 100)},
	q{SELECT * FROM msgq.peek('q', 5, 7)},
	q{SELECT * FROM msgq.queues ORDER BY name},
	q{SELECT queue, ready, delayed, in_flight, segments
		FROM msgq.queue_stats ORDER BY queue},
	q{SELECT * FROM msgq.leases ORDER BY queue, id},
	q{SELECT msgq.why_empty('q') IS NULL, msgq.why_empty('nothing')},
	q{SELECT * FROM msgq.topics},
	q{SELECT * FROM msgq.bindings},
	q{SELECT * FROM msgq.route('t', 'a.b')},
	q{SELECT * FROM msgq.inbox},
	qq{SELECT * FROM msgq.q$id ORDER BY id});

my $session = session($standby);

sub same_reads
{
	my ($when) = @_;

	foreach my $sql (@reads)
	{
		my $expected = $primary->safe_psql('postgres', $sql);
		is($session->safe($sql), $expected, "$when: $sql");
		isnt($expected, '', 'which is something');
	}
	return;
}
same_reads('standby');
is($session->safe(q{SELECT msgq.why_empty('nothing')}),
	'empty', 'why_empty on the standby');
is( $session->safe(
		q{SELECT ready, delayed, in_flight FROM msgq.queue_stats
		WHERE queue = 'q'}),
	'15|1|3',
	'queue_stats on the standby');
is($session->fails(q{SELECT * FROM msgq.peek('no such queue')}),
	'42704', 'other errors are what they are');

my $receipt = $session->safe('SELECT receipt FROM receipts LIMIT 1');
my @writes = (
	q{SELECT msgq.send('q', '1')},
	q{SELECT msgq.send_bytes('q', 'x')},
	q{SELECT msgq.send_batch('q', '{1,2}')},
	q{SELECT msgq.send_bytes_batch('q', '{a,b}')},
	q{SELECT * FROM msgq.send_messages('q', '[{"body": 1}]')},
	q{SELECT * FROM msgq.receive('q')},
	q{SELECT * FROM msgq.receive('nothing')},
	q{SELECT * FROM msgq.pop('q')},
	qq{SELECT msgq.ack('q', '$receipt')},
	qq{SELECT msgq.ack_batch('q', '{$receipt}')},
	qq{SELECT msgq.nack('q', '$receipt')},
	qq{SELECT msgq.nack_batch('q', '{$receipt}')},
	qq{SELECT msgq.extend('q', '$receipt', '1 h')},
	qq{SELECT msgq.extend_batch('q', '{$receipt}', '1 h')},
	qq{SELECT msgq.release('q', '$receipt')},
	qq{SELECT msgq.release_batch('q', '{$receipt}')},
	q{SELECT msgq.cancel('q', 10)},
	q{SELECT msgq.expire_lease('q', 2)},
	q{SELECT msgq.purge('q')},
	q{SELECT msgq.create_queue('new')},
	q{SELECT msgq.alter_queue('q', '{"visibility_timeout": "1 min"}')},
	q{SELECT msgq.rename_queue('q', 'r')},
	q{SELECT msgq.drop_queue('q')},
	q{SELECT msgq.create_topic('new')},
	q{SELECT msgq.alter_topic('t', '{"retain": false}')},
	q{SELECT msgq.drop_topic('t')},
	q{SELECT msgq.bind('t', 'q')},
	q{SELECT msgq.unbind('t', 'q', 'a.#')},
	q{SELECT msgq.publish('t', 'a', '1')},
	q{SELECT msgq.publish('t', 'b', '1')},
	q{SELECT msgq.publish_bytes('t', 'a', '1')},
	qq{SELECT msgq.reply('q', '$receipt', '1')},
	q{SELECT msgq.inbox_claim('c', 'claimed')},
	q{SELECT msgq.grant('t', 'worker', 'send')},
	q{SELECT msgq.grant('q', 'worker', 'send')},
	q{SELECT msgq.revoke('q', 'worker', 'receive')});

foreach my $sql (@writes)
{
	is($session->fails($sql), '25006', "standby: $sql");
}
same_reads('after that');

# The same answer to a read-only transaction on the primary.
my $reader = session($primary);
foreach my $sql (@writes)
{
	$reader->safe('BEGIN READ ONLY');
	is($reader->fails($sql), '25006', "read-only: $sql");
	$reader->safe('ROLLBACK');
}
$reader->safe('BEGIN READ ONLY');
is( $reader->safe($reads[0]),
	$session->safe($reads[0]),
	'read-only: peek works');
$reader->safe('ROLLBACK');
$reader->quit;

# Every message that this session will get has been there before.
$primary->stop;
my $rows = $session->safe($reads[-1]);
$standby->promote;
is($session->safe('SELECT pg_is_in_recovery()'), 'f', 'promoted');
is($session->safe($reads[-1]), $rows, 'nothing has changed');

is( $session->safe(
		q{SELECT count(*) FROM receipts WHERE msgq.ack('q', receipt)}),
	'3',
	'leases of before are settled by their receipts');
is($session->safe(q{SELECT body, deliveries, failures FROM msgq.pop('q')}),
	'5|2|1', 'an ended lease comes first, and was counted');
like($session->safe(q{SELECT msgq.send('q', '"new"')}),
	qr/^\d+$/, 'sending works');
is( $session->safe(
		q{WITH r AS MATERIALIZED (SELECT * FROM msgq.receive('q', 100))
		SELECT count(*), count(*) FILTER (WHERE msgq.ack('q', receipt)),
			string_agg(coalesce(body::text, encode(data, 'escape')), ' '
				ORDER BY id)
		FROM r}),
	'15|15|' . join(' ', 6 .. 18, 'bytes', '"new"'),
	'every message is there');
is($session->safe(q{SELECT msgq.why_empty('q')}),
	'delayed', 'but for the delayed one');
is($session->fails(q{SELECT msgq.create_queue('new')}),
	'', 'queues can be made');
$session->quit;

my $worker = session($standby, user => 'worker');
$worker->safe(q{SELECT * FROM msgq.receive('q')});
is($worker->fails(q{SELECT msgq.send('q', '1')}),
	'42501', 'rights are as before');
$worker->quit;

# Its WAL says the same as its memory did.
my $before = $standby->safe_psql('postgres', $reads[-1]);
kill_all($standby);
start_again($standby);
is($standby->safe_psql('postgres', $reads[-1]),
	$before, 'the same after a crash');
check_indexes($standby);
$standby->stop;

done_testing();
