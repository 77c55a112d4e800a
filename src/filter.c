/*
 * filter.c
 *		Conditions on messages: jsonpath filters and header matches.
 *
 * A filter sees {"headers": ..., "body": ...}.  The server evaluates it, in its
 * silent mode: what is not there, or is of another type, is an answer, not an
 * error.  Times without a zone are of the session's time zone.
 *
 * A header match is an object of header names and the values that they must
 * have, all of them or any, as x-match says: the arguments of a binding to a
 * headers exchange of AMQP 0-9-1 (section 3.1.3.4), with RabbitMQ's -with-x.
 *
 * src/filter.c
 */
#include "msgq.h"

#include "utils/builtins.h"
#include "utils/fmgroids.h"

#include "filter.h"
#include "message.h"

/* ---------------------------------------------------------------------------
 * jsonpath
 * ---------------------------------------------------------------------------
 */

/* What a filter sees of a message; NULL where it has no such part. */
Datum
msgq_filter_input(const Datum *headers, const Datum *body)
{
	const char *const names[] = {"headers", "body"};
	const Datum *const parts[] = {headers, body};
	JsonbParseState *state = NULL;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < (int) lengthof(parts); i++)
	{
		JsonbValue	value = {.type = jbvNull};

		if (parts[i])
			JsonbToJsonbValue(DatumGetJsonbP(*parts[i]), &value);
		msgq_push_text(&state, WJB_KEY, names[i]);
		pushJsonbValue(&state, WJB_VALUE, &value);
	}
	return JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state,
														   WJB_END_OBJECT, NULL)));
}

/* Is the path a predicate, which is true, false or unknown? */
static bool
is_predicate(JsonPath *path)
{
	JsonPathItem item;

	jspInit(&item, path);
	if (jspHasNext(&item))
		return false;
	switch (item.type)
	{
		case jpiAnd:
		case jpiOr:
		case jpiNot:
		case jpiIsUnknown:
		case jpiEqual:
		case jpiNotEqual:
		case jpiLess:
		case jpiGreater:
		case jpiLessOrEqual:
		case jpiGreaterOrEqual:
		case jpiExists:
		case jpiStartsWith:
		case jpiLikeRegex:
			return true;
		default:
			return false;
	}
}

/*
 * Does the filter take what msgq_filter_input has made?  A path that is a
 * predicate does if it is true, and any other one if it finds something.
 */
bool
msgq_filter_passes(JsonPath *filter, Datum input)
{
	FmgrInfo	function;

	LOCAL_FCINFO(call, 4);
	Datum		passes;

	fmgr_info(is_predicate(filter) ? F_JSONB_PATH_MATCH_TZ : F_JSONB_PATH_EXISTS_TZ,
			  &function);
	InitFunctionCallInfoData(*call, &function, 4, InvalidOid, NULL, NULL);
	call->args[0].value = input;
	call->args[1].value = PointerGetDatum(filter);
	call->args[2].value = DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"));
	call->args[3].value = BoolGetDatum(true);	/* silent */
	for (int i = 0; i < 4; i++)
		call->args[i].isnull = false;
	passes = FunctionCallInvoke(call);
	return !call->isnull && DatumGetBool(passes);
}

/*
 * Raises 22023 for a filter with variables, which has no values for them: that
 * would be an error of whoever sends a message.  Printed, a variable is a
 * quoted name behind $, and no other $ outside of quotes has one.
 */
void
msgq_filter_check(JsonPath *filter)
{
	const char *text = DatumGetCString(DirectFunctionCall1(jsonpath_out,
														   PointerGetDatum(filter)));
	bool		quoted = false;

	for (const char *c = text; *c != '\0'; c++)
	{
		if (quoted && *c == '\\' && c[1] != '\0')
			c++;
		else if (*c == '"')
			quoted = !quoted;
		else if (!quoted && c[0] == '$' && c[1] == '"')
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("argument \"%s\" must not contain variables", "filter"),
					 errhint("Write the value into the path.")));
	}
}

