"""Alerts: raised and resolved in the transaction that they report on, and sent to each receiver by an outbox.

Kinds: dead, on_hold, breaker_open, drift, version_in_future, stuck_waiting, overdue, delete_cap, conservation,
invalid_source_records, invalid_partition_name, run_failed, poll_failing, rejected, consumer_down,
outcome_undeliverable, lost_notifications, rollout_fell_back, sensor_stalled, worker_stalled, not_validated,
adoption_needed, id_reused, source_behind, capture_down, capture_behind, capture_lost, source_truncated, conflicts.
``docs/operations.md`` has a section for each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.locks import AdvisoryLock, acquire_lock
from sync_orchestrator.core.db.session import run, to_jsonb
from sync_orchestrator.core.failure_causes import MAX_OPEN_CAUSES, OTHER_REFUSALS
from sync_orchestrator.core.notifications import queries
from sync_orchestrator.core.notifications.alert_messages import DueAlert, compose_message
from sync_orchestrator.core.notifications.alert_receivers import AlertReceiver, list_receivers
from sync_orchestrator.core.notifications.outbox import LEASE_SECONDS, Outbox
from sync_orchestrator.texts.masking import mask_all, mask_secrets
from sync_orchestrator.texts.storable_text import storable_json, storable_text

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from sync_orchestrator.config import AlertSettings

_log = logging.getLogger("sync_orchestrator.alerts")

Log = Callable[[str], None]

_MAX_TEXT_LENGTH = 300
_MAX_MESSAGES = 10


def raise_alert(
    connection: Connection,
    kind: str,
    cause: str,
    title: str,
    *,
    entity: str | None = None,
    examples: Sequence[object] = (),
) -> None:
    """Writes an alert of something that is not about single records, or what is new of an open one."""
    run(
        connection,
        queries.RAISE_ALERT,
        kind=kind,
        cause=_shorten_text(cause),
        title=_shorten_text(mask_secrets(title)),
        entity=entity,
        examples=to_jsonb(storable_json(mask_all(list(examples)))),
    )


def raise_alert_for_records(
    connection: Connection, kind: str, cause: str, title: str, entity: str, keys: Sequence[str]
) -> None:
    """Writes or adds to the one alert of this cause; a record counts once for it.

    Where many causes of a kind and entity are open, further ones share one alert.
    """
    if keys:
        cause = _shorten_text(cause)
        others = _shorten_text(f"{entity}: {OTHER_REFUSALS}")
        known = run(connection, queries.LIST_OPEN_CAUSES, kind=kind, entity=entity, cause=cause, others=others)[0]
        if known.n >= MAX_OPEN_CAUSES and not known.is_open:
            cause = others
        run(
            connection,
            queries.RAISE_ALERTS_FOR_RECORDS,
            kind=kind,
            cause=_shorten_text(cause),
            title=_shorten_text(mask_secrets(title)),
            entity=entity,
            keys=sorted(set(keys)),
        )


def lock_alert_decision(connection: Connection, kind: str, about: str) -> None:
    """Waits until no other transaction decides about these alerts, and keeps others waiting until the commit.

    For alerts that are over once no row is left of what several transactions write: without it, one that sees no
    row would end the alert that another one raises in that moment. Call it before reading the rows.

    Args:
        connection: A connection within a transaction.
        kind: The kind of the alerts.
        about: What they have in common, such as an entity or a consumer.
    """
    acquire_lock(connection, AdvisoryLock.ALERT_DECISION, f"{kind} {about}")


def resolve_alert(connection: Connection, kind: str, cause: str | None = None) -> None:
    """The cause is over; whoever was told of it is told so."""
    run(connection, queries.RESOLVE_ALERT, kind=kind, cause=None if cause is None else _shorten_text(cause))


def withdraw_alerts_of_system(connection: Connection, system: str) -> None:
    """Withdraws from alerts the records whose failures opened a third party's breaker: they are tried again."""
    run(connection, queries.WITHDRAW_ALERT, system=system)


def _shorten_text(text: str) -> str:
    return storable_text(text[:_MAX_TEXT_LENGTH])


