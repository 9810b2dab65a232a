"""The guard before the Dagster UI, request by request: which hosts, origins, methods and content types it accepts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import yaml
from dagster_webserver.webserver import DagsterWebserver
from fakes import two_part_config
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Scope
from starlette.websockets import WebSocket

from sync_orchestrator import config as configuration
from sync_orchestrator.config import Config
from sync_orchestrator.errors import ConfigError
from sync_orchestrator.texts.host_names import Host, InvalidHost, Origin
from sync_orchestrator.ui.guard import UiGuard
from sync_orchestrator.ui.serve import find_pages, guard_app

PUBLIC = "dagster.example.org"
INTERNAL = "dagster.internal"
HERE = "127.0.0.1:3000"

JSON = ("content-type", "application/json")
CROSS, SAME_SITE, SAME, NONE = [("sec-fetch-site", site) for site in ("cross-site", "same-site", "same-origin", "none")]
TAB = [("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")]
HTML = ("accept", "text/html,application/xhtml+xml")

Headers = list[tuple[str, str]]


async def _page(request: Any) -> HTMLResponse:
    return HTMLResponse("<p>page</p>", headers={"Content-Security-Policy": "object-src 'none'"})


async def _data(request: Any) -> PlainTextResponse:
    return PlainTextResponse("data")


async def _socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close()


def small_ui() -> Starlette:
    """An application with the kinds of routes that Dagster's has."""
    return Starlette(
        routes=[
            Route("/graphql", _data, methods=["GET", "POST"]),
            WebSocketRoute("/graphql", _socket),
            Route("/logs/{path:path}", _data),
            Route("/download_debug/{run_id:str}", _data),
            Route("/server_info", _data),
            Route("/report_asset_materialization/{asset_key:path}", _data, methods=["POST"]),
            Route("/{path:path}", _page),
            Route("/", _page),
        ]
    )


@pytest.fixture
def guard() -> UiGuard:
    return guard_for(
        ui={"allowed_hosts": [INTERNAL, "10.0.0.7", "ported.example.org:8443"]}, alerts={"ui_url": f"https://{PUBLIC}"}
    )


def guard_for(**settings: Any) -> UiGuard:
    return guard_app(small_ui(), two_part_config(**settings))


def request(guard: UiGuard, method: str, target: str, headers: Headers, scheme: str = "http") -> tuple[int, Any, str]:
    """Sends a request as the server hands it over; returns its status, headers and body."""
    path, _, query = target.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "scheme": scheme,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 3000),
    }
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    found = [(name.decode().lower(), value.decode()) for name, value in sent[0]["headers"]]
    return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:]).decode()


def status_of(guard: UiGuard, method: str, target: str, headers: Headers, scheme: str = "http") -> int:
    return request(guard, method, target, headers, scheme)[0]


def open_websocket(guard: UiGuard, headers: Headers, scheme: str = "ws", *, with_response: bool = True) -> list[Any]:
    """Opens a WebSocket on /graphql; returns what the application sends."""
    scope = {
        "type": "websocket",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "path": "/graphql",
        "raw_path": b"/graphql",
        "query_string": b"",
        "root_path": "",
        "scheme": scheme,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
        "subprotocols": [],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 3000),
        "extensions": {"websocket.http.response": {}} if with_response else {},
    }
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    return sent


# Hosts --------------------------------------------------------------------------------------------------------------

