/*
 * argument.c
 *		Checks and converts the arguments of SQL functions.
 *
 * Every error names the argument.  None shows the value of a body.
 *
 * src/argument.c
 */
#include "msgq.h"

#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "nodes/parsenodes.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"

#include "argument.h"

/* No interval may be longer: what is due later than this was a mistake. */
#define MAX_INTERVAL_YEARS	100

/* Header names that begin so are the server's. */
#define RESERVED_PREFIX		"msgq-"

/* Raises 22004 if the argument is NULL. */
void
msgq_check_not_null(bool is_null, const char *argument)
{
	if (is_null)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"%s\" must not be null", argument)));
}

/* Argument n, which must not be NULL (22004). */
Datum
msgq_arg(FunctionCallInfo fcinfo, int n, const char *argument)
{
	msgq_check_not_null(PG_ARGISNULL(n), argument);
	return PG_GETARG_DATUM(n);
}

/* A text argument as a C string, in the current memory context. */
char	   *
msgq_arg_text(FunctionCallInfo fcinfo, int n, const char *argument)
{
	return TextDatumGetCString(msgq_arg(fcinfo, n, argument));
}

/*
 * The name of something that exists or not: any text but one that is too
 * long to be a name (22023).  Never truncated or folded.
 */
char	   *
msgq_arg_name(FunctionCallInfo fcinfo, int n, const char *argument)
{
	char	   *name = msgq_arg_text(fcinfo, n, argument);

	msgq_check_name(name, argument);
	return name;
}

/* Is it short enough to be one (else 22023)? */
void
msgq_check_name(const char *name, const char *argument)
{
	if (strlen(name) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" is too long", argument),
				 errdetail("A name has at most %d bytes, this one has %zu.",
						   NAMEDATALEN - 1, strlen(name))));
}

/* A number of messages, 1 to MSGQ_MAX_BATCH (else 22023 or 54000). */
int
msgq_arg_count(FunctionCallInfo fcinfo, int n, const char *argument)
{
	int32		count = DatumGetInt32(msgq_arg(fcinfo, n, argument));

	if (count <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be greater than zero", argument)));
	if (count > MSGQ_MAX_BATCH)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("argument \"%s\" must not be greater than %d",
						argument, MSGQ_MAX_BATCH)));
	return count;
}

bool
msgq_arg_bool(FunctionCallInfo fcinfo, int n, const char *argument)
{
	return DatumGetBool(msgq_arg(fcinfo, n, argument));
}

/* Control characters, and what would break a line in a log or a list. */
static bool
is_unprintable(const char *character)
{
	unsigned char c = (unsigned char) *character;
	pg_wchar	code;

	if (c < 0x80)
		return c < 0x20 || c == 0x7f;
	if (GetDatabaseEncoding() != PG_UTF8)
		return false;
	code = utf8_to_unicode((const unsigned char *) character);
	return code < 0xa0 || code == 0x2028 || code == 0x2029;
}

/*
 * The name of something to be made, a queue perhaps: 1 to 63 bytes of
 * printable text (22023).
 */
void
msgq_check_new_name(const char *name, const char *what)
{
	if (name[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a %s's name must not be empty", what)));
	if (strlen(name) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a %s's name must not be longer than %d bytes",
						what, NAMEDATALEN - 1),
				 errdetail("This one has %zu bytes.", strlen(name))));
	for (const char *c = name; *c != '\0'; c += pg_mblen(c))
	{
		if (is_unprintable(c))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("a %s's name must not contain control characters",
							what),
					 errdetail("There is one at byte %d.", (int) (c - name) + 1)));
	}
}

/* Raises 22023 unless the interval is a finite one of 0 to 100 years. */
void
msgq_check_interval(const Interval *interval, const char *argument)
{
	double		span;

	if (!msgq_interval_is_finite(interval))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be finite", argument)));

	/* An estimate, in microseconds, that cannot overflow. */
	span = interval->time + USECS_PER_DAY *
		(interval->day + DAYS_PER_YEAR / MONTHS_PER_YEAR * interval->month);
	if (span < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be negative", argument)));
	if (span > (double) USECS_PER_DAY * DAYS_PER_YEAR * MAX_INTERVAL_YEARS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be longer than %d years",
						argument, MAX_INTERVAL_YEARS)));
}

