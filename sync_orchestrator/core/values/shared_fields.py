"""Whether a record shows what it may show before it is written (``WriteGuard``). Pure."""

from __future__ import annotations

from collections.abc import Mapping as NamedValues

from sync_orchestrator.core.ports import WriteGuard
from sync_orchestrator.core.values.mapping import Mapping
from sync_orchestrator.errors import CallFailed, Failure, Refusal


def check_guard(mapping: Mapping, guard: WriteGuard, fields: NamedValues[str, object]) -> None:
    """Raises CallFailed where a guarded field has been changed by somebody else.

    Args:
        mapping: How values are compared.
        guard: What the record may show.
        fields: The mapped fields as the record shows them.
    """
    left = set(guard.fields)
    for payload in guard.expected:
        left &= {row["field"] for row in mapping.list_differences(payload, dict(fields))}
    if left:
        raise build_changed_failure(sorted(left)[0])


def build_changed_failure(field: str) -> CallFailed:
    """The failure of a write that was not made, since somebody has changed the record since it was read."""
    return CallFailed(
        Failure.TRANSIENT, f"'{field}' was changed there since it was read", refusal=Refusal.CHANGED_SINCE_READ
    )
