"""After a restore: noticed on either side, pushes stop, an operator adopts what is there, and all is in sync again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from databases import create, drop
from fakes import FakeThirdParty, answer, two_part_config
from http_server import Server, failure_of
from pydantic import ValidationError
from sqlalchemy import Engine
from sqlalchemy.engine import make_url
from world import World

from sync_orchestrator.adapters.custom.base import Given, ThirdPartyAdapter
from sync_orchestrator.adapters.custom.guard import AdapterGuard, GuardedThirdParty
from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.rest.third_party import RestThirdParty
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config import ReadCallSettings
from sync_orchestrator.core.db.session import open_engine, run
from sync_orchestrator.core.drain.wakeup import is_due
from sync_orchestrator.core.full_sync.plan import plan_group
from sync_orchestrator.core.operations import adoption
from sync_orchestrator.core.operations.adoption import adopt
from sync_orchestrator.core.operations.adoption_links import Listed, Standing, link_record
from sync_orchestrator.core.operations.adoption_report import Adoption
from sync_orchestrator.core.operations.maintenance import watch_backlog
from sync_orchestrator.core.operations.status import collect_status
from sync_orchestrator.core.systems import queries as systems_queries
from sync_orchestrator.core.systems.installation import Installation, InstallationWatch, find_restore, read_installation
from sync_orchestrator.core.systems.rate_limit import HoldOff
from sync_orchestrator.core.systems.suspension import lift_suspension, note_stray_ids, suspension_of
from sync_orchestrator.errors import CannotPlan

Make = Callable[..., World]


class AccountedThirdParty(FakeThirdParty):
    """A third party that says whose account it is called with; None: it does not answer."""

    who: Any = "acme"
    asked = 0

    async def account(self) -> str | None:
        self.asked += 1
        if isinstance(self.who, Exception):
            raise self.who
        assert self.who is None or isinstance(self.who, str)
        return self.who


def adopted(world: World, **options: Any) -> Adoption:
    world.advance_clock(60)  # what was under way has landed
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
            copy = World(
                open_engine(url),
                world.config,
                world.shop,
                world.stock,
                world.erp,
                clock_offset_seconds=world.clock_offset_seconds,
            )
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
    "ours": lambda: FakeThirdParty(assigns_ids=False),
    "ours, by group": lambda: FakeThirdParty(assigns_ids=False, group_in_address=True),
}


def _searching(erp: FakeThirdParty) -> FakeThirdParty:
    erp.capabilities = replace(erp.capabilities, search_first=True)
    return erp


@pytest.mark.parametrize("kind", KINDS)
def test_rule_28_our_database_restored_to_an_earlier_point(
    kind: str, make_world: Make, restored: Callable[[World], Callable[[], World]]
) -> None:
    """What was made, changed and deleted since is neither made twice nor set back."""
    world = make_world(erp=KINDS[kind]())
    for number in range(6):
        world.put_record(f"k{number}")
    world.run_full_sync()
    world.run_drain()
    stranger = "x" if kind.startswith("ours") else world.erp.by_hand({"code": "x", "store": "A"}, "A")
    back = restored(world)
    world.put_record("new", name="made since")
    world.put_record("k1", name="changed since")
    world.delete_record("k2")
    world.run_drain()
    assert world.mirror_by_key().keys() == world.expected_mirror().keys() | ({"x"} if stranger != "x" else set())
    ids = by_key(world)
    calls = world.erp.calls.copy()

    world = back()
    assert "another database" in (reason(world) or "")
    world.put_record("k3", name="while suspended")
    assert world.run_drain().calls == 0
    assert world.erp.calls == calls
    assert open_alerts(world) == ["adoption_needed"]

    result = adopted(world)
    assert result.lifted
    assert result.stopped is None
    assert result.linked == {"in_sync": 5, "update": 1, "gone": 1}
    assert [each.verdict for each in result.validations] == ["in_sync"]
    assert {key: record for key, record in world.mirror_by_key().items() if key != "x"} == world.expected_mirror()
    assert by_key(world) == ids  # nothing twice, nothing under another id
    assert world.erp.calls["create"] == calls["create"]
    assert open_alerts(world) == ([] if stranger == "x" else ["drift"])  # an unmanaged record is reported, and stays
    assert reason(world) is None


def test_rule_28_a_key_that_moved_since_is_found_in_its_new_group(
    make_world: Make, restored: Callable[[World], Callable[[], World]]
) -> None:
    world = make_world()
    world.put_record("k1")
    world.put_record("k2", group="B")
    world.run_full_sync()
    world.run_full_sync("B")
    world.run_drain()
    back = restored(world)
    world.put_record("k1", group="B")
    world.run_drain()
    ids = by_key(world)
    world = back()
    result = adopted(world)
    assert result.lifted, result
    assert by_key(world) == ids
    assert world.mirror_by_key() == world.expected_mirror()
    assert {each.verdict for each in result.validations} == {"in_sync"}


# The third party, restored --------------------------------------------------------------------------------------------


def third_party_restored(world: World, *, since: Callable[[], object], clerks: int = 0) -> None:
    """The third party goes back to what it is now, after ``since``; then a clerk makes records, which get ids again."""
    store, places, next_id = dict(world.erp.store), dict(world.erp.places), world.erp._next
    since()
    world.run_drain()
    world.erp.store, world.erp.places, world.erp._next = store, places, next_id
    for number in range(clerks):
        world.erp.by_hand({"code": f"CLERK-{number}", "store": "A", "name": "by a clerk", "count": 7}, "A")


def clerks(world: World) -> dict[str, Any]:
    return {key: record for key, record in world.mirror_by_key().items() if key.startswith("CLERK")}


def synced(world: World, number: int = 10) -> World:
    for each in range(number):
        world.put_record(f"k{each}")
    world.run_full_sync()
    world.run_drain()
    return world


@pytest.mark.parametrize("kind", list(KINDS)[:3])
def test_case_r27_the_third_party_restored_and_many_ids_given_again(kind: str, make_world: Make) -> None:
    """Seen by validation: many ids show other keys. Nothing is repaired under them; adopting ends right."""
    world = synced(make_world(erp=KINDS[kind]()))

    def changes() -> None:
        for number in range(4):
            world.put_record(f"late{number}")
        world.put_record("k2", name="renamed")

    third_party_restored(world, since=changes, clerks=4)
    before = clerks(world)
    calls = world.erp.calls.copy()
    result = world.run_validation(full=True)
    assert result.verdict == "not_validated"
    assert "suspended" in (result.reason or "")
    assert "4 ids" in (reason(world) or "")
    assert open_alerts(world) == ["adoption_needed"]
    world.put_record("late1", name="changed while suspended")
    world.delete_record("late2")
    assert world.run_drain().calls == 0
    assert {verb: world.erp.calls[verb] for verb in ("create", "update", "delete")} == {
        verb: calls[verb] for verb in ("create", "update", "delete")
    }

    done = adopted(world)
    assert done.lifted, done
    assert (done.linked["create"], done.linked["update"], done.linked["gone"]) == (3, 1, 1)
    assert (done.unmanaged, done.unmanaged_examples) == (4, [f"CLERK-{number}" for number in range(4)])
    assert clerks(world) == before
    assert {
        key: value for key, value in world.mirror_by_key().items() if not key.startswith("CLERK")
    } == world.expected_mirror()
    assert all(len(ids) == 1 for ids in by_key(world).values())
    assert [each.verdict for each in done.validations] == ["in_sync"]


def test_case_r27_two_ids_given_again_are_single_cases(make_world: Make) -> None:
    """The clerk's records survive, ours are made again, and an alert names them; pushes go on."""
    world = synced(make_world())
    third_party_restored(
        world,
        since=lambda: (world.put_record("p21"), world.put_record("p22"), world.put_record("k2", "renamed")),  # type: ignore[func-returns-value]
        clerks=2,
    )
    before = clerks(world)
    assert world.run_validation(full=True).verdict == "drift"
    assert reason(world) is None
    assert "id_reused" in open_alerts(world)
    world.advance_clock(10)
    world.run_drain()
    assert world.run_validation(full=True).verdict == "in_sync"
    assert clerks(world) == before
    assert {
        key: value for key, value in world.mirror_by_key().items() if not key.startswith("CLERK")
    } == world.expected_mirror()
    world.advance_clock(90_000)
    with world.engine.begin() as connection:
        watch_backlog(connection, world.config.alerts)
    assert "id_reused" not in open_alerts(world)


