/*
 * worker.h
 *		The background worker, and its work by hand.
 *
 * src/worker.h
 */
#ifndef MSGQ_WORKER_H
#define MSGQ_WORKER_H

#include "postgres.h"

extern bool msgq_worker_enabled;
extern int	msgq_worker_interval;
extern int	msgq_notify_interval;

extern void msgq_worker_init(void);
extern void msgq_worker_want(void);
extern void msgq_worker_insist(void);
extern void msgq_worker_remind(void);
extern bool msgq_worker_runs(void);
extern bool msgq_sequencer_runs(void);
extern void msgq_sequencer_want(void);
extern void msgq_sequencer_wake(void);

#endif							/* MSGQ_WORKER_H */
