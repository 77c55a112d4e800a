-- Event sourcing with optimistic append; see README.md.
--
--	psql -X -d mydb < accounts.sql
--
-- Everything it makes is its own, is removed at the end, and also at the
-- beginning, in case an earlier run was interrupted.

\set ON_ERROR_STOP on
\set QUIET on
\pset pager off
\pset footer off
\pset null '(none)'
\set SHOW_CONTEXT never
SET client_min_messages = warning;

DROP SCHEMA IF EXISTS event_sourcing CASCADE;
SELECT msgq.drop_stream('bank.events', if_exists => true),
	msgq.drop_stream('bank.snapshots', if_exists => true) \g /dev/null

\echo == A bank whose only truth is a stream of events, with an account as key

CREATE SCHEMA event_sourcing;
SET search_path = event_sourcing, pg_temp;
-- Truth is kept: no retention.
SELECT msgq.create_stream('bank.events', retention => NULL),
	msgq.create_stream('bank.snapshots', retention => NULL) \g /dev/null

-- What an account is: its balance, and the id of its last event, 0 if there is
-- none.  The handle of the stream, the view msgq.s<id>, also shows what has no
-- position yet, so a decision sees all that is committed.
SELECT format($view$
	CREATE VIEW event AS
	SELECT id, key AS account, body->>'type' AS type,
		(body->>'amount')::numeric * CASE body->>'type'
			WHEN 'withdrawn' THEN -1 ELSE 1 END AS change
	FROM msgq.s%s $view$, id)
FROM msgq.streams WHERE name = 'bank.events' \gexec

CREATE FUNCTION state(of_account text, OUT balance numeric, OUT last_id bigint)
BEGIN ATOMIC
	SELECT coalesce(sum(change), 0), coalesce(max(id), 0)
	FROM event WHERE account = of_account;
END;

-- Decides by the state that its caller has seen, and appends only if that is
-- still the state.  Result: the id of the event.
CREATE FUNCTION decide(account text, event_type text, amount numeric, seen_balance numeric,
	seen_id bigint) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
	IF event_type = 'withdrawn' AND seen_balance < amount THEN
		RAISE EXCEPTION '% has % and cannot give %', account, seen_balance, amount;
	END IF;
	RETURN msgq.append('bank.events',
		jsonb_build_object('type', event_type, 'amount', amount),
		key => account, expected_id => seen_id);
END $$;

-- Begins with what the caller has seen, if he says so: what stood in the form
-- that somebody has filled in.  If it has changed since, looks and decides anew.
-- At READ COMMITTED each look sees what was committed meanwhile.
CREATE FUNCTION handle(account text, event_type text, amount numeric,
	seen_balance numeric DEFAULT NULL, seen_id bigint DEFAULT NULL)
RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
	FOR attempt IN 1 .. 10 LOOP
		IF seen_id IS NULL THEN
			SELECT balance, last_id INTO seen_balance, seen_id FROM state(account);
		END IF;
		BEGIN
			RETURN decide(account, event_type, amount, seen_balance, seen_id);
		EXCEPTION WHEN SQLSTATE 'MQ003' THEN
			RAISE NOTICE 'attempt %: % has changed, decide anew', attempt, account;
			seen_id := NULL;
		END;
	END LOOP;
	RAISE EXCEPTION 'account % is too busy', account;
END $$;
SET client_min_messages = notice;

\echo == Commands become events
SELECT handle('alice', 'opened', 0) AS id;
SELECT handle('alice', 'deposited', 100) AS id;
SELECT handle('bob', 'opened', 0) AS id;
SELECT handle('bob', 'deposited', 20) AS id;

\echo == Two tellers decide by the same state: the second one is told

-- Both have seen that Alice has 100.  Each of the 80 would be fine, but not both.
SELECT balance AS seen, last_id AS seen_id FROM state('alice') \gset
\echo both have seen a balance of :seen
SELECT decide('alice', 'withdrawn', 80, :seen, :seen_id) AS first_teller;
\set ON_ERROR_STOP off
SELECT decide('alice', 'withdrawn', 80, :seen, :seen_id) AS second_teller;
\set ON_ERROR_STOP on
\echo SQLSTATE :LAST_ERROR_SQLSTATE

