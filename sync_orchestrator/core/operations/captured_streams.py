"""Streams of captured changes for people and machines: how far behind each is, and whether it is current."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from sync_orchestrator.core.capture.streams import STREAM_LEASE_SECONDS, list_streams

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sync_orchestrator.config.sources import CaptureSettings

_NO_READER = "no process reads it: run `sync-orchestrator capture`; `sync-orchestrator up` runs one, too"


@dataclass(frozen=True, slots=True)
class StreamReport:
    """A stream of captured changes.

    Attributes:
        source: The source system, by whose name the stream is known.
        position: Everything before it is recorded; empty before the stream was first open.
        events: Change events recorded so far.
        behind_seconds: For how long more has been changed than was recorded. Time in which nothing read it counts.
        retained_bytes: How much of its log the source keeps for the stream; None before it was measured.
        is_read: Whether a process holds the stream.
        lost: Why changes are missing, until full syncs have restored them; None where none are.
        error: Why the stream is not open; None where it is.
        recorded_at: When a change was last recorded.
    """

    source: str
    position: str
    events: int
    behind_seconds: float
    retained_bytes: int | None
    is_read: bool
    lost: str | None
    error: str | None
    recorded_at: datetime | None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> StreamReport:
        """Makes one from a row of ``list_streams``."""
        unread_seconds = row["age"] if row["age"] > STREAM_LEASE_SECONDS else 0.0
        return cls(
            source=row["name"],
            position=row["position"],
            events=row["events"],
            behind_seconds=round((row["behind"] or 0.0) + unread_seconds, 1),
            retained_bytes=row["retained"],
            is_read=bool(row["is_read"]),
            lost=row["lost"],
            error=row["error"],
            recorded_at=row["recorded_at"],
        )

    def find_problems(self, limits: CaptureSettings) -> list[str]:
        """Why the stream is not current, a sentence for each reason; none where it is."""
        problems = []
        if self.lost is not None:
            problems.append(f"changes are missing: {self.lost}")
        if not self.is_read:
            problems.append(_NO_READER)
        elif self.error is not None and self.behind_seconds > STREAM_LEASE_SECONDS:
            problems.append(f"it is not open: {self.error}")
        if self.behind_seconds > limits.max_behind_seconds:
            problems.append(
                f"it is behind by {self.behind_seconds:.0f} s (capture.max_behind_seconds is "
                f"{limits.max_behind_seconds:g})"
            )
        if self.retained_bytes is not None and self.retained_bytes > limits.max_retained_bytes:
            problems.append(
                f"the source keeps {self.retained_bytes / 1024**2:.0f} MiB of its log for it "
                f"(capture.max_retained_bytes is {limits.max_retained_bytes / 1024**2:.0f} MiB)"
            )
        return problems

    def to_document(self) -> dict[str, object]:
        """The stream for programs; all values are of JSON."""
        return {
            "position": self.position,
            "events": self.events,
            "behind_seconds": self.behind_seconds,
            "retained_bytes": self.retained_bytes,
            "read": self.is_read,
            "lost": self.lost,
            "error": self.error,
            "recorded_at": None if self.recorded_at is None else self.recorded_at.isoformat(),
        }


class StreamFigure(NamedTuple):
    """A value of a stream's metric."""

    source: str
    n: float


def read_stream_reports(connection: Connection) -> dict[str, StreamReport]:
    """Returns the streams by source system, those that the configuration no longer has, too."""
    reports = (StreamReport.from_row(row) for row in list_streams(connection))
    return {report.source: report for report in reports}


def list_behind_seconds(connection: Connection) -> list[StreamFigure]:
    """How far behind each stream is, in seconds."""
    return [StreamFigure(name, found.behind_seconds) for name, found in read_stream_reports(connection).items()]


def list_retained_bytes(connection: Connection) -> list[StreamFigure]:
    """How much of its log each source keeps, in bytes, where it was measured."""
    return [
        StreamFigure(name, found.retained_bytes)
        for name, found in read_stream_reports(connection).items()
        if found.retained_bytes is not None
    ]
