"""The Dagster UI as `up` starts it, attacked over real connections and by real pages in a browser."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
from browser import Browser, Page, find_browser
from http_server import Server
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from ui_process import PATIENCE, UiProcess, launch_run
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

pytestmark = pytest.mark.slow

EVIL = "evil.example"
PUBLIC = "dagster.example.org"


@pytest.fixture
def start_ui(database_url: str) -> Iterator[Callable[..., UiProcess]]:
    """Starts UIs on the test's database, and ends them."""
    started: list[UiProcess] = []
    folder = Path(tempfile.mkdtemp(prefix="sync-ui-"))

    def start(**options: Any) -> UiProcess:
        started.append(UiProcess(folder, database_url, **options))
        return started[-1]

    yield start
    for ui in started:
        ui.stop()
    shutil.rmtree(folder)


# Connections --------------------------------------------------------------------------------------------------------


def answer(port: int, head: str) -> int:
    """The status of the response to a request head, as it is."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n")
        return int(connection.recv(4096).split()[1])


def websocket_status(ui: UiProcess, origin: str | None, host: str = "127.0.0.1") -> int:
    """The status of a WebSocket handshake: 101 when it is opened."""
    try:
        with (
            socket.create_connection(("127.0.0.1", ui.port), timeout=PATIENCE) as connection,
            connect(
                f"ws://{host}:{ui.port}/graphql",
                origin=None if origin is None else Origin(origin),
                subprotocols=[Subprotocol("graphql-ws")],
                sock=connection,
            ) as opened,
        ):
            opened.send(json.dumps({"type": "connection_init", "payload": {}}))
            assert json.loads(opened.recv(timeout=PATIENCE)) == {"type": "connection_ack"}
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


def test_the_running_ui_refuses_what_is_not_its_own(start_ui: Callable[..., UiProcess]) -> None:
    ui = start_ui(alerts={"ui_url": f"https://{PUBLIC}"})
    here, query = f"127.0.0.1:{ui.port}", quote(launch_run("direct"))
    heads = [
        (f"GET / HTTP/1.1\nHost: {here}", 200),
        (f"GET / HTTP/1.1\nHost: {PUBLIC}", 200),
        (f"GET / HTTP/1.1\nhOST:\t{here.upper()}", 200),
        (f"GET http://{here}/ HTTP/1.1\nHost: {EVIL}", 421),
        (f"GET http://{EVIL}/ HTTP/1.1\nHost: {EVIL}", 421),
        (f"GET / HTTP/1.1\nHost: {EVIL}", 421),
        ("GET / HTTP/1.0", 400),
        ("GET / HTTP/1.1", 400),
        (f"GET / HTTP/1.1\nHost: {here}\nHost: {EVIL}", 400),
        (f"GET / HTTP/1.1\nHost: a@{here}", 400),
        (f"GET /graphql?query={query} HTTP/1.1\nHost: {here}", 405),
        (f"GET /%67raphql?query={query} HTTP/1.1\nHost: {here}", 405),
        (f"GET /graphql?query={query} HTTP/1.1\nHost: {here}\nSec-Fetch-Site: cross-site", 403),
        (f"GET /graphql?query={query} HTTP/1.1\nHost: {EVIL}\nOrigin: http://{EVIL}\nSec-Fetch-Site: cross-site", 421),
        (f"POST /graphql?query={query} HTTP/1.1\nHost: {here}\nContent-Length: 0", 415),
        (f"POST /graphql?query={query} HTTP/1.1\nHost: {here}\nContent-Length: 0\nOrigin: http://{EVIL}", 403),
        (f"POST /report_asset_materialization/item/mirror HTTP/1.1\nHost: {here}\nContent-Length: 0", 415),
        (f"POST /report_asset_check/item/mirror HTTP/1.1\nHost: {here}\nContent-Length: 0", 415),
        (f"POST /report_asset_observation/item/mirror HTTP/1.1\nHost: {here}\nContent-Length: 0", 415),
        (f"GET /logs/a/out HTTP/1.1\nHost: {here}\nSec-Fetch-Site: cross-site", 403),
        (f"GET /download_debug/1 HTTP/1.1\nHost: {here}\nSec-Fetch-Site: same-site", 403),
    ]
    assert [(head, answer(ui.port, head)) for head, _ in heads] == heads
    with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
        for kind in ("text/plain; application/json", "application/graphql", "text/plain"):
            posted = client.post(
                f"{ui.url}/graphql", content=json.dumps({"query": launch_run("posted")}), headers={"Content-Type": kind}
            )
            assert posted.status_code == 415, kind
        page = client.get(ui.url)
        assert page.headers["x-frame-options"] == "DENY"
        assert "script-src" in page.headers.get_list("content-security-policy")[0]
        assert page.headers.get_list("content-security-policy")[1] == "frame-ancestors 'none'"
    assert [
        websocket_status(ui, origin)
        for origin in (
            None,
            f"http://{here}",
            f"https://{PUBLIC}",
            f"http://{EVIL}",
            "null",
            f"http://127.0.0.1:{ui.port + 1}",
        )
    ] == [101, 101, 101, 403, 403, 403]
    assert websocket_status(ui, f"http://{EVIL}", EVIL) == 421
    assert ui.attacks() == set()
    assert ui.materializations() == 0
    assert ui.sensor()[1] == "RUNNING"
    assert "421 The UI does not answer for the host 'evil.example'." in ui.log.read_text()
    ui.program.process.terminate()
    assert ui.program.process.wait(PATIENCE) == 0
    assert "Traceback" not in ui.log.read_text()


# Pages --------------------------------------------------------------------------------------------------------------

HOSTILE_PAGE = """<!doctype html><title>prizes</title><body><script>
const target = TARGET, page = PAGE, launch = LAUNCH, stop = STOP;
const byGet = query => `${target}/graphql?query=${encodeURIComponent(query)}`;
const ended = (element, start) => new Promise(resolve => {
  element.onload = element.onerror = resolve;
  start(element);
});
const image = query => ended(new Image(), image => { image.src = byGet(query); });
const script = query => ended(document.createElement("script"), script => {
  script.src = byGet(query);
  document.body.append(script);
});
const form = (action, enctype, fields) => new Promise(resolve => {
  const frame = document.createElement("iframe");
  frame.name = `frame${Math.random()}`;
  document.body.append(frame);
  const form = document.createElement("form");
  Object.assign(form, {action, method: "POST", enctype, target: frame.name});
  for (const [name, value] of Object.entries(fields)) {
    form.append(Object.assign(document.createElement("input"), {name, value}));
  }
  document.body.append(form);
  frame.onload = resolve;
  form.submit();
});
const post = (type, query, mode) => fetch(`${target}/graphql`, {
  method: "POST", mode, credentials: "include", headers: {"Content-Type": type}, body: JSON.stringify({query})});
