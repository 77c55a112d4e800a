/*
 * topic.c
 *		Finds topics by name, quickly, and checks rights on them.
 *
 * Reading order.  A topic keeps no messages for consumers: it sends each one
 * on, by its bindings, to queues, to streams, and to further topics.  Bindings
 * are made and removed in topicadmin.c.  pattern.c matches routing keys, and
 * filter.c the rest of a message; route.c goes from binding to binding and
 * collects the targets; publish.c stores the message there.  What a topic does
 * keep is the last message of each routing key, for those who will be bound
 * (retained.c).
 *
 * A topic is a row of msgq.topic, its bindings are rows of msgq.binding, its
 * rights are privileges on its handle, the view msgq.t<id>.
 *
 * Each backend caches the routing of a topic that it publishes to: the topic with
 * all those to which its messages can get, and all their bindings, compiled.  It is read with one
 * snapshot, so that whoever changes several bindings in one transaction is seen
 * to have changed all of them or none.  Whoever changes a topic, its bindings or
 * their targets gives the topic a new version, and with his commit all backends get
 * to know that what they have may be old.  They compare versions then, and read
 * a routing again if one of its topics has changed.
 *
 * A target can go after the routing was read.  publish.c notices when it locks
 * the targets, and begins anew.
 *
 * src/topic.c
 */
#include "msgq.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "owner.h"
#include "stream.h"
#include "topic.h"

/* A routing that was looked up, in a memory context of its own. */
typedef struct CachedRouting
{
	NameData	name;			/* hash key: the topic's */
	MsgqRouting *routing;
	MemoryContext context;
} CachedRouting;

static HTAB *cache = NULL;

/* As in queue.c. */
static uint64 generation = 1;
static Oid	topic_table = InvalidOid;

/* What was read in another epoch is read again, whatever its version. */
static uint64 epoch = 1;

static void
invalidation_callback(Datum arg, Oid relation)
{
	if (relation == InvalidOid || relation == topic_table)
	{
		generation++;
		topic_table = InvalidOid;
	}
}

/* Once per backend, from _PG_init. */
void
msgq_topic_init(void)
{
	CacheRegisterRelcacheCallback(invalidation_callback, (Datum) 0);
}

/*
 * To be called by whoever has changed a topic or its bindings; within SPI, as
 * the owner.
 */
void
msgq_topic_changed(int32 topic_id)
{
	msgq_spi_run("UPDATE msgq.topic SET version = nextval('msgq.binding_id') WHERE id = %d",
				 topic_id);
	CacheInvalidateRelcacheByRelid(msgq_relation_oid("topic"));
}

/* The same by whoever has renamed a target of bindings, or will drop it. */
void
msgq_target_changed(int32 target_id)
{
	Oid			table = msgq_relation_oid("topic");

	/* The library may be newer than what CREATE EXTENSION has made. */
	if (!OidIsValid(table))
		return;
	msgq_spi_run("UPDATE msgq.topic SET version = nextval('msgq.binding_id') WHERE id IN "
				 "(SELECT topic_id FROM msgq.binding WHERE target_id = %d)",
				 target_id);
	if (SPI_processed > 0)
		CacheInvalidateRelcacheByRelid(table);
}

/* What is cached must be old: something was not there. */
void
msgq_topic_forget_all(void)
{
	generation++;
	epoch++;
}

/* ---------------------------------------------------------------------------
 * Reading the metadata
 * ---------------------------------------------------------------------------
 */

static const char *const kind_names[] = {
	[MSGQ_TOPIC_DIRECT] = "direct",
	[MSGQ_TOPIC_FANOUT] = "fanout",
	[MSGQ_TOPIC_TOPIC] = "topic",
	[MSGQ_TOPIC_HEADERS] = "headers",
};

/* How SQL calls a kind of topics. */
const char *
msgq_topic_kind_name(MsgqTopicKind kind)
{
	return kind_names[kind];
}

static MsgqTopicKind
kind_named(const char *name)
{
	for (size_t i = 0; i < lengthof(kind_names); i++)
	{
		if (strcmp(kind_names[i], name) == 0)
			return (MsgqTopicKind) i;
	}
	elog(ERROR, "unknown kind of topic: \"%s\"", name);
	return MSGQ_TOPIC_DIRECT;
}

