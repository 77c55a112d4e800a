-- Patterns of routing keys, in the three syntaxes.
-- Each row: pattern, routing key, whether they match.
CREATE TEMP TABLE expected (syntax text, pattern text, routing_key text, matches boolean);
INSERT INTO expected VALUES
	('amqp', 'a.b', 'a.b', true),
	('amqp', 'a.b', 'a', false),
	('amqp', 'a.b', 'a.b.c', false),
	('amqp', 'a.b', 'A.b', false),
	('amqp', 'a.*', 'a.b', true),
	('amqp', 'a.*', 'a', false),
	('amqp', 'a.*', 'a.b.c', false),
	('amqp', '*.b', 'a.b', true),
	('amqp', '*', 'a', true),
	('amqp', '*', '', false),
	('amqp', '*', 'a.b', false),
	('amqp', '#', '', true),
	('amqp', '#', 'a', true),
	('amqp', '#', 'a.b.c', true),
	('amqp', 'a.#', 'a', true),
	('amqp', 'a.#', 'a.b', true),
	('amqp', 'a.#', 'ab', false),
	('amqp', '#.b', 'b', true),
	('amqp', '#.b', 'a.a.b', true),
	('amqp', '#.b', 'b.a', false),
	('amqp', 'a.#.b', 'a.b', true),
	('amqp', 'a.#.b', 'a.x.y.b', true),
	('amqp', 'a.#.b', 'a.x.y', false),
	('amqp', '#.#', '', true),
	('amqp', '#.*', 'a', true),
	('amqp', '#.*', '', false),
	('amqp', '*.#.*', 'a', false),
	('amqp', '*.#.*', 'a.b', true),
	('amqp', 'a..b', 'a..b', true),
	('amqp', 'a.*.b', 'a..b', true),
	('amqp', '', '', true),
	('amqp', '', 'a', false),
	('amqp', 'a*', 'ab', false),
	('amqp', 'a*', 'a*', true),
	('amqp', 'grüße.*', 'grüße.日本', true),
	('mqtt', 'a/b', 'a/b', true),
	('mqtt', 'a/+', 'a/b', true),
	('mqtt', 'a/+', 'a/', true),
	('mqtt', 'a/+', 'a', false),
	('mqtt', '+/+', '/a', true),
	('mqtt', '/+', '/a', true),
	('mqtt', '+', '/a', false),
	('mqtt', 'a/#', 'a', true),
	('mqtt', 'a/#', 'a/b/c', true),
	('mqtt', 'a/#', 'ab', false),
	('mqtt', '#', 'a', true),
	('mqtt', '#', 'a/b', true),
	('mqtt', '#', '$SYS/a', false),
	('mqtt', '+/a', '$SYS/a', false),
	('mqtt', '$SYS/#', '$SYS/a', true),
	('mqtt', '$SYS/+', '$SYS/a', true),
	('mqtt', 'a/#', 'a/$b', true),
	('mqtt', 'a/+', 'a/$b', true),
	('mqtt', '#', '', false),
	('mqtt', '#', 'a/+', false),
	('mqtt', 'a.b', 'a.b', true),
	('nats', 'a.b', 'a.b', true),
	('nats', 'a.*', 'a.b', true),
	('nats', 'a.*', 'a', false),
	('nats', 'a.>', 'a', false),
	('nats', 'a.>', 'a.b', true),
	('nats', 'a.>', 'a.b.c', true),
	('nats', '>', 'a', true),
	('nats', '*.>', 'a', false),
	('nats', '*.>', 'a.b', true),
	('nats', 'a*', 'ab', false),
	('nats', 'a*', 'a*', true),
	('nats', '>', 'a..b', false),
	('nats', '>', '', false),
	('nats', '>', 'a b', false),
	('nats', '>', 'a.*', false);

SELECT * FROM expected
WHERE matches IS DISTINCT FROM msgq.topic_matches(pattern, routing_key, syntax);

SELECT msgq.topic_matches('a.#', 'a.b') AS amqp_is_the_default;

-- What is no pattern.
SELECT msgq.topic_matches('a+', 'a', 'mqtt');
SELECT msgq.topic_matches('a/#/b', 'a', 'mqtt');
SELECT msgq.topic_matches('a/b#', 'a', 'mqtt');
SELECT msgq.topic_matches('', 'a', 'mqtt');
SELECT msgq.topic_matches('$share/workers/a/#', 'a/b', 'mqtt');
SELECT msgq.topic_matches('a..b', 'a', 'nats');
SELECT msgq.topic_matches('', 'a', 'nats');
SELECT msgq.topic_matches('a.>.b', 'a', 'nats');
SELECT msgq.topic_matches('a b', 'a', 'nats');
SELECT msgq.topic_matches(repeat('a', 65536), 'a');
SELECT msgq.topic_matches('a', 'a', 'regex');
SELECT msgq.topic_matches(NULL, 'a');
SELECT msgq.topic_matches('a', NULL);
SELECT msgq.topic_matches('a', 'a', NULL);

