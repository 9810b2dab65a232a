"""Tries a configuration out on the systems themselves: every step reads, none writes, none needs the database.

A step that fails ends what depends on it, and no other.
"""

from sync_orchestrator.conformance.live_check.run import check_live

__all__ = ["check_live"]
