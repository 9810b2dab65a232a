"""From a row, as a database or a file gives it, to the part of a record that it tells.

A row that cannot be used says why, and stops no other. Not here: where rows come from.
"""

from __future__ import annotations

from typing import Any

from jmespath.exceptions import JMESPathError
from jmespath.parser import ParsedResult

from sync_orchestrator.adapters.answers import shown
from sync_orchestrator.adapters.values import version_of
from sync_orchestrator.config import Part
from sync_orchestrator.core.events import group_text
from sync_orchestrator.core.expressions import compiled
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.truth import NoTruth, condition


class Rows:
    """Reads rows of JSON values by the expressions of a part."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._zone = part.tz
        self._key = compiled(part.key)
        self._version = compiled(part.version.path)
        self._group = compiled(part.group) if part.group else None
        self._deleted = condition(part.deleted_when) if part.deleted_when else None

    def part_of(self, row: dict[str, Any], place: str = "") -> PartRead:
        """The part that a row tells. ``place``: where the row stands, which is told of one that cannot be used."""
        try:
            key = group_text(self._key.search(row))
            if key is None:
                return unusable("", f"no key at '{self._part.key}'", place)
            return self._part_of(key, row, place)
        except JMESPathError as error:
            return unusable("", str(error), place)

    def _part_of(self, key: str, row: dict[str, Any], place: str) -> PartRead:
        try:
            version = version_of(self._version.search(row), self._part.version.kind, self._zone)
        except ValueError as error:
            return unusable(key, f"no version at '{self._part.version.path}': {error}", place)
        try:
            deleted = self._deleted is not None and self._deleted.holds(row)
        except NoTruth as error:
            return unusable(key, f"deleted_when: {error}", place)
        value = _search(self._group, row)
        group = group_text(value)
        if group is None and value not in (None, ""):
            return unusable(key, f"no business group at '{self._part.group}': {value!r}", place)
        return PartRead(key, version, row, group, deleted)


def unusable(key: str, why: str, place: str = "") -> PartRead:
    """A part that cannot be used; the cause comes first, so that its alerts are grouped."""
    return PartRead(key, 0, {}, problem=shown(f"{why} ({place})" if place else why, ()))


def _search(expression: ParsedResult | None, row: dict[str, Any]) -> Any:
    return None if expression is None else expression.search(row)
