/*
 * client.c
 *		One client of the server: its connection, its log, its transactions.
 *
 * The log is what the checker believes, so a line is written, with one
 * write(2), before something is tried and again when its result is known.  It
 * lies outside of the server.  README.md has the format.
 *
 * Outcomes.  A transaction is
 *
 *	ok		if the server has confirmed its COMMIT,
 *	fail	if the server has said that it aborts, or if the connection broke
 *			before COMMIT was sent,
 *	unknown	if the connection broke after that.
 *
 * A confirmed commit whose wait for a synchronous standby was broken off is "ok"
 * and "unsynced": it gets lost if the standby takes over before it has it.
 *
 * For the last case the client fetches, right before COMMIT, the transaction's
 * xid and the end of the write-ahead log.  When the server is back, it asks
 * pg_xact_status(xid), and logs the answer as a line of its own.  An xid that
 * did not get to disk before a crash may be given to another transaction
 * afterwards, whose status it then is; the position in the log is there for the
 * checker to tell (see check.pl).
 *
 * What a client does is divided into rounds, of one to a few transactions.  Round
 * number n draws its random numbers from the client's seed and n only, so it
 * makes the same choices whenever the run is repeated.  Transactions are numbered
 * by round, ten times its number and on.
 *
 * test/chaos/client.c
 */
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif
#include <time.h>
#include <unistd.h>

#define MAX_OPEN 20000

/* No round has more transactions. */
#define ROUND_TRANSACTIONS 10

/* So long after the stop it may take until all outcomes are known. */
#define RESOLVE_SECONDS 120

/* A transaction whose outcome is not known yet, or not for ever. */
typedef struct Open
{
	long		tx;
	char		xid[24];
	bool		is_prepared;	/* to be ended by finish_prepared() */
	bool		to_be_committed;
} Open;

volatile sig_atomic_t stopping = false;
const char *client_name;
long		client_round = 0;
long		tx = 0;

static PGconn *conn = NULL;
static int	log_fd;
static uint64_t client_seed;
static uint64_t random_state;
static bool with_async_leases;
static bool with_positions;
static bool is_unsynced;		/* the last commit */
static Open opens[MAX_OPEN];
static int	nopens = 0;
static Open prepared[MAX_OPEN];
static int	nprepared = 0;

static void
__attribute__((noreturn, format(printf, 1, 2)))
die(const char *format,...)
{
	va_list		args;

	fprintf(stderr, "%s: ", client_name);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, "\n");
	exit(1);
}

/* ---------------------------------------------------------------------------
 * Time, chance, and the log
 * ---------------------------------------------------------------------------
 */

/* By the wall clock, which is the server's as well. */
int64_t
now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return t.tv_sec * INT64_C(1000000) + t.tv_nsec / 1000;
}

/* A signal does not end it, but for the one that ends all. */
void
sleep_us(int64_t us)
{
	int64_t		until = now_us() + us;

	while (!stopping && now_us() < until)
		usleep(us > 10000 ? 10000 : us);
}

/* splitmix64 */
static uint64_t
mixed(uint64_t x)
{
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

/* A random number from low to high. */
int64_t
between(int64_t low, int64_t high)
{
	random_state += UINT64_C(0x9e3779b97f4a7c15);
	return low + (int64_t) (mixed(random_state) % (uint64_t) (high - low + 1));
}

bool
one_in(int n)
{
	return between(1, n) == 1;
}

/* Writes a line, with the time before it. */
void
logged(const char *format,...)
{
	char		line[1000];
	int			length = snprintf(line, sizeof(line), "%lld ", (long long) now_us());
	va_list		args;

	va_start(args, format);
	length += vsnprintf(line + length, sizeof(line) - length, format, args);
	va_end(args);
	if (length >= (int) sizeof(line) - 1)
		die("a line of the log is too long");
	line[length++] = '\n';
	if (write(log_fd, line, length) != length)
		die("could not write to the log: %s", strerror(errno));
}

/* Short texts, of which the last few stay valid. */
const char *
textf(const char *format,...)
{
	static char texts[16][200];
	static int	n = 0;
	va_list		args;

	n = (n + 1) % 16;
	va_start(args, format);
	vsnprintf(texts[n], sizeof(texts[n]), format, args);
	va_end(args);
	return texts[n];
}

/* ---------------------------------------------------------------------------
 * The connection
 * ---------------------------------------------------------------------------
 */

static bool
is_connected(void)
{
	return conn != NULL && PQstatus(conn) == CONNECTION_OK;
}

/* As a consumer who dies: the server finds out by itself. */
void
client_disconnect(void)
{
	if (conn != NULL)
		PQfinish(conn);
	conn = NULL;
}

/*
 * The server's error, if it is one, and if the session goes on after it; else
 * NULL.  libpq does not always know at once that a connection is broken.
 */
static const char *
error_of(PGresult *result)
{
	const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);

	return is_connected() && sqlstate != NULL && sqlstate[0] != '\0' ? sqlstate : NULL;
}

