"""The queries of ``core/validation/``. Parameters are bound; batches come as arrays."""

SELECT_NOW = "SELECT sync.clock() AS now"

SELECT_GROUP = """
SELECT first_completed_at, unproven_reason,
       unproven_since IS NOT NULL AS is_unproven, unproven_since AT TIME ZONE 'UTC' AS unproven_since,
       compared_at IS NULL OR compared_at < sync.clock() - make_interval(secs => %(full_comparison_every)s)
       AS full_comparison_due
FROM sync.groups WHERE entity = %(entity)s AND group_key = %(group)s
"""

# A push is open or unknown, or something moved since the look began.
_IS_AMBIGUOUS = """
out_of_sync OR lease_token IS NOT NULL OR NOT ready OR changed_at >= %(since)s
OR coalesce(applied_at, '-infinity') >= %(since)s::timestamptz - make_interval(secs => %(lag)s)
"""

# The records of a group: those that belong there, and those that the third party has there still.
_OF_GROUP = """
SELECT * FROM sync.records WHERE entity = %(entity)s AND group_key = %(group)s
UNION ALL
SELECT * FROM sync.records WHERE entity = %(entity)s AND applied_group = %(group)s
    AND applied_group IS DISTINCT FROM group_key
"""

_IS_PRESENT = "applied_digest IS NOT NULL AND coalesce(applied_group, group_key) = %(group)s"

# What should be there, as the third party would show it; the ambiguous without a digest.
SELECT_EXPECTED = f"""
SELECT key, external_id, CASE WHEN NOT ({_IS_AMBIGUOUS}) THEN applied_digest END
FROM ({_OF_GROUP}) of_group WHERE ({_IS_PRESENT}) OR ({_IS_AMBIGUOUS})
"""

COUNT_EXPECTED = f"""
SELECT count(*) FILTER (WHERE {_IS_PRESENT} AND NOT ({_IS_AMBIGUOUS})) AS settled,
       count(*) FILTER (WHERE {_IS_AMBIGUOUS}) AS ambiguous
FROM ({_OF_GROUP}) of_group
"""

# All that is known of some records of a group.
SELECT_OURS = f"""
SELECT key, external_id, applied_digest, prior_digest, revision, applied_at, deleted,
       first_applied_at IS NOT NULL AS ever_applied, {_IS_PRESENT} AS present, {_IS_AMBIGUOUS} AS ambiguous
FROM sync.records
WHERE entity = %(entity)s AND key = ANY(%(keys)s) AND (group_key = %(group)s OR applied_group = %(group)s)
"""

# Keys that the third party shows in this group and that are not of this group here.
SELECT_ELSEWHERE = f"""
SELECT key, external_id, applied_digest, revision, applied_at, deleted, group_key,
       first_applied_at IS NOT NULL AS ever_applied, {_IS_AMBIGUOUS} AS ambiguous
FROM sync.records WHERE entity = %(entity)s AND key = ANY(%(keys)s)
"""

# Whether an unmanaged record is ours by now, or is about to be. An id is one record's in all groups, unless the
# group is part of its address.
SELECT_OURS_BY_NOW = """
SELECT EXISTS (
    SELECT FROM sync.records
    WHERE entity = %(entity)s
      AND (key = %(key)s OR external_id = %(external_id)s AND (NOT %(grouped)s OR group_key = %(group)s))
      AND (NOT deleted OR out_of_sync OR lease_token IS NOT NULL OR first_applied_at IS NOT NULL)) AS ours
"""

SELECT_KNOWN_UNMANAGED = """
SELECT count(*) FROM sync.drift
WHERE entity = %(entity)s AND group_key = %(group)s AND kind IN ('unmanaged', 'duplicate') AND status <> 'repaired'
"""

