/*
 * settings.h
 *		The settings of a queue.
 *
 * src/settings.h
 */
#ifndef MSGQ_SETTINGS_H
#define MSGQ_SETTINGS_H

#include "utils/jsonb.h"

#include "queue.h"

/* A row of msgq.queue, or its part that is settings. */
typedef struct MsgqQueueRow
{
	Datum		values[Natts_queue];
	bool		nulls[Natts_queue];
} MsgqQueueRow;

#define MSGQ_FIRST_SETTING	Anum_queue_visibility_timeout
#define MSGQ_LAST_SETTING	Anum_queue_archive_retention

static inline void
set_null(MsgqQueueRow *row, AttrNumber column)
{
	row->values[column - 1] = (Datum) 0;
	row->nulls[column - 1] = true;
}

static inline void
set_value(MsgqQueueRow *row, AttrNumber column, Datum value)
{
	row->values[column - 1] = value;
	row->nulls[column - 1] = false;
}

/* Called with each key of an object of settings, and its value. */
typedef void (*MsgqSettingReader) (void *settings, const char *key,
								   const JsonbValue *value);

extern void msgq_settings_each(Jsonb *changes, MsgqSettingReader reader,
							   void *settings);
extern char *msgq_setting_text(const char *key, const JsonbValue *value);
extern int32 msgq_setting_int(const MsgqQueueRow *row, AttrNumber column);
extern char *msgq_setting_as_text(const MsgqQueueRow *row, AttrNumber column);
extern void msgq_settings_check(const MsgqQueueRow *row);
extern void msgq_settings_insert(MsgqQueueRow *row);
extern void msgq_settings_read(int32 queue_id, MsgqQueueRow *row);
extern void msgq_settings_update(MsgqQueueRow *row);
extern void msgq_settings_compare(const char *name, const MsgqQueueRow *wanted,
								  const MsgqQueueRow *present);
extern void msgq_settings_set(MsgqQueueRow *row, Jsonb *changes);

#endif							/* MSGQ_SETTINGS_H */
