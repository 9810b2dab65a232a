"""A process that is stopped around its send (SIGSTOP) goes on long after its lease, and all ends in sync (rule 5)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import stop_worker
from crash_worker import TableThirdParty
from paths import SUPPORT
from sqlalchemy import Engine
from stopped_workers import WRITES, assert_in_sync, drained_until, due_for, held, settled, went_on
from world import World

pytestmark = pytest.mark.slow


@pytest.fixture
def shared(make_world: Callable[..., World], engine: Engine) -> World:
    """A world whose third party other processes see, too; its clock is left as it is, since theirs is."""
    return make_world(erp=TableThirdParty(engine), **stop_worker.SETTINGS)


def pushed(world: World) -> bool:
    row = world.read_record_row("a")
    return bool(row.applied_revision == row.revision)


@contextmanager
def stopped(database_url: str, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A worker that has stopped itself; it is ended in any case."""
    process = subprocess.Popen(
        [sys.executable, stop_worker.__file__, database_url, *arguments],
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
            assert state.si_code == os.CLD_STOPPED, f"it never stopped: {process.communicate()}"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("write", WRITES)
def test_stopped_before_its_call_until_its_lease_is_over_it_does_not_begin_the_write(
    shared: World, database_url: str, write: str
) -> None:
    due_for(shared, write)
    with stopped(database_url, SYNC_STOP_AT="push.before_call") as worker:
        shared.put_record("a", name="newest")
        drained_until(shared, pushed)
        assert went_on(worker) == []
    assert held(shared) == list(shared.expected_mirror().values())
    assert_in_sync(shared)


@pytest.mark.parametrize("reached", [pushed, settled])
@pytest.mark.parametrize(("write", "lands"), [("update", "older"), ("delete", None)])
def test_a_write_that_lands_over_a_newer_one_is_seen_and_fixed(
    shared: World, database_url: str, write: str, lands: str | None, reached: Callable[[World], bool]
) -> None:
    due_for(shared, write)
    with stopped(database_url, stop_worker.AT_SEND) as worker:
        shared.put_record("a", name="newest")
        drained_until(shared, reached)
        assert held(shared) == list(shared.expected_mirror().values())
        assert went_on(worker) == [write]
    assert [item["name"] for item in held(shared)] == ([lands] if lands else [])
    row = shared.read_record_row("a")
    assert (row.out_of_sync, row.outcome_unknown_until is not None) == (True, True)
    assert_in_sync(shared)


def test_a_create_that_lands_after_another_drain_has_created_leaves_no_duplicate(
    shared: World, database_url: str
) -> None:
    due_for(shared, "create")
    with stopped(database_url, stop_worker.AT_SEND) as worker:
        shared.put_record("a", name="newest")
        drained_until(shared, settled)
        assert went_on(worker) == ["create", "delete"]
    assert_in_sync(shared)
