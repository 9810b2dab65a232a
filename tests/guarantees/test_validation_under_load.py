"""Validation while changes flow, calls get lost, and records are spoiled: all of it found, and no false alarm.

``SYNC_TEST_SEED`` replays the choices of a run.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from random import Random, SystemRandom

import pytest
from live_load import SETTINGS, Experiment, LiveThirdParty
from world import World

SEED = os.environ.get("SYNC_TEST_SEED") or str(SystemRandom().randrange(10**9))


@pytest.mark.parametrize(
    ("groups", "records", "faults"),
    [
        pytest.param(6, 300, 150, marks=pytest.mark.long),
        pytest.param(20, 2000, 1234, marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
def test_every_fault_is_found_by_the_next_audit_and_nothing_else(
    make_world: Callable[..., World], groups: int, records: int, faults: int
) -> None:
    print(f"SYNC_TEST_SEED={SEED}")
    world = make_world(erp=LiveThirdParty(Random(f"{SEED} losses")), **SETTINGS)
    experiment = Experiment(world, SEED, groups=groups, records=records, faults=faults)

    async def all_of_it() -> None:
        figures = await experiment.run()
        print(figures)
        assert figures.false == []
        assert [fault for fault in figures.faults.values() if fault.end in ("missed", "open")] == []
        assert figures.ended()["found"] >= 0.95 * faults
        assert figures.naive > 0, "so little was in flight that no false alarm was possible"
        calls = figures.calls
        assert calls["count"] + calls["read"] + calls["lookup"] <= 2 * figures.suspects
        assert {(result.group, result.verdict, len(result.drift)) for result in await experiment.settle()} == {
            (f"G{number:02}", "in_sync", 0) for number in range(groups)
        }

    asyncio.run(all_of_it())
    assert world.mirror_by_key() == world.expected_mirror()