# Suspects that nobody has touched since they were seen.
SELECT_UNCHANGED = """
SELECT r.key, r.group_key, r.applied_digest FROM sync.records r
JOIN unnest(%(keys)s::text[], %(revisions)s::bigint[], %(applied_at)s::timestamptz[]) AS v (key, revision, applied_at)
  ON r.key = v.key
WHERE r.entity = %(entity)s AND r.revision = v.revision AND r.applied_at IS NOT DISTINCT FROM v.applied_at
  AND NOT r.out_of_sync AND r.lease_token IS NULL
"""

SELECT_OPEN_DRIFT = """
SELECT key, kind, external_id, ours, theirs, status FROM sync.drift
WHERE entity = %(entity)s AND group_key = %(group)s AND status <> 'repaired'
"""

INSERT_DRIFT = """
INSERT INTO sync.drift (entity, group_key, key, kind, revision, ours, theirs, external_id, sample, status)
SELECT %(entity)s, %(group)s, * FROM unnest(
    %(key)s::text[], %(kind)s::text[], %(revision)s::bigint[], %(ours)s::bytea[], %(theirs)s::bytea[],
    %(external_id)s::text[], %(sample)s::jsonb[], %(status)s::text[])
ON CONFLICT (entity, group_key, key, kind, coalesce(external_id, '')) WHERE status <> 'repaired'
DO UPDATE SET last_seen_at = sync.clock(), ours = excluded.ours, theirs = excluded.theirs,
    revision = excluded.revision, sample = excluded.sample, status = excluded.status
"""

# A full look at the group did not find them any more. One whose record was left out of judgement stays open; but where
# a newer revision has landed in what was wrong, that is gone: a hot record is never judged.
MARK_DRIFT_REPAIRED = f"""
UPDATE sync.drift SET status = 'repaired', repaired_at = sync.clock()
WHERE entity = %(entity)s AND group_key = %(group)s AND status <> 'repaired' AND last_seen_at < %(since)s
  AND NOT EXISTS (SELECT FROM sync.records r WHERE r.entity = drift.entity AND r.key = drift.key
                  AND ({_IS_AMBIGUOUS})
                  AND (r.revision = drift.revision OR drift.kind IN ('extra', 'duplicate', 'unmanaged')
                       OR r.out_of_sync OR r.lease_token IS NOT NULL OR NOT r.ready))
RETURNING key
"""

# Applied becomes what the third party really holds; so the record is out of sync and goes the normal way. Only if
# nothing has moved since. The id of one that is missing is kept: its push looks once more whose it is.
MARK_DUE_FOR_REPAIR = """
UPDATE sync.records r
SET applied_revision = 0, applied_digest = v.theirs,
    external_id = CASE WHEN v.theirs IS NULL THEN coalesce(v.external_id, r.external_id) ELSE v.external_id END,
    applied_group = coalesce(v.place, r.applied_group),
    outcome_unknown_until = CASE WHEN v.theirs IS NULL THEN sync.clock() ELSE r.outcome_unknown_until END,
    attempts = 0, due_at = sync.clock(), priority = 0
FROM unnest(%(keys)s::text[], %(revisions)s::bigint[], %(theirs)s::bytea[], %(external_ids)s::text[],
            %(places)s::text[]) AS v (key, revision, theirs, external_id, place)
WHERE r.entity = %(entity)s AND r.key = v.key AND r.revision = v.revision AND NOT r.out_of_sync
  AND r.lease_token IS NULL
RETURNING r.key
"""

INSERT_VALIDATION = """
INSERT INTO sync.validations (entity, group_key, verdict, reason, expected, counted, ambiguous, compared, drift)
VALUES (%(entity)s, %(group)s, %(verdict)s, %(reason)s, %(expected)s, %(counted)s, %(ambiguous)s, %(compared)s,
        %(drift)s)
"""

