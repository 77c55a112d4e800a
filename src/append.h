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

extern void msgq_append_entries(const char *command, const char *stream,
								const MsgqNewEntry *entries, int n, int64 *ids);

#endif							/* MSGQ_APPEND_H */
