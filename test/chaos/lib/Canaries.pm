# Canaries.pm: faults that are planted, to show that the checker finds them.
#
#	release(SEED, PATTERN)	plants one after the other, of those whose names
#							match; returns how many were caught, and of how many
#
# Two kinds.  A run of its own, with something wrong in the server's settings, in
# the tables, or in a function that stands for one of msgq's: then the checker
# has to find what that leads to.  And what a clean run has left, with a line
# changed: then it has to find that very line.  Either is an entry of a table; it
# is caught if the checker reports a violation of its class.
#
# No fault is planted in msgq's own code.

package Canaries;

use strict;
use warnings;

use MsgqTest qw(is_preloaded);
use PostgreSQL::Test::Utils;
use Test::More;

use Chaos;

# ---------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------

# The segment tables of a queue are msgq.q<id>_<n>.
my $setup = q{
	CREATE SCHEMA canary;

	CREATE FUNCTION canary.segments(queue text) RETURNS SETOF regclass
	LANGUAGE sql AS $$
		SELECT c.oid FROM msgq.queues q JOIN pg_class c
			ON c.relnamespace = 'msgq'::regnamespace AND c.relname ~ format('^q%s_\d+$', q.id)
				AND c.relkind = 'r'
		WHERE q.name = queue
	$$;

	-- The first eight bytes of a receipt are the message's id.
	CREATE FUNCTION canary.id(receipt uuid) RETURNS bigint
	RETURN ('x' || left(replace(receipt::text, '-', ''), 16))::bit(64)::bigint;

	-- Acknowledges whatever delivery the message is in.
	CREATE FUNCTION canary.ack(queue text, receipt uuid) RETURNS boolean
	LANGUAGE plpgsql AS $$
	DECLARE
		segment regclass;
		n int;
	BEGIN
		FOR segment IN SELECT canary.segments(queue) LOOP
			EXECUTE format('DELETE FROM %s WHERE id = $1', segment) USING canary.id(receipt);
			GET DIAGNOSTICS n = ROW_COUNT;
			IF n > 0 THEN
				RETURN true;
			END IF;
		END LOOP;
		RETURN false;
	END $$;

	-- Claims more than it was asked for.
	CREATE FUNCTION canary.receive(queue text, n int, timeout interval)
	RETURNS SETOF msgq.message
	LANGUAGE sql AS $$
		SELECT * FROM msgq.receive(queue, n, timeout)
		UNION ALL SELECT * FROM msgq.receive(queue, 1, timeout)
	$$;

	-- Goes by the ids of entries, which are given before the commit.
	CREATE TABLE canary.cursor (consumer_group text PRIMARY KEY, id bigint);
	INSERT INTO canary.cursor VALUES ('g1', 0), ('g2', 0);
	CREATE FUNCTION canary.read(stream text, reader text, n int)
	RETURNS SETOF msgq.entry
	LANGUAGE plpgsql AS $$
	DECLARE
		last_id bigint;
		e msgq.entry;
	BEGIN
		SELECT id INTO last_id FROM canary.cursor WHERE consumer_group = reader FOR UPDATE;
		FOR e.partition, e.id, e.body IN EXECUTE format(
			'SELECT partition, id, body FROM msgq.s%s WHERE id > %s ORDER BY id LIMIT %s',
			(SELECT id FROM msgq.streams WHERE name = stream), last_id, n)
		LOOP
			UPDATE canary.cursor SET id = e.id WHERE consumer_group = reader;
			RETURN NEXT e;
		END LOOP;
	END $$;

	-- Removes the message in one transaction; canary.move stores it in another.
	CREATE UNLOGGED TABLE canary.pending (queue text, body jsonb);
	CREATE FUNCTION canary.reject(queue text, receipt uuid) RETURNS boolean
	LANGUAGE plpgsql AS $$
	DECLARE
		segment regclass;
	BEGIN
		FOR segment IN SELECT canary.segments(queue) LOOP
			EXECUTE format('INSERT INTO canary.pending SELECT $1, body FROM %s WHERE id = $2',
				segment) USING queue, canary.id(receipt);
		END LOOP;
		RETURN msgq.ack(queue, receipt);
	END $$;
	CREATE FUNCTION canary.move() RETURNS void
	LANGUAGE sql AS $$
		WITH moved AS (DELETE FROM canary.pending RETURNING *)
		SELECT msgq.send(queue || '.dead', body) FROM moved
	$$;
};