static bool
is_error(PGresult *result, const char *sqlstate)
{
	const char *error = error_of(result);

	return error != NULL && strcmp(error, sqlstate) == 0;
}

/* "canceling wait for synchronous replication due to user request" */
static void
receive_notice(void *arg, const PGresult *result)
{
	const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);

	(void) arg;
	if (message != NULL && strstr(message, "synchronous replication") != NULL)
		is_unsynced = true;
}

/* One attempt. */
static bool
connect_once(void)
{
	char		conninfo[200];

	client_disconnect();
	snprintf(conninfo, sizeof(conninfo), "dbname=postgres application_name=chaos-%s "
			 "options='-c msgq.async_leases=%s'",
			 client_name, with_async_leases ? "on" : "off");
	conn = PQconnectdb(conninfo);
	PQsetNoticeReceiver(conn, receive_notice, NULL);
	if (!is_connected())
		client_disconnect();
	return conn != NULL;
}

/*
 * Until there is a connection; false if the run ends first, or the server does
 * not come back in time.
 */
static bool
connected(int64_t deadline)
{
	while (!is_connected())
	{
		if (connect_once())
			return true;
		if ((stopping && deadline == 0) || (deadline > 0 && now_us() > deadline))
			return false;
		usleep(30000);
	}
	return true;
}

/* ---------------------------------------------------------------------------
 * Outcomes that become known later
 * ---------------------------------------------------------------------------
 */

static void
remember(const char *xid, bool is_prepared, bool to_be_committed)
{
	Open	   *open = &opens[nopens++];

	if (nopens == MAX_OPEN)
		die("too many outcomes are unknown");
	open->tx = tx;
	snprintf(open->xid, sizeof(open->xid), "%s", xid);
	open->is_prepared = is_prepared;
	open->to_be_committed = to_be_committed;
}

static void
forget(int i)
{
	opens[i] = opens[--nopens];
}

/* Asks the server; true when the answer is there. */
static bool
resolve_one(const Open *open)
{
	const char *params[] = {open->xid};
	PGresult   *result;
	bool		known = false;

	result = PQexecParams(conn, "SELECT pg_xact_status($1::xid8)",
						  1, NULL, params, NULL, NULL, 0);
	if (PQresultStatus(result) == PGRES_TUPLES_OK)
	{
		const char *status = PQgetvalue(result, 0, 0);

		known = strcmp(status, "in progress") != 0;
		if (known)
			logged("status %ld %s", open->tx, status[0] != '\0' ? status : "old");
	}
	else if (is_error(result, "22023"))
	{
		/* "is in the future": nothing of it has got to disk */
		logged("status %ld aborted", open->tx);
		known = true;
	}
	else if (error_of(result) == NULL)
		client_disconnect();
	PQclear(result);
	return known;
}

/* As far as it is possible without waiting. */
static void
resolve(void)
{
	for (int i = nopens - 1; i >= 0 && is_connected(); i--)
	{
		if (!opens[i].is_prepared && resolve_one(&opens[i]))
			forget(i);
	}
}

/* Of the current transaction; both are '-' where there is none. */
static bool
fetch_xid(char *xid, char *lsn)
{
	PGresult   *result;

	result = query("SELECT coalesce(pg_current_xact_id_if_assigned()::text, '-'), "
				   "pg_current_wal_insert_lsn()", 0, NULL);
	if (result == NULL)
		return false;
	snprintf(xid, 24, "%s", PQgetvalue(result, 0, 0));
	snprintf(lsn, 24, "%s", PQgetvalue(result, 0, 1));
	PQclear(result);
	return true;
}

/* ---------------------------------------------------------------------------
 * Transactions
 * ---------------------------------------------------------------------------
 */

/* Moves on to the next round, and to its random numbers. */
void
next_round(void)
{
	client_round++;
	tx = client_round * ROUND_TRANSACTIONS;
	random_state = mixed(client_seed + UINT64_C(0x9e3779b97f4a7c15) * client_round);
}

