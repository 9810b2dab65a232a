"""The extras that a configuration needs, so that a missing one is reported when it is loaded, not at first use.

Parquet files and the embedded Postgres are not here: only the folder and the environment show that they are used.
"""

from __future__ import annotations

from collections.abc import Iterator

from sync_orchestrator.config.document import Config
from sync_orchestrator.config.environment import Place
from sync_orchestrator.config.sources import SqlSourceSettings
from sync_orchestrator.extras import describe_missing, is_installed


def find_missing_extras(config: Config) -> Iterator[tuple[Place, str]]:
    """Yields each place of a configuration that needs an extra which is not installed, with what to do about it."""
    for place, extra in _list_needed_extras(config):
        if not is_installed(extra):
            yield place, describe_missing(extra)


def _list_needed_extras(config: Config) -> Iterator[tuple[Place, str]]:
    for number in range(len(config.alerts.urls)):
        yield ("alerts", "urls", number), "alerts"
    for name, consumer in config.consumers.items():
        if consumer.outbox is not None:
            continue  # the driver of its database is named when it is opened
        yield ("consumers", name, "url"), "redis" if consumer.is_redis else "rabbitmq"
    for name in config.captured_sources():
        source = config.sources[name]
        if isinstance(source, SqlSourceSettings) and source.has_binlog:
            yield ("sources", name, "capture"), "mysql"
    for name, receiver in config.outcomes.items():
        if not receiver.is_webhook:
            yield ("outcomes", name, "url"), "redis" if receiver.is_redis else "rabbitmq"
