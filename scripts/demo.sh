#!/bin/bash
#
# scripts/demo.sh - make demo
#
# Starts a private PostgreSQL under tmp/demo and walks through a transactional
# outbox in a small shop.  Each step shows its SQL, its result, and then
# proves what it claims: a wrong result ends the demo with an error.

set -euo pipefail

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

here=$MSGQ_TOP/scripts/demo
work=$MSGQ_TOP/tmp/demo
step=0
shown=''

# ---------------------------------------------------------------------------
# Telling and proving
# ---------------------------------------------------------------------------

if [ -t 1 ]; then
	bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'
else
	bold='' dim='' plain=''
fi

chapter() {
	step=$((step + 1))
	printf '\n%s%s. %s%s\n' "$bold" "$step" "$1" "$plain"
}

say() {
	printf '\n'
	echo "$1" | tr -s '\t\n' ' ' | fmt -w 76
}

indented() {
	printf '    %s\n' "${1//$'\n'/$'\n    '}"
}

client() {
	"$PG_BIN/psql" -X -q -v ON_ERROR_STOP=1 -d shop "$@"
}

# Shows the SQL that stands on standard input, runs it in one session, and
# shows what it gives.
show() {
	local sql
	sql=$(cat)

	printf '\n%s' "$dim"
	indented "$sql"
	printf '%s\n' "$plain"
	shown=$(client -P footer=off <<<"$sql") ||
		die "the demo failed: this SQL ended with an error"
	if [ -n "$shown" ]; then
		indented "$shown"
	fi
}

# What the step before has shown must contain this line.
expect_shown() {
	local claim=$1 line=$2

	grep -qxE " *$line *" <<<"$shown" ||
		die "the demo failed: $claim: found no line \"$line\""
	printf '\n    [checked] %s\n' "$claim"
}

# One value, for the checks.
value() {
	client -At -c "$1"
}

expect() {
	local claim=$1 query=$2 wanted=$3 found

	found=$(value "$query")
	if [ "$found" != "$wanted" ]; then
		die "the demo failed: $claim: expected $wanted, found $found"
	fi
	printf '\n    [checked] %s\n' "$claim"
}

# Waits until a query gives t, for at most some seconds: what follows depends
# on a clock or on another session.
await() {
	local what=$1 query=$2 tries

	for ((tries = 0; tries < 300; tries++)); do
		if [ "$(value "$query")" = t ]; then
			return
		fi
		sleep 0.1
	done
	die "the demo failed: waited in vain until $what"
}

# ---------------------------------------------------------------------------
# The steps
# ---------------------------------------------------------------------------

prepare() {
	echo "building msgq and starting a private server (log: tmp/demo/data/server.log)"
	pg_private "$work/pg"
	server_start "$work/data"
	"$PG_BIN/createdb" shop
	client -f "$here/shop.sql"
}

create_queue() {
	chapter 'A queue in the database that is already there'
	say "The shop has customers, orders and stock. One extension and one
		function call give it a queue, and a second one for what fails too
		often."
	show <<-'SQL'
		CREATE EXTENSION msgq;
		SELECT msgq.create_queue('packing');
		SELECT name FROM msgq.queues ORDER BY name;
	SQL
	expect_shown 'there is a queue for dead letters' 'packing\.dead'
}

commit_together() {
	chapter 'An order and its message are committed together'
	say "The message is sent in the transaction that writes the order. There is
		no outbox table to poll and no second system to keep in step: COMMIT
		publishes both, or neither."
	show <<-'SQL'
		BEGIN;
		INSERT INTO orders (customer, product, quantity) VALUES (1, 'lamp', 2)
		RETURNING id AS order_id \gset
		SELECT msgq.send('packing', jsonb_build_object('order', :order_id));
		COMMIT;
		SELECT id, body FROM msgq.peek('packing');
	SQL
	expect 'one order, one message' \
		"SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM msgq.peek('packing'))" '1|1'
}