def test_rule_28_a_record_deleted_here_and_there_again_is_left_to_the_caps(make_world: Make) -> None:
    """A third party that was restored shows what we deleted: it is not deleted without a word."""
    world = synced(make_world(), 20)
    store = {key: dict(record) for key, record in world.erp.store.items()}
    for number in range(8):
        world.delete_record(f"k{number}")
    world.run_drain()
    world.erp.store = store
    result = adopted(world)
    assert result.linked["extra"] == 8
    assert result.lifted
    assert [each.verdict for each in result.validations] == ["drift"]
    assert {drift.kind for drift in result.validations[0].drift} == {"extra"}
    assert len(world.erp.store) == 20  # more than the cap of 5
    assert "delete_cap" in open_alerts(world)


def test_two_records_with_one_key_are_reported_and_ours_keeps_its_id(make_world: Make) -> None:
    world = synced(make_world(), 3)
    ours = world.read_record_row("k1").external_id
    world.erp.store = {"id-0": {**world.erp.store[ours], "name": "other"}, **world.erp.store}
    world.erp.places["id-0"] = "A"
    result = adopted(world)
    assert result.duplicates == {"k1": ["id-0", ours]}
    assert world.read_record_row("k1").external_id == ours
    assert world.erp.store["id-0"]["name"] == "other"


