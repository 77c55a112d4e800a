/*
 * latency.c
 *		How soon a waiting receive notices a message, and whether it always does.
 *
 * usage: latency pickup|race|handover [--option VALUE]...
 *
 *	pickup		messages come at a steady rate, whatever becomes of them, and
 *				consumers receive and acknowledge them; how long from the commit
 *				of each until a waiting consumer has it?
 *	race		producers send while consumers begin to wait, give up, are
 *				cancelled and disconnect, all the time; is anything left over, or
 *				received twice?
 *	handover	one message at a time, sent when somebody is known to wait; does
 *				the commit wake somebody up?
 *
 * Producers and consumers are non-blocking connections of one process, so one
 * clock serves both sides.  The time of an event is the moment at which the
 * server says that it is ready for the next statement: by then an autocommit
 * statement is committed.
 *
 * With --stream, pickup appends to a stream and reads it for a group; a read
 * returns all that is there, and moves the position with its own commit, so
 * there is nothing to acknowledge.
 *
 * The queue is called bench, the stream as --stream says, its group g; it has to
 * be there, and empty.  Output: one line
 * "name value" for each figure, and "bucket NAME LOW HIGH COUNT" in
 * microseconds.
 *
 * bench/latency.c
 */
#define _GNU_SOURCE				/* ppoll */

#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <libpq-fe.h>

#define US	INT64_C(1000)
#define MS	(1000 * US)
#define SEC (1000 * MS)
#define NEVER INT64_MAX

#define MAX_SESSIONS 64
#define RECEIPT_LENGTH 36
#define ACK_BATCH 500

/* After the last send, everything has to be picked up within this time. */
#define LAST_PICKUP (5 * SEC)

/* A single message has to be picked up within this time. */
#define HANDOVER_TIME (2 * SEC)

/* So many lost wake-ups are enough to know. */
#define LOST_ENOUGH 20

typedef enum
{
	IDLE,
	SENDING,
	BEGINNING,					/* a transaction around a receive */
	RECEIVING,
	COMMITTING,
	ACKING,
} State;

typedef struct
{
	PGconn	   *conn;
	State		state;
	bool		unflushed;		/* not all has reached the socket */
	PGresult   *result;			/* the first of the running statement */
	bool		failed;			/* did any result report an error? */
	char		sqlstate[6];	/* which one */
	int			message;		/* being sent, or received; else -1 */
	char		receipt[RECEIPT_LENGTH + 1];
	int64_t		asked_at;		/* when the receive was issued */
	bool		in_transaction; /* is the receive not autocommitted? */
	int64_t		interrupt_at;	/* cancel or disconnect then */
} Session;

/* options */
static int	rate = 500;
static int	seconds = 20;
static int	messages = 0;
static int	producers = 4;
static int	consumers = 2;
static int	measured = 0;		/* messages that count for the figures */
static const char *stream = NULL;	/* NULL: a queue */
static const char *body = "{}";
static const char *wait_time = "5 s";
static const char *poll_interval = NULL;
static unsigned int seed = 0;

/* Producers first, then consumers; then one that acknowledges or looks on. */
static Session sessions[MAX_SESSIONS];
static int	nsessions;
static Session *helper;
static bool poll_interval_set = true;

/* for each message */
static int64_t *issued_at;
static int64_t *committed_at;
static int64_t *asked_at;		/* when its receive was issued */
static int64_t *picked_at;

/* how many */
static int	nissued;
static int	ncommitted;
static int	npicked;
static int	ntwice;
static int	nstale;
static int	nempty;
static int	ncancelled;
static int	ndropped;

/* race: receipts that are to be acknowledged */
static char (*receipts)[RECEIPT_LENGTH + 1];
static int	nreceipts;
static int	nacked;

/* ---------------------------------------------------------------------------
 * Basics
 * ---------------------------------------------------------------------------
 */

static void __attribute__((noreturn, format(printf, 1, 2)))
die(const char *format,...)
{
	va_list		args;

	fprintf(stderr, "error: ");
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, "\n");
	exit(1);
}

static void *
allocate(size_t n, size_t size)
{
	void	   *memory = calloc(n > 0 ? n : 1, size);

	if (memory == NULL)
		die("out of memory");
	return memory;
}

