/*
 * cloudevent.c
 *		CloudEvents as messages, and messages as CloudEvents.
 *
 * After CloudEvents 1.0.2, its JSON event format in structured mode, and its
 * extensions for partitioning (partitionkey), expiry (expirytime) and
 * distributed tracing (traceparent and tracestate, whose form is that of W3C
 * Trace Context).
 *
 *	event									message
 *	-----									-------
 *	data									body
 *	data_base64								data
 *	no data									body, the JSON value null
 *	"data": null							the same, with a header "ce-data"
 *	datacontenttype							header "content-type"
 *	traceparent, tracestate					headers of these names
 *	any other attribute						header "ce-<attribute>"
 *	partitionkey							the group key, too
 *	expirytime								the time of expiry, too
 *	source and id							the idempotency key
 *
 * An event that was sent so comes back as it was.  No attribute is called
 * "data", so the header "ce-data" means nothing else.
 *
 * A message with the header "ce-specversion" is an event, by whatever function
 * it was sent.  Any other one is made one as far as it goes: what is no valid
 * attribute is left out, and what an event must have is taken from the message
 * itself, see push_origin.
 *
 * A traceparent that is not valid is as if it were not there, and so is a
 * tracestate without a valid one: the W3C's text has whoever gets one begin a
 * new trace, and nobody's event shall fail because of it.
 *
 * send_cloudevent is a caller of send.c; all that is said there about locks and
 * transactions goes for it.  as_cloudevent looks at nothing but its argument and
 * the name of the database.
 *
 * src/cloudevent.c
 */
#include "msgq.h"

#include <ctype.h>

#include "commands/dbcommands.h"
#include "common/base64.h"
#include "executor/executor.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "argument.h"
#include "message.h"
#include "route.h"
#include "send.h"

#define PREFIX					"ce-"
#define CONTENT_TYPE_HEADER		"content-type"
#define NULL_DATA_HEADER		PREFIX "data"

#define DEFAULT_TYPE			"msgq.message"

/* So much of a name that is no attribute's is shown. */
#define MAX_SHOWN_BYTES			63

/* ---------------------------------------------------------------------------
 * Times, as in RFC 3339, and trace context
 * ---------------------------------------------------------------------------
 */

/*
 * Does a text begin so?  In the form, 0 is any digit, x a lower-case hexadecimal
 * one, and other letters may be lower case.
 */
static bool
has_form(const char *string, const char *form)
{
	for (; *form != '\0'; form++, string++)
	{
		if (*form == '0' ? !isdigit((unsigned char) *string) :
			*form == 'x' ? *string == '\0' || !strchr("0123456789abcdef", *string) :
			pg_ascii_toupper((unsigned char) *string) != *form)
			return false;
	}
	return true;
}

/* A minute may have a leap second. */
static bool
read_date_and_time(const char *string, struct pg_tm *tm)
{
	return has_form(string, "0000-00-00T00:00:00") &&
		sscanf(string, "%4d-%2d-%2d%*c%2d:%2d:%2d", &tm->tm_year, &tm->tm_mon,
			   &tm->tm_mday, &tm->tm_hour, &tm->tm_min, &tm->tm_sec) == 6 &&
		tm->tm_mon >= 1 && tm->tm_mon <= MONTHS_PER_YEAR && tm->tm_mday >= 1 &&
		tm->tm_mday <= day_tab[isleap(tm->tm_year)][tm->tm_mon - 1] &&
		tm->tm_hour <= 23 && tm->tm_min <= 59 && tm->tm_sec <= 60;
}

/*
 * A fraction of a second, if there is one; what is below a microsecond is cut.
 * Returns what follows.
 */
static const char *
read_fraction(const char *string, fsec_t *fraction)
{
	int			unit = USECS_PER_SEC;

	*fraction = 0;
	if (!has_form(string, ".0"))
		return string;
	for (string++; isdigit((unsigned char) *string); string++)
	{
		unit /= 10;
		*fraction += (*string - '0') * unit;
	}
	return string;
}

