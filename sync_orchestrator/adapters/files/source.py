"""A part in files that a source system leaves: CSV, JSON Lines, Parquet. For first loads.

All matching files together are one listing, read from the beginning for each business group (less, where each has files
of its own). Nothing is read by key.
"""

from __future__ import annotations

import asyncio
import fnmatch
import glob
import re
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Collection, Generator, Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from sync_orchestrator.adapters.custom.base import Source
from sync_orchestrator.adapters.files.rows import kind_of, require_inside, rows_of
from sync_orchestrator.adapters.row_reader import Rows, build_unusable_part, missing_fields, once_each
from sync_orchestrator.config import PartSettings
from sync_orchestrator.config.sources import FileSourceSettings
from sync_orchestrator.core.ports import PartRead, Ungrouped
from sync_orchestrator.errors import CallFailed, Failure
from sync_orchestrator.expressions import templates
from sync_orchestrator.expressions.templates import names_in

_PLACE = "0group0"
_EXAMPLES = 5
_BUCKETS = 256

Stamp = tuple[int, int, int]
"""Inode, size and time of a file."""


class FileSource(Source):
    """Implements ``core.ports.SourceSystem``.

    A row that cannot be read belongs to every business group, since nobody knows which: it is told in each. While there
    is one whose key is unknown, ``count`` says nothing, and so nothing is deleted.

    The files are read once more to find keys with several rows; what was found is kept while the files stay the same.
    """

    def __init__(self, system: FileSourceSettings, part: PartSettings, fields: Collection[str] = ()) -> None:
        """``fields``: columns that the mapping reads; a table without one of them is refused."""
        assert part.files is not None
        self._fields = frozenset(fields)
        self._repeated: tuple[dict[Path, Stamp], frozenset[int]] = {}, frozenset()
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
        return await asyncio.to_thread(self._count_keys, group)

    async def ungrouped(self) -> Ungrouped | None:
        """Reads all files, and returns the rows that name no business group.

        None where no group is configured, or files are named by it.
        """
        if self._by_name or self._part.group is None:
            return None
        return await asyncio.to_thread(self._without_group)

    async def repeated(self, group: str) -> Ungrouped | None:
        """The rows of a group beyond the first of their keys, with some of these keys."""
        return await asyncio.to_thread(self._beyond_keys, group)

    async def groups(self) -> list[str] | None:
        """The business groups that the files' names tell, or else the rows; None where neither does."""
        if self._by_name:
            return await asyncio.to_thread(self._groups_by_name)
        return None if self._part.group is None else await asyncio.to_thread(self._groups_by_row)

    def _count_keys(self, group: str) -> int | None:
        keys = set()  # of hashes, which are small: two keys that share one hold deletions up, no more
        for row in self._of_group(group):
            if row.passed_over:
                continue
            if not row.key:
                return None
            keys.add(hash(row.key))
        return len(keys)

    def _groups_by_name(self) -> list[str]:
        pattern = fnmatch.translate(templates.render_text(self._glob, {"group": _PLACE}))
        named = re.compile(pattern.replace(_PLACE, "(?P<group>[^/]+)", 1).replace(_PLACE, "(?P=group)"))
        names = (path.relative_to(self._folder).as_posix() for path in self._list_files("*"))
        return sorted({match["group"] for name in names if (match := named.fullmatch(name))})

    def _groups_by_row(self) -> list[str]:
        return sorted({row.group for row in self._read_rows(self._list_files("*")) if row.group is not None})

    def _without_group(self) -> Ungrouped:
        number, examples = 0, []
        for row in self._read_rows(self._list_files("*"), as_they_are=True):
            if row.problem is None and row.group is None and not row.passed_over:
                number += 1
                examples += [row.key] if number <= _EXAMPLES else []
        return Ungrouped(number, tuple(examples))

    def _beyond_keys(self, group: str) -> Ungrouped:
        seen: set[int] = set()
        number, examples = 0, []
        for row in self._rows_of_group(self._list_files(glob.escape(group)), group):
            if row.key and hash(row.key) in seen:
                number += 1
                examples += [row.key] if number <= _EXAMPLES else []
            seen.add(hash(row.key))
        return Ungrouped(number, tuple(examples))

    def _of_group(self, group: str) -> Generator[PartRead]:
        if self._by_name and ("/" in group or "\\" in group or group in ("", ".", "..")):
            raise CallFailed(Failure.PERMANENT, f"'{group}' cannot stand in a file's name, as files.glob has it")
        files = self._list_files(glob.escape(group))
        before = _read_stamps(files)
        repeated, together = self._repeated_keys(files, before), list[PartRead]()
        for row in self._rows_of_group(files, group, repeated):
            if row.key and _hash_key(row.key) in repeated:
                together.append(row)
            else:
                yield row
        yield from self._of_repeated_keys(files, group, together)
        after = _read_stamps(self._find_files(glob.escape(group)))
        if after != before:
            [changed, *_] = sorted(path for path in before | after if before.get(path) != after.get(path))
            what = "came" if changed not in before else "went" if changed not in after else "was written"
            name = changed.relative_to(self._folder)
            raise CallFailed(Failure.TRANSIENT, f"{name} {what} while the others were read")

    def _rows_of_group(
        self, files: list[Path], group: str, repeated: frozenset[int] = frozenset()
    ) -> Generator[PartRead]:
        """The rows of a group, and those of any group whose keys are repeated."""
        for row in self._read_rows(files, checked=True):
            of_group = row.problem is not None or row.group is None or row.group == group
            if of_group or (repeated and _hash_key(row.key) in repeated):
                yield row

    def _of_repeated_keys(self, files: list[Path], group: str, rows: list[PartRead]) -> Generator[PartRead]:
        """One part for each key with several rows, where one of these is of the group: the one of the newest version.

        Files are often exports one after the other, so an older row is history. Rows of the same version that differ
        are not.
        """
        here = {row.key for row in rows if row.problem is not None or row.group in (None, group)}
        newest: dict[str, int] = {}
        for row in rows:
            if row.problem is None:
                newest[row.key] = max(row.version, newest.get(row.key, row.version))
        unreadable = [row for row in rows if row.key in here and row.problem is not None]
        last = once_each(
            [row for row in rows if row.key in here and row.problem is None and row.version == newest[row.key]]
        )
        yield from unreadable
        yield from (row for row in last if row.problem is not None or row.group in (None, group))

    def _repeated_keys(self, files: list[Path], stamps: dict[Path, Stamp]) -> frozenset[int]:
        """The marks of keys that more than one row may have; found once while the files stay the same.

        Four bytes a row are in memory. Two keys that share a mark by chance are told apart later.
        """
        if self._repeated[0] != stamps or not stamps:
            marks = [array("I") for _ in range(_BUCKETS)]
            for row in self._read_rows(files):
                mark = _hash_key(row.key)
                marks[mark % _BUCKETS].append(mark)
            repeated: set[int] = set()
            for bucket in marks:
                if len(set(bucket)) < len(bucket):
                    repeated |= {mark for mark, number in Counter(bucket).items() if number > 1}
            self._repeated = stamps, frozenset(repeated)
        return self._repeated[1]

    def _read_rows(self, paths: list[Path], *, checked: bool = False, as_they_are: bool = False) -> Generator[PartRead]:
        """Yields the rows of files.

        ``checked``: a file without a column that the mapping reads fails. ``as_they_are``: rows without a business
        group are no failure.
        """
        for path in paths:
            name = path.relative_to(self._folder).as_posix()
            fields = self._fields if checked and self._has_columns(path) else frozenset()
            for line, row in rows_of(path, name, self._part, self._folder):
                if fields and isinstance(row, dict):
                    if (failure := missing_fields(fields, row, name)) is not None:
                        raise failure
                    fields = frozenset()
                yield self._part_of(row, f"{name}:{line}", as_it_is=as_they_are)

    def _has_columns(self, path: Path) -> bool:
        assert self._part.files is not None
        return kind_of(path, self._part.files) in ("csv", "parquet")

    def _part_of(self, row: dict[str, object] | str, place: str, *, as_it_is: bool = False) -> PartRead:
        if isinstance(row, str):
            return build_unusable_part("", row, place)
        found = self._rows.part_of(row, place)
        if as_it_is:
            return found
        ungrouped = found.group is None and found.problem is None and not found.passed_over
        if ungrouped and self._part.group is not None and not self._by_name:
            return build_unusable_part(found.key, f"no business group at '{self._part.group}'", place)
        return found

    def _list_files(self, group: str) -> list[Path]:
        """The files that match. Raises CallFailed where none does: that is not an empty business group."""
        files = self._find_files(group)
        if not files:
            wanted = templates.render_text(self._glob, {"group": group})
            raise CallFailed(Failure.PERMANENT, f"no file matches {wanted} in {self._folder}")
        return files

    def _find_files(self, group: str) -> list[Path]:
        wanted = templates.render_text(self._glob, {"group": group})
        found = sorted(self._folder / name for name in glob.glob(wanted, root_dir=self._folder, recursive=True))
        files = [path for path in found if path.is_file()]
        for path in files:
            require_inside(path, self._folder)
        return files


def _hash_key(key: str) -> int:
    return hash(key) & 0xFFFFFFFF


def _read_stamps(files: Iterable[Path]) -> dict[Path, Stamp]:
    """What is another once a file was written again."""
    stamps = {}
    for path in files:
        with suppress(FileNotFoundError):
            told = path.stat()
            stamps[path] = told.st_ino, told.st_size, told.st_mtime_ns
    return stamps
