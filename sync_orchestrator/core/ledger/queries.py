"""The queries of ``core/ledger/``. Parameters are bound; batches come as arrays."""

from sync_orchestrator.core.db.fragments import HOLDER_GONE_SECONDS, HOLDER_IS_GONE, OF_KEYS, claim_ends_at
from sync_orchestrator.core.ledger.states import LATENCY_BUCKETS_SECONDS

# Months ahead are made at every start and by the daily maintenance; the default partition catches the rest.
ENSURE_PARTITIONS = """
DO $$
DECLARE
    parent text;
    month date;
BEGIN
    FOREACH parent IN ARRAY ARRAY['event_history', 'push_attempts'] LOOP
        FOR month IN SELECT generate_series(date_trunc('month', now()), now() + interval '2 months', '1 month') LOOP
            BEGIN
                EXECUTE format(
                    'CREATE TABLE IF NOT EXISTS sync.%%I PARTITION OF sync.%%I FOR VALUES FROM (%%L) TO (%%L)',
                    parent || to_char(month, '_YYYY_MM'), parent, month, month + interval '1 month');
            EXCEPTION WHEN check_violation OR invalid_object_definition THEN
                -- Rows of that month are in the default partition already, or a partition that was made in another
                -- time zone covers its first hours: the default partition takes the month's rows.
                NULL;
            END;
        END LOOP;
    END LOOP;
END $$
"""

_ADD_TALLIES = """
    INSERT INTO sync.tallies (entity, source, what, slot, n)
    SELECT entity, source, what, pg_backend_pid() %% 16, count(*) FROM {rows} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    ON CONFLICT (entity, source, what, slot) DO UPDATE SET n = sync.tallies.n + excluded.n
"""


_ADD_LATENCIES = f"""
    INSERT INTO sync.latencies (entity, most, slot, n, seconds)
    SELECT entity, ('{{{",".join(map(str, LATENCY_BUCKETS_SECONDS))},Infinity}}'::float8[])[
               1 + width_bucket(seconds, '{{{",".join(map(str, LATENCY_BUCKETS_SECONDS))}}}'::float8[])],
           pg_backend_pid() %% 16, count(*), sum(seconds)
    FROM (SELECT entity, greatest(EXTRACT(epoch FROM sync.clock() - received_at)::float8, 0) AS seconds
          FROM gone WHERE what = 'done') done
    GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT (entity, most, slot)
    DO UPDATE SET n = sync.latencies.n + excluded.n, seconds = sync.latencies.seconds + excluded.seconds
"""

# One statement records one request or many: new ids only; the same id with other content is kept and flagged. It tells
# which are new, by their place from 1.
RECORD_EVENTS = f"""
WITH offered AS (
    SELECT *, decode(hash, 'hex') AS content_hash, min(hash) OVER same <> max(hash) OVER same AS differing
    FROM ROWS FROM (jsonb_to_recordset(%(events)s) AS (
        source text, event_id text, entity text, key text, group_key text, action text, version bigint, thin boolean,
        data jsonb, content_hash text, origin text, trace text, read_sequence bigint)) WITH ORDINALITY
    AS o (source, event_id, entity, key, group_key, action, version, thin, data, hash, origin, trace, read_sequence,
          ord)
    WINDOW same AS (PARTITION BY source, event_id)
), fresh AS (
    INSERT INTO sync.event_ids (source, event_id, content_hash)
    SELECT DISTINCT source, event_id, content_hash FROM offered ORDER BY 1, 2, 3
    ON CONFLICT DO NOTHING
    RETURNING source, event_id, content_hash
), chosen AS (
    SELECT DISTINCT ON (source, event_id, content_hash) offered.*
    FROM offered JOIN fresh USING (source, event_id, content_hash)
    ORDER BY source, event_id, content_hash, ord
), recorded AS (
    INSERT INTO sync.events (source, event_id, entity, key, group_key, action, epoch, version, thin, data,
                             content_hash, origin, trace, read_sequence, conflicting)
    SELECT c.source, c.event_id, c.entity, c.key, c.group_key, c.action, coalesce(s.epoch, 0), c.version, c.thin,
           c.data, c.content_hash, c.origin, c.trace, c.read_sequence,
           c.differing OR EXISTS (SELECT FROM sync.event_ids i WHERE i.source = c.source AND i.event_id = c.event_id
                                  AND i.content_hash <> c.content_hash)
    FROM chosen c LEFT JOIN sync.systems s ON s.name = c.source
    ORDER BY c.ord
), counts AS (
    SELECT o.entity, o.source, CASE WHEN c.ord IS NULL THEN 'duplicate' ELSE 'received' END AS what
    FROM offered o LEFT JOIN chosen c USING (ord)
), tallied AS ({_ADD_TALLIES.format(rows="counts")})
SELECT ARRAY(SELECT ord FROM chosen)::bigint[] AS accepted, (SELECT pg_notify('sync_work', '') FROM chosen LIMIT 1)
"""

