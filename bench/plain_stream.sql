-- The lower bound of what storing an entry of a stream can cost: a table with
-- the columns and indexes of a stream's table of entries, and nothing else.

DROP SCHEMA IF EXISTS plain_stream CASCADE;
CREATE SCHEMA plain_stream;

CREATE TABLE plain_stream.entries (
    id              bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    partition       int         NOT NULL,
    appended_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    key             text        COLLATE "C",
    idempotency_key text        COLLATE "C",
    headers         jsonb,
    body            jsonb,
    data            bytea
);

CREATE INDEX ON plain_stream.entries (key, id) WHERE key IS NOT NULL;
CREATE INDEX ON plain_stream.entries (idempotency_key) WHERE idempotency_key IS NOT NULL;
