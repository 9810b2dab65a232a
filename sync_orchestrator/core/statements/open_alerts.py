"""The statements about open alerts, and about pushes that wait for an operator or for a third party."""

OPEN = """
SELECT kind, cause, entity, title, n, created_at, updated_at FROM sync.alerts WHERE resolved_at IS NULL
ORDER BY created_at, id
"""

# Of each entity, by `systems` its third party: why no push of it goes out, and how many records wait for one.
PAUSES = """
SELECT e.name, s.name AS system, coalesce(n.paused, false) AS entity_paused, coalesce(s.paused, false) AS system_paused,
       s.open_since, s.suspended_at, s.suspended_reason,
       (SELECT count(*) FROM sync.records r WHERE r.entity = e.name AND r.out_of_step AND r.parked IS NULL) AS waiting
FROM jsonb_each_text(%(systems)s::jsonb) AS e (name, system)
LEFT JOIN sync.systems s ON s.name = e.system LEFT JOIN sync.entities n ON n.name = e.name
WHERE n.paused OR s.paused OR s.open_since IS NOT NULL OR s.suspended_at IS NOT NULL
ORDER BY e.name
"""
