"""The demo's systems: real data, APIs that ``demo/sync.yaml`` describes, and faults that are real to a client."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psutil
import pytest
from paths import ROOT

# The demo stands beside the package and is not installed with it.
sys.path.insert(0, str(ROOT))

from demo import access, processes
from demo.data import stones
from demo.erp import create_app as create_erp
from demo.erp_faults import FaultOrder, Faults
from demo.sources import ROLES
from demo.sources import create_app as create_source
from sync_orchestrator.adapters.factory import build_sources, build_third_parties
from sync_orchestrator.config import Config, load
from sync_orchestrator.core.ports import Item
from sync_orchestrator.core.values.mapping import Mapping
from sync_orchestrator.errors import CallFailed

FEW = stones(300, 20)
QUIET = {"errors": 0, "lost": 0, "outage": 0, "limit": None, "latency": 0}


def client_of(app: Any, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://demo", headers=headers)


def source(role: str) -> httpx.AsyncClient:
    return client_of(create_source(role, "secret", FEW), Authorization="Bearer secret")


@pytest.fixture
async def catalogue() -> AsyncIterator[httpx.AsyncClient]:
    async with source("catalogue") as client:
        yield client


@pytest.fixture
async def erp() -> AsyncIterator[httpx.AsyncClient]:
    """An ERP in this process, without faults."""
    async with client_of(create_erp("secret"), **{"X-Api-Key": "secret"}) as client:
        await client.post("/_control/faults", json=QUIET)
        yield client


async def change(client: httpx.AsyncClient, **order: Any) -> dict[str, Any]:
    """Carries out one order and returns its notification."""
    answer = await client.post("/_control/changes", json=[order])
    assert answer.status_code == 200, answer.text
    event: dict[str, Any] = answer.json()[0]
    return event


def item(code: str = "D-000001", warehouse: str = "ideal-e", price: int = 326) -> dict[str, Any]:
    return {"item": {"itemCode": code, "warehouse": warehouse, "title": "0.23 ct Ideal E", "unitPrice": price}}


async def faults(client: httpx.AsyncClient, **order: Any) -> None:
    (await client.post("/_control/faults", json=order)).raise_for_status()


async def dump(client: httpx.AsyncClient) -> Any:
    return (await client.get("/_control/dump")).json()


class TestData:
    def test_same_stones_every_time(self) -> None:
        assert stones(300, 20) == FEW
        assert stones(300, 20, seed=1) != FEW

    def test_enough_stones_in_enough_groups(self) -> None:
        found = stones()
        groups = Counter(stone["collection"] for stone in found)
        assert len({stone["sku"] for stone in found}) == len(found) >= 10_000
        assert len(groups) >= 20
        assert not any(" " in name for name in groups)

    def test_more_than_there_is_is_refused(self) -> None:
        with pytest.raises(ValueError, match="fewer than 50000"):
            stones(50_000, 20)


class TestSources:
    @pytest.mark.parametrize("role", ROLES)
    async def test_only_with_the_token(self, role: str) -> None:
        async with client_of(create_source(role, "secret", FEW)) as client:
            assert (await client.get(f"/v1/{ROLES[role].noun}")).status_code == 401
            assert (await client.get("/healthz")).status_code == 200

    async def test_pages_by_key_hold_every_row_of_a_collection_once(self, catalogue: httpx.AsyncClient) -> None:
        for collection in (await catalogue.get("/v1/collections")).json()["collections"]:
            keys: list[str] = []
            while True:
                asked = {"collection": collection, "after": keys[-1] if keys else "", "limit": "4"}
                page = (await catalogue.get("/v1/stones", params=asked)).json()["stones"]
                if not page:
                    break
                keys += [row["sku"] for row in page]
            assert keys == [stone["sku"] for stone in FEW if stone["collection"] == collection]
            count = await catalogue.get("/v1/count", params={"collection": collection})
            assert count.json() == {"count": len(keys)}

    @pytest.mark.parametrize("params", [{}, {"collection": ""}, {"collection": "ideal-e", "limit": "many"}])
    async def test_a_listing_that_cannot_be_meant_is_refused_not_empty(
        self, catalogue: httpx.AsyncClient, params: dict[str, str]
    ) -> None:
        assert (await catalogue.get("/v1/stones", params=params)).status_code == 400

    async def test_read_by_key_or_keys_leaves_out_what_is_not_there(self, catalogue: httpx.AsyncClient) -> None:
        sku = FEW[0]["sku"]
        assert (await catalogue.get(f"/v1/stones/{sku}")).json()["sku"] == sku
        assert (await catalogue.get("/v1/stones/D-999999")).status_code == 404
        found = await catalogue.get("/v1/lookup", params={"keys": f"{sku},D-999999"})
        assert [row["sku"] for row in found.json()["stones"]] == [sku]

    @pytest.mark.parametrize("role", ["lab", "pricing"])
    async def test_only_the_owner_knows_collections(self, role: str) -> None:
        async with source(role) as client:
            assert "collection" not in next(iter((await dump(client)).values()))
            assert (await client.get("/v1/collections")).status_code == 404

    @pytest.mark.parametrize("role", ROLES)
    async def test_versions_only_grow_by_a_clock_of_its_own(self, role: str) -> None:
        async with source(role) as client:
            loaded = [row["updated_at"] for row in (await dump(client)).values()]
            field = ROLES[role].fields[-1]
            order = {"op": "update", "key": FEW[0]["sku"], "set": {field: 1}}
            events = (await client.post("/_control/changes", json=[order] * 500)).json()
        times = [*loaded, *(event["time"] for event in events)]
        assert times == sorted(set(times))
        off = datetime.fromisoformat(times[0]) - datetime.now(UTC) - ROLES[role].clock
        assert abs(off) < timedelta(minutes=1)

    async def test_a_record_lives_dies_and_comes_back(self, catalogue: httpx.AsyncClient) -> None:
        row = {name: FEW[0][name] for name in ROLES["catalogue"].fields}
        events = [
            await change(catalogue, op="create", key="D-900001", set=row),
            await change(catalogue, op="update", key="D-900001", set={"name": "new"}),
            await change(catalogue, op="delete", key="D-900001"),
        ]
        assert (await catalogue.get("/v1/stones/D-900001")).status_code == 404
        events.append(await change(catalogue, op="recreate", key="D-900001"))
        told = [event["type"].removeprefix("stone.") for event in events]
        assert told == ["created", "updated", "deleted", "created"]
        assert "data" not in events[2]
        assert events[3]["data"]["name"] == "new"
        assert events[3]["data"] == (await catalogue.get("/v1/stones/D-900001")).json()
        assert len({event["id"] for event in events}) == 4

    async def test_a_move_changes_both_collections(self, catalogue: httpx.AsyncClient) -> None:
        sku, before = FEW[0]["sku"], FEW[0]["collection"]
        await change(catalogue, op="update", key=sku, set={"collection": "new-collection"})

        async def listed(collection: str) -> list[str]:
            answer = await catalogue.get("/v1/stones", params={"collection": collection})
            return [row["sku"] for row in answer.json()["stones"]]

        assert sku not in await listed(before)
        assert await listed("new-collection") == [sku]

    async def test_what_does_not_fit_is_refused_and_what_was_done_before_it_is_told(
        self, catalogue: httpx.AsyncClient
    ) -> None:
        sku = FEW[0]["sku"]
        orders = [{"op": "delete", "key": sku}, {"op": "delete", "key": sku}]
        answer = await catalogue.post("/_control/changes", json=orders)
        assert answer.status_code == 409
        assert [event["subject"] for event in answer.json()["events"]] == [sku]
        unknown = {"op": "update", "key": FEW[1]["sku"], "set": {"price": 1}}
        assert (await catalogue.post("/_control/changes", json=[unknown])).status_code == 409
        assert (await catalogue.post("/_control/changes", json={"op": "explode"})).status_code == 400

    async def test_reset_brings_the_first_truth_with_newer_versions(self, catalogue: httpx.AsyncClient) -> None:
        before = await dump(catalogue)
        last = (await change(catalogue, op="delete", key=FEW[0]["sku"]))["time"]
        await catalogue.post("/_control/reset")
        after = await dump(catalogue)
        assert {key: row["name"] for key, row in after.items()} == {key: row["name"] for key, row in before.items()}
        assert min(row["updated_at"] for row in after.values()) > last


class TestErp:
    async def test_only_with_the_key(self, erp: httpx.AsyncClient) -> None:
        answer = await erp.get("/api/v2/items", params={"warehouse": "a"}, headers={"X-Api-Key": "wrong"})
        assert answer.status_code == 401

    async def test_a_careless_client_makes_duplicates_and_search_finds_both(self, erp: httpx.AsyncClient) -> None:
        refs = [(await erp.post("/api/v2/items", json=item())).json()["data"]["ref"] for _ in range(2)]
        found = (await erp.get("/api/v2/items", params={"itemCode": "D-000001"})).json()
        assert [record["ref"] for record in found["data"]["items"]] == sorted(refs)
        stats = (await erp.get("/_control/stats")).json()
        assert stats["duplicates"] == ["D-000001"]
        assert stats["applied"] == {"create": 2}
        assert stats["calls"] == {"POST": 2, "GET": 1}

    async def test_cursor_pages_hold_every_item_of_a_warehouse_once(self, erp: httpx.AsyncClient) -> None:
        for number in range(7):
            await erp.post("/api/v2/items", json=item(f"D-{number}", "ideal-e" if number < 5 else "good-f"))
        codes, cursor = [], ""
        while cursor is not None:
            asked = {"warehouse": "ideal-e", "cursor": cursor, "limit": "2"}
            page = (await erp.get("/api/v2/items", params=asked)).json()
            codes += [record["itemCode"] for record in page["data"]["items"]]
            cursor = page["data"]["nextCursor"]
        assert sorted(codes) == [f"D-{number}" for number in range(5)]
        assert (await erp.get("/api/v2/warehouses/ideal-e/count")).json() == {"total": 5}

    async def test_an_item_moves_and_goes(self, erp: httpx.AsyncClient) -> None:
        ref = (await erp.post("/api/v2/items", json=item())).json()["data"]["ref"]
        await erp.put(f"/api/v2/items/{ref}", json=item(warehouse="good-f"))
        assert (await erp.get("/api/v2/warehouses/ideal-e/count")).json()["total"] == 0
        assert (await erp.get(f"/api/v2/items/{ref}")).json()["data"]["warehouse"] == "good-f"
        assert (await erp.delete(f"/api/v2/items/{ref}")).status_code == 204
        for answer in (
            await erp.get(f"/api/v2/items/{ref}"),
            await erp.delete(f"/api/v2/items/{ref}"),
            await erp.put(f"/api/v2/items/{ref}", json=item()),
        ):
            assert answer.status_code == 404

    @pytest.mark.parametrize("body", [item(price=-1), item(code=""), {"itemCode": "bare"}, [], "not JSON"])
    async def test_an_item_it_cannot_take_is_refused_for_good(self, erp: httpx.AsyncClient, body: Any) -> None:
        content = {"content": body} if body == "not JSON" else {"json": body}
        assert (await erp.post("/api/v2/items", **content)).status_code == 422
        assert await dump(erp) == []

    @pytest.mark.parametrize(("after", "kept", "name"), [(0, 0, "error_before"), (1, 1, "error_after")])
    async def test_a_500_comes_before_the_work_or_after_it(
        self, erp: httpx.AsyncClient, after: int, kept: int, name: str
    ) -> None:
        await faults(erp, errors=1, errors_after=after)
        assert (await erp.post("/api/v2/items", json=item())).status_code == 500
        assert len(await dump(erp)) == kept
        assert (await erp.get("/_control/stats")).json()["faults"] == {name: {"POST": 1}}

    async def test_an_outage_ends_when_told_and_does_nothing_meanwhile(self, erp: httpx.AsyncClient) -> None:
        await faults(erp, outage=3600)
        assert (await erp.post("/api/v2/items", json=item())).status_code == 503
        assert await dump(erp) == []
        await faults(erp, outage=0)
        assert (await erp.post("/api/v2/items", json=item())).status_code == 201

    async def test_above_the_rate_it_says_when_to_come_back(self, erp: httpx.AsyncClient) -> None:
        await faults(erp, limit=0)
        answer = await erp.post("/api/v2/items", json=item())
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
        assert await dump(erp) == []

    def test_the_same_seed_strikes_the_same_calls(self) -> None:
        def struck() -> list[str | None]:
            found = Faults()
            found.set(FaultOrder(errors=0.1, lost=0.1, limit=None, seed=5))
            return [found.next_fault() for _ in range(500)]

        first = struck()
        assert first == struck()
        assert set(first) == {None, "error_before", "error_after", "answer_lost"}

    async def test_a_fault_that_does_not_exist_is_refused(self, erp: httpx.AsyncClient) -> None:
        assert (await erp.post("/_control/faults", json={"explode": 1})).status_code == 422

    async def test_damage_is_silent_and_told_exactly(self, erp: httpx.AsyncClient) -> None:
        made = [(await erp.post("/api/v2/items", json=item(f"D-{n:02}"))).json()["data"] for n in range(20)]
        for record in made[:4]:
            await erp.delete(f"/api/v2/items/{record['ref']}")
        await erp.post("/_control/by_hand", json={"warehouse": "ideal-e", "count": 3})
        before = {record["itemCode"]: record for record in await dump(erp)}
        told = (await erp.post("/_control/damage", json={"lose": 3, "alter": 5, "revive": 2})).json()
        after = {record["itemCode"]: record for record in await dump(erp)}
        changed = {code for code in before.keys() & after.keys() if before[code] != after[code]}
        assert {(row["key"], row["kind"]) for row in told} == {
            *((code, "missing") for code in before.keys() - after.keys()),
            *((code, "different") for code in changed),
            *((code, "extra") for code in after.keys() - before.keys()),
        }
        assert Counter(row["kind"] for row in told) == {"missing": 3, "different": 5, "extra": 2}
        assert not any(row["key"].startswith("HAND-") for row in told)

    async def test_more_damage_than_records_does_nothing(self, erp: httpx.AsyncClient) -> None:
        await erp.post("/api/v2/items", json=item())
        before = await dump(erp)
        assert (await erp.post("/_control/damage", json={"lose": 1, "revive": 1})).status_code == 409
        assert await dump(erp) == before

    async def test_records_by_hand_have_codes_of_their_own(self, erp: httpx.AsyncClient) -> None:
        for count in (2, 1):
            await erp.post("/_control/by_hand", json={"warehouse": "ideal-e", "count": count})
        assert sorted(record["itemCode"] for record in await dump(erp)) == ["HAND-0001", "HAND-0002", "HAND-0003"]


@pytest.fixture(scope="module")
def systems(tmp_path_factory: pytest.TempPathFactory) -> Iterator[processes.Systems]:
    """The four systems as processes, over real HTTP."""
    with processes.running(tmp_path_factory.mktemp("logs")) as running:
        yield running


@pytest.fixture
def config(systems: processes.Systems, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The demo's own configuration, for the systems that run."""
    for name, value in systems.environment.items():
        monkeypatch.setenv(name, value)
    return load(ROOT / "demo" / "sync.yaml")


