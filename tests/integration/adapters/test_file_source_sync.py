"""Full syncs from files: a first load, and a file that cannot be read to its end."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from file_sources import HEAD, LONG, put, source

from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.errors import DeletionsHeld


def test_a_row_without_a_key_is_asked_of_no_other_source(
    tmp_path: Path, make_world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    world.context.entities["item"] = replace(
        world.entity,
        sources={**world.entity.sources, "shop": source(tmp_path)},
        rules=replace(world.entity.rules, readable=frozenset({"stock"})),
    )
    read_many = world.stock.read_many

    async def strict(keys: Sequence[str]) -> list[PartRead]:
        assert all(keys)
        return list(await read_many(keys))

    monkeypatch.setattr(world.stock, "read_many", strict)
    world.stock.put("k1", {"key": "k1", "count": 1, "v": 0})
    put(tmp_path, "a.csv", HEAD + "k1,A,1,n\n,A,1,nobody\nk2,A\n")
    world.run_full_sync()
    assert sorted(world.mirror_by_key()) == ["k1"]
    [alert] = world.query("SELECT kind, n FROM sync.alerts WHERE resolved_at IS NULL")
    assert alert.kind == "invalid_source_records"


def test_a_first_load_from_a_file(tmp_path: Path, make_world: Callable[..., Any]) -> None:
    """The newest of several rows of a key wins; nothing is deleted for a file that is cut off or has unreadable rows;
    what is really gone is."""
    world = make_world()
    world.context.entities["item"] = replace(
        world.entity,
        sources={**world.entity.sources, "shop": source(tmp_path, files={"page": 3})},
        rules=replace(world.entity.rules, readable=frozenset({"stock"})),
    )
    for n in range(10):
        world.stock.put(f"k{n}", {"key": f"k{n}", "count": n, "v": 0})
    rows = [f"k{n},A,1,n" for n in range(10)]
    put(tmp_path, "a.csv", HEAD + "\n".join([*rows, "k3,A,3,newest", "k3,A,2,newer"]) + "\n")
    world.run_full_sync()
    assert len(world.mirror_by_key()) == 10
    assert world.mirror_by_key()["k3"]["name"] == "newest"
    put(tmp_path, "a.csv", HEAD + "\n".join(rows[:8]) + "\nk8,A\n")
    with pytest.raises(DeletionsHeld, match="not proven complete"):
        world.run_full_sync()
    put(tmp_path, "a.csv", HEAD + "\n".join(rows[:8]) + "\n")
    world.run_full_sync()
    assert sorted(world.mirror_by_key()) == [f"k{n}" for n in range(8)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
async def test_memory_stays_flat(tmp_path: Path, name: str) -> None:
    """A file of 20 MB is read with less than a tenth of it in memory."""
    text = LONG * 4
    row = f"k{{n}},A,1,{text}" if name == "a.csv" else f'{{{{"sku": "k{{n}}", "store": "A", "v": 1, "n": "{text}"}}}}'
    put(tmp_path, name, (HEAD if name == "a.csv" else "") + "".join(row.format(n=n) + "\n" for n in range(22_500)))
    number = 0
    tracemalloc.start()
    async for rows, _ in source(tmp_path, files={"page": 500}).pages("A"):
        number += len(rows)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert number == 22_500
    assert most < 2_000_000
