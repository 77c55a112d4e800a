/*
 * queue.c
 *		Finds queues by name, quickly, and checks rights on them.
 *
 * A queue is a row of msgq.queue, its segments are rows of msgq.segment, the
 * tables of its stores are rows of msgq.store, and its rights are privileges
 * on its handle, the view msgq.q<id>.
 *
 * Each backend caches what it has looked up.  Whoever changes one of these
 * tables sends a relcache invalidation for msgq.queue with his commit
 * (msgq_queue_changed).  Receiving it only raises a counter, the generation;
 * an entry of an older generation is read again when it is next looked up.
 * So a user of a queue
 *
 *	1. looks it up, after accepting pending invalidations,
 *	2. locks its tables, which accepts those that came meanwhile, and
 *	3. starts again if the generation has changed or a table has gone
 *	   (msgq_storage_open in storage.c does this).
 *
 * After that it knows that the queue is as the entry says, and its locks keep
 * it so: whoever drops a queue or turns its ring needs a lock that conflicts.
 *
 * The tables are read with the catalog snapshot: the newest committed state,
 * whatever the transaction's isolation level.
 *
 * src/queue.c
 */
#include "msgq.h"

#include <math.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "common/pg_prng.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "argument.h"
#include "queue.h"

typedef struct CacheEntry
{
	NameData	name;			/* hash key */
	uint64		generation;		/* when the queue was read */
	MsgqQueue  *queue;
} CacheEntry;

static HTAB *cache = NULL;

/* Starts above zero, which no entry has. */
static uint64 generation = 1;

/* What the invalidation callback compares with; InvalidOid if unknown. */
static Oid	queue_table = InvalidOid;

/* May be called whenever a lock is taken: only raises the counter. */
static void
invalidation_callback(Datum arg, Oid relation)
{
	if (relation == InvalidOid || relation == queue_table)
	{
		generation++;
		queue_table = InvalidOid;
	}
}

/* Once per backend, from _PG_init. */
void
msgq_queue_init(void)
{
	CacheRegisterRelcacheCallback(invalidation_callback, (Datum) 0);
}

/* To be called before metadata is read that shall be told apart by generation. */
void
msgq_queue_watch(void)
{
	queue_table = msgq_relation_oid("queue");
}

/* Changes whenever something that was looked up may have changed. */
uint64
msgq_queue_generation(void)
{
	return generation;
}

/*
 * All queues have to be looked up anew: something was not there, so that what
 * is cached must be old.
 */
void
msgq_queue_forget_all(void)
{
	generation++;
}

/* ---------------------------------------------------------------------------
 * Names of msgq's relations
 * ---------------------------------------------------------------------------
 */

Oid
msgq_schema_oid(void)
{
	return get_namespace_oid("msgq", false);
}

/* InvalidOid if schema msgq has no such relation. */
Oid
msgq_relation_oid(const char *name)
{
	return get_relname_relid(name, msgq_schema_oid());
}

/*
 * Opens a table or a sequence of msgq's, which may have been dropped since it was
 * found: with its queue or stream, or with the extension (55000).
 */
Relation
msgq_open(Oid oid, LOCKMODE lock)
{
	Relation	relation = try_relation_open(oid, lock);

	if (relation == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("a table of msgq was dropped meanwhile"),
				 errhint("Try again; if the extension was dropped, use CREATE EXTENSION msgq.")));
	return relation;
}

/* Opens a metadata table for reading (55000); the caller closes it. */
Relation
msgq_open_metadata(const char *name)
{
	Oid			oid = msgq_relation_oid(name);

	if (!OidIsValid(oid))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension msgq is not installed in this database"),
				 errhint("Use CREATE EXTENSION msgq.")));
	return msgq_open(oid, AccessShareLock);
}

/*
 * The first n columns of a row of metadata, which are those that this library
 * knows.  After an update of the extension there may be more; after one of the
 * library, until that of the extension, less (55000).
 */
void
msgq_read_columns(HeapTuple row, TupleDesc descriptor, int n, Datum *values,
				  bool *nulls)
{
	if (descriptor->natts < n)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension msgq is older than its library"),
				 errhint("Use ALTER EXTENSION msgq UPDATE.")));
	for (int i = 0; i < n; i++)
		values[i] = heap_getattr(row, i + 1, descriptor, &nulls[i]);
}

/*
 * The role that owns the storage of all queues: the extension's owner, who
 * owns its tables.
 */
