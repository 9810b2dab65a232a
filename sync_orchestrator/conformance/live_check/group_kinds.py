"""Chooses business groups whose names have characters of different kinds."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MAX_GROUP_KINDS = 6

_GROUP_KINDS = {
    "blank": re.compile(r"\s"),
    "slash": re.compile(r"[/\\]"),
    "quote": re.compile("['\"`]"),
    "reserved": re.compile(r"[?#&%+=:;,@$!*()\[\]]"),
    "other": re.compile(r"[-_.~]"),
    "digit": re.compile(r"[0-9]"),
    "upper": re.compile(r"[A-Z]"),
    "lower": re.compile(r"[a-z]"),
    "script": re.compile(r"[^\x00-\x7f]"),
}


def one_of_each_kind(groups: Sequence[str]) -> list[str]:
    """Business groups whose names have kinds of characters that none before them has; never the first group."""
    chosen: list[str] = []
    covered = _kinds_in(groups[0])
    for group in groups[1:]:
        if len(chosen) < _MAX_GROUP_KINDS and not _kinds_in(group) <= covered:
            chosen.append(group)
            covered |= _kinds_in(group)
    return chosen


def _kinds_in(group: str) -> set[str]:
    return {kind for kind, pattern in _GROUP_KINDS.items() if pattern.search(group)}
