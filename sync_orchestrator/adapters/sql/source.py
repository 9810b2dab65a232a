"""A part in a source system's own database: pages by keyset, read by key, counted.

Keys and business groups are texts to us and whatever type they have there: they are compared there in that type, in
the database's own order.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Concatenate, ParamSpec, TypeVar
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    TextClause,
    bindparam,
    column,
    func,
    inspect,
    literal_column,
    or_,
    select,
    table,
    text,
)
from sqlalchemy.types import NullType

from sync_orchestrator.adapters.custom.base import Source
from sync_orchestrator.adapters.row_reader import (
    missing_fields,
    once_each,
    select_requested_rows,
)
from sync_orchestrator.adapters.sql.changes import has_index_on, list_open_transactions, place_in_column
from sync_orchestrator.adapters.sql.database import SourceDatabase
from sync_orchestrator.adapters.sql.rows import SqlRows
from sync_orchestrator.config import PartSettings
from sync_orchestrator.config.sources import ColumnChangeSettings, SqlPartSettings
from sync_orchestrator.core.ports import OpenTransactions, PartRead, Ungrouped
from sync_orchestrator.core.values.names import are_alike, list_spellings, name_or_none, to_nfc
from sync_orchestrator.core.values.plain_json import as_json
from sync_orchestrator.errors import CallFailed, Failure
from sync_orchestrator.texts.storable_text import text_problem

P = ParamSpec("P")
T = TypeVar("T")
Convert = Callable[[str], object]

_CONVERT: dict[type, Convert] = {str: str, int: int, UUID: UUID, Decimal: Decimal}
_MAX_SQLITE_INTEGER = 2**63
_KEYS_AT_ONCE = 500
_EXAMPLES = 5
_PADDED = 100
_SAMPLES = 20
_COLON = re.compile(r"(?<![:\\]):(?=\w)")


@dataclass(frozen=True, slots=True)
class _Types:
    """How the texts of keys and groups become values of their columns; None while there is no row to tell."""

    key: Convert | None
    group: Convert | None


@dataclass(frozen=True, slots=True)
class _Page:
    """A page: its parts, the key of its last row as the database has it, and whether the listing ends with it."""

    parts: list[PartRead]
    last: object
    ends: bool


class SqlSource(Source):
    """Implements ``core.ports.SourceSystem``. Rows without a key are no records."""

    keyset_listing = True
    can_read = True
    can_list_keys = True

    def __init__(self, database: SourceDatabase, part: PartSettings, fields: Collection[str] = ()) -> None:
        """``fields``: columns that the mapping reads; a table without one of them is refused."""
        assert part.sql is not None
        self._fields = frozenset(fields)
        self._key_is_unique: bool | None = None
        self._database = database
        self._part = part
        self._page = part.sql.page
        self.read_many_size = part.read_many_size
        self._rows = SqlRows(part)
        self._key: ColumnElement[Any] = column(part.key)
        self._group: ColumnElement[Any] | None = column(part.group) if part.group else None
        self._from = _build_from_clause(part.sql)
        self._what = f"table {part.sql.table}" if part.sql.table else "the query of sql.query"
        self._version: ColumnElement[Any] = column(part.version.path)
        self.can_poll = isinstance(part.changes, ColumnChangeSettings)
        self._types = _Types(None, None)
        self._all_columns: ColumnElement[Any] = literal_column("*")
        self._padding: dict[str, bool] = {}

    async def read_many(self, keys: Sequence[str]) -> list[PartRead]:
        """The parts of those keys that it has, in chunks of ``read_many_size``."""
        size = self._part.read_many_size
        chunks = [keys[at : at + size] for at in range(0, len(keys), size)]
        return [row for chunk in chunks for row in await self._run_in_database(self._read_chunk, chunk)]

    async def pages(self, group: str, after: str | None = None) -> AsyncIterator[tuple[list[PartRead], str | None]]:
        """Pages of a business group in the order of the key; ``after`` goes on behind that key.

        Keys may be the same in the database's order though they differ (by a collation, or since the column is not
        unique): such rows are never divided by the end of a page. A key with several rows is one part,
        which is unusable where they differ.
        """
        async for rows, last in self._of_pages(self._build_select(), group, after):
            yield rows, last

    async def keys(self, group: str) -> AsyncIterator[list[PartRead]]:
        """The same of its columns key, version and group alone; of all, where conditions may need them."""
        columns = dict.fromkeys(name for name in (self._part.key, self._part.version.path, self._part.group) if name)
        is_conditional = self._part.deleted_when is not None or self._part.only_when is not None
        chosen = self._build_select(*() if is_conditional else (column(name) for name in columns))
        async for rows, _ in self._of_pages(chosen, group):
            yield rows

    async def _of_pages(
        self, chosen: Select[Any], group: str, after: str | None = None
    ) -> AsyncIterator[tuple[list[PartRead], str | None]]:
        last = None if after is None else await self._run_in_database(self._convert_position, after)
        while True:
            page = await self._run_in_database(self._read_page, chosen, group, last)
            if page.parts:
                last = page.last
                yield page.parts, _to_name(last)
            if page.ends:
                return

    async def changes(self, since: int) -> AsyncIterator[list[PartRead]]:
        """Pages of the rows from a version on, in the order of version and key. Only where ``can_poll``."""
        last: tuple[object, object] | None = None
        bound = await self._run_in_database(self._bound_of_version, since)
        while bound is not None:
            rows, last = await self._run_in_database(self._read_changes, bound, last)
            if rows:
                yield rows
            if last is None:
                return

    async def open_transactions(self) -> OpenTransactions | None:
        """The transactions that are open in its database, or None where that cannot say."""
        return await self._run_in_database(list_open_transactions)

    async def has_version_index(self) -> bool | None:
        """Whether the table has an index by which its changes are found; None for a query, a view or without polls."""
        assert self._part.sql is not None
        name = self._part.sql.table
        if name is None or not self.can_poll:
            return None
        return await self._run_in_database(has_index_on, name, self._part.version.path)

    async def count(self, group: str) -> int | None:
        """How many rows the group has; None for a part that is not grouped, or whose rows are not all records."""
        if self._group is None or self._part.only_when is not None:
            return None
        return await self._run_in_database(self._count_rows, group)

    async def groups(self) -> list[str] | None:
        """The business groups that its rows name; None for a part that is not grouped."""
        if self._group is None:
            return None
        found = await self._run_in_database(self._distinct_groups)
        named = dict.fromkeys(_to_name(value) for value in found)
        return [group for group in named if group is not None and group.strip()]

    async def ungrouped(self) -> Ungrouped | None:
        """The rows whose business group is NULL, empty or blank.

        None for a part that is not grouped, or whose rows are not all records.
        """
        if self._group is None or self._part.only_when is not None:
            return None
        return await self._run_in_database(self._without_group)

    async def repeated(self, group: str) -> Ungrouped | None:
        """The rows of a group beyond the first of their keys, with some of these keys."""
        return await self._run_in_database(self._beyond_keys, group)

    async def close(self) -> None:
        """Closes the pool of connections."""
        await self._database.close()

    async def _run_in_database(
        self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return await self._database.run_on_connection(self._what, lambda connection: work(connection, *args, **kwargs))

    def _convert_position(self, connection: Connection, after: str) -> object:
        return _convert_value(connection, self._resolve_types(connection).key, after)

    def _read_chunk(self, connection: Connection, keys: Sequence[str]) -> list[PartRead]:
        convert = self._resolve_types(connection).key
        values = [
            value
            for key in keys
            for spelling in list_spellings(key)
            if (value := _convert_value(connection, convert, spelling, alike_will_do=True)) is not None
        ]
        if not values:
            return []
        chosen = self._build_select().where(self._key.in_(bindparam("keys", values, NullType(), expanding=True)))
        rows = [
            self._rows.part_of(row)
            for row in self._trim_padding(connection, self._fetch_whole_rows(connection, chosen))
        ]
        return once_each(select_requested_rows(keys, rows))  # a collation may take other keys for these

    def _read_page(self, connection: Connection, wanted: Select[Any], group: str, last: object) -> _Page:
        """A page with all rows of its last key: one part for each key."""
        chosen = self._of_group(connection, wanted, group)
        if chosen is None:
            return _Page([], None, ends=True)
        behind = chosen if last is None else chosen.where(self._key > bindparam("after", last, NullType()))
        rows = list(_fetch_rows(connection, behind.order_by(self._key).limit(self._page)))
        ends = len(rows) < self._page
        if not ends:
            same = list(
                _fetch_rows(
                    connection, chosen.where(self._key == bindparam("same", rows[-1][self._part.key], NullType()))
                )
            )
            shown = {repr(row) for row in same}
            rows = [row for row in rows if repr(row) not in shown] + (same or rows[-1:])
        if not rows:
            return _Page([], None, ends=True)
        whole = wanted.selected_columns[0] is self._all_columns
        self._refuse_missing(rows[0] if whole else None)
        return _Page(self._one_each(connection, rows, whole=whole), rows[-1][self._part.key], ends=ends)

    def _bound_of_version(self, connection: Connection, since: int) -> object:
        """A version as a value of its column; None while there is no row to tell its type."""
        self._resolve_types(connection)
        some = self._build_select(self._version).where(self._version.is_not(None)).limit(_SAMPLES)
        samples = connection.execute(some).scalars().all()
        if not samples:
            return None
        kind = self._part.version.kind
        assert kind != "log"  # it is not polled
        return place_in_column(since, kind, samples, self._part.tz, self._what)

    def _read_changes(
        self, connection: Connection, bound: object, last: tuple[object, object] | None
    ) -> tuple[list[PartRead], tuple[object, object] | None]:
        """A page from a version on, or behind the last row of a page; and its last row, None where it is the end."""
        chosen = self._build_select().where(self._version >= bindparam("since", last[0] if last else bound, NullType()))
        if last is not None:
            beyond = self._version > bindparam("version", last[0], NullType())
            chosen = chosen.where(or_(beyond, self._key > bindparam("after", last[1], NullType())))
        rows = list(_fetch_rows(connection, chosen.order_by(self._version, self._key).limit(self._page)))
        if not rows:
            return [], None
        self._refuse_missing(rows[0])
        final = rows[-1][self._part.version.path], rows[-1][self._part.key]
        return self._one_each(connection, rows, whole=True), final if len(rows) == self._page else None

    def _one_each(self, connection: Connection, rows: Sequence[dict[str, object]], *, whole: bool) -> list[PartRead]:
        """One part for each key. Rows of a key that a page does not show whole, or that are in other groups, count."""
        parts = [self._rows.part_of(row) for row in self._trim_padding(connection, (dict(row) for row in rows))]
        suspects = self._repeated_keys(connection, rows, parts)
        if not suspects:
            return once_each(parts)
        verdicts: dict[str, list[PartRead]] = {}
        for at in range(0, len(suspects), _KEYS_AT_ONCE):
            for part in self._read_chunk(connection, suspects[at : at + _KEYS_AT_ONCE]):
                verdicts.setdefault(part.key, []).append(part)
        judged = []
        for part in parts:
            judged += verdicts.pop(part.key, []) if part.key in suspects else [part]
        return once_each(judged)

    def _repeated_keys(
        self, connection: Connection, rows: Sequence[dict[str, object]], parts: Sequence[PartRead]
    ) -> list[str]:
        """The keys of a page that more than one row of the source has, in whatever group."""
        if self._has_unique_key(connection):
            return []
        values = list(dict.fromkeys(row[self._part.key] for row in rows))
        found: set[str] = set()
        for at in range(0, len(values), _KEYS_AT_ONCE):
            chosen = self._build_select(self._key).where(
                self._key.in_(bindparam("keys", values[at : at + _KEYS_AT_ONCE], NullType(), expanding=True))
            )
            repeated = connection.execute(chosen.group_by(self._key).having(func.count() > 1)).scalars()
            found |= {_fold_key(_to_name(value)) for value in repeated}
        return list(dict.fromkeys(part.key for part in parts if part.key and _fold_key(part.key) in found))

    def _has_unique_key(self, connection: Connection) -> bool:
        """Whether the database itself keeps the key unique; a query cannot say."""
        if self._key_is_unique is None:
            self._key_is_unique = (
                self._part.sql is not None
                and self._part.sql.table is not None
                and _is_unique(connection, self._part.sql.table, self._part.key)
            )
        return self._key_is_unique

    def _without_group(self, connection: Connection) -> Ungrouped:
        assert self._group is not None
        nowhere: ColumnElement[bool] = self._group.is_(None)
        if self._resolve_types(connection).group is str:
            nowhere = or_(nowhere, func.trim(self._group) == bindparam("nothing", "", NullType()))
        number = int(connection.execute(self._build_select(func.count()).where(nowhere)).scalar_one())
        if not number:
            return Ungrouped(0)
        keys = connection.execute(self._build_select(self._key).where(nowhere).limit(_EXAMPLES)).scalars()
        return Ungrouped(number, self._shown_keys(keys))

    def _beyond_keys(self, connection: Connection, group: str) -> Ungrouped:
        chosen = self._of_group(connection, self._build_select(func.count(), func.count(self._key.distinct())), group)
        if chosen is None:
            return Ungrouped(0)
        rows, keys = connection.execute(chosen).one()
        if rows == keys:
            return Ungrouped(0)
        repeated = self._of_group(connection, self._build_select(self._key), group)
        assert repeated is not None
        some = connection.execute(repeated.group_by(self._key).having(func.count() > 1).limit(_EXAMPLES)).scalars()
        return Ungrouped(int(rows) - int(keys), self._shown_keys(some))

    def _shown_keys(self, values: Iterable[object]) -> tuple[str, ...]:
        return tuple(_to_name(value) or "" for value in values)

    def _fetch_whole_rows(self, connection: Connection, chosen: Select[Any]) -> Iterator[dict[str, object]]:
        """Whole rows. Raises CallFailed where they lack a column that the mapping reads."""
        for number, row in enumerate(_fetch_rows(connection, chosen)):
            if not number:
                self._refuse_missing(row)
            yield row

    def _refuse_missing(self, row: dict[str, object] | None) -> None:
        if row is not None and (failure := missing_fields(self._fields, row, self._what)) is not None:
            raise failure

    def _trim_padding(self, connection: Connection, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows without the blanks that pad their key and group, where the database takes no account of these."""
        found = list(rows)
        for told in (self._key, self._group):
            padded = [row for row in found if told is not None and _is_padded(row.get(told.name))]
            if told is not None and padded and self._is_padded_column(connection, told, padded[0][told.name]):
                for row in padded:
                    row[told.name] = row[told.name].rstrip(" ")
        return found

    def _is_padded_column(self, connection: Connection, told: ColumnElement[Any], text: str) -> bool:
        """Whether a column pads its texts, as CHAR does: the database finds one without the blanks at its end."""
        if told.name not in self._padding:
            bare = bindparam("bare", text.rstrip(" "), NullType())
            found = connection.execute(self._build_select(told).where(told == bare).distinct().limit(_PADDED)).scalars()
            self._padding[told.name] = text in found.all()
        return self._padding[told.name]

    def _count_rows(self, connection: Connection, group: str) -> int:
        chosen = self._of_group(connection, self._build_select(func.count()), group)
        return 0 if chosen is None else int(connection.execute(chosen).scalar_one())

    def _distinct_groups(self, connection: Connection) -> list[object]:
        self._resolve_types(connection)
        assert self._group is not None
        chosen = self._build_select(self._group).where(self._group.is_not(None)).distinct()
        return [row[self._group.name] for row in self._trim_padding(connection, _fetch_rows(connection, chosen))]

    def _build_select(self, *what: ColumnElement[Any]) -> Select[Any]:
        chosen = select(*(what or (self._all_columns,)))
        return chosen.select_from(self._from).where(self._key.is_not(None))

    def _of_group(self, connection: Connection, chosen: Select[Any], group: str) -> Select[Any] | None:
        """Narrowed to a business group; None for one that cannot be there."""
        convert = self._resolve_types(connection).group
        if self._group is None:
            return chosen
        values = [
            value
            for spelling in list_spellings(group)
            if (value := _convert_value(connection, convert, spelling)) is not None
        ]
        if len(values) == 1:
            return chosen.where(self._group == bindparam("group", values[0], NullType()))
        if not values:
            return None
        return chosen.where(self._group.in_(bindparam("groups", values, NullType(), expanding=True)))

    def _resolve_types(self, connection: Connection) -> _Types:
        """The types of its key and group. Raises CallFailed for a column that is not there."""
        grouped = self._group is not None
        if self._types.key is None or (grouped and self._types.group is None):
            self._check_columns(connection)
            self._types = _Types(
                self._find_converter(connection, self._key, "key"),
                None if self._group is None else self._find_converter(connection, self._group, "group"),
            )
        return self._types

    def _check_columns(self, connection: Connection) -> None:
        everything: Select[Any] = select(literal_column("*")).select_from(self._from).limit(1)
        there = list(connection.execute(everything).keys())
        needed = {"key": self._part.key, "group": self._part.group, "version.path": self._part.version.path or None}
        for name, wanted in needed.items():
            if wanted is not None and wanted not in there:
                raise CallFailed(
                    Failure.PERMANENT,
                    f"{self._what} has no column '{wanted}', which {name} names; it has {', '.join(there)}",
                )

    def _find_converter(self, connection: Connection, told: ColumnElement[Any], name: str) -> Convert | None:
        sample = connection.execute(self._build_select(told).where(told.is_not(None)).limit(1)).scalar()
        if sample is None:
            return None
        if type(sample) not in _CONVERT:
            raise CallFailed(
                Failure.PERMANENT,
                (
                    f"{self._what}: its {name} is a {type(sample).__name__}, which has no plain text: give it "
                    "as a text with sql.query"
                ),
            )
        return _CONVERT[type(sample)]


