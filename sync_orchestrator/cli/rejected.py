"""``rejected``: messages of brokers that cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sync_orchestrator.cli.existing import existing_database, existing_database_to_read
from sync_orchestrator.cli.options import Json
from sync_orchestrator.cli.terminal import as_json, print_line, print_table
from sync_orchestrator.errors import UsageError

if TYPE_CHECKING:
    from sync_orchestrator.config import Config
    from sync_orchestrator.core.intake.rejected_messages import Rejected
    from sync_orchestrator.core.ledger.recording import ChangeEvent

Ids = Annotated[list[int] | None, typer.Argument(help="Numbers of messages, as `rejected list` shows them.")]
Consumer = Annotated[str | None, typer.Option(help="Only those of this consumer.")]

commands = typer.Typer(no_args_is_help=True, help="Messages of brokers that cannot be read.")


@commands.command("list")
def rejected_list(
    consumer: Consumer = None,
    most: Annotated[int, typer.Option(min=1)] = 50,
    json: Json = False,
) -> None:
    """List messages that cannot be read, newest first."""
    from sync_orchestrator.core.intake import rejected_messages

    with existing_database_to_read().begin() as connection:
        rows = rejected_messages.list_rejected_messages(connection, consumer, most)
    if json:
        as_json(rows)
        return
    names = ["id", "consumer", "reason", "size", "times", "last_seen_at"]
    print_table("rejected", names, [[row[name] for name in names] for row in rows])
    if not rows:
        print_line("there are none")


@commands.command("show")
def rejected_show(number: Annotated[int, typer.Argument(metavar="ID")]) -> None:
    """Show one message with its reason, headers and body, as JSON."""
    from sync_orchestrator.core.intake import rejected_messages

    with existing_database_to_read().begin() as connection:
        as_json(rejected_messages.read_rejected_message(connection, number), indent=2)


@commands.command("retry")
def rejected_retry(
    ids: Ids = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    consumer: Consumer = None,
) -> None:
    """Put messages through again, after the configuration was fixed. Exit status: 1 some still cannot be read."""
    from sync_orchestrator import composition
    from sync_orchestrator.brokers.consume import reread_message, retry_rejected
    from sync_orchestrator.capture.rejected_rows import is_rejected_row, reread_row

    def reread(found: Rejected, config: Config) -> list[ChangeEvent]:
        return reread_row(found, config) if is_rejected_row(found) else reread_message(found, config)

    if not ids and not every:
        raise UsageError("name messages by number, or say --all")
    config = composition.load_config()
    went, left = retry_rejected(existing_database(), config, ids or None, consumer, reread)
    print_line(f"{went} messages recorded, {left} still cannot be read")
    raise typer.Exit(1 if left else 0)


@commands.command("discard")
def rejected_discard(ids: Ids, reason: Annotated[str, typer.Option(help="Why; it is kept.")]) -> None:
    """End messages for good."""
    from sync_orchestrator.core.intake import rejected_messages

    print_line(
        f"{rejected_messages.discard_rejected_messages(existing_database(), ids or [], reason)} messages discarded"
    )
