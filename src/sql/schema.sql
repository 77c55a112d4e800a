/*
 * schema.sql: the schema, its types, and the tables that describe queues.
 *
 * The messages themselves lie in plain tables that msgq.create_queue makes;
 * they are no members of the extension, so that pg_dump carries them.  What
 * describes them are the member tables below, registered for the dump with
 * every sequence.
 */
\echo Use "CREATE EXTENSION msgq" to load this file. \quit

SET LOCAL search_path TO pg_catalog, pg_temp;

-- Plain CREATE: a schema that somebody else made first must not become ours.
CREATE SCHEMA msgq;

COMMENT ON SCHEMA msgq IS
'durable queues inside the database; every function checks the rights of its caller';

CREATE TYPE msgq.message AS (
	id bigint,
	receipt uuid,
	deliveries int,
	failures int,
	priority smallint,
	group_key text,
	enqueued_at timestamptz,
	visible_at timestamptz,
	expires_at timestamptz,
	headers jsonb,
	body jsonb,
	data bytea
);

COMMENT ON TYPE msgq.message IS
'a delivered or inspected message: either body or data is set; receipt is opaque and names one delivery; deliveries counts how often it was handed out, failures how often it came back by nack, by expire_lease, by the end of a lease, or by the rollback of a pop; group_key is what an ordered queue goes by';

CREATE TYPE msgq.entry AS (
	partition int,
	position bigint,
	id bigint,
	receipt uuid,
	key text,
	appended_at timestamptz,
	headers jsonb,
	body jsonb,
	data bytea
);

COMMENT ON TYPE msgq.entry IS
'an entry of a stream: position is its place in its partition, from 1 on without gaps; either body or data is set, or neither where the key was deleted (a tombstone); receipt is opaque, names one delivery to a group, and comes from msgq.poll only';

/*
 * One row for each queue.  Columns after created_at are the settings, in the
 * order of msgq.create_queue's arguments, and what msgq.pause has paused;
 * src/queue.h mirrors the attribute numbers.  Columns are only ever added at
 * the end.
 */
CREATE SEQUENCE msgq.queue_id AS int CACHE 1;

CREATE TABLE msgq.queue (
	id int NOT NULL PRIMARY KEY,
	name text COLLATE "C" NOT NULL UNIQUE,
	created_at timestamptz NOT NULL,
	visibility_timeout interval NOT NULL,
	max_deliveries int NOT NULL,
	dead_letter_queue text COLLATE "C",
	retry_delay interval NOT NULL,
	retry_multiplier float8 NOT NULL,
	max_retry_delay interval NOT NULL,
	message_ttl interval,
	max_length bigint,
	overflow text COLLATE "C" NOT NULL,
	max_message_bytes int NOT NULL,
	max_in_flight int,
	priorities int NOT NULL,
	ordered boolean NOT NULL,
	on_exhausted text COLLATE "C" NOT NULL,
	dedup_window interval NOT NULL,
	archive_retention interval,
	paused text COLLATE "C" CHECK (paused IN ('receive', 'send', 'all'))
);

COMMENT ON TABLE msgq.queue IS
'the queues and their settings; written by msgq.create_queue and its kin only; read msgq.queues instead';

/*
 * The rings of a queue, one for each level of priority: segment n is the table
 * msgq.q<queue_id>_<n>, and belongs to one level.  Senders write to the active
 * one of their level; src/ring.c tells how rings turn.  turn counts the turns
 * of the queue's rings, and orders the segments by when they were filled.  From
 * a segment with moved, rows were moved to another one, and older snapshots
 * may still need what they left.
 */
CREATE TABLE msgq.segment (
	queue_id int NOT NULL,
	n int NOT NULL,
	state text COLLATE "C" NOT NULL CHECK (state IN ('active', 'draining', 'drained', 'empty')),
	turn bigint NOT NULL,
	moved boolean NOT NULL,
	level smallint NOT NULL DEFAULT 0,
	PRIMARY KEY (queue_id, n)
);

