"""Texts that the database can hold: Postgres refuses NUL and code points that are no characters."""

from __future__ import annotations

from typing import Any

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def text_problem(text: str) -> str | None:
    """Why a text cannot be stored, or None."""
    if "\x00" in text:
        return "a text holds NUL"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "a text holds a lone surrogate"
    return None


def storable_text(text: str) -> str:
    """The text with U+FFFD in place of what cannot be stored; for texts that are shown, not for data."""
    if text_problem(text) is None:
        return text
    return "".join(_REPLACEMENT if char == "\x00" or "\ud800" <= char <= "\udfff" else char for char in text)


def storable_json(value: object) -> Any:
    """A JSON document whose texts and names can be stored, in the same way."""
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, dict):
        return {storable_text(str(name)): storable_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [storable_json(part) for part in value]
    return value
