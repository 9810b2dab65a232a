"""The queries of ``core/two_way/``. Parameters are bound; batches come as arrays."""

from sync_orchestrator.core.db.fragments import OF_KEYS

# Records as the merge of shared fields sees them, held until the transaction ends.
LOCK_RECORDS = f"""
SELECT key, group_key, revision, deleted, ready, applied_revision, applied_digest, lease_token,
       outcome_unknown_until IS NOT NULL AS is_outcome_unknown, external_id, stopped
FROM sync.records r JOIN {OF_KEYS} k USING (entity, key) WHERE revision > 0 ORDER BY key FOR UPDATE OF r
"""

SELECT_PARTS = f"""
SELECT key, part, version, read_sequence, EXTRACT(epoch FROM changed_at)::float8 AS archived_at, data
FROM sync.parts JOIN {OF_KEYS} k USING (entity, key)
"""

SELECT_LINKS_OF_OURS = """
SELECT key, theirs_key, ended, fields, made_by FROM sync.links
WHERE entity = %(entity)s AND key = ANY(%(keys)s) ORDER BY key FOR UPDATE
"""

SELECT_LINKS_OF_THEIRS = """
SELECT key, theirs_key, ended, fields, made_by FROM sync.links
WHERE entity = %(entity)s AND theirs_key = ANY(%(keys)s) ORDER BY key FOR UPDATE
"""

INSERT_LINKS = """
INSERT INTO sync.links (entity, key, theirs_key, made_by)
SELECT %(entity)s, * FROM unnest(%(key)s::text[], %(theirs_key)s::text[], %(made_by)s::text[])
ON CONFLICT DO NOTHING RETURNING key, theirs_key
"""

WRITE_LINKS = """
UPDATE sync.links l SET fields = v.fields, ended = v.ended
FROM unnest(%(key)s::text[], %(fields)s::jsonb[], %(ended)s::text[]) AS v (key, fields, ended)
WHERE l.entity = %(entity)s AND l.key = v.key
"""

DELETE_LINKS = "DELETE FROM sync.links WHERE entity = %(entity)s AND key = ANY(%(keys)s)"

# Natural keys -------------------------------------------------------------------------------------------------------

DELETE_MATCH_VALUES = """
DELETE FROM sync.match_values WHERE entity = %(entity)s AND key = ANY(%(keys)s) AND (%(all)s OR field <> '@id')
"""

WRITE_MATCH_VALUES = """
INSERT INTO sync.match_values (entity, key, field, value)
SELECT * FROM unnest(%(entity)s::text[], %(key)s::text[], %(field)s::text[], %(value)s::text[])
ON CONFLICT (entity, key, field) DO UPDATE SET value = excluded.value
"""

# The records that have one of some natural keys, and whether they are linked.
LIST_MATCHES = """
SELECT o.field, o.value, m.key,
       EXISTS (SELECT FROM sync.links l
               WHERE l.entity = %(links)s
                 AND CASE WHEN %(is_ours)s THEN l.key ELSE l.theirs_key END = m.key) AS is_linked
FROM (SELECT * FROM unnest(%(field)s::text[], %(value)s::text[]) AS o (field, value) OFFSET 0) o
JOIN sync.match_values m ON m.entity = %(entity)s AND m.field = o.field AND m.value = o.value
WHERE EXISTS (SELECT FROM sync.records r WHERE r.entity = m.entity AND r.key = m.key AND NOT r.deleted)
ORDER BY o.field, o.value, m.key
"""

LIST_PRESENT_KEYS = f"""
SELECT r.key FROM sync.records r JOIN {OF_KEYS} k USING (entity, key) WHERE r.revision > 0 AND NOT r.deleted
"""

# Whether all business groups of the other side had their first full sync, so that what is not here is not there.
IS_COMPLETE = """
SELECT coalesce(bool_and(first_completed_at IS NOT NULL), false) AS complete
FROM sync.groups WHERE entity = %(entity)s
"""

# Creates of the other side that are under way may have made a record that was seen since.
IS_CREATE_UNDER_WAY = """
SELECT EXISTS (SELECT FROM sync.records
               WHERE entity = %(entity)s AND NOT deleted AND external_id IS NULL
                 AND (lease_token IS NOT NULL OR outcome_unknown_until IS NOT NULL)) AS found
"""

