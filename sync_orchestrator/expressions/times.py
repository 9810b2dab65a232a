"""Times in the forms that other systems write them, and the one form in which they are compared: ISO 8601 in UTC.

Pure. A time is kept to the microsecond; what is finer, or finer than the form that is written, is cut off.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import ROUND_FLOOR, Decimal
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sync_orchestrator import exact_json
from sync_orchestrator.errors import SyncError

MAX_TIME_LENGTH = 100
"""Characters of the longest text that is read as a time."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)"
    r"(?:[Tt ](\d\d:\d\d(?::\d\d)?)(?:[.,](\d{1,12}))? ?([Zz]|UTC|[+-]\d\d(?::?[0-5]\d)?)?)?",
    re.ASCII,
)
_OFFSET = re.compile(r"([+-])(\d\d):?([0-5]\d)?", re.ASCII)
_PATTERN = re.compile(r"(?:[^%]|%-?[aAbBdHIjmMpSUWwyYfzZGuV%]){1,100}")
_YEAR = re.compile(r"%%|%Y")
_JSON_DATE = re.compile(r"/Date\((-?\d{1,18})(?:[+-]\d{4})?\)/", re.ASCII)
_NUMERAL = re.compile(r"-?\d{1,20}(\.\d{1,20})?", re.ASCII)
_SAMPLE = datetime(2001, 12, 23, 14, 15, 16, 789000, UTC)


class ValueFailed(SyncError, ValueError):
    """A function cannot work on a value; the message names the function and the value."""


def parse_time(value: Any, format: Any = "iso", zone: Any = "UTC") -> str:
    """A time of another form, as ISO 8601 in UTC; ``zone`` is that of times without an offset.

    Raises ValueError.
    """
    return _format_iso(moment_in(value, format, zone))


def format_time(value: Any, format: Any = "iso", zone: Any = "UTC") -> Any:
    """A time in ISO 8601 in another form, in ``zone``; a time without an offset is one of ``zone``.

    Raises ValueError.
    """
    return written_as(moment_in(value, "iso", zone), format, zone)


def moment_in(value: object, format: str = "iso", zone: str = "UTC") -> datetime:
    """The moment that a value names. Raises ValueError."""
    if isinstance(value, str) and len(value) > MAX_TIME_LENGTH:
        raise ValueError(f"{value[:20]!r}… is too long for a time")
    read = _READ.get(format) or (_of_pattern(check_readable_format(format)))
    try:
        found = read(value, zone_of(zone))
        return found.astimezone(UTC)
    except (OverflowError, ArithmeticError):
        raise ValueError(f"{value!r:.60} is too early or too late") from None


def any_moment_in(value: object, format: str, zone: str) -> datetime:
    """The same for what may be in the form or in ISO 8601. Raises ValueError."""
    try:
        return moment_in(value, format, zone)
    except ValueError:
        return moment_in(value, "iso", zone)


def written_as(moment: datetime, format: str, zone: str = "UTC") -> object:
    """A moment in a form. Raises ValueError."""
    write = _WRITE.get(check_format(format))
    try:
        local = moment.astimezone(zone_of(zone))
    except OverflowError:
        raise ValueError(f"{moment} is too early or too late") from None
    return _in_pattern(local, format) if write is None else write(local)


def check_format(format: object) -> str:
    """Refuses what is no form of a time. Raises ValueError."""
    if not isinstance(format, str) or (format not in _WRITE and ("%" not in format or not _PATTERN.fullmatch(format))):
        raise ValueError(
            f"unknown time format {format!r:.60}; expected one of: {', '.join(_WRITE)}, or a pattern such "
            "as '%d.%m.%Y %H:%M'"
        )
    return format


@lru_cache(maxsize=256)
def check_readable_format(format: Any) -> str:
    """The same for a form that is read: a pattern needs a whole date. Raises ValueError."""
    if check_format(format) in _WRITE:
        return str(format)
    try:
        read = datetime.strptime(_SAMPLE.strftime(format), format)
    except (ValueError, re.error) as error:
        raise ValueError(f"the time format '{format}' cannot be read: {error}") from None
    if read.date() != _SAMPLE.date():
        raise ValueError(f"the time format '{format}' has no whole date, such as %Y-%m-%d")
    return str(format)


@lru_cache(maxsize=256)
def zone_of(zone: Any) -> tzinfo:
    """The zone of a name such as ``Europe/Berlin``, or of an offset such as ``+02:00``. Raises ValueError."""
    if isinstance(zone, str) and (offset := _OFFSET.fullmatch(zone)):
        return _parse_offset(offset[1], offset[2], offset[3])
    if zone == "UTC":
        return UTC
    try:
        return ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, TypeError, AttributeError, OSError):
        raise ValueError(f"unknown time zone {zone!r:.60}; expected one such as UTC, Europe/Berlin or +02:00") from None


