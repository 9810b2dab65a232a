"""Behaviours of a third party with one record: it is created, updated, deleted, read and looked up."""

from __future__ import annotations

from dataclasses import replace

from sync_orchestrator.conformance.fixture import Bench, catch_refusal
from sync_orchestrator.conformance.report import Behaviours, Differs, Skipped
from sync_orchestrator.conformance.third_party.shared_checks import join_ids, listed_ids, no_duplicate, update_and_check
from sync_orchestrator.core.ports import Item
from sync_orchestrator.core.values.identity import may_be_given_again
from sync_orchestrator.errors import CallFailed, Failure

RECORDS: Behaviours[Bench] = Behaviours()
behaviour = RECORDS.add


@behaviour("create")
async def create_then_read(bench: Bench) -> None:
    """What was created can be read back, all of its fields as they were written."""
    await bench.check_shown(await bench.create_record(bench.make_item()))


@behaviour("update")
async def update_then_read(bench: Bench) -> None:
    """An update overwrites what is there."""
    item = await bench.create_record(bench.make_item())
    if (all_changed := await _with_all_changed(bench, item)) is not None:
        item = all_changed
    else:
        await update_and_check(bench, bench.change_item(item, 1))


async def _with_all_changed(bench: Bench, item: Item) -> Item | None:
    """Changes every mapped field that it can, at once, or one by one where some cannot be changed like that.

    Returns the record as it is then; None where no field can be changed. Raises Differs.
    """
    changes = bench.samples.suggest_changes(item.payload)
    whole = replace(item, payload={**item.payload, **changes})
    if changes and await _is_taken(bench, whole):
        await bench.check_shown(whole)
        return whole
    changed = item
    for name, value in changes.items() if len(changes) > 1 else ():
        one = replace(changed, payload={**changed.payload, name: value})
        if await _is_taken(bench, one):
            await bench.check_shown(one)
            changed = one
    return None if changed is item else changed


async def _is_taken(bench: Bench, item: Item) -> bool:
    """Whether an update is not refused for good: a value that was made here need not be valid there.

    Nor is it taken where it names a record that does not exist, such as a category.
    """
    try:
        told, refused = await catch_refusal(bench.update_record(item))
    except CallFailed as failure:
        if failure.kind is not Failure.REFERENCE:
            raise
        return False
    if refused is None and told is None:
        raise Differs("an update says that the record is not there", f"the id {item.external_id}")
    return refused is None


@behaviour("update", needs=("update-then-read",))
async def back_to_older_values(bench: Bench) -> None:
    """The last write wins, also one that brings back what was there before."""
    first = await bench.create_record(bench.make_item())
    await update_and_check(bench, bench.change_item(first, 1))
    await update_and_check(bench, first)


@behaviour("id", "update")
async def id_is_kept(bench: Bench) -> None:
    """A record keeps its id through updates, and the listing shows it under that id."""
    item = await bench.create_record(bench.make_item())
    told = await bench.update_record(bench.change_item(item, 1))
    if told != item.external_id:
        raise Differs(f"the update says that the id is {told}", f"{item.external_id}, as the create said")
    if bench.group is None:
        return
    ids = await bench.poll_until(lambda: listed_ids(bench, item), bool)
    if ids != [item.external_id]:
        raise Differs(f"the listing shows it under {join_ids(ids)}", f"{item.external_id}, as the create said")


@behaviour("delete")
async def delete_then_gone(bench: Bench) -> None:
    """What was deleted cannot be read, found or listed any more."""
    item = await bench.create_record(bench.make_item())
    await bench.check_shown(item)
    await bench.third_party.delete(item)
    found = await bench.poll_until(lambda: bench.third_party.read(item), lambda found: found is None)
    if found is not None:
        raise Differs(f"it can still be read: {found.fields}", "no record")
    left = (
        []
        if bench.group is None and not bench.capabilities.can_lookup
        else await bench.poll_until(lambda: bench.of_key(item), lambda left: not left)
    )
    if left:
        raise Differs("it is still shown", "no record", bench.point_to_fix("list", "pages"))


@behaviour("delete")
async def delete_of_missing_is_fine(bench: Bench) -> None:
    """Deleting what is gone already is no failure."""
    item = await bench.create_record(bench.make_item())
    await bench.third_party.delete(item)
    await bench.third_party.delete(item)


@behaviour("read", needs=("delete-then-gone",))
async def missing_is_told(bench: Bench) -> None:
    """A record that is not there is told as missing: no failure, and no other record."""
    item = await bench.create_record(bench.make_item())
    await bench.third_party.delete(item)
    found = await bench.poll_until(lambda: bench.third_party.read(item), lambda found: found is None)
    if found is not None:
        raise Differs(f"a read shows {found.fields}", "no record")
    if bench.capabilities.assigns_ids and await bench.update_record(item) is not None:
        raise Differs(
            "an update of a deleted record counts as a success",
            "a response that means missing",
            f"{bench.point_to_fix('update', 'update')}: add a rule to its 'outcomes' that means missing, "
            'for the response that the service gives then (such as "status == `204`")',
        )


