"""The queries of ``core/notifications/``. Parameters are bound; batches come as arrays."""


def _retry_pause(first: int, longest: int, attempts: str = "attempts") -> str:
    """The seconds until a delivery that failed is tried again: doubled with each of the attempts before it."""
    return f"least({longest}, {first} * 2 ^ least({attempts}, 20))"


# One alert for a cause, however many records it hits; a record counts once for it.
RAISE_ALERTS_FOR_RECORDS = """
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

RAISE_ALERT = """
INSERT INTO sync.alerts (kind, cause, entity, title, examples)
VALUES (%(kind)s, %(cause)s, %(entity)s, %(title)s, %(examples)s)
ON CONFLICT (kind, cause) WHERE resolved_at IS NULL DO UPDATE
SET n = alerts.n + 1, title = excluded.title, examples = excluded.examples, updated_at = sync.clock()
"""

RESOLVE_ALERT = """
WITH over AS (
    UPDATE sync.alerts SET resolved_at = sync.clock()
    WHERE kind = %(kind)s AND (%(cause)s::text IS NULL OR cause = %(cause)s::text) AND resolved_at IS NULL
    RETURNING kind, cause
)
DELETE FROM sync.alert_records r USING over WHERE r.kind = over.kind AND r.cause = over.cause
"""

# An alert that was written while its cause was being given back (the breaker opened): who has not heard of it never
# will.
WITHDRAW_ALERT = """
WITH gone AS (
    DELETE FROM sync.alert_records a USING sync.breaker_failures b
    WHERE b.system = %(system)s AND a.kind = 'dead' AND a.entity = b.entity AND a.key = b.key
    RETURNING a.cause
), counts AS (SELECT cause, count(*) AS n FROM gone GROUP BY cause)
UPDATE sync.alerts a SET n = a.n - c.n,
    resolved_at = CASE WHEN a.n <= c.n THEN sync.clock() END
FROM counts c WHERE a.kind = 'dead' AND a.cause = c.cause AND a.resolved_at IS NULL
"""

# How many causes of a kind and entity have open alerts, without the one that others share; whether this one has.
LIST_OPEN_CAUSES = """
SELECT count(*) FILTER (WHERE cause <> %(others)s) AS n, coalesce(bool_or(cause = %(cause)s), false) AS is_open
FROM sync.alerts WHERE kind = %(kind)s AND entity = %(entity)s AND resolved_at IS NULL
"""

# Nothing dead, held, ahead of its time or waiting is left behind these: they are over.
RESOLVE_DEAD_ALERTS = """
WITH over AS (
    UPDATE sync.alerts a SET resolved_at = sync.clock()
    WHERE resolved_at IS NULL
      AND CASE kind
          WHEN 'dead' THEN
              NOT EXISTS (SELECT FROM sync.alert_records t JOIN sync.events e USING (entity, key)
                          WHERE t.kind = a.kind AND t.cause = a.cause AND e.state = 'dead')
              AND NOT EXISTS (SELECT FROM sync.alert_records t JOIN sync.records r USING (entity, key)
                              WHERE t.kind = a.kind AND t.cause = a.cause AND r.out_of_sync
                                AND r.stopped IN ('dead', 'on_hold'))
          WHEN 'on_hold' THEN
              NOT EXISTS (SELECT FROM sync.alert_records t JOIN sync.records r USING (entity, key)
                          WHERE t.kind = a.kind AND t.cause = a.cause AND r.out_of_sync AND r.stopped = 'on_hold')
          WHEN 'version_in_future' THEN
              NOT EXISTS (SELECT FROM sync.events e WHERE e.entity = a.entity AND e.awaiting = 'clock')
          WHEN 'stuck_waiting' THEN
              NOT EXISTS (SELECT FROM sync.alert_records t JOIN sync.events e USING (entity, key)
                          WHERE t.kind = a.kind AND t.cause = a.cause AND e.state = 'waiting' AND e.revision IS NULL)
              AND NOT EXISTS (SELECT FROM sync.alert_records t JOIN sync.records r USING (entity, key)
                              WHERE t.kind = a.kind AND t.cause = a.cause AND r.out_of_sync
                                AND r.waiting_since IS NOT NULL)
          WHEN 'source_behind' THEN
              EXISTS (SELECT FROM sync.alert_records t WHERE t.kind = a.kind AND t.cause = a.cause)
              AND NOT EXISTS (SELECT FROM sync.alert_records t JOIN sync.events e USING (entity, key)
                              WHERE t.kind = a.kind AND t.cause = a.cause AND e.awaiting = 'source')
          WHEN 'delete_cap' THEN  -- of events; whoever holds back other deletions ends its own alert
              right(a.cause, 9) = ': flagged'
              AND NOT EXISTS (SELECT FROM sync.events e WHERE e.entity = a.entity AND e.awaiting = 'deletions')
          ELSE false END
    RETURNING kind, cause
)
DELETE FROM sync.alert_records r USING over WHERE r.kind = over.kind AND r.cause = over.cause
"""

REMOVE_RECORDS_FROM_ALERTS = """
DELETE FROM sync.alert_records WHERE entity = %(entity)s AND key = ANY(%(keys)s) AND kind IN ('dead', 'on_hold')
"""

# The next message for a receiver: the oldest alert that it is due to hear of, with all others of that kind and entity.
# News had time to gather; what was added since is told again after growing intervals; only who was told hears of the
# end. Under a lock, so that nobody else sees as due what is being taken.
CLAIM_DUE_ALERTS = """
WITH due AS (
    SELECT a.id, a.kind, a.entity, a.resolved_at IS NOT NULL AS over
    FROM sync.alerts a LEFT JOIN sync.alert_receivers r ON r.alert_id = a.id AND r.receiver = %(receiver)s
    WHERE (r.not_before IS NULL OR r.not_before <= sync.clock())
      AND CASE
          WHEN a.resolved_at IS NOT NULL THEN r.told_at IS NOT NULL AND r.over_at IS NULL
          WHEN r.told_at IS NULL THEN a.created_at <= sync.clock() - make_interval(secs => %(group_wait)s)
          ELSE a.updated_at <> r.told_as AND r.told_at <= sync.clock() - make_interval(
              secs => least(greatest(86400, %(repeat_after)s), %(repeat_after)s * 2 ^ least(r.times - 1, 20))) END
), first AS (
    SELECT kind, entity, over FROM due ORDER BY id LIMIT 1
), taken AS (
    INSERT INTO sync.alert_receivers (alert_id, receiver, not_before)
    SELECT due.id, %(receiver)s, sync.clock() + make_interval(secs => %(lease)s)
    FROM due JOIN first USING (kind, over) WHERE due.entity IS NOT DISTINCT FROM first.entity
    ON CONFLICT (alert_id, receiver) DO UPDATE SET not_before = excluded.not_before
    RETURNING alert_id, told_at
)
SELECT a.id, a.kind, a.cause, a.entity, a.title, a.n, a.examples, a.updated_at, a.resolved_at,
       taken.told_at IS NOT NULL AS told
