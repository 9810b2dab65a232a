"""Events in their source's own shape: what they mean, what is refused and how it is named, what may be configured."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from fakes import two_part_config
from paths import ROOT
from pydantic import ValidationError

from sync_orchestrator.config import Config
from sync_orchestrator.core.ledger.recording import ChangeEvent
from sync_orchestrator.core.values.source_versions import version_of
from sync_orchestrator.errors import InvalidEvent
from sync_orchestrator.event_formats.custom_events import change_event_of, is_wanted

NOON = 1_795_435_200_000_000  # 2026-11-23T12:00:00Z
PLAIN = {
    "id": "body.nr",
    "key": "body.sku",
    "group": "body.shop",
    "action": "body.what",
    "version": "body.at",
    "data": "body.row",
}
CAPTURED = {
    "when": "body.op != 'm'",
    "entity": "body.source.table",
    "entities": {"t_items": "item"},
    "key": "body.after.id || body.before.id",
    "action": "body.op",
    "actions": {"c": "created", "r": "created", "u": "updated", "d": "deleted"},
    "version": "body.ts_ms",
    "version_unit": "ms",
    "data": "body.after",
}


def config(events: dict[str, Any], kind: str = "time", **part: Any) -> Config:
    own = {"key": "key", "version": {"path": "v", "kind": kind}, "list": {"path": "/"}, "group": "store", **part}
    system = {"base_url": "http://127.0.0.1:1"}
    return two_part_config(
        sources={"shop": {**system, "events": events}, "stock": system}, entity={"parts": {"shop": own, "stock": own}}
    )


def plain(**changes: Any) -> dict[str, Any]:
    return {
        "nr": 12,
        "sku": 77,
        "shop": "B",
        "what": "updated",
        "at": "2026-11-23T12:00:00Z",
        "row": {"key": "77", "name": "n", "store": "A"},
        **changes,
    }


def captured(**changes: Any) -> dict[str, Any]:
    return {
        "op": "u",
        "ts_ms": NOON // 1000,
        "source": {"table": "t_items"},
        "before": None,
        "after": {"id": "k1", "store": "A"},
        **changes,
    }


def read(document: Any, events: dict[str, Any], headers: dict[str, Any] | None = None, **options: Any) -> ChangeEvent:
    return change_event_of(document, headers or {}, "shop", config(events, **options))


def test_a_plain_event_is_read_by_its_places() -> None:
    assert read(plain(), PLAIN) == ChangeEvent("shop", "12", "item", "77", "update", NOON, plain()["row"], "A")


def test_a_captured_row_is_read_by_tables_of_words_and_a_unit() -> None:
    found = read(captured(), CAPTURED)
    assert (found.entity, found.key, found.action, found.version, found.data, found.group) == (
        "item",
        "k1",
        "update",
        NOON,
        {"id": "k1", "store": "A"},
        "A",
    )


def test_a_captured_deletion_names_the_record_by_what_it_was() -> None:
    found = read(captured(op="d", before={"id": "k1"}, after=None), CAPTURED)
    assert (found.key, found.action, found.data) == ("k1", "delete", None)


def test_without_an_id_the_same_content_has_the_same_one() -> None:
    first, again, other = (read(document, CAPTURED) for document in (captured(), captured(), captured(op="c")))
    assert first.event_id == again.event_id != other.event_id


def test_headers_are_found_however_they_are_written() -> None:
    events = {**PLAIN, "id": 'headers."x-id"', "action": "headers.action"}
    found = read(plain(), events, {"X-Id": "h1", "Action": "deleted"})
    assert (found.event_id, found.action) == ("h1", "delete")


def test_constants_and_conditions_are_expressions() -> None:
    events = {**PLAIN, "action": "body.gone && 'deleted' || 'updated'"}
    assert [read(plain(gone=gone), events).action for gone in (True, False)] == ["delete", "update"]


def test_without_data_the_part_is_to_be_read_from_its_source() -> None:
    found = read(plain(), {name: path for name, path in PLAIN.items() if name != "data"})
    assert (found.data, found.group) == (None, "B")


@pytest.mark.parametrize(
    ("unit", "value"),
    [
        ("s", NOON // 1_000_000),
        ("ms", NOON // 1000),
        ("us", NOON),
        ("ns", NOON * 1000),
        ("s", NOON / 1e6),
        ("ms", "2026-11-23T12:00:00Z"),
    ],
)
def test_a_time_is_counted_in_its_unit(unit: str, value: Any) -> None:
    assert read(plain(at=value), {**PLAIN, "version_unit": unit}).version == NOON


def test_a_time_without_a_zone_is_in_that_of_the_part() -> None:
    assert read(plain(at="2026-11-23 13:00:00"), PLAIN, zone="Europe/Berlin").version == NOON


def test_a_number_stays_the_number_it_is() -> None:
    assert read(plain(at=7), {**PLAIN, "version_unit": "ms"}, kind="number").version == 7


def test_what_is_not_meant_is_passed_over() -> None:
    asked = config(CAPTURED)
    assert [is_wanted(captured(op=op), {}, "shop", asked) for op in ("u", "m")] == [True, False]
    assert is_wanted(plain(), {}, "shop", config(PLAIN))


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (plain(nr=None), "id (body.nr)"),
        (plain(nr=1.5), "id (body.nr)"),
        (plain(sku=""), "key (body.sku)"),
        (plain(sku=".."), "key (body.sku)"),
        (plain(sku={"a": 1}), "key (body.sku)"),
        (plain(what="touched"), "action (body.what)"),
        (plain(at=None), "version (body.at)"),
        (plain(at="noon"), "version (body.at)"),
        (plain(at=True), "version (body.at)"),
        (plain(at=10**30), "version (body.at)"),
        (plain(row=[1]), "data (body.row)"),
        (plain(shop={"a": 1}), "group (body.shop)"),
        (plain(row={"store": "a\tb"}), "data (store)"),
        ([1], "action (body.what)"),
        (None, "action (body.what)"),
        ("text", "action (body.what)"),
    ],
)
def test_what_cannot_be_taken_is_named_by_its_field_and_place(document: Any, field: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        read(document, PLAIN)
    assert caught.value.field == field


def test_a_word_that_is_in_no_table_is_told_with_those_that_are() -> None:
    with pytest.raises(InvalidEvent, match="must be one of t_items") as caught:
        read(captured(source={"table": "orders"}), CAPTURED)
    assert caught.value.field == "entity (body.source.table)"


def test_an_expression_that_fails_on_an_event_is_the_events_fault() -> None:
    with pytest.raises(InvalidEvent) as caught:
        read(plain(sku=1), {**PLAIN, "key": "join('-', body.sku)"})
    assert caught.value.field == "key (join('-', body.sku))"


def test_a_source_without_own_events_has_no_such_shape() -> None:
    with pytest.raises(InvalidEvent, match="with 'events': shop") as caught:
        change_event_of(plain(), {}, "stock", config(PLAIN))
    assert caught.value.field == "source"


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ({**PLAIN, "entities": {"t": "order"}}, "sources.shop.events.entities.t: shop is no part of an entity 'order'"),
        ({**PLAIN, "key": "body."}, "not a JMESPath expression"),
        ({**PLAIN, "actions": {"c": "made"}}, "'created', 'updated' or 'deleted'"),
    ],
)
def test_what_cannot_be_meant_is_told_when_the_configuration_is_read(events: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said.replace("[", r"\[")):
        config(events)


def test_a_source_of_several_entities_must_tell_which() -> None:
    document = config(PLAIN).model_dump(mode="json", exclude_defaults=True)
    document["entities"]["order"] = document["entities"]["item"]
    with pytest.raises(ValidationError, match=r"events\.entity: is needed, since it is a part of item, order"):
        Config.model_validate(document)


def test_times_are_exact_to_the_microsecond() -> None:
    moment = "2026-11-23T12:00:00.123457Z"
    assert read(plain(at=moment), PLAIN).version == version_of(moment, "time")


def test_the_captured_row_of_the_documents_is_read_by_their_configuration() -> None:
    text = (ROOT / "docs" / "brokers.md").read_text(encoding="utf-8")
    [shape] = [
        found
        for fence in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        if "t_stones" in fence
        for found in [yaml.safe_load(fence)["sources"]["catalogue"]["events"]]
    ]
    [document] = [json.loads(fence) for fence in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
    found = read(document, {**shape, "entities": {"t_stones": "item"}})
    assert (found.key, found.action, found.version, found.data) == ("D-000005", "update", NOON, document["after"])


UNSIGNED = [
    ("id", 'headers."x-id"'),
    ("when", "headers.kind == 'a'"),
    ("key", "body.sku || headers.key"),
    ("data", "headers"),
    ("group", "[headers.a, body.shop] | [0]"),
    ("action", "@.headers.action"),
    ("action", "@ | headers.action"),
    ("version", "headers.*"),
    ("key", "* | [1].x"),
    ("key", "to_string(@)"),
    ("entity", "(headers).entity"),
    ("id", 'headers."webhook-signature"'),
    ("id", "headers.x[0]"),
    ("id", "{a: headers}.a.x"),
    ("id", "values(@)[1].x"),
    ("when", "!(headers.x)"),
    ("id", 'headers."Webhook-Id"'),
]


@pytest.mark.parametrize(("field", "expression"), UNSIGNED)
def test_a_source_that_signs_may_not_look_at_headers_that_are_not_signed(field: str, expression: str) -> None:
    events = {**PLAIN, field: expression}
    document = config(events).model_dump(mode="json", exclude_defaults=True)  # good without secrets
    document["sources"]["shop"]["webhook_secrets"] = ["whsec_" + "A" * 32]
    with pytest.raises(ValidationError, match=rf"sources\.shop\.events\.{field}: looks at headers"):
        Config.model_validate(document)


@pytest.mark.parametrize(
    "expression",
    [
        'headers."webhook-id"',
        '@.headers."webhook-id"',
        'headers."webhook-timestamp"',
        "body.headers.x",
        "'headers'",
        "body[?headers].x",
        "body.items[0].headers",
        "body | headers",
        'headers."webhook-id" || body.nr',
        "{a: body.headers}.a",
    ],
)
def test_a_source_that_signs_may_look_at_what_is_signed(expression: str) -> None:
    document = config({**PLAIN, "id": expression}).model_dump(mode="json", exclude_defaults=True)
    document["sources"]["shop"]["webhook_secrets"] = ["whsec_" + "A" * 32]
    assert Config.model_validate(document)


@pytest.mark.parametrize("other", ["whsec_" + "A" * 32, "A" * 32])
def test_two_sources_may_not_have_the_same_secret(other: str) -> None:
    document = config(PLAIN).model_dump(mode="json", exclude_defaults=True)
    document["sources"]["shop"]["webhook_secrets"] = ["whsec_" + "A" * 32]
    document["sources"]["stock"]["webhook_secrets"] = ["B" * 32, other]
    with pytest.raises(ValidationError, match=r"sources\.stock\.webhook_secrets\.1: sources\.shop has the same"):
        Config.model_validate(document)
