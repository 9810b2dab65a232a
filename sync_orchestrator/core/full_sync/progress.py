"""Shows the progress of a running full sync, by group and in all: records read, changed, written, waiting, failing.

The figures come from the full sync itself and from the archive, so they are those of the moment.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import psycopg
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.failure_causes import cause_of_error
from sync_orchestrator.core.full_sync import queries
from sync_orchestrator.core.full_sync.fill import Progress
from sync_orchestrator.core.systems.overview import describe_call_limit, list_systems
from sync_orchestrator.core.systems.pauses import why_push_waits

REPORT_SECONDS = 5.0
"""The time between two reports."""

_MAX_ERRORS = 500
_MAX_CAUSES = 3
_MAX_GROUPS_SHOWN = 12


@dataclass(slots=True)
class Figures:
    """Records of a business group, or of all: ``waiting`` are due later or under way, ``failing`` have an error.

    ``causes``: of the failing ones, by how many have it. Of very many, the newest are looked at.
    """

    read: int = 0
    changed: int = 0
    written: int = 0
    waiting: int = 0
    failing: int = 0
    causes: Counter[str] = field(default_factory=Counter)

    def add(self, other: Figures) -> None:
        """Adds another group's figures."""
        for name in ("read", "changed", "written", "waiting", "failing"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.causes.update(other.causes)

    def to_text(self) -> str:
        """The figures in one line."""
        failing = f"{self.failing} failing"
        if self.causes:
            cause, count = self.causes.most_common(1)[0]
            failing += f" ({count} of them: {cause})"
        return f"{self.read} read, {self.changed} changed, {self.written} written, {self.waiting} waiting, {failing}"


class SyncProgress:
    """The progress of one full sync of some business groups of an entity."""

    def __init__(self, context: Context, entity: EntityContext) -> None:
        self._context = context
        self._entity = entity
        self._own: dict[str, Figures] = {}
        self._ended: set[str] = set()
        self._before = 0, time.monotonic()

    def of_group(self, group: str) -> Progress:
        """Takes what the full sync of a group reports."""
        own = self._own.setdefault(group, Figures())

        def note_count(phase: str, count: int) -> None:
            if phase == "read":
                own.read = max(own.read, count)
            elif phase == "changed":
                own.changed = max(own.changed, count)
            elif phase == "push":
                own.written = max(own.written, count)

        return note_count

    def note_ended(self, group: str) -> None:
        """A group is done, well or not."""
        self._ended.add(group)

    def read_lines(self) -> list[str]:
        """The groups under way, and all of them, as they are now; a query, so not for the event loop."""
        with self._context.engine.begin() as connection:
            figures = self.read_figures(connection)
            system = list_systems(connection).get(self._entity.system_name)
            waits = why_push_waits(connection, self._entity.name, self._entity.system_name)
        total = Figures()
        for each in figures.values():
            total.add(each)
        now = time.monotonic()
        before, at = self._before
        self._before = total.written, now
        rate = max(0, total.written - before) / max(0.001, now - at)
        state = f"{len(self._ended)} of {len(self._own)} groups ended; {total.to_text()}; {rate:.1f} written a second"
        if system is not None:
            state += f"; breaker {system['breaker']}"
            limit = system["call_limit"]
            state += f"; {describe_call_limit(self._entity.system_name, limit)}" if limit else "; no limit of calls"
        under_way = [name for name in figures if name not in self._ended]
        shown = [f"{name}: {figures[name].to_text()}" for name in under_way[:_MAX_GROUPS_SHOWN]]
        return [*shown, f"{self._entity.name}: {state}", *([] if waits is None else [waits])]

    def read_figures(self, connection: Connection) -> dict[str, Figures]:
        """The present figures by group."""
        found = read_outstanding(connection, self._entity.name, self._own)
        return {
            name: Figures(
                own.read, own.changed, own.written, found[name].waiting, found[name].failing, found[name].causes
            )
            for name, own in self._own.items()
        }


def group_left_over(connection: Connection, entity: EntityContext, group: str) -> str | None:
    """What of a business group is not in sync after its full sync, and why; None where nothing is left.

    Changes that came after the group's completion and did not fail are on their way, and not left over.
    """
    figures = Figures()
    for row in run(connection, queries.COUNT_OUTSTANDING_OF_COMPLETED, entity=entity.name, groups=[group]):
        figures.waiting, figures.failing = row.waiting, row.failing
    if not (figures.waiting or figures.failing):
        return None
    figures.causes = read_outstanding(connection, entity.name, [group])[group].causes
    counts = ", ".join(
        f"{n} records {what}" for what, n in (("waiting", figures.waiting), ("failing", figures.failing)) if n
    )
    causes = "; ".join(f"{count}: {cause}" for cause, count in figures.causes.most_common(_MAX_CAUSES))
    waits = why_push_waits(connection, entity.name, entity.system_name)
    return f"{counts}" + (f" ({entity.system_name}: {causes})" if causes else "") + (f"; {waits}" if waits else "")


def read_outstanding(connection: Connection, entity: str, groups: Collection[str]) -> dict[str, Figures]:
    """What of some business groups is not in sync now: waiting, failing, and why."""
    found = {name: Figures() for name in groups}
    for row in run(connection, queries.COUNT_OUTSTANDING_OF_GROUPS, entity=entity, groups=list(groups)):
        found[row.group_key].waiting += row.waiting
        found[row.group_key].failing += row.failing
    for row in run(connection, queries.LIST_ERRORS_OF_GROUPS, entity=entity, groups=list(groups), most=_MAX_ERRORS):
        found[row.group_key].causes[cause_of_error(row.error, row.key)] += 1
    return found


def left_over(connection: Connection, entity: str, groups: Collection[str], failed_events: int) -> str | None:
    """What is not in sync after a full sync, why, and the next command; None where nothing is left."""
    total = Figures()
    for each in read_outstanding(connection, entity, groups).values():
        total.add(each)
    if not (total.waiting or total.failing or failed_events):
        return None
    causes = "; ".join(f"{count}: {cause}" for cause, count in total.causes.most_common(_MAX_CAUSES))
    what = (
        f"not in sync: {total.waiting} records are waiting and {total.failing} failing"
        + (f" ({causes})" if causes else "")
        + (f", {failed_events} events failed" if failed_events else "")
    )
    if total.failing:
        command = f"`sync-orchestrator records list {entity} --dead` lists dead ones, `status` shows the third party"
    elif failed_events:
        command = "`sync-orchestrator events list` shows them"
    else:
        command = "`sync-orchestrator drain`, or a running system, pushes what is waiting"
    return f"{what}. Next: {command}"


@asynccontextmanager
async def report_regularly(
    progress: SyncProgress, tell: Callable[[list[str]], None], every: float = REPORT_SECONDS
) -> AsyncIterator[None]:
    """Passes the lines of a progress to ``tell`` every few seconds while the block lasts."""

    async def report_lines() -> None:
        while True:
            await asyncio.sleep(every)
            try:
                lines = await asyncio.to_thread(progress.read_lines)
            except (SQLAlchemyError, psycopg.Error) as error:  # the full sync itself says what is wrong
                lines = [f"the progress cannot be read: {type(error).__name__}"]
            tell(lines)

    reporting = asyncio.create_task(report_lines())
    try:
        yield
    finally:
        reporting.cancel()
        await asyncio.wait([reporting])
