/*
 * ring.c
 *		The rings of segments of a queue: turning them, and reclaiming space.
 *
 * While an old snapshot exists vacuum can remove nothing, and a table through
 * which messages pass grows by each of them.  TRUNCATE needs no vacuum.  So a
 * queue is a ring of tables, of which one at a time takes new messages; or one
 * such ring for each level of priority, and no table changes its level:
 *
 *	active		takes new messages; receivers look here
 *	draining	takes none; receivers look here as well
 *	drained		was seen without a message; receivers look only now and then
 *	empty		was truncated; nobody looks
 *
 *	active -> draining, empty -> active		the ring turns
 *	draining -> drained						no message was seen in it
 *	drained -> empty						proven empty, and truncated
 *	drained -> draining						a message turned up after all
 *
 * Turning.  A ring turns when its active segment is larger than
 * msgq.segment_size and at least half of that is dead.  (A backlog of live
 * messages would gain nothing from being spread over many tables.)  It turns
 * into an empty segment, or into one that is made for it.
 *
 * Stale senders.  A sender chooses the active segment, locks it, and chooses
 * again if the queue has changed meanwhile.  So one that has its lock before
 * the turn commits may insert into a segment that drains by then, or that is
 * even marked drained.  As long as it is open it holds its lock, and nobody
 * truncates under it.
 *
 * Draining.  Consumers empty a segment.  What is left in the end are messages
 * that fall due much later.  Where all that is left is due later than
 * SOON, and takes less than half of the segment, it is moved to the active
 * one of the same ring: the ids, leases and counters stay, so receipts stay
 * good.  Such rows are above every frontier, in both segments.  Where more is
 * left the segment is parked: at least half of it is live, so that a queue
 * takes at most twice its live bytes, and the segments between which it turns.
 *
 * Reclaiming a drained segment, in one transaction:
 *
 *	1. AccessExclusiveLock on it, if it can be had at once.  From here on
 *	   there is no open transaction, prepared ones included, that has used it.
 *	2. A new snapshot, and a scan that proves that no row is visible to it.
 *	   The snapshot is newer than the lock, so that is all there is.
 *	3. TRUNCATE, and the state.  Whoever waits for our lock finds, after it,
 *	   that the queue has changed.
 *
 * TRUNCATE is not MVCC-safe: to a snapshot that is older, the segment looks
 * empty.  Rows that were moved out of it are in no segment then.  So a segment
 * with rows moved out waits until everything dead in it is dead to everybody.
 * Rows that were consumed are missed by nobody but by a reader of the past:
 * with msgq.reclaim = snapshot_safe all segments wait; eager, the default,
 * truncates, since waiting is what lets a queue grow while a snapshot is held.
 * A snapshot that has read the queue holds a lock on the tables, and so is
 * safe from both; pg_dump is such a one.
 *
 * Nothing here waits for a lock, and so nobody waits for us for longer than a
 * step takes: it is tried again later.  The lock on msgq.queue comes before
 * that on a segment, as for all who change queues (admin.c).
 *
 * The audit.  Rows that are ready or due, are below their frontier and in none
 * of its exceptions, are lost to receivers, unless they have expired; there
 * should be none.  Rows that
 * came in around the functions can be such.  The audit reads the frontier
 * first and takes its snapshot then, so that what it finds was behind the
 * frontier all the time.  It sends the frontier back to the start.
 *
 * A row in this file's SQL is changed by the executor, as the storage's owner,
 * and runs the expressions of a user's index; so tables to which somebody has
 * added triggers, rules or indexes are left alone.
 *
 * src/ring.c
 */
#include "msgq.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "admin.h"
#include "owner.h"
#include "ring.h"
#include "segment.h"
#include "table.h"
#include "testing.h"

/* Messages that are due before so many seconds are left to consumers. */
#define SOON				10

/* Messages that are moved in one step. */
#define MOVE_ROWS			1000

static const struct config_enum_entry reclaim_options[] = {
	{"eager", MSGQ_RECLAIM_EAGER, false},
	{"snapshot_safe", MSGQ_RECLAIM_SNAPSHOT_SAFE, false},
	{NULL, 0, false}
};

