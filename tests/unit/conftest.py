"""Keeps databases out of ``tests/unit``: its tests run where no Postgres is installed, in seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from database_guard import no_database


@pytest.fixture(scope="session")
def server_url() -> str:
    """Replaces the server of ``databases.py``, which all fixtures of databases stand on."""
    pytest.fail("a test in tests/unit uses no database; move it to tests/integration")


@pytest.fixture(scope="module", autouse=True)
def refuse_databases() -> Iterator[None]:
    """Refuses each way to a database while a module's tests run."""
    with no_database():
        yield
