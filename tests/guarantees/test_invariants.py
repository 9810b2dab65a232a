"""Random histories over the real database: the invariants hold after every step, and at the end all is in sync.

A history is changes, deliveries (late, twice, out of order), drains, time passing, full syncs, validations, re-drives,
deaths at the crash points of all of these, and what the field reports of the systems on both sides
(``field_systems.py``): sources that lag, lie, go back or spell keys in other ways, a third party that is out of order,
restored, or gives ids to others. Real processes are killed in ``test_crashes.py``; planted bugs are in
``test_planted_bugs.py``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import ClassVar

import pytest
from field_systems import FieldWorld, connected, make_field_world
from histories import (
    WEIGHTS,
    Histories,
)
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    run_state_machine_as_test,
)
from sqlalchemy import Engine

HISTORIES = int(os.environ.get("SYNC_TEST_HISTORIES", "20"))
FIRST = int(os.environ.get("SYNC_TEST_FIRST_HISTORY", "0"))
STEPS = int(os.environ.get("SYNC_TEST_STEPS", "60"))


def play(make_world: Callable[[], FieldWorld], histories: int, steps: int) -> None:
    class Played(Histories):
        deaths: ClassVar[Counter[str]] = Counter()
        played: ClassVar[Counter[str]] = Counter()

    with connected(make_world) as make:
        Played.make_world = staticmethod(make)
        for Played.number in range(FIRST, FIRST + histories):
            run_state_machine_as_test(
                Played,
                settings=settings(
                    max_examples=1,
                    stateful_step_count=steps,
                    deadline=None,
                    derandomize=True,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
    assert Played.events > histories * steps / 8, f"hardly anything happened: {Played.events} events"
    assert len(Played.deaths) >= min(histories // 10, 12), f"hardly anything died: {Played.deaths}"
    assert histories < 50 or set(Played.played) == set(WEIGHTS), set(WEIGHTS) - set(Played.played)


@pytest.mark.timeout(7200)
def test_invariants_hold_in_random_histories(engine: Engine) -> None:
    play(make_field_world(engine), HISTORIES, STEPS)
