/*
 * destination.h
 *		A queue or a stream that a topic sends messages to.
 *
 * src/destination.h
 */
#ifndef MSGQ_DESTINATION_H
#define MSGQ_DESTINATION_H

#include "append.h"
#include "send.h"
#include "topic.h"

typedef struct MsgqDestination
{
	const MsgqTarget *target;
	MsgqStorage *queue;			/* one of the two is open */
	MsgqAppender *stream;
} MsgqDestination;

extern bool msgq_destination_open(MsgqDestination *destination,
								  const char *command,
								  const MsgqTarget *target, int lowest, int highest);
extern int	msgq_destination_store(MsgqDestination *destination,
								   MsgqOutgoing *out,
								   const Datum *routing_keys,
								   const Datum *idempotency_key);
extern void msgq_destination_close(MsgqDestination *destination, bool unlock);

#endif							/* MSGQ_DESTINATION_H */