HOSTS = [
    (HERE, 200),
    ("127.0.0.1", 200),
    ("localhost", 200),
    ("localhost:8080", 200),
    ("LocalHost:3000", 200),
    ("localhost.", 200),
    ("localhost.:3000", 200),
    ("[::1]:3000", 200),
    ("[::1]", 200),
    ("[0:0:0:0:0:0:0:1]", 200),
    ("127.0.0.2", 200),
    ("[::ffff:127.0.0.1]", 200),
    (PUBLIC, 200),
    (f"{PUBLIC}.", 200),
    (PUBLIC.upper(), 200),
    (f"{PUBLIC}:443", 200),
    (f"{PUBLIC}:80", 200),
    (INTERNAL, 200),
    (f"{INTERNAL}:8080", 200),
    ("10.0.0.7:3000", 200),
    ("ported.example.org:8443", 200),
    ("ported.example.org", 421),
    ("ported.example.org:443", 421),
    ("evil.example", 421),
    ("evil.example:3000", 421),
    ("10.0.0.8", 421),
    ("[2001:db8::1]", 421),
    ("0.0.0.0", 421),
    ("localhost.evil.example", 421),
    ("evil.localhost", 421),
    (f"{PUBLIC}.evil.example", 421),
    (f"x.{PUBLIC}", 421),
    ("2130706433", 421),
    ("0x7f.0.0.1", 421),
    ("127.1", 421),
    ("0127.0.0.1", 421),
    ("example", 421),
    ("", 400),
    (" ", 400),
    (".", 400),
    ("127.0.0.1:", 400),
    ("127.0.0.1:x", 400),
    ("127.0.0.1:0", 400),
    ("127.0.0.1:99999", 400),
    ("127.0.0.1:3000:80", 400),
    ("127.0.0.1:+80", 400),
    ("::1", 400),
    ("[::1", 400),
    ("[127.0.0.1]", 400),
    ("[::1%25lo]", 400),
    ("user@127.0.0.1", 400),
    ("evil.example@127.0.0.1", 400),
    ("127.0.0.1@evil.example", 400),
    ("http://127.0.0.1", 400),
    ("127.0.0.1/", 400),
    ("127.0.0.1?", 400),
    ("127.0.0.1#", 400),
    ("127.0.0.1\\", 400),
    ("127.0.0.1, evil.example", 400),
    ("127.0.0.1 evil.example", 400),
    ("127.0.0.1\x00", 400),
    ("127.0.0.1\n", 400),
    ("localhost..", 400),
    ("localh\u00f6st", 400),
    ("%6cocalhost", 400),
    ("localhost\u00a0", 400),
    ("a" * 64, 400),
    ("a." * 200 + "a", 400),
]


@pytest.mark.parametrize(("host", "status"), HOSTS, ids=[repr(host)[:40] for host, _ in HOSTS])
def test_a_request_for_another_host_is_refused(guard: UiGuard, host: str, status: int) -> None:
    assert status_of(guard, "GET", "/", [("host", host)]) == status
    assert status_of(guard, "POST", "/graphql", [("host", host), JSON]) == status
    opened = open_websocket(guard, [("host", host)])
    assert opened[0]["type"] == ("websocket.accept" if status == 200 else "websocket.http.response.start")


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("host", HERE), ("host", HERE)],
        [("host", HERE), ("host", "evil.example")],
        [("host", "evil.example"), ("Host", HERE)],
    ],
)
def test_a_request_needs_one_host(guard: UiGuard, headers: Headers) -> None:
    assert status_of(guard, "GET", "/", headers) == 400
    assert status_of(guard, "POST", "/graphql", [*headers, JSON]) == 400


def test_only_the_host_header_counts(guard: UiGuard) -> None:
    """What a proxy, or a client, says in other headers allows nothing."""
    for name in ("x-forwarded-host", "forwarded", "x-original-host", "x-host"):
        assert status_of(guard, "GET", "/", [("host", "evil.example"), (name, HERE)]) == 421
        assert status_of(guard, "GET", "/", [("host", HERE), (name, "evil.example")]) == 200


def test_a_refused_host_is_named_with_the_setting_that_allows_it(guard: UiGuard) -> None:
    status, headers, body = request(guard, "GET", "/", [("host", "Dagster.Example.com:3000")])
    assert status == 421
    assert "'dagster.example.com:3000'" in body
    assert "ui.allowed_hosts in sync.yaml" in body
    assert dict(headers)["content-type"].startswith("text/plain")