# Another account ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lookup", [True, False])
def test_rule_28_another_account_is_noticed_before_any_push(lookup: bool, make_world: Make) -> None:
    """Another account, empty: after adopting, all is made there once."""
    world = synced(make_world(erp=AccountedThirdParty(can_lookup=lookup)), 20)
    assert world.query("SELECT account FROM sync.systems WHERE name = 'erp'")[0].account == "acme"
    old = world.erp.store
    world.erp.store, world.erp._next, world.erp.who = {}, 0, "other"  # type: ignore[attr-defined]
    world.erp.by_hand({"code": "theirs", "store": "A"}, "A")  # has the id of our first record there
    calls = world.erp.calls.copy()
    world.put_record("k0", name="changed")
    world.run_drain()
    assert world.erp.calls == calls
    assert "called with account other now" in (reason(world) or "")
    assert open_alerts(world) == ["adoption_needed"]
    assert world.run_validation(full=True).verdict == "not_validated"

    stopped = adopted(world)
    assert "20 of 20 acknowledged records are not at the third party" in (stopped.stopped or "")
    assert not stopped.lifted
    assert world.erp.calls["create"] == calls["create"]

    done = adopted(world, recreate_missing=True)
    assert done.lifted
    assert {key: value for key, value in world.mirror_by_key().items() if key != "theirs"} == world.expected_mirror()
    assert all(len(ids) == 1 for ids in by_key(world).values())
    assert world.erp.store["id-1"] == {"code": "theirs", "store": "A"}
    assert len(old) == 20
    assert world.query("SELECT account FROM sync.systems WHERE name = 'erp'")[0].account == "other"
    assert [each.verdict for each in done.validations] == ["in_sync"]


