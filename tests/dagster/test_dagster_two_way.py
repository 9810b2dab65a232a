"""Two-way sync in Dagster: the checks of the mirror show conflicts, and a job decides them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import dagster as dg
import pytest
from dagster_instance import instance as instance
from dagster_instance import storage as storage
from dagster_instance import storage_url as storage_url
from dagster_instance import system_of
from sqlalchemy import Engine
from two_sides import TwoSides, build_document

from sync_orchestrator.assets.lineage import mirror_key
from sync_orchestrator.assets.two_way_checks import BOTH_SIDES_CHECK, CONFLICTS_CHECK
from sync_orchestrator.core.two_way.resolving import list_conflicts
from sync_orchestrator.definitions import build_definitions

__all__ = ["instance", "storage", "storage_url"]


@pytest.fixture
def sides(engine: Engine, request: pytest.FixtureRequest) -> Iterator[TwoSides]:
    sides = TwoSides(engine, build_document(keys=getattr(request, "param", "same")))
    yield sides
    sides.close()


def run(sides: TwoSides, instance: dg.DagsterInstance, job: str, **options: object) -> dg.ExecuteInProcessResult:
    definitions = build_definitions(sides.config, system_of(lambda: sides.context))
    config = {"ops": {"resolve_open_conflicts": {"config": options}}} if options else None
    return definitions.resolve_job_def(job).execute_in_process(
        instance=instance, run_config=config, raise_on_error=False
    )


def evaluated(ran: dg.ExecuteInProcessResult, instance: dg.DagsterInstance) -> dict[str, dg.AssetCheckEvaluation]:
    """What a run stored of the checks of our mirror, by name."""
    records = instance.get_records_for_run(ran.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION).records
    found = [record.event_log_entry.get_dagster_event().asset_check_evaluation_data for record in records]
    return {each.check_name: each for each in found if each.asset_key == mirror_key("product")}


def test_a_conflict_shows_at_the_mirror_and_a_job_decides_it(sides: TwoSides, instance: dg.DagsterInstance) -> None:
    sides.shop.add(sku="L-1", title="lamp", note="n", price=10)
    asyncio.run(sides.sync())
    asyncio.run(sides.settle(3))
    sides.shop.edit(sides.shop.find("L-1").id, price=11)
    sides.erp.edit(sides.erp.find("L-1").id, price=12)
    asyncio.run(sides.settle(2))

    found = evaluated(run(sides, instance, "report_alerts"), instance)
    conflicts = found[CONFLICTS_CHECK]
    assert (conflicts.passed, conflicts.severity, conflicts.description) == (
        False,
        dg.AssetCheckSeverity.WARN,
        "a person has to decide: price (1)",
    )
    table = conflicts.metadata["conflicts"]
    assert isinstance(table, dg.TableMetadataValue)
    (row,) = [dict(record.data) for record in table.records]
    assert (row["key"], row["field"], row["ours"], row["theirs"]) == ("L-1", "price", 11, 12)
    assert found[BOTH_SIDES_CHECK].passed
    assert found[BOTH_SIDES_CHECK].description == (
        "1 linked, 0 only in product, 0 only in product_back, 0 ambiguous, 0 wait"
    )

    refused = run(sides, instance, "resolve_conflicts", conflict=row["id"], winner="value")
    assert not refused.success
    resolved = run(sides, instance, "resolve_conflicts", conflict=row["id"], winner="value", value="13")
    assert resolved.success
    assert evaluated(resolved, instance)[CONFLICTS_CHECK].passed
    asyncio.run(sides.settle(3))
    assert sides.shop.values("price") == sides.erp.values("price") == {"L-1": (13,)}

    again = run(sides, instance, "resolve_conflicts", conflict=row["id"], winner="ours")
    (failure,) = [event for event in again.all_events if event.is_step_failure]
    assert "is not open any more" in str(failure.step_failure_data.error)


@pytest.mark.parametrize("sides", ["ids"], indirect=True)
def test_records_that_cannot_be_linked_are_a_warning_at_the_mirror(
    sides: TwoSides, instance: dg.DagsterInstance
) -> None:
    sides.shop.add(sku="L-1", title="lamp", note="n", price=10)
    for _ in range(2):
        sides.erp.add(sku="L-1", title="lamp", note="n", price=10)
    asyncio.run(sides.sync())
    asyncio.run(sides.settle(2))
    both_sides = evaluated(run(sides, instance, "report_alerts"), instance)[BOTH_SIDES_CHECK]
    assert (both_sides.passed, both_sides.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert both_sides.description == "0 linked, 1 only in product, 2 only in product_back, 3 ambiguous, 0 wait"
    table = both_sides.metadata["not linked"]
    assert isinstance(table, dg.TableMetadataValue)
    assert {str(dict(record.data)["reason"]) for record in table.records} == {"ambiguous"}


def test_the_job_decides_all_conflicts_about_a_field_alike(sides: TwoSides, instance: dg.DagsterInstance) -> None:
    for sku in ("L-1", "L-2"):
        sides.shop.add(sku=sku, title="lamp", note="n", price=10)
    asyncio.run(sides.sync())
    asyncio.run(sides.settle(3))
    for sku in ("L-1", "L-2"):
        sides.shop.edit(sides.shop.find(sku).id, price=11)
        sides.erp.edit(sides.erp.find(sku).id, price=12)
    asyncio.run(sides.settle(2))
    checked = evaluated(run(sides, instance, "report_alerts"), instance)[CONFLICTS_CHECK]
    assert checked.description == "a person has to decide: price (2)"
    with sides.engine.begin() as connection:
        number = list_conflicts(connection)[0]["id"]
    decided = run(sides, instance, "resolve_conflicts", conflict=number, winner="theirs", all_alike=True)
    assert evaluated(decided, instance)[CONFLICTS_CHECK].passed
    asyncio.run(sides.settle(3))
    assert sides.shop.values("price") == sides.erp.values("price") == {"L-1": (12,), "L-2": (12,)}