static int64_t
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * SEC + t.tv_nsec;
}

/* A random number from low to high. */
static int64_t
between(int64_t low, int64_t high)
{
	return low + (((int64_t) random() << 31) | random()) % (high - low + 1);
}

static bool
one_in(int n)
{
	return between(1, n) == 1;
}

static bool
is_producer(const Session *session)
{
	return session - sessions < producers;
}

static bool
is_consumer(const Session *session)
{
	return !is_producer(session) && session != helper;
}

/* ---------------------------------------------------------------------------
 * Connections
 * ---------------------------------------------------------------------------
 */

static void
prepare(PGconn *conn, const char *name, const char *query)
{
	PGresult   *result = PQprepare(conn, name, query, 0, NULL);

	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		die("cannot prepare: %s", PQerrorMessage(conn));
	PQclear(result);
}

/* The fallback poll, where the server has such a setting. */
static void
set_poll_interval(PGconn *conn)
{
	const char *values[] = {poll_interval};
	PGresult   *result;

	if (poll_interval == NULL)
		return;
	/* Loads the library, which brings the setting, if it is not preloaded. */
	PQclear(PQexec(conn, "LOAD 'msgq'"));
	result = PQexecParams(conn,
						  "SELECT set_config('msgq.poll_interval', $1, false)",
						  1, NULL, values, NULL, NULL, 0);
	if (PQresultStatus(result) != PGRES_TUPLES_OK)
		poll_interval_set = false;
	PQclear(result);
}

/* The statements find the name of the stream in a setting. */
static void
set_stream(PGconn *conn)
{
	const char *values[] = {stream};
	PGresult   *result;

	if (stream == NULL)
		return;
	result = PQexecParams(conn, "SELECT set_config('bench.stream', $1, false)",
						  1, NULL, values, NULL, NULL, 0);
	if (PQresultStatus(result) != PGRES_TUPLES_OK)
		die("cannot name the stream: %s", PQerrorMessage(conn));
	PQclear(result);
}

static void
open_session(Session *session)
{
	PGconn	   *conn = PQconnectdb(is_consumer(session)
								   ? "application_name=msgq-bench-consumer"
								   : "application_name=msgq-bench-latency");

	if (PQstatus(conn) != CONNECTION_OK)
		die("cannot connect: %s", PQerrorMessage(conn));
	memset(session, 0, sizeof(*session));
	session->conn = conn;
	session->message = -1;
	session->interrupt_at = NEVER;
	set_stream(conn);
	if (is_producer(session))
		prepare(conn, "send", stream != NULL ?
				"SELECT msgq.append(current_setting('bench.stream'), $1::jsonb)" :
				"SELECT msgq.send('bench', $1::jsonb)");
	if (is_consumer(session))
	{
		set_poll_interval(conn);
		prepare(conn, "receive", stream != NULL ?
				"SELECT body->>'n', receipt, body FROM"
				" msgq.read(current_setting('bench.stream'), 'g', 100, wait => $1::interval)" :
				"SELECT body->>'n', receipt, body FROM msgq.receive('bench', 1,"
				" interval '1 h', wait => $1::interval)");
	}
	if (!is_producer(session) && stream == NULL)
		prepare(conn, "ack", "SELECT msgq.ack('bench', $1::uuid)");
	if (PQsetnonblocking(conn, 1) != 0)
		die("cannot make a connection non-blocking");
}

static void
open_sessions(void)
{
	nsessions = producers + consumers + 1;
	helper = &sessions[nsessions - 1];
	for (int i = 0; i < nsessions; i++)
		open_session(&sessions[i]);
}

static void
close_session(Session *session)
{
	PQclear(session->result);
	session->result = NULL;
	PQfinish(session->conn);
	session->conn = NULL;
	session->state = IDLE;
}

/* ---------------------------------------------------------------------------
 * Statements
 * ---------------------------------------------------------------------------
 */

static void
flush(Session *session)
{
	int			left = PQflush(session->conn);

	if (left < 0)
		die("connection lost: %s", PQerrorMessage(session->conn));
	session->unflushed = left > 0;
}

