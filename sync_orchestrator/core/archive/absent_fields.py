"""Mapped fields that a part does not have: absent is not null (rule 33).

Which fields of a part the mapping certainly reads, and which of them a part lacks although the archive has a value for
them. Pure functions and one lookup in the archive; adapters check tables and files by the same field names.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jmespath
from sqlalchemy import Connection, Engine

from sync_orchestrator.core.archive import queries
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.ports import Json, PartRead, SourceSystem
from sync_orchestrator.core.source_wrapper import SourceWrapper
from sync_orchestrator.texts.storable_text import text_problem

_HANDLE_ABSENCE = frozenset({"or_expression", "and_expression", "not_expression", "expref"})
"""Expressions whose operands may be absent on purpose, such as ``shop.price || shop.old_price``."""

_FUNCTIONS_OF_ABSENCE = frozenset({"not_null", "coalesce", "type", "keys", "values", "merge", "to_array"})
_BEGIN_WITH_FIRST = frozenset(
    {"pipe", "index_expression", "projection", "value_projection", "filter_projection", "flatten", "subexpression"}
)
"""Expressions whose first operand alone is evaluated on the document itself."""


def mapped_fields(mapping: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """The top-level fields that a mapping certainly reads, by part.

    Args:
        mapping: JMESPath expressions over ``{key, group, <part>: {...}}``, by field of the third party.

    Returns:
        By part (and for ``key`` and ``group``, if they are read that way) the names of fields. A field that an
        expression reads only as one of several alternatives is left out.
    """
    found: dict[str, set[str]] = {}
    for expression in mapping.values():
        for part, name in _list_read_fields(jmespath.compile(expression).parsed):
            found.setdefault(part, set()).add(name)
    return {part: frozenset(names) for part, names in found.items()}


def _list_read_fields(node: object) -> Iterator[tuple[str, str]]:
    """The pairs of part and field that an expression reads of the whole document."""
    for first, then in _list_first_evaluated(node):
        if first["type"] == "field" and then is not None:
            for field, _ in _list_first_evaluated(then):
                if field["type"] == "field":
                    yield str(first["value"]), str(field["value"])


def _list_first_evaluated(node: Any) -> Iterator[tuple[Any, Any]]:
    """What an expression evaluates first on its document, each with the expression that is applied to the result."""
    kind, children = node["type"], node.get("children", [])
    if kind in _HANDLE_ABSENCE or (kind == "function_expression" and node["value"] in _FUNCTIONS_OF_ABSENCE):
        return
    if kind == "field":
        yield node, None
    elif kind in ("subexpression", "pipe") and children[0]["type"] == "field":
        yield children[0], children[1]
    elif kind in _BEGIN_WITH_FIRST:
        yield from _list_first_evaluated(children[0])
    else:
        for child in children:
            yield from _list_first_evaluated(child)


def find_lacking(data: Json, fields: Iterable[str]) -> list[str]:
    """The fields that a part does not have at all, sorted."""
    return sorted(name for name in fields if name not in data)


def find_vanished(data: Json, had: Iterable[str], fields: Iterable[str]) -> list[str]:
    """The mapped fields that a part lacks although its archived state has a value for them, sorted."""
    return sorted(set(find_lacking(data, fields)).intersection(had))


def problem_of(names: Sequence[str], part: str) -> str:
    """Why a part without these fields cannot be used."""
    quoted = ", ".join(f"'{name}'" for name in names)
    return (
        f"mapped field absent: {quoted} (the archive has a value); send null to clear it, or set "
        f"parts.{part}.absent_fields to 'null' if this source leaves out what is null"
    )


def refuse_vanished(
    connection: Connection, entity: str, part: str, rows: Sequence[PartRead], fields: frozenset[str]
) -> list[PartRead]:
    """The rows, with a problem for each whose mapped fields vanished since its archived state.

    Rows that have all mapped fields cost nothing; the others cost one query together.
    """
    suspects = {
        row.key
        for row in rows
        if row.problem is None and not row.deleted and find_lacking(row.data, fields) and text_problem(row.key) is None
    }
    if not suspects:
        return list(rows)
    had = {
        row.key: row.fields
        for row in run(
            connection,
            queries.SELECT_FIELDS_WITH_VALUES,
            entity=entity,
            part=part,
            keys=sorted(suspects),
            fields=sorted(fields),
        )
    }
    return [_refuse_row(row, part, had.get(row.key, ()), fields) if row.key in suspects else row for row in rows]


def _refuse_row(row: PartRead, part: str, had: Iterable[str], fields: Iterable[str]) -> PartRead:
    if row.problem is not None or row.deleted or not (names := find_vanished(row.data, had, fields)):
        return row
    return replace(row, problem=problem_of(names, part))


class CheckedSource(SourceWrapper):
    """A source system whose parts are compared with the archive: one that lost a mapped field cannot be used.

    It covers every read: by key, listings and polls. Listings of keys have no fields.
    """

    def __init__(self, inner: SourceSystem, engine: Engine, entity: str, part: str, fields: frozenset[str]) -> None:
        super().__init__(inner)
        self._engine = engine
        self._entity = entity
        self._part = part
        self._fields = fields

    @property
    def fields(self) -> frozenset[str]:
        """The fields that the mapping reads of the part."""
        return self._fields

    def keys(self, group: str) -> AsyncIterator[list[PartRead]]:
        return self.inner.keys(group)

    async def select_rows(self, rows: list[PartRead]) -> list[PartRead]:
        if not any(row.problem is None and not row.deleted and find_lacking(row.data, self._fields) for row in rows):
            return rows
        return await asyncio.to_thread(
            in_transaction,
            self._engine,
            lambda connection: refuse_vanished(connection, self._entity, self._part, rows, self._fields),
        )
