"""What is relied on of a source system, behaviour by behaviour; nothing is written there."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

from sync_orchestrator.config import PartSettings
from sync_orchestrator.conformance.report import Behaviours, Differs, Skipped
from sync_orchestrator.conformance.samples import unknown_key_like
from sync_orchestrator.core.ports import PartRead, SourceSystem
from sync_orchestrator.core.values.mapping import compute_digest

_READ = 20


@dataclass
class Shelf:
    """One entity's part in one source, and a business group of it. ``is_owner``: it sets the group."""

    source: SourceSystem
    part: PartSettings
    group: str | None
    max_ahead: float
    is_owner: bool
    is_rest: bool

    async def read_pages(self, after: str | None = None) -> list[tuple[list[PartRead], str | None]]:
        """All pages of the group. Raises Skipped where no group is known."""
        if self.group is None:
            raise Skipped("no business group is known: name one with --group")
        return [page async for page in self.source.pages(self.group, after)]

    async def make_unknown_key(self) -> str:
        """A key that nobody has, of the form of those that are listed."""
        key = ""
        with suppress(Skipped):
            key = next((row.key for row in await self.read_rows() if row.key), "")
        return unknown_key_like(key)

    async def delete_made(self) -> None:
        """There is nothing to tidy: nothing is written."""

    async def read_rows(self) -> list[PartRead]:
        """All rows of the group. Raises Skipped where it has none."""
        rows = [row for page, _ in await self.read_pages() for row in page]
        if not rows:
            raise Skipped(f"'{self.group}' has no records: name another group with --group")
        return rows


SOURCE: Behaviours[Shelf] = Behaviours()
behaviour = SOURCE.add


@behaviour("list", "pages")
async def listing_is_complete(shelf: Shelf) -> None:
    """Two listings of a business group show the same records, each once."""
    first, second = await shelf.read_rows(), await shelf.read_rows()
    twice = [key for key, number in Counter(row.key for row in first).items() if number > 1 and key]
    if twice:
        raise Differs(f"{twice[0]} is shown {sum(row.key == twice[0] for row in first)} times", "once")
    if missing := {row.key for row in first} ^ {row.key for row in second}:
        raise Differs(f"{min(missing)} is shown by one of two listings", "the same records twice")


@behaviour("list", "pages")
async def listing_can_be_used(shelf: Shelf) -> None:
    """Every row has a key, a version and, of the owner, a business group."""
    for row in await shelf.read_rows():
        if row.problem is not None:
            raise Differs(f"{row.key or 'a row without a key'}: {row.problem}", "rows that can be used")
        if not row.key:
            raise Differs(f"a row without a key: {row.data}", "a key in each")


@behaviour("list", "pages")
async def listing_is_of_its_group(shelf: Shelf) -> None:
    """A listing of a business group shows no row of another one, unless the row names its group."""
    if not shelf.is_owner:
        raise Skipped("it does not set the group")
    rows = await shelf.read_rows()
    if others := [row for row in rows if row.group not in (None, shelf.group)]:
        raise Skipped(
            f"{len(others)} rows belong to other groups, such as {others[0].key} of {others[0].group}: the "
            "list is not filtered, so that each group reads all of them"
        )


@behaviour("list", "pages")
async def listing_goes_on_from_a_position(shelf: Shelf) -> None:
    """A listing that was broken off goes on behind its last position, without a gap and without repeats."""
    pages = await shelf.read_pages()
    position = pages[0][1] if pages else None
    if position is None:
        raise Skipped("it names no positions: it begins again from the beginning")
    if len(pages) < 2:
        raise Skipped("all came in one page: have it show less at a time")
    rest = [row.key for page, _ in await shelf.read_pages(position) for row in page]
    expected = [row.key for page, _ in pages[1:] for row in page]
    if sorted(rest) != sorted(expected):
        raise Differs(f"{len(rest)} rows behind {position!r}", f"the {len(expected)} rows that are left there")


@behaviour("read")
async def read_shows_what_is_listed(shelf: Shelf) -> None:
    """A record that is listed can be read by its key, and is not older then."""
    _require_readable(shelf)
    for row in (await shelf.read_rows())[:_READ]:
        if row.deleted or row.problem is not None:
            continue
        found = await shelf.source.read(row.key)
        if found is None:
            raise Differs(f"nothing by the key {row.key}, which is listed", "the record")
        _require_same(row, found)


