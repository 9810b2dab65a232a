"""The API service beside intake and access: modes, group commit, limits, look-ups, figures, what it says of itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import httpx
import pytest
import yaml
from api_client import BATCH, DROP, client_of, event, key_for, send, service
from fakes import two_part_config
from jsonschema import Draft202012Validator
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from psycopg import DataError
from sqlalchemy import Engine
from world import World

from sync_orchestrator.api.intake import group_commit
from sync_orchestrator.api.intake.group_commit import GroupCommit
from sync_orchestrator.api.intake.throttle import IntakeThrottle
from sync_orchestrator.api.problems import Refused
from sync_orchestrator.config import Config
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ledger.conservation import count_conservation
from sync_orchestrator.core.ledger.recording import (
    ChangeEvent,
    PreparedEvent,
    Recorded,
    record_each,
    record_on,
)
from sync_orchestrator.core.systems.heartbeats import record_heartbeat
from sync_orchestrator.core.systems.worker_presence import TaskReport, record_worker


@pytest.fixture
def config() -> Config:
    own = {
        "key": "body.k",
        "action": "body.op",
        "actions": {"u": "updated", "d": "deleted"},
        "version": "body.v",
        "data": "body.row",
        "id": 'headers."x-id"',
        "when": "body.kind == 'item'",
    }
    return two_part_config(shop={"events": own})


@pytest.fixture
async def client(engine: Engine, config: Config) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(service(engine, config), key_for(engine)) as client:
        yield client


def events_of(engine: Engine) -> list[dict[str, Any]]:
    with engine.begin() as connection:
        return [dict(row._mapping) for row in run(connection, "SELECT * FROM sync.events ORDER BY seq")]


# Binary mode --------------------------------------------------------------------------------------------------------

HEADERS = {
    "ce-specversion": "1.0",
    "ce-id": "e1",
    "ce-source": "shop",
    "ce-type": "item.updated",
    "ce-subject": "k1",
    "ce-version": "7",
}


async def test_binary_mode(client: httpx.AsyncClient, engine: Engine) -> None:
    answer = await client.post("/v1/events", headers={**HEADERS, "ce-subject": "k%E9%94%AE%201"}, json={"store": "A"})
    assert (answer.status_code, answer.json()) == (202, {"accepted": 1, "duplicates": 0})
    [found] = events_of(engine)
    assert (found["key"], found["version"], found["group_key"], found["data"]) == ("k键 1", 7, "A", {"store": "A"})


async def test_binary_and_structured_are_the_same_event(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/events", headers=HEADERS, json=event()["data"])).json()["accepted"] == 1
    assert (await send(client, event(version="7"))).json() == {"accepted": 0, "duplicates": 1}


async def test_binary_mode_without_body_is_thin(client: httpx.AsyncClient, engine: Engine) -> None:
    assert (await client.post("/v1/events", headers=HEADERS)).status_code == 202
    assert events_of(engine)[0]["thin"] is True


BAD_BINARY = [
    ("data as a header", {"ce-data": "{}"}, b"", 400),
    ("a body that is no JSON", {"content-type": "text/plain"}, b"x", 415),
    ("another encoding", {"content-type": "application/json; charset=latin-1"}, b"{}", 415),
    ("a body that is a list", {"content-type": "application/json"}, b"[]", 422),
    ("cut off", {"content-type": "application/json"}, b"{", 400),
    ("not UTF-8 when decoded", {"ce-subject": "%ff%00"}, b"", 422),
    ("another version of the format", {"ce-specversion": "0.3"}, b"", 422),
]


@pytest.mark.parametrize(
    ("headers", "body", "status"), [row[1:] for row in BAD_BINARY], ids=[row[0] for row in BAD_BINARY]
)
async def test_binary_mode_refused(
    client: httpx.AsyncClient, engine: Engine, headers: dict[str, str], body: bytes, status: int
) -> None:
    answer = await client.post("/v1/events", headers={**HEADERS, **headers}, content=body)
    assert (answer.status_code, events_of(engine)) == (status, [])


# A part of a batch --------------------------------------------------------------------------------------------------


async def test_partial_takes_the_good_and_lists_the_others(client: httpx.AsyncClient, engine: Engine) -> None:
    batch = [event(), event(id="e2", subject=DROP), 7, event(id="e3"), event(id="e1")]
    answer = await client.post("/v1/events?partial=true", json=batch)
    assert (answer.status_code, answer.json()["accepted"], answer.json()["duplicates"]) == (202, 2, 1)
    assert [(each["index"], each["field"]) for each in answer.json()["refused"]] == [(1, "subject"), (2, None)]
    assert [found["event_id"] for found in events_of(engine)] == ["e1", "e3"]


async def test_partial_passes_over_what_is_too_large(engine: Engine) -> None:
    config = two_part_config(limits={"event_bytes": 400})
    async with client_of(service(engine, config), key_for(engine)) as client:
        batch = [event(data={"x": "x" * 400}), event(id="e2")]
        answer = await client.post("/v1/events?partial=true", json=batch)
    assert (answer.json()["accepted"], [each["index"] for each in answer.json()["refused"]]) == (1, [0])


async def test_partial_of_which_nothing_is_good_is_refused(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/events?partial=true", json=[1, 2])).status_code == 422
    assert (await client.post("/v1/events?partial=perhaps", json=[event()])).status_code == 400


async def test_an_empty_batch_is_taken(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/events?partial=true", json=[])).json() == {
        "accepted": 0,
        "duplicates": 0,
        "refused": [],
    }


# Events in a shape of their own -------------------------------------------------------------------------------------


def own(**changes: Any) -> dict[str, Any]:
    return {"kind": "item", "op": "u", "k": "k1", "v": 7, "row": {"store": "A"}, **changes}


async def test_own_shape(client: httpx.AsyncClient, engine: Engine) -> None:
    answer = await client.post("/v1/sources/shop/events", headers={"X-Id": "m1"}, json=own())
    assert (answer.status_code, answer.json()) == (202, {"accepted": 1, "duplicates": 0})
    [found] = events_of(engine)
    assert [found[name] for name in ("event_id", "key", "action", "version", "group_key")] == [
        "m1",
        "k1",
        "update",
        7,
        "A",
    ]


async def test_own_events_that_are_not_wanted_are_passed_over(client: httpx.AsyncClient, engine: Engine) -> None:
    answer = await client.post("/v1/sources/shop/events", headers={"X-Id": "m1"}, json=[own(), own(kind="other")])
    assert (answer.status_code, answer.json()) == (202, {"accepted": 1, "duplicates": 0, "passed_over": 1})


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/sources/shop/events", own(op="x"), 422),
        ("/v1/sources/stock/events", own(), 404),
        ("/v1/sources/crm/events", own(), 404),
    ],
)
async def test_own_events_refused(client: httpx.AsyncClient, path: str, body: Any, status: int) -> None:
    assert (await client.post(path, headers={"X-Id": "m1"}, json=body)).status_code == status


async def test_own_events_need_the_key_of_their_source(engine: Engine, config: Config) -> None:
    async with client_of(service(engine, config), key_for(engine, "events:stock")) as client:
        answer = await client.post("/v1/sources/shop/events", headers={"X-Id": "m1"}, json=own())
    assert (answer.status_code, events_of(engine)) == (403, [])


# Group commit -------------------------------------------------------------------------------------------------------


def changes(*ids: str) -> list[ChangeEvent]:
    return [ChangeEvent("shop", ident, "item", ident, "update", 7) for ident in ids]


async def test_requests_that_wait_together_share_a_commit(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    held, begun = asyncio.Event(), asyncio.Event()

    async def counted(connection: Any, asked: Sequence[Sequence[PreparedEvent]]) -> list[Recorded]:
        batches.append(len(asked))
        begun.set()
        await held.wait()
        return await record_on(connection, asked)

    monkeypatch.setattr(group_commit, "record_on", counted)
    monkeypatch.setattr(group_commit, "_ENOUGH", 1000)
    async with aclosing(GroupCommit(engine)) as commit:
        tasks = [asyncio.create_task(commit.record_events(changes("e0")))]
        await begun.wait()
        tasks += [asyncio.create_task(commit.record_events(changes(f"e{n % 40}"))) for n in range(1, 50)]
        await asyncio.sleep(0)
        held.set()
        found = await asyncio.gather(*tasks)
    assert batches == [1, 49]
    assert (sum(each.accepted for each in found), sum(each.duplicates for each in found)) == (40, 10)
    assert all(each.accepted + each.duplicates == 1 for each in found)
    with engine.begin() as connection:
        assert count_conservation(connection).duplicates == 10


def test_each_batch_hears_of_its_own(engine: Engine) -> None:
    found = record_each(engine, [changes("a", "b"), [], changes("b", "c", "c"), changes("a")])
    assert found == [Recorded(2, 0), Recorded(0, 0), Recorded(1, 2), Recorded(0, 1)]


async def test_one_that_cannot_be_stored_spoils_no_other(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = [ChangeEvent("shop", "bad", "item", "a\x00b", "update", 7)]
    batches: list[int] = []

    async def counted(connection: Any, asked: Sequence[Sequence[PreparedEvent]]) -> list[Recorded]:
        batches.append(len(asked))
        return await record_on(connection, asked)

    monkeypatch.setattr(group_commit, "record_on", counted)
    async with aclosing(GroupCommit(engine)) as commit:
        found = await asyncio.gather(
            *(commit.record_events(each) for each in (changes("1"), changes("2"), changes("3"), bad, changes("4"))),
            return_exceptions=True,
        )
    assert isinstance(found[3], DataError)
    assert [each for each in found if each == Recorded(1, 0)] == [Recorded(1, 0)] * 4
    assert batches == [5, 1, 1, 1, 1, 1]


async def test_a_database_that_stops_answering_keeps_nobody_waiting_for_ever(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those of the commit under way nor those behind it; it goes on with what comes later."""
    silent = [True]

    async def mute(connection: Any, asked: Sequence[Sequence[PreparedEvent]]) -> list[Recorded]:
        if silent[0]:
            await asyncio.Event().wait()
        return await record_on(connection, asked)

    monkeypatch.setattr(group_commit, "record_on", mute)
    async with aclosing(GroupCommit(engine, most_seconds=0.2)) as commit:
        found = await asyncio.gather(*(commit.record_events(changes(ident)) for ident in "abc"), return_exceptions=True)
        silent[0] = False
        assert await commit.record_events(changes("d")) == Recorded(1, 0)
    assert [type(each) for each in found] == [TimeoutError] * 3


