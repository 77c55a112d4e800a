/*
 * settings.c
 *		The settings of a queue: what they may be, and where they are kept.
 *
 * A setting is a column of msgq.queue, an argument of create_queue, and a key
 * of alter_queue's object.  All of it is checked as a whole, so that settings
 * that do not go together are refused however they came about.
 *
 * Rows are read and written by SQL as the storage's owner, while the caller
 * holds the lock on msgq.queue (admin.c).
 *
 * src/settings.c
 */
#include "msgq.h"

#include <math.h>

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#include "argument.h"
#include "owner.h"
#include "settings.h"

typedef struct Setting
{
	const char *name;
	Oid			type;
	bool		nullable;
	bool		fixed;			/* cannot be changed */
} Setting;

/* By column of msgq.queue, which is in the order of create_queue's arguments. */
static const Setting settings[Natts_queue + 1] = {
	[Anum_queue_visibility_timeout] = {"visibility_timeout", INTERVALOID, false, false},
	[Anum_queue_max_deliveries] = {"max_deliveries", INT4OID, false, false},
	[Anum_queue_dead_letter_queue] = {"dead_letter_queue", TEXTOID, true, false},
	[Anum_queue_retry_delay] = {"retry_delay", INTERVALOID, false, false},
	[Anum_queue_retry_multiplier] = {"retry_multiplier", FLOAT8OID, false, false},
	[Anum_queue_max_retry_delay] = {"max_retry_delay", INTERVALOID, false, false},
	[Anum_queue_message_ttl] = {"message_ttl", INTERVALOID, true, false},
	[Anum_queue_max_length] = {"max_length", INT8OID, true, false},
	[Anum_queue_overflow] = {"overflow", TEXTOID, false, false},
	[Anum_queue_max_message_bytes] = {"max_message_bytes", INT4OID, false, false},
	[Anum_queue_max_in_flight] = {"max_in_flight", INT4OID, true, false},
	[Anum_queue_priorities] = {"priorities", INT4OID, false, true},
	[Anum_queue_ordered] = {"ordered", BOOLOID, false, true},
	[Anum_queue_on_exhausted] = {"on_exhausted", TEXTOID, false, false},
	[Anum_queue_dedup_window] = {"dedup_window", INTERVALOID, false, false},
	[Anum_queue_archive_retention] = {"archive_retention", INTERVALOID, true, false},
};

/* ---------------------------------------------------------------------------
 * Checking settings
 * ---------------------------------------------------------------------------
 */

static void
bad_setting(AttrNumber column, const char *problem)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("argument \"%s\" %s", settings[column].name, problem)));
}

int32
msgq_setting_int(const MsgqQueueRow *row, AttrNumber column)
{
	return DatumGetInt32(row->values[column - 1]);
}

static bool
text_setting_is(const MsgqQueueRow *row, AttrNumber column, const char *value)
{
	return strcmp(TextDatumGetCString(row->values[column - 1]), value) == 0;
}

/* All intervals are checked alike; those that are given. */
static void
check_times(const MsgqQueueRow *row)
{
	for (AttrNumber column = MSGQ_FIRST_SETTING; column <= MSGQ_LAST_SETTING; column++)
	{
		if (settings[column].type == INTERVALOID && !row->nulls[column - 1])
			msgq_check_interval(DatumGetIntervalP(row->values[column - 1]),
								settings[column].name);
	}
}

static void
check_ranges(const MsgqQueueRow *row)
{
	Interval	zero = {0};
	int32		bytes = msgq_setting_int(row, Anum_queue_max_message_bytes);
	int32		priorities = msgq_setting_int(row, Anum_queue_priorities);
	float8		multiplier =
	DatumGetFloat8(row->values[Anum_queue_retry_multiplier - 1]);

	if (!DatumGetBool(DirectFunctionCall2(interval_gt,
										  row->values[Anum_queue_visibility_timeout - 1],
										  IntervalPGetDatum(&zero))))
		bad_setting(Anum_queue_visibility_timeout, "must be greater than zero");
	if (msgq_interval_span(DatumGetIntervalP(row->values[Anum_queue_dedup_window - 1])) <= 0)
		bad_setting(Anum_queue_dedup_window, "must be greater than zero");
	if (!row->nulls[Anum_queue_archive_retention - 1] &&
		msgq_interval_span(DatumGetIntervalP(row->values[Anum_queue_archive_retention - 1])) <= 0)
		bad_setting(Anum_queue_archive_retention, "must be greater than zero");
	if (msgq_setting_int(row, Anum_queue_max_deliveries) < 0)
		bad_setting(Anum_queue_max_deliveries, "must not be negative");
	if (isnan(multiplier) || isinf(multiplier) || multiplier < 1)
		bad_setting(Anum_queue_retry_multiplier,
					"must be a finite number of at least 1");
	if (bytes < 1 || bytes > MSGQ_MAX_MESSAGE_BYTES)
		bad_setting(Anum_queue_max_message_bytes,
					psprintf("must be from 1 to %d", MSGQ_MAX_MESSAGE_BYTES));
	if (!row->nulls[Anum_queue_max_length - 1] &&
		DatumGetInt64(row->values[Anum_queue_max_length - 1]) < 1)
		bad_setting(Anum_queue_max_length, "must be greater than zero");
	if (!row->nulls[Anum_queue_max_in_flight - 1] &&
		msgq_setting_int(row, Anum_queue_max_in_flight) < 1)
		bad_setting(Anum_queue_max_in_flight, "must be greater than zero");
	if (priorities < 1 || priorities > MSGQ_MAX_PRIORITIES)
		bad_setting(Anum_queue_priorities,
					psprintf("must be from 1 to %d", MSGQ_MAX_PRIORITIES));
	if (!text_setting_is(row, Anum_queue_overflow, "reject") &&
		!text_setting_is(row, Anum_queue_overflow, "drop_oldest") &&
		!text_setting_is(row, Anum_queue_overflow, "dead_letter"))
		bad_setting(Anum_queue_overflow,
					"must be \"reject\", \"drop_oldest\" or \"dead_letter\"");
	if (!text_setting_is(row, Anum_queue_on_exhausted, "skip") &&
		!text_setting_is(row, Anum_queue_on_exhausted, "block"))
		bad_setting(Anum_queue_on_exhausted, "must be \"skip\" or \"block\"");
}