/* ---------------------------------------------------------------------------
 * Headers
 * ---------------------------------------------------------------------------
 */

typedef struct WantedHeader
{
	const char *name;
	int			length;
	Datum		value;			/* jsonb; 0: any */
} WantedHeader;

struct MsgqHeaderMatch
{
	bool		any;			/* one of them is enough */
	int			n;
	WantedHeader headers[FLEXIBLE_ARRAY_MEMBER];
};

/* Says how to match. */
#define MATCH_KEY			"x-match"

/* Names that begin so are for the server, unless x-match says otherwise. */
#define EXTENSION_PREFIX	"x-"

static bool
is_named(const JsonbValue *key, const char *name)
{
	return key->val.string.len == (int) strlen(name) &&
		memcmp(key->val.string.val, name, key->val.string.len) == 0;
}

/* The value of x-match; all if there is none. */
static const char *
match_kind(Jsonb *match)
{
	JsonbValue	value;
	const char *kind;

	if (getKeyJsonValueFromContainer(&match->root, MATCH_KEY, strlen(MATCH_KEY),
									 &value) == NULL)
		return "all";
	kind = value.type == jbvString ?
		pnstrdup(value.val.string.val, value.val.string.len) : "";
	if (strcmp(kind, "all") != 0 && strcmp(kind, "any") != 0 &&
		strcmp(kind, "all-with-x") != 0 && strcmp(kind, "any-with-x") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" has an unknown \"%s\"", "header_match",
						MATCH_KEY),
				 errhint("It is one of all, any, all-with-x and any-with-x.")));
	return kind;
}

/* Compiles it, into the current memory context; 22023 if it makes no sense. */
MsgqHeaderMatch *
msgq_header_match_compile(Jsonb *match)
{
	MsgqHeaderMatch *compiled;
	const char *kind;
	bool		with_extensions;
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	key = {.type = jbvNull};
	JsonbValue	value;

	if (!JB_ROOT_IS_OBJECT(match))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be a JSON object", "header_match")));
	compiled = palloc0(offsetof(MsgqHeaderMatch, headers) +
					   sizeof(WantedHeader) * Max(JB_ROOT_COUNT(match), 1));
	kind = match_kind(match);
	compiled->any = strncmp(kind, "any", 3) == 0;
	with_extensions = strlen(kind) > 3;
	iterator = JsonbIteratorInit(&match->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		WantedHeader *header;

		if (token == WJB_KEY)
			key = value;
		if (token != WJB_VALUE || is_named(&key, MATCH_KEY) ||
			(!with_extensions && key.val.string.len >= 2 &&
			 memcmp(key.val.string.val, EXTENSION_PREFIX, 2) == 0))
			continue;
		header = &compiled->headers[compiled->n++];
		header->name = pnstrdup(key.val.string.val, key.val.string.len);
		header->length = key.val.string.len;
		if (value.type != jbvNull)
			header->value = JsonbPGetDatum(JsonbValueToJsonb(&value));
	}
	return compiled;
}

static bool
has_header(const WantedHeader *header, Jsonb *headers)
{
	JsonbValue	value;

	if (getKeyJsonValueFromContainer(&headers->root, header->name,
									 header->length, &value) == NULL)
		return false;
	return header->value == (Datum) 0 ||
		DatumGetBool(DirectFunctionCall2(jsonb_eq, header->value,
										 JsonbPGetDatum(JsonbValueToJsonb(&value))));
}

/* Has a message with these headers, or none (NULL), what is wanted? */
bool
msgq_header_match_passes(const MsgqHeaderMatch *match, Jsonb *headers)
{
	for (int i = 0; i < match->n; i++)
	{
		bool		found = headers && has_header(&match->headers[i], headers);

		if (found == match->any)
			return found;
	}
	return !match->any;
}