Oid
msgq_storage_owner(void)
{
	Relation	table = msgq_open_metadata("queue");
	Oid			owner = table->rd_rel->relowner;

	table_close(table, AccessShareLock);
	return owner;
}

/*
 * To be called by whoever has changed msgq.queue, msgq.segment or msgq.store:
 * with the commit, all backends look queues up anew.
 */
void
msgq_queue_changed(void)
{
	CacheInvalidateRelcacheByRelid(msgq_relation_oid("queue"));
}

/* ---------------------------------------------------------------------------
 * Reading the metadata
 * ---------------------------------------------------------------------------
 */

static Interval
interval_column(Datum value)
{
	return *DatumGetIntervalP(value);
}

/* InvalidOid if it has gone: then the queue is refused when it is used. */
static Oid
storage_oid(int32 queue_id, const char *suffix)
{
	char		name[NAMEDATALEN];

	snprintf(name, sizeof(name), "q%d%s", queue_id, suffix);
	return msgq_relation_oid(name);
}

static Oid
segment_oid(int32 queue_id, int32 n)
{
	char		suffix[NAMEDATALEN];

	snprintf(suffix, sizeof(suffix), "_%d", n);
	return storage_oid(queue_id, suffix);
}

/* A row of msgq.segment, as far as it is wanted here. */
typedef struct Segment
{
	int			rank;			/* drained, draining, active */
	int64		turn;
	MsgqQueueSegment segment;
} Segment;

#define ACTIVE_RANK	2

static int
compare_segments(const void *left, const void *right)
{
	const Segment *a = left;
	const Segment *b = right;

	if (a->rank != b->rank)
		return a->rank - b->rank;
	if (a->rank == ACTIVE_RANK)
		return a->segment.level - b->segment.level;
	return a->turn < b->turn ? -1 : a->turn > b->turn;
}

/* Reads a row; false if the segment is empty. */
static bool
read_segment(const Datum *values, int32 queue_id, Segment *segment)
{
	char	   *state = TextDatumGetCString(values[Anum_queue_segment_state - 1]);

	if (strcmp(state, "empty") == 0)
		return false;
	segment->rank = strcmp(state, "active") == 0 ? ACTIVE_RANK :
		strcmp(state, "draining") == 0 ? 1 : 0;
	segment->turn = DatumGetInt64(values[Anum_queue_segment_turn - 1]);
	segment->segment.table =
		segment_oid(queue_id, DatumGetInt32(values[Anum_queue_segment_n - 1]));
	segment->segment.level =
		DatumGetInt16(values[Anum_queue_segment_level - 1]);
	return true;
}

/*
 * The segments that may hold messages: those known to be drained first, then
 * those that drain, in the order in which they were filled, and the active
 * ones last, in the order of their levels.  Stores how many there are.
 */
static Segment *
read_segments(int32 queue_id, int *n)
{
	Relation	table = msgq_open_metadata("segment");
	Oid			index = msgq_relation_oid("segment_pkey");
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	row;
	int			room = 8;
	Segment    *segments = palloc(sizeof(Segment) * room);

	*n = 0;
	ScanKeyInit(&key, Anum_queue_segment_queue_id, BTEqualStrategyNumber,
				F_INT4EQ, Int32GetDatum(queue_id));
	scan = systable_beginscan(table, index, true, NULL, 1, &key);
	while (HeapTupleIsValid(row = systable_getnext(scan)))
	{
		Datum		values[Natts_queue_segment];
		bool		nulls[Natts_queue_segment];

		msgq_read_columns(row, RelationGetDescr(table), Natts_queue_segment, values, nulls);
		if (*n == room)
			segments = repalloc(segments, sizeof(Segment) * (room *= 2));
		if (read_segment(values, queue_id, &segments[*n]))
			(*n)++;
	}
	systable_endscan(scan);
	table_close(table, AccessShareLock);
	qsort(segments, *n, sizeof(Segment), compare_segments);
	return segments;
}

/* Is there one active segment for each level? */
static bool
has_active_ones(const Segment *segments, int n, int priorities)
{
	int			first = n - priorities;

	if (first < 0 || (first > 0 && segments[first - 1].rank == ACTIVE_RANK))
		return false;
	for (int level = 0; level < priorities; level++)
	{
		if (segments[first + level].rank != ACTIVE_RANK ||
			segments[first + level].segment.level != level)
			return false;
	}
	return true;
}

