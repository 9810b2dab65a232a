"""A part in files that a source system leaves: CSV, JSON Lines, Parquet. For first loads.

All matching files together are one listing, read from the beginning for each business group (less, where each has files
of its own). Nothing is read by key. Not here: how a file is read (``file_rows.py``), what a row tells (``rows.py``).
"""

from __future__ import annotations

import asyncio
import fnmatch
import glob
import re
from collections.abc import AsyncIterator, Generator, Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from sync_orchestrator import templates
from sync_orchestrator.adapters.base import Source
from sync_orchestrator.adapters.file_rows import rows_of
from sync_orchestrator.adapters.rows import Rows, unusable
from sync_orchestrator.config import Part
from sync_orchestrator.config.sources import FilesSystem
from sync_orchestrator.core.errors import CallFailed, Failure
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.templates import names_in

_PLACE = "0group0"


class FileSource(Source):
    """Implements ``core.ports.SourceSystem``.

    A row that cannot be read belongs to every business group, since nobody knows which: it is told in each. While there
    is one whose key is unknown, ``count`` says nothing, and so nothing is deleted.
    """

    def __init__(self, system: FilesSystem, part: Part) -> None:
        assert part.files is not None
        self._folder = Path(system.folder)
        self._part = part
        self._glob = part.files.glob
        self._page = part.files.page
        self._by_name = "group" in names_in(self._glob)
        self._rows = Rows(part)

    async def pages(self, group: str, after: str | None = None) -> AsyncIterator[tuple[list[PartRead], str | None]]:
        """Pages of a business group, in the order of the files and their lines; there is no position to go on from."""
        rows = self._of_group(group)
        try:
            while page := await asyncio.to_thread(lambda: list(islice(rows, self._page))):
                yield page, None
        finally:
            with suppress(ValueError):  # a thread reads in it: it ends by itself
                rows.close()

    async def count(self, group: str) -> int | None:
        """How many keys ``pages`` gives, by reading all again; None where a row's key is unknown."""
        return await asyncio.to_thread(self._count, group)

    async def groups(self) -> list[str] | None:
        """The business groups that the files' names tell, or else the rows; None where neither does."""
        if self._by_name:
            return await asyncio.to_thread(self._groups_by_name)
        return None if self._part.group is None else await asyncio.to_thread(self._groups_by_row)

    def _count(self, group: str) -> int | None:
        keys = set()  # of hashes, which are small: two keys that share one hold deletions up, no more
        for row in self._of_group(group):
            if not row.key:
                return None
            keys.add(hash(row.key))
        return len(keys)

    def _groups_by_name(self) -> list[str]:
        pattern = fnmatch.translate(templates.text(self._glob, {"group": _PLACE}))
        named = re.compile(pattern.replace(_PLACE, "(?P<group>[^/]+)", 1).replace(_PLACE, "(?P=group)"))
        names = (path.relative_to(self._folder).as_posix() for path in self._files("*"))
        return sorted({match["group"] for name in names if (match := named.fullmatch(name))})

    def _groups_by_row(self) -> list[str]:
        return sorted({row.group for row in self._read(self._files("*")) if row.group is not None})

    def _of_group(self, group: str) -> Generator[PartRead]:
        if self._by_name and ("/" in group or "\\" in group or group in ("", ".", "..")):
            raise CallFailed(Failure.PERMANENT, f"'{group}' cannot stand in a file's name, as files.glob has it")
        files = self._files(glob.escape(group))
        before = _stamps(files)
        for row in self._read(files):
            if row.problem is not None or row.group is None or row.group == group:
                yield row
        after = _stamps(self._found(glob.escape(group)))
        if after != before:
            [changed, *_] = sorted(path for path in before | after if before.get(path) != after.get(path))
            what = "came" if changed not in before else "went" if changed not in after else "was written"
            name = changed.relative_to(self._folder)
            raise CallFailed(Failure.TRANSIENT, f"{name} {what} while the others were read")

    def _read(self, paths: list[Path]) -> Generator[PartRead]:
        for path in paths:
            name = path.relative_to(self._folder).as_posix()
            for line, row in rows_of(path, name, self._part):
                yield self._part_of(row, f"{name}:{line}")

    def _part_of(self, row: dict[str, Any] | str, place: str) -> PartRead:
        if isinstance(row, str):
            return unusable("", row, place)
        found = self._rows.part_of(row, place)
        ungrouped = found.group is None and found.problem is None
        if ungrouped and self._part.group is not None and not self._by_name:
            return unusable(found.key, f"no business group at '{self._part.group}'", place)
        return found

    def _files(self, group: str) -> list[Path]:
        """The files that match. Raises CallFailed where none does: that is not an empty business group."""
        files = self._found(group)
        if not files:
            wanted = templates.text(self._glob, {"group": group})
            raise CallFailed(Failure.PERMANENT, f"no file matches {wanted} in {self._folder}")
        return files

    def _found(self, group: str) -> list[Path]:
        wanted = templates.text(self._glob, {"group": group})
        found = sorted(self._folder / name for name in glob.glob(wanted, root_dir=self._folder, recursive=True))
        return [path for path in found if path.is_file()]


def _stamps(files: Iterable[Path]) -> dict[Path, tuple[int, int, int]]:
    """What is another once a file was written again."""
    stamps = {}
    for path in files:
        with suppress(FileNotFoundError):
            told = path.stat()
            stamps[path] = told.st_ino, told.st_size, told.st_mtime_ns
    return stamps
