"""The examples of docs/values.md, and configurations that use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fakes import two_part_config
from markdown_it import MarkdownIt
from paths import ROOT
from record_store import THEIRS, Store

from sync_orchestrator.config import Config

PAGE = ROOT / "docs" / "values.md"


def tokens() -> Any:
    return MarkdownIt("commonmark").enable("table").parse(PAGE.read_text(encoding="utf-8"))


def rows_of(title: str) -> list[list[str]]:
    """The rows of the table whose first heading cell is this, without their marks of code."""
    rows: list[list[str]] = []
    inside = False
    for token in tokens():
        if token.type == "table_open":
            inside = True
            table: list[list[str]] = []
        elif token.type == "tr_open" and inside:
            table.append([])
        elif token.type == "inline" and inside:
            table[-1].append("".join(child.content for child in token.children))
        elif token.type == "table_close":
            inside = False
            if table[0][0] == title:
                rows += table[1:]
    return rows


EXAMPLES = rows_of("expression")


class Odd(Store):
    """A third party that keeps names in its own way."""

    keep: Callable[[Any], Any] = staticmethod(lambda name: name)

    def by_hand(self, **fields: Any) -> str:
        return super().by_hand(**{**fields, "name": type(self).keep(fields["name"])})

    def _put(self, item_id: str, body: Any) -> Any:
        return super()._put(item_id, {**body, "name": type(self).keep(body["name"])})


def in_milliseconds(text: str) -> str:
    return text.replace("Z", ".000Z")


def config_with(**target: Any) -> Config:
    return two_part_config(entity={"third_party": {**THEIRS, **target}})
