/*
 * frontier.h
 *		How far anybody has walked through a segment, and what is left open
 *		behind it.
 *
 * src/frontier.h
 */
#ifndef MSGQ_FRONTIER_H
#define MSGQ_FRONTIER_H

#include "access/transam.h"
#include "datatype/timestamp.h"
#include "storage/lwlock.h"

/* The two orders in which messages are walked; a position is a key of one. */
typedef enum MsgqOrder
{
	MSGQ_READY,					/* by id, those never leased */
	MSGQ_DUE					/* by visible_at, all others */
} MsgqOrder;

/*
 * A transaction's rows that a walk has passed: between these keys, something
 * may appear (or come back) when it ends.  Invalid xid: it has ended, and the
 * range is still to be visited again.
 */
typedef struct MsgqException
{
	FullTransactionId xid;
	int64		low;
	int64		high;
	bool		only_claims;	/* nothing appears here if it commits */
} MsgqException;

#define MSGQ_MAX_EXCEPTIONS	64

/* A frontier, in shared memory or in the backend.  All of it by its lock. */
typedef struct MsgqFrontier
{
	int64		position;		/* nothing to be had below, except in: */
	int			nexceptions;
	MsgqException exceptions[MSGQ_MAX_EXCEPTIONS];

	/* ready: no id up to here is still on its way into the index */
	int64		horizon;

	/* due: see "What a clock can do" in frontier.c */
	uint64		late_keys;
	TimestampTz last_walk;
	TimestampTz rescan_at;
	bool		rescanning;
	int64		rescan_entries;
} MsgqFrontier;

/* How to get at one; lock is NULL for one in the backend. */
typedef struct MsgqFrontierRef
{
	MsgqFrontier *frontier;
	LWLock	   *lock;
	Oid			segment;
	MsgqOrder	order;
} MsgqFrontierRef;

/* A frontier as a walk finds it. */
typedef struct MsgqView
{
	int64		position;
	int64		horizon;
	uint64		late_keys;
	int			nended;			/* exceptions to be visited, rising */
	MsgqException ended[MSGQ_MAX_EXCEPTIONS];
} MsgqView;

/*
 * What one visit to a range of keys has found; nothing of it counts before
 * it is handed to msgq_frontier_advance or msgq_frontier_visited.
 */
typedef struct MsgqVisit
{
	int64		reached;		/* every key below has been visited */
	int64		stop;			/* the frontier must not pass this key */
	int			nopen;
	struct
	{
		TransactionId xid;
		int64		low;
		int64		high;
		bool		only_claims;
	}			open[MSGQ_MAX_EXCEPTIONS];
} MsgqVisit;

extern void msgq_frontier_start(MsgqFrontier *frontier);
extern MsgqFrontierRef msgq_frontier_local(Oid segment, TimestampTz created_at,
										   MsgqOrder order);

extern void msgq_visit_begin(MsgqVisit *visit, int64 low);
extern void msgq_visit_met_open(MsgqVisit *visit, TransactionId xid, int64 key,
								bool is_claim);
extern void msgq_visit_met_unknown(MsgqVisit *visit, int64 key);

extern void msgq_frontier_view(MsgqFrontierRef ref, MsgqView *view);
extern void msgq_frontier_view_due(MsgqFrontierRef ref, TimestampTz now,
								   MsgqView *view);
extern int64 msgq_frontier_due_limit(TimestampTz now);
extern void msgq_frontier_visited(MsgqFrontierRef ref,
								  const MsgqException *visited,
								  const MsgqVisit *visit);
extern void msgq_frontier_advance(MsgqFrontierRef ref, const MsgqView *view,
								  const MsgqVisit *visit, int64 limit);
extern void msgq_frontier_end_due(MsgqFrontierRef ref, TimestampTz now,
								  int64 entries, bool complete);
extern void msgq_frontier_wrote_due(MsgqFrontierRef ref, int64 key);
extern void msgq_frontier_expect(MsgqFrontierRef ref, TransactionId xid,
								 int64 key);
extern void msgq_frontier_restart(MsgqFrontierRef ref);
extern void msgq_frontier_copy(MsgqFrontierRef ref, MsgqFrontier *copy);
extern bool msgq_frontier_has_late_keys(MsgqFrontierRef ref,
										const MsgqFrontier *copy);

extern void msgq_frontier_own(MsgqFrontierRef ref, int64 low, int64 high);
extern void msgq_frontier_transaction_ended(bool committed);
extern void msgq_frontier_subtransaction_committed(int nest_level);
extern void msgq_frontier_subtransaction_aborted(int nest_level);

#endif							/* MSGQ_FRONTIER_H */
