"""Consuming: messages are taken, recorded in one commit, and only then acknowledged to their broker.

Messages are taken only while events can be recorded, which is tried: brokers count deliveries, and some drop a message
that was delivered too often. While the database is down the queue is closed, and the broker has its messages.

A message that came before is a duplicate by the source and id of its events; so one that is delivered again after a
crash is acknowledged and changes nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

from sync_orchestrator.brokers.messages import Message, events_of
from sync_orchestrator.brokers.queues import Queue, ReceivedMessage, open_queue
from sync_orchestrator.config import Config
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.connections import sqlstate_of
from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.intake import rejected_messages
from sync_orchestrator.core.intake.rejected_messages import Rejected
from sync_orchestrator.core.ledger.probe import try_to_record
from sync_orchestrator.core.ledger.recording import ChangeEvent, record_in
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.shutdown import run_in_threads, stop_on_signals
from sync_orchestrator.core.values.plain_json import as_json
from sync_orchestrator.errors import BrokerDown, InvalidEvent, NotFound, SyncError

_log = logging.getLogger("sync_orchestrator.consume")
_taken = CrashPoint("consume.taken")
_before_commit = CrashPoint("consume.before_commit")
_committed = CrashPoint("consume.committed")
_acknowledged = CrashPoint("consume.acknowledged")

_TAKE_WAIT_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 30.0
_PROBE_SECONDS = 1.0
"""The longest that a record, or a probe, is proof that the next one will succeed."""
_HOLD_SECONDS = 20.0
"""How long what was taken is kept for a database that went down: a short outage costs no delivery."""
_MAX_BATCH_ATTEMPTS = 6
"""After so many, messages that cannot be recorded though others can are tried one by one, and rejected."""

Understood = list[ChangeEvent] | Rejected


def consume(engine: Engine, config: Config, name: str | None = None) -> None:
    """Consumes from one queue of the configuration, or from all of them, until SIGINT or SIGTERM.

    Raises NotFound for a consumer that is not configured, ConfigError for a broker that cannot be known here.
    """
    if name is not None and name not in config.consumers:
        known = f"there is {', '.join(config.consumers)}" if config.consumers else "sync.yaml has no 'consumers'"
        raise NotFound(f"there is no consumer '{name}'; {known}")
    names = [name] if name is not None else list(config.consumers)
    if not names:
        raise NotFound("sync.yaml has no 'consumers'; docs/brokers.md shows how to write one")
    stop = stop_on_signals()
    run_in_threads("consume", [Consumption(engine, config, each, stop) for each in names])


def read_message(message: Message, name: str, config: Config) -> Understood:
    """The events of a message, or the message with the reason why it cannot be read. Never raises."""
    try:
        return events_of(message, config.consumers[name], config)
    except InvalidEvent as error:
        reason = rejected_messages.reason_of(error)
    except Exception as error:  # whatever a message may hold, it stops nothing
        _log.exception("a message of %s failed as none should", name)
        reason = f"{type(error).__name__} when it was read"
    return _build_rejected(message, name, reason)


def reread_message(found: Rejected, config: Config) -> list[ChangeEvent]:
    """The change events of a rejected message by the present configuration. Raises InvalidEvent."""
    if found.consumer not in config.consumers:
        raise InvalidEvent(f"there is no consumer '{found.consumer}' in sync.yaml any more")
    message = Message(found.body, found.content_type, found.headers)
    return events_of(message, config.consumers[found.consumer], config)


def retry_rejected(
    engine: Engine,
    config: Config,
    ids: Sequence[int] | None,
    name: str | None = None,
    reread: Callable[[Rejected, Config], Sequence[ChangeEvent]] = reread_message,
) -> tuple[int, int]:
    """Puts rejected messages through again by the present configuration; returns how many went and how many not.

    Args:
        engine: The database.
        config: The configuration.
        ids: The messages; None for all.
        name: Only those of this consumer.
        reread: The change events of a message; raises InvalidEvent where it still cannot be read.
    """
    return rejected_messages.retry_rejected_messages(engine, lambda found: reread(found, config), ids, name)


class Consumption:
    """One consumer at work. ``error``: why it ended, if not because it was asked to."""

    def __init__(self, engine: Engine, config: Config, name: str, stop: threading.Event) -> None:
        self.name = name
        self.error: Exception | None = None
        self._engine = engine
        self._config = config
        self._settings = config.consumers[name]
        self._stop = stop
        self._down_since: float | None = None
        self._pause = _FIRST_PAUSE_SECONDS
        self._told = False
        self._recorded_at = -_PROBE_SECONDS

    def run(self) -> None:
        """Consumes until it is asked to stop; a broker or a database that is down is waited for."""
        while not self._stop.is_set():
            if not self._can_record():
                continue
            try:
                with open_queue(self._settings, self.name) as queue:
                    self._report_up()
                    while not self._stop.is_set() and self._consume_batch(queue):
                        pass
            except BrokerDown as error:
                self._report_down(str(error))
            except SyncError as error:  # the main thread raises it
                self.error = error
                self._stop.set()
            except Exception as error:  # a library that did not tell of its trouble as it should
                _log.exception("%s failed as it should not", self.name)
                self._report_down(type(error).__name__)
        _log.info("%s: ended; what was recorded is acknowledged", self.name)

    def _can_record(self) -> bool:
        """Waits until events can be recorded; False where it is asked to stop first."""
        pause = _FIRST_PAUSE_SECONDS
        while not self._stop.is_set():
            if self._probe_recording():
                return True
            _log.warning("%s: no message is taken; the next try is in %.1f s", self.name, pause)
            self._stop.wait(pause)
            pause = min(_MAX_PAUSE_SECONDS, pause * 2)
        return False

    def _probe_recording(self) -> bool:
        """Whether events can be recorded, to within a second."""
        if time.monotonic() - self._recorded_at < _PROBE_SECONDS:
            return True
        try:
            try_to_record(self._engine, f"consume {self.name}")
        except SQLAlchemyError as error:
            _log.warning(
                "%s: events cannot be recorded: the database does not answer as it should (%s, sqlstate %s)",
                self.name,
                type(error).__name__,
                sqlstate_of(error),
            )
            return False
        self._recorded_at = time.monotonic()
        return True

    def _report_up(self) -> None:
        _log.info("%s: consuming from %s", self.name, self._settings.place)
        self._down_since, self._pause = None, _FIRST_PAUSE_SECONDS
        self._try_in_transaction(lambda connection: alerts.resolve_alert(connection, "consumer_down", self.name))
        self._told = False

    def _report_down(self, reason: str) -> None:
        now = time.monotonic()
        since = self._down_since = self._down_since or now
        _log.warning("%s: %s; the next try is in %.1f s", self.name, reason, self._pause)
        if not self._told and now - since > self._config.alerts.overdue_after:
            self._told = self._try_in_transaction(
                lambda connection: alerts.raise_alert(
                    connection,
                    "consumer_down",
                    self.name,
                    f"{self.name}: its broker cannot be consumed from for {(now - since) / 60:.0f} minutes",
                    examples=[reason],
                )
            )
        self._stop.wait(self._pause)
        self._pause = min(_MAX_PAUSE_SECONDS, self._pause * 2)

    def _try_in_transaction(self, work: Callable[[Connection], None]) -> bool:
        try:
            in_transaction(self._engine, work)
        except SQLAlchemyError:
            return False
        return True

    def _consume_batch(self, queue: Queue) -> bool:
        """Takes and records what is there; False where the queue is to be closed, and what was taken given back."""
        if not self._probe_recording():
            return False
        taken = queue.receive_messages(self._settings.at_once, _TAKE_WAIT_SECONDS)
        if not taken:
            return True
        _taken()
        if not self._record_with_retries(queue, taken):
            return False
        _committed()
        queue.acknowledge_messages(taken)
        _acknowledged()
        return True

    def _record_with_retries(self, queue: Queue, taken: Sequence[ReceivedMessage]) -> bool:
        """Records them; False where the database stays down, or it is asked to stop first."""
        understood = [read_message(each.message, self.name, self._config) for each in taken]
        pause, ends, attempts = _FIRST_PAUSE_SECONDS, time.monotonic() + _HOLD_SECONDS, 0
        while True:
            attempts += 1
            try:
                self._record_batch(taken, understood, patient=attempts < _MAX_BATCH_ATTEMPTS)
                self._recorded_at = time.monotonic()
                return True
            except SQLAlchemyError as error:
                _log.warning(
                    "%s: the database does not answer as it should (%s, sqlstate %s): %d messages wait; the "
                    "next try is in %.1f s",
                    self.name,
                    type(error).__name__,
                    sqlstate_of(error),
                    len(taken),
                    pause,
                )
            self._recorded_at = -_PROBE_SECONDS
            if self._stop.is_set() or (time.monotonic() > ends and not self._probe_recording()):
                return False
            self._hold_messages(queue, pause)
            pause = min(_MAX_PAUSE_SECONDS, pause * 2)

    def _hold_messages(self, queue: Queue, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while not self._stop.is_set() and (left := ends - time.monotonic()) > 0:
            queue.hold_messages(min(left, _TAKE_WAIT_SECONDS))

    def _record_batch(
        self, taken: Sequence[ReceivedMessage], understood: Sequence[Understood], *, patient: bool
    ) -> None:
        refused: tuple[type[Exception], ...] = (DataError, IntegrityError) if patient else (DBAPIError,)
        try:
            in_transaction(self._engine, lambda connection: self._write_events(connection, understood))
        except refused:
            if not patient and not self._probe_recording():
                raise
            for each, found in zip(taken, understood, strict=True):
                self._record_alone(each.message, found, refused)

    def _record_alone(self, message: Message, found: Understood, refused: tuple[type[Exception], ...]) -> None:
        """One message among these is more than the database can hold; it is found by trying each."""
        try:
            in_transaction(self._engine, lambda connection: self._write_events(connection, [found]))
        except refused as error:
            unheld = _build_rejected(message, self.name, f"the database cannot hold it (sqlstate {sqlstate_of(error)})")
            in_transaction(self._engine, lambda connection: self._write_events(connection, [unheld]))

    def _write_events(self, connection: Connection, understood: Sequence[Understood]) -> None:
        events: list[ChangeEvent] = []
        unread: list[Rejected] = []
        for found in understood:
            if isinstance(found, Rejected):
                unread.append(found)
            else:
                events += found
        record_in(connection, events)
        if unread:
            rejected_messages.keep_rejected_messages(connection, unread, self._config.limits.event_bytes)
        _before_commit()


def _build_rejected(message: Message, name: str, reason: str) -> Rejected:
    headers = {str(header): as_json(value) for header, value in message.headers.items()}
    return Rejected(name, reason, message.body, message.content_type, headers)
