"""Places where a process can be made to die or stop, for the tests that prove nothing is lost there.

Each place registers itself at import; ``SYNC_CRASH_AT=name`` kills the process (SIGKILL) when it is first reached,
``name:3`` the third time; ``SYNC_STOP_AT`` stops it (SIGSTOP) instead. Unset, a place costs a comparison.
"""

from __future__ import annotations

import os
import signal
import threading

REGISTERED: list[str] = []
_reached: dict[str, int] = {}


class CrashPoint:
    """A named place in the code; call it there."""

    def __init__(self, name: str) -> None:
        self.name = name
        REGISTERED.append(name)
        self._signals = {
            number: times
            for variable, number in (("SYNC_CRASH_AT", "SIGKILL"), ("SYNC_STOP_AT", "SIGSTOP"))
            if (times := _parse_hit_count(os.environ.get(variable, ""), name))
        }

    def __call__(self) -> None:
        """Sends this process a signal if a test asked for that here; otherwise does nothing."""
        if not self._signals:
            return
        _reached[self.name] = _reached.get(self.name, 0) + 1
        for name, times in self._signals.items():
            if _reached[self.name] == times:
                # To this thread: one that is sent to the process may reach another one first, while this one goes on.
                signal.pthread_kill(threading.get_ident(), getattr(signal, name))


def _parse_hit_count(setting: str, name: str) -> int:
    place, _, times = setting.partition(":")
    return int(times or 1) if place == name else 0
