"""What a login gave, and the right of one at a time to log in: shared by all processes, or kept by one alone.

No transaction is open while somebody logs in: a lease stands for the right.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import Connection, Engine

from sync_orchestrator.core.db.session import in_transaction, run, to_jsonb
from sync_orchestrator.core.systems import queries


@dataclass(frozen=True, slots=True)
class LoginResponse:
    """What a login's answer held. ``renew_in``: seconds after which it is too old; None where that was not told."""

    token: str = field(repr=False)
    refresh: str | None = field(default=None, repr=False)
    values: Mapping[str, str] = field(default_factory=dict, repr=False)
    renew_in: float | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """A login that was made. ``number`` tells it from others; ``renew_at`` is a monotonic time."""

    number: int
    given: LoginResponse
    renew_at: float | None

    @property
    def too_old(self) -> bool:
        """Whether the login should be renewed before the next call."""
        return self.renew_at is not None and time.monotonic() >= self.renew_at


@dataclass(frozen=True, slots=True)
class LoginGrant:
    """What a caller gets: a session, or a lease.

    With ``lease`` it is the caller's turn to log in, ``session`` being the last one; without, ``session`` can be used,
    or somebody else is logging in where it is None.
    """

    session: Session | None = None
    lease: int | None = None


class LoginStore(Protocol):
    """Where the logins to one system are kept. ``mark`` stands for the settings: what others gave does not count."""

    def acquire_login(self, mark: bytes, refused: int | None, seconds: float) -> LoginGrant:
        """A session that is neither too old nor the refused one, or the right to log in, for so many seconds."""
        ...

    def store_login(self, mark: bytes, lease: int, given: LoginResponse) -> Session | None:
        """Keeps what the login gave, and ends the lease; None where the lease is somebody else's by now."""
        ...

    def release_lease(self, lease: int) -> None:
        """Ends the lease after a login that failed."""
        ...


class ProcessLogins:
    """Logins of one process; implements ``LoginStore``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._session: Session | None = None
        self._lease: tuple[int, float] | None = None

    def acquire_login(self, mark: bytes, refused: int | None, seconds: float) -> LoginGrant:
        """Returns the login to use, or the lease by which the caller logs in. See ``LoginStore.acquire_login``."""
        with self._lock:
            session = self._session
            if session is not None and session.number != refused and not session.too_old:
                return LoginGrant(session)
            if self._lease is not None and time.monotonic() < self._lease[1]:
                return LoginGrant()
            self._lease = next(self._numbers), time.monotonic() + seconds
            return LoginGrant(session, self._lease[0])

    def store_login(self, mark: bytes, lease: int, given: LoginResponse) -> Session | None:
        """Stores a new login; returns None where the lease is over."""
        with self._lock:
            if self._lease is None or self._lease[0] != lease:
                return None
            self._lease = None
            self._session = _build_session(lease, given)
            return self._session

    def release_lease(self, lease: int) -> None:
        """Ends a lease without a login."""
        with self._lock:
            if self._lease is not None and self._lease[0] == lease:
                self._lease = None


class SharedLogins:
    """Logins that all processes and machines share through the database; implements ``LoginStore``."""

    def __init__(self, engine: Engine, system: str) -> None:
        self._engine = engine
        self._system = system

    def acquire_login(self, mark: bytes, refused: int | None, seconds: float) -> LoginGrant:
        """Returns the login to use, or the lease by which the caller logs in. See ``LoginStore.acquire_login``."""

        def reuse_or_lease(connection: Connection) -> LoginGrant:
            run(connection, queries.ENSURE_LOGIN_SESSION, system=self._system)
            row = run(connection, queries.SELECT_LOGIN_SESSION, system=self._system)[0]
            session = None
            if row.token is not None and bytes(row.mark) == mark:
                session = _build_session(row.number, LoginResponse(row.token, row.refresh, row.picked, row.renew_in))
            if session is not None and session.number != refused and not session.too_old:
                return LoginGrant(session)
            if row.taken:
                return LoginGrant()
            return LoginGrant(
                session, run(connection, queries.LEASE_LOGIN_SESSION, system=self._system, seconds=seconds)[0][0]
            )

        return in_transaction(self._engine, reuse_or_lease)

    def store_login(self, mark: bytes, lease: int, given: LoginResponse) -> Session | None:
        """Stores a new login for all processes; returns None where the lease is over."""
        kept = self._run_statement(
            queries.STORE_LOGIN_SESSION,
            lease=lease,
            mark=mark,
            token=given.token,
            refresh=given.refresh,
            picked=to_jsonb(dict(given.values)),
            renew_in=given.renew_in,
        )
        return _build_session(lease, given) if kept else None

    def release_lease(self, lease: int) -> None:
        """Ends a lease without a login."""
        self._run_statement(queries.RELEASE_LOGIN_SESSION, lease=lease)

    def _run_statement(self, statement: str, **params: object) -> Any:
        return in_transaction(
            self._engine, lambda connection: run(connection, statement, system=self._system, **params)
        )


def _build_session(number: int, given: LoginResponse) -> Session:
    return Session(number, given, None if given.renew_in is None else time.monotonic() + given.renew_in)
