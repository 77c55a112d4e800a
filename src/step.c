/*
 * step.c
 *		Steps of maintenance.
 *
 * Each step is a transaction of its own, with a lock_timeout, so that locks
 * are held for that step only, and an error in one queue does not stop the
 * others.  By hand, each step is a subtransaction of the statement, and locks
 * are held until its end.
 *
 * src/step.c
 */
#include "msgq.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "step.h"

/* A transaction of the worker's. */
static void
begin(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
}

static void
end(MemoryContext context)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
}

/*
 * Begins and ends a look at what there is to do.  By hand it is part of the
 * statement, which an error ends: a subtransaction that the error left open would
 * be there still after the statement.
 */
void
msgq_look_begin(MsgqMaintenance *m)
{
	if (!m->by_hand)
		begin();
}

void
msgq_look_end(MsgqMaintenance *m, MemoryContext context)
{
	if (!m->by_hand)
		end(context);
}

/* Reports the error as a warning, and undoes the step. */
static void
fail_step(MsgqMaintenance *m, int32 queue_id, MemoryContext context,
		  ResourceOwner owner)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	FlushErrorState();
	if (m->by_hand)
	{
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		/* A cancel is meant for the statement. */
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
			ReThrowError(error);
	}
	else
	{
		HOLD_INTERRUPTS();
		AbortCurrentTransaction();
		RESUME_INTERRUPTS();
		MemoryContextSwitchTo(context);
	}
	if (error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE)
	{
		/* Somebody is in the way, for longer than we wait. */
		m->round.waiting++;
		FreeErrorData(error);
		return;
	}
	m->round.failed++;
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 m->subject ?
			 errmsg("could not %s: %s", m->subject, error->message) :
			 errmsg("could not maintain the queue, stream or topic with number %d: %s",
					queue_id, error->message)));
	FreeErrorData(error);
}

/* Runs a step so that its failure is its own. */
void
msgq_run_step(MsgqMaintenance *m, MsgqStep step, int32 queue_id, int n)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	CHECK_FOR_INTERRUPTS();
	PG_TRY();
	{
		if (m->by_hand)
			BeginInternalSubTransaction(NULL);
		else
			begin();
		step(m, queue_id, n);
		if (m->by_hand)
		{
			ReleaseCurrentSubTransaction();
			MemoryContextSwitchTo(context);
			CurrentResourceOwner = owner;
		}
		else
			end(context);
	}
	PG_CATCH();
	{
		fail_step(m, queue_id, context, owner);
	}
	PG_END_TRY();
}
