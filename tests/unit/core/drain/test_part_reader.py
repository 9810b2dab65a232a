"""The parts of a batch, read together: the same as read one by one, and one record's trouble is that of no other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from fakes import FakeSource
from hypothesis import given
from hypothesis import strategies as st

from sync_orchestrator.core.drain.event_decisions import ReadSource
from sync_orchestrator.core.drain.part_reader import PROBED_RECORDS, PartReader, read_requested_parts
from sync_orchestrator.core.ledger.event_rows import DueEvent
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.errors import CallFailed, Failure

Shown = Mapping[str, PartRead | CallFailed | None]


class BatchSource(FakeSource):
    """A source that reads records together, with records that fail every read that asks for them."""

    def __init__(self, size: int, poisoned: Mapping[str, Failure] | None = None) -> None:
        super().__init__()
        self.read_many_size = size
        self.poisoned = dict(poisoned or {})
        self.calls: list[tuple[str, ...]] = []

    async def read(self, key: str) -> PartRead | None:
        return next(iter(await self._show((key,))), None)

    async def read_many(self, keys: Sequence[str]) -> list[PartRead]:
        return await self._show(tuple(keys))

    async def _show(self, keys: tuple[str, ...]) -> list[PartRead]:
        self.calls.append(keys)
        await asyncio.sleep(0)
        for key in keys:
            if key in self.poisoned:
                raise CallFailed(self.poisoned[key], f"poison: {key}")
        return await super().read_many(keys)


def read(source: FakeSource, keys: Sequence[str]) -> Shown:
    return asyncio.run(PartReader(source, "item").read_records(keys))


def describe(shown: Shown) -> dict[str, object]:
    """What the reads showed, in values that can be compared."""
    return {
        key: (each.kind, each.detail) if isinstance(each, CallFailed) else each for key, each in sorted(shown.items())
    }


def make_request(key: str, *parts: str) -> ReadSource:
    event: Any = DueEvent(
        seq=1,
        source="shop",
        entity="item",
        key=key,
        group=None,
        action="update",
        epoch=0,
        version=1,
        is_thin=True,
        data=None,
        attempts=0,
        absent_at=None,
        ask_source=False,
        origin="notification",
        read_sequence=0,
        received_at=None,  # type: ignore[arg-type]
        now=0.0,
    )
    return ReadSource(event, frozenset(parts))


KEYS = [f"k{number}" for number in range(24)]
REFUSED = st.dictionaries(st.sampled_from(KEYS), st.sampled_from([Failure.PERMANENT, Failure.TRANSIENT]), max_size=4)


@given(
    there=st.sets(st.sampled_from(KEYS)),
    wanted=st.lists(st.sampled_from(KEYS), unique=True, min_size=1),
    refused=REFUSED,
    size=st.integers(1, 30),
    order=st.randoms(use_true_random=False),
)
def test_records_read_together_end_like_records_read_one_by_one(
    there: set[str], wanted: list[str], refused: dict[str, Failure], size: int, order: random.Random
) -> None:
    """Fewer records fail than are probed, so what the others have is always their own."""
    together, alone = BatchSource(size, refused), BatchSource(1, refused)
    for source in (together, alone):
        for key in sorted(there):
            source.put(key, {"key": key}, version=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random, "sample", order.sample)
        assert describe(read(together, wanted)) == describe(read(alone, wanted))


def test_chunks_have_the_size_of_the_source() -> None:
    source = BatchSource(10)
    for key in KEYS:
        source.put(key, {"key": key})
    assert read(source, KEYS) == {key: source.rows[key] for key in KEYS}
    assert sorted(map(len, source.calls)) == [4, 10, 10]


def test_a_part_that_several_events_ask_for_is_read_once() -> None:
    shop, stock = BatchSource(10), BatchSource(10)
    row, count = shop.put("a", {"key": "a"}), stock.put("a", {"count": 1})
    requests = [make_request("a", "shop"), make_request("a", "shop", "stock"), make_request("b", "stock")]
    shown = asyncio.run(read_requested_parts({"shop": shop, "stock": stock}, "item", requests))
    assert shown == [{"shop": row}, {"shop": row, "stock": count}, {"stock": None}]
    assert (shop.calls, stock.calls) == ([("a",)], [("a", "b")])


def test_a_part_that_fails_fails_its_own_events_only() -> None:
    shop, stock = BatchSource(10), BatchSource(10)
    row = shop.put("a", {"key": "a"})
    stock.down = True
    requests = [make_request("a", "shop"), make_request("a", "shop", "stock")]
    shown = asyncio.run(read_requested_parts({"shop": shop, "stock": stock}, "item", requests))
    assert shown[0] == {"shop": row}
    assert isinstance(shown[1], CallFailed)


@pytest.mark.parametrize("kind", [Failure.TRANSIENT, Failure.AUTH, Failure.PERMANENT])
def test_a_poisoned_record_fails_alone(kind: Failure) -> None:
    source = BatchSource(100, {"k3": kind})
    for key in KEYS:
        source.put(key, {"key": key})
    shown = read(source, KEYS)
    assert [key for key, each in shown.items() if isinstance(each, CallFailed)] == ["k3"]
    assert len(source.calls) == 1 + len(KEYS)


def test_many_poisoned_records_hold_up_the_others_for_a_few_reads_at_most() -> None:
    """More of them than are probed: which ones are probed differs from one time to the next."""
    poisoned = dict.fromkeys(KEYS[:18], Failure.TRANSIENT)
    source = BatchSource(100, poisoned)
    for key in KEYS:
        source.put(key, {"key": key})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random, "sample", random.Random(1).sample)
        found = set()
        for _ in range(40):
            found |= {key for key, each in read(source, KEYS).items() if isinstance(each, PartRead)}
    assert found == set(KEYS) - set(poisoned)


def test_a_refusal_is_never_that_of_other_records() -> None:
    """So many refusals that every probed record may be refused: the others are read all the same."""
    source = BatchSource(100, dict.fromkeys(KEYS[:20], Failure.PERMANENT))
    for key in KEYS:
        source.put(key, {"key": key})
    shown = read(source, KEYS)
    assert {key for key, each in shown.items() if isinstance(each, PartRead)} == set(KEYS[20:])


def test_a_source_that_is_down_is_found_out_by_a_few_reads() -> None:
    source = BatchSource(100)
    source.down = True
    shown = read(source, [f"r{number}" for number in range(100)])
    assert {each.kind for each in shown.values() if isinstance(each, CallFailed)} == {Failure.TRANSIENT}
    assert len(source.calls) == 1 + PROBED_RECORDS


def test_a_source_that_is_throttled_is_left_alone() -> None:
    source = BatchSource(100, {"k0": Failure.THROTTLED})
    shown = read(source, KEYS)
    assert {each.kind for each in shown.values() if isinstance(each, CallFailed)} == {Failure.THROTTLED}
    assert len(source.calls) == 1


def test_what_a_library_raises_is_a_failure_of_its_record(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(BatchSource):
        async def _show(self, keys: tuple[str, ...]) -> list[PartRead]:
            if "k1" in keys:
                raise LookupError("odd")
            return await super()._show(keys)

    source = Odd(100)
    row = source.put("k2", {"key": "k2"})
    shown = read(source, ["k1", "k2"])
    assert (describe(shown)["k1"], shown["k2"]) == ((Failure.TRANSIENT, "LookupError: odd"), row)
    assert "failed unexpectedly" in caplog.text


@pytest.mark.parametrize("confirms", [True, False])
def test_absence_is_decided_by_the_call_for_one_record_where_there_is_one(confirms: bool) -> None:
    class Forgetful(BatchSource):
        async def read_many(self, keys: Sequence[str]) -> list[PartRead]:
            return (await super().read_many(keys))[:1]

    source = Forgetful(100)
    source.confirms_absence = confirms
    for key in ("a", "b"):
        source.put(key, {"key": key})
    shown = read(source, ["a", "b", "c"])
    assert [key for key, each in shown.items() if each is None] == (["c"] if confirms else ["b", "c"])


def test_a_record_that_is_shown_under_the_key_of_another_is_asked_for_by_itself() -> None:
    """A source without regard to letter case has one record for both keys: neither of them is absent."""

    class Caseless(BatchSource):
        async def _show(self, keys: tuple[str, ...]) -> list[PartRead]:
            await super()._show(keys)
            shown = {key.upper(): PartRead(key.upper(), 1, {}) for key in keys}
            spelt = [PartRead(key, 0, {}, problem="spelt otherwise") for key in keys if len(keys) == 1 != key.isupper()]
            return spelt or list(shown.values())

    assert read(Caseless(100), ["AB", "ab", "CD"])["ab"] == PartRead("ab", 0, {}, problem="spelt otherwise")


def test_several_rows_of_a_key_are_read_once_more() -> None:
    class Repeating(BatchSource):
        async def read_many(self, keys: Sequence[str]) -> list[PartRead]:
            return [PartRead("a", 1, {"n": 1}), PartRead("a", 1, {"n": 2})]

    source = Repeating(100)
    row = source.put("a", {"n": 3})
    assert read(source, ["a", "b"]) == {"a": row, "b": None}
