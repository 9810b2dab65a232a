"""Chromium without a window, driven over its DevTools protocol."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60.0

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-popup-blocking",
    "--no-proxy-server",
    "--remote-debugging-port=0",
)


def find_browser() -> str | None:
    """The path of a Chromium, or None."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


class Browser:
    """A running Chromium with a profile of its own. It resolves the names of ``hosts`` to this machine, no others."""

    def __init__(self, program: str, hosts: tuple[str, ...] = ()) -> None:
        self._profile = Path(tempfile.mkdtemp(prefix="browser-"))
        rules = ", ".join(
            [*(f"MAP {host} 127.0.0.1" for host in hosts), "MAP * ~NOTFOUND", "EXCLUDE 127.0.0.1", "EXCLUDE localhost"]
        )
        self._process = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={self._profile}", f"--host-resolver-rules={rules}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        self._pages: list[Page] = []
        try:
            self._port = self._read_port()
        except BaseException:
            self.stop()
            raise

    def _read_port(self) -> int:
        file = self._profile / "DevToolsActivePort"
        ends = time.monotonic() + PATIENCE
        while not (file.exists() and file.read_text().count("\n")):
            assert self._process.poll() is None, "the browser has ended"
            assert time.monotonic() < ends, "the browser does not start"
            time.sleep(0.05)
        return int(file.read_text().split()[0])

    def open_page(self) -> Page:
        """A new, empty tab."""
        url = f"http://127.0.0.1:{self._port}/json/new?about:blank"
        made = httpx.put(url, timeout=PATIENCE, trust_env=False)
        self._pages.append(Page(made.json()["webSocketDebuggerUrl"]))
        return self._pages[-1]

    def frames(self, page: Page) -> list[str]:
        """What is really shown in the frames of a page, those in processes of their own included: their addresses.

        A frame that the browser does not show has an address of the browser's own.
        """
        tree = page.call("Page.getFrameTree")["frameTree"]
        found = [child["frame"]["url"] for child in tree.get("childFrames", [])]
        listed = httpx.get(f"http://127.0.0.1:{self._port}/json/list", timeout=PATIENCE, trust_env=False).json()
        for target in listed:
            if target["type"] == "iframe" and target.get("parentId") == tree["frame"]["id"]:
                frame = Page(target["webSocketDebuggerUrl"])
                found.append(frame.evaluate("location.href"))
                frame.close()
        return found

    def close_pages(self) -> None:
        """Closes all tabs that were opened here, with their connections."""
        for page in self._pages:
            page.call("Page.close")
            page.close()
        self._pages.clear()

    def stop(self) -> None:
        for page in self._pages:
            page.close()
        self._process.terminate()
        self._process.wait(PATIENCE)
        shutil.rmtree(self._profile, ignore_errors=True)


class Page:
    """A tab. ``events`` holds what it has reported so far: of its network, and of its page."""

    def __init__(self, url: str) -> None:
        self._stack = contextlib.ExitStack()
        self._socket: ClientConnection = self._stack.enter_context(
            connect(url, max_size=None, ping_interval=None, proxy=None)
        )
        self._number = 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Calls a method of the protocol and returns its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = self._receive()
            if message.get("id") == self._number:
                assert "error" not in message, message
                return dict(message["result"])

    def wait_for(self, method: str, **expected: Any) -> dict[str, Any]:
        """Waits for an event with these parameters, also one that was reported already."""
        looked = 0
        while True:
            for event in self.events[looked:]:
                if event["method"] == method and expected.items() <= event["params"].items():
                    return event
            looked = len(self.events)
            self._receive()

    def open(self, url: str) -> None:
        """Navigates as if the address was typed, and waits until the page is loaded."""
        self.events.clear()
        loader = self.call("Page.navigate", url=url)["loaderId"]
        self.wait_for("Page.lifecycleEvent", name="load", loaderId=loader)

    def evaluate(self, expression: str, *, as_user: bool = False) -> Any:
        """The JSON value of an expression in the page, awaited if it is a promise."""
        result = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=as_user
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_until(self, condition: str) -> None:
        """Waits until a condition is true in the page, or in the one that replaces it meanwhile."""
        ends = time.monotonic() + PATIENCE
        while True:
            found = self.call("Runtime.evaluate", expression=f"Boolean(document.body && ({condition}))")
            if found["result"].get("value"):
                return
            assert time.monotonic() < ends, f"{condition} did not become true"
            time.sleep(0.05)

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv(timeout=PATIENCE))
        if "method" in message:
            self.events.append(message)
        return message

    def close(self) -> None:
        self._stack.close()