static MsgqUnroutable
unroutable_named(const char *name)
{
	if (strcmp(name, "error") == 0)
		return MSGQ_UNROUTABLE_ERROR;
	return strcmp(name, "drop") == 0 ? MSGQ_UNROUTABLE_DROP :
		MSGQ_UNROUTABLE_ALTERNATE;
}

/* What is being read. */
typedef struct Reading
{
	Snapshot	snapshot;
	MsgqRouting *routing;
	int			room;			/* for topics */
} Reading;

/* Called with the columns of a row. */
typedef void (*RowReader) (void *context, const Datum *values,
						   const bool *nulls);

/* Calls it for the rows of a table of metadata that fit a key; how many. */
static int
read_rows(const Reading *reading, const char *table_name,
		  const char *index_name, ScanKey key, RowReader reader, void *context)
{
	Relation	table = msgq_open_metadata(table_name);
	SysScanDesc scan = systable_beginscan(table, msgq_relation_oid(index_name),
										  true, reading->snapshot, 1, key);
	Datum	   *values = palloc(sizeof(Datum) * RelationGetDescr(table)->natts);
	bool	   *nulls = palloc(sizeof(bool) * RelationGetDescr(table)->natts);
	HeapTuple	row;
	int			n = 0;

	while (HeapTupleIsValid(row = systable_getnext(scan)))
	{
		heap_deform_tuple(row, RelationGetDescr(table), values, nulls);
		reader(context, values, nulls);
		n++;
	}
	systable_endscan(scan);
	table_close(table, AccessShareLock);
	return n;
}

/* The name is the second column of the table of each kind of target. */
static void
read_target_name(void *context, const Datum *values, const bool *nulls)
{
	namestrcpy(&((MsgqTarget *) context)->name, TextDatumGetCString(values[1]));
}

/* What the target is, and its name; false if it is not there. */
static bool
find_target(const Reading *reading, MsgqTarget *target)
{
	static const struct
	{
		MsgqTargetKind kind;
		const char *table;
		const char *index;
	}			kinds[] = {
		{MSGQ_TARGET_QUEUE, "queue", "queue_pkey"},
		{MSGQ_TARGET_STREAM, "stream", "stream_pkey"},
		{MSGQ_TARGET_TOPIC, "topic", "topic_pkey"},
	};

	for (size_t i = 0; i < lengthof(kinds); i++)
	{
		ScanKeyData key;

		/* The id is the first column of each. */
		ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT4EQ,
					Int32GetDatum(target->id));
		target->kind = kinds[i].kind;
		if (read_rows(reading, kinds[i].table, kinds[i].index, &key,
					  read_target_name, target) > 0)
			return true;
	}
	return false;
}

/*
 * What has this number: a queue, a stream or a topic, with its name; false if it
 * has gone.
 */
bool
msgq_target_find(int32 id, MsgqTarget *target)
{
	Reading		reading = {0};
	bool		found;

	target->id = id;
	reading.snapshot = RegisterSnapshot(GetLatestSnapshot());
	found = find_target(&reading, target);
	UnregisterSnapshot(reading.snapshot);
	return found;
}

/* Bindings of a topic, as they are being read. */
typedef struct BindingList
{
	const Reading *reading;
	MsgqTopic  *topic;
	int			room;
} BindingList;

static void
read_binding(void *context, const Datum *values, const bool *nulls)
{
	BindingList *list = context;
	MsgqTopic  *topic = list->topic;
	MsgqBinding *binding;

	if (topic->nbindings == list->room)
	{
		list->room = Max(8, 2 * list->room);
		topic->bindings = topic->bindings == NULL ?
			palloc(sizeof(MsgqBinding) * list->room) :
			repalloc(topic->bindings, sizeof(MsgqBinding) * list->room);
	}
	binding = &topic->bindings[topic->nbindings];
	memset(binding, 0, sizeof(MsgqBinding));
	binding->target.id = DatumGetInt32(values[Anum_binding_target_id - 1]);
	/* A dump that was restored in part may lack it. */
	if (!find_target(list->reading, &binding->target))
		return;
	binding->id = DatumGetInt32(values[Anum_binding_id - 1]);
	binding->pattern = TextDatumGetCString(values[Anum_binding_pattern - 1]);
	if (!nulls[Anum_binding_header_match - 1])
	{
		binding->header_match =
			DatumGetJsonbPCopy(values[Anum_binding_header_match - 1]);
		binding->headers = msgq_header_match_compile(binding->header_match);
	}
	if (!nulls[Anum_binding_filter - 1])
		binding->filter =
			DatumGetJsonPathPCopy(values[Anum_binding_filter - 1]);
	topic->nbindings++;
}