/* Size of a segment from which on its ring may turn, in kilobytes. */
int			msgq_segment_size = 64 * 1024;

/* Which side to err on when an old snapshot exists. */
int			msgq_reclaim = MSGQ_RECLAIM_EAGER;

/* Once per backend, from _PG_init. */
void
msgq_ring_init(void)
{
	DefineCustomIntVariable("msgq.segment_size",
							"Size of a segment, with its indexes, from which on its ring may turn.",
							NULL,
							&msgq_segment_size,
							64 * 1024,
							64,
							INT_MAX,
							PGC_SIGHUP,
							GUC_UNIT_KB,
							NULL,	/* check hook */
							NULL,	/* assign hook */
							NULL);	/* show hook */
	DefineCustomEnumVariable("msgq.reclaim",
							 "Whether consumed messages that an old snapshot could still see keep their space.",
							 NULL,
							 &msgq_reclaim,
							 MSGQ_RECLAIM_EAGER,
							 reclaim_options,
							 PGC_SIGHUP,
							 0,
							 NULL,	/* check hook */
							 NULL,	/* assign hook */
							 NULL); /* show hook */
}

/* ---------------------------------------------------------------------------
 * The state of a ring
 * ---------------------------------------------------------------------------
 */

static Datum
column(int row, int n)
{
	bool		is_null;

	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, n,
						 &is_null);
}

/*
 * The rings of a queue as they are now; NULL if there is no such queue.  In the
 * current memory context, and not within SPI.
 */
MsgqRing   *
msgq_ring_read(int32 queue_id)
{
	MemoryContext caller = CurrentMemoryContext;
	MsgqRing   *ring = palloc0(sizeof(MsgqRing));
	MsgqSpi		spi;

	ring->queue_id = queue_id;
	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run("SELECT q.name, s.n, s.state, s.moved, s.level, q.ordered "
				 "FROM msgq.queue q JOIN msgq.segment s ON s.queue_id = q.id "
				 "WHERE q.id = %d ORDER BY s.turn, s.n", queue_id);
	MemoryContextSwitchTo(caller);
	ring->nsegments = SPI_processed;
	ring->segments = palloc(sizeof(MsgqRingSegment) * (SPI_processed + 1));
	for (int i = 0; i < ring->nsegments; i++)
	{
		MsgqRingSegment *segment = &ring->segments[i];
		char	   *state = TextDatumGetCString(column(i, 3));

		ring->name = TextDatumGetCString(column(i, 1));
		ring->ordered = DatumGetBool(column(i, 6));
		segment->n = DatumGetInt32(column(i, 2));
		segment->state = strcmp(state, "drained") == 0 ? 'D' : state[0];
		segment->moved = DatumGetBool(column(i, 4));
		segment->level = DatumGetInt16(column(i, 5));
		segment->table = msgq_relation_oid(psprintf("q%d_%d", queue_id,
													segment->n));
	}
	msgq_spi_end(&spi);
	return ring->nsegments > 0 ? ring : NULL;
}

/* Is the segment as it was when the ring was read?  After msgq_try_lock_metadata. */
static bool
still_is(const MsgqRing *ring, const MsgqRingSegment *segment)
{
	MsgqRing   *now = msgq_ring_read(ring->queue_id);

	for (int i = 0; now && i < now->nsegments; i++)
	{
		if (now->segments[i].n == segment->n)
			return now->segments[i].state == segment->state &&
				OidIsValid(segment->table);
	}
	return false;
}

/* Within SPI. */
static void
set_state(const MsgqRing *ring, int n, const char *state, bool moved)
{
	msgq_spi_run("UPDATE msgq.segment SET state = '%s', moved = %s "
				 "WHERE queue_id = %d AND n = %d",
				 state, moved ? "true" : "false", ring->queue_id, n);
	msgq_queue_changed();
}

/* ---------------------------------------------------------------------------
 * Turning
 * ---------------------------------------------------------------------------
 */

