"""Who may call the API service: keys with scopes, and signed requests."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from api_client import BATCH, ONE, client_of, event, key_for, send, service
from fakes import two_part_config
from signed_requests import SECRETS, signature
from sqlalchemy import Engine

from sync_orchestrator.api import auth
from sync_orchestrator.api.database import ApiDatabase
from sync_orchestrator.api.problems import Refused
from sync_orchestrator.config import Config
from sync_orchestrator.config.types import webhook_key
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ledger.conservation import count_conservation
from sync_orchestrator.core.service.api_keys import Caller, find_caller_by_key, list_keys, make_key, revoke_key
from sync_orchestrator.errors import NotFound, UsageError


def received(engine: Engine) -> int:
    with engine.begin() as connection:
        return count_conservation(connection).received


# Keys ---------------------------------------------------------------------------------------------------------------


def test_a_key_is_known_by_its_hash_alone(engine: Engine) -> None:
    with engine.begin() as connection:
        key = make_key(connection, "the shop", ["events:shop"], ["shop"])
        assert find_caller_by_key(connection, key) == Caller("the shop", frozenset({"events:shop"}))
        for wrong in (key[:-1], key + "x", key.swapcase(), "", "sync_", key.replace(key[5:17], "0" * 12)):
            assert find_caller_by_key(connection, wrong) is None
        stored = str([tuple(row) for row in run(connection, "SELECT * FROM sync.api_keys")])
    assert key not in stored
    assert key.rpartition("_")[2] not in stored


def test_revoked_and_expired_keys_are_good_for_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        first, second, third = (make_key(connection, "x", ["admin"], [], lifetime) for lifetime in (None, None, 3600))
        revoke_key(connection, first)
        revoke_key(connection, second.split("_")[1])
        assert [find_caller_by_key(connection, key) for key in (first, second)] == [None, None]
        assert find_caller_by_key(connection, third) is not None
        connection.exec_driver_sql("SET sync.clock_offset = '3601 s'")
        assert find_caller_by_key(connection, third) is None
        connection.exec_driver_sql("RESET sync.clock_offset")
        ended = {row.id for row in list_keys(connection) if row.revoked_at is not None}
        assert ended == {key.split("_")[1] for key in (first, second)}
        with pytest.raises(NotFound, match="keys list"):
            revoke_key(connection, "0" * 12)


@pytest.mark.parametrize(
    ("name", "scopes", "complaint"),
    [
        ("x", [], "no scope none"),
        ("x", ["events:crm"], "no scope events:crm: there is admin, events:\\*, events:shop"),
        ("x", ["events"], "no scope events"),
        (" ", ["admin"], "a key needs a name"),
    ],
)
def test_a_key_of_nothing_is_not_made(engine: Engine, name: str, scopes: list[str], complaint: str) -> None:
    with engine.begin() as connection, pytest.raises((NotFound, UsageError), match=complaint):
        make_key(connection, name, scopes, ["shop"])


SCOPES = [
    (["events:shop"], "events:shop", True),
    (["events:shop"], "events:stock", False),
    (["events:*"], "events:stock", True),
    (["events:*"], "proxy", False),
    (["events:*"], "metrics", False),
    (["admin"], "events:stock", True),
    (["admin"], "proxy", True),
    (["proxy"], "events:shop", False),
    (["proxy"], "proxy", True),
    (["metrics"], "admin", False),
]


@pytest.mark.parametrize(("scopes", "asked", "may"), SCOPES)
def test_scopes(scopes: list[str], asked: str, may: bool) -> None:
    assert Caller("x", frozenset(scopes)).has_scope(asked) is may


# Keys in requests ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def anybody(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(service(engine, two_part_config()), None) as client:
        yield client


SHOWN: list[tuple[str, Callable[[str], dict[str, Any]], int]] = [
    ("as bearer", lambda key: {"Authorization": f"Bearer {key}"}, 202),
    ("as bearer in small letters", lambda key: {"authorization": f"bearer {key}"}, 202),
    ("in its own header", lambda key: {"X-API-Key": key}, 202),
    ("beside a token for legacy", lambda key: {"X-API-Key": key, "Authorization": "Bearer eyJhbGciOi"}, 202),
    ("twice, one good", lambda key: {"X-API-Key": "sync_x", "Authorization": f"Bearer {key}"}, 202),
    ("twice, none good", lambda key: {"X-API-Key": "sync_x", "Authorization": "Bearer sync_x"}, 401),
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


async def test_every_path_but_health_needs_a_key(anybody: httpx.AsyncClient, engine: Engine) -> None:
    key = {"X-API-Key": key_for(engine, "metrics")}
    paths = (await anybody.get("/openapi.json", headers=key)).json()["paths"]
    for path in ("/openapi.json", "/asyncapi.json"):
        assert [(await anybody.get(path, headers=each)).status_code for each in (key, {})] == [200, 401], path
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
        revoke_key(connection, key)
    now[0] += auth._REMEMBERED_SECONDS
    assert (await anybody.get("/v1/events/none", headers={"X-API-Key": key})).status_code == 401


class Lookups:
    """Counts looks at the database."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: list[str] = []
        monkeypatch.setattr(auth, "find_caller_by_key", self._find)

    def _find(self, connection: Any, key: str) -> Caller | None:
        self.keys.append(key)
        return find_caller_by_key(connection, key)


