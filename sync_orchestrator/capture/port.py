"""What a stream needs of a source's database, whichever it is: the boundary between the loop and the databases.

``postgres_log.py`` and ``mysql.py`` implement it. A position is a text that the source understands; the loop only keeps
it. Every method raises LogDown where the source does not do its part.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import Protocol

from sync_orchestrator.capture.assembly import BatchAssembler
from sync_orchestrator.capture.parts import CapturedTable
from sync_orchestrator.capture.preparation import SourcePreparation
from sync_orchestrator.config.sources import CaptureSettings
from sync_orchestrator.core.capture.streams import CaptureStream


class ReceivedPart(Enum):
    """What came of waiting for the log."""

    NOTHING = "nothing"
    """Nothing in that time."""
    CONTENT = "content"
    """A part of the log, which the assembler has; more may follow at once."""
    IDLE = "idle"
    """The server said that it has sent all."""
    ASKED = "asked"
    """The same, and it asks how far we are."""


class CaptureLog(Protocol):
    """An open log. It acknowledges nothing by itself."""

    @property
    def assembler(self) -> BatchAssembler:
        """What gathers the log's transactions."""

    def receive(self, wait_seconds: float, wake: int | None = None) -> ReceivedPart:
        """Takes the next part of the log into the assembler, or waits for one.

        Args:
            wait_seconds: The longest wait.
            wake: A file number; the wait may end when it can be read.

        Raises:
            LogDown: The source does not do its part.
            LogLost: The source cannot give the log any more.
        """

    def acknowledge(self, position: str) -> None:
        """Tells the server that all before a position is recorded for good: it may forget it."""

    def ask_for_position(self) -> None:
        """Asks the server how far it has sent, where it says that only now and then."""

    def hold(self, seconds: float) -> None:
        """Receives nothing for a while, and is heard of."""

    def read_retained_bytes(self) -> int | None:
        """How much of its log the server keeps for the stream, or how much is not read yet; None where unknown."""

    def measure_age_seconds(self) -> float | None:
        """How long ago the newest part of the log was written that was received; None where that is not known."""

    def close(self) -> None:
        """Ends the connection."""


class CaptureSource(Protocol):
    """The server of a stream."""

    @property
    def capture(self) -> CaptureSettings:
        """Its settings."""

    def inspect(self, tables: Sequence[CapturedTable]) -> SourcePreparation:
        """Looks at what the source has and lacks; it only reads."""

    def try_replication(self) -> None:
        """Opens a connection as the stream does, and ends it."""

    def resume(
        self, stream: CaptureStream, found: SourcePreparation, on_wait: Callable[[], None]
    ) -> tuple[str, str, str | None]:
        """Finds out where a stream goes on; one that was never open begins.

        Args:
            stream: The stream as the ledger keeps it.
            found: What the source has.
            on_wait: Called from time to time while the server lets us wait.

        Returns:
            What the position belongs to, the position, and how much of the transaction behind it is recorded.

        Raises:
            NotPrepared: The source lacks something.
            LogLost: It cannot go on from there.
        """

    def begin_anew(self, found: SourcePreparation, on_wait: Callable[[], None]) -> tuple[str, str]:
        """Begins at the present end of the log; returns what the position belongs to, and the position."""

    def drop_slot(self) -> bool:
        """Removes what the server keeps for the stream; False where there is nothing."""

    def open_log(
        self, stream: CaptureStream, tables: Sequence[CapturedTable], most_bytes: int
    ) -> AbstractContextManager[CaptureLog]:
        """The log from a stream's position on, until the block is left.

        Args:
            stream: The stream.
            tables: What is captured.
            most_bytes: Larger rows are read from the source, not taken along.

        Raises:
            LogLost: The source cannot give it any more.
        """

    def sees(self, marks: set[Hashable]) -> bool:
        """Whether reads of parts see these transactions now."""

    def describe_retained(self, retained_bytes: int, *, is_behind: bool) -> str:
        """A sentence for more retained bytes than ``max_retained_bytes``."""

    def close(self) -> None:
        """Ends its connections; it may be used again."""