/* Seconds west of Greenwich, as PostgreSQL has them. */
static bool
read_zone(const char *string, int *zone)
{
	int			hours = 0;
	int			minutes = 0;

	if (has_form(string, "+00:00") || has_form(string, "-00:00"))
		(void) sscanf(string + 1, "%2d:%2d", &hours, &minutes);
	else if (!has_form(string, "Z"))
		return false;
	*zone = hours * SECS_PER_HOUR + minutes * SECS_PER_MINUTE;
	if (*string == '+')
		*zone = -*zone;
	return hours <= 23 && minutes <= 59 &&
		strlen(string) == (has_form(string, "Z") ? 1 : strlen("+00:00"));
}

/* Is it a time as in RFC 3339, and which? */
static bool
read_time(const char *string, TimestampTz *time)
{
	struct pg_tm tm = {0};
	fsec_t		fraction;
	int			zone;

	return read_date_and_time(string, &tm) &&
		read_zone(read_fraction(string + strlen("0000-00-00T00:00:00"), &fraction),
				  &zone) &&
		tm2timestamp(&tm, fraction, &zone, time) == 0;
}

/* The same the other way, in UTC; NULL for a time that has no such form. */
static char *
time_text(TimestampTz time)
{
	struct pg_tm tm;
	fsec_t		fraction;

	if (TIMESTAMP_NOT_FINITE(time) ||
		timestamp2tm(time, NULL, &tm, &fraction, NULL, NULL) != 0 ||
		tm.tm_year < 0 || tm.tm_year > 9999)
		return NULL;
	return psprintf("%04d-%02d-%02dT%02d:%02d:%02d.%06dZ", tm.tm_year,
					tm.tm_mon, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec,
					(int) fraction);
}

/*
 * Is it one of W3C Trace Context: version-traceid-parentid-flags?  No id is
 * zero, no version is ff, and one above 00 may have more parts.
 */
static bool
is_traceparent(const char *string)
{
	static const char form[] = "xx-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx-xxxxxxxxxxxxxxxx-xx";
	const char *end;

	if (!has_form(string, form) || strncmp(string, "ff", 2) == 0)
		return false;
	end = string + strlen(form);
	return strspn(string + 3, "0") < 32 && strspn(string + 36, "0") < 16 &&
		(*end == '\0' || (*end == '-' && strncmp(string, "00", 2) != 0));
}

/* ---------------------------------------------------------------------------
 * Attributes
 * ---------------------------------------------------------------------------
 */

typedef enum AttributeKind
{
	ATTRIBUTE_TEXT,				/* not empty */
	ATTRIBUTE_KEY,				/* a text that can be a group key */
	ATTRIBUTE_TIME,
	ATTRIBUTE_VERSION
} AttributeKind;

/* An attribute of which CloudEvents, or we, know more than its type. */
typedef struct AttributeRule
{
	const char *name;
	AttributeKind kind;
	bool		is_required;
} AttributeRule;

static const AttributeRule rules[] = {
	{"specversion", ATTRIBUTE_VERSION, true},
	{"id", ATTRIBUTE_TEXT, true},
	{"source", ATTRIBUTE_TEXT, true},
	{"type", ATTRIBUTE_TEXT, true},
	{"subject", ATTRIBUTE_TEXT, false},
	{"datacontenttype", ATTRIBUTE_TEXT, false},
	{"dataschema", ATTRIBUTE_TEXT, false},
	{"time", ATTRIBUTE_TIME, false},
	{"partitionkey", ATTRIBUTE_KEY, false},
	{"expirytime", ATTRIBUTE_TIME, false},
};

/* NULL for an extension that may be anything. */
static const AttributeRule *
find_rule(const char *name)
{
	for (int i = 0; i < (int) lengthof(rules); i++)
	{
		if (strcmp(rules[i].name, name) == 0)
			return &rules[i];
	}
	return NULL;
}

