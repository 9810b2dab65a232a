"""Alerts: an outbox written in the transaction of what it tells of, and the sending of what it holds.

Kinds: dead, held, breaker_open, drift, ahead, stuck_waiting, overdue, delete_cap, unusable, group_name,
conservation, run_failed, poll_failing, rejected, consumer_down, outcome_undeliverable, lost_notifications,
rollout_fell_back, silent, not_validated, adoption_needed, id_reused, source_behind.
``docs/operations.md`` has a section for each.
Not here: the texts of messages (``alert_messages.py``), how one is handed over (``alert_receivers.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.session import in_transaction, json, run
from sync_orchestrator.core.failure_causes import MAX_OPEN_CAUSES, OTHER_REFUSALS
from sync_orchestrator.core.notifications import queries
from sync_orchestrator.core.notifications.alert_messages import message
from sync_orchestrator.core.notifications.alert_receivers import Receiver, receivers
from sync_orchestrator.texts.masking import mask, mask_all
from sync_orchestrator.texts.storable_text import storable_json, storable_text

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from sync_orchestrator.config import Alerts

_log = logging.getLogger("sync_orchestrator.alerts")
_taken = CrashPoint("alerts.taken")
_delivered = CrashPoint("alerts.delivered")

Log = Callable[[str], None]

_LOCK = 7_261_004
_LONGEST_TEXT = 300
_MOST_MESSAGES = 10


def tell(
    connection: Connection,
    kind: str,
    cause: str,
    title: str,
    *,
    entity: str | None = None,
    examples: Sequence[Any] = (),
) -> None:
    """Writes an alert of something that is not about single records, or what is new of an open one."""
    run(
        connection,
        queries.RAISE_ALERT,
        kind=kind,
        cause=_cut(cause),
        title=_cut(mask(title)),
        entity=entity,
        examples=json(storable_json(mask_all(list(examples)))),
    )


def tell_of_records(
    connection: Connection, kind: str, cause: str, title: str, entity: str, keys: Sequence[str]
) -> None:
    """Writes or adds to the one alert of this cause; a record counts once for it.

    Where many causes of a kind and entity are open, further ones share one alert.
    """
    if keys:
        cause = _cut(cause)
        others = _cut(f"{entity}: {OTHER_REFUSALS}")
        known = run(connection, queries.LIST_OPEN_CAUSES, kind=kind, entity=entity, cause=cause, others=others)[0]
        if known.n >= MAX_OPEN_CAUSES and not known.is_open:
            cause = others
        run(
            connection,
            queries.RAISE_ALERTS_FOR_RECORDS,
            kind=kind,
            cause=_cut(cause),
            title=_cut(mask(title)),
            entity=entity,
            keys=sorted(set(keys)),
        )


def decide_alone(connection: Connection, kind: str, about: str) -> None:
    """Waits until no other transaction decides about these alerts, and keeps others waiting until the commit.

    For alerts that are over once no row is left of what several transactions write: without it, one that sees no
    row would end the alert that another one raises in that moment. Call it before reading the rows.

    Args:
        connection: A connection within a transaction.
        kind: The kind of the alerts.
        about: What they have in common, such as an entity or a consumer.
    """
    run(connection, queries.LOCK_ALERT_DECISION, about=f"{kind} {about}")


def resolve(connection: Connection, kind: str, cause: str | None = None) -> None:
    """The cause is over; whoever was told of it is told so."""
    run(connection, queries.RESOLVE_ALERT, kind=kind, cause=None if cause is None else _cut(cause))


def _cut(text: str) -> str:
    return storable_text(text[:_LONGEST_TEXT])


def send_due(engine: Engine, settings: Alerts, log: Log | None = None) -> int:
    """Sends what has gathered long enough to each receiver; returns how many messages were taken.

    At least once: a receiver is marked as told after it took the message. One that did not take it keeps nobody else
    waiting, and is tried again after growing rests.

    Args:
        engine: The database.
        settings: The receivers, and when a message is due.
        log: The method of a logger that gets each message that is sent to anybody, once. By default only messages
            without a configured URL are logged, by the logger of this module.
    """
    known, written = receivers(settings.urls), _Written(log)
    with engine.begin() as connection:
        run(connection, queries.CLEAR_SEND_ERRORS, receivers=[receiver.digest for receiver in known])
    return sum(_send_to(engine, receiver, settings, written) for receiver in known)


class _Written:
    """Logs each message once, however many receivers it is sent to."""

    def __init__(self, log: Log | None) -> None:
        self._log = log
        self._messages: set[tuple[str, str]] = set()

    def __call__(self, receiver: Receiver, title: str, body: str) -> None:
        if (title, body) not in self._messages and (receiver.url is None or self._log is not None):
            self._messages.add((title, body))
            (self._log or _log.warning)(f"ALERT {title}\n{body}")


def _send_to(engine: Engine, receiver: Receiver, settings: Alerts, written: _Written) -> int:
    for sent in range(_MOST_MESSAGES):
        alerts = in_transaction(engine, partial(_take, receiver=receiver, settings=settings))
        if not alerts:
            return sent
        _taken()
        title, body = message(alerts, settings.ui_url)
        error = receiver.deliver(title, body)
        if error is None:
            written(receiver, title, body)
        _delivered()
        in_transaction(engine, partial(_note, receiver=receiver, alerts=alerts, error=error))
        if error is not None:
            _log.warning("An alert could not be sent, and will be tried again: %s.", error)
            return sent
    return _MOST_MESSAGES


def _take(connection: Connection, receiver: Receiver, settings: Alerts) -> Sequence[Any]:
    """The next message for a receiver: due alerts of one kind and entity, which are this sender's for a minute."""
    run(connection, "SELECT pg_advisory_xact_lock(%(lock)s)", lock=_LOCK)
    return run(
        connection,
        queries.CLAIM_DUE_ALERTS,
        receiver=receiver.digest,
        group_wait=settings.group_wait,
        repeat_after=settings.repeat_after,
    )


def _note(connection: Connection, receiver: Receiver, alerts: Sequence[Any], error: str | None) -> None:
    ids = [alert.id for alert in alerts]
    if error is not None:
        run(connection, queries.NOTE_SEND_ERROR, receiver=receiver.digest, ids=ids, error=error)
    elif alerts[0].resolved_at is not None:
        run(connection, queries.MARK_ALERT_END_SENT, receiver=receiver.digest, ids=ids)
    else:
        run(
            connection,
            queries.MARK_ALERT_SENT,
            receiver=receiver.digest,
            ids=ids,
            told_as=[alert.updated_at for alert in alerts],
        )
