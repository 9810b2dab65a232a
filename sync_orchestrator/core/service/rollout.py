"""The share of a route's traffic that takes the new path: which calls, who changed it, and its fall back to 0.

Steps up need a clean validation; how the new path fares is counted by all replicas together.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.push.dead_records import describe_dead_of_entity
from sync_orchestrator.core.service import queries
from sync_orchestrator.errors import NotFound, NotYet
from sync_orchestrator.texts.storable_text import text_problem

if TYPE_CHECKING:
    from sync_orchestrator.config import Config, RouteSettings

_COUNT_INTERVAL_SECONDS = 5
_MAX_ROUNDS_LATE = 2
_MAX_CHANGES = 1000
_MAX_LISTED = 10_000
_MAX_TEXT_LENGTH = 500
_BY_ITSELF = "the proxy"
_RATED_COUNTS = ("tried", "failed", "compared", "different")
KIND = "rollout_fell_back"

Counts = Mapping[tuple[str, int, str], int]
"""By route, version of its rollout and what: those that rates are made of, and others, which are only added up."""


@dataclass(frozen=True, slots=True)
class RolloutState:
    """``percent`` of the values go the new way, those in ``allow`` always, those in ``deny`` never."""

    route: str
    version: int = 0
    percent: float = 0
    shadow: bool = False
    allow: frozenset[str] = frozenset()
    deny: frozenset[str] = frozenset()
    halted: bool = False

    @classmethod
    def from_row(cls, row: Row[Any]) -> RolloutState:
        """Reads the state of a rollout from a row."""
        return cls(
            route=row.route,
            version=row.version,
            percent=row.percent,
            shadow=row.shadow,
            allow=frozenset(row.allow),
            deny=frozenset(row.deny),
            halted=row.halted,
        )

    def is_new(self, value: str | None) -> bool:
        """Whether a call with this value goes the new way; one without a value only where all do."""
        if self.halted or (value is not None and value in self.deny):
            return False
        if value is None:
            return self.percent >= 100
        return value in self.allow or compute_place(value) < self.percent

    @property
    def is_off(self) -> bool:
        """Whether nobody takes the new path."""
        return self.halted or (self.percent <= 0 and not self.allow)


def compute_place(value: str) -> float:
    """Where a value stands between 0 and 100, the same on every machine: whoever is in at 10 % is in at 20 %.

    The same for every route too: at the same share nobody reads the new way what it still writes the old one.
    """
    digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:6], "big") / 2**48) * 100


@dataclass(frozen=True, slots=True)
class RolloutChange:
    """What is to be another; None stays."""

    percent: float | None = None
    shadow: bool | None = None
    allow: frozenset[str] | None = None
    deny: frozenset[str] | None = None

    def apply_to(self, before: RolloutState) -> RolloutState:
        """Returns a rollout with this change. A new percentage also ends a halt."""
        told = {name: getattr(self, name) for name in ("percent", "shadow", "allow", "deny")}
        return replace(
            before,
            halted=before.halted and self.percent is None,
            **{name: value for name, value in told.items() if value is not None},
        )


def list_rollouts(connection: Connection) -> dict[str, RolloutState]:
    """All that were ever changed, by route."""
    return {row.route: RolloutState.from_row(row) for row in run(connection, queries.LIST_ROLLOUTS)}


def lock_rollout(connection: Connection, config: Config, name: str) -> RolloutState:
    """A route's, so that nobody else changes it before this transaction ends. Raises NotFound."""
    find_switched_route(config, name)
    run(connection, queries.ENSURE_ROLLOUT, route=name)
    return RolloutState.from_row(run(connection, queries.LOCK_ROLLOUT, route=name)[0])


def count_recent_calls(connection: Connection, rollout: RolloutState, within: float = 86_400) -> dict[str, int]:
    """What was counted under the present version: calls of the new path, those that failed, compared, different."""
    return dict(
        run(connection, queries.SUM_RECENT_ROUTE_CALLS, route=rollout.route, version=rollout.version, window=within)[
            0
        ]._mapping
    )


def list_rollout_changes(connection: Connection, route: str) -> Sequence[Row[Any]]:
    """Who changed it and why, the last first."""
    return run(connection, queries.LIST_ROLLOUT_CHANGES, route=route, most=_MAX_CHANGES)


def find_switched_route(config: Config, name: str) -> RouteSettings:
    """A route whose traffic can be moved. Raises NotFound."""
    route = config.routes.get(name)
    if route is None or route.legacy is None:
        known = ", ".join(sorted(each for each, settings in config.routes.items() if settings.legacy)) or "none"
        raise NotFound(f"no route '{name}' has a legacy upstream; there is {known}")
    return route


def change_rollout(
    connection: Connection,
    config: Config,
    name: str,
    wanted: RolloutChange,
    *,
    who: str,
    why: str,
    override: bool = False,
) -> RolloutState:
    """Changes a route's rollout and keeps who did it and why.

    Raises NotFound; NotYet for a step up while the entity is not known to be in sync, unless it is overridden, which
    is kept; ValueError for values that cannot be.
    """
    route = find_switched_route(config, name)
    _check_change(wanted, who, why)
    before = lock_rollout(connection, config, name)
    after = wanted.apply_to(before)
    against = _find_objection(connection, config, route) if _is_step_up(before, after) else None
    if against is not None and not override:
        raise NotYet(f"{against}: validate it first, or override this")
    if not after.halted:
        alerts.resolve_alert(connection, KIND, name)
    return _write_rollout(connection, after, who, why, against)


