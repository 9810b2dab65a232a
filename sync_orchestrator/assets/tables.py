"""Tables as metadata of Dagster."""

from __future__ import annotations

import dagster as dg

from sync_orchestrator.core.full_sync.plan_tables import Table


def shown_table(table: Table) -> dg.TableMetadataValue:
    """A table as metadata: what is neither a number nor a text becomes a text."""
    columns, rows = table
    records = [
        dg.TableRecord({name: _format_cell(value) for name, value in zip(columns, row, strict=True)}) for row in rows
    ]
    return dg.MetadataValue.table(records, schema=dg.TableSchema([dg.TableColumn(name) for name in columns]))


def _format_cell(value: object) -> str | int | float:
    return value if isinstance(value, int | float | str) else "" if value is None else str(value)