@behaviour("look_first", "capabilities", needs=("delete-then-gone",))
async def ids_that_are_given_again_are_noticed(bench: Bench) -> None:
    """Where the id of a deleted record is given to the next one, a read shows whose it is."""
    if not bench.capabilities.assigns_ids:  # then the id is the key
        return
    first = await bench.create_record(bench.make_item())
    await bench.third_party.delete(first)
    second = await bench.create_record(bench.make_item())
    if second.external_id != first.external_id:
        return
    again = f"the id {first.external_id} of a deleted record is given again"
    if bench.capabilities.look_first == "never":
        raise Differs(
            again,
            "an id that does not come back, or a look before each write",
            f"set look_first to auto: {bench.point_to_fix('look_first', 'capabilities')}",
        )
    if bench.capabilities.look_first == "auto" and not may_be_given_again(first.external_id or ""):
        raise Differs(
            again,
            "a random id that does not come back",
            f"set look_first to always: {bench.point_to_fix('look_first', 'capabilities')}",
        )
    found = await bench.poll_until(lambda: bench.third_party.read(first), bool)
    if found is None or found.key != second.key:
        raise Differs(
            f"{again}, and a read of it shows the key {None if found is None else found.key!r}",
            f"the key {second.key!r}",
            bench.point_to_fix("read", "read"),
        )


@behaviour("lookup")
async def lookup_finds_by_key(bench: Bench) -> None:
    """A search by our key finds the record once the search lag is over, and no other one."""
    if not bench.capabilities.can_lookup:
        raise Skipped("it says that it cannot be searched by key")
    item, other = await bench.create_record(bench.make_item()), await bench.create_record(bench.make_item())
    found = await bench.poll_until(lambda: bench.third_party.lookup(item.key, item.group), bool)
    if [each.external_id for each in found] != [item.external_id]:
        raise Differs(
            f"it finds {join_ids([each.external_id for each in found])}",
            f"{item.external_id} alone, and not {other.external_id}",
        )
    if found:
        bench.hold_same(item, found[0], "the fields that were written")
    nobody = bench.make_item("nobody")
    if found := await bench.third_party.lookup(nobody.key, nobody.group):
        raise Differs(f"of a key that nobody has it finds {join_ids([each.external_id for each in found])}", "nothing")


@behaviour("create")
async def repeated_create_makes_no_duplicate(bench: Bench) -> None:
    """The same create, sent again, leaves one record."""
    item = bench.make_item()
    if bench.capabilities.assigns_ids and not bench.capabilities.idempotent_create:
        raise Skipped("it says nothing of repeated creates: they are never sent, but looked up")
    first, second = await bench.create_record(item), await bench.create_record(item)
    if first.external_id != second.external_id:
        raise Differs(f"the second one made {second.external_id} beside {first.external_id}", "the first one's id")
    await no_duplicate(bench, item)


@behaviour("create", needs=("repeated-create-makes-no-duplicate",))
async def lost_answer_leads_to_no_duplicate(bench: Bench) -> None:
    """A create whose answer is lost is found again, or repeated without harm."""
    item = bench.make_item()
    await bench.create_record(item)  # and nobody has heard of its id
    if not bench.capabilities.assigns_ids:
        if await bench.update_record(item) != item.key:
            raise Differs(
                "a second write does not find it", f"the key {item.key}", bench.point_to_fix("update", "update")
            )
    elif bench.capabilities.idempotent_create:
        again = await bench.create_record(item)
        if await bench.update_record(again) is None:
            raise Differs(f"nothing is under {again.external_id}, which the repeated create named", "the record")
    elif bench.capabilities.can_lookup:
        await bench.wait_for_search()
        found = await bench.third_party.lookup(item.key, item.group)
        if len(found) != 1:
            lag = f"third_parties.{bench.entity.third_party.system}.search_lag, which is {bench.system.search_lag:g} s"
            raise Differs(
                f"its search finds {len(found)} records after search_lag",
                "the one that was made",
                f"raise {lag}, or {bench.point_to_fix('lookup', 'lookup')}",
            )
        if await bench.update_record(replace(item, external_id=found[0].external_id)) is None:
            raise Differs(
                "what the search found cannot be updated", "the record", bench.point_to_fix("lookup", "lookup")
            )
    else:
        raise Skipped("neither a search nor repeated creates: a person is asked then")
    await no_duplicate(bench, item)
