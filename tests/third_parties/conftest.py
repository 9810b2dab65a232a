"""A third party that runs, a backoffice that is its source, and the sync between them by the stock adapter."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cookbook_pages import fences, merge, parse_yaml
from databases import create, drop
from http_server import Server
from installing import install
from servers import SERVERS, Record, ThirdPartyServer
from small_systems import Backoffice
from sqlalchemy import Engine
from sqlalchemy.engine import URL, make_url

from sync_orchestrator import composition
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.full_sync.full_sync import full_sync
from sync_orchestrator.core.full_sync.push_group import StepReport
from sync_orchestrator.core.ledger.conservation import count_conservation
from sync_orchestrator.core.ledger.recording import ChangeEvent, record_events
from sync_orchestrator.core.runtime import perform
from sync_orchestrator.core.validation.validate import GroupValidation, validate
from sync_orchestrator.errors import GroupBusy

GROUPS = ("berlin", "new york", "são paulo", "o'hare & söhne")
FIELDS = ("sku", "merchant", "name", "price", "stock", "active", "released")
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

    def __init__(self, engine: Engine, third_party: ThirdPartyServer, backoffice: Backoffice, **changes: Any) -> None:
        """``changes``: other settings of the third party."""
        self.engine = engine
        self.third_party = third_party
        self.backoffice = backoffice
        config = composition.load_config()
        ((self.system_name, system),) = config.third_parties.items()
        self.context = composition.open_context(
            engine, config.model_copy(update={"third_parties": {self.system_name: system.model_copy(update=changes)}})
        )
        self.entity = self.context.entities["product"]
        self._ticks = itertools.count(1)

    def fill(self, count: int, *, tell: bool = False) -> None:
        """So many new products, told to nobody unless said so."""
        for number in range(count):
            product = {**self.third_party.fit(_product(number)), "updated_at": self._now()}
            self.backoffice.products[product["sku"]] = product
            if tell:
                self._tell(product["sku"], "create", product["updated_at"])

    def put(self, key: str, **fields: Any) -> None:
        """Changes or makes a product, and tells of it without its content."""
        old = self.backoffice.products.get(key)
        changed = self.third_party.fit({**(old or {**_product(99), "sku": key}), **fields})
        product = {**changed, "updated_at": self._now()}
        self.backoffice.products[key] = product
        self._tell(key, "update" if old else "create", product["updated_at"])

    def remove(self, key: str) -> None:
        del self.backoffice.products[key]
        self._tell(key, "delete", self._now())

    def full_sync(self, **options: Any) -> list[StepReport]:
        """Of all groups, one after the other."""
        return [perform(self.context, full_sync(self.context, self.entity, group, **options))[1] for group in GROUPS]

    def full_sync_when_free(self) -> None:
        """Of all groups, as soon as the lease of a process that was killed lets it."""
        latest = time.monotonic() + 60
        for group in GROUPS:
            while True:
                try:
                    perform(self.context, full_sync(self.context, self.entity, group))
                    break
                except GroupBusy:
                    assert time.monotonic() < latest, "the lease of a killed process does not end"
                    time.sleep(0.5)

    def kill_in_the_middle(self, *words: str) -> None:
        """Runs a command as a process, and kills it when it has written records and has more calls under way."""
        before = self.third_party.records()
        url = self.engine.url.render_as_string(hide_password=False)
        process = subprocess.Popen(
            [sys.executable, "-m", "sync_orchestrator", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "SYNC_DATABASE_URL": url},
        )
        try:
            while len(self.third_party.records()) == len(before):
                assert process.poll() is None, process.communicate()[1].decode()
            self.third_party.stand_still()
            time.sleep(0.2)  # it goes on until it waits for the third party
            assert process.poll() is None, "it was over before it could be killed"
        finally:
            process.kill()
            process.communicate()
            self.third_party.go_on()

    def drain(self, linger: float = 0) -> None:
        """One drain that ends when nothing is due."""
        perform(self.context, drain(self.context, linger=linger, most_seconds=60))

    def drain_to_the_end(self) -> None:
        """Drains until nothing waits any more."""
        latest = time.monotonic() + 120
        self.drain()
        while not self.states().keys() <= {"done", "superseded", "dead"}:
            assert time.monotonic() < latest, self.states()
            self.drain(linger=1)

    def validate(self, **options: Any) -> dict[str, GroupValidation]:
        return {group: perform(self.context, validate(self.context, self.entity, group, **options)) for group in GROUPS}

    def check_clean(self) -> None:
        """The third party holds what the backoffice says; validation finds so too, by count and record by record."""
        assert sorted(self.held(), key=str) == sorted(self.expected(), key=str)
        for full in (False, True):
            found = self.validate(full=full)
            assert {
                group: (each.verdict, each.drift, each.unmanaged, each.reason) for group, each in found.items()
            } == (dict.fromkeys(GROUPS, ("in_sync", [], 0, None)))
            assert sum(each.counted or 0 for each in found.values()) == len(self.expected())
        assert self.states().keys() <= {"done", "superseded"}

    def held(self) -> list[Record]:
        """What the third party holds, past our adapter; duplicates are there twice."""
        return [{name: held[name] for name in FIELDS} for held in self.third_party.records()]

    def expected(self) -> list[Record]:
        """What it should hold, past our archive."""
        return [
            {name: product["shop" if name == "merchant" else name] for name in FIELDS}
            for product in self.backoffice.products.values()
        ]

    def states(self) -> dict[str, int]:
        """Change events by state, those that are not zero."""
        with self.engine.begin() as connection:
            return {state: count for state, count in count_conservation(connection).states.items() if count}

    def close(self) -> None:
        asyncio.run(self.context.close())

    def _now(self) -> str:
        return (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=next(self._ticks))).isoformat()

    def _tell(self, key: str, action: str, when: str) -> None:
        version = int(datetime.fromisoformat(when).timestamp()) * 1_000_000
        record_events(self.engine, [ChangeEvent("backoffice", f"{key} {when}", "product", key, action, version)])  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=list(SERVERS))
def running(
    request: pytest.FixtureRequest, server_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ThirdPartyServer]:
    """A third party, installed and started."""
    install([request.param])
    with _database(server_url, request.param) as database:
        server = SERVERS[request.param](tmp_path_factory.mktemp(request.param), database)
        try:
            server.start()
            yield server
        finally:
            server.stop()


@contextmanager
def _database(server_url: str, name: str) -> Iterator[URL]:
    """An empty database for it beside ours, on the same Postgres server."""
    url = create(server_url, f"{name}_{os.getpid()}")
    try:
        yield make_url(url)
    finally:
        drop(server_url, url)


@pytest.fixture
def third_party(running: ThirdPartyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ThirdPartyServer:
    """The running server without a record, and an environment in which the ``sync.yaml`` of its page finds it."""
    running.clear()
    path = tmp_path / "sync.yaml"
    path.write_text(yaml.safe_dump(_with_short_waits(running.page)), encoding="utf-8")
    for name, value in {**running.environment, "SYNC_CONFIG": str(path)}.items():
        monkeypatch.setenv(name, value)
    return running


def _with_short_waits(page: str) -> Any:
    """The ``sync.yaml`` of a page, whose waits a test has the time for."""
    (text,) = [text for language, text in fences(page) if language == "yaml"]
    document = parse_yaml(text)
    (system,) = document["third_parties"]
    timeout = document["third_parties"][system].get("timeout", "5s")
    waits = {
        "timeout": timeout,
        "in_flight_window": "1s",
        "search_lag": "0s",
        "breaker": {"probe_after": "200ms", "probe_cap": "1s"},
    }
    return merge(
        document,
        {
            "third_parties": {system: waits},
            "entities": {"product": {"validation": {"confirm_after": "100ms"}}},
            "limits": {"lease": f"{2 * int(timeout.removesuffix('s')) + 1}s"},
            "retry": {"retries": 8, "first_wait": "200ms", "max_wait": "1s"},
        },
    )


@pytest.fixture
def backoffice(server: Server, monkeypatch: pytest.MonkeyPatch) -> Backoffice:
    backoffice = Backoffice([])
    server.handler = backoffice
    monkeypatch.setenv("BACKOFFICE_URL", server.url)
    monkeypatch.setenv("BACKOFFICE_TOKEN", backoffice.token)
    return backoffice


@pytest.fixture
def company(third_party: ThirdPartyServer, backoffice: Backoffice, engine: Engine) -> Iterator[Company]:
    company = Company(engine, third_party, backoffice)
    yield company
    company.close()
