/*
 * message.c
 *		Translates between a stored row, a delivered message and a receipt.
 *
 * Nothing in here touches a table; message.h tells the life of a message.
 *
 * src/message.c
 */
#include "msgq.h"

#include "access/detoast.h"
#include "utils/numeric.h"
#include "utils/tuplestore.h"

#include "message.h"

/* A receipt's bytes: 8 of the id, 7 of leased_at, 1 of deliveries. */
#define RECEIPT_LEASED_AT_BITS	56

/* Stores in *uuid the receipt of the delivery that the arguments describe. */
void
msgq_receipt_encode(pg_uuid_t *uuid, int64 id, TimestampTz leased_at,
					int32 deliveries)
{
	uint64		high = (uint64) id;
	uint64		low = ((uint64) leased_at << 8) | (deliveries & 0xff);

	StaticAssertStmt(UUID_LEN == 2 * sizeof(uint64), "a receipt fills a uuid");
	for (int i = 0; i < 8; i++)
	{
		uuid->data[i] = (unsigned char) (high >> (56 - 8 * i));
		uuid->data[8 + i] = (unsigned char) (low >> (56 - 8 * i));
	}
}

/* What the receipt says.  Any uuid says something; most fit no message. */
MsgqReceipt
msgq_receipt_decode(const pg_uuid_t *uuid)
{
	MsgqReceipt receipt;
	uint64		high = 0;
	uint64		low = 0;

	for (int i = 0; i < 8; i++)
	{
		high = (high << 8) | uuid->data[i];
		low = (low << 8) | uuid->data[8 + i];
	}
	receipt.id = (int64) high;
	receipt.leased_at = low >> 8;
	receipt.deliveries = low & 0xff;
	return receipt;
}

/* Is this row still in the delivery that the receipt was given for? */
bool
msgq_receipt_fits(const MsgqReceipt *receipt, TupleTableSlot *row)
{
	uint64		leased_at;

	if (msgq_row_is_null(row, Anum_segment_leased_at))
		return false;
	leased_at = (uint64) msgq_row_time(row, Anum_segment_leased_at);
	leased_at &= (UINT64CONST(1) << RECEIPT_LEASED_AT_BITS) - 1;
	return receipt->id == msgq_row_id(row) &&
		receipt->leased_at == leased_at &&
		receipt->deliveries ==
		(DatumGetInt32(msgq_row_value(row, Anum_segment_deliveries)) & 0xff);
}

/* Does somebody hold an unexpired lease on it? */
bool
msgq_row_is_in_flight(TupleTableSlot *row, TimestampTz now)
{
	return !msgq_row_is_null(row, Anum_segment_leased_at) &&
		msgq_row_time(row, Anum_segment_visible_at) > now;
}

/* Adds a text, a key or a value, to an object that is being made. */
void
msgq_push_text(JsonbParseState **state, JsonbIteratorToken token,
			   const char *text)
{
	JsonbValue	value = {.type = jbvString};

	value.val.string.val = (char *) text;

	value.val.string.len = strlen(text);
	pushJsonbValue(state, token, &value);
}

/* Adds a key with a number. */
void
msgq_push_number(JsonbParseState **state, const char *key, int64 number)
{
	JsonbValue	value = {.type = jbvNumeric};

	value.val.numeric = int64_to_numeric(number);
	msgq_push_text(state, WJB_KEY, key);
	pushJsonbValue(state, WJB_VALUE, &value);
}

/* Two texts in the order of COLLATE "C", as qsort wants it. */
int
msgq_compare_texts(Datum left, Datum right)
{
	text	   *a = DatumGetTextPP(left);
	text	   *b = DatumGetTextPP(right);
	int			a_length = VARSIZE_ANY_EXHDR(a);
	int			b_length = VARSIZE_ANY_EXHDR(b);
	int			order = memcmp(VARDATA_ANY(a), VARDATA_ANY(b),
							   Min(a_length, b_length));

	return order != 0 ? order : a_length - b_length;
}

/*
 * The value with its bytes in itself.  Whoever gets a message may keep it for
 * longer than the row lives, and vacuum would take the out-of-line part away.
 */
Datum
msgq_self_contained(Datum value)
{
	struct varlena *bytes = (struct varlena *) DatumGetPointer(value);

	if (VARATT_IS_EXTERNAL(bytes))
		return PointerGetDatum(detoast_external_attr(bytes));
	return value;
}

/*
 * Appends the row to the result of a function that returns msgq.message.
 * Needs an active snapshot, for out-of-line values.
 */
void
msgq_row_put(TupleTableSlot *row, bool with_receipt, Tuplestorestate *store,
			 TupleDesc descriptor)
{
	static const AttrNumber column_of[Natts_message] = {
		[Anum_message_id - 1] = Anum_segment_id,
		[Anum_message_deliveries - 1] = Anum_segment_deliveries,
		[Anum_message_failures - 1] = Anum_segment_failures,
		[Anum_message_priority - 1] = Anum_segment_priority,
		[Anum_message_group_key - 1] = Anum_segment_group_key,
		[Anum_message_enqueued_at - 1] = Anum_segment_enqueued_at,
		[Anum_message_visible_at - 1] = Anum_segment_visible_at,
		[Anum_message_expires_at - 1] = Anum_segment_expires_at,
		[Anum_message_headers - 1] = Anum_segment_headers,
		[Anum_message_body - 1] = Anum_segment_body,
		[Anum_message_data - 1] = Anum_segment_data,
	};
	Datum		values[Natts_message];
	bool		nulls[Natts_message];
	pg_uuid_t	receipt;

	slot_getallattrs(row);
	for (int i = 0; i < Natts_message; i++)
	{
		AttrNumber	column = column_of[i];

		nulls[i] = column == 0 || row->tts_isnull[column - 1];
		values[i] = nulls[i] ? (Datum) 0 : row->tts_values[column - 1];
		if (!nulls[i] && TupleDescAttr(descriptor, i)->attlen == -1)
			values[i] = msgq_self_contained(values[i]);
	}
	if (with_receipt)
	{
		msgq_receipt_encode(&receipt, msgq_row_id(row),
							msgq_row_time(row, Anum_segment_leased_at),
							DatumGetInt32(msgq_row_value(row, Anum_segment_deliveries)));
		values[Anum_message_receipt - 1] = UUIDPGetDatum(&receipt);
		nulls[Anum_message_receipt - 1] = false;
	}
	tuplestore_putvalues(store, descriptor, values, nulls);
}
