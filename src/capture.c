/*
 * capture.c
 *		Sends the changes of a table as messages, in the change's own
 *		transaction.
 *
 * msgq.capture() (captureadmin.c) makes triggers that call the function of this
 * file, and a row of msgq.capture that says where the changes go.  The row is
 * what counts: whoever may make triggers can make one that calls the function,
 * but it does only what somebody was allowed to, for the table for which he was:
 * a trigger that no capture would have made raises an error.
 *
 * A plain table has a trigger for each kind of statement, which fires once when
 * the statement is over, and finds all changed rows in transition tables.  A
 * statement changes the old and the new version of a row in both of them at the
 * same place.  The messages go out in chunks.
 *
 * A table that is partitioned, or is part of another one, can be changed by
 * statements that name another table.  So it has a trigger for rows, which sends
 * one message each time.  A plain table cannot become part of another one while
 * it is captured: PostgreSQL refuses that because of the trigger "guard".
 *
 * Which columns are captured, and which one is the key, is told by the column
 * lists of two triggers that never fire.  So it follows when a column is
 * renamed, a dump has it, and a column of them is not dropped by accident.  If
 * one of them has gone all the same (DROP ... CASCADE), changes of the table
 * fail: to guess would send what nobody has chosen.
 *
 * The messages are sent with whatever rights the user has who changes the table:
 * who made the capture had the right to send, and to read the table.  All that
 * sending can raise (the queue is full or paused, a row is too large) fails the
 * statement.
 *
 * src/capture.c
 */
#include "msgq.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/partition.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/json.h"
#include "utils/jsonpath.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "capture.h"
#include "filter.h"
#include "message.h"
#include "outbox.h"
#include "queue.h"
#include "rowjson.h"
#include "target.h"
#include "testing.h"

/* Rows, and bytes of their messages, that are handled at once. */
#define CHUNK_ROWS			500
#define CHUNK_BYTES			(1024 * 1024)

/* ---------------------------------------------------------------------------
 * What is to be captured
 * ---------------------------------------------------------------------------
 */

/* A row of msgq.capture, in the cache. */
typedef struct Capture
{
	int32		id;				/* hash key */
	uint64		generation;		/* when it was read */
	Oid			relation;
	MsgqTarget	target;
	bool		is_outbox;
	bool		has_event[TRIGGER_EVENT_OPMASK + 1];
	bool		has_columns;	/* else it is all of them */
	bool		has_key;
	JsonPath   *filter;			/* or NULL */
} Capture;

static HTAB *cache = NULL;

/* What a trigger's event is called. */
static const char *const operations[TRIGGER_EVENT_OPMASK + 1] = {
	[TRIGGER_EVENT_INSERT] = "insert",
	[TRIGGER_EVENT_UPDATE] = "update",
	[TRIGGER_EVENT_DELETE] = "delete",
	[TRIGGER_EVENT_TRUNCATE] = "truncate",
};

/* What was read in another generation is read again. */
static uint64 generation = 1;
static Oid	capture_table = InvalidOid;

static void
invalidation_callback(Datum arg, Oid relation)
{
	if (relation == InvalidOid || relation == capture_table)
		generation++;
}

/* Once per backend, from _PG_init. */
void
msgq_capture_init(void)
{
	CacheRegisterRelcacheCallback(invalidation_callback, (Datum) 0);
}

static void
read_events(Capture *capture, Datum events)
{
	Datum	   *names;
	int			n;

	deconstruct_array(DatumGetArrayTypeP(events), TEXTOID, -1, false, TYPALIGN_INT,
					  &names, NULL, &n);
	for (int i = 0; i < n; i++)
	{
		for (int k = 0; k < (int) lengthof(operations); k++)
			capture->has_event[k] |=
				strcmp(TextDatumGetCString(names[i]), operations[k]) == 0;
	}
}

