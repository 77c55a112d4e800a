/*
 * retained.c
 *		Keeps the last message of each routing key of a topic, for queues and
 *		streams that will be bound to it.
 *
 * Whoever publishes appends the message to a log, in his transaction; nobody
 * updates a row, so that publishers with the same routing key do not wait for
 * each other, and a snapshot that is held does no harm.  The last message of a
 * routing key is the one with the highest id.  One without content, the JSON
 * value null or no bytes, clears it, as in MQTT.
 *
 * A publisher holds RowExclusive on the log of each topic that the message
 * passes, to the end of his transaction, whether or not the topic retains
 * messages.  Who binds with retained => true takes ShareRowExclusive on both
 * tables of the log, reads, and holds it until he commits.  So a message is
 * either committed before, and then found in the log, or routed after, by a
 * routing that has the new binding: it is not lost in between.
 *
 * The two tables of a log take turns (column log of msgq.topic says which one
 * takes new rows).  When the current one has grown to twice what was left in it
 * by the last turn, the other one becomes current.  Then, as soon as nobody
 * uses the kept one,
 *
 *	1. its rows are deleted, and those that are still the last ones of their
 *	   routing keys are stored again in the current one;
 *	2. when no snapshot shows it the rows that were there before (it would not
 *	   show those in the other table), the table is truncated.
 *
 * At most max_retained of them are stored again, those that were published
 * last: so what is kept is bounded by that and by what one turn brings.
 *
 * src/retained.c
 */
#include "msgq.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "admin.h"
#include "argument.h"
#include "destination.h"
#include "message.h"
#include "owner.h"
#include "retained.h"
#include "route.h"
#include "testing.h"
#include "worker.h"

/* A log is not turned before it has this size. */
#define MIN_TURN_BYTES		(INT64CONST(16) * 1024 * 1024)

/* Messages that are delivered at once to a new target. */
#define DELIVERY_ROWS		100

/* Says of a message that it was published before its target was bound. */
#define RETAINED_HEADER		"msgq-retained"

/* ---------------------------------------------------------------------------
 * Publishing
 * ---------------------------------------------------------------------------
 */

/*
 * Locks the table that takes new messages; NULL if it has gone, and then the
 * routing is old.
 */
Relation
msgq_retained_lock(const MsgqTopic *topic)
{
	Relation	log = try_table_open(topic->logs[topic->log], RowExclusiveLock);

	if (log == NULL)
		msgq_topic_forget_all();
	msgq_worker_want();
	return log;
}

/* Opens a log that is locked, to append to it. */
MsgqTable  *
msgq_retained_open(Relation log)
{
	return msgq_table_open(log, Natts_retained, MSGQ_RETAINED_REQUIRED,
						   RowExclusiveLock);
}

/*
 * Appends message number i to the log of a topic that retains messages.
 * has_headers says whether the publisher has given headers.
 */
void
msgq_retained_add(MsgqTable *log, const MsgqTopic *topic, Datum routing_key,
				  const MsgqOutgoing *out, int i, bool has_headers)
{
	Datum		values[Natts_retained] = {0};
	bool		nulls[Natts_retained];
	TimestampTz expires_at = msgq_outgoing_expires_at(out, i);

	memset(nulls, true, sizeof(nulls));
#define SET(column, value) \
	(values[(column) - 1] = (value), nulls[(column) - 1] = false)
	SET(Anum_retained_routing_key, routing_key);
	SET(Anum_retained_id,
		Int64GetDatum(nextval_internal(topic->sequence, false)));
	SET(Anum_retained_published_at, TimestampTzGetDatum(out->now));
	SET(Anum_retained_priority, Int16GetDatum(out->priorities[i]));
	SET(Anum_retained_has_headers, BoolGetDatum(has_headers));
	if (out->visible_at[i] != 0)
		SET(Anum_retained_visible_at, TimestampTzGetDatum(out->visible_at[i]));
	if (expires_at != 0)
		SET(Anum_retained_expires_at, TimestampTzGetDatum(expires_at));
	if (out->group_keys[i])
		SET(Anum_retained_group_key, PointerGetDatum(out->group_keys[i]));
	if (!out->no_headers[i])
		SET(Anum_retained_headers, out->headers[i]);
	SET(out->content_column == Anum_segment_body ?
		Anum_retained_body : Anum_retained_data, out->contents[i]);
#undef SET
	msgq_table_insert(log, values, nulls);
}

