"""The conformance test: a well-behaved server passes all of it, and each planted misbehaviour is told by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conformance_catalogue import SAMPLE, Catalogue, configuration, document, failed, skipped
from http_server import Server
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typer.testing import CliRunner

from sync_orchestrator.cli import app
from sync_orchestrator.config import Config
from sync_orchestrator.conformance import assert_conforms, run_conformance
from sync_orchestrator.conformance.report import Behaviour, ConformanceReport
from sync_orchestrator.conformance.source import SOURCE
from sync_orchestrator.conformance.third_party import THIRD_PARTY
from sync_orchestrator.errors import ConfigError


@pytest.fixture
def catalogue(server: Server) -> Catalogue:
    return Catalogue(server)


async def tried(server: Server, *, other_group: str | None = "B", **target: Any) -> ConformanceReport:
    return await run_conformance(
        configuration(server, **target), "thing", samples=[SAMPLE], other_group=other_group, odd_keys=True
    )


def dependent(report: ConformanceReport) -> dict[str, str]:
    """Behaviours that were skipped for a cause that another one names."""
    return {ending.behaviour: ending.because_of for ending in report.endings if ending.because_of}


async def test_a_well_behaved_server_passes_all_of_it_and_is_left_as_it_was(
    server: Server,
    catalogue: Catalogue,
) -> None:
    await catalogue_of_others(catalogue)
    before = dict(catalogue.items)
    report = await tried(server)
    assert failed(report) == set()
    assert skipped(report) == {"bulk-results-are-item-by-item"}
    assert catalogue.items == before
    assert len({key[:17] for key in catalogue.keys}) == 1, "all keys begin alike"


async def catalogue_of_others(catalogue: Catalogue) -> None:
    for number in range(3):
        catalogue.items[f"o{number}"] = {**SAMPLE, "id": f"o{number}", "code": f"other {number}"}


def drops(name: str) -> Callable[[Catalogue], None]:
    def plant(catalogue: Catalogue) -> None:
        catalogue.stored = lambda body: {key: value for key, value in body.items() if key != name}

    return plant


def stores(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Catalogue], None]:
    def plant(catalogue: Catalogue) -> None:
        catalogue.stored = lambda body: {**body, **change(body)}

    return plant


def sets(**faults: Any) -> Callable[[Catalogue], None]:
    def plant(catalogue: Catalogue) -> None:
        for name, value in faults.items():
            setattr(catalogue, name, value)

    return plant


@pytest.mark.parametrize(
    ("plant", "target", "named"),
    [
        (sets(ignores_filter=True), {}, {"groups-are-kept-apart"}),
        (sets(ignores_filter=True), {"filter_check": {"off": True}}, {"groups-are-kept-apart", "group-can-change"}),
        (sets(ignores_key=True), {}, {"lookup-finds-by-key"}),
        (drops("price"), {}, {"create-then-read", "update-then-read", "list-is-complete", "values-decimals"}),
        (sets(count_is_off=1), {}, {"count-agrees-with-list"}),
        (sets(repeats_creates=True), {}, {"repeated-create-makes-no-duplicate", "lost-answer-leads-to-no-duplicate"}),
        (sets(truncates=True), {}, {"list-has-more-than-one-page"}),
        (sets(deletes=False), {}, {"delete-then-gone", "missing-is-told", "clean-up"}),
        (
            lambda catalogue: setattr(catalogue, "list_items", lambda asked: JSONResponse({}, 400)),
            {},
            {"list-is-complete", "clean-up"},
        ),
        (sets(forbidden_status=400), {}, {"wrong-login-is-told"}),
        (sets(is_open=True), {}, {"wrong-login-is-told"}),
        (sets(updated=lambda old, new: old), {}, {"update-then-read", "back-to-older-values", "group-can-change"}),
        (sets(updated=lambda old, new: {**new, **old, "name": new["name"]}), {}, {"group-can-change"}),
        (stores(lambda body: {"name": (body["name"] or "").strip()}), {}, {"values-outer-spaces", "values-null"}),
        (
            stores(lambda body: {"name": (body["name"] or "").strip()}),
            {"fields": {"name": {"normalize": ["trim", "null_as_empty"]}}},
            set(),
        ),
        (stores(lambda body: {"name": body["name"] or None}), {}, {"values-empty-text"}),
        (stores(lambda body: {"name": body["name"] and body["name"][:255]}), {}, {"values-long-text"}),
        (
            stores(lambda body: {"name": body["name"] and body["name"].encode("ascii", "replace").decode()}),
            {},
            {"values-unicode"},
        ),
        (stores(lambda body: {"name": body["name"] and body["name"].replace("<", "&lt;")}), {}, {"values-markup"}),
        (stores(lambda body: {"price": round(body["price"], 1)}), {}, {"values-decimals"}),
        (stores(lambda body: {"stock": min(body["stock"], 2**31 - 1)}), {}, {"values-large-integers"}),
        (stores(lambda body: {"active": int(body["active"])}), {}, {"values-truth"}),
        (stores(lambda body: {"code": body["code"].replace("+", " ")}), {}, {"key-with-plus"}),
    ],
)
async def test_a_misbehaviour_is_told_by_name(
    server: Server,
    catalogue: Catalogue,
    plant: Callable[[Catalogue], None],
    target: dict[str, Any],
    named: set[str],
) -> None:
    plant(catalogue)
    await catalogue_of_others(catalogue)
    report = await tried(server, **target)
    assert named <= failed(report) | dependent(report).keys()
    assert set(dependent(report).values()) <= failed(report)
    for ending in report.endings:
        assert (ending.outcome != "failed") or (ending.came and ending.expected and ending.hint)


@pytest.fixture
def run(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The command, with the configuration of ``document``."""

    def run(*words: str, told: dict[str, Any] | None = None, answer: str = "") -> Any:
        (tmp_path / "sync.yaml").write_text(yaml.safe_dump(told or document(server)))
        (tmp_path / "sample.json").write_text(json.dumps(SAMPLE))
        monkeypatch.setenv("SYNC_CONFIG", str(tmp_path / "sync.yaml"))
        monkeypatch.chdir(tmp_path)
        return CliRunner().invoke(app, ["conformance", *words], input=answer)

    return run


