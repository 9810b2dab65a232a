"""The statements of the alerts' outbox."""

# One alert for a cause, however many records it hits; a record counts once for it.
RAISE_FOR_RECORDS = """
WITH fresh AS (
    INSERT INTO sync.alert_records (kind, cause, entity, key)
    SELECT DISTINCT %(kind)s, %(cause)s, %(entity)s, k FROM unnest(%(keys)s::text[]) k
    ON CONFLICT DO NOTHING RETURNING key
)
INSERT INTO sync.alerts (kind, cause, entity, title, n, examples)
SELECT %(kind)s, %(cause)s, %(entity)s, %(title)s, count(*), to_jsonb((array_agg(key ORDER BY key))[1:10])
FROM fresh HAVING count(*) > 0
ON CONFLICT (kind, cause) WHERE resolved_at IS NULL DO UPDATE
SET n = alerts.n + excluded.n, updated_at = sync.clock(),
    examples = CASE WHEN jsonb_array_length(alerts.examples) >= 10 THEN alerts.examples
                    ELSE alerts.examples || excluded.examples END
"""

RAISE = """
INSERT INTO sync.alerts (kind, cause, entity, title, examples)
VALUES (%(kind)s, %(cause)s, %(entity)s, %(title)s, %(examples)s)
ON CONFLICT (kind, cause) WHERE resolved_at IS NULL DO UPDATE
SET n = alerts.n + 1, updated_at = sync.clock()
"""

RESOLVE = """
WITH over AS (
    UPDATE sync.alerts SET resolved_at = sync.clock()
    WHERE kind = %(kind)s AND (%(cause)s::text IS NULL OR cause = %(cause)s::text) AND resolved_at IS NULL
    RETURNING kind, cause
)
DELETE FROM sync.alert_records r USING over WHERE r.kind = over.kind AND r.cause = over.cause
"""

# An alert that was written while its cause was being given back (the breaker opened) and not sent yet: never mind.
WITHDRAW = """
WITH gone AS (
    DELETE FROM sync.alert_records a USING sync.breaker_failures b
    WHERE b.system = %(system)s AND a.kind = 'dead' AND a.entity = b.entity AND a.key = b.key
    RETURNING a.cause
), counts AS (SELECT cause, count(*) AS n FROM gone GROUP BY cause)
UPDATE sync.alerts a SET n = a.n - c.n,
    resolved_at = CASE WHEN a.n <= c.n THEN sync.clock() END,
    sent_at = CASE WHEN a.n <= c.n THEN coalesce(a.sent_at, sync.clock()) ELSE a.sent_at END,
    over_sent_at = CASE WHEN a.n <= c.n AND a.sent_at IS NULL THEN sync.clock() ELSE a.over_sent_at END
FROM counts c WHERE a.kind = 'dead' AND a.cause = c.cause AND a.resolved_at IS NULL
"""

# Nothing dead, held, ahead of its time or waiting is left behind these: they are over.
RESOLVE_DEAD = """
WITH over AS (
    UPDATE sync.alerts a SET resolved_at = sync.clock()
    WHERE resolved_at IS NULL
      AND CASE kind
          WHEN 'dead' THEN
              NOT EXISTS (SELECT FROM sync.events e WHERE e.entity = a.entity AND e.state = 'dead')
              AND NOT EXISTS (SELECT FROM sync.records r
                              WHERE r.entity = a.entity AND r.out_of_step AND r.parked IS NOT NULL)
          WHEN 'held' THEN
              NOT EXISTS (SELECT FROM sync.records r
                          WHERE r.entity = a.entity AND r.out_of_step AND r.parked = 'held')
          WHEN 'ahead' THEN
              NOT EXISTS (SELECT FROM sync.events e WHERE e.entity = a.entity AND e.awaiting = 'clock')
          WHEN 'waiting_long' THEN
              NOT EXISTS (SELECT FROM sync.alert_records t JOIN sync.events e USING (entity, key)
                          WHERE t.kind = a.kind AND t.cause = a.cause AND e.state = 'waiting' AND e.revision IS NULL)
              AND NOT EXISTS (SELECT FROM sync.alert_records t JOIN sync.records r USING (entity, key)
                              WHERE t.kind = a.kind AND t.cause = a.cause AND r.out_of_step
                                AND r.waiting_since IS NOT NULL)
          ELSE false END
    RETURNING kind, cause
)
DELETE FROM sync.alert_records r USING over WHERE r.kind = over.kind AND r.cause = over.cause
"""

