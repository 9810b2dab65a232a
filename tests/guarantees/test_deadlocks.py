"""Transactions that meet over the same rows: a deadlock is retried, and set-wise writes give no cause for one (rule 4).

Each scene is brought about by waiting for locks, never for time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from queue import SimpleQueue

import pytest
from fakes import lost_answer
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from world import World

from sync_orchestrator.core.archive.merge import merge
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.drain.event_batch import EventBatch
from sync_orchestrator.core.full_sync.full_sync import fill_archive
from sync_orchestrator.core.full_sync.push_group import complete_full_sync as complete_full_sync
from sync_orchestrator.core.groups.lease import lease_group
from sync_orchestrator.core.ledger.event_claims import select_due_events
from sync_orchestrator.core.push import claim_queries
from sync_orchestrator.core.push.calls import CallsMade
from sync_orchestrator.core.push.claims import PushClaim, claim_due_records
from sync_orchestrator.core.push.decision import PushStep
from sync_orchestrator.core.push.result import Pushed
from sync_orchestrator.core.push.settlement import Settled, settle_pushes
from sync_orchestrator.core.values.mapping import compute_digest
from sync_orchestrator.core.version_guard import Change, Stamp, Verdict
from sync_orchestrator.errors import CallFailed

PID = "SELECT pg_backend_pid()"
BLOCKED = "SELECT cardinality(pg_blocking_pids(%(pid)s)) > 0"
COUNT_UP = "UPDATE counters SET n = n + 1 WHERE key = %(key)s"

KEYS = ["a", "m", "z"]

Work = Callable[[Connection], object]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def until_blocked(engine: Engine, pid: int) -> None:
    """Returns once that backend waits for a lock of another."""
    end = time.monotonic() + 30
    with engine.connect() as connection:
        while not run(connection, BLOCKED, pid=pid)[0][0]:
            assert time.monotonic() < end, "it never came to wait for the other"


def pid_of(connection: Connection) -> int:
    return int(run(connection, PID)[0][0])


def changes(keys: list[str], version: int) -> list[Change]:
    def of(key: str) -> Change:
        data = {"key": key, "name": "n", "store": "A"}
        return Change(key, "shop", "create", Stamp(0, version, 0, compute_digest(data)), data, "A")

    return [of(key) for key in keys]


def meet(engine: Engine, threads: ThreadPoolExecutor, blocker: Work, *works: Work) -> None:
    """Runs each work, in a transaction that is not retried, into a lock that ``blocker`` holds until all of them wait.

    Raises what a work raised.
    """

    def alone(work: Work, pids: SimpleQueue[int]) -> None:
        with engine.begin() as connection:
            run(connection, "SET LOCAL deadlock_timeout = '10ms'")
            pids.put(pid_of(connection))
            work(connection)

    running: list[Future[None]] = []
    with engine.begin() as connection:
        blocker(connection)
        for work in works:
            pids: SimpleQueue[int] = SimpleQueue()
            running.append(threads.submit(alone, work, pids))
            until_blocked(engine, pids.get(timeout=30))
    for future in running:
        future.result(30)


def lock_the_middle(connection: Connection) -> None:
    run(connection, "SELECT FROM sync.records WHERE key = 'm' FOR UPDATE")


def make_the_middle(connection: Connection) -> None:
    run(connection, "INSERT INTO sync.records (entity, key) VALUES ('item', 'm')")


def claimed(world: World) -> list[PushClaim]:
    """Leases of all keys, whose records lie in the table the other way round."""
    for number, key in enumerate(reversed(KEYS)):
        in_transaction(world.engine, partial(merge, entity="item", changes=changes([key], 1), rules=world.entity.rules))
        world.query(
            "UPDATE sync.records SET ready = true, due_at = sync.clock() - make_interval(secs => %(ago)s) "
            "WHERE key = %(key)s",
            key=key,
            ago=10 - number,
        )
    claims = in_transaction(
        world.engine, lambda c: claim_due_records(c, ["item"], most=9, lease=20, in_flight_window=5)
    )
    assert sorted(each.key for each in claims) == KEYS
    return claims


def merging(world: World, keys: list[str], version: int) -> Work:
    return lambda connection: merge(connection, "item", changes(keys, version), world.entity.rules)


def settling(world: World, ends: list[Pushed]) -> Work:
    system = world.config.third_parties["erp"]
    return lambda connection: settle_pushes(connection, "erp", system, world.context.entities, ends)


def test_what_lost_to_a_deadlock_is_done_again_from_its_start(engine: Engine, threads: ThreadPoolExecutor) -> None:
    with engine.begin() as connection:
        run(connection, "CREATE TABLE counters (key text PRIMARY KEY, n int NOT NULL)")
        run(connection, "INSERT INTO counters VALUES ('a', 0), ('b', 0)")
    attempts: list[int] = []
    others: list[Future[None]] = []

    def other_way_round(pids: SimpleQueue[int]) -> None:
        with engine.begin() as connection:
            run(connection, "SET LOCAL deadlock_timeout = '1h'")  # so that it is never the one to give in
            run(connection, COUNT_UP, key="b")
            pids.put(pid_of(connection))
            run(connection, COUNT_UP, key="a")

    def work(connection: Connection) -> str:
        attempts.append(pid_of(connection))
        run(connection, "SET LOCAL deadlock_timeout = '1ms'")
        run(connection, COUNT_UP, key="a")
        if not others:
            pids: SimpleQueue[int] = SimpleQueue()
            others.append(threads.submit(other_way_round, pids))
            until_blocked(engine, pids.get(timeout=30))
        run(connection, COUNT_UP, key="b")
        return "done"

    assert in_transaction(engine, work) == "done"
    others[0].result(30)
    assert len(attempts) == 2
    with engine.begin() as connection:
        assert dict(map(tuple, run(connection, "SELECT key, n FROM counters"))) == {"a": 2, "b": 2}


def test_what_failed_otherwise_is_not_done_again(engine: Engine) -> None:
    attempts: list[int] = []

    def work(connection: Connection) -> None:
        attempts.append(pid_of(connection))
        run(connection, "SELECT 1 / 0")

    with pytest.raises(DBAPIError, match="division by zero"):
        in_transaction(engine, work)
    assert len(attempts) == 1


@pytest.mark.parametrize("known", [True, False])
def test_two_drains_that_merge_the_same_keys_the_other_way_round_wait_for_each_other(
    world: World, threads: ThreadPoolExecutor, known: bool
) -> None:
    if known:
        in_transaction(world.engine, merging(world, KEYS, 1))
    meet(
        world.engine,
        threads,
        lock_the_middle if known else make_the_middle,
        merging(world, KEYS, 2),
        merging(world, KEYS[::-1], 3),
    )
    stamps = world.query("SELECT key, version FROM sync.parts ORDER BY key")
    assert [tuple(row) for row in stamps] == [(key, 3) for key in KEYS]


@pytest.mark.parametrize("first", ["settlement", "merge"])
@pytest.mark.parametrize("failure", [None, lost_answer()], ids=["acknowledged", "failed"])
def test_a_settlement_and_a_merge_of_the_same_keys_wait_for_each_other(
    world: World, threads: ThreadPoolExecutor, failure: CallFailed | None, first: str
) -> None:
    ends = [
        Pushed(each, PushStep.UPDATE, CallsMade(called=True), digest=b"d", external_id=each.key, failure=failure)
        for each in claimed(world)
    ]
    works = [settling(world, ends), merging(world, KEYS, 2)]
    meet(world.engine, threads, lock_the_middle, *works[:: -1 if first == "merge" else 1])
    rows = world.query("SELECT key, revision, applied_revision, lease_token FROM sync.records ORDER BY key")
    applied = 0 if failure else 1
    assert [tuple(row) for row in rows] == [(key, 2, applied, None) for key in KEYS]


def test_two_settlements_of_the_same_keys_wait_for_each_other(world: World, threads: ThreadPoolExecutor) -> None:
    """The later one finds its leases gone, whichever it is."""
    ends = [
        Pushed(each, PushStep.UPDATE, CallsMade(called=True), digest=b"d", external_id=each.key)
        for each in claimed(world)
    ]
    meet(world.engine, threads, lock_the_middle, settling(world, ends), settling(world, ends[::-1]))
    rows = world.query("SELECT key, applied_revision, lease_token FROM sync.records ORDER BY key")
    assert [tuple(row) for row in rows] == [(key, 1, None) for key in KEYS]


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_two_merges_that_make_the_same_records_leave_the_newer_of_each(
    world: World, threads: ThreadPoolExecutor, first: int, second: int
) -> None:
    """The second takes them for absent, waits for the first, and judges again by what that has made."""
    meet(world.engine, threads, merging(world, ["a", "m"], first), merging(world, KEYS, second))
    rows = world.query(
        "SELECT r.key, r.revision, p.version FROM sync.records r JOIN sync.parts p USING (entity, key) ORDER BY r.key"
    )
    of_both = [("a", 2, 2), ("m", 2, 2)] if first < second else [("a", 1, 2), ("m", 1, 2)]
    assert [tuple(row) for row in rows] == [*of_both, ("z", 1, second)]


def test_an_update_that_misses_its_record_holds_up_whoever_makes_it(world: World, threads: ThreadPoolExecutor) -> None:
    """So the one that makes it learns of the event that waits for it."""

    def missed(connection: Connection) -> None:
        change = replace(changes(["m"], 5)[0], action="update")
        [end] = merge(connection, "item", [change], world.entity.rules)
        assert end.verdict is Verdict.MISSING

    meet(world.engine, threads, missed, merging(world, ["m"], 1))
    assert [tuple(row) for row in world.query("SELECT key, revision FROM sync.records")] == [("m", 1)]


@pytest.mark.parametrize("first", ["claims given back", "merge"])
def test_claims_that_are_given_back_and_a_merge_of_the_same_keys_wait_for_each_other(
    world: World, threads: ThreadPoolExecutor, first: str
) -> None:
    claims = claimed(world)
    columns = {
        "entity": [each.entity for each in claims],
        "key": [each.key for each in claims],
        "token": [each.token for each in claims],
    }

    def give_back(connection: Connection) -> None:
        run(connection, claim_queries.RELEASE_UNSENT_CLAIMS, **columns)

    works = [give_back, merging(world, KEYS, 2)]
    meet(world.engine, threads, lock_the_middle, *works[:: -1 if first == "merge" else 1])
    rows = world.query("SELECT key, revision, lease_token FROM sync.records ORDER BY key")
    assert [tuple(row) for row in rows] == [(key, 2, None) for key in KEYS]


# A group that is completed, and what is judged by that ---------------------------------------------------------------


def filled(world: World, *groups: str) -> None:
    """Groups whose archive is filled and which are not completed yet."""
    for group in groups:
        world.put_record(f"of {group}", group=group, notify=False)
        asyncio.run(fill_archive(world.context, world.entity, group))


def complete(world: World, threads: ThreadPoolExecutor, group: str, meanwhile: str | Work) -> None:
    """Completes a group while another is being completed, or while something else is done."""

    async def work() -> None:
        async with AsyncExitStack() as leases:
            own = await leases.enter_async_context(lease_group(world.context, "item", group))
            if isinstance(meanwhile, str):
                other = await leases.enter_async_context(lease_group(world.context, "item", meanwhile))
                blocker: Work = partial(complete_full_sync, lease=other)
            else:
                blocker = meanwhile
            await asyncio.to_thread(meet, world.engine, threads, blocker, partial(complete_full_sync, lease=own))

    asyncio.run(work())


def test_the_last_two_groups_that_are_completed_at_once_leave_no_event_behind(
    world: World, threads: ThreadPoolExecutor
) -> None:
    """Each would take the other for incomplete, and an event of unknown group would wait for ever."""
    filled(world, "A", "B")
    world.post_event("stock", "unknown", "update", 1, {"key": "unknown"})
    world.run_drain()
    assert world.count_events_by_state() == {"waiting": 1}
    complete(world, threads, "B", meanwhile="A")
    assert world.count_events_by_state() == {"pending": 1}


def test_an_event_that_is_judged_while_its_last_group_is_completed_is_not_left_behind(
    world: World, threads: ThreadPoolExecutor
) -> None:
    filled(world, "A")
    world.post_event("stock", "unknown", "update", 1, {"key": "unknown"})

    def judged(connection: Connection) -> None:
        events = select_due_events(connection, ["item"], 9)
        EventBatch(world.context, world.entity, events, token=1).merge_received(connection, Settled())

    complete(world, threads, "A", meanwhile=judged)
    assert world.count_events_by_state() == {"pending": 1}
