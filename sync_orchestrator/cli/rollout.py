"""``rollout``: the shares of the proxy's routes that take the new path."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from sync_orchestrator.cli.existing import existing_database
from sync_orchestrator.cli.options import Json
from sync_orchestrator.cli.terminal import as_json, print_line, print_table

if TYPE_CHECKING:
    from sync_orchestrator.core.service import rollout

RouteName = Annotated[str, typer.Argument(metavar="ROUTE", help="A route with a legacy upstream.")]
Values = Annotated[list[str], typer.Argument(help="Values of the header or the part that the route goes by.")]
Why = Annotated[str, typer.Option(help="Why; it is kept.")]
Override = Annotated[bool, typer.Option(help="Whatever validation says; it is kept that it spoke against it.")]
Remove = Annotated[bool, typer.Option(help="Take them off the list.")]

commands = typer.Typer(no_args_is_help=True, help="The shares of the proxy's routes that take the new path.")


@commands.command("list")
def rollout_list(json: Json = False) -> None:
    """Show the share of each route that has a legacy upstream."""
    from sync_orchestrator import composition
    from sync_orchestrator.core.service import rollout

    config = composition.load_config()
    with existing_database().begin() as connection:
        found = [
            rollout.describe_rollout(each) for each in rollout.of_routes(config, rollout.list_rollouts(connection))
        ]
    if json:
        as_json(found)
        return
    print_table(
        "rollouts",
        ["route", "share", "shadow", "allow", "deny", ""],
        [
            [
                each["route"],
                f"{each['percent']:g} %",
                "on" if each["shadow"] else "",
                len(each["allow"]),
                len(each["deny"]),
                "fell back" if each["halted"] else "",
            ]
            for each in found
        ],
    )


@commands.command("show")
def rollout_show(route: RouteName, json: Json = False) -> None:
    """Show a route's share and lists, and what was counted since its last change."""
    from sync_orchestrator import composition
    from sync_orchestrator.core.service import rollout

    config = composition.load_config()
    rollout.find_switched_route(config, route)
    with existing_database().begin() as connection:
        found = rollout.list_rollouts(connection).get(route, rollout.RolloutState(route))
        told = {**rollout.describe_rollout(found), **rollout.count_recent_calls(connection, found)}
    if json:
        as_json(told)
        return
    print_table(
        route,
        ["", ""],
        [
            [name, " ".join(value) if isinstance(value, list) else value]
            for name, value in told.items()
            if name != "route"
        ],
    )


@commands.command("set")
def rollout_set(
    route: RouteName,
    percent: Annotated[float, typer.Argument(min=0, max=100)],
    why: Why,
    override: Override = False,
) -> None:
    """Set the share. A step up needs a clean validation of the route's entity."""
    from sync_orchestrator.core.service import rollout

    _change_rollout(route, lambda now: rollout.RolloutChange(percent=percent), why, override=override)


@commands.command("shadow")
def rollout_shadow(
    route: RouteName, why: Why, off: Annotated[bool, typer.Option("--off", help="No longer.")] = False
) -> None:
    """Copy reads to the new path and compare its answers; callers get those of legacy."""
    from sync_orchestrator.core.service import rollout

    _change_rollout(route, lambda now: rollout.RolloutChange(shadow=not off), why)


@commands.command("allow")
def rollout_allow(
    route: RouteName, values: Values, why: Why, remove: Remove = False, override: Override = False
) -> None:
    """Have values take the new path whatever the share is."""
    from sync_orchestrator.core.service import rollout

    _change_rollout(
        route,
        lambda now: rollout.RolloutChange(allow=now.allow - {*values} if remove else now.allow | {*values}),
        why,
        override=override,
    )


@commands.command("deny")
def rollout_deny(
    route: RouteName, values: Values, why: Why, remove: Remove = False, override: Override = False
) -> None:
    """Have values never take the new path, allowed or not."""
    from sync_orchestrator.core.service import rollout

    _change_rollout(
        route,
        lambda now: rollout.RolloutChange(deny=now.deny - {*values} if remove else now.deny | {*values}),
        why,
        override=override,
    )


@commands.command("history")
def rollout_history(route: RouteName, json: Json = False) -> None:
    """Show who changed a route's share and why, the last first."""
    from sync_orchestrator import composition
    from sync_orchestrator.core.service import rollout

    rollout.find_switched_route(composition.load_config(), route)
    with existing_database().begin() as connection:
        rows = [dict(row._mapping) for row in rollout.list_rollout_changes(connection, route)]
    if json:
        as_json(rows)
        return
    print_table(
        f"changes of {route}",
        ["at", "who", "share", "shadow", "allow", "deny", "why", "against validation"],
        [
            [
                str(row["at"])[:19],
                row["who"],
                f"{row['percent']:g} %",
                "on" if row["shadow"] else "",
                len(row["allow"]),
                len(row["deny"]),
                row["why"],
                row["overrode"],
            ]
            for row in rows
        ],
    )


def _change_rollout(
    route: str, wanted: Callable[[rollout.RolloutState], rollout.RolloutChange], why: str, *, override: bool = False
) -> None:
    from sync_orchestrator import composition
    from sync_orchestrator.core.service import rollout

    config = composition.load_config()
    try:
        with existing_database().begin() as connection:
            after = rollout.change_rollout(
                connection,
                config,
                route,
                wanted(rollout.lock_rollout(connection, config, route)),
                who=_describe_user(),
                why=why,
                override=override,
            )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    print_line(
        f"{route}: {after.percent:g} %"
        + (", shadowed" if after.shadow else "")
        + (" (fell back; set the share to go on)" if after.halted else "")
        + "; replicas know within a second"
    )


def _describe_user() -> str:
    try:
        return f"{getpass.getuser()}, in the shell"
    except (KeyError, OSError):  # a container may run under a number without a name
        return "the shell"