/* Lower-case letters and digits; and "data" is the content. */
static bool
is_attribute_name(const char *name)
{
	return name[0] != '\0' &&
		name[strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789")] == '\0' &&
		strcmp(name, "data") != 0;
}

static bool
is_trace_attribute(const char *name)
{
	return strcmp(name, "traceparent") == 0 || strcmp(name, "tracestate") == 0;
}

static char *
text_of(const JsonbValue *value)
{
	return pnstrdup(value->val.string.val, value->val.string.len);
}

/* No sign, fraction or exponent but a minus, and within 32 bits. */
static bool
is_integer(Numeric number)
{
	char	   *text = DatumGetCString(DirectFunctionCall1(numeric_out,
														   NumericGetDatum(number)));
	char	   *end;
	long		value;

	errno = 0;
	value = strtol(text, &end, 10);
	return errno == 0 && *end == '\0' && value >= PG_INT32_MIN &&
		value <= PG_INT32_MAX;
}

/* Control characters, and what Unicode says is no character. */
static bool
has_unprintable(const char *text)
{
	for (const char *c = text; *c != '\0'; c += pg_mblen(c))
	{
		pg_wchar	code = (unsigned char) *c;

		if (GetDatabaseEncoding() == PG_UTF8)
			code = utf8_to_unicode((const unsigned char *) c);
		else if (IS_HIGHBIT_SET(*c))
			continue;
		if (code < 0x20 || (code >= 0x7f && code < 0xa0) ||
			(code >= 0xfdd0 && code <= 0xfdef) || (code & 0xfffe) == 0xfffe)
			return true;
	}
	return false;
}

static const char *
text_problem(const AttributeRule *rule, const char *text)
{
	TimestampTz time;

	if (has_unprintable(text))
		return "must not contain control characters";
	if (rule == NULL)
		return NULL;
	if (rule->kind == ATTRIBUTE_VERSION)
		return strcmp(text, "1.0") == 0 ? NULL : "must be \"1.0\"";
	if (rule->kind == ATTRIBUTE_TIME)
		return read_time(text, &time) ? NULL : "must be a time as in RFC 3339";
	if (text[0] == '\0')
		return "must not be empty";
	if (rule->kind == ATTRIBUTE_KEY && strlen(text) > MSGQ_MAX_GROUP_KEY_BYTES)
		return psprintf("must not have more than %d bytes",
						MSGQ_MAX_GROUP_KEY_BYTES);
	return NULL;
}

/* What is wrong with the value of an attribute; NULL if nothing is. */
static const char *
value_problem(const char *name, const JsonbValue *value)
{
	const AttributeRule *rule = find_rule(name);

	if (value->type == jbvString)
		return text_problem(rule, text_of(value));
	if (rule)
		return "must be a string";
	if (value->type == jbvBool ||
		(value->type == jbvNumeric && is_integer(value->val.numeric)))
		return NULL;
	return "must be a string, a boolean, or an integer of 32 bits";
}

/*
 * Does an attribute that concerns tracing count?  is_traced says whether there
 * is a valid traceparent.
 */
static bool
is_part_of_trace(const char *name, const JsonbValue *value, bool is_traced)
{
	return is_traced && value->type == jbvString &&
		(strcmp(name, "traceparent") != 0 || is_traceparent(text_of(value)));
}

/* A field of an object that may be missing itself; a JSON null is none. */
static bool
get_field(Jsonb *object, const char *name, JsonbValue *value)
{
	return object &&
		getKeyJsonValueFromContainer(&object->root, name, strlen(name), value) &&
		value->type != jbvNull;
}

/* Is there a valid traceparent under this name? */
static bool
has_traceparent(Jsonb *object, const char *name)
{
	JsonbValue	value;

	return get_field(object, name, &value) && value.type == jbvString &&
		is_traceparent(text_of(&value));
}

static void
push_field(JsonbParseState **state, const char *name, JsonbValue *value)
{
	msgq_push_text(state, WJB_KEY, name);
	pushJsonbValue(state, WJB_VALUE, value);
}

/* ---------------------------------------------------------------------------
 * From an event to a message
 * ---------------------------------------------------------------------------
 */

static void
refuse(const char *name, const char *problem)
{
	int			length = pg_mbcliplen(name, strlen(name), MAX_SHOWN_BYTES);

	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("attribute \"%.*s\" of the event %s", length, name,
					problem)));
}

