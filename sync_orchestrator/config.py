"""The models of ``sync.yaml`` and its loading. What a setting means stands here, and nowhere a default twice.

Not here: what is done with the settings (``app.py`` puts the system together from them).
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

import jmespath
import yaml
from jmespath.exceptions import JMESPathError
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from sync_orchestrator.core.errors import ConfigError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_ENV = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def _seconds(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*", value)
        if match is None:
            raise ValueError("write a number of seconds, or a number with ms, s, m, h or d, such as 10s")
        return float(match[1]) * _UNITS[match[2]]
    return value


def _expression(value: str) -> str:
    try:
        jmespath.compile(value)
    except JMESPathError as error:
        raise ValueError(f"not a JMESPath expression: {str(error).splitlines()[0]}") from None
    return value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0)]
"""A duration: a number of seconds, or text such as ``10s``, ``5m``, ``1h``."""

Expression = Annotated[str, AfterValidator(_expression)]
"""A JMESPath expression."""

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Http(Model):
    """How a system is reached over HTTP."""

    base_url: str = Field(pattern=r"^https?://")
    headers: dict[str, str] = {}
    timeout: Seconds = 10
    """The deadline of one call."""
    concurrency: int = Field(default=32, ge=1, le=1000)
    """Calls under way at once, in one process."""


class Source(Http):
    """A source system: an internal system that owns part of the data."""


class Breaker(Model):
    """When a third party counts as down, and how often it is tried again meanwhile."""

    failures: int = Field(default=10, ge=2)
    """So many distinct records failed with no success in between."""
    probe_after: Seconds = 5
    probe_cap: Seconds = 60


class ThirdPartySystem(Http):
    """The external service that is kept in step."""

    rate: float | None = Field(default=None, gt=0)
    """Calls a second over all runs on all machines; None for no limit."""
    landing: Seconds | None = None
    """How long after we gave up a call may still take effect there; ``timeout`` unless told."""
    search_lag: Seconds = 1
    """How long after a create a search finds the record."""
    breaker: Breaker = Breaker()

    @property
    def landing_seconds(self) -> float:
        return self.timeout if self.landing is None else self.landing


class Request(Model):
    """One call of a REST API: ``{key}``, ``{id}``, ``{group}`` are filled in, percent-encoded in the path."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str = Field(pattern=r"^/")
    params: dict[str, str] = {}
    wrap: str | None = None
    """Send the payload as the value of this name instead of bare."""


class Get(Model):
    """One reading call and where in the answer its result stands."""

    path: str = Field(pattern=r"^/")
    params: dict[str, str] = {}
    record: Expression = "@"
    """Where one record stands in the answer."""


class Listing(Model):
    """A listing, page by page.

    ``after``: the last key of a page goes into ``{after}`` of the next (keyset paging);
    ``cursor``: the value at ``next`` goes into ``{cursor}``; ``page``: ``{page}`` counts from ``first_page``;
    ``none``: one answer holds all.
    """

    path: str = Field(pattern=r"^/")
    params: dict[str, str] = {}
    items: Expression = "@"
    paging: Literal["after", "cursor", "page", "none"] = "none"
    next: Expression | None = None
    """With ``cursor``: where the next cursor stands; null or absent at the end."""
    first_page: int = 1

    @model_validator(mode="after")
    def _placeholders(self) -> Listing:
        text = self.path + "".join(self.params.values())
        if self.paging != "none" and f"{{{self.paging}}}" not in text:
            raise ValueError(f"paging '{self.paging}' needs {{{self.paging}}} in path or params")
        if (self.paging == "cursor") != (self.next is not None):
            raise ValueError("'next' belongs to paging 'cursor', and is needed there")
        return self


def _check_placeholders(calls: dict[str, Request | Get | Listing | None], known: dict[str, set[str]]) -> None:
    """Refuses a ``{placeholder}`` that nothing would fill in."""
    for name, call in calls.items():
        if call is None:
            continue
        allowed = known[name] | ({call.paging} - {"none"} if isinstance(call, Listing) else set())
        for text in (call.path, *call.params.values()):
            try:
                used = {placeholder for _, placeholder, _, _ in Formatter().parse(text) if placeholder is not None}
            except ValueError as error:
                raise ValueError(f"{name}: {error} in '{text}'") from None
            for placeholder in sorted(used - allowed):
                fits = ", ".join(f"{{{each}}}" for each in sorted(allowed)) or "none"
                raise ValueError(f"{name}: nothing fills {{{placeholder}}} in '{text}'; known here: {fits}")


