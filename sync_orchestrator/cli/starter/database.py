"""Reads the tables and columns of a source's database, by SQLAlchemy's inspector."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Inspector, create_engine, inspect, types
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, NoSuchTableError, SQLAlchemyError

from sync_orchestrator.cli.starter.columns import Column, ColumnKind
from sync_orchestrator.errors import ConfigError

_KINDS: tuple[tuple[type[object], ColumnKind], ...] = (
    (types.DateTime, "time"),
    (types.Boolean, "bool"),
    (types.Numeric, "number"),
    (types.Integer, "number"),
    (types.LargeBinary, "binary"),
    (types.String, "text"),
    (types.Uuid, "text"),
)


@dataclass(frozen=True, slots=True)
class Table:
    """A table or view as ``sync.yaml`` names it, with its columns and the columns of its indexes."""

    name: str
    columns: tuple[Column, ...]
    indexes: tuple[tuple[str, ...], ...]


def database_url(text: str) -> URL:
    """A database URL; one of Postgres that names no driver gets the one that is installed.

    Raises ConfigError for a URL that is none. The message does not repeat it, since it may hold a password.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigError("--source-url: write https://host, or driver://user@host/database for a database") from None
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgres", "postgresql") else url


def list_tables(url: URL) -> list[str]:
    """The names of all tables and views, those outside of the default schema with their schema.

    Raises ConfigError where the database cannot be read.
    """
    with _open_inspector(url) as inspector:
        default = inspector.default_schema_name
        found = []
        for schema in inspector.get_schema_names():
            if schema in ("information_schema", "pg_catalog", "mysql", "performance_schema", "sys"):
                continue
            prefix = "" if schema == default else f"{schema}."
            found += [
                prefix + name
                for name in (*inspector.get_table_names(schema=schema), *inspector.get_view_names(schema=schema))
            ]
        return sorted(found)


def read_table(url: URL, name: str) -> Table:
    """The columns of a table or view.

    Raises ConfigError where the database cannot be read or has no such table; the message names those that it has.
    """
    schema, _, table = name.rpartition(".")
    with _open_inspector(url) as inspector:
        try:
            found = inspector.get_columns(table, schema=schema or None)
        except NoSuchTableError:
            raise ConfigError(
                f"--source-table: unknown table '{name}'; expected one of: "
                f"{', '.join(list_tables(url)) or 'none, the database is empty'}"
            ) from None

        def read_if_known(read: Callable[..., Any]) -> Any:
            try:
                return read(table, schema=schema or None)
            except NotImplementedError:  # a dialect need not know all of it
                return {}

        primary = (read_if_known(inspector.get_pk_constraint) or {}).get("constrained_columns") or []
        # SQLite keeps unique constraints as indexes that SQLAlchemy leaves out by default.
        more: dict[str, Any] = {"include_auto_indexes": True} if url.get_backend_name() == "sqlite" else {}
        indexes = [
            index
            for index in read_if_known(partial(inspector.get_indexes, **more)) or ()
            if None not in index["column_names"]
        ]
        unique = [each["column_names"] for each in read_if_known(inspector.get_unique_constraints) or ()]
        unique += [
            index["column_names"]
            for index in indexes
            if index.get("unique") and not (index.get("dialect_options") or {}).get("postgresql_where")
        ]
        foreign = {
            name for key in read_if_known(inspector.get_foreign_keys) or () for name in key["constrained_columns"]
        }
    ordered = [tuple(names) for names in (primary, *unique, *(index["column_names"] for index in indexes))]
    return Table(
        name,
        tuple(
            Column(
                name=column["name"],
                kind=_classify_type(column["type"]),
                is_primary=column["name"] in primary,
                is_unique=primary == [column["name"]] or [column["name"]] in unique,
                is_indexed=any(names[:1] == (column["name"],) for names in ordered),
                is_foreign=column["name"] in foreign,
                is_nullable=bool(column.get("nullable", True)) and column["name"] not in primary,
            )
            for column in found
        ),
        tuple(dict.fromkeys(names for names in ordered if names)),
    )


def _classify_type(kind: object) -> ColumnKind:
    return next((name for known, name in _KINDS if isinstance(kind, known)), "other")


@contextmanager
def _open_inspector(url: URL) -> Iterator[Inspector]:
    engine: Engine | None = None
    try:
        is_file = url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:")
        if is_file and not Path(str(url.database)).exists():  # connecting would make an empty one
            raise ConfigError(f"--source-url: there is no file {url.database}")
        engine = create_engine(url, hide_parameters=True)
        yield inspect(engine)
    except NoSuchModuleError:
        raise ConfigError(
            f"--source-url: unknown kind of database '{url.drivername}'; install the package that "
            "brings it to SQLAlchemy"
        ) from None
    except ImportError as error:
        raise ConfigError(
            f"--source-url: {url.drivername} needs the driver '{error.name}': pip install {error.name}"
        ) from None
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise ConfigError(f"--source-url: {url.render_as_string(hide_password=True)}: {reason}") from None
    finally:
        if engine is not None:
            engine.dispose()