WRITE_WAITS = """
INSERT INTO sync.link_waits (entity, key, reason, detail, look_at)
SELECT %(entity)s, key, reason, detail, sync.clock() + make_interval(secs => seconds)
FROM unnest(%(key)s::text[], %(reason)s::text[], %(detail)s::text[], %(seconds)s::float8[])
     AS v (key, reason, detail, seconds)
ON CONFLICT (entity, key) DO UPDATE
SET reason = excluded.reason, detail = excluded.detail, look_at = excluded.look_at,
    since = CASE WHEN sync.link_waits.reason = excluded.reason THEN sync.link_waits.since ELSE sync.clock() END
"""

DELETE_WAITS = "DELETE FROM sync.link_waits WHERE entity = %(entity)s AND key = ANY(%(keys)s)"

LIST_DUE_WAITS = """
SELECT key FROM sync.link_waits WHERE entity = %(entity)s AND look_at <= sync.clock() ORDER BY look_at LIMIT %(most)s
"""

# A first full sync was completed: what waited for it is looked at again.
WAKE_WAITS = """
UPDATE sync.link_waits SET look_at = sync.clock() WHERE entity = %(entity)s AND reason = 'not_complete'
"""

# Writes --------------------------------------------------------------------------------------------------------------

WRITE_AGREED_PARTS = """
INSERT INTO sync.parts (entity, key, part, epoch, version, read_sequence, seq, inferred, content_hash, deleted, data)
SELECT %(entity)s, key, 'agreed', 0, 0, nextval('sync.read_sequence'), 0, false, content_hash, false, data
FROM unnest(%(key)s::text[], %(content_hash)s::bytea[], %(data)s::jsonb[]) AS v (key, content_hash, data)
ON CONFLICT (entity, key, part) DO UPDATE
SET read_sequence = excluded.read_sequence, content_hash = excluded.content_hash, data = excluded.data,
    changed_at = sync.clock()
"""

DELETE_AGREED_PARTS = """
DELETE FROM sync.parts WHERE entity = %(entity)s AND key = ANY(%(keys)s) AND part = 'agreed'
"""

# What became of records by a merge: whether they may be pushed, whether there is something to push, and what the other
# side has of them by all that is known.
WRITE_RECORDS = """
UPDATE sync.records r
SET ready = v.ready, revision = r.revision + CASE WHEN v.steps THEN 1 ELSE 0 END,
    applied_revision = CASE WHEN v.is_there THEN r.revision + CASE WHEN v.steps THEN 1 ELSE 0 END
                            ELSE r.applied_revision END,
    applied_digest = coalesce(v.digest, r.applied_digest),
    external_id = coalesce(v.external_id, r.external_id),
    outcome_unknown_until = CASE WHEN v.looks THEN coalesce(r.outcome_unknown_until, sync.clock())
                                 ELSE r.outcome_unknown_until END,
    changed_at = CASE WHEN v.steps THEN sync.clock() ELSE r.changed_at END,
    attempts = CASE WHEN v.steps THEN 0 ELSE r.attempts END,
    stopped = CASE WHEN v.steps THEN NULL ELSE r.stopped END,
    stopped_at = CASE WHEN v.steps THEN NULL ELSE r.stopped_at END,
    error = CASE WHEN v.steps THEN NULL ELSE r.error END,
    priority = CASE WHEN v.steps AND r.out_of_sync THEN least(r.priority, %(priority)s)
                    WHEN v.steps THEN %(priority)s ELSE r.priority END,
    due_at = CASE WHEN r.lease_token IS NULL AND (v.steps OR (v.wakes AND r.stopped IS NULL)) THEN sync.clock()
                  ELSE r.due_at END
FROM unnest(%(key)s::text[], %(ready)s::boolean[], %(steps)s::boolean[], %(is_there)s::boolean[],
            %(digest)s::bytea[], %(external_id)s::text[], %(looks)s::boolean[], %(wakes)s::boolean[])
     AS v (key, ready, steps, is_there, digest, external_id, looks, wakes)
WHERE r.entity = %(entity)s AND r.key = v.key
"""

