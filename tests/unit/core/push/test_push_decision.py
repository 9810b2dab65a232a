"""The next step of a push: tables over the situations and the third party's capabilities, and their invariants."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from sync_orchestrator.core.ports import Capabilities
from sync_orchestrator.core.push.decision import PushStep, Situation, after_lookup, plan_step

NOW, BEFORE, REFUSED = b"now", b"before", b"refused"
IN_FLIGHT, LANDED = 5.0, -0.1

SEARCHABLE = Capabilities(assigns_ids=True, can_lookup=True, idempotent_create=False, group_in_address=False)
IDEMPOTENT = replace(SEARCHABLE, can_lookup=False, idempotent_create=True)
BLIND = replace(SEARCHABLE, can_lookup=False)
OUR_KEYS = replace(BLIND, assigns_ids=False)
SHARED = replace(SEARCHABLE, search_first=True)

NEW = Situation(
    deleted=False,
    digest=NOW,
    applied_digest=None,
    rejected_digest=None,
    external_id=None,
    ever_applied=False,
    moved=False,
    outcome_unknown_for=None,
)
CHANGED = replace(NEW, applied_digest=BEFORE, external_id="7", ever_applied=True)
UNCHANGED = replace(CHANGED, applied_digest=NOW)
DELETED = replace(CHANGED, deleted=True, digest=None)
GONE = replace(DELETED, applied_digest=None, external_id=None)
NEVER_HERE = replace(GONE, ever_applied=False)
MOVED = replace(CHANGED, external_id=None, moved=True)

CREATE, UPDATE, DELETE, NOTHING, HOLD, REJECTED = (
    PushStep.CREATE,
    PushStep.UPDATE,
    PushStep.DELETE,
    PushStep.NOTHING,
    PushStep.HOLD,
    PushStep.REJECTED,
)
READ_BACK, LOOK_UP = PushStep.READ_BACK, PushStep.LOOK_UP


@pytest.mark.parametrize(
    ("situation", "searchable", "idempotent", "blind", "our_keys"),
    [
        # every outcome is known
        (NEW, CREATE, CREATE, CREATE, UPDATE),
        (CHANGED, UPDATE, UPDATE, UPDATE, UPDATE),
        (UNCHANGED, NOTHING, NOTHING, NOTHING, NOTHING),
        (replace(CHANGED, external_id=None), CREATE, CREATE, CREATE, UPDATE),
        (DELETED, DELETE, DELETE, DELETE, DELETE),
        (replace(DELETED, ever_applied=False), DELETE, DELETE, DELETE, DELETE),
        (GONE, NOTHING, NOTHING, NOTHING, NOTHING),
        # a deletion of what we never put there is pushed wherever that is possible
        (NEVER_HERE, LOOK_UP, NOTHING, NOTHING, DELETE),
        # a new place is written although the payload is the same
        (MOVED, CREATE, CREATE, CREATE, UPDATE),
        (replace(MOVED, applied_digest=NOW), CREATE, CREATE, CREATE, UPDATE),
    ],
)
def test_with_every_outcome_known(
    situation: Situation, searchable: PushStep, idempotent: PushStep, blind: PushStep, our_keys: PushStep
) -> None:
    steps = [plan_step(situation, capabilities) for capabilities in (SEARCHABLE, IDEMPOTENT, BLIND, OUR_KEYS)]
    assert steps == [searchable, idempotent, blind, our_keys]


@pytest.mark.parametrize("situation", [NEW, replace(CHANGED, external_id=None), MOVED])
def test_where_others_make_records_too_each_create_is_preceded_by_a_search(situation: Situation) -> None:
    assert plan_step(situation, SHARED) is LOOK_UP
    assert (after_lookup(situation, None, 1.0), after_lookup(situation, "7", 1.0)) == (CREATE, UPDATE)


@pytest.mark.parametrize("situation", [CHANGED, UNCHANGED, DELETED, GONE])
def test_only_a_create_is_preceded_by_that_search(situation: Situation) -> None:
    assert plan_step(situation, SHARED) is plan_step(situation, SEARCHABLE)


@pytest.mark.parametrize(
    ("situation", "searchable", "idempotent", "blind", "our_keys"),
    [
        # a create may still land, or has
        (NEW, LOOK_UP, CREATE, HOLD, UPDATE),
        (MOVED, LOOK_UP, CREATE, HOLD, UPDATE),
        (CHANGED, UPDATE, UPDATE, UPDATE, UPDATE),
        # an older payload may land after the newest
        (UNCHANGED, UPDATE, UPDATE, UPDATE, UPDATE),
        # an update or create may bring back what is deleted
        (DELETED, LOOK_UP, DELETE, DELETE, DELETE),
        (GONE, LOOK_UP, HOLD, HOLD, DELETE),
        (NEVER_HERE, LOOK_UP, HOLD, HOLD, DELETE),
    ],
)
def test_while_an_older_call_may_still_land(
    situation: Situation, searchable: PushStep, idempotent: PushStep, blind: PushStep, our_keys: PushStep
) -> None:
    outcome_unknown = replace(situation, outcome_unknown_for=IN_FLIGHT)
    steps = [plan_step(outcome_unknown, capabilities) for capabilities in (SEARCHABLE, IDEMPOTENT, BLIND, OUR_KEYS)]
    assert steps == [searchable, idempotent, blind, our_keys]


@pytest.mark.parametrize("outcome_unknown_for", [LANDED, 0.0])
@pytest.mark.parametrize(
    ("situation", "searchable", "idempotent", "blind", "our_keys"),
    [
        (NEW, LOOK_UP, CREATE, HOLD, READ_BACK),
        (CHANGED, READ_BACK, READ_BACK, READ_BACK, READ_BACK),
        (UNCHANGED, READ_BACK, READ_BACK, READ_BACK, READ_BACK),
        (DELETED, LOOK_UP, DELETE, DELETE, DELETE),
        (GONE, LOOK_UP, HOLD, HOLD, DELETE),
        (NEVER_HERE, LOOK_UP, HOLD, HOLD, DELETE),
        # what is read at the new place says nothing of the old one
        (MOVED, LOOK_UP, CREATE, HOLD, UPDATE),
    ],
)
def test_once_an_older_call_can_no_longer_land_its_outcome_is_looked_at(
    situation: Situation,
    searchable: PushStep,
    idempotent: PushStep,
    blind: PushStep,
    our_keys: PushStep,
    outcome_unknown_for: float,
) -> None:
    outcome_unknown = replace(situation, outcome_unknown_for=outcome_unknown_for)
    steps = [plan_step(outcome_unknown, capabilities) for capabilities in (SEARCHABLE, IDEMPOTENT, BLIND, OUR_KEYS)]
    assert steps == [searchable, idempotent, blind, our_keys]


@pytest.mark.parametrize(
    ("situation", "rejected"),
    [
        (replace(NEW, rejected_digest=NOW), True),
        (replace(CHANGED, rejected_digest=NOW), True),
        (replace(CHANGED, rejected_digest=NOW, outcome_unknown_for=LANDED), True),
        (replace(MOVED, rejected_digest=NOW), True),
        (replace(CHANGED, rejected_digest=REFUSED), False),
        (replace(DELETED, rejected_digest=NOW), False),
        (replace(NEVER_HERE, rejected_digest=NOW), False),
    ],
)
def test_a_payload_that_was_refused_for_good_is_not_sent_again(situation: Situation, rejected: bool) -> None:
    for capabilities in (SEARCHABLE, IDEMPOTENT, BLIND, OUR_KEYS):
        assert (plan_step(situation, capabilities) is REJECTED) is rejected


@pytest.mark.parametrize(
    ("situation", "outcome_unknown_for", "found", "step"),
    [
        (NEW, None, None, CREATE),
        (NEW, None, "7", UPDATE),
        (NEW, LANDED, None, CREATE),
        (NEW, 0.0, None, CREATE),
        (NEW, LANDED, "7", UPDATE),
        (NEW, IN_FLIGHT, None, None),
        (NEW, IN_FLIGHT, "7", UPDATE),
        (GONE, None, None, NOTHING),
        (GONE, None, "7", NOTHING),
        (GONE, LANDED, None, NOTHING),
        (GONE, 0.0, None, NOTHING),
        (GONE, LANDED, "7", NOTHING),
        (GONE, IN_FLIGHT, None, None),
        (GONE, IN_FLIGHT, "7", None),
    ],
)
def test_what_a_search_by_our_key_leads_to(
    situation: Situation, outcome_unknown_for: float | None, found: str | None, step: PushStep | None
) -> None:
    assert after_lookup(replace(situation, outcome_unknown_for=outcome_unknown_for), found, 0.0) is step


@pytest.mark.parametrize("landed_for", [0.0, 29.0])
@pytest.mark.parametrize("situation", [NEW, GONE])
def test_an_empty_search_is_not_believed_before_what_landed_last_would_show(
    situation: Situation, landed_for: float
) -> None:
    assert after_lookup(replace(situation, outcome_unknown_for=-landed_for), None, 30.0) is None
    assert after_lookup(replace(situation, outcome_unknown_for=-30.0), None, 30.0) is not None


# What holds in every situation -------------------------------------------------------------------------------------

TRAITS = [
    Capabilities(assigns_ids, can_lookup, repeatable, grouped, first)
    for assigns_ids, can_lookup, repeatable, grouped, first in product((False, True), repeat=5)
]
SITUATIONS = [
    Situation(digest is None, digest, applied, rejected, external_id, ever_applied, moved, outcome_unknown_for)
    for digest, applied, rejected, external_id, ever_applied, moved, outcome_unknown_for in product(
        (NOW, None),
        (NOW, BEFORE, None),
        (NOW, REFUSED, None),
        ("7", None),
        (False, True),
        (False, True),
        (None, IN_FLIGHT, 0.0, LANDED),
    )
]
PLANNED = [
    (situation, capabilities, plan_step(situation, capabilities))
    for situation, capabilities in product(SITUATIONS, TRAITS)
]


def may_land(situation: Situation) -> bool:
    return situation.outcome_unknown_for is not None and situation.outcome_unknown_for > 0


def in_sync(situation: Situation) -> bool:
    """The third party itself said that it has just this."""
    return (
        situation.outcome_unknown_for is None
        and not situation.moved
        and situation.digest == situation.applied_digest
        and (situation.ever_applied or not situation.deleted)
    )


def those(*steps: PushStep) -> list[tuple[Situation, Capabilities]]:
    found = [(situation, capabilities) for situation, capabilities, step in PLANNED if step in steps]
    assert found, "no situation leads there"
    return found


def test_nothing_is_created_beside_an_older_create_of_unknown_outcome_unless_that_is_idempotent() -> None:
    assert all(
        situation.outcome_unknown_for is None or capabilities.idempotent_create
        for situation, capabilities in those(CREATE)
    )


def test_nothing_is_created_where_an_id_is_known_or_the_record_is_deleted_or_ids_are_ours() -> None:
    assert all(
        situation.external_id is None and not situation.deleted and capabilities.assigns_ids
        for situation, capabilities in those(CREATE)
    )


def test_nothing_is_left_undone_while_an_outcome_is_unknown() -> None:
    assert all(situation.outcome_unknown_for is None for situation, _ in those(NOTHING))


def test_nothing_is_left_undone_unless_the_third_party_has_it_or_cannot_be_asked() -> None:
    for situation, capabilities in those(NOTHING):
        cannot_ask = (
            situation.deleted
            and capabilities.assigns_ids
            and situation.external_id is None
            and not capabilities.can_lookup
        )
        assert in_sync(situation) or cannot_ask


def test_what_is_in_sync_costs_no_call() -> None:
    assert all(step in (NOTHING, REJECTED) for situation, _, step in PLANNED if in_sync(situation))


def test_only_deleted_records_are_deleted_and_they_are_never_written() -> None:
    assert all(situation.deleted for situation, _ in those(DELETE))
    assert not any(situation.deleted for situation, _ in those(CREATE, UPDATE, READ_BACK, REJECTED))


def test_an_update_has_an_address() -> None:
    assert all(
        situation.external_id is not None or not capabilities.assigns_ids
        for situation, capabilities in those(UPDATE, READ_BACK)
    )


def test_a_deletion_has_an_address() -> None:
    assert all(
        situation.external_id is not None or not capabilities.assigns_ids for situation, capabilities in those(DELETE)
    )


def test_a_search_is_made_only_where_there_is_one_and_ids_are_not_ours() -> None:
    assert all(capabilities.can_lookup and capabilities.assigns_ids for _, capabilities in those(LOOK_UP))


def test_what_is_read_back_has_landed_or_never_will() -> None:
    assert all(
        situation.outcome_unknown_for is not None and not may_land(situation) and not situation.moved
        for situation, _ in those(READ_BACK)
    )


def test_a_person_is_asked_only_where_nothing_else_can_find_out() -> None:
    for situation, capabilities in those(HOLD):
        assert situation.outcome_unknown_for is not None
        assert situation.external_id is None
        assert capabilities.assigns_ids
        assert not capabilities.can_lookup
        assert situation.deleted or not capabilities.idempotent_create


def test_only_the_very_payload_that_was_refused_is_rejected() -> None:
    for situation, _, step in PLANNED:
        refused = situation.digest is not None and situation.digest == situation.rejected_digest
        assert (step is REJECTED) is refused


@pytest.mark.parametrize("found", [None, "7"])
def test_a_search_ends_in_the_same_record_once_or_waits(found: str | None) -> None:
    for situation, _ in those(LOOK_UP):
        step = after_lookup(situation, found, 0.0)
        assert (step is None) is (may_land(situation) and (found is None or situation.deleted))
        if step is not None:
            assert step is (NOTHING if situation.deleted else CREATE if found is None else UPDATE)


# Where others make and remove the records ---------------------------------------------------------------------------


@pytest.mark.parametrize("can_delete", [False, True])
@pytest.mark.parametrize("can_create", [False, True])
def test_what_is_left_to_others_is_never_planned(can_create: bool, can_delete: bool) -> None:
    steps = set()
    for situation, capabilities in product(SITUATIONS, TRAITS):
        limited = replace(capabilities, can_create=can_create, can_delete=can_delete)
        step = plan_step(situation, limited)
        steps.add(step)
        if step is LOOK_UP:
            for found in (None, "7"):
                following = after_lookup(situation, found, 0.0, can_create=can_create)
                steps |= set() if following is None else {following}
        if situation.deleted and not can_delete:
            assert step is PushStep.NOT_SENT
        elif not situation.deleted and can_create:
            assert step is plan_step(situation, capabilities), "what is allowed is planned as ever"
    assert (CREATE in steps) is can_create
    assert (DELETE in steps) is can_delete
    assert (PushStep.ABSENT in steps) is (not can_create)


# Played: an id that is known and leads nowhere --------------------------------------------------------------------
