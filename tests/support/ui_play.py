"""A small company, its product started by `up`, and the Dagster UI in a browser, for the test that plays by clicks."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml
from http_server import Server
from paths import ROOT
from ports import free_ports
from small_systems import Backoffice, Partner
from starlette.requests import Request
from starlette.responses import Response

PATIENCE = 90.0
SHOPS = ("berlin", "lisbon", "lyon", "oslo", "porto", "turin")
PRODUCTS_EACH = 25

T = TypeVar("T")


def eventually(check: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
    """Waits until another process has done something, and returns what the check found."""
    ends = time.monotonic() + patience
    while not (found := check()):
        assert time.monotonic() < ends, f"not within {patience:.0f} s: {what}"
        time.sleep(0.2)
    return found


def products() -> list[dict[str, Any]]:
    """A few products of each shop."""
    return [
        {
            "sku": f"{shop}-{number:02}",
            "shop": shop,
            "name": f"product {number} of {shop}",
            "price": 100 + number,
            "updated_at": f"2026-01-{number + 1:02}T10:00:00Z",
        }
        for shop in SHOPS
        for number in range(PRODUCTS_EACH)
    ]


class Erp(Partner):
    """The third party: it can be slow with writes, stand still as a stopped process does, and be altered by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.write_seconds = 0.0
        self.running = asyncio.Event()
        self.running.set()

    async def __call__(self, request: Request) -> Response:
        """Responds once it runs, and to a write after its time."""
        await self.running.wait()
        if request.method != "GET":
            await asyncio.sleep(self.write_seconds)
        return await super().__call__(request)

    def item(self, sku: str) -> dict[str, Any]:
        """What it holds under one of our keys."""
        return next(item for item in self.items.values() if item["sku"] == sku)


def configuration(source_url: str, erp_url: str) -> dict[str, Any]:
    """The ``sync.yaml``: drift waits for an operator, and an outage is noticed within seconds."""
    return {
        "sources": {
            "backoffice": {
                "base_url": source_url,
                "headers": {"Authorization": "Bearer source-secret"},
                "timeout": "5s",
            }
        },
        "third_parties": {
            "erp": {
                "base_url": erp_url,
                "headers": {"X-Api-Key": "partner-secret"},
                "timeout": "2s",
                "in_flight_window": "2s",
                "search_lag": "0s",
                "concurrency": 2,
                "breaker": {"failures": 4, "probe_after": "1s", "probe_cap": "2s"},
            }
        },
        "entities": {
            "product": {
                "owner": "backoffice",
                "parts": {
                    "backoffice": {
                        "key": "sku",
                        "group": "shop",
                        "version": {"path": "updated_at"},
                        "list": {
                            "path": "/products",
                            "params": {"shop": "{{ group }}", "page": "{{ page }}", "limit": "100"},
                            "items": "products",
                            "paging": "page",
                        },
                        "read": {"path": "/products/{{ key }}"},
                        "groups": {"path": "/shops"},
                    }
                },
                "mapping": {"sku": "key", "shop": "group", "name": "backoffice.name", "price": "backoffice.price"},
                "third_party": {
                    "system": "erp",
                    "key_field": "sku",
                    "group": "shop",
                    "id": "id",
                    "create": {"path": "/items"},
                    "update": {"method": "PUT", "path": "/items/{{ id }}"},
                    "delete": {"path": "/items/{{ id }}"},
                    "read": {"path": "/items/{{ id }}"},
                    "lookup": {"path": "/items", "params": {"sku": "{{ key }}"}, "items": "data"},
                    "list": {
                        "path": "/items",
                        "params": {"shop": "{{ group }}", "page": "{{ page }}", "limit": "100"},
                        "items": "data",
                        "paging": "page",
                    },
                },
                "validation": {"every": "1h", "confirm_after": "1s", "repair": "ask"},
            }
        },
        "retry": {"retries": 2, "first_wait": "1s"},
        "limits": {"lease": "20s", "linger": "2s", "drain_seconds": "15s"},
    }


