"""The procedure "After a restore" of docs/operations.md, played with its own commands against systems over HTTP."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from databases import create, drop
from http_server import Server
from paths import ROOT
from record_store import Store
from sqlalchemy import Engine
from sqlalchemy.engine import make_url
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typer.testing import CliRunner, Result

from sync_orchestrator import composition
from sync_orchestrator.cli import app
from sync_orchestrator.core.db.session import open_engine, run

DOCUMENT = ROOT / "docs" / "operations.md"
SECTION = DOCUMENT.read_text(encoding="utf-8").split("# After a restore\n", 1)[1].split("\n# ", 1)[0]
COMMANDS = [
    line.strip()
    for block in re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
STATUS, WITHOUT_ADOPTING, ADOPT, RECREATE, VERIFY = COMMANDS

CALLS: dict[str, Any] = {
    "system": "erp",
    "key_field": "code",
    "group": "store",
    "update": {"method": "PUT", "path": "/items/{{ id }}"},
    "delete": {"path": "/items/{{ id }}"},
    "read": {"path": "/items/{{ id }}"},
    "list": {"path": "/items", "params": {"store": "{{ group }}"}},
}
THEIRS = {**CALLS, "create": {"path": "/items"}}
LOOKUP = {"lookup": {"path": "/items", "params": {"code": "{{ key }}"}}}
TARGETS: dict[str, dict[str, Any]] = {
    "theirs": {**THEIRS, **LOOKUP},
    "theirs, search first": {**THEIRS, **LOOKUP, "search_first": True},
    "theirs, without lookup": THEIRS,
    "ours": {**CALLS, "ids": "ours"},
}


class Field:
    """A source and a third party behind one server, and the commands that work on them."""

    def __init__(self, server: Server, folder: Path, url: str, patch: pytest.MonkeyPatch, kind: str) -> None:
        self.our_ids = kind == "ours"
        self.store = Store(server, our_ids=self.our_ids)
        self.rows: dict[str, dict[str, Any]] = {}
        self.who = "acme"
        self._handle = server.handler
        self._patch = patch
        self._engine: Engine | None = None
        self.next_id = 0
        self.store.by_hand = self._by_hand  # type: ignore[method-assign]
        server.handler = self._answer
        (folder / "sync.yaml").write_text(yaml.safe_dump(self._config(server.url, TARGETS[kind])))
        patch.setenv("SYNC_CONFIG", str(folder / "sync.yaml"))
        patch.setenv("SYNC_HOME", str(folder / "home"))
        self.use(url)

    def use(self, url: str) -> None:
        """From now on commands work on this database; each would open an engine of its own, which nobody ends."""
        self.close()
        self._engine = engine = open_engine(url)
        self._patch.setenv("SYNC_DATABASE_URL", url.replace("+psycopg", ""))
        self._patch.setattr(composition, "open_database", lambda: engine)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.dispose()

    def _config(self, url: str, target: dict[str, Any]) -> dict[str, Any]:
        return {
            "sources": {"shop": {"base_url": f"{url}/shop"}},
            "third_parties": {
                "erp": {
                    "base_url": url,
                    "timeout": 5,
                    "in_flight_window": 0,
                    "search_lag": 0,
                    "account": {"path": "/me", "record": "id"},
                }
            },
            "entities": {
                "item": {
                    "owner": "shop",
                    "parts": {
                        "shop": {
                            "key": "key",
                            "group": "store",
                            "version": {"path": "v", "kind": "number"},
                            "list": {
                                "path": "/rows",
                                "params": {"store": "{{ group }}", "after": "{{ after }}"},
                                "paging": "after",
                            },
                            "read": {"path": "/rows/{{ key }}"},
                            "groups": {"path": "/stores"},
                        }
                    },
                    "mapping": {"code": "key", "store": "group", "name": "shop.name"},
                    "validation": {"confirm_after": 0},
                    "source_check": {"confirm_after": 0},
                    "third_party": target,
                }
            },
        }

    def _by_hand(self, **fields: Any) -> str:
        if self.our_ids:
            item_id = str(fields["code"])
        else:
            self.next_id += 1
            item_id = str(self.next_id)
        self.store.items[item_id] = {"id": item_id, "v": 1, **fields}
        return item_id

    async def _answer(self, request: Request) -> Response:
        match request.path_params["rest"].split("/"):
            case ["me"]:
                return JSONResponse({"id": self.who})
            case ["shop", "stores"]:
                return JSONResponse(["A"])
            case ["shop", "rows"]:
                after = request.query_params.get("after", "")
                return JSONResponse([row for key, row in sorted(self.rows.items()) if key > after])
            case ["shop", "rows", key]:
                return JSONResponse(self.rows[key]) if key in self.rows else JSONResponse({}, 404)
        return await self._handle(request)

    def put(self, key: str, name: str = "n") -> None:
        """A change at the source, of which nobody is notified."""
        version = max((row["v"] for row in self.rows.values()), default=0) + 1
        self.rows[key] = {"key": key, "store": "A", "name": name, "v": version}

    def run(self, command: str, status: int = 0) -> Result:
        result = CliRunner().invoke(app, shlex.split(command.removeprefix("sync-orchestrator ")))
        assert result.exit_code == status, f"{command}: {result.output}\n{result.stderr}\n{result.exception!r}"
        return result

    def of_others(self) -> dict[str, Any]:
        return {item_id: dict(item) for item_id, item in self.store.items.items() if item["code"].startswith("CLERK")}

    def assert_in_sync(self) -> None:
        """Each row once, with its content, and nothing else but what others made."""
        ours = sorted(
            (item["code"], item["name"]) for item in self.store.items.values() if not item["code"].startswith("CLERK")
        )
        assert ours == sorted((key, row["name"]) for key, row in self.rows.items())


@pytest.fixture(params=TARGETS)
def world(
    request: pytest.FixtureRequest, server: Server, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Field]:
    made = Field(server, tmp_path, database_url, monkeypatch, request.param)
    for number in range(12):
        made.put(f"k{number:02}")
    made.run("full-sync item")
    made.assert_in_sync()
    yield made
    made.close()


@pytest.fixture
def snapshot(world: Field, server_url: str, database_url: str) -> Iterator[Callable[[], str]]:
    """Makes a copy of the database, and returns its address."""
    made: list[str] = []

    def copied() -> str:
        world._engine.dispose()  # type: ignore[union-attr]  # a template has no other sessions
        name = f"played_{len(made)}_{make_url(database_url).database}"
        made.append(create(server_url, name, make_url(database_url).database))
        return made[-1]

    yield copied
    world.close()
    for url in made:
        drop(server_url, url)


def test_the_section_has_these_steps() -> None:
    assert [shlex.split(command)[1] for command in COMMANDS] == ["status", "resume", "adopt", "adopt", "validate"]


@pytest.mark.slow
def test_played_our_database_restored(world: Field, snapshot: Callable[[], str]) -> None:
    world.store.by_hand(code="CLERK-1", store="A", name="by a clerk")
    backup = snapshot()
    world.put("new", "made since")
    world.put("k01", "changed since")
    del world.rows["k02"]
    world.run("full-sync item")
    world.assert_in_sync()
    there = copy.deepcopy(world.store.items)
    world.put("k03", "changed after the restore")

    world.use(backup)
    writes = len(world.store.bodies)
    held = world.run("full-sync item", 1)
    assert "nothing was pushed to erp" in held.stderr
    world.run("drain")
    assert "another database of the same server" in world.run(STATUS).stdout
    assert len(world.store.bodies) == writes

    assert "Pushes to erp go on." in world.run(ADOPT).stdout
    world.run(VERIFY)
    world.assert_in_sync()
    assert world.store.items.keys() == there.keys()
    assert len(world.store.bodies) == writes + 1  # the one change after the restore
    assert "suspended" not in world.run(STATUS).stdout


@pytest.mark.slow
def test_played_the_third_party_restored_and_ids_given_again(world: Field) -> None:
    if world.our_ids:
        pytest.skip("their keys are the ids: none is given again")
    before, next_id = copy.deepcopy(world.store.items), world.next_id
    for number in range(3):
        world.put(f"late{number}")
    world.put("k02", "renamed")
    world.run("full-sync item")
    world.store.items, world.next_id = before, next_id
    for number in range(3):
        world.store.by_hand(code=f"CLERK-{number}", store="A", name="by a clerk")
    others = world.of_others()
    assert "suspended" in world.run(VERIFY, 2).stdout
    world.put("late0", "renamed, too")
    del world.rows["late1"]
    assert "suspended" in world.run(STATUS).stdout
    world.run(ADOPT)
    world.run(VERIFY)
    world.assert_in_sync()
    assert world.of_others() == others


@pytest.mark.slow
def test_played_another_account(world: Field) -> None:
    world.store.items, world.next_id, world.who = {}, 0, "other"
    world.store.by_hand(code="CLERK-1", store="A", name="by a clerk")
    others = world.of_others()
    world.put("k01", "changed")
    world.run("full-sync item", 1)
    assert world.of_others() == others
    assert len(world.store.items) == 1
    assert "called with account other now" in world.run(STATUS).stdout
    stopped = world.run(ADOPT, 2)
    assert "--recreate-missing" in stopped.stderr
    assert len(world.store.items) == 1
    world.run(RECREATE)
    world.run(VERIFY)
    world.assert_in_sync()
    assert world.of_others() == others
    shown = json.loads(world.run("status --json").stdout)
    assert shown["systems"]["erp"]["account"] == "other"


@pytest.mark.parametrize("world", ["theirs"], indirect=True)
def test_played_a_failover_that_lost_nothing(world: Field, database_url: str) -> None:
    engine = open_engine(database_url)
    with engine.begin() as connection:
        run(connection, "UPDATE sync.installation SET timeline = timeline + 1")
    engine.dispose()
    assert "timeline" in world.run(STATUS.replace("status", "drain")).stderr + world.run(STATUS).stdout
    world.put("k01", "changed")
    refused = world.run("resume erp", 1)
    assert "sync-orchestrator adopt" in refused.stderr
    world.run("resume erp --without-adopting", 2)
    world.run(WITHOUT_ADOPTING.replace("NAME", "erp"))
    world.run("full-sync item")
    world.run(VERIFY)
    world.assert_in_sync()


@pytest.mark.parametrize("world", ["theirs"], indirect=True)
def test_the_account_is_shown_before_going_live(world: Field) -> None:
    assert "calls are made as account acme" in world.run("check --live --group A").stdout
