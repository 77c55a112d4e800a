/*
 * target.c
 *		A queue, a stream or a topic to which something else sends messages.
 *
 * Bindings, captures and schedules lead to a target.  Who makes them needs the
 * right to send there; who or what sends later needs none.  A target is known
 * by its number, so that it can be renamed.  Its name is only a hint, since all
 * of it is looked up by name.
 *
 * src/target.c
 */
#include "msgq.h"

#include "miscadmin.h"
#include "utils/builtins.h"

#include "destination.h"
#include "publish.h"
#include "queue.h"
#include "stream.h"
#include "target.h"

/*
 * What has this name, on which the caller must have the right (42501).  Raises
 * 42704 if there is no such thing.
 */
void
msgq_target_get(const char *name, AclMode right, MsgqTarget *target)
{
	namestrcpy(&target->name, name);
	if (msgq_stream_find(name))
	{
		target->kind = MSGQ_TARGET_STREAM;
		target->id = msgq_stream_get(name, right)->id;
	}
	else if (msgq_topic_find(name))
	{
		target->kind = MSGQ_TARGET_TOPIC;
		target->id = msgq_topic_get(name, right)->id;
	}
	else if (msgq_queue_find(name))
	{
		target->kind = MSGQ_TARGET_QUEUE;
		target->id = msgq_queue_get(name, right)->id;
	}
	else
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("there is no queue, stream or topic \"%s\"", name)));
}

/* The view that carries the rights on it; InvalidOid if it has gone. */
Oid
msgq_target_handle(const MsgqTarget *target)
{
	static const char letters[] = {
		[MSGQ_TARGET_QUEUE] = 'q',
		[MSGQ_TARGET_STREAM] = 's',
		[MSGQ_TARGET_TOPIC] = 't',
	};

	return msgq_relation_oid(psprintf("%c%d", letters[target->kind], target->id));
}

/* Stores them there; false if that has another name now. */
static bool
store(const char *command, const MsgqTarget *target, MsgqOutgoing *messages,
	  const Datum *routing_keys)
{
	MsgqDestination destination;

	/* Their priorities are 0. */
	if (!msgq_destination_open(&destination, command, target, 0, 0))
		return false;
	(void) msgq_destination_store(&destination, messages, routing_keys, NULL);
	msgq_destination_close(&destination, false);
	return true;
}

/*
 * Sends messages, at least one, of priority 0, to the target, whoever the caller
 * is.  A topic goes by the routing keys (text), a stream uses them as keys where
 * there is no group key.  If the target has been renamed its name is found again;
 * false if it has gone.  command is the caller's name, for messages.  Raises
 * what msgq.send(), append() and publish() do.
 */
bool
msgq_target_send(const char *command, MsgqTarget *target,
				 MsgqOutgoing *messages, const Datum *routing_keys)
{
	for (;;)
	{
		if (target->kind == MSGQ_TARGET_TOPIC ?
			msgq_publish_to(command, target, messages, routing_keys) :
			store(command, target, messages, routing_keys))
			return true;
		if (!msgq_target_find(target->id, target))
			return false;
		CHECK_FOR_INTERRUPTS();
	}
}
