/*
 * compat.h
 *		The only file that knows server versions.
 *
 * Each entry has the newest server's signature; what older ones lack is
 * mapped inside.  It names the major that changed and what changed.
 *
 * src/compat.h
 */
#ifndef MSGQ_COMPAT_H
#define MSGQ_COMPAT_H

#include "access/genam.h"
#include "access/tableam.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_namespace.h"
#include "executor/executor.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/timestamp.h"

#if PG_VERSION_NUM < 150000
#error "msgq needs PostgreSQL 15 or newer"
#endif

/* 16 moved the macros of variable-length values out of postgres.h. */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/*
 * 18 gave index_beginscan an argument for the counters of EXPLAIN; msgq has
 * none to pass.
 */
static inline IndexScanDesc
msgq_index_beginscan(Relation table, Relation index, Snapshot snapshot,
					 int nkeys)
{
#if PG_VERSION_NUM >= 180000
	return index_beginscan(table, index, snapshot, NULL, nkeys, 0);
#else
	return index_beginscan(table, index, snapshot, nkeys, 0);
#endif
}

/*
 * 16 made table_tuple_update tell which indexes need an entry, to spare the
 * others when only a summarizing (BRIN) index is concerned, and gave
 * ExecInsertIndexTuples an argument for it.
 */
#if PG_VERSION_NUM >= 160000
typedef TU_UpdateIndexes MsgqIndexUpdate;

#define MSGQ_ALL_INDEXES		TU_All
#define MSGQ_SOME_INDEX(which)	((which) != TU_None)
#else
typedef bool MsgqIndexUpdate;

#define MSGQ_ALL_INDEXES		true
#define MSGQ_SOME_INDEX(which)	(which)
#endif

static inline void
msgq_exec_insert_index_tuples(ResultRelInfo *result, EState *estate,
							  TupleTableSlot *slot, bool update,
							  MsgqIndexUpdate which)
{
#if PG_VERSION_NUM >= 160000
	ExecInsertIndexTuples(result, slot, estate, update, false, NULL, NIL,
						  which == TU_Summarizing);
#else
	ExecInsertIndexTuples(result, slot, estate, update, false, NULL, NIL);
#endif
}

/* 16 replaced the functions that check rights on one class of objects each. */
static inline AclResult
msgq_schema_aclcheck(Oid schema, Oid role, AclMode mode)
{
#if PG_VERSION_NUM >= 160000
	return object_aclcheck(NamespaceRelationId, schema, role, mode);
#else
	return pg_namespace_aclcheck(schema, role, mode);
#endif
}

static inline bool
msgq_owns_table(Oid table, Oid role)
{
#if PG_VERSION_NUM >= 160000
	return object_ownercheck(RelationRelationId, table, role);
#else
	return pg_class_ownercheck(table, role);
#endif
}

/* 18 has generated columns that are not stored, and that no trigger sees. */
#ifndef ATTRIBUTE_GENERATED_VIRTUAL
#define ATTRIBUTE_GENERATED_VIRTUAL	'v'
#endif

/* Intervals can be infinite since 17. */
static inline bool
msgq_interval_is_finite(const Interval *interval)
{
#if PG_VERSION_NUM >= 170000
	return !INTERVAL_NOT_FINITE(interval);
#else
	return true;
#endif
}

/* 17 has a registry through which backends find dynamic shared memory. */
#if PG_VERSION_NUM >= 170000
#include "storage/dsm_registry.h"

#define MSGQ_HAVE_DSM_REGISTRY	1
#else
#define MSGQ_HAVE_DSM_REGISTRY	0
#endif

/* 17 moved a process's number out of its PGPROC. */
static inline int
msgq_my_process_number(void)
{
#if PG_VERSION_NUM >= 170000
	return MyProcNumber;
#else
	return MyProc->pgprocno;
#endif
}

/*
 * From libpq/libpq.h, which wants the headers of GSSAPI where the server was
 * built with it: the events of the client's connection, the socket's first.
 */
extern PGDLLIMPORT WaitEventSet *FeBeWaitSet;

#define MSGQ_CLIENT_SOCKET_POSITION	0

/* 17 lets extensions name what their processes wait for. */
static inline uint32
msgq_wait_event(void)
{
#if PG_VERSION_NUM >= 170000
	static uint32 event = 0;

	if (event == 0)
		event = WaitEventExtensionNew("MsgqWait");
	return event;
#else
	return PG_WAIT_EXTENSION;
#endif
}

#endif							/* MSGQ_COMPAT_H */
