"""What the next call for a record has to be. Pure: a table of situations, no database, no network.

The third party cannot be asked to refuse a stale or repeated write, so what is not known is found out first.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sync_orchestrator.core.ports import Capabilities


class Step(StrEnum):
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
    REJECTED = "rejected"
    """This very payload was refused for good before."""


@dataclass(frozen=True, slots=True)
class Situation:
    """A claimed record, as far as it matters for the next call.

    ``unsettled_for``: seconds until an older call of unknown outcome can no longer land; negative when that time is
    over; None when every outcome is known. ``elsewhere``: an older call of unknown outcome went to another place.
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


def plan(situation: Situation, capabilities: Capabilities) -> Step:
    """The next step for a record in this situation."""
    settled = situation.outcome_unknown_for is None
    if not situation.deleted and situation.digest is not None and situation.digest == situation.rejected_digest:
        return Step.REJECTED
    known = situation.ever_applied or not situation.deleted
    in_place = not situation.moved and not situation.regrouped
    if settled and known and in_place and situation.digest == situation.applied_digest:
        return Step.NOTHING
    if not capabilities.assigns_ids:
        return _by_our_key(situation, capabilities)
    if situation.lost:
        return _without_its_id(situation, capabilities)
    if situation.external_id is not None:
        if situation.deleted:  # a create of unknown outcome may have made another one beside the known
            return Step.DELETE if settled or not capabilities.can_lookup else Step.LOOK_UP
        return Step.READ_BACK if _proves_itself(situation, capabilities) else Step.UPDATE
    if situation.deleted:
        return Step.LOOK_UP if capabilities.can_lookup else Step.NOTHING if settled else Step.HOLD
    if settled and capabilities.search_first and capabilities.can_lookup:
        return Step.LOOK_UP
    if settled or (capabilities.idempotent_create and not capabilities.can_lookup and not situation.elsewhere):
        return Step.CREATE
    return Step.LOOK_UP if capabilities.can_lookup else Step.HOLD


def _without_its_id(situation: Situation, capabilities: Capabilities) -> Step:
    """An id that leads to nothing does not prove that the record is gone: its key is searched, or time has to pass."""
    if capabilities.can_lookup:
        return Step.LOOK_UP
    if situation.deleted:
        return Step.NOTHING
    if situation.elsewhere:
        return Step.HOLD
    landed = situation.outcome_unknown_for is not None and situation.outcome_unknown_for <= 0
    return Step.FORGET if landed else Step.WAIT


def _by_our_key(situation: Situation, capabilities: Capabilities) -> Step:
    if situation.deleted:
        return Step.DELETE
    return Step.READ_BACK if _proves_itself(situation, capabilities) else Step.UPDATE


def _proves_itself(situation: Situation, capabilities: Capabilities) -> bool:
    """Whether a read is worth it: it shows all that a write would write, no late write can come, and repeating the
    update together with others does not cost less."""
    landed = situation.outcome_unknown_for is not None and situation.outcome_unknown_for <= 0
    return (
        landed
        and not situation.moved
        and not situation.regrouped
        and not (capabilities.has_linked_calls or capabilities.bulk_update)
    )


def after_lookup(situation: Situation, found: str | None, search_lag: float) -> Step | None:
    """What follows a search by our key, when all that it showed of a deleted record is gone.

    None: wait (``search_wait``). An older create may still land, or has landed within the last ``search_lag`` seconds,
    after which the search shows it.
    """
    if found is not None and not situation.deleted:
        return Step.UPDATE
    if search_wait(situation, search_lag) > 0:
        return None
    return Step.NOTHING if situation.deleted else Step.CREATE


def search_wait(situation: Situation, search_lag: float) -> float:
    """Seconds until a search shows all that was made; not above zero where it does already."""
    wait = 0.0
    if situation.outcome_unknown_for is not None:
        wait = situation.outcome_unknown_for + search_lag
    if situation.lost and situation.acknowledged_ago is not None:
        wait = max(wait, search_lag - situation.acknowledged_ago)
    return wait
