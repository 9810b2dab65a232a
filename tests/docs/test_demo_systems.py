"""The demo's systems: real data, APIs that ``demo/sync.yaml`` describes, and faults that are real to a client."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest
from paths import ROOT

# The demo stands beside the package and is not installed with it.
sys.path.insert(0, str(ROOT))

from demo import access, catalogue, processes
from demo.captured import Recorded, Write, find_missing, measure_lags
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

pytestmark = pytest.mark.slow

FEW = stones(300, 20)
QUIET = {"errors": 0, "lost": 0, "outage": 0, "limit": None, "latency": 0}


def client_of(app: Any, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://demo", headers=headers)


def source(role: str) -> httpx.AsyncClient:
    return client_of(create_source(role, "secret", FEW), Authorization="Bearer secret")


@pytest.fixture
async def lab() -> AsyncIterator[httpx.AsyncClient]:
    async with source("lab") as client:
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

    async def test_pages_by_key_hold_every_row_once(self, lab: httpx.AsyncClient) -> None:
        keys: list[str] = []
        while True:
            asked = {"after": keys[-1] if keys else "", "limit": "70"}
            page = (await lab.get("/v1/reports", params=asked)).json()["reports"]
            if not page:
                break
            keys += [row["stone"] for row in page]
        assert keys == [stone["sku"] for stone in FEW]

    async def test_a_listing_that_cannot_be_meant_is_refused_not_empty(self, lab: httpx.AsyncClient) -> None:
        assert (await lab.get("/v1/reports", params={"limit": "many"})).status_code == 400

    async def test_read_by_key_or_keys_leaves_out_what_is_not_there(self, lab: httpx.AsyncClient) -> None:
        sku = FEW[0]["sku"]
        assert (await lab.get(f"/v1/reports/{sku}")).json()["report"]["stone"] == sku
        assert (await lab.get("/v1/reports/D-999999")).status_code == 404
        found = await lab.get("/v1/lookup", params={"keys": f"{sku},D-999999"})
        assert [row["stone"] for row in found.json()["reports"]] == [sku]

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

    async def test_a_record_lives_dies_and_comes_back(self, lab: httpx.AsyncClient) -> None:
        row = {name: FEW[0][name] for name in ROLES["lab"].fields}
        events = [
            await change(lab, op="create", key="D-900001", set=row),
            await change(lab, op="update", key="D-900001", set={"carat": 9.5}),
            await change(lab, op="delete", key="D-900001"),
        ]
        assert (await lab.get("/v1/reports/D-900001")).status_code == 404
        events.append(await change(lab, op="recreate", key="D-900001"))
        told = [event["type"].removeprefix("stone.") for event in events]
        assert told == ["created", "updated", "deleted", "created"]
        assert "data" not in events[2]
        assert events[3]["data"]["carat"] == 9.5
        assert events[3]["data"] == (await lab.get("/v1/reports/D-900001")).json()["report"]
        assert len({event["id"] for event in events}) == 4

    async def test_what_does_not_fit_is_refused_and_what_was_done_before_it_is_told(
        self, lab: httpx.AsyncClient
    ) -> None:
        sku = FEW[0]["sku"]
        orders = [{"op": "delete", "key": sku}, {"op": "delete", "key": sku}]
        answer = await lab.post("/_control/changes", json=orders)
        assert answer.status_code == 409
        assert [event["subject"] for event in answer.json()["events"]] == [sku]
        unknown = {"op": "update", "key": FEW[1]["sku"], "set": {"price": 1}}
        assert (await lab.post("/_control/changes", json=[unknown])).status_code == 409
        assert (await lab.post("/_control/changes", json={"op": "explode"})).status_code == 400

    async def test_reset_brings_the_first_truth_with_newer_versions(self, lab: httpx.AsyncClient) -> None:
        before = await dump(lab)
        last = (await change(lab, op="delete", key=FEW[0]["sku"]))["time"]
        await lab.post("/_control/reset")
        after = await dump(lab)
        assert {key: row["carat"] for key, row in after.items()} == {key: row["carat"] for key, row in before.items()}
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
def home() -> Iterator[Path]:
    """The demo's folder. pytest closes its own folders to other users, of whom the database's server may be one."""
    with tempfile.TemporaryDirectory(prefix="demo-", ignore_cleanup_errors=True) as folder:
        yield Path(folder) / "home"


@pytest.fixture(scope="module")
def systems(home: Path) -> Iterator[processes.Systems]:
    """The four systems and the catalogue's database as processes, over real HTTP and SQL."""
    with processes.running(home) as running:
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
            groups = sorted(await parts["catalogue"].groups() or [])
            assert groups == sorted({stone["collection"] for stone in truth})
            keys = [row.key async for rows, _ in parts["catalogue"].pages(groups[0]) for row in rows]
            assert keys == [stone["sku"] for stone in truth if stone["collection"] == groups[0]]
            assert await parts["catalogue"].count(groups[0]) == len(keys)
            for part in parts.values():
                assert part.keyset_listing
                assert sorted(row.key for row in await part.read_many([*keys, "D-999999"])) == keys
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

    async def test_shops_read_the_catalogue_by_its_own_api(self, systems: processes.Systems) -> None:
        stone = stones()[0]
        async with httpx.AsyncClient(base_url=systems.url("catalogue")) as client:
            path = f"/v1/stones/{stone['sku']}"
            assert (await client.get(path)).status_code == 401
            client.headers["Authorization"] = f"Bearer {access.source_token()}"
            assert (await client.get(path)).json()["name"] == stone["name"]
            assert (await client.get("/v1/stones/D-999999")).status_code == 404

    def test_nothing_is_made_in_the_catalogue_unasked_and_its_operator_runs_what_is_printed(
        self, systems: processes.Systems
    ) -> None:
        made = "SELECT pubname AS name FROM pg_publication UNION ALL SELECT slot_name FROM pg_replication_slots"
        assert systems.catalogue.execute(made) == []
        statements = systems.catalogue.prepare_capture(ROOT / "demo" / "sync.yaml")
        assert [words.split('"')[0].strip() for words in statements] == ["ALTER ROLE", "CREATE PUBLICATION"]
        assert systems.catalogue.prepare_capture(ROOT / "demo" / "sync.yaml") == []
        assert systems.catalogue.execute(made) == [{"name": "sync_orchestrator"}]

    def test_the_sync_may_only_read_the_catalogue(self, systems: processes.Systems) -> None:
        url = systems.catalogue.reader_url.replace("postgresql+psycopg", "postgresql")
        with psycopg.connect(url, autocommit=True) as connection:
            assert connection.execute("SELECT count(*) FROM stones").fetchone() == (len(stones()),)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("UPDATE stones SET name = 'x'")

    def test_writes_return_the_time_that_is_their_version(self, systems: processes.Systems) -> None:
        stone = {**stones()[0], "sku": "D-900001"}
        times = []
        for statement in (
            catalogue.build_insert(stone),
            catalogue.build_update("D-900001", name="Lot 1", collection="new-collection"),
        ):
            [row] = systems.catalogue.execute(*statement)
            times.append(row["at"])
            assert systems.catalogue.read_rows()["D-900001"]["updated_at"] == row["at"]
        assert "new-collection" in systems.catalogue.list_collections()
        [row] = systems.catalogue.execute(*catalogue.build_delete("D-900001"))
        assert [*times, row["at"]] == sorted({*times, row["at"]})
        assert "D-900001" not in systems.catalogue.read_rows()

    def test_statements_of_the_command_line_are_run_in_the_catalogue(
        self,
        systems: processes.Systems,
        home: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("SYNC_HOME", str(home))
        key = stones()[1]["sku"]
        assert catalogue.main([f"UPDATE stones SET name = 'River stone' WHERE sku = '{key}'"]) == 0
        assert catalogue.main([f"SELECT sku, name FROM stones WHERE sku = '{key}'"]) == 0
        assert capsys.readouterr().out == f"{key}  River stone\n"
        monkeypatch.setenv("SYNC_HOME", str(home / "nothing"))
        assert catalogue.main(["SELECT 1"]) == 1
        assert "make up" in capsys.readouterr().err

    def test_the_catalogue_keeps_its_data_from_one_run_to_the_next(self) -> None:
        with tempfile.TemporaryDirectory(prefix="demo-", ignore_cleanup_errors=True) as folder:
            database = Path(folder) / "home" / "catalogue"
            for before in (1, 0):
                found = catalogue.start(database)
                try:
                    assert len(found.execute("DELETE FROM stones WHERE sku = 'D-000005' RETURNING sku")) == before
                    assert len(found.read_rows()) == len(stones()) - 1
                finally:
                    catalogue.stop(database)
            assert catalogue.find(database) is None

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
            [postmaster] = find_servers(starter.pid)
            starter.send_signal(number)
            status = starter.wait(30)
        assert status == (0 if number != signal.SIGKILL else -signal.SIGKILL)
        assert psutil.wait_procs([*family, postmaster], timeout=30)[1] == []


def find_servers(starter: int) -> list[psutil.Process]:
    """The servers of Postgres in the folder that a starter of the systems writes its logs to."""
    log = next(Path(file.path) for child in psutil.Process(starter).children() for file in child.open_files())
    folder = log.parent.parent / "catalogue"
    return [psutil.Process(int((folder / "postmaster.pid").read_text().split()[0]))]


class TestCaptured:
    """What the report says of captured changes, for ledgers that are right and wrong."""

    WRITES = (Write("a", 100), Write("b", 200), Write("a", 300, is_delete=True), Write("c", 400))
    RECORDED = (
        Recorded("a", False, 100, 1_100),
        Recorded("b", False, 200, 3_200),
        Recorded("a", True, 100, 3_300),
        Recorded("c", False, 400, 5_400),
    )

    def test_every_change_is_found(self) -> None:
        assert find_missing(self.WRITES, self.RECORDED) == []

    @pytest.mark.parametrize("number", range(4))
    def test_one_that_was_not_recorded_is_missing(self, number: int) -> None:
        recorded = [each for at, each in enumerate(self.RECORDED) if at != number]
        assert find_missing(self.WRITES, recorded) == ([] if number == 0 else [self.WRITES[number]])

    def test_changes_of_one_stone_that_came_together_are_one_event(self) -> None:
        writes = [Write("a", 100), Write("a", 200), Write("a", 300, is_delete=True), Write("a", 400)]
        assert find_missing(writes, [Recorded("a", False, 400, 500)]) == []
        assert find_missing(writes, [Recorded("a", False, 200, 500)]) == writes[2:]

    def test_lags_are_those_of_changes_while_a_reader_ran(self) -> None:
        assert measure_lags(self.RECORDED, self.WRITES, (0, 0)) == [1.0, 3.0, 5.0]
        assert measure_lags(self.RECORDED, self.WRITES, (150, 250)) == [1.0, 5.0]
