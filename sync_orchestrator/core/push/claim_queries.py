"""The queries that claim records for pushes, and give them back. Parameters are bound; batches come as arrays."""

from sync_orchestrator.core.db.fragments import HOLDER_GONE_SECONDS, claim_ends_at, claim_is_free

# Out-of-step records that are due and that nobody pushes, live changes first.
_DUE_RECORDS = f"""
due AS (
    SELECT entity, key, 0 AS turn FROM sync.records
    WHERE out_of_sync AND stopped IS NULL AND due_at <= sync.clock() AND entity = ANY(%(entities)s)
      AND {claim_is_free()}
    ORDER BY priority, due_at LIMIT %(most)s
    FOR UPDATE SKIP LOCKED
)"""

# The same of one business group, where a record that leaves it is pushed, too.
_DUE_RECORDS_OF_GROUP = f"""
staying AS (
    SELECT entity, key FROM sync.records
    WHERE out_of_sync AND stopped IS NULL AND due_at <= sync.clock() AND entity = %(entity)s AND group_key = %(group)s
      AND {claim_is_free()}
    ORDER BY priority, due_at LIMIT %(most)s
    FOR UPDATE SKIP LOCKED
), leaving AS (
    SELECT entity, key FROM sync.records
    WHERE out_of_sync AND stopped IS NULL AND due_at <= sync.clock() AND entity = %(entity)s
      AND applied_group = %(group)s AND applied_group IS DISTINCT FROM group_key
      AND {claim_is_free()}
    ORDER BY priority, due_at LIMIT %(most)s
    FOR UPDATE SKIP LOCKED
), due AS (SELECT entity, key, 0 AS turn FROM staying UNION ALL SELECT entity, key, 0 FROM leaving)"""

# The same in turn: some business groups that have work, beginning behind the one that was last, and of each the oldest
# of either priority. Where more is due than can be pushed, no group and no priority waits for the end of another.
_PLACE = """
    SELECT entity, group_key FROM sync.records
    WHERE out_of_sync AND stopped IS NULL AND group_key IS NOT NULL AND entity = ANY(%(entities)s)"""

_OF_PLACE = """
        SELECT * FROM (
            SELECT entity, key FROM sync.records
            WHERE out_of_sync AND stopped IS NULL AND due_at <= sync.clock() AND entity = p.entity
              AND group_key = p.group_key AND priority = {priority} AND {free}
            ORDER BY due_at LIMIT (SELECT greatest(1, %(most)s / (2 * count(*))) FROM places)
            FOR UPDATE SKIP LOCKED) of_priority_{priority}"""

_DUE_RECORDS_IN_TURN = f"""
RECURSIVE places AS (
    SELECT first.*, 1 AS turn FROM ({_PLACE} AND (entity, group_key) > (%(after_entity)s, %(after_group)s)
    ORDER BY entity, group_key LIMIT 1) first
    UNION ALL
    SELECT following.*, p.turn + 1 FROM places p, LATERAL ({_PLACE} AND (entity, group_key) > (p.entity, p.group_key)
    ORDER BY entity, group_key LIMIT 1) following
    WHERE p.turn < %(places)s
), due AS (
    SELECT chosen.*, p.turn
    FROM places p,
         LATERAL ({_OF_PLACE.format(priority=0, free=claim_is_free())}
         UNION ALL {_OF_PLACE.format(priority=1, free=claim_is_free())}) chosen
)"""

# While the breaker is open one record is pushed for real, due or not, rather one that has not failed.
_ONE_RECORD = f"""
due AS (
    SELECT entity, key, 0 AS turn FROM sync.records
    WHERE out_of_sync AND stopped IS NULL AND entity = ANY(%(entities)s)
      AND (%(group)s::text IS NULL OR group_key = %(group)s::text OR applied_group = %(group)s::text)
      AND {claim_is_free()}
    ORDER BY EXISTS (SELECT FROM sync.breaker_failures b WHERE b.entity = records.entity AND b.key = records.key),
             random() LIMIT 1
    FOR UPDATE SKIP LOCKED
)"""

# The claim is the announced intent: it is committed before the call, with the place that it goes to. A lease that ran
# out, or whose holder is gone, means a call of unknown outcome, which can land for a while after it was given up.
_GIVEN_UP_AT = f"greatest(sync.clock(), {claim_ends_at('r.', '%(gives_up)s')})"

