"""The queries of ``core/systems/``. Parameters are bound; batches come as arrays."""

from sync_orchestrator.core.db.fragments import HOLDER_VALID_SECONDS

INSERT_CLAIM_HOLDER = """
INSERT INTO sync.holders (id, name) VALUES (nextval('sync.read_sequence'), %(name)s) RETURNING id
"""

RENEW_CLAIM_HOLDER = f"""
UPDATE sync.holders SET at = sync.clock()
WHERE id = %(id)s AND at >= sync.clock() - interval '{HOLDER_VALID_SECONDS:g} s'
RETURNING id
"""

DELETE_CLAIM_HOLDER = "DELETE FROM sync.holders WHERE id = %(id)s"

# Leases that ran out say all that is to be said of the claims of these.
DELETE_GONE_CLAIM_HOLDERS = "DELETE FROM sync.holders WHERE at < sync.clock() - make_interval(secs => %(seconds)s)"

LIST_EPOCHS = "SELECT name, epoch FROM sync.systems"

STEP_EPOCH = "UPDATE sync.systems SET epoch = epoch + 1 WHERE name = %(name)s RETURNING epoch"

# Breaker and rate -------------------------------------------------------------------------------------------------

REGISTER_SYSTEM = "INSERT INTO sync.systems (name) VALUES (%(name)s) ON CONFLICT DO NOTHING"

SELECT_SYSTEM = """
SELECT name, paused, open_since, probe_wait, suspended_at, suspended_reason,
       EXTRACT(epoch FROM probe_at - sync.clock())::float8 AS probe_in,
       EXTRACT(epoch FROM not_before - sync.clock())::float8 AS blocked_for,
       EXTRACT(epoch FROM sync.clock() - succeeded_at)::float8 AS succeeded_ago
FROM sync.systems WHERE name = %(name)s
"""

LOCK_SYSTEM = SELECT_SYSTEM + " FOR UPDATE"

LIST_OPEN_BREAKERS = "SELECT name FROM sync.systems WHERE open_since IS NOT NULL"

OPEN_BREAKER = """
UPDATE sync.systems
SET open_since = coalesce(open_since, sync.clock()), probe_wait = %(wait)s,
    probe_at = sync.clock() + make_interval(secs => %(wait)s)
WHERE name = %(name)s
"""

CLOSE_BREAKER = "UPDATE sync.systems SET open_since = NULL, probe_at = NULL, probe_wait = NULL WHERE name = %(name)s"

HOLD_OFF_UNTIL = """
UPDATE sync.systems SET not_before = greatest(coalesce(not_before, '-infinity'),
                                              sync.clock() + make_interval(secs => %(seconds)s)),
    not_before_reason = CASE
        WHEN not_before > sync.clock() + make_interval(secs => %(seconds)s - 1) THEN not_before_reason
        ELSE left(%(reason)s, 400) END
WHERE name = %(name)s
"""

# Read before calls, so without a lock.
SECONDS_HELD_OFF = """
SELECT greatest(0, EXTRACT(epoch FROM not_before - sync.clock()))::float8 AS seconds, not_before_reason AS reason,
       EXTRACT(epoch FROM clock_timestamp() - rate_share_at)::float8 AS refused_ago
FROM sync.systems WHERE name = %(name)s
"""

# Reserves room for n calls at the configured rate; says how long to wait before the first of them.
# After a refusal the rate grows back by a fiftieth of itself a second.
_SECONDS_SINCE_RATE_CHANGE = "EXTRACT(epoch FROM clock_timestamp() - coalesce(rate_share_at, clock_timestamp()))"

RATE_SHARE = f"least(1, rate_share + 0.02 * least({_SECONDS_SINCE_RATE_CHANGE}, 100))::float8"
"""The part of the configured rate that is used now."""

# Room for so many calls: the wait before the first of them, and the time from one to the next.
RESERVE_CALL = f"""
UPDATE sync.systems s
SET next_call = greatest(coalesce(next_call, clock_timestamp()), clock_timestamp() - make_interval(secs => now.step))
                + make_interval(secs => %(n)s * now.step)
FROM (SELECT name, %(step)s / {RATE_SHARE} AS step FROM sync.systems WHERE name = %(name)s) now
WHERE s.name = now.name
RETURNING EXTRACT(epoch FROM next_call - make_interval(secs => %(n)s * now.step) - clock_timestamp())::float8 AS wait,
          now.step
"""

# A call was refused for coming too fast; many at once are one refusal.
LOWER_RATE_SHARE = f"""
UPDATE sync.systems SET rate_share = greatest(0.05, 0.7 * {RATE_SHARE}), rate_share_at = clock_timestamp()
WHERE name = %(name)s AND (rate_share_at IS NULL OR rate_share_at < clock_timestamp() - interval '1 second')
"""

