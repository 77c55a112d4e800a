/*
 * send.h
 *		Messages that are about to be stored in a queue.
 *
 * src/send.h
 */
#ifndef MSGQ_SEND_H
#define MSGQ_SEND_H

#include "dedup.h"
#include "segment.h"

#define MSGQ_MAX_GROUP_KEY_BYTES	255

/* Messages to be stored, with one element of each array for each message. */
typedef struct MsgqOutgoing
{
	int			n;
	AttrNumber	content_column; /* Anum_segment_body or Anum_segment_data */
	Datum	   *contents;
	Datum	   *headers;
	bool	   *no_headers;		/* headers[i] is NULL */
	text	  **group_keys;		/* NULL: none */
	TimestampTz now;
	TimestampTz *visible_at;	/* 0: ready at once */
	Interval  **ttl;			/* NULL: the queue's */
	TimestampTz *expires_at;	/* instead of ttl, unless that is NULL */
	int32	   *priorities;		/* any, until the queue is known */
	MsgqKeys   *keys;			/* idempotency keys, or NULL */
	bool	   *duplicates;		/* not to be stored, because of them */
} MsgqOutgoing;

extern void msgq_outgoing_init(MsgqOutgoing *out, int n,
							   AttrNumber content_column);
extern void msgq_outgoing_set_one(MsgqOutgoing *out, FunctionCallInfo fcinfo,
								  int n);
extern void msgq_outgoing_set_headers(MsgqOutgoing *out, int i, Datum headers);
extern void msgq_outgoing_add_headers(MsgqOutgoing *out, int i, Datum headers);
extern void msgq_outgoing_set_key(MsgqOutgoing *out, int i, Datum key);
extern void msgq_outgoing_set_group_key(MsgqOutgoing *out, int i, text *key);
extern void msgq_outgoing_choose(MsgqOutgoing *chosen, const MsgqOutgoing *out,
								 const int *which, int n);
extern TimestampTz msgq_outgoing_expires_at(const MsgqOutgoing *out, int i);
extern void msgq_outgoing_send(const char *command, const char *name,
							   MsgqOutgoing *out, int64 *ids);
extern int	msgq_outgoing_store(MsgqStorage **storage, MsgqOutgoing *out,
								int64 *ids);

#endif							/* MSGQ_SEND_H */
