"""SAP CAP, which serves OData V4: ids are its own, and ``$batch`` takes many requests in one call."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL

from servers.base import SECRET, Record, ThirdPartyServer

_MODEL = """
using { cuid } from '@sap/cds/common';
namespace shop;
@assert.unique: { sku: [sku] }
entity Products : cuid {
  sku : String(100) not null;
  merchant : String(100);
  name : String(1000);
  price : Decimal(12, 2);
  stock : Integer64;
  active : Boolean;
  released : Date;
  @odata.etag modifiedAt : Timestamp @cds.on.insert: $now @cds.on.update: $now;
}
@path: '/odata/v4/shop' @requires: 'authenticated-user'
service Catalog { entity Product as projection on shop.Products; }
"""
_PRODUCTS = "/odata/v4/shop/Product"


class Cap(ThirdPartyServer):
    """A CAP service with one entity on a Postgres database."""

    name = "cap"
    page = "odata"
    skipped_behaviours = frozenset({"repeated-create-makes-no-duplicate", "values-long-text"})
    keeps_keys_unique = True
    write_calls = ("POST", r"/\$batch")

    def __init__(self, folder: Path, database: URL | None = None) -> None:
        super().__init__(folder, database)
        assert database is not None
        (folder / "schema.cds").write_text(_MODEL)
        (folder / "node_modules").symlink_to(self.installed("node_modules"))
        credentials = {
            "host": database.query.get("host") or database.host,
            "port": database.port or 5432,
            "user": database.username,
            "password": database.password or "",
            "database": database.database,
        }
        (folder / "package.json").write_text(
            json.dumps(
                {
                    "dependencies": {"@sap/cds": "*", "@cap-js/postgres": "*"},
                    "cds": {
                        "requires": {
                            "db": {"kind": "postgres", "impl": "@cap-js/postgres", "credentials": credentials},
                            "auth": {"kind": "basic", "users": {"sync": {"password": SECRET}}},
                        }
                    },
                }
            )
        )
        subprocess.run(
            ["node", self._program("deploy")],
            cwd=folder,
            env={**os.environ, **self._variables()},
            check=True,
            capture_output=True,
        )
        self.environment = {"ODATA_URL": f"{self.url}/odata/v4/shop", "ODATA_USER": "sync", "ODATA_PASSWORD": SECRET}
        self._client.auth = ("sync", SECRET)

    def _program(self, name: str) -> str:
        return self.installed("node_modules", "@sap", "cds", "bin", f"{name}.js")

    def _variables(self) -> Mapping[str, str]:
        return {"NODE_ENV": "production", "NODE_NO_WARNINGS": "1", "LOG_LEVEL": "error", "HOST": "127.0.0.1"}

    def _command(self) -> Sequence[str]:
        return ["node", self._program("serve"), "all", "--port", str(self.port)]

    def _ready_path(self) -> str:
        return "/health"

    def clear(self) -> None:
        for record in self._found():
            self._delete(record["ID"])

    def records(self) -> list[Record]:
        names = ("sku", "merchant", "name", "price", "stock", "active", "released")
        return [{"id": record["ID"], **{name: record[name] for name in names}} for record in self._found()]

    def change(self, key: str, **fields: Any) -> None:
        self._client.patch(f"{_PRODUCTS}({self._id(key)})", json=fields, headers={"If-Match": "*"}).raise_for_status()

    def remove(self, key: str, its_id: str | None = None) -> None:
        self._delete(its_id or self._id(key))

    def add(self, record: Record) -> str:
        made = self._client.post(_PRODUCTS, json=record)
        return str(made.raise_for_status().json()["ID"])

    def _found(self) -> list[Record]:
        found: list[Record] = self._client.get(_PRODUCTS, params={"$top": "10000"}).raise_for_status().json()["value"]
        return found

    def _id(self, key: str) -> str:
        (record,) = [record for record in self.records() if record["sku"] == key]
        return str(record["id"])

    def _delete(self, its_id: str) -> None:
        self._client.delete(f"{_PRODUCTS}({its_id})", headers={"If-Match": "*"}).raise_for_status()
