"""How a source system sends change events: its signatures, its rate limit, and its own event format."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sync_orchestrator.config.signed_headers import reads_unsigned
from sync_orchestrator.config.types import Expression, Model, Name, WebhookSecret

_EXPRESSIONS = ("when", "id", "entity", "key", "group", "action", "version", "data")


class CustomEventSettings(Model):
    """Where each value is in the events of a source's custom format.

    Each place is a JMESPath expression on ``{body, headers}``: the event, and the headers that came with it, their
    names in lower case. Write a fixed text in single quotes: ``"'created'"``.
    """

    when: Expression | None = None
    """Only events for which this is true are taken; the others are passed over."""
    id: Expression | None = None
    """The event's id, unique at its source. Without it an event is known by the ``webhook-id`` of the signed request
    that brought it, else by its content."""
    entity: Expression | None = None
    """The entity; needed where the source is a part of several."""
    entities: dict[str, Name] = {}
    """The source's names of entities, and ours; without this they are the same."""
    key: Expression
    """The record's key."""
    group: Expression | None = None
    """The business group, where ``data`` does not tell it."""
    action: Expression
    """What happened to the part: ``created``, ``updated`` or ``deleted``, unless ``actions`` says otherwise."""
    actions: dict[str, Literal["created", "updated", "deleted"]] = {}
    """The source's words for it, and ours: ``{c: created, u: updated, d: deleted}``."""
    version: Expression
    """The part's version, of the kind that the part's ``version`` tells."""
    version_unit: Literal["s", "ms", "us", "ns"] = "s"
    """What a time that is a number counts since 1970."""
    data: Expression | None = None
    """The whole part. Without it, or where it is null, the part is read from its source."""

    def list_unsigned_fields(self) -> list[str]:
        """The fields whose expressions look at headers that a signature does not cover."""
        return [
            name
            for name in _EXPRESSIONS
            if (expression := getattr(self, name)) is not None and reads_unsigned(expression)
        ]


class SourceSettings(Model):
    """What every kind of source system may say of its change events."""

    events: CustomEventSettings | None = None
    """Its events have this shape of their own; without it they are CloudEvents."""
    webhook_secrets: list[WebhookSecret] = Field(default=[], repr=False, max_length=10)
    """Secrets by which its requests are signed (Standard Webhooks 1.0), in place of an API key: base64, padded or not,
    ``whsec_`` before it or not. Several are good at once, so that they can be changed one after the other. No two
    source systems may have the same. What the signature does not cover decides nothing: its events may not be in binary
    mode, and of the headers ``events`` may look at ``webhook-id`` and ``webhook-timestamp`` only."""
    events_per_second: float | None = Field(default=None, gt=0)
    """More than so many of its events are refused with 429 and the time to wait, by each replica of the API service;
    without it there is no limit."""
