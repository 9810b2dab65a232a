"""The queries of ``core/archive/``. Parameters are bound; batches come as arrays."""

from sync_orchestrator.core.db.fragments import OF_KEYS, claim_is_free, is_announced

# A row for every key that is not here; one of which nothing came goes again.
INSERT_RECORDS = """
INSERT INTO sync.records (entity, key, group_key, revision, deleted, ready, priority)
SELECT %(entity)s, v.*, %(priority)s FROM unnest(
    %(key)s::text[], %(group_key)s::text[], %(revision)s::bigint[], %(deleted)s::boolean[], %(ready)s::boolean[]) v
ON CONFLICT DO NOTHING RETURNING key
"""

LOCK_RECORDS = f"""
SELECT key, group_key, revision, deleted, ready, applied_revision, stopped
FROM sync.records r JOIN {OF_KEYS} k USING (entity, key) ORDER BY key FOR UPDATE OF r
"""

# The version guard's side of the parts; their data stays where it is.
SELECT_STAMPS = f"""
SELECT key, part, epoch, version, read_sequence, seq, inferred, content_hash, deleted,
       changed_at < sync.clock() - make_interval(secs => %(lag)s) AS settled
FROM sync.parts JOIN {OF_KEYS} k USING (entity, key)
"""

# Which of some fields of a part have a value that is not null.
SELECT_FIELDS_WITH_VALUES = f"""
SELECT key, array(SELECT field FROM unnest(%(fields)s::text[]) field WHERE jsonb_typeof(data -> field) <> 'null')
    AS fields
FROM sync.parts JOIN {OF_KEYS} k USING (entity, key) WHERE part = %(part)s AND NOT deleted
"""

# Which of what was read is not here already, told by an earlier read; by its place from 1. Where a stream numbers the
# versions, equal content is enough: a read brings no version.
SELECT_UNLOCKED_KEYS = """
SELECT o.place FROM (
    SELECT %(entity)s::text AS entity, o.* FROM unnest(
        %(key)s::text[], %(part)s::text[], %(epoch)s::int[], %(version)s::bigint[], %(content_hash)s::bytea[],
        %(numbered)s::boolean[])
    WITH ORDINALITY AS o (key, part, epoch, version, content_hash, numbered, place) OFFSET 0) o
LEFT JOIN sync.parts p ON p.entity = o.entity AND p.key = o.key AND p.part = o.part AND p.epoch = o.epoch
    AND p.content_hash = o.content_hash AND (o.numbered OR (p.version = o.version AND p.read_sequence > 0))
WHERE p.key IS NULL ORDER BY o.place
"""

# What a stream has recorded of parts that were read, after the number that was noted before the read; and its number
# now. One statement, so that no change is recorded between the two.
SELECT_READ_BOUNDS = """
SELECT o.key, o.part, o.noted, s.number, coalesce(e.whole, false) AS recorded_whole,
       coalesce(e.thin, false) AS recorded_thin
FROM (SELECT %(entity)s::text AS entity, o.*
      FROM unnest(%(key)s::text[], %(part)s::text[], %(noted)s::bigint[]) AS o (key, part, noted) OFFSET 0) o
JOIN sync.streams s ON s.name = o.part
CROSS JOIN LATERAL (
    SELECT bool_or(NOT e.thin) AS whole, bool_or(e.thin) AS thin FROM sync.events e
    WHERE e.entity = o.entity AND e.key = o.key AND e.source = o.part AND e.origin = 'capture'
      AND e.version > o.noted AND e.revision IS NULL OFFSET 0) e
"""

DELETE_EMPTY_RECORDS = f"""
DELETE FROM sync.records r USING {OF_KEYS} k WHERE r.entity = k.entity AND r.key = k.key AND r.revision = 0
"""

WRITE_PARTS = """
INSERT INTO sync.parts (entity, key, part, epoch, version, read_sequence, seq, inferred, content_hash, deleted, data)
SELECT %(entity)s, * FROM unnest(
    %(key)s::text[], %(part)s::text[], %(epoch)s::int[], %(version)s::bigint[], %(read_sequence)s::bigint[],
    %(seq)s::bigint[], %(inferred)s::boolean[], %(content_hash)s::bytea[], %(deleted)s::boolean[], %(data)s::jsonb[])
ON CONFLICT (entity, key, part) DO UPDATE
SET epoch = excluded.epoch, version = excluded.version, read_sequence = excluded.read_sequence, seq = excluded.seq,
    inferred = excluded.inferred, content_hash = excluded.content_hash, deleted = excluded.deleted,
    data = excluded.data, changed_at = sync.clock()
"""