FORGET_RECORDS = "DELETE FROM sync.alert_records WHERE entity = %(entity)s AND key = ANY(%(keys)s) AND kind = 'dead'"

# The next message: a new alert that had time to gather, one that has grown since it was sent long ago, or the end of
# one that was sent. Those that tell of business groups go together. A sender has a minute for each address.
TAKE = """
WITH due AS (
    SELECT id, kind, entity, sent_at IS NOT NULL AND resolved_at IS NOT NULL AS over FROM sync.alerts
    WHERE (sending_until IS NULL OR sending_until < sync.clock())
      AND CASE WHEN sent_at IS NULL THEN created_at <= sync.clock() - make_interval(secs => %(group_wait)s)
               WHEN resolved_at IS NOT NULL THEN over_sent_at IS NULL
               ELSE updated_at > sent_at AND sent_at <= sync.clock() - make_interval(secs => %(repeat_every)s) END
), first AS (SELECT * FROM due ORDER BY id LIMIT 1)
UPDATE sync.alerts SET sending_until = sync.clock() + interval '60 seconds'
WHERE id IN (
    SELECT a.id FROM sync.alerts a JOIN due ON due.id = a.id, first
    WHERE (due.id = first.id OR (due.kind = ANY(%(together)s) AND due.kind = first.kind AND due.over = first.over
                                 AND due.entity IS NOT DISTINCT FROM first.entity))
      AND (a.sending_until IS NULL OR a.sending_until < sync.clock())
    ORDER BY a.id LIMIT 1000 FOR UPDATE OF a SKIP LOCKED)
RETURNING id, kind, cause, entity, title, n, examples, created_at, resolved_at,
          sent_at IS NOT NULL AND resolved_at IS NOT NULL AS over, sent_at IS NOT NULL AS told
"""

DELIVERIES = "SELECT alert_id, receiver FROM sync.alert_deliveries WHERE alert_id = ANY(%(ids)s)"

DELIVERED = """
WITH renewed AS (
    UPDATE sync.alerts SET sending_until = sync.clock() + interval '60 seconds' WHERE id = ANY(%(ids)s)
)
INSERT INTO sync.alert_deliveries (alert_id, receiver) SELECT unnest(%(ids)s::bigint[]), %(receiver)s
ON CONFLICT DO NOTHING
"""

SENT = """
WITH forgotten AS (DELETE FROM sync.alert_deliveries WHERE alert_id = ANY(%(ids)s))
UPDATE sync.alerts
SET sending_until = NULL, send_error = NULL,
    sent_at = CASE WHEN %(over)s THEN sent_at ELSE sync.clock() END,
    over_sent_at = CASE WHEN %(over)s THEN sync.clock() ELSE over_sent_at END
WHERE id = ANY(%(ids)s)
"""

NOT_SENT = """
UPDATE sync.alerts SET send_error = %(error)s, sending_until = sync.clock() + interval '30 seconds'
WHERE id = ANY(%(ids)s)
"""

OPEN = """
SELECT id, kind, cause, entity, title, n, examples, created_at, updated_at, sent_at, send_error FROM sync.alerts
WHERE resolved_at IS NULL ORDER BY id DESC LIMIT %(most)s
"""

# Events that wait for their record, or for a clock, longer than anybody would think normal.
LONG_WAITING = """
SELECT entity, array_agg(DISTINCT key) AS keys FROM (
    SELECT entity, key FROM sync.events
    WHERE state = 'waiting' AND revision IS NULL
      AND received_at < sync.clock() - make_interval(secs => %(after)s) LIMIT 1000) w
GROUP BY entity
"""

# Records that wait so long for something that they refer to.
LONG_REFERRING = """
SELECT entity, array_agg(key) AS keys FROM (
    SELECT entity, key FROM sync.records
    WHERE out_of_step AND parked IS NULL
      AND waiting_since < sync.clock() - make_interval(secs => %(after)s) LIMIT 1000) w
GROUP BY entity
"""
