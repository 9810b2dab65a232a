"""The process of a worker: its tasks, its heartbeat, and its end.

Each task has a thread of its own; polls share one. The process ends within END_SECONDS of SIGINT or SIGTERM: rounds
under way may end, polls are cut off, and a message that is being sent may be sent again by the next worker.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from uuid import uuid4

import psycopg
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from sync_orchestrator.brokers.receivers import build_receivers
from sync_orchestrator.core.context import Context
from sync_orchestrator.core.db.notify import OUTCOMES_CHANNEL, open_listener
from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.notifications import alerts, outcomes
from sync_orchestrator.core.operations.maintenance import watch_if_due
from sync_orchestrator.core.operations.worker_watch import watch_workers
from sync_orchestrator.core.systems.worker_presence import (
    BEAT_SECONDS,
    delete_gone_workers,
    end_worker,
    record_worker,
)
from sync_orchestrator.worker.polling import Polling
from sync_orchestrator.worker.tasks import Task, TaskState

ALERTS_SECONDS = 5.0
OUTCOMES_SECONDS = 5.0
"""Without an announcement; new outcomes are announced, and sent at once."""
WATCH_LOOK_SECONDS = 10.0
"""The time between two looks whether the round of each minute is due."""
FORGET_SECONDS = 60.0

END_SECONDS = 6.0
"""How long rounds under way may take once the end is requested. Service managers wait about 10 seconds in all."""

_RECONNECT_SECONDS = 1.0
_DATABASE_ERRORS = (SQLAlchemyError, psycopg.Error)
_log = logging.getLogger("sync_orchestrator.worker")


def run_worker(context: Context) -> None:
    """Works until SIGINT or SIGTERM; a second signal ends the process at once. To be called in the main thread."""
    stop = threading.Event()

    def request_end(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, request_end)
    if not Worker(context).run(stop):
        logging.shutdown()
        os._exit(0)  # the interpreter would wait for calls that cannot be interrupted


class Worker:
    """All tasks of one worker."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._id = uuid4().hex[:12]
        self._outcomes = self._outcome_tasks()
        self._tasks = [
            Task("alerts", ALERTS_SECONDS, self._send_alerts),
            Task("watch", WATCH_LOOK_SECONDS, self._watch_for_alerts),
            *self._outcomes,
        ]
        if self._outcomes:
            self._tasks.append(Task("removed receivers", FORGET_SECONDS, self._delete_removed_receivers))
        self._polling = Polling(context)

    @property
    def states(self) -> list[TaskState]:
        """How each task fares."""
        return [*(task.state for task in self._tasks), *self._polling.states]

    def run(self, stop: threading.Event) -> bool:
        """Works until ``stop`` is set; returns whether every task ended in time."""
        works: dict[str, Callable[[threading.Event], None]] = {task.state.name: task.run for task in self._tasks}
        if self._polling.states:
            works["polling"] = self._polling.run
        if self._outcomes:
            works["listen"] = self._listen_for_outcomes
        # Daemon threads: a call that cannot be interrupted must not keep the process.
        threads = [threading.Thread(target=work, args=(stop,), name=name, daemon=True) for name, work in works.items()]
        self._try_in_transaction(delete_gone_workers)
        self._write_heartbeat()
        for thread in threads:
            thread.start()
        _log.info("the worker %s has begun: %s", self._id, ", ".join(state.name for state in self.states))
        while not stop.wait(BEAT_SECONDS):
            self._write_heartbeat()
        return self._end_threads(threads)

    def _end_threads(self, threads: list[threading.Thread]) -> bool:
        for task in self._tasks:
            task.wake()
        self._polling.stop()
        ends = time.monotonic() + END_SECONDS
        for thread in threads:
            thread.join(max(0.0, ends - time.monotonic()))
        left = [thread.name for thread in threads if thread.is_alive()]
        self._try_in_transaction(partial(end_worker, worker_id=self._id))
        if left:
            _log.warning("ended within a round of %s; what it was sending may be sent again", ", ".join(left))
        else:
            _log.info("ended; all rounds were over")
        return not left

    def _write_heartbeat(self) -> None:
        reports = [state.make_report() for state in self.states]
        process = f"{os.getpid()} on {socket.gethostname()}"
        self._try_in_transaction(lambda connection: record_worker(connection, self._id, process, reports))

    def _try_in_transaction(self, work: Callable[[Connection], None]) -> None:
        """A heartbeat that cannot be written is written the next time."""
        try:
            in_transaction(self._context.engine, work)
        except _DATABASE_ERRORS as error:
            _log.warning("the heartbeat of the worker was not written: %s", type(error).__name__)

    def _send_alerts(self) -> str:
        sent = alerts.send_due_alerts(self._context.engine, self._context.config.alerts, _log.warning)
        return f"{sent} sent" if sent else ""

    def _watch_for_alerts(self) -> str:
        config = self._context.config
        did = watch_if_due(self._context.engine, config.alerts, config.entities)
        watch_workers(self._context.engine, config.alerts.silent_after)
        return "looked for what waits too long" if did else ""

    def _outcome_tasks(self) -> list[Task]:
        """A task for each receiver, so that one that is slow keeps no other waiting."""
        engine, config = self._context.engine, self._context.config
        known = build_receivers(config)

        def send_to_receiver(name: str) -> str:
            sent = outcomes.send_outcomes(engine, name, known[name], config.alerts)
            return f"{sent} sent" if sent else ""

        return [Task(f"outcomes {name}", OUTCOMES_SECONDS, partial(send_to_receiver, name)) for name in known]

    def _delete_removed_receivers(self) -> str:
        outcomes.delete_removed_receivers(self._context.engine, list(self._context.config.outcomes))
        return ""

    def _listen_for_outcomes(self, stop: threading.Event) -> None:
        """Wakes the senders when outcomes are announced. A lost session is replaced: only hints are lost with it."""
        while not stop.is_set():
            with suppress(*_DATABASE_ERRORS), open_listener(self._context.engine, OUTCOMES_CHANNEL) as connection:
                while not stop.is_set():
                    for _ in connection.notifies(timeout=0.5, stop_after=1):
                        for task in self._outcomes:
                            task.wake()
            stop.wait(_RECONNECT_SECONDS)
