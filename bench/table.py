"""What a measurement says: lines with what was reached, what is to be reached, and a file with all of it."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Line:
    """One measured thing. ``ratio``: to ``compared``, where there is something to compare it with.

    ``note`` is shown below the table, once for all lines that have it.
    """

    what: str
    value: float
    unit: str
    compared: str = ""
    ratio: float | None = None
    wanted: str = ""
    reached: bool | None = None
    note: str = ""


def printed(title: str, lines: list[Line]) -> None:
    """Prints a table, and the notes below it."""
    table = Table(title=title)
    for name in ("what", "value", "beside", "ratio", "to reach", ""):
        table.add_column(name, justify="right" if name in ("value", "ratio") else "left")
    notes = list(dict.fromkeys(line.note for line in lines if line.note))
    for line in lines:
        verdict = "" if line.reached is None else "yes" if line.reached else "no"
        what = f"{line.what} ({notes.index(line.note) + 1})" if line.note else line.what
        table.add_row(
            what,
            f"{line.value:,.0f} {line.unit}",
            line.compared,
            "" if line.ratio is None else f"{line.ratio:.2f}",
            line.wanted,
            verdict,
        )
    console = Console(width=140)
    console.print(table)
    for number, note in enumerate(notes, 1):
        console.print(f"({number}) {note}", highlight=False)


def show(title: str, lines: list[Line]) -> None:
    """The same, and writes ``results/<title>.json`` and ``.svg``."""
    printed(title, lines)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{title}.json").write_text(
        json.dumps(
            {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "cores": psutil.cpu_count(),
                "python": platform.python_version(),
                "lines": [asdict(line) for line in lines],
            },
            indent=2,
        )
        + "\n"
    )
    from bench.plot import draw  # matplotlib counts in the memory of what is measured

    draw(RESULTS / f"{title}.svg", lines)