# Read before calls, so without a lock.
SELECT_CALL_LIMIT = """
SELECT calls_at_once, batch_share, calls_reason,
       EXTRACT(epoch FROM clock_timestamp() - calls_lost_at)::float8 AS lost_ago
FROM sync.systems WHERE name = %(name)s
"""

# What one process observed for so many seconds, unless another has changed the limit since: calls that were under way
# at once are one loss, and the limit grows by one step a window whatever the number of processes.
SET_CALL_LIMIT = """
UPDATE sync.systems
SET calls_at_once = %(calls)s, calls_max = %(most)s, batch_share = %(batch)s, calls_reason = left(%(reason)s, 400),
    calls_lost_at = CASE WHEN %(lowers)s THEN clock_timestamp() ELSE calls_lost_at END,
    calls_grown_at = CASE WHEN %(lowers)s THEN calls_grown_at ELSE clock_timestamp() END
WHERE name = %(name)s
  AND coalesce(CASE WHEN %(lowers)s THEN calls_lost_at ELSE greatest(calls_lost_at, calls_grown_at) END, '-infinity')
      < clock_timestamp() - make_interval(secs => %(within)s)
RETURNING calls_at_once, batch_share, calls_reason,
          EXTRACT(epoch FROM clock_timestamp() - calls_lost_at)::float8 AS lost_ago
"""

# Tells how often a record has failed since the third party last did what it was asked.
ADD_BREAKER_FAILURES = """
INSERT INTO sync.breaker_failures (system, entity, key, attempts_before)
SELECT %(system)s, * FROM unnest(%(entity)s::text[], %(key)s::text[], %(attempts)s::int[])
ON CONFLICT (system, entity, key) DO UPDATE SET times = breaker_failures.times + 1
RETURNING entity, key, times
"""

NOTE_SUCCESS = "UPDATE sync.systems SET succeeded_at = sync.clock() WHERE name = %(name)s"

# The records that failed since the last success, and how long ago the first of these failures was.
COUNT_BREAKER_FAILURES = """
SELECT count(*) AS records, coalesce(EXTRACT(epoch FROM sync.clock() - min(at)), 0)::float8 AS seconds
FROM sync.breaker_failures WHERE system = %(system)s
"""

CLEAR_BREAKER_FAILURES = "DELETE FROM sync.breaker_failures WHERE system = %(system)s"

ENSURE_LOGIN_SESSION = "INSERT INTO sync.logins (system) VALUES (%(system)s) ON CONFLICT DO NOTHING"

SELECT_LOGIN_SESSION = """
SELECT number, mark, token, refresh, picked, coalesce(lease_until > sync.clock(), false) AS taken,
       EXTRACT(epoch FROM renew_at - sync.clock())::float8 AS renew_in
FROM sync.logins WHERE system = %(system)s FOR UPDATE
"""

LEASE_LOGIN_SESSION = """
UPDATE sync.logins
SET lease_token = nextval('sync.read_sequence'), lease_until = sync.clock() + make_interval(secs => %(seconds)s)
WHERE system = %(system)s
RETURNING lease_token
"""

# Only the lease's token may say what the login gave; a login that came too late changes nothing.
STORE_LOGIN_SESSION = """
UPDATE sync.logins
SET number = lease_token, mark = %(mark)s, token = %(token)s, refresh = %(refresh)s, picked = %(picked)s,
    renew_at = sync.clock() + make_interval(secs => %(renew_in)s::float8), updated_at = sync.clock(),
    lease_token = NULL, lease_until = NULL
WHERE system = %(system)s AND lease_token = %(lease)s
RETURNING number
"""

RELEASE_LOGIN_SESSION = """
UPDATE sync.logins SET lease_token = NULL, lease_until = NULL WHERE system = %(system)s AND lease_token = %(lease)s
"""

# Suspension ---------------------------------------------------------------------------------------------------------

# A suspension for a new reason begins again: what was adopted before counts no more.
SUSPEND_SYSTEM = """
UPDATE sync.systems SET suspended_at = sync.clock(), suspended_reason = %(reason)s
WHERE name = %(name)s RETURNING name
"""

SELECT_SUSPENSION = """
SELECT suspended_at, suspended_reason, account,
       EXTRACT(epoch FROM sync.clock() - suspended_at)::float8 AS suspended_for
FROM sync.systems WHERE name = %(name)s
"""

LOCK_SUSPENSION = SELECT_SUSPENSION + " FOR UPDATE"

LIST_SUSPENDED_SYSTEMS = "SELECT name, suspended_reason FROM sync.systems WHERE suspended_at IS NOT NULL ORDER BY name"

