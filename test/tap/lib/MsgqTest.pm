# MsgqTest.pm: what the TAP tests share.
#
#   new_node(NAME, [PARAMS,] CONF...)
#                               a started server with msgq in its database;
#                               PARAMS: initialize => called with the node before
#                               the first start, environment => of the server's
#                               processes, and what the init of a node has
#   session(NODE, %params)      a psql that stays open; see MsgqTest::Session
#   kill_all(NODE)              SIGKILL for every process of the server at once
#   kill_starting(NODE)         starts the server, and kills it meanwhile
#   start_again(NODE)           starts the server after one of these
#   kill_backend(NODE, PID)     SIGKILL for one, and waits for the restart
#   wait_for_lock(NODE, PID)    until that backend waits for a lock
#   load(NODE, %params)         a pgbench in the background
#   run_psql(NODE, %params)     a psql in the background that runs a file
#   text_file(TEXT)             a file with that text
#   finish(HANDLE...)           waits for those
#   stop_load(HANDLE...)        ends those, which would go on for long
#   check_indexes(NODE)         amcheck over all that msgq stores
#   check_log(NODE)             nothing in its log tells of damage
#
# PostgreSQL::Test::Cluster has background_psql, but what it returns differs
# between releases, and it does not show SQLSTATEs.

package MsgqTest::Session;

use strict;
use warnings;

use IPC::Run;

# Parameters: dbname, user.
sub new
{
	my ($class, $node, %params) = @_;
	my $connstr = $node->connstr($params{dbname} // 'postgres');
	$connstr .= " user='$params{user}'" if defined $params{user};

	my $self = bless {
		stdin => '',
		stdout => '',
		stderr => '',
		error => '',
		count => 0,
		timeout =>
		  IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default),
	  },
	  $class;
	$self->{run} = IPC::Run::start(
		[
			$node->installed_command('psql'),
			'-XAtq', '-v', 'VERBOSITY=verbose', '-d', $connstr, '-f', '-'
		],
		'<',
		\$self->{stdin},
		'>',
		\$self->{stdout},
		'2>',
		\$self->{stderr},
		$self->{timeout});
	$self->{pid} = $self->query('SELECT pg_backend_pid()');
	return $self;
}

# Starts something; wait() has its result.
sub send
{
	my ($self, $sql) = @_;

	$self->{count}++;
	$self->{stdout} = '';
	$self->{stderr} = '';
	$self->{timeout}->start($PostgreSQL::Test::Utils::timeout_default);
	# A statement may also end with \g or \gexec and the end of the line.
	$sql .= ';' unless $sql =~ /(;|\\g.*\n)\s*\z/;
	my $mark = "=== done $self->{count} ===";
	$self->{stdin} .= "$sql\n\\echo '$mark'\n\\warn '$mark'\n";
	eval { $self->{run}->pump_nb() };
	return;
}

# Has what send() started ended?  Does not wait for it.
sub has_result
{
	my ($self) = @_;
	my $mark = qr/^=== done $self->{count} ===\n/m;

	eval { $self->{run}->pump_nb() };
	return $self->{stdout} =~ $mark && $self->{stderr} =~ $mark;
}

# The output of what send() started.  A session that was terminated has no
# more to say: then what it has said is the output, and dead() is true.
sub wait
{
	my ($self) = @_;
	my $mark = qr/^=== done $self->{count} ===\n/m;

	until ($self->{stdout} =~ $mark && $self->{stderr} =~ $mark)
	{
		if (!$self->{run}->pumpable)
		{
			$self->{dead} = 1;
			last;
		}
		if (!eval { $self->{run}->pump(); 1 })
		{
			my $error = $@;
			die $error if $error =~ /timeout/;
			# psql has ended: get at what it wrote last.
			eval { $self->{run}->finish };
			$self->{dead} = 1;
			last;
		}
	}
	$self->{stdout} =~ s/$mark.*//s;
	$self->{stderr} =~ s/$mark.*//s;
	my $output = $self->{stdout};
	$output =~ s/\n\z//;
	$self->{error} = $self->{stderr};
	return $output;
}

# Runs SQL, which may fail: error() and sqlstate() tell.
sub query
{
	my ($self, $sql) = @_;

	$self->send($sql);
	return $self->wait;
}

# Runs SQL, which may not fail.
sub safe
{
	my ($self, $sql) = @_;
	my $output = $self->query($sql);

	die "failed: $sql\n$self->{error}"
	  if $self->{dead} || $self->sqlstate ne '';
	return $output;
}

# The first SQLSTATE of the last query(), or ''.
sub sqlstate
{
	my ($self) = @_;
	return $self->{error} =~ /(?:ERROR|FATAL|PANIC):  ([0-9A-Z]{5}):/
	  ? $1
	  : '';
}

# The same in one call.
sub fails
{
	my ($self, $sql) = @_;
	$self->query($sql);
	return $self->sqlstate;
}

sub error { return $_[0]->{error}; }
sub dead { return $_[0]->{dead} ? 1 : 0; }
sub pid { return $_[0]->{pid}; }

