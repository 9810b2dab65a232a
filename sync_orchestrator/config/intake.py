"""How a source system sends change events: its signatures, its rate limit, and its own event format."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, Self

from pydantic import Field, model_validator

from sync_orchestrator.config.signatures import SignatureSettings
from sync_orchestrator.config.signed_headers import SIGNED_HEADERS, reads_unsigned
from sync_orchestrator.config.types import Expression, Model, Name, WebhookSecret, webhook_key

_EXPRESSIONS = ("when", "id", "entity", "key", "group", "action", "version", "data")


class CustomEventSettings(Model):
    """Where each value is in the events of a source's custom format.

    Each place is a JMESPath expression on ``{body, headers}``: the event, and the headers that came with it, their
    names in lower case. Write a fixed text in single quotes: ``"'created'"``.
    """

    when: Expression | None = None
    """Only events for which this is true are taken; the others are passed over."""
    id: Expression | None = None
    """The event's id, unique at its source. Without it an event is known by the id of the signed request that brought
    it (``webhook-id``, or ``signature.id_header``), else by its content."""
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

    def list_unsigned_fields(self, signed: Collection[str]) -> list[str]:
        """The fields whose expressions look at headers other than ``signed``, which a signature does not cover."""
        return [
            name
            for name in _EXPRESSIONS
            if (expression := getattr(self, name)) is not None and reads_unsigned(expression, signed)
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
    signature: SignatureSettings | None = None
    """How its requests are signed, where it follows another scheme than Standard Webhooks: that of Shopify, GitHub,
    Stripe, WooCommerce and many others. In place of ``webhook_secrets``, and together with ``events``."""
    events_per_second: float | None = Field(default=None, gt=0)
    """More than so many of its events are refused with 429 and the time to wait, by each replica of the API service;
    without it there is no limit."""

    @model_validator(mode="after")
    def _check_signature(self) -> Self:
        if self.signature is not None and self.webhook_secrets:
            raise ValueError("signature: 'webhook_secrets' is another scheme: leave one of them out")
        if self.signature is not None and self.events is None:
            raise ValueError(
                "signature: needs 'events', which says where the values are in what the source sends to "
                "/v1/sources/NAME/events; a source that sends CloudEvents signs them with 'webhook_secrets'"
            )
        return self

    @property
    def signed_headers(self) -> tuple[str, ...] | None:
        """The names of the headers that its signature covers; None where it does not sign."""
        if self.signature is not None:
            return self.signature.signed_headers
        return SIGNED_HEADERS if self.webhook_secrets else None

    def list_signing_keys(self) -> list[tuple[str, bytes]]:
        """The keys by which it signs, each with its place in the source's settings."""
        if self.signature is not None:
            return [(f"signature.secrets.{at}", each.encode()) for at, each in enumerate(self.signature.secrets)]
        return [(f"webhook_secrets.{at}", webhook_key(str(each))) for at, each in enumerate(self.webhook_secrets)]
