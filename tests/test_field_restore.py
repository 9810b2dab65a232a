"""After a restore: noticed on either side, pushes stop, an operator adopts what is there, and all is in sync again.

Not here: which single id is not believed (the tests of identity).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import World
from databases import create, drop
from fakes import FakeThirdParty, two_part_config
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from sync_orchestrator.core.adoption import Adoption, Listed, Standing, adopt, link
from sync_orchestrator.core.installation import Installation, InstallationWatch, find_restore, read_installation
from sync_orchestrator.core.sql import connect, run
from sync_orchestrator.core.status import status
from sync_orchestrator.core.suspension import lift, note_stray_ids, suspension_of

Make = Callable[..., World]


class AccountedThirdParty(FakeThirdParty):
    """A third party that says whose account it is called with; None: it does not answer."""

    who: Any = "acme"
    asked = 0

    async def account(self) -> str | None:
        self.asked += 1
        if isinstance(self.who, Exception):
            raise self.who
        return self.who


def adopted(world: World, **options: Any) -> Adoption:
    world.later(60)  # what was under way has landed
    [result] = asyncio.run(adopt(world.context, [world.entity], **options))
    return result


def reason(world: World) -> str | None:
    with world.engine.begin() as connection:
        found = suspension_of(connection, "erp")
    return None if found is None else found.reason


def open_alerts(world: World) -> list[str]:
    return [row.kind for row in world.query("SELECT kind FROM sync.alerts WHERE resolved_at IS NULL ORDER BY kind")]


def by_key(world: World) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for external_id, record in world.erp.store.items():
        found.setdefault(record["code"], []).append(external_id)
    return found


@pytest.fixture
def restored(engine: Engine, server_url: str, database_url: str) -> Iterator[Callable[[World], Callable[[], World]]]:
    """Makes a copy of the database now; what it returns makes a world on that copy later."""
    made: list[tuple[str, World | None]] = []

    def snapshot(world: World) -> Callable[[], World]:
        name = f"restored_{len(made)}_{make_url(database_url).database}"
        world.engine.dispose()
        url = create(server_url, name, make_url(database_url).database)
        made.append((url, None))

        def restore() -> World:
            copy = World(connect(url), world.config, world.shop, world.stock, world.erp, offset=world.offset)
            made.append((url, copy))
            return copy

        return restore

    yield snapshot
    for url in dict.fromkeys(url for url, _ in made):
        for other, copy in made:
            if other == url and copy is not None:
                copy.close()
                copy.engine.dispose()
        drop(server_url, url)


KINDS: dict[str, Callable[[], FakeThirdParty]] = {
    "theirs, with lookup": FakeThirdParty,
    "theirs, without": lambda: FakeThirdParty(can_lookup=False),
    "theirs, search first": lambda: _searching(FakeThirdParty()),
    "ours": lambda: FakeThirdParty(own_ids=False),
    "ours, by group": lambda: FakeThirdParty(own_ids=False, grouped_address=True),
}


def _searching(erp: FakeThirdParty) -> FakeThirdParty:
    from dataclasses import replace

    erp.traits = replace(erp.traits, search_first=True)
    return erp


@pytest.mark.parametrize("kind", KINDS)
def test_rule_28_our_database_restored_to_an_earlier_point(
    kind: str, make_world: Make, restored: Callable[[World], Callable[[], World]]
) -> None:
    """What was made, changed and deleted since is neither made twice nor set back."""
    world = make_world(erp=KINDS[kind]())
    for number in range(6):
        world.put(f"k{number}")
    world.full_sync()
    world.drain()
    stranger = "x" if kind.startswith("ours") else world.erp.by_hand({"code": "x", "store": "A"}, "A")
    back = restored(world)
    world.put("new", name="made since")
    world.put("k1", name="changed since")
    world.remove("k2")
    world.drain()
    assert world.mirrored().keys() == world.truth().keys() | ({"x"} if stranger != "x" else set())
    ids = by_key(world)
    calls = world.erp.calls.copy()

    world = back()
    assert "another database" in (reason(world) or "")
    world.put("k3", name="while suspended")
    assert world.drain().calls == 0
    assert world.erp.calls == calls
    assert open_alerts(world) == ["adoption_needed"]

    result = adopted(world)
    assert result.lifted
    assert result.stopped is None
    assert result.linked == {"in_sync": 5, "update": 1, "gone": 1}
    assert [each.verdict for each in result.validations] == ["in_step"]
    assert {key: record for key, record in world.mirrored().items() if key != "x"} == world.truth()
    assert by_key(world) == ids  # nothing twice, nothing under another id
    assert world.erp.calls["create"] == calls["create"]
    assert open_alerts(world) == ([] if stranger == "x" else ["drift"])  # an unmanaged record is reported, and stays
    assert reason(world) is None


def test_rule_28_a_key_that_moved_since_is_found_in_its_new_group(
    make_world: Make, restored: Callable[[World], Callable[[], World]]
) -> None:
    world = make_world()
    world.put("k1")
    world.put("k2", group="B")
    world.full_sync()
    world.full_sync("B")
    world.drain()
    back = restored(world)
    world.put("k1", group="B")
    world.drain()
    ids = by_key(world)
    world = back()
    result = adopted(world)
    assert result.lifted, result
    assert by_key(world) == ids
    assert world.mirrored() == world.truth()
    assert {each.verdict for each in result.validations} == {"in_step"}
