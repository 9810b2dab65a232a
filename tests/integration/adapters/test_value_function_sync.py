"""Functions over values in a drain, a validation and a listing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from http_server import Server
from record_store import THEIRS, HttpWorld, http_world
from sqlalchemy import Engine
from typer.testing import CliRunner
from value_examples import EXAMPLES, Odd, config_with, in_milliseconds, tokens

from sync_orchestrator import exact_json
from sync_orchestrator.cli import app
from sync_orchestrator.expressions import templates, times
from sync_orchestrator.expressions.selectors import compile_selector

DOCUMENT = exact_json.parse_text(next(token.content for token in tokens() if token.info == "json"))


@pytest.mark.parametrize(("expression", "template", "result"), EXAMPLES, ids=[row[0] for row in EXAMPLES])
def test_an_example_of_the_docs_gives_its_result_as_expression_and_as_filter(
    expression: str, template: str, result: str
) -> None:
    for found in (compile_selector(expression).search(DOCUMENT), templates.render_value(template, DOCUMENT)):
        assert exact_json.dump_text(found) == exact_json.dump_text(exact_json.parse_text(result))


def in_kathmandu(text: str) -> str:
    return str(times.written_as(times.moment_in(text), "iso", "Asia/Kathmandu"))


@pytest.mark.parametrize(
    ("codec", "names", "keep"),
    [
        pytest.param(
            {"kind": "time"}, ("2024-01-31T22:30:00Z", "2024-02-01T22:30:00Z"), in_milliseconds, id="milliseconds"
        ),
        pytest.param(
            {"normalize": ["time"]},
            ("2024-01-31T22:30:00Z", "2024-02-01T22:30:00Z"),
            in_kathmandu,
            id="zone, by normalize",
        ),
        pytest.param(
            {"kind": "time", "format": "date", "zone": "Europe/Berlin"},
            ("2024-01-31T23:30:00Z", "2024-02-03T01:00:00Z"),
            lambda day: f"{day}T00:00:00",
            id="date",
        ),
        pytest.param(
            {"kind": "time", "format": "epoch"},
            ("2024-01-31T23:30:00.7Z", "2024-02-03T01:00:00Z"),
            str,
            id="seconds as text",
        ),
        pytest.param(
            {"write": "{{ value | sort | join(';') }}", "read": "split(name, ';')"},
            (["b", "a"], ["c"]),
            lambda name: name,
            id="list in a text",
        ),
        pytest.param(
            {"normalize": [{"apply": "round_half_even(@, `2`)"}]},
            (2.675, 3.005),
            lambda price: compile_selector("round_half_even(@, `2`)").search(price),
            id="round half even",
        ),
        pytest.param(
            {"normalize": ["html_unescape", "nfc"]},
            ("Gro\u0308\u00dfe & mehr", "x"),
            lambda name: name.replace("o\u0308", "ö").replace("&", "&amp;"),
            id="html and NFC",
        ),
    ],
)
def test_a_value_that_a_third_party_keeps_in_its_own_way_is_no_drift(
    engine: Engine, server: Server, codec: Any, names: tuple[Any, Any], keep: Callable[[Any], Any]
) -> None:
    """Pushed, listed, read back: in sync. Another value put there by hand is drift, and is repaired."""
    store = type("Kept", (Odd,), {"keep": staticmethod(keep)})(server)
    world: HttpWorld = http_world(engine, server, {**THEIRS, "fields": {"name": codec}})
    for key, name in zip(("k1", "k2"), names, strict=True):
        world.put_record(key, name=name)
    world.run_drain()
    world.run_full_sync()
    assert len(store.bodies) == 2
    result = world.run_validation(full=True)
    assert (result.verdict, result.drift) == ("in_sync", [])
    before, store.items["x1"]["name"] = store.items["x1"]["name"], store.items["x2"]["name"]
    assert len(world.run_validation(full=True).drift) == 1
    world.run_drain()
    assert store.items["x1"]["name"] == before
    assert world.run_validation(full=True).verdict == "in_sync"
    world.close()


def test_check_names_the_constants_that_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server_url: str
) -> None:
    body = {"name": "{{ payload.name }}", "type": "consu"}
    config = config_with(create={"path": "/items", "body": body}).model_dump(mode="json", exclude_defaults=True)
    (tmp_path / "sync.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("SYNC_CONFIG", str(tmp_path / "sync.yaml"))
    monkeypatch.setenv("SYNC_DATABASE_URL", server_url)
    said = " ".join(CliRunner().invoke(app, ["check"]).stdout.split())
    assert (
        "note: entities.item.third_party.create.body: 'type' is sent, but not compared, as constants are. "
        "To compare 'type', map it (such as type: \"'X'\") and send {{ payload.type }}."
    ) in said
    assert len(json.loads(CliRunner().invoke(app, ["check", "--json"]).stdout)["notes"]) == 1
