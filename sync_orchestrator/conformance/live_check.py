"""Tries a configuration out on the systems themselves: every step reads, none writes, none needs the database.

A step that fails ends what depends on it, and no other. Not here: how it is shown (``cli/terminal.py``).
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from sync_orchestrator.adapters.containment import ContainedSource, ContainedThirdParty
from sync_orchestrator.adapters.factory import build_sources, build_third_parties
from sync_orchestrator.adapters.http.client import Http
from sync_orchestrator.config import Config, Entity, Listing
from sync_orchestrator.conformance.changed_configs import with_changes
from sync_orchestrator.conformance.field_forms import FieldDifference, find_differences, find_form_differences
from sync_orchestrator.conformance.hints import hint_for
from sync_orchestrator.conformance.pacing import paces_of
from sync_orchestrator.conformance.samples import unknown_key_like
from sync_orchestrator.core.ports import Found, Item, Json, PartRead, SourceSystem, ThirdParty
from sync_orchestrator.core.values.mapping import Mapping, digest
from sync_orchestrator.core.values.source_versions import as_time
from sync_orchestrator.errors import CallFailed, Failure, MappingFailed, SyncError

T = TypeVar("T")

_MAX_PAGES = 2
_MAX_COMPARED = 5
_MAX_GROUP_KINDS = 6
_REFERENCE_NAME = re.compile(r"reference '([^']+)'")
_GROUP_KINDS = {
    "blank": re.compile(r"\s"),
    "slash": re.compile(r"[/\\]"),
    "quote": re.compile("['\"`]"),
    "reserved": re.compile(r"[?#&%+=:;,@$!*()\[\]]"),
    "other": re.compile(r"[-_.~]"),
    "digit": re.compile(r"[0-9]"),
    "upper": re.compile(r"[A-Z]"),
    "lower": re.compile(r"[a-z]"),
    "script": re.compile(r"[^\x00-\x7f]"),
}


@dataclass(frozen=True)
class Step:
    """One thing that was tried. ``hint`` says what to look at where it is not ok."""

    entity: str
    system: str
    what: str
    outcome: Literal["ok", "failed", "skipped", "waiting"]
    """``waiting``: it succeeds once another entity was filled."""
    detail: str
    hint: str = ""
    before: Any = None
    after: Any = None


Told = Callable[[Step], None]


@dataclass
class Report:
    """All steps, in the order in which they were tried."""

    steps: list[Step] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no step failed."""
        return all(step.outcome != "failed" for step in self.steps)

    @property
    def verdict(self) -> str:
        """One line for people."""
        count = {
            outcome: sum(step.outcome == outcome for step in self.steps)
            for outcome in ("ok", "failed", "skipped", "waiting")
        }
        return ", ".join(f"{number} {outcome}" for outcome, number in count.items() if number or outcome != "waiting")


async def check(config: Config, group: str | None = None, *, told: Told | None = None) -> Report:
    """Tries every entity with one business group: the given one, or else the first that its owner names."""
    report = Report()

    def tell(step: Step) -> None:
        report.steps.append(step)
        if told is not None:
            told(step)

    sources, third_parties = build_sources(config), build_third_parties(config, paces_of(config))
    reached = await _logins(config, tell)
    accounts: set[str] = set()
    for name in config.entities:
        await _Trial(config, name, sources[name], third_parties[name], reached, accounts, tell).run(group)
    for parts in sources.values():
        for source in parts.values():
            await source.close()
    for third_party in third_parties.values():
        await third_party.close()
    return report


async def _logins(config: Config, tell: Told) -> set[str]:
    """Logs in wherever that takes a call; returns the systems that can be gone on with, by place."""
    reached = set()
    for section, systems in (("sources", config.sources), ("third_parties", config.third_parties)):
        for name, system in systems.items():
            place = f"{section}.{name}"
            if getattr(getattr(system, "auth", None), "kind", None) != "login" or not getattr(system, "base_url", ""):
                reached.add(place)
                continue
            http = Http(system)  # type: ignore[arg-type]  # what has a login is reached over HTTP
            try:
                await http.log_in()
            except SyncError as error:
                tell(
                    Step(
                        "",
                        name,
                        "login",
                        "failed",
                        str(error),
                        f"see {place}.auth, and the secrets that it takes from the environment",
                    )
                )
            else:
                reached.add(place)
                tell(Step("", name, "login", "ok", "logged in"))
            finally:
                await http.close()
    return reached


