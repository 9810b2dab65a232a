"""All of ``sync.yaml``, and its loading: an error names file, line, field and mend.

Not here: what a setting means (the other modules of this package).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from sync_orchestrator.config.entities import Entity, Retry
from sync_orchestrator.config.sources import Source
from sync_orchestrator.config.targets import ThirdPartySystem
from sync_orchestrator.config.types import Model, Name, Seconds
from sync_orchestrator.core.errors import ConfigError

_ENV = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


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
    urls: list[str] = Field(default=[], repr=False)
    """Apprise URLs; without any, alerts go to the log."""
    group_wait: Seconds = 5
    """How long an alert waits for more of the same before it is sent."""
    repeat_every: Seconds = 14_400
    """How long after it was sent an alert that has grown since, or goes on, is sent again."""
    ui_url: str = "http://127.0.0.1:3000"
    waiting_after: Seconds = 86_400
    """An event that waits for its record so long, or a record for what it refers to, is told of."""
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
                entity.parts[part].check_kind(self.sources[part])
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
