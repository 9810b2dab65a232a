"""The steps that are tried on running systems, and how each of them ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class CheckStep:
    """One thing that was tried. ``hint`` says what to look at where it is not ok."""

    entity: str
    system: str
    what: str
    outcome: Literal["ok", "failed", "skipped", "waiting"]
    """``waiting``: it succeeds once another entity was filled."""
    detail: str
    hint: str = ""
    before: Any = None
    after: Any = None


Told = Callable[[CheckStep], None]


@dataclass
class LiveCheckReport:
    """All steps, in the order in which they were tried."""

    steps: list[CheckStep] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no step failed."""
        return all(step.outcome != "failed" for step in self.steps)

    @property
    def verdict(self) -> str:
        """One line for people."""
        count = {
            outcome: sum(step.outcome == outcome for step in self.steps)
            for outcome in ("ok", "failed", "skipped", "waiting")
        }
        return ", ".join(f"{number} {outcome}" for outcome, number in count.items() if number or outcome != "waiting")