COMMENT ON TABLE msgq.segment IS
'the segment tables of each queue, and the level of priority of each: active takes new messages, draining still holds some, drained waits to be emptied, empty holds none and is not opened by receivers';

/*
 * The stores of a queue, which keep rows for a time: kind k holds idempotency
 * keys, kind a archived messages.  Number n of a store is the table
 * msgq.q<queue_id>_<kind><n>.  One of them takes new rows; src/store.c tells
 * how they take turns.
 */
CREATE TABLE msgq.store (
	queue_id int NOT NULL,
	kind "char" NOT NULL CHECK (kind IN ('k', 'a')),
	n int NOT NULL,
	state text COLLATE "C" NOT NULL CHECK (state IN ('current', 'kept', 'empty')),
	opened_at timestamptz,
	closed_at timestamptz,
	PRIMARY KEY (queue_id, kind, n)
);

COMMENT ON TABLE msgq.store IS
'the tables in which each queue keeps things for a time (kind k: idempotency keys, a: archived messages): current takes new rows since opened_at, kept is read and was closed at closed_at, empty holds none';

/*
 * What was counted for each queue before the server last started; written by
 * the worker now and then.
 */
CREATE TABLE msgq.queue_total (
	queue_id int NOT NULL PRIMARY KEY,
	totals bigint[] NOT NULL
);

COMMENT ON TABLE msgq.queue_total IS
'counters of each queue as they were when they were last saved, in the order of the columns of msgq.queue_stats';

/*
 * Streams.  Their numbers come from msgq.queue_id too, so that no queue has the
 * same.  src/stream.h mirrors the attribute numbers of these tables.  Positions
 * are arrays with one element for each partition, the first one for partition
 * 0; where an array is too short, its partition begins at 1.
 *
 * The entries of a stream before first_positions are gone.  group_log says
 * which of the tables msgq.s<id>_g1 and _g2 takes the positions of groups.
 */
CREATE TABLE msgq.stream (
	id int NOT NULL PRIMARY KEY,
	name text COLLATE "C" NOT NULL UNIQUE,
	created_at timestamptz NOT NULL,
	retention interval,
	retention_bytes bigint,
	retention_entries bigint,
	hold_for_groups boolean NOT NULL,
	dead_letter_queue text COLLATE "C",
	max_deliveries int NOT NULL,
	max_held_bytes bigint,
	group_log int NOT NULL CHECK (group_log IN (1, 2)),
	first_positions bigint[] NOT NULL
);

COMMENT ON TABLE msgq.stream IS
'the streams and their settings; written by msgq.create_stream and its kin only; read msgq.streams instead';

/*
 * The segments of a stream: number n is the tables msgq.s<stream_id>_<n> of
 * entries and msgq.s<stream_id>_p<n> of positions; src/retention.c tells how
 * they take turns.  Entries are spread over so many partitions.  The ids of a
 * segment are not below first_id, and the positions that were given while it
 * was active begin at start_positions.  All its entries had their positions,
 * before end_positions, at complete_at.
 */
CREATE TABLE msgq.stream_segment (
	stream_id int NOT NULL,
	n int NOT NULL,
	state text COLLATE "C" NOT NULL CHECK (state IN ('active', 'full', 'empty')),
	turn bigint NOT NULL,
	partitions int NOT NULL,
	first_id bigint NOT NULL,
	start_positions bigint[] NOT NULL,
	end_positions bigint[],
	opened_at timestamptz,
	complete_at timestamptz,
	PRIMARY KEY (stream_id, n)
);

COMMENT ON TABLE msgq.stream_segment IS
'the segments of each stream: active takes new entries, full ones are read until their entries are older than the retention, empty ones hold none';

CREATE SEQUENCE msgq.stream_group_id AS int CACHE 1;

CREATE TABLE msgq.stream_group (
	stream_id int NOT NULL,
	name text COLLATE "C" NOT NULL,
	id int NOT NULL UNIQUE,
	created_at timestamptz NOT NULL,
	PRIMARY KEY (stream_id, name)
);

COMMENT ON TABLE msgq.stream_group IS
'the consumer groups of each stream; where they are is in msgq.s<stream_id>_g1 and _g2';

