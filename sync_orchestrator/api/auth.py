"""Who calls, by an API key in the request."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import TypeVar

from starlette.requests import Request

from sync_orchestrator.api.database import ApiDatabase
from sync_orchestrator.api.problems import Refused
from sync_orchestrator.core.service.api_keys import Caller, find_caller_by_key, is_key_shaped

K = TypeVar("K")
V = TypeVar("V")

_REMEMBERED_SECONDS = 5.0
_MAX_GOOD = 10_000
_MAX_REFUSED = 1_000
_MAX_ADDRESSES = 10_000
_UNKNOWN_PER_SECOND = 10.0
_UNKNOWN_BURST = 100
_UNKNOWN_AT_ONCE = 4


class Access:
    """Tells callers by their keys. A key that is revoked is good for five more seconds at most.

    Keys are remembered by their hashes. What does not have the shape of a key is refused without a look at the
    database, and so are keys that were never good, where one address shows too many of them.
    """

    def __init__(self, database: ApiDatabase) -> None:
        self._database = database
        self._good: OrderedDict[bytes, tuple[float, Caller]] = OrderedDict()
        self._refused: OrderedDict[bytes, float] = OrderedDict()
        self._looking: dict[bytes, asyncio.Task[Caller | None]] = {}
        self._unknown = _UnknownKeys()
        self._at_once = asyncio.Semaphore(_UNKNOWN_AT_ONCE)

    async def identify_caller(self, request: Request) -> Caller:
        """Whose key the request shows, in ``Authorization: Bearer …`` or ``X-API-Key``. Raises Refused (401, 429)."""
        return await self.caller_by(request.headers, "" if request.client is None else request.client.host)

    async def caller_by(self, headers: Mapping[str, str], address: str) -> Caller:
        """The same by the headers, and the address that they came from."""
        key = _read_key(headers)
        caller = await self._caller_of(key, address) if key is not None and is_key_shaped(key) else None
        if caller is None:
            detail = "This key is not good." if key else "An API key is needed: Authorization: Bearer <key>."
            raise Refused(401, detail, {"WWW-Authenticate": "Bearer"})
        return caller

    async def authorise(self, request: Request, scope: str) -> Caller:
        """The caller, if its key covers the scope. Raises Refused (401, 403, 429)."""
        caller = await self.identify_caller(request)
        require_scope(caller, scope)
        return caller

    async def _caller_of(self, key: str, address: str) -> Caller | None:
        now, known_as = time.monotonic(), hashlib.sha256(key.encode()).digest()
        good = self._good.get(known_as)
        if good is not None and good[0] > now:
            return good[1]
        if self._refused.get(known_as, 0.0) > now:
            return None
        looking = self._looking.get(known_as)
        if looking is None:  # one look for all who show the same key at the same time
            if good is None:  # one that was good lately is let in, however many unknown ones come
                self._unknown.count_key(address, now)
            looking = asyncio.create_task(self._look_up_within_limits(key, known_as, address, is_new=good is None))
            self._looking[known_as] = looking
            looking.add_done_callback(lambda done: self._end_lookup(known_as, done))
        return await asyncio.shield(looking)

    async def _look_up_within_limits(self, key: str, known_as: bytes, address: str, *, is_new: bool) -> Caller | None:
        caller = None
        try:
            if is_new:
                async with self._at_once:
                    caller = await self._look_up(key)
            else:
                caller = await self._look_up(key)
        except Refused:
            if is_new:
                self._unknown.give_back(address)  # the database is at fault
            raise
        if is_new and caller is not None:
            self._unknown.give_back(address)
        self._remember_caller(known_as, time.monotonic() + _REMEMBERED_SECONDS, caller)
        return caller

    def _end_lookup(self, known_as: bytes, done: asyncio.Task[Caller | None]) -> None:
        self._looking.pop(known_as, None)
        if not done.cancelled():
            done.exception()  # those who asked may have gone away

    def _remember_caller(self, known_as: bytes, until: float, caller: Caller | None) -> None:
        if caller is None:
            self._good.pop(known_as, None)
            _put_bounded(self._refused, known_as, until, _MAX_REFUSED)
        else:
            self._refused.pop(known_as, None)
            _put_bounded(self._good, known_as, (until, caller), _MAX_GOOD)

    async def _look_up(self, key: str) -> Caller | None:
        def find_caller() -> Caller | None:
            with self._database.engine.begin() as connection:
                return find_caller_by_key(connection, key)

        return await self._database.run_in_thread(find_caller)


def require_scope(caller: Caller, scope: str) -> None:
    """Raises Refused (403) where the caller's key does not cover the scope."""
    if not caller.has_scope(scope):
        raise Refused(403, "This key does not cover what is asked.")


def require_any_events(caller: Caller) -> None:
    """Raises Refused (403) where the caller's key covers the events of no source system at all."""
    if not caller.may_record():
        raise Refused(403, "This key does not cover what is asked.")


class _UnknownKeys:
    """How many keys each address has shown that were not known to be good (GCRA); a table of bounded size."""

    def __init__(self) -> None:
        self._paid_until: OrderedDict[str, float] = OrderedDict()

    def count_key(self, address: str, now: float) -> None:
        """Counts one. Raises Refused (429) where there were too many."""
        network = _find_network(address)
        owed = max(0.0, self._paid_until.get(network, 0.0) - now)
        wait = owed - (_UNKNOWN_BURST - 1) / _UNKNOWN_PER_SECOND
        if wait > 0:
            raise Refused(
                429,
                "Too many unknown keys came from this address; send it again later.",
                {"Retry-After": str(math.ceil(wait))},
            )
        _put_bounded(self._paid_until, network, now + owed + 1 / _UNKNOWN_PER_SECOND, _MAX_ADDRESSES)

    def give_back(self, address: str) -> None:
        """Takes one off the count: the key was good, or nobody could say."""
        network = _find_network(address)
        if network in self._paid_until:
            self._paid_until[network] -= 1 / _UNKNOWN_PER_SECOND


def _put_bounded(table: OrderedDict[K, V], name: K, value: V, limit: int) -> None:
    """Puts a value at the end of a table, and drops the oldest one of a table that is full."""
    table[name] = value
    table.move_to_end(name)
    if len(table) > limit:
        table.popitem(last=False)


def _find_network(address: str) -> str:
    """An IPv4 address, or the /64 of an IPv6 address, which is what one host has of those."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if found.version == 4:
        return str(found)
    return str(ipaddress.ip_network((found, 64), strict=False))


def _read_key(headers: Mapping[str, str]) -> str | None:
    """The key of this service. A caller of a canary route may need its bearer token for legacy beside it."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    bearer, key = token.strip() if kind.lower() == "bearer" else None, headers.get("x-api-key")
    return key if bearer is None or (key is not None and not bearer.startswith("sync_")) else bearer
