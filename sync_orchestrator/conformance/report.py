"""How a behaviour ends: passed, failed or skipped, each with what a person needs to know."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

B = TypeVar("B")


class Differs(Exception):
    """It is not as it should be: what came, what was expected; ``hint`` in place of the behaviour's own."""

    def __init__(
        self, came: object, expected: str, hint: str = "", *, fields: Collection[str] = (), cause: str | None = None
    ) -> None:
        """Makes the failure of one behavior.

        ``fields``: those that differ, where nothing else does. ``cause``: what tells this failure from others, in place
        of ``came``.
        """
        super().__init__(f"{came}; expected: {expected}")
        self.came = came if isinstance(came, str) else repr(came)
        self.expected = expected
        self.hint = hint
        self.fields = frozenset(fields)
        self.cause = cause or f"{self.came}; {expected}"


class Skipped(Exception):
    """It cannot be tried here; the text says why."""


@dataclass(frozen=True)
class Behaviour(Generic[B]):
    """One thing that is relied on. ``section`` and ``method``: where to look, in ``sync.yaml`` or in a class."""

    name: str
    says: str
    section: str
    method: str
    run: Callable[[B], Awaitable[None]]
    needs: tuple[str, ...] = ()
    """Behaviours without which a failure of this one says nothing new."""


@dataclass(frozen=True)
class BehaviourResult:
    """How one behaviour ended."""

    entity: str
    system: str
    behaviour: str
    outcome: Literal["passed", "failed", "skipped"]
    came: str = ""
    """What came of a failed one; why one was skipped."""
    expected: str = ""
    hint: str = ""
    because_of: str = ""
    """The behaviour that names the cause, where this one would have failed for the same."""


Told = Callable[[BehaviourResult], None]


@dataclass
class ConformanceReport:
    """All behaviours, in the order in which they were tried, but each below the one that names its cause."""

    endings: list[BehaviourResult] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Nothing failed, and something passed."""
        outcomes = {ending.outcome for ending in self.endings}
        return "failed" not in outcomes and "passed" in outcomes

    @property
    def verdict(self) -> str:
        """One line for people."""
        return ", ".join(
            f"{sum(ending.outcome == outcome for ending in self.endings)} {outcome}"
            for outcome in ("passed", "failed", "skipped")
        )

    def find_ending(self, behaviour: str) -> BehaviourResult:
        """How a behaviour ended. Raises KeyError where it was not tried."""
        found = [ending for ending in self.endings if ending.behaviour == behaviour]
        if not found:
            raise KeyError(behaviour)
        return found[0]


class Behaviours(Generic[B]):
    """Named behaviours, in the order in which they are written down."""

    def __init__(self) -> None:
        self.all: list[Behaviour[B]] = []

    def add(
        self, section: str, method: str = "", needs: tuple[str, ...] = ()
    ) -> Callable[[Callable[[B], Awaitable[None]]], Any]:
        """Takes a function as a behaviour: its name, with dashes, is the behaviour's, its docstring what it says."""

        def register_behaviour(run: Callable[[B], Awaitable[None]]) -> Callable[[B], Awaitable[None]]:
            name = run.__name__.replace("_", "-")
            self.all.append(Behaviour(name, run.__doc__ or name, section, method or section, run, needs))
            return run

        return register_behaviour

    @property
    def names(self) -> list[str]:
        """The names of the behaviors."""
        return [each.name for each in self.all]
