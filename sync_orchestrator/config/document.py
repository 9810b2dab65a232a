"""All of ``sync.yaml``: what stands at its top, and whether its sections fit each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from sync_orchestrator.config.brokers import ConsumerSettings, OutcomeReceiverSettings
from sync_orchestrator.config.entities import EntitySettings, RetrySettings
from sync_orchestrator.config.opposite_flows import find_write_conflicts
from sync_orchestrator.config.place_marks import line_mark
from sync_orchestrator.config.routes import RouteSettings
from sync_orchestrator.config.sources import (
    LogChangeSettings,
    PartSettings,
    SharedSourceSettings,
    Source,
    SqlSourceSettings,
)
from sync_orchestrator.config.targets import ThirdPartySettings
from sync_orchestrator.config.two_way import TwoWaySettings, find_two_way_problems
from sync_orchestrator.config.types import AllowedHost, Model, Name, Seconds


class LimitSettings(Model):
    """How much at once, and for how long."""

    event_bytes: int = Field(default=262_144, ge=1)
    """The largest change event that is taken."""
    request_bytes: int = Field(default=8_388_608, ge=1)
    """The largest body of a request with change events, as it is sent and when it is unpacked."""
    events_per_request: int = Field(default=10_000, ge=1)
    """The most change events in one request."""
    bodies_bytes: int = Field(default=268_435_456, ge=1)
    """The bodies of all requests with change events under way at one replica of the API service, as they are sent and
    unpacked; one sender may have half of it, so that it leaves room for others. What is more is refused with 503. It is
    never less than 4 times ``request_bytes``."""
    unproven_bytes: int = Field(default=67_108_864, ge=1)
    """The same of signed requests whose signature cannot be checked yet, since the body is not whole; each counts as
    256 kB at least. It is never less than one such request."""
    batch: int = Field(default=1000, ge=1, le=10_000)
    """Events claimed at once."""
    lease: Seconds = 60
    """How long claimed work belongs to one drain; must exceed every call's timeout."""
    linger: Seconds = 20
    """How long a drain stays when nothing is left to do."""
    drain_seconds: Seconds = 300
    """A drain ends after this time; the sensor starts the next, to which it hands over if there is work."""
    drains: int = Field(default=1, ge=1, le=100)
    """So many drains at most work side by side where fewer do not keep up. The limits of ``third_parties`` on
    connections hold for each, those on calls a second for all together."""


class AlertSettings(Model):
    """Who is told when a person is needed, and after how long."""

    urls: list[str] = Field(default=[], repr=False)
    """Apprise URLs; without any, alerts go to the log."""
    group_wait: Seconds = 5
    """How long an alert waits for more of the same before it is sent."""
    repeat_after: Seconds = 3600
    """An alert that was sent and to which more is added is sent again after this time, then after twice as long…"""
    ui_url: str = Field(default_factory=lambda: os.environ.get("SYNC_UI_URL", "http://127.0.0.1:3000"))
    """Where the Dagster UI is, for the links in alerts; unless told, what ``SYNC_UI_URL`` says, which ``up`` sets, or
    http://127.0.0.1:3000. The UI answers under its host, too."""
    waiting_after: Seconds = 86_400
    """An event that waits for its record so long, or a record for what it refers to, is told of."""
    overdue_after: Seconds = 900
    """Work that is due and not done for so long is told of."""
    silent_after: Seconds = 300
    """Alert when the sensor or the worker has been silent for this time (the API service then sends all alerts), or
    groups are not validated for this time after their turn."""


class UiSettings(Model):
    """Under which hosts the Dagster UI answers. Whoever reaches it is an operator: it has no login of its own."""

    allowed_hosts: list[AllowedHost] = []
    """Host names under which the UI answers, besides ``localhost``, loopback addresses and the host of
    ``alerts.ui_url``: those of a login proxy. With a port, for that port only. Other hosts get 421."""


class ApiSettings(Model):
    """Under which hosts the API service answers calls that need no key."""

    allowed_hosts: list[AllowedHost] = []
    """Host names under which ``/healthz`` and ``/readyz`` answer, besides ``localhost`` and IP addresses. With a port,
    for that port only. Other hosts get 421."""


