"""From an event in its source's own shape to a change event, by the ``events`` of the source in ``sync.yaml``. Pure.

It is made a CloudEvent first, so that both mean the same and are checked alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

from jmespath.exceptions import JMESPathError

from sync_orchestrator.config import Config
from sync_orchestrator.config.intake import CustomEventSettings
from sync_orchestrator.core.ledger.recording import ChangeEvent
from sync_orchestrator.core.values.mapping import compute_digest
from sync_orchestrator.core.values.names import NoName, canonical_name
from sync_orchestrator.core.values.source_versions import as_time, version_of
from sync_orchestrator.errors import InvalidEvent
from sync_orchestrator.event_formats.cloud_events import change_event
from sync_orchestrator.expressions.selectors import compile_selector
from sync_orchestrator.expressions.truth import NoTruth, parse_condition

_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_FIELDS = {"subject": "key", "type": "entity", "source": "entity"}
"""What an attribute of a CloudEvent is called here."""


def is_wanted(document: object, headers: Mapping[str, object], source: str, config: Config) -> bool:
    """Whether an event is one that the source's ``events`` take (``when``); the others are to be passed over.

    Raises InvalidEvent where that cannot be told.
    """
    shape = _find_event_settings(source, config)
    if shape.when is None:
        return True
    event = _Event(document, headers, shape)
    try:
        return event.holds(shape.when)
    except NoTruth as error:
        raise InvalidEvent(str(error), event.describe_field("when")) from None


def change_event_of(
    document: object,
    headers: Mapping[str, object],
    source: str,
    config: Config,
    message: str | None = None,
    shape: CustomEventSettings | None = None,
) -> ChangeEvent:
    """Reads one event of a source that has ``events`` in ``sync.yaml``.

    ``message``: an id that the message proves, which stands for the event where ``events`` names no ``id``.
    ``shape``: where the values are, in place of the source's ``events``.

    Raises InvalidEvent naming the field of ``events``, its place, and what is wrong with what stands there.
    """
    shape = shape or _find_event_settings(source, config)
    event = _Event(document, headers, shape)
    name = _read_entity(event, source, config)
    made = {
        "specversion": "1.0",
        "source": source,
        "type": f"{name}.{_read_action(event)}",
        "subject": event.read_text("key"),
        "version": _read_version(event, name, source, config),
        "group": event.read_value("group"),
        "data": event.read_value("data"),
    }
    is_content_id = shape.id is None and message is None
    made["id"] = event.read_text("id") if shape.id is not None else message or compute_digest(made).hex()
    try:
        return replace(change_event(made, config), content_id=is_content_id)
    except InvalidEvent as error:
        field = _FIELDS.get(error.field or "", error.field)
        raise InvalidEvent(str(error), None if field is None else event.describe_field(field)) from None


class _Event:
    """One event and what its places hold."""

    def __init__(self, document: object, headers: Mapping[str, object], shape: CustomEventSettings) -> None:
        self._whole = {"body": document, "headers": {name.lower(): value for name, value in headers.items()}}
        self.shape = shape

    def describe_field(self, field: str) -> str:
        """A field of ``events``, and where it points to."""
        path = getattr(self.shape, field, None)
        return field if path is None else f"{field} ({path})"

    def holds(self, when: str) -> bool:
        """Whether a condition is true of the event. Raises NoTruth, InvalidEvent."""
        self.read_value("when")  # which says so where the expression does not fit the event
        return parse_condition(when).applies(self._whole)

    def read_value(self, field: str) -> Any:
        path = getattr(self.shape, field)
        if path is None:
            return None
        try:
            return compile_selector(path).search(self._whole)
        except (JMESPathError, TypeError, ValueError, ArithmeticError):
            raise InvalidEvent("nothing can be read there", self.describe_field(field)) from None

    def read_text(self, field: str) -> str:
        """A value as text; a truth value is written as JSON writes it, but is no key."""
        value = self.read_value(field)
        if isinstance(value, bool) and field != "key":
            return "true" if value else "false"
        try:
            text = canonical_name(value)
        except NoName as error:
            raise InvalidEvent(f"is needed, as text or a whole number: {error}", self.describe_field(field)) from None
        if text is None:
            raise InvalidEvent("is needed, as text or a whole number", self.describe_field(field))
        return text


def _find_event_settings(source: str, config: Config) -> CustomEventSettings:
    system = config.sources.get(source)
    if system is None or system.events is None:
        having = [name for name, each in config.sources.items() if each.events is not None]
        raise InvalidEvent(f"must be a source system with 'events': {', '.join(having) or 'there is none'}", "source")
    return system.events


def _read_entity(event: _Event, source: str, config: Config) -> str:
    if event.shape.entity is None:
        return config.entities_of(source)[0]
    return _translate_word(event, "entity", event.shape.entities or {name: name for name in config.entities})


def _read_action(event: _Event) -> str:
    return _translate_word(
        event, "action", event.shape.actions or {name: name for name in ("created", "updated", "deleted")}
    )


def _translate_word(event: _Event, field: str, table: Mapping[str, str]) -> str:
    word = event.read_text(field)
    if word not in table:
        raise InvalidEvent(f"must be one of {', '.join(table)}", event.describe_field(field))
    return table[word]


def _read_version(event: _Event, entity: str, source: str, config: Config) -> Any:
    """A time in its unit and zone becomes one that needs neither."""
    value = event.read_value("version")
    part = config.entities[entity].parts.get(source)
    if value is None or part is None or part.version.kind != "time":
        return value
    try:
        if isinstance(value, int) and not isinstance(value, bool):
            return as_time(value * 1_000_000 // _PER_SECOND[event.shape.version_unit])
        if isinstance(value, float | Decimal):
            value /= _PER_SECOND[event.shape.version_unit]
        return as_time(version_of(value, "time", part.tz))
    except (ValueError, OverflowError):
        raise InvalidEvent(
            "must be an ISO 8601 time, or a number by version_unit", event.describe_field("version")
        ) from None