class Version(Model):
    """Where a part's version stands: a modification time, or any growing whole number."""

    path: Expression
    kind: Literal["time", "number"] = "time"


class Part(Model):
    """What one source system says of a record, and how it is asked."""

    required: bool = True
    """The record is pushed only once this part is here (the owner's is always required)."""
    key: Expression
    """Where the record's key stands in an item of this source."""
    version: Version
    group: Expression | None = None
    """Where the business group stands; needed for the owner."""
    deleted_when: Expression | None = None
    """True for an item that the source lists though it is logically deleted."""
    list: Listing
    read: Get | None = None
    """One record by ``{key}``."""
    read_many: Listing | None = None
    """Records by ``{keys}``, comma-separated."""
    read_many_size: int = Field(default=100, ge=1)
    count: Get | None = None
    groups: Get | None = None
    """The list of business groups."""

    @model_validator(mode="after")
    def _placeholders(self) -> Part:
        _check_placeholders(
            {"list": self.list, "read": self.read, "read_many": self.read_many, "count": self.count,
             "groups": self.groups},
            {"list": {"group"}, "read": {"key"}, "read_many": {"keys"}, "count": {"group"}, "groups": set()})
        return self


class Target(Model):
    """Where and how an entity's records are kept at the third party."""

    system: Name
    ids: Literal["theirs", "ours"] = "theirs"
    """Who gives the ids: with ``ours`` the key is the id and ``update`` is an upsert."""
    key_field: str
    """The payload field that holds our key."""
    id: Expression = "id"
    """Where the third party's id stands in one of its records."""
    group: Expression | None = None
    """Where the business group stands in one of its records."""
    record: Expression = "@"
    """Where the record stands in the answer to a create or an update."""
    idempotency_header: str | None = None
    create: Request | None = None
    update: Request
    delete: Request
    read: Get
    lookup: Listing | None = None
    list: Listing
    count: Get | None = None

    @model_validator(mode="after")
    def _complete(self) -> Target:
        if self.ids == "theirs" and self.create is None:
            raise ValueError("'create' is needed where the third party gives the ids")
        record = {"key", "id", "group"}
        _check_placeholders(
            {"create": self.create, "update": self.update, "delete": self.delete, "read": self.read,
             "lookup": self.lookup, "list": self.list, "count": self.count},
            {"create": {"key", "group"}, "update": record, "delete": record, "read": record,
             "lookup": {"key", "group"}, "list": {"group"}, "count": {"group"}})
        return self


class Retry(Model):
    """1 + ``retries`` attempts; waits of ``first_wait``, doubling up to ``max_wait``, with jitter."""

    retries: int = Field(default=3, ge=0, le=100)
    first_wait: Seconds = 10
    factor: float = Field(default=2, ge=1)
    max_wait: Seconds = 3600
    jitter: float = Field(default=0.1, ge=0, le=1)
    """A wait is lengthened by at most this share of itself."""


class Deletions(Model):
    """How many records may be deleted at once before a person is asked: min(most, max(least, share * group))."""

    least: int = Field(default=5, ge=0)
    share: float = Field(default=0.05, ge=0, le=1)
    most: int = Field(default=100, ge=0)

    def cap(self, group_size: int) -> int:
        """The cap for a group of so many records."""
        return min(self.most, max(self.least, int(self.share * group_size)))


class Validation(Model):
    every: Seconds = 900
    """How often each business group is validated by the schedule."""
    audit_every: Seconds = 86_400
    """How often at least it is compared record by record, whatever its count says."""
    confirm_after: Seconds = 2
    """The pause before a suspect is looked at again."""
    repair: Literal["auto", "ask", "off"] = "auto"
    foreign: Literal["report", "delete"] = "report"
    deletions: Deletions = Deletions()


