"""What is believed of a class of your own: nothing that it should not raise, return or take its time for.

Whatever is wrong with it is a failure of one call, which says what came and where; never a crash, never a success.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from sync_orchestrator.adapters.custom.base import Adapter, SourceAdapter, ThirdPartyAdapter
from sync_orchestrator.adapters.custom.http_client import Writing, writing
from sync_orchestrator.adapters.custom.loading import locate_error
from sync_orchestrator.adapters.http.call_room import Room
from sync_orchestrator.adapters.http.responses import sanitize_text
from sync_orchestrator.adapters.row_reader import select_requested_rows
from sync_orchestrator.core.ports import TOO_OLD, Found, Item, OpenTransactions, PartRead, Ungrouped
from sync_orchestrator.core.systems.claim_holders import is_over
from sync_orchestrator.core.systems.rate_limit import HoldOff
from sync_orchestrator.core.values.mapping import to_canonical_json
from sync_orchestrator.core.values.names import list_spellings, to_nfc
from sync_orchestrator.errors import CallFailed, Failure, Refusal

T = TypeVar("T")
Problem = Callable[[object], str | None]
"""Says what is wrong with what a method gave; None where nothing is."""

_END = object()
_OF_ALL_RECORDS = ("lookup", "pages", "keys", "count", "groups", "changes", "read_many", "ungrouped")
"""Methods that ask for no single record: what they do not find is the collection itself."""


class AdapterGuard:
    """Carries out the calls of one adapter.

    ``timeout``: of one call of its system; a method, or a page, may take twice that. ``room``: where its calls are not
    made by our client, which would wait for it. ``hold_off`` learns how long it asks to be left alone. ``secrets``
    stand in no error text.
    """

    def __init__(
        self, adapter: Adapter, timeout: float, room: Room | None, hold_off: HoldOff, secrets: Sequence[str]
    ) -> None:
        self._class = type(adapter)
        self._timeout = timeout
        self._room = room
        self._hold_off = hold_off
        self._secrets = tuple(secrets)

    async def call_to_read(self, method: str, begin: Callable[[], Awaitable[T]], problem: Problem) -> T:
        """A call that reads. Raises CallFailed."""
        async with self._begin_call(time.monotonic() + self._timeout, write=False):
            came = await self._carried_out(method, begin, 2 * self._timeout)
        if came is not _END and (wrong := problem(came)) is not None:
            raise self._build_failure(method, wrong)
        return came

    async def call_to_write(self, method: str, item: Item, call: Callable[[Item], Awaitable[T]], problem: Problem) -> T:
        """Makes a call that writes: it begins before the item's deadline or not at all.

        It ends within a call's timeout of the deadline. Raises CallFailed.
        """
        latest = time.monotonic() + self._timeout
        async with self._begin_call(latest if item.deadline is None else min(latest, item.deadline), write=True):
            left = self._timeout if item.deadline is None else item.deadline - time.monotonic()
            if is_over(item.deadline):
                raise CallFailed(Failure.THROTTLED, TOO_OLD)
            before = writing.set(Writing(item.deadline, creates=method == "create"))
            try:
                came = await self._carried_out(method, lambda: call(item), min(2 * self._timeout, left + self._timeout))
            finally:
                writing.reset(before)
        if (wrong := problem(came)) is not None:
            raise self._build_failure(method, wrong, unknown=True)
        return came

    async def iterate_pages(self, method: str, begin: Callable[[], Any], problem: Problem) -> AsyncIterator[Any]:
        """Page by page; a listing that gives the same page twice running would never end. Raises CallFailed."""
        pages: Any = None

        async def fetch_next_page() -> object:
            nonlocal pages
            if pages is None:
                pages = begin()
                if inspect.isawaitable(pages):
                    if inspect.iscoroutine(pages):
                        pages.close()
                    raise TypeError("it must yield pages: 'async def' with 'yield'")
            return await anext(pages, _END)

        before = None
        try:
            while (page := await self.call_to_read(method, fetch_next_page, problem)) is not _END:
                if page and page == before:
                    raise self._build_failure(method, "gives the same page again and again")
                yield page
                before = page
        finally:
            if isinstance(pages, AsyncGenerator):
                with suppress(Exception):
                    async with asyncio.timeout(self._timeout):
                        await pages.aclose()

    def _begin_call(self, latest: float, *, write: bool) -> AbstractAsyncContextManager[object]:
        return nullcontext() if self._room is None else self._room.begin_call(latest, write=write)

    async def _carried_out(self, method: str, begin: Callable[[], Awaitable[T]], most: float) -> T:
        writes = writing.get() is not None
        timer = asyncio.timeout(most)
        try:
            async with timer:
                return await begin()
        except CallFailed as failure:
            if not isinstance(failure.kind, Failure):
                raise self._build_failure(
                    method, f"raised CallFailed of kind {failure.kind!r}, which is no Failure", unknown=writes
                ) from None
            if failure.retry_after:
                await self._hold_off.hold_off_calls(failure.retry_after, self._sanitize_text(failure.detail))
            if failure.status == 429:
                await self._hold_off.note_refused()
            failure.detail = self._sanitize_text(failure.detail)
            failure.args = (failure.detail,)
            _correct_failure(method, failure, writes=writes)
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise self._build_failure(method, "was cancelled from within", unknown=writes) from None
        except (Exception, SystemExit) as error:
            if timer.expired() and isinstance(error, TimeoutError):
                raise self._build_failure(
                    method, f"has not ended within {most:.3g} s", unknown=writes, about_system=True
                ) from None
            raise self._build_failure(
                method,
                f"raised {type(error).__name__}: {error}{locate_error(error, self._find_class_file())}",
                unknown=writes,
                about_system=isinstance(error, OSError),
            ) from None

    def _build_failure(
        self, method: str, what: str, *, unknown: bool = False, about_system: bool = False
    ) -> CallFailed:
        return CallFailed(
            Failure.TRANSIENT,
            self._sanitize_text(f"{self._class.__name__}.{method} {what}"),
            unknown=unknown,
            about_system=about_system,
        )

    def _sanitize_text(self, text: object) -> str:
        return sanitize_text(str(text), self._secrets)

    def _find_class_file(self) -> str | None:
        try:
            return inspect.getfile(self._class)
        except (TypeError, OSError):
            return None


class GuardedThirdParty:
    """Implements ``core.ports.ThirdParty`` by a class of your own."""

    def __init__(self, adapter: ThirdPartyAdapter, guard: AdapterGuard, close: Callable[[], Awaitable[None]]) -> None:
        self.capabilities = adapter.capabilities
        self._adapter = adapter
        self._guard = guard
        self._close = close

    async def create(self, item: Item) -> str:
        return await self._guard.call_to_write("create", item, self._adapter.create, _no_id)

    async def update(self, item: Item) -> str | None:
        return await self._guard.call_to_write("update", item, self._adapter.update, _or_none(_no_id))

    async def delete(self, item: Item) -> None:
        await self._guard.call_to_write("delete", item, self._adapter.delete, _not_none)

    async def read(self, item: Item) -> Found | None:
        there = await self._guard.call_to_read("read", lambda: self._adapter.read(item), _or_none(_no_found))
        return None if there is None else _normalize_found_names(there)

    async def lookup(self, key: str, group: str | None) -> list[Found]:
        found = await self._guard.call_to_read("lookup", lambda: self._adapter.lookup(key, group), _list_of(_no_found))
        return [_normalize_found_names(there) for there in found]

    async def pages(self, group: str) -> AsyncIterator[list[Found]]:
        async for page in self._guard.iterate_pages("pages", lambda: self._adapter.pages(group), _list_of(_no_found)):
            yield [_normalize_found_names(there) for there in page]

    async def count(self, group: str) -> int | None:
        return await self._guard.call_to_read("count", lambda: self._adapter.count(group), _or_none(_no_count))

    async def account(self) -> str | None:
        if not callable(self._adapter.account):  # a class may have used the name for a value of its own
            return None
        return await self._guard.call_to_read("account", self._adapter.account, _or_none(_no_id))

    async def close(self) -> None:
        await _close_adapter(self._adapter)
        await self._close()


class GuardedSource:
    """Implements ``core.ports.SourceSystem`` by a class of your own."""

    def __init__(self, adapter: SourceAdapter, guard: AdapterGuard, close: Callable[[], Awaitable[None]]) -> None:
        self.keyset_listing = adapter.keyset_listing
        self.can_read = adapter.can_read
        self.can_poll = adapter.can_poll
        self.can_list_keys = adapter.can_list_keys
        is_read_together = type(adapter).read_many is not SourceAdapter.read_many
        self.read_many_size = adapter.read_many_size if is_read_together else 1
        self.confirms_absence = adapter.confirms_absence
        self._adapter = adapter
        self._guard = guard
        self._close = close

    async def read(self, key: str) -> PartRead | None:
        for spelling in list_spellings(key):
            row = await self._guard.call_to_read("read", partial(self._adapter.read, spelling), _or_none(_no_part))
            if row is not None:
                break
        else:
            return None
        found = next(iter(select_requested_rows([key], [_normalize_part_names(row)])), None)
        if found is None:
            raise CallFailed(Failure.TRANSIENT, f"asked for record {key}, {row.key} came")
        return found

    async def keys(self, group: str) -> AsyncIterator[list[PartRead]]:
        async for page in self._guard.iterate_pages("keys", lambda: self._adapter.keys(group), _list_of(_no_part)):
            yield [_normalize_part_names(row) for row in page]

    async def read_many(self, keys: Sequence[str]) -> list[PartRead]:
        spelt = [spelling for key in keys for spelling in list_spellings(key)]
        rows = await self._guard.call_to_read("read_many", lambda: self._adapter.read_many(spelt), _list_of(_no_part))
        return select_requested_rows(keys, [_normalize_part_names(row) for row in rows])

    async def pages(self, group: str, after: str | None = None) -> AsyncIterator[tuple[list[PartRead], str | None]]:
        async for page in self._guard.iterate_pages("pages", lambda: self._adapter.pages(group, after), _no_page):
            yield [_normalize_part_names(row) for row in page[0]], page[1]

    async def changes(self, since: int) -> AsyncIterator[list[PartRead]]:
        async for page in self._guard.iterate_pages(
            "changes", lambda: self._adapter.changes(since), _list_of(_no_part)
        ):
            yield [_normalize_part_names(row) for row in page]

    async def open_transactions(self) -> OpenTransactions | None:
        return await self._guard.call_to_read(
            "open_transactions", self._adapter.open_transactions, _or_none(_no_open_transactions)
        )

    async def count(self, group: str) -> int | None:
        return await self._guard.call_to_read("count", lambda: self._adapter.count(group), _or_none(_no_count))

    async def groups(self) -> list[str] | None:
        found = await self._guard.call_to_read("groups", self._adapter.groups, _or_none(_list_of(_no_id)))
        return None if found is None else [to_nfc(group) for group in found]

    async def ungrouped(self) -> Ungrouped | None:
        return await self._guard.call_to_read("ungrouped", self._adapter.ungrouped, _or_none(_no_ungrouped))

    async def close(self) -> None:
        await _close_adapter(self._adapter)
        await self._close()


def _normalize_part_names(row: PartRead) -> PartRead:
    """The row with its key and group in the one form of names."""
    group = None if row.group is None else to_nfc(row.group)
    same = row.key == (key := to_nfc(row.key)) and row.group == group
    return row if same else replace(row, key=key, group=group)


def _normalize_found_names(there: Found) -> Found:
    key, group = (None if name is None else to_nfc(name) for name in (there.key, there.group))
    return there if (key, group) == (there.key, there.group) else replace(there, key=key, group=group)


def _correct_failure(method: str, failure: CallFailed, *, writes: bool) -> None:
    """Corrects what a class says of a failure: a 5xx may have been done, and a 404 of all records is no absence."""
    status = failure.status
    if writes and failure.kind is Failure.TRANSIENT and status is not None and (status == 408 or status >= 500):
        failure.unknown = True
    if failure.refusal is Refusal.MISSING and method in _OF_ALL_RECORDS and failure.not_ours is None:
        failure.kind, failure.refusal, failure.about_system = Failure.TRANSIENT, None, True
    if failure.kind is Failure.AUTH:
        failure.about_system = True


async def _close_adapter(adapter: Adapter) -> None:
    """Its connections are ended as well as they can be: nobody waits for a class that cannot."""
    with suppress(Exception):
        async with asyncio.timeout(5):
            await adapter.close()


def _or_none(problem: Problem) -> Problem:
    return lambda came: None if came is None else problem(came)


def _list_of(problem: Problem) -> Problem:
    def check_list(came: object) -> str | None:
        if not isinstance(came, list):
            return f"gave {_describe_value(came)}, not a list"
        return next((found for each in came if (found := problem(each)) is not None), None)

    return check_list


def _not_none(came: object) -> str | None:
    return None if came is None else f"returned {_describe_value(came)}, not None; what fails is told by CallFailed"


def _no_id(came: object) -> str | None:
    return None if isinstance(came, str) and came else f"gave {_describe_value(came)}, not a text that names something"


def _no_count(came: object) -> str | None:
    return None if type(came) is int and came >= 0 else f"returned {_describe_value(came)}, not a whole number"


def _no_open_transactions(came: object) -> str | None:
    is_one = isinstance(came, OpenTransactions)
    return None if is_one else f"returned {_describe_value(came)}, not an OpenTransactions"


def _no_ungrouped(came: object) -> str | None:
    return None if isinstance(came, Ungrouped) else f"returned {_describe_value(came)}, not an Ungrouped"


def _no_found(came: object) -> str | None:
    if not isinstance(came, Found):
        return f"gave {_describe_value(came)}, not a Found"
    if wrong := _no_id(came.external_id):
        return f"{wrong}, as external_id"
    return _no_text("key", came.key) or _no_text("group", came.group) or _no_json("fields", came.fields)


def _no_part(came: object) -> str | None:
    if not isinstance(came, PartRead):
        return f"gave {_describe_value(came)}, not a PartRead"
    if came.passed_over is True and came.deleted is True and type(came.version) is int:
        return _no_text("key", came.key)
    if came.problem is not None:
        return _no_text("problem", came.problem) or _no_text("key", came.key)
    if wrong := _no_id(came.key):
        return f"{wrong}, as key"
    if type(came.version) is not int:
        return f"gave {_describe_value(came.version)} as version, not a whole number"
    if type(came.deleted) is not bool:
        return f"gave {_describe_value(came.deleted)} as deleted, not True or False"
    return _no_text("group", came.group) or _no_json("data", came.data)


def _no_page(came: object) -> str | None:
    if not (isinstance(came, tuple) and len(came) == 2):
        return f"gave {_describe_value(came)}, not a page and its position: yield rows, None"
    return _list_of(_no_part)(came[0]) or _no_text("position", came[1])


def _no_text(name: str, came: object) -> str | None:
    return None if came is None or isinstance(came, str) else f"gave {_describe_value(came)} as {name}, not a text"


def _no_json(name: str, came: object) -> str | None:
    if not isinstance(came, dict):
        return f"gave {_describe_value(came)} as {name}, not a dict"
    try:
        to_canonical_json(came)
    except (TypeError, ValueError, RecursionError) as error:
        return f"gave {name} that are no JSON: {error}"
    return None


def _describe_value(came: object) -> str:
    try:
        text = "" if came is None else f" ({came!r:.100})"
    except Exception:
        text = ""
    return f"{type(came).__name__}{text}"
