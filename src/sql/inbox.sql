/*
 * inbox.sql: which messages of others were dealt with.
 */

/*
 * Claims.  The tables take turns (src/inbox.c); msgq.inbox_state says which one
 * takes new claims, the first one where it has no row, as in a new database: a
 * row would be in the way of that which a dump brings.
 */
CREATE TABLE msgq.inbox_1 (
	consumer text COLLATE "C" NOT NULL,
	message_id text COLLATE "C" NOT NULL,
	claimed_at timestamptz NOT NULL,
	keep_until timestamptz NOT NULL,
	PRIMARY KEY (consumer, message_id)
);

CREATE TABLE msgq.inbox_2 (
	consumer text COLLATE "C" NOT NULL,
	message_id text COLLATE "C" NOT NULL,
	claimed_at timestamptz NOT NULL,
	keep_until timestamptz NOT NULL,
	PRIMARY KEY (consumer, message_id)
);

COMMENT ON TABLE msgq.inbox_1 IS
'claims of msgq.inbox_claim; one of two tables that take turns; read msgq.inbox instead';

COMMENT ON TABLE msgq.inbox_2 IS
'claims of msgq.inbox_claim; one of two tables that take turns; read msgq.inbox instead';

CREATE TABLE msgq.inbox_state (
	current int NOT NULL PRIMARY KEY CHECK (current IN (1, 2)),
	emptied bigint NOT NULL
);

COMMENT ON TABLE msgq.inbox_state IS
'which of the tables msgq.inbox_1 and _2 takes new claims, and how often one was emptied; no row: 1, and never';

CREATE FUNCTION msgq.inbox_is_whole() RETURNS boolean
AS 'MODULE_PATHNAME', 'msgq_inbox_is_whole'
LANGUAGE C STABLE PARALLEL RESTRICTED;

COMMENT ON FUNCTION msgq.inbox_is_whole() IS
'true; for msgq.inbox and for dumps, which would otherwise miss claims.
Errors: 40001 a table of the inbox was emptied since the snapshot of the statement was taken, and claims that it shows were in it.';

CREATE FUNCTION msgq.inbox_claim(
	consumer text,
	message_id text,
	keep interval DEFAULT '7 days')
RETURNS boolean
AS 'MODULE_PATHNAME', 'msgq_inbox_claim'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.inbox_claim(text, text, interval) IS
'claims a message for a consumer, in the caller''s transaction, so that its effects in this database happen once however often it comes; needs INSERT on msgq.inbox.
consumer: who deals with messages, 1 to 255 bytes; each one claims for itself. message_id: what its sender calls the message, 1 to 255 bytes. keep: how long the claim counts, above 0 and up to 100 years: longer than the message can come again.
Result: true if the message is the caller''s to deal with; false if it was claimed before, by a transaction that has committed, and the claim still counts. Waits for one that has claimed it and is open. A rollback, to a savepoint too, frees it.
Errors: 22004 NULL, 22023 bad argument, 42501 no right, 55000 somebody has added a trigger or the like to the tables, 25006 read-only or standby.';

CREATE VIEW msgq.inbox WITH (security_barrier) AS
SELECT consumer, message_id, claimed_at, keep_until
FROM ONLY msgq.inbox_1
WHERE keep_until > pg_catalog.clock_timestamp() AND msgq.inbox_is_whole()
UNION ALL
SELECT consumer, message_id, claimed_at, keep_until
FROM ONLY msgq.inbox_2
WHERE keep_until > pg_catalog.clock_timestamp() AND msgq.inbox_is_whole();

COMMENT ON VIEW msgq.inbox IS
'the claims of msgq.inbox_claim that still count: consumer, message_id, claimed_at, keep_until. Its privileges are the rights on the inbox: INSERT to claim, SELECT to look.';

SELECT pg_catalog.pg_extension_config_dump('msgq.inbox_1', 'WHERE msgq.inbox_is_whole()');
SELECT pg_catalog.pg_extension_config_dump('msgq.inbox_2', 'WHERE msgq.inbox_is_whole()');
SELECT pg_catalog.pg_extension_config_dump('msgq.inbox_state', '');