static void
begin_statement(Session *session, State state, int sent)
{
	if (!sent)
		die("cannot send a statement: %s", PQerrorMessage(session->conn));
	session->state = state;
	session->failed = false;
	flush(session);
}

static void
begin_prepared(Session *session, State state, const char *name,
			   const char *value)
{
	const char *values[] = {value};

	begin_statement(session, state,
					PQsendQueryPrepared(session->conn, name, 1, values, NULL,
										NULL, 0));
}

/* The number is one more member of the body. */
static void
begin_send(Session *session)
{
	char		text[8192];

	session->message = nissued++;
	snprintf(text, sizeof(text), "{\"n\": %d%s%s", session->message,
			 body[1] == '}' ? "" : ", ", body + 1);
	issued_at[session->message] = now();
	begin_prepared(session, SENDING, "send", text);
}

static void
begin_receive(Session *session, const char *wait)
{
	session->message = -1;
	session->asked_at = now();
	begin_prepared(session, RECEIVING, "receive", wait);
}

static void
begin_ack(Session *session)
{
	begin_prepared(session, ACKING, "ack", session->receipt);
}

/* ---------------------------------------------------------------------------
 * Results
 * ---------------------------------------------------------------------------
 */

static void
picked_up(int n, int64_t asked, int64_t at)
{
	if (n < 0 || n >= nissued)
		die("received message %d, which nobody has sent", n);
	if (picked_at[n] != 0)
	{
		ntwice++;
		return;
	}
	asked_at[n] = asked;
	picked_at[n] = at;
	npicked++;
}

/* What a receive has returned: at most one message. */
static void
read_message(Session *session)
{
	if (PQntuples(session->result) == 0)
	{
		nempty++;
		return;
	}
	if (PQgetisnull(session->result, 0, 0))
		die("received a message of somebody else");
	session->message = atoi(PQgetvalue(session->result, 0, 0));
	snprintf(session->receipt, sizeof(session->receipt), "%s",
			 PQgetvalue(session->result, 0, 1));
}

/* What a read has returned: any number of entries, which are done with. */
static void
read_entries(Session *session, int64_t at)
{
	int			n = PQntuples(session->result);

	if (n == 0)
		nempty++;
	for (int i = 0; i < n; i++)
	{
		if (PQgetisnull(session->result, i, 0))
			die("read an entry of somebody else");
		picked_up(atoi(PQgetvalue(session->result, i, 0)), session->asked_at, at);
	}
}

/*
 * The statement is over.  A receive that was cancelled is rolled back, and
 * its message, if it had one already, is there as before.
 */
static void
finish_statement(Session *session)
{
	int64_t		at = now();
	State		state = session->state;

	if (session->failed && strcmp(session->sqlstate, "57014") != 0)
		die("%s", PQerrorMessage(session->conn));
	session->state = IDLE;
	switch (state)
	{
		case IDLE:
			break;
		case SENDING:
			if (session->failed)
				die("a send was cancelled");
			committed_at[session->message] = at;
			ncommitted++;
			break;
		case BEGINNING:
			session->in_transaction = !session->failed;
			break;
		case RECEIVING:
			session->interrupt_at = NEVER;
			if (session->failed)
				ncancelled++;
			else if (stream != NULL)
				read_entries(session, at);
			else
				read_message(session);
			if (!session->in_transaction && session->message >= 0)
				picked_up(session->message, session->asked_at, at);
			break;
		case COMMITTING:
			session->in_transaction = false;
			if (session->failed)
				session->message = -1;
			if (session->message >= 0)
				picked_up(session->message, session->asked_at, at);
			break;
		case ACKING:
			if (session->failed || PQntuples(session->result) != 1)
				die("could not acknowledge");
			if (strcmp(PQgetvalue(session->result, 0, 0), "t") != 0 &&
				strcmp(PQgetvalue(session->result, 0, 0), "{}") != 0)
				nstale++;
			session->message = -1;
			break;
	}
	PQclear(session->result);
	session->result = NULL;
}

