/*
 * cron.c
 *		Reads specifications of schedules, and finds when they are due.
 *
 * A specification is one of cron, five fields for local times, or an interval,
 * "@every 30s".  Nothing is stored here, nothing is locked, and nobody's right
 * is needed: due times are computed from the specification, the time zone and an
 * instant.  The calendar and the time zones are PostgreSQL's.
 *
 * An interval is due at anchor + k * interval, whatever the time zone.
 *
 * The fields of cron are matched against what a clock on the wall shows in the
 * time zone.  Such a clock is turned forward or back now and then.  A schedule is
 * due when the clock reaches a matching minute for the first time, or is turned
 * past it:
 *
 *	1. Minutes that a clock is turned past are due at the instant when it is,
 *	   and several of them are due there once.
 *	2. Minutes that come again after it was turned back are not due again,
 *	   unless the field of hours begins with a star: what is to happen all day
 *	   long goes on.
 *
 * So the search goes through the spans between two changes of the offset from
 * UTC.  Within one, local time is the instant plus the offset, and plain
 * arithmetic finds the next match.  "reached" is the latest local time that the
 * clock had shown before the span: what lies between it and the begin of the
 * span was skipped, and what lies before it was there already.  To know
 * that, the search begins some time before the instant it is asked for.
 *
 * Times are whole seconds since 2000-01-01, UTC or local.
 *
 * src/cron.c
 */
#include "msgq.h"

#include "common/int.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

#include "argument.h"
#include "cron.h"
#include "testing.h"

/* No clock was ever turned by more than this. */
#define MAX_TURN_DAYS		2

/* 29 February can be 40 years away from the next one on the same weekday. */
#define SEARCH_YEARS		50

#define MAX_SPEC_BYTES		255

/* No match. */
#define NEVER				PG_INT64_MAX

/* ---------------------------------------------------------------------------
 * Reading the fields
 * ---------------------------------------------------------------------------
 */

typedef enum FieldNumber
{
	FIELD_MINUTE,
	FIELD_HOUR,
	FIELD_DAY_OF_MONTH,
	FIELD_MONTH,
	FIELD_DAY_OF_WEEK,
	NFIELDS
} FieldNumber;

static const struct
{
	const char *name;
	int			low;
	int			high;			/* of what a star stands for */
	int			highest;		/* that may be written */
	const char *const *names;	/* of the values from low on; the first three
								 * letters count */
}			fields[NFIELDS] = {
	[FIELD_MINUTE] = {"minute", 0, 59, 59, NULL},
	[FIELD_HOUR] = {"hour", 0, 23, 23, NULL},
	[FIELD_DAY_OF_MONTH] = {"day of month", 1, 31, 31, NULL},
	[FIELD_MONTH] = {"month", 1, 12, 12, months},
	[FIELD_DAY_OF_WEEK] = {"day of week", 0, 6, 7, days},
};

#define NAME_LETTERS		3

#define FIELD_HINT \
	"A field is a star, or values and ranges, with commas between them, perhaps with steps; ?, L, W and # are not supported."

static const struct
{
	const char *alias;
	const char *fields;
}			aliases[] = {
	{"@yearly", "0 0 1 1 *"},
	{"@annually", "0 0 1 1 *"},
	{"@monthly", "0 0 1 * *"},
	{"@weekly", "0 0 * * 0"},
	{"@daily", "0 0 * * *"},
	{"@midnight", "0 0 * * *"},
	{"@hourly", "0 * * * *"},
};

/* Reads one field. */
typedef struct FieldReader
{
	const char *spec;			/* all of it, for messages */
	FieldNumber number;
	const char *field;			/* the text of the field */
	const char *next;			/* what is to be read */
} FieldReader;

static void
refuse_spec(const char *spec, const char *problem, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid schedule \"%s\"", spec),
			 errdetail("%s", problem),
			 errhint("%s", hint)));
}

static void
refuse_field(const FieldReader *reader, const char *problem, const char *hint)
{
	refuse_spec(reader->spec,
				psprintf("The field for the %s, \"%s\", %s.",
						 fields[reader->number].name, reader->field, problem),
				hint);
}

/* The value of a name; -1 if it is none. */
static int
read_name(FieldReader *reader)
{
	const char *const *names = fields[reader->number].names;
	int			low = fields[reader->number].low;
	int			n = fields[reader->number].high - low + 1;

	for (int i = 0; names && i < n; i++)
	{
		if (pg_strncasecmp(reader->next, names[i], NAME_LETTERS) == 0)
		{
			reader->next += NAME_LETTERS;
			return low + i;
		}
	}
	return -1;
}