def _parse_offset(sign: str, hours: str, minutes: str | None) -> timezone:
    after = timedelta(hours=int(hours), minutes=int(minutes or 0))
    return timezone(after if sign == "+" else -after)


def _of_iso(value: object, zone: tzinfo) -> datetime:
    if isinstance(value, str) and (milliseconds := _JSON_DATE.fullmatch(value)):
        return _after_epoch(Decimal(milliseconds[1]).scaleb(-3))
    match = _ISO.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r:.60} is no time in ISO 8601, such as 2024-01-31T10:00:00Z")
    day, time, fraction, offset = match.groups()
    if fraction and time.count(":") == 1:
        raise ValueError(f"{value!r:.60} is no time in ISO 8601: it has a fraction of a minute")
    try:
        found = datetime.fromisoformat(f"{day} {time or '00:00'}").replace(
            microsecond=int((fraction or "0").ljust(6, "0")[:6])
        )
    except ValueError as error:
        raise ValueError(f"{value!r:.60} is no time: {error}") from None
    if offset is None:
        return found.replace(tzinfo=zone)
    parts = _OFFSET.fullmatch(offset)
    return found.replace(tzinfo=_parse_offset(parts[1], parts[2], parts[3]) if parts else UTC)


def _of_number(scale: int) -> Callable[[object, tzinfo], datetime]:
    def read_number(value: object, zone: tzinfo) -> datetime:
        if isinstance(value, str) and _NUMERAL.fullmatch(value.strip()):
            return _after_epoch(Decimal(value.strip()).scaleb(scale, exact_json.EXACT))
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
            raise ValueError(f"{value!r:.60} is no number of {'milli' if scale else ''}seconds since 1970")
        return _after_epoch(exact_json.decimal_of(value).scaleb(scale, exact_json.EXACT))

    return read_number


def _of_pattern(pattern: str) -> Callable[[object, tzinfo], datetime]:
    def read_by_pattern(value: object, zone: tzinfo) -> datetime:
        if not isinstance(value, str):
            raise ValueError(f"{value!r:.60} is no time of the form '{pattern}'")
        try:
            found = datetime.strptime(value.strip(), pattern)
        except ValueError:
            raise ValueError(f"{value!r:.60} is no time of the form '{pattern}'") from None
        return found if found.tzinfo else found.replace(tzinfo=zone)

    return read_by_pattern


def _after_epoch(seconds: Decimal) -> datetime:
    return _EPOCH + int(seconds.scaleb(6, exact_json.EXACT).to_integral_value(ROUND_FLOOR)) * _MICROSECOND


def _microseconds_since_epoch(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _in_pattern(moment: datetime, pattern: str) -> str:
    year = f"{moment.year:04}"  # which the C library may write with fewer digits
    return moment.strftime(_YEAR.sub(lambda found: year if found[0] == "%Y" else found[0], pattern))


def _format_iso(moment: datetime, fraction: str | None = None) -> str:
    """``fraction``: the digits of a second; without trailing zeros by default."""
    if fraction is None and moment.microsecond:
        fraction = f"{moment.microsecond:06}".rstrip("0")
    offset = moment.strftime("%z")
    if len(offset) > len("+0000"):  # of a time before there were zones, with seconds, which ISO 8601 cannot say
        return _format_iso(moment.astimezone(UTC), fraction)
    return (
        f"{moment.replace(tzinfo=None, microsecond=0).isoformat()}{f'.{fraction}' if fraction else ''}"
        f"{'Z' if offset == '+0000' else f'{offset[:3]}:{offset[3:5]}'}"
    )


_READ: dict[str, Callable[[object, tzinfo], datetime]] = {
    "iso": _of_iso,
    "iso_seconds": _of_iso,
    "iso_ms": _of_iso,
    "iso_us": _of_iso,
    "date": _of_iso,
    "epoch": _of_number(0),
    "epoch_ms": _of_number(-3),
    "json_date": _of_iso,
}
_WRITE: dict[str, Callable[[datetime], object]] = {
    "iso": _format_iso,
    "iso_seconds": lambda moment: _format_iso(moment, ""),
    "iso_ms": lambda moment: _format_iso(moment, f"{moment.microsecond // 1000:03}"),
    "iso_us": lambda moment: _format_iso(moment, f"{moment.microsecond:06}"),
    "date": lambda moment: date.isoformat(moment),
    "epoch": lambda moment: _microseconds_since_epoch(moment) // 1_000_000,
    "epoch_ms": lambda moment: _microseconds_since_epoch(moment) // 1000,
    "json_date": lambda moment: f"/Date({_microseconds_since_epoch(moment) // 1000})/",
}
