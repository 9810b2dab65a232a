"""The statements of full syncs: group leases, listed keys, inferred deletions, completion."""

from sync_orchestrator.core.statements.deletions import announced

ADD_GROUPS = """
INSERT INTO sync.groups (entity, group_key) SELECT %(entity)s, g FROM unnest(%(groups)s::text[]) g ORDER BY g
ON CONFLICT DO NOTHING
"""

GROUPS = """
SELECT group_key, first_completed_at, completed_at, validated_at, sync_phase, sync_error FROM sync.groups
WHERE entity = %(entity)s ORDER BY group_key
"""

# One full sync a group at a time: the lease is fenced by its token. It is short, and its holder renews it for as long
# as its process lives.
TAKE = """
UPDATE sync.groups
SET lease_token = nextval('sync.ticket'), lease_until = sync.clock() + make_interval(secs => %(lease)s),
    lease_holder = %(holder)s, lease_taken_at = sync.clock()
WHERE entity = %(entity)s AND group_key = %(group)s AND (lease_until IS NULL OR lease_until < sync.clock())
RETURNING lease_token, first_completed_at, sync_id, sync_phase, sync_cursor, sync_listed,
          sync_started_at > sync.clock() - interval '1 day' AS recent
"""

LEASE = """
SELECT lease_holder AS holder, EXTRACT(epoch FROM sync.clock() - lease_taken_at)::float8 AS age,
       lease_until AS until, EXTRACT(epoch FROM lease_until - sync.clock())::float8 AS left
FROM sync.groups WHERE entity = %(entity)s AND group_key = %(group)s
"""

RENEW = """
UPDATE sync.groups SET lease_until = sync.clock() + make_interval(secs => %(lease)s)
WHERE entity = %(entity)s AND group_key = %(group)s AND lease_token = %(token)s RETURNING group_key
"""

LET_GO = """
UPDATE sync.groups
SET lease_token = NULL, lease_until = NULL, lease_holder = NULL, lease_taken_at = NULL, sync_error = %(error)s
WHERE entity = %(entity)s AND group_key = %(group)s AND lease_token = %(token)s
"""

# Starts anew: the ticket is older than every read of this listing and later than all before.
BEGIN = """
UPDATE sync.groups
SET sync_id = nextval('sync.ticket'), sync_phase = 'list', sync_cursor = NULL, sync_listed = 0,
    sync_started_at = sync.clock(), sync_error = NULL
WHERE entity = %(entity)s AND group_key = %(group)s AND lease_token = %(token)s RETURNING sync_id
"""

PAGE_DONE = """
UPDATE sync.groups SET sync_cursor = %(cursor)s, sync_listed = sync_listed + %(n)s,
    lease_until = sync.clock() + make_interval(secs => %(lease)s)
WHERE entity = %(entity)s AND group_key = %(group)s AND lease_token = %(token)s AND sync_id = %(sync_id)s
RETURNING sync_listed
"""

PHASE = """
UPDATE sync.groups SET sync_phase = %(phase)s, lease_until = sync.clock() + make_interval(secs => %(lease)s)
WHERE entity = %(entity)s AND group_key = %(group)s AND lease_token = %(token)s RETURNING group_key
"""

# A key that a listing repeats counts once.
LISTED = """
INSERT INTO sync.full_sync_keys (sync_id, part, key)
SELECT %(sync_id)s, %(part)s, k FROM (SELECT DISTINCT unnest(%(keys)s::text[]) AS k) keys ORDER BY k
ON CONFLICT DO NOTHING RETURNING key
"""

COUNT_LISTED = "SELECT count(*) AS n FROM sync.full_sync_keys WHERE sync_id = %(sync_id)s AND part = %(part)s"

# Parts of the group's records that their source did not list, unchanged since the listing began. The owner's come
# first; where the owner does not list a record, its other parts go with it. OFFSET 0: statistics lag behind tables that
# a full sync fills, so the group's records are found first, and by key their parts and what was listed, whatever they
# say; else each record would be held against all that was listed. What a recorded delete event announces is left to it.
UNLISTED = f"""
SELECT p.part, p.key, p.epoch, p.version
FROM (SELECT r.entity, r.key, g.sync_id, g.sync_started_at FROM sync.records r
      JOIN sync.groups g ON g.entity = %(entity)s AND g.group_key = %(group)s
      WHERE r.entity = %(entity)s AND r.group_key = %(group)s AND NOT r.deleted OFFSET 0) r
CROSS JOIN LATERAL (SELECT entity, part, key, epoch, version, changed_at FROM sync.parts
                    WHERE entity = r.entity AND key = r.key AND part = ANY(%(parts)s) AND NOT deleted OFFSET 0) p
WHERE p.changed_at < r.sync_started_at AND NOT {announced('p')}
  AND NOT EXISTS (SELECT FROM sync.full_sync_keys k
                  WHERE k.sync_id = r.sync_id AND k.part = p.part AND k.key = p.key OFFSET 0)
  AND (p.part = %(owner)s OR EXISTS (SELECT FROM sync.full_sync_keys k
                                     WHERE k.sync_id = r.sync_id AND k.part = %(owner)s AND k.key = p.key
                                     OFFSET 0))
ORDER BY p.part <> %(owner)s, p.part, p.key
"""

