"""Outcomes of changes: rows are written in the transaction that they report on, and sent by an outbox.

Each outcome is delivered at least once, under an id that stays the same, and in order for each record. A receiver that
is down is left alone for growing times; an outcome that it refuses holds back only its own record's. Without receivers
nothing is written. ``brokers/receivers.py`` reaches the receivers; ``worker/`` sends.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.locks import lock_records_in_order
from sync_orchestrator.core.db.session import run, to_jsonb
from sync_orchestrator.core.notifications import alerts, queries
from sync_orchestrator.core.notifications.outbox import LEASE_SECONDS, Outbox
from sync_orchestrator.core.ports import Json

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Row

    from sync_orchestrator.config import AlertSettings

_log = logging.getLogger("sync_orchestrator.outcomes")

DELIVERY_SECONDS = 30.0
"""A receiver begins no call later than this after it was handed a batch; a call takes at most 20 s."""

MAX_HAND_OVER_SECONDS = 5.0
"""A batch is handed over within this time after its claim. With DELIVERY_SECONDS and the longest call, a later sender
would outlast the lease, and the outcomes of the next one would come before its own."""

_TURN_SECONDS = 40.0
_MAX_BATCH = 100


@dataclass(frozen=True, slots=True)
class OutcomeMessage:
    """One thing to be told."""

    id: int
    event_id: str
    kind: str
    entity: str
    key: str
    data: Json
    at: datetime

    @classmethod
    def from_row(cls, row: Row[Any]) -> OutcomeMessage:
        """Reads a row of ``CLAIM_DUE_OUTCOMES``."""
        return cls(
            id=row.id,
            event_id=str(row.event_id),
            kind=row.kind,
            entity=row.entity,
            key=row.key,
            data=row.data,
            at=row.at,
        )

    def cloud_event(self, source: str) -> dict[str, object]:
        """It as a CloudEvent; the same each time it is sent."""
        return {
            "specversion": "1.0",
            "id": self.event_id,
            "source": source,
            "type": f"{self.entity}.{self.kind}",
            "subject": self.key,
            "time": self.at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            "datacontenttype": "application/json",
            "data": self.data,
        }


@dataclass(slots=True)
class Delivery:
    """How a batch ended: what was ``taken``, what was ``refused`` and why, and why the receiver as a whole is ``down``.

    What is in none of them was not tried. ``rest``: how many seconds the receiver asked to be left alone.
    """

    taken: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    down: str | None = None
    rest: float = 0.0

    @property
    def taken_count(self) -> int:
        """How many outcomes the receiver took."""
        return len(self.taken)

    @property
    def failure(self) -> str | None:
        """Why the receiver takes nothing now; None where it goes on."""
        return self.down


class Receiver(Protocol):
    """Somebody who is told."""

    def deliver(self, outcomes: Sequence[OutcomeMessage]) -> Delivery:
        """Hands them over, those of one record in order and none after one of them failed. Raises nothing."""
        ...


@dataclass(frozen=True, slots=True)
class OutcomeRouting:
    """Who gets the outcomes of an entity: the names of the receivers by kind of outcome."""

    entity: str
    system: str
    receivers: Mapping[str, Sequence[str]] = field(default_factory=dict)


def record_outcomes(
    connection: Connection, routing: OutcomeRouting, kind: str, outcomes: Sequence[tuple[str, Json]]
) -> None:
    """Writes outcomes of records, by key, in the caller's transaction; costs nothing where nobody receives them."""
    receivers = routing.receivers.get(kind)
    if not receivers or not outcomes:
        return
    keys = [key for key, _ in outcomes]
    # Of one record the later transaction has the larger number.
    lock_records_in_order(connection, [routing.entity] * len(keys), keys)
    run(
        connection,
        queries.INSERT_OUTCOMES,
        receivers=list(receivers),
        kind=kind,
        entity=routing.entity,
        keys=keys,
        data=[to_jsonb({"third_party": routing.system, **data}) for _, data in outcomes],
    )


def send_due_outcomes(engine: Engine, receivers: Mapping[str, Receiver], settings: AlertSettings) -> int:
    """Sends what is due to each receiver, for a while; returns how many outcomes were taken."""
    delete_removed_receivers(engine, list(receivers))
    return sum(send_outcomes(engine, name, receiver, settings) for name, receiver in receivers.items())


