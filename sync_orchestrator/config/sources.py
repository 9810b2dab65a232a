"""Source systems, and what of an entity each of them says."""

from __future__ import annotations

import re
from codecs import lookup
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from sync_orchestrator.config.call_checks import check_names
from sync_orchestrator.config.calls import CountCallSettings, FilterCheckSettings, ListCallSettings, ReadCallSettings
from sync_orchestrator.config.http_access import HttpSettings, check_address
from sync_orchestrator.config.intake import SourceSettings
from sync_orchestrator.config.types import ClassName, Expression, Model, Name, Seconds, Template
from sync_orchestrator.expressions.templates import names_in

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BINLOG_URLS = ("mysql+pymysql://", "mariadb+pymysql://")
_CALLS = ("read", "read_many", "keys", "count", "groups", "changes")


def _check_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError):  # by what is wrong with the name
        raise ValueError(f"there is no time zone '{value}'; write one such as Europe/Berlin") from None
    return value


Zone = Annotated[str, AfterValidator(_check_zone)]
"""A time zone by its name, such as ``Europe/Berlin``."""
_HOW_TO_POLL = {
    "rest": "configure that call",
    "sql": "say changes: {by: column}, or have the source system send change events",
    "files": "a source system of kind files is not polled, so have it send change events",
}


class RestSourceSettings(SourceSettings, HttpSettings):
    """A source system behind an HTTP API."""

    kind: Literal["rest"] = "rest"


class CaptureSettings(Model):
    """The stream of the database's log, by which the changes of its tables are captured. One for each database."""

    url: str | None = Field(default=None, repr=False)
    """The primary server, with a user that may replicate; by default the source's ``url``."""
    slot: str = Field(default="sync_orchestrator", pattern=r"^[a-z0-9_]{1,63}$")
    """The replication slot of Postgres. Two sources must not have the same slot of one server."""
    server_id: int | None = Field(default=None, ge=1, le=2**32 - 1)
    """The number by which MySQL or MariaDB knows the stream. No other reader or replica of the server may have it. By
    default it is made of the stream's name and our database."""
    publication: str = Field(default="sync_orchestrator", min_length=1, max_length=63)
    """The publication of Postgres, which has the captured tables."""
    max_retained_bytes: int = Field(default=2 * 1024**3, ge=1024**2)
    """Alert when the source keeps more of its log than this for the stream; of MySQL and MariaDB, when more of the log
    is not read yet."""
    max_behind_seconds: Seconds = Field(default=60, gt=0)
    """Alert when the stream is behind the source by more than this."""
    max_stall_seconds: Seconds = Field(default=60, gt=0)
    """For ``version: {kind: log}``: a full sync or a source check fails when the stream that it waits for has not moved
    for this time."""


class SqlSourceSettings(SourceSettings):
    """A source system's own database, read and never written."""

    kind: Literal["sql"]
    url: str = Field(repr=False)
    """Any SQLAlchemy URL, such as ``postgresql+psycopg://user:${PASSWORD}@host/name``; its driver must be installed."""
    connections: int = Field(default=4, ge=1, le=100)
    """Connections at once, in one process."""
    timeout: Seconds = 30
    """How long one statement may take."""
    capture: CaptureSettings | None = None
    """How the database's log is read, for parts with ``changes: {by: log}``."""

    @property
    def has_binlog(self) -> bool:
        """Whether it is a MySQL or MariaDB, whose log is a binlog."""
        return self.url.startswith(_BINLOG_URLS)

    @model_validator(mode="after")
    def _check_capture(self) -> SqlSourceSettings:
        if self.capture is None:
            return self
        foreign = ("slot", "publication") if self.has_binlog else ("server_id",)
        for name in foreign:
            if name in self.capture.model_fields_set:
                raise ValueError(
                    f"capture.{name} belongs to {'Postgres' if self.has_binlog else 'MySQL and MariaDB'}: leave it out"
                )
        if self.capture.url is not None and self.capture.url.startswith(_BINLOG_URLS) != self.has_binlog:
            raise ValueError("capture.url must name the same kind of database as url, with the same driver")
        return self


class FileSourceSettings(SourceSettings):
    """Files that a source system leaves: CSV, JSON Lines, Parquet. For first loads."""

    kind: Literal["files"]
    folder: str
    """Where they are."""


