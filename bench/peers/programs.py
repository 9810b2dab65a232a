"""A peer's program: started, told cases by lines, and ended with all that it started.

The other end is ``set_ups/protocol.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil


class PeerFailed(Exception):
    """It ended, hung or said that it failed; the message is for a line of the table."""


class Program:
    """What runs, and what it says."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.folder = folder
        self._said: queue.Queue[str] = queue.Queue()
        self._cases = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.put(line.strip())
        self._said.put("failed: its program has ended")

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise PeerFailed("its program has ended") from error

    def heard(self, seconds: float) -> str | None:
        """What it says next, or None where it said nothing for so long."""
        try:
            said = self._said.get(timeout=seconds) if seconds else self._said.get_nowait()
        except queue.Empty:
            return None
        if said.startswith("failed"):
            raise PeerFailed(said)
        return said

    def expect(self, word: str, seconds: float) -> None:
        if self.heard(seconds) != word:
            raise PeerFailed(f"not {word} after {seconds:.0f} s")

    def offer(self, how: str, url: str, connections: int, records: list[dict[str, Any]], seconds: float) -> None:
        """Returns once all of a case's input is in place."""
        self._cases += 1
        source = self.folder / f"case-{self._cases}.jsonl"
        source.write_text("".join(json.dumps(record) + "\n" for record in records))
        self.tell(json.dumps({"how": how, "url": url, "connections": connections, "input": str(source)}))
        self.expect("ready", seconds)


@contextmanager
def running(python: str, script: str, *words: str) -> Iterator[Program]:
    """A program of ``set_ups/`` in a folder of its own, which is its HOME, too."""
    with tempfile.TemporaryDirectory(prefix="bench-peer-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [python, str(Path(__file__).parent / "set_ups" / script), *words],
                cwd=folder,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "HOME": place, "DO_NOT_TRACK": "1"},
            )
        try:
            yield Program(process, folder)
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """The end of its input is its sign to end; what does not is killed, and so is what it left."""
    started = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(15)
    for one in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGKILL)
    process.wait(10)
