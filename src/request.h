/*
 * request.h
 *		Messages that somebody waits for the answer to.
 *
 * src/request.h
 */
#ifndef MSGQ_REQUEST_H
#define MSGQ_REQUEST_H

#include "executor/tuptable.h"
#include "utils/uuid.h"

#include "queue.h"
#include "ring.h"

/* What a request says about who waits for its reply. */
typedef struct MsgqReplyTo
{
	pg_uuid_t	id;				/* of the reply */
	int			process;		/* that may be waiting */
	TimestampTz deadline;		/* until which it does */
} MsgqReplyTo;

extern MsgqReplyTo msgq_reply_to(const MsgqQueue *queue, TupleTableSlot *row);
extern bool msgq_reply_store(const MsgqQueue *queue, const MsgqReplyTo *to,
							 Datum body);
extern bool msgq_replies_empty(MsgqRound *round);

#endif							/* MSGQ_REQUEST_H */
