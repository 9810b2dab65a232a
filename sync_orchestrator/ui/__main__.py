"""``python -m sync_orchestrator.ui --workspace workspace.yaml``: serves the Dagster UI until SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sync_orchestrator.errors import SyncError
from sync_orchestrator.ui.serve import serve


def main() -> int:
    """Reads the command line and serves; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sync_orchestrator.ui", description=__doc__)
    parser.add_argument("--workspace", type=Path, default=Path("workspace.yaml"), help="Dagster's workspace file")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=3000, help="port to listen at")
    parser.add_argument("--log-level", default="warning", choices=["critical", "error", "warning", "info", "debug"])
    options = parser.parse_args()
    try:
        serve(options.workspace, options.host, options.port, options.log_level)
    except SyncError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
