/*
 * deadletter.h
 *		Messages that a queue gives up.
 *
 * src/deadletter.h
 */
#ifndef MSGQ_DEADLETTER_H
#define MSGQ_DEADLETTER_H

#include "segment.h"

/* Why a queue gives a message up; the words are in the history. */
typedef enum MsgqReason
{
	MSGQ_REASON_MAX_DELIVERIES,
	MSGQ_REASON_REJECTED,
	MSGQ_REASON_EXPIRED,
	MSGQ_REASON_OVERFLOW
} MsgqReason;

/* A message that enters another queue: what is different there. */
typedef struct MsgqCopy
{
	int64		id;				/* 0: a new one */
	TimestampTz visible_at;		/* 0: ready */
	bool		set_headers;
	Datum		headers;		/* if set_headers */
} MsgqCopy;

extern bool msgq_is_expired(TupleTableSlot *row, TimestampTz now);
extern int32 msgq_expired_leases(TupleTableSlot *row);
extern bool msgq_is_exhausted(const MsgqQueue *queue, TupleTableSlot *row,
							  int32 more_failures);
extern MsgqStorage *msgq_dead_letter_open(MsgqStorage *storage);
extern void msgq_dead_letter(MsgqStorage *storage, TupleTableSlot *row,
							 MsgqReason reason, const char *error,
							 TimestampTz now);
extern void msgq_store_copy(MsgqStorage *target, TupleTableSlot *row,
							const MsgqCopy *how, TimestampTz now);
extern TimestampTz msgq_dead_letter_due(const MsgqQueue *queue,
										TimestampTz now);
extern int	msgq_dead_letter_sweep(const MsgqQueue *queue, TimestampTz now);

#endif							/* MSGQ_DEADLETTER_H */