static const MsgqRingSegment *
find_active(const MsgqRing *ring, int level)
{
	for (int i = 0; i < ring->nsegments; i++)
	{
		if (ring->segments[i].state == 'a' && ring->segments[i].level == level)
			return &ring->segments[i];
	}
	return NULL;
}

/*
 * Is the segment large, and at least half of it dead?  The numbers of rows are
 * the cumulative statistics', which are a second late and begin anew after a
 * crash; a turn too many or too late does no harm.
 */
static bool
wants_turn(const MsgqRingSegment *active)
{
	bool		large;
	bool		dead;
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run("SELECT pg_total_relation_size(%u), "
				 "pg_stat_get_dead_tuples(%u) >= pg_stat_get_live_tuples(%u)",
				 active->table, active->table, active->table);
	large = DatumGetInt64(column(0, 1)) >= (int64) msgq_segment_size * 1024;
	dead = DatumGetBool(column(0, 2));
	msgq_spi_end(&spi);
	return large && dead;
}

/*
 * Adds a segment to the ring of a level; 0 if somebody reads the queue's view,
 * which has to be made anew.
 */
static int
add_segment(const MsgqRing *ring, int level)
{
	Oid			view = msgq_relation_oid(psprintf("q%d", ring->queue_id));
	MsgqSpi		spi;

	if (!OidIsValid(view) ||
		!ConditionalLockRelationOid(view, AccessExclusiveLock))
		return 0;
	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_segment_create(ring->queue_id, ring->nsegments + 1, level,
						ring->ordered, "empty");
	msgq_handle_create(ring->queue_id, ring->nsegments + 1);
	msgq_segment_comment(ring->queue_id, ring->nsegments + 1, ring->name);
	msgq_spi_end(&spi);
	return ring->nsegments + 1;
}

/*
 * An empty segment of a level that senders would not refuse.  In an ordered
 * queue the lock keeps everybody out of it until we have committed, and all
 * others will hear of it: they must know where messages can be (group.c).
 */
static const MsgqRingSegment *
find_empty(const MsgqRing *ring, int level)
{
	LOCKMODE	mode = ring->ordered ? ShareLock : AccessShareLock;

	for (int i = 0; i < ring->nsegments; i++)
	{
		const MsgqRingSegment *segment = &ring->segments[i];

		if (segment->state == 'e' && segment->level == level &&
			OidIsValid(segment->table) &&
			ConditionalLockRelationOid(segment->table, mode) &&
			msgq_segment_is_plain(segment->table))
			return segment;
	}
	return NULL;
}

/* Turns the ring of a level if it is time to; true if it did. */
bool
msgq_ring_turn(const MsgqRing *ring, int level, MsgqRound *round)
{
	const MsgqRingSegment *active = find_active(ring, level);
	const MsgqRingSegment *empty;
	int			next;
	MsgqSpi		spi;

	if (active == NULL || !OidIsValid(active->table) ||
		!ConditionalLockRelationOid(active->table, AccessShareLock) ||
		!wants_turn(active))
		return false;
	empty = find_empty(ring, level);
	if (!msgq_try_lock_metadata() || !still_is(ring, active) ||
		(empty && !still_is(ring, empty)))
	{
		round->waiting++;
		return false;
	}
	next = empty ? empty->n : add_segment(ring, level);
	if (next == 0)
	{
		round->waiting++;
		return false;
	}
	if (!empty)
		round->added++;
	msgq_spi_begin(&spi, msgq_storage_owner());
	set_state(ring, active->n, "draining", active->moved);
	msgq_spi_run("UPDATE msgq.segment SET state = 'active', turn = "
				 "(SELECT max(turn) + 1 FROM msgq.segment WHERE queue_id = %d) "
				 "WHERE queue_id = %d AND n = %d",
				 ring->queue_id, ring->queue_id, next);
	msgq_spi_end(&spi);
	round->turned++;
	return true;
}

/* ---------------------------------------------------------------------------
 * Draining
 * ---------------------------------------------------------------------------
 */

