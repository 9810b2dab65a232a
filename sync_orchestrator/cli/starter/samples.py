"""Reads the header and some rows of a source's files, and what these say of the columns."""

from __future__ import annotations

import csv
import glob
import importlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice, takewhile
from pathlib import Path
from typing import Literal

from sync_orchestrator.cli.starter.columns import Column, ColumnKind
from sync_orchestrator.errors import ConfigError, MissingExtra
from sync_orchestrator.extras import import_from_extra

MAX_ROWS_READ = 500
_SAMPLE_BYTES = 1_000_000
_FORMATS: dict[str, Literal["csv", "jsonl", "parquet"]] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
_DATE_AND_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d")


@dataclass(frozen=True, slots=True)
class FileSample:
    """How the files of a source are read, and the columns of the first of them."""

    folder: Path
    glob: str
    format: Literal["csv", "jsonl", "parquet"]
    is_by_suffix: bool
    """Whether the ending alone says the format."""
    encoding: str
    delimiter: str
    columns: tuple[Column, ...]
    rows: int


def read_sample(pattern: str) -> FileSample:
    """Reads the first file that a pattern matches.

    Args:
        pattern: A file, or a pattern such as ``exports/products-*.csv``.

    Raises:
        ConfigError: No file matches, or the first one is empty or cannot be read.
    """
    wanted = Path(pattern)
    files = sorted(glob.glob(pattern, recursive=True))
    if not files:
        raise ConfigError(f"--source-files: no file matches {pattern}")
    path = Path(files[0])
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(f"--source-files: {path}: unknown kind of file; expected one of: {', '.join(_FORMATS)}")
    encoding, delimiter = "utf-8", ","
    try:
        if kind == "parquet":
            rows, names = _parquet_rows(path)
        else:
            text, encoding = _decode_file(path)
            if not text.strip():
                raise ConfigError(f"--source-files: {path} is empty")
            if kind == "csv":
                delimiter = _delimiter_of(text)
                rows, names = _csv_rows(text, delimiter)
            else:
                rows, names = _json_rows(text, path)
    except OSError as error:
        raise ConfigError(f"--source-files: {path}: {error.strerror}") from None
    fixed = _fixed_folder(wanted.parent)
    return FileSample(
        fixed.resolve(),
        str(wanted.relative_to(fixed)),
        kind,
        path.suffix.lower() in (".csv", ".jsonl", ".ndjson", ".parquet"),
        encoding,
        delimiter,
        tuple(_describe_column(name, [row.get(name) for row in rows]) for name in names),
        len(rows),
    )


def _fixed_folder(folder: Path) -> Path:
    """The part of a folder's path before its first pattern."""
    return Path(*takewhile(lambda part: not glob.has_magic(part), folder.parts))


def _decode_file(path: Path) -> tuple[str, str]:
    with path.open("rb") as file:
        start = file.read(_SAMPLE_BYTES)
    is_cut = len(start) == _SAMPLE_BYTES
    encodings = ("utf-8-sig",) if start.startswith(b"\xef\xbb\xbf") else ("utf-8", "cp1252", "latin-1")
    for encoding in encodings:
        try:
            text = start.decode(
                encoding, "ignore" if is_cut and encoding.startswith("utf-8") and _is_utf8(start) else "strict"
            )
        except UnicodeDecodeError:
            continue
        return text.rsplit("\n", 1)[0] if is_cut else text, encoding
    raise ConfigError(f"--source-files: {path}: its text is neither UTF-8 nor Latin-1")


def _is_utf8(start: bytes) -> bool:
    """Whether only the last character, which the end of the sample may cut, is no UTF-8."""
    try:
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start >= len(start) - 4
    return True


def _delimiter_of(text: str) -> str:
    header = text.splitlines()[0]
    counts = {sign: header.count(sign) for sign in ",;\t|"}
    return max(counts, key=lambda sign: counts[sign]) if any(counts.values()) else ","


def _csv_rows(text: str, delimiter: str) -> tuple[list[dict[str, object]], list[str]]:
    reader = csv.DictReader(text.splitlines(keepends=True), delimiter=delimiter)
    rows = [{name: value for name, value in row.items() if name is not None} for row in islice(reader, MAX_ROWS_READ)]
    return rows, list(reader.fieldnames or ())


def _json_rows(text: str, path: Path) -> tuple[list[dict[str, object]], list[str]]:
    rows = []
    for number, line in enumerate(islice(filter(str.strip, text.splitlines()), MAX_ROWS_READ), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"--source-files: {path}: line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ConfigError(f"--source-files: {path}: line {number} is no JSON object")
        rows.append(row)
    return rows, list(dict.fromkeys(name for row in rows for name in row))


def _parquet_rows(path: Path) -> tuple[list[dict[str, object]], list[str]]:
    try:
        with import_from_extra("parquet"):
            parquet = importlib.import_module("pyarrow.parquet")
    except MissingExtra as error:
        raise ConfigError(f"--source-files: {path}: {error}") from None
    file = parquet.ParquetFile(path)
    batch = next(iter(file.iter_batches(batch_size=MAX_ROWS_READ)), None)
    return ([] if batch is None else batch.to_pylist()), list(file.schema_arrow.names)


def _describe_column(name: str, values: Sequence[object]) -> Column:
    given = [value for value in values if value not in (None, "")]
    kinds = {_guess_kind(value) for value in given}
    texts = [json.dumps(value, sort_keys=True, default=str) for value in given]
    is_unique = len(given) == len(values) > 1 and len(set(texts)) == len(texts)
    kind: ColumnKind = kinds.pop() if len(kinds) == 1 else "text" if given else "other"
    return Column(
        name,
        kind,
        is_unique=is_unique,
        is_nullable=len(given) < len(values),
        repeats=len(set(texts)) < len(texts) if len(given) > 1 else None,
    )


def _guess_kind(value: object) -> ColumnKind:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, datetime):
        return "time"
    if isinstance(value, bytes):
        return "binary"
    if not isinstance(value, str):
        return "other"
    if re.fullmatch(r"-?\d{1,15}(\.\d+)?", value):
        return "number"
    return "time" if _DATE_AND_TIME.match(value) else "text"
