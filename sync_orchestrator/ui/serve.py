"""Starts Dagster's webserver behind the guard. Reads ``DAGSTER_HOME``, and the allowed hosts of the configuration."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Match
from starlette.types import Scope

from sync_orchestrator import config as configuration
from sync_orchestrator.config import Config
from sync_orchestrator.errors import ConfigError
from sync_orchestrator.resources.instance.webserver import (
    WorkspaceProcessContext,
    create_webserver_app,
    open_workspace,
)
from sync_orchestrator.texts.host_names import AllowedHosts, Origin
from sync_orchestrator.ui.guard import UiGuard

LIVE_DATA_POLL_MILLISECONDS = 2000
"""How often the UI refreshes; Dagster's own default."""

_PAGE_ROUTES = ("/", "/{path:path}")
"""Dagster's routes that return the HTML of the UI, whose data is loaded by further requests."""


def serve(workspace: Path, host: str, port: int, log_level: str = "warning") -> None:
    """Serves the UI of a workspace until SIGINT or SIGTERM.

    Raises ConfigError for a wrong configuration and without ``DAGSTER_HOME``.
    """
    if not os.environ.get("DAGSTER_HOME"):
        raise ConfigError("DAGSTER_HOME is not set: start the UI with `sync-orchestrator up`")
    config = configuration.load(Path(os.environ.get("SYNC_CONFIG", "sync.yaml")).resolve())
    # An interrupt, so that the processes which hold the code locations are ended, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    try:
        with dg.DagsterInstance.get() as instance, open_workspace(instance, workspace) as context:
            uvicorn.run(
                create_guarded_app(context, config),
                host=host,
                port=port,
                log_level=log_level,
                proxy_headers=False,
                timeout_graceful_shutdown=5,
            )
    except KeyboardInterrupt:
        return


def create_guarded_app(context: WorkspaceProcessContext, config: Config) -> UiGuard:
    """Dagster's webserver as an ASGI application that refuses what does not come from its own pages."""
    app = create_webserver_app(context, LIVE_DATA_POLL_MILLISECONDS)
    return guard_app(app, config)


def guard_app(app: Starlette, config: Config) -> UiGuard:
    """Puts the guard before Dagster's application, with the hosts and the public URL of a configuration."""
    public = Origin.of_url(config.alerts.ui_url)
    if public is not None and public.scheme == "http" and public.to_host().is_loopback:
        public = None  # the default, which may be the port of another program: Host says where this one is
    hosts = AllowedHosts([*config.ui.allowed_hosts, *([public.to_host()] if public else [])], all_addresses=False)
    return UiGuard(app, hosts, frozenset([public] if public else []), find_pages(app))


def find_pages(app: Starlette) -> Callable[[Scope], bool]:
    """A function that tells requests for a page of the UI from requests for data, by Dagster's own routes."""
    routes = app.router.routes

    def is_page(scope: Scope) -> bool:
        first = next((route for route in routes if route.matches(scope)[0] is not Match.NONE), None)
        return getattr(first, "path", None) in _PAGE_ROUTES

    return is_page
