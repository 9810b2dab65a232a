"""Datasette's JSON API over SQLite: keys are ours, an upsert of many rows."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL

from servers.base import SECRET, Record, ThirdPartyServer


class Datasette(ThirdPartyServer):
    """Datasette on a SQLite file; the actor ``sync`` may write one table."""

    name = "datasette"
    page = "datasette"
    skipped_behaviours = frozenset({"lookup-finds-by-key"})
    live_steps = frozenset({"list", "filter", "count"})
    write_calls = ("POST", "/-/upsert")

    def __init__(self, folder: Path, database: URL | None = None) -> None:
        super().__init__(folder, database)
        self._file = folder / "shop.db"
        with sqlite3.connect(self._file) as shop:
            shop.execute(
                "CREATE TABLE products (sku TEXT PRIMARY KEY, merchant TEXT, name TEXT, "
                "price REAL CHECK (typeof(price) IN ('real', 'null')), stock INTEGER, active INTEGER, "
                "released TEXT)"
            )
        shop.close()
        allowed = {action: {"id": "sync"} for action in ("insert-row", "update-row", "delete-row")}
        (folder / "datasette.json").write_text(
            json.dumps({"databases": {"shop": {"tables": {"products": {"permissions": allowed}}}}})
        )
        made = subprocess.run(
            [self._program, "create-token", "sync", "--secret", SECRET], check=True, capture_output=True, text=True
        )
        self.environment = {"DATASETTE_URL": self.url, "DATASETTE_TOKEN": made.stdout.strip()}
        self._client.headers["Authorization"] = f"Bearer {self.environment['DATASETTE_TOKEN']}"

    @property
    def _program(self) -> str:
        return self.installed("bin", "datasette")

    def _command(self) -> Sequence[str]:
        return [
            self._program,
            "serve",
            str(self._file),
            "--config",
            str(self.folder / "datasette.json"),
            "--secret",
            SECRET,
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]

    def _ready_path(self) -> str:
        return "/-/versions.json"

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
        with sqlite3.connect(self._file) as shop:
            shop.execute("DELETE FROM products")
        shop.close()

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


def _tilde(key: str) -> str:
    """Datasette's own way to write a key in a path."""
    plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
    return "".join(letter if letter in plain else "".join(f"~{byte:02X}" for byte in letter.encode()) for letter in key)