class _Stopped(Exception):
    """A step failed without which the next ones mean nothing."""


class _Trial:
    """One entity, from its sources to its third party. ``accounts``: the third parties that gave their account."""

    def __init__(
        self,
        config: Config,
        name: str,
        sources: dict[str, SourceSystem],
        third_party: ThirdParty,
        reached: set[str],
        accounts: set[str],
        tell: Told,
    ) -> None:
        self._config = config
        self._name = name
        self._entity: Entity = config.entities[name]
        self._sources = sources
        self._third_party = third_party
        self._reached = reached
        self._accounts = accounts
        self._tell = tell
        self._system = self._entity.third_party.system
        self._by_class = config.third_parties[self._system].adapter is not None
        self._rows: dict[str, PartRead] = {}
        self._payload: Json | None = None
        self._other_groups: list[str] = []

    async def run(self, group: str | None) -> None:
        """All of it, with one business group."""
        owner = self._entity.owner
        found, row = group, None
        with suppress(_Stopped):
            found = await self._group(group)
            pages = await self._page(found)
            row = pages[0][0]
            await self._small_pages(
                owner, self._part(owner, "list"), [row.key for page in pages for row in page], len(pages), found
            )
            self._versions(pages)
            await self._mapped(row, found, await self._parts(row, found))
            await self._missing(row.key)
            await self._changes(row)
            await self._count(
                owner,
                self._part(owner, "count"),
                self._sources[owner].count,
                found,
                lambda: _all_keys(self._sources[owner], found),
            )
            await self._unique(found)
            await self._ungrouped()
            await self._source_groups()
        if found is not None:
            await self._keys(found)
        if found is None:
            self._skip(self._system, "list", "it cannot be asked without a business group", "name one with --group")
        elif f"third_parties.{self._system}" not in self._reached:
            self._skip(self._system, "list", "its login failed")
        else:
            await self._there(found, row)

    async def _group(self, given: str | None) -> str:
        owner, place = self._entity.owner, self._part(self._entity.owner, "groups")
        if f"sources.{owner}" not in self._reached:
            self._skip(owner, "groups", "its login failed")
            raise _Stopped
        async with self._step(owner, "groups", place):
            groups = await self._sources[owner].groups()
        if groups:
            self._ok(owner, "groups", f"{len(groups)}: {', '.join(groups[:5])}{' …' if len(groups) > 5 else ''}")
            if given is not None and given not in groups:
                self._fail(
                    owner,
                    "groups",
                    f"'{given}' is not among them: a full sync of all groups leaves it out",
                    f"see {place}, and --group",
                )
            if given is None:
                self._other_groups = _one_of_each_kind(sorted(groups))
            return sorted(groups)[0] if given is None else given
        if given is not None:
            return given
        self._skip(
            owner,
            "groups",
            "it names no business group",
            f"name one with --group, or say with {place} where they are listed",
        )
        raise _Stopped

    async def _page(self, group: str) -> list[list[PartRead]]:
        """Reads the first pages of the owner's, the first of which has a usable record."""
        owner = self._entity.owner
        place = self._part(owner, "list")
        async with self._step(owner, "list", place):
            pages = [found async for found, _ in _some(self._sources[owner].pages(group))]
        pages = [page for page in pages if page]
        rows = [row for found in pages for row in found]
        if not rows:
            self._skip(
                owner,
                "list",
                f"'{group}' has no records",
                f"name another with --group, or see {place}: its path, params and items",
            )
            raise _Stopped
        if problem := next((row.problem for row in rows if row.problem), None):
            self._fail(
                owner, "list", f"a record cannot be used: {problem}", f"see {self._part(owner)}: key, group and version"
            )
            raise _Stopped
        self._ok(owner, "list", f"{_pages_of(pages, 'records')} of '{group}', the first is {rows[0].key}")
        others = sum(row.group not in (None, group) for row in rows)
        if others:
            self._skip(
                owner,
                "filter",
                f"{others} of them belong to other groups: the list is not filtered",
                f"see {place}: its params",
            )
        self._rows = {row.key: row for row in rows}
        return pages

    async def _small_pages(self, system: str, place: str, keys: Sequence[str | None], pages: int, group: str) -> None:
        """Has a listing that came in one page read again in smaller ones: what leads to a second page often fails."""
        if pages > 1 or (size := (len(keys) + 1) // 2) >= len(keys):
            return
        part = system if system in self._sources and place.startswith(self._part(system)) else None
        smaller = _with_page_size(self._config, self._name, part, size)
        if smaller is None:
            return
        source = None if part is None else build_sources(smaller)[self._name][part]
        there = None if part is not None else build_third_parties(smaller, paces_of(smaller))[self._name]
        try:
            listing: AsyncIterator[Sequence[PartRead | Found]]
            listing = _rows_alone(source.pages(group)) if source is not None else there.pages(group)  # type: ignore[union-attr]
            found = [[row.key for row in rows] async for rows in _some(listing, 3)]
        except CallFailed as failure:
            if failure.kind is Failure.PERMANENT and failure.status is not None:
                self._skip(
                    system, "pages", f"pages of {size} are refused, so the second page was not tried: {failure.detail}"
                )
            else:
                self._fail(system, "pages", f"in pages of {size}: {failure.detail}", f"see {place}: its paging")
            return
        finally:
            for made in (source, there):
                if made is not None:
                    await made.close()
        found = [page for page in found if page]
        missing = set(keys) - {key for page in found for key in page}
        if len(found) < 2 and not missing:
            self._skip(
                system,
                "pages",
                f"pages of {size} were requested and one of {len(keys)} came: the second page was not tried",
                f"see {place}: where {{{{ limit }}}} goes",
            )
        elif missing:
            self._fail(
                system,
                "pages",
                f"in pages of {size}, {len(missing)} of {len(keys)} records are not listed, "
                f"such as {min(map(str, missing))}",
                f"see {place}: its paging",
            )
        else:
            self._ok(system, "pages", f"{len(found)} pages of {size} show the same records")

    def _versions(self, pages: Sequence[Sequence[PartRead]]) -> None:
        owner = self._entity.owner
        latest = int((time.time() + self._entity.max_ahead) * 1e6)
        is_time = self._entity.parts[owner].version.kind == "time"
        for row in (row for page in pages for row in page):
            if row.version <= 0 or (is_time and row.version > latest):
                why = "not above zero" if row.version <= 0 else "further in the future than max_ahead allows"
                self._fail(
                    owner,
                    "version",
                    f"the version of {row.key} is {why}",
                    f"see {self._part(owner)}.version and zone, and the clock there",
                )
                return

    async def _missing(self, key: str) -> None:
        """A key that nobody has must bring nothing: a failure there would keep every deletion from being noticed."""
        owner = self._entity.owner
        source, nobody = self._sources[owner], unknown_key_like(key)
        if not source.can_read:
            return
        place = self._part(owner, "read")
        with suppress(_Stopped):
            async with self._step(owner, "missing", f"{place}: a rule of its outcomes with means: missing"):
                row = await source.read(nobody)
            if row is not None:
                self._fail(owner, "missing", f"a read of {nobody}, which nobody has, shows {row.key}", f"see {place}")
            else:
                self._ok(owner, "missing", "a key that nobody has brings nothing")

    async def _changes(self, row: PartRead) -> None:
        """A part with ``changes`` is polled as it would be after ``row``."""
        owner, settings = self._entity.owner, self._entity.parts[self._entity.owner]
        if not self._sources[owner].can_poll:
            return
        overlap = int(settings.overlap * (1e6 if settings.version.kind == "time" else 1))
        newest = max(self._rows.values(), key=lambda row: row.version)
        since = max(0, newest.version - max(overlap, 1))
        show = as_time if settings.version.kind == "time" else str
        shown_since = show(since)
        place = self._part(owner, "changes")
        with suppress(_Stopped):
            async with self._step(owner, "changes", place):
                pages = [rows async for rows in _some(self._sources[owner].changes(since))]
            shown = {row.key for rows in pages for row in rows}
            if newest.key not in shown and len(pages) < _MAX_PAGES:
                self._fail(
                    owner,
                    "changes",
                    f"{newest.key} is listed with version {show(newest.version)}, and is not "
                    f"among the changes since {shown_since}",
                    f"see {place}: how its filter writes the version",
                )
            else:
                self._ok(owner, "changes", f"{_pages_of(pages, 'records')} changed since {shown_since}")

    async def _source_groups(self) -> None:
        """A page of one business group of each kind of name, at the owner."""
        owner = self._entity.owner
        done = []
        for group in self._other_groups:
            with suppress(_Stopped):
                async with self._step(owner, "groups", self._part(owner, "list"), f"'{group}': "):
                    found = await _first(self._sources[owner].pages(group))
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
                self._fail(
                    part,
                    "read",
                    f"{row.key} is older by key than in the list: {row.version}, {listed.version}",
                    "a read must not be older than the list: see whether it is of a replica",
                )
            elif (
                part == self._entity.owner
                and row.version == listed.version
                and (digest(row.data) != digest(listed.data))
            ):
                differing = sorted(
                    name
                    for name in row.data.keys() | listed.data.keys()
                    if digest(row.data.get(name)) != digest(listed.data.get(name))
                )
                self._fail(
                    part,
                    "read",
                    f"{row.key} has other fields by key than in the list, of the same version: "
                    f"{', '.join(differing[:5])}",
                    f"see {self._part(part)}: items of list, record of read",
                )
        return found

    async def _read(self, part: str, key: str, group: str) -> PartRead | None:
        source, place, is_owner = self._sources[part], self._part(part), part == self._entity.owner
        if f"sources.{part}" not in self._reached:
            self._skip(part, "read", "its login failed")
            return None
        if is_owner and not source.can_read:
            self._skip(
                part,
                "read",
                "it is not read by key: change events must tell the whole part",
                f"say with {place}.read how one record is read",
            )
            return None
        with suppress(_Stopped):
            async with self._step(part, "read", place):
                rows = await _rows(source, key, group)
            row = next((row for row in rows if row.key == key), None)
            if row is None and is_owner:
                self._fail(part, "read", f"it lists {key}, and has nothing of it by key", f"see {place}.read")
            elif row is None:
                self._skip(part, "read", f"it has nothing of {key}", f"see {place}, if it should")
            elif row.problem:
                self._fail(part, "read", f"its part of {key} cannot be used: {row.problem}", f"see {place}")
            else:
                self._ok(part, "read", f"its part of {key}")
                return row
        return None

    async def _keys(self, group: str) -> None:
        """The listings of keys alone, where they are configured."""
        for part, settings in self._entity.parts.items():
            if settings.keys is None or f"sources.{part}" not in self._reached:
                continue
            with suppress(_Stopped):
                async with self._step(part, "keys", self._part(part, "keys")):
                    pages = [rows async for rows in _some(self._sources[part].keys(group))]
                rows = [row for found in pages for row in found]
                if problem := next((row.problem for row in rows if row.problem), None):
                    self._fail(
                        part, "keys", f"a row cannot be used: {problem}", f"see {self._part(part, 'keys')}: its items"
                    )
                else:
                    self._ok(part, "keys", f"{_pages_of(pages, 'keys and versions')} of '{group}'")

    async def _mapped(self, row: PartRead, group: str, others: dict[str, Any]) -> None:
        before = {name: others.get(name) for name in self._entity.parts} | {self._entity.owner: row.data}
        try:
            payload = Mapping(self._entity.mapping).payload(row.key, row.group or group, before)
        except MappingFailed as error:
            self._tell(
                Step(
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
        self._payload = payload
        empty = [name for name, value in payload.items() if value is None]
        detail = f"{row.key}, before and after" + (f"; empty: {', '.join(empty)}" if empty else "")
        self._tell(Step(self._name, self._entity.owner, "mapping", "ok", detail, "", before, payload))

    async def _there(self, group: str, row: PartRead | None) -> None:
        system, place = self._system, f"entities.{self._name}.third_party"
        await self._account(system)
        found: list[Found] = []
        is_listed = False
        with suppress(_Stopped):
            async with self._step(system, "list", f"{place}.list"):
                pages = [rows async for rows in _some(self._third_party.pages(group))]
            found, is_listed = [record for rows in pages for record in rows], True
            self._ok(system, "list", f"{_pages_of(pages, 'records')} in '{group}'")
            await self._small_pages(
                system, f"{place}.list", [record.key for record in found], sum(bool(page) for page in pages), group
            )
            if self._by_class:
                self._skip(system, "filter", "a class of yours sees to it", f"try `conformance {self._name}`")
            elif self._entity.third_party.filter_check.off:
                self._skip(system, "filter", "its check is off", f"see {place}.filter_check")
            elif found:
                self._ok(system, "filter", "it is obeyed: an impossible group brings nothing")
            else:
                self._skip(system, "filter", "nothing is there yet that an ignored filter could bring")
        ours = await self._ours(found)
        record = ours[0][0] if ours else next((record for record in found if record.key is not None), None)
        if record is not None:
            await self._read_back(record, group)
        key = row.key if row is not None else None
        if ours or (key is None and record is not None):
            assert record is not None
            key = record.key
        if key is not None and self._third_party.capabilities.can_lookup:
            with suppress(_Stopped):
                async with self._step(system, "lookup", f"{place}.lookup"):
                    records = await self._third_party.lookup(key, group)
                if ours and not any(each.external_id == record.external_id for each in records):  # type: ignore[union-attr]
                    self._fail(
                        system,
                        "lookup",
                        f"{key} is listed, and a search by the key does not find it",
                        f"see {place}.lookup",
                    )
                else:
                    self._ok(system, "lookup", f"{len(records)} records have the key {key}")
        if is_listed:  # else the failed listing says why nothing is compared
            await self._values(found, ours, group)
        await self._count(
            system, f"{place}.count", self._third_party.count, group, lambda: _all_found(self._third_party, group)
        )
        await self._their_groups()
        await self._writes(row, group)

    async def _ours(self, found: Sequence[Found]) -> list[tuple[Found, PartRead]]:
        """Records there whose part the owner has, as the list or else a read by key shows it."""
        keyed = [record for record in found if record.key is not None]
        ours = [(record, self._rows[record.key]) for record in keyed if record.key in self._rows]
        owner = self._sources[self._entity.owner]
        if not ours and keyed and owner.can_read and f"sources.{self._entity.owner}" in self._reached:
            with suppress(CallFailed):  # keys of others need not be of a form that the source takes
                rows = {row.key: row for row in await owner.read_many([str(each.key) for each in keyed[:20]])}
                ours = [(each, rows[each.key]) for each in keyed[:20] if each.key in rows]
        return [(record, row) for record, row in ours if row.problem is None and not row.deleted][:_MAX_COMPARED]

    async def _read_back(self, record: Found, group: str) -> None:
        """A record that is listed, read by its id: validation and look-ups believe both."""
        system, place = self._system, f"entities.{self._name}.third_party.read"
        with suppress(_Stopped):
            async with self._step(system, "read", place):
                seen = await self._third_party.read(Item(record.key or "", group, {}, record.external_id))
            if seen is None:
                self._fail(
                    system,
                    "read",
                    f"it lists {record.key}, and has nothing under the id {record.external_id}",
                    f"see {place}, and {place.removesuffix('read')}id",
                )
            elif seen.key != record.key:
                self._fail(system, "read", f"a read of {record.key} shows {seen.key}", f"see {place}")
            elif differing := [
                name for name, value in seen.fields.items() if digest(value) != digest(record.fields.get(name))
            ]:
                self._fail(
                    system,
                    "read",
                    f"{record.key} differs in the list and by its id in {', '.join(differing[:5])}",
                    f"see {place}; if the list has less, set {place.removesuffix('read')}list_shows: ids",
                )
            else:
                self._ok(system, "read", f"{record.key} is by its id as in the list")

    async def _values(self, found: Sequence[Found], ours: Sequence[tuple[Found, PartRead]], group: str) -> None:
        """Values in both directions: what is there, against what would be sent for it."""
        system, place = self._system, f"entities.{self._name}.third_party"
        if not found:
            self._skip(
                system,
                "values",
                "nothing is there yet to compare with",
                "check again after the first full sync, or try "
                f" `sync-orchestrator conformance {self._name}` on a test system",
            )
            return
        if not ours:
            forms = [] if self._payload is None else find_form_differences(self._payload, found)
            self._skip(
                system,
                "values",
                "no record there is one of the sources'" + (f"; of another form: {'; '.join(forms)}" if forms else ""),
                f"see {place}.fields, if these values do not mean the same" if forms else "",
            )
            return
        by_field: dict[str, FieldDifference] = {}
        for record, row in ours:
            with suppress(CallFailed, MappingFailed):
                payload = await self._payload_of(row, record.group or row.group or group)
                for difference in find_differences(self._entity, payload, record):
                    known = by_field.setdefault(difference.field, difference)
                    if difference.never_matches and not known.never_matches:
                        by_field[difference.field] = difference
        never = [each for each in by_field.values() if each.never_matches]
        for each in never:
            self._fail(system, "values", f"{each}; a write never makes them equal", f"{place}: {each.hint}")
        if never:
            return
        keys = ", ".join(str(record.key) for record, _ in ours)
        if by_field:
            self._ok(system, "values", f"{keys}: a full sync would change {'; '.join(map(str, by_field.values()))}")
        else:
            self._ok(system, "values", f"{keys}: as they would be sent, {len(self._entity.mapping)} fields each")

    async def _payload_of(self, row: PartRead, group: str) -> Json:
        parts: dict[str, Any] = {self._entity.owner: row.data}
        for part, source in self._sources.items():
            if part != self._entity.owner:
                seen = await source.read(row.key) if source.can_read else None
                parts[part] = None if seen is None else seen.data
        return Mapping(self._entity.mapping).payload(row.key, group, parts)

    async def _their_groups(self) -> None:
        """A page of one business group of each kind of name, at the third party."""
        done = []
        for group in self._other_groups:
            with suppress(_Stopped):
                async with self._step(
                    self._system, "groups", f"entities.{self._name}.third_party.list", f"'{group}': "
                ):
                    page = await _first(self._third_party.pages(group))
                done.append(f"{len(page or ())} in '{group}'")
        if done:
            self._ok(self._system, "groups", f"a page of other kinds of names: {', '.join(done)}")

    async def _writes(self, row: PartRead | None, group: str) -> None:
        """The writing calls, filled in with a record and what it refers to; nothing is sent."""
        system, filled = self._system, None
        if row is not None and self._payload is not None and isinstance(self._third_party, ContainedThirdParty):
            with suppress(_Stopped):
                async with self._step(system, "fill in", f"entities.{self._name}.third_party"):
                    filled = await self._third_party.fill_in(
                        Item(
                            row.key,
                            row.group or group,
                            self._payload,
                            None if self._third_party.capabilities.assigns_ids else row.key,
                            f"{self._name}/{row.key}/0",
                        )
                    )
        if filled is not None and filled.references:
            self._ok(
                system,
                "fill in",
                "; ".join((*filled.calls, *(f"{name} is {value}" for name, value in filled.references.items()))),
            )
        self._skip(
            system,
            "write",
            "not tried: this check writes nothing",
            f"to try writes on a test system, use `sync-orchestrator conformance {self._name}`",
        )

    async def _unique(self, group: str) -> None:
        """Whether the rows of the group have a key each, where the source can count both."""
        owner = self._entity.owner
        source = self._sources[owner]
        if not isinstance(source, ContainedSource):
            return
        with suppress(_Stopped):
            async with self._step(owner, "keys", self._part(owner)):
                repeated = await source.repeated(group)
                if repeated is None or not repeated.count:
                    return
                rows = await source.read_many(repeated.examples) if source.can_read else []
            several = f"{repeated.count} rows of '{group}' have the key of another row, such as " + ", ".join(
                repeated.examples
            )
            if any(row.problem for row in rows):
                self._fail(
                    owner,
                    "keys",
                    f"{several}: {next(row.problem for row in rows if row.problem)}",
                    f"see {self._part(owner)}: give one row for each key, such as with sql.query",
                )
            else:
                self._skip(owner, "keys", f"{several}: equal rows count as one, and older versions as history")

    async def _ungrouped(self) -> None:
        """Rows that no business group lists."""
        owner = self._entity.owner
        with suppress(_Stopped):
            async with self._step(owner, "ungrouped", self._part(owner)):
                found = await self._sources[owner].ungrouped()
            if found is not None and found.count:
                self._skip(
                    owner,
                    "ungrouped",
                    f"{found.count} rows have no business group and are mirrored nowhere, "
                    f"such as {', '.join(found.examples)}",
                    f"give them one at '{self._entity.parts[owner].group}', or leave them out of the part",
                )

    async def _account(self, system: str) -> None:
        """Whose account the third party is called with, where it can be asked for; once for all of its entities."""
        if system in self._accounts:
            return
        account: str | None = ""
        with suppress(_Stopped):
            async with self._step(system, "account", f"third_parties.{system}.account"):
                account = await self._third_party.account()
            if account is not None:
                self._ok(system, "account", f"calls are made as account {account}")
        if account is not None:
            self._accounts.add(system)

    async def _count(
        self,
        system: str,
        place: str,
        count: Callable[[str], Awaitable[int | None]],
        group: str,
        listed: Callable[[], Awaitable[int | None]],
    ) -> None:
        """A count, which must be that of the listing where this is small enough to be read. ``listed`` reads it."""
        try:
            async with self._step(system, "count", place):
                number = await count(group)
                for _ in range(2):  # others may write in between
                    there = None if number is None else await listed()
                    if there in (None, number):
                        break
                    number = await count(group)
        except _Stopped:
            return
        if number is None:
            self._skip(
                system,
                "count",
                "it is not configured: records are listed instead",
                f"say with {place} how it is asked, if it can count",
            )
        elif there is not None and there != number:
            self._fail(system, "count", f"it counts {number} records in '{group}', and lists {there}", f"see {place}")
        else:
            self._ok(system, "count", f"{number} records in '{group}'")

    @asynccontextmanager
    async def _step(self, system: str, what: str, place: str, about: str = "") -> AsyncIterator[None]:
        """Reports a call that fails, and raises _Stopped then. ``about`` goes before its detail."""
        try:
            yield
        except CallFailed as failure:
            named = "filter" if failure.detail.startswith("the filter of") else what
            if failure.kind is Failure.REFERENCE and (fillers := self._fillers(failure.detail)):
                self._tell(Step(self._name, system, named, "waiting", about + failure.detail, fillers))
                raise _Stopped from None
            is_there = place.startswith((f"entities.{self._name}.third_party", "third_parties."))
            section = "third_parties" if is_there else "sources"
            hint = hint_for(
                failure,
                f"{section}.{system}",
                getattr(self._config, section)[system],
                about_one_record=place.endswith(".read"),
            )
            self._fail(system, named, about + failure.detail, f"see {place}" + (f"; {hint}" if hint else ""))
            raise _Stopped from None

    def _fillers(self, detail: str) -> str:
        """Says which entities fill what a reference looks for; empty where no other one is kept at this third party."""
        others = [
            name
            for name, entity in self._config.entities.items()
            if name != self._name and entity.third_party.system == self._system
        ]
        if not others:
            return ""
        name = _REFERENCE_NAME.search(detail)
        reference = self._entity.third_party.references.get(name[1]) if name else None
        path = None if reference is None else _collection(reference.path)
        fitting = [other for other in others if path in _collections(self._config.entities[other])]
        named = ", ".join(f"`sync-orchestrator full-sync {each}`" for each in fitting or others)
        return (
            f"run {named} first, which makes it"
            if fitting
            else f"if another entity makes it, fill that one first ({named}); otherwise make it there"
        )

    def _part(self, part: str, call: str = "") -> str:
        return f"entities.{self._name}.parts.{part}" + (f".{call}" if call else "")

    def _ok(self, system: str, what: str, detail: str) -> None:
        self._tell(Step(self._name, system, what, "ok", detail))

    def _skip(self, system: str, what: str, detail: str, hint: str = "") -> None:
        self._tell(Step(self._name, system, what, "skipped", detail, hint))

    def _fail(self, system: str, what: str, detail: str, hint: str) -> None:
        self._tell(Step(self._name, system, what, "failed", detail, hint))


def _collection(path: str) -> str:
    """The part of a path before anything is filled in."""
    return path.partition("{{")[0].partition("?")[0].rstrip("/")


def _collections(entity: Entity) -> set[str]:
    """Where the records of an entity are made and listed."""
    target = entity.third_party
    calls = [target.create, target.list, target.lookup, *(bulk.request for bulk in target.bulks().values())]
    if target.ids == "ours":
        calls.append(target.update)
    return {_collection(call.path) for call in calls if call is not None}


def _one_of_each_kind(groups: Sequence[str]) -> list[str]:
    """Business groups whose names have kinds of characters that none before them has; never the first group."""
    chosen: list[str] = []
    covered = _kinds_in(groups[0])
    for group in groups[1:]:
        if len(chosen) < _MAX_GROUP_KINDS and not _kinds_in(group) <= covered:
            chosen.append(group)
            covered |= _kinds_in(group)
    return chosen


def _kinds_in(group: str) -> set[str]:
    return {kind for kind, pattern in _GROUP_KINDS.items() if pattern.search(group)}


def _with_page_size(config: Config, name: str, part: str | None, size: int) -> Config | None:
    """The same with a smaller page of one listing; None where the size of its pages cannot be set."""
    entity = config.entities[name]
    if part is None:
        listing = _smaller(entity.third_party.list, size)
        return None if listing is None else with_changes(config, name, third_party={"list": listing})
    settings = entity.parts[part]
    changes: dict[str, Any] = {}
    if (listing := _smaller(settings.list, size)) is not None:
        changes = {"list": listing}
    elif settings.sql is not None:
        changes = {"sql": settings.sql.model_copy(update={"page": size})}
    if not changes:
        return None
    parts = {**entity.parts, part: settings.model_copy(update=changes)}
    return config.model_copy(update={"entities": {name: entity.model_copy(update={"parts": parts})}})


def _smaller(listing: Listing | None, size: int) -> Listing | None:
    if listing is None or listing.paging == "none" or "limit" not in listing.names():
        return None
    return listing.model_copy(update={"size": size})


async def _all_keys(source: SourceSystem, group: str) -> int | None:
    """How many records a source lists; None where two pages are not all of them."""
    return await _number_in(_rows_alone(source.pages(group)))


async def _all_found(third_party: ThirdParty, group: str) -> int | None:
    return await _number_in(third_party.pages(group))


async def _number_in(pages: AsyncIterator[Sequence[Any]]) -> int | None:
    found = [len(page) async for page in _some(pages, _MAX_PAGES + 1)]
    return None if len(found) > _MAX_PAGES else sum(found)


async def _rows_alone(pages: AsyncIterator[tuple[list[PartRead], str | None]]) -> AsyncGenerator[list[PartRead]]:
    async for rows, _ in _some(pages, 10**6):
        yield rows


async def _rows(source: SourceSystem, key: str, group: str) -> list[PartRead]:
    """One record by its key, or else a page in which it may be."""
    if source.can_read:
        return await source.read_many([key])
    return (await _first(source.pages(group)) or ([], None))[0]


async def _first(pages: AsyncIterator[T]) -> T | None:
    """The first page, and no more."""
    async for page in _some(pages, 1):
        return page
    return None


async def _some(pages: AsyncIterator[T], most: int = _MAX_PAGES) -> AsyncGenerator[T]:
    """The first pages: a listing often fails from the second on, by what leads to it."""
    number = 0
    try:
        async for page in pages:
            yield page
            number += 1
            if number >= most:
                return
    finally:
        if isinstance(pages, AsyncGenerator):
            await pages.aclose()


def _pages_of(pages: Sequence[Sequence[Any]], what: str) -> str:
    number = sum(len(page) for page in pages)
    return f"a page of {number} {what}" if len(pages) < 2 else f"{len(pages)} pages with {number} {what}"
