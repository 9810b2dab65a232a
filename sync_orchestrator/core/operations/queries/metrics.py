"""The statements behind the figures of ``/metrics``: counters that survive restarts, and what is open now."""

COUNT_FINISHED_EVENTS = "SELECT entity, source, what AS outcome, sum(n)::bigint AS n FROM sync.tallies GROUP BY 1, 2, 3"

COUNT_ACTIVE_EVENTS = "SELECT entity, source, state, count(*) AS n FROM sync.events GROUP BY 1, 2, 3"

COUNT_PUSHES = "SELECT entity, outcome, sum(n)::bigint AS n FROM sync.push_tallies GROUP BY 1, 2"

SUM_LATENCIES = """
SELECT entity, most, sum(n)::bigint AS n, sum(seconds)::float8 AS seconds FROM sync.latencies
GROUP BY 1, 2 ORDER BY 1, 2
"""

LIST_OPEN_BREAKERS = "SELECT name AS system, (open_since IS NOT NULL)::int AS n FROM sync.systems"

LIST_SUSPENDED = "SELECT name AS system, (suspended_at IS NOT NULL)::int AS n FROM sync.systems"

COUNT_VERDICTS = """
SELECT g.entity, coalesce(v.verdict, 'not_validated') AS verdict, count(*) AS n
FROM sync.groups g LEFT JOIN LATERAL (
    SELECT verdict FROM sync.validations v WHERE v.entity = g.entity AND v.group_key = g.group_key
    ORDER BY at DESC LIMIT 1) v ON true
GROUP BY 1, 2
"""

COUNT_OPEN_DRIFT = "SELECT entity, kind, count(*) AS n FROM sync.drift WHERE status <> 'repaired' GROUP BY 1, 2"

COUNT_OPEN_ALERTS = "SELECT kind, count(*) AS n FROM sync.alerts WHERE resolved_at IS NULL GROUP BY kind"

LIST_HEARTBEAT_AGES = """
SELECT split_part(name, ' ', 1) AS name, EXTRACT(epoch FROM sync.clock() - max(at))::float8 AS n
FROM sync.heartbeats
WHERE name NOT LIKE 'probe %%' AND name NOT LIKE 'run %%' AND name NOT LIKE 'expected %%'
GROUP BY 1
"""

# Of each task, by the worker whose last successful round is the newest.
LIST_WORKER_TASK_AGES = """
SELECT task.key AS task,
       min(EXTRACT(epoch FROM sync.clock() - h.at)::float8 + (task.value ->> 'quiet_seconds')::float8) AS n
FROM sync.heartbeats h CROSS JOIN LATERAL jsonb_each(h.detail -> 'tasks') task
WHERE h.name LIKE 'worker %%' GROUP BY 1
"""
