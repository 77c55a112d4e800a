/*
 * dedup.c
 *		Idempotency keys: a message that is sent again is not stored again.
 *
 * Whoever is not sure whether his message was sent (the connection broke
 * during COMMIT) sends it again with the same key.  For as long as the queue's
 * dedup_window the key leads to the first message's id, and nothing is stored;
 * after that it is free.  With another body it is an error (MQ006): a key that
 * names two messages is a mistake of the sender's, and to drop the second one
 * would lose it.
 *
 * A key lies in a store (store.c), with the id of its message, a hash of the
 * body, and the time.  It is stored in the sender's transaction, so a rollback
 * frees it.  It stays when the message is acked, purged or dropped, and goes
 * with the queue.
 *
 * Concurrency.  Keys are unique in their table; a dirty snapshot shows those
 * of open transactions, with their xid.  The steps of a call:
 *
 *	1. msgq_keys_find looks each key up.  If an open transaction has it, we
 *	   wait for that to end and look again.  A key that is found makes its
 *	   message a duplicate.
 *	2. The other messages are stored (send.c).
 *	3. msgq_keys_store inserts the other keys, with the ids.  Somebody may have
 *	   been faster since step 1: then we wait for him as before.  If he
 *	   commits, our message is a duplicate after all, and its row is removed
 *	   again; if he aborts, our key is inserted.
 *
 * Ids are known only in step 2, and waiting between taking an id and storing
 * the row would hold up the append horizon (storage.c); hence step 1, and
 * waiting in step 3, when the rows are in.  Keys go in their order, so that
 * two batches with the same keys do not deadlock; two transactions of several
 * calls may, and one of them gets 40P01.
 *
 * Step 3 inserts as INSERT ON CONFLICT does: speculatively.  The row is marked
 * so until its index entry is in and met no other; if it met one, the row is
 * taken back as if it had never been, before we wait for the other.  So nobody
 * ever waits for a transaction because of a key that this has not got.  Who
 * meets a row that is marked so waits for the mark, not for the transaction.
 *
 * A key that is too old may still be in its table.  In the current table its
 * row is removed before the new one is inserted.  In a kept table, where
 * nobody writes, it stays; the current table is looked at first.
 *
 * No MVCC snapshot is used, so all isolation levels see the same keys and none
 * gets a serialization failure.
 *
 * What the executor would have done, see segment.c: privileges are checked on
 * the queue; store.c refuses triggers, rules, row security, constraints, and
 * other columns and indexes; nobody updates a row, so there is no replica
 * identity to be asked for; a removed row is found by its primary key.
 *
 * src/dedup.c
 */
#include "msgq.h"

#include "access/detoast.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/index.h"
#include "catalog/pg_am.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"

#include "dedup.h"
#include "message.h"
#include "store.h"
#include "table.h"
#include "testing.h"

#define MAX_KEY_BYTES	255

/* Seeds of the fingerprints; arbitrary, and never to be changed. */
#define JSON_SEED		INT64CONST(0x6d7371206a736f6e)
#define BYTES_SEED		INT64CONST(0x6d73712062797465)

/* Columns of a table of keys. */
enum
{
	Anum_key_key = 1,
	Anum_key_id,
	Anum_key_fingerprint,
	Anum_key_seen_at,
	Natts_key = Anum_key_seen_at
};

/* A key of a call. */
typedef struct Key
{
	Datum		key;			/* text */
	int			position;		/* of its message in the call */
	int64		fingerprint;	/* of that message's body */
	bool		is_old;			/* the current table has it, too old */
	bool		is_new;			/* to be inserted with its message's id */
} Key;

struct MsgqKeys
{
	int			n;
	Key		   *keys;			/* sorted, by msgq_keys_find */
	const char *queue;			/* its name, for messages */
	int64		window;
	MsgqStore  *store;
	MsgqTable	tables[MSGQ_STORE_TABLES];
};

/* ---------------------------------------------------------------------------
 * The keys of a call
 * ---------------------------------------------------------------------------
 */

/* For as many keys as there is room for. */
MsgqKeys   *
msgq_keys_make(int room)
{
	MsgqKeys   *keys = palloc0(sizeof(MsgqKeys));

	keys->keys = palloc0(sizeof(Key) * Max(room, 1));
	return keys;
}

/* Checks the key of a message (22023), and adds it. */
void
msgq_keys_add(MsgqKeys *keys, int position, Datum key)
{
	Size		length = toast_raw_datum_size(key) - VARHDRSZ;
	Key		   *added = &keys->keys[keys->n++];

	if (length < 1 || length > MAX_KEY_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("an idempotency key must have 1 to %d bytes",
						MAX_KEY_BYTES),
				 errdetail("Message %d has one of %zu bytes.",
						   position + 1, length)));
	added->key = PointerGetDatum(DatumGetTextPP(key));
	added->position = position;
}

