/*
 * publish.h
 *		Messages for a topic.
 *
 * src/publish.h
 */
#ifndef MSGQ_PUBLISH_H
#define MSGQ_PUBLISH_H

#include "send.h"
#include "topic.h"

extern bool msgq_publish_to(const char *command, const MsgqTarget *topic,
							MsgqOutgoing *messages, const Datum *routing_keys);

#endif							/* MSGQ_PUBLISH_H */
