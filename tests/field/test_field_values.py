"""Rule 35: what is compared is what was finally sent; what the third party is known to do to a value is no drift."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from fakes import two_part_config
from http_server import Server
from pydantic import ValidationError
from record_store import THEIRS, HttpWorld, Store
from sqlalchemy import Engine
from starlette.responses import JSONResponse

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.rest.codecs import Codecs
from sync_orchestrator.adapters.rest.third_party import RestThirdParty
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config.targets import CodecSettings
from sync_orchestrator.core.operations.remap import remap
from sync_orchestrator.core.values.mapping import Mapping, compute_digest
from sync_orchestrator.core.values.normalization import build_normalizers

NFD = "Gro\u0308\u00dfe"


def of(*steps: Any) -> Any:
    return build_normalizers({"f": CodecSettings.model_validate({"normalize": list(steps)})})["f"]


@pytest.mark.parametrize(
    ("steps", "ours", "theirs"),
    [
        (["trim"], " Lamp \n", "Lamp"),
        (["trim"], [" a", {"x": "b "}], ["a", {"x": "b"}]),
        (["collapse_spaces"], "a  b\t c", "a b c"),
        (["lower"], "LAMP", "lamp"),
        (["upper"], "lamp", "LAMP"),
        (["nfc"], NFD, "Größe"),
        (["unescape_html"], "a & b", "a &amp; b"),
        (["line_breaks"], "a\r\nb\rc", "a\nb\nc"),
        (["empty_as_null"], "", None),
        (["empty_as_null"], [], None),
        (["sort_list"], ["b", "a", 1], [1, "a", "b"]),
        ([{"round": 2}], 9.999, 10),
        ([{"round": 2}], Decimal("1.005"), 1.01),
        ([{"round": 0}], [1.4, 2.5], [1, 3]),
        ([{"cut": 3}], "abcdef", "abc"),
        (["trim", "empty_as_null"], "  ", None),
        (["trim", "lower", "sort_list"], ["B ", "a"], ["A", "b"]),
    ],
)
def test_rule_35_what_the_third_party_does_to_a_value_is_no_difference(steps: Any, ours: Any, theirs: Any) -> None:
    mapping = Mapping({"f": "@"}, {"f": CodecSettings.model_validate({"normalize": steps})})
    assert compute_digest(ours) != compute_digest(theirs)
    assert mapping.digest_of_ours({"f": ours}) == mapping.digest_of_theirs({"f": theirs, "more": 1})
    assert mapping.list_differences({"f": ours}, {"f": theirs}) == []


@pytest.mark.parametrize(
    ("steps", "value"),
    [
        (["trim", "lower", "nfc", "unescape_html"], 7),
        (["trim"], None),
        ([{"round": 2}], "9.999"),
        ([{"round": 2}], True),
        ([{"cut": 3}], 12345),
        (["sort_list"], "ba"),
        (["empty_as_null"], 0),
        (["empty_as_null"], False),
    ],
)
def test_rule_35_other_kinds_of_values_stay_as_they_are(steps: Any, value: Any) -> None:
    assert of(*steps)(value) is value


def test_rule_35_what_is_different_all_the_same_is_shown_raw() -> None:
    mapping = Mapping({"f": "@", "g": "@"}, {"f": CodecSettings.model_validate({"normalize": ["trim", "lower"]})})
    assert mapping.list_differences({"f": " Lamp", "g": 1}, {"f": "LAMPE ", "g": 1.0}) == [
        {"field": "f", "ours": " Lamp", "theirs": "LAMPE "}
    ]


@pytest.mark.parametrize("step", ["trimmed", {"round": -1}, {"round": 2, "cut": 3}, {"cut": 0}, 5])
def test_rule_35_an_unknown_normalization_is_refused(step: Any) -> None:
    with pytest.raises(ValidationError):
        CodecSettings.model_validate({"normalize": [step]})


def test_rule_35_the_fingerprint_knows_how_is_compared() -> None:
    """Without any it is what it was, so that nothing is computed again for nothing."""
    plain, codec = Mapping({"f": "a"}), CodecSettings.model_validate({"normalize": ["trim"]})
    assert (
        Mapping({"f": "a"}, {"f": CodecSettings(kind="text")}).fingerprint
        == plain.fingerprint
        == compute_digest({"f": "a"}).hex()
    )
    other = CodecSettings.model_validate({"normalize": ["trim", "lower"]})
    assert len({plain.fingerprint, *(Mapping({"f": "a"}, {"f": each}).fingerprint for each in (codec, other))}) == 3


# What was sent, by templates.


@pytest.mark.parametrize(
    ("codec", "ours", "sent"),
    [
        ({"write": {"de": "{{ value | trim }}"}, "read": "f.de"}, " Lamp ", "Lamp"),
        ({"write": "{{ value | upper }}", "read": "f"}, "lamp", "LAMP"),
        ({"write": {"set": "{{ value }}"}, "read": "f"}, "lamp", "lamp"),
        ({"write": {"set": "{{ value }}"}, "read": "f"}, {"a": 1}, {"a": 1}),
        ({"write": "{{ value | upper }}", "read": "stock.level"}, "lamp", "lamp"),
        ({"kind": "decimal_text", "write": {"v": "{{ value }}"}, "read": "f.v"}, 9.9, 9.9),
        ({"write": "{{ value | upper }}", "read": "f"}, None, None),
        ({"kind": "decimal_text", "write": "{{ value }}", "read": "f"}, "nine", "nine"),
    ],
)
def test_rule_35_a_template_that_changes_a_value_changes_what_is_compared(codec: Any, ours: Any, sent: Any) -> None:
    codecs = Codecs({"f": CodecSettings.model_validate(codec)}, ("f",))
    assert codecs.change_values
    assert codecs.as_sent({"f": ours, "g": 1}) == {"f": sent, "g": 1}


def test_rule_35_plain_codecs_change_nothing() -> None:
    assert not Codecs(
        {"f": CodecSettings(kind="decimal_text"), "g": CodecSettings(read="a.b")}, ("f", "g")
    ).change_values


# On the whole way: push, read back, validation, repair, plan.


def world_of(engine: Engine, server: Server, fields: Any) -> HttpWorld:
    config = two_part_config(entity={"third_party": {**THEIRS, "fields": fields}})
    third_party = RestThirdParty(
        HttpClient(HttpSettings(base_url=server.url, timeout=5)),
        config.entities["item"].third_party,
        ("code", "store", "name", "count"),
    )
    return HttpWorld(engine, config, erp=third_party)  # type: ignore[arg-type]


class Changing(Store):
    """A third party that keeps names in its own way."""

    def by_hand(self, **fields: Any) -> str:
        return super().by_hand(**{**fields, "name": self.kept(fields["name"])})

    def _put(self, item_id: str, body: Any) -> Any:
        return super()._put(item_id, {**body, "name": self.kept(body["name"])})

    @staticmethod
    def kept(name: Any) -> Any:
        return name.strip().upper().replace("&", "&amp;") if isinstance(name, str) else name


NORMALIZE = {"name": {"normalize": ["unescape_html", "trim", "upper"]}}


def test_rule_35_a_known_change_is_no_drift_and_no_repair(engine: Engine, server: Server) -> None:
    store, world = Changing(server), world_of(engine, server, NORMALIZE)
    for key, name in (("k1", " Lamp & Light "), ("k2", "desk")):
        world.put_record(key, name=name)
    world.run_drain()
    assert {body["name"] for body in store.bodies} == {" Lamp & Light ", "desk"}
    world.run_full_sync()
    assert len(store.bodies) == 2
    result = world.run_validation(full=True)
    assert (result.verdict, result.drift) == ("in_sync", [])
    store.items["x1"]["name"] = "LAMP"
    result = world.run_validation(full=True)
    assert [drift.sample for drift in result.drift] == [[{"field": "name", "ours": " Lamp & Light ", "theirs": "LAMP"}]]
    world.run_drain()
    assert store.items["x1"]["name"] == "LAMP &amp; LIGHT"
    assert world.run_validation(full=True).verdict == "in_sync"
    world.close()


def test_rule_35_without_it_the_difference_is_drift(engine: Engine, server: Server) -> None:
    Changing(server)
    world = world_of(engine, server, {})
    world.put_record("k1", name=" Lamp ")
    world.run_drain()
    world.run_full_sync()
    assert world.run_validation(full=True).verdict == "drift"
    world.close()


def test_rule_35_a_lost_answer_is_found_by_what_is_kept(engine: Engine, server: Server) -> None:
    """After an unknown outcome the record is read back, and is not written again."""
    store, world = Changing(server), world_of(engine, server, NORMALIZE)
    world.put_record("k1", name="lamp")
    world.run_drain()
    store.after["PUT items"] = [500]
    world.put_record("k1", name="desk ")
    world.run_until_settled()
    assert [body["name"] for body in store.bodies] == ["lamp", "desk "]
    assert store.items["x1"]["name"] == "DESK"
    world.close()


def test_rule_35_a_create_without_an_id_is_found_by_what_is_kept(engine: Engine, server: Server) -> None:
    store, world = Changing(server), world_of(engine, server, NORMALIZE)
    store.says = lambda store, item: JSONResponse({})
    world.put_record("k1", name="lamp ")
    world.run_until_settled()
    assert len(store.items) == 1
    assert world.read_record_row("k1").external_id == "x1"
    world.close()


def test_rule_35_a_changed_setting_computes_what_is_in_sync_again(engine: Engine, server: Server) -> None:
    """A record whose digest is another by the new setting is pushed once more; the others are not."""
    store, before = Changing(server), world_of(engine, server, {})
    before.put_record("k1", name="lamp")
    before.put_record("k2", name="DESK")
    before.run_drain()
    before.close()
    after = world_of(engine, server, NORMALIZE)
    after.shop.rows |= before.shop.rows
    after.stock.rows |= before.stock.rows
    assert remap(after.context) == 0  # it was done when that began
    after.run_drain()
    assert sorted(body["code"] for body in store.bodies[:2]) == ["k1", "k2"]
    assert [body["code"] for body in store.bodies[2:]] == ["k1"]
    after.run_full_sync()
    assert after.run_validation(full=True).verdict == "in_sync"
    after.close()


def test_rule_35_what_the_composition_root_makes_compares_the_same(engine: Engine, server: Server) -> None:
    fields = {"name": {"write": {"de": "{{ value | trim }}"}, "read": "name.de"}}
    store, world = Store(server), world_of(engine, server, fields)
    world.put_record("k1", name=" Lamp ")
    world.run_drain()
    world.run_full_sync()
    assert store.bodies[0]["name"] == {"de": "Lamp"}
    assert world.run_validation(full=True).verdict == "in_sync"
    world.close()
