"""The loop of a stream: receive, record, and only then acknowledge. Nothing else acknowledges.

The connection to the source's log is open only while events can be recorded. A source that shuts down waits for its
readers; so one that cannot record closes the connection at once.
"""

from __future__ import annotations

import logging
import select
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import psycopg
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from sync_orchestrator.capture.assembly import ChangeBatch
from sync_orchestrator.capture.engines import open_capture_source
from sync_orchestrator.capture.parts import (
    CapturedTable,
    entities_by_table,
    list_captured_tables,
    numbered_entities,
)
from sync_orchestrator.capture.port import CaptureLog, CaptureSource, ReceivedPart
from sync_orchestrator.capture.positions import find_later
from sync_orchestrator.capture.preparation import SourcePreparation
from sync_orchestrator.capture.recording import ReplacedReader, StreamPosition, make_stream_id, record_batch
from sync_orchestrator.config import Config
from sync_orchestrator.config.sources import SqlSourceSettings
from sync_orchestrator.core.capture import streams
from sync_orchestrator.core.capture.streams import CaptureStream
from sync_orchestrator.core.capture.table_marks import describe_difference
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.connections import sqlstate_of
from sync_orchestrator.core.db.notify import WAITING_CHANNEL, open_listener
from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.ledger.probe import try_to_record
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.shutdown import run_in_threads, stop_on_signals
from sync_orchestrator.errors import LogDown, LogLost, NotFound, NotPrepared, SyncError

T = TypeVar("T")

_log = logging.getLogger("sync_orchestrator.capture")
_taken = CrashPoint("capture.taken")
_committed = CrashPoint("capture.committed")
_acknowledged = CrashPoint("capture.acknowledged")

_WAIT_SECONDS = 0.5
_FIRST_PAUSE_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 30.0
_LEASE_WAIT_SECONDS = 1.0
_IDLE_MOVE_SECONDS = 10.0
_CAUGHT_UP_SECONDS = 2.0
_LOOK_SECONDS = 1.0
"""However much is received, it is recorded, and figures are written, after this time."""
_MEASURE_SECONDS = 5.0
_SLOW_LEDGER_SECONDS = 3.0
"""A batch that takes longer to record closes the connection to the source, which may want to shut down."""
_FIRST_LOOK_SECONDS = 0.002
_MAX_LOOK_SECONDS = 0.5
_LEDGER_ERRORS = (SQLAlchemyError, psycopg.Error)


class _Stopped(Exception):
    """The process is asked to end."""


class _SlowLedger(Exception):
    """The ledger took long, and has recorded what it was given; the source's log is opened again."""


def capture(engine: Engine, config: Config, name: str | None = None) -> None:
    """Captures the changes of one source system, or of all that are configured so, until SIGINT or SIGTERM.

    Raises:
        NotFound: The source is not captured by the configuration.
        ConfigError: The source's URL cannot be used.
    """
    names = list_captured_sources(config, name)
    stop = stop_on_signals()
    run_in_threads("capture", [StreamReader(engine, config, each, stop) for each in names])


def list_captured_sources(config: Config, name: str | None = None) -> list[str]:
    """The source systems whose changes are captured: the named one, or all. Raises NotFound where there is none."""
    known = config.captured_sources()
    if name is not None and name not in known:
        fits = f"expected one of: {', '.join(known)}" if known else "no part has 'changes: {by: log}'"
        raise NotFound(f"the changes of '{name}' are not captured; {fits}")
    if not known:
        raise NotFound("no part in sync.yaml has 'changes: {by: log}'; docs/capture.md shows how to write one")
    return known if name is None else [name]


