/*
 * reader.h
 *		Fetches the entries of a stream.
 *
 * src/reader.h
 */
#ifndef MSGQ_READER_H
#define MSGQ_READER_H

#include "access/relscan.h"
#include "executor/tuptable.h"
#include "utils/tuplestore.h"
#include "utils/uuid.h"

#include "stream.h"

typedef struct MsgqReader MsgqReader;

extern MsgqReader *msgq_reader_begin(const MsgqStream *stream,
									 Tuplestorestate *store,
									 TupleDesc descriptor);
extern void msgq_reader_end(MsgqReader *reader);
extern TupleTableSlot *msgq_reader_fetch(MsgqReader *reader, int64 id);
extern void msgq_reader_put(MsgqReader *reader, TupleTableSlot *row,
							int64 position, const pg_uuid_t *receipt);
extern int64 msgq_reader_read(MsgqReader *reader, int partition, int64 from,
							  int64 until, int max_entries,
							  const pg_uuid_t *receipt, bool flush);
extern void msgq_check_kept(const MsgqStream *stream, int partition,
							int64 position);

#endif							/* MSGQ_READER_H */
