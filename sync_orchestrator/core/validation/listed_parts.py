"""What the sources of a business group show: keys and versions of all records, and the content of some."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Engine

from sync_orchestrator.core.context import EntityContext
from sync_orchestrator.core.full_sync.source_listing import GroupReads
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.validation.archived_parts import ArchivedPart, digest_of_read
from sync_orchestrator.core.validation.lost_changes import PartPlace

_MAX_OLDER = 1000


class ListedParts:
    """The parts of one group as its sources show them.

    ``rows``: usable parts, by part and key; ``whole``: those of them that hold content, not only a version. ``keys``:
    all listed keys, by part. ``read_sequence``: of the read of the listing. ``since``: the database's time before it.
    ``digests``: of the contents of parts that a stream numbers; their rows keep none.
    """

    def __init__(self, engine: Engine, entity: EntityContext, group: str) -> None:
        self.reads = GroupReads(engine, entity, group)
        self.rows: dict[PartPlace, PartRead] = {}
        self.whole: set[PartPlace] = set()
        self.digests: dict[PartPlace, bytes] = {}
        self.keys: dict[str, set[str]] = defaultdict(set)
        self.read_sequence = 0
        self.since: datetime | None = None
        self._entity = entity
        self._group = group

    def count_keys(self) -> dict[str, int]:
        """How many keys each source listed, by part."""
        return {part: len(self.keys[part]) for part in sorted(self._entity.sources)}

    async def read_sources(self) -> None:
        """Lists the group at all of its sources, and waits until their streams have passed that. Raises CallFailed."""
        noted = await self.reads.holds.note_streams()
        self.read_sequence = await self.reads.read_sequence()
        owner, sources = self._entity.rules.owner, self._entity.sources
        by_key = [
            part
            for part, source in sources.items()
            if part != owner and part in self._entity.rules.readable and not source.can_list_keys
        ]
        async for rows in self._list_pages(owner):
            keys = [row.key for row in self._add_rows(owner, rows) if not row.deleted]
            found = await asyncio.gather(*(sources[part].read_many(keys) for part in by_key))
            for part, others in zip(by_key, found, strict=True):
                self._add_rows(part, others)
                self.whole |= {(part, row.key) for row in others}
        for part in sources:
            if part != owner and part not in by_key:
                async for rows in self._list_pages(part):
                    self._add_rows(part, rows)
        await self.reads.holds.wait(await self.reads.holds.end_read(noted))

    @property
    def parts_without_content(self) -> list[str]:
        """Parts whose sources listed keys and versions only."""
        return [part for part in self._entity.sources if self._lists_keys_only(part)]

    async def read_contents(self, archived: Mapping[PartPlace, ArchivedPart], checked_to: str | None) -> str | None:
        """Reads the content of parts that look older at the source, and of some others in turn. Raises CallFailed.

        Args:
            archived: What the archive has of the listed keys.
            checked_to: The key up to which earlier checks read contents, None where they were through.

        Returns:
            The key up to which contents were read by now, None where the group is through.
        """
        owner = self._entity.rules.owner
        keys = sorted(key for part, key in self.rows if part == owner)
        following = [key for key in keys if checked_to is None or key > checked_to]
        chosen = (following or keys)[: self._entity.settings.source_check.contents]
        for part in self.parts_without_content:
            wanted = self._keys_to_read(part, archived, chosen)
            rows = await self._entity.sources[part].read_many(wanted) if wanted else []
            usable = self.reads.select_usable(rows, part)
            self.rows |= {(part, row.key): row for row in usable}
            self.whole |= {(part, row.key) for row in usable}
        return chosen[-1] if chosen and chosen[-1] != keys[-1] else None

    def _keys_to_read(self, part: str, archived: Mapping[PartPlace, ArchivedPart], chosen: Sequence[str]) -> list[str]:
        older = [
            key
            for (of, key), row in self.rows.items()
            if of == part and (of, key) in archived and row.version < archived[of, key].version
        ]
        return sorted({*older[:_MAX_OLDER], *(key for key in chosen if (part, key) in self.rows)})

    async def _list_pages(self, part: str) -> AsyncIterator[list[PartRead]]:
        """Keys and versions alone, where the part can be read by key later; else whole parts."""
        source = self._entity.sources[part]
        if part in self._entity.rules.readable and not self._is_numbered(part):
            async with aclosing(source.keys(self._group)) as listing:  # type: ignore[type-var]
                async for rows in listing:
                    yield rows
        else:
            async with aclosing(source.pages(self._group)) as pages:  # type: ignore[type-var]
                async for rows, _ in pages:
                    yield rows

    def _add_rows(self, part: str, rows: Sequence[PartRead]) -> list[PartRead]:
        """Adds listed rows. Unusable ones count as listed; full syncs report them."""
        self.keys[part].update(row.key for row in rows)
        usable = [row for row in self.reads.select_usable(rows, part) if row.group in (None, self._group)]
        self.add_read(part, usable)
        if not self._lists_keys_only(part):
            self.whole |= {(part, row.key) for row in usable}
        return usable

    def add_read(self, part: str, rows: Sequence[PartRead]) -> None:
        """Adds usable rows that hold content, where contents are what is compared."""
        if self._is_numbered(part):
            self.digests |= {(part, row.key): digest_of_read(row) for row in rows}
            rows = [replace(row, data={}) for row in rows]
        self.rows |= {(part, row.key): row for row in rows}

    def _is_numbered(self, part: str) -> bool:
        return part in self._entity.rules.numbered

    def _lists_keys_only(self, part: str) -> bool:
        is_readable = part in self._entity.rules.readable
        return is_readable and self._entity.sources[part].can_list_keys and not self._is_numbered(part)
