"""`init`: a start that is in order whatever is answered, or a refusal; it overwrites nothing by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator  # it has no types
from typer.testing import CliRunner, Result

from sync_orchestrator.cli import app
from sync_orchestrator.cli.starter.document import Answers, start_of
from sync_orchestrator.config import parse_config
from sync_orchestrator.config.schema import json_schema
from sync_orchestrator.errors import ConfigError

ANSWERS = Answers("product", "https://backoffice.example.com", "https://partner.example.com")
NEEDED = ("--entity", "product", "--source-url", ANSWERS.source_url, "--third-party-url", ANSWERS.third_party_url)

Init = Callable[..., Result]


@pytest.fixture
def init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Init:
    """Runs it in an empty folder; ``answered`` is what is typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SYNC_CONFIG", raising=False)
    return lambda *words, answered="": CliRunner().invoke(app, ["init", *words], input=answered)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ids": "ours"},
        {"groups_path": "/shops", "fields": ("name", "price")},
        {"key": "meta.sku", "group": "shop.id", "version": "meta.rev", "version_kind": "number"},
        {"key": "no", "group": "on", "version": "null", "fields": ("yes", '"odd name"')},
        {"source_path": "v1/products/", "third_party_path": "/api/a b", "source_items": "data.list[]"},
        {"source_url": "http://127.0.0.1:1/a?b=c#d", "source": "erp", "third_party": "erp"},
    ],
)
def test_every_start_is_in_order_also_for_editors(changes: dict[str, Any]) -> None:
    text = start_of(replace(ANSWERS, **changes))
    document = yaml.safe_load(text)
    assert parse_config(text, "sync.yaml").entities.keys() == {"product"}
    assert list(Draft202012Validator(json_schema()).iter_errors(document)) == []
    assert text.startswith("# yaml-language-server: $schema=sync.schema.json\n")
    assert max(map(len, text.splitlines())) <= 140


def test_lines_that_are_offered_as_comments_are_in_order_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SOURCE_TOKEN", "API_KEY", "SOURCE_PASSWORD", "MAIL_PASSWORD"):
        monkeypatch.setenv(name, "secret")
    lines = start_of(ANSWERS).splitlines()
    offered = [
        number
        for number, line in enumerate(lines)
        if line.lstrip().startswith("# ")
        and line.lstrip("# ").split(":")[0]
        in ("headers", "auth", "rate", "groups", "count", "validation", "retry", "alerts")
    ]
    assert len(offered) == 10
    for number in offered:
        lines[number] = lines[number].replace("# ", "", 1)
    config = parse_config("\n".join(lines), "sync.yaml")
    assert config.third_parties["partner"].rate == 10
    assert config.entities["product"].parts["backoffice"].count is not None


def test_our_key_does_not_take_the_place_of_their_id() -> None:
    target = parse_config(start_of(replace(ANSWERS, key="id")), "sync.yaml").entities["product"].third_party
    assert (target.key_field, target.id) == ("external_id", "id")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"entity": "Product"}, "--entity"),
        ({"source": "my source"}, "--source: "),
        ({"source_url": "backoffice.example.com"}, "sources.backoffice.base_url: should match"),
        ({"key": "a b"}, "parts.backoffice.key: not a JMESPath expression"),
        ({"fields": ("a b",)}, "mapping.a b: not a JMESPath expression"),
    ],
)
def test_an_answer_that_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        start_of(replace(ANSWERS, **changes))
    assert said in str(caught.value)


def test_it_asks_for_what_is_not_given(init: Init, tmp_path: Path) -> None:
    result = init(
        "--third-party-url",
        ANSWERS.third_party_url,
        "--fields",
        "name, price",
        answered=f"product\n{ANSWERS.source_url}\nsku\nrev\nstore\n",
    )
    assert result.exit_code == 0, result.output
    assert (
        start_of(replace(ANSWERS, key="sku", version="rev", group="store", fields=("name", "price")))
        == (tmp_path / "sync.yaml").read_text()
    )
    assert json.loads((tmp_path / "sync.schema.json").read_text()) == json_schema()
    assert "sync-orchestrator check --live" in result.stdout
    assert CliRunner().invoke(app, ["check"]).exit_code == 0


def test_it_asks_nothing_when_told_so(init: Init, tmp_path: Path) -> None:
    assert init("--yes", *NEEDED[:4]).stderr == "error: --third-party-url is needed with --yes\n"
    assert not (tmp_path / "sync.yaml").exists()
    assert init("--yes", *NEEDED).exit_code == 0


def test_it_overwrites_only_when_told_so(init: Init, tmp_path: Path) -> None:
    (tmp_path / "sync.yaml").write_text("mine")
    result = init("--yes", *NEEDED)
    assert (result.exit_code, "--force" in result.stderr) == (2, True)
    assert (tmp_path / "sync.yaml").read_text() == "mine"
    assert init("--yes", "--force", *NEEDED).exit_code == 0
    assert "product" in (tmp_path / "sync.yaml").read_text()


def test_a_wrong_answer_leaves_no_file(init: Init, tmp_path: Path) -> None:
    result = init("--yes", *NEEDED, "--version", "a b")
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "sync.yaml:" in result.stderr
