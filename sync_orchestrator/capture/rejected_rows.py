"""Rows of the log that could not be used, tried again: their records are read from the source."""

from __future__ import annotations

import json
from uuid import uuid4

from sync_orchestrator.capture.changes import CONSUMER_PREFIX
from sync_orchestrator.capture.parts import list_captured_tables
from sync_orchestrator.config import Config
from sync_orchestrator.core.intake.rejected_messages import Rejected
from sync_orchestrator.core.ledger.recording import ChangeEvent
from sync_orchestrator.core.values.names import NoName, canonical_name
from sync_orchestrator.core.version_guard import Action
from sync_orchestrator.errors import InvalidEvent


def is_rejected_row(found: Rejected) -> bool:
    """Whether it came from a database's log, and not from a broker."""
    return found.consumer.startswith(CONSUMER_PREFIX)


def reread_row(found: Rejected, config: Config) -> list[ChangeEvent]:
    """The change event by which the record of a row is read; of a deleted row, its source is asked.

    Raises:
        InvalidEvent: The present configuration cannot say which record it is.
    """
    source, body = found.consumer.removeprefix(CONSUMER_PREFIX), json.loads(found.body)
    parts = [
        part
        for table in (list_captured_tables(config, source) if source in config.sources else [])
        if table.name == body["table"]
        for part in table.parts
        if part.entity == body["entity"]
    ]
    if not parts:
        raise InvalidEvent(f"table {body['table']} of {source} is not captured for {body['entity']} any more")
    [part] = parts
    try:
        key = canonical_name(body["row"].get(part.key_column))
    except NoName as error:
        raise InvalidEvent(f"no key at '{part.key_column}': {error}") from None
    if key is None:
        raise InvalidEvent(f"the row has no column {part.key_column} with its key; run a full sync, then discard it")
    is_gone = body["change"] == "delete" and (part.is_row or part.is_own_table)
    action: Action = "delete" if is_gone else "create"
    event_id = f"log/retry/{uuid4().hex}"
    return [ChangeEvent(source, event_id, part.entity, key, action, 0, origin="capture", is_doubted_delete=is_gone)]
