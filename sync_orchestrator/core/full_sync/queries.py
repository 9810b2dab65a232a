"""The queries of ``core/full_sync/``. Parameters are bound; batches come as arrays."""

from sync_orchestrator.core.db.fragments import is_announced
from sync_orchestrator.core.push.absent_records import IS_ABSENT

# Starts anew: the read sequence is older than every read of this listing and later than all before.
BEGIN_FULL_SYNC = """
UPDATE sync.groups
SET sync_id = nextval('sync.read_sequence'), sync_phase = 'list', sync_cursor = NULL, sync_listed = 0,
    sync_started_at = sync.clock(), sync_error = NULL
WHERE entity = %(entity)s AND group_key = %(group)s AND lease_token = %(token)s RETURNING sync_id
"""

NOTE_PAGE_DONE = """
UPDATE sync.groups SET sync_cursor = %(cursor)s, sync_listed = sync_listed + %(n)s,
    lease_until = sync.clock() + make_interval(secs => %(lease)s)
WHERE entity = %(entity)s AND group_key = %(group)s AND lease_token = %(token)s AND sync_id = %(sync_id)s
RETURNING sync_listed
"""

# A key that a listing repeats counts once.
INSERT_LISTED_KEYS = """
INSERT INTO sync.full_sync_keys (sync_id, part, key)
SELECT %(sync_id)s, %(part)s, k FROM (SELECT DISTINCT unnest(%(keys)s::text[]) AS k) keys ORDER BY k
ON CONFLICT DO NOTHING RETURNING key
"""

COUNT_LISTED_KEYS = "SELECT count(*) AS n FROM sync.full_sync_keys WHERE sync_id = %(sync_id)s AND part = %(part)s"

# Parts of the group's records that their source did not list, unchanged since the listing began. The owner's come
# first; where the owner does not list a record, its other parts go with it. OFFSET 0: statistics lag behind tables that
# a full sync fills, so the group's records are found first, and by key their parts and what was listed, whatever they
# say; else each record would be held against all that was listed. What a recorded delete event announces is left to it.
SELECT_UNLISTED_KEYS = f"""
SELECT p.part, p.key, p.epoch, p.version
FROM (SELECT r.entity, r.key, g.sync_id, g.sync_started_at FROM sync.records r
      JOIN sync.groups g ON g.entity = %(entity)s AND g.group_key = %(group)s
      WHERE r.entity = %(entity)s AND r.group_key = %(group)s AND NOT r.deleted OFFSET 0) r
CROSS JOIN LATERAL (SELECT entity, part, key, epoch, version, changed_at FROM sync.parts
                    WHERE entity = r.entity AND key = r.key AND part = ANY(%(parts)s) AND NOT deleted OFFSET 0) p
WHERE p.changed_at < r.sync_started_at AND NOT {is_announced("p")}
  AND NOT EXISTS (SELECT FROM sync.full_sync_keys k
                  WHERE k.sync_id = r.sync_id AND k.part = p.part AND k.key = p.key OFFSET 0)
  AND (p.part = %(owner)s OR EXISTS (SELECT FROM sync.full_sync_keys k
                                     WHERE k.sync_id = r.sync_id AND k.part = %(owner)s AND k.key = p.key
                                     OFFSET 0))
ORDER BY p.part <> %(owner)s, p.part, p.key
"""

DELETE_LISTED_KEYS = "DELETE FROM sync.full_sync_keys WHERE sync_id = %(sync_id)s"

COMPLETE_GROUP = """
UPDATE sync.groups
SET completed_at = sync.clock(), first_completed_at = coalesce(first_completed_at, sync.clock()),
    sync_phase = NULL, sync_id = NULL, sync_cursor = NULL, sync_error = NULL,
    unproven_since = CASE WHEN unproven_since >= sync_started_at THEN unproven_since END
WHERE entity = %(entity)s AND group_key = %(group)s AND lease_token = %(token)s RETURNING group_key
"""

MARK_ENTITY_COVERED = """
SELECT coalesce(bool_and(first_completed_at IS NOT NULL), false) AS covered FROM sync.groups WHERE entity = %(entity)s
"""

