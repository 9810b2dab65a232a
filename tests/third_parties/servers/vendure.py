"""Vendure, a shop over GraphQL: ids are its own, and a product and its variant are written by two calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL

from servers.base import SECRET, Record, ThirdPartyServer

_SERVER = """
const { bootstrap, DefaultLogger, LogLevel } = require('@vendure/core')
const settings = require('./settings.json')
bootstrap({
  logger: new DefaultLogger({ level: LogLevel.Error, timestamp: false }),
  apiOptions: { hostname: '127.0.0.1', port: settings.port, adminApiPath: 'admin-api', shopApiPath: 'shop-api' },
  authOptions: { tokenMethod: 'bearer', superadminCredentials: settings.administrator },
  dbConnectionOptions: { type: 'postgres', synchronize: true, ...settings.database },
  paymentOptions: { paymentMethodHandlers: [] },
  customFields: { Product: [
    { name: 'externalId', type: 'string' },
    { name: 'merchant', type: 'string' },
    { name: 'released', type: 'datetime' },
  ] },
}).catch(error => { console.error(error); process.exit(1) })
"""
_PRODUCT = """id enabled translations { languageCode name } customFields { externalId merchant released }
  variants { id sku price stockLevels { stockOnHand } }"""
_PAGE = f"""query($options: ProductListOptions) {{
  products(options: $options) {{ totalItems items {{ {_PRODUCT} }} }}
}}"""


class Vendure(ThirdPartyServer):
    """A Vendure server on a Postgres database, with one channel and one tax zone."""

    name = "vendure"
    page = "vendure"
    many = 120
    skipped_behaviours = frozenset(
        {
            "bulk-results-are-item-by-item",
            "repeated-create-makes-no-duplicate",
            "values-large-integers",
            "values-null",
            "wrong-login-is-told",
        }
    )
    write_calls = ("POST", "/admin-api")

    def __init__(self, folder: Path, database: URL | None = None) -> None:
        super().__init__(folder, database)
        assert database is not None
        (folder / "server.js").write_text(_SERVER)
        (folder / "node_modules").symlink_to(self.installed("node_modules"))
        (folder / "settings.json").write_text(
            json.dumps(
                {
                    "port": self.port,
                    "administrator": {"identifier": "sync", "password": SECRET},
                    "database": {
                        "host": database.query.get("host") or database.host,
                        "port": database.port or 5432,
                        "username": database.username,
                        "password": database.password or "",
                        "database": database.database,
                    },
                }
            )
        )
        self.environment = {"VENDURE_URL": self.url, "VENDURE_USER": "sync", "VENDURE_PASSWORD": SECRET}

    def fit(self, product: Record) -> Record:
        """A name, a price and a stock level are required, and integers have 32 bits."""
        return {
            **product,
            "name": product["name"] or product["sku"],
            "price": product["price"] or 0,
            "stock": (product["stock"] or 0) % 2**31,
            "active": bool(product["active"]),
        }

    def _variables(self) -> Mapping[str, str]:
        return {"VENDURE_DISABLE_TELEMETRY": "true", "NODE_NO_WARNINGS": "1"}

    def _command(self) -> Sequence[str]:
        return ["node", "server.js"]

    def _ready_path(self) -> str:
        return "/health"

    def _prepare(self) -> None:
        response = self._client.post(
            "/admin-api",
            json={
                "query": 'mutation($password: String!) { login(username: "sync", password: $password) { __typename } }',
                "variables": {"password": SECRET},
            },
        ).raise_for_status()
        self._client.headers["Authorization"] = f"Bearer {response.headers['vendure-auth-token']}"
        zone = self._run('mutation { createZone(input: { name: "everywhere" }) { id } }')["createZone"]["id"]
        self._run(
            "mutation($zone: ID!) { updateChannel(input: { id: 1, defaultTaxZoneId: $zone, "
            "defaultShippingZoneId: $zone }) { __typename } }",
            zone=zone,
        )
        self._run('mutation { createTaxCategory(input: { name: "all", isDefault: true }) { id } }')

    def clear(self) -> None:
        if ids := [product["id"] for product in self._products()]:
            self._run("mutation($ids: [ID!]!) { deleteProducts(ids: $ids) { result } }", ids=ids)

    def records(self) -> list[Record]:
        return [_plain(product) for product in self._products()]

    def change(self, key: str, **fields: Any) -> None:
        (product,) = [product for product in self._products() if product["customFields"]["externalId"] == key]
        self._update(product["id"], product["variants"][0]["id"], {**_plain(product), **fields})

    def remove(self, key: str, its_id: str | None = None) -> None:
        found = its_id or next(record["id"] for record in self.records() if record["sku"] == key)
        self._run("mutation($id: ID!) { deleteProduct(id: $id) { result } }", id=found)

    def add(self, record: Record) -> str:
        made = self._run(
            "mutation($input: CreateProductInput!) { createProduct(input: $input) { id } }",
            input=_product_input(record),
        )["createProduct"]["id"]
        self._run(
            "mutation($input: [CreateProductVariantInput!]!) { createProductVariants(input: $input) { id } }",
            input=[{"productId": made, **_variant_input(record)}],
        )
        return str(made)

    def _update(self, product: str, variant: str, record: Record) -> None:
        self._run(
            "mutation($input: UpdateProductInput!) { updateProduct(input: $input) { id } }",
            input={"id": product, **_product_input(record)},
        )
        self._run(
            "mutation($input: [UpdateProductVariantInput!]!) { updateProductVariants(input: $input) { id } }",
            input=[{"id": variant, **_variant_input(record)}],
        )

    def _products(self) -> list[Record]:
        found: list[Record] = []
        while True:
            page = self._run(_PAGE, options={"take": 100, "skip": len(found), "sort": {"id": "ASC"}})["products"]
            found += page["items"]
            if len(found) >= page["totalItems"]:
                return found

    def _run(self, query: str, **variables: Any) -> Any:
        """Runs one query of the administration's API, and returns its data."""
        response = self._client.post("/admin-api", json={"query": query, "variables": variables}).raise_for_status()
        answer = response.json()
        assert "errors" not in answer, answer["errors"]
        return answer["data"]


NO_VARIANT: dict[str, Any] = {"sku": None, "price": None, "stockLevels": [{"stockOnHand": None}]}


def _plain(product: Record) -> Record:
    (translation,) = product["translations"]
    fields = product["customFields"]
    day = fields["released"]
    assert day is None or day.endswith("T00:00:00.000Z")
    variants = product["variants"]
    assert len(variants) <= 1
    variant: dict[str, Any] = variants[0] if variants else NO_VARIANT
    assert variant["sku"] in (None, fields["externalId"])
    return {
        "id": product["id"],
        "sku": fields["externalId"],
        "merchant": fields["merchant"],
        "name": translation["name"],
        "price": None if variant["price"] is None else variant["price"] / 100,
        "stock": variant["stockLevels"][0]["stockOnHand"],
        "active": product["enabled"],
        "released": None if day is None else day[:10],
    }


def _product_input(record: Record) -> Record:
    day = record["released"]
    translation = {"languageCode": "en", "name": record["name"], "slug": record["sku"], "description": ""}
    return {
        "enabled": record["active"],
        "translations": [translation],
        "customFields": {
            "externalId": record["sku"],
            "merchant": record["merchant"],
            "released": None if day is None else f"{day}T00:00:00.000Z",
        },
    }


def _variant_input(record: Record) -> Record:
    return {
        "sku": record["sku"],
        "price": round(record["price"] * 100),
        "stockOnHand": record["stock"],
        "translations": [{"languageCode": "en", "name": record["name"]}],
    }