async def test_a_connection_that_was_lost_is_replaced(engine: Engine) -> None:
    async with aclosing(GroupCommit(engine)) as commit:
        await commit.record_events(changes("a"))
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert await commit.record_events(changes("b")) == Recorded(1, 0)


async def test_a_request_that_went_away_keeps_no_other_waiting(engine: Engine) -> None:
    async with aclosing(GroupCommit(engine)) as commit:
        gone, stays = (asyncio.create_task(commit.record_events(changes(ident))) for ident in "ab")
        await asyncio.sleep(0)
        gone.cancel()
        assert await stays == Recorded(1, 0)


# Limits per source --------------------------------------------------------------------------------------------------


def test_throttle_gives_a_seconds_worth_and_then_the_rate() -> None:
    now = [0.0]
    throttle = IntakeThrottle({"shop": 10, "stock": None}, lambda: now[0])
    throttle.charge_events(["shop"] * 10)
    throttle.charge_events(["stock"] * 1000)
    with pytest.raises(Refused) as caught:
        throttle.charge_events(["stock", "shop"])
    assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "1"})
    now[0] += 0.1
    throttle.charge_events(["shop"])
    with pytest.raises(Refused):
        throttle.charge_events(["shop"])


def test_throttle_takes_a_large_batch_when_nothing_is_owed() -> None:
    now = [0.0]
    throttle = IntakeThrottle({"shop": 2}, lambda: now[0])
    throttle.charge_events(["shop"] * 20)
    now[0] = 9
    with pytest.raises(Refused) as caught:
        throttle.charge_events(["shop"] * 20)
    assert caught.value.headers == {"Retry-After": "1"}
    now[0] = 10
    throttle.charge_events(["shop"] * 20)


