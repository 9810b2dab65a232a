"""Saves and loads the plan of an entity's full sync, and finds the differences between two plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from sync_orchestrator.core.full_sync.plan import COUNTS, GroupPlan
from sync_orchestrator.errors import CannotPlan


@dataclass(frozen=True)
class Plan:
    """What a full sync of an entity would do. ``every_group``: not of some that were named alone."""

    entity: str
    made_at: datetime
    every_group: bool
    allow_deletions: int | None = None
    groups: list[GroupPlan] = field(default_factory=list)


_PLAN = TypeAdapter(Plan)


def save_plan(plan: Plan, path: Path) -> None:
    """Writes a plan. Raises CannotPlan where the file cannot be written."""
    try:
        path.write_bytes(_PLAN.dump_json(plan, indent=2))
    except OSError as error:
        raise CannotPlan(f"{path} cannot be written: {error.strerror}") from None


def load_plan(path: Path, entity: str) -> Plan:
    """Reads a plan. Raises CannotPlan where it is none, or one of another entity."""
    try:
        plan = _PLAN.validate_json(path.read_bytes())
    except OSError as error:
        raise CannotPlan(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError:
        raise CannotPlan(f"{path} is no plan: `sync-orchestrator plan {entity} --out {path}` writes one") from None
    if plan.entity != entity:
        raise CannotPlan(f"{path} is a plan of {plan.entity}, not of {entity}")
    return plan


def compare_plans(planned: Sequence[GroupPlan], now: Sequence[GroupPlan]) -> dict[str, str]:
    """By business group, in what a full sync would now do something else than was planned."""
    then = {plan.group: plan for plan in planned}
    found = {plan.group: plan for plan in now}
    differ = dict.fromkeys(found.keys() - then.keys(), "is not in the plan")
    differ |= dict.fromkeys(then.keys() - found.keys(), "is not there any more")
    differ |= {
        group: _describe_difference(then[group], found[group])
        for group in then.keys() & found.keys()
        if then[group].digest != found[group].digest
    }
    return dict(sorted(differ.items()))


def _describe_difference(then: GroupPlan, now: GroupPlan) -> str:
    counts = [
        f"{name} {then.counts.get(name, 0)}, now {now.counts.get(name, 0)}"
        for name in COUNTS
        if then.counts.get(name, 0) != now.counts.get(name, 0)
    ]
    return "; ".join(counts) or "as many records as planned, but others, or with other content"
