"""A budget of bytes for the bodies of requests under way: what is over it is refused at once, and never waits."""

from __future__ import annotations

from collections import Counter
from types import TracebackType

from sync_orchestrator.api.problems import Refused


class ByteBudget:
    """``total_bytes`` for all senders together, of which one sender has ``sender_bytes`` at most."""

    def __init__(self, total_bytes: int, sender_bytes: int | None = None) -> None:
        self._total = total_bytes
        self._of_one = total_bytes if sender_bytes is None else sender_bytes
        self._used: Counter[str] = Counter()
        self.used_bytes = 0

    def begin_reservation(self, sender: str, first_bytes: int = 0) -> Reservation:
        """Begins a request: a context manager whose end gives back all that it took. Raises Refused (503)."""
        reservation = Reservation(self, sender)
        reservation.add_bytes(first_bytes)
        return reservation

    def claim_bytes(self, sender: str, size: int) -> None:
        """Takes bytes. Raises Refused (503) where fewer are left, and takes nothing then."""
        if self.used_bytes + size > self._total or self._used[sender] + size > self._of_one:
            raise Refused(503, "The service holds as many bytes of requests as it may; send it again later.")
        self.used_bytes += size
        self._used[sender] += size

    def give_back(self, sender: str, size: int) -> None:
        """Gives bytes back."""
        self.used_bytes -= size
        self._used[sender] -= size
        if not self._used[sender]:
            del self._used[sender]


class Reservation:
    """The bytes of one request."""

    def __init__(self, budget: ByteBudget, sender: str) -> None:
        self._budget = budget
        self._sender = sender
        self._size = 0

    def add_bytes(self, size: int) -> None:
        """Takes further bytes. Raises Refused (503)."""
        self._budget.claim_bytes(self._sender, size)
        self._size += size

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._budget.give_back(self._sender, self._size)
        self._size = 0