/* ---------------------------------------------------------------------------
 * Delivering to a new target
 * ---------------------------------------------------------------------------
 */

/* Delivers what one binding takes to its target. */
typedef struct Delivery
{
	const MsgqTopic *topic;
	const MsgqBinding *binding;
	MsgqMatcher *matcher;		/* of the binding alone */
	MsgqDestination destination;
} Delivery;

static Datum
column(int row, AttrNumber n, bool *is_null)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, n,
						 is_null);
}

/* {"msgq-retained": true} besides what was there. */
static Datum
with_retained_header(Datum headers, bool no_headers)
{
	Datum		addition = DirectFunctionCall1(jsonb_in,
											   CStringGetDatum("{\"" RETAINED_HEADER "\": true}"));

	return no_headers ? addition :
		DirectFunctionCall2(jsonb_concat, headers, addition);
}

/* The headers that the publisher has given. */
static Datum
publishers_headers(Datum headers)
{
	Datum		names[] = {
		CStringGetTextDatum(MSGQ_TOPIC_HEADER),
		CStringGetTextDatum(MSGQ_ROUTING_KEY_HEADER)
	};
	ArrayType  *array = construct_array(names, lengthof(names), TEXTOID, -1, false,
										TYPALIGN_INT);

	return DirectFunctionCall2(jsonb_delete_array, headers, PointerGetDatum(array));
}

/* Is it due, if the target is a stream, which holds nothing back? */
static bool
is_due(const Delivery *delivery, int row)
{
	bool		is_null;
	Datum		visible_at = column(row, Anum_retained_visible_at, &is_null);

	return delivery->destination.queue || is_null ||
		DatumGetTimestampTz(visible_at) <= msgq_now();
}

/* Does the binding take the message in this row? */
static bool
is_taken(Delivery *delivery, int row)
{
	bool		is_null;
	bool		no_body;
	Datum		body = column(row, Anum_retained_body, &no_body);
	Datum		headers;
	char	   *key = TextDatumGetCString(column(row, Anum_retained_routing_key,
												 &is_null));
	MsgqRoutable message = {.routing_key = key,.body = no_body ? NULL : &body};
	int			number;

	if (msgq_matcher_match(delivery->matcher, key, &number) == 0 ||
		!is_due(delivery, row))
		return false;
	if (DatumGetBool(column(row, Anum_retained_has_headers, &is_null)))
	{
		headers = publishers_headers(column(row, Anum_retained_headers, &is_null));
		message.headers = &headers;
	}
	return msgq_binding_accepts(delivery->binding, &message);
}

/* Message number i from a row. */
static void
fill_message(MsgqOutgoing *out, int i, int row, AttrNumber content_column)
{
	bool		is_null;
	bool		no_headers;
	Datum		headers = column(row, Anum_retained_headers, &no_headers);
	Datum		value;

	out->contents[i] = column(row, content_column, &is_null);
	out->headers[i] = with_retained_header(headers, no_headers);
	out->no_headers[i] = false;
	out->priorities[i] = DatumGetInt16(column(row, Anum_retained_priority, &is_null));
	value = column(row, Anum_retained_visible_at, &is_null);
	if (!is_null && DatumGetTimestampTz(value) > out->now)
		out->visible_at[i] = DatumGetTimestampTz(value);
	value = column(row, Anum_retained_expires_at, &is_null);
	out->expires_at[i] = is_null ? 0 : DatumGetTimestampTz(value);
	value = column(row, Anum_retained_group_key, &is_null);
	out->group_keys[i] = is_null ? NULL : DatumGetTextPP(value);
}

