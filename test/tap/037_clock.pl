# The server's clock is set: an hour forward, and back again.
#
# Catches: somebody who waits until a time that does not come for an hour, be it a
# consumer, the worker, or who gives positions in streams; and messages, leases and
# delays that are other than docs/operations.md says.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib", "$FindBin::RealBin/../chaos/lib";

use Clock;
use MsgqTest;
use Test::More;
use Time::HiRes qw(time usleep);

# On a busy machine; an hour is more.
my $soon = 60;

Clock::reset();
my $node = new_node('clock', { environment => Clock::environment() });
$node->safe_psql('postgres', q{
	SELECT msgq.create_queue('q', visibility_timeout => '30 s');
	SELECT msgq.create_queue('empty');
	SELECT msgq.create_queue('fired');
	SELECT msgq.create_stream('s');
	SELECT msgq.create_group('s', 'g', 'first');
	SELECT msgq.create_stream('still');
	SELECT msgq.create_group('still', 'g', 'first');
	SELECT msgq.create_queue('asked');
});
my $session = session($node);
my $other = session($node);

# The bodies of what can be received now.
sub received
{
	return $session->safe(q{SELECT string_agg(body #>> '{}', ' ' ORDER BY id)
		FROM msgq.receive('q', 100)});
}

is($session->safe(q{SELECT extract(epoch FROM clock_timestamp())::bigint}) - int(time) < 60,
	1, 'at first the clock is right');

# ---------------------------------------------------------------------------
# Forward
# ---------------------------------------------------------------------------

my $receipt = $session->safe(q{SELECT msgq.send('q', '"leased"');
	SELECT receipt FROM msgq.receive('q')}) =~ s/.*\n//r;
$session->safe(q{SELECT msgq.send('q', '"delayed"', delay => '10 min')});
$other->send(q{SELECT body FROM msgq.receive('q', wait => '10 min')});
usleep(300_000);
Clock::set(3600);
my $begun = time;
like($other->wait, qr/"(leased|delayed)"/, 'who waits gets what the clock makes due');
cmp_ok(time - $begun, '<', $soon, 'soon');
received();
is($session->fails("SELECT msgq.ack('q', '$receipt', strict => true)"),
	'MQ001', 'a lease has ended that was to last longer');
$session->safe(q{SELECT msgq.purge('q')});

# ---------------------------------------------------------------------------
# Back
# ---------------------------------------------------------------------------

$session->safe(q{
	SELECT msgq.send('q', '"leased"');
	SELECT FROM msgq.receive('q');
	SELECT msgq.send('q', '"retried"');
	SELECT msgq.nack('q', receipt, '1 min') FROM msgq.receive('q');
	SELECT msgq.send('q', '"delayed"', delay => '10 min');
	SELECT msgq.send('q', '"sent"');
	SELECT msgq.append('s', '1');
});
my $read = q{SELECT body FROM msgq.read('s', 'g', wait => '1 min')};
is($session->safe($read), '1', 'an entry gets its position');

# All kinds of waits are under way, and the workers are at work.
my %waits = (
	receive => q{SELECT count(*) FROM msgq.receive('empty', wait => '2 s')},
	read => q{SELECT count(*) FROM msgq.read('still', 'g', wait => '2 s')},
	wait => q{CALL msgq.wait('{empty}', '2 s', NULL)},
	request => q{CALL msgq.request('asked', '1', '2 s', NULL)});
my %waiting = map { $_ => session($node) } keys %waits;
$waiting{$_}->send($waits{$_}) foreach keys %waits;
usleep(500_000);
$session->safe(q{SELECT msgq.append('s', '0'); SELECT msgq.send('fired', '0')});
is($session->safe($read), '0', 'and the next one');
Clock::set(0);
$begun = time;

# Those at work in the background go on.
$session->safe(q{SELECT msgq.append('s', '2')});
is($session->safe($read), '2', 'entries get their positions');
$session->safe(q{SELECT msgq.purge('fired');
	SELECT msgq.schedule('often', '@every 1 s', 'fired', '"fired"')});
is($session->safe(q{SELECT body FROM msgq.receive('fired', wait => '1 min')}),
	'"fired"', 'schedules fire');

# And nobody waits any longer than he would have.
foreach my $kind (sort keys %waits)
{
	usleep(50_000) until $waiting{$kind}->has_result || time - $begun > $soon;
	ok($waiting{$kind}->has_result, "$kind does not wait any longer than it would have");
}
foreach my $kind (sort keys %waits)
{
	$other->query('SELECT pg_cancel_backend(' . $waiting{$kind}->pid . ')')
	  if !$waiting{$kind}->has_result;
	$waiting{$kind}->quit;
}

# What was to come later still does, by the clock.
is(received(), 'sent', 'what was sent while the clock was ahead can be had');
is( $session->safe(q{SELECT string_agg(body #>> '{}', ' ' ORDER BY id)
	FROM msgq.peek('q', 10) WHERE visible_at > clock_timestamp() + interval '50 min'}),
	'leased retried delayed',
	'leases and delays from then end by the time that was meant then');
$session->safe(q{SELECT msgq.expire_lease('q', id) FROM msgq.leases WHERE queue = 'q'
	AND visible_at > clock_timestamp() + interval '50 min'});
is(received(), 'leased', 'a lease can be ended');
Clock::set(3600 + 100);
is(received(), 'leased retried sent', 'when that time comes, they come');
Clock::set(3600 + 700);
is(received(), 'leased retried delayed sent', 'all of them');

check_log($node);
$_->quit foreach $session, $other;
$node->stop;

done_testing();
