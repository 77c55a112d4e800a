#!/bin/sh
#
# run.sh [WORKERS] - jobs for a pool of workers, from beginning to end; see
# README.md
#
# The connection is psql's: PGHOST, PGDATABASE and so on choose it.

set -eu

here=$(dirname "$0")
workers=${1:-3}
pids=
logs=$(mktemp -d)

run_sql() {
	psql -X -q -v ON_ERROR_STOP=1 -P pager=off -P footer=off "$@"
}

stop_workers() {
	for pid in $pids; do
		kill "$pid" 2>/dev/null || true
	done
	for pid in $pids; do
		wait "$pid" || true
	done
	pids=
}
trap 'stop_workers; rm -rf "$logs"' EXIT
trap 'exit 1' INT TERM

# Until the query says t; a minute at most.
wait_until() {
	tries=600
	until [ "$(run_sql -At -c "$1")" = t ]; do
		tries=$((tries - 1))
		if [ "$tries" -eq 0 ]; then
			echo "the workers do not come to an end" >&2
			exit 1
		fi
		sleep 0.1
	done
}

# No message is left, in whatever state.
until_done="SELECT msgq.why_empty('pool.jobs') = 'empty'"

run_sql -f "$here/setup.sql"

echo "== $workers workers"
n=0
while [ "$n" -lt "$workers" ]; do
	n=$((n + 1))
	sh "$here/worker.sh" "$n" >"$logs/$n" 2>&1 &
	pids="$pids $!"
done

echo "== 12 jobs, each with its message, in one transaction"
run_sql <<'SQL'
BEGIN;
INSERT INTO worker_pool.job (id, text)
SELECT i, format('%s * %s', i, i) FROM generate_series(1, 9) AS i
UNION ALL
VALUES (10, '20 / 4 flaky'), (11, '100 - 1 slow'), (12, 'seven + 1');
SELECT msgq.send_batch('pool.jobs', array_agg(jsonb_build_object('id', id) ORDER BY id))
FROM worker_pool.job \g /dev/null
COMMIT;
SQL
wait_until "$until_done"

run_sql -c "SELECT id, text, result, attempts FROM worker_pool.job ORDER BY id"

echo "== One job was given up"
run_sql -c "SELECT headers->'msgq-death'->0->>'reason' AS reason, body->>'id' AS job,
	headers->'msgq-death'->0->>'error' AS error
	FROM msgq.peek('pool.jobs.dead')"

echo "== Its text is corrected, and it goes back to the pool"
run_sql -c "UPDATE worker_pool.job SET text = '7 + 1' WHERE id = 12" \
	-c "SELECT msgq.redrive('pool.jobs.dead') AS redriven"
wait_until "$until_done"
run_sql -c "SELECT id, text, result, attempts FROM worker_pool.job WHERE id = 12"

echo "== The workers stop when they have ended what they do"
stop_workers
echo "$(cat "$logs"/* | grep -c 'worker stopped') workers have stopped"
# Which worker did what differs each time.
cat "$logs"/* | grep -v 'worker stopped' | LC_ALL=C sort -k 2n | uniq -c | sed 's/^ *//'

echo "== Nothing is left"
run_sql -c "SELECT count(*) FILTER (WHERE result IS NULL) AS jobs_without_result,
	(SELECT count(*) FROM msgq.leases WHERE queue LIKE 'pool.jobs%') AS leases,
	msgq.why_empty('pool.jobs') AS queue, msgq.why_empty('pool.jobs.dead') AS dead_letters
	FROM worker_pool.job"

run_sql <<'SQL'
SET client_min_messages = warning;
SELECT msgq.drop_queue('pool.jobs') \g /dev/null
DROP SCHEMA worker_pool CASCADE;
SQL
