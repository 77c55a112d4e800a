-- The transactional outbox in a shop; see README.md.
--
--	psql -X -d mydb < shop.sql
--
-- Everything it makes is its own, is removed at the end, and also at the
-- beginning, in case an earlier run was interrupted.

\set ON_ERROR_STOP on
\set QUIET on
\pset pager off
\pset footer off
SET client_min_messages = warning;

SELECT msgq.drop_topic('shop.events', if_exists => true),
	msgq.drop_queue('shop.shipping', if_exists => true),
	msgq.drop_queue('shop.mail', if_exists => true),
	msgq.drop_stream('shop.analytics', if_exists => true) \g /dev/null
DROP SCHEMA IF EXISTS outbox_shop CASCADE;

\echo == The shop: its tables, two queues, a stream, and a topic that leads there

CREATE SCHEMA outbox_shop;
SET search_path = outbox_shop, pg_temp;
CREATE TABLE orders (
	id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
	customer text NOT NULL,
	item text NOT NULL,
	total numeric NOT NULL);
CREATE TABLE parcel (
	order_id bigint PRIMARY KEY REFERENCES orders,
	item text NOT NULL);
CREATE TABLE revenue (
	region text PRIMARY KEY,
	orders bigint NOT NULL,
	total numeric NOT NULL);

-- Shipping wants the orders that are paid, analytics wants all that happens.
-- Whoever publishes need not know either of them.
SELECT msgq.create_queue('shop.shipping'),
	msgq.create_queue('shop.mail'),
	msgq.create_stream('shop.analytics'),
	msgq.create_group('shop.analytics', 'revenue', start_from => 'first'),
	msgq.create_topic('shop.events') \g /dev/null
SELECT msgq.bind('shop.events', 'shop.shipping', 'order.*.paid'),
	msgq.bind('shop.events', 'shop.analytics', '#') \g /dev/null
SELECT target, target_kind, pattern
FROM msgq.bindings WHERE topic = 'shop.events' ORDER BY target_kind;

\echo == An order and its messages, in one transaction

-- send() reaches the one queue that it names.  publish() says how many queues
-- and streams got the message.
BEGIN;
INSERT INTO orders (customer, item, total) VALUES ('ann', 'lamp', 40)
RETURNING id AS order_id \gset
SELECT msgq.send('shop.mail',
	jsonb_build_object('to', 'ann', 'order', :order_id)) \g /dev/null
SELECT msgq.publish('shop.events', 'order.eu.paid',
	jsonb_build_object('order', :order_id, 'item', 'lamp', 'total', 40)) AS destinations;
COMMIT;

-- Nobody ships what is not paid, so this goes to the stream only.
BEGIN;
INSERT INTO orders (customer, item, total) VALUES ('bob', 'desk', 250)
RETURNING id AS order_id \gset
SELECT msgq.publish('shop.events', 'order.us.placed',
	jsonb_build_object('order', :order_id, 'item', 'desk', 'total', 250)) AS destinations;
COMMIT;

\echo == An order that is rolled back leaves nothing

BEGIN;
INSERT INTO orders (customer, item, total) VALUES ('eve', 'vase', 1000)
RETURNING id AS order_id \gset
SELECT msgq.publish('shop.events', 'order.eu.paid',
	jsonb_build_object('order', :order_id, 'item', 'vase', 'total', 1000)) AS destinations;
ROLLBACK;

SELECT (SELECT count(*) FROM orders) AS orders,
	(SELECT count(*) FROM msgq.peek('shop.shipping')) AS to_ship,
	(SELECT count(*) FROM msgq.peek('shop.mail')) AS mails;

\echo == A message that is sent twice

-- The connection broke during COMMIT, and nobody knows whether the order has
-- been paid.  A key that names the event makes it safe to do it all again.
SELECT msgq.publish('shop.events', 'order.us.paid',
	'{"order": 2, "item": "desk", "total": 250}',
	idempotency_key => 'order-2-paid') AS destinations \g /dev/null
