"""What the archive has of a business group's parts, and how a part at its source differs from the archived one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.validation import queries
from sync_orchestrator.core.validation.lost_changes import LostChangeKind, PartPlace
from sync_orchestrator.core.values.mapping import compute_digest
from sync_orchestrator.core.version_guard import TOMBSTONE_HASH


@dataclass(slots=True)
class ArchivedPart:
    """A part in the archive.

    ``has_moved``: it changed since the check began. ``is_of_group``: its record is in the group and lives.
    """

    part: str
    key: str
    epoch: int
    version: int
    deleted: bool
    content_hash: bytes
    has_moved: bool
    is_of_group: bool

    @classmethod
    def from_row(cls, row: Row[Any]) -> ArchivedPart:
        """Makes one from a row of the database."""
        return cls(
            part=row.part,
            key=row.key,
            epoch=row.epoch,
            version=row.version,
            deleted=row.deleted,
            content_hash=bytes(row.content_hash),
            has_moved=row.moved,
            is_of_group=row.of_group,
        )


def read_archived_parts(
    connection: Connection, entity: str, group: str, *, keys: Collection[str], since: datetime | None
) -> dict[PartPlace, ArchivedPart]:
    """Returns the archived parts of some keys and of all records of a group.

    Args:
        connection: A connection to the database.
        entity: The entity of the group.
        group: The business group.
        keys: Further keys, whatever their group.
        since: Parts that changed at this time or later have moved.
    """
    rows = run(connection, queries.SELECT_ARCHIVED_PARTS, entity=entity, group=group, keys=sorted(keys), since=since)
    return {(row.part, row.key): ArchivedPart.from_row(row) for row in rows}


def compare_content(content_hash: bytes, archived_hash: bytes) -> LostChangeKind | None:
    """How the content of a part at its source differs from the archived one; for parts without versions of their own.

    Args:
        content_hash: The digest of the content at the source, TOMBSTONE_HASH for a deletion.
        archived_hash: The same of the archived content.
    """
    if content_hash == archived_hash:
        return None
    return "missing" if archived_hash == TOMBSTONE_HASH else "different"


def digest_of_read(row: PartRead) -> bytes:
    """The digest of a part as its source shows it, TOMBSTONE_HASH for a deletion."""
    return TOMBSTONE_HASH if row.deleted else compute_digest(row.data)


def compare_part(row: PartRead, version: int, content_hash: bytes, *, is_whole: bool) -> LostChangeKind | None:
    """How a part at its source differs from the archived one; None where it does not, as far as it was compared.

    A record that the source has and that is a tombstone here is missing, whatever the versions (rule 21).

    Args:
        row: The part as the source shows it.
        version: The archived version.
        content_hash: The digest of the archived content, TOMBSTONE_HASH for a deletion.
        is_whole: Whether the row holds the content; otherwise only its version counts.
    """
    if content_hash == TOMBSTONE_HASH and row.deleted:
        return None
    if row.version > version:
        return "newer"
    if content_hash == TOMBSTONE_HASH:
        return "missing"
    if is_whole and digest_of_read(row) == content_hash:
        return None
    if row.version < version:
        return "older"
    return "different" if is_whole else None
