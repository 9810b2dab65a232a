"""What the tests share: an empty database each (``databases.py``), a world of fakes, a small HTTP server."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from databases import database_url, engine, fresh_engine, server_url, template, template_shape  # noqa: F401
from fakes import FakeThirdParty, two_part_config
from http_server import Server
from sqlalchemy import Engine
from world import World

pytest.register_assert_rewrite(
    "broker_consumers", "command_line", "conformance_catalogue", "dagster_instance", "histories", "stopped_workers"
)

collect_ignore = ["third_parties"]  # asked for by name only: they are installed from registries first


@pytest.fixture
def make_world(engine: Engine) -> Callable[..., World]:  # noqa: F811
    """Makes a world on the test's database; keyword arguments change its configuration or fakes."""

    def make(*, erp: FakeThirdParty | None = None, **changes: Any) -> World:
        return World(engine, two_part_config(**changes), erp=erp or FakeThirdParty())

    return make


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()


@pytest.fixture(scope="module")
def one_server() -> Iterator[Server]:
    """A server of the module's own."""
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def server(one_server: Server) -> Server:
    """It again, with nothing to say and nothing seen."""
    one_server.seen.clear()
    one_server.handler = one_server.respond_with_nothing
    return one_server


def pytest_collection_finish() -> None:
    """What was collected stays for good: it is not looked through at every collection of garbage."""
    gc.collect()
    gc.freeze()


LONGEST_FIRST = ("test_invariants", "test_crashes", "test_dagster_runs", "test_up", "test_demo_systems")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A long module that begins last keeps one worker busy while the other has nothing left to do."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
