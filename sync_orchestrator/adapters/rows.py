"""From a row, as a database or a file gives it, to the part of a record that it tells.

A row that cannot be used says why, and stops no other. Not here: where rows come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from jmespath.exceptions import JMESPathError
from jmespath.parser import ParsedResult

from sync_orchestrator.adapters.answers import shown
from sync_orchestrator.adapters.values import version_of
from sync_orchestrator.config import Part
from sync_orchestrator.core.errors import CallFailed, Failure
from sync_orchestrator.core.events import group_text
from sync_orchestrator.core.expressions import compiled
from sync_orchestrator.core.ports import PartRead

_MAX_FIELDS_SHOWN = 5


class Rows:
    """Reads rows of JSON values by the expressions of a part."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._zone = part.tz
        self._key = compiled(part.key)
        self._version = compiled(part.version.path)
        self._group = compiled(part.group) if part.group else None
        self._deleted = compiled(part.deleted_when) if part.deleted_when else None

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
        deleted = bool(_search(self._deleted, row))
        value = _search(self._group, row)
        group = None if isinstance(value, str) and not value.strip() else group_text(value)
        if group is None and not (value is None or isinstance(value, str)):
            return unusable(key, f"no business group at '{self._part.group}': {value!r}", place)
        return PartRead(key, version, row, group, deleted)


def unusable(key: str, why: str, place: str = "") -> PartRead:
    """A part that cannot be used; the cause comes first, so that its alerts are grouped."""
    return PartRead(key, 0, {}, problem=shown(f"{why} ({place})" if place else why, ()))


def once_each(rows: Sequence[PartRead]) -> list[PartRead]:
    """One row for each key, of rows that were read together.

    Rows that are equal in everything are one. A key with several rows that differ cannot be used: which of them is
    taken would depend on how the source is asked (rule 29).
    """
    by_key: dict[str, list[PartRead]] = {}
    for row in rows:
        by_key.setdefault(row.key, []).append(row)
    if len(by_key) == len(rows):
        return list(rows)
    single: list[PartRead] = []
    for key, same in by_key.items():
        single += same if key == "" else [same[0] if _all_equal(same) else not_unique(key, same)]
    return single


def not_unique(key: str, rows: Sequence[PartRead]) -> PartRead:
    """A key that several rows of its source have."""
    fields = sorted({name for row in rows for name in (*row.data, *rows[0].data)
                     if row.data.get(name) != rows[0].data.get(name) or (name in row.data) != (name in rows[0].data)})
    differ = f", which differ in {', '.join(fields[:_MAX_FIELDS_SHOWN])}" if fields else ", which differ"
    return unusable(key, f"the key is not unique: {len(rows)} rows with key {key}{differ}")


def _all_equal(rows: Iterable[PartRead]) -> bool:
    first, *others = rows
    return all(row == first or repr(row) == repr(first) for row in others)  # NaN is not equal to itself


def missing_fields(fields: Iterable[str], there: Iterable[str], what: str) -> CallFailed | None:
    """The failure of a table or file without columns that the mapping reads; None where it has them all (rule 33)."""
    known = list(there)
    missing = sorted(set(fields).difference(known))
    if not missing:
        return None
    names = ", ".join(f"'{name}'" for name in missing)
    return CallFailed(
        Failure.TRANSIENT, f"{what} has no column {names}, which the mapping reads; it has {', '.join(known)}. Restore "
                           "the column or change the mapping; if it may be null, set the part's absent_fields to "
                           "'null'", about_system=True)


def _search(expression: ParsedResult | None, row: dict[str, Any]) -> Any:
    return None if expression is None else expression.search(row)
