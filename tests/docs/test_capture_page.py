"""docs/capture.md, followed from a plain Postgres to a captured change."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from captured_sources import (
    CapturedSource,
    eventually,
    is_open,
    machine_server,
    reading,
    received,
    recorded,
    source,
    wheel_server,
)
from captured_sources import _quick as _quick
from documents import read
from paths import ROOT
from sqlalchemy import Engine
from typer.testing import CliRunner

from sync_orchestrator import composition
from sync_orchestrator import config as configuration
from sync_orchestrator.cli import app
from sync_orchestrator.config import Config

__all__ = ["machine_server", "source", "wheel_server"]

PAGE = read(ROOT / "docs" / "capture.md")
PRODUCTS = "CREATE TABLE products (id int PRIMARY KEY, merchant text, title text, updated_at timestamptz DEFAULT now())"
LINES = (
    "CREATE TABLE orders (id int PRIMARY KEY, merchant text, updated_at timestamptz DEFAULT now());"
    "CREATE TABLE order_lines (n serial PRIMARY KEY, order_id int, t text)"
)


def block(language: str, containing: str) -> str:
    [found] = [each.content for each in PAGE.fences() if each.info == language and containing in each.content]
    return found


def written(folder: Path, source: CapturedSource, containing: str) -> Config:
    """The page's ``sync.yaml``, with the reader's own database."""
    document = yaml.safe_load(block("yaml", containing))
    document["sources"]["shop"] |= {"url": source.url, "capture": {"slot": source.slot}}
    path = folder / "sync.yaml"
    path.write_text(yaml.safe_dump(document))
    return configuration.load(path)


def say(*words: str, folder: Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(words), env={"SYNC_CONFIG": str(folder / "sync.yaml")})
    return done.exit_code, done.output


def run_printed(source: CapturedSource, printed: str) -> list[str]:
    """Runs the SQL as an operator of the source does; returns it."""
    statements = [line for line in printed.splitlines() if line and not line.startswith("--")]
    for statement in statements:
        source.execute(statement)
    return statements


def test_a_stranger_follows_the_page(
    source: CapturedSource, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.execute(f"{PRODUCTS}; INSERT INTO products VALUES (7, 'A', 'Cup')")
    config = written(tmp_path, source, "table: products")
    status, printed = say("capture", "prepare", folder=tmp_path)
    assert status == 1
    assert run_printed(source, printed)[-1] in block("text", "ALTER SYSTEM")
    status, printed = say("capture", "prepare", folder=tmp_path)
    assert (status, "nothing is missing" in printed) == (0, True)
    monkeypatch.setattr(composition, "require_database", lambda: None)
    monkeypatch.setattr(composition, "open_database", lambda: engine)
    monkeypatch.setattr(composition, "open_database_to_read", lambda: engine)
    with reading(engine, config):
        eventually(lambda: is_open(engine, source), "the stream")
        source.execute(block("text", "UPDATE products"))
        eventually(lambda: received(engine) == 1, "the event")
    [event] = recorded(engine)
    assert (event.entity, event.key, event.group_key, event.data["title"]) == ("product", "7", "A", "Tea cup")
    assert "shop" in say("capture", "list", folder=tmp_path)[1]
    assert "received_at" in say("records", "show", "product", "7", folder=tmp_path)[1]
    assert say("capture", "drop", "shop", "--yes", folder=tmp_path)[0] == 0
    assert source.find_slot() is None


def test_the_page_tells_of_records_of_several_tables(source: CapturedSource, engine: Engine, tmp_path: Path) -> None:
    source.execute(LINES)
    config = written(tmp_path, source, "order_lines: order_id")
    status, printed = say("capture", "prepare", "shop", folder=tmp_path)
    assert status == 1
    assert "REPLICA IDENTITY FULL" in printed
    run_printed(source, printed)
    assert say("capture", "prepare", folder=tmp_path)[0] == 0
    with reading(engine, config):
        eventually(lambda: is_open(engine, source), "the stream")
        source.execute("INSERT INTO orders VALUES (1, 'A'); INSERT INTO order_lines (order_id) VALUES (1), (1)")
        eventually(lambda: received(engine) == 1, "the event")
    [event] = recorded(engine)
    assert (event.key, event.thin) == ("1", True)


def test_the_page_names_every_setting() -> None:
    from sync_orchestrator.config.sources import CaptureSettings

    named = set(re.findall(r"`(\w+)`", PAGE.text))
    assert set(CaptureSettings.model_fields) <= named


def test_a_source_that_is_not_captured_is_told(tmp_path: Path, source: CapturedSource) -> None:
    source.execute(PRODUCTS)
    written(tmp_path, source, "table: products")
    status, printed = say("capture", "prepare", "lab", folder=tmp_path)
    assert status == 2
    assert "the changes of 'lab' are not captured; expected one of: shop" in printed
