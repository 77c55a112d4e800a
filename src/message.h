/*
 * message.h
 *		A message as it is stored, as it is delivered, and its receipt.
 *
 * The life of a message, told by the columns of its row (msgq.q<id>_<n>):
 *
 *	state      visible_at       leased_at   comes from
 *	---------  ---------------  ----------  ---------------------------------
 *	ready      NULL             NULL        send
 *	delayed    later            NULL        send with a delay; nack
 *	due        earlier          any         time has passed; release,
 *	                                        expire_lease; in an ordered
 *	                                        queue also any of them, when its
 *	                                        turn has come (group.c)
 *	in flight  later            not NULL    receive; extend moves visible_at
 *	gone       (no row)                     ack, pop, cancel, purge
 *
 * visible_at leaves NULL once, mostly with the first claim, and never returns;
 * only so may the ready walk forget what lies behind it (frontier.c).
 *
 *	receive  leased_at := now, visible_at := now + timeout, deliveries + 1;
 *	         failures + 1 if a lease had run out; and what poison.c has noted
 *	         of pops that were rolled back, in both
 *	nack     leased_at := NULL, visible_at := now + delay, failures + 1
 *	release  leased_at := NULL, visible_at := now
 *	extend   visible_at := now + timeout
 *
 * A receipt names one delivery: the id, leased_at, and the low bits of
 * deliveries.  It fits as long as leased_at and deliveries are what they
 * were, so it goes stale when the message is given back or leased again, and
 * not by the mere passing of time.
 *
 * src/message.h
 */
#ifndef MSGQ_MESSAGE_H
#define MSGQ_MESSAGE_H

#include "executor/tuptable.h"
#include "utils/jsonb.h"
#include "utils/tuplestore.h"
#include "utils/uuid.h"

/* Columns of a segment table. */
enum
{
	Anum_segment_id = 1,
	Anum_segment_visible_at,
	Anum_segment_leased_at,
	Anum_segment_deliveries,
	Anum_segment_failures,
	Anum_segment_priority,
	Anum_segment_enqueued_at,
	Anum_segment_expires_at,
	Anum_segment_group_key,
	Anum_segment_headers,
	Anum_segment_body,
	Anum_segment_data,
	Natts_segment = Anum_segment_data
};

/* Columns of the type msgq.message. */
enum
{
	Anum_message_id = 1,
	Anum_message_receipt,
	Anum_message_deliveries,
	Anum_message_failures,
	Anum_message_priority,
	Anum_message_group_key,
	Anum_message_enqueued_at,
	Anum_message_visible_at,
	Anum_message_expires_at,
	Anum_message_headers,
	Anum_message_body,
	Anum_message_data,
	Natts_message = Anum_message_data
};

/* What a receipt says; the opaque uuid is made of it and read back into it. */
typedef struct MsgqReceipt
{
	int64		id;
	uint64		leased_at;		/* low 56 bits of the timestamp */
	uint8		deliveries;		/* low 8 bits of the counter */
} MsgqReceipt;

extern void msgq_receipt_encode(pg_uuid_t *uuid, int64 id,
								TimestampTz leased_at, int32 deliveries);
extern MsgqReceipt msgq_receipt_decode(const pg_uuid_t *uuid);
extern bool msgq_receipt_fits(const MsgqReceipt *receipt, TupleTableSlot *row);

/* One column of a stored message. */
static inline bool
msgq_row_is_null(TupleTableSlot *row, AttrNumber column)
{
	return slot_attisnull(row, column);
}

static inline Datum
msgq_row_value(TupleTableSlot *row, AttrNumber column)
{
	bool		is_null;

	return slot_getattr(row, column, &is_null);
}

static inline int64
msgq_row_id(TupleTableSlot *row)
{
	return DatumGetInt64(msgq_row_value(row, Anum_segment_id));
}

static inline TimestampTz
msgq_row_time(TupleTableSlot *row, AttrNumber column)
{
	return DatumGetTimestampTz(msgq_row_value(row, column));
}

extern void msgq_push_text(JsonbParseState **state, JsonbIteratorToken token,
						   const char *text);
extern void msgq_push_number(JsonbParseState **state, const char *key,
							 int64 number);
extern int	msgq_compare_texts(Datum left, Datum right);
extern Datum msgq_self_contained(Datum value);
extern bool msgq_row_is_in_flight(TupleTableSlot *row, TimestampTz now);
extern void msgq_row_put(TupleTableSlot *row, bool with_receipt,
						 Tuplestorestate *store, TupleDesc descriptor);

#endif							/* MSGQ_MESSAGE_H */
