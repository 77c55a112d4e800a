/*
 * argument.h
 *		The arguments of SQL functions, checked.
 *
 * The functions that may be called with NULL are not STRICT in SQL, since a
 * NULL that makes no sense shall be an error and not a NULL result.
 *
 * src/argument.h
 */
#ifndef MSGQ_ARGUMENT_H
#define MSGQ_ARGUMENT_H

#include "fmgr.h"
#include "utils/array.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

extern void msgq_check_not_null(bool is_null, const char *argument);
extern Datum msgq_arg(FunctionCallInfo fcinfo, int n, const char *argument);
extern char *msgq_arg_text(FunctionCallInfo fcinfo, int n, const char *argument);
extern char *msgq_arg_name(FunctionCallInfo fcinfo, int n, const char *argument);
extern int	msgq_arg_count(FunctionCallInfo fcinfo, int n, const char *argument);
extern bool msgq_arg_bool(FunctionCallInfo fcinfo, int n, const char *argument);

extern void msgq_check_name(const char *name, const char *argument);
extern void msgq_check_new_name(const char *name, const char *what);
extern void msgq_check_interval(const Interval *interval, const char *argument);
extern int64 msgq_interval_span(const Interval *interval);
extern TimestampTz msgq_time_after(TimestampTz now, const Interval *interval);
extern void msgq_check_headers(Jsonb *headers);
extern void msgq_check_array(ArrayType *array, const char *argument);
extern Datum *msgq_array_elements(ArrayType *array, const char *argument,
								  bool **nulls, int *n);
extern Datum *msgq_companion_elements(FunctionCallInfo fcinfo, int i,
									  const char *argument, int n,
									  const char *what, bool **nulls);
extern ArrayType *msgq_int8_array(const int64 *values, int n);
extern void msgq_refuse_transaction_block(FunctionCallInfo fcinfo,
										  const char *command,
										  const char *detail,
										  const char *hint);

#endif							/* MSGQ_ARGUMENT_H */
