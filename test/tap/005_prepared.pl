# PREPARE TRANSACTION of senders, receivers and settlers, the outcome at once,
# after a restart or after a crash.
#
# Catches: a message that a session never gets because it passed it while the
# sender, or the one who held it, was prepared; one that is handed out while a
# prepared transaction holds it; and an outcome that a restart turns round.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('prepared', 'max_prepared_transactions = 100');

# What a transaction does before it is prepared.  The messages 1 to 4 have been
# sent, unless the queue is empty; lease: they have been received with that
# visibility timeout, and {receipts} stands for the receipts.
#
# Then what a session gets after COMMIT PREPARED and after ROLLBACK PREPARED,
# as <body>/<deliveries>, and how many leases go on.
my @cases = (
	{
		name => 'sender',
		empty => 1,
		sql => q{
			SELECT msgq.send('q', '1');
			SELECT msgq.send_batch('q', '{2,3,4}');
		},
		commit => [ '1/1 2/1 3/1 4/1', 0 ],
		rollback => [ '', 0 ]
	},
	{
		name => 'sender with savepoints',
		empty => 1,
		sql => q{
			SELECT msgq.send('q', '1');
			SAVEPOINT a;
			SELECT msgq.send('q', '2');
			RELEASE a;
			SAVEPOINT b;
			SELECT msgq.send('q', '77');
			ROLLBACK TO b;
			SAVEPOINT c;
			SELECT msgq.send('q', '3');
		},
		commit => [ '1/1 2/1 3/1', 0 ],
		rollback => [ '', 0 ]
	},
	{
		name => 'sender of a delayed message',
		empty => 1,
		sql => q{SELECT msgq.send('q', '1', delay => '1 ms');},
		commit => [ '1/1', 0 ],
		rollback => [ '', 0 ]
	},
	{
		name => 'receiver',
		sql => q{SELECT id FROM msgq.receive('q', 4);},
		commit => [ '', 4 ],
		rollback => [ '1/1 2/1 3/1 4/1', 0 ]
	},
	{
		name => 'receiver whose leases have ended',
		sql => q{SELECT id FROM msgq.receive('q', 4, '0');},
		commit => [ '1/2 2/2 3/2 4/2', 0 ],
		rollback => [ '1/1 2/1 3/1 4/1', 0 ]
	},
	{
		name => 'receiver with savepoints',
		sql => q{
			SAVEPOINT a;
			SELECT id FROM msgq.receive('q', 2);
			RELEASE a;
			SAVEPOINT b;
			SELECT id FROM msgq.receive('q', 1);
			ROLLBACK TO b;
			SAVEPOINT c;
			SELECT id FROM msgq.receive('q', 2);
		},
		commit => [ '', 4 ],
		rollback => [ '1/1 2/1 3/1 4/1', 0 ]
	},
	{
		name => 'receiver of what was received before',
		lease => '0',
		sql => q{SELECT id FROM msgq.receive('q', 4);},
		commit => [ '', 4 ],
		rollback => [ '1/2 2/2 3/2 4/2', 0 ]
	},
	{
		name => 'sender and receiver',
		empty => 1,
		sql => q{
			SELECT msgq.send_batch('q', '{1,2}');
			SELECT id FROM msgq.receive('q');
		},
		commit => [ '2/1', 1 ],
		rollback => [ '', 0 ]
	},
	{
		name => 'popper',
		sql => q{SELECT id FROM msgq.pop('q', 4);},
		commit => [ '', 0 ],
		rollback => [ '1/1 2/1 3/1 4/1', 0 ]
	},
	{
		name => 'acker',
		lease => '0',
		sql => q{SELECT msgq.ack_batch('q', {receipts});},
		commit => [ '', 0 ],
		rollback => [ '1/2 2/2 3/2 4/2', 0 ]
	},
	{
		name => 'nacker',
		lease => '1 h',
		sql => q{SELECT msgq.nack_batch('q', {receipts}, '0');},
		commit => [ '1/2 2/2 3/2 4/2', 0 ],
		rollback => [ '', 4 ]
	},
	{
		name => 'releaser',
		lease => '0',
		sql => q{SELECT msgq.release_batch('q', {receipts});},
		commit => [ '1/2 2/2 3/2 4/2', 0 ],
		rollback => [ '1/2 2/2 3/2 4/2', 0 ]
	},
	{
		name => 'extender',
		lease => '0',
		sql => q{SELECT msgq.extend_batch('q', {receipts}, '1 h');},
		commit => [ '', 4 ],
		rollback => [ '1/2 2/2 3/2 4/2', 0 ]
	},
	{
		name => 'canceller',
		sql => q{SELECT msgq.cancel('q', id) FROM msgq.peek('q');},
		commit => [ '', 0 ],
		rollback => [ '1/1 2/1 3/1 4/1', 0 ]
	},
	{
		name => 'purger',
		sql => q{SELECT msgq.purge('q');},
		commit => [ '', 0 ],
		rollback => [ '1/1 2/1 3/1 4/1', 0 ]
	});

# What happens between PREPARE TRANSACTION and the outcome.
my %between = (
	'at once' => sub { },
	'after a restart' => sub { $node->restart; },
	'after a crash' => sub {
		kill_all($node);
		start_again($node);
	});

$node->safe_psql('postgres', 'CREATE TABLE effect (name text)');

# One that prepares, and one that only looks.
my @sessions = (session($node), session($node));