# A group with drift is compared in full next time: at once where a repair has just begun, else when its turn comes.
MARK_GROUP_VALIDATED = """
UPDATE sync.groups
SET validated_at = CASE WHEN EXISTS (
        SELECT FROM sync.drift WHERE entity = %(entity)s AND group_key = %(group)s AND status = 'repairing'
          AND last_seen_at > sync.clock() - make_interval(secs => %(every)s)) THEN NULL ELSE sync.clock() END,
    compared_at = CASE WHEN %(drift)s THEN NULL WHEN %(compared_fully)s THEN sync.clock() ELSE compared_at END
WHERE entity = %(entity)s AND group_key = %(group)s
"""

LIST_GROUPS_DUE_FOR_VALIDATION = """
SELECT group_key FROM sync.groups
WHERE entity = %(entity)s AND first_completed_at IS NOT NULL
  AND (validated_at IS NULL OR validated_at < sync.clock() - make_interval(secs => %(every)s))
ORDER BY validated_at NULLS FIRST, group_key LIMIT %(most)s
"""

SELECT_IN_SYNC_SINCE = """
SELECT min(latest.at) AS since,
       bool_and(coalesce(latest.verdict = 'in_sync'
                         AND latest.at > sync.clock() - make_interval(secs => %(seconds)s), false)) AS all_in_sync
FROM sync.groups g LEFT JOIN LATERAL (
    SELECT v.at, v.verdict FROM sync.validations v
    WHERE v.entity = g.entity AND v.group_key = g.group_key ORDER BY v.at DESC LIMIT 1) latest ON true
WHERE g.entity = %(entity)s AND g.first_completed_at IS NOT NULL
"""

LIST_GROUPS_WITH_DRIFT = """
SELECT group_key, bool_and(kind = 'unmanaged') AS only_unmanaged FROM sync.drift
WHERE entity = %(entity)s AND status <> 'repaired' GROUP BY group_key
"""

LIST_DRIFT_OF_RECORD = """
SELECT group_key, key, kind, status, found_at, last_seen_at, repaired_at, sample FROM sync.drift
WHERE entity = %(entity)s AND key = %(key)s ORDER BY id DESC LIMIT %(most)s
"""

# Confirmed differences that are not known to be gone: a group with one is not in sync, whatever is in flight.
COUNT_OPEN_DRIFT = """
SELECT count(*) FROM sync.drift
WHERE entity = %(entity)s AND group_key = %(group)s AND kind <> 'unmanaged' AND status <> 'repaired'
"""

_CHOSEN_DRIFT = """
    (%(entity)s::text IS NULL OR entity = %(entity)s::text) AND (%(group)s::text IS NULL OR group_key = %(group)s::text)
    AND (%(since)s::timestamptz IS NULL OR found_at >= %(since)s::timestamptz)
    AND (NOT %(open)s OR status <> 'repaired')
"""

_DRIFT_COLUMNS = "id, entity, group_key, key, kind, status, external_id, sample, found_at, last_seen_at, repaired_at"

LIST_DRIFT = f"""
SELECT {_DRIFT_COLUMNS} FROM sync.drift WHERE id > %(after)s AND {_CHOSEN_DRIFT} ORDER BY id LIMIT %(most)s
"""

# Only what is shown is read, from the end of the primary key.
LIST_NEWEST_DRIFT = f"SELECT {_DRIFT_COLUMNS} FROM sync.drift WHERE {_CHOSEN_DRIFT} ORDER BY id DESC LIMIT %(most)s"

SELECT_DRIFT_SPAN = f"SELECT min(found_at) AS first, max(found_at) AS last FROM sync.drift WHERE {_CHOSEN_DRIFT}"

COUNT_DRIFT_OVER_TIME = f"""
SELECT date_bin(%(width)s, found_at, '2000-01-03T00:00:00Z') AS at, kind, count(*) AS n
FROM sync.drift WHERE {_CHOSEN_DRIFT} GROUP BY 1, 2 ORDER BY 1, 2
"""

SELECT_SOURCE_CHECK_GROUP = """
SELECT sync.clock() AS now, EXISTS (
    SELECT FROM sync.groups WHERE entity = %(entity)s AND group_key = %(group)s AND first_completed_at IS NOT NULL
) AS synced, (SELECT contents_checked_to FROM sync.groups
              WHERE entity = %(entity)s AND group_key = %(group)s) AS contents_checked_to
"""

