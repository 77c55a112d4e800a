/*
 * consumer.h
 *		Consumer groups of streams: who reads for one.
 *
 * src/consumer.h
 */
#ifndef MSGQ_CONSUMER_H
#define MSGQ_CONSUMER_H

#include "utils/tuplestore.h"
#include "utils/uuid.h"

#include "grouplog.h"
#include "stream.h"

/* A call on behalf of a group. */
typedef struct MsgqConsumer
{
	const char *command;		/* its name, for messages */
	const char *stream_name;
	const char *group_name;
	AclMode		right;
	const MsgqStream *stream;
	Relation	active;			/* locked against being dropped */
	MsgqSlot   *slot;
	int32		group_id;
	MsgqGroupLog log;
	bool		has_written;	/* to the log: its lock stays */
	/* read and poll: */
	int			max_entries;
	int			partition;		/* -1: any */
	Interval   *lease;			/* NULL: the position moves at once */
	Tuplestorestate *store;
	TupleDesc	descriptor;
	TimestampTz now;
	TimestampTz next_due;		/* when a lease that is in the way ends */
} MsgqConsumer;

extern MsgqConsumer msgq_consumer_arguments(FunctionCallInfo fcinfo,
											const char *command,
											AclMode right);
extern void msgq_consumer_open(MsgqConsumer *consumer);
extern void msgq_consumer_close(MsgqConsumer *consumer);
extern void msgq_consumer_check(MsgqConsumer *consumer);
extern void msgq_consumer_lock_tag(LOCKTAG *tag, const MsgqConsumer *consumer,
								   int partition);
extern void msgq_consumer_move(MsgqConsumer *consumer, int partition,
							   MsgqGroupPlace *place);
extern int64 msgq_consumer_new_lease(void);
extern void msgq_consumer_receipt(pg_uuid_t *uuid, int64 lease, int32 group_id,
								  int32 partition);

#endif							/* MSGQ_CONSUMER_H */