/* Settings that do not go together. */
static void
check_combinations(const MsgqQueueRow *row)
{
	if (msgq_setting_int(row, Anum_queue_priorities) > 1 &&
		DatumGetBool(row->values[Anum_queue_ordered - 1]))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("an ordered queue cannot have priorities"),
				 errdetail("The order of a group's messages and an order by priority contradict each other."),
				 errhint("Use a queue for each priority, or leave out \"priorities\" or \"ordered\".")));
}

void
msgq_settings_check(const MsgqQueueRow *row)
{
	for (AttrNumber column = MSGQ_FIRST_SETTING; column <= MSGQ_LAST_SETTING; column++)
	{
		if (!settings[column].nullable)
			msgq_check_not_null(row->nulls[column - 1], settings[column].name);
	}
	check_times(row);
	check_ranges(row);
	check_combinations(row);
}

/* ---------------------------------------------------------------------------
 * Reading and writing
 * ---------------------------------------------------------------------------
 */

/* Makes the row.  Within SPI, as the owner. */
void
msgq_settings_insert(MsgqQueueRow *row)
{
	Oid			types[Natts_queue] = {INT4OID, TEXTOID, TIMESTAMPTZOID};

	for (AttrNumber column = MSGQ_FIRST_SETTING; column <= MSGQ_LAST_SETTING; column++)
		types[column - 1] = settings[column].type;
	msgq_spi_run_with("INSERT INTO msgq.queue VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, "
					  "$10, $11, $12, $13, $14, $15, $16, $17, $18, $19)",
					  SPI_OK_INSERT, MSGQ_LAST_SETTING, types, row->values,
					  row->nulls, false);
}

/* Reads the row of a queue, into the current memory context. */
void
msgq_settings_read(int32 queue_id, MsgqQueueRow *row)
{
	MemoryContext caller = CurrentMemoryContext;
	MsgqSpi		spi;

	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run("SELECT * FROM msgq.queue WHERE id = %d", queue_id);
	if (SPI_processed != 1)
		elog(ERROR, "found no row of queue number %d", queue_id);
	msgq_read_columns(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, Natts_queue,
					  row->values, row->nulls);
	MemoryContextSwitchTo(caller);
	for (int i = 0; i < Natts_queue; i++)
	{
		Form_pg_attribute column = TupleDescAttr(SPI_tuptable->tupdesc, i);

		if (!row->nulls[i])
			row->values[i] = datumCopy(row->values[i], column->attbyval,
									   column->attlen);
	}
	msgq_spi_end(&spi);
}

/* Writes all settings of a row that is there. */
void
msgq_settings_update(MsgqQueueRow *row)
{
	StringInfoData sql;
	Oid			types[Natts_queue] = {INT4OID, TEXTOID, TIMESTAMPTZOID};
	MsgqSpi		spi;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "UPDATE msgq.queue SET name = $2, created_at = $3");
	for (AttrNumber column = MSGQ_FIRST_SETTING; column <= MSGQ_LAST_SETTING; column++)
	{
		types[column - 1] = settings[column].type;
		appendStringInfo(&sql, ", %s = $%d", settings[column].name, column);
	}
	appendStringInfoString(&sql, " WHERE id = $1");
	msgq_spi_begin(&spi, msgq_storage_owner());
	msgq_spi_run_with(sql.data, SPI_OK_UPDATE, MSGQ_LAST_SETTING, types, row->values,
					  row->nulls, false);
	msgq_spi_end(&spi);
}

/* ---------------------------------------------------------------------------
 * Comparing
 * ---------------------------------------------------------------------------
 */

/* A setting as text, in the current memory context. */
char	   *
msgq_setting_as_text(const MsgqQueueRow *row, AttrNumber column)
{
	Oid			output;
	bool		is_varlena;

	if (row->nulls[column - 1])
		return "NULL";
	getTypeOutputInfo(settings[column].type, &output, &is_varlena);
	return OidOutputFunctionCall(output, row->values[column - 1]);
}

