/*
 * route.c
 *		Where a message goes: from binding to binding, from topic to topic.
 *
 * A binding takes a message if all its conditions hold: the pattern matches the
 * routing key, the headers are what they must be, the filter passes.  A topic
 * all of whose bindings decline sends the message to its alternate, if it has
 * one; and if there is no target in the end, all topics that the message has
 * passed do.  Each topic is passed once, and each queue or stream is a target
 * once, however many ways lead there.
 *
 * Topics cannot lead back to themselves (topicadmin.c sees to it).
 *
 * src/route.c
 */
#include "msgq.h"

#include "funcapi.h"
#include "lib/qunique.h"
#include "utils/builtins.h"
#include "utils/jsonpath.h"
#include "utils/tuplestore.h"

#include "argument.h"
#include "owner.h"
#include "route.h"

/* Called for each binding that takes the message. */
typedef void (*BindingVisitor) (void *context, const MsgqTopic *topic,
								const MsgqBinding *binding);

/* Does the filter pass, as far as that can be told? */
static bool
filter_passes(const MsgqBinding *binding, MsgqRoutable *message)
{
	if (binding->filter == NULL || message->ignores_filters)
		return true;
	if (message->filter_input == (Datum) 0)
		message->filter_input = msgq_filter_input(message->headers, message->body);
	return msgq_filter_passes(binding->filter, message->filter_input);
}

/* Does the binding take the message, if its pattern matches the routing key? */
bool
msgq_binding_accepts(const MsgqBinding *binding, MsgqRoutable *message)
{
	return (binding->headers == NULL ||
			msgq_header_match_passes(binding->headers, message->headers ?
									 DatumGetJsonbP(*message->headers) : NULL)) &&
		filter_passes(binding, message);
}

/* Calls the visitor for the bindings of one topic; false if there are none. */
static bool
visit_topic(const MsgqTopic *topic, MsgqRoutable *message, int *numbers,
			BindingVisitor visitor, void *context)
{
	int			n = msgq_matcher_match(topic->matcher, message->routing_key,
									   numbers);
	bool		taken = false;

	for (int i = 0; i < n; i++)
	{
		const MsgqBinding *binding = &topic->bindings[numbers[i]];

		if (!msgq_binding_accepts(binding, message))
			continue;
		taken = true;
		visitor(context, topic, binding);
	}
	return taken;
}

/* The topics that are to be passed. */
typedef struct Itinerary
{
	int			n;
	int		   *topics;
	bool	   *is_known;
	bool		has_target;		/* a queue or a stream */
	BindingVisitor visitor;
	void	   *context;
} Itinerary;

static void
pass(Itinerary *itinerary, int topic)
{
	if (topic < 0 || itinerary->is_known[topic])
		return;
	itinerary->is_known[topic] = true;
	itinerary->topics[itinerary->n++] = topic;
}

static void
visit_binding(void *context, const MsgqTopic *topic, const MsgqBinding *binding)
{
	Itinerary  *itinerary = context;

	if (binding->target.kind == MSGQ_TARGET_TOPIC)
		pass(itinerary, binding->target.topic);
	else
		itinerary->has_target = true;
	itinerary->visitor(itinerary->context, topic, binding);
}

/* Goes from topic to topic. */
static Itinerary
travel(const MsgqRouting *routing, MsgqRoutable *message,
	   BindingVisitor visitor, void *context)
{
	int		   *numbers = palloc(sizeof(int) * Max(routing->max_bindings, 1));
	Itinerary	itinerary = {
		.topics = palloc(sizeof(int) * routing->ntopics),
		.is_known = palloc0(sizeof(bool) * routing->ntopics),
		.visitor = visitor,
		.context = context
	};
	int			visited = 0;

	pass(&itinerary, 0);
	while (visited < itinerary.n)
	{
		for (; visited < itinerary.n; visited++)
		{
			const MsgqTopic *topic = &routing->topics[itinerary.topics[visited]];

			if (!visit_topic(topic, message, numbers, visit_binding, &itinerary))
				pass(&itinerary, topic->alternate);
		}
		for (int i = 0; i < visited && !itinerary.has_target; i++)
			pass(&itinerary, routing->topics[itinerary.topics[i]].alternate);
	}
	pfree(numbers);
	return itinerary;
}

/* ---------------------------------------------------------------------------
 * Targets
 * ---------------------------------------------------------------------------
 */

static void
collect_target(void *context, const MsgqTopic *topic, const MsgqBinding *binding)
{
	List	  **targets = context;

	if (binding->target.kind != MSGQ_TARGET_TOPIC)
		*targets = lappend(*targets, (void *) &binding->target);
}

static int
compare_targets(const void *left, const void *right)
{
	const MsgqTarget *a = *(const MsgqTarget *const *) left;
	const MsgqTarget *b = *(const MsgqTarget *const *) right;

	return a->id < b->id ? -1 : a->id > b->id;
}

/* The targets by number, each once; they are palloc'd, and there may be none. */
static void
sort_targets(MsgqRoute *route)
{
	if (route->ntargets < 2)
		return;
	qsort(route->targets, route->ntargets, sizeof(MsgqTarget *), compare_targets);
	route->ntargets = qunique(route->targets, route->ntargets,
							  sizeof(MsgqTarget *), compare_targets);
}

