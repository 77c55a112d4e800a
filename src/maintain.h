/*
 * maintain.h
 *		Rounds of maintenance over all queues of a database.
 *
 * src/maintain.h
 */
#ifndef MSGQ_MAINTAIN_H
#define MSGQ_MAINTAIN_H

#include "datatype/timestamp.h"
#include "storage/lock.h"
#include "utils/hsearch.h"

#include "inbox.h"
#include "ring.h"

/* Kinds of advisory locks; SQL's are 1 and 2. */
#define MSGQ_WORKER_LOCK	100
#define MSGQ_ROUND_LOCK		101
#define MSGQ_SEQUENCER_LOCK	102

/* How long a step may wait for a lock, where it waits at all. */
#define MSGQ_STEP_LOCK_TIMEOUT	"1s"

/* Rounds by one process: what it remembers, what it did, what is left. */
typedef struct MsgqMaintenance
{
	bool		by_hand;
	HTAB	   *memory;			/* NULL by hand: everything is looked at */
	MsgqRound	round;
	int64		last_active;	/* when the database was last found so, by
								 * msgq_ticks */
	bool		busy;			/* something was done, or is to be done soon */
	bool		leaving;		/* for the last time */
	MsgqInboxWork inbox;		/* what is due to be done in it */
	int64		inbox_next;		/* when to look at it again, likewise */
	TimestampTz stream_due;		/* when a stream is to be looked at; 0: never */
	struct MsgqScheduleEntry *schedules;	/* as they were when they were
											 * read */
	int			nschedules;
	uint64		schedules_generation;
	const char *subject;		/* of the step, for messages; NULL: a number */
} MsgqMaintenance;

extern void msgq_maintain_remember(MsgqMaintenance *m);
extern void msgq_maintain_round(MsgqMaintenance *m);
extern bool msgq_maintain_notify(MsgqMaintenance *m);
extern void msgq_maintain_save(MsgqMaintenance *m);
extern TimestampTz msgq_maintain_next_fire(const MsgqMaintenance *m);
extern TimestampTz msgq_maintain_due(MsgqMaintenance *m);

extern void msgq_worker_lock_tag(LOCKTAG *tag, int kind);
extern bool msgq_database_is_wanted(Oid database);

#endif							/* MSGQ_MAINTAIN_H */
