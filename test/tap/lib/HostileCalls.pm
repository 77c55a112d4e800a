# HostileCalls.pm: calls of SQL functions with arguments that nobody expects.
#
#   HostileCalls->new(FUNCTIONS, KNOWN)   FUNCTIONS as 034_bad_input.pl reads them
#                                         from the catalog; KNOWN: name of an
#                                         argument, or function.argument =>
#                                         list of what exists
#   $calls->next                          a statement, on one line, and the
#                                         name of the function
#
# Every argument is either sensible or hostile.  A sensible one is left to its
# default, or goes by its name: a queue that there is, a receipt that counts.  A
# hostile one goes by its type.  In most calls few arguments are hostile, so
# that they get past the checks of the others.
#
# A value is an SQL expression of the right type, since what the parser refuses
# never gets to the function.  rand() is the only source of chance.

package HostileCalls;

use strict;
use warnings;

# What a body has and no error may show.
our $marker = 'b0dy-of-a-message';

# An argument that makes a call wait is at most what a test can wait for, or so
# much that it is refused.
my $waiting = qr/^(wait|timeout)$/;

sub pick { return $_[ int(rand(@_)) ]; }

# TEXT as a literal, without line breaks.
sub quoted
{
	my ($text) = @_;

	$text =~ s/'/''/g;
	$text =~ s/\\/\\\\/g;
	$text =~ s/([\x01-\x1f\x7f])/sprintf '\\x%02x', ord $1/ge;
	return "E'$text'";
}

