"""Containment at the ports (rule 37): every call of an adapter ends in a result or in CallFailed.

A library that an adapter uses can raise anything. Here it becomes the failure of that one call, with its traceback in
the log, so that it fails one record or one system and never the drain, the sensor or another entity. Cancellation of
the caller passes through.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar

from sync_orchestrator.adapters.custom.loading import locate_error
from sync_orchestrator.core.ports import Found, Item, OpenTransactions, PartRead, SourceSystem, ThirdParty, Ungrouped
from sync_orchestrator.errors import CallFailed, Failure, SyncError
from sync_orchestrator.texts.masking import mask_secrets
from sync_orchestrator.texts.storable_text import storable_text, text_problem

T = TypeVar("T")

Mask = Callable[[str], str]
"""Makes text fit for messages: one line, clipped, without secrets."""

MAX_NAME_BYTES = 2000
"""The database indexes keys and business groups; its index entries end at 2,700 bytes."""

_MAX_VERSION = 2**63 - 1

_log = logging.getLogger(__name__)


class Containment:
    """Turns whatever the calls of one system raise into CallFailed.

    Args:
        place: The system's place in the configuration, such as ``sources.shop``, for the log.
        mask: Removes secrets from texts.
    """

    def __init__(self, place: str, mask: Mask) -> None:
        self._place = place
        self._mask = mask

    def contain_call(self, method: str, *, write: bool = False) -> Contained:
        """Contains one call. ``write``: its outcome is unknown after an unexpected error."""
        return Contained(self, method, write)

    def failure_of(self, error: BaseException, method: str, write: bool) -> CallFailed | None:
        """Returns the failure that an error stands for, with the system's place.

        None for what is no failure of the call, such as the end of the caller's task.
        """
        failure = self._classify_error(error, method, write)
        if failure is not None and failure.place is None:
            failure.place = self._place
        return failure

    def _classify_error(self, error: BaseException, method: str, write: bool) -> CallFailed | None:
        if isinstance(error, CallFailed):
            return error
        if isinstance(error, SyncError):  # raised on purpose, such as ConfigError: waiting does not fix it
            return CallFailed(Failure.PERMANENT, self._mask(str(error)))
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            return None if task is None or task.cancelling() else self._log_unexpected(method, error, write)
        return self._log_unexpected(method, error, write) if isinstance(error, Exception) else None

    def _log_unexpected(self, method: str, error: BaseException, write: bool) -> CallFailed:
        what = self._mask(f"unexpected {type(error).__name__} in {method}: {error}{locate_error(error)}")
        lines = "".join(traceback.format_exception(error)).splitlines()
        _log.error("%s: %s\n%s", self._place, what, "\n".join(self._mask_line(line) for line in lines))
        return CallFailed(Failure.TRANSIENT, what, unknown=write)

    def _mask_line(self, line: str) -> str:
        """A line of a traceback with its indentation; masking puts everything on one line."""
        return line[: len(line) - len(line.lstrip())] + self._mask(line)


class Contained:
    """The context of one contained call.

    A failure leaves it without the frames that it came from. A batch keeps its failures until all of it is settled, and
    with those frames each response.
    """

    def __init__(self, containment: Containment, method: str, write: bool) -> None:
        self._containment = containment
        self._method = method
        self._write = write

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del trace  # this frame stays with the failure
        failure = None if error is None else self._containment.failure_of(error, self._method, self._write)
        del error
        if failure is not None:
            failure.__context__ = failure.__cause__ = None
            raise failure.with_traceback(None) from None


class ContainedSource:
    """Implements ``core.ports.SourceSystem`` by an adapter whose errors are contained."""

    def __init__(self, inner: SourceSystem, containment: Containment) -> None:
        self.keyset_listing = inner.keyset_listing
        self.can_read = inner.can_read
        self.can_poll = inner.can_poll
        self.can_list_keys = inner.can_list_keys
        self.read_many_size = inner.read_many_size
        self.confirms_absence = inner.confirms_absence
        self.inner = inner
        self._containment = containment

    async def read(self, key: str) -> PartRead | None:
        with self._containment.contain_call("read"):
            row = await self.inner.read(key)
            return None if row is None else _make_storable(row)

    async def read_many(self, keys: Sequence[str]) -> list[PartRead]:
        with self._containment.contain_call("read_many"):
            return _all_storable(await self.inner.read_many(keys))

    async def pages(self, group: str, after: str | None = None) -> AsyncIterator[tuple[list[PartRead], str | None]]:
        async with aclosing(
            _iterate_contained(
                self._containment,
                "pages",
                lambda: self.inner.pages(group, after),
                lambda page: (_all_storable(page[0]), page[1]),
            )
        ) as pages:
            async for page in pages:
                yield page

    async def keys(self, group: str) -> AsyncIterator[list[PartRead]]:
        async with aclosing(
            _iterate_contained(self._containment, "keys", lambda: self.inner.keys(group), _all_storable)
        ) as pages:
            async for rows in pages:
                yield rows

    async def changes(self, since: int) -> AsyncIterator[list[PartRead]]:
        async with aclosing(
            _iterate_contained(self._containment, "changes", lambda: self.inner.changes(since), _all_storable)
        ) as pages:
            async for rows in pages:
                yield rows

    async def open_transactions(self) -> OpenTransactions | None:
        return await self._call_contained("open_transactions", self.inner.open_transactions)

    async def has_version_index(self) -> bool | None:
        """Whether changes are found by an index, or None where the adapter cannot say; for checks."""
        has_index = getattr(self.inner, "has_version_index", None)
        return None if has_index is None else await self._call_contained("has_version_index", has_index)

    async def count(self, group: str) -> int | None:
        return await self._call_contained("count", lambda: self.inner.count(group))

    async def groups(self) -> list[str] | None:
        return await self._call_contained("groups", self.inner.groups)

    async def ungrouped(self) -> Ungrouped | None:
        return await self._call_contained("ungrouped", self.inner.ungrouped)

    async def repeated(self, group: str) -> Ungrouped | None:
        """Rows beyond the first of their keys in a group, where the adapter can count them; for checks."""
        repeated = getattr(self.inner, "repeated", None)
        return None if repeated is None else await self._call_contained("repeated", lambda: repeated(group))

    async def close(self) -> None:
        await _close_contained(self._containment, self.inner.close)

    async def _call_contained(self, method: str, begin: Callable[[], Awaitable[T]]) -> T:
        with self._containment.contain_call(method):
            return await begin()


class ContainedThirdParty:
    """Implements ``core.ports.ThirdParty`` by an adapter whose errors are contained."""

    def __init__(self, inner: ThirdParty, containment: Containment) -> None:
        self.capabilities = inner.capabilities
        self.inner = inner
        self._containment = containment

    async def create(self, item: Item) -> str:
        made = await self._call_contained("create", lambda: self.inner.create(item), write=True)
        return _usable_id(made)

    async def update(self, item: Item) -> str | None:
        made = await self._call_contained("update", lambda: self.inner.update(item), write=True)
        return None if made is None else _usable_id(made)

    async def delete(self, item: Item) -> None:
        await self._call_contained("delete", lambda: self.inner.delete(item), write=True)

    async def read(self, item: Item) -> Found | None:
        found = await self._call_contained("read", lambda: self.inner.read(item))
        return None if found is None else _storable_found(found)

    async def lookup(self, key: str, group: str | None) -> list[Found]:
        found = await self._call_contained("lookup", lambda: self.inner.lookup(key, group))
        return [_storable_found(each) for each in found]

    async def pages(self, group: str) -> AsyncIterator[list[Found]]:
        async with aclosing(
            _iterate_contained(
                self._containment,
                "pages",
                lambda: self.inner.pages(group),
                lambda page: [_storable_found(each) for each in page],
            )
        ) as pages:
            async for page in pages:
                yield page

    async def count(self, group: str) -> int | None:
        return await self._call_contained("count", lambda: self.inner.count(group))

    async def account(self) -> str | None:
        """The account's identity, where the adapter can say it; see ``core/push/account_check.py``."""
        account = getattr(self.inner, "account", None)
        said = await self._call_contained("account", account) if callable(account) else None
        return None if said is None else storable_text(said)

    async def fill_in(self, item: Item) -> Any:
        """What is known of a record's writes before any of them; None where the adapter does not say it."""
        fill_in = getattr(self.inner, "fill_in", None)
        return None if fill_in is None else await self._call_contained("fill_in", lambda: fill_in(item))

    async def close(self) -> None:
        await _close_contained(self._containment, self.inner.close)

    async def _call_contained(self, method: str, begin: Callable[[], Awaitable[T]], *, write: bool = False) -> T:
        with self._containment.contain_call(method, write=write):
            return await begin()


