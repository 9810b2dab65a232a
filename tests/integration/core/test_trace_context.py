"""W3C trace context is taken over from events onto the pushes that they are made for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import httpx
import pytest
from api_client import client_of, event, key_for, send, service
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import TraceState
from world import World

from sync_orchestrator.core import tracing
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ports import Item

ID, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{ID}-{SPAN}-01"

READ: list[tuple[str, Any, str | None]] = [
    ("as it is", PARENT, PARENT),
    ("of a version to come, with more behind it", f"cc-{ID}-{SPAN}-01-what", PARENT),
    ("more behind it in this version", f"{PARENT}-what", None),
    ("version ff", f"ff-{ID}-{SPAN}-01", None),
    ("no trace", f"00-{'0' * 32}-{SPAN}-01", None),
    ("no parent", f"00-{ID}-{'0' * 16}-01", None),
    ("large letters", PARENT.upper(), None),
    ("cut off", PARENT[:-1], None),
    ("a number", 7, None),
    ("endless", f"cc-{ID}-{SPAN}-01-{'x' * 1000}", None),
    ("none", None, None),
]


@pytest.mark.parametrize(("value", "expected"), [row[1:] for row in READ], ids=[row[0] for row in READ])
def test_what_can_be_followed(value: Any, expected: str | None) -> None:
    assert tracing.trace_of(value) == expected


def test_without_an_sdk_a_step_is_a_child_of_its_parent() -> None:
    with tracing.continue_trace(None, "push"):
        assert tracing.get_trace_headers() == {}
    with tracing.continue_trace(PARENT, "push"):
        child = tracing.get_trace_headers()["traceparent"]
        assert (child[:36], child[52:], tracing.trace_of(child)) == (PARENT[:36], PARENT[52:], child)
        assert child != PARENT
    assert tracing.get_trace_headers() == {}


def test_a_step_is_a_span_of_opentelemetry_where_that_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr("opentelemetry.trace.get_tracer", provider.get_tracer)
    with tracing.continue_trace(PARENT, "push item", key="k1"):
        child = tracing.get_trace_headers()["traceparent"]
    [span] = spans.get_finished_spans()
    assert span.context is not None
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (ID, SPAN)
    assert child == f"00-{ID}-{span.context.span_id:016x}-01"
    assert dict(span.attributes or {}) == {"key": "k1"}


def test_the_tracestate_of_a_sampler_goes_on_with_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    class MarkingSampler(Sampler):
        def should_sample(self, *args: Any, **options: Any) -> SamplingResult:
            return SamplingResult(Decision.RECORD_AND_SAMPLE, trace_state=TraceState([("vendor", "1")]))

        def get_description(self) -> str:
            return "marks each trace"

    provider = TracerProvider(sampler=MarkingSampler())
    monkeypatch.setattr("opentelemetry.trace.get_tracer", provider.get_tracer)
    with tracing.continue_trace(PARENT, "push item"):
        assert tracing.get_trace_headers()["tracestate"] == "vendor=1"


def test_the_module_imports_opentelemetry_only_when_it_traces() -> None:
    code = (
        "import sys; from sync_orchestrator.core import tracing; assert 'opentelemetry' not in sys.modules; "
        f"assert tracing.trace_of('{PARENT}') == '{PARENT}'; assert 'opentelemetry.sdk' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_push_of_a_change_carries_its_trace(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    carried: list[str] = []
    create = world.erp.create

    async def watched(item: Item) -> Any:
        carried.append(tracing.get_trace_headers().get("traceparent", ""))
        return await create(item)

    monkeypatch.setattr(world.erp, "create", watched)
    world.run_full_sync()
    world.put_record("k1", notify=False)
    world.put_record("k2", notify=False)

    async def told() -> list[httpx.Response]:
        async with client_of(service(world.engine, world.config), key_for(world.engine)) as client:
            row = world.shop.rows["k1"]
            document = event(subject="k1", type="item.created", version=row.version, data=row.data)
            return [
                await send(client, document, traceparent=PARENT),
                await send(client, {**document, "id": "e2", "subject": "k2"}),
                await send(client, event(id="e3", subject="k2", traceparent=PARENT.replace("b7", "c8"))),
            ]

    assert [answer.status_code for answer in asyncio.run(told())] == [202, 202, 202]
    with world.engine.begin() as connection:
        rows = run(connection, "SELECT trace FROM sync.events ORDER BY seq")
    assert [row.trace for row in rows] == [PARENT, None, PARENT.replace("b7", "c8")]
    world.run_drain()
    assert PARENT[:36] in {header[:36] for header in carried}
    with world.engine.begin() as connection:
        assert run(connection, "SELECT trace FROM sync.event_history WHERE event_id = 'e1'")[0].trace == PARENT
