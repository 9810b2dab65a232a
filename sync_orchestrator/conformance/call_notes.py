"""Notes which call of an adapter failed, so that a hint points to that call and one cause is reported once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar, cast

from sync_orchestrator.errors import CallFailed

P = TypeVar("P")

_BY_PAGES = ("pages", "keys", "changes")
_CALLS = ("create", "update", "delete", "read", "read_many", "lookup", "count", "groups", "ungrouped", "account")

FailedCalls = list[tuple[CallFailed, str]]
"""Failures with the methods that raised them."""


def note_failures(adapter: P, failed: FailedCalls) -> P:
    """The same adapter; each of its failures goes to ``failed`` with the name of the method."""
    return cast(P, _Noting(adapter, failed))


def call_of(failure: CallFailed, failed: FailedCalls) -> str | None:
    """The method that raised a failure; None for one of another origin."""
    return next((method for known, method in failed if known is failure), None)


class _Noting:
    def __init__(self, adapter: object, failed: FailedCalls) -> None:
        self._adapter = adapter
        self._failed = failed

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._adapter, name)
        if name in _BY_PAGES:
            return partial(self._note_pages, name, found)
        return partial(self._note_call, name, found) if name in _CALLS else found

    async def _note_call(self, name: str, call: Callable[..., Awaitable[object]], *arguments: object) -> object:
        try:
            return await call(*arguments)
        except CallFailed as failure:
            self._failed.append((failure, name))
            raise

    async def _note_pages(
        self, name: str, call: Callable[..., AsyncGenerator[Any]], *arguments: object
    ) -> AsyncGenerator[Any]:
        try:
            async with aclosing(call(*arguments)) as pages:
                async for page in pages:
                    yield page
        except CallFailed as failure:
            self._failed.append((failure, name))
            raise