/* The statement has failed, and so has the transaction. */
static void
failed(PGresult *result)
{
	const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);
	bool		goes_on = error_of(result) != NULL;

	logged("fail %ld %s", tx, sqlstate != NULL && sqlstate[0] != '\0' ? sqlstate : "08006");
	if (sqlstate != NULL && strncmp(sqlstate, "XX", 2) == 0)
		fprintf(stderr, "%s.%ld: %s", client_name, tx, PQresultErrorMessage(result));
	PQclear(result);
	if (goes_on)
		PQclear(PQexec(conn, "ROLLBACK"));
	if (!goes_on || PQtransactionStatus(conn) != PQTRANS_IDLE)
		client_disconnect();
}

/*
 * Begins a transaction, once the server is there.  Some have a timeout, which
 * strikes somewhere.  False: it has failed, or the run is to end.
 */
bool
begin(const char *kind, Mark mark)
{
	char		sql[400];
	PGresult   *result;
	int			isolation = between(1, 8);
	int			timeout = between(1, 60);
	int			ms = between(1, 15);

	if (!connected(0))
		return false;
	resolve();
	tx++;
	logged("invoke %ld %s", tx, kind);
	snprintf(sql, sizeof(sql), "BEGIN ISOLATION LEVEL %s;%s%s",
			 isolation == 1 ? "REPEATABLE READ" : "READ COMMITTED",
			 timeout <= 2 ? textf("SET LOCAL statement_timeout = %d;", ms) :
			 timeout <= 5 ? textf("SET LOCAL lock_timeout = %d;", ms) : "",
			 mark == UNMARKED ? "" :
			 textf("INSERT INTO chaos.mark VALUES ('%s.%ld')", client_name, tx));
	result = PQexec(conn, sql);
	if (PQresultStatus(result) != PGRES_COMMAND_OK)
	{
		failed(result);
		return false;
	}
	PQclear(result);
	return true;
}

/* The rows; NULL if it has failed, and then the transaction is over. */
PGresult   *
query(const char *sql, int nparams, const char *const *params)
{
	PGresult   *result = PQexecParams(conn, sql, nparams, NULL, params,
									  NULL, NULL, 0);

	if (PQresultStatus(result) == PGRES_TUPLES_OK ||
		PQresultStatus(result) == PGRES_COMMAND_OK)
		return result;
	failed(result);
	return NULL;
}

/* The same where nobody wants the rows. */
bool
command(const char *sql, int nparams, const char *const *params)
{
	PGresult   *result = query(sql, nparams, params);

	PQclear(result);
	return result != NULL;
}

/* Who has said ROLLBACK has aborted, whether it is answered or not. */
void
rollback(void)
{
	logged("fail %ld rolled-back", tx);
	PQclear(PQexec(conn, "ROLLBACK"));
	if (PQtransactionStatus(conn) != PQTRANS_IDLE)
		client_disconnect();
}

/* What the answer to a COMMIT or PREPARE TRANSACTION says. */
static Outcome
outcome_of(PGresult *result, const char *tag)
{
	if (PQresultStatus(result) == PGRES_COMMAND_OK)
		return strcmp(PQcmdStatus(result), tag) == 0 ? OUTCOME_OK : OUTCOME_FAIL;
	return error_of(result) != NULL ? OUTCOME_FAIL : OUTCOME_UNKNOWN;
}

Outcome
commit(void)
{
	char		xid[24];
	char		lsn[24];
	PGresult   *result;
	Outcome		outcome;

	if (!fetch_xid(xid, lsn))
		return OUTCOME_FAIL;
	logged("commit %ld %s %s", tx, xid, lsn);
	is_unsynced = false;
	result = PQexec(conn, "COMMIT");
	outcome = outcome_of(result, "COMMIT");
	if (outcome == OUTCOME_FAIL)
	{
		failed(result);
		return outcome;
	}
	PQclear(result);
	logged("%s %ld", outcome == OUTCOME_OK ? "ok" : "unknown", tx);
	if (outcome == OUTCOME_OK && is_unsynced)
		logged("unsynced %ld", tx);
	if (outcome == OUTCOME_OK && (is_unsynced || with_positions))
		after_lsn();
	if (outcome == OUTCOME_UNKNOWN)
	{
		client_disconnect();
		if (xid[0] != '-')
			remember(xid, false, false);
	}
	return outcome;
}

/* How far the log was written after a commit that did not wait for the disk. */
void
after_lsn(void)
{
	PGresult   *result;

	if (!is_connected())
		return;
	result = PQexec(conn, "SELECT pg_current_wal_insert_lsn()");
	if (PQresultStatus(result) == PGRES_TUPLES_OK)
		logged("lsn %ld %s", tx, PQgetvalue(result, 0, 0));
	PQclear(result);
}

