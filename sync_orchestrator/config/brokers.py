"""Message brokers and outboxes: where changes come from, and where outcomes go to (a webhook can take them, too)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from sync_orchestrator.config.outbox import OUTBOX_DATABASES, OutboxSettings
from sync_orchestrator.config.types import Model, Name, Seconds, WebhookSecret

OutcomeKind = Literal["mirrored", "dead", "drift"]

BROKERS = (
    "amqp",
    "amqps",
    "azureservicebus",
    "azurestoragequeues",
    "confluentkafka",
    "consul",
    "etcd",
    "filesystem",
    "gcpubsub",
    "kafka",
    "librabbitmq",
    "memory",
    "mongodb",
    "pgmq",
    "pyamqp",
    "pyro",
    "qpid",
    "redis",
    "rediss",
    "sentinel",
    "slmq",
    "sqla",
    "sqlalchemy",
    "sqs",
    "zookeeper",
)
"""How the URL of a broker may begin: the transports of kombu, which is not loaded for it."""


def _check_broker_url(url: str) -> str:
    name = url.partition("://")[0].partition("+")[0]
    if name not in BROKERS:
        raise ValueError(f"there is no broker '{name}'; there is {', '.join(BROKERS)}")
    return url


def _check_consumer_url(url: str) -> str:
    return url if _backend_of(url) in OUTBOX_DATABASES else _check_broker_url(url)


def _backend_of(url: str) -> str:
    return url.partition("://")[0].partition("+")[0]


def _broker_or_webhook(url: str) -> str:
    return url if _is_webhook(url) else _check_broker_url(url)


Url = Annotated[str, Field(pattern=r"^[a-z][a-z0-9+]*://", repr=False)]
ConsumerUrl = Annotated[Url, AfterValidator(_check_consumer_url)]
ReceiverUrl = Annotated[Url, AfterValidator(_broker_or_webhook)]


class ConsumerSettings(Model):
    """A queue of a broker, or an outbox in a database, whose messages are change events."""

    url: ConsumerUrl
    """A broker as kombu names it: ``amqp://user:${PASSWORD}@host/vhost``, ``redis://host/0``, ``sqs://…``. For an
    outbox, a database as SQLAlchemy names it: ``postgresql+psycopg://user:${PASSWORD}@host/name``."""
    queue: str = Field(default="", max_length=255)
    """The queue; in Redis, the list. Needed for a broker."""
    outbox: OutboxSettings | None = None
    """The table to consume from, in place of a queue."""
    format: Literal["cloudevents", "own", "outbox"] = "cloudevents"
    """``own``: as the source's ``events`` say. ``outbox``, the default of an outbox: as its columns say."""
    source: Name | None = None
    """The source system that all of them are from, whatever they say themselves; needed for ``own`` and ``outbox``."""
    exchange: str | None = None
    """The queue is made and bound to this exchange, which must be there; without it the queue must be there."""
    bindings: list[str] = Field(default=["#"], min_length=1)
    """The routing keys by which it is bound."""
    arguments: dict[str, object] = {}
    """What the queue is made with, such as ``{x-queue-type: quorum}``."""
    at_once: int = Field(default=200, ge=1, le=10_000)
    """So many messages at most are taken at once and recorded in one commit."""
    options: dict[str, object] = Field(default={}, repr=False)
    """Further transport options of kombu."""

    @property
    def is_redis(self) -> bool:
        """Whether it is a list in Redis, which knows neither exchanges nor acknowledgements."""
        return _is_redis(self.url)

    @property
    def place(self) -> str:
        """The queue, or the table of the outbox."""
        return self.queue if self.outbox is None else self.outbox.table

    @model_validator(mode="before")
    @classmethod
    def _default_to_format_of_outbox(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("outbox") is not None and "format" not in value:
            return {**value, "format": "outbox"}
        return value

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.format == "own" and self.source is None:
            raise ValueError("source: is needed where the format is the source's own")
        if self.outbox is not None:
            self._check_outbox(self.outbox)
            return self
        if _backend_of(self.url) in OUTBOX_DATABASES:
            raise ValueError("url: is a database: say with 'outbox' which of its tables to consume from")
        if self.format == "outbox":
            raise ValueError("format: 'outbox' belongs to a table: say with 'outbox' which one")
        if not self.queue:
            raise ValueError("queue: is needed")
        if self.is_redis and self.exchange is not None:
            raise ValueError("exchange: there is no such thing in Redis; leave it out")
        return self

    def _check_outbox(self, outbox: OutboxSettings) -> None:
        if _backend_of(self.url) not in OUTBOX_DATABASES:
            raise ValueError("url: an outbox is a table of Postgres, MySQL, MariaDB or SQLite: name that database")
        for name in ("queue", "exchange", "bindings", "arguments", "options"):
            if name in self.model_fields_set:
                raise ValueError(f"{name}: belongs to a broker, and this is an outbox: leave it out")
        if self.source is None and self.format == "outbox":
            raise ValueError("source: is needed: the source system whose outbox this is")
        if self.format != "outbox":
            for name in outbox.list_event_settings():
                says = "the source's 'events' say" if self.format == "own" else "the CloudEvent says"
                raise ValueError(f"outbox.{name}: has no effect with format {self.format}: {says} it. Leave it out")
        elif outbox.columns.payload is None and outbox.columns.version is None:
            raise ValueError(
                "outbox.columns: without a payload the version must be in a column: set 'columns.version', or "
                "'columns.payload' to the column that has the part"
            )


class OutcomeReceiverSettings(Model):
    """Somebody who wants to know what became of changes: told by CloudEvents, at least once, in order per record."""

    url: ReceiverUrl
    """A webhook (``https://…``) or a broker (``amqp://…``, ``redis://…``)."""
    kinds: list[OutcomeKind] = Field(default=["mirrored", "dead", "drift"], min_length=1)
    """What of: the third party has a change, a change died and a person was told, validation confirmed drift."""
    entities: list[Name] | None = None
    """Of which entities; of all of them unless told."""
    secret: WebhookSecret | None = Field(default=None, repr=False)
    """Of a webhook: calls are signed with it as Standard Webhooks 1.0 has it; base64, padded or not,
    ``whsec_`` before it or not."""
    headers: dict[str, str] = Field(default={}, repr=False)
    """Of a webhook: further headers, such as ``Authorization``."""
    queue: str | None = None
    """Of a broker: the queue, which is made where it is missing; in Redis, the list."""
    exchange: str | None = None
    """Of a broker: an exchange that is there, in place of a queue."""
    routing_key: str | None = None
    """With an exchange; by default the event's type, such as ``product.mirrored``."""
    source: str = Field(default="sync_orchestrator", min_length=1)
    """The ``source`` of the events."""
    timeout: Seconds = Field(default=10, gt=0, le=20)
    """How long one call may take."""

    @property
    def is_webhook(self) -> bool:
        """Whether it is called over HTTP."""
        return _is_webhook(self.url)

    @property
    def is_redis(self) -> bool:
        """Whether it is a list in Redis."""
        return _is_redis(self.url)

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        places = [name for name in ("queue", "exchange", "routing_key") if getattr(self, name) is not None]
        if self.is_webhook:
            if places:
                raise ValueError(f"{places[0]}: a webhook has none; leave it out")
            return self
        if self.secret is not None or self.headers:
            name = "headers" if self.secret is None else "secret"
            raise ValueError(f"{name}: belongs to a webhook; leave it out")
        if (self.queue is None) == (self.exchange is None):
            raise ValueError("say 'queue' or 'exchange', one of them")
        if self.is_redis and self.queue is None:
            raise ValueError("exchange: there is no such thing in Redis; say 'queue'")
        return self


def _is_webhook(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _is_redis(url: str) -> bool:
    return url.startswith(("redis://", "rediss://"))
