"""The statements of polling."""

# Where a poll begins, and how long ago the last one was; the first one begins now, or at the newest number known here.
BEGIN = """
INSERT INTO sync.polls (entity, part, newest, asked_at)
SELECT %(entity)s, %(part)s, CASE WHEN %(is_time)s THEN (EXTRACT(epoch FROM sync.clock()) * 1e6)::bigint
                                  ELSE coalesce((SELECT max(version) FROM sync.parts
                                                 WHERE entity = %(entity)s AND part = %(part)s), 0) END, '-infinity'
ON CONFLICT (entity, part) DO UPDATE SET entity = excluded.entity
RETURNING newest, CASE WHEN asked_at = '-infinity' THEN NULL
                       ELSE EXTRACT(epoch FROM sync.clock() - asked_at)::float8 END AS ago
"""

ASKED = """
UPDATE sync.polls SET newest = greatest(newest, %(newest)s), asked_at = sync.clock()
WHERE entity = %(entity)s AND part = %(part)s
"""

# What of a part is on its way already.
ACTIVE = """
SELECT key, content_hash FROM sync.events WHERE entity = %(entity)s AND key = ANY(%(keys)s) AND source = %(part)s
"""
