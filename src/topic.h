/*
 * topic.h
 *		What is known about a topic: its bindings, and where they lead.
 *
 * src/topic.h
 */
#ifndef MSGQ_TOPIC_H
#define MSGQ_TOPIC_H

#include "datatype/timestamp.h"
#include "nodes/parsenodes.h"
#include "utils/snapshot.h"

#include "filter.h"
#include "pattern.h"
#include "queue.h"

/* Columns of msgq.topic (src/sql/schema.sql). */
enum
{
	Anum_topic_id = 1,
	Anum_topic_name,
	Anum_topic_created_at,
	Anum_topic_kind,
	Anum_topic_on_unroutable,
	Anum_topic_alternate,
	Anum_topic_retain,
	Anum_topic_max_retained,
	Anum_topic_log,
	Anum_topic_log_bytes,
	Anum_topic_version,
	Natts_topic = Anum_topic_version
};

/* Columns of msgq.binding. */
enum
{
	Anum_binding_topic_id = 1,
	Anum_binding_id,
	Anum_binding_target_id,
	Anum_binding_pattern,
	Anum_binding_header_match,
	Anum_binding_filter,
	Anum_binding_retained,
	Anum_binding_created_at,
	Natts_binding = Anum_binding_created_at
};

/* Of routing keys, and of patterns of bindings: AMQP's limit. */
#define MSGQ_MAX_ROUTING_KEY_BYTES	255

/* Tables that take turns in keeping retained messages. */
#define MSGQ_RETAINED_LOGS	2

typedef enum MsgqTopicKind
{
	MSGQ_TOPIC_DIRECT,			/* the pattern is the routing key */
	MSGQ_TOPIC_FANOUT,			/* whatever the routing key is */
	MSGQ_TOPIC_TOPIC,			/* the pattern matches it */
	MSGQ_TOPIC_HEADERS			/* the headers match */
} MsgqTopicKind;

/* What becomes of a message that no binding takes. */
typedef enum MsgqUnroutable
{
	MSGQ_UNROUTABLE_ERROR,
	MSGQ_UNROUTABLE_DROP,
	MSGQ_UNROUTABLE_ALTERNATE	/* it goes to another topic */
} MsgqUnroutable;

typedef enum MsgqTargetKind
{
	MSGQ_TARGET_QUEUE,
	MSGQ_TARGET_STREAM,
	MSGQ_TARGET_TOPIC
} MsgqTargetKind;

/* Where a binding leads. */
typedef struct MsgqTarget
{
	int32		id;
	MsgqTargetKind kind;
	NameData	name;
	int			topic;			/* a topic's number in the routing */
} MsgqTarget;

typedef struct MsgqBinding
{
	int32		id;
	MsgqTarget	target;
	char	   *pattern;
	Jsonb	   *header_match;	/* or NULL */
	MsgqHeaderMatch *headers;	/* the same, compiled */
	JsonPath   *filter;			/* or NULL */
} MsgqBinding;

typedef struct MsgqTopic
{
	int32		id;
	NameData	name;
	TimestampTz created_at;
	int32		version;
	MsgqTopicKind kind;
	MsgqUnroutable on_unroutable;
	int32		alternate_id;	/* 0: none */
	int			alternate;		/* its number in the routing; -1: none */
	Oid			handle;			/* the view that carries the rights */
	Oid			sequence;		/* of retained messages */
	bool		retain;
	int			log;			/* of the following, that takes new ones */
	Oid			logs[MSGQ_RETAINED_LOGS];

	/* in a routing */
	MsgqMatcher *matcher;		/* tells numbers of bindings */
	int			nbindings;
	MsgqBinding *bindings;
} MsgqTopic;

/*
 * A topic with all those to which its messages can get, as they were at one
 * instant.
 */
typedef struct MsgqRouting
{
	uint64		generation;		/* when it was read, or found unchanged */
	uint64		epoch;			/* when it was read */
	int			ntopics;
	MsgqTopic  *topics;			/* the first one is that which was looked up */
	int			max_bindings;	/* that one of them has */
} MsgqRouting;

/* How its bindings' patterns are written. */
static inline MsgqSyntax
msgq_topic_syntax(const MsgqTopic *topic)
{
	return topic->kind == MSGQ_TOPIC_DIRECT ? MSGQ_SYNTAX_EXACT : MSGQ_SYNTAX_AMQP;
}

extern void msgq_topic_init(void);
extern void msgq_topic_changed(int32 topic_id);
extern void msgq_target_changed(int32 target_id);
extern bool msgq_target_find(int32 id, MsgqTarget *target);
extern void msgq_topic_forget_all(void);
extern MsgqTopic *msgq_topic_find(const char *name);
extern MsgqTopic *msgq_topic_get(const char *name, AclMode right);
extern const MsgqRouting *msgq_routing_find(const char *topic);
extern const MsgqRouting *msgq_routing_get(const char *topic, AclMode right);
extern bool msgq_routing_is_current(const MsgqRouting *routing);
extern const char *msgq_topic_kind_name(MsgqTopicKind kind);

#endif							/* MSGQ_TOPIC_H */
