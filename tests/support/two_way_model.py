"""Two sides that people change, and the merge of ``core/two_way`` between them, in memory and without a database.

One record with a field of each policy. The engine uses the pure core as the database engine does: calls are announced
before they are sent, reads draw a sequence before they begin, what was acknowledged is noted in order, and calls are
forgotten once a read has shown all that they did. Every value that a person enters is new, so that the end of a history
can say of each what became of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from random import Random
from typing import Any, Literal

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from sync_orchestrator.core.two_way.known_state import (
    SharedCall,
    SideRead,
    find_current_values,
    list_acknowledged,
    list_agreed_values,
    list_ended_calls,
    list_sent_values,
)
from sync_orchestrator.core.two_way.three_way import (
    Conflict,
    FieldDecision,
    FieldState,
    Policy,
    SideValue,
    merge_field,
    same,
)

FIELDS = {"title": Policy.OURS, "stock": Policy.THEIRS, "note": Policy.NEWEST, "price": Policy.ASK}

OWNED = (Policy.OURS, Policy.THEIRS)

READ_LAGS = (0, 3)
"""For less than so many seconds a read may show the state before a change."""

IN_FLIGHT_WINDOW = 5
"""A write whose answer was lost lands within so many seconds, or never."""

SKEW = 2_000_000

MAX_ROUNDS = 40
"""So many rounds without a fault bring every history to rest."""

SideName = Literal["ours", "theirs"]
SIDES: tuple[SideName, SideName] = ("ours", "theirs")

Fate = Literal["acknowledged", "lost_before", "lost_after", "late"]
FATES: tuple[Fate, ...] = ("acknowledged", "lost_before", "lost_after", "late")

Values = dict[str, Any]


def other_side(side: SideName) -> SideName:
    """The other one of the two sides."""
    return "theirs" if side == "ours" else "ours"


# What is true --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state of a side's record; ``version`` steps with every change of it."""

    version: int
    values: Values
    times: dict[str, int]


@dataclass(frozen=True, slots=True)
class Entry:
    """A value that a field has had on a side: who brought it, and when (``moment`` counts all that happened)."""

    value: Any
    author: Literal["person", "write", "late"]
    moment: int


@dataclass(slots=True)
class TrueSide:
    """What a side really has, and has had: ``ended`` is when each state was over, in seconds and as a moment."""

    states: list[Snapshot]
    ended: list[tuple[int, int]] = field(default_factory=list)
    trails: dict[str, list[Entry]] = field(default_factory=lambda: defaultdict(list))

    @property
    def now(self) -> Snapshot:
        """The present state."""
        return self.states[-1]

    def find_entry(self, name: str, value: Any) -> Entry | None:
        """How a value came to a field first; None where it never did."""
        return next((entry for entry in self.trails[name] if entry.value == value), None)


# What the engine knows -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Read:
    """A read of a side: its sequence, when it began (in seconds, and as a moment), and the state that it showed."""

    sequence: int
    began_at: int
    moment: int
    shown: Snapshot | None = None


@dataclass(slots=True)
class Call:
    """A write of ours: what the core knows of it, and what the model has to know to carry it out.

    Attributes:
        shared: As the core sees it.
        body: The fields that are written.
        known: The values that the side may have for the write to be carried out.
        wanted: All that the side is to have.
        began_at: In seconds.
        lands_until: In seconds, once its answer was lost; None while it is under way.
    """

    shared: SharedCall
    body: Values
    known: tuple[Values, ...]
    wanted: Values
    began_at: int
    lands_until: int | None = None


