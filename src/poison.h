/*
 * poison.h
 *		Failed deliveries of which no row tells: pops that were rolled back.
 *
 * src/poison.h
 */
#ifndef MSGQ_POISON_H
#define MSGQ_POISON_H

#include "segment.h"
#include "shared.h"

/* Might there be a note about a message of this queue? */
static inline bool
msgq_poison_has_notes(MsgqSlot *slot)
{
	return slot && pg_atomic_read_u32(&slot->nnotes) != 0;
}

extern void msgq_poison_init(void);

extern int32 msgq_poison_failures(MsgqSlot *slot, int64 id);
extern void msgq_poison_entered(MsgqSlot *slot, int64 id, int32 failures);
extern void msgq_poison_popped(MsgqSlot *slot, int64 id, int32 failures);
extern int64 msgq_poison_apply(MsgqStorage *storage);

extern void msgq_poison_pre_commit(void);
extern void msgq_poison_transaction_ended(bool aborted);
extern void msgq_poison_subtransaction_started(void);
extern void msgq_poison_subtransaction_committed(int nest_level);
extern void msgq_poison_subtransaction_aborted(int nest_level);

#endif							/* MSGQ_POISON_H */
