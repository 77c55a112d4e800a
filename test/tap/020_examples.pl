# The examples of docs/: what stands there as SQL runs, and gives what stands
# below it.
#
# Catches: examples that no longer work, or show what is no longer so.
#
# A block ```sql is input of psql.  A block ```text that follows it, with
# nothing but empty lines in between, is what psql prints for it, errors
# included; blanks at the ends of lines do not count.  A block without one must
# run without an error, else the rest of its file is not run.  The blocks of a
# file run in one session, in a database of their own.  The extension is there,
# unless the file creates it.

use strict;
use warnings;

use File::Basename;
use FindBin;
use lib "$FindBin::RealBin/lib";

use IPC::Run;
use MsgqTest;
use PostgreSQL::Test::Utils;
use Test::More;

# Blanks at the ends of lines, and empty lines at the end.
sub trimmed
{
	my ($text) = @_;

	$text =~ s/[ \t]+$//mg;
	$text =~ s/\n+\z/\n/;
	return $text;
}

# The SQL blocks of a file: line, code, and the output if it is given.
sub examples
{
	my ($markdown) = @_;
	my @blocks;

	while ($markdown =~ /^```sql\n(.*?)^```\n(?:\n*^```text\n(.*?)^```\n)?/msg)
	{
		my ($code, $output) = ($1, $2);
		my $before = substr($markdown, 0, $-[0]);

		push @blocks,
		  {
			line => 1 + ($before =~ tr/\n//),
			code => $code,
			output => $output
		  };
	}
	return @blocks;
}

# What psql prints for each of the blocks that it runs to the end, and one piece
# more.
sub outputs
{
	my ($node, $dbname, @blocks) = @_;
	my $mark = '=== end of block ===';
	my $script = '';
	my $output = '';

	foreach my $block (@blocks)
	{
		my $stop = defined $block->{output} ? 'off' : 'on';

		$script .=
		  "\\set ON_ERROR_STOP $stop\n$block->{code}\\echo '$mark'\n";
	}
	IPC::Run::run(
		[
			$node->installed_command('psql'), '-X',
			'-d', $node->connstr($dbname)
		],
		'<',
		\$script,
		'>',
		\$output,
		'2>&1',
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return map { trimmed($_) } split /^\Q$mark\E\n/m, $output, -1;
}

# How two texts differ, as diff shows it.
sub difference
{
	my ($expected, $found) = @_;
	my $diff;

	IPC::Run::run([ 'diff', '-u', text_file($expected), text_file($found) ],
		'>', \$diff);
	$diff =~ s/\A--- .*\n\+\+\+ .*\n//;
	return $diff;
}

# Does the block give what stands below it?
sub check_output
{
	my ($where, $expected, $found) = @_;

	ok($found eq $expected, "$where: the output")
	  or diag(difference($expected, $found));
	return;
}

sub check_file
{
	my ($node, $path) = @_;
	my $name = basename($path, '.md');
	my @blocks = examples(slurp_file($path));

	return if !@blocks;
	$node->safe_psql('postgres', qq{CREATE DATABASE "$name"});
	$node->safe_psql($name, 'CREATE EXTENSION msgq')
	  unless grep { $_->{code} =~ /CREATE EXTENSION msgq/ } @blocks;
	my @outputs = outputs($node, $name, @blocks);

	foreach my $block (@blocks)
	{
		my $where = "$name.md, line $block->{line}";
		my $output = shift @outputs;

		if (!@outputs)
		{
			fail("$where: runs without an error");
			diag($output);
			return;
		}
		check_output($where, trimmed($block->{output}), $output)
		  if defined $block->{output};
	}
	pass("$name.md: " . @blocks . ' examples run');
	return;
}

# The worker would do at any time what the examples do step by step.
my $node = new_node('examples', 'msgq.worker = off');

check_file($node, $_) foreach sort glob "$FindBin::RealBin/../../docs/*.md";

done_testing();
