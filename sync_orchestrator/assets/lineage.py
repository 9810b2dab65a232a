"""What the UI shows of an entity's assets before anything runs: columns, their lineage, addresses, settings.

The source systems and the third party are external assets: nothing here materializes them, they show where records
come from and go to. The third party comes last: the mirror is what it acknowledged, and the mirror's check reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import dagster as dg
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from sync_orchestrator.config import Config, EntitySettings
from sync_orchestrator.config.sources import (
    FileSourceSettings,
    LogChangeSettings,
    SharedSourceSettings,
    Source,
    SqlSourceSettings,
)
from sync_orchestrator.config.targets import ThirdPartySettings
from sync_orchestrator.expressions.mapping_columns import Path, columns_of, paths_of

_KINDS = {"rest": "api", "sql": "sql", "files": "file", "class": "python"}
_DOCS = (
    "`docs/operations.md`: what to do about drift, dead records and alerts. "
    "`docs/getting-started.md`: the settings. `docs/architecture.md`: how it works."
)


def archive_key(entity: str) -> dg.AssetKey:
    return dg.AssetKey([entity, "archive"])


def mirror_key(entity: str) -> dg.AssetKey:
    return dg.AssetKey([entity, "mirror"])


def source_key(entity: str, source: str) -> dg.AssetKey:
    """The records of an entity at one of its source systems."""
    return dg.AssetKey([entity, "source", source])


def captured_key(source: str) -> dg.AssetKey:
    """The changes that are captured from the log of a source system's database."""
    return dg.AssetKey([source, "captured"])


def archive_dependencies(name: str, entity: EntitySettings) -> list[dg.AssetKey]:
    """What the archive of an entity is made from: its source systems, and the changes captured there."""
    captured = [
        captured_key(part) for part, settings in entity.parts.items() if isinstance(settings.changes, LogChangeSettings)
    ]
    return [*(source_key(name, part) for part in entity.parts), *captured]


def third_party_key(entity: str, system: str) -> dg.AssetKey:
    """The records of an entity at the third party."""
    return dg.AssetKey([entity, "third_party", system])


def external_assets(name: str, entity: EntitySettings, config: Config) -> list[dg.AssetSpec]:
    """The source systems and the third party of an entity, which nothing here materializes."""
    system = entity.third_party.system
    third_party = config.third_parties[system]
    columns = dg.TableColumnLineage({field: [dg.TableColumnDep(mirror_key(name), field)] for field in entity.mapping})
    return [
        *(_build_source_spec(name, entity, part, config) for part in entity.parts),
        dg.AssetSpec(
            third_party_key(name, system),
            deps=[mirror_key(name)],
            group_name=name,
            owners=entity.owners,
            kinds={"api" if third_party.base_url else "python"},
            tags={"entity": name},
            description=f"The {name} records in {system}. The asset check of the mirror compares them with the "
            "archive.",
            metadata={
                **_build_uri_metadata(third_party),
                "dagster/column_schema": _mapped_columns(entity),
                "dagster/column_lineage": columns,
            },
        ),
    ]


def captured_assets(config: Config) -> list[dg.AssetSpec]:
    """The captured changes of each source system that has a stream, which nothing here materializes."""
    return [_build_captured_spec(source, config) for source in config.captured_sources()]


def archive_metadata(name: str, entity: EntitySettings) -> dict[str, Any]:
    """The definition metadata of the archive."""
    lineage = {
        column: [dg.TableColumnDep(source_key(name, part), field) for part, field in sources]
        for column, sources in _archive_columns(entity).items()
    }
    schema = dg.TableSchema(
        [
            dg.TableColumn(column, "any", description=", ".join(f"{part}: {field}" for part, field in sources))
            for column, sources in _archive_columns(entity).items()
        ]
    )
    return {
        "dagster/column_schema": schema,
        "dagster/column_lineage": dg.TableColumnLineage(lineage),
        "source_check": source_check_text(entity),
        "docs": dg.MetadataValue.md(_DOCS),
    }


def mirror_metadata(name: str, entity: EntitySettings, system: ThirdPartySettings) -> dict[str, Any]:
    """The definition metadata of the mirror."""
    lineage = {
        field: [dg.TableColumnDep(archive_key(name), column) for column in _find_columns_of_paths(paths, entity)]
        for field, paths in columns_of(entity.mapping).items()
    }
    return {
        "dagster/column_schema": _mapped_columns(entity),
        "dagster/column_lineage": dg.TableColumnLineage(lineage),
        **_build_uri_metadata(system),
        "validation": validation_text(entity),
        "docs": dg.MetadataValue.md(_DOCS),
    }


