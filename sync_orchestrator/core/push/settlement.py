"""What the ends of pushes mean: for records, for their events, for the breaker. One transaction, fenced by tokens.

Not here: the pushes themselves (``push.py``).
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from sync_orchestrator.core.context import EntityContext
from sync_orchestrator.core.db.session import force_index_scans, json, run
from sync_orchestrator.core.failure_causes import cause_of
from sync_orchestrator.core.ledger import queries as ledger_queries
from sync_orchestrator.core.notifications import alerts, outcomes
from sync_orchestrator.core.notifications import queries as notifications_queries
from sync_orchestrator.core.push import queries
from sync_orchestrator.core.push.attempt import Pushed
from sync_orchestrator.core.push.decision import Step
from sync_orchestrator.core.retry import Decision, after_conflict, after_failure
from sync_orchestrator.core.systems import queries as systems_queries
from sync_orchestrator.core.systems.call_limit import is_unanswered
from sync_orchestrator.core.systems.suspension import note_stray_ids
from sync_orchestrator.errors import Failure

if TYPE_CHECKING:
    from sync_orchestrator.config import ThirdPartySystem

MAX_KEYS = 20
"""Keys of acknowledged records that are kept of each group, for reports."""

_MOST_RETRY_AFTER = 3600.0
_SUCCESS_NOTED_SECONDS = 10.0
_RECENT_SECONDS = 60.0
_SILENT_TIMEOUTS = 2


@dataclass(slots=True)
class Settled:
    """What a settlement came to: counts, acknowledgements by entity and group, and creates that made a duplicate.

    ``keys``: the first ``MAX_KEYS`` acknowledged records by entity and group.
    """

    acknowledged: int = 0
    failed: int = 0
    dead: int = 0
    done: int = 0
    superseded: int = 0
    discarded: int = 0
    slowest: float = 0.0
    groups: Counter[tuple[str, str]] = field(default_factory=Counter)
    keys: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    duplicates: list[Pushed] = field(default_factory=list)

    def add(self, other: Settled) -> None:
        """Adds another settlement's figures to this one."""
        for name in ("acknowledged", "failed", "dead", "done", "superseded", "discarded"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.slowest = max(self.slowest, other.slowest)
        self.groups.update(other.groups)
        for place, keys in other.keys.items():
            for key in keys:
                self.note_key(place, key)
        self.duplicates += other.duplicates

    def note_key(self, place: tuple[str, str], key: str) -> None:
        """Keeps the key of an acknowledged record, if it is one of the first of its entity and group."""
        known = self.keys.setdefault(place, [])
        if len(known) < MAX_KEYS and key not in known:
            known.append(key)


def settle(
    connection: Connection,
    name: str,
    system: ThirdPartySystem,
    entities: dict[str, EntityContext],
    pushed: Sequence[Pushed],
) -> Settled:
    """Writes down how pushes at one third party ended.

    A push whose lease has gone to somebody else changes nothing but this: the record is of unknown outcome from here on.
    """
    force_index_scans(connection)
    result = Settled()
    state = _state(connection, name, pushed)
    ordered = sorted(pushed, key=lambda end: (end.claim.entity, end.claim.key))
    run(
        connection,
        queries.LOCK_CLAIMED_RECORDS,
        entity=[end.claim.entity for end in ordered],
        key=[end.claim.key for end in ordered],
    )
    good = [end for end in ordered if end.failure is None and end.postponed is None]
    bad = [end for end in ordered if end.failure is not None or end.postponed is not None]
    accepted, since = _acknowledge(connection, good)
    _finish_events(connection, good, accepted, result)
    _tell_of_mirrored(connection, entities, [end for end in good if (end.claim.entity, end.claim.key) in accepted])
    _breaker_heard_success(connection, name, state, good)
    refused_bad = _failures(connection, name, system, entities, bad, state, result)
    late = [end for end in good if (end.claim.entity, end.claim.key) not in accepted] + refused_bad
    _mark_unknown(connection, system, [end for end in late if end.called], result)
    _attempts(connection, [end for end in ordered if end.called])
    _note_strays(connection, name, ordered)
    if since is not None:
        _retry_refused(connection, name, entities, since)
    result.acknowledged = len(accepted)
    return result


def _note_strays(connection: Connection, name: str, ends: Sequence[Pushed]) -> None:
    """Ids that show other keys: a few are told, many suspend the third party (rule 28)."""
    strays = [
        (end.claim.entity, end.claim.key, stray.external_id, stray.shown_key)
        for end in ends
        if (stray := end.not_ours) is not None
    ]
    if strays:
        note_stray_ids(connection, name, strays)


def _retry_refused(connection: Connection, name: str, entities: dict[str, EntityContext], since: datetime) -> None:
    """Tries refused records once more when what was under way beside them has been acknowledged (rule 26)."""
    rows = run(connection, queries.RETRY_REFUSED, entities=_entities_of(name, entities), since=since)
    keys: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        keys[row.entity].append(row.key)
    for entity, some in sorted(keys.items()):
        run(connection, ledger_queries.REDRIVE_ARCHIVED_EVENTS, entity=entity, keys=sorted(some))


def _entities_of(name: str, entities: dict[str, EntityContext]) -> list[str]:
    return [entity.name for entity in entities.values() if entity.system_name == name]


def _state(connection: Connection, name: str, pushed: Sequence[Pushed]) -> Any:
    """The system as it is, locked where this settlement may open or close its breaker, or suspend it."""
    state = run(connection, systems_queries.SELECT_SYSTEM, name=name)[0]
    if state.open_since is None and all(end.failure is None and end.not_ours is None for end in pushed):
        return state
    return run(connection, systems_queries.LOCK_SYSTEM, name=name)[0]


def _acknowledge(connection: Connection, good: Sequence[Pushed]) -> tuple[set[tuple[str, str]], datetime | None]:
    """Returns the records that are acknowledged, and since when the oldest of them was under way."""
    if not good:
        return set(), None
    rows = run(
        connection,
        queries.ACKNOWLEDGE_PUSHES,
        **_claims(good),
        revision=[end.claim.revision for end in good],
        digest=[end.digest for end in good],
        applied_group=[None if end.claim.deleted else end.claim.group for end in good],
        external_id=[end.external_id for end in good],
        settles=[
            end.claim.outcome_unknown_for is not None and end.claim.outcome_unknown_for <= 0 and not end.look_again
            for end in good
        ],
        outcome_unknown_until=[end.claim.outcome_unknown_until for end in good],
        late_creates=[json(end.claim.late_creates) for end in good],
        look_again=[end.look_again for end in good],
    )
    since = min((row.changed_at for row in rows), default=None)
    return {(row.entity, row.key) for row in rows}, since


def _finish_events(
    connection: Connection, good: Sequence[Pushed], accepted: set[tuple[str, str]], result: Settled
) -> None:
    by_entity: dict[str, list[str]] = defaultdict(list)
    for entity, key in sorted(accepted):
        by_entity[entity].append(key)
    for entity, keys in by_entity.items():
        finish_reached(connection, entity, keys, result)
    for end in good:
        if (end.claim.entity, end.claim.key) in accepted:
            places = {end.claim.group, end.claim.applied_group} - {None}
            for place in [(end.claim.entity, group) for group in places if group]:
                result.groups[place] += 1
                result.note_key(place, end.claim.key)


def _tell_of_mirrored(
    connection: Connection, entities: dict[str, EntityContext], acknowledged: Sequence[Pushed]
) -> None:
    """A second push that only settled what was acknowledged before is no news."""
    told: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for end in acknowledged:
        claimed = end.claim
        if (claimed.applied_revision, claimed.applied_digest) != (claimed.revision, end.digest):
            told[claimed.entity].append(
                (
                    claimed.key,
                    {
                        "group": claimed.group,
                        "revision": claimed.revision,
                        "deleted": claimed.deleted,
                        "external_id": end.external_id,
                    },
                )
            )
    for name, news in told.items():
        outcomes.note(connection, entities[name], "mirrored", news)


def finish_reached(connection: Connection, entity: str, keys: Sequence[str], result: Settled) -> None:
    """Finishes the events of these records that applied has reached."""
    for row in run(connection, ledger_queries.FINISH_REACHED, entity=entity, keys=list(keys)):
        setattr(result, row.what, getattr(result, row.what) + row.n)
        result.slowest = max(result.slowest, row.slowest)


def _breaker_heard_success(connection: Connection, name: str, state: Any, good: Sequence[Pushed]) -> None:
    if not any(end.called for end in good):
        return
    run(connection, systems_queries.CLEAR_BREAKER_FAILURES, system=name)
    if state.succeeded_ago is None or state.succeeded_ago > _SUCCESS_NOTED_SECONDS:
        run(connection, systems_queries.NOTE_SUCCESS, name=name)
    if state.open_since is not None:
        run(connection, systems_queries.CLOSE_BREAKER, name=name)
        alerts.resolve(connection, "breaker_open", name)


def _failures(
    connection: Connection,
    name: str,
    system: ThirdPartySystem,
    entities: dict[str, EntityContext],
    bad: Sequence[Pushed],
    state: Any,
    result: Settled,
) -> list[Pushed]:
    """Settles what failed or was postponed; returns those whose lease was no longer theirs."""
    if not bad:
        return []
    _obey_retry_after(connection, name, bad)
    was_open = state.open_since is not None
    passing = _others_under_way(connection, name, entities, bad)
    decisions = [_decision(end, entities[end.claim.entity], passing=passing) for end in bad]
    now_open = _breaker_open(connection, name, system, state, bad, decisions, entities)
    if now_open or was_open:
        decisions = [_spared(end, decision) for end, decision in zip(bad, decisions, strict=True)]
    rows = run(
        connection,
        queries.FAIL_PUSHES,
        **_claims(bad),
        in_flight_window=system.in_flight_seconds,
        revision=[end.claim.revision for end in bad],
        attempts=[decision.attempts for decision in decisions],
        wait=[float(decision.wait or 0.0) for decision in decisions],
        stopped=[_stopped(end, decision) for end, decision in zip(bad, decisions, strict=True)],
        error=[str(end.failure) if end.failure else None for end in bad],
        rejected_digest=[_refused(end, decision) for end, decision in zip(bad, decisions, strict=True)],
        external_id=[end.external_id for end in bad],
        unknown=[end.outcome_unknown or bool(end.failure and end.failure.unknown) for end in bad],
        waits=[end.failure is not None and end.failure.kind is Failure.REFERENCE for end in bad],
        cleared=[end.cleared for end in bad],
        refused=[end.refused or _is_settled_refusal(end) for end in bad],
        settled=[end.settled for end in bad],
        outcome_unknown_until=[end.claim.outcome_unknown_until for end in bad],
    )
    kept = {(row.entity, row.key): row for row in rows}
    result.failed += sum(1 for end in bad if end.failure is not None and (end.claim.entity, end.claim.key) in kept)
    fates = [
        (end, decision)
        for end, decision in zip(bad, decisions, strict=True)
        if end.failure is not None and (row := kept.get((end.claim.entity, end.claim.key))) and row.same_revision
    ]
    _events_follow(connection, fates)
    _tell_of_dead(connection, entities, fates, result)
    if now_open and not was_open:
        _give_back(connection, name)
    return [end for end in bad if (end.claim.entity, end.claim.key) not in kept]


def _counts_for_breaker(end: Pushed) -> bool:
    return (
        end.called
        and end.failure is not None
        and not end.held
        and end.failure.kind not in (Failure.THROTTLED, Failure.REFERENCE)
    )


def _breaker_open(
    connection: Connection,
    name: str,
    system: ThirdPartySystem,
    state: Any,
    bad: Sequence[Pushed],
    decisions: Sequence[Decision],
    entities: dict[str, EntityContext],
) -> bool:
    """Counts distinct records; opens the breaker, or puts off the next probe where it is open.

    It opens, too, before a failure that says nothing about its record takes that record's last attempt while nothing
    else shows the third party to be well: in an outage in which little changes, the system waits and not the records.
    A record that failed as often since the last success counts alike, though a full sync or a new revision gave it a
    fresh set of attempts meanwhile.
    And it opens if calls have had no response for ``_SILENT_TIMEOUTS`` times the timeout: by then few calls are made
    at a time, with pauses between them, so that the number of failures would take many minutes to be reached.
    """
    counting = [end for end in bad if _counts_for_breaker(end)]
    if not counting:
        return False
    if state.open_since is not None:
        wait = min(system.breaker.probe_cap, (state.probe_wait or system.breaker.probe_after) * 2)
        run(connection, systems_queries.OPEN_BREAKER, name=name, wait=wait)
        return True
    rows = run(
        connection,
        systems_queries.ADD_BREAKER_FAILURES,
        system=name,
        entity=[end.claim.entity for end in counting],
        key=[end.claim.key for end in counting],
        attempts=[end.claim.attempts for end in counting],
    )
    failures = run(connection, systems_queries.COUNT_BREAKER_FAILURES, system=name)[0]
    failing = int(failures.records)
    times = {(row.entity, row.key): row.times for row in rows}
    last = [
        end
        for end, decision in zip(bad, decisions, strict=True)
        if (failed := times.get((end.claim.entity, end.claim.key))) is not None
        and (decision.wait is None or failed > entities[end.claim.entity].retry.retries)
    ]
    unproven = any(
        _says_nothing(end, failing) and not _is_proven_well(end, times[end.claim.entity, end.claim.key], state)
        for end in last
    )
    is_silent = (
        failing > 1
        and failures.seconds >= _SILENT_TIMEOUTS * system.timeout
        and any(end.failure is not None and is_unanswered(end.failure) for end in counting)
    )
    if failing < system.breaker.failures and not unproven and not is_silent:
        return False
    run(connection, systems_queries.OPEN_BREAKER, name=name, wait=system.breaker.probe_after)
    alerts.tell(
        connection,
        "breaker_open",
        name,
        f"{name} does not answer as it should: pushes to it wait",
        examples=[str(counting[-1].failure)],
    )
    return True


def _says_nothing(end: Pushed, failing: int) -> bool:
    """Whether a failure says nothing about the record; a 5xx may, unless other records have it as well."""
    failure = end.failure
    if failure is None or failure.kind is Failure.PERMANENT:
        return False
    return failure.about_system or failure.kind is Failure.AUTH or failure.status is None or failing > 1


def _is_proven_well(end: Pushed, times: int, state: Any) -> bool:
    """Whether the third party did what it was asked since the record failed before, or just before it failed."""
    if times > 1:
        return False
    recently = state.succeeded_ago is not None and state.succeeded_ago < _RECENT_SECONDS
    return end.claim.attempts > 0 or recently


def _give_back(connection: Connection, name: str) -> None:
    run(connection, notifications_queries.WITHDRAW_ALERT, system=name)
    run(connection, queries.RELEASE_EVENTS_OF_SYSTEM, system=name)
    run(connection, queries.RELEASE_RECORDS_OF_SYSTEM, system=name)


def _others_under_way(
    connection: Connection, name: str, entities: dict[str, EntityContext], bad: Sequence[Pushed]
) -> bool:
    """Whether a conflict with another record may pass by itself, since others are under way."""
    refused = [end for end in bad if _names_another(end)]
    return bool(refused) and bool(
        run(
            connection,
            queries.COUNT_OTHERS_IN_FLIGHT,
            entities=_entities_of(name, entities),
            entity=[end.claim.entity for end in refused],
            key=[end.claim.key for end in refused],
        )[0].found
    )


def _is_settled_refusal(end: Pushed) -> bool:
    """Whether a payload was refused while no outcome of the record was unknown."""
    return end.called and end.rejected_digest is not None and end.claim.outcome_unknown_for is None


def _names_another(end: Pushed) -> bool:
    """Whether a payload was refused because of another record, such as one that has the same unique value."""
    failure = end.failure
    return (
        end.called
        and end.rejected_digest is not None
        and failure is not None
        and (failure.duplicate or failure.conflict)
        and not end.claim.refusal_retried
    )


def _decision(end: Pushed, entity: EntityContext, *, passing: bool) -> Decision:
    """``passing``: other records are under way, so that a conflict with one of them may pass by itself."""
    if end.postponed is not None:
        return Decision(end.claim.attempts, end.postponed)
    assert end.failure is not None
    if end.held:
        return Decision(end.claim.attempts, None)
    if passing and _names_another(end):
        return after_conflict(entity.retry, end.claim.attempts, draw=random.random())
    return after_failure(
        entity.retry,
        end.claim.attempts,
        end.failure.kind,
        retry_after=end.failure.retry_after,
        waited=end.claim.waiting_for,
        draw=random.random(),
    )


def _spared(end: Pushed, decision: Decision) -> Decision:
    """With the breaker open no attempt is spent."""
    if end.failure is None or end.held or not end.called:
        return decision
    return Decision(end.claim.attempts, 0.0)


def _stopped(end: Pushed, decision: Decision) -> str | None:
    if decision.wait is not None:
        return None
    return "on_hold" if end.held else "dead"


def _refused(end: Pushed, decision: Decision) -> bytes | None:
    """The digest of the payload that was refused for good, now or before."""
    if decision.wait is not None:
        return None
    return end.claim.rejected_digest if end.step is Step.REJECTED else end.rejected_digest


def _obey_retry_after(connection: Connection, name: str, bad: Iterable[Pushed]) -> None:
    asked = [(end.failure.retry_after, end.failure.detail) for end in bad if end.failure and end.failure.retry_after]
    if asked:
        seconds, reason = max(asked)
        run(
            connection,
            systems_queries.HOLD_OFF_UNTIL,
            name=name,
            seconds=min(_MOST_RETRY_AFTER, seconds),
            reason=reason,
        )


def _events_follow(connection: Connection, fates: Sequence[tuple[Pushed, Decision]]) -> None:
    if fates:
        run(
            connection,
            ledger_queries.NOTE_PUSH_FAILED,
            entity=[end.claim.entity for end, _ in fates],
            key=[end.claim.key for end, _ in fates],
            state=["dead" if decision.wait is None else "waiting" for _, decision in fates],
            attempts=[decision.attempts for _, decision in fates],
            wait=[decision.wait for _, decision in fates],
            error=[str(end.failure) for end, _ in fates],
        )


def _tell_of_dead(
    connection: Connection,
    entities: dict[str, EntityContext],
    fates: Sequence[tuple[Pushed, Decision]],
    result: Settled,
) -> None:
    by_cause: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    told: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for end, decision in fates:
        if decision.wait is None:
            assert end.failure is not None
            told[end.claim.entity].append(
                (
                    end.claim.key,
                    {
                        "group": end.claim.group,
                        "revision": end.claim.revision,
                        "error": str(end.failure),
                        "attempts": decision.attempts,
                    },
                )
            )
            cause = cause_of(end.failure, end.claim.key)
            by_cause["on_hold" if end.held else "dead", end.claim.entity, cause].append(end.claim.key)
    for (kind, entity, cause), keys in by_cause.items():
        result.dead += len(keys)
        alerts.tell_of_records(
            connection, kind, f"{entity}: {cause}", f"{entity}: changes that could not be mirrored", entity, keys
        )
    for entity, news in told.items():
        outcomes.note(connection, entities[entity], "dead", news)


def _mark_unknown(connection: Connection, system: ThirdPartySystem, late: Sequence[Pushed], result: Settled) -> None:
    if not late:
        return
    made = {(end.claim.entity, end.claim.key): end for end in late if end.created}
    records = {"entity": [end.claim.entity for end in late], "key": [end.claim.key for end in late]}
    run(connection, queries.MARK_OUTCOME_UNKNOWN, **records, in_flight_window=system.in_flight_seconds)
    rows = run(
        connection,
        queries.REMEMBER_LATE_CREATE,
        **records,
        group=[end.claim.group for end in late],
        external_id=[end.external_id if end.created else None for end in late],
    )
    for row in rows:
        end = made.get((row.entity, row.key))
        another = row.external_id is not None and end is not None and row.external_id != end.external_id
        if end is not None and another and row.lease_token is None:  # whoever holds it may be adopting this one
            result.duplicates.append(end)


def _attempts(connection: Connection, called: Sequence[Pushed]) -> None:
    if called:
        run(
            connection,
            queries.INSERT_ATTEMPTS,
            entity=[end.claim.entity for end in called],
            key=[end.claim.key for end in called],
            revision=[end.claim.revision for end in called],
            step=[str(end.step) for end in called],
            outcome=[_outcome(end) for end in called],
            status=[end.failure.status if end.failure else None for end in called],
            detail=[end.failure.detail[:500] if end.failure else end.external_id for end in called],
        )


def _outcome(end: Pushed) -> str:
    if end.failure is not None:
        return "unknown" if end.failure.unknown else str(end.failure.kind)
    return "postponed" if end.postponed is not None else "acknowledged"


def _claims(ends: Sequence[Pushed]) -> dict[str, list[Any]]:
    return {
        "entity": [end.claim.entity for end in ends],
        "key": [end.claim.key for end in ends],
        "token": [end.claim.token for end in ends],
    }
