/*
 * destination.c
 *		A queue or a stream that a topic sends messages to.
 *
 * Nobody's right is checked here: who publishes has the right on the topic, and
 * who has bound the target had the right to send there.
 *
 * To be opened, a target is looked up by the name that it had when the routing
 * was read, or by its number; what is opened then must be the one with that
 * number.  Otherwise it has been dropped or renamed since, and whoever opens it
 * begins anew with another routing.
 *
 * What a message carries, and a target does not have:
 *
 *	- A priority above those of a queue is its highest one, as in AMQP.
 *	- A stream has no priorities, and keeps its entries by its own retention,
 *	  whatever their time to live.
 *	- A stream cannot hold an entry back: a delayed message is refused.
 *	- The key of an entry is the message's group key, or else its routing key:
 *	  so what has the same routing key stays in order.
 *
 * src/destination.c
 */
#include "msgq.h"

#include "destination.h"
#include "message.h"

/* ---------------------------------------------------------------------------
 * Queues
 * ---------------------------------------------------------------------------
 */

/* Opens the queue with the segments of some priorities; false if it has gone. */
static bool
open_queue(MsgqDestination *destination, const char *command, int lowest,
		   int highest)
{
	const MsgqTarget *target = destination->target;
	const char *name = NameStr(target->name);
	MsgqStorage *storage;

	storage = msgq_storage_try_open_levels(command, name, MSGQ_RIGHT_NONE,
										   lowest, highest);
	if (storage && storage->queue->id == target->id)
	{
		destination->queue = storage;
		return true;
	}
	if (storage)
		msgq_storage_let_go(storage);
	return false;
}

/* The queue's highest priority takes those above. */
static int32 *
fitting_priorities(const MsgqOutgoing *out, const MsgqQueue *queue)
{
	int32	   *priorities = palloc(sizeof(int32) * out->n);

	for (int i = 0; i < out->n; i++)
		priorities[i] = Min(out->priorities[i], queue->priorities - 1);
	return priorities;
}

static int
store_in_queue(MsgqDestination *destination, const MsgqOutgoing *out,
			   const Datum *idempotency_key)
{
	MsgqOutgoing own = *out;
	int64	   *ids = palloc(sizeof(int64) * out->n);

	own.priorities = fitting_priorities(out, destination->queue->queue);
	own.duplicates = palloc0(sizeof(bool) * out->n);
	own.keys = NULL;
	if (idempotency_key)
		msgq_outgoing_set_key(&own, 0, *idempotency_key);
	return msgq_outgoing_store(&destination->queue, &own, ids);
}

/* ---------------------------------------------------------------------------
 * Streams
 * ---------------------------------------------------------------------------
 */

/* A stream would show it at once. */
static void
refuse_delay(const MsgqDestination *destination, const MsgqOutgoing *out)
{
	for (int i = 0; i < out->n; i++)
	{
		if (out->visible_at[i] != 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("stream \"%s\" cannot take a delayed message",
							NameStr(destination->target->name)),
					 errdetail("Entries of a stream can be read as soon as they are committed."),
					 errhint("Publish it without a delay, or bind a queue instead of the stream.")));
	}
}

static MsgqNewEntry
entry_of(const MsgqOutgoing *out, int i, Datum routing_key,
		 const Datum *idempotency_key)
{
	MsgqNewEntry entry = {0};
	text	   *key = out->group_keys[i] ? out->group_keys[i] :
	DatumGetTextPP(routing_key);

	/* An empty routing key is none. */
	entry.key = VARSIZE_ANY_EXHDR(key) > 0 ? key : NULL;
	entry.content_column = out->content_column == Anum_segment_body ?
		Anum_entry_row_body : Anum_entry_row_data;
	entry.content = out->contents[i];
	entry.has_headers = !out->no_headers[i];
	entry.headers = out->headers[i];
	if (idempotency_key)
		entry.idempotency_key = DatumGetTextPP(*idempotency_key);
	return entry;
}

static int
store_in_stream(MsgqDestination *destination, const MsgqOutgoing *out,
				const Datum *routing_keys, const Datum *idempotency_key)
{
	MsgqNewEntry *entries = palloc(sizeof(MsgqNewEntry) * out->n);
	int64	   *ids = palloc(sizeof(int64) * out->n);

	refuse_delay(destination, out);
	for (int i = 0; i < out->n; i++)
		entries[i] = entry_of(out, i, routing_keys[i], idempotency_key);
	return msgq_append_store(destination->stream, entries, out->n, ids) ? out->n : 0;
}

/* ---------------------------------------------------------------------------
 * Either
 * ---------------------------------------------------------------------------
 */

/*
 * Opens a target for messages with priorities from lowest to highest, and locks
 * it to the end of the transaction; false if it is not what it was any more.
 * command is the caller's name, for messages.  Raises 55000 if its storage is
 * not what it must be, 25006 where nothing can be written.
 */
bool
msgq_destination_open(MsgqDestination *destination, const char *command,
					  const MsgqTarget *target, int lowest, int highest)
{
	destination->target = target;
	destination->queue = NULL;
	destination->stream = NULL;
	if (target->kind == MSGQ_TARGET_QUEUE)
		return open_queue(destination, command, lowest, highest);
	destination->stream = msgq_append_open(command, target->id);
	return destination->stream != NULL;
}

/*
 * Stores messages with their routing keys, all or none; a single one may have
 * an idempotency key (or NULL).  Returns how many are not duplicates.  Raises
 * what send and append do.
 */
int
msgq_destination_store(MsgqDestination *destination, MsgqOutgoing *out,
					   const Datum *routing_keys, const Datum *idempotency_key)
{
	if (destination->queue)
		return store_in_queue(destination, out, idempotency_key);
	return store_in_stream(destination, out, routing_keys, idempotency_key);
}

/* Closes it; with unlock, nothing was stored, and it is not locked any more. */
void
msgq_destination_close(MsgqDestination *destination, bool unlock)
{
	if (destination->stream)
		msgq_append_close(destination->stream, unlock);
	else if (unlock)
		msgq_storage_let_go(destination->queue);
	else
		msgq_storage_close(destination->queue);
}
