"""Behaviours of a third party with several writes at once, in calls of their own or in one bulk call."""

from __future__ import annotations

import asyncio

from sync_orchestrator.conformance.fixture import Bench, fields_of
from sync_orchestrator.conformance.report import Behaviours, Differs, Skipped
from sync_orchestrator.conformance.third_party.shared_checks import MANY, update_and_check
from sync_orchestrator.errors import CallFailed, Failure

CONCURRENT_WRITES: Behaviours[Bench] = Behaviours()
behaviour = CONCURRENT_WRITES.add


@behaviour("create")
async def concurrent_writes_do_not_mix(bench: Bench) -> None:
    """Records written at the same time keep their own contents."""
    items = await asyncio.gather(
        *(
            bench.create_record(item)
            for item in [
                bench.make_item() if not bench.samples.changeable else bench.change_item(bench.make_item(), number)
                for number in range(MANY)
            ]
        )
    )
    if len({item.external_id for item in items}) != len(items):
        raise Differs("two records have the same id", "one id each")
    for item in items:
        await bench.check_shown(item)


@behaviour("revision", "update", needs=("update-then-read",))
async def two_at_once_leave_one_whole(bench: Bench) -> None:
    """Of two writes of one record at the same time one wins as a whole, or is told of; a stale revision is no end."""
    item = await bench.create_record(bench.make_item())
    rivals = [bench.change_item(item, 1), bench.change_item(item, 2)]
    for ending in await asyncio.gather(*(bench.update_record(rival) for rival in rivals), return_exceptions=True):
        if isinstance(ending, CallFailed) and ending.kind is Failure.PERMANENT and not ending.may_be_conflict:
            raise Differs(f"one of them is refused for good: {ending.detail}", "success, or a failure that passes")
        if isinstance(ending, BaseException) and not isinstance(ending, CallFailed):
            raise ending
    found = await bench.third_party.read(item)
    if found is None or all(bench.list_differences(rival, found) for rival in rivals):
        nearer = [] if found is None else min((bench.differing_fields(rival, found) for rival in rivals), key=len)
        raise Differs(f"{fields_of(found)} is there", "what one of the two wrote", fields=nearer)
    await update_and_check(bench, item)


@behaviour("bulk_update", "update", needs=("update-then-read", "delete-then-gone"))
async def bulk_results_are_item_by_item(bench: Bench) -> None:
    """In a call of many records each has its own result: one that is gone spoils no other."""
    if not bench.entity.third_party.collect_bulk_calls():
        raise Skipped("it has no calls of many records")
    items = [
        bench.change_item(item, 1)
        for item in await asyncio.gather(*(bench.create_record(bench.make_item()) for _ in range(3)))
    ]
    gone = items.pop()
    await bench.third_party.delete(gone)
    results = await asyncio.gather(*(bench.update_record(item) for item in (*items, gone)), return_exceptions=True)
    for item, result in zip(items, results, strict=False):
        if result != item.external_id:
            raise Differs(f"a good one ended with {result}", f"its id {item.external_id}")
        await bench.check_shown(item)
    if bench.capabilities.assigns_ids and results[-1] is not None:
        raise Differs(f"the one that is gone ended with {results[-1]}", "None")
    await asyncio.gather(*(bench.third_party.delete(item) for item in (*items, gone)))
