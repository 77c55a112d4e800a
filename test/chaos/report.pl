# report.pl: the tables of docs/reliability.md, from the logs of chaos runs.
#
# usage: perl report.pl LOG...
#
# Each LOG is what test/tap/032_chaos.pl has printed in one home (after
# `make chaos`: tmp/test/logs/<home>.tap.log).  Prints Markdown: one table with a
# row for each scenario, one with what was done to the servers, one with what came
# of it; each with a column for each home.

use strict;
use warnings;

my %homes;
my (%scenarios, %faults, %sums, %violations);
my (@order, %known);

# The classes of what is counted, in the words of the checker (check.pl).
my @results = (
	[ 'crash recoveries and promotions that the logs tell of' => qr/^recoveries$/ ],
	[ 'transactions committed' => qr/^transactions C$/ ],
	[ 'rolled back' => qr/^transactions A$/ ],
	[ 'prepared' => qr/^transactions prepared$/ ],
	[ 'outcome unknown to the client, and asked for afterwards' => qr/^transactions unknown-/ ],
	[ 'of all outcomes asked for, answers that were another transaction\'s' =>
		  qr/^transactions xid-reused$/ ],
	[ 'confirmed, and unknown to the standby that took over (allowed: `lagging`; `standby`, where a '
		  . 'cancel has broken off the wait)' => qr/^transactions undone$/ ],
	[ 'outcome not to be decided' => qr/^transactions U$/ ],
	[ 'statements canceled or timed out (57014, 55P03)' => qr/^failed (?:57014|55P03)$/ ],
	[ 'connections lost or refused' => qr/^failed (?:08|57P)/ ],
	[ 'no space (53100)' => qr/^failed 53100$/ ],
	[ 'deadlocks (40P01)' => qr/^failed 40P01$/ ],
	[ 'messages whose sending was confirmed' => qr/^count (?!events)\w+-sent$/ ],
	[ 'of these acknowledged or popped' => qr/^count \w+-taken$/ ],
	[ 'archived' => qr/^count \w+-archived$/ ],
	[ 'dead letters' => qr/^count \w+-dead$/ ],
	[ 'left where nobody receives' => qr/^count (?!events)\w+-stored$/ ],
	[ 'outcome of the acknowledgement not known' => qr/^count \w+-unknown$/ ],
	[ 'stream entries whose appending was confirmed' => qr/^count events-sent$/ ],
	[ 'deliveries' => qr/^deliveries$/ ],
	[ 'settlements' => qr/^settlements$/ ],
	[ 'leases that a crash or a promotion has undone, as it may' => qr/^explained / ]);

sub read_log
{
	my ($file) = @_;
	my ($home, $scenario);

	open my $log, '<', $file or die "could not open $file: $!\n";
	while (my $line = <$log>)
	{
		if ($line =~ /^# run scenario=(\S+) seed=(\d+) seconds=(\d+) home=(\S+) commit=(\S+)/)
		{
			($scenario, $home) = ($1, $4);
			push @order, $scenario if !$known{$scenario}++;
			$homes{$home}{commit} = $5;
			push @{ $homes{$home}{seeds} }, $2;
			$scenarios{$scenario}{$home}{runs}++;
			$scenarios{$scenario}{$home}{seconds} += $3;
		}
		next if !defined $home || $line !~ /^# ([\w-]+.*)$/;
		my $text = $1;
		if ($text =~ /^fault (\S+) (.*)/)
		{
			my ($name, $words) = ($1, $2);
			$faults{$name}{$home}{$1} += $2 while $words =~ /(\S+)=(\d+)/g;
		}
		elsif ($text =~ /^violations (\S+) (\d+)$/)
		{
			$violations{$home} += $2;
			$scenarios{$scenario}{$home}{violations} += $2;
		}
		elsif ($text =~ /^slowest-pickup-ms ([\d.]+)$/)
		{
			$sums{$home}{slowest} = $1 if $1 > ($sums{$home}{slowest} // 0);
		}
		elsif ($text =~ /^(recoveries|deliveries|settlements|(?:transactions|failed|count|explained) \S+) (\d+)$/)
		{
			$sums{$home}{$1} += $2;
			$scenarios{$scenario}{$home}{committed} += $2 if $1 eq 'transactions C';
		}
	}
	close $log;
	return;
}

# 1234567 as 1,234,567
sub grouped
{
	my $text = reverse $_[0];
	$text =~ s/(\d{3})(?=\d)/$1,/g;
	return scalar reverse $text;
}

sub row { return '| ' . join(' | ', @_) . " |\n"; }

sub head
{
	my ($title, @columns) = @_;
	return row($title, @columns) . row(('---') x (1 + @columns));
}

# What a fault has counted, but for what tells of its success: done, skipped, and
# what survived it.
sub how_often
{
	my ($fault) = @_;
	my ($main) = grep { !/^(?:done|skipped|prepared-survivors)$/ } sort keys %$fault;

	return $main ? $fault->{$main} : $fault->{done} // 0;
}

read_log($_) foreach @ARGV;
my @homes = sort { $b cmp $a } keys %homes;

foreach my $home (@homes)
{
	my @seeds = sort { $a <=> $b } @{ $homes{$home}{seeds} };
	print "$home: seeds $seeds[0] to $seeds[-1], commit $homes{$home}{commit}\n";
}
print "\n", head('scenario', map { ("$_: runs, seconds", 'transactions committed', 'violations') } @homes);
foreach my $name (@order)
{
	print row("`$name`", map {
		my $s = $scenarios{$name}{$_};
		(($s->{runs} // 0) . ', ' . ($s->{seconds} // 0), grouped($s->{committed} // 0),
			$s->{violations} // 0)
	} @homes);
}
print "\n", head('what was done', @homes);
foreach my $name (sort keys %faults)
{
	print row($name =~ s/-/ /gr, map { grouped(how_often($faults{$name}{$_})) } @homes);
}
print row('prepared transactions that survived a crash', map {
	my $home = $_;
	my $n = 0;
	$n += $faults{$_}{$home}{'prepared-survivors'} // 0 foreach keys %faults;
	grouped($n)
} @homes);
print "\n", head('what came of it', @homes);
foreach my $result (@results)
{
	my ($name, $pattern) = @$result;
	print row($name, map {
		my $home = $_;
		my $n = 0;
		$n += $sums{$home}{$_} foreach grep { $_ =~ $pattern } keys %{ $sums{$home} };
		grouped($n)
	} @homes);
}
print row('slowest message to reach a receive that waits, ms', map { $sums{$_}{slowest} // '-' } @homes);
print row('**violations, of all classes**', map { $violations{$_} // 0 } @homes);
