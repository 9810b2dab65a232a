"""Adapters made from the configuration; one HTTP client for each system."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from sync_orchestrator.adapters.http import Http
from sync_orchestrator.adapters.rest_source import RestSource
from sync_orchestrator.adapters.rest_third_party import RestThirdParty
from sync_orchestrator.config import Config
from sync_orchestrator.core.breaker import HoldOff
from sync_orchestrator.core.logins import LoginStore
from sync_orchestrator.core.ports import SourceSystem, ThirdParty

BeforeCall = Callable[[], Awaitable[None]]
Logins = Callable[[str], LoginStore]
"""Where the logins to a system are kept, by its place in the configuration, such as ``sources.shop``."""


def build_sources(config: Config, logins: Logins | None = None) -> dict[str, dict[str, SourceSystem]]:
    """The source systems of every entity, by entity and part."""
    clients = {
        name: Http(source, logins=logins(f"sources.{name}") if logins else None)
        for name, source in config.sources.items() if source.kind == "rest"
    }
    return {
        name: {part: RestSource(clients[part], settings) for part, settings in entity.parts.items()}
        for name, entity in config.entities.items()
    }


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
