"""The texts of alerts: what happened, where to look, what to do. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Row

_MAX_LINES = 10
_MAX_EXAMPLES = 10

ACTIONS = {
    "dead": "Read the errors (`sync-orchestrator records list --dead`) and fix the cause. Then have the records pushed "
    "again (`sync-orchestrator records redrive ENTITY --cause TEXT`), or discard them (`records discard`).",
    "on_hold": "The outcome of a create is unknown and cannot be looked up. See which records are on hold "
    "(`sync-orchestrator records list --dead`) and check them at the third party. Create those that are not "
    "there (`sync-orchestrator records redrive ENTITY KEYS --absent`).",
    "breaker_open": "Nothing is lost: pushes go on by themselves when a probe succeeds. Look at the third party.",
    "drift": "See the check's samples. While the daemon runs, repair is automatic unless `validation.repair` says "
    "otherwise: with `ask`, launch the job `repair`. It does not fix what is persistent: the "
    "third party rounds or changes that value, so adapt the mapping.",
    "version_in_future": "A source's clock is wrong, or the version is: fix it there, then `records refresh`.",
    "stuck_waiting": "What these belong to or refer to never came: full-sync its group, or make it at the third party. "
    "Records that only others make there (`creates: never`) are updated once they are there.",
    "source_behind": "The source does not show what it announced: it lags, was restored, or answers wrongly; or its "
    "events have a version, such as the time of sending, that its records never have. Look at "
    "the source. When it shows the records, the changes go on by themselves; a full sync takes over "
    "what it shows now.",
    "overdue": "Work is due and not done: see that the daemon runs and the sensor is on.",
    "sensor_stalled": "Events are recorded and wait. Check that the daemon runs and the sensor `change_events` is on.",
    "worker_stalled": "Start a worker: `sync-orchestrator up` runs one, `sync-orchestrator worker` runs one alone. Its "
    "log (`worker.log`) says why it stopped, or why a task fails. Nothing is lost: outcomes wait, and polls go on "
    "where they were.",
    "not_validated": "See that the schedule `validation` is on and that the third party answers: until then nobody "
    "knows whether these groups are in sync.",
    "delete_cap": "Look whether the source really lost these records, then launch the full sync with a higher cap.",
    "invalid_source_records": "Fix the records at their source; the next full sync of the group takes them.",
    "poll_failing": "See that the source is up and lets us in: until it answers, its changes are not known here.",
    "rejected": "Read why (`sync-orchestrator rejected list`), fix the mapping or the sender, then retry or discard.",
    "consumer_down": "See that the broker is up, and the queue and the login are right: changes wait there until then.",
    "capture_down": "The source keeps its log meanwhile. See that the source answers and that `sync-orchestrator "
    "capture` runs. `sync-orchestrator capture prepare` prints the SQL for what the source lacks. A publication that "
    "was dropped has to be made again, and full syncs are needed after that.",
    "conflicts": "Decide them: sync-orchestrator conflicts list, then conflicts resolve.",
    "capture_behind": "Look at the source for a transaction that is open for long, and at this database for its load.",
    "capture_lost": "Run full syncs of the entities that are named: until then nobody knows whether they are in sync. "
    "Where the source was restored from a backup, begin a new epoch first (`sync-orchestrator epoch SOURCE`).",
    "source_truncated": "Run full syncs of the entities that are named: they delete what is gone, within the caps.",
    "outcome_undeliverable": "Check that the receiver is up and accepts our calls. Only outcomes wait for it.",
    "lost_notifications": "A source changed records and told nobody: see that it posts an event for each change. What "
    "was lost is made up for unless `source_check.repair` says otherwise: with `ask`, launch the "
    "job `repair`.",
    "rollout_fell_back": "Callers are served by legacy. See how the new path fared (`sync-orchestrator rollout show`), "
    "fix it, then set the share again.",
    "adoption_needed": "Nothing is lost: changes are recorded, and nothing is sent. Find out what was restored or "
    "changed, then run `sync-orchestrator adopt` (docs/operations.md, After a restore).",
    "id_reused": "The other record was left alone; ours is looked up by its key or created again. Find out why the "
    "third party gave an id twice: a restore there, or an id that is free again after a delete.",
    "invalid_partition_name": "Rename these groups at their source. They need a partition to be filled and validated.",
    "conservation": "Events do not add up: keep the database as it is and look at `sync-orchestrator status`.",
    "run_failed": "Open the run in the UI; the ledger goes on where it stopped.",
}
PERSISTENT = ": persistent"
"""The end of the cause of drift that comes back after a repair."""

_OF_RECORDS = (
    "dead",
    "on_hold",
    "version_in_future",
    "stuck_waiting",
    "lost_notifications",
    "id_reused",
    "source_behind",
)
_AT_THE_MIRROR = (
    "dead",
    "on_hold",
    "version_in_future",
    "stuck_waiting",
    "drift",
    "delete_cap",
    "invalid_source_records",
    "not_validated",
    "id_reused",
)
_TOGETHER = {
    "drift": "drift in {} groups",
    "delete_cap": "deletions held back at {} places",
    "invalid_source_records": "parts that cannot be used in {} groups",
    "stuck_waiting": "changes wait for {} causes",
    "lost_notifications": "notifications of {} sources never came",
    "source_behind": "sources do not show what they announced, for {} causes",
    "breaker_open": "{} third parties do not answer as they should",
    "run_failed": "runs of {} jobs failed",
    "rejected": "messages of {} consumers cannot be read",
    "capture_down": "changes of {} sources are not captured",
    "conflicts": "conflicts of {} entities wait for a person",
    "capture_behind": "captured changes of {} sources are behind",
    "capture_lost": "captured changes of {} sources are missing",
    "source_truncated": "tables of {} sources were emptied",
    "consumer_down": "{} brokers cannot be consumed from",
    "outcome_undeliverable": "{} receivers do not take outcomes",
    "adoption_needed": "pushes to {} third parties are suspended",
}


@dataclass(frozen=True, slots=True)
class DueAlert:
    """An alert that is due for a receiver.

    Attributes:
        n: How many records it hits, or how often it was raised.
        was_told: Whether the receiver was told of it before.
    """

    id: int
    kind: str
    cause: str
    entity: str | None
    title: str
    n: int
    examples: Sequence[object]
    updated_at: datetime
    resolved_at: datetime | None
    was_told: bool

    @classmethod
    def from_row(cls, row: Row[Any]) -> DueAlert:
        """Reads a row of ``CLAIM_DUE_ALERTS``."""
        return cls(
            id=row.id,
            kind=row.kind,
            cause=row.cause,
            entity=row.entity,
            title=row.title,
            n=row.n,
            examples=row.examples,
            updated_at=row.updated_at,
            resolved_at=row.resolved_at,
            was_told=row.told,
        )


def action_for(kind: str) -> str:
    """What an operator does about an alert of a kind."""
    return ACTIONS.get(kind, "See docs/operations.md.")


def compose_message(alerts: Sequence[DueAlert], ui_url: str) -> tuple[str, str]:
    """Title and text for alerts of one kind and entity that are told of together.

    Either all of them are over or none is. Whoever was told of all of them before is told that they go on.
    """
    first = alerts[0]
    title = _title_of(alerts)
    lines = [f"What: {_line_of(alert, single=len(alerts) == 1)}" for alert in alerts[:_MAX_LINES]]
    if len(alerts) > _MAX_LINES:
        lines.append(f"and {len(alerts) - _MAX_LINES} more")
    if first.resolved_at is not None:
        last = max(alert.resolved_at for alert in alerts if alert.resolved_at is not None)
        return f"Over: {title}", "\n".join([*lines, f"Over since {last:%Y-%m-%d %H:%M:%S %Z}."])
    examples = islice(chain.from_iterable(alert.examples for alert in alerts), _MAX_EXAMPLES)
    if said := ", ".join(map(str, examples)):
        lines.append(f"Examples: {said}")
    lines.append(f"Where: {ui_url}{_page_of(first)}")
    lines.append(f"Do: {action_for(first.kind)}")
    return f"Still: {title}" if all(alert.was_told for alert in alerts) else title, "\n".join(lines)


def _title_of(alerts: Sequence[DueAlert]) -> str:
    first = alerts[0]
    if len({alert.title for alert in alerts}) == 1:
        return str(first.title)
    causes = {alert.cause.removesuffix(PERSISTENT) for alert in alerts}
    together = _TOGETHER.get(first.kind, f"{{}} alerts of {first.kind}").format(len(causes))
    return f"{first.entity}: {together}" if first.entity else together


def _line_of(alert: DueAlert, *, single: bool) -> str:
    """A count of records says how many; elsewhere the title does."""
    return f"{alert.cause} ({alert.n})" if single or alert.kind in _OF_RECORDS else str(alert.title)


def _page_of(alert: DueAlert) -> str:
    if alert.entity and alert.kind in _AT_THE_MIRROR:
        return f"/assets/{alert.entity}/mirror"
    if alert.entity and alert.kind in ("lost_notifications", "source_behind"):
        return f"/assets/{alert.entity}/archive"
    return "/runs" if alert.kind == "run_failed" else "/overview"