static void
read_topic(void *context, const Datum *values, const bool *nulls)
{
	MsgqTopic  *topic = context;

	topic->id = DatumGetInt32(values[Anum_topic_id - 1]);
	namestrcpy(&topic->name, TextDatumGetCString(values[Anum_topic_name - 1]));
	topic->created_at = DatumGetTimestampTz(values[Anum_topic_created_at - 1]);
	topic->kind = kind_named(TextDatumGetCString(values[Anum_topic_kind - 1]));
	topic->on_unroutable =
		unroutable_named(TextDatumGetCString(values[Anum_topic_on_unroutable - 1]));
	topic->alternate = -1;
	if (!nulls[Anum_topic_alternate - 1])
		topic->alternate_id = DatumGetInt32(values[Anum_topic_alternate - 1]);
	topic->retain = DatumGetBool(values[Anum_topic_retain - 1]);
	topic->version = DatumGetInt32(values[Anum_topic_version - 1]);
	topic->log = DatumGetInt32(values[Anum_topic_log - 1]) - 1;
}

/* Where its storage is. */
static void
find_storage(MsgqTopic *topic)
{
	topic->handle = msgq_relation_oid(psprintf("t%d", topic->id));
	topic->sequence = msgq_relation_oid(psprintf("t%d_id", topic->id));
	for (int i = 0; i < MSGQ_RETAINED_LOGS; i++)
		topic->logs[i] = msgq_relation_oid(psprintf("t%d_%d", topic->id, i + 1));
}

/* Its bindings, compiled. */
static void
read_bindings(const Reading *reading, MsgqTopic *topic)
{
	BindingList list = {.reading = reading,.topic = topic};
	ScanKeyData key;

	ScanKeyInit(&key, Anum_binding_topic_id, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(topic->id));
	(void) read_rows(reading, "binding", "binding_pkey", &key, read_binding, &list);
	topic->matcher = msgq_matcher_create(msgq_topic_syntax(topic));
	for (int i = 0; i < topic->nbindings; i++)
		msgq_matcher_add(topic->matcher, topic->bindings[i].pattern, i);
}

/* The topic that a key finds; its number in the routing, -1 if there is none. */
static int
add_topic(Reading *reading, const char *index, ScanKey key)
{
	MsgqRouting *routing = reading->routing;
	MsgqTopic	topic = {0};

	if (read_rows(reading, "topic", index, key, read_topic, &topic) == 0)
		return -1;
	find_storage(&topic);
	read_bindings(reading, &topic);
	if (routing->ntopics == reading->room)
	{
		reading->room *= 2;
		routing->topics = repalloc(routing->topics,
								   sizeof(MsgqTopic) * reading->room);
	}
	routing->topics[routing->ntopics] = topic;
	routing->max_bindings = Max(routing->max_bindings, topic.nbindings);
	return routing->ntopics++;
}

/* The number in the routing of the topic of this id; adds it. */
static int
reach_topic(Reading *reading, int32 id)
{
	ScanKeyData key;

	for (int i = 0; i < reading->routing->ntopics; i++)
	{
		if (reading->routing->topics[i].id == id)
			return i;
	}
	ScanKeyInit(&key, Anum_topic_id, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(id));
	return add_topic(reading, "topic_pkey", &key);
}