/* A number of at most three digits; -1 if there is none. */
static int
read_number(FieldReader *reader)
{
	int			value = 0;
	int			ndigits = 0;

	while (*reader->next >= '0' && *reader->next <= '9' && ndigits < 3)
	{
		value = value * 10 + (*reader->next++ - '0');
		ndigits++;
	}
	return ndigits > 0 ? value : -1;
}

/* A number or a name, as a value of the field. */
static int
read_value(FieldReader *reader)
{
	int			low = fields[reader->number].low;
	int			highest = fields[reader->number].highest;
	int			value = read_number(reader);

	if (value < 0)
		value = read_name(reader);
	if (value < 0)
		refuse_field(reader, fields[reader->number].names ?
					 "has something that is neither a number nor a name of three letters" :
					 "has something that is not a number", FIELD_HINT);
	if (value < low || value > highest)
		refuse_field(reader, psprintf("has %d, and values are from %d to %d",
									  value, low, highest),
					 FIELD_HINT);
	return value;
}

/* What follows "/"; 1 if there is none. */
static int
read_step(FieldReader *reader, int low, int high, bool is_single)
{
	int			step;

	if (*reader->next != '/')
		return 1;
	reader->next++;
	if (is_single)
		refuse_field(reader, "has a step after a single value",
					 "Write a range, as in 5-59/15, or a star before the step.");
	step = read_number(reader);
	if (step < 1 || step > Max(1, high - low))
		refuse_field(reader, psprintf("has a step that is not from 1 to %d",
									  Max(1, high - low)),
					 "A step says how far values are apart, and must lead to a second one.");
	return step;
}

/* A star, a value, or a range, perhaps with a step; adds its values. */
static void
read_element(FieldReader *reader, uint64 *values)
{
	int			low = fields[reader->number].low;
	int			high = fields[reader->number].high;
	bool		is_single = false;
	int			step;

	if (*reader->next == '*')
		reader->next++;
	else
	{
		low = high = read_value(reader);
		is_single = *reader->next != '-';
		if (!is_single)
		{
			reader->next++;
			high = read_value(reader);
		}
	}
	if (low > high)
		refuse_field(reader, psprintf("has a range that goes down, from %d to %d", low, high),
					 "Write two ranges, as in 22-23,0-5. Sunday is 7, too, as in 5-7.");
	step = read_step(reader, low, high, is_single);
	for (int value = low; value <= high; value += step)
		*values |= UINT64CONST(1) << value;
}

static uint64
read_field(const char *spec, FieldNumber number, const char *field)
{
	FieldReader reader = {.spec = spec,.number = number,.field = field,.next = field};
	uint64		values = 0;

	for (;;)
	{
		read_element(&reader, &values);
		if (*reader.next == '\0')
			return values;
		if (*reader.next != ',')
			refuse_field(&reader, psprintf("is not understood from \"%s\" on", reader.next),
						 FIELD_HINT);
		reader.next++;
	}
}

/* Splits the text, which it changes, into its fields. */
static void
split(const char *spec, char *text, const char **parts)
{
	char	   *rest = text;
	int			n = 0;

	for (char *part; (part = strtok_r(rest, " \t", &rest)) != NULL; n++)
	{
		if (n < NFIELDS)
			parts[n] = part;
	}
	if (n != NFIELDS)
		refuse_spec(spec, psprintf("It has %d fields, and %d are needed.", n, NFIELDS),
					n > NFIELDS ? "There are no fields for seconds and years." :
					"Give minute, hour, day of month, month and day of week, or use @every, @hourly, @daily, @weekly, @monthly or @yearly.");
}

static void
read_fields(const char *spec, const char *text, MsgqCron *cron)
{
	const char *parts[NFIELDS];

	split(spec, pstrdup(text), parts);
	cron->minutes = read_field(spec, FIELD_MINUTE, parts[FIELD_MINUTE]);
	cron->hours = read_field(spec, FIELD_HOUR, parts[FIELD_HOUR]);
	cron->days_of_month = read_field(spec, FIELD_DAY_OF_MONTH, parts[FIELD_DAY_OF_MONTH]);
	cron->months = read_field(spec, FIELD_MONTH, parts[FIELD_MONTH]);
	cron->days_of_week = read_field(spec, FIELD_DAY_OF_WEEK, parts[FIELD_DAY_OF_WEEK]);
	/* 7 is Sunday as well. */
	cron->days_of_week |= cron->days_of_week >> 7;
	cron->both_days = *parts[FIELD_DAY_OF_MONTH] == '*' ||
		*parts[FIELD_DAY_OF_WEEK] == '*';
	cron->through_hours = *parts[FIELD_HOUR] == '*';
}

