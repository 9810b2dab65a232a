"""The rows of a CSV, JSON Lines or Parquet file, one after the other: memory stays flat however large the file is.

A row that cannot be used is told with its line, and the next one is gone on with, as long as it is certain where that
begins: a line of JSON, or a row of CSV whose quotes are right. Where that is not certain nothing is guessed (rule 36):
the file ends there with CallFailed, as it does for what is wrong with the file itself, since too little of it would
look like records that are gone.
"""

from __future__ import annotations

import csv
import importlib
import io
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, TextIO

from sync_orchestrator import exact_json
from sync_orchestrator.config import PartSettings
from sync_orchestrator.config.sources import FilePartSettings
from sync_orchestrator.core.values.plain_json import as_json
from sync_orchestrator.errors import CallFailed, Failure, MissingExtra
from sync_orchestrator.extras import import_from_extra

_FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_MAX_LINE_BYTES = 16 * 1024 * 1024

Row = tuple[int, dict[str, object] | str]
"""The number of its line (of Parquet: of the row), and the row, or why it cannot be read."""


def kind_of(path: Path, settings: FilePartSettings) -> str | None:
    """The format of a file: ``csv``, ``jsonl`` or ``parquet``; None where it is not known."""
    return settings.format or _FORMATS.get(path.suffix.lower())


def require_inside(path: Path, folder: Path) -> Path:
    """Checks that a file is inside of a folder once all symbolic links are followed, and returns its real path.

    The folder may be a symbolic link itself.

    Raises:
        CallFailed: The file is outside, or its links cannot be followed (PERMANENT).
    """
    try:
        real = path.resolve()
        if real.is_relative_to(folder.resolve()):
            return real
    except (OSError, RuntimeError) as error:  # links in a circle are a RuntimeError before Python 3.13
        raise CallFailed(Failure.PERMANENT, f"{path}: its symbolic links cannot be followed: {error}") from None
    raise CallFailed(
        Failure.PERMANENT,
        f"{path} leads out of the source's folder, to {real}: nothing is read. Put a "
        f"copy of the file in {folder}, or set folder to the one that has all files",
    )


def rows_of(path: Path, name: str, part: PartSettings, folder: Path) -> Iterator[Row]:
    """The rows of one file.

    Args:
        path: The file.
        name: Its name in messages.
        part: How its rows are read.
        folder: The source's folder, which the file must be inside of.

    Raises:
        CallFailed: TRANSIENT for a file that changes while it is read, is empty or gone; PERMANENT for one outside of
            the folder, and for one that cannot be read.
    """
    assert part.files is not None
    kind = kind_of(path, part.files)
    if kind is None:
        raise CallFailed(Failure.PERMANENT, f"{name}: what kind of file is it? say files.format")
    try:
        before = _stat_file(path)
        if not before[0]:
            raise CallFailed(Failure.TRANSIENT, f"{name} is empty: is it being written?")
        with _open_inside(path, folder) as file:
            yield from _read_parquet(file, name, part) if kind == "parquet" else _lines_of(file, name, part.files, kind)
        if _stat_file(path) != before:
            raise CallFailed(Failure.TRANSIENT, f"{name} changed while it was read")
    except FileNotFoundError:
        raise CallFailed(Failure.TRANSIENT, f"{name} is gone") from None
    except OSError as error:
        raise CallFailed(Failure.PERMANENT, f"{name}: {error.strerror or error}") from None


def _stat_file(path: Path) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ino


def _open_inside(path: Path, folder: Path) -> BinaryIO:
    """Opens a file inside of a folder. A link that is exchanged at this very moment does not lead out of it either."""
    file = open(path, "rb")  # noqa: SIM115 (the caller closes it)
    try:
        if os.path.samestat(os.fstat(file.fileno()), os.stat(require_inside(path, folder))):
            return file
        raise CallFailed(Failure.TRANSIENT, f"{path} was replaced while it was opened")
    except BaseException:
        file.close()
        raise


