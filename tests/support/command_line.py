"""The command line over a test's world."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result
from world import World

from sync_orchestrator import composition
from sync_orchestrator.cli import app

Command = Callable[..., Result]


@pytest.fixture
def command(world: World, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command against the test's world."""
    monkeypatch.setattr(composition, "open_context", lambda **_: world.context)
    monkeypatch.setattr(composition, "open_database", lambda: world.engine)
    monkeypatch.setattr(composition, "require_database", lambda: None)

    def run(*words: object, **environment: str) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words], env=environment)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run