/* ---------------------------------------------------------------------------
 * Reading a specification
 * ---------------------------------------------------------------------------
 */

/* The interval of "@every <interval>", in microseconds. */
static int64
read_interval(const char *spec, const char *text)
{
	Interval   *interval =
	DatumGetIntervalP(DirectFunctionCall3(interval_in, CStringGetDatum(text),
										  ObjectIdGetDatum(InvalidOid),
										  Int32GetDatum(-1)));

	msgq_check_interval(interval, "spec");
	if (interval->month != 0)
		refuse_spec(spec, "The interval has months or years, which are not always as long.",
					"Use the five fields of cron, as in \"0 0 1 * *\".");
	if (msgq_interval_span(interval) < USECS_PER_SEC)
		refuse_spec(spec, "The interval is shorter than a second.",
					"The shortest interval is 1s.");
	return msgq_interval_span(interval);
}

/* What an alias stands for; the text itself if it is none. */
static const char *
resolve_alias(const char *spec, const char *given)
{
	if (*given != '@')
		return given;

	for (size_t i = 0; i < lengthof(aliases); i++)
	{
		if (pg_strcasecmp(given, aliases[i].alias) == 0)
			return aliases[i].fields;
	}
	refuse_spec(spec, psprintf("There is no \"%s\".", given),
				"There are @every with an interval, @hourly, @daily, @midnight, @weekly, @monthly, @yearly and @annually.");
	return NULL;
}

/* The text without spaces around it. */
static char *
trimmed(const char *text)
{
	char	   *copy = pstrdup(text +strspn(text, " \t"));
	size_t		length = strlen(copy);

	while (length > 0 && strchr(" \t", copy[length - 1]))
		copy[--length] = '\0';
	return copy;
}

/*
 * Reads a specification.  Raises 22023 if it is none, or will never be due, and
 * 22007 or 22008 if the text after "@every" is no interval.
 */
void
msgq_cron_parse(const char *spec, MsgqCron *cron)
{
	static const char every[] = "@every";
	size_t		length = strlen(every);
	char	   *text;

	if (strlen(spec) > MAX_SPEC_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a schedule must not be longer than %d bytes", MAX_SPEC_BYTES),
				 errdetail("This one has %zu bytes.", strlen(spec))));
	memset(cron, 0, sizeof(MsgqCron));
	text = trimmed(spec);

	if (pg_strncasecmp(text, every, length) == 0 &&
		strchr(" \t", text[length]) && text[length] != '\0')
	{
		cron->every = read_interval(spec, text +length + 1);
		return;
	}
	read_fields(spec, resolve_alias(spec, text), cron);
	/* Whatever can be due, is so once in 40 years. */
	if (TIMESTAMP_NOT_FINITE(msgq_cron_next(cron, pg_tzset("GMT"), 0, 0)))
		refuse_spec(spec, "It is never due: there is no such day.",
					"Look at the fields for the day of month and the month.");
}

/* ---------------------------------------------------------------------------
 * Local times
 * ---------------------------------------------------------------------------
 */

static int64
floor_divide(int64 n, int64 divisor)
{
	return n >= 0 ? n / divisor : -((divisor - 1 - n) / divisor);
}

static inline bool
matches(uint64 values, int value)
{
	return (values & (UINT64CONST(1) << value)) != 0;
}

/* Does this day match, counted from 2000-01-01? */
static bool
day_matches(const MsgqCron *cron, int64 day)
{
	int			julian = (int) (day + POSTGRES_EPOCH_JDATE);
	int			year;
	int			month;
	int			day_of_month;
	bool		by_month;
	bool		by_week;

	j2date(julian, &year, &month, &day_of_month);
	if (!matches(cron->months, month))
		return false;
	by_month = matches(cron->days_of_month, day_of_month);
	by_week = matches(cron->days_of_week, j2day(julian));
	return cron->both_days ? by_month && by_week : by_month || by_week;
}

