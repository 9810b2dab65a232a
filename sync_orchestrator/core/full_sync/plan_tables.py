"""Shows a plan as tables of plain rows, for the command line and for Dagster."""

from __future__ import annotations

from collections.abc import Sequence

from sync_orchestrator.core.full_sync.plan import COUNTS, GroupPlan

ALWAYS = ("create", "update", "delete", "unchanged")

Table = tuple[list[str], list[list[object]]]


def counts_table(plans: Sequence[GroupPlan]) -> Table:
    """A row a business group, and their sum; what is nowhere counted has no column, but for the main ones."""
    names = [name for name in COUNTS if name in ALWAYS or any(name in plan.counts for plan in plans)]
    rows = [[plan.group, plan.listed, *(plan.counts.get(name, 0) for name in names)] for plan in plans]
    if len(rows) > 1:
        rows.append(["all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])])
    return ["group", "listed", *names], rows


def samples_table(plans: Sequence[GroupPlan], most: int) -> Table:
    """A row a differing field of the sampled records."""
    rows = [
        [plan.group, sample.action, sample.key, line["field"], line["ours"], line["theirs"]]
        for plan in plans
        for sample in plan.samples
        for line in sample.fields
    ]
    return ["group", "action", "key", "field", "ours", "theirs"], rows[:most]


def list_notes(plans: Sequence[GroupPlan]) -> list[str]:
    """What a person should know, with its group."""
    return [f"{plan.group}: {note}" for plan in plans for note in plan.notes]
