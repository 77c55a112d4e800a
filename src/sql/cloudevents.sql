/*
 * cloudevents.sql: CloudEvents as messages, and messages as CloudEvents.
 */

CREATE FUNCTION msgq.send_cloudevent(queue text, event jsonb)
RETURNS bigint
AS 'MODULE_PATHNAME', 'msgq_send_cloudevent'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION msgq.send_cloudevent(text, jsonb) IS
'stores a CloudEvent as one message, as msgq.send does, in the caller''s transaction; needs the right send.
event: a CloudEvent 1.0 in the JSON format, structured mode: an object with specversion "1.0", id, source and type; other attributes have names of lower-case letters and digits, and strings, booleans or 32-bit integers as values; time and expirytime are as in RFC 3339; data or data_base64, not both. An attribute that is null is as if it were not there. data becomes the body (the JSON value null if there is none), data_base64 the data; datacontenttype becomes the header content-type, traceparent and tracestate become headers of these names, every other attribute the header ce-<attribute>; partitionkey, up to 255 bytes, becomes the group key as well, and expirytime the time at which the message expires, at once if it has passed. A traceparent that is not valid by W3C Trace Context is left out, and with it tracestate.
Result: the id of the message; of the first one, if the same source and id were sent within the queue''s dedup_window: then nothing is stored.
Errors: 22023 the event is not valid, 42704 no such queue, 42501 no right send, 22004 NULL, 54000 message too large, MQ004 paused, MQ005 queue full, MQ006 the same source and id were used with other data, 25006 read-only or standby.';

CREATE FUNCTION msgq.as_cloudevent(message msgq.message)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'msgq_as_cloudevent'
LANGUAGE C STABLE PARALLEL SAFE;

COMMENT ON FUNCTION msgq.as_cloudevent(msgq.message) IS
'makes a CloudEvent 1.0 in the JSON format of a message; of one that msgq.send_cloudevent has stored, the same event again.
message: from msgq.receive, msgq.pop or msgq.peek. Where it is no event already (has no header ce-specversion of "1.0"): id is made of the time of sending and the id in the queue, source is msgq:<database> or msgq:<database>/<topic>, type is msgq.message, time is enqueued_at, subject the routing key, partitionkey the group key, expirytime expires_at, datacontenttype application/json or application/octet-stream; headers ce-<attribute> and content-type go before these, and headers whose names and values can be those of attributes become extensions. What does not fit is left out.
Result: the event.
Errors: 22004 NULL, or a row without id and enqueued_at, 54000 the event is larger than jsonb can be.';
