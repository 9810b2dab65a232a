"""Suspends pushes to a third party when it no longer holds what the archive believes, until an operator adopts it.

A suspension begins when this database was restored (``installation.py``), another account is behind the third party
(``core/push/account_check.py``), or many ids show other keys (``note_stray_ids``). ``adoption.py`` ends it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from sync_orchestrator.core.db.notify import notify_work
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.systems import queries

if TYPE_CHECKING:
    from sqlalchemy import Connection

NotedStray = tuple[str, str, str, str]
"""Entity, key, the id that we were given, and the key that the third party shows under it."""

MAX_SINGLE_STRAYS = 2
"""Up to this number of records whose ids show other keys are reported one by one; more suspend the third party."""

STRAY_WINDOW_SECONDS = 3600.0
"""Records count together when their ids were found to show other keys within this time."""

STRAYS_KEPT_SECONDS = 86_400.0

ALERT = "adoption_needed"
STRAY_ALERT = "id_reused"

_MAX_EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class Suspension:
    """Why no pushes go to a third party, and for how many seconds."""

    reason: str
    seconds: float


def suspension_of(connection: Connection, system: str) -> Suspension | None:
    """The suspension of a third party, or None while pushes may go out."""
    rows = run(connection, queries.SELECT_SUSPENSION, name=system)
    if not rows or rows[0].suspended_at is None:
        return None
    return Suspension(rows[0].suspended_reason or "", float(rows[0].suspended_for))


def read_suspended_at(connection: Connection, system: str, *, locked: bool = False) -> tuple[datetime | None, str]:
    """Returns since when pushes to a third party are suspended, and why.

    With ``locked`` nobody else changes that before the transaction ends.
    """
    row = run(connection, queries.LOCK_SUSPENSION if locked else queries.SELECT_SUSPENSION, name=system)[0]
    return row.suspended_at, row.suspended_reason or ""


def suspend(connection: Connection, system: str, reason: str, *, examples: Sequence[str] = ()) -> None:
    """Stops pushes to a third party and raises one alert.

    A suspension that is replaced by another one begins again: what was adopted before no longer counts.
    """
    run(connection, queries.SUSPEND_SYSTEM, name=system, reason=reason)
    alerts.raise_alert(connection, ALERT, system, f"{system}: pushes are suspended: {reason}", examples=examples)


def is_known_account(connection: Connection, system: str, account: str) -> bool:
    """Whether a third party is called with the account that the ids of the archive belong to.

    The first account that is seen is taken for that. Another one suspends pushes to the third party.
    """
    if run(connection, queries.SELECT_SUSPENSION, name=system)[0].account == account:
        return True
    row = run(connection, queries.LOCK_SUSPENSION, name=system)[0]
    if row.account is None:
        run(connection, queries.STORE_ACCOUNT, name=system, account=account)
        return True
    if row.account == account:
        return True
    if row.suspended_at is None:
        suspend(connection, system, f"it is called with account {account} now; the ids are those of {row.account}")
    return False


def lift_suspension(
    connection: Connection, system: str, *, account: str | None = None, reason: str | None = None
) -> bool:
    """Ends a suspension and its alert; returns whether there was one.

    ``account`` is the identity that the ids belong to from now on; None lets the next drain find it out. ``reason``
    is an operator's, for ending it although nothing was adopted; the alert keeps it.
    """
    if reason is not None:
        alerts.raise_alert(
            connection, ALERT, system, f"{system}: an operator ended the suspension without adopting: {reason}"
        )
    _delete_strays(connection, system)
    alerts.resolve_alert(connection, ALERT, system)
    lifted = bool(run(connection, queries.LIFT_SUSPENSION, name=system, account=account))
    notify_work(connection)
    return lifted


def note_stray_ids(connection: Connection, system: str, strays: Sequence[NotedStray]) -> bool:
    """Records ids of ours under which the third party shows other keys; returns whether the system is suspended.

    Single ones are reported as ``id_reused``: some third parties give an id again after a delete. More than
    ``MAX_SINGLE_STRAYS`` distinct records within ``STRAY_WINDOW_SECONDS`` suspend the third party: it was restored, or
    is another one.
    """
    if strays:
        for name in sorted({stray[0] for stray in strays}):
            alerts.lock_alert_decision(connection, STRAY_ALERT, name)
        entity, key, external_id, shown_key = (list(column) for column in zip(*strays, strict=True))
        run(
            connection,
            queries.INSERT_STRAY_IDS,
            system=system,
            entity=entity,
            key=key,
            external_id=external_id,
            shown_key=shown_key,
        )
    if suspension_of(connection, system) is not None:
        return True
    if not strays:
        return False
    count = int(run(connection, queries.COUNT_STRAY_IDS, system=system, window=STRAY_WINDOW_SECONDS)[0].n)
    if count <= MAX_SINGLE_STRAYS:
        _report_single(connection, strays)
        return False
    known = run(connection, queries.LIST_STRAY_IDS, system=system, limit=_MAX_EXAMPLES)
    suspend(
        connection,
        system,
        f"{count} ids that it gave us show other keys, as after a restore of its data or with another account",
        examples=[f"{row.entity} {row.key}: id {row.external_id} is {row.shown_key}" for row in known],
    )
    for entity_name in sorted({row.entity for row in run(connection, queries.LIST_ENTITIES_WITH_STRAY_IDS)}):
        alerts.resolve_alert(connection, STRAY_ALERT, entity_name)
    return True


def end_old_strays(connection: Connection) -> None:
    """Forgets stray ids after a day, and ends the alerts of entities that have none left."""
    for row in run(connection, queries.LIST_OPEN_STRAY_ALERTS):
        alerts.lock_alert_decision(connection, STRAY_ALERT, row.entity)
    run(connection, queries.DELETE_OLD_STRAY_IDS, age=STRAYS_KEPT_SECONDS)
    still = {row.entity for row in run(connection, queries.LIST_ENTITIES_WITH_STRAY_IDS)}
    for row in run(connection, queries.LIST_OPEN_STRAY_ALERTS):
        if row.entity not in still:
            alerts.resolve_alert(connection, STRAY_ALERT, row.entity)


def _report_single(connection: Connection, strays: Sequence[NotedStray]) -> None:
    keys: dict[str, list[str]] = defaultdict(list)
    for entity, key, _, _ in strays:
        keys[entity].append(key)
    for entity, some in sorted(keys.items()):
        alerts.raise_alert_for_records(
            connection, STRAY_ALERT, entity, f"{entity}: the third party gave ids of ours to others", entity, some
        )


def _delete_strays(connection: Connection, system: str) -> None:
    entities = {row.entity for row in run(connection, queries.LIST_STRAY_IDS, system=system, limit=None)}
    run(connection, queries.DELETE_STRAY_IDS, system=system, entity=None)
    for entity in sorted(entities):
        alerts.resolve_alert(connection, STRAY_ALERT, entity)


def list_suspended_systems(connection: Connection) -> dict[str, str]:
    """Returns the third parties whose pushes are suspended, in order of their names, with the reason of each."""
    return {row.name: row.suspended_reason for row in run(connection, queries.LIST_SUSPENDED_SYSTEMS)}
