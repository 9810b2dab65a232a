"""What the work of the core is done with: the database, the configuration, and each entity's rules and systems.

Built in one place, ``composition.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.notifications.outcomes import OutcomeRouting
from sync_orchestrator.core.ports import Found, SourceLog, SourceSystem, ThirdParty
from sync_orchestrator.core.systems.call_limit import CallLimit
from sync_orchestrator.core.systems.claim_holders import Holder
from sync_orchestrator.core.systems.installation import InstallationWatch
from sync_orchestrator.core.two_way.rules import TwoWay
from sync_orchestrator.core.values.mapping import Mapping as PayloadMapping
from sync_orchestrator.core.values.places import digest_of_found
from sync_orchestrator.core.version_guard import Rules

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from sync_orchestrator.config import Config, EntitySettings, RetrySettings, ThirdPartySettings


@dataclass(frozen=True, slots=True)
class EntityContext:
    """One entity: its rules, its source systems by part, its collection at the third party."""

    name: str
    settings: EntitySettings
    retry: RetrySettings
    rules: Rules
    mapping: PayloadMapping
    sources: dict[str, SourceSystem]
    third_party: ThirdParty
    system: ThirdPartySettings
    outcomes: OutcomeRouting
    """Who gets the outcomes of its records."""
    two_way: TwoWay | None = None
    """Where people change its records on both sides."""
    shared_fields: frozenset[str] = frozenset()
    """The mapped fields that hold merged values."""
    logs: Mapping[str, SourceLog] = field(default_factory=dict)
    """By part, the source's log where the part's versions are the numbers of its stream."""

    @property
    def system_name(self) -> str:
        """The name of the third party in the configuration."""
        return self.settings.third_party.system

    @property
    def owner(self) -> SourceSystem:
        """The source system of the part that owns the record."""
        return self.sources[self.settings.owner]

    def digest_of_found(self, found: Found, group: str | None) -> bytes:
        """The digest of a record that the third party shows, as one of a business group (``core/values/places.py``)."""
        return digest_of_found(self.mapping, self.third_party.capabilities, found, group)


@dataclass(frozen=True, slots=True)
class Context:
    """Everything that the core works with: the database, the configuration, and the systems of each entity."""

    engine: Engine
    config: Config
    entities: dict[str, EntityContext]
    clients: Mapping[str, Any] = field(default_factory=dict)
    """By third party, the HTTP client (``adapters/http/client.py``) of the proxy's routes. The core does not use it."""
    installation: InstallationWatch | None = None
    """Notices that the database was restored."""
    accounts_asked: dict[str, float] = field(default_factory=dict)
    """By third party, the monotonic time at which its account was last asked for."""
    call_limits: Mapping[str, CallLimit] = field(default_factory=dict)
    """By third party, how many calls it gets at once; the configured number where it has none."""
    holder: Holder = field(init=False)
    """This process, as the holder of what it claims."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "holder", Holder(self.engine, self.config.limits.lease))

    def of_system(self, name: str) -> list[EntityContext]:
        """The entities that are kept at one third party."""
        return [entity for entity in self.entities.values() if entity.system_name == name]

    def iterate_systems(self) -> Iterator[tuple[str, ThirdPartySettings]]:
        """The third parties of the configuration with their names."""
        return iter(self.config.third_parties.items())

    async def close(self) -> None:
        """Ends the connections to all systems."""
        for entity in self.entities.values():
            await entity.third_party.close()
            for source in entity.sources.values():
                await source.close()
            for log in entity.logs.values():
                await log.close()
        for client in self.clients.values():
            await client.close()
