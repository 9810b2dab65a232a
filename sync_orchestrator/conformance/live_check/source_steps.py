"""Tries out the sources of an entity: groups, pages, versions, reads by key, changes, counts and the mapping."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sync_orchestrator.adapters.containment import ContainedSource
from sync_orchestrator.config.sources import ColumnChangeSettings
from sync_orchestrator.conformance.live_check.entity_steps import EntitySteps, Stopped
from sync_orchestrator.conformance.live_check.group_kinds import one_of_each_kind
from sync_orchestrator.conformance.live_check.pages import (
    MAX_PAGES,
    all_keys,
    pages_of,
    read_first_page,
    read_some_pages,
    rows_of,
)
from sync_orchestrator.conformance.live_check.report import CheckStep
from sync_orchestrator.conformance.samples import unknown_key_like
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.values.mapping import Mapping, compute_digest
from sync_orchestrator.core.values.source_versions import as_time
from sync_orchestrator.errors import MappingFailed


class SourceSteps(EntitySteps):
    """The steps of an entity's sources."""

    async def run(self, group: str | None) -> tuple[str | None, PartRead | None]:
        """All of them, with one business group; returns that group and a record of it, where there is one."""
        owner = self._entity.owner
        found, row = group, None
        with suppress(Stopped):
            found = await self._choose_group(group)
            pages = await self._read_first_pages(found)
            row = pages[0][0]
            await self._small_pages(
                owner,
                self._place_of_part(owner, "list"),
                [row.key for page in pages for row in page],
                len(pages),
                found,
            )
            self._check_versions(pages)
            await self._check_mapping(row, found, await self._parts(row, found))
            await self._check_missing_key(row.key)
            await self._check_changes(row)
            await self._check_version_columns()
            await self._check_count(
                owner,
                self._place_of_part(owner, "count"),
                self._sources[owner].count,
                found,
                lambda: all_keys(self._sources[owner], found),
            )
            await self._check_unique_keys(found)
            await self._check_ungrouped()
            await self._source_groups()
        if found is not None:
            await self._check_keys(found)
        return found, row

    async def _choose_group(self, given: str | None) -> str:
        owner, place = self._entity.owner, self._place_of_part(self._entity.owner, "groups")
        if f"sources.{owner}" not in self._reached:
            self._skip_step(owner, "groups", "its login failed")
            raise Stopped
        async with self._run_step(owner, "groups", place):
            groups = await self._sources[owner].groups()
        if groups:
            self._ok(owner, "groups", f"{len(groups)}: {', '.join(groups[:5])}{' …' if len(groups) > 5 else ''}")
            if given is not None and given not in groups:
                self._fail_step(
                    owner,
                    "groups",
                    f"'{given}' is not among them: a full sync of all groups leaves it out",
                    f"see {place}, and --group",
                )
            if given is None:
                self._trial.other_groups = one_of_each_kind(sorted(groups))
            return sorted(groups)[0] if given is None else given
        if given is not None:
            return given
        self._skip_step(
            owner,
            "groups",
            "it names no business group",
            f"name one with --group, or say with {place} where they are listed",
        )
        raise Stopped

    async def _read_first_pages(self, group: str) -> list[list[PartRead]]:
        """Reads the first pages of the owner's, the first of which has a usable record."""
        owner = self._entity.owner
        place = self._place_of_part(owner, "list")
        async with self._run_step(owner, "list", place):
            pages = [found async for found, _ in read_some_pages(self._sources[owner].pages(group))]
        pages = [page for page in pages if page]
        rows = [row for found in pages for row in found]
        if not rows:
            self._skip_step(
                owner,
                "list",
                f"'{group}' has no records",
                f"name another with --group, or see {place}: its path, params and items",
            )
            raise Stopped
        if problem := next((row.problem for row in rows if row.problem), None):
            self._fail_step(
                owner,
                "list",
                f"a record cannot be used: {problem}",
                f"see {self._place_of_part(owner)}: key, group and version",
            )
            raise Stopped
        self._ok(owner, "list", f"{pages_of(pages, 'records')} of '{group}', the first is {rows[0].key}")
        others = sum(row.group not in (None, group) for row in rows)
        if others:
            self._skip_step(
                owner,
                "filter",
                f"{others} of them belong to other groups: the list is not filtered",
                f"see {place}: its params",
            )
        self._trial.rows = {row.key: row for row in rows}
        return pages

    def _check_versions(self, pages: Sequence[Sequence[PartRead]]) -> None:
        owner = self._entity.owner
        if self._entity.parts[owner].version.is_numbered:
            return  # its rows have none; the step "capture" tries what gives them
        latest = int((time.time() + self._entity.max_ahead) * 1e6)
        is_time = self._entity.parts[owner].version.kind == "time"
        for row in (row for page in pages for row in page):
            if row.version <= 0 or (is_time and row.version > latest):
                why = "not above zero" if row.version <= 0 else "further in the future than max_ahead allows"
                self._fail_step(
                    owner,
                    "version",
                    f"the version of {row.key} is {why}",
                    f"see {self._place_of_part(owner)}.version and zone, and the clock there",
                )
                return

    async def _check_missing_key(self, key: str) -> None:
        """A key that nobody has must bring nothing: a failure there would keep every deletion from being noticed."""
        owner = self._entity.owner
        source, nobody = self._sources[owner], unknown_key_like(key)
        if not source.can_read:
            return
        place = self._place_of_part(owner, "read")
        with suppress(Stopped):
            async with self._run_step(owner, "missing", f"{place}: a rule of its outcomes with means: missing"):
                row = await source.read(nobody)
            if row is not None:
                self._fail_step(
                    owner, "missing", f"a read of {nobody}, which nobody has, shows {row.key}", f"see {place}"
                )
            else:
                self._ok(owner, "missing", "a key that nobody has brings nothing")

    async def _check_changes(self, row: PartRead) -> None:
        """A part with ``changes`` is polled as it would be after ``row``."""
        owner, settings = self._entity.owner, self._entity.parts[self._entity.owner]
        if not self._sources[owner].can_poll:
            return
        overlap = int(settings.overlap * (1e6 if settings.version.kind == "time" else 1))
        newest = max(self._trial.rows.values(), key=lambda row: row.version)
        since = max(0, newest.version - max(overlap, 1))
        show = as_time if settings.version.kind == "time" else str
        shown_since = show(since)
        place = self._place_of_part(owner, "changes")
        with suppress(Stopped):
            async with self._run_step(owner, "changes", place):
                pages = [rows async for rows in read_some_pages(self._sources[owner].changes(since))]
            shown = {row.key for rows in pages for row in rows}
            if newest.key not in shown and len(pages) < MAX_PAGES:
                self._fail_step(
                    owner,
                    "changes",
                    f"{newest.key} is listed with version {show(newest.version)}, and is not "
                    f"among the changes since {shown_since}",
                    f"see {place}: how its filter writes the version",
                )
            else:
                self._ok(owner, "changes", f"{pages_of(pages, 'records')} changed since {shown_since}")

    async def _check_version_columns(self) -> None:
        """Whether databases that are polled find their changes by an index, and report their open transactions."""
        for part, source in self._sources.items():
            settings = self._entity.parts[part]
            if not isinstance(source, ContainedSource) or not isinstance(settings.changes, ColumnChangeSettings):
                continue
            if f"sources.{part}" not in self._reached:
                continue
            has_index, knows_open = None, True
            with suppress(Stopped):
                async with self._run_step(part, "changes", self._place_of_part(part, "changes")):
                    has_index = await source.has_version_index()
                    knows_open = await source.open_transactions() is not None
            if has_index is False:
                table, path = settings.sql.table if settings.sql else None, settings.version.path
                self._skip_step(
                    part,
                    "changes",
                    f"no index of {table} begins with '{path}': each poll reads the whole table",
                    f"CREATE INDEX ON {table} ({path}, {settings.key})",
                )
            if not knows_open:
                self._skip_step(
                    part,
                    "changes",
                    "the database does not report its open transactions: what one commits that was open for longer "
                    "than the overlap is missed until the source check finds it",
                    f"see {self._place_of_part(part)}.overlap; MySQL and MariaDB need the right PROCESS, Postgres its "
                    "primary server",
                )

    async def _check_unique_keys(self, group: str) -> None:
        """Whether the rows of the group have a key each, where the source can count both."""
        owner = self._entity.owner
        source = self._sources[owner]
        if not isinstance(source, ContainedSource):
            return
        with suppress(Stopped):
            async with self._run_step(owner, "keys", self._place_of_part(owner)):
                repeated = await source.repeated(group)
                if repeated is None or not repeated.count:
                    return
                rows = await source.read_many(repeated.examples) if source.can_read else []
            several = f"{repeated.count} rows of '{group}' have the key of another row, such as " + ", ".join(
                repeated.examples
            )
            if any(row.problem for row in rows):
                self._fail_step(
                    owner,
                    "keys",
                    f"{several}: {next(row.problem for row in rows if row.problem)}",
                    f"see {self._place_of_part(owner)}: give one row for each key, such as with sql.query",
                )
            else:
                self._skip_step(owner, "keys", f"{several}: equal rows count as one, and older versions as history")

    async def _check_ungrouped(self) -> None:
        """Rows that no business group lists."""
        owner = self._entity.owner
        with suppress(Stopped):
            async with self._run_step(owner, "ungrouped", self._place_of_part(owner)):
                found = await self._sources[owner].ungrouped()
            if found is not None and found.count:
                self._skip_step(
                    owner,
                    "ungrouped",
                    f"{found.count} rows have no business group and are mirrored nowhere, "
                    f"such as {', '.join(found.examples)}",
                    f"give them one at '{self._entity.parts[owner].group}', or leave them out of the part",
                )

    async def _source_groups(self) -> None:
        """A page of one business group of each kind of name, at the owner."""
        owner = self._entity.owner
        done = []
        for group in self._trial.other_groups:
            with suppress(Stopped):
                async with self._run_step(owner, "groups", self._place_of_part(owner, "list"), f"'{group}': "):
                    found = await read_first_page(self._sources[owner].pages(group))
                done.append(f"{0 if found is None else len(found[0])} of '{group}'")
        if done:
            self._ok(owner, "groups", f"a page of other kinds of names: {', '.join(done)}")

    async def _parts(self, listed: PartRead, group: str) -> dict[str, Any]:
        """What each source says of a record when it is asked for that one."""
        found: dict[str, Any] = {}
        for part in self._sources:
            if (row := await self._read(part, listed.key, group)) is None:
                continue
            found[part] = row.data
            if part == self._entity.owner and row.version < listed.version:
                self._fail_step(
                    part,
                    "read",
                    f"{row.key} is older by key than in the list: {row.version}, {listed.version}",
                    "a read must not be older than the list: see whether it is of a replica",
                )
            elif (
                part == self._entity.owner
                and row.version == listed.version
                and (compute_digest(row.data) != compute_digest(listed.data))
            ):
                differing = sorted(
                    name
                    for name in row.data.keys() | listed.data.keys()
                    if compute_digest(row.data.get(name)) != compute_digest(listed.data.get(name))
                )
                self._fail_step(
                    part,
                    "read",
                    f"{row.key} has other fields by key than in the list, of the same version: "
                    f"{', '.join(differing[:5])}",
                    f"see {self._place_of_part(part)}: items of list, record of read",
                )
        return found

    async def _read(self, part: str, key: str, group: str) -> PartRead | None:
        source, place, is_owner = self._sources[part], self._place_of_part(part), part == self._entity.owner
        if f"sources.{part}" not in self._reached:
            self._skip_step(part, "read", "its login failed")
            return None
        if is_owner and not source.can_read:
            self._skip_step(
                part,
                "read",
                "it is not read by key: change events must tell the whole part",
                f"say with {place}.read how one record is read",
            )
            return None
        with suppress(Stopped):
            async with self._run_step(part, "read", place):
                rows = await rows_of(source, key, group)
            row = next((row for row in rows if row.key == key), None)
            if row is None and is_owner:
                self._fail_step(part, "read", f"it lists {key}, and has nothing of it by key", f"see {place}.read")
            elif row is None:
                self._skip_step(part, "read", f"it has nothing of {key}", f"see {place}, if it should")
            elif row.problem:
                self._fail_step(part, "read", f"its part of {key} cannot be used: {row.problem}", f"see {place}")
            else:
                self._ok(part, "read", f"its part of {key}")
                return row
        return None

    async def _check_keys(self, group: str) -> None:
        """The listings of keys alone, where they are configured."""
        for part, settings in self._entity.parts.items():
            if settings.keys is None or f"sources.{part}" not in self._reached:
                continue
            with suppress(Stopped):
                async with self._run_step(part, "keys", self._place_of_part(part, "keys")):
                    pages = [rows async for rows in read_some_pages(self._sources[part].keys(group))]
                rows = [row for found in pages for row in found]
                if problem := next((row.problem for row in rows if row.problem), None):
                    self._fail_step(
                        part,
                        "keys",
                        f"a row cannot be used: {problem}",
                        f"see {self._place_of_part(part, 'keys')}: its items",
                    )
                else:
                    self._ok(part, "keys", f"{pages_of(pages, 'keys and versions')} of '{group}'")

    async def _check_mapping(self, row: PartRead, group: str, others: dict[str, Any]) -> None:
        before = {name: others.get(name) for name in self._entity.parts} | {self._entity.owner: row.data}
        try:
            payload = Mapping(self._entity.mapping).build_payload(row.key, row.group or group, before)
        except MappingFailed as error:
            self._tell(
                CheckStep(
                    self._name,
                    self._entity.owner,
                    "mapping",
                    "failed",
                    str(error),
                    f"see entities.{self._name}.mapping",
                    before,
                )
            )
            return
        self._trial.payload = payload
        empty = [name for name, value in payload.items() if value is None]
        detail = f"{row.key}, before and after" + (f"; empty: {', '.join(empty)}" if empty else "")
        self._tell(CheckStep(self._name, self._entity.owner, "mapping", "ok", detail, "", before, payload))
