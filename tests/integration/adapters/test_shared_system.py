"""One system as source and as third party: one rate, one hold-off, one login, one breaker, one line in the status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from opposite_systems import Story
from sqlalchemy import Engine
from starlette.responses import JSONResponse

from sync_orchestrator.assets.lineage import external_assets, source_key
from sync_orchestrator.cli import overview
from sync_orchestrator.config import Config
from sync_orchestrator.conformance.live_check import check_live
from sync_orchestrator.core.operations.status import collect_status
from sync_orchestrator.core.systems import shared_system
from sync_orchestrator.core.systems.breaker import read_system
from sync_orchestrator.errors import CallFailed, Failure

RATE = 10.0


@pytest.fixture
async def story(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Story]:
    monkeypatch.setattr(shared_system, "_LOOK_AGAIN_SECONDS", 0.0)
    story = Story(
        engine,
        third_parties={"erp": {"rate": RATE, "search_lag": 0, "in_flight_window": 0, "breaker": {"failures": 2}}},
    )
    for number in range(1, 5):
        story.platform.offer(f"A-{number}", "a thing")
        story.erp.stock(number, f"A-{number}", number)
    yield story
    await story.close()


async def test_reads_and_writes_together_keep_one_rate(story: Story) -> None:
    source = story.context.entities["stock"].sources["erp"]
    for number in range(8):
        story.platform.sell(str(number), "A-1", 1)
    await asyncio.gather(story.sync("order"), *(source.read(f"A-{number % 4 + 1}") for number in range(8)))
    kinds = {call for call in story.erp.calls if not call.endswith("/login")}
    assert {"POST /salesorders", "GET /items"} <= kinds
    assert story.erp.calls["POST /salesorders"] == story.erp.calls["GET /items"] == 8
    took = story.erp.arrivals[-1] - story.erp.arrivals[0]
    assert took >= (len(story.erp.arrivals) - 1) / RATE * 0.9
    gaps = [after - before for before, after in pairwise(story.erp.arrivals)]
    assert sum(gap > 0.5 / RATE for gap in gaps) > len(gaps) / 2, "two rates would come in pairs"


async def test_a_429_of_a_write_holds_off_reads_and_the_other_way_round(story: Story) -> None:
    source = story.context.entities["stock"].sources["erp"]
    await source.groups()
    story.erp.refusals = [JSONResponse({}, 429, headers={"Retry-After": "60"})]
    story.platform.sell("1", "A-1", 1)
    await story.sync("order")
    calls = len(story.erp.arrivals)
    with pytest.raises(CallFailed, match="asked to stay away") as held:
        await source.read("A-1")
    assert (held.value.kind, len(story.erp.arrivals)) == (Failure.THROTTLED, calls)


async def test_a_429_of_a_read_holds_off_writes(story: Story) -> None:
    source = story.context.entities["stock"].sources["erp"]
    await source.groups()
    story.erp.refusals = [JSONResponse({}, 429, headers={"Retry-After": "60"})]
    with pytest.raises(CallFailed):
        await source.read("A-1")
    story.platform.sell("1", "A-1", 1)
    calls = len(story.erp.arrivals)
    await story.poll("order", "platform")
    assert (len(story.erp.arrivals), story.erp.sales_orders) == (calls, {})
    assert collect_status(story.engine)["systems"]["erp"]["held_off_seconds"] > 50


async def test_a_login_is_made_once_for_both(story: Story) -> None:
    story.platform.sell("1", "A-1", 1)
    await asyncio.gather(story.sync("order"), story.sync("stock"))
    assert story.erp.logins == 1
    assert [row.system for row in story.query("SELECT system FROM sync.logins")] == ["third_parties.erp"]


async def test_an_open_breaker_stops_reads_too_until_a_push_succeeds(story: Story) -> None:
    await story.sync("stock")
    story.erp.is_down = True
    for number in range(3):
        story.platform.sell(str(number), "A-1", 1)
    await story.poll("order", "platform")
    assert collect_status(story.engine)["systems"]["erp"]["breaker"] == "open"
    calls = len(story.erp.arrivals)
    source = story.context.entities["stock"].sources["erp"]
    reads = [
        lambda: source.read("A-1"),
        lambda: source.read_many(["A-1"]),
        lambda: source.groups(),
        lambda: source.count("A"),
        lambda: source.ungrouped(),
    ]
    for read in reads:
        with pytest.raises(CallFailed, match="the circuit breaker of erp is open") as stopped:
            await read()  # type: ignore[no-untyped-call]
        assert stopped.value.kind is Failure.THROTTLED
    for listing in (source.pages("A"), source.keys("A"), source.changes(0)):
        with pytest.raises(CallFailed, match="the circuit breaker of erp is open"):
            await anext(listing)
    assert len(story.erp.arrivals) == calls, "nothing was called"

    story.erp.is_down = False
    story.query("UPDATE sync.systems SET probe_at = sync.clock() WHERE name = 'erp' RETURNING name")
    await story.drain()
    assert collect_status(story.engine)["systems"]["erp"]["breaker"] == "closed"
    assert await source.read("A-1") is not None


async def test_reads_go_on_where_no_push_probes(story: Story) -> None:
    """The failed records may have been discarded: then nobody would ever close the breaker."""
    await story.sync("stock")
    story.query(
        "UPDATE sync.systems SET open_since = sync.clock(), probe_at = sync.clock() - interval '60 s' "
        "WHERE name = 'erp' RETURNING name"
    )
    source = story.context.entities["stock"].sources["erp"]
    with pytest.raises(CallFailed, match="circuit breaker"):
        await source.read("A-1")
    story.query("UPDATE sync.systems SET probe_at = sync.clock() - interval '121 s' WHERE name = 'erp' RETURNING name")
    assert await source.read("A-1") is not None


async def test_an_event_waits_for_the_breaker_without_attempts(story: Story) -> None:
    await story.sync("stock")
    story.query(
        "UPDATE sync.systems SET open_since = sync.clock(), probe_at = sync.clock() + interval '60 s' "
        "WHERE name = 'erp' RETURNING name"
    )
    await story.post(story.erp.book_receipt(1, 1), "d1")
    await story.drain()
    (event,) = story.query("SELECT state, attempts, awaiting FROM sync.events")
    assert tuple(event) == ("waiting", 0, "source")
    with story.engine.begin() as connection:
        assert read_system(connection, "erp").is_open


# What is shown ------------------------------------------------------------------------------------------------------


async def test_it_is_one_system_in_status_and_two_roles_in_check(story: Story) -> None:
    assert sorted(collect_status(story.engine)["systems"]) == ["erp", "platform"]
    rows = {(row["system"], row["role"]): row["where"] for row in overview.list_systems(story.config)}
    assert rows["erp", "source"] == "the third party erp"
    assert rows["erp", "third party"] == story.erp.url


async def test_one_name_without_same_as_is_noted(story: Story) -> None:
    assert not any("has the same name" in note for note in overview.list_notes(story.config))
    document = {
        **story.document,
        "sources": {**story.document["sources"], "platform": {"base_url": story.platform.url}},
    }
    (note,) = [note for note in overview.list_notes(Config.model_validate(document)) if "has the same name" in note]
    assert note.startswith("sources.platform: third_parties.platform has the same name")


async def test_check_live_logs_in_once_and_passes(story: Story) -> None:
    await story.sync("stock")
    story.erp.logins = 0
    report = await check_live(story.config)
    failed = [step for step in report.steps if step.outcome == "failed"]
    assert failed == []
    assert [step.system for step in report.steps if step.what == "login"] == ["erp"]


async def test_check_live_does_not_read_a_source_whose_third_party_refuses_the_login(story: Story) -> None:
    story.erp.is_down = True
    report = await check_live(story.config)
    assert [(step.system, step.what) for step in report.steps if step.outcome == "failed"] == [("erp", "login")]
    assert story.erp.calls["GET /items"] == 0


def test_external_assets_show_the_address_and_the_other_role(engine: Engine) -> None:
    story = Story(engine)
    specs = {spec.key: spec for spec in external_assets("stock", story.config.entities["stock"], story.config)}
    source = specs[source_key("stock", "erp")]
    assert source.metadata["dagster/uri"] == story.erp.url
    assert "It is also the third party of order." in (source.description or "")
    asyncio.run(story.close())
