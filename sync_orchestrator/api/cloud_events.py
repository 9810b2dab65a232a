"""From a CloudEvent (1.0, JSON) to a change event. Pure; what each attribute means stands here.

``source``: a source system of ``sync.yaml``; ``id``: the event's id, unique there; ``type``: ``<entity>.created``,
``.updated`` or ``.deleted``; ``subject``: the record's key; ``version`` (extension) or ``time``: the part's version;
``group`` (extension, optional): the business group; ``data``: the whole part, or absent, or with the extension
``partial: true`` a piece of it: then the part is read from the source.
"""

from __future__ import annotations

from typing import Any

import jmespath

from sync_orchestrator.adapters.values import version_of
from sync_orchestrator.config import Config, Entity
from sync_orchestrator.core.errors import InvalidEvent
from sync_orchestrator.core.events import group_text
from sync_orchestrator.core.ledger import ChangeEvent
from sync_orchestrator.core.versions import Action

_ACTIONS: dict[str, Action] = {"created": "create", "updated": "update", "deleted": "delete"}
_LONGEST = {"id": 200, "subject": 400, "group": 200, "source": 100, "type": 100}
_FORBIDDEN_IN_GROUP = ("...", "\a", "\b", "\f", "\n", "\r", "\t", "\v", "\0")


def change_event(document: Any, config: Config) -> ChangeEvent:
    """Reads one CloudEvent.

    Raises InvalidEvent naming the field and what is wrong with it.
    """
    if not isinstance(document, dict):
        raise InvalidEvent("an event must be a JSON object")
    if document.get("specversion") != "1.0":
        raise InvalidEvent("specversion: must be 1.0")
    name, action = _type(_text(document, "type"), config)
    entity = config.entities[name]
    source = _text(document, "source")
    if source not in entity.parts:
        raise InvalidEvent(f"source: '{source[:100]}' has no part in {name}; it has {', '.join(entity.parts)}")
    data = _data(document)
    return ChangeEvent(
        source=source,
        event_id=_text(document, "id"),
        entity=name,
        key=_text(document, "subject"),
        action=action,
        version=_version(document, entity, source),
        data=None if action == "delete" else data,
        group=_group(document, entity, source, data),
    )


def _type(value: str, config: Config) -> tuple[str, Action]:
    name, _, what = value.rpartition(".")
    if what not in _ACTIONS:
        raise InvalidEvent("type: must be <entity>.created, <entity>.updated or <entity>.deleted")
    if name not in config.entities:
        raise InvalidEvent(f"type: there is no entity '{name[:100]}'; there is {', '.join(config.entities)}")
    return name, _ACTIONS[what]


def _text(document: dict[str, Any], field: str) -> str:
    value = document.get(field)
    if not isinstance(value, str) or not value:
        raise InvalidEvent(f"{field}: is needed, as text")
    if len(value) > _LONGEST[field]:
        raise InvalidEvent(f"{field}: has more than {_LONGEST[field]} characters")
    return value


def _version(document: dict[str, Any], entity: Entity, source: str) -> int:
    field = "version" if "version" in document else "time"
    if field not in document:
        raise InvalidEvent("version: is needed (or time), the part's modification time or a growing number")
    try:
        return version_of(document[field], entity.parts[source].version.kind)
    except ValueError as error:
        raise InvalidEvent(f"{field}: {error}") from None


def _data(document: dict[str, Any]) -> dict[str, Any] | None:
    if document.get("data_base64") is not None:
        raise InvalidEvent("data_base64: is not taken; send data as a JSON object")
    data = document.get("data")
    if data is None or document.get("partial") in (True, "true"):
        return None
    if not isinstance(data, dict):
        raise InvalidEvent("data: must be a JSON object, the whole part")
    return data


def _group(document: dict[str, Any], entity: Entity, source: str, data: dict[str, Any] | None) -> str | None:
    owner = entity.parts[entity.owner]
    group = group_text(document.get("group"))
    if source == entity.owner and data is not None and owner.group is not None:
        group = group_text(jmespath.search(owner.group, data)) or group
    if group is None:
        return None
    if len(group) > _LONGEST["group"] or any(piece in group for piece in _FORBIDDEN_IN_GROUP):
        raise InvalidEvent("group: must have at most 200 characters, no control characters and no '...'")
    return group
