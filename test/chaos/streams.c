/*
 * streams.c
 *		What clients do with the stream: append, read in transactions, poll and
 *		commit.
 *
 * test/chaos/streams.c
 */
#include "work.h"

#include <stdio.h>
#include <string.h>

bool
append(int i)
{
	const char *value = textf("%s.%ld.%d", client_name, tx, i);
	const char *key = one_in(5) ? NULL : textf("%s-%d", client_name, (int) between(1, 5));
	const char *params[] = {value, number(filler()), key};
	PGresult   *result;

	logged("try %ld events %s %s %s", tx, value, params[1], key ? key : "-");
	result = query("SELECT msgq.append('events', " BODY("$1::text", "$2::int") ", $3)", 3, params);
	if (result == NULL)
		return false;
	logged("sent %ld %s %s", tx, value, PQgetvalue(result, 0, 0));
	PQclear(result);
	return true;
}

void
append_some(void)
{
	int			n = one_in(4) ? between(2, 20) : 1;
	bool		undone = one_in(8);
	bool		is_slow = one_in(10);

	if (!begin("append", MARKED))
		return;
	for (int i = 1; i <= n; i++)
	{
		if (!append(i))
			return;
	}
	if (is_slow)
		sleep_us(between(10000, 400000));
	if (undone)
		rollback();
	else
		commit();
}

/* Rows of msgq.entry, the last ones being what the caller wants of them. */
static int
get_entries(const char *call, char *receipt, char *last_position)
{
	char		sql[600];
	PGresult   *result;
	int			n;

	snprintf(sql, sizeof(sql), "SELECT " ROW("e") ", e.partition FROM %s AS e",
			 "coalesce(e.position, 0)", call);
	result = query(sql, 0, NULL);
	if (result == NULL)
		return -1;
	n = PQntuples(result);
	for (int i = 0; i < n; i++)
		logged("entry %ld %s %s %s %s %s %s %s %s", tx, options.group,
			   PQgetvalue(result, i, 6), PQgetvalue(result, i, 3),
			   PQgetvalue(result, i, 1), PQgetvalue(result, i, 0),
			   PQgetvalue(result, i, 4), PQgetvalue(result, i, 5),
			   PQgetvalue(result, i, 2));
	if (n > 0 && receipt != NULL)
	{
		strcpy(receipt, PQgetvalue(result, 0, 2));
		strcpy(last_position, PQgetvalue(result, between(0, n - 1), 3));
	}
	PQclear(result);
	return n;
}

int
read_entries(void)
{
	int			n = between(1, 60);
	bool		undone = one_in(6);
	int			got;

	if (!begin("read", MARKED))
		return -1;
	got = get_entries(textf("%s('events', '%s', %d)", options.read, options.group, n),
					  NULL, NULL);
	if (got < 0)
		return -1;
	if (undone)
		rollback();
	else
		commit();
	if (got == 0)
		sleep_us(20000);
	return undone ? 1 : got;
}

static void
move(const char *receipt, const char *upto)
{
	const char *params[] = {options.group, receipt, upto};
	PGresult   *result;

	if (!begin("move", MARKED))
		return;
	logged("move %ld %s %s %s", tx, options.group, receipt, upto ? upto : "-");
	result = query("SELECT msgq.commit('events', $1, $2::uuid, $3::bigint)", 3, params);
	if (result == NULL)
		return;
	logged("moved %ld %s %s %s %s", tx, options.group, receipt, upto ? upto : "-",
		   PQgetvalue(result, 0, 0));
	PQclear(result);
	commit();
}

void
poll_entries(void)
{
	char		receipt[RECEIPT_LENGTH + 1];
	char		position[24];
	int			kind = between(1, 10);
	int			n = between(1, 40);
	int			got;

	if (!begin("poll", MARKED))
		return;
	got = get_entries(textf("msgq.poll('events', '%s', %d, '500 ms')", options.group, n),
					  receipt, position);
	if (got < 0 || commit() != OUTCOME_OK)
		return;
	if (got == 0)
	{
		sleep_us(20000);
		return;
	}
	if (kind == 1)
		return;
	if (kind == 2)
		sleep_us(between(400000, 900000));
	if (kind <= 4)
		move(receipt, position);
	move(receipt, NULL);
}
