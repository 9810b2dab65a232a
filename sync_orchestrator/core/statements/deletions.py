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

def announced(part: str) -> str:
    """The condition that the ledger has a delete event of a part of the archive, which is no older than the part.

    Such a deletion was notified: it is the event's, and not inferred. What a poll or a check of the sources inferred is
    an event of another origin. ``part``: the alias of the part's row.
    """
    return (f"EXISTS (SELECT FROM sync.events e WHERE e.entity = {part}.entity AND e.key = {part}.key "
            f"AND e.source = {part}.part AND e.action = 'delete' AND e.origin = 'notification' AND e.revision IS NULL "
            f"AND (e.epoch, e.version) >= ({part}.epoch, {part}.version) OFFSET 0)")


# Which of some parts are here, so that a deletion of them would take something away that no delete event announces.
ALIVE = f"""
SELECT p.key, p.part, coalesce(r.group_key, '') AS group_key
FROM (SELECT %(entity)s::text AS entity, v.* FROM unnest(%(key)s::text[], %(part)s::text[]) AS v (key, part) OFFSET 0) v
JOIN sync.parts p ON p.entity = v.entity AND p.key = v.key AND p.part = v.part AND NOT p.deleted
  AND NOT {announced('p')}
JOIN sync.records r ON r.entity = v.entity AND r.key = v.key AND NOT r.deleted
"""

FORGET = """
DELETE FROM sync.inferred_deletions
WHERE entity = %(entity)s AND at < sync.clock() - make_interval(secs => %(window)s)
"""
