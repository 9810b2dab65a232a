"""How the bench talks to a peer's program, by lines; only of the standard library, since each peer has its environment.

The bench sends a case as JSON; the program gets all of its input in place and says ``ready``. After ``go`` it pushes,
and says ``gone`` once it has no more to do by itself. After ``end`` it takes away what it made and says ``ended``.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

BATCH = 500


@dataclass(frozen=True)
class Case:
    """What is to be pushed: by bulk calls, by single ones, or by single creates."""

    how: str
    url: str
    connections: int
    records: list[dict[str, Any]]
    folder: Path


def batches(records: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    at = iter(records)
    while batch := list(islice(at, BATCH)):
        yield batch


def serve(prepared: Callable[[Case], AbstractContextManager[Callable[[], None]]]) -> None:
    """Cases until the end of input. What libraries print goes to standard error."""
    said = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for number, line in enumerate(iter(sys.stdin.readline, "")):
        told = json.loads(line)
        folder = Path.cwd() / str(number)
        folder.mkdir()
        records = [json.loads(one) for one in Path(told["input"]).read_text().splitlines()]
        with prepared(Case(told["how"], told["url"], told["connections"], records, folder)) as go:
            said.write("ready\n")
            sys.stdin.readline()
            try:
                go()
                said.write("gone\n")
            except Exception as error:
                traceback.print_exc()
                said.write(f"failed: {type(error).__name__}\n")
            sys.stdin.readline()
        said.write("ended\n")