# ``account`` NULL: the next drain learns whose ids the records have.
LIFT_SUSPENSION = """
UPDATE sync.systems SET suspended_at = NULL, suspended_reason = NULL, account = %(account)s
WHERE name = %(name)s AND suspended_at IS NOT NULL RETURNING name
"""

STORE_ACCOUNT = "UPDATE sync.systems SET account = %(account)s WHERE name = %(name)s"

INSERT_STRAY_IDS = """
INSERT INTO sync.stray_ids (system, entity, key, external_id, shown_key)
SELECT %(system)s, * FROM unnest(
    %(entity)s::text[], %(key)s::text[], %(external_id)s::text[], %(shown_key)s::text[]) AS v ORDER BY 1, 2, 3
ON CONFLICT (system, entity, key, external_id) DO UPDATE SET shown_key = excluded.shown_key, at = sync.clock()
"""

COUNT_STRAY_IDS = """
SELECT count(DISTINCT (entity, key)) AS n FROM sync.stray_ids
WHERE system = %(system)s AND at > sync.clock() - make_interval(secs => %(window)s)
"""

LIST_STRAY_IDS = """
SELECT entity, key, external_id, shown_key FROM sync.stray_ids WHERE system = %(system)s
ORDER BY at DESC, entity, key LIMIT %(limit)s
"""

DELETE_STRAY_IDS = """
DELETE FROM sync.stray_ids WHERE system = %(system)s AND (%(entity)s::text IS NULL OR entity = %(entity)s::text)
"""

DELETE_OLD_STRAY_IDS = "DELETE FROM sync.stray_ids WHERE at < sync.clock() - make_interval(secs => %(age)s)"

LIST_ENTITIES_WITH_STRAY_IDS = "SELECT DISTINCT entity FROM sync.stray_ids"

LIST_OPEN_STRAY_ALERTS = "SELECT DISTINCT entity FROM sync.alerts WHERE kind = 'id_reused' AND resolved_at IS NULL"

# Installation -------------------------------------------------------------------------------------------------------

SELECT_INSTALLATION = """
SELECT system_identifier, timeline, database_oid, EXTRACT(epoch FROM seen_at)::text AS since
FROM sync.installation
"""

LOCK_INSTALLATION = SELECT_INSTALLATION + " FOR UPDATE"

STORE_INSTALLATION = """
INSERT INTO sync.installation (system_identifier, timeline, database_oid, seen_at)
VALUES (%(system_identifier)s, %(timeline)s, %(database_oid)s, clock_timestamp())
ON CONFLICT (only_one) DO UPDATE
SET system_identifier = excluded.system_identifier, timeline = excluded.timeline,
    database_oid = excluded.database_oid, seen_at = excluded.seen_at
"""

# Nothing of this needs a privilege of its own; some servers refuse it all the same. The timeline is that of the WAL, as
# the control file follows with the next checkpoint only.
SELECT_SYSTEM_IDENTIFIER = "SELECT system_identifier::text AS value FROM pg_control_system()"

SELECT_TIMELINE = "SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint AS value"

SELECT_WAL_POSITION = """
SELECT oid::bigint AS database_oid, pg_is_in_recovery() AS in_recovery FROM pg_database
WHERE datname = current_database()
"""

SELECT_LAST_READ_SEQUENCE = "SELECT last_value AS value FROM sync.read_sequence"

# Processes that worked on the lost part of the history may still hold leases: none of their numbers is given again.
ADVANCE_READ_SEQUENCE = """
SELECT setval('sync.read_sequence', greatest((SELECT last_value FROM sync.read_sequence), %(mark)s) + 1000000)
"""

# Full syncs that were under way when the backup was made start from the beginning.
RESTART_LISTINGS = """
UPDATE sync.groups SET sync_id = NULL, sync_phase = NULL, sync_cursor = NULL WHERE sync_id IS NOT NULL
"""

# Of each entity, by `systems` its third party: why no push of it goes out, and how many records wait for one.
LIST_PAUSES = """
SELECT e.name, s.name AS system, coalesce(n.paused, false) AS entity_paused, coalesce(s.paused, false) AS system_paused,
       s.open_since, s.suspended_at, s.suspended_reason,
       (SELECT count(*) FROM sync.records r WHERE r.entity = e.name AND r.out_of_sync AND r.stopped IS NULL) AS waiting
FROM jsonb_each_text(%(systems)s::jsonb) AS e (name, system)
LEFT JOIN sync.systems s ON s.name = e.system LEFT JOIN sync.entities n ON n.name = e.name
WHERE n.paused OR s.paused OR s.open_since IS NOT NULL OR s.suspended_at IS NOT NULL
ORDER BY e.name
"""
