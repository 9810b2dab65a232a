"""Change events over HTTP: what an event means, what is refused and how, and that a 202 comes after the commit."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from api_client import BATCH, DROP, ONE, client_of, event, key_for, send, service
from fakes import two_part_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine
from starlette.types import Message, Receive, Scope, Send

from sync_orchestrator.api import bodies
from sync_orchestrator.api.intake import group_commit, routes
from sync_orchestrator.config import Config
from sync_orchestrator.core.db.session import open_engine, run
from sync_orchestrator.core.ledger.conservation import count_conservation
from sync_orchestrator.core.ledger.recording import ChangeEvent
from sync_orchestrator.errors import InvalidEvent
from sync_orchestrator.event_formats.cloud_events import change_event
from sync_orchestrator.event_formats.strict_json import parse


@pytest.fixture
def config() -> Config:
    return two_part_config()


@pytest.fixture
async def client(engine: Engine, config: Config) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(service(engine, config), key_for(engine)) as client:
        yield client


def received(engine: Engine) -> int:
    with engine.begin() as connection:
        return count_conservation(connection).received


# What an event means ------------------------------------------------------------------------------------------------

MICROSECONDS = 1_795_435_200_000_000  # 2026-11-23T12:00:00Z

UNDERSTOOD: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("whole part", {}, {"action": "update", "version": 7, "group": "A"}),
    ("a creation", {"type": "item.created"}, {"action": "create"}),
    ("a deletion keeps no data", {"type": "item.deleted"}, {"action": "delete", "data": None}),
    ("a deletion without data", {"type": "item.deleted", "data": DROP}, {"action": "delete", "data": None}),
    ("thin: no data", {"data": DROP}, {"data": None, "group": None}),
    ("thin: data null", {"data": None}, {"data": None}),
    ("thin: partial", {"partial": True}, {"data": None}),
    ("thin: partial as text", {"partial": "true"}, {"data": None}),
    ("not partial", {"partial": False}, {"data": event()["data"]}),
    ("number as text", {"version": "7"}, {"version": 7}),
    ("largest number", {"version": 2**63 - 1}, {"version": 2**63 - 1}),
    ("negative number", {"version": -3}, {"version": -3}),
    ("group as extension", {"data": DROP, "group": "B"}, {"group": "B"}),
    ("group as a number", {"data": DROP, "group": 12}, {"group": "12"}),
    ("the owner's data beats the extension", {"group": "B"}, {"group": "A"}),
    ("owner's data without group", {"data": {"key": "k1"}, "group": "B"}, {"group": "B"}),
    ("another part does not say the group", {"source": "stock"}, {"source": "stock", "group": None}),
    ("slash, dots and blanks in a key", {"subject": "a/b..c d"}, {"key": "a/b..c d"}),
    ("longest key", {"subject": "键" * 400}, {"key": "键" * 400}),
    ("unknown attributes are let be", {"traceparent": "00-1", "dataschema": "x"}, {"key": "k1"}),
    ("slash in a group", {"data": DROP, "group": "a/b"}, {"group": "a/b"}),
]


@pytest.mark.parametrize(("changes", "expected"), [row[1:] for row in UNDERSTOOD], ids=[row[0] for row in UNDERSTOOD])
def test_event_is_understood(config: Config, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    found = change_event(event(**changes), config)
    assert {name: getattr(found, name) for name in expected} == expected


TIMES: list[tuple[str, dict[str, Any]]] = [
    ("UTC", {"version": "2026-11-23T12:00:00Z"}),
    ("another zone", {"version": "2026-11-23T20:00:00+08:00"}),
    ("no zone is UTC", {"version": "2026-11-23T12:00:00"}),
    ("seconds since 1970", {"version": MICROSECONDS // 1_000_000}),
    ("the attribute time stands in", {"version": DROP, "time": "2026-11-23T12:00:00Z"}),
    ("a version beats time", {"version": "2026-11-23T12:00:00Z", "time": "2020-01-01T00:00:00Z"}),
]


@pytest.mark.parametrize("changes", [row[1] for row in TIMES], ids=[row[0] for row in TIMES])
def test_time_becomes_microseconds(changes: dict[str, Any]) -> None:
    part = {"key": "key", "version": {"path": "v"}, "list": {"path": "/"}, "group": "store"}
    config = two_part_config(entity={"parts": {"shop": part, "stock": part}})
    assert change_event(event(**changes), config).version == MICROSECONDS


REFUSED: list[tuple[str, Any, str | None]] = [
    ("no object", [1], None),
    ("text", "event", None),
    ("no specversion", {"specversion": DROP}, "specversion"),
    ("an old specversion", {"specversion": "0.3"}, "specversion"),
    ("no id", {"id": DROP}, "id"),
    ("id is a number", {"id": 1}, "id"),
    ("empty id", {"id": ""}, "id"),
    ("endless id", {"id": "x" * 201}, "id"),
    ("unknown source", {"source": "crm"}, "source"),
    ("source is an object", {"source": {}}, "source"),
    ("no type", {"type": DROP}, "type"),
    ("type without entity", {"type": "updated"}, "type"),
    ("unknown entity", {"type": "order.updated"}, "type"),
    ("unknown action", {"type": "item.touched"}, "type"),
    ("no key", {"subject": DROP}, "subject"),
    ("endless key", {"subject": "x" * 401}, "subject"),
    ("key of many bytes", {"subject": "😀" * 301}, "subject"),
    ("newline in a key", {"subject": "a\nb"}, "subject"),
    ("a key that climbs", {"subject": ".."}, "subject"),
    ("no version", {"version": DROP}, "version"),
    ("version null", {"version": None}, "version"),
    ("version true", {"version": True}, "version"),
    ("version is a fraction", {"version": 1.5}, "version"),
    ("version is a word", {"version": "seven"}, "version"),
    ("version beyond bigint", {"version": 2**63}, "version"),
    ("version far beyond bigint", {"version": 10**399}, "version"),
    ("a time for a number", {"version": DROP, "time": "2026-11-23T12:00:00Z"}, "time"),
    ("version is a list", {"version": []}, "version"),
    ("data is a list", {"data": [1]}, "data"),
    ("data is text", {"data": "{}"}, "data"),
    ("data in base64", {"data": DROP, "data_base64": "e30="}, "data_base64"),
    ("partial is a word", {"partial": "maybe"}, "partial"),
    ("group is an object", {"group": {}}, "group"),
    ("group is true", {"group": True}, "group"),
    ("control characters in a group", {"data": DROP, "group": "a\tb"}, "group"),
    ("group that no partition may be named", {"data": DROP, "group": "a...b"}, "group"),
    ("endless group", {"data": DROP, "group": "g" * 201}, "group"),
    ("bad group in the data", {"data": {"key": "k1", "store": "a...b"}}, "data (store)"),
]


@pytest.mark.parametrize(("changes", "field"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
async def test_event_is_refused(client: httpx.AsyncClient, engine: Engine, changes: Any, field: str | None) -> None:
    document = event(**changes) if isinstance(changes, dict) else changes
    answer = await send(client, [event(id="good"), document], BATCH)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert [(error["index"], error["field"]) for error in answer.json()["errors"]] == [(1, field)]
    assert received(engine) == 0


def test_group_expression_that_fails_on_the_data_is_the_datas_fault() -> None:
    part = {"key": "key", "version": {"path": "v", "kind": "number"}, "list": {"path": "/"}}
    config = two_part_config(entity={"parts": {"shop": {**part, "group": "join('-', [store, region])"}, "stock": part}})
    with pytest.raises(InvalidEvent, match="no business group"):
        change_event(event(), config)


# Bodies -------------------------------------------------------------------------------------------------------------


def with_data(text: str) -> bytes:
    return json.dumps(event(data=DROP)).encode()[:-1] + b', "data": {"x": ' + text.encode() + b"}}"


BAD_BODIES: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("not JSON", b"id=e1"),
    ("two documents", json.dumps(event()).encode() * 2),
    ("cut off", json.dumps(event()).encode()[:-5]),
    ("not UTF-8", json.dumps(event(subject="K")).encode().replace(b'"K"', b'"\xff\xfe"')),
    ("a byte order mark", "\ufeff".encode() + json.dumps(event()).encode()),
    ("NaN", with_data("NaN")),
    ("Infinity", with_data("-Infinity")),
    ("a float beyond range", with_data("1e999")),
    ("an endless whole number", with_data("9" * 5000)),
    ("a repeated name", with_data('{"a": 1, "a": 2}')),
    ("NUL", with_data('"a\\u0000b"')),
    ("NUL in a name", with_data('{"a\\u0000": 1}')),
    ("a lone surrogate", with_data('"\\ud800"')),
    ("depth of 101", with_data("[" * 101 + "]" * 101)),
    ("depth of 200,000", b"[" * 200_000),
    ("deep objects", b'{"a":' * 100_000),
]


@pytest.mark.parametrize("kind", [ONE, BATCH, "application/json"])
@pytest.mark.parametrize("body", [row[1] for row in BAD_BODIES], ids=[row[0] for row in BAD_BODIES])
async def test_body_that_cannot_be_read(client: httpx.AsyncClient, engine: Engine, body: bytes, kind: str) -> None:
    answer = await send(client, body, kind)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert answer.json().keys() == {"type", "title", "status", "detail", "errors"}
    assert received(engine) == 0


async def test_what_postgres_can_hold_is_kept_as_it_came(client: httpx.AsyncClient, engine: Engine) -> None:
    data = {"text": "héllo 键 😀 \\u0000", "big": 10**300, "small": 1e-300, "deep": [[[[{"": None}]]]], "true": True}
    assert (await send(client, event(data=data))).status_code == 202
    with engine.begin() as connection:
        assert run(connection, "SELECT data FROM sync.events")[0].data == data


async def test_single_event_and_batch(client: httpx.AsyncClient, engine: Engine) -> None:
    answer = await send(client, event())
    assert (answer.status_code, answer.json()) == (202, {"accepted": 1, "duplicates": 0})
    answer = await send(client, [event(), event(id="e2"), event(id="e2"), event(id="e3", version=8)], BATCH)
    assert (answer.status_code, answer.json()) == (202, {"accepted": 2, "duplicates": 2})
    assert (await send(client, [], BATCH)).json() == {"accepted": 0, "duplicates": 0}
    assert received(engine) == 3


async def test_same_id_with_other_content_is_kept_and_flagged(client: httpx.AsyncClient, engine: Engine) -> None:
    assert (await send(client, event())).json()["accepted"] == 1
    assert (await send(client, event(version=8))).json() == {"accepted": 1, "duplicates": 0}
    with engine.begin() as connection:
        rows = run(connection, "SELECT version, conflicting FROM sync.events ORDER BY seq")
    assert [tuple(row) for row in rows] == [(7, False), (8, True)]


async def test_plain_json_may_be_either(client: httpx.AsyncClient) -> None:
    assert (await send(client, event(), "application/json; charset=UTF-8")).status_code == 202
    assert (await send(client, [event(id="e2")], "application/json")).status_code == 202


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        (ONE, [event()], 400),
        (BATCH, event(), 400),
        ("text/plain", event(), 415),
        ("", event(), 415),
        ("application/json; charset=latin-1", event(), 415),
    ],
)
async def test_content_type_says_what_the_body_is(client: httpx.AsyncClient, kind: str, body: Any, status: int) -> None:
    assert (await send(client, body, kind)).status_code == status


PACKED = [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress), ("identity", bytes)]


@pytest.mark.parametrize(("coding", "pack"), PACKED, ids=[row[0] for row in PACKED])
async def test_body_may_be_compressed(
    client: httpx.AsyncClient, engine: Engine, coding: str, pack: Callable[[bytes], bytes]
) -> None:
    answer = await send(client, pack(json.dumps(event()).encode()), **{"Content-Encoding": coding})
    assert (answer.status_code, received(engine)) == (202, 1)


WRONGLY_PACKED: list[tuple[str, str, bytes, int]] = [
    ("unknown coding", "br", b"{}", 415),
    ("two codings", "gzip, gzip", gzip.compress(b"{}"), 415),
    ("no gzip", "gzip", b"{}", 400),
    ("cut off", "gzip", gzip.compress(json.dumps(event()).encode())[:-12], 400),
    ("something behind it", "gzip", gzip.compress(json.dumps(event()).encode()) + b"x", 400),
    ("a bomb", "gzip", gzip.compress(b" " * 20_000_000), 413),
]


@pytest.mark.parametrize(
    ("coding", "body", "status"), [row[1:] for row in WRONGLY_PACKED], ids=[row[0] for row in WRONGLY_PACKED]
)
async def test_body_that_cannot_be_unpacked(
    client: httpx.AsyncClient, engine: Engine, coding: str, body: bytes, status: int
) -> None:
    answer = await send(client, body, **{"Content-Encoding": coding})
    assert (answer.status_code, received(engine)) == (status, 0)


async def test_only_so_many_errors_are_told(client: httpx.AsyncClient) -> None:
    answer = await send(client, [1] * 5000, BATCH)
    assert (answer.status_code, len(answer.json()["errors"])) == (422, 100)


async def test_answers_repeat_nothing_of_the_body(client: httpx.AsyncClient) -> None:
    for document in (
        event(source="canary"),
        event(type="canary.updated"),
        event(version="canary"),
        event(data={"canary": 1, "store": "canary..."}),
        event(partial="canary"),
    ):
        answer = await send(client, document)
        assert answer.status_code == 422
        assert "canary" not in answer.text


# Size ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def small(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    app = service(engine, two_part_config(limits={"event_bytes": 400, "request_bytes": 2000}))
    async with client_of(app, key_for(engine)) as client:
        yield client


async def test_one_event_too_large(small: httpx.AsyncClient, engine: Engine) -> None:
    answer = await send(small, [event(), event(id="e2", data={"x": "x" * 400})], BATCH)
    assert (answer.status_code, answer.json()["errors"][0]["index"]) == (413, 1)
    assert received(engine) == 0


async def test_size_is_counted_in_bytes_as_sent(small: httpx.AsyncClient) -> None:
    body = json.dumps(event(data={"x": "键" * 60}), ensure_ascii=False).encode()
    assert len(body) < 400
    assert (await send(small, body)).status_code == 202


async def test_request_too_large(small: httpx.AsyncClient, engine: Engine) -> None:
    assert (await send(small, [event(id=str(n)) for n in range(50)], BATCH)).status_code == 413
    assert received(engine) == 0


@pytest.mark.parametrize("length", [b"-1", b"nine", b"9" * 30, "９".encode()])
async def test_absurd_content_length(engine: Engine, config: Config, length: bytes) -> None:
    sent: list[Message] = []
    await service(engine, config)(_scope(engine, length), _body(b"{}"), _into(sent))
    assert sent[0]["status"] == 413


async def test_endless_body_is_not_buffered(engine: Engine) -> None:
    sent: list[Message] = []
    taken = 0

    async def endless() -> Message:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b" " * 500, "more_body": True}

    app = service(engine, two_part_config(limits={"request_bytes": 2000}))
    await app(_scope(engine, None), endless, _into(sent))
    assert (sent[0]["status"], taken) == (413, 5)


async def test_cut_off_body_records_nothing(engine: Engine, config: Config) -> None:
    sent: list[Message] = []

    async def gone() -> Message:
        return {"type": "http.disconnect"}

    await service(engine, config)(_scope(engine, None), gone, _into(sent))
    assert sent[0]["status"] == 400


async def test_slow_body_is_given_up(engine: Engine, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_SECONDS", 0.01)
    sent: list[Message] = []

    async def never() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    await service(engine, config)(_scope(engine, None), never, _into(sent))
    assert sent[0]["status"] == 408


def _scope(engine: Engine, length: bytes | None) -> Scope:
    key = f"Bearer {key_for(engine)}".encode()
    headers = [(b"content-type", ONE.encode()), (b"authorization", key)]
    headers += [] if length is None else [(b"content-length", length)]
    return {
        "type": "http",
        "method": "POST",
        "path": "/v1/events",
        "raw_path": b"/v1/events",
        "query_string": b"",
        "headers": headers,
        "http_version": "1.1",
        "scheme": "http",
        "server": ("intake", 80),
        "root_path": "",
    }


def _body(content: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": content, "more_body": False}

    return receive


def _into(sent: list[Message]) -> Send:
    async def send_one(message: Message) -> None:
        sent.append(message)

    return send_one


# The database -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def cut_off(config: Config) -> AsyncIterator[httpx.AsyncClient]:
    engine = open_engine("postgresql+psycopg://nobody:secret@127.0.0.1:1/none")
    async with client_of(service(engine, config), f"sync_{'0' * 12}_{'x' * 43}") as client:
        yield client
    engine.dispose()


async def test_database_down_is_503_with_retry_after(
    cut_off: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    for answer in (await send(cut_off, event()), await cut_off.get("/readyz")):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert (await cut_off.get("/healthz")).status_code == 200
    assert "secret" not in caplog.text


async def test_database_that_hangs_is_503(
    client: httpx.AsyncClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event may be recorded all the same; sent again, it is one event."""
    monkeypatch.setattr(routes, "SECONDS", 0.2)
    async with client_of(service(engine, two_part_config()), key_for(engine)) as hasty:
        with engine.begin() as connection:
            connection.exec_driver_sql("LOCK TABLE sync.event_ids")
            assert (await send(hasty, event())).status_code == 503
    again = (await send(client, event())).json()
    assert again["accepted"] + again["duplicates"] == 1
    assert received(engine) == 1


