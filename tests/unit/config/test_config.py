"""What ``sync.yaml`` may say, and how plainly it is told what it may not."""

from __future__ import annotations

import base64
import os
from datetime import UTC, datetime
from typing import Any

import pytest
from fakes import two_part_config
from paths import ROOT
from pydantic import ValidationError
from standardwebhooks import Webhook

from sync_orchestrator.config import loading


@pytest.mark.parametrize(
    ("part", "complaint"),
    [
        ({"read": {"path": "/{{ kye }}"}}, "read: nothing fills in 'kye'; known here: key"),
        ({"read": {"path": "/{{ key }}", "params": {"shop": "{{ group }}"}}}, "read: nothing fills in 'group'"),
        ({"read": {"path": "/x", "method": "POST", "body": {"a": ["{{ kye }}"]}}}, "read: nothing fills in 'kye'"),
        ({"read": {"path": "/x", "headers": {"X-Key": "{{ kye }}"}}}, "read: nothing fills in 'kye'"),
        ({"list": {"path": "/", "params": {"from": "{{ after }}"}}}, "list: nothing fills in 'after'"),
        (
            {"list": {"path": "/", "params": {"p": "{{ page }}", "c": "{{ cursor }}"}, "paging": "page"}},
            "list: nothing fills in 'cursor'; known here: group, limit, page",
        ),
        ({"list": {"path": "/", "paging": "page"}}, "paging 'page' needs {{ page }} in path, params, headers or body"),
        ({"list": {"path": "/", "params": {"c": "{{ cursor }}"}, "paging": "cursor"}}, "needs 'next' or 'next_header'"),
        ({"list": {"path": "/", "next": "n"}}, "'next' and 'next_header' belong to paging 'cursor' and 'next_url'"),
        ({"read_many": {"path": "/{{ key }}"}}, "read_many: nothing fills in 'key'; known here: keys, limit"),
        ({"count": {"path": "/{{ groups }}"}}, "count: nothing fills in 'groups'"),
        ({"groups": {"path": "/{{ group }}"}}, "groups: nothing fills in 'group'; known here: none"),
        ({"read": {"path": "/{{ key"}}, "not a template: "),
        ({"read": {"path": "/{key}"}}, "write {{ key }}, not {key}"),
        ({"read": {"path": "/x", "params": {"sku": "{key}"}}}, "write {{ key }}, not {key}"),
        ({"sql": {"table": "items"}}, "'sql' does not belong to a source system of kind rest"),
        ({"list": None}, "'list' is needed for a source system of kind rest"),
        ({"poll_every": 5}, "'poll_every' has no effect without 'changes': configure that call"),
        ({"overlap": 5}, "'overlap' has no effect without 'changes': configure that call"),
    ],
)
def test_a_source_that_cannot_work_is_refused(part: dict[str, Any], complaint: str) -> None:
    shop = {"key": "key", "version": {"path": "v", "kind": "number"}, "list": {"path": "/"}, "group": "store", **part}
    with pytest.raises(ValidationError) as refused:
        two_part_config(entity={"parts": {"shop": shop}})
    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"create": {"path": "/{{ id }}"}}, "create: nothing fills in 'id'"),
        ({"update": {"path": "/{{ ID }}"}}, "update: nothing fills in 'ID'"),
        ({"update": {"path": "/{{ id }}", "headers": {"If-Match": "{{ revision }}"}}}, "nothing fills in 'revision'"),
        (
            {"update": {"path": "/{{ id }}", "then": [{"method": "POST", "path": "/{{ idd }}"}]}},
            "update.then[0]: nothing fills in 'idd'",
        ),
        (
            {
                "revision": {"path": "v"},
                "update": {"path": "/{{ revision }}", "then": [{"method": "PUT", "path": "/{{ revision }}"}]},
            },
            "update.then[0]: nothing fills in 'revision'",
        ),
        ({"create": {"path": "/", "then": [{"method": "POST", "path": "/"}]}}, "'create.then' needs 'update.then'"),
        ({"revision": {"path": "v"}}, "'revision' is sent by no call"),
        ({"revision": {}}, "say 'header' or 'path', one of them"),
        ({"id_from": {"header": "Location", "pattern": ".*/[^/]+"}}, "'pattern' needs a group"),
        ({"upsert": "create_first"}, "upsert 'create_first' is for our ids"),
        ({"list_shows": "ids", "read": {"path": "/{{ key }}"}}, "what is listed shows no key"),
        ({"create": {"path": "/{{ idempotency_key }}"}}, "create: nothing fills in 'idempotency_key'"),
        ({"idempotency": {"value": "{{ key }}"}}, "idempotency.value needs {{ idempotency_key }}"),
        ({"idempotency": {"header": None}}, "put {{ idempotency_key }} into 'create'"),
        (
            {"ids": "ours", "search_first": True, "lookup": {"path": "/"}},
            "'search_first' is for third parties that give",
        ),
        ({"ids": "ours", "idempotency": {}}, "'idempotency' is for third parties that give the ids"),
        ({"ids": "ours", "id_from": {"header": "Location"}}, "'id_from' is for third parties that give the ids"),
        ({"delete": {"path": "/", "params": {"a": "{{ keys }}"}}}, "delete: nothing fills in 'keys'"),
        (
            {"delete": {"path": "/{{ id }}", "refused": {"method": "PATCH", "path": "/{{ x }}"}}},
            "delete.refused: nothing fills in 'x'",
        ),
        ({"lookup": {"path": "/", "params": {"q": "{{ id }}"}}}, "lookup: nothing fills in 'id'"),
        ({"list": {"path": "/", "params": {"q": "{{ key }}"}}}, "list: nothing fills in 'key'"),
        ({"count": {"path": "/{{ after }}"}}, "count: nothing fills in 'after'"),
        ({"also": {"stock": {"path": "/{{ payload }}"}}}, "also.stock: nothing fills in 'payload'"),
        ({"references": {"shop": {"path": "/{{ id }}"}}}, "references.shop: nothing fills in 'id'"),
        ({"fields": {"price": {"write": {"amount": "{{ price }}"}}}}, "fields.price.write: only 'value' is known here"),
        ({"idempotency": {"value": "{{ id }}"}}, "idempotency.value: nothing fills in 'id'"),
        (
            {"bulk_create": {"request": {"path": "/", "body": "{{ payload }}"}}},
            "bulk_create: nothing fills in 'payload'",
        ),
        ({"create": None}, "'create' is needed where the third party gives the ids"),
        ({"update": None}, "'update' or 'bulk_update' is needed"),
        ({"search_first": True}, "search_first needs 'lookup'"),
        ({"ids": "ours", "create": None, "upsert": "create_first"}, "upsert 'create_first' needs 'create'"),
    ],
)
def test_a_target_that_cannot_work_is_refused(changes: dict[str, Any], complaint: str) -> None:
    target = {
        "system": "erp",
        "key_field": "code",
        "create": {"path": "/"},
        "update": {"method": "PUT", "path": "/{{ id }}"},
        "delete": {"path": "/{{ id }}"},
        "read": {"path": "/{{ id }}"},
        "list": {"path": "/"},
        **changes,
    }
    with pytest.raises(ValidationError) as refused:
        two_part_config(entity={"third_party": target})
    assert complaint in str(refused.value)


