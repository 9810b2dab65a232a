"""Records that are dead in a world, by a full sync or by events."""

from __future__ import annotations

from fakes import answer
from scenes import fill_sources
from world import World

from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.errors import CallFailed, Failure


def refuse(world: World, *keys: str, status_code: int = 422) -> None:
    """The third party refuses these records for good, and takes all others."""
    world.erp.before = lambda verb, key: answer(status_code) if key in keys else None


def accept_all(world: World) -> None:
    world.erp.before = lambda verb, key: None


def dead_by_full_sync(world: World, *keys: str, count: int = 20) -> None:
    """A group of records that a full sync brought, without any event; some of them are refused."""
    refuse(world, *keys)
    fill_sources(world, count)
    world.run_full_sync(patience=30)
    accept_all(world)
    world.advance_clock(1)


def dead_by_events(world: World, *keys: str) -> None:
    refuse(world, *keys)
    world.put_record("fine")
    for key in keys:
        world.put_record(key)
    world.run_drain()
    world.run_full_sync()
    accept_all(world)
    world.advance_clock(1)


def unreadable_change(world: World, key: str, group: str | None = None) -> None:
    """A change whose source refuses to be read for good."""
    world.shop.read = world.stock.read = _refused  # type: ignore[method-assign]
    world.post_event("shop", key, "update", world.shop.version + 1, group=group)
    world.run_drain()
    world.advance_clock(1)


async def _refused(key: str) -> PartRead | None:
    raise CallFailed(Failure.PERMANENT, f'answer 400: {{"message": "no access to {key}"}}', status=400)
