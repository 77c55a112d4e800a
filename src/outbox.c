/*
 * outbox.c
 *		Rows of an outbox table as messages.
 *
 * The table is the one that the outbox event router of Debezium reads from the
 * log ("Outbox Event Router", its documentation), with the columns of that
 * router's defaults:
 *
 *	id				header "id"
 *	aggregatetype	the routing key
 *	aggregateid		the group key, and the key in streams
 *	type			header "eventType"
 *	payload			the body; SQL's NULL is JSON's null
 *
 * Any other column that somebody adds is a header of its name, where it is not
 * NULL.  Only what is
 * inserted is sent.  Rows may be deleted at once, as is usual there.
 *
 * src/outbox.c
 */
#include "msgq.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "argument.h"
#include "message.h"
#include "outbox.h"
#include "route.h"
#include "rowjson.h"

struct MsgqOutboxShape
{
	MsgqRowShape columns;
	AttrNumber	aggregate_type;
	AttrNumber	aggregate_id;
	AttrNumber	payload;
};

/* A column that the router needs; raises 55000 if it is not there, or another. */
static AttrNumber
find_column(Relation table, const char *name, Oid type)
{
	AttrNumber	number = get_attnum(RelationGetRelid(table), name);
	Oid			found = number == InvalidAttrNumber ? InvalidOid :
	getBaseType(TupleDescAttr(RelationGetDescr(table), number - 1)->atttypid);

	if (found == type || (type == TEXTOID && found == VARCHAROID))
		return number;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table \"%s\" is not an outbox any more",
					RelationGetRelationName(table)),
			 errdetail("It has no column \"%s\" of type %s.", name,
					   format_type_be(type)),
			 errhint("Give it the columns that msgq.create_outbox() gave it.")));
	return InvalidAttrNumber;
}

/* What is to be known of the table. */
MsgqOutboxShape *
msgq_outbox_shape(Relation table)
{
	MsgqOutboxShape *shape = palloc(sizeof(MsgqOutboxShape));

	shape->columns = msgq_row_shape(RelationGetDescr(table), NULL, 0);
	shape->aggregate_type = find_column(table, "aggregatetype", TEXTOID);
	shape->aggregate_id = find_column(table, "aggregateid", TEXTOID);
	shape->payload = find_column(table, "payload", JSONBOID);
	return shape;
}

/* A column of text; NULL if it is null or empty. */
static text *
text_of(TupleTableSlot *row, AttrNumber number)
{
	bool		is_null;
	Datum		value = slot_getattr(row, number, &is_null);
	text	   *string = is_null ? NULL : DatumGetTextPCopy(value);

	return string && VARSIZE_ANY_EXHDR(string) > 0 ? string : NULL;
}

/* The columns that have no other place. */
static Datum
headers_of(MsgqOutboxShape *shape, TupleTableSlot *row)
{
	JsonbParseState *state = NULL;
	Jsonb	   *headers;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < shape->columns.n; i++)
	{
		MsgqRowColumn *column = &shape->columns.columns[i];
		JsonbValue	value;

		if (column->number == shape->aggregate_type ||
			column->number == shape->aggregate_id ||
			column->number == shape->payload ||
			slot_attisnull(row, column->number))
			continue;
		value = msgq_row_value_as_json(column, row);
		msgq_push_text(&state, WJB_KEY, strcmp(column->name, "type") == 0 ?
					   "eventType" : column->name);
		pushJsonbValue(&state, WJB_VALUE, &value);
	}
	headers = JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
	msgq_check_headers(headers);
	return JsonbPGetDatum(headers);
}

/* Adds a row to the messages, for which there is room, and its routing key. */
void
msgq_outbox_add(MsgqOutboxShape *shape, TupleTableSlot *row,
				MsgqOutgoing *messages, Datum *routing_key)
{
	int			i = messages->n;
	text	   *key = text_of(row, shape->aggregate_id);
	text	   *type = text_of(row, shape->aggregate_type);
	bool		is_null;
	Datum		payload = slot_getattr(row, shape->payload, &is_null);

	if (is_null)
		messages->contents[i] = DirectFunctionCall1(jsonb_in,
													CStringGetDatum("null"));
	else
		messages->contents[i] = JsonbPGetDatum(DatumGetJsonbPCopy(payload));
	messages->headers[i] = headers_of(shape, row);
	messages->no_headers[i] = false;
	if (key)
		msgq_outgoing_set_group_key(messages, i, key);
	*routing_key = type ? PointerGetDatum(type) : CStringGetTextDatum("");
	msgq_check_routing_key(TextDatumGetCString(*routing_key), "aggregatetype");
	messages->n++;
}