class ClassSourceSettings(SourceSettings, HttpSettings):
    """A source system behind a Python class of yours; with ``base_url`` it is given an HTTP client, too."""

    kind: Literal["class"] = "class"
    adapter: ClassName
    """``module:Class``, a subclass of ``adapters.base.SourceAdapter``."""
    settings: dict[str, object] = Field(default={}, repr=False)
    """What it is given."""
    base_url: str = Field(default="", pattern=r"^https?://", validate_default=False)
    """The address that all paths stand below, where it calls an API over HTTP."""
    timeout: Seconds = 10
    """The deadline of one call; the class is given up where a method, or a page, takes twice as long."""

    @model_validator(mode="after")
    def _check_reachability(self) -> ClassSourceSettings:
        check_address(self)
        return self


class SharedSourceSettings(SourceSettings):
    """A source system that is a third party, too: one system, which is called through one client."""

    kind: Literal["rest"] = "rest"
    same_as: Name
    """The third party that it is. The source has its name. It is called with the address, headers, login, rate, limits,
    deadlines and throttling of the third party, and waits while its circuit breaker is open."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_shared_settings(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        for name in (*HttpSettings.model_fields, "rate", "in_flight_window", "breaker"):
            if name in value:
                raise ValueError(f"{name}: the third party '{value.get('same_as')}' decides it: leave it out here")
        if "adapter" in value or value.get("kind", "rest") != "rest":
            raise ValueError("same_as: is for sources of kind rest: leave out 'kind' and 'adapter'")
        return value


def _find_source_kind(value: object) -> str:
    if not isinstance(value, dict):
        return "shared" if isinstance(value, SharedSourceSettings) else str(getattr(value, "kind", "rest"))
    if "same_as" in value:
        return "shared"
    return str(value.get("kind", "class" if "adapter" in value else "rest"))


Source = Annotated[
    Annotated[RestSourceSettings, Tag("rest")]
    | Annotated[SqlSourceSettings, Tag("sql")]
    | Annotated[FileSourceSettings, Tag("files")]
    | Annotated[ClassSourceSettings, Tag("class")]
    | Annotated[SharedSourceSettings, Tag("shared")],
    Discriminator(_find_source_kind),
]
"""A source system, by its ``kind``."""


class VersionSettings(Model):
    """Where a part's version stands: a modification time, or any growing whole number."""

    path: Expression
    """Where it stands in an item of the source."""
    kind: Literal["time", "number"] = "time"

    @property
    def is_numbered(self) -> bool:
        """Whether versions are the numbers of the source's stream."""
        return False


class LogVersionSettings(Model):
    """Versions that the stream of the database's log gives: it numbers the changes that it records.

    For a part with ``changes: {by: log}`` whose clock or ``updated_at`` cannot be trusted.
    """

    kind: Literal["log"]
    """``log``: the source itself needs no version."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_path(cls, value: Any) -> Any:
        if isinstance(value, dict) and "path" in value:
            raise ValueError("'path' does not belong to kind 'log', which has the stream's numbers: leave it out")
        return value

    @property
    def path(self) -> str:
        """No place in an item of the source."""
        return ""

    @property
    def is_numbered(self) -> bool:
        """Whether versions are the numbers of the source's stream."""
        return True


