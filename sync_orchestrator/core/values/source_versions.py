"""Versions as systems tell them, turned into whole numbers that grow."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Literal

_MAX_VERSION = 2**63 - 1


def version_of(value: object, kind: Literal["time", "number"], zone: tzinfo = UTC) -> int:
    """A version as a whole number: microseconds since 1970 for a time, the number itself otherwise.

    A time is ISO 8601 or RFC 3339 (in ``zone`` where it names none) or seconds since 1970. Raises ValueError saying
    what came.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise ValueError(f"{value!r:.60} is no {kind}")
    version = _parse_number(value) if kind == "number" else _parse_time(value, zone)
    if not -_MAX_VERSION <= version <= _MAX_VERSION:
        raise ValueError("the version is larger than 63 bits")
    return version


def as_time(version: int) -> str:
    """A version that is a time, in ISO 8601 and UTC."""
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=version)
    return at.isoformat().replace("+00:00", "Z")


def _parse_number(value: str | float | Decimal) -> int:
    if isinstance(value, str) and len(value) > 20:
        raise ValueError("the version is larger than 63 bits")
    try:
        number = int(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{value!r:.60} is no whole number") from None
    if isinstance(value, float | Decimal) and value != number:
        raise ValueError(f"{value!r} is no whole number")
    return number


def _parse_time(value: str | float | Decimal, zone: tzinfo) -> int:
    if isinstance(value, int | float | Decimal):
        try:
            return round(value * 1_000_000)
        except (OverflowError, ValueError):
            raise ValueError(f"{value!r:.60} is no time") from None
    try:
        at = datetime.fromisoformat(value.upper())
    except ValueError:
        raise ValueError(f"{value!r:.60} is no ISO 8601 time") from None
    at = at if at.tzinfo else at.replace(tzinfo=zone)
    since = at - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
