/*
 * capture.h
 *		Changes of users' tables that are sent as messages.
 *
 * src/capture.h
 */
#ifndef MSGQ_CAPTURE_H
#define MSGQ_CAPTURE_H

#include "utils/relcache.h"

/* Columns of msgq.capture (src/sql/schema.sql). */
enum
{
	Anum_capture_id = 1,
	Anum_capture_relation,
	Anum_capture_destination_id,
	Anum_capture_kind,
	Anum_capture_events,
	Anum_capture_has_columns,
	Anum_capture_has_key,
	Anum_capture_filter,
	Anum_capture_created_at,
	Natts_capture = Anum_capture_created_at
};

/*
 * The triggers of capture number n are named so, with one of these behind it.
 * The last three never fire: they keep what the others cannot.
 */
#define MSGQ_CAPTURE_TRIGGER	"msgq_capture_%d"

#define MSGQ_CAPTURE_COLUMNS	"columns"	/* which are captured */
#define MSGQ_CAPTURE_KEY		"key"	/* which one is the key */
#define MSGQ_CAPTURE_GUARD		"guard" /* the table must not become a part of
										 * another one */

extern void msgq_capture_init(void);
extern void msgq_capture_refuse_drop(int32 target_id, const char *what,
									 const char *name);

#endif							/* MSGQ_CAPTURE_H */
