"""Heartbeats of the processes that hold claimed records and events: the claims of one that is gone are free soon.

A claim names its holder. Once the holder was not heard of for ``HOLDER_GONE_SECONDS``, others take over what it had
claimed, however long ``limits.lease`` is. A holder that only stood still finds that its heartbeat lapsed: it begins no
call under its old claims, and claims more under another id. What it settles is fenced by the tokens of its claims.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sync_orchestrator.core.db import fragments
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.db.session_settings import application_name
from sync_orchestrator.core.systems import queries

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

BEAT_SECONDS = 2.0
"""The time between two heartbeats of a holder."""

_FORGOTTEN_AFTER_LEASES = 2  # by then the leases of its claims are over

_log = logging.getLogger("sync_orchestrator.holders")


class Hold:
    """One stretch of time in which a process was heard of; ``valid_until`` is monotonic."""

    __slots__ = ("id", "valid_until")

    def __init__(self, id_: int, valid_until: float) -> None:
        self.id = id_
        self.valid_until = valid_until

    @property
    def is_valid(self) -> bool:
        """Whether calls may be begun under claims of this holder."""
        return time.monotonic() <= self.valid_until


class Deadline(float):
    """The monotonic time before which a call under a claim must begin; nothing begins once the claim's hold lapsed."""

    hold: Hold | None

    def __new__(cls, at: float, hold: Hold | None = None) -> Deadline:
        """Makes a deadline at a monotonic time in seconds; with a hold, it also ends when that lapses."""
        deadline = super().__new__(cls, at)
        deadline.hold = hold
        return deadline


def is_over(deadline: float | None) -> bool:
    """Whether no call may be begun any more. None has no end."""
    if deadline is None:
        return False
    hold = deadline.hold if isinstance(deadline, Deadline) else None
    return time.monotonic() > deadline or (hold is not None and not hold.is_valid)


class Holder:
    """This process as a holder of claims; ``lease_seconds`` is the longest time for which it claims anything."""

    def __init__(self, engine: Engine, lease_seconds: float) -> None:
        self._engine = engine
        self._lease_seconds = lease_seconds
        self._lock = threading.Lock()
        self._users = 0
        self._leaves_claims = False
        self._ended = threading.Event()
        self.hold: Hold | None = None
        """What claims are made under; None while nothing claims: such claims end with their lease."""

    @contextmanager
    def keep_heartbeat(self) -> Iterator[None]:
        """Keeps the heartbeat up until the block is left; blocks may be nested, and entered by several threads.

        A block that is left by an error may leave claims behind: the heartbeat stays, and lapses.
        """
        self._add_user()
        try:
            yield
        except BaseException:
            self._leaves_claims = True
            raise
        finally:
            self._remove_user()

    def _add_user(self) -> None:
        with self._lock:
            if self._users == 0:
                self._ended, self._leaves_claims = threading.Event(), False
                self.hold = self._register_holder()
                threading.Thread(target=self._keep_beating, args=(self._ended,), name="holder", daemon=True).start()
            self._users += 1

    def _remove_user(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
            self._ended.set()
            hold, self.hold = self.hold, None
        if hold is not None and not self._leaves_claims:
            in_transaction(self._engine, lambda connection: run(connection, queries.DELETE_CLAIM_HOLDER, id=hold.id))

    def _register_holder(self) -> Hold:
        began = time.monotonic()
        name = f"{application_name()} on {socket.gethostname()}"

        def insert_holder(connection: Connection) -> int:
            run(
                connection,
                queries.DELETE_GONE_CLAIM_HOLDERS,
                seconds=fragments.HOLDER_GONE_SECONDS + _FORGOTTEN_AFTER_LEASES * self._lease_seconds,
            )
            return int(run(connection, queries.INSERT_CLAIM_HOLDER, name=name)[0].id)

        return Hold(in_transaction(self._engine, insert_holder), began + fragments.HOLDER_VALID_SECONDS)

    def _keep_beating(self, ended: threading.Event) -> None:
        """Beats from a thread of its own, so that a busy event loop loses nothing."""
        while not ended.wait(BEAT_SECONDS):
            try:
                self.renew_heartbeat()
            except BaseException as error:  # whatever it is, the next heartbeat may be written
                _log.warning("the heartbeat of the holder of claims was not written: %s", type(error).__name__)

    def renew_heartbeat(self) -> None:
        """Says that this process is there; where that comes too late, its claims are lost and it has another id."""
        hold, began = self.hold, time.monotonic()
        if hold is None:
            return
        if in_transaction(self._engine, lambda connection: run(connection, queries.RENEW_CLAIM_HOLDER, id=hold.id)):
            hold.valid_until = began + fragments.HOLDER_VALID_SECONDS
            return
        if self.hold is not hold:  # it ended meanwhile
            return
        _log.warning(
            "this process was not heard of for more than %g s: others take over what it had claimed",
            fragments.HOLDER_VALID_SECONDS,
        )
        new = self._register_holder()
        with self._lock:
            if self.hold is hold:
                self.hold = new