DEMO = ROOT / "demo" / "sync.yaml"


@pytest.mark.parametrize(("written", "read"), [("off", "off"), ('"off"', "off"), ("auto", "auto")])
def test_off_is_a_word_and_no_truth_value(written: str, read: str) -> None:
    text = DEMO.read_text().replace("repair: auto", f"repair: {written}")
    assert loading.parse_config(text, "sync.yaml").entities["stone"].validation.repair == read


# Secrets of webhooks, in and out --------------------------------------------------------------------------------------


def loaded_secrets(secret: str) -> list[str]:
    """A secret as it is loaded for a source that signs, and for a receiver of outcomes."""
    config = two_part_config(
        shop={"webhook_secrets": [secret]}, outcomes={"audit": {"url": "https://audit.test", "secret": secret}}
    )
    return [str(config.sources["shop"].webhook_secrets[0]), str(config.outcomes["audit"].secret)]


@pytest.mark.parametrize("prefix", ["", "whsec_"])
@pytest.mark.parametrize("size", [16, 17, 18, 32, 64])
def test_a_webhook_secret_is_the_same_key_however_it_is_spelt(size: int, prefix: str) -> None:
    key, at = os.urandom(size), datetime.now(UTC)
    text = base64.b64encode(key).decode()
    for spelt in (text, text.rstrip("="), f"{text[:20]}\n{text[20:]}\n"):  # openssl folds long ones
        for secret in loaded_secrets(prefix + spelt):
            assert Webhook(secret).sign("msg_1", at, "{}") == Webhook(key).sign("msg_1", at, "{}")


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        "whsec_!",
        "c2hvcnQ=",
        base64.b64encode(b"x" * 15).decode(),
        "correct horse battery staple",
        "é" * 24,
        base64.urlsafe_b64encode(b"\xff" * 3 + bytes(45)).decode(),
        f"whsec_whsec_{base64.b64encode(b'x' * 24).decode()}",
        base64.b64encode(b"x" * 16).decode() * 2,
        "A" * 25,
    ],
)
def test_what_is_no_webhook_secret_is_refused_with_a_way_to_make_one(secret: str) -> None:
    with pytest.raises(ValidationError) as refused:
        loaded_secrets(secret)
    places = [".".join(map(str, error["loc"])) for error in refused.value.errors()]
    assert places == ["sources.shop.rest.webhook_secrets.0", "outcomes.audit.secret"]
    assert all(
        "at least 16 bytes in base64" in error["msg"] and "openssl rand" in error["msg"]
        for error in refused.value.errors()
    )