/* The first minute of a day, not before this one, that matches; -1 if none. */
static int
minute_of_day(const MsgqCron *cron, int from)
{
	for (int hour = from / MINS_PER_HOUR; hour < HOURS_PER_DAY; hour++)
	{
		int			first = hour == from / MINS_PER_HOUR ? from % MINS_PER_HOUR : 0;
		uint64		minutes = cron->minutes & (~UINT64CONST(0) << first);

		if (matches(cron->hours, hour) && minutes != 0)
			return hour * MINS_PER_HOUR + pg_rightmost_one_pos64(minutes);
	}
	return -1;
}

/* The first matching local time of those from "from" on, before "end". */
static int64
find_local(const MsgqCron *cron, int64 from, int64 end)
{
	int64		minutes = floor_divide(from + SECS_PER_MINUTE - 1, SECS_PER_MINUTE);
	int64		day = floor_divide(minutes, MINS_PER_HOUR * HOURS_PER_DAY);
	int			minute = (int) (minutes - day * MINS_PER_HOUR * HOURS_PER_DAY);

	for (; day * SECS_PER_DAY < end; day++, minute = 0)
	{
		int			found = day_matches(cron, day) ? minute_of_day(cron, minute) : -1;

		if (found >= 0)
		{
			int64		local = day * SECS_PER_DAY + found * SECS_PER_MINUTE;

			return local < end ? local : NEVER;
		}
	}
	return NEVER;
}

/* ---------------------------------------------------------------------------
 * Due times
 * ---------------------------------------------------------------------------
 */

/* The seconds between PostgreSQL's epoch and that of its time zone code. */
#define EPOCH_DIFFERENCE \
	((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY)

/* A time in which the offset from UTC does not change. */
typedef struct Span
{
	int64		start;
	int64		end;			/* NEVER: it has none */
	int64		offset;			/* local time minus UTC */
	int64		reached;		/* the latest local time before it */
} Span;

/* Sets where a span ends, and its offset, from its start; false if unknown. */
static bool
measure(Span *span, const pg_tz *zone)
{
	pg_time_t	start = span->start + EPOCH_DIFFERENCE;
	pg_time_t	boundary;
	long		offset;
	long		offset_after;
	int			isdst;
	int			found = pg_next_dst_boundary(&start, &offset, &isdst, &boundary,
											 &offset_after, &isdst, zone);

	span->offset = offset;
	span->end = found > 0 ? (int64) boundary - EPOCH_DIFFERENCE : NEVER;
	return found >= 0;
}

/* The earliest due time in a span, from "first" on, up to "limit". */
static int64
due_in_span(const MsgqCron *cron, const Span *span, int64 first, int64 limit)
{
	int64		local_start = span->start + span->offset;
	int64		from = Max(span->start, first) + span->offset;
	int64		local;

	/* Was the clock turned past something? */
	if (span->start >= first && span->reached < local_start &&
		find_local(cron, span->reached, local_start) != NEVER)
		return span->start;
	if (!cron->through_hours)
		from = Max(from, span->reached);
	local = find_local(cron, from, Min(span->end, limit) + span->offset);
	return local == NEVER ? NEVER : local - span->offset;
}

/* The first due time from "first" on. */
static int64
due_from(const MsgqCron *cron, const pg_tz *zone, int64 first)
{
	int64		limit = first + (int64) SEARCH_YEARS * (DAYS_PER_YEAR * SECS_PER_DAY);
	Span		span = {.start = first - MAX_TURN_DAYS * SECS_PER_DAY};
	bool		is_known = measure(&span, zone);

	span.reached = span.start + span.offset;
	while (is_known && span.start <= limit)
	{
		int64		due = due_in_span(cron, &span, first, limit);

		if (due != NEVER || span.end == NEVER)
			return due;
		CHECK_FOR_INTERRUPTS();
		span.reached = Max(span.reached, span.end + span.offset);
		span.start = span.end;
		is_known = measure(&span, zone);
	}
	return NEVER;
}

/* The first of anchor + k * every, k > 0, that is later than "after". */
static TimestampTz
next_interval(int64 every, TimestampTz anchor, TimestampTz after)
{
	int64		passed;
	int64		due;

	if (after < anchor)
		after = anchor;
	if (pg_sub_s64_overflow(after, anchor, &passed) ||
		pg_add_s64_overflow(after - passed % every, every, &due) ||
		!IS_VALID_TIMESTAMP(due))
		return DT_NOEND;
	return due;
}

/*
 * The first due time later than "after"; infinity if there is none.  Intervals
 * are counted from the anchor, and have no time zone.
 */
TimestampTz
msgq_cron_next(const MsgqCron *cron, const pg_tz *zone, TimestampTz anchor,
			   TimestampTz after)
{
	int64		due;

	if (cron->every > 0)
		return next_interval(cron->every, anchor, after);
	due = due_from(cron, zone, floor_divide(after, USECS_PER_SEC) + 1);
	if (due >= END_TIMESTAMP / USECS_PER_SEC)
		return DT_NOEND;
	return due * USECS_PER_SEC;
}

/*
 * The latest due time that is later than "after" and not later than "until";
 * minus infinity if there is none.
 */
TimestampTz
msgq_cron_latest(const MsgqCron *cron, const pg_tz *zone, TimestampTz anchor,
				 TimestampTz after, TimestampTz until)
{
	TimestampTz low = after;	/* the next one after this is not too late */
	TimestampTz high = until;	/* the next one after this is */

	if (msgq_cron_next(cron, zone, anchor, after) > until)
		return DT_NOBEGIN;
	while (high - low > 1)
	{
		TimestampTz middle = low + (high - low) / 2;

		if (msgq_cron_next(cron, zone, anchor, middle) > until)
			high = middle;
		else
			low = middle;
	}
	return high;
}

/* ---------------------------------------------------------------------------
 * Time zones
 * ---------------------------------------------------------------------------
 */

/* Is it the name of a file, and not a formula like "XYZ5"? */
static bool
is_listed(const char *name)
{
	pg_tzenum  *list;
	pg_tz	   *zone;
	bool		found = false;

	/* PostgreSQL writes formulas in capitals; names with others are of files. */
	for (const char *c = name; *c != '\0'; c++)
	{
		if (*c >= 'a' && *c <= 'z')
			return true;
	}
	if (strcmp(name, "UTC") == 0)
		return true;
	list = pg_tzenumerate_start();
	while (!found && (zone = pg_tzenumerate_next(list)) != NULL)
		found = strcmp(pg_get_timezone_name(zone), name) == 0;
	pg_tzenumerate_end(list);
	return found;
}

/* A time zone of pg_catalog.pg_timezone_names; NULL if it is none. */
pg_tz	   *
msgq_timezone_find(const char *name)
{
	pg_tz	   *zone = pg_tzset(name);

	return zone && pg_tz_acceptable(zone) &&
		is_listed(pg_get_timezone_name(zone)) ? zone : NULL;
}

/* The same; raises 22023 if it is none. */
pg_tz	   *
msgq_timezone_get(const char *name, const char *argument)
{
	pg_tz	   *zone = msgq_timezone_find(name);

	if (zone == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be the name of a time zone", argument),
				 errdetail("There is no time zone \"%s\".", name),
				 errhint("See pg_catalog.pg_timezone_names. Abbreviations and fixed offsets cannot be used.")));
	return zone;
}

