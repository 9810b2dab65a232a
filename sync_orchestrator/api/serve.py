"""Runs the intake: ``python -m sync_orchestrator.api.serve --port 8700``."""

from __future__ import annotations

import argparse
import sys

import uvicorn

from sync_orchestrator import config as configuration
from sync_orchestrator.api.intake import create_app
from sync_orchestrator.app import config_path, open_context
from sync_orchestrator.core.errors import SyncError


def main() -> None:
    """Serves until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8700)
    parser.add_argument("--host", default="127.0.0.1")
    arguments = parser.parse_args()
    try:
        config = configuration.load(config_path())
        context = open_context(config=config)
    except SyncError as error:
        sys.exit(f"error: {error}")
    uvicorn.run(create_app(context.engine, config), host=arguments.host, port=arguments.port, log_level="warning",
                access_log=False, limit_concurrency=1000, timeout_keep_alive=30, timeout_graceful_shutdown=5)


if __name__ == "__main__":
    main()
