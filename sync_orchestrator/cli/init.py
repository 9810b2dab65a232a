"""``init``: the start of a ``sync.yaml``."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import typer

from sync_orchestrator.cli.terminal import print_line
from sync_orchestrator.errors import UsageError

commands = typer.Typer()


@commands.command()
def init(
    entity: Annotated[str | None, typer.Option(help="What a record is, such as product.")] = None,
    source_url: Annotated[
        str | None,
        typer.Option(
            help="Address of your own system: https://…, or a database URL such as postgresql://user@host/name."
        ),
    ] = None,
    third_party_url: Annotated[
        str | None,
        typer.Option(help="Address of the service that is kept in sync; with --from, the one that the document names."),
    ] = None,
    key: Annotated[str | None, typer.Option(help="The field that names a record.")] = None,
    version: Annotated[str | None, typer.Option(help="The field that grows with each change.")] = None,
    version_kind: Annotated[Literal["time", "number"] | None, typer.Option(help="Type of the version field.")] = None,
    group: Annotated[str | None, typer.Option(help="The field that splits the records in groups.")] = None,
    fields: Annotated[str | None, typer.Option(help="The fields to copy, separated by commas.")] = None,
    source: Annotated[str, typer.Option(help="A name for your own system.")] = "backoffice",
    third_party: Annotated[str, typer.Option(help="A name for the service.")] = "partner",
    source_path: Annotated[str, typer.Option(help="Path of your own system's listing; /<entity>s by default.")] = "",
    third_party_path: Annotated[str, typer.Option(help="Path of the service's listing; /<entity>s by default.")] = "",
    source_items: Annotated[
        str, typer.Option(help="Where the list is in a response of your own system; @ is all of it.")
    ] = "@",
    third_party_items: Annotated[
        str, typer.Option(help="Where the list is in a response of the service; @ is all of it.")
    ] = "@",
    groups_path: Annotated[str, typer.Option(help="Path at which your own system lists the groups.")] = "",
    ids: Annotated[Literal["theirs", "ours"], typer.Option(help="Who gives the ids at the service.")] = "theirs",
    source_table: Annotated[str | None, typer.Option(help="The table or view of a database with the records.")] = None,
    source_files: Annotated[
        str | None,
        typer.Option(
            help="A CSV, JSON Lines or Parquet file of your own system, or a pattern such as 'exports/*.csv'."
        ),
    ] = None,
    source_from: Annotated[
        str | None, typer.Option(help="An OpenAPI document of your own system, a file or URL.")
    ] = None,
    third_party_from: Annotated[
        str | None,
        typer.Option(
            "--from", help="An OpenAPI document of the service, a file or URL: its calls are proposed from it."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not prompt.")] = False,
    force: Annotated[bool, typer.Option(help="Overwrite a configuration.")] = False,
) -> None:
    """Write a commented start of sync.yaml from a few questions, tables, files and OpenAPI documents.

    What cannot be known is a line with a TODO, which `check` explains.
    """
    from sync_orchestrator import composition
    from sync_orchestrator.cli.starter import document
    from sync_orchestrator.cli.starter.gathering import InitOptions, gather_answers

    path = composition.config_path()
    document.check_free(path, force=force)
    answers = gather_answers(
        InitOptions(
            entity=entity,
            source_url=source_url,
            third_party_url=third_party_url,
            key=key,
            version=version,
            version_kind=version_kind,
            group=group,
            fields=fields,
            source=source,
            third_party=third_party,
            source_path=source_path,
            third_party_path=third_party_path,
            source_items=source_items,
            third_party_items=third_party_items,
            groups_path=groups_path,
            ids=ids,
            source_table=source_table,
            source_files=source_files,
            source_document=source_from,
            third_party_document=third_party_from,
        ),
        partial(_prompt_option, yes=yes),
        print_line,
    )
    text = document.start_of(answers)
    document.write_start(text, path)
    print_line(f"{path} is written, with {document.SCHEMA} beside it for your editor. Read it through, then:")
    if marked := document.marked_lines(text):
        print_line(f"  fill in {len(marked)} marked lines ({', '.join(map(str, marked))}); `check` explains each")
    for command, what in (
        ("check", "says what is wrong with it"),
        ("check --live", "tries it out, and writes nothing"),
        (f"plan {answers.entity}", "says what a full sync would do, and writes nothing"),
        (f"full-sync {answers.entity}", "fills the service for the first time"),
        ("up", "keeps it in sync from then on"),
    ):
        print_line(f"  sync-orchestrator {command:<20} {what}")


def _prompt_option(option: str, value: str | None, question: str, default: str | None = None, *, yes: bool) -> str:
    """The value of an option, its default where nothing may be asked, or what the user types."""
    if value is None and yes:
        value = default
    if value is None and yes:
        raise UsageError(f"{option} is needed with --yes")
    return (typer.prompt(question, default=default) if value is None else value).strip()
