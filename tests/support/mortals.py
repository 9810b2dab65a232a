"""Processes that die at a crash point, played in this one: from there on, nothing of theirs reaches the database."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable

import pytest

from sync_orchestrator.core.crash_points import CrashPoint


class Killed(BaseException):
    """The process is gone."""


def _was_killed(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_was_killed(each) for each in error.exceptions)
    return isinstance(error, Killed)


class Mortal:
    """A world in which processes die. Its database is not reached while ``is_dead``."""

    is_dead: bool = False

    def run_until_crash(self, work: Callable[[], object], point: str, times: int) -> bool:
        """Does work as a process that dies when a crash point is reached for the n-th time; says whether it did.

        From there on not a statement of its reaches the database, whatever its clean-up tries.
        """
        reached = 0

        def die(self_: CrashPoint) -> None:
            nonlocal reached
            reached += self_.name == point
            if self.is_dead or reached >= times:
                self.is_dead = True
                raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CrashPoint, "__call__", die)
            patch.setattr(logging.getLogger("asyncio"), "disabled", True)  # nobody asks after a dead process' tasks
            try:
                work()
            except BaseException as error:
                if not self.is_dead or not _was_killed(error):
                    raise
            if self.is_dead:
                gc.collect()
            died, self.is_dead = self.is_dead, False
        return died
