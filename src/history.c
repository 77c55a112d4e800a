/*
 * history.c
 *		What a dead letter tells of its past, in the header "msgq-death".
 *
 * The header is an array, the newest entry first, with one entry for each
 * queue and reason:
 *
 *	queue		the name that the queue had, or the stream
 *	reason		max_deliveries, rejected, expired or overflow
 *	count		how often this queue gave it up for this reason
 *	first_at	when that was first, and
 *	last_at		last: ISO 8601, in UTC
 *	id			that it had in the queue
 *	deliveries	how often it was handed out there
 *	error		what its last consumer said, cut after 1024 bytes, or null
 *
 * Only the server writes it: send refuses headers of this kind.
 *
 * src/history.c
 */
#include "msgq.h"

#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#include "history.h"
#include "message.h"

#define DEATH_HEADER	"msgq-death"

static JsonbValue
string_value(const char *string, int length)
{
	JsonbValue	value;

	value.type = jbvString;
	value.val.string.val = (char *) string;
	value.val.string.len = length;
	return value;
}

static void
push_string(JsonbParseState **state, const char *key, const char *string)
{
	msgq_push_text(state, WJB_KEY, key);
	msgq_push_text(state, WJB_VALUE, string);
}

/* Text that was given with a failure, cut at a character's end; or null. */
static void
push_error(JsonbParseState **state, const char *error)
{
	JsonbValue	value = {.type = jbvNull};

	if (error)
		value = string_value(error, pg_mbcliplen(error, strlen(error),
												 MSGQ_MAX_ERROR_BYTES));
	msgq_push_text(state, WJB_KEY, "error");
	pushJsonbValue(state, WJB_VALUE, &value);
}

/* The value of a key in an object; NULL if there is none. */
static JsonbValue *
field(JsonbContainer *object, const char *key)
{
	if (!JsonContainerIsObject(object))
		return NULL;
	return getKeyJsonValueFromContainer(object, key, strlen(key), NULL);
}

static bool
field_is(JsonbContainer *object, const char *key, const char *string)
{
	JsonbValue *value = field(object, key);

	return value && value->type == jbvString &&
		value->val.string.len == (int) strlen(string) &&
		memcmp(value->val.string.val, string, value->val.string.len) == 0;
}

/* A string or number of a history's entry as a C string; NULL if neither. */
static char *
field_text(JsonbContainer *object, const char *key)
{
	JsonbValue *value = field(object, key);

	if (value && value->type == jbvString)
		return pnstrdup(value->val.string.val, value->val.string.len);
	if (value && value->type == jbvNumeric)
		return DatumGetCString(DirectFunctionCall1(numeric_out,
												   NumericGetDatum(value->val.numeric)));
	return NULL;
}

static JsonbContainer *
row_headers(TupleTableSlot *row)
{
	if (msgq_row_is_null(row, Anum_segment_headers))
		return NULL;
	return &DatumGetJsonbP(msgq_row_value(row, Anum_segment_headers))->root;
}

/* Entry number n of the row's history, the newest one first; or NULL. */
static JsonbContainer *
history_entry(TupleTableSlot *row, int n)
{
	JsonbContainer *headers = row_headers(row);
	JsonbValue *history = headers ? field(headers, DEATH_HEADER) : NULL;
	JsonbValue *entry;

	if (history == NULL || history->type != jbvBinary ||
		!JsonContainerIsArray(history->val.binary.data))
		return NULL;
	entry = getIthJsonbValueFromContainer(history->val.binary.data, n);
	return entry && entry->type == jbvBinary &&
		JsonContainerIsObject(entry->val.binary.data) ?
		entry->val.binary.data : NULL;
}

/* The earlier entry for this queue and reason; NULL if there is none. */
static JsonbContainer *
find_entry(TupleTableSlot *row, const char *queue, const char *reason)
{
	JsonbContainer *entry;

	for (int n = 0; (entry = history_entry(row, n)) != NULL; n++)
	{
		if (field_is(entry, "queue", queue) && field_is(entry, "reason", reason))
			return entry;
	}
	return NULL;
}

/* ISO 8601 in UTC, whatever the session's settings are. */
static char *
time_text(TimestampTz time)
{
	char	   *text = palloc(MAXDATELEN + 1);
	int			utc = 0;

	return JsonEncodeDateTime(text, TimestampTzGetDatum(time), TIMESTAMPTZOID,
							  &utc);
}