/* Delivers rows that the binding takes, all with the same kind of content. */
static void
deliver_rows(Delivery *delivery, const int *rows, int n, AttrNumber content_column)
{
	MsgqOutgoing out;
	Datum	   *routing_keys = palloc(sizeof(Datum) * n);

	msgq_outgoing_init(&out, n, content_column == Anum_retained_body ?
					   Anum_segment_body : Anum_segment_data);
	out.expires_at = palloc(sizeof(TimestampTz) * n);
	for (int i = 0; i < n; i++)
	{
		bool		is_null;

		routing_keys[i] = column(rows[i], Anum_retained_routing_key, &is_null);
		fill_message(&out, i, rows[i], content_column);
	}
	(void) msgq_destination_store(&delivery->destination, &out, routing_keys, NULL);
}

static AttrNumber
content_column_of(int row)
{
	bool		no_body;

	(void) column(row, Anum_retained_body, &no_body);
	return no_body ? Anum_retained_data : Anum_retained_body;
}

/* Delivers what was fetched, in its order, kind by kind of content. */
static void
deliver_fetched(Delivery *delivery)
{
	int			n = SPI_processed;
	int		   *rows = palloc(sizeof(int) * n);
	int			taken = 0;
	AttrNumber	kind = Anum_retained_body;

	for (int row = 0; row < n; row++)
	{
		if (!is_taken(delivery, row))
			continue;
		if (taken > 0 && content_column_of(row) != kind)
		{
			deliver_rows(delivery, rows, taken, kind);
			taken = 0;
		}
		kind = content_column_of(row);
		rows[taken++] = row;
	}
	if (taken > 0)
		deliver_rows(delivery, rows, taken, kind);
}

/* Goes through all that the topic retains, in the order of its ids. */
static void
deliver_all(Delivery *delivery)
{
	char	   *sql = psprintf("SELECT * FROM ("
							   "SELECT DISTINCT ON (routing_key) * FROM ("
							   "SELECT * FROM msgq.t%1$d_1 UNION ALL SELECT * FROM msgq.t%1$d_2) AS kept "
							   "ORDER BY routing_key, id DESC) AS last "
							   "WHERE (expires_at IS NULL OR expires_at > $1) "
							   "AND body IS DISTINCT FROM 'null' AND data IS DISTINCT FROM '' "
							   "ORDER BY id", delivery->topic->id);
	Oid			type = TIMESTAMPTZOID;
	Datum		now = TimestampTzGetDatum(msgq_now());
	SPIPlanPtr	plan = SPI_prepare(sql, 1, &type);
	MemoryContext batch = AllocSetContextCreate(CurrentMemoryContext,
												"msgq retained messages",
												ALLOCSET_DEFAULT_SIZES);
	MemoryContext caller = MemoryContextSwitchTo(batch);
	Portal		portal;

	if (plan == NULL)
		elog(ERROR, "could not prepare \"%s\"", sql);
	PushActiveSnapshot(GetLatestSnapshot());
	/* Read-only: it shows what its snapshot does, not what is stored. */
	portal = SPI_cursor_open(NULL, plan, &now, NULL, true);
	for (;;)
	{
		SPI_cursor_fetch(portal, true, DELIVERY_ROWS);
		if (SPI_processed == 0)
			break;
		deliver_fetched(delivery);
		SPI_freetuptable(SPI_tuptable);
		MemoryContextReset(batch);
	}
	SPI_cursor_close(portal);
	PopActiveSnapshot();
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(batch);
}

/* Waits for all who are publishing to the topic, and keeps others waiting. */
void
msgq_retained_lock_all(const MsgqTopic *topic, LOCKMODE mode)
{
	for (int i = 0; i < MSGQ_RETAINED_LOGS; i++)
	{
		if (OidIsValid(topic->logs[i]))
			LockRelationOid(topic->logs[i], mode);
	}
}

