"""The log of attempts: what each push has called, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.push import queries
from sync_orchestrator.core.push.decision import PushStep

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sync_orchestrator.core.push.result import Pushed

_MAX_DETAIL_LENGTH = 500


def log_attempts(connection: Connection, called: Sequence[Pushed]) -> None:
    """Writes down pushes that called the third party."""
    if called:
        run(
            connection,
            queries.INSERT_ATTEMPTS,
            entity=[end.claim.entity for end in called],
            key=[end.claim.key for end in called],
            revision=[end.claim.revision for end in called],
            step=[str(end.step) for end in called],
            outcome=[_outcome_of(end) for end in called],
            status=[end.failure.status if end.failure else None for end in called],
            detail=[_detail_of(end) for end in called],
        )


def list_attempts(connection: Connection, entity: str, key: str) -> list[dict[str, object]]:
    """The logged attempts of a record, in order of time, each by the names of its columns."""
    return [dict(row._mapping) for row in run(connection, queries.LIST_ATTEMPTS_OF_RECORD, entity=entity, key=key)]


def _detail_of(end: Pushed) -> str | None:
    if end.step is PushStep.NOT_SENT:
        return "deletes: never"
    return end.failure.detail[:_MAX_DETAIL_LENGTH] if end.failure else end.external_id


def _outcome_of(end: Pushed) -> str:
    if end.failure is not None:
        return "unknown" if end.failure.unknown else str(end.failure.kind)
    if end.step is PushStep.NOT_SENT:
        return "not sent"
    return "postponed" if end.postponed is not None else "acknowledged"
