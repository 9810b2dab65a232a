"""Who may call the API service: keys with scopes, and signed requests."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from api_client import BATCH, ONE, client_of, event, key_for, send, service
from fakes import two_part_config
from sqlalchemy import Engine
from standardwebhooks import Webhook

from sync_orchestrator.api import access
from sync_orchestrator.config import Config
from sync_orchestrator.core.access import Caller, find, keys, make_key, revoke
from sync_orchestrator.core.errors import NotFound
from sync_orchestrator.core.ledger import conservation
from sync_orchestrator.core.sql import run

SECRETS = [f"whsec_{base64.b64encode(bytes([n]) * 24).decode()}" for n in range(3)]


def received(engine: Engine) -> int:
    with engine.begin() as connection:
        return conservation(connection).received


# Keys ---------------------------------------------------------------------------------------------------------------

def test_a_key_is_known_by_its_hash_alone(engine: Engine) -> None:
    with engine.begin() as connection:
        key = make_key(connection, "the shop", ["events:shop"], ["shop"])
        assert find(connection, key) == Caller("the shop", frozenset({"events:shop"}))
        for wrong in (key[:-1], key + "x", key.swapcase(), "", "sync_", key.replace(key[5:17], "0" * 12)):
            assert find(connection, wrong) is None
        stored = str([tuple(row) for row in run(connection, "SELECT * FROM sync.api_keys")])
    assert key not in stored
    assert key.rpartition("_")[2] not in stored


def test_revoked_and_expired_keys_are_good_for_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        first, second, third = (make_key(connection, "x", ["admin"], [], lifetime) for lifetime in (None, None, 3600))
        revoke(connection, first)
        revoke(connection, second.split("_")[1])
        assert [find(connection, key) for key in (first, second)] == [None, None]
        assert find(connection, third) is not None
        connection.exec_driver_sql("SET sync.clock_offset = '3601 s'")
        assert find(connection, third) is None
        connection.exec_driver_sql("RESET sync.clock_offset")
        ended = {row.id for row in keys(connection) if row.revoked_at is not None}
        assert ended == {key.split("_")[1] for key in (first, second)}
        with pytest.raises(NotFound, match="keys list"):
            revoke(connection, "0" * 12)


@pytest.mark.parametrize(("name", "scopes", "complaint"), [
    ("x", [], "no scope none"), ("x", ["events:crm"], "no scope events:crm: there is admin, events:\\*, events:shop"),
    ("x", ["events"], "no scope events"), (" ", ["admin"], "a key needs a name"),
])
def test_a_key_of_nothing_is_not_made(engine: Engine, name: str, scopes: list[str], complaint: str) -> None:
    with engine.begin() as connection, pytest.raises(NotFound, match=complaint):
        make_key(connection, name, scopes, ["shop"])


SCOPES = [
    (["events:shop"], "events:shop", True), (["events:shop"], "events:stock", False),
    (["events:*"], "events:stock", True), (["events:*"], "proxy", False), (["events:*"], "metrics", False),
    (["admin"], "events:stock", True), (["admin"], "proxy", True),
    (["proxy"], "events:shop", False), (["proxy"], "proxy", True), (["metrics"], "admin", False),
]


@pytest.mark.parametrize(("scopes", "asked", "may"), SCOPES)
def test_scopes(scopes: list[str], asked: str, may: bool) -> None:
    assert Caller("x", frozenset(scopes)).may(asked) is may


# Keys in requests ---------------------------------------------------------------------------------------------------

@pytest.fixture
async def anybody(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(service(engine, two_part_config()), None) as client:
        yield client


SHOWN: list[tuple[str, Callable[[str], dict[str, Any]], int]] = [
    ("as bearer", lambda key: {"Authorization": f"Bearer {key}"}, 202),
    ("as bearer in small letters", lambda key: {"authorization": f"bearer {key}"}, 202),
    ("in its own header", lambda key: {"X-API-Key": key}, 202),
    ("not at all", lambda key: {}, 401),
    ("cut off", lambda key: {"Authorization": f"Bearer {key[:-1]}"}, 401),
    ("empty", lambda key: {"Authorization": "Bearer "}, 401),
    ("as basic", lambda key: {"Authorization": f"Basic {base64.b64encode(key.encode()).decode()}"}, 401),
    ("not ASCII", lambda key: {"X-API-Key": "\u00e9".encode() * 30}, 401),
]


@pytest.mark.parametrize(("headers", "status"), [row[1:] for row in SHOWN], ids=[row[0] for row in SHOWN])
async def test_how_a_key_is_shown(
    anybody: httpx.AsyncClient, engine: Engine, headers: Callable[[str], dict[str, str]], status: int
) -> None:
    answer = await send(anybody, event(), **headers(key_for(engine)))
    assert (answer.status_code, received(engine)) == (status, int(status == 202))
    assert ("www-authenticate" in answer.headers) is (status == 401)


async def test_a_batch_with_one_event_of_another_source_is_refused_whole(
    anybody: httpx.AsyncClient, engine: Engine
) -> None:
    key = {"X-API-Key": key_for(engine, "events:shop")}
    assert (await send(anybody, event(), **key)).status_code == 202
    both = [event(id="e2"), event(id="e3", source="stock")]
    answer = await send(anybody, both, BATCH, **key)
    assert (answer.status_code, received(engine)) == (403, 1)
    answer = await anybody.post("/v1/events?partial=true", json=both, headers=key)
    assert (answer.status_code, received(engine)) == (403, 1)


async def test_every_path_but_health_needs_a_key(anybody: httpx.AsyncClient) -> None:
    paths = (await anybody.get("/openapi.json")).json()["paths"]
    for path, methods in paths.items():
        for method, operation in methods.items():
            filled = path.format(source="shop", id="e", entity="item", key="k", route="r")
            answer = await anybody.request(method, filled)
            told = operation.get("security") == []
            assert (answer.status_code in (200, 503)) is told, path
            assert answer.status_code in ((200,) if told else (401, 404)), path


async def test_revoked_key_is_forgotten_by_a_running_service(
    anybody: httpx.AsyncClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    key = key_for(engine)
    assert (await anybody.get("/v1/events/none", headers={"X-API-Key": key})).status_code == 404
    with engine.begin() as connection:
        revoke(connection, key)
    now[0] += access._REMEMBERED_SECONDS
    assert (await anybody.get("/v1/events/none", headers={"X-API-Key": key})).status_code == 401


# Signatures ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def signing() -> Config:
    return two_part_config(shop={"webhook_secrets": SECRETS[:2]})


@pytest.fixture
async def signed(engine: Engine, signing: Config) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(service(engine, signing), None) as client:
        yield client


def signature(body: bytes, secret: str = SECRETS[0], seconds: float = 0, ident: str = "msg_1") -> dict[str, str]:
    at = time.time() + seconds
    made = Webhook(secret).sign(ident, datetime.fromtimestamp(int(at), tz=UTC), body.decode())
    return {"webhook-id": ident, "webhook-timestamp": str(int(at)), "webhook-signature": made}


BODY = json.dumps(event()).encode()

GOOD: list[tuple[str, Callable[[], dict[str, str]]]] = [
    ("by the new secret", lambda: signature(BODY)),
    ("by the old one", lambda: signature(BODY, SECRETS[1])),
    ("several, one of them good", lambda: {
        **signature(BODY), "webhook-signature": " ".join(
            signature(BODY, secret)["webhook-signature"] for secret in (SECRETS[2], SECRETS[0]))}),
    ("one of a version to come", lambda: {
        **signature(BODY), "webhook-signature": f"v2,xyz {signature(BODY)['webhook-signature']}"}),
]


@pytest.mark.parametrize("headers", [row[1] for row in GOOD], ids=[row[0] for row in GOOD])
async def test_signed_request_needs_no_key(
    signed: httpx.AsyncClient, engine: Engine, headers: Callable[[], dict[str, str]]
) -> None:
    answer = await send(signed, BODY, **headers())
    assert (answer.status_code, received(engine)) == (202, 1)
    again = await send(signed, BODY, **headers())
    assert (again.json(), received(engine)) == ({"accepted": 0, "duplicates": 1}, 1)


BAD: list[tuple[str, Callable[[], dict[str, Any]]]] = [
    ("by another secret", lambda: signature(BODY, SECRETS[2])),
    ("of another body", lambda: signature(BODY + b" ")),
    ("of another message", lambda: {**signature(BODY), "webhook-id": "msg_2"}),
    ("too old", lambda: signature(BODY, seconds=-301)),
    ("too new", lambda: signature(BODY, seconds=301)),
    ("no id", lambda: {**signature(BODY), "webhook-id": ""}),
    ("no time", lambda: {**signature(BODY), "webhook-timestamp": ""}),
    ("time is a word", lambda: {**signature(BODY), "webhook-timestamp": "now"}),
    ("time is no number", lambda: {**signature(BODY), "webhook-timestamp": "NaN"}),
    ("time is endless", lambda: {**signature(BODY), "webhook-timestamp": "9" * 400}),
    ("no comma", lambda: {**signature(BODY), "webhook-signature": "v1"}),
    ("two commas", lambda: {**signature(BODY), "webhook-signature": "v1,a,b"}),
    ("not base64", lambda: {**signature(BODY), "webhook-signature": "v1,*"}),
    ("not ASCII", lambda: {**signature(BODY), "webhook-signature": "v1,\u00e9".encode()}),
    ("empty", lambda: {**signature(BODY), "webhook-signature": ""}),
]


@pytest.mark.parametrize("headers", [row[1] for row in BAD], ids=[row[0] for row in BAD])
async def test_signature_that_does_not_fit(
    signed: httpx.AsyncClient, engine: Engine, headers: Callable[[], dict[str, Any]]
) -> None:
    answer = await send(signed, BODY, **headers())
    assert (answer.status_code, received(engine)) == (401, 0)


@pytest.mark.parametrize("body", [b"\xff\xfe", b"[" * 200_000, b"9" * 5000, b""])
async def test_signed_garbage_is_refused_and_no_crash(signed: httpx.AsyncClient, body: bytes) -> None:
    headers = signature(BODY)
    if body.isascii():
        headers = signature(body)
    assert (await send(signed, body, **headers)).status_code in (400, 401)


async def test_a_source_signs_for_itself_alone(signed: httpx.AsyncClient, engine: Engine) -> None:
    body = json.dumps(event(source="stock")).encode()
    assert (await send(signed, body, **signature(body))).status_code == 403
    assert received(engine) == 0


async def test_without_secrets_a_signature_is_no_key(anybody: httpx.AsyncClient) -> None:
    assert (await send(anybody, BODY, **signature(BODY))).status_code == 401


async def test_compressed_body_is_signed_as_it_was_sent(signed: httpx.AsyncClient, engine: Engine) -> None:
    answer = await send(signed, BODY, ONE, **signature(BODY), **{"Content-Encoding": "identity"})
    assert (answer.status_code, received(engine)) == (202, 1)
