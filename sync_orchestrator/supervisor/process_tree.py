"""Programs that live and end together: whoever descends from one of them is found by a mark in its environment.

A guard, the smallest program possible, waits for the end of whoever started the tree. If that end is violent
(SIGKILL), the guard ends the tree in its place:
``python -m sync_orchestrator.supervisor.process_tree MARK [DATABASE_FOLDER]``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from sync_orchestrator.errors import SyncError
from sync_orchestrator.private_files import make_private_folder

MARK = "SYNC_PROCESS_TREE"
"""The environment variable that every program of a tree inherits."""

_END_SECONDS = 10.0
_KILL_SECONDS = 5.0
_SHOWN_LINES = 15
_LOG_BYTES = 10_485_760
_MAX_OLD_LOGS = 3
"""Of one program, with the one that is written."""


class ProgramEnded(SyncError):
    """A program that should run has ended; the message holds the last lines of its log."""

    def __init__(self, name: str, status: int | None, log: Path) -> None:
        how = "" if status is None else f" with status {status}"
        super().__init__(f"{name} has ended{how}; its log {log} ends with:\n{last_lines(log)}")
        self.name = name


@dataclass(frozen=True)
class Program:
    """A running program; ``url`` answers once it is ready."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    url: str | None = None

    def trim_log(self, limit: int = _LOG_BYTES) -> None:
        """Moves what the log holds to a file beside it where it has become large.

        The program goes on writing to the same file, at its end, which is its beginning then: it need not take part.
        """
        with contextlib.suppress(OSError):  # a log that cannot be trimmed is no reason to end anything
            if self.log.stat().st_size > limit:
                _shift_old_logs(self.log)
                shutil.copyfile(self.log, _build_log_path(self.log, 1))
                os.truncate(self.log, 0)

    def check_running(self) -> None:
        """Raises ProgramEnded where it no longer runs."""
        if (status := self.process.poll()) is not None:
            raise ProgramEnded(self.name, status, self.log)


class Tree:
    """Programs started together, each in a session of its own, so that Ctrl-C reaches them only through us."""

    def __init__(self, logs: Path, environment: Mapping[str, str], *, database: Path | None = None) -> None:
        """``database``: a folder whose embedded server ends with the tree, should we be killed."""
        self._logs = logs.resolve()
        make_private_folder(self._logs)
        self.mark = secrets.token_hex(8)
        self.environment = {**environment, MARK: self.mark}
        self.programs: list[Program] = []
        self.guard = subprocess.Popen(
            [sys.executable, "-m", __name__, self.mark, *([] if database is None else [str(database)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name != MARK},
        )

    def start_program(self, name: str, command: Sequence[str], url: str | None = None) -> Program:
        """Starts a program; what it prints goes to its log, and those of the times before are kept beside it."""
        log = self._logs / f"{name}.log"
        if log.exists():
            _shift_old_logs(log)
            log.replace(_build_log_path(log, 1))
        # to append: see ``Program.trim_log``
        with open(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600), "ab") as out:
            process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self.environment,
                start_new_session=True,
                preexec_fn=_set_up_child if os.name == "posix" else None,
            )
        program = Program(name, process, log, url)
        self.programs.append(program)
        return program

    def check_programs(self) -> None:
        """Keeps the logs small. Raises ProgramEnded where one no longer runs."""
        for program in self.programs:
            program.trim_log()
            program.check_running()

    def stop(self) -> None:
        """Ends all programs and whatever they started. Harmless to repeat."""
        end_tree(self.mark)
        for program in self.programs:
            program.process.wait()
        self.programs.clear()

    def dismiss_guard(self) -> None:
        """Everything is in order: the guard has nothing left to do. Harmless to repeat."""
        if self.guard.poll() is None:
            self.guard.communicate(b"over\n")


def find_tree_processes(mark: str) -> list[psutil.Process]:
    """Every living process of a tree, also those whose parents are gone."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end_tree(mark: str) -> None:
    """Ends a tree: politely, and after a while for good."""
    began = time.monotonic()
    asked: set[int] = set()
    while alive := find_tree_processes(mark):
        waited = time.monotonic() - began
        if waited > _END_SECONDS + _KILL_SECONDS:
            return
        for process in alive:
            with contextlib.suppress(psutil.Error):
                if waited > _END_SECONDS:
                    process.kill()
                elif process.pid not in asked:
                    asked.add(process.pid)
                    process.terminate()
        time.sleep(0.05)  # psutil's own wait would take the exit status away from the one who started them


def _build_log_path(log: Path, age: int) -> Path:
    return log.with_suffix(f".log.{age}")


def _shift_old_logs(log: Path) -> None:
    """Makes room for a log of age 1."""
    for age in range(_MAX_OLD_LOGS - 1, 1, -1):
        if (younger := _build_log_path(log, age - 1)).exists():
            younger.replace(_build_log_path(log, age))


def last_lines(log: Path) -> str:
    """The end of a log, for people."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:])
    except OSError:
        return "(there is none)"


def _set_up_child() -> None:
    """Prepares a new process: files it creates are private, and it heeds signals that a shell made us ignore."""
    os.umask(0o077)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _run_guard(mark: str, database: str | None) -> None:
    if sys.stdin.buffer.read():
        return
    end_tree(mark)
    if database is not None:
        from sync_orchestrator.database import embedded

        embedded.stop(Path(database))


if __name__ == "__main__":
    _run_guard(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
