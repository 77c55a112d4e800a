/*
 * group.h
 *		Ordered queues: one batch of a group in flight, and in order.
 *
 * src/group.h
 */
#ifndef MSGQ_GROUP_H
#define MSGQ_GROUP_H

#include "storage/itemptr.h"
#include "storage/lock.h"

#include "segment.h"

/* What a receiver who has met a message can do with its group. */
typedef enum MsgqGroupState
{
	MSGQ_GROUP_FREE,			/* its first messages can be taken */
	MSGQ_GROUP_LEASED,			/* a batch of it is in flight */
	MSGQ_GROUP_DELAYED,			/* its first message is not due yet */
	MSGQ_GROUP_OPEN,			/* that depends on an open transaction */
	MSGQ_GROUP_UNKNOWN			/* somebody else is just looking */
} MsgqGroupState;

/* A message of a group, as a look at the group has found it. */
typedef struct MsgqMember
{
	MsgqSegment *segment;
	ItemPointerData tid;
	int64		id;
	bool		is_leased;		/* whether or not the lease has run out */
	bool		is_due;			/* ready, or its time has come */
	bool		is_ours;		/* written by our own transaction */
	TransactionId holder;		/* whoever is changing or removing it */
} MsgqMember;

/* A group, as a look has found it. */
typedef struct MsgqGroup
{
	MsgqStorage *storage;
	Datum		key;
	TimestampTz now;
	int			nmembers;
	int			room;
	MsgqMember *members;		/* by id, as many as were wanted */
	bool		is_in_flight;	/* by a lease that nobody is settling */

	int			nfree;			/* free: so many of the first can be taken */
	TransactionId open_xid;		/* open: on whom it depends */
	bool		is_claim;		/* he has claimed messages of it */
	bool		is_ours;		/* leased or delayed: by our transaction */

	LOCKTAG		tag;
	bool		is_locked;
	bool		has_snapshot;
} MsgqGroup;

extern bool msgq_row_has_group(const MsgqStorage *storage, TupleTableSlot *row);
extern Datum msgq_row_group(TupleTableSlot *row);
extern TransactionId msgq_row_own_xid(TupleTableSlot *row);

extern MsgqGroupState msgq_group_open(MsgqGroup *group, MsgqStorage *storage,
									  Datum key, TimestampTz now, int wanted,
									  bool only_look);
extern MsgqSegment *msgq_group_fetch(MsgqGroup *group, int i);
extern void msgq_group_close(MsgqGroup *group);

extern void msgq_group_note_end(MsgqStorage *storage, TupleTableSlot *row);
extern void msgq_group_note_return(MsgqStorage *storage, TupleTableSlot *row,
								   TimestampTz visible_at);
extern void msgq_group_settle(MsgqStorage *storage);

#endif							/* MSGQ_GROUP_H */