def _lines_of(opened: BinaryIO, name: str, settings: FilePartSettings, kind: str) -> Iterator[Row]:
    """Bytes that are no text of the encoding stay in the row as what no text has, where they are noticed."""
    encoding = "utf-8-sig" if settings.encoding.lower().replace("_", "-") in ("utf-8", "utf8") else settings.encoding
    with io.TextIOWrapper(opened, encoding=encoding, errors="surrogateescape", newline="") as file:
        try:
            rows = _read_csv(name, file, settings.delimiter) if kind == "csv" else _read_jsonl(name, file)
            for line, row in rows:
                yield line, row if isinstance(row, str) or _is_text(row) else f"it is not {settings.encoding}"
        except UnicodeError as error:
            raise CallFailed(Failure.PERMANENT, f"{name} is not {settings.encoding}: {error}") from None


def _is_text(row: dict[str, object]) -> bool:
    try:
        for field, value in row.items():
            (field + value if isinstance(value, str) else field).encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_csv(name: str, file: TextIO, delimiter: str) -> Iterator[Row]:
    lines = _Lines(name, file)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    names = _read_field_names(name, reader)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _build_broken_failure(lines, line, str(error)) from None
        if len(cells) == len(names):
            yield line, dict(zip(names, cells, strict=True))
        elif cells:
            wrong = f"it has {len(cells)} fields, the first line has {len(names)}"
            if lines.is_cut:
                raise _build_broken_failure(lines, line, wrong)
            yield line, wrong


def _read_field_names(name: str, reader: Iterator[list[str]]) -> list[str]:
    try:
        names = next(reader, [])
    except csv.Error as error:
        raise CallFailed(Failure.PERMANENT, f"{name}:1: {error}") from None
    twice = sorted({field for field in names if names.count(field) > 1})
    if not names or twice:
        told = f"two fields are called '{twice[0]}'" if twice else "it has no names of fields"
        raise CallFailed(Failure.PERMANENT, f"{name}:1: {told}")
    return names


def _read_jsonl(name: str, file: TextIO) -> Iterator[Row]:
    lines = _Lines(name, file)
    for line in lines:
        if line.strip():
            found = _parse_document(line)
            if isinstance(found, str) and lines.is_cut:
                raise _build_broken_failure(lines, lines.number, found)
            yield lines.number, found


def _parse_document(line: str) -> dict[str, object] | str:
    try:
        found = exact_json.parse_text(line)
    except RecursionError:
        return "the JSON is nested too deeply"
    except ValueError as error:
        return f"it is not JSON: {error}"
    return found if isinstance(found, dict) else "it is not a JSON object"


class _Lines:
    """The lines of a file. ``number``: of the last one; ``is_cut``: the file ends in it, without a line break."""

    def __init__(self, name: str, file: TextIO) -> None:
        self.name = name
        self.number = 0
        self.is_cut = False
        self.at_end = False
        self._file = file

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(_MAX_LINE_BYTES)
        if not line:
            self.at_end = True
            raise StopIteration
        self.number += 1
        self.is_cut = not line.endswith(("\n", "\r"))
        if self.is_cut and len(line) == _MAX_LINE_BYTES:
            raise CallFailed(
                Failure.PERMANENT,
                f"{self.name}:{self.number}: the line is longer than {_MAX_LINE_BYTES} "
                "characters: is files.format right?",
            )
        return line


def _build_broken_failure(lines: _Lines, line: int, why: str) -> CallFailed:
    """A row of which it is not certain where it ends: what may follow is not read."""
    if lines.at_end or lines.is_cut:
        return CallFailed(
            Failure.TRANSIENT,
            f"{lines.name}:{line}: {why}: the file ends in the midst of a row; is it still being written?",
        )
    return CallFailed(Failure.PERMANENT, f"{lines.name}:{line}: {why}: nothing from this line on is read; fix the file")


def _read_parquet(opened: BinaryIO, name: str, part: PartSettings) -> Iterator[Row]:
    assert part.files is not None
    try:
        with import_from_extra("parquet"):
            parquet = importlib.import_module("pyarrow.parquet")
    except MissingExtra as error:
        raise CallFailed(Failure.PERMANENT, f"{name}: {error}") from None
    number = 0
    try:
        with closing(parquet.ParquetFile(opened)) as file:
            for batch in file.iter_batches(batch_size=part.files.page):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {field: as_json(value, part.tz) for field, value in row.items()}
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these kinds
        raise CallFailed(Failure.PERMANENT, f"{name}: {error}") from None
