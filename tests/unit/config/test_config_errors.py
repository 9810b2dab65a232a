"""A wrong `sync.yaml` is told of with file, line, field and hint, all of it at once, and never with a secret."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import two_part_config

from sync_orchestrator.config import Config, load
from sync_orchestrator.errors import ConfigError
from sync_orchestrator.expressions import templates

Complaints = Callable[..., list[str]]

SECRET = "se{{cret}} {% of {# mine"


@pytest.fixture
def complaints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Complaints:
    """What is said of a text, line by line."""
    monkeypatch.chdir(tmp_path)

    def complain(text: str) -> list[str]:
        (tmp_path / "sync.yaml").write_text(text)
        with pytest.raises(ConfigError) as caught:
            load(tmp_path / "sync.yaml")
        assert SECRET not in str(caught.value)
        return str(caught.value).splitlines()

    return complain


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], Config]:
    def loaded(document: dict[str, Any]) -> Config:
        (tmp_path / "sync.yaml").write_text(yaml.safe_dump(document))
        return load(tmp_path / "sync.yaml")

    return loaded


def good() -> dict[str, Any]:
    """A document that is in order."""
    return copy.deepcopy(two_part_config().model_dump(mode="json", exclude_defaults=True))


WRONG = """\
sources:
  shop:
    base_url: ftp://shop
    heders: {A: b}
  db: {kind: sql, url: sqlite://, conections: 4}
  Bad-Name: {base_url: "http://x"}
third_parties:
  erp:
    base_url: http://erp
    auth:
      kind: login
      request: {method: POST, path: /login, body: {user: "{{ nobody }}"}}
    timeout: 10 parsecs
entities:
  item:
    owner: shop
    parts:
      shop:
        key: "a b"
        list: {path: /x, paging: page}
        version: {pth: v}
    mapping: [1]
    third_party:
      system: erp
      key_field: code
      update: {path: "/{{ id }}"}
      upsrt: update
alerts: [x]
retry: {retries: many}
retry: {retries: 3}
limitz: {}
"""


def test_all_that_is_wrong_is_told_at_once_with_line_field_and_hint(complaints: Complaints) -> None:
    assert complaints(WRONG) == [
        "sync.yaml:3: sources.shop.base_url: should match pattern '^https?://'",
        "sync.yaml:4: sources.shop.heders: there is no such field; did you mean 'headers'?",
        "sync.yaml:5: sources.db.conections: there is no such field; did you mean 'connections'?",
        "sync.yaml:6: sources.Bad-Name: the name should match pattern '^[a-z][a-z0-9_]*$'",
        "sync.yaml:12: third_parties.erp.auth.request: nothing fills in 'nobody'; known here: refresh, token",
        "sync.yaml:13: third_parties.erp.timeout: write a number of seconds, or a number with ms, s, m, h or d, "
        "such as 10s",
        "sync.yaml:19: entities.item.parts.shop.key: not a JMESPath expression: Unexpected token: b: Parse error at "
        'column 2, token "b" (UNQUOTED_IDENTIFIER), for expression:',
        "sync.yaml:20: entities.item.parts.shop.list.paging: paging 'page' needs {{ page }} in path, params, headers "
        "or body",
        "sync.yaml:21: entities.item.parts.shop.version.path: is needed",
        "sync.yaml:21: entities.item.parts.shop.version.pth: there is no such field; did you mean 'path'?",
        "sync.yaml:22: entities.item.mapping: must be a section, with names below it",
        "sync.yaml:27: entities.item.third_party.upsrt: there is no such field; did you mean 'upsert'?",
        "sync.yaml:28: alerts: must be a section, with fields below it",
        "sync.yaml:30: retry: is written twice; the first is on line 29",
        "sync.yaml:31: limitz: there is no such field; did you mean 'limits'?",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda item: item.update(owner="nobody"),
            "entities.item.owner: owner 'nobody' is none of the parts: shop, stock",
        ),
        (lambda item: item["parts"]["shop"].pop("group"), "entities.item.parts.shop: parts.shop.group is needed"),
        (lambda item: item["mapping"].pop("code"), "entities.item.mapping: mapping has no 'code'"),
        (
            lambda item: item["third_party"].update(fields={"nothing": {}}),
            "entities.item.third_party.fields.nothing: the mapping has no such field",
        ),
        (
            lambda item: item["parts"].update(none=item["parts"]["stock"]),
            "entities.item.parts.none: there is no source system of that name",
        ),
        (
            lambda item: item["third_party"].update(system="nobody"),
            "entities.item.third_party.system: no third party 'nobody'",
        ),
        (
            lambda item: item["parts"]["shop"]["list"].update(path="/{{ gruop }}"),
            "entities.item.parts.shop.list: nothing fills in 'gruop'",
        ),
        (lambda item: item["parts"]["shop"].pop("list"), "entities.item.parts.shop: 'list' is needed"),
    ],
)
def test_what_does_not_fit_is_told_where_it_stands(
    complaints: Complaints, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    document = good()
    change(document["entities"]["item"])
    [line] = complaints(yaml.safe_dump(document))
    assert said in line
    field = said.split(":")[0].rsplit(".", 1)[-1]
    number = int(line.split(":")[1])
    assert field in (*yaml.safe_dump(document).splitlines()[number - 1].split(":")[0].split(),)


def test_sections_that_do_not_fit_each_other_are_all_told(complaints: Complaints) -> None:
    document = good()
    document["entities"]["item"]["third_party"]["system"] = "nobody"
    document["third_parties"]["erp"]["timeout"] = 3600
    said = complaints(yaml.safe_dump(document))
    assert [line.split(": ")[1] for line in said] == ["entities.item.third_party.system", "third_parties.erp.timeout"]


def test_what_an_anchor_brings_in_is_told_where_it_was_written(complaints: Complaints) -> None:
    text = "common: &c {base_url: 3}\nsources:\n  a:\n    <<: *c\n"
    assert "sync.yaml:1: sources.a.base_url: must be a text; put it in quotes" in complaints(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "sync.yaml:1: not YAML: "),
        ("- a", "sync.yaml: expected sources, third_parties and entities at the top."),
        ("", "sync.yaml: expected sources"),
        ("{}", "sync.yaml:1: entities: is needed"),
    ],
)
def test_what_is_no_configuration_at_all(complaints: Complaints, text: str, said: str) -> None:
    assert complaints(text)[0].startswith(said)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sync-orchestrator init"):
        load(tmp_path / "nothing.yaml")
    (tmp_path / "sync.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load(tmp_path / "sync.yaml")


# Secrets ------------------------------------------------------------------------------------------------------------


def test_a_variable_that_is_not_set_is_named_with_line_field_and_hint(
    complaints: Complaints, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ERP_URL", "ERP_KEY"):
        monkeypatch.delenv(name, raising=False)
    document = good()
    document["third_parties"]["erp"].update(base_url="${ERP_URL}", headers={"X-Key": "${ERP_KEY}"}, concurrency=0)
    lines = [line.split(": ", 1)[1] for line in complaints(yaml.safe_dump(document))]
    assert lines == [
        "third_parties.erp.base_url: the environment has no ERP_URL; set it, or write ${ERP_URL:-default}",
        "third_parties.erp.concurrency: should be greater than or equal to 1",
        "third_parties.erp.headers.X-Key: the environment has no ERP_KEY; set it, or write ${ERP_KEY:-default}",
    ]


LOGIN = {"kind": "login", "request": {"method": "POST", "path": "/login", "body": {"password": "${CANARY}"}}}


def test_a_secret_that_looks_like_a_template_is_none(
    loaded: Callable[[dict[str, Any]], Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY", SECRET)
    document = good()
    document["third_parties"]["erp"].update(auth=LOGIN, headers={"X-Key": "${CANARY}"})
    document["entities"]["item"]["parts"]["shop"]["read"] = {
        "path": "/{{ key }}",
        "params": {"token": "Bearer ${CANARY}", "other": "${NONE:-plain}"},
    }
    config = loaded(document)
    erp = config.third_parties["erp"]
    assert erp.headers == {"X-Key": SECRET}
    assert templates.render_value(erp.auth.request.body, {}) == {"password": SECRET}  # type: ignore[union-attr]
    read = config.entities["item"].parts["shop"].read
    assert read is not None
    assert templates.render_text(read.params["token"], {}) == f"Bearer {SECRET}"
    assert templates.render_text(read.params["other"], {}) == "plain"
    assert "cret" not in repr(config)


def test_a_path_can_begin_in_the_environment(
    loaded: Callable[[dict[str, Any]], Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFIX", "/v2/api")
    document = good()
    document["entities"]["item"]["parts"]["shop"]["read"] = {"path": "${PREFIX}/{{ key }}"}
    read = loaded(document).entities["item"].parts["shop"].read
    assert read is not None
    assert templates.render_path(read.path, {"key": "a b"}) == "/v2/api/a%20b"


def test_a_template_that_fails_names_its_variables_not_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", SECRET)
    with pytest.raises(templates.TemplateFailed) as caught:
        templates.render_text("{{ 'CANARY' | environment }}{{ nothing }}", {})
    assert "cret" not in str(caught.value)
    monkeypatch.delenv("CANARY")
    with pytest.raises(templates.TemplateFailed, match="the environment has no CANARY"):
        templates.render_text("{{ 'CANARY' | environment }}", {})


@pytest.mark.parametrize(
    "change",
    [
        {"sources": {"db": {"kind": "sql", "url": ["${CANARY}"]}}},
        {"sources": {"db": {"kind": "${CANARY}", "url": "${CANARY}"}}},
        {"third_parties": {"erp": {"base_url": "${CANARY}"}}},
        {"third_parties": {"erp": {"base_url": "http://x", "headers": {"X": "${CANARY}\n"}}}},
        {"third_parties": {"erp": {"base_url": "http://x", "auth": {"kind": "bearer", "token": "${CANARY}"}}}},
        {"third_parties": {"erp": {"base_url": "http://x", "timeout": "${CANARY}"}}},
        {
            "third_parties": {
                "erp": {
                    "base_url": "http://x",
                    "auth": {"kind": "login", "request": {"path": "/", "body": "${CANARY}{{"}},
                }
            }
        },
        {
            "third_parties": {
                "erp": {
                    "base_url": "http://x",
                    "auth": {"kind": "login", "request": {"path": "/", "params": {"x": "${CANARY} {key}"}}},
                }
            }
        },
        {"entities": {"item": {"mapping": {"x": "${CANARY}"}}}},
        {"alerts": {"urls": "${CANARY}"}},
    ],
)
def test_no_complaint_shows_a_secret(
    complaints: Complaints, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setenv("CANARY", SECRET)
    assert not [line for line in complaints(yaml.safe_dump({**good(), **change})) if "cret" in line]


@pytest.mark.parametrize(
    "change",
    [
        {"sources": {"db": {"kind": "sql", "url": "canary"}}},
        {"sources": {"own": {"kind": "class", "adapter": "a:B", "settings": {"password": "canary"}}}},
        {"alerts": {"urls": ["json://canary"]}},
        {"consumers": {"orders": {"url": "amqp://u:canary@b", "queue": "q", "options": {"password": "canary"}}}},
        {"outcomes": {"audit": {"url": "https://u:canary@x", "headers": {"Authorization": "canary"}}}},
        {"outcomes": {"audit": {"url": "https://x", "secret": "canarycanarycanarycanary"}}},
    ],
)
def test_no_secret_is_in_what_a_configuration_shows_of_itself(change: dict[str, Any]) -> None:
    document = good()
    for name, section in change.items():
        document[name] = {**document.get(name, {}), **section}
    assert "canary" not in repr(Config.model_validate(document))
    with pytest.raises(ValueError, match="entities") as caught:
        Config.model_validate({**document, "entities": ["canary"]})
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("limits", "system", "said"),
    [
        (
            {"lease": 30},
            {"timeout": 20},
            "is 20 s (line {timeout}), and must be less than half of limits.lease, which is 30 s (line {lease})",
        ),
        (
            {"lease": 15},
            {},
            "is 10 s (the default), and must be less than half of limits.lease, which is 15 s (line {lease})",
        ),
        (
            {},
            {"timeout": 45},
            "is 45 s (line {timeout}), and must be less than half of limits.lease, which is 60 s (the default)",
        ),
    ],
)
def test_a_timeout_that_does_not_fit_the_lease_names_both_values_and_lines(
    complaints: Complaints,
    limits: dict[str, Any],
    system: dict[str, Any],
    said: str,
) -> None:
    document = good()
    [name] = document["third_parties"]
    document["third_parties"][name].pop("timeout", None)
    document["third_parties"][name] |= system
    document["limits"] = limits
    text = yaml.safe_dump(document, sort_keys=False)
    lines = {
        word: next(
            (number for number, line in enumerate(text.splitlines(), 1) if line.strip().startswith(f"{word}:")), 0
        )
        for word in ("timeout", "lease")
    }
    [complaint] = complaints(text)
    assert f"third_parties.{name}.timeout: {said.format(**lines)}" in complaint
    assert "Set limits.lease to more than" in complaint
