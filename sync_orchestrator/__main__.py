"""``python -m sync_orchestrator`` is ``sync-orchestrator``."""

from __future__ import annotations

from sync_orchestrator.cli import app

app(prog_name="sync-orchestrator")
