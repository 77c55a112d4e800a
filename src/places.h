/*
 * places.h
 *		Where the entries of a stream have their places.
 *
 * src/places.h
 */
#ifndef MSGQ_PLACES_H
#define MSGQ_PLACES_H

#include "stream.h"
#include "table.h"

/* Columns of a table of places, msgq.s<id>_p<n>; all are NOT NULL. */
enum
{
	Anum_place_partition = 1,
	Anum_place_first_position,
	Anum_place_count,
	Anum_place_high,
	Anum_place_sequenced_at,
	Anum_place_ids,
	Anum_place_closed,
	Natts_place = Anum_place_closed
};

/* The sequencer's own rows, whose positions are the numbers of its steps. */
#define MSGQ_STEP_PARTITION		(-1)

/* Entries whose places are in one row. */
#define MSGQ_MAX_PLACES			1000

/* Ids from low to high. */
typedef struct MsgqRange
{
	int64		low;
	int64		high;
} MsgqRange;

/* A walk along the places of a partition. */
typedef struct MsgqPlaces
{
	const MsgqStream *stream;
	int			partition;
	int64		from;			/* the first position that is wanted */
	int64		expected;		/* that the next row must have */
	Snapshot	snapshot;
	int			segment;		/* in whose table we are */
	MsgqTable  *table;			/* NULL: not opened yet, or at the end */
	IndexScanDesc scan;
	/* the row on which we stand: */
	int64		first_position;
	TimestampTz sequenced_at;
	int			n;
	int64		ids[MSGQ_MAX_PLACES];
} MsgqPlaces;

extern bytea *msgq_ranges_encode(const MsgqRange *ranges, int n);
extern MsgqRange *msgq_ranges_decode(Datum encoded, int *n);
extern bytea *msgq_ids_encode(const int64 *ids, int n);

extern MsgqTable *msgq_places_open(const MsgqStream *stream, int segment);
extern MsgqPlaces *msgq_places_begin(const MsgqStream *stream, int partition,
									 int64 from, Snapshot snapshot);
extern bool msgq_places_next(MsgqPlaces *places);
extern void msgq_places_end(MsgqPlaces *places);
extern int64 msgq_places_end_position(const MsgqStream *stream, int partition,
									  Snapshot snapshot);
extern int64 msgq_places_at_time(const MsgqStream *stream, int partition,
								 TimestampTz time, Snapshot snapshot);

#endif							/* MSGQ_PLACES_H */
