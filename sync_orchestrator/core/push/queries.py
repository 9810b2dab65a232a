"""The queries of ``core/push/`` about the ends of pushes. Parameters are bound; batches come as arrays."""

from sync_orchestrator.core.db.fragments import claim_is_free
from sync_orchestrator.core.push.absent_records import IS_ABSENT

# Acknowledged. Only the lease's token may say so; an older call that can still land keeps the outcome unknown.
ACKNOWLEDGE_PUSHES = """
UPDATE sync.records r
SET applied_revision = v.revision,
    prior_digest = CASE WHEN r.applied_digest IS DISTINCT FROM v.digest THEN r.applied_digest
                        ELSE r.prior_digest END,
    applied_digest = v.digest, applied_group = v.applied_group, external_id = v.external_id,
    applied_at = sync.clock(),
    first_applied_at = coalesce(r.first_applied_at, CASE WHEN v.digest IS NOT NULL THEN sync.clock() END),
    attempts = 0, error = NULL, rejected_digest = NULL, refusal_retried = false, priority = 0, waiting_since = NULL,
    lease_token = NULL, lease_until = NULL, lease_holder = NULL, intent_at = NULL,
    outcome_unknown_until = CASE WHEN v.settles AND r.outcome_unknown_until IS NOT DISTINCT FROM v.outcome_unknown_until
                            AND r.late_creates = v.late_creates THEN NULL ELSE r.outcome_unknown_until END,
    late_creates = CASE WHEN r.late_creates = v.late_creates THEN '[]' ELSE r.late_creates END,
    due_at = CASE WHEN r.revision <> v.revision THEN sync.clock()
                  ELSE greatest(sync.clock() + make_interval(secs => v.look_again),
                                coalesce(r.outcome_unknown_until, sync.clock())) END
FROM unnest(%(entity)s::text[], %(key)s::text[], %(token)s::bigint[], %(revision)s::bigint[], %(digest)s::bytea[],
            %(applied_group)s::text[], %(external_id)s::text[], %(settles)s::boolean[],
            %(outcome_unknown_until)s::timestamptz[], %(late_creates)s::jsonb[], %(look_again)s::float8[])
     AS v (entity, key, token, revision, digest, applied_group, external_id, settles,
            outcome_unknown_until, late_creates,
           look_again)
WHERE r.entity = v.entity AND r.key = v.key AND r.lease_token = v.token
RETURNING r.entity, r.key, r.changed_at
"""

# Not acknowledged: due again later, or on hold. What may have landed leaves the outcome unknown. A revision that
# came meanwhile owes nothing to this failure. Cleared: what was acknowledged is not there any more.
FAIL_PUSHES = """
UPDATE sync.records r
SET attempts = CASE WHEN r.revision = v.revision THEN v.attempts ELSE 0 END,
    error = v.error,
    waiting_since = CASE WHEN v.waits THEN coalesce(r.waiting_since, sync.clock()) ELSE r.waiting_since END,
    stopped = CASE WHEN r.revision = v.revision THEN v.stopped END,
    stopped_at = CASE WHEN r.revision = v.revision AND v.stopped IS NOT NULL THEN sync.clock() END,
    refused_at = CASE WHEN v.refused THEN sync.clock() ELSE r.refused_at END,
    rejected_digest = CASE WHEN r.revision = v.revision AND v.stopped IS NOT NULL THEN v.rejected_digest
                           ELSE coalesce(v.rejected_digest, r.rejected_digest) END,
    due_at = CASE WHEN r.revision = v.revision THEN sync.clock() + make_interval(secs => v.wait) ELSE sync.clock() END,
    external_id = CASE WHEN v.cleared THEN v.external_id ELSE coalesce(v.external_id, r.external_id) END,
    applied_digest = CASE WHEN v.cleared THEN NULL ELSE r.applied_digest END,
    applied_group = CASE WHEN v.cleared THEN NULL ELSE r.applied_group END,
    lease_token = NULL, lease_until = NULL, lease_holder = NULL, intent_at = NULL,
    outcome_unknown_until = CASE WHEN v.unknown THEN greatest(
            coalesce(r.outcome_unknown_until, '-infinity'), sync.clock() + make_interval(secs => %(in_flight_window)s))
        WHEN v.settled AND r.outcome_unknown_until IS NOT DISTINCT FROM v.outcome_unknown_until THEN NULL
        ELSE r.outcome_unknown_until END
FROM unnest(%(entity)s::text[], %(key)s::text[], %(token)s::bigint[], %(revision)s::bigint[], %(attempts)s::int[],
            %(wait)s::float8[], %(stopped)s::text[], %(error)s::text[], %(rejected_digest)s::bytea[],
            %(external_id)s::text[], %(unknown)s::boolean[], %(waits)s::boolean[], %(cleared)s::boolean[],
            %(refused)s::boolean[], %(settled)s::boolean[], %(outcome_unknown_until)s::timestamptz[])
     AS v (entity, key, token, revision, attempts, wait, stopped, error, rejected_digest, external_id, unknown, waits,
           cleared, refused, settled, outcome_unknown_until)
WHERE r.entity = v.entity AND r.key = v.key AND r.lease_token = v.token
RETURNING r.entity, r.key, r.stopped, r.attempts, r.revision = v.revision AS same_revision
"""

