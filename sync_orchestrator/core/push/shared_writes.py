"""Pushes of records that people change on both sides: what may be overwritten, and what follows a push.

A write is followed by a read of the same record on the side that was written (its echo), and a write that was not made,
because somebody changed the record meanwhile, by one, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from sync_orchestrator.core.ledger.event_rows import TWO_WAY_ORIGIN
from sync_orchestrator.core.ledger.recording import ChangeEvent, record_in
from sync_orchestrator.core.ports import Json, WriteGuard
from sync_orchestrator.core.two_way.shared_calls import CallPlace, acknowledge_calls, forget_calls, note_given_ids
from sync_orchestrator.core.values.mapping import compute_digest
from sync_orchestrator.expressions.mapping_columns import AGREED

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sync_orchestrator.core.context import EntityContext
    from sync_orchestrator.core.push.claims import PushClaim, RecordKey
    from sync_orchestrator.core.push.result import Pushed


def build_guard(entity: EntityContext, claimed: PushClaim, payload: Json | None) -> WriteGuard | None:
    """What the record may show before it is written; None where nothing of it is shared, or it is not there yet.

    Raises MappingFailed.
    """
    shared = claimed.shared
    if shared is None or not shared.is_linked or not entity.shared_fields:
        return None
    expected = tuple(
        entity.mapping.build_payload(claimed.key, claimed.group, {**claimed.parts, AGREED: known})
        for known in shared.known
    )
    unchanged = frozenset(
        name
        for name in entity.shared_fields
        if payload is not None
        and all(compute_digest([payload[name]]) == compute_digest([known[name]]) for known in expected)
    )
    return WriteGuard(expected, entity.shared_fields, unchanged)


def settle_shared_writes(
    connection: Connection,
    entities: Mapping[str, EntityContext],
    ends: Sequence[Pushed],
    acknowledged: Iterable[RecordKey],
    kept: Iterable[RecordKey],
) -> None:
    """Writes down what became of pushes of two-way records, and has the records that they went to read.

    Args:
        connection: The transaction of the settlement.
        entities: The entities, by name.
        ends: The ends of all pushes.
        acknowledged: The records whose pushes were acknowledged.
        kept: Those whose pushes were not, and that nobody else has claimed since.
    """
    shared = [end for end in ends if end.claim.shared is not None and entities[end.claim.entity].two_way is not None]
    if not shared:
        return
    good, bad = set(acknowledged), set(kept)
    carried_out: list[CallPlace] = []
    not_made: list[CallPlace] = []
    given: dict[str, dict[str, str]] = defaultdict(dict)
    events: list[ChangeEvent] = []
    for end in shared:
        claimed = end.claim
        record, place = (claimed.entity, claimed.key), (claimed.entity, claimed.key, claimed.token)
        is_unknown = end.outcome_unknown or bool(end.failure and end.failure.unknown)
        if record in good:
            is_carried_out = end.calls.wrote or (claimed.outcome_unknown_for is not None and not claimed.deleted)
            (carried_out if is_carried_out else not_made).append(place)
            if is_carried_out and end.external_id is not None:
                given[claimed.entity][claimed.key] = end.external_id
        elif record in bad and not is_unknown:
            not_made.append(place)
        if end.calls.wrote or end.calls.deleted or end.recheck is not None:
            events += _build_reads(entities[claimed.entity], end)
    acknowledge_calls(connection, carried_out)
    forget_calls(connection, not_made)
    for entity, ids in given.items():
        two_way = entities[entity].two_way
        if two_way is not None and not two_way.has_same_keys:
            note_given_ids(connection, entity, ids)
    if events:
        record_in(connection, events)


def _build_reads(entity: EntityContext, end: Pushed) -> list[ChangeEvent]:
    """The events that have the other side's record read."""
    assert entity.two_way is not None
    _, other = entity.two_way.both_sides(entity.name)
    claimed = end.claim
    key = claimed.key if entity.two_way.has_same_keys else end.recheck_id or end.external_id or claimed.external_id
    if key is None:
        return []
    is_gone = end.recheck == "gone" or (claimed.deleted and end.recheck is None)
    return [
        ChangeEvent(
            other.owner,
            f"two-way/{claimed.entity}/{claimed.key}/{claimed.token}",
            other.entity,
            key,
            "delete" if is_gone else "update" if claimed.shared and claimed.shared.is_linked else "create",
            0,
            origin=TWO_WAY_ORIGIN,
            is_doubted_delete=is_gone,
        )
    ]
