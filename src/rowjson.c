/*
 * rowjson.c
 *		Rows of users' tables as JSON, as to_jsonb() makes it.
 *
 * What the JSON of a value is, is to_jsonb()'s business.  It looks up the type
 * with each call, which for most columns costs more than the conversion: so the
 * types whose JSON is evident do without.
 *
 * A value that lies out of line and was not changed by an UPDATE is the same
 * pointer in both versions of the row.  It is not fetched, but named.
 *
 * src/rowjson.c
 */
#include "msgq.h"

#include "access/detoast.h"
#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"

#include "message.h"
#include "rowjson.h"

/* ---------------------------------------------------------------------------
 * Columns
 * ---------------------------------------------------------------------------
 */

/* Is it there, and does a trigger see its value? */
static bool
has_value(Form_pg_attribute attribute)
{
	return !attribute->attisdropped &&
		attribute->attgenerated != ATTRIBUTE_GENERATED_VIRTUAL;
}

/* As if to_jsonb() stood in a query, with an argument of the column's type. */
static void
prepare_to_jsonb(MsgqRowColumn *column, Form_pg_attribute attribute)
{
	Const	   *argument = makeNullConst(attribute->atttypid, attribute->atttypmod,
										 attribute->attcollation);
	FuncExpr   *call = makeFuncExpr(F_TO_JSONB, JSONBOID, list_make1(argument),
									InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL);

	fmgr_info(F_TO_JSONB, &column->to_jsonb);
	fmgr_info_set_expr((Node *) call, &column->to_jsonb);
}

static void
add_column(MsgqRowShape *shape, Form_pg_attribute attribute)
{
	MsgqRowColumn *column = &shape->columns[shape->n++];

	column->number = attribute->attnum;
	column->name = pstrdup(NameStr(attribute->attname));
	column->type = getBaseType(attribute->atttypid);
	column->key.type = jbvString;
	column->key.val.string.val = (char *) column->name;
	column->key.val.string.len = strlen(column->name);
	column->length = attribute->attlen;
	column->is_by_value = attribute->attbyval;
	prepare_to_jsonb(column, attribute);
}

/* As the keys of an object are sorted: see lengthCompareJsonbString(). */
static int
compare_columns(const void *left, const void *right)
{
	const char *a = ((const MsgqRowColumn *) left)->name;
	const char *b = ((const MsgqRowColumn *) right)->name;
	size_t		a_length = strlen(a);
	size_t		b_length = strlen(b);

	if (a_length != b_length)
		return a_length < b_length ? -1 : 1;
	return memcmp(a, b, a_length);
}

/*
 * The columns with these n numbers, or all that have a value, if numbers is
 * NULL; in the current memory context.  Their order is that of the keys of an
 * object, so that no row has to be sorted.
 */
MsgqRowShape
msgq_row_shape(TupleDesc descriptor, const int16 *numbers, int n)
{
	int			natts = numbers ? n : descriptor->natts;
	MsgqRowShape shape = {.columns = palloc(sizeof(MsgqRowColumn) * natts)};

	for (int i = 0; i < natts; i++)
	{
		int			number = numbers ? numbers[i] : i + 1;
		Form_pg_attribute attribute = TupleDescAttr(descriptor, number - 1);

		if (has_value(attribute))
			add_column(&shape, attribute);
	}
	qsort(shape.columns, shape.n, sizeof(MsgqRowColumn), compare_columns);
	return shape;
}

/* ---------------------------------------------------------------------------
 * Values
 * ---------------------------------------------------------------------------
 */

