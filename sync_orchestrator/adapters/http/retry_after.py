"""What an answer says of waiting: how long to stay away, or to hold off all calls. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any

from sync_orchestrator.adapters.http.responses import Answer, find_value
from sync_orchestrator.config.http_access import ThrottleSettings

MAX_WAIT_SECONDS = 3600.0
"""No answer holds us off for longer than this many seconds."""

MAX_WAIT_BY_HEADER_SECONDS = 60.0
"""Nor does a RateLimit header alone for longer than this: units and meanings of these headers differ, so one call is
tried once a minute."""

_MAX_SHOWN = 60
_MAX_SCANNED = 1000
"""Characters of a header that are given to patterns."""

_PREFIXES = ("ratelimit-", "x-ratelimit-", "x-rate-limit-")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_LARGEST_DURATION, _LARGEST_SECOND, _LARGEST_MILLISECOND = 1e8, 1e11, 1e14


@dataclass(frozen=True, slots=True)
class RequestedWait:
    """A time to stay away that an answer names.

    ``seconds`` is for how long it is obeyed, ``claimed`` what the answer says, ``why`` the header or setting with its
    value. ``by_header``: only a RateLimit header says so, which many servers send without meaning it.
    """

    seconds: float
    claimed: float
    why: str
    by_header: bool = False


def requested_wait_seconds(answer: Answer, throttle: ThrottleSettings) -> float | None:
    """The seconds that an answer asks to stay away; None where it names no time."""
    asked = wait_of(answer, throttle)
    return None if asked is None else asked.seconds


def pause_after(answer: Answer, throttle: ThrottleSettings) -> float | None:
    """The seconds for which an answer that is not throttled asks to hold off all calls; None where it does not."""
    asked = pause_of(answer, throttle)
    return None if asked is None else asked.seconds


def wait_of(answer: Answer, throttle: ThrottleSettings) -> RequestedWait | None:
    """How long an answer asks to stay away; None where it names no time.

    The first that names one counts: ``throttle.wait``, ``Retry-After``, the RateLimit headers. What these say on a 5xx
    is left aside: it would not mean that the call was turned away unread.
    """
    if not _names_a_time(answer, throttle.wait):
        return None
    now = _now_there(answer)
    if (seconds := seconds_until(find_value(throttle.wait, answer.document), now)) is not None:
        return RequestedWait(
            min(seconds, MAX_WAIT_SECONDS), seconds, f"throttle.wait names {seconds:.3g} s (answer {answer.status})"
        )
    for header, unit in (("retry-after", 1.0), ("retry-after-ms", 1000.0)):
        text = answer.headers.get(header, "")
        if (seconds := retry_after(text, now)) is not None:
            return RequestedWait(
                min(seconds / unit, MAX_WAIT_SECONDS),
                seconds / unit,
                f"{header}: {_clip_text(text)} (answer {answer.status})",
            )
    return _until_reset(answer, throttle, now, or_untold=answer.status == 429) if answer.status < 500 else None


def pause_of(answer: Answer, throttle: ThrottleSettings) -> RequestedWait | None:
    """How long an answer that is not throttled asks to hold off all calls.

    None where it does not: neither by ``throttle.slow_down`` nor by saying that nothing remains until a reset.
    """
    if not _names_a_time(answer, throttle.slow_down):
        return None
    now = _now_there(answer)
    told: list[RequestedWait] = []
    if 200 <= answer.status < 300:
        seconds = seconds_until(find_value(throttle.slow_down, answer.document), now)
        if seconds is not None:
            told.append(
                RequestedWait(min(seconds, MAX_WAIT_SECONDS), seconds, f"throttle.slow_down names {seconds:.3g} s")
            )
    if answer.status < 500 and (asked := _until_reset(answer, throttle, now)) is not None:
        told.append(asked)
    longest = max(told, key=lambda asked: asked.seconds, default=None)
    return longest if longest is not None and longest.seconds > 0 else None


def retry_after(text: str, now: datetime | None = None) -> float | None:
    """The seconds that ``Retry-After`` asks for, told as seconds or as a date (RFC 9110); None for anything else."""
    text = text.strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII):
        return float(text)
    return _seconds_between(_http_date(text), now or datetime.now(UTC))


def seconds_until(told: Any, now: datetime) -> float | None:
    """What an API tells of a time, in seconds from ``now``, never negative; None for what is neither.

    A small number is a duration in seconds; a large one seconds, a still larger one milliseconds since 1970; a text is
    one of these, or a date as of ISO 8601 or of HTTP.
    """
    if isinstance(told, str):
        told = told.strip()
        try:
            told = (
                float(told)
                if re.fullmatch(r"-?\d{1,20}(\.\d{1,20})?", told, re.ASCII)
                else datetime.fromisoformat(told.upper())
            )
        except ValueError:
            told = _http_date(told)
        if isinstance(told, datetime):
            return _seconds_between(told, now)
    if isinstance(told, bool) or not isinstance(told, int | float | Decimal):
        return None
    told = float(told)
    if not math.isfinite(told) or abs(told) >= _LARGEST_MILLISECOND:
        return None
    if told >= _LARGEST_SECOND:
        told /= 1000
    return max(0.0, float(told) if told < _LARGEST_DURATION else told - now.timestamp())


def _names_a_time(answer: Answer, expression: str | None) -> bool:
    """Whether there is anything to look at; most answers say nothing of the kind."""
    return expression is not None or any(name.startswith("retry-after") or "limit" in name for name in answer.headers)


def _now_there(answer: Answer) -> datetime:
    """The other side's clock, where it tells it: the times it names are by that one."""
    at = _http_date(answer.headers.get("date", ""))
    return datetime.now(UTC) if at is None else _assume_utc(at)


