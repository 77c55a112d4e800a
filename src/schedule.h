/*
 * schedule.h
 *		Schedules: messages that are sent by the clock.
 *
 * src/schedule.h
 */
#ifndef MSGQ_SCHEDULE_H
#define MSGQ_SCHEDULE_H

#include "datatype/timestamp.h"

/* What a round has to know of a schedule. */
typedef struct MsgqScheduleEntry
{
	int32		id;
	NameData	name;
	TimestampTz next;			/* when to look at it; infinity: never */
} MsgqScheduleEntry;

extern void msgq_schedule_init(void);
extern void msgq_schedule_pre_commit(void);
extern void msgq_schedule_transaction_ended(bool committed);
extern uint64 msgq_schedule_generation(void);
extern MsgqScheduleEntry *msgq_schedule_list(MemoryContext context, int *n);

#endif							/* MSGQ_SCHEDULE_H */