# On each of the segments of a queue.
sub on_segments
{
	my ($node, $queue, $sql) = @_;

	foreach my $table (split /\n/, $node->safe_psql('postgres',
			"SELECT canary.segments('$queue')"))
	{
		$node->safe_psql('postgres', $sql =~ s/TABLE_NAME/$table/gr);
	}
	return;
}

my @runs = (
	{
		name => 'asynchronous commit, and the server killed',
		class => 'lost',
		conf => [
			'synchronous_commit = off', 'wal_writer_delay = 10s',
			'wal_writer_flush_after = 1GB'
		],
		faults => ['kill server'],
		seconds => 8
	},
	{
		name => 'unlogged tables, and the server killed',
		class => 'lost',
		prepare => sub { on_segments($_[0], 'work', 'ALTER TABLE TABLE_NAME SET UNLOGGED') },
		faults => ['kill server']
	},
	{
		name => 'fsync = off, and the power fails',
		class => 'lost',
		scenario => 'power',
		prepare => sub {
			my ($node) = @_;
			$node->safe_psql('postgres', 'CHECKPOINT');
			$node->append_conf('postgresql.conf', 'fsync = off');
			$node->reload;
		},
		faults => ['total power failure']
	},
	{
		name => 'a standby that nobody waits for',
		class => 'lost',
		scenario => 'lagging',
		facts => ['replicated'],
		faults => ['promote'],
		seconds => 6
	},
	{
		name => 'acknowledgement by id',
		class => 'stale-accepted',
		# All consumers are late.
		options => { consumer => [ '--ack', 'canary.ack', '--kind', '4' ] },
		seconds => 8
	},
	{
		name => 'more claimed than asked for',
		class => 'over-claim',
		options => { consumer => [ '--receive', 'canary.receive' ] }
	},
	{
		name => 'a cursor by id',
		class => 'stream-skip',
		options => { map { $_ => [ '--read', 'canary.read' ] } qw(reader catchup) },
		drain_seconds => 8
	},
	{
		name => 'no polling, and a prepared transaction',
		class => 'liveness',
		applies => \&is_preloaded,
		options => { probe => [ '--poll-interval', '1h', '--timeout', '4' ] },
		seconds => 2
	},
	{
		name => 'a dead letter in two transactions, and a backend killed',
		class => 'lost',
		# All consumers reject a part.
		options => { consumer => [ '--reject', 'canary.reject', '--kind', '7' ] },
		faults => ['kill backend'],
		seconds => 6,
		meanwhile => sub { $_[0]->psql('postgres', 'SELECT canary.move()') if rand() < 0.02; }
	},
	{
		name => 'leases taken back',
		class => 'double-leased',
		meanwhile => sub {
			$_[0]->psql('postgres',
				q{SELECT count(msgq.expire_lease(queue, id)) FROM msgq.leases WHERE queue = 'work'})
			  if rand() < 0.1;
		}
	},
	{
		name => 'idempotency keys forgotten',
		class => 'idempotency',
		meanwhile => sub {
			$_[0]->psql('postgres',
				q{DELETE FROM msgq.q} . queue_id($_[0], 'keys') . '_k1') if rand() < 0.1;
		}
	},
	{
		name => 'a message moved to another group',
		class => 'group-order',
		meanwhile => sub {
			on_segments($_[0], 'ordered',
				q{UPDATE TABLE_NAME SET group_key = 'group1' WHERE leased_at IS NULL AND id % 7 = 0})
			  if rand() < 0.1;
		}
	});

sub queue_id
{
	my ($node, $queue) = @_;
	return $node->safe_psql('postgres', "SELECT id FROM msgq.queues WHERE name = '$queue'");
}

# ---------------------------------------------------------------------------
# What a clean run has left, with a line changed
# ---------------------------------------------------------------------------

