/*
 * lease.c
 *		How a transaction that did nothing but lease messages is committed.
 *
 * A lease that is lost in a crash means that its message is delivered again
 * earlier than its visibility timeout says: allowed by "at least once".  So
 * waiting for the disk before a receive returns buys nothing, and such a
 * transaction is committed as with synchronous_commit = off.  A transaction
 * that did anything else keeps the session's setting, and so do pop and all
 * that settles.
 *
 * "Nothing but lease" is judged by the write-ahead log:
 *
 *	- the transaction had no xid before its first claim, and
 *	- since its last claim nothing was logged (XactLastRecEnd), also not
 *	  between two calls of receive.
 *
 * A hint bit or a pruned page that is logged meanwhile makes the commit wait:
 * slower, never wrong.
 *
 * One exception.  A message whose consumer takes the whole server down must
 * run out of deliveries in the end, so its delivery has to be counted before
 * the consumer sees it.  Messages that were sent before the server last
 * started are suspects, and transactions that lease one wait for the disk.
 *
 * All state is the current transaction's.
 *
 * src/lease.c
 */
#include "msgq.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "pgstat.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

typedef enum LeaseState
{
	NOTHING_LEASED,
	ONLY_LEASED,				/* since the transaction began */
	MUST_WAIT					/* something else is in it, or a suspect */
} LeaseState;

static LeaseState state = NOTHING_LEASED;

/* End of the last record that the transaction's last receive has logged. */
static XLogRecPtr last_lease_record = InvalidXLogRecPtr;

/*
 * When did the server start, or start again after a crash?
 *
 * PgStartTime is the postmaster's start, which survives the crash of a
 * backend; but such a crash resets the cumulative statistics, and they say
 * when.  An administrator can reset them too: a start that seems later than
 * it was makes more transactions wait, which is safe.  The answer cannot
 * change while a backend lives.
 */
static TimestampTz
server_start_time(void)
{
	static TimestampTz started = 0;

	if (started == 0)
		started = Max(PgStartTime,
					  pgstat_fetch_stat_bgwriter()->stat_reset_timestamp);
	return started;
}

/* To be called before a receive claims anything. */
void
msgq_lease_begin(void)
{
	if (state == NOTHING_LEASED)
		state = TransactionIdIsValid(GetTopTransactionIdIfAny()) ?
			MUST_WAIT : ONLY_LEASED;
	else if (XactLastRecEnd != last_lease_record)
		state = MUST_WAIT;
}

/*
 * To be called after a receive has claimed; oldest_enqueued_at is the time of
 * the oldest message among them, DT_NOEND if there is none.
 */
void
msgq_lease_end(TimestampTz oldest_enqueued_at)
{
	last_lease_record = XactLastRecEnd;
	if (oldest_enqueued_at < server_start_time())
		state = MUST_WAIT;
}

/* The commit of this transaction need not wait for the disk. */
void
msgq_commit_asynchronously(void)
{
	if (synchronous_commit != SYNCHRONOUS_COMMIT_OFF)
		(void) set_config_option("synchronous_commit", "off",
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL,
								 true, 0, false);
}

/* Just before the commit: lower synchronous_commit, for this commit only. */
void
msgq_lease_pre_commit(void)
{
	if (state == ONLY_LEASED && XactLastRecEnd == last_lease_record &&
		msgq_async_leases)
		msgq_commit_asynchronously();
}

/* The transaction is over. */
void
msgq_lease_forget(void)
{
	state = NOTHING_LEASED;
	last_lease_record = InvalidXLogRecPtr;
}
