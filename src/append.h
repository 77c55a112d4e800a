/*
 * append.h
 *		Stores entries of streams.
 *
 * src/append.h
 */
#ifndef MSGQ_APPEND_H
#define MSGQ_APPEND_H

#include "stream.h"

/* An entry to be appended. */
typedef struct MsgqNewEntry
{
	text	   *key;			/* or NULL */
	AttrNumber	content_column; /* Anum_entry_row_body or _data; 0 for a
								 * tombstone */
	Datum		content;
	bool		has_headers;
	Datum		headers;
	text	   *idempotency_key;	/* or NULL */
	bool		has_expected_id;
	int64		expected_id;
} MsgqNewEntry;

typedef struct MsgqAppender MsgqAppender;

extern MsgqAppender *msgq_append_open(const char *command, int32 stream_id);
extern bool msgq_append_store(MsgqAppender *appender,
							  const MsgqNewEntry *entries, int n, int64 *ids);
extern void msgq_append_close(MsgqAppender *appender, bool unlock);

#endif							/* MSGQ_APPEND_H */
