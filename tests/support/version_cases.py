"""Changes and archived states, in every relation that their versions can have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from sync_orchestrator.core.version_guard import (
    TOMBSTONE_HASH,
    Action,
    Change,
    Rules,
    Stamp,
)

LOW, HIGH = b"\x01" * 16, b"\x02" * 16


def stamp(
    version: int, content: bytes = LOW, *, read_sequence: int = 0, epoch: int = 0, seq: int = 0, inferred: bool = False
) -> Stamp:
    return Stamp(epoch, version, read_sequence, content, seq, inferred)


READABLE = frozenset({"shop", "stock"})


OnMissing = Literal["wait", "fetch", "upsert"]


def rules(on_missing: OnMissing = "wait", readable: frozenset[str] = READABLE) -> Rules:
    return Rules("shop", frozenset({"stock"}), on_missing, readable)


def change(
    part: str,
    action: Action,
    version: int,
    content: bytes = LOW,
    *,
    read_sequence: int = 0,
    epoch: int = 0,
    group: str | None = "A",
    key: str = "k",
    seq: int = 0,
) -> Change:
    """A change; its data tells its content apart."""
    gone = action == "delete"
    content = TOMBSTONE_HASH if gone else content
    return Change(
        key,
        part,
        action,
        stamp(version, content, read_sequence=read_sequence, epoch=epoch, seq=seq),
        None if gone else {"content": content.hex()},
        group if part == "shop" else None,
    )


@dataclass(frozen=True)
class Archived:
    """What the archive says of a record; ``group`` of a live one only."""

    deleted: bool
    ready: bool
    group: str | None
    parts: dict[str, tuple[Stamp, Any]]


def rank(each: Change) -> tuple[int, int, int, bytes]:
    return each.stamp.epoch, each.stamp.version, each.stamp.order, each.stamp.content_hash


def expected(changes: Iterable[Change], by: Rules) -> dict[str, Archived]:
    """What the archive has to say, from the set of changes alone."""
    keys: dict[str, list[Change]] = {}
    for each in changes:
        keys.setdefault(each.key, []).append(each)
    return {key: end for key, of_key in keys.items() if (end := _expected_of(of_key, by)) is not None}


def _expected_of(changes: list[Change], by: Rules) -> Archived | None:
    def brings(each: Change) -> bool:
        return each.part == by.owner and (each.action != "update" or each.stamp.read_sequence > 0)

    here = by.on_missing == "upsert" or any(brings(each) for each in changes)
    counting = [each for each in changes if here or each.stamp.read_sequence > 0 or each.deleted]
    newest = {each.part: each for each in sorted(counting, key=rank)}
    if not newest:
        return None
    owner = newest.get(by.owner)
    deleted = owner is not None and owner.deleted
    ready = owner is not None and (deleted or by.required <= newest.keys())
    group = owner.group if owner is not None and not deleted else None
    return Archived(deleted, ready, group, {part: (each.stamp, each.data or {}) for part, each in newest.items()})


def place(each: Change) -> tuple[str, str, int, int]:
    return each.key, each.part, each.stamp.epoch, each.stamp.version


def content(each: Change) -> tuple[object, ...]:
    return *place(each), each.stamp.content_hash
