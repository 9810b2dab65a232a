"""Changes whose notifications never came: how they are recorded, made up for, and reported. One transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection

from sync_orchestrator.core.context import EntityContext
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ledger.recording import ChangeEvent
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.validation import queries

LostChangeKind = Literal["missing", "newer", "gone", "older", "different"]

PartPlace = tuple[str, str]
"""Part and key."""


@dataclass(frozen=True, slots=True)
class LostChange:
    """A change whose notification never came.

    The archive lacks the part (``missing``), has an older one (``newer`` at the source), one that the source does not
    have (``gone``), a newer one (``older`` at the source), or other content of the same version (``different``).
    ``version``: of the source; of the archive for what is gone.
    """

    part: str
    key: str
    kind: LostChangeKind
    version: int

    @property
    def place(self) -> PartPlace:
        """Its part and key."""
        return self.part, self.key


def record_lost_changes(
    connection: Connection, entity: str, group: str, lost: Sequence[LostChange], on_the_way: Collection[LostChange]
) -> list[PartPlace]:
    """Records what a check found, and forgets what the archive has caught up with.

    Args:
        connection: The transaction of the check.
        entity: The entity of the group.
        group: The business group that was checked.
        lost: What is lost.
        on_the_way: What has a change event on its way. It stays recorded until the archive has it.

    Returns:
        The part and key of what was found for the first time.
    """
    place = {"entity": entity, "group": group}
    new = run(connection, queries.INSERT_LOST_CHANGES, **place, **_build_columns(lost))
    run(connection, queries.DELETE_LOST_CHANGES, **place, **_build_columns([*lost, *on_the_way]))
    run(connection, queries.ADD_LOST_CHANGES, entity=entity, source=[row.part for row in new])
    return [(row.part, row.key) for row in new]


def count_open_lost_changes(connection: Connection, entity: str, group: str) -> int:
    """Counts the lost changes of a group that the archive does not have yet."""
    return int(run(connection, queries.COUNT_OPEN_LOST_CHANGES, entity=entity, group=group)[0].n)


def recovery_events(
    entity: EntityContext,
    group: str,
    lost: Sequence[LostChange],
    rows: Mapping[PartPlace, PartRead],
    read_sequence: int,
) -> list[ChangeEvent]:
    """Returns the change events that make up for lost changes.

    Where a part can be read by key, the event has it read again. What an unreadable source no longer lists is left to a
    full sync, which proves its listing complete.
    """
    readable = entity.rules.readable
    return [
        _recovery_event(entity, group, change, rows, read_sequence)
        for change in lost
        if change.kind != "gone" or change.part in readable
    ]


def _recovery_event(
    entity: EntityContext, group: str, lost: LostChange, rows: Mapping[PartPlace, PartRead], read_sequence: int
) -> ChangeEvent:
    """A change may be lost again: the id stands for it only while its event is active."""
    row = None if lost.part in entity.rules.readable else rows.get(lost.place)
    deleted = lost.kind == "gone" or (row is not None and row.deleted)
    return ChangeEvent(
        lost.part,
        f"audit/{entity.name}/{lost.key}/{lost.kind}/{lost.version}",
        entity.name,
        lost.key,
        "delete" if deleted else "create" if lost.part == entity.rules.owner else "update",
        lost.version,
        None if row is None or deleted else row.data,
        group,
        "audit",
        read_sequence=read_sequence if row is not None or deleted else 0,
        content_id=True,
    )


def report_lost_changes(
    connection: Connection,
    entity: EntityContext,
    group: str,
    *,
    lost: Sequence[LostChange],
    new: Sequence[PartPlace],
    held: str | None,
) -> None:
    """Raises the alerts of what was found for the first time, and ends those of which nothing is left.

    Args:
        connection: The transaction of the check.
        entity: The entity of the group.
        group: The business group that was checked.
        lost: What is lost.
        new: The part and key of what was found for the first time.
        held: Why what looks gone is not taken for deleted, None where it is.
    """
    name = entity.name
    alerts.lock_alert_decision(connection, "lost_notifications", name)  # groups are checked beside each other
    older = {change.place for change in lost if change.kind == "older"}
    for part in sorted({part for part, _ in new}):
        keys = [key for of, key in new if of == part]
        alerts.raise_alert_for_records(
            connection,
            "lost_notifications",
            f"{name} {part}",
            f"{name}: notifications of '{part}' never came",
            name,
            [key for key in keys if (part, key) not in older],
        )
        alerts.raise_alert_for_records(
            connection,
            "source_behind",
            f"{name} {part}: older",
            f"{name}: '{part}' shows records at an older version than the archive",
            name,
            [key for key in keys if (part, key) in older],
        )
    still = {row.part for row in run(connection, queries.LIST_PARTS_WITH_LOST_CHANGES, entity=name)}
    for part in sorted(entity.sources.keys() - still):
        alerts.resolve_alert(connection, "lost_notifications", f"{name} {part}")
        alerts.resolve_alert(connection, "source_behind", f"{name} {part}: older")
    place = f"{name} {group}: sources"
    if held is None:
        alerts.resolve_alert(connection, "delete_cap", place)
    else:
        alerts.raise_alert(connection, "delete_cap", place, f"{name} {group}: {held}", entity=name)


def _build_columns(lost: Sequence[LostChange]) -> dict[str, object]:
    return {
        "part": [change.part for change in lost],
        "key": [change.key for change in lost],
        "kind": [change.kind for change in lost],
        "version": [change.version for change in lost],
    }
