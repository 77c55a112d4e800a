/*
 * archive.h
 *		Messages that are kept after they were dealt with.
 *
 * src/archive.h
 */
#ifndef MSGQ_ARCHIVE_H
#define MSGQ_ARCHIVE_H

#include "segment.h"

/* A queue's archive, opened for adding to it. */
typedef struct MsgqArchive MsgqArchive;

extern void msgq_archive_check(const MsgqQueue *queue);
extern MsgqArchive *msgq_archive_open(const char *command,
									  MsgqStorage **storage);
extern void msgq_archive_add(MsgqArchive *archive, TupleTableSlot *row);
extern void msgq_archive_close(MsgqArchive *archive);

#endif							/* MSGQ_ARCHIVE_H */