/*
 * Instead of COMMIT.  It will be committed or rolled back later, by
 * finish_prepared(); even if the outcome of the PREPARE is not known.
 */
bool
prepare_transaction(bool to_be_committed)
{
	char		xid[24];
	char		lsn[24];
	PGresult   *result;
	Outcome		outcome;

	if (!fetch_xid(xid, lsn))
		return false;
	logged("prepare %ld %s %s", tx, xid, lsn);
	result = PQexec(conn, textf("PREPARE TRANSACTION '%s.%ld'", client_name, tx));
	outcome = outcome_of(result, "PREPARE TRANSACTION");
	if (outcome == OUTCOME_FAIL)
	{
		failed(result);
		return false;
	}
	PQclear(result);
	if (outcome == OUTCOME_UNKNOWN)
		client_disconnect();
	remember(xid, true, to_be_committed);
	if (nprepared == MAX_OPEN)
		die("too many transactions were prepared");
	prepared[nprepared++] = opens[nopens - 1];
	return true;
}

int
count_prepared(void)
{
	int			count = 0;

	for (int i = 0; i < nopens; i++)
		count += opens[i].is_prepared;
	return count;
}

/* Ends the one; true if it is ended, or was not there. */
static bool
finish_one(Open *open)
{
	const char *what = open->to_be_committed ? "COMMIT" : "ROLLBACK";
	PGresult   *result;
	const char *error;
	bool		done;
	bool		ended;

	logged("finish %ld %s", open->tx, what);
	result = PQexec(conn, textf("%s PREPARED '%s.%ld'", what, client_name, open->tx));
	done = PQresultStatus(result) == PGRES_COMMAND_OK;
	error = error_of(result);
	ended = done || is_error(result, "42704");
	logged("finished %ld %s", open->tx, done ? "ok" : error ? error : "unknown");
	if (!done && error == NULL)
		client_disconnect();
	PQclear(result);
	if (ended)
		open->is_prepared = false;
	return ended;
}

/* Ends one of those that are prepared; how it came out is asked for after that. */
bool
finish_prepared(void)
{
	int			which = count_prepared();

	if (which == 0 || !connected(0))
		return false;
	which = between(1, which);
	for (int i = 0; i < nopens; i++)
	{
		if (opens[i].is_prepared && --which == 0)
			return finish_one(&opens[i]);
	}
	return false;
}

/* ---------------------------------------------------------------------------
 * From the beginning to the end
 * ---------------------------------------------------------------------------
 */

static void
on_signal(int signal)
{
	(void) signal;
	stopping = true;
}

void
client_start(const char *name, const char *role, uint64_t seed,
			 const char *log_file, bool async_leases, bool positions)
{
	struct sigaction action = {.sa_handler = on_signal};

	client_name = name;
	client_seed = mixed(seed);
	with_async_leases = async_leases;
	with_positions = positions;
	log_fd = open(log_file, O_WRONLY | O_CREAT | O_APPEND, 0644);
	if (log_fd < 0)
		die("could not open %s: %s", log_file, strerror(errno));
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
#ifdef __linux__
	/* If whoever has started us is gone, nobody else tells us to stop. */
	prctl(PR_SET_PDEATHSIG, SIGTERM);
#endif
	signal(SIGPIPE, SIG_IGN);
	logged("client %s %s %llu %s", name, role, (unsigned long long) seed,
		   async_leases ? "on" : "off");
}

/*
 * If a standby has taken over that did not know the end of a prepared transaction,
 * it has to be ended again, in the same way; and asked for, since it may have been
 * lost as a whole.
 */
static void
reopen_prepared(void)
{
	for (int i = 0; i < nprepared && nopens < MAX_OPEN; i++)
	{
		int			j = 0;

		while (j < nopens && opens[j].tx != prepared[i].tx)
			j++;
		opens[j] = prepared[i];
		nopens = j < nopens ? nopens : j + 1;
	}
}

/* Ends what is prepared, and finds all outcomes, or says which are missing. */
void
client_finish(void)
{
	int64_t		deadline = now_us() + RESOLVE_SECONDS * INT64_C(1000000);

	reopen_prepared();
	while (nopens > 0 && now_us() < deadline && connected(deadline))
	{
		for (int i = 0; i < nopens && is_connected(); i++)
		{
			if (opens[i].is_prepared)
				finish_one(&opens[i]);
		}
		resolve();
		if (nopens > 0)
			usleep(50000);
	}
	for (int i = 0; i < nopens; i++)
		logged("unresolved %ld %s", opens[i].tx, opens[i].xid);
	client_disconnect();
	logged("end %ld", tx);
	close(log_fd);
}
