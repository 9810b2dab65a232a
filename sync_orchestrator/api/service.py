"""The API service: what answers at which path, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware

from sync_orchestrator.api import problems
from sync_orchestrator.api.auth import Access
from sync_orchestrator.api.conflicts import Conflicts
from sync_orchestrator.api.database import ApiDatabase
from sync_orchestrator.api.health import Health
from sync_orchestrator.api.host_check import HostCheck
from sync_orchestrator.api.intake.routes import Intake
from sync_orchestrator.api.lookups import Lookups
from sync_orchestrator.api.openapi import Descriptions
from sync_orchestrator.api.proxy.rollouts import Rollouts
from sync_orchestrator.api.proxy.routes import Proxy
from sync_orchestrator.api.proxy.shared_state import SharedState
from sync_orchestrator.api.watchdog import Watchdog
from sync_orchestrator.core.context import Context


def create_app(context: Context) -> Starlette:
    """The service as an ASGI application; its end closes the context's connections."""
    database = ApiDatabase(context.engine)
    access = Access(database)
    known = SharedState(database)
    proxy = Proxy(database, context, access, known)
    rollouts = Rollouts(database, context.config, access, known)
    intake = Intake(database, context.config, access)
    parts = (
        intake,
        Lookups(database, context.config, access),
        Conflicts(database, context.config, access),
        proxy,
        rollouts,
        Health(database, access, rollouts.collect_metrics),
        Descriptions(access, proxy.describe_paths()),
    )

    watchdog = Watchdog(database, context.config)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        watchdog.start()
        yield
        await watchdog.close()
        await intake.close()
        await proxy.close()
        await context.close()

    app = Starlette(
        routes=[route for part in parts for route in part.build_routes()],
        lifespan=lifespan,
        exception_handlers=problems.HANDLERS,
        middleware=[Middleware(HostCheck, allowed_hosts=context.config.api.allowed_hosts)],
    )
    app.router.redirect_slashes = False
    app.state.intake, app.state.proxy = intake, proxy
    return app
