"""JSON as strictly as the ledger needs it: what Postgres or a later reader would choke on is refused here."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from sync_orchestrator import exact_json
from sync_orchestrator.errors import InvalidEvent
from sync_orchestrator.texts.storable_text import text_problem

_MAX_DEPTH = 100
_MAX_VALUES = 1_000_000
"""Values cost far more memory than the bytes that say them: ``[],`` costs twenty times as much."""


def parse(body: bytes, *, outer: int = 0) -> Any:
    """Parses a body, or a piece of one that is ``outer`` levels deep in it.

    Raises InvalidEvent for what is not UTF-8 or not JSON, and for NaN, repeated names, NUL, lone surrogates, numbers
    of absurd length, absurd depth and an absurd number of values.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidEvent("the body is not UTF-8") from None
    commas, openings = text.count(","), text.count("[") + text.count("{")
    if commas + openings >= _MAX_VALUES:
        raise InvalidEvent("the JSON has too many values")
    try:
        document = _DECODER.decode(text)
    except RecursionError:
        raise InvalidEvent("the JSON is nested too deeply") from None
    except ValueError as error:
        raise InvalidEvent(f"the body is not JSON: {str(error)[:120]}") from None
    if openings + outer >= _MAX_DEPTH:
        _check_depth(document, _MAX_DEPTH - outer)
    if "\\u" in text:  # otherwise there is neither NUL nor a lone surrogate in it
        _check_texts(document)
    return document


def _refuse_repeated_names(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidEvent("a name stands twice in one JSON object")
    return found


def _refuse_constant(name: str) -> object:
    raise InvalidEvent(f"{name} is not JSON")


def _parse_whole_number(text: str) -> int:
    try:
        return exact_json.parse_whole_number(text)
    except ValueError as error:
        raise InvalidEvent(str(error)) from None


def _parse_fraction(text: str) -> float | Decimal:
    try:
        return exact_json.parse_number(text)
    except ValueError as error:
        raise InvalidEvent(str(error)) from None


_DECODER = json.JSONDecoder(
    object_pairs_hook=_refuse_repeated_names,
    parse_constant=_refuse_constant,
    parse_int=_parse_whole_number,
    parse_float=_parse_fraction,
)


def _check_depth(document: object, depth: int) -> None:
    """Walks without recursion, so that depth is a figure and not a crash."""
    level = [document]
    for _ in range(depth):
        level = [
            value
            for outer in level
            if isinstance(outer, _CONTAINERS)
            for value in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(value, _CONTAINERS)
        ]
        if not level:
            return
    raise InvalidEvent("the JSON is nested too deeply")


def _check_texts(document: object) -> None:
    left = [document]
    while left:
        value = left.pop()
        if isinstance(value, str):
            if (problem := text_problem(value)) is not None:
                raise InvalidEvent(problem)
        elif isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value


_CONTAINERS = (dict, list)
