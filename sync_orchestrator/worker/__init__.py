"""The worker: sends alerts and outcomes, polls sources, and looks each minute for what waits too long.

``sync-orchestrator up`` runs one, ``sync-orchestrator worker`` runs one alone. Several may run at once: outboxes and
leases in the database share the work out. A worker that is killed loses nothing.
"""