/* False if there is no such row. */
static bool
read_capture(Capture *capture)
{
	Relation	table;
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	row;
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	Datum		values[Natts_capture];
	bool		nulls[Natts_capture];

	capture_table = msgq_relation_oid("capture");
	table = msgq_open(capture_table, AccessShareLock);
	ScanKeyInit(&key, Anum_capture_id, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(capture->id));
	scan = systable_beginscan(table, msgq_relation_oid("capture_pkey"), true,
							  snapshot, 1, &key);
	row = systable_getnext(scan);
	if (HeapTupleIsValid(row))
	{
		msgq_read_columns(row, RelationGetDescr(table), Natts_capture, values, nulls);
		capture->relation = DatumGetObjectId(values[Anum_capture_relation - 1]);
		capture->target.id = DatumGetInt32(values[Anum_capture_destination_id - 1]);
		capture->is_outbox =
			strcmp(TextDatumGetCString(values[Anum_capture_kind - 1]), "outbox") == 0;
		read_events(capture, values[Anum_capture_events - 1]);
		capture->has_columns = DatumGetBool(values[Anum_capture_has_columns - 1]);
		capture->has_key = DatumGetBool(values[Anum_capture_has_key - 1]);
		if (!nulls[Anum_capture_filter - 1])
			capture->filter = DatumGetJsonPathPCopy(values[Anum_capture_filter - 1]);
	}
	systable_endscan(scan);
	table_close(table, AccessShareLock);
	UnregisterSnapshot(snapshot);
	return HeapTupleIsValid(row) && msgq_target_find(capture->target.id,
													 &capture->target);
}

/* The same in another memory context. */
static Capture
copy_capture(const Capture *capture, MemoryContext context)
{
	Capture		copy = *capture;

	if (copy.filter)
	{
		copy.filter = MemoryContextAlloc(context, VARSIZE(capture->filter));
		memcpy(copy.filter, capture->filter, VARSIZE(capture->filter));
	}
	return copy;
}

/* The capture with this number, as it is cached; NULL if there is none. */
static const Capture *
find_capture(int32 id)
{
	Capture		read = {.id = id,.generation = generation};
	Capture    *capture;
	bool		found;

	if (cache == NULL)
		cache = msgq_cache_create("msgq captures", sizeof(int32),
								  sizeof(Capture));
	capture = hash_search(cache, &id, HASH_FIND, NULL);
	if (capture && capture->generation == generation)
		return capture;
	if (capture && capture->filter)
		pfree(capture->filter);
	if (capture)
		(void) hash_search(cache, &id, HASH_REMOVE, NULL);
	if (!read_capture(&read))
		return NULL;
	capture = hash_search(cache, &id, HASH_ENTER, &found);
	*capture = copy_capture(&read, CacheMemoryContext);
	return capture;
}

/* Is it this table, or a partition of it? */
static bool
is_captured(const Capture *capture, Relation relation)
{
	return capture->relation == RelationGetRelid(relation) ||
		(relation->rd_rel->relispartition &&
		 list_member_oid(get_partition_ancestors(RelationGetRelid(relation)),
						 capture->relation));
}

/* Has it this name, and does it see the rows that it must? */
static bool
is_made_by(const Capture *capture, const TriggerData *trigger)
{
	TriggerEvent event = trigger->tg_event;
	int			operation = event & TRIGGER_EVENT_OPMASK;
	char	   *name = psprintf(MSGQ_CAPTURE_TRIGGER "_%s", capture->id,
								operations[operation]);

	if (!capture->has_event[operation] ||
		strcmp(trigger->tg_trigger->tgname, name) != 0)
		return false;
	if (TRIGGER_FIRED_FOR_ROW(event) || TRIGGER_FIRED_BY_TRUNCATE(event))
		return true;
	return (TRIGGER_FIRED_BY_INSERT(event) || trigger->tg_oldtable) &&
		(TRIGGER_FIRED_BY_DELETE(event) || trigger->tg_newtable);
}

/*
 * What this trigger captures, a copy: what is cached can go while we send.
 * Raises 55000 if it captures nothing: somebody made or renamed it by hand, or
 * restored it from a part of a dump.
 */