/*
 * Delivers the last message of each routing key to the target of a new binding,
 * as far as the binding takes them.  The caller has locked metadata, and the
 * logs so that nobody is publishing.  command is his name, for messages.
 */
void
msgq_retained_deliver(const char *command, const MsgqTopic *topic,
					  const MsgqBinding *binding)
{
	Delivery	delivery = {.topic = topic,.binding = binding};
	MsgqSpi		spi;

	for (int i = 0; i < MSGQ_RETAINED_LOGS; i++)
		msgq_table_check(topic->logs[i], Natts_retained, MSGQ_RETAINED_REQUIRED);
	delivery.matcher = msgq_matcher_create(msgq_topic_syntax(topic));
	msgq_matcher_add(delivery.matcher, binding->pattern, 0);
	/* With metadata locked, the target cannot go. */
	if (!msgq_destination_open(&delivery.destination, command, &binding->target,
							   0, MSGQ_MAX_PRIORITIES - 1))
		elog(ERROR, "target with number %d has gone while it was being bound",
			 binding->target.id);
	msgq_spi_begin(&spi, msgq_storage_owner());
	deliver_all(&delivery);
	msgq_spi_end(&spi);
	msgq_destination_close(&delivery.destination, false);
}

/* ---------------------------------------------------------------------------
 * The log
 * ---------------------------------------------------------------------------
 */

/* Makes table number n of a topic's log; within SPI, as the owner. */
void
msgq_retained_create_log(int32 topic_id, int n)
{
	msgq_spi_run("CREATE TABLE msgq.t%1$d_%2$d ("
				 "routing_key text COLLATE \"C\" NOT NULL, "
				 "id bigint NOT NULL, "
				 "published_at timestamptz NOT NULL, "
				 "priority smallint NOT NULL, "
				 "has_headers boolean NOT NULL, "
				 "visible_at timestamptz, "
				 "expires_at timestamptz, "
				 "group_key text, "
				 "headers jsonb, "
				 "body jsonb, "
				 "data bytea, "
				 "CONSTRAINT t%1$d_%2$d_pkey PRIMARY KEY (routing_key, id)) USING heap",
				 topic_id, n);
}

/* Forgets all that a topic retains; the caller has locked the logs. */
void
msgq_retained_drop_all(const MsgqTopic *topic)
{
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run("DELETE FROM msgq.t%d_1", topic->id);
	msgq_spi_run("DELETE FROM msgq.t%d_2", topic->id);
	msgq_spi_end(&spi);
}

/* What a turn has to know of a topic. */
typedef struct LogState
{
	int			current;		/* 1 or 2 */
	int			kept;
	int64		max_retained;
	int64		bytes;			/* of the current one, after the last turn */
	Oid			current_table;
	Oid			kept_table;
} LogState;

/*
 * Locks one of the tables of a log to the end of the transaction, so that it
 * stays; InvalidOid if it has gone, or somebody is about to drop or to empty it.
 */
static Oid
try_lock_log(int32 topic_id, int n)
{
	RangeVar   *name = makeRangeVar("msgq", psprintf("t%d_%d", topic_id, n), -1);

	return RangeVarGetRelidExtended(name, AccessShareLock,
									RVR_MISSING_OK | RVR_SKIP_LOCKED, NULL, NULL);
}

/*
 * False if the topic has gone, or is about to be dropped: it is not waited for.
 * Within SPI.
 */
static bool
read_state(int32 topic_id, LogState *state, MsgqRound *round)
{
	bool		is_null;

	msgq_spi_run("SELECT log, max_retained, log_bytes FROM msgq.topic WHERE id = %d",
				 topic_id);
	if (SPI_processed == 0)
		return false;
	state->current = DatumGetInt32(column(0, 1, &is_null));
	state->kept = 3 - state->current;
	state->max_retained = DatumGetInt64(column(0, 2, &is_null));
	state->bytes = DatumGetInt64(column(0, 3, &is_null));
	state->current_table = try_lock_log(topic_id, state->current);
	state->kept_table = try_lock_log(topic_id, state->kept);
	if (OidIsValid(state->current_table) && OidIsValid(state->kept_table))
		return true;
	round->waiting++;
	return false;
}

