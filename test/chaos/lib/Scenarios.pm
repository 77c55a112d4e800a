# Scenarios.pm: kinds of chaos runs: what the server is like, and what the nemesis
# may do to it.
#
#	names()			all of them, in the order in which they are run
#	scenario(NAME)	one: a reference to the hash that is described below
#
# Of a scenario:
#
#	share		so large a part of a long run's time is its own
#	faults		name => weight (Faults.pm)
#	pace		how long the pauses between faults are; 1 if not given
#	conf		lines of the server's configuration
#	environment	of the server's processes
#	init		parameters of the node's init
#	initialize	called with the node before its first start
#	start		called with the run when the schema is there, before the load
#	ready		the same, after it
#	calm		called with the run after the load, before all is drained
#	finish		called with the run at its end, when all is drained and read
#	options		of all clients (driver.c)
#	facts		what the checker has to know; History.pm has the list
#	is_asynchronous	of its standby (Standby.pm)
#
# A new scenario is a new entry.

package Scenarios;

use strict;
use warnings;

use Clock;
use Disk;
use Epoch;
use Standby;

my @order = qw(mixed crashes strikes power disk standby lagging compared clock epoch);

my %scenarios = (
	# Everything that can happen to one server, and what others do there.
	mixed => {
		share => 6,
		faults => {
			'kill backend' => 4,
			'kill worker' => 2,
			'kill server' => 5,
			'kill server twice' => 2,
			'immediate stop' => 2,
			'fast stop' => 2,
			'cancel' => 6,
			'terminate' => 3,
			'terminate worker' => 2,
			'stop worker' => 1,
			'lock tables' => 2,
			'checkpoint' => 2,
			'vacuum' => 1
		}
	},
	# One crash after the other.
	crashes => {
		share => 6,
		pace => 0.5,
		faults => {
			'kill backend' => 5,
			'kill worker' => 2,
			'kill server' => 4,
			'kill server twice' => 1,
			'checkpoint' => 1
		}
	},
	# Statements and sessions that end early, at any point, as many as can be.
	strikes => {
		share => 4,
		pace => 0.3,
		faults => { 'cancel many' => 8, 'terminate' => 2, 'lock tables' => 1 }
	},
	# Power failures.  Little memory, so that much is written meanwhile, and
	# checkpoints, which sync it.
	power => {
		share => 4,
		pace => 0.7,
		conf => [ 'shared_buffers = 4MB', 'bgwriter_delay = 20ms', 'checkpoint_timeout = 30s' ],
		init => { extra => [ '--locale=C', '--encoding=UTF8', '--data-checksums' ] },
		initialize => \&Disk::attach,
		facts => ['torn'],
		faults => { 'power failure' => 8, 'kill backend' => 1, 'checkpoint' => 4, 'vacuum' => 1 }
	},
	# No space left, now and then.
	disk => {
		share => 3,
		conf => [ 'shared_buffers = 4MB' ],
		initialize => \&Disk::attach,
		facts => ['full'],
		faults => { 'data disk full' => 5, 'wal disk full' => 3, 'checkpoint' => 1, 'vacuum' => 1 }
	},
	# A server and its synchronous standby, which takes over; what was confirmed
	# is there.
	standby => {
		share => 6,
		conf => [ Standby::settings() ],
		init => { allows_streaming => 1 },
		start => \&Standby::add,
		ready => \&Standby::make_synchronous,
		facts => ['replicated'],
		faults => {
			'promote' => 4,
			'switch over' => 1,
			'cancel' => 4,
			'terminate' => 1,
			'checkpoint' => 1
		}
	},
	# The same with an asynchronous one.  What it had not received is lost, and
	# nothing before that.
	lagging => {
		share => 3,
		conf => [ Standby::settings() ],
		init => { allows_streaming => 1 },
		start => \&Standby::add,
		is_asynchronous => 1,
		options => [ '--positions', 'on' ],
		facts => [ 'replicated', 'lossy' ],
		faults => { 'promote' => 4, 'switch over' => 1, 'cancel' => 2, 'checkpoint' => 1 }
	},
	# A standby that compares each page that it has replayed with the first
	# server's, which sends all of them.
	compared => {
		share => 1,
		conf => [ Standby::settings(), "wal_consistency_checking = 'all'" ],
		init => { allows_streaming => 1 },
		start => \&Standby::add,
		finish => \&Standby::check,
		faults => { 'cancel' => 4, 'terminate' => 1, 'vacuum' => 2, 'checkpoint' => 1 }
	},
	# The clock is set, forward and back.  Leases end early then, or late: all the
	# rest is as ever.  In the end it is as late as it ever was, so that all is due.
	clock => {
		share => 2,
		environment => Clock::environment(),
		initialize => \&Clock::reset,
		calm => \&Clock::settle,
		facts => ['clock'],
		faults => { 'set clock' => 8, 'fast stop' => 1, 'cancel' => 2, 'terminate' => 1, 'vacuum' => 1 }
	},
	# The ids of transactions wrap around, and rows are frozen all the time.
	epoch => {
		share => 2,
		conf => [ Epoch::settings() ],
		initialize => \&Epoch::prepare,
		finish => \&Epoch::check,
		faults => {
			'kill backend' => 1,
			'kill server' => 2,
			'fast stop' => 1,
			'cancel' => 2,
			'checkpoint' => 1,
			'vacuum' => 4
		}
	});

sub names { return @order; }

sub scenario
{
	my ($name) = @_;
	return $scenarios{$name} // die "there is no scenario $name";
}

1;
