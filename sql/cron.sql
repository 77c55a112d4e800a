-- When a schedule is due: what can be written, time zones, daylight saving.
SET timezone = 'UTC';
SET datestyle = 'ISO, DMY';

-- The time, or the error.
CREATE FUNCTION tried(spec text, zone text DEFAULT 'UTC', start timestamptz DEFAULT '2026-01-01 00:00Z')
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	detail text;
	hint text;
BEGIN
	RETURN coalesce(string_agg(to_char(due, 'YYYY-MM-DD HH24:MI:SS Dy'), ', ' ORDER BY due), 'never')
	FROM msgq.due_times(spec, zone, start, 2) AS due;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN concat_ws(' / ', SQLSTATE || ' ' || SQLERRM, nullif(detail, ''), nullif(hint, ''));
END
$$;
\pset format unaligned

-- What can be written.
SELECT spec, tried(spec) FROM unnest(ARRAY[
	'* * * * *', '0 * * * *', '*/15 * * * *', '5-59/15 * * * *', '0 9 * * MON-FRI', '0 9 * * mon,Wed,fRi',
	'30 4 1,15 * *', '0 0 1 JAN-MAR,dec *', '0 0 13 * FRI', '0 0 * * 7', '0 0 * * 0', '0 0 * * 5-7', '0 0 * * SUN',
	'0 0 */2 * MON', '0 0 29 2 *', '59 23 31 12 *', '0 0 * * */6', '0,0,0 0-23/2 * * *', '007 001 * * *',
	E'  0\t9  * * *  ', '0 0 29 2 */6', '0 0 29 FEB MON',
	'@hourly', '@daily', '@midnight', '@weekly', '@monthly', '@yearly', '@annually', '@DAILY',
	'@every 30s', '@every 1 hour', '@every 1.5s', '@every 1 day 1 second', '@EVERY 90 minutes', '@every  00:05']) AS spec;

-- What cannot.
SELECT spec, tried(spec) FROM unnest(ARRAY[
	'', ' ', '*', '* * * *', '0 * * * * *', '0 0 0 1 1 * 2026', '60 * * * *', '* 24 * * *', '* * 0 * *', '* * 32 * *',
	'* * * 0 *', '* * * 13 *', '* * * * 8', '-1 * * * *', '1- * * * *', '-5 * * * *', '1,,2 * * * *', ',1 * * * *', '1, * * * *',
	'? * * * *', '* * ? * *', '* * L * *', '* * 15W * *', '* * LW * *', '* * * * 5#2', '* * * * 5L', '5/15 * * * *',
	'*/0 * * * *', '*/60 * * * *', '*/ * * * *', '1-5/9 * * * *', '* * * * */7', '*/-1 * * * *', '22-2 * * * *', '* * * * FRI-MON', '* * * * SAT-SUN',
	'* * * NOV-FEB *', '* * * JANUARY *', '* * * MO *', '* JAN * * *', '1.5 * * * *', '1+2 * * * *', '** * * * *', '*5 * * * *',
	'H * * * *', '9999999999 * * * *', '0 0 30 2 *', '0 0 31 4,6,9,11 *', '0 0 30-31 2 *',
	'@reboot', '@secondly', '@', '@every', '@every ', '@every x', '@every 1 month', '@every 1 year', '@every 0.5s', '@every -1 min',
	'@every 0', '@every 101 years', repeat('0,', 130) || '0 * * * *']) AS spec;

-- Arguments.
SELECT zone, tried('0 12 * * *', zone) FROM unnest(ARRAY['UTC', 'utc', 'europe/berlin', 'Asia/Kathmandu', 'GMT',
	'CEST', 'XYZ5', '+02', '<+02>-2', '2', 'Nowhere/Town', '', '../UTC', 'Europe']) AS zone;
SELECT tried(NULL);
SELECT tried('@daily', NULL);
SELECT tried('@daily', start => 'infinity');
SELECT * FROM msgq.due_times('@daily', max_times => 0);
SELECT * FROM msgq.due_times('@daily', max_times => 10001);
SELECT * FROM msgq.due_times('@daily', max_times => NULL);
SELECT * FROM msgq.due_times('@every 1h', anchor => '-infinity');
-- Without a start it is now.
SELECT due > now() AND due <= now() + '2 min' AS soon FROM msgq.due_times('* * * * *') AS due;

-- The ends of time.
SELECT tried('@yearly', start => '294276-12-30'), tried('@every 1 day', start => '294276-12-31'),
	tried('@yearly', start => '4713-01-01 BC'), tried('0 0 29 2 *', start => '1896-03-01');

