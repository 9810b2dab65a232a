"""W3C trace context: carries the trace of a change event to the calls that push it.

The header is read and written by the propagator of ``opentelemetry-api``. Where an OpenTelemetry SDK is set up, each
push is a span. A push carries the trace of the newest event that it is made for. ``opentelemetry`` is imported where it
is used, because short commands need nothing of it.

The specification is at https://www.w3.org/TR/trace-context/.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

MAX_HEADER_LENGTH = 200
"""Characters. The header has 55 today; later versions may append more."""

_current: ContextVar[Mapping[str, str] | None] = ContextVar("sync_orchestrator_trace", default=None)


def trace_of(value: object) -> str | None:
    """Reads a ``traceparent``.

    Args:
        value: The header or attribute as it was received; it may be of any type.

    Returns:
        The value in the present version of the specification, or None where it is not valid and so is ignored.
    """
    if not isinstance(value, str) or len(value) > MAX_HEADER_LENGTH:
        return None
    parent = _span_context(value)
    return None if parent is None else _build_headers(parent)["traceparent"]


def get_trace_headers() -> Mapping[str, str]:
    """Returns the trace headers for a call made now: ``traceparent``, and ``tracestate`` where a tracer sets it."""
    return _current.get() or {}


@contextmanager
def continue_trace(parent: str | None, name: str, **attributes: str) -> Iterator[None]:
    """Makes the calls within the block a step of a trace: they carry its ``traceparent``, with a span id of their own.

    Args:
        parent: The ``traceparent`` to continue, as ``trace_of`` returns it. With None, nothing is traced.
        name: The name of the span, where an OpenTelemetry SDK is set up.
        attributes: The attributes of the span.
    """
    before = None if parent is None else _span_context(parent)
    if before is None:
        yield
        return
    from opentelemetry import trace

    context = trace.set_span_in_context(trace.NonRecordingSpan(before))
    with trace.get_tracer("sync_orchestrator").start_as_current_span(name, context, attributes=attributes) as span:
        step = span.get_span_context()
        if step.span_id == before.span_id:  # no SDK is set up: the API passes the parent's span on
            step = _child_of(before)
        token = _current.set(_build_headers(step))
        try:
            yield
        finally:
            _current.reset(token)


@cache
def _load_propagator() -> TraceContextTextMapPropagator:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()


def _span_context(traceparent: str) -> SpanContext | None:
    from opentelemetry.context import Context
    from opentelemetry.trace import get_current_span

    found = get_current_span(_load_propagator().extract({"traceparent": traceparent}, Context())).get_span_context()
    return found if found.is_valid else None


def _build_headers(step: SpanContext) -> dict[str, str]:
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context

    carrier: dict[str, str] = {}
    _load_propagator().inject(carrier, set_span_in_context(NonRecordingSpan(step)))
    return carrier


def _child_of(parent: SpanContext) -> SpanContext:
    from opentelemetry.trace import SpanContext

    span_id = 1 + secrets.randbelow(2**64 - 1)  # zero is not a valid id
    return SpanContext(parent.trace_id, span_id, is_remote=False, trace_flags=parent.trace_flags)
