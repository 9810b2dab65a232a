"""``keys``: keys of those who may call the API service."""

from __future__ import annotations

from typing import Annotated

import typer

from sync_orchestrator.cli.existing import existing_database, existing_database_to_read
from sync_orchestrator.cli.options import Json
from sync_orchestrator.cli.terminal import as_json, print_line, print_table

commands = typer.Typer(no_args_is_help=True, help="Keys of those who may call the API service.")


@commands.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="Whose it is.")],
    scope: Annotated[
        list[str],
        typer.Option(help="events:SOURCE, events:*, conflicts:ENTITY, conflicts:*, proxy, metrics, admin; repeatable."),
    ],
    days: Annotated[float | None, typer.Option(min=0.01, help="How long it is good for; for ever by default.")] = None,
) -> None:
    """Make a key and print it, this once: only its hash is kept."""
    from sync_orchestrator import composition
    from sync_orchestrator.core.service import api_keys

    config = composition.load_config()
    with composition.open_database().begin() as connection:
        key = api_keys.make_key(
            connection,
            name,
            scope,
            config.sources,
            None if days is None else days * 86_400,
            two_way=[name for name, entity in config.entities.items() if entity.two_way is not None],
        )
    print(key)


@commands.command("list")
def keys_list(json: Json = False) -> None:
    """Show all keys, without their secrets."""
    from sync_orchestrator.core.service import api_keys

    with existing_database_to_read().begin() as connection:
        rows = [dict(row._mapping) for row in api_keys.list_keys(connection)]
    if json:
        as_json(rows)
        return
    print_table(
        "keys",
        ["id", "name", "scopes", "made", "last used", ""],
        [
            [
                row["id"],
                row["name"],
                " ".join(row["scopes"]),
                str(row["created_at"])[:19],
                str(row["used_at"] or "")[:19],
                "revoked" if row["revoked_at"] else f"until {row['expires_at']:%Y-%m-%d}" if row["expires_at"] else "",
            ]
            for row in rows
        ],
    )


@commands.command("revoke")
def keys_revoke(key: Annotated[str, typer.Argument(help="Its id, as `keys list` shows it, or the key.")]) -> None:
    """End a key. Services forget it within seconds."""
    from sync_orchestrator.core.service import api_keys

    with existing_database().begin() as connection:
        api_keys.revoke_key(connection, key)
    print_line("it is good for nothing from now on")
