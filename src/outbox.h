/*
 * outbox.h
 *		Rows of an outbox table as messages.
 *
 * src/outbox.h
 */
#ifndef MSGQ_OUTBOX_H
#define MSGQ_OUTBOX_H

#include "executor/tuptable.h"
#include "utils/relcache.h"

#include "send.h"

typedef struct MsgqOutboxShape MsgqOutboxShape;

extern MsgqOutboxShape *msgq_outbox_shape(Relation table);
extern void msgq_outbox_add(MsgqOutboxShape *shape, TupleTableSlot *row,
							MsgqOutgoing *messages, Datum *routing_key);

#endif							/* MSGQ_OUTBOX_H */
