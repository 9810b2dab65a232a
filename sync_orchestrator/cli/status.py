"""``status``: how all of it is."""

from __future__ import annotations

from typing import Any

import typer

from sync_orchestrator.cli.existing import existing_database_to_read
from sync_orchestrator.cli.options import Json
from sync_orchestrator.cli.terminal import as_json, print_line, print_table

commands = typer.Typer()

STREAM_COLUMNS = ("source", "position", "events", "behind", "the source keeps", "read", "what is wrong")


@commands.command()
def status(json: Json = False) -> None:
    """Show how much is where, how old the oldest due work is, and what is wrong."""
    from sync_orchestrator import composition
    from sync_orchestrator.core.operations.status import collect_status as collect_status
    from sync_orchestrator.core.systems.overview import describe_call_limit

    found = collect_status(existing_database_to_read())
    if json:
        as_json(found)
        return
    for name in ("events", "records"):
        print_table(
            name,
            ["", ""],
            [
                [what.replace("_", " "), "no" if number is False else number]
                for what, number in found[name].items()
                if number is not True
            ],
        )
    print_table(
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
    print_table(
        "business groups",
        ["entity", "known", "synced"],
        [[name, row["known"], row["synced"]] for name, row in found["groups"].items()],
    )
    print_table(
        "lost notifications",
        ["day", "entity", "source", "count"],
        [[row["day"], row["entity"], row["source"], row["count"]] for row in found["lost_notifications"]],
    )
    print_table(
        "systems",
        ["name", "breaker", "pushes", "epoch"],
        [[name, row["breaker"], _describe_pushes(row), row["epoch"]] for name, row in found["systems"].items()],
    )
    for name, row in found["systems"].items():
        if row["held_off_seconds"]:
            print_line(
                f"{name}: calls are held off for {row['held_off_seconds']:.0f} s more: "
                f"{row['held_off_because'] or 'the system asked for it'}."
            )
        if row["rate_share"] < 1:
            print_line(
                f"{name}: calls were refused as too fast, so {row['rate_share']:.0%} of its rate is used for now."
            )
        if row["call_limit"]:
            print_line(f"{describe_call_limit(name, row['call_limit'])}.")
    print_table("alive", ["what", "seconds ago"], list(found["heartbeats"].items()))
    print_table(
        "worker",
        ["task", "last did", "seconds ago", "error"],
        [
            [task["name"], task["did"], "" if (ago := task["did_seconds_ago"]) is None else round(ago), task["error"]]
            for task in found["worker"]["tasks"]
        ],
    )
    print_table("messages that cannot be read", ["consumer", "count"], list(found["rejected"].items()))
    print_table(
        "captured changes",
        STREAM_COLUMNS,
        [[name, *describe_stream(row)] for name, row in found["streams"].items()],
    )
    print_table(
        "outcomes to be sent",
        ["receiver", "count", "error"],
        [[name, row["unsent"], row["error"]] for name, row in found["outcomes"].items()],
    )
    if not found["worker"]["running"]:
        print_line(
            "No worker runs: alerts and outcomes are not sent, and sources are not polled. Run `sync-orchestrator "
            "worker`; `sync-orchestrator up` runs one, too."
        )
    alerts = found["alerts"]
    print_table(
        "open alerts",
        ["kind", "cause", "count", "since"],
        [[alert["kind"], alert["cause"], alert["count"], alert["since"][:19]] for alert in alerts["open"]],
    )
    if alerts["send_error"]:
        print_line(f"Alerts do not arrive ({alerts['unsent']} unsent): {alerts['send_error']}.")
    for name, row in found["systems"].items():
        if row["suspended_since"]:
            print_line(
                f"Pushes to {name} are suspended since {row['suspended_since'][:19]}: {row['suspended_reason']}. "
                "Run `sync-orchestrator adopt`."
            )
    print_line(f"The oldest due work has waited {found['oldest_due_seconds']:.1f} s.")
    print_line(f"The database is {composition.database_place()}.")


def _describe_pushes(system: dict[str, Any]) -> str:
    return "suspended" if system["suspended_since"] else "paused" if system["paused"] else "on"


def describe_stream(stream: dict[str, Any]) -> list[object]:
    """Returns a stream of captured changes as a row of STREAM_COLUMNS, without its first cell.

    Args:
        stream: The document of a ``StreamReport``.
    """
    retained = stream["retained_bytes"]
    return [
        stream["position"],
        stream["events"],
        f"{stream['behind_seconds']:.0f} s",
        "" if retained is None else f"{retained / 1024**2:.1f} MiB",
        "yes" if stream["read"] else "no",
        "; ".join(_list_stream_problems(stream)),
    ]


def _list_stream_problems(stream: dict[str, Any]) -> list[str]:
    # What stops the stream now comes first: it needs an action before full syncs can restore what is missing.
    problems = [str(stream["error"])] if stream["error"] else []
    if not stream["read"]:
        problems.append("no process reads it: run `sync-orchestrator capture`")
    if stream["lost"]:
        problems.append(f"changes are missing: {stream['lost']}")
    return problems