/* ---------------------------------------------------------------------------
 * SQL
 * ---------------------------------------------------------------------------
 */

/* A time, which must be finite; its default if it is NULL. */
static TimestampTz
time_argument(FunctionCallInfo fcinfo, int n, const char *argument,
			  TimestampTz default_time)
{
	TimestampTz time;

	if (PG_ARGISNULL(n))
		return default_time;
	time = PG_GETARG_TIMESTAMPTZ(n);
	if (TIMESTAMP_NOT_FINITE(time))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be finite", argument)));
	return time;
}

/* due_times(spec, timezone, after, max_times, anchor) */
PG_FUNCTION_INFO_V1(msgq_due_times);
Datum
msgq_due_times(PG_FUNCTION_ARGS)
{
	char	   *spec = msgq_arg_text(fcinfo, 0, "spec");
	pg_tz	   *zone = msgq_timezone_get(msgq_arg_text(fcinfo, 1, "timezone"),
										 "timezone");
	TimestampTz after = time_argument(fcinfo, 2, "after", msgq_now());
	int			max_times = msgq_arg_count(fcinfo, 3, "max_times");
	TimestampTz anchor = time_argument(fcinfo, 4, "anchor", after);
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	MsgqCron	cron;

	msgq_cron_parse(spec, &cron);
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	for (int i = 0; i < max_times; i++)
	{
		Datum		value;
		bool		is_null = false;

		after = msgq_cron_next(&cron, zone, anchor, after);
		if (TIMESTAMP_NOT_FINITE(after))
			break;
		value = TimestampTzGetDatum(after);
		tuplestore_putvalues(result->setResult, result->setDesc, &value, &is_null);
	}
	return (Datum) 0;
}
