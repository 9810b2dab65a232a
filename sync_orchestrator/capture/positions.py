"""Positions in logs as texts, which a stream keeps: which of two is later, and what one has passed. Pure.

Postgres has places in bytes (``0/16B3748``), MariaDB and MySQL have sets of transactions (``capture/gtids.py``).
"""

from __future__ import annotations

from sync_orchestrator.adapters.sql.log_positions import format_lsn, parse_lsn
from sync_orchestrator.capture.gtids import GtidPosition, is_gtid_position, parse_gtid_position


def find_later(one: str, other: str) -> str:
    """Returns the later of two positions of one log; an empty one is before all others."""
    if not one or not other:
        return one or other
    if is_gtid_position(one):
        return str(parse_gtid_position(one).unite(parse_gtid_position(other)))
    return format_lsn(max(parse_lsn(one), parse_lsn(other)))


def has_passed(position: str, transaction: str) -> bool:
    """Whether all of a transaction is before a position.

    Args:
        position: A position of the log.
        transaction: What its pieces name it by: the place of its commit, or its GTID.
    """
    if is_gtid_position(position):
        found: GtidPosition = parse_gtid_position(position)
        return found.contains(transaction)
    return parse_lsn(position) > parse_lsn(transaction)