static void
read_results(Session *session)
{
	PGresult   *result;

	if (!PQconsumeInput(session->conn))
		die("connection lost: %s", PQerrorMessage(session->conn));
	while (!PQisBusy(session->conn))
	{
		result = PQgetResult(session->conn);
		if (result == NULL)
		{
			finish_statement(session);
			return;
		}
		if (PQresultStatus(result) == PGRES_FATAL_ERROR)
		{
			const char *code = PQresultErrorField(result, PG_DIAG_SQLSTATE);

			session->failed = true;
			snprintf(session->sqlstate, sizeof(session->sqlstate), "%s",
					 code != NULL ? code : "");
		}
		if (session->result == NULL)
			session->result = result;
		else
			PQclear(result);
	}
}

/* Sleeps until then, or until something has happened, and deals with it. */
static void
wait_until(int64_t until)
{
	struct pollfd fds[MAX_SESSIONS];
	Session    *session[MAX_SESSIONS];
	struct timespec timeout;
	int64_t		left = until - now();
	int			n = 0;

	for (int i = 0; i < nsessions; i++)
	{
		if (sessions[i].state == IDLE)
			continue;
		session[n] = &sessions[i];
		fds[n].fd = PQsocket(sessions[i].conn);
		fds[n].events = POLLIN | (sessions[i].unflushed ? POLLOUT : 0);
		fds[n++].revents = 0;
	}
	if (left < 0)
		left = 0;
	timeout.tv_sec = left / SEC;
	timeout.tv_nsec = left % SEC;
	/* An interrupted call is like one whose time is over. */
	if (ppoll(fds, n, &timeout, NULL) <= 0)
		return;
	for (int i = 0; i < n; i++)
	{
		if (fds[i].revents & POLLOUT)
			flush(session[i]);
		if (fds[i].revents & ~POLLOUT)
			read_results(session[i]);
	}
}

static void
cancel_statement(Session *session)
{
	PGcancel   *cancel = PQgetCancel(session->conn);
	char		error[256] = "";

	if (cancel == NULL || !PQcancel(cancel, error, sizeof(error)))
		die("cannot cancel: %s", error);
	PQfreeCancel(cancel);
}

/*
 * The server does not notice at once that a client has gone.  A receive that
 * still waits would take the first message of whatever comes next.
 */
static void
close_sessions(void)
{
	int64_t		give_up = now() + LAST_PICKUP;

	for (int i = 0; i < nsessions; i++)
	{
		if (sessions[i].state == RECEIVING)
			cancel_statement(&sessions[i]);
	}
	for (int i = 0; i < nsessions; i++)
	{
		while (sessions[i].state != IDLE && now() < give_up)
			wait_until(give_up);
		close_session(&sessions[i]);
	}
	nsessions = 0;
}

/* ---------------------------------------------------------------------------
 * Figures
 * ---------------------------------------------------------------------------
 */

static int
compare(const void *a, const void *b)
{
	int64_t		x = *(const int64_t *) a;
	int64_t		y = *(const int64_t *) b;

	return (x > y) - (x < y);
}

static double
percentile(const int64_t *sorted, int n, double p)
{
	int			i = (int) (p / 100 * n);

	if (n == 0)
		return 0;
	return (double) sorted[i < n ? i : n - 1] / US;
}

/* Buckets from 1, 2 and 5 times a power of ten microseconds to the next. */
static void
print_buckets(const char *name, const int64_t *sorted, int n)
{
	static const int factors[] = {2, 5, 10};
	int64_t		low = 0;
	int64_t		high = 10 * US;
	int64_t		decade = 10 * US;
	int			i = 0;

	for (int step = 0; i < n; step++)
	{
		int			first = i;

		while (i < n && sorted[i] < high)
			i++;
		if (i > first)
			printf("bucket %s %" PRId64 " %" PRId64 " %d\n", name, low / US,
				   high / US, i - first);
		low = high;
		high = decade * factors[step % 3];
		if (step % 3 == 2)
			decade *= 10;
	}
}

/*
 * The times from "since" to the pick-up.  A consumer may have the message
 * before the producer has the reply to its commit; that counts as no time.
 */
