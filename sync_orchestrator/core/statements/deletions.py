"""The statements of caps on deletions that no delete event asked for (rule 22)."""

# One transaction of an entity at a time counts, so that two together cannot exceed the cap.
LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(%(entity)s, 7261005))"

USED = """
SELECT coalesce(sum(n), 0)::bigint AS of_entity,
       coalesce(sum(n) FILTER (WHERE group_key = %(group)s), 0)::bigint AS of_group
FROM sync.inferred_deletions
WHERE entity = %(entity)s AND at > sync.clock() - make_interval(secs => %(window)s)
"""

SIZES = """
SELECT count(*) AS of_entity, count(*) FILTER (WHERE group_key = %(group)s) AS of_group
FROM sync.records WHERE entity = %(entity)s AND NOT deleted AND revision > 0
"""

COUNT = """
INSERT INTO sync.inferred_deletions (entity, group_key, reason, n) VALUES (%(entity)s, %(group)s, %(reason)s, %(n)s)
"""

# Which of some parts are here, so that a deletion of them would take something away.
ALIVE = """
SELECT p.key, p.part, coalesce(r.group_key, '') AS group_key
FROM (SELECT %(entity)s::text AS entity, v.* FROM unnest(%(key)s::text[], %(part)s::text[]) AS v (key, part) OFFSET 0) v
JOIN sync.parts p ON p.entity = v.entity AND p.key = v.key AND p.part = v.part AND NOT p.deleted
JOIN sync.records r ON r.entity = v.entity AND r.key = v.key AND NOT r.deleted
"""

FORGET = """
DELETE FROM sync.inferred_deletions
WHERE entity = %(entity)s AND at < sync.clock() - make_interval(secs => %(window)s)
"""
