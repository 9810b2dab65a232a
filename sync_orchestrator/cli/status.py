"""``status``: how all of it is.

Not here: what is counted (``core/operations/status.py``).
"""

from __future__ import annotations

from typing import Any

import typer

from sync_orchestrator.cli.existing import existing_database_to_read
from sync_orchestrator.cli.options import Json
from sync_orchestrator.cli.terminal import as_json, say, table

commands = typer.Typer()


@commands.command()
def status(json: Json = False) -> None:
    """Show how much is where, how old the oldest due work is, and what is wrong."""
    from sync_orchestrator import composition
    from sync_orchestrator.core.operations.status import call_limit_text
    from sync_orchestrator.core.operations.status import status as read_status

    found = read_status(existing_database_to_read())
    if json:
        as_json(found)
        return
    for name in ("events", "records"):
        table(
            name,
            ["", ""],
            [
                [what.replace("_", " "), "no" if number is False else number]
                for what, number in found[name].items()
                if number is not True
            ],
        )
    table(
        "dead and discarded records",
        ["entity", "state", "cause", "count", "since"],
        [
            [
                row["entity"],
                "on hold" if row["state"] == "on_hold" else row["state"],
                row["cause"],
                row["count"],
                (row["since"] or "")[:19],
            ]
            for row in found["dead"]
        ],
    )
    table(
        "business groups",
        ["entity", "known", "synced"],
        [[name, row["known"], row["synced"]] for name, row in found["groups"].items()],
    )
    table(
        "lost notifications",
        ["day", "entity", "source", "count"],
        [[row["day"], row["entity"], row["source"], row["count"]] for row in found["lost_notifications"]],
    )
    table(
        "systems",
        ["name", "breaker", "pushes", "epoch"],
        [[name, row["breaker"], _pushes(row), row["epoch"]] for name, row in found["systems"].items()],
    )
    for name, row in found["systems"].items():
        if row["held_off_seconds"]:
            say(
                f"{name}: calls are held off for {row['held_off_seconds']:.0f} s more: "
                f"{row['held_off_because'] or 'the system asked for it'}."
            )
        if row["rate_share"] < 1:
            say(f"{name}: calls were refused as too fast, so {row['rate_share']:.0%} of its rate is used for now.")
        if row["call_limit"]:
            say(f"{call_limit_text(name, row['call_limit'])}.")
    table("alive", ["what", "seconds ago"], list(found["heartbeats"].items()))
    table("messages that cannot be read", ["consumer", "count"], list(found["rejected"].items()))
    table(
        "outcomes to be sent",
        ["receiver", "count", "error"],
        [[name, row["unsent"], row["error"]] for name, row in found["outcomes"].items()],
    )
    alerts = found["alerts"]
    table(
        "open alerts",
        ["kind", "cause", "count", "since"],
        [[alert["kind"], alert["cause"], alert["count"], alert["since"][:19]] for alert in alerts["open"]],
    )
    if alerts["send_error"]:
        say(f"Alerts do not arrive ({alerts['unsent']} unsent): {alerts['send_error']}.")
    for name, row in found["systems"].items():
        if row["suspended_since"]:
            say(
                f"Pushes to {name} are suspended since {row['suspended_since'][:19]}: {row['suspended_reason']}. "
                "Run `sync-orchestrator adopt`."
            )
    say(f"The oldest due work has waited {found['oldest_due_seconds']:.1f} s.")
    say(f"The database is {composition.database_place()}.")


def _pushes(system: dict[str, Any]) -> str:
    return "suspended" if system["suspended_since"] else "paused" if system["paused"] else "on"