static void
print_latencies(const char *name, const int64_t *since)
{
	static const double percents[] = {50, 90, 99, 99.9};
	int64_t    *sorted = allocate(measured, sizeof(*sorted));
	int			n = 0;

	for (int i = 0; i < nissued && i < measured; i++)
	{
		if (picked_at[i] == 0 || since[i] == 0)
			continue;
		sorted[n++] = picked_at[i] > since[i] ? picked_at[i] - since[i] : 0;
	}
	qsort(sorted, n, sizeof(*sorted), compare);
	for (int i = 0; i < 4; i++)
		printf("%s_p%g %.1f\n", name, percents[i],
			   percentile(sorted, n, percents[i]));
	printf("%s_max %.1f\n", name, percentile(sorted, n, 100));
	print_buckets(name, sorted, n);
	free(sorted);
}

/*
 * What a receive has cost: from when it was called and there was a message,
 * whichever came last.
 */
static int64_t *
claimable_at(void)
{
	int64_t    *since = allocate(messages, sizeof(*since));

	for (int i = 0; i < nissued; i++)
		since[i] = asked_at[i] > committed_at[i] ? asked_at[i] : committed_at[i];
	return since;
}

static void
print_figures(void)
{
	printf("seed %u\n", seed);
	printf("sent %d\n", ncommitted);
	printf("picked_up %d\n", npicked);
	printf("twice %d\n", ntwice);
	printf("stale %d\n", nstale);
	printf("empty %d\n", nempty);
	printf("cancelled %d\n", ncancelled);
	printf("disconnected %d\n", ndropped);
	if (poll_interval != NULL)
		printf("poll_interval_set %d\n", poll_interval_set);
	print_latencies("commit", committed_at);
	print_latencies("issue", issued_at);
	print_latencies("receive", asked_at);
	print_latencies("claim", claimable_at());
}

/* ---------------------------------------------------------------------------
 * pickup
 * ---------------------------------------------------------------------------
 */

/* A consumer that works: receive with wait, ack, and so on. */
static void
next_of_consumer(Session *session)
{
	if (session->state != IDLE)
		return;
	if (session->message >= 0)
		begin_ack(session);
	else
		begin_receive(session, wait_time);
}

static void
next_of_consumers(void)
{
	for (int i = 0; i < nsessions; i++)
	{
		if (is_consumer(&sessions[i]))
			next_of_consumer(&sessions[i]);
	}
}

/* Messages per second that were picked up within this time. */
static double
picked_within(int64_t start, int64_t time)
{
	int			n = 0;

	for (int i = 0; i < nissued; i++)
		n += picked_at[i] != 0 && picked_at[i] < start + time;
	return (double) n * SEC / time;
}

/*
 * An open loop: when a message is due, it is sent, also if those before it are
 * still on their way.  Usually one connection does it all.
 */
static void
pickup(void)
{
	int64_t		interval = SEC / rate;
	int64_t		start;
	int64_t		last_commit = NEVER;
	int64_t		latest = 0;
	int			most_waiting = 0;

	/* Let the consumers begin to wait. */
	next_of_consumers();
	for (start = now() + 500 * MS; now() < start;)
	{
		wait_until(start);
		next_of_consumers();
	}
	for (;;)
	{
		int64_t		until = now() + SEC;

		next_of_consumers();
		for (int i = 0; i < producers && nissued < messages; i++)
		{
			int64_t		due = start + nissued * interval;
			int64_t		late = now() - due;

			if (sessions[i].state != IDLE)
				continue;
			if (late < 0)
			{
				until = due;
				break;
			}
			begin_send(&sessions[i]);
			if (late > latest)
				latest = late;
			if (nissued - npicked > most_waiting && nissued <= measured)
				most_waiting = nissued - npicked;
		}
		if (ncommitted == messages)
		{
			if (last_commit == NEVER)
				last_commit = now();
			until = last_commit + LAST_PICKUP;
			if (npicked == messages || now() >= until)
				break;
		}
		wait_until(until);
	}
	/* The last acks. */
	for (int64_t end = now() + SEC; now() < end;)
	{
		bool		acking = false;

		for (int i = 0; i < nsessions; i++)
		{
			Session    *session = &sessions[i];

			if (session->state == IDLE && session->message >= 0 &&
				is_consumer(session))
				begin_ack(session);
			acking |= session->state == ACKING;
		}
		if (!acking)
			break;
		wait_until(end);
	}
	printf("late_max %.1f\n", (double) latest / US);
	printf("waiting_max %d\n", most_waiting);
	printf("rate %.1f\n", picked_within(start, measured * interval));
}

