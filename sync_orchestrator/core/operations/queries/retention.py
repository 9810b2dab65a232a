"""The statements that forget what is over. Each deletes some thousand rows at most: no lock is held for long."""

# Partitions by month that ended before a time.
LIST_OLD_PARTITIONS = """
SELECT c.relname AS name FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace n ON n.oid = p.relnamespace
WHERE n.nspname = 'sync' AND p.relname = %(parent)s AND c.relname ~ ('^' || %(parent)s || '_[0-9]{4}_[0-9]{2}$')
  AND to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month' <= sync.clock() - make_interval(days => %(days)s)
ORDER BY 1
"""

_BATCH = """
DELETE FROM sync.{table} WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM sync.{table} t WHERE {over} LIMIT %(most)s))
RETURNING 1 AS one
"""

_IS_OLD = "{column} < sync.clock() - make_interval(days => %(days)s)"

# Finished events and calls that lie in no month's partition.
DELETE_HISTORY = _BATCH.format(table="event_history_default", over=_IS_OLD.format(column="finished_at"))

DELETE_ATTEMPTS = _BATCH.format(table="push_attempts_default", over=_IS_OLD.format(column="at"))

# An event that is active still keeps its id, however long it waits.
DELETE_EVENT_IDS = _BATCH.format(
    table="event_ids",
    over=_IS_OLD.format(column="received_at")
    + """
    AND NOT EXISTS (SELECT FROM sync.events e WHERE e.source = t.source AND e.event_id = t.event_id)""",
)

# The last word on a group stays.
DELETE_VALIDATIONS = _BATCH.format(
    table="validations",
    over=_IS_OLD.format(column="at")
    + """
    AND EXISTS (SELECT FROM sync.validations v
                WHERE v.entity = t.entity AND v.group_key = t.group_key AND v.at > t.at)""",
)

DELETE_DRIFT = _BATCH.format(table="drift", over="status = 'repaired' AND " + _IS_OLD.format(column="repaired_at"))

DELETE_ALERTS = _BATCH.format(table="alerts", over=_IS_OLD.format(column="resolved_at"))
