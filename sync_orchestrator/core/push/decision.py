"""What the next call for a record has to be. Pure: a table of situations, no database, no network.

The third party cannot be asked to refuse a stale or repeated write, so what is not known is found out first.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from sync_orchestrator.core.ports import Capabilities

if TYPE_CHECKING:
    from sync_orchestrator.core.push.claims import PushClaim


class PushStep(StrEnum):
    """The next step of a push."""

    NOTHING = "nothing"
    """The third party has it already, as it told itself."""
    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    READ_BACK = "read back"
    """Look under the known id, and write only if it is not there as it should be."""
    LOOK_UP = "look up"
    """Search by our key before anything is made."""
    WAIT = "wait"
    """The id that was given leads to nothing, and a late write may still show: look again when none can."""
    FORGET = "forget"
    """Nothing of ours is under the id that was given, and no late write can show any more: the id is forgotten before
    anything is made, so that a crash leaves no create of unknown outcome behind a known id."""
    HOLD = "hold"
    """A create's outcome is unknown and cannot be found out: a person decides."""
    ABSENT = "absent"
    """The record is not there, and none is made there: it is waited for."""
    NOT_SENT = "not sent"
    """The record is deleted here, and no delete is sent there."""
    REJECTED = "rejected"
    """This very payload was refused for good before."""


@dataclass(frozen=True, slots=True)
class Situation:
    """A claimed record, as far as it matters for the next call.

    ``outcome_unknown_for``: seconds until an older call of unknown outcome can no longer land; negative when that time
    is over; None when every outcome is known. ``elsewhere``: an older call of unknown outcome went to another place.
    ``lost``: there was an id, and it leads to nothing or to another record. ``acknowledged_ago``: seconds since the
    third party last acknowledged the record; None for never. ``regrouped``: the third party may have it in another
    business group, under the same address.
    """

    deleted: bool
    digest: bytes | None
    applied_digest: bytes | None
    rejected_digest: bytes | None
    external_id: str | None
    ever_applied: bool
    moved: bool
    outcome_unknown_for: float | None
    elsewhere: bool = False
    lost: bool = False
    acknowledged_ago: float | None = None
    regrouped: bool = False


def situation_of(
    claimed: PushClaim, capabilities: Capabilities, wanted: bytes | None, written: bytes | None
) -> Situation:
    """The situation of a claimed record.

    Args:
        claimed: The record.
        capabilities: What the third party can do.
        wanted: The digest of the payload; None for a deleted record.
        written: The digest of the payload together with the place that it is written to.
    """
    is_moved = has_moved(claimed, capabilities)
    elsewhere = set(groups_elsewhere(claimed, capabilities)) - ({claimed.applied_group} if is_moved else set())
    return Situation(
        deleted=claimed.deleted,
        digest=wanted,
        applied_digest=claimed.applied_digest,
        rejected_digest=wanted if claimed.rejected_digest == written else None,
        external_id=None if is_moved and not claimed.deleted else claimed.external_id,
        ever_applied=claimed.ever_applied,
        moved=is_moved,
        outcome_unknown_for=claimed.outcome_unknown_for,
        elsewhere=bool(elsewhere),
        acknowledged_ago=claimed.acknowledged_ago,
        regrouped=_is_regrouped(claimed, capabilities),
    )


def has_moved(claimed: PushClaim, capabilities: Capabilities) -> bool:
    """Whether the third party has the record under the address of another business group."""
    return (
        capabilities.group_in_address
        and claimed.applied_group is not None
        and claimed.applied_group != claimed.group
        and claimed.applied_digest is not None
    )


def groups_elsewhere(claimed: PushClaim, capabilities: Capabilities) -> tuple[str, ...]:
    """Other business groups under whose addresses calls of unknown outcome may have written the record."""
    if not capabilities.group_in_address or claimed.outcome_unknown_for is None:
        return ()
    place = claimed.applied_group or claimed.group if claimed.deleted else claimed.group
    return tuple(group for group in claimed.outcome_unknown_groups if group != place)


def _is_regrouped(claimed: PushClaim, capabilities: Capabilities) -> bool:
    """Whether the third party may have the record in another group, where a group is no part of the address.

    A call to another group whose outcome is unknown counts, unless a read shows which group a record is in.
    """
    if (
        not capabilities.sends_group
        or capabilities.group_in_address
        or claimed.deleted
        or claimed.applied_digest is None
    ):
        return False
    hidden = claimed.outcome_unknown_for is not None and not capabilities.shows_group
    known = {claimed.applied_group} - {None}
    return bool((known | set(claimed.outcome_unknown_groups if hidden else ())) - {claimed.group})