class StreamReader:
    """The reader of one stream. ``error``: why it ended, if not because it was asked to."""

    def __init__(self, engine: Engine, config: Config, name: str, stop: threading.Event) -> None:
        settings = config.sources[name]
        assert isinstance(settings, SqlSourceSettings)
        self.name = name
        self.error: Exception | None = None
        self._engine = engine
        self._config = config
        self._stop = stop
        self._tables = list_captured_tables(config, name)
        self._source = open_capture_source(name, settings, engine)
        self._token: int | None = None
        self._pause = _FIRST_PAUSE_SECONDS
        self._lease_seconds = streams.STREAM_LEASE_SECONDS
        self._is_waiting = False

    def run(self) -> None:
        """Reads until it is asked to stop; a source or a ledger that is down is waited for."""
        while not self._stop.is_set():
            try:
                self._read_stream()
            except _Stopped:
                break
            except (ReplacedReader, _SlowLedger) as error:
                _log.warning("%s: %s", self.name, _describe_interruption(error))
                self._token = self._token if isinstance(error, _SlowLedger) else None
            except LogDown as error:
                self._report_down(error)
            except LogLost as error:
                self._report_down(LogDown(str(error)))  # it could not be replaced yet
            except _LEDGER_ERRORS as error:
                self._wait_for_ledger(error)
            except SyncError as error:  # the main thread raises it
                self.error = error
                self._stop.set()
            except Exception as error:  # whatever a library raises ends neither this stream nor another one
                _log.exception("%s failed as it should not", self.name)
                self._report_down(LogDown(f"unexpected {type(error).__name__}"))
        self._end()

    def _end(self) -> None:
        if self._token is not None:
            token = self._token
            self._try_in_transaction(lambda connection: streams.release_stream(connection, self.name, token))
        self._source.close()
        _log.info("%s: ended; what was recorded is acknowledged", self.name)

    # Beginning ------------------------------------------------------------------------------------------------------

    def _read_stream(self) -> None:
        """Takes the lease, opens the log, and reads it."""
        try_to_record(self._engine, f"capture {self.name}")
        if not self._hold_lease():
            if not self._is_waiting:
                _log.info("%s: another process reads this stream; it is taken over when that one ends", self.name)
            self._is_waiting = True
            self._stop.wait(_LEASE_WAIT_SECONDS)
            return
        self._is_waiting = False
        try:
            stream = self._begin_stream()
        except LogLost as error:
            stream = self._begin_anew(str(error))
        assert self._token is not None
        at = StreamPosition(
            self.name,
            self._token,
            self._lease_seconds,
            stream.position,
            stream.partial,
            make_stream_id(stream.identity),
        )
        try:
            with self._source.open_log(stream, self._tables, self._config.limits.event_bytes) as log:
                self._report_up()
                OpenStream(self._engine, self._config, self._source, log, stream, at, self._tables, self._stop).read()
        except LogLost as error:
            self._begin_anew(str(error))

    def _hold_lease(self) -> bool:
        if self._token is not None and self._renew():
            return True
        self._token = self._in_transaction(
            lambda connection: streams.claim_stream(connection, self.name, self._lease_seconds)
        )
        return self._token is not None

    def _renew(self) -> bool:
        token = self._token
        assert token is not None
        found = self._in_transaction(
            lambda connection: streams.note_stream_error(
                connection, self.name, token, "it is being opened", self._lease_seconds
            )
        )
        return found is not None

    def _begin_stream(self) -> CaptureStream:
        """Finds out where to go on.

        Raises:
            NotPrepared: The source lacks something.
            LogLost: It cannot go on from there.
        """
        found = self._inspect()
        stream = self._in_transaction(lambda connection: streams.read_stream(connection, self.name))
        assert stream is not None
        identity, position, partial = self._source.resume(stream, found, self._keep_lease)
        stream = replace(
            stream,
            identity=identity,
            position=position,
            partial=partial,
            tables=found.name_tables(),
            numbered=numbered_entities(self._tables),
        )
        self._open_stream(stream, None)
        return stream

    def _begin_anew(self, reason: str) -> CaptureStream:
        """Begins at the end of the log at once, so that no more is lost, and says what is missing."""
        _log.error("%s: changes are missing: %s", self.name, reason)
        found = self._inspect()
        identity, position = self._source.begin_anew(found, self._keep_lease)
        numbered = numbered_entities(self._tables)
        stream = CaptureStream(self.name, identity, position, None, 0, found.name_tables(), numbered)
        self._open_stream(stream, reason)
        return stream

    def _open_stream(self, stream: CaptureStream, lost: str | None) -> None:
        token = self._token
        assert token is not None
        is_ours = self._in_transaction(
            lambda connection: streams.open_stream(
                connection, stream, token, entities_by_table=entities_by_table(self._tables), lost=lost
            )
        )
        if not is_ours:
            raise ReplacedReader

    def _inspect(self) -> SourcePreparation:
        return inspect_or_forget(self._engine, self._source, self.name, self._tables)

    def _keep_lease(self) -> None:
        if self._stop.is_set():
            raise _Stopped
        if not self._renew():
            raise ReplacedReader

    # What is told ---------------------------------------------------------------------------------------------------

    def _report_up(self) -> None:
        _log.info("%s: capturing changes", self.name)
        self._pause = _FIRST_PAUSE_SECONDS
        self._try_in_transaction(lambda connection: alerts.resolve_alert(connection, "capture_down", self.name))

    def _report_down(self, error: LogDown) -> None:
        problems = error.problems if isinstance(error, NotPrepared) else [str(error)]
        _log.warning("%s: %s; the next try is in %.1f s", self.name, "; ".join(problems), self._pause)
        token = self._token

        def write(connection: Connection) -> None:
            age = (
                None
                if token is None
                else streams.note_stream_error(connection, self.name, token, "; ".join(problems), self._lease_seconds)
            )
            if isinstance(error, NotPrepared):
                title = f"{self.name}: its changes cannot be captured"
            elif age is not None and age > self._config.alerts.overdue_after:
                title = streams.describe_outage(self.name, age)
            else:
                return
            alerts.raise_alert(connection, "capture_down", self.name, title, examples=problems)

        self._try_in_transaction(write)
        self._rest()

    def _wait_for_ledger(self, error: BaseException) -> None:
        _log.warning(
            "%s: events cannot be recorded: the database does not answer as it should (%s, sqlstate %s); the source's "
            "log is closed, and opened again in %.1f s",
            self.name,
            type(error).__name__,
            sqlstate_of(error),
            self._pause,
        )
        self._rest()

    def _rest(self) -> None:
        self._stop.wait(self._pause)
        self._pause = min(_MAX_PAUSE_SECONDS, self._pause * 2)

    def _in_transaction(self, work: Callable[[Connection], T]) -> T:
        return in_transaction(self._engine, work)

    def _try_in_transaction(self, work: Callable[[Connection], None]) -> None:
        try:
            in_transaction(self._engine, work)
        except _LEDGER_ERRORS as error:
            _log.warning("%s: it could not be written down: %s", self.name, type(error).__name__)


