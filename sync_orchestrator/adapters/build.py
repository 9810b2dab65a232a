"""Adapters made from the configuration; one HTTP client for each system."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sync_orchestrator.adapters.http import Http
from sync_orchestrator.adapters.rest_source import RestSource
from sync_orchestrator.adapters.rest_third_party import RestThirdParty
from sync_orchestrator.config import Config
from sync_orchestrator.core.ports import SourceSystem, ThirdParty

BeforeCall = Callable[[], Awaitable[None]]


def build_sources(config: Config) -> dict[str, dict[str, SourceSystem]]:
    """The source systems of every entity, by entity and part."""
    clients = {name: Http(source) for name, source in config.sources.items()}
    return {
        name: {part: RestSource(clients[part], settings) for part, settings in entity.parts.items()}
        for name, entity in config.entities.items()
    }


def build_third_parties(config: Config, before_call: dict[str, BeforeCall]) -> dict[str, ThirdParty]:
    """Every entity's collection at its third party; ``before_call`` by system, where it has a rate."""
    clients = {name: Http(system, before_call.get(name)) for name, system in config.third_parties.items()}
    return {
        name: RestThirdParty(clients[entity.third_party.system], entity.third_party, tuple(entity.mapping))
        for name, entity in config.entities.items()
    }
