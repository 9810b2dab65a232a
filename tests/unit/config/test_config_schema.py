"""The published JSON Schema: present, complete, and of one mind with what loading takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator  # it has no types
from paths import ROOT
from typer.testing import CliRunner

from sync_orchestrator.cli import app
from sync_orchestrator.config import bulk_calls, calls, document, entities, http_access, sources, targets
from sync_orchestrator.config.schema import json_schema
from sync_orchestrator.config.types import Model

DESCRIBED: set[type[Model]] = {
    model
    for module in (bulk_calls, calls, document, entities, http_access, sources, targets)
    for model in vars(module).values()
    if isinstance(model, type) and issubclass(model, Model) and model.__module__ == module.__name__
}
SAYS_IT_ALL = {
    "retention",
    "limits",
    "alerts",
    "validation",
    "source_check",
    "deletions",
    "sql",
    "files",
    "kind",
    "api",
    "ui",
}
"""Fields whose own model, or whose values, say what they are."""


def wrong(fragment: dict[str, Any]) -> list[str]:
    """What the schema says of the demo's configuration with some of it replaced."""
    whole = yaml.safe_load((ROOT / "demo" / "sync.yaml").read_text())
    return [error.json_path for error in Draft202012Validator(json_schema()).iter_errors({**whole, **fragment})]


def test_the_published_schema_is_what_the_models_say() -> None:
    """If not: ``sync-orchestrator schema > docs/sync.schema.json``."""
    printed = CliRunner().invoke(app, ["schema"]).stdout
    assert (ROOT / "docs" / "sync.schema.json").read_text() == printed
    Draft202012Validator.check_schema(json.loads(printed))


@pytest.mark.parametrize(
    "fragment",
    [
        {},
        {"retry": {"first_wait": "10s", "retries": "${RETRIES:-3}"}},
        {"retry": {"first_wait": 0.5, "max_wait": "${WAIT}"}},
        {"sources": {"lab": {"base_url": "${LAB_URL}", "headers": {"Authorization": "Bearer ${TOKEN}"}}}},
        {"sources": {"lab": {"kind": "sql", "url": "${URL}", "connections": "${N}"}}},
        {"third_parties": {"erp": {"base_url": "http://x", "auth": {"kind": "bearer", "token": "${TOKEN}"}}}},
        {"third_parties": {"erp": {"adapter": "my_company.erp:Erp", "settings": {"secret": "${SECRET}"}, "rate": 5}}},
        {"sources": {"lab": {"adapter": "my_company.lab:Lab", "settings": {"folder": "/x"}}}},
    ],
)
def test_what_can_be_written_is_allowed(fragment: dict[str, Any]) -> None:
    assert wrong(fragment) == []


@pytest.mark.parametrize(
    ("fragment", "place"),
    [
        ({"limitz": {}}, "$"),
        ({"retry": {"first_wait": "ten seconds"}}, "$.retry.first_wait"),
        ({"retry": {"retries": "three"}}, "$.retry.retries"),
        ({"sources": {"Lab": {"base_url": "http://x"}}}, "$.sources"),
        ({"sources": {"lab": {"base_url": "lab.example.org"}}}, "$.sources.lab"),
        ({"third_parties": {"erp": {"base_url": "http://x", "rate": -1}}}, "$.third_parties.erp.rate"),
        ({"third_parties": {"erp": {"rate": 1}}}, "$.third_parties.erp"),
        ({"third_parties": {"erp": {"adapter": "Erp"}}}, "$.third_parties.erp.adapter"),
    ],
)
def test_what_loading_would_refuse_is_marked(fragment: dict[str, Any], place: str) -> None:
    assert wrong(fragment) == [place]


def name_of(model: type[Model]) -> str:
    return model.__name__


MODELS: list[type[Model]] = sorted(DESCRIBED, key=name_of)


@pytest.mark.parametrize("model", MODELS)
def test_an_editor_can_say_what_a_field_is(model: type[Model]) -> None:
    assert model.__doc__
    assert {
        name
        for name in vars(model)["__annotations__"]
        if name in model.model_fields and not model.model_fields[name].description
    } <= SAYS_IT_ALL