/*
 * Moves what is still the last of its routing key from the kept table, which
 * is locked, to the current one; within SPI.  The current one can have earlier
 * messages, of publishers who took their numbers before one who had locked the
 * kept table: these go, lest they come back as the last ones.
 */
static void
move_rows(int32 topic_id, const LogState *state)
{
	msgq_spi_run("WITH gone AS (DELETE FROM ONLY msgq.t%1$d_%2$d RETURNING *), "
				 "last AS (SELECT DISTINCT ON (routing_key) * FROM gone "
				 "ORDER BY routing_key, id DESC), "
				 "superseded AS (DELETE FROM ONLY msgq.t%1$d_%3$d AS earlier USING last "
				 "WHERE earlier.routing_key = last.routing_key AND earlier.id < last.id) "
				 "INSERT INTO msgq.t%1$d_%3$d SELECT * FROM last "
				 "WHERE (expires_at IS NULL OR expires_at > clock_timestamp()) "
				 "AND body IS DISTINCT FROM 'null' AND data IS DISTINCT FROM '' "
				 "AND NOT EXISTS (SELECT FROM msgq.t%1$d_%3$d AS later "
				 "WHERE later.routing_key = last.routing_key AND later.id > last.id) "
				 "ORDER BY id DESC LIMIT %4$lld",
				 topic_id, state->kept, state->current,
				 (long long) state->max_retained);
	msgq_spi_run("UPDATE msgq.topic SET log_bytes = pg_total_relation_size('msgq.t%d_%d') "
				 "WHERE id = %d", topic_id, state->current, topic_id);
}

/* Empties the kept table, in one of the two steps; within SPI. */
static void
empty_kept(int32 topic_id, const LogState *state, MsgqRound *round)
{
	msgq_table_check(state->kept_table, Natts_retained, MSGQ_RETAINED_REQUIRED);
	msgq_table_check(state->current_table, Natts_retained, MSGQ_RETAINED_REQUIRED);
	switch (msgq_table_lock_kept(state->kept_table))
	{
		case MSGQ_KEPT_EMPTY:
			msgq_spi_run("TRUNCATE ONLY msgq.t%d_%d", topic_id, state->kept);
			round->emptied++;
			return;
		case MSGQ_KEPT_HAS_ROWS:
			/* Moving writes to msgq.topic, as others do who change the topic. */
			if (msgq_try_lock_metadata())
			{
				move_rows(topic_id, state);
				return;
			}
			break;
		case MSGQ_KEPT_IN_USE:
			break;
	}
	round->waiting++;
}

/* Lets the other table take new messages; within SPI. */
static bool
turn(int32 topic_id, const LogState *state, MsgqRound *round)
{
	if (!msgq_try_lock_metadata())
	{
		round->waiting++;
		return false;
	}
	msgq_spi_run("UPDATE msgq.topic SET log = %d WHERE id = %d AND log = %d",
				 state->kept, topic_id, state->current);
	msgq_topic_changed(topic_id);
	round->rotated++;
	return true;
}

/*
 * One step of a turn of the log of the topic with this number, if one is due;
 * true if it did something, or has to try again.  In a transaction of its own,
 * which should end at once.
 */
bool
msgq_retained_turn(int32 topic_id, MsgqRound *round)
{
	LogState	state;
	MsgqSpi		spi;
	bool		done = false;

	msgq_spi_begin(&spi, msgq_storage_owner());
	if (read_state(topic_id, &state, round))
	{
		if (msgq_table_main_bytes(state.kept_table) > 0)
		{
			empty_kept(topic_id, &state, round);
			done = true;
		}
		else if (msgq_table_bytes(state.current_table) >=
				 Max(MIN_TURN_BYTES, 2 * state.bytes))
			done = turn(topic_id, &state, round);
	}
	msgq_spi_end(&spi);
	return done;
}
