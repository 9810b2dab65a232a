"""The checks of a mirror whose records people change on both sides: open conflicts, and records on one side only.

Declared without partitions. They are evaluated when alerts change (``alert_checks.py``), so a new conflict shows within
seconds, and when an operator executes them.
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import dagster as dg
from sqlalchemy import Connection

from sync_orchestrator.assets.lineage import mirror_key
from sync_orchestrator.assets.tables import shown_table
from sync_orchestrator.core.two_way.conflict_log import count_open_conflicts
from sync_orchestrator.core.two_way.resolving import count_links, list_conflicts, list_waiting_records
from sync_orchestrator.core.two_way.rules import TwoWay
from sync_orchestrator.resources.system import SystemResource

CONFLICTS_CHECK = "conflicts"
BOTH_SIDES_CHECK = "both_sides"

_MOST = 200
_NAMES = ("id", "group", "key", "field", "ours", "theirs", "since")


def two_way_checks(name: str, back: str) -> dg.AssetChecksDefinition:
    """The checks of the mirror of an entity that has ``two_way``."""
    specs = [
        dg.AssetCheckSpec(
            CONFLICTS_CHECK,
            asset=mirror_key(name),
            description=(
                "A warning while people have to decide about fields that both sides have changed, or about deletions. "
                "The table shows both values. Decide with the job `resolve_conflicts` or `sync-orchestrator conflicts`."
            ),
        ),
        dg.AssetCheckSpec(
            BOTH_SIDES_CHECK,
            asset=mirror_key(name),
            description=(
                f"Compares the archives of {name} and {back}: how many records are linked, and which are on one side "
                "only. A warning while records cannot be linked because several have the same natural key."
            ),
        ),
    ]

    @dg.multi_asset_check(name=f"{name}_mirror_two_way", specs=specs, can_subset=True)
    def check_two_way(
        context: dg.AssetCheckExecutionContext, system: SystemResource
    ) -> Iterator[dg.AssetCheckEvaluation]:
        selected = {key.name for key in context.selected_asset_check_keys}
        for evaluation in evaluate_two_way(system, name):
            if evaluation.check_name in selected:
                yield evaluation

    return check_two_way


def evaluate_two_way(system: SystemResource, name: str) -> Iterator[dg.AssetCheckEvaluation]:
    """Evaluates both checks of an entity; nothing for one without ``two_way``, or that is the ``back`` of another."""
    two_way = system.context.entities[name].two_way
    if two_way is None or two_way.ours.entity != name:
        return
    with system.context.engine.begin() as connection:
        yield _evaluate_conflicts(connection, name)
        yield _evaluate_both_sides(connection, two_way)


def _evaluate_conflicts(connection: Connection, name: str) -> dg.AssetCheckEvaluation:
    rows = list_conflicts(connection, entity=name, most=_MOST)
    fields = {field or "deleted on one side": n for field, n in count_open_conflicts(connection, name).items()}
    named = ", ".join(f"{field} ({count})" for field, count in sorted(fields.items()))
    metadata: dict[str, Any] = {"open": sum(fields.values())}
    if rows:
        metadata["conflicts"] = shown_table((list(_NAMES), [[row[column] for column in _NAMES] for row in rows]))
    return dg.AssetCheckEvaluation(
        asset_key=mirror_key(name),
        check_name=CONFLICTS_CHECK,
        passed=not rows,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"a person has to decide: {named}" if rows else "no conflict is open",
        metadata=metadata,
    )


def _evaluate_both_sides(connection: Connection, two_way: TwoWay) -> dg.AssetCheckEvaluation:
    counts = count_links(connection, two_way)
    waiting = list_waiting_records(connection, two_way, most=_MOST)
    metadata: dict[str, Any] = asdict(counts)
    if waiting:
        columns = ["entity", "key", "reason", "detail", "since"]
        metadata["not linked"] = shown_table((columns, [[row[column] for column in columns] for row in waiting]))
    return dg.AssetCheckEvaluation(
        asset_key=mirror_key(two_way.ours.entity),
        check_name=BOTH_SIDES_CHECK,
        passed=not counts.ambiguous,
        severity=dg.AssetCheckSeverity.WARN,
        description=(
            f"{counts.linked} linked, {counts.only_ours} only in {two_way.ours.entity}, {counts.only_theirs} only in "
            f"{two_way.theirs.entity}, {counts.ambiguous} ambiguous, {counts.not_yet} wait"
        ),
        metadata=metadata,
    )