static void
check_required(Jsonb *event)
{
	JsonbValue	value;

	if (!JB_ROOT_IS_OBJECT(event))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be a JSON object", "event")));
	for (int i = 0; i < (int) lengthof(rules); i++)
	{
		if (rules[i].is_required && !get_field(event, rules[i].name, &value))
			refuse(rules[i].name, "is missing");
	}
}

/*
 * Base64 without line breaks, with its padding.  Only one text stands for some
 * bytes, so that it comes out as it went in.
 */
static Datum
decode_data(const JsonbValue *value)
{
	int			length = value->val.string.len;
	int			size = pg_b64_dec_len(length);
	bytea	   *data = palloc(VARHDRSZ + size + 1);
	char	   *again;

	/* The types of its bytes differ between majors. */
	size = pg_b64_decode(value->val.string.val, length, (void *) VARDATA(data),
						 size);
	if (size < 0)
		refuse("data_base64", "must be base64");
	SET_VARSIZE(data, VARHDRSZ + size);
	again = palloc(pg_b64_enc_len(size) + 1);
	if (pg_b64_encode((void *) VARDATA(data), size, again,
					  pg_b64_enc_len(size)) != length ||
		memcmp(again, value->val.string.val, length) != 0)
		refuse("data_base64", "must be base64");
	return PointerGetDatum(data);
}

/* Takes the content from the event, with room for all the rest. */
static void
init_outgoing(MsgqOutgoing *out, Jsonb *event)
{
	JsonbValue	value;
	bool		is_bytes = get_field(event, "data_base64", &value);

	msgq_outgoing_init(out, 1,
					   is_bytes ? Anum_segment_data : Anum_segment_body);
	if (is_bytes && value.type != jbvString)
		refuse("data_base64", "must be a string");
	if (is_bytes)
		out->contents[0] = decode_data(&value);
	else
	{
		value.type = jbvNull;
		(void) get_field(event, "data", &value);
		out->contents[0] = JsonbPGetDatum(JsonbValueToJsonb(&value));
	}
}

/* Adds the header that a member of the event becomes. */
static void
push_header(JsonbParseState **headers, const char *name, JsonbValue *value,
			bool is_traced)
{
	const char *problem;

	if (!is_attribute_name(name))
		refuse(name, "must have a name of lower-case letters and digits");
	if (value->type == jbvNull)
		return;
	problem = value_problem(name, value);
	if (problem)
		refuse(name, problem);
	if (strcmp(name, "datacontenttype") == 0)
		push_field(headers, CONTENT_TYPE_HEADER, value);
	else if (!is_trace_attribute(name))
		push_field(headers, psprintf(PREFIX "%s", name), value);
	else if (is_part_of_trace(name, value, is_traced))
		push_field(headers, name, value);
}

/* What "data" is has been seen; here is only what a body cannot say. */
static void
push_data_header(JsonbParseState **headers, JsonbValue *data, bool is_bytes)
{
	if (is_bytes)
		refuse("data", "must not be given together with \"data_base64\"");
	if (data->type == jbvNull)
		push_field(headers, NULL_DATA_HEADER, data);
}

