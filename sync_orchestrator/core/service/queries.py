"""The queries of ``core/service/``. Parameters are bound; batches come as arrays."""

INSERT_API_KEY = """
INSERT INTO sync.api_keys (id, name, secret, scopes, expires_at)
VALUES (%(id)s, %(name)s, %(secret)s, %(scopes)s, sync.clock() + make_interval(secs => %(lifetime)s))
"""

FIND_API_KEY = """
SELECT id, name, secret, scopes FROM sync.api_keys
WHERE id = %(id)s AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > sync.clock())
"""

NOTE_API_KEY_USED = """
UPDATE sync.api_keys SET used_at = sync.clock()
WHERE id = %(id)s AND (used_at IS NULL OR used_at < sync.clock() - interval '1 minute')
"""

LIST_API_KEYS = (
    "SELECT id, name, scopes, created_at, expires_at, revoked_at, used_at FROM sync.api_keys ORDER BY created_at, id"
)

REVOKE_API_KEY = """
UPDATE sync.api_keys SET revoked_at = coalesce(revoked_at, sync.clock()) WHERE id = %(id)s RETURNING id
"""

_ROLLOUT_STATE = "route, version, percent, shadow, allow, deny, halted"

LIST_ROLLOUTS = f"SELECT {_ROLLOUT_STATE}, changed_at FROM sync.rollouts"

SELECT_ROLLOUT = f"SELECT {_ROLLOUT_STATE} FROM sync.rollouts WHERE route = %(route)s"

# So that there is a row to lock: two changes at once would both begin from the same state.
ENSURE_ROLLOUT = """
INSERT INTO sync.rollouts (route, version, percent, shadow, allow, deny, halted)
VALUES (%(route)s, 0, 0, false, '{}', '{}', false) ON CONFLICT DO NOTHING
"""

LOCK_ROLLOUT = f"{SELECT_ROLLOUT} FOR UPDATE"

CHANGE_ROLLOUT_SHARE = f"""
WITH changed AS (
    UPDATE sync.rollouts SET version = version + 1, percent = %(percent)s, shadow = %(shadow)s, allow = %(allow)s,
        deny = %(deny)s, halted = %(halted)s, changed_at = sync.clock()
    WHERE route = %(route)s RETURNING {_ROLLOUT_STATE}
)
INSERT INTO sync.rollout_changes ({_ROLLOUT_STATE}, who, why, overrode)
SELECT {_ROLLOUT_STATE}, %(who)s, %(why)s, %(overrode)s FROM changed RETURNING {_ROLLOUT_STATE}
"""

LIST_ROLLOUT_CHANGES = f"""
SELECT {_ROLLOUT_STATE}, who, why, overrode, at FROM sync.rollout_changes WHERE route = %(route)s ORDER BY id DESC
LIMIT %(most)s
"""

# Every business group that was filled, by its last verdict; one that was found wrong or is late says so.
LIST_UNVALIDATED_ENTITIES = """
SELECT count(*) AS groups,
       count(*) FILTER (WHERE verdict IS DISTINCT FROM 'in_sync') AS unclean,
       count(*) FILTER (WHERE verdict = 'in_sync' AND at < sync.clock() - make_interval(secs => %(longest)s)) AS late,
       min(group_key) FILTER (WHERE verdict IS DISTINCT FROM 'in_sync'
                              OR at < sync.clock() - make_interval(secs => %(longest)s)) AS example
FROM sync.groups g LEFT JOIN LATERAL (
    SELECT verdict, at FROM sync.validations v WHERE v.entity = g.entity AND v.group_key = g.group_key
    ORDER BY at DESC, id DESC LIMIT 1) v ON true
WHERE g.entity = %(entity)s AND g.first_completed_at IS NOT NULL
"""

COUNT_ROUTE_CALL = """
INSERT INTO sync.rollout_counts (route, version, piece, tried, failed, compared, different)
SELECT route, version, date_bin(make_interval(secs => %(piece)s), sync.clock(), 'epoch'), tried, failed, compared,
       different
FROM unnest(%(route)s::text[], %(version)s::bigint[], %(tried)s::bigint[], %(failed)s::bigint[],
            %(compared)s::bigint[], %(different)s::bigint[])
     AS v (route, version, tried, failed, compared, different)
ORDER BY route, version
ON CONFLICT (route, version, piece) DO UPDATE
SET tried = rollout_counts.tried + excluded.tried, failed = rollout_counts.failed + excluded.failed,
    compared = rollout_counts.compared + excluded.compared, different = rollout_counts.different + excluded.different
"""

SUM_ROUTE_TOTALS = """
INSERT INTO sync.rollout_totals (route, what, n)
SELECT * FROM unnest(%(route)s::text[], %(what)s::text[], %(n)s::bigint[]) AS v (route, what, n) ORDER BY route, what
ON CONFLICT (route, what) DO UPDATE SET n = rollout_totals.n + excluded.n
"""

# Under the present version only: what was before the last change says nothing of what is now.
SUM_RECENT_ROUTE_CALLS = """
SELECT coalesce(sum(tried), 0)::bigint AS tried, coalesce(sum(failed), 0)::bigint AS failed,
       coalesce(sum(compared), 0)::bigint AS compared, coalesce(sum(different), 0)::bigint AS different
FROM sync.rollout_counts
WHERE route = %(route)s AND version = %(version)s AND piece > sync.clock() - make_interval(secs => %(window)s)
"""

DELETE_OLD_ROUTE_COUNTS = "DELETE FROM sync.rollout_counts WHERE piece < sync.clock() - interval '1 day'"

LIST_ROUTE_TOTALS = "SELECT route, what, n FROM sync.rollout_totals"