async def test_a_source_that_sends_too_much_is_told_when(engine: Engine) -> None:
    config = two_part_config(shop={"events_per_second": 0.1})
    async with client_of(service(engine, config), key_for(engine)) as client:
        assert (await send(client, event())).status_code == 202
        answer = await send(client, event(id="e2"))
        assert (answer.status_code, int(answer.headers["retry-after"]) in range(1, 11)) == (429, True)
        assert (await send(client, event(id="e3", source="stock"))).status_code == 202
    assert [found["event_id"] for found in events_of(engine)] == ["e1", "e3"]


# What became of it --------------------------------------------------------------------------------------------------


def asked(world: World, scope: str, *paths: str) -> list[httpx.Response]:
    """What the service answers to who may do this much."""

    async def answers() -> list[httpx.Response]:
        async with client_of(service(world.engine, world.config), key_for(world.engine, scope)) as client:
            return [await client.get(path) for path in paths]

    return asyncio.run(answers())


def test_history_of_a_record(world: World) -> None:
    world.run_full_sync()
    world.put_record("k1")
    world.run_drain()
    record, first = asked(world, "events:shop", "/v1/records/item/k1", "/v1/events/e1")
    answer = record.json()
    [event] = first.json()["events"]
    assert (event["state"], event["revision"]) == ("done", 1)
    assert answer["record"]["out_of_sync"] is False
    assert answer["record"]["applied_revision"] == answer["record"]["revision"]
    assert {part["part"] for part in answer["parts"]} == {"shop", "stock"}
    whats = [(line["what"], line.get("id"), line.get("state") or line.get("outcome")) for line in answer["history"]]
    assert ("received", "e1", None) in whats
    assert ("finished", "e1", "done") in whats
    assert ("push", None, "acknowledged") in whats
    assert whats.index(("received", "e1", None)) < whats.index(("push", None, "acknowledged"))
    assert [line["at"] for line in answer["history"]] == sorted(line["at"] for line in answer["history"])


