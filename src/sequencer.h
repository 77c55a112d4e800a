/*
 * sequencer.h
 *		Gives the entries of a stream their positions.
 *
 * src/sequencer.h
 */
#ifndef MSGQ_SEQUENCER_H
#define MSGQ_SEQUENCER_H

#include "stream.h"

/* What a step has done, and what it has left. */
typedef struct MsgqSequenceStep
{
	int64		given;			/* positions */
	int64		high;			/* ids up to here were looked at */
	bool		has_more;		/* there are ids above, that can be looked at */
	bool		caught_up;		/* there was none, when it began */
	bool		has_open;		/* there are entries of open transactions */
	bool		has_waiters;	/* somebody waits for positions */
} MsgqSequenceStep;

extern bool msgq_sequence_step(int32 stream_id, bool wait,
							   MsgqSequenceStep *step);
extern void msgq_sequence_transaction_ended(bool committed);
extern int64 msgq_sequence_round(void);
extern void msgq_sequence_first_step(const MsgqStream *stream,
									 const MsgqStreamSegment *segment);

#endif							/* MSGQ_SEQUENCER_H */
