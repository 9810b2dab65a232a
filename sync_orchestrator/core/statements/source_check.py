"""The statements by which sources are held against the archive."""

GROUP = """
SELECT sync.clock() AS now, EXISTS (
    SELECT FROM sync.groups WHERE entity = %(entity)s AND group_key = %(group)s AND first_completed_at IS NOT NULL
) AS synced, (SELECT contents_checked_to FROM sync.groups
              WHERE entity = %(entity)s AND group_key = %(group)s) AS contents_checked_to
"""

# What the archive has of these records, and of all in the group.
ARCHIVED = """
SELECT p.key, p.part, p.epoch, p.version, p.deleted, p.content_hash, p.changed_at >= %(since)s AS moved,
       r.group_key = %(group)s AND NOT r.deleted AS of_group
FROM sync.parts p JOIN sync.records r USING (entity, key)
WHERE p.entity = %(entity)s
  AND (p.key = ANY(%(keys)s) OR p.key IN (SELECT key FROM sync.records
                                          WHERE entity = %(entity)s AND group_key = %(group)s AND NOT deleted))
"""

# Those for which a change event is on its way. A dead one is not: what it was to bring is found again, and tried again.
ON_THE_WAY = """
SELECT DISTINCT source, key FROM sync.events
WHERE entity = %(entity)s AND key = ANY(%(keys)s) AND state <> 'dead'
"""

# New findings only.
NOTE = """
INSERT INTO sync.lost_notifications (entity, part, key, kind, version, group_key)
SELECT %(entity)s, v.part, v.key, v.kind, v.version, %(group)s
FROM unnest(%(part)s::text[], %(key)s::text[], %(kind)s::text[], %(version)s::bigint[])
     AS v (part, key, kind, version)
ORDER BY 2, 3
ON CONFLICT DO NOTHING RETURNING part, key
"""

# The archive has caught up with them, or the source says otherwise by now.
OVER = """
DELETE FROM sync.lost_notifications l
WHERE entity = %(entity)s AND group_key = %(group)s AND NOT EXISTS (
    SELECT FROM unnest(%(part)s::text[], %(key)s::text[], %(kind)s::text[], %(version)s::bigint[])
         AS v (part, key, kind, version)
    WHERE (v.part, v.key, v.kind, v.version) = (l.part, l.key, l.kind, l.version))
"""

TALLY = """
INSERT INTO sync.lost_tallies (entity, source, day, n)
SELECT %(entity)s, v.source, (sync.clock() AT TIME ZONE 'UTC')::date, count(*)
FROM unnest(%(source)s::text[]) AS v (source) GROUP BY v.source ORDER BY v.source
ON CONFLICT (entity, source, day) DO UPDATE SET n = sync.lost_tallies.n + excluded.n
"""

OPEN = "SELECT count(*) AS n FROM sync.lost_notifications WHERE entity = %(entity)s AND group_key = %(group)s"

OPEN_PARTS = "SELECT DISTINCT part FROM sync.lost_notifications WHERE entity = %(entity)s"

# Where a repair has begun, the group is looked at again at once.
CHECKED = """
UPDATE sync.groups SET sources_checked_at = CASE WHEN %(again)s THEN NULL ELSE sync.clock() END,
    contents_checked_to = %(checked_to)s
WHERE entity = %(entity)s AND group_key = %(group)s
"""

GROUPS_DUE = """
SELECT group_key FROM sync.groups
WHERE entity = %(entity)s AND first_completed_at IS NOT NULL
  AND (sources_checked_at IS NULL OR sources_checked_at < sync.clock() - make_interval(secs => %(every)s))
ORDER BY sources_checked_at NULLS FIRST, group_key LIMIT %(most)s
"""

TALLIES = """
SELECT entity, source, day, n FROM sync.lost_tallies
WHERE day > (sync.clock() AT TIME ZONE 'UTC')::date - %(days)s ORDER BY day DESC, entity, source
"""
