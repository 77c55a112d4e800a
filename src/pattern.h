/*
 * pattern.h
 *		Patterns of routing keys, compiled, many at a time.
 *
 * src/pattern.h
 */
#ifndef MSGQ_PATTERN_H
#define MSGQ_PATTERN_H

/* How patterns and keys are written. */
typedef enum MsgqSyntax
{
	MSGQ_SYNTAX_AMQP,
	MSGQ_SYNTAX_MQTT,
	MSGQ_SYNTAX_NATS,
	MSGQ_SYNTAX_EXACT			/* the pattern is the key */
} MsgqSyntax;

typedef struct MsgqMatcher MsgqMatcher;

extern MsgqMatcher *msgq_matcher_create(MsgqSyntax syntax);
extern void msgq_matcher_add(MsgqMatcher *matcher, const char *pattern,
							 int number);
extern int	msgq_matcher_match(MsgqMatcher *matcher, const char *key,
							   int *numbers);

#endif							/* MSGQ_PATTERN_H */