def send_due_alerts(engine: Engine, settings: AlertSettings, log: Log | None = None) -> int:
    """Sends what has gathered long enough to each receiver; returns how many messages were taken.

    At least once: a receiver is marked as told after it took the message. One that did not take it keeps no other
    waiting, and is tried again after growing pauses.

    Args:
        engine: The database.
        settings: The receivers, and when a message is due.
        log: The method of a logger that gets each message that is sent to anybody, once. By default only messages
            without a configured URL are logged, by the logger of this module.
    """
    known, message_log = list_receivers(settings.urls), _MessageLog(log)
    with engine.begin() as connection:
        run(connection, queries.CLEAR_SEND_ERRORS, receivers=[receiver.digest for receiver in known])
    return sum(
        _AlertOutbox(receiver, settings, message_log).send_batches(engine, max_batches=_MAX_MESSAGES)
        for receiver in known
    )


class _MessageLog:
    """Logs each message once, however many receivers it is sent to."""

    def __init__(self, log: Log | None) -> None:
        self._log = log
        self._messages: set[tuple[str, str]] = set()

    def write_message(self, receiver: AlertReceiver, title: str, body: str) -> None:
        if (title, body) not in self._messages and (receiver.url is None or self._log is not None):
            self._messages.add((title, body))
            (self._log or _log.warning)(f"ALERT {title}\n{body}")


@dataclass(frozen=True, slots=True)
class _AlertDelivery:
    """Whether a message was taken; ``failure`` says why not, without any secret."""

    failure: str | None

    @property
    def taken_count(self) -> int:
        return 1 if self.failure is None else 0


class _AlertOutbox(Outbox[Sequence[DueAlert], _AlertDelivery]):
    """The alerts for one receiver; a batch are due alerts of one kind and entity, which are one message."""

    claimed = CrashPoint("alerts.taken")
    delivered = CrashPoint("alerts.delivered")

    def __init__(self, receiver: AlertReceiver, settings: AlertSettings, message_log: _MessageLog) -> None:
        self._receiver = receiver
        self._settings = settings
        self._message_log = message_log

    def claim_batch(self, connection: Connection) -> Sequence[DueAlert] | None:
        acquire_lock(connection, AdvisoryLock.ALERT_SENDING)
        rows = run(
            connection,
            queries.CLAIM_DUE_ALERTS,
            receiver=self._receiver.digest,
            group_wait=self._settings.group_wait,
            repeat_after=self._settings.repeat_after,
            lease=LEASE_SECONDS,
        )
        return [DueAlert.from_row(row) for row in rows] or None

    def deliver_batch(self, batch: Sequence[DueAlert]) -> _AlertDelivery:
        title, body = compose_message(batch, self._settings.ui_url)
        failure = self._receiver.deliver_message(title, body)
        if failure is None:
            self._message_log.write_message(self._receiver, title, body)
        return _AlertDelivery(failure)

    def note_result(self, connection: Connection, batch: Sequence[DueAlert], result: _AlertDelivery) -> None:
        receiver, ids = self._receiver.digest, [alert.id for alert in batch]
        if result.failure is not None:
            run(connection, queries.NOTE_SEND_ERROR, receiver=receiver, ids=ids, error=result.failure)
        elif batch[0].resolved_at is not None:
            run(connection, queries.MARK_ALERT_END_SENT, receiver=receiver, ids=ids)
        else:
            told_as = [alert.updated_at for alert in batch]
            run(connection, queries.MARK_ALERT_SENT, receiver=receiver, ids=ids, told_as=told_as)

    def log_failure(self, reason: str) -> None:
        _log.warning("An alert could not be sent, and will be tried again: %s.", reason)


def resolve_dead_alerts(connection: Connection) -> None:
    """Resolves the alerts about dead records none of whose records is dead any more."""
    run(connection, queries.RESOLVE_DEAD_ALERTS)


def remove_records_from_alerts(connection: Connection, entity: str, keys: Sequence[str]) -> None:
    """Takes records that are tried again out of the alerts that name them."""
    run(connection, queries.REMOVE_RECORDS_FROM_ALERTS, entity=entity, keys=list(keys))


def summarize_open_alerts(connection: Connection, limit: int) -> dict[str, object]:
    """Returns the open alerts, newest first, how many messages are not sent yet, and why."""
    errors = run(connection, queries.SELECT_SEND_ERROR)
    return {
        "open": [
            {
                "kind": row.kind,
                "cause": row.cause,
                "title": row.title,
                "count": row.n,
                "since": row.created_at.isoformat(),
                "sent": row.sent,
            }
            for row in run(connection, queries.COUNT_OPEN_ALERTS, most=limit)
        ],
        "unsent": run(connection, queries.COUNT_UNSENT_ALERTS)[0].n,
        "send_error": errors[0].error if errors else None,
    }
