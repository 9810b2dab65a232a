"""The statements of dead records: refused, out of attempts, on hold or discarded; and of changes that died before."""

# A record belongs to the group where it should be, and to the one where the third party has it still. A cause is
# looked for in the error, and among the alerts that name the record.
_CAUSE = """
(%(cause)s::text IS NULL OR {row}.error ILIKE %(cause)s::text
 OR EXISTS (SELECT FROM sync.alert_records t
            WHERE t.kind IN ('dead', 'on_hold') AND t.entity = {row}.entity AND t.key = {row}.key
              AND t.cause = ANY(ARRAY(SELECT a.cause FROM sync.alerts a
                                      WHERE a.kind IN ('dead', 'on_hold') AND a.resolved_at IS NULL
                                        AND a.cause ILIKE %(cause)s::text))))"""

_DEAD_RECORDS = f"""
sync.records r
WHERE r.out_of_sync AND r.stopped IS NOT NULL AND r.stopped = ANY(%(states)s::text[])
  AND (%(entity)s::text IS NULL OR r.entity = %(entity)s::text)
  AND (%(keys)s::text[] IS NULL OR r.key = ANY(%(keys)s::text[]))
  AND (%(group)s::text IS NULL OR r.group_key = %(group)s::text
       OR (r.applied_group = %(group)s::text AND r.applied_group IS DISTINCT FROM r.group_key))
  AND {_CAUSE.format(row="r")}"""

# Changes that died before the archive had them: nothing of the record shows that they are missing.
_DEAD_EVENTS = f"""
sync.events e LEFT JOIN sync.records r ON r.entity = e.entity AND r.key = e.key
WHERE e.state = 'dead' AND e.revision IS NULL AND 'dead' = ANY(%(states)s::text[])
  AND (%(entity)s::text IS NULL OR e.entity = %(entity)s::text)
  AND (%(keys)s::text[] IS NULL OR e.key = ANY(%(keys)s::text[]))
  AND (%(group)s::text IS NULL OR e.group_key = %(group)s::text OR r.group_key = %(group)s::text
       OR r.applied_group = %(group)s::text)
  AND {_CAUSE.format(row="e")}"""

LIST_DEAD = f"""
SELECT found.*, coalesce(found.event, (
    SELECT max(e.seq) FROM sync.events e
    WHERE e.entity = found.entity AND e.key = found.key AND e.revision IS NOT NULL AND found.kind = 'record')) AS seq
FROM (
    SELECT r.entity, r.key, coalesce(r.group_key, r.applied_group) AS group_key, 'record' AS kind, r.stopped AS state,
           r.error, r.stopped_at AS since, r.attempts, NULL::bigint AS event
    FROM {_DEAD_RECORDS}
    UNION ALL
    SELECT e.entity, e.key, coalesce(e.group_key, r.group_key, r.applied_group), 'event', 'dead', e.error,
           e.received_at, e.attempts, e.seq
    FROM {_DEAD_EVENTS}
    ORDER BY since, entity, key LIMIT %(limit)s) found
ORDER BY since, entity, key
"""

# In key order, as set-wise writes lock them.
LOCK_DEAD_RECORDS = f"SELECT r.key FROM {_DEAD_RECORDS} ORDER BY r.entity, r.key FOR UPDATE OF r"

LOCK_DEAD_EVENTS = f"SELECT e.seq, e.key FROM {_DEAD_EVENTS} ORDER BY e.seq FOR UPDATE OF e"

SELECT_ARCHIVED_EVENTS = """
SELECT seq FROM sync.events
WHERE entity = %(entity)s AND key = ANY(%(keys)s) AND state = 'dead' AND revision IS NOT NULL ORDER BY seq FOR UPDATE
"""

# An operator has seen that the third party has no such record: whatever call of unknown outcome there was, did nothing.
CONFIRM_ABSENT = """
UPDATE sync.records
SET outcome_unknown_until = NULL, outcome_unknown_groups = '{}', late_creates = '[]', applied_revision = 0
WHERE entity = %(entity)s AND key = ANY(%(keys)s) AND stopped = 'on_hold' AND external_id IS NULL
"""

# Out of the push until a new revision arrives. A full sync tries nothing again that has spent no attempts.
DISCARD_RECORDS = """
UPDATE sync.records
SET stopped = 'discarded', stopped_at = sync.clock(), error = %(reason)s, attempts = 0, waiting_since = NULL
WHERE entity = %(entity)s AND key = ANY(%(keys)s) AND out_of_sync AND stopped IN ('dead', 'on_hold')
RETURNING key
"""

