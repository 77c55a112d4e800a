/*
 * stream.h
 *		What is known about a stream, and who may do what with it.
 *
 * src/stream.h
 */
#ifndef MSGQ_STREAM_H
#define MSGQ_STREAM_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "nodes/parsenodes.h"
#include "storage/lock.h"
#include "utils/relcache.h"

#include "queue.h"
#include "shared.h"

/* Columns of msgq.stream (src/sql/schema.sql). */
enum
{
	Anum_stream_id = 1,
	Anum_stream_name,
	Anum_stream_created_at,
	Anum_stream_retention,
	Anum_stream_retention_bytes,
	Anum_stream_retention_entries,
	Anum_stream_hold_for_groups,
	Anum_stream_dead_letter_queue,
	Anum_stream_max_deliveries,
	Anum_stream_max_held_bytes,
	Anum_stream_group_log,
	Anum_stream_first_positions,
	Natts_stream = Anum_stream_first_positions
};

/* Columns of msgq.stream_segment. */
enum
{
	Anum_stream_segment_stream_id = 1,
	Anum_stream_segment_n,
	Anum_stream_segment_state,
	Anum_stream_segment_turn,
	Anum_stream_segment_partitions,
	Anum_stream_segment_first_id,
	Anum_stream_segment_start_positions,
	Anum_stream_segment_end_positions,
	Anum_stream_segment_opened_at,
	Anum_stream_segment_complete_at,
	Natts_stream_segment = Anum_stream_segment_complete_at
};

/* Columns of a table of entries, msgq.s<id>_<n>. */
enum
{
	Anum_entry_row_id = 1,
	Anum_entry_row_partition,
	Anum_entry_row_appended_at,
	Anum_entry_row_key,
	Anum_entry_row_idempotency_key,
	Anum_entry_row_headers,
	Anum_entry_row_body,
	Anum_entry_row_data,
	Natts_entry_row = Anum_entry_row_data
};

/* Columns of the type msgq.entry. */
enum
{
	Anum_entry_partition = 1,
	Anum_entry_position,
	Anum_entry_id,
	Anum_entry_receipt,
	Anum_entry_key,
	Anum_entry_appended_at,
	Anum_entry_headers,
	Anum_entry_body,
	Anum_entry_data,
	Natts_entry = Anum_entry_data
};

#define MSGQ_MAX_PARTITIONS		1000

/* Of keys, and of idempotency keys, of entries. */
#define MSGQ_MAX_KEY_BYTES		255

/* Positions begin with this one. */
#define MSGQ_FIRST_POSITION		1

/* Tables that take turns in keeping the positions of groups. */
#define MSGQ_GROUP_LOGS			2

/* One segment of a stream. */
typedef struct MsgqStreamSegment
{
	int			n;
	int64		turn;			/* with n: which segment this is */
	Oid			entries;		/* its tables; InvalidOid: it has gone */
	Oid			places;
	Oid			by_key;			/* indexes of entries */
	Oid			by_idempotency_key;
	int			partitions;		/* over which its entries are spread */
	int64		first_id;		/* none of its ids is below */
	int64	   *start;			/* positions given since begin here: one for
								 * each of the stream's partitions */
	int64	   *end;			/* all its entries lie before these, if it is
								 * complete */
	TimestampTz opened_at;
	TimestampTz complete_at;	/* 0: it is not */
} MsgqStreamSegment;

/*
 * A stream as it was when it was looked up.  It stays there until the end of
 * the transaction, whatever becomes of the stream meanwhile.
 */
typedef struct MsgqStream
{
	int32		id;
	NameData	name;
	TimestampTz created_at;
	Oid			handle;			/* the view that carries the rights */
	Oid			sequence;		/* of ids */
	bool		has_retention;
	Interval	retention;		/* if has_retention */
	int64		retention_bytes;	/* 0: no limit */
	int64		retention_entries;	/* 0: no limit */
	bool		hold_for_groups;
	NameData	dead_letter_queue;	/* empty: none */
	int32		max_deliveries;
	int64		max_held_bytes; /* 0: no limit */
	int			group_log;		/* of the following, that takes new rows */
	Oid			group_logs[MSGQ_GROUP_LOGS];
	int			npartitions;	/* that any segment has */
	int64	   *first;			/* positions that are kept begin here */
	int			nsegments;
	MsgqStreamSegment *segments;	/* in the order of their turns; the last
									 * one is active */
	uint64		generation;		/* when it was read */
} MsgqStream;

static inline const MsgqStreamSegment *
msgq_stream_active(const MsgqStream *stream)
{
	return &stream->segments[stream->nsegments - 1];
}

/* Kinds of advisory locks of streams; SQL's are 1 and 2, see maintain.h. */
#define MSGQ_SEQUENCE_LOCK		110 /* who gives positions */
#define MSGQ_KEY_LOCK			111 /* who appends to a key */
#define MSGQ_IDEMPOTENCY_LOCK	112 /* who looks for such a key */
#define MSGQ_PARTITION_LOCK		113 /* who reads a partition for a group */

extern const MsgqStream *msgq_stream_find(const char *name);
extern const MsgqStream *msgq_stream_find_by_id(int32 id);
extern const MsgqStream *msgq_stream_get(const char *name, AclMode right);
extern List *msgq_stream_list(AclMode right);
extern bool msgq_stream_is_complete(const MsgqStream *stream);
extern bool msgq_stream_is_current(const MsgqStream *stream);
extern const MsgqStream *msgq_stream_open(const char *name, AclMode right,
										  LOCKMODE lock, Relation *entries,
										  MsgqSlot **slot);
extern const MsgqStream *msgq_stream_open_id(int32 id, LOCKMODE lock,
											 Relation *entries,
											 MsgqSlot **slot);
extern Relation msgq_stream_open_table(const MsgqStream *stream, Oid table,
									   LOCKMODE lock);
extern const MsgqStream *msgq_stream_hold(const MsgqStream *stream);
extern void msgq_stream_release(const MsgqStream *stream);
extern Relation msgq_stream_try_open_segment(const MsgqStream *stream,
											 const MsgqStreamSegment *segment,
											 Oid table);
extern Relation msgq_stream_open_segment(const MsgqStream *stream,
										 const MsgqStreamSegment *segment,
										 Oid table);
extern void msgq_check_partition(const MsgqStream *stream, int32 partition);
extern void msgq_stream_lock_tag(LOCKTAG *tag, const MsgqStream *stream,
								 uint32 what, int kind);

#endif							/* MSGQ_STREAM_H */
