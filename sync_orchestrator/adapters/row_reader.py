"""From a row, as a database or a file gives it, to the part of a record that it tells.

A row that cannot be used says why, and stops no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jmespath.exceptions import JMESPathError
from jmespath.parser import ParsedResult

from sync_orchestrator.adapters.http.responses import sanitize_text
from sync_orchestrator.config import PartSettings
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.values.names import NoName, are_alike, canonical_name, spelt_otherwise
from sync_orchestrator.core.values.source_versions import version_of
from sync_orchestrator.errors import CallFailed, Failure
from sync_orchestrator.expressions.selectors import compile_selector
from sync_orchestrator.expressions.truth import NoTruth, parse_condition

_NO_NAMES: Mapping[str, object] = {}

_MAX_FIELDS_SHOWN = 5


class Rows:
    """Reads rows of JSON values by the expressions of a part."""

    def __init__(self, part: PartSettings) -> None:
        self._part = part
        self._zone = part.tz
        self._key = compile_selector(part.key)
        self._version = None if part.version.is_numbered else compile_selector(part.version.path)
        self._group = compile_selector(part.group) if part.group else None
        self._deleted = parse_condition(part.deleted_when) if part.deleted_when else None
        self._only = parse_condition(part.only_when) if part.only_when else None

    def part_of(self, row: dict[str, object], place: str = "", names: Mapping[str, object] = _NO_NAMES) -> PartRead:
        """The part that a row tells.

        ``place``: where the row stands, which is told of one that cannot be used. ``names``: by field, a key or group
        more exactly than JSON has it.
        """
        named = {**row, **names} if names else row
        try:
            if self._only is not None and not self._only.holds(row):
                return self._pass_over(row, named)
        except NoTruth as error:
            return build_unusable_part(self._pass_over(row, named).key, f"only_when: {error}", place)
        try:
            key = canonical_name(self._key.search(named))
            if key is None:
                return build_unusable_part("", f"no key at '{self._part.key}'", place)
            return self._part_of(key, row, place, named)
        except NoName as error:
            return build_unusable_part("", f"no key at '{self._part.key}': {error}", place)
        except JMESPathError as error:
            return build_unusable_part("", str(error), place)

    def _pass_over(self, row: dict[str, object], named: dict[str, object]) -> PartRead:
        try:
            version = None if self._version is None else self._version.search(row)
            return pass_over(self._key.search(named), version, self._part)
        except JMESPathError:
            return pass_over(None, None, self._part)

    def _part_of(self, key: str, row: dict[str, object], place: str, named: dict[str, object]) -> PartRead:
        try:
            version = self._version_of(row)
        except ValueError as error:
            return build_unusable_part(key, f"no version at '{self._part.version.path}': {error}", place)
        try:
            deleted = self._deleted is not None and self._deleted.holds(row)
        except NoTruth as error:
            return build_unusable_part(key, f"deleted_when: {error}", place)
        try:
            value = _search_row(self._group, named)
            group = None if isinstance(value, str) and not value.strip() else canonical_name(value)
        except NoName as error:
            return build_unusable_part(key, f"no business group at '{self._part.group}': {error}", place)
        return PartRead(key, version, row, group, deleted)

    def _version_of(self, row: dict[str, object]) -> int:
        """The version that a row names; 0 where the source has none, since its stream numbers the changes."""
        settings = self._part.version
        if self._version is None or settings.kind == "log":
            return 0
        return version_of(self._version.search(row), settings.kind, self._zone)


def pass_over(key: object, version: object, part: PartSettings) -> PartRead:
    """An item that is no record (``only_when``), by what is at the places of its key and its version.

    It says of a record only that it is gone. Without a version it says nothing.
    """
    try:
        name = canonical_name(key)
        number = 0 if part.version.kind == "log" else version_of(version, part.version.kind, part.tz)
    except (NoName, ValueError):
        name, number = None, 0
    return PartRead(name or "", number, {}, deleted=True, passed_over=True)


def build_unusable_part(key: str, why: str, place: str = "") -> PartRead:
    """A part that cannot be used; the cause comes first, so that its alerts are grouped."""
    return PartRead(key, 0, {}, problem=sanitize_text(f"{why} ({place})" if place else why, ()))


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
    fields = sorted(
        {
            name
            for row in rows
            for name in (*row.data, *rows[0].data)
            if row.data.get(name) != rows[0].data.get(name) or (name in row.data) != (name in rows[0].data)
        }
    )
    differ = f", which differ in {', '.join(fields[:_MAX_FIELDS_SHOWN])}" if fields else ", which differ"
    return build_unusable_part(key, f"the key is not unique: {len(rows)} rows with key {key}{differ}")


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
        Failure.TRANSIENT,
        f"{what} has no column {names}, which the mapping reads; it has {', '.join(known)}. Restore "
        "the column or change the mapping; if it may be null, set the part's absent_fields to "
        "'null'",
        about_system=True,
    )


def select_requested_rows(keys: Sequence[str], rows: Sequence[PartRead]) -> list[PartRead]:
    """Of the rows that a source gave for some keys those that are of these keys.

    Where it gave one under another spelling of a key, that key is told to be unusable: it is not absent.
    """
    wanted, found = set(keys), {row.key for row in rows}
    others = [row.key for row in rows if row.key not in wanted]
    missed = {key: other for key in wanted - found if others for other in others if are_alike(other, key)}
    return [
        *(row for row in rows if row.key in wanted),
        *(PartRead(key, 0, {}, problem=spelt_otherwise(other, key)) for key, other in sorted(missed.items())),
    ]


def _search_row(expression: ParsedResult | None, row: dict[str, object]) -> Any:
    return None if expression is None else expression.search(row)
