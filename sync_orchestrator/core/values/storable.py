"""What the database can hold: Postgres refuses NUL in a text and code points that are no characters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import orjson

from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.values.mapping import to_canonical_json
from sync_orchestrator.exact_json import ONLY_JSON, decimal_fragment, normalize_numbers
from sync_orchestrator.texts.storable_text import text_problem


def sort_out(reads: Iterable[PartRead]) -> tuple[list[PartRead], list[PartRead]]:
    """Parts that can be used, and those that cannot, which say so in ``problem``.

    What is passed over is neither.
    """
    good: list[PartRead] = []
    bad: list[PartRead] = []
    for read in reads:
        if read.passed_over:
            continue
        why = read.problem or find_storage_problem([read.key, read.group, None if read.deleted else read.data])
        if why is None:
            good.append(read)
        else:
            bad.append(replace(read, problem=why))
    return good, bad


def find_storage_problem(value: object) -> str | None:
    """Why a JSON value cannot be stored, or None where it can."""
    try:
        if _holds_no_odd_text(value):
            return None
    except RecursionError:
        return "the JSON is nested too deeply"
    except ValueError as error:  # of a number
        return str(error)
    return _problem_within(value)


def _holds_no_odd_text(value: object) -> bool:
    """Cheap, and mostly true; where it is not, its texts have to be looked at. Raises RecursionError, ValueError."""
    try:
        return b"\\u0000" not in orjson.dumps(normalize_numbers(value), option=ONLY_JSON, default=decimal_fragment)
    except TypeError:  # what orjson does not write: lone surrogates, great numbers, great depth
        to_canonical_json(value)
        return False


def _problem_within(value: object) -> str | None:
    """Walks without recursion."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            if (found := text_problem(item)) is not None:
                return found
        elif isinstance(item, dict):
            left += [*item, *item.values()]
        elif isinstance(item, list | tuple):
            left += item
    return None