sub quit
{
	my ($self) = @_;

	return if $self->{quit};
	$self->{quit} = 1;
	eval {
		$self->{timeout}->start($PostgreSQL::Test::Utils::timeout_default);
		$self->{stdin} .= "\\q\n" if $self->{run}->pumpable;
		$self->{run}->finish;
	};
	return;
}

package MsgqTest;

use strict;
use warnings;

use Exporter 'import';
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

our @EXPORT = qw(new_node is_preloaded session kill_all kill_starting start_again
  kill_backend wait_for_lock load run_psql text_file finish stop_load
  check_indexes check_log);

# Is the home of the shared state the main shared memory, in this run?
sub is_preloaded
{
	return ($ENV{MSGQ_TEST_HOME} // 'preloaded') eq 'preloaded';
}

sub new_node
{
	my ($name, @conf) = @_;
	my %params = ref $conf[0] ? %{ shift @conf } : ();
	my $initialize = delete $params{initialize};
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->{environment} = delete $params{environment};
	$node->init(extra => [ '--locale=C', '--encoding=UTF8' ], %params);
	# Without log_statement = none the load would fill the log.
	$node->append_conf(
		'postgresql.conf', join "\n",
		'log_statement = none',
		'max_prepared_transactions = 10',
		is_preloaded() ? "shared_preload_libraries = 'msgq'" : (),
		@conf, '');
	$initialize->($node) if $initialize;
	start($node);
	$node->safe_psql('postgres', 'CREATE EXTENSION msgq');
	return $node;
}

# With the environment that its processes are to have.
sub start
{
	my ($node, %params) = @_;
	local %ENV = (%ENV, %{ $node->{environment} // {} });

	return $node->start(%params);
}

sub session
{
	my ($node, %params) = @_;
	return MsgqTest::Session->new($node, %params);
}

# State and parent of process PID; nothing if it has ended.
sub process_state
{
	my ($pid) = @_;

	open my $stat, '<', "/proc/$pid/stat" or return;
	my $line = <$stat> // '';
	close $stat;
	return $line =~ /^\d+ \(.*\) (\S) (\d+) / ? ($1, $2) : ();
}

# The processes that POSTMASTER has started, also those that have not come so
# far yet that a view of the server's would tell of them.
sub children_of
{
	my ($postmaster) = @_;

	return
	  grep { my (undef, $parent) = process_state($_); ($parent // 0) == $postmaster }
	  map { m{(\d+)$} } glob '/proc/[0-9]*';
}

# The postmaster is stopped first, so that it neither notices the first death
# nor starts anything new.  All go in one instant: else the WAL writer of the
# dying server would still write what was committed asynchronously.  And all
# means all: one that lived on could wait for ever for a lock that a dead one
# held, and keep the shared memory from the next server.
#
# Until somebody has buried a process, its number still counts, and a new server
# would take it for a running one.  So its lock files go as soon as it is dead.
sub kill_server
{
	my ($node, $postmaster) = @_;

	kill 'STOP', $postmaster;
	wait_for_state($postmaster, qr/[TZX]/);
	my @pids = (children_of($postmaster), $postmaster);
	kill 'KILL', @pids;
	wait_for_state($_, qr/[ZX]/) foreach @pids;
	unlink $node->data_dir . '/postmaster.pid',
	  $node->host . '/.s.PGSQL.' . $node->port . '.lock';
	return;
}

# Or until it is gone.
sub wait_for_state
{
	my ($pid, $pattern) = @_;

	foreach my $try (1 .. 1000 * $PostgreSQL::Test::Utils::timeout_default)
	{
		my ($state) = process_state($pid);
		return if !defined $state || $state =~ $pattern;
		usleep(1000);
	}
	die "process $pid does not get to a state $pattern";
}

sub kill_all
{
	my ($node) = @_;
	my $postmaster =
	  (split /\n/, slurp_file($node->data_dir . '/postmaster.pid'))[0];

	kill_server($node, $postmaster);
	$node->kill9;
	return;
}

# After it was killed.
sub kill_starting
{
	my ($node) = @_;
	my $file = $node->data_dir . '/postmaster.pid';
	my $pid = '';

	local %ENV = (%ENV, %{ $node->{environment} // {} });
	system_log('pg_ctl', '-W', '-D', $node->data_dir, '-l', $node->logfile,
		'start');
	foreach my $try (1 .. 100)
	{
		if (open my $lines, '<', $file)
		{
			chomp($pid = <$lines> // '');
			close $lines;
		}
		last if $pid ne '';
		usleep(10_000);
	}
	die 'the server does not start' if $pid eq '';
	# Somewhere in recovery, or just after it.
	usleep(rand(100_000));
	kill_server($node, $pid);
	return;
}

# The processes that were killed keep the shared memory busy until the system
# has taken them away.
sub start_again
{
	my ($node) = @_;

	foreach my $try (1 .. 100)
	{
		return if start($node, fail_ok => 1);
		$node->stop('fast', fail_ok => 1);
		usleep(100_000);
	}
	diag(slurp_file($node->logfile, -s $node->logfile > 4000 ?
		  (-s $node->logfile) - 4000 : 0));
	die "the server does not start again";
}

# The server answers a moment longer, until the postmaster has seen the death.
sub kill_backend
{
	my ($node, $pid) = @_;
	my $before = -s $node->logfile;

	kill 'KILL', $pid;
	foreach my $try (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		last
		  if slurp_file($node->logfile, $before) =~
		  /database system is ready to accept connections/;
		usleep(100_000);
	}
	$node->poll_query_until('postgres', 'SELECT 1', '1')
	  or die "the server does not come back";
	return;
}

sub wait_for_lock
{
	my ($node, $pid) = @_;

	$node->poll_query_until('postgres',
		"SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $pid"
	) or die "process $pid does not wait for a lock";
	return;
}

# Parameters: scripts ({ text => weight }), clients, seconds, isolation.
sub load
{
	my ($node, %params) = @_;
	my @command = (
		$node->installed_command('pgbench'), '-n',
		'-c' => $params{clients},
		'-j' => 1,
		'-T' => $params{seconds},
		'--max-tries=1000');
	my $isolation = $params{isolation} // 'read committed';

	foreach my $text (sort keys %{ $params{scripts} })
	{
		push @command, '-f', text_file($text) . '@' . $params{scripts}{$text};
	}
	my $self = { output => '', stdin => '' };
	local $ENV{PGOPTIONS} =
	  '-c default_transaction_isolation=' . $isolation =~ s/ /\\ /r;
	$self->{run} = IPC::Run::start(
		[ @command, $node->connstr('postgres') ],
		'<',
		\$self->{stdin},
		'>&',
		\$self->{output},
		IPC::Run::timeout(
			$params{seconds} + $PostgreSQL::Test::Utils::timeout_default));
	return $self;
}

# psql ends when it loses its connection, so what it has echoed by then has
# been confirmed.  Parameters: file, output, variables.
sub run_psql
{
	my ($node, %params) = @_;
	my @command = (
		$node->installed_command('psql'), '-XAtq',
		'-v' => 'ON_ERROR_STOP=1',
		'-d' => $node->connstr('postgres'),
		'-f' => $params{file},
		'-o' => $params{output});

	foreach my $name (sort keys %{ $params{variables} // {} })
	{
		push @command, '-v', "$name=$params{variables}{$name}";
	}
	my $self = { output => '' };
	$self->{run} =
	  IPC::Run::start(\@command, '<', \undef, '>&', \$self->{output},
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return $self;
}

my $files;
my $file_count = 0;

# Writes TEXT to a file and returns its name.
sub text_file
{
	my ($text) = @_;
	$files //= PostgreSQL::Test::Utils::tempdir();
	my $file = "$files/" . ++$file_count;

	append_to_file($file, $text);
	return $file;
}

# Returns whether all ended well.
sub finish
{
	my (@handles) = @_;
	my $ok = 1;

	foreach my $handle (@handles)
	{
		$handle->{run}->finish;
		$handle->{status} = $handle->{run}->full_result(0);
		$ok &&= $handle->{status} == 0;
	}
	return $ok;
}

sub stop_load
{
	my (@handles) = @_;

	$_->{run}->signal('INT') foreach @handles;
	eval { $_->{run}->finish } foreach @handles;
	return;
}

# Nothing in the server's log tells of damage.
sub check_log
{
	my ($node) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	unlike(
		PostgreSQL::Test::Utils::slurp_file($node->logfile),
		qr/PANIC|TRAP|invalid page|could not read block|could not give positions/,
		'the server did not complain');
	return;
}

sub check_indexes
{
	my ($node, %params) = @_;
	my $dbname = $params{dbname} // 'postgres';

  SKIP:
	{
		my $available = $node->safe_psql($dbname,
			"SELECT 1 FROM pg_available_extensions WHERE name = 'amcheck'");
		skip 'amcheck is not installed', 1 if $available eq '';

		$node->safe_psql($dbname, 'CREATE EXTENSION IF NOT EXISTS amcheck');
		local $Test::Builder::Level = $Test::Builder::Level + 1;
		my $bad = $node->safe_psql(
			$dbname, q{
			SELECT c.relname || ': ' || v.msg
			FROM pg_class c, verify_heapam(c.oid) v
			WHERE c.relnamespace = 'msgq'::regnamespace AND c.relkind = 'r';
			SELECT bt_index_parent_check(indexrelid, true, true)
			FROM pg_index i
				JOIN pg_class c ON c.oid = indexrelid
				JOIN pg_am a ON a.oid = relam
			WHERE relnamespace = 'msgq'::regnamespace AND amname = 'btree'
				AND indisvalid
		});
		$bad =~ s/^\n*|\n*$//g;
		is($bad, '', 'amcheck finds nothing wrong');
	}
	return;
}

1;
