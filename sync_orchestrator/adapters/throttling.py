"""What an answer says of waiting: how long to stay away, or to hold off all calls. Pure.

Not here: the holding off (``http.py``, ``core/breaker.py``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any

from sync_orchestrator.adapters.answers import Answer, found
from sync_orchestrator.config.calls import Throttle

LONGEST = 3600.0
"""No answer holds us off for longer than this many seconds."""

_PREFIXES = ("ratelimit-", "x-ratelimit-", "x-rate-limit-")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_LARGEST_DURATION, _LARGEST_SECOND, _LARGEST_MILLISECOND = 1e8, 1e11, 1e14


def wait_asked(answer: Answer, throttle: Throttle) -> float | None:
    """The seconds that an answer asks to stay away, at most an hour; None where it names no time.

    The first that names one counts: ``throttle.wait``, ``Retry-After``, the RateLimit headers. What these say on a 5xx
    is left aside: it would not mean that the call was turned away unread.
    """
    if not _tells_of_time(answer, throttle.wait):
        return None
    now = _now_there(answer)
    asked = seconds_until(found(throttle.wait, answer.document), now)
    if asked is None:
        asked = retry_after(answer.headers.get("retry-after", ""), now)
    if asked is None and answer.status < 500:
        asked = _until_reset(answer, now, or_untold=answer.status == 429)
    return None if asked is None else min(asked, LONGEST)


def pause_after(answer: Answer, throttle: Throttle) -> float | None:
    """The seconds for which an answer that is not throttled asks to hold off all calls, at most an hour.

    None where it does not: neither by ``throttle.slow_down`` nor by saying that nothing remains until a reset.
    """
    if not _tells_of_time(answer, throttle.slow_down):
        return None
    now = _now_there(answer)
    told = (seconds_until(found(throttle.slow_down, answer.document), now) if 200 <= answer.status < 300 else None,
            _until_reset(answer, now) if answer.status < 500 else None)
    longest = max((seconds for seconds in told if seconds is not None), default=0.0)
    return min(longest, LONGEST) if longest > 0 else None


def retry_after(text: str, now: datetime | None = None) -> float | None:
    """The seconds that ``Retry-After`` asks for, told as seconds or as a date (RFC 9110); None for anything else."""
    text = text.strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII):
        return float(text)
    return _until(_http_date(text), now or datetime.now(UTC))


def seconds_until(told: Any, now: datetime) -> float | None:
    """What an API tells of a time, in seconds from ``now``, never negative; None for what is neither.

    A small number is a duration in seconds; a large one seconds, a still larger one milliseconds since 1970; a text is
    one of these, or a date as of ISO 8601 or of HTTP.
    """
    if isinstance(told, str):
        told = told.strip()
        try:
            told = float(told) if re.fullmatch(r"-?\d{1,20}(\.\d{1,20})?", told, re.ASCII) else datetime.fromisoformat(
                told.upper())
        except ValueError:
            told = _http_date(told)
        if isinstance(told, datetime):
            return _until(told, now)
    if isinstance(told, bool) or not isinstance(told, int | float | Decimal):
        return None
    told = float(told)
    if not math.isfinite(told) or abs(told) >= _LARGEST_MILLISECOND:
        return None
    if told >= _LARGEST_SECOND:
        told /= 1000
    return max(0.0, float(told) if told < _LARGEST_DURATION else told - now.timestamp())


def _tells_of_time(answer: Answer, expression: str | None) -> bool:
    """Whether there is anything to look at; most answers say nothing of the kind."""
    return expression is not None or any(name == "retry-after" or "limit" in name for name in answer.headers)


def _now_there(answer: Answer) -> datetime:
    """The other side's clock, where it tells it: the times it names are by that one."""
    at = _http_date(answer.headers.get("date", ""))
    return datetime.now(UTC) if at is None else _zoned(at)


def _until_reset(answer: Answer, now: datetime, *, or_untold: bool = False) -> float | None:
    """The seconds until a limit of which nothing remains is reset; ``or_untold``: or of which no remainder is told."""
    told = [_of_headers(answer.headers, prefix, now, or_untold) for prefix in _PREFIXES]
    told += _of_structured(answer.headers.get("ratelimit", ""), or_untold)
    return max((seconds for seconds in told if seconds is not None), default=None)


def _of_headers(headers: Mapping[str, str], prefix: str, now: datetime, or_untold: bool) -> float | None:
    remaining = headers.get(f"{prefix}remaining")
    used_up = or_untold if remaining is None else re.fullmatch(r"\s*0+(\.0+)?\s*", remaining) is not None
    return seconds_until(headers.get(f"{prefix}reset"), now) if used_up else None


def _of_structured(text: str, or_untold: bool) -> list[float | None]:
    """``RateLimit: "default";r=0;t=30``, one item a policy; and the older ``limit=9, remaining=0, reset=30``."""
    plain = _QUOTED.sub("", text).lower()
    items = plain.split(",") if ";" in plain else [plain.replace(",", ";")]
    told: list[float | None] = []
    for item in items:
        settings = dict(re.findall(r"([a-z]+)\s*=\s*(\d{1,9})(?![\d.])", item))
        remaining = settings.get("r", settings.get("remaining"))
        reset = settings.get("t", settings.get("reset"))
        if reset is not None and (or_untold if remaining is None else int(remaining) == 0):
            told.append(float(reset))
    return told


def _http_date(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None


def _until(at: datetime | None, now: datetime) -> float | None:
    return None if at is None else max(0.0, (_zoned(at) - now).total_seconds())


def _zoned(at: datetime) -> datetime:
    return at if at.tzinfo else at.replace(tzinfo=UTC)