def validation_text(entity: EntitySettings) -> str:
    """The settings of the validation in one line."""
    settings = entity.validation
    return (
        f"every {_format_duration(settings.every)}; "
        f"full comparison at least every {_format_duration(settings.full_comparison_every)}; "
        f"drift: repair {settings.repair}; unmanaged records: {settings.unmanaged}"
    )


def source_check_text(entity: EntitySettings) -> str:
    """The settings of the check of the sources in one line."""
    settings = entity.source_check
    if settings.every is None:
        return f"only on demand; lost notifications: repair {settings.repair}"
    return f"every {_format_duration(settings.every)}; lost notifications: repair {settings.repair}"


def public_address(system: Source | ThirdPartySettings) -> str | None:
    """Where a system is, without user, password, query and fragment; None where the configuration does not say."""
    if isinstance(system, SqlSourceSettings):
        try:
            url = make_url(system.url)
        except ArgumentError:
            return None
        return url._replace(username=None, password=None, query={}).render_as_string()  # type: ignore[arg-type]
    if isinstance(system, FileSourceSettings):
        return system.folder
    if isinstance(system, SharedSourceSettings) or not system.base_url:
        return None
    scheme, place, path, _, _ = urlsplit(system.base_url)
    return urlunsplit((scheme, place.rpartition("@")[2], path, "", ""))


def _build_source_spec(name: str, entity: EntitySettings, part: str, config: Config) -> dg.AssetSpec:
    role = "decides which records exist and their business group" if part == entity.owner else "completes the records"
    fields = sorted({field for sources in _archive_columns(entity).values() for of, field in sources if of == part})
    return dg.AssetSpec(
        source_key(name, part),
        group_name=name,
        owners=entity.owners,
        kinds={_KINDS[config.sources[part].kind]},
        tags={"entity": name},
        description=f"The {name} records in the source system {part}, which {role}.{_describe_mirrored(part, config)}",
        metadata={
            **_build_uri_metadata(config.describe_source_access(part)),
            "dagster/column_schema": dg.TableSchema([dg.TableColumn(field, "any") for field in fields]),
        },
    )


def _describe_mirrored(source: str, config: Config) -> str:
    """A sentence on a source that is a third party, too: which entities are mirrored to it."""
    if not isinstance(config.sources[source], SharedSourceSettings):
        return ""
    mirrored = [name for name, entity in config.entities.items() if entity.third_party.system == source]
    return f" It is also the third party of {', '.join(mirrored)}." if mirrored else ""


def _build_captured_spec(source: str, config: Config) -> dg.AssetSpec:
    entities = [name for name, _, _ in config.captured_parts(source)]
    return dg.AssetSpec(
        captured_key(source),
        deps=[source_key(name, source) for name in entities],
        group_name="captured",
        kinds={"postgres"},
        description=f"The changes of {', '.join(entities)} that are captured from the log of {source}. The sensor "
        "`captured_changes` reports each minute how far behind the stream is.",
        metadata=_build_uri_metadata(config.describe_source_access(source)),
    )


def _build_uri_metadata(system: Source | ThirdPartySettings) -> dict[str, str]:
    address = public_address(system)
    return {} if address is None else {"dagster/uri": address}


def _mapped_columns(entity: EntitySettings) -> dg.TableSchema:
    return dg.TableSchema(
        [dg.TableColumn(field, "any", description=expression) for field, expression in entity.mapping.items()]
    )


def _archive_columns(entity: EntitySettings) -> dict[str, list[tuple[str, str]]]:
    """The columns of the archive that the mapping reads, each with part and field of its sources."""
    owner = entity.parts[entity.owner]
    columns: dict[str, list[tuple[str, str]]] = {
        "key": [(entity.owner, path[0]) for path in paths_of(owner.key)],
        "group": [(entity.owner, path[0]) for path in paths_of(owner.group or "")] if owner.group else [],
    }
    for paths in columns_of(entity.mapping).values():
        for path in paths:
            if path[0] in entity.parts and len(path) > 1:
                columns[f"{path[0]}.{path[1]}"] = [(path[0], path[1])]
    return columns


def _find_columns_of_paths(paths: Iterable[Path], entity: EntitySettings) -> Sequence[str]:
    """The columns of the archive behind the paths of one field; a whole part stands for all of its columns."""
    found: dict[str, None] = {}
    for path in paths:
        if path[0] in ("key", "group"):
            found[path[0]] = None
        elif len(path) > 1:
            found[f"{path[0]}.{path[1]}"] = None
        else:
            found |= {column: None for column in _archive_columns(entity) if column.startswith(f"{path[0]}.")}
    return list(found)


def _format_duration(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
