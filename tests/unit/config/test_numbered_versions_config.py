"""``version: {kind: log}`` is refused where something else than the stream of the log tells changes, or a version."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pydantic import ValidationError

from sync_orchestrator.config import Config

DOCUMENT: dict[str, Any] = {
    "sources": {"shop": {"kind": "sql", "url": "postgresql+psycopg://127.0.0.1/shop", "capture": {}}},
    "third_parties": {"erp": {"base_url": "https://erp.example.com"}},
    "entities": {
        "item": {
            "owner": "shop",
            "parts": {
                "shop": {
                    "sql": {"table": "items"},
                    "key": "sku",
                    "group": "store",
                    "version": {"kind": "log"},
                    "changes": {"by": "log"},
                }
            },
            "mapping": {"code": "key"},
            "third_party": {
                "system": "erp",
                "key_field": "code",
                "create": {"method": "POST", "path": "/"},
                "update": {"method": "PUT", "path": "/{{ id }}"},
                "delete": {"method": "DELETE", "path": "/{{ id }}"},
                "read": {"path": "/{{ id }}"},
                "list": {"path": "/"},
            },
        }
    },
}
OWN_EVENTS = {"key": "body.sku", "action": "body.op", "version": "body.v"}
SECRET = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"
QUEUE = {"url": "redis://127.0.0.1/0", "queue": "q", "source": "shop"}


def changed(place: str, value: object) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    *way, last = place.split(".")
    here: Any = document
    for name in way:
        here = here.setdefault(name, {})
    if value is None:
        del here[last]
    else:
        here[last] = value
    return document


def test_a_part_of_kind_log_needs_no_version_of_its_source() -> None:
    part = Config.model_validate(DOCUMENT).entities["item"].parts["shop"]
    assert part.version.is_numbered
    assert not part.is_polled


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        ("entities.item.parts.shop.changes", None, "kind 'log' needs 'changes: {by: log}'"),
        ("entities.item.parts.shop.changes", {"by": "column"}, "kind 'log' needs 'changes: {by: log}'"),
        ("entities.item.parts.shop.version", {"kind": "log", "path": "v"}, "'path' does not belong to kind 'log'"),
        ("entities.item.parts.shop.poll_every", 5, "'poll_every' has no effect with changes by 'log'"),
        ("sources.shop.events", OWN_EVENTS, "sources.shop.events: the changes of item come from the log of shop alone"),
        ("sources.shop.webhook_secrets", [SECRET], "sources.shop.webhook_secrets: the changes of item come from"),
        ("consumers.queue", QUEUE, "consumers.queue.source: the changes of item come from the log of shop alone"),
        ("sources.shop.url", "mysql+pymysql://127.0.0.1/shop", "kind 'log' needs a Postgres"),
    ],
)
def test_what_does_not_go_with_kind_log_is_refused_with_a_sentence(place: str, value: object, sentence: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Config.model_validate(changed(place, value))
    assert sentence in str(refused.value)


def test_another_entity_of_the_source_may_have_events() -> None:
    document = changed("sources.shop.events", {**OWN_EVENTS, "entity": "'other'", "entities": {"other": "other"}})
    other = copy.deepcopy(document["entities"]["item"])
    other["parts"]["shop"]["version"] = {"path": "v"}
    del other["parts"]["shop"]["changes"]
    for call in ("create", "update", "delete", "read", "list"):
        other["third_party"][call]["path"] = f"/others{other['third_party'][call]['path']}"
    document["entities"]["other"] = other
    Config.model_validate(document)
    document["sources"]["shop"]["events"]["entities"] = {"other": "item"}
    with pytest.raises(ValidationError, match="the changes of item come from the log"):
        Config.model_validate(document)