/* Adds the topics to which messages get from topic number i. */
static void
reach_from(Reading *reading, int i)
{
	MsgqRouting *routing = reading->routing;
	int			alternate = -1;

	for (int b = 0; b < routing->topics[i].nbindings; b++)
	{
		MsgqTarget *target = &routing->topics[i].bindings[b].target;

		if (target->kind == MSGQ_TARGET_TOPIC)
			target->topic = reach_topic(reading, target->id);
	}
	if (routing->topics[i].alternate_id != 0)
		alternate = reach_topic(reading, routing->topics[i].alternate_id);
	/* The array may have moved. */
	routing->topics[i].alternate = alternate;
}

/* Reads all of it, into the current memory context; NULL without the topic. */
static MsgqRouting *
read_routing(const char *name)
{
	Reading		reading = {.room = 4};
	MsgqRouting *routing = palloc0(sizeof(MsgqRouting));
	ScanKeyData key;

	topic_table = msgq_relation_oid("topic");
	routing->generation = generation;
	routing->epoch = epoch;
	routing->topics = palloc(sizeof(MsgqTopic) * reading.room);
	reading.routing = routing;
	if (!OidIsValid(topic_table))
		return NULL;
	reading.snapshot = RegisterSnapshot(GetLatestSnapshot());
	ScanKeyInit(&key, Anum_topic_name, BTEqualStrategyNumber, F_TEXTEQ,
				CStringGetTextDatum(name));
	(void) add_topic(&reading, "topic_name_key", &key);
	for (int i = 0; i < routing->ntopics; i++)
		reach_from(&reading, i);
	UnregisterSnapshot(reading.snapshot);
	return routing->ntopics > 0 ? routing : NULL;
}

/* The topic without its bindings; NULL if there is none.  It is not cached. */
MsgqTopic  *
msgq_topic_find(const char *name)
{
	Reading		reading = {0};
	MsgqTopic  *topic = palloc0(sizeof(MsgqTopic));
	ScanKeyData key;
	int			n;

	/* The library may be newer than what CREATE EXTENSION has made. */
	if (!OidIsValid(msgq_relation_oid("topic")))
		return NULL;
	ScanKeyInit(&key, Anum_topic_name, BTEqualStrategyNumber, F_TEXTEQ,
				CStringGetTextDatum(name));
	reading.snapshot = RegisterSnapshot(GetLatestSnapshot());
	n = read_rows(&reading, "topic", "topic_name_key", &key, read_topic, topic);
	UnregisterSnapshot(reading.snapshot);
	if (n == 0)
		return NULL;
	find_storage(topic);
	return topic;
}

/* ---------------------------------------------------------------------------
 * The cache
 * ---------------------------------------------------------------------------
 */

/*
 * Has none of the routing's topics changed, but others?  Then it is current
 * again.  After DROP EXTENSION another topic can have its number and version.
 */
static bool
is_unchanged(MsgqRouting *routing)
{
	Reading		reading = {0};
	uint64		read_at = generation;
	bool		unchanged = routing->epoch == epoch;

	topic_table = msgq_relation_oid("topic");
	if (!OidIsValid(topic_table))
		return false;
	reading.snapshot = RegisterSnapshot(GetLatestSnapshot());
	for (int i = 0; i < routing->ntopics && unchanged; i++)
	{
		MsgqTopic	now = {0};
		ScanKeyData key;

		ScanKeyInit(&key, Anum_topic_id, BTEqualStrategyNumber, F_INT4EQ,
					Int32GetDatum(routing->topics[i].id));
		unchanged = read_rows(&reading, "topic", "topic_pkey", &key, read_topic,
							  &now) > 0 &&
			now.version == routing->topics[i].version &&
			now.created_at == routing->topics[i].created_at;
	}
	UnregisterSnapshot(reading.snapshot);
	if (unchanged)
		routing->generation = read_at;
	return unchanged;
}

/* Forgets what is old, also of topics that nobody asks for any more. */
static void
forget_old(void)
{
	HASH_SEQ_STATUS status;
	CachedRouting *entry;

	hash_seq_init(&status, cache);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		if (entry->routing->generation == generation ||
			is_unchanged(entry->routing))
			continue;
		MemoryContextDelete(entry->context);
		(void) hash_search(cache, &entry->name, HASH_REMOVE, NULL);
	}
}

