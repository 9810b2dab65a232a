"""Claims of a process that is gone, or stands still, are taken over long before their lease is over, and safely."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import holder_worker
import pytest
from crash_worker import TableThirdParty
from paths import SUPPORT
from sqlalchemy import Engine
from stopped_workers import WRITES, archive, assert_in_sync, drained_until, due_for, held, settled, went_on
from world import World

from sync_orchestrator.core.db.fragments import HOLDER_GONE_SECONDS, HOLDER_VALID_SECONDS
from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.push.claims import claim_due_records
from sync_orchestrator.core.systems.claim_holders import Deadline, Hold, Holder, is_over

pytestmark = pytest.mark.slow

GONE = HOLDER_GONE_SECONDS + 1
LANDED = 60.0  # no call of a process that is gone can take effect any more


@pytest.fixture
def shared(make_world: Callable[..., World], engine: Engine) -> World:
    """A world whose third party other processes see, too."""
    return make_world(erp=TableThirdParty(engine), **holder_worker.SETTINGS)


@contextmanager
def worker(database_url: str, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A worker that has sent itself a signal; it is ended in any case."""
    process = subprocess.Popen(
        [sys.executable, holder_worker.__file__, database_url, *arguments],
        env={**os.environ, **environment},
        text=True,
        cwd=SUPPORT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            assert state is not None
            assert state.si_code in (os.CLD_STOPPED, os.CLD_KILLED), f"it ended: {process.communicate()}"
            yield process
        finally:
            process.kill()


def taken_over(world: World) -> bool:
    """Another process has claimed the record whose call has an unknown outcome."""
    return world.read_record_row("a").outcome_unknown_until is not None


def lease_left(world: World) -> float:
    return float(
        world.query(
            "SELECT EXTRACT(epoch FROM max(lease_until) - sync.clock()) AS left FROM sync.records "
            "WHERE lease_until IS NOT NULL"
        )[0].left
        or 0
    )


@pytest.mark.parametrize("write", WRITES)
def test_what_a_killed_process_was_pushing_is_taken_over_soon(shared: World, database_url: str, write: str) -> None:
    due_for(shared, write)
    with worker(database_url, "push", "SIGKILL"):
        shared.advance_clock(GONE)
        assert lease_left(shared) > 20
        drained_until(shared, taken_over)
    shared.advance_clock(LANDED)
    assert_in_sync(shared)


def test_while_its_holder_is_heard_of_nothing_is_taken_over(shared: World) -> None:
    shared.put_record("a")
    archive(shared)
    with shared.context.holder.keep_heartbeat():
        claims = _claimed(shared)
        assert claims
        shared.advance_clock(HOLDER_VALID_SECONDS - 1)
        shared.context.holder.renew_heartbeat()
        shared.advance_clock(HOLDER_VALID_SECONDS - 1)
        assert not _claimed(shared)
        assert not is_over(claims[0].deadline)


def test_the_intent_of_a_call_that_may_be_under_way_counts_from_when_it_was_given_up(shared: World) -> None:
    shared.put_record("a")
    archive(shared)
    with shared.context.holder.keep_heartbeat():
        _claimed(shared)
        shared.advance_clock(GONE)
        (second,) = _claimed(shared)
        assert second.outcome_unknown_for is not None
        given_up = HOLDER_VALID_SECONDS + 5 - GONE  # the last call began that late, and has its timeout
        assert 5 + max(0.0, given_up) - 1 < second.outcome_unknown_for <= 5 + HOLDER_VALID_SECONDS + 5


@pytest.mark.parametrize("write", WRITES)
def test_a_stopped_process_whose_records_were_taken_over_begins_no_write(
    shared: World, database_url: str, write: str
) -> None:
    due_for(shared, write)
    with worker(database_url, "push", SYNC_STOP_AT="push.before_call") as process:
        shared.put_record("a", name="newest")
        drained_until(shared, taken_over)  # as long as it takes to be sure that the process is gone
        assert lease_left(shared) > 20 or shared.read_record_row("a").lease_until is None
        shared.advance_clock(LANDED)
        drained_until(shared, settled)
        assert went_on(process) == []
    assert held(shared) == list(shared.expected_mirror().values())
    shared.advance_clock(LANDED)
    assert_in_sync(shared)


def test_what_a_killed_full_sync_was_pushing_is_taken_over_by_the_next_one(shared: World, database_url: str) -> None:
    holder_worker.fill(shared.shop, shared.stock)
    with worker(database_url, "full_sync", "SIGKILL"):
        shared.advance_clock(GONE)
        assert lease_left(shared) > 20
        shared.run_full_sync()
    shared.advance_clock(LANDED)
    shared.run_full_sync()
    assert_third_party_is_true(shared)


def test_events_that_a_killed_process_was_reading_are_taken_over_soon(shared: World, database_url: str) -> None:
    holder_worker.fill(shared.shop, shared.stock)
    shared.post_event("shop", "a", "create", 10)
    with worker(database_url, "read", "SIGKILL"):
        assert [row.state for row in shared.query("SELECT state FROM sync.events")] == ["leased"]
        shared.advance_clock(GONE)
        drained_until(shared, archived)


def test_events_that_a_stopped_process_was_reading_are_settled_once(shared: World, database_url: str) -> None:
    holder_worker.fill(shared.shop, shared.stock)
    shared.post_event("shop", "a", "create", 10)
    with worker(database_url, "read", "SIGSTOP") as process:
        shared.advance_clock(GONE)
        drained_until(shared, archived)
        went_on(process)
    assert archived(shared)
    assert shared.read_conservation().balanced
    shared.post_event("stock", "a", "create", 10, shared.stock.rows["a"].data)
    shared.advance_clock(LANDED)
    drained_until(shared, lambda world: world.count_events_by_state() == {"done": 2})
    assert [row["code"] for row in held(shared)] == ["a"]


def archived(world: World) -> bool:
    """The one event is in the archive; it may be pushed and finished as soon as that."""
    return bool(
        world.query(
            "SELECT FROM sync.events WHERE revision IS NOT NULL UNION ALL "
            "SELECT FROM sync.event_history WHERE revision IS NOT NULL"
        )
    )


def assert_third_party_is_true(world: World) -> None:
    def by_code(items: Any) -> list[Any]:
        return sorted(items, key=lambda item: str(item["code"]))

    assert by_code(held(world)) == by_code(world.expected_mirror().values())


def test_a_holder_that_was_not_heard_of_goes_on_under_another_id(world: World) -> None:
    holder = Holder(world.engine, 60)
    with holder.keep_heartbeat():
        first = holder.hold
        assert first is not None
        holder.renew_heartbeat()
        assert holder.hold is first
        world.advance_clock(HOLDER_VALID_SECONDS + 1)
        holder.renew_heartbeat()
        assert holder.hold is not None
        assert holder.hold.id > first.id
        assert world.query("SELECT count(*) FROM sync.holders")[0][0] == 2, "what the first one claimed is free"


def test_a_holder_that_ends_leaves_nothing_and_one_that_fails_lapses(world: World) -> None:
    holder = Holder(world.engine, 60)
    with holder.keep_heartbeat(), holder.keep_heartbeat():
        assert world.query("SELECT count(*) FROM sync.holders")[0][0] == 1
    assert holder.hold is None
    assert world.query("SELECT count(*) FROM sync.holders")[0][0] == 0
    with pytest.raises(RuntimeError), holder.keep_heartbeat():
        raise RuntimeError
    assert world.query("SELECT count(*) FROM sync.holders")[0][0] == 1
    world.advance_clock(1000)
    with holder.keep_heartbeat():
        assert world.query("SELECT count(*) FROM sync.holders")[0][0] == 1, "it is forgotten"


def test_a_deadline_is_over_with_its_time_or_with_its_hold() -> None:
    now = time.monotonic()
    assert not is_over(None)
    assert not is_over(now + 60)
    assert is_over(now - 1)
    assert not is_over(Deadline(now + 60, Hold(1, now + 60)))
    assert is_over(Deadline(now + 60, Hold(1, now - 1)))
    assert is_over(Deadline(now - 1, Hold(1, now + 60)))
    assert min(Deadline(now + 60), Deadline(now + 30)) == now + 30


def test_claims_without_a_heartbeat_end_with_their_lease(world: World) -> None:
    world.put_record("a")
    archive(world)
    assert in_transaction(world.engine, lambda c: claim_due_records(c, ["item"], most=1, lease=20, in_flight_window=5))
    world.advance_clock(GONE)
    assert not in_transaction(
        world.engine, lambda c: claim_due_records(c, ["item"], most=1, lease=20, in_flight_window=5)
    )
    world.advance_clock(20)
    assert in_transaction(world.engine, lambda c: claim_due_records(c, ["item"], most=1, lease=20, in_flight_window=5))


def _claimed(world: World) -> list[Any]:
    return in_transaction(
        world.engine,
        lambda connection: claim_due_records(
            connection, ["item"], most=1, lease=60, in_flight_window=5, hold=world.context.holder.hold, timeout=5
        ),
    )
