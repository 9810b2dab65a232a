"""Checks that several behaviours of third parties share."""

from __future__ import annotations

from typing import Any

from sync_orchestrator.conformance.fixture import Bench
from sync_orchestrator.conformance.report import Differs
from sync_orchestrator.core.ports import Item

MANY = 7


async def update_and_check(bench: Bench, item: Item) -> None:
    """Updates a record and looks at what is there then. Raises Differs."""
    told = await bench.update_record(item)
    if told is None:
        raise Differs("an update says that the record is not there", f"the id {item.external_id}")
    await bench.check_shown(item)


async def no_duplicate(bench: Bench, item: Item) -> None:
    """Checks that one record has the key, where records are searched or listed. Raises Differs."""
    if bench.group is None and not bench.capabilities.can_lookup:
        return
    await bench.wait_for_search()
    found = await bench.of_key(item)
    if len(found) != 1:
        raise Differs(f"{len(found)} records have the key {item.key}", "one record")


async def listed_ids(bench: Bench, item: Item) -> list[str]:
    """Returns the ids under which the listing shows a record."""
    return [found.external_id for found in await bench.list_records() if found.key == item.key]


def join_ids(ids: list[Any]) -> str:
    """Returns ids as a message names them."""
    return ", ".join(map(str, ids)) or "nothing"
