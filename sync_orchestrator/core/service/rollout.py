"""The share of a route's traffic that takes the new path: which calls, who changed it, and its fall back to 0.

Steps up need a clean validation; how the new path fares is counted by all replicas together.
Not here: making the calls (``api/proxy/canary.py``), what a route is (``config/routes.py``).
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
from sync_orchestrator.core.operations.dead_records import describe_dead_of_entity
from sync_orchestrator.core.service import queries
from sync_orchestrator.errors import NotFound, NotYet
from sync_orchestrator.texts.storable_text import text_problem

if TYPE_CHECKING:
    from sync_orchestrator.config import Config, Route

_PIECE_SECONDS = 5
_LATE_AFTER_ROUNDS = 2
_MOST_CHANGES = 1000
_MOST_LISTED = 10_000
_LONGEST_TEXT = 500
_BY_ITSELF = "the proxy"
_COUNTED = ("tried", "failed", "compared", "different")
KIND = "rollout_fell_back"

Counts = Mapping[tuple[str, int, str], int]
"""By route, version of its rollout and what: those that rates are made of, and others, which are only added up."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """``percent`` of the values go the new way, those in ``allow`` always, those in ``deny`` never."""

    route: str
    version: int = 0
    percent: float = 0
    shadow: bool = False
    allow: frozenset[str] = frozenset()
    deny: frozenset[str] = frozenset()
    halted: bool = False

    def is_new(self, value: str | None) -> bool:
        """Whether a call with this value goes the new way; one without a value only where all do."""
        if self.halted or (value is not None and value in self.deny):
            return False
        if value is None:
            return self.percent >= 100
        return value in self.allow or place(value) < self.percent

    @property
    def is_off(self) -> bool:
        return self.halted or (self.percent <= 0 and not self.allow)


def place(value: str) -> float:
    """Where a value stands between 0 and 100, the same on every machine: whoever is in at 10 % is in at 20 %.

    The same for every route too: at the same share nobody reads the new way what it still writes the old one.
    """
    digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:6], "big") / 2**48) * 100


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be another; None stays."""

    percent: float | None = None
    shadow: bool | None = None
    allow: frozenset[str] | None = None
    deny: frozenset[str] | None = None

    def of(self, before: Rollout) -> Rollout:
        told = {name: getattr(self, name) for name in ("percent", "shadow", "allow", "deny")}
        return replace(
            before,
            halted=before.halted and self.percent is None,
            **{name: value for name, value in told.items() if value is not None},
        )


def rollouts(connection: Connection) -> dict[str, Rollout]:
    """All that were ever changed, by route."""
    return {row.route: _rollout(row) for row in run(connection, queries.LIST_ROLLOUTS)}


def current(connection: Connection, config: Config, name: str) -> Rollout:
    """A route's, so that nobody else changes it before this transaction ends. Raises NotFound."""
    switched(config, name)
    run(connection, queries.ENSURE_ROLLOUT, route=name)
    return _rollout(run(connection, queries.LOCK_ROLLOUT, route=name)[0])


def fared(connection: Connection, rollout: Rollout, within: float = 86_400) -> dict[str, int]:
    """What was counted under the present version: calls of the new path, those that failed, compared, different."""
    return dict(
        run(connection, queries.SUM_RECENT_ROUTE_CALLS, route=rollout.route, version=rollout.version, window=within)[
            0
        ]._mapping
    )


def history(connection: Connection, route: str) -> Sequence[Row[Any]]:
    """Who changed it and why, the last first."""
    return run(connection, queries.LIST_ROLLOUT_CHANGES, route=route, most=_MOST_CHANGES)


def switched(config: Config, name: str) -> Route:
    """A route whose traffic can be moved. Raises NotFound."""
    route = config.routes.get(name)
    if route is None or route.legacy is None:
        known = ", ".join(sorted(each for each, settings in config.routes.items() if settings.legacy)) or "none"
        raise NotFound(f"no route '{name}' has a legacy upstream; there is {known}")
    return route


def change(
    connection: Connection, config: Config, name: str, wanted: Change, *, who: str, why: str, override: bool = False
) -> Rollout:
    """Changes a route's rollout and keeps who did it and why.

    Raises NotFound; NotYet for a step up while the entity is not known to be in sync, unless it is overridden, which
    is kept; ValueError for values that cannot be.
    """
    route = switched(config, name)
    _check(wanted, who, why)
    before = current(connection, config, name)
    after = wanted.of(before)
    against = _against(connection, config, route) if _is_up(before, after) else None
    if against is not None and not override:
        raise NotYet(f"{against}: validate it first, or override this")
    if not after.halted:
        alerts.resolve(connection, KIND, name)
    return _write(connection, after, who, why, against)