def test_rule_28_unmanaged_records_of_another_account_are_not_deleted_by_validation(make_world: Make) -> None:
    world = synced(
        make_world(erp=AccountedThirdParty(), entity={"validation": {"unmanaged": "delete", "confirm_after": 0}})
    )
    world.erp.store, world.erp.who = {"id-1": {"code": "theirs", "store": "A"}}, "other"  # type: ignore[attr-defined]
    world.context.accounts_asked.clear()  # another process
    assert world.run_validation(full=True).verdict == "not_validated"
    assert world.erp.store == {"id-1": {"code": "theirs", "store": "A"}}


def test_an_account_that_cannot_be_asked_for_suspends_nothing(make_world: Make) -> None:
    world = synced(make_world(erp=AccountedThirdParty()), 2)
    world.erp.who = answer(503)  # type: ignore[attr-defined]
    world.put_record("k1", name="changed")
    world.run_drain()
    assert reason(world) is None
    assert world.mirror_by_key() == world.expected_mirror()


def test_where_nothing_is_due_no_account_is_asked_for(make_world: Make) -> None:
    world = make_world(erp=AccountedThirdParty())
    world.run_drain()
    assert world.erp.asked == 0  # type: ignore[attr-defined]
    world.put_record("a")
    world.run_drain()
    assert world.erp.asked == 1  # type: ignore[attr-defined]


def test_the_account_is_a_text_or_a_whole_number_of_the_response(server: Server) -> None:
    target = two_part_config().entities["item"].third_party
    third_party = RestThirdParty(
        HttpClient(HttpSettings(base_url=server.url)),
        target,
        ("code",),
        ReadCallSettings(path="/me", record="account.id"),
    )

    async def ask() -> None:
        server.respond_with({"account": {"id": 7}})
        assert await third_party.account() == "7"
        server.respond_with({"account": {"id": "acme"}})
        assert await third_party.account() == "acme"
        wrongs: tuple[dict[str, Any], ...] = (
            {"account": {"id": None}},
            {"account": {"id": True}},
            {"account": {"id": {}}},
            {"page": "down"},
        )
        for wrong in wrongs:
            server.respond_with(wrong)
            failure = await failure_of(third_party.account())
            assert not failure.unknown
        await third_party.close()

    asyncio.run(ask())


def test_an_account_is_asked_for_with_nothing_of_a_record_and_not_beside_a_class() -> None:
    with pytest.raises(ValidationError, match="nothing fills in 'key'"):
        two_part_config(system={"account": {"path": "/me/{{ key }}"}})
    with pytest.raises(ValidationError, match="implement its method 'account'"):
        two_part_config(system={"adapter": "fakes:FakeThirdParty", "account": {"path": "/me"}})


class OwnClass(ThirdPartyAdapter):
    """A class that says whose account it is called with."""

    who: Any = "acme"
    create = update = delete = read = pages = None  # type: ignore[assignment]

    async def account(self) -> str | None:
        if isinstance(self.who, Exception):
            raise self.who
        return self.who  # type: ignore[no-any-return]


async def test_a_class_may_say_its_account_and_is_not_believed_everything() -> None:
    made = OwnClass(Given("erp", "item", {}))
    guarded = GuardedThirdParty(made, AdapterGuard(made, 5, None, HoldOff(), ()), made.close)
    assert await guarded.account() == "acme"
    for wrong in (7, "", ValueError("no")):
        made.who = wrong
        await failure_of(guarded.account())
    made.who = None
    assert await guarded.account() is None


# Suspension -----------------------------------------------------------------------------------------------------------


def suspended(world: World) -> World:
    with world.engine.begin() as connection:
        assert note_stray_ids(connection, "erp", [("item", f"k{n}", f"id-{n}", "x") for n in range(3)])
    return world


