"""Runs the API service, in one process or several: ``sync-orchestrator api``.

Not here: what it answers (``service.py``).
"""

from __future__ import annotations

import gc
from typing import Any

import uvicorn
from starlette.applications import Starlette

from sync_orchestrator.api.service import create_app
from sync_orchestrator.app import load_config, open_context


def app() -> Starlette:
    """The service, as the environment configures it. Raises ConfigError."""
    made = create_app(open_context(config=load_config()))
    gc.collect()
    gc.freeze()  # what stays for good is not looked through at every collection
    gc.set_threshold(20_000, 20, 50)
    return made


def serve(host: str, port: int, workers: int = 1) -> None:
    """Serves until SIGINT or SIGTERM; requests under way are answered first. Raises ConfigError."""
    settings: dict[str, Any] = {
        "host": host, "port": port, "log_level": "warning", "access_log": False, "limit_concurrency": 1000,
        "timeout_keep_alive": 30, "timeout_graceful_shutdown": 5, "server_header": False,
        "proxy_headers": False}
    if workers == 1:
        uvicorn.run(app(), **settings)
    else:
        load_config()
        uvicorn.run(f"{__name__}:app", factory=True, workers=workers, **settings)
