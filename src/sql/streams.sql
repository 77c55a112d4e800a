/*
 * streams.sql: ordered logs that many groups read, and read again.
 */

CREATE FUNCTION msgq.create_stream(
	stream text,
	partitions int DEFAULT 1,
	retention interval DEFAULT '7 days',
	retention_bytes bigint DEFAULT NULL,
	retention_entries bigint DEFAULT NULL,
	hold_for_groups boolean DEFAULT false,
	dead_letter_queue text DEFAULT NULL,
	if_not_exists boolean DEFAULT false)
RETURNS void
AS 'MODULE_PATHNAME', 'msgq_create_stream'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.create_stream(text, int, interval, bigint, bigint, boolean, text, boolean) IS
'makes a stream; the caller needs CREATE on schema msgq and gets all rights on it, with grant option.
stream: 1 to 63 bytes of printable text, taken as it is; no queue or topic may have the same name. partitions: 1 to 1000; entries with the same key are in the same one, and in order. retention, retention_bytes, retention_entries: entries are dropped, a whole segment at a time, when their positions are older than this, or when so many bytes or entries would be left; NULL for no such limit. hold_for_groups: entries that a group has not read are kept, up to max_held_bytes (see msgq.alter_stream). dead_letter_queue: a queue to which the caller may send, for entries that a group gives up; NULL: they are delivered again for ever. if_not_exists: an existing stream is left alone, with a warning if its settings differ.
Errors: 22023 bad name or setting, 22004 NULL, 42710 stream, queue or topic exists, 42704 no such dead-letter queue, 42501 no right.';

CREATE FUNCTION msgq.alter_stream(stream text, settings jsonb)
RETURNS void
AS 'MODULE_PATHNAME', 'msgq_alter_stream'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.alter_stream(text, jsonb) IS
'changes settings of a stream, all or nothing; needs the right admin.
settings: an object whose keys are arguments of msgq.create_stream, intervals as text, and max_deliveries (10 in a new stream: a batch that msgq.poll has delivered so often in vain goes to the dead-letter queue, entry by entry) and max_held_bytes (10 GiB in a new stream: where hold_for_groups keeps more than that, the oldest segments are dropped nevertheless; null for no limit). A change of partitions waits for all transactions that append to the stream, and keeps new ones waiting until it is committed; groups read all that was appended before it first.
Errors: 22023 unknown key or bad value (22007, 22P02, 22003 where its text is no interval or number), 22004 NULL, 42704 no such stream or dead-letter queue, 42501 no right.';

CREATE FUNCTION msgq.drop_stream(stream text, if_exists boolean DEFAULT false)
RETURNS boolean
AS 'MODULE_PATHNAME', 'msgq_drop_stream'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.drop_stream(text, boolean) IS
'drops a stream with all its entries and groups; needs the right admin. Waits for transactions that use the stream.
Result: true, or false if there was none and if_exists is true.
Errors: 42704 no such stream, 22023 name too long, 42501 no right, 22004 NULL, 2BP01 schedules send to it.';