static Capture
capture_of(const TriggerData *trigger)
{
	const Trigger *definition = trigger->tg_trigger;

	/* What is no number is the number of no capture. */
	const Capture *capture = definition->tgnargs != 1 ? NULL :
	find_capture((int32) strtol(definition->tgargs[0], NULL, 10));

	if (capture == NULL || !is_captured(capture, trigger->tg_relation) ||
		!is_made_by(capture, trigger))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("trigger \"%s\" of table \"%s\" captures nothing",
						definition->tgname,
						RelationGetRelationName(trigger->tg_relation)),
				 errdetail("No capture of this table has made such a trigger."),
				 errhint("Drop the trigger, and call msgq.capture().")));
	return copy_capture(capture, CurrentMemoryContext);
}

/* ---------------------------------------------------------------------------
 * One firing of a trigger
 * ---------------------------------------------------------------------------
 */

/* The keys of a body, in the order in which an object is stored. */
enum
{
	BODY_AT,
	BODY_OP,
	BODY_NEW,
	BODY_OLD,
	BODY_TABLE,
	BODY_UNCHANGED,
	BODY_NKEYS
};

static const char *const body_keys[BODY_NKEYS] = {
	[BODY_AT] = "at",
	[BODY_OP] = "op",
	[BODY_NEW] = "new",
	[BODY_OLD] = "old",
	[BODY_TABLE] = "table",
	[BODY_UNCHANGED] = "unchanged",
};

typedef struct Firing
{
	TriggerData *trigger;
	Capture		capture;
	const char *operation;
	char	   *table;			/* that is captured, qualified */
	char	   *routing_key;
	char		at[MAXDATELEN + 1];
	MsgqRowShape shape;			/* of the captured columns */
	bool	   *unchanged;		/* of each of these */
	JsonbValue *old_values;
	JsonbValue *new_values;
	JsonbPair  *old_pairs;		/* room for them */
	JsonbPair  *new_pairs;
	JsonbPair	body[BODY_NKEYS];	/* what all bodies have is there */
	AttrNumber	key;			/* 0: none */
	FmgrInfo	key_output;
	MsgqOutboxShape *outbox;	/* if it is one */

	/* the chunk */
	MemoryContext context;
	MsgqOutgoing messages;
	Datum	   *routing_keys;
	int			nrows;			/* and bytes, with those that are declined: */
	Size		bytes;			/* they need memory too */
} Firing;

/*
 * The column list of a trigger of this capture that never fires; raises 55000
 * if that has gone.
 */
static const Trigger *
find_list(const Firing *firing, const char *suffix)
{
	Relation	relation = firing->trigger->tg_relation;
	const TriggerDesc *triggers = relation->trigdesc;
	char	   *name = psprintf(MSGQ_CAPTURE_TRIGGER "_%s", firing->capture.id,
								suffix);

	for (int i = 0; i < triggers->numtriggers; i++)
	{
		if (strcmp(triggers->triggers[i].tgname, name) == 0 &&
			triggers->triggers[i].tgnattr > 0)
			return &triggers->triggers[i];
	}
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table \"%s\" is captured, but which columns is not known any more",
					RelationGetRelationName(relation)),
			 errdetail("Trigger \"%s\" has been dropped, maybe with a column.", name),
			 errhint("Call msgq.uncapture(), and msgq.capture() anew.")));
	return NULL;
}

static JsonbValue
text_value(const char *text)
{
	JsonbValue	value = {.type = jbvString};

	value.val.string.val = unconstify(char *, text);
	value.val.string.len = strlen(text);
	return value;
}

/* Sets what is the same in the bodies of all rows. */
static void
begin_bodies(Firing *firing)
{
	for (int i = 0; i < BODY_NKEYS; i++)
		firing->body[i].key = text_value(body_keys[i]);
	firing->body[BODY_AT].value = text_value(firing->at);
	firing->body[BODY_OP].value = text_value(firing->operation);
	firing->body[BODY_TABLE].value = text_value(firing->table);
}