# Origins ------------------------------------------------------------------------------------------------------------

ORIGINS = [
    (HERE, f"http://{HERE}", True),
    (HERE, f"HTTP://{HERE}", True),
    ("localhost:3000", "http://localhost:3000", True),
    ("LOCALHOST:3000", "http://localhost:3000", True),
    ("[::1]:3000", "http://[::1]:3000", True),
    ("localhost", "http://localhost", True),
    ("localhost:80", "http://localhost", True),
    (PUBLIC, f"https://{PUBLIC}", True),
    (f"{PUBLIC}:443", f"https://{PUBLIC}", True),
    (HERE, f"https://{PUBLIC}", True),  # a proxy that puts its own address into Host
    (INTERNAL, f"https://{INTERNAL}", True),
    (INTERNAL, f"http://{INTERNAL}", True),
    (f"{INTERNAL}:8080", f"https://{INTERNAL}:8080", True),
    ("localhost:8443", "https://localhost:8443", True),
    (HERE, "http://evil.example", False),
    (HERE, "http://localhost:3000", False),
    (HERE, "http://127.0.0.1", False),
    (HERE, "http://127.0.0.1:3001", False),
    (HERE, "null", False),
    (HERE, "", False),
    (HERE, "*", False),
    (HERE, f"http://{HERE}.evil.example", False),
    (HERE, f"http://evil.example@{HERE}", False),
    (HERE, f"http://{HERE}/", False),
    (HERE, f"http://{HERE}, http://evil.example", False),
    (HERE, f"http://{HERE} http://evil.example", False),
    (HERE, HERE, False),
    (HERE, f"//{HERE}", False),
    (HERE, f"ftp://{HERE}", False),
    (HERE, f"chrome-extension://{HERE}", False),
    (HERE, "file://", False),
    (HERE, f"http://{INTERNAL}", False),
    (INTERNAL, f"http://{HERE}", False),
    ("localhost", "https://localhost", False),
    ("127.0.0.1", "https://127.0.0.1", False),
    (PUBLIC, f"http://{PUBLIC}", False),
    (f"{PUBLIC}:80", f"http://{PUBLIC}", False),
    (PUBLIC, f"https://{PUBLIC}:444", False),
    (PUBLIC, f"https://x.{PUBLIC}", False),
    (INTERNAL, f"https://{INTERNAL}:8443", False),
    (f"{INTERNAL}:443", f"http://{INTERNAL}", False),
]


@pytest.mark.parametrize(("host", "origin", "accepted"), ORIGINS, ids=[f"{row[0]} {row[1]}" for row in ORIGINS])
def test_only_pages_of_the_uis_own_origin_are_served(guard: UiGuard, host: str, origin: str, accepted: bool) -> None:
    headers = [("host", host), ("origin", origin)]
    for method, target in (
        ("POST", "/graphql"),
        ("POST", "/report_asset_materialization/a"),
        ("GET", "/"),
        ("GET", "/logs/a/b/out"),
        ("OPTIONS", "/graphql"),
        ("DELETE", "/"),
    ):
        assert (status_of(guard, method, target, [*headers, JSON]) == 403) is not accepted, (method, target)
    first = open_websocket(guard, headers)[0]
    assert first["type"] == ("websocket.accept" if accepted else "websocket.http.response.start")


def test_two_origins_are_refused_even_if_both_are_good(guard: UiGuard) -> None:
    origin = ("origin", f"http://{HERE}")
    assert status_of(guard, "POST", "/graphql", [("host", HERE), origin, origin, JSON]) == 403


def test_a_proxy_that_does_tls_on_this_machine_may_be_named_as_the_public_url() -> None:
    headers = [("host", "localhost"), ("origin", "https://localhost"), JSON]
    assert status_of(guard_for(), "POST", "/graphql", headers) == 403
    assert status_of(guard_for(), "POST", "/graphql", headers, "https") == 200
    assert status_of(guard_for(alerts={"ui_url": "https://localhost/"}), "POST", "/graphql", headers) == 200


