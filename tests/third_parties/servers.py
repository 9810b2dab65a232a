"""The third parties as running servers, and how they are looked at and spoilt past our adapter.

Not here: installing them (``installing.py``), how we speak to them (``datasette.yaml``, ``parse_server.yaml``).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from installing import DATASETTE, PARSE_SERVER
from sqlalchemy.engine import make_url

from sync_orchestrator.process_tree import Tree
from sync_orchestrator.processes import wait_ready

Record = dict[str, Any]

_START_SECONDS = 60.0
_SECRET = "not-much-of-a-secret"


class ThirdPartyServer(ABC):
    """One server on a port of its own; ``environment`` is what its ``sync.yaml`` asks for."""

    name: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self.environment: dict[str, str] = {}
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False)
        self._tree = Tree(folder / "logs", {**os.environ, "PARSE_SERVER_LOGS_FOLDER": str(folder / "logs")})

    @property
    def config(self) -> Path:
        """Its ``sync.yaml``."""
        return Path(__file__).parent / f"{self.name}.yaml"

    def start(self) -> None:
        """Starts it, also again, and returns when it answers."""
        self._tree.start(self.name, self._command(), self._url())
        wait_ready(self._tree, lambda line: None, _START_SECONDS)

    def kill(self) -> None:
        """Ends it in the middle of whatever it does."""
        process = self._tree.programs.pop().process
        process.kill()
        process.wait()

    def stand_still(self) -> None:
        """It keeps its connections, and does nothing."""
        self._tree.programs[-1].process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """It does what it was asked for meanwhile."""
        self._tree.programs[-1].process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self._client.close()
        self._tree.stop()
        self._tree.dismiss_guard()

    @abstractmethod
    def _command(self) -> Sequence[str]: ...

    @abstractmethod
    def _url(self) -> str:
        """An address that answers when it is ready."""

    @abstractmethod
    def clear(self) -> None:
        """Removes all records."""

    @abstractmethod
    def records(self) -> list[Record]:
        """All that it holds, in the plain values of the backoffice; ``id`` where it gives one."""

    @abstractmethod
    def change(self, key: str, **fields: Any) -> None:
        """Changes a record behind our back."""

    @abstractmethod
    def remove(self, key: str, its_id: str | None = None) -> None:
        """Removes a record behind our back, that with this id where there are more of its key."""

    @abstractmethod
    def add(self, record: Record) -> str:
        """Makes a record behind our back, and returns its id."""


class Datasette(ThirdPartyServer):
    """Datasette on a SQLite file; the actor ``sync`` may write one table."""

    name = "datasette"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._file = folder / "shop.db"
        with sqlite3.connect(self._file) as database:
            database.execute("CREATE TABLE products (sku TEXT PRIMARY KEY, merchant TEXT, name TEXT, "
                             "price REAL CHECK (typeof(price) IN ('real', 'null')), stock INTEGER, active INTEGER, "
                             "released TEXT)")
        database.close()
        allowed = {action: {"id": "sync"} for action in ("insert-row", "update-row", "delete-row")}
        (folder / "datasette.json").write_text(json.dumps(
            {"databases": {"shop": {"tables": {"products": {"permissions": allowed}}}}}))
        made = subprocess.run([self._program, "create-token", "sync", "--secret", _SECRET], check=True,
                              capture_output=True, text=True)
        self.environment = {"DATASETTE_PORT": str(self.port), "DATASETTE_TOKEN": made.stdout.strip()}
        self._client.headers["Authorization"] = f"Bearer {self.environment['DATASETTE_TOKEN']}"

    @property
    def _program(self) -> str:
        return str(DATASETTE / "bin" / "datasette")

    def _command(self) -> Sequence[str]:
        return [self._program, "serve", str(self._file), "--config", str(self.folder / "datasette.json"), "--secret",
                _SECRET, "--host", "127.0.0.1", "--port", str(self.port)]

    def _url(self) -> str:
        return f"http://127.0.0.1:{self.port}/-/versions.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Somebody else writes to the database."""
        other = sqlite3.connect(self._file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.close()

    def clear(self) -> None:
        with sqlite3.connect(self._file) as database:
            database.execute("DELETE FROM products")
        database.close()

    def records(self) -> list[Record]:
        rows = self._client.get("/shop/products.json", params={"_size": "max"}).raise_for_status().json()["rows"]
        return [{**row, "active": None if row["active"] is None else bool(row["active"])} for row in rows]

    def change(self, key: str, **fields: Any) -> None:
        self._write({"sku": key, **fields})

    def remove(self, key: str, its_id: str | None = None) -> None:
        self._client.post(f"/shop/products/{_tilde(key)}/-/delete").raise_for_status()

    def add(self, record: Record) -> str:
        self._write(record)
        return str(record["sku"])

    def _write(self, row: Record) -> None:
        self._client.post("/shop/products/-/upsert", json={"rows": [row]}).raise_for_status()


class ParseServer(ThirdPartyServer):
    """Parse Server on a Postgres database; ``database`` is its SQLAlchemy URL."""

    name = "parse_server"

    def __init__(self, folder: Path, database: str) -> None:
        super().__init__(folder)
        url = make_url(database)
        kinds = {"sku": "String", "merchant": "String", "name": "String", "price": "Number", "stock": "Number",
                 "active": "Boolean", "released": "Date"}
        anybody = {action: {"*": True} for action in ("find", "count", "get", "create", "update", "delete")}
        product = {"className": "Product", "fields": {name: {"type": kind} for name, kind in kinds.items()},
                   "classLevelPermissions": anybody}
        (folder / "parse.json").write_text(json.dumps({
            "appId": "shop", "masterKey": _SECRET, "restAPIKey": "rest", "host": "127.0.0.1", "port": self.port,
            "serverURL": f"http://127.0.0.1:{self.port}/parse", "allowClientClassCreation": False,
            "databaseURI": f"postgres://localhost/{url.database}",
            "databaseOptions": {"host": url.query.get("host") or url.host, "port": url.port or 5432,
                                "user": url.username, "password": url.password or ""},
            "schema": {"definitions": [product]}, "silent": True}))
        self.environment = {"PARSE_PORT": str(self.port), "PARSE_APPLICATION_ID": "shop", "PARSE_REST_KEY": "rest"}
        self._client.headers.update({"X-Parse-Application-Id": "shop", "X-Parse-Master-Key": _SECRET})

    def _command(self) -> Sequence[str]:
        program = PARSE_SERVER / "node_modules" / "parse-server" / "bin" / "parse-server"
        return ["node", str(program), str(self.folder / "parse.json")]

    def _url(self) -> str:
        return f"http://127.0.0.1:{self.port}/parse/health"

    def clear(self) -> None:
        self._client.delete("/parse/purge/Product").raise_for_status()

    def records(self) -> list[Record]:
        found = self._client.get("/parse/classes/Product", params={"limit": "10000"}).raise_for_status().json()
        return [_plain(record) for record in found["results"]]

    def change(self, key: str, **fields: Any) -> None:
        self._client.put(f"/parse/classes/Product/{self._id(key)}", json=_typed(fields)).raise_for_status()

    def remove(self, key: str, its_id: str | None = None) -> None:
        self._client.delete(f"/parse/classes/Product/{its_id or self._id(key)}").raise_for_status()

    def add(self, record: Record) -> str:
        made = self._client.post("/parse/classes/Product", json=_typed(record)).raise_for_status().json()
        return str(made["objectId"])

    def _id(self, key: str) -> str:
        (record,) = [record for record in self.records() if record["sku"] == key]
        return str(record["id"])


def _plain(record: Record) -> Record:
    """A day as the backoffice writes it; what Parse leaves out is null."""
    day = record.get("released")
    assert day is None or day["iso"].endswith("T00:00:00.000Z")
    fields = {name: record.get(name) for name in ("sku", "merchant", "name", "price", "stock", "active")}
    return {"id": record["objectId"], **fields, "released": None if day is None else day["iso"][:10]}


def _typed(record: Record) -> Record:
    if record.get("released") is None:
        return record
    return {**record, "released": {"__type": "Date", "iso": f"{record['released']}T00:00:00.000Z"}}


def _tilde(key: str) -> str:
    """Datasette's own way to write a key in a path."""
    plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
    return "".join(letter if letter in plain else "".join(f"~{byte:02X}" for byte in letter.encode())
                   for letter in key)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
