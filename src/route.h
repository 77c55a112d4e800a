/*
 * route.h
 *		Where a message goes.
 *
 * src/route.h
 */
#ifndef MSGQ_ROUTE_H
#define MSGQ_ROUTE_H

#include "topic.h"

/* What consumers are told of how a message came. */
#define MSGQ_TOPIC_HEADER		"msgq-topic"
#define MSGQ_ROUTING_KEY_HEADER	"msgq-routing-key"

/* What bindings see of a message. */
typedef struct MsgqRoutable
{
	const char *routing_key;
	const Datum *headers;		/* jsonb; NULL: none */
	const Datum *body;			/* jsonb; NULL: it is bytes */
	bool		ignores_filters;	/* the body is not known: all pass */
	Datum		filter_input;	/* once it was needed */
} MsgqRoutable;

/* Where it goes. */
typedef struct MsgqRoute
{
	int			ntopics;
	const MsgqTopic **topics;	/* that it passes */
	int			ntargets;
	const MsgqTarget **targets; /* queues and streams, each once, by id */
} MsgqRoute;

extern MsgqRoute *msgq_route(const MsgqRouting *routing,
							 MsgqRoutable *message);
extern MsgqRoute *msgq_route_union(MsgqRoute *const *routes, int n);
extern bool msgq_route_has_target(const MsgqRoute *route, int32 target_id);
extern bool msgq_route_passes(const MsgqRoute *route, const MsgqTopic *topic);
extern const MsgqTopic *msgq_route_last_resort(const MsgqRouting *routing);
extern bool msgq_binding_accepts(const MsgqBinding *binding,
								 MsgqRoutable *message);
extern void msgq_check_routing_key(const char *key, const char *argument);

#endif							/* MSGQ_ROUTE_H */