# A new revision starts afresh: no attempts spent, due now, and no longer on hold.
WRITE_RECORDS = f"""
UPDATE sync.records r
SET group_key = v.group_key, revision = v.revision, deleted = v.deleted, ready = v.ready, changed_at = sync.clock(),
    priority = CASE WHEN r.out_of_sync THEN least(r.priority, %(priority)s) ELSE %(priority)s END,
    attempts = 0, stopped = NULL, stopped_at = NULL, error = NULL, refusal_retried = false,
    due_at = CASE WHEN {claim_is_free("r.")} THEN sync.clock() ELSE r.due_at END
FROM (SELECT %(entity)s::text AS entity, v.* FROM unnest(
          %(key)s::text[], %(group_key)s::text[], %(revision)s::bigint[], %(deleted)s::boolean[], %(ready)s::boolean[])
      AS v (key, group_key, revision, deleted, ready) OFFSET 0) v
WHERE r.entity = v.entity AND r.key = v.key
"""

INSERT_NEW_GROUPS = """
INSERT INTO sync.groups (entity, group_key)
SELECT %(entity)s, g FROM unnest(%(groups)s::text[]) g ORDER BY g ON CONFLICT DO NOTHING
"""

NEXT_READ_SEQUENCE = "SELECT nextval('sync.read_sequence')"

SELECT_CLOCK = "SELECT EXTRACT(epoch FROM sync.clock())::float8"

NEXT_READ_SEQUENCE_AND_CLOCK = (
    "SELECT nextval('sync.read_sequence') AS number, EXTRACT(epoch FROM sync.clock())::float8 AS now"
)

# Which of these groups have had their first full sync; an event of unknown group is covered once all have.
SELECT_COVERED_GROUPS = """
SELECT group_key, first_completed_at IS NOT NULL AS covered FROM sync.groups WHERE entity = %(entity)s
"""

COUNT_RECORDS = """
SELECT entity, count(*) FILTER (WHERE NOT deleted) AS archived,
       count(*) FILTER (WHERE deleted) AS tombstones,
       count(*) FILTER (WHERE NOT ready) AS incomplete,
       count(*) FILTER (WHERE ready AND NOT out_of_sync AND NOT deleted) AS in_sync,
       count(*) FILTER (WHERE out_of_sync) AS out_of_sync,
       count(*) FILTER (WHERE stopped = 'dead' AND out_of_sync) AS dead,
       count(*) FILTER (WHERE stopped = 'on_hold' AND out_of_sync) AS on_hold,
       count(*) FILTER (WHERE stopped = 'discarded' AND out_of_sync) AS discarded
FROM sync.records WHERE revision > 0 GROUP BY entity
"""

# The keys of which the archive has a part.
SELECT_LIVE_PARTS = """
SELECT key FROM sync.parts
WHERE entity = %(entity)s AND part = %(part)s AND key = ANY(%(keys)s) AND NOT deleted
"""

# The totals of one entity, as its series in the UI.
SUM_ENTITY_TOTALS = """
SELECT r.*, e.*, d.*, a.*
FROM (SELECT count(*) FILTER (WHERE ready AND NOT out_of_sync AND NOT deleted) AS in_sync,
             count(*) FILTER (WHERE out_of_sync AND stopped IS NULL) AS pending_records,
             count(*) FILTER (WHERE out_of_sync AND stopped = 'dead') AS dead_records,
             count(*) FILTER (WHERE out_of_sync AND stopped = 'on_hold') AS on_hold
      FROM sync.records WHERE entity = %(entity)s AND revision > 0) r,
     (SELECT count(*) FILTER (WHERE state <> 'dead') AS pending_events,
             count(*) FILTER (WHERE state = 'dead') AS dead_events
      FROM sync.events WHERE entity = %(entity)s AND revision IS NULL) e,
     (SELECT count(*) FILTER (WHERE kind <> 'unmanaged') AS drift,
             count(*) FILTER (WHERE kind = 'unmanaged') AS unmanaged
      FROM sync.drift WHERE entity = %(entity)s AND status <> 'repaired') d,
     (SELECT count(*) AS open_alerts FROM sync.alerts
      WHERE resolved_at IS NULL AND coalesce(entity, %(entity)s) = %(entity)s) a
"""

