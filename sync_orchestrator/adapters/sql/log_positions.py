"""Positions in the log of a Postgres (LSN) as numbers and as texts. Pure."""

from __future__ import annotations


def parse_lsn(text: str) -> int:
    """A position from its text, such as ``0/16B3748``. Raises ValueError."""
    high, _, low = text.partition("/")
    return int(high, 16) << 32 | int(low, 16)


def format_lsn(position: int) -> str:
    """A position as Postgres writes it."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"
