"""The third-party side of a plan: what would be pushed of a business group, against what the third party shows."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from sqlalchemy import Engine

from sync_orchestrator.core.context import EntityContext
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.full_sync import queries
from sync_orchestrator.core.full_sync.fill import Progress
from sync_orchestrator.core.full_sync.plan_draft import PlanDraft
from sync_orchestrator.core.full_sync.planned_record import PlannedAction, PlannedRecord, classify_record
from sync_orchestrator.core.ports import Found, Item
from sync_orchestrator.core.values.identity import other_key
from sync_orchestrator.core.values.places import differences_of_place
from sync_orchestrator.errors import MappingFailed

_COUNTED_AS = {
    PlannedAction.INCOMPLETE: "incomplete",
    PlannedAction.ON_HOLD: "on_hold",
    PlannedAction.DISCARDED: "discarded",
    PlannedAction.IN_SYNC: "unchanged",
    PlannedAction.DRIFT: "drift",
    PlannedAction.ABSENT: "absent",
    PlannedAction.NOT_SENT: "not_sent",
}
"""The counts of records that are not pushed."""


class PlannedPushes:
    """Compares planned records of a group with the third party's listing, and drafts what is done about each."""

    def __init__(
        self,
        engine: Engine,
        entity: EntityContext,
        group: str,
        draft: PlanDraft,
        records: Mapping[str, PlannedRecord],
    ) -> None:
        self._engine = engine
        self._entity = entity
        self._group = group
        self._draft = draft
        self._records = records

    async def compare_group(self, progress: Progress) -> None:
        """Lists the group at the third party, and drafts what is done about each record. Raises CallFailed."""
        there = await self._list_third_party(progress)
        await asyncio.to_thread(self._draft_unmanaged, there)
        for key, record in sorted(self._records.items()):
            if record.state.group == self._group:
                self._draft_record(key, record, there.get(key) or await self._read_elsewhere(key, record))
            elif record.archived is not None and record.archived.applied_group == self._group and record.is_out_of_sync:
                self._draft_departure(key)

    async def _list_third_party(self, progress: Progress) -> Mapping[str | None, list[Found]]:
        there: dict[str | None, list[Found]] = defaultdict(list)
        listed = 0
        async for page in self._entity.third_party.pages(self._group):
            for found in page:
                there[found.key].append(found)
            listed += len(page)
            progress("compare", listed)
        return there

    def _draft_unmanaged(self, there: Mapping[str | None, list[Found]]) -> None:
        unknown = sorted(key for key in there if key is not None and key not in self._records)
        with self._engine.begin() as connection:
            known = {
                row.key for row in run(connection, queries.PLAN_KNOWN_KEYS, entity=self._entity.name, keys=unknown)
            }
        for key in sorted({*unknown, *([None] if None in there else [])} - known, key=str):
            for found in there[key]:
                self._draft.add_count("unmanaged")
                self._draft.add_sample("unmanaged", key or found.external_id, {}, found)

    async def _read_elsewhere(self, key: str, record: PlannedRecord) -> list[Found]:
        """Reads a record that comes from another group, where it is under the same address there."""
        archived = record.archived
        if (
            archived is None
            or archived.applied_digest is None
            or not record.is_out_of_sync
            or record.moves_in(self._entity.third_party.capabilities)
            or archived.applied_group in (None, self._group)
        ):
            return []
        item = Item(key, archived.applied_group, {}, archived.external_id)
        found = await self._entity.third_party.read(item)
        return [found] if found is not None and other_key(key, found.key) is None else []

    def _draft_departure(self, key: str) -> None:
        """A record that goes to another group."""
        self._draft.add_action("moved", key)
        capabilities = self._entity.third_party.capabilities
        if capabilities.group_in_address and capabilities.can_delete:
            self._draft.add_action("delete", key)
            self._draft.add_sample("delete", key, {}, None)

    def _draft_record(self, key: str, record: PlannedRecord, there: Sequence[Found]) -> None:
        payload: dict[str, object] | None = None
        wanted: bytes | None = None
        if record.state.ready and not record.state.deleted:
            try:
                payload = self._entity.mapping.build_payload(key, record.state.group, record.data)
                wanted = self._entity.mapping.digest_of_ours(payload)
            except (MappingFailed, ValueError) as error:
                self._draft.add_count("unmapped")
                self._draft.add_note(f"{key!a}: {error}")
                return
        shown = [self._entity.digest_of_found(found, record.state.group) for found in there]
        action = classify_record(record, self._entity.third_party.capabilities, wanted=wanted, shown=shown)
        if (name := _COUNTED_AS.get(action)) is not None:
            self._draft.add_count(name)
        elif action is not PlannedAction.NOTHING:
            self._draft_push(action, key, payload or {}, wanted, there[0] if there else None)

    def _draft_push(
        self, action: PlannedAction, key: str, payload: dict[str, object], wanted: bytes | None, theirs: Found | None
    ) -> None:
        if action is PlannedAction.CREATE_DUPLICATE:
            self._draft.add_count("duplicates")
            action = PlannedAction.CREATE
        self._draft.add_action(action.value, key, ours=wanted, theirs=theirs)
        if action is PlannedAction.UNCHANGED or not self._draft.wants_sample(action.value):
            return
        is_update = action is PlannedAction.UPDATE and theirs is not None
        places = self._place_differences(key, theirs) if is_update and theirs is not None else []
        self._draft.add_sample(action.value, key, payload, theirs, places)

    def _place_differences(self, key: str, theirs: Found) -> list[dict[str, object]]:
        record, capabilities = self._records[key], self._entity.third_party.capabilities
        if (
            theirs.group is None
            and not capabilities.shows_group
            and record.archived
            and record.is_regrouped(capabilities)
        ):
            theirs = replace(theirs, group=record.archived.applied_group)
        return differences_of_place(capabilities, group=record.state.group, external_id=None, found=theirs)