GROUP_SIZE = """
SELECT count(*) FROM sync.records WHERE entity = %(entity)s AND group_key = %(group)s AND NOT deleted AND revision > 0
"""

FORGET_LISTED = "DELETE FROM sync.full_sync_keys WHERE sync_id = %(sync_id)s"

COMPLETE = """
UPDATE sync.groups
SET completed_at = sync.clock(), first_completed_at = coalesce(first_completed_at, sync.clock()),
    sync_phase = NULL, sync_id = NULL, sync_cursor = NULL, sync_error = NULL
WHERE entity = %(entity)s AND group_key = %(group)s AND lease_token = %(token)s RETURNING group_key
"""

# Whoever completes a group waits for those that complete others, and for those that judge events by what is complete:
# else the last two would each miss the other, and what is judged meanwhile would wait for ever.
COMPLETING = "SELECT pg_advisory_xact_lock(hashtextextended(%(entity)s, 7261004))"

JUDGING = "SELECT pg_advisory_xact_lock_shared(hashtextextended(%(entity)s, 7261004))"

ALL_COVERED = """
SELECT coalesce(bool_and(first_completed_at IS NOT NULL), false) AS covered FROM sync.groups WHERE entity = %(entity)s
"""

# What of a group is still to be pushed, and when the next of it is due.
OUTSTANDING = """
SELECT count(*) FILTER (WHERE parked IS NULL) AS open, count(*) FILTER (WHERE parked <> 'discarded') AS parked,
       min(EXTRACT(epoch FROM due_at - sync.clock())) FILTER (WHERE parked IS NULL)::float8 AS next
FROM sync.records
WHERE entity = %(entity)s AND out_of_step
  AND (group_key = %(group)s OR (applied_group = %(group)s AND applied_group IS DISTINCT FROM group_key))
"""

_OF_GROUPS = """
    SELECT CASE WHEN group_key = ANY(%(groups)s::text[]) THEN group_key ELSE applied_group END AS group_key, key, error,
           parked, changed_at
    FROM sync.records
    WHERE entity = %(entity)s AND out_of_step AND parked IS DISTINCT FROM 'discarded'
      AND (group_key = ANY(%(groups)s::text[]) OR applied_group = ANY(%(groups)s::text[]))"""

# The same of several groups, those with an error apart.
OUTSTANDING_OF = f"""
SELECT group_key, count(*) FILTER (WHERE error IS NULL AND parked IS NULL) AS waiting,
       count(*) FILTER (WHERE error IS NOT NULL OR parked IS NOT NULL) AS failing
FROM ({_OF_GROUPS}) found GROUP BY group_key
"""

# The same without what changed after a group was completed and waits without an error: that is on its way.
OUTSTANDING_OF_COMPLETED = f"""
SELECT group_key, count(*) FILTER (WHERE error IS NULL AND parked IS NULL) AS waiting,
       count(*) FILTER (WHERE error IS NOT NULL OR parked IS NOT NULL) AS failing
FROM ({_OF_GROUPS}) found JOIN sync.groups g USING (group_key)
WHERE g.entity = %(entity)s AND (error IS NOT NULL OR parked IS NOT NULL OR g.completed_at IS NULL
                                 OR changed_at <= g.completed_at)
GROUP BY group_key
"""

# The errors of the newest of them, of each group.
ERRORS_OF = f"""
SELECT group_key, key, error FROM (
    SELECT found.*, row_number() OVER (PARTITION BY group_key ORDER BY changed_at DESC) AS place
    FROM ({_OF_GROUPS} AND error IS NOT NULL) found) numbered
WHERE place <= %(most)s
"""

# The events behind records that are tried again.
REDRIVE_ARCHIVED = """
UPDATE sync.events SET state = 'pending', attempts = 0, due_at = sync.clock()
WHERE entity = %(entity)s AND key = ANY(%(keys)s) AND revision IS NOT NULL AND state IN ('waiting', 'dead')
"""

EPOCHS = "SELECT name, epoch FROM sync.systems"

STEP_EPOCH = "UPDATE sync.systems SET epoch = epoch + 1 WHERE name = %(name)s RETURNING epoch"
