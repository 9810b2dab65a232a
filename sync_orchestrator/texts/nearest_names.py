"""Messages for names that do not exist, with the names that may have been meant. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Collection

MAX_NEAREST = 3
MAX_LISTED = 12
MIN_SIMILARITY = 0.6
"""Of 1: the ratio of ``difflib``, for names that may have been meant."""


def find_nearest_names(name: str, known: Collection[str], limit: int = MAX_NEAREST) -> list[str]:
    """Finds the names that may have been meant by a misspelled one, whatever the case of its letters.

    Args:
        name: The name as it was written.
        known: The names that exist.
        limit: The maximum number of names to return.

    Returns:
        The most similar names, the nearest first; none where no name is similar.
    """
    by_lower = {each.lower(): each for each in sorted(known)}
    near = difflib.get_close_matches(name.lower(), by_lower, n=limit, cutoff=MIN_SIMILARITY)
    return [by_lower[each] for each in near]


def unknown_name(what: str, name: str, known: Collection[str]) -> str:
    """Says that a name does not exist, and which one may have been meant.

    Args:
        what: What does not exist, with the name, such as "business group 'goodj' of stone".
        name: The name alone.
        known: The names that exist.

    Returns:
        The nearest names, or a few of those that exist where none is near.
    """
    if near := find_nearest_names(name, known):
        return f"unknown {what}; did you mean {' or '.join(near)}?"
    if not known:
        return f"unknown {what}; none is known yet: run a full sync first"
    listed = ", ".join(sorted(known)[:MAX_LISTED])
    more = f" and {len(known) - MAX_LISTED} more" if len(known) > MAX_LISTED else ""
    return f"unknown {what}; expected one of: {listed}{more}"
