"""Decides what a record of the archive counts as, given what the third party lists under its key. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Listed:
    """A record of the third party with a key of ours: its id, its business group, the digest of its content."""

    external_id: str
    group: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class Standing:
    """A record of the archive as an adoption finds it.

    ``pending``: it has a revision that the third party has not acknowledged. ``wanted``: the digest of what would be
    sent now, None for a record that is deleted, incomplete or cannot be mapped.
    """

    group: str | None
    revision: int
    deleted: bool
    pending: bool
    wanted: bytes | None


@dataclass(frozen=True, slots=True)
class Link:
    """What a record counts as from now on.

    ``outcome``: in_sync, update, create, delete, gone, or extra. ``revision``: the one that the third party has, 0 for
    none. ``look_up``: its key is searched before it is created.
    """

    outcome: str
    external_id: str | None
    digest: bytes | None
    group: str | None
    revision: int
    look_up: bool = False


def link_record(standing: Standing, there: Listed | None, *, can_look_up: bool) -> Link:
    """What a record counts as, given what the third party lists under its key. Pure.

    A deleted record that is there again is not deleted from here: validation finds it as ``extra``, and its caps apply.
    A deletion that has not been acknowledged yet goes on.
    """
    if standing.deleted:
        if there is None:
            return Link("gone", None, None, None, standing.revision)
        if not standing.pending:
            return Link("extra", None, None, None, standing.revision)
        return Link("delete", there.external_id, there.digest, there.group, 0)
    if there is None:
        return Link("create", None, None, None, 0, look_up=can_look_up)
    if standing.wanted == there.digest and there.group == standing.group:
        return Link("in_sync", there.external_id, there.digest, there.group, standing.revision)
    return Link("update", there.external_id, there.digest, there.group, 0)
