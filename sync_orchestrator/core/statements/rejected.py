"""The statements of messages that could not be read."""

KEEP = """
INSERT INTO sync.rejected (consumer, digest, reason, content_type, headers, body, size)
VALUES (%(consumer)s, %(digest)s, %(reason)s, %(content_type)s, %(headers)s, %(body)s, %(size)s)
ON CONFLICT (consumer, digest) WHERE ended_at IS NULL DO UPDATE
SET times = rejected.times + 1, last_seen_at = sync.clock(), reason = excluded.reason
"""

LIST = """
SELECT id, consumer, reason, content_type, size, times, first_seen_at, last_seen_at FROM sync.rejected
WHERE ended_at IS NULL AND (%(consumer)s::text IS NULL OR consumer = %(consumer)s::text)
ORDER BY id DESC LIMIT %(most)s
"""

SHOW = "SELECT *, octet_length(body) < size AS is_cut FROM sync.rejected WHERE id = %(id)s"

# Those to be put through again, oldest first.
OPEN_IDS = """
SELECT id FROM sync.rejected
WHERE ended_at IS NULL AND (%(ids)s::bigint[] IS NULL OR id = ANY(%(ids)s::bigint[]))
  AND (%(consumer)s::text IS NULL OR consumer = %(consumer)s::text)
ORDER BY id
"""

TAKE = """
SELECT *, octet_length(body) < size AS is_cut FROM sync.rejected WHERE id = %(id)s AND ended_at IS NULL FOR UPDATE
"""

STILL = "UPDATE sync.rejected SET reason = %(reason)s WHERE id = %(id)s"

END = """
UPDATE sync.rejected SET ended_at = sync.clock(), ending = %(ending)s, ending_reason = %(reason)s
WHERE id = ANY(%(ids)s) AND ended_at IS NULL RETURNING consumer
"""

OPEN_OF = "SELECT count(*) AS n FROM sync.rejected WHERE ended_at IS NULL AND consumer = %(consumer)s"

OPEN = "SELECT consumer, count(*) AS n FROM sync.rejected WHERE ended_at IS NULL GROUP BY consumer ORDER BY consumer"

FORGET = "DELETE FROM sync.rejected WHERE ended_at < sync.clock() - make_interval(days => %(days)s)"
