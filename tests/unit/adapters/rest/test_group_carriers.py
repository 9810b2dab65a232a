"""References and bulk items that carry the business group, and the checks of a group that changes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from catalog_server import CARRIERS, REFERENCE, TARGET, Catalog, in_bulk, writing
from http_server import Server, failure_of
from pydantic import ValidationError

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.rest.third_party import RestThirdParty, capabilities_of
from sync_orchestrator.config import Config, TargetSettings
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.conformance import run_conformance
from sync_orchestrator.conformance.source import SOURCE
from sync_orchestrator.conformance.third_party import THIRD_PARTY
from sync_orchestrator.core.ports import Item
from sync_orchestrator.errors import Failure


def test_a_group_that_reaches_the_path_by_a_reference_is_a_part_of_the_address() -> None:
    path = {"path": "/stores/{{ store_id }}/items/{{ id }}"}
    target = TargetSettings.model_validate(
        {**TARGET, "update": {**path, "method": "PUT"}, "delete": path, "read": path, "references": REFERENCE}
    )
    assert capabilities_of(target).group_in_address
    assert not capabilities_of(TargetSettings.model_validate({**TARGET, "references": REFERENCE})).group_in_address


def bulk_adapter(server: Server, target: dict[str, Any]) -> RestThirdParty:
    client = HttpClient(HttpSettings(base_url=server.url, timeout=5))
    return RestThirdParty(client, TargetSettings.model_validate(target), ("code", "name", "count"))


async def test_a_reference_in_a_bulk_item_is_each_records_own(server: Server) -> None:
    catalog = Catalog(server)
    erp = bulk_adapter(server, CARRIERS["reference in a bulk item"])
    ids = await asyncio.gather(
        *(
            erp.create(Item(key, group, {"code": key, "name": "n", "count": 1}))
            for key, group in (("a", "A"), ("b", "B"), ("c", "A"))
        )
    )
    assert [catalog.items[item_id]["store"] for item_id in ids] == ["A", "B", "A"]
    assert (catalog.calls["POST bulk"], catalog.calls["GET stores"]) == (1, 2)
    await erp.close()


async def test_a_record_whose_reference_is_not_there_yet_holds_up_no_other_of_its_call(server: Server) -> None:
    catalog = Catalog(server)
    erp = bulk_adapter(server, CARRIERS["reference in a bulk item"])
    good, waits = await asyncio.gather(
        erp.create(Item("a", "A", {"code": "a", "name": "n", "count": 1})),
        failure_of(erp.create(Item("z", "Z", {"code": "z", "name": "n", "count": 1}))),
    )
    assert (catalog.items[good]["code"], waits.kind, len(catalog.items)) == ("a", Failure.REFERENCE, 1)
    await erp.close()


async def test_a_reference_that_needs_the_payload_is_null_in_a_bulk_delete(server: Server) -> None:
    catalog = Catalog(server)
    target = in_bulk(store_id="{{ store_id }}")
    reference = {"store_id": {**REFERENCE["store_id"], "params": {"code": "{{ payload.name }}"}}}
    target = {**target, "references": reference, "bulk_delete": target["bulk_update"]}
    erp = bulk_adapter(server, target)
    made = await erp.create(Item("a", "A", {"code": "a", "name": "B", "count": 1}))
    assert catalog.items[made]["store"] == "B"
    catalog.bodies.clear()
    await failure_of(erp.delete(Item("a", "A", {}, made)))
    assert catalog.bodies[0][0]["store_id"] is None
    await erp.close()


def test_a_name_that_is_no_reference_is_refused_in_a_bulk_item() -> None:
    with pytest.raises(ValidationError, match=r"item: nothing fills in 'shop_id'; known here: .*payload.*store_id"):
        TargetSettings.model_validate({**in_bulk(store="{{ shop_id }}"), "references": REFERENCE})


def catalog_config(server: Server, target: dict[str, Any]) -> Config:
    part = {"key": "code", "version": {"path": "v", "kind": "number"}, "group": "store", "list": {"path": "/"}}
    return Config.model_validate(
        {
            "sources": {"shop": {"base_url": server.url}},
            "third_parties": {"erp": {"base_url": server.url, "timeout": 5, "search_lag": 0}},
            "entities": {
                "item": {
                    "owner": "shop",
                    "parts": {"shop": part},
                    "third_party": target,
                    "mapping": {"code": "key", "name": "shop.name", "count": "shop.count"},
                }
            },
        }
    )


def ended(server: Server, target: dict[str, Any], behaviour: str, **options: Any) -> Any:
    skip = {*THIRD_PARTY.names, *SOURCE.names} - {behaviour}
    report = asyncio.run(
        run_conformance(
            catalog_config(server, target),
            "item",
            samples=[{"code": "k", "name": "a thing", "count": 3}],
            group="A",
            other_group="B",
            skip=skip,
            **options,
        )
    )
    return report.find_ending(behaviour)


@pytest.mark.parametrize("carrier", CARRIERS)
def test_group_can_change_makes_the_call_that_a_push_makes(server: Server, carrier: str) -> None:
    Catalog(server)
    ending = ended(server, CARRIERS[carrier], "group-can-change")
    assert (ending.outcome, ending.came) == ("passed", "")


def test_group_can_change_fails_where_nothing_that_is_sent_holds_the_group(server: Server) -> None:
    Catalog(server)
    ending = ended(server, TARGET, "group-can-change")
    assert ending.outcome == "failed"
    assert "neither a mapped field nor a template of a write holds the group" in ending.came
    assert "put {{ group }} into the calls that write" in ending.hint


@pytest.mark.parametrize("forgotten", ["name", "count"])
def test_update_then_read_changes_every_mapped_field(server: Server, forgotten: str) -> None:
    body = {name: f"{{{{ payload.{name} }}}}" for name in ("code", "name", "count") if name != forgotten}
    Catalog(server)
    ending = ended(server, {**TARGET, "update": {**TARGET["update"], "body": body}}, "update-then-read")
    assert ending.outcome == "failed"
    assert forgotten in ending.came


def test_update_then_read_changes_field_by_field_where_one_cannot_be_changed(server: Server) -> None:
    """The count is refused, and the name is not sent at all."""
    catalog = Catalog(server)
    plain = catalog._write

    def picky(item_id: str | None, fields: dict[str, Any]) -> tuple[dict[str, Any], int]:
        return ({"error": "count"}, 422) if fields.get("count") not in (None, 3) else plain(item_id, fields)

    catalog._write = picky  # type: ignore[method-assign]
    assert ended(server, TARGET, "update-then-read").outcome == "passed"
    without_name = writing(body={"code": "{{ payload.code }}", "count": "{{ payload.count }}", "name": "fixed"})
    ending = ended(server, {**TARGET, "update": without_name["update"]}, "update-then-read")
    assert (ending.outcome, "name" in ending.came) == ("failed", True)
