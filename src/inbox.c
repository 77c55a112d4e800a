/*
 * inbox.c
 *		Which messages of others were dealt with: each has its effects once.
 *
 * Whoever deals with messages that may come again, from a broker or from a
 * queue in another database, claims each one in the transaction that has its
 * effects.  A claim is true once for each consumer and message id, for as long
 * as it is kept.
 *
 * Claims lie in two tables, msgq.inbox_1 and _2.  One is current and takes new
 * claims; the other one is kept, which is looked into, or empty.
 *
 *	current -> kept, empty -> current	at least half of what the current table
 *										holds does not count any more: it turns
 *	kept -> empty						no claim in it counts; what counts while
 *										few others do, or when the current table
 *										should turn, is moved there first
 *
 * So where claims are moved, at least as many have expired, and their room is
 * given back, by TRUNCATE; and the tables need about four times what the claims
 * that count do.
 *
 * Claiming.  Whoever claims locks the current table in RowExclusive mode, to the
 * end of his transaction, and makes sure that it still is current.  Turning
 * takes a ShareLock: so nobody turns the tables under an open transaction that
 * has claimed, a prepared one included, and what is in the kept table is all
 * committed.  Then
 *
 *	1. he looks into the kept table, with a dirty snapshot.  A claim that is there
 *	   and counts is the answer, also while it is being moved; one that is not
 *	   there any more was moved, and is found in the next step.  The lock is given
 *	   back at once, so that the table can be emptied.
 *	2. he looks into the current table, and waits for whoever has claimed the same
 *	   and is open.
 *	3. he inserts his claim, and looks again if somebody else was faster.  What
 *	   has expired is removed before.
 *
 * No MVCC snapshot is used, so all isolation levels see the same claims and none
 * gets a serialization failure.  The one row that is unique in the current table
 * decides; step 1 only saves claims that are to be moved.
 *
 * Moving takes no lock that is in the way of claims.  It deletes from the kept
 * table, and inserts into the current one what is not there, in one transaction
 * for each part of the table.  A claim that is there already is a later one, of
 * somebody who has seen that the kept one had expired.
 *
 * Emptying waits for no snapshot: one that is held would let the tables grow.  A
 * snapshot that is older than the TRUNCATE would miss claims that were moved, so
 * who reads the inbox with one, msgq.inbox or pg_dump, gets an error instead
 * (msgq_inbox_is_whole).
 *
 * One process maintains the inbox at a time (maintain.c).  A backend knows which
 * table is current until it gets an invalidation, as with queues (queue.c).
 *
 * Rights are privileges on the view msgq.inbox; the tables are written directly,
 * and refused if somebody has added what that would not honour (table.c).
 *
 * src/inbox.c
 */
#include "msgq.h"

#include "access/detoast.h"
#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "argument.h"
#include "inbox.h"
#include "message.h"
#include "owner.h"
#include "queue.h"
#include "table.h"
#include "testing.h"
#include "worker.h"

#define TABLES			2

/* Of a consumer and of a message id. */
#define MAX_KEY_BYTES	255

/* When at most one claim in so many counts, these are moved. */
#define FEW				8

/* Of a larger table, so many runs of pages are looked at to see what is due. */
#define SAMPLE_RUNS		256
#define RUN_PAGES		32

/* Claims are moved by so many pages of the kept table. */
#define PART_PAGES		1024

/* Columns of a table of claims; all are NOT NULL. */
enum
{
	Anum_claim_consumer = 1,
	Anum_claim_message_id,
	Anum_claim_claimed_at,
	Anum_claim_keep_until,
	Natts_claim = Anum_claim_keep_until
};

/* Columns of msgq.inbox_state. */
enum
{
	Anum_state_current = 1,
	Anum_state_emptied,
	Natts_state = Anum_state_emptied
};

