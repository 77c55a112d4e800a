-- The lower bound of what storing a message can cost: a table with the
-- columns and indexes of a queue's segment, and nothing else.

DROP SCHEMA IF EXISTS plain CASCADE;
CREATE SCHEMA plain;

CREATE TABLE plain.queue (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    visible_at  timestamptz,
    leased_at   timestamptz,
    deliveries  int         NOT NULL DEFAULT 0,
    failures    int         NOT NULL DEFAULT 0,
    priority    smallint    NOT NULL DEFAULT 0,
    enqueued_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  timestamptz,
    group_key   text,
    headers     jsonb,
    body        jsonb,
    data        bytea
);

CREATE INDEX ON plain.queue (visible_at) WHERE visible_at IS NOT NULL;
