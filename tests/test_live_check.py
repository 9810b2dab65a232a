"""`check --live` against two small real systems: what works is shown, what does not is named with its mend."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from http_server import Server
from small_systems import Backoffice, Partner, products
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typer.testing import CliRunner

from sync_orchestrator.cli import app
from sync_orchestrator.starter import Answers, start_of

Try = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def two_servers() -> Iterator[tuple[Server, Server]]:
    servers = Server(), Server()
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture
def partner() -> Partner:
    return Partner()


@pytest.fixture
def backoffice() -> Backoffice:
    return Backoffice(products())


@pytest.fixture
def document(two_servers: tuple[Server, Server], backoffice: Backoffice, partner: Partner) -> dict[str, Any]:
    """A configuration of the two, to be changed."""
    for server, handler in zip(two_servers, (backoffice, partner), strict=True):
        server.handler = handler
        server.seen.clear()
    found: dict[str, Any] = yaml.safe_load(start_of(Answers(
        "product", *(server.url for server in two_servers), key="sku", fields=("name", "price"),
        source_items="products", third_party_path="/items", third_party_items="data", groups_path="/shops")))
    found["sources"]["backoffice"].update(headers={"Authorization": "Bearer source-secret"}, timeout=1)
    found["third_parties"]["partner"].update(headers={"X-Api-Key": "partner-secret"}, timeout=1)
    return found


@pytest.fixture
def run(document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def run(*words: str) -> Any:
        (tmp_path / "sync.yaml").write_text(yaml.safe_dump(document))
        monkeypatch.setenv("SYNC_CONFIG", str(tmp_path / "sync.yaml"))
        monkeypatch.setenv("SYNC_HOME", str(tmp_path / "home"))
        result = CliRunner().invoke(app, ["check", "--live", *words])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert not (tmp_path / "home").exists(), "it needs no database"
        return result

    return run


@pytest.fixture
def steps(run: Callable[..., Any], partner: Partner) -> Callable[..., dict[str, tuple[str, str, str]]]:
    """What each step came to, by system and step."""

    def steps(*words: str) -> dict[str, tuple[str, str, str]]:
        result = run("--json", *words)
        found = json.loads(result.stdout)
        assert found["ok"] == (result.exit_code == 0) == all(step["outcome"] != "failed" for step in found["steps"])
        assert partner.writes == 0
        return {f"{step['system']} {step['what']}": (step["outcome"], step["detail"], step["mend"])
                for step in found["steps"]}

    return steps


Steps = Callable[..., dict[str, tuple[str, str, str]]]


def test_all_that_works_is_told_and_a_record_is_shown_before_and_after(run: Callable[..., Any]) -> None:
    result = run()
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "ok      product      backoffice   groups   2: berlin, paris"
    assert lines[-1] == "6 ok, 0 failed, 4 skipped"
    before = next(line for line in lines if '"updated_at"' in line)
    assert "2025-11-21" in before
    assert any('"price": 100' in line and '"sku": "p1"' not in line for line in lines)


def test_each_step_has_its_outcome(steps: Steps, document: dict[str, Any], partner: Partner) -> None:
    partner.items["i1"] = {"id": "i1", "sku": "p1", "shop": "berlin", "name": "product 1", "price": 100}
    count = {"path": "/items", "params": {"shop": "{{ group }}"}, "number": "length(data)"}
    document["entities"]["product"]["third_party"]["count"] = count
    found = steps()
    assert {name: outcome for name, (outcome, _, _) in found.items()} == {
        "backoffice groups": "ok", "backoffice list": "ok", "backoffice read": "ok", "backoffice mapping": "ok",
        "backoffice count": "skipped", "partner list": "ok", "partner filter": "ok", "partner lookup": "ok",
        "partner count": "ok", "partner write": "skipped"}
    assert found["partner count"][1] == "1 records in 'berlin'"
    assert "entities.product.parts.backoffice.count" in found["backoffice count"][2]


@pytest.mark.parametrize(("items", "outcome", "said"), [
    ("products[].{sku: sku, updated_at: updated_at}", "ok", "a page of 3 keys and versions of 'berlin'"),
    ("products[].{sku: sku}", "failed", "no version at 'updated_at'"),
])
def test_a_listing_of_keys_is_tried_where_there_is_one(
    steps: Steps, document: dict[str, Any], items: str, outcome: str, said: str
) -> None:
    part = document["entities"]["product"]["parts"]["backoffice"]
    part["keys"] = {**part["list"], "items": items}
    found = steps()["backoffice keys"]
    assert (found[0], said in found[1]) == (outcome, True)


def test_a_group_can_be_named(steps: Steps) -> None:
    assert steps("--group", "paris")["backoffice list"][1] == "a page of 4 records of 'paris', the first is p0"


def _set(*place: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        node = document
        for name in place[:-1]:
            node = node[name]
        node[place[-1]] = to

    return change


PART = ("entities", "product", "parts", "backoffice")
TARGET = ("entities", "product", "third_party")


@pytest.mark.parametrize(("change", "step", "outcome", "detail", "mend"), [
    (_set("sources", "backoffice", "headers", to={}), "backoffice groups", "failed", "answer 401",
     "see entities.product.parts.backoffice.groups; see 'auth' and 'headers'"),
    (_set("sources", "backoffice", "base_url", to="http://127.0.0.1:1"), "backoffice groups", "failed",
     "no connection", "see that it runs and that 'base_url' is right"),
    (_set(*PART, "groups", to=None), "backoffice groups", "skipped", "it names no business group", "--group"),
    (_set(*PART, "list", "path", to="/nothing"), "backoffice list", "failed", "answer 404",
     "see entities.product.parts.backoffice.list"),
    (_set(*PART, "list", "items", to="rows"), "backoffice list", "failed", "no list at 'rows'",
     "see entities.product.parts.backoffice.list"),
    (_set(*PART, "version", "path", to="changed"), "backoffice list", "failed", "no version at 'changed'",
     "see entities.product.parts.backoffice: key, group and version"),
    (_set(*PART, "read", "path", to="/nothing/{{ key }}"), "backoffice read", "failed", "lists p1, and has nothing",
     "see entities.product.parts.backoffice.read"),
    (_set("entities", "product", "mapping", "name", to="abs(backoffice.name)"), "backoffice mapping", "failed",
     "mapping.name", "see entities.product.mapping"),
    (_set("entities", "product", "mapping", "name", to="backoffice.nmae"), "backoffice mapping", "ok", "empty: name",
     ""),
    (_set("third_parties", "partner", "headers", to={"X-Api-Key": "wrong"}), "partner list", "failed", "answer 401",
     "secrets that they take from the environment"),
    (_set(*TARGET, "list", "items", to="rows"), "partner list", "failed", "no list at 'rows'",
     "see entities.product.third_party.list"),
    (_set(*TARGET, "lookup", "path", to="/nothing"), "partner lookup", "failed", "answer 404",
     "see entities.product.third_party.lookup"),
    (_set(*TARGET, "filter_check", to={"off": True}), "partner filter", "skipped", "off", "filter_check"),
])
def test_what_does_not_work_is_named_with_its_mend(
    steps: Steps, document: dict[str, Any], change: Callable[[dict[str, Any]], None], step: str, outcome: str,
    detail: str, mend: str,
) -> None:
    change(document)
    found = steps()[step]
    assert found[0] == outcome
    assert detail in found[1]
    assert mend in found[2]


def test_a_filter_that_is_ignored_is_found(steps: Steps, partner: Partner) -> None:
    partner.items["i1"] = {"id": "i1", "sku": "p1", "shop": "rome"}
    partner.ignores_filters = True
    found = steps()
    assert found["partner filter"][0] == "failed"
    assert "is ignored" in found["partner filter"][1]


def test_a_source_that_does_not_filter_by_group_is_told(steps: Steps, backoffice: Backoffice) -> None:
    assert "backoffice filter" not in steps()
    backoffice.ignores_filters = True
    outcome, detail, mend = steps()["backoffice filter"]
    assert (outcome, detail) == ("skipped", "4 of them belong to other groups: the list is not filtered")
    assert mend == "see entities.product.parts.backoffice.list: its params"


def test_a_failure_ends_only_what_depends_on_it(steps: Steps, document: dict[str, Any]) -> None:
    _set(*PART, "list", "path", to="/nothing")(document)
    found = steps("--group", "berlin")
    assert set(found) == {"backoffice list", "partner list", "partner filter", "partner count", "partner write"}
    assert found["partner list"][0] == "ok"


@pytest.mark.parametrize(("password", "outcome"), [("right", "ok"), ("wrong", "failed")])
def test_a_login_is_tried_first(
    run: Callable[..., Any], document: dict[str, Any], two_servers: tuple[Server, Server], partner: Partner,
    monkeypatch: pytest.MonkeyPatch, password: str, outcome: str,
) -> None:
    async def handler(request: Request) -> Response:
        if request.url.path == "/login":
            right = (await request.json())["password"] == "right"
            return JSONResponse({"token": "partner-secret"} if right else {"error": "no"}, 200 if right else 403)
        return await partner(request)

    two_servers[1].handler = handler
    monkeypatch.setenv("PARTNER_PASSWORD", password)
    system = document["third_parties"]["partner"]
    system.pop("headers")
    system["auth"] = {"kind": "login", "headers": {"X-Api-Key": "{{ token }}"}, "request": {
        "method": "POST", "path": "/login", "body": {"password": "${PARTNER_PASSWORD}"}}}
    result = run("--json")
    found = {f"{step['system']} {step['what']}": step for step in json.loads(result.stdout)["steps"]}
    assert found["partner login"]["outcome"] == outcome
    assert found["partner list"]["outcome"] == ("ok" if outcome == "ok" else "skipped")
    assert result.exit_code == (0 if outcome == "ok" else 1)
    if outcome == "failed":
        assert "third_parties.partner.auth" in found["partner login"]["mend"]