/* With all that it contains: part of another value cannot be packed. */
static JsonbValue
unpack(Jsonb *jsonb)
{
	JsonbIterator *iterator = JsonbIteratorInit(&jsonb->root);
	JsonbIteratorToken token;
	JsonbParseState *state = NULL;
	JsonbValue *unpacked = NULL;
	JsonbValue	value;

	if (JsonbExtractScalar(&jsonb->root, &value))
		return value;
	while ((token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
		unpacked = pushJsonbValue(&state, token,
								  token < WJB_BEGIN_ARRAY ? &value : NULL);
	return *unpacked;
}

/* A value whose JSON is evident; false if to_jsonb() has to say what it is. */
static bool
convert(Oid type, Datum value, JsonbValue *json)
{
	text	   *string;

	switch (type)
	{
		case BOOLOID:
			json->type = jbvBool;
			json->val.boolean = DatumGetBool(value);
			return true;
		case INT2OID:
			json->type = jbvNumeric;
			json->val.numeric = int64_to_numeric(DatumGetInt16(value));
			return true;
		case INT4OID:
			json->type = jbvNumeric;
			json->val.numeric = int64_to_numeric(DatumGetInt32(value));
			return true;
		case INT8OID:
			json->type = jbvNumeric;
			json->val.numeric = int64_to_numeric(DatumGetInt64(value));
			return true;
		case NUMERICOID:
			json->type = jbvNumeric;
			json->val.numeric = DatumGetNumeric(value);
			return !numeric_is_nan(json->val.numeric) &&
				!numeric_is_inf(json->val.numeric);
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
			string = DatumGetTextPP(value);
			json->type = jbvString;
			json->val.string.val = VARDATA_ANY(string);
			json->val.string.len = VARSIZE_ANY_EXHDR(string);
			return true;
		case DATEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			json->type = jbvString;
			json->val.string.val = JsonEncodeDateTime(NULL, value, type, NULL);
			json->val.string.len = strlen(json->val.string.val);
			return true;
		case JSONBOID:
			*json = unpack(DatumGetJsonbP(value));
			return true;
		default:
			return false;
	}
}

/* What the JSON of a column of a row is. */
JsonbValue
msgq_row_value_as_json(MsgqRowColumn *column, TupleTableSlot *row)
{
	JsonbValue	json = {.type = jbvNull};
	bool		is_null;
	Datum		value = slot_getattr(row, column->number, &is_null);

	if (!is_null && !convert(column->type, value, &json))
		json = unpack(DatumGetJsonbP(FunctionCall1(&column->to_jsonb, value)));
	return json;
}

/* Has the column the same bytes in both rows? */
static bool
is_same(const MsgqRowColumn *column, TupleTableSlot *row, TupleTableSlot *other)
{
	bool		is_null;
	bool		other_is_null;
	Datum		value = slot_getattr(row, column->number, &is_null);
	Datum		other_value = slot_getattr(other, column->number, &other_is_null);

	return !is_null && !other_is_null &&
		datumIsEqual(value, other_value, column->is_by_value, column->length);
}

/*
 * Fills values with what the JSON of each column of a row is, but of those whose
 * element of left_out, which may be NULL, is true.  Where there is another
 * version of the row, with its values, columns that did not change have the
 * same, and are not converted again.
 */
void
msgq_row_convert(const MsgqRowShape *shape, TupleTableSlot *row,
				 TupleTableSlot *other, const JsonbValue *other_values,
				 const bool *left_out, JsonbValue *values)
{
	for (int i = 0; i < shape->n; i++)
	{
		MsgqRowColumn *column = &shape->columns[i];

		if (left_out && left_out[i])
			continue;
		if (other && is_same(column, row, other))
			values[i] = other_values[i];
		else
			values[i] = msgq_row_value_as_json(column, row);
	}
}

/*
 * An object with the values of a row, without those whose element of left_out,
 * which may be NULL, is true; or null without values.  There is room for its
 * pairs, which it needs as long as it is used.
 */
JsonbValue
msgq_row_object(const MsgqRowShape *shape, const JsonbValue *values,
				const bool *left_out, JsonbPair *pairs)
{
	JsonbValue	object = {.type = values ? jbvObject : jbvNull};
	int			n = 0;

	for (int i = 0; values && i < shape->n; i++)
	{
		if (left_out && left_out[i])
			continue;
		pairs[n].key = shape->columns[i].key;
		pairs[n++].value = values[i];
	}
	if (values)
	{
		object.val.object.nPairs = n;
		object.val.object.pairs = pairs;
	}
	return object;
}

/* ---------------------------------------------------------------------------
 * Values out of line
 * ---------------------------------------------------------------------------
 */

/* Does the value lie out of line, and where? */
static bool
is_out_of_line(TupleTableSlot *row, AttrNumber number,
			   struct varatt_external *pointer)
{
	bool		is_null;
	Datum		value = slot_getattr(row, number, &is_null);

	if (is_null || !VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(value)))
		return false;
	VARATT_EXTERNAL_GET_POINTER(*pointer, DatumGetPointer(value));
	return true;
}

/*
 * Which columns lie out of line and are the same in both rows?  Fills unchanged,
 * with one element for each column; false if there are none.
 */
bool
msgq_row_find_unchanged(const MsgqRowShape *shape, TupleTableSlot *old_row,
						TupleTableSlot *new_row, bool *unchanged)
{
	bool		found = false;

	for (int i = 0; i < shape->n; i++)
	{
		const MsgqRowColumn *column = &shape->columns[i];
		struct varatt_external old_value;
		struct varatt_external new_value;

		unchanged[i] = column->length == -1 &&
			is_out_of_line(old_row, column->number, &old_value) &&
			is_out_of_line(new_row, column->number, &new_value) &&
			old_value.va_valueid == new_value.va_valueid &&
			old_value.va_toastrelid == new_value.va_toastrelid;
		found |= unchanged[i];
	}
	return found;
}