def plan_step(situation: Situation, capabilities: Capabilities) -> PushStep:
    """The next step for a record in this situation."""
    settled = situation.outcome_unknown_for is None
    if situation.deleted and not capabilities.can_delete:
        return PushStep.NOT_SENT
    if not situation.deleted and situation.digest is not None and situation.digest == situation.rejected_digest:
        return PushStep.REJECTED
    known = situation.ever_applied or not situation.deleted
    in_place = not situation.moved and not situation.regrouped
    if settled and known and in_place and situation.digest == situation.applied_digest:
        return PushStep.NOTHING
    if not capabilities.assigns_ids:
        return _by_our_key(situation, capabilities)
    if situation.lost:
        return _without_its_id(situation, capabilities)
    if situation.external_id is not None:
        if situation.deleted:  # a create of unknown outcome may have made another one beside the known
            return PushStep.DELETE if settled or not capabilities.can_lookup else PushStep.LOOK_UP
        return PushStep.READ_BACK if _proves_itself(situation, capabilities) else PushStep.UPDATE
    if situation.deleted:
        return PushStep.LOOK_UP if capabilities.can_lookup else PushStep.NOTHING if settled else PushStep.HOLD
    if not capabilities.can_create:
        return PushStep.LOOK_UP if capabilities.can_lookup else PushStep.ABSENT
    if settled and capabilities.search_first and capabilities.can_lookup:
        return PushStep.LOOK_UP
    if settled or (capabilities.idempotent_create and not capabilities.can_lookup and not situation.elsewhere):
        return PushStep.CREATE
    return PushStep.LOOK_UP if capabilities.can_lookup else PushStep.HOLD


def _without_its_id(situation: Situation, capabilities: Capabilities) -> PushStep:
    """An id that leads to nothing does not prove that the record is gone: its key is searched, or time has to pass."""
    if capabilities.can_lookup:
        return PushStep.LOOK_UP
    if not capabilities.can_create:
        return PushStep.ABSENT
    if situation.deleted:
        return PushStep.NOTHING
    if situation.elsewhere:
        return PushStep.HOLD
    landed = situation.outcome_unknown_for is not None and situation.outcome_unknown_for <= 0
    return PushStep.FORGET if landed else PushStep.WAIT


def _by_our_key(situation: Situation, capabilities: Capabilities) -> PushStep:
    if situation.deleted:
        return PushStep.DELETE
    return PushStep.READ_BACK if _proves_itself(situation, capabilities) else PushStep.UPDATE


def _proves_itself(situation: Situation, capabilities: Capabilities) -> bool:
    """Returns whether a read is worth its cost.

    It shows all that a write would write, no late write can come, and to repeat the update together with others does
    not cost less.
    """
    landed = situation.outcome_unknown_for is not None and situation.outcome_unknown_for <= 0
    return (
        landed
        and not situation.moved
        and not situation.regrouped
        and not (capabilities.has_linked_calls or capabilities.bulk_update)
    )


def after_lookup(
    situation: Situation, found: str | None, search_lag: float, *, can_create: bool = True
) -> PushStep | None:
    """What follows a search by our key, when all that it showed of a deleted record is gone.

    None: wait (``search_wait``). An older create may still land, or has landed within the last ``search_lag`` seconds,
    after which the search shows it. Where nothing is created (``can_create`` False) there is nothing to wait for.
    """
    if found is not None and not situation.deleted:
        return PushStep.UPDATE
    if not can_create and not situation.deleted:
        return PushStep.ABSENT
    if search_wait(situation, search_lag) > 0:
        return None
    return PushStep.NOTHING if situation.deleted else PushStep.CREATE


def search_wait(situation: Situation, search_lag: float) -> float:
    """Seconds until a search shows all that was made; not above zero where it does already."""
    wait = 0.0
    if situation.outcome_unknown_for is not None:
        wait = situation.outcome_unknown_for + search_lag
    if situation.lost and situation.acknowledged_ago is not None:
        wait = max(wait, search_lag - situation.acknowledged_ago)
    return wait