async def _iterate_contained(
    containment: Containment, method: str, begin: Callable[[], AsyncIterator[T]], checked: Callable[[T], T]
) -> AsyncGenerator[T]:
    """Page by page; an error of the adapter is contained, one of whoever takes the pages is not."""
    with containment.contain_call(method):
        pages = begin()
    try:
        while True:
            with containment.contain_call(method):
                page = await anext(pages, _END)
                if page is _END:
                    return
                page = checked(page)
            yield page
    finally:
        if isinstance(pages, AsyncGenerator):
            with containment.contain_call(method):
                await pages.aclose()


_END: Any = object()


async def _close_contained(containment: Containment, close: Callable[[], Awaitable[None]]) -> None:
    """A system whose connections cannot be ended in good order keeps no other from being closed."""
    try:
        with containment.contain_call("close"):
            await close()
    except CallFailed:
        return


def _usable_id(external_id: str) -> str:
    """The id that a write gave. Raises CallFailed for one that cannot be stored: it could not be addressed again."""
    if (why := text_problem(external_id)) is not None:
        raise CallFailed(Failure.TRANSIENT, f"the id in the response cannot be stored: {why}", unknown=True)
    return external_id


def _storable_found(found: Found) -> Found:
    """A record whose names can be stored. Ours can be, so what cannot is a record of others."""
    names = [found.key or "", found.external_id, found.group or ""]
    if all(map(str.isascii, names)) and "\x00" not in "".join(names):
        return found
    return replace(
        found,
        external_id=storable_text(found.external_id),
        key=None if found.key is None else storable_text(found.key),
        group=None if found.group is None else storable_text(found.group),
    )


def _all_storable(rows: Sequence[PartRead]) -> list[PartRead]:
    return [_make_storable(row) for row in rows]


def _make_storable(row: PartRead) -> PartRead:
    """A row whose key, group or version the database cannot index is unusable, and only that row."""
    if row.problem is not None:
        row = replace(row, problem=storable_text(mask_secrets(row.problem)))
        return row if len(row.key) <= MAX_NAME_BYTES // 4 or _is_indexable(row.key) else replace(row, key=row.key[:100])
    for name, text in (("key", row.key), ("business group", row.group)):
        if text is not None and len(text) > MAX_NAME_BYTES // 4 and not _is_indexable(text):
            shown = row.key if name != "key" else row.key[:100]
            return PartRead(shown, 0, {}, problem=f"the {name} is longer than {MAX_NAME_BYTES} bytes")
    if not -_MAX_VERSION <= row.version <= _MAX_VERSION:
        return PartRead(row.key, 0, {}, problem="the version is larger than 63 bits")
    return row


def _is_indexable(text: str) -> bool:
    return len(text.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES
