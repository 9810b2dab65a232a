"""Columns of a batch as Postgres arrays: psycopg adapts item by item, at more than the cost of the statement itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from psycopg.abc import Buffer
from psycopg.types.array import ListDumper
from psycopg.types.json import Jsonb


class Columns(ListDumper):
    """Dumps lists of one plain kind at once, to the text that psycopg would make of them; leaves others to psycopg."""

    def dump(self, obj: list[object]) -> Buffer | None:
        """Returns the list as the text of a Postgres array, or None where psycopg's own dumper returns it."""
        kinds = set(map(type, obj)) - {type(None)}
        write = _write_numbers if kinds == {int, float} else _WRITTEN.get(kinds.pop()) if len(kinds) == 1 else None
        if write is None:
            return super().dump(obj)
        items = write([item for item in obj if item is not None])
        if len(items) < len(obj):
            told = iter(items)
            items = ["NULL" if item is None else next(told) for item in obj]
        return ("{" + ",".join(items) + "}").encode()


def _write_numbers(items: Sequence[object]) -> list[str]:
    return list(map(repr, items))


def _write_truths(items: Sequence[object]) -> list[str]:
    return ["t" if item else "f" for item in items]


def _write_texts(items: Sequence[str]) -> list[str]:
    whole = "\x00".join(items)
    if '"' in whole or "\\" in whole:
        whole = whole.replace("\\", "\\\\").replace('"', '\\"')
    if whole.count("\x00") != len(items) - 1:
        raise ValueError("a text holds NUL")
    return [f'"{item}"' for item in whole.split("\x00")]


def _write_bytes(items: Sequence[bytes]) -> list[str]:
    return [f'"\\\\x{item.hex()}"' for item in items]


def _write_documents(items: Sequence[Jsonb]) -> list[str]:
    return _write_texts([_write_document(item) for item in items])


def _write_document(item: Jsonb) -> str:
    written = (item.dumps or json.dumps)(item.obj)
    return written if isinstance(written, str) else written.decode()


_WRITTEN: dict[type, Callable[[Sequence[Any]], list[str]]] = {
    str: _write_texts,
    int: _write_numbers,
    float: _write_numbers,
    bool: _write_truths,
    bytes: _write_bytes,
    Jsonb: _write_documents,
}