CREATE FUNCTION msgq.append(
	stream text,
	body jsonb,
	key text DEFAULT NULL,
	headers jsonb DEFAULT NULL,
	idempotency_key text DEFAULT NULL,
	expected_id bigint DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME', 'msgq_append'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.append(text, jsonb, text, jsonb, text, bigint) IS
'appends an entry to a stream, in the caller''s transaction; needs the right send.
body: with a key, NULL makes a tombstone, after which msgq.last_per_key leaves the key out. key: 1 to 255 bytes; entries with the same key are in one partition and in order, entries without are spread. headers: an object, without names that begin with msgq-. idempotency_key: 1 to 255 bytes; as long as an entry with this key is kept, nothing is stored and its id is returned. expected_id: the id of the key''s last entry, 0 for none; the key is locked to the end of the transaction.
Result: the id of the entry. Ids rise, and may leave gaps; the place of an entry is its position, which it gets after the commit.
Errors: 42704 no such stream, 42501 no right, 22004 NULL, 22023 bad key or headers, 54000 too large, MQ003 the key has another last entry, or somebody is appending one, MQ006 idempotency key reused with another body, 25006 read-only or standby.';

CREATE FUNCTION msgq.append_bytes(
	stream text,
	data bytea,
	key text DEFAULT NULL,
	headers jsonb DEFAULT NULL,
	idempotency_key text DEFAULT NULL,
	expected_id bigint DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME', 'msgq_append_bytes'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.append_bytes(text, bytea, text, jsonb, text, bigint) IS
'appends an entry whose content is bytes; otherwise as msgq.append.';

CREATE FUNCTION msgq.append_batch(
	stream text,
	bodies jsonb[],
	keys text[] DEFAULT NULL,
	headers jsonb[] DEFAULT NULL)
RETURNS bigint[]
AS 'MODULE_PATHNAME', 'msgq_append_batch'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.append_batch(text, jsonb[], text[], jsonb[]) IS
'appends several entries, all or none; needs the right send.
bodies: up to 10000; NULL is a tombstone, which needs a key. keys, headers: NULL, or one element for each body, which may be NULL.
Result: the ids, in the order of the bodies.
Errors: as msgq.append; 54000 too many.';

CREATE FUNCTION msgq.create_group(
	stream text,
	consumer_group text,
	start_from text)
RETURNS void
AS 'MODULE_PATHNAME', 'msgq_create_group'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.create_group(text, text, text) IS
'makes a consumer group of a stream; needs the right receive.
consumer_group: 1 to 63 bytes of printable text. start_from: first (what is kept), new (what gets its position from now on), a position (where the stream has one partition), or a time, for the first entry that was appended at that time or later.
Errors: 22023 bad name or start (22007, 22008, 22003, 22009 where its text is no time or number), 22004 NULL, 42704 no such stream, 42710 group exists, 42501 no right, MQ008 position older than retention.';

CREATE FUNCTION msgq.drop_group(stream text, consumer_group text)
RETURNS void
AS 'MODULE_PATHNAME', 'msgq_drop_group'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.drop_group(text, text) IS
'drops a consumer group; needs the right manage. Leases of it are fenced.
Errors: 42704 no such stream or group, 22023 name too long, 42501 no right, 22004 NULL.';

CREATE FUNCTION msgq.read(
	stream text,
	consumer_group text,
	max_entries int DEFAULT 100,
	partition int DEFAULT NULL,
	wait interval DEFAULT '0')
RETURNS SETOF msgq.entry
AS 'MODULE_PATHNAME', 'msgq_read'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 100;

COMMENT ON FUNCTION msgq.read(text, text, int, int, interval) IS
'reads the next entries for a group, from one partition that nobody else holds; needs the right receive. The group''s position moves with the caller''s transaction, to whose end nobody else gets that partition: so effects of the transaction happen once for each entry.
max_entries: 1 to 10000. partition: from this one only; NULL for any. wait: if there is nothing, wait so long for something.
Result: entries in the order of their positions; receipt is NULL.
Errors: 42704 no such stream or group, 42501 no right, 22004 NULL, 22023 no such partition, 54000 too many, MQ008 position older than retention, 25006 read-only or standby.';

CREATE FUNCTION msgq.poll(
	stream text,
	consumer_group text,
	max_entries int DEFAULT 100,
	visibility_timeout interval DEFAULT '30 s',
	wait interval DEFAULT '0')
RETURNS SETOF msgq.entry
AS 'MODULE_PATHNAME', 'msgq_poll'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 100;

COMMENT ON FUNCTION msgq.poll(text, text, int, interval, interval) IS
'leases the next entries to the caller, from one partition that nobody else of the group holds; needs the right receive. For work outside of the database: msgq.commit moves the position. A lease that runs out is given to the next one who asks; after max_deliveries of them (see msgq.alter_stream) its entries go to the dead-letter queue, if the stream has one.
max_entries: 1 to 10000. visibility_timeout: how long the lease lasts, above 0. wait: if there is nothing, wait so long for something.
Result: entries in the order of their positions; all have the same receipt.
Errors: as msgq.read.';

CREATE FUNCTION msgq.commit(
	stream text,
	consumer_group text,
	receipt uuid,
	upto bigint DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME', 'msgq_commit'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.commit(text, text, uuid, bigint) IS
'moves a group''s position behind entries that msgq.poll has leased; needs the right receive.
receipt: of any of these entries. upto: the last position that is done; NULL for all. What is left stays leased, with the same receipt.
Result: true; false if all that was committed before.
Errors: MQ002 the lease has gone to somebody else, 22023 no position of this lease, 42704 no such stream or group, 42501 no right, 22004 NULL.';

CREATE FUNCTION msgq.seek(
	stream text,
	consumer_group text,
	target text,
	partition int DEFAULT NULL)
RETURNS void
AS 'MODULE_PATHNAME', 'msgq_seek'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.seek(text, text, text, int) IS
'moves a group to another place; needs the right receive. Waits for transactions that are reading, and fences leases.
target: first, new, a position, or a time, as start_from of msgq.create_group. partition: this one only; NULL for all, which a position does not allow where there are several.
Errors: as msgq.create_group.';

CREATE FUNCTION msgq.scan(
	stream text,
	partition int,
	from_position bigint,
	max_entries int)
RETURNS SETOF msgq.entry
AS 'MODULE_PATHNAME', 'msgq_scan'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 100;

COMMENT ON FUNCTION msgq.scan(text, int, bigint, int) IS
'reads entries of a partition from a position on, without a group; needs the right receive. Works on a standby, too.
partition: from 0. from_position: at least 1. max_entries: 1 to 10000.
Result: entries in the order of their positions; none where there are none yet.
Errors: 42704 no such stream, 42501 no right, 22004 NULL, 22023 no such partition or position, 54000 too many, MQ008 position older than retention.';

CREATE FUNCTION msgq.last_per_key(stream text)
RETURNS SETOF msgq.entry
AS 'MODULE_PATHNAME', 'msgq_last_per_key'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 1000;

COMMENT ON FUNCTION msgq.last_per_key(text) IS
'the last entry of each key, among those that have a position and are kept, in the order of the keys; without keys whose last entry is a tombstone; needs the right receive. Works on a standby, too.
Errors: 42704 no such stream, 22023 name too long, 42501 no right, 22004 NULL, MQ008 entries were dropped meanwhile.';

CREATE PROCEDURE msgq.sequence(stream text DEFAULT NULL)
AS 'MODULE_PATHNAME', 'msgq_sequence'
LANGUAGE C;

COMMENT ON PROCEDURE msgq.sequence(text) IS
'gives positions to all entries that are committed when it is called; needs the right receive. The background worker does it by itself.
stream: NULL for all streams on which the caller has the right.
Errors: 42704 no such stream, 22023 name too long, 42501 no right, 25001 in a transaction block, 25006 read-only or standby.';

CREATE FUNCTION msgq.stream_handle(stream_id int) RETURNS regclass
AS 'MODULE_PATHNAME', 'msgq_stream_handle'
LANGUAGE C STABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION msgq.stream_handle(int) IS
'the view msgq.s<stream_id>, which shows the entries of a stream and carries the rights on it; NULL if there is none';

CREATE VIEW msgq.streams WITH (security_barrier) AS
SELECT
	s.name,
	pg_catalog.to_jsonb(s) - '{id,name,created_at,group_log,first_positions}'::text[]
		|| pg_catalog.jsonb_build_object('partitions', a.partitions) AS settings,
	s.created_at,
	s.id
FROM msgq.stream s
JOIN msgq.stream_segment a ON a.stream_id = s.id AND a.state = 'active'
WHERE pg_catalog.has_table_privilege(msgq.stream_handle(s.id),
	'SELECT, INSERT, UPDATE, DELETE, TRUNCATE');

COMMENT ON VIEW msgq.streams IS
'the streams on which the current user has any right: name, settings as jsonb, created_at, id (the number in the name of the view msgq.s<id>)';

CREATE FUNCTION msgq.list_stream_stats(
	OUT stream text,
	OUT partition int,
	OUT first_position bigint,
	OUT next_position bigint,
	OUT entries bigint,
	OUT unsequenced bigint,
	OUT size_bytes bigint,
	OUT segments int)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'msgq_list_stream_stats'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 10;

COMMENT ON FUNCTION msgq.list_stream_stats() IS
'the rows of the view msgq.stream_stats';

CREATE VIEW msgq.stream_stats AS SELECT * FROM msgq.list_stream_stats();

COMMENT ON VIEW msgq.stream_stats IS
'each partition of the streams on which the current user has the right peek: first_position (that is kept), next_position (that will be given), entries (between the two); and of the whole stream: unsequenced (ids that were taken since positions were given last), size_bytes (tables, indexes and TOAST), segments';

CREATE FUNCTION msgq.list_group_lag(
	OUT stream text,
	OUT consumer_group text,
	OUT partition int,
	OUT "position" bigint,
	OUT lag bigint,
	OUT time_lag interval,
	OUT leased_until timestamptz,
	OUT deliveries int)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'msgq_list_group_lag'
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 10;

COMMENT ON FUNCTION msgq.list_group_lag() IS
'the rows of the view msgq.group_lag';

CREATE VIEW msgq.group_lag AS SELECT * FROM msgq.list_group_lag();

COMMENT ON VIEW msgq.group_lag IS
'where the groups are in each partition of the streams on which the current user has the right peek: position (that is next), lag (entries that have a position and were not read), time_lag (since the first of these got its position, 0 if there are none), leased_until and deliveries (of a batch that msgq.poll has leased)';
