"""`init` by the tables of a Postgres database."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from starter_runs import PARTNER, Init, explained, part_of, written
from starter_runs import init as init


def test_a_postgres_database_is_read_and_its_password_is_not_written(
    init: Init,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("BACKOFFICE_URL", raising=False)
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE SCHEMA trade; CREATE TABLE trade.orders (id uuid PRIMARY KEY, number bigint UNIQUE, "
                "merchant text NOT NULL, lines jsonb, changed_at timestamptz NOT NULL, is_paid boolean)"
            )
        )
    try:
        url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
        result = init("--entity", "order", "--source-url", url, "--third-party-url", PARTNER)
        assert result.exit_code == 0, result.output
        assert part_of(tmp_path) == {
            "key": "id",
            "group": "merchant",
            "sql": {"table": "trade.orders"},
            "version": {"path": "changed_at", "kind": "time"},
        }
        assert written(tmp_path)["sources"]["backoffice"]["url"] == "${BACKOFFICE_URL}"
        assert str(make_url(database_url).password) not in result.output + (tmp_path / "sync.yaml").read_text()
        assert explained(tmp_path) == []
    finally:
        with engine.begin() as connection:
            connection.execute(text("DROP SCHEMA trade CASCADE"))
        engine.dispose()
        monkeypatch.delenv("BACKOFFICE_URL", raising=False)
