"""From a message of a broker to change events, by the format of its consumer. Pure.

CloudEvents come structured (JSON, alone or in a batch) or in binary mode, as the AMQP binding has it: the attributes
are application properties that begin with ``cloudEvents:`` or ``cloudEvents_``, the body is the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sync_orchestrator.config import Config, ConsumerSettings
from sync_orchestrator.core.ledger.recording import ChangeEvent
from sync_orchestrator.core.values.plain_json import as_json
from sync_orchestrator.errors import InvalidEvent
from sync_orchestrator.event_formats.cloud_events import change_event
from sync_orchestrator.event_formats.custom_events import change_event_of, is_wanted
from sync_orchestrator.event_formats.outbox_rows import change_event_of_row
from sync_orchestrator.event_formats.strict_json import parse

_BATCH = "application/cloudevents-batch+json"
_PREFIXES = ("cloudevents:", "cloudevents_")


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it came. ``headers``: its application properties, and of AMQP's own properties what it has."""

    body: bytes
    content_type: str | None = None
    headers: Mapping[str, object] = field(default_factory=dict)


def events_of(message: Message, consumer: ConsumerSettings, config: Config) -> list[ChangeEvent]:
    """The change events of a message, none where it is to be passed over.

    Raises InvalidEvent naming the field and what is wrong with it.
    """
    limit = config.limits.event_bytes
    if len(message.body) > limit and _read_media_type(message) != _BATCH:
        raise InvalidEvent(f"has more than {limit} bytes")
    if len(message.body) > config.limits.request_bytes:
        raise InvalidEvent(f"has more than {config.limits.request_bytes} bytes")
    if consumer.format == "own":
        assert consumer.source is not None
        document = parse(message.body) if message.body else None
        headers = {name: as_json(value) for name, value in message.headers.items()}
        wanted = is_wanted(document, headers, consumer.source, config)
        return [change_event_of(document, headers, consumer.source, config)] if wanted else []
    if consumer.format == "outbox":
        payload = parse(message.body) if message.body else None
        columns = {name: as_json(value) for name, value in message.headers.items()}
        return [change_event_of_row(payload, columns, consumer, config)]
    return [change_event(_replace_source(document, consumer), config) for document in _read_documents(message)]


def _read_media_type(message: Message) -> str:
    return (message.content_type or "").partition(";")[0].strip().lower()


def _read_documents(message: Message) -> list[object]:
    attributes = _read_attributes(message.headers)
    if attributes and not _read_media_type(message).startswith("application/cloudevents"):
        return [_read_binary_mode(attributes, message)]
    document = parse(message.body)
    if _read_media_type(message) == _BATCH:
        if not isinstance(document, list):
            raise InvalidEvent("a batch must be an array")
        return document
    return [document]


def _read_attributes(headers: Mapping[str, object]) -> dict[str, object]:
    return {
        name.lower().removeprefix(prefix): value
        for prefix in _PREFIXES
        for name, value in headers.items()
        if name.lower().startswith(prefix)
    }


def _read_binary_mode(attributes: Mapping[str, object], message: Message) -> dict[str, object]:
    document = {name: _to_json_value(value) for name, value in attributes.items()}
    kind = _read_media_type(message) or "application/json"
    if not message.body:
        return document
    if kind not in ("application/json", "text/json") and not kind.endswith("+json"):
        raise InvalidEvent("must be JSON", "datacontenttype")
    return {**document, "data": parse(message.body)}


def _to_json_value(value: object) -> Any:
    """A time of AMQP is in seconds and names no zone: it is UTC."""
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    return as_json(value)


def _replace_source(document: object, consumer: ConsumerSettings) -> object:
    if consumer.source is None or not isinstance(document, dict):
        return document
    return {**document, "source": consumer.source}
