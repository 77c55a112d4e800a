/*
 * streamadmin.h
 *		Making the tables of a stream.
 *
 * src/streamadmin.h
 */
#ifndef MSGQ_STREAMADMIN_H
#define MSGQ_STREAMADMIN_H

#include "stream.h"

extern void msgq_stream_segment_create(int32 stream_id, int n,
									   const char *name);
extern void msgq_stream_handle_create(int32 stream_id);

#endif							/* MSGQ_STREAMADMIN_H */
