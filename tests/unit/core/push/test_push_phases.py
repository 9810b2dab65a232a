"""One push as a state machine: which calls it makes, and how it ends, by what the third party answers. No database."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from fakes import lost_answer

from sync_orchestrator.config import ThirdPartySettings
from sync_orchestrator.core.ports import TOO_OLD, Capabilities, Found, Item
from sync_orchestrator.core.push.attempt import push_payload
from sync_orchestrator.core.push.claims import PushClaim
from sync_orchestrator.core.push.result import Pushed
from sync_orchestrator.core.values.mapping import Mapping
from sync_orchestrator.errors import CallFailed, Failure, Refusal

PAYLOAD = {"name": "n"}
MAPPING = Mapping({"name": "items.name"})
SYSTEM = ThirdPartySettings.model_validate({"base_url": "http://x", "in_flight_window": 30, "search_lag": 0})
TRAITS = Capabilities(
    assigns_ids=True, can_lookup=True, idempotent_create=False, group_in_address=False, look_first="never"
)
NEW = PushClaim(
    entity="item",
    key="a",
    group="A",
    revision=1,
    deleted=False,
    applied_digest=None,
    applied_group=None,
    external_id=None,
    attempts=0,
    rejected_digest=None,
    token=1,
    ever_applied=False,
    outcome_unknown_until=None,
    outcome_unknown_for=None,
    deadline=math.inf,
    acknowledged_at=0,
    waiting_for=0.0,
    parts={},
)
KNOWN = replace(NEW, revision=2, applied_digest=b"older", applied_group="A", external_id="x1", ever_applied=True)
GONE = replace(KNOWN, deleted=True)
REFUSED = CallFailed(Failure.PERMANENT, "no", status=422)
DUPLICATE = CallFailed(Failure.PERMANENT, "taken", status=409, refusal=Refusal.DUPLICATE_OR_CONFLICT)
HALF = CallFailed(Failure.TRANSIENT, "half of it", refusal=Refusal.HALF_WRITTEN)


@dataclass
class Scripted:
    """A third party that gives the next scripted answer to each call, whatever is called, and notes the calls."""

    answers: list[Any]
    capabilities: Capabilities = TRAITS
    calls: list[str] = field(default_factory=list)

    def _answer(self, verb: str, external_id: str | None) -> Any:
        self.calls.append(verb if external_id is None else f"{verb} {external_id}")
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def create(self, item: Item) -> Any:
        return self._answer("create", item.external_id)

    async def update(self, item: Item) -> Any:
        return self._answer("update", item.external_id)

    async def delete(self, item: Item) -> Any:
        return self._answer("delete", item.external_id)

    async def read(self, item: Item) -> Any:
        return self._answer("read", item.external_id)

    async def lookup(self, key: str, group: str | None) -> Any:
        return self._answer("lookup", None)


@dataclass
class Target:
    third_party: Any
    mapping: Mapping = MAPPING
    system: ThirdPartySettings = field(
        default_factory=lambda: ThirdPartySettings.model_validate(
            {"base_url": "http://x", "in_flight_window": 30, "search_lag": 0}
        )
    )


def shown(external_id: str, key: str = "a", name: str = "n") -> Found:
    return Found(key, external_id, None, {"name": name})


def pushed(claim: PushClaim, answers: Sequence[Any], capabilities: Capabilities = TRAITS) -> tuple[list[str], Pushed]:
    third_party = Scripted(list(answers), capabilities)
    end = asyncio.run(push_payload(Target(third_party), claim, None if claim.deleted else PAYLOAD))
    assert third_party.answers == []
    return third_party.calls, end


@pytest.mark.parametrize(
    ("claim", "answers", "calls", "external_id"),
    [
        pytest.param(NEW, ["x1"], ["create"], "x1", id="a new record is created"),
        pytest.param(KNOWN, ["x1"], ["update x1"], "x1", id="a known record is updated"),
        pytest.param(GONE, [None], ["delete x1"], None, id="a deleted record is deleted"),
        pytest.param(KNOWN, [None, [], "x2"], ["update x1", "lookup", "create"], "x2", id="what vanished is made anew"),
        pytest.param(
            KNOWN,
            [None, [shown("x2")], "x2"],
            ["update x1", "lookup", "update x2"],
            "x2",
            id="what has another id by now is found by its key",
        ),
        pytest.param(
            NEW, [DUPLICATE, [shown("x3")], "x3"], ["create", "lookup", "update x3"], "x3", id="a duplicate is adopted"
        ),
        pytest.param(
            replace(NEW, outcome_unknown_for=-1.0),
            [[shown("x4")], "x4"],
            ["lookup", "update x4"],
            "x4",
            id="after a lost answer of a create the record is searched",
        ),
        pytest.param(
            replace(NEW, outcome_unknown_for=5.0, late_creates=[["A", "x5"], ["A", "x6"]]),
            [[shown("x5"), shown("x6")], "x5", None],
            ["lookup", "update x5", "delete x6"],
            "x5",
            id="what a late create made beside it is deleted",
        ),
        pytest.param(
            replace(KNOWN, outcome_unknown_for=-1.0),
            [shown("x1")],
            ["read x1"],
            "x1",
            id="after a lost answer of an update the record is read back",
        ),
        pytest.param(
            replace(KNOWN, outcome_unknown_for=-1.0),
            [shown("x1", name="older"), "x1"],
            ["read x1", "update x1"],
            "x1",
            id="what is read back and differs is written again",
        ),
    ],
)
def test_an_acknowledged_push(claim: PushClaim, answers: list[Any], calls: list[str], external_id: str | None) -> None:
    made, end = pushed(claim, answers)
    assert (made, end.failure, end.postponed, end.external_id) == (calls, None, None, external_id)
    assert end.digest == (None if claim.deleted else MAPPING.digest_of_ours(PAYLOAD))


@pytest.mark.parametrize(
    ("claim", "answers", "unknown", "is_refused", "sent"),
    [
        pytest.param(NEW, [lost_answer()], True, False, True, id="a lost answer leaves the outcome unknown"),
        pytest.param(NEW, [ValueError("a bug")], True, False, True, id="so does an error after a write was sent"),
        pytest.param(KNOWN, [None, ValueError("a bug")], True, False, True, id="and an error of a later call"),
        pytest.param(NEW, [REFUSED], False, True, True, id="a refusal says that nothing was done"),
        pytest.param(
            replace(NEW, outcome_unknown_for=-1.0),
            [ValueError("a bug")],
            False,
            False,
            False,
            id="a search sends nothing",
        ),
        pytest.param(NEW, [DUPLICATE, []], False, True, True, id="a duplicate that nothing shows is a refusal"),
        pytest.param(NEW, [DUPLICATE, lost_answer()], True, False, True, id="a failed search says nothing of that"),
    ],
)
def test_a_failed_push(claim: PushClaim, answers: list[Any], unknown: bool, is_refused: bool, sent: bool) -> None:
    _, end = pushed(claim, answers)
    assert end.failure is not None
    assert (end.failure.unknown, end.rejected_digest is not None, end.calls.sent) == (unknown, is_refused, sent)


def test_half_a_record_is_deleted_and_its_id_forgotten_before_it_is_made_anew() -> None:
    calls, end = pushed(KNOWN, [HALF, None])
    assert calls == ["update x1", "delete x1"]
    assert (end.failure, end.postponed, end.external_id) == (None, 0.0, None)
    assert (end.cleared, end.refused) == (True, True)


def test_half_a_record_that_a_create_made_is_deleted_and_spends_an_attempt() -> None:
    half = CallFailed(Failure.TRANSIENT, "half of it", refusal=Refusal.HALF_WRITTEN, external_id="x1")
    calls, end = pushed(NEW, [half, None])
    assert calls == ["create", "delete x1"]
    assert (end.failure, end.calls.created, end.external_id, end.refused) == (half, False, None, True)


def test_what_is_under_an_id_of_another_record_is_not_deleted_as_a_half() -> None:
    half = CallFailed(Failure.TRANSIENT, "half of it", refusal=Refusal.HALF_WRITTEN, not_ours="other")
    calls, end = pushed(KNOWN, [half, [], "x2"])
    assert calls == ["update x1", "lookup", "create"]
    assert end.calls.stray is not None
    assert end.calls.stray.shown_key == "other"


def test_a_search_that_may_not_show_a_late_create_yet_is_repeated() -> None:
    calls, end = pushed(replace(NEW, outcome_unknown_for=5.0), [[]])
    assert (calls, end.postponed, end.failure) == (["lookup"], 5.0, None)


def test_an_operator_decides_where_a_lost_create_cannot_be_searched() -> None:
    calls, end = pushed(replace(NEW, outcome_unknown_for=-1.0), [], replace(TRAITS, can_lookup=False))
    assert (calls, end.held, end.calls.called) == ([], True, False)


def test_a_move_clears_the_old_place_before_the_new_one_is_made() -> None:
    moved = replace(KNOWN, group="B")
    capabilities = replace(TRAITS, group_in_address=True)
    assert pushed(moved, [None, "x2"], capabilities)[0] == ["delete x1", "create"]
    end = pushed(moved, [lost_answer()], capabilities)[1]
    assert (end.cleared, end.external_id) == (False, None)
    end = pushed(moved, [None, lost_answer()], capabilities)[1]
    assert (end.cleared, end.external_id) == (True, None)


def test_nothing_is_called_once_the_lease_has_grown_too_old() -> None:
    calls, end = pushed(replace(NEW, deadline=-math.inf), [])
    assert end.failure is not None
    assert (calls, end.failure.detail, end.calls.called) == ([], TOO_OLD, False)
