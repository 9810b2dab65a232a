"""What a configuration amounts to, in a few rows for people and programs."""

from __future__ import annotations

from urllib.parse import urlsplit

from sync_orchestrator.config import Config, Source
from sync_orchestrator.config.constants import uncompared_constants
from sync_orchestrator.config.sources import RestSourceSettings, SharedSourceSettings


def list_systems(config: Config) -> list[dict[str, str]]:
    """Every source system and third party: what it is and where."""
    sources = [
        {"system": name, "role": "source", "kind": source.kind, "where": _describe_source_place(source)}
        for name, source in config.sources.items()
    ]
    return sources + [
        {
            "system": name,
            "role": "third party",
            "kind": "rest" if system.adapter is None else "class",
            "where": _describe_place(system),
        }
        for name, system in config.third_parties.items()
    ]


def list_entities(config: Config) -> list[dict[str, str | int]]:
    """Every entity: what it is made of, where it goes, and how often it is validated."""
    return [
        {
            "entity": name,
            "parts": ", ".join(sorted(entity.parts, key=lambda part: part != entity.owner)),
            "third party": entity.third_party.system,
            "fields": len(entity.mapping),
            "validated every": _format_duration(entity.validation.every),
            "record by record every": _format_duration(entity.validation.full_comparison_every),
        }
        for name, entity in config.entities.items()
    ]


def list_notes(config: Config) -> list[str]:
    """What is allowed, but should be known: weak signatures, doubtful counts, and constants that are not compared."""
    notes = [
        f"sources.{name}.signature.algorithm: sha1 is weak. Choose sha256 if the sender offers it."
        for name, source in config.sources.items()
        if source.signature is not None and source.signature.algorithm == "sha1"
    ]
    notes += [
        f"sources.{name}: third_parties.{name} has the same name, so they share hold-off and pause, but neither rate, "
        f"login nor circuit breaker. Set 'same_as: {name}' if they are one system."
        for name, source in config.sources.items()
        if isinstance(source, RestSourceSettings) and name in config.third_parties
    ]
    notes += [
        f"entities.{name}.parts.{part}.count: has to count only what 'only_when' selects, which `check --live` "
        "compares with the list. Leave it out if it counts other items, too."
        for name, entity in config.entities.items()
        for part, settings in entity.parts.items()
        if settings.only_when is not None and settings.count is not None
    ]
    notes += [
        f"entities.{entity}.third_party.{place}: {_quote_names(names)} sent, but not compared, as constants are. "
        f"{_how_to_compare(place, names[0])}"
        for entity, settings in config.entities.items()
        for place, names in uncompared_constants(settings).items()
    ]
    return notes


def _how_to_compare(place: str, name: str) -> str:
    if place.startswith("fields."):
        return f"To compare '{name}', map it as a field of its own with 'read'."
    return f"To compare '{name}', map it (such as {name}: \"'X'\") and send {{{{ payload.{name} }}}}."


def _quote_names(names: list[str]) -> str:
    quoted = ", ".join(f"'{name}'" for name in names)
    return f"{quoted} {'is' if len(names) == 1 else 'are'}"


def _describe_source_place(source: Source) -> str:
    return f"the third party {source.same_as}" if isinstance(source, SharedSourceSettings) else _describe_place(source)


def _describe_place(system: object) -> str:
    """An address without what may be secret in it."""
    for name in ("base_url", "folder", "adapter"):
        if place := getattr(system, name, None):
            parts = urlsplit(str(place))
            return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
    return "a database"


def _format_duration(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
