/*
 * testing.h
 *		What tests can set: the clock, and the points where a session stops.
 *
 * src/testing.h
 */
#ifndef MSGQ_TESTING_H
#define MSGQ_TESTING_H

#include "datatype/timestamp.h"

/*
 * The points, each with the race that it can force.  The number is the key of
 * the advisory lock.
 */
typedef enum MsgqTestPoint
{
	MSGQ_POINT_NONE,
	MSGQ_POINT_SEND_CHOSEN,		/* any: segments chosen, not locked */
	MSGQ_POINT_SEND_LOCKED,		/* send: locked, no id taken */
	MSGQ_POINT_SEND_NUMBERED,	/* send: ids taken, no row stored */
	MSGQ_POINT_SEND_STORED,		/* send: rows and index entries are in */
	MSGQ_POINT_RECEIVE_WALKED,	/* receive: walked, frontier not yet moved */
	MSGQ_POINT_WAIT_REGISTERED, /* wait: registered, not yet looked */
	MSGQ_POINT_WAIT_LOOKED,		/* wait: looked in vain, not yet asleep */
	MSGQ_POINT_RING_EXAMINED,	/* maintain: found drained, not yet locked */
	MSGQ_POINT_RING_LOCKED,		/* maintain: locked, not yet proven empty */
	MSGQ_POINT_RING_MOVED,		/* maintain: stragglers moved */
	MSGQ_POINT_RECEIVE_COUNTED, /* receive: counted what is in flight, nothing
								 * claimed */
	MSGQ_POINT_STORE_CHOSEN,	/* any: tables of a store chosen, not locked */
	MSGQ_POINT_GROUP_EXAMINED,	/* receive: a group examined, nothing taken */
	MSGQ_POINT_SETTLE_CHANGED,	/* settle: changed, its group not looked after */
	MSGQ_POINT_RECEIVE_OPENED,	/* receive: queue opened, nothing met */
	MSGQ_POINT_SEQUENCE_HORIZON,	/* sequence: horizon read, no snapshot */
	MSGQ_POINT_SEQUENCE_SNAPSHOT,	/* sequence: snapshot taken, nothing seen */
	MSGQ_POINT_PUBLISH_ROUTED,	/* publish: routed, nothing locked */
	MSGQ_POINT_REQUEST_SENT,	/* request: committed, not yet looked */
	MSGQ_POINT_INBOX_CHOSEN,	/* claim: table chosen, not locked */
	MSGQ_POINT_FIRE_READ,		/* fire: last fire read, nothing stored */
	MSGQ_POINT_FIRE_STORED		/* fire: stored, not committed */
} MsgqTestPoint;

/* The setting msgq.test_point; MSGQ_POINT_NONE but in tests. */
extern int	msgq_test_point;

extern void msgq_testing_init(void);
extern TimestampTz msgq_now(void);
extern int64 msgq_ticks(void);
extern void msgq_stop_at_point(void);

/* Stops here while a test wants this session to. */
static inline void
msgq_point(MsgqTestPoint point)
{
	if (unlikely(msgq_test_point == (int) point))
		msgq_stop_at_point();
}

#endif							/* MSGQ_TESTING_H */