# The last dead event of these records was discarded: so are they.
DISCARD_RECORDS_WITH_EVENTS = f"""
{DISCARD_RECORDS.rpartition("RETURNING")[0].rstrip()}
  AND NOT EXISTS (SELECT FROM sync.events e WHERE e.entity = records.entity AND e.key = records.key
                  AND e.state = 'dead')
RETURNING key
"""

# Alerts no longer name those of these keys of which nothing is dead any more.
RESOLVE_ALERTS_OF_RECORDS = """
DELETE FROM sync.alert_records t
WHERE t.entity = %(entity)s AND t.key = ANY(%(keys)s) AND t.kind IN ('dead', 'on_hold')
  AND NOT EXISTS (SELECT FROM sync.events e WHERE e.entity = t.entity AND e.key = t.key AND e.state = 'dead')
  AND NOT EXISTS (SELECT FROM sync.records r WHERE r.entity = t.entity AND r.key = t.key AND r.out_of_sync
                  AND r.stopped IN ('dead', 'on_hold'))
"""

# Dead changes of an entity, with all groups that they may be of.
_EVENTS_DEAD_BEFORE_ARCHIVE = """
SELECT e.key, ARRAY[e.group_key, r.group_key, r.applied_group] AS groups
FROM sync.events e LEFT JOIN sync.records r ON r.entity = e.entity AND r.key = e.key
WHERE e.state = 'dead' AND e.revision IS NULL AND e.entity = %(entity)s
"""

# Those that no validation of a business group looks at, since none is known to be theirs.
_WITHOUT_GROUP = """
SELECT key FROM sync.records
WHERE entity = %(entity)s AND group_key IS NULL AND applied_group IS NULL AND out_of_sync AND stopped IS NOT NULL
  AND stopped <> 'discarded'
UNION
SELECT key FROM dead_events
WHERE NOT EXISTS (SELECT FROM sync.groups g WHERE g.entity = %(entity)s AND g.group_key = ANY(groups))
"""

# A key counts once, however many of its changes died.
COUNT_DEAD_OF_GROUP = f"""
WITH dead_events AS ({_EVENTS_DEAD_BEFORE_ARCHIVE}), stopped AS (
    SELECT key, stopped AS state FROM sync.records
    WHERE entity = %(entity)s AND group_key = %(group)s AND out_of_sync AND stopped IS NOT NULL
    UNION ALL
    SELECT key, stopped FROM sync.records
    WHERE entity = %(entity)s AND applied_group = %(group)s AND applied_group IS DISTINCT FROM group_key
      AND out_of_sync AND stopped IS NOT NULL
)
SELECT (SELECT count(*) FROM (SELECT key FROM stopped WHERE state <> 'discarded'
                              UNION SELECT key FROM dead_events WHERE %(group)s = ANY(groups)) keys) AS dead,
       (SELECT count(*) FROM stopped WHERE state = 'on_hold') AS on_hold,
       (SELECT count(*) FROM stopped WHERE state = 'discarded') AS discarded,
       (SELECT count(*) FROM stopped) AS records,
       (SELECT count(*) FROM ({_WITHOUT_GROUP}) keys) AS without_group
"""

COUNT_DEAD_OF_ENTITY = f"""
WITH dead_events AS ({_EVENTS_DEAD_BEFORE_ARCHIVE}), keys AS (
    SELECT key FROM sync.records
    WHERE entity = %(entity)s AND out_of_sync AND stopped IS NOT NULL AND stopped <> 'discarded'
    UNION SELECT key FROM dead_events
)
SELECT (SELECT count(*) FROM keys) AS dead, (SELECT min(key) FROM keys) AS example,
       (SELECT count(*) FROM ({_WITHOUT_GROUP}) keys) AS without_group
"""

_DEAD_EVERYWHERE = """
SELECT entity, key, 'record' AS kind, stopped AS state, error, stopped_at AS since FROM sync.records
WHERE out_of_sync AND stopped IS NOT NULL
UNION ALL
SELECT entity, key, 'event', 'dead', error, received_at FROM sync.events WHERE state = 'dead' AND revision IS NULL
"""

# What is dead by its error, the most frequent first; the causes are made of it (``core/failure_causes.py``).
COUNT_DEAD_BY_ERROR = f"""
SELECT entity, state, error, count(*) AS n, min(since) AS since, min(key) AS key,
       (sum(count(*)) OVER (PARTITION BY entity, state))::bigint AS total
FROM ({_DEAD_EVERYWHERE}) found
GROUP BY entity, state, error ORDER BY count(*) DESC, entity, state, error LIMIT %(limit)s
"""

COUNT_DEAD = f"""
SELECT entity, CASE WHEN kind = 'event' THEN kind ELSE state END AS state, count(*) AS n
FROM ({_DEAD_EVERYWHERE}) found GROUP BY 1, 2
"""