# A string of JSON.
sub json_string
{
	my ($text) = @_;

	$text =~ s/([\\"])/\\$1/g;
	$text =~ s/([\x01-\x1f])/sprintf '\\u%04x', ord $1/ge;
	return qq{"$text"};
}

# The name of an array's elements.
sub singular
{
	my ($name) = @_;

	return $name eq 'headers' ? $name : $name =~ s/ies$/y/r =~ s/s$//r;
}

sub new
{
	my ($class, $functions, $known) = @_;
	my $self = bless { functions => $functions, known => $known }, $class;
	my $version = $known->{version}[0];

	# What settings there are, for the functions that alter them.
	foreach my $function (@$functions)
	{
		my ($kind) = $function->{name} =~ /^create_(queue|stream|topic)$/ or next;

		$self->{settings}{"alter_$kind"} =
		  [ grep { $_->{name} !~ /^($kind|if_not_exists)$/ } @{ $function->{arguments} } ];
	}
	push @{ $self->{settings}{alter_topic} }, { name => 'retain', type => 'boolean' },
	  { name => 'max_retained', type => 'integer' };
	$self->{infinite} = $version >= 170000 ? [ 'infinity', '-infinity' ] : [];
	return $self;
}

# Texts that have a meaning to somebody: to SQL, to formats, to shells, to the
# parsers of patterns, times and numbers.
my @texts = (
	'', ' ', '"', "'", '\\', "\\'", '%s%n%1$s', '$1', '$$', '{}', '[]', 'a,b',
	'--', '/*', ';', 'null', "a\nb", "\r", "\t", "\x01", "\x1b[31m", "\x7f",
	'msgq', 'msgq.queue', 'pg_class', 'public', 'PUBLIC', 'current_user', 'none',
	"x'; DROP TABLE victim; --", 'x"; DROP TABLE victim; --', '../../etc/passwd',
	'{"a": ', '0', '-1', '1e400', '9223372036854775808', '-9223372036854775808',
	'2147483647', 'NaN', 'infinity', '-infinity', 'epoch', 'now', 'true',
	'2026-02-30', '294277-01-01', '12:00', '@every 0s', '@every -1s',
	'@every 1000000 years', '@every', '@', '* * * *', '* * * * * *',
	'*/0 * * * *', '60 * * * *', '1-0 * * * *', '0 0 31 2 *', '0 0 29 2 *',
	'*/99999999999 * * * *', '0,0,0,0 * * * *', 'UTC+25', '<x>+1', ':foo',
	'first', 'new', '.', '..', '#.#.#.#', '*.*', '#', '*', 'a.#.b.#.c', '>', '+',
	'/', '$share/g/a', 'sport/+/#', 'q.dead', 'a.b', '"a"."b"', '"a', 'a.b.c', 'postgres.public.c', 'a.b.c.d',
	# Characters of several bytes, cut where they end and where they do not.
	"\xc3\xa9t\xc3\xa9", "e\xcc\x81", "\xe2\x80\xa8", "\xc2\x85", "\xf0\x9f\x98\x80",
	'a' x 63, 'a' x 64, "\xc3\xa9" x 31 . 'a', "\xc3\xa9" x 32,
	'a' x 62 . "\xc3\xa9", "\xf0\x9f\x98\x80" x 15 . 'abc', 'a' x 255, 'a' x 256,
	'a' x 254 . "\xc3\xa9", '"' x 63, '%' x 63);

# Those that are too large to be written out, or no text at all.
my @large_texts = (
	q{repeat('a', 1000000)},
	q{repeat('a.', 50000)},
	q{repeat('#.', 120) || 'b'},
	q{repeat('*.#.', 60)},
	q{repeat('[', 5000)},
	q{repeat('1,', 20000) || '1 * * * *'},
	q{convert_from('\xc328', 'UTF8')},
	q{convert_from('\xed', 'LATIN1')},
	q{chr(1114111)});

my @json = (
	'null', 'true', '0', '-1', '1e400', '99999999999999999999', '""', '"\\u0001"',
	'[]', '{}', '[null]', '[[]]', '{"": ""}', '{"a": null}', '{"a": {"a": []}}',
	'{"a": 1, "a": 2}', '[1, "a", null, {}, []]', '{"body": {}}', '[{"body": 1}]',
	'[{"body": null, "delay": "x"}]', '[{"body": 1, "priority": 1e9}]',
	'[{"body": 1, "ttl": "-1 s"}, 7]', '[{"data": 1}]', '[{"BODY": 1}]',
	'{"msgq-death": []}', '{"msgq-error": 1}', '{"msgq-reply-to": "untouched"}',
	'{"x-match": "any", "a": null}', '{"x-match": 1}', '{"x-": [], "x-match": "none"}',
	'{"traceparent": "00-' . '0' x 32 . '-' . '0' x 16 . '-01"}',
	'{"traceparent": 1, "tracestate": {}}', '{"content-type": []}',
	'{"ce-specversion": "1.0", "ce-id": 1, "ce-time": "never"}',
	'{"ce-specversion": "1.0", "ce-id": "", "ce-source": {}, "ce-type": "t"}',
	'{"specversion": "1.0", "id": "", "source": "s", "type": "t"}',
	'{"specversion": "1.0", "id": "1", "source": "s", "type": "t", "time": "2026-02-30T00:00:00Z"}',
	'{"specversion": "1.0", "id": "2", "source": "s", "type": "t", "data": 1, "data_base64": ""}',
	'{"specversion": "1.0", "id": "3", "source": "s", "type": "t", "data_base64": "=*"}',
	'{"specversion": "1.0", "id": "4", "source": "s", "type": "t", "A b": 1}',
	'{"specversion": "1.0", "id": "5", "source": "s", "type": "t", "n": 1e10}',
	'{"specversion": "1.0", "id": "6", "source": "s", "type": "t", "expirytime": "0000-00-00T99:99:99Z"}');

my @large_json = (
	q{to_jsonb(repeat('a', 1000000))},
	q{(repeat('[', 3000) || repeat(']', 3000))::jsonb},
	q{(repeat('{"a":', 3000) || '1' || repeat('}', 3000))::jsonb},
	q{to_jsonb(array_fill(1, ARRAY[10001]))},
	q{to_jsonb(array_fill('{"body": 1}'::jsonb, ARRAY[10001]))},
	q{to_jsonb(string_to_array(repeat('v,', 5000), ','))},
	q{jsonb_build_object(repeat('k', 100000), 1)});

my @paths = (
	'$', 'strict $', '$.headers', '$.body', 'strict $.body.none', '$.**', '$.** ? (@ == 1)',
	'$.body.** ? (@.a > 1).a', '$[*] ? (@ like_regex "(a+)+$")', '$ ? (@.a == $x)',
	'1 / 0', '1 / 0 == 1', '$.body + 1 > "a"', '$[2147483647]', 'strict $[99999999999]',
	'$.body.datetime()', '$.keyvalue().key', '$.body.double() > 1e308', '-$.body',
	'exists($.headers ? (@.a starts with "m"))', '($.body == 1) is unknown',
	'strict $.body[last]', '$.body.type()', 'null', 'true', '"a" == "a"',
	'$' . '.a' x 1000, '$' . ' ? (@ == 1)' x 200);

my @intervals = (
	'0', '-1 us', '1 us', '-1 day', '1 mon -30 days', '1 day -24 hours', '100 years',
	'100 years 1 us', '178000000 years', '-178000000 years',
	'2147483647 days', '-2147483648 days', '2562047788 hours',
	'2147483647 mons 2147483647 days 2562047788 hours',
	'-2147483648 mons -2147483648 days -2562047788 hours');

my @times = (
	'infinity', '-infinity', '4713-01-01 00:00:00+00 BC', '294276-12-31 23:59:59.999999+00',
	'epoch', 'now', '1999-12-31 23:59:60+00', '2026-03-29 02:30:00 Europe/Berlin',
	'0001-01-01 00:00:00+00 BC', '294276-01-01 00:00:00+00');

# Of each type values that nobody expects: expressions, or texts.
my %hostile = (
	boolean => [ 'true', 'false' ],
	smallint => [ 0, -1, 32767, -32768 ],
	integer => [ 0, -1, 1, 2, 10000, 10001, 65536, 2147483647, -2147483648 ],
	bigint => [
		0, -1, 1, 10001, 2147483648, 281474976710656,
		'9223372036854775807', '-9223372036854775808'
	],
	'double precision' =>
	  [ 0, '-0', -1, '1e308', '1e-308', 'NaN', 'Infinity', '-Infinity', '0.5' ],
	text => [ @texts, map { \$_ } @large_texts ],
	jsonb => [ @json, map { \$_ } @large_json ],
	jsonpath => \@paths,
	interval => \@intervals,
	'timestamp with time zone' => \@times,
	uuid => [
		'00000000-0000-0000-0000-000000000000',
		'ffffffff-ffff-ffff-ffff-ffffffffffff',
		'6ba7b810-9dad-11d1-80b4-00c04fd430c8',
		\q{gen_random_uuid()}
	],
	bytea => [
		'', '\x00', '\xff', '\xc328eda080', \q{decode(repeat('00', 1048577), 'hex')},
		\qq{'$marker'::bytea}
	],
	regclass => [
		'0', '4294967295', 'pg_class', 'pg_authid', 'msgq.queue', 'msgq.queue_id',
		'msgq.queues', 'msgq.inbox_1', 'msgq.message', 'pg_toast.pg_toast_1255',
		'pg_class_oid_index', 'information_schema.tables', 'captured', 'captured_pkey',
		'captured_view', 'captured_parts', 'captured_part', 'captured_foreign',
		'captured_matview', 'captured_sequence', 'captured_temp'
	],
	name => \@texts,
	'"char"' => [ '', 'a', "\xff" ],
	oid => [ 0, 1, 4294967295 ],
);

# Values that make sense: by the name of the argument, then by type.  What is
# known of the server goes before both.
my %sensible = (
	pattern => [ '#', 'a.*', '*.b', 'a.b', 'a.#' ],
	routing_key => [ 'a.b', 'a', '', 'a.b.c' ],
	syntax => [ 'amqp', 'mqtt', 'nats' ],
	kind => [ 'direct', 'fanout', 'topic', 'headers' ],
	on_unroutable => [ 'error', 'drop', 'alternate' ],
	overflow => [ 'reject', 'drop_oldest', 'dead_letter' ],
	on_exhausted => [ 'skip', 'block' ],
	right => [ 'peek', 'send', 'receive', 'manage', 'admin' ],
	what => [ 'receive', 'send', 'all' ],
	'events[]' => [ "'{insert}'", "'{insert,update,delete}'", "'{truncate}'" ],
	'columns[]' => [ "'{id}'", "'{id,payload}'" ],
	key => [ 'id', 'payload' ],
	spec => [ '* * * * *', '0 12 * * 1-5', '@every 1h', '@daily', '@every 1s' ],
	timezone => [ 'UTC', 'Europe/Berlin', 'America/St_Johns' ],
	catch_up => [ 'one', 'none', 'all' ],
	start_from => [ 'first', 'new', '1', '2026-01-01' ],
	partition => [ 0, 1, 2 ],
	partitions => [ 1, 2, 3 ],
	priority => [ 0, 0, 0, 1, 2 ],
	priorities => [ 1, 2, 10 ],
	id => [ 1 .. 40 ],
	upto => [ 1 .. 5 ],
	expected_id => [ 0 .. 5 ],
	from_position => [ 1 .. 5 ],
	after_id => [ 0 .. 5 ],
	max_message_bytes => [ 1000, 10000, 1048576 ],
	max_length => [ 10, 1000 ],
	headers => [ '{}', '{"a": 1}', '{"content-type": "text/plain"}' ],
	header_match => [ '{"a": 1}', '{"x-match": "any", "a": 1, "b": null}' ],
	body => [ '1', 'null', qq{{"a": "$marker"}}, qq{["$marker"]} ],
	reply => [ qq{{"a": "$marker"}} ],
	messages => [
		qq([{"body": "$marker"}]),
		qq([{"body": {"a": "$marker"}, "headers": {"a": 1}, "delay": "1 s"}, {"body": 1, "group_key": "k"}])
	],
	event => [
		qq({"specversion": "1.0", "id": "7", "source": "s", "type": "t", "data": "$marker"}),
		qq({"specversion": "1.0", "id": "8", "source": "s", "type": "t", "partitionkey": "k", "data": {"a": "$marker"}})
	],
	group_key => [ 'k', 'l', 'm' ],
	idempotency_key => [ 'once', 'twice' ],
	boolean => [ 'true', 'false' ],
	integer => [ 1, 2, 10 ],
	bigint => [ 1, 2, 1000 ],
	'double precision' => [ 1, 2.5 ],
	interval => [ '0', '1 s', '10 min', '1 day' ],
	'timestamp with time zone' => [ 'now', '2026-01-01 00:00:00+00' ],
	jsonpath => [ '$.body.a == 1', 'exists($.headers.a)', '$.body' ],
	bytea => [ $marker, 'x' ],
	text => [ 'text' ]);

# A value of TYPE: an expression stays one, a text becomes a literal.
sub typed
{
	my ($value, $type) = @_;

	return ref $value ? "($$value)::$type" : quoted($value) . "::$type";
}

sub sensible
{
	my ($self, $name, $type, $function) = @_;
	my $value;

	return $self->settings($function, 0)
	  if $name eq 'settings' && $self->{settings}{$function};
	return $self->message(0) if $type eq 'msgq.message';
	return pick(@{ $sensible{"$name\[]"} }) . "::$type" if $sensible{"$name\[]"};
	if ($type =~ /^(.*)\[\]$/)
	{
		my $element = $1;

		# Two elements, so that the arrays of a call fit each other.
		return 'ARRAY['
		  . join(', ', map { $self->sensible(singular($name), $element, $function) } 1 .. 2)
		  . "]::$type";
	}
	return quoted(pick('0', '1 ms', '5 ms')) . "::$type" if $name =~ $waiting;
	$value = pick(@{
			$self->{known}{"$function.$name"} // $self->{known}{$name}
			  // $sensible{$name} // $sensible{$type} // [undef] });
	return defined $value ? typed($value, $type) : "NULL::$type";
}

sub hostile
{
	my ($self, $name, $type, $function) = @_;

	return "NULL::$type" if rand() < 0.1;
	return $self->settings($function, 0.3)
	  if $name eq 'settings' && $self->{settings}{$function} && rand() < 0.7;
	return $self->message(0.3) if $type eq 'msgq.message';
	return $self->array($name, $1, $function) if $type =~ /^(.*)\[\]$/;
	return typed(pick(grep { $name !~ $waiting || $_ ne '100 years' }
			  @intervals, @{ $self->{infinite} }), $type)
	  if $type eq 'interval';
	return typed(pick(@{ $hostile{$type} // [ \'NULL' ] }), $type);
}

# Of wrong shape, with NULLs, of hostile elements, large, or with any bounds.
sub array
{
	my ($self, $name, $element, $function) = @_;
	my $single = singular($name);
	my $type = "${element}[]";
	my @elements = map {
		rand() < 0.5
		  ? $self->sensible($single, $element, $function)
		  : $self->hostile($single, $element, $function)
	} 1 .. 3;
	my $form = int(rand(8));

	return "'{}'::$type" if $form == 0;
	return "ARRAY[NULL]::$type" if $form == 1;
	return "ARRAY[$elements[0], NULL]::$type" if $form == 2;
	return "ARRAY[[$elements[0]], [$elements[1]]]::$type" if $form == 3;
	return "array_fill($elements[0], ARRAY[2], ARRAY[-7])" if $form == 4;
	return "array_fill($elements[0], ARRAY[1, 2, 1], ARRAY[2147483640, 0, -1])"
	  if $form == 5;
	# Large ones of small elements.
	return 'array_fill('
	  . $self->sensible($single, $element, $function)
	  . ', ARRAY[' . pick(10001, 100000) . '])'
	  if $form == 6 && rand() < 0.3;
	return 'ARRAY[' . join(', ', @elements) . "]::$type";
}

# Settings as an object, each of them hostile with a probability.
sub settings
{
	my ($self, $function, $hostility) = @_;
	my %object;

	foreach (1 .. pick(0, 1, 1, 1, 2, 3))
	{
		my $setting = pick(@{ $self->{settings}{$function} });
		my $name = rand() < $hostility ? pick(@texts) : $setting->{name};
		my @known = map { @{ $_ // [] } }
		  $self->{known}{ $setting->{name} }, $sensible{ $setting->{name} };

		@known = @{ $sensible{ $setting->{type} } } unless @known;
		$object{ json_string($name) } =
		    rand() < $hostility ? pick(@json)
		  : rand() < $hostility ? json_string(pick(@texts, @intervals, @{ $self->{infinite} }))
		  : json_string(pick(@known));
	}
	return quoted('{' . join(', ', map { "$_: $object{$_}" } sort keys %object) . '}')
	  . '::jsonb';
}

# A row as receive() returns it, or one that nobody has made.
sub message
{
	my ($self, $hostility) = @_;
	my @columns = (
		[ 'id', 'bigint' ], [ 'receipt', 'uuid' ],
		[ 'deliveries', 'integer' ], [ 'failures', 'integer' ],
		[ 'priority', 'smallint' ], [ 'group_key', 'text' ],
		[ 'enqueued_at', 'timestamp with time zone' ],
		[ 'visible_at', 'timestamp with time zone' ],
		[ 'expires_at', 'timestamp with time zone' ],
		[ 'headers', 'jsonb' ], [ 'body', 'jsonb' ], [ 'data', 'bytea' ]);

	return 'ROW('
	  . join(', ',
		map { rand() < $hostility ? $self->hostile(@$_, '') : $self->sensible(@$_, '') }
		  @columns)
	  . ')::msgq.message';
}

# The function of triggers can be called by triggers only: by such as everybody
# can make.
sub trigger
{
	my ($self, $function) = @_;
	my $arguments = join ', ', map { quoted(pick(@texts, '1', '2')) } 1 .. int(rand(4));
	my $events = pick('INSERT', 'UPDATE', 'DELETE', 'UPDATE OF payload', 'INSERT OR DELETE');
	my $what = pick(
		"BEFORE $events ON captured FOR EACH ROW",
		"AFTER $events ON captured FOR EACH ROW",
		"BEFORE $events ON captured",
		"AFTER $events ON captured",
		'AFTER TRUNCATE ON captured',
		'AFTER INSERT ON captured REFERENCING NEW TABLE AS new FOR EACH STATEMENT',
		'AFTER DELETE ON captured REFERENCING OLD TABLE AS o FOR EACH STATEMENT',
		'INSTEAD OF INSERT ON captured_view FOR EACH ROW');
	my $name = pick('t', 'msgq_capture_1_row', 'msgq_capture_2_insert',
		'msgq_capture_1_columns', 'msgq_capture_99999999999_x');

	return "SELECT msgq.$function()" if rand() < 0.1;
	return "BEGIN; CREATE TRIGGER $name $what EXECUTE FUNCTION msgq.$function($arguments); "
	  . "INSERT INTO captured VALUES (1, '$marker'); UPDATE captured SET payload = 'x'; "
	  . 'INSERT INTO captured_view VALUES (2, NULL); DELETE FROM captured; TRUNCATE captured; ROLLBACK';
}

sub next
{
	my ($self) = @_;
	my $function = pick(@{ $self->{functions} });
	my $name = $function->{name};
	my $quoted = qq{msgq."$name"};
	my $hostility = pick(0, 0.15, 0.4, 0.8);
	my (@arguments, $is_named);

	return ($self->trigger($name), $name) if $function->{result} eq 'trigger';
	foreach my $argument (@{ $function->{arguments} })
	{
		my $is_hostile = rand() < $hostility;
		my $value;

		if ($argument->{has_default} && !$is_hostile && rand() < 0.5)
		{
			$is_named = 1;
			next;
		}
		$value = $is_hostile
		  ? $self->hostile($argument->{name}, $argument->{type}, $name)
		  : $self->sensible($argument->{name}, $argument->{type}, $name);
		push @arguments, $is_named ? qq{"$argument->{name}" => $value} : $value;
	}

	my $call = "$quoted(" . join(', ', @arguments) . ')';
	my $statement =
	    $function->{kind} eq 'p' ? "CALL $call"
	  : rand() < 0.1 ? "SELECT $call"
	  : rand() < 0.1 ? "SELECT * FROM $call LIMIT 1"
	  : "SELECT * FROM $call";
	$statement = 'BEGIN' . pick('', ' ISOLATION LEVEL SERIALIZABLE', ' READ ONLY')
	  . "; $statement; ROLLBACK"
	  if rand() < 0.1;
	return ($statement, $name);
}

1;