/*
 * The topic's routing; NULL if there is no such topic.  It stays there until
 * the next call.
 */
const MsgqRouting *
msgq_routing_find(const char *topic)
{
	NameData	key;
	CachedRouting *entry;
	MemoryContext context;
	MemoryContext caller;
	MsgqRouting *routing;
	bool		found;

	AcceptInvalidationMessages();
	if (cache == NULL)
		cache = msgq_cache_create("msgq topics", sizeof(NameData),
								  sizeof(CachedRouting));
	namestrcpy(&key, topic);
	entry = hash_search(cache, &key, HASH_FIND, NULL);
	if (entry && (entry->routing->generation == generation ||
				  is_unchanged(entry->routing)))
		return entry->routing;
	forget_old();

	context = AllocSetContextCreate(TopTransactionContext, "msgq topic",
									ALLOCSET_DEFAULT_SIZES);
	caller = MemoryContextSwitchTo(context);
	routing = read_routing(topic);
	MemoryContextSwitchTo(caller);
	if (routing == NULL)
		return NULL;
	entry = hash_search(cache, &key, HASH_ENTER, &found);
	entry->routing = routing;
	entry->context = context;
	MemoryContextSetParent(context, CacheMemoryContext);
	return routing;
}

/* Is it what one would find now? */
bool
msgq_routing_is_current(const MsgqRouting *routing)
{
	AcceptInvalidationMessages();
	return routing->generation == generation;
}

/* ---------------------------------------------------------------------------
 * Rights
 * ---------------------------------------------------------------------------
 */

/* Raises 55000 unless all of its relations were there when it was read. */
static void
check_complete(const MsgqTopic *topic)
{
	bool		is_complete = OidIsValid(topic->handle) &&
	OidIsValid(topic->sequence);

	for (int i = 0; i < MSGQ_RETAINED_LOGS; i++)
		is_complete &= OidIsValid(topic->logs[i]);
	if (!is_complete)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the storage of topic \"%s\" is incomplete",
						NameStr(topic->name)),
				 errdetail("Its relations are named msgq.t%d and msgq.t%d_*.",
						   topic->id, topic->id),
				 errhint("Restore them from a dump, or drop the topic.")));
}

static void
raise_missing(const char *topic)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("topic \"%s\" does not exist", topic)));
}

/*
 * The topic without its bindings, if the current user has the right on it.
 * Errors as msgq_routing_get.
 */
MsgqTopic  *
msgq_topic_get(const char *name, AclMode right)
{
	MsgqTopic  *topic;
	bool		may;
	bool		is_missing;

	do
	{
		topic = msgq_topic_find(name);
		if (topic == NULL)
			raise_missing(name);
		check_complete(topic);
		may = msgq_has_right(topic->handle, right, &is_missing);
	} while (is_missing);

	if (!may)
		msgq_refuse_without_right("topic", name, right);
	return topic;
}

/*
 * The topic's routing, if the current user has the right on the topic; those
 * to which it leads need none, since whoever has bound them had it.  Raises
 * 42704 if there is no such topic, 42501 without the right, 55000 if storage
 * is missing.
 */
const MsgqRouting *
msgq_routing_get(const char *topic, AclMode right)
{
	const MsgqRouting *routing;
	bool		may;
	bool		is_missing;

	do
	{
		routing = msgq_routing_find(topic);
		if (routing == NULL)
			raise_missing(topic);
		for (int i = 0; i < routing->ntopics; i++)
			check_complete(&routing->topics[i]);
		may = msgq_has_right(routing->topics[0].handle, right, &is_missing);
		if (is_missing)
			msgq_topic_forget_all();
	} while (is_missing);

	if (!may)
		msgq_refuse_without_right("topic", topic, right);
	return routing;
}

/* topic_handle(topic_id) */
PG_FUNCTION_INFO_V1(msgq_topic_handle);
Datum
msgq_topic_handle(PG_FUNCTION_ARGS)
{
	Oid			handle = msgq_relation_oid(psprintf("t%d", PG_GETARG_INT32(0)));

	if (!OidIsValid(handle))
		PG_RETURN_NULL();
	PG_RETURN_OID(handle);
}
