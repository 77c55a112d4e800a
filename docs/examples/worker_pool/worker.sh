#!/bin/sh
#
# worker.sh NUMBER - takes jobs until it is told to stop; see README.md
#
# TERM (and INT) stop it gracefully: it ends the job that it has, and takes no
# other one.  If it dies instead, the job's lease ends, and another worker gets
# the job.
#
# The connection is psql's, so PGHOST, PGDATABASE and so on choose it.

set -eu

number=$1
stopping=
child=
tab=$(printf '\t')

run_sql() {
	psql -XAtq -F "$tab" -v ON_ERROR_STOP=1 "$@"
}

# What only waits has nothing to lose.
stop() {
	stopping=1
	if [ -n "$child" ]; then
		kill "$child" 2>/dev/null || true
	fi
}
trap stop TERM INT

# Until there is a job; no transaction is open meanwhile.  In the background,
# since the shell hears a signal only while it waits for a child like that.
wait_for_job() {
	psql -Xq -c "CALL msgq.wait(ARRAY['pool.jobs'], '1 min')" >/dev/null 2>&1 &
	child=$!
	if [ -n "$stopping" ]; then
		kill "$child" 2>/dev/null || true
	fi
	wait "$child" || [ -n "$stopping" ] || sleep 1
	child=
}

# Leases one job, in a transaction of its own, for as long as the queue says: if
# this worker dies now, another one has the job soon.  Prints nothing if another
# one was faster.
take_job() {
	run_sql -c "SELECT receipt, deliveries, failures, body->>'id'
		FROM msgq.receive('pool.jobs')"
}

# Work and acknowledgement, in one transaction.  With strict, a receipt that is
# stale is an error: then somebody else has the job, and nothing is written.
# Before that the worker takes the time that the work may need.  That is a
# transaction of its own, since others have to see it.  Work in several steps
# would extend the lease before each of them.
do_job() {
	run_sql -v receipt="$1" -v deliveries="$2" -v failures="$3" -v id="$4" \
		-v worker="$number" 2>&1 >/dev/null <<-'SQL'
		SET client_min_messages = error;
		\set VERBOSITY terse
		SELECT msgq.extend('pool.jobs', :'receipt', '30 s', strict => true);
		BEGIN;
		UPDATE worker_pool.job
		SET result = worker_pool.work(text, :failures), worker = :worker,
			attempts = :deliveries
		WHERE id = :id;
		SELECT msgq.ack('pool.jobs', :'receipt', strict => true);
		COMMIT;
	SQL
}

# Gives the job back, with the reason.  It comes again after the queue's delay,
# and after the third time becomes a dead letter.
give_back() {
	run_sql -v receipt="$1" -v error="$2" >/dev/null <<-'SQL'
		SELECT msgq.nack('pool.jobs', :'receipt', error => :'error');
	SQL
}

while [ -z "$stopping" ]; do
	job=$(take_job) || { sleep 1; continue; }
	if [ -z "$job" ]; then
		wait_for_job
		continue
	fi
	IFS=$tab read -r receipt deliveries failures id <<-END
		$job
	END
	if error=$(do_job "$receipt" "$deliveries" "$failures" "$id"); then
		echo "job $id: done"
	else
		error=${error##*ERROR:  }
		echo "job $id: $error"
		give_back "$receipt" "$error" || true
	fi
done
echo "worker stopped"