def test_strays_are_counted_by_record_and_within_an_hour(make_world: Make) -> None:
    world = make_world()

    def note(*keys: str) -> bool:
        with world.engine.begin() as connection:
            return note_stray_ids(connection, "erp", [("item", key, f"id-{key}", "x") for key in keys])

    assert not note("a", "b")
    assert not note("a", "b")
    assert open_alerts(world) == ["id_reused"]
    world.advance_clock(3700)
    assert not note("c")
    assert note("d", "e")
    assert note()
    assert open_alerts(world) == ["adoption_needed"]


def test_a_full_sync_of_a_suspended_third_party_fills_the_archive_and_says_why_nothing_was_pushed(
    make_world: Make,
) -> None:
    world = suspended(make_world())
    world.put_record("a", notify=False)
    report = world.run_full_sync(patience=30)
    assert "show other keys" in (report.suspended or "")
    assert world.read_record_row("a").ready
    assert world.erp.calls == {}


def test_a_suspended_third_party_keeps_no_sensor_busy_and_is_shown(make_world: Make) -> None:
    world = make_world()
    world.put_record("a", notify=False)
    world.run_full_sync(patience=0)
    world.put_record("b")
    world.run_drain()
    suspended(world)
    world.put_record("b", name="changed")
    world.run_drain()
    assert not is_due(world.engine, {"item": "erp"})
    world.advance_clock(7200)
    with world.engine.begin() as connection:
        watch_backlog(connection, world.config.alerts, world.config.entities)
    assert open_alerts(world) == ["adoption_needed"]
    shown = collect_status(world.engine)["systems"]["erp"]
    assert shown["suspended_since"]
    assert "show other keys" in shown["suspended_reason"]
    with world.engine.begin() as connection:
        assert lift_suspension(connection, "erp", reason="a test")
    assert is_due(world.engine, {"item": "erp"})
    assert open_alerts(world) == []


def test_listings_that_fail_keep_the_suspension_and_name_the_group(make_world: Make) -> None:
    world = suspended(synced(make_world(), 3))
    world.put_record("other", group="B")
    world.run_drain()
    world.erp.before = lambda verb, key: answer(503) if (verb, key) == ("list", "B") else None
    result = adopted(world)
    assert not result.lifted
    assert {each.group: each.error is None for each in result.groups} == {"A": True, "B": False}
    assert "answer 503" in str(result.groups[1].error)
    assert reason(world) is not None
    world.erp.before = lambda verb, key: None
    again = adopted(world, groups=["B"])
    assert again.lifted
    assert world.mirror_by_key() == world.expected_mirror()


@pytest.mark.parametrize("point", ["adoption.listed", "adoption.batch_linked", "adoption.before_commit"])
def test_an_adoption_that_is_killed_can_be_done_again(point: str, make_world: Make) -> None:
    world = suspended(synced(make_world(erp=FakeThirdParty(can_lookup=False)), 5))
    world.erp.store.pop("id-3")
    world.advance_clock(60)
    assert world.run_until_crash(lambda: asyncio.run(adopt(world.context, [world.entity])), point, 1)
    assert reason(world) is not None
    assert adopted(world).lifted
    assert world.mirror_by_key() == world.expected_mirror()
    assert len(world.erp.store) == 5


def test_entities_of_one_third_party_are_all_adopted_before_pushes_go_on(make_world: Make) -> None:
    world = suspended(synced(make_world(), 2))
    other = replace(world.entity, name="other")
    world.context.entities["other"] = other
    world.advance_clock(60)
    [first] = asyncio.run(adopt(world.context, [world.entity]))
    assert (first.lifted, first.still_to_adopt) == (False, ["other"])
    assert reason(world) is not None
    [second] = asyncio.run(adopt(world.context, [other]))
    assert second.lifted


