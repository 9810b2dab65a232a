"""What a full sync says while it runs and at its end: figures of the moment, causes, and what to do next."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from fakes import answer
from typer.testing import CliRunner, Result
from world import World

from sync_orchestrator import composition
from sync_orchestrator.cli import app
from sync_orchestrator.core.full_sync import progress as sync_progress
from sync_orchestrator.core.full_sync.full_sync import full_sync
from sync_orchestrator.core.full_sync.progress import SyncProgress, left_over, report_regularly
from sync_orchestrator.core.systems.pauses import set_paused
from sync_orchestrator.errors import CallFailed, Failure

Command = Callable[..., Result]


@pytest.fixture
def command(world: World, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command against the test's world."""
    monkeypatch.setattr(composition, "open_context", lambda **_: world.context)
    return lambda *words: CliRunner().invoke(app, list(words))


async def test_progress_is_shown_while_a_group_is_still_under_way(world: World) -> None:
    for number in range(6):
        world.put_record(f"k{number}", notify=False)
    told: list[str] = []
    seen = asyncio.Event()

    async def gate(verb: str, key: str) -> None:
        if verb == "create" and key == "k5":
            await seen.wait()  # the group cannot end before its progress was told

    world.erp.gate = gate
    world.erp.before = lambda verb, key: answer(422) if key in ("k0", "k1") else None
    progress = SyncProgress(world.context, world.entity)

    def tell(lines: list[str]) -> None:
        told.extend(lines)
        if any("2 failing (2 of them: answer 422)" in line for line in lines):
            seen.set()

    async with report_regularly(progress, tell, every=0.05):
        await asyncio.wait_for(
            full_sync(world.context, world.entity, "A", patience=0.3, progress=progress.of_group("A")), 20
        )
    assert seen.is_set()
    group = next(line for line in told if line.startswith("A: 6 read, 6 changed"))
    assert "waiting" in group
    total = next(line for line in told if line.startswith("item: 0 of 1 groups ended"))
    assert "written a second" in total
    assert "breaker closed" in total
    assert "no limit of calls" in total


def test_the_last_line_names_the_causes_with_their_numbers_and_the_next_command(world: World) -> None:
    for number in range(5):
        world.put_record(f"k{number}", notify=False)
    world.erp.before = lambda verb, key: {"k0": answer(422), "k1": answer(422), "k2": answer(500)}.get(key)
    world.run_full_sync()
    with world.engine.begin() as connection:
        said = left_over(connection, "item", ["A"], 0)
    assert said is not None
    assert "3 failing (2: answer 422; 1: answer 500)" in said
    assert "`sync-orchestrator records list item --dead`" in said


def test_nothing_is_left_where_all_is_in_sync(world: World) -> None:
    world.put_record("a", notify=False)
    world.run_full_sync()
    with world.engine.begin() as connection:
        assert left_over(connection, "item", ["A"], 0) is None


def with_a_listing_that_fails_after_each_page(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, *, retries: int
) -> World:
    """The command line works on this world; a listing that goes on where it stopped comes further each time."""
    world = make_world(entity={"retry": {"retries": retries, "first_wait": 0.01, "jitter": 0}})
    monkeypatch.setattr(composition, "open_context", lambda **_: world.context)
    world.shop.page = 2
    for number in range(5):
        world.put_record(f"k{number}", notify=False)
    pages = world.shop.pages

    async def broken(group: str, after: str | None = None) -> Any:
        async for page in pages(group, after):
            yield page
            raise CallFailed(Failure.TRANSIENT, "answer 500", status=500)

    world.shop.pages = broken  # type: ignore[method-assign]
    return world


def test_a_full_sync_whose_listing_failed_on_a_later_page_never_says_that_all_is_in_sync(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_a_listing_that_fails_after_each_page(make_world, monkeypatch, retries=0)
    result = CliRunner().invoke(app, ["full-sync", "item"])
    assert result.exit_code == 1
    assert "all of it is in" not in result.stdout
    assert result.stdout.startswith("not finished: 1 business groups, such as A: answer 500. Next: ")
    assert "`sync-orchestrator full-sync item`" in result.stdout


def test_the_command_tries_a_full_sync_again_by_the_retry_rule_of_the_entity(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = with_a_listing_that_fails_after_each_page(make_world, monkeypatch, retries=3)
    result = CliRunner().invoke(app, ["full-sync", "item"])
    assert result.exit_code == 0
    assert "A: answer 500; again in 0 s" in result.stderr
    assert world.mirror_by_key() == world.expected_mirror()


def test_full_sync_reports_its_progress_in_lines(
    world: World,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inspect.unwrap(sync_progress.report_regularly), "__defaults__", (0.01,))
    for number in range(5):
        world.put_record(f"k{number}", notify=False)

    async def gate(verb: str, key: str) -> None:
        await asyncio.sleep(0.05)

    world.erp.gate = gate
    result = command("full-sync", "item")
    assert result.exit_code == 0
    assert "item: 0 of 1 groups ended" in result.stderr


def test_a_group_with_a_known_unmanaged_record_says_so_when_it_is_only_counted(world: World) -> None:
    world.put_record("a", notify=False)
    world.run_full_sync()
    world.erp.by_hand({"code": "theirs", "store": "A"}, "A")
    world.run_validation(full=True)
    counted = world.run_validation()
    assert (counted.verdict, counted.compared) == ("in_sync", None)
    assert counted.reason == "2 counted, 1 expected: 1 unmanaged"


def test_the_progress_says_that_pushes_wait_and_what_ends_it(world: World) -> None:
    progress = SyncProgress(world.context, world.entity)
    progress.of_group("A")
    assert not [line for line in progress.read_lines() if "pushes wait" in line]
    set_paused(world.engine, "item", {"item"}, paused=True)
    assert progress.read_lines()[-1] == (
        "pushes wait: item is paused; launch the job `resume`, or run `sync-orchestrator resume item`"
    )
    set_paused(world.engine, "erp", {"item"}, paused=True)
    assert progress.read_lines()[-1].endswith("`sync-orchestrator resume item` and `sync-orchestrator resume erp`")
