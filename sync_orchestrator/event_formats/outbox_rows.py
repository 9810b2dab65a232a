"""From a row of an outbox to a change event, by the names of its columns. Pure.

A row is a message: the payload is its body, all its columns are its headers. So it is read as an event of a custom
format, whose places follow from the columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache

from sync_orchestrator.config import Config, ConsumerSettings
from sync_orchestrator.config.intake import CustomEventSettings
from sync_orchestrator.core.ledger.recording import ChangeEvent
from sync_orchestrator.event_formats.custom_events import change_event_of


def change_event_of_row(
    payload: object, columns: Mapping[str, object], consumer: ConsumerSettings, config: Config
) -> ChangeEvent:
    """Reads one row of a consumer with an ``outbox``.

    Args:
        payload: The parsed payload; None where the row has none.
        columns: All columns of the row by name, as JSON values.
        consumer: The consumer.
        config: All of ``sync.yaml``.

    Raises:
        InvalidEvent: The row cannot be read; names the column and the reason.
    """
    assert consumer.outbox is not None
    assert consumer.source is not None
    found = {name.lower(): value for name, value in columns.items()}
    theirs = str(found.get(consumer.outbox.columns.aggregatetype.lower()))
    entity = config.entities.get(consumer.outbox.entities.get(theirs, theirs))
    part = None if entity is None else entity.parts.get(consumer.source)
    shape = _shape_of_row(consumer.outbox.model_dump_json(), "" if part is None else part.version.path)
    return change_event_of(payload, columns, consumer.source, config, shape=shape)


@lru_cache(maxsize=256)
def _shape_of_row(outbox: str, version_path: str) -> CustomEventSettings:
    """Returns the places of a row's values. ``version_path``: where the part's version is in its payload."""
    told = json.loads(outbox)
    columns = told["columns"]
    path = told["version"] or version_path or "null"
    return CustomEventSettings(
        id=_place_of_column(columns["id"]),
        entity=_place_of_column(columns["aggregatetype"]),
        entities=told["entities"],
        key=_place_of_column(columns["aggregateid"]),
        group=None if columns["group"] is None else _place_of_column(columns["group"]),
        action=_place_of_column(columns["type"]),
        actions=told["actions"],
        version=f"body | {path}" if columns["version"] is None else _place_of_column(columns["version"]),
        version_unit=told["version_unit"],
        data=None if columns["payload"] is None else "body",
    )


def _place_of_column(name: str) -> str:
    return f"headers.{json.dumps(name.lower())}"
