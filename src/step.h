/*
 * step.h
 *		Steps of maintenance.
 *
 * src/step.h
 */
#ifndef MSGQ_STEP_H
#define MSGQ_STEP_H

#include "maintain.h"

/* What takes t is done again after MSGQ_COST_FACTOR * t at the earliest. */
#define MSGQ_COST_FACTOR	100

/*
 * What could not be turned, since a transaction that uses it stays open, is
 * tried again after this: each attempt makes others wait.
 */
#define MSGQ_TURN_TIME		(20 * USECS_PER_SEC)

/*
 * Something that is done to a queue, stream or topic of this number; n says to
 * which part of it.
 */
typedef void (*MsgqStep) (MsgqMaintenance *m, int32 id, int n);

extern void msgq_look_begin(MsgqMaintenance *m);
extern void msgq_look_end(MsgqMaintenance *m, MemoryContext context);
extern void msgq_run_step(MsgqMaintenance *m, MsgqStep step, int32 id, int n);

#endif							/* MSGQ_STEP_H */