/* The error of the last nack, or NULL. */
static char *
last_error(TupleTableSlot *row)
{
	JsonbContainer *headers = row_headers(row);

	return headers ? field_text(headers, MSGQ_ERROR_HEADER) : NULL;
}

/* The newest entry, which goes on from an earlier one of its kind. */
static void
push_entry(JsonbParseState **state, const char *queue, TupleTableSlot *row,
		   const char *reason, const char *error, TimestampTz now)
{
	JsonbContainer *earlier = find_entry(row, queue, reason);
	char	   *count = earlier ? field_text(earlier, "count") : NULL;
	char	   *first_at = earlier ? field_text(earlier, "first_at") : NULL;

	pushJsonbValue(state, WJB_BEGIN_OBJECT, NULL);
	push_string(state, "queue", queue);
	push_string(state, "reason", reason);
	msgq_push_number(state, "count", count ? pg_strtoint64(count) + 1 : 1);
	push_string(state, "first_at", first_at ? first_at : time_text(now));
	push_string(state, "last_at", time_text(now));
	msgq_push_number(state, "id", msgq_row_id(row));
	msgq_push_number(state, "deliveries",
					 DatumGetInt32(msgq_row_value(row, Anum_segment_deliveries)));
	push_error(state, error);
	pushJsonbValue(state, WJB_END_OBJECT, NULL);
}

/* Copies an entry of the history as it is. */
static void
push_earlier(JsonbParseState **state, JsonbContainer *entry)
{
	JsonbValue	value = {.type = jbvBinary};

	value.val.binary.data = entry;
	value.val.binary.len = 0;	/* not looked at */
	pushJsonbValue(state, WJB_ELEM, &value);
}

/* {"msgq-death": [...]}, with what happens now. */
static Datum
history(const char *queue, TupleTableSlot *row, const char *reason,
		const char *error, TimestampTz now)
{
	JsonbParseState *state = NULL;
	JsonbContainer *same = find_entry(row, queue, reason);
	JsonbContainer *entry;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	msgq_push_text(&state, WJB_KEY, DEATH_HEADER);
	pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	push_entry(&state, queue, row, reason,
			   error ? error : last_error(row), now);
	for (int n = 0; (entry = history_entry(row, n)) != NULL; n++)
	{
		if (entry != same)
			push_earlier(&state, entry);
	}
	pushJsonbValue(&state, WJB_END_ARRAY, NULL);
	return JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT,
														   NULL)));
}

/*
 * The headers of a message that its queue, or stream, gives up now, for this reason: with
 * an entry for that, into which the error of the last nack goes if the caller
 * gives none.
 */
Datum
msgq_history_add(const char *queue, TupleTableSlot *row,
				 const char *reason, const char *error, TimestampTz now)
{
	Datum		new_history = history(queue, row, reason, error, now);
	Datum		headers;

	if (msgq_row_is_null(row, Anum_segment_headers))
		return new_history;
	headers = DirectFunctionCall2(jsonb_delete,
								  msgq_row_value(row, Anum_segment_headers),
								  CStringGetTextDatum(MSGQ_ERROR_HEADER));
	return DirectFunctionCall2(jsonb_concat, headers, new_history);
}

/*
 * Where and when did the message die last, but for this queue?  False if it
 * says nothing of that.
 */
bool
msgq_history_last(TupleTableSlot *row, const char *except, MsgqDeath *death)
{
	JsonbContainer *entry;
	char	   *id;
	char	   *died_at;
	int			n = 0;

	while ((entry = history_entry(row, n)) != NULL &&
		   field_is(entry, "queue", except))
		n++;
	id = entry ? field_text(entry, "id") : NULL;
	died_at = entry ? field_text(entry, "last_at") : NULL;
	death->queue = entry ? field_text(entry, "queue") : NULL;
	if (death->queue == NULL || id == NULL || died_at == NULL)
		return false;
	death->id = pg_strtoint64(id);
	death->died_at =
		DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in,
												CStringGetDatum(died_at),
												ObjectIdGetDatum(InvalidOid),
												Int32GetDatum(-1)));
	return true;
}