/* Checks all members, and makes headers of them. */
static Datum
make_headers(Jsonb *event, bool is_bytes)
{
	JsonbParseState *headers = NULL;
	JsonbIterator *iterator = JsonbIteratorInit(&event->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	char	   *name = NULL;
	bool		is_traced = has_traceparent(event, "traceparent");

	pushJsonbValue(&headers, WJB_BEGIN_OBJECT, NULL);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			name = text_of(&value);
		else if (token == WJB_VALUE && strcmp(name, "data") == 0)
			push_data_header(&headers, &value, is_bytes);
		else if (token == WJB_VALUE && strcmp(name, "data_base64") != 0)
			push_header(&headers, name, &value, is_traced);
	}
	return JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&headers,
														   WJB_END_OBJECT, NULL)));
}

static void
set_group_key(MsgqOutgoing *out, Jsonb *event)
{
	JsonbValue	value;

	if (get_field(event, "partitionkey", &value))
		msgq_outgoing_set_group_key(out, 0,
									cstring_to_text_with_len(value.val.string.val,
															 value.val.string.len));
}

/*
 * A time that has passed is no error: the message is stored, and given up like
 * any other that has expired.
 */
static void
set_expiry(MsgqOutgoing *out, Jsonb *event, TimestampTz *expires_at)
{
	JsonbValue	value;

	if (!get_field(event, "expirytime", &value))
		return;
	(void) read_time(text_of(&value), expires_at);
	/* There, 0 says that it never expires; this is long past anyhow. */
	if (*expires_at == 0)
		*expires_at = -1;
	out->expires_at = expires_at;
}

/*
 * CloudEvents has it that source and id together name an event.  No text has a
 * zero byte, so the one between them keeps apart what differs.
 */
static void
set_idempotency_key(MsgqOutgoing *out, Jsonb *event)
{
	StringInfoData name;
	JsonbValue	value;
	bytea	   *digest;
	char	   *hex;

	initStringInfo(&name);
	(void) get_field(event, "source", &value);
	appendBinaryStringInfo(&name, value.val.string.val, value.val.string.len);
	appendStringInfoChar(&name, '\0');
	(void) get_field(event, "id", &value);
	appendBinaryStringInfo(&name, value.val.string.val, value.val.string.len);
	digest = DatumGetByteaPP(DirectFunctionCall1(sha256_bytea,
												 PointerGetDatum(cstring_to_text_with_len(name.data, name.len))));
	hex = palloc0(2 * VARSIZE_ANY_EXHDR(digest) + 1);
	hex_encode(VARDATA_ANY(digest), VARSIZE_ANY_EXHDR(digest), hex);
	msgq_outgoing_set_key(out, 0, CStringGetTextDatum(psprintf("cloudevent:%s", hex)));
}

PG_FUNCTION_INFO_V1(msgq_send_cloudevent);
Datum
msgq_send_cloudevent(PG_FUNCTION_ARGS)
{
	char	   *queue = msgq_arg_name(fcinfo, 0, "queue");
	Jsonb	   *event = DatumGetJsonbP(msgq_arg(fcinfo, 1, "event"));
	MsgqOutgoing out;
	TimestampTz expires_at;
	int64		id;

	check_required(event);
	init_outgoing(&out, event);
	msgq_outgoing_set_headers(&out, 0,
							  make_headers(event, out.content_column == Anum_segment_data));
	set_group_key(&out, event);
	set_expiry(&out, event, &expires_at);
	set_idempotency_key(&out, event);
	msgq_outgoing_send("msgq.send_cloudevent()", queue, &out, &id);
	PG_RETURN_INT64(id);
}

/* ---------------------------------------------------------------------------
 * From a message to an event
 * ---------------------------------------------------------------------------
 */

/* Adds an attribute, if its value can be one. */
static void
push_attribute(JsonbParseState **event, const char *name, JsonbValue *value)
{
	if (value_problem(name, value) == NULL)
		push_field(event, name, value);
}

/* The same for text; NULL is left out. */
static void
push_text_attribute(JsonbParseState **event, const char *name, char *text)
{
	JsonbValue	value = {.type = jbvString};

	if (text == NULL)
		return;
	value.val.string.val = text;

	value.val.string.len = strlen(text);
	push_attribute(event, name, &value);
}

