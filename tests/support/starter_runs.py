"""Runs of `init`, and the configuration that it writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from sync_orchestrator.cli import app
from sync_orchestrator.cli.starter.document import marked_lines

PARTNER = "https://partner.example.com"


Init = Callable[..., Result]


@pytest.fixture
def init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Init:
    """Runs ``init --yes`` in an empty folder; a text ``typed`` answers its questions instead."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SYNC_CONFIG", raising=False)
    monkeypatch.delenv("SYNC_DATABASE_URL", raising=False)

    def run(*words: str, typed: str | None = None) -> Result:
        return CliRunner().invoke(app, ["init", *([] if typed is not None else ["--yes"]), *words], input=typed)

    return run


def written(folder: Path) -> Any:
    return yaml.safe_load((folder / "sync.yaml").read_text())


def part_of(folder: Path) -> Any:
    [entity] = written(folder)["entities"].values()
    return entity["parts"]["backoffice"]


def explained(folder: Path) -> list[int]:
    """The lines that ``check`` names, which must be all that are marked; it passes where none are."""
    marked = marked_lines((folder / "sync.yaml").read_text())
    result = CliRunner().invoke(app, ["check"])
    assert (result.exit_code == 0) == (marked == []), result.output
    named = [int(line.removeprefix("error: ").split(":")[1]) for line in result.stderr.splitlines()]
    assert named == marked, result.stderr
    assert all("is to be filled in" in line for line in result.stderr.splitlines())
    return marked