def test_what_a_key_does_not_cover_is_not_there(world: World) -> None:
    world.put_record("k1")
    for scope, path in (
        ("events:shop", "/v1/events/e2"),
        ("events:shop", "/v1/events/e1?source=stock"),
        ("events:shop", "/v1/records/item/k2"),
        ("events:shop", "/v1/records/order/k1"),
        ("events:shop", "/v1/records/item/%00"),
        ("events:shop", "/v1/events/%00"),
        ("metrics", "/v1/records/item/k1"),
        ("metrics", "/v1/events/e1"),
    ):
        assert [answer.status_code for answer in asked(world, scope, path)] == [404], path


# Figures ------------------------------------------------------------------------------------------------------------


def test_figures(world: World) -> None:
    world.run_full_sync()
    world.put_record("k1")
    world.advance_clock(7)
    world.run_drain()
    world.put_record("k2")
    [answer] = asked(world, "metrics", "/metrics")
    assert [each.status_code for each in asked(world, "events:shop", "/metrics")] == [403]
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }

    def of(name: str, **labels: str) -> float:
        return float(found[(name, *sorted(labels.items()))])

    assert of("sync_events_total", entity="item", source="shop", outcome="received") == 2
    assert of("sync_events_total", entity="item", source="stock", outcome="done") == 1
    assert of("sync_events_open", entity="item", source="shop", state="pending") == 1
    assert of("sync_pushes_total", entity="item", outcome="acknowledged") == 1
    assert of("sync_event_seconds_bucket", entity="item", le="5.0") == 0
    assert of("sync_event_seconds_bucket", entity="item", le="10.0") == 2
    assert of("sync_event_seconds_bucket", entity="item", le="+Inf") == 2
    assert of("sync_event_seconds_count", entity="item") == 2
    assert 14 <= of("sync_event_seconds_sum", entity="item") < 20
    assert of("sync_breaker_open", system="erp") == 0
    assert of("sync_groups", entity="item", verdict="not_validated") == 1
    assert of("sync_oldest_due_seconds") >= 0


async def test_ready_tells_of_the_sensor(client: httpx.AsyncClient, engine: Engine) -> None:
    record_heartbeat(engine, "sensor")
    assert (await client.get("/readyz")).json()["sensor"] == "ok"


async def test_ready_tells_of_the_worker(client: httpx.AsyncClient, engine: Engine) -> None:
    with engine.begin() as connection:
        record_worker(connection, "w1", "1 on here", [TaskReport("alerts", 2.5)])
    assert (await client.get("/readyz")).json()["worker"] == "ok"


async def test_ready_tells_that_there_is_no_worker(client: httpx.AsyncClient, engine: Engine) -> None:
    found = (await client.get("/readyz")).json()
    assert (found["status"], found["worker"]) == ("ready", "silent")


async def test_not_ready_on_a_database_of_another_shape(client: httpx.AsyncClient, engine: Engine) -> None:
    with engine.begin() as connection:
        run(connection, "UPDATE sync.alembic_version SET version_num = '0001'")
    answer = await client.get("/readyz")
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)


# What it says of itself ---------------------------------------------------------------------------------------------


async def test_examples_of_the_description_are_what_it_says(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    for name, example in document["components"]["examples"].items():
        Draft202012Validator({**schemas["CloudEvent"], "components": document["components"]}).validate(example["value"])
        assert set(example["value"]) <= set(schemas["CloudEvent"]["properties"]), name
    asyncapi = (await client.get("/asyncapi.json")).json()
    assert asyncapi["components"]["messages"]["change"]["payload"] == schemas["CloudEvent"]
    assert yaml.safe_dump(document)


async def test_every_path_is_described(client: httpx.AsyncClient, engine: Engine, config: Config) -> None:
    document = (await client.get("/openapi.json")).json()
    routes = {route.path.replace(":path}", "}") for route in service(engine, config).routes}  # type: ignore[attr-defined]
    assert routes - set(document["paths"]) == {"/openapi.json", "/asyncapi.json"}
    assert set(document["paths"]) <= routes


async def test_answers_are_as_described(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert (await send(client, [event()], BATCH)).status_code == 202

    def validator(name: str) -> Draft202012Validator:
        return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": document["components"]})

    [found] = (await client.get("/v1/events/e1")).json()["events"]
    validator("Event").validate(found)
    validator("Recorded").validate((await client.post("/v1/events?partial=true", json=[event(), 1])).json())
    for answer in (await send(client, [1]), await client.get("/v1/events/none"), await client.get("/nothing")):
        validator("Problem").validate(answer.json())
