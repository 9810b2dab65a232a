"""What a command costs before it does anything: seconds of CPU (user and system), the best of several calls."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile

from bench.serving import database
from bench.table import Line, show

COMMANDS = (("--help",), ("status",), ("events", "list"), ("records", "list"), ("records", "show", "product", "a"))
LIBRARIES = "import typer, rich.console, rich.table, psycopg, sqlalchemy.dialects.postgresql.psycopg"
"""What a command cannot do without, whatever is imported on demand."""
TO_REACH_SECONDS = 0.4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    calls = 3 if parser.parse_args().quick else 10
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, database() as url:
        environment = {**os.environ, "SYNC_DATABASE_URL": url, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # compiled once, as in an installation
        bare = cpu_seconds(("-c", LIBRARIES), environment, calls)
        measured = {words: cpu_seconds(("-m", "sync_orchestrator", *words), environment, calls) for words in COMMANDS}
    show(
        "commands",
        [
            Line(
                f"CPU of `{' '.join(words)}`",
                seconds * 1000,
                "ms",
                f"its libraries alone: {bare * 1000:,.0f} ms",
                seconds / bare,
                f"{TO_REACH_SECONDS * 1000:,.0f} ms",
                seconds <= TO_REACH_SECONDS,
            )
            for words, seconds in measured.items()
        ],
    )


def cpu_seconds(words: tuple[str, ...], environment: dict[str, str], calls: int) -> float:
    """The least CPU time that a call of Python took, its own children included; one call before is not counted."""
    taken = []
    for _ in range(calls + 1):
        before = os.times()
        subprocess.run([sys.executable, *words], env=environment, capture_output=True, check=False)
        after = os.times()
        taken.append(after.children_user - before.children_user + after.children_system - before.children_system)
    return min(taken[1:])


if __name__ == "__main__":
    main()
