"""The tests in this folder need no database, which ``conftest.py`` holds them to."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from database_guard import refuse_connections

from sync_orchestrator.database import embedded


@pytest.mark.parametrize("fixture", ["server_url", "database_url", "engine", "world"])
def test_fixtures_of_databases_are_refused(request: pytest.FixtureRequest, fixture: str) -> None:
    with pytest.raises(pytest.fail.Exception, match="move it to tests/integration"):
        request.getfixturevalue(fixture)


def test_no_embedded_database_is_started(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="started a database"):
        embedded.start(tmp_path)


def test_a_connection_that_succeeds_is_refused() -> None:
    class Connection:
        closed = False

        def close(self) -> None:
            Connection.closed = True

    with pytest.raises(AssertionError, match="connected to a database"):
        refuse_connections(lambda url: Connection())("postgresql://h/x")
    assert Connection.closed


def test_a_server_that_cannot_be_reached_is_allowed() -> None:
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect("postgresql://127.0.0.1:1/x", connect_timeout=5)