/* How metadata and the names of tables call a store. */
char
msgq_store_letter(MsgqStoreKind kind)
{
	static const char letters[MSGQ_NSTORES] = {[MSGQ_KEYS] = 'k',[MSGQ_ARCHIVE] = 'a'};

	return letters[kind];
}

/* The current table of a store first, then those closed last. */
static int
compare_store_tables(const void *left, const void *right)
{
	const MsgqStoreTable *a = left;
	const MsgqStoreTable *b = right;

	if (a->closed_at == 0 || b->closed_at == 0)
		return (a->closed_at != 0) - (b->closed_at != 0);
	return a->closed_at > b->closed_at ? -1 : a->closed_at < b->closed_at;
}

/* What a letter of msgq_store_letter stands for. */
static MsgqStoreKind
store_kind(char letter)
{
	MsgqStoreKind kind = 0;

	while (msgq_store_letter(kind) != letter)
	{
		if (++kind == MSGQ_NSTORES)
			elog(ERROR, "unknown kind of store: \"%c\"", letter);
	}
	return kind;
}

/* Adds a row of msgq.store to the queue, unless the table is empty. */
static void
read_store_table(MsgqQueue *queue, const Datum *values)
{
	MsgqStoreKind kind = store_kind(DatumGetChar(values[Anum_store_kind - 1]));
	char	   *state = TextDatumGetCString(values[Anum_store_state - 1]);
	char		suffix[NAMEDATALEN];
	MsgqStoreTable *table;

	if (strcmp(state, "empty") == 0 ||
		queue->nstored[kind] == MSGQ_STORE_TABLES)
		return;
	table = &queue->stores[kind][queue->nstored[kind]++];
	snprintf(suffix, sizeof(suffix), "_%c%d", msgq_store_letter(kind),
			 DatumGetInt32(values[Anum_store_n - 1]));
	table->table = storage_oid(queue->id, suffix);
	table->closed_at = strcmp(state, "current") == 0 ? 0 :
		DatumGetTimestampTz(values[Anum_store_closed_at - 1]);
}

/* The tables of the queue's stores that may hold rows. */
static void
read_stores(MsgqQueue *queue)
{
	Relation	table = msgq_open_metadata("store");
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	row;

	ScanKeyInit(&key, Anum_store_queue_id, BTEqualStrategyNumber,
				F_INT4EQ, Int32GetDatum(queue->id));
	scan = systable_beginscan(table, msgq_relation_oid("store_pkey"), true,
							  NULL, 1, &key);
	while (HeapTupleIsValid(row = systable_getnext(scan)))
	{
		Datum		values[Natts_store];
		bool		nulls[Natts_store];

		msgq_read_columns(row, RelationGetDescr(table), Natts_store, values, nulls);
		read_store_table(queue, values);
	}
	systable_endscan(scan);
	table_close(table, AccessShareLock);
	for (MsgqStoreKind kind = 0; kind < MSGQ_NSTORES; kind++)
		qsort(queue->stores[kind], queue->nstored[kind],
			  sizeof(MsgqStoreTable), compare_store_tables);
}

/* The text of a column; an empty string for NULL. */
static char *
text_column(Datum value, bool is_null)
{
	return is_null ? "" : TextDatumGetCString(value);
}

/* What the column "paused" says. */
static int
paused_bits(const char *paused)
{
	if (strcmp(paused, "receive") == 0)
		return MSGQ_PAUSED_RECEIVE;
	if (strcmp(paused, "send") == 0)
		return MSGQ_PAUSED_SEND;
	return strcmp(paused, "all") == 0 ? MSGQ_PAUSED_RECEIVE | MSGQ_PAUSED_SEND : 0;
}

static MsgqOverflow
overflow_policy(const char *overflow)
{
	if (strcmp(overflow, "drop_oldest") == 0)
		return MSGQ_OVERFLOW_DROP_OLDEST;
	return strcmp(overflow, "dead_letter") == 0 ? MSGQ_OVERFLOW_DEAD_LETTER :
		MSGQ_OVERFLOW_REJECT;
}

