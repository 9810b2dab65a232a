"""Adapters made from the configuration; one client for each system."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from sync_orchestrator.adapters.containment import ContainedSource, ContainedThirdParty, Containment, Mask
from sync_orchestrator.adapters.custom.base import Adapter
from sync_orchestrator.adapters.custom.guard import AdapterGuard, GuardedSource, GuardedThirdParty
from sync_orchestrator.adapters.custom.loading import made_source, made_third_party, secrets_in
from sync_orchestrator.adapters.files.source import FileSource
from sync_orchestrator.adapters.http.call_room import Room
from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.http.responses import sanitize_text
from sync_orchestrator.adapters.rest.source import RestSource
from sync_orchestrator.adapters.rest.third_party import RestThirdParty
from sync_orchestrator.adapters.sql.database import SourceDatabase
from sync_orchestrator.adapters.sql.log_end import PostgresLogEnd
from sync_orchestrator.adapters.sql.source import SqlSource
from sync_orchestrator.config import Config, PartSettings, Source, ThirdPartySettings
from sync_orchestrator.config.sources import (
    ClassSourceSettings,
    FileSourceSettings,
    RestSourceSettings,
    SharedSourceSettings,
    SqlSourceSettings,
)
from sync_orchestrator.core.archive.absent_fields import mapped_fields
from sync_orchestrator.core.ports import SourceSystem, ThirdParty
from sync_orchestrator.core.systems.call_limit import CallLimit
from sync_orchestrator.core.systems.login_sessions import LoginStore
from sync_orchestrator.core.systems.rate_limit import HoldOff
from sync_orchestrator.texts.masking import words_in

BeforeCall = Callable[[], Awaitable[None]]
Logins = Callable[[str], LoginStore]
"""Where the logins to a system are kept, by its place in the configuration, such as ``sources.shop``."""


@dataclass(frozen=True, slots=True)
class Behind:
    """A system as it is called: our client where it has an address, and where it has none the room to call it."""

    settings: ClassSourceSettings | ThirdPartySettings
    http: HttpClient | None
    room: Room | None
    hold_off: HoldOff

    def create_guard(self, adapter: Adapter) -> AdapterGuard:
        """Returns a guard around one adapter that calls this system: its timeout, limits and secrets."""
        return AdapterGuard(adapter, self.settings.timeout, self.room, self.hold_off, self._collect_secrets(adapter))

    def sanitize_text(self, text: str, adapter: Adapter | None = None) -> str:
        """Text for an error message: on one line, clipped, without secrets."""
        return (
            self.http.sanitize_text(text)
            if adapter is None and self.http is not None
            else sanitize_text(text, self._collect_secrets(adapter))
        )

    def _collect_secrets(self, adapter: Adapter | None) -> tuple[str, ...]:
        own = () if adapter is None else (adapter.settings,)
        return words_in([*secrets_in(self.settings.settings, *own), *self.settings.headers.values()])

    async def close(self) -> None:
        """Closes the connections of the client, where there is one."""
        if self.http is not None:
            await self.http.close()


Client = HttpClient | SourceDatabase | FileSourceSettings | Behind


def build_sources(
    config: Config,
    logins: Logins | None = None,
    hold_offs: Mapping[str, HoldOff] | None = None,
    shared: Mapping[str, Behind] | None = None,
) -> dict[str, dict[str, SourceSystem]]:
    """The source systems of every entity, by entity and part; the errors of all of them are contained.

    Args:
        config: The configuration.
        logins: Where logins are kept; by default this process alone knows of them.
        hold_offs: The hold-offs by system; by default this process alone knows of them.
        shared: The clients of the third parties, which sources with ``same_as`` use; by default they get clients of
            their own.

    Raises:
        ConfigError: A class cannot be made.
    """
    if shared is None:
        shared = build_clients(config, {}, hold_offs, logins)
    clients = {
        name: _build_client(name, system, logins, (hold_offs or {}).get(name) or HoldOff(), shared)
        for name, system in config.sources.items()
    }
    sources: dict[str, dict[str, SourceSystem]] = {}
    for name, entity in config.entities.items():
        fields = mapped_fields(entity.mapping)
        sources[name] = {
            part: _build_source(part, clients[part], name, settings, fields.get(part, frozenset()))
            for part, settings in entity.parts.items()
        }
    return sources


def build_logs(config: Config) -> dict[str, dict[str, PostgresLogEnd]]:
    """The logs of the sources whose streams number the versions of a part, by entity and part."""
    logs: dict[str, PostgresLogEnd] = {}
    by_entity: dict[str, dict[str, PostgresLogEnd]] = {}
    for name, entity in config.entities.items():
        by_entity[name] = {}
        for part, settings in entity.parts.items():
            system = config.sources[part]
            if settings.version.is_numbered and isinstance(system, SqlSourceSettings):
                by_entity[name][part] = logs.setdefault(part, PostgresLogEnd(part, system))
    return by_entity


def _build_client(
    name: str, system: Source, logins: Logins | None, hold_off: HoldOff, shared: Mapping[str, Behind]
) -> Client:
    match system:
        case SharedSourceSettings():
            http = shared[system.same_as].http
            assert http is not None
            return http
        case ClassSourceSettings():
            return _build_behind(system, f"sources.{name}", None, hold_off, logins)
        case RestSourceSettings():
            return HttpClient(system, hold_off=hold_off, logins=logins(f"sources.{name}") if logins else None)
        case SqlSourceSettings():
            return SourceDatabase(name, system)
        case FileSourceSettings():
            return system


def _build_source(name: str, client: Client, entity: str, part: PartSettings, fields: frozenset[str]) -> SourceSystem:
    """``fields``: what the mapping reads of the part."""
    needed = fields if part.absent_fields == "refuse" else frozenset()
    match client:
        case HttpClient():
            return _contain_source(name, RestSource(client, part), client.sanitize_text)
        case SourceDatabase():
            return _contain_source(name, SqlSource(client, part, needed), client.sanitize_text)
        case FileSourceSettings():
            return _contain_source(name, FileSource(client, part, needed), sanitize_text)
        case Behind():
            assert isinstance(client.settings, ClassSourceSettings)
            made = made_source(name, client.settings, client.http, entity, part)
            guarded = GuardedSource(made, client.create_guard(made), client.close)
            return _contain_source(name, guarded, lambda text: client.sanitize_text(text, made))


def _contain_source(name: str, source: SourceSystem, mask: Mask) -> SourceSystem:
    return ContainedSource(source, Containment(f"sources.{name}", mask))


def build_third_parties(
    config: Config,
    before_call: Mapping[str, BeforeCall],
    hold_offs: Mapping[str, HoldOff] | None = None,
    logins: Logins | None = None,
) -> dict[str, ThirdParty]:
    """Every entity's collection at its third party; ``before_call`` by system, where it has a rate.

    Without ``hold_offs`` (by system) and ``logins``, this process alone knows of them. Raises ConfigError for a class
    that cannot be made.
    """
    return third_parties_behind(config, build_clients(config, before_call, hold_offs, logins))


def build_clients(
    config: Config,
    before_call: Mapping[str, BeforeCall],
    hold_offs: Mapping[str, HoldOff] | None = None,
    logins: Logins | None = None,
    limits: Mapping[str, CallLimit] | None = None,
) -> dict[str, Behind]:
    """What each third party is called through, by its name: by entities and by routes of the proxy alike."""
    clients = {}
    for name, system in config.third_parties.items():
        hold_off = (hold_offs or {}).get(name) or HoldOff()
        clients[name] = _build_behind(
            system, f"third_parties.{name}", before_call.get(name), hold_off, logins, (limits or {}).get(name)
        )
    return clients


def third_parties_behind(config: Config, clients: Mapping[str, Behind]) -> dict[str, ThirdParty]:
    """Every entity's collection at its third party. Raises ConfigError for a class that cannot be made."""
    made: dict[str, ThirdParty] = {}
    for name, entity in config.entities.items():
        target, client = entity.third_party, clients[entity.third_party.system]
        assert isinstance(client.settings, ThirdPartySettings)
        if client.settings.adapter is None:
            assert client.http is not None
            third_party: ThirdParty = RestThirdParty(
                client.http, target, tuple(entity.mapping), client.settings.account
            )
            mask: Mask = client.http.sanitize_text
        else:
            own = made_third_party(target.system, client.settings, client.http, name, target, tuple(entity.mapping))
            third_party = GuardedThirdParty(own, client.create_guard(own), client.close)
            mask = partial(client.sanitize_text, adapter=own)
        made[name] = ContainedThirdParty(third_party, Containment(f"third_parties.{target.system}", mask))
    return made


def clients_of_routes(config: Config, clients: Mapping[str, Behind]) -> dict[str, HttpClient]:
    """Of the third parties that routes of the proxy call, the client that their entities have, too."""
    made = {}
    for name in sorted({route.third_party for route in config.routes.values()}):
        http = clients[name].http
        assert http is not None
        made[name] = http
    return made


def _build_behind(
    system: ClassSourceSettings | ThirdPartySettings,
    place: str,
    before_call: BeforeCall | None,
    hold_off: HoldOff,
    logins: Logins | None,
    limit: CallLimit | None = None,
) -> Behind:
    if not system.base_url:
        return Behind(system, None, Room(before_call, hold_off, limit), hold_off)
    http = HttpClient(
        system,
        before_call,
        hold_off=hold_off,
        logins=logins(place) if logins else None,
        secrets=secrets_in(system.settings),
        limit=limit,
    )
    return Behind(system, http, None, hold_off)