/* What is left in a segment. */
typedef struct Rest
{
	int64		rows;
	int64		soon;			/* of them ready, due, or due soon */
	int64		bytes;			/* roughly */
	int64		size;			/* of all its files */
} Rest;

static void
count_rest(const MsgqRing *ring, const MsgqRingSegment *segment, Rest *rest)
{
	Oid			type = TIMESTAMPTZOID;
	Datum		soon = TimestampTzGetDatum(msgq_now() + SOON * USECS_PER_SEC);
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run_with(psprintf("SELECT count(*), "
							   "count(*) FILTER (WHERE visible_at IS NULL OR visible_at < $1), "
							   "coalesce(sum(150 + coalesce(pg_column_size(headers), 0) + "
							   "coalesce(pg_column_size(body), 0) + "
							   "coalesce(pg_column_size(data), 0)), 0)::bigint, "
							   "pg_total_relation_size('msgq.q%1$d_%2$d') "
							   "FROM msgq.q%1$d_%2$d", ring->queue_id, segment->n),
					  SPI_OK_SELECT, 1, &type, &soon, NULL, false);
	rest->rows = DatumGetInt64(column(0, 1));
	rest->soon = DatumGetInt64(column(0, 2));
	rest->bytes = DatumGetInt64(column(0, 3));
	rest->size = DatumGetInt64(column(0, 4));
	msgq_spi_end(&spi);
}

/*
 * Moves some of the rest to the active segment.  What somebody holds stays
 * until the next time.
 */
static int64
move_rest(const MsgqRing *ring, const MsgqRingSegment *segment,
		  const MsgqRingSegment *active)
{
	Oid			type = TIMESTAMPTZOID;
	Datum		soon = TimestampTzGetDatum(msgq_now() + SOON * USECS_PER_SEC);
	int64		moved;
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run_with(psprintf("WITH moved AS (DELETE FROM msgq.q%1$d_%2$d "
							   "WHERE id = ANY (ARRAY(SELECT id FROM msgq.q%1$d_%2$d "
							   "WHERE visible_at >= $1 LIMIT %4$d FOR UPDATE SKIP LOCKED)) "
							   "AND visible_at >= $1 RETURNING *) "
							   "INSERT INTO msgq.q%1$d_%3$d SELECT * FROM moved",
							   ring->queue_id, segment->n, active->n, MOVE_ROWS),
					  SPI_OK_INSERT, 1, &type, &soon, NULL, false);
	moved = SPI_processed;
	if (moved > 0 && !segment->moved)
		set_state(ring, segment->n, "draining", true);
	msgq_spi_end(&spi);
	return moved;
}

/*
 * Looks at a segment that drains: marks it drained, or moves messages out of
 * it, and returns true; *parked is set if it is better left alone for long.
 */
bool
msgq_ring_drain(const MsgqRing *ring, const MsgqRingSegment *segment,
				MsgqRound *round, bool *parked)
{
	const MsgqRingSegment *active = find_active(ring, segment->level);
	Rest		rest;
	int64		moved;
	MsgqSpi		spi;

	*parked = false;
	if (active == NULL || !OidIsValid(active->table) ||
		!ConditionalLockRelationOid(active->table, AccessShareLock) ||
		!msgq_segment_is_plain(active->table) ||
		!OidIsValid(segment->table) ||
		!ConditionalLockRelationOid(segment->table, AccessShareLock) ||
		!msgq_segment_is_plain(segment->table))
		return false;
	count_rest(ring, segment, &rest);
	*parked = rest.bytes * 2 >= rest.size;
	if (rest.soon > 0 || (rest.rows > 0 && *parked))
		return false;
	if (!msgq_try_lock_metadata() || !still_is(ring, segment) || !still_is(ring, active))
	{
		round->waiting++;
		return false;
	}
	if (rest.rows > 0)
	{
		moved = move_rest(ring, segment, active);
		round->moved += moved;
		msgq_point(MSGQ_POINT_RING_MOVED);
		return moved > 0;
	}
	*parked = false;
	msgq_spi_begin(&spi, msgq_storage_owner());
	set_state(ring, segment->n, "drained", segment->moved);
	msgq_spi_end(&spi);
	round->drained++;
	return true;
}