/*
 * Topics.  Their numbers come from msgq.queue_id too.  src/topic.h mirrors the
 * attribute numbers of these tables.  alternate is the number of another topic.
 * log says which of the tables msgq.t<id>_1 and _2 takes the last messages;
 * log_bytes is the size that it had after the last turn (src/retained.c).
 * version is another one with each change of the topic, its bindings and their
 * targets: a number from msgq.binding_id, which no change that was undone can
 * have had before.
 */
CREATE TABLE msgq.topic (
	id int NOT NULL PRIMARY KEY,
	name text COLLATE "C" NOT NULL UNIQUE,
	created_at timestamptz NOT NULL,
	kind text COLLATE "C" NOT NULL CHECK (kind IN ('direct', 'fanout', 'topic', 'headers')),
	on_unroutable text COLLATE "C" NOT NULL CHECK (on_unroutable IN ('error', 'drop', 'alternate')),
	alternate int,
	retain boolean NOT NULL,
	max_retained bigint NOT NULL,
	log int NOT NULL CHECK (log IN (1, 2)),
	log_bytes bigint NOT NULL,
	version int NOT NULL
);

COMMENT ON TABLE msgq.topic IS
'the topics and their settings; written by msgq.create_topic and its kin only; read msgq.topics instead';

CREATE SEQUENCE msgq.binding_id AS int CACHE 1;

-- The target is a queue, a stream or a topic, whichever has that number.
CREATE TABLE msgq.binding (
	topic_id int NOT NULL,
	id int NOT NULL,
	target_id int NOT NULL,
	pattern text COLLATE "C" NOT NULL,
	header_match jsonb CHECK (jsonb_typeof(header_match) = 'object'),
	filter jsonpath,
	retained boolean NOT NULL,
	created_at timestamptz NOT NULL,
	PRIMARY KEY (topic_id, id)
);

COMMENT ON TABLE msgq.binding IS
'what the topics send where; written by msgq.bind and msgq.unbind only; read msgq.bindings instead';

/*
 * Captures of users' tables.  src/capture.h mirrors the attribute numbers.  The
 * triggers of capture n are named msgq_capture_<n>_*; which columns are captured,
 * and which one is the key, stands in the column lists of two of them
 * (src/capture.c).  kind outbox: rows that are inserted are messages already.
 */
CREATE SEQUENCE msgq.capture_id AS int CACHE 1;

CREATE TABLE msgq.capture (
	id int NOT NULL PRIMARY KEY,
	relation regclass NOT NULL,
	destination_id int NOT NULL,
	kind text COLLATE "C" NOT NULL CHECK (kind IN ('changes', 'outbox')),
	events text[] COLLATE "C" NOT NULL,
	has_columns boolean NOT NULL,
	has_key boolean NOT NULL,
	filter jsonpath,
	created_at timestamptz NOT NULL,
	UNIQUE (relation, destination_id)
);

COMMENT ON TABLE msgq.capture IS
'which tables'' changes go where; written by msgq.capture and msgq.uncapture only; read msgq.captures instead';

/*
 * Replies to requests that nobody has fetched yet (src/request.c).  They are
 * for sessions that wait for them, and no dump has any.
 */
CREATE TABLE msgq.reply_1 (
	id uuid NOT NULL PRIMARY KEY,
	queue_id int NOT NULL,
	deadline timestamptz NOT NULL,
	body jsonb NOT NULL
);

CREATE TABLE msgq.reply_2 (
	id uuid NOT NULL PRIMARY KEY,
	queue_id int NOT NULL,
	deadline timestamptz NOT NULL,
	body jsonb NOT NULL
);

COMMENT ON TABLE msgq.reply_1 IS
'replies for sessions that wait in msgq.request; one of two tables that take turns';

COMMENT ON TABLE msgq.reply_2 IS
'replies for sessions that wait in msgq.request; one of two tables that take turns';

/*
 * Schedules (src/schedule.c).  The destination is a queue, a stream or a topic,
 * whichever has that number.  owner is a role's name, since a dump may be
 * restored where the role is not.
 */