roll_back_together() {
	chapter 'An order that is rolled back leaves nothing'
	say "The customer changes her mind, or the stock has run out, or the
		connection is lost. No worker ever sees a message about an order that
		does not exist."
	show <<-'SQL'
		BEGIN;
		INSERT INTO orders (customer, product, quantity) VALUES (2, 'lamp', 7)
		RETURNING id AS order_id \gset
		SELECT msgq.send('packing', jsonb_build_object('order', :order_id));
		ROLLBACK;
		SELECT id, body FROM msgq.peek('packing');
	SQL
	expect 'still one order and one message' \
		"SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM msgq.peek('packing'))" '1|1'

	say "The message that is there is received, worked on, and acknowledged. The
		receipt stands for this one delivery."
	show <<-'SQL'
		SELECT id, body, msgq.ack('packing', receipt) AS acked
		FROM msgq.receive('packing');
	SQL
	expect 'the queue is empty' "SELECT count(*) FROM msgq.peek('packing')" 0
}

compete() {
	local workers=() name status=0

	chapter 'Two workers share the work'
	say "Sixty orders come in. Two workers, two database sessions at the same
		time, take one message after the other (scripts/demo/worker.sql).
		Neither waits for the other, and no message goes to both."
	show <<-'SQL'
		WITH placed AS (
		    INSERT INTO orders (customer, product, quantity)
		    SELECT 2, 'pencil', 1 FROM generate_series(1, 60)
		    RETURNING id
		)
		SELECT count(msgq.send('packing', jsonb_build_object('order', id))) AS sent
		FROM placed;
	SQL
	for name in A B; do
		client -v worker="$name" -f "$here/worker.sql" &
		workers+=($!)
	done
	for name in "${workers[@]}"; do
		wait "$name" || status=$?
	done
	[ "$status" -eq 0 ] || die "the demo failed: a worker ended with an error"
	show <<-'SQL'
		SELECT worker, count(*) AS packed FROM parcel GROUP BY worker ORDER BY worker;
	SQL
	expect 'sixty parcels, none twice, both workers busy' \
		"SELECT count(*), count(DISTINCT order_id), count(DISTINCT worker) FROM parcel" '60|60|2'
	expect 'the queue is empty' "SELECT count(*) FROM msgq.peek('packing')" 0
}

lose_a_worker() {
	local dead

	chapter 'A worker dies, and its message comes back'
	say "A worker receives a message for three seconds and notes its receipt.
		Before it can acknowledge, its session is killed."
	show <<-'SQL'
		BEGIN;
		INSERT INTO orders (customer, product, quantity) VALUES (1, 'lamp', 1)
		RETURNING id AS order_id \gset
		SELECT msgq.send('packing', jsonb_build_object('order', :order_id));
		COMMIT;
	SQL
	PGAPPNAME=doomed client \
		-c "INSERT INTO notebook SELECT receipt FROM msgq.receive('packing', 1, '3 s')" \
		-c 'SELECT pg_sleep(60)' >/dev/null 2>&1 &
	dead=$!
	await 'the worker had its message' 'SELECT count(*) = 1 FROM notebook'
	show <<-'SQL'
		SELECT pg_terminate_backend(pid) AS killed
		FROM pg_stat_activity WHERE application_name = 'doomed';
		SELECT count(*) AS received_at_once FROM msgq.receive('packing');
	SQL
	wait "$dead" || true
	expect_shown 'it is not to be had before its three seconds are over' 0

	say "When they are over, the next worker gets the message, and can see that
		this is the second delivery."
	client -c 'CREATE TABLE second (LIKE msgq.message)'
	await 'the message came back' \
		"WITH m AS (INSERT INTO second SELECT * FROM msgq.receive('packing') RETURNING 1) SELECT count(*) = 1 FROM m"
	show <<-'SQL'
		SELECT id, deliveries, body FROM second;
	SQL
	expect 'this is the second delivery' 'SELECT deliveries FROM second' 2

	say "And if the first worker was not dead, only slow? Its receipt has been
		overtaken: it is refused, and the message stays with the worker who
		holds it now."
	show <<-'SQL'
		SELECT msgq.ack('packing', receipt) AS acked_with_old_receipt FROM notebook;
	SQL
	expect_shown 'the old receipt has no effect' f
	show <<-'SQL'
		SELECT msgq.ack('packing', receipt) AS acked_with_new_receipt FROM second;
	SQL
	expect_shown 'the new one counts' t
	expect 'the queue is empty' "SELECT count(*) FROM msgq.peek('packing')" 0
}