def delete_removed_receivers(engine: Engine, names: Sequence[str]) -> None:
    """Deletes the outcomes of receivers other than these: they are no longer configured."""
    with engine.begin() as connection:
        run(connection, queries.DELETE_OLD_OUTCOMES, receivers=list(names))


def send_outcomes(engine: Engine, name: str, receiver: Receiver, settings: AlertSettings) -> int:
    """Sends what is due to one receiver, for a while; returns how many outcomes were taken.

    Several senders may run at once: the receiver is leased to one of them, which keeps the order of each record.
    """
    return _OutcomeOutbox(name, receiver, settings).send_batches(engine, max_seconds=_TURN_SECONDS)


def count_unsent(connection: Connection) -> dict[str, dict[str, object]]:
    """By receiver: how many outcomes wait for it, and why it does not take them."""
    return {
        row.receiver: {"unsent": row.n, "error": row.error} for row in run(connection, queries.COUNT_UNSENT_OUTCOMES)
    }


@dataclass(frozen=True, slots=True)
class _OutcomeBatch:
    """Outcomes under the lease of their receiver."""

    token: int
    outcomes: Sequence[OutcomeMessage]


class _OutcomeOutbox(Outbox[_OutcomeBatch, Delivery]):
    """The outcomes for one receiver, which is leased as a whole, so that those of one record arrive in order."""

    claimed = CrashPoint("outcomes.taken")
    delivered = CrashPoint("outcomes.delivered")
    max_hand_over_seconds = MAX_HAND_OVER_SECONDS

    def __init__(self, name: str, receiver: Receiver, settings: AlertSettings) -> None:
        self._name = name
        self._receiver = receiver
        self._settings = settings

    def claim_batch(self, connection: Connection) -> _OutcomeBatch | None:
        if not run(connection, queries.HAS_DUE_OUTCOMES, receiver=self._name)[0].due:
            return None
        leased = run(connection, queries.LEASE_RECEIVER, receiver=self._name, lease=LEASE_SECONDS)
        if not leased:
            return None
        rows = run(connection, queries.CLAIM_DUE_OUTCOMES, receiver=self._name, most=_MAX_BATCH)
        return _OutcomeBatch(leased[0].lease_token, [OutcomeMessage.from_row(row) for row in rows]) if rows else None

    def deliver_batch(self, batch: _OutcomeBatch) -> Delivery:
        try:
            return self._receiver.deliver(batch.outcomes)
        except Exception as error:  # it is told again, and keeps nobody else from being told
            _log.exception("%s failed as none should", self._name)
            return Delivery(down=type(error).__name__)

    def note_result(self, connection: Connection, batch: _OutcomeBatch, result: Delivery) -> None:
        if result.taken:
            run(connection, queries.MARK_OUTCOME_SENT, ids=result.taken)
        if refused := result.refused:
            run(connection, queries.MARK_OUTCOME_REFUSED, ids=list(refused), errors=list(refused.values()))
        receiver: dict[str, object] = {"receiver": self._name, "token": batch.token}
        if result.down is None:
            run(connection, queries.RELEASE_RECEIVER, **receiver)
        else:
            run(connection, queries.RELEASE_OUTCOMES, **receiver, error=result.down, at_least=result.rest)
        self._update_alert(connection, result)

    def give_back(self, connection: Connection, batch: _OutcomeBatch) -> None:
        _log.warning("A batch for %s is given back: this process stood still.", self._name)
        run(connection, queries.RELEASE_RECEIVER, receiver=self._name, token=batch.token)

    def log_failure(self, reason: str) -> None:
        _log.warning("Outcomes could not be sent, and will be tried again: %s: %s.", self._name, reason)

    def _update_alert(self, connection: Connection, result: Delivery) -> None:
        """Alerts an operator while outcomes that were tried in vain have waited for too long."""
        tried = run(connection, queries.SELECT_OLDEST_TRIED_OUTCOME, receiver=self._name)[0]
        if tried.seconds is None:
            alerts.resolve_alert(connection, "outcome_undeliverable", self._name)
        elif tried.seconds > self._settings.overdue_after:
            reasons = [result.down] if result.down is not None else list(dict.fromkeys(result.refused.values()))[:3]
            alerts.raise_alert(
                connection,
                "outcome_undeliverable",
                self._name,
                examples=reasons,
                title=f"{self._name}: {tried.n} outcomes wait for it, the oldest for {tried.seconds / 60:.0f} minutes",
            )
