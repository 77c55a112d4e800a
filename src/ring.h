/*
 * ring.h
 *		The rings of segments of a queue: turning them, and reclaiming space.
 *
 * src/ring.h
 */
#ifndef MSGQ_RING_H
#define MSGQ_RING_H

#include "queue.h"

/* What a step of maintenance has done, and what it could not do yet. */
typedef struct MsgqRound
{
	int64		turned;			/* rings that have a new active segment */
	int64		added;			/* segments that were made for that */
	int64		drained;		/* segments that were found to be so */
	int64		reclaimed;		/* segments that were emptied */
	int64		moved;			/* messages to the active segment, claims to
								 * the current table */
	int64		refilled;		/* drained segments in which one was found */
	int64		rotated;		/* stores that have a new current table */
	int64		emptied;		/* tables of stores that were truncated */
	int64		audited;		/* segments */
	int64		defects;		/* messages found behind a frontier */
	int64		waiting;		/* segments and tables that something is in
								 * the way of */
	int64		rolled_back;	/* messages whose failed pops were entered */
	int64		given_up;		/* messages that had expired, or whose
								 * deliveries had all failed */
	int64		fired;			/* due times of schedules */
	int64		failed;			/* queues that raised an error */
} MsgqRound;

/* A segment, as a step of maintenance sees it. */
typedef struct MsgqRingSegment
{
	int			n;
	int			level;
	char		state;			/* its first letter; 'D' for drained */
	bool		moved;
	Oid			table;
} MsgqRingSegment;

/* The segments of all rings of a queue. */
typedef struct MsgqRing
{
	int32		queue_id;
	char	   *name;
	bool		ordered;
	int			nsegments;
	MsgqRingSegment *segments;	/* in the order of their turns */
} MsgqRing;

/* The setting msgq.reclaim. */
typedef enum MsgqReclaim
{
	MSGQ_RECLAIM_EAGER,
	MSGQ_RECLAIM_SNAPSHOT_SAFE
} MsgqReclaim;

extern int	msgq_segment_size;
extern int	msgq_reclaim;

extern void msgq_ring_init(void);
extern MsgqRing *msgq_ring_read(int32 queue_id);
extern bool msgq_ring_turn(const MsgqRing *ring, int level, MsgqRound *round);
extern bool msgq_ring_drain(const MsgqRing *ring, const MsgqRingSegment *segment,
							MsgqRound *round, bool *parked);
extern bool msgq_ring_reclaim(const MsgqRing *ring, const MsgqRingSegment *segment,
							  MsgqRound *round);
extern void msgq_ring_audit(const MsgqQueue *queue, MsgqRound *round);

#endif							/* MSGQ_RING_H */
