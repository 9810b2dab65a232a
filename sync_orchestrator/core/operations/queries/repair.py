"""The statements of repairs that a person starts."""

# Groups with drift, or with lost notifications, that nothing is done about by itself.
LIST_GROUPS_TO_REPAIR = """
SELECT group_key FROM sync.drift
WHERE entity = %(entity)s AND status = 'found' AND (%(key)s::text IS NULL OR key = %(key)s::text)
UNION
SELECT group_key FROM sync.lost_notifications
WHERE entity = %(entity)s AND (%(key)s::text IS NULL OR key = %(key)s::text)
ORDER BY group_key
"""

# A record's drift counts once, and in key order.
LIST_FOUND_DRIFT = """
SELECT DISTINCT ON (key) id, key, kind, revision, theirs, external_id FROM sync.drift
WHERE entity = %(entity)s AND group_key = %(group)s AND status = 'found'
  AND (%(key)s::text IS NULL OR key = %(key)s::text)
ORDER BY key, id
"""

LIST_OPEN_LOST_CHANGES = """
SELECT EXISTS (SELECT FROM sync.lost_notifications
               WHERE entity = %(entity)s AND group_key = %(group)s
                 AND (%(key)s::text IS NULL OR key = %(key)s::text)) AS lost
"""

MARK_UNDER_REPAIR = "UPDATE sync.drift SET status = 'repairing' WHERE id = ANY(%(ids)s)"