class TwoWayModel:
    """Both sides and the engine between them.

    Args:
        ours: The values of our side at the first link.
        theirs: Those of their side.
        first: The policy for fields that differ then.
        read_lag: In seconds.
        guards_late_writes: The sides check what a write expects when it lands, not only when it is sent.
    """

    def __init__(self, ours: Values, theirs: Values, first: Policy, *, read_lag: int, guards_late_writes: bool) -> None:
        self.first = first
        self.read_lag = read_lag
        self.guards_late_writes = guards_late_writes
        self.clock = 100
        self.moment = 0
        self.sequence = 0
        self.writes = 0
        self.entered = 0
        self.sides = {name: self._make_side(values) for name, values in (("ours", ours), ("theirs", theirs))}
        self.reading: dict[SideName, list[Read]] = {"ours": [], "theirs": []}
        self.last_read: dict[SideName, Read] = {}
        self.calls: dict[SideName, list[Call]] = {"ours": [], "theirs": []}
        self.under_way: dict[SideName, Call] = {}
        self.late: list[tuple[SideName, Call]] = []
        self.states: dict[str, FieldState] = {}
        self.wanted: dict[SideName, Values] = {}
        self.seen: dict[SideName, Values] = {}
        self.own: dict[SideName, Values] = {}
        self.applied: dict[SideName, Values | None] = {"ours": None, "theirs": None}
        self.may_land_until: dict[SideName, int] = {}
        self.open: dict[str, Conflict] = {}
        self.noted: list[tuple[str, Conflict]] = []
        self.chosen: set[Any] = set()
        self.known_equal: dict[str, list[Any]] = defaultdict(list)
        self.agreed: dict[str, list[Any]] = defaultdict(list)
        for side in SIDES:
            self.read_now(side)

    def _make_side(self, values: Values) -> TrueSide:
        side = TrueSide([Snapshot(1, dict(values), dict.fromkeys(values, self.clock * 1_000_000))])
        for name, value in values.items():
            side.trails[name].append(Entry(value, "person", 0))
        return side

    # Sides -----------------------------------------------------------------------------------------------------------

    def _change(self, name: SideName, values: Values, author: Literal["person", "write", "late"]) -> None:
        self.moment += 1
        side = self.sides[name]
        changed = {each: value for each, value in values.items() if not same(side.now.values[each], value)}
        side.ended.append((self.clock, self.moment))
        times = side.now.times | dict.fromkeys(changed, self.clock * 1_000_000)
        side.states.append(Snapshot(side.now.version + 1, side.now.values | changed, times))
        for each, value in changed.items():
            side.trails[each].append(Entry(value, author, self.moment))

    def edit(self, name: SideName, field_name: str) -> None:
        """A person enters a value that nobody has entered before."""
        self._change(name, {field_name: self.new_value()}, "person")

    def new_value(self) -> str:
        """A value that is nowhere yet."""
        self.entered += 1
        return f"v{self.entered}"

    def touch(self, name: SideName) -> None:
        """A person changes what is not shared of the record."""
        self._change(name, {}, "person")

    def pass_time(self, seconds: int) -> None:
        """Lets seconds pass; what can only land until then lands."""
        for _ in range(seconds):
            self.clock += 1
            for place, call in list(self.late):
                if call.lands_until is not None and call.lands_until <= self.clock:
                    self._land(place, call)

    # Reads -----------------------------------------------------------------------------------------------------------

    def begin_read(self, name: SideName) -> None:
        """A read of a side begins."""
        self.sequence += 1
        self.moment += 1
        self.reading[name].append(Read(self.sequence, self.clock, self.moment))

    def list_visible_states(self, name: SideName, read: Read) -> list[Snapshot]:
        """The states that a read may show, the present one first: those of the time since it began, or of the lag."""
        side = self.sides[name]
        shown = [side.now]
        for state, (ended_at, moment) in zip(reversed(side.states[:-1]), reversed(side.ended), strict=True):
            if moment < read.moment and ended_at <= read.began_at - self.read_lag:
                break
            shown.append(state)
        return shown

    def finish_read(self, name: SideName, which: int, age: int) -> None:
        """A read that was under way ends; ``age``: how many states ago was what it shows, as far as that may be."""
        read = self.reading[name].pop(which % len(self.reading[name]))
        states = self.list_visible_states(name, read)
        self._archive(name, replace(read, shown=states[min(age, len(states) - 1)]))

    def read_now(self, name: SideName) -> None:
        """A read that begins and ends now and shows the present state."""
        self.begin_read(name)
        self._archive(name, replace(self.reading[name].pop(), shown=self.sides[name].now))

    def _archive(self, name: SideName, read: Read) -> None:
        """The archive's version guard: no older state replaces a newer one, and an equal one makes the read newer."""
        last = self.last_read.get(name)
        if last is None:
            self.last_read[name] = read
            return
        assert read.shown is not None
        assert last.shown is not None
        is_newer = read.shown.version > last.shown.version
        if is_newer or (read.shown.version == last.shown.version and read.sequence > last.sequence):
            self.last_read[name] = read

    # The merge -------------------------------------------------------------------------------------------------------

    def _list_calls(self, name: SideName) -> list[SharedCall]:
        return [call.shared for call in self.calls[name]]

    def merge(self) -> None:
        """Merges what both sides have by all that is known."""
        self.moment += 1
        self._note_acknowledged()
        calls = {name: self._list_calls(name) for name in SIDES}
        current = {name: self._find_current(name, calls[name]) for name in SIDES}
        self.open, before = {}, self.open
        wanted: dict[SideName, Values] = {"ours": {}, "theirs": {}}
        for name, policy in FIELDS.items():
            sides = [
                SideValue(current[side][name], list_sent_values(name, calls[side]), self._time_of(side, name))
                for side in SIDES
            ]
            state = self.states.get(name, FieldState())
            merged = merge_field(sides[0], sides[1], state, policy, first=self.first, skew=SKEW)
            wanted["ours"][name], wanted["theirs"][name] = merged.to_ours, merged.to_theirs
            self.states[name] = merged.state
            if merged.conflict is not None:
                self._note_conflict(name, merged.conflict, before.get(name), is_first=not state.is_agreed)
            elif same(current["ours"][name], current["theirs"][name]):
                self._note_equal(name, merged.state.agreed)
        for side in SIDES:
            self.wanted[side], self.seen[side], self.own[side] = (
                wanted[side],
                current[side],
                current[other_side(side)],
            )
            self._forget_calls(side, calls[side])

    def _note_acknowledged(self) -> None:
        """Notes as agreed what acknowledged calls carried where the other side had it, in their order."""
        for name, value in list_agreed_values(self._list_calls("ours"), self._list_calls("theirs")):
            self.states[name] = self.states.get(name, FieldState()).note_agreed(value)
            self._note_agreed(name, value)
        for call in [call for side in SIDES for call in self.calls[side]]:
            if call.shared.acknowledged is not None:
                call.shared = replace(call.shared, is_merged=True)

    def _find_current(self, name: SideName, calls: Sequence[SharedCall]) -> Values:
        read = self.last_read[name]
        assert read.shown is not None
        return find_current_values(read.shown.values, self.point_of(read), calls, self.believed_lag)

    @property
    def believed_lag(self) -> int:
        """The lag that the engine is configured with."""
        return self.read_lag

    def point_of(self, read: Read) -> SideRead:
        """A read as the core sees it."""
        return SideRead(read.sequence, read.began_at)

    def _time_of(self, side: SideName, name: str) -> int:
        read = self.last_read[side]
        assert read.shown is not None
        return read.shown.times[name]

    def _forget_calls(self, name: SideName, calls: Sequence[SharedCall]) -> None:
        """Forgets calls, but none while one to the other side is under way: what that brings may be agreed by both."""
        read = self.last_read[name]
        if other_side(name) in self.under_way:
            return
        in_flight = {call.shared.token for call in self.calls[name] if call is self.under_way.get(name)}
        if name in self.may_land_until:
            in_flight |= {call.token for call in calls}
        ended = {
            call.token for call in list_ended_calls(calls, self.point_of(read), self.believed_lag, in_flight=in_flight)
        }
        self.calls[name] = [call for call in self.calls[name] if call.shared.token not in ended]

    def _note_conflict(self, name: str, conflict: Conflict, before: Conflict | None, *, is_first: bool) -> None:
        if conflict.winner is None:
            self.open[name] = conflict
        is_told = before is not None and same([before.ours, before.theirs], [conflict.ours, conflict.theirs])
        if is_told and conflict.winner is None:
            return
        self.noted.append((name, conflict))
        if not is_first and FIELDS[name] not in OWNED:
            self._check_conflict(name, conflict)

    def _check_conflict(self, name: str, conflict: Conflict) -> None:
        """Both sides were changed by people (or decisions) since both were last known to be equal."""
        for side, value in (("ours", conflict.ours), ("theirs", conflict.theirs)):
            trail = self.sides[side].trails[name]
            is_by_person = any(entry.value == value and entry.author == "person" for entry in trail)
            assert is_by_person or value in self.chosen, ("nobody has entered it there", name, side, conflict)
            assert value not in self.known_equal[name], ("one side alone has changed it", name, side, conflict)

    def _note_equal(self, name: str, value: Any) -> None:
        if value not in self.known_equal[name]:
            self.known_equal[name].append(value)
        self._note_agreed(name, value)

    def _note_agreed(self, name: str, value: Any) -> None:
        agreed = self.agreed[name]
        if not agreed or agreed[-1] != value:
            assert value not in agreed, ("an older value is agreed again", name, value, agreed)
            agreed.append(value)

    def decide(self, name: str, choice: Literal["ours", "theirs", "other"]) -> None:
        """A person decides an open conflict by what is shown of it."""
        shown = self.open[name]
        value = {"ours": shown.ours, "theirs": shown.theirs}.get(choice)
        if choice == "other":
            value = self.new_value()
        self.chosen.add(value)
        self.states[name] = replace(
            self.states.get(name, FieldState()), decision=FieldDecision(shown.ours, shown.theirs, value)
        )
        self.merge()
        again = self.open.get(name)
        is_asked_again = again is not None and same([again.ours, again.theirs], [shown.ours, shown.theirs])
        assert not is_asked_again, ("it asks again what was decided", name, shown)

    # Writes ----------------------------------------------------------------------------------------------------------

    def begin_write(self, name: SideName) -> bool:
        """Announces a write of what a side is to have and does not have yet; False where there is none."""
        if name in self.under_way or name not in self.wanted:
            return False
        is_in_sync = same(self.wanted[name], self.seen[name]) and same(self.wanted[name], self.applied[name])
        is_open = name in self.may_land_until
        if is_in_sync and not is_open:
            return False
        calls = self._list_calls(name)
        before = dict(self.seen[name])
        for each in list_acknowledged(calls):
            if not each.is_merged:
                before |= each.carried
        known = (before, *({**before, **call.carried} for call in calls if call.acknowledged is None))
        wanted = self.wanted[name]
        carried = {
            field_name: value
            for field_name, value in wanted.items()
            if not all(same(values[field_name], value) for values in known)
        }
        if not carried and not is_open:
            self.applied[name] = wanted
            return False
        self.applied[name] = None
        self.sequence += 1
        shared = SharedCall(self.sequence, carried, before, dict(self.own[name]))
        call = Call(shared, self.build_body(wanted, carried), known, dict(wanted), self.clock)
        self.calls[name].append(call)
        self.under_way[name] = call
        return True

    def build_body(self, wanted: Values, carried: Values) -> Values:
        """The fields that a write sends: only those that change."""
        return carried

    def is_as_expected(self, real: Mapping[str, Any], call: Call) -> bool:
        """The compare-and-set: whether a side shows what is known of it."""
        return all(any(same(real[name], values[name]) for values in call.known) for name in FIELDS)

    def finish_write(self, name: SideName, fate: Fate) -> None:
        """Carries out the write that is under way, or loses it."""
        call = self.under_way.pop(name)
        real = self.sides[name].now.values
        is_repeated = any(each is not call and each.shared.acknowledged is None for each in self.calls[name])
        if is_repeated and same(real, call.wanted):
            self._acknowledge(name, call)
            return
        if not self.is_as_expected(real, call):
            self.calls[name].remove(call)
            self.begin_read(name)
            return
        if fate in ("acknowledged", "lost_after"):
            self._write(name, call, "write")
        if fate == "acknowledged":
            self._acknowledge(name, call)
            return
        call.lands_until = self.may_land_until[name] = self.clock + IN_FLIGHT_WINDOW
        if fate == "late":
            self.late.append((name, call))

    def _write(self, name: SideName, call: Call, author: Literal["write", "late"]) -> None:
        self.writes += 1
        self._change(name, call.body, author)

    def _acknowledge(self, name: SideName, call: Call) -> None:
        self.sequence += 1
        call.shared = replace(call.shared, acknowledged=self.sequence, acknowledged_at=self.clock)
        self.applied[name] = call.wanted
        if self.may_land_until.get(name, self.clock) <= call.began_at:
            self.may_land_until.pop(name, None)
        ours, theirs = (self.sides[side].now.values for side in SIDES)
        for each in call.shared.carried:
            if same(ours[each], theirs[each]) and ours[each] not in self.known_equal[each]:
                self.known_equal[each].append(ours[each])

    def land(self, which: int) -> None:
        """A late write lands."""
        self._land(*self.late[which % len(self.late)])

    def _land(self, name: SideName, call: Call) -> None:
        self.late.remove((name, call))
        if not self.guards_late_writes or self.is_as_expected(self.sides[name].now.values, call):
            self._write(name, call, "late")

    # The end ---------------------------------------------------------------------------------------------------------

    def play_round(self) -> None:
        """Both sides are read and merged, and what is to be written is, without a fault."""
        for name in SIDES:
            self.read_now(name)
        self.merge()
        for name in SIDES:
            if name in self.under_way or self.begin_write(name):
                self.finish_write(name, "acknowledged")
        self.pass_time(1)

    def come_to_rest(self) -> None:
        """Everything lands, reads are fresh, and rounds are played until nothing is written for a while."""
        for name in SIDES:
            while self.reading[name]:
                self.finish_read(name, 0, 0)
        while self.late:
            self.land(0)
        quiet = rounds = 0
        while quiet < self.read_lag + IN_FLIGHT_WINDOW + 2:
            before = self.writes
            self.play_round()
            quiet = quiet + 1 if self.writes == before else 0
            rounds += 1
            assert rounds < MAX_ROUNDS, "it never comes to rest"

    def check_end(self) -> None:
        """What must hold once everything is at rest."""
        ours, theirs = (self.sides[name].now.values for name in SIDES)
        for name in FIELDS:
            if name not in self.open:
                assert ours[name] == theirs[name], ("both sides differ", name, ours[name], theirs[name])
                assert ours[name] == self.agreed[name][-1], ("an older value", name, ours[name], self.agreed[name])
        for name in SIDES:
            for field_name in FIELDS:
                self._check_edits(name, field_name)
        assert not any(self.calls.values()), ("calls are remembered for ever", self.calls)
        before = self.writes
        for _ in range(5):
            self.play_round()
        assert self.writes == before, "it is not at rest"

    def _check_edits(self, side: SideName, name: str) -> None:
        """What a person has entered was overwritten by who had seen it, or stands among the conflicts.

        A late write that lands without a check overwrites what it has not seen: the engine cannot know.
        """
        noted = [value for each, conflict in self.noted if each == name for value in (conflict.ours, conflict.theirs)]
        trail, other = self.sides[side].trails[name], self.sides[other_side(side)]
        for entry, following in pairwise(trail):
            is_lost_late = following.author == "late" and not self.guards_late_writes
            if entry.author != "person" or following.author == "person" or is_lost_late or entry.value in noted:
                continue
            seen, written = other.find_entry(name, entry.value), other.find_entry(name, following.value)
            was_seen = seen is not None and (written is None or seen.moment < written.moment)
            assert was_seen, ("an edit is lost", side, name, entry, following)


