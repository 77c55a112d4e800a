/*
 * testing.c
 *		What tests can set: the clock, and the points where a session stops.
 *
 * Both are settings that only a superuser can change, and only for a session
 * that tests something; they cost a comparison.
 *
 * The clock.  Every due time, lease and age is computed from msgq_now, which
 * is the wall clock plus msgq.test_clock_offset.  So a test lets a lease run
 * out, or a month pass, without sleeping.  For how long somebody waits, and when
 * a process does something again, is measured by msgq_ticks, which nobody sets.
 *
 * Points.  A session whose msgq.test_point names a point takes the advisory
 * lock (POINT_CLASS, number of the point) in shared mode when it comes by, and
 * releases it at once.  A test that holds the lock exclusively so holds the
 * session there, and the isolation tester sees it wait for a lock.  No point
 * lies where a process may not wait.
 *
 * src/testing.c
 */
#include "msgq.h"

#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/lock.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "testing.h"

/* First key of the advisory locks; an arbitrary number. */
#define POINT_CLASS		0x6d717470

int			msgq_test_point = MSGQ_POINT_NONE;

static double clock_offset = 0; /* milliseconds */

static const struct config_enum_entry points[] = {
	{"none", MSGQ_POINT_NONE, false},
	{"send-chosen", MSGQ_POINT_SEND_CHOSEN, false},
	{"send-locked", MSGQ_POINT_SEND_LOCKED, false},
	{"send-numbered", MSGQ_POINT_SEND_NUMBERED, false},
	{"send-stored", MSGQ_POINT_SEND_STORED, false},
	{"receive-walked", MSGQ_POINT_RECEIVE_WALKED, false},
	{"wait-registered", MSGQ_POINT_WAIT_REGISTERED, false},
	{"wait-looked", MSGQ_POINT_WAIT_LOOKED, false},
	{"ring-examined", MSGQ_POINT_RING_EXAMINED, false},
	{"ring-locked", MSGQ_POINT_RING_LOCKED, false},
	{"ring-moved", MSGQ_POINT_RING_MOVED, false},
	{"receive-counted", MSGQ_POINT_RECEIVE_COUNTED, false},
	{"store-chosen", MSGQ_POINT_STORE_CHOSEN, false},
	{"group-examined", MSGQ_POINT_GROUP_EXAMINED, false},
	{"settle-changed", MSGQ_POINT_SETTLE_CHANGED, false},
	{"receive-opened", MSGQ_POINT_RECEIVE_OPENED, false},
	{"sequence-horizon", MSGQ_POINT_SEQUENCE_HORIZON, false},
	{"sequence-snapshot", MSGQ_POINT_SEQUENCE_SNAPSHOT, false},
	{"publish-routed", MSGQ_POINT_PUBLISH_ROUTED, false},
	{"request-sent", MSGQ_POINT_REQUEST_SENT, false},
	{"inbox-chosen", MSGQ_POINT_INBOX_CHOSEN, false},
	{"fire-read", MSGQ_POINT_FIRE_READ, false},
	{"fire-stored", MSGQ_POINT_FIRE_STORED, false},
	{NULL, 0, false}
};

/* Once per backend, from _PG_init. */
void
msgq_testing_init(void)
{
	DefineCustomEnumVariable("msgq.test_point",
							 "Stops this session at a point, while a test holds its advisory lock.",
							 NULL,
							 &msgq_test_point,
							 MSGQ_POINT_NONE,
							 points,
							 PGC_SUSET,
							 GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE,
							 NULL,	/* check hook */
							 NULL,	/* assign hook */
							 NULL); /* show hook */
	DefineCustomRealVariable("msgq.test_clock_offset",
							 "Moves the clock that msgq sees in this session.",
							 NULL,
							 &clock_offset,
							 0,
							 -1e12,
							 1e12,
							 PGC_SUSET,
							 GUC_UNIT_MS | GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE,
							 NULL,	/* check hook */
							 NULL,	/* assign hook */
							 NULL); /* show hook */
}

/* The time by which msgq goes: the wall clock, but in tests. */
TimestampTz
msgq_now(void)
{
	return GetCurrentTimestamp() + (int64) (clock_offset * 1000.0);
}

/* Microseconds by a clock that only goes on, from some moment before. */
int64
msgq_ticks(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MICROSEC(now);
}

void
msgq_stop_at_point(void)
{
	LOCKTAG		tag;

	/* As pg_advisory_lock(int, int) has it. */
	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, POINT_CLASS, msgq_test_point, 2);
	(void) LockAcquire(&tag, ShareLock, true, false);
	LockRelease(&tag, ShareLock, true);
}
