"""``python -m sync_orchestrator`` is ``sync-orchestrator``."""

from __future__ import annotations

import gc


def main() -> None:
    """Runs the command that the words of the command line name."""
    # Importing makes many thousand objects that stay: collecting them again and again is a tenth of a short command.
    gc.disable()
    from sync_orchestrator.cli import app

    gc.freeze()
    gc.enable()
    app(prog_name="sync-orchestrator")


if __name__ == "__main__":
    main()
