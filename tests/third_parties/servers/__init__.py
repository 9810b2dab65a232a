"""The third parties of these tests, one module each.

To add one: its packages in ``packages``, a page in docs/cookbook with its ``sync.yaml``, and a subclass of
``ThirdPartyServer`` here.
"""

from __future__ import annotations

from servers.base import Record, ThirdPartyServer
from servers.cap import Cap
from servers.datasette import Datasette
from servers.parse_server import ParseServer
from servers.pouchdb import PouchDB
from servers.vendure import Vendure

SERVERS: dict[str, type[ThirdPartyServer]] = {
    server.name: server for server in (Datasette, ParseServer, PouchDB, Cap, Vendure)
}

__all__ = ["SERVERS", "Datasette", "Record", "ThirdPartyServer"]
