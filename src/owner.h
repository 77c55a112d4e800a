/*
 * owner.h
 *		SQL on behalf of the storage's owner, and SQL on behalf of the caller.
 *
 * src/owner.h
 */
#ifndef MSGQ_OWNER_H
#define MSGQ_OWNER_H

#include "executor/spi.h"

/* What msgq_spi_end puts back. */
typedef struct MsgqSpi
{
	Oid			user;
	int			security_context;
	int			guc_level;
	bool		latest;			/* of whoever was there before */
} MsgqSpi;

extern void msgq_begin_change(const char *command);
extern void msgq_spi_begin(MsgqSpi *spi, Oid act_as);
extern void msgq_spi_end(const MsgqSpi *spi);
extern void msgq_become_owner(MsgqSpi *before);
extern void msgq_become_caller(const MsgqSpi *before);
extern void msgq_spi_run(const char *format,...) pg_attribute_printf(1, 2);
extern void msgq_spi_run_with(const char *sql, int expected, int nargs,
							  const Oid *types, const Datum *values,
							  const bool *nulls, bool read_only);
extern void msgq_spi_put_rows(ReturnSetInfo *result, int nfirst,
							  const Datum *first);

#endif							/* MSGQ_OWNER_H */
