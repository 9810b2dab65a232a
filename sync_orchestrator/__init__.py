"""Keeps a third party's copy of your business data in sync, and proves it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sync_orchestrator.component import SyncEntityComponent as SyncEntityComponent

__all__ = ["SyncEntityComponent"]


def __getattr__(name: str) -> Any:
    """Imports the component of Dagster only for those that use it: commands start without it."""
    if name == "SyncEntityComponent":
        from sync_orchestrator.component import SyncEntityComponent

        return SyncEntityComponent
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The names of the package, for the registry of `dg`."""
    return [*globals(), *__all__]