/* As part of a URI. */
static void
append_encoded(StringInfo uri, char *text)
{
	const char *utf8 = pg_server_to_any(text, strlen(text), PG_UTF8);

	for (const unsigned char *c = (const unsigned char *) utf8; *c != '\0'; c++)
	{
		if (*c < 0x80 && (isalnum(*c) || strchr("-._~", *c)))
			appendStringInfoChar(uri, *c);
		else
			appendStringInfo(uri, "%%%02X", *c);
	}
}

/* A header that is a string; else NULL. */
static char *
header_text(Jsonb *headers, const char *name)
{
	JsonbValue	value;

	return get_field(headers, name, &value) && value.type == jbvString ?
		text_of(&value) : NULL;
}

/* msgq:<database>, and the topic if the message has come by one. */
static char *
default_source(Jsonb *headers)
{
	char	   *topic = header_text(headers, MSGQ_TOPIC_HEADER);
	StringInfoData source;

	initStringInfo(&source);
	appendStringInfoString(&source, "msgq:");
	append_encoded(&source, get_database_name(MyDatabaseId));
	if (topic)
	{
		appendStringInfoChar(&source, '/');
		append_encoded(&source, topic);
	}
	return source.data;
}

/*
 * What every event must have.  A message's id is unique in its queue, which the
 * message does not know; but the id and the time of sending name it in its
 * database.  Both stay while it is given back, redelivered, or taken
 * back from a dead-letter queue.  Two messages of different queues that have
 * both in common were sent in the same microsecond: by one call of publish,
 * and then they are copies, or by a coincidence.
 */
static void
push_origin(JsonbParseState **event, HeapTupleHeader message, Jsonb *headers)
{
	bool		no_id;
	bool		no_time;
	int64		id = DatumGetInt64(GetAttributeByNum(message, Anum_message_id,
													 &no_id));
	TimestampTz enqueued_at =
	DatumGetTimestampTz(GetAttributeByNum(message, Anum_message_enqueued_at,
										  &no_time));
	char	   *time;

	msgq_check_not_null(no_id || no_time, "message");
	time = time_text(enqueued_at);
	push_text_attribute(event, "specversion", "1.0");
	push_text_attribute(event, "id",
						psprintf("%s/" INT64_FORMAT, time ? time : "", id));
	push_text_attribute(event, "source", default_source(headers));
	push_text_attribute(event, "type", DEFAULT_TYPE);
}

/* A time of a message, as a text; NULL if there is none. */
static char *
column_time(HeapTupleHeader message, AttrNumber column)
{
	bool		is_null;
	Datum		value = GetAttributeByNum(message, column, &is_null);

	return is_null ? NULL : time_text(DatumGetTimestampTz(value));
}

/* What a message that was no event tells of itself. */
static void
push_details(JsonbParseState **event, HeapTupleHeader message, Jsonb *headers)
{
	bool		is_null;
	bool		is_bytes;
	Datum		group_key = GetAttributeByNum(message, Anum_message_group_key,
											  &is_null);

	push_text_attribute(event, "time",
						column_time(message, Anum_message_enqueued_at));
	push_text_attribute(event, "expirytime",
						column_time(message, Anum_message_expires_at));
	push_text_attribute(event, "subject",
						header_text(headers, MSGQ_ROUTING_KEY_HEADER));
	push_text_attribute(event, "partitionkey",
						is_null ? NULL : TextDatumGetCString(group_key));
	(void) GetAttributeByNum(message, Anum_message_data, &is_null);
	is_bytes = !is_null;
	(void) GetAttributeByNum(message, Anum_message_body, &is_null);
	push_text_attribute(event, "datacontenttype",
						is_bytes ? "application/octet-stream" :
						is_null ? NULL : "application/json");
}