static void
describe_columns(Firing *firing)
{
	TupleDesc	descriptor = RelationGetDescr(firing->trigger->tg_relation);
	const Capture *capture = &firing->capture;
	Oid			output;
	bool		is_varlena;

	if (capture->has_columns)
	{
		const Trigger *list = find_list(firing, MSGQ_CAPTURE_COLUMNS);

		firing->shape = msgq_row_shape(descriptor, list->tgattr, list->tgnattr);
	}
	else
		firing->shape = msgq_row_shape(descriptor, NULL, 0);
	firing->unchanged = palloc(sizeof(bool) * firing->shape.n);
	firing->old_values = palloc(sizeof(JsonbValue) * firing->shape.n);
	firing->new_values = palloc(sizeof(JsonbValue) * firing->shape.n);
	firing->old_pairs = palloc(sizeof(JsonbPair) * firing->shape.n);
	firing->new_pairs = palloc(sizeof(JsonbPair) * firing->shape.n);
	if (!capture->has_key)
		return;
	firing->key = find_list(firing, MSGQ_CAPTURE_KEY)->tgattr[0];
	getTypeOutputInfo(TupleDescAttr(descriptor, firing->key - 1)->atttypid,
					  &output, &is_varlena);
	fmgr_info(output, &firing->key_output);
}

/* A new chunk, in its own memory context. */
static void
begin_chunk(Firing *firing)
{
	int			room = TRIGGER_FIRED_FOR_ROW(firing->trigger->tg_event) ? 1 : CHUNK_ROWS;
	MemoryContext before;

	MemoryContextReset(firing->context);
	before = MemoryContextSwitchTo(firing->context);
	msgq_outgoing_init(&firing->messages, room, Anum_segment_body);
	firing->messages.n = 0;
	firing->routing_keys = palloc(sizeof(Datum) * room);
	firing->nrows = 0;
	firing->bytes = 0;
	MemoryContextSwitchTo(before);
}

static void
begin_firing(Firing *firing, TriggerData *trigger)
{
	const Capture *capture = &firing->capture;

	firing->trigger = trigger;
	firing->capture = capture_of(trigger);
	firing->operation = operations[trigger->tg_event & TRIGGER_EVENT_OPMASK];
	firing->table = psprintf("%s.%s",
							 get_namespace_name(get_rel_namespace(capture->relation)),
							 get_rel_name(capture->relation));
	/* A stream would use it as the key of all rows. */
	firing->routing_key = capture->target.kind != MSGQ_TARGET_TOPIC ? pstrdup("") :
		psprintf("%s.%s", firing->table, firing->operation);
	JsonEncodeDateTime(firing->at, TimestampTzGetDatum(msgq_now()), TIMESTAMPTZOID,
					   NULL);
	if (capture->is_outbox)
		firing->outbox = msgq_outbox_shape(trigger->tg_relation);
	else
	{
		describe_columns(firing);
		begin_bodies(firing);
	}
	firing->context = AllocSetContextCreate(CurrentMemoryContext, "msgq capture",
											ALLOCSET_DEFAULT_SIZES);
	begin_chunk(firing);
}

/* Sends the chunk. */
static void
send_chunk(Firing *firing)
{
	MemoryContext before = MemoryContextSwitchTo(firing->context);
	NameData	name = firing->capture.target.name;

	if (firing->messages.n > 0 &&
		!msgq_target_send("msgq.capture()", &firing->capture.target,
						  &firing->messages, firing->routing_keys))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("where the changes of table \"%s\" go to has been dropped",
						firing->table),
				 errhint("Drop the triggers \"" MSGQ_CAPTURE_TRIGGER "_*\" of the table.",
						 firing->capture.id)));
	/* It has another name now, and what is cached is old. */
	if (namestrcmp(&name, NameStr(firing->capture.target.name)) != 0)
		generation++;
	MemoryContextSwitchTo(before);
}

