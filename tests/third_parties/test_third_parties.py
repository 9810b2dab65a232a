"""Third parties that exist, by configuration alone: full sync, live changes, drift, and their sudden end."""

from __future__ import annotations

import json
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from conftest import GROUPS, Company
from servers import Datasette, ThirdPartyServer
from small_systems import Backoffice
from sqlalchemy import Engine
from typer.testing import CliRunner

from sync_orchestrator import composition
from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.cli import app as command
from sync_orchestrator.conformance import assert_conforms
from sync_orchestrator.errors import CallFailed, Failure


def test_the_check_finds_nothing_wrong(company: Company) -> None:
    company.fill(40)
    company.full_sync()
    result = CliRunner().invoke(command, ["check", "--live", "--json"])
    found = {(step["system"], step["what"]): step["outcome"] for step in json.loads(result.stdout)["steps"]}
    assert result.exit_code == 0, result.stdout
    tried = {what for (system, what), outcome in found.items() if system == company.system_name and outcome == "ok"}
    assert tried >= company.third_party.live_steps


async def test_it_conforms(third_party: ThirdPartyServer, backoffice: Backoffice) -> None:
    report = await assert_conforms(composition.load_config(), "product", other_group=GROUPS[1], odd_keys=True)
    skipped = {ending.behaviour for ending in report.endings if ending.outcome == "skipped"}
    assert skipped == third_party.skipped_behaviours
    assert third_party.records() == []


def test_a_full_sync_brings_all_groups_in_sync_and_a_second_one_writes_nothing(company: Company) -> None:
    company.fill(company.third_party.many)
    company.full_sync()
    company.check_clean()
    written = company.third_party.records()
    for report in company.full_sync():
        assert (report.calls, report.open) == (0, 0)
    assert company.third_party.records() == written