# Histories -----------------------------------------------------------------------------------------------------------


class TwoWayMachine(RuleBasedStateMachine):
    """Random histories of the model."""

    model: TwoWayModel
    model_type: type[TwoWayModel] = TwoWayModel
    has_failed = False

    @initialize(
        differing=st.sets(st.sampled_from(sorted(FIELDS))),
        first=st.sampled_from((Policy.ASK, Policy.OURS, Policy.THEIRS)),
        read_lag=st.sampled_from(READ_LAGS),
        guards_late_writes=st.booleans(),
    )
    def begin(self, differing: set[str], first: Policy, read_lag: int, guards_late_writes: bool) -> None:
        ours = {name: f"{name}0" for name in FIELDS}
        theirs = {name: f"{name}1" if name in differing else value for name, value in ours.items()}
        self.model = self.model_type(ours, theirs, first, read_lag=read_lag, guards_late_writes=guards_late_writes)

    @rule(side=st.sampled_from(SIDES), name=st.sampled_from(sorted(FIELDS)))
    def edit(self, side: SideName, name: str) -> None:
        self.model.edit(side, name)

    @rule(name=st.sampled_from(sorted(FIELDS)))
    def edit_both(self, name: str) -> None:
        for side in SIDES:
            self.model.edit(side, name)

    @rule(side=st.sampled_from(SIDES))
    def touch(self, side: SideName) -> None:
        self.model.touch(side)

    @rule(side=st.sampled_from(SIDES))
    def begin_read(self, side: SideName) -> None:
        self.model.begin_read(side)

    @rule(side=st.sampled_from(SIDES), which=st.integers(0, 3), age=st.integers(0, 2))
    def finish_read(self, side: SideName, which: int, age: int) -> None:
        if not self.model.reading[side]:
            self.model.begin_read(side)
        self.model.finish_read(side, which, age)
        self.model.merge()

    @rule()
    def merge(self) -> None:
        self.model.merge()

    @rule(side=st.sampled_from(SIDES))
    def begin_write(self, side: SideName) -> None:
        self.model.begin_write(side)

    @rule(side=st.sampled_from(SIDES), fate=st.sampled_from(FATES))
    def write(self, side: SideName, fate: Fate) -> None:
        if side in self.model.under_way or self.model.begin_write(side):
            self.model.finish_write(side, fate)

    @rule(side=st.sampled_from(SIDES), name=st.sampled_from(sorted(FIELDS)), age=st.integers(0, 3))
    def carry_over_and_read(self, side: SideName, name: str, age: int) -> None:
        """An edit goes to the other side, and the next read there may lag."""
        other = other_side(side)
        self.model.edit(side, name)
        self.model.read_now(side)
        self.model.merge()
        self.write(other, "acknowledged")
        self.finish_read(other, 0, age)

    @precondition(lambda self: self.model.late)
    @rule(which=st.integers(0, 3))
    def land(self, which: int) -> None:
        self.model.land(which)

    @rule(seconds=st.integers(1, 4))
    def pass_time(self, seconds: int) -> None:
        self.model.pass_time(seconds)

    @rule()
    def play_round(self) -> None:
        self.model.play_round()

    @precondition(lambda self: self.model.open)
    @rule(which=st.integers(0, 3), choice=st.sampled_from(("ours", "theirs", "other")))
    def decide(self, which: int, choice: Literal["ours", "theirs", "other"]) -> None:
        names = sorted(self.model.open)
        self.model.decide(names[which % len(names)], choice)

    def teardown(self) -> None:
        if hasattr(self, "model"):
            self.model.come_to_rest()
            self.model.check_end()


