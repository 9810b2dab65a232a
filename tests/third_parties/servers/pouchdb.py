"""PouchDB Server, which speaks CouchDB's API: keys are ours, and each write shows the revision that it replaces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy.engine import URL

from servers.base import SECRET, Record, ThirdPartyServer

_MAP = "function (doc) { if (doc.merchant) { emit([doc.merchant, doc._id]) } }"
_VALIDATION = """function (doc) {
  if (doc.price && typeof doc.price !== 'number') { throw({ forbidden: 'a price is a number' }) }
}"""


class PouchDB(ThirdPartyServer):
    """PouchDB Server on LevelDB, with one administrator."""

    name = "pouchdb"
    page = "couchdb"
    skipped_behaviours = frozenset({"bulk-results-are-item-by-item", "lookup-finds-by-key"})
    live_steps = frozenset({"list", "filter", "count"})
    write_calls = ("PUT", r"/products/[^/]+")

    def __init__(self, folder: Path, database: URL | None = None) -> None:
        super().__init__(folder, database)
        self.environment = {"COUCHDB_URL": self.url, "COUCHDB_USER": "sync", "COUCHDB_PASSWORD": SECRET}

    def _command(self) -> Sequence[str]:
        program = self.installed("node_modules", "pouchdb-server", "bin", "pouchdb-server")
        return ["node", program, "--host", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]

    def _ready_path(self) -> str:
        return "/"

    def _prepare(self) -> None:
        self._client.put("/_config/admins/sync", json=SECRET).raise_for_status()
        self._client.auth = ("sync", SECRET)
        self.clear()

    def clear(self) -> None:
        self._client.delete("/products")
        self._client.put("/products").raise_for_status()
        self._client.put(
            "/products/_design/sync",
            json={"views": {"by_merchant": {"map": _MAP, "reduce": "_count"}}, "validate_doc_update": _VALIDATION},
        ).raise_for_status()

    def records(self) -> list[Record]:
        found = self._client.get("/products/_all_docs", params={"include_docs": "true"}).raise_for_status().json()
        documents = [row["doc"] for row in found["rows"] if not row["id"].startswith("_design/")]
        assert all(document["_id"] == document["sku"] for document in documents)
        return [{name: value for name, value in document.items() if not name.startswith("_")} for document in documents]

    def change(self, key: str, **fields: Any) -> None:
        self._put(key, {**self._document(key), **fields})

    def remove(self, key: str, its_id: str | None = None) -> None:
        revision = self._document(key)["_rev"]
        self._client.delete(f"/products/{quote(key, safe='')}", params={"rev": revision}).raise_for_status()

    def add(self, record: Record) -> str:
        self._put(record["sku"], record)
        return str(record["sku"])

    def _document(self, key: str) -> Record:
        document: Record = self._client.get(f"/products/{quote(key, safe='')}").raise_for_status().json()
        return document

    def _put(self, key: str, document: Record) -> None:
        self._client.put(f"/products/{quote(key, safe='')}", json=document).raise_for_status()
