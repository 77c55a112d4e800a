/*
 * retained.h
 *		The last message of each routing key of a topic.
 *
 * src/retained.h
 */
#ifndef MSGQ_RETAINED_H
#define MSGQ_RETAINED_H

#include "storage/lockdefs.h"

#include "ring.h"
#include "send.h"
#include "table.h"
#include "topic.h"

/* Columns of a table of retained messages, msgq.t<id>_<n>. */
enum
{
	Anum_retained_routing_key = 1,
	Anum_retained_id,
	Anum_retained_published_at,
	Anum_retained_priority,
	Anum_retained_has_headers,
	Anum_retained_visible_at,
	Anum_retained_expires_at,
	Anum_retained_group_key,
	Anum_retained_headers,
	Anum_retained_body,
	Anum_retained_data,
	Natts_retained = Anum_retained_data
};

/* These are NOT NULL. */
#define MSGQ_RETAINED_REQUIRED	Anum_retained_has_headers

extern Relation msgq_retained_lock(const MsgqTopic *topic);
extern MsgqTable *msgq_retained_open(Relation log);
extern void msgq_retained_add(MsgqTable *log, const MsgqTopic *topic,
							  Datum routing_key, const MsgqOutgoing *out,
							  int i, bool has_headers);
extern void msgq_retained_deliver(const char *command, const MsgqTopic *topic,
								  const MsgqBinding *binding);
extern void msgq_retained_lock_all(const MsgqTopic *topic, LOCKMODE mode);
extern void msgq_retained_create_log(int32 topic_id, int n);
extern void msgq_retained_drop_all(const MsgqTopic *topic);
extern bool msgq_retained_turn(int32 topic_id, MsgqRound *round);

#endif							/* MSGQ_RETAINED_H */
