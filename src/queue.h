/*
 * queue.h
 *		What the hot path knows about a queue, and who may do what with it.
 *
 * src/queue.h
 */
#ifndef MSGQ_QUEUE_H
#define MSGQ_QUEUE_H

#include "datatype/timestamp.h"
#include "nodes/parsenodes.h"
#include "storage/lock.h"
#include "utils/hsearch.h"
#include "utils/relcache.h"

/*
 * Columns of msgq.queue (src/sql/schema.sql).  The settings are in the order
 * of create_queue's arguments.  Rows are read by msgq_read_columns.
 */
enum
{
	Anum_queue_id = 1,
	Anum_queue_name,
	Anum_queue_created_at,
	Anum_queue_visibility_timeout,
	Anum_queue_max_deliveries,
	Anum_queue_dead_letter_queue,
	Anum_queue_retry_delay,
	Anum_queue_retry_multiplier,
	Anum_queue_max_retry_delay,
	Anum_queue_message_ttl,
	Anum_queue_max_length,
	Anum_queue_overflow,
	Anum_queue_max_message_bytes,
	Anum_queue_max_in_flight,
	Anum_queue_priorities,
	Anum_queue_ordered,
	Anum_queue_on_exhausted,
	Anum_queue_dedup_window,
	Anum_queue_archive_retention,
	Anum_queue_paused,
	Natts_queue = Anum_queue_paused
};

/* Columns of msgq.segment. */
enum
{
	Anum_queue_segment_queue_id = 1,
	Anum_queue_segment_n,
	Anum_queue_segment_state,
	Anum_queue_segment_turn,
	Anum_queue_segment_moved,
	Anum_queue_segment_level,
	Natts_queue_segment = Anum_queue_segment_level
};

/* Columns of msgq.store. */
enum
{
	Anum_store_queue_id = 1,
	Anum_store_kind,
	Anum_store_n,
	Anum_store_state,
	Anum_store_opened_at,
	Anum_store_closed_at,
	Natts_store = Anum_store_closed_at
};

/* What a queue keeps for a time besides its messages; see store.c. */
typedef enum MsgqStoreKind
{
	MSGQ_KEYS,					/* idempotency keys */
	MSGQ_ARCHIVE,				/* messages that were archived */
	MSGQ_NSTORES
} MsgqStoreKind;

#define MSGQ_STORE_TABLES	3

/* One table of a store that may hold rows. */
typedef struct MsgqStoreTable
{
	Oid			table;
	TimestampTz closed_at;		/* no row is younger; 0: it takes new ones */
} MsgqStoreTable;

/* Rights, as privileges on the queue's handle, the view msgq.q<id>. */
#define MSGQ_RIGHT_NONE		ACL_NO_RIGHTS	/* checked elsewhere */
#define MSGQ_RIGHT_PEEK		ACL_SELECT
#define MSGQ_RIGHT_SEND		ACL_INSERT
#define MSGQ_RIGHT_RECEIVE	ACL_UPDATE
#define MSGQ_RIGHT_MANAGE	ACL_DELETE
#define MSGQ_RIGHT_ADMIN	ACL_TRUNCATE

/* What happens to a message that a full queue has no room for. */
typedef enum MsgqOverflow
{
	MSGQ_OVERFLOW_REJECT,
	MSGQ_OVERFLOW_DROP_OLDEST,
	MSGQ_OVERFLOW_DEAD_LETTER
} MsgqOverflow;

/* What is paused; a set of bits. */
#define MSGQ_PAUSED_RECEIVE	0x01
#define MSGQ_PAUSED_SEND	0x02

/* Levels of priority that a queue can have. */
#define MSGQ_MAX_PRIORITIES	10

/* One table of a queue. */
typedef struct MsgqQueueSegment
{
	Oid			table;			/* InvalidOid: it has gone */
	int			level;			/* of priority, of all its messages */
} MsgqQueueSegment;

