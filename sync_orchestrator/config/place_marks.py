"""Marks in the messages of validators, which know no lines: ``issues.py`` puts the line of another place there."""

from __future__ import annotations

import re

LINE_MARK = re.compile(r"<line of ([\w.-]+)>")


def line_mark(place: str) -> str:
    """Stands for the line of a dotted place in the file, or for "the default" where it is not there."""
    return f"<line of {place}>"
