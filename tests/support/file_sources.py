"""File sources over a folder of a test's own, and what is read of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sync_orchestrator.adapters.files.source import FileSource
from sync_orchestrator.config import PartSettings
from sync_orchestrator.config.sources import FileSourceSettings
from sync_orchestrator.core.ports import PartRead

LONG = "x" * 200
HEAD = "sku,store,v,name\n"


def part(**changes: Any) -> PartSettings:
    files = {"glob": "*", **changes.pop("files", {})}
    return PartSettings.model_validate(
        {"key": "sku", "version": {"path": "v", "kind": "number"}, "group": "store", "files": files, **changes}
    )


def source(folder: Path, **changes: Any) -> FileSource:
    return FileSource(FileSourceSettings.model_validate({"kind": "files", "folder": str(folder)}), part(**changes))


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


async def read(found: FileSource, group: str = "A") -> list[PartRead]:
    return [row async for rows, _ in found.pages(group) for row in rows]


async def keys(found: FileSource, group: str = "A") -> list[str]:
    return [row.key for row in await read(found, group) if row.problem is None]