/* By key, then by place in the call. */
static int
compare_keys(const void *left, const void *right)
{
	const Key  *a = left;
	const Key  *b = right;
	int			order = msgq_compare_texts(a->key, b->key);

	return order != 0 ? order : a->position - b->position;
}

/* Bodies that are equal have the same, and others hardly ever. */
static int64
fingerprint_of(Datum content, AttrNumber content_column)
{
	struct varlena *bytes;

	if (content_column == Anum_segment_body)
		return DatumGetInt64(DirectFunctionCall2(jsonb_hash_extended, content,
												 Int64GetDatum(JSON_SEED)));
	bytes = PG_DETOAST_DATUM_PACKED(content);
	return DatumGetInt64(hash_any_extended((unsigned char *) VARDATA_ANY(bytes),
										   VARSIZE_ANY_EXHDR(bytes),
										   BYTES_SEED));
}

/* ---------------------------------------------------------------------------
 * The tables
 * ---------------------------------------------------------------------------
 */

/* Its index must be the one that it was made with, or one as good. */
static void
open_index(MsgqTable *table, LOCKMODE lock)
{
	List	   *indexes = RelationGetIndexList(table->table);
	Form_pg_index form;

	table->index = index_open(linitial_oid(indexes), lock);
	table->info = BuildIndexInfo(table->index);
	form = table->index->rd_index;
	if (table->index->rd_rel->relam != BTREE_AM_OID || !form->indisprimary ||
		!form->indimmediate || !form->indisvalid || form->indnatts != 1 ||
		form->indkey.values[0] != Anum_key_key)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" cannot hold idempotency keys",
						RelationGetRelationName(table->table)),
				 errdetail("It lacks its primary key."),
				 errhint("Restore the index, as the other tables have it.")));
	list_free(indexes);
}

static void
open_tables(MsgqKeys *keys, const char *command, MsgqStorage **storage)
{
	keys->store = msgq_store_open(command, storage, MSGQ_KEYS);
	keys->queue = NameStr((*storage)->queue->name);
	keys->window = msgq_store_window((*storage)->queue, MSGQ_KEYS);
	for (int i = 0; i < keys->store->ntables; i++)
	{
		MsgqTable  *table = &keys->tables[i];

		table->table = keys->store->tables[i];
		open_index(table, i == 0 ? RowExclusiveLock : AccessShareLock);
		table->row = table_slot_create(table->table, NULL);
	}
}

/* The locks stay to the end of the transaction. */
void
msgq_keys_close(MsgqKeys *keys)
{
	for (int i = 0; i < keys->store->ntables; i++)
	{
		ExecDropSingleTupleTableSlot(keys->tables[i].row);
		index_close(keys->tables[i].index, NoLock);
	}
	msgq_store_close(keys->store);
}

/* Finds the row of a key; waits for those who are about to change it. */
static bool
find_row(MsgqTable *table, Datum key)
{
	ScanKeyData condition;

	/* ScanKeyInit sets the collation to "C". */
	ScanKeyInit(&condition, Anum_key_key, BTEqualStrategyNumber, F_TEXTEQ, key);
	return msgq_table_find_settled(table, &condition, 1);
}

static Datum
column(const MsgqTable *table, AttrNumber n)
{
	return msgq_row_value(table->row, n);
}

/* Is what was found so old that the key is free again? */
static bool
is_too_old(const MsgqKeys *keys, const MsgqTable *table)
{
	return DatumGetTimestampTz(column(table, Anum_key_seen_at)) <=
		msgq_now() - keys->window;
}

/*
 * Inserts the key into the current table, for the message of this id.  False,
 * with nothing inserted, if somebody else has it, or is about to.
 */
static bool
insert_row(MsgqTable *table, const Key *key, int64 id)
{
	Datum		values[Natts_key];

	values[Anum_key_key - 1] = key->key;
	values[Anum_key_id - 1] = Int64GetDatum(id);
	values[Anum_key_fingerprint - 1] = Int64GetDatum(key->fingerprint);
	values[Anum_key_seen_at - 1] = TimestampTzGetDatum(msgq_now());
	return msgq_table_insert_unless_there(table, values);
}

/* ---------------------------------------------------------------------------
 * Step 1
 * ---------------------------------------------------------------------------
 */

