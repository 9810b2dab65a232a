"""A third party under live load that is changed behind our back, and the audits that have to notice: an experiment.

Changes of all kinds come in all the time; some calls are lost, and some answers. Meanwhile somebody loses, revives,
alters and swaps records over there. Every audit is held against what was really done.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from itertools import count, cycle
from random import Random
from typing import Any, Literal

from fakes import FakeThirdParty, lost_answer
from world import World

from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.full_sync.full_sync import full_sync
from sync_orchestrator.core.ledger.recording import ChangeEvent, record_events
from sync_orchestrator.core.ports import Found, Item, PartRead
from sync_orchestrator.core.validation.validate import GroupValidation, validate

SETTINGS: dict[str, Any] = {
    "system": {"timeout": 2, "in_flight_window": 0.3, "search_lag": 0.2, "concurrency": 16},
    "entity": {
        "retry": {"retries": 20, "first_wait": 0.1, "factor": 1.5, "max_wait": 1},
        "validation": {"confirm_after": 0.3, "unmanaged": "delete", "deletions": {"share": 0.2}},
    },
}
"""What takes seconds or minutes in earnest is about ten times shorter."""

LOST_PUSHES, LOST_ANSWERS = 0.05, 0.03
CHANGES_PER_SECOND = 40
TICK = 0.1
PAGE = 100
PAUSE = 0.3
"""Between two hands full of faults, so that they come all through the audits."""

AT_REST = """
SELECT key, group_key, external_id, sync.clock() AS at FROM sync.records
WHERE key = ANY(%(keys)s) AND ready AND NOT out_of_sync AND lease_token IS NULL
  AND greatest(changed_at, applied_at) < sync.clock() - interval '1 s'
ORDER BY key
"""
TOUCHED = "SELECT FROM sync.records WHERE key = %(key)s AND greatest(changed_at, applied_at) >= %(at)s"


class LiveThirdParty(FakeThirdParty):
    """Loses pushes and answers, keeps what records were, and lists a page at a time while all goes on."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self.earlier: dict[str, dict[str, Any]] = {}
        self.calm = True
        self._random = random
        self.before = lambda verb, key: lost_answer() if self._loses(verb, LOST_PUSHES) else None
        self.after = lambda verb, key: lost_answer() if self._loses(verb, LOST_ANSWERS) else None

    def _loses(self, verb: str, share: float) -> bool:
        return not self.calm and verb in ("create", "update", "delete") and self._random.random() < share

    async def update(self, item: Item) -> str | None:
        was = self.store.get(item.external_id or "")
        external_id = await super().update(item)
        if was is not None and external_id is not None and was != self.store.get(external_id):
            self.earlier[external_id] = was
        return external_id

    async def listed(self, group: str) -> AsyncIterator[list[Found]]:
        """Pages in the order in which records were made; what is made meanwhile comes at the end."""
        seen: set[str] = set()
        while ids := [name for name in self.store if name not in seen and self._group(name) == group]:
            seen.update(ids)
            for start in range(0, len(ids), PAGE):
                await asyncio.sleep(0.002)
                page = [name for name in ids[start : start + PAGE] if name in self.store and self._group(name) == group]
                yield [self._found(name) for name in page]


class Watched:
    """The third party as one audit sees it; counts the audit's calls, and does a naive diff beside it."""

    def __init__(self, world: World, erp: LiveThirdParty) -> None:
        self._world = world
        self._erp = erp
        self.capabilities = erp.capabilities
        self.calls: Counter[str] = Counter()
        self.suspects: set[str] = set()
        self.differing: set[str] = set()

    async def read(self, item: Item) -> Found | None:
        self.calls["read"] += 1
        self.suspects.add(item.key)
        return await self._erp.read(item)

    async def account(self) -> str | None:
        return None

    async def lookup(self, key: str, group: str | None) -> list[Found]:
        self.calls["lookup"] += 1
        self.suspects.add(key)
        return await self._erp.lookup(key, group)

    async def delete(self, item: Item) -> None:
        self.calls["delete"] += 1
        self._erp.store.pop(item.external_id or "", None)

    async def count(self, group: str) -> int | None:
        self.calls["count"] += 1
        return await self._erp.count(group)

    async def pages(self, group: str) -> AsyncIterator[list[Found]]:
        shown: dict[str, Any] = {}
        async for page in self._erp.listed(group):
            self.calls["list"] += 1
            shown.update({str(found.key): found.fields for found in page})
            yield page
        should = {key: row for key, row in self._world.expected_mirror().items() if row["store"] == group}
        self.differing = {key for key in shown.keys() | should.keys() if shown.get(key) != should.get(key)}


