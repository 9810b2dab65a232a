"""The queries of the round of each minute: what waits for too long, and what was not validated or heard of."""

from __future__ import annotations

from sync_orchestrator.core.push.absent_records import IS_ABSENT

# Records that wait so long for something that they refer to, or for being made at the third party.
COUNT_LONG_REFERRING = f"""
SELECT entity, is_absent, array_agg(key) AS keys FROM (
    SELECT entity, key, {IS_ABSENT} AS is_absent FROM sync.records
    WHERE out_of_sync AND stopped IS NULL
      AND waiting_since < sync.clock() - make_interval(secs => %(after)s) LIMIT 1000) w
GROUP BY entity, is_absent
"""


# Events that wait for their record, or for a clock, longer than anybody would think normal.
LIST_LONG_WAITING = """
SELECT entity, array_agg(DISTINCT key) AS keys FROM (
    SELECT entity, key FROM sync.events
    WHERE state = 'waiting' AND revision IS NULL
      AND received_at < sync.clock() - make_interval(secs => %(after)s) LIMIT 1000) w
GROUP BY entity
"""


# Groups that were seen in sync or in drift too long ago, unless their third party is paused by a person or suspended,
# which has an alert of its own.
LIST_NOT_VALIDATED = """
SELECT count(*) AS n, EXTRACT(epoch FROM sync.clock() - min(since))::float8 AS seconds,
       coalesce((array_agg(group_key ORDER BY since))[1:10], '{}') AS groups
FROM (
    SELECT g.group_key, greatest(g.first_completed_at, (
        SELECT max(v.at) FROM sync.validations v
        WHERE v.entity = g.entity AND v.group_key = g.group_key AND v.verdict <> 'not_validated')) AS since
    FROM sync.groups g WHERE g.entity = %(entity)s AND g.first_completed_at IS NOT NULL) seen
WHERE since < sync.clock() - make_interval(secs => %(after)s)
  AND NOT EXISTS (SELECT FROM sync.systems WHERE name = %(system)s AND (paused OR suspended_at IS NOT NULL))
"""


SECONDS_SINCE_HEARTBEAT = """
SELECT EXTRACT(epoch FROM sync.clock() - max(at))::float8 AS seconds FROM sync.heartbeats WHERE name = 'sensor'
"""
