-- One of two workers that compete for the queue 'packing':
--   psql -v worker=A -f worker.sql
--
-- A message is received in a transaction of its own; the work and the
-- acknowledgement follow in the next.

SELECT set_config('shop.worker', :'worker', false) AS worker \gset

-- Nobody starts before both are there, or the first would do it all.
INSERT INTO worker_ready VALUES (:'worker');
DO $$
BEGIN
    WHILE (SELECT count(*) < 2 FROM worker_ready) LOOP
        PERFORM pg_sleep(0.01);
    END LOOP;
END
$$;

DO $$
DECLARE
    m msgq.message;
BEGIN
    LOOP
        SELECT * INTO m FROM msgq.receive('packing', 1, '30 s');
        EXIT WHEN m.id IS NULL;
        COMMIT;

        PERFORM pg_sleep(0.02);     -- it packs
        INSERT INTO parcel
        VALUES ((m.body->>'order')::int, current_setting('shop.worker'));
        PERFORM msgq.ack('packing', m.receipt);
        COMMIT;
    END LOOP;
END
$$;