def test_live_changes(company: Company) -> None:
    company.fill(company.third_party.many)
    company.full_sync()
    keys = list(company.backoffice.products)
    for number, key in enumerate(keys[: company.third_party.many // 2]):
        match number % 4:
            case 0:
                company.put(key, name=f"new name {number}", price=0.1 + number, active=number % 3 == 0, stock=None)
            case 1:
                company.remove(key)
            case 2:
                company.put(key, shop=GROUPS[(number + 1) % len(GROUPS)])
            case 3:
                company.put(key, name=None, released=None, active=None)
    for number in range(60):
        company.put(f"new {number}", shop=GROUPS[number % len(GROUPS)])
    company.put(keys[0], name="once more")
    company.remove(keys[2])
    company.put(keys[1], name="here again")
    company.drain()
    company.check_clean()


def test_a_record_that_is_refused_spoils_no_other_and_is_done_when_it_is_fixed(company: Company) -> None:
    company.full_sync()
    company.fill(120, tell=True)
    company.put("p0050", price="on request")
    company.drain_to_the_end()
    assert company.states()["dead"] > 0
    assert {record["sku"] for record in company.held()} == company.backoffice.products.keys() - {"p0050"}
    company.put("p0050", price=12.5)
    company.drain_to_the_end()
    company.check_clean()


@pytest.mark.parametrize("running", ["datasette"], indirect=True)
def test_a_refusal_that_passes_is_none(company: Company) -> None:
    """A database that is locked is told by the status of what is refused for good."""
    assert isinstance(company.third_party, Datasette)
    company.full_sync()
    company.fill(30, tell=True)
    with company.third_party.locked():
        company.drain()
        assert company.held() == []
    assert "dead" not in company.states()
    company.drain_to_the_end()
    company.check_clean()


def test_drift_is_found_and_repaired(company: Company) -> None:
    """What others made under a key of ours that is there already is told of, and left to people; so are their own."""
    company.fill(120)
    company.full_sync()
    company.remove("p0100")
    company.drain()
    theirs = {record["sku"]: record for record in company.held()}
    server = company.third_party
    server.change("p0020", name="by hand", price=1.5)
    server.change('say "x"', active=True, released="1999-12-31")
    server.change("p0021", merchant=GROUPS[0])
    server.remove("ä漢🙂")
    server.add({**theirs["p0022"], "sku": "p0100"})
    left = {"nobody's": server.add({**theirs["p0023"], "sku": "nobody's"})}
    if company.entity.third_party.capabilities.assigns_ids and not server.keeps_keys_unique:
        left["p0024"] = server.add(theirs["p0024"])
    found = company.validate(full=True)
    kinds = {
        "p0020": "different",
        'say "x"': "different",
        "p0021": "different",
        "ä漢🙂": "missing",
        "p0100": "extra",
        "p0024": "duplicate",
        "nobody's": "unmanaged",
    }
    statuses = {drift.key: (drift.kind, drift.status) for each in found.values() for drift in each.drift}
    assert statuses == {
        key: (kind, "left" if key in left else "repairing")
        for key, kind in kinds.items()
        if kind != "duplicate" or key in left
    }
    company.drain()
    for key, its_id in left.items():
        server.remove(key, its_id)
    company.check_clean()


def test_a_server_that_is_killed_in_the_middle_ends_in_sync_and_without_duplicates(
    company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to one call is lost with it, others are under way; some find it gone before it is up again."""
    server = company.third_party
    up_again = threading.Thread(target=server.start)
    calls = 0

    async def killing(call: Awaitable[Any]) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            await call
            server.kill()
            raise CallFailed(Failure.TRANSIENT, "the connection ended before the answer", unknown=True)
        try:
            return await call
        except CallFailed:
            if up_again.ident is None:
                up_again.start()
            raise

    with_writes(monkeypatch, server, killing)
    company.full_sync()
    company.fill(company.third_party.many, tell=True)
    company.drain_to_the_end()
    up_again.join()
    company.check_clean()


def test_our_process_that_is_killed_with_calls_under_way_leaves_no_duplicates(company: Company) -> None:
    """A full sync and a drain are killed; what they had sent is carried out when nobody waits for the answer."""
    company.fill(company.third_party.many)
    company.kill_in_the_middle("full-sync", "product")
    company.put("p0100", name="changed after the kill")
    company.remove("p0101")
    company.drain_to_the_end()
    company.full_sync_when_free()
    company.check_clean()
    for number in range(company.third_party.many):
        company.put(f"late {number}", shop=GROUPS[number % len(GROUPS)], name=f"late {number}")
    company.kill_in_the_middle("drain")
    company.drain_to_the_end()
    company.check_clean()


def test_writes_that_land_after_we_gave_them_up_leave_no_duplicates(
    third_party: ThirdPartyServer, backoffice: Backoffice, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server stands still with calls under way, and goes on with them when they have timed out here."""
    company = Company(engine, third_party, backoffice, timeout=1.0, in_flight_window=2.0)
    calls, given_up = 0, 0

    async def standing_still(call: Awaitable[Any]) -> Any:
        nonlocal calls, given_up
        calls += 1
        if calls == 2:
            third_party.stand_still()
        try:
            return await call
        except CallFailed as failure:
            given_up += failure.unknown
            third_party.go_on()
            raise

    with_writes(monkeypatch, third_party, standing_still)
    company.full_sync()
    company.fill(company.third_party.many, tell=True)
    company.drain_to_the_end()
    assert given_up > 0
    company.check_clean()
    company.close()


def with_writes(
    monkeypatch: pytest.MonkeyPatch, server: ThirdPartyServer, way: Callable[[Awaitable[Any]], Awaitable[Any]]
) -> None:
    """Has calls that write records go that way."""
    exchange = HttpClient.exchange

    async def other(self: HttpClient, prepared: Any, *args: Any, **options: Any) -> Any:
        call = exchange(self, prepared, *args, **options)
        return await (way(call) if server.is_write(prepared) else call)

    monkeypatch.setattr(HttpClient, "exchange", other)
