"""Validation by count, then by diff; repair."""

from __future__ import annotations

from typing import Any

from scenes import fill_sources, find_external_id
from world import World

from sync_orchestrator.core.validation.validate import groups_due


def kinds(world: World, **options: Any) -> set[tuple[str, str]]:
    return {(drift.key, drift.kind) for drift in world.run_validation(**options).drift}


def test_in_sync_costs_one_call_after_the_first_audit(world: World) -> None:
    fill_sources(world, 30)
    world.run_full_sync()
    assert world.run_validation().compared == 30
    world.erp.calls.clear()
    assert world.run_validation().verdict == "in_sync"
    assert world.erp.calls == {"count": 1}


def test_names_missing_different_stale_extra_and_unmanaged_and_repairs_them(world: World) -> None:
    fill_sources(world, 60)
    world.run_full_sync()
    world.put_record("k005", name="second", count=5)
    world.put_record("k009", name="to be deleted")
    world.run_drain()
    ghost = dict(world.mirror_by_key()["k009"])
    world.delete_record("k009")
    world.run_drain()
    world.advance_clock(1)
    world.erp.by_hand({"code": "HAND", "store": "A", "name": "by hand"})
    del world.erp.store[find_external_id(world, "k001")]
    world.erp.store[find_external_id(world, "k002")]["name"] = "altered"
    world.erp.store[find_external_id(world, "k005")]["name"] = "n"
    world.erp.by_hand(ghost)
    result = world.run_validation(full=True)
    assert {(drift.key, drift.kind, drift.status) for drift in result.drift} == {
        ("k001", "missing", "repairing"),
        ("k002", "different", "repairing"),
        ("k005", "stale", "repairing"),
        ("k009", "extra", "repairing"),
        ("HAND", "unmanaged", "left"),
    }
    world.run_drain()
    hand = world.mirror_by_key().pop("HAND")
    assert hand["name"] == "by hand"
    again = world.run_validation()
    assert (again.verdict, again.unmanaged) == ("in_sync", 1)
    assert {key: row for key, row in world.mirror_by_key().items() if key != "HAND"} == world.expected_mirror()


def test_leaves_records_with_open_pushes_out_of_judgement(world: World) -> None:
    fill_sources(world, 20)
    world.run_full_sync()
    world.put_record("k001", name="not pushed yet")
    world.put_record("new")
    world.delete_record("k003")
    world.advance_clock(1)
    result = world.run_validation(full=True)
    assert (result.verdict, result.drift) == ("in_sync", [])


def test_says_not_validated_before_the_first_full_sync_and_with_the_breaker_open(world: World) -> None:
    world.put_record("a")
    world.run_drain()
    assert world.run_validation().verdict == "not_validated"
    world.run_full_sync()
    world.query("UPDATE sync.systems SET open_since = now(), probe_at = now() WHERE name = 'erp'")
    assert world.run_validation().verdict == "not_validated"


def test_drift_that_returns_unchanged_is_reported_once_as_persistent(world: World) -> None:
    fill_sources(world, 5)
    world.run_full_sync()

    def rounded() -> None:
        world.erp.store[find_external_id(world, "k001")]["count"] = 1.5

    for _ in range(4):
        rounded()
        world.advance_clock(1)
        result = world.run_validation(full=True)
        world.run_drain()
    assert [drift.status for drift in result.drift] == ["persistent"]
    assert result.repaired == 0
    told = world.query("SELECT cause, n FROM sync.alerts WHERE kind = 'drift' ORDER BY cause")
    assert [(row.cause, row.n) for row in told][1] == ("item A: persistent", 1)


def test_extra_records_above_the_cap_are_not_deleted(world: World) -> None:
    fill_sources(world, 30)
    world.run_full_sync()
    ghosts = [dict(world.mirror_by_key()[f"k{number:03}"]) for number in range(10)]
    for number in range(10):
        world.delete_record(f"k{number:03}")
    world.run_drain()
    for ghost in ghosts:
        world.erp.by_hand(ghost)
    world.advance_clock(1)
    result = world.run_validation(full=True)
    assert {drift.status for drift in result.drift} == {"found"}
    world.run_drain()
    assert len(world.erp.store) == 30
    assert "delete_cap" in [row.kind for row in world.query("SELECT kind FROM sync.alerts")]


def test_repair_never_overwrites_newer_data(world: World) -> None:
    fill_sources(world, 5)
    world.run_full_sync()
    world.erp.store[find_external_id(world, "k001")]["name"] = "altered"
    world.advance_clock(1)
    world.run_validation(full=True)
    world.put_record("k001", name="newer")
    world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()


def test_drift_that_grows_is_told_with_all_that_is_wrong_now(world: World) -> None:
    fill_sources(world, 5)
    world.run_full_sync()
    for key in ("k001", "k002"):
        world.erp.store[find_external_id(world, key)]["name"] = "altered"
        world.advance_clock(1)
        world.run_validation(full=True, repair="off")
    [alert] = world.query("SELECT title, examples FROM sync.alerts WHERE kind = 'drift'")
    assert (alert.title, alert.examples) == (
        "item A: 2 different",
        ["k001 (different: name)", "k002 (different: name)"],
    )


def test_a_round_of_audits_that_was_killed_goes_on_where_it_stopped(world: World) -> None:
    for group in "ABCDEF":
        for number in range(5):
            world.put_record(f"{group}{number}", group=group, notify=False)
        world.run_full_sync(group)
    world.erp.calls.clear()

    def due() -> list[str]:
        with world.engine.begin() as connection:
            return groups_due(connection, "item", 900, 100)

    def audit() -> None:
        for group in due():
            assert world.run_validation(group).verdict == "in_sync"

    assert world.run_until_crash(audit, "validation.before_repair_commit", 3)
    assert due() == ["C", "D", "E", "F"]
    audit()
    assert (due(), world.erp.calls["list"]) == ([], 7)
    compared_fully = world.query("SELECT group_key FROM sync.groups WHERE compared_at IS NOT NULL ORDER BY 1")
    assert [row.group_key for row in compared_fully] == list("ABCDEF")
