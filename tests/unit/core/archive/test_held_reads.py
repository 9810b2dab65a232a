"""What becomes of a read of a part whose versions are the numbers of its stream. Pure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sync_orchestrator.adapters.sql.log_end import leave_out_header
from sync_orchestrator.core.version_guard import (
    TOMBSTONE_HASH,
    Change,
    ReadBounds,
    RecordState,
    Rules,
    Stamp,
    StateComparison,
    Verdict,
    compare_held_read,
    decide,
)

OLD, NEW = b"o" * 16, b"n" * 16
RULES = Rules("shop", frozenset({"shop"}), "wait", frozenset({"shop"}), numbered=frozenset({"shop"}))
READ = Stamp(0, 0, 50, NEW)
BOUNDS = ReadBounds(noted=10, present=14)


@pytest.mark.parametrize(
    ("present", "bounds", "expected"),
    [
        (None, BOUNDS, StateComparison.NEWER),
        (None, replace(BOUNDS, recorded_whole=True), StateComparison.OLDER),
        (Stamp(0, 9, 0, OLD, 20), BOUNDS, StateComparison.NEWER),
        (Stamp(0, 9, 0, OLD, 20), replace(BOUNDS, recorded_thin=True), StateComparison.NEWER),
        (Stamp(0, 9, 0, OLD, 20), replace(BOUNDS, recorded_whole=True), StateComparison.OLDER),
        (Stamp(0, 11, 0, OLD, 60), BOUNDS, StateComparison.OLDER),
        (Stamp(0, 9, 0, NEW, 20), BOUNDS, StateComparison.SAME),
        (Stamp(0, 13, 40, OLD), BOUNDS, StateComparison.NEWER),
        (Stamp(0, 9, 51, OLD), BOUNDS, StateComparison.OLDER),
        (Stamp(0, 9, 0, TOMBSTONE_HASH, 20), BOUNDS, StateComparison.NEWER),
        (Stamp(1, 9, 0, OLD, 20), BOUNDS, StateComparison.OLDER),
        (Stamp(-1, 9, 0, NEW, 20), BOUNDS, StateComparison.NEWER),
    ],
)
def test_a_read_holds_unless_something_newer_is_known(
    present: Stamp | None, bounds: ReadBounds, expected: StateComparison
) -> None:
    assert compare_held_read(present, READ, bounds) is expected


@pytest.mark.parametrize(("thin", "version"), [(False, 14), (True, 10)])
def test_a_read_gets_the_streams_number_and_leaves_room_for_what_is_read_again(thin: bool, version: int) -> None:
    record = RecordState(1, "A", False, True, {"shop": Stamp(0, 9, 0, OLD, 20)})
    change = Change("a", "shop", "update", READ, {"n": 1}, "A", bounds=replace(BOUNDS, recorded_thin=thin))
    assert decide(record, change, RULES) is Verdict.ACCEPTED
    assert record.parts["shop"] == Stamp(0, version, 50, NEW)


def test_an_event_that_a_read_has_seen_settles_nothing() -> None:
    record = RecordState(1, "A", False, True, {"shop": Stamp(0, 14, 50, NEW)})
    for number, seq in ((12, 30), (14, 31)):
        event = Change("a", "shop", "create", Stamp(0, number, 0, OLD, seq), {"n": 0}, "A", seq)
        assert decide(record, event, RULES) is Verdict.SUPERSEDED
    later = Change("a", "shop", "create", Stamp(0, 15, 0, OLD, 60), {"n": 0}, "A", 60)
    assert decide(record, later, RULES) is Verdict.ACCEPTED


@pytest.mark.parametrize(
    ("position", "end"),
    [
        (0x2000 + 24, 0x2000),
        (0x2000 + 40, 0x2000 + 40),  # 16 bytes of a record that began on the page before
        (0x1000000, 0x1000000),
        (0x1000000 + 40, 0x1000000),
        (0x1000000 + 24, 0x1000000 + 24),
        (0x2000 + 128, 0x2000 + 128),
    ],
)
def test_the_end_of_the_log_is_before_the_header_of_an_empty_page(position: int, end: int) -> None:
    assert leave_out_header(position, 0x2000, 0x1000000) == end
