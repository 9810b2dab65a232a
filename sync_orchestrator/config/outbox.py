"""An outbox: a table of a source system's database, whose rows are change events until they are consumed."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from sync_orchestrator.config.types import Expression, Model, Name, Seconds

OUTBOX_DATABASES = ("postgresql", "mysql", "mariadb", "sqlite")
"""The databases that can hold an outbox, as their URLs begin."""


class OutboxColumnSettings(Model):
    """The names of an outbox's columns, by default those of Debezium's outbox."""

    id: str = Field(default="id", min_length=1)
    """The event's id. No two rows may have the same: give the column a primary key."""
    aggregatetype: str = Field(default="aggregatetype", min_length=1)
    """The entity."""
    aggregateid: str = Field(default="aggregateid", min_length=1)
    """The record's key."""
    type: str = Field(default="type", min_length=1)
    """What happened: ``created``, ``updated`` or ``deleted``, unless ``actions`` of the outbox says otherwise."""
    payload: str | None = Field(default="payload", min_length=1)
    """The whole part, as JSON. Where it is NULL, or the column is null here, the part is read from its source."""
    version: str | None = Field(default=None, min_length=1)
    """The part's version. Without it, the version is read from the payload."""
    group: str | None = Field(default=None, min_length=1)
    """The business group, where the payload does not have it."""

    def list_used(self, *, of_own_format: bool) -> list[str]:
        """Returns the columns that the table needs; with ``of_own_format`` the source's ``events`` name the others."""
        named = [self.id, self.payload]
        if not of_own_format:
            named += [self.aggregatetype, self.aggregateid, self.type, self.version, self.group]
        return [name for name in named if name is not None]


class OutboxSettings(Model):
    """A table that an application or a trigger writes in the business transaction. Rows that are recorded are deleted.

    The user of the database needs the rights SELECT and DELETE on it.
    """

    table: str = Field(min_length=1)
    """The table, with its schema where needed."""
    columns: OutboxColumnSettings = OutboxColumnSettings()
    order_by: list[str] = []
    """Columns by which the rows are taken, such as a sequence or a time; by default the id."""
    entities: dict[str, Name] = {}
    """The names of entities in the table, and ours: ``{Order: order}``; by default they are the same."""
    actions: dict[str, Literal["created", "updated", "deleted"]] = {}
    """The table's words for what happened, and ours: ``{OrderPlaced: created}``."""
    version: Expression | None = None
    """Where the version is in the payload; by default where the part's ``version`` says."""
    version_unit: Literal["s", "ms", "us", "ns"] = "s"
    """What a time that is a number counts since 1970."""
    poll_every: Seconds = Field(default=0.5, ge=0.02, le=60)
    """How often an empty table is looked at."""

    @model_validator(mode="after")
    def _check_version(self) -> Self:
        if self.version is not None and self.columns.version is not None:
            raise ValueError("version: 'columns.version' names a column, too: leave one of them out")
        if self.version is not None and self.columns.payload is None:
            raise ValueError("version: is a place in the payload, and 'columns.payload' is null: set 'columns.version'")
        return self

    def list_event_settings(self) -> list[str]:
        """Returns the settings that say what a row means, where they are set."""
        names = ("entities", "actions", "version", "version_unit")
        return [name for name in names if name in self.model_fields_set] + [
            f"columns.{name}"
            for name in ("aggregatetype", "aggregateid", "type", "version", "group")
            if name in self.columns.model_fields_set
        ]
