"""The notification that wakes drains: a hint, sent in the transaction that makes work due."""

# Work is announced once per commit; a listener that misses it finds the work at its next look.
NOTIFY_WORK = "SELECT pg_notify('sync_work', '')"
