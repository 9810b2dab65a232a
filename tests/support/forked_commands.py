"""Commands of ours as real processes, each a fork of one that has loaded the libraries, which takes seconds.

For tests that kill, stop or restart a command. What it takes to start one is tested in ``test_cli_imports.py``.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing import get_context
from multiprocessing.process import BaseProcess

_forks = get_context("forkserver")
_LOADED = (
    "pytest",
    "forked_commands",
    "sync_orchestrator.cli",
    "sync_orchestrator.composition",
    "sync_orchestrator.brokers.consume",
    "sync_orchestrator.brokers.kombu_queue",
    "sync_orchestrator.brokers.redis_queue",
)


def start_command(*arguments: str, environment: Mapping[str, str], crash_at: str | None = None) -> BaseProcess:
    """Starts a command; its output is dropped.

    Args:
        arguments: The words after ``sync-orchestrator``.
        environment: All of its environment variables.
        crash_at: The crash point that kills it; crash points read their variable when they are loaded, so the variable
            does not reach a fork.
    """
    _forks.set_forkserver_preload(list(_LOADED))
    process = _forks.Process(target=_run, args=(arguments, dict(environment), crash_at))
    process.start()
    return process


def _run(arguments: tuple[str, ...], environment: dict[str, str], crash_at: str | None) -> None:
    from sync_orchestrator.cli import app
    from sync_orchestrator.core.crash_points import CrashPoint

    def die(self: CrashPoint) -> None:
        if self.name == crash_at:
            os.kill(os.getpid(), signal.SIGKILL)

    CrashPoint.__call__ = die  # type: ignore[method-assign]
    os.environ.clear()
    os.environ.update(environment)
    dropped = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        os.dup2(dropped, output)
    sys.argv[1:] = arguments
    app(arguments, prog_name="sync-orchestrator")