/*
 * A queue as it was when it was looked up.  The caller's own copy: what the
 * cache does meanwhile does not matter to it.
 */
typedef struct MsgqQueue
{
	int32		id;
	NameData	name;
	TimestampTz created_at;
	Oid			handle;			/* the view that carries the rights */
	Oid			sequence;		/* of message ids */
	Interval	visibility_timeout;
	int32		max_deliveries; /* 0: no limit */
	NameData	dead_letter_queue;	/* empty: none */
	Interval	retry_delay;
	float8		retry_multiplier;
	Interval	max_retry_delay;
	bool		has_ttl;
	Interval	message_ttl;	/* if has_ttl */
	int64		max_length;		/* 0: no limit */
	MsgqOverflow overflow;
	int32		max_message_bytes;
	int32		max_in_flight;	/* 0: no limit */
	int32		priorities;		/* levels, at least 1 */
	bool		ordered;
	bool		block_exhausted;	/* on_exhausted is "block" */
	Interval	dedup_window;
	bool		has_archive;
	Interval	archive_retention;	/* if has_archive */
	int			paused;			/* MSGQ_PAUSED_* */
	int			nstored[MSGQ_NSTORES];	/* so many of these: */
	MsgqStoreTable stores[MSGQ_NSTORES][MSGQ_STORE_TABLES]; /* the current one, then
															 * the kept ones, newest
															 * first */
	int			ndrained;		/* so many of the segments are drained */
	int			nsegments;

	/*
	 * That may hold messages: those drained, those draining, and last the
	 * active ones, one for each level, from level 0 on.
	 */
	MsgqQueueSegment segments[FLEXIBLE_ARRAY_MEMBER];
} MsgqQueue;

/*
 * What heavyweight locks there are on a queue besides those on its tables, all
 * short.  None is one that SQL could take.
 */
typedef enum MsgqLock
{
	MSGQ_LOCK_APPEND = 1,		/* storage.c */
	MSGQ_LOCK_IN_FLIGHT,		/* receive.c */
	MSGQ_LOCK_COUNT				/* stats.c */
} MsgqLock;

extern HTAB *msgq_cache_create(const char *name, Size key_size, Size entry_size);
extern void msgq_queue_init(void);
extern void msgq_queue_watch(void);
extern uint64 msgq_queue_generation(void);
extern void msgq_queue_forget_all(void);
extern void msgq_queue_changed(void);
extern MsgqQueue *msgq_queue_find(const char *name);
extern MsgqQueue *msgq_queue_find_by_id(int32 id);
extern bool msgq_queue_is_complete(const MsgqQueue *queue);
extern MsgqQueue *msgq_queue_try_get(const char *name, AclMode right);
extern MsgqQueue *msgq_queue_get(const char *name, AclMode right);
extern void msgq_queue_lock_tag(LOCKTAG *tag, Oid sequence, MsgqLock lock);
extern bool msgq_queue_lock_for_reading(const MsgqQueue *queue);
extern MsgqQueue **msgq_queue_list(AclMode right, int *n);
extern bool msgq_has_right(Oid handle, AclMode right, bool *is_missing);
extern void msgq_refuse_without_right(const char *what, const char *name,
									  AclMode right);
extern bool msgq_queue_has_right(const MsgqQueue *queue, AclMode right);
extern int64 msgq_queue_backoff(const MsgqQueue *queue, TimestampTz now,
								int32 failures);
extern char msgq_store_letter(MsgqStoreKind kind);
extern const char *msgq_right_name(AclMode right);

extern Oid	msgq_schema_oid(void);
extern Oid	msgq_relation_oid(const char *name);
extern Relation msgq_open(Oid oid, LOCKMODE lock);
extern Relation msgq_open_metadata(const char *name);
extern void msgq_read_columns(HeapTuple row, TupleDesc descriptor, int n,
							  Datum *values, bool *nulls);
extern Oid	msgq_storage_owner(void);

#endif							/* MSGQ_QUEUE_H */