def test_two_adoptions_at_once_do_not_conclude_from_each_others_listing(make_world: Make) -> None:
    """The second has deleted the listing that the first was about to link from, or has ended already."""
    world = suspended(synced(make_world(erp=FakeThirdParty(can_lookup=False)), 12))
    world.advance_clock(60)

    async def both() -> list[list[Adoption]]:
        return list(await asyncio.gather(*(adopt(world.context, [world.entity]) for _ in range(2))))

    done = [result for [result] in asyncio.run(both())]
    if not any(result.lifted for result in done):
        done.append(adopted(world))
    assert [result.lifted for result in done].count(True) == 1
    assert all(result.stopped for result in done if not result.lifted)
    world.run_drain()
    assert len(world.erp.store) == 12
    assert world.mirror_by_key() == world.expected_mirror()


@pytest.mark.parametrize("taken", ["ended", "listing"])
def test_a_listing_that_another_adoption_took_away_is_not_linked_from(taken: str, make_world: Make) -> None:
    world = suspended(synced(make_world(erp=FakeThirdParty(can_lookup=False)), 3))
    world.advance_clock(60)
    killed = world.run_until_crash(lambda: asyncio.run(adopt(world.context, [world.entity])), "adoption.listed", 1)
    assert killed

    def another(progress: str) -> None:
        if progress.endswith("are there"):
            with world.engine.begin() as connection:
                if taken == "ended":
                    lift_suspension(connection, "erp")
                else:
                    adoption._delete_listing(connection, "item", "A")

    world.query("UPDATE sync.groups SET adoption_listed_at = NULL RETURNING entity")
    [result] = asyncio.run(adopt(world.context, [world.entity], progress=another))
    assert "another adoption" in (result.stopped or "")
    assert world.query("SELECT count(*) AS n FROM sync.records WHERE external_id IS NOT NULL")[0].n == 3


def test_a_plan_of_a_suspended_third_party_says_why_there_is_none(make_world: Make) -> None:
    world = suspended(make_world())
    with pytest.raises(CannotPlan, match="sync-orchestrator adopt"):
        asyncio.run(plan_group(world.context, world.entity, "A"))


# Pure -----------------------------------------------------------------------------------------------------------------

ONE, TWO = b"1", b"2"
LIVE = Standing("A", 5, deleted=False, pending=False, wanted=ONE)
GONE = Standing("A", 5, deleted=True, pending=False, wanted=None)


@pytest.mark.parametrize(
    ("standing", "there", "outcome", "revision", "look_up"),
    [
        (LIVE, Listed("7", "A", ONE), "in_sync", 5, False),
        (LIVE, Listed("7", "A", TWO), "update", 0, False),
        (LIVE, Listed("7", "B", ONE), "update", 0, False),
        (LIVE, None, "create", 0, True),
        (GONE, None, "gone", 5, False),
        (GONE, Listed("7", "A", ONE), "extra", 5, False),
        (Standing("A", 5, deleted=True, pending=True, wanted=None), Listed("7", "A", ONE), "delete", 0, False),
        (Standing("A", 5, deleted=False, pending=True, wanted=None), Listed("7", "A", ONE), "update", 0, False),
    ],
)
def test_what_a_record_counts_as(
    standing: Standing, there: Listed | None, outcome: str, revision: int, look_up: bool
) -> None:
    found = link_record(standing, there, can_look_up=True)
    assert (found.outcome, found.revision, found.look_up) == (outcome, revision, look_up)
    assert (found.external_id is None) == (outcome in ("create", "gone", "extra"))


HERE = Installation("a", 1, 10)


@pytest.mark.parametrize(
    ("present", "read_sequence", "mark", "what"),
    [
        (HERE, 10, None, None),
        (HERE, 10, 10, None),
        (HERE, 9, 10, "its sequence is at 9, and was at 10"),
        (Installation("b", 1, 10), 10, None, "it is on another server"),
        (Installation("a", 2, 10), 10, None, "its server is on timeline 2, and was on 1"),
        (Installation("a", 1, 11), 10, None, "it is another database of the same server"),
        (Installation("", 0, 10), 10, 9, None),
    ],
)
def test_what_shows_a_restore(present: Installation, read_sequence: int, mark: int | None, what: str | None) -> None:
    found = find_restore(HERE, present, read_sequence, mark)
    assert found == (None if what is None else f"this database was restored or moved: {what}")


