"""`check --live` against two small real systems: what works is shown, what does not is named with its hint."""

from __future__ import annotations

import json
import re
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
from sync_orchestrator.cli.starter.document import Answers, start_of
from sync_orchestrator.config import Config, ThirdPartySettings
from sync_orchestrator.conformance import run_conformance
from sync_orchestrator.conformance.field_forms import find_differences
from sync_orchestrator.conformance.hints import hint_for
from sync_orchestrator.conformance.live_check import check_live
from sync_orchestrator.conformance.third_party import THIRD_PARTY
from sync_orchestrator.core.ports import Found
from sync_orchestrator.errors import CallFailed, Failure

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
    two_servers[0].handler, two_servers[1].handler = backoffice, partner
    for server in two_servers:
        server.seen.clear()
    found: dict[str, Any] = yaml.safe_load(
        start_of(
            Answers(
                "product",
                two_servers[0].url,
                two_servers[1].url,
                key="sku",
                fields=("name", "price"),
                source_items="products",
                third_party_path="/items",
                third_party_items="data",
                groups_path="/shops",
            )
        )
    )
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
        return {
            f"{step['system']} {step['what']}": (step["outcome"], step["detail"], step["hint"])
            for step in found["steps"]
        }

    return steps


Steps = Callable[..., dict[str, tuple[str, str, str]]]


def test_all_that_works_is_told_and_a_record_is_shown_before_and_after(run: Callable[..., Any]) -> None:
    result = run()
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "ok      product      backoffice   groups   2: berlin, paris"
    assert lines[-1] == "8 ok, 0 failed, 5 skipped"
    before = next(line for line in lines if '"updated_at"' in line)
    assert "2025-11-21" in before
    assert any('"price": 100' in line and '"sku": "p1"' not in line for line in lines)


def test_each_step_has_its_outcome(steps: Steps, document: dict[str, Any], partner: Partner) -> None:
    partner.items["i1"] = {"id": "i1", "sku": "p1", "shop": "berlin", "name": "product 1", "price": 100}
    count = {"path": "/items", "params": {"shop": "{{ group }}"}, "number": "length(data)"}
    document["entities"]["product"]["third_party"]["count"] = count
    found = steps()
    assert {name: outcome for name, (outcome, _, _) in found.items()} == {
        "backoffice groups": "ok",
        "backoffice list": "ok",
        "backoffice pages": "ok",
        "backoffice read": "ok",
        "backoffice mapping": "ok",
        "backoffice missing": "ok",
        "backoffice count": "skipped",
        "partner list": "ok",
        "partner filter": "ok",
        "partner read": "ok",
        "partner lookup": "ok",
        "partner values": "ok",
        "partner count": "ok",
        "partner write": "skipped",
    }
    assert found["partner count"][1] == "1 records in 'berlin'"
    assert "entities.product.parts.backoffice.count" in found["backoffice count"][2]


@pytest.mark.parametrize(
    ("items", "outcome", "said"),
    [
        ("products[].{sku: sku, updated_at: updated_at}", "ok", "a page of 3 keys and versions of 'berlin'"),
        ("products[].{sku: sku}", "failed", "no version at 'updated_at'"),
    ],
)
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