/*
 * A checked interval as microseconds, with days of 24 hours and months of 30
 * days: the same whatever the session's time zone, for times that different
 * sessions must agree upon.
 */
int64
msgq_interval_span(const Interval *interval)
{
	return interval->time + USECS_PER_DAY *
		(interval->day + (int64) interval->month * DAYS_PER_MONTH);
}

/*
 * now + interval, for a checked interval; never before now, which a month
 * that is shorter than the days taken away could be.
 */
TimestampTz
msgq_time_after(TimestampTz now, const Interval *interval)
{
	Datum		later;

	/* Days and months need the time zone; plain times are the common case. */
	if (interval->day == 0 && interval->month == 0)
		return now + interval->time;
	later = DirectFunctionCall2(timestamptz_pl_interval,
								TimestampTzGetDatum(now),
								IntervalPGetDatum(interval));
	return Max(now, DatumGetTimestampTz(later));
}

/* Raises 22023 for several dimensions, 54000 for too many elements. */
void
msgq_check_array(ArrayType *array, const char *argument)
{
	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be a one-dimensional array",
						argument)));
	if (ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array)) > MSGQ_MAX_BATCH)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("argument \"%s\" must not have more than %d elements",
						argument, MSGQ_MAX_BATCH)));
}

/*
 * The elements of an array of checked shape.  Where nulls is NULL, an element
 * that is NULL raises 22004.
 */
Datum	   *
msgq_array_elements(ArrayType *array, const char *argument, bool **nulls,
					int *n)
{
	Datum	   *elements;
	int16		length;
	bool		by_value;
	char		alignment;

	msgq_check_array(array, argument);
	if (nulls == NULL && array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"%s\" must not contain nulls", argument)));
	get_typlenbyvalalign(ARR_ELEMTYPE(array), &length, &by_value, &alignment);
	deconstruct_array(array, ARR_ELEMTYPE(array), length, by_value, alignment,
					  &elements, nulls, n);
	return elements;
}

/*
 * The elements of argument number i, an array that goes with n others and has
 * as many (22023); what says what those are.
 */
Datum	   *
msgq_companion_elements(FunctionCallInfo fcinfo, int i, const char *argument,
						int n, const char *what, bool **nulls)
{
	int			count;
	Datum	   *elements = msgq_array_elements(PG_GETARG_ARRAYTYPE_P(i),
											   argument, nulls, &count);

	if (count != n)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must have as many elements as there are %s",
						argument, what),
				 errdetail("It has %d, and there are %d %s.", count, n, what)));
	return elements;
}

/* A bigint[]. */
ArrayType  *
msgq_int8_array(const int64 *values, int n)
{
	Datum	   *elements = palloc(sizeof(Datum) * Max(n, 1));

	for (int i = 0; i < n; i++)
		elements[i] = Int64GetDatum(values[i]);
	return construct_array(elements, n, INT8OID, sizeof(int64),
						   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE);
}

/* A procedure that ends transactions cannot run where it may not (25001). */
void
msgq_refuse_transaction_block(FunctionCallInfo fcinfo, const char *command,
							  const char *detail, const char *hint)
{
	CallContext *context = (CallContext *) fcinfo->context;

	if (context && IsA(context, CallContext) && !context->atomic)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
			 errmsg("%s cannot run inside a transaction block", command),
			 errdetail("%s", detail),
			 errhint("%s", hint)));
}

/* Headers are a JSON object without names that are the server's (22023). */
void
msgq_check_headers(Jsonb *headers)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	int			reserved = strlen(RESERVED_PREFIX);

	if (!JB_ROOT_IS_OBJECT(headers))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("headers must be a JSON object")));
	iterator = JsonbIteratorInit(&headers->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY && value.val.string.len >= reserved &&
			memcmp(value.val.string.val, RESERVED_PREFIX, reserved) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("header \"%.*s\" is reserved",
							value.val.string.len, value.val.string.val),
					 errdetail("Names that begin with \"%s\" are set by the server.",
							   RESERVED_PREFIX)));
	}
}