def test_another_program_on_the_default_port_is_another_origin() -> None:
    headers = [("host", "127.0.0.1:3131"), ("origin", "http://127.0.0.1:3000"), JSON]
    for guard in (guard_for(), guard_for(alerts={"ui_url": "http://127.0.0.1:3000"})):
        assert status_of(guard, "POST", "/graphql", headers) == 403


@pytest.mark.parametrize(
    "url", ["", "no url", "https://", "https://[", "ftp://dagster.example.org", "https://user@dagster.example.org"]
)
def test_a_public_url_that_is_none_allows_nothing(url: str) -> None:
    guard = guard_for(alerts={"ui_url": url})
    assert status_of(guard, "GET", "/", [("host", "dagster.example.org")]) == 421
    assert status_of(guard, "GET", "/", [("host", HERE)]) == 200


# Sites --------------------------------------------------------------------------------------------------------------

SITES: list[tuple[str, str, str, Headers, int]] = [
    ("the UI's own data", "POST", "/graphql", [SAME, JSON], 200),
    ("the UI's own files", "GET", "/logs/a/out", [SAME], 200),
    ("the UI's own download", "GET", "/download_debug/1", [SAME, *TAB], 200),
    ("an address that is typed", "GET", "/", [NONE, *TAB], 200),
    ("a page that is typed", "GET", "/runs/1", [NONE, *TAB], 200),
    ("typed, without details", "GET", "/", [NONE], 200),
    ("typed data", "GET", "/logs/a/out", [NONE, *TAB], 403),
    ("a typed download", "GET", "/download_debug/1", [NONE, *TAB], 403),
    ("the playground, typed", "GET", "/graphql", [NONE, *TAB, HTML], 200),
    ("the playground as data", "GET", "/graphql", [NONE, *TAB], 403),
    ("a query that is typed", "GET", "/graphql?query={version}", [NONE, *TAB, HTML], 405),
    ("a mutation that is typed", "GET", "/graphql?query=mutation{x}", [NONE, *TAB], 403),
    ("posted from nowhere", "POST", "/graphql", [NONE, JSON], 403),
    ("a form from nowhere", "POST", "/", [NONE, *TAB, JSON], 403),
    ("a link in a mail", "GET", "/runs/1", [CROSS, *TAB], 200),
    ("back from a login", "GET", "/?code=1", [SAME_SITE, *TAB], 200),
    ("a link to data", "GET", "/logs/a/out", [CROSS, *TAB], 403),
    ("a link to the playground", "GET", "/graphql", [CROSS, *TAB, HTML], 403),
    ("a link to a mutation", "GET", "/graphql?query=mutation{x}", [CROSS, *TAB, HTML], 403),
    ("cross-site without details", "GET", "/", [CROSS], 403),
    ("a frame", "GET", "/", [CROSS, ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")], 403),
    ("an embedded object", "GET", "/", [CROSS, ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "object")], 403),
    (
        "an image",
        "GET",
        "/graphql?query=mutation{x}",
        [CROSS, ("sec-fetch-mode", "no-cors"), ("sec-fetch-dest", "image")],
        403,
    ),
    ("an image of the page", "GET", "/", [SAME_SITE, ("sec-fetch-mode", "no-cors"), ("sec-fetch-dest", "image")], 403),
    ("a form", "POST", "/graphql?query=mutation{x}", [CROSS, *TAB], 403),
    ("JSON of another site", "POST", "/graphql", [CROSS, JSON], 403),
    ("JSON of another port", "POST", "/graphql", [SAME_SITE, JSON], 403),
    ("a link by HEAD", "HEAD", "/", [CROSS, *TAB], 403),
    ("a value of the future", "POST", "/graphql", [("sec-fetch-site", "related"), JSON], 403),
    ("two values", "POST", "/graphql", [SAME, CROSS, JSON], 403),
    ("twice the same", "POST", "/graphql", [SAME, SAME, JSON], 403),
    ("two values in one", "POST", "/graphql", [("sec-fetch-site", "same-origin, cross-site"), JSON], 403),
    ("another case", "POST", "/graphql", [("sec-fetch-site", "Cross-Site"), JSON], 403),
    ("empty", "POST", "/graphql", [("sec-fetch-site", ""), JSON], 403),
    ("same origin, unmanaged Origin", "POST", "/graphql", [SAME, ("origin", "http://evil.example"), JSON], 403),
    ("own Origin, another site", "POST", "/graphql", [CROSS, ("origin", f"http://{HERE}"), JSON], 403),
    ("both good", "POST", "/graphql", [SAME, ("origin", f"http://{HERE}"), JSON], 200),
]


@pytest.mark.parametrize(
    ("method", "target", "headers", "status"), [row[1:] for row in SITES], ids=[row[0] for row in SITES]
)
def test_other_sites_may_only_open_pages(
    guard: UiGuard, method: str, target: str, headers: Headers, status: int
) -> None:
    assert status_of(guard, method, target, [("host", HERE), *headers]) == status


# Requests of no browser, or of an old one ---------------------------------------------------------------------------

CONTENT_TYPES = [
    ("application/json", 200),
    ("Application/JSON", 200),
    ("application/json; charset=utf-8", 200),
    ("application/json;charset=utf-8", 200),
    (" application/json ", 200),
    ("text/plain", 415),
    ("text/plain; application/json", 415),
    ("text/plain;a=application/json", 415),
    ("application/x-www-form-urlencoded", 415),
    ("multipart/form-data; boundary=application/json", 415),
    ("application/graphql", 415),
    ("application/json, text/plain", 415),
    ("text/plain, application/json", 415),
    ("application/jsonp", 415),
    ("application/json/x", 415),
    ("xapplication/json", 415),
    ("", 415),
    (";", 415),
    ("application/json\x0b", 415),
    ("\xa0application/json", 415),
    ("application/cloudevents+json", 415),
]


@pytest.mark.parametrize(("kind", "status"), CONTENT_TYPES, ids=[repr(kind) for kind, _ in CONTENT_TYPES])
def test_what_can_change_something_must_be_json(guard: UiGuard, kind: str, status: int) -> None:
    headers = [("host", HERE), ("content-type", kind)]
    assert status_of(guard, "POST", "/graphql", headers) == status
    assert status_of(guard, "POST", "/graphql?query=mutation{x}", headers) == status
    assert status_of(guard, "POST", "/report_asset_materialization/a", headers) == status


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "post"])
def test_every_method_that_is_not_safe_needs_a_content_type(guard: UiGuard, method: str) -> None:
    for target in ("/graphql", "/report_asset_materialization/a", "/report_asset_check/a", "/"):
        assert status_of(guard, method, target, [("host", HERE)]) == 415
    assert status_of(guard, method, "/graphql", [("host", HERE), JSON, ("content-type", "text/plain")]) == 415


