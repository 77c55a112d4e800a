# The programs of docs/examples: each does what its expected.out says, for a role
# that has no more rights than its README asks for.
#
# Catches: examples that no longer work, print something else, leave something
# behind, or cannot be run again after they were interrupted; a worker that does
# not end its job when it is told to stop, and a job that is lost with its worker.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use IPC::Run;
use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

# They take half a minute, and a newcomer's server preloads nothing.
plan skip_all => 'one home is enough for the examples' if is_preloaded();

my $folder = "$FindBin::RealBin/../../docs/examples";
my $node = new_node('docs_examples');

$node->safe_psql(
	'postgres', q{
	CREATE ROLE newcomer LOGIN;
	CREATE DATABASE mydb;
});
$node->safe_psql(
	'mydb', q{
	CREATE EXTENSION msgq;
	GRANT CREATE ON DATABASE mydb TO newcomer;
	GRANT CREATE ON SCHEMA msgq TO newcomer;
});

# How one chooses a database for psql.
my %connection = (
	PGHOST => $node->host,
	PGPORT => $node->port,
	PGDATABASE => 'mydb',
	PGUSER => 'newcomer');

sub query
{
	my ($sql) = @_;
	return $node->safe_psql('mydb', $sql);
}

sub wait_for
{
	my ($condition, $what) = @_;

	ok($node->poll_query_until('mydb', "SELECT $condition"), $what);
	return;
}

# What a command prints, errors included.
sub output_of
{
	my ($command, $input) = @_;
	my $output = '';

	local %ENV = (%ENV, %connection);
	IPC::Run::run($command, '<', \$input, '>', \$output, '2>&1',
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return $output;
}

my @psql = ($node->installed_command('psql'), '-X');

sub is_expected
{
	my ($output, $name, $what) = @_;
	my $file = "$folder/$name/expected.out";
	my $diff = '';

	return ok(1, "$name: $what") if $output eq slurp_file($file);
	IPC::Run::run([ 'diff', '-u', $file, text_file($output) ], '>', \$diff);
	diag($diff);
	return ok(0, "$name: $what");
}

sub nothing_is_left
{
	my ($name) = @_;

	# A client is faster gone than its backend.
	wait_for(q{NOT EXISTS (SELECT FROM pg_stat_activity WHERE usename = 'newcomer')},
		"$name: no session is left");
	is( query(
			q{SELECT 'schema ' || nspname FROM pg_namespace
			WHERE nspowner = 'newcomer'::regrole
			UNION ALL SELECT 'relation ' || relname FROM pg_class
			WHERE relowner = 'newcomer'::regrole
			UNION ALL SELECT 'queue ' || name FROM msgq.queues
			UNION ALL SELECT 'stream ' || name FROM msgq.streams
			UNION ALL SELECT 'topic ' || name FROM msgq.topics}),
		'',
		"$name leaves nothing behind");
	return;
}

# ---------------------------------------------------------------------------
# Scripts of psql
# ---------------------------------------------------------------------------

my %script = (outbox_shop => 'shop.sql', event_sourcing => 'accounts.sql');

foreach my $name (sort keys %script)
{
	my $sql = slurp_file("$folder/$name/$script{$name}");

	is_expected(output_of(\@psql, $sql), $name, 'the output');
	nothing_is_left($name);

	# Interrupted before what it does at the end.
	$sql =~ /\A(.*^\\echo == [^\n]*\n)/ms or die "$name has no parts";
	output_of(\@psql, $1);
	isnt(query('SELECT count(*) FROM msgq.streams'), '0', "$name: interrupted");
	is_expected(output_of(\@psql, $sql), $name, 'the output after that');
	nothing_is_left($name);
}

# ---------------------------------------------------------------------------
# The pool of workers
# ---------------------------------------------------------------------------

my $pool = "$folder/worker_pool";

sub start_worker
{
	my ($number) = @_;
	my $self = { output => '' };

	local %ENV = (%ENV, %connection);
	$self->{run} = IPC::Run::start(
		[ 'sh', "$pool/worker.sh", $number ],
		'<',
		\undef,
		'>&',
		\$self->{output},
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return $self;
}

sub send_job
{
	my ($id, $text) = @_;

	query(
		qq{BEGIN;
		INSERT INTO worker_pool.job (id, text) VALUES ($id, '$text');
		SELECT msgq.send('pool.jobs', '{"id": $id}');
		COMMIT});
	return;
}

# The backend of a worker that does a slow job.
my $at_work = q{SELECT pid FROM pg_stat_activity
	WHERE usename = 'newcomer' AND wait_event = 'PgSleep'};

output_of([ @psql, '-f', "$pool/setup.sql" ]);
my $stopped = start_worker(1);
send_job(1, '1 + 1 slow');
send_job(2, '2 + 2');
wait_for("EXISTS ($at_work)", 'a worker works');
$stopped->{run}->signal('TERM');
ok(finish($stopped), 'TERM stops a worker');
is($stopped->{output}, "job 1: done\nworker stopped\n",
	'it has ended its job, and taken no other one');
is( query(q{SELECT result, attempts, (SELECT count(*) FROM msgq.leases),
		(SELECT string_agg(body->>'id', ' ') FROM msgq.peek('pool.jobs'))
		FROM worker_pool.job WHERE id = 1}),
	'2|1|0|2',
	'which has its result, and no lease is left');

# Its job comes back; the lease need not be waited for.
my $killed = start_worker(2);
send_job(3, '3 + 3 slow');
wait_for("EXISTS ($at_work)", 'another one works');
$killed->{run}->signal('KILL');
query("SELECT pg_terminate_backend(pid) FROM ($at_work) AS s");
eval { $killed->{run}->finish };
wait_for("NOT EXISTS ($at_work)", 'and dies');
is(query(q{SELECT string_agg(body->>'id', ' ') FROM msgq.peek('pool.jobs')}),
	'3', 'its job is still there');
query(q{SELECT msgq.expire_lease('pool.jobs', id) FROM msgq.leases});
my $heir = start_worker(3);
wait_for(q{msgq.why_empty('pool.jobs') = 'empty'}, 'another worker takes it');
$heir->{run}->signal('TERM');
ok(finish($heir), 'who stops while he waits');
is(query('SELECT result, worker, attempts FROM worker_pool.job WHERE id = 3'),
	'6|3|2', 'the result is his');

# What that has left does not matter.
is_expected(output_of([ 'sh', "$pool/run.sh" ]), 'worker_pool', 'the output');
nothing_is_left('worker_pool');

# From another folder, with one worker who has to do it all.
chdir $pool or die "cannot enter $pool";
my $alone = output_of([ 'sh', 'run.sh', '1' ]);
$alone =~ s/^1 workers have/3 workers have/m;
$alone =~ s/^== 1 workers/== 3 workers/m;
is_expected($alone, 'worker_pool', 'the output with one worker');
nothing_is_left('worker_pool');

$node->stop;
done_testing();
