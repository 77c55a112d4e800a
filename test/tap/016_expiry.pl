# What nobody meets any more is given up by the worker: messages that expire,
# and those whose last lease runs out, in a database that nobody uses and that
# its worker has left.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use Test::More;
use Time::HiRes qw(usleep);

plan skip_all => 'there is no launcher' unless is_preloaded();

my $node = new_node('expiry', 'msgq.worker = on',
	"msgq.worker_interval = '100ms'");
my $session = session($node);
$session->safe(
	q{SELECT msgq.create_queue('q', max_deliveries => 1);
	SELECT msgq.create_queue('none', dead_letter_queue => '')});
my %id = map { split /\|/ }
  split /\n/, $session->safe('SELECT name, id FROM msgq.queues');

# Plain SQL, which no worker hears of.
my $dead = "SELECT body, headers->'msgq-death'->0->>'reason'
	FROM msgq.q$id{'q.dead'} ORDER BY body";
my $workers = "SELECT count(*) FROM pg_stat_activity
	WHERE backend_type = 'msgq worker' AND datname = current_database()";

sub becomes
{
	my ($sql, $wanted, $name) = @_;
	my $got = '';
	for (1 .. 300)
	{
		$got = $session->safe($sql);
		last if $got eq $wanted;
		usleep(100_000);
	}
	is($got, $wanted, $name);
	return;
}

$session->safe(
	q{SELECT msgq.send('q', '"last lease"');
	SELECT count(*) FROM msgq.receive('q', visibility_timeout => '6 s');
	SELECT msgq.send('q', '"ttl"', ttl => '7 s');
	SELECT msgq.send('q', '"stays"', ttl => '1 h');
	SELECT msgq.send('none', '"ttl"', ttl => '6 s')});
is($session->safe($dead), '', 'all are there');
becomes($workers, '0', 'the worker leaves');
is($session->safe($dead), '', 'and has given up nothing');
becomes($dead, "\"last lease\"|max_deliveries\n\"ttl\"|expired",
	'one comes back when there is something to be given up');
becomes("SELECT count(*) FROM msgq.q$id{none}", '0',
	'without a dead-letter queue too');
becomes($workers, '0', 'it leaves again');
usleep(3_000_000);
is($session->safe($workers), '0', 'and stays away');
is($session->safe("SELECT body FROM msgq.q$id{q}"),
	'"stays"', 'the others are there');

$session->quit;
$node->stop;
done_testing();