/* ---------------------------------------------------------------------------
 * Reclaiming
 * ---------------------------------------------------------------------------
 */

/* Do the rows of the segment have to wait until nobody can see them? */
static bool
is_snapshot_safe(const MsgqRingSegment *segment)
{
	return segment->moved || msgq_reclaim == MSGQ_RECLAIM_SNAPSHOT_SAFE;
}

/* They are of rows that are gone; should we abort, they are found anew. */
static void
forget_frontiers(const MsgqRing *ring, const MsgqRingSegment *segment)
{
	MsgqQueue  *queue = msgq_queue_find(ring->name);
	MsgqSlot   *slot = queue ? msgq_slot_find(queue->sequence,
											  queue->created_at) : NULL;

	if (slot)
		msgq_slot_forget_segment(slot, segment->table);
}

/* Empties a segment, or sees that it is not: the caller holds the locks. */
static bool
reclaim_locked(const MsgqRing *ring, const MsgqRingSegment *segment,
			   Relation table, MsgqRound *round)
{
	bool		is_empty;
	MsgqSpi		spi;

	msgq_point(MSGQ_POINT_RING_LOCKED);
	is_empty = !msgq_table_has_row(table);
	if (is_empty && is_snapshot_safe(segment) && msgq_table_has_row_for_somebody(table))
	{
		table_close(table, NoLock);
		round->waiting++;
		return false;
	}
	table_close(table, NoLock);

	msgq_spi_begin(&spi, msgq_storage_owner());
	if (is_empty)
	{
		msgq_spi_run("TRUNCATE ONLY msgq.q%d_%d", ring->queue_id, segment->n);
		set_state(ring, segment->n, "empty", false);
		forget_frontiers(ring, segment);
		round->reclaimed++;
	}
	else
	{
		set_state(ring, segment->n, "draining", segment->moved);
		round->refilled++;
	}
	msgq_spi_end(&spi);
	return true;
}

/*
 * A look at that before any strong lock is taken, which would be in others'
 * way here and on a standby.
 */
static bool
must_wait(const MsgqRingSegment *segment)
{
	Relation	table;
	bool		wait;

	if (!is_snapshot_safe(segment) || !OidIsValid(segment->table))
		return false;
	if (!ConditionalLockRelationOid(segment->table, AccessShareLock))
		return true;
	table = try_table_open(segment->table, NoLock);
	wait = table && msgq_table_has_row_for_somebody(table);
	if (table)
		table_close(table, AccessShareLock);
	return wait;
}

/*
 * Empties a drained segment, if nobody uses it; true if something was done.
 * The lock stays until the end of the transaction, which should come at once.
 */
bool
msgq_ring_reclaim(const MsgqRing *ring, const MsgqRingSegment *segment,
				  MsgqRound *round)
{
	Relation	table;

	if (must_wait(segment))
	{
		round->waiting++;
		return false;
	}
	msgq_point(MSGQ_POINT_RING_EXAMINED);
	if (!OidIsValid(segment->table) || !msgq_try_lock_metadata() ||
		!still_is(ring, segment) ||
		!ConditionalLockRelationOid(segment->table, AccessExclusiveLock))
	{
		round->waiting++;
		return false;
	}
	table = try_table_open(segment->table, NoLock);
	if (table == NULL)
		return false;
	if (!msgq_segment_is_plain(segment->table) || !msgq_try_lock_toast(table))
	{
		table_close(table, NoLock);
		round->waiting++;
		return false;
	}
	return reclaim_locked(ring, segment, table, round);
}

/* ---------------------------------------------------------------------------
 * The audit
 * ---------------------------------------------------------------------------
 */