/* The settings, from the columns of a row of msgq.queue. */
static void
read_settings(MsgqQueue *queue, const Datum *values, const bool *nulls)
{
#define VALUE(column) values[(column) - 1]
#define IS_NULL(column) nulls[(column) - 1]
#define TEXT(column) text_column(VALUE(column), IS_NULL(column))
	queue->visibility_timeout =
		interval_column(VALUE(Anum_queue_visibility_timeout));
	queue->max_deliveries = DatumGetInt32(VALUE(Anum_queue_max_deliveries));
	namestrcpy(&queue->dead_letter_queue, TEXT(Anum_queue_dead_letter_queue));
	queue->retry_delay = interval_column(VALUE(Anum_queue_retry_delay));
	queue->retry_multiplier = DatumGetFloat8(VALUE(Anum_queue_retry_multiplier));
	queue->max_retry_delay = interval_column(VALUE(Anum_queue_max_retry_delay));
	queue->has_ttl = !IS_NULL(Anum_queue_message_ttl);
	if (queue->has_ttl)
		queue->message_ttl = interval_column(VALUE(Anum_queue_message_ttl));
	if (!IS_NULL(Anum_queue_max_length))
		queue->max_length = DatumGetInt64(VALUE(Anum_queue_max_length));
	queue->overflow = overflow_policy(TEXT(Anum_queue_overflow));
	queue->max_message_bytes = DatumGetInt32(VALUE(Anum_queue_max_message_bytes));
	if (!IS_NULL(Anum_queue_max_in_flight))
		queue->max_in_flight = DatumGetInt32(VALUE(Anum_queue_max_in_flight));
	queue->priorities = DatumGetInt32(VALUE(Anum_queue_priorities));
	queue->ordered = DatumGetBool(VALUE(Anum_queue_ordered));
	queue->block_exhausted = strcmp(TEXT(Anum_queue_on_exhausted), "block") == 0;
	queue->dedup_window = interval_column(VALUE(Anum_queue_dedup_window));
	queue->has_archive = !IS_NULL(Anum_queue_archive_retention);
	if (queue->has_archive)
		queue->archive_retention =
			interval_column(VALUE(Anum_queue_archive_retention));
	queue->paused = paused_bits(TEXT(Anum_queue_paused));
#undef VALUE
#undef IS_NULL
#undef TEXT
}

/* The settings, and where the queue's storage is. */
static MsgqQueue *
queue_from_row(const Datum *values, const bool *nulls)
{
	int32		id = DatumGetInt32(values[Anum_queue_id - 1]);
	int			n;
	Segment    *segments = read_segments(id, &n);
	MsgqQueue  *queue = palloc0(offsetof(MsgqQueue, segments) +
								sizeof(MsgqQueueSegment) * Max(n, 1));

	queue->id = id;
	namestrcpy(&queue->name,
			   TextDatumGetCString(values[Anum_queue_name - 1]));
	queue->created_at = DatumGetTimestampTz(values[Anum_queue_created_at - 1]);
	read_settings(queue, values, nulls);
	queue->handle = storage_oid(id, "");
	queue->sequence = storage_oid(id, "_id");
	for (int i = 0; i < n; i++)
	{
		queue->segments[i] = segments[i].segment;
		if (segments[i].rank == 0)
			queue->ndrained++;
	}
	/* Without its active ones the queue is refused when it is used. */
	if (!has_active_ones(segments, n, queue->priorities))
		queue->sequence = InvalidOid;
	queue->nsegments = Max(n, 1);
	read_stores(queue);
	return queue;
}

/*
 * Reads the queue of this name, or all queues if name is NULL, in the order
 * of their names.  Returns a list of MsgqQueue.
 */
static List *
read_queues(const char *name)
{
	Relation	table = msgq_open_metadata("queue");
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	row;
	List	   *queues = NIL;
	int			nkeys = 0;
	Oid			index = msgq_relation_oid("queue_name_key");

	queue_table = RelationGetRelid(table);
	if (name)
	{
		ScanKeyInit(&key, Anum_queue_name, BTEqualStrategyNumber, F_TEXTEQ,
					CStringGetTextDatum(name));
		nkeys = 1;
	}
	scan = systable_beginscan(table, index, true, NULL, nkeys, &key);
	while (HeapTupleIsValid(row = systable_getnext(scan)))
	{
		Datum		values[Natts_queue];
		bool		nulls[Natts_queue];

		msgq_read_columns(row, RelationGetDescr(table), Natts_queue, values, nulls);
		queues = lappend(queues, queue_from_row(values, nulls));
	}
	systable_endscan(scan);
	table_close(table, AccessShareLock);
	return queues;
}

/* ---------------------------------------------------------------------------
 * The cache
 * ---------------------------------------------------------------------------
 */

static Size
queue_size(const MsgqQueue *queue)
{
	return offsetof(MsgqQueue, segments) +
		sizeof(MsgqQueueSegment) * queue->nsegments;
}