# A deletion that is not carried out on the other side, or not yet.
STOP_DELETIONS = """
UPDATE sync.records r SET stopped = v.stopped, stopped_at = sync.clock(), error = v.error
FROM unnest(%(key)s::text[], %(stopped)s::text[], %(error)s::text[]) AS v (key, stopped, error)
WHERE r.entity = %(entity)s AND r.key = v.key AND r.deleted
"""

RELEASE_DELETIONS = """
UPDATE sync.records SET stopped = NULL, stopped_at = NULL, error = NULL, attempts = 0, due_at = sync.clock()
WHERE entity = %(entity)s AND key = ANY(%(keys)s) AND deleted
"""

# The other side's record is gone for good: this one is made there again.
FORGET_OTHER_SIDE = """
UPDATE sync.records
SET external_id = NULL, applied_digest = NULL, applied_group = NULL, revision = revision + 1, changed_at = sync.clock(),
    attempts = 0, stopped = NULL, stopped_at = NULL, error = NULL, due_at = sync.clock()
WHERE entity = %(entity)s AND key = ANY(%(keys)s)
"""

# Calls that carry shared fields --------------------------------------------------------------------------------------

SELECT_CALLS = f"""
SELECT key, token, carried, before, own, acknowledged, merged,
       coalesce(EXTRACT(epoch FROM acknowledged_at), 0)::float8 AS acknowledged_at
FROM sync.shared_calls JOIN {OF_KEYS} k USING (entity, key)
"""

SELECT_CALLS_OF_RECORDS = """
SELECT c.entity, c.key, c.token, c.carried, c.before, c.own, c.acknowledged, c.merged,
       coalesce(EXTRACT(epoch FROM c.acknowledged_at), 0)::float8 AS acknowledged_at
FROM sync.shared_calls c
JOIN unnest(%(entity)s::text[], %(key)s::text[]) AS v (entity, key) ON c.entity = v.entity AND c.key = v.key
"""

INSERT_CALLS = """
INSERT INTO sync.shared_calls (entity, key, token, carried, before, own)
SELECT * FROM unnest(%(entity)s::text[], %(key)s::text[], %(token)s::bigint[], %(carried)s::jsonb[],
                     %(before)s::jsonb[], %(own)s::jsonb[])
"""

ACKNOWLEDGE_CALLS = """
UPDATE sync.shared_calls c SET acknowledged = nextval('sync.read_sequence'), acknowledged_at = sync.clock()
FROM unnest(%(entity)s::text[], %(key)s::text[], %(token)s::bigint[]) AS v (entity, key, token)
WHERE c.entity = v.entity AND c.key = v.key AND c.token = v.token
"""

DELETE_CALLS = """
DELETE FROM sync.shared_calls c
USING unnest(%(entity)s::text[], %(key)s::text[], %(token)s::bigint[]) AS v (entity, key, token)
WHERE c.entity = v.entity AND c.key = v.key AND c.token = v.token
"""

MARK_CALLS_MERGED = """
UPDATE sync.shared_calls c SET merged = true
FROM unnest(%(entity)s::text[], %(key)s::text[], %(token)s::bigint[]) AS v (entity, key, token)
WHERE c.entity = v.entity AND c.key = v.key AND c.token = v.token
"""

# Conflicts -----------------------------------------------------------------------------------------------------------

LIST_OPEN_OF_RECORDS = """
SELECT id, key, field, ours, theirs FROM sync.conflicts
WHERE entity = %(entity)s AND key = ANY(%(keys)s) AND state = 'open'
"""

END_CONFLICTS = """
UPDATE sync.conflicts c SET state = v.state, ended_at = sync.clock()
FROM unnest(%(id)s::bigint[], %(state)s::text[]) AS v (id, state) WHERE c.id = v.id
"""

INSERT_CONFLICTS = """
INSERT INTO sync.conflicts (entity, group_key, key, theirs_key, field, agreed, ours, theirs, ours_at, theirs_at, policy,
                            winner, state, ended_at)
SELECT %(entity)s, group_key, key, theirs_key, field, agreed, ours, theirs,
       to_timestamp(ours_at / 1e6), to_timestamp(theirs_at / 1e6), policy, winner,
       CASE WHEN winner IS NULL THEN 'open' ELSE 'decided' END, CASE WHEN winner IS NOT NULL THEN sync.clock() END
FROM unnest(%(group_key)s::text[], %(key)s::text[], %(theirs_key)s::text[], %(field)s::text[], %(agreed)s::jsonb[],
            %(ours)s::jsonb[], %(theirs)s::jsonb[], %(ours_at)s::float8[], %(theirs_at)s::float8[], %(policy)s::text[],
            %(winner)s::text[])
     AS v (group_key, key, theirs_key, field, agreed, ours, theirs, ours_at, theirs_at, policy, winner)
RETURNING id, key, state
"""