@pytest.fixture
async def real_erp(systems: processes.Systems) -> AsyncIterator[httpx.AsyncClient]:
    """The ERP's process, empty and without faults."""
    async with httpx.AsyncClient(base_url=systems.url("erp"), headers={"X-Api-Key": access.erp_key()}) as client:
        await client.post("/_control/reset")
        await faults(client, **QUIET)
        yield client


class TestProcesses:
    async def test_a_lost_answer_is_a_cut_connection_and_the_record_is_there(self, real_erp: httpx.AsyncClient) -> None:
        await faults(real_erp, lost=1)
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await real_erp.post("/api/v2/items", json=item())
        assert [record["itemCode"] for record in await dump(real_erp)] == ["D-000001"]
        assert (await real_erp.get("/_control/stats")).json()["faults"] == {"answer_lost": {"POST": 1}}

    async def test_an_outage_can_cut_connections_and_does_nothing(self, real_erp: httpx.AsyncClient) -> None:
        await faults(real_erp, outage=3600, outage_answer="cut")
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await real_erp.post("/api/v2/items", json=item())
        assert await dump(real_erp) == []

    async def test_the_sync_takes_a_lost_create_as_unknown_and_finds_it(
        self, config: Config, real_erp: httpx.AsyncClient
    ) -> None:
        third_party = build_third_parties(config, {})["stone"]
        try:
            await faults(real_erp, lost=1)
            with pytest.raises(CallFailed) as failure:
                await third_party.create(Item("D-000001", "ideal-e", item()["item"]))
            assert failure.value.unknown
            await faults(real_erp, lost=0)
            assert [found.key for found in await third_party.lookup("D-000001", "ideal-e")] == ["D-000001"]
        finally:
            await third_party.close()

    async def test_sync_yaml_fits_the_sources(self, config: Config) -> None:
        parts = build_sources(config)["stone"]
        truth = stones()
        try:
            groups = await parts["catalogue"].groups()
            assert groups == sorted({stone["collection"] for stone in truth})
            keys = [row.key async for rows, _ in parts["catalogue"].pages(groups[0]) for row in rows]
            assert keys == [stone["sku"] for stone in truth if stone["collection"] == groups[0]]
            assert await parts["catalogue"].count(groups[0]) == len(keys)
            for part in parts.values():
                assert part.keyset_listing
                assert [row.key for row in await part.read_many([*keys, "D-999999"])] == keys
                assert await part.read("D-999999") is None
                one = await part.read(keys[0])
                assert one is not None
                assert one.key == keys[0]
            listed = [row.key async for rows, _ in parts["pricing"].pages("") for row in rows]
            assert listed == [stone["sku"] for stone in truth]
        finally:
            for part in parts.values():
                await part.close()

    async def test_sync_yaml_fits_the_erp_and_what_it_keeps_is_what_was_sent(
        self, config: Config, real_erp: httpx.AsyncClient
    ) -> None:
        parts, third_party = build_sources(config)["stone"], build_third_parties(config, {})["stone"]
        mapping = Mapping(config.entities["stone"].mapping)
        stone = stones()[0]
        key, group = stone["sku"], stone["collection"]
        try:
            rows = {name: await part.read(key) for name, part in parts.items()}
            payload = mapping.build_payload(key, group, {name: row.data for name, row in rows.items() if row})
            assert None not in payload.values()
            ref = await third_party.create(Item(key, group, payload))
            known = Item(key, group, {**payload, "unitPrice": 1}, external_id=ref)
            assert await third_party.update(known) == ref
            found = await third_party.read(known)
            assert found is not None
            assert (found.key, found.group, found.fields) == (key, group, known.payload)
            assert await third_party.lookup(key, group) == [found]
            assert [record async for page in third_party.pages(group) for record in page] == [found]
            assert await third_party.count(group) == 1
            await third_party.delete(known)
            assert await third_party.read(known) is None
            assert await third_party.update(known) is None
            assert await third_party.count(group) == 0
        finally:
            await third_party.close()
            for part in parts.values():
                await part.close()

    def test_a_taken_port_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            taken = other.getsockname()[1]
            monkeypatch.setenv("DEMO_ERP_PORT", str(taken))
            chosen = processes.free_ports()
        assert taken not in chosen.values()
        assert len(set(chosen.values())) == 4

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_the_systems_end_with_whoever_started_them(self, number: signal.Signals) -> None:
        with subprocess.Popen([sys.executable, "-m", "demo.processes"], cwd=ROOT, stdout=subprocess.PIPE) as starter:
            assert starter.stdout is not None
            while not starter.stdout.readline().startswith(b"Ctrl-C"):
                assert starter.poll() is None
            family = psutil.Process(starter.pid).children(recursive=True)
            assert len(family) >= 5
            starter.send_signal(number)
            status = starter.wait(30)
        assert status == (0 if number != signal.SIGKILL else -signal.SIGKILL)
        assert psutil.wait_procs(family, timeout=30)[1] == []