# An id made of an event's content ends with what it stands for (rule 31): a repetition is a duplicate only while the
# same event is the last one of its record that is active.
DELETE_CONTENT_IDS = """
DELETE FROM sync.event_ids i
USING (SELECT DISTINCT source, event_id FROM unnest(%(sources)s::text[], %(ids)s::text[]) AS o (source, event_id)) o
WHERE i.source = o.source AND i.event_id = o.event_id
  AND NOT EXISTS (SELECT FROM sync.events e
                  WHERE e.source = i.source AND e.event_id = i.event_id AND e.content_hash = i.content_hash
                    AND e.state <> 'dead'
                    AND NOT EXISTS (SELECT FROM sync.events l WHERE l.entity = e.entity AND l.key = e.key
                                      AND l.source = e.source AND l.seq > e.seq))
"""

# The ids of events whose source was read: the same notification is a new request to look (rule 31).
DELETE_EVENT_IDS = """
DELETE FROM sync.event_ids i USING sync.events e
WHERE e.seq = ANY(%(seqs)s) AND i.source = e.source AND i.event_id = e.event_id AND i.content_hash = e.content_hash
"""

# Due events that no drain holds and that are not archived yet, oldest due first: this transaction's until it ends.
SELECT_DUE_EVENTS = """
SELECT seq, source, entity, key, group_key, action, epoch, version, thin, data, content_hash, attempts, absent_at,
       ask_source, awaiting, origin, read_sequence, received_at, EXTRACT(epoch FROM sync.clock())::float8 AS now
FROM sync.events
WHERE revision IS NULL AND state IN ('pending', 'waiting') AND due_at <= sync.clock() AND entity = ANY(%(entities)s)
ORDER BY due_at, seq LIMIT %(most)s
FOR UPDATE SKIP LOCKED
"""

# Those that their source is asked for are held while no transaction is open.
CLAIM_EVENTS = """
UPDATE sync.events
SET state = 'leased', lease_token = %(token)s, lease_until = sync.clock() + make_interval(secs => %(lease)s),
    lease_holder = %(holder)s
WHERE seq = ANY(%(seqs)s)
"""

# A drain that died or stopped leaves leases behind. Once their time is over, or their holder is gone, the events are
# everybody's again: those that were being read. Archived ones go with their records, which are claimed anew.
RELEASE_EXPIRED_EVENTS = f"""
UPDATE sync.events SET state = 'pending', lease_token = NULL, lease_until = NULL, lease_holder = NULL
WHERE seq IN (SELECT seq FROM (SELECT seq FROM sync.events WHERE state = 'leased' AND lease_until < sync.clock()
                               FOR UPDATE SKIP LOCKED) expired
              UNION
              SELECT seq FROM (SELECT seq FROM sync.events WHERE state = 'leased' AND revision IS NULL
                                 AND lease_holder = ANY({HOLDER_IS_GONE})
                               FOR UPDATE SKIP LOCKED) of_those_gone)
"""

