"""What a full sync would do, told without doing it; and a full sync that does what was told, or nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from command_line import Command
from command_line import command as command
from fakes import FakeThirdParty, answer, two_part_config
from scenes import fill_sources, plan_full_sync
from world import World

from sync_orchestrator.composition import build_context
from sync_orchestrator.core.full_sync.plan import GroupPlan, plan_group
from sync_orchestrator.core.ports import Capabilities
from sync_orchestrator.errors import CannotPlan, DeletionsHeld, GroupBusy


def everything(world: World) -> Any:
    """All that a plan must leave as it is."""
    tables = (
        "events",
        "event_history",
        "event_ids",
        "tallies",
        "parts",
        "records",
        "groups",
        "full_sync_keys",
        "drift",
        "alerts",
        "push_attempts",
        "entities",
    )
    return (
        {table: world.query(f"SELECT * FROM sync.{table} t ORDER BY t::text") for table in tables},
        dict(world.erp.store),
    )


def done(world: World, work: Callable[[], object]) -> dict[str, int]:
    """What really changed at the third party: made, changed, deleted."""
    before = {key: dict(value) for key, value in world.mirror_by_key().items()}
    work()
    after = world.mirror_by_key()
    counts = {
        "create": len(after.keys() - before.keys()),
        "delete": len(before.keys() - after.keys()),
        "update": sum(1 for key in after.keys() & before.keys() if after[key] != before[key]),
    }
    return {name: count for name, count in counts.items() if count}


def writes(plan: GroupPlan) -> dict[str, int]:
    return {name: plan.counts[name] for name in ("create", "delete", "update") if name in plan.counts}


def mixed(world: World) -> None:
    """A synced group in which, at the sources, something of each kind has happened since."""
    fill_sources(world, 60)
    world.run_full_sync(patience=30)
    world.put_record("k001", name="changed", notify=False)
    world.put_record("new", notify=False)
    world.shop.remove("k002")
    world.put_record("k003", group="B", notify=False)
    world.erp.by_hand({"code": "strange", "store": "A"})


# What it says ---------------------------------------------------------------------------------------------------------


def test_before_the_first_go_live_everything_is_to_be_made_and_nothing_is_written(world: World) -> None:
    fill_sources(world, 120)
    world.stock.rows.pop("k007")
    before = everything(world)
    plan = plan_full_sync(world)
    assert everything(world) == before
    assert (plan.listed, plan.counts) == (120, {"create": 119, "incomplete": 1})
    assert plan.samples[0].fields == [
        {"field": "code", "ours": "k000", "theirs": None},
        {"field": "store", "ours": "A", "theirs": None},
        {"field": "name", "ours": "n", "theirs": None},
        {"field": "count", "ours": 0, "theirs": None},
    ]


def test_a_plan_of_a_changed_group_is_what_its_full_sync_then_does(world: World) -> None:
    mixed(world)
    before = everything(world)
    plan = plan_full_sync(world)
    assert everything(world) == before
    assert plan.counts == {"create": 1, "update": 1, "delete": 1, "unchanged": 57, "moved": 1, "unmanaged": 1}
    assert [(sample.key, sample.fields) for sample in plan.samples if sample.action == "update"] == [
        ("k001", [{"field": "name", "ours": "changed", "theirs": "n"}])
    ]
    moved = {"update": 2, "create": 1, "delete": 1}  # the record that moves is written too
    assert done(world, lambda: world.run_full_sync(patience=30)) == moved
    assert writes(plan_full_sync(world)) == {}


def test_a_plan_of_the_group_that_a_record_moves_to_tells_of_it(world: World) -> None:
    mixed(world)
    assert plan_full_sync(world, "B").counts == {"update": 1}
    assert done(world, lambda: world.run_full_sync("B")) == {"update": 1}


def test_a_move_makes_and_deletes_where_the_group_is_part_of_the_address(make_world: Callable[..., World]) -> None:
    world = make_world(erp=FakeThirdParty(assigns_ids=False, group_in_address=True))
    fill_sources(world, 5)
    world.run_full_sync(patience=30)
    world.put_record("k003", group="B", notify=False)
    assert (plan_full_sync(world).counts, plan_full_sync(world, "B").counts) == (
        {"delete": 1, "unchanged": 4, "moved": 1},
        {"create": 1},
    )


def test_what_already_stands_there_is_taken_over_only_where_it_is_searched_for(world: World) -> None:
    fill_sources(world, 3)
    world.erp.by_hand({"code": "k000", "store": "A", "name": "n", "count": 0})
    world.erp.by_hand({"code": "k001", "store": "A", "name": "other", "count": 1})
    plan = plan_full_sync(world)
    assert (plan.counts, plan.worries) == ({"create": 3, "duplicates": 2}, True)
    assert "search_first" in plan.notes[0]
    world.erp.capabilities = Capabilities(True, True, False, False, search_first=True)
    assert plan_full_sync(world).counts == {"create": 1, "update": 1, "unchanged": 1}


def test_deletions_that_would_be_held_are_told_and_not_planned(world: World) -> None:
    fill_sources(world, 50)
    world.run_full_sync(patience=30)
    for number in range(10):
        world.shop.remove(f"k{number:03}")
    plan = plan_full_sync(world)
    assert plan.counts == {"unchanged": 50, "over_cap": 10}
    assert plan.notes == ["deletions are held: 10 of 50 records would be deleted, more than the cap of 5"]
    with pytest.raises(DeletionsHeld):
        world.run_full_sync()
    assert plan_full_sync(world, allow_deletions=10).counts == {"delete": 10, "unchanged": 40}


def test_a_listing_that_is_not_proven_complete_deletes_nothing(world: World) -> None:
    fill_sources(world, 20)
    world.run_full_sync(patience=30)
    world.shop.keyset_listing = False
    listed = dict(world.shop.rows)
    world.shop.rows.pop("k001")

    async def count(group: str) -> int:
        return len(listed)

    world.shop.count = count  # type: ignore[method-assign]
    plan = plan_full_sync(world)
    assert (plan.counts["over_cap"], "not proven complete (19 listed, 20 counted)" in plan.notes[0]) == (1, True)


def test_what_cannot_be_used_or_mapped_is_told(make_world: Callable[..., World]) -> None:
    config = two_part_config().entities["item"]
    world = make_world(entity={"mapping": {**config.mapping, "count": "abs(stock.count)"}})
    fill_sources(world, 3)
    world.put_record("b\x00", notify=False)
    world.stock.put("k001", {"key": "k001", "count": "many", "v": 0})
    plan = plan_full_sync(world)
    assert (plan.counts, plan.worries) == ({"create": 2, "unusable": 1, "unmapped": 1}, True)
    assert any("'k001': mapping.count" in note for note in plan.notes)
    assert any("a text holds NUL" in note for note in plan.notes)


def test_rule_26_what_was_refused_before_is_planned_again(world: World) -> None:
    world.erp.before = lambda verb, key: answer(422) if key == "a" else None
    world.put_record("a")
    world.put_record("b")
    world.run_drain()
    assert plan_full_sync(world).counts == {"unchanged": 1, "create": 1}
    world.erp.before = lambda verb, key: None
    assert done(world, world.run_full_sync) == {"create": 1}


def test_drift_is_left_to_validation_as_a_full_sync_does(world: World) -> None:
    fill_sources(world, 5)
    world.run_full_sync(patience=30)
    world.erp.store[world.read_record_row("k001").external_id]["name"] = "altered"
    assert plan_full_sync(world).counts == {"unchanged": 4, "drift": 1}
    assert done(world, world.run_full_sync) == {}


def test_a_changed_mapping_is_shown_before_it_is_taken_over(world: World) -> None:
    fill_sources(world, 5)
    world.run_full_sync(patience=30)
    entity = two_part_config().entities["item"]
    config = two_part_config(entity={"mapping": {**entity.mapping, "name": "join(' ', [shop.name, key])"}})
    context = build_context(
        world.engine, config, {"item": {"shop": world.shop, "stock": world.stock}}, {"item": world.erp}, only_look=True
    )
    plan = asyncio.run(plan_group(context, context.entities["item"], "A"))
    assert plan.counts == {"update": 5}
    assert world.query("SELECT count(*) AS n FROM sync.records WHERE out_of_sync")[0].n == 0


def test_a_live_change_wins_over_what_was_listed_before_it(world: World) -> None:
    fill_sources(world, 3)
    world.run_full_sync(patience=30)
    pages = world.shop.pages

    def late(group: str, after: str | None = None) -> AsyncIterator[Any]:
        async def stream() -> AsyncIterator[Any]:
            async for page in pages(group, after):
                yield page
            world.put_record("k001", name="live")
            await asyncio.to_thread(world.run_drain)

        return stream()

    world.shop.pages = late  # type: ignore[method-assign]
    assert (plan_full_sync(world).counts, world.mirror_by_key()["k001"]["name"]) == ({"unchanged": 3}, "live")


def happens(world: World, draw: Random) -> None:
    """Something, at the sources or by hand at the third party; often nobody tells."""
    key, told = f"k{draw.randrange(30):02}", draw.random() < 0.4
    match draw.randrange(10):
        case 0 | 1 | 2 | 3 | 4 | 5:
            world.put_record(key, draw.choice("abc"), draw.randrange(3), draw.choice("AB"), notify=told)
        case 6 | 7 if key in world.shop.rows:
            version = world.shop.remove(key)
            if told:
                world.post_event("shop", key, "delete", version)
        case 8:
            world.stock.rows.pop(key, None)
        case 9 if world.erp.store:
            found = draw.choice(sorted(world.erp.store))
            if draw.random() < 0.5:
                world.erp.store[found]["name"] = "altered"
            else:
                world.erp.store.pop(found)


@pytest.mark.slow
@pytest.mark.parametrize("assigns_ids", [True, False])
@pytest.mark.parametrize("seed", [3, 4, 10])
def test_whatever_has_happened_a_full_sync_does_what_was_planned(
    make_world: Callable[..., World], seed: int, assigns_ids: bool
) -> None:
    """A record that moves to another group is written there, whether it is still at the third party or not."""
    world, draw = make_world(erp=FakeThirdParty(assigns_ids=assigns_ids)), Random(seed)
    for _ in range(12):
        for _ in range(draw.randrange(13)):
            happens(world, draw)
        world.advance_clock(20)
        if draw.random() < 0.5:
            world.run_drain()
        for group in "AB":
            plan = plan_full_sync(world, group, allow_deletions=100)
            did = done(world, lambda group=group: world.run_full_sync(group, allow_deletions=100))  # type: ignore[misc]
            more = [did.get(name, 0) - plan.counts.get(name, 0) for name in ("create", "update", "delete")]
            assert more[2] == 0
            assert min(more) >= 0
            assert sum(more) <= plan.counts.get("moved", 0)


# When it cannot say ---------------------------------------------------------------------------------------------------


def test_refuses_where_something_cannot_be_read(world: World) -> None:
    fill_sources(world, 3)
    world.stock.down = True
    with pytest.raises(CannotPlan, match="its sources cannot be read: the source does not answer"):
        plan_full_sync(world)
    world.stock.down = False
    world.erp.before = lambda verb, key: answer(503) if verb == "list" else None
    with pytest.raises(CannotPlan, match="the third party 'erp' cannot be read: answer 503"):
        plan_full_sync(world)
    world.query("UPDATE sync.systems SET open_since = now() WHERE name = 'erp'")
    with pytest.raises(CannotPlan, match="its breaker is open"):
        plan_full_sync(world)


def test_refuses_while_a_full_sync_is_under_way(world: World) -> None:
    world.query(
        "INSERT INTO sync.groups (entity, group_key, lease_token, lease_until) "
        "VALUES ('item', 'A', 1, now() + interval '1 minute')"
    )
    with pytest.raises(GroupBusy):
        plan_full_sync(world)


# From the shell -------------------------------------------------------------------------------------------------------


def test_the_command_shows_counts_and_samples(world: World, command: Command) -> None:
    fill_sources(world, 3)
    fill_sources(world, 2, "B", "b")
    result = command("plan", "item")
    assert result.exit_code == 0
    assert [line.split() for line in result.stdout.splitlines()[1:5]] == [
        ["group", "listed", "create", "update", "delete", "unchanged"],
        ["A", "3", "3", "0", "0", "0"],
        ["B", "2", "2", "0", "0", "0"],
        ["all", "5", "5", "0", "0", "0"],
    ]
    assert result.stderr.splitlines() == ["A: 3 create", "B: 2 create"]
    found = [json.loads(line) for line in command("plan", "item", "--group", "B", "--json").stdout.splitlines()]
    assert [(plan["group"], plan["counts"]) for plan in found] == [("B", {"create": 2})]
    assert not world.query("SELECT FROM sync.groups")


def test_the_command_tells_by_exit_status_what_needs_a_person(world: World, command: Command, tmp_path: Path) -> None:
    fill_sources(world, 2)
    world.put_record("b\x00", notify=False)
    assert command("plan", "item").exit_code == 1
    world.stock.down = True
    result = command("plan", "item", "--out", tmp_path / "plan.json")
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "A: its sources cannot be read" in result.stderr
    world.shop.down = True
    world.shop.groups = lambda: world.shop.read("x")  # type: ignore[method-assign, assignment, return-value]
    assert "'shop' cannot be asked for the business groups" in command("plan", "item").stderr


def test_a_full_sync_does_what_its_plan_says(world: World, command: Command, tmp_path: Path) -> None:
    fill_sources(world, 3)
    fill_sources(world, 2, "B", "b")
    file = tmp_path / "plan.json"
    command("plan", "item", "--out", file)
    result = command("full-sync", "item", "--plan", file, "--group", "B")
    assert (result.exit_code, sorted(world.mirror_by_key())) == (0, ["b000", "b001"])
    command("plan", "item", "--out", file)
    assert command("full-sync", "item", "--plan", file).exit_code == 0
    assert world.mirror_by_key() == world.expected_mirror()


def content(world: World) -> None:
    world.put_record("k001", name="changed", notify=False)


def another(world: World) -> None:
    world.put_record("k009", notify=False)


def there_by_hand(world: World) -> None:
    world.erp.by_hand({"code": "k001", "store": "A"})


def new_group(world: World) -> None:
    world.put_record("c", group="C", notify=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (content, "A: as many records as planned, but others, or with other content"),
        (another, "A: create 3, now 4"),
        (there_by_hand, "A: duplicates 0, now 1"),
        (new_group, "C: is not in the plan"),
    ],
)
def test_a_full_sync_that_would_do_something_else_than_planned_does_nothing(
    world: World, command: Command, tmp_path: Path, change: Callable[[World], None], said: str
) -> None:
    fill_sources(world, 3)
    fill_sources(world, 2, "B", "b")
    file = tmp_path / "plan.json"
    command("plan", "item", "--out", file)
    change(world)
    before = everything(world)
    result = command("full-sync", "item", "--plan", file)
    assert (result.exit_code, result.stdout, everything(world)) == (3, "", before)
    assert said in result.stderr
    assert "B:" not in result.stderr.replace("B: 2 create", "")


def test_the_cap_is_part_of_the_plan(world: World, command: Command, tmp_path: Path) -> None:
    fill_sources(world, 20)
    world.run_full_sync(patience=30)
    for number in range(10):
        world.shop.remove(f"k{number:03}")
    file = tmp_path / "plan.json"
    assert command("plan", "item", "--allow-deletions", 10, "--out", file).exit_code == 0
    assert command("full-sync", "item", "--plan", file, "--allow-deletions", 10).exit_code == 2
    assert command("full-sync", "item", "--plan", file).exit_code == 0
    assert world.mirror_by_key() == world.expected_mirror()


@pytest.mark.parametrize("text", [None, "", "{}", "[1]", "\x00"])
def test_what_is_no_plan_is_said_in_a_line(command: Command, tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "plan.json"
    if text is not None:
        file.write_text(text)
    result = command("full-sync", "item", "--plan", file)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert str(file) in result.stderr


def test_a_plan_of_another_entity_or_group_is_refused(world: World, command: Command, tmp_path: Path) -> None:
    fill_sources(world, 1)
    file = tmp_path / "plan.json"
    command("plan", "item", "--out", file)
    assert "no business group 'Z'" in command("full-sync", "item", "--plan", file, "--group", "Z").stderr
    file.write_text(file.read_text().replace('"entity": "item"', '"entity": "order"', 1))
    assert "is a plan of order" in command("full-sync", "item", "--plan", file).stderr


def test_two_plans_of_the_same_say_the_same(world: World) -> None:
    mixed(world)
    assert plan_full_sync(world) == plan_full_sync(world)