@dataclass(slots=True)
class Fault:
    """Something that was done behind our back; ``at`` is the database's time. Overtaken: a push came over it."""

    kind: str
    key: str
    group: str
    at: Any
    end: Literal["open", "found", "overtaken", "missed"] = "open"


@dataclass(slots=True)
class Figures:
    """What an experiment came to. ``naive``: the false alarms of the same listings held against the sources."""

    changes: int = 0
    audits: int = 0
    suspects: int = 0
    naive: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    false: list[str] = field(default_factory=list)
    faults: dict[str, Fault] = field(default_factory=dict)

    def ended(self) -> Counter[str]:
        """The faults by what became of them."""
        return Counter(fault.end for fault in self.faults.values())

    def __str__(self) -> str:
        kinds = Counter(fault.kind for fault in self.faults.values())
        return (
            f"{self.changes} changes, {self.audits} audits, {len(self.faults)} faults ({dict(kinds)}): "
            f"{dict(self.ended())}, {len(self.false)} false alarms (naive: {self.naive}), "
            f"{self.suspects} suspects, calls {dict(self.calls)}"
        )


class Experiment:
    """Changes, faults and audits at the same time; each has its own random numbers, all made from one seed."""

    def __init__(self, world: World, seed: str, *, groups: int, records: int, faults: int) -> None:
        assert isinstance(world.erp, LiveThirdParty)
        self.world = world
        self.figures = Figures()
        self._erp = world.erp
        self._load, self._hand = Random(f"{seed} load"), Random(f"{seed} faults")
        self._groups = [f"G{number:02}" for number in range(groups)]
        self._size = records
        self._planned = faults
        self._members: dict[str, list[str]] = defaultdict(list)
        self._dead: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._numbers = count(1)
        self._ended = False

    async def run(self) -> Figures:
        """Rounds of audits under load until all faults are done, and one more, which finds the last of them."""
        await self._fill()
        self._erp.calm = False
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                drain(self.world.context, linger=3600, most_seconds=3600, asked_to_end=lambda: self._ended)
            )
            tasks.create_task(self._changes())
            hand = tasks.create_task(self._faults())
            while not hand.done():
                await self._round()
            await self._round()
            self._ended = True
        return self.figures

    async def settle(self) -> list[GroupValidation]:
        """What is still open is pushed; then each group is compared_fully once more."""
        self._erp.calm = True
        while self.world.query("SELECT FROM sync.records WHERE out_of_sync LIMIT 1"):
            await drain(self.world.context, linger=0.2, most_seconds=60)
        await asyncio.sleep(2 * SETTINGS["system"]["search_lag"])
        return [await validate(self.world.context, self.world.entity, group, full=True) for group in self._groups]

    async def _fill(self) -> None:
        self.world.shop.page = self.world.stock.page = 1000
        for group in self._groups:
            for number in range(self._size):
                key = f"{group}-{number:05}"
                self.world.put_record(key, count=number, group=group, notify=False)
                self._members[group].append(key)
            await full_sync(self.world.context, self.world.entity, group, patience=60)

    # What the sources do ---------------------------------------------------------------------------------------------

    async def _changes(self) -> None:
        """Changes arrive steadily, whatever the rest does."""
        clock = asyncio.get_running_loop().time
        due, most = clock(), round(CHANGES_PER_SECOND * TICK)
        while not self._ended:
            changes = [event for _ in range(most) for event in self._change()]
            await asyncio.to_thread(record_events, self.world.engine, changes)
            self.figures.changes += most
            due = max(due + TICK, clock() - 1)
            await asyncio.sleep(max(0.0, due - clock()))

    def _change(self) -> list[ChangeEvent]:
        group, world, number = self._load.choice(self._groups), self.world, next(self._numbers)
        members = self._members[group]
        (what,) = self._load.choices(("update", "stock", "create", "delete", "move"), (50, 25, 10, 10, 5))
        if what == "create" or len(members) < self._size // 2:
            key = f"{group}-new{number:05}"
            world.put_record(key, count=number, group=group, notify=False)
            members.append(key)
            return [
                _event(world.shop.rows[key], "shop", "create", number),
                _event(world.stock.rows[key], "stock", "create", number),
            ]
        key = self._load.choice(members)
        if what == "stock":
            return [_event(world.stock.put(key, {"key": key, "count": number, "v": 0}), "stock", "update", number)]
        if what == "delete":
            members.remove(key)
            self._dead[group].append({"code": key, "store": group, "name": "a ghost", "count": 0})
            return [ChangeEvent("shop", f"e{number}", "item", key, "delete", world.shop.remove(key), None, None)]
        if what == "move":
            members.remove(key)
            group = self._load.choice(self._groups)
            self._members[group].append(key)
        row = world.shop.put(key, {"key": key, "name": f"n{number}", "store": group, "v": 0}, group=group)
        return [_event(row, "shop", "update", number)]

    # What is done behind our back ------------------------------------------------------------------------------------

    async def _faults(self) -> None:
        """A few at a time, in all groups in turn, in records that are at rest."""
        for group in cycle(self._groups):
            left = self._planned - len(self.figures.faults)
            if left <= 0:
                return
            rest = await asyncio.to_thread(self._at_rest, group)
            await self._spoil(group, rest, min(8, left))
            await asyncio.sleep(PAUSE)

    def _at_rest(self, group: str) -> dict[str, Any]:
        keys = self._hand.sample(self._members[group], min(40, len(self._members[group])))
        ghosts = [ghost["code"] for ghost in self._dead[group]]
        rows = self.world.query(AT_REST, keys=[key for key in keys + ghosts if key not in self.figures.faults])
        return {row.key: row for row in rows if row.group_key == group}

    async def _spoil(self, group: str, rest: dict[str, Any], most: int) -> None:
        alive = [row for row in rest.values() if row.external_id in self._erp.store]
        ghosts = [ghost for ghost in self._dead[group] if ghost["code"] in rest and not self._erp.of_key(ghost["code"])]
        for row in alive[:most]:
            kind = self._hand.choice(("lost", "phantom", "stale", "swapped"))
            if kind in ("lost", "swapped"):
                self._erp.store.pop(row.external_id)
                self._note(kind, row.key, group, row.at)
            if kind == "stale":
                self._alter(row)
                self._note(kind, row.key, group, row.at)
            if kind in ("phantom", "swapped"):
                ghost: dict[str, Any] = (
                    ghosts.pop()
                    if ghosts
                    else {"code": f"stranger{next(self._numbers)}", "store": group, "name": "by hand", "count": 0}
                )
                self._erp.by_hand(ghost, group)
                self._note(kind, ghost["code"], group, row.at)

    def _alter(self, row: Any) -> None:
        """What it was before, or else something else."""
        shown = self._erp.store[row.external_id]
        was = self._erp.earlier.get(row.external_id, shown)
        self._erp.store[row.external_id] = {**was, "store": shown["store"], "count": was["count"] - (was == shown)}

    def _note(self, kind: str, key: str, group: str, at: Any) -> None:
        self.figures.faults[key] = Fault(kind, key, group, at)

    # The audits ------------------------------------------------------------------------------------------------------

    async def _round(self) -> None:
        for group in self._groups:
            await self._audit(group)

    async def _audit(self, group: str) -> None:
        """What was done before it began it has to find, and it may find nothing that was not done."""
        figures = self.figures
        due = [fault for fault in figures.faults.values() if fault.group == group and fault.end == "open"]
        watched = Watched(self.world, self._erp)
        entity = replace(self.world.entity, third_party=watched)  # type: ignore[arg-type]
        result = await validate(self.world.context, entity, group, full=True)
        assert result.verdict != "not_validated", result.reason
        for drift in result.drift:
            fault = figures.faults.get(drift.key)
            if fault is not None and fault.end == "open":
                fault.end = "found"
            else:
                figures.false.append(f"{drift.key} ({drift.kind}): {drift.sample}; {fault}")
        for fault in due:
            if fault.end == "open":
                touched = self.world.query(TOUCHED, key=fault.key, at=fault.at)
                fault.end = "overtaken" if touched else "missed"
        figures.audits += 1
        figures.suspects += len(watched.suspects)
        figures.naive += len(watched.differing - figures.faults.keys())
        figures.calls += watched.calls


def _event(row: PartRead, source: str, action: Literal["create", "update"], number: int) -> ChangeEvent:
    return ChangeEvent(source, f"e{number}", "item", row.key, action, row.version, row.data, None)
