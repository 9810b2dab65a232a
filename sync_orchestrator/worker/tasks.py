"""A task of a worker: what it does again and again, and how it fares. An error of one task ends no other."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import psycopg
from sqlalchemy.exc import SQLAlchemyError

from sync_orchestrator.core.db.connections import sqlstate_of
from sync_orchestrator.core.systems.worker_presence import TaskReport
from sync_orchestrator.errors import SyncError
from sync_orchestrator.texts.masking import mask_secrets
from sync_orchestrator.texts.storable_text import storable_text

FIRST_PAUSE_SECONDS = 2.0
"""The pause after a round that failed; it doubles with each further one."""

MAX_PAUSE_SECONDS = 60.0

_MAX_ERROR_LENGTH = 300

_log = logging.getLogger("sync_orchestrator.worker")


class TaskState:
    """How a task fares. Threads may read it while another one works."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._heard_at = time.monotonic()
        self._did = ""
        self._did_at: float | None = None
        self._error: str | None = None
        self._failures = 0

    def note_progress(self) -> None:
        """A long round gets on."""
        with self._lock:
            self._heard_at = time.monotonic()

    def note_success(self, did: str) -> None:
        """A round has ended well; ``did`` is empty where there was nothing to do."""
        with self._lock:
            self._heard_at = time.monotonic()
            if did:
                self._did, self._did_at = did, self._heard_at
            if self._error is not None:
                _log.info("%s: works again", self.name)
            self._error, self._failures = None, 0

    def note_failure(self, error: Exception) -> float:
        """A round has failed: logs it, and returns the pause in seconds until the next one."""
        described = describe_error(error)
        with self._lock:
            self._error = described
            pause: float = min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**self._failures)
            is_first = not self._failures
            self._failures = min(self._failures + 1, 30)
        is_known = isinstance(error, (SyncError, SQLAlchemyError, psycopg.Error))
        _log.warning(
            "%s: %s; the next try is in %.0f s",
            self.name,
            described,
            pause,
            exc_info=error if is_first and not is_known else None,
        )
        return pause

    def make_report(self) -> TaskReport:
        """The state as the heartbeat has it."""
        now = time.monotonic()
        with self._lock:
            return TaskReport(
                self.name,
                round(now - self._heard_at, 1),
                self._did,
                None if self._did_at is None else round(now - self._did_at, 1),
                self._error,
            )


class Task:
    """Work that a thread of its own repeats until it is asked to stop."""

    def __init__(self, name: str, interval_seconds: float, work: Callable[[], str]) -> None:
        """``work`` does one round and returns what it did; empty for nothing."""
        self.state = TaskState(name)
        self._interval_seconds = interval_seconds
        self._work = work
        self._woken = threading.Event()

    def wake(self) -> None:
        """Begins the next round now, unless the task rests after an error."""
        self._woken.set()

    def run(self, stop: threading.Event) -> None:
        """Repeats the work until ``stop`` is set and the task is woken."""
        while not stop.is_set():
            self._woken.clear()
            try:
                self.state.note_success(self._work())
            except Exception as error:  # of whatever kind: it ends neither this task nor another one
                stop.wait(self.state.note_failure(error))
            else:
                if not stop.is_set():
                    self._woken.wait(self._interval_seconds)


def describe_error(error: Exception) -> str:
    """What went wrong, in a line without secrets."""
    if isinstance(error, (SQLAlchemyError, psycopg.Error)):
        return f"the database does not respond as it should ({type(error).__name__}, sqlstate {sqlstate_of(error)})"
    text = str(error) if isinstance(error, SyncError) else f"unexpected {type(error).__name__}"
    return storable_text(mask_secrets(text)[:_MAX_ERROR_LENGTH])
