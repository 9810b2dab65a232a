"""Alerts: an outbox written in the transaction of what it tells of, and its sending through Apprise.

Kinds: dead, held, breaker_open, drift, ahead, waiting_long, overdue, delete_cap, unusable, group_name,
conservation, run_failed.
``docs/operations.md`` has a section for each.
"""

from __future__ import annotations

import hashlib
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

_LONGEST = 300
_SHOWN = 10
_MOST_AT_ONCE = 50
_TOGETHER = ["drift", "delete_cap", "unusable"]
"""Kinds that tell of a business group each: a hundred groups are one message."""

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
    run(connection, statements.RAISE, kind=kind, cause=cause[:_LONGEST], title=title[:_LONGEST], entity=entity,
        examples=json(list(examples)))


def tell_of_records(connection: Connection, kind: str, cause: str, title: str, entity: str,
                    keys: Sequence[str]) -> None:
    """Writes or adds to the one alert of this cause; a record counts once for it."""
    if keys:
        run(connection, statements.RAISE_FOR_RECORDS, kind=kind, cause=cause[:_LONGEST], title=title[:_LONGEST],
            entity=entity, keys=sorted(set(keys)))


def resolve(connection: Connection, kind: str, cause: str | None = None) -> None:
    """The cause is over; whoever was told of it is told so."""
    run(connection, statements.RESOLVE, kind=kind, cause=None if cause is None else cause[:_LONGEST])


def send_due(engine: Engine, settings: Alerts) -> int:
    """Sends what has gathered long enough; returns how many messages all addresses have taken.

    At least once to every address: what it took is written down afterwards. What an address did not take is tried
    there again, and nowhere else.
    """
    sent = 0
    for _ in range(_MOST_AT_ONCE):
        taken = in_transaction(engine, lambda connection: run(
            connection, statements.TAKE, group_wait=settings.group_wait, repeat_every=settings.repeat_every,
            together=_TOGETHER))
        if not taken:
            break
        _taken()
        sent += _send(engine, sorted(taken, key=lambda alert: int(alert.id)), settings)
    return sent


def _send(engine: Engine, taken: Sequence[Any], settings: Alerts) -> bool:
    ids = [alert.id for alert in taken]
    with engine.begin() as connection:
        had = {(row.alert_id, bytes(row.receiver)) for row in run(connection, statements.DELIVERIES, ids=ids)}
    errors = []
    for number, url in enumerate(settings.urls or [None]):
        receiver = hashlib.blake2b((url or "").encode(), digest_size=16).digest()
        left = [alert for alert in taken if (alert.id, receiver) not in had]
        if not left:
            continue
        error = _deliver(url, *message(left, settings))
        _delivered()
        if error is not None:
            errors.append(f"alerts.urls[{number}]: {error}")
            continue
        with engine.begin() as connection:
            run(connection, statements.DELIVERED, ids=[alert.id for alert in left], receiver=receiver)
    with engine.begin() as connection:
        if errors:
            run(connection, statements.NOT_SENT, ids=ids, error="; ".join(errors))
        else:
            run(connection, statements.SENT, ids=ids, over=taken[0].over)
    for problem in errors:
        _log.error("an alert (%s) could not be sent to %s", ", ".join(alert.kind for alert in taken[:1]), problem)
    return not errors


def message(alerts: Sequence[Any], settings: Alerts) -> tuple[str, str]:
    """Title and text of what goes out together: what happened, where to look, what to do."""
    alert = alerts[0]
    title = alert.title if len(alerts) == 1 else f"{alert.entity or ''}: {alert.kind}, {len(alerts)} times".lstrip(": ")
    if alert.over:
        lines = [f"{each.title}\nOver since {each.resolved_at:%Y-%m-%d %H:%M:%S %Z}." for each in alerts[:_SHOWN]]
        return f"Over: {title}", "\n".join([*lines, *_and_more(alerts)])
    lines = [f"What: {alert.cause} ({alert.n})"] if len(alerts) == 1 else [
        f"What: {each.title}" for each in alerts[:_SHOWN]]
    lines += _and_more(alerts)
    examples = ", ".join(str(example) for each in alerts for example in each.examples[:10 if len(alerts) == 1 else 1])
    if examples:
        lines.append(f"Examples: {examples[:2000]}")
    lines.append(f"Where: {settings.ui_url}{_place(alert)}")
    lines.append(f"Do: {ACTIONS.get(alert.kind, 'See docs/operations.md.')}")
    return f"Still: {title}" if alert.told else title, "\n".join(lines)


def _and_more(alerts: Sequence[Any]) -> list[str]:
    return [f"and {len(alerts) - _SHOWN} more"] if len(alerts) > _SHOWN else []


def _place(alert: Any) -> str:
    if alert.entity and alert.kind in ("dead", "held", "drift", "ahead", "waiting_long", "delete_cap", "unusable"):
        return f"/assets/{alert.entity}/mirror"
    return "/runs" if alert.kind == "run_failed" else "/overview"


def _deliver(url: str | None, title: str, body: str) -> str | None:
    """Says why it was not taken, without the address: that can hold a password."""
    if url is None:
        _log.warning("%s\n%s", title, body)
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import apprise

        logging.getLogger("apprise").setLevel(logging.CRITICAL)  # it logs URLs it cannot use, tokens and all
        sender = apprise.Apprise()
        if not sender.add(url):
            return "Apprise does not know this kind of URL"
        taken = sender.notify(body=body, title=title, body_format=apprise.NotifyFormat.TEXT)
        return None if taken else "the message was not taken"
