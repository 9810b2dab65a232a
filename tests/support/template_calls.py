"""Calls whose parts are templates, and what a server sees of them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from http_server import Server
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config.calls import ReadCallSettings, WriteCallSettings

VALUES: dict[str, Any] = {
    "key": "a/b c",
    "id": 7,
    "group": "Ünï & co",
    "none": None,
    "yes": True,
    "ratio": 0.5,
    "ids": ["x", "y z"],
    "payload": {"name": 'O\'Neil "x"', "price": 9.9, "tags": ["a", None], "items": 3, "nothing": None},
}


AWKWARD_IDS = [
    "a/b",
    "a b",
    "a+b",
    "a%2Fb",
    "%",
    "100%",
    "a?b=c&d",
    "a#b",
    "Größe/Ü",
    "日本",
    "𝄞",
    "O'Neil",
    "''",
    "a(b)",
    "a~b",
    "a;b,c",
    "~~",
    "a\\b",
    "{{ id }}",
    'a"b',
    "<b>",
    "a:b@c",
    "...",
    ".a",
    "a\tb",
    "a\nb",
    "*",
    "!$&'()*+,;=:@",
    "é",
]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


ids = st.one_of(texts.filter(bool), st.sampled_from(AWKWARD_IDS)).filter(lambda text: text not in (".", ".."))


def odata_decoded(text: str) -> str:
    """A text literal as OData's grammar reads it: quotes around, each quote within written twice."""
    assert re.fullmatch(r"'(?:[^']|'')*'", text, re.DOTALL)
    return text[1:-1].replace("''", "'")


@dataclass
class Seen:
    """Calls to a real server, and what arrived there of the last."""

    server: Server
    http: HttpClient
    runner: asyncio.Runner
    raw_path: str = ""
    raw_query: bytes = b""
    method: str = ""
    query: list[tuple[str, str]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def __call__(self, values: dict[str, Any], **call: Any) -> Seen:
        """Makes one call with these values; the payload goes where the call has no body."""
        self.server.handler = self._handle
        kind = ReadCallSettings if call.get("method") == "GET" else WriteCallSettings
        sent = self.http.send(
            kind.model_validate({"path": "/x", **call}),
            values,
            write=kind is WriteCallSettings,
            body=values.get("payload"),
        )
        self.runner.run(sent)
        return self

    async def _handle(self, request: Request) -> Response:
        self.raw_path, self.method = request.scope["raw_path"].decode(), request.method
        self.raw_query = request.scope["query_string"]
        self.query, self.headers = request.query_params.multi_items(), dict(request.headers)
        self.body = await request.body()
        return JSONResponse({})


@pytest.fixture(scope="module")
def call(one_server: Server) -> Iterator[Seen]:
    with asyncio.Runner() as runner:
        http = HttpClient(HttpSettings(base_url=one_server.url, timeout=5))
        yield Seen(one_server, http, runner)
        runner.run(http.close())