LOCK_CONFLICT = "SELECT * FROM sync.conflicts WHERE id = %(id)s FOR UPDATE"

RESOLVE_CONFLICT = """
UPDATE sync.conflicts
SET state = 'resolved', winner = %(winner)s, resolved_by = %(by)s, reason = %(reason)s, ended_at = sync.clock()
WHERE id = %(id)s
"""

COUNT_OPEN_CONFLICTS = """
SELECT field, count(*) AS n FROM sync.conflicts WHERE entity = %(entity)s AND state = 'open' GROUP BY field
"""

LIST_CONFLICTS = """
SELECT * FROM sync.conflicts
WHERE (%(entity)s::text IS NULL OR entity = %(entity)s) AND (%(group)s::text IS NULL OR group_key = %(group)s)
  AND (%(field)s::text IS NULL OR field = %(field)s) AND state = ANY(%(states)s)
  AND (%(key)s::text IS NULL OR key = %(key)s)
ORDER BY id DESC LIMIT %(most)s
"""

COUNT_LINKS = """
SELECT (SELECT count(*) FROM sync.links WHERE entity = %(ours)s AND ended IS NULL) AS linked,
       (SELECT count(*) FROM sync.links WHERE entity = %(ours)s AND ended IS NOT NULL) AS ended,
       (SELECT count(*) FROM sync.records r WHERE r.entity = %(ours)s AND NOT r.deleted AND r.revision > 0
        AND NOT EXISTS (SELECT FROM sync.links l WHERE l.entity = %(ours)s AND l.key = r.key)) AS only_ours,
       (SELECT count(*) FROM sync.records r WHERE r.entity = %(theirs)s AND NOT r.deleted AND r.revision > 0
        AND NOT EXISTS (SELECT FROM sync.links l WHERE l.entity = %(ours)s AND l.theirs_key = r.key)) AS only_theirs,
       (SELECT count(*) FROM sync.link_waits WHERE entity IN (%(ours)s, %(theirs)s) AND reason = 'ambiguous')
           AS ambiguous,
       (SELECT count(*) FROM sync.link_waits WHERE entity IN (%(ours)s, %(theirs)s) AND reason <> 'ambiguous')
           AS not_yet,
       (SELECT count(*) FROM sync.conflicts WHERE entity = %(ours)s AND state = 'open') AS conflicts
"""

LIST_WAITS = """
SELECT entity, key, reason, detail, since FROM sync.link_waits
WHERE entity = ANY(%(entities)s) AND (%(reason)s::text IS NULL OR reason = %(reason)s)
ORDER BY since, entity, key LIMIT %(most)s
"""

LIST_CONFLICT_ALERTS = """
SELECT cause FROM sync.alerts WHERE kind = 'conflicts' AND entity = %(entity)s AND resolved_at IS NULL
"""

SELECT_CONFLICT = "SELECT * FROM sync.conflicts WHERE id = %(id)s"

LIST_ALIKE = """
SELECT id FROM sync.conflicts
WHERE entity = %(entity)s AND field IS NOT DISTINCT FROM %(field)s AND state = 'open' ORDER BY id LIMIT %(most)s
"""

DECIDE_FIELD = """
UPDATE sync.links
SET fields = jsonb_set(jsonb_build_object(%(field)s::text, '{}'::jsonb) || fields, %(path)s::text[], %(decision)s)
WHERE entity = %(entity)s AND key = %(key)s
"""

END_LINK = """
UPDATE sync.links SET ended = %(reason)s WHERE entity = %(entity)s AND key = %(key)s AND ended IS NULL
RETURNING theirs_key
"""

# Links that were ended give way to one that a person makes.
DELETE_ENDED_LINKS = """
DELETE FROM sync.links
WHERE entity = %(entity)s AND (key = %(key)s OR theirs_key = %(theirs_key)s) AND ended IS NOT NULL
"""
