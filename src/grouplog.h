/*
 * grouplog.h
 *		Where the consumer groups of a stream are.
 *
 * src/grouplog.h
 */
#ifndef MSGQ_GROUPLOG_H
#define MSGQ_GROUPLOG_H

#include "stream.h"
#include "table.h"

/* Columns of a table of a group log, msgq.s<id>_g<n>; all are NOT NULL. */
enum
{
	Anum_group_log_group_id = 1,
	Anum_group_log_partition,
	Anum_group_log_n,
	Anum_group_log_position,
	Anum_group_log_lease,
	Anum_group_log_leased_upto,
	Anum_group_log_leased_until,
	Anum_group_log_deliveries,
	Anum_group_log_at,
	Natts_group_log = Anum_group_log_at
};

/* Where a group is in a partition: a row of its log. */
typedef struct MsgqGroupPlace
{
	int64		n;				/* of the row, rising; 0: there is none */
	int64		position;		/* that comes next */
	int64		lease;			/* the number of the last lease; 0: fenced */
	int64		leased_upto;	/* positions before this one are leased; 0:
								 * none are */
	TimestampTz leased_until;
	int32		deliveries;		/* of the batch that is leased */
} MsgqGroupPlace;

/* Where the groups of a stream are: its log, opened. */
typedef struct MsgqGroupLog
{
	MsgqTable  *kept;			/* older rows, to be looked at first */
	MsgqTable  *current;		/* takes new ones */
} MsgqGroupLog;

extern bool msgq_group_log_open(const MsgqStream *stream, MsgqGroupLog *log,
								LOCKMODE lock);
extern void msgq_group_log_close(MsgqGroupLog *log, LOCKMODE unlock);
extern MsgqGroupPlace msgq_group_log_find(MsgqGroupLog *log, int32 group_id,
										  int partition);
extern void msgq_group_log_add(MsgqGroupLog *log, int32 group_id,
							   int partition, MsgqGroupPlace *place);
extern int	msgq_group_list(const MsgqStream *stream, char ***names,
							int32 **ids);

#endif							/* MSGQ_GROUPLOG_H */
