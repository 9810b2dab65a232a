"""How the ERP misbehaves: latency, outages, 429, 5xx before or after the work, and answers that are lost after it.

Only calls below ``/api/`` are touched.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_CONNECTION = "demo.connection"


class FaultOrder(BaseModel):
    """What is to go wrong from now on; what an order leaves out stays as it was.

    ``errors`` and ``lost`` are shares of calls: answered with a 500, or cut off after the work. ``errors_after`` is the
    share of the 500s that come after the work. ``outage``: seconds from now, 0 to end one; ``limit``: calls a second.
    """

    model_config = ConfigDict(extra="forbid")

    errors: float = Field(default=0.0, ge=0, le=1)
    errors_after: float = Field(default=0.3, ge=0, le=1)
    lost: float = Field(default=0.0, ge=0, le=1)
    outage: float = Field(default=0.0, ge=0)
    outage_answer: Literal["503", "cut"] = "503"
    limit: int | None = Field(default=800, ge=0)
    latency: float = Field(default=0.02, ge=0)
    seed: int = 11


class Faults:
    """The faults in force, and how often each has struck."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """No faults, and nothing counted."""
        self.order = FaultOrder()
        self.calls: Counter[str] = Counter()
        self.struck: dict[str, Counter[str]] = {}
        self._random = random.Random(self.order.seed)
        self._outage_until = 0.0
        self._second = self._in_second = 0

    def set(self, order: FaultOrder) -> None:
        """Puts an order in force."""
        told = order.model_dump(exclude_unset=True)
        self.order = self.order.model_copy(update=told)
        if "outage" in told:
            self._outage_until = time.monotonic() + order.outage
        if "seed" in told:
            self._random = random.Random(order.seed)

    def next_fault(self) -> str | None:
        """What goes wrong with the call that comes now."""
        order = self.order
        if time.monotonic() < self._outage_until:
            return "outage"
        if self._over_limit():
            return "throttled"
        if self._random.random() < order.errors:
            return "error_after" if self._random.random() < order.errors_after else "error_before"
        return "answer_lost" if self._random.random() < order.lost else None

    def note(self, fault: str, method: str) -> None:
        self.struck.setdefault(fault, Counter())[method] += 1

    def shown(self) -> dict[str, Any]:
        """The faults in force; ``outage`` is what is left of it."""
        left = max(0.0, self._outage_until - time.monotonic())
        return self.order.model_copy(update={"outage": left}).model_dump()

    def _over_limit(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._in_second = second, 0
        self._in_second += 1
        return self.order.limit is not None and self._in_second > self.order.limit


class Misbehaving:
    """Middleware that lets the faults strike. Needs ``CuttableProtocol`` where connections are to be cut."""

    def __init__(self, app: ASGIApp, faults: Faults) -> None:
        self._app = app
        self._faults = faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/api/"):
            await self._app(scope, receive, send)
            return
        faults, method = self._faults, scope["method"]
        faults.calls[method] += 1
        await asyncio.sleep(faults.order.latency)
        fault = faults.next_fault()
        if fault is None:
            await self._app(scope, receive, send)
            return
        faults.note(fault, method)
        if fault in ("error_after", "answer_lost"):
            await self._app(scope, receive, _swallow)
        if fault == "answer_lost" or (fault == "outage" and faults.order.outage_answer == "cut"):
            await _cut(scope, receive)
            return
        status = {"outage": 503, "throttled": 429}.get(fault, 500)
        headers = {"Retry-After": "1"} if fault == "throttled" else {}
        await JSONResponse({"fault": fault}, status, headers=headers)(scope, receive, send)


class CuttableProtocol(HttpToolsProtocol):
    """uvicorn's HTTP, with the connection in each request's scope: ASGI itself has no way to hang up."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {_CONNECTION: {"abort": self.transport.abort}}


async def _cut(scope: Scope, receive: Receive) -> None:
    abort: Callable[[], None] = scope["extensions"][_CONNECTION]["abort"]
    abort()
    while (await receive())["type"] != "http.disconnect":
        pass


async def _swallow(message: Message) -> None:
    return None
