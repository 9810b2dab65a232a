"""What a full sync does about one record: a table of situations, without a database."""

from __future__ import annotations

from typing import Any

import pytest

from sync_orchestrator.core.full_sync.planned_record import (
    ArchivedRecord,
    PlannedAction,
    PlannedRecord,
    classify_record,
)
from sync_orchestrator.core.ports import Capabilities
from sync_orchestrator.core.version_guard import RecordState, Stamp

OLD, NEW, OTHER = b"old", b"new", b"other"

ASSIGNS_IDS = Capabilities(assigns_ids=True, can_lookup=False, idempotent_create=False, group_in_address=False)
OUR_KEYS = Capabilities(assigns_ids=False, can_lookup=False, idempotent_create=False, group_in_address=False)
GROUP_IN_ADDRESS = Capabilities(assigns_ids=True, can_lookup=False, idempotent_create=False, group_in_address=True)


def record(
    archived: ArchivedRecord | None = None, *, revision: int = 2, deleted: bool = False, ready: bool = True
) -> PlannedRecord:
    return PlannedRecord(RecordState(revision, "A", deleted, ready), archived)


def acknowledged(**changes: Any) -> ArchivedRecord:
    values = {
        "revision": 2,
        "applied_revision": 2,
        "applied_digest": NEW,
        "applied_group": "A",
        "external_id": "1",
        "ever_applied": True,
    }
    return ArchivedRecord(**{**values, **changes})


DUE = {"applied_revision": 1, "applied_digest": OLD}

TABLE = [
    # The record, what the third party can do, its payload, what is shown: what is done.
    (record(ready=False), ASSIGNS_IDS, None, [], PlannedAction.INCOMPLETE),
    (record(ready=False, deleted=True), ASSIGNS_IDS, None, [NEW], PlannedAction.NOTHING),
    (record(), ASSIGNS_IDS, NEW, [], PlannedAction.CREATE),
    (record(), ASSIGNS_IDS, NEW, [NEW], PlannedAction.CREATE_DUPLICATE),
    (record(), OUR_KEYS, NEW, [], PlannedAction.CREATE),
    (record(), OUR_KEYS, NEW, [OTHER], PlannedAction.UPDATE),
    (record(), OUR_KEYS, NEW, [NEW], PlannedAction.UNCHANGED),
    (record(acknowledged()), ASSIGNS_IDS, NEW, [NEW], PlannedAction.IN_SYNC),
    (record(acknowledged()), ASSIGNS_IDS, NEW, [OTHER, NEW], PlannedAction.IN_SYNC),
    (record(acknowledged()), ASSIGNS_IDS, NEW, [OTHER], PlannedAction.DRIFT),
    (record(acknowledged()), ASSIGNS_IDS, NEW, [], PlannedAction.DRIFT),
    (record(acknowledged(**DUE)), ASSIGNS_IDS, NEW, [OLD], PlannedAction.UPDATE),
    (record(acknowledged(**DUE)), ASSIGNS_IDS, NEW, [NEW], PlannedAction.UNCHANGED),
    (record(acknowledged(**DUE)), ASSIGNS_IDS, NEW, [], PlannedAction.CREATE),
    (record(acknowledged(applied_revision=1)), ASSIGNS_IDS, NEW, [NEW], PlannedAction.IN_SYNC),
    # A mapping that changed since the record was acknowledged.
    (record(acknowledged()), ASSIGNS_IDS, OTHER, [NEW], PlannedAction.UPDATE),
    # Deletions.
    (record(acknowledged(**DUE), deleted=True), ASSIGNS_IDS, None, [OLD], PlannedAction.DELETE),
    (record(acknowledged(**DUE), deleted=True), ASSIGNS_IDS, None, [], PlannedAction.NOTHING),
    (record(acknowledged(applied_digest=None), deleted=True), ASSIGNS_IDS, None, [], PlannedAction.NOTHING),
    (record(acknowledged(applied_digest=None), deleted=True), ASSIGNS_IDS, None, [OLD], PlannedAction.DRIFT),
    # Records that wait for an operator do so until they change.
    (record(acknowledged(**DUE, stopped="on_hold")), ASSIGNS_IDS, NEW, [OLD], PlannedAction.ON_HOLD),
    (record(acknowledged(**DUE, stopped="on_hold", revision=1)), ASSIGNS_IDS, NEW, [OLD], PlannedAction.UPDATE),
    (record(acknowledged(**DUE, stopped="dead")), ASSIGNS_IDS, NEW, [OLD], PlannedAction.UPDATE),
    (record(acknowledged(**DUE, stopped="discarded")), ASSIGNS_IDS, NEW, [OLD], PlannedAction.DISCARDED),
    (record(acknowledged(**DUE, stopped="discarded", revision=1)), ASSIGNS_IDS, NEW, [OLD], PlannedAction.UPDATE),
    # A create of unknown outcome that cannot be looked up.
    (record(ArchivedRecord(revision=2, outcome_unknown_for=5.0)), ASSIGNS_IDS, NEW, [], PlannedAction.ON_HOLD),
    # Records that come from another group: under the same address, and to another one.
    (record(acknowledged(**DUE, applied_group="B")), ASSIGNS_IDS, NEW, [NEW], PlannedAction.UPDATE),
    (record(acknowledged(**DUE, applied_group="B")), GROUP_IN_ADDRESS, NEW, [], PlannedAction.CREATE),
]


@pytest.mark.parametrize(("planned", "capabilities", "wanted", "shown", "action"), TABLE)
def test_what_a_full_sync_does_about_a_record(
    planned: PlannedRecord, capabilities: Capabilities, wanted: bytes | None, shown: list[bytes], action: PlannedAction
) -> None:
    assert classify_record(planned, capabilities, wanted=wanted, shown=shown) is action


def test_a_part_that_a_delete_event_announces_is_not_deleted_again() -> None:
    planned = record()
    planned.state.parts = dict.fromkeys(("shop", "stock", "price"), Stamp(0, 1, 1, b"content"))
    planned.deleted_parts.add("stock")
    planned.announced_parts.add("price")
    assert [part for part in ("shop", "stock", "price", "none") if planned.has_part(part)] == ["shop"]