class Entity(Model):
    """A kind of record, the source systems that make it up, and its shape at the third party."""

    owner: Name
    """The part whose source decides whether the record exists and which group it is in."""
    parts: dict[Name, Part] = Field(min_length=1)
    mapping: dict[str, Expression] = Field(min_length=1)
    """Third-party field: JMESPath over ``{key, group, <part>: {...}, ...}``."""
    third_party: Target
    on_missing: Literal["wait", "fetch", "upsert"] = "wait"
    max_ahead: Seconds = 3600
    retry: Retry | None = None
    validation: Validation = Validation()

    @model_validator(mode="after")
    def _consistent(self) -> Entity:
        owner = self.parts.get(self.owner)
        if owner is None:
            raise ValueError(f"owner '{self.owner}' is none of the parts: {', '.join(self.parts)}")
        if owner.group is None:
            raise ValueError(f"parts.{self.owner}.group is needed: the owner sets the business group")
        if self.third_party.key_field not in self.mapping:
            raise ValueError(f"mapping has no '{self.third_party.key_field}', which third_party.key_field names")
        if self.on_missing == "fetch" and owner.read is None:
            raise ValueError(f"on_missing 'fetch' needs parts.{self.owner}.read")
        return self


class Limits(Model):
    event_bytes: int = Field(default=262_144, ge=1)
    request_bytes: int = Field(default=8_388_608, ge=1)
    batch: int = Field(default=500, ge=1, le=10_000)
    """Events claimed at once."""
    lease: Seconds = 60
    """How long claimed work belongs to one drain; must exceed every call's timeout."""
    linger: Seconds = 20
    """How long a drain stays when nothing is left to do."""
    drain_seconds: Seconds = 300
    """A drain ends after this time; the sensor starts the next."""


class Alerts(Model):
    urls: list[str] = []
    """Apprise URLs; without any, alerts go to the log."""
    group_wait: Seconds = 5
    """How long an alert waits for more of the same before it is sent."""
    ui_url: str = "http://127.0.0.1:3000"
    waiting_after: Seconds = 86_400
    """An event that waits for its record so long is told of."""
    overdue_after: Seconds = 900


class Config(Model):
    """All of ``sync.yaml``."""

    sources: dict[Name, Source] = Field(min_length=1)
    third_parties: dict[Name, ThirdPartySystem] = Field(min_length=1)
    entities: dict[Name, Entity] = Field(min_length=1)
    retry: Retry = Retry()
    limits: Limits = Limits()
    alerts: Alerts = Alerts()

    @model_validator(mode="after")
    def _names(self) -> Config:
        for name, entity in self.entities.items():
            for part in entity.parts:
                if part not in self.sources:
                    raise ValueError(f"entities.{name}.parts.{part}: there is no source system of that name")
            system = self.third_parties.get(entity.third_party.system)
            if system is None:
                raise ValueError(f"entities.{name}.third_party.system: no third party '{entity.third_party.system}'")
        for name, system in self.third_parties.items():
            if system.timeout * 2 >= self.limits.lease:
                raise ValueError(f"third_parties.{name}.timeout must be less than half of limits.lease")
        return self

    def retry_of(self, entity: str) -> Retry:
        """The retry rule of an entity: its own, or the common one."""
        return self.entities[entity].retry or self.retry


def load(path: Path) -> Config:
    """Reads and checks a configuration.

    Raises ConfigError with file, line, field and mend.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Create it, or name another with SYNC_CONFIG.") from None
    try:
        document = yaml.safe_load(text)
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected sources, third_parties and entities at the top.")
    try:
        return Config.model_validate(_with_secrets(document, (), path, tree))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = tuple(first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        more = error.error_count() - 1
        others = f" (and {more} more)" if more else ""
        raise ConfigError(f"{path}:{_line(tree, place)}: {_dotted(place)}: {message}{others}") from None


def _with_secrets(value: Any, place: tuple[str | int, ...], path: Path, tree: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_secrets(item, (*place, key), path, tree) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_secrets(item, (*place, index), path, tree) for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def secret(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], match[2])
        if found is None:
            raise ConfigError(
                f"{path}:{_line(tree, place)}: {_dotted(place)}: the environment has no {match[1]}; set it, "
                f"or write ${{{match[1]}:-default}}"
            )
        return found

    return _ENV.sub(secret, value)


def _dotted(place: tuple[str | int, ...]) -> str:
    return ".".join(str(step) for step in place) or "the whole file"


def _line(node: Any, place: tuple[str | int, ...]) -> int:
    line: int = node.start_mark.line + 1
    for step in place:
        if isinstance(node, yaml.MappingNode):
            for key, child in node.value:
                if key.value == str(step):
                    line, node = key.start_mark.line + 1, child
                    break
            else:
                return line
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
        else:
            return line
    return line
