"""What a command imports before it does anything: heavy packages only where the command needs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config as AlembicConfig
from alembic.script import ScriptDirectory
from paths import ROOT
from sqlalchemy import Engine
from world import World

from sync_orchestrator.core.db.session import run
from sync_orchestrator.database import migrate

CONFIGURATION = {"sync_orchestrator.config", "sync_orchestrator.adapters", "sync_orchestrator.api", "jinja2", "yaml"}
CLIENTS = {"httpx", "aiohttp", "kombu", "redis", "apprise", "uvloop", "starlette"}
REST = {
    "alembic",
    "pandas",
    "numpy",
    "dagster",
    "opentelemetry",
    "sync_orchestrator.core.push.attempt",
    "sync_orchestrator.conformance",
    "sync_orchestrator.conformance.live_check",
    "sync_orchestrator.cli.starter.document",
}
DATABASE = {"sqlalchemy", "psycopg", "psutil", "sync_orchestrator.composition"}
RUN = """
import atexit, json, os, sys
atexit.register(lambda: open(os.environ["LOADED"], "w").write(json.dumps(sorted(sys.modules))))
from sync_orchestrator.cli import app
app(prog_name="sync-orchestrator")
"""


def loaded_by(folder: Path, *words: str, **environment: str) -> set[str]:
    """Runs a command in a process of its own and returns the modules that it had imported at its end."""
    names = folder / "loaded.json"
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LOADED": str(names), **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(names.read_text()))


@pytest.mark.parametrize(
    "words", [("--help",), ("full-sync", "--help"), ("records", "--help"), ("capture", "--help"), ("init", "--help")]
)
def test_help_imports_neither_database_nor_configuration_nor_adapters(words: tuple[str, ...], tmp_path: Path) -> None:
    assert loaded_by(tmp_path, *words) & (CONFIGURATION | CLIENTS | REST | DATABASE) == set()


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("status", "--json"),
        ("events", "list"),
        ("events", "show", "1"),
        ("records", "show", "item", "a"),
        ("records", "list"),
        ("rejected", "list"),
        ("conflicts", "list"),
        ("capture", "list"),
        ("keys", "list"),
    ],
)
def test_commands_that_only_look_import_neither_configuration_nor_clients_nor_migrations(
    words: tuple[str, ...],
    world: World,
    database_url: str,
    tmp_path: Path,
) -> None:
    world.put_record("a")
    loaded = loaded_by(tmp_path, *words, SYNC_DATABASE_URL=database_url)
    assert loaded & (CONFIGURATION | CLIENTS | REST | {"sqlalchemy", "psutil"}) == set()
    assert "psycopg" in loaded


def test_the_newest_revision_by_file_name_is_the_one_that_alembic_finds() -> None:
    config = AlembicConfig()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [migrate.newest_revision()]


def test_a_database_of_the_present_shape_is_not_migrated_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    migrated: list[Any] = []
    monkeypatch.setattr(migrate, "_upgrade_to_head", migrated.append)
    migrate.migrate(engine)
    assert (migrate.is_current(engine), migrated) == (True, [])
    with engine.begin() as connection:
        run(connection, "UPDATE sync.alembic_version SET version_num = '0001'")
    try:
        migrate.migrate(engine)
        assert (migrate.is_current(engine), len(migrated)) == (False, 1)
    finally:
        with engine.begin() as connection:
            run(connection, "UPDATE sync.alembic_version SET version_num = %(name)s", name=migrate.newest_revision())
