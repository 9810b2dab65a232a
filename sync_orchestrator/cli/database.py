"""``db``: the embedded database."""

from __future__ import annotations

import typer

from sync_orchestrator.cli.terminal import print_line

commands = typer.Typer(no_args_is_help=True, help="The embedded database.")


@commands.command("url")
def db_url() -> None:
    """Print the database's URL, for psql and the like; starts the embedded server if need be."""
    from sqlalchemy.engine import make_url

    from sync_orchestrator import composition

    typer.echo(make_url(composition.database_url()).set(drivername="postgresql").render_as_string(hide_password=False))


@commands.command("stop")
def db_stop() -> None:
    """Stop the embedded server."""
    from sync_orchestrator import composition
    from sync_orchestrator.database import embedded

    stopped = embedded.stop(composition.resolve_home_folder() / "postgres")
    print_line("stopped" if stopped else "it was not running")
