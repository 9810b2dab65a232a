"""Lines of a ``sync.yaml`` with comments, and the marks of what is to be filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

TODO = "TODO"
"""The value of a marked line, whose comment begins with the same word. ``check`` names each of them."""


@dataclass(frozen=True, slots=True)
class Value:
    """A value with a comment behind it."""

    value: Any
    comment: str = ""


def mark_todo(what: str) -> Value:
    """A value that has to be filled in, and what is known of it."""
    return Value(TODO, f"{TODO}: {what}")


def mark_guessed(value: object, why: str) -> Value:
    """A value that was guessed, and why."""
    return Value(value, f"guessed: {why}")


def yaml_lines(content: Mapping[str, object], indent: int) -> Iterator[str]:
    """The lines of a mapping, nested ones in blocks; a mapping below ``body`` in one line.

    A ``Value`` may take the place of a value; one under the name TODO marks the name itself.
    """
    blanks = " " * indent
    for name, value in content.items():
        comment = ""
        if isinstance(value, Value):
            comment = "  # " + " ".join(value.comment.split()) if value.comment else ""
            value = value.value
        shown = quote_text(str(name))
        if isinstance(value, Mapping) and name != "body" and value:
            yield f"{blanks}{shown}:{comment}"
            yield from yaml_lines(value, indent + 2)
        else:
            text = quote_text(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{blanks}{shown}: {text}{comment}"


def quote_text(text: str) -> str:
    """A text as plain as YAML allows."""
    is_plain = re.fullmatch(r"[A-Za-z_/][\w/.:-]*", text) and text.lower() not in (
        "y",
        "n",
        "yes",
        "no",
        "on",
        "off",
        "true",
        "false",
        "null",
    )
    return text if is_plain and not text.endswith(":") else json.dumps(text, ensure_ascii=False)
