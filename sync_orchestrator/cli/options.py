"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Group = Annotated[str | None, typer.Option(help="One business group; all of them by default.")]
AllowDeletions = Annotated[int | None, typer.Option(min=0, help="Raise the cap of deletions, for once.")]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
JsonLines = Annotated[bool, typer.Option("--json", help="One JSON object a group.")]