sub receive_all
{
	my ($session, $queue) = @_;
	return $session->safe(
		"SELECT string_agg(body::text || '/' || deliveries, ' ' ORDER BY id)
		FROM msgq.receive('$queue', 1000)");
}

sub prepare
{
	my ($case, $queue, $name) = @_;
	my $session = $sessions[0];
	my $sql = $case->{sql} =~ s/'q'/'$queue'/gr;

	$session->safe(
		"SELECT msgq.create_queue('$queue', visibility_timeout => '1 h')");
	$session->safe("SELECT msgq.send_batch('$queue', '{1,2,3,4}')")
	  if !$case->{empty};
	if (defined $case->{lease})
	{
		my $receipts = $session->safe(
			"SELECT array_agg(receipt)
			FROM msgq.receive('$queue', 4, '$case->{lease}')");
		$sql =~ s/\{receipts\}/'$receipts'/;
	}
	$session->safe(
		"BEGIN; $sql INSERT INTO effect VALUES ('$name');
		PREPARE TRANSACTION '$queue'");
	foreach my $n (0, 1)
	{
		is(receive_all($sessions[$n], $queue),
			'', "$name: session $n gets nothing");
	}
	return;
}

my $turn = 0;

sub outcome
{
	my ($case, $queue, $name, $outcome) = @_;
	my ($expected, $leases) = @{ $case->{ lc $outcome } };

	# Both pass the place; those after it are of no interest any more.
	foreach my $n (0, 1)
	{
		is(receive_all($sessions[$n], $queue),
			'', "$name: session $n still gets nothing");
		$sessions[$n]->safe("SELECT msgq.send_batch('$queue', '{98,99}')");
		is(receive_all($sessions[$n], $queue),
			'98/1 99/1', "$name: session $n gets later messages");
		is(receive_all($sessions[$n], $queue), '', "$name: and no more");
	}
	is( $sessions[1]->fails(
			"SET lock_timeout = '20ms'; SELECT msgq.drop_queue('$queue')"),
		'55P03',
		"$name: the queue cannot be dropped");
	$sessions[1]->safe('RESET lock_timeout');

	$sessions[1]->safe("$outcome PREPARED '$queue'");
	is( $sessions[1]
		  ->safe("SELECT count(*) FROM effect WHERE name = '$name'"),
		$outcome eq 'COMMIT' ? '1' : '0',
		"$name: the outcome");
	is( $sessions[1]
		  ->safe("SELECT count(*) FROM msgq.leases WHERE queue = '$queue'"),
		4 + $leases,
		"$name: leases that go on");
	$turn = 1 - $turn;
	is(receive_all($sessions[$turn], $queue),
		$expected, "$name: what session $turn gets then");
	is(receive_all($sessions[ 1 - $turn ], $queue), '', "$name: all of it");
	$sessions[0]->safe("SELECT msgq.drop_queue('$queue')");
	return;
}

my $number = 0;

foreach my $when (sort keys %between)
{
	my @runs;

	foreach my $case (@cases)
	{
		foreach my $outcome ('COMMIT', 'ROLLBACK')
		{
			my $name = "$case->{name}, $outcome PREPARED $when";
			push @runs, [ $case, 'q' . ++$number, $name, $outcome ];
			prepare(@{ $runs[-1] });
		}
	}
	$between{$when}->();
	if ($sessions[0]->query('SELECT 1') ne '1')
	{
		$_->quit foreach @sessions;
		@sessions = (session($node), session($node));
	}
	outcome(@$_) foreach @runs;
}
# More of them than a session keeps apart: senders and receivers in turn, each
# with messages of others in between, and they end in another order.
{
	my ($preparer, $warm) = @sessions;
	my $late = session($node);
	my @all = (@sessions, $late);
	my $count = 45;

	$preparer->safe("SELECT msgq.create_queue('many')");
	foreach my $n (1 .. $count)
	{
		$preparer->safe(
			"SELECT msgq.send('many', '${n}1');
			BEGIN;
			SELECT msgq.receive('many');
			PREPARE TRANSACTION 'receiver $n';
			BEGIN;
			SELECT msgq.send('many', '${n}2');
			PREPARE TRANSACTION 'sender $n';
			SELECT msgq.send('many', '${n}3')");
		is(receive_all($warm, 'many'),
			"${n}3/1", "between the prepared: message $n");
	}
	# One has met them one by one, the others meet them all at once.
	is(receive_all($_, 'many'), '', 'the others find no more') foreach @all;
	foreach my $n (map { $_ * 7 % ($count + 1) } 1 .. $count)
	{
		$preparer->safe("ROLLBACK PREPARED 'receiver $n'");
		is(receive_all($all[ $n % 3 ], 'many'),
			"${n}1/1", "receiver $n rolled back: its message comes");
		$preparer->safe("COMMIT PREPARED 'sender $n'");
		is(receive_all($all[ ($n >> 1) % 3 ], 'many'),
			"${n}2/1", "sender $n committed: its message comes");
	}
	is(receive_all($_, 'many'), '', 'nothing comes twice') foreach @all;
	is( $preparer->safe(
			q{SELECT in_flight FROM msgq.queue_stats WHERE queue = 'many'}),
		3 * $count,
		'all have come');
	$late->quit;
}

is($sessions[0]->safe('SELECT gid FROM pg_prepared_xacts'),
	'', 'nothing is left prepared');
$_->quit foreach @sessions;

unlike(slurp_file($node->logfile),
	qr/PANIC|TRAP/, 'the server did not complain');
check_indexes($node);
$node->stop;

done_testing();
