/*
 * owner.c
 *		The one place that runs SQL, and the one that changes the user.
 *
 * No function of msgq is SECURITY DEFINER.  What only the storage's owner may
 * do, making and dropping tables above all, is done between msgq_spi_begin
 * and msgq_spi_end, after the caller's own right was checked: as that owner,
 * under SECURITY_RESTRICTED_OPERATION, and with a search_path in which nobody
 * can put anything before pg_catalog.
 *
 * An error in between undoes all three with the (sub)transaction.
 *
 * What the owner reads and changes is described by tables of which the newest
 * version counts, whatever the isolation level of the caller: a queue is found
 * by the newest version of its row, and it is that which is to be changed.  So
 * SQL as the owner gets a new snapshot, and what the caller runs gets his.
 *
 * src/owner.c
 */
#include "msgq.h"

#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/execnodes.h"
#include "tcop/utility.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

#include "message.h"
#include "owner.h"
#include "queue.h"

/* Does what is run now get a new snapshot?  Set where SPI is opened. */
static bool latest = false;

/*
 * Before anything is changed: raises 25006 on a standby, in a read-only
 * transaction, and in a parallel worker.  command is the caller's name.
 */
void
msgq_begin_change(const char *command)
{
	PreventCommandDuringRecovery(command);
	PreventCommandIfReadOnly(command);
	PreventCommandIfParallelMode(command);
}

/*
 * Opens SPI with a pinned search_path, as the given role, or as the current
 * user if that is InvalidOid.
 */
void
msgq_spi_begin(MsgqSpi *spi, Oid act_as)
{
	GetUserIdAndSecContext(&spi->user, &spi->security_context);
	if (OidIsValid(act_as))
		SetUserIdAndSecContext(act_as, spi->security_context |
							   SECURITY_LOCAL_USERID_CHANGE |
							   SECURITY_RESTRICTED_OPERATION);
	spi->latest = latest;
	latest = OidIsValid(act_as);
	spi->guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
							 true, 0, false);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
}

void
msgq_spi_end(const MsgqSpi *spi)
{
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "could not disconnect from SPI");
	AtEOXact_GUC(false, spi->guc_level);
	latest = spi->latest;
	SetUserIdAndSecContext(spi->user, spi->security_context);
}

/*
 * For the worker, which is a superuser otherwise: whatever is evaluated in
 * between runs as the storage's owner.  An error undoes it.
 */
void
msgq_become_owner(MsgqSpi *before)
{
	GetUserIdAndSecContext(&before->user, &before->security_context);
	SetUserIdAndSecContext(msgq_storage_owner(), before->security_context |
						   SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
}

void
msgq_become_caller(const MsgqSpi *before)
{
	SetUserIdAndSecContext(before->user, before->security_context);
}

/* Runs a command, with parameters or without; a code as SPI's functions. */
static int
execute(const char *sql, int nargs, const Oid *types, const Datum *values,
		const char *nulls, bool read_only)
{
	SPIPlanPtr	plan = SPI_prepare(sql, nargs, (Oid *) types);

	if (plan == NULL)
		return SPI_result;
	return SPI_execute_snapshot(plan, (Datum *) values, nulls,
								latest ? GetLatestSnapshot() : InvalidSnapshot,
								InvalidSnapshot, read_only, true, 0);
}

/* Runs a command whose text is made by printf. */
void
msgq_spi_run(const char *format,...)
{
	StringInfoData sql;
	int			needed;
	int			result;

	initStringInfo(&sql);
	for (;;)
	{
		va_list		arguments;

		va_start(arguments, format);
		needed = appendStringInfoVA(&sql, format, arguments);
		va_end(arguments);
		if (needed == 0)
			break;
		enlargeStringInfo(&sql, needed);
	}
	result = execute(sql.data, 0, NULL, NULL, NULL, false);
	if (result < 0)
		elog(ERROR, "could not execute \"%s\": %s", sql.data,
			 SPI_result_code_string(result));
	pfree(sql.data);
}

/*
 * Runs a command with parameters; nulls may be NULL.  What it returns is in
 * SPI_processed and SPI_tuptable.
 */
void
msgq_spi_run_with(const char *sql, int expected, int nargs, const Oid *types,
				  const Datum *values, const bool *nulls, bool read_only)
{
	char	   *flags = palloc(nargs + 1);
	int			result;

	for (int i = 0; i < nargs; i++)
		flags[i] = nulls && nulls[i] ? 'n' : ' ';
	flags[nargs] = '\0';
	result = execute(sql, nargs, types, values, flags, read_only);
	if (result != expected)
		elog(ERROR, "could not execute \"%s\": %s", sql,
			 SPI_result_code_string(result));
}

/*
 * Appends the rows that SPI has returned, after the first given columns, to
 * the function's result.
 */
void
msgq_spi_put_rows(ReturnSetInfo *result, int nfirst, const Datum *first)
{
	TupleDesc	descriptor = result->setDesc;
	Datum	   *values = palloc(sizeof(Datum) * descriptor->natts);
	bool	   *nulls = palloc(sizeof(bool) * descriptor->natts);

	for (uint64 row = 0; row < SPI_processed; row++)
	{
		for (int i = 0; i < descriptor->natts; i++)
		{
			if (i < nfirst)
			{
				values[i] = first[i];
				nulls[i] = false;
				continue;
			}
			values[i] = SPI_getbinval(SPI_tuptable->vals[row],
									  SPI_tuptable->tupdesc,
									  i - nfirst + 1, &nulls[i]);
			if (!nulls[i] && TupleDescAttr(descriptor, i)->attlen == -1)
				values[i] = msgq_self_contained(values[i]);
		}
		tuplestore_putvalues(result->setResult, descriptor, values, nulls);
	}
}
