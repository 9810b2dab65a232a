"""W3C trace context: from the change event to the calls by which it is pushed, and OpenTelemetry's spans where that is
installed and set up.

A push carries the trace of the newest event that it is made for. Source: https://www.w3.org/TR/trace-context/.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

try:
    from opentelemetry import propagate as _propagate
    from opentelemetry import trace as _telemetry
except ImportError:  # it is the user's choice
    _propagate = _telemetry = None  # type: ignore[assignment]

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?")
_current: ContextVar[str | None] = ContextVar("sync_orchestrator_trace", default=None)


def trace_of(value: Any) -> str | None:
    """A ``traceparent`` that can be followed, in the present version; None for anything else, which is left alone."""
    match = _TRACEPARENT.fullmatch(value) if isinstance(value, str) and len(value) <= 200 else None
    if match is None or (value.startswith("00") and match[3] is not None):
        return None
    return f"00-{match[1]}-{value[36:52]}-{match[2]}"


def header() -> dict[str, str]:
    """What a call made now carries."""
    current = _current.get()
    return {} if current is None else {"traceparent": current}


@contextmanager
def following(parent: str | None, name: str, **attributes: str) -> Iterator[None]:
    """A step of a trace: the calls made within carry it. Without a parent nothing is traced."""
    if parent is None:
        yield
        return
    if _telemetry is None or _propagate is None:
        token = _current.set(f"{parent[:36]}{secrets.token_hex(8)}{parent[52:]}")
        try:
            yield
        finally:
            _current.reset(token)
        return
    before = _propagate.extract({"traceparent": parent})
    with _telemetry.get_tracer("sync_orchestrator").start_as_current_span(name, before, attributes=attributes):
        carrier: dict[str, str] = {}
        _propagate.inject(carrier)
        token = _current.set(carrier.get("traceparent", parent))
        try:
            yield
        finally:
            _current.reset(token)
