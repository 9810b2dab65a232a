"""Pushes of records with shared fields: announced with what they carry, so that it is known as ours when it is seen.

What a call of unknown outcome carried is remembered until it can no longer land: found later, it is no change of a
person's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sync_orchestrator.core.db.session import run, to_jsonb
from sync_orchestrator.core.ports import Json
from sync_orchestrator.core.two_way import queries
from sync_orchestrator.core.two_way.known_state import SharedCall, list_acknowledged
from sync_orchestrator.core.two_way.linking import BY_ID
from sync_orchestrator.core.two_way.records import call_of_row
from sync_orchestrator.core.two_way.rules import OWN, SEEN
from sync_orchestrator.core.two_way.three_way import same
from sync_orchestrator.expressions.mapping_columns import AGREED

if TYPE_CHECKING:
    from sqlalchemy import Connection

Claimed = tuple[str, str, int, Mapping[str, Json]]
"""The entity, key, token and parts of a claimed record."""

CallPlace = tuple[str, str, int]
"""The entity, key and token of a push."""


@dataclass(frozen=True, slots=True)
class SharedWrite:
    """What a push knows of the shared fields of its record.

    Attributes:
        known: The values that the other side may have: those seen last, then what calls of unknown outcome carried.
        is_linked: The other side has the record. If not, what a search finds there is not written over.
    """

    known: tuple[Json, ...]
    is_linked: bool


def announce_shared_calls(connection: Connection, claimed: Sequence[Claimed]) -> dict[tuple[str, str], SharedWrite]:
    """Writes down what pushes carry, before anything is sent; the caller commits.

    Args:
        connection: The transaction that claims the records.
        claimed: The claimed records; those without merged values are passed over.

    Returns:
        What each push knows, by entity and key.
    """
    shared = [
        (entity, key, token, parts[AGREED])
        for entity, key, token, parts in claimed
        if AGREED in parts and SEEN in parts[AGREED]
    ]
    if not shared:
        return {}
    places = {"entity": [each[0] for each in shared], "key": [each[1] for each in shared]}
    calls: dict[tuple[str, str], list[SharedCall]] = defaultdict(list)
    for row in run(connection, queries.SELECT_CALLS_OF_RECORDS, **places):
        calls[row.entity, row.key].append(call_of_row(row))
    found, seen_before, carried = {}, [], []
    for entity, key, _, agreed in shared:
        before = find_seen_values(agreed, calls[entity, key])
        unknown = [{**before, **call.carried} for call in calls[entity, key] if call.acknowledged is None]
        found[entity, key] = SharedWrite((before, *unknown), bool(before))
        seen_before.append(before)
        carried.append(find_carried_values(agreed, (before, *unknown)))
    run(
        connection,
        queries.INSERT_CALLS,
        **places,
        token=[each[2] for each in shared],
        carried=[to_jsonb(values) for values in carried],
        before=[to_jsonb(before) for before in seen_before],
        own=[to_jsonb(each[3][OWN]) for each in shared],
    )
    return found


def find_seen_values(agreed: Json, calls: Sequence[SharedCall]) -> Json:
    """The values that the other side had at the last merge, and what calls have changed since."""
    seen: Json = dict(agreed[SEEN])
    for call in list_acknowledged(calls):
        if not call.is_merged and seen:
            seen |= call.carried
    return seen


def find_carried_values(agreed: Json, known: Sequence[Json]) -> Json:
    """The merged values that the other side may not have yet. A value that it keeps is no agreement of both sides."""
    return {
        name: value
        for name, value in agreed.items()
        if name not in (SEEN, OWN) and not all(name in values and same(values[name], value) for values in known)
    }


def acknowledge_calls(connection: Connection, calls: Sequence[CallPlace]) -> None:
    """Notes that calls were carried out; a read that begins now sees what they wrote, or lags."""
    if calls:
        run(connection, queries.ACKNOWLEDGE_CALLS, **_columns(calls))


def forget_calls(connection: Connection, calls: Sequence[CallPlace]) -> None:
    """Forgets calls that were surely not carried out."""
    if calls:
        run(connection, queries.DELETE_CALLS, **_columns(calls))


def note_given_ids(connection: Connection, entity: str, ids: Mapping[str, str]) -> None:
    """Notes the ids that creates on the other side have given, by key, so that what has such an id is linked."""
    if ids:
        run(
            connection,
            queries.WRITE_MATCH_VALUES,
            entity=[entity] * len(ids),
            key=list(ids),
            field=[BY_ID] * len(ids),
            value=list(ids.values()),
        )


def _columns(calls: Sequence[CallPlace]) -> dict[str, list[str] | list[int]]:
    return {
        "entity": [entity for entity, _, _ in calls],
        "key": [key for _, key, _ in calls],
        "token": [token for _, _, token in calls],
    }