/* The inbox as it was when it was looked up. */
typedef struct Inbox
{
	int			current;		/* 1 or 2 */
	int64		emptied;		/* how often a table was */
	Oid			current_table;
	Oid			kept_table;
	Oid			handle;
} Inbox;

/* As in queue.c. */
static uint64 generation = 1;
static Oid	state_table = InvalidOid;

static Inbox cached;
static uint64 cached_generation = 0;

static void
invalidation_callback(Datum arg, Oid relation)
{
	if (relation == InvalidOid || relation == state_table)
	{
		generation++;
		state_table = InvalidOid;
	}
}

/* Once per backend, from _PG_init. */
void
msgq_inbox_init(void)
{
	CacheRegisterRelcacheCallback(invalidation_callback, (Datum) 0);
}

/* ---------------------------------------------------------------------------
 * The state
 * ---------------------------------------------------------------------------
 */

static Oid
inbox_relation(const char *name)
{
	Oid			relation = msgq_relation_oid(name);

	if (!OidIsValid(relation))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the inbox is incomplete"),
				 errdetail("There is no relation msgq.%s.", name),
				 errhint("Restore it from a dump, or create the extension anew.")));
	return relation;
}

/* As this snapshot shows it, or, if that is NULL, as it is. */
static Inbox
read_inbox(Snapshot snapshot)
{
	Inbox		inbox = {.current = 1};
	Relation	table = msgq_open_metadata("inbox_state");
	SysScanDesc scan = systable_beginscan(table, InvalidOid, false, snapshot, 0,
										  NULL);
	HeapTuple	row = systable_getnext(scan);

	if (HeapTupleIsValid(row))
	{
		Datum		values[Natts_state];
		bool		nulls[Natts_state];

		msgq_read_columns(row, RelationGetDescr(table), Natts_state, values, nulls);
		inbox.current = DatumGetInt32(values[Anum_state_current - 1]);
		inbox.emptied = DatumGetInt64(values[Anum_state_emptied - 1]);
	}
	systable_endscan(scan);
	table_close(table, AccessShareLock);
	inbox.current_table = inbox_relation(inbox.current == 1 ? "inbox_1" : "inbox_2");
	inbox.kept_table = inbox_relation(inbox.current == 1 ? "inbox_2" : "inbox_1");
	inbox.handle = inbox_relation("inbox");
	return inbox;
}

/* The same from the cache. */
static const Inbox *
find_inbox(void)
{
	while (cached_generation != generation)
	{
		uint64		begun;

		state_table = msgq_relation_oid("inbox_state");
		begun = generation;
		cached = read_inbox(NULL);
		cached_generation = begun;
	}
	return &cached;
}

/*
 * Did the statement's snapshot see all claims that there are?  Else raises 40001:
 * a table was emptied since, and what had been moved out of it is in neither, as
 * the snapshot has it.
 */
PG_FUNCTION_INFO_V1(msgq_inbox_is_whole);
Datum
msgq_inbox_is_whole(PG_FUNCTION_ARGS)
{
	if (read_inbox(GetActiveSnapshot()).emptied != read_inbox(NULL).emptied)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access to the inbox"),
				 errdetail("A table of it was emptied after this snapshot was taken."),
				 errhint("Begin a new transaction.")));
	PG_RETURN_BOOL(true);
}

/* ---------------------------------------------------------------------------
 * Claiming
 * ---------------------------------------------------------------------------
 */

static Datum
key_argument(FunctionCallInfo fcinfo, int n, const char *argument)
{
	Datum		key = msgq_arg(fcinfo, n, argument);
	Size		length = toast_raw_datum_size(key) - VARHDRSZ;

	if (length < 1 || length > MAX_KEY_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must have 1 to %d bytes", argument,
						MAX_KEY_BYTES),
				 errdetail("This one has %zu.", length)));
	return PointerGetDatum(DatumGetTextPP(key));
}

/* When a claim that is made now ends. */
static TimestampTz
end_of_claim(TimestampTz now, const Interval *keep)
{
	TimestampTz end = msgq_time_after(now, keep);

	if (end <= now)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be greater than zero", "keep")));
	return end;
}

