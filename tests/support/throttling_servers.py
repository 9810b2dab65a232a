"""A server that asks for waiting, and a clock that shows how long a client slept."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from http_server import Server
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.config import Config, ReadCallSettings
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.core.systems.rate_limit import HoldOff

READ = ReadCallSettings(path="/things")


def answering(server: Server, *answers: Response) -> None:
    """These, and good ones ever after."""
    left = list(answers)

    async def handler(request: Request) -> Response:
        return left.pop(0) if left else JSONResponse({"ok": True})

    server.handler = handler


class Slept:
    """Waits of the code under test pass at once, and are remembered; the server's go on as they are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waits: list[float] = []
        self.offset = 0.0
        sleep, ours = asyncio.sleep, threading.get_ident()

        async def slept(seconds: float, *rest: Any) -> None:
            if threading.get_ident() != ours or not seconds:
                await sleep(seconds)
            else:
                self.waits.append(seconds)
                self.offset += seconds

        monkeypatch.setattr("asyncio.sleep", slept)
        for module in (
            "sync_orchestrator.adapters.http.call_room",
            "sync_orchestrator.adapters.http.client",
            "sync_orchestrator.core.systems.rate_limit",
            "tenacity",
        ):
            monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=self.now, sleep=time.sleep))

    def now(self) -> float:
        return time.monotonic() + self.offset

    @property
    def whole(self) -> list[int]:
        return [round(seconds) for seconds in self.waits]


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> Slept:
    return Slept(monkeypatch)


def client(server: Server, hold_off: HoldOff | None = None, **settings: Any) -> HttpClient:
    return HttpClient(
        HttpSettings.model_validate({"base_url": server.url, "timeout": 10, **settings}), hold_off=hold_off
    )


CONFIG = Config.model_validate(
    {
        "sources": {"shop": {"base_url": "http://127.0.0.1:1"}},
        "third_parties": {"erp": {"base_url": "http://127.0.0.1:1"}},
        "entities": {
            "thing": {
                "owner": "shop",
                "parts": {"shop": {"key": "id", "group": "g", "version": {"path": "v"}, "list": {"path": "/x"}}},
                "mapping": {"code": "key"},
                "third_party": {
                    "system": "erp",
                    "ids": "ours",
                    "key_field": "code",
                    "update": {"method": "PUT", "path": "/{{ key }}"},
                    "delete": {"path": "/{{ key }}"},
                    "read": {"path": "/{{ key }}"},
                    "list": {"path": "/x"},
                },
            }
        },
    }
)