class Play:
    """The running system and the company around it."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.backoffice = Backoffice(products())
        self.erp = Erp()
        self._servers = [Server(), Server()]
        self._servers[0].handler, self._servers[1].handler = self.backoffice, self.erp
        self.ui_port, self.api_port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.ui_port}"
        config = folder / "sync.yaml"
        config.write_text(yaml.safe_dump(configuration(*(server.url for server in self._servers)), sort_keys=False))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SYNC_", "DAGSTER_"))}
        self.environment = {
            **kept,
            "SYNC_HOME": str(folder / "home"),
            "SYNC_CONFIG": str(config),
            "SYNC_DATABASE_URL": database_url,
        }
        self.log = folder / "up.log"
        self._out = self.log.open("w")
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "sync_orchestrator",
                "up",
                "--port",
                str(self.ui_port),
                "--api-port",
                str(self.api_port),
            ],
            cwd=ROOT,
            env=self.environment,
            stdout=self._out,
            stderr=subprocess.STDOUT,
        )

    def wait_until_ready(self) -> None:
        """Returns when the UI and the API service respond and every shop is a partition."""
        eventually(self._is_ready, f"the system starts; see {self.log}")
        eventually(lambda: len(self.partitions()) == len(SHOPS), "the business groups become partitions")

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()
        try:
            return all(
                httpx.get(url, trust_env=False, timeout=5).status_code == 200
                for url in (f"{self.url}/server_info", f"http://127.0.0.1:{self.api_port}/readyz")
            )
        except httpx.TransportError:
            return False

    def ask(self, query: str) -> Any:
        """The data of a GraphQL query of the UI's server."""
        response = httpx.post(f"{self.url}/graphql", json={"query": query}, timeout=60, trust_env=False)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def partitions(self) -> list[str]:
        """The business groups that Dagster knows."""
        found = self.ask(
            '{assetNodeOrError(assetKey: {path: ["product", "mirror"]}) {... on AssetNode {partitionKeys}}}'
        )
        return list(found["assetNodeOrError"]["partitionKeys"])

    def run_status(self, run_id: str) -> str:
        """The status of a run."""
        return str(self.ask(f'{{runOrError(runId: "{run_id}") {{... on Run {{status}}}}}}')["runOrError"]["status"])

    def newest_run(self, job: str) -> str:
        """The id of the newest run of a job."""
        found = self.ask(
            f'{{runsOrError(filter: {{pipelineName: "{job}"}}, limit: 1) {{... on Runs {{results {{id}}}}}}}}'
        )
        return str(found["runsOrError"]["results"][0]["id"])

    def command(self, *words: str) -> str:
        """What a command of the command line prints."""
        done = subprocess.run(
            [sys.executable, "-m", "sync_orchestrator", *words],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        return done.stdout

    def change_price(self, sku: str, price: int, key: str) -> None:
        """A change in the back office, which notifies the API service."""
        record = self.backoffice.products[sku]
        record.update(price=price, updated_at="2026-02-01T10:00:00Z")
        response = httpx.post(
            f"http://127.0.0.1:{self.api_port}/v1/events",
            trust_env=False,
            timeout=30,
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/cloudevents+json"},
            json={
                "specversion": "1.0",
                "id": f"{sku}-{price}",
                "source": "backoffice",
                "type": "product.updated",
                "subject": sku,
                "time": record["updated_at"],
                "data": record,
            },
        )
        assert response.status_code == 202, response.text

    def stop(self) -> None:
        """Ends everything."""
        self.erp.running.set()
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._out.close()
        for server in self._servers:
            server.stop()


@contextmanager
def playing(folder: Path, database_url: str) -> Iterator[Play]:
    """A running system, ended afterwards."""
    play = Play(folder, database_url)
    try:
        play.wait_until_ready()
        yield play
    finally:
        play.stop()