-- An interval counts from its anchor.
SELECT due FROM msgq.due_times('@every 90s', 'Europe/Berlin', '2026-03-29 00:58:31Z', 3, '2026-01-01 00:00:30Z') AS due;
SELECT due FROM msgq.due_times('@every 1 day', 'Europe/Berlin', '2026-03-28', 2, '2026-01-01 12:00Z') AS due;
SELECT due FROM msgq.due_times('@every 1h', after => '2026-01-01', max_times => 2, anchor => '2026-02-01') AS due;
SELECT due FROM msgq.due_times('@every 1h', after => '2026-01-01 01:00Z', anchor => '2026-01-01 00:00Z') AS due;
SELECT due FROM msgq.due_times('@every 1h', after => '2026-01-01 00:59:59.999999Z', anchor => '2026-01-01 00:00Z') AS due;
\pset format aligned

-- Daylight saving, by hand.  In Berlin the clock went from 2:00 to 3:00 on 29
-- March 2026, at 1:00 UTC, and from 3:00 to 2:00 on 25 October, at 1:00 UTC.
SELECT spec, array_agg(to_char(due, 'HH24:MI') ORDER BY due) AS spring FROM unnest(ARRAY[
	'30 2 * * *', '0,10,20 2 * * *', '0 3 * * *', '30 2,3 * * *', '30 * * * *', '0 */2 * * *']) AS spec,
	LATERAL msgq.due_times(spec, 'Europe/Berlin', '2026-03-29 00:00Z', 5) AS due
WHERE due < '2026-03-29 03:00Z' GROUP BY spec ORDER BY spec COLLATE "C";
SELECT spec, array_agg(to_char(due, 'HH24:MI') ORDER BY due) AS autumn FROM unnest(ARRAY[
	'30 2 * * *', '0,10,20 2 * * *', '0 3 * * *', '30 2,3 * * *', '30 * * * *', '0 */2 * * *', '30 0-23 * * *']) AS spec,
	LATERAL msgq.due_times(spec, 'Europe/Berlin', '2026-10-24 23:00Z', 5) AS due
WHERE due < '2026-10-25 03:00Z' GROUP BY spec ORDER BY spec COLLATE "C";
-- Samoa had no 30 December 2011.
SELECT to_char(due, 'YYYY-MM-DD HH24:MI') AS due, to_char(due AT TIME ZONE 'Pacific/Apia', 'YYYY-MM-DD HH24:MI') AS local
FROM msgq.due_times('0 12 * * *', 'Pacific/Apia', '2011-12-29', 4) AS due;
-- Manila had 30 December 1844 not either, and Alaska 18 October 1867 twice.
SELECT due FROM msgq.due_times('0 12 * * *', 'Asia/Manila', '1844-12-29 00:00Z', 3) AS due;
SELECT due FROM msgq.due_times('0 12 * * *', 'America/Juneau', '1867-10-16 12:00Z', 3) AS due;

--
-- Daylight saving against a list that is made in another way: a calendar of
-- all minutes, and the two rules word by word.
--
SET work_mem = '64MB';
CREATE TABLE zone (zone text, first timestamptz, last timestamptz);
INSERT INTO zone VALUES
	('America/New_York', '2026-01-01', '2026-12-31'),
	('Europe/Berlin', '2026-01-01', '2026-12-31'),
	('Australia/Lord_Howe', '2026-01-01', '2026-12-31'),	-- half an hour
	('Africa/Cairo', '2026-04-20', '2026-05-10'),			-- at midnight
	('Africa/Cairo', '2026-10-25', '2026-11-05'),
	('Africa/Casablanca', '2026-02-01', '2026-04-01'),		-- Ramadan
	('Asia/Kathmandu', '2026-02-20', '2026-03-20'),			-- +5:45, never
	('Pacific/Apia', '2011-12-20', '2012-01-10'),			-- a day left out
	('America/Caracas', '2007-12-01', '2007-12-31'),		-- half an hour back
	('Antarctica/Troll', '2026-03-20', '2026-04-05'),		-- two hours
	('Antarctica/Troll', '2026-10-20', '2026-11-01');
CREATE TABLE spec (spec text);
INSERT INTO spec VALUES ('*/15 * * * *'), ('30 2 * * *'), ('0,15,30,45 0-3 * * *'), ('0 0 * * *'),
	('59 23 * * *'), ('17 * * * *'), ('5 */2 * * *'), ('45 1 * * SUN'), ('15 2 1-7 * 0'), ('0 12 */2 * mon-fri'),
	('0 0 29-31 3,10 *'), ('*/20 1-2 * * *'), ('10 0 * APR,SEP,OCT FRI'), ('20 2-22/4 * * *'), ('* 0-3 * * SAT,SUN'),
	('@hourly'), ('@weekly');