static void
check_may_claim(Oid handle)
{
	bool		is_missing;

	if (!msgq_has_right(handle, ACL_INSERT, &is_missing))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for the inbox"),
				 errdetail("Role \"%s\" may not claim messages.",
						   GetUserNameFromId(GetUserId(), false)),
				 errhint("Its owner can allow it: GRANT INSERT ON msgq.inbox TO %s.",
						 quote_identifier(GetUserNameFromId(GetUserId(), false)))));
}

static MsgqTable *
open_claims(Relation table, LOCKMODE lock)
{
	return msgq_table_open(table, Natts_claim, Natts_claim, lock);
}

/* Locks the current table; the other one stays what it is meanwhile. */
static MsgqTable *
lock_current(void)
{
	for (;;)
	{
		const Inbox *inbox = find_inbox();
		uint64		seen = generation;
		Relation	table;

		check_may_claim(inbox->handle);
		msgq_point(MSGQ_POINT_INBOX_CHOSEN);
		table = try_table_open(inbox->current_table, RowExclusiveLock);
		if (table == NULL)
			generation++;
		else if (seen == generation)
			return open_claims(table, RowExclusiveLock);
		else
			table_close(table, RowExclusiveLock);
		CHECK_FOR_INTERRUPTS();
	}
}

/* Does the claim in table->row count? */
static bool
counts(MsgqTable *table)
{
	return DatumGetTimestampTz(msgq_row_value(table->row, Anum_claim_keep_until)) >
		msgq_now();
}

/* Is there one in the kept table? */
static bool
is_claimed_in_kept(ScanKey keys)
{
	MsgqTable  *kept = open_claims(msgq_open(cached.kept_table, AccessShareLock),
								   AccessShareLock);
	SnapshotData dirty;
	bool		is_claimed = msgq_table_find_any(kept, keys,
												 Anum_claim_message_id, &dirty) &&
	counts(kept);

	msgq_table_close(kept, AccessShareLock);
	return is_claimed;
}

/* Claims in the current table, unless that is claimed; values are the key. */
static bool
claim_in_current(MsgqTable *current, ScanKey keys, Datum *values,
				 const Interval *keep)
{
	for (;;)
	{
		TimestampTz now;

		CHECK_FOR_INTERRUPTS();
		if (msgq_table_find_settled(current, keys, Anum_claim_message_id))
		{
			if (counts(current))
				return false;
			/* What this command has inserted can be removed by the next one. */
			CommandCounterIncrement();
			if (!msgq_table_remove(current))
				continue;
		}
		now = msgq_now();
		values[Anum_claim_claimed_at - 1] = TimestampTzGetDatum(now);
		values[Anum_claim_keep_until - 1] =
			TimestampTzGetDatum(end_of_claim(now, keep));
		if (msgq_table_insert_unless_there(current, values))
			return true;
	}
}

/* inbox_claim(consumer, message_id, keep) */
PG_FUNCTION_INFO_V1(msgq_inbox_claim);
Datum
msgq_inbox_claim(PG_FUNCTION_ARGS)
{
	Datum		values[Natts_claim];
	Interval   *keep;
	ScanKeyData keys[Anum_claim_message_id];
	MsgqTable  *current;
	bool		claimed;

	values[Anum_claim_consumer - 1] = key_argument(fcinfo, 0, "consumer");
	values[Anum_claim_message_id - 1] = key_argument(fcinfo, 1, "message_id");
	keep = DatumGetIntervalP(msgq_arg(fcinfo, 2, "keep"));
	msgq_check_interval(keep, "keep");
	(void) end_of_claim(msgq_now(), keep);
	msgq_begin_change("msgq.inbox_claim()");
	msgq_worker_want();

	current = lock_current();
	/* ScanKeyInit sets the collation to "C". */
	for (AttrNumber n = Anum_claim_consumer; n <= Anum_claim_message_id; n++)
		ScanKeyInit(&keys[n - 1], n, BTEqualStrategyNumber, F_TEXTEQ, values[n - 1]);
	claimed = !is_claimed_in_kept(keys) &&
		claim_in_current(current, keys, values, keep);
	msgq_table_close(current, NoLock);
	PG_RETURN_BOOL(claimed);
}

