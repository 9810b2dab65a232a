"""People change records on both sides, in random histories: both end equal, and no change is lost unseen.

A history is changes by people on either side or both, records made and deleted, notifications late and out of order,
writes that are lost, land late, are refused or find the other side down, reads that lag, deaths at all crash points,
full syncs, validations, and people who decide conflicts.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import Engine
from two_sides import TwoSides, build_document
from two_way_histories import TwoWayHistories

HISTORIES = int(os.environ.get("SYNC_TEST_TWO_WAY_HISTORIES", "60"))
FIRST = int(os.environ.get("SYNC_TEST_FIRST_HISTORY", "0"))
STEPS = int(os.environ.get("SYNC_TEST_TWO_WAY_STEPS", "50"))


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("keys", ["same", "ids"])
def test_both_sides_end_equal_and_no_change_is_lost(engine: Engine, keys: str) -> None:
    class Played(TwoWayHistories):
        deaths: ClassVar[Counter[str]] = Counter()
        played: ClassVar[Counter[str]] = Counter()

    document = build_document(keys=keys)
    Played.make = staticmethod(lambda: TwoSides(engine, document))
    for Played.number in range(FIRST, FIRST + HISTORIES // 2):
        run_state_machine_as_test(
            Played,
            settings=settings(
                max_examples=1,
                stateful_step_count=STEPS,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
