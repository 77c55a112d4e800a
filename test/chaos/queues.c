/*
 * queues.c
 *		What clients do with queues: send, receive, settle, and take with an
 *		effect of their own.
 *
 * Each function that is called by a role of driver.c is one to a few
 * transactions.  Those that return bool do a part of one; false: it has failed,
 * and the transaction is over.
 *
 * test/chaos/queues.c
 */
#include "work.h"

#include <stdio.h>
#include <string.h>

#define MAX_OLD 16
#define GROUPS 12

/* A message that was received. */
typedef struct Item
{
	char		value[VALUE_LENGTH];
	char		receipt[RECEIPT_LENGTH + 1];
} Item;

int			nitems;

static Item items[MAX_BATCH];

/* Receipts that are settled, or will be. */
static Item old[MAX_OLD];
static int	nold;

const char *
number(int64_t n)
{
	return textf("%lld", (long long) n);
}

/* ---------------------------------------------------------------------------
 * Sending
 * ---------------------------------------------------------------------------
 */

/* Most are small, some long, a few too long for a page. */
int
filler(void)
{
	int			kind = between(1, 200);

	return kind == 1 ? 12000 : kind <= 10 ? 300 : between(0, 10);
}

/* Sends one, number i of the transaction. */
bool
send_one(const char *queue, int i)
{
	const char *value = textf("%s.%ld.%d", client_name, tx, i);
	bool		is_ordered = strcmp(queue, "ordered") == 0;
	const char *group = is_ordered ? textf("group%d", (int) between(1, GROUPS)) : NULL;
	bool		is_delayed = !is_ordered && one_in(8);
	const char *params[] = {queue, value, number(filler()), group,
	is_delayed ? textf("%d ms", (int) between(10, 500)) : NULL};
	PGresult   *result;

	logged("try %ld %s %s %s %s", tx, queue, value, params[2], group ? group : "-");
	result = query("SELECT msgq.send($1, " BODY("$2::text", "$3::int")
				   ", group_key => $4, delay => $5::interval)", 5, params);
	if (result == NULL)
		return false;
	logged("sent %ld %s %s", tx, value, PQgetvalue(result, 0, 0));
	PQclear(result);
	return true;
}

/* Arrays as text: of values and of n, for messages first to last. */
static void
make_batch(const char *queue, const char *group, int first, int last,
		   char *values, char *sizes)
{
	char	   *v = values + sprintf(values, "{");
	char	   *s = sizes + sprintf(sizes, "{");

	for (int i = first; i <= last; i++)
	{
		int			n = filler();

		logged("try %ld %s %s.%ld.%d %d %s", tx, queue, client_name, tx, i, n, group);
		v += sprintf(v, "%s%s.%ld.%d", i > first ? "," : "", client_name, tx, i);
		s += sprintf(s, "%s%d", i > first ? "," : "", n);
	}
	strcpy(v, "}");
	strcpy(s, "}");
}

static bool
send_batch(const char *queue, int first, int last)
{
	char		values[MAX_BATCH * VALUE_LENGTH];
	char		sizes[MAX_BATCH * 12];
	bool		is_ordered = strcmp(queue, "ordered") == 0;
	const char *group = is_ordered ? textf("group%d", (int) between(1, GROUPS)) : "-";
	const char *params[] = {queue, values, sizes, is_ordered ? group : NULL};
	PGresult   *result;

	make_batch(queue, group, first, last, values, sizes);
	result = query("SELECT s.value, s.id FROM (SELECT msgq.send_batch($1, "
				   "array_agg(" BODY("v", "n") " ORDER BY i), "
				   "group_keys => array_agg($4::text)) AS ids "
				   "FROM unnest($2::text[], $3::int[]) WITH ORDINALITY AS u(v, n, i)) AS b, "
				   "unnest(b.ids, $2::text[]) AS s(id, value)", 4, params);
	if (result == NULL)
		return false;
	for (int i = 0; i < PQntuples(result); i++)
		logged("sent %ld %s %s", tx, PQgetvalue(result, i, 0), PQgetvalue(result, i, 1));
	PQclear(result);
	return true;
}

/* Some before a savepoint, some that are undone, some after that. */
static bool
send_savepoints(const char *queue)
{
	if (!send_one(queue, 1) || !command("SAVEPOINT a", 0, NULL) ||
		!send_one(queue, 2) || !send_batch(queue, 3, 5) ||
		!command("ROLLBACK TO a", 0, NULL))
		return false;
	for (int i = 2; i <= 5; i++)
		logged("undo %ld %s.%ld.%d", tx, client_name, tx, i);
	return send_one(queue, 6);
}

const char *
any_queue(void)
{
	static const char *const queues[] = {"work", "work", "ordered", "effects"};

	return queues[between(0, 3)];
}

