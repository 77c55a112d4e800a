/*
 * filter.h
 *		Conditions on messages: jsonpath filters and header matches.
 *
 * src/filter.h
 */
#ifndef MSGQ_FILTER_H
#define MSGQ_FILTER_H

#include "utils/jsonb.h"
#include "utils/jsonpath.h"

typedef struct MsgqHeaderMatch MsgqHeaderMatch;

extern Datum msgq_filter_input(const Datum *headers, const Datum *body);
extern bool msgq_filter_passes(JsonPath *filter, Datum input);
extern void msgq_filter_check(JsonPath *filter);

extern MsgqHeaderMatch *msgq_header_match_compile(Jsonb *match);
extern bool msgq_header_match_passes(const MsgqHeaderMatch *match,
									 Jsonb *headers);

#endif							/* MSGQ_FILTER_H */