async def test_failure_of_a_commit_is_no_202(
    client: httpx.AsyncClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION sync.no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE disk_full; END $$"
        )
        connection.exec_driver_sql(
            "CREATE CONSTRAINT TRIGGER no AFTER INSERT ON sync.events DEFERRABLE INITIALLY "
            "DEFERRED FOR EACH ROW EXECUTE FUNCTION sync.no()"
        )
    assert (await send(client, event())).status_code == 503
    assert received(engine) == 0


async def test_ready_healthy_and_nothing_else(client: httpx.AsyncClient) -> None:
    ready = {"status": "ready", "database": "ok", "migrations": "ok", "sensor": "silent", "worker": "silent"}
    assert (await client.get("/readyz")).json() == ready
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    for answer, status in ((await client.get("/v1/events"), 405), (await client.get("/nothing"), 404)):
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


async def test_bug_of_ours_is_a_constant_answer(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any) -> Any:
        raise KeyError("canary")

    monkeypatch.setattr(group_commit, "record_on", bug)
    answer = await send(client, event())
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "canary" not in answer.text


# Anything at all ----------------------------------------------------------------------------------------------------

_texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "1.0",
            "shop",
            "stock",
            "item.updated",
            "item.created",
            "item.deleted",
            "A",
            "...",
            "\x00",
            "2026-11-23T12:00:00Z",
        ]
    ),
)
_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), _texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_texts, inner, max_size=4)),
    max_leaves=10,
)
_events = st.fixed_dictionaries(
    {},
    optional={
        name: st.one_of(_values, st.just(value))
        for name, value in {**event(), "time": "2026-11-23T12:00:00Z", "group": "A", "partial": True}.items()
    },
)
_bodies = st.one_of(
    st.binary(max_size=200),
    _values.map(lambda value: json.dumps(value).encode()),
    _events.map(lambda value: json.dumps(value).encode()),
    st.lists(_events, max_size=3).map(lambda value: json.dumps(value).encode()),
)


@settings(
    max_examples=int(os.environ.get("SYNC_TEST_EXAMPLES", "300")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(body=_bodies, kind=st.sampled_from([ONE, BATCH, "application/json"]))
async def test_nothing_sent_is_a_5xx(client: httpx.AsyncClient, engine: Engine, body: bytes, kind: str) -> None:
    before = received(engine)
    answer = await send(client, body, kind)
    assert answer.status_code in (202, 400, 413, 415, 422)
    assert received(engine) - before == (answer.json()["accepted"] if answer.status_code == 202 else 0)


@given(_values)
def test_strict_json_takes_what_it_can_give_back(value: Any) -> None:
    try:
        found = parse(json.dumps(value).encode())
    except InvalidEvent:
        return
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_equal_events_have_equal_hashes(config: Config) -> None:
    """The order of names in the JSON tells nothing."""
    turned = dict(reversed(list(event().items())))
    first, second = change_event(event(), config), change_event(turned, config)
    assert isinstance(first, ChangeEvent)
    assert first.content_hash() == second.content_hash()
