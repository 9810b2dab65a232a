"""Configurations with opposite flows: what fits together, and what is refused with a sentence."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

import pytest
from cookbook_pages import fences, merge, parse_yaml
from pydantic import ValidationError

from sync_orchestrator.config import Config, parse_config
from sync_orchestrator.errors import ConfigError

WHOLE = next(text for language, text in fences("erp-story") if language == "yaml")
VALUES = {
    "PLATFORM_URL": "http://platform.test",
    "ERP_URL": "http://erp.test",
    "ERP_PASSWORD": "a password",
    "ERP_WEBHOOK_SECRET": "the webhook secret of the ERP",
}
UPDATE_OF_PRODUCT = {"method": "PATCH", "path": "/products/{{ key }}"}


def document(**changes: Any) -> dict[str, Any]:
    text = re.sub(r"\$\{(\w+)\}", lambda name: VALUES[name[1]], WHOLE)
    whole = parse_yaml(text)
    whole["sources"]["erp"] = {"same_as": "erp"}  # without its webhooks, which are of one entity
    return merge(whole, changes)  # type: ignore[no-any-return]


def refusal(**changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(document(**changes))
    return str(caught.value)


def entity(mapping: dict[str, str], part: str = "erp", **third_party: Any) -> dict[str, Any]:
    """An entity like ``stock``, of another part of the same systems."""
    stock = document()["entities"]["stock"]
    parts = {part: stock["parts"]["erp"]}
    target = merge(stock["third_party"], third_party)
    return {"owner": part, "parts": parts, "mapping": {"sku": "key", **mapping}, "third_party": target}


# One system on both sides -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("base_url", "http://elsewhere.test"),
        ("headers", {"X": "y"}),
        ("auth", {"kind": "bearer", "token": "t"}),
        ("timeout", 5),
        ("concurrency", 2),
        ("max_response_bytes", 1000),
        ("throttle", {}),
        ("outcomes", []),
        ("next_origins", {}),
        ("rate", 5),
        ("breaker", {"failures": 3}),
        ("in_flight_window", 5),
    ],
)
def test_what_the_third_party_decides_is_refused_at_the_source(setting: str, value: Any) -> None:
    assert f"{setting}: the third party 'erp' decides it" in refusal(sources={"erp": {setting: value}})


def test_a_shared_system_has_one_name_and_a_client() -> None:
    assert "unknown third party 'sap'; expected one of: platform, erp" in refusal(sources={"erp": {"same_as": "sap"}})
    assert "has its name: rename the source to 'erp'" in refusal(sources={"platform": {"same_as": "erp"}})
    class_only = {"erp": {"adapter": "odd_adapters:Shelf", "base_url": "", "auth": None, "rate": None}}
    whole = document()
    whole["third_parties"]["erp"] = {"adapter": class_only["erp"]["adapter"]}
    with pytest.raises(ValidationError, match="'erp' has no base_url, so there is no client to share"):
        Config.model_validate(whole)
    for setting in ({"kind": "sql"}, {"adapter": "a:B"}):
        assert "same_as: is for sources of kind rest" in refusal(sources={"erp": setting})


def test_a_refusal_names_the_line() -> None:
    text = WHOLE.replace("same_as: erp\n", "same_as: erp\n    timeout: 5s\n")
    text = re.sub(r"\$\{(\w+)\}", lambda name: VALUES[name[1]], text)
    with pytest.raises(ConfigError, match=r"sync\.yaml:5: sources\.erp\.timeout: the third party 'erp' decides it"):
        parse_config(text, "sync.yaml")


# Items that are no records ------------------------------------------------------------------------------------------


def test_keys_and_only_when_are_refused_together() -> None:
    keys = {"path": "/keys", "items": "items"}
    assert "keys: cannot be used with 'only_when'" in refusal(entities={"stock": {"parts": {"erp": {"keys": keys}}}})


# Creates and deletes ------------------------------------------------------------------------------------------------

CREATE = {"method": "POST", "path": "/products"}
DELETE = {"method": "DELETE", "path": "/products/{{ key }}"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"create": CREATE}, "create: has no effect with 'creates: never'"),
        ({"delete": DELETE}, "delete: has no effect with 'deletes: never'"),
        ({"upsert": "update_first"}, "upsert: 'update_first' makes records"),
        (
            {"update": {"outcomes": [{"when": "status == `409`", "means": "remake"}]}},
            "update.outcomes: 'remake' deletes a record and makes it anew",
        ),
        ({"deletes": "allowed"}, "or 'deletes: never' if no record is ever removed there"),
        ({"ids": "theirs"}, "creates: 'never' needs 'lookup'"),
        ({"ids": "theirs", "idempotency": {}}, "idempotency: has no effect with 'creates: never'"),
        ({"ids": "theirs", "creates": "allowed"}, "or 'creates: never' if others make the records there"),
    ],
)
def test_calls_that_are_never_made_are_refused(changes: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(entities={"stock": {"third_party": changes}})


def test_unmanaged_records_are_not_deleted_where_nothing_is() -> None:
    assert "validation.unmanaged: 'delete' contradicts third_party.deletes" in refusal(
        entities={"stock": {"validation": {"unmanaged": "delete"}}}
    )


# Two entities and one field -----------------------------------------------------------------------------------------


def test_disjoint_fields_of_the_same_records_are_fine() -> None:
    Config.model_validate(document(entities={"place": entity({"shelf": "erp.shelf"})}))


@pytest.mark.parametrize(
    "third_party",
    [
        {},
        {"update": {"path": "/products/{{ payload.sku }}"}},
        {"list": {"path": "/all-products"}},
        {"update": {"method": "POST", "path": "/write-product"}},
        {"fields": {"amount": {"read": "stock"}}},
    ],
)
def test_two_entities_may_not_map_the_same_field_of_the_same_records(third_party: dict[str, Any]) -> None:
    field = "amount" if "fields" in third_party else "stock"
    text = refusal(entities={"place": entity({field: "erp.other"}, **third_party)})
    assert f"entities.place.mapping.{field}: entities.stock.mapping.stock writes the same field" in text
    assert "Map it in one of the two entities" in text


@pytest.mark.parametrize(
    "third_party",
    [
        {
            "update": {"path": "/shelves/{{ key }}"},
            "read": {"path": "/shelves/{{ key }}"},
            "list": {"path": "/shelves"},
        },
        {"list": {"params": {"kind": "bundle"}}},
    ],
)
def test_the_same_field_of_other_records_is_fine(third_party: dict[str, Any]) -> None:
    changes = {"place": entity({"stock": "erp.other"}, **third_party)}
    stock = {"third_party": {"list": {"params": {"kind": "single"}}}}
    Config.model_validate(document(entities={**changes, "stock": stock}))


def test_calls_of_one_address_are_told_apart_by_their_bodies() -> None:
    def calls(what: str) -> dict[str, Any]:
        def call(verb: str) -> dict[str, Any]:
            return {"method": "POST", "path": "/graphql", "body": {"query": f"{verb} {what}", "key": "{{ key }}"}}

        listing = {**call("list"), "body": {"query": f"list {what}", "store": "{{ group }}"}, "params": {}}
        return {"update": call("update"), "read": call("read"), "list": listing}

    other = {"place": entity({"stock": "erp.other"}, **calls("shelves"))}
    Config.model_validate(document(entities={**other, "stock": {"third_party": calls("products")}}))
    same = {"place": entity({"stock": "erp.other"}, **calls("products"))}
    assert "writes the same field" in refusal(entities={**same, "stock": {"third_party": calls("products")}})


def test_whole_records_are_not_written_beside_another_entity() -> None:
    text = refusal(entities={"place": entity({"shelf": "erp.shelf"}, update={"method": "PUT"})})
    assert (
        "entities.place.third_party.update: a PUT writes whole records, and entities.stock writes other fields" in text
    )
    text = refusal(
        entities={"place": entity({"shelf": "erp.shelf"}), "stock": {"third_party": {"update": {"method": "PUT"}}}}
    )
    assert "entities.stock.third_party.update: a PUT writes whole records, and entities.place" in text


# Loops --------------------------------------------------------------------------------------------------------------


def back(mapping: dict[str, str], **third_party: Any) -> dict[str, Any]:
    """An entity from the platform's products to the ERP's items."""
    part = {
        "key": "sku",
        "group": "store",
        "version": {"path": "changed", "kind": "number"},
        "list": {"path": "/products", "params": {"store": "{{ group }}"}, "items": "products"},
    }
    target = {
        "system": "erp",
        "ids": "ours",
        "key_field": "sku",
        "creates": "never",
        "deletes": "never",
        "update": {"method": "PATCH", "path": "/items/{{ key }}"},
        "read": {"path": "/items/{{ key }}"},
        "list": {"path": "/items", "params": {"warehouse": "{{ group }}"}},
        **third_party,
    }
    return {
        "owner": "platform",
        "parts": {"platform": part},
        "mapping": {"sku": "key", **mapping},
        "third_party": target,
    }


@pytest.mark.parametrize(
    "mapping", [{"on_hand": "platform.stock"}, {"on_hand": "sum([platform.stock, `1`])"}, {"on_hand.total": "x"}]
)
def test_a_field_that_comes_back_to_where_it_was_read_is_a_loop(mapping: dict[str, str]) -> None:
    if "on_hand.total" in mapping:  # a field within the field
        entities = {"return": back({"total": "platform.stock"}, fields={"total": {"read": "on_hand.total"}})}
    else:
        entities = {"return": back(mapping)}
    text = refusal(entities=entities)
    assert "entities.stock.mapping.stock: reads 'on_hand' of erp, which entities.return.mapping." in text
    assert "Let one side own it" in text


@pytest.mark.parametrize("mapping", [{"title": "platform.title"}, {"wanted": "platform.stock"}])
def test_a_way_back_of_other_fields_is_no_loop(mapping: dict[str, str]) -> None:
    Config.model_validate(document(entities={"return": back(mapping)}))


def test_a_loop_is_found_without_same_as() -> None:
    """A source system is the third party whose name it has."""
    whole = document(entities={"return": back({"on_hand": "platform.stock"})})
    whole["sources"] = {name: {"base_url": whole["third_parties"][name]["base_url"] + "/"} for name in whole["sources"]}
    with pytest.raises(ValidationError, match=r"entities\.return\.mapping\.on_hand writes again from what this writes"):
        Config.model_validate(whole)


def test_a_loop_over_three_entities_is_found() -> None:
    there = {
        "update": {"method": "PATCH", "path": "/offers/{{ key }}"},
        "read": {"path": "/offers/{{ key }}"},
        "list": {"path": "/offers"},
    }
    first = back({"amount": "platform.stock"}, **there)
    second = deepcopy(back({"on_hand": "erp.amount"}))
    second["owner"], second["parts"] = "erp", {"erp": {**first["parts"]["platform"], "list": {"path": "/offers"}}}
    text = refusal(entities={"offer": first, "return": second})
    assert "entities.offer.mapping.amount and entities.return.mapping.on_hand" in text


def test_a_field_that_is_written_to_where_it_is_read_is_a_loop() -> None:
    itself = back({"stock": "platform.stock"}, system="platform")
    itself["third_party"] |= {
        "update": UPDATE_OF_PRODUCT,
        "read": {"path": "/products/{{ key }}"},
        "list": {"path": "/products"},
    }
    whole = document()
    whole["entities"] = {"product": itself}
    del whole["sources"]["erp"]
    with pytest.raises(ValidationError, match="writes 'stock' of platform back to where it is read"):
        Config.model_validate(whole)
