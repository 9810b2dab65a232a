"""``/v1/conflicts``: who sees which, and how one is decided."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from api_client import client_of
from sqlalchemy import Engine
from two_sides import TwoSides, build_document

from sync_orchestrator.api.service import create_app
from sync_orchestrator.core.service.api_keys import make_key
from sync_orchestrator.errors import NotFound


@pytest.fixture
def sides(engine: Engine) -> Iterator[TwoSides]:
    sides = TwoSides(engine, build_document())
    yield sides
    sides.close()


@pytest.fixture
async def client(sides: TwoSides) -> AsyncIterator[httpx.AsyncClient]:
    sides.shop.add(sku="L-1", title="lamp", note="n", price=10)
    await sides.sync()
    await sides.settle(3)
    sides.shop.edit("shop-1", price=11)
    sides.erp.edit("erp-1", price=12)
    await sides.settle(2)
    async with client_of(create_app(sides.context), key_of(sides, "conflicts:product")) as client:
        yield client


def key_of(sides: TwoSides, *scopes: str) -> str:
    with sides.engine.begin() as connection:
        return make_key(connection, "a test", scopes, ["shop", "erp"], two_way=["product"])


async def listed(client: httpx.AsyncClient, **query: Any) -> list[dict[str, Any]]:
    response = await client.get("/v1/conflicts", params=query)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["conflicts"]
    return found


async def test_a_conflict_is_listed_shown_and_decided(sides: TwoSides, client: httpx.AsyncClient) -> None:
    (row,) = await listed(client)
    assert (row["key"], row["field"], row["ours"], row["theirs"], row["state"]) == ("L-1", "price", 11, 12, "open")
    assert (await client.get(f"/v1/conflicts/{row['id']}")).json() == row
    decided = await client.post(f"/v1/conflicts/{row['id']}", json={"winner": "theirs", "reason": "by phone"})
    assert (decided.status_code, decided.json()["state"], decided.json()["resolved_by"]) == (
        200,
        "resolved",
        "the key 'a test'",
    )
    await sides.settle(3)
    assert sides.shop.values("price") == sides.erp.values("price") == {"L-1": (12,)}
    again = await client.post(f"/v1/conflicts/{row['id']}", json={"winner": "ours"})
    assert (again.status_code, "is not open any more" in again.json()["detail"]) == (409, True)
    assert await listed(client) == []
    assert [each["id"] for each in await listed(client, state="resolved")] == [row["id"]]


async def test_other_keys_see_nothing_of_it(sides: TwoSides, client: httpx.AsyncClient) -> None:
    (row,) = await listed(client)
    with pytest.raises(NotFound, match="no scope conflicts:order"):
        key_of(sides, "conflicts:order")
    async with client_of(create_app(sides.context), key_of(sides, "events:shop")) as other:
        for response in (
            await other.get("/v1/conflicts"),
            await other.get(f"/v1/conflicts/{row['id']}"),
            await other.post(f"/v1/conflicts/{row['id']}", json={"winner": "ours"}),
        ):
            assert response.status_code == 404
    async with client_of(create_app(sides.context), None) as nobody:
        assert (await nobody.get("/v1/conflicts")).status_code == 401
    assert [each["id"] for each in await listed(client)] == [row["id"]]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"winner": "nobody"}, 422),
        ({"winner": "value"}, 422),
        ({"winner": "ours", "value": 3}, 422),
        ({}, 422),
        ({"winner": "ours", "more": 1}, 422),
        (b"{", 400),
    ],
)
async def test_a_decision_that_cannot_be_used_changes_nothing(
    client: httpx.AsyncClient, body: Any, status: int
) -> None:
    (row,) = await listed(client)
    sent = {"content": body} if isinstance(body, bytes) else {"json": body}
    response = await client.post(f"/v1/conflicts/{row['id']}", **sent)
    assert response.status_code == status
    assert (await listed(client))[0]["state"] == "open"


async def test_an_unknown_state_or_conflict_is_refused(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/conflicts", params={"state": "odd"})).status_code == 400
    assert (await client.get("/v1/conflicts/4711")).status_code == 404
    assert (await client.get("/v1/conflicts", params={"entity": "order"})).status_code == 404


async def test_a_decision_that_a_newer_change_has_overtaken_is_a_conflict_of_http(
    sides: TwoSides, client: httpx.AsyncClient
) -> None:
    (row,) = await listed(client)
    sides.erp.edit("erp-1", price=14)
    await sides.settle(2)
    late = await client.post(f"/v1/conflicts/{row['id']}", json={"winner": "ours"})
    assert (late.status_code, "a newer change has overtaken it" in late.json()["detail"]) == (409, True)
    (anew,) = await listed(client)
    assert (anew["id"] > row["id"], anew["theirs"]) == (True, 14)


@pytest.mark.parametrize("value", [None, 12.5, "a text", {"amount": "12.50"}])
async def test_any_json_is_a_value_also_null(sides: TwoSides, client: httpx.AsyncClient, value: Any) -> None:
    (row,) = await listed(client)
    decided = await client.post(f"/v1/conflicts/{row['id']}", json={"winner": "value", "value": value})
    assert (decided.status_code, decided.json()["winner"]) == (200, "value")
    await sides.settle(3)
    assert sides.shop.values("price") == sides.erp.values("price") == {"L-1": (value,)}