def count(connection: Connection, config: Config, counts: Counts) -> list[str]:
    """Adds what a replica counted, and lets those fall back that fare badly; returns these."""
    rated: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    totals: Counter[tuple[str, str]] = Counter()
    for (route, version, what), n in counts.items():
        totals[route, what] += n
        if what in _COUNTED:
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
        piece=_PIECE_SECONDS,
        route=[key[0] for key in keys],
        version=[key[1] for key in keys],
        **{what: [rated[key][what] for key in keys] for what in _COUNTED},
    )
    return [name for name in sorted({key[0] for key in keys}) if _fell_back(connection, config, name)]


def forget_old(connection: Connection) -> None:
    run(connection, queries.DELETE_OLD_ROUTE_COUNTS)


def _fell_back(connection: Connection, config: Config, name: str) -> bool:
    route = config.routes.get(name)
    rows = run(connection, queries.LOCK_ROLLOUT, route=name)
    if route is None or route.rollout is None or not rows:
        return False
    before = _rollout(rows[0])
    if before.is_off:
        return False
    why = _too_much(connection, before, route)
    if why is None:
        return False
    entity = f" ({route.entity})" if route.entity else ""
    _write(connection, replace(before, percent=0, halted=True), _BY_ITSELF, why, None)
    alerts.tell(connection, KIND, name, f"route {name}{entity}: all traffic goes to legacy again, since {why}")
    return True


def _too_much(connection: Connection, rollout: Rollout, route: Route) -> str | None:
    limits = route.rollout
    assert limits is not None
    counted = fared(connection, rollout, limits.window)
    for bad, of, most, text in (
        (counted["failed"], counted["tried"], limits.error_rate, "failed"),
        (counted["different"], counted["compared"], limits.difference_rate, "differed"),
    ):
        if of >= limits.min_calls and bad > of * most:
            return f"{bad} of {of} calls of the new path {text} within {limits.window:g} s"
    return None


def _is_up(before: Rollout, after: Rollout) -> bool:
    """Whether there may be a value that goes the new way now and did not before."""
    if after.is_off:
        return False
    if before.halted or after.percent > before.percent or after.allow - before.allow:
        return True
    return bool(before.deny - after.deny)


def _against(connection: Connection, config: Config, route: Route) -> str | None:
    """Why no more traffic may see what the entity holds now; None where nothing speaks against it."""
    if route.entity is None:
        return None
    every = config.entities[route.entity].validation.every
    found = run(connection, queries.LIST_UNVALIDATED_ENTITIES, entity=route.entity, longest=every * _LATE_AFTER_ROUNDS)[
        0
    ]
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
            f"{every * _LATE_AFTER_ROUNDS:g} s, such as {found.example!r}"
        )
    return describe_dead_of_entity(connection, route.entity)


def _check(wanted: Change, who: str, why: str) -> None:
    if wanted.percent is not None and not 0 <= wanted.percent <= 100:
        raise ValueError("percent is from 0 to 100")
    if not why.strip() or max(len(why), len(who)) > _LONGEST_TEXT:
        raise ValueError(f"say why, in at most {_LONGEST_TEXT} characters: it is kept")
    listed = [*(wanted.allow or ()), *(wanted.deny or ())]
    if len(listed) > _MOST_LISTED or any(not text or len(text) > _LONGEST_TEXT for text in listed):
        raise ValueError(f"a list has at most {_MOST_LISTED} values of 1 to {_LONGEST_TEXT} characters")
    if any(text_problem(text) for text in (why, who, *listed)):
        raise ValueError("a text holds characters that cannot be stored")


def _write(connection: Connection, after: Rollout, who: str, why: str, overrode: str | None) -> Rollout:
    return _rollout(
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


def _rollout(row: Any) -> Rollout:
    return Rollout(
        row.route, row.version, row.percent, row.shadow, frozenset(row.allow), frozenset(row.deny), row.halted
    )


def described(rollout: Rollout) -> dict[str, Any]:
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


def of_routes(config: Config, known: Mapping[str, Rollout]) -> Iterable[Rollout]:
    """Those of all routes that have a legacy upstream, whether ever changed or not."""
    return [known.get(name, Rollout(name)) for name, route in sorted(config.routes.items()) if route.legacy]