/* ---------------------------------------------------------------------------
 * Changes
 * ---------------------------------------------------------------------------
 */

/* Which columns are left out, since they lie out of line and are the same. */
static JsonbValue
unchanged_columns(const Firing *firing)
{
	JsonbValue	array = {.type = jbvArray};

	array.val.array.elems = palloc(sizeof(JsonbValue) * firing->shape.n);
	array.val.array.nElems = 0;
	for (int i = 0; i < firing->shape.n; i++)
	{
		if (firing->unchanged[i])
			array.val.array.elems[array.val.array.nElems++] = firing->shape.columns[i].key;
	}
	array.val.array.rawScalar = false;
	return array;
}

/* {"op", "table", "old", "new", "at"}, and "unchanged" if there are any. */
static Datum
body_of(Firing *firing, TupleTableSlot *old_row, TupleTableSlot *new_row)
{
	const MsgqRowShape *shape = &firing->shape;
	bool		any_unchanged = old_row && new_row &&
	msgq_row_find_unchanged(shape, old_row, new_row, firing->unchanged);
	const bool *left_out = any_unchanged ? firing->unchanged : NULL;
	JsonbValue *old_values = old_row ? firing->old_values : NULL;
	JsonbValue *new_values = new_row ? firing->new_values : NULL;
	JsonbValue	body = {.type = jbvObject};

	if (old_row)
		msgq_row_convert(shape, old_row, NULL, NULL, left_out, old_values);
	if (new_row)
		msgq_row_convert(shape, new_row, old_row, old_values, left_out, new_values);
	firing->body[BODY_OLD].value = msgq_row_object(shape, old_values, left_out,
												   firing->old_pairs);
	firing->body[BODY_NEW].value = msgq_row_object(shape, new_values, left_out,
												   firing->new_pairs);
	if (any_unchanged)
		firing->body[BODY_UNCHANGED].value = unchanged_columns(firing);
	body.val.object.pairs = firing->body;
	body.val.object.nPairs = any_unchanged ? BODY_NKEYS : BODY_UNCHANGED;
	return JsonbPGetDatum(JsonbValueToJsonb(&body));
}

/* The key of a row; NULL if it has none. */
static text *
key_of(Firing *firing, TupleTableSlot *row)
{
	Datum		value;
	bool		is_null;
	char	   *key;

	if (firing->key == 0 || row == NULL)
		return NULL;
	value = slot_getattr(row, firing->key, &is_null);
	if (is_null)
		return NULL;
	key = OutputFunctionCall(&firing->key_output, value);
	return key[0] == '\0' ? NULL : cstring_to_text(key);
}

/* Adds a change to the chunk, unless the filter declines it. */
static void
add_change(Firing *firing, TupleTableSlot *old_row, TupleTableSlot *new_row)
{
	MsgqOutgoing *messages = &firing->messages;
	int			i = messages->n;
	JsonPath   *filter = firing->capture.filter;
	text	   *key = key_of(firing, new_row ? new_row : old_row);

	messages->contents[i] = body_of(firing, old_row, new_row);
	if (filter && !msgq_filter_passes(filter, msgq_filter_input(NULL,
																&messages->contents[i])))
		return;
	if (key)
		msgq_outgoing_set_group_key(messages, i, key);
	firing->routing_keys[i] = CStringGetTextDatum(firing->routing_key);
	messages->n++;
}

/* Adds a row; a row that is not there is NULL. */
static void
add_row(Firing *firing, TupleTableSlot *old_row, TupleTableSlot *new_row)
{
	MemoryContext before = MemoryContextSwitchTo(firing->context);
	int			i = firing->messages.n;

	if (firing->outbox)
		msgq_outbox_add(firing->outbox, new_row, &firing->messages,
						&firing->routing_keys[i]);
	else
		add_change(firing, old_row, new_row);
	firing->bytes += VARSIZE_ANY(DatumGetPointer(firing->messages.contents[i]));
	MemoryContextSwitchTo(before);
	if (++firing->nrows == CHUNK_ROWS || firing->bytes >= CHUNK_BYTES)
	{
		send_chunk(firing);
		begin_chunk(firing);
	}
}

