"""``check --live`` of a database that is polled by its version column."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import two_part_config
from typer.testing import CliRunner

from sync_orchestrator.cli import app


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Runs ``check --live`` and returns what it says."""
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection, connection:
        connection.execute("CREATE TABLE items (sku TEXT PRIMARY KEY, store TEXT, v TEXT)")
        connection.execute("INSERT INTO items VALUES ('k1', 'A', '2026-01-01T00:00:00Z')")
    part: dict[str, Any] = {"key": "sku", "group": "store", "version": {"path": "v"}, "sql": {"table": "items"}}
    entity = {"owner": "shop", "parts": {"shop": {**part, "changes": {"by": "column"}}}, "mapping": {"code": "key"}}
    config = two_part_config(
        entity=entity, sources={"shop": {"kind": "sql", "url": f"sqlite:///{tmp_path / 'shop.db'}"}}
    )
    document = config.model_dump(mode="json", exclude_defaults=True)
    document["sources"]["shop"]["url"] = f"sqlite:///{tmp_path / 'shop.db'}"
    (tmp_path / "sync.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setenv("SYNC_CONFIG", str(tmp_path / "sync.yaml"))
    monkeypatch.setenv("COLUMNS", "1000")
    return lambda: " ".join(CliRunner().invoke(app, ["check", "--live", "--json"]).stdout.split())


def test_a_version_column_without_an_index_is_named(check: Callable[[], str], tmp_path: Path) -> None:
    said = check()
    assert "no index of items begins with 'v': each poll reads the whole table" in said
    assert "CREATE INDEX ON items (v, sku)" in said
    assert "the database does not report its open transactions" in said
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection, connection:
        connection.execute("CREATE INDEX by_version ON items (v, sku)")
    said = check()
    assert "no index" not in said
    assert "1 records changed since" in said or "1 record" in said
