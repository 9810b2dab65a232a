"""Parse Server's REST API over Postgres: ids are its own, many requests in one call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL

from servers.base import SECRET, Record, ThirdPartyServer


class ParseServer(ThirdPartyServer):
    """Parse Server on a Postgres database."""

    name = "parse_server"
    page = "parse-server"
    skipped_behaviours = frozenset({"repeated-create-makes-no-duplicate"})
    write_calls = ("POST", "/batch")

    def __init__(self, folder: Path, database: URL | None = None) -> None:
        super().__init__(folder, database)
        assert database is not None
        kinds = {
            "sku": "String",
            "merchant": "String",
            "name": "String",
            "price": "Number",
            "stock": "Number",
            "active": "Boolean",
            "released": "Date",
        }
        anybody = {action: {"*": True} for action in ("find", "count", "get", "create", "update", "delete")}
        product = {
            "className": "Product",
            "fields": {name: {"type": kind} for name, kind in kinds.items()},
            "classLevelPermissions": anybody,
        }
        (folder / "parse.json").write_text(
            json.dumps(
                {
                    "appId": "shop",
                    "masterKey": SECRET,
                    "restAPIKey": "rest",
                    "host": "127.0.0.1",
                    "port": self.port,
                    "serverURL": f"{self.url}/parse",
                    "allowClientClassCreation": False,
                    "databaseURI": f"postgres://localhost/{database.database}",
                    "databaseOptions": {
                        "host": database.query.get("host") or database.host,
                        "port": database.port or 5432,
                        "user": database.username,
                        "password": database.password or "",
                    },
                    "schema": {"definitions": [product]},
                    "silent": True,
                }
            )
        )
        self.environment = {"PARSE_URL": self.url, "PARSE_APPLICATION_ID": "shop", "PARSE_REST_KEY": "rest"}
        self._client.headers.update({"X-Parse-Application-Id": "shop", "X-Parse-Master-Key": SECRET})

    def _command(self) -> Sequence[str]:
        program = self.installed("node_modules", "parse-server", "bin", "parse-server")
        return ["node", program, str(self.folder / "parse.json")]

    def _variables(self) -> Mapping[str, str]:
        return {"PARSE_SERVER_LOGS_FOLDER": str(self.folder / "logs")}

    def _ready_path(self) -> str:
        return "/parse/health"

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
