"""Behaviours of a third party with business groups: they are listed, counted and kept apart."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from sync_orchestrator.adapters.rest.filter_check import is_refusal
from sync_orchestrator.config import FilterCheckSettings
from sync_orchestrator.conformance.fixture import Bench, catch_refusal
from sync_orchestrator.conformance.report import Behaviours, Differs, Skipped
from sync_orchestrator.conformance.third_party.shared_checks import MANY, join_ids, listed_ids
from sync_orchestrator.core.ports import Found, Item
from sync_orchestrator.errors import CallFailed, Failure

SMALL_PAGE = 3

_MAX_RECORDS_FOR_PAGES = 50

LISTINGS: Behaviours[Bench] = Behaviours()
behaviour = LISTINGS.add


@behaviour("list", "pages")
async def list_is_complete(bench: Bench) -> None:
    """A listing of a business group shows every record of it, each once, as it was written."""
    items = await asyncio.gather(*(bench.create_record(bench.make_item()) for _ in range(MANY)))
    await _all_listed(bench, items, lambda: bench.list_records())


@behaviour("list", "pages", needs=("list-is-complete",))
async def list_has_more_than_one_page(bench: Bench) -> None:
    """A listing goes on until its end, page by page."""
    listing = bench.entity.third_party.list
    small, count = bench.third_party, MANY
    if listing is not None and listing.paging == "none":
        raise Skipped("it is set up as one page that has it all")
    if listing is not None and "limit" in listing.collect_template_names():
        small = bench.rebuilt(third_party={"list": listing.model_copy(update={"size": SMALL_PAGE})})
    elif listing is not None:
        if listing.size > _MAX_RECORDS_FOR_PAGES:
            raise Skipped(f"a page has {listing.size} records, and its size is not sent: put {{{{ limit }}}} into it")
        count = listing.size + 1
    bench.listed_group  # noqa: B018  # skips where none is known
    try:
        items = await asyncio.gather(*(bench.create_record(bench.make_item()) for _ in range(count)))
        await _all_listed(bench, items, lambda: bench.list_records(third_party=small))
        if len(await bench.list_pages(third_party=small)) < 2:
            raise Skipped("all came in one page: have its class take a page size in its settings")
    finally:
        if small is not bench.third_party:
            await small.close()


@behaviour("list", "pages")
async def groups_are_kept_apart(bench: Bench) -> None:
    """A listing of a business group shows nothing of another one, and an unknown group has nothing."""
    group = bench.listed_group
    item = await bench.create_record(bench.make_item())
    check = bench.entity.third_party.filter_check
    nowhere = FilterCheckSettings().group if bench.system.adapter is not None else check.group
    try:
        found, refused = await catch_refusal(bench.list_records(nowhere))
    except CallFailed as failure:
        if failure.kind is not Failure.REFERENCE and not is_refusal(failure):  # as ``check --live`` judges it
            raise
        found, refused = None, failure
    if refused is None and found:
        raise Differs(f"of a group that does not exist it shows {len(found)} records", "none")
    if bench.other_group is None:
        return
    await bench.poll_until(lambda: listed_ids(bench, item), bool)
    if any(found.key == item.key for found in await bench.list_records(bench.other_group)):
        raise Differs(f"the group {bench.other_group} shows {item.key}", f"it in {group} alone")


@behaviour("count", needs=("delete-then-gone", "list-is-complete"))
async def count_agrees_with_list(bench: Bench) -> None:
    """The count of a business group is the number of records that its listing shows."""
    group = bench.listed_group
    if await bench.third_party.count(group) is None:
        raise Skipped("it says that it cannot count")
    items = [await bench.create_record(bench.make_item()) for _ in range(2)]
    await bench.third_party.delete(items.pop())

    async def count_both() -> tuple[int | None, int]:
        return await bench.third_party.count(group), len(await bench.list_records())

    await bench.wait_for_search()
    counted, listed = await bench.poll_until(count_both, lambda both: both[0] == both[1])
    if counted != listed:
        raise Differs(f"it counts {counted}", f"{listed}, which it lists")


@behaviour("group", "update", needs=("update-then-read", "groups-are-kept-apart"))
async def group_can_change(bench: Bench) -> None:
    """A record that moves to another business group is shown there, and no longer in the old one."""
    old = bench.listed_group
    if bench.other_group is None:
        raise Skipped("only one business group is known: name another with --other-group")
    item = await bench.create_record(bench.make_item())
    moved = await bench.move_record(item, bench.other_group)

    async def find_groups() -> list[str]:
        return [
            group
            for group in (old, moved.group or "")
            for found in await bench.list_records(group)
            if found.key == item.key
        ]

    shown = await bench.poll_until(find_groups, lambda groups: groups == [moved.group])
    if shown != [moved.group]:
        raise Differs(f"it is shown in {join_ids(shown)}", f"{moved.group} alone", bench.point_to_fix("list", "pages"))


async def _all_listed(bench: Bench, items: list[Item], look: Callable[[], Awaitable[list[Found]]]) -> None:
    keys = {item.key: item for item in items}

    async def list_ours() -> list[Found]:
        return [found for found in await look() if found.key in keys]

    shown = await bench.poll_until(list_ours, lambda shown: len(shown) == len(keys))
    times = Counter(found.key for found in shown)
    if missing := keys.keys() - times.keys():
        raise Differs(f"{len(missing)} of {len(keys)} records are not shown, such as {min(missing)}", "all of them")
    if twice := [key for key, number in times.items() if number > 1]:
        raise Differs(f"{twice[0]} is shown {times[twice[0]]} times", "once")
    for found in shown:
        item = keys[found.key or ""]
        if found.external_id != item.external_id:
            raise Differs(f"{item.key} is shown with the id {found.external_id}", f"{item.external_id}")
        bench.hold_same(item, found, "the fields as a read shows them")
