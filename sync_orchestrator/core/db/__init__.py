"""Access to Postgres: sessions, connections, notifications, and the pieces that statements share.

It knows no tables. The statements of each package are in its own ``queries``.
"""
