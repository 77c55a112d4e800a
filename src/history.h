/*
 * history.h
 *		What a dead letter tells of its past.
 *
 * src/history.h
 */
#ifndef MSGQ_HISTORY_H
#define MSGQ_HISTORY_H

#include "executor/tuptable.h"

#include "queue.h"

/* The header that keeps the error of the last nack, and how much of it. */
#define MSGQ_ERROR_HEADER		"msgq-error"
#define MSGQ_MAX_ERROR_BYTES	1024

/* A queue gave the message up. */
typedef struct MsgqDeath
{
	char	   *queue;
	int64		id;
	TimestampTz died_at;
} MsgqDeath;

extern Datum msgq_history_add(const char *queue, TupleTableSlot *row,
							  const char *reason, const char *error,
							  TimestampTz now);
extern bool msgq_history_last(TupleTableSlot *row, const char *except,
							  MsgqDeath *death);

#endif							/* MSGQ_HISTORY_H */