/* ---------------------------------------------------------------------------
 * Maintenance, each function in a transaction of its own
 * ---------------------------------------------------------------------------
 */

/* What is in a table, or in a sample of it. */
typedef struct Contents
{
	int64		stored;			/* rows, dead ones too */
	int64		counting;		/* claims that count */
} Contents;

/* Adds what is in so many pages from this one on. */
static void
examine_pages(TableScanDesc scan, BlockNumber first, int pages,
			  Snapshot snapshot, TupleTableSlot *row, Contents *contents)
{
	TimestampTz now = msgq_now();
	ItemPointerData from;
	ItemPointerData to;

	ItemPointerSet(&from, first, FirstOffsetNumber);
	ItemPointerSet(&to, first + pages - 1, MaxOffsetNumber);
	table_rescan_tidrange(scan, &from, &to);
	while (table_scan_getnextslot_tidrange(scan, ForwardScanDirection, row))
	{
		contents->stored++;
		if (msgq_row_time(row, Anum_claim_keep_until) > now &&
			table_tuple_satisfies_snapshot(scan->rs_rd, row, snapshot))
			contents->counting++;
	}
}

/* Examines a table, or, if it is large, runs of pages all over it. */
static Contents
examine(Oid table_oid)
{
	Contents	contents = {0};
	Relation	table = msgq_open(table_oid, AccessShareLock);
	TupleTableSlot *row = table_slot_create(table, NULL);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	BlockNumber pages = RelationGetNumberOfBlocks(table);
	ItemPointerData none;
	TableScanDesc scan;

	ItemPointerSet(&none, 0, FirstOffsetNumber);
	scan = table_beginscan_tidrange(table, SnapshotAny, &none, &none);
	for (uint64 page = 0; page < pages; page += Max(RUN_PAGES, pages / SAMPLE_RUNS))
	{
		CHECK_FOR_INTERRUPTS();
		examine_pages(scan, page, Min(RUN_PAGES, pages - page), snapshot, row,
					  &contents);
	}
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	ExecDropSingleTupleTableSlot(row);
	table_close(table, AccessShareLock);
	return contents;
}

/* Does any claim in a table count? */
static bool
has_counting(Oid table_oid)
{
	Relation	table = msgq_open(table_oid, AccessShareLock);
	TimestampTz now = msgq_now();
	TupleTableSlot *row = table_slot_create(table, NULL);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TableScanDesc scan = table_beginscan(table, snapshot, 0, NULL);
	bool		found = false;

	while (!found && table_scan_getnextslot(scan, ForwardScanDirection, row))
	{
		CHECK_FOR_INTERRUPTS();
		found = msgq_row_time(row, Anum_claim_keep_until) > now;
	}
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	ExecDropSingleTupleTableSlot(row);
	table_close(table, AccessShareLock);
	return found;
}

/* Has the current table to turn? */
static bool
should_turn(const Inbox *inbox)
{
	Contents	contents;

	if (msgq_table_bytes(inbox->current_table) < (int64) msgq_segment_size * 1024)
		return false;
	contents = examine(inbox->current_table);
	return contents.counting <= contents.stored / 2;
}

/*
 * What is due, in *work, which is zero.  Costs a scan of each table, or of a
 * sample.  Where claims are to be moved, that is done in all parts: a sample may
 * miss some.
 */
