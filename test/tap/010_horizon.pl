# A sender that has its ids, but not yet its rows in the index.
#
# Catches: a receiver that passes such ids, because it has seen higher ones,
# and never gets these messages.
#
# A sender can be stopped at that point: a batch takes its ids and stores its
# rows, and then enters one row after the other into the indexes; a unique
# index of the user's makes it wait at the first row for another transaction
# with the same value.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('horizon');
$node->safe_psql('postgres',
	"SELECT msgq.create_queue('q', visibility_timeout => '1 h')");
my $id =
  $node->safe_psql('postgres', "SELECT id FROM msgq.queues WHERE name = 'q'");
$node->safe_psql('postgres',
	"CREATE UNIQUE INDEX i ON msgq.q${id}_1 ((body->>'k'))");

my ($blocker, $sender, $other) = map { session($node) } 1 .. 3;
my %receivers = map { $_ => session($node) }
  ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE');

sub received
{
	my ($level) = @_;
	return $receivers{$level}->safe(
		"BEGIN ISOLATION LEVEL $level;
		SELECT string_agg(body->>'k', ' ' ORDER BY id)
		FROM msgq.receive('q', 100);
		COMMIT");
}

# Sends one message with this key.
sub send_key
{
	my ($session, $key) = @_;
	$session->safe(qq{SELECT msgq.send('q', '{"k": "$key"}')});
	return;
}

my $round = 0;

foreach my $outcome ('COMMIT', 'ROLLBACK')
{
	foreach my $level (sort keys %receivers)
	{
		my $n = ++$round;
		my $name = "$level, $outcome";

		$blocker->safe('BEGIN');
		send_key($blocker, "${n}a");
		$sender->safe('BEGIN');
		$sender->send(
			qq{SELECT cardinality(msgq.send_batch('q',
				'{"{\\"k\\": \\"${n}a\\"}", "{\\"k\\": \\"${n}b\\"}",
				"{\\"k\\": \\"${n}c\\"}"}'))});
		wait_for_lock($node, $sender->pid);

		# Higher ids, before the sender's are in the index, and after that.
		foreach my $later ('d', 'e')
		{
			send_key($other, "$n$later");
			is(received($level), "$n$later",
				"$name: a later message is not held up");
			is(received($level), '', "$name: and nothing else comes");
		}
		$blocker->safe('ROLLBACK');
		is($sender->wait, '3', "$name: the sender has sent");
		send_key($other, "${n}f");
		is(received($level), "${n}f", "$name: still a later message");
		is(received($level), '', "$name: and nothing else");
		$sender->safe($outcome);
		is( received($level),
			$outcome eq 'COMMIT' ? "${n}a ${n}b ${n}c" : '',
			"$name: then what was sent comes, if it was");

		# The others have not polled meanwhile.
		foreach my $other_level (sort keys %receivers)
		{
			is(received($other_level), '', "$name: nothing comes twice");
		}
	}
}

# The same with an error at that point, and a sender that goes on: what it has
# sent before comes, ids that it took for nothing are forgotten.
$blocker->safe('BEGIN');
send_key($blocker, 'x');
$sender->safe('BEGIN');
send_key($sender, 'y');
$sender->safe('SAVEPOINT a');
$sender->send(
	q{SELECT msgq.send_batch('q', '{"{\"k\": \"x\"}", "{\"k\": \"z\"}"}')});
wait_for_lock($node, $sender->pid);
is(received($_), '', "$_: nothing yet") foreach sort keys %receivers;
$blocker->safe('COMMIT');
$sender->wait;
is($sender->sqlstate, '23505', 'the batch fails');
is(received('READ COMMITTED'), 'x', 'the other message comes');
$sender->safe('ROLLBACK TO a');
send_key($sender, 'z');
is(received($_), '', "$_: nothing more yet") foreach sort keys %receivers;
$sender->safe('COMMIT');
is(received('REPEATABLE READ'), 'y z', 'what was sent around it comes');
is(received($_), '', "$_: nothing twice") foreach sort keys %receivers;

$_->quit foreach $blocker, $sender, $other, values %receivers;
$node->stop;

done_testing();