-- The values of a field.
CREATE FUNCTION field_values(field text, low int, high int) RETURNS SETOF int LANGUAGE sql AS $$
	WITH element AS (
		SELECT regexp_match(upper(e), '^(?:(\*)|(\w+)(?:-(\w+))?)(?:/(\d+))?$') AS m FROM regexp_split_to_table(field, ',') AS e
	), names AS (
		SELECT * FROM unnest(
			'{SUN,MON,TUE,WED,THU,FRI,SAT,JAN,FEB,MAR,APR,MAY,JUN,JUL,AUG,SEP,OCT,NOV,DEC}'::text[],
			'{0,1,2,3,4,5,6,1,2,3,4,5,6,7,8,9,10,11,12}'::text[]) AS n (name, value)
	)
	SELECT DISTINCT v FROM element,
		LATERAL (SELECT coalesce((SELECT value FROM names WHERE name = m[2]), m[2])::int AS a,
			coalesce((SELECT value FROM names WHERE name = m[3]), m[3])::int AS b) AS bounds,
		LATERAL generate_series(coalesce(a, low), CASE WHEN m[1] IS NOT NULL THEN high ELSE coalesce(b, a) END, coalesce(m[4]::int, 1)) AS v
$$;
CREATE TABLE parsed AS
SELECT spec, f, f[2] ~ '^\*' AS all_hours, f[3] !~ '^\*' AND f[5] !~ '^\*' AS either_day
FROM spec, LATERAL regexp_split_to_array(CASE spec WHEN '@hourly' THEN '0 * * * *' WHEN '@weekly' THEN '0 0 * * 0' ELSE spec END, ' ') AS f;

-- What a clock shows at each minute, and how far it was turned then.
CREATE TABLE clock AS
SELECT zone, instant, instant AT TIME ZONE zone AS local,
	(instant AT TIME ZONE zone) - ((instant - interval '1 min') AT TIME ZONE zone) - interval '1 min' AS jump
FROM zone, generate_series(first, last, interval '1 min') AS instant;
SELECT zone, count(*) FILTER (WHERE jump > '0') AS forward, count(*) FILTER (WHERE jump < '0') AS back FROM clock
GROUP BY zone ORDER BY zone COLLATE "C";
-- The minutes that it shows, or never shows, and the instants where it is.
CREATE TABLE shown AS
SELECT zone, local, min(instant) AS first, max(instant) AS last FROM clock GROUP BY zone, local
UNION ALL
SELECT zone, skipped, instant, instant FROM clock,
	LATERAL generate_series(local - jump, local - interval '1 min', interval '1 min') AS skipped
WHERE jump > '0';

-- The local minutes that match, and when these are.
CREATE TABLE matching AS
SELECT spec, all_hours, day + make_interval(hours => hour, mins => minute) AS local
FROM parsed, LATERAL field_values(f[1], 0, 59) AS minute, LATERAL field_values(f[2], 0, 23) AS hour,
	LATERAL (SELECT array_agg(v) AS days FROM field_values(f[3], 1, 31) AS v) AS d,
	LATERAL (SELECT array_agg(v) AS weekdays FROM field_values(f[5], 0, 6) AS v) AS w,
	(SELECT DISTINCT local::date AS day FROM shown) AS calendar
WHERE extract(month FROM day) IN (SELECT * FROM field_values(f[4], 1, 12))
	AND CASE WHEN either_day THEN extract(day FROM day) = ANY (days) OR extract(dow FROM day) = ANY (weekdays)
		ELSE extract(day FROM day) = ANY (days) AND extract(dow FROM day) = ANY (weekdays) END;
CREATE TABLE expected AS
SELECT DISTINCT spec, zone, due FROM matching JOIN shown USING (local),
	LATERAL (SELECT first AS due UNION ALL SELECT last WHERE all_hours) AS due;
CREATE INDEX ON expected (zone, spec, due);
-- Asked for in pieces of three days.
CREATE TABLE found AS
SELECT spec, zone, due FROM zone, spec,
	LATERAL generate_series(first, last, interval '3 days') AS start,
	LATERAL msgq.due_times(spec, zone, start - interval '1 us', 500) AS due
WHERE due < start + interval '3 days' AND due <= last;
SELECT spec, zone, due, 'missing' AS problem FROM (TABLE expected EXCEPT TABLE found) AS d
UNION ALL SELECT spec, zone, due, 'too many' FROM (TABLE found EXCEPT TABLE expected) AS d
ORDER BY 1, 2, 3 LIMIT 20;
-- From any instant around a turn, and so also from within what comes again.
SELECT spec, zone, start, found, expected FROM clock, spec,
	LATERAL generate_series(instant - interval '3 hours', instant + interval '3 hours', interval '10 min') AS start,
	LATERAL (SELECT max(due) AS found FROM msgq.due_times(spec, zone, start - interval '1 us') AS due) AS f,
	LATERAL (SELECT min(due) AS expected FROM expected AS e WHERE e.zone = clock.zone AND e.spec = spec.spec AND due >= start) AS e
WHERE jump <> '0' AND least(found, expected) < start + interval '1 day' AND found IS DISTINCT FROM expected
ORDER BY 1, 2, 3 LIMIT 20;
SELECT spec, zone, due FROM found GROUP BY spec, zone, due HAVING count(*) > 1;
SELECT count(*) > 300000 AS enough, count(DISTINCT (spec, zone)) AS cases FROM found;
DROP TABLE zone, spec, parsed, clock, shown, matching, expected, found;
DROP FUNCTION tried, field_values;
