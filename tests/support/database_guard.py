"""Keeps databases out of tests that are to run where no Postgres is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from sync_orchestrator.database import embedded


def refuse_connections(connect: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that connects and raises AssertionError if that succeeds.

    Attempts that fail are allowed: tests of unreachable servers make them.
    """

    def try_to_connect(*arguments: Any, **options: Any) -> Any:
        connect(*arguments, **options).close()
        raise AssertionError("a test in tests/unit connected to a database; move it to tests/integration")

    return try_to_connect


def refuse_to_start(*_: object) -> str:
    """Raises AssertionError, in place of the start of the embedded database."""
    raise AssertionError("a test in tests/unit started a database; move it to tests/integration")


@contextmanager
def no_database() -> Iterator[None]:
    """Refuses connections to Postgres and the start of the embedded one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg, "connect", refuse_connections(psycopg.connect))
        patch.setattr(psycopg.Connection, "connect", refuse_connections(psycopg.Connection.connect))
        patch.setattr(embedded, "start", refuse_to_start)
        yield