/* ---------------------------------------------------------------------------
 * race
 * ---------------------------------------------------------------------------
 */

/* When to cut a wait short: often about when a message comes. */
static int64_t
interruption(int wait)
{
	return now() + between(0, one_in(2) ? 300 * US : wait * MS);
}

/*
 * Now and then a wait is to be cut short.  Who is going to disconnect takes
 * its message in a transaction, so that it comes back: else the server might
 * have committed a lease that nobody ever hears of.
 */
static void
next_of_waiter(Session *session)
{
	int			wait = (int) between(1, one_in(2) ? 3 : 50);
	char		text[32];

	if (session->state != IDLE)
		return;
	if (session->in_transaction)
	{
		if (session->interrupt_at == NEVER) /* the receive is over */
		{
			begin_statement(session, COMMITTING,
							PQsendQuery(session->conn, "COMMIT"));
			return;
		}
	}
	else
	{
		/* Acknowledged in batches by the helper, to keep the waiters fast. */
		if (session->message >= 0 && nreceipts < messages)
			memcpy(receipts[nreceipts++], session->receipt, RECEIPT_LENGTH + 1);
		session->message = -1;
		if (one_in(100))
		{
			session->interrupt_at = interruption(wait);
			begin_statement(session, BEGINNING,
							PQsendQuery(session->conn, "BEGIN"));
			return;
		}
		if (one_in(20))
			session->interrupt_at = interruption(wait);
	}
	snprintf(text, sizeof(text), "%d ms", wait);
	begin_receive(session, text);
}

static void
interrupt(Session *session)
{
	if (session->in_transaction || session->state == BEGINNING)
	{
		close_session(session);
		ndropped++;
		open_session(session);
		return;
	}
	session->interrupt_at = NEVER;
	cancel_statement(session);
}

/* Acknowledges what has been collected, if it is worth a statement. */
static void
ack_collected(int at_least)
{
	int			n = nreceipts - nacked;
	char	   *array;
	size_t		used = 1;
	const char *values[1];

	if (helper->state != IDLE || n == 0 || n < at_least)
		return;
	if (n > 10 * ACK_BATCH)
		n = 10 * ACK_BATCH;
	array = allocate(n + 1, RECEIPT_LENGTH + 1);
	array[0] = '{';
	for (int i = 0; i < n; i++)
	{
		memcpy(array + used, receipts[nacked + i], RECEIPT_LENGTH);
		used += RECEIPT_LENGTH;
		array[used++] = i < n - 1 ? ',' : '}';
	}
	nacked += n;
	values[0] = array;
	begin_statement(helper, ACKING,
					PQsendQueryParams(helper->conn,
									  "SELECT msgq.ack_batch('bench', $1::uuid[])",
									  1, NULL, values, NULL, NULL, 0));
	free(array);
}

/* What is left in the queue, for whoever has to find out why. */
static void
print_left(void)
{
	PGresult   *result;

	result = PQexec(helper->conn,
					"SELECT id, deliveries, visible_at - now() FROM"
					" msgq.peek('bench', 10)");
	if (PQresultStatus(result) != PGRES_TUPLES_OK)
		die("%s", PQerrorMessage(helper->conn));
	for (int i = 0; i < PQntuples(result); i++)
		printf("left id %s, %s deliveries, due in %s\n",
			   PQgetvalue(result, i, 0), PQgetvalue(result, i, 1),
			   PQgetisnull(result, i, 2) ? "-" : PQgetvalue(result, i, 2));
	PQclear(result);
	result = PQexec(helper->conn, "SELECT id FROM msgq.receive('bench', 10)");
	for (int i = 0; i < PQntuples(result); i++)
		printf("left id %s is received by a session that has not looked before\n",
			   PQgetvalue(result, i, 0));
	PQclear(result);
}