/* The same for a message: text in quotes, so that an empty one can be seen. */
static char *
quoted_setting(const MsgqQueueRow *row, AttrNumber column)
{
	char	   *text = msgq_setting_as_text(row, column);

	if (row->nulls[column - 1] || settings[column].type != TEXTOID)
		return text;

	return psprintf("\"%s\"", text);
}

/* Says which settings of an existing queue are not what the caller wants. */
void
msgq_settings_compare(const char *name, const MsgqQueueRow *wanted,
					  const MsgqQueueRow *present)
{
	StringInfoData differences;

	initStringInfo(&differences);
	for (AttrNumber column = MSGQ_FIRST_SETTING; column <= MSGQ_LAST_SETTING; column++)
	{
		char	   *is = quoted_setting(present, column);
		char	   *should = quoted_setting(wanted, column);

		if (present->nulls[column - 1] != wanted->nulls[column - 1] ||
			strcmp(is, should) != 0)
			appendStringInfo(&differences, "%s%s is %s and not %s",
							 differences.len > 0 ? ", " : "",
							 settings[column].name, is, should);
	}
	if (differences.len == 0)
		ereport(NOTICE,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("queue \"%s\" already exists, skipping", name)));
	else
		ereport(WARNING,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("queue \"%s\" already exists with other settings", name),
				 errdetail("%s.", differences.data),
				 errhint("Use msgq.alter_queue() to change them.")));
}

/* ---------------------------------------------------------------------------
 * Changing
 * ---------------------------------------------------------------------------
 */

/* The column of this name; raises 22023 if there is no such setting. */
static AttrNumber
setting_column(const char *key)
{
	for (AttrNumber column = MSGQ_FIRST_SETTING; column <= MSGQ_LAST_SETTING; column++)
	{
		if (strcmp(settings[column].name, key) == 0)
			return column;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("a queue has no setting \"%s\"", key)));
	return InvalidAttrNumber;
}

/* The JSON value as text for the setting's input function (else 22023). */
static char *
value_as_text(AttrNumber column, const JsonbValue *value)
{
	Oid			type = settings[column].type;

	if (value->type == jbvString && (type == TEXTOID || type == INTERVALOID))
		return pnstrdup(value->val.string.val, value->val.string.len);
	if (value->type == jbvNumeric && (type == INT4OID || type == INT8OID ||
									  type == FLOAT8OID))
		return DatumGetCString(DirectFunctionCall1(numeric_out,
												   NumericGetDatum(value->val.numeric)));
	if (value->type == jbvBool && type == BOOLOID)
		return value->val.boolean ? "true" : "false";
	bad_setting(column, type == BOOLOID ? "must be a JSON boolean" :
				type == TEXTOID || type == INTERVALOID ?
				"must be a JSON string" : "must be a JSON number");
	return NULL;
}

/*
 * Calls the reader for each setting of an object, in no order.  Raises 22023 for
 * what is no object.
 */
void
msgq_settings_each(Jsonb *changes, MsgqSettingReader reader, void *target)
{
	JsonbIterator *iterator = JsonbIteratorInit(&changes->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	char	   *key = NULL;

	if (!JB_ROOT_IS_OBJECT(changes))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be a JSON object", "settings")));
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			key = pnstrdup(value.val.string.val, value.val.string.len);
		else if (token == WJB_VALUE)
			reader(target, key, &value);
	}
}

/*
 * The text of a setting's value, whatever the setting's type is, for its input
 * function; NULL for null.  Raises 22023 for an object or an array.
 */
char	   *
msgq_setting_text(const char *key, const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvNull:
			return NULL;
		case jbvString:
			return pnstrdup(value->val.string.val, value->val.string.len);
		case jbvNumeric:
			return DatumGetCString(DirectFunctionCall1(numeric_out,
													   NumericGetDatum(value->val.numeric)));
		case jbvBool:
			return value->val.boolean ? "true" : "false";
		default:
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("setting \"%s\" must not be an object or an array", key)));
	}
	return NULL;
}

/* Overrides one setting of the row. */
static void
set_setting(void *target, const char *key, const JsonbValue *value)
{
	MsgqQueueRow *row = target;
	AttrNumber	column = setting_column(key);
	char	   *before = msgq_setting_as_text(row, column);
	Oid			input;
	Oid			io_param;

	row->nulls[column - 1] = value->type == jbvNull;
	if (value->type != jbvNull)
	{
		getTypeInputInfo(settings[column].type, &input, &io_param);
		row->values[column - 1] =
			OidInputFunctionCall(input, value_as_text(column, value),
								 io_param, -1);
	}
	if (settings[column].fixed &&
		strcmp(before, msgq_setting_as_text(row, column)) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("setting \"%s\" of a queue cannot be changed", key)));
}

/* Overrides settings of the row by those of an object. */
void
msgq_settings_set(MsgqQueueRow *row, Jsonb *changes)
{
	msgq_settings_each(changes, set_setting, row);
}