/* The key names a message with another body. */
static void
refuse_other_body(const Key *key, const char *owner)
{
	ereport(ERROR,
			(errcode(ERRCODE_MSGQ_KEY_REUSED),
			 errmsg("idempotency key was used with another body"),
			 errdetail("Key \"%s\" belongs to %s.",
					   TextDatumGetCString(key->key), owner),
			 errhint("Send another message with another key, and the same message with the same body.")));
}

/* The key was found, in table->row: returns its message's id. */
static int64
accept_duplicate(const MsgqKeys *keys, const Key *key, const MsgqTable *table)
{
	int64		id = DatumGetInt64(column(table, Anum_key_id));

	if (DatumGetInt64(column(table, Anum_key_fingerprint)) != key->fingerprint)
		refuse_other_body(key, psprintf("message " INT64_FORMAT " of queue \"%s\"",
										id, keys->queue));
	return id;
}

/* Looks a key up in all tables: true if its message is a duplicate. */
static bool
look_up(MsgqKeys *keys, Key *key, int64 *id)
{
	for (int i = 0; i < keys->store->ntables; i++)
	{
		MsgqTable  *table = &keys->tables[i];

		if (!find_row(table, key->key))
			continue;
		if (!is_too_old(keys, table))
		{
			*id = accept_duplicate(keys, key, table);
			return true;
		}
		if (i == 0)
			key->is_old = true;
	}
	return false;
}

/* Is this the same key as the one before, in the same call? */
static bool
is_repeated(const MsgqKeys *keys, int i)
{
	return i > 0 && msgq_compare_texts(keys->keys[i].key, keys->keys[i - 1].key) == 0;
}

/*
 * Opens the store, and marks the messages that are duplicates, with the id of
 * the first message where that is known already.  The storage may be opened
 * anew.  To be called before msgq_append_begin, since it waits.
 */
void
msgq_keys_find(MsgqKeys *keys, const char *command, MsgqStorage **storage,
			   const Datum *contents, AttrNumber content_column,
			   int64 *ids, bool *duplicates)
{
	Key		   *first = NULL;

	open_tables(keys, command, storage);
	qsort(keys->keys, keys->n, sizeof(Key), compare_keys);
	for (int i = 0; i < keys->n; i++)
	{
		Key		   *key = &keys->keys[i];
		int			n = key->position;

		key->fingerprint = fingerprint_of(contents[n], content_column);
		if (!is_repeated(keys, i))
		{
			first = key;
			duplicates[n] = look_up(keys, key, &ids[n]);
			key->is_new = !duplicates[n];
			continue;
		}
		if (key->fingerprint != first->fingerprint)
			refuse_other_body(key, psprintf("messages %d and %d of this call",
											first->position + 1, n + 1));
		duplicates[n] = true;
	}
}

/* ---------------------------------------------------------------------------
 * Step 3
 * ---------------------------------------------------------------------------
 */

/* True if the key is the message's; else *id becomes the first message's. */
static bool
take_key(MsgqKeys *keys, Key *key, int64 *id)
{
	MsgqTable  *table = &keys->tables[0];
	bool		look = key->is_old;

	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		if (look && find_row(table, key->key))
		{
			if (!is_too_old(keys, table))
			{
				*id = accept_duplicate(keys, key, table);
				return false;
			}
			/* The slot's pin keeps the row at its place. */
			if (!msgq_table_remove(table))
				continue;
		}
		if (insert_row(table, key, *id))
			return true;
		look = true;
	}
}

/* A message that we have stored, and should not have. */
static void
remove_message(MsgqStorage *storage, int64 id)
{
	/* What was stored in this command can be changed in the next one. */
	CommandCounterIncrement();
	for (int i = 0; i < storage->nsegments; i++)
	{
		if (msgq_segment_find(storage->segments[i], id) &&
			msgq_segment_remove(storage->segments[i], false) == MSGQ_DONE)
			return;
	}
	elog(ERROR, "could not remove message " INT64_FORMAT " again", id);
}

/*
 * Inserts the keys of the messages that were stored under these ids.  Those
 * that turn out to be duplicates are removed again: returns how many.  After
 * that, all ids are known.
 */
int
msgq_keys_store(MsgqKeys *keys, MsgqStorage *storage, int64 *ids,
				bool *duplicates)
{
	int			removed = 0;
	int64		first_id = 0;

	for (int i = 0; i < keys->n; i++)
	{
		Key		   *key = &keys->keys[i];
		int			n = key->position;
		int64		stored = ids[n];

		if (is_repeated(keys, i))
		{
			ids[n] = first_id;
			continue;
		}
		if (key->is_new && !take_key(keys, key, &ids[n]))
		{
			remove_message(storage, stored);
			duplicates[n] = true;
			removed++;
		}
		first_id = ids[n];
	}
	return removed;
}