void
msgq_inbox_look(MsgqInboxWork *work)
{
	Inbox		inbox;
	int64		kept_pages;
	Contents	kept;

	/* The library may be newer than what CREATE EXTENSION has made. */
	if (!OidIsValid(msgq_relation_oid("inbox_state")))
		return;
	inbox = read_inbox(NULL);
	kept_pages = msgq_table_main_bytes(inbox.kept_table) / BLCKSZ;
	if (kept_pages == 0)
	{
		work->turn = should_turn(&inbox);
		return;
	}
	kept = examine(inbox.kept_table);
	work->empty = kept.counting <= kept.stored / FEW || should_turn(&inbox);
	if (work->empty)
		work->parts = (kept_pages + PART_PAGES - 1) / PART_PAGES;
}

/* Neither may run what somebody else has added; within SPI. */
static void
check_tables(const Inbox *inbox)
{
	msgq_table_check(inbox->current_table, Natts_claim, Natts_claim);
	msgq_table_check(inbox->kept_table, Natts_claim, Natts_claim);
}

/* Within SPI; all backends look the inbox up anew with the commit. */
static void
set_state(int current, int64 emptied)
{
	msgq_spi_run("UPDATE msgq.inbox_state SET current = %d, emptied = %lld",
				 current, (long long) emptied);
	if (SPI_processed == 0)
		msgq_spi_run("INSERT INTO msgq.inbox_state (current, emptied) VALUES (%d, %lld)",
					 current, (long long) emptied);
	CacheInvalidateRelcacheByRelid(msgq_relation_oid("inbox_state"));
}

/*
 * Lets the other table, which is empty, take new claims.  Raises 55P03 if a
 * transaction that has claimed stays open.
 */
void
msgq_inbox_turn(MsgqRound *round)
{
	Inbox		inbox = read_inbox(NULL);
	MsgqSpi		spi;

	msgq_lock_against_writers(inbox.current_table);
	msgq_spi_begin(&spi, msgq_storage_owner());
	check_tables(&inbox);
	set_state(TABLES + 1 - inbox.current, inbox.emptied);
	msgq_spi_end(&spi);
	round->rotated++;
}

/* Moves the claims that count out of a part of the kept table, from 0 on. */
void
msgq_inbox_move(int part, MsgqRound *round)
{
	Inbox		inbox = read_inbox(NULL);
	int			kept = TABLES + 1 - inbox.current;
	Oid			type = TIMESTAMPTZOID;
	Datum		now = TimestampTzGetDatum(msgq_now());
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	check_tables(&inbox);
	msgq_spi_run_with(psprintf("WITH gone AS (DELETE FROM ONLY msgq.inbox_%d "
							   "WHERE ctid >= '(%u,0)' AND ctid < '(%u,0)' AND keep_until > $1 "
							   "RETURNING *) "
							   "INSERT INTO msgq.inbox_%d SELECT * FROM gone "
							   "ON CONFLICT (consumer, message_id) DO NOTHING",
							   kept, (BlockNumber) part * PART_PAGES,
							   (BlockNumber) (part + 1) * PART_PAGES, inbox.current),
					  SPI_OK_INSERT, 1, &type, &now, NULL, false);
	round->moved += SPI_processed;
	msgq_spi_end(&spi);
}

/*
 * Empties the kept table, if it holds no claim that counts and nobody uses it;
 * true if it did.  No new claim can get there.
 */
bool
msgq_inbox_empty(MsgqRound *round)
{
	Inbox		inbox = read_inbox(NULL);
	MsgqSpi		spi;

	if (has_counting(inbox.kept_table))
		return false;
	if (!msgq_lock_table_between_calls(inbox.kept_table))
	{
		round->waiting++;
		return false;
	}
	msgq_spi_begin(&spi, msgq_storage_owner());
	check_tables(&inbox);
	msgq_spi_run("TRUNCATE ONLY msgq.inbox_%d", TABLES + 1 - inbox.current);
	set_state(inbox.current, inbox.emptied + 1);
	msgq_spi_end(&spi);
	round->emptied++;
	return true;
}