static MsgqQueue *
copy_queue(const MsgqQueue *queue, MemoryContext context)
{
	MsgqQueue  *copy = MemoryContextAlloc(context, queue_size(queue));

	memcpy(copy, queue, queue_size(queue));
	return copy;
}

/*
 * A hash table of what a backend knows by name or number, which is the first
 * field of each entry, for as long as it lives.
 */
HTAB	   *
msgq_cache_create(const char *name, Size key_size, Size entry_size)
{
	HASHCTL		control = {
		.keysize = key_size,
		.entrysize = entry_size,
	};

	if (CacheMemoryContext == NULL)
		CreateCacheMemoryContext();
	control.hcxt = CacheMemoryContext;
	return hash_create(name, 32, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* Puts what was read into the cache; a queue that is not there leaves it. */
static void
remember(const NameData *key, uint64 read_at, const MsgqQueue *queue)
{
	CacheEntry *entry;
	bool		found;
	MsgqQueue  *copy;

	if (queue == NULL)
	{
		entry = hash_search(cache, key, HASH_FIND, NULL);
		if (entry)
		{
			pfree(entry->queue);
			(void) hash_search(cache, key, HASH_REMOVE, NULL);
		}
		return;
	}
	copy = copy_queue(queue, CacheMemoryContext);
	entry = hash_search(cache, key, HASH_ENTER, &found);
	if (found)
		pfree(entry->queue);
	entry->queue = copy;
	entry->generation = read_at;
}

/* The queue, in the current memory context; NULL if there is none. */
MsgqQueue  *
msgq_queue_find(const char *name)
{
	NameData	key;
	CacheEntry *entry;
	List	   *queues;
	MsgqQueue  *queue;
	uint64		read_at;

	/* A transaction that has its locks already would not hear otherwise. */
	AcceptInvalidationMessages();
	if (cache == NULL)
		cache = msgq_cache_create("msgq queues", sizeof(NameData),
								  sizeof(CacheEntry));
	namestrcpy(&key, name);
	entry = hash_search(cache, &key, HASH_FIND, NULL);
	if (entry && entry->generation == generation)
		return copy_queue(entry->queue, CurrentMemoryContext);

	/*
	 * An invalidation that arrives while we read makes the entry old at once:
	 * it carries the generation of before.
	 */
	read_at = generation;
	queues = read_queues(name);
	queue = queues ? linitial(queues) : NULL;
	remember(&key, read_at, queue);
	return queue;
}

/* ---------------------------------------------------------------------------
 * Rights
 * ---------------------------------------------------------------------------
 */

/* The word that msgq.grant uses for a right. */
const char *
msgq_right_name(AclMode right)
{
	switch (right)
	{
		case MSGQ_RIGHT_PEEK:
			return "peek";
		case MSGQ_RIGHT_SEND:
			return "send";
		case MSGQ_RIGHT_RECEIVE:
			return "receive";
		case MSGQ_RIGHT_MANAGE:
			return "manage";
		case MSGQ_RIGHT_ADMIN:
			return "admin";
	}
	elog(ERROR, "unknown right: %u", (unsigned) right);
	return NULL;
}

/* Were all of the queue's relations there when it was looked up? */
bool
msgq_queue_is_complete(const MsgqQueue *queue)
{
	for (int i = 0; i < queue->nsegments; i++)
	{
		if (!OidIsValid(queue->segments[i].table))
			return false;
	}
	return OidIsValid(queue->handle) && OidIsValid(queue->sequence);
}

/*
 * Has the current user the right on the queue or stream of this handle?  False
 * also if the handle has just been dropped, which is stored.
 */
bool
msgq_has_right(Oid handle, AclMode right, bool *is_missing)
{
	*is_missing = false;
	if (right == MSGQ_RIGHT_NONE)
		return true;
	return pg_class_aclcheck_ext(handle, GetUserId(), right,
								 is_missing) == ACLCHECK_OK && !*is_missing;
}

/* The same for a queue that is locked. */
bool
msgq_queue_has_right(const MsgqQueue *queue, AclMode right)
{
	bool		is_missing;

	return msgq_has_right(queue->handle, right, &is_missing);
}

/* Raises 42501 for a queue or a stream, which what says. */
void
msgq_refuse_without_right(const char *what, const char *name, AclMode right)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for %s \"%s\"", what, name),
			 errdetail("Role \"%s\" does not have the right \"%s\".",
					   GetUserNameFromId(GetUserId(), false),
					   msgq_right_name(right)),
			 errhint("An administrator of the %s can give it with msgq.grant().",
					 what)));
}

