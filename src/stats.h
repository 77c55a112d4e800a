/*
 * stats.h
 *		Counters of each queue.
 *
 * src/stats.h
 */
#ifndef MSGQ_STATS_H
#define MSGQ_STATS_H

#include "shared.h"

extern void msgq_count(MsgqSlot *slot, MsgqCounter counter, int64 n);
extern void msgq_stats_transaction_ended(bool committed);
extern void msgq_stats_transaction_prepared(void);
extern void msgq_stats_subtransaction_committed(int nest_level);
extern void msgq_stats_subtransaction_aborted(int nest_level);

extern int64 msgq_stats_length(const MsgqQueue *queue, MsgqSlot *slot);
extern bool msgq_stats_can_count(const MsgqQueue *queue);
extern void msgq_stats_recount(const MsgqQueue *queue, MsgqSlot *slot);
extern void msgq_stats_load(MsgqSlot *slot, int32 queue_id);
extern void msgq_stats_save(MsgqSlot *slot, int32 queue_id);

#endif							/* MSGQ_STATS_H */