# Our database, in place -----------------------------------------------------------------------------------------------


def test_an_ordinary_role_reads_the_installation(engine: Engine) -> None:
    with engine.begin() as connection:
        if not run(connection, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user")[0].rolsuper:
            pytest.skip("the tests' own role is an ordinary one already")
        run(connection, "CREATE ROLE plain_reader")
        run(connection, "SET LOCAL ROLE plain_reader")
        found = read_installation(connection)
        run(connection, "RESET ROLE")
        run(connection, "DROP ROLE plain_reader")
    assert found is not None
    assert found.system_identifier.isdigit()
    assert found.timeline >= 1
    assert found.database_oid > 0


def test_what_a_server_does_not_say_is_left_out(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems_queries, "SELECT_SYSTEM_IDENTIFIER", "SELECT system_identifier FROM no_such_function()")
    with engine.begin() as connection:
        found = read_installation(connection)
        assert found is not None
        assert found.system_identifier == ""
        assert found.timeline >= 1


def test_a_restore_into_the_same_database_is_noticed_by_the_mark(make_world: Make, tmp_path: Path) -> None:
    """As after pg_restore --clean, or a volume that was set back."""
    world = synced(make_world(), 3)
    mark = tmp_path / "home" / "mark.json"
    looks = InstallationWatch(world.engine, ["erp"], mark)
    assert looks.check_if_due() is None
    then = world.query("SELECT last_value FROM sync.read_sequence")[0].last_value
    world.put_record("k1", name="since")
    world.run_drain()
    assert looks.check_if_due() is None  # writes nothing above what it saw before
    world.put_record("k2", name="since")
    assert looks.check_if_due() is None
    assert mark.exists()
    other = InstallationWatch(world.engine, ["erp"], mark)
    assert other.check_if_due() is None
    world.query("SELECT setval('sync.read_sequence', %(then)s)", then=then)
    noticed = InstallationWatch(world.engine, ["erp"], mark).check_if_due()
    assert noticed is not None
    assert "its sequence is at" in noticed
    assert reason(world) == noticed
    with world.engine.begin() as connection:
        lift_suspension(connection, "erp")
    assert InstallationWatch(world.engine, ["erp"], mark).check_if_due() is None  # noticed once
    assert world.query("SELECT last_value FROM sync.read_sequence")[0].last_value > then + 100_000


def test_marks_of_other_databases_do_not_count(engine: Engine, tmp_path: Path) -> None:
    mark = tmp_path / "mark.json"
    mark.write_text('{"1/1/1.0": 1000000, "x": "not a number"}')
    for _ in range(2):
        assert InstallationWatch(engine, [], mark).check_if_due() is None
    mark.write_text("{")
    assert InstallationWatch(engine, [], mark).check_if_due() is None


def test_a_home_that_cannot_be_written_stops_nothing(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    looks = InstallationWatch(engine, [], tmp_path / "file" / "mark.json")
    for _ in range(3):
        run_once(engine)
        assert looks.check_if_due() is None


def run_once(engine: Engine) -> None:
    with engine.begin() as connection:
        run(connection, "SELECT nextval('sync.read_sequence')")


def test_a_planned_failover_is_resumed_without_adopting(make_world: Make) -> None:
    world = synced(make_world(), 2)
    world.query("UPDATE sync.installation SET timeline = timeline + 1 RETURNING timeline")
    world.put_record("k1", name="since")
    assert world.run_drain().calls == 0  # compared when a drain starts
    assert "timeline" in (reason(world) or "")
    with world.engine.begin() as connection:
        lift_suspension(connection, "erp", reason="a planned failover")
    world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()
