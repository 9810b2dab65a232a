"""Whether this process was requested to end: what is under way is finished, and nothing more is begun.

``performing.py`` sets it on a signal; drains look at it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Ending:
    """The request to end this process, and how many drains still have work under way."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._active_drains = 0
        self._idle: Callable[[], object] = lambda: None

    @property
    def is_requested(self) -> bool:
        """Whether a signal to end the process came."""
        return self.signal_number is not None

    @contextmanager
    def draining(self) -> Iterator[None]:
        """Counts a drain as active until the block is left."""
        self._active_drains += 1
        try:
            yield
        finally:
            self._active_drains -= 1
            if not self._active_drains:
                self._idle()

    def when_idle(self, then: Callable[[], object]) -> None:
        """Calls ``then`` once no drain is active, at once where none is."""
        self._idle = then
        if not self._active_drains:
            then()


ending = Ending()
"""Of this process."""