# A drain that ends well gives back what it holds.
RELEASE_EVENTS = """
UPDATE sync.events SET state = 'pending', lease_token = NULL, lease_until = NULL, lease_holder = NULL
WHERE state = 'leased' AND lease_token = ANY(%(tokens)s)
"""

# An event may be settled by the transaction that took it, which has no token, or by the holder of its lease.
_IS_CLAIMED_BY_US = "(%(held)s::bigint IS NULL OR e.lease_token = %(held)s::bigint)"

# Archived: the event's fate is its record's from here on, so it takes the revision and the record's present state.
# Returns the keys of records that the third party has already, or that were discarded.
MARK_ARCHIVED = f"""
WITH archived AS (
    UPDATE sync.events e
    SET revision = v.revision, awaiting = NULL, absent_at = NULL, ask_source = false, error = NULL,
        state = CASE WHEN r.stopped IS NOT NULL THEN 'dead' WHEN NOT r.ready THEN 'waiting' ELSE 'leased' END,
        due_at = CASE WHEN r.stopped IS NOT NULL OR NOT r.ready THEN 'infinity' ELSE e.due_at END,
        lease_token = %(token)s, lease_until = sync.clock() + make_interval(secs => %(lease)s),
        lease_holder = %(holder)s
    FROM unnest(%(seq)s::bigint[], %(revision)s::bigint[]) AS v (seq, revision), sync.records r
    WHERE e.seq = v.seq AND {_IS_CLAIMED_BY_US} AND r.entity = e.entity AND r.key = e.key
    RETURNING e.key, e.revision <= r.applied_revision OR NOT r.out_of_sync OR r.stopped = 'discarded' AS reached
)
SELECT DISTINCT key FROM archived WHERE reached
"""

# Failed before it was archived: due again later, or dead (due at infinity).
MARK_FAILED = f"""
UPDATE sync.events e
SET state = v.state, attempts = v.attempts, error = v.error, awaiting = v.awaiting,
    absent_at = CASE WHEN v.absent THEN coalesce(e.absent_at, sync.clock()) ELSE e.absent_at END,
    due_at = CASE WHEN v.wait IS NULL THEN 'infinity' ELSE sync.clock() + make_interval(secs => v.wait) END,
    lease_token = NULL, lease_until = NULL, lease_holder = NULL
FROM unnest(%(seq)s::bigint[], %(state)s::text[], %(attempts)s::int[], %(wait)s::float8[], %(error)s::text[],
            %(awaiting)s::text[], %(absent)s::boolean[])
     AS v (seq, state, attempts, wait, error, awaiting, absent)
WHERE e.seq = v.seq AND {_IS_CLAIMED_BY_US}
RETURNING e.seq
"""

_MOVE_TO_HISTORY = f"""
), kept AS (
    INSERT INTO sync.event_history (seq, source, event_id, entity, key, group_key, action, epoch, version, thin,
        data, origin, trace, conflicting, received_at, attempts, revision, error, state, reason)
    SELECT seq, source, event_id, entity, key, group_key, action, epoch, version, thin,
        data, origin, trace, conflicting, received_at, attempts, revision, error, what, reason
    FROM gone
), timed AS ({_ADD_LATENCIES}), tallied AS ({_ADD_TALLIES.format(rows="gone")})
SELECT what, count(*) AS n, max(EXTRACT(epoch FROM sync.clock() - received_at))::float8 AS slowest,
       sum(EXTRACT(epoch FROM sync.clock() - received_at))::float8 AS seconds
FROM gone GROUP BY what
"""

# A newer version is archived already (or the source confirmed that there is no such record).
FINISH_SUPERSEDED = f"""
WITH gone AS (
    DELETE FROM sync.events e
    USING unnest(%(seq)s::bigint[], %(reason)s::text[]) AS v (seq, reason)
    WHERE e.seq = v.seq AND {_IS_CLAIMED_BY_US}
    RETURNING e.*, 'superseded' AS what, v.reason
{_MOVE_TO_HISTORY}"""

