"""The queries of ``core/groups/``. Parameters are bound; batches come as arrays."""

ADD_GROUPS = """
INSERT INTO sync.groups (entity, group_key) SELECT %(entity)s, g FROM unnest(%(groups)s::text[]) g ORDER BY g
ON CONFLICT DO NOTHING
"""

LIST_GROUPS = """
SELECT group_key, first_completed_at, completed_at, validated_at, sync_phase, sync_error FROM sync.groups
WHERE entity = %(entity)s ORDER BY group_key
"""

# One full sync a group at a time: the lease is fenced by its token. It is short, and its holder renews it for as long
# as its process lives.
LEASE_GROUP = """
UPDATE sync.groups
SET lease_token = nextval('sync.read_sequence'), lease_until = sync.clock() + make_interval(secs => %(lease)s),
    lease_holder = %(holder)s, lease_taken_at = sync.clock()
WHERE entity = %(entity)s AND group_key = %(group)s AND (lease_until IS NULL OR lease_until < sync.clock())
RETURNING lease_token, first_completed_at, sync_id, sync_phase, sync_cursor, sync_listed,
          sync_started_at > sync.clock() - interval '1 day' AS recent
"""

SELECT_GROUP_LEASE = """
SELECT lease_holder AS holder, EXTRACT(epoch FROM sync.clock() - lease_taken_at)::float8 AS age,
       lease_until AS until, EXTRACT(epoch FROM lease_until - sync.clock())::float8 AS left
FROM sync.groups WHERE entity = %(entity)s AND group_key = %(group)s
"""

RENEW_GROUP_LEASE = """
UPDATE sync.groups SET lease_until = sync.clock() + make_interval(secs => %(lease)s)
WHERE entity = %(entity)s AND group_key = %(group)s AND lease_token = %(token)s RETURNING group_key
"""

RELEASE_GROUP_LEASE = """
UPDATE sync.groups
SET lease_token = NULL, lease_until = NULL, lease_holder = NULL, lease_taken_at = NULL, sync_error = %(error)s
WHERE entity = %(entity)s AND group_key = %(group)s AND lease_token = %(token)s
"""

SET_PHASE = """
UPDATE sync.groups SET sync_phase = %(phase)s, lease_until = sync.clock() + make_interval(secs => %(lease)s)
WHERE entity = %(entity)s AND group_key = %(group)s AND lease_token = %(token)s RETURNING group_key
"""

COUNT_GROUP_RECORDS = """
SELECT count(*) FROM sync.records WHERE entity = %(entity)s AND group_key = %(group)s AND NOT deleted AND revision > 0
"""


COUNT_GROUPS = """
SELECT entity, count(*) AS groups, count(first_completed_at) AS synced FROM sync.groups GROUP BY entity
"""

# What was lost of their sources only a full sync that begins later can restore.
MARK_GROUPS_UNPROVEN = """
UPDATE sync.groups SET unproven_since = sync.clock(), unproven_reason = %(reason)s, validated_at = NULL
WHERE entity = ANY(%(entities)s)
"""