def _build_from_clause(sql: SqlPartSettings) -> FromClause | TextClause:
    if sql.table is not None:
        schema, _, name = sql.table.rpartition(".")
        return table(name, schema=schema or None)
    return text(_as_table((sql.query or "").strip().rstrip(";")))


def _as_table(query: str) -> str:
    """The line break ends a comment; a colon is no parameter of ours."""
    return "(" + _COLON.sub(r"\\:", query) + "\n) sync_part"


def _is_unique(connection: Connection, name: str, key: str) -> bool:
    """Whether a table has a primary key or a unique constraint of this column alone."""
    schema, _, table_name = name.rpartition(".")
    try:
        with connection.begin_nested():
            inspector = inspect(connection)
            primary = inspector.get_pk_constraint(table_name, schema or None)["constrained_columns"]
            unique = [found["column_names"] for found in inspector.get_unique_constraints(table_name, schema or None)]
    except Exception:  # a view, a database that SQLAlchemy cannot inspect: then the rows are counted
        return False
    return [key] in [list(primary), *unique]


def _fold_key(key: str | None) -> str:
    """A key as most collations compare it."""
    return (key or "").rstrip().casefold()


def _fetch_rows(connection: Connection, chosen: Select[Any]) -> Iterator[dict[str, object]]:
    return (dict(row) for row in connection.execute(chosen).mappings())


def _to_name(value: object) -> str | None:
    return name_or_none(value if isinstance(value, Decimal) else as_json(value))


def _is_padded(value: object) -> bool:
    return isinstance(value, str) and value.endswith(" ") and not value.isspace()


def _convert_value(connection: Connection, convert: Convert | None, told: str, *, alike_will_do: bool = False) -> Any:
    """A key or group in the type of its column; None for one that cannot be there.

    ``alike_will_do``: a number that the text is another spelling of, such as 7 for "007", will do.
    SQLite knows no whole numbers of more than 64 bits, and its driver refuses them; others may hold larger ones.
    """
    if convert is None or text_problem(told) is not None:
        return None
    try:
        value = convert(told)
    except (ValueError, InvalidOperation):
        return None
    if (
        isinstance(value, int)
        and connection.dialect.name == "sqlite"
        and not -_MAX_SQLITE_INTEGER <= value < _MAX_SQLITE_INTEGER
    ):
        return None
    name = _to_name(value)
    fits = name == to_nfc(told) or (alike_will_do and name is not None and are_alike(name, told))
    return value if fits else None
