"""The API service's calls that need no key answer under allowed hosts only; those with a key, under any."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from api_client import InProcess, key_for, service
from fakes import two_part_config
from sqlalchemy import Engine
from starlette.routing import Route

from sync_orchestrator.api.host_check import OPEN_PATHS

HOSTS = [
    ("127.0.0.1", 200),
    ("127.0.0.1:8700", 200),
    ("localhost", 200),
    ("LOCALHOST.:8700", 200),
    ("[::1]:8700", 200),
    ("10.1.2.3:8700", 200),
    ("[fd00::7]", 200),
    ("sync.example.org", 200),
    ("Sync.Example.org:8700", 200),
    ("sync.internal:8700", 200),
    ("sync.internal", 421),
    ("sync.internal:8701", 421),
    ("evil.example", 421),
    ("evil.example:8700", 421),
    ("localhost.evil.example", 421),
    ("2130706433", 421),
    ("", 400),
    ("a@127.0.0.1", 400),
    ("127.0.0.1:x", 400),
    ("127.0.0.1, evil.example", 400),
    ("::1", 400),
]


def client_without_key(engine: Engine) -> httpx.AsyncClient:
    config = two_part_config(api={"allowed_hosts": ["sync.example.org", "sync.internal:8700"]})
    return httpx.AsyncClient(transport=InProcess(service(engine, config)), base_url="http://127.0.0.1:8700")


@pytest.mark.parametrize(("host", "status"), HOSTS, ids=[repr(host) for host, _ in HOSTS])
async def test_an_open_path_answers_under_allowed_hosts_only(engine: Engine, host: str, status: int) -> None:
    async with client_without_key(engine) as client:
        for path in sorted(OPEN_PATHS):
            response = await client.get(path, headers={"Host": host})
            assert response.status_code == status, path
            if status != 200:
                assert response.headers["content-type"] == "application/problem+json"
                assert "evil" not in response.text, "a refusal repeats nothing of the request"


async def test_several_hosts_are_refused(engine: Engine) -> None:
    async with client_without_key(engine) as client:
        response = await client.get("/healthz", headers=[("Host", "127.0.0.1"), ("Host", "evil.example")])
        assert response.status_code == 400


async def test_a_load_balancer_that_names_no_host_is_served(engine: Engine) -> None:
    """HTTP/1.0 needs no Host, and no browser leaves it out."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    app = service(engine, two_part_config())
    await app(
        {
            "type": "http",
            "http_version": "1.0",
            "method": "GET",
            "path": "/healthz",
            "raw_path": b"/healthz",
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": [],
        },
        receive,
        send,
    )
    await app.state.intake.close()
    assert sent[0]["status"] == 200


async def test_calls_with_a_key_need_no_configured_host(engine: Engine) -> None:
    async with client_without_key(engine) as client:
        response = await client.get(
            "/metrics", headers={"Host": "sync.other.example", "Authorization": f"Bearer {key_for(engine, 'metrics')}"}
        )
        assert response.status_code == 200


async def test_every_path_that_answers_without_a_key_checks_the_host(engine: Engine) -> None:
    async with client_without_key(engine) as client:
        app = client._transport.app  # type: ignore[attr-defined]
        routes = [route for route in app.routes if isinstance(route, Route)]
        assert len(routes) > len(OPEN_PATHS)
        for route in routes:
            for method in (route.methods or {"GET"}) - {"HEAD"}:
                response = await client.request(method, route.path, headers={"Host": "evil.example"})
                assert response.status_code >= 400, (method, route.path)
