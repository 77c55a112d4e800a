/*
 * msgq.c
 *		Where the library is loaded: settings and transaction callbacks.
 *
 * Reading order.  A message is sent (send.c; limits.c and dedup.c say whether)
 * into a segment table of its queue (queue.c, storage.c, segment.c); receive.c
 * finds it with the help of frontier.c, or of group.c in an ordered queue,
 * leases it (lease.c), and waits for it if need be (wakeup.c); settle.c
 * removes it or gives it back, or keeps a copy (archive.c).  What has failed
 * too often goes elsewhere, and comes back (deadletter.c, history.c,
 * redrive.c); poison.c notes failures of which no row tells.
 *
 * Streams are another life, which stream.c begins to tell.  capture.c makes
 * messages of changes of tables, schedule.c and fire.c of the time of day,
 * cloudevent.c gives messages another form, and inbox.c knows which messages of
 * others were dealt with.
 *
 * ring.c and store.c reclaim space; maintain.c, with upkeep.c, does that for all,
 * worker.c in the background; health.c says what is wrong, stats.c counts.
 * inspect.c only looks; admin.c makes and drops queues, whose settings are in
 * settings.c; argument.c and message.c translate between SQL and C; owner.c is
 * the one place that acts with the rights of the storage's owner.
 *
 * msgq keeps no state outside the tables that could be missed: what backends
 * share (shared.c) and what the current transaction remembers only ever saves
 * time.
 *
 * src/msgq.c
 */
#include "msgq.h"

#include "access/xact.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "capture.h"
#include "frontier.h"
#include "inbox.h"
#include "poison.h"
#include "queue.h"
#include "ring.h"
#include "schedule.h"
#include "sequencer.h"
#include "shared.h"
#include "stats.h"
#include "testing.h"
#include "topic.h"
#include "wakeup.h"
#include "worker.h"

PG_MODULE_MAGIC;

/*
 * Commit a transaction that did nothing but lease messages asynchronously: a
 * lease that a crash forgets is only an early redelivery (see lease.c).
 */
bool		msgq_async_leases = true;

PGDLLEXPORT void _PG_init(void);

/*
 * An array of n elements of this size gets room for one more: for what a
 * transaction remembers until its end, when nothing can be allocated.  Returns
 * the array, NULL at first, in TopMemoryContext.
 */
void	   *
msgq_make_room(void *array, int n, int *room, Size size)
{
	int			more = *room > 0 ? 2 * *room : 8;

	if (n < *room)
		return array;
	array = array ? repalloc(array, size * more) :
		MemoryContextAlloc(TopMemoryContext, size * more);
	*room = more;
	return array;
}

/*
 * The end of a transaction, in every form that it can take.
 *
 * Nothing in here may allocate, wait or raise an error, except before the
 * commit: an error after it would be a PANIC.
 */
static void
transaction_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			msgq_lease_pre_commit();
			msgq_poison_pre_commit();
			msgq_schedule_pre_commit();
			break;
		case XACT_EVENT_COMMIT:
			msgq_frontier_transaction_ended(true);
			msgq_stats_transaction_ended(true);
			msgq_poison_transaction_ended(false);
			msgq_lease_forget();
			msgq_sequence_transaction_ended(true);
			msgq_wakeup_transaction_ended(true);
			msgq_schedule_transaction_ended(true);
			break;
		case XACT_EVENT_ABORT:
			msgq_append_forget(1);
			msgq_frontier_transaction_ended(false);
			msgq_stats_transaction_ended(false);
			msgq_poison_transaction_ended(true);
			msgq_lease_forget();
			msgq_sequence_transaction_ended(false);
			msgq_wait_end();
			msgq_wakeup_transaction_ended(false);
			msgq_schedule_transaction_ended(false);
			break;
		case XACT_EVENT_PREPARE:
			msgq_frontier_transaction_ended(false);
			msgq_stats_transaction_prepared();
			msgq_poison_transaction_ended(false);
			msgq_lease_forget();
			msgq_sequence_transaction_ended(false);
			msgq_wakeup_forget();
			msgq_schedule_transaction_ended(false);
			break;
		case XACT_EVENT_PRE_PREPARE:
			msgq_poison_pre_commit();
			break;
		case XACT_EVENT_PARALLEL_PRE_COMMIT:
		case XACT_EVENT_PARALLEL_COMMIT:
		case XACT_EVENT_PARALLEL_ABORT:
			/* Nothing of msgq's that writes runs in a parallel worker. */
			break;
	}
}

static void
subtransaction_callback(SubXactEvent event, SubTransactionId mine,
						SubTransactionId parent, void *arg)
{
	int			nest_level = GetCurrentTransactionNestLevel();

	if (event == SUBXACT_EVENT_START_SUB)
		msgq_poison_subtransaction_started();
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		msgq_frontier_subtransaction_committed(nest_level);
		msgq_stats_subtransaction_committed(nest_level);
		msgq_poison_subtransaction_committed(nest_level);
	}
	else if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		msgq_append_forget(nest_level);
		msgq_sequence_transaction_ended(false);
		msgq_wait_end();
		msgq_wakeup_subtransaction_aborted();
		msgq_frontier_subtransaction_aborted(nest_level);
		msgq_stats_subtransaction_aborted(nest_level);
		msgq_poison_subtransaction_aborted(nest_level);
	}
}

void
_PG_init(void)
{
	DefineCustomBoolVariable("msgq.async_leases",
							 "Commits transactions that only lease messages asynchronously.",
							 "A crash may then forget leases, which means that messages are delivered again early.",
							 &msgq_async_leases,
							 true,
							 PGC_USERSET,
							 0,
							 NULL,	/* check hook */
							 NULL,	/* assign hook */
							 NULL); /* show hook */
	msgq_testing_init();
	msgq_poison_init();
	msgq_wakeup_init();
	msgq_ring_init();
	msgq_worker_init();
	msgq_shared_init();
	MarkGUCPrefixReserved("msgq");

	RegisterXactCallback(transaction_callback, NULL);
	RegisterSubXactCallback(subtransaction_callback, NULL);
	msgq_queue_init();
	msgq_topic_init();
	msgq_capture_init();
	msgq_inbox_init();
	msgq_schedule_init();
}
