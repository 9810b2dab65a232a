"""Turns what was read from a source into a change of the archive. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sync_orchestrator.core.values.mapping import compute_digest
from sync_orchestrator.core.version_guard import TOMBSTONE_HASH, Action, Change, ReadBounds, Stamp

if TYPE_CHECKING:
    from sync_orchestrator.core.ports import PartRead


def change_of_read(
    found: PartRead,
    part: str,
    epoch: int,
    number: int,
    *,
    seq: int | None = None,
    asked_for: bool = False,
    noted: int | None = None,
    sees_event: int | None = None,
) -> Change:
    """Returns a part that was read from its source as a change.

    Args:
        found: The part as its source shows it.
        part: The name of the part.
        epoch: The present epoch of the source.
        number: The number of the read.
        seq: The number of the event that asked for the read, if the change decides about it.
        asked_for: Whether a delete event asked for the deletion that the source shows; otherwise it is inferred.
        noted: The number of the part's stream before the read, where that numbers the versions; None otherwise.
        sees_event: The number of an event whose change the read is known to see; None where that is not known.
    """
    content = TOMBSTONE_HASH if found.deleted else compute_digest(found.data)
    stamp = Stamp(epoch, found.version, number, content, inferred=found.deleted and not asked_for)
    action: Action = "delete" if found.deleted else "update"
    return Change(found.key, part, action, stamp, found.data, found.group, seq, bounds_of(noted), sees_event)


def bounds_of(noted: int | None) -> ReadBounds | None:
    """The bounds of a read before which the stream's number was noted; None where the source has versions."""
    return None if noted is None else ReadBounds(noted)
