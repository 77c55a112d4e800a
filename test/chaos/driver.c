/*
 * driver.c
 *		The load of a chaos run: what one client does, again and again.
 *
 * usage: driver ROLE NAME SEED LOG [--option VALUE]...
 *
 *	producer	sends to the queues work, ordered and effects: one by one, in
 *				batches, delayed, with savepoints, rolled back
 *	keys		sends to the queue keys, with idempotency keys that others use too
 *	consumer	receives from work, and settles in each way, late and twice too
 *	ordered		the same of the queue ordered
 *	effects		takes from effects, with an effect in the same transaction
 *	prepared	does these in transactions that it prepares and ends later
 *	appender	appends to the stream events
 *	reader		reads that in transactions, for the group --group
 *	poller		polls and commits, for the group --group
 *	drain		empties the queue --queue, and ends
 *	catchup		reads for --group until nothing is left, and ends
 *	probe		measures how soon a receive that waits has a message, and ends
 *
 * All but the last three go on until SIGTERM.  --async on lets leases commit
 * asynchronously; --positions on lets each commit be followed by the end of the
 * write-ahead log.  --receive, --ack, --reject and --read name functions that
 * stand for those of msgq, and --kind is how consumers always settle, as numbered
 * in consume() (lib/Canaries.pm).
 *
 * test/chaos/driver.c
 */
#include "work.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PREPARED 6

/* What has no position after so long has no entry either. */
#define QUIET_US	INT64_C(10000000)

Options		options = {
	.receive = "msgq.receive",
	.ack = "msgq.ack",
	.reject = "msgq.reject",
	.read = "msgq.read",
	.queue = "work",
	.group = "g1",
	.timeout = "30",
};

/* ---------------------------------------------------------------------------
 * Prepared transactions
 * ---------------------------------------------------------------------------
 */

static void
prepare_one(void)
{
	int			kind = between(1, 6);
	bool		to_be_committed = !one_in(3);
	bool		done;

	if (!begin("prepared", MARKED))
		return;
	if (kind == 1)
		done = take("work", 3, 1000) && settle_all("ack", "work", 0, nitems - 1);
	else if (kind == 2)
		done = take_with_effect("effects", 3);
	else if (kind == 3)
		done = append(1) && append(2);
	else if (kind == 4)
		done = take("ordered", 2, 500);
	else
		done = send_one(any_queue(), 1) && send_one(any_queue(), 2);
	if (done)
		prepare_transaction(to_be_committed);
}

static void
prepare_or_finish(void)
{
	int			wait = between(10, 300);

	if (count_prepared() >= MAX_PREPARED || (count_prepared() > 0 && one_in(2)))
		finish_prepared();
	else
		prepare_one();
	sleep_us(wait * 1000);
}

/* ---------------------------------------------------------------------------
 * After the faults
 * ---------------------------------------------------------------------------
 */

/* Takes all that there is, until the server says that the queue is empty. */
static void
drain(void)
{
	bool		is_effects = strcmp(options.queue, "effects") == 0;

	while (!stopping)
	{
		const char *params[] = {options.queue};
		PGresult   *result;
		bool		is_empty;

		next_round();
		if (!begin("drain", MARKED))
			continue;
		if (!take(options.queue, 50, 5000) || (is_effects && !put_effects()) ||
			!settle_all("ack", options.queue, 0, nitems - 1))
			continue;
		result = query("SELECT msgq.why_empty($1)", 1, params);
		if (result == NULL)
			continue;
		is_empty = nitems == 0 && strcmp(PQgetvalue(result, 0, 0), "empty") == 0;
		PQclear(result);
		commit();
		if (is_empty)
			return;
		if (nitems == 0)
			sleep_us(50000);
	}
}

/*
 * Is a group through with the stream, also with what gets its position late?
 * Ids that were rolled back last, or that a crash has skipped, get none: when
 * what is left has stayed the same for long, nothing comes any more.
 */
static bool
is_through(void)
{
	static char before[24] = "";
	static int64_t since = 0;
	const char *params[] = {options.group};
	const char *left;
	PGresult   *result;
	bool		through;

	next_round();
	if (!begin("look", UNMARKED))
		return false;
	result = query("SELECT (SELECT coalesce(sum(lag), 0) FROM msgq.group_lag WHERE consumer_group = $1) "
				   "+ (SELECT max(unsequenced) FROM msgq.stream_stats WHERE stream = 'events')",
				   1, params);
	if (result == NULL)
		return false;
	left = PQgetvalue(result, 0, 0);
	if (strcmp(left, before) != 0)
	{
		snprintf(before, sizeof(before), "%s", left);
		since = now_us();
	}
	through = strcmp(left, "0") == 0 || now_us() - since > QUIET_US;
	PQclear(result);
	commit();
	return through;
}

static void
catch_up(void)
{
	do
	{
		next_round();
		if (options.group[0] == 'p')
			poll_entries();
		else
			read_entries();
	} while (!stopping && !is_through());
}

/*
 * A second connection waits in a receive, and we send; by a prepared
 * transaction every third time, whose commit wakes nobody up.  Measured is the
 * time from the commit to the result.
 */
