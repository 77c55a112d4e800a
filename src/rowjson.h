/*
 * rowjson.h
 *		Rows of users' tables as JSON.
 *
 * src/rowjson.h
 */
#ifndef MSGQ_ROWJSON_H
#define MSGQ_ROWJSON_H

#include "executor/tuptable.h"
#include "utils/jsonb.h"

/* A column, and how its values become JSON. */
typedef struct MsgqRowColumn
{
	AttrNumber	number;
	const char *name;
	JsonbValue	key;			/* the same */
	Oid			type;			/* below domains */
	int16		length;
	bool		is_by_value;
	FmgrInfo	to_jsonb;
} MsgqRowColumn;

/* The columns of a table that are wanted. */
typedef struct MsgqRowShape
{
	int			n;
	MsgqRowColumn *columns;
} MsgqRowShape;

extern MsgqRowShape msgq_row_shape(TupleDesc descriptor,
								   const int16 *numbers, int n);
extern JsonbValue msgq_row_value_as_json(MsgqRowColumn *column,
										 TupleTableSlot *row);
extern void msgq_row_convert(const MsgqRowShape *shape, TupleTableSlot *row,
							 TupleTableSlot *other,
							 const JsonbValue *other_values,
							 const bool *left_out, JsonbValue *values);
extern JsonbValue msgq_row_object(const MsgqRowShape *shape,
								  const JsonbValue *values,
								  const bool *left_out, JsonbPair *pairs);
extern bool msgq_row_find_unchanged(const MsgqRowShape *shape,
									TupleTableSlot *old_row,
									TupleTableSlot *new_row, bool *unchanged);

#endif							/* MSGQ_ROWJSON_H */
