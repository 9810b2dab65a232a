"""Adapters made from the configuration; one client for each system."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from sync_orchestrator.adapters.file_source import FileSource
from sync_orchestrator.adapters.http import Http
from sync_orchestrator.adapters.rest_source import RestSource
from sync_orchestrator.adapters.rest_third_party import RestThirdParty
from sync_orchestrator.adapters.sql_database import Database
from sync_orchestrator.adapters.sql_source import SqlSource
from sync_orchestrator.config import Config, Part, Source
from sync_orchestrator.config.sources import FilesSystem, RestSystem, SqlSystem
from sync_orchestrator.core.breaker import HoldOff
from sync_orchestrator.core.logins import LoginStore
from sync_orchestrator.core.ports import SourceSystem, ThirdParty

BeforeCall = Callable[[], Awaitable[None]]
Client = Http | Database | FilesSystem
Logins = Callable[[str], LoginStore]
"""Where the logins to a system are kept, by its place in the configuration, such as ``sources.shop``."""


def build_sources(config: Config, logins: Logins | None = None) -> dict[str, dict[str, SourceSystem]]:
    """The source systems of every entity, by entity and part."""
    clients = {name: _client(name, system, logins) for name, system in config.sources.items()}
    return {
        name: {part: _source(clients[part], settings) for part, settings in entity.parts.items()}
        for name, entity in config.entities.items()
    }


def _client(name: str, system: Source, logins: Logins | None) -> Client:
    match system:
        case RestSystem():
            return Http(system, logins=logins(f"sources.{name}") if logins else None)
        case SqlSystem():
            return Database(name, system)
        case FilesSystem():
            return system
        case _:
            raise AssertionError(system.kind)


def _source(client: Client, part: Part) -> SourceSystem:
    match client:
        case Http():
            return RestSource(client, part)
        case Database():
            return SqlSource(client, part)
        case FilesSystem():
            return FileSource(client, part)


def build_third_parties(
    config: Config, before_call: Mapping[str, BeforeCall], hold_offs: Mapping[str, HoldOff] | None = None,
    logins: Logins | None = None,
) -> dict[str, ThirdParty]:
    """Every entity's collection at its third party; ``before_call`` by system, where it has a rate.

    Without ``hold_offs`` (by system) and ``logins``, this process alone knows of them.
    """
    clients = {
        name: Http(system, before_call.get(name), hold_off=(hold_offs or {}).get(name),
                   logins=logins(f"third_parties.{name}") if logins else None)
        for name, system in config.third_parties.items()
    }
    return {
        name: RestThirdParty(clients[entity.third_party.system], entity.third_party, tuple(entity.mapping))
        for name, entity in config.entities.items()
    }