# Applied has reached them: archived events are done; those that waited or died before that are superseded
# once their part is newer than they are, or was read at their version after they came. Those of a discarded record
# share its fate and its reason.
FINISH_REACHED = f"""
WITH gone AS (
    DELETE FROM sync.events e
    USING {OF_KEYS} k, sync.records r
    WHERE e.entity = k.entity AND e.key = k.key AND r.entity = k.entity AND r.key = k.key
      AND (r.outcome_unknown_until IS NULL
           AND (e.revision <= r.applied_revision
                OR (e.revision IS NULL AND e.state IN ('waiting', 'dead') AND NOT r.out_of_sync
                    AND EXISTS (SELECT FROM sync.parts p
                                WHERE p.entity = e.entity AND p.key = e.key AND p.part = e.source
                                  AND ((p.epoch, p.version) > (e.epoch, e.version)
                                       OR ((p.epoch, p.version) = (e.epoch, e.version) AND p.read_sequence > e.seq)))))
           OR r.stopped = 'discarded' AND r.out_of_sync AND e.state = 'dead' AND e.revision IS NOT NULL)
    RETURNING e.*,
        CASE WHEN e.revision IS NULL THEN 'superseded'
             WHEN r.outcome_unknown_until IS NULL AND e.revision <= r.applied_revision THEN 'done'
             ELSE 'discarded' END AS what,
        CASE WHEN r.outcome_unknown_until IS NOT NULL OR e.revision > r.applied_revision THEN r.error END AS reason
{_MOVE_TO_HISTORY}"""

# The events of records whose push failed share the records' fate; those that are dead already stay so, until applied
# passes them or a person sees to it.
NOTE_PUSH_FAILED = """
UPDATE sync.events e
SET state = v.state, attempts = v.attempts, error = v.error,
    lease_token = NULL, lease_until = NULL, lease_holder = NULL,
    due_at = CASE WHEN v.wait IS NULL THEN 'infinity' ELSE sync.clock() + make_interval(secs => v.wait) END
FROM unnest(%(entity)s::text[], %(key)s::text[], %(state)s::text[], %(attempts)s::int[], %(wait)s::float8[],
            %(error)s::text[]) AS v (entity, key, state, attempts, wait, error)
WHERE e.entity = v.entity AND e.key = v.key AND e.revision IS NOT NULL AND e.state <> 'dead'
"""

# The record has arrived: what waited for it is due at once.
WAKE_WAITING_EVENTS = f"""
UPDATE sync.events e SET state = 'pending', due_at = sync.clock(), awaiting = NULL, attempts = 0
FROM {OF_KEYS} k
WHERE e.entity = k.entity AND e.key = k.key AND e.revision IS NULL AND e.state IN ('waiting', 'dead')
  AND e.awaiting IN ('record', 'source')
"""

# Rule 16: after a group's full sync everything that failed meanwhile is tried again, missing records from the source.
RETRY_FAILED_OF_GROUP = """
UPDATE sync.events e
SET state = 'pending', due_at = sync.clock(), attempts = 0, awaiting = NULL, ask_source = true
WHERE e.entity = %(entity)s AND e.state IN ('waiting', 'dead') AND e.awaiting IS DISTINCT FROM 'clock'
  AND e.revision IS NULL
  AND (e.group_key = %(group)s
       OR EXISTS (SELECT FROM sync.records r WHERE r.entity = e.entity AND r.key = e.key AND r.group_key = %(group)s)
       OR (%(all_covered)s AND e.group_key IS NULL))
RETURNING e.seq
"""

