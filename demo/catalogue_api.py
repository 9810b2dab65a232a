"""The API that the shops read stones by, in front of the catalogue's database; the sync does not use it.

``python -m demo.catalogue_api FOLDER``, with the folder of the database's server.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import psycopg
import uvicorn
from psycopg.rows import dict_row
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from demo import access, catalogue

_STONE = "SELECT sku, collection, name, cut, color, clarity, updated_at::text FROM stones WHERE sku = %s"


def create_app(owner_url: str, token: str) -> Starlette:
    """The API over a database."""

    async def read(request: Request) -> Response:
        async with await psycopg.AsyncConnection.connect(owner_url, row_factory=dict_row) as connection:
            row = await (await connection.execute(_STONE, [request.path_params["sku"]])).fetchone()
        return JSONResponse({"error": "no such record"}, 404) if row is None else JSONResponse(row)

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[Route("/v1/stones/{sku}", read), Route("/healthz", healthz)],
        middleware=[Middleware(access.RequiresHeader, "Authorization", f"Bearer {token}", "/v1/")],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    found = catalogue.find(parser.parse_args().folder)
    if found is None:
        raise SystemExit("the catalogue's database does not run")
    uvicorn.run(
        create_app(found.owner_url, access.source_token()),
        host="127.0.0.1",
        port=access.port("catalogue"),
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
