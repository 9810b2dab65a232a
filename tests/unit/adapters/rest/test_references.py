"""Ids that are looked up before a call: how often they are asked for, and what happens where there is none yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from fakes import two_part_config
from http_server import Server, failure_of
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.rest import references as module
from sync_orchestrator.adapters.rest.references import References
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config.calls import OutcomeRule, ReferenceSettings
from sync_orchestrator.errors import Failure, Refusal

STORE: dict[str, Any] = {"path": "/stores", "params": {"code": "{{ group }}"}, "record": "items[].id", "keep": 60}
A = {"key": "k1", "group": "A", "payload": {"kind": "shoe"}}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest_asyncio.fixture
async def http(server: Server) -> AsyncIterator[HttpClient]:
    client = HttpClient(HttpSettings(base_url=server.url, timeout=5))
    yield client
    await client.close()


def references(
    http: HttpClient, clock: Clock | None = None, outcomes: list[OutcomeRule] | None = None, **settings: dict[str, Any]
) -> References:
    return References(
        http,
        {name: ReferenceSettings.model_validate(call) for name, call in settings.items()},
        outcomes or [],
        clock or Clock(),
    )


def stores(server: Server) -> dict[str, list[Any]]:
    """A server that knows stores by code: their ids, which a test may change."""
    known: dict[str, list[Any]] = {}

    async def handler(request: Request) -> Response:
        return JSONResponse({"items": [{"id": id} for id in known.get(request.query_params.get("code", ""), [])]})

    server.handler = handler
    return known


# What is found.


@pytest.mark.parametrize(
    ("record", "document", "found"),
    [
        pytest.param("@", {"id": 7}, {"id": 7}, id="a whole document"),
        pytest.param("data.id", {"data": {"id": 0}}, 0, id="an id of zero"),
        pytest.param("items[0].id", {"items": [{"id": 7}]}, 7, id="an item of a list"),
        pytest.param("items[].id", {"items": [{"id": 7}]}, 7, id="a single record in a list"),
        pytest.param(
            "items[?code=='A'].id | [0]",
            {"items": [{"code": "B", "id": 1}, {"code": "A", "id": 2}]},
            2,
            id="one of several, chosen",
        ),
    ],
)
async def test_a_reference_is_what_stands_at_its_place(
    server: Server, http: HttpClient, record: str, document: Any, found: Any
) -> None:
    server.respond_with(document)
    assert await references(http, store={**STORE, "record": record}).resolve_references(A, {"store"}) == {
        "store": found
    }


async def test_only_what_is_asked_for_is_looked_up(server: Server, http: HttpClient) -> None:
    stores(server)["A"] = [7]
    known = references(http, store=STORE, other={"path": "/others"})
    assert await known.resolve_references(A, {"key", "group", "payload"}) == {}
    assert await known.resolve_references(A, {"key", "store"}) == {"store": 7}
    assert server.seen == [("GET", "/stores", {"code": "A"})]


async def test_several_are_looked_up_each_by_its_own_templates(server: Server, http: HttpClient) -> None:
    async def handler(request: Request) -> Response:
        return JSONResponse({"id": request.url.path + "?" + (await request.body()).decode()})

    server.handler = handler
    known = references(
        http,
        store={"path": "/stores/{{ group }}", "record": "id"},
        kind={"method": "POST", "path": "/kinds", "body": {"name": "{{ payload.kind }}"}, "record": "id"},
    )
    assert await known.resolve_references(A, {"store", "kind"}) == {
        "store": "/stores/A?",
        "kind": '/kinds?{"name":"shoe"}',
    }


# How often it is asked for.


async def test_it_is_kept_by_the_values_that_its_templates_use(server: Server, http: HttpClient) -> None:
    stores(server).update(A=[7], B=[8])
    known = references(http, store=STORE)
    for key, group, id in (("k1", "A", 7), ("k2", "A", 7), ("k1", "B", 8), ("k3", "A", 7)):
        assert await known.resolve_references({"key": key, "group": group, "payload": {"n": key}}, {"store"}) == {
            "store": id
        }
    assert [query["code"] for _, _, query in server.seen] == ["A", "B"]


async def test_it_is_kept_for_so_long_and_no_longer(server: Server, http: HttpClient) -> None:
    ids, clock = stores(server), Clock()
    known = references(http, clock, store=STORE)
    ids["A"] = [7]
    assert await known.resolve_references(A, {"store"}) == {"store": 7}
    ids["A"], clock.now = [8], 59.9
    assert await known.resolve_references(A, {"store"}) == {"store": 7}
    clock.now = 60
    assert await known.resolve_references(A, {"store"}) == {"store": 8}


async def test_many_that_need_the_same_at_once_make_one_call(server: Server, http: HttpClient) -> None:
    stores(server).update(A=[7], B=[8])
    known = references(http, store={**STORE, "keep": 0})
    found = await asyncio.gather(
        *(known.resolve_references({**A, "key": str(n), "group": "AB"[n % 2]}, {"store"}) for n in range(40))
    )
    assert [one["store"] for one in found] == [7, 8] * 20
    assert len(server.seen) == 2


async def test_one_that_gives_up_takes_it_from_no_other(server: Server, http: HttpClient) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def handler(request: Request) -> Response:
        loop.call_soon_threadsafe(asked.set)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(answer.wait(), loop))
        return JSONResponse({"items": [{"id": 7}]})

    server.handler = handler
    known = references(http, store=STORE)
    first, second = (asyncio.create_task(known.resolve_references(A, {"store"})) for _ in range(2))
    await asked.wait()
    first.cancel()
    await asyncio.wait([first])
    answer.set()
    assert await second == {"store": 7}
    assert first.cancelled()
    assert len(server.seen) == 1


async def test_no_more_are_kept_than_there_is_room_for(
    server: Server, http: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CACHED_REFERENCES", 2)
    stores(server).update({str(n): [n] for n in range(3)})
    known = references(http, store=STORE)
    for group in "01210":
        await known.resolve_references({**A, "group": group}, {"store"})
    assert [query["code"] for _, _, query in server.seen] == ["0", "1", "2", "0"]


def test_it_is_kept_from_one_event_loop_to_the_next(server: Server) -> None:
    stores(server)["A"] = [7]
    client = HttpClient(HttpSettings(base_url=server.url, timeout=5))
    known = references(client, store=STORE)

    async def resolved() -> dict[str, Any]:
        found = await known.resolve_references(A, {"store"})
        await client.close()
        return found

    assert [asyncio.run(resolved()) for _ in range(2)] == [{"store": 7}] * 2
    assert len(server.seen) == 1


# Where there is none.


@pytest.mark.parametrize(
    ("record", "document", "status"),
    [
        pytest.param("items[0].id", {"items": []}, 200, id="an empty list, by index"),
        pytest.param("items[].id", {"items": []}, 200, id="an empty list"),
        pytest.param("data", {"data": None}, 200, id="null"),
        pytest.param("id", {"id": ""}, 200, id="an empty text"),
        pytest.param("@", {"error": "no such store"}, 404, id="404"),
    ],
)
async def test_reference_missing_says_which_and_what_came(
    server: Server, http: HttpClient, record: str, document: Any, status: int
) -> None:
    server.respond_with(document, status)
    failure = await failure_of(references(http, store={**STORE, "record": record}).resolve_references(A, {"store"}))
    assert failure.kind is Failure.REFERENCE
    assert failure.refusal is not Refusal.MISSING
    assert failure.detail.startswith(f"reference 'store' is not there yet: answer {status}: {{\"")


async def test_reference_missing_by_a_rule_of_the_target(server: Server, http: HttpClient) -> None:
    server.respond_with({"code": "E17"})
    rule = OutcomeRule(when="body.code == 'E17'", means="missing")
    failure = await failure_of(references(http, outcomes=[rule], store=STORE).resolve_references(A, {"store"}))
    assert (failure.kind, failure.refusal) == (Failure.REFERENCE, None)


async def test_that_there_is_none_is_not_kept(server: Server, http: HttpClient) -> None:
    ids = stores(server)
    known = references(http, store=STORE)
    assert (await failure_of(known.resolve_references(A, {"store"}))).kind is Failure.REFERENCE
    ids["A"] = [7]
    assert await known.resolve_references(A, {"store"}) == {"store": 7}


@pytest.mark.parametrize(
    ("status", "document", "kind", "detail"),
    [
        pytest.param(400, {"error": "x"}, Failure.PERMANENT, "reference 'store': answer 400", id="refused"),
        pytest.param(403, {"error": "x"}, Failure.AUTH, "reference 'store': answer 403", id="no right"),
        pytest.param(
            200,
            {"items": [{"id": 1}, {"id": 2}]},
            Failure.TRANSIENT,
            "reference 'store': 2 records where",
            id="several: its filter may be ignored",
        ),
    ],
)
async def test_a_failed_look_up_is_no_missing_reference(
    server: Server, http: HttpClient, status: int, document: Any, kind: Failure, detail: str
) -> None:
    server.respond_with(document, status)
    failure = await failure_of(references(http, store=STORE).resolve_references(A, {"store"}))
    assert (failure.kind, failure.refusal) == (kind, None)
    assert failure.detail.startswith(detail)


async def test_a_look_up_that_cannot_be_made_names_the_reference(server: Server, http: HttpClient) -> None:
    known = references(http, kind={"path": "/kinds/{{ payload.kind }}"})
    failure = await failure_of(known.resolve_references({**A, "payload": {}}, {"kind"}))
    assert failure.kind is Failure.PERMANENT
    assert failure.detail.startswith("reference 'kind': 'dict object' has no attribute 'kind'")
    assert server.seen == []


# The configuration.


@pytest.mark.parametrize(
    ("call", "names"),
    [
        ("list", "payload"),
        ("list", "key"),
        ("count", "key"),
        ("lookup", "payload"),
        ("read", "payload"),
        ("delete", "payload"),
    ],
)
def test_a_reference_that_needs_what_a_call_does_not_know_is_refused(call: str, names: str) -> None:
    target = two_part_config().entities["item"].third_party.model_dump(exclude_unset=True)
    reference = {"path": "/stores", "params": {"q": f"{{{{ {names} }}}}"}}
    with pytest.raises(ValidationError) as refused:
        two_part_config(
            entity={
                "third_party": {
                    **target,
                    "references": {"store": reference},
                    call: {"path": "/", "params": {"s": "{{ store }}"}},
                }
            }
        )
    assert f"{call}: nothing fills in 'store'" in str(refused.value)