def test_the_command_shows_each_behaviour_and_ends_well(run: Callable[..., Any], catalogue: Catalogue) -> None:
    result = run("catalogue", "--sample", "sample.json", "--yes")
    assert result.exit_code == 0, result.output
    shown = result.stdout.splitlines()
    assert any(line.split()[:2] == ["list-is-complete", "passed"] for line in shown)
    assert any(line.split()[:2] == ["group-can-change", "skipped"] and "--other-group" in line for line in shown)
    assert catalogue.items == {}


def test_the_command_says_what_failed_and_where_to_look(run: Callable[..., Any], catalogue: Catalogue) -> None:
    catalogue.count_is_off = 1
    result = run("catalogue", "--sample", "sample.json", "--yes", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert [ending for ending in found["behaviours"] if ending["outcome"] == "failed"] == [
        {
            "entity": "thing",
            "system": "catalogue",
            "behaviour": "count-agrees-with-list",
            "outcome": "failed",
            "came": "it counts 2",
            "expected": "1, which it lists",
            "hint": "see entities.thing.third_party.count",
            "because_of": "",
        }
    ]


def test_nothing_is_written_before_somebody_agreed(run: Callable[..., Any], catalogue: Catalogue) -> None:
    assert run("catalogue", "--sample", "sample.json", answer="n\n").exit_code == 1
    assert run("catalogue", "--sample", "sample.json").exit_code == 1
    assert not catalogue.keys
    assert run("catalogue", "--sample", "sample.json", answer="y\n").exit_code == 0
    assert catalogue.keys


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nobody"], "nothing is called 'nobody'; there is thing, catalogue, shop"),
        (["thing", "--skip", "nothing"], "there is no behaviour 'nothing'"),
        (["catalogue", "--sample", "none.json"], "none.json: [Errno 2]"),
        (["catalogue"], "no sample of thing can be read: answer 401"),
        (
            ["catalogue", "--sample", "sample.json", "--text", "title"],
            "the mapping has no field 'title'; it has active",
        ),
    ],
)
def test_what_cannot_be_tried_is_told_in_one_line(
    run: Callable[..., Any],
    catalogue: Catalogue,
    words: list[str],
    said: str,
) -> None:
    result = run(*words, "--yes", "--group", "A")
    assert result.exit_code == 2
    assert said in result.stderr


