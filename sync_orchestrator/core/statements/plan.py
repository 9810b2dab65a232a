"""The statements of plans: they look at one business group and change nothing."""

from sync_orchestrator.core.statements.deletions import announced

# The group's records, and those that its sources list, as they would be claimed for a push.
RECORDS = """
SELECT key, group_key, revision, deleted, ready, applied_revision, applied_digest, applied_group, external_id,
       rejected_digest, parked, first_applied_at IS NOT NULL AS ever_applied,
       EXTRACT(epoch FROM unsettled_until - sync.clock())::float8 AS unsettled_for
FROM sync.records
WHERE entity = %(entity)s AND revision > 0
  AND (key = ANY(%(keys)s) OR group_key = %(group)s OR applied_group = %(group)s)
"""

PARTS = f"""
SELECT key, part, epoch, version, ticket, seq, inferred, content_hash, deleted, data, changed_at < %(since)s AS unmoved,
       changed_at < sync.clock() - make_interval(secs => %(lag)s) AS settled, {announced('p')} AS announced
FROM sync.parts p WHERE entity = %(entity)s AND key = ANY(%(keys)s)
"""

KNOWN_KEYS = "SELECT key FROM sync.records WHERE entity = %(entity)s AND key = ANY(%(keys)s) AND revision > 0"

BUSY = """
SELECT EXISTS (SELECT FROM sync.groups WHERE entity = %(entity)s AND group_key = %(group)s
               AND lease_until > sync.clock()) AS busy, sync.clock() AS now
"""
