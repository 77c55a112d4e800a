/*
 * cron.h
 *		When a schedule is due.
 *
 * src/cron.h
 */
#ifndef MSGQ_CRON_H
#define MSGQ_CRON_H

#include "datatype/timestamp.h"
#include "pgtime.h"

/* A specification, parsed.  Bit n of a field says that n matches. */
typedef struct MsgqCron
{
	int64		every;			/* microseconds; 0: the fields say when */
	uint64		minutes;
	uint64		hours;
	uint64		days_of_month;
	uint64		months;
	uint64		days_of_week;	/* 0 is Sunday */
	bool		both_days;		/* a day must match both of its fields */
	bool		through_hours;	/* the field of hours begins with a star */
} MsgqCron;

extern void msgq_cron_parse(const char *spec, MsgqCron *cron);
extern TimestampTz msgq_cron_next(const MsgqCron *cron, const pg_tz *zone,
								  TimestampTz anchor, TimestampTz after);
extern TimestampTz msgq_cron_latest(const MsgqCron *cron, const pg_tz *zone,
									TimestampTz anchor, TimestampTz after,
									TimestampTz until);
extern pg_tz *msgq_timezone_find(const char *name);
extern pg_tz *msgq_timezone_get(const char *name, const char *argument);

#endif							/* MSGQ_CRON_H */