_CLAIM_CHOSEN = f"""
UPDATE sync.records r
SET lease_token = nextval('sync.read_sequence'), lease_until = sync.clock() + make_interval(secs => %(lease)s),
    lease_holder = %(holder)s, intent_at = sync.clock(),
    outcome_unknown_groups = ARRAY(
        SELECT DISTINCT g FROM unnest(r.group_key || CASE
            WHEN r.lease_token IS NULL AND r.outcome_unknown_until IS NULL THEN '{{}}'
            ELSE r.outcome_unknown_groups END) AS g
        WHERE g IS NOT NULL ORDER BY g),
    outcome_unknown_until = CASE WHEN r.lease_token IS NULL THEN r.outcome_unknown_until
                           ELSE {_GIVEN_UP_AT} + make_interval(secs => %(in_flight_window)s) END
FROM due WHERE r.entity = due.entity AND r.key = due.key
RETURNING r.entity, r.key, r.group_key, r.revision, r.deleted, r.applied_revision, r.applied_digest, r.applied_group,
          r.external_id, r.attempts, r.rejected_digest, r.lease_token, r.first_applied_at IS NOT NULL AS ever_applied,
          r.outcome_unknown_until, r.outcome_unknown_groups, r.late_creates, r.priority, r.due_at,
          r.refusal_retried, due.turn,
          (SELECT trace FROM (SELECT e.seq, e.trace FROM sync.events e
                              WHERE e.entity = r.entity AND e.key = r.key AND e.trace IS NOT NULL OFFSET 0) told
           ORDER BY seq DESC LIMIT 1) AS trace,
          coalesce(EXTRACT(epoch FROM r.applied_at) * 1e6, 0)::bigint AS acknowledged_at,
          EXTRACT(epoch FROM sync.clock() - r.applied_at)::float8 AS acknowledged_ago,
          coalesce(EXTRACT(epoch FROM r.refused_at) * 1e6, 0)::bigint AS refused_at,
          coalesce(EXTRACT(epoch FROM sync.clock() - r.waiting_since), 0)::float8 AS waiting_for,
          EXTRACT(epoch FROM r.outcome_unknown_until - sync.clock())::float8 AS outcome_unknown_for
"""

CLAIM_DUE_RECORDS = f"WITH {_DUE_RECORDS} {_CLAIM_CHOSEN}"

CLAIM_DUE_RECORDS_OF_GROUP = f"WITH {_DUE_RECORDS_OF_GROUP} {_CLAIM_CHOSEN}"

CLAIM_DUE_RECORDS_IN_TURN = f"WITH {_DUE_RECORDS_IN_TURN} {_CLAIM_CHOSEN}"

CLAIM_ONE_RECORD = f"WITH {_ONE_RECORD} {_CLAIM_CHOSEN}"

SELECT_PARTS = """
SELECT p.entity, p.key, p.part, p.data FROM sync.parts p
JOIN unnest(%(entity)s::text[], %(key)s::text[]) AS k (entity, key) ON p.entity = k.entity AND p.key = k.key
"""

# Claimed but never sent.
RELEASE_UNSENT_CLAIMS = """
WITH mine AS (
    SELECT r.entity, r.key FROM sync.records r
    JOIN unnest(%(entity)s::text[], %(key)s::text[], %(token)s::bigint[]) AS v (entity, key, token)
         ON r.entity = v.entity AND r.key = v.key AND r.lease_token = v.token
    ORDER BY r.entity, r.key FOR UPDATE OF r
)
UPDATE sync.records r SET lease_token = NULL, lease_until = NULL, lease_holder = NULL, intent_at = NULL
FROM mine WHERE r.entity = mine.entity AND r.key = mine.key
"""

# Seconds until the next record is due for a push; null where none is.
_FREE_AT = (
    "CASE WHEN lease_until IS NULL THEN due_at "
    f"ELSE greatest(due_at, {claim_ends_at('records.', HOLDER_GONE_SECONDS)}) END"
)

_SECONDS_UNTIL_FREE = f"EXTRACT(epoch FROM min({_FREE_AT}) - sync.clock())::float8"

SECONDS_UNTIL_NEXT_PUSH = f"""
SELECT {_SECONDS_UNTIL_FREE} AS seconds FROM sync.records
WHERE out_of_sync AND stopped IS NULL AND entity = ANY(%(entities)s)
"""

SECONDS_UNTIL_NEXT_PUSH_OF_GROUP = f"""
SELECT least(
    (SELECT {_SECONDS_UNTIL_FREE} FROM sync.records
     WHERE out_of_sync AND stopped IS NULL AND entity = %(entity)s AND group_key = %(group)s),
    (SELECT {_SECONDS_UNTIL_FREE} FROM sync.records
     WHERE out_of_sync AND stopped IS NULL AND entity = %(entity)s AND applied_group = %(group)s
       AND applied_group IS DISTINCT FROM group_key)) AS seconds
"""