def test_samples_may_stand_in_the_configuration(run: Callable[..., Any], server: Server, catalogue: Catalogue) -> None:
    told = document(server)
    told["entities"]["thing"]["samples"] = [SAMPLE]
    assert run("catalogue", "--yes", told=told).exit_code == 0


async def test_for_tests_there_is_an_assertion(server: Server, catalogue: Catalogue) -> None:
    await assert_conforms(configuration(server), "thing", samples=[SAMPLE])
    catalogue.count_is_off = 1
    with pytest.raises(AssertionError, match="count-agrees-with-list: it counts 2; expected: 1, which it lists; see"):
        await assert_conforms(configuration(server), "thing", samples=[SAMPLE])
    await assert_conforms(configuration(server), "thing", samples=[SAMPLE], skip=["count-agrees-with-list"])


async def test_what_is_not_there_to_be_tried_is_skipped_and_says_why(server: Server, catalogue: Catalogue) -> None:
    bare = {"code": "k1", "store": "A", "name": None, "price": None, "stock": None, "active": None}
    report = await run_conformance(
        configuration(server, idempotency=None, lookup=None, count=None), "thing", samples=[bare]
    )
    assert failed(report) == set()
    assert {
        "update-then-read",
        "lookup-finds-by-key",
        "repeated-create-makes-no-duplicate",
        "lost-answer-leads-to-no-duplicate",
        "count-agrees-with-list",
        "values-unicode",
    } <= skipped(report)
    assert all(ending.came for ending in report.endings if ending.outcome == "skipped")


async def test_with_two_samples_an_update_writes_the_other_one(server: Server, catalogue: Catalogue) -> None:
    catalogue.updated = lambda old, new: {**old, **new, "stock": old["stock"]}
    other = {**SAMPLE, "code": "k2", "stock": 4}
    report = await run_conformance(configuration(server), "thing", samples=[SAMPLE, other])
    assert "stock: 3 came, 4 was written" in report.find_ending("update-then-read").came


def test_every_behaviour_has_a_name_of_its_own_and_says_what_it_is() -> None:
    behaviours: list[Behaviour[Any]] = [*THIRD_PARTY.all, *SOURCE.all]
    assert len({each.name for each in behaviours}) == len(behaviours)
    assert all(each.says.endswith(".") and each.says[0].isupper() for each in behaviours)


# One cause, one row ------------------------------------------------------------------------------------------------


def refuses(method: str, *paths: str, status: int = 422) -> Callable[[Server, Catalogue], None]:
    def plant(server: Server, catalogue: Catalogue) -> None:
        async def handle(request: Request) -> Response:
            if request.method == method and request.path_params["rest"].startswith(paths):
                return JSONResponse({"error": f"unknown field 'title' of {request.path_params['rest']}"}, status)
            return await catalogue.handle(request)

        server.handler = handle

    return plant