const frame = () => ended(document.createElement("iframe"), frame => {
  frame.src = target;
  document.body.append(frame);
});
const websocket = query => new Promise(resolve => {
  const socket = new WebSocket(`${target.replace("http", "ws")}/graphql`, "graphql-ws");
  socket.onclose = socket.onerror = () => resolve("refused");
  socket.onopen = () => {
    socket.send(JSON.stringify({type: "connection_init", payload: {}}));
    socket.send(JSON.stringify({type: "start", id: "1", payload: {query}}));
  };
  socket.onmessage = () => resolve("opened");
});
const attacks = {
  image: () => image(launch("image")),
  stop: () => image(stop),
  script: () => script(launch("script")),
  get: () => fetch(byGet(launch("get")), {mode: "no-cors"}),
  form: () => form(byGet(launch("form")), "application/x-www-form-urlencoded", {}),
  plain_form: () => form(`${target}/graphql`, "text/plain",
                         {[JSON.stringify({query: launch("plain_form"), x: ""}).slice(0, -2)]: '"}'}),
  two_types: () => post("text/plain; application/json", launch("two_types"), "no-cors"),
  json: () => post("application/json", launch("json"), "cors"),
  beacon: async () => navigator.sendBeacon(byGet(launch("beacon")), "x"),
  report: () => fetch(`${target}/report_asset_materialization/item/mirror`, {method: "POST", mode: "no-cors"}),
  read: async () => (await fetch(`${target}/graphql?query={version}`)).json(),
  frame: frame,
  websocket: () => websocket("subscription {locationStateChangeEvents {__typename}}"),
};
async function attack() {
  const results = {};
  for (const [name, start] of Object.entries(attacks)) {
    results[name] = await start().then(value => typeof value === "string" ? value : "sent", error => "refused");
  }
  return results;
}
</script>"""


@pytest.fixture(scope="module")
def one_browser() -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium here: install the package chromium")
    browser = Browser(program, (EVIL,))
    yield browser
    browser.stop()


@pytest.fixture
def browser(one_browser: Browser) -> Iterator[Browser]:
    yield one_browser
    one_browser.close_pages()


def serve_hostile_page(server: Server, ui: UiProcess) -> None:
    """Has the server return a page that attacks the UI by every way that browsers offer."""
    text = (
        HOSTILE_PAGE.replace("TARGET", json.dumps(ui.url))
        .replace("PAGE", "location.hostname")
        .replace("LAUNCH", "name => " + json.dumps(launch_run("NAME")) + '.replace("NAME", `${name} of ${page}`)')
        .replace("STOP", json.dumps(f'mutation {{stopSensor(id: "{ui.sensor()[0]}") {{__typename}}}}'))
    )

    async def handler(request: Request) -> Response:
        return HTMLResponse(text)

    server.handler = handler


def attack_from(page: Page, server: Server, host: str) -> dict[str, str]:
    """Opens the hostile page under a host name and runs its attacks: what the page sees of each."""
    page.open(f"http://{host}:{urlsplit(server.url).port}/")
    found: dict[str, str] = page.evaluate("attack()")
    return found


def rebind(page: Page, ui: UiProcess) -> str:
    """Attacks as a page whose own name leads to the UI by now, so that the browser takes the UI for its own server."""
    page.open(f"http://{EVIL}:{ui.port}/")
    assert page.evaluate("location.origin") == f"http://{EVIL}:{ui.port}"
    return str(page.evaluate(_POST % json.dumps(launch_run("rebound"))))


_POST = """fetch("/graphql", {method: "POST", headers: {"Content-Type": "application/json"},
    body: JSON.stringify({query: %s})}).then(response => response.text())"""


def test_no_page_of_another_origin_reaches_the_ui(
    start_ui: Callable[..., UiProcess], browser: Browser, server: Server
) -> None:
    """The other names are another site, the other port of 127.0.0.1 is the same site."""
    ui = start_ui()
    serve_hostile_page(server, ui)
    for host in (EVIL, "localhost", "127.0.0.1"):
        page = browser.open_page()
        seen = attack_from(page, server, host)
        assert {"json", "read", "websocket"} <= {name for name, result in seen.items() if result == "refused"}, seen
        shown = browser.frames(page)
        assert len(shown) >= 3, "the page's own frames are not found"
        assert not any(url.startswith(ui.url) for url in shown), shown
    assert "UI does not answer for the host" in rebind(browser.open_page(), ui)
    assert ui.attacks() == set()
    assert ui.materializations() == 0
    assert ui.sensor()[1] == "RUNNING"


def test_the_uis_own_page_works_in_a_browser(
    start_ui: Callable[..., UiProcess], browser: Browser, server: Server
) -> None:
    ui = start_ui()
    page = browser.open_page()
    page.open(f"{ui.url}/automation")
    page.wait_until("document.body.innerText.includes('change_events')")
    assert page.wait_for("Network.webSocketHandshakeResponseReceived")["params"]["response"]["status"] == 101
    page.wait_for("Network.webSocketFrameReceived")
    statuses = {
        event["params"]["response"]["status"] for event in page.events if event["method"] == "Network.responseReceived"
    }
    assert statuses <= {200, 304}, statuses
    assert "LaunchRunSuccess" in page.evaluate(_POST % json.dumps(launch_run("own")))
    assert ui.attacks() == {"own"}
    serve_hostile_page(server, ui)
    page.open(f"http://{EVIL}:{urlsplit(server.url).port}/")
    page.evaluate(f"void (location.href = {json.dumps(ui.url + '/runs')})", as_user=True)  # as a link in a mail
    page.wait_until("document.body.innerText.includes('maintenance')")
    page.open(f"{ui.url}/graphql")  # the playground, typed
    page.wait_until("document.querySelector('.graphiql-container')")


def test_the_attacks_succeed_on_the_bare_webserver(
    start_ui: Callable[..., UiProcess], browser: Browser, server: Server
) -> None:
    """Without the guard they launch runs and stop the sensor: so their failure elsewhere proves something."""
    ui = start_ui(guarded=False)
    serve_hostile_page(server, ui)
    page = browser.open_page()
    seen = attack_from(page, server, EVIL)
    assert seen["websocket"] == "opened"
    assert any(url.startswith(ui.url) for url in browser.frames(page))
    assert "LaunchRunSuccess" in rebind(browser.open_page(), ui)
    assert ui.attacks() == {
        "rebound",
        *(f"{name} of {EVIL}" for name in ("image", "script", "get", "form", "two_types", "beacon")),
    }
    assert ui.materializations() == 1
    assert ui.sensor()[1] == "STOPPED"
