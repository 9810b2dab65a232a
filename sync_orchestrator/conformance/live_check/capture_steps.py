"""Tries out whether the changes of a source system's database can be captured. It reads catalogs only."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sync_orchestrator.adapters.sql.log_end import PostgresLogEnd
from sync_orchestrator.capture.engines import open_capture_source
from sync_orchestrator.capture.parts import list_captured_tables, numbered_entities
from sync_orchestrator.capture.port import CaptureSource
from sync_orchestrator.capture.preparation import SourcePreparation
from sync_orchestrator.config import Config
from sync_orchestrator.config.sources import SqlSourceSettings
from sync_orchestrator.conformance.live_check.report import CheckStep, Told
from sync_orchestrator.errors import CallFailed, LogDown, SyncError

_STEP = "capture"


def check_captures(config: Config, tell: Told) -> None:
    """Tries each captured source system: its server, the role's rights, the publication and the replica identities.

    Args:
        config: The configuration.
        tell: Called with each step as it ends.
    """
    for name in config.captured_sources():
        for step in _check_capture(config, name):
            tell(step)


def _check_capture(config: Config, name: str) -> list[CheckStep]:
    place = f"sources.{name}.capture"
    try:
        found = _inspect(config, name)
    except SyncError as error:
        hint = f"see {place}.url (by default the source's url), and whether its user may replicate"
        return [CheckStep("", name, _STEP, "failed", str(error), hint)]
    commands = f"`sync-orchestrator capture prepare {name}` prints the SQL"
    steps = [CheckStep("", name, _STEP, "failed", problem, commands) for problem in found.problems]
    steps += [CheckStep("", name, _STEP, "skipped", warning, commands) for warning in found.warnings]
    if not found.problems:
        tables = ", ".join(found.name_tables())
        steps.append(CheckStep("", name, _STEP, "ok", f"the log has the changes of {tables}"))
    if numbered := numbered_entities(list_captured_tables(config, name)):
        steps.append(_check_log_end(config, name, numbered))
    return steps


def _check_log_end(config: Config, name: str, numbered: Sequence[str]) -> CheckStep:
    """Whether reads of parts whose versions the stream gives can learn where the log ends."""
    settings = config.sources[name]
    assert isinstance(settings, SqlSourceSettings)

    async def read_end() -> str:
        log = PostgresLogEnd(name, settings)
        try:
            return (await log.read_end()).inserted
        finally:
            await log.close()

    names = ", ".join(numbered)
    try:
        end = asyncio.run(read_end())
    except CallFailed as error:
        hint = f"see sources.{name}.capture.url: it has to be the primary server"
        detail = f"reads of {names} (version: kind 'log') cannot learn where the log ends: {error.detail}"
        return CheckStep("", name, _STEP, "failed", detail, hint)
    detail = f"the stream gives the versions of {names}; reads wait until it has passed the log's end, now {end}"
    return CheckStep("", name, _STEP, "ok", detail)


def _inspect(config: Config, name: str) -> SourcePreparation:
    """Raises LogDown where the server does not let the stream's user in, also for replication."""
    settings = config.sources[name]
    assert isinstance(settings, SqlSourceSettings)
    source = open_capture_source(name, settings)
    try:
        found = source.inspect(list_captured_tables(config, name))
        if not found.problems:
            _try_replication(source, found)
        return found
    finally:
        source.close()


def _try_replication(source: CaptureSource, found: SourcePreparation) -> None:
    """Opens a connection for replication, as the stream does."""
    try:
        source.try_replication()
    except LogDown as error:
        found.problems.append(f"a connection for replication is refused: {error}")
