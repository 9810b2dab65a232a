"""docs/capture.md, followed from a plain MariaDB to a captured change."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from captured_sources import _quick as _quick
from captured_sources import eventually, is_open, reading, received, recorded
from documents import read
from mariadb_servers import MariadbSource, mariadb_server, require_mariadb
from paths import ROOT
from sqlalchemy import Engine
from typer.testing import CliRunner

from sync_orchestrator import composition
from sync_orchestrator import config as configuration
from sync_orchestrator.cli import app
from sync_orchestrator.config.sources import CaptureSettings

PAGE = read(ROOT / "docs" / "capture.md")
ARTICLES = (
    "CREATE TABLE articles (id int PRIMARY KEY, merchant text, title text, updated_at datetime(6) DEFAULT now(6))"
)


def block(language: str, containing: str) -> str:
    [found] = [each.content for each in PAGE.fences() if each.info == language and containing in each.content]
    return found


def say(*words: str, folder: Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(words), env={"SYNC_CONFIG": str(folder / "sync.yaml")})
    return done.exit_code, done.output


def test_a_stranger_follows_the_page(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_mariadb()
    plain = ("--binlog-format=MIXED", "--binlog-row-metadata=NO_LOG")
    with mariadb_server(*plain) as server:
        server.execute("CREATE DATABASE shop")
        server.execute("CREATE USER sync@localhost")
        server.execute("GRANT SELECT ON shop.* TO sync@localhost")
        source = MariadbSource(server, "shop")
        source.execute(ARTICLES)
        source.execute("INSERT INTO articles (id, merchant, title) VALUES (7, 'A', 'Cup')")
        document = yaml.safe_load(block("yaml", "mysql+pymysql"))
        document["sources"]["shop"]["url"] = source.url.replace("root@", "sync@")
        (tmp_path / "sync.yaml").write_text(yaml.safe_dump(document))
        config = configuration.load(tmp_path / "sync.yaml")
        status, printed = say("capture", "prepare", folder=tmp_path)
        assert status == 1
        statements = [line for line in printed.splitlines() if line and not line.startswith("--")]
        assert statements == block("text", "GRANT REPLICATION").splitlines()
        for statement in statements:
            server.execute(statement)
        status, printed = say("capture", "prepare", folder=tmp_path)
        assert (status, "nothing is missing" in printed) == (0, True)
        monkeypatch.setattr(composition, "require_database", lambda: None)
        monkeypatch.setattr(composition, "open_database", lambda: engine)
        monkeypatch.setattr(composition, "open_database_to_read", lambda: engine)
        with reading(engine, config):
            eventually(lambda: is_open(engine, source), "the stream")
            source.execute("UPDATE articles SET title = 'Tea cup', updated_at = now(6) WHERE id = 7")
            eventually(lambda: received(engine) == 1, "the event")
        [event] = recorded(engine)
        assert (event.entity, event.key, event.thin) == ("article", "7", True)
        assert "mariadb:0-71-" in say("capture", "list", folder=tmp_path)[1]
        assert "there was no slot at the source" in say("capture", "drop", "shop", "--yes", folder=tmp_path)[1]


def test_the_page_names_what_a_session_can_hide() -> None:
    for name in ("sql_log_bin", "binlog_row_image", "binlog_format", "server_id", "binlog_expire_logs_seconds"):
        assert f"`{name}" in PAGE.text
    assert set(CaptureSettings.model_fields) >= {"server_id"}
