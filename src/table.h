/*
 * table.h
 *		What is done to tables of all kinds, directly.
 *
 * src/table.h
 */
#ifndef MSGQ_TABLE_H
#define MSGQ_TABLE_H

#include "access/genam.h"
#include "executor/tuptable.h"
#include "nodes/execnodes.h"
#include "utils/snapshot.h"

/* A table, locked and opened. */
typedef struct MsgqTable
{
	Relation	table;
	Relation	index;			/* its primary key */
	IndexInfo  *info;
	TupleTableSlot *row;		/* what was found */
} MsgqTable;

/*
 * What is to be done with a table that takes no new rows, and is to be emptied:
 * its rows go elsewhere, and when nobody sees them here any more it is truncated.
 */
typedef enum MsgqKept
{
	MSGQ_KEPT_IN_USE,			/* nothing: a lock or a snapshot needs it */
	MSGQ_KEPT_HAS_ROWS,			/* they are to be moved or deleted */
	MSGQ_KEPT_EMPTY				/* it can be truncated */
} MsgqKept;

extern MsgqTable *msgq_table_open(Relation table, int ncolumns, int nrequired,
								  LOCKMODE lock);
extern void msgq_table_close(MsgqTable *table, LOCKMODE unlock);
extern void msgq_table_insert(MsgqTable *table, const Datum *values,
							  const bool *is_null);
extern TupleTableSlot **msgq_table_slots(Relation table, int n);
extern void msgq_table_insert_rows(Relation table, TupleTableSlot **rows,
								   int n);
extern Relation msgq_open_primary_key(Relation table);
extern bool msgq_try_lock_toast(Relation table);
extern bool msgq_try_lock_table(Oid table_oid);
extern bool msgq_lock_table_between_calls(Oid table_oid);
extern MsgqKept msgq_table_lock_kept(Oid table_oid);
extern void msgq_lock_against_writers(Oid table_oid);
extern bool msgq_table_has_row(Relation table);
extern bool msgq_table_has_row_for_somebody(Relation table);
extern int64 msgq_table_bytes(Oid table);
extern int64 msgq_relation_data_bytes(Relation table);
extern int64 msgq_table_data_bytes(Oid table_oid);
extern void msgq_table_check(Oid table_oid, int ncolumns, int nrequired);
extern int64 msgq_table_main_bytes(Oid table_oid);
extern bool msgq_table_find(MsgqTable *table, Snapshot snapshot,
							ScanKey keys, int nkeys, ScanDirection direction);
extern bool msgq_table_find_any(MsgqTable *table, ScanKey keys, int nkeys,
								SnapshotData *dirty);
extern bool msgq_table_find_settled(MsgqTable *table, ScanKey keys, int nkeys);
extern bool msgq_table_insert_unless_there(MsgqTable *table,
										   const Datum *values);
extern bool msgq_table_remove(MsgqTable *table);

#endif							/* MSGQ_TABLE_H */
