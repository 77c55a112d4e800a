/*
 * admin.h
 *		What is common to making, changing and dropping.
 *
 * src/admin.h
 */
#ifndef MSGQ_ADMIN_H
#define MSGQ_ADMIN_H

extern void msgq_lock_metadata(void);
extern bool msgq_try_lock_metadata(void);
extern void msgq_refuse_taken_name(const char *name, const char *except);
extern void msgq_bindings_drop(int32 target_id);
extern void msgq_use_default_tablespace(void);
extern void msgq_segment_create(int32 queue_id, int n, int level, bool ordered,
								const char *state);
extern void msgq_handle_create(int32 queue_id, int nsegments);
extern void msgq_segment_comment(int32 queue_id, int n, const char *name);

#endif							/* MSGQ_ADMIN_H */
