"""What a run did, as one table of business groups, and the totals of an entity as one series of the mirror."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import dagster as dg

from sync_orchestrator.assets.lineage import mirror_key
from sync_orchestrator.assets.tables import shown_table
from sync_orchestrator.core.operations.status import entity_totals
from sync_orchestrator.core.validation.source_check import SourceCheckResult
from sync_orchestrator.core.validation.validate import GroupValidation
from sync_orchestrator.resources.instance.dagster_internals import Execution, report_events
from sync_orchestrator.resources.system import SystemResource

Row = Mapping[str, Any]
Judged = TypeVar("Judged", GroupValidation, SourceCheckResult)

MAX_ROWS = 1000
"""Business groups in one table; the worst come first."""


def make_table(rows: Sequence[Row]) -> dg.TableMetadataValue:
    """A table of rows; a column is the name of any row's value, in the order in which they first appear."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return shown_table((columns, [[row.get(name) for name in columns] for row in rows[:MAX_ROWS]]))


def compute_totals(rows: Sequence[Row], worst_first: Callable[[Row], Any]) -> dict[str, Any]:
    """The metadata of a run over business groups: sums of all counts, and the table of the groups, the worst first."""
    sums: dict[str, Any] = {"groups": len(rows)}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, int) and not isinstance(value, bool):
                sums[name] = sums.get(name, 0) + value
    if rows:
        sums["by_group"] = make_table(sorted(rows, key=worst_first))
    return sums


class Verdicts:
    """The verdicts of a run over business groups: its figures, its table, and whether it is a success.

    A run that could judge none of its groups is none: nothing is known of any of them.
    """

    def __init__(self, verdicts: Sequence[str], done: str) -> None:
        """``verdicts``: from the worst to the best; ``done``: what is done with a group, such as "validated"."""
        self._verdicts = verdicts
        self._unjudged = f"not_{done}"
        self._done = done
        self._rows: list[Row] = []
        self._broken: list[str] = []

    def add_verdict(self, entity: str, group: str, verdict: str, reason: str | None, figures: Row) -> None:
        """Adds the verdict on one group."""
        self._rows.append({"entity": entity, "group": group, "verdict": verdict, **figures, "reason": reason or ""})

    def worst_last(self, results: Iterable[Judged]) -> Iterator[Judged]:
        """Passes on the results of groups in sync as they come, then the others, those of the worst verdict last.

        Where ``results`` raises Failure at its end, since groups raised errors, ``require_some`` raises it later.
        """
        others: list[Judged] = []
        try:
            for result in results:
                if result.verdict == "in_sync":
                    yield result
                else:
                    others.append(result)
        except dg.Failure as failure:
            self._broken.append(str(failure.description))
        yield from sorted(others, key=lambda result: (result.verdict == self._verdicts[0], result.group))

    def build_metadata(self) -> dict[str, Any]:
        """The number of groups by verdict, the sums of their figures, and the table."""
        counts = Counter(row["verdict"] for row in self._rows)
        return {
            **compute_totals(
                self._rows, lambda row: (self._verdicts.index(row["verdict"]), row["entity"], row["group"])
            ),
            **{verdict: counts[verdict] for verdict in self._verdicts},
        }

    def require_some(self) -> None:
        """Raises Failure where groups raised errors, or where not one group could be judged."""
        reasons = list(self._broken)
        unjudged = [row for row in self._rows if row["verdict"] == self._unjudged]
        if unjudged and len(unjudged) == len(self._rows):
            first = min(unjudged, key=lambda row: (row["entity"], row["group"]))
            reasons.append(
                f"none of {len(unjudged)} business groups could be {self._done}, such as "
                f"{first['entity']} {first['group']}: {first['reason']}"
            )
        if reasons:
            raise dg.Failure("; ".join(reasons), metadata=self.build_metadata(), allow_retries=False)


def observe_totals(context: Execution, system: SystemResource, entities: Sequence[str]) -> None:
    """Reports the totals of entities as observations of their mirrors without a partition.

    The plots of an asset's partitions are one group each. These have one value for all groups, so the plots of
    ``total_…`` are the dashboard of the entity. Called once at the end of a run.
    """
    for name in entities:
        with system.context.engine.begin() as connection:
            found = entity_totals(connection, name)
        report_events(
            context,
            [
                dg.AssetObservation(
                    asset_key=mirror_key(name), metadata={f"total_{what}": value for what, value in found.items()}
                )
            ],
        )