@pytest.mark.parametrize(
    "query", ["query=mutation{x}", "query={version}", "QUERY=x", "query=", "x", "query=%6dutation"]
)
def test_graphql_by_get_is_refused(guard: UiGuard, query: str) -> None:
    for method in ("GET", "HEAD"):
        assert status_of(guard, method, f"/graphql?{query}", [("host", HERE)]) == 405
        assert status_of(guard, method, f"/graphql?{query}", [("host", HERE), SAME]) == 405
        assert status_of(guard, method, f"/graphql?{query}", [("host", HERE), HTML]) == 405


@pytest.mark.parametrize("target", ["/", "/runs", "/server_info", "/logs/a/out", "/graphql"])
def test_clients_that_are_no_browsers_may_read(guard: UiGuard, target: str) -> None:
    assert status_of(guard, "GET", target, [("host", HERE)]) == 200


# WebSockets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "accepted"),
    [
        ([], True),
        ([("origin", f"http://{HERE}")], True),
        ([("origin", f"http://{HERE}"), SAME], True),
        ([SAME], True),
        ([NONE], False),
        ([NONE, *TAB], False),
        ([CROSS], False),
        ([CROSS, *TAB], False),
        ([("origin", f"http://{HERE}"), CROSS], False),
        ([("origin", "http://evil.example")], False),
        ([("origin", f"ws://{HERE}")], False),
        ([("origin", "null")], False),
        ([("origin", "http://127.0.0.1:9000")], False),
    ],
)
@pytest.mark.parametrize("with_response", [True, False])
def test_a_websocket_opens_for_the_uis_own_pages(
    guard: UiGuard, headers: Headers, accepted: bool, with_response: bool
) -> None:
    sent = open_websocket(guard, [("host", HERE), *headers], with_response=with_response)
    if accepted:
        assert sent[0]["type"] == "websocket.accept"
    elif with_response:
        assert [(message["type"], message.get("status")) for message in sent] == [
            ("websocket.http.response.start", 403),
            ("websocket.http.response.body", None),
        ]
    else:
        assert [(message["type"], message["code"]) for message in sent] == [("websocket.close", 1008)]


