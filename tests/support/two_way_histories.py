"""Random histories of two systems in which people change the same records, over the real database.

Each value that a person enters is new, so that the end of a history can say of each what became of it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, ClassVar, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from two_sides import Book, Fault, Row, TwoSides

from sync_orchestrator.core.crash_points import REGISTERED
from sync_orchestrator.core.ledger.conservation import count_conservation
from sync_orchestrator.core.systems import queries as systems_queries
from sync_orchestrator.core.two_way.resolving import Choice, resolve_conflict
from sync_orchestrator.core.two_way.three_way import Winner
from sync_orchestrator.errors import CallFailed

SKUS = ("a", "b", "c")

FIELDS = ("title", "note", "price")

OWNED = ("title", "sku")
"""Fields that our side owns."""

FAULTS: tuple[Fault, ...] = ("lost_before", "lost_after", "lost_after", "late", "late", "down", "refused")

WEIGHTS: dict[str, float] = {
    "edit": 10,
    "edit_both": 3,
    "add": 3,
    "remove": 1.5,
    "deliver": 10,
    "drain": 9,
    "time_passes": 3,
    "fails": 4,
    "lands": 3,
    "lags": 2,
    "goes_down": 1,
    "will_die": 3,
    "full_sync": 1,
    "validate": 0.7,
    "resolve": 2,
}

POINTS = sorted(name for name in set(REGISTERED) if name.startswith(("events.", "drain.", "push.", "full_sync.")))

TABLES = (
    "events, event_history, event_ids, tallies, parts, records, push_attempts, breaker_failures, groups, "
    "full_sync_keys, validations, drift, alerts, alert_receivers, alert_records, stray_ids, inferred_deletions, "
    "push_tallies, latencies, lost_notifications, lost_tallies, systems, entities, links, shared_calls, match_values, "
    "link_waits, conflicts"
)

T = TypeVar("T")


class Trail:
    """What a field of a record has had on one side, in order; each value with who entered it."""

    def __init__(self) -> None:
        self.entries: list[tuple[Any, str]] = []

    def note(self, value: Any, author: str) -> None:
        if not self.entries or self.entries[-1][0] != value:
            self.entries.append((value, author))

    def index(self, value: Any) -> int | None:
        """Where a value came first."""
        return next((at for at, (each, _) in enumerate(self.entries) if each == value), None)

    def is_by_person(self, value: Any) -> bool:
        """Whether a person has entered a value on this side."""
        return any(each == value and author == "person" for each, author in self.entries)


class TwoWayHistories(RuleBasedStateMachine):
    """One history; ``make`` is set by the test."""

    make: Callable[[], TwoSides]
    number = 0
    deaths: ClassVar[Counter[str]] = Counter()
    played: ClassVar[Counter[str]] = Counter()
    weights: ClassVar[dict[str, float]] = WEIGHTS
    conflicts: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.sides = type(self).make()
        self.random = Random(0)
        self.steps = 0
        self.values = 0
        self.edits = 0
        self.deadly: tuple[str, int] | None = None
        self.held: list[tuple[Book, str]] = []
        self.trails: dict[tuple[str, str, str], Trail] = {}
        self.made: Counter[tuple[str, str]] = Counter()
        self.removed: set[str] = set()
        self.resolved: set[str] = set()
        self.deleted: list[tuple[str, str, str, Any]] = []
        self.log: list[str] = []

    # What happens ----------------------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        sides = self.sides
        sides.query(f"TRUNCATE {', '.join('sync.' + name.strip() for name in TABLES.split(','))}")
        for name in ("shop", "erp"):
            sides.query(systems_queries.REGISTER_SYSTEM, name=name)
        for book in self.books:
            self._watch(book)
        for sku in SKUS[:2]:
            self.random = Random(f"{self.number} {sku}")
            self._add_to(self._any(self.books), sku)
        self._deliver_all()
        self._run(lambda: asyncio.run(sides.sync()))

    @property
    def books(self) -> tuple[Book, Book]:
        return self.sides.shop, self.sides.erp

    def _watch(self, book: Book) -> None:
        """Notes who wrote which value, and keeps notifications until they are delivered."""
        book.notify = lambda row_id, row: self.held.append((book, row_id))
        make, change, delete = book._make, book._change, book._delete

        def note(row: Row, author: str) -> None:
            for name in FIELDS:
                key = (book.name, str(row.fields["sku"]), name)
                self.trails.setdefault(key, Trail()).note(row.fields.get(name), author)

        def noted_make(fields: Any) -> Row:
            row = make(fields)
            self.log.append(f"{self.steps} {self.author}: {book.name} makes {row.id} {dict(fields)}")
            self.made[book.name, str(fields["sku"])] += self.author == "person"
            note(row, self.author)
            return row

        def noted_change(row_id: str, fields: Any) -> None:
            change(row_id, fields)
            self.log.append(f"{self.steps} {self.author}: {book.name} changes {row_id} {dict(fields)}")
            note(book.rows[row_id], self.author)

        def noted_delete(row_id: str) -> None:
            self.log.append(f"{self.steps} {self.author}: {book.name} deletes {row_id}")
            if self.author == "engine":
                row = book.rows[row_id]
                self.deleted += [(book.name, str(row.fields["sku"]), name, row.fields.get(name)) for name in FIELDS]
            delete(row_id)

        book._make, book._change, book._delete = noted_make, noted_change, noted_delete  # type: ignore[method-assign]

    author = "engine"

    def _as_person(self, work: Callable[[], T]) -> T:
        self.author = "person"
        try:
            return work()
        finally:
            self.author = "engine"

    @rule(entropy=st.integers(0, 2**64 - 1))
    def step(self, entropy: int) -> None:
        """One rule for all, so that each history has much of everything."""
        self.steps += 1
        self.random = Random(f"{self.number} {self.steps} {entropy}")
        (command,) = self.random.choices(list(self.weights), list(self.weights.values()))
        self.played[command] += 1
        self.log.append(f"{self.steps} {command}")
        getattr(self, f"_{command}")()

    def _any(self, choices: Sequence[T]) -> T:
        return self.random.choice(choices)

    def _new_value(self, field: str) -> Any:
        self.values += 1
        return self.values if field == "price" else f"{field[0]}{self.values}"

    def _add_to(self, book: Book, sku: str) -> None:
        if any(row.fields["sku"] == sku for row in book.rows.values()):
            return
        self._as_person(lambda: book.add(sku=sku, **{name: self._new_value(name) for name in FIELDS}))
        self.edits += 1

    def _add(self) -> None:
        """A person makes a record that this side does not have; the other may have it, or get it by a person, too."""
        sku = self._any(SKUS)
        self._add_to(self._any(self.books), sku)
        if self._any((True, False, False, False)):
            for book in self.books:
                self._add_to(book, sku)

    def _edit(self) -> None:
        book = self._any(self.books)
        if book.rows:
            self._edit_row(book, self._any(sorted(book.rows)), self._any(FIELDS))

    def _edit_row(self, book: Book, row_id: str, field: str) -> None:
        self.edits += 1
        self._as_person(lambda: book.edit(row_id, **{field: self._new_value(field)}))

    def _edit_both(self) -> None:
        """Both sides change one field before either hears of it."""
        sku, field = self._any(SKUS), self._any(FIELDS)
        for book in self.books:
            for row in [row for row in book.rows.values() if row.fields["sku"] == sku]:
                self._edit_row(book, row.id, field)

    def _remove(self) -> None:
        book = self._any(self.books)
        if book.rows:
            row_id = self._any(sorted(book.rows))
            self.removed.add(str(book.rows[row_id].fields["sku"]))
            self.edits += 1
            self._as_person(lambda: book.remove(row_id))

    def _deliver(self) -> None:
        """Any of the notifications that were not delivered yet; some are lost."""
        if self.held:
            book, row_id = self.held.pop(self._any(range(len(self.held))))
            self._tell(book, row_id)

    def _tell(self, book: Book, row_id: str) -> None:
        self.sides.tell(book.name, "product" if book is self.sides.shop else "product_back", book, row_id)

    def _deliver_all(self) -> None:
        while self.held:
            self._tell(*self.held.pop(0))

    def _drain(self) -> None:
        self._run(lambda: asyncio.run(self.sides.drain()))

    def _time_passes(self) -> None:
        self.sides.clock_offset_seconds += self._any((1, 5, 11, 40))

    def _fails(self) -> None:
        self._any(self.books).faults.append(self._any(FAULTS))

    def _lands(self) -> None:
        self._any(self.books).land()

    def _lags(self) -> None:
        self._any(self.books).stale = 1

    def _goes_down(self) -> None:
        book = self._any(self.books)
        book.is_down = not book.is_down

    def _will_die(self) -> None:
        self.deadly = self._any(POINTS), self._any((1, 2))

    def _full_sync(self) -> None:
        self._run(lambda: asyncio.run(self.sides.sync()))

    def _validate(self) -> None:
        name = self._any(("product", "product_back"))
        self._run(lambda: asyncio.run(self.sides.validate(name)))

    def _resolve(self) -> None:
        """A person decides an open conflict by what is shown of it."""
        sides = self.sides
        rows = sides.query("SELECT id, field, key FROM sync.conflicts WHERE state = 'open' ORDER BY id")
        if not rows:
            return
        row = self._any(rows)
        winner = self._any((Winner.OURS, Winner.THEIRS))
        is_third = row.field is not None and self._any((False, False, True))
        choice = Choice(None, self._new_value(row.field)) if is_third else Choice(winner)
        self.log.append(f"{self.steps} person resolves {tuple(row)} by {choice}")
        self.resolved.add(repr(choice.value))
        two_way = sides.entity("product").two_way
        assert two_way is not None
        with sides.engine.begin() as connection:
            resolve_conflict(connection, {"product": two_way}, row.id, choice)

    def _run(self, work: Callable[[], object]) -> None:
        if self.deadly is None:
            self.sides.attempt(work)
        elif self.sides.run_until_crash(lambda: self.sides.attempt(work), *self.deadly):
            self.log.append(f"{self.steps} died at {self.deadly}")
            self.deaths[self.deadly[0]] += 1
            self.deadly = None
            self.sides.context = self.sides.assemble_context()

    # What always holds -----------------------------------------------------------------------------------------------

    @invariant()
    def no_side_has_a_record_twice(self) -> None:
        for book in self.books:
            skus = Counter(str(row.fields["sku"]) for row in book.rows.values())
            assert max(skus.values(), default=0) <= 1, (book.name, skus, self.log)

    # The end ---------------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            self._come_to_rest()
            self._check_end()
        finally:
            self.sides.close()

    def _come_to_rest(self) -> None:
        sides = self.sides
        self.deadly = None
        for book in self.books:
            book.faults, book.stale, book.is_down = [], 0, False
            while book.late:
                book.land()
        self._deliver_all()
        sides.clock_offset_seconds += 200  # a breaker that is open lets reads through where nothing is left to push
        sides.context = sides.assemble_context()
        asyncio.run(sides.settle(4))
        self._revive()
        for _ in range(3):
            try:
                asyncio.run(sides.sync())
                break
            except CallFailed:  # a breaker is still open: without pushes, reads close it after a while
                sides.clock_offset_seconds += 300
                asyncio.run(sides.settle(1))
        asyncio.run(sides.settle(3))

    def _revive(self) -> None:
        """An operator has dead records and events tried again."""
        self.sides.query(
            "UPDATE sync.records SET stopped = NULL, attempts = 0, rejected_digest = NULL, due_at = sync.clock() "
            "WHERE stopped = 'dead'"
        )
        self.sides.query("UPDATE sync.events SET state = 'pending', due_at = sync.clock() WHERE state = 'dead'")

    def _check_end(self) -> None:
        sides = self.sides
        rows = sides.query(
            "SELECT key, theirs_key, field, ours, theirs, winner, state, policy, agreed, ours_at, theirs_at "
            "FROM sync.conflicts"
        )
        type(self).conflicts += len(rows)
        open_rows = [row for row in rows if row.state == "open"]
        held_fields = {(self._sku_of(row), row.field) for row in open_rows if row.field is not None}
        held_records = {self._sku_of(row) for row in open_rows if row.field is None}
        told = self._describe(rows)
        assert count_conservation_of(sides), told
        shop, erp = ({str(row.fields["sku"]): row.fields for row in book.rows.values()} for book in self.books)
        assert shop.keys() - held_records == erp.keys() - held_records, told
        for sku in shop.keys() & erp.keys() - held_records:
            for name in FIELDS:
                if (sku, name) not in held_fields:
                    assert shop[sku].get(name) == erp[sku].get(name), (sku, name, told)
        self._check_that_no_edit_is_lost(rows, told)
        self._check_conflicts(rows, told)
        before = sides.writes
        asyncio.run(sides.settle(1))
        assert sides.writes == before, ("it is not at rest", told)

    def _sku_of(self, row: Any) -> str:
        if self.sides.is_by_sku:
            return str(row.key)
        shown = [each for book in self.books for each in (*book.rows.values(), *book.before.values()) if each]
        return next(str(each.fields["sku"]) for each in shown if each.id in (row.key, row.theirs_key))

    def _check_that_no_edit_is_lost(self, rows: Sequence[Any], told: str) -> None:
        """What a person entered is overwritten by who had seen it, or stands among the conflicts."""
        noted = {repr(value) for row in rows for value in (row.ours, row.theirs)}
        for (side, sku, field), trail in self.trails.items():
            other = self.trails.get(("erp" if side == "shop" else "shop", sku, field), Trail())
            for (value, author), (next_value, next_author) in zip(trail.entries, trail.entries[1:], strict=False):
                if author != "person" or next_author == "person" or repr(value) in noted or sku in self.removed:
                    continue
                seen, overwritten = other.index(value), other.index(next_value)
                was_seen = seen is not None and overwritten is not None and seen < overwritten
                came_back = trail.index(next_value) is not None and next_value == value
                assert was_seen or came_back, (side, sku, field, value, next_value, told)
        in_rows = {repr(each) for row in rows for value in (row.ours, row.theirs) for each in _list_values(value)}
        for side, sku, field, value in self.deleted:
            if self.trails[side, sku, field].is_by_person(value) and repr(value) not in in_rows:
                other = self.trails.get(("erp" if side == "shop" else "shop", sku, field), Trail())
                assert other.index(value) is not None, ("deleted unseen", side, sku, field, value, told)

    def _check_conflicts(self, rows: Sequence[Any], told: str) -> None:
        """No conflict about a field that one side alone has changed."""
        for row in rows:
            if row.field is None or row.field in OWNED or row.agreed is None:
                continue
            sku = self._sku_of(row)
            if row.policy == "newest" and row.winner is not None and row.state == "decided":
                assert (row.ours_at > row.theirs_at) == (row.winner == "ours"), (
                    "the older one has won",
                    tuple(row),
                    told,
                )
            for side, value in (("shop", row.ours), ("erp", row.theirs)):
                trail = self.trails.get((side, sku, row.field), Trail())
                assert trail.is_by_person(value) or repr(value) in self.resolved, (
                    "a conflict that is none",
                    tuple(row),
                    told,
                )

    def _describe(self, rows: Sequence[Any]) -> str:
        lines = [f"history {self.number}", *self.log, *(str(tuple(row)) for row in rows)]
        lines += [f"{book.name}: {book.rows}" for book in self.books]
        lines += [
            str(tuple(row))
            for row in self.sides.query(
                "SELECT entity, key, revision, applied_revision, ready, deleted, stopped, external_id, error "
                "FROM sync.records ORDER BY 1, 2"
            )
        ]
        lines += [str(tuple(row)) for row in self.sides.query("SELECT * FROM sync.links")]
        lines += [str(tuple(row)) for row in self.sides.query("SELECT * FROM sync.link_waits")]
        lines += [str(tuple(row)) for row in self.sides.query("SELECT * FROM sync.shared_calls")]
        lines += [
            str(tuple(row))
            for row in self.sides.query("SELECT source, entity, key, action, state, error, origin FROM sync.events")
        ]
        return "\n".join(lines)


def _list_values(value: Any) -> list[Any]:
    """The values of a record that one side has deleted, or the one value of a field."""
    return list(value.values()) if isinstance(value, dict) else [value]


def count_conservation_of(sides: TwoSides) -> bool:
    """Whether each recorded event is in one state."""
    with sides.engine.begin() as connection:
        return count_conservation(connection).balanced


def replay(machine: type[TwoWayHistories], number: int, steps: int) -> None:
    """Plays one history by itself, without shrinking it where it fails."""
    machine.number = number
    played = machine()
    played.begin()
    for _ in range(steps):
        played.step(entropy=0)
        played.no_side_has_a_record_twice()
    played.teardown()