def unknown(number: int) -> str:
    return f"sync_{number:012x}_{'x' * 43}"


async def shown(client: httpx.AsyncClient, key: str) -> int:
    return (await client.get("/v1/events/none", headers={"X-API-Key": key})).status_code


async def test_what_cannot_be_a_key_is_not_looked_up_and_not_kept(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookups = Lookups(monkeypatch)
    app = service(engine, two_part_config())
    async with client_of(app, None) as client:
        for junk in ("x" * 200_000, "sync_", unknown(1) + "x", unknown(1)[:-1], "sync_" + "g" * 12 + "_" + "x" * 43):
            assert await shown(client, junk) == 401
    assert lookups.keys == []


async def test_keys_are_kept_by_their_hashes_and_refused_ones_in_a_small_table(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, limit in (("_MAX_REFUSED", 3), ("_UNKNOWN_BURST", 1000)):
        monkeypatch.setattr(auth, name, limit)
    lookups = Lookups(monkeypatch)
    made = auth.Access(ApiDatabase(engine))
    key = key_for(engine)
    assert (await made.caller_by({"x-api-key": key}, "")).name == "a test"
    for number in range(20):
        with pytest.raises(Refused):
            await made.caller_by({"x-api-key": unknown(number)}, "")
    assert (len(made._refused), len(made._good)) == (3, 1)
    assert {len(known) for known in (*made._refused, *made._good)} == {32}
    asked = len(lookups.keys)
    for again in (key, unknown(19)):
        with contextlib.suppress(Refused):
            await made.caller_by({"x-api-key": again}, "")
    assert len(lookups.keys) == asked


async def test_too_many_unknown_keys_of_an_address_are_refused_without_the_database(
    anybody: httpx.AsyncClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    lookups = Lookups(monkeypatch)
    good, new = key_for(engine), key_for(engine)
    assert await shown(anybody, good) == 404
    statuses = [await shown(anybody, unknown(number)) for number in range(300)]
    assert (statuses.count(401), statuses.count(429)) == (auth._UNKNOWN_BURST, 300 - auth._UNKNOWN_BURST)
    assert len(lookups.keys) == 1 + auth._UNKNOWN_BURST
    assert await shown(anybody, unknown(0)) == 401  # a refusal that is remembered
    now[0] += auth._REMEMBERED_SECONDS
    await asyncio.gather(*(shown(anybody, unknown(number)) for number in range(1000, 1100)))
    assert await shown(anybody, good) == 404  # one that was good lately is looked up all the same
    answer = await anybody.get("/v1/events/none", headers={"X-API-Key": new})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    now[0] += 1
    assert await shown(anybody, new) == 404


def test_addresses_of_one_host_are_counted_together() -> None:
    networks = {auth._find_network(address) for address in ("2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:0:1::%eth0")}
    assert networks == {"2001:db8::/64"}
    assert [auth._find_network(each) for each in ("127.0.0.1", "", "no address")] == ["127.0.0.1", "", ""]


async def test_callers_that_come_at_once_share_a_look_at_their_key(
    anybody: httpx.AsyncClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookups = Lookups(monkeypatch)
    key = key_for(engine)
    statuses = await asyncio.gather(*(shown(anybody, key) for _ in range(300)))
    assert (set(statuses), len(lookups.keys)) == ({404}, 1)


# Signatures ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def signing() -> Config:
    return two_part_config(shop={"webhook_secrets": SECRETS[:2]})


@pytest.fixture
async def signed(engine: Engine, signing: Config) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(service(engine, signing), None) as client:
        yield client


BODY = json.dumps(event()).encode()

GOOD: list[tuple[str, Callable[[], dict[str, str]]]] = [
    ("by the new secret", lambda: signature(BODY)),
    ("by the old one", lambda: signature(BODY, SECRETS[1])),
    (
        "several, one of them good",
        lambda: {
            **signature(BODY),
            "webhook-signature": " ".join(
                signature(BODY, secret)["webhook-signature"] for secret in (SECRETS[2], SECRETS[0])
            ),
        },
    ),
    (
        "one of a version to come",
        lambda: {**signature(BODY), "webhook-signature": f"v2,xyz {signature(BODY)['webhook-signature']}"},
    ),
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
    (
        "time in another spelling",
        lambda: {**signature(BODY), "webhook-timestamp": "0" + signature(BODY)["webhook-timestamp"]},
    ),
    (
        "time with a fraction",
        lambda: {**signature(BODY), "webhook-timestamp": signature(BODY)["webhook-timestamp"] + ".5"},
    ),
    ("an id with a blank", lambda: signature(BODY, ident="msg 1")),
    ("an endless id", lambda: signature(BODY, ident="m" * 200)),
    (
        "very many",
        lambda: {
            **signature(BODY),
            "webhook-signature": " ".join(
                [signature(BODY, SECRETS[2])["webhook-signature"]] * 50 + [signature(BODY)["webhook-signature"]]
            ),
        },
    ),
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


async def test_a_packed_body_is_signed_as_it_was_sent(signed: httpx.AsyncClient, engine: Engine) -> None:
    packed = gzip.compress(BODY)
    at = str(int(time.time()))
    code = hmac.new(webhook_key(SECRETS[0]), f"msg_1.{at}.".encode() + packed, hashlib.sha256).digest()
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": at,
        "webhook-signature": f"v1,{base64.b64encode(code).decode()}",
        "Content-Encoding": "gzip",
    }
    assert (await send(signed, packed, **headers)).status_code == 202
    assert (await send(signed, BODY, **{**headers, "Content-Encoding": "identity"})).status_code == 401
    assert received(engine) == 1


WELL_FORMED = ("by another secret", "of another body", "of another message")


@pytest.mark.parametrize(("name", "headers"), BAD, ids=[row[0] for row in BAD])
async def test_a_signature_of_no_good_shape_is_refused_before_the_body_is_read(
    engine: Engine, signing: Config, name: str, headers: Callable[[], dict[str, Any]]
) -> None:
    """All but those that only the body can show to be wrong."""
    pulled = []
    app = service(engine, signing)

    async def receive() -> Any:
        pulled.append(1)
        return {"type": "http.request", "body": BODY, "more_body": False}

    sent: list[Any] = []

    async def take(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in headers().items()]
    await app(
        {
            "type": "http",
            "method": "POST",
            "path": "/v1/events",
            "raw_path": b"/v1/events",
            "query_string": b"",
            "headers": [(b"content-type", ONE.encode()), *raw],
            "http_version": "1.1",
            "scheme": "http",
            "server": ("api", 80),
            "root_path": "",
        },
        receive,
        take,
    )
    assert sent[0]["status"] == 401
    assert pulled == [] or name in WELL_FORMED


# What a signature does not cover ------------------------------------------------------------------------------------

OWN = {"key": "body.k", "action": "body.op", "version": "body.v", "data": "body.row"}
OWN_BODY = {"id": "own2", "k": "k1", "op": "updated", "v": 7, "row": {"key": "k1", "store": "A"}}
EVIL = {
    "ce-specversion": "1.0",
    "ce-id": "evil1",
    "ce-source": "shop",
    "ce-type": "item.deleted",
    "ce-subject": "VICTIM",
    "ce-version": "9",
}


def events_of(engine: Engine) -> list[tuple[Any, ...]]:
    with engine.begin() as connection:
        return [
            tuple(row)
            for row in run(connection, "SELECT event_id, key, action, conflicting FROM sync.events ORDER BY seq")
        ]


@pytest.fixture
async def own(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    """A service with two sources that sign: ``shop`` has events of its own shape, ``stock`` has not."""
    config = two_part_config(
        shop={"webhook_secrets": SECRETS[:1], "events": OWN}, stock={"webhook_secrets": SECRETS[1:2]}
    )
    async with client_of(service(engine, config), None) as client:
        yield client


@pytest.mark.parametrize("path", ["/v1/events", "/v1/sources/shop/events"])
@pytest.mark.parametrize("secret", SECRETS[:2])
async def test_a_signed_request_may_not_be_in_binary_mode(
    own: httpx.AsyncClient, engine: Engine, path: str, secret: str
) -> None:
    body = json.dumps(OWN_BODY).encode()
    answer = await own.post(
        path, content=body, headers={"Content-Type": "application/json", **signature(body, secret), **EVIL}
    )
    assert answer.status_code in (400, 401)
    assert events_of(engine) == []


async def test_a_signed_body_is_read_by_the_configuration_and_not_by_the_path(
    own: httpx.AsyncClient, engine: Engine
) -> None:
    cloud = json.dumps({**event(source="shop"), **OWN_BODY}).encode()
    stocks = json.dumps({**event(source="stock"), **OWN_BODY}).encode()
    for path, body, secret, status in (
        ("/v1/events", cloud, SECRETS[0], 401),
        ("/v1/sources/shop/events", stocks, SECRETS[1], 401),
        ("/v1/sources/stock/events", stocks, SECRETS[1], 401),
        ("/v1/events", stocks, SECRETS[1], 202),
        ("/v1/sources/shop/events", cloud, SECRETS[0], 202),
    ):
        answer = await own.post(
            path, content=body, headers={"Content-Type": "application/json", **signature(body, secret)}
        )
        assert answer.status_code == status, path
    assert len(events_of(engine)) == 2


async def test_a_repeated_signed_request_is_a_duplicate_whatever_came_between(
    own: httpx.AsyncClient, engine: Engine
) -> None:
    """An id made of the content would not tell, once another event of the record came."""
    first, second = (json.dumps({**OWN_BODY, "row": {"key": "k1", "n": n}}).encode() for n in (1, 2))

    async def post(body: bytes, ident: str) -> dict[str, Any]:
        answer = await own.post(
            "/v1/sources/shop/events",
            content=body,
            headers={"Content-Type": "application/json", **signature(body, ident=ident)},
        )
        return dict(answer.json())

    assert await post(first, "m1") == {"accepted": 1, "duplicates": 0}
    assert await post(second, "m2") == {"accepted": 1, "duplicates": 0}
    assert await post(first, "m1") == {"accepted": 0, "duplicates": 1}
    batch = json.dumps([OWN_BODY, {**OWN_BODY, "k": "k2"}]).encode()
    assert await post(batch, "m3") == {"accepted": 2, "duplicates": 0}
    assert await post(batch, "m3") == {"accepted": 0, "duplicates": 2}
    assert [row[0] for row in events_of(engine)] == ["m1", "m2", "m3#0", "m3#1"]


async def test_only_the_signed_headers_of_a_signed_request_are_seen(engine: Engine) -> None:
    """And of those sent twice the one that was signed."""
    shape = {**OWN, "id": 'headers."webhook-id"'}
    config = two_part_config(shop={"webhook_secrets": SECRETS[:1], "events": shape})
    body = json.dumps(OWN_BODY).encode()
    async with client_of(service(engine, config), None) as client:
        headers = [("Content-Type", "application/json"), *signature(body).items(), ("webhook-id", "evil")]
        answer = await client.post("/v1/sources/shop/events", content=body, headers=headers)
        assert answer.status_code == 202
    assert events_of(engine) == [("msg_1", "k1", "update", False)]


async def test_a_source_that_signs_may_use_a_key_too(own: httpx.AsyncClient, engine: Engine) -> None:
    key = {"X-API-Key": key_for(engine)}
    answer = await own.post("/v1/events", headers={**EVIL, "ce-type": "item.updated", **key}, json={"store": "A"})
    assert answer.status_code == 202
    assert (await own.post("/v1/sources/shop/events", json=OWN_BODY, headers=key)).status_code == 202
