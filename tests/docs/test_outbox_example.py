"""The outbox of ``docs/brokers.md``, as a reader takes it: its table, its trigger, and its consumer."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from broker_consumers import consuming, eventually, open_rejected
from markdown_it import MarkdownIt
from paths import ROOT
from sqlalchemy import Engine

from sync_orchestrator import config as configuration
from sync_orchestrator.core.db.session import run


def fences(language: str) -> list[str]:
    text = (ROOT / "docs" / "brokers.md").read_text(encoding="utf-8").split("### An outbox in a database")[1]
    tokens = MarkdownIt("commonmark").parse(text.split("\n### ")[0])
    return [token.content for token in tokens if token.type == "fence" and token.info == language]


def test_the_outbox_of_the_page_reports_every_change(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "secret")
    document = yaml.safe_load((ROOT / "demo" / "sync.yaml").read_text(encoding="utf-8"))
    [consumer] = map(yaml.safe_load, fences("yaml"))
    consumer["consumers"]["shop_changes"]["url"] = database_url
    path = tmp_path / "sync.yaml"
    path.write_text(yaml.safe_dump({**document, **consumer}))
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE products (sku text PRIMARY KEY, collection text, name text, updated_at timestamptz)"
        )
        [statements] = fences("sql")
        connection.exec_driver_sql(statements)
    with engine.begin() as connection:
        for statement in (
            "INSERT INTO products VALUES ('a', 'A', 'one', '2026-01-01T00:00:00Z')",
            "UPDATE products SET name = 'two', updated_at = '2026-01-02T00:00:00Z'",
            "UPDATE products SET sku = 'b', updated_at = '2026-01-03T00:00:00Z'",
            "DELETE FROM products",
        ):
            connection.exec_driver_sql(statement)
    with consuming(engine, configuration.load(path), "shop_changes"):

        def recorded() -> list[tuple[Any, ...]]:
            with engine.begin() as connection:
                query = "SELECT key, action, data ->> 'name', version FROM sync.events ORDER BY seq"
                return [tuple(row) for row in run(connection, query)]

        eventually(lambda: len(recorded()) == 5, "five events")
    assert open_rejected(engine) == []
    assert [event[:3] for event in recorded()] == [
        ("a", "create", "one"),
        ("a", "update", "two"),
        ("a", "delete", None),
        ("b", "create", "two"),
        ("b", "delete", None),
    ]
    assert [event[3] for event in recorded()[:2]] == [1_767_225_600_000_000, 1_767_312_000_000_000]