FROM taken JOIN sync.alerts a ON a.id = taken.alert_id ORDER BY a.id
"""

MARK_ALERT_SENT = """
UPDATE sync.alert_receivers r
SET told_at = sync.clock(), told_as = v.told_as, times = r.times + 1, attempts = 0, not_before = NULL, error = NULL
FROM unnest(%(ids)s::bigint[], %(told_as)s::timestamptz[]) AS v (id, told_as)
WHERE r.alert_id = v.id AND r.receiver = %(receiver)s
"""

MARK_ALERT_END_SENT = """
UPDATE sync.alert_receivers SET over_at = sync.clock(), attempts = 0, not_before = NULL, error = NULL
WHERE alert_id = ANY(%(ids)s) AND receiver = %(receiver)s
"""

# Unless another sender, who took it after this one's minute was over, had more luck.
NOTE_SEND_ERROR = f"""
UPDATE sync.alert_receivers
SET attempts = attempts + 1, error = %(error)s,
    not_before = sync.clock() + make_interval(secs => {_retry_pause(30, 900)})
WHERE alert_id = ANY(%(ids)s) AND receiver = %(receiver)s AND not_before IS NOT NULL
"""

# Those who are no receivers any more owe nothing.
CLEAR_SEND_ERRORS = """
UPDATE sync.alert_receivers SET error = NULL WHERE error IS NOT NULL AND receiver <> ALL(%(receivers)s)
"""

COUNT_OPEN_ALERTS = """
SELECT kind, cause, title, n, created_at,
       EXISTS (SELECT FROM sync.alert_receivers r WHERE r.alert_id = a.id AND r.told_at IS NOT NULL) AS sent
FROM sync.alerts a WHERE resolved_at IS NULL ORDER BY id DESC LIMIT %(most)s
"""

# Open alerts that nobody has heard of yet, or that somebody did not take.
COUNT_UNSENT_ALERTS = """
SELECT count(*) AS n FROM sync.alerts a
WHERE resolved_at IS NULL
  AND (NOT EXISTS (SELECT FROM sync.alert_receivers r WHERE r.alert_id = a.id AND r.told_at IS NOT NULL)
       OR EXISTS (SELECT FROM sync.alert_receivers r WHERE r.alert_id = a.id AND r.error IS NOT NULL))
