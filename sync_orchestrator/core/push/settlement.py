"""What the ends of pushes mean: for records, for their events, for the breaker. One transaction, fenced by tokens."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from sync_orchestrator.core.db.locks import lock_records_in_order
from sync_orchestrator.core.db.session import force_index_scans, run, to_jsonb
from sync_orchestrator.core.failure_causes import cause_of
from sync_orchestrator.core.ledger.finishing import (
    FailedRecord,
    FinishedEvents,
    finish_reached,
    note_push_failed,
    release_events_of_system,
)
from sync_orchestrator.core.notifications import alerts, outcomes
from sync_orchestrator.core.ports import Json
from sync_orchestrator.core.push import queries
from sync_orchestrator.core.push.attempt_log import log_attempts
from sync_orchestrator.core.push.claims import RecordKey, claim_columns
from sync_orchestrator.core.push.decision import PushStep
from sync_orchestrator.core.push.hold import release_records_of_system, retry_refused_records
from sync_orchestrator.core.push.late_calls import note_late_calls
from sync_orchestrator.core.push.result import Pushed
from sync_orchestrator.core.push.shared_writes import settle_shared_writes
from sync_orchestrator.core.retry import Decision, after_conflict, after_failure
from sync_orchestrator.core.systems.breaker import (
    RecordFailure,
    SystemState,
    read_system,
    record_failures,
    record_success,
)
from sync_orchestrator.core.systems.rate_limit import hold_off
from sync_orchestrator.core.systems.suspension import note_stray_ids
from sync_orchestrator.errors import Failure

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sync_orchestrator.config import ThirdPartySettings
    from sync_orchestrator.core.context import EntityContext

    News = dict[str, list[tuple[str, Json]]]
    """By entity the keys of records, each with the data of its outcome."""

MAX_KEYS = 20
"""Keys of acknowledged records that are kept of each group, for reports."""

_MAX_RETRY_AFTER_SECONDS = 3600.0


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
        self.acknowledged += other.acknowledged
        self.failed += other.failed
        self.dead += other.dead
        self.done += other.done
        self.superseded += other.superseded
        self.discarded += other.discarded
        self.slowest = max(self.slowest, other.slowest)
        self.groups.update(other.groups)
        for place, keys in other.keys.items():
            for key in keys:
                self.note_key(place, key)
        self.duplicates += other.duplicates

    def add_finished(self, finished: FinishedEvents) -> None:
        """Adds events that were finished."""
        self.done += finished.done
        self.superseded += finished.superseded
        self.discarded += finished.discarded
        self.slowest = max(self.slowest, finished.slowest_seconds)

    def note_key(self, place: tuple[str, str], key: str) -> None:
        """Keeps the key of an acknowledged record, if it is one of the first of its entity and group."""
        known = self.keys.setdefault(place, [])
        if len(known) < MAX_KEYS and key not in known:
            known.append(key)


def settle_pushes(
    connection: Connection,
    name: str,
    system: ThirdPartySettings,
    entities: dict[str, EntityContext],
    pushed: Sequence[Pushed],
) -> Settled:
    """Writes down how pushes at one third party ended.

    A push whose lease has gone to somebody else changes nothing but this: its outcome is unknown from here on.
    """
    force_index_scans(connection)
    result = Settled()
    state = _read_state(connection, name, pushed)
    ordered = sorted(pushed, key=_key_of)
    lock_records_in_order(connection, [end.claim.entity for end in ordered], [end.claim.key for end in ordered])
    good = [end for end in ordered if end.failure is None and end.postponed is None]
    bad = [end for end in ordered if end.failure is not None or end.postponed is not None]
    accepted, since = _acknowledge_pushes(connection, good)
    acknowledged = [end for end in good if _key_of(end) in accepted]
    late = [end for end in good if _key_of(end) not in accepted]
    _finish_events(connection, acknowledged, result)
    _report_mirrored(connection, entities, acknowledged)
    # A record that was found changed was read there: its third party is well, and has to be read to go on.
    if any(end.calls.called for end in [*good, *(end for end in bad if end.recheck is not None)]):
        record_success(connection, name, state)
    lost = _settle_failures(connection, name, system, entities, bad, state, result)
    kept = {_key_of(end) for end in bad} - {_key_of(end) for end in lost}
    settle_shared_writes(connection, entities, ordered, accepted, kept)
    late += lost
    result.duplicates += note_late_calls(
        connection, [end for end in late if end.calls.called], system.in_flight_seconds
    )
    log_attempts(connection, [end for end in ordered if end.calls.called or end.step is PushStep.NOT_SENT])
    _note_strays(connection, name, ordered)
    if since is not None:
        retry_refused_records(connection, _entities_of(name, entities), since)
    result.acknowledged = len(accepted)
    return result


def _key_of(end: Pushed) -> RecordKey:
    return end.claim.entity, end.claim.key


def _entities_of(name: str, entities: Mapping[str, EntityContext]) -> list[str]:
    return [entity.name for entity in entities.values() if entity.system_name == name]


def _read_state(connection: Connection, name: str, pushed: Sequence[Pushed]) -> SystemState:
    """The system as it is, locked where this settlement may open or close its breaker, or suspend it."""
    state = read_system(connection, name)
    if not state.is_open and all(end.failure is None and end.calls.stray is None for end in pushed):
        return state
    return read_system(connection, name, is_locked=True)


def _note_strays(connection: Connection, name: str, ends: Sequence[Pushed]) -> None:
    """Notes ids that show other keys: a few are reported, many suspend the third party (rule 28)."""
    strays = [
        (end.claim.entity, end.claim.key, stray.external_id, stray.shown_key)
        for end in ends
        if (stray := end.calls.stray) is not None
    ]
    if strays:
        note_stray_ids(connection, name, strays)


# Acknowledged --------------------------------------------------------------------------------------------------------


def _acknowledge_pushes(connection: Connection, good: Sequence[Pushed]) -> tuple[set[RecordKey], datetime | None]:
    """Returns the records that are acknowledged, and since when the oldest of them was under way."""
    if not good:
        return set(), None
    rows = run(
        connection,
        queries.ACKNOWLEDGE_PUSHES,
        **claim_columns([end.claim for end in good]),
        revision=[end.claim.revision for end in good],
        digest=[end.digest for end in good],
        applied_group=[None if end.claim.deleted else end.claim.group for end in good],
        external_id=[end.external_id for end in good],
        settles=[
            end.claim.outcome_unknown_for is not None and end.claim.outcome_unknown_for <= 0 and not end.look_again
            for end in good
        ],
        outcome_unknown_until=[end.claim.outcome_unknown_until for end in good],
        late_creates=[to_jsonb(end.claim.late_creates) for end in good],
        look_again=[end.look_again for end in good],
    )
    since = min((row.changed_at for row in rows), default=None)
    return {(row.entity, row.key) for row in rows}, since


def _finish_events(connection: Connection, acknowledged: Sequence[Pushed], result: Settled) -> None:
    by_entity: dict[str, set[str]] = defaultdict(set)
    for end in acknowledged:
        by_entity[end.claim.entity].add(end.claim.key)
    for entity, keys in sorted(by_entity.items()):
        result.add_finished(finish_reached(connection, entity, sorted(keys)))
    for end in acknowledged:
        for group in {end.claim.group, end.claim.applied_group}:
            if group:
                result.groups[end.claim.entity, group] += 1
                result.note_key((end.claim.entity, group), end.claim.key)


def _report_mirrored(
    connection: Connection, entities: Mapping[str, EntityContext], acknowledged: Sequence[Pushed]
) -> None:
    """Records outcomes. A second push that only settled what was acknowledged before is no news."""
    news: News = defaultdict(list)
    for end in acknowledged:
        claimed = end.claim
        if (claimed.applied_revision, claimed.applied_digest) != (claimed.revision, end.digest):
            data = {
                "group": claimed.group,
                "revision": claimed.revision,
                "deleted": claimed.deleted,
                "external_id": end.external_id,
                **({"sent": False} if end.step is PushStep.NOT_SENT else {}),
            }
            news[claimed.entity].append((claimed.key, data))
    _record_outcomes(connection, entities, "mirrored", news)


def _record_outcomes(connection: Connection, entities: Mapping[str, EntityContext], kind: str, news: News) -> None:
    for entity, of_records in news.items():
        outcomes.record_outcomes(connection, entities[entity].outcomes, kind, of_records)


# Not acknowledged ----------------------------------------------------------------------------------------------------


def _settle_failures(
    connection: Connection,
    name: str,
    system: ThirdPartySettings,
    entities: Mapping[str, EntityContext],
    bad: Sequence[Pushed],
    state: SystemState,
    result: Settled,
) -> list[Pushed]:
    """Settles what failed or was postponed; returns those whose lease was no longer theirs."""
    if not bad:
        return []
    _obey_retry_after(connection, name, bad)
    may_pass = _is_conflict_passing(connection, _entities_of(name, entities), bad)
    decided = [(end, _decide_retry(end, entities[end.claim.entity], may_pass=may_pass)) for end in bad]
    is_open = record_failures(connection, name, system, state, _failures_for_breaker(decided, entities))
    if is_open or state.is_open:
        decided = [(end, _without_cost(end, decision)) for end, decision in decided]
    kept = _write_failures(connection, system, decided)
    result.failed += sum(1 for end in bad if end.failure is not None and _key_of(end) in kept)
    fates = [(end, decision) for end, decision in decided if end.failure is not None and kept.get(_key_of(end))]
    note_push_failed(
        connection,
        [
            FailedRecord(end.claim.entity, end.claim.key, decision.attempts, decision.wait, str(end.failure))
            for end, decision in fates
        ],
    )
    _report_dead(connection, entities, [(end, decision) for end, decision in fates if decision.wait is None], result)
    if is_open and not state.is_open:
        alerts.withdraw_alerts_of_system(connection, name)
        release_events_of_system(connection, name)
        release_records_of_system(connection, name)
    return [end for end in bad if _key_of(end) not in kept]


def _write_failures(
    connection: Connection, system: ThirdPartySettings, decided: Collection[tuple[Pushed, Decision]]
) -> dict[RecordKey, bool]:
    """Returns the records whose leases were still held, and whether each has the revision that was pushed."""
    bad = [end for end, _ in decided]
    rows = run(
        connection,
        queries.FAIL_PUSHES,
        **claim_columns([end.claim for end in bad]),
        in_flight_window=system.in_flight_seconds,
        revision=[end.claim.revision for end in bad],
        attempts=[decision.attempts for _, decision in decided],
        wait=[float(decision.wait or 0.0) for _, decision in decided],
        stopped=[_hold_reason(end, decision) for end, decision in decided],
        error=[str(end.failure) if end.failure else None for end in bad],
        rejected_digest=[_rejected_digest(end, decision) for end, decision in decided],
        external_id=[end.external_id for end in bad],
        unknown=[end.outcome_unknown or bool(end.failure and end.failure.unknown) for end in bad],
        waits=[end.failure is not None and end.failure.kind is Failure.REFERENCE for end in bad],
        cleared=[end.cleared for end in bad],
        refused=[end.refused or _is_settled_refusal(end) for end in bad],
        settled=[end.settled for end in bad],
        outcome_unknown_until=[end.claim.outcome_unknown_until for end in bad],
    )
    return {(row.entity, row.key): bool(row.same_revision) for row in rows}


def _failures_for_breaker(
    decided: Collection[tuple[Pushed, Decision]], entities: Mapping[str, EntityContext]
) -> list[RecordFailure]:
    """The failures that count for the breaker."""
    return [
        RecordFailure(
            end.claim.entity,
            end.claim.key,
            attempts=end.claim.attempts,
            failure=end.failure,
            retries=entities[end.claim.entity].retry.retries,
            is_last=decision.wait is None,
        )
        for end, decision in decided
        if end.calls.called
        and end.failure is not None
        and not end.held
        and end.failure.kind not in (Failure.THROTTLED, Failure.REFERENCE)
    ]


def _obey_retry_after(connection: Connection, name: str, bad: Iterable[Pushed]) -> None:
    asked = [(end.failure.retry_after, end.failure.detail) for end in bad if end.failure and end.failure.retry_after]
    if asked:
        seconds, reason = max(asked)
        hold_off(connection, name, min(_MAX_RETRY_AFTER_SECONDS, seconds), reason)


def _is_conflict_passing(connection: Connection, entities: Sequence[str], bad: Sequence[Pushed]) -> bool:
    """Whether a conflict with another record may pass by itself, since others are under way."""
    refused = [end for end in bad if _names_another(end)]
    return bool(refused) and bool(
        run(
            connection,
            queries.COUNT_OTHERS_IN_FLIGHT,
            entities=list(entities),
            entity=[end.claim.entity for end in refused],
            key=[end.claim.key for end in refused],
        )[0].found
    )


def _names_another(end: Pushed) -> bool:
    """Whether a payload was refused because of another record, such as one that has the same unique value."""
    failure = end.failure
    return (
        end.calls.called
        and end.rejected_digest is not None
        and failure is not None
        and (failure.may_be_duplicate or failure.may_be_conflict)
        and not end.claim.refusal_retried
    )


def _decide_retry(end: Pushed, entity: EntityContext, *, may_pass: bool) -> Decision:
    """``may_pass``: other records are under way, so that a conflict with one of them may pass by itself."""
    if end.postponed is not None:
        return Decision(end.claim.attempts, end.postponed)
    assert end.failure is not None
    if end.held:
        return Decision(end.claim.attempts, None)
    if may_pass and _names_another(end):
        return after_conflict(entity.retry, end.claim.attempts, draw=random.random())
    return after_failure(
        entity.retry,
        end.claim.attempts,
        end.failure.kind,
        retry_after=end.failure.retry_after,
        waited=end.claim.waiting_for,
        draw=random.random(),
    )


def _without_cost(end: Pushed, decision: Decision) -> Decision:
    """With the breaker open no attempt is spent."""
    if end.failure is None or end.held or not end.calls.called:
        return decision
    return Decision(end.claim.attempts, 0.0)


def _hold_reason(end: Pushed, decision: Decision) -> str | None:
    if decision.wait is not None:
        return None
    return "on_hold" if end.held else "dead"


def _rejected_digest(end: Pushed, decision: Decision) -> bytes | None:
    """The digest of the payload that was refused for good, now or before."""
    if decision.wait is not None:
        return None
    return end.claim.rejected_digest if end.step is PushStep.REJECTED else end.rejected_digest


def _is_settled_refusal(end: Pushed) -> bool:
    """Whether a payload was refused while no outcome of the record was unknown."""
    return end.calls.called and end.rejected_digest is not None and end.claim.outcome_unknown_for is None


def _report_dead(
    connection: Connection,
    entities: Mapping[str, EntityContext],
    dead: Iterable[tuple[Pushed, Decision]],
    result: Settled,
) -> None:
    by_cause: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    news: News = defaultdict(list)
    for end, decision in dead:
        assert end.failure is not None
        claimed = end.claim
        data = {
            "group": claimed.group,
            "revision": claimed.revision,
            "error": str(end.failure),
            "attempts": decision.attempts,
        }
        news[claimed.entity].append((claimed.key, data))
        kind = "on_hold" if end.held else "dead"
        by_cause[kind, claimed.entity, cause_of(end.failure, claimed.key)].append(claimed.key)
    for (kind, entity, cause), keys in by_cause.items():
        result.dead += len(keys)
        alerts.raise_alert_for_records(
            connection, kind, f"{entity}: {cause}", f"{entity}: changes that could not be mirrored", entity, keys
        )
    _record_outcomes(connection, entities, "dead", news)
