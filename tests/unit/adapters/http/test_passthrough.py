"""Calls that are passed through keep nothing of one caller for the next, and carry nothing that nobody sent."""

from __future__ import annotations

from http_server import Server
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sync_orchestrator.adapters.http.passthrough import Upstream


async def test_cookies_of_one_caller_do_not_go_with_the_next(server: Server) -> None:
    """By a host name: cookies of bare addresses are not kept anyway."""
    carried: list[dict[str, str]] = []

    async def handler(request: Request) -> Response:
        carried.append(dict(request.headers))
        answer = JSONResponse({})
        answer.set_cookie("session", f"of {len(carried)}")
        return answer

    server.handler = handler
    upstream = Upstream(server.url.replace("127.0.0.1", "localhost"), {"X-Key": "k"}, 5, {"x-who"})
    answers = [await upstream.pass_request("GET", "/x", [(b"X-Who", who.encode())], b"", 1000) for who in "ab"]
    await upstream.close()
    assert all(any(name == b"set-cookie" for name, _ in answer.headers) for answer in answers)
    assert [sorted(headers.keys() - {"host", "accept-encoding"}) for headers in carried] == [["x-key", "x-who"]] * 2
