"""One line of the log a minute for what repeats: whoever can make the service log a line must not fill its disk."""

from __future__ import annotations

import logging
import threading
import time

SECONDS = 60.0
_MAX_KINDS = 200


class Repeats(logging.Filter):
    """Passes the first line of each kind, and later how many of it there were meanwhile.

    Lines of a kind have the same logger, level, template and arguments; of an error with a traceback, its type stands
    for the arguments.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        super().__init__()
        self._seconds = seconds
        self._lock = threading.Lock()
        self._kinds: dict[tuple[object, ...], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written; it says how many were not."""
        now = time.monotonic()
        kind = _classify_record(record)
        with self._lock:
            until, left_out = self._kinds.get(kind, (0.0, 0))
            if now < until:
                self._kinds[kind] = (until, left_out + 1)
                return False
            if kind not in self._kinds and len(self._kinds) >= _MAX_KINDS:
                self._forget_old_kinds(now)
                if len(self._kinds) >= _MAX_KINDS:
                    return False
            self._kinds[kind] = (now + self._seconds, 0)
        if left_out:
            record.msg = f"{record.getMessage().rstrip()} (and {left_out} times more since this was last logged)"
            record.args = ()
        return True

    def _forget_old_kinds(self, now: float) -> None:
        self._kinds = {kind: state for kind, state in self._kinds.items() if now < state[0]}


def summarise_repeats(*loggers: str) -> None:
    """Has loggers pass what repeats once a minute. Harmless to repeat."""
    for name in loggers:
        logger = logging.getLogger(name)
        if not any(isinstance(each, Repeats) for each in logger.filters):
            logger.addFilter(Repeats())


def _classify_record(record: logging.LogRecord) -> tuple[object, ...]:
    error = record.exc_info[0] if record.exc_info else None
    what = record.msg if error is not None else record.getMessage()
    return record.name, record.levelno, str(what)[:200], error
