-- The pool's queue and tables; see README.md.  Makes them anew.

\set ON_ERROR_STOP on
\set QUIET on
SET client_min_messages = warning;

SELECT msgq.drop_queue('pool.jobs', if_exists => true) \g /dev/null
-- It would have stayed if an interrupted run had left something in it.
SELECT msgq.drop_queue('pool.jobs.dead', if_exists => true) \g /dev/null
DROP SCHEMA IF EXISTS worker_pool CASCADE;

-- Three failures, and a job is given up.  A retry comes within half a second.
SELECT msgq.create_queue('pool.jobs', max_deliveries => 3, visibility_timeout => '5 s',
	retry_delay => '200 ms', retry_multiplier => 1) \g /dev/null

CREATE SCHEMA worker_pool;
CREATE TABLE worker_pool.job (
	id int PRIMARY KEY,
	text text NOT NULL,
	result bigint,
	worker int,
	attempts int);

-- The work: arithmetic, as a user has typed it.  What is none raises an error.
-- What is slow takes longer than the queue's visibility timeout; what is flaky
-- fails the first time.
CREATE FUNCTION worker_pool.work(task text, failures int) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
	operands text[] := regexp_match(task, '^(\d+) ([-+*/]) (\d+)( slow| flaky)?$');
BEGIN
	IF operands IS NULL THEN
		RAISE EXCEPTION 'cannot read "%"', task;
	ELSIF operands[4] = ' flaky' AND failures = 0 THEN
		RAISE EXCEPTION 'the calculator has no power';
	ELSIF operands[4] = ' slow' THEN
		PERFORM pg_sleep(6);
	END IF;
	RETURN CASE operands[2]
		WHEN '+' THEN operands[1]::bigint + operands[3]::bigint
		WHEN '-' THEN operands[1]::bigint - operands[3]::bigint
		WHEN '*' THEN operands[1]::bigint * operands[3]::bigint
		WHEN '/' THEN operands[1]::bigint / operands[3]::bigint
	END;
END $$;
