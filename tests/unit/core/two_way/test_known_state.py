"""What a side holds by reads and calls, a case a row. Reads may lag for five seconds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sync_orchestrator.core.two_way.known_state import (
    SharedCall,
    SideRead,
    find_current_values,
    is_obsolete,
    list_acknowledged,
    list_agreed_values,
    list_ended_calls,
    list_sent_values,
)

LAG = 5.0
CALL = SharedCall(1, {"note": "new"}, {"note": "old"}, {"note": "new"}, acknowledged=10, acknowledged_at=100.0)
NEXT = SharedCall(2, {"note": "newer"}, {"note": "new"}, {"note": "newer"}, acknowledged=20, acknowledged_at=101.0)
UNKNOWN = SharedCall(3, {"note": "sent"}, {"note": "old"}, {"note": "sent"})
LATER = SideRead(30, 106.0)


@pytest.mark.parametrize(
    ("shown", "read", "current"),
    [
        ("old", SideRead(9, 99.0), "new"),  # began before the acknowledgement
        ("other", SideRead(9, 99.0), "new"),  # the same, whatever it shows
        ("old", SideRead(11, 104.9), "new"),  # may lag
        ("other", SideRead(11, 104.9), "other"),  # was not there before the write, so it came after
        ("new", SideRead(11, 104.9), "new"),
        ("old", SideRead(11, 105.0), "old"),  # does not lag any more: somebody has entered it again
    ],
)
def test_a_read_is_believed_by_its_sequence_its_age_and_what_it_shows(shown: str, read: SideRead, current: str) -> None:
    assert find_current_values({"note": shown, "price": 1}, read, [CALL], LAG) == {"note": current, "price": 1}


def test_several_calls_count_in_the_order_of_their_acknowledgement() -> None:
    assert list_acknowledged([NEXT, UNKNOWN, CALL]) == [CALL, NEXT]
    for shown in ("old", "new"):
        assert find_current_values({"note": shown}, SideRead(21, 102.0), [NEXT, CALL], LAG) == {"note": "newer"}


def test_a_call_of_unknown_outcome_and_fields_that_are_not_shown_change_nothing() -> None:
    assert find_current_values({"note": "old"}, LATER, [UNKNOWN], LAG) == {"note": "old"}
    assert find_current_values({"price": 1}, SideRead(1, 0.0), [CALL], LAG) == {"price": 1}


def test_only_calls_of_unknown_outcome_may_still_bring_a_value() -> None:
    assert list_sent_values("note", [CALL, UNKNOWN]) == ["sent"]
    assert list_sent_values("price", [UNKNOWN]) == []


def test_a_value_that_only_the_side_had_itself_is_none_of_ours() -> None:
    had = replace(UNKNOWN, before={"note": "sent"})
    assert list_sent_values("note", [replace(had, own={"note": "other"})]) == []
    assert list_sent_values("note", [replace(had, own={})]) == []
    assert list_sent_values("note", [had]) == ["sent"]  # both had it


@pytest.mark.parametrize(
    ("call", "read", "obsolete"),
    [
        (replace(CALL, is_merged=True), SideRead(10, 105.0), True),
        (CALL, SideRead(10, 105.0), False),  # not merged
        (replace(CALL, is_merged=True), SideRead(9, 105.0), False),
        (replace(CALL, is_merged=True), SideRead(10, 104.9), False),
        (replace(UNKNOWN, is_merged=True), LATER, False),
    ],
)
def test_an_acknowledged_call_is_obsolete_once_a_later_read_cannot_lag(
    call: SharedCall, read: SideRead, obsolete: bool
) -> None:
    assert is_obsolete(call, read, LAG) is obsolete


def test_a_call_of_unknown_outcome_ends_with_the_last_acknowledged_one() -> None:
    merged, following = replace(CALL, is_merged=True), replace(NEXT, is_merged=True)
    calls = [merged, following, UNKNOWN]
    assert list_ended_calls(calls, LATER, LAG, in_flight=()) == calls
    assert list_ended_calls(calls, LATER, LAG, in_flight={3}) == [merged, following]
    assert list_ended_calls(calls, SideRead(30, 105.5), LAG, in_flight=()) == [merged]
    assert list_ended_calls([UNKNOWN], LATER, LAG, in_flight=()) == [UNKNOWN]


@pytest.mark.parametrize(
    ("to_ours", "to_theirs", "agreed"),
    [
        ([], [CALL, NEXT], [("note", "new"), ("note", "newer")]),
        ([NEXT], [CALL], [("note", "new"), ("note", "newer")]),
        ([], [replace(CALL, is_merged=True)], []),
        ([], [UNKNOWN], []),
        ([], [replace(CALL, own={"note": "other"})], []),  # chosen by somebody, and only on one side yet
        (
            [replace(CALL, own={"note": "other"}, is_merged=True)],
            [replace(CALL, own={"note": "another"}, acknowledged=20)],
            [("note", "new")],  # brought to both
        ),
    ],
)
def test_what_both_sides_have_had_is_agreed(
    to_ours: list[SharedCall], to_theirs: list[SharedCall], agreed: list[tuple[str, object]]
) -> None:
    assert list_agreed_values(to_ours, to_theirs) == agreed
    assert list_agreed_values(to_theirs, to_ours) == agreed
