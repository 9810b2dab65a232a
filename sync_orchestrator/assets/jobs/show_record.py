"""The job that shows everything known of one record, as tables of its run.

Thin: it is read by ``core/operations/records.py``.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from sync_orchestrator import exact_json
from sync_orchestrator.assets.jobs.by_group import IN_ONE_RUN
from sync_orchestrator.assets.options import all_defaults, op_with, with_choices
from sync_orchestrator.assets.tables import shown_table
from sync_orchestrator.config import Config
from sync_orchestrator.core.operations.records import read_biography
from sync_orchestrator.errors import SyncError
from sync_orchestrator.resources.job_names import SHOW_RECORD
from sync_orchestrator.resources.system import SystemResource

MAX_ROWS = 200
MAX_CELL_LENGTH = 2000
_LISTS = ("parts", "events", "pushes", "drift")


class RecordOptions(dg.Config):
    """Which record is shown."""

    entity: str = Field(description="The entity of the record.")
    key: str | None = Field(default=None, description="The key of the record, as the sources have it.")


def show_one_record(
    context: dg.OpExecutionContext, config: RecordOptions, system: SystemResource
) -> Iterator[dg.Output[None]]:
    """Shows a record's state, parts, events, pushes and drift."""
    if not config.key:
        raise dg.Failure("name the record: its `key` is empty", allow_retries=False)
    with system.keep_alive():
        try:
            with system.context.engine.begin() as connection:
                found = read_biography(connection, config.entity, config.key)
        except SyncError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
    record = found["record"] or {"not archived": "yet"}
    metadata: dict[str, Any] = {
        "state": shown_table(
            (["field", "value"], [[name, _format_cell(value)] for name, value in record.items() if value is not None])
        )
    }
    for name in _LISTS:
        metadata |= _list_metadata(name, found[name])
    context.log.info(f"{config.entity} '{config.key}': " + ", ".join(f"{len(found[name])} {name}" for name in _LISTS))
    yield dg.Output(None, metadata=metadata)


def _list_metadata(name: str, rows: Sequence[Mapping[str, object]]) -> dict[str, Any]:
    """A list as a table of its newest rows, without the columns that are empty everywhere."""
    if not rows:
        return {name: "none"}
    columns = [column for column in rows[0] if any(row[column] is not None for row in rows)]
    newest = rows[:MAX_ROWS] if name == "drift" else rows[-MAX_ROWS:]  # drift begins with the newest
    shown = {name: shown_table((columns, [[_format_cell(row[column]) for column in columns] for row in newest]))}
    return shown if len(newest) == len(rows) else {**shown, f"{name} in all": len(rows)}


def _format_cell(value: object) -> Any:
    if isinstance(value, dict | list):
        value = exact_json.dump_text(value, spaced=True)
    elif isinstance(value, bytes | memoryview):
        value = bytes(value).hex()
    return value if value is None or isinstance(value, int | float) else str(value)[:MAX_CELL_LENGTH]


def record_job(config: Config) -> dg.JobDefinition:
    """The job that shows a record; its first entity is the default."""
    options = with_choices(RecordOptions, entity=list(config.entities))
    show_op = op_with(show_one_record, options)

    @dg.job(
        name=SHOW_RECORD,
        **IN_ONE_RUN,
        config=all_defaults(show_op.name, options),
        description=(
            "Shows everything known of one record: its state, parts, events, pushes and drift. The same as "
            "`sync-orchestrator records show`."
        ),
    )
    def show_record() -> None:
        show_op()

    return show_record
