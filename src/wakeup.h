/*
 * wakeup.h
 *		Waiting for messages, and waking those who wait.
 *
 * src/wakeup.h
 */
#ifndef MSGQ_WAKEUP_H
#define MSGQ_WAKEUP_H

#include "datatype/timestamp.h"

#include "shared.h"

extern int	msgq_poll_interval;

extern void msgq_wakeup_init(void);

extern void msgq_wake_at_commit(MsgqSlot *slot, int messages);
extern void msgq_wake_sequencer_at_commit(MsgqSlot *slot);
extern void msgq_wake_process_at_commit(int process);
extern void msgq_wake_at_abort(MsgqSlot *slot, int messages);
extern void msgq_wakeup_transaction_ended(bool committed);
extern void msgq_wakeup_subtransaction_aborted(void);
extern void msgq_wakeup_forget(void);

extern bool msgq_has_waiters(const MsgqSlot *slot);
extern bool msgq_wait_register(MsgqSlot *slot);
extern void msgq_wait_arm(void);
extern void msgq_wait_looked(MsgqSlot *slot);
extern void msgq_wait_until_due(TimestampTz due, TimestampTz poll_time);
extern void msgq_wake_for_due_time(MsgqSlot *slot, TimestampTz due,
								   TimestampTz now);
extern bool msgq_wait_is_woken(void);
extern int64 msgq_wait_deadline(const Interval *wait);
extern TimestampTz msgq_wait_deadline_time(int64 deadline, TimestampTz now);
extern bool msgq_wait_sleep(TimestampTz until);
extern void msgq_wait_end(void);
extern TimestampTz msgq_wait_poll_time(const MsgqSlot *slot, TimestampTz now);

#endif							/* MSGQ_WAKEUP_H */