"""

# Why an alert, or its end, has not arrived: what was tried most often.
SELECT_SEND_ERROR = """
SELECT r.error FROM sync.alert_receivers r JOIN sync.alerts a ON a.id = r.alert_id
WHERE r.error IS NOT NULL AND (a.resolved_at IS NULL OR r.told_at IS NOT NULL)
ORDER BY r.attempts DESC, r.alert_id DESC LIMIT 1
"""


# One row for each receiver, in the order in which they are given. Wakes the senders, without another round trip.
INSERT_OUTCOMES = """
WITH written AS (
    INSERT INTO sync.outcomes (receiver, kind, entity, key, data)
    SELECT r.receiver, %(kind)s, %(entity)s, v.key, v.data
    FROM unnest(%(receivers)s::text[]) AS r (receiver)
    CROSS JOIN unnest(%(keys)s::text[], %(data)s::jsonb[]) WITH ORDINALITY AS v (key, data, n)
    ORDER BY v.n, r.receiver
    RETURNING 1
)
SELECT pg_notify('sync_outcomes', '') FROM (SELECT FROM written LIMIT 1) any_written
"""

_DUE_OUTCOMES = """
    o.receiver = %(receiver)s AND (o.not_before IS NULL OR o.not_before <= sync.clock())
    AND NOT EXISTS (SELECT FROM sync.outcomes e
                    WHERE e.receiver = o.receiver AND e.entity = o.entity AND e.key = o.key AND e.id < o.id
                      AND e.not_before > sync.clock())
"""

HAS_DUE_OUTCOMES = f"SELECT EXISTS (SELECT FROM sync.outcomes o WHERE {_DUE_OUTCOMES}) AS due"

# The receiver is this sender's for a while, unless it is another's or is left alone for now.
LEASE_RECEIVER = """
INSERT INTO sync.outcome_receivers AS r (receiver, lease_until, lease_token)
VALUES (%(receiver)s, sync.clock() + make_interval(secs => %(lease)s), 1)
ON CONFLICT (receiver) DO UPDATE
SET lease_until = excluded.lease_until, lease_token = r.lease_token + 1
WHERE (r.lease_until IS NULL OR r.lease_until < sync.clock())
  AND (r.not_before IS NULL OR r.not_before <= sync.clock())
RETURNING lease_token
"""

# The oldest, but none of a record of which an older one has to wait.
CLAIM_DUE_OUTCOMES = f"""
SELECT o.id, o.event_id, o.kind, o.entity, o.key, o.data, o.at FROM sync.outcomes o WHERE {_DUE_OUTCOMES}
ORDER BY o.id LIMIT %(most)s
"""

MARK_OUTCOME_SENT = "DELETE FROM sync.outcomes WHERE id = ANY(%(ids)s)"

MARK_OUTCOME_REFUSED = f"""
UPDATE sync.outcomes o
SET attempts = o.attempts + 1, error = v.error,
    not_before = sync.clock() + make_interval(secs => {_retry_pause(10, 3600, "o.attempts")})
FROM unnest(%(ids)s::bigint[], %(errors)s::text[]) AS v (id, error) WHERE o.id = v.id
"""

RELEASE_RECEIVER = """
UPDATE sync.outcome_receivers SET lease_until = NULL, attempts = 0, not_before = NULL, error = NULL
WHERE receiver = %(receiver)s AND lease_token = %(token)s
"""

RELEASE_OUTCOMES = f"""
UPDATE sync.outcome_receivers
SET lease_until = NULL, attempts = attempts + 1, error = %(error)s,
    not_before = sync.clock() + make_interval(secs => greatest(%(at_least)s, {_retry_pause(5, 900)}))
WHERE receiver = %(receiver)s AND lease_token = %(token)s
"""

# How long the oldest that was tried in vain has waited; null where there is none.
SELECT_OLDEST_TRIED_OUTCOME = """
SELECT EXTRACT(epoch FROM sync.clock() - min(o.at))::float8 AS seconds, count(*) AS n
FROM sync.outcomes o JOIN sync.outcome_receivers r USING (receiver)
WHERE o.receiver = %(receiver)s AND (o.error IS NOT NULL OR r.error IS NOT NULL)
"""

# Those who are no receivers any more are owed nothing.
DELETE_OLD_OUTCOMES = "DELETE FROM sync.outcomes WHERE receiver <> ALL(%(receivers)s)"

COUNT_UNSENT_OUTCOMES = """
SELECT o.receiver, count(*) AS n, coalesce(max(r.error), max(o.error)) AS error
FROM sync.outcomes o LEFT JOIN sync.outcome_receivers r USING (receiver) GROUP BY o.receiver ORDER BY o.receiver
"""