give_up() {
	chapter 'A message that always fails is set aside'
	say "This order has no number, and every worker stumbles over it. It must
		not come back for ever. A queue gives a message up after ten failures,
		or as many as you say."
	show <<-'SQL'
		SELECT msgq.alter_queue('packing', '{"max_deliveries": 3}');
		SELECT msgq.send('packing', '{"order": "seventeen"}');
	SQL
	fail
	fail
	fail
	expect 'the queue is empty' "SELECT count(*) FROM msgq.peek('packing')" 0

	say "After the third time it is in the dead-letter queue, moved in the
		transaction of the last nack, with the reason in a header."
	show <<-'SQL'
		SELECT m.body, d.reason, d.deliveries, d.error
		FROM msgq.peek('packing.dead') m,
		    jsonb_to_recordset(m.headers->'msgq-death')
		        AS d(reason text, deliveries int, error text);
	SQL
	expect_shown 'it is there, and says why' \
		'.*max_deliveries +\| +3 +\| not a number: seventeen'

	say "The worker learns to read such numbers, and the message goes back."
	show <<-'SQL'
		SELECT msgq.redrive('packing.dead');
		SELECT deliveries, body, msgq.ack('packing', receipt) AS acked
		FROM msgq.receive('packing');
	SQL
	expect_shown 'it begins anew, and is dealt with' '1 +\| .*seventeen.*\| t'
	expect 'both queues are empty' \
		"SELECT (SELECT count(*) FROM msgq.peek('packing')), (SELECT count(*) FROM msgq.peek('packing.dead'))" '0|0'
}

fail() {
	show <<-'SQL'
		SELECT deliveries, msgq.nack('packing', receipt, delay => '0',
		    error => 'not a number: seventeen') AS given_back
		FROM msgq.receive('packing');
	SQL
}

happen_once() {
	chapter 'An effect that happens exactly once'
	say "pop removes a message as part of the caller's transaction. Whatever
		else that transaction writes, happens if and only if the message is
		gone. Three lamps are delivered, but the first attempt to book them
		in fails half-way."
	show <<-'SQL'
		SELECT msgq.create_queue('deliveries', retry_delay => '0');
		SELECT msgq.send('deliveries', '{"product": "lamp", "quantity": 3}');
		BEGIN;
		WITH m AS (SELECT body FROM msgq.pop('deliveries'))
		UPDATE stock SET on_hand = on_hand + (m.body->>'quantity')::int
		FROM m WHERE product = m.body->>'product'
		RETURNING product, on_hand;
		ROLLBACK;
		SELECT product, on_hand AS on_hand_after_rollback
		FROM stock WHERE product = 'lamp';
	SQL
	expect_shown 'the attempt had seen thirteen' 'lamp +\| +13'
	expect 'the stock is what it was' \
		"SELECT on_hand FROM stock WHERE product = 'lamp'" 10
	# The worker writes down that an attempt has failed, where sessions share
	# memory, and holds the message for that instant.
	client -c 'SELECT msgq.maintain()' >/dev/null
	say "The message is still there. The second attempt commits, and a third
		finds nothing more to do."
	book_in
	expect 'three more, once' "SELECT on_hand FROM stock WHERE product = 'lamp'" 13
	book_in
	expect 'three more, still once' "SELECT on_hand FROM stock WHERE product = 'lamp'" 13
}

book_in() {
	show <<-'SQL'
		WITH m AS (SELECT body FROM msgq.pop('deliveries'))
		UPDATE stock SET on_hand = on_hand + (m.body->>'quantity')::int
		FROM m WHERE product = m.body->>'product'
		RETURNING product, on_hand;
	SQL
}

finish() {
	printf '\n%sAll of this was plain SQL.%s The server still runs; look around:\n\n' \
		"$bold" "$plain"
	printf '    %s -h %s -U postgres shop\n\n' "$("$PG_CONFIG" --bindir)/psql" "$PGHOST"
	printf 'and when you have seen enough:\n\n    make demo-stop\n'
}

main() {
	# From the start, however the last walk ended.
	server_stop "$work/data"
	msgq_dir_remove "$work"
	work=$(msgq_dir "$work")

	prepare
	create_queue
	commit_together
	roll_back_together
	compete
	lose_a_worker
	give_up
	happen_once
	finish
}

msgq_lock demo "$@"
msgq_packages
main