# What of a group is still to be pushed, and when the next of it is due. What others have not made there yet is not a
# full sync's to wait for: it was looked for.
COUNT_OUTSTANDING = f"""
SELECT count(*) FILTER (WHERE stopped IS NULL) AS open, count(*) FILTER (WHERE stopped <> 'discarded') AS stopped,
       min(EXTRACT(epoch FROM due_at - sync.clock())) FILTER (WHERE stopped IS NULL)::float8 AS next
FROM sync.records
WHERE entity = %(entity)s AND out_of_sync AND ({IS_ABSENT}) IS NOT TRUE
  AND (group_key = %(group)s OR (applied_group = %(group)s AND applied_group IS DISTINCT FROM group_key))
"""

_RECORDS_OF_GROUPS = f"""
    SELECT CASE WHEN group_key = ANY(%(groups)s::text[]) THEN group_key ELSE applied_group END AS group_key, key, error,
           stopped, changed_at
    FROM sync.records
    WHERE entity = %(entity)s AND out_of_sync AND stopped IS DISTINCT FROM 'discarded'
      AND ({IS_ABSENT}) IS NOT TRUE
      AND (group_key = ANY(%(groups)s::text[]) OR applied_group = ANY(%(groups)s::text[]))"""

# The same of several groups, those with an error apart.
COUNT_OUTSTANDING_OF_GROUPS = f"""
SELECT group_key, count(*) FILTER (WHERE error IS NULL AND stopped IS NULL) AS waiting,
       count(*) FILTER (WHERE error IS NOT NULL OR stopped IS NOT NULL) AS failing
FROM ({_RECORDS_OF_GROUPS}) found GROUP BY group_key
"""

# The same without what changed after a group was completed and waits without an error: that is on its way.
COUNT_OUTSTANDING_OF_COMPLETED = f"""
SELECT group_key, count(*) FILTER (WHERE error IS NULL AND stopped IS NULL) AS waiting,
       count(*) FILTER (WHERE error IS NOT NULL OR stopped IS NOT NULL) AS failing
FROM ({_RECORDS_OF_GROUPS}) found JOIN sync.groups g USING (group_key)
WHERE g.entity = %(entity)s AND (error IS NOT NULL OR stopped IS NOT NULL OR g.completed_at IS NULL
                                 OR changed_at <= g.completed_at)
GROUP BY group_key
"""

# The errors of the newest of them, of each group.
LIST_ERRORS_OF_GROUPS = f"""
SELECT group_key, key, error FROM (
    SELECT found.*, row_number() OVER (PARTITION BY group_key ORDER BY changed_at DESC) AS place
    FROM ({_RECORDS_OF_GROUPS} AND error IS NOT NULL) found) numbered
WHERE place <= %(most)s
"""

# The group's records, and those that its sources list, as they would be claimed for a push.
PLAN_RECORDS = """
SELECT key, group_key, revision, deleted, ready, applied_revision, applied_digest, applied_group, external_id,
       rejected_digest, stopped, first_applied_at IS NOT NULL AS ever_applied,
       EXTRACT(epoch FROM outcome_unknown_until - sync.clock())::float8 AS outcome_unknown_for
FROM sync.records
WHERE entity = %(entity)s AND revision > 0
  AND (key = ANY(%(keys)s) OR group_key = %(group)s OR applied_group = %(group)s)
"""

PLAN_PARTS = f"""
SELECT key, part, epoch, version, read_sequence, seq, inferred, content_hash, deleted, data,
       changed_at < %(since)s AS unmoved,
       changed_at < sync.clock() - make_interval(secs => %(lag)s) AS settled, {is_announced("p")} AS announced
FROM sync.parts p WHERE entity = %(entity)s AND key = ANY(%(keys)s)
"""

PLAN_KNOWN_KEYS = "SELECT key FROM sync.records WHERE entity = %(entity)s AND key = ANY(%(keys)s) AND revision > 0"

PLAN_BUSY_LEASE = """
SELECT EXISTS (SELECT FROM sync.groups WHERE entity = %(entity)s AND group_key = %(group)s
               AND lease_until > sync.clock()) AS busy, sync.clock() AS now
"""
