/*
 * dedup.h
 *		Idempotency keys: a message that is sent again is not stored again.
 *
 * src/dedup.h
 */
#ifndef MSGQ_DEDUP_H
#define MSGQ_DEDUP_H

#include "segment.h"

/* The keys of one call. */
typedef struct MsgqKeys MsgqKeys;

extern MsgqKeys *msgq_keys_make(int room);
extern void msgq_keys_add(MsgqKeys *keys, int position, Datum key);
extern void msgq_keys_find(MsgqKeys *keys, const char *command,
						   MsgqStorage **storage, const Datum *contents,
						   AttrNumber content_column, int64 *ids,
						   bool *duplicates);
extern int	msgq_keys_store(MsgqKeys *keys, MsgqStorage *storage, int64 *ids,
							bool *duplicates);
extern void msgq_keys_close(MsgqKeys *keys);

#endif							/* MSGQ_DEDUP_H */
