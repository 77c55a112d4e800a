# Standby.pm: a second server that follows the first, and takes over from it.
#
#	settings()				configuration of both
#	add(RUN)				makes it: $run->{standby}; before the load
#	make_synchronous(RUN)	commits wait for it from now on
#	wait_for_it(RUN)		until it has all that the first one has
#	promote(RUN, NUMBER)	the first server is killed, the second one takes over,
#							and the first one begins anew as its standby
#	switch_over(RUN)		the same with a server that is stopped
#	check(RUN)				what of it has to go on
#
# The two keep their names and addresses and take turns in being $run->{node}.
# Clients know both, and connect to the one that can be written to.
#
# When a server ends that has a synchronous standby, all is there that was
# confirmed, but for what was committed while the wait for the standby was broken
# off: the server warns of that, and clients write it down ("unsynced").
# Of an asynchronous one the last part is missing.  It is made longer here: what
# sends the log to the standby is stopped for a while before the end.

package Standby;

use strict;
use warnings;

use File::Path qw(rmtree);
use MsgqTest qw(kill_all start_again);
use PostgreSQL::Test::Cluster;
use Time::HiRes qw(usleep);

sub settings
{
	return ('wal_keep_size = 256MB', 'wal_receiver_status_interval = 1s');
}

# From a backup of the server that is written to.
sub build
{
	my ($run, $standby) = @_;
	my $backup = 'backup' . ++$run->{backups};

	$run->{node}->backup($backup);
	rmtree($standby->data_dir);
	$standby->init_from_backup($run->{node}, $backup, has_streaming => 1);
	rmtree($run->{node}->backup_dir . "/$backup");
	start_again($standby);
	$run->{standby} = $standby;
	return;
}

sub add
{
	my ($run) = @_;
	my $standby = PostgreSQL::Test::Cluster->new("$run->{name}_standby");

	push @{ $run->{nodes} }, $standby;
	build($run, $standby);
	return;
}

sub make_synchronous
{
	my ($run) = @_;

	wait_for_it($run);
	foreach my $node (@{ $run->{nodes} })
	{
		$node->append_conf('postgresql.conf', "synchronous_standby_names = '*'");
		$node->reload;
	}
	$run->{node}->poll_query_until('postgres',
		q{SELECT sync_state = 'sync' FROM pg_stat_replication})
	  or die 'the standby does not become synchronous';
	return;
}

# It may have to come up first.
sub wait_for_it
{
	my ($run) = @_;

	$run->{node}->poll_query_until('postgres', 'SELECT count(*) = 1 FROM pg_stat_replication')
	  or die 'the standby does not come';
	$run->{node}->wait_for_catchup($run->{standby}, 'flush',
		$run->{node}->lsn('insert'));
	return;
}

# Keeps the standby from getting more of the log.
sub hold_back
{
	my ($run, $number) = @_;
	my (undef, $pid) = $run->{node}->psql('postgres', 'SELECT pid FROM pg_stat_replication');

	kill 'STOP', $pid if $pid =~ /^\d+$/;
	usleep(1000 * (50 + $number % 350));
	return;
}

# The server has ended.
sub take_over
{
	my ($run) = @_;
	my ($old, $new) = @$run{qw(node standby)};

	$new->promote;
	$run->{node} = $new;
	build($run, $old);
	return;
}

sub promote
{
	my ($run, $number) = @_;

	wait_for_it($run);
	hold_back($run, $number) if $run->{scenario}{is_asynchronous};
	kill_all($run->{node});
	take_over($run);
	return 'promotions=1';
}

sub switch_over
{
	my ($run) = @_;

	wait_for_it($run);
	$run->{node}->stop('fast');
	take_over($run);
	return 'promotions=1';
}

# A standby that does not agree with a page that it has replayed ends.
sub check
{
	my ($run) = @_;

	wait_for_it($run);
	$run->{node}->wait_for_catchup($run->{standby}, 'replay', $run->{node}->lsn('insert'));
	$run->{standby}->stop;
	return;
}

1;
