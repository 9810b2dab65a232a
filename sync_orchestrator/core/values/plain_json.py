"""Values of databases and of typed files as JSON can hold them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum
from typing import Any

from sync_orchestrator import exact_json

_PLAIN = frozenset({type(None), str, bool, int, float})


def as_json(value: object, zone: tzinfo = UTC) -> Any:
    """A value in the plainest form that loses nothing.

    A decimal is a number with all its digits, and a text only where it is not finite or of absurd size. A time is
    ISO 8601 in UTC (one that names no zone is in ``zone``), a duration is in seconds, bytes are base64, and what else
    there may be is a text.
    """
    if type(value) in _PLAIN or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(as_json(key, zone)): as_json(item, zone) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_json(item, zone) for item in value]
    if isinstance(value, Enum):
        return as_json(value.value, zone)
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, Decimal):
        return _to_plain_decimal(value)
    if isinstance(value, datetime):
        return _format_moment(value, zone)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return as_json(Decimal(value // timedelta(microseconds=1)).scaleb(-6), zone)
    return str(value)


def _to_plain_decimal(value: Decimal) -> int | float | Decimal | str:
    return str(value) if exact_json.is_absurd(value) else exact_json.simplify_number(value)


def _format_moment(value: datetime, zone: tzinfo) -> str:
    told = value if value.tzinfo else value.replace(tzinfo=zone)
    try:
        return told.astimezone(UTC).isoformat().replace("+00:00", "Z")
    except OverflowError:  # the first and the last day there is
        return told.isoformat()