SELECT msgq.publish('shop.events', 'order.us.paid',
	'{"order": 2, "item": "desk", "total": 250}',
	idempotency_key => 'order-2-paid') AS destinations \g /dev/null
SELECT body->>'order' AS order, body->>'item' AS item FROM msgq.peek('shop.shipping');

-- send_once() says whether it was the first time.
SELECT duplicate FROM msgq.send_once('shop.mail',
	'{"to": "bob", "order": 2}', 'mail-order-2');
SELECT duplicate FROM msgq.send_once('shop.mail',
	'{"to": "bob", "order": 2}', 'mail-order-2');

\echo == Shipping: the message goes if and only if the parcel is there

-- The packer fails after he has taken a message.  Parcel and message are as
-- they were before.  It was not the message's fault, so it shall not count as
-- a failed delivery, and not wait before it comes again.
SET msgq.count_rollbacks = off;
BEGIN;
INSERT INTO parcel
SELECT (body->>'order')::bigint, body->>'item' FROM msgq.pop('shop.shipping');
ROLLBACK;
SELECT (SELECT count(*) FROM parcel) AS parcels,
	(SELECT count(*) FROM msgq.peek('shop.shipping')) AS to_ship;

BEGIN;
INSERT INTO parcel
SELECT (body->>'order')::bigint, body->>'item'
FROM msgq.pop('shop.shipping', max_messages => 10);
COMMIT;
SELECT * FROM parcel ORDER BY order_id;

\echo == Mail: work outside of the database, by receipt

-- Mail cannot be rolled back, so it is sent between two transactions.  If the
-- mailer dies in between, the message comes back: that is "at least once".
SELECT receipt, body->>'to' AS recipient
FROM msgq.receive('shop.mail', visibility_timeout => '1 min') \gset
\echo mail to :recipient
SELECT msgq.ack('shop.mail', :'receipt') AS acknowledged;
SELECT msgq.ack('shop.mail', :'receipt') AS acknowledged_again;

SELECT receipt, body->>'to' AS recipient
FROM msgq.receive('shop.mail', visibility_timeout => '1 min') \gset
\echo mail to :recipient
SELECT msgq.ack('shop.mail', :'receipt') AS acknowledged;

\echo == Analytics: the same events, in order, for whoever wants to read them

-- The background worker gives entries their positions.  This does not wait
-- for it.
CALL msgq.sequence('shop.analytics');

-- The position of the group moves with the transaction, so each entry counts
-- once.
BEGIN;
INSERT INTO revenue
SELECT split_part(headers->>'msgq-routing-key', '.', 2), count(*), sum((body->>'total')::numeric)
FROM msgq.read('shop.analytics', 'revenue')
WHERE headers->>'msgq-routing-key' LIKE '%.paid'
GROUP BY 1
ON CONFLICT (region) DO UPDATE
SET orders = revenue.orders + excluded.orders, total = revenue.total + excluded.total;
COMMIT;
SELECT * FROM revenue ORDER BY region;

-- Reading again finds nothing new.  The entries are still there for others.
SELECT count(*) AS unread FROM msgq.read('shop.analytics', 'revenue');
SELECT "position", headers->>'msgq-routing-key' AS event, body->>'order' AS order
FROM msgq.scan('shop.analytics', 0, from_position => 1, max_entries => 10);

\echo == Nothing is left over
SELECT name, msgq.why_empty(name) FROM msgq.queues
WHERE name IN ('shop.shipping', 'shop.shipping.dead', 'shop.mail', 'shop.mail.dead')
ORDER BY name COLLATE "C";

SELECT msgq.drop_topic('shop.events'), msgq.drop_queue('shop.shipping'),
	msgq.drop_queue('shop.mail'), msgq.drop_stream('shop.analytics') \g /dev/null
DROP SCHEMA outbox_shop CASCADE;