/* ---------------------------------------------------------------------------
 * Transition tables
 * ---------------------------------------------------------------------------
 */

/* One of them, which others read too, as it is read by us. */
typedef struct TransitionTable
{
	Tuplestorestate *rows;		/* NULL: the statement has none */
	int			pointer;
	TupleTableSlot *row;
} TransitionTable;

static TransitionTable
open_transition_table(Tuplestorestate *rows, Relation relation)
{
	TransitionTable table = {.rows = rows};

	if (rows == NULL)
		return table;
	table.pointer = tuplestore_alloc_read_pointer(rows, EXEC_FLAG_REWIND);
	tuplestore_select_read_pointer(rows, table.pointer);
	tuplestore_rescan(rows);
	table.row = MakeSingleTupleTableSlot(RelationGetDescr(relation),
										 &TTSOpsMinimalTuple);
	return table;
}

static bool
next_row(TransitionTable *table)
{
	tuplestore_select_read_pointer(table->rows, table->pointer);
	return tuplestore_gettupleslot(table->rows, true, false, table->row);
}

static void
close_transition_table(TransitionTable *table)
{
	if (table->row)
		ExecDropSingleTupleTableSlot(table->row);
}

static void
add_statement(Firing *firing)
{
	TriggerData *trigger = firing->trigger;
	TransitionTable old_rows =
	open_transition_table(trigger->tg_oldtable, trigger->tg_relation);
	TransitionTable new_rows =
	open_transition_table(trigger->tg_newtable, trigger->tg_relation);
	TransitionTable *first = new_rows.rows ? &new_rows : &old_rows;

	while (next_row(first))
	{
		CHECK_FOR_INTERRUPTS();
		if (first == &new_rows && old_rows.rows && !next_row(&old_rows))
			elog(ERROR, "transition tables of \"%s\" do not fit each other",
				 firing->table);
		add_row(firing, old_rows.row, new_rows.row);
	}
	close_transition_table(&old_rows);
	close_transition_table(&new_rows);
}

/* ---------------------------------------------------------------------------
 * The trigger function
 * ---------------------------------------------------------------------------
 */

/* Tells whoever changes the table why sending has to do with it. */
static void
firing_context(void *arg)
{
	const Firing *firing = arg;

	errcontext("capture of table \"%s\" to \"%s\"", firing->table,
			   NameStr(firing->capture.target.name));
}

static void
fire(Firing *firing)
{
	TriggerData *trigger = firing->trigger;
	TupleTableSlot *row = trigger->tg_trigslot;

	if (TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event))
		add_row(firing, NULL, NULL);
	else if (TRIGGER_FIRED_FOR_STATEMENT(trigger->tg_event))
		add_statement(firing);
	else if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		add_row(firing, NULL, row);
	else if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
		add_row(firing, row, trigger->tg_newslot);
	else
		add_row(firing, row, NULL);
	send_chunk(firing);
}

/* capture_changes(), a trigger function with the capture's number as argument */
PG_FUNCTION_INFO_V1(msgq_capture_changes);
Datum
msgq_capture_changes(PG_FUNCTION_ARGS)
{
	Firing		firing = {0};
	ErrorContextCallback context = {
		.previous = error_context_stack,
		.callback = firing_context,
		.arg = &firing
	};

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_AFTER(((TriggerData *) fcinfo->context)->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("msgq.capture_changes() can only be called as an AFTER trigger"),
				 errhint("Call msgq.capture() to make it.")));
	begin_firing(&firing, (TriggerData *) fcinfo->context);
	error_context_stack = &context;
	fire(&firing);
	error_context_stack = context.previous;
	MemoryContextDelete(firing.context);
	CommandCounterIncrement();
	return PointerGetDatum(NULL);
}
