"""Dagster's webserver as an application of this process, which a guard can be put before.

Its command line serves the application itself, and takes no middleware.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

# Unnecessary once the webserver takes middleware for authentication, hosts and origins:
# https://github.com/dagster-io/dagster/issues/2219
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster_webserver.app import create_app_from_workspace_process_context
from dagster_webserver.cli import DEFAULT_DB_STATEMENT_TIMEOUT, DEFAULT_POOL_MAX_OVERFLOW, DEFAULT_POOL_RECYCLE
from dagster_webserver.version import __version__
from starlette.applications import Starlette

__all__ = ["WorkspaceProcessContext", "create_webserver_app", "open_workspace"]


@contextmanager
def open_workspace(instance: dg.DagsterInstance, workspace: Path) -> Iterator[WorkspaceProcessContext]:
    """Opens a workspace for the webserver, with the connections and timeouts that its command line sets."""
    instance.optimize_for_webserver(DEFAULT_DB_STATEMENT_TIMEOUT, DEFAULT_POOL_RECYCLE, DEFAULT_POOL_MAX_OVERFLOW)
    target = WorkspaceFileTarget(paths=[str(workspace)])
    with WorkspaceProcessContext(
        instance, version=__version__, read_only=False, workspace_load_target=target
    ) as context:
        yield context


def create_webserver_app(context: WorkspaceProcessContext, live_data_poll_milliseconds: int) -> Starlette:
    """Creates Dagster's webserver as an ASGI application."""
    return create_app_from_workspace_process_context(context, live_data_poll_rate=live_data_poll_milliseconds)
