/*
 * work.h
 *		What clients do with queues and streams.
 *
 * A message's value is <client>.<transaction>.<number>, unique in all of a run;
 * with it comes n, and the filler, the value and a dot n times over.  So whoever
 * knows value and n knows what the server has to return.
 *
 * test/chaos/work.h
 */
#ifndef CHAOS_WORK_H
#define CHAOS_WORK_H

#include "client.h"

#define MAX_BATCH 100
#define VALUE_LENGTH 48
#define RECEIPT_LENGTH 36

/* A message of that value and n. */
#define BODY(v, n) \
	"jsonb_build_object('v', " v ", 'n', " n ", 'p', repeat(" v " || '.', " n "))"

/*
 * What is fetched of a message or an entry: value, id, receipt, a column that the
 * format's first argument names, n, and the hash of the filler.
 */
#define ROW(row) \
	row ".body->>'v', " row ".id, coalesce(" row ".receipt::text, '-'), " \
	"%s, " row ".body->>'n', md5(coalesce(" row ".body->>'p', ''))"

/* What stands for functions of msgq, and other options. */
typedef struct Options
{
	const char *receive;
	const char *ack;
	const char *reject;
	const char *read;
	const char *queue;
	const char *group;
	const char *timeout;		/* in seconds */
	const char *poll_interval;
	bool		async_leases;
	bool		positions;		/* written down after each commit */
	int			kind;			/* 0: any */
} Options;

extern Options options;

/* Of what take() has taken, how many there are. */
extern int	nitems;

extern int	filler(void);
extern const char *number(int64_t n);

/* queues.c */
extern bool send_one(const char *queue, int i);
extern const char *any_queue(void);
extern void produce(void);
extern void send_key(void);
extern bool take(const char *queue, int count, int timeout);
extern bool settle_all(const char *action, const char *queue, int first, int last);
extern void consume(const char *queue);
extern bool put_effects(void);
extern bool take_with_effect(const char *queue, int count);
extern void take_effects(void);

/* streams.c */
extern bool append(int i);
extern void append_some(void);
extern int	read_entries(void);
extern void poll_entries(void);

#endif							/* CHAOS_WORK_H */