# What a business group holds, and when it was last validated.
SUM_GROUP_TOTALS = """
SELECT count(*) FILTER (WHERE NOT deleted) AS records,
       count(*) FILTER (WHERE ready AND NOT out_of_sync AND NOT deleted) AS in_sync,
       (SELECT max(v.at) FROM sync.validations v
        WHERE v.entity = %(entity)s AND v.group_key = %(group)s AND v.verdict <> 'not_validated') AS validated_at
FROM sync.records WHERE entity = %(entity)s AND group_key = %(group)s AND revision > 0
"""

SELECT_RECORD = "SELECT * FROM sync.records WHERE entity = %(entity)s AND key = %(key)s"

LIST_PARTS_OF_RECORD = """
SELECT part, epoch, version, read_sequence, deleted, data FROM sync.parts
WHERE entity = %(entity)s AND key = %(key)s ORDER BY part
"""

# An operator's refresh: what the source says now holds, whatever version stood here.
RESET_STAMP = """
UPDATE sync.parts SET epoch = -1 WHERE entity = %(entity)s AND key = %(key)s AND part = ANY(%(parts)s)
"""

# A changed mapping: records whose payload would be another are out of sync again.
SELECT_DIGESTS = """
SELECT r.key, r.group_key, r.applied_digest FROM sync.records r
WHERE r.entity = %(entity)s AND r.key > %(after)s AND r.applied_digest IS NOT NULL AND NOT r.deleted
  AND NOT r.out_of_sync
ORDER BY r.key LIMIT %(most)s
"""

SELECT_PARTS_DATA = f"SELECT key, part, data FROM sync.parts JOIN {OF_KEYS} k USING (entity, key)"

STEP_REVISION = f"""
UPDATE sync.records r SET revision = revision + 1, changed_at = sync.clock(), priority = 1, attempts = 0,
    stopped = NULL,
    stopped_at = NULL, refusal_retried = false, due_at = sync.clock(), error = NULL
FROM {OF_KEYS} k WHERE r.entity = k.entity AND r.key = k.key
"""

SUM_DELETIONS = """
SELECT coalesce(sum(n), 0)::bigint AS of_entity,
       coalesce(sum(n) FILTER (WHERE group_key = %(group)s), 0)::bigint AS of_group
FROM sync.inferred_deletions
WHERE entity = %(entity)s AND at > sync.clock() - make_interval(secs => %(window)s)
"""

COUNT_LIVE_RECORDS = """
SELECT count(*) AS of_entity, count(*) FILTER (WHERE group_key = %(group)s) AS of_group
FROM sync.records WHERE entity = %(entity)s AND NOT deleted AND revision > 0
"""

ADD_DELETION = """
INSERT INTO sync.inferred_deletions (entity, group_key, reason, n) VALUES (%(entity)s, %(group)s, %(reason)s, %(n)s)
"""

# Which of some parts are here, so that a deletion of them would take something away that no delete event announces.
SELECT_LIVE_KEYS = f"""
SELECT p.key, p.part, coalesce(r.group_key, '') AS group_key
FROM (SELECT %(entity)s::text AS entity, v.* FROM unnest(%(key)s::text[], %(part)s::text[]) AS v (key, part) OFFSET 0) v
JOIN sync.parts p ON p.entity = v.entity AND p.key = v.key AND p.part = v.part AND NOT p.deleted
  AND NOT {is_announced("p")}
JOIN sync.records r ON r.entity = v.entity AND r.key = v.key AND NOT r.deleted
"""

DELETE_OLD_DELETION_COUNTS = """
DELETE FROM sync.inferred_deletions
WHERE entity = %(entity)s AND at < sync.clock() - make_interval(secs => %(window)s)
"""