WEIGHTS = {
    "edit": 6,
    "edit_both": 1,
    "touch": 1,
    "begin_read": 2,
    "finish_read": 6,
    "merge": 1,
    "begin_write": 2,
    "write": 6,
    "carry_over_and_read": 2,
    "land": 2,
    "pass_time": 3,
    "play_round": 1,
    "decide": 2,
}


def replay(number: int, steps: int, machine_type: type[TwoWayMachine] = TwoWayMachine) -> None:
    """Plays one history by its number, without shrinking it where it fails; it is about a field or two."""
    random = Random(number)
    machine = machine_type()
    differing = {name for name in FIELDS if random.random() < 0.1}
    first = random.choice((Policy.ASK, Policy.OURS, Policy.THEIRS))
    machine.begin(differing, first, random.choice(READ_LAGS), random.random() < 0.5)
    names = random.sample(sorted(FIELDS), random.choice((1, 2)))
    for _ in range(steps):
        model, side, which = machine.model, random.choice(SIDES), random.randrange(4)
        (command,) = random.choices(list(WEIGHTS), list(WEIGHTS.values()))
        match command:
            case "edit" | "carry_over_and_read":
                more = (random.randrange(4),) if command == "carry_over_and_read" else ()
                getattr(machine, command)(side, random.choice(names), *more)
            case "edit_both":
                machine.edit_both(random.choice(names))
            case "finish_read":
                machine.finish_read(side, which, random.choice((0, 0, 1, 2)))
            case "write":
                machine.write(side, random.choice(FATES))
            case "pass_time":
                machine.pass_time(random.randint(1, 4))
            case "land" if model.late:
                machine.land(which)
            case "decide" if model.open:
                machine.decide(which, random.choice(("ours", "theirs", "other")))
            case "merge" | "play_round":
                getattr(machine, command)()
            case "touch" | "begin_read" | "begin_write":
                getattr(machine, command)(side)
    machine.teardown()