/*
 * The producers are as fast as they can, in bursts: with too many messages
 * waiting, no consumer would ever have to wait.  The bounds change with each
 * burst.  Often all has been picked up, and everybody waits, when the next one
 * begins.
 */
static bool
producers_may_send(void)
{
	static bool filling = true;
	static int	low = 0;
	static int	high = 1;
	int			waiting = nissued - npicked;

	if (filling && waiting >= high)
	{
		filling = false;
		low = one_in(2) ? 0 : (int) between(0, high - 1);
	}
	else if (!filling && waiting <= low)
	{
		filling = true;
		high = low + (int) between(1, 4 * consumers);
	}
	return filling && nissued < messages;
}

static void
race(void)
{
	int			last_npicked = -1;
	int64_t		progress = now();
	int64_t		last_commit = NEVER;

	receipts = allocate(messages + 1, sizeof(*receipts));
	for (;;)
	{
		int64_t		until = now() + SEC;

		for (int i = 0; i < nsessions; i++)
		{
			Session    *session = &sessions[i];

			if (is_consumer(session))
			{
				if (now() >= session->interrupt_at)
					interrupt(session);
				next_of_waiter(session);
				if (session->interrupt_at < until)
					until = session->interrupt_at;
			}
			else if (is_producer(session) && session->state == IDLE &&
					 producers_may_send())
				begin_send(session);
		}
		ack_collected(ncommitted == messages ? 1 : ACK_BATCH);
		if (npicked != last_npicked)
		{
			last_npicked = npicked;
			progress = now();
		}
		if (ncommitted == messages && last_commit == NEVER)
			last_commit = now();
		if (npicked == messages && ncommitted == messages &&
			nacked == nreceipts && helper->state == IDLE)
		{
			/* What is out twice would come up now. */
			if (now() >= last_commit + SEC)
				break;
			until = now() + 10 * MS;
		}
		else if (now() >= progress + LAST_PICKUP)
		{
			printf("gave_up 1\n");
			if (helper->state == IDLE)
				print_left();
			break;
		}
		wait_until(until);
	}
	if (npicked == messages)
		printf("drained_after %.1f\n", (double) (progress - last_commit) / US);
}

/* ---------------------------------------------------------------------------
 * handover
 * ---------------------------------------------------------------------------
 */

/* How many consumers sleep in their receive, as the server sees it? */
static int
known_to_wait(void)
{
	char		pids[16 * MAX_SESSIONS] = "{";
	const char *values[] = {pids};
	PGresult   *result;
	int			n;

	for (int i = 0; i < nsessions; i++)
	{
		if (is_consumer(&sessions[i]) && sessions[i].state == RECEIVING)
			snprintf(pids + strlen(pids), sizeof(pids) - strlen(pids), "%s%d",
					 pids[1] != '\0' ? "," : "",
					 PQbackendPID(sessions[i].conn));
	}
	strcat(pids, "}");
	result = PQexecPrepared(helper->conn, "waiting", 1, values, NULL, NULL, 0);
	if (PQresultStatus(result) != PGRES_TUPLES_OK)
		die("%s", PQerrorMessage(helper->conn));
	n = atoi(PQgetvalue(result, 0, 0));
	PQclear(result);
	return n;
}

static void
wait_for_waiter(void)
{
	int64_t		give_up = now() + 20 * SEC;

	while (next_of_consumers(), known_to_wait() == 0)
	{
		if (now() > give_up)
			die("no consumer waits");
		wait_until(now() + 200 * US);
	}
}

/* Takes what nobody was woken up for, so that it wakes nobody later. */
static void
sweep(void)
{
	PGresult   *result =
	PQexec(helper->conn, "SELECT body->>'n' FROM msgq.pop('bench', 1000)");

	if (PQresultStatus(result) != PGRES_TUPLES_OK)
		die("%s", PQerrorMessage(helper->conn));
	for (int i = 0; i < PQntuples(result); i++)
		picked_up(atoi(PQgetvalue(result, i, 0)), now(), now());
	PQclear(result);
}

