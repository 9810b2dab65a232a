"""Logins that processes share through the database."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from auth_servers import LOGIN, REFRESH, Guard, called, client
from auth_servers import guard as guard
from auth_servers import store as store
from http_server import Server
from sqlalchemy import Engine

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.core.db.session import open_engine
from sync_orchestrator.core.systems.login_sessions import SharedLogins


@pytest.fixture
def machines(engine: Engine, database_url: str, server: Server) -> Any:
    """Makes clients that share nothing but the database."""
    engines = [engine]

    def make(login: dict[str, Any], **settings: Any) -> HttpClient:
        engines.append(open_engine(database_url))
        return client(server, login, store=SharedLogins(engines[-1], "sources.shop"), **settings)

    yield make
    for each in engines[1:]:
        each.dispose()


async def test_rotating_refresh_shared_by_all_machines(machines: Any, guard: Guard) -> None:
    """However many processes find the token expired, one refreshes, and the others use what it was given."""
    one, two = machines({**LOGIN, **REFRESH}), machines({**LOGIN, **REFRESH})
    for round_ in range(1, 4):
        await asyncio.gather(*(called(http) for http in (one, two) for _ in range(5)))
        assert (guard.made("/login"), guard.made("/refresh")) == (1, round_ - 1)
        guard.expire()
    await one.close()
    await two.close()


async def test_rotating_refresh_outlives_a_restart(machines: Any, guard: Guard) -> None:
    one = machines({**LOGIN, **REFRESH})
    await called(one)
    guard.expire()
    two = machines({**LOGIN, **REFRESH})
    await called(two)
    assert (guard.made("/login"), guard.made("/refresh")) == (1, 1)
    await one.close()
    await two.close()


async def test_a_login_of_other_settings_is_not_used(machines: Any, guard: Guard) -> None:
    """Somebody else's session would go on under the old account."""
    one = machines({**LOGIN, **REFRESH})
    body = {"user": "another", "password": "another-secret"}
    two = machines({**LOGIN, **REFRESH, "request": {**LOGIN["request"], "body": body}})
    await called(one)
    await called(two)
    assert (guard.made("/login"), guard.made("/refresh")) == (2, 0)
    await one.close()
    await two.close()