@pytest.mark.parametrize(
    ("plant", "named", "hint"),
    [
        (refuses("POST", "items"), "create-then-read", "see entities.thing.third_party.create"),
        (refuses("GET", "items/"), "create-then-read", "see entities.thing.third_party.read"),
        (refuses("PUT", "items/"), "update-then-read", "see entities.thing.third_party.update"),
        (refuses("DELETE", "items/"), "delete-then-gone", "see entities.thing.third_party.delete"),
        (refuses("GET", "count"), "count-agrees-with-list", "see entities.thing.third_party.count"),
    ],
)
async def test_a_cause_is_one_row_that_points_to_the_call_that_failed(
    server: Server,
    catalogue: Catalogue,
    plant: Callable[[Server, Catalogue], None],
    named: str,
    hint: str,
) -> None:
    plant(server, catalogue)
    report = await tried(server)
    others = failed(report) - {"clean-up", "list-is-complete"}  # a listing that fails is another call
    assert (others, report.find_ending(named).hint) == ({named}, hint)
    assert set(dependent(report).values()) <= failed(report)
    below = [ending.behaviour for ending in report.endings]
    for name, cause in dependent(report).items():
        between = below[below.index(cause) + 1 : below.index(name) + 1]
        assert all(dependent(report).get(each) == cause for each in between), f"{name} is below {cause}"
        assert report.find_ending(name).came.startswith(f"because of {cause}: ")


async def test_a_field_that_differs_is_named_once_with_the_setting_that_ends_it(
    server: Server,
    catalogue: Catalogue,
) -> None:
    stores(lambda body: {"price": f"{body['price']:.2f}"})(catalogue)
    report = await tried(server)
    assert failed(report) == {"create-then-read"}
    assert report.find_ending("create-then-read").hint == (
        "entities.thing.third_party: set fields.price: {kind: decimal_text}"
    )
    assert {"update-then-read", "list-is-complete", "values-decimals"} <= dependent(report).keys()


async def test_two_causes_are_two_rows(server: Server, catalogue: Catalogue) -> None:
    stores(lambda body: {"price": f"{body['price']:.2f}"})(catalogue)
    catalogue.count_is_off = 1
    assert failed(await tried(server)) == {"create-then-read", "count-agrees-with-list"}


async def test_a_refused_login_is_one_row_and_nothing_else_is_called(server: Server, catalogue: Catalogue) -> None:
    raw = document(server)
    raw["third_parties"]["catalogue"]["headers"] = {"X-Api-Key": "wrong"}
    report = await run_conformance(Config.model_validate(raw), "thing", samples=[SAMPLE])
    assert failed(report) == {"create-then-read"}
    assert report.find_ending("create-then-read").hint == (
        "see entities.thing.third_party.create; see 'headers' of third_parties.catalogue, and the secrets that they "
        "take from the environment"
    )
    assert set(dependent(report).values()) == {"create-then-read"}
    assert len(server.seen) <= 2


def test_what_depended_on_a_cause_is_shown_below_it(run: Callable[..., Any], catalogue: Catalogue) -> None:
    drops("price")(catalogue)
    lines = run("catalogue", "--sample", "sample.json", "--yes").stdout.splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("create-then-read"))
    assert lines[first + 1].startswith("└ update-then-read")
    assert "because of create-then-read: price: None came" in lines[first + 1]


async def test_odd_keys_are_sent_only_where_that_is_allowed(server: Server, catalogue: Catalogue) -> None:
    report = await run_conformance(configuration(server), "thing", samples=[SAMPLE], other_group="B")
    assert all(re.fullmatch(r"sync-test-[0-9]+-[0-9]+(nobody)?", key) for key in catalogue.keys)
    assert "--odd-keys" in report.find_ending("key-with-slash").came
    assert failed(report) == set()


async def test_groups_are_those_of_the_owner(server: Server, catalogue: Catalogue) -> None:
    raw = document(server)
    raw["entities"]["thing"]["parts"]["shop"]["groups"] = {"path": "/stores"}
    raw["entities"]["thing"]["mapping"].pop("store")

    async def handle(request: Request) -> Response:
        return JSONResponse(["B", "A"]) if request.path_params["rest"] == "stores" else await catalogue.handle(request)

    server.handler = handle
    sample = {name: value for name, value in SAMPLE.items() if name != "store"}
    report = await run_conformance(
        Config.model_validate(raw),
        "thing",
        samples=[sample],
        skip=set(THIRD_PARTY.names) - {"list-is-complete", "group-can-change"},
    )
    assert {query["store"] for _, path, query in server.seen if path == "/items" and "store" in query} >= {"A", "B"}
    assert "no business group" not in str(report)