# What the archive has of these records, and of all in the group.
SELECT_ARCHIVED_PARTS = """
SELECT p.key, p.part, p.epoch, p.version, p.deleted, p.content_hash, p.changed_at >= %(since)s AS moved,
       r.group_key = %(group)s AND NOT r.deleted AS of_group
FROM sync.parts p JOIN sync.records r USING (entity, key)
WHERE p.entity = %(entity)s
  AND (p.key = ANY(%(keys)s) OR p.key IN (SELECT key FROM sync.records
                                          WHERE entity = %(entity)s AND group_key = %(group)s AND NOT deleted))
"""

# Those for which a change event is on its way. A dead one is not: what it was to bring is found again, and tried again.
SELECT_KEYS_WITH_ACTIVE_EVENTS = """
SELECT DISTINCT source, key FROM sync.events
WHERE entity = %(entity)s AND key = ANY(%(keys)s) AND state <> 'dead'
"""

# New findings only.
INSERT_LOST_CHANGES = """
INSERT INTO sync.lost_notifications (entity, part, key, kind, version, group_key)
SELECT %(entity)s, v.part, v.key, v.kind, v.version, %(group)s
FROM unnest(%(part)s::text[], %(key)s::text[], %(kind)s::text[], %(version)s::bigint[])
     AS v (part, key, kind, version)
ORDER BY 2, 3
ON CONFLICT DO NOTHING RETURNING part, key
"""

# The archive has caught up with them, or the source says otherwise by now.
DELETE_LOST_CHANGES = """
DELETE FROM sync.lost_notifications l
WHERE entity = %(entity)s AND group_key = %(group)s AND NOT EXISTS (
    SELECT FROM unnest(%(part)s::text[], %(key)s::text[], %(kind)s::text[], %(version)s::bigint[])
         AS v (part, key, kind, version)
    WHERE (v.part, v.key, v.kind, v.version) = (l.part, l.key, l.kind, l.version))
"""

ADD_LOST_CHANGES = """
INSERT INTO sync.lost_tallies (entity, source, day, n)
SELECT %(entity)s, v.source, (sync.clock() AT TIME ZONE 'UTC')::date, count(*)
FROM unnest(%(source)s::text[]) AS v (source) GROUP BY v.source ORDER BY v.source
ON CONFLICT (entity, source, day) DO UPDATE SET n = sync.lost_tallies.n + excluded.n
"""

COUNT_OPEN_LOST_CHANGES = (
    "SELECT count(*) AS n FROM sync.lost_notifications WHERE entity = %(entity)s AND group_key = %(group)s"
)

LIST_PARTS_WITH_LOST_CHANGES = "SELECT DISTINCT part FROM sync.lost_notifications WHERE entity = %(entity)s"

# Where a repair has begun, the group is looked at again at once.
INSERT_SOURCE_CHECK = """
UPDATE sync.groups SET sources_checked_at = CASE WHEN %(again)s THEN NULL ELSE sync.clock() END,
    contents_checked_to = %(checked_to)s
WHERE entity = %(entity)s AND group_key = %(group)s
"""

LIST_GROUPS_DUE_FOR_SOURCE_CHECK = """
SELECT group_key FROM sync.groups
WHERE entity = %(entity)s AND first_completed_at IS NOT NULL
  AND (sources_checked_at IS NULL OR sources_checked_at < sync.clock() - make_interval(secs => %(every)s))
ORDER BY sources_checked_at NULLS FIRST, group_key LIMIT %(most)s
"""

SUM_LOST_CHANGES = """
SELECT entity, source, day, n FROM sync.lost_tallies
WHERE day > (sync.clock() AT TIME ZONE 'UTC')::date - %(days)s ORDER BY day DESC, entity, source
"""