CREATE SEQUENCE msgq.schedule_id AS int CACHE 1;

CREATE TABLE msgq.schedule (
	id int NOT NULL PRIMARY KEY,
	name text COLLATE "C" NOT NULL UNIQUE,
	owner text COLLATE "C" NOT NULL,
	spec text COLLATE "C" NOT NULL,
	timezone text COLLATE "C" NOT NULL,
	destination_id int NOT NULL,
	body jsonb NOT NULL,
	headers jsonb CHECK (jsonb_typeof(headers) = 'object'),
	catch_up text COLLATE "C" NOT NULL CHECK (catch_up IN ('none', 'one', 'all')),
	created_at timestamptz NOT NULL,
	scheduled_at timestamptz NOT NULL
);

COMMENT ON TABLE msgq.schedule IS
'the schedules; written by msgq.schedule and msgq.unschedule only; read msgq.schedules instead';

/*
 * What schedules have fired, and passed over (src/fire.c).  fire_log, of one row
 * at most, says which of the two tables takes new rows (the first one, if there
 * is no row), and its size after the last turn.  The names are such that pg_dump
 * restores what was fired before the schedules, lest they fire it again.
 */
CREATE TABLE msgq.fire_log (
	log int NOT NULL CHECK (log IN (1, 2)),
	log_bytes bigint NOT NULL
);

CREATE TABLE msgq.fired_1 (
	schedule_id int NOT NULL,
	due_at timestamptz NOT NULL,
	fired_at timestamptz NOT NULL,
	skipped boolean NOT NULL,
	PRIMARY KEY (schedule_id, due_at)
);

CREATE TABLE msgq.fired_2 (
	schedule_id int NOT NULL,
	due_at timestamptz NOT NULL,
	fired_at timestamptz NOT NULL,
	skipped boolean NOT NULL,
	PRIMARY KEY (schedule_id, due_at)
);

COMMENT ON TABLE msgq.fire_log IS
'which of the tables msgq.fired_1 and msgq.fired_2 takes new rows';

COMMENT ON TABLE msgq.fired_1 IS
'due times that schedules have fired, or passed over; one of two tables that take turns';

COMMENT ON TABLE msgq.fired_2 IS
'due times that schedules have fired, or passed over; one of two tables that take turns';

SELECT pg_catalog.pg_extension_config_dump('msgq.queue_id', '');
SELECT pg_catalog.pg_extension_config_dump('msgq.queue', '');
SELECT pg_catalog.pg_extension_config_dump('msgq.segment', '');
SELECT pg_catalog.pg_extension_config_dump('msgq.store', '');
SELECT pg_catalog.pg_extension_config_dump('msgq.queue_total', '');
SELECT pg_catalog.pg_extension_config_dump('msgq.stream', '');
SELECT pg_catalog.pg_extension_config_dump('msgq.stream_segment', '');
SELECT pg_catalog.pg_extension_config_dump('msgq.stream_group_id', '');
SELECT pg_catalog.pg_extension_config_dump('msgq.stream_group', '');
SELECT pg_catalog.pg_extension_config_dump('msgq.topic', '');
SELECT pg_catalog.pg_extension_config_dump('msgq.binding_id', '');
SELECT pg_catalog.pg_extension_config_dump('msgq.binding', '');
SELECT pg_catalog.pg_extension_config_dump('msgq.capture_id', '');
-- Of a table that was dropped a dump would have the number, which can be that of
-- another one where it is restored.
SELECT pg_catalog.pg_extension_config_dump('msgq.capture',
	'WHERE EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = relation)');
SELECT pg_catalog.pg_extension_config_dump('msgq.schedule_id', '');
SELECT pg_catalog.pg_extension_config_dump('msgq.schedule', '');
SELECT pg_catalog.pg_extension_config_dump('msgq.fire_log', '');
SELECT pg_catalog.pg_extension_config_dump('msgq.fired_1', '');
SELECT pg_catalog.pg_extension_config_dump('msgq.fired_2', '');
