"""A third party that runs, a backoffice that is its source, and the sync between them by the stock adapter."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from http_server import Server
from installing import install
from servers import Datasette, ParseServer, Record, ThirdPartyServer
from small_systems import Backoffice
from sqlalchemy import Engine, text
from sqlalchemy.engine import make_url

from sync_orchestrator import app
from sync_orchestrator.core.drain import drain
from sync_orchestrator.core.full_sync import full_sync
from sync_orchestrator.core.group_push import StepReport
from sync_orchestrator.core.ledger import ChangeEvent, conservation, record
from sync_orchestrator.core.sql import connect
from sync_orchestrator.core.validation import GroupValidation, validate
from sync_orchestrator.performing import perform

GROUPS = ("berlin", "new york", "são paulo", "o'hare & söhne")
AWKWARD = ("a/b", "a b", "100%", "it's", 'say "x"', "ä漢🙂", "a+b?c#d&e", "~tilde", "a.b", "-")


def _product(number: int) -> Record:
    return {
        "sku": AWKWARD[number] if number < len(AWKWARD) else f"p{number:04}",
        "shop": GROUPS[number % len(GROUPS)],
        "name": None if number % 7 == 3 else f"Product {number} “ü漢🙂” <b>&amp;\n{{{{ x }}}}",
        "price": None if number % 11 == 5 else round(number * 0.37 + 0.01, 2),
        "stock": 2**53 - 1 - number if number % 5 == 2 else number,
        "active": number % 3 != 0,
        "released": None if number % 4 == 2 else f"2025-{number % 12 + 1:02}-{number % 28 + 1:02}",
    }


class Company:
    """The backoffice, what it tells of its changes, and our side of the third party."""

    def __init__(
        self, engine: Engine, third_party: ThirdPartyServer, backoffice: Backoffice, **changes: Any
    ) -> None:
        """``changes``: other settings of the third party."""
        self.engine = engine
        self.third_party = third_party
        self.backoffice = backoffice
        config = app.load_config()
        system = config.third_parties[third_party.name].model_copy(update=changes)
        self.context = app.open_context(engine, config.model_copy(update={"third_parties": {third_party.name: system}}))
        self.entity = self.context.entities["product"]
        self._ticks = itertools.count(1)

    def fill(self, count: int, *, tell: bool = False) -> None:
        """So many new products, told to nobody unless said so."""
        for number in range(count):
            product = {**_product(number), "updated_at": self._now()}
            self.backoffice.products[product["sku"]] = product
            if tell:
                self._tell(product["sku"], "create", product["updated_at"])

    def put(self, key: str, **fields: Any) -> None:
        """Changes or makes a product, and tells of it without its content."""
        old = self.backoffice.products.get(key)
        product = {**(old or {**_product(99), "sku": key}), **fields, "updated_at": self._now()}
        self.backoffice.products[key] = product
        self._tell(key, "update" if old else "create", product["updated_at"])

    def remove(self, key: str) -> None:
        del self.backoffice.products[key]
        self._tell(key, "delete", self._now())

    def full_sync(self, **options: Any) -> list[StepReport]:
        """Of all groups, one after the other."""
        return [perform(self.context, full_sync(self.context, self.entity, group, **options))[1]
                for group in GROUPS]

    def drain(self, linger: float = 0) -> None:
        """One drain that ends when nothing is due."""
        perform(self.context, drain(self.context, linger=linger, most_seconds=60))

    def drain_to_the_end(self) -> None:
        """Drains until nothing waits any more."""
        self.drain()
        while not self.states().keys() <= {"done", "superseded", "dead"}:
            self.drain(linger=1)

    def validate(self, **options: Any) -> dict[str, GroupValidation]:
        return {group: perform(self.context, validate(self.context, self.entity, group, **options))
                for group in GROUPS}

    def check_clean(self) -> None:
        """The third party holds what the backoffice says; validation finds so too, by count and record by record."""
        assert sorted(self.held(), key=str) == sorted(self.expected(), key=str)
        for full in (False, True):
            found = self.validate(full=full)
            assert {group: (each.verdict, each.drift, each.foreign, each.reason) for group, each in found.items()} == (
                dict.fromkeys(GROUPS, ("in_step", [], 0, None)))
            assert sum(each.counted or 0 for each in found.values()) == len(self.expected())
        assert self.states().keys() <= {"done", "superseded"}

    def held(self) -> list[Record]:
        """What the third party holds, past our adapter; twins are there twice."""
        return [{name: value for name, value in held.items() if name != "id"} for held in self.third_party.records()]

    def expected(self) -> list[Record]:
        """What it should hold, past our archive."""
        return [{"sku": product["sku"], "merchant": product["shop"],
                 **{name: product[name] for name in ("name", "price", "stock", "active", "released")}}
                for product in self.backoffice.products.values()]

    def states(self) -> dict[str, int]:
        """Change events by state, those that are not zero."""
        with self.engine.begin() as connection:
            return {state: count for state, count in conservation(connection).states.items() if count}

    def close(self) -> None:
        asyncio.run(self.context.close())

    def _now(self) -> str:
        return (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=next(self._ticks))).isoformat()

    def _tell(self, key: str, action: str, when: str) -> None:
        version = int(datetime.fromisoformat(when).timestamp()) * 1_000_000
        record(self.engine, [ChangeEvent("backoffice", f"{key} {when}", "product", key, action, version)])  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def installed() -> None:
    install()


@pytest.fixture(scope="module", params=["datasette", "parse_server"])
def running(
    request: pytest.FixtureRequest, installed: None, server_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ThirdPartyServer]:
    folder = tmp_path_factory.mktemp(request.param)
    with ExitStack() as held:
        if request.param == "datasette":
            server: ThirdPartyServer = Datasette(folder)
        else:
            server = ParseServer(folder, held.enter_context(_database(server_url)))
        held.callback(server.stop)
        server.start()
        yield server


@contextmanager
def _database(server_url: str) -> Iterator[str]:
    """A database for it beside ours, on the same server."""
    name = f"parse_{os.getpid()}"
    admin = connect(server_url)
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
        yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
        connection.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))
    admin.dispose()


@pytest.fixture
def third_party(running: ThirdPartyServer, monkeypatch: pytest.MonkeyPatch) -> ThirdPartyServer:
    """The running server without a record, and an environment in which its ``sync.yaml`` finds it."""
    running.clear()
    for name, value in {**running.environment, "SYNC_CONFIG": str(running.config)}.items():
        monkeypatch.setenv(name, value)
    return running


@pytest.fixture
def backoffice(server: Server, monkeypatch: pytest.MonkeyPatch) -> Backoffice:
    backoffice = Backoffice([])
    server.handler = backoffice
    monkeypatch.setenv("BACKOFFICE_PORT", server.url.rpartition(":")[2])
    monkeypatch.setenv("BACKOFFICE_TOKEN", backoffice.token)
    return backoffice


@pytest.fixture
def company(third_party: ThirdPartyServer, backoffice: Backoffice, engine: Engine) -> Iterator[Company]:
    company = Company(engine, third_party, backoffice)
    yield company
    company.close()
