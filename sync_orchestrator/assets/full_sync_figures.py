"""The figures of a full sync as metadata: of the filling of a group's archive, and of the push that follows."""

from __future__ import annotations

from sync_orchestrator.core.full_sync.fill import FillReport
from sync_orchestrator.core.full_sync.push_group import StepReport

Figures = dict[str, int | float | bool | str]

SHOWN_FIGURES = ("listed", "changed", "deleted", "unusable", "calls", "mirrored", "still_open", "dead")
"""The figures of a group that the table of a run shows."""


def find_problem_of_fill(filled: FillReport) -> str | None:
    """What keeps an archive from holding what its sources have; None where nothing does."""
    problems = [
        f"{n} {what}"
        for n, what in (
            (filled.unusable, "parts cannot be used"),
            (filled.behind, "parts are older at the source than here"),
        )
        if n
    ]
    return "; ".join(problems) or None


def fill_figures(filled: FillReport, seconds: float) -> Figures:
    return {
        "listed": filled.listed,
        "changed": filled.changed,
        "deleted": filled.deleted,
        "moved": filled.moved,
        "emptied": filled.emptied,
        "unusable": filled.unusable,
        "resumed": filled.resumed,
        **_compute_rate("records", filled.listed, seconds),
    }


def push_figures(stepped: StepReport, seconds: float) -> Figures:
    return {
        "calls": stepped.calls,
        "mirrored": stepped.acknowledged,
        "still_open": stepped.open,
        "dead": stepped.stopped,
        "redriven_events": stepped.redriven,
        **({} if stepped.suspended is None else {"suspended": stepped.suspended}),
        **_compute_rate("calls", stepped.calls, seconds),
    }


def _compute_rate(what: str, count: int, seconds: float) -> Figures:
    return {"seconds": round(seconds, 2), f"{what}_per_second": round(count / seconds, 1) if seconds else 0.0}