def record_counts(connection: Connection, config: Config, counts: Counts) -> list[str]:
    """Adds what a replica counted, and lets those fall back that fare badly; returns these."""
    rated: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    totals: Counter[tuple[str, str]] = Counter()
    for (route, version, what), n in counts.items():
        totals[route, what] += n
        if what in _RATED_COUNTS:
            rated[route, version][what] += n
    keys = sorted(rated)
    run(
        connection,
        queries.SUM_ROUTE_TOTALS,
        route=[key[0] for key in sorted(totals)],
        what=[key[1] for key in sorted(totals)],
        n=[totals[key] for key in sorted(totals)],
    )
    run(
        connection,
        queries.COUNT_ROUTE_CALL,
        piece=_COUNT_INTERVAL_SECONDS,
        route=[key[0] for key in keys],
        version=[key[1] for key in keys],
        **{what: [rated[key][what] for key in keys] for what in _RATED_COUNTS},
    )
    return [name for name in sorted({key[0] for key in keys}) if _fall_back_if_failing(connection, config, name)]


def delete_old_counters(connection: Connection) -> None:
    """Deletes counts of routes that are too old to decide anything."""
    run(connection, queries.DELETE_OLD_ROUTE_COUNTS)


def _fall_back_if_failing(connection: Connection, config: Config, name: str) -> bool:
    route = config.routes.get(name)
    rows = run(connection, queries.LOCK_ROLLOUT, route=name)
    if route is None or route.rollout is None or not rows:
        return False
    before = RolloutState.from_row(rows[0])
    if before.is_off:
        return False
    why = _find_excess(connection, before, route)
    if why is None:
        return False
    entity = f" ({route.entity})" if route.entity else ""
    _write_rollout(connection, replace(before, percent=0, halted=True), _BY_ITSELF, why, None)
    alerts.raise_alert(connection, KIND, name, f"route {name}{entity}: all traffic goes to legacy again, since {why}")
    return True


def _find_excess(connection: Connection, rollout: RolloutState, route: RouteSettings) -> str | None:
    limits = route.rollout
    assert limits is not None
    counted = count_recent_calls(connection, rollout, limits.window)
    for bad, of, most, text in (
        (counted["failed"], counted["tried"], limits.error_rate, "failed"),
        (counted["different"], counted["compared"], limits.difference_rate, "differed"),
    ):
        if of >= limits.min_calls and bad > of * most:
            return f"{bad} of {of} calls of the new path {text} within {limits.window:g} s"
    return None


def _is_step_up(before: RolloutState, after: RolloutState) -> bool:
    """Whether there may be a value that goes the new way now and did not before."""
    if after.is_off:
        return False
    if before.halted or after.percent > before.percent or after.allow - before.allow:
        return True
    return bool(before.deny - after.deny)


def _find_objection(connection: Connection, config: Config, route: RouteSettings) -> str | None:
    """Why no more traffic may see what the entity holds now; None where nothing speaks against it."""
    if route.entity is None:
        return None
    every = config.entities[route.entity].validation.every
    found = run(connection, queries.LIST_UNVALIDATED_ENTITIES, entity=route.entity, longest=every * _MAX_ROUNDS_LATE)[0]
    if not found.groups:
        return f"no business group of {route.entity} was ever validated"
    if found.unclean:
        return (
            f"{found.unclean} of {found.groups} business groups of {route.entity} are not in sync, "
            f"such as {found.example!r}"
        )
    if found.late:
        return (
            f"{found.late} of {found.groups} business groups of {route.entity} were not validated for more than "
            f"{every * _MAX_ROUNDS_LATE:g} s, such as {found.example!r}"
        )
    return describe_dead_of_entity(connection, route.entity)


def _check_change(wanted: RolloutChange, who: str, why: str) -> None:
    if wanted.percent is not None and not 0 <= wanted.percent <= 100:
        raise ValueError("percent is from 0 to 100")
    if not why.strip() or max(len(why), len(who)) > _MAX_TEXT_LENGTH:
        raise ValueError(f"say why, in at most {_MAX_TEXT_LENGTH} characters: it is kept")
    listed = [*(wanted.allow or ()), *(wanted.deny or ())]
    if len(listed) > _MAX_LISTED or any(not text or len(text) > _MAX_TEXT_LENGTH for text in listed):
        raise ValueError(f"a list has at most {_MAX_LISTED} values of 1 to {_MAX_TEXT_LENGTH} characters")
    if any(text_problem(text) for text in (why, who, *listed)):
        raise ValueError("a text holds characters that cannot be stored")


def _write_rollout(
    connection: Connection, after: RolloutState, who: str, why: str, overrode: str | None
) -> RolloutState:
    return RolloutState.from_row(
        run(
            connection,
            queries.CHANGE_ROLLOUT_SHARE,
            route=after.route,
            percent=after.percent,
            shadow=after.shadow,
            allow=sorted(after.allow),
            deny=sorted(after.deny),
            halted=after.halted,
            who=who,
            why=why,
            overrode=overrode,
        )[0]
    )


def describe_rollout(rollout: RolloutState) -> dict[str, Any]:
    """For people and programs."""
    return {
        "route": rollout.route,
        "percent": rollout.percent,
        "shadow": rollout.shadow,
        "allow": sorted(rollout.allow),
        "deny": sorted(rollout.deny),
        "halted": rollout.halted,
        "version": rollout.version,
    }


def of_routes(config: Config, known: Mapping[str, RolloutState]) -> Iterable[RolloutState]:
    """Those of all routes that have a legacy upstream, whether ever changed or not."""
    return [known.get(name, RolloutState(name)) for name, route in sorted(config.routes.items()) if route.legacy]


def count_route_calls(connection: Connection) -> dict[tuple[str, str], int]:
    """Returns the number of calls by route and outcome, since the beginning."""
    return {(row.route, row.what): row.n for row in run(connection, queries.LIST_ROUTE_TOTALS)}
