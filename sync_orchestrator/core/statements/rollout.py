"""The statements of rollouts: shares, their history, how the new path fares."""

_STATE = "route, version, percent, shadow, allow, deny, halted"

ALL = f"SELECT {_STATE}, changed_at FROM sync.rollouts"

OF = f"SELECT {_STATE} FROM sync.rollouts WHERE route = %(route)s"

# So that there is a row to lock: two changes at once would both begin from the same state.
ENSURE = """
INSERT INTO sync.rollouts (route, version, percent, shadow, allow, deny, halted)
VALUES (%(route)s, 0, 0, false, '{}', '{}', false) ON CONFLICT DO NOTHING
"""

LOCK = f"{OF} FOR UPDATE"

CHANGE = f"""
WITH changed AS (
    UPDATE sync.rollouts SET version = version + 1, percent = %(percent)s, shadow = %(shadow)s, allow = %(allow)s,
        deny = %(deny)s, halted = %(halted)s, changed_at = sync.clock()
    WHERE route = %(route)s RETURNING {_STATE}
)
INSERT INTO sync.rollout_changes ({_STATE}, who, why, overrode)
SELECT {_STATE}, %(who)s, %(why)s, %(overrode)s FROM changed RETURNING {_STATE}
"""

HISTORY = f"""
SELECT {_STATE}, who, why, overrode, at FROM sync.rollout_changes WHERE route = %(route)s ORDER BY id DESC
LIMIT %(most)s
"""

# Every business group that was filled, by its last verdict; one that was found wrong or is late says so.
VALIDATED = """
SELECT count(*) AS groups,
       count(*) FILTER (WHERE verdict IS DISTINCT FROM 'in_step') AS unclean,
       count(*) FILTER (WHERE verdict = 'in_step' AND at < sync.clock() - make_interval(secs => %(longest)s)) AS late,
       min(group_key) FILTER (WHERE verdict IS DISTINCT FROM 'in_step'
                              OR at < sync.clock() - make_interval(secs => %(longest)s)) AS example
FROM sync.groups g LEFT JOIN LATERAL (
    SELECT verdict, at FROM sync.validations v WHERE v.entity = g.entity AND v.group_key = g.group_key
    ORDER BY at DESC, id DESC LIMIT 1) v ON true
WHERE g.entity = %(entity)s AND g.first_completed_at IS NOT NULL
"""

COUNT = """
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

TOTAL = """
INSERT INTO sync.rollout_totals (route, what, n)
SELECT * FROM unnest(%(route)s::text[], %(what)s::text[], %(n)s::bigint[]) AS v (route, what, n) ORDER BY route, what
ON CONFLICT (route, what) DO UPDATE SET n = rollout_totals.n + excluded.n
"""

# Under the present version only: what was before the last change says nothing of what is now.
FARED = """
SELECT coalesce(sum(tried), 0)::bigint AS tried, coalesce(sum(failed), 0)::bigint AS failed,
       coalesce(sum(compared), 0)::bigint AS compared, coalesce(sum(different), 0)::bigint AS different
FROM sync.rollout_counts
WHERE route = %(route)s AND version = %(version)s AND piece > sync.clock() - make_interval(secs => %(window)s)
"""

FORGET = "DELETE FROM sync.rollout_counts WHERE piece < sync.clock() - interval '1 day'"

TOTALS = "SELECT route, what, n FROM sync.rollout_totals"

SHARES = "SELECT route, CASE WHEN halted THEN 0 ELSE percent END AS n FROM sync.rollouts"