# The logs' lines that can be taken for a change, by words, with their file.
sub read_lines
{
	my ($dir) = @_;
	my (@lines, %ok, %back);

	foreach my $file (map { s{^\Q$dir/}{}r } glob("$dir/log/*"), "$dir/dump")
	{
		open my $in, '<', "$dir/$file" or die "could not open $file: $!";
		while (my $line = <$in>)
		{
			chomp $line;
			my @words = split / /, $line;

			push @lines, { file => $file, line => $line, words => \@words };
			next if $file eq 'dump' || $words[1] eq 'client';
			$ok{"$file $words[2]"} = 1 if $words[1] eq 'ok';
			$back{"$file $words[2]"} = 1 if $line =~ / fail \d+ rolled-back$/;
		}
		close $in;
	}
	foreach my $line (@lines)
	{
		my $tx = "$line->{file} " . ($line->{words}[2] // '');
		$line->{ok} = $line->{file} ne 'dump' && $ok{$tx};
		$line->{back} = $line->{file} ne 'dump' && $back{$tx};
	}
	return @lines;
}

# The first of the lines that matches, and, if told to, is of a transaction that
# was committed (ok) or rolled back (back).
sub find
{
	my ($lines, $pattern, $which) = @_;

	foreach my $line (@$lines)
	{
		return $line if $line->{line} =~ $pattern && (!$which || $line->{$which});
	}
	die "no line matches $pattern";
}

# The same, somewhere behind the first tenth.
sub find_late
{
	my ($lines, $pattern, $which) = @_;
	my @found = grep { $_->{line} =~ $pattern && (!$which || $_->{$which}) } @$lines;

	die "no line matches $pattern" if !@found;
	return $found[ @found / 10 ];
}

# A change is a list of [ file, line, new lines... ]; no line: at the end.
sub without { return [ $_[0]{file}, $_[0]{line} ]; }
sub doubled { return [ $_[0]{file}, $_[0]{line}, $_[0]{line}, $_[0]{line} ]; }
sub changed { return [ $_[0]{file}, $_[0]{line}, $_[1] ]; }
sub added { return [ 'dump', undef, @_ ]; }

# What somebody acknowledged for certain: the line that says so, and the line of
# the delivery.
sub acknowledged
{
	my ($lines, $queue) = @_;

	foreach my $settled (grep { $_->{ok} && $_->{line} =~ / settled \d+ ack $queue \S+ t / } @$lines)
	{
		my $receipt = $settled->{words}[5];
		my ($got) = grep { $_->{ok} && $_->{line} =~ / got \d+ $queue \S+ \d+ $receipt / } @$lines;

		return ($settled, $got) if $got && $got->{file} =~ m{/(consumer|ordered)\d};
	}
	die 'nothing was acknowledged';
}

# A transaction that is rolled back, and in which a message is given out like in
# the line GOT, at that time.
sub delivery
{
	my ($got, $at, $value, $count) = @_;
	my @words = @{ $got->{words} };
	my $asked = $at - 1;
	my $ending = $at + 1;

	@words[ 0, 2, 4, 6, 7, 10 ] =
	  ($at, 99999999, $value // $words[4], 'ffffffff-0000-0000-0000-000000000000',
		$count // $words[7] + 1, $at + 1_000_000);
	return [
		'log/drainwork', undef, "$asked invoke 99999999 lease",
		"$asked ask 99999999 $words[3] 1 1000",
		"@words", "$ending fail 99999999 rolled-back" ];
}

my %changes = (
	'row of the dump deleted: lost' =>
	  sub { without(find_late($_[0], qr/^stored keys /)) },
	'row of the dump doubled: duplicated' =>
	  sub { doubled(find_late($_[0], qr/^archived work /)) },
	'row of an unknown message: unexpected' =>
	  sub { added('stored keys 99999999 nobody.1.1 0 d41d8cd98f00b204e9800998ecf8427e - 0 0 -') },
	'filler changed: payload' => sub {
		my $row = find_late($_[0], qr/^stored keys /);
		changed($row, $row->{line} =~ s/[0-9a-f]{32}/'0' x 32/er);
	},
	'message of a transaction that was rolled back: phantom' => sub {
		my $try = find($_[0], qr/ try \d+ work /, 'back');
		added("stored work 99999999 $try->{words}[4] $try->{words}[5] 0 - 0 0 -");
	},
	'acknowledgement deleted from a log: lost' => sub {
		my ($settled) = acknowledged($_[0], 'work');
		without($settled);
	},
	'delivery doubled in a log: duplicated' =>
	  sub { doubled(find_late($_[0], qr/ got \d+ effects \S+ \d+ - /, 'ok')) },
	'message left where it was acknowledged: resurrected' => sub {
		my (undef, $got) = acknowledged($_[0], 'work');
		added("stored work @{$got->{words}}[5, 4, 8, 9] - 1 0 -");
	},
	'message left in its queue: stranded' => sub {
		my ($settled, $got) = acknowledged($_[0], 'work');
		(without($settled), added("stored work @{$got->{words}}[5, 4, 8, 9] - 1 0 -"));
	},
	'delivery after an acknowledgement: resurrected' => sub {
		my ($settled, $got) = acknowledged($_[0], 'work');
		delivery($got, $settled->{words}[0] + 60_000_000);
	},
	'delivery during a lease: double-leased' => sub {
		my (undef, $got) = acknowledged($_[0], 'work');
		delivery($got, $got->{words}[0] + 2);
	},
	'delivery of another message of the group: group-lease' => sub {
		my ($settled, $got) = acknowledged($_[0], 'ordered');
		my %group = map { $_->{words}[4] => $_->{words}[6] }
		  grep { $_->{line} =~ / try \d+ ordered / } @{ $_[0] };
		my $group = $group{ $got->{words}[4] };
		my $other = find_late($_[0],
			qr/ got \d+ ordered (?!\Q$got->{words}[4]\E )\S+ /, undef);
		($other) = grep { $_->{line} =~ / got \d+ ordered / && $_->{words}[4] ne $got->{words}[4]
			  && $_->{words}[2] ne $got->{words}[2] && $group{ $_->{words}[4] } eq $group } @{ $_[0] };
		delivery({ words => [ @{ $other->{words} } ] }, $got->{words}[0] + 2, undef, 1);
	},
	'message of a group passed by: group-order' => sub {
		my ($settled) = acknowledged($_[0], 'ordered');
		without($settled);
	},
	'stale receipt accepted: stale-accepted' => sub {
		my $stale = find($_[0], qr/ settled \d+ ack work \S+ f /, 'ok');
		changed($stale, $stale->{line} =~ s/ f (\d+)$/ t $1/r);
	},
	'counter of a delivery changed: count' => sub {
		my $got = find_late($_[0], qr/ got \d+ work \S+ \d+ \S{36} 1 /, 'ok');
		changed($got, $got->{line} =~ s/( \S{36}) 1 /$1 3 /r);
	},
	'dead letter deleted: dead-letter' =>
	  sub { without(find($_[0], qr/^stored \S+\.dead .* rejected$/)) },
	'dead letter doubled: duplicated' =>
	  sub { doubled(find($_[0], qr/^stored \S+\.dead /)) },
	'effect deleted: effect' => sub { without(find_late($_[0], qr/^effect /)) },
	'effect doubled: effect' => sub { doubled(find_late($_[0], qr/^effect /)) },
	'key stored twice: idempotency' => sub {
		my $row = find_late($_[0], qr/^stored keys /);
		added($row->{line} =~ s/^(stored keys) \d+/$1 99999999/r);
	},
	'entry deleted: stream-density' => sub { without(find_late($_[0], qr/^entry /)) },
	'entry not read: stream-skip' => sub {
		my $read = find_late($_[0], qr/ entry \d+ g2 /, 'ok');
		without($read);
	},
	'entry read twice: stream-duplicated' => sub {
		doubled(find_late($_[0], qr/ entry \d+ g2 /, 'ok'));
	},
	'entries exchanged: stream-order' => sub {
		my @rows = grep { $_->{line} =~ /^entry 0 \d+ \d+ appender1\./ } @{ $_[0] };
		my ($first, $second) = @rows[ @rows / 3, @rows / 2 ];
		my @words = ([ @{ $first->{words} } ], [ @{ $second->{words} } ]);
		@{ $words[0] }[ 3 .. 7 ] = @{ $second->{words} }[ 3 .. 7 ];
		@{ $words[1] }[ 3 .. 7 ] = @{ $first->{words} }[ 3 .. 7 ];
		(changed($first, "@{$words[0]}"), changed($second, "@{$words[1]}"));
	},
	'message picked up late: liveness' => sub {
		my $probe = find($_[0], qr/ probe \d+ \d+ plain$/);
		changed($probe, $probe->{line} =~ s/ \d+ plain$/ 5000000 plain/r);
	},
	'damage found by amcheck: amcheck' => sub { added('amcheck heap q1_1 damaged') },
	'complaint of the server: server' =>
	  sub { [ 'server.log', undef, '1 PANIC:  could not go on' ] },
	'internal error: internal-error' => sub {
		my $fail = find($_[0], qr/ fail \d+ rolled-back$/);
		changed($fail, $fail->{line} =~ s/rolled-back$/XX000/r);
	},
	'unexpected error: error' => sub {
		my $fail = find($_[0], qr/ fail \d+ rolled-back$/);
		changed($fail, $fail->{line} =~ s/rolled-back$/22023/r);
	},
	'log cut off: incomplete' => sub { without(find($_[0], qr/^\d+ end \d+$/)) },
	'dump cut off: incomplete' => sub { without(find($_[0], qr/^end$/)) });

# Carries the changes out, in a copy of the directory.
sub apply
{
	my ($dir, @changes) = @_;
	my $copy = PostgreSQL::Test::Utils::tempdir('canary_');

	system('cp', '-r', "$dir/.", $copy) == 0 or die "could not copy $dir";
	foreach my $change (@changes)
	{
		my ($file, $old, @new) = @$change;
		my $text = slurp_file("$copy/$file");
		my $new = join '', map { "$_\n" } @new;

		if (!defined $old)
		{
			# Before the end.
			$text =~ s/^((?:\d+ )?end(?: \d+)?\n)\z/$new$1/m or $text .= $new;
		}
		else
		{
			$text =~ s/^\Q$old\E\n/$new/m or die "no such line in $file: $old";
		}
		open my $out, '>', "$copy/$file" or die $!;
		print $out $text;
		close $out;
	}
	return $copy;
}

# ---------------------------------------------------------------------------
# All of them
# ---------------------------------------------------------------------------

sub judge
{
	my ($name, $class, $verdict) = @_;
	my $found = $verdict->{violations}{$class} // 0;

	ok($found > 0 && !$verdict->{ok}, "canary: $name")
	  or diag($verdict->{report}, Chaos::keep($verdict->{dir}));
	note("$name: $class $found");
	return $found > 0 ? 1 : 0;
}

sub release
{
	my ($seed, $pattern) = @_;
	my ($caught, $all) = (0, 0);
	my $clean = Chaos::run(
		name => 'clean',
		seed => $seed,
		seconds => 5,
		faults => ['checkpoint']);

	ok($clean->{ok}, 'canaries: nothing is found where nothing was planted')
	  or diag($clean->{report});
	my @lines = read_lines($clean->{dir});
	foreach my $name (grep { /$pattern/ } sort keys %changes)
	{
		my ($class) = $name =~ /: ([\w-]+)$/;

		$all++;
		$caught += judge($name, $class, Chaos::check(apply($clean->{dir}, $changes{$name}->(\@lines))));
	}
	foreach my $run (grep { $_->{name} =~ /$pattern/ } @runs)
	{
		my ($prepare, %params) = ($run->{prepare}, %$run);

		next if $run->{applies} && !$run->{applies}->();
		$all++;
		$caught += judge(
			$run->{name},
			$run->{class},
			Chaos::run(
				seconds => 4,
				faults => ['checkpoint'],
				%params,
				without_probe => $run->{class} ne 'liveness',
				name => "canary$all",
				seed => $seed + $all,
				prepare => sub {
					$_[0]->safe_psql('postgres', $setup);
					$prepare->($_[0]) if $prepare;
				}));
	}
	return ($caught, $all);
}

1;
