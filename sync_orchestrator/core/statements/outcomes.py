"""The statements of the outcomes' outbox."""

# One row for each receiver, in the order in which they are given.
NOTE = """
INSERT INTO sync.outcomes (receiver, kind, entity, key, data)
SELECT r.receiver, %(kind)s, %(entity)s, v.key, v.data
FROM unnest(%(receivers)s::text[]) AS r (receiver)
CROSS JOIN unnest(%(keys)s::text[], %(data)s::jsonb[]) WITH ORDINALITY AS v (key, data, n)
ORDER BY v.n, r.receiver
"""

_DUE = """
    o.receiver = %(receiver)s AND (o.not_before IS NULL OR o.not_before <= sync.clock())
    AND NOT EXISTS (SELECT FROM sync.outcomes e
                    WHERE e.receiver = o.receiver AND e.entity = o.entity AND e.key = o.key AND e.id < o.id
                      AND e.not_before > sync.clock())
"""

IS_DUE = f"SELECT EXISTS (SELECT FROM sync.outcomes o WHERE {_DUE}) AS due"

# The receiver is this sender's for a while, unless it is another's or is left alone for now.
LEASE = """
INSERT INTO sync.outcome_receivers AS r (receiver, lease_until, lease_token)
VALUES (%(receiver)s, sync.clock() + make_interval(secs => %(lease)s), 1)
ON CONFLICT (receiver) DO UPDATE
SET lease_until = excluded.lease_until, lease_token = r.lease_token + 1
WHERE (r.lease_until IS NULL OR r.lease_until < sync.clock())
  AND (r.not_before IS NULL OR r.not_before <= sync.clock())
RETURNING lease_token
"""

# The oldest, but none of a record of which an older one has to wait.
TAKE = f"""
SELECT o.id, o.event_id, o.kind, o.entity, o.key, o.data, o.at FROM sync.outcomes o WHERE {_DUE}
ORDER BY o.id LIMIT %(most)s
"""

SENT = "DELETE FROM sync.outcomes WHERE id = ANY(%(ids)s)"

REFUSED = """
UPDATE sync.outcomes o
SET attempts = o.attempts + 1, error = v.error,
    not_before = sync.clock() + make_interval(secs => least(3600, 10 * 2 ^ least(o.attempts, 20)))
FROM unnest(%(ids)s::bigint[], %(errors)s::text[]) AS v (id, error) WHERE o.id = v.id
"""

RELEASE = """
UPDATE sync.outcome_receivers SET lease_until = NULL, attempts = 0, not_before = NULL, error = NULL
WHERE receiver = %(receiver)s AND lease_token = %(token)s
"""

REST = """
UPDATE sync.outcome_receivers
SET lease_until = NULL, attempts = attempts + 1, error = %(error)s,
    not_before = sync.clock() + make_interval(
        secs => greatest(%(at_least)s, least(900, 5 * 2 ^ least(attempts, 20))))
WHERE receiver = %(receiver)s AND lease_token = %(token)s
"""

# How long the oldest that was tried in vain has waited; null where there is none.
OLDEST_TRIED = """
SELECT EXTRACT(epoch FROM sync.clock() - min(o.at))::float8 AS seconds, count(*) AS n
FROM sync.outcomes o JOIN sync.outcome_receivers r USING (receiver)
WHERE o.receiver = %(receiver)s AND (o.error IS NOT NULL OR r.error IS NOT NULL)
"""

# Those who are no receivers any more are owed nothing.
FORGET = "DELETE FROM sync.outcomes WHERE receiver <> ALL(%(receivers)s)"

UNSENT = """
SELECT o.receiver, count(*) AS n, coalesce(max(r.error), max(o.error)) AS error
FROM sync.outcomes o LEFT JOIN sync.outcome_receivers r USING (receiver) GROUP BY o.receiver ORDER BY o.receiver
"""