/*
 * The queue, in the current memory context, if the current user has the right
 * on it; NULL if there is no such queue.  Raises 42501 without the right,
 * 55000 if its storage is missing.
 */
MsgqQueue  *
msgq_queue_try_get(const char *name, AclMode right)
{
	MsgqQueue  *queue;
	bool		may;
	bool		is_missing;

	do
	{
		queue = msgq_queue_find(name);
		if (queue == NULL)
			return NULL;
		if (!msgq_queue_is_complete(queue))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the storage of queue \"%s\" is incomplete", name),
					 errdetail("Its relations are named msgq.q%d and msgq.q%d_*.",
							   queue->id, queue->id),
					 errhint("Restore them from a dump, or drop the queue.")));
		may = msgq_has_right(queue->handle, right, &is_missing);
		if (is_missing)
			msgq_queue_forget_all();
	} while (is_missing);

	if (!may)
		msgq_refuse_without_right("queue", name, right);
	return queue;
}

/* The same, but raises 42704 if there is no such queue. */
MsgqQueue  *
msgq_queue_get(const char *name, AclMode right)
{
	MsgqQueue  *queue = msgq_queue_try_get(name, right);

	if (queue == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("queue \"%s\" does not exist", name)));
	return queue;
}

/* Such a lock on a queue is an object of the sequence's class. */
void
msgq_queue_lock_tag(LOCKTAG *tag, Oid sequence, MsgqLock lock)
{
	SET_LOCKTAG_OBJECT(*tag, MyDatabaseId, RelationRelationId,
					   sequence, lock);
}

/*
 * Locks the queue against being dropped while it is read by SQL; the lock
 * stays until the end of the transaction.  False if it has gone already, or
 * its tables are others: then it has to be looked up anew.
 *
 * SQL would lock the handle first and then the tables, senders and receivers
 * lock the tables; so this locks a table first, and so does whoever drops the
 * queue.
 */
bool
msgq_queue_lock_for_reading(const MsgqQueue *queue)
{
	Relation	table = try_relation_open(queue->segments[0].table,
										  AccessShareLock);
	Relation	handle = NULL;

	if (table)
	{
		relation_close(table, NoLock);
		handle = try_relation_open(queue->handle, AccessShareLock);
	}
	if (handle == NULL)
	{
		msgq_queue_forget_all();
		return false;
	}
	relation_close(handle, NoLock);
	return true;
}

/* All queues on which the current user has the right, by name. */
MsgqQueue **
msgq_queue_list(AclMode right, int *n)
{
	List	   *queues = read_queues(NULL);
	MsgqQueue **list = palloc(sizeof(MsgqQueue *) * (list_length(queues) + 1));
	ListCell   *cell;

	*n = 0;
	foreach(cell, queues)
	{
		MsgqQueue  *queue = lfirst(cell);
		bool		is_missing;

		if (msgq_queue_is_complete(queue) && msgq_has_right(queue->handle, right, &is_missing))
			list[(*n)++] = queue;
	}
	return list;
}

/* The queue of this number, whatever its name is now; NULL if it has gone. */
MsgqQueue  *
msgq_queue_find_by_id(int32 id)
{
	int			n;
	MsgqQueue **queues = msgq_queue_list(MSGQ_RIGHT_NONE, &n);

	for (int i = 0; i < n; i++)
	{
		if (queues[i]->id == id)
			return queues[i];
	}
	return NULL;
}

/* ---------------------------------------------------------------------------
 * Retries
 * ---------------------------------------------------------------------------
 */

/*
 * Time until the next delivery after this many failures: exponential backoff
 * with full jitter, uniform between 0 and the backoff.  Source: M. Brooker,
 * "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
 */
int64
msgq_queue_backoff(const MsgqQueue *queue, TimestampTz now, int32 failures)
{
	double		first = msgq_time_after(now, &queue->retry_delay) - now;
	double		most = msgq_time_after(now, &queue->max_retry_delay) - now;
	double		delay = first * pow(queue->retry_multiplier, failures - 1);

	/* The power may have become infinite, and times zero not a number. */
	if (first == 0)
		delay = 0;
	else if (delay > most)
		delay = most;
	return (int64) (delay * pg_prng_double(&pg_global_prng_state));
}
