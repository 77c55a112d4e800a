/*
 * store.h
 *		What a queue keeps for a time, in tables that take turns.
 *
 * src/store.h
 */
#ifndef MSGQ_STORE_H
#define MSGQ_STORE_H

#include "ring.h"
#include "segment.h"

/* A store, locked for a caller: its current table, then the kept ones. */
typedef struct MsgqStore
{
	MsgqStoreKind kind;
	int			ntables;
	Relation	tables[MSGQ_STORE_TABLES];
} MsgqStore;

/* A store of which a table is due to be closed or emptied. */
typedef struct MsgqStoreWork
{
	int32		queue_id;
	MsgqStoreKind kind;
} MsgqStoreWork;

extern MsgqStore *msgq_store_open(const char *command, MsgqStorage **storage,
								  MsgqStoreKind kind);
extern void msgq_store_close(MsgqStore *store);
extern int64 msgq_store_window(const MsgqQueue *queue, MsgqStoreKind kind);

extern void msgq_store_create(int32 queue_id, MsgqStoreKind kind);
extern void msgq_store_comment(int32 queue_id, const char *name);
extern void msgq_store_lock(const MsgqQueue *queue);
extern void msgq_store_drop(int32 queue_id);

extern MsgqStoreWork *msgq_store_list_due(MemoryContext context, int *n);
extern Oid	msgq_store_current(int32 queue_id, MsgqStoreKind kind);
extern bool msgq_store_turn(int32 queue_id, MsgqStoreKind kind,
							MsgqRound *round);
extern bool msgq_store_empty(int32 queue_id, MsgqStoreKind kind,
							 MsgqRound *round);

#endif							/* MSGQ_STORE_H */
