"""One entity that is tried on running systems, and what the steps on both sides of it share."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sync_orchestrator.adapters.factory import build_third_parties
from sync_orchestrator.config import Config, EntitySettings
from sync_orchestrator.conformance.hints import hint_for
from sync_orchestrator.conformance.live_check.pages import read_some_pages, rows_alone
from sync_orchestrator.conformance.live_check.report import CheckStep, Told
from sync_orchestrator.conformance.live_check.smaller_pages import with_page_size
from sync_orchestrator.conformance.pacing import paces_of
from sync_orchestrator.conformance.tried_sources import build_tried_sources
from sync_orchestrator.core.ports import Found, Json, PartRead, SourceSystem, ThirdParty
from sync_orchestrator.errors import CallFailed, Failure

_REFERENCE_NAME = re.compile(r"reference '([^']+)'")


class Stopped(Exception):
    """A step failed without which the next ones mean nothing."""


@dataclass
class Trial:
    """One entity, from its sources to its third party. ``accounts``: the third parties that gave their account.

    The steps of the sources fill ``rows``, ``payload`` and ``other_groups``, for those of the third party.
    """

    config: Config
    name: str
    sources: dict[str, SourceSystem]
    third_party: ThirdParty
    reached: set[str]
    accounts: set[str]
    tell: Told
    rows: dict[str, PartRead] = field(default_factory=dict)
    payload: Json | None = None
    other_groups: list[str] = field(default_factory=list)


class EntitySteps:
    """What the steps of an entity's sources and of its third party have in common."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._config = trial.config
        self._name = trial.name
        self._entity: EntitySettings = trial.config.entities[trial.name]
        self._sources = trial.sources
        self._third_party = trial.third_party
        self._reached = trial.reached
        self._accounts = trial.accounts
        self._tell = trial.tell
        self._system = self._entity.third_party.system
        self._by_class = trial.config.third_parties[self._system].adapter is not None

    async def _check_count(
        self,
        system: str,
        place: str,
        count: Callable[[str], Awaitable[int | None]],
        group: str,
        listed: Callable[[], Awaitable[int | None]],
    ) -> None:
        """A count, which must be that of the listing where this is small enough to be read. ``listed`` reads it."""
        try:
            async with self._run_step(system, "count", place):
                number = await count(group)
                for _ in range(2):  # others may write in between
                    there = None if number is None else await listed()
                    if there in (None, number):
                        break
                    number = await count(group)
        except Stopped:
            return
        if number is None:
            self._skip_step(
                system,
                "count",
                "it is not configured: records are listed instead",
                f"say with {place} how it is asked, if it can count",
            )
        elif there is not None and there != number:
            self._fail_step(
                system, "count", f"it counts {number} records in '{group}', and lists {there}", f"see {place}"
            )
        else:
            self._ok(system, "count", f"{number} records in '{group}'")

    async def _small_pages(self, system: str, place: str, keys: Sequence[str | None], pages: int, group: str) -> None:
        """Has a listing that came in one page read again in smaller ones: what leads to a second page often fails."""
        if pages > 1 or (size := (len(keys) + 1) // 2) >= len(keys):
            return
        part = system if system in self._sources and place.startswith(self._place_of_part(system)) else None
        smaller = with_page_size(self._config, self._name, part, size)
        if smaller is None:
            return
        source = None if part is None else build_tried_sources(smaller)[self._name][part]
        there = None if part is not None else build_third_parties(smaller, paces_of(smaller))[self._name]
        try:
            listing: AsyncIterator[Sequence[PartRead | Found]]
            listing = rows_alone(source.pages(group)) if source is not None else there.pages(group)  # type: ignore[union-attr]
            found = [[row.key for row in rows] async for rows in read_some_pages(listing, 3)]
        except CallFailed as failure:
            if failure.kind is Failure.PERMANENT and failure.status is not None:
                self._skip_step(
                    system, "pages", f"pages of {size} are refused, so the second page was not tried: {failure.detail}"
                )
            else:
                self._fail_step(system, "pages", f"in pages of {size}: {failure.detail}", f"see {place}: its paging")
            return
        finally:
            for made in (source, there):
                if made is not None:
                    await made.close()
        found = [page for page in found if page]
        missing = set(keys) - {key for page in found for key in page}
        if len(found) < 2 and not missing:
            self._skip_step(
                system,
                "pages",
                f"pages of {size} were requested and one of {len(keys)} came: the second page was not tried",
                f"see {place}: where {{{{ limit }}}} goes",
            )
        elif missing:
            self._fail_step(
                system,
                "pages",
                f"in pages of {size}, {len(missing)} of {len(keys)} records are not listed, "
                f"such as {min(map(str, missing))}",
                f"see {place}: its paging",
            )
        else:
            self._ok(system, "pages", f"{len(found)} pages of {size} show the same records")

    @asynccontextmanager
    async def _run_step(self, system: str, what: str, place: str, about: str = "") -> AsyncIterator[None]:
        """Reports a call that fails, and raises Stopped then. ``about`` goes before its detail."""
        try:
            yield
        except CallFailed as failure:
            named = "filter" if failure.detail.startswith("the filter of") else what
            if failure.kind is Failure.REFERENCE and (fillers := self._describe_fillers(failure.detail)):
                self._tell(CheckStep(self._name, system, named, "waiting", about + failure.detail, fillers))
                raise Stopped from None
            is_there = place.startswith((f"entities.{self._name}.third_party", "third_parties."))
            config = self._config
            hint = hint_for(
                failure,
                f"third_parties.{system}" if is_there else config.locate_source_access(system),
                config.third_parties[system] if is_there else config.describe_source_access(system),
                about_one_record=place.endswith(".read"),
            )
            self._fail_step(system, named, about + failure.detail, f"see {place}" + (f"; {hint}" if hint else ""))
            raise Stopped from None

    def _describe_fillers(self, detail: str) -> str:
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
        path = None if reference is None else _collection_path(reference.path)
        fitting = [other for other in others if path in _list_collections(self._config.entities[other])]
        named = ", ".join(f"`sync-orchestrator full-sync {each}`" for each in fitting or others)
        return (
            f"run {named} first, which makes it"
            if fitting
            else f"if another entity makes it, fill that one first ({named}); otherwise make it there"
        )

    def _place_of_part(self, part: str, call: str = "") -> str:
        return f"entities.{self._name}.parts.{part}" + (f".{call}" if call else "")

    def _ok(self, system: str, what: str, detail: str) -> None:
        self._tell(CheckStep(self._name, system, what, "ok", detail))

    def _skip_step(self, system: str, what: str, detail: str, hint: str = "") -> None:
        self._tell(CheckStep(self._name, system, what, "skipped", detail, hint))

    def _fail_step(self, system: str, what: str, detail: str, hint: str) -> None:
        self._tell(CheckStep(self._name, system, what, "failed", detail, hint))


def _collection_path(path: str) -> str:
    """The part of a path before anything is filled in."""
    return path.partition("{{")[0].partition("?")[0].rstrip("/")


def _list_collections(entity: EntitySettings) -> set[str]:
    """Where the records of an entity are made and listed."""
    target = entity.third_party
    calls = [
        target.create,
        target.list,
        target.lookup,
        *(bulk.request for bulk in target.collect_bulk_calls().values()),
    ]
    if target.ids == "ours":
        calls.append(target.update)
    return {_collection_path(call.path) for call in calls if call is not None}