void
produce(void)
{
	const char *queue = any_queue();
	int			kind = between(1, 10);
	bool		sent;

	if (!begin("send", MARKED))
		return;
	if (kind <= 5)
		sent = send_one(queue, 1);
	else if (kind <= 7)
		sent = send_batch(queue, 1, between(2, one_in(10) ? 50 : 8));
	else if (kind == 8)
		sent = send_savepoints(queue);
	else
		sent = send_one(queue, 1) && send_one(any_queue(), 2);
	if (!sent)
		return;
	if (kind == 9)
		rollback();
	else
		commit();
}

/* Keys that other clients use at about the same time. */
void
send_key(void)
{
	const char *key = textf("key%ld", client_round / 4 + (long) between(0, 3));
	const char *params[] = {key};
	bool		undone = one_in(5);
	PGresult   *result;

	if (!begin("key", MARKED))
		return;
	logged("try %ld keys %s 3 -", tx, key);
	result = query("SELECT msgq.send('keys', " BODY("$1::text", "3")
				   ", idempotency_key => $1)", 1, params);
	if (result == NULL)
		return;
	logged("sent %ld %s %s", tx, key, PQgetvalue(result, 0, 0));
	PQclear(result);
	if (undone)
		rollback();
	else
		commit();
}

/* ---------------------------------------------------------------------------
 * Receiving
 * ---------------------------------------------------------------------------
 */

static void
keep_item(PGresult *result, int i)
{
	snprintf(items[i].value, VALUE_LENGTH, "%s", PQgetvalue(result, i, 0));
	snprintf(items[i].receipt, sizeof(items[i].receipt), "%s", PQgetvalue(result, i, 2));
}

/* Receives into items.  timeout in milliseconds; 0 is a pop. */
bool
take(const char *queue, int count, int timeout)
{
	const char *params[] = {queue, number(count), textf("%d ms", timeout)};
	char		sql[600];
	PGresult   *result;

	snprintf(sql, sizeof(sql), "SELECT " ROW("m") ", "
			 "coalesce((extract(epoch FROM m.visible_at) * 1000000)::bigint, 0) FROM %s AS m",
			 "m.deliveries", timeout == 0 ? "msgq.pop($1, $2)" :
			 textf("%s($1, $2, $3::interval)", options.receive));
	logged("ask %ld %s %d %d", tx, queue, count, timeout);
	nitems = 0;
	result = query(sql, timeout == 0 ? 2 : 3, params);
	if (result == NULL)
		return false;
	for (int i = 0; i < PQntuples(result) && i < MAX_BATCH; i++)
	{
		logged("got %ld %s %s %s %s %s %s %s %s", tx, queue,
			   PQgetvalue(result, i, 0), PQgetvalue(result, i, 1),
			   PQgetvalue(result, i, 2), PQgetvalue(result, i, 3),
			   PQgetvalue(result, i, 4), PQgetvalue(result, i, 5),
			   PQgetvalue(result, i, 6));
		keep_item(result, i);
		nitems++;
	}
	PQclear(result);
	return true;
}

/* In a transaction that does nothing else; true if there is something. */
static bool
lease(const char *queue, int count, int timeout)
{
	if (!begin("lease", UNMARKED) || !take(queue, count, timeout))
		return false;
	if (commit() != OUTCOME_OK)
		return false;
	if (nitems > 0 && options.async_leases)
		after_lsn();
	return nitems > 0;
}

static void
remember_old(const Item *item)
{
	old[nold++ % MAX_OLD] = *item;
}

/*
 * One settlement.  The time from which on an extended lease counts is read from
 * the server's clock before.
 */
static bool
settle(const char *action, const char *queue, const Item *item)
{
	const char *function = strcmp(action, "ack") == 0 ? options.ack :
	strcmp(action, "reject") == 0 ? options.reject : textf("msgq.%s", action);
	const char *more = strcmp(action, "extend") == 0 ? ", '700 ms'" :
	strcmp(action, "nack") == 0 ? textf(", '%d ms'", (int) between(0, 200)) : "";
	const char *params[] = {queue, item->receipt};
	PGresult   *result;

	logged("settle %ld %s %s %s", tx, action, queue, item->receipt);
	result = query(textf("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint + 700000, "
						 "%s($1, $2::uuid%s)", function, more), 2, params);
	if (result == NULL)
		return false;
	logged("settled %ld %s %s %s %s %s", tx, action, queue, item->receipt,
		   PQgetvalue(result, 0, 1), PQgetvalue(result, 0, 0));
	PQclear(result);
	remember_old(item);
	return true;
}

/* All items from first to last, in the order of ids. */
bool
settle_all(const char *action, const char *queue, int first, int last)
{
	for (int i = first; i <= last; i++)
	{
		if (!settle(action, queue, &items[i]))
			return false;
	}
	return true;
}

