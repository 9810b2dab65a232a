"""The alerts that are open now, by the entities that they concern.

An alert that names no entity concerns those of its third party, or all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.operations.queries import alerts as alerts_queries
from sync_orchestrator.core.systems.pauses import Pause, pauses_of

_OF_A_THIRD_PARTY = ("breaker_open", "adoption_needed")
_OF_A_PAUSE = ("breaker_open",)
"""Kinds that say only that pushes wait: nothing is lost, and they go on without an operator."""


@dataclass(frozen=True, slots=True)
class OpenAlert:
    """One open alert; ``entity`` is None where it is about the system as a whole."""

    kind: str
    cause: str
    entity: str | None
    title: str
    count: int
    since: datetime

    @property
    def is_urgent(self) -> bool:
        """Whether an operator is needed; otherwise pushes only wait."""
        return self.kind not in _OF_A_PAUSE


@dataclass(frozen=True, slots=True)
class OpenAlerts:
    """What is open and what waits, by entity."""

    alerts: Mapping[str, Sequence[OpenAlert]]
    pauses: Mapping[str, Pause]
    count: int
    """The number of all open alerts."""

    def compute_digest(self) -> str:
        """Changes when an alert begins or ends, or a pause does."""
        return _digest_json(
            [
                [[entity, each.kind, each.cause] for entity, some in self.alerts.items() for each in some],
                [[pause.entity, pause.reason] for pause in self.pauses.values()],
            ]
        )

    def digest_of_figures(self) -> str:
        """Changes when anything does that is reported, such as the count of an alert."""
        return _digest_json(
            [
                [[entity, each.kind, each.title, each.count] for entity, some in self.alerts.items() for each in some],
                [[pause.entity, pause.waiting] for pause in self.pauses.values()],
            ]
        )


def open_alerts(connection: Connection, systems: Mapping[str, str]) -> OpenAlerts:
    """Reads the open alerts and the pauses.

    Args:
        connection: A connection within a transaction.
        systems: Third parties by the entities that are mirrored to them.
    """
    found = [
        OpenAlert(row.kind, row.cause, row.entity, row.title, row.n, row.created_at)
        for row in run(connection, alerts_queries.LIST_OPEN_ALERTS)
    ]
    return OpenAlerts(
        {entity: [alert for alert in found if _concerns_entity(alert, entity, systems)] for entity in systems},
        pauses_of(connection, systems),
        len(found),
    )


def _concerns_entity(alert: OpenAlert, entity: str, systems: Mapping[str, str]) -> bool:
    if alert.entity in systems:
        return alert.entity == entity
    if alert.kind in _OF_A_THIRD_PARTY and alert.cause in systems.values():
        return alert.cause == systems[entity]
    return True


def _digest_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
