"""The pages of the documentation, taken apart."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from paths import ROOT

MARKDOWN = MarkdownIt("commonmark").enable("table")


class Wrong(Exception):
    """What a document says does not hold."""


@dataclass(frozen=True)
class Document:
    """A text and the file it stands in, or would."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    def tokens(self) -> Iterator[Token]:
        """Blocks, and what stands in a line."""
        for token in MARKDOWN.parse(self.text):
            yield token
            yield from token.children or ()

    def fences(self) -> list[Token]:
        return [token for token in self.tokens() if token.type in ("fence", "code_block")]

    def inline_codes(self) -> list[str]:
        return [token.content for token in self.tokens() if token.type == "code_inline"]

    def links(self) -> list[tuple[str, str]]:
        """Kind and target of links and images."""
        found = [
            (token.type, str(token.attrs.get("href") or token.attrs.get("src") or ""))
            for token in self.tokens()
            if token.type in ("link_open", "image")
        ]
        hidden = [token.content for token in self.tokens() if token.type in ("html_inline", "html_block")]
        for html in hidden:
            if re.search(r"(href|src)\s*=", html):
                raise Wrong(f"a link in HTML, where no test sees it: {html.strip()}")
        return found

    def headings(self, level: str | None = None) -> list[str]:
        tokens = list(MARKDOWN.parse(self.text))
        return [
            "".join(child.content for child in inline.children or ())
            for opened, inline in itertools.pairwise(tokens)
            if opened.type == "heading_open" and level in (None, opened.tag)
        ]

    def anchors(self) -> set[str]:
        """As GitHub makes them."""
        found: set[str] = set()
        for heading in self.headings():
            plain = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            names = itertools.chain([plain], (f"{plain}-{number}" for number in itertools.count(1)))
            found.add(next(name for name in names if name not in found))
        return found

    def tables(self) -> list[list[list[str]]]:
        """Rows of cells, the head included."""
        tables: list[list[list[str]]] = []
        for token in MARKDOWN.parse(self.text):
            if token.type == "table_open":
                tables.append([])
            elif token.type == "tr_open":
                tables[-1].append([])
            elif token.type == "inline" and tables and token.level > 2:
                tables[-1][-1].append(token.content)
        return tables


def read(path: Path) -> Document:
    return Document(path, path.read_text(encoding="utf-8"))


def command_lines(text: str) -> list[tuple[list[str], str]]:
    """The commands of a shell block, or of a transcript with prompts and what was answered."""
    now = datetime.now(UTC)
    text = text.replace("$(date +%s)", f"{now:%s}").replace("$(date -u +%FT%TZ)", f"{now:%FT%TZ}")
    transcript = text.lstrip().startswith("$ ")
    commands: list[tuple[list[str], str]] = []
    begun: str | None = None
    for line in text.strip("\n").splitlines():
        if begun is None and transcript and not line.startswith("$ "):
            commands[-1] = (commands[-1][0], f"{commands[-1][1]}{line}\n")
            continue
        begun = f"{begun}\n{line}" if begun is not None else line.removeprefix("$ ") if transcript else line
        if begun.endswith("\\"):
            begun = begun[:-1]
            continue
        try:
            words = shlex.split(begun, comments=True)
        except ValueError:
            continue
        begun = None
        if words:
            commands.append((words, ""))
    if begun is not None:
        raise Wrong(f"a command that does not end: {begun[:60]}")
    return commands
