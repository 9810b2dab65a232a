"""What validation can find: kinds and statuses of drift, and one confirmed difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import Row


class DriftKind(StrEnum):
    """How a record at the third party differs from the archive."""

    MISSING = "missing"
    """The third party does not have the record."""
    STALE = "stale"
    """It has the content that was acknowledged before the newest one."""
    DIFFERENT = "different"
    """It has other content, or has the record in another place."""
    EXTRA = "extra"
    """It still has a record that was deleted here."""
    DUPLICATE = "duplicate"
    """It has another copy of a record."""
    UNMANAGED = "unmanaged"
    """It has a record that was never put there by us."""


class DriftStatus(StrEnum):
    """What is done about drift."""

    FOUND = "found"
    """An operator decides."""
    REPAIRING = "repairing"
    """The record is due to be pushed."""
    LEFT = "left"
    """Repair does not touch it."""
    PERSISTENT = "persistent"
    """Repair did not remove it."""
    REPAIRED = "repaired"
    """It is known to be gone."""


DriftIdentity = tuple[str, DriftKind, str | None]
"""Key, kind and id at the third party."""


def drift_identity(key: str, kind: DriftKind, external_id: str | None) -> DriftIdentity:
    """Returns what one validation recognizes a difference of another one by.

    A difference that was repaired and altered anew is stale then, and was different.
    """
    return key, DriftKind.DIFFERENT if kind is DriftKind.STALE else kind, external_id


@dataclass(frozen=True, slots=True)
class Drift:
    """One confirmed difference; ``sample`` has rows of field, ours, theirs."""

    key: str
    kind: DriftKind
    external_id: str | None
    sample: list[dict[str, object]]
    status: DriftStatus

    @property
    def identity(self) -> DriftIdentity:
        """What another validation recognizes it by."""
        return drift_identity(self.key, self.kind, self.external_id)


@dataclass(frozen=True, slots=True)
class OpenDrift:
    """A difference that an earlier validation found and that is not known to be gone. Digests of both sides."""

    key: str
    kind: DriftKind
    external_id: str | None
    ours: bytes | None
    theirs: bytes | None
    status: DriftStatus

    @classmethod
    def from_row(cls, row: Row[Any]) -> OpenDrift:
        """Makes one from a row of the database."""
        return cls(
            key=row.key,
            kind=DriftKind(row.kind),
            external_id=row.external_id,
            ours=None if row.ours is None else bytes(row.ours),
            theirs=None if row.theirs is None else bytes(row.theirs),
            status=DriftStatus(row.status),
        )

    @property
    def identity(self) -> DriftIdentity:
        """What another validation recognizes it by."""
        return drift_identity(self.key, self.kind, self.external_id)


@dataclass(frozen=True, slots=True)
class RecordedDrift:
    """What was recorded: the drift, how many records are due for repair, and what was open before."""

    drift: Sequence[Drift] = ()
    repaired: int = 0
    open_before: Sequence[OpenDrift] = ()

    def count_kind(self, kind: DriftKind) -> int:
        """How much drift is of one kind."""
        return sum(1 for drift in self.drift if drift.kind is kind)

    def with_status(self, status: DriftStatus) -> list[Drift]:
        """The drift of one status."""
        return [drift for drift in self.drift if drift.status is status]

    @property
    def wrong(self) -> list[Drift]:
        """The drift that makes a group differ: all but unmanaged records."""
        return [drift for drift in self.drift if drift.kind is not DriftKind.UNMANAGED]