/* Where the message goes; in the current memory context. */
MsgqRoute  *
msgq_route(const MsgqRouting *routing, MsgqRoutable *message)
{
	MsgqRoute  *route = palloc0(sizeof(MsgqRoute));
	List	   *targets = NIL;
	Itinerary	itinerary = travel(routing, message, collect_target, &targets);
	ListCell   *cell;

	route->topics = palloc(sizeof(MsgqTopic *) * itinerary.n);
	while (route->ntopics < itinerary.n)
	{
		route->topics[route->ntopics] =
			&routing->topics[itinerary.topics[route->ntopics]];
		route->ntopics++;
	}
	route->targets = palloc(sizeof(MsgqTarget *) * Max(list_length(targets), 1));
	foreach(cell, targets)
		route->targets[route->ntargets++] = lfirst(cell);
	sort_targets(route);
	return route;
}

/*
 * Where at least one of the messages goes whose routes, of the same routing,
 * these are.
 */
MsgqRoute  *
msgq_route_union(MsgqRoute *const *routes, int n)
{
	MsgqRoute  *all = palloc0(sizeof(MsgqRoute));
	int			ntopics = 0;
	int			ntargets = 0;

	if (n == 1)
		return routes[0];
	for (int i = 0; i < n; i++)
	{
		ntopics += routes[i]->ntopics;
		ntargets += routes[i]->ntargets;
	}
	all->topics = palloc(sizeof(MsgqTopic *) * ntopics);
	all->targets = palloc(sizeof(MsgqTarget *) * Max(ntargets, 1));
	for (int i = 0; i < n; i++)
	{
		for (int k = 0; k < routes[i]->ntopics; k++)
		{
			if (!msgq_route_passes(all, routes[i]->topics[k]))
				all->topics[all->ntopics++] = routes[i]->topics[k];
		}
		for (int k = 0; k < routes[i]->ntargets; k++)
			all->targets[all->ntargets++] = routes[i]->targets[k];
	}
	sort_targets(all);
	return all;
}

/* Does the message go to the queue or stream of this number? */
bool
msgq_route_has_target(const MsgqRoute *route, int32 target_id)
{
	for (int i = 0; i < route->ntargets; i++)
	{
		if (route->targets[i]->id == target_id)
			return true;
	}
	return false;
}

/* Does the message pass this topic, of the same routing? */
bool
msgq_route_passes(const MsgqRoute *route, const MsgqTopic *topic)
{
	for (int i = 0; i < route->ntopics; i++)
	{
		if (route->topics[i] == topic)
			return true;
	}
	return false;
}

/* The topic that decides about a message without any target. */
const MsgqTopic *
msgq_route_last_resort(const MsgqRouting *routing)
{
	const MsgqTopic *topic = &routing->topics[0];

	while (topic->on_unroutable == MSGQ_UNROUTABLE_ALTERNATE &&
		   topic->alternate >= 0)
		topic = &routing->topics[topic->alternate];
	return topic;
}

/* A routing key has at most MSGQ_MAX_ROUTING_KEY_BYTES bytes (22023). */
void
msgq_check_routing_key(const char *key, const char *argument)
{
	if (strlen(key) > MSGQ_MAX_ROUTING_KEY_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be longer than %d bytes",
						argument, MSGQ_MAX_ROUTING_KEY_BYTES),
				 errdetail("It has %zu bytes.", strlen(key))));
}

/* ---------------------------------------------------------------------------
 * By SQL
 * ---------------------------------------------------------------------------
 */

/* Columns of the result of route. */
enum
{
	Anum_route_target = 1,
	Anum_route_binding,
	Anum_route_pattern,
	Anum_route_topic,
	Anum_route_header_match,
	Anum_route_filter,
	Natts_route = Anum_route_filter
};

static void
put_binding(void *context, const MsgqTopic *topic, const MsgqBinding *binding)
{
	ReturnSetInfo *result = context;
	Datum		values[Natts_route] = {0};
	bool		nulls[Natts_route] = {false};

#define SET(column, value) (values[(column) - 1] = (value))
	SET(Anum_route_target, CStringGetTextDatum(NameStr(binding->target.name)));
	SET(Anum_route_binding, Int32GetDatum(binding->id));
	SET(Anum_route_pattern, CStringGetTextDatum(binding->pattern));
	SET(Anum_route_topic, CStringGetTextDatum(NameStr(topic->name)));
	SET(Anum_route_header_match, PointerGetDatum(binding->header_match));
	SET(Anum_route_filter, PointerGetDatum(binding->filter));
#undef SET
	nulls[Anum_route_header_match - 1] = binding->header_match == NULL;
	nulls[Anum_route_filter - 1] = binding->filter == NULL;
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/* route(topic, routing_key, headers) */
PG_FUNCTION_INFO_V1(msgq_route_of);
Datum
msgq_route_of(PG_FUNCTION_ARGS)
{
	char	   *topic = msgq_arg_name(fcinfo, 0, "topic");
	char	   *key = msgq_arg_text(fcinfo, 1, "routing_key");
	Datum		headers = PG_ARGISNULL(2) ? (Datum) 0 : PG_GETARG_DATUM(2);
	MsgqRoutable message = {.routing_key = key,.ignores_filters = true};
	const MsgqRouting *routing;

	msgq_check_routing_key(key, "routing_key");
	if (!PG_ARGISNULL(2))
	{
		msgq_check_headers(DatumGetJsonbP(headers));
		message.headers = &headers;
	}
	routing = msgq_routing_get(topic, MSGQ_RIGHT_PEEK);
	InitMaterializedSRF(fcinfo, 0);
	(void) travel(routing, &message, put_binding, fcinfo->resultinfo);
	return (Datum) 0;
}
