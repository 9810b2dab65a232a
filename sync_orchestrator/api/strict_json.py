"""JSON as strictly as the ledger needs it: what Postgres or a later reader would choke on is refused here."""

from __future__ import annotations

import json
from typing import Any

from sync_orchestrator.core.errors import InvalidEvent
from sync_orchestrator.core.storable import text_problem

_MOST_DEPTH = 100
_MOST_DIGITS = 400


def parse(body: bytes) -> Any:
    """Parses a body.

    Raises InvalidEvent for what is not UTF-8 or not JSON, and for NaN, repeated names, NUL, lone surrogates, numbers
    of absurd length and absurd depth.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidEvent("the body is not UTF-8") from None
    try:
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=_constant, parse_int=_whole,
                              parse_float=_decimal)
    except RecursionError:
        raise InvalidEvent("the JSON is nested too deeply") from None
    except ValueError as error:
        raise InvalidEvent(f"the body is not JSON: {str(error)[:120]}") from None
    if "\\u" in text or text.count("[") + text.count("{") >= _MOST_DEPTH:  # otherwise there is nothing to find
        _check(document)
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidEvent("a name stands twice in one JSON object")
    return found


def _constant(name: str) -> Any:
    raise InvalidEvent(f"{name} is not JSON")


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise InvalidEvent("a number has too many digits")
    return int(text)


def _decimal(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise InvalidEvent("a number is too large")
    return number


def _check(document: Any) -> None:
    """Walks without recursion, so that depth is a figure and not a crash."""
    level = [document]
    for _ in range(_MOST_DEPTH):
        deeper: list[Any] = []
        for value in level:
            if isinstance(value, str):
                _check_text(value)
            elif isinstance(value, dict):
                for name in value:
                    _check_text(name)
                deeper += value.values()
            elif isinstance(value, list):
                deeper += value
        if not deeper:
            return
        level = deeper
    raise InvalidEvent("the JSON is nested too deeply")


def _check_text(text: str) -> None:
    if (problem := text_problem(text)) is not None:
        raise InvalidEvent(problem)
