-- The queue that everybody writes first: one table, a visibility time, and
-- SKIP LOCKED.  Written as well as that design allows, so that the comparison
-- is with the design and not with a mistake in it.

DROP SCHEMA IF EXISTS textbook CASCADE;
CREATE SCHEMA textbook;

CREATE TABLE textbook.queue (
    id          bigserial   PRIMARY KEY,
    vt          timestamptz NOT NULL DEFAULT now(),
    read_ct     int         NOT NULL DEFAULT 0,
    enqueued_at timestamptz NOT NULL DEFAULT now(),
    body        jsonb
);

CREATE INDEX ON textbook.queue (vt);

CREATE FUNCTION textbook.send(body jsonb) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    new_id bigint;
BEGIN
    INSERT INTO textbook.queue (body) VALUES (send.body)
    RETURNING id INTO new_id;
    RETURN new_id;
END
$$;

-- MATERIALIZED, since without it the planner may run the locking subquery
-- again for each row that it joins with.
CREATE FUNCTION textbook.receive(n int, timeout interval)
RETURNS SETOF textbook.queue
LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY
    WITH claimed AS MATERIALIZED (
        SELECT q.id
        FROM textbook.queue q
        WHERE q.vt <= clock_timestamp()
        ORDER BY q.id
        LIMIT n
        FOR UPDATE SKIP LOCKED
    )
    UPDATE textbook.queue q
    SET vt = clock_timestamp() + timeout, read_ct = q.read_ct + 1
    FROM claimed
    WHERE q.id = claimed.id
    RETURNING q.*;
END
$$;

-- The same with an asynchronous commit: a claim that a crash forgets is only
-- an early redelivery.
CREATE FUNCTION textbook.receive_async(n int, timeout interval)
RETURNS SETOF textbook.queue
LANGUAGE plpgsql AS $$
BEGIN
    SET LOCAL synchronous_commit = off;
    RETURN QUERY
    WITH claimed AS MATERIALIZED (
        SELECT q.id
        FROM textbook.queue q
        WHERE q.vt <= clock_timestamp()
        ORDER BY q.id
        LIMIT n
        FOR UPDATE SKIP LOCKED
    )
    UPDATE textbook.queue q
    SET vt = clock_timestamp() + timeout, read_ct = q.read_ct + 1
    FROM claimed
    WHERE q.id = claimed.id
    RETURNING q.*;
END
$$;

CREATE FUNCTION textbook.ack(message_id bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM textbook.queue WHERE id = message_id;
    RETURN FOUND;
END
$$;

CREATE FUNCTION textbook.ack_batch(message_ids bigint[]) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    deleted bigint;
BEGIN
    DELETE FROM textbook.queue WHERE id = ANY (message_ids);
    GET DIAGNOSTICS deleted = ROW_COUNT;
    RETURN deleted;
END
$$;
