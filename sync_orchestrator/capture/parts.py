"""Which tables of a source are captured, and for which parts of which entities. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sync_orchestrator.config import Config, PartSettings
from sync_orchestrator.core.archive.absent_fields import mapped_fields


@dataclass(frozen=True, slots=True)
class CapturedPart:
    """A part of an entity, and how a table's rows tell of it.

    Attributes:
        key_column: The column that has the record's key.
        is_row: A row of the table is the part. Otherwise a change of a row leads to a read of its record.
        is_own_table: A row of the table is the record itself, which ends with it.
        needed: Columns without which a row is of no use: key, group, version, what the mapping reads.
        is_owner: It decides whether the record exists, and its business group.
    """

    entity: str
    source: str
    settings: PartSettings
    key_column: str
    is_row: bool
    is_own_table: bool
    needed: frozenset[str]
    is_owner: bool = False


@dataclass(frozen=True, slots=True)
class CapturedTable:
    """A table of a source, as the configuration names it, and the parts that its rows tell of."""

    name: str
    parts: tuple[CapturedPart, ...]

    @property
    def schema(self) -> str:
        """Its schema; empty where the connection's search path finds it."""
        return self.name.rpartition(".")[0]

    @property
    def relation(self) -> str:
        """Its name without the schema."""
        return self.name.rpartition(".")[2]

    @property
    def key_columns(self) -> list[str]:
        """The columns that have keys of records."""
        return sorted({part.key_column for part in self.parts})

    @property
    def entities(self) -> list[str]:
        """The entities that it tells of."""
        return sorted({part.entity for part in self.parts})


def list_captured_tables(config: Config, source: str) -> list[CapturedTable]:
    """Returns the tables of a source whose changes the configuration wants to be captured."""
    by_table: dict[str, list[CapturedPart]] = {}
    for entity, part, changes in config.captured_parts(source):
        assert part.sql is not None
        fields = mapped_fields(config.entities[entity].mapping).get(source, frozenset())
        if not changes.tables:
            assert part.sql.table is not None
            named = {name for name in (part.key, part.version.path, part.group) if name}
            needed = frozenset(named | (fields if part.absent_fields == "refuse" else set()))
            is_owner = config.entities[entity].owner == source
            captured = CapturedPart(entity, source, part, part.key, True, True, needed, is_owner)
            by_table.setdefault(part.sql.table, []).append(captured)
        for number, (table, column) in enumerate(changes.tables.items()):
            captured = CapturedPart(entity, source, part, column, False, not number, frozenset({column}))
            by_table.setdefault(table, []).append(captured)
    return [CapturedTable(name, tuple(parts)) for name, parts in by_table.items()]


def entities_by_table(tables: Sequence[CapturedTable]) -> dict[str, list[str]]:
    """The entities of each table, by its name as configured."""
    return {table.name: table.entities for table in tables}


def numbered_entities(tables: Sequence[CapturedTable]) -> list[str]:
    """The entities whose versions are the numbers of the stream, sorted."""
    return sorted({part.entity for table in tables for part in table.parts if part.settings.version.is_numbered})
