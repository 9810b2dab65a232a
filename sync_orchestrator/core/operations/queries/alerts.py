"""The statements about open alerts, and about pushes that wait for an operator or for a third party."""

LIST_OPEN_ALERTS = """
SELECT kind, cause, entity, title, n, created_at, updated_at FROM sync.alerts WHERE resolved_at IS NULL
ORDER BY created_at, id
"""