# A person's re-drive: events back to pending; a fresh set of attempts. Archived ones whose record lacks a part go on
# waiting for it: nobody could claim them.
REDRIVE_EVENTS = """
UPDATE sync.events
SET state = 'pending', due_at = sync.clock(), attempts = 0, awaiting = NULL, absent_at = NULL,
    lease_token = NULL, lease_until = NULL, lease_holder = NULL
WHERE state IN ('dead', 'waiting') AND (%(seqs)s::bigint[] IS NULL OR seq = ANY(%(seqs)s::bigint[]))
  AND (%(entity)s::text IS NULL OR entity = %(entity)s::text)
  AND NOT (state = 'waiting' AND revision IS NOT NULL AND EXISTS (
      SELECT FROM sync.records r WHERE r.entity = events.entity AND r.key = events.key AND NOT r.ready))
RETURNING seq, entity, key, revision
"""

# An operator had the record reread: what waited for a clock, its source or a cap has its answer from the source.
FINISH_REREAD = f"""
WITH gone AS (
    DELETE FROM sync.events e
    WHERE e.entity = %(entity)s AND e.key = %(key)s AND e.source = ANY(%(parts)s) AND e.state = 'waiting'
      AND e.awaiting IN ('clock', 'source', 'deletions')
    RETURNING e.*, 'superseded' AS what, 'the record was reread from its source' AS reason
{_MOVE_TO_HISTORY}"""

# Those among them that brought what their records hold now.
SELECT_DEAD_RECORDS_OF_EVENTS = """
SELECT e.entity, e.key FROM sync.events e
JOIN sync.records r ON r.entity = e.entity AND r.key = e.key AND r.revision = e.revision
WHERE e.seq = ANY(%(seqs)s) AND e.state = 'dead'
"""

DISCARD_EVENTS = f"""
WITH gone AS (
    DELETE FROM sync.events e WHERE seq = ANY(%(seqs)s) AND state = 'dead'
    RETURNING e.*, 'discarded' AS what, %(reason)s::text AS reason
{_MOVE_TO_HISTORY}"""

# One snapshot of everything that must add up.
COUNT_CONSERVATION = """
WITH active AS (SELECT entity, state, count(*) AS n FROM sync.events GROUP BY entity, state),
     told AS (SELECT entity, what, sum(n)::bigint AS n FROM sync.tallies GROUP BY entity, what)
SELECT entity, state AS what, n FROM active UNION ALL SELECT entity, what, n FROM told
"""

# Seconds until the next event is due (negative: overdue); null where none is.
SECONDS_UNTIL_NEXT_EVENT = f"""
SELECT EXTRACT(epoch FROM least(
    (SELECT min(due_at) FROM sync.events WHERE revision IS NULL AND state IN ('pending', 'waiting')
        AND entity = ANY(%(entities)s) AND due_at <> 'infinity'),
    (SELECT min(lease_until) FROM sync.events WHERE state = 'leased'),
    (SELECT min({claim_ends_at("events.", HOLDER_GONE_SECONDS)})
     FROM sync.events WHERE state = 'leased' AND revision IS NULL))
    - sync.clock())::float8 AS seconds
"""

SELECT_OLDEST_DUE = """
SELECT coalesce(greatest(0, EXTRACT(epoch FROM sync.clock() - least(
    (SELECT min(due_at) FROM sync.events WHERE revision IS NULL AND state IN ('pending', 'waiting')
        AND due_at <> 'infinity'),
    (SELECT min(due_at) FROM sync.events WHERE state = 'leased' AND due_at <> 'infinity'),
    (SELECT min(due_at) FROM sync.records WHERE out_of_sync AND stopped IS NULL)))), 0)::float8 AS seconds
"""

# What failed and is not finished, of an entity or of one of its business groups.
COUNT_FAILED_OF_ENTITY = """
SELECT count(*) AS n FROM sync.events e
WHERE e.entity = %(entity)s AND e.state IN ('waiting', 'dead')
  AND (%(group)s::text IS NULL OR e.group_key = %(group)s::text
       OR EXISTS (SELECT FROM sync.records r
                  WHERE r.entity = e.entity AND r.key = e.key AND r.group_key = %(group)s::text))
"""

