/*
 * retention.h
 *		What is done to streams from time to time.
 *
 * src/retention.h
 */
#ifndef MSGQ_RETENTION_H
#define MSGQ_RETENTION_H

#include "ring.h"
#include "stream.h"

extern void msgq_stream_turn(const MsgqStream *stream, int partitions);
extern bool msgq_stream_turn_if_due(int32 stream_id, MsgqRound *round);
extern bool msgq_stream_complete(int32 stream_id, MsgqRound *round);
extern bool msgq_stream_drop_oldest(int32 stream_id, MsgqRound *round);
extern bool msgq_group_log_turn(int32 stream_id, MsgqRound *round);
extern TimestampTz msgq_stream_due(const MsgqStream *stream);
extern bool msgq_stream_holds_too_much(const MsgqStream *stream);

#endif							/* MSGQ_RETENTION_H */
