/*
 * limits.h
 *		What a queue takes and gives: pauses and limits.
 *
 * src/limits.h
 */
#ifndef MSGQ_LIMITS_H
#define MSGQ_LIMITS_H

#include "segment.h"

extern void msgq_check_may_send(const MsgqQueue *queue);
extern int	msgq_count_in_flight(const MsgqStorage *storage, TimestampTz now,
								 int most);
extern void msgq_make_length(MsgqStorage *storage, int more, TimestampTz now);
extern MsgqOutcome msgq_drop_message(MsgqStorage *storage, MsgqWalk *walk,
									 TimestampTz now);

/* receive.c */
extern int	msgq_drop_ready(MsgqStorage *storage, int level, int64 wanted,
							TimestampTz now);

#endif							/* MSGQ_LIMITS_H */