class RetentionSettings(Model):
    """After how many days what is over is forgotten, by the daily job ``maintenance``; null for never."""

    history_days: int | None = Field(default=90, ge=1)
    """Finished change events, and the calls that were made: by whole months where they can be."""
    event_ids_days: int | None = Field(default=365, ge=1)
    """The ids of events: a notification that comes again later than that counts as a new one."""
    findings_days: int | None = Field(default=365, ge=1)
    """Validations but the last of a group, drift that is repaired, alerts that are over."""
    runs_days: int | None = Field(default=30, ge=1)
    """Dagster's runs of ``incremental_sync``, ``maintenance``, ``show_record`` and ``report_alerts``, with their
    events."""


class Config(Model):
    """All of ``sync.yaml``."""

    version: Literal[1] = 1
    """The version of this file's format."""
    sources: dict[Name, Source] = Field(min_length=1)
    """The source systems, by a name of your choice."""
    third_parties: dict[Name, ThirdPartySettings] = Field(min_length=1)
    """The external services that are kept in sync, by a name of your choice."""
    entities: dict[Name, EntitySettings] = Field(min_length=1)
    """The kinds of records, by a name of your choice; the ``type`` of change events begins with it."""
    retry: RetrySettings = RetrySettings()
    """What failed is tried again by this rule, unless its entity has one of its own."""
    limits: LimitSettings = LimitSettings()
    alerts: AlertSettings = AlertSettings()
    ui: UiSettings = UiSettings()
    api: ApiSettings = ApiSettings()
    retention: RetentionSettings = RetentionSettings()
    consumers: dict[Name, ConsumerSettings] = {}
    """Queues of message brokers whose messages are change events, by a name of your choice."""
    outcomes: dict[Name, OutcomeReceiverSettings] = {}
    """Who is told what became of changes, by a name of your choice."""
    routes: dict[Name, RouteSettings] = {}
    """Friendlier calls in front of those of the third parties, by a name of your choice."""

    def records_at_once(self, system: str) -> int:
        """How many records are pushed at once at a third party: its connections, or enough to fill its bulk calls."""
        largest = self.largest_batch(system)
        return max(self.third_parties[system].concurrency, 2 * largest if largest > 1 else 0)

    def largest_batch(self, system: str) -> int:
        """The most records of one call to a third party; 1 where each call has one."""
        return max(
            (
                bulk.size
                for entity in self.entities.values()
                if entity.third_party.system == system
                for bulk in entity.third_party.collect_bulk_calls().values()
            ),
            default=1,
        )

    @model_validator(mode="after")
    def _check_consistency(self) -> Config:
        if wrong := [
            *self._find_shared_system_problems(),
            *self._find_name_problems(),
            *self._find_event_problems(),
            *self._find_secret_problems(),
            *self._find_broker_problems(),
            *self._find_route_problems(),
            *self._find_timeout_problems(),
            *self._find_capture_problems(),
            *self._find_numbered_problems(),
            *find_write_conflicts(self.entities, self.sources, self.third_parties),
            *find_two_way_problems(self.entities, self.sources, self.third_parties),
        ]:
            raise ValueError("\n".join(wrong))
        return self

    def _find_shared_system_problems(self) -> Iterator[str]:
        """One system has one name, by which the database keeps its rate, breaker, hold-off and epoch."""
        for name, source in self.sources.items():
            if not isinstance(source, SharedSourceSettings):
                continue
            third_party = self.third_parties.get(source.same_as)
            if third_party is None:
                names = ", ".join(self.third_parties)
                yield f"sources.{name}.same_as: unknown third party '{source.same_as}'; expected one of: {names}"
            elif name != source.same_as:
                yield (
                    f"sources.{name}.same_as: a source that is the same system as a third party has its name: "
                    f"rename the source to '{source.same_as}', here and in 'parts' and 'owner'"
                )
            elif not third_party.base_url:
                yield (
                    f"sources.{name}.same_as: the third party '{name}' has no base_url, so there is no client to "
                    "share. Configure the source with 'adapter'"
                )

    def _find_name_problems(self) -> Iterator[str]:
        for name, entity in self.entities.items():
            for part, settings in entity.parts.items():
                if part not in self.sources:
                    yield f"entities.{name}.parts.{part}: there is no source system of that name"
                    continue
                try:
                    settings.check_kind(self.sources[part])
                except ValueError as error:
                    yield f"entities.{name}.parts.{part}: {error}"
            if entity.third_party.system not in self.third_parties:
                yield f"entities.{name}.third_party.system: no third party '{entity.third_party.system}'"
                continue
            try:
                entity.third_party.check_kind(self.third_parties[entity.third_party.system])
            except ValueError as error:
                hint = str(error)
                yield f"entities.{name}.third_party" + (f": {hint}" if hint.startswith("'") else f".{hint}")

    def _find_event_problems(self) -> Iterator[str]:
        for name, source in self.sources.items():
            if source.events is None:
                continue
            of = self.entities_of(name)
            if source.events.entity is None and len(of) != 1:
                yield f"sources.{name}.events.entity: is needed, since it is a part of {', '.join(of) or 'no entity'}"
            for theirs, entity in source.events.entities.items():
                if entity not in of:
                    yield f"sources.{name}.events.entities.{theirs}: {name} is no part of an entity '{entity}'"

    def _find_secret_problems(self) -> Iterator[str]:
        """Only the body and few headers are signed: nothing else may tell what an event means, or whose it is."""
        owners: dict[bytes, str] = {}
        for name, source in self.sources.items():
            for place, key in source.list_signing_keys():
                if (first := owners.setdefault(key, name)) != name:
                    yield (
                        f"sources.{name}.{place}: sources.{first} has the same secret, so a signature "
                        "does not tell which of them sent an event. Give each a secret of its own"
                    )
            signed = source.signed_headers
            for field in source.events.list_unsigned_fields(signed) if signed is not None and source.events else ():
                how = "webhook_secrets" if source.signature is None else "signature"
                yield (
                    f"sources.{name}.events.{field}: looks at headers, and a signature ({how}) covers "
                    + (f"only {' and '.join(signed)}" if signed else "none")
                    + ". Take the value from the body"
                )

    def _find_broker_problems(self) -> Iterator[str]:
        for name, consumer in self.consumers.items():
            if consumer.source is not None and consumer.source not in self.sources:
                yield f"consumers.{name}.source: there is no source system of that name"
            elif consumer.format == "own" and consumer.source and self.sources[consumer.source].events is None:
                yield f"consumers.{name}.format: sources.{consumer.source} says nothing of its 'events'"
            elif consumer.format == "outbox" and consumer.source and consumer.outbox:
                of = self.entities_of(consumer.source)
                if not of:
                    yield f"consumers.{name}.source: {consumer.source} is no part of an entity"
                for theirs, entity in consumer.outbox.entities.items():
                    if entity not in of:
                        yield (
                            f"consumers.{name}.outbox.entities.{theirs}: {consumer.source} is no part of an entity "
                            f"'{entity}'"
                        )
        for name, receiver in self.outcomes.items():
            for entity in receiver.entities or ():
                if entity not in self.entities:
                    yield f"outcomes.{name}.entities: there is no entity '{entity}'"

    def _find_route_problems(self) -> Iterator[str]:
        shapes: dict[str, str] = {}
        for name, route in self.routes.items():
            system = self.third_parties.get(route.third_party)
            if system is None or not system.base_url:
                yield f"routes.{name}.third_party: there is no third party '{route.third_party}' with a base_url"
            if route.entity is not None and route.entity not in self.entities:
                yield f"routes.{name}.entity: there is no entity '{route.entity}'"
            if (first := shapes.setdefault(route.format_shape(), name)) != name:
                yield f"routes.{name}.path: the route {first} has the same"
            mirrored = [
                entity for entity, settings in self.entities.items() if settings.third_party.system == route.third_party
            ]
            if mirrored and not route.is_read and not route.allow_writes:
                yield (
                    f"routes.{name}.allow_writes: {route.third_party} holds what is mirrored ({', '.join(mirrored)})"
                    ": what others write there is drift, which validation repairs. Change it at its source, or say "
                    "allow_writes: true where this writes something else"
                )

    def _find_timeout_problems(self) -> Iterator[str]:
        for name, system in self.third_parties.items():
            timeout, lease = system.timeout, self.limits.lease
            if timeout * 2 >= lease:
                place = f"third_parties.{name}.timeout"
                yield (
                    f"{place}: is {timeout:g} s ({line_mark(place)}), and must be less than half of limits.lease, "
                    f"which is {lease:g} s ({line_mark('limits.lease')}): a record stays leased while its call and "
                    f"a second look at it last. Set limits.lease to more than {2 * timeout:g} s, or timeout to less "
                    f"than {lease / 2:g} s"
                )

    def _find_capture_problems(self) -> Iterator[str]:
        slots: dict[tuple[str, str], str] = {}
        for name, source in self.sources.items():
            if not isinstance(source, SqlSourceSettings) or source.capture is None:
                continue
            server = urlsplit(source.capture.url or source.url)
            known_as = f"server_id {source.capture.server_id}" if source.has_binlog else f"slot {source.capture.slot}"
            if known_as == "server_id None":
                continue
            slot = (server.netloc.rpartition("@")[2] + "?" + server.query, known_as)
            if (first := slots.setdefault(slot, name)) != name:
                what = "server_id" if source.has_binlog else "slot"
                yield (
                    f"sources.{name}.capture.{what}: sources.{first} has the same {what} of this server, and a {what} "
                    f"has one reader. Give each a {what} of its own"
                )

    def _find_numbered_problems(self) -> Iterator[str]:
        """Versions of kind log are the numbers of one stream, so nothing but the stream may tell a change."""
        for source, settings in self.sources.items():
            of = self.entities_of(source)
            numbered = [name for name in of if self.entities[name].parts[source].version.is_numbered]
            if not numbered:
                continue
            names, is_all = ", ".join(numbered), numbered == of
            why = (
                f"the changes of {names} come from the log of {source} alone (version: kind 'log'). Leave one of the "
                "two out"
            )
            events = settings.events
            if events is not None and (is_all or {events.entity, *events.entities.values()} & set(numbered)):
                yield f"sources.{source}.events: {why}"
            if settings.webhook_secrets and is_all:
                yield f"sources.{source}.webhook_secrets: {why}"
            for name, consumer in self.consumers.items():
                told = set(consumer.outbox.entities.values()) if consumer.outbox is not None else set()
                if consumer.source == source and (is_all or told & set(numbered)):
                    yield f"consumers.{name}.source: {why}"

    def find_two_way(self, entity: str) -> tuple[str, TwoWaySettings] | None:
        """The two-way settings that an entity takes part in, with the entity that has them; None where it has none."""
        for name, settings in self.entities.items():
            if settings.two_way is not None and entity in (name, settings.two_way.back):
                return name, settings.two_way
        return None

    def locate_source_access(self, name: str) -> str:
        """The place of the settings by which a source system is reached, such as ``sources.shop``."""
        source = self.sources[name]
        return f"third_parties.{source.same_as}" if isinstance(source, SharedSourceSettings) else f"sources.{name}"

    def describe_source_access(self, name: str) -> Source | ThirdPartySettings:
        """The settings by which a source system is reached: its own, or those of the third party that it is."""
        source = self.sources[name]
        return self.third_parties[source.same_as] if isinstance(source, SharedSourceSettings) else source

    def captured_parts(self, source: str) -> list[tuple[str, PartSettings, LogChangeSettings]]:
        """The parts of a source system whose changes its database's log tells, each with its entity."""
        found = []
        for name, entity in self.entities.items():
            part = entity.parts.get(source)
            if part is not None and isinstance(part.changes, LogChangeSettings):
                found.append((name, part, part.changes))
        return found

    def captured_sources(self) -> list[str]:
        """The source systems whose database's log is read."""
        return [name for name in self.sources if self.captured_parts(name)]

    def entities_of(self, source: str) -> list[str]:
        """The entities that a source system is a part of."""
        return [name for name, entity in self.entities.items() if source in entity.parts]

    def receivers_by_kind(self, entity: str) -> dict[str, tuple[str, ...]]:
        """By kind of outcome, the receivers that want to know of an entity's."""
        told: dict[str, tuple[str, ...]] = {}
        for name, receiver in self.outcomes.items():
            for kind in receiver.kinds if receiver.entities is None or entity in receiver.entities else ():
                told[kind] = (*told.get(kind, ()), name)
        return told

    def retry_of(self, entity: str) -> RetrySettings:
        """The retry rule of an entity: its own, or the common one."""
        return self.entities[entity].retry or self.retry
