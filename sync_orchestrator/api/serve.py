"""Runs the API service, in one process or several: ``sync-orchestrator api``."""

from __future__ import annotations

import gc
from typing import Any

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

import uvicorn
from starlette.applications import Starlette

from sync_orchestrator.api.connections import MAX_CONNECTIONS, GuardedProtocol
from sync_orchestrator.api.log_limits import summarise_repeats
from sync_orchestrator.api.service import create_app
from sync_orchestrator.composition import load_config, open_context

_OTHER_FILES = 256
"""Files of the process that are no connections of callers."""


def app() -> Starlette:
    """The service, as the environment configures it. Raises ConfigError."""
    summarise_repeats("uvicorn.error", "sync_orchestrator.api")
    made = create_app(open_context(config=load_config()))
    gc.collect()
    gc.freeze()  # what stays for good is not looked through at every collection
    gc.set_threshold(20_000, 20, 50)
    return made


def _raise_connection_limit() -> int:
    """How many connections with a request there may be, and how many without one: as many as the process may open."""
    if resource is None:
        return MAX_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MAX_CONNECTIONS + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, (soft - _OTHER_FILES) // 2))


def serve(host: str, port: int, workers: int = 1) -> None:
    """Serves until SIGINT or SIGTERM; requests under way are answered first. Raises ConfigError."""
    settings: dict[str, Any] = {
        "host": host,
        "port": port,
        "log_level": "warning",
        "access_log": False,
        "http": GuardedProtocol,
        "ws": "none",
        "limit_concurrency": _raise_connection_limit(),
        "timeout_keep_alive": 30,
        "timeout_graceful_shutdown": 5,
        "server_header": False,
        "proxy_headers": False,
    }
    if workers == 1:
        uvicorn.run(app(), **settings)
    else:
        load_config()
        uvicorn.run(f"{__name__}:app", factory=True, workers=workers, **settings)
