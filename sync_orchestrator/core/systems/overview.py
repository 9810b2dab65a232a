"""Source systems and third parties at a glance: pauses, breakers, rates, limits of calls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.systems import queries
from sync_orchestrator.core.systems.call_limit import FORGOTTEN_AFTER_SECONDS

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row


def list_systems(connection: Connection) -> dict[str, dict[str, Any]]:
    """Source systems and third parties by name: pauses, breakers, limits."""
    return {
        row.name: {
            "paused": row.paused,
            "epoch": row.epoch,
            "breaker": "open" if row.open_since else "closed",
            "open_since": row.open_since.isoformat() if row.open_since else None,
            "held_off_seconds": round(row.held_off or 0.0, 1),
            "held_off_because": row.held_off_because,
            "rate_share": round(row.rate_share, 2),
            "call_limit": _describe_call_limit(row),
            "account": row.account,
            "suspended_since": row.suspended_at.isoformat() if row.suspended_at else None,
            "suspended_reason": row.suspended_reason,
        }
        for row in run(connection, queries.LIST_SYSTEMS, limit_kept_seconds=FORGOTTEN_AFTER_SECONDS)
    }


def _describe_call_limit(row: Row[Any]) -> dict[str, object] | None:
    """How many calls the system gets at once, and why; None where that is what is configured."""
    if not row.is_limited:
        return None
    return {
        "calls_at_once": max(1, int(row.calls_at_once)),
        "configured": row.calls_max,
        "batch_share": round(row.batch_share, 2),
        "since": row.calls_lost_at.isoformat(),
        "reason": row.calls_reason,
    }


def describe_call_limit(name: str, limit: dict[str, Any]) -> str:
    """The present limit of calls to a system in one sentence; ``limit`` as ``status`` has it."""
    batches = "" if limit["batch_share"] >= 1 else f", and bulk calls have {limit['batch_share']:.0%} of their size"
    return (
        f"{name}: {limit['calls_at_once']} of {limit['configured']} calls at once are made in each process{batches}"
        f", since calls were not answered in time ({limit['since'][:19]}: {limit['reason']})"
    )


def register_systems(connection: Connection, names: Iterable[str]) -> None:
    """Makes systems known to the database, those that are known already excepted."""
    for name in names:
        run(connection, queries.REGISTER_SYSTEM, name=name)