\echo == With a retry: he decides anew, and Alice has too little
\set ON_ERROR_STOP off
SELECT handle('alice', 'withdrawn', 80, :seen, :seen_id) AS second_teller;
\set ON_ERROR_STOP on
\echo == With a retry: he wants less now
SELECT handle('alice', 'withdrawn', 15, :seen, :seen_id) AS second_teller;

\echo == State is rebuilt from the events

-- scan() goes by positions, in the order of which all readers see the same.
-- The background worker gives them; this does not wait for it.
CALL msgq.sequence('bank.events');
SELECT "position", key AS account, body->>'type' AS type, body->>'amount' AS amount
FROM msgq.scan('bank.events', 0, from_position => 1, max_entries => 100);

SELECT key AS account,
	sum((body->>'amount')::numeric * CASE body->>'type' WHEN 'withdrawn' THEN -1 ELSE 1 END)
		AS balance
FROM msgq.scan('bank.events', 0, from_position => 1, max_entries => 100)
GROUP BY key ORDER BY key COLLATE "C";

\echo == A projection: a table that follows the stream

CREATE TABLE balance (account text PRIMARY KEY, amount numeric NOT NULL, events bigint NOT NULL);
SELECT msgq.create_group('bank.events', 'balance', start_from => 'first') \g /dev/null

-- Position and table change in one transaction, so each event counts once,
-- whatever crashes.
CREATE FUNCTION project(at_most int) RETURNS bigint
BEGIN ATOMIC
	WITH entry AS (
		SELECT key, sum((body->>'amount')::numeric * CASE body->>'type'
				WHEN 'withdrawn' THEN -1 ELSE 1 END) AS change,
			count(*) AS events
		FROM msgq.read('bank.events', 'balance', max_entries => at_most)
		GROUP BY key),
	applied AS (
		INSERT INTO balance SELECT key, change, events FROM entry
		ON CONFLICT (account) DO UPDATE
		SET amount = balance.amount + excluded.amount,
			events = balance.events + excluded.events
		RETURNING account)
	SELECT coalesce(sum(events), 0)::bigint FROM entry;
END;

BEGIN;
SELECT project(4) AS projected_in_vain;
ROLLBACK;
SELECT project(4) AS projected;
SELECT project(4) AS projected;
SELECT project(4) AS projected;
SELECT * FROM balance ORDER BY account COLLATE "C";

\echo == The projection had a mistake: throw it away and read again

BEGIN;
TRUNCATE balance;
SELECT msgq.seek('bank.events', 'balance', 'first') \g /dev/null
SELECT project(100) AS projected;
COMMIT;
SELECT * FROM balance ORDER BY account COLLATE "C";

\echo == Snapshots: do not begin with the first event each time

-- A second stream with the state of each account, of which only the last entry
-- counts.
SELECT count(msgq.append('bank.snapshots', jsonb_build_object(
		'balance', s.balance, 'last_id', s.last_id), key => account)) AS snapshots
FROM (SELECT DISTINCT account FROM event) AS accounts, state(account) AS s;
SELECT handle('bob', 'deposited', 5) AS id;
CALL msgq.sequence('bank.snapshots');

-- The snapshot, and what came after it.
SELECT key AS account, body->>'balance' AS snapshot, sum(change) AS since,
	(body->>'balance')::numeric + coalesce(sum(change), 0) AS balance
FROM msgq.last_per_key('bank.snapshots')
	LEFT JOIN event ON event.account = key AND event.id > (body->>'last_id')::bigint
GROUP BY key, body ORDER BY key COLLATE "C";

SET client_min_messages = warning;
DROP SCHEMA event_sourcing CASCADE;
SELECT msgq.drop_stream('bank.events'), msgq.drop_stream('bank.snapshots') \g /dev/null
