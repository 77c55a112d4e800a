/*
 * msgq.h
 *		What all of msgq's files share: settings, error codes, limits.
 *
 * The other headers follow a message's life as their .c files do: argument,
 * queue, message, send, segment, frontier, receive, settle.
 *
 * src/msgq.h
 */
#ifndef MSGQ_H
#define MSGQ_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "fmgr.h"
#include "utils/elog.h"

#include "compat.h"

/* Errors that SQL has no code for. */
#define ERRCODE_MSGQ_STALE_RECEIPT	MAKE_SQLSTATE('M','Q','0','0','1')
#define ERRCODE_MSGQ_FENCED			MAKE_SQLSTATE('M','Q','0','0','2')
#define ERRCODE_MSGQ_OTHER_LAST_ID	MAKE_SQLSTATE('M','Q','0','0','3')
#define ERRCODE_MSGQ_PAUSED			MAKE_SQLSTATE('M','Q','0','0','4')
#define ERRCODE_MSGQ_QUEUE_FULL		MAKE_SQLSTATE('M','Q','0','0','5')
#define ERRCODE_MSGQ_KEY_REUSED		MAKE_SQLSTATE('M','Q','0','0','6')
#define ERRCODE_MSGQ_POSITION_DROPPED	MAKE_SQLSTATE('M','Q','0','0','8')
#define ERRCODE_MSGQ_TIMED_OUT		MAKE_SQLSTATE('M','Q','0','0','9')
#define ERRCODE_MSGQ_UNROUTABLE		MAKE_SQLSTATE('M','Q','0','1','0')

/* More messages or receipts in one call are refused. */
#define MSGQ_MAX_BATCH		10000

/* A larger message could be stored but not always be dumped again. */
#define MSGQ_MAX_MESSAGE_BYTES	(200 * 1024 * 1024)

/* msgq.c: settings, and arrays that grow */
extern bool msgq_async_leases;
extern void *msgq_make_room(void *array, int n, int *room, Size size);

/* lease.c: how a transaction that only leases is committed */
extern void msgq_lease_begin(void);
extern void msgq_lease_end(TimestampTz oldest_enqueued_at);
extern void msgq_commit_asynchronously(void);
extern void msgq_lease_pre_commit(void);
extern void msgq_lease_forget(void);

#endif							/* MSGQ_H */