@pytest.mark.parametrize(
    ("change", "step", "outcome", "detail", "hint"),
    [
        (
            _set("sources", "backoffice", "headers", to={}),
            "backoffice groups",
            "failed",
            "answer 401",
            "see entities.product.parts.backoffice.groups; see 'auth' and 'headers'",
        ),
        (
            _set("sources", "backoffice", "base_url", to="http://127.0.0.1:1"),
            "backoffice groups",
            "failed",
            "no connection",
            "see that it runs and that 'base_url' is right",
        ),
        (_set(*PART, "groups", to=None), "backoffice groups", "skipped", "it names no business group", "--group"),
        (
            _set(*PART, "list", "path", to="/nothing"),
            "backoffice list",
            "failed",
            "answer 404",
            "see entities.product.parts.backoffice.list",
        ),
        (
            _set(*PART, "list", "items", to="rows"),
            "backoffice list",
            "failed",
            "no list at 'rows'",
            "see entities.product.parts.backoffice.list",
        ),
        (
            _set(*PART, "version", "path", to="changed"),
            "backoffice list",
            "failed",
            "no version at 'changed'",
            "see entities.product.parts.backoffice: key, group and version",
        ),
        (
            _set(*PART, "read", "path", to="/nothing/{{ key }}"),
            "backoffice read",
            "failed",
            "lists p1, and has nothing",
            "see entities.product.parts.backoffice.read",
        ),
        (
            _set("entities", "product", "mapping", "name", to="abs(backoffice.name)"),
            "backoffice mapping",
            "failed",
            "mapping.name",
            "see entities.product.mapping",
        ),
        (
            _set("entities", "product", "mapping", "name", to="backoffice.nmae"),
            "backoffice mapping",
            "ok",
            "empty: name",
            "",
        ),
        (
            _set("third_parties", "partner", "headers", to={"X-Api-Key": "wrong"}),
            "partner list",
            "failed",
            "answer 401",
            "secrets that they take from the environment",
        ),
        (
            _set(*TARGET, "list", "items", to="rows"),
            "partner list",
            "failed",
            "no list at 'rows'",
            "see entities.product.third_party.list",
        ),
        (
            _set(*TARGET, "lookup", "path", to="/nothing"),
            "partner lookup",
            "failed",
            "answer 404",
            "see entities.product.third_party.lookup",
        ),
        (_set(*TARGET, "filter_check", to={"off": True}), "partner filter", "skipped", "off", "filter_check"),
    ],
)
def test_what_does_not_work_is_named_with_its_hint(
    steps: Steps,
    document: dict[str, Any],
    change: Callable[[dict[str, Any]], None],
    step: str,
    outcome: str,
    detail: str,
    hint: str,
) -> None:
    change(document)
    found = steps()[step]
    assert found[0] == outcome
    assert detail in found[1]
    assert hint in found[2]


def test_a_filter_that_is_ignored_is_found(steps: Steps, partner: Partner) -> None:
    partner.items["i1"] = {"id": "i1", "sku": "p1", "shop": "rome"}
    partner.ignores_filters = True
    found = steps()
    assert found["partner filter"][0] == "failed"
    assert "is ignored" in found["partner filter"][1]


def test_a_source_that_does_not_filter_by_group_is_told(steps: Steps, backoffice: Backoffice) -> None:
    assert "backoffice filter" not in steps()
    backoffice.ignores_filters = True
    outcome, detail, hint = steps()["backoffice filter"]
    assert (outcome, detail) == ("skipped", "4 of them belong to other groups: the list is not filtered")
    assert hint == "see entities.product.parts.backoffice.list: its params"


def test_a_failure_ends_only_what_depends_on_it(steps: Steps, document: dict[str, Any]) -> None:
    _set(*PART, "list", "path", to="/nothing")(document)
    found = steps("--group", "berlin")
    assert set(found) == {
        "backoffice groups",
        "backoffice list",
        "partner list",
        "partner filter",
        "partner values",
        "partner count",
        "partner write",
    }
    assert found["partner list"][0] == "ok"


