"""What became of changes, told to whoever wants to know: an outbox written in the transaction of what it tells of.

Told at least once, under an id that stays the same, and in order for each record. A receiver that is down is left alone
for growing times; one outcome that it refuses keeps back no other record's. Nothing is written where nobody is told.
Not here: how a receiver is reached (``brokers/receivers.py``), when it is sent (``sensors/outcomes.py``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.session import in_transaction, json, run
from sync_orchestrator.core.notifications import alerts, queries
from sync_orchestrator.core.push import queries as push_queries

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from sync_orchestrator.config import Alerts
    from sync_orchestrator.core.context import EntityContext

_log = logging.getLogger("sync_orchestrator.outcomes")
_taken = CrashPoint("outcomes.taken")
_delivered = CrashPoint("outcomes.delivered")

DELIVERY_SECONDS = 30.0
"""A receiver begins no call later than this after it was handed a batch; a call takes at most 20 s."""

_LEASE = 60.0
_TURN_SECONDS = 40.0
_BATCH = 100


@dataclass(frozen=True, slots=True)
class Outcome:
    """One thing to be told."""

    id: int
    event_id: str
    kind: str
    entity: str
    key: str
    data: dict[str, Any]
    at: datetime

    def cloud_event(self, source: str) -> dict[str, Any]:
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


class Receiver(Protocol):
    """Somebody who is told."""

    def deliver(self, outcomes: Sequence[Outcome]) -> Delivery:
        """Hands them over, those of one record in order and none after one of them failed. Raises nothing."""
        ...


def note(connection: Connection, entity: EntityContext, kind: str, told: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Writes what is to be told of records, by key, in the caller's transaction; free where nobody is to be told."""
    receivers = entity.told.get(kind)
    if not receivers or not told:
        return
    keys = [key for key, _ in told]
    # Of one record the later transaction has the larger number.
    run(connection, push_queries.LOCK_CLAIMED_RECORDS, entity=[entity.name] * len(keys), key=keys)
    run(
        connection,
        queries.INSERT_OUTCOMES,
        receivers=list(receivers),
        kind=kind,
        entity=entity.name,
        keys=keys,
        data=[json({"third_party": entity.system_name, **data}) for _, data in told],
    )


def send_due(engine: Engine, receivers: Mapping[str, Receiver], settings: Alerts) -> int:
    """Sends what is due to each receiver, for a while; returns how many outcomes were taken."""
    with engine.begin() as connection:
        run(connection, queries.DELETE_OLD_OUTCOMES, receivers=list(receivers))
    return sum(_send_to(engine, name, receiver, settings) for name, receiver in receivers.items())


def unsent(connection: Connection) -> dict[str, dict[str, Any]]:
    """By receiver: how many outcomes wait for it, and why it does not take them."""
    return {
        row.receiver: {"unsent": row.n, "error": row.error} for row in run(connection, queries.COUNT_UNSENT_OUTCOMES)
    }


def _send_to(engine: Engine, name: str, receiver: Receiver, settings: Alerts) -> int:
    sent = 0
    ends = time.monotonic() + _TURN_SECONDS
    while time.monotonic() < ends:
        token, batch = in_transaction(engine, partial(_take, name=name))
        if not batch:
            break
        _taken()
        try:
            delivery = receiver.deliver(batch)
        except Exception as error:  # it is told again, and keeps nobody else from being told
            _log.exception("%s failed as none should", name)
            delivery = Delivery(down=type(error).__name__)
        _delivered()
        in_transaction(engine, partial(_note_delivery, name=name, token=token, delivery=delivery, settings=settings))
        sent += len(delivery.taken)
        if delivery.down is not None:
            _log.warning("Outcomes could not be sent, and will be tried again: %s: %s.", name, delivery.down)
            break
    return sent


def _take(connection: Connection, name: str) -> tuple[int, list[Outcome]]:
    if not run(connection, queries.HAS_DUE_OUTCOMES, receiver=name)[0].due:
        return 0, []
    leased = run(connection, queries.LEASE_RECEIVER, receiver=name, lease=_LEASE)
    if not leased:
        return 0, []
    rows = run(connection, queries.CLAIM_DUE_OUTCOMES, receiver=name, most=_BATCH)
    return leased[0].lease_token, [
        Outcome(row.id, str(row.event_id), row.kind, row.entity, row.key, row.data, row.at) for row in rows
    ]


def _note_delivery(connection: Connection, name: str, token: int, delivery: Delivery, settings: Alerts) -> None:
    if delivery.taken:
        run(connection, queries.MARK_OUTCOME_SENT, ids=delivery.taken)
    if delivery.refused:
        run(
            connection, queries.MARK_OUTCOME_REFUSED, ids=list(delivery.refused), errors=list(delivery.refused.values())
        )
    if delivery.down is None:
        run(connection, queries.RELEASE_RECEIVER, receiver=name, token=token)
    else:
        run(
            connection,
            queries.RELEASE_OUTCOMES,
            receiver=name,
            token=token,
            error=delivery.down,
            at_least=delivery.rest,
        )
    tried = run(connection, queries.SELECT_OLDEST_TRIED_OUTCOME, receiver=name)[0]
    if tried.seconds is None:
        alerts.resolve(connection, "outcome_undeliverable", name)
    elif tried.seconds > settings.overdue_after:
        reasons = [delivery.down] if delivery.down is not None else list(dict.fromkeys(delivery.refused.values()))[:3]
        alerts.tell(
            connection,
            "outcome_undeliverable",
            name,
            examples=reasons,
            title=f"{name}: {tried.n} outcomes wait for it, the oldest for {tried.seconds / 60:.0f} minutes",
        )
