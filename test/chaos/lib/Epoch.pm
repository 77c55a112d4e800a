# Epoch.pm: a server whose transaction ids are about to wrap around.
#
#	settings()		such that rows are frozen early, and in an emergency
#	prepare(NODE)	before its first start: the ids come close to the end of the
#					first epoch
#	check(RUN)		the run has gone beyond
#
# An id is set forward by less than half of the 2^32 that there are, as the server
# does not go any further without VACUUM; then all is frozen, and it goes on.

package Epoch;

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;

my $epoch = 2**32;

# The load should have begun, and go on for long afterwards.
my @steps = (2_140_000_000, 4_280_000_000, $epoch - 700);

sub settings
{
	return (
		'autovacuum_freeze_max_age = 100000',
		'vacuum_freeze_table_age = 0',
		'vacuum_freeze_min_age = 0');
}

# The next id is this one.  Its status will be looked for in a file that is there.
sub set_next
{
	my ($node, $xid) = @_;
	my $file = sprintf '%s/pg_xact/%04X', $node->data_dir, $xid >> 20;

	append_to_file($file, "\0" x (32 * 8192)) if !-e $file;
	system_or_bail('pg_resetwal', '-x', $xid, '-D', $node->data_dir);
	return;
}

sub freeze
{
	my ($node) = @_;

	$node->safe_psql('postgres', q{UPDATE pg_database SET datallowconn = true});
	$node->safe_psql($_, 'VACUUM (FREEZE)') foreach qw(template0 template1 postgres);
	$node->safe_psql('postgres',
		q{UPDATE pg_database SET datallowconn = false WHERE datname = 'template0'});
	return;
}

sub prepare
{
	my ($node) = @_;

	foreach my $xid (@steps)
	{
		set_next($node, $xid);
		last if $xid == $steps[-1];
		$node->start;
		freeze($node);
		$node->stop;
	}
	return;
}

sub check
{
	my ($run) = @_;

	cmp_ok($run->{node}->safe_psql('postgres', 'SELECT pg_current_xact_id()'),
		'>', $epoch, 'the run has gone beyond the epoch');
	is( $run->{node}->safe_psql('postgres', q{
			SELECT count(*) > 0 FROM pg_class
			WHERE relnamespace = 'msgq'::regnamespace AND relkind = 'r'
			AND relfrozenxid::text::bigint < 1000000000}),
		't',
		'and tables were frozen there');
	return;
}

1;
