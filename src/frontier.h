/*
 * frontier.h
 *		How far a backend has walked through a segment, and what it has left
 *		open behind it.
 *
 * src/frontier.h
 */
#ifndef MSGQ_FRONTIER_H
#define MSGQ_FRONTIER_H

#include "datatype/timestamp.h"
#include "lib/ilist.h"

/* The two orders in which messages are walked; a position is a key of one. */
typedef enum MsgqOrder
{
	MSGQ_READY,					/* by id, those never leased */
	MSGQ_DUE					/* by visible_at, all others */
} MsgqOrder;

/*
 * An open transaction's rows that a walk has passed: between these keys,
 * something may appear (or come back) when it ends.  InvalidTransactionId:
 * it has ended, the range is still to be visited again.
 *
 * 32 bits are enough for a hint in one backend: no transaction stays open for
 * as long as it takes them to come round, and one that has ended and looks
 * open for a moment only makes the visit come later.
 */
typedef struct MsgqException
{
	TransactionId xid;
	int64		low;
	int64		high;
} MsgqException;

#define MSGQ_MAX_EXCEPTIONS	64

/*
 * What the current transaction itself has claimed or removed, by nesting
 * level of its subtransactions: a dirty snapshot does not show it to us.
 */
typedef struct MsgqOwnRange
{
	int			nest_level;
	int64		low;
	int64		high;
} MsgqOwnRange;

typedef struct MsgqFrontier
{
	int64		position;		/* nothing to be had below, except in: */
	int			nexceptions;
	MsgqException exceptions[MSGQ_MAX_EXCEPTIONS];
	int			nown;
	int			own_room;
	MsgqOwnRange *own;			/* deepest level last */
	slist_node	link;			/* in the list of those with own ranges */

	/* ready: no id up to here is still on its way into the index */
	int64		horizon;

	/* due: see "What a clock can do" in frontier.c */
	TimestampTz last_walk;
	TimestampTz rescan_at;
	bool		rescanning;
	int64		rescan_entries;
} MsgqFrontier;

/*
 * What one visit to a range of keys has found; nothing of it counts before
 * it is handed to msgq_frontier_advance or msgq_frontier_visited.
 */
typedef struct MsgqVisit
{
	int64		reached;		/* every key below has been visited */
	int64		stop;			/* the frontier must not pass this key */
	int			nexceptions;
	MsgqException exceptions[MSGQ_MAX_EXCEPTIONS];
} MsgqVisit;

extern MsgqFrontier *msgq_frontier_get(Oid segment, TimestampTz created_at,
									   MsgqOrder order);

extern void msgq_visit_begin(MsgqVisit *visit);
extern void msgq_visit_met_open(MsgqVisit *visit, TransactionId xid, int64 key);
extern void msgq_visit_met_unknown(MsgqVisit *visit, int64 key);

extern int	msgq_frontier_ended(const MsgqFrontier *frontier,
								MsgqException *ended);
extern void msgq_frontier_visited(MsgqFrontier *frontier,
								  const MsgqException *visited,
								  const MsgqVisit *visit);
extern void msgq_frontier_advance(MsgqFrontier *frontier,
								  const MsgqVisit *visit, int64 limit);
extern int64 msgq_frontier_begin_due(MsgqFrontier *frontier, TimestampTz now);
extern void msgq_frontier_end_due(MsgqFrontier *frontier, TimestampTz now,
								  int64 entries, bool complete);

extern void msgq_frontier_own(MsgqFrontier *frontier, int64 low, int64 high);

extern void msgq_frontier_transaction_committed(void);
extern void msgq_frontier_transaction_aborted(void);
extern void msgq_frontier_transaction_prepared(void);
extern void msgq_frontier_subtransaction_committed(int nest_level);
extern void msgq_frontier_subtransaction_aborted(int nest_level);

#endif							/* MSGQ_FRONTIER_H */