async def test_nothing_is_called_whose_path_needs_a_group_that_nobody_knows(
    server: Server,
    catalogue: Catalogue,
) -> None:
    raw = document(server, create={"path": "/stores/{{ group | raw }}/items"})
    raw["entities"]["thing"]["mapping"].pop("store")
    sample = {name: value for name, value in SAMPLE.items() if name != "store"}
    with pytest.raises(ConfigError, match=r"no business group is known, and .*create needs {{ group }}: name one with"):
        await run_conformance(Config.model_validate(raw), "thing", samples=[sample])
    assert not server.seen


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        ([], "set third_parties.catalogue.outcomes"),
        ([{"when": "status == `418`", "means": "transient"}], "add to third_parties.catalogue.outcomes"),
    ],
)
async def test_a_hint_does_not_tell_to_set_what_is_set(
    server: Server,
    catalogue: Catalogue,
    outcomes: list[dict[str, Any]],
    said: str,
) -> None:
    catalogue.forbidden_status = 400
    raw = document(server)
    raw["third_parties"]["catalogue"]["outcomes"] = outcomes
    report = await run_conformance(
        Config.model_validate(raw), "thing", samples=[SAMPLE], skip=set(THIRD_PARTY.names) - {"wrong-login-is-told"}
    )
    assert report.find_ending("wrong-login-is-told").hint.startswith(said)


async def test_a_403_for_a_missing_record_is_one_row_that_names_the_rule(server: Server, catalogue: Catalogue) -> None:
    async def handler(request: Request) -> Response:
        response = await catalogue.handle(request)
        is_missing = request.method == "GET" and response.status_code == 404
        return JSONResponse({"error": "forbidden"}, 403) if is_missing else response

    server.handler = handler
    report = await tried(server)
    assert report.find_ending("create-then-read").outcome == "passed"
    assert len(failed(report)) == 1, failed(report)
    row = report.find_ending(*failed(report))
    assert "see entities.thing.third_party.read" in row.hint
    assert "add a rule to 'outcomes' of the call that means missing" in row.hint
    assert dependent(report)["missing-is-told"] == row.behaviour


async def test_an_update_of_nothing_that_succeeds_is_reported_in_words(server: Server, catalogue: Catalogue) -> None:
    async def handler(request: Request) -> Response:
        response = await catalogue.handle(request)
        if request.method == "PUT" and response.status_code == 404:
            return Response(status_code=204)
        return response

    server.handler = handler
    row = (await tried(server, create={"path": "/items", "record": "@"})).find_ending("missing-is-told")
    assert (row.outcome, row.came) == ("failed", "an update of a deleted record counts as a success")
    assert "entities.thing.third_party.update" in row.hint
    assert "means missing" in row.hint


async def test_a_field_that_names_another_record_is_left_out_of_changes(server: Server, catalogue: Catalogue) -> None:
    async def handler(request: Request) -> Response:
        if request.path_params["rest"] == "categories":
            title = request.query_params["title"]
            return JSONResponse([{"id": 7}] if title == "Lamps" else [])
        return await catalogue.handle(request)

    server.handler = handler
    raw = document(server)
    entity = raw["entities"]["thing"]
    entity["mapping"]["category"] = "shop.category"
    body = "{{ payload | plus(category_id=category_id) }}"
    entity["third_party"] |= {
        "references": {
            "category_id": {"path": "/categories", "params": {"title": "{{ payload.category }}"}, "record": "[0].id"}
        },
        "create": {"path": "/items", "body": body},
        "update": {"method": "PUT", "path": "/items/{{ id }}", "body": body},
    }
    report = await run_conformance(
        Config.model_validate(raw), "thing", samples=[{**SAMPLE, "category": "Lamps"}], other_group="B"
    )
    assert report.find_ending("update-then-read").outcome == "passed", report.find_ending("update-then-read").came
    assert failed(report) == set()
