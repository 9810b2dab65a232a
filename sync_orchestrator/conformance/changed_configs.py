"""The same configuration with some of an entity's settings changed."""

from __future__ import annotations

from typing import Any

from sync_orchestrator.config import Config


def with_changes(
    config: Config, entity: str, *, third_party: dict[str, Any] | None = None, system: dict[str, Any] | None = None
) -> Config:
    """The same configuration with some of an entity's third party changed."""
    settings = config.entities[entity]
    name = settings.third_party.system
    changed = settings.model_copy(update={"third_party": settings.third_party.model_copy(update=third_party or {})})
    return config.model_copy(
        update={
            "entities": {entity: changed},
            "third_parties": {name: config.third_parties[name].model_copy(update=system or {})},
        }
    )
