# Many consumers claim the same messages, while the worker turns the inbox, moves
# claims and empties tables, and a snapshot is held.
#
# Catches: a message that two consumers got, at any isolation level; one that
# nobody got; claims that are lost when they are moved; and tables that are not
# emptied because of the snapshot.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node(
	'inbox',
	"msgq.segment_size = '256kB'",
	"msgq.worker_interval = '50ms'",
	'max_prepared_transactions = 10');
my $session = session($node);
my $holder = session($node);

# Of so many messages each has its effect once.
my $messages = 3000;

$session->safe('CREATE TABLE effect (id text PRIMARY KEY)');
$holder->safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM effect');

sub start_load
{
	my ($isolation) = @_;
	my $deal = "\\set id random(1, $messages)\nBEGIN;\nSELECT FROM pg_class LIMIT 1;\n"
	  . "INSERT INTO effect SELECT ':id' WHERE msgq.inbox_claim('c', ':id', '1 h');\n";

	return load(
		$node,
		clients => 4,
		seconds => 60,
		isolation => $isolation,
		scripts => {
			"${deal}COMMIT;" => 4,
			"${deal}ROLLBACK;" => 1,
			# What is claimed again, and what is not: both are soon over.
			qq{SELECT msgq.inbox_claim('short', gen_random_uuid()::text, '100 ms');}
			  => 8,
			qq{\\set id random(1, 20)
			SELECT msgq.inbox_claim('again', ':id', '1 ms');} => 1
		});
}

sub emptied
{
	return $session->safe('SELECT coalesce((SELECT emptied FROM msgq.inbox_state), 0)');
}

my @loads = map { start_load($_) } ('read committed', 'repeatable read', 'serializable');

# Tables are emptied although a snapshot is held.
foreach (1 .. 600)
{
	last if emptied() >= 10
	  && $session->safe('SELECT count(*) FROM effect') >= 0.9 * $messages;
	select(undef, undef, undef, 0.1);
}
cmp_ok(emptied(), '>=', 10, 'tables were emptied again and again');
stop_load(@loads);
foreach my $load (@loads)
{
	unlike($load->{output}, qr/ERROR|aborted/, 'nobody got an error');
}

is( $session->safe(
		q{SELECT count(*) FROM effect FULL JOIN
			(SELECT message_id AS id FROM msgq.inbox WHERE consumer = 'c') AS claimed USING (id)
		WHERE effect.id IS NULL OR claimed.id IS NULL}),
	'0',
	'what was claimed had its effect, and what had its effect is claimed');
is( $session->safe(
		q{SELECT count(*) FROM effect WHERE msgq.inbox_claim('c', id)}),
	'0',
	'none of it can be claimed again');
$session->safe(
	"INSERT INTO effect SELECT id FROM (SELECT i::text AS id FROM generate_series(1, $messages) AS i) AS m
	WHERE msgq.inbox_claim('c', id)");
is($session->safe('SELECT count(*) FROM effect'),
	$messages, 'each message has its effect');

# The held snapshot sees no claims, or says that it cannot.
like($holder->fails('SELECT count(*) FROM msgq.inbox'),
	qr/^40001$/, 'a snapshot of before is refused');
$holder->safe('ROLLBACK');
is($session->safe(q{SELECT count(*) FROM msgq.inbox WHERE consumer = 'c'}),
	$messages, 'a new one sees all claims');

$_->quit foreach $session, $holder;
$node->stop;

done_testing();
