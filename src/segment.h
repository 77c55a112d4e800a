/*
 * segment.h
 *		The tables of a queue, and all that is done to their rows.
 *
 * src/segment.h
 */
#ifndef MSGQ_SEGMENT_H
#define MSGQ_SEGMENT_H

#include "access/genam.h"
#include "executor/tuptable.h"
#include "nodes/execnodes.h"
#include "utils/snapshot.h"

#include "frontier.h"
#include "queue.h"
#include "shared.h"

/* One segment table, locked and opened for reading and writing. */
typedef struct MsgqSegment
{
	Relation	table;
	int			level;			/* of priority */
	EState	   *estate;
	ResultRelInfo *result;		/* the table's indexes, all of them */
	Relation	by_id;			/* two of those */
	IndexInfo  *by_id_info;
	Relation	by_due_time;
	IndexInfo  *by_due_time_info;
	Relation	by_group;		/* NULL but in ordered queues */
	IndexInfo  *by_group_info;
	bool		has_own_indexes_only;
	bool		is_touched;		/* a row of it was changed or removed, or will
								 * be looked for again */
	struct MsgqStorage *storage;	/* that it belongs to */
	TupleTableSlot *row;		/* what a walk or a look-up has found */
	TupleTableSlot *new_row;	/* its next version */
	MsgqFrontierRef ready;
	MsgqFrontierRef due;
} MsgqSegment;

/* Which segments a call needs. */
typedef enum MsgqWhich
{
	MSGQ_ACTIVE,				/* those that take new messages */
	MSGQ_IN_USE,				/* all that are not known to be drained */
	MSGQ_ALL					/* all that may hold messages */
} MsgqWhich;

/* A queue with the segments that a call needs. */
typedef struct MsgqStorage
{
	MsgqQueue  *queue;
	const char *command;		/* the caller's name, for messages */
	AclMode		right;			/* that was checked */
	MsgqWhich	which;
	int			lowest;			/* active: from this level */
	int			highest;		/* to this one */
	uint64		generation;		/* when it was looked up */
	MsgqSlot   *slot;			/* shared state, or NULL */
	int			nsegments;
	MsgqSegment **segments;
	bool		is_changed;		/* a row was changed or removed */
	struct MsgqStorage *dead_letters;	/* the dead-letter queue, once
										 * something has gone there */
	bool		is_stale;		/* the queue has changed since: look again */
	struct MsgqEnded *ended;	/* groups to be looked after (group.c) */
} MsgqStorage;

/* A walk over a range of keys of one segment, in one of the two orders. */
typedef struct MsgqWalk
{
	MsgqSegment *segment;
	MsgqOrder	order;
	IndexScanDesc scan;
	SnapshotData dirty;
	int64		key;			/* of the row that it stands on */
	TransactionId open_xid;		/* whoever holds it; invalid if it is free */
	bool		is_claim;		/* he has claimed or removed it */
	int64		entries;		/* index entries met so far, dead ones too */
	int64		max_entries;	/* and how many it may meet */
} MsgqWalk;

/* A scan of the messages of one group in one segment. */
typedef struct MsgqGroupScan
{
	MsgqSegment *segment;
	IndexScanDesc scan;
	bool		is_dirty;
	SnapshotData dirty;
	TransactionId inserter;		/* dirty: whoever has written the version */
	TransactionId holder;		/* whoever is changing or removing it */
	bool		is_current;		/* no: somebody has, since the snapshot */
} MsgqGroupScan;

/* What became of a row that somebody wanted to change. */
typedef enum MsgqOutcome
{
	MSGQ_DONE,
	MSGQ_GONE,					/* changed or removed by somebody else */
	MSGQ_OPEN,					/* held by an open transaction, whose xid is
								 * known */
	MSGQ_HELD					/* held, and nobody knows by whom */
} MsgqOutcome;

/* The columns that a claim or a settlement changes. */
typedef struct MsgqChange
{
	bool		set_visible_at;
	TimestampTz visible_at;
	bool		lease;			/* leased_at := the time below */
	TimestampTz leased_at;
	bool		unlease;		/* leased_at := NULL */
	int32		more_deliveries;
	int32		more_failures;
	bool		set_headers;
	Datum		headers;		/* if set_headers */
} MsgqChange;

extern MsgqStorage *msgq_storage_open(const char *command, const char *name,
									  AclMode right, MsgqWhich which);
extern MsgqStorage *msgq_storage_open_levels(const char *command,
											 const char *name, AclMode right,
											 int lowest, int highest);
extern MsgqStorage *msgq_storage_try_open_levels(const char *command,
												 const char *name,
												 AclMode right, int lowest,
												 int highest);
extern const MsgqQueue *msgq_storage_queue_now(const MsgqStorage *storage);
extern MsgqStorage *msgq_storage_open_again(const MsgqStorage *storage,
											const char *command,
											MsgqWhich which);
extern MsgqSegment *msgq_storage_active(const MsgqStorage *storage, int level);
extern MsgqStorage *msgq_storage_try_open(const char *command,
										  const char *name, AclMode right,
										  MsgqWhich which);
extern void msgq_storage_close(MsgqStorage *storage);
extern void msgq_storage_let_go(MsgqStorage *storage);
extern const char *msgq_foreign_feature(Relation table, int ncolumns);
extern bool msgq_segment_is_plain(Oid table);
extern bool msgq_storage_is_partial(const MsgqStorage *storage);

extern MsgqAppend msgq_append_begin(Oid sequence, MsgqSlot *slot);
extern void msgq_append_end(Oid sequence, MsgqSlot *slot, MsgqAppend append,
							int64 last);
extern int64 msgq_append_horizon(Oid sequence, MsgqSlot *slot, bool wait);
extern int64 msgq_last_id(Oid sequence);

extern void msgq_segment_insert(MsgqSegment *segment, TupleTableSlot **rows,
								int n);

extern MsgqWalk *msgq_walk_begin(MsgqSegment *segment, MsgqOrder order,
								 int64 low, int64 high);
extern bool msgq_walk_next(MsgqWalk *walk);
extern void msgq_walk_end(MsgqWalk *walk);
extern MsgqOutcome msgq_walk_claim(MsgqWalk *walk, const MsgqChange *change);
extern MsgqOutcome msgq_walk_remove(MsgqWalk *walk, const MsgqChange *change);

extern TimestampTz msgq_segment_next_due(MsgqSegment *segment,
										 TimestampTz from, int max_entries);
extern bool msgq_segment_find(MsgqSegment *segment, int64 id);
extern bool msgq_segment_look_up(MsgqSegment *segment, int64 id);
extern bool msgq_segment_wait(MsgqSegment *segment);
extern MsgqOutcome msgq_segment_change(MsgqSegment *segment,
									   const MsgqChange *change, bool wait);
extern MsgqOutcome msgq_segment_remove(MsgqSegment *segment, bool wait);
extern MsgqOutcome msgq_segment_remove_changed(MsgqSegment *segment,
											   const MsgqChange *change);
extern void msgq_segment_own(MsgqSegment *segment, MsgqOrder order, int64 key);
extern void msgq_segment_own_all(MsgqSegment *segment);

extern MsgqGroupScan *msgq_group_scan_begin(MsgqSegment *segment, Datum key,
											Snapshot snapshot,
											bool only_leased);
extern bool msgq_group_scan_next(MsgqGroupScan *scan);
extern void msgq_group_scan_end(MsgqGroupScan *scan);
extern bool msgq_segment_fetch(MsgqSegment *segment, ItemPointer tid);

#endif							/* MSGQ_SEGMENT_H */