def test_a_secure_websocket_of_the_public_url_opens(guard: UiGuard) -> None:
    for scheme in ("ws", "wss"):
        sent = open_websocket(guard, [("host", PUBLIC), ("origin", f"https://{PUBLIC}"), SAME], scheme)
        assert sent[0]["type"] == "websocket.accept"


def test_the_life_of_the_application_is_left_alone() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    guard = UiGuard(app, guard_for()._hosts, frozenset(), lambda scope: True)
    asyncio.run(guard({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]


# Responses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "host"), [("/", HERE), ("/graphql", HERE), ("/", "evil.example")])
def test_no_page_may_frame_the_ui(guard: UiGuard, target: str, host: str) -> None:
    _, headers, _ = request(guard, "GET", target, [("host", host)])
    assert ("x-frame-options", "DENY") in headers
    assert ("content-security-policy", "frame-ancestors 'none'") in headers
    assert ("cross-origin-opener-policy", "same-origin") in headers
    assert ("cross-origin-resource-policy", "same-origin") in headers
    assert ("x-content-type-options", "nosniff") in headers
    assert not any(name.startswith("access-control-") for name, _ in headers)


def test_the_content_security_policy_of_dagster_stays(guard: UiGuard) -> None:
    _, headers, _ = request(guard, "GET", "/", [("host", HERE)])
    assert ("content-security-policy", "object-src 'none'") in headers


def test_refusals_are_logged_once_each_and_not_without_end(guard: UiGuard, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(200):
        status_of(guard, "GET", "/", [("host", f"h{number}.example")])
        status_of(guard, "GET", "/", [("host", "h0.example")])
    assert len(caplog.messages) == 50
    assert caplog.messages[0].startswith("421 The UI does not answer for the host 'h0.example'.")


# Dagster's routes ---------------------------------------------------------------------------------------------------

KNOWN_ROUTES = {
    "/server_info",
    "/dagit_info",
    "/graphql",
    "/logs/{path:path}",
    "/notebook",
    "/dagit/notebook",
    "/download_debug/{run_id:str}",
    "/report_asset_materialization/{asset_key:path}",
    "/report_asset_check/{asset_key:path}",
    "/report_asset_observation/{asset_key:path}",
    "/{path:path}",
    "/",
}
WRITING_ROUTES = ["/graphql", "/report_asset_materialization/a", "/report_asset_check/a", "/report_asset_observation/a"]


@pytest.fixture(scope="module")
def dagsters_app() -> Starlette:
    """The real routes of Dagster's webserver, without an instance."""
    return DagsterWebserver(None).create_asgi_app()  # type: ignore[type-var]  # an instance is not needed for routes


def test_every_route_of_dagster_is_known_here(dagsters_app: Starlette) -> None:
    """A new route in a new version of Dagster is to be looked at: does it change anything, is it a page?"""
    files = {
        f"/{name}"
        for name in (
            "404.html",
            "Dagster_world.mp4",
            "_next",
            "csp-header.txt",
            "index.html",
            "manifest.json",
            "robots.txt",
            "vendor",
        )
    }
    paths = {route.path for route in dagsters_app.routes}  # type: ignore[attr-defined]
    assert {path for path in paths if not path.startswith("/favicon")} - files == KNOWN_ROUTES


def test_the_routes_of_dagster_that_write_accept_no_safe_method(dagsters_app: Starlette) -> None:
    methods = {route.path: route.methods for route in dagsters_app.routes if isinstance(route, Route)}
    assert methods["/graphql"] == {"GET", "HEAD", "POST"}  # GET with a query is refused by the guard
    assert {path: found for path, found in methods.items() if path.startswith("/report")} == {
        path: {"POST"} for path in KNOWN_ROUTES if path.startswith("/report")
    }
    assert all(
        found == {"GET", "HEAD"}
        for path, found in methods.items()
        if path != "/graphql" and not path.startswith("/report")
    )


@pytest.mark.parametrize("target", WRITING_ROUTES)
def test_what_writes_in_dagster_is_no_page(dagsters_app: Starlette, target: str) -> None:
    is_page = find_pages(dagsters_app)
    for method in ("GET", "HEAD", "POST"):
        assert not is_page({"type": "http", "method": method, "path": target, "root_path": ""})


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/", True),
        ("/runs/1", True),
        ("/locations/x/jobs/y", True),
        ("/graphql", False),
        ("/logs/a/out", False),
        ("/download_debug/1", False),
        ("/notebook", False),
        ("/server_info", False),
        ("/_next/static/a.js", False),
        ("/index.html", False),
    ],
)
def test_pages_are_known_by_dagsters_routes(dagsters_app: Starlette, target: str, expected: bool) -> None:
    is_page = find_pages(dagsters_app)
    assert is_page({"type": "http", "method": "GET", "path": target, "root_path": ""}) is expected


# Configuration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry",
    [
        "https://dagster.example.org",
        "dagster.example.org/ui",
        "*.example.org",
        "*",
        "",
        "a b",
        "user@host",
        "host:0",
        "host:99999",
        "::1",
        "bücher.example",
    ],
)
def test_an_allowed_host_that_is_none_is_refused_with_a_hint(entry: str) -> None:
    document = two_part_config().model_dump(mode="json", exclude_defaults=True)
    for section in ("ui", "api"):
        text = yaml.safe_dump({**document, section: {"allowed_hosts": [entry]}})
        with pytest.raises(ConfigError, match=rf"{section}\.allowed_hosts.*write a host name or an address"):
            configuration.parse_config(text, "sync.yaml")


def test_allowed_hosts_are_brought_to_one_spelling() -> None:
    config: Config = two_part_config(ui={"allowed_hosts": ["Dagster.Example.ORG.", "[0:0::1]:80", "10.0.0.7"]})
    assert config.ui.allowed_hosts == ["dagster.example.org", "[::1]:80", "10.0.0.7"]


def test_hosts_and_origins_are_written_as_they_are_read() -> None:
    for text in ("a.example", "a.example:1", "[::1]", "[::1]:65535", "127.0.0.1:3000"):
        assert str(Host.parse(text)) == text
    assert Origin.parse("http://a.example:80") == Origin("http", "a.example", None)
    assert Origin.of_url("https://A.example:8443/x?y#z") == Origin("https", "a.example", 8443)
    with pytest.raises(InvalidHost):
        Host.parse("a" * 300)
