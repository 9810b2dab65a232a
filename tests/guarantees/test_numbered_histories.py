"""Versions that are a stream's numbers, in random histories: a part never steps back, and ends as its source does."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from numbered_histories import NumberedHistories, modelled, replay
from sqlalchemy import Engine

from sync_orchestrator.adapters.sql.log_positions import format_lsn
from sync_orchestrator.capture import recording
from sync_orchestrator.capture import stream as stream_module
from sync_orchestrator.capture.changes import CapturedChange
from sync_orchestrator.capture.pgoutput import TransactionBegin
from sync_orchestrator.capture.postgres_log import PgoutputReader
from sync_orchestrator.core import version_guard
from sync_orchestrator.core.capture import holds

HISTORIES = int(os.environ.get("SYNC_TEST_NUMBERED_HISTORIES", "25"))
FIRST = int(os.environ.get("SYNC_TEST_FIRST_HISTORY", "0"))
STEPS = 25
MOST_HISTORIES = 60
"""So many histories find each planted bug."""


@pytest.mark.timeout(1800)
def test_numbered_versions_hold_in_random_histories(engine: Engine) -> None:
    class Played(NumberedHistories):
        pass

    Played.engine = engine
    with modelled(Played.worlds):
        for Played.number in range(FIRST, FIRST + HISTORIES):
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
    assert Played.deaths >= HISTORIES // 10, "hardly anything died"
    assert Played.merged >= HISTORIES, "hardly anything was archived"


# Planted bugs -------------------------------------------------------------------------------------------------------


def give_the_time_of_the_commit_as_version(patch: pytest.MonkeyPatch) -> None:
    real, add, times = recording._build_event, PgoutputReader.add, dict[str, int]()

    def note_time(self: PgoutputReader, message: Any) -> None:
        if isinstance(message, TransactionBegin):
            times[format_lsn(message.lsn)] = message.committed_at
        add(self, message)

    def build(stream_id: str, piece: Any, change: CapturedChange, version: int) -> Any:
        return real(stream_id, piece, change, times[piece.place.rpartition("/")[0]])

    patch.setattr(PgoutputReader, "add", note_time)
    patch.setattr(recording, "_build_event", build)


def merge_reads_at_once(patch: pytest.MonkeyPatch) -> None:
    async def pass_at_once(self: Any, hold: Any, most_seconds: float | None = None) -> None:
        return None

    patch.setattr(holds.StreamHolds, "wait", pass_at_once)


def acknowledge_first(patch: pytest.MonkeyPatch) -> None:
    real = stream_module.OpenStream._begin_recording

    def begin_recording(self: Any, recorder: Any, batch: Any) -> None:
        if batch.position:
            self._log.acknowledge(batch.position)
        real(self, recorder, batch)

    patch.setattr(stream_module.OpenStream, "_begin_recording", begin_recording)


def record_what_reads_do_not_see(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stream_module.OpenStream, "_wait_until_visible", lambda self, xids: None)


def take_pages_for_the_newest(patch: pytest.MonkeyPatch) -> None:
    real = version_guard.compare_held_read

    def compare(present: Any, offered: Any, bounds: version_guard.ReadBounds) -> Any:
        return real(present, offered, version_guard.ReadBounds(bounds.present, bounds.present))

    patch.setattr(version_guard, "compare_held_read", compare)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "plant",
    [
        give_the_time_of_the_commit_as_version,
        merge_reads_at_once,
        acknowledge_first,
        record_what_reads_do_not_see,
        take_pages_for_the_newest,
    ],
)
def test_random_histories_catch(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    plant(monkeypatch)
    with modelled(NumberedHistories.worlds):
        for number in range(MOST_HISTORIES):
            try:
                replay(engine, number, STEPS)
            except AssertionError:
                return
    pytest.fail("no history noticed it")