static void
probe(void)
{
	PGconn	   *waiter = PQconnectdb("dbname=postgres application_name=chaos-waiter");
	int64_t		limit = atoi(options.timeout) * INT64_C(1000000);

	if (options.poll_interval != NULL)
		PQclear(PQexec(waiter, textf("LOAD 'msgq'; SET msgq.poll_interval = '%s'", options.poll_interval)));
	for (int i = 0; i < 12 && !stopping; i++)
	{
		bool		by_prepared = i % 3 == 2;
		const char *params[] = {textf("%s.%d", client_name, i)};
		int64_t		sent_at;
		int64_t		us;
		PGresult   *result;

		PQsendQuery(waiter, textf("SELECT id FROM msgq.receive('probe', 1, '1 min', wait => '%s s')",
								  options.timeout));
		PQflush(waiter);
		sleep_us(between(100000, 400000));
		next_round();
		if (!begin("probe", MARKED) ||
			!command("SELECT msgq.send('probe', to_jsonb($1::text))", 1, params))
			continue;
		if (by_prepared ? !(prepare_transaction(true) && finish_prepared()) :
			commit() != OUTCOME_OK)
			continue;
		sent_at = now_us();
		result = PQgetResult(waiter);
		us = now_us() - sent_at;
		if (PQresultStatus(result) != PGRES_TUPLES_OK || PQntuples(result) == 0)
			us = limit;
		logged("probe %ld %lld %s", tx, (long long) us, by_prepared ? "prepared" : "plain");
		PQclear(result);
		while ((result = PQgetResult(waiter)) != NULL)
			PQclear(result);
	}
	PQfinish(waiter);
}

/* ---------------------------------------------------------------------------
 * Roles
 * ---------------------------------------------------------------------------
 */

static void
consume_work(void)
{
	consume("work");
}

static void
consume_ordered(void)
{
	consume("ordered");
}

static void
read_some(void)
{
	read_entries();
}

typedef struct Role
{
	const char *name;
	void		(*work) (void); /* again and again; or, if it ends by itself, */
	void		(*all) (void);
	int			pause_ms;		/* after each time, on average */
} Role;

static const Role roles[] = {
	{"producer", produce, NULL, 12},
	{"keys", send_key, NULL, 25},
	{"consumer", consume_work, NULL, 5},
	{"ordered", consume_ordered, NULL, 5},
	{"effects", take_effects, NULL, 10},
	{"prepared", prepare_or_finish, NULL, 0},
	{"appender", append_some, NULL, 20},
	{"reader", read_some, NULL, 15},
	{"poller", poll_entries, NULL, 15},
	{"drain", NULL, drain, 0},
	{"catchup", NULL, catch_up, 0},
	{"probe", NULL, probe, 0},
};

static const Role *
find_role(const char *name)
{
	for (size_t i = 0; i < sizeof(roles) / sizeof(roles[0]); i++)
	{
		if (strcmp(roles[i].name, name) == 0)
			return &roles[i];
	}
	fprintf(stderr, "there is no role %s\n", name);
	exit(2);
}

static void
read_options(int argc, char **argv)
{
	static const struct option names[] = {
		{"receive", required_argument, NULL, 'v'},
		{"ack", required_argument, NULL, 'a'},
		{"reject", required_argument, NULL, 'j'},
		{"read", required_argument, NULL, 'd'},
		{"queue", required_argument, NULL, 'q'},
		{"group", required_argument, NULL, 'g'},
		{"timeout", required_argument, NULL, 't'},
		{"poll-interval", required_argument, NULL, 'p'},
		{"async", required_argument, NULL, 's'},
		{"positions", required_argument, NULL, 'o'},
		{"kind", required_argument, NULL, 'k'},
		{NULL, 0, NULL, 0}
	};
	int			c;

	while ((c = getopt_long(argc, argv, "", names, NULL)) != -1)
	{
		switch (c)
		{
			case 'v':
				options.receive = optarg;
				break;
			case 'a':
				options.ack = optarg;
				break;
			case 'j':
				options.reject = optarg;
				break;
			case 'd':
				options.read = optarg;
				break;
			case 'q':
				options.queue = optarg;
				break;
			case 'g':
				options.group = optarg;
				break;
			case 't':
				options.timeout = optarg;
				break;
			case 'p':
				options.poll_interval = optarg;
				break;
			case 's':
				options.async_leases = strcmp(optarg, "on") == 0;
				break;
			case 'o':
				options.positions = strcmp(optarg, "on") == 0;
				break;
			case 'k':
				options.kind = atoi(optarg);
				break;
			default:
				exit(2);
		}
	}
}

int
main(int argc, char **argv)
{
	const Role *role;

	read_options(argc, argv);
	if (argc - optind != 4)
	{
		fprintf(stderr, "usage: driver ROLE NAME SEED LOG [--option VALUE]...\n");
		return 2;
	}
	argv += optind;
	role = find_role(argv[0]);
	client_start(argv[1], argv[0], strtoull(argv[2], NULL, 10), argv[3],
				 options.async_leases, options.positions);
	if (role->all != NULL)
		role->all();
	while (role->work != NULL && !stopping)
	{
		next_round();
		role->work();
		sleep_us(between(0, 2 * role->pause_ms) * 1000);
	}
	client_finish();
	return 0;
}
