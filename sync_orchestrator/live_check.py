"""Tries a configuration out on the systems themselves: every step reads, none writes, none needs the database.

A step that fails ends what depends on it, and no other. Not here: how it is shown (``terminal.py``).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from sync_orchestrator.adapters.build import build_sources, build_third_parties
from sync_orchestrator.adapters.contained import ContainedSource
from sync_orchestrator.adapters.http import Http
from sync_orchestrator.config import Config, Entity
from sync_orchestrator.core.accounts import KnowsAccount
from sync_orchestrator.core.errors import CallFailed, Failure, MappingFailed, SyncError
from sync_orchestrator.core.mapping import Mapping
from sync_orchestrator.core.ports import PartRead, SourceSystem, ThirdParty

T = TypeVar("T")

_MAX_PAGES = 2

_HINTS = {
    Failure.TRANSIENT: "see that it runs and that 'base_url' is right",
    Failure.THROTTLED: "it asks for patience: try again later, or set 'rate' lower",
    Failure.AUTH: "see 'auth' and 'headers', and the secrets that they take from the environment",
    Failure.REFERENCE: "see 'references'",
}


@dataclass(frozen=True)
class Step:
    """One thing that was tried. ``mend`` says what to look at where it is not ok."""

    entity: str
    system: str
    what: str
    outcome: Literal["ok", "failed", "skipped"]
    detail: str
    mend: str = ""
    before: Any = None
    after: Any = None


Told = Callable[[Step], None]


@dataclass
class Report:
    """All steps, in the order in which they were tried."""

    steps: list[Step] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(step.outcome != "failed" for step in self.steps)

    @property
    def verdict(self) -> str:
        """One line for people."""
        count = {outcome: sum(step.outcome == outcome for step in self.steps)
                 for outcome in ("ok", "failed", "skipped")}
        return ", ".join(f"{number} {outcome}" for outcome, number in count.items())


async def check(config: Config, group: str | None = None, *, told: Told | None = None) -> Report:
    """Tries every entity with one business group: the given one, or else the first that its owner names."""
    report = Report()

    def tell(step: Step) -> None:
        report.steps.append(step)
        if told is not None:
            told(step)

    sources, third_parties = build_sources(config), build_third_parties(config, {})
    reached = await _logins(config, tell)
    for name, entity in config.entities.items():
        by_class = config.third_parties[entity.third_party.system].adapter is not None
        await _Trial(name, entity, sources[name], third_parties[name], reached, tell, by_class).run(group)
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
                tell(Step("", name, "login", "failed", str(error), f"see {place}.auth, and the secrets that it takes "
                                                                  "from the environment"))
            else:
                reached.add(place)
                tell(Step("", name, "login", "ok", "logged in"))
            finally:
                await http.close()
    return reached


class _Stopped(Exception):
    """A step failed without which the next ones mean nothing."""


class _Trial:
    """One entity, from its sources to its third party."""

    def __init__(self, name: str, entity: Entity, sources: dict[str, SourceSystem], third_party: ThirdParty,
                 reached: set[str], tell: Told, by_class: bool) -> None:
        self._name = name
        self._entity = entity
        self._sources = sources
        self._third_party = third_party
        self._reached = reached
        self._tell = tell
        self._by_class = by_class

    async def run(self, group: str | None) -> None:
        """All of it, with one business group."""
        owner, system = self._entity.owner, self._entity.third_party.system
        found, row = group, None
        with suppress(_Stopped):
            found = await self._group(group)
            row = await self._page(found)
            await self._mapped(row, found, await self._parts(row.key, found))
            await self._count(owner, self._part(owner, "count"), self._sources[owner].count, found)
            await self._unique(found)
            await self._ungrouped()
        if found is not None:
            await self._keys(found)
        if found is None:
            self._skip(system, "list", "it cannot be asked without a business group", "name one with --group")
        elif f"third_parties.{system}" not in self._reached:
            self._skip(system, "list", "its login failed")
        else:
            await self._there(found, None if row is None else row.key)

    async def _group(self, told: str | None) -> str:
        owner = self._entity.owner
        if f"sources.{owner}" not in self._reached:
            self._skip(owner, "groups", "its login failed")
            raise _Stopped
        if told is not None:
            return told
        async with self._step(owner, "groups", self._part(owner, "groups")):
            groups = await self._sources[owner].groups()
        if groups:
            self._ok(owner, "groups", f"{len(groups)}: {', '.join(groups[:5])}{' …' if len(groups) > 5 else ''}")
            return sorted(groups)[0]
        self._skip(owner, "groups", "it names no business group",
                   f"name one with --group, or say with {self._part(owner, 'groups')} where they are listed")
        raise _Stopped

    async def _page(self, group: str) -> PartRead:
        """Reads a page of the owner's; returns its first usable record."""
        owner = self._entity.owner
        place = self._part(owner, "list")
        async with self._step(owner, "list", place):
            pages = [found async for found, _ in _some(self._sources[owner].pages(group))]
        rows = [row for found in pages for row in found]
        if not rows:
            self._skip(owner, "list", f"'{group}' has no records", f"name another with --group, or see {place}: its "
                                                                   "path, params and items")
            raise _Stopped
        if problem := next((row.problem for row in rows if row.problem), None):
            self._fail(owner, "list", f"a record cannot be used: {problem}", f"see {self._part(owner)}: key, group and "
                                                                             "version")
            raise _Stopped
        self._ok(owner, "list", f"{_pages_of(pages, 'records')} of '{group}', the first is {rows[0].key}")
        others = sum(row.group not in (None, group) for row in rows)
        if others:
            self._skip(owner, "filter", f"{others} of them belong to other groups: the list is not filtered",
                       f"see {place}: its params")
        return rows[0]

    async def _parts(self, key: str, group: str) -> dict[str, Any]:
        """What each source says of a record when it is asked for that one."""
        found: dict[str, Any] = {}
        for part in self._sources:
            if (row := await self._read(part, key, group)) is not None:
                found[part] = row.data
        return found

    async def _read(self, part: str, key: str, group: str) -> PartRead | None:
        source, place, is_owner = self._sources[part], self._part(part), part == self._entity.owner
        if f"sources.{part}" not in self._reached:
            self._skip(part, "read", "its login failed")
            return None
        if is_owner and not source.can_read:
            self._skip(part, "read", "it is not read by key: change events must tell the whole part",
                       f"say with {place}.read how one record is read")
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
                    self._fail(part, "keys", f"a row cannot be used: {problem}", f"see {self._part(part, 'keys')}: its "
                                                                                  "items")
                else:
                    self._ok(part, "keys", f"{_pages_of(pages, 'keys and versions')} of '{group}'")

    async def _mapped(self, row: PartRead, group: str, others: dict[str, Any]) -> None:
        before = {name: others.get(name) for name in self._entity.parts} | {self._entity.owner: row.data}
        try:
            payload = Mapping(self._entity.mapping).payload(row.key, row.group or group, before)
        except MappingFailed as error:
            self._tell(Step(self._name, self._entity.owner, "mapping", "failed", str(error),
                            f"see entities.{self._name}.mapping", before))
            return
        empty = [name for name, value in payload.items() if value is None]
        detail = f"{row.key}, before and after" + (f"; empty: {', '.join(empty)}" if empty else "")
        self._tell(Step(self._name, self._entity.owner, "mapping", "ok", detail, "", before, payload))

    async def _there(self, group: str, key: str | None) -> None:
        system, place = self._entity.third_party.system, f"entities.{self._name}.third_party"
        await self._account(system)
        with suppress(_Stopped):
            async with self._step(system, "list", f"{place}.list"):
                pages = [rows async for rows in _some(self._third_party.pages(group))]
            found = [row for rows in pages for row in rows]
            self._ok(system, "list", f"{_pages_of(pages, 'records')} in '{group}'")
            if self._by_class:
                self._skip(system, "filter", "a class of yours sees to it", f"try `conformance {self._name}`")
            elif self._entity.third_party.filter_check.off:
                self._skip(system, "filter", "its check is off", f"see {place}.filter_check")
            elif found:
                self._ok(system, "filter", "it is obeyed: an impossible group brings nothing")
            else:
                self._skip(system, "filter", "nothing is there yet that an ignored filter could bring")
        if key is not None and self._third_party.traits.can_lookup:
            with suppress(_Stopped):
                async with self._step(system, "lookup", f"{place}.lookup"):
                    records = await self._third_party.lookup(key, group)
                self._ok(system, "lookup", f"{len(records)} records have the key {key}")
        await self._count(system, f"{place}.count", self._third_party.count, group)
        self._skip(system, "write", "not tried: this check writes nothing",
                   f"to try writes on a test system, use `sync-orchestrator conformance {self._name}`")

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
                repeated.examples)
            if any(row.problem for row in rows):
                self._fail(owner, "keys", f"{several}: {next(row.problem for row in rows if row.problem)}",
                           f"see {self._part(owner)}: give one row for each key, such as with sql.query")
            else:
                self._skip(owner, "keys", f"{several}: equal rows count as one, and older versions as history")

    async def _ungrouped(self) -> None:
        """Rows that no business group lists."""
        owner = self._entity.owner
        with suppress(_Stopped):
            async with self._step(owner, "ungrouped", self._part(owner)):
                found = await self._sources[owner].ungrouped()
            if found is not None and found.count:
                self._skip(owner, "ungrouped", f"{found.count} rows have no business group and are mirrored nowhere, "
                           f"such as {', '.join(found.examples)}",
                           f"give them one at '{self._entity.parts[owner].group}', or leave them out of the part")

    async def _account(self, system: str) -> None:
        """Whose account the third party is called with, where it can be asked for."""
        if not isinstance(self._third_party, KnowsAccount):
            return
        with suppress(_Stopped):
            async with self._step(system, "account", f"third_parties.{system}.account"):
                account = await self._third_party.account()
            if account is not None:
                self._ok(system, "account", f"calls are made as account {account}")

    async def _count(self, system: str, place: str, count: Callable[[str], Awaitable[int | None]], group: str) -> None:
        try:
            async with self._step(system, "count", place):
                number = await count(group)
        except _Stopped:
            return
        if number is None:
            self._skip(system, "count", "it is not configured: records are listed instead",
                       f"say with {place} how it is asked, if it can count")
        else:
            self._ok(system, "count", f"{number} records in '{group}'")

    @asynccontextmanager
    async def _step(self, system: str, what: str, place: str) -> AsyncIterator[None]:
        """Tells of a call that fails, and raises _Stopped then."""
        try:
            yield
        except CallFailed as failure:
            named = "filter" if failure.detail.startswith("the filter of") else what
            hint = _HINTS.get(failure.kind)
            self._fail(system, named, failure.detail, f"see {place}" + (f"; {hint}" if hint else ""))
            raise _Stopped from None

    def _part(self, part: str, call: str = "") -> str:
        return f"entities.{self._name}.parts.{part}" + (f".{call}" if call else "")

    def _ok(self, system: str, what: str, detail: str) -> None:
        self._tell(Step(self._name, system, what, "ok", detail))

    def _skip(self, system: str, what: str, detail: str, mend: str = "") -> None:
        self._tell(Step(self._name, system, what, "skipped", detail, mend))

    def _fail(self, system: str, what: str, detail: str, mend: str) -> None:
        self._tell(Step(self._name, system, what, "failed", detail, mend))


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