-- Against a naive matcher.  "many" is a word of the pattern that stands for any
-- number of words, "one" is one that stands for one.
CREATE FUNCTION naive(pattern text[], words text[], one text, many text, fewest int)
RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	IF cardinality(pattern) = 0 THEN
		RETURN cardinality(words) = 0;
	ELSIF pattern[1] = many THEN
		FOR n IN fewest .. cardinality(words) LOOP
			IF naive(pattern[2:], words[n + 1:], one, many, fewest) THEN
				RETURN true;
			END IF;
		END LOOP;
		RETURN false;
	END IF;
	RETURN cardinality(words) > 0 AND (pattern[1] = one OR pattern[1] = words[1])
		AND naive(pattern[2:], words[2:], one, many, fewest);
END $$;

CREATE FUNCTION random_words(choice text[], fewest int, most int, seed int)
RETURNS text[] LANGUAGE sql VOLATILE AS $$
	SELECT coalesce(array_agg(choice[1 + floor(random() * cardinality(choice))::int]), '{}')
	FROM generate_series(1, fewest + floor(random() * (most - fewest + 1))::int + 0 * seed)
$$;

SELECT setseed(0.25);
CREATE TEMP TABLE amqp AS
SELECT random_words('{a,b,"",*,#,*,#,ab}', 0, 5, i) AS pattern,
	random_words('{a,b,a,b,"",ab}', 0, 6, i) AS words
FROM generate_series(1, 220000) AS i;
-- One empty word cannot be told from none.
DELETE FROM amqp WHERE pattern = '{""}' OR words = '{""}';
SELECT count(*) FILTER (WHERE n.matches <> m.matches) AS differences,
	count(*) FILTER (WHERE m.matches) > 20000 AS many_match,
	count(*) >= 200000 AS are_many
FROM amqp,
	LATERAL (SELECT naive(pattern, words, '*', '#', 0) AS matches) AS n,
	LATERAL (SELECT msgq.topic_matches(array_to_string(pattern, '.'),
		array_to_string(words, '.')) AS matches) AS m;

CREATE TEMP TABLE mqtt AS
SELECT random_words('{a,b,"",+,+,ab,$s}', 0, 4, i) ||
		CASE WHEN random() < 0.5 THEN '{#}' ELSE '{a}' END::text[] AS pattern,
	random_words('{a,b,a,b,"",ab,$s}', 1, 5, i) AS words
FROM generate_series(1, 220000) AS i;
DELETE FROM mqtt WHERE words = '{""}';
SELECT count(*) FILTER (WHERE n.matches <> m.matches) AS differences,
	count(*) FILTER (WHERE m.matches) > 15000 AS many_match,
	count(*) >= 200000 AS are_many
FROM mqtt,
	LATERAL (SELECT naive(pattern, words, '+', '#', 0)
		AND NOT (pattern[1] IN ('+', '#') AND words[1] ^@ '$') AS matches) AS n,
	LATERAL (SELECT msgq.topic_matches(array_to_string(pattern, '/'),
		array_to_string(words, '/'), 'mqtt') AS matches) AS m;

CREATE TEMP TABLE nats AS
SELECT random_words('{a,b,*,*,ab,a*}', 0, 4, i) ||
		CASE WHEN random() < 0.5 THEN '{>}' ELSE '{a}' END::text[] AS pattern,
	random_words('{a,b,a,b,ab,a*}', 1, 5, i) AS words
FROM generate_series(1, 220000) AS i;
SELECT count(*) FILTER (WHERE n.matches <> m.matches) AS differences,
	count(*) FILTER (WHERE m.matches) > 15000 AS many_match,
	count(*) >= 200000 AS are_many
FROM nats,
	LATERAL (SELECT naive(pattern, words, '*', '>', 1) AS matches) AS n,
	LATERAL (SELECT msgq.topic_matches(array_to_string(pattern, '.'),
		array_to_string(words, '.'), 'nats') AS matches) AS m;

-- Many ways to match cost no more than their number: the first of these would
-- not end if each way were tried.
SET statement_timeout = '20s';
SELECT msgq.topic_matches(repeat('#.a.', 40) || 'b', repeat('a.', 2000) || 'c') AS matches;
SELECT msgq.topic_matches(repeat('#.a.', 40) || '#', repeat('a.', 2000) || 'c') AS matches;
SELECT msgq.topic_matches(repeat('#.', 10000) || 'b', repeat('a.', 20000) || 'b') AS matches;
SELECT msgq.topic_matches(repeat('*.#.', 100) || 'b', repeat('a.', 5000) || 'c') AS matches;
RESET statement_timeout;
-- What takes long can be cancelled.
SET statement_timeout = '100ms';
SELECT msgq.topic_matches(repeat('#.a.', 16000) || 'b', repeat('a.', 20000) || 'c');
RESET statement_timeout;
SELECT msgq.topic_matches('#', repeat('a', 65535)) AS longest, msgq.topic_matches('#', repeat('a', 65536)) AS "too long";

DROP FUNCTION naive, random_words;
