/*
 * upkeep.h
 *		What a round of maintenance does to queues.
 *
 * src/upkeep.h
 */
#ifndef MSGQ_UPKEEP_H
#define MSGQ_UPKEEP_H

#include "maintain.h"

extern void msgq_upkeep_stores(MsgqMaintenance *m);
extern void msgq_upkeep_queues(MsgqMaintenance *m);
extern TimestampTz msgq_upkeep_due(MsgqMaintenance *m, TimestampTz earliest);

#endif							/* MSGQ_UPKEEP_H */
