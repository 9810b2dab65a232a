"""Waiting for work: LISTEN/NOTIFY as a hint, so that nobody polls fast and nobody depends on it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress

import psycopg
from psycopg.types.json import Jsonb
from sqlalchemy import Engine

from sync_orchestrator.core.db.fragments import HOLDER_IS_GONE, claim_is_free
from sync_orchestrator.core.db.notify import open_listener
from sync_orchestrator.core.db.session import run

CHANNEL = "sync_work"

# Something can be done now: an event to archive, or a record to push.
DUE = f"""
SELECT EXISTS (SELECT FROM sync.events WHERE revision IS NULL AND state IN ('pending', 'waiting')
                 AND due_at <= sync.clock() - make_interval(secs => %(age)s) AND entity = ANY(%(entities)s))
    OR EXISTS (SELECT FROM sync.events
               WHERE state = 'leased' AND lease_until < sync.clock() - make_interval(secs => %(age)s))
    OR EXISTS (SELECT FROM sync.events WHERE state = 'leased' AND revision IS NULL
                 AND lease_holder = ANY({HOLDER_IS_GONE})
                 AND due_at <= sync.clock() - make_interval(secs => %(age)s))
    OR EXISTS (SELECT FROM sync.records r JOIN sync.systems s ON s.name = %(systems)s::jsonb ->> r.entity
               LEFT JOIN sync.entities n ON n.name = r.entity
               WHERE r.out_of_sync AND r.stopped IS NULL AND r.entity = ANY(%(entities)s)
                 AND r.due_at <= sync.clock() - make_interval(secs => %(age)s)
                 AND {claim_is_free("r.")}
                 AND NOT s.paused AND s.suspended_at IS NULL AND NOT coalesce(n.paused, false)
                 AND coalesce(s.probe_at, '-infinity') <= sync.clock()
                 AND coalesce(s.not_before, '-infinity') <= sync.clock()) AS due
"""


_RECONNECT_SECONDS = 1.0


def _open_listener(engine: Engine) -> psycopg.Connection[tuple[object, ...]]:
    return open_listener(engine, CHANNEL)


@asynccontextmanager
async def listen_for_work(engine: Engine, wake: Callable[[], None]) -> AsyncIterator[None]:
    """Calls ``wake`` in the event loop whenever work is announced, until the block is left.

    A lost session is replaced, as often as it takes: only hints are lost with it.
    """
    loop = asyncio.get_running_loop()
    stop = threading.Event()

    def hear_notifications() -> None:
        while not stop.is_set():
            with suppress(psycopg.Error), _open_listener(engine) as connection:
                while not stop.is_set():
                    for _ in connection.notifies(timeout=0.25, stop_after=1):
                        loop.call_soon_threadsafe(wake)
            stop.wait(_RECONNECT_SECONDS)

    thread = threading.Thread(target=hear_notifications, name="listen", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        await asyncio.to_thread(thread.join)


def wait_for_work(engine: Engine, systems: dict[str, str], seconds: float) -> bool:
    """Waits until something is due, at most ``seconds``; ``systems`` names each entity's third party.

    Looks itself every second at least, so a lost announcement, or a lost session, costs no more than that.
    """
    ends = time.monotonic() + seconds
    with ExitStack() as opened:
        listener = None
        while True:
            if listener is None:
                with suppress(psycopg.Error):
                    listener = opened.enter_context(_open_listener(engine))
            if is_due(engine, systems):
                return True
            left = min(1.0, ends - time.monotonic())
            if left <= 0:
                return False
            listener = _wait_for_announcement(listener, left)


def _wait_for_announcement(
    listener: psycopg.Connection[tuple[object, ...]] | None,
    seconds: float,
) -> psycopg.Connection[tuple[object, ...]] | None:
    """Waits for an announcement; returns the listener, or None where its session is lost."""
    if listener is None:
        time.sleep(seconds)
        return None
    try:
        for _ in listener.notifies(timeout=seconds, stop_after=1):
            break
    except psycopg.Error:
        return None
    return listener


def is_due(engine: Engine, systems: dict[str, str], age: float = 0.0) -> bool:
    """Whether a drain would find something to do now that is due for ``age`` seconds."""
    with engine.begin() as connection:
        row = run(connection, DUE, entities=list(systems), systems=Jsonb(systems), age=age)[0]
    return bool(row.due)