def _version_kind(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return "log" if kind == "log" else "column"


Version = Annotated[
    Annotated[VersionSettings, Tag("column")] | Annotated[LogVersionSettings, Tag("log")],
    Discriminator(_version_kind),
]
"""What a part's version is."""


class SqlPartSettings(Model):
    """A part in a table, or in what a query gives. Its ``key``, ``group`` and ``version.path`` are column names."""

    table: str | None = None
    """A table or view, with its schema where needed."""
    query: str | None = None
    """A SELECT without ORDER BY and LIMIT, in place of a table."""
    page: int = Field(default=1000, ge=1, le=100_000)
    """So many rows are read at once."""

    @model_validator(mode="after")
    def _check_table_or_query(self) -> SqlPartSettings:
        if (self.table is None) == (self.query is None):
            raise ValueError("say 'table' or 'query', one of them")
        return self


class ColumnChangeSettings(Model):
    """Changes of a table by its version column, which needs an index. Deletes are found by the source check only."""

    by: Literal["column"]
    """By the column that ``version.path`` names. It has to grow over all rows: a modification time, or a number that a
    sequence gives at each change, and no number that counts the changes of one row."""


class LogChangeSettings(Model):
    """Changes of a table by the database's log."""

    by: Literal["log"]
    """``log``: by the database's log, as a stream (``capture`` of the source)."""
    tables: dict[str, str] = {}
    """For a part with a ``query``: its tables, and for each the column that has the record's key, such as
    ``{orders: id, order_lines: order_id}``. A change of a row leads to a read of its record."""


def _change_kind(value: Any) -> str:
    by = value.get("by", "call") if isinstance(value, dict) else getattr(value, "by", "call")
    return str(by)


Changes = Annotated[
    Annotated[ListCallSettings, Tag("call")]
    | Annotated[ColumnChangeSettings, Tag("column")]
    | Annotated[LogChangeSettings, Tag("log")],
    Discriminator(_change_kind),
]
"""How changes are found: by a call of an API, or in a database by a column or by its log."""


class FilePartSettings(Model):
    """A part in files below the system's folder."""

    glob: Template
    """Which files, such as ``products-*.csv``; ``{{ group }}`` where each business group has files of its own."""
    format: Literal["csv", "jsonl", "parquet"] | None = None
    """By the files' ending unless told."""
    encoding: str = "utf-8"
    """Of CSV and JSON Lines."""
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    """Between the fields of CSV; its first line has their names."""
    page: int = Field(default=1000, ge=1, le=100_000)
    """So many rows are read at once."""

    @model_validator(mode="after")
    def _check_glob_and_encoding(self) -> FilePartSettings:
        if not names_in(self.glob) <= {"group"}:
            raise ValueError("glob: only 'group' is known here")
        try:
            lookup(self.encoding)
        except LookupError:
            raise ValueError(f"encoding: there is no encoding '{self.encoding}'") from None
        return self


class PartSettings(Model):
    """What one source system says of a record, and how it is asked."""

    required: bool = True
    """The record is pushed only once this part is here (the owner's is always required)."""
    key: Expression
    """Where the record's key stands in an item of this source."""
    version: Version
    """An older version never overwrites a newer one."""
    zone: Zone = "UTC"
    """The zone of times that name none, such as ``Europe/Berlin``."""
    group: Expression | None = None
    """Where the business group stands; needed for the owner."""
    deleted_when: Expression | None = None
    """True for an item that the source lists though it is logically deleted. Truth values are true, false, 0, 1, and
    texts such as "yes" and "no"; for others configure a comparison: ``"archived == 'X'"``."""
    only_when: Expression | None = None
    """True for the items that are records, such as ``"sku != `null`"``. The others are passed over, also where they
    have no key. Truth values are as of ``deleted_when``. A record for which it does not hold any more is gone from the
    source, within ``validation.deletions``. ``count`` has to count only what it selects."""
    absent_fields: Literal["refuse", "null"] = "refuse"
    """What it means that a field that the mapping reads is absent, which is not the same as null. ``refuse``: a table,
    query or file without such a column fails, and a record that had a value before cannot be used. ``null``: the field
    counts as null, for sources that leave out fields without a value."""
    list: ListCallSettings | None = None
    """All of a business group, page by page. Names: ``group``."""
    read: ReadCallSettings | None = None
    """One record. Names: ``key``."""
    read_many: ListCallSettings | None = None
    """Records by key. Names: ``keys``, a list: ``{{ keys | join(',') }}``."""
    read_many_size: int = Field(default=100, ge=1)
    """So many keys in one call."""
    keys: ListCallSettings | None = None
    """The keys and versions of a business group, where they can be listed for less than whole items; they stand where
    those of an item do. For ``source_check``. Names: ``group``."""
    count: CountCallSettings | None = None
    """How many records a business group has. Names: ``group``."""
    groups: ReadCallSettings | None = None
    """The list of business groups, complete in one response. ``record`` has to find a list of names, texts or numbers:
    ``stores[].code`` for ``{"stores": [{"code": "A"}]}``."""
    changes: Changes | None = None
    """How changes are found without notifications. Of an API, the call for what changed since a version. Names:
    ``since_number`` (the version; for a time, microseconds since 1970), and for a time ``since`` (ISO 8601, UTC). Of a
    database ``{by: column}`` or ``{by: log}``."""
    poll_every: Seconds = 30
    """How often it is asked for its ``changes``, where it is polled."""
    overlap: Seconds = 60
    """How far before the newest change seen the next poll begins, for what is committed late; of versions that are
    numbers, so many. With ``{by: column}`` Postgres, and MySQL and MariaDB with the right PROCESS, report their open
    transactions, and no poll begins behind these."""
    filter_check: FilterCheckSettings = FilterCheckSettings()
    """Of ``list`` where items do not tell their business group, of ``read_many`` where others come than asked for."""
    sql: SqlPartSettings | None = None
    files: FilePartSettings | None = None
    settings: dict[str, object] = Field(default={}, repr=False)
    """What the class of a source system is given for this part, beside the system's own."""

    @model_validator(mode="after")
    def _check_template_names(self) -> PartSettings:
        check_names(
            {
                "list": self.list,
                "read": self.read,
                "read_many": self.read_many,
                "keys": self.keys,
                "count": self.count,
                "groups": self.groups,
                "changes": self.changes if isinstance(self.changes, ListCallSettings) else None,
            },
            {
                "list": {"group"},
                "read": {"key"},
                "read_many": {"keys"},
                "keys": {"group"},
                "count": {"group"},
                "groups": set(),
                "changes": {"since_number"} | ({"since"} if self.version.kind == "time" else set()),
            },
        )
        if self.only_when is not None and self.keys is not None:
            raise ValueError(
                "keys: cannot be used with 'only_when', which is judged by whole items: leave it out, and records are "
                "listed by 'list'"
            )
        if self.sql is not None:
            for name, column in (("key", self.key), ("group", self.group), ("version.path", self.version.path)):
                if column and not _PLAIN.fullmatch(column):
                    raise ValueError(f"{name} must be a column's name where the part is in a database")
        return self

    @property
    def tz(self) -> ZoneInfo:
        """``zone``, ready for use."""
        return ZoneInfo(self.zone)

    @property
    def is_polled(self) -> bool:
        """Whether its source is asked for changes from time to time."""
        return self.changes is not None and not isinstance(self.changes, LogChangeSettings)

    def check_kind(self, system: Any) -> None:
        """Whether it says what a system of this kind needs. Raises ValueError."""
        needed = {"rest": "list", "sql": "sql", "files": "files"}.get(system.kind)
        for section in ("list", "sql", "files"):
            if section == needed and getattr(self, section) is None:
                raise ValueError(f"'{section}' is needed for a source system of kind {system.kind}")
            if section != needed and getattr(self, section) is not None:
                raise ValueError(f"'{section}' does not belong to a source system of kind {system.kind}")
        if self.settings and system.kind != "class":
            raise ValueError(f"'settings' does not belong to a source system of kind {system.kind}")
        for call in _CALLS:
            is_way_of_database = call == "changes" and not isinstance(self.changes, ListCallSettings)
            if system.kind != "rest" and not is_way_of_database and getattr(self, call) is not None:
                raise ValueError(f"'{call}' is a call of a source system of kind rest: leave it out")
        if system.kind != "class":  # a class may have a method of this name
            self._check_changes(system.kind)
        if isinstance(self.changes, LogChangeSettings):
            self._check_log(self.changes, system)
        elif self.version.is_numbered:
            raise ValueError(
                "version: kind 'log' needs 'changes: {by: log}': only a stream of the database's log numbers changes"
            )

    def _check_changes(self, kind: str) -> None:
        if isinstance(self.changes, ColumnChangeSettings | LogChangeSettings) and kind != "sql":
            raise ValueError(
                f"changes: by '{self.changes.by}' belongs to a source system of kind sql: "
                + ("configure a call" if kind == "rest" else "leave it out")
            )
        if self.changes is not None and not isinstance(self.changes, LogChangeSettings):
            return
        for name in ("overlap", "poll_every"):
            if getattr(self, name) == type(self).model_fields[name].default:
                continue
            if self.changes is not None:
                raise ValueError(f"'{name}' has no effect with changes by 'log': leave it out")
            raise ValueError(f"'{name}' has no effect without 'changes': {_HOW_TO_POLL[kind]}")

    def _check_log(self, changes: LogChangeSettings, system: Any) -> None:
        assert self.sql is not None
        if system.capture is None:
            raise ValueError("changes: 'by: log' needs the source's stream: say 'capture: {}' at the source system")
        if self.sql.query is not None and not changes.tables:
            raise ValueError(
                "changes.tables: is needed for sql.query: each table that it reads, with the column that has the "
                "record's key, the record's own table first"
            )
        if not system.url.startswith(("postgresql+psycopg://", *_BINLOG_URLS)):
            raise ValueError(
                "changes: 'by: log' needs a Postgres whose url begins with postgresql+psycopg://, or a MySQL or "
                "MariaDB whose url begins with mysql+pymysql:// or mariadb+pymysql://"
            )
        if self.version.is_numbered and system.has_binlog:
            raise ValueError(
                "version: kind 'log' needs a Postgres: the changes of MySQL and MariaDB lead to reads, which a "
                "version of the source orders; name its column with 'version: {path: updated_at}'"
            )
