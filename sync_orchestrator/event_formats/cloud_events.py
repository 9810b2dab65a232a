"""From a CloudEvent (1.0, JSON) to a change event. Pure; what each attribute means stands here.

``source``: a source system of ``sync.yaml`` that is a part of the entity; ``id``: the event's id, unique there;
``type``: ``<entity>.created``, ``<entity>.updated`` or ``<entity>.deleted``; ``subject``: the record's key;
``version`` (extension) or else ``time``: the part's version; ``group`` (extension, optional): the business group;
``data``: the whole part. Without data, or with the extension ``partial: true``, the part is read from its source.
"""

from __future__ import annotations

import re

from jmespath.exceptions import JMESPathError

from sync_orchestrator.config import Config, EntitySettings
from sync_orchestrator.core.ledger.recording import ChangeEvent
from sync_orchestrator.core.tracing import trace_of
from sync_orchestrator.core.values.names import NoName, canonical_name, to_nfc
from sync_orchestrator.core.values.source_versions import version_of
from sync_orchestrator.core.version_guard import Action
from sync_orchestrator.errors import InvalidEvent
from sync_orchestrator.expressions.selectors import compile_selector

_ACTIONS: dict[str, Action] = {"created": "create", "updated": "update", "deleted": "delete"}
_MAX_LENGTHS = {"id": 200, "source": 100, "type": 100, "subject": 400, "group": 200}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def change_event(document: object, config: Config) -> ChangeEvent:
    """Reads one CloudEvent.

    Raises InvalidEvent naming the field and what is wrong with it.
    """
    if not isinstance(document, dict):
        raise InvalidEvent("an event must be a JSON object")
    if document.get("specversion") != "1.0":
        raise InvalidEvent("must be '1.0'", "specversion")
    name, action = _read_type(_read_text(document, "type"), config)
    entity = config.entities[name]
    source = _read_text(document, "source")
    if source not in entity.parts:
        raise InvalidEvent(f"must be a source system of {name}: {', '.join(entity.parts)}", "source")
    data = _read_data(document)
    return ChangeEvent(
        source=source,
        event_id=_read_text(document, "id"),
        entity=name,
        key=_read_key(document),
        action=action,
        version=_read_version(document, entity, source),
        data=None if action == "delete" else data,
        group=_read_group(document, entity, source, data),
        trace=trace_of(document.get("traceparent")),
    )


def _read_type(value: str, config: Config) -> tuple[str, Action]:
    name, _, what = value.rpartition(".")
    if what not in _ACTIONS:
        raise InvalidEvent("must be <entity>.created, <entity>.updated or <entity>.deleted", "type")
    if name not in config.entities:
        raise InvalidEvent(f"must begin with the name of an entity: {', '.join(config.entities)}", "type")
    return name, _ACTIONS[what]


def _read_text(document: dict[str, object], field: str) -> str:
    value = document.get(field)
    if not isinstance(value, str) or not value:
        raise InvalidEvent("is needed, as text", field)
    return _check_text(value, field)


def _check_text(value: str, field: str) -> str:
    most = _MAX_LENGTHS[field]
    if len(value) <= most and value.isascii() and value.isprintable():
        return value
    if len(value) > most or len(value.encode()) > 3 * most:
        raise InvalidEvent(f"has more than {most} characters", field)
    if _CONTROL.search(value):
        raise InvalidEvent("has control characters", field)
    return value


def _read_key(document: dict[str, object]) -> str:
    key = to_nfc(_read_text(document, "subject"))
    if key in (".", ".."):
        raise InvalidEvent("is a path, not a key", "subject")
    return key


def _read_version(document: dict[str, object], entity: EntitySettings, source: str) -> int:
    field = "time" if document.get("version") is None else "version"
    kind = entity.parts[source].version.kind
    if kind == "log":
        raise InvalidEvent(
            "has no place here: the versions of this part are the numbers of its database's log (version: kind 'log'), "
            "from which alone its changes come",
            "version",
        )
    wanted = "a whole number of at most 63 bits" if kind == "number" else "an ISO 8601 time, or seconds since 1970"
    if document.get(field) is None:
        raise InvalidEvent(f"is needed (or time): {wanted}", "version")
    try:
        return version_of(document[field], kind)
    except ValueError:
        raise InvalidEvent(f"must be {wanted}", field) from None


def _read_data(document: dict[str, object]) -> dict[str, object] | None:
    if document.get("data_base64") is not None:
        raise InvalidEvent("is not taken; send data as a JSON object", "data_base64")
    data = document.get("data")
    if data is not None and not isinstance(data, dict):
        raise InvalidEvent("must be a JSON object, the whole part", "data")
    partial = document.get("partial", False)
    if partial not in (True, False, "true", "false"):
        raise InvalidEvent("must be true or false", "partial")
    return None if partial in (True, "true") else data


def _read_group(
    document: dict[str, object], entity: EntitySettings, source: str, data: dict[str, object] | None
) -> str | None:
    told = document.get("group")
    try:
        group = canonical_name(told)
    except NoName as error:
        raise InvalidEvent(f"must be text: {error}", "group") from None
    field, path = "group", entity.parts[source].group
    if source == entity.owner and data is not None and path is not None:
        own = _find_group(path, data)
        field, group = (field, group) if own is None else (f"data ({path})", own)
    if group is None:
        return None
    try:
        _check_text(group, "group")
    except InvalidEvent as error:
        raise InvalidEvent(str(error), field) from None
    if "..." in group:
        raise InvalidEvent("a business group must not hold '...'", field)
    return group


def _find_group(path: str, data: dict[str, object]) -> str | None:
    try:
        return canonical_name(compile_selector(path).search(data))
    except NoName as error:
        raise InvalidEvent(f"no business group can be read from it: {error}", f"data ({path})") from None
    except (JMESPathError, TypeError, ValueError, ArithmeticError):
        raise InvalidEvent("no business group can be read from it", f"data ({path})") from None
