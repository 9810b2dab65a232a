"""The queries of ``core/intake/``. Parameters are bound; batches come as arrays."""

# Where a poll begins; no row where it is not due yet, or another poller has the lease. The first poll begins now, or at
# the newest number known here.
CLAIM_POLL = """
INSERT INTO sync.polls AS p (entity, part, newest, asked_at, lease_until, lease_token)
SELECT %(entity)s, %(part)s, CASE WHEN %(is_time)s THEN (EXTRACT(epoch FROM sync.clock()) * 1e6)::bigint
                                  ELSE coalesce((SELECT max(version) FROM sync.parts
                                                 WHERE entity = %(entity)s AND part = %(part)s), 0) END, '-infinity',
       sync.clock() + make_interval(secs => %(lease)s), 1
ON CONFLICT (entity, part) DO UPDATE SET lease_until = excluded.lease_until, lease_token = p.lease_token + 1
WHERE (p.lease_until IS NULL OR p.lease_until <= sync.clock())
  AND p.asked_at <= sync.clock() - make_interval(secs => %(every)s)
RETURNING newest, lease_token
"""

# No row where another poller has taken the lease.
RENEW_POLL = """
UPDATE sync.polls SET lease_until = sync.clock() + make_interval(secs => %(lease)s)
WHERE entity = %(entity)s AND part = %(part)s AND lease_token = %(token)s RETURNING lease_token
"""

RELEASE_POLL = """
UPDATE sync.polls SET lease_until = NULL WHERE entity = %(entity)s AND part = %(part)s AND lease_token = %(token)s
"""

NOTE_POLLED = """
UPDATE sync.polls SET newest = greatest(newest, %(newest)s), asked_at = sync.clock(), lease_until = NULL
WHERE entity = %(entity)s AND part = %(part)s AND lease_token = %(token)s
"""

# How long ago a source last responded; null where it never did.
SELECT_POLL_AGE = """
SELECT CASE WHEN asked_at > '-infinity' THEN EXTRACT(epoch FROM sync.clock() - asked_at)::float8 END AS ago
FROM sync.polls WHERE entity = %(entity)s AND part = %(part)s
"""

# What of a part is on its way already.
SELECT_ACTIVE_EVENT_STAMPS = """
SELECT key, content_hash FROM sync.events WHERE entity = %(entity)s AND key = ANY(%(keys)s) AND source = %(part)s
"""

INSERT_REJECTED = """
INSERT INTO sync.rejected (consumer, digest, reason, content_type, headers, body, size)
VALUES (%(consumer)s, %(digest)s, %(reason)s, %(content_type)s, %(headers)s, %(body)s, %(size)s)
ON CONFLICT (consumer, digest) WHERE ended_at IS NULL DO UPDATE
SET times = rejected.times + 1, last_seen_at = sync.clock(), reason = excluded.reason
"""

LIST_REJECTED = """
SELECT id, consumer, reason, content_type, size, times, first_seen_at, last_seen_at FROM sync.rejected
WHERE ended_at IS NULL AND (%(consumer)s::text IS NULL OR consumer = %(consumer)s::text)
ORDER BY id DESC LIMIT %(most)s
"""

SELECT_REJECTED = "SELECT *, octet_length(body) < size AS is_cut FROM sync.rejected WHERE id = %(id)s"

# Those to be put through again, oldest first.
LIST_OPEN_REJECTED_IDS = """
SELECT id FROM sync.rejected
WHERE ended_at IS NULL AND (%(ids)s::bigint[] IS NULL OR id = ANY(%(ids)s::bigint[]))
  AND (%(consumer)s::text IS NULL OR consumer = %(consumer)s::text)
ORDER BY id
"""

CLAIM_REJECTED = """
SELECT *, octet_length(body) < size AS is_cut FROM sync.rejected WHERE id = %(id)s AND ended_at IS NULL FOR UPDATE
"""

NOTE_STILL_REJECTED = "UPDATE sync.rejected SET reason = %(reason)s WHERE id = %(id)s"

END_REJECTED = """
UPDATE sync.rejected SET ended_at = sync.clock(), ending = %(ending)s, ending_reason = %(reason)s
WHERE id = ANY(%(ids)s) AND ended_at IS NULL RETURNING consumer
"""

COUNT_OPEN_REJECTED_OF_CONSUMER = (
    "SELECT count(*) AS n FROM sync.rejected WHERE ended_at IS NULL AND consumer = %(consumer)s"
)

COUNT_OPEN_REJECTED = (
    "SELECT consumer, count(*) AS n FROM sync.rejected WHERE ended_at IS NULL GROUP BY consumer ORDER BY consumer"
)

DELETE_OLD_REJECTED = "DELETE FROM sync.rejected WHERE ended_at < sync.clock() - make_interval(days => %(days)s)"
