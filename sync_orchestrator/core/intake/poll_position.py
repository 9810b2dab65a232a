"""Where the next poll of a source begins: never behind a transaction that may still commit an older version. Pure.

A row has the version of the moment at which its transaction began or wrote it, and is seen when that has committed. So
"the newest version seen" hides what a long transaction commits later. It becomes the position only after every
transaction that was open by then has ended, and a poll that began afterwards has read what they left. A transaction
that begins later writes newer versions.
"""

from __future__ import annotations

from sync_orchestrator.core.ports import OpenTransactions


class PollPosition:
    """What one process knows of the position of one source. It may be forgotten: then the position waits anew."""

    def __init__(self) -> None:
        self._candidate: int | None = None
        self._waits_for: frozenset[str] | None = None

    def begin_poll(self, there: OpenTransactions | None) -> None:
        """Notes which transactions are open, just before a poll reads; None where the source cannot say."""
        if there is None:
            self._candidate = self._waits_for = None
        elif self._candidate is None:
            return
        elif self._waits_for is None:
            self._waits_for = there.names
        elif not there.may_have_new_names:
            self._waits_for &= there.names

    def end_poll(self, there: OpenTransactions | None, position: int, newest: int) -> int:
        """Returns the position from which the next poll begins, less its overlap.

        Args:
            there: What ``begin_poll`` was given.
            position: The present position.
            newest: The newest version that a poll has shown, and no version of the future.
        """
        if there is None:
            return newest
        if self._candidate is not None:
            if self._waits_for:
                return position
            position = max(position, self._candidate)
        self._candidate, self._waits_for = newest, None
        return position
