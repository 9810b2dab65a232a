"""One record in the plan of a full sync, and the pure classification of what the full sync does about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.db.session import as_bytes
from sync_orchestrator.core.ports import Capabilities, Json
from sync_orchestrator.core.push.decision import PushStep, Situation, plan_step
from sync_orchestrator.core.version_guard import RecordState

if TYPE_CHECKING:
    from sqlalchemy import Row


class PlannedAction(StrEnum):
    """What a full sync does about one record of its business group."""

    NOTHING = "nothing"
    """The record is deleted here, and not there."""
    INCOMPLETE = "incomplete"
    """It lacks a required part, so it is not pushed."""
    ON_HOLD = "on hold"
    """It is on hold for an operator, so it is not pushed."""
    DISCARDED = "discarded"
    """An operator gave it up, so it is not pushed until it changes."""
    IN_SYNC = "in sync"
    """It is acknowledged, and is there as it should be."""
    DRIFT = "drift"
    """It is acknowledged, and is there otherwise. Validation looks after it."""
    UNCHANGED = "unchanged"
    """It is to be pushed, and is there already as it should be."""
    CREATE = "create"
    CREATE_DUPLICATE = "create a duplicate"
    """It is created, although a record with its key is there already."""
    UPDATE = "update"
    DELETE = "delete"
    ABSENT = "absent"
    """It is not there, and waits until others have made it there."""
    NOT_SENT = "not sent"
    """It is deleted here, and stays there."""


@dataclass(frozen=True, slots=True)
class ArchivedRecord:
    """A record as the archive has it, and as the third party has acknowledged it.

    ``unsettled_for``: seconds until an older call of unknown outcome can no longer land; None for none.
    """

    revision: int = 0
    applied_revision: int = 0
    applied_digest: bytes | None = None
    applied_group: str | None = None
    external_id: str | None = None
    stopped: str | None = None
    ever_applied: bool = False
    outcome_unknown_for: float | None = None

    @classmethod
    def from_row(cls, row: Row[Any]) -> ArchivedRecord:
        """Makes one from a row of the database."""
        return cls(
            revision=row.revision,
            applied_revision=row.applied_revision,
            applied_digest=as_bytes(row.applied_digest),
            applied_group=row.applied_group,
            external_id=row.external_id,
            stopped=row.stopped,
            ever_applied=row.ever_applied,
            outcome_unknown_for=row.outcome_unknown_for,
        )


@dataclass(slots=True)
class PlannedRecord:
    """A record as the merge would leave it; ``archived`` is how the archive has it now, if it does.

    ``moved_parts`` changed in the archive since the reading began: a listing without them proves nothing. A recorded
    delete event announces the deletion of ``announced_parts``: it is left to that event.
    """

    state: RecordState
    archived: ArchivedRecord | None = None
    data: Json = field(default_factory=dict)
    deleted_parts: set[str] = field(default_factory=set)
    moved_parts: set[str] = field(default_factory=set)
    announced_parts: set[str] = field(default_factory=set)

    @property
    def is_out_of_sync(self) -> bool:
        """Whether it is to be pushed."""
        if not self.state.ready:
            return False
        if self.archived is None:
            return self.state.revision != 0
        return self.archived.applied_revision != self.state.revision or self.archived.outcome_unknown_for is not None

    def has_part(self, part: str) -> bool:
        """Whether a deletion of the part would take something away that no delete event announces."""
        return part in self.state.parts and part not in self.deleted_parts and part not in self.announced_parts

    def is_regrouped(self, capabilities: Capabilities) -> bool:
        """Whether the third party has it in another business group, under the same address."""
        return (
            self._is_applied_elsewhere
            and capabilities.sends_group
            and not capabilities.group_in_address
            and not self.state.deleted
        )

    def moves_in(self, capabilities: Capabilities) -> bool:
        """Whether it comes from another business group, and so from another address."""
        return self._is_applied_elsewhere and capabilities.group_in_address

    @property
    def _is_applied_elsewhere(self) -> bool:
        archived = self.archived
        return (
            archived is not None
            and archived.applied_digest is not None
            and archived.applied_group is not None
            and archived.applied_group != self.state.group
        )

    @property
    def waits_for_operator(self) -> str | None:
        """``on_hold`` or ``discarded``, where the record has not changed since; None otherwise."""
        is_unchanged = self.archived is not None and self.archived.revision == self.state.revision
        return self.archived.stopped if self.archived is not None and is_unchanged else None


def classify_record(
    record: PlannedRecord, capabilities: Capabilities, *, wanted: bytes | None, shown: Sequence[bytes]
) -> PlannedAction:
    """Says what a full sync does about a record of its group. Pure.

    Args:
        record: The record, as the merge would leave it.
        capabilities: What the third party can do.
        wanted: The digest of its payload; None for a deleted record, and for one that is not ready.
        shown: The digests of what the third party shows under its key, as records of its group.
    """
    if not record.state.ready:
        return PlannedAction.NOTHING if record.state.deleted else PlannedAction.INCOMPLETE
    step = _next_step(record, capabilities, wanted)
    if step is None:
        return _classify_acknowledged(wanted, shown)
    waits = record.waits_for_operator
    if waits == "discarded":
        return PlannedAction.DISCARDED
    if step is PushStep.HOLD or waits == "on_hold":
        return PlannedAction.ON_HOLD
    if step is PushStep.NOTHING:
        return _classify_acknowledged(wanted, shown)
    if step is PushStep.NOT_SENT:
        return PlannedAction.NOT_SENT if shown else PlannedAction.NOTHING
    if wanted is None:
        return PlannedAction.DELETE if shown else PlannedAction.NOTHING
    if not shown:
        return PlannedAction.CREATE if capabilities.can_create else PlannedAction.ABSENT
    if step is PushStep.CREATE and capabilities.assigns_ids:
        return PlannedAction.CREATE_DUPLICATE
    is_there = shown[0] == wanted and not record.is_regrouped(capabilities)
    return PlannedAction.UNCHANGED if is_there else PlannedAction.UPDATE


def _next_step(record: PlannedRecord, capabilities: Capabilities, wanted: bytes | None) -> PushStep | None:
    """The first step of the record's push; None where it is not pushed.

    A mapping that has changed since the record was acknowledged makes it due, too (``remap.py``).
    """
    archived = record.archived or ArchivedRecord()
    is_mapped_otherwise = None not in (archived.applied_digest, wanted) and wanted != archived.applied_digest
    if not (record.is_out_of_sync or is_mapped_otherwise):
        return None
    moves_in = record.moves_in(capabilities)
    situation = Situation(
        deleted=record.state.deleted,
        digest=wanted,
        applied_digest=archived.applied_digest,
        rejected_digest=None,  # a full sync tries again what was refused
        external_id=None if moves_in else archived.external_id,
        ever_applied=archived.ever_applied,
        moved=moves_in,
        outcome_unknown_for=archived.outcome_unknown_for,
        regrouped=record.is_regrouped(capabilities),
    )
    return plan_step(situation, capabilities)


def _classify_acknowledged(wanted: bytes | None, shown: Sequence[bytes]) -> PlannedAction:
    """Nothing is pushed; what is there otherwise than acknowledged is validation's."""
    if wanted is None:
        return PlannedAction.DRIFT if shown else PlannedAction.NOTHING
    return PlannedAction.IN_SYNC if wanted in shown else PlannedAction.DRIFT
