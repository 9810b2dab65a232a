"""Alerts: an outbox written in the transaction of what it tells of, and its sending through Apprise.

Kinds: dead, held, breaker_open, drift, ahead, waiting_long, overdue, delete_cap, unusable, group_name,
conservation, run_failed.
``docs/operations.md`` has a section for each.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine

from sync_orchestrator.config import Alerts
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.sql import in_transaction, json, run
from sync_orchestrator.core.statements import alerts as statements

_log = logging.getLogger("sync_orchestrator.alerts")
_taken = CrashPoint("alerts.taken")
_delivered = CrashPoint("alerts.delivered")

ACTIONS = {
    "dead": "Read the error (`sync-orchestrator events list --state dead`), mend the cause, then re-drive or discard.",
    "held": "A create's outcome is unknown and cannot be looked up: check the record there, then `records refresh`.",
    "breaker_open": "Nothing is lost: pushes go on by themselves when a probe succeeds. Look at the third party.",
    "drift": "See the check's samples; repair is automatic unless the configuration says otherwise.",
    "ahead": "A source's clock is wrong, or the version is: mend it there, then `records refresh`.",
    "waiting_long": "What these belong to or refer to never came: full-sync its group, or make it at the third party.",
    "overdue": "Work is due and not done: see that the daemon runs and the sensor is on.",
    "delete_cap": "Look whether the source really lost these records, then launch the full sync with a higher cap.",
    "unusable": "Mend the records at their source; the next full sync of the group takes them.",
    "group_name": "Rename these groups at their source: without a partition the UI neither fills nor validates them.",
    "conservation": "Events do not add up: keep the database as it is and look at `sync-orchestrator status`.",
    "run_failed": "Open the run in the UI; the ledger goes on where it stopped.",
}


def tell(connection: Connection, kind: str, cause: str, title: str, *, entity: str | None = None,
         examples: Sequence[Any] = ()) -> None:
    """Writes an alert of something that is not about single records."""
    run(connection, statements.RAISE, kind=kind, cause=cause, title=title, entity=entity, examples=json(list(examples)))


def tell_of_records(connection: Connection, kind: str, cause: str, title: str, entity: str,
                    keys: Sequence[str]) -> None:
    """Writes or adds to the one alert of this cause; a record counts once for it."""
    if keys:
        run(connection, statements.RAISE_FOR_RECORDS, kind=kind, cause=cause[:300], title=title[:300], entity=entity,
            keys=sorted(set(keys)))


def resolve(connection: Connection, kind: str, cause: str | None = None) -> None:
    """The cause is over; whoever was told of it is told so."""
    run(connection, statements.RESOLVE, kind=kind, cause=cause)


def send_due(engine: Engine, settings: Alerts) -> int:
    """Sends what has gathered long enough; returns how many messages went out.

    At least once: an alert is marked after it was delivered.
    """
    taken = in_transaction(
        engine, lambda connection: run(connection, statements.TAKE, group_wait=settings.group_wait)
    )
    if taken:
        _taken()
    sent = 0
    for alert in taken:
        title, body = message(alert, settings)
        error = _deliver(settings.urls, title, body)
        _delivered()
        with engine.begin() as connection:
            if error is None:
                run(connection, statements.SENT, id=alert.id, over=alert.told)
                sent += 1
            else:
                run(connection, statements.NOT_SENT, id=alert.id, error=error)
    return sent


def message(alert: Any, settings: Alerts) -> tuple[str, str]:
    """Title and text of an alert: what happened, where to look, what to do."""
    if alert.told:
        return f"Over: {alert.title}", f"{alert.title}\nOver since {alert.resolved_at:%Y-%m-%d %H:%M:%S %Z}."
    examples = ", ".join(str(example) for example in alert.examples[:10])
    lines = [f"What: {alert.cause} ({alert.n})"]
    if examples:
        lines.append(f"Examples: {examples}")
    lines.append(f"Where: {settings.ui_url}{_place(alert)}")
    lines.append(f"Do: {ACTIONS.get(alert.kind, 'See docs/operations.md.')}")
    return alert.title, "\n".join(lines)


def _place(alert: Any) -> str:
    if alert.entity and alert.kind in ("dead", "held", "drift", "ahead", "waiting_long", "delete_cap", "unusable"):
        return f"/assets/{alert.entity}/mirror"
    return "/runs" if alert.kind == "run_failed" else "/overview"


def _deliver(urls: Sequence[str], title: str, body: str) -> str | None:
    if not urls:
        _log.warning("%s\n%s", title, body)
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import apprise

        logging.getLogger("apprise").setLevel(logging.CRITICAL)  # it logs URLs it cannot use, tokens and all
        sender = apprise.Apprise()
        unknown = [number for number, url in enumerate(urls) if not sender.add(url)]
        taken = not len(sender) or sender.notify(body=body, title=title, body_format=apprise.NotifyFormat.TEXT)
        if unknown:
            return f"Apprise does not know alerts.urls[{unknown[0]}]"
        return None if taken else "not every alerts URL took the message"
