"""What the ends of pushes mean: for records, for their events, for the breaker. One transaction, fenced by tokens.

Not here: the pushes themselves (``push.py``).
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from sync_orchestrator.config import ThirdPartySystem
from sync_orchestrator.core import alerts, outcomes
from sync_orchestrator.core.context import EntityContext
from sync_orchestrator.core.errors import CallFailed, Failure
from sync_orchestrator.core.push import Pushed
from sync_orchestrator.core.push_plan import Step
from sync_orchestrator.core.retry import Decision, after_failure
from sync_orchestrator.core.sql import json, one_by_one, run
from sync_orchestrator.core.statements import alerts as alert_statements
from sync_orchestrator.core.statements import ledger as ledger_statements
from sync_orchestrator.core.statements import push as statements

_MOST_RETRY_AFTER = 3600.0


@dataclass(slots=True)
class Settled:
    """What a settlement came to: counts, acknowledgements by entity and group, and creates that made a twin."""

    acknowledged: int = 0
    failed: int = 0
    dead: int = 0
    done: int = 0
    superseded: int = 0
    slowest: float = 0.0
    groups: Counter[tuple[str, str]] = field(default_factory=Counter)
    twins: list[Pushed] = field(default_factory=list)

    def add(self, other: Settled) -> None:
        """Adds another settlement's figures to this one."""
        for name in ("acknowledged", "failed", "dead", "done", "superseded"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.slowest = max(self.slowest, other.slowest)
        self.groups.update(other.groups)
        self.twins += other.twins


def settle(
    connection: Connection, name: str, system: ThirdPartySystem, entities: dict[str, EntityContext],
    pushed: Sequence[Pushed],
) -> Settled:
    """Writes down how pushes at one third party ended.

    A push whose lease has gone to somebody else changes nothing but this: the record is unsettled from here on.
    """
    one_by_one(connection)
    result = Settled()
    state = _state(connection, name, pushed)
    ordered = sorted(pushed, key=lambda end: (end.claim.entity, end.claim.key))
    run(connection, statements.LOCK, entity=[end.claim.entity for end in ordered],
        key=[end.claim.key for end in ordered])
    good = [end for end in ordered if end.failure is None and end.postponed is None]
    bad = [end for end in ordered if end.failure is not None or end.postponed is not None]
    accepted = _acknowledge(connection, good)
    _finish_events(connection, good, accepted, result)
    _tell_of_mirrored(connection, entities, [end for end in good if (end.claim.entity, end.claim.key) in accepted])
    _breaker_heard_success(connection, name, state, good)
    refused_bad = _failures(connection, name, system, entities, bad, state, result)
    late = [end for end in good if (end.claim.entity, end.claim.key) not in accepted] + refused_bad
    _mark_unknown(connection, system, [end for end in late if end.called], result)
    _attempts(connection, [end for end in ordered if end.called])
    result.acknowledged = len(accepted)
    return result


def _state(connection: Connection, name: str, pushed: Sequence[Pushed]) -> Any:
    """The system as it is, locked where this settlement may open or close its breaker."""
    state = run(connection, statements.SYSTEM, name=name)[0]
    if state.open_since is None and all(end.failure is None for end in pushed):
        return state
    return run(connection, statements.SYSTEM_LOCKED, name=name)[0]


def _acknowledge(connection: Connection, good: Sequence[Pushed]) -> set[tuple[str, str]]:
    if not good:
        return set()
    rows = run(
        connection, statements.ACKNOWLEDGE, **_claims(good),
        revision=[end.claim.revision for end in good],
        digest=[end.digest for end in good],
        applied_group=[None if end.claim.deleted else end.claim.group for end in good],
        external_id=[end.external_id for end in good],
        settles=[end.claim.unsettled_for is not None and end.claim.unsettled_for <= 0 and not end.look_again
                 for end in good],
        unsettled_until=[end.claim.unsettled_until for end in good],
        late_creates=[json(end.claim.late_creates) for end in good],
        look_again=[end.look_again for end in good],
    )
    return {(row.entity, row.key) for row in rows}


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
            result.groups.update((end.claim.entity, group) for group in places if group)


def _tell_of_mirrored(
    connection: Connection, entities: dict[str, EntityContext], acknowledged: Sequence[Pushed]
) -> None:
    """A second push that only settled what was acknowledged before is no news."""
    told: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for end in acknowledged:
        claimed = end.claim
        if (claimed.applied_revision, claimed.applied_digest) != (claimed.revision, end.digest):
            told[claimed.entity].append((claimed.key, {
                "group": claimed.group, "revision": claimed.revision, "deleted": claimed.deleted,
                "external_id": end.external_id}))
    for name, news in told.items():
        outcomes.note(connection, entities[name], "mirrored", news)


def finish_reached(connection: Connection, entity: str, keys: Sequence[str], result: Settled) -> None:
    """Finishes the events of these records that applied has reached."""
    for row in run(connection, ledger_statements.REACHED, entity=entity, keys=list(keys)):
        setattr(result, row.what, getattr(result, row.what) + row.n)
        result.slowest = max(result.slowest, row.slowest)


def _breaker_heard_success(connection: Connection, name: str, state: Any, good: Sequence[Pushed]) -> None:
    if not any(end.called for end in good):
        return
    run(connection, statements.CLEAR_FAILURES, system=name)
    if state.open_since is not None:
        run(connection, statements.CLOSE, name=name)
        alerts.resolve(connection, "breaker_open", name)


def _failures(
    connection: Connection, name: str, system: ThirdPartySystem, entities: dict[str, EntityContext],
    bad: Sequence[Pushed], state: Any, result: Settled,
) -> list[Pushed]:
    """Settles what failed or was postponed; returns those whose lease was no longer theirs."""
    if not bad:
        return []
    _obey_retry_after(connection, name, bad)
    counting = [end for end in bad if _counts_for_breaker(end)]
    was_open = state.open_since is not None
    now_open = _breaker_open(connection, name, system, state, counting)
    decisions = [_decision(end, entities[end.claim.entity], free=now_open or was_open) for end in bad]
    rows = run(
        connection, statements.FAIL, **_claims(bad), landing=system.landing_seconds,
        revision=[end.claim.revision for end in bad],
        attempts=[decision.attempts for decision in decisions],
        wait=[decision.wait if decision.wait is not None else 0.0 for decision in decisions],
        parked=[_parked(end, decision) for end, decision in zip(bad, decisions, strict=True)],
        error=[str(end.failure) if end.failure else None for end in bad],
        rejected_digest=[_refused(end, decision) for end, decision in zip(bad, decisions, strict=True)],
        external_id=[end.external_id for end in bad],
        unknown=[end.unsettled or bool(end.failure and end.failure.unknown) for end in bad],
        waits=[end.failure is not None and end.failure.kind is Failure.REFERENCE for end in bad],
        cleared=[end.cleared for end in bad],
        refused=[end.refused for end in bad],
        settled=[end.settled for end in bad],
        unsettled_until=[end.claim.unsettled_until for end in bad],
    )
    kept = {(row.entity, row.key): row for row in rows}
    result.failed += sum(1 for end in bad if end.failure is not None and (end.claim.entity, end.claim.key) in kept)
    fates = [
        (end, decision) for end, decision in zip(bad, decisions, strict=True)
        if end.failure is not None and (row := kept.get((end.claim.entity, end.claim.key))) and row.same_revision
    ]
    _events_follow(connection, fates)
    _tell_of_dead(connection, entities, fates, result)
    if now_open and not was_open:
        _give_back(connection, name)
    return [end for end in bad if (end.claim.entity, end.claim.key) not in kept]


def _counts_for_breaker(end: Pushed) -> bool:
    return (
        end.called and end.failure is not None and not end.held
        and end.failure.kind not in (Failure.THROTTLED, Failure.REFERENCE)
    )


def _breaker_open(
    connection: Connection, name: str, system: ThirdPartySystem, state: Any, counting: Sequence[Pushed]
) -> bool:
    """Counts distinct records; opens the breaker, or puts off the next probe where it is open."""
    if not counting:
        return False
    if state.open_since is not None:
        wait = min(system.breaker.probe_cap, (state.probe_wait or system.breaker.probe_after) * 2)
        run(connection, statements.OPEN, name=name, wait=wait)
        return True
    run(
        connection, statements.ADD_FAILURES, system=name,
        entity=[end.claim.entity for end in counting], key=[end.claim.key for end in counting],
        attempts=[end.claim.attempts for end in counting],
    )
    if run(connection, statements.COUNT_FAILURES, system=name)[0][0] < system.breaker.failures:
        return False
    run(connection, statements.OPEN, name=name, wait=system.breaker.probe_after)
    alerts.tell(
        connection, "breaker_open", name, f"{name} does not answer as it should: pushes to it wait",
        examples=[str(counting[-1].failure)],
    )
    return True


def _give_back(connection: Connection, name: str) -> None:
    run(connection, alert_statements.WITHDRAW, system=name)
    run(connection, statements.GIVE_BACK_EVENTS, system=name)
    run(connection, statements.GIVE_BACK_RECORDS, system=name)


def _decision(end: Pushed, entity: EntityContext, *, free: bool) -> Decision:
    if end.postponed is not None:
        return Decision(end.claim.attempts, end.postponed)
    assert end.failure is not None
    if end.held:
        return Decision(end.claim.attempts, None)
    if free and end.called:
        return Decision(end.claim.attempts, 0.0)
    return after_failure(
        entity.retry, end.claim.attempts, end.failure.kind, retry_after=end.failure.retry_after,
        waited=end.claim.waiting_for, draw=random.random())


def _parked(end: Pushed, decision: Decision) -> str | None:
    if decision.wait is not None:
        return None
    return "held" if end.held else "dead"


def _refused(end: Pushed, decision: Decision) -> bytes | None:
    """The digest of the payload that was refused for good, now or before."""
    if decision.wait is not None:
        return None
    return end.claim.rejected_digest if end.step is Step.REJECTED else end.rejected_digest


def _obey_retry_after(connection: Connection, name: str, bad: Iterable[Pushed]) -> None:
    asked = [end.failure.retry_after for end in bad if end.failure and end.failure.retry_after]
    if asked:
        run(connection, statements.NOT_BEFORE, name=name, seconds=min(_MOST_RETRY_AFTER, max(asked)))


def _events_follow(connection: Connection, fates: Sequence[tuple[Pushed, Decision]]) -> None:
    if fates:
        run(
            connection, ledger_statements.PUSH_FAILED,
            entity=[end.claim.entity for end, _ in fates], key=[end.claim.key for end, _ in fates],
            state=["dead" if decision.wait is None else "waiting" for _, decision in fates],
            attempts=[decision.attempts for _, decision in fates], wait=[decision.wait for _, decision in fates],
            error=[str(end.failure) for end, _ in fates],
        )


def _tell_of_dead(
    connection: Connection, entities: dict[str, EntityContext], fates: Sequence[tuple[Pushed, Decision]],
    result: Settled,
) -> None:
    by_cause: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    told: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for end, decision in fates:
        if decision.wait is None:
            assert end.failure is not None
            told[end.claim.entity].append((end.claim.key, {
                "group": end.claim.group, "revision": end.claim.revision, "error": str(end.failure),
                "attempts": decision.attempts}))
            by_cause["held" if end.held else "dead", end.claim.entity, cause_of(end.failure)].append(end.claim.key)
    for (kind, entity, cause), keys in by_cause.items():
        result.dead += len(keys)
        alerts.tell_of_records(connection, kind, f"{entity}: {cause}", f"{entity}: changes that could not be mirrored",
                               entity, keys)
    for entity, news in told.items():
        outcomes.note(connection, entities[entity], "dead", news)


def cause_of(failure: CallFailed) -> str:
    """The part of a failure that many records share, so that they make one alert."""
    if failure.status is not None:
        return f"answer {failure.status}"
    return failure.detail.split(":")[0][:80]


def _mark_unknown(connection: Connection, system: ThirdPartySystem, late: Sequence[Pushed], result: Settled) -> None:
    if not late:
        return
    made = {(end.claim.entity, end.claim.key): end for end in late if end.created}
    records = {"entity": [end.claim.entity for end in late], "key": [end.claim.key for end in late]}
    run(connection, statements.MARK_UNKNOWN, **records, landing=system.landing_seconds)
    rows = run(
        connection, statements.REMEMBER_LATE, **records,
        group=[end.claim.group for end in late], external_id=[end.external_id if end.created else None for end in late],
    )
    for row in rows:
        end = made.get((row.entity, row.key))
        another = row.external_id is not None and end is not None and row.external_id != end.external_id
        if end is not None and another and row.lease_token is None:  # whoever holds it may be adopting this one
            result.twins.append(end)


def _attempts(connection: Connection, called: Sequence[Pushed]) -> None:
    if called:
        run(
            connection, statements.ATTEMPTS,
            entity=[end.claim.entity for end in called], key=[end.claim.key for end in called],
            revision=[end.claim.revision for end in called], step=[str(end.step) for end in called],
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