@pytest.mark.parametrize(("password", "outcome"), [("right", "ok"), ("wrong", "failed")])
def test_a_login_is_tried_first(
    run: Callable[..., Any],
    document: dict[str, Any],
    two_servers: tuple[Server, Server],
    partner: Partner,
    monkeypatch: pytest.MonkeyPatch,
    password: str,
    outcome: str,
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
    system["auth"] = {
        "kind": "login",
        "headers": {"X-Api-Key": "{{ token }}"},
        "request": {"method": "POST", "path": "/login", "body": {"password": "${PARTNER_PASSWORD}"}},
    }
    result = run("--json")
    found = {f"{step['system']} {step['what']}": step for step in json.loads(result.stdout)["steps"]}
    assert found["partner login"]["outcome"] == outcome
    assert found["partner list"]["outcome"] == ("ok" if outcome == "ok" else "skipped")
    assert result.exit_code == (0 if outcome == "ok" else 1)
    if outcome == "failed":
        assert "third_parties.partner.auth" in found["partner login"]["hint"]


# As far as the real thing ------------------------------------------------------------------------------------------

ITEM = {"id": "i1", "sku": "p1", "shop": "berlin", "name": "product 1", "price": 100}


@pytest.mark.parametrize(
    ("number", "step", "hint"),
    [
        (0, "backoffice pages", "entities.product.parts.backoffice.list: its paging"),
        (1, "partner pages", "entities.product.third_party.list: its paging"),
    ],
)
def test_a_second_page_that_lacks_records_is_found_though_all_fits_into_one_page(
    steps: Steps,
    two_servers: tuple[Server, Server],
    partner: Partner,
    number: int,
    step: str,
    hint: str,
) -> None:
    partner.items |= {f"i{each}": {**ITEM, "id": f"i{each}", "sku": f"p{each}"} for each in (1, 3, 5)}
    handler = two_servers[number].handler

    async def ends_early(request: Request) -> Response:
        if int(request.query_params.get("page", "1")) > 1:
            return JSONResponse({"products": [], "data": []})
        return await handler(request)

    two_servers[number].handler = ends_early
    outcome, detail, hint = steps()[step]
    assert (outcome, hint in hint) == ("failed", True)
    assert detail == "in pages of 2, 1 of 3 records are not listed, such as p5"


def test_a_server_that_refuses_small_pages_leaves_the_second_page_untried(
    steps: Steps,
    two_servers: tuple[Server, Server],
    backoffice: Backoffice,
) -> None:
    async def large_pages_only(request: Request) -> Response:
        if int(request.query_params.get("limit", "100")) < 10:
            return JSONResponse({"error": "at least 10"}, 400)
        return await backoffice(request)

    two_servers[0].handler = large_pages_only
    assert steps()["backoffice pages"][:2] == (
        "skipped",
        'pages of 2 are refused, so the second page was not tried: answer 400: {"error":"at least 10"}',
    )


def test_a_page_of_each_kind_of_group_name_is_read_on_both_sides(
    steps: Steps,
    two_servers: tuple[Server, Server],
    backoffice: Backoffice,
    partner: Partner,
) -> None:
    backoffice.products |= {
        f"x{number}": {**backoffice.products["p1"], "sku": f"x{number}", "shop": shop}
        for number, shop in enumerate(("Köln", "hof", "o'brien & co", "o'hara"))
    }
    found = steps()
    assert "1 of 'o'brien & co'" in found["backoffice groups"][1]
    assert "hof" not in found["backoffice groups"][1]

    async def breaks_on_quotes(request: Request) -> Response:
        if "'" in request.query_params.get("shop", ""):
            return JSONResponse({"error": "syntax error at or near"}, 500)
        return await partner(request)

    two_servers[1].handler = breaks_on_quotes
    outcome, detail, hint = steps()["partner groups"]
    assert (outcome, detail.startswith("'o'brien & co': answer 500")) == ("failed", True)
    assert hint.startswith("see entities.product.third_party.list")


def test_a_group_that_the_owner_does_not_name_is_reported(steps: Steps, backoffice: Backoffice) -> None:
    outcome, detail, _ = steps("--group", "rome")["backoffice groups"]
    assert (outcome, detail) == ("failed", "'rome' is not among them: a full sync of all groups leaves it out")


FORMS: list[tuple[Any, Any, str, str, str]] = [
    (9.9, "9.90", "failed", 'price: 9.9 would be sent, "9.90" is there', "set fields.price: {kind: decimal_text}"),
    (43.38, "43.38", "failed", '"43.38" is there', "set fields.price: {kind: decimal_text}"),
    (0.125, "0.125", "failed", '"0.125" is there', "set fields.price: {kind: decimal_text, digits: 3}"),
    (43, "43", "failed", '"43" is there', "set fields.price: {kind: text}"),
    (9.9, 990, "failed", "price: 9.9 would be sent, 990 is there", "set fields.price: {kind: minor_units}"),
    (9.125, 9.13, "failed", "9.13 is there", "set fields.price: {normalize: [{round: 2}]}"),
    (True, 1, "failed", "price: true would be sent, 1 is there", "set fields.price: {kind: bool_number}"),
    (" A b ", "a b", "failed", '"a b" is there', "set fields.price: {normalize: [trim, lower]}"),
    ("Tisch", "tisch", "failed", '"tisch" is there', "set fields.price: {normalize: [lower]}"),
    ("a & b", "a &amp; b", "failed", "&amp;", "set fields.price: {normalize: [html_unescape]}"),
    ("", None, "failed", 'price: "" would be sent, null is there', "set fields.price: {normalize: [empty_as_null]}"),
    (["b", "a"], ["a", "b"], "failed", '["a","b"] is there', "set fields.price: {normalize: [sort_list]}"),
    ("2025-11-21T10:00:00Z", "2025-11-21T10:00:00.000Z", "failed", "10:00:00.000Z", "fields.price"),
    ("2025-11-21T10:00:00Z", "2025-11-21T11:00:00+01:00", "failed", "+01:00", "fields.price"),
    ("2025-11-21T10:00:00.123456Z", 1763719200, "failed", "1763719200 is there", "fields.price"),
    (5, {"amount": 5}, "failed", '{"amount":5} is there', "a number never equals an object"),
    (12, 13, "ok", "p1: a full sync would change price: 12 would be sent, 13 is there", ""),
    ("red", "blue", "ok", "a full sync would change price", ""),
    (12, None, "ok", "price: 12 would be sent, null is there", ""),
    (12, 12, "ok", "p1: as they would be sent, 4 fields each", ""),
]


@pytest.mark.parametrize(("ours", "theirs", "outcome", "said", "hint"), FORMS)
def test_two_forms_of_one_value_are_told_from_two_values(
    document: dict[str, Any],
    ours: Any,
    theirs: Any,
    outcome: str,
    said: str,
    hint: str,
) -> None:
    entity = Config.model_validate(document).entities["product"]
    record = Found("p1", "i1", "berlin", {**ITEM, "price": theirs})
    found = find_differences(entity, {**ITEM, "price": ours}, record)
    assert [each.never_matches for each in found] == ([] if repr(ours) == repr(theirs) else [outcome == "failed"])
    assert all(hint in each.hint for each in found)
    assert ours == theirs or said.rpartition("price: ")[2] in str(found[0]) or outcome == "ok"


@pytest.mark.parametrize(("ours", "theirs", "outcome", "said", "hint"), [FORMS[0], FORMS[12], *FORMS[-2:]])
def test_values_that_would_never_match_are_found_on_a_record_that_is_there(
    steps: Steps,
    backoffice: Backoffice,
    partner: Partner,
    ours: Any,
    theirs: Any,
    outcome: str,
    said: str,
    hint: str,
) -> None:
    backoffice.products["p1"]["price"] = ours
    partner.items["i1"] = {**ITEM, "price": theirs}
    found = steps()["partner values"]
    assert (found[0], said in found[1], hint in found[2]) == (outcome, True, True), found


def test_values_that_are_configured_already_match(
    steps: Steps,
    document: dict[str, Any],
    backoffice: Backoffice,
    partner: Partner,
) -> None:
    backoffice.products["p1"]["price"] = 9.9
    partner.items["i1"] = {**ITEM, "price": "9.90"}
    document["entities"]["product"]["third_party"]["fields"] = {"price": {"kind": "decimal_text"}}
    assert steps()["partner values"][0] == "ok"


def test_records_of_others_show_at_least_another_kind_of_value(steps: Steps, partner: Partner) -> None:
    partner.items["i1"] = {**ITEM, "sku": "theirs", "price": "9.90"}
    outcome, detail, hint = steps()["partner values"]
    assert (outcome, hint) == (
        "skipped",
        "see entities.product.third_party.fields, if these values do not mean the same",
    )
    assert detail == (
        "no record there is one of the sources'; of another form: price: a number such as 100 would be "
        'sent, the records there have a text such as "9.90"'
    )


def test_a_record_that_shows_less_by_its_id_than_in_the_list_is_found(
    steps: Steps,
    two_servers: tuple[Server, Server],
    partner: Partner,
) -> None:
    partner.items["i1"] = dict(ITEM)

    async def handler(request: Request) -> Response:
        if request.url.path == "/items/i1":
            return JSONResponse({key: value for key, value in ITEM.items() if key != "price"})
        return await partner(request)

    two_servers[1].handler = handler
    assert steps()["partner read"][:2] == ("failed", "p1 differs in the list and by its id in price")


def _lists_newer(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "updated_at": "2025-12-01T00:00:00Z"}


def _lists_otherwise(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "name": "listed"}


def _in_the_future(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "updated_at": "2999-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("listed", "step", "said"),
    [
        (_lists_newer, "backoffice read", "p1 is older by key than in the list"),
        (_lists_otherwise, "backoffice read", "p1 has other fields by key than in the list, of the same version: name"),
        (_in_the_future, "backoffice version", "the version of p1 is further in the future than max_ahead allows"),
    ],
)
def test_what_conformance_finds_at_a_source_is_found_here_too(
    steps: Steps,
    two_servers: tuple[Server, Server],
    backoffice: Backoffice,
    listed: Callable[[dict[str, Any]], dict[str, Any]],
    step: str,
    said: str,
) -> None:
    async def handler(request: Request) -> Response:
        response = await backoffice(request)
        if request.url.path != "/products":
            return response
        return JSONResponse({"products": [listed(each) for each in json.loads(bytes(response.body))["products"]]})

    two_servers[0].handler = handler
    outcome, detail, _ = steps()[step]
    assert (outcome, said in detail) == ("failed", True), detail


def test_a_key_that_nobody_has_must_bring_nothing(
    steps: Steps,
    two_servers: tuple[Server, Server],
    backoffice: Backoffice,
) -> None:
    async def handler(request: Request) -> Response:
        response = await backoffice(request)
        unknown = request.url.path.startswith("/products/") and response.status_code == 404
        return JSONResponse({"error": "bad key"}, 400) if unknown else response

    two_servers[0].handler = handler
    outcome, _, hint = steps()["backoffice missing"]
    assert (outcome, "means: missing" in hint) == ("failed", True)


def test_a_count_that_is_not_the_listing_fails(steps: Steps, document: dict[str, Any], partner: Partner) -> None:
    partner.items["i1"] = dict(ITEM)
    document["entities"]["product"]["third_party"]["count"] = {
        "path": "/items",
        "params": {"shop": "{{ group }}"},
        "number": "sum([length(data), length(data)])",
    }
    assert steps()["partner count"][:2] == ("failed", "it counts 2 records in 'berlin', and lists 1")


@pytest.mark.parametrize(("is_obeyed", "outcome"), [(True, "ok"), (False, "failed")])
def test_changes_are_asked_for_as_a_poll_does(
    steps: Steps,
    document: dict[str, Any],
    two_servers: tuple[Server, Server],
    backoffice: Backoffice,
    is_obeyed: bool,
    outcome: str,
) -> None:
    async def handler(request: Request) -> Response:
        if "since" not in request.query_params:
            return await backoffice(request)
        since = request.query_params["since"] if is_obeyed else "2999"
        return JSONResponse({"products": [each for each in backoffice.products.values() if each["updated_at"] > since]})

    two_servers[0].handler = handler
    document["entities"]["product"]["parts"]["backoffice"]["changes"] = {
        "path": "/products",
        "params": {"since": "{{ since }}"},
        "items": "products",
    }
    found = steps()["backoffice changes"]
    assert found[0] == outcome
    assert "p5" in found[1] or is_obeyed
    assert re.search(r"since \d{4}-\d\d-\d\dT[\d:.]+Z$", found[1]), "the version is shown as it is sent"


@pytest.mark.parametrize(("account", "said"), [({"path": "/me", "record": "name"}, 1), (None, 0)])
def test_the_account_is_shown_once_for_all_entities_and_not_where_none_is_configured(
    run: Callable[..., Any],
    document: dict[str, Any],
    two_servers: tuple[Server, Server],
    partner: Partner,
    account: dict[str, str] | None,
    said: int,
) -> None:
    async def handler(request: Request) -> Response:
        return JSONResponse({"name": "acme"}) if request.url.path == "/me" else await partner(request)

    two_servers[1].handler = handler
    document["third_parties"]["partner"]["account"] = account
    document["entities"]["offer"] = json.loads(json.dumps(document["entities"]["product"]))
    for name in ("product", "offer"):  # records of two kinds in one collection
        document["entities"][name]["third_party"]["list"].setdefault("params", {})["kind"] = name
    shown = [step for step in json.loads(run("--json").stdout)["steps"] if step["what"] == "account"]
    assert [step["detail"] for step in shown] == ["calls are made as account acme"] * said


def _referring(document: dict[str, Any], path: str = "/shops") -> None:
    document["entities"]["product"]["third_party"]["references"] = {
        "shop_id": {"path": path, "params": {"name": "{{ group }}"}, "record": "data[0].id"}
    }
    document["entities"]["product"]["third_party"]["create"]["body"] = "{{ payload | plus(shop_id=shop_id) }}"


def test_a_reference_that_another_entity_fills_first_is_waiting(
    steps: Steps,
    run: Callable[..., Any],
    document: dict[str, Any],
    two_servers: tuple[Server, Server],
    partner: Partner,
) -> None:
    shops: list[dict[str, str]] = []

    async def handler(request: Request) -> Response:
        return JSONResponse({"data": shops}) if request.url.path == "/shops" else await partner(request)

    two_servers[1].handler = handler
    _referring(document)
    outcome, detail, _ = steps()["partner fill in"]
    assert (outcome, detail.startswith("reference 'shop_id' is not there yet")) == ("failed", True), "nothing fills it"
    shop = json.loads(json.dumps(document["entities"]["product"]))
    shop["third_party"].update(references={}, create={"path": "/shops"})
    shop["third_party"]["list"]["path"] = "/shops"
    for call in ("update", "read", "delete"):
        shop["third_party"][call]["path"] = "/shops/{{ id }}"
    document["entities"]["shop"] = shop
    result = run("--json")
    [step] = [
        step for step in json.loads(result.stdout)["steps"] if (step["entity"], step["what"]) == ("product", "fill in")
    ]
    assert (step["outcome"], step["hint"]) == (
        "waiting",
        "run `sync-orchestrator full-sync shop` first, which makes it",
    )
    assert ", 1 waiting" in run().stdout.splitlines()[-1]
    del document["entities"]["shop"]
    shops.append({"id": "s1"})
    assert steps()["partner fill in"][:2] == ("ok", "POST /items; shop_id is s1")
    assert partner.writes == 0


@pytest.mark.parametrize("status", [400, 403, 404, 410, 422])
async def test_a_refusal_of_an_unknown_group_is_no_fault_here_nor_in_conformance(
    document: dict[str, Any],
    two_servers: tuple[Server, Server],
    partner: Partner,
    status: int,
) -> None:
    partner.items["i1"] = dict(ITEM)

    async def handler(request: Request) -> Response:
        if request.query_params.get("shop", "berlin") not in ("berlin", "paris"):
            return JSONResponse({"error": "no such shop"}, status)
        return await partner(request)

    two_servers[1].handler = handler
    document["third_parties"]["partner"]["search_lag"] = 0
    config = Config.model_validate(document)
    live = await check_live(config)
    assert next(step for step in live.steps if step.what == "filter").outcome == "ok"
    report = await run_conformance(
        config, "product", skip=[name for name in THIRD_PARTY.names if name != "groups-are-kept-apart"]
    )
    assert report.find_ending("groups-are-kept-apart").outcome == "passed", report.find_ending(
        "groups-are-kept-apart"
    ).came


@pytest.mark.parametrize(
    ("failure", "settings", "said"),
    [
        (CallFailed(Failure.THROTTLED, "slow down"), {}, "set third_parties.partner.rate"),
        (
            CallFailed(Failure.THROTTLED, "slow down"),
            {"rate": 5},
            "lower third_parties.partner.rate, which is 5 calls a",
        ),
        (CallFailed(Failure.TRANSIENT, "no answer within 10 s"), {}, "third_parties.partner.timeout, which is 10 s"),
        (
            CallFailed(Failure.AUTH, "answer 401", status=401),
            {"headers": {"X-Api-Key": "k"}},
            "see 'headers' of third_parties.partner",
        ),
        (CallFailed(Failure.AUTH, "answer 401", status=401), {}, "neither of which is set"),
    ],
)
def test_a_hint_names_a_setting_and_its_present_value(failure: CallFailed, settings: dict[str, Any], said: str) -> None:
    system = ThirdPartySettings(base_url="http://127.0.0.1:1", **settings)
    assert said in hint_for(failure, "third_parties.partner", system)


def test_a_readable_response_of_another_shape_is_not_taken_for_a_wrong_address(
    steps: Steps,
    document: dict[str, Any],
) -> None:
    document["entities"]["product"]["third_party"]["list"]["items"] = "rows"
    document["entities"]["product"]["third_party"]["count"] = {
        "path": "/items",
        "params": {"shop": "{{ group }}"},
        "number": "n",
    }
    found = steps()
    for step, said in (("partner list", "no list at 'rows'"), ("partner count", "no number at 'n'")):
        assert said in found[step][1]
        assert found[step][2] == f"see entities.product.third_party.{step.split()[1]}"
    assert "partner values" not in found, "the listing says why nothing is compared"


@pytest.mark.parametrize(
    ("about_one_record", "status", "is_named"), [(True, 403, True), (True, 401, False), (False, 403, False)]
)
def test_a_403_for_one_record_may_mean_that_it_is_missing(about_one_record: bool, status: int, is_named: bool) -> None:
    hint = hint_for(
        CallFailed(Failure.AUTH, f"answer {status}", status=status),
        "third_parties.partner",
        ThirdPartySettings(base_url="http://127.0.0.1:1"),
        about_one_record=about_one_record,
    )
    assert ("add a rule to 'outcomes' of the call that means missing" in hint) == is_named