/* The attribute that a header is; NULL if it is none. */
static const char *
attribute_of(const char *header, bool is_event)
{
	const char *name = header;

	if (strcmp(header, CONTENT_TYPE_HEADER) == 0)
		return "datacontenttype";
	if (strncmp(header, PREFIX, strlen(PREFIX)) == 0)
		name += strlen(PREFIX);
	else if (!is_trace_attribute(header) && (is_event || find_rule(header)))
		return NULL;
	return is_attribute_name(name) ? name : NULL;
}

/*
 * A later field of the same name replaces an earlier one.  A name with the
 * prefix comes after that without, since jsonb sorts names by their length.
 */
static void
push_headers(JsonbParseState **event, Jsonb *headers, bool is_event)
{
	JsonbIterator *iterator = JsonbIteratorInit(&headers->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	const char *name = NULL;
	bool		is_traced = has_traceparent(headers, "traceparent") ||
	has_traceparent(headers, PREFIX "traceparent");

	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			name = attribute_of(text_of(&value), is_event);
		if (token != WJB_VALUE || name == NULL)
			continue;
		if (!is_trace_attribute(name) || is_part_of_trace(name, &value, is_traced))
			push_attribute(event, name, &value);
	}
}

static void
push_bytes(JsonbParseState **event, bytea *data)
{
	int			size = VARSIZE_ANY_EXHDR(data);
	JsonbValue	value = {.type = jbvString};

	value.val.string.len = pg_b64_enc_len(size);
	value.val.string.val = palloc(value.val.string.len + 1);
	value.val.string.len = pg_b64_encode((void *) VARDATA_ANY(data), size,
										 value.val.string.val,
										 value.val.string.len);
	push_field(event, "data_base64", &value);
}

/* Is a body that is the JSON value null the event's data? */
static bool
has_null_data(Jsonb *headers, bool is_event)
{
	JsonbValue	value;

	return !is_event ||
		getKeyJsonValueFromContainer(&headers->root, NULL_DATA_HEADER,
									 strlen(NULL_DATA_HEADER), &value);
}

static void
push_content(JsonbParseState **event, HeapTupleHeader message, Jsonb *headers,
			 bool is_event)
{
	bool		is_null;
	Datum		content = GetAttributeByNum(message, Anum_message_data, &is_null);
	Jsonb	   *body;
	JsonbValue	value;

	if (!is_null)
	{
		push_bytes(event, DatumGetByteaPP(content));
		return;
	}
	content = GetAttributeByNum(message, Anum_message_body, &is_null);
	if (is_null)
		return;
	body = DatumGetJsonbP(content);
	if (!JsonbExtractScalar(&body->root, &value))
		JsonbToJsonbValue(body, &value);
	if (value.type != jbvNull || has_null_data(headers, is_event))
		push_field(event, "data", &value);
}

/* The headers of a message; NULL if it has none. */
static Jsonb *
get_headers(HeapTupleHeader message)
{
	bool		is_null;
	Datum		value = GetAttributeByNum(message, Anum_message_headers, &is_null);
	Jsonb	   *headers = is_null ? NULL : DatumGetJsonbP(value);

	return headers && JB_ROOT_IS_OBJECT(headers) ? headers : NULL;
}

PG_FUNCTION_INFO_V1(msgq_as_cloudevent);
Datum
msgq_as_cloudevent(PG_FUNCTION_ARGS)
{
	HeapTupleHeader message = DatumGetHeapTupleHeader(msgq_arg(fcinfo, 0, "message"));
	Jsonb	   *headers = get_headers(message);
	JsonbParseState *event = NULL;
	JsonbValue	version;
	bool		is_event = get_field(headers, PREFIX "specversion", &version) &&
	value_problem("specversion", &version) == NULL;

	pushJsonbValue(&event, WJB_BEGIN_OBJECT, NULL);
	push_origin(&event, message, headers);
	if (!is_event)
		push_details(&event, message, headers);
	if (headers)
		push_headers(&event, headers, is_event);
	push_content(&event, message, headers, is_event);
	PG_RETURN_DATUM(JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&event,
																	WJB_END_OBJECT, NULL))));
}
