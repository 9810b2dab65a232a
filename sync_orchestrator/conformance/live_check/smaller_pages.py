"""The same configuration with a listing that comes in smaller pages."""

from __future__ import annotations

from typing import Any

from sync_orchestrator.config import Config, ListCallSettings
from sync_orchestrator.conformance.changed_configs import with_changes


def with_page_size(config: Config, name: str, part: str | None, size: int) -> Config | None:
    """The same with a smaller page of one listing; None where the size of its pages cannot be set."""
    entity = config.entities[name]
    if part is None:
        listing = _shrink_listing(entity.third_party.list, size)
        return None if listing is None else with_changes(config, name, third_party={"list": listing})
    settings = entity.parts[part]
    changes: dict[str, Any] = {}
    if (listing := _shrink_listing(settings.list, size)) is not None:
        changes = {"list": listing}
    elif settings.sql is not None:
        changes = {"sql": settings.sql.model_copy(update={"page": size})}
    if not changes:
        return None
    parts = {**entity.parts, part: settings.model_copy(update=changes)}
    return config.model_copy(update={"entities": {name: entity.model_copy(update={"parts": parts})}})


def _shrink_listing(listing: ListCallSettings | None, size: int) -> ListCallSettings | None:
    if listing is None or listing.paging == "none" or "limit" not in listing.collect_template_names():
        return None
    return listing.model_copy(update={"size": size})