LIST_EVENTS = """
SELECT seq, source, event_id, entity, key, group_key, action, version, state, attempts,
       nullif(due_at, 'infinity') AS due_at, received_at, revision, error, awaiting
FROM sync.events
WHERE (%(state)s::text IS NULL OR state = %(state)s::text)
  AND (%(entity)s::text IS NULL OR entity = %(entity)s::text)
  AND (%(key)s::text IS NULL OR key = %(key)s::text)
ORDER BY seq DESC LIMIT %(most)s
"""

# Everything known of one event, active or finished.
SELECT_EVENT = """
SELECT seq, source, event_id, entity, key, group_key, action, version, thin, data, origin, conflicting, received_at,
       state, attempts, revision, error, awaiting, nullif(due_at, 'infinity') AS due_at,
       NULL::timestamptz AS finished_at, NULL::text AS reason
FROM sync.events WHERE seq = %(seq)s
UNION ALL
SELECT seq, source, event_id, entity, key, group_key, action, version, thin, data, origin, conflicting, received_at,
       state, attempts, revision, error, NULL, NULL, finished_at, reason
FROM sync.event_history WHERE seq = %(seq)s
"""

LIST_EVENTS_OF_RECORD = """
SELECT seq, source, event_id, action, version, state, attempts, revision, error, received_at, finished_at, reason
FROM (SELECT seq, source, event_id, entity, key, action, version, state, attempts, revision, error, received_at,
             NULL::timestamptz AS finished_at, NULL::text AS reason FROM sync.events
      UNION ALL
      SELECT seq, source, event_id, entity, key, action, version, state, attempts, revision, error, received_at,
             finished_at, reason FROM sync.event_history) e
WHERE entity = %(entity)s AND key = %(key)s ORDER BY seq
"""

# What became of the events of an id, of any of these sources.
SELECT_EVENT_BY_ID = """
SELECT source, event_id AS id, entity, key, action, version, state, attempts, revision, error, conflicting, received_at,
       nullif(due_at, 'infinity') AS due_at, NULL::timestamptz AS finished_at, NULL::text AS reason, seq
FROM sync.events WHERE source = ANY(%(sources)s) AND event_id = %(id)s
UNION ALL
SELECT source, event_id, entity, key, action, version, state, attempts, revision, error, conflicting, received_at,
       NULL, finished_at, reason, seq
FROM sync.event_history WHERE source = ANY(%(sources)s) AND event_id = %(id)s
ORDER BY seq
"""

# The events behind records that are tried again.
REDRIVE_ARCHIVED_EVENTS = """
UPDATE sync.events SET state = 'pending', attempts = 0, due_at = sync.clock()
WHERE entity = %(entity)s AND key = ANY(%(keys)s) AND revision IS NOT NULL AND state IN ('waiting', 'dead')
"""

# The breaker of a third party opened: the failures that led to it cost the events of its records nothing.
RELEASE_EVENTS_OF_SYSTEM = """
UPDATE sync.events e
SET state = 'pending', attempts = b.attempts_before, due_at = sync.clock()
FROM sync.breaker_failures b
WHERE b.system = %(system)s AND e.entity = b.entity AND e.key = b.key AND e.revision IS NOT NULL
  AND e.state IN ('waiting', 'dead')
"""

# As ``ledger.OLDEST_DUE``, without records that wait for an adoption.
SELECT_OLDEST_DUE_OF_UNSUSPENDED = """
SELECT coalesce(greatest(0, EXTRACT(epoch FROM sync.clock() - least(
    (SELECT min(due_at) FROM sync.events WHERE revision IS NULL AND state IN ('pending', 'waiting', 'leased')
        AND due_at <> 'infinity'),
    (SELECT min(due_at) FROM sync.records
     WHERE out_of_sync AND stopped IS NULL AND entity <> ALL(%(suspended)s::text[]))))), 0)::float8 AS seconds
"""
