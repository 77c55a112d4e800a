/*
 * target.h
 *		A queue, a stream or a topic to which something else sends messages.
 *
 * src/target.h
 */
#ifndef MSGQ_TARGET_H
#define MSGQ_TARGET_H

#include "send.h"
#include "topic.h"

extern void msgq_target_get(const char *name, AclMode right, MsgqTarget *target);
extern Oid	msgq_target_handle(const MsgqTarget *target);
extern bool msgq_target_send(const char *command, MsgqTarget *target,
							 MsgqOutgoing *messages, const Datum *routing_keys);

#endif							/* MSGQ_TARGET_H */