/* The same in one call, which returns those that are stale. */
static bool
ack_batch(const char *queue)
{
	char		receipts[MAX_BATCH * (RECEIPT_LENGTH + 1) + 2];
	const char *params[] = {queue, receipts};
	char	   *end = receipts;
	PGresult   *result;

	for (int i = 0; i < nitems; i++)
	{
		logged("settle %ld ack %s %s", tx, queue, items[i].receipt);
		end += sprintf(end, "%s%s", i == 0 ? "{" : ",", items[i].receipt);
	}
	strcpy(end, "}");
	result = query("SELECT r, r <> ALL (stale) FROM (SELECT msgq.ack_batch($1, $2::uuid[]) AS stale) AS s, "
				   "unnest($2::uuid[]) AS r", 2, params);
	if (result == NULL)
		return false;
	for (int i = 0; i < PQntuples(result); i++)
		logged("settled %ld ack %s %s %s 0", tx, queue,
			   PQgetvalue(result, i, 0), PQgetvalue(result, i, 1));
	PQclear(result);
	return true;
}

/* A transaction that settles all items in the same way. */
static bool
settle_items(const char *action, const char *queue)
{
	if (!begin("settle", MARKED))
		return false;
	if (strcmp(action, "ack") == 0 && strcmp(options.ack, "msgq.ack") == 0 && one_in(3))
		return ack_batch(queue) && commit() == OUTCOME_OK;
	return settle_all(action, queue, 0, nitems - 1) && commit() == OUTCOME_OK;
}

/* The first ones in one way, the rest in the other one. */
static void
settle_both(const char *first, const char *rest, const char *queue)
{
	int			n = between(0, nitems - 1);

	if (begin("settle", MARKED) && settle_all(first, queue, 0, n) &&
		settle_all(rest, queue, n + 1, nitems - 1))
		commit();
}

/* Receipts of long ago, which must do no harm. */
static void
settle_old(const char *queue)
{
	if (nold == 0 || !begin("settle", MARKED))
		return;
	for (int i = 0; i < nold && i < 3; i++)
	{
		Item		item = old[between(0, (nold < MAX_OLD ? nold : MAX_OLD) - 1)];

		if (!settle(one_in(2) ? "ack" : "nack", queue, &item))
			return;
	}
	commit();
}

static void
settle_in_vain(const char *queue)
{
	if (begin("settle", MARKED) && settle_all("ack", queue, 0, nitems - 1))
		rollback();
}

void
consume(const char *queue)
{
	int			count = between(1, strcmp(queue, "ordered") == 0 ? 6 : 20);
	int			timeout = between(150, 2000);
	int			kind = between(1, 24);

	if (!lease(queue, count, timeout))
	{
		sleep_us(20000);
		return;
	}
	for (int i = 0; i < nitems; i++)
	{
		if (one_in(5))
			remember_old(&items[i]);
	}
	switch (options.kind ? options.kind : kind)
	{
		case 1:
			settle_items("nack", queue);
			break;
		case 2:
			settle_items("release", queue);
			break;
		case 3:
			if (settle_items("extend", queue))
				settle_items("ack", queue);
			break;
		case 4:
		case 5:
			sleep_us(timeout * INT64_C(1000) + between(0, 300000));
			settle_items("ack", queue);
			break;
		case 6:
			client_disconnect();
			break;
		case 7:
			settle_both("ack", "reject", queue);
			break;
		case 8:
			settle_items("archive", queue);
			break;
		case 9:
			settle_in_vain(queue);
			break;
		case 10:
			if (settle_items("ack", queue))
				settle_items("ack", queue);
			break;
		case 11:
			settle_both("ack", "nack", queue);
			break;
		case 12:
			settle_both("archive", "release", queue);
			break;
		case 13:
			settle_old(queue);
			settle_items("ack", queue);
			break;
		default:
			settle_items("ack", queue);
	}
}

/* ---------------------------------------------------------------------------
 * Effects that happen once
 * ---------------------------------------------------------------------------
 */

/* A row for each item, in the transaction that removes it. */
bool
put_effects(void)
{
	for (int i = 0; i < nitems; i++)
	{
		const char *params[] = {textf("%s.%ld", client_name, tx), items[i].value};

		logged("effect %ld %s", tx, items[i].value);
		if (!command("INSERT INTO chaos.effect VALUES ($1, $2)", 2, params))
			return false;
	}
	return true;
}

bool
take_with_effect(const char *queue, int count)
{
	if (one_in(2))
		return take(queue, count, 0) && put_effects();
	return take(queue, count, 2000) && put_effects() &&
		settle_all("ack", queue, 0, nitems - 1);
}

void
take_effects(void)
{
	bool		undone = one_in(7);

	if (!begin("effect", MARKED) || !take_with_effect("effects", between(1, 10)))
		return;
	if (undone)
		rollback();
	else
		commit();
	if (nitems == 0)
		sleep_us(20000);
}