@dataclass(frozen=True, slots=True)
class Recording:
    """A batch that is being recorded. ``began_at``: by the monotonic clock."""

    done: Future[StreamPosition]
    has_content: bool
    began_at: float


class OpenStream:
    """A stream whose log is open."""

    def __init__(
        self,
        engine: Engine,
        config: Config,
        source: CaptureSource,
        log: CaptureLog,
        stream: CaptureStream,
        at: StreamPosition,
        tables: Sequence[CapturedTable],
        stop: threading.Event,
    ) -> None:
        self._engine = engine
        self._config = config
        self._source = source
        self._log = log
        self._stream = stream
        self._at = at
        self._tables = tables
        self._stop = stop
        self._assembler = log.assembler
        self._moved_at = self._measured_at = self._caught_up_at = self._looked_at = time.monotonic()
        self._recording: Recording | None = None
        self._is_waited_for = False

    def read(self) -> None:
        """Reads until the process is asked to end.

        Raises:
            LogDown: The source does not do its part.
            LogLost: The source cannot give the log any more.
            ReplacedReader: Another reader has the stream.
        """
        self._log.acknowledge(self._at.position)
        with (
            ThreadPoolExecutor(1, "capture-record") as recorder,
            closing(open_listener(self._engine, WAITING_CHANNEL)) as listener,
        ):
            while not self._stop.is_set():
                self._read_once(recorder, listener)
            self._finish_recording()

    def _read_once(self, recorder: ThreadPoolExecutor, listener: psycopg.Connection[Any]) -> None:
        """Receives a part of the log, and records what has been gathered where no other follows at once.

        A batch is recorded while the next one is gathered, so that neither the ledger nor the decoder waits.
        """
        is_busy = self._assembler.batch.has_content or self._recording is not None
        received = self._log.receive(0 if is_busy else _WAIT_SECONDS, listener.fileno())
        self._hear_waiting_reads(listener)
        now = time.monotonic()
        if received is ReceivedPart.CONTENT and not self._assembler.is_full and now - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = now
        self._finish_recording()
        if self._assembler.batch.has_content:
            self._begin_recording(recorder, self._assembler.take())
        elif not self._assembler.is_within_transaction:
            if received is not ReceivedPart.CONTENT or self._is_fresh():
                self._caught_up_at = now
            is_told = received in (ReceivedPart.IDLE, ReceivedPart.ASKED)
            self._move_idle(recorder, at_once=received is ReceivedPart.ASKED or self._is_waited_for)
            self._is_waited_for = self._is_waited_for and not is_told
        self._measure_if_due()

    def _is_fresh(self) -> bool:
        """Whether what is received was only just committed: a busy server may never be idle."""
        age = self._log.measure_age_seconds()
        return age is not None and age < _CAUGHT_UP_SECONDS

    def _hear_waiting_reads(self, listener: psycopg.Connection[Any]) -> None:
        """Asks the server how far it has sent where a read waits for that (``core/capture/holds.py``)."""
        if not select.select([listener.fileno()], [], [], 0)[0]:
            return
        if any(each.payload == self._at.name for each in listener.notifies(timeout=0)):
            self._is_waited_for = True
            self._log.ask_for_position()

    def _move_idle(self, recorder: ThreadPoolExecutor, *, at_once: bool) -> None:
        """Goes on with the server's position: other databases of the server may write a lot."""
        position = self._assembler.batch.position
        if find_later(self._at.position, position) == self._at.position:
            return
        if at_once or time.monotonic() - self._moved_at > _IDLE_MOVE_SECONDS:
            self._begin_recording(recorder, self._assembler.take())
            self._finish_recording()

    def _begin_recording(self, recorder: ThreadPoolExecutor, batch: ChangeBatch) -> None:
        if batch.has_content:
            _taken()
            self._wait_until_visible(batch.marks)
        done = recorder.submit(record_batch, self._engine, self._at, batch, self._config.limits.event_bytes)
        self._recording = Recording(done, batch.has_content, time.monotonic())

    def _finish_recording(self) -> None:
        """Waits until the batch that is being recorded is durable, and only then tells the source."""
        recording, self._recording = self._recording, None
        if recording is None:
            return
        self._at = self._wait_for(recording)
        if recording.has_content:
            _committed()
        self._log.acknowledge(self._at.position)
        if recording.has_content:
            _acknowledged()
        self._moved_at = time.monotonic()

    def _wait_for(self, recording: Recording) -> StreamPosition:
        """Waits for the ledger; where it takes long, the source is let go of first."""
        patience = max(0.0, recording.began_at + _SLOW_LEDGER_SECONDS - time.monotonic())
        try:
            return recording.done.result(patience)
        except FutureTimeout:
            if recording.done.done():
                raise
            self._log.close()
            recording.done.result()
            raise _SlowLedger from None

    def _wait_until_visible(self, marks: set[Hashable]) -> None:
        """Waits until reads of parts see these transactions: the log shows a commit before others see it."""
        pause = _FIRST_LOOK_SECONDS
        while True:
            if self._source.sees(marks):
                return
            if self._stop.is_set():
                raise _Stopped
            self._log.hold(pause)
            pause = min(_MAX_LOOK_SECONDS, pause * 2)
            self._measure_if_due()

    # Figures --------------------------------------------------------------------------------------------------------

    def _measure_if_due(self) -> None:
        """Renews the lease, writes figures, and sees that the source still has what is captured."""
        now = time.monotonic()
        if now - self._measured_at < _MEASURE_SECONDS:
            return
        self._measured_at = now
        found = inspect_or_forget(self._engine, self._source, self._at.name, self._tables)
        self._compare_tables(found)
        retained, behind = self._log.read_retained_bytes() or 0, now - self._caught_up_at
        if behind > _CAUGHT_UP_SECONDS:
            behind = max(behind, self._log.measure_age_seconds() or 0.0)
        problems = self._describe_lag(retained, behind)

        def write(connection: Connection) -> bool:
            streams.note_figures(connection, self._at.name, problems)
            return streams.renew_stream(
                connection,
                self._at.name,
                self._at.token,
                self._at.lease_seconds,
                retained_bytes=retained,
                behind_seconds=behind,
            )

        if not in_transaction(self._engine, write):
            raise ReplacedReader

    def _compare_tables(self, found: SourcePreparation) -> None:
        """Raises LogDown where the stream is to be opened again, since changes may be missing."""
        known, present = self._stream.tables, found.name_tables()
        is_same = known.keys() == present.keys() and self._stream.identity.endswith(found.identity)
        if is_same and known == present:
            return
        if not is_same or any(describe_difference(table, known[table], present[table]) for table in present):
            raise LogDown("its tables or its publication were altered or made anew")
        in_transaction(
            self._engine,
            lambda connection: streams.note_tables(connection, self._at.name, self._at.token, present),
        )
        self._stream = replace(self._stream, tables=present)

    def _describe_lag(self, retained: int, behind: float) -> list[str]:
        limits, problems = self._source.capture, []
        if behind > limits.max_behind_seconds:
            problems.append(
                f"more was changed than could be recorded for {behind:.0f} s (capture.max_behind_seconds is "
                f"{limits.max_behind_seconds:g})"
            )
        if retained > limits.max_retained_bytes:
            is_behind = behind > limits.max_behind_seconds
            problems.append(self._source.describe_retained(retained, is_behind=is_behind))
        return problems


def _describe_interruption(error: Exception) -> str:
    if isinstance(error, _SlowLedger):
        return "the database was slow to record; the source's log was closed meanwhile, and is opened again"
    return "another process has taken this stream over"


def inspect_or_forget(
    engine: Engine, source: CaptureSource, name: str, tables: Sequence[CapturedTable]
) -> SourcePreparation:
    """Looks at what a source has.

    Raises:
        NotPrepared: It lacks something. Which tables are not captured any more is written down before.
    """
    found = source.inspect(tables)
    if found.problems:
        gone = [table.name for table in tables if table.name not in found.name_tables()]
        in_transaction(engine, lambda connection: streams.forget_tables(connection, name, gone))
        raise NotPrepared(*found.problems)
    return found
