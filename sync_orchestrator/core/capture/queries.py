"""The queries of ``core/capture/``. Parameters are bound; batches come as arrays."""

SELECT_STREAM = "SELECT * FROM sync.streams WHERE name = %(name)s"

LIST_STREAMS = """
SELECT name, identity, position, number, events, retained, behind, lost, lost_at, error, recorded_at, tables,
       lease_until > sync.clock() AS is_read, EXTRACT(epoch FROM sync.clock() - at)::float8 AS age
FROM sync.streams ORDER BY name
"""

# One reader a stream; another one takes over when the lease has ended. No row where another reader has it.
CLAIM_STREAM = """
INSERT INTO sync.streams AS s (name, identity, position, lease_token, lease_until, at)
VALUES (%(name)s, '', '', nextval('sync.read_sequence'), sync.clock() + make_interval(secs => %(lease)s), sync.clock())
ON CONFLICT (name) DO UPDATE SET lease_token = excluded.lease_token, lease_until = excluded.lease_until
WHERE s.lease_until IS NULL OR s.lease_until <= sync.clock()
RETURNING lease_token
"""

RENEW_STREAM = """
UPDATE sync.streams
SET lease_until = sync.clock() + make_interval(secs => %(lease)s), at = sync.clock(), error = NULL,
    retained = coalesce(%(retained)s, retained), behind = coalesce(%(behind)s, behind)
WHERE name = %(name)s AND lease_token = %(token)s RETURNING name
"""

# Keeps the lease of a reader whose source is down: ``at`` stays, by which the outage is told.
NOTE_STREAM_ERROR = """
UPDATE sync.streams SET error = %(error)s, lease_until = sync.clock() + make_interval(secs => %(lease)s)
WHERE name = %(name)s AND lease_token = %(token)s
RETURNING EXTRACT(epoch FROM sync.clock() - at)::float8 AS age
"""

RELEASE_STREAM = """
UPDATE sync.streams SET lease_until = NULL WHERE name = %(name)s AND lease_token = %(token)s
"""

# No row where another reader has taken over, or moved the position.
MOVE_STREAM = """
UPDATE sync.streams
SET position = %(position)s, partial = %(partial)s, number = number + %(pieces)s,
    events = events + %(events)s, at = sync.clock(),
    recorded_at = CASE WHEN %(events)s > 0 THEN sync.clock() ELSE recorded_at END,
    lease_until = sync.clock() + make_interval(secs => %(lease)s), error = NULL
WHERE name = %(name)s AND lease_token = %(token)s AND position = %(before)s
RETURNING number
"""

# Where it begins anew, reads that wait for it are to be repeated: changes may be missing between. Where versions become
# its numbers, these go on behind all versions that are known.
OPEN_STREAM = """
UPDATE sync.streams
SET generation = CASE WHEN %(anew)s THEN nextval('sync.read_sequence') ELSE generation END,
    number = greatest(number, %(floor)s), numbered = %(numbered)s,
    identity = %(identity)s, position = %(position)s, partial = %(partial)s, tables = %(tables)s,
    entities = %(entities)s,
    lost = coalesce(%(lost)s, lost),
    lost_at = CASE WHEN %(lost)s::text IS NULL THEN lost_at ELSE sync.clock() END, at = sync.clock(), error = NULL
WHERE name = %(name)s AND lease_token = %(token)s RETURNING name
"""

NOTE_LOSS = "UPDATE sync.streams SET lost = %(lost)s, lost_at = sync.clock() WHERE name = %(name)s"

DELETE_STREAM = "DELETE FROM sync.streams WHERE name = %(name)s RETURNING name"

END_LEASE = "UPDATE sync.streams SET lease_until = NULL, lease_token = NULL WHERE name = %(name)s"

# The newest version that is known of each record's part, archived or on its way.
SELECT_KNOWN_VERSIONS = """
SELECT k.entity, k.key, greatest(
    (SELECT p.version FROM sync.parts p WHERE p.entity = k.entity AND p.key = k.key AND p.part = %(part)s),
    (SELECT max(e.version) FROM sync.events e
     WHERE e.entity = k.entity AND e.key = k.key AND e.source = %(part)s AND e.revision IS NULL)) AS version
FROM unnest(%(entities)s::text[], %(keys)s::text[]) AS k (entity, key)
"""

# The newest version of a source's parts of some entities, archived or on its way.
SELECT_NEWEST_VERSION = """
SELECT greatest((SELECT max(version) FROM sync.parts WHERE part = %(part)s AND entity = ANY(%(entities)s)),
                (SELECT max(version) FROM sync.events WHERE source = %(part)s AND entity = ANY(%(entities)s)),
                0) AS version
"""

NOTE_NUMBERS = """
SELECT name, number, generation FROM sync.streams WHERE name = ANY(%(names)s) AND position <> ''
"""

# How far streams are that reads wait for. Their readers are asked to write how far they are.
LOOK_AT_STREAMS = """
SELECT s.name, s.number, s.generation, s.position, s.partial, s.error, s.lease_until > sync.clock() AS is_read,
       s.position <> '' AND s.position::pg_lsn >= w.wanted::pg_lsn AS has_passed,
       CASE WHEN s.position = '' OR s.position::pg_lsn < w.wanted::pg_lsn THEN pg_notify('sync_capture', s.name) END
FROM unnest(%(names)s::text[], %(wanted)s::text[]) AS w (name, wanted) JOIN sync.streams s USING (name)
"""

# Streams none of whose business groups is unproven: full syncs have made up for all that was lost.
END_RESTORED_LOSSES = """
UPDATE sync.streams s SET lost = NULL
WHERE NOT EXISTS (SELECT FROM sync.groups g WHERE g.entity = ANY(s.entities) AND g.unproven_since IS NOT NULL)
RETURNING name
"""

LIST_STALE_STREAMS = """
SELECT name, error, EXTRACT(epoch FROM sync.clock() - at)::float8 AS age FROM sync.streams
WHERE at < sync.clock() - make_interval(secs => %(after)s) ORDER BY name
"""

FORGET_TABLES = "UPDATE sync.streams SET tables = tables - %(gone)s::text[] WHERE name = %(name)s"

NOTE_TABLES = "UPDATE sync.streams SET tables = %(tables)s WHERE name = %(name)s AND lease_token = %(token)s"