# A call that came too late: somebody else holds the record, and it may have overwritten what they wrote.
MARK_OUTCOME_UNKNOWN = """
UPDATE sync.records r
SET outcome_unknown_until = greatest(coalesce(r.outcome_unknown_until, '-infinity'),
                               sync.clock() + make_interval(secs => %(in_flight_window)s)),
    due_at = CASE WHEN r.out_of_sync THEN r.due_at ELSE sync.clock() + make_interval(secs => %(in_flight_window)s) END
FROM unnest(%(entity)s::text[], %(key)s::text[]) AS v (entity, key)
WHERE r.entity = v.entity AND r.key = v.key
"""

# Where it went, and what it made: this is the record where nobody has made another and nobody is about to, and in any
# case it is not forgotten.
REMEMBER_LATE_CREATE = """
UPDATE sync.records r
SET external_id = CASE WHEN r.lease_token IS NULL AND r.group_key IS NOT DISTINCT FROM v.group_key
                       THEN coalesce(r.external_id, v.external_id) ELSE r.external_id END,
    outcome_unknown_groups = ARRAY(SELECT DISTINCT g FROM unnest(r.outcome_unknown_groups || v.group_key) AS g
                             WHERE g IS NOT NULL ORDER BY g),
    late_creates = CASE WHEN v.external_id IS NULL THEN r.late_creates
                        ELSE r.late_creates || jsonb_build_array(jsonb_build_array(v.group_key, v.external_id)) END
FROM unnest(%(entity)s::text[], %(key)s::text[], %(group)s::text[], %(external_id)s::text[])
     AS v (entity, key, group_key, external_id)
WHERE r.entity = v.entity AND r.key = v.key
RETURNING r.entity, r.key, r.external_id, r.lease_token
"""

INSERT_ATTEMPTS = """
WITH kept AS (
    INSERT INTO sync.push_attempts (entity, key, revision, step, outcome, status, detail)
    SELECT * FROM unnest(%(entity)s::text[], %(key)s::text[], %(revision)s::bigint[], %(step)s::text[],
                         %(outcome)s::text[], %(status)s::int[], %(detail)s::text[])
    RETURNING entity, outcome
)
INSERT INTO sync.push_tallies (entity, outcome, slot, n)
SELECT entity, outcome, pg_backend_pid() %% 16, count(*) FROM kept GROUP BY 1, 2 ORDER BY 1, 2
ON CONFLICT (entity, outcome, slot) DO UPDATE SET n = sync.push_tallies.n + excluded.n
"""

