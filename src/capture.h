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

/* In a format: has the capture whose row is "c" triggers?  Else it is dead. */
#define MSGQ_CAPTURE_LIVES \
	"EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.relation " \
	"AND t.tgfoid = 'msgq.capture_changes()'::regprocedure " \
	"AND t.tgname ^@ format('msgq_capture_%%s_', c.id))"

extern void msgq_capture_init(void);

#endif							/* MSGQ_CAPTURE_H */