def _until_reset(
    answer: Answer, throttle: ThrottleSettings, now: datetime, *, or_untold: bool = False
) -> RequestedWait | None:
    """The time until a limit of which nothing remains is reset; ``or_untold``: or of which no remainder is told."""
    if not throttle.headers:
        return None
    told = [_of_headers(answer.headers, prefix, now, or_untold) for prefix in _PREFIXES]
    if text := answer.headers.get("ratelimit", ""):
        told += [(seconds, f"ratelimit: {_clip_text(text)}") for seconds in _of_structured(text, or_untold)]
    seconds, why = max((pair for pair in told if pair is not None), default=(None, ""))
    if seconds is None:
        return None
    return RequestedWait(min(seconds, MAX_WAIT_BY_HEADER_SECONDS), seconds, why, by_header=True)


def _of_headers(headers: Mapping[str, str], prefix: str, now: datetime, or_untold: bool) -> tuple[float, str] | None:
    remaining = headers.get(f"{prefix}remaining")
    if not (or_untold if remaining is None else re.fullmatch(r"\s*0+(\.0+)?\s*", remaining) is not None):
        return None
    left = f"{prefix}remaining: {_clip_text(remaining)}, " if remaining is not None else ""
    for name, unit in (("reset", 1.0), ("reset-after", 1.0), ("reset-ms", 1000.0)):
        text = headers.get(f"{prefix}{name}")
        if (seconds := seconds_until(text, now)) is not None:
            return seconds / unit, f"{left}{prefix}{name}: {_clip_text(text or '')}"
    return None


def _of_structured(text: str, or_untold: bool) -> list[float]:
    """``RateLimit: "default";r=0;t=30``, one item a policy; and the older ``limit=9, remaining=0, reset=30``."""
    plain = _QUOTED.sub("", text[:_MAX_SCANNED]).lower()
    items = plain.split(",") if ";" in plain else [plain.replace(",", ";")]
    told: list[float] = []
    for item in items:
        settings = dict(re.findall(r"([a-z]+)\s*=\s*(\d{1,9})(?![\d.])", item))
        remaining = settings.get("r", settings.get("remaining"))
        reset = settings.get("t", settings.get("reset"))
        if reset is not None and (or_untold if remaining is None else int(remaining) == 0):
            told.append(float(reset))
    return told


def _clip_text(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= _MAX_SHOWN else plain[:_MAX_SHOWN] + "…"


def _http_date(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text[:_MAX_SCANNED])
    except (ValueError, OverflowError):
        return None


def _seconds_between(at: datetime | None, now: datetime) -> float | None:
    return None if at is None else max(0.0, (_assume_utc(at) - now).total_seconds())


def _assume_utc(at: datetime) -> datetime:
    return at if at.tzinfo else at.replace(tzinfo=UTC)