static void
handover(void)
{
	int			nlost = 0;

	prepare(helper->conn, "waiting",
			"SELECT count(*) FROM pg_stat_activity"
			" WHERE pid = ANY ($1::int[]) AND state = 'active'"
			" AND wait_event_type IN ('Extension', 'IPC', 'Timeout', 'Activity')");
	while (nissued < messages && nlost < LOST_ENOUGH)
	{
		int64_t		deadline = NEVER;
		int			n = nissued;

		wait_for_waiter();
		begin_send(&sessions[0]);
		while (committed_at[n] == 0 || picked_at[n] == 0)
		{
			if (committed_at[n] != 0 && deadline == NEVER)
				deadline = committed_at[n] + HANDOVER_TIME;
			if (now() >= deadline)
				break;
			wait_until(deadline == NEVER ? now() + SEC : deadline);
			next_of_consumers();
		}
		if (picked_at[n] == 0)
		{
			nlost++;
			sweep();
		}
	}
	printf("lost %d\n", nlost);
	if (nissued < messages)
		printf("gave_up 1\n");
}

/* ---------------------------------------------------------------------------
 * main
 * ---------------------------------------------------------------------------
 */

static int
positive(const char *text, int most)
{
	int			n = atoi(text);

	if (n < 1 || n > most)
		die("%s is not a number from 1 to %d", text, most);
	return n;
}

static void
read_options(int argc, char **argv)
{
	static const struct option known[] = {
		{"rate", required_argument, NULL, 'r'},
		{"seconds", required_argument, NULL, 's'},
		{"messages", required_argument, NULL, 'm'},
		{"producers", required_argument, NULL, 'p'},
		{"consumers", required_argument, NULL, 'c'},
		{"wait", required_argument, NULL, 'w'},
		{"measure", required_argument, NULL, 'M'},
		{"body", required_argument, NULL, 'b'},
		{"poll-interval", required_argument, NULL, 'i'},
		{"seed", required_argument, NULL, 'S'},
		{"stream", required_argument, NULL, 't'},
		{NULL, 0, NULL, 0}
	};
	int			option;

	while ((option = getopt_long(argc, argv, "", known, NULL)) != -1)
	{
		switch (option)
		{
			case 'r':
				rate = positive(optarg, 1000000);
				break;
			case 's':
				seconds = positive(optarg, 3600);
				break;
			case 'm':
				messages = positive(optarg, 100000000);
				break;
			case 'p':
				producers = positive(optarg, 24);
				break;
			case 'c':
				consumers = positive(optarg, 24);
				break;
			case 'M':
				measured = positive(optarg, 3600);
				break;
			case 'b':
				body = optarg;
				if (body[0] != '{' || strlen(body) > 8000)
					die("the body is no JSON object, or too long");
				break;
			case 'w':
				wait_time = optarg;
				break;
			case 'i':
				poll_interval = optarg;
				break;
			case 'S':
				seed = (unsigned int) strtoul(optarg, NULL, 10);
				break;
			case 't':
				stream = optarg;
				break;
			default:
				exit(1);
		}
	}
}

int
main(int argc, char **argv)
{
	const char *mode;

	read_options(argc, argv);
	if (optind != argc - 1)
		die("usage: latency pickup|race|handover [--option VALUE]...");
	mode = argv[optind];
	if (stream != NULL && strcmp(mode, "pickup") != 0)
		die("only pickup knows streams");
	if (messages == 0)
		messages = rate * seconds;
	/* an option in seconds, which only a steady rate has */
	measured = measured > 0 ? measured * rate : messages;
	if (seed == 0)
		seed = (unsigned int) (time(NULL) ^ getpid());
	srandom(seed);
	issued_at = allocate(messages, sizeof(*issued_at));
	asked_at = allocate(messages, sizeof(*asked_at));
	committed_at = allocate(messages, sizeof(*committed_at));
	picked_at = allocate(messages, sizeof(*picked_at));
	open_sessions();
	if (strcmp(mode, "pickup") == 0)
		pickup();
	else if (strcmp(mode, "race") == 0)
		race();
	else if (strcmp(mode, "handover") == 0)
		handover();
	else
		die("no such mode: %s", mode);
	print_figures();
	close_sessions();
	return 0;
}