LIST_ATTEMPTS_OF_RECORD = """
SELECT at, revision, step, outcome, status, detail FROM sync.push_attempts
WHERE entity = %(entity)s AND key = %(key)s ORDER BY at
"""

# An operator has it tried again. The error of a discarded record is the reason of the discard.
RELEASE_FROM_HOLD = """
UPDATE sync.records
SET stopped = NULL, stopped_at = NULL, attempts = 0, due_at = sync.clock(), rejected_digest = NULL,
    refusal_retried = false, error = CASE WHEN stopped = 'discarded' THEN NULL ELSE error END
WHERE entity = %(entity)s AND key = ANY(%(keys)s) AND out_of_sync
"""

# A person has it pushed once more, in sync or not: what the third party has by now is looked up first.
PUSH_AGAIN = f"""
UPDATE sync.records
SET applied_revision = 0, outcome_unknown_until = coalesce(outcome_unknown_until, sync.clock()), priority = 0
WHERE entity = %(entity)s AND key = %(key)s AND ready AND {claim_is_free()}
RETURNING group_key, applied_group
"""

# What was refused is tried again, too (rule 26): a full sync is when what it depends on may have come. A record that
# was not there is looked for once more, so it is no longer known to be absent.
RELEASE_GROUP_FROM_HOLD = f"""
UPDATE sync.records SET stopped = NULL, stopped_at = NULL, attempts = 0, due_at = sync.clock(), rejected_digest = NULL,
    refusal_retried = false, error = CASE WHEN {IS_ABSENT} THEN NULL ELSE error END
WHERE entity = %(entity)s
  AND (group_key = %(group)s OR (applied_group = %(group)s AND applied_group IS DISTINCT FROM group_key))
  AND out_of_sync AND (stopped = 'dead' OR stopped IS NULL AND (attempts > 0 OR waiting_since IS NOT NULL))
  AND {claim_is_free()}
RETURNING key
"""

# Whether other records of a third party were under way when one was refused, on which the refusal may depend (rule 26).
COUNT_OTHERS_IN_FLIGHT = """
SELECT EXISTS (SELECT FROM sync.records
               WHERE out_of_sync AND stopped IS NULL AND entity = ANY(%(entities)s)
                 AND (entity, key) NOT IN (SELECT * FROM unnest(%(entity)s::text[], %(key)s::text[]))) AS found
"""

# Refused records are tried once more when the last of those that were under way at the time was acknowledged.
RETRY_REFUSED = """
WITH chosen AS (
    SELECT entity, key FROM sync.records
    WHERE entity = ANY(%(entities)s) AND out_of_sync AND stopped IS NOT NULL AND stopped = 'dead'
      AND refused_at >= %(since)s AND NOT refusal_retried
      AND NOT EXISTS (SELECT FROM sync.records o
                      WHERE o.out_of_sync AND o.stopped IS NULL AND o.entity = ANY(%(entities)s)
                        AND o.changed_at <= records.refused_at)
    ORDER BY entity, key FOR UPDATE SKIP LOCKED
)
UPDATE sync.records r
SET stopped = NULL, stopped_at = NULL, attempts = 0, due_at = sync.clock(), rejected_digest = NULL,
    refusal_retried = true
FROM chosen WHERE r.entity = chosen.entity AND r.key = chosen.key
RETURNING r.entity, r.key
"""

# The breaker opened: the failures that led to it cost nothing.
RELEASE_RECORDS_OF_SYSTEM = """
UPDATE sync.records r
SET attempts = b.attempts_before, due_at = sync.clock(), rejected_digest = NULL,
    stopped = CASE WHEN r.stopped = 'on_hold' THEN r.stopped END,
    stopped_at = CASE WHEN r.stopped = 'on_hold' THEN r.stopped_at END
FROM sync.breaker_failures b
WHERE b.system = %(system)s AND r.entity = b.entity AND r.key = b.key AND r.stopped IS DISTINCT FROM 'discarded'
"""
