"""The statements of suspensions, of noticing a restore or another account, and of adoptions."""


# Adoption -----------------------------------------------------------------------------------------------------------

# Seconds until no call that has begun can take effect any more.
COUNT_CALLS_IN_FLIGHT = """
SELECT coalesce(EXTRACT(epoch FROM max(greatest(
    CASE WHEN lease_token IS NOT NULL THEN lease_until + make_interval(secs => %(in_flight_window)s) END,
    outcome_unknown_until)) - sync.clock()), 0)::float8 AS seconds
FROM sync.records
WHERE entity = %(entity)s AND (lease_token IS NOT NULL OR outcome_unknown_until IS NOT NULL)
"""

# Groups with the time since when they are listed for this adoption, if they are. ``managed``: the group has had a full
# sync, or records of it were pushed.
LIST_GROUPS_TO_ADOPT = """
SELECT g.group_key, coalesce(g.adoption_listed_at >= %(since)s, false) AS listed,
       g.first_completed_at IS NOT NULL OR EXISTS (
           SELECT FROM sync.records r WHERE r.entity = g.entity AND r.group_key = g.group_key AND r.revision > 0
       ) AS managed
FROM sync.groups g WHERE g.entity = %(entity)s ORDER BY g.group_key
"""

DELETE_LISTING = """
DELETE FROM sync.adoption_listing
WHERE entity = %(entity)s AND (%(group)s::text IS NULL OR group_key = %(group)s::text)
"""

ADD_TO_LISTING = """
INSERT INTO sync.adoption_listing (entity, group_key, external_id, key, digest)
SELECT DISTINCT ON (2, 3) %(entity)s, * FROM unnest(
    %(group)s::text[], %(external_id)s::text[], %(key)s::text[], %(digest)s::bytea[]) AS v
ON CONFLICT (entity, group_key, external_id) DO UPDATE SET key = excluded.key, digest = excluded.digest
"""

MARK_GROUP_LISTED = """
UPDATE sync.groups SET adoption_listed_at = sync.clock() WHERE entity = %(entity)s AND group_key = %(group)s
"""

# Before the listing is deleted: nothing is concluded from what is not there any more.
SELECT_NOT_LISTED = """
UPDATE sync.groups SET adoption_listed_at = NULL
WHERE entity = %(entity)s AND adoption_listed_at IS NOT NULL
  AND (%(group)s::text IS NULL OR group_key = %(group)s::text)
"""

# Acknowledged records that no listing shows, those that are acknowledged in all, and some of the former.
COUNT_MISSING = """
SELECT count(*) AS acknowledged, count(*) FILTER (WHERE missing) AS missing,
       coalesce((array_agg(key ORDER BY key) FILTER (WHERE missing))[1:10], '{}') AS examples
FROM (SELECT r.key, NOT EXISTS (SELECT FROM sync.adoption_listing l
                                WHERE l.entity = r.entity AND l.key = r.key) AS missing
      FROM sync.records r
      WHERE r.entity = %(entity)s AND NOT r.deleted AND r.applied_digest IS NOT NULL) acknowledged
"""

# Records that no listing shows, with the id that they had.
COUNT_MISSING_WITH_ID = """
SELECT r.key, coalesce(r.applied_group, r.group_key) AS group_key, r.external_id FROM sync.records r
WHERE r.entity = %(entity)s AND r.key > %(after)s AND r.external_id IS NOT NULL
  AND NOT EXISTS (SELECT FROM sync.adoption_listing l WHERE l.entity = r.entity AND l.key = r.key)
ORDER BY r.key LIMIT %(limit)s
"""

# Records with what the third party shows under their key: of several the one whose id we had, else one in the record's
# own group, else the one with the lowest id.
_RECORDS_BESIDE_LISTING = """
SELECT r.key, r.group_key, r.revision, r.deleted, r.ready, r.applied_revision, r.stopped,
       l.external_id AS there_id, l.group_key AS there_group, l.digest AS there_digest
FROM sync.records r
LEFT JOIN LATERAL (
    SELECT l.external_id, l.group_key, l.digest FROM sync.adoption_listing l
    WHERE l.entity = r.entity AND l.key = r.key
    ORDER BY coalesce(l.external_id = r.external_id AND (NOT %(grouped)s OR l.group_key = r.applied_group), false) DESC,
             coalesce(l.group_key = r.group_key, false) DESC, length(l.external_id), l.external_id LIMIT 1) l ON true
WHERE r.entity = %(entity)s AND r.revision > 0
"""

SELECT_RECORDS_BESIDE_LISTING = (
    f"{_RECORDS_BESIDE_LISTING} AND r.key > %(after)s ORDER BY r.key LIMIT %(limit)s FOR UPDATE OF r"
)

SELECT_CHANGED_BESIDE_LISTING = (
    f"{_RECORDS_BESIDE_LISTING} AND r.changed_at >= %(since)s ORDER BY r.key FOR UPDATE OF r"
)

# The record is now what the third party shows. Nothing that older calls left behind counts any more.
LINK_RECORDS = """
UPDATE sync.records r
SET external_id = v.external_id, applied_digest = v.digest, applied_group = v.applied_group,
    applied_revision = v.revision, applied_at = sync.clock(),
    first_applied_at = CASE WHEN v.digest IS NULL THEN r.first_applied_at
                            ELSE coalesce(r.first_applied_at, sync.clock()) END,
    outcome_unknown_until = CASE WHEN v.look_up THEN sync.clock() END, outcome_unknown_groups = '{}',
    late_creates = '[]',
    lease_token = NULL, lease_until = NULL, lease_holder = NULL, intent_at = NULL,
    stopped = CASE WHEN r.stopped = 'discarded' THEN r.stopped END, rejected_digest = NULL,
    attempts = 0, error = NULL, waiting_since = NULL, due_at = sync.clock()
FROM unnest(%(keys)s::text[], %(external_id)s::text[], %(digest)s::bytea[], %(applied_group)s::text[],
            %(revision)s::bigint[], %(look_up)s::boolean[])
     AS v (key, external_id, digest, applied_group, revision, look_up)
WHERE r.entity = %(entity)s AND r.key = v.key
"""

# Several records of the third party with one key of ours.
LIST_DUPLICATES = """
SELECT l.key, array_agg(l.external_id ORDER BY length(l.external_id), l.external_id) AS external_ids
FROM sync.adoption_listing l JOIN sync.records r ON r.entity = l.entity AND r.key = l.key AND r.revision > 0
WHERE l.entity = %(entity)s GROUP BY l.key HAVING count(*) > 1 ORDER BY l.key
"""

# Records of the third party that no record of ours stands for.
LIST_UNMANAGED = """
SELECT count(*) AS n, coalesce((array_agg(coalesce(l.key, l.external_id) ORDER BY l.key, l.external_id))[1:10], '{}')
       AS examples
FROM sync.adoption_listing l
WHERE l.entity = %(entity)s AND NOT EXISTS (
    SELECT FROM sync.records r WHERE r.entity = l.entity AND r.key = l.key AND r.revision > 0)
"""

MARK_ADOPTED = """
INSERT INTO sync.entities (name, adopted_at) VALUES (%(entity)s, sync.clock())
ON CONFLICT (name) DO UPDATE SET adopted_at = excluded.adopted_at
"""

# Which of these entities are not adopted since the suspension began.
SELECT_NOT_ADOPTED = """
SELECT e.name FROM unnest(%(entities)s::text[]) AS e (name)
LEFT JOIN sync.entities n ON n.name = e.name
WHERE n.adopted_at IS NULL OR n.adopted_at < %(since)s ORDER BY e.name
"""
