"""Conflicts as they are kept: each value that a policy overruled, and each that waits for a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sync_orchestrator.core.db.session import run, to_jsonb
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.two_way import queries
from sync_orchestrator.core.two_way.three_way import Winner, same

if TYPE_CHECKING:
    from sqlalchemy import Connection


@dataclass(frozen=True, slots=True)
class NewConflict:
    """A conflict that a merge has found. ``field`` None: one side has deleted the record.

    ``ours_at`` and ``theirs_at`` are in microseconds since 1970; None where a side does not say when it changed.
    ``winner`` None: a person decides.
    """

    key: str
    theirs_key: str
    group: str | None
    field: str | None
    agreed: object
    ours: object
    theirs: object
    ours_at: int | None
    theirs_at: int | None
    policy: str
    winner: Winner | None


class ConflictLog:
    """Gathers the conflicts of a merge, and writes down what is new and what is over.

    Args:
        connection: The transaction of the merge.
        entity: The entity that has ``two_way``.
    """

    def __init__(self, connection: Connection, entity: str) -> None:
        self._connection = connection
        self._entity = entity
        self._open: dict[tuple[str, str | None], Any] = {}
        self._new: list[NewConflict] = []
        self._ended: dict[int, str] = {}

    def load(self, keys: Sequence[str]) -> None:
        """Reads the open conflicts of linked records."""
        if keys:
            for row in run(self._connection, queries.LIST_OPEN_OF_RECORDS, entity=self._entity, keys=list(keys)):
                self._open[row.key, row.field] = row

    def note(self, conflict: NewConflict) -> None:
        """Notes a conflict. One that is open already stays as it is; with other values it is overtaken."""
        before = self._open.pop((conflict.key, conflict.field), None)
        if before is not None:
            if conflict.winner is None and same(before.ours, conflict.ours) and same(before.theirs, conflict.theirs):
                return
            self._ended[before.id] = "overtaken"
        self._new.append(conflict)

    def forget_open(self, key: str) -> None:
        """Leaves the open conflicts of a record as they are: whoever has decided them writes that down."""
        for place in [place for place in self._open if place[0] == key]:
            self._ended.pop(self._open.pop(place).id, None)

    def end_others(self, key: str, still_open: set[str | None], state: Literal["over", "overtaken"] = "over") -> None:
        """Ends the open conflicts of a record but those of these fields.

        Args:
            key: The key of our record.
            still_open: The fields whose conflicts stay as they are.
            state: ``over``: there is nothing left to decide; ``overtaken``: by a newer change.
        """
        for place in [place for place in self._open if place[0] == key and place[1] not in still_open]:
            self._ended[self._open.pop(place).id] = state

    def write(self) -> None:
        """Writes down new conflicts and the ends of others, and alerts people of those that wait for them."""
        if self._ended:
            run(
                self._connection,
                queries.END_CONFLICTS,
                id=list(self._ended),
                state=list(self._ended.values()),
            )
        if self._new:
            run(self._connection, queries.INSERT_CONFLICTS, entity=self._entity, **self._columns())
            by_field: dict[str, list[str]] = {}
            for conflict in self._new:
                if conflict.winner is None:
                    by_field.setdefault(_name_cause(self._entity, conflict.field), []).append(conflict.key)
            for cause, keys in sorted(by_field.items()):
                alerts.raise_alert_for_records(
                    self._connection,
                    "conflicts",
                    cause,
                    f"{self._entity}: both sides have changed records, and a person has to decide",
                    self._entity,
                    keys,
                )
        if self._ended:
            resolve_alerts(self._connection, self._entity)

    def _columns(self) -> dict[str, list[Any]]:
        new = self._new
        return {
            "group_key": [each.group for each in new],
            "key": [each.key for each in new],
            "theirs_key": [each.theirs_key for each in new],
            "field": [each.field for each in new],
            "agreed": [to_jsonb(each.agreed) for each in new],
            "ours": [to_jsonb(each.ours) for each in new],
            "theirs": [to_jsonb(each.theirs) for each in new],
            "ours_at": [None if each.ours_at is None else float(each.ours_at) for each in new],
            "theirs_at": [None if each.theirs_at is None else float(each.theirs_at) for each in new],
            "policy": [each.policy for each in new],
            "winner": [None if each.winner is None else str(each.winner) for each in new],
        }


def count_open_conflicts(connection: Connection, entity: str) -> dict[str | None, int]:
    """Counts the conflicts that wait for a person, by field; of None: records that one side has deleted."""
    return {row.field: row.n for row in run(connection, queries.COUNT_OPEN_CONFLICTS, entity=entity)}


def resolve_alerts(connection: Connection, entity: str) -> None:
    """Resolves the alerts of fields about which no conflict is open any more."""
    told = [row.cause for row in run(connection, queries.LIST_CONFLICT_ALERTS, entity=entity)]
    if told:
        still_open = {_name_cause(entity, field) for field in count_open_conflicts(connection, entity)}
        for cause in sorted(set(told) - still_open):
            alerts.resolve_alert(connection, "conflicts", cause)


def _name_cause(entity: str, field: str | None) -> str:
    return f"{entity}: {field or 'deleted on one side'}"
