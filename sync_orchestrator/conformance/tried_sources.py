"""The source systems as checks try them: with the rates of third parties that they share, and without a database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from sync_orchestrator.adapters.factory import Behind, build_clients, build_sources
from sync_orchestrator.config import Config
from sync_orchestrator.conformance.pacing import paces_of
from sync_orchestrator.core.archive.passed_over import SelectedSource
from sync_orchestrator.core.ports import SourceSystem


def build_tried_sources(
    config: Config, shared: Mapping[str, Behind] | None = None
) -> dict[str, dict[str, SourceSystem]]:
    """The source systems of every entity, by entity and part; items that are no records are left out of listings.

    Args:
        config: The configuration.
        shared: The clients of the third parties, for sources with ``same_as``; by default they are made.
    """
    made = build_sources(config, shared=shared or build_clients(config, paces_of(config)))
    return {
        entity: {
            part: cast("SourceSystem", SelectedSource(source, None, entity, part))
            if config.entities[entity].parts[part].only_when is not None
            else source
            for part, source in parts.items()
        }
        for entity, parts in made.items()
    }