/* The low or the high keys of a frontier's exceptions. */
static ArrayType *
exception_keys(const MsgqFrontier *frontier, Oid type, bool high)
{
	Datum		keys[MSGQ_MAX_EXCEPTIONS];

	for (int i = 0; i < frontier->nexceptions; i++)
		keys[i] = Int64GetDatum(high ? frontier->exceptions[i].high :
								frontier->exceptions[i].low);
	return construct_array(keys, frontier->nexceptions, type, sizeof(int64),
						   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE);
}

/*
 * In an ordered queue a message may lie behind the frontier as long as a walk
 * would find another one of its group, or one is in flight (group.c).
 */
static const char *
group_condition(const MsgqQueue *queue)
{
	if (!queue->ordered)
		return "";
	return psprintf("AND NOT EXISTS (SELECT FROM msgq.q%d o "
					"WHERE o.group_key = s.group_key COLLATE \"C\" AND "
					"(o.id < s.id OR (o.id <> s.id AND o.visible_at IS NOT NULL)))",
					queue->id);
}

/* Counts what lies behind a frontier of a segment, by a new snapshot. */
static int64
count_behind(const MsgqQueue *queue, Relation table, MsgqOrder order,
			 const MsgqFrontier *frontier)
{
	Oid			type = order == MSGQ_READY ? INT8OID : TIMESTAMPTZOID;
	Oid			array = order == MSGQ_READY ? INT8ARRAYOID : TIMESTAMPTZARRAYOID;
	const char *key = order == MSGQ_READY ? "id" : "visible_at";
	Oid			types[] = {type, array, array, TIMESTAMPTZOID};
	Datum		values[] = {
		Int64GetDatum(frontier->position),
		PointerGetDatum(exception_keys(frontier, type, false)),
		PointerGetDatum(exception_keys(frontier, type, true)),
		TimestampTzGetDatum(msgq_now())
	};
	int64		found;
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run_with(psprintf("SELECT count(*) FROM msgq.%s s "
							   "WHERE visible_at IS %s NULL AND %s < $1 "
							   "AND (expires_at IS NULL OR expires_at > $4) AND NOT EXISTS ("
							   "SELECT FROM unnest($2, $3) AS e (low, high) "
							   "WHERE %s BETWEEN low AND high) %s",
							   RelationGetRelationName(table),
							   order == MSGQ_READY ? "" : "NOT", key, key,
							   group_condition(queue)),
					  SPI_OK_SELECT, lengthof(values), types, values, NULL,
					  false);
	found = DatumGetInt64(column(0, 1));
	msgq_spi_end(&spi);
	return found;
}

static void
audit_order(const MsgqQueue *queue, MsgqSegment *segment, MsgqFrontierRef ref,
			MsgqRound *round)
{
	MsgqFrontier frontier;
	int64		found;

	msgq_frontier_copy(ref, &frontier);
	if (frontier.position == PG_INT64_MIN)
		return;
	found = count_behind(queue, segment->table, ref.order, &frontier);
	if (found == 0 || msgq_frontier_has_late_keys(ref, &frontier))
		return;
	msgq_frontier_restart(ref);
	msgq_audit_count(found);
	round->defects += found;
	ereport(WARNING,
			(errmsg("found " INT64_FORMAT " messages of table \"%s\" that receivers had passed by",
					found, RelationGetRelationName(segment->table)),
			 errdetail("They will be delivered now."),
			 errhint("Rows that are written around msgq's functions can be passed by; if there were none, please report this.")));
}

/*
 * Looks behind the shared frontiers of a queue.  Raises a warning for what it
 * finds.
 */
void
msgq_ring_audit(const MsgqQueue *queue, MsgqRound *round)
{
	MsgqStorage *storage = msgq_storage_open(NULL, NameStr(queue->name),
											 MSGQ_RIGHT_PEEK, MSGQ_ALL);

	for (int i = 0; i < storage->nsegments; i++)
	{
		MsgqSegment *segment = storage->segments[i];

		if (segment->ready.lock == NULL)
			continue;			/* other backends' frontiers are theirs */
		audit_order(queue, segment, segment->ready, round);
		audit_order(queue, segment, segment->due, round);
		round->audited++;
	}
	msgq_storage_let_go(storage);
}