@behaviour("read_many")
async def read_many_shows_what_is_listed(shelf: Shelf) -> None:
    """Records that are listed can be read by their keys, those alone, beside one that does not exist."""
    _require_readable(shelf)
    rows = {row.key: row for row in (await shelf.read_rows())[:_READ] if not row.deleted and row.problem is None}
    found = await shelf.source.read_many([*rows, await shelf.make_unknown_key()])
    if missing := rows.keys() - {row.key for row in found}:
        raise Differs(f"nothing by the key {min(missing)}, which is listed", "the record")
    for row in found:
        if row.key not in rows:
            raise Differs(f"{row.key}, for which nobody asked", "only what was asked for")
        _require_same(rows[row.key], row)


@behaviour("read")
async def missing_key_is_told(shelf: Shelf) -> None:
    """A key that nobody has brings nothing: no failure, and no other record."""
    _require_readable(shelf)
    nobody = await shelf.make_unknown_key()
    if (found := await shelf.source.read(nobody)) is not None:
        raise Differs(f"a read of it shows {found.key}", "None")
    if many := await shelf.source.read_many([nobody]):
        raise Differs(f"a read of it among others shows {many[0].key}", "nothing")


@behaviour("count")
async def source_count_agrees_with_listing(shelf: Shelf) -> None:
    """The count of a business group is the number of its rows."""
    if shelf.group is None or await shelf.source.count(shelf.group) is None:
        raise Skipped("it says that it cannot count")
    for last in (False, False, True):  # somebody may write meanwhile
        listed, counted = len(await shelf.read_rows()), await shelf.source.count(shelf.group)
        if listed != counted and last:
            raise Differs(f"it counts {counted}", f"{listed}, which it lists")


@behaviour("version")
async def versions_make_sense(shelf: Shelf) -> None:
    """Versions are above zero, and those that are times lie not in the future."""
    if shelf.part.version.is_numbered:
        raise Skipped("the stream of the database's log gives the versions")
    latest = int((time.time() + shelf.max_ahead) * 1e6)
    for row in await shelf.read_rows():
        if row.problem is None and row.version <= 0:
            raise Differs(f"{row.key} has the version {row.version}", "one above zero")
        if row.problem is None and shelf.part.version.kind == "time" and row.version > latest:
            raise Differs(
                f"{row.key} has a version {(row.version / 1e6 - time.time()) / 3600:.1f} hours ahead",
                "none in the future",
                "see 'zone', and the clock there",
            )


@behaviour("groups")
async def groups_are_named(shelf: Shelf) -> None:
    """The business groups that exist are named, the one of this trial among them."""
    if not shelf.is_owner:
        raise Skipped("it does not set the group")
    groups = await shelf.source.groups()
    if groups is None:
        raise Skipped("it says that it cannot name its groups")
    await shelf.read_rows()
    if shelf.group not in groups:
        raise Differs(f"{', '.join(sorted(groups)[:5]) or 'none'}", f"{shelf.group} among them, which has records")


@behaviour("changes")
async def changes_since_a_version_are_shown(shelf: Shelf) -> None:
    """What has changed since a version holds every record that is newer."""
    if not shelf.source.can_poll:
        raise Skipped("it says that it cannot be asked what has changed")
    rows = sorted((row for row in await shelf.read_rows() if row.problem is None), key=lambda row: row.version)
    since = rows[len(rows) // 2].version
    shown = {row.key: row async for page in shelf.source.changes(since) for row in page}
    for row in rows:
        if row.version > since and row.key not in shown:
            raise Differs(f"{row.key} of version {row.version} is not among what has changed since {since}", "it")


def _require_readable(shelf: Shelf) -> None:
    if not shelf.source.can_read:
        raise Skipped("it says that it cannot be read by key")


def _require_same(listed: PartRead, found: PartRead) -> None:
    if found.key != listed.key:
        raise Differs(f"asked for {listed.key}, {found.key} came", listed.key)
    if found.problem is not None:
        raise Differs(f"{listed.key}: {found.problem}", "a part that can be used")
    if found.version < listed.version:
        raise Differs(
            f"{listed.key} is of version {found.version} by key",
            f"{listed.version} or newer, as listed",
            "a read must not be older than the listing: see whether it asks a replica",
        )
    if found.version == listed.version and compute_digest(found.data) != compute_digest(listed.data):
        raise Differs(f"{listed.key} has other fields by key, of the same version", "the same fields")
