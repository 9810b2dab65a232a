"""How the command line shows things: tables, progress, errors in one line."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from sync_orchestrator.errors import SyncError

if TYPE_CHECKING:
    from rich.progress import Progress

    from sync_orchestrator.conformance.live_check.report import CheckStep
    from sync_orchestrator.conformance.report import BehaviourResult

_WIDE = 400
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


class OneLineErrors(TyperGroup):
    """What went wrong is told in one line on stderr with exit status 2, never as a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command. Errors and interrupts become one line and an exit status."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print_error("canceled: run it again, and it goes on where it stopped")
            raise typer.Exit(130) from None
        except SyncError as error:
            reason = str(error)
        except Exception as error:
            if not _is_of_database(error):
                raise
            reason = f"the database: {_line_of(error)}"
        print_error(f"error: {reason}")
        raise typer.Exit(2) from None


def _is_of_database(error: Exception) -> bool:
    """Whether SQLAlchemy or the driver raised it; most commands import neither."""
    kinds = (("sqlalchemy.exc", "SQLAlchemyError"), ("psycopg", "Error"))
    return any(isinstance(error, getattr(sys.modules[module], name)) for module, name in kinds if module in sys.modules)


def _line_of(error: Exception) -> str:
    kind = type(error).__name__
    found = getattr(error, "orig", None) or (error if type(error).__module__.startswith("psycopg") else kind)
    return (str(found).splitlines() or [kind])[0]


def make_console() -> Console:
    """Standard output, as it is now; in a file or a pipe lines are not folded."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDE)


def print_line(line: str) -> None:
    """A line for people on standard output."""
    make_console().print(make_safe_text(line), soft_wrap=True)


def print_error(line: str) -> None:
    """A line on standard error."""
    Console(stderr=True, highlight=False).print(make_safe_text(line), soft_wrap=True, style="red")


def make_safe_text(value: object) -> Text:
    """A value as text that cannot steer the terminal, whoever wrote it."""
    if isinstance(value, bytes | memoryview):
        return Text(bytes(value).hex())
    return Text("" if value is None else _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(value)))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Shows a table; nothing where it has no rows."""
    if not rows:
        return
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for number, column in enumerate(columns):
        is_number = all(isinstance(row[number], int | float) for row in rows)
        made.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        made.add_row(*(make_safe_text(value) for value in row))
    console = make_console()
    console.print(made)
    console.print()


def show_step(step: CheckStep) -> None:
    """One line of a live check, and what a record is made into."""
    from sync_orchestrator import exact_json

    style = {"ok": "green", "failed": "red", "skipped": "yellow", "waiting": "yellow"}[step.outcome]
    line = Text.assemble(
        (f"{step.outcome:<8}", style),
        f"{step.entity:<12} {step.system:<12} {step.what:<8} ",
        make_safe_text(step.detail),
    )
    make_console().print(line, soft_wrap=True)
    if step.hint:
        make_console().print(make_safe_text(f"{'':<43}→ {step.hint}"), soft_wrap=True)
    if step.after is not None:
        made = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 4, 1, 0))
        for title in ("before", "after"):
            made.add_column(title, overflow="fold")
        made.add_row(
            *(make_safe_text(exact_json.dump_text(value, indent=2, default=str)) for value in (step.before, step.after))
        )
        make_console().print(made)


def show_endings(endings: Sequence[BehaviourResult]) -> None:
    """How the behaviours of each system ended; of one that failed, what came, what should have, and where to look."""
    style = {"passed": "green", "failed": "red", "skipped": "yellow"}
    for place in dict.fromkeys((ending.entity, ending.system) for ending in endings):
        made = Table(
            title=f"{place[0]} at {place[1]}",
            title_justify="left",
            title_style="bold",
            box=None,
            pad_edge=False,
            header_style="dim",
        )
        for column in ("behaviour", "outcome", "what came, or why not", "expected", "hint"):
            made.add_column(column, overflow="fold")
        for ending in endings:
            if (ending.entity, ending.system) == place:
                name = f"└ {ending.behaviour}" if ending.because_of else ending.behaviour
                made.add_row(
                    make_safe_text(name),
                    Text(ending.outcome, style[ending.outcome]),
                    make_safe_text(ending.came),
                    make_safe_text(ending.expected),
                    make_safe_text(ending.hint),
                )
        make_console().print(made)
        make_console().print()


def as_json(value: object, *, indent: int | None = None) -> None:
    """One JSON document on standard output, for programs."""
    from sync_orchestrator import exact_json

    typer.echo(exact_json.dump_text(value, default=_format_plain, indent=indent, ascii_only=True, spaced=True))


def _format_plain(value: object) -> str:
    return bytes(value).hex() if isinstance(value, bytes | memoryview) else str(value)


class Steps:
    """Long work, step by step, on standard error: bars on a terminal, plain lines elsewhere."""

    def __init__(self, title: str, progress: Progress | None) -> None:
        self._title = title
        self._progress = progress
        self._task = progress.add_task(title, total=None) if progress else None

    def set_total(self, total: int) -> None:
        """How many steps there will be."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=total)

    def show_current(self, text: str) -> None:
        """What is under way; only for somebody who looks on."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=f"{self._title} {make_safe_text(text).plain}")

    def show_phase(self, step: str, phase: str, count: int) -> None:
        """How far a step has come that counts; only for somebody who looks on."""
        self.show_current(f"{step}: {phase} {count}")

    def print_lines(self, lines: Sequence[str]) -> None:
        """How far the work is, in lines that stay."""
        for line in lines:
            if self._progress is not None:
                self._progress.console.print(make_safe_text(line), style="dim")
            else:
                typer.echo(make_safe_text(line).plain, err=True)

    def finish_step(self, line: str) -> None:
        """One step is done; the line stays."""
        if self._progress is not None and self._task is not None:
            self._progress.console.print(make_safe_text(line))
            self._progress.advance(self._task)
        else:
            typer.echo(make_safe_text(line).plain, err=True)


@contextmanager
def track_steps(title: str) -> Iterator[Steps]:
    """Shows the progress of long work while the block lasts."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield Steps(title, None)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Steps(title, progress)
